//! What Cache Fusion measures: messages by kind, transfers by the path that they took, and how long they took.
//!
//! Counters of one shard, since its start; taken over into snapshots that can be added up over shards.

use super::message::Kind;
use super::{HolderCounters, MasterCounters};
use crate::cache::Mode;
use crate::histogram::Histogram;

/// How a request for a block was served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Path {
    /// From disk, this node being the master: no message.
    DiskLocal,
    /// From disk, by leave of another node.
    DiskRemote,
    /// The Shared copy here became Exclusive.
    Upgrade,
    /// From another node's memory, one of the two being the master.
    TwoWay,
    /// From another node's memory, by leave of a third.
    ThreeWay,
}

impl Path {
    /// Every path, in the order of [`GcsStats::latency`].
    pub const ALL: [Path; 5] = [Path::DiskLocal, Path::DiskRemote, Path::Upgrade, Path::TwoWay, Path::ThreeWay];

    /// Name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Path::DiskLocal => "disk_local",
            Path::DiskRemote => "disk_remote",
            Path::Upgrade => "upgrade",
            Path::TwoWay => "two_way",
            Path::ThreeWay => "three_way",
        }
    }
}

/// Time from request to grant: by [`Path`], and by mode as in [`mode_index`].
pub type Latencies = [[Histogram; 2]; Path::ALL.len()];

/// Where latencies of requests for a mode stand: 0 Shared, 1 Exclusive.
#[must_use]
pub fn mode_index(want: Mode) -> usize {
    usize::from(want == Mode::Exclusive)
}

/// What one shard's Cache Fusion has done since its start, and what it is busy with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GcsStats {
    /// Blocks received from other nodes' memory.
    pub total_transfers: u64,
    /// Blocks shipped to other nodes' memory.
    pub blocks_shipped_total: u64,
    /// Of these, dirty ones, which left a past image here.
    pub pi_transfers: u64,
    /// Mean time from request to grant of the blocks received, in microseconds.
    pub avg_transfer_latency_us: f64,
    /// Time from request to grant, by [`Path`]. For the disk's paths the reading is not in it.
    pub latency: Box<Latencies>,
    /// Messages sent to other nodes, by [`Kind`].
    pub sent: [u64; Kind::ALL.len()],
    /// Messages received from other nodes, by [`Kind`].
    pub received: [u64; Kind::ALL.len()],
    /// Requests that took longer than `block_transfer_timeout` and were reported.
    pub stalled_transfers_total: u64,
    /// Messages that could not be sent, because the peer was not connected.
    pub unsent_total: u64,
    /// Messages that made no sense, dropped.
    pub malformed_total: u64,
    /// Messages of another epoch that the interconnect let through while this shard entered one, dropped.
    pub other_epoch_total: u64,
    /// Peers lost, as often as they were lost.
    pub peers_lost_total: u64,
    /// Views entered, the first not counted.
    pub views_entered_total: u64,
    /// Blocks claimed of other masters.
    pub claims_sent_total: u64,
    /// Blocks that other nodes claimed here.
    pub claims_received_total: u64,
    /// Blocks that had lost their owner, made anew here or found to be on the disk.
    pub blocks_recovered_total: u64,
    /// Of these, those that the disk was behind of.
    pub blocks_rewritten_total: u64,
    /// Past images that came from other nodes for that.
    pub past_images_fetched_total: u64,
    /// Microseconds for which requests for a bucket were parked here because it was going to another master.
    pub remaster_frozen_us_total: u64,
    /// Buckets mastered here now.
    pub buckets_mastered: u64,
    /// Buckets that have another master than the ring says, as far as this shard knows: on whichever node.
    pub buckets_overridden: u64,
    /// Messages that wait here for a bucket to be taken over.
    pub requests_parked: u64,
    /// Requests open now.
    pub outstanding_requests: u64,
    /// Requests that wait for one of those to be answered, because there are as many as are allowed.
    pub waiting_requests: u64,
    /// Directory entries here now.
    pub grd_entries: u64,
    /// Blocks known to the holder's side now.
    pub blocks_held: u64,
    /// Transitions in flight here now.
    pub transitions_in_flight: u64,
    /// The master's own counters.
    pub master: MasterCounters,
    /// The holder's own counters.
    pub holder: HolderCounters,
}

impl GcsStats {
    /// Messages of a kind sent to other nodes.
    #[must_use]
    pub fn sent_of(&self, kind: Kind) -> u64 {
        self.sent[kind.index()]
    }

    /// Latencies of a path, of both modes together.
    #[must_use]
    pub fn latency_of(&self, path: Path) -> Histogram {
        let [shared, exclusive] = &self.latency[path as usize];
        let mut both = shared.clone();
        both.add(exclusive);
        both
    }
}
