//! What the interconnect counts, and why a peer is not there. Plain values; the counters are cells of the shard's thread.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::header::{FrameFault, Service};
use crate::ids::{Incarnation, NodeId};

/// Messages of one service in one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    /// Messages.
    pub messages: u64,
    /// Bytes, headers included.
    pub bytes: u64,
}

/// Messages that arrived whole and reached no handler.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Drops {
    /// Another epoch than ours.
    pub epoch: u64,
    /// Another life of the sender than the one that greeted.
    pub incarnation: u64,
    /// No handler is registered for the service.
    pub no_handler: u64,
    /// Blocks for requests that were given up, which came after that.
    pub abandoned: u64,
}

/// Blocks by one transport, and what it cost to move them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BlockTraffic {
    /// Blocks sent.
    pub sent: u64,
    /// Blocks received.
    pub received: u64,
    /// Bytes of them that this process copied from one place to another, on either way. Zero is the aim: the holder's frame to
    /// the requester's frame, nothing between.
    pub bytes_copied: u64,
}

/// What the RDMA transport has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RdmaTraffic {
    /// Connections made.
    pub lanes_connected: u64,
    /// Connections, or attempts to make one, that came to nothing.
    pub lanes_failed: u64,
    /// Messages that went over TCP because the lane failed before they were known to have arrived.
    pub sent_again: u64,
    /// One-sided writes of blocks.
    pub writes: u64,
    /// SCNs written for other nodes' clocks.
    pub tells: u64,
    /// One-sided reads, of what other nodes have published or were told.
    pub reads: u64,
    /// Of these, those that found a whole record, or what they had told.
    pub reads_answered: u64,
    /// Messages, of every kind.
    pub sends: u64,
    /// Of these, those that lay in the work request itself.
    pub inline: u64,
    /// Of these, those that say nothing but how many have come.
    pub acknowledgements: u64,
    /// Work requests that asked for their completion.
    pub signalled: u64,
    /// Times that the device was told of new work: of all that had gathered at a time.
    pub doorbells: u64,
    /// Messages received.
    pub received: u64,
    /// Times that receive slots were given back: of all that had gathered at a time.
    pub reposts: u64,
    /// Frames that others may write into now.
    pub exposed: u64,
    /// Frames of requests without an answer that others may still write into.
    pub quarantined: u64,
    /// Frames that ever went into quarantine.
    pub quarantined_total: u64,
}

/// Connections that came to nothing or were cut off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Refusals {
    /// What arrived was not a node's greeting: garbage on the port.
    pub not_a_node: u64,
    /// A node's greeting that disagreed with us (another cluster, version, ...), on either side.
    pub greeting: u64,
    /// Nothing, or half a greeting, within the time allowed.
    pub timeout: u64,
    /// Closed at once, because as many connections as allowed were being greeted already.
    pub too_many: u64,
    /// Established connections closed because of a damaged or impossible message.
    pub damaged: u64,
}

/// Everything counted since the interconnect started.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Sent, by [`Service::index`].
    pub sent: [Traffic; Service::ALL.len()],
    /// Received, by [`Service::index`].
    pub received: [Traffic; Service::ALL.len()],
    /// Whole messages that reached no handler.
    pub dropped: Drops,
    /// Connections refused or cut off.
    pub refused: Refusals,
    /// Blocks that went over TCP.
    pub blocks_tcp: BlockTraffic,
    /// Blocks that went by RDMA.
    pub blocks_rdma: BlockTraffic,
    /// The RDMA transport; `None` where this node has none.
    pub rdma: Option<RdmaTraffic>,
    /// Each configured peer.
    pub peers: Vec<PeerStatus>,
}

/// One peer, as the interconnect sees it.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// The peer.
    pub node: NodeId,
    /// Where it listens for this shard.
    pub address: SocketAddr,
    /// Connected now.
    pub up: bool,
    /// What is sent to it goes by RDMA now.
    pub by_rdma: bool,
    /// The latest life seen; 0 when it was never seen.
    pub incarnation: Incarnation,
    /// Why it is not connected, or was not last time.
    pub down_reason: DownReason,
    /// Connections made with it.
    pub connected_count: u64,
    /// Connections lost with it.
    pub lost_count: u64,
    /// Bytes waiting to be sent now.
    pub queue_bytes: u64,
    /// Most bytes that ever waited.
    pub queue_bytes_max: u64,
    /// Most messages that ever waited.
    pub queue_messages_max: u64,
    /// Round trip of the last heartbeat, in microseconds; 0 before the first.
    pub heartbeat_us_last: u64,
    /// Shortest round trip of a heartbeat, in microseconds; 0 before the first.
    pub heartbeat_us_min: u64,
    /// Longest round trip of a heartbeat, in microseconds.
    pub heartbeat_us_max: u64,
}

