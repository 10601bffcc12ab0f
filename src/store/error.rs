//! What can go wrong in `store`, told to an operator and to a client.
//!
//! Plain values, `Send`. Faults are errors here; bugs assert.

use std::fmt;

use crate::ids::{PartitionId, ShardId};
use crate::txn::TxnError;

/// Why an operation on the store did not happen. Unless said otherwise nothing of the operation has happened and the
/// transaction can go on (to a savepoint, or to its rollback).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreError {
    /// REPEATABLE READ: another transaction has changed the row since this one's snapshot. Roll back and run again.
    SerializationFailure {
        /// The table's or index's partition.
        partition: PartitionId,
    },
    /// This transaction waited in a circle with others and was the one chosen to give up. Roll back and run again.
    DeadlockDetected,
    /// NOWAIT, or a lock timeout: the lock is held by somebody else.
    LockNotAvailable,
    /// The volume has no free extent left.
    VolumeFull,
    /// The undo that the snapshot needs has been reused.
    SnapshotTooOld,
    /// A write in a read-only transaction, or on a node that may not write now.
    ReadOnly,
    /// The operation needs a transaction and there is none, or the other way round.
    NoTransaction,
    /// The node is starting, stopping or suspended.
    Unavailable {
        /// What is not available, and why.
        reason: String,
    },
    /// The shard's mailbox, its transaction table or another bounded resource is full. Try again.
    Overloaded {
        /// The resource that is used up.
        resource: &'static str,
    },
    /// The client asked for it.
    Canceled,
    /// A block that this needs cannot be trusted: checksum, identity or structure.
    Corrupt {
        /// The block and what is wrong with it.
        detail: String,
    },
    /// The disk or the log refused.
    Io {
        /// Operation and the system's error.
        detail: String,
    },
    /// The commit could be neither confirmed nor refused: the log write failed under way. After a restart it is one of
    /// the two, whole.
    CommitUnknown {
        /// What failed.
        detail: String,
    },
    /// There is no such partition (any more).
    NoSuchPartition(PartitionId),
    /// A key longer than the engine's bound.
    KeyTooLong {
        /// Its length.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// A row longer than the engine's bound.
    ValueTooLong {
        /// Its length.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// A shard's thread is gone: the process is ending.
    ShardGone(ShardId),
}

impl StoreError {
    /// PostgreSQL's code for it.
    #[must_use]
    pub fn sqlstate(&self) -> &'static str {
        match self {
            StoreError::SerializationFailure { .. } => "40001",
            StoreError::DeadlockDetected => "40P01",
            StoreError::LockNotAvailable => "55P03",
            StoreError::VolumeFull => "53100",
            StoreError::SnapshotTooOld => "72000",
            StoreError::ReadOnly => "25006",
            StoreError::NoTransaction => "25P01",
            StoreError::Unavailable { .. } | StoreError::ShardGone(_) => "57P03",
            StoreError::Overloaded { .. } => "53000",
            StoreError::Canceled => "57014",
            StoreError::Corrupt { .. } => "XX001",
            StoreError::Io { .. } => "58030",
            StoreError::CommitUnknown { .. } => "40003",
            StoreError::NoSuchPartition(_) => "42P01",
            StoreError::KeyTooLong { .. } | StoreError::ValueTooLong { .. } => "54000",
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::SerializationFailure { .. } => write!(f, "could not serialize access due to concurrent update"),
            StoreError::DeadlockDetected => write!(f, "deadlock detected"),
            StoreError::LockNotAvailable => write!(f, "could not obtain lock on row or relation"),
            StoreError::VolumeFull => {
                write!(f, "the shared volume has no free extent left: delete or drop data, or grow the volume")
            }
            StoreError::SnapshotTooOld => {
                write!(
                    f,
                    "snapshot too old: the row versions it needs have been reused; raise undo_retention or run a shorter transaction"
                )
            }
            StoreError::ReadOnly => write!(f, "cannot write in a read-only transaction"),
            StoreError::NoTransaction => write!(f, "there is no transaction in progress"),
            StoreError::Unavailable { reason } => write!(f, "the database is not available now: {reason}"),
            StoreError::Overloaded { resource } => write!(f, "{resource} is full: try again, or lower the number of clients"),
            StoreError::Canceled => write!(f, "canceling statement due to user request"),
            StoreError::Corrupt { detail } => {
                write!(f, "corrupt data: {detail}; restore the partition from a backup or from a standby")
            }
            StoreError::Io { detail } => {
                write!(f, "input/output failed: {detail}; check the shared storage's paths and the kernel log")
            }
            StoreError::CommitUnknown { detail } => {
                write!(f, "the commit's outcome is unknown: {detail}; check after the node's restart whether it took place")
            }
            StoreError::NoSuchPartition(partition) => {
                write!(f, "{partition} does not exist: it was dropped or truncated meanwhile")
            }
            StoreError::KeyTooLong { bytes, bytes_max } => write!(f, "a key of {bytes} bytes exceeds the maximum of {bytes_max}"),
            StoreError::ValueTooLong { bytes, bytes_max } => {
                write!(f, "a row of {bytes} bytes exceeds the maximum of {bytes_max}")
            }
            StoreError::ShardGone(shard) => {
                write!(f, "{shard} of this node has stopped: the server is ending, connect to another node")
            }
        }
    }
}

impl std::error::Error for StoreError {}

impl From<TxnError> for StoreError {
    fn from(error: TxnError) -> StoreError {
        match error {
            TxnError::Serialization(partition) => StoreError::SerializationFailure { partition },
            TxnError::Deadlock => StoreError::DeadlockDetected,
            TxnError::LockNotAvailable => StoreError::LockNotAvailable,
            TxnError::SnapshotTooOld => StoreError::SnapshotTooOld,
            TxnError::Canceled => StoreError::Canceled,
            TxnError::TableFull => StoreError::Overloaded { resource: "the transaction table" },
            TxnError::VolumeFull => StoreError::VolumeFull,
            TxnError::NoSuchPartition(partition) => StoreError::NoSuchPartition(partition),
            TxnError::Corrupt(detail) => StoreError::Corrupt { detail },
            TxnError::Io(detail) => StoreError::Io { detail },
            TxnError::Unavailable(reason) => StoreError::Unavailable { reason },
            TxnError::CommitUnknown(detail) => StoreError::CommitUnknown { detail },
        }
    }
}
