//! The node's SCN clock: a hybrid logical clock (Kulkarni et al., "Logical Physical Clocks", 2014) that every shard of a
//! node shares.
//!
//! Owned by the node, shared by its shards: the one value of the engine that lives in an atomic, because an SCN must be
//! unique over the whole node. Bounded by nature (one word). It promises that [`ScnClock::next`] never gives the same SCN
//! twice, that each is above every SCN given or observed before (or *told*: written by another node's device into a word that the
//! clock looks at, [`ScnClock::watch`]), and that it follows the wall clock within a millisecond
//! as long as nobody is ahead of it. It never goes back, also when the wall clock does.
//!
//! The clock itself is not durable. A restarted node calls [`ScnClock::start_above`] with the highest SCN that it found
//! on the volume (checkpoint, redo, node slot) before it draws the first one: rule 10, an SCN is never reused.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::ids::{SHARDS_MAX, Scn};
use crate::rules::{DesignRule, kept};

/// Handle to the node's clock; clones share one value.
#[derive(Clone, Debug)]
pub struct ScnClock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    word: AtomicU64,
    /// How many of `told` there are.
    watched: AtomicUsize,
    /// Words of each shard that other nodes' devices write SCNs into.
    told: [OnceLock<&'static [AtomicU64]>; SHARDS_MAX],
}

impl Default for ScnClock {
    fn default() -> ScnClock {
        let told = std::array::from_fn(|_| OnceLock::new());
        ScnClock(Arc::new(Inner { word: AtomicU64::new(0), watched: AtomicUsize::new(0), told }))
    }
}

impl ScnClock {
    /// A clock that stands at zero. A node that finds anything durable calls [`ScnClock::start_above`] before using it.
    #[must_use]
    pub fn new() -> ScnClock {
        ScnClock::default()
    }

    /// From now on every look at the clock takes notice of what stands in these words. For one shard: at most [`SHARDS_MAX`] times.
    pub fn watch(&self, words: &'static [AtomicU64]) {
        let place = &self.0.told[self.0.watched.fetch_add(1, Ordering::AcqRel)];
        assert!(place.set(words).is_ok(), "each place is somebody's own");
    }

    /// Takes notice of what other nodes have told.
    #[inline]
    fn catch_up(&self) {
        let watched = self.0.watched.load(Ordering::Acquire);
        for word in self.0.told[..watched].iter().filter_map(OnceLock::get).copied().flatten() {
            let scn = Scn(word.load(Ordering::Acquire));
            // Beyond all time is nobody's SCN.
            if scn < Scn::MAX {
                self.observe(scn);
            }
        }
    }

    /// Starts above everything durable: no later SCN is `durable` or below it.
    pub fn start_above(&self, durable: Scn) {
        self.observe(durable);
    }

    /// Draws a new SCN: above every SCN drawn, observed or read as a snapshot before, and not before `wall_ms`
    /// (milliseconds since 1970).
    #[must_use]
    pub fn next(&self, wall_ms: u64) -> Scn {
        let wall = wall_floor(wall_ms);
        self.catch_up();
        let mut seen = self.0.word.load(Ordering::Relaxed);
        loop {
            let drawn = wall.max(seen + 1);
            assert!(drawn < Scn::MAX.0, "the SCN clock has run to its end ({}): a peer or the wall clock is wrong", Scn(drawn));
            // AcqRel: whoever sees this SCN in a snapshot also sees what the drawing shard wrote before.
            match self.0.word.compare_exchange_weak(seen, drawn, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Scn(drawn),
                Err(newer) => seen = newer,
            }
        }
    }

    /// Takes notice of an SCN from elsewhere (a message, a block): later SCNs are above it. Call it for every message
    /// received and every block that comes from another node or from disk.
    pub fn observe(&self, scn: Scn) {
        assert!(scn < Scn::MAX, "{scn} was never drawn by a clock: refuse it where it was received");
        // Most messages carry nothing new: then only read, so that the word stays shared between the cores.
        if kept(DesignRule::ScnsNeverReused) && self.0.word.load(Ordering::Acquire) < scn.0 {
            self.0.word.fetch_max(scn.0, Ordering::AcqRel);
        }
    }

