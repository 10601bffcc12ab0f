//! What stands in a log's records: redo groups and the other kinds, encoded and decoded.
//!
//! Functions over bytes, without state and without I/O. A redo group is atomic: it lies in one record, and a record is
//! whole or absent after a crash. The decoder checks every bound once, when it is given the bytes, and copies nothing;
//! garbage gives a [`RedoFault`], never a panic. Bounded by the log's largest record ([`super::BATCH_MAX`]).
//! Drawn in `docs/formats.md`.

use std::fmt;

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ids::{BlockId, BlockNo, Incarnation, Lsn, PartitionId, Scn};

/// What a record of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// A [`RedoGroup`]: changes to blocks, all or nothing.
    RedoGroup = 1,
    /// [`BlocksWritten`]: block writes that have completed, so that recovery may skip what is older.
    BlockWritten = 2,
    /// [`BlocksForgotten`]: blocks that this log will never change again under that partition, because it was dropped.
    BlocksForgotten = 3,
    /// [`CheckpointMark`]: where a checkpoint stood.
    CheckpointMark = 4,
    /// Entries of Raft groups; their form belongs to that layer.
    Raft = 16,
}

impl RecordKind {
    /// From its byte; `None` for a kind that this version does not know.
    #[must_use]
    pub fn from_u8(byte: u8) -> Option<RecordKind> {
        use RecordKind::*;
        [RedoGroup, BlockWritten, BlocksForgotten, CheckpointMark, Raft].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Most blocks that one redo group may change. A split of a tree at every level, with its allocations, stays below it.
pub const GROUP_BLOCKS_MAX: usize = 256;

/// Why a record's payload can't be understood. Its batch's checksum was right, so a newer version or a bug wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedoFault {
    /// The payload ends before its content does.
    TooShort {
        /// Offset in the payload at which more was expected.
        at: usize,
    },
    /// The payload goes on after its content.
    TooLong {
        /// Bytes too many.
        extra: usize,
    },
    /// More blocks in a group than [`GROUP_BLOCKS_MAX`].
    TooManyBlocks {
        /// How many it claims.
        count: usize,
    },
    /// A block's changes begin at the group's own SCN or above it.
    NotBefore {
        /// The block.
        block: BlockId,
    },
}

impl fmt::Display for RedoFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RedoFault::TooShort { at } => write!(f, "the record ends at byte {at}, before its content does"),
            RedoFault::TooLong { extra } => write!(f, "{extra} bytes follow the record's content"),
            RedoFault::TooManyBlocks { count } => write!(f, "it claims {count} blocks; a group has at most {GROUP_BLOCKS_MAX}"),
            RedoFault::NotBefore { block } => write!(f, "{block} would be changed from an SCN that is not before the group's"),
        }
    }
}

