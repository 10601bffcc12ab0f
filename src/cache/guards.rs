//! Latched blocks: what a task holds while it reads or changes one.
//!
//! A guard belongs to the shard's thread (not `Send`) and may be held across awaits, in the lock order: tree leaf, then
//! tree inner (bottom-up, left to right), then space map or extent header, then a freshly created block, then undo
//! header, then undo block. A reader holds one guard and never waits for another block while holding it. A mini-transaction
//! is begun ([`Cache::begin_mtr`](super::Cache::begin_mtr)) before the first write guard is taken where that is possible:
//! it may wait for room in the log.
//!
//! Dropping a guard wakes who is next in line.

use std::fmt;
use std::ops::Deref;
use std::rc::Rc;

use super::cache::Shared;
use super::frame::FrameId;
use crate::ids::{BLOCK_SIZE, BlockId, Scn};
use crate::volume::block::BLOCK_HEADER;

/// A block to read; others may read it too, nobody changes it.
pub struct ReadGuard {
    shared: Rc<Shared>,
    frame: FrameId,
    bytes: *const u8,
}

/// A block to change, by [`Mtr::change`](super::Mtr::change); nobody else on this node looks at it, no other node has it.
pub struct WriteGuard {
    shared: Rc<Shared>,
    frame: FrameId,
    bytes: *mut u8,
}

impl ReadGuard {
    /// Takes over a shared latch.
    #[inline]
    pub(super) fn adopt(shared: Rc<Shared>, frame: FrameId) -> ReadGuard {
        let bytes = shared.arena.address(frame);
        ReadGuard { shared, frame, bytes }
    }

    /// The block.
    #[must_use]
    pub fn block(&self) -> BlockId {
        self.shared.frame(self.frame).block.get()
    }

    /// The version.
    #[must_use]
    pub fn scn(&self) -> Scn {
        self.shared.frame(self.frame).scn.get()
    }
}

impl Deref for ReadGuard {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the frame lies in the arena, which `shared` keeps mapped, and the shared latch keeps changes out.
        unsafe { std::slice::from_raw_parts(self.bytes, BLOCK_SIZE) }
    }
}

impl Drop for ReadGuard {
    #[inline]
    fn drop(&mut self) {
        self.shared.unlatch_shared(self.frame);
    }
}

impl WriteGuard {
    /// Takes over the exclusive latch.
    #[inline]
    pub(super) fn adopt(shared: Rc<Shared>, frame: FrameId) -> WriteGuard {
        let bytes = shared.arena.address(frame);
        WriteGuard { shared, frame, bytes }
    }

    /// The block.
    #[must_use]
    pub fn block(&self) -> BlockId {
        self.shared.frame(self.frame).block.get()
    }

    /// The version, without the changes of an unfinished mini-transaction.
    #[must_use]
    pub fn scn(&self) -> Scn {
        self.shared.frame(self.frame).scn.get()
    }

    /// Overwrites bytes without redo: for what can be found out again, as the commit SCN of a row that is known to be
    /// committed. The stamp travels with the block while it is cached or shipped, reaches the volume if the block is
    /// written for another reason, and may vanish; it must be of no consequence which.
    pub fn stamp_hint(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset.checked_add(bytes.len()).expect("an offset in a block");
        let block = self.block();
        assert!(offset >= BLOCK_HEADER && end <= BLOCK_SIZE, "{block}: a hint of {} bytes at {offset}", bytes.len());
        self.shared.frame(self.frame).sealed.set(false);
        self.bytes_mut()[offset..end].copy_from_slice(bytes);
    }

    pub(super) fn frame(&self) -> FrameId {
        self.frame
    }

    pub(super) fn shared(&self) -> &Rc<Shared> {
        &self.shared
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the frame lies in the arena, which `shared` keeps mapped, and the exclusive latch keeps everyone else out.
        unsafe { std::slice::from_raw_parts_mut(self.bytes, BLOCK_SIZE) }
    }
}

impl Deref for WriteGuard {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: as in `bytes_mut`, and `&self` keeps that one away.
        unsafe { std::slice::from_raw_parts(self.bytes, BLOCK_SIZE) }
    }
}

impl Drop for WriteGuard {
    #[inline]
    fn drop(&mut self) {
        let frame = self.shared.frame(self.frame);
        if frame.pending.get() {
            // The block stays latched until its mini-transaction is complete: half of one is never read, written or shipped.
            frame.latch_owed.set(true);
        } else {
            self.shared.unlatch_exclusive(self.frame);
        }
    }
}

impl fmt::Debug for ReadGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "read guard of {}", self.block())
    }
}

impl fmt::Debug for WriteGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "write guard of {}", self.block())
    }
}
