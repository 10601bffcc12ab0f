//! What can go wrong with a cached block, told so that an operator knows what to do.

use std::fmt;
use std::io;

use crate::ids::{BlockId, PartitionId};
use crate::volume::Refusal;
use crate::wal::LogError;

/// A fault around one block. Every one of its waiters gets the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CacheError {
    /// The bytes read or received are not the block that was asked for. Never given out as data.
    Corrupt {
        /// The block asked for.
        block: BlockId,
        /// What was found instead.
        found: String,
    },
    /// This life of the node may write no more.
    Refused(Refusal),
    /// The volume refused a read or a write.
    Io {
        /// The block.
        block: BlockId,
        /// `"read"` or `"write"`.
        operation: &'static str,
        /// The system's error.
        error: String,
    },
    /// The cluster could not give the block: its master or holder is gone, or this node is leaving.
    Unavailable {
        /// The block.
        block: BlockId,
        /// Why.
        reason: &'static str,
    },
    /// The log takes no more redo: the node must stop.
    Log {
        /// The log's own words.
        error: String,
    },
    /// The block's partition has been dropped: its blocks may belong to others by now.
    Dropped {
        /// Which.
        partition: PartitionId,
    },
    /// The cache was closed for shutdown.
    Closed,
}

impl CacheError {
    /// From what the device said.
    pub(super) fn io(block: BlockId, operation: &'static str, error: &io::Error) -> CacheError {
        match Refusal::of(error) {
            Some(why) => CacheError::Refused(why),
            None => CacheError::Io { block, operation, error: error.to_string() },
        }
    }

    /// From what the log said.
    #[must_use]
    pub fn log(error: &LogError) -> CacheError {
        match error {
            LogError::Refused { why, .. } => CacheError::Refused(*why),
            other => CacheError::Log { error: other.to_string() },
        }
    }
}

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CacheError::Corrupt { block, found } => write!(
                f,
                "{block} is corrupt: {found}. Nothing was read from it. Restore the block from a backup; other blocks are not affected"
            ),
            CacheError::Io { block, operation, error } => {
                write!(f, "the volume failed to {operation} {block}: {error}. Check the path to the shared storage")
            }
            CacheError::Unavailable { block, reason } => {
                write!(f, "{block} is not available now: {reason}. Retry once the cluster's membership has settled")
            }
            CacheError::Refused(why) => write!(f, "{why}"),
            CacheError::Log { error } => write!(f, "the log takes no more redo: {error}"),
            CacheError::Dropped { partition } => write!(f, "{partition} has been dropped"),
            CacheError::Closed => write!(f, "the cache is closed: the node is shutting down"),
        }
    }
}

impl std::error::Error for CacheError {}
