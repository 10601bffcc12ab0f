//! Locks on names (tables, catalog entries, advisory keys), held to the end of a transaction.
//!
//! [`LockService`] is what the store asks; GES answers it in a cluster, [`LocalLocks`] on a node without peers. Owned by one
//! shard. Bounded by the transactions that hold or wait. Grants go in order of arrival, except that a holder who wants more
//! goes before those who have nothing yet.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use crate::cache::LocalFuture;
use crate::fusion::ges::{Ges, LockError, LockOwner, Resource, ResourceClass};
use crate::ids::TxnId;
use crate::reactor::sync::{OneshotSender, oneshot};
use crate::txn::WaitPolicy;

use super::StoreError;
use super::types::{LockMode, LockName, LockSpace};

/// Who locks names for transactions.
pub trait LockService {
    /// Resolves when `owner` holds `name` in a mode at least as strong. Dropping the future gives the request up, never a
    /// lock that is held.
    fn lock(&self, owner: TxnId, name: LockName, mode: LockMode, wait: WaitPolicy) -> LocalFuture<Result<(), StoreError>>;

    /// The transaction has ended: all its locks are free.
    fn release_all(&self, owner: TxnId);
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

/// A name as a resource of the lock service. Tables, catalog entries and users' keys are kept apart by its class.
fn resource(name: LockName) -> Resource {
    let class = match name.space {
        LockSpace::Relation => ResourceClass::TABLE,
        LockSpace::Object => ResourceClass::CATALOG,
        LockSpace::Advisory => ResourceClass::USER,
    };
    Resource::new(class, name.id1, name.id2)
}

impl LockService for Ges {
    fn lock(&self, owner: TxnId, name: LockName, mode: LockMode, wait: WaitPolicy) -> LocalFuture<Result<(), StoreError>> {
        use crate::fusion::ges::{LockMode as Mode, WaitPolicy as Policy};
        let mode = match mode {
            LockMode::Null => Mode::Null,
            LockMode::ConcurrentRead => Mode::ConcurrentRead,
            LockMode::ConcurrentWrite => Mode::ConcurrentWrite,
            LockMode::ProtectedRead => Mode::ProtectedRead,
            LockMode::ProtectedWrite => Mode::ProtectedWrite,
            LockMode::Exclusive => Mode::Exclusive,
        };
        let policy = if wait == WaitPolicy::Wait { Policy::Wait } else { Policy::NoWait };
        let ges = self.clone();
        Box::pin(async move {
            match ges.lock(resource(name), LockOwner::Transaction(owner), mode, policy).await {
                Ok(_) => Ok(()),
                Err(LockError::WouldBlock | LockError::Timeout) => Err(StoreError::LockNotAvailable),
                Err(LockError::Deadlock) => Err(StoreError::DeadlockDetected),
                Err(LockError::TooManyLocks) => Err(StoreError::Overloaded { resource: "the lock service" }),
                Err(error @ LockError::NodeLost(_)) => Err(StoreError::Unavailable { reason: error.to_string() }),
            }
        })
    }

    fn release_all(&self, owner: TxnId) {
        self.unlock_all(LockOwner::Transaction(owner));
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
    fn lock(&self, owner: TxnId, name: LockName, mode: LockMode, wait: WaitPolicy) -> LocalFuture<Result<(), StoreError>> {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{NodeId, ShardId};
    use LockMode::*;
    use std::task::{Context, Poll, Waker};

    fn txn(slot: u16) -> TxnId {
        TxnId::new(NodeId(1), ShardId(0), slot, 1)
    }

    fn name(id1: u64) -> LockName {
        LockName { space: LockSpace::Relation, id1, id2: 0 }
    }

    type Wait = LocalFuture<Result<(), StoreError>>;

    fn poll(wait: &mut Wait) -> Poll<Result<(), StoreError>> {
        wait.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn writers_of_rows_share_a_table_and_an_alteration_waits_for_them() {
        let locks = LocalLocks::new();
        let lock = |slot, mode| locks.lock(txn(slot), name(1), mode, WaitPolicy::Wait);
        assert_eq!(poll(&mut lock(1, ConcurrentWrite)), Poll::Ready(Ok(())));
        assert_eq!(poll(&mut lock(2, ConcurrentWrite)), Poll::Ready(Ok(())));
        let mut alter = lock(3, Exclusive);
        assert!(poll(&mut alter).is_pending());
        let mut late = lock(4, ConcurrentRead);
        assert!(poll(&mut late).is_pending(), "nobody overtakes: the alteration would starve");
        assert_eq!(
            poll(&mut locks.lock(txn(5), name(1), ConcurrentRead, WaitPolicy::NoWait)),
            Poll::Ready(Err(StoreError::LockNotAvailable))
        );
        locks.release_all(txn(1));
        assert!(poll(&mut alter).is_pending());
        locks.release_all(txn(2));
        assert_eq!(poll(&mut alter), Poll::Ready(Ok(())));
        locks.release_all(txn(3));
        assert_eq!(poll(&mut late), Poll::Ready(Ok(())));
    }

    #[test]
    fn a_circle_over_two_tables_is_refused_to_who_closes_it() {
        let locks = LocalLocks::new();
        assert_eq!(poll(&mut locks.lock(txn(1), name(1), Exclusive, WaitPolicy::Wait)), Poll::Ready(Ok(())));
        assert_eq!(poll(&mut locks.lock(txn(2), name(2), Exclusive, WaitPolicy::Wait)), Poll::Ready(Ok(())));
        let mut first = locks.lock(txn(1), name(2), ConcurrentRead, WaitPolicy::Wait);
        assert!(poll(&mut first).is_pending());
        let mut second = locks.lock(txn(2), name(1), ConcurrentRead, WaitPolicy::Wait);
        assert_eq!(poll(&mut second), Poll::Ready(Err(StoreError::DeadlockDetected)));
        locks.release_all(txn(2));
        assert_eq!(poll(&mut first), Poll::Ready(Ok(())));
    }

    #[test]
    fn two_that_want_more_than_they_share_are_a_circle() {
        let locks = LocalLocks::new();
        for slot in [1, 2] {
            assert_eq!(poll(&mut locks.lock(txn(slot), name(1), ProtectedRead, WaitPolicy::Wait)), Poll::Ready(Ok(())));
        }
        let mut first = locks.lock(txn(1), name(1), ConcurrentWrite, WaitPolicy::Wait);
        assert!(poll(&mut first).is_pending());
        assert_eq!(
            poll(&mut locks.lock(txn(2), name(1), ConcurrentWrite, WaitPolicy::Wait)),
            Poll::Ready(Err(StoreError::DeadlockDetected))
        );
        drop(first);
        locks.release_all(txn(2));
        assert_eq!(poll(&mut locks.lock(txn(1), name(1), Exclusive, WaitPolicy::NoWait)), Poll::Ready(Ok(())));
    }
}
