//! Commits over several shards of a node: one round of parallel log writes, and the same rule after a crash.
//!
//! Each function works in one shard; `store` carries the words between them. The rule: the transaction is committed when
//! the *decision* in its home's slot and the *promises* in all branches' slots are durable, each in its own shard's log. A
//! decision names the shards that have a promise to keep, a promise names the home; so whoever reads the slots after a crash
//! ([`resolve`]) finds the same answer, and neither slot claims on its own what may not be so. While a promise stands on the
//! volume, the slot of its home is not used again; and a promise is taken back or settled only after its home's slot says,
//! durably, how it ended.

use std::collections::BTreeSet;

use crate::ids::{Lsn, Scn, TxnId};

use super::error::TxnError;
use super::manager::Txns;
use super::rollback::SLOT_REDO_MAX;
use super::slot::{ShardSet, SlotState};
use super::table::{Left, Unfinished};
use super::transaction::Transaction;
use super::undo::write_slot;
use super::visibility::TxnState;

/// What a branch has promised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Promise {
    /// The branch.
    pub branch: TxnId,
    /// Where the promise ends in its shard's log.
    pub end: Lsn,
}

/// How those ended that a crash left with a decision, by the promises that it left: committed at this SCN if all shards
/// named have one, else not.
#[must_use]
pub fn resolve(left: &[Unfinished]) -> Vec<(TxnId, Option<Scn>)> {
    let promises: BTreeSet<_> = left
        .iter()
        .filter_map(|unfinished| match unfinished.left {
            Left::Branch { home } => Some((home, unfinished.txn.shard())),
            _ => None,
        })
        .collect();
    let decisions = left.iter().filter_map(|unfinished| match unfinished.left {
        Left::Home { scn, parts } => Some((unfinished.txn, scn, parts)),
        _ => None,
    });
    decisions
        .map(|(home, scn, parts)| (home, parts.iter().all(|shard| promises.contains(&(home, shard))).then_some(scn)))
        .collect()
}

impl Txns {
    /// A branch promises to follow `home`: in the log's memory when this returns, for [`Txns::flush_to`] to make durable.
    /// `None`: it has changed nothing and need not; it still has its locks, and is to be ended when the outcome is known.
    ///
    /// # Errors
    /// Faults; the branch is as it was, to be aborted.
    pub async fn promise(&self, txn: &Transaction, home: TxnId) -> Result<Option<Promise>, TxnError> {
        let Some(branch) = txn.id() else { return Ok(None) };
        if !self.0.table.borrow().has_written(branch) {
            return Ok(None);
        }
        // The SCN is drawn by the home after all branches have come here: above whatever any reader has seen before.
        let end = self.write_state(branch, SlotState::Prepared { home }, |table| table.committing(branch, None)).await?;
        Ok(Some(Promise { branch, end }))
    }

    /// Waits until the shard's log is durable up to `end`.
    ///
    /// # Errors
    /// When the log has failed.
    pub async fn flush_to(&self, end: Lsn) -> Result<(), TxnError> {
        self.0.cache.log().flush_to(end).await.map_err(|error| TxnError::Io(error.to_string()))
    }

    /// Gives a branch up, and takes its promise back before that, durably: afterwards the home may go, too.
    ///
    /// # Errors
    /// Faults: then the home must stay.
    pub async fn take_promise_back(&self, txn: &Transaction) -> Result<(), TxnError> {
        let Some(branch) = txn.id() else { return Ok(()) };
        if self.0.table.borrow().has_written(branch) {
            let end = self.write_state(branch, SlotState::Active, |table| table.abort(branch)).await?;
            self.flush_to(end).await?;
        }
        if let Err(error) = self.abort(txn).await {
            tracing::warn!(transaction = %branch, %error, "a rollback was interrupted and goes on in the background");
        }
        Ok(())
    }

    /// Commits a home with its branches, whose promises are in their logs' memory: the decision is written while
    /// `promises_durable` goes on. Nobody is told of the commit before both, and all peers, are through. The slot is not
    /// used again before [`Txns::release`].
    ///
    /// # Errors
    /// [`TxnError::CommitUnknown`] when a log fails under it; before that, faults after which nothing is decided and the
    /// promises are to be taken back.
    pub async fn commit_home(
        &self,
        txn: &Transaction,
        parts: ShardSet,
        promises_durable: impl Future<Output = Result<(), TxnError>>,
    ) -> Result<Scn, TxnError> {
        let id = txn.id().expect("a home has an id before its branches name it");
        let unknown = |error: TxnError| TxnError::CommitUnknown(error.to_string());
        let since = self.0.reactor.now();
        let mut mtr = self.0.cache.begin_mtr_of(SLOT_REDO_MAX, 1).await?;
        let mut table = self.0.undo.table(id.slot()).await?;
        // From here to the group's end nobody else runs: who asks later is told "committing".
        let scn = self.0.shared.clock.next(self.wall_ms());
        self.0.table.borrow_mut().committing(id, Some(scn));
        let undo_head = self.0.table.borrow().position(id).0;
        let slot = self.0.table.borrow().slot(id, SlotState::Deciding { scn, parts }, undo_head);
        write_slot(&mut mtr, &mut table, id.slot(), &slot);
        let end = mtr.finish();
        drop(table);
        self.0.peers.announce(scn);
        self.flush_to(end).await.map_err(unknown)?;
        promises_durable.await.map_err(unknown)?;
        self.0.peers.known(scn).await;
        self.committed(txn, id, scn, true);
        self.count_commit(since);
        Ok(scn)
    }

