//! What Cache Fusion measures: messages by kind, transfers by the path that they took, and how long they took.
//!
//! Counters of one shard, since its start; taken over into snapshots that can be added up over shards.

use super::message::Kind;
use super::{HolderCounters, MasterCounters};

/// Buckets of a [`LatencyHistogram`]: the last counts everything from 2^26 µs (67 s) on.
pub const LATENCY_BUCKETS: usize = 28;

/// Latencies in buckets of powers of two: bucket 0 counts those below 1 µs, bucket n those from 2^(n-1) up to 2^n µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencyHistogram {
    /// How many fell into each bucket.
    pub buckets: [u64; LATENCY_BUCKETS],
    /// Sum of all, in nanoseconds.
    pub total_ns: u64,
}

impl LatencyHistogram {
    /// Counts one.
    pub fn record_ns(&mut self, ns: u64) {
        let bucket = (u64::BITS - (ns / 1000).leading_zeros()) as usize;
        self.buckets[bucket.min(LATENCY_BUCKETS - 1)] += 1;
        self.total_ns = self.total_ns.saturating_add(ns);
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Mean, in microseconds; 0 when there were none.
    #[must_use]
    pub fn mean_us(&self) -> f64 {
        match self.count() {
            0 => 0.0,
            count => self.total_ns as f64 / 1000.0 / count as f64,
        }
    }

    /// An upper bound of the given quantile (0.0 to 1.0) in microseconds: the end of the bucket that it falls in.
    #[must_use]
    pub fn quantile_us(&self, quantile: f64) -> u64 {
        let rank = (self.count() as f64 * quantile.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|&count| {
            seen += count;
            seen >= rank
        });
        bucket.map_or(0, |bucket| 1 << bucket)
    }

    /// Adds what another shard counted.
    pub fn add(&mut self, other: &LatencyHistogram) {
        for (sum, count) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += count;
        }
        self.total_ns = self.total_ns.saturating_add(other.total_ns);
    }
}

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

/// What one shard's Cache Fusion has done since its start, and what it is busy with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
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
    pub latency: [LatencyHistogram; Path::ALL.len()],
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

    /// Latencies of a path.
    #[must_use]
    pub fn latency_of(&self, path: Path) -> &LatencyHistogram {
        &self.latency[path as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_fall_into_powers_of_two() {
        let mut histogram = LatencyHistogram::default();
        for us in [0, 1, 3, 100, 100, 100, 100, 100, 100, 5_000] {
            histogram.record_ns(us * 1000);
        }
        assert_eq!((histogram.count(), histogram.mean_us()), (10, 560.4));
        assert_eq!((histogram.quantile_us(0.0), histogram.quantile_us(0.5), histogram.quantile_us(1.0)), (1, 128, 8192));
        histogram.record_ns(u64::MAX);
        assert_eq!(histogram.buckets[LATENCY_BUCKETS - 1], 1);
    }
}
