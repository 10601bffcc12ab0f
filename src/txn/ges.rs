//! Rows waited for through the lock service: a transaction's end is a resource of GES, mastered at its home, so that
//! circles through rows, tables and nodes are one search.
//!
//! Owned by one shard.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use crate::cache::LocalFuture;
use crate::fusion::ges::{Ges, LockError, LockOwner, Transactions, WaitPolicy};
use crate::ids::{Scn, TxnId};

use super::manager::{Inner, Txns};
use super::visibility::TxnState;
use super::waits::{RowWaiter, WaitError};

/// What the lock service is told of a shard's transactions. Made before them, because they are made with it.
#[derive(Clone, Default)]
pub struct TransactionsForGes(Rc<RefCell<Weak<Inner>>>);

impl TransactionsForGes {
    /// The transactions are open.
    pub fn attach(&self, txns: &Txns) {
        *self.0.borrow_mut() = Rc::downgrade(&txns.0);
    }

    fn txns(&self) -> Option<Txns> {
        self.0.borrow().upgrade().map(Txns)
    }
}

impl Transactions for TransactionsForGes {
    fn is_active(&self, txn: TxnId) -> bool {
        // Before the table is open all of an earlier life's are dead: whoever waits looks again, and asks for the state.
        let state = self.txns().and_then(|txns| txns.known_state(txn).ok().flatten());
        matches!(state, Some(TxnState::Active | TxnState::Committing(_)))
    }

    fn began(&self, txn: TxnId) -> Scn {
        self.txns().map_or(Scn::ZERO, |txns| txns.0.table.borrow().begun(txn))
    }
}

impl RowWaiter for Ges {
    fn wait(&self, waiter: TxnId, owner: TxnId) -> LocalFuture<Result<(), WaitError>> {
        let ges = self.clone();
        Box::pin(async move {
            match ges.wait_for_end(LockOwner::Transaction(waiter), owner, WaitPolicy::Wait).await {
                Ok(()) => Ok(()),
                Err(LockError::Deadlock) => Err(WaitError::Deadlock),
                Err(error) => unreachable!("a wait without a limit for a transaction's end: {error}"),
            }
        })
    }

    fn gave_rows_up(&self, owner: TxnId) {
        self.look_again(owner);
    }

    fn ended(&self, owner: TxnId) {
        self.transaction_ended(owner);
    }
}
