//! Changing a row: claim its newest version, decide, leave undo, write; all in one redo group.
//!
//! Owned by one shard. The leaf is held from the look at the row to the end of the group; what has to be waited for (another
//! transaction, a chain of overflow blocks, room in the tree or the undo) is waited for with nothing held, and then the
//! row is looked at again. Promises: nothing has changed where an error is returned.

use crate::btree::overflow::OverflowRef;
use crate::btree::space::Urgency;
use crate::btree::{CELL_MAX, KEY_MAX, NeedRoom, Tree};
use crate::ids::{Scn, TxnId};

use super::error::TxnError;
use super::manager::{Txns, count};
use super::record::{Record, RecordKind};
use super::row::{FLAG_DELETED, FLAG_LOCK_ONLY, FLAG_OVERFLOW, ROW_HEADER_BYTES, Row, Version};
use super::slot::SlotState;
use super::transaction::{DeadChain, STAMPS_MAX, Touched, Transaction};
use super::types::WaitPolicy;
use super::undo::RECORD_REDO_MAX;
use super::visibility::{Claim, TxnState, claim};

/// A row that is still a dead transaction's after so many attempts to roll it back has lost its undo: that is damage, and no
/// reason to try for ever.
const ROLL_BACKS_MAX: u32 = 10_000;

/// Most redo of one row's change with its undo, bytes.
pub(super) const ROW_REDO_MAX: usize = 2 * CELL_MAX + 2 * KEY_MAX + RECORD_REDO_MAX;

/// What is to be done with a row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Nothing.
    Keep,
    /// Lock it until the transaction ends; nothing if there is none.
    Lock,
    /// This is the row from now on.
    Put(Vec<u8>),
    /// Take it away; nothing if there is none.
    Delete,
}

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Kept as it is, or there was nothing to lock or take away.
    Nothing,
    /// It is locked.
    Locked,
    /// It is changed.
    Written,
    /// Somebody else holds it, and [`WaitPolicy::SkipLocked`] said not to wait.
    Skipped,
}

/// How to go about a change.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// If somebody else holds the row.
    pub wait: WaitPolicy,
    /// REPEATABLE READ: fail if the row has changed since the snapshot. Off for a plain insert, which fails as a duplicate
    /// or has no row in its way.
    pub check_snapshot: bool,
    /// Payload bytes to expect of [`Decision::Put`]; too little costs a second look.
    pub expect_bytes: usize,
}

/// A new value that lies in a chain already, decided upon for the row as it was then.
struct Stored {
    decided_for: Option<Vec<u8>>,
    chain: OverflowRef,
}

/// Which row is to be changed, and how.
struct Wanted<'a> {
    txn: &'a Transaction,
    tree: &'a Tree,
    key: &'a [u8],
    how: How,
}

/// What earlier looks at the row have brought.
#[derive(Default)]
struct Known {
    /// The state of the row's writer, from another node.
    state: Option<(TxnId, TxnState)>,
    /// The row as it was, and its large value.
    large: Option<(Vec<u8>, Vec<u8>)>,
    /// The row as it was, found to be only locked, not changed, since the snapshot.
    only_locked: Option<Vec<u8>>,
}

/// Why a look at the row led to nothing yet.
enum Again {
    Room(usize),
    Undo,
    RollBack(TxnId),
    Wait(TxnId),
    Ask(TxnId),
    Fetch(Vec<u8>),
    Store(Option<Vec<u8>>, Vec<u8>),
    FreeStored,
    CheckLock(Vec<u8>, Scn),
}

enum Step {
    Done(Outcome),
    Again(Again),
}

impl Txns {
    /// Changes the row at `key` as `decide` says. `decide` is given its newest version (own or committed; `None`: no row),
    /// runs while the leaf is held, and may run again if the row has changed meanwhile.
    ///
    /// # Errors
    /// [`TxnError::Serialization`], [`TxnError::Deadlock`], [`TxnError::LockNotAvailable`], [`TxnError::VolumeFull`],
    /// [`TxnError::Canceled`] and faults.
    pub async fn change(
        &self,
        txn: &Transaction,
        tree: &Tree,
        key: &[u8],
        how: How,
        decide: &mut dyn FnMut(Option<&[u8]>) -> Decision,
    ) -> Result<Outcome, TxnError> {
        let mut stored = None;
        let result = self.change_row(&Wanted { txn, tree, key, how }, decide, &mut stored).await;
        if let Some(Stored { chain, .. }) = stored {
            // It was written for nothing. If it can't be freed, its blocks are lost until the partition is dropped.
            if let Err(error) = tree.free_overflow(chain).await {
                tracing::warn!(partition = %tree.partition(), %error, "the blocks of a large row that was not written are lost");
            }
        }
        result
    }

