//! The cache itself: its parts, the ways in, and how blocks come into frames.
//!
//! Owned by one shard. Bounded by its frames: a block that finds no free frame waits until one has been evicted, and
//! where only dirty ones are left, until the writer has written some. Promises: a guard shows the newest version of the
//! block that any node has made durable or shipped; a block that does not verify is an error and never data; two tasks
//! that miss the same block cause one request and one read.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::ptr::NonNull;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::arena::Arena;
use super::coherence::{Coherence, Mode};
use super::dropped::PartitionSet;
use super::error::CacheError;
use super::frame::{Frame, FrameId, Role, bar};
use super::guards::{ReadGuard, WriteGuard};
use super::map::FrameMap;
use super::replace::Replacement;
use super::stats::{CacheStats, Counters};
use super::wait::{Kind, Outcome, WaitList};
use crate::clock::ScnClock;
use crate::ids::{BLOCK_SIZE, BlockId, Lsn, Scn};
use crate::reactor::{Class, FileId, IoBuf, Reactor};
use crate::volume::block;
use crate::wal::Log;

/// Fewest frames a cache works with: a mini-transaction may hold a dozen, and eviction needs some air.
pub const FRAMES_MIN: usize = 64;

/// Most frames of one shard's cache (4 TiB).
pub const FRAMES_MAX: usize = 1 << 29;

/// How a cache behaves.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Frames, [`FRAMES_MIN`]..=[`FRAMES_MAX`]; each is 8 KiB.
    pub frames: usize,
    /// Register the frames with the driver. The memory then stays mapped until the process ends.
    pub register_memory: bool,
    /// Log the whole block with its first change after it was written, so that half a block on disk (power loss in the
    /// middle of a write) can be repaired. Off only for devices that write 8 KiB atomically.
    pub full_images: bool,
    /// Percent of the frames that may be dirty before the writer works without being asked.
    pub dirty_percent_max: u8,
    /// Percent of the frames that may be past images before their owners are asked to write.
    pub past_image_percent_max: u8,
    /// Read back what was written before it counts as written.
    pub verify_writes: bool,
    /// A dirty block is written after at most about twice this time, milliseconds.
    pub checkpoint_interval_ms: u64,
}

impl Default for CacheConfig {
    fn default() -> CacheConfig {
        CacheConfig {
            frames: 8192,
            register_memory: false,
            full_images: true,
            dirty_percent_max: 50,
            past_image_percent_max: 25,
            verify_writes: false,
            checkpoint_interval_ms: 30_000,
        }
    }
}

/// What a cache works with.
pub struct CacheParts {
    /// The shard's reactor.
    pub reactor: Reactor,
    /// The shared volume.
    pub file: FileId,
    /// The shard's log.
    pub log: Log,
    /// The node's clock, started above everything durable.
    pub clock: ScnClock,
    /// The cluster.
    pub coherence: Rc<dyn Coherence>,
    /// Settings.
    pub config: CacheConfig,
}

/// Handle to a shard's cache; clones are the same cache.
#[derive(Clone)]
pub struct Cache(pub(super) Rc<Shared>);

/// A handle that doesn't keep the cache alive: for what the cache itself keeps alive, such as its [`Coherence`].
#[derive(Clone)]
pub struct WeakCache(Weak<Shared>);

