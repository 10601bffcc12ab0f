//! Where a master's entries lie: in chunks that never move, found by a table of four-byte places.
//!
//! A hash table of whole entries would be nearly half empty each time after it has grown, and an operator pays for that
//! in bytes: here only the table of places is. Owned by the shard of its [`super::super::MasterCore`]; bounded by what the
//! caches hold, and by 2^32 entries.

use std::hash::BuildHasher;

use hashbrown::HashTable;

use super::Entry;
use crate::fusion::grd::BlockHasher;
use crate::ids::BlockId;

/// Entries of a chunk. The last chunk grows up to it.
const CHUNK: usize = 4_096;

#[derive(Clone, Copy, Debug)]
struct Slot {
    block: BlockId,
    entry: Entry,
}

/// With the table of places, an entry is to take at most 100 bytes.
const _: () = assert!(size_of::<Slot>() <= 80);

/// The entries of a directory, by block.
#[derive(Clone, Default)]
pub(in crate::fusion::gcs) struct Entries {
    places: HashTable<u32>,
    chunks: Vec<Vec<Slot>>,
    free: Vec<u32>,
    /// Where the search for an entry to recall goes on.
    hand: u32,
}

fn hash(block: BlockId) -> u64 {
    std::hash::BuildHasherDefault::<BlockHasher>::default().hash_one(block)
}

fn slot(chunks: &[Vec<Slot>], place: u32) -> &Slot {
    &chunks[place as usize / CHUNK][place as usize % CHUNK]
}

impl Entries {
    fn place(&self, block: BlockId) -> Option<u32> {
        self.places.find(hash(block), |&place| slot(&self.chunks, place).block == block).copied()
    }

    fn slot_mut(&mut self, place: u32) -> &mut Slot {
        &mut self.chunks[place as usize / CHUNK][place as usize % CHUNK]
    }

    pub(in crate::fusion::gcs) fn get(&self, block: BlockId) -> Option<&Entry> {
        self.place(block).map(|place| &slot(&self.chunks, place).entry)
    }

    pub(in crate::fusion::gcs) fn get_mut(&mut self, block: BlockId) -> Option<&mut Entry> {
        self.place(block).map(|place| &mut self.slot_mut(place).entry)
    }

    /// The block's entry, made if there is none.
    pub(in crate::fusion::gcs) fn of(&mut self, block: BlockId) -> &mut Entry {
        let place = self.place(block).unwrap_or_else(|| self.add(block));
        &mut self.slot_mut(place).entry
    }

