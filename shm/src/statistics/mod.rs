//! A node's live statistics in a file of its own: counters, gauges and latency histograms of the node and of each shard.
//!
//! One writer for each group of values, the thread whose values they are; it neither locks nor waits, and does not know
//! whether anybody reads. Readers map nothing and write nothing: they copy the file with plain reads, so that a file that
//! is cut short or damaged under their hands is an error and never a fault. The file stays when its writer dies, and says
//! who that was.

mod histogram;
pub mod layout;
mod process;
mod reader;
mod schema;
mod snapshot;
mod table;
#[cfg(test)]
mod tests;
mod writer;

pub use histogram::Histogram;
pub use process::{Liveness, own_process};
pub use reader::{ReadError, Reader, find};
pub use schema::{Kind, Metric, Scope};
pub use snapshot::{Group, Header, NodeState, Snapshot, Stage, Value};
pub use table::{prometheus, quantity};
pub use writer::{Description, GroupWriter, NodeWriter, Slots, Writers, create, create_unnamed};
