//! The words of the store's interface: operations, results, bounds.
//!
//! Plain `Send` values that travel from a client's thread into a shard and back.

use std::any::Any;
use std::ops::Bound;

use crate::histogram::Histogram;
use crate::ids::{PartitionId, Scn};

use super::StoreError;

pub use crate::txn::{Isolation, WaitPolicy};

/// Longest key, bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// Longest row, bytes (rows beyond a block go to overflow blocks).
pub const VALUE_BYTES_MAX: usize = 80 << 20;
/// Most operations in one [`crate::store::Session::write`] or `modify_many`, and keys in one `get_many`.
pub const BATCH_MAX: usize = 65_536;

/// Strength of a row lock taken by a SELECT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockStrength {
    /// FOR UPDATE and FOR NO KEY UPDATE: nobody else changes or locks the row.
    Update,
    /// FOR SHARE and FOR KEY SHARE. Granted as an exclusive row lock: correct, though sharers wait for each other.
    Share,
}

/// A row that was to be locked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LockedRow {
    /// It is locked; this is its newest committed (or own) version.
    Row(Vec<u8>),
    /// There is no such row (any more).
    Gone,
    /// Somebody else holds it and [`WaitPolicy::SkipLocked`] said not to wait.
    Skipped,
}

/// What an [`WriteOp::Insert`] does about a row that is there already.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnConflict {
    /// The batch ends with [`WriteResult::Duplicate`] as its last result, and everything that the batch has done is
    /// undone.
    #[default]
    Error,
    /// [`WriteResult::Duplicate`], and the batch goes on.
    Nothing,
}

/// One change of one row. Key and value are the caller's encodings; keys compare as bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WriteOp {
    /// Adds a row that must not be there.
    Insert {
        /// Where.
        partition: PartitionId,
        /// At most [`KEY_BYTES_MAX`].
        key: Vec<u8>,
        /// At most [`VALUE_BYTES_MAX`].
        value: Vec<u8>,
        /// If it is there.
        on_conflict: OnConflict,
    },
    /// Adds or replaces a row.
    Put {
        /// Where.
        partition: PartitionId,
        /// At most [`KEY_BYTES_MAX`].
        key: Vec<u8>,
        /// At most [`VALUE_BYTES_MAX`].
        value: Vec<u8>,
    },
    /// Replaces a row that must be there.
    Update {
        /// Where.
        partition: PartitionId,
        /// At most [`KEY_BYTES_MAX`].
        key: Vec<u8>,
        /// At most [`VALUE_BYTES_MAX`].
        value: Vec<u8>,
    },
    /// Takes a row away.
    Delete {
        /// Where.
        partition: PartitionId,
        /// At most [`KEY_BYTES_MAX`].
        key: Vec<u8>,
    },
}

impl WriteOp {
    /// The partition that it touches.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        match self {
            WriteOp::Insert { partition, .. }
            | WriteOp::Put { partition, .. }
            | WriteOp::Update { partition, .. }
            | WriteOp::Delete { partition, .. } => *partition,
        }
    }

    /// Whether key and value keep to the engine's bounds.
    ///
    /// # Errors
    /// [`StoreError::KeyTooLong`], [`StoreError::ValueTooLong`].
    pub fn check_sizes(&self) -> Result<(), StoreError> {
        let value_bytes = match self {
            WriteOp::Insert { value, .. } | WriteOp::Put { value, .. } | WriteOp::Update { value, .. } => value.len(),
            WriteOp::Delete { .. } => 0,
        };
        if self.key().len() > KEY_BYTES_MAX {
            return Err(StoreError::KeyTooLong { bytes: self.key().len(), bytes_max: KEY_BYTES_MAX });
        }
        if value_bytes > VALUE_BYTES_MAX {
            return Err(StoreError::ValueTooLong { bytes: value_bytes, bytes_max: VALUE_BYTES_MAX });
        }
        Ok(())
    }

    /// The row's key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        match self {
            WriteOp::Insert { key, .. }
            | WriteOp::Put { key, .. }
            | WriteOp::Update { key, .. }
            | WriteOp::Delete { key, .. } => key,
        }
    }
}

