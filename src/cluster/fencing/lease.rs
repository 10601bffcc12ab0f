//! Self-fencing: a node writes only while it holds a lease, and survivors wait until it can't hold one any more.
//!
//! Both sides are pure state machines; monotonic time comes from outside, each machine its own, and only lengths of time
//! are compared between machines (the margin covers the drift of clocks).
//!
//! 1. A node renews its lease by a durable heartbeat in the voting area, followed by a read of its eviction mark. The new
//!    lease counts from the moment *before* the heartbeat's write was submitted, and only if the mark was not there.
//! 2. Survivors write the mark, and when it is durable, wait for the lease and the margin.
//!
//! A renewal that didn't see the mark read it before it was durable, and so began before that; its lease is over one lease
//! after the mark at the latest. Without the mark a heartbeat under way could extend a lease behind the survivors' backs,
//! however long they watch the old one. This is the reasoning of disk-based leases as in sanlock, with Dekker's handshake.
//!
//! The margin covers what a lost lease doesn't stop by itself: writes that were submitted before and are under way, and a
//! process that sleeps past the end of its lease, which the watchdog ends ([`super::Watchdog`]).

use std::path::PathBuf;
use std::time::Duration;

use super::{Ability, FencingError, Life, Method, Proof, Strength, Victim};
use crate::config::{FencingConfig, FencingMethod, WatchdogUse};
use crate::reactor::Instant;

/// What a method may take beyond lease and margin.
const SLACK: Duration = Duration::from_secs(5);

/// The holder's side: whether this life may write.
#[derive(Debug)]
pub struct Lease {
    length: Duration,
    held: Held,
    #[cfg(test)]
    broken: Option<super::tests::lease::Broken>,
}

/// The state of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// No heartbeat is durable yet.
    NotYet,
    /// Writes may be submitted before this moment.
    Until(Instant),
    /// It ran out, or the others have evicted this life. Never held again in this life.
    Lost,
}

/// A renewal under way.
#[derive(Debug)]
#[must_use]
pub struct Renewal {
    pub(super) began: Instant,
}

impl Lease {
    /// A lease that is not held yet, for heartbeats that are worth `length` each.
    #[must_use]
    pub fn new(length: Duration) -> Lease {
        Lease {
            length,
            held: Held::NotYet,
            #[cfg(test)]
            broken: None,
        }
    }

    /// A lease with a rule broken.
    #[cfg(test)]
    pub(super) fn broken(length: Duration, broken: Option<super::tests::lease::Broken>) -> Lease {
        Lease { broken, ..Lease::new(length) }
    }

    /// Call it before the heartbeat's write is submitted; `None` when the lease is lost.
    pub fn begin(&mut self, now: Instant) -> Option<Renewal> {
        (self.held(now) != Held::Lost).then_some(Renewal { began: now })
    }

    /// The heartbeat of `renewal` is durable, and the eviction mark has been read after that: `evicted` when it was there.
    pub fn finish(&mut self, renewal: Renewal, evicted: bool, now: Instant) -> Held {
        #[cfg(test)]
        let (renewal, evicted) = super::tests::lease::broken_finish(self.broken, renewal, evicted, now);
        let until = renewal.began + self.length;
        self.held = match self.held(now) {
            _ if evicted || now >= until => Held::Lost,
            // Renewals may finish in another order than they began.
            Held::Until(before) => Held::Until(before.max(until)),
            Held::NotYet => Held::Until(until),
            Held::Lost => Held::Lost,
        };
        self.held
    }

    /// The state at `now`. To be asked before every submission of writes.
    pub fn held(&mut self, now: Instant) -> Held {
        #[cfg(test)]
        if self.broken == Some(super::tests::lease::Broken::NeverRunsOut) {
            return self.held;
        }
        if matches!(self.held, Held::Until(until) if now >= until) {
            self.held = Held::Lost;
        }
        self.held
    }
}

/// The survivors' side: an eviction mark that is durable.
#[derive(Clone, Copy, Debug)]
pub struct Evicted {
    over: Instant,
}

impl Evicted {
    /// The mark was known to be durable at `now`; the victim's lease is worth `length`.
    #[must_use]
    pub fn new(now: Instant, length: Duration, margin: Duration) -> Evicted {
        Evicted { over: now + length + margin }
    }

    /// From when on the victim can't write.
    #[must_use]
    pub fn over_at(&self) -> Instant {
        self.over
    }

    /// Whether the victim can't write any more.
    #[must_use]
    pub fn is_over(&self, now: Instant) -> bool {
        now >= self.over
    }
}

/// The method: waits out the lease of a life whose eviction mark is durable.
pub struct LeaseMethod {
    wait: Duration,
    watchdog: WatchdogUse,
    device: PathBuf,
}

impl LeaseMethod {
    /// As configured.
    #[must_use]
    pub fn new(config: &FencingConfig) -> LeaseMethod {
        let wait = config.lease() + config.lease_margin();
        LeaseMethod { wait, watchdog: config.watchdog, device: config.watchdog_device.clone() }
    }

    fn left(&self, victim: &Victim) -> Result<Duration, FencingError> {
        let no_mark = || FencingError::NotFenced {
            life: victim.life,
            reason: "its eviction mark is not durable in the voting area, so its lease may be renewed".into(),
        };
        Ok(self.wait.saturating_sub(victim.evicted_ago.ok_or_else(no_mark)?))
    }
}

impl Method for LeaseMethod {
    fn method(&self) -> FencingMethod {
        FencingMethod::Lease
    }

    fn patience(&self) -> Duration {
        self.wait + SLACK
    }

    fn probe(&mut self) -> Result<Ability, FencingError> {
        let there = self.watchdog != WatchdogUse::Off && self.device.exists();
        let device = self.device.display();
        let watchdog = match (there, self.watchdog) {
            (true, _) => format!("and the watchdog {device} resets machines whose node can't stop"),
            (false, WatchdogUse::Required) => {
                let reason = format!("there is no watchdog {device}: load its driver, or softdog");
                return Err(FencingError::Unable { method: FencingMethod::Lease, reason });
            }
            (false, _) => "and no watchdog: a process that was stopped for longer than that may write when it wakes up".into(),
        };
        let detail = format!("nodes stop by themselves, survivors wait {} ms, {watchdog}", self.wait.as_millis());
        Ok(Ability { strength: Strength::Lease, detail })
    }

    fn register(&mut self, _me: Life) -> Result<(), FencingError> {
        Ok(())
    }

    fn fence(&mut self, victim: &Victim) -> Result<Proof, FencingError> {
        std::thread::sleep(self.left(victim)?);
        let detail = format!("its eviction mark is durable since {} ms or more", self.wait.as_millis());
        Ok(Proof::new(victim.life, FencingMethod::Lease, Strength::Lease, detail))
    }

    fn verify(&mut self, victim: &Victim) -> Result<Proof, FencingError> {
        let left = self.left(victim)?;
        if left > Duration::ZERO {
            let reason = format!("its lease may last for another {} ms", left.as_millis());
            return Err(FencingError::NotFenced { life: victim.life, reason });
        }
        self.fence(victim)
    }
}
