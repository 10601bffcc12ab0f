//! Why redo can't be replayed, and why the blocks of lost nodes can't be recovered. Each names the block or the log:
//! nothing has been written over when one is returned.

use std::fmt;

use crate::ids::{BlockId, NodeId, Scn};
use crate::volume::block::BlockFault;
use crate::volume::change::ChangeFault;
use crate::wal::LogError;
use crate::wal::redo::RedoFault;

/// What stops recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayError {
    /// A record can't be understood.
    Record {
        /// Whose log.
        from: NodeId,
        /// What is wrong with it.
        fault: RedoFault,
    },
    /// A change builds on a version that neither the disk nor any log has.
    Hole {
        /// The block.
        block: BlockId,
        /// The newest version there is, if any is readable.
        have: Option<Scn>,
        /// The version that the change was made for.
        need: Scn,
        /// The version that it leads to.
        after: Scn,
        /// Whose log has it.
        from: NodeId,
        /// What is wrong with the version on disk.
        fault: Option<BlockFault>,
    },
    /// A change does not fit the version that it was made for.
    Change {
        /// The block.
        block: BlockId,
        /// The version that it leads to.
        after: Scn,
        /// Whose log has it.
        from: NodeId,
        /// What is wrong.
        fault: ChangeFault,
    },
    /// The version on disk is damaged and the redo does not reach back far enough to make it anew.
    Unreadable {
        /// The block.
        block: BlockId,
        /// What is wrong with it.
        fault: BlockFault,
    },
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplayError::Record { from, fault } => write!(f, "a redo record in the log of {from} can't be understood: {fault}"),
            ReplayError::Hole { block, have, need, after, from, fault } => {
                write!(f, "{block}: the log of {from} leads from {need} to {after}, but ")?;
                match (have, fault) {
                    (_, Some(fault)) => write!(f, "the version on disk is damaged: {fault}"),
                    (Some(have), None) => write!(f, "the newest version found is {have}"),
                    (None, None) => write!(f, "there is no version to start from"),
                }
            }
            ReplayError::Change { block, after, from, fault } => {
                write!(f, "{block}: the change to {after} in the log of {from} does not fit: {fault}")
            }
            ReplayError::Unreadable { block, fault } => {
                write!(f, "{block} is damaged on disk ({fault}) and the redo does not reach back far enough to make it anew")
            }
        }
    }
}

impl std::error::Error for ReplayError {}

/// Why a survivor can't recover the blocks of lost nodes. Nothing has been made worse: another node, or the next cold
/// start, can try the same again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoveryFault {
    /// A lost node's log can't be read.
    Log(LogError),
    /// The redo does not fit the blocks.
    Replay(ReplayError),
    /// The disk and the redo together lead to a version that is older than one that was written.
    Older {
        /// The block.
        block: BlockId,
        /// The version that was made.
        found: Scn,
        /// The version that was on the disk.
        known: Scn,
    },
    /// A device error on one block.
    Block {
        /// Which.
        block: BlockId,
        /// Reading, writing, or making it durable.
        doing: &'static str,
        /// What the system said.
        error: String,
    },
}

impl fmt::Display for RecoveryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the blocks of lost nodes can't be recovered: ")?;
        match self {
            RecoveryFault::Log(error) => write!(f, "{error}"),
            RecoveryFault::Replay(error) => write!(f, "{error}"),
            RecoveryFault::Older { block, found, known } => write!(
                f,
                "{block} was on the disk as of {known}, and now the disk and the redo give only {found}: the device has lost a write, or its path returns wrong data"
            ),
            RecoveryFault::Block { block, doing, error } => write!(f, "can't {doing} {block}: {error}"),
        }?;
        write!(f, ". Nothing was lost by trying; repair or restore what is named and start again")
    }
}

impl std::error::Error for RecoveryFault {}

impl From<LogError> for RecoveryFault {
    fn from(error: LogError) -> Self {
        RecoveryFault::Log(error)
    }
}

impl From<ReplayError> for RecoveryFault {
    fn from(error: ReplayError) -> Self {
        RecoveryFault::Replay(error)
    }
}