/// Why a peer is not connected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DownReason {
    /// It was never connected since this node started.
    NeverSeen,
    /// The connection broke.
    Broken(io::ErrorKind),
    /// It closed the connection: its process ended, or it has a newer one with us.
    ClosedByPeer,
    /// Nothing arrived for this long.
    Silent(Duration),
    /// It takes messages more slowly than we make them: this many bytes waited, which is more than allowed.
    QueueFull {
        /// Bytes that waited.
        bytes: u64,
    },
    /// It sent what no node sends.
    Damaged(FrameFault),
    /// It connected anew; the old connection was dropped.
    Replaced,
    /// This node closed its interconnect.
    ClosedHere,
    /// This node broke it off: the connection of another shard to the same node was lost.
    GivenUp,
    /// Only RDMA is wanted, and it does not work between the two.
    NoRdma(String),
}

impl fmt::Display for DownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DownReason::NeverSeen => write!(f, "never connected since this node started: is it running, is its address right?"),
            DownReason::Broken(kind) => write!(f, "the connection broke ({kind}): did its process die, is the network down?"),
            DownReason::ClosedByPeer => write!(f, "it closed the connection: did its process end?"),
            DownReason::Silent(time) => {
                write!(f, "nothing heard for {} ms: look at its load, its network and its process", time.as_millis())
            }
            DownReason::QueueFull { bytes } => {
                write!(f, "it takes messages too slowly, {bytes} bytes waited: look at its load and its network")
            }
            DownReason::Damaged(fault) => write!(f, "{fault}: look for a faulty network card or another release on that node"),
            DownReason::Replaced => write!(f, "it connected anew"),
            DownReason::ClosedHere => write!(f, "this node closed its interconnect"),
            DownReason::GivenUp => write!(f, "the connection of another shard to it was lost"),
            DownReason::NoRdma(why) => write!(
                f,
                "[rac.interconnect] protocol is \"RDMA\", and RDMA to it does not work ({why}): see docs/rdma.md, or set \"auto\""
            ),
        }
    }
}

/// A message could not be sent, because the peer is not connected. Whatever was under way with it is lost; its handlers
/// hear (or have heard) `on_peer_down`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerDown {
    /// The peer.
    pub node: NodeId,
    /// Why.
    pub reason: DownReason,
}

impl fmt::Display for PeerDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not connected: {}", self.node, self.reason)
    }
}

impl std::error::Error for PeerDown {}

/// The counters while they count.
#[derive(Default)]
pub(super) struct Counters {
    pub sent: [Cell<Traffic>; Service::ALL.len()],
    pub received: [Cell<Traffic>; Service::ALL.len()],
    pub dropped: Cell<Drops>,
    pub refused: Cell<Refusals>,
    pub blocks_tcp: Cell<BlockTraffic>,
    pub blocks_rdma: Cell<BlockTraffic>,
    pub rdma: Cell<RdmaTraffic>,
}

impl Counters {
    pub fn change<T: Copy>(cell: &Cell<T>, change: impl FnOnce(&mut T)) {
        let mut value = cell.get();
        change(&mut value);
        cell.set(value);
    }

    pub fn count(table: &[Cell<Traffic>; Service::ALL.len()], service: Service, bytes: u64) {
        let cell = &table[service.index()];
        let traffic = cell.get();
        cell.set(Traffic { messages: traffic.messages + 1, bytes: traffic.bytes + bytes });
    }

    pub fn drop_one(&self, pick: impl FnOnce(&mut Drops) -> &mut u64) {
        let mut drops = self.dropped.get();
        *pick(&mut drops) += 1;
        self.dropped.set(drops);
    }

    pub fn refuse_one(&self, pick: impl FnOnce(&mut Refusals) -> &mut u64) {
        let mut refused = self.refused.get();
        *pick(&mut refused) += 1;
        self.refused.set(refused);
    }
}
