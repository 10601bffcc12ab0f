//! The engine's identifiers, as types: a node is never mistaken for a shard, nor an LSN for an SCN.
//!
//! Plain values, owned by nobody, copied freely. Every type is little-endian `u64`/`u32`/`u8` on disk and on the wire;
//! the packings are drawn in `docs/formats.md`.

use std::fmt;

/// Bytes in a block of the shared volume. Fixed when the volume is formatted.
pub const BLOCK_SIZE: usize = 8192;

/// Most nodes a cluster may have (node ids are 1..=`NODES_MAX`).
pub const NODES_MAX: usize = 127;

/// Most shards a node may have.
pub const SHARDS_MAX: usize = 64;

/// A member of the cluster, numbered from 1 as in the configuration (`node_id = 1`). 0 is nobody.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(pub u8);

/// One of a node's shards: a thread pinned to a core, numbered from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ShardId(pub u8);

/// A B-tree with its extents, undo home and locks; the unit of placement. Never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PartitionId(pub u32);

/// Number of a block on the volume, counted from the volume's first byte in units of [`BLOCK_SIZE`]. At most 40 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BlockNo(pub u64);

/// A block and the partition that it belongs to: the unit of caching, shipping and recovery.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BlockId {
    /// The partition whose shard owns the block on every node.
    pub partition: PartitionId,
    /// Where it lies on the volume.
    pub block: BlockNo,
}

/// System change number: a hybrid logical clock, 48 bits of milliseconds since 1970 and 16 bits of counter.
/// Monotonic on a node, carried on every message, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Scn(pub u64);

/// Position in one shard's log: bytes appended since the log was created. Never goes back, also not when the area wraps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

/// A transaction: bit 63 set, then node (7), home shard (8), slot of the shard's transaction table (16), wrap (32).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxnId(u64);

/// Generation of the cluster's membership. Messages of an older epoch are dropped everywhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u64);

/// One life of a node: grows with each start of the same node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Incarnation(pub u64);

/// Names one request of one sender until its answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RequestId(pub u64);

impl PartitionId {
    /// The space map, block allocation of the whole volume.
    pub const SPACE: PartitionId = PartitionId(0);
    /// Catalog of the SQL layer.
    pub const CATALOG: PartitionId = PartitionId(1);
    /// First partition that users' tables and indexes get.
    pub const FIRST_USER: PartitionId = PartitionId(64);
    /// Undo partitions (transaction table and undo blocks) start here; see [`PartitionId::undo`].
    pub const FIRST_UNDO: PartitionId = PartitionId(0xF000_0000);

    /// The undo home of one shard of one node.
    #[must_use]
    pub fn undo(node: NodeId, shard: ShardId) -> PartitionId {
        PartitionId(Self::FIRST_UNDO.0 | (u32::from(node.0) << 8) | u32::from(shard.0))
    }

    /// Whether this is an undo home, and if so whose.
    #[must_use]
    pub fn undo_home(self) -> Option<(NodeId, ShardId)> {
        (self.0 >= Self::FIRST_UNDO.0).then_some((NodeId((self.0 >> 8) as u8), ShardId(self.0 as u8)))
    }

    /// The shard that owns this partition on every node of a cluster with `shards` shards a node.
    #[must_use]
    pub fn shard(self, shards: u8) -> ShardId {
        assert!(shards > 0, "a node has at least one shard");
        match self.undo_home() {
            Some((_, shard)) => shard,
            None => ShardId((self.0 % u32::from(shards)) as u8),
        }
    }
}

impl BlockId {
    /// Puts the two together.
    #[must_use]
    pub const fn new(partition: PartitionId, block: BlockNo) -> BlockId {
        BlockId { partition, block }
    }
}

impl Scn {
    /// Before everything.
    pub const ZERO: Scn = Scn(0);
    /// After everything.
    pub const MAX: Scn = Scn(u64::MAX >> 1);

    /// The first SCN of a millisecond since 1970.
    #[must_use]
    pub const fn from_unix_ms(ms: u64) -> Scn {
        Scn(ms << 16)
    }

