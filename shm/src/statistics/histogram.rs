//! A histogram as it was read, and what it says.

use super::schema::Kind;

/// Counts by buckets that are linear within powers of two.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Histogram {
    /// Values were counted in units of 2 to this.
    pub unit_shift: u8,
    /// Each power of two is divided into 2 to this buckets.
    pub sub_bits: u8,
    /// How many fell into each bucket.
    pub buckets: Vec<u64>,
    /// Sum of the values.
    pub sum: u64,
    /// The greatest value of the writer's life.
    pub max: u64,
}

impl Histogram {
    /// One in which nothing was counted; `None` for other kinds.
    #[must_use]
    pub fn empty(kind: Kind) -> Option<Histogram> {
        let Kind::Histogram { unit_shift, sub_bits, buckets } = kind else { return None };
        Some(Histogram { unit_shift, sub_bits, buckets: vec![0; buckets as usize], sum: 0, max: 0 })
    }

    /// How many values were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The smallest value above a bucket; for the last one the largest of all.
    #[must_use]
    pub fn end_of(&self, bucket: usize) -> u64 {
        if bucket + 1 >= self.buckets.len() {
            return u64::MAX;
        }
        let (next, per_power) = (bucket as u128 + 1, 1u128 << self.sub_bits.min(32));
        let units = match next / per_power {
            0 => next,
            power => (per_power + next % per_power).checked_shl((power - 1).min(127) as u32).unwrap_or(u128::MAX),
        };
        units.checked_shl(u32::from(self.unit_shift.min(64))).and_then(|end| u64::try_from(end).ok()).unwrap_or(u64::MAX)
    }

    /// An upper bound of the given quantile (0.0 to 1.0): the end of the bucket that it falls in, at most the greatest
    /// value; `None` when nothing was counted.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Option<u64> {
        let rank = (self.count() as f64 * quantile.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut seen = 0u64;
        let bucket = self.buckets.iter().position(|&count| {
            seen = seen.saturating_add(count);
            seen >= rank
        })?;
        Some(self.end_of(bucket).min(self.max))
    }

    /// Mean; `None` when nothing was counted.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        match self.count() {
            0 => None,
            count => Some(self.sum as f64 / count as f64),
        }
    }

    /// Adds what another has counted; one of another shape is left out.
    pub fn add(&mut self, other: &Histogram) {
        if self.buckets.is_empty() {
            self.clone_from(other);
            return;
        }
        if (self.unit_shift, self.sub_bits, self.buckets.len()) != (other.unit_shift, other.sub_bits, other.buckets.len()) {
            return;
        }
        for (sum, count) in self.buckets.iter_mut().zip(&other.buckets) {
            *sum = sum.saturating_add(*count);
        }
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
    }

    /// What was counted since `earlier`. The greatest value stays that of the whole life: a quantile above it is cut there.
    #[must_use]
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let mut later = self.clone();
        if later.buckets.len() == earlier.buckets.len() {
            for (count, before) in later.buckets.iter_mut().zip(&earlier.buckets) {
                *count = count.saturating_sub(*before);
            }
            later.sum = later.sum.saturating_sub(earlier.sum);
        }
        later
    }
}
