//! A change: one deterministic edit of one block, as the redo carries it.
//!
//! Owned by whoever makes or replays it; bounded by the block. The forward path and recovery run the very same
//! [`Change::apply`], and what it does follows from the block's bytes and the change alone: replayed on the same block in
//! the same order, the changes of the redo give the same bytes again.
//!
//! Applying never panics, whatever was decoded: a change that is impossible on the block (redo and block don't belong
//! together) is a [`ChangeFault`], and recovery names the block. On the forward path an impossible change is a bug of the
//! caller, who asserts.
//!
//! A block's identity, SCN and checksum are not a change's business: the cache stamps them. The kind is: `Format` and
//! `FullImage` set it.

use std::fmt;

use super::block::{self, BlockKind};
use super::page::{Page, PageFault, PageMut};

/// One deterministic edit of one block. See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// The block becomes an empty page of this kind; what was in it is forgotten.
    Format {
        /// What the block is from now on.
        kind: BlockKind,
        /// Length of its user header.
        user_len: u16,
        /// The first bytes of the user header; the rest is zero.
        user_header: &'a [u8],
    },
    /// The block becomes this page; what was in it is forgotten. The gap between slots and cells is left out.
    FullImage {
        /// What the block is from now on.
        kind: BlockKind,
        /// From behind the block's header to the end of the slots.
        low: &'a [u8],
        /// From the first cell to the end of the block.
        high: &'a [u8],
    },
    /// A new cell at this slot; the slots from there on move up by one.
    InsertCell {
        /// Where it goes.
        slot: u16,
        /// Its key.
        key: &'a [u8],
        /// Its value.
        value: &'a [u8],
    },
    /// Another key and value for the cell at this slot.
    ReplaceCell {
        /// Which cell.
        slot: u16,
        /// Its key from now on.
        key: &'a [u8],
        /// Its value from now on.
        value: &'a [u8],
    },
    /// Another value for the cell at this slot; its key stays.
    ReplaceValue {
        /// Which cell.
        slot: u16,
        /// Its value from now on.
        value: &'a [u8],
    },
    /// The cell goes; the slots above it move down by one.
    RemoveCell {
        /// Which cell.
        slot: u16,
    },
    /// The cells from this slot on go.
    TruncateCells {
        /// The first that goes; may be the number of cells.
        from: u16,
    },
    /// Bytes overwritten in place: in the user header, or within one cell's key and value.
    Patch {
        /// First byte, counted from the start of the block.
        offset: u16,
        /// What stands there from now on.
        bytes: &'a [u8],
    },
}

/// Why a change could not be decoded or applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeFault {
    /// The bytes end in the middle of a change.
    Truncated,
    /// The tag is none of ours.
    UnknownTag(u8),
    /// The block kind is none of ours.
    UnknownKind(u8),
    /// A number is longer than it may be.
    Number,
    /// The block can't take the change.
    Impossible(PageFault),
}

impl fmt::Display for ChangeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChangeFault::Truncated => write!(f, "the redo ends in the middle of a change"),
            ChangeFault::UnknownTag(tag) => {
                write!(f, "a change of the unknown type {tag}: written by a newer version, or corrupt")
            }
            ChangeFault::UnknownKind(kind) => {
                write!(f, "a block of the unknown kind {kind}: written by a newer version, or corrupt")
            }
            ChangeFault::Number => write!(f, "a number in a change is out of range"),
            ChangeFault::Impossible(fault) => write!(f, "the block can't take the change: {fault}"),
        }
    }
}

impl std::error::Error for ChangeFault {}

impl From<PageFault> for ChangeFault {
    fn from(fault: PageFault) -> ChangeFault {
        ChangeFault::Impossible(fault)
    }
}

const FORMAT: u8 = 1;
const FULL_IMAGE: u8 = 2;
const INSERT: u8 = 3;
const REPLACE: u8 = 4;
const REPLACE_VALUE: u8 = 5;
const REMOVE: u8 = 6;
const TRUNCATE: u8 = 7;
const PATCH: u8 = 8;

