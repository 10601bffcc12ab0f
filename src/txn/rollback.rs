//! Putting rows back: a transaction's rollback, to a savepoint or whole; dead transactions; single rows of theirs.
//!
//! Owned by one shard. A record is undone in one group with the slot's undo head, so that a crash in the middle of a
//! rollback goes on where it was. A row is put back only while it is the record's own doing (same transaction, same
//! undo pointer): whoever comes first, the rollback or somebody who needs the row, the other finds nothing left to do.

use std::time::Duration;

use crate::btree::overflow::OverflowRef;
use crate::btree::space::Urgency;
use crate::btree::{NeedRoom, Tree};
use crate::cache::WriteGuard;
use crate::ids::TxnId;
use crate::reactor::Class;

use super::error::TxnError;
use super::manager::{Txns, count};
use super::row::{Row, UndoPtr, Version};
use super::slot::{Slot, SlotState};
use super::transaction::Transaction;
use super::undo::write_slot;
use super::visibility::TxnState;
use super::write::ROW_REDO_MAX;

/// Redo of a change of a slot alone, bytes.
pub(super) const SLOT_REDO_MAX: usize = 128;
/// How long a failed background rollback waits before it goes on.
const RETRY_MS: u64 = 1000;

/// A place in a transaction: how many changes it had made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Position(pub u32);

/// What a record says, copied.
struct Undone {
    tree: Option<Tree>,
    key: Vec<u8>,
    before: Vec<u8>,
}

impl Txns {
    /// Where the transaction is now: no cost.
    #[must_use]
    pub fn position(&self, txn: &Transaction) -> Position {
        Position(txn.id().map_or(0, |id| self.0.table.borrow().position(id).1))
    }

    /// Undoes what the transaction did after `position`.
    ///
    /// # Errors
    /// Faults. The transaction can then only be given up.
    pub async fn roll_back_to(&self, txn: &Transaction, position: Position) -> Result<(), TxnError> {
        let Some(id) = txn.id() else { return Ok(()) };
        if self.position(txn) > position {
            txn.replaced.borrow_mut().retain(|&(sequence, _)| sequence <= position.0);
            self.undo_until(id, position, SlotState::Active).await?;
            self.0.waits.gave_rows_up(id);
        }
        Ok(())
    }

    /// Gives a transaction up: from the call on its rows count as their predecessors; they have been put back when it
    /// returns. After an error that goes on in the background.
    ///
    /// # Errors
    /// Faults.
    pub async fn abort(&self, txn: &Transaction) -> Result<(), TxnError> {
        let Some(id) = txn.id() else { return Ok(()) };
        let wrote = self.0.table.borrow().has_written(id);
        self.0.table.borrow_mut().abort(id);
        self.0.peers.publish(id, TxnState::Aborted);
        self.0.decided.notify_all();
        if wrote {
            count(&self.0.counters.rollbacks);
        }
        match self.finish_rollback(id).await {
            Ok(()) => Ok(()),
            Err(error) => {
                self.roll_back_in_background(id);
                Err(error)
            }
        }
    }

    pub(super) async fn finish_rollback(&self, id: TxnId) -> Result<(), TxnError> {
        let has_undo = self.0.table.borrow().has_written(id) || !self.0.table.borrow().position(id).0.is_none();
        self.undo_until(id, Position(0), SlotState::Active).await?;
        let scn;
        if has_undo || self.0.adopted {
            let mut mtr = self.0.cache.begin_mtr_of(SLOT_REDO_MAX, 1).await?;
            let table = self.slot_to_write(id).await?;
            scn = self.0.shared.clock.next(self.wall_ms());
            if let Some(mut table) = table {
                let slot = self.0.table.borrow().slot(id, SlotState::RolledBack(scn), UndoPtr::NONE);
                write_slot(&mut mtr, &mut table, id.slot(), &slot);
                mtr.finish();
            }
        } else {
            scn = self.0.shared.clock.next(self.wall_ms());
        }
        self.0.table.borrow_mut().rolled_back(id, scn);
        self.0.waits.ended(id);
        Ok(())
    }

    /// Rolls a dead transaction back, however often that takes.
    pub(super) fn roll_back_in_background(&self, id: TxnId) {
        let weak = std::rc::Rc::downgrade(&self.0);
        let reactor = self.0.reactor.clone();
        self.0.reactor.spawn(Class::Low, "rollback", async move {
            while let Some(inner) = weak.upgrade() {
                match Txns(inner).finish_rollback(id).await {
                    Ok(()) => return,
                    Err(error) => tracing::warn!(transaction = %id, %error, "rolling back failed; trying again"),
                }
                reactor.sleep(Duration::from_millis(RETRY_MS)).await;
            }
        });
    }

    /// Holds the block of a transaction's slot. `None` for a dead node's transaction that somebody else has ended: its slot
    /// is no longer this manager's to write.
    pub(super) async fn slot_to_write(&self, id: TxnId) -> Result<Option<WriteGuard>, TxnError> {
        let guard = self.0.undo.table(id.slot()).await?;
        if self.0.adopted {
            let slot = self.0.undo.slot_in(&guard, id.slot())?;
            let ended = matches!(slot.state, SlotState::Free | SlotState::Committed(_) | SlotState::RolledBack(_));
            if ended || slot.wrap != id.wrap() {
                return Ok(None);
            }
        }
        Ok(Some(guard))
    }

