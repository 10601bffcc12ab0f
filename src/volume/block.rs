//! The header that begins every 8 KiB block of the data area, and the checksum over the whole block.
//!
//! Functions over a block's bytes, without state: whoever holds the block's guard (or the buffer of the read or write)
//! owns them. They promise that a block read from disk or received from a node is either the block that was asked for,
//! bit for bit as it was sealed, or a [`BlockFault`] that names what is wrong; it is never other data.
//!
//! While a block is cached and changing, its checksum is out of date; [`seal`] brings it up to date just before the block
//! leaves memory. The header is drawn in `docs/formats.md`.

use std::fmt;

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ids::{BLOCK_SIZE, BlockId, BlockNo, PartitionId, Scn};

/// Bytes of the header of every block.
pub const BLOCK_HEADER: usize = 64;

/// First bytes of every block that was ever written.
pub const BLOCK_MAGIC: u32 = u32::from_le_bytes(*b"RDBk");

/// Version of the block format that this program writes, and the newest that it reads.
pub const BLOCK_FORMAT: u8 = 1;

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BlockKind {
    /// Formatted, and not in use.
    Free = 0,
    /// Which extents of the volume are taken.
    SpaceMap = 1,
    /// Which blocks of an extent are taken, and the chain of a partition's extents.
    ExtentHeader = 2,
    /// Inner node of a B-link tree.
    TreeInner = 3,
    /// Leaf of a B-link tree.
    TreeLeaf = 4,
    /// A part of a value that is too large for a leaf.
    Overflow = 5,
    /// Transaction table of one shard of one node.
    UndoHeader = 6,
    /// Older versions of rows.
    Undo = 7,
}

impl BlockKind {
    /// From its byte; `None` for a kind that this version does not know.
    #[must_use]
    pub fn from_u8(byte: u8) -> Option<BlockKind> {
        use BlockKind::*;
        [Free, SpaceMap, ExtentHeader, TreeInner, TreeLeaf, Overflow, UndoHeader, Undo].get(usize::from(byte)).copied()
    }
}

/// The header as it lies on disk and on the wire, little-endian.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct BlockHeader {
    magic: U32,
    format: u8,
    flags: u8,
    kind: u8,
    reserved_byte: u8,
    /// crc32c of the whole block with this field as zero.
    checksum: U32,
    partition: U32,
    block: U64,
    scn: U64,
    reserved: [u8; 32],
}

const _: () = assert!(size_of::<BlockHeader>() == BLOCK_HEADER);
const CHECKSUM: usize = std::mem::offset_of!(BlockHeader, checksum);
const KIND: usize = std::mem::offset_of!(BlockHeader, kind);

/// Why bytes are not the block that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockFault {
    /// All zero: the block was allocated on the volume, and never written.
    NeverWritten,
    /// The first bytes are not those of a block.
    NotABlock {
        /// What stands there.
        magic: u32,
    },
    /// Written by a newer version of the program.
    NewerFormat {
        /// The version found.
        format: u8,
    },
    /// The bytes are not those that were written: bit rot, or half of a write.
    Checksum {
        /// What the header says.
        stored: u32,
        /// What the bytes give.
        computed: u32,
    },
    /// A whole and valid block, but another one: a write or a read went astray.
    OtherBlock {
        /// The one found.
        found: BlockId,
    },
    /// A kind that this version does not know.
    UnknownKind {
        /// Its number.
        kind: u8,
    },
}

impl fmt::Display for BlockFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BlockFault::NeverWritten => write!(f, "it was never written (all zero)"),
            BlockFault::NotABlock { magic } => write!(f, "it does not begin like a block (found {magic:#010x})"),
            BlockFault::NewerFormat { format } => {
                write!(f, "its format {format} is newer than this program's {BLOCK_FORMAT}; use the newer program")
            }
            BlockFault::Checksum { stored, computed } => {
                write!(f, "its checksum does not fit its bytes (stored {stored:#010x}, computed {computed:#010x})")
            }
            BlockFault::OtherBlock { found } => write!(f, "{found} stands in its place"),
            BlockFault::UnknownKind { kind } => write!(f, "its kind {kind} is unknown to this version"),
        }
    }
}

impl std::error::Error for BlockFault {}

/// Makes `block` an empty block of this kind and name: header set, everything behind it zero, SCN zero.
pub fn format_block(block: &mut [u8], id: BlockId, kind: BlockKind) {
    block.fill(0);
    *header_mut(block) = BlockHeader {
        magic: U32::new(BLOCK_MAGIC),
        format: BLOCK_FORMAT,
        flags: 0,
        kind: kind as u8,
        reserved_byte: 0,
        checksum: U32::ZERO,
        partition: U32::new(id.partition.0),
        block: U64::new(id.block.0),
        scn: U64::ZERO,
        reserved: [0; 32],
    };
}

