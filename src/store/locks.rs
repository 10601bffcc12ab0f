//! Locks on names (tables, catalog entries, advisory keys), held to the end of a transaction.
//!
//! [`LockService`] is what the store asks; GES answers it in a cluster, [`LocalLocks`] on a node without peers. Owned by one
//! shard. Bounded by the transactions that hold or wait. Grants go in order of arrival, except that a holder who wants more
//! goes before those who have nothing yet.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use crate::cache::LocalFuture;
use crate::fusion::ges::{FreshVersion, Gate, Ges, LockError, LockOwner, Probe, Resource, ResourceClass, SessionId, Sessions};
use crate::ids::{ShardId, TxnId};
use crate::reactor::Remote;
use crate::reactor::sync::{OneshotSender, oneshot};
use crate::txn::WaitPolicy;

use super::types::{LockMode, LockName, LockSpace};
use super::{ShardEngine, StoreError};

/// Who asks for a lock: a transaction of this shard, and the session that it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Locker {
    /// Has the lock until it ends.
    pub txn: TxnId,
    /// What it has at the node's [`Gate`] is the transaction's.
    pub session: SessionId,
}

/// Who locks names for transactions.
pub trait LockService {
    /// Resolves when the locker holds `name` in a mode at least as strong. Dropping the future gives the request up, never a
    /// lock that is held.
    fn lock(&self, locker: Locker, name: LockName, mode: LockMode, wait: WaitPolicy) -> LocalFuture<Result<(), StoreError>>;

    /// The transaction has ended: all its locks are free.
    fn release_all(&self, owner: TxnId);

    /// The session, which had come in at the gate, has ended its transaction after the service had taken its lock over.
    fn session_left(&self, session: SessionId, name: LockName);

    /// The catalog's version; until it may change, on whichever node, the gate's version says the same. Waits while
    /// somebody commits a change of the catalog. Where none is known, `fresh` is it.
    fn catalog_version(&self, fresh: FreshVersion) -> LocalFuture<Result<u64, StoreError>>;

    /// Resolves when no node relies on the catalog's present version any more. None learns of any before `owner` has ended;
    /// it is `version` then.
    fn change_catalog(&self, owner: TxnId, version: FreshVersion) -> LocalFuture<Result<(), StoreError>>;

    /// Called once: the node's gate, and whose transactions are whose.
    fn attach(&self, gate: &Arc<Gate>, sessions: Weak<dyn Sessions>);

    /// Takes up a search for a deadlock that another shard of the node could not follow.
    fn probe(&self, probe: Probe);
}

/// Has the searches of a shard's lock service go on in the node's other shards.
pub fn search_in_other_shards(ges: &Ges, shard: ShardId, shards: Vec<Remote>) {
    ges.on_probe_for_other_shards(Rc::new(move |probe: Probe| {
        for (_, other) in shards.iter().enumerate().filter(|(number, _)| *number != usize::from(shard.0)) {
            let probe = probe.clone();
            // A search that gets lost is repeated for as long as its transaction waits.
            let _ = other.post(Box::new(move |reactor| {
                if let Some(engine) = reactor.local::<ShardEngine>() {
                    engine.probe(probe);
                }
            }));
        }
    }));
}

impl LockMode {
    /// Whether two transactions may hold these modes at once (the DLM's table).
    #[must_use]
    pub fn goes_with(self, other: LockMode) -> bool {
        use LockMode::*;
        matches!(
            (self.min(other), self.max(other)),
            (Null, _)
                | (ConcurrentRead, ConcurrentRead | ConcurrentWrite | ProtectedRead | ProtectedWrite)
                | (ConcurrentWrite, ConcurrentWrite)
                | (ProtectedRead, ProtectedRead)
        )
    }

    /// The weakest mode that gives the rights of both.
    #[must_use]
    pub fn with(self, other: LockMode) -> LockMode {
        use LockMode::*;
        match (self.min(other), self.max(other)) {
            (ConcurrentWrite, ProtectedRead) => ProtectedWrite,
            (_, stronger) => stronger,
        }
    }
}

/// Whoever changes the SQL catalog holds this exclusively, so that changes come one after the other. Who reads it does not.
pub const CATALOG: LockName = LockName { space: LockSpace::Object, id1: 0, id2: 0 };

/// The catalog's version, see [`LockService::catalog_version`]. Locked by the store itself: apart from the changing, which
/// may take as long as a transaction does, and which others may wait for.
pub(super) const CATALOG_VERSION: LockName = LockName { space: LockSpace::Object, id1: 0, id2: 1 };

/// A name as a resource of the lock service. Tables, catalog entries and users' keys are kept apart by its class.
pub(super) fn resource(name: LockName) -> Resource {
    let class = match name.space {
        LockSpace::Relation => ResourceClass::TABLE,
        LockSpace::Object => ResourceClass::CATALOG,
        LockSpace::Advisory => ResourceClass::USER,
    };
    Resource::new(class, name.id1, name.id2)
}

