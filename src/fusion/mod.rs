//! Cache Fusion: keeps the caches of all nodes coherent over one shared disk.
//!
//! Everything here belongs to one shard: shard i of a node speaks only with shard i of the other nodes, and a partition's
//! blocks, directory entries and locks live in its shard's thread. [`grd`] says which node masters a block, [`gcs`] moves
//! blocks. The protocol is drawn in `docs/cache-fusion.md`.

pub mod gcs;
pub mod ges;
pub mod grd;
mod node_set;

pub use node_set::NodeSet;
pub mod recovery;
