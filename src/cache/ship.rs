//! What the cluster asks of the cache: give a block away, stop reading it, write it, forget it.
//!
//! Owned by one shard; called by Cache Fusion's agent. One thing at a time per block (rule 5, the master's serialising),
//! so nothing in here queues up. Promises: what is handed out to be shipped has its redo on disk (rule 1), is not being
//! written (rule 8) and does not change before the last buffer of it is dropped.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::rc::Rc;

use super::cache::{Cache, Shared};
use super::coherence::Mode;
use super::error::CacheError;
use super::frame::{FrameId, Role, bar};
use super::wait::{Kind, Outcome};
use crate::ids::{BLOCK_SIZE, BlockId, Scn};
use crate::reactor::IoBuf;
use crate::rules::{DesignRule, kept};
use crate::volume::block;

/// What remains of a block here after it has been protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remains {
    /// A `Shared` copy. Where the block was dirty this node stays its owner and will write it.
    KeepShared,
    /// A past image: the block was dirty, and whoever it was shipped to owns it now.
    BecomePastImage,
    /// Nothing: the block was clean.
    Dropped,
}

/// What a cache has of a block: what a master has to know of it when it rebuilds its directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// The version here; zero while it is being read from the volume.
    pub scn: Scn,
    /// The newest version that this node knows to be on the volume; zero when it knows of none.
    pub disk_scn: Scn,
    /// Newer than the volume, and this node is the one that must write it.
    pub dirty: bool,
}

/// A block between being told to give it away and having shipped it. While it lives nothing local starts on the block.
/// Ended by [`ProtectedBlock::finish`]; dropped without, the block is as it was before.
pub struct ProtectedBlock {
    shared: Rc<Shared>,
    frame: FrameId,
    /// For the answer to a request that is under way, if the block goes.
    spare: Option<FrameId>,
    /// The frame is out of the map: the answer has got the spare one.
    apart: bool,
    finished: bool,
}

/// Keeps a frame from being changed or used for something else while its bytes are being sent.
struct SendHold {
    shared: Rc<Shared>,
    frame: FrameId,
}

impl Drop for SendHold {
    fn drop(&mut self) {
        self.shared.unlatch_shared(self.frame);
    }
}

/// Keeps a frame reserved while bytes are received into it.
struct ReceiveHold {
    shared: Rc<Shared>,
    frame: FrameId,
}

impl Drop for ReceiveHold {
    fn drop(&mut self) {
        self.shared.unlatch_exclusive(self.frame);
    }
}

impl Cache {
    /// The frame that is reserved for the answer to the [`Acquire`](super::Acquire) of a block, to receive it into. Drop the
    /// buffer before the request is answered. `None` where the frame doesn't wait for bytes (the answer came already, or the
    /// frame holds valid bytes that are being read): then what arrives is late or not needed and belongs elsewhere.
    #[must_use]
    pub fn receive_buffer(&self, block: BlockId) -> Option<IoBuf> {
        let frame = self.0.map.find(block)?;
        let state = self.0.frame(frame);
        let awaited = state.role.get() == Role::Current && state.acquiring.get().is_some();
        if !awaited || state.mode.get() != Mode::Null || state.latch.get() != 0 {
            return None;
        }
        state.latch.set(-1);
        let address = NonNull::new(self.0.arena.address(frame)).expect("the arena is mapped");
        let hold: Rc<dyn Any> = Rc::new(ReceiveHold { shared: self.0.clone(), frame });
        // SAFETY: the hold keeps the arena mapped and the frame's exclusive latch, so nobody else looks at its bytes.
        Some(unsafe { IoBuf::from_raw(address, BLOCK_SIZE, hold) })
    }

