//! The ring that a log goes around in, and the header of its redo area, which holds the checkpoint.
//!
//! Plain arithmetic, and one [`SectorPair`] that only the log's own shard writes (and, after the node's death, the node
//! that recovers it). LSNs count bytes including padding, so a position on disk follows from the LSN alone.

use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::LogError;
use super::{BATCH_MAX, FIRST_LSN};
use crate::ids::{Incarnation, Lsn, Scn};
use crate::reactor::{FileId, Reactor};
use crate::volume::sector::{SectorFault, SectorKind, SectorPair};
use crate::volume::{RedoArea, SECTOR};

/// Where LSNs lie in a redo area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    area: RedoArea,
}

impl Ring {
    /// The ring of an area.
    #[must_use]
    pub fn new(area: RedoArea) -> Ring {
        let ring = Ring { area };
        let sound = ring.bytes().is_multiple_of(SECTOR as u64) && ring.batch_max() >= 4 * SECTOR;
        assert!(sound, "a redo area of {} bytes is too small or not whole sectors", area.bytes);
        ring
    }

    /// The area.
    #[must_use]
    pub const fn area(&self) -> &RedoArea {
        &self.area
    }

    /// Bytes of the ring.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.area.ring_bytes()
    }

    /// Where a position lies on the volume, in bytes.
    #[must_use]
    pub const fn offset(&self, lsn: Lsn) -> u64 {
        self.area.offset + RedoArea::HEADER + lsn.0 % self.bytes()
    }

    /// Bytes from a position to the end of the ring, where LSNs wrap around to its start. Never 0.
    #[must_use]
    pub const fn to_end(&self, lsn: Lsn) -> u64 {
        self.bytes() - lsn.0 % self.bytes()
    }

    /// Most bytes of one batch in this ring: [`BATCH_MAX`], or an eighth of a small ring.
    #[must_use]
    pub fn batch_max(&self) -> usize {
        let eighth = (self.bytes() / 8).min(BATCH_MAX as u64) as usize;
        eighth / SECTOR * SECTOR
    }
}

/// From where on a log must be read after a crash: everything before it is in the blocks on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Start of a batch.
    pub lsn: Lsn,
    /// The sequence of that batch.
    pub batch_sequence: u64,
    /// The life of the node that wrote that batch, or that was to write it: none before it counts from there on.
    pub incarnation: Incarnation,
    /// An SCN that the node's clock had reached.
    pub scn: Scn,
    /// How often the header was written.
    pub generation: u64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Body {
    node: u8,
    shard: u8,
    reserved: [u8; 6],
    lsn: U64,
    batch_sequence: U64,
    incarnation: U64,
    scn: U64,
}

const _: () = assert!(size_of::<Body>() == 40);

impl Checkpoint {
    /// Of a log that was never written.
    pub const NEW: Checkpoint =
        Checkpoint { lsn: FIRST_LSN, batch_sequence: 1, incarnation: Incarnation(0), scn: Scn::ZERO, generation: 0 };

    /// Reads the checkpoint of an area.
    ///
    /// # Errors
    /// [`LogError::HeaderDamaged`] when neither copy is usable; the device's.
    pub async fn read(reactor: &Reactor, file: FileId, area: &RedoArea) -> Result<Checkpoint, LogError> {
        let read = pair(area).read(reactor, file).await.map_err(|error| LogError::io(area, "read its header", &error))?;
        let read = match read {
            Ok(read) => read,
            // Copy 0 is written second: when it is blank, at most one write was tried, and nothing was freed by it.
            Err([SectorFault::Blank, _]) => return Ok(Checkpoint::NEW),
            Err(faults) => return Err(LogError::HeaderDamaged { node: area.node, shard: area.shard, faults }),
        };
        let (body, _) = Body::ref_from_prefix(read.body()).expect("a sector holds more than this");
        if (body.node, body.shard) != (area.node.0, area.shard.0) {
            let faults = [SectorFault::OtherVolume; 2];
            return Err(LogError::HeaderDamaged { node: area.node, shard: area.shard, faults });
        }
        Ok(Checkpoint {
            lsn: Lsn(body.lsn.get()),
            batch_sequence: body.batch_sequence.get(),
            incarnation: Incarnation(body.incarnation.get()),
            scn: Scn(body.scn.get()),
            generation: read.sequence,
        })
    }

    /// Writes the checkpoint durably, as the next generation. Only then may the area before it be used again.
    ///
    /// # Errors
    /// The device's; the checkpoint before it still holds then.
    pub async fn write(&mut self, reactor: &Reactor, file: FileId, area: &RedoArea) -> Result<(), LogError> {
        let body = Body {
            node: area.node.0,
            shard: area.shard.0,
            reserved: [0; 6],
            lsn: U64::new(self.lsn.0),
            batch_sequence: U64::new(self.batch_sequence),
            incarnation: U64::new(self.incarnation.0),
            scn: U64::new(self.scn.0),
        };
        let generation = self.generation + 1;
        let written = pair(area).write(reactor, file, generation, area.stamp, body.as_bytes()).await;
        written.map_err(|error| LogError::io(area, "write its checkpoint", &error))?;
        self.generation = generation;
        Ok(())
    }
}

const fn pair(area: &RedoArea) -> SectorPair {
    SectorPair::adjacent(SectorKind::RedoHeader, area.stamp, area.offset)
}
