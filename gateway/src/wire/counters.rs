//! What clients' statements have cost, counted over all of the node's sessions.
//!
//! Shared by the gateway's threads: plain atomic additions, nothing is waited for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustydb::histogram::{BUCKETS, Histogram, bucket_of};

/// The counters while they count.
pub struct Counters {
    statements: AtomicU64,
    errors: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
    max_ns: AtomicU64,
}

/// What they have counted since the node's start.
#[derive(Clone, Debug, Default)]
pub struct StatementStatistics {
    /// Simple queries, and executions of prepared statements.
    pub statements: u64,
    /// Of these, those that ended with an error.
    pub errors: u64,
    /// From a statement's arrival until its answer is on its way.
    pub latency: Histogram,
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            statements: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            sum_ns: AtomicU64::new(0),
            max_ns: AtomicU64::new(0),
        }
    }
}

impl Counters {
    /// Counts a statement.
    pub(super) fn count(&self, took: Duration, failed: bool) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.statements.fetch_add(1, Ordering::Relaxed);
        self.errors.fetch_add(u64::from(failed), Ordering::Relaxed);
        self.buckets[bucket_of(ns)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
        self.max_ns.fetch_max(ns, Ordering::Relaxed);
    }

    /// What has been counted.
    pub(super) fn read(&self) -> StatementStatistics {
        let read = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let buckets = std::array::from_fn(|bucket| read(&self.buckets[bucket]));
        StatementStatistics {
            statements: read(&self.statements),
            errors: read(&self.errors),
            latency: Histogram::of(buckets, read(&self.sum_ns), read(&self.max_ns)),
        }
    }
}
