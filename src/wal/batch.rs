//! How records lie on disk: in batches, one for each write. A batch begins on a sector with a header that carries its own
//! LSN, sequence, length and checksum; no batch crosses the end of the ring.
//!
//! Functions over bytes, without state and without I/O. They promise that a batch is taken only when it is whole, and of
//! this area, this position, and this lap around the ring: what an earlier lap or another life of the volume left there is
//! never mistaken for it. Drawn in `docs/formats.md`.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::area::Ring;
use crate::ids::{Incarnation, Lsn};
use crate::volume::SECTOR;

/// Bytes of a batch's header.
pub const BATCH_HEADER: usize = 64;

/// Bytes of a record's header.
pub const RECORD_HEADER: usize = 8;

/// First bytes of every batch.
pub const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"RDLg");

/// Version of the batch format.
pub const BATCH_FORMAT: u8 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: U32,
    /// crc32c of the batch's `length` bytes with this field as zero.
    checksum: U32,
    first_lsn: U64,
    sequence: U64,
    stamp: U64,
    incarnation: U64,
    length: U32,
    extent: U32,
    records: U32,
    format: u8,
    node: u8,
    shard: u8,
    reserved: [u8; 9],
}

const _: () = assert!(size_of::<Header>() == BATCH_HEADER);
const CHECKSUM: usize = std::mem::offset_of!(Header, checksum);

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RecordHeader {
    length: U32,
    kind: u8,
    reserved: [u8; 3],
}

const _: () = assert!(size_of::<RecordHeader>() == RECORD_HEADER);

/// What a batch's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Where it begins.
    pub start: Lsn,
    /// One more than the batch before it.
    pub sequence: u64,
    /// The life of the node that wrote it.
    pub incarnation: Incarnation,
    /// Bytes of header and records.
    pub length: usize,
    /// Bytes until the next batch: padding to a sector, or to the end of the ring.
    pub extent: usize,
    /// How many records it holds.
    pub records: u32,
}

impl Batch {
    /// Bytes that are written.
    #[must_use]
    pub const fn padded(&self) -> usize {
        self.length.next_multiple_of(SECTOR)
    }

    /// Where the next batch begins.
    #[must_use]
    pub const fn next(&self) -> Lsn {
        Lsn(self.start.0 + self.extent as u64)
    }

    /// Completes `bytes`, the batch's memory with its records in place: header, checksum, padding.
    pub fn seal(&self, ring: &Ring, bytes: &mut [u8]) {
        bytes[self.length..self.padded()].fill(0);
        let area = ring.area();
        let mut header = Header {
            magic: U32::new(BATCH_MAGIC),
            checksum: U32::ZERO,
            first_lsn: U64::new(self.start.0),
            sequence: U64::new(self.sequence),
            stamp: U64::new(area.stamp),
            incarnation: U64::new(self.incarnation.0),
            length: U32::new(self.length as u32),
            extent: U32::new(self.extent as u32),
            records: U32::new(self.records),
            format: BATCH_FORMAT,
            node: area.node.0,
            shard: area.shard.0,
            reserved: [0; 9],
        };
        bytes[..BATCH_HEADER].copy_from_slice(header.as_bytes());
        header.checksum = U32::new(checksum(&bytes[..self.length]));
        bytes[..BATCH_HEADER].copy_from_slice(header.as_bytes());
    }

    /// The batch that begins `bytes`, if its header is one of this ring's at the place of `at`, in whichever lap. The
    /// checksum is not looked at: `bytes` may end before the batch does.
    #[must_use]
    pub fn parse(ring: &Ring, at: Lsn, bytes: &[u8]) -> Option<Batch> {
        let (header, _) = Header::ref_from_prefix(bytes).ok()?;
        let area = ring.area();
        let ours = header.magic.get() == BATCH_MAGIC
            && header.format == BATCH_FORMAT
            && (header.node, header.shard) == (area.node.0, area.shard.0)
            && header.stamp.get() == area.stamp;
        let batch = Batch {
            start: Lsn(header.first_lsn.get()),
            sequence: header.sequence.get(),
            incarnation: Incarnation(header.incarnation.get()),
            length: header.length.get() as usize,
            extent: header.extent.get() as usize,
            records: header.records.get(),
        };
        let fits = batch.start.0 % ring.bytes() == at.0 % ring.bytes()
            && (BATCH_HEADER..=ring.batch_max()).contains(&batch.length)
            && batch.extent >= batch.padded()
            && batch.extent.is_multiple_of(SECTOR)
            && batch.extent as u64 <= ring.to_end(at);
        (ours && fits).then_some(batch)
    }

    /// Whether `bytes` (from the batch's start on) hold this batch whole and unharmed.
    #[must_use]
    pub fn is_whole(&self, bytes: &[u8]) -> bool {
        let Some(bytes) = bytes.get(..self.length) else { return false };
        let (header, _) = Header::ref_from_prefix(bytes).expect("a batch is longer than its header");
        header.checksum.get() == checksum(bytes)
    }
}

/// Bytes that a record with this payload takes in a batch. Records are padded to 8 bytes.
#[must_use]
pub const fn framed(payload_len: usize) -> usize {
    RECORD_HEADER + payload_len.next_multiple_of(8)
}

/// Writes a record to `out`, which has exactly the framed length.
pub fn put_record(out: &mut [u8], kind: u8, payload: &[&[u8]]) {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    assert_eq!(out.len(), framed(length), "a record's place fits it");
    let header = RecordHeader { length: U32::new(length as u32), kind, reserved: [0; 3] };
    out[..RECORD_HEADER].copy_from_slice(header.as_bytes());
    let mut at = RECORD_HEADER;
    for part in payload {
        out[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    out[at..].fill(0);
}

/// The record that begins `bytes`: its kind, its payload, and the bytes that it takes. `None` when it would reach beyond.
#[must_use]
pub fn take_record(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (header, rest) = RecordHeader::ref_from_prefix(bytes).ok()?;
    let payload = rest.get(..header.length.get() as usize)?;
    let whole = framed(payload.len());
    (whole <= bytes.len()).then_some((header.kind, payload, whole))
}

fn checksum(bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&bytes[..CHECKSUM]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &bytes[CHECKSUM + 4..])
}
