//! What two sides tell each other about a lane over their TCP connection: the kinds of these messages, and their bodies.
//!
//! Plain values, little-endian, laid out as docs/formats.md has them.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::super::Inner;
use super::super::header::Service;
use super::board::Board;
use super::verbs::{GREETING_BYTES, RemotePlace};
use crate::ids::NodeId;

/// Will you make a lane with me? `argument`: the attempt. Body: [`WireTerms`].
pub const LANE_OFFER: u8 = Service::Link.base() + 2;
/// Yes: connect. Body: [`WireTerms`].
pub const LANE_ACCEPT: u8 = Service::Link.base() + 3;
/// No, there is no RDMA here.
pub const LANE_REFUSE: u8 = Service::Link.base() + 4;
/// What follows comes by the lane.
pub const LANE_SWITCH: u8 = Service::Link.base() + 5;
/// I take it from there.
pub const LANE_GO: u8 = Service::Link.base() + 6;
/// My end is destroyed. `request`: so many messages of yours I have.
pub const LANE_DOWN: u8 = Service::Link.base() + 7;
/// On the lane only: nothing but how many packets have come, and the epoch.
pub const LANE_ACKNOWLEDGE: u8 = Service::Link.base() + 8;
/// This is where my frames are. Body: [`WireMemory`].
pub const LANE_MEMORY: u8 = Service::Link.base() + 9;

/// You may write your clock into this word from now on, by the lane `argument`. Body: [`WireWord`].
pub const LANE_WORD: u8 = Service::Link.base() + 10;

/// First bytes of the greeting that goes with a request to connect.
pub(super) const GREETING_MAGIC: [u8; 4] = *b"RDIC";

/// Body of an offer and of its acceptance.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct WireTerms {
    /// No frame of an earlier epoch may be written into by this lane.
    pub floor: U64,
    /// Must be the same on both sides.
    pub window: U32,
    /// Of the board.
    pub board_key: U32,
    /// Where this side's board is; zero if there is none.
    pub board: U64,
    pub word: WireWord,
}

/// Where the other side may write its clock. Body of a `LANE_WORD`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct WireWord {
    /// Zero if it may not.
    pub address: U64,
    pub key: U32,
    pub zero: U32,
}

/// Body of a `LANE_MEMORY`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct WireMemory {
    pub start: U64,
    pub bytes: U64,
    /// No frame of an earlier epoch may be written into, by any lane.
    pub floor: U64,
    pub key: U32,
    pub zero: U32,
}

/// What identifies an attempt to the device of the other side.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct WireGreeting {
    pub magic: [u8; 4],
    pub node: u8,
    pub to: u8,
    pub shard: u8,
    pub zero: u8,
    pub generation: U64,
    pub incarnation: U64,
    pub cluster_id: [u8; 16],
}

const _: () = assert!(size_of::<WireGreeting>() == GREETING_BYTES);

/// What this side has to offer a node.
pub(super) fn terms(inner: &Inner, to: NodeId) -> WireTerms {
    let board = inner.rdma().and_then(|rdma| rdma.board.as_ref()).map(Board::place);
    WireTerms {
        floor: U64::new(inner.epoch.get().0),
        window: U32::new(super::WINDOW as u32),
        board_key: U32::new(board.map_or(0, |board| board.key)),
        board: U64::new(board.map_or(0, |board| board.address)),
        word: word_of(inner, to),
    }
}

/// The word of a node, if it may tell.
pub(super) fn word_of(inner: &Inner, node: NodeId) -> WireWord {
    let rdma = inner.rdma().filter(|rdma| rdma.tellers.borrow().contains(&node));
    let word = rdma.and_then(|rdma| rdma.board.as_ref()).and_then(|board| board.word_of(node));
    WireWord {
        address: U64::new(word.map_or(0, |word| word.address)),
        key: U32::new(word.map_or(0, |word| word.key)),
        zero: U32::ZERO,
    }
}

impl WireWord {
    /// The word, if it may be written.
    pub fn open(&self) -> Option<RemotePlace> {
        let word = RemotePlace { address: self.address.get(), key: self.key.get() };
        (word.address != 0).then_some(word)
    }
}
