//! Waiting inside a shard: for a latch ([`Waiter`], first come first served) and for a condition ([`WaitList`]).
//!
//! Owned by one shard, bounded by the number of its tasks.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::error::CacheError;

/// What a waiter wants of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// A shared latch, and at least `Mode::Shared`.
    Read,
    /// The exclusive latch, and `Mode::Exclusive`.
    Write,
    /// As `Write`, and the present content of the block is of no interest.
    Create,
    /// From the cluster: the block is to be given away.
    Protect,
    /// From the cluster: the right to read is taken back.
    Invalidate,
}

/// How a wait ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// It has what it wanted; a latch has been taken in its name.
    Granted,
    /// The frame no longer holds the block: look it up again.
    Gone,
    /// The block cannot be had.
    Failed(CacheError),
}

/// One task in line at a frame.
pub(super) struct Waiter {
    pub(super) kind: Kind,
    outcome: RefCell<Option<Outcome>>,
    waker: Cell<Option<Waker>>,
}

impl Waiter {
    pub(super) fn new(kind: Kind) -> Rc<Waiter> {
        Rc::new(Waiter { kind, outcome: RefCell::new(None), waker: Cell::new(None) })
    }

    /// Ends the wait. Called once.
    pub(super) fn settle(&self, outcome: Outcome) {
        let before = self.outcome.borrow_mut().replace(outcome);
        assert!(before.is_none(), "a waiter is settled once");
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Whether the wait has ended.
    pub(super) fn settled(&self) -> Option<Outcome> {
        self.outcome.borrow().clone()
    }

    /// Remembers whom to wake.
    pub(super) fn park(&self, waker: &Waker) {
        self.waker.set(Some(waker.clone()));
    }
}

/// Tasks that wait for something to become true.
#[derive(Default)]
pub(super) struct WaitList(RefCell<Vec<Waker>>);

impl WaitList {
    /// Waits until `condition` holds. Whoever may make it true calls [`WaitList::wake`].
    pub(super) async fn until(&self, mut condition: impl FnMut() -> bool) {
        poll_fn(|context| {
            if condition() {
                return Poll::Ready(());
            }
            let mut waiting = self.0.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// Lets every waiting task look at its condition again.
    pub(super) fn wake(&self) {
        // Taken out first: waking may run code that comes back here.
        let waiting = std::mem::take(&mut *self.0.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }
}
