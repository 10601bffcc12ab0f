//! Committing: the slot's change in the log, and every peer's knowledge of the commit's SCN, side by side; answered after
//! both.
//!
//! Owned by one shard. From the drawing of the SCN to the answer the transaction is `Committing`: a reader whose snapshot
//! lies at or above it waits for the outcome. A transaction over several shards of this node commits in its home shard;
//! the other branches are durably *prepared* before that, naming the home, and follow its outcome.

use crate::ids::{Lsn, Scn, TxnId};

use super::error::TxnError;
use super::manager::{Txns, count};
use super::rollback::SLOT_REDO_MAX;
use super::row::{Row, VERSION_OFFSET, Version};
use super::slot::{Slot, SlotState};
use super::transaction::{DeadChain, Touched, Transaction};
use super::undo::write_slot;
use super::visibility::TxnState;

impl Txns {
    /// Commits. `None` for a transaction that has changed nothing: it has left no trace.
    ///
    /// # Errors
    /// [`TxnError::CommitUnknown`] when the log fails under it; before that, faults after which the transaction is as it
    /// was, to be aborted.
    pub async fn commit(&self, txn: &Transaction) -> Result<Option<Scn>, TxnError> {
        let Some(id) = txn.id() else { return Ok(None) };
        if !self.0.table.borrow().has_written(id) {
            self.forget_unwritten(id);
            return Ok(None);
        }
        let (lsn, scn) = self.write_commit(id, None).await?;
        self.finish_commit(txn, id, lsn, scn).await?;
        Ok(Some(scn))
    }

    /// Commits a home for its prepared branches: also if it has changed nothing itself, because their outcome stands in its
    /// slot.
    ///
    /// # Errors
    /// [`TxnError::CommitUnknown`], also for faults before the log: a prepared branch waits for this outcome.
    pub async fn commit_for_others(&self, txn: &Transaction) -> Result<Scn, TxnError> {
        let id = self.ensure_id(txn).await?;
        let (lsn, scn) = self.write_commit(id, None).await.map_err(|error| TxnError::CommitUnknown(error.to_string()))?;
        self.finish_commit(txn, id, lsn, scn).await?;
        Ok(scn)
    }

    /// The slot of a transaction that has written nothing is free again, without a trace on the volume.
    fn forget_unwritten(&self, id: TxnId) {
        let scn = self.0.shared.clock.next(self.wall_ms());
        let mut table = self.0.table.borrow_mut();
        table.abort(id);
        table.rolled_back(id, scn);
        drop(table);
        self.0.waits.ended(id);
    }

    /// The slot says so, in the log's memory. `scn`: drawn before, for a branch.
    async fn write_commit(&self, id: TxnId, scn: Option<Scn>) -> Result<(Lsn, Scn), TxnError> {
        let mut mtr = self.0.cache.begin_mtr_of(SLOT_REDO_MAX, 1).await?;
        let mut table = self.0.undo.table(id.slot()).await?;
        // From here to the group's end nobody else runs: who asks later is told "committing".
        let scn = scn.unwrap_or_else(|| self.0.shared.clock.next(self.wall_ms()));
        self.0.table.borrow_mut().committing(id, Some(scn));
        let undo_head = self.0.table.borrow().position(id).0;
        write_slot(&mut mtr, &mut table, id.slot(), &Slot { wrap: id.wrap(), state: SlotState::Committed(scn), undo_head });
        Ok((mtr.finish(), scn))
    }

    async fn finish_commit(&self, txn: &Transaction, id: TxnId, lsn: Lsn, scn: Scn) -> Result<(), TxnError> {
        self.0.peers.announce(scn);
        if let Err(error) = self.0.cache.log().flush_to(lsn).await {
            return Err(TxnError::CommitUnknown(error.to_string()));
        }
        self.0.peers.known(scn).await;
        self.committed(txn, id, scn);
        Ok(())
    }

    fn committed(&self, txn: &Transaction, id: TxnId, scn: Scn) {
        self.0.table.borrow_mut().committed(id, scn);
        count(&self.0.counters.commits);
        let replaced = std::mem::take(&mut *txn.replaced.borrow_mut());
        self.0.dead_chains.borrow_mut().extend(replaced.into_iter().map(|(_, dead): (u32, DeadChain)| (scn, dead)));
        for Touched { tree, block, key } in txn.touched.borrow_mut().drain(..) {
            tree.hint(block, &key, |value| {
                let ours = Row::parse(value).is_some_and(|row| row.version == Version::Written(id));
                ours.then(|| (VERSION_OFFSET, Version::Committed(scn).raw().to_le_bytes()))
            });
        }
        self.0.decided.notify_all();
        self.0.waits.ended(id);
    }

