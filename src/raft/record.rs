//! What Raft writes into the shard's log (records of kind [`crate::wal::RecordKind::Raft`]), and how a replica is read from it again.
//!
//! Functions over bytes; [`Recovery`] collects. Two forms. *Append*: hard state and entries, which replace whatever stood at
//! their indices and behind. *Image*: everything of a replica, in parts when it is large; the reading begins anew with
//! it. The log can therefore forget what stands before a group's newest whole image. Bounded by the log: what was read is held
//! in memory. Drawn in `docs/formats.md`.

use std::collections::BTreeMap;

use raft::eraftpb::Entry;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::codec::{
    CodecFault, ENTRIES_MAX, Reader, SNAPSHOT_BYTES_MAX, decode_configuration, decode_entries, decode_hard_state,
    encode_configuration, encode_entry, encode_hard_state, entry_len,
};
use super::storage::{Durable, SnapshotState};
use super::types::{GroupId, HardState, LogIndex, Term};

/// Most bytes of one record of entries, if it holds more than one.
pub const APPEND_BYTES: usize = 64 * 1024;

/// Most bytes of one part of an image.
pub const IMAGE_PART_BYTES: usize = 64 * 1024;

/// Most bytes of an image: snapshot, and entries behind it.
pub const IMAGE_BYTES_MAX: usize = 64 << 20;

const APPEND: u8 = 1;
const IMAGE: u8 = 2;

/// Head of every record.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RecordHead {
    kind: u8,
    reserved: u8,
    entries: U16,
    reserved2: U32,
    group: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct PartHead {
    total: U32,
    offset: U32,
}

/// An image: hard state and configuration follow, then the snapshot's bytes and the entries.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ImageHead {
    index: U64,
    term: U64,
    data_len: U32,
    entries: U32,
}

const _: () = {
    assert!(size_of::<RecordHead>() == 16);
    assert!(size_of::<PartHead>() == 8);
    assert!(size_of::<ImageHead>() == 24);
};

fn head(kind: u8, entries: usize, group: GroupId) -> Vec<u8> {
    let head =
        RecordHead { kind, reserved: 0, entries: U16::new(entries as u16), reserved2: U32::ZERO, group: U64::new(group.0) };
    head.as_bytes().to_vec()
}

/// The records for a hard state and entries, none larger than [`APPEND_BYTES`] and at least one. Each carries the hard state, so
/// that no entry is ever durable without the commit index that was known when it came: a replica that has forgotten that a
/// configuration was left could stand for election by it.
#[must_use]
pub fn append_records(group: GroupId, hard_state: &HardState, entries: &[Entry]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    let mut rest = entries;
    loop {
        let (mut bytes, mut count) = (0, 0);
        for entry in rest.iter().take(ENTRIES_MAX) {
            bytes += entry_len(entry);
            if count > 0 && bytes > APPEND_BYTES {
                break;
            }
            count += 1;
        }
        let (now, later) = rest.split_at(count);
        let mut record = head(APPEND, count, group);
        encode_hard_state(hard_state, &mut record);
        now.iter().for_each(|entry| encode_entry(entry, &mut record));
        records.push(record);
        rest = later;
        if rest.is_empty() {
            return records;
        }
    }
}

/// The records that hold everything of a replica.
///
/// # Panics
/// When it is larger than [`IMAGE_BYTES_MAX`]: the replica's bounds keep it below.
#[must_use]
pub fn image_records(group: GroupId, durable: &Durable) -> Vec<Vec<u8>> {
    let mut image = Vec::new();
    let snapshot = &durable.snapshot;
    let fixed = ImageHead {
        index: U64::new(snapshot.index.0),
        term: U64::new(snapshot.term.0),
        data_len: U32::new(snapshot.data.len() as u32),
        entries: U32::new(durable.entries.len() as u32),
    };
    image.extend_from_slice(fixed.as_bytes());
    encode_hard_state(&durable.hard_state, &mut image);
    encode_configuration(&snapshot.configuration, &mut image);
    image.extend_from_slice(&snapshot.data);
    durable.entries.iter().for_each(|entry| encode_entry(entry, &mut image));
    assert!(image.len() <= IMAGE_BYTES_MAX, "an image of {} bytes of {group}", image.len());
    let part = |(at, bytes): (usize, &[u8])| {
        let mut record = head(IMAGE, 0, group);
        let part = PartHead { total: U32::new(image.len() as u32), offset: U32::new((at * IMAGE_PART_BYTES) as u32) };
        record.extend_from_slice(part.as_bytes());
        record.extend_from_slice(bytes);
        record
    };
    image.chunks(IMAGE_PART_BYTES).enumerate().map(part).collect()
}

