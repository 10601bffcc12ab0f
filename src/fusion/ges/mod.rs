//! Global Enqueue Service: locks by name over all nodes.

pub mod core;
#[cfg(test)]
mod explore;
pub mod types;
