//! What the nodes say to each other about blocks: one kind per step of the protocol, all within the 64-byte header of the
//! interconnect; only [`Kind::Data`] has a body, the block.
//!
//! Plain values. A request is named by its [`RequestId`], which carries the node that opened it in its top byte, so that
//! a third party knows whom a forwarded request is for.

use std::fmt;

use crate::cache::Mode;
use crate::fusion::grd::Bucket;
use crate::ids::{BlockId, Epoch, NodeId, RequestId, Scn};

/// First number of this service's kinds on the wire.
const BASE: u8 = 0x20;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $label:literal;)+) => {
        /// The steps of the protocol. The number is the kind on the wire, within the range of the service.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u8)]
        pub enum Kind { $($(#[$doc])* $name = BASE + $number,)+ }

        impl Kind {
            /// Every kind, in the order of [`Kind::index`].
            pub const ALL: [Kind; [$($number),+].len()] = [$(Kind::$name),+];

            /// Name in metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Kind::$name => $label,)+ }
            }

            /// From the wire; `None` for a number that is not ours.
            #[must_use]
            pub const fn from_wire(kind: u8) -> Option<Kind> {
                match kind.wrapping_sub(BASE) { $($number => Some(Kind::$name),)+ _ => None }
            }
        }
    };
}

kinds! {
    /// Requester → master: give me the block in `mode`. Flag [`CREATE`]: its present content does not matter. `scn` is the place
    /// of its frame, where a holder may write the block (0: none).
    Request = 0, "request";
    /// Master → holder: ship it to the request's node, in `mode`; `scn` is the place as the request said it.
    Forward = 1, "forward";
    /// Holder → requester, with the block: here it is, in `mode`, at version `scn`. Flag [`DIRTY`]: newer than the disk;
    /// with Exclusive the requester is its owner now, with Shared the sender remains so.
    Data = 2, "data";
    /// Requester → master: the request is served; flags and `scn` as they came with the answer.
    Done = 3, "done";
    /// Master → requester: nobody has it; read it from the disk, in `mode`.
    GrantDisk = 4, "grant_disk";
    /// Master → requester: your Shared copy is Exclusive now. Flag [`DIRTY`]: and you are its owner now.
    Grant = 5, "grant";
    /// Master → holder: give your copy up. Without a request it is a recall, for want of room in the directory.
    Invalidate = 6, "invalidate";
    /// Holder → master: given up. Flag [`DIRTY`]: I was its owner, at version `scn`, and keep a past image. Flag [`KEPT`]: not
    /// given up.
    InvalidateAck = 7, "invalidate_ack";
    /// Holder → master, for a Forward: I have it no more (a Drop is under way to you).
    Miss = 8, "miss";
    /// Holder → master: my clean copy leaves the cache.
    Drop = 9, "drop";
    /// Master → holder: noted; you may ask for it again.
    DropAck = 10, "drop_ack";
    /// Owner → master: version `scn` is on stable storage.
    Wrote = 11, "wrote";
    /// Master → keeper of a past image: images up to version `scn` are needed no more.
    PastImageDiscard = 12, "past_image_discard";
    /// Keeper of a past image → master: have a version of at least `scn` written, its log space is wanted.
    WriteWanted = 13, "write_wanted";
    /// Master → owner: write the block soon.
    WriteRequest = 14, "write_request";
    /// Member → master, on entering an epoch, with a body: what it has of these blocks (see `wire`).
    Claims = 15, "claims";
    /// Member → master: that was all; `scn` is how many there were.
    ClaimsEnd = 16, "claims_end";
    /// Master → keeper of a past image: send its bytes.
    FetchImage = 17, "fetch_image";
    /// Keeper → master, with the block at version `scn`; without it when the image is not kept any more.
    Image = 18, "image";
    /// Master → another member: will you master the bucket? This and the following name a bucket ([`bucket_of`]).
    RemasterOffer = 19, "remaster_offer";
    /// Its answer: hand it over.
    RemasterAccept = 20, "remaster_accept";
    /// Its answer: not now.
    RemasterRefuse = 21, "remaster_refuse";
    /// Former → next master, with a body: entries of the bucket's directory (see `wire`).
    RemasterEntries = 22, "remaster_entries";
    /// Former → next master: that was all; `request` is how many there were.
    RemasterEnd = 23, "remaster_end";
    /// Next master → every member: I master the bucket.
    Remastered = 24, "remastered";
    /// Member → next master: noted, what I send from now on goes to you.
    RemasteredAck = 25, "remastered_ack";
    /// Member → member: how busy a master I am; `scn` is a decayed count of requests.
    Load = 26, "load";
    /// Master → the member that has accepted the bucket: it stays after all.
    RemasterWithdraw = 27, "remaster_withdraw";
    /// Requester → master: my request that waits for its turn has a frame now; `scn` is its place. Said by a reader who wants
    /// Exclusive and has to give up its copy first: until then its frame was being read.
    Place = 28, "place";
}

impl Kind {
    /// Position in [`Kind::ALL`], for counters by kind.
    #[must_use]
    pub const fn index(self) -> usize {
        (self as u8 - BASE) as usize
    }

    /// Whether the message is for the master of its block; otherwise it is for a holder.
    #[must_use]
    pub const fn is_for_master(self) -> bool {
        matches!(
            self,
            Kind::Request
                | Kind::Done
                | Kind::InvalidateAck
                | Kind::Miss
                | Kind::Drop
                | Kind::Wrote
                | Kind::WriteWanted
                | Kind::Claims
                | Kind::ClaimsEnd
                | Kind::Place
        ) || self.is_of_remastering()
    }

    /// Whether it moves a bucket from one master to another. It names a bucket then, and no block.
    #[must_use]
    pub const fn is_of_remastering(self) -> bool {
        matches!(
            self,
            Kind::RemasterOffer
                | Kind::RemasterAccept
                | Kind::RemasterRefuse
                | Kind::RemasterWithdraw
                | Kind::RemasterEntries
                | Kind::RemasterEnd
                | Kind::Remastered
                | Kind::RemasteredAck
        )
    }
}

/// The block is newer than the disk; see the kinds for who owns it then. Among the flag bits left to services.
pub const DIRTY: u8 = 0x10;

/// The block is about to be formatted anew.
pub const CREATE: u8 = 0x20;

/// On InvalidateAck, for a recall: not given up, it is dirty here.
pub const KEPT: u8 = 0x80;

/// A former master of the bucket passes the message on, in the name of the node in the top byte of `request`.
pub const RELAYED: u8 = 0x40;

/// All of them.
pub const FLAGS: u8 = DIRTY | CREATE | RELAYED | KEPT;

/// One step of the protocol, as the cores see it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Message {
    /// Which step.
    pub kind: Kind,
    /// [`DIRTY`], [`CREATE`], [`RELAYED`], [`KEPT`].
    pub flags: u8,
    /// Shared or Exclusive where the step has a mode, otherwise Null.
    pub mode: Mode,
    /// The epoch of the sender when it sent; other epochs are dropped by the cores too (rule 3).
    pub epoch: Epoch,
    /// The block.
    pub block: BlockId,
    /// The request that the step belongs to; zero for steps that belong to none.
    pub request: RequestId,
    /// A version of the block, where the step has one; on the wire the header's `argument`.
    pub scn: Scn,
}

