//! The cluster as a whole: how its members come together, recover the volume, serve and stop.
//!
//! Stands above the store and puts everything below together. Its handles ([`Node`], [`Status`]) are `Send` and know no
//! runtime.

pub mod control;
mod door;
mod failure;
pub mod fencing;
mod late;
mod lead;
mod links;
mod node;
mod operator;
mod pulse;
mod read_lease;
pub mod recovery;
mod shard;
mod statistics;
mod status;
#[cfg(test)]
mod tests;
pub mod view;

pub use control::ControlStatus;
pub use node::{HostedNode, Node};
pub use operator::Operator;
pub use statistics::{Publisher, ServiceStatistics, ShardStatistics, StatisticsSource};
pub use status::{Identity, Phase, RecoveryStatus, RecoveryTimes, Snapshot, Status};