pub(super) struct Shared {
    pub(super) this: Weak<Shared>,
    /// The frames, where they stay mapped until the process ends.
    memory: Option<(*mut u8, usize)>,
    pub(super) arena: Arena,
    pub(super) frames: Box<[Frame]>,
    pub(super) map: FrameMap,
    pub(super) replacement: Replacement,
    free: RefCell<Vec<FrameId>>,
    /// Evictions under way.
    evicting: Cell<usize>,
    /// Former versions, at most one per block, by block.
    pub(super) past_images: RefCell<HashMap<BlockId, FrameId>>,
    /// Dirty blocks, by the position in the log that they hold the checkpoint back to.
    pub(super) dirty: RefCell<BTreeSet<(Lsn, u32)>>,
    /// The past images, likewise.
    pub(super) dirty_past: RefCell<BTreeSet<(Lsn, u32)>>,
    /// Frames someone asked to be written soon. Bounded by the frames: a frame is in it once.
    pub(super) wanted: RefCell<VecDeque<FrameId>>,
    pub(super) writer_target: Cell<Lsn>,
    /// Somebody waits for a frame and none is clean.
    pub(super) starved: Cell<bool>,
    pub(super) frames_freed: WaitList,
    /// Written, cleaned, finished: what changes a frame's fitness to be shipped or written.
    pub(super) settled: WaitList,
    pub(super) work: WaitList,
    pub(super) mtr_pool: RefCell<Vec<super::mtr::Buffers>>,
    /// Where the copies of a batch lie.
    pub(super) copies: RefCell<Option<Rc<IoBuf>>>,
    /// Their blocks never come here again.
    pub(super) dropped: RefCell<PartitionSet>,
    /// How many batches the writer has failed to write, and the last error.
    pub(super) write_error: RefCell<(u64, Option<CacheError>)>,
    pub(super) closed: Cell<bool>,
    /// The writer has ended.
    pub(super) at_rest: Cell<bool>,
    pub(super) stats: Counters,
    pub(super) reactor: Reactor,
    pub(super) file: FileId,
    pub(super) log: Log,
    pub(super) clock: ScnClock,
    pub(super) coherence: Rc<dyn Coherence>,
    pub(super) config: CacheConfig,
}

impl Cache {
    /// Sets up a cache and starts its writer and its checkpoints.
    ///
    /// # Errors
    /// When the memory cannot be mapped.
    ///
    /// # Panics
    /// When a setting is out of its bounds.
    pub fn new(parts: CacheParts) -> io::Result<Cache> {
        let CacheParts { reactor, file, log, clock, coherence, config } = parts;
        let count = config.frames;
        assert!(
            (FRAMES_MIN..=FRAMES_MAX).contains(&count),
            "a cache of {count} frames: {FRAMES_MIN} to {FRAMES_MAX} are possible"
        );
        assert!((1..=90).contains(&config.dirty_percent_max) && (1..=50).contains(&config.past_image_percent_max));
        let mut arena = Arena::map(count)?;
        let memory = config.register_memory.then(|| arena.keep_mapped());
        if let Some((start, bytes)) = memory {
            // SAFETY: the arena has just promised to stay mapped until the process ends.
            if let Err(error) = unsafe { reactor.register_memory(start, bytes) } {
                tracing::info!(
                    %error, bytes,
                    "the cache's memory is not registered with io_uring: each read and write pins its pages anew; \
                     LimitMEMLOCK=infinity in the service's unit, or ulimit -l unlimited, saves that"
                );
            }
        }
        let shared = Rc::new_cyclic(|this| Shared {
            memory,
            this: this.clone(),
            frames: (0..count).map(|_| Frame::free()).collect(),
            map: FrameMap::new(count),
            replacement: Replacement::new(count),
            free: RefCell::new((0..count as u32).rev().map(FrameId).collect()),
            evicting: Cell::new(0),
            past_images: RefCell::default(),
            dropped: RefCell::default(),
            dirty: RefCell::default(),
            dirty_past: RefCell::default(),
            write_error: RefCell::default(),
            wanted: RefCell::default(),
            writer_target: Cell::new(Lsn(0)),
            starved: Cell::new(false),
            frames_freed: WaitList::default(),
            settled: WaitList::default(),
            work: WaitList::default(),
            mtr_pool: RefCell::default(),
            copies: RefCell::default(),
            closed: Cell::new(false),
            at_rest: Cell::new(false),
            stats: Counters::default(),
            arena,
            reactor,
            file,
            log,
            clock,
            coherence,
            config,
        });
        shared.start_writer();
        shared.start_checkpoints();
        Ok(Cache(shared))
    }

    /// The frames' memory, where it stays mapped until the process ends ([`CacheConfig::register_memory`]).
    #[must_use]
    pub fn memory(&self) -> Option<(*mut u8, usize)> {
        self.0.memory
    }

