//! The global cache service: which node may read or change a block, and shipping it from memory to memory.
//!
//! Owned by one shard. Two state machines without I/O do the thinking: [`MasterCore`] keeps the directory of the blocks
//! that this node masters, [`HolderCore`] the modes that this node holds. Both take messages and give [`Output`]s, so that
//! the explorer (`explore/`) can drive them through every order of events. [`Gcs`] does what they want done, between the
//! shard's cache and the interconnect, in one view of the membership after the other.

mod agent;
mod directory;
#[cfg(test)]
mod explore;
mod holder;
mod inspect;
mod master;
pub mod message;
mod output;
mod rebuild;
mod reconfigure;
mod remaster;
mod rules;
mod statistics;
pub mod wire;

pub use agent::{Gcs, GcsConfig, GcsParts, RecoveryPhase, RecoveryProgress};
pub use holder::{HolderCore, HolderCounters, ProtectedImage};
pub use inspect::{Inspection, Known, contradictions};
pub use master::{MasterCore, MasterCounters};
pub use output::Output;
pub use rebuild::Claim;
pub use remaster::MovedEntry;
#[cfg(test)]
pub(crate) use rules::Rule;
pub use statistics::{GcsStats, Latencies, Path};

#[cfg(test)]
mod tests;