impl<'a> Change<'a> {
    /// The image of a whole block, as it stands.
    #[must_use]
    pub fn full_image(block: &'a [u8]) -> Change<'a> {
        let (low, high) = Page::new(block).halves();
        Change::FullImage { kind: block::kind(block).expect("the image of a formatted block"), low, high }
    }

    /// Whether the block's former content doesn't matter: replay may start here without reading the block.
    #[must_use]
    pub fn starts_afresh(&self) -> bool {
        matches!(self, Change::Format { .. } | Change::FullImage { .. })
    }

    /// Edits the block. After an error the block may be half edited and must be thrown away.
    pub fn apply(&self, block: &mut [u8]) -> Result<(), ChangeFault> {
        match *self {
            Change::Format { kind, user_len, user_header } => {
                PageMut::format(block, usize::from(user_len), user_header)?;
                block::set_kind(block, kind);
            }
            Change::FullImage { kind, low, high } => {
                PageMut::restore(block, low, high)?;
                block::set_kind(block, kind);
            }
            Change::InsertCell { slot, key, value } => PageMut::new(block).insert(slot, key, value)?,
            Change::ReplaceCell { slot, key, value } => PageMut::new(block).replace(slot, key, value)?,
            Change::ReplaceValue { slot, value } => PageMut::new(block).replace_value(slot, value)?,
            Change::RemoveCell { slot } => PageMut::new(block).remove(slot)?,
            Change::TruncateCells { from } => PageMut::new(block).truncate(from)?,
            Change::Patch { offset, bytes } => PageMut::new(block).patch(usize::from(offset), bytes)?,
        }
        Ok(())
    }

    /// Most bytes that [`Change::encode`] appends for this change.
    #[must_use]
    pub fn encoded_len_max(&self) -> usize {
        const FIXED: usize = 12;
        FIXED
            + match self {
                Change::Format { user_header, .. } => user_header.len(),
                Change::FullImage { low, high, .. } => low.len() + high.len(),
                Change::InsertCell { key, value, .. } | Change::ReplaceCell { key, value, .. } => key.len() + value.len(),
                Change::ReplaceValue { value, .. } => value.len(),
                Change::RemoveCell { .. } | Change::TruncateCells { .. } => 0,
                Change::Patch { bytes, .. } => bytes.len(),
            }
    }

    /// Appends the change as the redo carries it: a tag byte, its numbers as varints, its bytes with their length before.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Change::Format { kind, user_len, user_header } => {
                out.extend([FORMAT, kind as u8]);
                put_varint(out, u64::from(user_len));
                put_bytes(out, user_header);
            }
            Change::FullImage { kind, low, high } => {
                out.extend([FULL_IMAGE, kind as u8]);
                put_bytes(out, low);
                put_bytes(out, high);
            }
            Change::InsertCell { slot, key, value } => put_cell(out, INSERT, slot, key, value),
            Change::ReplaceCell { slot, key, value } => put_cell(out, REPLACE, slot, key, value),
            Change::ReplaceValue { slot, value } => {
                put_slot(out, REPLACE_VALUE, slot);
                put_bytes(out, value);
            }
            Change::RemoveCell { slot } => put_slot(out, REMOVE, slot),
            Change::TruncateCells { from } => put_slot(out, TRUNCATE, from),
            Change::Patch { offset, bytes } => {
                put_slot(out, PATCH, offset);
                put_bytes(out, bytes);
            }
        }
    }

    /// Takes one change off the front of `input`. Borrows from it, allocates nothing.
    pub fn decode(input: &mut &'a [u8]) -> Result<Change<'a>, ChangeFault> {
        Ok(match take_byte(input)? {
            FORMAT => Change::Format { kind: take_kind(input)?, user_len: take_u16(input)?, user_header: take_bytes(input)? },
            FULL_IMAGE => Change::FullImage { kind: take_kind(input)?, low: take_bytes(input)?, high: take_bytes(input)? },
            INSERT => Change::InsertCell { slot: take_u16(input)?, key: take_bytes(input)?, value: take_bytes(input)? },
            REPLACE => Change::ReplaceCell { slot: take_u16(input)?, key: take_bytes(input)?, value: take_bytes(input)? },
            REPLACE_VALUE => Change::ReplaceValue { slot: take_u16(input)?, value: take_bytes(input)? },
            REMOVE => Change::RemoveCell { slot: take_u16(input)? },
            TRUNCATE => Change::TruncateCells { from: take_u16(input)? },
            PATCH => Change::Patch { offset: take_u16(input)?, bytes: take_bytes(input)? },
            tag => return Err(ChangeFault::UnknownTag(tag)),
        })
    }
}

fn put_slot(out: &mut Vec<u8>, tag: u8, slot: u16) {
    out.push(tag);
    put_varint(out, u64::from(slot));
}

fn put_cell(out: &mut Vec<u8>, tag: u8, slot: u16, key: &[u8], value: &[u8]) {
    put_slot(out, tag, slot);
    put_bytes(out, key);
    put_bytes(out, value);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a number, seven bits a byte, the lowest first; the top bit says that more follow.
pub fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Takes a number that [`put_varint`] wrote off the front of `input`.
pub fn take_varint(input: &mut &[u8]) -> Result<u64, ChangeFault> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take_byte(input)?;
        let bits = u64::from(byte & 0x7f);
        if (bits << shift) >> shift != bits {
            return Err(ChangeFault::Number);
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(ChangeFault::Number)
}

fn take_byte(input: &mut &[u8]) -> Result<u8, ChangeFault> {
    let (&byte, rest) = input.split_first().ok_or(ChangeFault::Truncated)?;
    *input = rest;
    Ok(byte)
}

fn take_kind(input: &mut &[u8]) -> Result<BlockKind, ChangeFault> {
    let kind = take_byte(input)?;
    BlockKind::from_u8(kind).ok_or(ChangeFault::UnknownKind(kind))
}

fn take_u16(input: &mut &[u8]) -> Result<u16, ChangeFault> {
    u16::try_from(take_varint(input)?).map_err(|_| ChangeFault::Number)
}

fn take_bytes<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], ChangeFault> {
    let len = usize::from(take_u16(input)?);
    let (bytes, rest) = input.split_at_checked(len).ok_or(ChangeFault::Truncated)?;
    *input = rest;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