    /// Makes a block ready to be given away: waits until no guard is held, no write is in flight and its redo is durable.
    /// Nothing local starts on it from then on until the answer is finished. Tasks that were in line before go first, for
    /// at most [`HOLD_US_MAX`](super::HOLD_US_MAX).
    ///
    /// `None` when the block is not here in any mode (it has left, or is leaving).
    ///
    /// # Errors
    /// When the log can't make the redo durable. The block must then not be given to anyone: no version of it that others
    /// could have is complete, and this node has to stop.
    pub async fn protect(&self, block: BlockId) -> Result<Option<ProtectedBlock>, CacheError> {
        let shared = &self.0;
        let Some(id) = shared.held(block) else { return Ok(None) };
        if shared.join_remote(id, Kind::Protect).await != Outcome::Granted {
            return Ok(None);
        }
        let mut protected = ProtectedBlock { shared: shared.clone(), frame: id, spare: None, apart: false, finished: false };
        let frame = shared.frame(id);
        if kept(DesignRule::RedoBeforeShip) {
            shared.log.flush_to(frame.last_lsn.get()).await.map_err(|error| CacheError::log(&error))?;
        }
        if kept(DesignRule::NotShippedWhileWritten) {
            shared.settled.until(|| frame.writing.get().is_none()).await;
        }
        if frame.acquiring.get().is_some() {
            // A past image needs a frame of its own in any case; a clean block can do without, and is copied then.
            protected.spare =
                if frame.dirty.get() { Some(shared.spare(block).await?) } else { shared.take_frame(block, Role::PastImage) };
        }
        protected.check();
        if !frame.sealed.replace(true) {
            // SAFETY: a protected frame has no latch holder and gets none, and this turn ends nowhere in here.
            block::seal(unsafe { shared.arena.bytes_mut(id) });
        }
        Ok(Some(protected))
    }

    /// Takes back the right to read: waits for the readers, then the block is gone from here. Does nothing when it is not
    /// here, or is leaving. For a dirty block use [`Cache::protect`]: it must not vanish.
    pub async fn invalidate(&self, block: BlockId) {
        if let Some(frame) = self.0.held(block) {
            self.0.join_remote(frame, Kind::Invalidate).await;
        }
    }

    /// A version of the block at least as new as `up_to` is on disk, and logged as written: past images up to there are
    /// not needed any more. A newer one stays (rule 7).
    pub fn discard_past_image(&self, block: BlockId, up_to: Scn) {
        let shared = &self.0;
        let Some(&id) = shared.past_images.borrow().get(&block) else { return };
        if shared.frame(id).scn.get() <= up_to {
            shared.past_images.borrow_mut().remove(&block);
            shared.drop_past_image(id);
        }
    }

    /// Version of the past image kept here, if there is one.
    #[must_use]
    pub fn past_image(&self, block: BlockId) -> Option<Scn> {
        let id = *self.0.past_images.borrow().get(&block)?;
        Some(self.0.frame(id).scn.get())
    }

    /// Bytes of the past image kept here: recovery starts from the newest one.
    #[must_use]
    pub fn past_image_bytes(&self, block: BlockId) -> Option<Vec<u8>> {
        let id = *self.0.past_images.borrow().get(&block)?;
        // SAFETY: past images don't change, and this turn ends nowhere in here.
        Some(unsafe { self.0.arena.bytes(id) }.to_vec())
    }

    /// What is here of a block that this node has in some mode.
    ///
    /// A clean `Shared` copy says nothing about the volume: another node may still have to write that version. Who has it
    /// `Exclusive` and clean knows that it is there.
    #[must_use]
    pub fn standing(&self, block: BlockId) -> Option<Standing> {
        let frame = self.0.frame(self.0.map.find(block)?);
        let mode = if frame.mode.get() == Mode::Protected { frame.protected_from.get() } else { frame.mode.get() };
        if mode == Mode::Null {
            return None;
        }
        if frame.is_barred(bar::LOADING) {
            return Some(Standing { scn: Scn::ZERO, disk_scn: Scn::ZERO, dirty: false });
        }
        let (scn, dirty) = (frame.scn.get(), frame.dirty.get());
        let disk_scn = if mode == Mode::Exclusive && !dirty { scn } else { frame.disk_scn.get() };
        Some(Standing { scn, disk_scn, dirty })
    }

    /// The past images kept here, with their versions, in the order of the blocks.
    #[must_use]
    pub fn past_images(&self) -> Vec<(BlockId, Scn)> {
        let images = self.0.past_images.borrow();
        let mut images: Vec<_> = images.iter().map(|(&block, &id)| (block, self.0.frame(id).scn.get())).collect();
        images.sort_unstable();
        images
    }

    /// Whether a buffer of [`Cache::receive_buffer`] for this block is still out.
    #[must_use]
    pub fn is_receiving(&self, block: BlockId) -> bool {
        let Some(frame) = self.0.map.find(block) else { return false };
        let state = self.0.frame(frame);
        state.acquiring.get().is_some() && state.mode.get() == Mode::Null && state.latch.get() == -1
    }

    /// Somebody's log or cache waits for this block to be written: write it soon. Does nothing if it is not dirty here.
    pub fn request_write(&self, block: BlockId) {
        if let Some(frame) = self.0.map.find(block) {
            self.0.want_write(frame);
        }
    }
}

