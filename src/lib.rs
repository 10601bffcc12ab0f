//! RustyDB's engine: a clustered storage engine whose nodes share one disk and keep their caches coherent by shipping
//! blocks memory to memory. No SQL, no HTTP, no tokio in here: those live in the gateway.
//!
//! The modules stand in the order of their layers; each imports only what stands above it.
//! `docs/ARCHITECTURE.md` tells how they work together.

pub mod ids;
mod rules;
pub mod config;
pub mod clock;
pub mod histogram;
pub mod reactor;
pub mod volume;
pub mod wal;
pub mod interconnect;
pub mod cache;
pub mod fusion;
pub mod btree;
pub mod txn;
pub mod store;
pub mod raft;
pub mod cluster;
pub mod sim;
