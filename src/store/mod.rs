//! The narrow waist: what stands above (SQL, REST, gRPC) reads and writes rows only through here, and never asks how.
//!
//! [`Store`] and [`Session`] are `Send` and belong to the callers' threads; every operation travels as one message to the
//! shard that owns the partition and comes back as one. Bounded by the shards' mailboxes ([`StoreError::Overloaded`]) and
//! by [`BATCH_MAX`]. Promises: transactions as in [`Isolation`]; what one client was told is committed, every later
//! statement on every node sees.

mod backend;
mod departed;
mod engine;
mod error;
mod locks;
mod several;
mod shard;
mod types;

pub use backend::{Backend, BoxFuture, CancelHandle, Session, SessionBackend, Store};
pub use departed::ask_other_shards;
pub use engine::{COUNTERS, NodeStore};
pub use error::StoreError;
pub use locks::{CATALOG, LocalLocks, LockService, Locker, search_in_other_shards};
pub use several::Settled;
pub use shard::ShardEngine;
pub use types::*;

#[cfg(test)]
mod tests;
