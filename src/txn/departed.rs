//! Transactions of nodes that are no members any more: what became of them stands in their nodes' transaction tables, which
//! are ordinary cached blocks. Anybody may read them; one survivor ends what is unfinished.
//!
//! Owned by one shard; reads what belongs to the same shard of the dead node, and asks this node's other shards for the
//! rest. Holds nothing but where tables lie, one entry a node; a settling works on [`ROLLBACKS_AT_ONCE`] transactions at a
//! time. What it promises: as long as the node is no member, every question about one of its transactions gets the same
//! answer, on every survivor, before, while and after somebody settles them. The node's redo has been replayed, or the
//! blocks that it changed are held back until it is: a read of them waits.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::btree::SpaceError;
use crate::btree::space::{PartitionHome, SpaceReply, SpaceRequest};
use crate::cache::LocalFuture;
use crate::ids::{NodeId, PartitionId, Scn, ShardId, TxnId};
use crate::reactor::Class;

use super::error::TxnError;
use super::manager::{NoPeers, TxnParts, Txns};
use super::slot::{Slot, SlotState};
use super::undo::UndoLog;
use super::visibility::TxnState;
use super::waits::LocalWaits;

/// Transactions of a dead node that a shard rolls back at a time.
pub const ROLLBACKS_AT_ONCE: usize = 8;

/// The node's other shards, asked about a dead node's transactions that went over several of its shards.
pub trait OtherShards {
    /// [`Txns::departed_outcome`] in the transaction's shard.
    fn departed_outcome(&self, txn: TxnId) -> LocalFuture<Result<Option<TxnState>, TxnError>>;
    /// [`Txns::has_departed_promise`] in this shard.
    fn has_departed_promise(&self, shard: ShardId, home: TxnId) -> LocalFuture<Result<bool, TxnError>>;
}

/// What other nodes' slots are found with.
#[derive(Default)]
pub(super) struct Departed {
    /// Where tables lie; they never move.
    homes: RefCell<BTreeMap<NodeId, PartitionHome>>,
    other_shards: RefCell<Option<Rc<dyn OtherShards>>>,
}

impl Txns {
    /// Names the node's other shards. Needed with more than one shard, before clients are let in.
    pub fn attach_other_shards(&self, other_shards: Rc<dyn OtherShards>) {
        *self.0.departed.other_shards.borrow_mut() = Some(other_shards);
    }

    fn other_shards(&self) -> Result<Rc<dyn OtherShards>, TxnError> {
        let other_shards = self.0.departed.other_shards.borrow().clone();
        other_shards.ok_or_else(|| TxnError::Unavailable("the node's other shards are not open yet".into()))
    }

