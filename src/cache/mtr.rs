//! Mini-transactions: changes to a few blocks that are in the log together or not at all.
//!
//! Owned by the task that makes the changes, in one shard. Bounded by its reservation in the log, taken before the first
//! change, so that finishing cannot fail. Promises: the redo of everything changed is one atomic group; all its blocks
//! carry the group's SCN, which is above each of their former ones; no block leaves its latch, is written or shipped
//! between its first change and the end of the mini-transaction.
//!
//! **Half-written blocks.** A block write that power loss interrupts can leave half of it on disk; changes alone can't
//! repair that. So the first group that changes a block after a copy of it was taken for writing (or after it came from
//! disk) carries the whole block instead of its changes: from then on the log rebuilds it from nothing.

use std::rc::Rc;

use super::cache::{Cache, Shared};
use super::coherence::Mode;
use super::error::CacheError;
use super::frame::FrameId;
use super::guards::WriteGuard;
use crate::ids::{BLOCK_SIZE, Lsn};
use crate::volume::block;
use crate::volume::change::Change;
use crate::wal::Reservation;
use crate::wal::redo::{ENTRY_OVERHEAD, GROUP_OVERHEAD, RecordKind, RedoGroupBuilder};

/// Most blocks that one mini-transaction changes without formatting them.
pub const MTR_BLOCKS_MAX: usize = 12;

/// Bytes reserved in the log beyond what the caller asks for: so many whole blocks, which are needed where a copy of them was
/// taken for writing, and the framing (also of blocks that are formatted).
const fn reserve(blocks: usize) -> usize {
    GROUP_OVERHEAD + blocks * (BLOCK_SIZE + 16) + MTR_BLOCKS_MAX * ENTRY_OVERHEAD
}

/// Buffer sets kept for the next mini-transactions.
const POOL_MAX: usize = 64;

#[derive(Default)]
pub(super) struct Buffers {
    group: RedoGroupBuilder,
    payload: Vec<u8>,
    touched: Vec<Touched>,
}

/// A block of this mini-transaction.
struct Touched {
    frame: FrameId,
    /// It was formatted in it, so its redo starts from nothing anyway.
    afresh: bool,
}

/// A mini-transaction. Dropping one that has changed something without [`Mtr::finish`] panics: the blocks would have
/// changed without redo.
pub struct Mtr {
    shared: Rc<Shared>,
    reservation: Reservation,
    blocks_max: usize,
    buffers: Buffers,
}

impl Cache {
    /// Begins a mini-transaction whose encoded changes take at most `bytes` (see
    /// [`Change::encoded_len_max`]; the group's own framing is added here). Waits while the log is full; take the first
    /// write guard after it where that is possible.
    ///
    /// # Errors
    /// When the log has failed.
    pub async fn begin_mtr(&self, bytes: usize) -> Result<Mtr, CacheError> {
        self.begin_mtr_of(bytes, MTR_BLOCKS_MAX).await
    }

    /// As [`begin_mtr`](Self::begin_mtr), of at most `blocks` blocks besides those that it formats (and no more than
    /// [`MTR_BLOCKS_MAX`]). Each may have to go into the log whole, so that few blocks reserve a smaller part of it.
    ///
    /// # Errors
    /// When the log has failed.
    pub async fn begin_mtr_of(&self, bytes: usize, blocks: usize) -> Result<Mtr, CacheError> {
        assert!(blocks <= MTR_BLOCKS_MAX, "a mini-transaction of {blocks} blocks, and {MTR_BLOCKS_MAX} are the most");
        let reservation = self.0.log.reserve(bytes + reserve(blocks)).await.map_err(|error| CacheError::log(&error))?;
        let buffers = self.0.mtr_pool.borrow_mut().pop().unwrap_or_default();
        Ok(Mtr { shared: self.0.clone(), reservation, blocks_max: blocks, buffers })
    }
}

