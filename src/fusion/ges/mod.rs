//! Global Enqueue Service: locks by name over all nodes, in the six modes of the VMS lock manager.
//!
//! Belongs to one shard; shard i speaks with shard i of the other nodes. [`core`] is the master's side, [`local`] the
//! side of a node with users, [`deadlock`] the search for circles: state machines without I/O; [`agent`] performs what they
//! decide. `docs/ges.md` tells the protocol.

pub mod agent;
pub mod core;
pub mod deadlock;
#[cfg(test)]
mod explore;
pub mod local;
#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;
pub mod types;
mod wire;

pub use agent::{Ges, GesStats, LockError, LockHandle, Transactions, WaitPolicy};
pub use types::{LockMode, LockOwner, Resource, ResourceClass, VALUE_BYTES, ValueBlock};
