//! Transactions: versions of rows, who sees which, locks, commit and rollback.
//!
//! One manager ([`Txns`]) per shard owns that shard's transaction table and undo; nothing is shared between shards but the
//! clock and the [`Snapshots`]. What bounds it stands in each part. It promises snapshot reads without locks, first updater
//! wins in REPEATABLE READ, and that a commit acknowledged by any node is seen by whatever begins later on any node.
//! `docs/transactions.md` tells how it works together.

mod broadcast;
mod cluster;
mod commit;
mod departed;
mod error;
mod ges;
mod manager;
mod outcomes;
mod read;
pub mod record;
mod ring;
mod rollback;
pub mod row;
mod serving;
pub mod several;
pub mod slot;
mod snapshot;
mod table;
mod transaction;
mod types;
mod undo;
mod visibility;
mod waits;
mod write;

pub use cluster::ClusterPeers;
pub use departed::OtherShards;
pub use error::TxnError;
pub use ges::TransactionsForGes;
pub use manager::{HOUSEKEEPING_MS, NoPeers, NodeShared, Peers, TxnCounters, TxnParts, Txns};
pub use read::{Glance, Rows};
pub use rollback::Position;
pub use serving::{Obstacle, Serving};
pub use slot::ShardSet;
pub use snapshot::{SnapshotSlot, Snapshots};
pub use table::{Left, Unfinished};
pub use transaction::{Cancel, Transaction};
pub use types::{Isolation, WaitPolicy};
pub use visibility::{TxnState, View};
pub use waits::{LocalWaits, RowWaiter, WaitError};
pub use write::{Decision, How, Outcome};
