//! The shared volume: checksummed blocks, the slotted page in them, and the changes that the redo carries.

pub mod block;
pub mod change;
pub mod page;
