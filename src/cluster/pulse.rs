//! The heartbeat on the disk: each node shows in the voting area that its writes get through, and watches the others.
//!
//! A beat is written only after a write to the node's own redo area went through: a node with a dead or hanging disk must
//! not look alive, however well its network does. Who sees another's beat stand still for `ha.disk_timeout` suspects it;
//! but only while its own disk answers, so that nobody is shot when the disk is away for all. A node whose own disk does
//! not answer says so to its clients and goes on when it does.
//!
//! The same beats renew the node's lease, where leases are what keeps dead nodes from the volume ([`super::fencing::Lease`]), and
//! carry the marks by which a node is evicted.
//!
//! [`Pulse`] decides and does no I/O; [`Heart`] beats. In the first shard's thread; bounded by the configured nodes.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use super::fencing::{Held, Lease, Watchdog};
use crate::ids::{Incarnation, Lsn, NodeId};
use crate::reactor::sync::Notify;
use crate::reactor::{Class, Instant, Reactor};
use crate::volume::{EVICTED_MAX, Volume, VolumeError, Vote};
use crate::wal::{Log, LogError};

/// What follows from what was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// Its beat stands still.
    Suspected(NodeId),
    /// It beats again.
    Trusted(NodeId),
    /// This node's own disk does not answer.
    OwnDiskStalled,
    /// It does again.
    OwnDiskAnswers,
    /// This node has marked this life of its as evicted.
    Evicted(NodeId),
    /// Until then this node may write.
    LeaseUntil(Instant),
    /// It may not any more, ever.
    LeaseLost,
}

struct Watched {
    life: Incarnation,
    beat: u64,
    /// When the beat was seen to change last, by a node whose own disk answered all the time since.
    since: Instant,
}

/// Who beats. See the module.
pub(super) struct Pulse {
    timeout: Duration,
    watched: BTreeMap<NodeId, Watched>,
    suspected: BTreeSet<NodeId>,
    /// The last round that went through.
    answered: Instant,
    stalled: bool,
}

impl Pulse {
    pub(super) fn new(timeout: Duration, now: Instant) -> Pulse {
        Pulse { timeout, watched: BTreeMap::new(), suspected: BTreeSet::new(), answered: now, stalled: false }
    }

    /// A round of beating and reading went through: these are the votes of the members, of those that have beaten in the life in
    /// which they are members. A node that is let in beats once its view goes: what its former life left on the disk stands
    /// still, and to suspect it for that would keep the view from going.
    pub(super) fn round(&mut self, now: Instant, votes: &[Vote], out: &mut Vec<Finding>) {
        // While the own disk was away, the others' beats could not be seen: their time begins anew.
        let blind = now.since(self.answered) > self.timeout / 2;
        self.answered = now;
        if std::mem::take(&mut self.stalled) {
            out.push(Finding::OwnDiskAnswers);
        }
        self.watched.retain(|node, _| votes.iter().any(|vote| vote.node == *node));
        // Who is no member any more is not watched. What is connected may be its next life already, which is not to blame.
        self.suspected.retain(|node| {
            let watched = votes.iter().any(|vote| vote.node == *node);
            if !watched {
                out.push(Finding::Trusted(*node));
            }
            watched
        });
        for vote in votes {
            let fresh = Watched { life: vote.incarnation, beat: vote.beat, since: now };
            let watched = self.watched.entry(vote.node).or_insert(Watched { ..fresh });
            if blind || (watched.life, watched.beat) != (vote.incarnation, vote.beat) {
                *watched = fresh;
                if self.suspected.remove(&vote.node) {
                    out.push(Finding::Trusted(vote.node));
                }
            } else if now.since(watched.since) >= self.timeout && self.suspected.insert(vote.node) {
                out.push(Finding::Suspected(vote.node));
            }
        }
    }

    /// Time passes, with or without rounds.
    pub(super) fn tick(&mut self, now: Instant, out: &mut Vec<Finding>) {
        if !self.stalled && now.since(self.answered) >= self.timeout {
            self.stalled = true;
            out.push(Finding::OwnDiskStalled);
        }
    }
}

/// What the heart needs.
pub(super) struct HeartParts {
    pub(super) reactor: Reactor,
    pub(super) volume: Volume,
    pub(super) log: Log,
    pub(super) me: NodeId,
    pub(super) life: Incarnation,
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
    /// The lease that the beats renew, if one is needed.
    pub(super) lease: Option<Lease>,
    /// Fed while the lease is held.
    pub(super) watchdog: Option<Watchdog>,
    /// The other members now, with their lives.
    pub(super) members: Rc<dyn Fn() -> Vec<(NodeId, Incarnation)>>,
    pub(super) found: Rc<dyn Fn(Finding)>,
}

