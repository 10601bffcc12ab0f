//! The global resource directory's geography: which node masters which block.
//!
//! Plain values, copied into every shard when they change; bounded by the 65,536 buckets. A block belongs to the bucket
//! of its group of 128 neighbours, a bucket to the node that follows it on a consistent-hash ring, unless an override
//! moves it ([`AffinityTable`] proposes which). The hashes are part of the protocol: every node of an epoch must compute the same map, so they are written
//! out here and pinned by a test.

mod affinity;
mod hash;
mod map;
mod ring;

pub use affinity::{AffinityConfig, AffinityTable, HOT_MAX, REST_WINDOWS};
pub use hash::{BlockHasher, BlockMap};
pub use map::{MapError, MastershipMap};

use crate::ids::BlockId;

/// Number of buckets that all blocks are spread over.
pub const BUCKETS: usize = 65_536;

/// Neighbouring blocks that share a bucket, so that a scan talks to one master for a while.
pub const BLOCKS_PER_BUCKET_GROUP: u64 = 128;

/// Points that each node has on the ring, unless the settings say otherwise. All nodes must say the same.
pub const VIRTUAL_NODES: u32 = 256;

/// One of the [`BUCKETS`] that mastership is assigned by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Bucket(pub u16);

impl Bucket {
    /// The bucket of a block.
    #[must_use]
    pub fn of(block: BlockId) -> Bucket {
        let group = block.block.0 / BLOCKS_PER_BUCKET_GROUP;
        Bucket((hash::mix(hash::mix(u64::from(block.partition.0)) ^ group) >> 48) as u16)
    }
}

#[cfg(test)]
mod tests;