impl From<LockMode> for crate::fusion::ges::LockMode {
    fn from(mode: LockMode) -> Self {
        match mode {
            LockMode::Null => Self::Null,
            LockMode::ConcurrentRead => Self::ConcurrentRead,
            LockMode::ConcurrentWrite => Self::ConcurrentWrite,
            LockMode::ProtectedRead => Self::ProtectedRead,
            LockMode::ProtectedWrite => Self::ProtectedWrite,
            LockMode::Exclusive => Self::Exclusive,
        }
    }
}

impl From<LockError> for StoreError {
    fn from(error: LockError) -> StoreError {
        match error {
            LockError::WouldBlock | LockError::Timeout => StoreError::LockNotAvailable,
            LockError::Deadlock => StoreError::DeadlockDetected,
            LockError::TooManyLocks => StoreError::Overloaded { resource: "the lock service" },
        }
    }
}

impl LockService for Ges {
    fn lock(&self, locker: Locker, name: LockName, mode: LockMode, wait: WaitPolicy) -> LocalFuture<Result<(), StoreError>> {
        use crate::fusion::ges::WaitPolicy as Policy;
        let policy = if wait == WaitPolicy::Wait { Policy::Wait } else { Policy::NoWait };
        let ges = self.clone();
        Box::pin(async move {
            if name.space == LockSpace::Relation {
                ges.adopt(resource(name), locker.session, locker.txn);
            }
            ges.lock(resource(name), LockOwner::Transaction(locker.txn), mode.into(), policy).await?;
            Ok(())
        })
    }

    fn release_all(&self, owner: TxnId) {
        self.unlock_all(LockOwner::Transaction(owner));
    }

    fn session_left(&self, session: SessionId, name: LockName) {
        Ges::session_left(self, resource(name), session);
    }

    fn catalog_version(&self, fresh: FreshVersion) -> LocalFuture<Result<u64, StoreError>> {
        let ges = self.clone();
        Box::pin(async move { Ok(Ges::catalog_version(&ges, fresh).await?) })
    }

    fn change_catalog(&self, owner: TxnId, version: FreshVersion) -> LocalFuture<Result<(), StoreError>> {
        let ges = self.clone();
        Box::pin(async move { Ok(Ges::change_catalog(&ges, owner, version).await?) })
    }

    fn attach(&self, gate: &Arc<Gate>, sessions: Weak<dyn Sessions>) {
        Ges::attach(self, gate.clone(), sessions);
    }

    fn probe(&self, probe: Probe) {
        self.probe_from_shard(probe);
    }
}

struct Waiting {
    owner: TxnId,
    mode: LockMode,
    number: u64,
    granted: OneshotSender<()>,
}

#[derive(Default)]
struct Lock {
    holders: BTreeMap<TxnId, LockMode>,
    queue: VecDeque<Waiting>,
}

#[derive(Default)]
struct Inner {
    locks: BTreeMap<LockName, Lock>,
    /// What each transaction holds or waits for.
    names: BTreeMap<TxnId, BTreeSet<LockName>>,
    counter: u64,
    gate: Option<Arc<Gate>>,
    catalog_version: u64,
    /// Who changes the catalog, and its version afterwards.
    catalog_changes: Option<(TxnId, u64)>,
}

/// Name locks of a node without peers, for one shard.
#[derive(Clone, Default)]
pub struct LocalLocks(Rc<RefCell<Inner>>);

impl LocalLocks {
    /// Nothing is locked.
    #[must_use]
    pub fn new() -> LocalLocks {
        LocalLocks::default()
    }
}

impl Lock {
    fn is_free_for(&self, owner: TxnId, mode: LockMode) -> bool {
        self.holders.iter().all(|(&holder, held)| holder == owner || held.goes_with(mode))
    }

    /// Grants what can be granted now, in order.
    fn serve(&mut self) -> Vec<OneshotSender<()>> {
        let mut granted = Vec::new();
        while let Some(next) = self.queue.front() {
            if !self.is_free_for(next.owner, next.mode) {
                break;
            }
            let next = self.queue.pop_front().expect("looked at it");
            self.holders.insert(next.owner, next.mode);
            granted.push(next.granted);
        }
        granted
    }
}

impl Inner {
    fn publish_catalog(&self) {
        if let Some(gate) = &self.gate {
            gate.set_catalog_version(if self.catalog_changes.is_none() { self.catalog_version } else { 0 });
        }
    }

    /// Whether `from` waits, over whatever names, for `to`.
    fn waits_for(&self, from: TxnId, to: TxnId) -> bool {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![from]);
        while let Some(at) = todo.pop() {
            if !seen.insert(at) {
                continue;
            }
            for name in self.names.get(&at).into_iter().flatten() {
                let lock = &self.locks[name];
                let Some(place) = lock.queue.iter().position(|waiting| waiting.owner == at) else { continue };
                let ahead = lock.queue.iter().take(place).map(|waiting| waiting.owner);
                todo.extend(lock.holders.keys().copied().chain(ahead).filter(|&other| other != at));
            }
        }
        seen.contains(&to)
    }

    fn leave(&mut self, name: LockName, number: u64) -> Vec<OneshotSender<()>> {
        let Some(lock) = self.locks.get_mut(&name) else { return Vec::new() };
        lock.queue.retain(|waiting| waiting.number != number);
        lock.serve()
    }
}

