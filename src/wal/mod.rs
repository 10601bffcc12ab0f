//! The write-ahead log: one per shard of a node, in its own redo area of the shared volume.
//!
//! Owned by the shard's thread. Bounded by the redo area on disk and by [`UNFLUSHED_MAX`] in memory. It promises that
//! what [`Log::flush_to`] has acknowledged is found by [`LogScan`] after a crash of any kind that leaves the disk alive,
//! in the order of its LSNs, and that the end of the log is found, not guessed.

pub mod area;
pub mod batch;
pub mod error;
pub mod log;
pub mod redo;
pub mod scan;
pub mod stats;

pub use area::Checkpoint;
pub use error::LogError;
pub use log::{FlushTo, Log, Reservation};
pub use redo::RecordKind;
pub use scan::{LogEnd, LogScan, Record};
pub use stats::LogStats;

use crate::ids::Lsn;

/// Most bytes that one write to the log carries, and so the most that one record may take, framing included. A smaller
/// redo area has a smaller limit (an eighth of it).
pub const BATCH_MAX: usize = 1 << 20;

/// Most bytes appended and not yet written before writers wait. Stretched by the reservations that are out.
pub const UNFLUSHED_MAX: usize = 8 << 20;

/// Where a new log begins. [`Lsn`] 0 is before everything.
pub const FIRST_LSN: Lsn = Lsn(4096);

#[cfg(test)]
mod tests;