    /// Undoes a transaction's newest changes until `position`.
    async fn undo_until(&self, id: TxnId, position: Position, state: SlotState) -> Result<(), TxnError> {
        loop {
            let (head, _) = self.0.table.borrow().position(id);
            if head.is_none() {
                return Ok(());
            }
            let undone = self
                .0
                .undo
                .read(head, |record| {
                    let mine = record.owner == id;
                    mine.then(|| {
                        (record.partition, record.previous, record.sequence, record.key.to_vec(), record.before.to_vec())
                    })
                })
                .await?
                .flatten();
            let Some((partition, previous, sequence, key, before)) = undone else {
                if self.slot_to_write(id).await?.is_none() {
                    return Ok(());
                }
                return Err(TxnError::Corrupt(format!("the undo of {id} is gone at {head:?}")));
            };
            if sequence <= position.0 {
                return Ok(());
            }
            let tree = match self.tree(partition).await {
                Ok(tree) => Some(tree),
                // Dropped meanwhile, and the rows with it.
                Err(TxnError::NoSuchPartition(_)) => None,
                Err(error) => return Err(error),
            };
            let slot = self.0.table.borrow().slot(id, state, previous);
            if !self.put_back(Undone { tree, key, before }, id, head, Some(slot)).await? {
                return Ok(());
            }
            self.0.table.borrow_mut().set_position(id, previous, sequence - 1);
        }
    }

    /// Puts the row of one record back, if it is still the record's doing, and notes it in the slot if one is given. False:
    /// somebody else has ended the transaction, and nothing is left to do ([`Txns::slot_to_write`]).
    async fn put_back(&self, undone: Undone, owner: TxnId, pointer: UndoPtr, slot: Option<Slot>) -> Result<bool, TxnError> {
        let Undone { tree, key, before } = undone;
        let dead = |_: &[u8], value: &[u8]| self.is_dead(value);
        let room = NeedRoom { value_len: before.len(), redo_bytes: ROW_REDO_MAX, urgency: Urgency::Reserve, dead: &dead };
        let sought = match &tree {
            Some(tree) => match tree.seek_write(&key, room).await.map_err(TxnError::from) {
                Ok(sought) => Some((tree, sought)),
                // Dropped just now.
                Err(TxnError::NoSuchPartition(_)) => None,
                Err(error) => return Err(error),
            },
            None => None,
        };
        let Some((tree, (mut leaf, mut mtr))) = sought else {
            let mut mtr = self.0.cache.begin_mtr_of(SLOT_REDO_MAX, 1).await?;
            if let Some(slot) = slot {
                let Some(mut table) = self.slot_to_write(owner).await? else { return Ok(false) };
                write_slot(&mut mtr, &mut table, owner.slot(), &slot);
                mtr.finish();
            }
            return Ok(true);
        };
        let row = leaf.value().and_then(Row::parse);
        let current = row.filter(|row| row.version == Version::Written(owner) && row.undo == pointer);
        // The chain of the version that goes, unless its predecessor has the same (a lock stamp).
        let mut chain = None;
        if let Some(row) = current
            && row.is_overflow()
            && Row::parse(&before).is_none_or(|before| before.payload != row.payload)
        {
            chain = OverflowRef::decode(row.payload);
        }
        let is_current = current.is_some();
        let mut table = match slot {
            Some(_) => match self.slot_to_write(owner).await? {
                Some(table) => Some(table),
                None => return Ok(false),
            },
            None => None,
        };
        if is_current {
            if before.is_empty() { leaf.remove(&mut mtr) } else { leaf.put(&mut mtr, &before) }
        }
        if let (Some(table), Some(slot)) = (&mut table, slot) {
            write_slot(&mut mtr, table, owner.slot(), &slot);
        }
        mtr.finish();
        drop((leaf, table));
        if let Some(chain) = chain
            && let Err(error) = tree.free_overflow(chain).await
        {
            tracing::warn!(partition = %tree.partition(), %error, "the blocks of a rolled back large row are lost until the partition is dropped");
        }
        Ok(true)
    }

    /// Puts one row of a dead or dying transaction, of whichever node, back by one version.
    pub(super) async fn roll_row_back(&self, tree: &Tree, key: &[u8], dead: TxnId) -> Result<(), TxnError> {
        let Some(bytes) = tree.get(key, |value| value.map(<[u8]>::to_vec)).await? else { return Ok(()) };
        let Some(row) = Row::parse(&bytes).filter(|row| row.version == Version::Written(dead)) else { return Ok(()) };
        let before = match self.0.undo.before(tree.partition(), key, &row).await {
            Ok(before) => before.unwrap_or_default(),
            // Put back by somebody else while we looked, and its undo reused.
            Err(TxnError::SnapshotTooOld) => return Ok(()),
            Err(error) => return Err(error),
        };
        let undone = Undone { tree: Some(tree.clone()), key: key.to_vec(), before };
        self.put_back(undone, dead, row.undo, None).await.map(drop)
    }
}