    /// A handle that doesn't keep the cache alive.
    #[must_use]
    pub fn downgrade(&self) -> WeakCache {
        WeakCache(Rc::downgrade(&self.0))
    }

    /// The block to read, if it is here and nobody stands in the way. Never waits; the fast path.
    #[inline]
    #[must_use]
    pub fn try_read(&self, block: BlockId) -> Option<ReadGuard> {
        let id = self.0.map.find(block)?;
        let frame = self.0.frame(id);
        if frame.barred.get() != 0 || frame.latch.get() < 0 || frame.mode.get() == Mode::Null {
            return None;
        }
        frame.latch.set(frame.latch.get() + 1);
        frame.touch();
        self.0.stats.hits.add(1);
        Some(ReadGuard::adopt(self.0.clone(), id))
    }

    /// The block to read.
    ///
    /// # Errors
    /// [`CacheError`]: the block is corrupt, the disk fails, or the cluster cannot give it.
    pub async fn read(&self, block: BlockId) -> Result<ReadGuard, CacheError> {
        if let Some(guard) = self.try_read(block) {
            return Ok(guard);
        }
        let frame = self.0.latch(block, Kind::Read).await?;
        Ok(ReadGuard::adopt(self.0.clone(), frame))
    }

    /// The block to change, if it is here in mode `Exclusive` and nobody stands in the way. Never waits.
    #[inline]
    #[must_use]
    pub fn try_write(&self, block: BlockId) -> Option<WriteGuard> {
        let id = self.0.map.find(block)?;
        let frame = self.0.frame(id);
        if frame.barred.get() != 0 || frame.latch.get() != 0 || frame.mode.get() != Mode::Exclusive {
            return None;
        }
        frame.latch.set(-1);
        frame.touch();
        self.0.stats.hits.add(1);
        Some(WriteGuard::adopt(self.0.clone(), id))
    }

    /// The block to change.
    ///
    /// # Errors
    /// As [`Cache::read`].
    pub async fn write(&self, block: BlockId) -> Result<WriteGuard, CacheError> {
        if let Some(guard) = self.try_write(block) {
            return Ok(guard);
        }
        let frame = self.0.latch(block, Kind::Write).await?;
        Ok(WriteGuard::adopt(self.0.clone(), frame))
    }

    /// The block to be formatted anew, without reading what is on disk. Its first change must be a `Format` or a
    /// `FullImage`; if the guard is dropped without one, the block leaves the cache.
    ///
    /// # Errors
    /// As [`Cache::read`], but for corrupt.
    pub async fn create(&self, block: BlockId) -> Result<WriteGuard, CacheError> {
        let frame = self.0.latch(block, Kind::Create).await?;
        Ok(WriteGuard::adopt(self.0.clone(), frame))
    }

    /// Whether the block is cached here, and in which mode. `Null` while it is being acquired.
    #[must_use]
    pub fn mode(&self, block: BlockId) -> Mode {
        self.0.map.find(block).map_or(Mode::Null, |frame| self.0.frame(frame).mode.get())
    }

    /// The counters and levels.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.0.stats.snapshot(&self.0)
    }

    /// Frames that are neither free, nor in the map, nor past images: those into which somebody still receives a block that
    /// nobody wants any more. None are left when nothing is under way.
    #[must_use]
    pub fn frames_leaked(&self) -> usize {
        let shared = &self.0;
        shared.frames.len() - shared.free_frames() - shared.map.entries().len() - shared.past_images.borrow().len()
    }

    /// The node's clock.
    #[must_use]
    pub fn clock(&self) -> &ScnClock {
        &self.0.clock
    }

    /// The shard's log.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.0.log
    }

    /// The shard's reactor.
    #[must_use]
    pub fn reactor(&self) -> &Reactor {
        &self.0.reactor
    }
}

impl WeakCache {
    /// The cache, if it still lives.
    #[must_use]
    pub fn upgrade(&self) -> Option<Cache> {
        self.0.upgrade().map(Cache)
    }
}

impl Shared {
    #[inline]
    pub(super) fn frame(&self, id: FrameId) -> &Frame {
        &self.frames[id.0 as usize]
    }

    pub(super) fn has_free(&self) -> bool {
        !self.free.borrow().is_empty()
    }