    /// A branch promises to follow its home's outcome: durable when this returns. `false`: it has changed nothing and need
    /// not; it still has its locks, and is to be ended when the outcome is known.
    ///
    /// # Errors
    /// Faults; the branch is to be aborted.
    pub async fn prepare(&self, txn: &Transaction, home: TxnId) -> Result<bool, TxnError> {
        let Some(id) = txn.id() else { return Ok(false) };
        if !self.0.table.borrow().has_written(id) {
            return Ok(false);
        }
        let mut mtr = self.0.cache.begin_mtr_of(SLOT_REDO_MAX, 1).await?;
        let mut table = self.0.undo.table(id.slot()).await?;
        // The SCN is drawn by the home after all branches have come here: above whatever any reader has seen before.
        self.0.table.borrow_mut().committing(id, None);
        let undo_head = self.0.table.borrow().position(id).0;
        write_slot(&mut mtr, &mut table, id.slot(), &Slot { wrap: id.wrap(), state: SlotState::Prepared { home }, undo_head });
        let lsn = mtr.finish();
        drop(table);
        self.0.cache.log().flush_to(lsn).await.map_err(|error| TxnError::Io(error.to_string()))?;
        Ok(true)
    }

    /// The home of a prepared branch is committed at `scn`: so is the branch. Durable when it returns.
    ///
    /// # Errors
    /// [`TxnError::CommitUnknown`] when the log fails: the restart will find the outcome in the home's slot.
    pub async fn commit_prepared(&self, txn: &Transaction, scn: Scn) -> Result<(), TxnError> {
        let id = txn.id().expect("a prepared branch has an id");
        let (lsn, _) = self.write_commit(id, Some(scn)).await?;
        // What the home's commit has made durable this only repeats: readers need not wait for it.
        self.committed(txn, id, scn);
        self.0.cache.log().flush_to(lsn).await.map_err(|error| TxnError::CommitUnknown(error.to_string()))
    }

    /// After a restart: the outcome of a transaction of this shard that a branch names as its home. A home that the log
    /// knows nothing of has not committed.
    ///
    /// # Errors
    /// Faults.
    pub async fn home_outcome(&self, home: TxnId) -> Result<TxnState, TxnError> {
        if self.0.table.borrow().state(home).is_none() {
            return Ok(TxnState::Aborted);
        }
        self.own_state(home).await
    }

    /// After a restart: settles a branch that was found prepared, by the outcome of its home. Durable when it returns: the
    /// home's id may be given out again.
    ///
    /// # Errors
    /// Faults.
    pub async fn settle_branch(&self, branch: TxnId, home: TxnState) -> Result<(), TxnError> {
        let lsn = if let TxnState::Committed(scn) = home {
            // A home whose slot was reused meanwhile committed before every snapshot; any SCN from before now will do.
            let scn = if scn == Scn::ZERO { self.0.shared.clock.next(self.wall_ms()) } else { scn };
            let (lsn, _) = self.write_commit(branch, Some(scn)).await?;
            self.0.table.borrow_mut().committed(branch, scn);
            lsn
        } else {
            let mut mtr = self.0.cache.begin_mtr_of(SLOT_REDO_MAX, 1).await?;
            let mut table = self.0.undo.table(branch.slot()).await?;
            self.0.table.borrow_mut().abort(branch);
            let undo_head = self.0.table.borrow().position(branch).0;
            write_slot(&mut mtr, &mut table, branch.slot(), &Slot { wrap: branch.wrap(), state: SlotState::Active, undo_head });
            mtr.finish()
        };
        self.0.unsettled.borrow_mut().retain(|(unsettled, _)| *unsettled != branch);
        self.0.decided.notify_all();
        self.0.cache.log().flush_to(lsn).await.map_err(|error| TxnError::Io(error.to_string()))?;
        if !matches!(home, TxnState::Committed(_)) {
            self.roll_back_in_background(branch);
        }
        Ok(())
    }
}
