//! The cluster as a whole: how its members come together, recover the volume, serve and stop.
//!
//! Stands above the store and puts everything below together. Its handles ([`Node`], [`Status`]) are `Send` and know no
//! runtime.

mod failure;
pub mod fencing;
pub mod formation;
mod late;
mod membership;
mod node;
pub mod recovery;
mod shard;
mod status;
pub mod view;

pub use node::{HostedNode, Node};
pub use status::{Phase, Snapshot, Status};