impl Shared {
    /// The frame of a block that is here in some mode and not about to leave.
    fn held(&self, block: BlockId) -> Option<FrameId> {
        let id = self.map.find(block)?;
        let frame = self.frame(id);
        (frame.mode.get() != Mode::Null && !frame.is_barred(bar::EVICTING)).then_some(id)
    }

    /// A frame for a past image.
    async fn spare(self: &Rc<Self>, block: BlockId) -> Result<FrameId, CacheError> {
        loop {
            if let Some(id) = self.take_frame(block, Role::PastImage) {
                return Ok(id);
            }
            if self.closed.get() {
                return Err(CacheError::Closed);
            }
            self.frames_freed.until(|| self.has_free() || self.closed.get()).await;
        }
    }

    /// Ends a protection: the block is as it was.
    pub(super) fn unprotect(self: &Rc<Self>, id: FrameId) {
        let frame = self.frame(id);
        assert!(frame.mode.get() == Mode::Protected, "{}: not protected", frame.block.get());
        frame.mode.set(frame.protected_from.get());
        frame.unbar(bar::PROTECTED);
        self.pump(id);
    }

    /// Keeps a former version. An older one of the same block is not needed beside it.
    fn keep_past_image(&self, id: FrameId) {
        let frame = self.frame(id);
        assert!(frame.role.get() == Role::PastImage, "{}: kept as a past image in another role", frame.block.get());
        let older = self.past_images.borrow_mut().insert(frame.block.get(), id);
        if let Some(older) = older {
            // But the redo that made it is: the volume has neither.
            let oldest = self.frame(older).first_dirty_lsn.get().min(frame.first_dirty_lsn.get());
            self.mark_clean(id);
            self.mark_dirty(id, oldest);
            self.drop_past_image(older);
        }
    }

    /// Gives up a past image that is out of the table.
    fn drop_past_image(&self, id: FrameId) {
        self.mark_clean(id);
        self.frame(id).role.set(Role::Doomed);
        if self.frame(id).latch.get() == 0 {
            self.free(id);
        }
    }
}

impl ProtectedBlock {
    /// The block.
    #[must_use]
    pub fn block(&self) -> BlockId {
        self.shared.frame(self.frame).block.get()
    }

    /// The version that is being given away.
    #[must_use]
    pub fn scn(&self) -> Scn {
        self.shared.frame(self.frame).scn.get()
    }

    /// Whether it is newer than the volume and this node was to write it.
    #[must_use]
    pub fn dirty(&self) -> bool {
        self.shared.frame(self.frame).dirty.get()
    }

    /// The mode before.
    #[must_use]
    pub fn mode_before(&self) -> Mode {
        self.shared.frame(self.frame).protected_from.get()
    }