/// Stamps who the block is, without touching its kind, SCN or body. For a block that was brought into being by redo or by
/// a fresh frame.
pub fn set_identity(block: &mut [u8], id: BlockId) {
    let header = header_mut(block);
    header.magic = U32::new(BLOCK_MAGIC);
    header.format = BLOCK_FORMAT;
    header.partition = U32::new(id.partition.0);
    header.block = U64::new(id.block.0);
}

/// Computes and stores the checksum. The last thing before the block is written or sent.
pub fn seal(block: &mut [u8]) {
    let checksum = checksum(block);
    header_mut(block).checksum = U32::new(checksum);
}

/// Whether `block` is the block `id`, bit for bit as it was sealed.
pub fn verify(block: &[u8], id: BlockId) -> Result<(), BlockFault> {
    let header = header(block);
    if header.magic.get() != BLOCK_MAGIC {
        if block.iter().all(|byte| *byte == 0) {
            return Err(BlockFault::NeverWritten);
        }
        return Err(BlockFault::NotABlock { magic: header.magic.get() });
    }
    if header.format > BLOCK_FORMAT {
        return Err(BlockFault::NewerFormat { format: header.format });
    }
    let computed = checksum(block);
    if computed != header.checksum.get() {
        return Err(BlockFault::Checksum { stored: header.checksum.get(), computed });
    }
    let found = block_id(block);
    if found != id {
        return Err(BlockFault::OtherBlock { found });
    }
    if BlockKind::from_u8(header.kind).is_none() {
        return Err(BlockFault::UnknownKind { kind: header.kind });
    }
    Ok(())
}

/// What the block's header says it is called.
#[must_use]
pub fn block_id(block: &[u8]) -> BlockId {
    let header = header(block);
    BlockId::new(PartitionId(header.partition.get()), BlockNo(header.block.get()))
}

/// SCN of the last logged change to the block.
#[must_use]
pub fn block_scn(block: &[u8]) -> Scn {
    Scn(header(block).scn.get())
}

/// Stamps the SCN of a change. It never goes back.
pub fn set_scn(block: &mut [u8], scn: Scn) {
    let header = header_mut(block);
    assert!(scn.0 >= header.scn.get(), "the SCN of a block goes back from {} to {scn}", Scn(header.scn.get()));
    header.scn = U64::new(scn.0);
}

/// The block's kind; `None` when this version does not know it.
#[inline]
#[must_use]
pub fn kind(block: &[u8]) -> Option<BlockKind> {
    BlockKind::from_u8(block[KIND])
}

/// Changes the block's kind.
pub fn set_kind(block: &mut [u8], kind: BlockKind) {
    block[KIND] = kind as u8;
}

fn checksum(block: &[u8]) -> u32 {
    assert_eq!(block.len(), BLOCK_SIZE, "a block is {BLOCK_SIZE} bytes");
    let crc = crc32c::crc32c(&block[..CHECKSUM]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &block[CHECKSUM + 4..])
}

fn header(block: &[u8]) -> &BlockHeader {
    BlockHeader::ref_from_bytes(&block[..BLOCK_HEADER]).expect("the header has no alignment and exactly this length")
}

fn header_mut(block: &mut [u8]) -> &mut BlockHeader {
    BlockHeader::mut_from_bytes(&mut block[..BLOCK_HEADER]).expect("the header has no alignment and exactly this length")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: BlockId = BlockId::new(PartitionId(7), BlockNo(99));

    fn sealed() -> Vec<u8> {
        let mut block = vec![0; BLOCK_SIZE];
        format_block(&mut block, ID, BlockKind::TreeLeaf);
        set_scn(&mut block, Scn(5));
        block[BLOCK_SIZE - 1] = 0xAA;
        seal(&mut block);
        block
    }

    #[test]
    fn a_sealed_block_is_itself_and_nothing_else() {
        let block = sealed();
        assert_eq!(verify(&block, ID), Ok(()));
        assert_eq!((block_id(&block), block_scn(&block), kind(&block)), (ID, Scn(5), Some(BlockKind::TreeLeaf)));
        let other = BlockId::new(PartitionId(7), BlockNo(100));
        assert_eq!(verify(&block, other), Err(BlockFault::OtherBlock { found: ID }));
        assert_eq!(verify(&vec![0; BLOCK_SIZE], ID), Err(BlockFault::NeverWritten));
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let block = sealed();
        for bit in (0..BLOCK_SIZE * 8).step_by(61).chain(0..BLOCK_HEADER * 8) {
            let mut broken = block.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(&broken, ID).is_err(), "bit {bit}");
        }
    }

    #[test]
    #[should_panic(expected = "goes back")]
    fn an_scn_never_goes_back() {
        set_scn(&mut sealed(), Scn(4));
    }
}
