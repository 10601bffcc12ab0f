//! Latencies, counted in buckets: how often which duration, to within an eighth of it.
//!
//! Owned by the shard that counts; [`Histogram::record_ns`] is one addition and no clock is read here. Bounded: [`BUCKETS`]
//! words. The buckets are linear within powers of two ("log-linear"), so that their bounds are the same for ever and two
//! histograms can be added, or an older one taken off a newer one, bucket by bucket. `docs/formats.md` has the formula; what
//! quantiles are in it is found by who reads (crate `rustydb-shm`).

/// Durations are counted in units of 2^8 = 256 ns.
pub const UNIT_SHIFT: u32 = 8;
/// Each power of two is divided into 2^3 buckets.
pub const SUB_BITS: u32 = 3;
/// The last bucket counts everything from 64.42 s on.
pub const BUCKETS: usize = ((28 - SUB_BITS as usize) << SUB_BITS) + (1 << SUB_BITS);

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    buckets: [u64; BUCKETS],
    count: u64,
    sum_ns: u64,
    max_ns: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: [0; BUCKETS], count: 0, sum_ns: 0, max_ns: 0 }
    }
}

impl Histogram {
    /// From what others have counted in the same buckets.
    #[must_use]
    pub fn of(buckets: [u64; BUCKETS], sum_ns: u64, max_ns: u64) -> Histogram {
        Histogram { count: buckets.iter().sum(), buckets, sum_ns, max_ns }
    }

    /// Counts a duration.
    #[inline]
    pub fn record_ns(&mut self, ns: u64) {
        self.buckets[bucket_of(ns)] += 1;
        self.count += 1;
        self.sum_ns = self.sum_ns.saturating_add(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    /// How many fell into each bucket.
    #[must_use]
    pub fn buckets(&self) -> &[u64; BUCKETS] {
        &self.buckets
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Of all, together.
    #[must_use]
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// The longest; 0 when there were none.
    #[must_use]
    pub fn max_ns(&self) -> u64 {
        self.max_ns
    }

    /// Adds what another has counted.
    pub fn add(&mut self, other: &Histogram) {
        for (sum, count) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += count;
        }
        self.count += other.count;
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
    }
}

/// The bucket that a duration falls in.
#[inline]
#[must_use]
pub fn bucket_of(ns: u64) -> usize {
    let units = ns >> UNIT_SHIFT;
    if units < 1 << SUB_BITS {
        return units as usize;
    }
    let power = units.ilog2();
    let sub = (units >> (power - SUB_BITS)) as usize & ((1 << SUB_BITS) - 1);
    ((((power - SUB_BITS + 1) as usize) << SUB_BITS) + sub).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_counts_in_a_bucket_that_is_never_below_that_of_a_shorter_one() {
        let (mut histogram, mut before, mut ns) = (Histogram::default(), 0, 0);
        while ns < 200_000_000_000 {
            let bucket = bucket_of(ns);
            assert!(bucket == before || bucket == before + 1, "{ns} ns in bucket {bucket} after {before}");
            histogram.record_ns(ns);
            (before, ns) = (bucket, ns + 1 + ns / 61);
        }
        assert_eq!((before, bucket_of(u64::MAX)), (BUCKETS - 1, BUCKETS - 1));
        assert_eq!(histogram.buckets().iter().sum::<u64>(), histogram.count());
        let same = Histogram::of(*histogram.buckets(), histogram.sum_ns(), histogram.max_ns());
        assert_eq!(same, histogram);
    }
}