    /// The home of a branch is committed, at `scn`, if any branch or itself has changed something: so is the branch. If it has
    /// a promise, its slot is not used again before [`Txns::release`].
    pub fn follow_home(&self, txn: &Transaction, scn: Option<Scn>) {
        let Some(id) = txn.id() else { return };
        if !self.0.table.borrow().has_written(id) {
            return self.forget_unwritten(id);
        }
        self.committed(txn, id, scn.expect("a branch with changes has a promise, and its home an SCN"), true);
    }

    /// Puts plain outcomes into the slots of decisions or promises that were kept; durable when it returns. Of those that
    /// have been released already nothing is written.
    ///
    /// # Errors
    /// Faults; it can be tried again.
    pub async fn write_outcomes(&self, outcomes: &[(TxnId, Scn)]) -> Result<(), TxnError> {
        let mut end = None;
        for &(id, scn) in outcomes {
            if self.0.table.borrow().is_held(id) {
                end = Some(self.write_state(id, SlotState::Committed(scn), |_| {}).await?);
            }
        }
        match end {
            Some(end) => self.flush_to(end).await,
            None => Ok(()),
        }
    }

    /// Nothing on the volume needs these slots any more.
    pub fn release(&self, outcomes: &[(TxnId, Scn)]) {
        let mut table = self.0.table.borrow_mut();
        outcomes.iter().for_each(|&(id, _)| table.release(id));
    }

    /// After a restart: the outcome of a transaction of this shard that a branch names as its home, once all decisions are
    /// settled. A home that the log knows nothing of has not committed.
    ///
    /// # Errors
    /// Faults.
    pub async fn home_outcome(&self, home: TxnId) -> Result<Option<Scn>, TxnError> {
        if self.0.table.borrow().state(home).is_none() {
            return Ok(None);
        }
        match self.own_state(home).await? {
            TxnState::Committed(scn) | TxnState::CommittedBy(scn) => Ok(Some(scn)),
            _ => Ok(None),
        }
    }

    /// After a restart: ends transactions that were found with a decision or a promise, by [`resolve`] or by their home.
    /// Durable when it returns: the ids of homes may be given out again. Those that did not commit are rolled back in the
    /// background, or by [`Txns::roll_back_unfinished`] if they are a dead node's.
    ///
    /// # Errors
    /// Faults.
    pub async fn settle(&self, outcomes: &[(TxnId, Option<Scn>)]) -> Result<(), TxnError> {
        let mut end = None;
        for &(id, outcome) in outcomes {
            end = Some(match outcome {
                Some(scn) => {
                    // A home whose outcome is forgotten committed before every snapshot; any SCN from before now will do.
                    let scn = if scn == Scn::ZERO { self.0.shared.clock.next(self.wall_ms()) } else { scn };
                    self.write_state(id, SlotState::Committed(scn), |table| table.committed(id, scn)).await?
                }
                None => self.write_state(id, SlotState::Active, |table| table.abort(id)).await?,
            });
            self.0.unsettled.borrow_mut().retain(|unfinished| unfinished.txn != id);
        }
        self.0.decided.notify_all();
        if let Some(end) = end {
            self.flush_to(end).await?;
        }
        if !self.0.adopted {
            outcomes.iter().filter(|(_, outcome)| outcome.is_none()).for_each(|&(id, _)| self.roll_back_in_background(id));
        }
        Ok(())
    }

    /// Writes a slot's state, and notes it in the table in the same step of the shard.
    async fn write_state(
        &self,
        id: TxnId,
        state: SlotState,
        note: impl FnOnce(&mut super::table::Table),
    ) -> Result<Lsn, TxnError> {
        let mut mtr = self.0.cache.begin_mtr_of(SLOT_REDO_MAX, 1).await?;
        let block = self.slot_to_write(id).await?;
        let mut table = self.0.table.borrow_mut();
        note(&mut table);
        let slot = table.slot(id, state, table.position(id).0);
        drop(table);
        let Some(mut block) = block else { return Ok(self.0.cache.log().append_lsn()) };
        write_slot(&mut mtr, &mut block, id.slot(), &slot);
        Ok(mtr.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{NodeId, ShardId};

    fn txn(shard: u8, slot: u16) -> TxnId {
        TxnId::new(NodeId(1), ShardId(shard), slot, 1)
    }

    #[test]
    fn a_decision_counts_with_all_of_its_promises_and_with_no_others() {
        let home = txn(0, 7);
        let decision =
            Unfinished { txn: home, left: Left::Home { scn: Scn(50), parts: [ShardId(1), ShardId(3)].into_iter().collect() } };
        let promise = |shard, slot, home| Unfinished { txn: txn(shard, slot), left: Left::Branch { home } };
        let dead = Unfinished { txn: txn(3, 9), left: Left::Dead };
        let all = [decision, promise(1, 2, home), promise(3, 2, home), dead];
        assert_eq!(resolve(&all), [(home, Some(Scn(50)))]);
        assert_eq!(resolve(&[decision, promise(1, 2, home), dead]), [(home, None)], "shard 3's log ends before its promise");
        assert_eq!(resolve(&[decision, promise(1, 2, home), promise(3, 2, txn(0, 8))]), [(home, None)], "of another home");
        assert_eq!(resolve(&[promise(1, 2, home)]), [], "a promise alone decides nothing");
    }
}
