//! Waiting for a row: for the end of the transaction that holds it.
//!
//! Owned by one shard. [`RowWaiter`] is what the rest of `txn` asks; the lock service answers it in a cluster,
//! [`LocalWaits`] on a node without peers.
//! A transaction waits for one other at a time, so what waits for what is a forest plus, at worst, the one circle that
//! the newest wait would close: following the arrows from the owner finds it, and that newest wait is refused. Bounded
//! by the number of transactions.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use crate::cache::LocalFuture;
use crate::ids::TxnId;
use crate::reactor::sync::{OneshotSender, oneshot};

/// Why a wait ended without the row being free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WaitError {
    /// The wait would close a circle.
    Deadlock,
}

/// How transactions wait for each other's ends.
pub trait RowWaiter {
    /// Resolves when `owner` has ended, or has given some rows up: then look at the row again. Dropping the future ends
    /// the wait. At most one wait per `waiter` at a time.
    fn wait(&self, waiter: TxnId, owner: TxnId) -> LocalFuture<Result<(), WaitError>>;

    /// A transaction of this shard has rolled back to a savepoint: its waiters look at their rows again.
    fn gave_rows_up(&self, owner: TxnId);

    /// A transaction of this shard has ended: its waiters go on.
    fn ended(&self, owner: TxnId);
}

#[derive(Default)]
struct Inner {
    /// Who waits for whom; the number tells a later wait of the same transaction from this one.
    waiting: HashMap<TxnId, Wait>,
    /// Who waits for this one, in order of arrival.
    waiters: HashMap<TxnId, Vec<TxnId>>,
    counter: u64,
}

struct Wait {
    owner: TxnId,
    number: u64,
    ended: OneshotSender<()>,
}

/// Waits between transactions of one shard of one node.
#[derive(Clone, Default)]
pub struct LocalWaits(Rc<RefCell<Inner>>);

/// Ends the wait when the future is dropped.
struct Leave {
    waits: LocalWaits,
    waiter: TxnId,
    number: u64,
}

impl LocalWaits {
    /// Nobody waits.
    #[must_use]
    pub fn new() -> LocalWaits {
        LocalWaits::default()
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.borrow().waiting.len()
    }
}

impl Inner {
    fn take(&mut self, waiter: TxnId) -> Option<Wait> {
        let wait = self.waiting.remove(&waiter)?;
        if let Some(waiters) = self.waiters.get_mut(&wait.owner) {
            waiters.retain(|&other| other != waiter);
            if waiters.is_empty() {
                self.waiters.remove(&wait.owner);
            }
        }
        Some(wait)
    }

    /// Whether `owner` waits, in however many steps, for `waiter`.
    fn closes_circle(&self, waiter: TxnId, owner: TxnId) -> bool {
        std::iter::successors(Some(owner), |at| self.waiting.get(at).map(|wait| wait.owner)).any(|at| at == waiter)
    }
}

impl RowWaiter for LocalWaits {
    fn wait(&self, waiter: TxnId, owner: TxnId) -> LocalFuture<Result<(), WaitError>> {
        assert!(waiter != owner, "{waiter} waits for itself");
        let mut inner = self.0.borrow_mut();
        if inner.closes_circle(waiter, owner) {
            return Box::pin(std::future::ready(Err(WaitError::Deadlock)));
        }
        let (sender, receiver) = oneshot();
        inner.counter += 1;
        let number = inner.counter;
        let before = inner.waiting.insert(waiter, Wait { owner, number, ended: sender });
        assert!(before.is_none(), "{waiter} waits twice");
        inner.waiters.entry(owner).or_default().push(waiter);
        drop(inner);
        let leave = Leave { waits: self.clone(), waiter, number };
        Box::pin(async move {
            // A sender that is gone without a word means that the shard is ending: looking at the row again will tell.
            let _ = receiver.await;
            drop(leave);
            Ok(())
        })
    }

    fn ended(&self, owner: TxnId) {
        self.gave_rows_up(owner);
    }

    fn gave_rows_up(&self, owner: TxnId) {
        let mut inner = self.0.borrow_mut();
        let waiters = inner.waiters.remove(&owner).unwrap_or_default();
        let woken: Vec<_> = waiters.into_iter().filter_map(|waiter| inner.waiting.remove(&waiter)).collect();
        drop(inner);
        for wait in woken {
            // Gone away meanwhile: then nobody needs to know.
            let _ = wait.ended.send(());
        }
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        let mut inner = self.waits.0.borrow_mut();
        if inner.waiting.get(&self.waiter).is_some_and(|wait| wait.number == self.number) {
            let wait = inner.take(self.waiter);
            drop(inner);
            drop(wait);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{NodeId, ShardId};
    use std::task::{Context, Poll, Waker};

    fn txn(slot: u16) -> TxnId {
        TxnId::new(NodeId(1), ShardId(0), slot, 1)
    }

    fn poll(wait: &mut LocalFuture<Result<(), WaitError>>) -> Poll<Result<(), WaitError>> {
        wait.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn everybody_goes_on_when_the_owner_ends() {
        let waits = LocalWaits::new();
        let (mut a, mut b, mut c) = (waits.wait(txn(1), txn(9)), waits.wait(txn(2), txn(9)), waits.wait(txn(3), txn(8)));
        assert!(poll(&mut a).is_pending() && poll(&mut b).is_pending());
        waits.ended(txn(9));
        assert_eq!((poll(&mut a), poll(&mut b)), (Poll::Ready(Ok(())), Poll::Ready(Ok(()))));
        assert!(poll(&mut c).is_pending());
        drop(c);
        assert_eq!(waits.waiting(), 0);
    }

    #[test]
    fn one_of_a_circle_dies_and_the_rest_go_on_waiting() {
        let waits = LocalWaits::new();
        let mut a = waits.wait(txn(1), txn(2));
        let mut b = waits.wait(txn(2), txn(3));
        let mut bystander = waits.wait(txn(5), txn(1));
        let mut c = waits.wait(txn(3), txn(1));
        assert_eq!(poll(&mut c), Poll::Ready(Err(WaitError::Deadlock)));
        assert!(poll(&mut a).is_pending() && poll(&mut b).is_pending() && poll(&mut bystander).is_pending());
        waits.ended(txn(3));
        assert_eq!(poll(&mut b), Poll::Ready(Ok(())));
    }

    #[test]
    fn a_canceled_wait_closes_no_circle() {
        let waits = LocalWaits::new();
        drop(waits.wait(txn(1), txn(2)));
        let mut b = waits.wait(txn(2), txn(1));
        assert!(poll(&mut b).is_pending());
    }
}