impl std::error::Error for RedoFault {}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct GroupHeader {
    scn: U64,
    blocks: U16,
    reserved: [u8; 6],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct EntryHeader {
    block: U64,
    partition: U32,
    changes_len: U32,
    before_scn: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WrittenEntry {
    block: U64,
    partition: U32,
    reserved: U32,
    scn: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ForgottenPayload {
    first: U64,
    count: U64,
    partition: U32,
    reserved: U32,
    scn: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct MarkPayload {
    lsn: U64,
    scn: U64,
    incarnation: U64,
}

const _: () = {
    assert!(size_of::<GroupHeader>() == 16);
    assert!(size_of::<EntryHeader>() == 24);
    assert!(size_of::<WrittenEntry>() == 24);
    assert!(size_of::<ForgottenPayload>() == 32);
    assert!(size_of::<MarkPayload>() == 24);
};

/// Bytes that a group takes before the first of its blocks.
pub const GROUP_OVERHEAD: usize = size_of::<GroupHeader>();

/// Bytes that each block takes in a group beside its changes.
pub const ENTRY_OVERHEAD: usize = size_of::<EntryHeader>();

/// Collects the changes of one redo group, block by block, and encodes them. Meant to be kept and used again.
#[derive(Default)]
pub struct RedoGroupBuilder {
    entries: Vec<BuilderEntry>,
    used: usize,
}

#[derive(Default)]
struct BuilderEntry {
    id: BlockId,
    before_scn: Scn,
    changes: Vec<u8>,
}

impl RedoGroupBuilder {
    /// An empty group.
    #[must_use]
    pub fn new() -> RedoGroupBuilder {
        RedoGroupBuilder::default()
    }

    /// Where to append the next encoded change to `id`, whose SCN is `before_scn` (the same at each call for a block:
    /// blocks are stamped when the group is finished). Blocks keep the order of their first change.
    pub fn changes(&mut self, id: BlockId, before_scn: Scn) -> &mut Vec<u8> {
        let found = self.entries[..self.used].iter().position(|entry| entry.id == id);
        let at = found.unwrap_or_else(|| {
            assert!(self.used < GROUP_BLOCKS_MAX, "a redo group changes more than {GROUP_BLOCKS_MAX} blocks");
            if self.used == self.entries.len() {
                self.entries.push(BuilderEntry::default());
            }
            let entry = &mut self.entries[self.used];
            entry.id = id;
            entry.before_scn = before_scn;
            entry.changes.clear();
            self.used += 1;
            self.used - 1
        });
        let entry = &mut self.entries[at];
        assert_eq!(entry.before_scn, before_scn, "{id} changed its SCN within a redo group");
        &mut entry.changes
    }

    /// Whether no block was changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// The blocks changed so far, with the SCN each had before.
    pub fn blocks(&self) -> impl Iterator<Item = (BlockId, Scn)> + '_ {
        self.entries[..self.used].iter().map(|entry| (entry.id, entry.before_scn))
    }

    /// Bytes that [`RedoGroupBuilder::encode`] will append.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let entries = &self.entries[..self.used];
        GROUP_OVERHEAD + entries.iter().map(|entry| ENTRY_OVERHEAD + entry.changes.len()).sum::<usize>()
    }

    /// Appends the group's payload to `out`. `scn` becomes the SCN of every block in it, so it must be above all of theirs.
    pub fn encode(&self, scn: Scn, out: &mut Vec<u8>) {
        out.reserve(self.encoded_len());
        let header = GroupHeader { scn: U64::new(scn.0), blocks: U16::new(self.used as u16), reserved: [0; 6] };
        out.extend_from_slice(header.as_bytes());
        for entry in &self.entries[..self.used] {
            assert!(entry.before_scn < scn, "{} is at {} already, a group at {scn} can't follow", entry.id, entry.before_scn);
            let header = EntryHeader {
                block: U64::new(entry.id.block.0),
                partition: U32::new(entry.id.partition.0),
                changes_len: U32::new(u32::try_from(entry.changes.len()).expect("changes are bounded by a record")),
                before_scn: U64::new(entry.before_scn.0),
            };
            out.extend_from_slice(header.as_bytes());
            out.extend_from_slice(&entry.changes);
        }
    }

    /// Forgets the changes and keeps the memory.
    pub fn clear(&mut self) {
        self.used = 0;
    }
}

/// A decoded redo group: every block in it goes from its `before_scn` to the group's `scn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedoGroup<'a> {
    /// SCN of every block of the group afterwards.
    pub scn: Scn,
    count: usize,
    entries: &'a [u8],
}

/// What a redo group does to one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedoEntry<'a> {
    /// The block.
    pub id: BlockId,
    /// Its SCN before.
    pub before_scn: Scn,
    /// Its changes, as `volume::change` encodes them, one after the other.
    pub changes: &'a [u8],
}

impl<'a> RedoGroup<'a> {
    /// Checks the whole payload and gives a view of it.
    pub fn decode(payload: &'a [u8]) -> Result<RedoGroup<'a>, RedoFault> {
        let (header, entries) = GroupHeader::ref_from_prefix(payload).map_err(|_| RedoFault::TooShort { at: payload.len() })?;
        let group = RedoGroup { scn: Scn(header.scn.get()), count: usize::from(header.blocks.get()), entries };
        if group.count > GROUP_BLOCKS_MAX {
            return Err(RedoFault::TooManyBlocks { count: group.count });
        }
        let mut rest = entries;
        for _ in 0..group.count {
            let (entry, after) = split_entry(rest).ok_or(RedoFault::TooShort { at: payload.len() })?;
            if entry.before_scn >= group.scn {
                return Err(RedoFault::NotBefore { block: entry.id });
            }
            rest = after;
        }
        if !rest.is_empty() {
            return Err(RedoFault::TooLong { extra: rest.len() });
        }
        Ok(group)
    }

    /// Blocks in the group.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.count
    }

