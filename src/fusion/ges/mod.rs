//! Global Enqueue Service: locks by name over all nodes, in the six modes of the VMS lock manager.
//!
//! Belongs to one shard; shard i speaks with shard i of the other nodes. [`core`] is the master's side, [`local`] the
//! side of a node with users, [`deadlock`] the search for circles: state machines without I/O; [`agent`] performs what they
//! decide; [`gate`] is what clients' threads may do by themselves. A change of the members: [`core::rebuild`],
//! [`local::reconfigure`]. `docs/ges.md` tells the protocol.

pub mod agent;
pub mod core;
pub mod deadlock;
#[cfg(test)]
mod explore;
pub mod gate;
pub mod local;
#[cfg(test)]
mod random;
mod rules;
#[cfg(test)]
mod tests;
pub mod types;
#[cfg(test)]
mod views;
mod wire;

pub use agent::{FreshVersion, Ges, GesStats, LockError, LockHandle, OPEN_MAX, Sessions, Transactions, WaitPolicy};
pub use deadlock::Probe;
pub use gate::{Gate, GateStats};
pub use types::{LockMode, LockOwner, Resource, ResourceClass, SessionId, VALUE_BYTES, ValueBlock};
