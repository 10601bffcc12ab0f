//! Random choices from a seed. Each part of a simulation has dice of its own, so that a change in one does not shift the
//! others' choices.

use std::cell::Cell;
use std::time::Duration;

use crate::reactor::split_mix;

/// A sequence of choices.
pub(super) struct Dice(Cell<u64>);

impl Dice {
    /// For one part (`salt`) of the simulation with this seed.
    pub(super) fn new(seed: u64, salt: u64) -> Dice {
        let mut state = seed ^ salt.wrapping_mul(0x9E6C_63D0_876A_46ED);
        split_mix(&mut state);
        Dice(Cell::new(state))
    }

    pub(super) fn next(&self) -> u64 {
        let mut state = self.0.get();
        let value = split_mix(&mut state);
        self.0.set(state);
        value
    }

    /// 0 to `bound` - 1.
    pub(super) fn below(&self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// Evenly from a range, both ends included.
    pub(super) fn between(&self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    /// As often as `per_cent` says.
    pub(super) fn chance(&self, per_cent: u64) -> bool {
        self.below(100) < per_cent
    }

    pub(super) fn pick<T: Copy>(&self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// From milliseconds `least` to `most`, small ones as likely as large ones: each factor of two is.
    pub(super) fn spread_ms(&self, least: u64, most: u64) -> Duration {
        let steps = (most / least.max(1)).max(1).ilog2() as u64;
        let top = least.max(1) << self.between(0, steps);
        Duration::from_micros(self.between(least * 1000, (top * 2).min(most) * 1000))
    }

    /// Around `mean`: exponentially distributed would have long tails; this has none.
    pub(super) fn around(&self, mean: Duration) -> Duration {
        Duration::from_nanos(self.below(2 * mean.as_nanos() as u64 + 1))
    }
}
