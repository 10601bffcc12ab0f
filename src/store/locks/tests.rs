//! The locks of a node without peers.

use super::*;
use crate::ids::{NodeId, ShardId};
use LockMode::*;
use std::task::{Context, Poll, Waker};

fn txn(slot: u16) -> TxnId {
    TxnId::new(NodeId(1), ShardId(0), slot, 1)
}

fn locker(slot: u16) -> Locker {
    Locker { txn: txn(slot), session: SessionId { number: u64::from(slot), transaction: 1 } }
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
    let lock = |slot, mode| locks.lock(locker(slot), name(1), mode, WaitPolicy::Wait);
    assert_eq!(poll(&mut lock(1, ConcurrentWrite)), Poll::Ready(Ok(())));
    assert_eq!(poll(&mut lock(2, ConcurrentWrite)), Poll::Ready(Ok(())));
    let mut alter = lock(3, Exclusive);
    assert!(poll(&mut alter).is_pending());
    let mut late = lock(4, ConcurrentRead);
    assert!(poll(&mut late).is_pending(), "nobody overtakes: the alteration would starve");
    assert_eq!(
        poll(&mut locks.lock(locker(5), name(1), ConcurrentRead, WaitPolicy::NoWait)),
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
    assert_eq!(poll(&mut locks.lock(locker(1), name(1), Exclusive, WaitPolicy::Wait)), Poll::Ready(Ok(())));
    assert_eq!(poll(&mut locks.lock(locker(2), name(2), Exclusive, WaitPolicy::Wait)), Poll::Ready(Ok(())));
    let mut first = locks.lock(locker(1), name(2), ConcurrentRead, WaitPolicy::Wait);
    assert!(poll(&mut first).is_pending());
    let mut second = locks.lock(locker(2), name(1), ConcurrentRead, WaitPolicy::Wait);
    assert_eq!(poll(&mut second), Poll::Ready(Err(StoreError::DeadlockDetected)));
    locks.release_all(txn(2));
    assert_eq!(poll(&mut first), Poll::Ready(Ok(())));
}

#[test]
fn two_that_want_more_than_they_share_are_a_circle() {
    let locks = LocalLocks::new();
    for slot in [1, 2] {
        assert_eq!(poll(&mut locks.lock(locker(slot), name(1), ProtectedRead, WaitPolicy::Wait)), Poll::Ready(Ok(())));
    }
    let mut first = locks.lock(locker(1), name(1), ConcurrentWrite, WaitPolicy::Wait);
    assert!(poll(&mut first).is_pending());
    assert_eq!(
        poll(&mut locks.lock(locker(2), name(1), ConcurrentWrite, WaitPolicy::Wait)),
        Poll::Ready(Err(StoreError::DeadlockDetected))
    );
    drop(first);
    locks.release_all(txn(2));
    assert_eq!(poll(&mut locks.lock(locker(1), name(1), Exclusive, WaitPolicy::NoWait)), Poll::Ready(Ok(())));
}
