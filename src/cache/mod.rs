//! The block cache of a shard: frames in memory, who may look at them, how they get there and back to the volume.
//!
//! Owned by one shard's thread; nothing in here is shared with another. Bounded by its frames. It promises that a guard
//! shows the newest version of a block anywhere in the cluster, that changes are in the log before they are anywhere else,
//! and that what the volume holds plus the logs always gives back every finished mini-transaction. `docs/cache.md` draws
//! the states of a frame and says which assertion guards which of the ten rules.

mod arena;
#[allow(clippy::module_inception)] // The cache proper, in the house's file layout.
mod cache;
mod checkpoint;
mod coherence;
mod dropped;
mod error;
mod frame;
mod grant;
mod guards;
mod latch;
mod map;
mod mtr;
mod replace;
mod ship;
mod stats;
mod wait;
mod writer;

pub(crate) use arena::HUGE_PAGE;
pub use cache::{Cache, CacheConfig, CacheParts, FRAMES_MAX, FRAMES_MIN, WeakCache};
pub use coherence::{Acquire, Coherence, Granted, LocalCoherence, LocalFuture, Mode, Source};
pub use error::CacheError;
pub use frame::FrameId;
pub use guards::{ReadGuard, WriteGuard};
pub use latch::HOLD_US_MAX;
pub use mtr::{MTR_BLOCKS_MAX, Mtr};
pub use ship::{ProtectedBlock, Remains, Standing};
pub use stats::CacheStats;
pub use writer::WRITE_BATCH;

#[cfg(test)]
mod tests;