    async fn change_row(
        &self,
        wanted: &Wanted<'_>,
        decide: &mut dyn FnMut(Option<&[u8]>) -> Decision,
        stored: &mut Option<Stored>,
    ) -> Result<Outcome, TxnError> {
        let &Wanted { txn, tree, key, how } = wanted;
        let mut known = Known::default();
        let mut need = if how.expect_bytes > 0 { value_bytes(key.len(), how.expect_bytes) } else { 0 };
        let mut roll_backs = 0;
        loop {
            txn.cancel().check()?;
            let id = self.ensure_id(txn).await?;
            self.prepare_undo().await?;
            match self.look(wanted, id, need, decide, &known, stored).await? {
                Step::Done(outcome) => return Ok(outcome),
                Step::Again(again) => match again {
                    Again::Room(bytes) => need = bytes,
                    Again::Undo => {}
                    Again::RollBack(dead) => {
                        self.roll_row_back(tree, key, dead).await?;
                        roll_backs += 1;
                        if roll_backs == ROLL_BACKS_MAX {
                            return Err(TxnError::Corrupt(format!(
                                "the row of {} at key {key:02x?} is still {dead}'s after {roll_backs} attempts to roll it back",
                                tree.partition()
                            )));
                        }
                    }
                    Again::Wait(owner) => {
                        known.state = None;
                        match how.wait {
                            WaitPolicy::Wait => self.wait_for(txn, owner).await?,
                            WaitPolicy::NoWait => return Err(TxnError::LockNotAvailable),
                            WaitPolicy::SkipLocked => return Ok(Outcome::Skipped),
                        }
                    }
                    Again::Ask(other) => known.state = Some((other, self.settled_state(other, txn.cancel()).await?)),
                    Again::Fetch(seen) => {
                        let row = Row::parse(&seen).expect("it was parsed before");
                        let value = self.large_value(tree, key, row.payload).await?;
                        known.large = Some((seen, value));
                    }
                    Again::Store(decided_for, value) => {
                        let chain = tree.write_overflow(&value, Urgency::Normal).await?;
                        *stored = Some(Stored { decided_for, chain });
                    }
                    Again::FreeStored => {
                        let Stored { chain, .. } = stored.take().expect("something is stored");
                        tree.free_overflow(chain).await?;
                    }
                    Again::CheckLock(seen, snapshot) => {
                        if self.changed_after(tree, key, &seen, snapshot, txn).await? {
                            return self.serialization_failure(tree);
                        }
                        known.only_locked = Some(seen);
                    }
                },
            }
        }
    }

    fn serialization_failure<T>(&self, tree: &Tree) -> Result<T, TxnError> {
        count(&self.0.counters.serialization_failures);
        Err(TxnError::Serialization(tree.partition()))
    }

