//! An undo record: what a row was before a transaction changed it.
//!
//! Pure codec. A record is one cell of an `Undo` block: its key is the record's head followed by the row's key, its value
//! the row's previous version, header included (empty: there was no row). A record serves two readers: rollback, which
//! follows [`Record::previous`] through a transaction; and visibility, which follows the rows' undo pointers through
//! versions. Both check that the record is the one they mean ([`Record::is_undo_of`]): undo blocks are reused.

use crate::ids::{PartitionId, Scn, TxnId};

use super::row::{ROW_HEADER_BYTES, Row, UndoPtr, Version};

/// Bytes of a record's head.
pub const RECORD_HEAD_BYTES: usize = 33;

/// What the transaction did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum RecordKind {
    /// There was no row; rolling back removes the cell.
    Insert = 1,
    /// There was one; rolling back puts it back.
    Update = 2,
}

/// An undo record, borrowed from a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// The transaction that changed the row.
    pub owner: TxnId,
    /// A reading of the clock from when the record was written.
    pub written: Scn,
    /// The transaction's record before this one.
    pub previous: UndoPtr,
    /// Which of the transaction's records this is, from 1.
    pub sequence: u32,
    /// What it did.
    pub kind: RecordKind,
    /// The row's partition.
    pub partition: PartitionId,
    /// The row's key.
    pub key: &'a [u8],
    /// The row's previous version, header included; empty for an insert.
    pub before: &'a [u8],
}

impl<'a> Record<'a> {
    /// The cell's key.
    pub fn encode_key(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.owner.raw().to_le_bytes());
        out.extend_from_slice(&self.written.0.to_le_bytes());
        out.extend_from_slice(&self.previous.raw().to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.partition.0.to_le_bytes());
        out.push(self.kind as u8);
        out.extend_from_slice(self.key);
    }

    /// From a cell; `None` if it is no undo record.
    #[must_use]
    pub fn decode(cell_key: &'a [u8], cell_value: &'a [u8]) -> Option<Record<'a>> {
        let (head, key) = cell_key.split_first_chunk::<RECORD_HEAD_BYTES>()?;
        let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
        let half = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let kind = match head[32] {
            1 if cell_value.is_empty() => RecordKind::Insert,
            2 if cell_value.len() >= ROW_HEADER_BYTES => RecordKind::Update,
            _ => return None,
        };
        Some(Record {
            owner: TxnId::from_raw(word(0))?,
            written: Scn(word(8)),
            previous: UndoPtr::from_raw(word(16)),
            sequence: half(24),
            kind,
            partition: PartitionId(half(28)),
            key,
            before: cell_value,
        })
    }

    /// Whether this is the record that `row` at `key` points to. Sound although undo blocks are reused: while the row's
    /// version carries its transaction's id, ids are compared, and those are never reused; once it carries the commit's
    /// SCN, a record that was written after the commit cannot be it, and a block is reused only after the commits of all
    /// its records.
    #[must_use]
    pub fn is_undo_of(&self, partition: PartitionId, key: &[u8], row: &Row<'_>) -> bool {
        let of_the_writer = match row.version {
            Version::Written(txn) => self.owner == txn,
            Version::Committed(scn) => self.written <= scn,
        };
        of_the_writer && self.partition == partition && self.key == key
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{NodeId, ShardId};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_record_comes_back_as_it_was_written(
            wrap: u32, written: u64, previous: u64, sequence: u32, partition: u32,
            key in proptest::collection::vec(any::<u8>(), 0..64), before in proptest::collection::vec(any::<u8>(), ROW_HEADER_BYTES..64), insert: bool,
        ) {
            let record = Record {
                owner: TxnId::new(NodeId(1), ShardId(2), 3, wrap),
                written: Scn(written),
                previous: UndoPtr::from_raw(previous),
                sequence,
                kind: if insert { RecordKind::Insert } else { RecordKind::Update },
                partition: PartitionId(partition),
                key: &key,
                before: if insert { &[] } else { &before },
            };
            let mut cell = Vec::new();
            record.encode_key(&mut cell);
            prop_assert_eq!(Record::decode(&cell, record.before), Some(record));
        }

        #[test]
        fn cells_that_are_no_record_are_refused(cell in proptest::collection::vec(any::<u8>(), 0..48), value in proptest::collection::vec(any::<u8>(), 0..24)) {
            if let Some(record) = Record::decode(&cell, &value) {
                let mut again = Vec::new();
                record.encode_key(&mut again);
                prop_assert_eq!(again, cell);
            }
        }
    }

    #[test]
    fn a_record_in_a_reused_block_is_not_taken_for_the_old_one() {
        let (old, new) = (TxnId::new(NodeId(1), ShardId(0), 3, 1), TxnId::new(NodeId(1), ShardId(0), 3, 2));
        let record = |owner, written| Record {
            owner,
            written: Scn(written),
            previous: UndoPtr::NONE,
            sequence: 1,
            kind: RecordKind::Insert,
            partition: PartitionId(70),
            key: b"k",
            before: &[],
        };
        let row = |version| Row { version, undo: UndoPtr::new(NodeId(1), crate::ids::BlockNo(9), 0), flags: 0, payload: &[] };
        assert!(record(old, 5).is_undo_of(PartitionId(70), b"k", &row(Version::Written(old))));
        assert!(record(old, 5).is_undo_of(PartitionId(70), b"k", &row(Version::Committed(Scn(8)))));
        assert!(!record(new, 5).is_undo_of(PartitionId(70), b"k", &row(Version::Written(old))));
        assert!(!record(new, 9).is_undo_of(PartitionId(70), b"k", &row(Version::Committed(Scn(8)))));
        assert!(!record(old, 5).is_undo_of(PartitionId(70), b"l", &row(Version::Written(old))));
    }
}
