//! Waiting for locks and for transactions: waits that end once, and searches for circles of them.
//!
//! The part of the lock service's agent that tasks stand in; owned by its shard. Bounded by one wait per user.

use super::super::core::{Blocker, LockKey};
use super::super::deadlock::{Next, Probe, Target, Waiter, Waits, WaitsOn, follow};
use super::super::local::{WaitId, WaitsFor};
use super::super::types::{LockMode, LockOwner, Resource, ResourceClass, SessionId};
use super::super::wire::Wire;
use super::{EndWaiter, Ges, Inner, LockError, Outcome, Wait, WaitPolicy};
use crate::ids::{NodeId, TxnId};
use crate::reactor::sync::{OneshotReceiver, oneshot};

impl Ges {
    pub(super) fn begin_wait(&self, owner: LockOwner, resource: Resource) -> (WaitId, OneshotReceiver<Outcome>) {
        let wait = WaitId(self.0.next_wait.get());
        self.0.next_wait.set(wait.0 + 1);
        let (ended, receiver) = oneshot();
        self.0.waits.borrow_mut().insert(wait, Wait { ended, owner, resource });
        if let LockOwner::Transaction(txn) = owner {
            let before = self.0.waiting_txns.borrow_mut().insert(txn, wait);
            assert!(before.is_none(), "{txn} waits for one thing at a time");
        }
        (wait, receiver)
    }

    /// Ends a wait, if it hasn't ended yet.
    pub(super) fn end(&self, wait: WaitId, outcome: Outcome) {
        let Some(ended) = self.0.waits.borrow_mut().remove(&wait) else { return };
        if let LockOwner::Transaction(txn) = ended.owner {
            self.0.waiting_txns.borrow_mut().remove(&txn);
        }
        if outcome.is_ok() && ended.resource.class != ResourceClass::TRANSACTION {
            // Noted here and not by the task that waits: it may be gone, and its transaction must find the lock at its end.
            let mut held = self.0.held.borrow_mut();
            let resources = held.entry(ended.owner).or_default();
            if !resources.contains(&ended.resource) {
                resources.push(ended.resource);
            }
        }
        // A receiver that is gone has canceled the wait itself.
        let _ = ended.ended.send(outcome);
    }

    pub(super) async fn wait(&self, wait: WaitId, mut ended: OneshotReceiver<Outcome>, policy: WaitPolicy) -> Outcome {
        let guard = CancelOnDrop { ges: self, wait };
        let start = self.0.reactor.now();
        if !self.0.waits.borrow().contains_key(&wait) {
            self.count(|stats| &mut stats.granted_at_once);
            return ended.await.expect("a wait is ended with an outcome");
        }
        let for_row = self.0.waits.borrow().get(&wait).is_some_and(|wait| wait.resource.class == ResourceClass::TRANSACTION);
        loop {
            let mut pause = self.0.deadlock_timeout;
            if let WaitPolicy::Timeout(limit) = policy {
                let left = limit.saturating_sub(self.0.reactor.now().since(start));
                if left.is_zero() {
                    drop(guard);
                    self.count(|stats| &mut stats.timeouts);
                    return Err(LockError::Timeout);
                }
                pause = pause.min(left);
            }
            match self.0.reactor.timeout(pause, &mut ended).await {
                Ok(outcome) => {
                    let outcome = outcome.expect("a wait is ended with an outcome");
                    if !for_row {
                        let waited = self.0.reactor.now().since(start);
                        self.0.wait_latency.borrow_mut().record_ns(waited.as_nanos() as u64);
                    }
                    if outcome.is_ok() {
                        self.count(|stats| &mut stats.granted_later);
                    }
                    return outcome;
                }
                Err(_) => self.search(wait),
            }
        }
    }

    /// Looks for a circle that a wait is part of. What gets lost with an epoch is repeated after the next pause.
    fn search(&self, wait: WaitId) {
        self.hear_untold();
        if self.is_silent() {
            return;
        }
        let owner = self.0.waits.borrow().get(&wait).map(|wait| wait.owner);
        if let Some(LockOwner::Transaction(txn)) = owner {
            self.follow(Probe { target: Target::Transaction(txn), path: Vec::new() }, true);
        }
    }