    /// One look at the row with its leaf held.
    async fn look(
        &self,
        wanted: &Wanted<'_>,
        id: TxnId,
        need: usize,
        decide: &mut dyn FnMut(Option<&[u8]>) -> Decision,
        known: &Known,
        stored: &mut Option<Stored>,
    ) -> Result<Step, TxnError> {
        let &Wanted { txn, tree, key, how } = wanted;
        let again = |again| Ok(Step::Again(again));
        let dead = |_: &[u8], value: &[u8]| self.is_dead(value);
        let room = NeedRoom { value_len: need, redo_bytes: ROW_REDO_MAX, urgency: Urgency::Normal, dead: &dead };
        let (mut leaf, mut mtr) = tree.seek_write(key, room).await?;
        let corrupt = || TxnError::Corrupt(format!("the row of {} at key {key:02x?} has no version", tree.partition()));
        let row = leaf.value().map(|value| Row::parse(value).ok_or_else(corrupt)).transpose()?;
        let seen = leaf.value();

        // Whose is it?
        if let Some(row) = &row {
            let state = match (row.version, known.state) {
                (Version::Written(writer), Some((asked, state))) if writer == asked => Some(state),
                (Version::Written(writer), _) if writer != id => self.known_state(writer)?,
                _ => None,
            };
            let committed = match claim(row.version, Some(id), |_| state) {
                Claim::Free(committed) => committed,
                Claim::RollBack(dead) => return again(Again::RollBack(dead)),
                Claim::Wait(owner) => return again(Again::Wait(owner)),
                Claim::Ask(other) => return again(Again::Ask(other)),
            };
            if let (Some(committed), Some(snapshot), true) = (committed, txn.conflict_above(), how.check_snapshot)
                && committed > snapshot
            {
                if !row.is_lock_only() {
                    return self.serialization_failure(tree);
                }
                if known.only_locked.as_deref() != seen {
                    return again(Again::CheckLock(seen.expect("there is a row").to_vec(), snapshot));
                }
            }
        }

        // What shall become of it?
        let live = row.filter(|row| !row.is_deleted());
        let (payload, flags): (std::borrow::Cow<'_, [u8]>, u8) = match stored {
            Some(stored) if stored.decided_for.as_deref() == seen => (stored.chain.encode().to_vec().into(), FLAG_OVERFLOW),
            Some(_) => return again(Again::FreeStored),
            None => {
                let large = match (&live, &known.large) {
                    (Some(row), Some((fetched_for, value))) if row.is_overflow() && Some(&fetched_for[..]) == seen => {
                        Some(&value[..])
                    }
                    (Some(row), _) if row.is_overflow() => return again(Again::Fetch(seen.expect("there is a row").to_vec())),
                    _ => None,
                };
                match decide(large.or_else(|| live.map(|row| row.payload))) {
                    Decision::Keep => return Ok(Step::Done(Outcome::Nothing)),
                    Decision::Lock | Decision::Delete if live.is_none() => return Ok(Step::Done(Outcome::Nothing)),
                    Decision::Lock => {
                        let row = live.expect("there is a row");
                        if row.version == Version::Written(id) {
                            return Ok(Step::Done(Outcome::Locked));
                        }
                        (row.payload.to_vec().into(), (row.flags & FLAG_OVERFLOW) | FLAG_LOCK_ONLY)
                    }
                    Decision::Delete => (Vec::new().into(), FLAG_DELETED),
                    Decision::Put(value) if fits_a_cell(key.len(), value.len()) => (value.into(), 0),
                    Decision::Put(value) => return again(Again::Store(seen.map(<[u8]>::to_vec), value)),
                }
            }
        };
        let new_bytes = ROW_HEADER_BYTES + payload.len();
        if !leaf.fits(new_bytes) {
            return again(Again::Room(new_bytes));
        }

        // Undo and row, in one group; nothing can fail from the first change on.
        let before = seen.unwrap_or_default();
        let Some(mut room) = self.0.undo.room(id.slot(), key.len(), before.len()).await? else { return again(Again::Undo) };
        let (previous, sequence) = self.0.table.borrow().position(id);
        let record = Record {
            owner: id,
            written: self.0.shared.clock.now(self.wall_ms()),
            previous,
            sequence: sequence + 1,
            kind: if before.is_empty() { RecordKind::Insert } else { RecordKind::Update },
            partition: tree.partition(),
            key,
            before,
        };
        let slot = self.0.table.borrow().slot(id, SlotState::Active, previous);
        let undo = self.0.undo.append(&mut room, &mut mtr, &record, (id.slot(), slot));
        let replaced =
            live.filter(|row| row.is_overflow() && flags & FLAG_LOCK_ONLY == 0).and_then(|row| OverflowRef::decode(row.payload));
        let mut bytes = self.0.scratch.borrow_mut();
        bytes.clear();
        bytes.extend_from_slice(&Row { version: Version::Written(id), undo, flags, payload: &[] }.header());
        bytes.extend_from_slice(&payload);
        drop(payload);
        leaf.put(&mut mtr, &bytes);
        drop(bytes);
        mtr.finish();
        self.0.table.borrow_mut().set_position(id, undo, sequence + 1);
        *stored = None;

        let partition = tree.partition();
        if let Some(chain) = replaced {
            txn.replaced.borrow_mut().push((sequence + 1, DeadChain { partition, chain }));
        }
        let mut touched = txn.touched.borrow_mut();
        if touched.len() < STAMPS_MAX {
            touched.push(Touched { tree: tree.clone(), block: leaf.block(), key: key.to_vec() });
        }
        count(&self.0.counters.rows_written);
        Ok(Step::Done(if flags & FLAG_LOCK_ONLY != 0 { Outcome::Locked } else { Outcome::Written }))
    }

    /// Whether a row that carries a lock stamp was really changed after `snapshot`: the stamps hide who changed it last.
    async fn changed_after(
        &self,
        tree: &Tree,
        key: &[u8],
        seen: &[u8],
        snapshot: Scn,
        txn: &Transaction,
    ) -> Result<bool, TxnError> {
        let mut bytes = seen.to_vec();
        loop {
            let row = Row::parse(&bytes).ok_or(TxnError::SnapshotTooOld)?;
            let committed = match row.version {
                Version::Committed(scn) => Some(scn),
                Version::Written(writer) => match self.settled_state(writer, txn.cancel()).await? {
                    TxnState::Committed(scn) | TxnState::CommittedBy(scn) => Some(scn),
                    // An own stamp, or one left by a dead transaction: its predecessor decides.
                    _ => None,
                },
            };
            if let Some(scn) = committed
                && (scn <= snapshot || !row.is_lock_only())
            {
                return Ok(scn > snapshot);
            }
            match self.0.undo.before(tree.partition(), key, &row).await? {
                Some(before) => bytes = before,
                None => return Ok(true),
            }
        }
    }
}

/// Bytes of a row's cell value in a leaf.
fn value_bytes(key_bytes: usize, payload_bytes: usize) -> usize {
    let inline = ROW_HEADER_BYTES + payload_bytes;
    if key_bytes + inline <= CELL_MAX { inline } else { ROW_HEADER_BYTES + crate::btree::overflow::REF_LEN }
}

fn fits_a_cell(key_bytes: usize, payload_bytes: usize) -> bool {
    key_bytes + ROW_HEADER_BYTES + payload_bytes <= CELL_MAX
}
