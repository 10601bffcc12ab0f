//! The latency harness: what `rusty-db-bench` measures, and the beds that its criterion benches stand on.
//!
//! Every figure that has a target is a ratio of two things measured in the same run, taking turns, so that a busy machine or
//! a slow disk is slow for both. Percentiles are of every single operation (hdrhistogram), not of averages. Nothing here
//! passes or fails by time: a person reads the report.

pub mod bare;
pub mod clock;
pub mod compare;
pub mod html;
pub mod load;
pub mod lock;
pub mod log;
pub mod machine;
pub mod mail;
pub mod node;
pub mod nodes;
pub mod place;
pub mod raw;
pub mod reads;
pub mod report;
pub mod samples;
pub mod shard;
pub mod sql;
pub mod store;
pub mod svg;
pub mod transfer;
pub mod ways;
pub mod wire;

pub use samples::Series;

/// What a benchmark ends with.
pub type Outcome<T> = Result<T, Failure>;

/// Why a benchmark could not be taken: said to a person, never matched on.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