    pub(super) fn follow(&self, probe: Probe, tell_other_shards: bool) {
        self.count(|stats| &mut stats.probes);
        let came = probe.path.len();
        let mut nexts = Vec::new();
        follow(self.0.node, probe, &*self.0, &mut nexts);
        for next in nexts {
            match next {
                Next::Send(node, probe) => {
                    self.count(|stats| &mut stats.probes);
                    self.send(node, &Wire::Probe(probe));
                }
                Next::OtherShards(probe) => {
                    let forward = self.0.other_shards.borrow().clone();
                    // What came from another shard goes on to others only when it has got further here.
                    if let (Some(forward), true) = (forward, tell_other_shards || probe.path.len() > came) {
                        forward(probe);
                    }
                }
                Next::Victim(node, txn, wait) if node == self.0.node => self.victim(txn, wait),
                Next::Victim(node, txn, wait) => {
                    self.send(node, &Wire::Victim(txn, wait));
                }
            }
        }
    }

    pub(super) fn victim(&self, txn: TxnId, wait: WaitId) {
        // Only the wait that was found in the circle; if it has ended meanwhile, so has the circle.
        if self.0.waiting_txns.borrow().get(&txn) != Some(&wait) {
            return;
        }
        tracing::info!(%txn, "deadlock: the youngest transaction of the circle gives up");
        self.count(|stats| &mut stats.deadlocks);
        self.cancel(wait);
        self.end(wait, Err(LockError::Deadlock));
    }

    /// Takes a wait back where it was registered; whoever waits is not told.
    pub(super) fn cancel(&self, wait: WaitId) {
        let Some(resource) = self.0.waits.borrow().get(&wait).map(|wait| wait.resource) else { return };
        if resource.class != ResourceClass::TRANSACTION {
            let mut effects = Vec::new();
            self.0.local.borrow_mut().cancel(resource, wait, &mut effects);
            self.run(effects);
            return;
        }
        let holder = TxnId::from_raw(resource.id1).expect("the name of a transaction's resource is its id");
        if holder.node() == self.0.node {
            self.forget_end_waiter(holder, EndWaiter::Here(wait));
        } else if !self.is_silent() {
            // If it doesn't arrive, the home forgets all waits of this node when it enters the next epoch.
            self.send(holder.node(), &Wire::ForgetEnd(holder, wait.0));
        }
    }

    pub(super) fn forget_end_waiter(&self, holder: TxnId, waiter: EndWaiter) {
        let mut all = self.0.end_waiters.borrow_mut();
        if let Some(waiters) = all.get_mut(&holder) {
            waiters.retain(|other| *other != waiter);
            if waiters.is_empty() {
                all.remove(&holder);
            }
        }
    }
}

/// Takes a wait back when its future is dropped before it has ended.
struct CancelOnDrop<'a> {
    ges: &'a Ges,
    wait: WaitId,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if self.ges.0.waits.borrow().contains_key(&self.wait) {
            self.ges.cancel(self.wait);
            self.ges.end(self.wait, Err(LockError::Timeout));
        }
    }
}

impl Waits for Inner {
    fn wait_of(&self, txn: TxnId) -> Option<(Waiter, WaitsOn)> {
        let wait = *self.waiting_txns.borrow().get(&txn)?;
        let resource = self.waits.borrow().get(&wait)?.resource;
        let on = match TxnId::from_raw(resource.id1) {
            Some(holder) if resource.class == ResourceClass::TRANSACTION => WaitsOn::Transaction(holder),
            _ => match self.local.borrow().waits_for(resource, wait)? {
                WaitsFor::Users(users) => WaitsOn::Users(users),
                WaitsFor::Master(resource, key) => WaitsOn::Master(resource, key),
            },
        };
        Some((Waiter { txn, began: self.transactions.began(txn).0, wait }, on))
    }

    fn blockers(&self, resource: Resource, key: LockKey) -> Option<(LockMode, Vec<Blocker>)> {
        let core = self.core.borrow();
        Some((core.wanted(resource, key)?, core.blockers(resource, key)))
    }

    fn session_of(&self, txn: TxnId) -> Option<SessionId> {
        self.sessions.borrow().as_ref()?.upgrade()?.session_of(txn)
    }

    fn transaction_of(&self, session: SessionId) -> Option<TxnId> {
        self.sessions.borrow().as_ref()?.upgrade()?.transaction_of(session)
    }

    fn users_in_the_way(&self, resource: Resource, wanted: LockMode, holds: bool, ahead: bool) -> Vec<LockOwner> {
        self.local.borrow().users_in_the_way(resource, wanted, holds, ahead)
    }

    fn master(&self, resource: &Resource) -> NodeId {
        resource.master(self.members.borrow().iter().copied()).unwrap_or(self.node)
    }
}