/// What became of a [`WriteOp`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WriteResult {
    /// Done; the row as it was before, `None` if there was none.
    Done {
        /// The replaced or deleted row.
        previous: Option<Vec<u8>>,
    },
    /// An insert found this row.
    Duplicate {
        /// The row that is there (committed, or this transaction's own).
        existing: Vec<u8>,
    },
    /// An update or delete found no row.
    NotFound,
}

/// What a [`Modifier`] wants done with the row.
pub enum Modify {
    /// Nothing (the row stays locked if it is there).
    Keep,
    /// This is the row from now on.
    Put(Vec<u8>),
    /// Take it away (nothing, if it is not there).
    Delete,
    /// Give up: the operation ends with [`Modified::Failed`], the batch's earlier changes are undone.
    Fail(Box<dyn Any + Send>),
}

/// Decides about one row of a `modify`: gets its position in the batch and the row's newest version (`None`: not there).
/// Runs in the shard's thread and may run again for the same row when it had to wait for somebody; so it must be quick and
/// must not block.
pub type Modifier = Box<dyn FnMut(usize, Option<&[u8]>) -> Modify + Send>;

/// What became of a row given to a [`Modifier`].
pub enum Modified {
    /// The modifier said so, or there was nothing to delete.
    Kept,
    /// Put.
    Put {
        /// The row before; `None` if there was none.
        previous: Option<Vec<u8>>,
        /// The row now.
        value: Vec<u8>,
    },
    /// Deleted.
    Deleted {
        /// The row before.
        previous: Vec<u8>,
    },
    /// The modifier gave up with this; always the batch's last.
    Failed(Box<dyn Any + Send>),
}

/// A stretch of a partition's keys, in the direction of the scan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanRange {
    /// Smallest key.
    pub lower: Bound<Vec<u8>>,
    /// Greatest key.
    pub upper: Bound<Vec<u8>>,
    /// From the greatest to the smallest.
    pub reverse: bool,
}

impl ScanRange {
    /// Everything, upwards.
    #[must_use]
    pub fn all() -> ScanRange {
        ScanRange { lower: Bound::Unbounded, upper: Bound::Unbounded, reverse: false }
    }

    /// All keys that begin with `prefix`, upwards.
    #[must_use]
    pub fn prefix(prefix: &[u8]) -> ScanRange {
        let mut end = prefix.to_vec();
        let upper = loop {
            match end.pop() {
                None => break Bound::Unbounded,
                Some(0xff) => {}
                Some(last) => {
                    end.push(last + 1);
                    break Bound::Excluded(end);
                }
            }
        };
        ScanRange { lower: Bound::Included(prefix.to_vec()), upper, reverse: false }
    }
}

/// Where a scan pauses: whichever comes first, but after at least one row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScanLimit {
    /// Bytes of keys and rows.
    pub bytes: usize,
    /// Rows.
    pub rows: usize,
}

impl Default for ScanLimit {
    fn default() -> ScanLimit {
        ScanLimit { bytes: 256 << 10, rows: 4096 }
    }
}

/// Part of a scan's rows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ScanChunk {
    /// Keys and rows, in the direction of the scan.
    pub rows: Vec<(Vec<u8>, Vec<u8>)>,
    /// What is left to scan; `None` at the end.
    pub more: Option<ScanRange>,
}

/// Where a new partition shall live.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Placement {
    /// Wherever the next one falls.
    #[default]
    Any,
    /// In the same shard as this one (an index beside its table: transactions then touch one shard).
    With(PartitionId),
}

/// A place in a transaction to come back to. Costs nothing to take. Valid until the transaction ends or is rolled back to
/// an earlier one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Savepoint {
    /// How many changes the transaction had made in each shard that it had touched.
    pub(crate) positions: Vec<u64>,
}

impl Savepoint {
    /// From positions of a backend's own meaning.
    #[must_use]
    pub fn new(positions: Vec<u64>) -> Savepoint {
        Savepoint { positions }
    }

