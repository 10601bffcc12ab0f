//! One turn of the loop: mail, timers, tasks, then one call into the driver that submits, reaps, and sleeps when there is
//! nothing else to do.

use std::time::Duration;

use super::driver::Wait;
use super::mail::Mail;
use super::stats::add;
use super::task::TaskId;
use super::time::{Clock, Instant};
use super::{Reactor, STALL_LIMIT};

/// Most polls of tasks in a turn, so that completions and timers are never far away.
const POLLS_PER_TURN_MAX: usize = 256;

/// A turn stops polling tasks after this time, in nanoseconds.
const TURN_NS_MAX: u64 = 200_000;

/// A turn that has posted mail stops polling after this time, in nanoseconds, so that sleepers are told of it.
const ANNOUNCE_NS_MAX: u64 = 20_000;

/// Stalls are logged once in this time.
const STALL_REPORT_PERIOD: Duration = Duration::from_secs(1);

/// Polls longer than this, in nanoseconds, are looked at closely.
const LONG_POLL_NS: u64 = 500_000;

/// How long a reactor with a core of its own looks for work before it sleeps, in nanoseconds.
const SPIN_NS: u64 = 50_000;

impl Reactor {
    /// One turn, on a real driver: sleeps when nothing is ready.
    pub(crate) fn turn(&self) {
        let inner = &self.0;
        add(&inner.counters.turns, 1);
        let now = self.run_ready();
        if inner.executor.ready() > 0 || self.has_mail() || inner.stopping.get() {
            self.drive(Wait::No);
            return;
        }
        let deadline = inner.timers.borrow_mut().next_deadline();
        if deadline.is_some_and(|deadline| deadline <= now) {
            self.drive(Wait::No);
            return;
        }
        if !inner.options.overprovisioned && self.spin(now, deadline) {
            return;
        }
        let wait = deadline.map(|deadline| deadline.since(self.now()));
        if wait == Some(Duration::ZERO) || !inner.mailbox.prepare_park(|| self.has_mail()) {
            self.drive(Wait::No);
            return;
        }
        // Counted before, so that what reads the counter after a wake-up sees it.
        add(&inner.counters.parks, 1);
        self.drive(Wait::Park(wait));
        inner.mailbox.unpark();
    }

    /// Looks for work without sleeping. True when there is some.
    fn spin(&self, since: Instant, deadline: Option<Instant>) -> bool {
        loop {
            if self.drive(Wait::No) || self.has_mail() {
                return true;
            }
            let now = self.now();
            if deadline.is_some_and(|deadline| deadline <= now) {
                return true;
            }
            if now.since(since) > Duration::from_nanos(SPIN_NS) {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    /// Mail, timers, and ready tasks up to the turn's limits. Returns the time after the last poll.
    pub(crate) fn run_ready(&self) -> Instant {
        let inner = &self.0;
        self.read_mail();
        let start = self.now();
        inner.timers.borrow_mut().fire(start);
        inner.meter.calibrate(start);
        let first = inner.meter.ticks();
        let mut before = first;
        for _ in 0..POLLS_PER_TURN_MAX {
            let Some(polled) = inner.executor.poll_one() else { break };
            let after = inner.meter.ticks();
            let mut elapsed_ns = inner.meter.ns(before, after);
            if elapsed_ns > LONG_POLL_NS {
                // So long that it matters: by the clock.
                inner.meter.calibrate(self.now());
                elapsed_ns = inner.meter.ns(before, after);
                self.note_long_poll(polled.name, elapsed_ns);
            }
            inner.executor.charge(polled.class, elapsed_ns);
            inner.counters.polled(polled.class, elapsed_ns);
            before = after;
            let turn_ns = inner.meter.ns(first, after);
            if turn_ns > TURN_NS_MAX || turn_ns > ANNOUNCE_NS_MAX && inner.outbox.has_unannounced() {
                break;
            }
        }
        if before == first { start } else { self.now() }
    }

    /// Keeps the longest poll, and counts a stall and names it in the log, at most once a second.
    #[cold]
    fn note_long_poll(&self, task: &'static str, elapsed_ns: u64) {
        let counters = &self.0.counters;
        counters.poll_us_max.set(counters.poll_us_max.get().max(elapsed_ns / 1000));
        if elapsed_ns <= STALL_LIMIT.as_nanos() as u64 {
            return;
        }
        add(&counters.stalls, 1);
        let (now, stalls) = (self.now(), counters.stalls.get());
        if stalls == 1 || now.since(counters.stall_reported.get()) >= STALL_REPORT_PERIOD {
            counters.stall_reported.set(now);
            tracing::warn!(task, held_us = elapsed_ns / 1000, stalls, "a task held the core too long");
        }
    }

    /// Calls the driver and hands out what has completed. True when anything had.
    pub(crate) fn drive(&self, wait: Wait) -> bool {
        let mut completions = std::mem::take(&mut *self.0.completions.borrow_mut());
        {
            let mut driver = self.0.driver.borrow_mut();
            if self.0.outbox.has_unannounced() {
                add(&self.0.counters.wake_ups_sent, self.0.outbox.announce(|target| driver.wake_other(target)));
            }
            driver.poll(&mut completions, wait);
        }
        let any = !completions.is_empty();
        for completion in completions.drain(..) {
            add(&self.0.counters.operations_completed, 1);
            self.complete(completion);
        }
        *self.0.completions.borrow_mut() = completions;
        any
    }

    #[inline]
    fn has_mail(&self) -> bool {
        self.0.inbox.has_mail() || self.0.outbox.must_serve()
    }

    fn read_mail(&self) {
        if !self.has_mail() {
            return;
        }
        let inner = &self.0;
        let mut batch = std::mem::take(&mut *inner.mail.borrow_mut());
        inner.inbox.take(&mut batch);
        // After the taking: who nudges has made room, or has gone, before.
        inner.outbox.serve();
        for mail in batch.drain(..) {
            match mail {
                Mail::Wake { slot, generation } => {
                    inner.executor.wake(TaskId { executor: inner.executor.number(), slot, generation });
                }
                Mail::Letter(letter) => {
                    add(&inner.counters.mail_received, 1);
                    letter(self);
                }
            }
        }
        *inner.mail.borrow_mut() = batch;
    }

    /// Whether a turn now would do anything; the simulator asks.
    pub(crate) fn has_work(&self) -> bool {
        self.0.executor.ready() > 0 || self.has_mail()
    }

    /// When the next timer is due; the simulator asks.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        debug_assert!(matches!(self.0.clock, Clock::Virtual { .. }), "real drivers sleep by themselves");
        self.0.timers.borrow_mut().next_deadline()
    }
}
