//! Latencies, counted in buckets: how often which duration, to within an eighth of it.
//!
//! Owned by the shard that counts; [`Histogram::record_ns`] is one addition and no clock is read here. Bounded: [`BUCKETS`]
//! words. The buckets are linear within powers of two ("log-linear"), so that their bounds are the same for ever and two
//! histograms can be added, or an older one taken off a newer one, bucket by bucket. `docs/formats.md` has the formula.

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

    /// Mean, in microseconds; 0 when there were none.
    #[must_use]
    pub fn mean_us(&self) -> f64 {
        match self.count {
            0 => 0.0,
            count => self.sum_ns as f64 / 1000.0 / count as f64,
        }
    }

    /// An upper bound of the given quantile (0.0 to 1.0), in nanoseconds: the end of the bucket that it falls in, at most the
    /// longest that was counted. 0 when there were none.
    #[must_use]
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        let rank = (self.count as f64 * quantile.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|&count| {
            seen += count;
            seen >= rank
        });
        bucket.map_or(0, |bucket| end_of_ns(bucket).min(self.max_ns))
    }

    /// Adds what another shard counted.
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

/// The smallest duration above a bucket; for the last one, which has no end, the largest of all.
#[must_use]
pub fn end_of_ns(bucket: usize) -> u64 {
    if bucket >= BUCKETS - 1 {
        return u64::MAX;
    }
    let (next, per_power) = (bucket as u64 + 1, 1 << SUB_BITS);
    let units = match next / per_power {
        0 => next,
        power => (per_power + next % per_power) << (power - 1),
    };
    units << UNIT_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_lies_below_its_end_and_not_below_the_one_before() {
        let mut ns = 0;
        while ns < 200_000_000_000 {
            let bucket = bucket_of(ns);
            assert!(ns < end_of_ns(bucket), "{ns} ns in bucket {bucket}");
            assert!(bucket == 0 || ns >= end_of_ns(bucket - 1), "{ns} ns in bucket {bucket}");
            ns += 1 + ns / 61;
        }
        assert_eq!((bucket_of(u64::MAX), bucket_of(64_500_000_000)), (BUCKETS - 1, BUCKETS - 1));
        for bucket in 16..BUCKETS - 1 {
            let width = end_of_ns(bucket) - end_of_ns(bucket - 1);
            assert!(width * 8 <= end_of_ns(bucket - 1), "bucket {bucket} is wider than an eighth");
        }
    }

    #[test]
    fn quantiles_are_right_to_an_eighth() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.quantile_ns(0.99), histogram.mean_us()), (0, 0.0));
        (1..=1000).for_each(|us| histogram.record_ns(us * 1000));
        for (quantile, exact_us) in [(0.5, 500), (0.95, 950), (0.99, 990)] {
            let found = histogram.quantile_ns(quantile) / 1000;
            assert!((exact_us..=exact_us * 9 / 8).contains(&found), "{quantile}: {found} us");
        }
        assert_eq!((histogram.quantile_ns(1.0), histogram.max_ns(), histogram.mean_us()), (1_000_000, 1_000_000, 500.5));
        let mut sum = histogram.clone();
        sum.add(&histogram);
        assert_eq!((sum.count(), sum.sum_ns(), sum.quantile_ns(0.5)), (2000, 1_001_000_000, histogram.quantile_ns(0.5)));
    }
}