impl Mtr {
    /// Changes a block, now; its redo is appended by [`Mtr::finish`]. The guard may be dropped before that: the block then
    /// stays latched until the end of the mini-transaction, so don't ask for the same block again in between.
    ///
    /// # Panics
    /// When the change is impossible on the block, or would leave a freshly created block without a format.
    pub fn change(&mut self, guard: &mut WriteGuard, change: &Change<'_>) {
        assert!(Rc::ptr_eq(guard.shared(), &self.shared), "{}: changed in a mini-transaction of another cache", guard.block());
        let id = guard.frame();
        let frame = self.shared.frame(id);
        let block = frame.block.get();
        assert!(
            frame.mode.get() == Mode::Exclusive && frame.latch.get() == -1,
            "{block}: changed in mode {:?} (rule 8)",
            frame.mode.get()
        );
        let afresh = change.starts_afresh();
        if !frame.pending.replace(true) {
            let whole = self.buffers.touched.iter().filter(|touched| !touched.afresh).count();
            let most = self.blocks_max;
            assert!(afresh || whole < most, "{block}: a mini-transaction of {most} blocks changes one more");
            self.buffers.touched.push(Touched { frame: id, afresh });
        }
        frame.sealed.set(false);
        assert!(afresh || !frame.fresh.get(), "{block}: a created block must be formatted first");
        frame.fresh.set(false);
        let bytes = guard.bytes_mut();
        if afresh {
            block::set_identity(bytes, block);
        }
        if let Err(fault) = change.apply(bytes) {
            panic!("{block}: impossible change {change:?}: {fault}");
        }
        change.encode(self.buffers.group.changes(block, frame.scn.get()));
    }

    /// Whether nothing was changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffers.touched.is_empty()
    }

    /// Ends the mini-transaction: draws its SCN, appends its redo, stamps its blocks. Returns the end of its redo in the
    /// log: it is durable when [`Log::durable_lsn`](crate::wal::Log::durable_lsn) has come there.
    pub fn finish(mut self) -> Lsn {
        let shared = self.shared.clone();
        let start = shared.log.append_lsn();
        if self.buffers.touched.is_empty() {
            return start;
        }
        let Buffers { group, payload, touched } = &mut self.buffers;
        for touched in touched.iter() {
            let frame = shared.frame(touched.frame);
            if touched.afresh || !shared.config.full_images || !frame.needs_image.get() {
                continue;
            }
            let changes = group.changes(frame.block.get(), frame.scn.get());
            changes.clear();
            // SAFETY: the frame is latched exclusively for this mini-transaction, which is not changing it now.
            Change::full_image(unsafe { shared.arena.bytes(touched.frame) }).encode(changes);
            shared.stats.redo_images.add(1);
        }
        let scn = shared.clock.next(shared.reactor.wall_ms());
        payload.clear();
        group.encode(scn, payload);
        let end = shared.log.append(&mut self.reservation, RecordKind::RedoGroup, &[payload]);
        assert!(end > start, "the log gave {end} as the end of a record that begins at {start}");
        shared.stats.mini_transactions.add(1);
        shared.stats.redo_bytes.add(payload.len() as u64);
        for touched in touched.drain(..) {
            let frame = shared.frame(touched.frame);
            let block = frame.block.get();
            assert!(frame.pending.replace(false) && frame.latch.get() == -1, "{block}: lost its latch in a mini-transaction");
            assert!(frame.mode.get() == Mode::Exclusive, "{block}: lost its mode in a mini-transaction");
            assert!(frame.scn.get() < scn, "{block}: {scn} is not above its version {} (rule 10)", frame.scn.get());
            // SAFETY: as above; the exclusive latch belongs to this mini-transaction until it is released below.
            block::set_scn(unsafe { shared.arena.bytes_mut(touched.frame) }, scn);
            frame.scn.set(scn);
            frame.last_lsn.set(end);
            frame.needs_image.set(false);
            if !frame.dirty.get() {
                shared.mark_dirty(touched.frame, start);
            } else if frame.writing.get().is_some() && frame.redirtied_lsn.get().is_none() {
                frame.redirtied_lsn.set(Some(start));
            }
            if frame.latch_owed.replace(false) {
                shared.unlatch_exclusive(touched.frame);
            }
        }
        group.clear();
        let mut pool = shared.mtr_pool.borrow_mut();
        if pool.len() < POOL_MAX {
            pool.push(std::mem::take(&mut self.buffers));
        }
        drop(pool);
        shared.watch_dirty();
        end
    }
}

impl Drop for Mtr {
    fn drop(&mut self) {
        if !self.buffers.touched.is_empty() && !std::thread::panicking() {
            panic!("a mini-transaction was dropped after it changed {} blocks", self.buffers.touched.len());
        }
    }
}