    /// The blocks of the group, in the order in which they were first changed.
    pub fn entries(&self) -> impl Iterator<Item = RedoEntry<'a>> + use<'a> {
        let mut rest = self.entries;
        (0..self.count).map(move |_| {
            let (entry, after) = split_entry(rest).expect("decode has checked every entry");
            rest = after;
            entry
        })
    }
}

fn split_entry(bytes: &[u8]) -> Option<(RedoEntry<'_>, &[u8])> {
    let (header, rest) = EntryHeader::ref_from_prefix(bytes).ok()?;
    let (changes, after) = rest.split_at_checked(header.changes_len.get() as usize)?;
    let id = BlockId::new(PartitionId(header.partition.get()), BlockNo(header.block.get()));
    Some((RedoEntry { id, before_scn: Scn(header.before_scn.get()), changes }, after))
}

/// Block writes that have completed: each block is on disk with this SCN or a newer one.
pub struct BlocksWritten;

impl BlocksWritten {
    /// Appends the payload for these blocks to `out`.
    pub fn encode(blocks: &[(BlockId, Scn)], out: &mut Vec<u8>) {
        for (id, scn) in blocks {
            let entry = WrittenEntry {
                block: U64::new(id.block.0),
                partition: U32::new(id.partition.0),
                reserved: U32::ZERO,
                scn: U64::new(scn.0),
            };
            out.extend_from_slice(entry.as_bytes());
        }
    }

    /// The blocks of a payload.
    pub fn decode(payload: &[u8]) -> Result<impl Iterator<Item = (BlockId, Scn)> + '_, RedoFault> {
        let entries = list::<WrittenEntry>(payload, 0)?;
        Ok(entries.iter().map(|entry| {
            let id = BlockId::new(PartitionId(entry.partition.get()), BlockNo(entry.block.get()));
            (id, Scn(entry.scn.get()))
        }))
    }
}

/// Blocks that have left their partition for good. Their changes in this log, up to an SCN, are on the disk or of no account:
/// the blocks' numbers belong to others from then on, and nobody may replay anything of the former life over them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlocksForgotten {
    /// Whose they were.
    pub partition: PartitionId,
    /// The first of them.
    pub first: BlockNo,
    /// How many there may be.
    pub count: u64,
    /// Changes up to here.
    pub scn: Scn,
}

impl BlocksForgotten {
    /// All blocks that the partition ever had, and all of their changes, also those that other nodes still make before they
    /// have heard of it: numbers of partitions are not used again.
    #[must_use]
    pub fn all_of(partition: PartitionId) -> BlocksForgotten {
        BlocksForgotten { partition, first: BlockNo(0), count: u64::MAX, scn: Scn::MAX }
    }

    /// Whether a change of `block` to version `scn` is meant.
    #[must_use]
    pub fn covers(&self, block: BlockId, scn: Scn) -> bool {
        let within = block.block.0.checked_sub(self.first.0).is_some_and(|place| place < self.count);
        block.partition == self.partition && within && scn <= self.scn
    }

    /// Appends the payload to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let payload = ForgottenPayload {
            first: U64::new(self.first.0),
            count: U64::new(self.count),
            partition: U32::new(self.partition.0),
            reserved: U32::ZERO,
            scn: U64::new(self.scn.0),
        };
        out.extend_from_slice(payload.as_bytes());
    }

    /// From a payload.
    ///
    /// # Errors
    /// When it is shorter or longer.
    pub fn decode(payload: &[u8]) -> Result<BlocksForgotten, RedoFault> {
        let (forgotten, rest) =
            ForgottenPayload::ref_from_prefix(payload).map_err(|_| RedoFault::TooShort { at: payload.len() })?;
        if !rest.is_empty() {
            return Err(RedoFault::TooLong { extra: rest.len() });
        }
        Ok(BlocksForgotten {
            partition: PartitionId(forgotten.partition.get()),
            first: BlockNo(forgotten.first.get()),
            count: forgotten.count.get(),
            scn: Scn(forgotten.scn.get()),
        })
    }
}

/// Where a checkpoint stood when it was taken; also carries an SCN that the clock of a restarted node must pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointMark {
    /// Everything before it is on disk in the blocks.
    pub lsn: Lsn,
    /// The node's clock at that time.
    pub scn: Scn,
    /// The life of the node that took it.
    pub incarnation: Incarnation,
}