    /// The millisecond since 1970 that this SCN fell in (or ran ahead to).
    #[must_use]
    pub const fn unix_ms(self) -> u64 {
        self.0 >> 16
    }

    /// The next SCN.
    #[must_use]
    pub const fn next(self) -> Scn {
        Scn(self.0 + 1)
    }
}

impl Lsn {
    /// The position `bytes` further on.
    #[must_use]
    pub const fn advance(self, bytes: u64) -> Lsn {
        Lsn(self.0 + bytes)
    }
}

impl TxnId {
    const MARK: u64 = 1 << 63;

    /// Puts a transaction's id together; `wrap` counts the uses of the slot.
    #[must_use]
    pub fn new(node: NodeId, shard: ShardId, slot: u16, wrap: u32) -> TxnId {
        assert!(usize::from(node.0) <= NODES_MAX, "{node} is beyond the {NODES_MAX} nodes of a cluster");
        TxnId(Self::MARK | (u64::from(node.0) << 56) | (u64::from(shard.0) << 48) | (u64::from(slot) << 32) | u64::from(wrap))
    }

    /// From its packed form; `None` when bit 63 is clear (then it is an SCN).
    #[must_use]
    pub const fn from_raw(raw: u64) -> Option<TxnId> {
        if raw & Self::MARK != 0 { Some(TxnId(raw)) } else { None }
    }

    /// The packed form.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The node that the transaction runs on.
    #[must_use]
    pub const fn node(self) -> NodeId {
        NodeId(((self.0 >> 56) & 0x7f) as u8)
    }

    /// Its home shard there.
    #[must_use]
    pub const fn shard(self) -> ShardId {
        ShardId(((self.0 >> 48) & 0xff) as u8)
    }

    /// Its slot in the shard's transaction table.
    #[must_use]
    pub const fn slot(self) -> u16 {
        ((self.0 >> 32) & 0xffff) as u16
    }

    /// Which use of the slot it is.
    #[must_use]
    pub const fn wrap(self) -> u32 {
        self.0 as u32
    }
}

/// How numbers with a meaning are written, for people and in traces alike.
macro_rules! shown {
    ($($type:ident => $format:literal),+ $(,)?) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )+};
}
pub(crate) use shown;

shown!(NodeId => "node{}", ShardId => "shard{}", PartitionId => "partition {}", BlockNo => "block {}", Lsn => "lsn {}",
       Epoch => "epoch {}", Incarnation => "incarnation {}", RequestId => "request {}");

impl fmt::Display for Scn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "scn {}.{}", self.unix_ms(), self.0 & 0xffff)
    }
}

impl fmt::Debug for Scn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.block, self.partition)
    }
}

impl fmt::Debug for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "transaction {}.{}.{}.{}", self.node().0, self.shard().0, self.slot(), self.wrap())
    }
}

impl fmt::Debug for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_transaction_id_gives_back_its_parts(node in 1u8..=NODES_MAX as u8, shard in 0u8..SHARDS_MAX as u8, slot: u16, wrap: u32) {
            let id = TxnId::new(NodeId(node), ShardId(shard), slot, wrap);
            prop_assert_eq!((id.node(), id.shard(), id.slot(), id.wrap()), (NodeId(node), ShardId(shard), slot, wrap));
            prop_assert_eq!(TxnId::from_raw(id.raw()), Some(id));
        }
    }

    #[test]
    fn an_scn_is_never_taken_for_a_transaction() {
        assert_eq!(TxnId::from_raw(Scn::from_unix_ms(4_000_000_000_000).0), None);
    }

    #[test]
    fn undo_homes_stay_with_their_shard() {
        let home = PartitionId::undo(NodeId(3), ShardId(2));
        assert_eq!(home.undo_home(), Some((NodeId(3), ShardId(2))));
        assert_eq!(home.shard(4), ShardId(2));
        assert_eq!(PartitionId(65).undo_home(), None);
        assert_eq!(PartitionId(65).shard(4), ShardId(1));
    }
}