fn decode_image(bytes: &[u8]) -> Result<Durable, CodecFault> {
    let mut reader = Reader(bytes);
    let head = *reader.take::<ImageHead>()?;
    let hard_state = decode_hard_state(&mut reader)?;
    let configuration = decode_configuration(&mut reader)?;
    let length = head.data_len.get() as usize;
    if length > SNAPSHOT_BYTES_MAX {
        return Err(CodecFault::Bound { what: "bytes of a snapshot", value: length as u64 });
    }
    let data = reader.bytes(length)?.to_vec();
    let entries = decode_entries(&mut reader, head.entries.get() as usize)?;
    reader.end()?;
    let snapshot = SnapshotState { index: LogIndex(head.index.get()), term: Term(head.term.get()), configuration, data };
    if entries.first().is_some_and(|first| Some(first.index) != snapshot.index.0.checked_add(1) || first.term < snapshot.term.0) {
        return Err(CodecFault::Inconsistent("the entries of an image do not follow its snapshot"));
    }
    Ok(Durable { hard_state, snapshot, entries })
}

/// The replicas of a shard, read from its log from the checkpoint on.
#[derive(Default)]
pub struct Recovery {
    groups: BTreeMap<GroupId, Found>,
}

#[derive(Default)]
struct Found {
    durable: Option<Durable>,
    /// Parts of an image that is not whole yet.
    image: Vec<u8>,
}

impl Recovery {
    /// Nothing was read yet.
    #[must_use]
    pub fn new() -> Recovery {
        Recovery::default()
    }

    /// Takes the payload of the next record of kind Raft.
    ///
    /// # Errors
    /// [`CodecFault`]: the log's checksum was right, so a newer version or a bug wrote it.
    pub fn add(&mut self, payload: &[u8]) -> Result<(), CodecFault> {
        let mut reader = Reader(payload);
        let head = *reader.take::<RecordHead>()?;
        let found = self.groups.entry(GroupId(head.group.get())).or_default();
        match head.kind {
            APPEND => {
                let hard_state = decode_hard_state(&mut reader)?;
                let entries = decode_entries(&mut reader, usize::from(head.entries.get()))?;
                reader.end()?;
                // Before the first image stand remains of what that image replaces.
                let Some(durable) = &mut found.durable else { return Ok(()) };
                durable.hard_state.advance(hard_state);
                if let Some(first) = entries.first() {
                    let last = durable.last_index().0;
                    let keep = first.index.checked_sub(durable.snapshot.index.0 + 1);
                    let keep = keep.filter(|keep| *keep <= durable.entries.len() as u64).ok_or(CodecFault::Bound {
                        what: "the first of the entries, which do not continue the log before them",
                        value: last,
                    })?;
                    durable.entries.truncate(keep as usize);
                    durable.entries.extend(entries);
                }
                Ok(())
            }
            IMAGE => {
                let part = *reader.take::<PartHead>()?;
                let (total, offset) = (part.total.get() as usize, part.offset.get() as usize);
                if total > IMAGE_BYTES_MAX {
                    return Err(CodecFault::Bound { what: "bytes of an image", value: total as u64 });
                }
                // An image that a crash has cut off is followed by a new one.
                if offset == 0 {
                    found.image.clear();
                }
                if offset != found.image.len() || offset + reader.0.len() > total {
                    // The first parts stood before the checkpoint: a whole image follows.
                    return Ok(());
                }
                found.image.extend_from_slice(reader.0);
                if found.image.len() == total {
                    let image = std::mem::take(&mut found.image);
                    let mut durable = decode_image(&image)?;
                    if let Some(before) = &found.durable {
                        durable.hard_state.advance(before.hard_state);
                    }
                    found.durable = Some(durable);
                }
                Ok(())
            }
            kind => Err(CodecFault::Kind(kind)),
        }
    }

    /// The replicas that were found.
    #[must_use]
    pub fn finish(self) -> BTreeMap<GroupId, Durable> {
        self.groups.into_iter().filter_map(|(group, found)| Some((group, found.durable?))).collect()
    }
}