fn tell(granted: Vec<OneshotSender<()>>) {
    for waiting in granted {
        // Gone away meanwhile: its transaction's end will free the lock.
        let _ = waiting.send(());
    }
}

/// Takes a request back when its future is dropped.
struct Leave(LocalLocks, LockName, u64);

impl Drop for Leave {
    fn drop(&mut self) {
        let granted = self.0.0.borrow_mut().leave(self.1, self.2);
        tell(granted);
    }
}

impl LockService for LocalLocks {
    fn lock(&self, locker: Locker, name: LockName, mode: LockMode, wait: WaitPolicy) -> LocalFuture<Result<(), StoreError>> {
        let owner = locker.txn;
        let ready = |result| -> LocalFuture<Result<(), StoreError>> { Box::pin(std::future::ready(result)) };
        let mut inner = self.0.borrow_mut();
        inner.counter += 1;
        let number = inner.counter;
        let lock = inner.locks.entry(name).or_default();
        let held = lock.holders.get(&owner).copied();
        let wanted = held.map_or(mode, |held| held.with(mode));
        if held == Some(wanted) {
            return ready(Ok(()));
        }
        if lock.is_free_for(owner, wanted) && (held.is_some() || lock.queue.is_empty()) {
            lock.holders.insert(owner, wanted);
            inner.names.entry(owner).or_default().insert(name);
            return ready(Ok(()));
        }
        if wait != WaitPolicy::Wait {
            return ready(Err(StoreError::LockNotAvailable));
        }
        let (sender, receiver) = oneshot();
        let waiting = Waiting { owner, mode: wanted, number, granted: sender };
        let place = if held.is_some() { 0 } else { lock.queue.len() };
        lock.queue.insert(place, waiting);
        let before: Vec<TxnId> = lock
            .holders
            .keys()
            .copied()
            .chain(lock.queue.iter().take(place).map(|ahead| ahead.owner))
            .filter(|&other| other != owner)
            .collect();
        inner.names.entry(owner).or_default().insert(name);
        if before.into_iter().any(|other| inner.waits_for(other, owner)) {
            let granted = inner.leave(name, number);
            drop(inner);
            tell(granted);
            return ready(Err(StoreError::DeadlockDetected));
        }
        drop(inner);
        let leave = Leave(self.clone(), name, number);
        Box::pin(async move {
            // A sender that is gone without a word means that the shard is ending.
            let granted = receiver.await;
            drop(leave);
            granted.map_err(|_| StoreError::Unavailable { reason: "the shard is ending".into() })
        })
    }

    fn release_all(&self, owner: TxnId) {
        let mut inner = self.0.borrow_mut();
        if let Some((_, version)) = inner.catalog_changes.take_if(|(changes, _)| *changes == owner) {
            inner.catalog_version = version;
            inner.publish_catalog();
        }
        let mut granted = Vec::new();
        for name in inner.names.remove(&owner).unwrap_or_default() {
            let Some(lock) = inner.locks.get_mut(&name) else { continue };
            lock.holders.remove(&owner);
            lock.queue.retain(|waiting| waiting.owner != owner);
            granted.extend(lock.serve());
            if lock.holders.is_empty() && lock.queue.is_empty() {
                inner.locks.remove(&name);
            }
        }
        drop(inner);
        tell(granted);
    }

    fn session_left(&self, session: SessionId, name: LockName) {
        unreachable!("{session} can't have come in by itself to {name:?}: nothing is opened here");
    }

    fn catalog_version(&self, fresh: FreshVersion) -> LocalFuture<Result<u64, StoreError>> {
        let mut inner = self.0.borrow_mut();
        if inner.catalog_version == 0 {
            inner.catalog_version = fresh();
        }
        inner.publish_catalog();
        // While somebody changes the catalog this is the version before.
        Box::pin(std::future::ready(Ok(inner.catalog_version)))
    }

    fn change_catalog(&self, owner: TxnId, version: FreshVersion) -> LocalFuture<Result<(), StoreError>> {
        // No session of its own: nobody comes in by himself here.
        let locker = Locker { txn: owner, session: SessionId { number: 0, transaction: 0 } };
        let lock = LockService::lock(self, locker, CATALOG_VERSION, LockMode::Exclusive, WaitPolicy::Wait);
        let locks = self.clone();
        Box::pin(async move {
            lock.await?;
            let mut inner = locks.0.borrow_mut();
            inner.catalog_changes = Some((owner, version()));
            inner.publish_catalog();
            Ok(())
        })
    }

    fn attach(&self, gate: &Arc<Gate>, _sessions: Weak<dyn Sessions>) {
        self.0.borrow_mut().gate = Some(gate.clone());
    }

    fn probe(&self, _probe: Probe) {
        // A circle is found here when it is closed.
    }
}

#[cfg(test)]
mod tests;
