//! Committing: the slot's change in the log, and every peer's knowledge of the commit's SCN, side by side; answered after
//! both.
//!
//! Owned by one shard. From the drawing of the SCN to the answer the transaction is `Committing`: a reader whose snapshot
//! lies at or above it waits for the outcome. Transactions over several shards of this node: [`super::several`].

use crate::ids::{Lsn, Scn, TxnId};
use crate::reactor::Instant;

use super::error::TxnError;
use super::manager::{Txns, count};
use super::rollback::SLOT_REDO_MAX;
use super::row::{Row, VERSION_OFFSET, Version};
use super::slot::SlotState;
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
        let since = self.0.reactor.now();
        let (lsn, scn) = self.write_commit(id).await?;
        self.finish_commit(txn, id, lsn, scn).await?;
        self.count_commit(since);
        Ok(Some(scn))
    }

    pub(super) fn count_commit(&self, since: Instant) {
        let took = self.0.reactor.now().since(since);
        self.0.counters.commit_latency.borrow_mut().record_ns(took.as_nanos() as u64);
    }

    /// The slot of a transaction that has written nothing is free again, without a trace on the volume.
    pub(super) fn forget_unwritten(&self, id: TxnId) {
        let scn = self.0.shared.clock.next(self.wall_ms());
        let mut table = self.0.table.borrow_mut();
        table.abort(id);
        table.rolled_back(id, scn);
        drop(table);
        self.0.waits.ended(id);
    }

    /// The slot says so, in the log's memory.
    async fn write_commit(&self, id: TxnId) -> Result<(Lsn, Scn), TxnError> {
        let mut mtr = self.0.cache.begin_mtr_of(SLOT_REDO_MAX, 1).await?;
        let mut table = self.0.undo.table(id.slot()).await?;
        // From here to the group's end nobody else runs: who asks later is told "committing".
        let scn = self.0.shared.clock.next(self.wall_ms());
        self.0.table.borrow_mut().committing(id, Some(scn));
        let undo_head = self.0.table.borrow().position(id).0;
        let slot = self.0.table.borrow().slot(id, SlotState::Committed(scn), undo_head);
        write_slot(&mut mtr, &mut table, id.slot(), &slot);
        Ok((mtr.finish(), scn))
    }

    async fn finish_commit(&self, txn: &Transaction, id: TxnId, lsn: Lsn, scn: Scn) -> Result<(), TxnError> {
        self.0.peers.announce(scn);
        if let Err(error) = self.0.cache.log().flush_to(lsn).await {
            return Err(TxnError::CommitUnknown(error.to_string()));
        }
        self.0.peers.known(scn).await;
        self.committed(txn, id, scn, false);
        Ok(())
    }

    /// It is certain, and everybody may know. `held`: the slot must not be used again yet.
    pub(super) fn committed(&self, txn: &Transaction, id: TxnId, scn: Scn, held: bool) {
        let mut table = self.0.table.borrow_mut();
        if held {
            table.committed_and_held(id, scn)
        } else {
            table.committed(id, scn)
        }
        drop(table);
        self.0.peers.publish(id, TxnState::Committed(scn));
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
}
