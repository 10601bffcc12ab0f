//! Where everything lies on the volume: a [`Geometry`], computed once when the volume is formatted and kept in the
//! superblock.
//!
//! A plain value, copied to every shard. Bounded by [`BLOCKS_MAX`]. It promises that the parts do not overlap, that the
//! log areas and the data begin on whole extents, and that everything ends within the volume. Drawn in `docs/formats.md`.

use crate::ids::{BLOCK_SIZE, BlockNo, NODES_MAX, NodeId, SHARDS_MAX, ShardId};

/// Unit of durable small writes: one sector of the drives that databases use.
pub const SECTOR: usize = 4096;

/// Blocks of an extent: 256 KiB, the unit in which a partition gets space.
pub const EXTENT_BLOCKS: u64 = 32;

/// Bytes of an extent.
pub const EXTENT_BYTES: u64 = EXTENT_BLOCKS * BLOCK_SIZE as u64;

/// Extents that one space-map block covers, one bit each (16 GB of data).
pub const EXTENTS_PER_SPACE_MAP: u64 = 64_000;

/// Most blocks of a volume: a block number has at most 40 bits.
pub const BLOCKS_MAX: u64 = 1 << 40;

/// Smallest redo area of one shard of one node, in bytes.
pub const REDO_AREA_MIN: u64 = 1 << 20;

/// Largest redo area of one shard of one node, in bytes.
pub const REDO_AREA_MAX: u64 = 64 << 30;

/// Fewest extents of data that a volume is worth making for (8 MiB).
pub const DATA_EXTENTS_MIN: u64 = 32;

const SUPERBLOCKS: [BlockNo; 2] = [BlockNo(0), BlockNo(1)];
const CONTROL: BlockNo = BlockNo(2);
const NODE_SLOTS_FIRST: u64 = 3;

/// The redo area of one shard of one node: a header block with the checkpoint, then the ring that the log goes around in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedoArea {
    /// Whose log it is.
    pub node: NodeId,
    /// Which of that node's shards.
    pub shard: ShardId,
    /// Where the area begins on the volume, in bytes.
    pub offset: u64,
    /// Bytes of the area, its header included. A multiple of [`SECTOR`].
    pub bytes: u64,
    /// The volume's stamp ([`Geometry::stamp`]): content of another volume's life is never taken for this one's.
    pub stamp: u64,
}

impl RedoArea {
    /// Bytes of the header, two sectors with the checkpoint in turns.
    pub const HEADER: u64 = BLOCK_SIZE as u64;

    /// Bytes of the ring.
    #[must_use]
    pub const fn ring_bytes(&self) -> u64 {
        self.bytes - Self::HEADER
    }
}

/// Where the parts of a volume lie, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Names the cluster that the volume belongs to; random, from its formatting.
    pub cluster_id: u128,
    /// Nodes that the volume has slots and redo areas for.
    pub nodes_max: u8,
    /// Shards of each node.
    pub shards: u8,
    /// Blocks of the volume. What a file or device has beyond it is not used.
    pub blocks_total: u64,
    /// Blocks of one redo area, its header block included.
    pub redo_area_blocks: u64,
    /// First block of the redo areas: by node, then by shard.
    pub redo_first: BlockNo,
    /// First of the space-map blocks.
    pub space_maps_first: BlockNo,
    /// Space-map blocks in use; room is left for more, so that a volume can grow.
    pub space_maps: u64,
    /// First block of extent 0.
    pub extents_first: BlockNo,
    /// Extents of the data area.
    pub extents: u64,
}

