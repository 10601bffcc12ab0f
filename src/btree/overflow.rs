//! Overflow chains: values that are too large for a leaf, in blocks of their own.
//!
//! Owned by the partition's shard. A chain is written from its end to its beginning, each block in a redo group of its own,
//! and only then referred to by a cell; after a crash in between it is lost space, never a dangling reference. Nobody
//! changes a chain once it is written: a new value is a new chain, and the old one is freed when no snapshot can see it.
//! Bounded by [`LENGTH_MAX`]; reading and writing hold one block at a time.

use super::error::TreeError;
use super::space::Urgency;
use super::tree::Tree;
use crate::ids::BlockNo;
use crate::volume::block::{self, BlockKind};
use crate::volume::change::Change;
use crate::volume::page::{Page, cell_bytes, page_capacity};

/// Longest value, in bytes. A little more than the 64 MiB promised to rows, for their encoding.
pub const LENGTH_MAX: u64 = 80 << 20;

/// Bytes of an [`OverflowRef`] in a cell.
pub const REF_LEN: usize = 16;

/// Bytes of the value in one block.
pub const CHUNK: usize = page_capacity(CHAIN_HEADER) - cell_bytes(0, 0);

const CHAIN_HEADER: usize = 16;

/// Blocks claimed at a time.
const BATCH: usize = 30;

/// Redo of one block of a chain, in bytes.
const BLOCK_REDO_MAX: usize = CHUNK + 512;

/// Refers to a chain, from a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverflowRef {
    /// The first block.
    pub first: BlockNo,
    /// Length of the value in bytes.
    pub length: u64,
}

impl OverflowRef {
    /// As it stands in a cell.
    #[must_use]
    pub fn encode(self) -> [u8; REF_LEN] {
        let mut bytes = [0; REF_LEN];
        bytes[..8].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[8..].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    /// From a cell. `None` when it can't be one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<OverflowRef> {
        let bytes: &[u8; REF_LEN] = bytes.try_into().ok()?;
        let first = BlockNo(u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")));
        let length = u64::from_le_bytes(bytes[8..].try_into().expect("eight bytes"));
        (first.0 != 0 && length > 0 && length <= LENGTH_MAX).then_some(OverflowRef { first, length })
    }
}

/// One block of a chain, taken apart.
struct Link<'a> {
    next: Option<BlockNo>,
    chunk: &'a [u8],
}

impl Tree {
    /// Writes a value as a chain. The caller holds no block, and puts the reference into a cell; when he doesn't get there,
    /// he frees the chain.
    ///
    /// # Errors
    /// No space, or a block that can't be had; what was written so far has been freed again as far as possible.
    ///
    /// # Panics
    /// When the value is empty or longer than [`LENGTH_MAX`].
    pub async fn write_overflow(&self, value: &[u8], urgency: Urgency) -> Result<OverflowRef, TreeError> {
        let length = value.len() as u64;
        assert!(length > 0 && length <= LENGTH_MAX, "a value of {length} bytes for an overflow chain");
        let mut written = None;
        match self.write_chain(value, urgency, &mut written).await {
            Ok(first) => Ok(OverflowRef { first, length }),
            Err(error) => {
                // The part that stands is whole in itself; if it can't be freed, then the first error tells more.
                if let Some((first, length)) = written {
                    let _ = self.free_overflow(OverflowRef { first, length }).await;
                }
                Err(error)
            }
        }
    }

