//! What can go wrong in a tree or in the space that it grows into, told so that an operator knows what to do.

use std::fmt;

use super::node::{CELL_MAX, KEY_MAX};
use crate::cache::CacheError;
use crate::ids::{BlockId, PartitionId};

/// A fault of a tree operation. Nothing was changed where one is returned, unless it says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeError {
    /// A block could not be had.
    Cache(CacheError),
    /// No space for a new block.
    Space(SpaceError),
    /// The key is longer than [`KEY_MAX`].
    KeyTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// Key and value together are longer than [`CELL_MAX`]: the value belongs into an overflow chain.
    CellTooLong {
        /// Their length in bytes.
        len: usize,
    },
    /// A block is not what its place in the tree says.
    Corrupt {
        /// Which block.
        block: BlockId,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// A fault of the space management.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpaceError {
    /// No extent is free for this purpose. What is left is kept for undo and deletes.
    VolumeFull {
        /// Who asked.
        partition: PartitionId,
        /// Extents still free, those of the reserve included.
        extents_free: u64,
    },
    /// There is no such partition.
    NoPartition(PartitionId),
    /// A partition of this number exists already.
    PartitionExists(PartitionId),
    /// A block of the space management could not be had.
    Cache(CacheError),
    /// A block of the space management is not what its place says.
    Corrupt {
        /// Which block.
        block: BlockId,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The shard that manages the space is gone: the node is shutting down.
    Closed,
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TreeError::Cache(error) => error.fmt(f),
            TreeError::Space(error) => error.fmt(f),
            TreeError::KeyTooLong { len } => write!(f, "a key of {len} bytes: at most {KEY_MAX} are allowed"),
            TreeError::CellTooLong { len } => {
                write!(f, "key and value of {len} bytes in one cell: at most {CELL_MAX} are allowed")
            }
            TreeError::Corrupt { block, what } => {
                write!(f, "{block} is not the tree node that its parent says: {what}. Restore the partition from a backup")
            }
        }
    }
}

impl fmt::Display for SpaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SpaceError::VolumeFull { partition, extents_free } => write!(
                f,
                "the volume is full: no extent for {partition}, the {extents_free} that are free are kept for undo and deletes. \
                 Delete or drop data, or grow the volume"
            ),
            SpaceError::NoPartition(partition) => write!(f, "{partition} does not exist"),
            SpaceError::PartitionExists(partition) => write!(f, "{partition} exists already"),
            SpaceError::Cache(error) => error.fmt(f),
            SpaceError::Corrupt { block, what } => {
                write!(f, "{block} of the space management is damaged: {what}. Restore the volume from a backup")
            }
            SpaceError::Closed => write!(f, "the space management is closed: the node is shutting down"),
        }
    }
}

impl std::error::Error for TreeError {}
impl std::error::Error for SpaceError {}

impl From<CacheError> for TreeError {
    fn from(error: CacheError) -> TreeError {
        TreeError::Cache(error)
    }
}

impl From<SpaceError> for TreeError {
    fn from(error: SpaceError) -> TreeError {
        match error {
            SpaceError::Cache(error) => TreeError::Cache(error),
            other => TreeError::Space(other),
        }
    }
}

impl From<CacheError> for SpaceError {
    fn from(error: CacheError) -> SpaceError {
        SpaceError::Cache(error)
    }
}