/// Beats and watches.
pub(super) struct Heart {
    parts: HeartParts,
    pulse: RefCell<Pulse>,
    lease: RefCell<Option<Lease>>,
    watchdog: RefCell<Option<Watchdog>>,
    evicting: RefCell<BTreeMap<NodeId, Incarnation>>,
    /// The marks that are durable.
    marked: Cell<[(NodeId, Incarnation); EVICTED_MAX]>,
    beaten: Notify,
    stopping: Cell<bool>,
    stopped: Cell<bool>,
}

impl Heart {
    /// Beats and watches until its tasks end with the reactor.
    pub(super) fn start(mut parts: HeartParts) -> Rc<Heart> {
        let heart = Rc::new(Heart {
            pulse: RefCell::new(Pulse::new(parts.timeout, parts.reactor.now())),
            lease: RefCell::new(parts.lease.take()),
            watchdog: RefCell::new(parts.watchdog.take()),
            parts,
            evicting: RefCell::default(),
            marked: Cell::new([(NodeId(0), Incarnation(0)); EVICTED_MAX]),
            beaten: Notify::new(),
            stopping: Cell::new(false),
            stopped: Cell::new(false),
        });
        let reactor = heart.parts.reactor.clone();
        reactor.spawn(Class::Critical, "disk heartbeat", heart.clone().beat());
        reactor.spawn(Class::Critical, "disk watch", heart.clone().watch());
        heart
    }

    /// Marks a life as evicted; resolves when the mark is durable. There is room for [`EVICTED_MAX`] nodes: a further one
    /// waits until one of them is a member again, because without its mark its lease can be renewed.
    pub(super) async fn evict(&self, node: NodeId, life: Incarnation) {
        self.evicting.borrow_mut().insert(node, life);
        loop {
            let beaten = self.beaten.notified();
            if self.marked.get().contains(&(node, life)) {
                return;
            }
            beaten.await;
        }
    }

    /// The node has written its last: the watchdog is not needed any more.
    pub(super) fn rest(&self) {
        if let Some(watchdog) = self.watchdog.take()
            && let Err(error) = watchdog.disarm()
        {
            tracing::error!(%error, "the watchdog may reset this machine");
        }
    }

    /// Takes the mark back: the node may begin a new life.
    pub(super) fn pardon(&self, node: NodeId) {
        self.evicting.borrow_mut().remove(&node);
    }

    fn tell(&self, findings: Vec<Finding>) {
        findings.into_iter().for_each(|finding| (self.parts.found)(finding));
    }

    async fn watch(self: Rc<Self>) {
        while !self.stopping.get() {
            self.parts.reactor.beat(self.parts.interval).await;
            let (mut findings, now) = (Vec::new(), self.parts.reactor.now());
            self.pulse.borrow_mut().tick(now, &mut findings);
            if let Some(lease) = &mut *self.lease.borrow_mut() {
                if let Some(watchdog) = &mut *self.watchdog.borrow_mut()
                    && let Err(error) = watchdog.feed(lease, now)
                {
                    tracing::error!(%error, "the watchdog will reset this machine");
                }
                if lease.held(now) == Held::Lost {
                    findings.push(Finding::LeaseLost);
                }
            }
            self.tell(findings);
        }
    }

    async fn beat(self: Rc<Self>) {
        let HeartParts { reactor, volume, log, me, .. } = &self.parts;
        let mut vote = volume.read_vote(*me).await.unwrap_or_else(|_| Vote::new(*me));
        vote.incarnation = self.parts.life;
        let mut written = log.durable_lsn();
        while !self.stopping.get() {
            let begun = reactor.now();
            match self.round(&mut vote, &mut written).await {
                Ok(findings) => {
                    self.marked.set(vote.evicted);
                    self.beaten.notify_all();
                    self.tell(findings);
                }
                // A log that can't be written ends the node by itself; a vote that can't be, looks like a stalled disk.
                Err(error) => tracing::error!(%error, "the heartbeat on the disk failed"),
            }
            let round = reactor.sleep_until(begun + self.parts.interval);
            let mut round = std::pin::pin!(round);
            while !self.stopping.get() {
                let stop = self.beaten.notified();
                let mut stop = std::pin::pin!(stop);
                let over = std::future::poll_fn(|context| {
                    let slept = round.as_mut().poll(context).is_ready();
                    let woken = stop.as_mut().poll(context).is_ready();
                    if slept || woken { std::task::Poll::Ready(slept) } else { std::task::Poll::Pending }
                });
                if over.await {
                    break;
                }
            }
        }
        self.stopped.set(true);
        self.beaten.notify_all();
    }

    /// Beats no more; resolves when no write of the heart's is under way.
    pub(super) async fn stop(&self) {
        self.stopping.set(true);
        self.beaten.notify_all();
        while !self.stopped.get() {
            let beaten = self.beaten.notified();
            beaten.await;
        }
    }

