//! The block cache of a shard.

mod coherence;
mod error;
mod frame;

pub use coherence::{Acquire, Coherence, Granted, LocalCoherence, LocalFuture, Mode, Source};
pub use error::CacheError;
pub use frame::FrameId;
