//! What can go wrong with a transaction's operation.

use std::fmt;

use crate::btree::{SpaceError, TreeError};
use crate::cache::CacheError;
use crate::ids::{PartitionId, TxnId};

/// Why an operation did not happen. Nothing of the row operation that returns it has happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TxnError {
    /// REPEATABLE READ: the row has changed since the snapshot.
    Serialization(PartitionId),
    /// The wait would have closed a circle.
    Deadlock,
    /// Held by somebody else, and the caller would not wait.
    LockNotAvailable,
    /// The undo that the snapshot needs has been reused.
    SnapshotTooOld,
    /// The operation was canceled while it waited.
    Canceled,
    /// All slots of the transaction table are in use or still asked for.
    TableFull,
    /// The volume has no extent left.
    VolumeFull,
    /// There is no such partition.
    NoSuchPartition(PartitionId),
    /// A row, an undo record or a block is damaged.
    Corrupt(String),
    /// The disk refused.
    Io(String),
    /// A block or a node is out of reach now.
    Unavailable(String),
    /// The log failed under a commit: after a restart it has happened, or not.
    CommitUnknown(String),
}

impl TxnError {
    /// A block names a transaction that its node has never begun.
    #[must_use]
    pub fn unknown_transaction(txn: TxnId) -> TxnError {
        TxnError::Corrupt(format!("a row names {txn}, which never was"))
    }
}

impl fmt::Display for TxnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TxnError::Serialization(partition) => {
                write!(f, "a row of {partition} was changed by another transaction since the snapshot")
            }
            TxnError::Deadlock => write!(f, "the wait for a row would have closed a circle of waits"),
            TxnError::LockNotAvailable => write!(f, "another transaction holds the lock"),
            TxnError::SnapshotTooOld => write!(f, "the undo that the snapshot needs has been reused"),
            TxnError::Canceled => write!(f, "the operation was canceled"),
            TxnError::TableFull => {
                write!(f, "the transaction table is full: an old snapshot or a node that is out of reach holds its slots")
            }
            TxnError::VolumeFull => write!(f, "the volume has no free extent"),
            TxnError::NoSuchPartition(partition) => write!(f, "{partition} does not exist"),
            TxnError::Corrupt(detail)
            | TxnError::Io(detail)
            | TxnError::Unavailable(detail)
            | TxnError::CommitUnknown(detail) => f.write_str(detail),
        }
    }
}

impl std::error::Error for TxnError {}

impl From<CacheError> for TxnError {
    fn from(error: CacheError) -> TxnError {
        let detail = error.to_string();
        match error {
            CacheError::Corrupt { .. } => TxnError::Corrupt(detail),
            CacheError::Io { .. } | CacheError::Log { .. } | CacheError::Refused(_) => TxnError::Io(detail),
            CacheError::Dropped { partition } => TxnError::NoSuchPartition(partition),
            CacheError::Unavailable { .. } | CacheError::Closed => TxnError::Unavailable(detail),
        }
    }
}

impl From<SpaceError> for TxnError {
    fn from(error: SpaceError) -> TxnError {
        let detail = error.to_string();
        match error {
            SpaceError::VolumeFull { .. } => TxnError::VolumeFull,
            SpaceError::NoPartition(partition) => TxnError::NoSuchPartition(partition),
            SpaceError::Cache(error) => error.into(),
            SpaceError::PartitionExists(_) | SpaceError::Corrupt { .. } => TxnError::Corrupt(detail),
            SpaceError::Closed => TxnError::Unavailable(detail),
        }
    }
}

impl From<TreeError> for TxnError {
    fn from(error: TreeError) -> TxnError {
        let detail = error.to_string();
        match error {
            TreeError::Cache(error) => error.into(),
            TreeError::Space(error) => error.into(),
            TreeError::Corrupt { .. } => TxnError::Corrupt(detail),
            // Callers check sizes before they come here.
            TreeError::KeyTooLong { .. } | TreeError::CellTooLong { .. } => TxnError::Corrupt(detail),
        }
    }
}
