//! Which frame to give up: S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023).
//!
//! Owned by one shard; lists are links in the frames, so a hit costs one counter and nothing else. A block enters a small
//! queue (a tenth of the frames); one that is used again moves to the main queue, one that is not leaves first: a scan
//! passes through the small queue and leaves the working set alone. A block that returns soon after it was evicted from
//! the small queue (its fingerprint is still there) goes to the main queue directly.
//!
//! Bounded: the fingerprints are a table of fixed size, and a search looks at no more than [`SEARCH_MAX`] frames.

use std::cell::Cell;

use super::frame::{Frame, FrameId, NO_FRAME};
use super::map::hash;
use crate::ids::BlockId;

/// Frames that one search looks at before it gives up for now.
const SEARCH_MAX: usize = 256;

/// Uses after which a block in the small queue belongs to the working set. The first access is not counted.
const PROMOTE_AT: u8 = 2;

const SMALL: u8 = 1;
const MAIN: u8 = 2;

#[derive(Default)]
struct Queue {
    head: Cell<u32>,
    tail: Cell<u32>,
    len: Cell<usize>,
}

/// The queues.
pub(super) struct Replacement {
    small: Queue,
    main: Queue,
    small_target: usize,
    ghosts: Box<[Cell<u32>]>,
}

impl Replacement {
    pub(super) fn new(frames: usize) -> Replacement {
        let queue = || Queue { head: Cell::new(NO_FRAME), tail: Cell::new(NO_FRAME), len: Cell::new(0) };
        Replacement {
            small: queue(),
            main: queue(),
            small_target: (frames / 10).max(1),
            ghosts: vec![Cell::new(0); frames.next_power_of_two()].into(),
        }
    }

    /// A frame has come into use for a block.
    pub(super) fn admit(&self, frames: &[Frame], frame: FrameId, block: BlockId) {
        let returned = self.ghost(block).get() == fingerprint(block);
        if returned {
            self.ghost(block).set(0);
        }
        self.push(frames, if returned { MAIN } else { SMALL }, frame.0);
    }

    /// A frame goes out of use, by eviction or otherwise.
    pub(super) fn forget(&self, frames: &[Frame], frame: FrameId) {
        self.unlink(frames, frame.0);
    }

    /// A frame that may be given up, coldest first; it stays in its queue until [`Replacement::forget`]. `None` when a
    /// search found none: most frames are dirty or in use.
    pub(super) fn victim(&self, frames: &[Frame]) -> Option<FrameId> {
        for _ in 0..SEARCH_MAX.min(self.small.len.get() + self.main.len.get()) {
            let from_small = self.small.len.get() > self.small_target || self.main.len.get() == 0;
            let queue = if from_small { &self.small } else { &self.main };
            let candidate = queue.head.get();
            let frame = &frames[candidate as usize];
            let heat = frame.heat.get();
            self.unlink(frames, candidate);
            if from_small && heat >= PROMOTE_AT {
                frame.heat.set(0);
                self.push(frames, MAIN, candidate);
            } else if !from_small && heat > 0 {
                frame.heat.set(heat - 1);
                self.push(frames, MAIN, candidate);
            } else if frame.evictable() {
                if from_small {
                    let block = frame.block.get();
                    self.ghost(block).set(fingerprint(block));
                }
                self.push(frames, if from_small { SMALL } else { MAIN }, candidate);
                return Some(FrameId(candidate));
            } else {
                // Dirty or in use: it has not shown that it is cold. Behind the others, in the main queue, so that a
                // small queue full of dirty blocks doesn't hide the clean ones.
                self.push(frames, MAIN, candidate);
            }
        }
        None
    }

    fn ghost(&self, block: BlockId) -> &Cell<u32> {
        &self.ghosts[(hash(block) >> 32) as usize & (self.ghosts.len() - 1)]
    }