    pub(super) fn free_frames(&self) -> usize {
        self.free.borrow().len()
    }

    /// Takes a frame off the free list, and sees to it that more come.
    pub(super) fn take_frame(self: &Rc<Self>, block: BlockId, role: Role) -> Option<FrameId> {
        self.replenish();
        let id = self.free.borrow_mut().pop()?;
        assert!(self.frame(id).role.get() == Role::Free, "{id:?} of {block} is on the free list and in use");
        self.frame(id).reset(block, role);
        Some(id)
    }

    /// Reserves a frame for a block that is not in the map.
    pub(super) fn admit(self: &Rc<Self>, block: BlockId) -> Option<FrameId> {
        let id = self.take_frame(block, Role::Current)?;
        self.map.insert(block, id);
        self.replacement.admit(&self.frames, id, block);
        self.stats.misses.add(1);
        Some(id)
    }

    /// Puts an unused frame back on the free list.
    pub(super) fn free(&self, id: FrameId) {
        let frame = self.frame(id);
        frame.check_unused();
        frame.role.set(Role::Free);
        frame.mode.set(Mode::Null);
        frame.barred.set(0);
        self.free.borrow_mut().push(id);
        self.frames_freed.wake();
    }

    /// Takes a frame out of the map and of replacement; what becomes of it is the caller's business.
    pub(super) fn detach(&self, id: FrameId) {
        let block = self.frame(id).block.get();
        let removed = self.map.remove(block);
        assert!(removed == Some(id), "{block} is in {removed:?}, not in {id:?}");
        self.replacement.forget(&self.frames, id);
    }

    /// A frame whose block was lost and that nobody waits for.
    pub(super) fn retire(&self, id: FrameId) {
        assert!(self.frame(id).mode.get() == Mode::Null, "{}: retired while it is held", self.frame(id).block.get());
        self.detach(id);
        self.free(id);
    }

    /// Starts evictions until enough frames are free or on their way.
    pub(super) fn replenish(self: &Rc<Self>) {
        let low = (self.frames.len() / 64).clamp(4, 256);
        if self.free.borrow().len() >= low {
            return;
        }
        while self.free.borrow().len() + self.evicting.get() < low * 2 {
            match self.replacement.victim(&self.frames) {
                Some(victim) => self.evict(victim),
                None => {
                    if self.free.borrow().is_empty() && !self.starved.replace(true) {
                        self.work.wake();
                    }
                    return;
                }
            }
        }
    }

    /// Lets a clean, unused block leave: told to the master first, freed when it has acknowledged (rule 9).
    pub(super) fn evict(self: &Rc<Self>, id: FrameId) {
        let frame = self.frame(id);
        let (block, mode) = (frame.block.get(), frame.mode.get());
        assert!(!frame.dirty.get(), "{block}: evicted while it is dirty (rule 9)");
        assert!(frame.latch.get() == 0 && frame.writing.get().is_none(), "{block}: evicted while it is in use");
        assert!(matches!(mode, Mode::Shared | Mode::Exclusive), "{block}: evicted in mode {mode:?}");
        frame.bar(bar::EVICTING);
        frame.fresh.set(false);
        self.evicting.set(self.evicting.get() + 1);
        self.stats.evictions.add(1);
        self.give_back(id, mode);
    }

