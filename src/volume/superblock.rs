//! The superblock: what a volume is, and its geometry. Two copies, in blocks 0 and 1.
//!
//! Written when the volume is formatted and read when it is opened; a plain value in between. It fits one sector, so that
//! a tear can't hide in it.

use zerocopy::byteorder::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::layout::{EXTENT_BLOCKS, Geometry, block_offset};
use super::sector::{SectorKind, SectorPair};
use crate::ids::{BLOCK_SIZE, BlockNo};

/// Longest name of a cluster, in bytes.
pub const CLUSTER_NAME_MAX: usize = 63;

/// What the superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Name of the cluster, as in its configuration.
    pub cluster_name: String,
    /// When the volume was formatted, in milliseconds since 1970.
    pub formatted_ms: u64,
    /// Where everything lies.
    pub geometry: Geometry,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Body {
    cluster_id: U128,
    cluster_name: [u8; 64],
    formatted_ms: U64,
    block_size: U32,
    extent_blocks: U32,
    nodes_max: u8,
    shards: u8,
    reserved: [u8; 6],
    blocks_total: U64,
    redo_area_blocks: U64,
    redo_first: U64,
    space_maps_first: U64,
    space_maps: U64,
    extents_first: U64,
    extents: U64,
}

const _: () = assert!(size_of::<Body>() == 160);

/// The two copies.
#[must_use]
pub fn superblock_pair() -> SectorPair {
    SectorPair { kind: SectorKind::Superblock, stamp: None, offsets: Geometry::superblocks().map(block_offset) }
}

impl Superblock {
    /// The content of the sector.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut cluster_name = [0; 64];
        let name = self.cluster_name.as_bytes();
        assert!(name.len() <= CLUSTER_NAME_MAX, "a cluster's name has at most {CLUSTER_NAME_MAX} bytes");
        cluster_name[..name.len()].copy_from_slice(name);
        let geometry = &self.geometry;
        let body = Body {
            cluster_id: U128::new(geometry.cluster_id),
            cluster_name,
            formatted_ms: U64::new(self.formatted_ms),
            block_size: U32::new(BLOCK_SIZE as u32),
            extent_blocks: U32::new(EXTENT_BLOCKS as u32),
            nodes_max: geometry.nodes_max,
            shards: geometry.shards,
            reserved: [0; 6],
            blocks_total: U64::new(geometry.blocks_total),
            redo_area_blocks: U64::new(geometry.redo_area_blocks),
            redo_first: U64::new(geometry.redo_first.0),
            space_maps_first: U64::new(geometry.space_maps_first.0),
            space_maps: U64::new(geometry.space_maps),
            extents_first: U64::new(geometry.extents_first.0),
            extents: U64::new(geometry.extents),
        };
        body.as_bytes().to_vec()
    }

    /// From the content of a valid sector.
    ///
    /// # Errors
    /// What this program can't work with, in words.
    pub fn decode(body: &[u8]) -> Result<Superblock, String> {
        let (body, _) = Body::ref_from_prefix(body).map_err(|_| "the superblock is cut off".to_owned())?;
        if body.block_size.get() != BLOCK_SIZE as u32 || u64::from(body.extent_blocks.get()) != EXTENT_BLOCKS {
            return Err(format!(
                "its blocks have {} bytes and its extents {} blocks; this program works with {BLOCK_SIZE} and {EXTENT_BLOCKS}",
                body.block_size, body.extent_blocks
            ));
        }
        let length = body.cluster_name.iter().position(|byte| *byte == 0).unwrap_or(body.cluster_name.len());
        let cluster_name = String::from_utf8_lossy(&body.cluster_name[..length]).into_owned();
        let geometry = Geometry {
            cluster_id: body.cluster_id.get(),
            nodes_max: body.nodes_max,
            shards: body.shards,
            blocks_total: body.blocks_total.get(),
            redo_area_blocks: body.redo_area_blocks.get(),
            redo_first: BlockNo(body.redo_first.get()),
            space_maps_first: BlockNo(body.space_maps_first.get()),
            space_maps: body.space_maps.get(),
            extents_first: BlockNo(body.extents_first.get()),
            extents: body.extents.get(),
        };
        if !geometry.is_sound() {
            return Err(format!("its parts overlap or leave the volume: {geometry:?}"));
        }
        Ok(Superblock { cluster_name, formatted_ms: body.formatted_ms.get(), geometry })
    }
}