impl Geometry {
    /// Plans a volume of `volume_bytes`.
    ///
    /// # Errors
    /// The fewest bytes that such a volume needs, when that is more.
    ///
    /// # Panics
    /// When the other parameters are out of their bounds: whoever takes them from an operator checks them first.
    pub fn plan(cluster_id: u128, volume_bytes: u64, nodes_max: u8, shards: u8, redo_area_bytes: u64) -> Result<Geometry, u64> {
        assert!((1..=NODES_MAX).contains(&usize::from(nodes_max)), "{nodes_max} nodes");
        assert!((1..=SHARDS_MAX).contains(&usize::from(shards)), "{shards} shards");
        assert!((REDO_AREA_MIN..=REDO_AREA_MAX).contains(&redo_area_bytes), "a redo area of {redo_area_bytes} bytes");
        let block = BLOCK_SIZE as u64;
        let head = NODE_SLOTS_FIRST + 2 * u64::from(nodes_max);
        let redo_first = head.next_multiple_of(EXTENT_BLOCKS);
        let redo_area_blocks = redo_area_bytes.next_multiple_of(EXTENT_BYTES) / block;
        let space_maps_first = redo_first + redo_area_blocks * u64::from(nodes_max) * u64::from(shards);

        let blocks_total = (volume_bytes / block).min(BLOCKS_MAX);
        let all_extents = blocks_total.saturating_sub(space_maps_first) / EXTENT_BLOCKS;
        // The maps' room is whole extents: each extent of maps covers 32 × 64,000 extents of data.
        let per_maps_extent = EXTENT_BLOCKS * EXTENTS_PER_SPACE_MAP + 1;
        let maps_extents = all_extents.div_ceil(per_maps_extent).max(1);
        let extents = all_extents.saturating_sub(maps_extents);
        if extents < DATA_EXTENTS_MIN {
            return Err((space_maps_first + (1 + DATA_EXTENTS_MIN) * EXTENT_BLOCKS) * block);
        }
        let geometry = Geometry {
            cluster_id,
            nodes_max,
            shards,
            blocks_total,
            redo_area_blocks,
            redo_first: BlockNo(redo_first),
            space_maps_first: BlockNo(space_maps_first),
            space_maps: extents.div_ceil(EXTENTS_PER_SPACE_MAP),
            extents_first: BlockNo(space_maps_first + maps_extents * EXTENT_BLOCKS),
            extents,
        };
        assert!(geometry.is_sound(), "{geometry:?}");
        Ok(geometry)
    }

    /// The redo area that a volume of this size gets when nothing else is asked for: 1/64 of the volume, at least 8 MiB
    /// and at most 256 MiB, and all areas together no more than a quarter of the volume where that leaves 8 MiB each.
    #[must_use]
    pub fn redo_area_default(volume_bytes: u64, nodes_max: u8, shards: u8) -> u64 {
        let areas = u64::from(nodes_max).max(1) * u64::from(shards).max(1);
        let share = (volume_bytes / 64).min(volume_bytes / 4 / areas);
        share.clamp(8 << 20, 256 << 20) / EXTENT_BYTES * EXTENT_BYTES
    }

    /// Whether the parts follow each other without overlap and end within the volume. Holds for every plan; checked
    /// again for what a superblock says.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let areas = u64::from(self.nodes_max) * u64::from(self.shards);
        let redo_end = self.redo_area_blocks.checked_mul(areas).and_then(|blocks| blocks.checked_add(self.redo_first.0));
        let data_end = self.extents.checked_mul(EXTENT_BLOCKS).and_then(|blocks| blocks.checked_add(self.extents_first.0));
        (1..=NODES_MAX).contains(&usize::from(self.nodes_max))
            && (1..=SHARDS_MAX).contains(&usize::from(self.shards))
            && self.redo_area_blocks * BLOCK_SIZE as u64 >= REDO_AREA_MIN
            && self.redo_first.0 >= NODE_SLOTS_FIRST + 2 * u64::from(self.nodes_max)
            && redo_end.is_some_and(|end| end <= self.space_maps_first.0)
            && self.space_maps == self.extents.div_ceil(EXTENTS_PER_SPACE_MAP)
            && self.space_maps_first.0 + self.space_maps <= self.extents_first.0
            && data_end.is_some_and(|end| end <= self.blocks_total)
            && self.blocks_total <= BLOCKS_MAX
    }

    /// Bytes of the volume.
    #[must_use]
    pub const fn volume_bytes(&self) -> u64 {
        self.blocks_total * BLOCK_SIZE as u64
    }

    /// What marks everything written in this life of the volume: half of the cluster's id.
    #[must_use]
    pub const fn stamp(&self) -> u64 {
        self.cluster_id as u64
    }

    /// The two copies of the superblock.
    #[must_use]
    pub const fn superblocks() -> [BlockNo; 2] {
        SUPERBLOCKS
    }

    /// The control block.
    #[must_use]
    pub const fn control_block(&self) -> BlockNo {
        CONTROL
    }

    /// The slot that this node alone writes.
    #[must_use]
    pub fn node_slot(&self, node: NodeId) -> BlockNo {
        BlockNo(NODE_SLOTS_FIRST + self.node_index(node))
    }

    /// The block of the voting area that this node alone writes.
    #[must_use]
    pub fn vote_block(&self, node: NodeId) -> BlockNo {
        BlockNo(NODE_SLOTS_FIRST + u64::from(self.nodes_max) + self.node_index(node))
    }

    /// The redo area of a shard of a node.
    #[must_use]
    pub fn redo_area(&self, node: NodeId, shard: ShardId) -> RedoArea {
        assert!(shard.0 < self.shards, "{shard} of a volume made for {} shards", self.shards);
        let index = self.node_index(node) * u64::from(self.shards) + u64::from(shard.0);
        let bytes = self.redo_area_blocks * BLOCK_SIZE as u64;
        let offset = self.redo_first.0 * BLOCK_SIZE as u64 + index * bytes;
        RedoArea { node, shard, offset, bytes, stamp: self.stamp() }
    }

    /// Every node that the volume has room for.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        (1..=self.nodes_max).map(NodeId)
    }

    /// Every redo area, by node and shard.
    pub fn redo_areas(&self) -> impl Iterator<Item = RedoArea> + use<> {
        let geometry = *self;
        self.nodes().flat_map(move |node| (0..geometry.shards).map(move |shard| geometry.redo_area(node, ShardId(shard))))
    }

    /// First block of an extent.
    #[must_use]
    pub fn extent_block(&self, extent: u64) -> BlockNo {
        assert!(extent < self.extents, "extent {extent} of a volume with {}", self.extents);
        BlockNo(self.extents_first.0 + extent * EXTENT_BLOCKS)
    }

    /// The extent that a data block lies in; `None` for a block outside the data area.
    #[must_use]
    pub fn extent_of(&self, block: BlockNo) -> Option<u64> {
        let extent = block.0.checked_sub(self.extents_first.0)? / EXTENT_BLOCKS;
        (extent < self.extents).then_some(extent)
    }

    /// The space-map block that holds the bit of an extent, and the number of that bit in it.
    #[must_use]
    pub fn space_map_of(&self, extent: u64) -> (BlockNo, u64) {
        assert!(extent < self.extents, "extent {extent} of a volume with {}", self.extents);
        (BlockNo(self.space_maps_first.0 + extent / EXTENTS_PER_SPACE_MAP), extent % EXTENTS_PER_SPACE_MAP)
    }

    /// Extents that the space-map block number `map` (from 0) really covers.
    #[must_use]
    pub fn extents_in_space_map(&self, map: u64) -> u64 {
        assert!(map < self.space_maps, "space map {map} of {}", self.space_maps);
        (self.extents - map * EXTENTS_PER_SPACE_MAP).min(EXTENTS_PER_SPACE_MAP)
    }

    fn node_index(&self, node: NodeId) -> u64 {
        assert!((1..=self.nodes_max).contains(&node.0), "{node} on a volume made for {} nodes", self.nodes_max);
        u64::from(node.0) - 1
    }
}

