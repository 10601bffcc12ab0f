//! The shared volume: checksummed blocks, the slotted page in them, and the changes that the redo carries; the
//! superblock, the geometry, the nodes' slots; formatting and opening.
//!
//! A [`Volume`] belongs to one shard's reactor; every shard of every node opens the same file or device for itself.

pub mod block;
pub mod change;
pub mod error;
pub mod format;
pub mod layout;
pub mod open;
pub mod page;
pub mod roster;
pub mod sector;
pub mod slots;
pub mod superblock;

pub use error::{Refusal, VolumeError};
pub use format::{FormatOptions, FormatProgress, InitZero};
pub use layout::{EXTENT_BLOCKS, EXTENTS_PER_SPACE_MAP, Geometry, RedoArea, SECTOR, block_offset};
pub use open::{Expected, Volume};
pub use roster::{Roster, RosterChange, RosterNode, Standing};
pub use slots::{ControlBlock, EVICTED_MAX, NodeSlot, NodeState, Vote};
pub use superblock::Superblock;

#[cfg(test)]
mod tests;