    /// One round: a real write to the redo area, the vote, the others' votes.
    async fn round(&self, vote: &mut Vote, written: &mut Lsn) -> Result<Vec<Finding>, BeatError> {
        let HeartParts { reactor, volume, log, me, life, .. } = &self.parts;
        let began = reactor.now();
        let durable = log.durable_lsn();
        if durable == *written {
            // Nothing was written since the last beat: the checkpoint's record at the head of the area, as it is.
            log.touch().await.map_err(BeatError::Log)?;
        }
        *written = durable;
        vote.beat += 1;
        vote.evicted = [(NodeId(0), Incarnation(0)); EVICTED_MAX];
        for (mark, (node, up_to)) in vote.evicted.iter_mut().zip(&*self.evicting.borrow()) {
            *mark = (*node, *up_to);
        }
        let renewal = self.lease.borrow_mut().as_mut().and_then(|lease| lease.begin(began));
        volume.write_vote(vote).await.map_err(BeatError::Vote)?;
        let (mut votes, members) = (Vec::new(), (self.parts.members)());
        for (member, _) in &members {
            votes.push(volume.read_vote(*member).await.map_err(BeatError::Vote)?);
        }
        let (mut findings, now) = (Vec::new(), reactor.now());
        let evicted = votes.iter().find(|vote| vote.evicts(*me, *life)).map(|vote| vote.node);
        findings.extend(evicted.map(Finding::Evicted));
        if let (Some(lease), Some(renewal)) = (&mut *self.lease.borrow_mut(), renewal)
            && let Held::Until(until) = lease.finish(renewal, evicted.is_some(), now)
        {
            findings.push(Finding::LeaseUntil(until));
        }
        votes.retain(|vote| members.contains(&(vote.node, vote.incarnation)));
        self.pulse.borrow_mut().round(now, &votes, &mut findings);
        Ok(findings)
    }
}

enum BeatError {
    Log(LogError),
    Vote(VolumeError),
}

impl std::fmt::Display for BeatError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BeatError::Log(error) => write!(f, "{error}"),
            BeatError::Vote(error) => write!(f, "{error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::driver::sim::{HostId, SimWorld};

    const TIMEOUT: Duration = Duration::from_millis(1_500);
    const PEER: NodeId = NodeId(2);

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    fn round(pulse: &mut Pulse, now: Instant, beat: u64) -> Vec<Finding> {
        let mut out = Vec::new();
        let mut vote = Vote::new(PEER);
        (vote.incarnation, vote.beat) = (Incarnation(3), beat);
        pulse.tick(now, &mut out);
        pulse.round(now, &[vote], &mut out);
        out
    }

    fn started() -> (Instant, Pulse) {
        let start = SimWorld::new(1).reactor(HostId(0)).now();
        (start, Pulse::new(TIMEOUT, start))
    }

    #[test]
    fn a_beat_that_stands_still_is_suspected_once_and_trusted_again() {
        let (start, mut pulse) = started();
        for step in 0..6 {
            assert_eq!(round(&mut pulse, at(start, step * 250), 5), [], "{step}");
        }
        assert_eq!(round(&mut pulse, at(start, 1_500), 5), [Finding::Suspected(PEER)]);
        assert_eq!(round(&mut pulse, at(start, 1_750), 5), []);
        assert_eq!(round(&mut pulse, at(start, 2_000), 6), [Finding::Trusted(PEER)]);
    }

    #[test]
    fn who_is_no_member_any_more_is_not_suspected_in_its_next_life() {
        let (start, mut pulse) = started();
        for step in 0..6 {
            round(&mut pulse, at(start, step * 250), 5);
        }
        assert_eq!(round(&mut pulse, at(start, 1_500), 5), [Finding::Suspected(PEER)]);
        let mut out = Vec::new();
        pulse.round(at(start, 1_750), &[], &mut out);
        assert_eq!(out, [Finding::Trusted(PEER)]);
    }

    #[test]
    fn nobody_is_suspected_by_a_node_whose_own_disk_is_away() {
        let (start, mut pulse) = started();
        assert_eq!(round(&mut pulse, at(start, 0), 5), []);
        let mut out = Vec::new();
        pulse.tick(at(start, 1_600), &mut out);
        pulse.tick(at(start, 1_900), &mut out);
        assert_eq!(out, [Finding::OwnDiskStalled]);
        // The disk is back for both: the other has not beaten in the meantime either.
        assert_eq!(round(&mut pulse, at(start, 4_000), 5), [Finding::OwnDiskAnswers]);
        assert_eq!(round(&mut pulse, at(start, 4_250), 6), []);
    }
}
