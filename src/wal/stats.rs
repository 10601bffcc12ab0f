//! What a log has done, for the statistics views and for who tunes it. Counters of one shard; nothing here is shared.

use std::time::Duration;

use crate::histogram::Histogram;

/// Counts by powers of two: bucket `n` holds the values from 2^(n-1) up to below 2^n, bucket 0 the zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log2Histogram {
    buckets: [u64; 40],
}

impl Default for Log2Histogram {
    fn default() -> Log2Histogram {
        Log2Histogram { buckets: [0; 40] }
    }
}

impl Log2Histogram {
    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        let bucket = (u64::BITS - value.leading_zeros()) as usize;
        self.buckets[bucket.min(self.buckets.len() - 1)] += 1;
    }

    /// How many values were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Each bucket that holds something: the smallest value that is above it, and its count.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.buckets.iter().enumerate().filter(|(_, count)| **count > 0).map(|(n, count)| (1 << n, *count))
    }

    /// A value that at least this share (0.0 to 1.0) of the counted values is below: exact to a factor of two.
    #[must_use]
    pub fn quantile(&self, share: f64) -> u64 {
        let wanted = (self.count() as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (above, count) in self.buckets() {
            seen += count;
            if seen >= wanted {
                return above;
            }
        }
        0
    }
}

/// What a log has done since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Durable writes.
    pub flushes: u64,
    /// Bytes written, padding included.
    pub bytes: u64,
    /// Records appended.
    pub records: u64,
    /// Bytes of each write.
    pub batch_bytes: Log2Histogram,
    /// Records of each write.
    pub batch_records: Log2Histogram,
    /// Duration of each write.
    pub flush_latency: Histogram,
    /// Reservations that had to wait for space.
    pub space_waits: u64,
    /// How long they waited, together.
    pub space_wait: Duration,
    /// Checkpoints written.
    pub checkpoints: u64,
}
