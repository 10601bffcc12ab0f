//! Time as the engine sees it: a monotonic instant that only a driver's clock hands out. Plain values.

use std::cell::Cell;
use std::fmt;
use std::ops::{Add, Sub};
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment on the monotonic clock of the reactor's driver, in nanoseconds from an arbitrary start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(pub u64);

impl Instant {
    /// Time since `earlier`; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Nanoseconds from the clock's start.
    #[must_use]
    pub fn as_ns(self) -> u64 {
        self.0
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, duration: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub for Instant {
    type Output = Duration;
    fn sub(self, earlier: Instant) -> Duration {
        self.since(earlier)
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}s", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

/// Where a driver's time comes from. An enum and not a trait, because every poll of a task asks for it.
#[derive(Clone)]
pub enum Clock {
    /// The machine's clocks.
    System,
    /// The simulator's: monotonic time shared by all hosts, wall time of one host.
    Virtual {
        /// Nanoseconds since the simulation began.
        now_ns: Rc<Cell<u64>>,
        /// Milliseconds since 1970 of this host at virtual time zero; a clock jump changes it.
        wall_base_ms: Rc<Cell<u64>>,
    },
}

impl Clock {
    /// The moment on the monotonic clock.
    #[inline]
    #[must_use]
    pub fn now(&self) -> Instant {
        match self {
            Clock::System => {
                let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
                // SAFETY: the pointer is to a live timespec; CLOCK_MONOTONIC exists on every Linux.
                unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
                Instant(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
            }
            Clock::Virtual { now_ns, .. } => Instant(now_ns.get()),
        }
    }

    /// Milliseconds since 1970 on the wall clock: may jump, also backwards.
    #[must_use]
    pub fn wall_ms(&self) -> u64 {
        match self {
            Clock::System => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64),
            Clock::Virtual { now_ns, wall_base_ms } => wall_base_ms.get() + now_ns.get() / 1_000_000,
        }
    }
}

/// Measures short times for less than a clock costs: by the processor's time stamp counter, where there is one, held
/// against the clock again and again. For shares and statistics, not for deadlines.
pub(crate) struct Meter {
    clock: Clock,
    origin: (Instant, u64),
    ns_per_tick: Cell<f64>,
}

impl Meter {
    pub(crate) fn new(clock: Clock) -> Meter {
        let origin = (clock.now(), ticks(&clock));
        // A guess, until a millisecond has passed.
        let ns_per_tick = if cfg!(target_arch = "x86_64") && matches!(clock, Clock::System) { 0.4 } else { 1.0 };
        Meter { clock, origin, ns_per_tick: Cell::new(ns_per_tick) }
    }

    /// The counter now.
    #[inline]
    pub(crate) fn ticks(&self) -> u64 {
        ticks(&self.clock)
    }

    /// Nanoseconds between two values of the counter.
    #[inline]
    pub(crate) fn ns(&self, from: u64, to: u64) -> u64 {
        (to.saturating_sub(from) as f64 * self.ns_per_tick.get()) as u64
    }

    /// Holds the counter against the clock.
    pub(crate) fn calibrate(&self, now: Instant) {
        let (start, start_ticks) = self.origin;
        let passed_ns = now.since(start).as_nanos() as f64;
        let passed_ticks = self.ticks().saturating_sub(start_ticks) as f64;
        if passed_ns > 1e6 && passed_ticks > 0.0 {
            self.ns_per_tick.set(passed_ns / passed_ticks);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn ticks(clock: &Clock) -> u64 {
    match clock {
        // SAFETY: every x86-64 processor has the instruction.
        Clock::System => unsafe { std::arch::x86_64::_rdtsc() },
        Clock::Virtual { now_ns, .. } => now_ns.get(),
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn ticks(clock: &Clock) -> u64 {
    clock.now().0
}