    /// The block, with its checksum.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the frame is protected, nothing changes it while `self` lives.
        unsafe { self.shared.arena.bytes(self.frame) }
    }

    /// The block as a buffer to send, straight from its frame, which stays as it is until the buffer is dropped. May be
    /// asked for several times.
    #[must_use]
    pub fn io_buf(&self) -> IoBuf {
        self.check();
        let frame = self.shared.frame(self.frame);
        self.shared.stats.shipped.add(1);
        if frame.acquiring.get().is_some() {
            // The frame is reserved for an answer that may come before these bytes are out.
            let mut copy = IoBuf::aligned(BLOCK_SIZE);
            copy.as_mut_slice().copy_from_slice(self.bytes());
            return copy;
        }
        frame.latch.set(frame.latch.get() + 1);
        let address = NonNull::new(self.shared.arena.address(self.frame)).expect("the arena is mapped");
        let hold: Rc<dyn Any> = Rc::new(SendHold { shared: self.shared.clone(), frame: self.frame });
        // SAFETY: the hold keeps the arena mapped and a shared latch, so nothing changes the bytes; it is only sent.
        unsafe { IoBuf::from_raw(address, BLOCK_SIZE, hold) }
    }

    /// The block goes, and a request for it may be under way: gives its answer a frame of its own, so that the bytes can stay
    /// where they are until they are sent, or as a past image. The tasks in line look the block up again, and wait there.
    /// Whether the request has such a frame now; not where there is none, or no frame is free. No
    /// [`Remains::KeepShared`] after it.
    pub fn make_way(&mut self) -> bool {
        self.check();
        let frame = self.shared.frame(self.frame);
        if frame.acquiring.get().is_none() {
            return false;
        }
        let Some(spare) = self.spare.take() else { return false };
        self.shared.detach(self.frame);
        self.shared.take_over_request(self.frame, spare);
        self.apart = true;
        true
    }

    /// Ends the protection once the bytes have been handed to the interconnect (their buffers may still be under way).
    ///
    /// # Panics
    /// When a dirty block would be dropped (rule 6), or a clean one kept as a past image.
    pub fn finish(mut self, remains: Remains) {
        self.check();
        if remains != Remains::KeepShared {
            self.make_way();
        }
        self.finished = true;
        let (shared, id) = (self.shared.clone(), self.frame);
        let frame = shared.frame(id);
        let block = frame.block.get();
        match remains {
            Remains::KeepShared => {
                assert!(!self.apart, "{block}: stays, but has made way for an answer");
                frame.mode.set(Mode::Shared);
                frame.unbar(bar::PROTECTED);
                if let Some(spare) = self.spare.take() {
                    shared.free(spare);
                }
                shared.pump(id);
            }
            Remains::Dropped => {
                assert!(!frame.dirty.get(), "{block}: given up by its dirty owner without a past image (rule 6)");
                self.leave();
            }
            Remains::BecomePastImage => {
                assert!(frame.dirty.get(), "{block}: a clean block becomes no past image");
                let reserved = frame.acquiring.get().is_some();
                assert!(!reserved, "{block}: has a spare frame since it was protected: requests start only from the line");
                frame.mode.set(Mode::Null);
                frame.unbar(bar::PROTECTED);
                self.take_apart();
                let first_dirty = frame.first_dirty_lsn.get();
                shared.mark_clean(id);
                frame.role.set(Role::PastImage);
                shared.mark_dirty(id, first_dirty);
                shared.keep_past_image(id);
                shared.dismiss(id, &Outcome::Gone);
            }
        }
    }

    /// The block is not here any more.
    fn leave(&mut self) {
        let (shared, id) = (self.shared.clone(), self.frame);
        let frame = shared.frame(id);
        frame.mode.set(Mode::Null);
        frame.unbar(bar::PROTECTED);
        let being_sent = frame.latch.get() != 0;
        if !self.apart && (frame.acquiring.get().is_some() || !being_sent) {
            shared.pump(id);
            return;
        }
        // Its bytes are still being sent, or a request has another frame already: so has whoever wants the block from now on.
        self.take_apart();
        frame.role.set(Role::Doomed);
        shared.dismiss(id, &Outcome::Gone);
        if !being_sent {
            shared.free(id);
        }
    }

    /// Takes the frame out of the map, if it is there.
    fn take_apart(&mut self) {
        if !std::mem::replace(&mut self.apart, true) {
            self.shared.detach(self.frame);
        }
    }

    /// Rules 1 and 8, and that nobody uses the block.
    fn check(&self) {
        let frame = self.shared.frame(self.frame);
        let block = frame.block.get();
        assert!(frame.mode.get() == Mode::Protected, "{block}: shipped without being protected");
        assert!(frame.latch.get() >= 0 && !frame.pending.get(), "{block}: shipped while it is being changed (rule 8)");
        let settled = frame.writing.get().is_none() || !kept(DesignRule::NotShippedWhileWritten);
        assert!(settled, "{block}: shipped while it is being written (rule 8)");
        let (redo, durable) = (frame.last_lsn.get(), self.shared.log.durable_lsn());
        let is_durable = redo <= durable || !kept(DesignRule::RedoBeforeShip);
        assert!(is_durable, "{block}: shipped with redo up to {redo}, and only {durable} is durable (rule 1)");
    }
}

impl Shared {
    /// A request under way gets another frame for its answer. Who is in line finds the block there.
    fn take_over_request(&self, from: FrameId, to: FrameId) {
        let (old, new) = (self.frame(from), self.frame(to));
        let block = old.block.get();
        assert!(old.line.borrow().remote.is_none(), "{block}: the master does two things with it at once (rule 5)");
        new.role.set(Role::Current);
        new.acquiring.set(old.acquiring.take());
        self.map.insert(block, to);
        self.replacement.admit(&self.frames, to, block);
        self.dismiss(from, &Outcome::Gone);
    }
}

impl Drop for ProtectedBlock {
    fn drop(&mut self) {
        if let Some(spare) = self.spare.take() {
            self.shared.free(spare);
        }
        if !self.finished && !std::thread::panicking() {
            assert!(!self.apart, "{}: has made way for an answer, and then stays", self.block());
            self.shared.unprotect(self.frame);
        }
    }
}

impl fmt::Debug for ProtectedBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "protected {} at {}{}", self.block(), self.scn(), if self.dirty() { ", dirty" } else { "" })
    }
}