    async fn write_chain(
        &self,
        value: &[u8],
        urgency: Urgency,
        written: &mut Option<(BlockNo, u64)>,
    ) -> Result<BlockNo, TreeError> {
        let mut chunks = value.chunks(CHUNK).rev().peekable();
        let mut remaining = chunks.len();
        while remaining > 0 {
            let mut claim = self.space.claim(self.home, remaining.min(BATCH), urgency).await?;
            for chunk in chunks.by_ref().take(claim.blocks().len()) {
                let claim = claim.take(1);
                let block = claim.blocks()[0];
                let mut mtr = self.cache.begin_mtr(BLOCK_REDO_MAX).await?;
                let mut headers = claim.lock().await?;
                let mut guard = self.cache.create(self.id(block)).await?;
                claim.mark(&mut mtr, &mut headers);
                let (next, after) = written.map_or((0, 0), |(next, length): (BlockNo, u64)| (next.0, length));
                let length = after + chunk.len() as u64;
                let mut header = [0; CHAIN_HEADER];
                header[..8].copy_from_slice(&next.to_le_bytes());
                header[8..].copy_from_slice(&length.to_le_bytes());
                let (kind, user_len) = (BlockKind::Overflow, CHAIN_HEADER as u16);
                mtr.change(&mut guard, &Change::Format { kind, user_len, user_header: &header });
                mtr.change(&mut guard, &Change::InsertCell { slot: 0, key: &[], value: chunk });
                mtr.finish();
                *written = Some((block, length));
                remaining -= 1;
            }
        }
        Ok(written.expect("a value has at least one block").0)
    }

    /// Gives a chain's value to `take`, a block at a time and in order. `take` runs while the block is held.
    ///
    /// # Errors
    /// A block that can't be had, or that does not belong to the chain.
    pub async fn read_overflow(&self, chain: OverflowRef, take: &mut dyn FnMut(&[u8])) -> Result<(), TreeError> {
        let (mut at, mut left) = (Some(chain.first), chain.length);
        while left > 0 {
            let block = at.ok_or_else(|| self.broken_chain(chain.first))?;
            let guard = self.read_block(block).await?;
            let link = self.link(block, &guard, left)?;
            take(link.chunk);
            left -= link.chunk.len() as u64;
            at = link.next;
        }
        Ok(())
    }

    /// The whole value of a chain.
    ///
    /// # Errors
    /// As [`Tree::read_overflow`].
    pub async fn overflow_value(&self, chain: OverflowRef) -> Result<Vec<u8>, TreeError> {
        let mut value = Vec::with_capacity(chain.length as usize);
        self.read_overflow(chain, &mut |chunk| value.extend_from_slice(chunk)).await?;
        Ok(value)
    }

    /// The blocks of a chain, in order.
    ///
    /// # Errors
    /// As [`Tree::read_overflow`].
    pub async fn overflow_blocks(&self, chain: OverflowRef) -> Result<Vec<BlockNo>, TreeError> {
        let (mut at, mut left, mut blocks) = (Some(chain.first), chain.length, Vec::new());
        while left > 0 {
            let block = at.ok_or_else(|| self.broken_chain(chain.first))?;
            let guard = self.read_block(block).await?;
            let link = self.link(block, &guard, left)?;
            left -= link.chunk.len() as u64;
            at = link.next;
            blocks.push(block);
        }
        Ok(blocks)
    }

    /// Frees a chain's blocks. Nobody may refer to it any more. A crash in between loses the rest of the blocks.
    ///
    /// # Errors
    /// As [`Tree::read_overflow`]; what was freed until then stays freed.
    pub async fn free_overflow(&self, chain: OverflowRef) -> Result<(), TreeError> {
        let blocks = self.overflow_blocks(chain).await?;
        for part in blocks.chunks(BATCH) {
            self.space.free(self.home, part).await?;
        }
        Ok(())
    }

    /// A block of a chain from which `left` bytes are still to come, this block's included.
    fn link<'a>(&self, at: BlockNo, block: &'a [u8], left: u64) -> Result<Link<'a>, TreeError> {
        let broken = || self.broken_chain(at);
        if block::kind(block) != Some(BlockKind::Overflow) {
            return Err(broken());
        }
        let page = Page::new(block);
        let header: &[u8; CHAIN_HEADER] = page.user_header().try_into().map_err(|_| broken())?;
        let next = u64::from_le_bytes(header[..8].try_into().expect("eight bytes"));
        let length = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
        if length != left || page.count() != 1 || page.value(0).is_empty() || page.value(0).len() as u64 > left {
            return Err(broken());
        }
        Ok(Link { next: (next != 0).then_some(BlockNo(next)), chunk: page.value(0) })
    }

    fn broken_chain(&self, at: BlockNo) -> TreeError {
        TreeError::Corrupt { block: self.id(at), what: "it is not the block of the overflow chain that leads here" }
    }
}
