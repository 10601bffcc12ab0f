//! Two hashes: [`mix`] for the map that all nodes must agree on, and a fast one for the tables of a shard.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::ids::BlockId;

/// Spreads 64 bits over 64 bits (the finaliser of SplitMix64, Steele, Lea and Flood 2014). Part of the protocol.
pub(super) const fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A table of a shard, keyed by block.
pub type BlockMap<V> = HashMap<BlockId, V, BuildHasherDefault<BlockHasher>>;

/// Hashes ids of blocks, for [`BlockMap`], and of partitions: one multiplication a word. The keys come from our own volume, not from clients, so
/// nobody can craft collisions.
#[derive(Clone, Copy, Default)]
pub struct BlockHasher(u64);

impl BlockHasher {
    fn word(&mut self, word: u64) {
        let product = u128::from(self.0.rotate_left(26) ^ word ^ 0x243f_6a88_85a3_08d3) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}

impl Hasher for BlockHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.word(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.word(value);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
