//! The transaction table as it lies on the volume: slots in the user header of `UndoHeader` blocks.
//!
//! Pure codec. The blocks are the first [`TABLE_BLOCKS`] blocks of a shard's undo home, written by the shard that owns it
//! (or by whoever recovers it) and by nobody else. Each block's user header is an array of [`SLOTS_PER_BLOCK`] slots:
//!
//! ```text
//! 0      4       5        6      8             16          24          32
//! | wrap | state | former | zero | commit scn  | undo head | home      |
//! ```
//!
//! `former` is 1 if the slot was taken while a snapshot could still ask for its former user's outcome, which is then in
//! its node's memory and nowhere else.
//!
//! `wrap` counts the uses of the slot and is part of the transaction's id. `undo head` is the newest undo record that is
//! not rolled back. `home` is set for a branch of a transaction over several shards: its outcome is that of the
//! transaction named there. In the slot of such a home, while it is deciding, the shards of its branches stand there, a bit
//! each.

use crate::ids::{SHARDS_MAX, Scn, ShardId, TxnId};

use super::row::UndoPtr;

/// Bytes of a slot.
pub const SLOT_BYTES: usize = 32;
/// Slots in a block of the table.
pub const SLOTS_PER_BLOCK: usize = 253;
/// Blocks of a shard's table: fixed.
pub const TABLE_BLOCKS: usize = 15;
/// Slots of a shard: transactions that have written and whose outcome somebody may still ask for.
pub const SLOTS_MAX: usize = TABLE_BLOCKS * SLOTS_PER_BLOCK;
/// Length of the user header of a table block.
pub const TABLE_HEADER_BYTES: usize = SLOTS_PER_BLOCK * SLOT_BYTES;

const _: () = assert!(TABLE_HEADER_BYTES <= crate::volume::page::USER_HEADER_MAX && SLOTS_MAX <= u16::MAX as usize);

/// Some of a node's shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShardSet(u64);

const _: () = assert!(SHARDS_MAX <= u64::BITS as usize);

impl ShardSet {
    /// The shards in it, in order.
    pub fn iter(self) -> impl Iterator<Item = ShardId> {
        (0..SHARDS_MAX as u8).filter(move |shard| self.0 & (1 << shard) != 0).map(ShardId)
    }
}

impl FromIterator<ShardId> for ShardSet {
    fn from_iter<I: IntoIterator<Item = ShardId>>(shards: I) -> ShardSet {
        ShardSet(shards.into_iter().fold(0, |set, shard| set | (1 << shard.0)))
    }
}

/// What a slot says of its transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotState {
    /// Never used.
    Free,
    /// Running; or, when read after its node's restart, dead and to be rolled back.
    Active,
    /// Committed at this SCN.
    Committed(Scn),
    /// Rolled back, every row of it.
    RolledBack(Scn),
    /// A branch that is committed at this SCN if its home transaction is.
    Prepared {
        /// The transaction in whose slot the outcome stands.
        home: TxnId,
    },
    /// A home that is committed at this SCN if in each of these shards a branch of it is prepared.
    Deciding {
        /// The commit's SCN.
        scn: Scn,
        /// Where its branches are.
        parts: ShardSet,
    },
}

/// A slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Which use of the slot.
    pub wrap: u32,
    /// The transaction's state.
    pub state: SlotState,
    /// Newest undo record that still counts.
    pub undo_head: UndoPtr,
    /// The outcome of the slot's former user was still needed when this one took it.
    pub former_needed: bool,
}

impl Slot {
    /// As it lies in the block.
    #[must_use]
    pub fn encode(&self) -> [u8; SLOT_BYTES] {
        let (state, scn, home) = match self.state {
            SlotState::Free => (0, 0, 0),
            SlotState::Active => (1, 0, 0),
            SlotState::Committed(scn) => (2, scn.0, 0),
            SlotState::RolledBack(scn) => (3, scn.0, 0),
            SlotState::Prepared { home } => (4, 0, home.raw()),
            SlotState::Deciding { scn, parts } => (5, scn.0, parts.0),
        };
        let mut bytes = [0; SLOT_BYTES];
        bytes[0..4].copy_from_slice(&self.wrap.to_le_bytes());
        bytes[4] = state;
        bytes[5] = u8::from(self.former_needed);
        bytes[8..16].copy_from_slice(&scn.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.undo_head.raw().to_le_bytes());
        bytes[24..32].copy_from_slice(&home.to_le_bytes());
        bytes
    }

