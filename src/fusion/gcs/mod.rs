//! The global cache service: which node may read or change a block, and shipping it from memory to memory.
//!
//! Owned by one shard. Two state machines without I/O do the thinking: `MasterCore` keeps the directory of the blocks
//! that this node masters, `HolderCore` the modes that this node holds. Both take messages and give messages, so that
//! the explorer (`explore.rs`) can drive them through every order of events.

pub mod message;
