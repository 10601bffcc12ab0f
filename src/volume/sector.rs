//! Small durable facts on the volume: one 4 KiB sector each, kept in two copies that are written in turns.
//!
//! Used for the superblock, the control block, the node slots, the votes and the checkpoints of the logs. Each pair has
//! one writer at a time. A write goes to the copy that does not hold the newest content, so that a write torn by a crash
//! leaves the content before it; the reader takes the valid copy with the higher sequence. Drawn in `docs/formats.md`.

use std::fmt;
use std::io;

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::layout::SECTOR;
use crate::reactor::{FileId, IoBuf, Reactor};

/// First bytes of every such sector, and so of every volume.
pub const SECTOR_MAGIC: [u8; 8] = *b"RustyDB\n";

/// Version of the volume's format that this program writes, and the only one that it reads.
pub const VOLUME_FORMAT: u16 = 2;

/// Bytes of the header; the content follows.
pub const SECTOR_HEADER: usize = 32;

/// Bytes of content.
pub const SECTOR_BODY: usize = SECTOR - SECTOR_HEADER;

/// What a sector tells about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum SectorKind {
    /// The volume itself.
    Superblock = 1,
    /// The cluster's life on it.
    Control = 2,
    /// A node.
    NodeSlot = 3,
    /// A node's sign of life.
    Vote = 4,
    /// The checkpoint of a log.
    RedoHeader = 5,
}

impl fmt::Display for SectorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SectorKind::Superblock => "superblock",
            SectorKind::Control => "control block",
            SectorKind::NodeSlot => "node slot",
            SectorKind::Vote => "vote",
            SectorKind::RedoHeader => "redo area header",
        })
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SectorHeader {
    magic: [u8; 8],
    /// crc32c of the sector with this field as zero, and of the place where it lies: its offset in the volume, 8 bytes. So a
    /// sector that was read from, or written to, another place is not taken for the one of this place.
    checksum: U32,
    kind: U16,
    format: U16,
    sequence: U64,
    stamp: U64,
}

const _: () = assert!(size_of::<SectorHeader>() == SECTOR_HEADER);
const CHECKSUM: usize = std::mem::offset_of!(SectorHeader, checksum);

/// Why a sector's bytes are not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectorFault {
    /// All zero.
    Blank,
    /// It does not begin like one of ours.
    NotOurs,
    /// A newer program wrote it.
    NewerFormat(u16),
    /// An older program wrote it.
    OlderFormat(u16),
    /// Its checksum does not fit its bytes, or its place.
    Checksum,
    /// It tells about something else.
    OtherKind(u16),
    /// It belongs to another volume, or to an earlier life of this one.
    OtherVolume,
    /// The end of the file or device comes first.
    CutOff,
}

impl fmt::Display for SectorFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SectorFault::Blank => write!(f, "blank"),
            SectorFault::NotOurs => write!(f, "not written by RustyDB"),
            SectorFault::NewerFormat(format) => write!(f, "of the newer format {format}"),
            SectorFault::OlderFormat(format) => write!(f, "of the older format {format}, which this program does not read"),
            SectorFault::Checksum => write!(f, "damaged (its checksum does not fit its bytes and place)"),
            SectorFault::OtherKind(kind) => write!(f, "of the wrong kind {kind}"),
            SectorFault::OtherVolume => write!(f, "of another volume"),
            SectorFault::CutOff => write!(f, "beyond the end of the file"),
        }
    }
}

/// Completes the header of a sector whose content is in place, and that is to lie at `offset`.
pub fn seal_sector(sector: &mut [u8], offset: u64, kind: SectorKind, sequence: u64, stamp: u64) {
    assert_eq!(sector.len(), SECTOR, "a sector is {SECTOR} bytes");
    let mut header = SectorHeader {
        magic: SECTOR_MAGIC,
        checksum: U32::ZERO,
        kind: U16::new(kind as u16),
        format: U16::new(VOLUME_FORMAT),
        sequence: U64::new(sequence),
        stamp: U64::new(stamp),
    };
    sector[..SECTOR_HEADER].copy_from_slice(header.as_bytes());
    header.checksum = U32::new(checksum(sector, offset));
    sector[..SECTOR_HEADER].copy_from_slice(header.as_bytes());
}

