//! What a reactor counts about itself. Owned by its shard: plain cells, copied out as a [`ReactorStats`].

use std::cell::Cell;

use super::task::{CLASSES, Class};
use super::time::Instant;

/// Counters of one reactor since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReactorStats {
    /// Turns of the loop: mail, timers, tasks, then one call into the driver.
    pub turns: u64,
    /// Turns that found nothing to do and slept in the driver.
    pub parks: u64,
    /// Polls of tasks, by class in the order of [`Class`].
    pub polls: [u64; CLASSES],
    /// Time, in nanoseconds, that tasks of each class held the core.
    pub busy_ns: [u64; CLASSES],
    /// Polls that held the core longer than the stall limit.
    pub stalls: u64,
    /// The longest poll, in microseconds; 0 while none took half a millisecond.
    pub poll_us_max: u64,
    /// Operations given to the driver.
    pub operations_submitted: u64,
    /// Operations that the driver gave back.
    pub operations_completed: u64,
    /// Closures run for other threads.
    pub mail_received: u64,
    /// Sleeping reactors woken because of mail from here.
    pub wake_ups_sent: u64,
    /// Tasks alive now.
    pub tasks: u64,
    /// Operations in flight now.
    pub operations_in_flight: u64,
    /// Timers armed now.
    pub timers: u64,
    /// Operations on the volume that went by another way than the plain one.
    pub storage_operations: u64,
}

/// The counters themselves.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) turns: Cell<u64>,
    pub(crate) parks: Cell<u64>,
    pub(crate) polls: [Cell<u64>; CLASSES],
    pub(crate) busy_ns: [Cell<u64>; CLASSES],
    pub(crate) stalls: Cell<u64>,
    pub(crate) stall_reported: Cell<Instant>,
    pub(crate) poll_us_max: Cell<u64>,
    pub(crate) operations_submitted: Cell<u64>,
    pub(crate) operations_completed: Cell<u64>,
    pub(crate) mail_received: Cell<u64>,
    pub(crate) wake_ups_sent: Cell<u64>,
}

pub(crate) fn add(counter: &Cell<u64>, count: u64) {
    counter.set(counter.get() + count);
}

impl Counters {
    pub(crate) fn polled(&self, class: Class, elapsed_ns: u64) {
        add(&self.polls[class as usize], 1);
        add(&self.busy_ns[class as usize], elapsed_ns);
    }

    pub(crate) fn snapshot(&self) -> ReactorStats {
        ReactorStats {
            turns: self.turns.get(),
            parks: self.parks.get(),
            polls: std::array::from_fn(|class| self.polls[class].get()),
            busy_ns: std::array::from_fn(|class| self.busy_ns[class].get()),
            stalls: self.stalls.get(),
            poll_us_max: self.poll_us_max.get(),
            operations_submitted: self.operations_submitted.get(),
            operations_completed: self.operations_completed.get(),
            mail_received: self.mail_received.get(),
            wake_ups_sent: self.wake_ups_sent.get(),
            ..ReactorStats::default()
        }
    }
}
