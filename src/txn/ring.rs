//! Which undo blocks are in use and when they may be used again.
//!
//! Owned by one shard; a state machine without I/O. Blocks are filled one after the other and come back in the same order:
//! a block is free again when all transactions that wrote to it have ended, every snapshot in use is younger than their
//! ends, and `undo_retention` has passed (the last is given up when the ring has reached its bound).

use std::collections::VecDeque;

use crate::ids::{BlockNo, Scn};

/// Undo blocks of a shard beyond which `undo_retention` is no longer kept: 64 MiB.
pub const UNDO_BLOCKS_SOFT_MAX: usize = 8192;

/// A block that takes no more records.
#[derive(Clone, Copy, Debug)]
struct Full {
    block: BlockNo,
    /// Clock reading of its last record.
    last_written: Scn,
    /// Clock reading by which all its transactions had ended.
    ended: Option<Scn>,
}

/// The undo blocks of a shard.
#[derive(Debug)]
pub struct UndoRing {
    /// The block that takes records.
    current: Option<(BlockNo, Scn)>,
    full: VecDeque<Full>,
    /// Empty blocks.
    spare: VecDeque<BlockNo>,
    retention_ms: u64,
}

impl UndoRing {
    /// A ring of `spare` blocks; `left` are those that an earlier life wrote to, at or below `written`.
    #[must_use]
    pub fn new(
        spare: impl IntoIterator<Item = BlockNo>,
        left: impl IntoIterator<Item = BlockNo>,
        written: Scn,
        retention_ms: u64,
    ) -> UndoRing {
        let full = left.into_iter().map(|block| Full { block, last_written: written, ended: None }).collect();
        UndoRing { current: None, full, spare: spare.into_iter().collect(), retention_ms }
    }

    /// The block that takes records.
    #[must_use]
    pub fn current(&self) -> Option<BlockNo> {
        self.current.map(|(block, _)| block)
    }

    /// A record was written to the current block at `now`.
    pub fn written(&mut self, now: Scn) {
        let (_, last_written) = self.current.as_mut().expect("a record goes to the current block");
        *last_written = now.max(*last_written);
    }

    /// The current block is full: takes the next, `None` if there is none. The caller formats it.
    pub fn next(&mut self) -> Option<BlockNo> {
        let block = self.spare.pop_front()?;
        if let Some((block, last_written)) = self.current.replace((block, Scn::ZERO)) {
            self.full.push_back(Full { block, last_written, ended: None });
        }
        Some(block)
    }

    /// The next block could not be formatted, and goes back.
    pub fn give_back(&mut self, block: BlockNo) {
        assert_eq!(self.current.take().map(|(current, _)| current), Some(block), "only the newest block comes back");
        self.spare.push_front(block);
    }

    /// New blocks from the volume.
    pub fn grow(&mut self, blocks: impl IntoIterator<Item = BlockNo>) {
        self.spare.extend(blocks);
    }

    /// Looks which blocks are free again. `oldest_begin`: the oldest unfinished transaction began after this reading of
    /// the clock; `oldest_snapshot`: the cluster's.
    pub fn recycle(&mut self, now: Scn, oldest_begin: Option<Scn>, oldest_snapshot: Scn) {
        for full in self.full.iter_mut().skip_while(|full| full.ended.is_some()) {
            if oldest_begin.is_some_and(|begin| full.last_written >= begin) {
                break;
            }
            full.ended = Some(now);
        }
        while let Some(&Full { block, ended: Some(ended), .. }) = self.full.front() {
            let kept_for_flashback = self.blocks() < UNDO_BLOCKS_SOFT_MAX
                && ended.unix_ms() + self.retention_ms > now.unix_ms()
                && self.retention_ms > 0;
            if ended >= oldest_snapshot || kept_for_flashback {
                break;
            }
            self.full.pop_front();
            self.spare.push_back(block);
        }
    }

    /// Empty blocks at hand.
    #[must_use]
    pub fn spare(&self) -> usize {
        self.spare.len()
    }

    /// All blocks of the ring.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.spare.len() + self.full.len() + usize::from(self.current.is_some())
    }

    /// Blocks with records that somebody may need.
    #[must_use]
    pub fn blocks_in_use(&self) -> usize {
        self.blocks() - self.spare.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(range: std::ops::Range<u64>) -> impl Iterator<Item = BlockNo> {
        range.map(BlockNo)
    }

    #[test]
    fn a_block_comes_back_when_nobody_can_need_it() {
        let mut ring = UndoRing::new(blocks(0..2), [], Scn::ZERO, 0);
        assert_eq!(ring.next(), Some(BlockNo(0)));
        ring.written(Scn(10));
        assert_eq!(ring.next(), Some(BlockNo(1)));
        ring.recycle(Scn(20), Some(Scn(10)), Scn(100));
        assert_eq!(ring.spare(), 0, "a transaction that began at 10 may have written to it");
        ring.recycle(Scn(20), Some(Scn(11)), Scn(20));
        assert_eq!(ring.spare(), 0, "a snapshot at 20 may need a version from before a commit at 20");
        ring.recycle(Scn(30), Some(Scn(11)), Scn(21));
        assert_eq!(ring.next(), Some(BlockNo(0)));
    }

    #[test]
    fn retention_holds_blocks_until_the_ring_is_at_its_bound() {
        let ms = Scn::from_unix_ms;
        let mut ring = UndoRing::new(blocks(0..UNDO_BLOCKS_SOFT_MAX as u64 - 1), [], Scn::ZERO, 1000);
        while ring.next().is_some() {
            ring.written(ms(10));
        }
        ring.recycle(ms(20), None, ms(500));
        assert_eq!(ring.spare(), 0);
        ring.grow([BlockNo(99_999)]);
        ring.recycle(ms(600), None, ms(500));
        assert!(ring.spare() > 1, "at the bound the retention is given up");
        let mut ring = UndoRing::new(blocks(0..2), [], Scn::ZERO, 1000);
        ring.next();
        ring.written(ms(10));
        ring.next();
        ring.recycle(ms(20), None, ms(500));
        assert_eq!(ring.spare(), 0);
        ring.recycle(ms(1020), None, ms(1000));
        assert_eq!(ring.spare(), 1);
    }

    #[test]
    fn what_a_former_life_wrote_is_kept_until_its_dead_are_rolled_back() {
        let mut ring = UndoRing::new([], blocks(0..3), Scn(50), 0);
        ring.recycle(Scn(60), Some(Scn::ZERO), Scn(60));
        assert_eq!(ring.spare(), 0);
        ring.recycle(Scn(60), None, Scn(60));
        ring.recycle(Scn(70), None, Scn(61));
        assert_eq!((ring.spare(), ring.blocks_in_use()), (3, 0));
    }
}