impl Message {
    /// Whether [`DIRTY`] is set.
    #[must_use]
    pub const fn is_dirty(&self) -> bool {
        self.flags & DIRTY != 0
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind.name())?;
        if self.mode != Mode::Null {
            write!(f, " {:?}", self.mode)?;
        }
        if self.is_dirty() {
            write!(f, " dirty")?;
        }
        write!(f, " of {:?} for {:?} (scn {}, {:?})", self.block, self.request, self.scn.0, self.epoch)
    }
}

/// Bits of a request id that count; the node stands above them.
const COUNTER_BITS: u32 = 56;

/// The `counter`-th request of `node`. Unique in the cluster for an epoch, as one life of a node does not open 2^56.
#[must_use]
pub fn request_id(node: NodeId, counter: u64) -> RequestId {
    assert!(counter < 1 << COUNTER_BITS, "{node} has run out of request ids");
    RequestId(u64::from(node.0) << COUNTER_BITS | counter)
}

/// The node that opened a request.
#[must_use]
pub const fn requester(request: RequestId) -> NodeId {
    NodeId((request.0 >> COUNTER_BITS) as u8)
}

/// What a message that is about a bucket carries in `scn`.
#[must_use]
pub fn name_of_bucket(bucket: Bucket) -> Scn {
    Scn(u64::from(bucket.0))
}

/// The bucket that such a message is about; `None` where it names none.
#[must_use]
pub fn bucket_of(message: &Message) -> Option<Bucket> {
    u16::try_from(message.scn.0).ok().map(Bucket)
}

/// A mode as it came over the wire; `None` for a number that is none.
#[must_use]
pub const fn mode_from_wire(mode: u8) -> Option<Mode> {
    match mode {
        0 => Some(Mode::Null),
        1 => Some(Mode::Shared),
        2 => Some(Mode::Exclusive),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_requests_survive_the_wire() {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind.index(), index);
            assert_eq!(Kind::from_wire(kind as u8), Some(kind));
        }
        assert_eq!(Kind::from_wire(BASE - 1), None);
        assert_eq!(Kind::from_wire(BASE + Kind::ALL.len() as u8), None);
        assert_eq!(requester(request_id(NodeId(127), (1 << 56) - 1)), NodeId(127));
    }
}