    /// From a block; `None` if the bytes are no slot.
    #[must_use]
    pub fn decode(bytes: &[u8; SLOT_BYTES]) -> Option<Slot> {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let scn = Scn(word(8));
        let state = match bytes[4] {
            0 => SlotState::Free,
            1 => SlotState::Active,
            2 => SlotState::Committed(scn),
            3 => SlotState::RolledBack(scn),
            4 => SlotState::Prepared { home: TxnId::from_raw(word(24))? },
            5 => SlotState::Deciding { scn, parts: ShardSet(word(24)) },
            _ => return None,
        };
        if scn > Scn::MAX {
            return None;
        }
        let slot = Slot {
            wrap: u32::from_le_bytes(bytes[0..4].try_into().expect("four bytes")),
            state,
            undo_head: UndoPtr::from_raw(word(16)),
            former_needed: bytes[5] == 1,
        };
        (slot.encode() == *bytes).then_some(slot)
    }
}

/// Which block of the table a slot lies in, and at which offset of its user header.
#[must_use]
pub fn place(slot: u16) -> (usize, usize) {
    let slot = usize::from(slot);
    assert!(slot < SLOTS_MAX, "slot {slot} of a transaction table of {SLOTS_MAX}");
    (slot / SLOTS_PER_BLOCK, slot % SLOTS_PER_BLOCK * SLOT_BYTES)
}

/// The slots of one block of the table with their numbers; `None` in place of a slot that cannot be read.
pub fn slots_of(block: usize, user_header: &[u8]) -> impl Iterator<Item = (u16, Option<Slot>)> + '_ {
    user_header
        .as_chunks::<SLOT_BYTES>()
        .0
        .iter()
        .take(SLOTS_PER_BLOCK)
        .enumerate()
        .map(move |(index, bytes)| ((block * SLOTS_PER_BLOCK + index) as u16, Slot::decode(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{NodeId, ShardId};
    use proptest::prelude::*;

    fn any_state() -> impl Strategy<Value = SlotState> {
        let scn = (0u64..=Scn::MAX.0).prop_map(Scn);
        prop_oneof![
            Just(SlotState::Free),
            Just(SlotState::Active),
            scn.clone().prop_map(SlotState::Committed),
            scn.clone().prop_map(SlotState::RolledBack),
            (scn, any::<u64>()).prop_map(|(scn, parts)| SlotState::Deciding { scn, parts: ShardSet(parts) }),
            any::<u32>().prop_map(|wrap| SlotState::Prepared { home: TxnId::new(NodeId(3), ShardId(1), 5, wrap) }),
        ]
    }

    proptest! {
        #[test]
        fn a_slot_comes_back_as_it_was_written(wrap: u32, state in any_state(), undo: u64, former_needed: bool) {
            let slot = Slot { wrap, state, undo_head: UndoPtr::from_raw(undo), former_needed };
            prop_assert_eq!(Slot::decode(&slot.encode()), Some(slot));
        }

        #[test]
        fn bytes_that_are_no_slot_are_refused(bytes: [u8; SLOT_BYTES]) {
            prop_assert!(Slot::decode(&bytes).is_none_or(|slot| slot.encode() == bytes));
        }
    }

    #[test]
    fn every_slot_has_a_place_of_its_own() {
        let places: std::collections::BTreeSet<_> = (0..SLOTS_MAX as u16).map(place).collect();
        assert_eq!(places.len(), SLOTS_MAX);
        assert!(places.iter().all(|&(block, offset)| block < TABLE_BLOCKS && offset + SLOT_BYTES <= TABLE_HEADER_BYTES));
    }
}
