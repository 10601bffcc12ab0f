//! B-link trees over cached blocks: one per partition, from byte-string keys in `memcmp` order to byte-string values.
//!
//! Lives in the partition's shard; handles are not `Send`. Knows nothing of transactions: what a value means, and whether
//! it is visible, is the business of `txn`. Bounds: keys of [`KEY_MAX`] bytes, cells of [`CELL_MAX`]; larger values go to
//! [`overflow`] chains of up to [`overflow::LENGTH_MAX`] bytes.
//!
//! What it promises: every structural change is one atomic redo group that leaves a tree in which every key is found; a
//! reader or writer never waits for a second block while it holds a first one, but in the lock order *leaf < inner node <
//! extent header < new block*; a scan sees each key that was there all the time exactly once, whatever splits meanwhile.
//! `docs/btree.md` tells how it works.

mod error;
mod node;
pub mod overflow;
mod scan;
pub mod space;
mod split;
mod tree;

pub use error::{SpaceError, TreeError};
pub use node::{CELL_MAX, KEY_MAX};
pub use scan::{Chunk, KeyRange, Visit};
pub use tree::{DeadCells, LeafWrite, NeedRoom, Tree};

#[cfg(test)]
mod tests;