    /// Where the table of this shard of another node lies; `None` if that node has never opened one.
    async fn departed_home(&self, node: NodeId) -> Result<Option<PartitionHome>, TxnError> {
        if let Some(home) = self.0.departed.homes.borrow().get(&node) {
            return Ok(Some(*home));
        }
        let partition = PartitionId::undo(node, self.0.shard);
        match self.0.service.request(SpaceRequest::FindPartition(partition)).await {
            Ok(SpaceReply::Home(home)) => {
                self.0.departed.homes.borrow_mut().insert(node, home);
                Ok(Some(home))
            }
            Ok(other) => unreachable!("a partition was looked for, {other:?} came"),
            Err(SpaceError::NoPartition(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn departed_slot(&self, txn: TxnId) -> Result<Option<Slot>, TxnError> {
        match self.departed_home(txn.node()).await? {
            Some(home) => UndoLog::read_slot(&self.0.cache, home, txn.slot()).await.map(Some),
            None => Ok(None),
        }
    }

    /// What became of a transaction of this shard, which a row names, of a node that is no member.
    pub(super) async fn departed_state(&self, txn: TxnId) -> Result<TxnState, TxnError> {
        self.departed_outcome(txn).await?.ok_or_else(|| TxnError::unknown_transaction(txn))
    }

    /// What became of a transaction of this shard of a node that is no member; never changes. `None`: its node's log knows
    /// nothing of it, so it has changed nothing here and decided nothing.
    ///
    /// # Errors
    /// Faults.
    pub async fn departed_outcome(&self, txn: TxnId) -> Result<Option<TxnState>, TxnError> {
        assert!(
            txn.node() != self.0.node && txn.shard() == self.0.shard,
            "{txn} is asked for in {} of {}",
            self.0.shard,
            self.0.node
        );
        loop {
            let Some(slot) = self.departed_slot(txn).await? else { return Ok(None) };
            if slot.wrap > txn.wrap() {
                // It had ended before the slot's next user began.
                let ended = match slot.state {
                    SlotState::Committed(scn) | SlotState::RolledBack(scn) => scn,
                    _ => Scn::MAX,
                };
                return Ok(Some(match slot.former_needed {
                    false => TxnState::Committed(Scn::ZERO),
                    true => TxnState::CommittedBy(ended.min(self.0.peers.left_at(txn.node()))),
                }));
            }
            if slot.wrap < txn.wrap() || slot.state == SlotState::Free {
                return Ok(None);
            }
            match slot.state {
                SlotState::Free | SlotState::Active | SlotState::RolledBack(_) => return Ok(Some(TxnState::Aborted)),
                SlotState::Committed(scn) => {
                    // Perhaps nobody had been told of it yet; later changes of its rows must lie above.
                    self.0.shared.clock.observe(scn);
                    return Ok(Some(TxnState::Committed(scn)));
                }
                SlotState::Prepared { home } => {
                    if home.node() != txn.node() || home.shard() == self.0.shard {
                        return Err(TxnError::Corrupt(format!("the slot of {txn} has promised to follow {home}")));
                    }
                    match self.other_shards()?.departed_outcome(home).await? {
                        // A home's slot is not used again while its promises stand: this one has been settled meanwhile.
                        Some(TxnState::CommittedBy(_)) if self.departed_slot(txn).await? != Some(slot) => {}
                        // A home that came to no decision has not committed.
                        outcome => return Ok(Some(outcome.unwrap_or(TxnState::Aborted))),
                    }
                }
                SlotState::Deciding { scn, parts } => {
                    let other_shards = self.other_shards()?;
                    let mut all = true;
                    for shard in parts.iter() {
                        all = all && other_shards.has_departed_promise(shard, txn).await?;
                    }
                    if all {
                        self.0.shared.clock.observe(scn);
                        return Ok(Some(TxnState::Committed(scn)));
                    }
                    // A promise is replaced only after its home's slot has said how it ended: if that has not changed,
                    // there was none.
                    if self.departed_slot(txn).await? == Some(slot) {
                        return Ok(Some(TxnState::Aborted));
                    }
                }
            }
        }
    }

    /// Whether a branch in this shard of a dead node has promised to follow `home`.
    ///
    /// # Errors
    /// Faults.
    pub async fn has_departed_promise(&self, home: TxnId) -> Result<bool, TxnError> {
        let Some(table) = self.departed_home(home.node()).await? else { return Ok(false) };
        let slots = UndoLog::read_table(&self.0.cache, table).await?;
        Ok(slots.iter().any(|(_, slot)| slot.state == SlotState::Prepared { home }))
    }

    /// The transactions that this shard of a dead node has left, to be settled: [`Txns::unsettled`], [`Txns::settle`] and
    /// [`Txns::roll_back_unfinished`]. `None` if that node has never opened a table here. Nothing is begun or recycled in
    /// it. Whatever somebody else (an adopter in a former view, whose work still goes on) ends meanwhile is left as it is.
    ///
    /// # Errors
    /// When the table can't be had or is damaged.
    pub async fn adopt(&self, node: NodeId) -> Result<Option<Txns>, TxnError> {
        assert!(node != self.0.node, "{node} takes up its own transactions when it opens them");
        let Some(home) = self.departed_home(node).await? else { return Ok(None) };
        let inner = &self.0;
        let (undo, slots) = UndoLog::adopt(&inner.cache, &inner.space, home, (node, inner.shard)).await?;
        let parts = TxnParts {
            node,
            shard: inner.shard,
            shared: inner.shared.clone(),
            cache: inner.cache.clone(),
            space: inner.space.clone(),
            service: inner.service.clone(),
            // Who waits for a dead node's transactions is told by the change of the view.
            waits: Rc::new(LocalWaits::new()),
            peers: Rc::new(NoPeers),
            undo_retention_ms: 0,
        };
        let (txns, unfinished) = Txns::assemble(parts, undo, slots, true);
        txns.keep_unsettled(&unfinished);
        Ok(Some(txns))
    }

    /// Rolls back what a dead node left unfinished, after all its decisions and promises have been settled; durable when it
    /// returns. How many there were.
    ///
    /// # Errors
    /// Faults; what is done is done, and the rest can be tried again, by anybody, after having adopted the node again.
    pub async fn roll_back_unfinished(&self) -> Result<usize, TxnError> {
        assert!(self.0.adopted && self.unsettled().is_empty(), "what is in doubt is settled first");
        let all = self.0.table.borrow().unfinished_ids();
        let count = all.len();
        let left = Rc::new(RefCell::new(all.into_iter()));
        let failed: Rc<RefCell<Option<TxnError>>> = Rc::default();
        let workers: Vec<_> = (0..ROLLBACKS_AT_ONCE.min(count))
            .map(|_| {
                let (txns, left, failed) = (self.clone(), left.clone(), failed.clone());
                self.0.reactor.spawn(Class::Low, "rollback", async move {
                    loop {
                        let next = left.borrow_mut().next();
                        let Some(txn) = next.filter(|_| failed.borrow().is_none()) else { return };
                        if let Err(error) = txns.finish_rollback(txn).await {
                            failed.borrow_mut().get_or_insert(error);
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().await;
        }
        if let Some(error) = failed.take() {
            return Err(error);
        }
        self.flush_to(self.0.cache.log().append_lsn()).await?;
        Ok(count)
    }
}