    /// Releases the block and frees its frame once the master has acknowledged.
    fn give_back(self: &Rc<Self>, id: FrameId, mode: Mode) {
        let mut released = self.coherence.release(self.frame(id).block.get(), mode);
        // A node without peers is done at once; that needs no task.
        if let Poll::Ready(()) = released.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            self.gave_back(id);
            return;
        }
        let this = self.clone();
        self.reactor.spawn(Class::Normal, "block release", async move {
            released.await;
            this.gave_back(id);
        });
    }

    fn gave_back(&self, id: FrameId) {
        let frame = self.frame(id);
        assert!(frame.is_barred(bar::EVICTING), "{}: released, and not leaving", frame.block.get());
        frame.unbar(bar::EVICTING);
        frame.mode.set(Mode::Null);
        self.evicting.set(self.evicting.get() - 1);
        self.dismiss(id, &Outcome::Gone);
        self.dismiss_remote(id);
        self.detach(id);
        self.free(id);
    }

    /// Marks a block as newer than the volume, from `lsn` on.
    pub(super) fn mark_dirty(&self, id: FrameId, lsn: Lsn) {
        let frame = self.frame(id);
        assert!(!frame.dirty.get(), "{}: becomes dirty twice", frame.block.get());
        frame.dirty.set(true);
        frame.first_dirty_lsn.set(lsn);
        self.dirty_set(frame).borrow_mut().insert((lsn, id.0));
    }

    fn dirty_set(&self, frame: &Frame) -> &RefCell<BTreeSet<(Lsn, u32)>> {
        match frame.role.get() {
            Role::Current => &self.dirty,
            Role::PastImage => &self.dirty_past,
            role => unreachable!("{}: dirty in the role {role:?}", frame.block.get()),
        }
    }

    /// The volume has the block as it is here, or a newer one.
    pub(super) fn mark_clean(&self, id: FrameId) {
        let frame = self.frame(id);
        let entry = (frame.first_dirty_lsn.get(), id.0);
        assert!(self.dirty_set(frame).borrow_mut().remove(&entry), "{}: clean, and was not dirty", frame.block.get());
        frame.dirty.set(false);
    }

    /// Reads a block from the volume into its frame.
    pub(super) async fn load(self: Rc<Self>, id: FrameId) {
        let block = self.frame(id).block.get();
        let address = NonNull::new(self.arena.address(id)).expect("the arena is mapped");
        // SAFETY: `self` keeps the arena mapped; the LOADING bar keeps everyone else away from the frame, and it is not
        // lifted before the operation has given the buffer back.
        let buffer = unsafe { IoBuf::from_raw(address, BLOCK_SIZE, self.clone()) };
        let (result, buffer) = self.reactor.read(self.file, block.block.0 * BLOCK_SIZE as u64, buffer).await;
        drop(buffer);
        self.stats.reads.add(1);
        let loaded = match result {
            Ok(BLOCK_SIZE) => self.take_in(id),
            Ok(read) => Err(CacheError::Corrupt { block, found: format!("the volume ends after {read} bytes of it") }),
            Err(error) => Err(CacheError::io(block, "read", &error)),
        };
        let frame = self.frame(id);
        frame.unbar(bar::LOADING);
        match loaded {
            Ok(()) => self.pump(id),
            Err(error) => self.refuse(id, error),
        }
    }

    /// Checks the bytes that have come into a frame.
    pub(super) fn take_in(&self, id: FrameId) -> Result<(), CacheError> {
        let frame = self.frame(id);
        let block = frame.block.get();
        // SAFETY: nobody changes a frame that is loading or being received into, and this turn ends nowhere in here.
        let bytes = unsafe { self.arena.bytes(id) };
        block::verify(bytes, block).map_err(|fault| {
            self.stats.corrupt.add(1);
            CacheError::Corrupt { block, found: fault.to_string() }
        })?;
        let scn = block::block_scn(bytes);
        if scn >= Scn::MAX {
            self.stats.corrupt.add(1);
            return Err(CacheError::Corrupt { block, found: format!("it claims {scn}, which no clock has drawn") });
        }
        frame.scn.set(scn);
        frame.sealed.set(true);
        self.clock.observe(scn);
        Ok(())
    }

    /// A block that was granted and can't be used: everyone gets the error, the master gets its grant back.
    pub(super) fn refuse(self: &Rc<Self>, id: FrameId, error: CacheError) {
        let frame = self.frame(id);
        tracing::error!(%error, "block refused");
        self.dismiss(id, &Outcome::Failed(error));
        self.dismiss_remote(id);
        let mode = frame.mode.get();
        frame.bar(bar::EVICTING);
        self.evicting.set(self.evicting.get() + 1);
        self.give_back(id, mode);
    }
}

impl Shared {
    /// How long a task that waits for nothing in particular sleeps.
    pub(super) fn tick() -> Duration {
        Duration::from_millis(100)
    }
}