impl CheckpointMark {
    /// Appends the payload to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let payload =
            MarkPayload { lsn: U64::new(self.lsn.0), scn: U64::new(self.scn.0), incarnation: U64::new(self.incarnation.0) };
        out.extend_from_slice(payload.as_bytes());
    }

    /// From a payload.
    pub fn decode(payload: &[u8]) -> Result<CheckpointMark, RedoFault> {
        let (mark, rest) = MarkPayload::ref_from_prefix(payload).map_err(|_| RedoFault::TooShort { at: payload.len() })?;
        if !rest.is_empty() {
            return Err(RedoFault::TooLong { extra: rest.len() });
        }
        Ok(CheckpointMark {
            lsn: Lsn(mark.lsn.get()),
            scn: Scn(mark.scn.get()),
            incarnation: Incarnation(mark.incarnation.get()),
        })
    }
}

fn list<T: FromBytes + KnownLayout + Immutable>(bytes: &[u8], offset: usize) -> Result<&[T], RedoFault> {
    <[T]>::ref_from_bytes(bytes).map_err(|_| RedoFault::TooShort { at: offset + bytes.len() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block_id() -> impl Strategy<Value = BlockId> {
        (any::<u32>(), any::<u64>()).prop_map(|(partition, block)| BlockId::new(PartitionId(partition), BlockNo(block)))
    }

    proptest! {
        #[test]
        fn a_group_gives_back_what_was_put_in(
            blocks in proptest::collection::btree_map(block_id(), (0u64..1000, proptest::collection::vec(any::<u8>(), 0..300)), 0..9),
            scn in 1000u64..u64::MAX,
        ) {
            let mut builder = RedoGroupBuilder::new();
            builder.changes(BlockId::default(), Scn(1)).extend_from_slice(b"of an earlier group");
            builder.clear();
            // Two rounds, so that the changes to different blocks come in turns.
            for half in 0..2 {
                for (id, (before, bytes)) in &blocks {
                    let middle = bytes.len() / 2;
                    let part = if half == 0 { &bytes[..middle] } else { &bytes[middle..] };
                    builder.changes(*id, Scn(*before)).extend_from_slice(part);
                }
            }
            let mut payload = Vec::new();
            builder.encode(Scn(scn), &mut payload);
            prop_assert_eq!(payload.len(), builder.encoded_len());
            let group = RedoGroup::decode(&payload).unwrap();
            prop_assert_eq!(group.scn, Scn(scn));
            let found: Vec<_> = group.entries().map(|entry| (entry.id, (entry.before_scn.0, entry.changes.to_vec()))).collect();
            prop_assert_eq!(found, blocks.into_iter().collect::<Vec<_>>());
            for cut in 0..payload.len() {
                prop_assert!(RedoGroup::decode(&payload[..cut]).is_err(), "cut at {}", cut);
            }
        }

        #[test]
        fn garbage_is_refused_without_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), count in 0u16..4) {
            let _ = RedoGroup::decode(&bytes).map(|group| group.entries().count());
            if bytes.len() > 10 {
                bytes[8..10].copy_from_slice(&count.to_le_bytes());
                let _ = RedoGroup::decode(&bytes).map(|group| group.entries().count());
            }
            let _ = BlocksWritten::decode(&bytes).map(|blocks| blocks.count());
            let _ = CheckpointMark::decode(&bytes);
            let _ = BlocksForgotten::decode(&bytes);
        }

        #[test]
        fn the_other_records_give_back_what_was_put_in(
            blocks in proptest::collection::vec((block_id(), any::<u64>().prop_map(Scn)), 0..20),
            (scn, lsn, incarnation) in (any::<u64>(), any::<u64>(), any::<u64>()),
        ) {
            let mut payload = Vec::new();
            BlocksWritten::encode(&blocks, &mut payload);
            prop_assert_eq!(BlocksWritten::decode(&payload).unwrap().collect::<Vec<_>>(), blocks);

            let mark = CheckpointMark { lsn: Lsn(lsn), scn: Scn(scn), incarnation: Incarnation(incarnation) };
            payload.clear();
            mark.encode(&mut payload);
            prop_assert_eq!(CheckpointMark::decode(&payload).unwrap(), mark);

            let forgotten = BlocksForgotten { partition: PartitionId(lsn as u32), first: BlockNo(incarnation), count: lsn, scn: Scn(scn) };
            payload.clear();
            forgotten.encode(&mut payload);
            prop_assert_eq!(BlocksForgotten::decode(&payload).unwrap(), forgotten);
        }
    }
}