/// Whether the sector is whole, of this place and of this kind (and volume, when `stamp` is given). Gives its sequence.
pub fn verify_sector(sector: &[u8], offset: u64, kind: SectorKind, stamp: Option<u64>) -> Result<u64, SectorFault> {
    if sector.len() < SECTOR {
        return Err(SectorFault::CutOff);
    }
    let (header, _) = SectorHeader::ref_from_prefix(sector).expect("a sector is longer than its header");
    if header.magic != SECTOR_MAGIC {
        return Err(if sector.iter().all(|byte| *byte == 0) { SectorFault::Blank } else { SectorFault::NotOurs });
    }
    if header.format.get() > VOLUME_FORMAT {
        return Err(SectorFault::NewerFormat(header.format.get()));
    }
    if header.format.get() < VOLUME_FORMAT {
        return Err(SectorFault::OlderFormat(header.format.get()));
    }
    if header.checksum.get() != checksum(sector, offset) {
        return Err(SectorFault::Checksum);
    }
    if header.kind.get() != kind as u16 {
        return Err(SectorFault::OtherKind(header.kind.get()));
    }
    if stamp.is_some_and(|stamp| stamp != header.stamp.get()) {
        return Err(SectorFault::OtherVolume);
    }
    Ok(header.sequence.get())
}

fn checksum(sector: &[u8], offset: u64) -> u32 {
    let crc = crc32c::crc32c(&sector[..CHECKSUM]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    let crc = crc32c::crc32c_append(crc, &sector[CHECKSUM + 4..]);
    crc32c::crc32c_append(crc, &offset.to_le_bytes())
}

/// Where the two copies of a sector lie.
#[derive(Clone, Copy, Debug)]
pub struct SectorPair {
    /// What it tells about.
    pub kind: SectorKind,
    /// The volume's stamp; `None` where the stamp is not known yet (the superblock).
    pub stamp: Option<u64>,
    /// Offsets of the copies, in bytes.
    pub offsets: [u64; 2],
}

/// The newer valid copy of a pair.
pub struct PairRead {
    /// How often it was written.
    pub sequence: u64,
    /// The whole sector.
    pub sector: IoBuf,
    /// What was wrong with either copy.
    pub faults: [Option<SectorFault>; 2],
}

impl PairRead {
    /// The content.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.sector.as_slice()[SECTOR_HEADER..]
    }
}

/// Readings of a pair of which a copy is not valid.
const LOADS_OF_A_PAIR: u32 = 4;

impl SectorPair {
    /// A pair in the two sectors that begin at `offset`.
    #[must_use]
    pub const fn adjacent(kind: SectorKind, stamp: u64, offset: u64) -> SectorPair {
        SectorPair { kind, stamp: Some(stamp), offsets: [offset, offset + SECTOR as u64] }
    }

    /// Reads both copies and gives the newer valid one, or what is wrong with each. A copy that is not valid is read again a
    /// few times: what was only damaged on its way from the disk may be the newer one, and going by the older would forget
    /// an epoch, or bring back redo that was released.
    ///
    /// # Errors
    /// The device's, when a copy can't be read at all.
    pub async fn read(&self, reactor: &Reactor, file: FileId) -> io::Result<Result<PairRead, [SectorFault; 2]>> {
        let mut loads = 1;
        loop {
            let read = self.read_once(reactor, file).await?;
            if loads == LOADS_OF_A_PAIR || matches!(read, Ok(PairRead { faults: [None, None], .. })) {
                return Ok(read);
            }
            loads += 1;
        }
    }

    async fn read_once(&self, reactor: &Reactor, file: FileId) -> io::Result<Result<PairRead, [SectorFault; 2]>> {
        let mut faults = [None; 2];
        let mut newest: Option<(u64, IoBuf)> = None;
        for (copy, offset) in self.offsets.into_iter().enumerate() {
            let (result, mut sector) = reactor.read(file, offset, IoBuf::aligned(SECTOR)).await;
            sector.truncate(result?);
            match verify_sector(sector.as_slice(), offset, self.kind, self.stamp) {
                Ok(sequence) if newest.as_ref().is_none_or(|(other, _)| sequence > *other) => newest = Some((sequence, sector)),
                Ok(_) => {}
                Err(fault) => faults[copy] = Some(fault),
            }
        }
        Ok(match newest {
            Some((sequence, sector)) => Ok(PairRead { sequence, sector, faults }),
            None => Err(faults.map(|fault| fault.expect("a copy that is not valid has a fault"))),
        })
    }

    /// Writes the content durably to the copy that `sequence` stands for: one more than the sequence of the last write.
    ///
    /// # Errors
    /// The device's. What the pair held before is still there then.
    pub async fn write(&self, reactor: &Reactor, file: FileId, sequence: u64, stamp: u64, body: &[u8]) -> io::Result<()> {
        assert!(body.len() <= SECTOR_BODY, "{} bytes of content in a sector", body.len());
        let mut sector = IoBuf::aligned(SECTOR);
        sector.as_mut_slice()[SECTOR_HEADER..SECTOR_HEADER + body.len()].copy_from_slice(body);
        let offset = self.offsets[(sequence % 2) as usize];
        seal_sector(sector.as_mut_slice(), offset, self.kind, sequence, stamp);
        reactor.write_durable(file, offset, sector).await.0.map(|_| ())
    }
}
