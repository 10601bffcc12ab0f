//! Space: which extents of the volume are free, which belong to which partition, and which of their blocks are in use.
//!
//! Three layers, each with its owner:
//! - The **space map** ([`SpaceManager`]) lives in partition 0 and thus in shard 0: a bit per extent, and the directory of
//!   the partitions. Other shards ask it through [`SpaceService`], by mailbox.
//! - An **extent** is 32 consecutive blocks. Its first is the extent header: whose it is, which of its blocks are in use,
//!   and the next extent of the partition. The first extent of a partition heads the chain.
//! - Each extent is filled by the one node that asked for it ([`BlockAllocator`], one per shard), so that nodes that
//!   insert into the same partition don't fight over a header. Any node may free a block.
//!
//! What it promises after a crash: an extent or a block may be *lost* (marked as used, belonging to nothing), when the crash
//! fell between the space map's change and the partition's. None is ever given out twice: an extent is handed out only
//! after its bit is durable, and the chain is cut before the bits are cleared.
//!
//! Bounded: requests take at most [`EXTENTS_PER_REQUEST_MAX`] extents; the allocator remembers at most
//! [`EXTENTS_REMEMBERED_MAX`] extents of a partition.

mod extent;
mod map;

pub use extent::{BlockAllocator, Claim, ClaimHeaders, EXTENTS_REMEMBERED_MAX};
pub use map::SpaceManager;

use super::error::SpaceError;
use crate::cache::{Cache, CacheError, LocalFuture};
use crate::ids::{BlockId, BlockNo, Lsn, PartitionId};

/// Most extents that one request takes.
pub const EXTENTS_PER_REQUEST_MAX: u16 = 16;

/// Share of the extents that only [`Urgency::Reserve`] may use, in percent.
pub const RESERVE_PERCENT: u64 = 2;

/// The reserve is at least this many extents, also on a small volume.
pub const RESERVE_EXTENTS_MIN: u64 = 8;

/// What the space is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// New data: refused once only the reserve is left.
    Normal,
    /// Undo, catalogs and deletes: what a full volume must still be able to do. May use the reserve.
    Reserve,
}

/// Where a partition lives: all that is needed to open it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionHome {
    /// The partition.
    pub partition: PartitionId,
    /// Its first extent: the extent header that heads the chain.
    pub first_extent: BlockNo,
}

impl PartitionHome {
    /// The extent header that heads the partition's chain of extents.
    #[must_use]
    pub fn head(self) -> BlockId {
        BlockId::new(self.partition, self.first_extent)
    }

    /// The partition's root block: of its tree, or whatever its owner keeps there. It never moves.
    #[must_use]
    pub fn root(self) -> BlockId {
        BlockId::new(self.partition, BlockNo(self.first_extent.0 + 1))
    }
}

/// What shard 0 is asked. `Send`, for the mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpaceRequest {
    /// Extents for a partition that exists. Answered by [`SpaceReply::Extents`], with at least one, once they are durably
    /// taken.
    AllocateExtents {
        /// For whom.
        partition: PartitionId,
        /// How many would be welcome; at most [`EXTENTS_PER_REQUEST_MAX`].
        count: u16,
        /// What for.
        urgency: Urgency,
    },
    /// A number (drawn anew, or the given one) and a first extent for a new partition. Nobody finds the partition before
    /// it is published. Answered by [`SpaceReply::Home`].
    PreparePartition {
        /// The number that it must have, for partitions with a fixed place (undo, catalog).
        partition: Option<PartitionId>,
        /// What for.
        urgency: Urgency,
    },
    /// The partition is formatted and durable: let it be found. Answered by [`SpaceReply::Done`] once durable.
    PublishPartition(PartitionHome),
    /// Answered by [`SpaceReply::Home`], or [`SpaceError::NoPartition`].
    FindPartition(PartitionId),
    /// Takes the partition out of the directory: from then on it is gone. Answered by [`SpaceReply::Done`] once durable.
    /// Its extents are still its own; see [`SpaceRequest::FreeExtents`].
    RemovePartition(PartitionHome),
    /// Frees the extents of a partition that was removed ([`BlockAllocator::extents_of`], asked before). By now no node may
    /// have a block of it in its cache: `Cache::drop_partition` has run everywhere. Answered by [`SpaceReply::Done`] once
    /// durable, or at once while they are held back ([`SpaceManager::hold_frees_while`]).
    FreeExtents(Vec<BlockNo>),
    /// Answered by [`SpaceReply::Usage`].
    Usage,
}

/// What shard 0 answers. `Send`, for the mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpaceReply {
    /// The header blocks of the extents, ascending.
    Extents(Vec<BlockNo>),
    /// Where the partition lives.
    Home(PartitionHome),
    /// It is done.
    Done,
    /// How full the volume is.
    Usage(SpaceUsage),
}

/// How full the volume is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceUsage {
    /// Extents of the volume's data area.
    pub extents_total: u64,
    /// Those that belong to nobody.
    pub extents_free: u64,
    /// How many of the free ones are kept for undo and deletes.
    pub extents_reserved: u64,
}

/// The way to shard 0. In shard 0 it is the [`SpaceManager`] itself, elsewhere a mailbox to it.
pub trait SpaceService {
    /// Has a request carried out.
    fn request(&self, request: SpaceRequest) -> LocalFuture<Result<SpaceReply, SpaceError>>;
}

/// Waits until the redo up to `end` is durable.
async fn make_durable(cache: &Cache, end: Lsn) -> Result<(), CacheError> {
    cache.log().flush_to(end).await.map_err(|error| CacheError::log(&error))
}
