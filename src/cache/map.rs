//! Which frame holds a block: open addressing with linear probing, sized once at twice the frames.
//!
//! Owned by one shard; no borrow flags and no allocation after start, because every access to a cached block passes here.
//! Bounded by the number of frames; at most half full, so that probes stay short.

use std::cell::Cell;

use super::frame::FrameId;
use crate::ids::{BlockId, BlockNo, PartitionId};

/// One slot; `frame == EMPTY` says it holds nothing.
#[derive(Clone, Copy)]
struct Slot {
    block: u64,
    partition: u32,
    frame: u32,
}

const EMPTY: u32 = u32::MAX;

/// A block's hash: neighbours in a volume land apart, the upper bits are the good ones.
#[inline]
pub(super) fn hash(block: BlockId) -> u64 {
    (block.block.0 ^ (u64::from(block.partition.0) << 40)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Blocks to frames.
pub(super) struct FrameMap {
    slots: Box<[Cell<Slot>]>,
    shift: u32,
    used: Cell<usize>,
}

impl FrameMap {
    /// A map for at most `entries` blocks.
    pub(super) fn new(entries: usize) -> FrameMap {
        let slots = (entries * 2).next_power_of_two().max(16);
        let empty = Slot { block: 0, partition: 0, frame: EMPTY };
        FrameMap { slots: vec![Cell::new(empty); slots].into(), shift: 64 - slots.trailing_zeros(), used: Cell::new(0) }
    }

    #[inline]
    fn home(&self, block: BlockId) -> usize {
        (hash(block) >> self.shift) as usize
    }

    /// The frame of a block.
    #[inline]
    pub(super) fn find(&self, block: BlockId) -> Option<FrameId> {
        let mask = self.slots.len() - 1;
        let mut at = self.home(block);
        loop {
            let slot = self.slots[at & mask].get();
            if slot.frame == EMPTY {
                return None;
            }
            if slot.block == block.block.0 && slot.partition == block.partition.0 {
                return Some(FrameId(slot.frame));
            }
            at += 1;
        }
    }

    /// Adds a block that is not in the map.
    pub(super) fn insert(&self, block: BlockId, frame: FrameId) {
        assert!(self.used.get() < self.slots.len() / 2, "more blocks in the map than frames");
        let mask = self.slots.len() - 1;
        let mut at = self.home(block) & mask;
        loop {
            let slot = self.slots[at].get();
            if slot.frame == EMPTY {
                break;
            }
            assert!(slot.block != block.block.0 || slot.partition != block.partition.0, "{block} is in two frames");
            at = (at + 1) & mask;
        }
        self.slots[at].set(Slot { block: block.block.0, partition: block.partition.0, frame: frame.0 });
        self.used.set(self.used.get() + 1);
    }

    /// Removes a block; what had been displaced past it moves back, so there are no tombstones.
    pub(super) fn remove(&self, block: BlockId) -> Option<FrameId> {
        let mask = self.slots.len() - 1;
        let mut at = self.home(block) & mask;
        let removed = loop {
            let slot = self.slots[at].get();
            if slot.frame == EMPTY {
                return None;
            }
            if slot.block == block.block.0 && slot.partition == block.partition.0 {
                break FrameId(slot.frame);
            }
            at = (at + 1) & mask;
        };
        let mut next = at;
        loop {
            next = (next + 1) & mask;
            let slot = self.slots[next].get();
            if slot.frame == EMPTY {
                break;
            }
            let home = self.home(BlockId::new(PartitionId(slot.partition), BlockNo(slot.block))) & mask;
            // It may move to the hole only if its home is not between the hole and itself.
            if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(at) & mask) {
                self.slots[at].set(slot);
                at = next;
            }
        }
        self.slots[at].set(Slot { block: 0, partition: 0, frame: EMPTY });
        self.used.set(self.used.get() - 1);
        Some(removed)
    }

    /// Number of blocks.
    pub(super) fn len(&self) -> usize {
        self.used.get()
    }

    /// Every block with its frame, in no particular order. The map may be changed while the answer is walked.
    pub(super) fn entries(&self) -> Vec<(BlockId, FrameId)> {
        let entry = |slot: &Cell<Slot>| {
            let slot = slot.get();
            (slot.frame != EMPTY).then(|| (BlockId::new(PartitionId(slot.partition), BlockNo(slot.block)), FrameId(slot.frame)))
        };
        self.slots.iter().filter_map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn it_is_a_map(steps in proptest::collection::vec((0u8..3, 0u32..3, 0u64..40), 0..400)) {
            let map = FrameMap::new(200);
            let mut model: HashMap<BlockId, FrameId> = HashMap::new();
            for (i, (step, partition, block)) in steps.into_iter().enumerate() {
                let block = BlockId::new(PartitionId(partition), BlockNo(block));
                match step {
                    0 if !model.contains_key(&block) => {
                        map.insert(block, FrameId(i as u32));
                        model.insert(block, FrameId(i as u32));
                    }
                    1 => prop_assert_eq!(map.remove(block), model.remove(&block)),
                    _ => prop_assert_eq!(map.find(block), model.get(&block).copied()),
                }
                prop_assert_eq!(map.len(), model.len());
            }
            let mut entries: Vec<_> = map.entries();
            let mut expected: Vec<_> = model.into_iter().collect();
            entries.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(entries, expected);
        }
    }
}