    /// The positions that it was made from.
    #[must_use]
    pub fn positions(&self) -> &[u64] {
        &self.positions
    }
}

/// What a transaction-long lock is taken on: a table, a catalog entry, an advisory key. The pair of numbers is the
/// caller's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct LockName {
    /// Which family of names.
    pub space: LockSpace,
    /// First part.
    pub id1: u64,
    /// Second part.
    pub id2: u64,
}

/// Families of lock names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum LockSpace {
    /// Tables, views, sequences.
    Relation,
    /// Other catalog objects (names about to be created, schemas, roles).
    Object,
    /// The user's own (`pg_advisory_lock`).
    Advisory,
}

/// The six modes of VMS, weakest first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum LockMode {
    /// Null: interest only.
    Null,
    /// Concurrent read: goes with all but exclusive. A reader of a table.
    ConcurrentRead,
    /// Concurrent write: goes with CR and CW. A writer of a table's rows.
    ConcurrentWrite,
    /// Protected read: goes with CR and PR. CREATE INDEX: others read.
    ProtectedRead,
    /// Protected write: goes with CR only. Others read, nobody else changes.
    ProtectedWrite,
    /// Exclusive: goes with nothing. ALTER, DROP, TRUNCATE.
    Exclusive,
}

/// What a sweep over a partition did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VacuumReport {
    /// Rows looked at, dead ones included.
    pub rows_seen: u64,
    /// Deleted rows taken out for good.
    pub rows_removed: u64,
    /// Deleted rows that some snapshot may still need.
    pub rows_kept: u64,
}

/// Counters since the node's start, summed over its shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StoreStats {
    /// Committed transactions that wrote something.
    pub commits: u64,
    /// Rolled back transactions that had written something.
    pub rollbacks: u64,
    /// Rows read by key.
    pub gets: u64,
    /// Rows returned by scans.
    pub rows_scanned: u64,
    /// Rows changed.
    pub rows_written: u64,
    /// Times that somebody had to wait for a row.
    pub row_lock_waits: u64,
    /// 40001s.
    pub serialization_failures: u64,
    /// 40P01s.
    pub deadlocks: u64,
    /// Row versions fetched from undo.
    pub undo_reads: u64,
    /// Transaction states asked of other nodes.
    pub remote_state_requests: u64,
    /// Undo blocks in use.
    pub undo_blocks: u64,
    /// Transactions that have written and are neither committed nor rolled back.
    pub transactions_active: u64,
    /// Locks on names that took a trip to a shard.
    pub lock_trips: u64,
    /// Locks on relations that sessions took at the node's gate: no trip, no message.
    pub locks_at_gate: u64,
}

impl StoreStats {
    /// Adds another shard's, or node's, numbers.
    pub fn add(&mut self, other: &StoreStats) {
        self.commits += other.commits;
        self.rollbacks += other.rollbacks;
        self.gets += other.gets;
        self.rows_scanned += other.rows_scanned;
        self.rows_written += other.rows_written;
        self.row_lock_waits += other.row_lock_waits;
        self.serialization_failures += other.serialization_failures;
        self.deadlocks += other.deadlocks;
        self.undo_reads += other.undo_reads;
        self.remote_state_requests += other.remote_state_requests;
        self.undo_blocks += other.undo_blocks;
        self.transactions_active += other.transactions_active;
        self.lock_trips += other.lock_trips;
        self.locks_at_gate += other.locks_at_gate;
    }
}

/// What one shard's store has counted, latencies with it.
#[derive(Clone, Debug)]
pub struct StoreStatistics {
    /// Plain counters.
    pub counters: StoreStats,
    /// From the decision to commit until the client may be told.
    pub commit_latency: Histogram,
    /// Waits for rows.
    pub row_wait_latency: Histogram,
}

/// How a transaction ended well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Committed {
    /// Its place in the order of everything; `None` if it wrote nothing.
    pub scn: Option<Scn>,
}