    fn queue(&self, which: u8) -> &Queue {
        if which == SMALL { &self.small } else { &self.main }
    }

    fn push(&self, frames: &[Frame], which: u8, at: u32) {
        let frame = &frames[at as usize];
        assert!(frame.queue.get() == 0, "{}: in two replacement queues", frame.block.get());
        let queue = self.queue(which);
        frame.queue.set(which);
        frame.previous.set(queue.tail.get());
        frame.next.set(NO_FRAME);
        match queue.tail.get() {
            NO_FRAME => queue.head.set(at),
            tail => frames[tail as usize].next.set(at),
        }
        queue.tail.set(at);
        queue.len.set(queue.len.get() + 1);
    }

    fn unlink(&self, frames: &[Frame], at: u32) {
        let frame = &frames[at as usize];
        assert!(frame.queue.get() != 0, "{}: in no replacement queue", frame.block.get());
        let queue = self.queue(frame.queue.get());
        let (previous, next) = (frame.previous.get(), frame.next.get());
        match previous {
            NO_FRAME => queue.head.set(next),
            previous => frames[previous as usize].next.set(next),
        }
        match next {
            NO_FRAME => queue.tail.set(previous),
            next => frames[next as usize].previous.set(previous),
        }
        frame.queue.set(0);
        queue.len.set(queue.len.get() - 1);
    }
}

/// Never 0, which stands for none.
fn fingerprint(block: BlockId) -> u32 {
    (hash(block) as u32) | 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::coherence::Mode;
    use crate::cache::frame::Role;
    use crate::ids::{BlockNo, PartitionId};
    use std::collections::HashMap;

    /// A cache of 100 frames in miniature: map, frames, replacement.
    struct Toy {
        frames: Vec<Frame>,
        replacement: Replacement,
        map: HashMap<u64, FrameId>,
        free: Vec<FrameId>,
    }

    impl Toy {
        fn new() -> Toy {
            let frames: Vec<Frame> = (0..100).map(|_| Frame::free()).collect();
            Toy { frames, replacement: Replacement::new(100), map: HashMap::new(), free: (0..100).map(FrameId).collect() }
        }

        /// Whether it was a hit.
        fn access(&mut self, block: u64) -> bool {
            if let Some(frame) = self.map.get(&block) {
                self.frames[frame.0 as usize].touch();
                return true;
            }
            let frame = self.free.pop().unwrap_or_else(|| {
                let victim = self.replacement.victim(&self.frames).expect("everything is clean");
                self.replacement.forget(&self.frames, victim);
                self.map.remove(&self.frames[victim.0 as usize].block.get().block.0);
                victim
            });
            let id = BlockId::new(PartitionId(1), BlockNo(block));
            self.frames[frame.0 as usize].reset(id, Role::Current);
            self.frames[frame.0 as usize].mode.set(Mode::Shared);
            self.replacement.admit(&self.frames, frame, id);
            self.map.insert(block, frame);
            false
        }
    }

    #[test]
    fn a_scan_of_ten_times_the_cache_leaves_the_working_set_in_it() {
        let mut toy = Toy::new();
        for _ in 0..6 {
            (0..60).for_each(|block| {
                toy.access(block);
            });
        }
        (1_000..2_000).for_each(|block| {
            toy.access(block);
        });
        let hits = (0..60).filter(|&block| toy.access(block)).count();
        assert!(hits >= 55, "only {hits} of 60 survived");
    }

    #[test]
    fn dirty_frames_are_passed_over_and_an_all_dirty_cache_has_no_victim() {
        let mut toy = Toy::new();
        (0..100).for_each(|block| {
            toy.access(block);
        });
        toy.frames.iter().for_each(|frame| frame.dirty.set(true));
        assert_eq!(toy.replacement.victim(&toy.frames), None);
        toy.frames[42].dirty.set(false);
        assert_eq!(toy.replacement.victim(&toy.frames), Some(FrameId(42)));
    }
}
