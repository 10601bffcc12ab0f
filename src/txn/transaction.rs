//! A running transaction as its shard sees it: a branch of a client's transaction, in most cases the only one.
//!
//! Owned by the shard's tasks that work for one client, one after the other. Bounded: it remembers at most
//! [`STAMPS_MAX`] rows to stamp at commit; of large rows that it replaced, one entry each.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use crate::btree::Tree;
use crate::btree::overflow::OverflowRef;
use crate::ids::{BlockId, PartitionId, Scn, TxnId};
use crate::reactor::sync::Notify;

use super::error::TxnError;
use super::types::Isolation;

/// Rows whose version word a commit stamps at once; others are stamped when touched.
pub const STAMPS_MAX: usize = 64;

/// A large row's chain that is dead once its replacement is committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeadChain {
    /// Whose.
    pub partition: PartitionId,
    /// Which.
    pub chain: OverflowRef,
}

/// A row to stamp.
pub(super) struct Touched {
    pub(super) tree: Tree,
    pub(super) block: BlockId,
    pub(super) key: Vec<u8>,
}

/// Ends waits when the client says so.
#[derive(Clone, Default)]
pub struct Cancel(Option<Rc<CancelInner>>);

#[derive(Default)]
struct CancelInner {
    canceled: Cell<bool>,
    notify: Notify,
}

impl Cancel {
    /// One that can be pulled.
    #[must_use]
    pub fn new() -> Cancel {
        Cancel(Some(Rc::default()))
    }

    /// One that never is.
    #[must_use]
    pub fn never() -> Cancel {
        Cancel(None)
    }

    /// Ends the present wait, or the next one.
    pub fn cancel(&self) {
        if let Some(inner) = &self.0 {
            inner.canceled.set(true);
            inner.notify.notify_all();
        }
    }

    /// A new operation begins: what was canceled before is not meant.
    pub fn reset(&self) {
        if let Some(inner) = &self.0 {
            inner.canceled.set(false);
        }
    }

    /// Whether it was pulled.
    ///
    /// # Errors
    /// [`TxnError::Canceled`] if so.
    pub fn check(&self) -> Result<(), TxnError> {
        match &self.0 {
            Some(inner) if inner.canceled.get() => Err(TxnError::Canceled),
            _ => Ok(()),
        }
    }

    /// Awaits `future`, or the cancellation.
    ///
    /// # Errors
    /// [`TxnError::Canceled`].
    pub async fn race<F: Future>(&self, future: F) -> Result<F::Output, TxnError> {
        self.check()?;
        let Some(inner) = &self.0 else { return Ok(future.await) };
        let mut future = pin!(future);
        let mut notified = pin!(inner.notify.notified());
        std::future::poll_fn(|context| {
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(Ok(output));
            }
            notified.as_mut().poll(context).map(|()| Err(TxnError::Canceled))
        })
        .await
    }
}

/// A transaction in one shard.
pub struct Transaction {
    id: Cell<Option<TxnId>>,
    isolation: Isolation,
    /// REPEATABLE READ: the snapshot against which changes are checked.
    snapshot: Cell<Option<Scn>>,
    cancel: Cancel,
    pub(super) touched: RefCell<Vec<Touched>>,
    /// Chains that this transaction has replaced, with the number of the change.
    pub(super) replaced: RefCell<Vec<(u32, DeadChain)>>,
}

impl Transaction {
    pub(super) fn new(isolation: Isolation) -> Transaction {
        Transaction {
            id: Cell::new(None),
            isolation,
            snapshot: Cell::new(None),
            cancel: Cancel::new(),
            touched: RefCell::default(),
            replaced: RefCell::default(),
        }
    }

    /// Its id, once it has changed or waited for something.
    #[must_use]
    pub fn id(&self) -> Option<TxnId> {
        self.id.get()
    }

    pub(super) fn set_id(&self, id: TxnId) {
        assert!(self.id.replace(Some(id)).is_none(), "{id} began twice");
    }

    /// How it sees others.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// REPEATABLE READ: sets the snapshot that changes are checked against.
    pub fn set_snapshot(&self, snapshot: Scn) {
        self.snapshot.set(Some(snapshot));
    }

    /// The SCN above which another's commit to a row that this one wants to change is a serialization failure.
    pub(super) fn conflict_above(&self) -> Option<Scn> {
        match self.isolation {
            Isolation::ReadCommitted => None,
            Isolation::RepeatableRead => {
                Some(self.snapshot.get().expect("a REPEATABLE READ transaction has its snapshot before it writes"))
            }
        }
    }

    /// Ends its waits when pulled.
    #[must_use]
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }
}