    fn add(&mut self, block: BlockId) -> u32 {
        let new = Slot { block, entry: Entry { in_use: true, ..Entry::default() } };
        let place = match self.free.pop() {
            Some(place) => {
                *self.slot_mut(place) = new;
                place
            }
            None => {
                if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
                    self.chunks.push(Vec::new());
                }
                let chunk = self.chunks.last_mut().expect("pushed if there was none");
                chunk.push(new);
                let before = chunk.len() - 1;
                u32::try_from((self.chunks.len() - 1) * CHUNK + before).expect("a shard's directory has fewer than 2^32 entries")
            }
        };
        let chunks = &self.chunks;
        self.places.insert_unique(hash(block), place, |&place| hash(slot(chunks, place).block));
        place
    }

    pub(in crate::fusion::gcs) fn remove(&mut self, block: BlockId) {
        let chunks = &self.chunks;
        let found = self.places.find_entry(hash(block), |&place| slot(chunks, place).block == block);
        if let Ok(found) = found {
            let (place, _) = found.remove();
            self.slot_mut(place).entry.in_use = false;
            self.free.push(place);
        }
    }

    /// Takes the block's entry out.
    pub(in crate::fusion::gcs) fn take(&mut self, block: BlockId) -> Option<Entry> {
        let entry = self.get(block).copied();
        self.remove(block);
        entry
    }

    /// The blocks that fit among the `most` places from `place` on; where to go on, unless that was all.
    pub(in crate::fusion::gcs) fn scan(&self, place: usize, most: usize, mut fits: impl FnMut(BlockId)) -> Option<usize> {
        let places = self.places_taken();
        let end = places.min(place + most);
        for place in place..end {
            let slot = slot(&self.chunks, place as u32);
            if slot.entry.in_use {
                fits(slot.block);
            }
        }
        (end < places).then_some(end)
    }

    /// Places that are in use or free again.
    fn places_taken(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK + last.len())
    }

    pub(in crate::fusion::gcs) fn contains(&self, block: BlockId) -> bool {
        self.place(block).is_some()
    }

    pub(in crate::fusion::gcs) fn len(&self) -> usize {
        self.places.len()
    }

    /// All of them, in the order of their places.
    pub(in crate::fusion::gcs) fn iter(&self) -> impl Iterator<Item = (BlockId, &Entry)> {
        self.chunks.iter().flatten().filter(|slot| slot.entry.in_use).map(|slot| (slot.block, &slot.entry))
    }

    /// The first of the next `most` entries that fits, going round.
    pub(in crate::fusion::gcs) fn next_that(&mut self, most: usize, fits: impl Fn(BlockId, &Entry) -> bool) -> Option<BlockId> {
        let places = self.places_taken();
        for _ in 0..most.min(places) {
            self.hand = if (self.hand as usize) + 1 < places { self.hand + 1 } else { 0 };
            let slot = slot(&self.chunks, self.hand);
            if slot.entry.in_use && fits(slot.block, &slot.entry) {
                return Some(slot.block);
            }
        }
        None
    }

    /// Bytes of memory that it takes, all in all.
    pub(in crate::fusion::gcs) fn bytes(&self) -> usize {
        let chunks: usize = self.chunks.iter().map(|chunk| chunk.capacity() * size_of::<Slot>()).sum();
        chunks + self.chunks.capacity() * size_of::<Vec<Slot>>() + self.places.allocation_size() + self.free.capacity() * 4
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::ids::{BlockNo, NodeId, PartitionId, Scn};

    fn block(number: u64) -> BlockId {
        BlockId::new(PartitionId(number as u32 % 7), BlockNo(number))
    }

    /// What the operator's bound on entries is worth in memory.
    #[test]
    fn an_entry_takes_at_most_a_hundred_bytes_at_any_size() {
        let mut entries = Entries::default();
        for number in 0..2_000_000u64 {
            entries.of(block(number)).exclusive = NodeId(1);
            // Small directories may be dominated by their first chunk.
            if number >= 100_000 && number.is_multiple_of(10_007) || (number + 1).is_power_of_two() && number > 50_000 {
                let (bytes, len) = (entries.bytes(), entries.len());
                assert!(bytes <= 100 * len, "{bytes} bytes for {len} entries");
            }
        }
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0u64..60, 0u8..4), 1..400)) {
            let (mut entries, mut model) = (Entries::default(), HashMap::new());
            for (step, (number, what)) in steps.into_iter().enumerate() {
                let id = block(number);
                match what {
                    0 | 1 => {
                        entries.of(id).disk_scn = Scn(step as u64);
                        model.insert(id, Scn(step as u64));
                    }
                    2 => {
                        entries.remove(id);
                        model.remove(&id);
                    }
                    _ => {
                        let found = entries.next_that(usize::MAX, |_, entry| entry.disk_scn.0 % 2 == 0);
                        let there = model.values().any(|scn| scn.0 % 2 == 0);
                        prop_assert_eq!(found.map(|id| model[&id].0 % 2), there.then_some(0));
                    }
                }
                prop_assert_eq!(entries.get(id).map(|entry| entry.disk_scn), model.get(&id).copied());
                prop_assert_eq!(entries.len(), model.len());
            }
            let mut all: Vec<_> = entries.iter().map(|(id, entry)| (id, entry.disk_scn)).collect();
            let mut expected: Vec<_> = model.into_iter().collect();
            all.sort();
            expected.sort();
            prop_assert_eq!(all, expected);
        }
    }
}
