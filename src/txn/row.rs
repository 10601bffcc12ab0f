//! A row's version as it lies in a tree: who wrote it, where its predecessor is, and the row itself.
//!
//! Pure parsing over borrowed bytes; owned by nobody. Layout (little-endian), drawn in `docs/transactions.md`:
//!
//! ```text
//! 0        8        16      17
//! | version | undo   | flags | payload ...
//! ```
//!
//! `version` is the writing transaction's id (bit 63 set) until somebody stamps it with the commit's SCN (bit 63 clear).
//! The stamp is a hint: it may get lost, and is then found again through the transaction's id.

use crate::ids::{BlockNo, NodeId, Scn, TxnId};

/// Bytes before the payload.
pub const ROW_HEADER_BYTES: usize = 17;
/// Where the version word lies in a row.
pub const VERSION_OFFSET: usize = 0;

/// The row is a tombstone: deleted by `version`.
pub const FLAG_DELETED: u8 = 1;
/// The payload is a reference to an overflow chain.
pub const FLAG_OVERFLOW: u8 = 2;
/// Only locked by `version`: payload, overflow and tombstone state are its predecessor's.
pub const FLAG_LOCK_ONLY: u8 = 4;
const FLAGS_KNOWN: u8 = FLAG_DELETED | FLAG_OVERFLOW | FLAG_LOCK_ONLY;

/// The version word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// Committed at this SCN.
    Committed(Scn),
    /// Written by this transaction; its state tells.
    Written(TxnId),
}

impl Version {
    /// From the packed form.
    #[inline]
    #[must_use]
    pub fn from_raw(raw: u64) -> Version {
        match TxnId::from_raw(raw) {
            Some(txn) => Version::Written(txn),
            None => Version::Committed(Scn(raw)),
        }
    }

    /// The packed form.
    #[must_use]
    pub fn raw(self) -> u64 {
        match self {
            Version::Committed(scn) => {
                assert!(scn <= Scn::MAX, "{scn} does not fit a version word");
                scn.0
            }
            Version::Written(txn) => txn.raw(),
        }
    }
}

/// Where an undo record lies: node (8 bits), block (40), slot (16). The shard is that of the row. 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct UndoPtr(u64);

impl UndoPtr {
    /// No predecessor.
    pub const NONE: UndoPtr = UndoPtr(0);

    /// Puts the parts together.
    #[must_use]
    pub fn new(node: NodeId, block: BlockNo, slot: u16) -> UndoPtr {
        assert!(block.0 < 1 << 40, "{block} is beyond the 40 bits of an undo pointer");
        assert!(node.0 != 0, "an undo record has a node");
        UndoPtr((u64::from(node.0) << 56) | (block.0 << 16) | u64::from(slot))
    }

    /// From the packed form.
    #[must_use]
    pub fn from_raw(raw: u64) -> UndoPtr {
        UndoPtr(raw)
    }

    /// The packed form.
    #[must_use]
    pub fn raw(self) -> u64 {
        self.0
    }

    /// Whether it points nowhere.
    #[must_use]
    pub fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Whose undo.
    #[must_use]
    pub fn node(self) -> NodeId {
        NodeId((self.0 >> 56) as u8)
    }

    /// Which block.
    #[must_use]
    pub fn block(self) -> BlockNo {
        BlockNo((self.0 >> 16) & ((1 << 40) - 1))
    }

    /// Which record in it.
    #[must_use]
    pub fn slot(self) -> u16 {
        self.0 as u16
    }
}

/// A row's version, borrowed from a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row<'a> {
    /// Who wrote it.
    pub version: Version,
    /// The undo record that the writer left.
    pub undo: UndoPtr,
    /// `FLAG_*`.
    pub flags: u8,
    /// The caller's bytes, or an overflow reference.
    pub payload: &'a [u8],
}

impl<'a> Row<'a> {
    /// Reads a row; `None` if the bytes are none.
    #[must_use]
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Option<Row<'a>> {
        let (header, payload) = bytes.split_first_chunk::<ROW_HEADER_BYTES>()?;
        let flags = header[16];
        if flags & !FLAGS_KNOWN != 0 {
            return None;
        }
        let version = u64::from_le_bytes(header[0..8].try_into().expect("eight bytes"));
        let undo = u64::from_le_bytes(header[8..16].try_into().expect("eight bytes"));
        Some(Row { version: Version::from_raw(version), undo: UndoPtr(undo), flags, payload })
    }

    /// The header's bytes; the payload follows them.
    #[must_use]
    pub fn header(&self) -> [u8; ROW_HEADER_BYTES] {
        let mut header = [0; ROW_HEADER_BYTES];
        header[0..8].copy_from_slice(&self.version.raw().to_le_bytes());
        header[8..16].copy_from_slice(&self.undo.raw().to_le_bytes());
        header[16] = self.flags;
        header
    }

    /// Header and payload in one piece.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ROW_HEADER_BYTES + self.payload.len());
        bytes.extend_from_slice(&self.header());
        bytes.extend_from_slice(self.payload);
        bytes
    }

    /// A tombstone.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        self.flags & FLAG_DELETED != 0
    }

    /// The payload is elsewhere.
    #[must_use]
    pub fn is_overflow(&self) -> bool {
        self.flags & FLAG_OVERFLOW != 0
    }

    /// Written only to lock.
    #[must_use]
    pub fn is_lock_only(&self) -> bool {
        self.flags & FLAG_LOCK_ONLY != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ShardId;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_row_comes_back_as_it_was_written(raw: u64, node in 1u8..=127, block in 0u64..1 << 40, slot: u16, flags in 0u8..=FLAGS_KNOWN, payload: Vec<u8>) {
            let row = Row { version: Version::from_raw(raw), undo: UndoPtr::new(NodeId(node), BlockNo(block), slot), flags, payload: &payload };
            let bytes = row.encode();
            prop_assert_eq!(Row::parse(&bytes), Some(row));
            prop_assert_eq!((row.undo.node(), row.undo.block(), row.undo.slot()), (NodeId(node), BlockNo(block), slot));
            prop_assert_eq!(row.version.raw(), raw);
        }

        #[test]
        fn bytes_that_are_no_row_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(row) = Row::parse(&bytes) {
                prop_assert_eq!(row.encode(), bytes);
            }
        }
    }

    #[test]
    fn a_stamp_changes_the_version_word_only() {
        let txn = TxnId::new(NodeId(2), ShardId(1), 7, 9);
        let before = Row { version: Version::Written(txn), undo: UndoPtr::NONE, flags: 0, payload: b"row" }.encode();
        let mut after = before.clone();
        after[VERSION_OFFSET..8].copy_from_slice(&Version::Committed(Scn(77)).raw().to_le_bytes());
        let row = Row::parse(&after).unwrap();
        assert_eq!((row.version, row.payload), (Version::Committed(Scn(77)), &b"row"[..]));
    }
}
