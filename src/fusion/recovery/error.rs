//! Why redo can't be replayed. Each names the block or the log: nothing has been written over when one is returned.

use std::fmt;

use crate::ids::{BlockId, NodeId, Scn};
use crate::volume::block::BlockFault;
use crate::volume::change::ChangeFault;
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