    /// The present, for a snapshot: every SCN drawn before is at or below it, every SCN drawn after is above it. Moves
    /// with the wall clock even where nothing is written.
    #[must_use]
    pub fn now(&self, wall_ms: u64) -> Scn {
        let wall = wall_floor(wall_ms);
        self.catch_up();
        let seen = self.0.word.load(Ordering::Acquire);
        if seen >= wall {
            return Scn(seen);
        }
        Scn(self.0.word.fetch_max(wall, Ordering::AcqRel).max(wall))
    }

    /// The highest SCN drawn, observed, told or read so far; moves the clock to nothing but that.
    #[inline]
    #[must_use]
    pub fn latest(&self) -> Scn {
        self.catch_up();
        Scn(self.0.word.load(Ordering::Acquire))
    }
}

/// The first SCN of a millisecond; a wall clock beyond the SCN's 47 usable bits of milliseconds is a broken one.
fn wall_floor(wall_ms: u64) -> u64 {
    assert!(wall_ms < Scn::MAX.unix_ms(), "a wall clock at {wall_ms} ms since 1970 is broken: set the machine's time");
    Scn::from_unix_ms(wall_ms).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_stands_in_a_word_that_is_watched_every_look_shows() {
        let clock = ScnClock::new();
        let words: [&'static [AtomicU64]; 2] = std::array::from_fn(|_| &*Vec::leak(vec![AtomicU64::new(0), AtomicU64::new(0)]));
        words.into_iter().for_each(|words| clock.watch(words));
        words[0][1].store(500, Ordering::Release);
        assert_eq!(clock.latest(), Scn(500));
        words[1][0].store(Scn::from_unix_ms(3).0 + 7, Ordering::Release);
        assert!(clock.next(1) > Scn::from_unix_ms(3));
        words[1][1].store(Scn::from_unix_ms(9).0, Ordering::Release);
        words[0][0].store(u64::MAX, Ordering::Release);
        assert_eq!(clock.now(1), Scn::from_unix_ms(9), "what no clock ever showed is nobody's");
    }

    #[test]
    fn shards_that_draw_at_the_same_time_never_get_the_same_scn() {
        let clock = ScnClock::new();
        let mut drawn: Vec<Scn> = std::thread::scope(|scope| {
            let shards: Vec<_> = (0..4)
                .map(|shard| {
                    let clock = clock.clone();
                    scope.spawn(move || (0..5_000).map(|i| clock.next(shard * 2 + i / 1_000)).collect::<Vec<_>>())
                })
                .collect();
            shards.into_iter().flat_map(|shard| shard.join().expect("a shard panicked")).collect()
        });
        let count = drawn.len();
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn.len(), count);
    }

    proptest! {
        #[test]
        fn whatever_the_wall_clock_and_the_peers_do_time_goes_forward(steps in proptest::collection::vec((0u8..4, 0u64..1_000), 1..200)) {
            let clock = ScnClock::new();
            let mut highest = Scn::ZERO;
            for (step, ms) in steps {
                match step {
                    0 => {
                        let scn = clock.next(ms);
                        prop_assert!(scn > highest && scn >= Scn::from_unix_ms(ms));
                        highest = scn;
                    }
                    1 => clock.observe(Scn::from_unix_ms(ms)),
                    2 => clock.start_above(Scn::from_unix_ms(ms)),
                    _ => {
                        let now = clock.now(ms);
                        prop_assert!(now >= highest && now >= Scn::from_unix_ms(ms));
                        highest = now;
                    }
                }
                highest = highest.max(clock.latest());
            }
        }
    }

    #[test]
    fn a_restarted_node_draws_above_everything_durable() {
        let durable = Scn::from_unix_ms(5_000);
        let clock = ScnClock::new();
        clock.start_above(durable);
        assert!(clock.next(10) > durable, "its wall clock was set back meanwhile");
    }
}
