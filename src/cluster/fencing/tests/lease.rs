//! Every order of a holder's and a survivor's steps over a few ticks of time: the holder never writes when the survivor
//! says that it can't. Each rule is broken once to see that this finds it.

use super::super::{Evicted, Held, Lease, Renewal};
use super::*;
use crate::reactor;

/// A rule of the lease that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cluster::fencing) enum Broken {
    /// A renewal counts from when it finished, not from before its heartbeat.
    CountsFromTheEnd,
    /// The eviction mark is not looked at.
    MarkNotRead,
    /// The holder doesn't look at the time.
    NeverRunsOut,
}

/// What a lease with this rule broken makes of a renewal.
pub(in crate::cluster::fencing) fn broken_finish(
    broken: Option<Broken>,
    renewal: Renewal,
    evicted: bool,
    now: reactor::Instant,
) -> (Renewal, bool) {
    match broken {
        Some(Broken::CountsFromTheEnd) => (Renewal { began: now }, evicted),
        Some(Broken::MarkNotRead) => (renewal, false),
        _ => (renewal, evicted),
    }
}

const LENGTH: Duration = Duration::from_secs(3);
const TICKS: u64 = 9;

fn at(tick: u64) -> reactor::Instant {
    reactor::Instant(tick * 1_000_000_000)
}

/// Where the holder's renewal stands. The mark is read after the heartbeat is durable.
#[derive(Clone, Copy)]
enum Step {
    Idle,
    Begun(u64),
    Read { began: u64, evicted: bool },
}

/// What the world did until now; replayed into fresh machines, which have no copies.
#[derive(Clone, Copy)]
enum Act {
    Begin,
    Finish { began: u64, evicted: bool },
}

struct World {
    broken: Option<Broken>,
    acts: Vec<(u64, Act)>,
    /// The tick at which the mark was durable.
    marked: Option<u64>,
    found: bool,
    judged: u64,
    /// How often the holder held its lease.
    held: u64,
}

impl World {
    fn lease(&self) -> Lease {
        let mut lease = Lease::broken(LENGTH, self.broken);
        for (tick, act) in &self.acts {
            match act {
                Act::Begin => drop(lease.begin(at(*tick))),
                Act::Finish { began, evicted } => {
                    lease.finish(Renewal { began: at(*began) }, *evicted, at(*tick));
                }
            }
        }
        lease
    }

    /// All that may happen from here on; within a tick any number of steps, in any order.
    fn explore(&mut self, tick: u64, step: Step) {
        if self.found || tick == TICKS {
            return;
        }
        self.judged += 1;
        let holds = matches!(self.lease().held(at(tick)), Held::Until(_));
        self.held += u64::from(holds);
        let margin = Duration::ZERO;
        if holds && self.marked.is_some_and(|marked| Evicted::new(at(marked), LENGTH, margin).is_over(at(tick))) {
            self.found = true;
            return;
        }
        self.explore(tick + 1, step);
        if self.marked.is_none() {
            self.marked = Some(tick);
            self.explore(tick, step);
            self.marked = None;
        }
        match step {
            Step::Idle => {
                if self.lease().begin(at(tick)).is_some() {
                    self.acts.push((tick, Act::Begin));
                    self.explore(tick, Step::Begun(tick));
                    self.acts.pop();
                }
            }
            Step::Begun(began) => self.explore(tick, Step::Read { began, evicted: self.marked.is_some() }),
            Step::Read { began, evicted } if tick > began => {
                self.acts.push((tick, Act::Finish { began, evicted }));
                self.explore(tick, Step::Idle);
                self.acts.pop();
            }
            Step::Read { .. } => {}
        }
    }
}

fn explored(broken: Option<Broken>) -> World {
    let mut world = World { broken, acts: Vec::new(), marked: None, found: false, judged: 0, held: 0 };
    world.explore(0, Step::Idle);
    world
}

#[test]
fn no_order_of_events_lets_an_evicted_holder_write_after_the_wait() {
    let world = explored(None);
    assert!(!world.found);
    assert!(world.judged > 10_000 && world.held > 1_000, "{} worlds, {} with a lease", world.judged, world.held);
}

#[test]
fn every_broken_rule_of_the_lease_is_found() {
    for broken in [Broken::CountsFromTheEnd, Broken::MarkNotRead, Broken::NeverRunsOut] {
        assert!(explored(Some(broken)).found, "{broken:?}");
    }
}

#[test]
fn a_lease_that_ran_out_stays_lost() {
    let mut lease = Lease::new(LENGTH);
    assert_eq!(lease.held(at(0)), Held::NotYet);
    let (first, second) = (lease.begin(at(0)).unwrap(), lease.begin(at(1)).unwrap());
    assert_eq!(lease.finish(second, false, at(2)), Held::Until(at(4)));
    assert_eq!(lease.finish(first, false, at(2)), Held::Until(at(4)), "an older heartbeat shortens nothing");
    let late = lease.begin(at(3)).unwrap();
    assert_eq!(lease.held(at(4)), Held::Lost);
    assert_eq!(lease.finish(late, false, at(4)), Held::Lost);
    assert!(lease.begin(at(5)).is_none());
}

#[test]
fn survivors_wait_for_lease_and_margin_after_the_mark() {
    let mut method = LeaseMethod::new(&crate::config::FencingConfig {
        lease: 100,
        lease_margin: 200,
        watchdog: crate::config::WatchdogUse::Off,
        ..Default::default()
    });
    let ago = |ms| Victim { evicted_ago: Some(Duration::from_millis(ms)), ..victim(2, 1) };
    assert!(matches!(method.fence(&victim(2, 1)), Err(FencingError::NotFenced { .. })), "no mark, no wait that would do");
    assert!(method.verify(&ago(299)).is_err());
    assert_eq!(method.verify(&ago(300)).unwrap().strength(), Strength::Lease);
    assert_eq!(method.fence(&ago(290)).unwrap().life(), life(2, 1));
}
