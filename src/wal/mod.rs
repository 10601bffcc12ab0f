//! The write-ahead log: one per shard of a node, in its own redo area of the shared volume.
//!
//! Owned by the shard's thread. Bounded by the redo area on disk. It promises that
//! what the log has acknowledged is found after a crash of any kind that leaves the disk alive,
//! in the order of its LSNs, and that the end of the log is found, not guessed.

pub mod redo;

/// Most bytes that one write to the log carries, and so the most that one record may take, framing included. A smaller redo area has a
/// smaller limit.
pub const BATCH_MAX: usize = 1 << 20;