/// Where a block begins on the volume, in bytes.
#[must_use]
pub const fn block_offset(block: BlockNo) -> u64 {
    block.0 * BLOCK_SIZE as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_plan_is_sound_or_names_the_minimum(
            bytes in 0u64..(40 << 40), nodes in 1u8..=NODES_MAX as u8, shards in 1u8..=SHARDS_MAX as u8, redo in REDO_AREA_MIN..(64 << 20),
        ) {
            match Geometry::plan(1, bytes, nodes, shards, redo) {
                Ok(geometry) => {
                    prop_assert!(geometry.volume_bytes() <= bytes);
                    // Nothing but the last, partial extent is wasted.
                    let end = geometry.extent_block(geometry.extents - 1).0 + EXTENT_BLOCKS;
                    prop_assert!(geometry.blocks_total - end < EXTENT_BLOCKS);
                    let areas: Vec<_> = geometry.redo_areas().collect();
                    prop_assert!(areas.windows(2).all(|pair| pair[0].offset + pair[0].bytes == pair[1].offset));
                    prop_assert!(areas[0].offset >= block_offset(BlockNo(geometry.vote_block(NodeId(nodes)).0 + 1)));
                }
                Err(minimum) => {
                    prop_assert!(minimum > bytes);
                    prop_assert!(Geometry::plan(1, minimum, nodes, shards, redo).is_ok());
                    prop_assert!(Geometry::plan(1, minimum - 1, nodes, shards, redo).is_err());
                }
            }
        }
    }

    #[test]
    fn a_gigabyte_for_eight_nodes_keeps_most_of_it_for_data() {
        let redo = Geometry::redo_area_default(1 << 30, 8, 1);
        assert_eq!(redo, 16 << 20);
        let geometry = Geometry::plan(1, 1 << 30, 8, 1, redo).unwrap();
        assert!(geometry.extents * EXTENT_BYTES > 890 << 20);
        assert_eq!(geometry.space_map_of(geometry.extents - 1), (geometry.space_maps_first, geometry.extents - 1));
        assert_eq!(geometry.extent_of(geometry.extent_block(5)), Some(5));
        assert_eq!(geometry.extent_of(geometry.space_maps_first), None);
    }
}
