//! The block writer: brings dirty blocks to the volume in the background.
//!
//! One task per shard. Bounded by [`WRITE_BATCH`] copies at a time, of which neighbours on the volume are written together, up
//! to [`WRITE_TOGETHER`]. It writes copies, so that changes go on meanwhile, and
//! promises: the redo of a copy is durable before its write starts (rule 1); a block is not shipped while a copy of it is
//! being written (rule 8), because that write could land on top of the next owner's; what it reports as written is on
//! stable storage (rule 4), in exactly the version that it names (rule 7).

use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::Pin;
use std::ptr::NonNull;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::cache::{Cache, Shared};
use super::coherence::Mode;
use super::error::CacheError;
use super::frame::{Frame, FrameId, Role, bar};
use crate::ids::{BLOCK_SIZE, BlockId, Lsn, Scn};
use crate::reactor::{Class, IoBuf};
use crate::rules::{DesignRule, kept};
use crate::volume::block;
use crate::wal::redo::{BlocksWritten, RecordKind};

/// Most blocks written at a time.
pub const WRITE_BATCH: usize = 64;

/// Most neighbouring blocks written with one operation: 128 KiB, which devices take whole.
pub const WRITE_TOGETHER: usize = 16;

/// After a failed batch the writer waits this long.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// How long it waits when every block that should be written is in the middle of something.
const BUSY_WAIT: Duration = Duration::from_millis(1);

/// One block of a batch.
struct Copy {
    frame: FrameId,
    block: BlockId,
    scn: Scn,
    redo_end: Lsn,
}

impl Cache {
    /// Writes a block now, if it is dirty, and waits until its present version is on disk (or it has left this cache).
    ///
    /// # Errors
    /// When the volume or the log refuses.
    pub async fn write_now(&self, block: BlockId) -> Result<(), CacheError> {
        let shared = &self.0;
        let Some(id) = shared.map.find(block) else { return Ok(()) };
        let wanted = shared.frame(id).scn.get();
        let failures = shared.write_error.borrow().0;
        shared.want_write(id);
        let on_disk = || {
            let frame = shared.map.find(block).map(|id| shared.frame(id));
            frame.is_none_or(|frame| !frame.dirty.get() || frame.disk_scn.get() >= wanted)
        };
        shared.settled.until(|| on_disk() || shared.write_error.borrow().0 != failures || shared.closed.get()).await;
        match &*shared.write_error.borrow() {
            (count, Some(error)) if *count != failures => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

impl Shared {
    pub(super) fn start_writer(self: &Rc<Self>) {
        let this = self.clone();
        self.reactor.spawn(Class::Low, "block writer", async move {
            while !this.closed.get() {
                this.work.until(|| this.closed.get() || this.has_work()).await;
                this.starved.set(false);
                let batch = this.choose();
                if batch.is_empty() {
                    this.reactor.sleep(BUSY_WAIT).await;
                } else if let Err(error) = this.write_batch(batch).await {
                    tracing::error!(%error, "dirty blocks could not be written; they stay in the cache and are tried again");
                    this.stats.write_failures.add(1);
                    {
                        let mut slot = this.write_error.borrow_mut();
                        *slot = (slot.0 + 1, Some(error));
                    }
                    this.settled.wake();
                    this.reactor.sleep(RETRY_AFTER).await;
                }
                this.replenish();
            }
            this.at_rest.set(true);
            this.settled.wake();
        });
    }

    /// Asks for a frame to be written soon.
    pub(super) fn want_write(&self, id: FrameId) {
        let frame = self.frame(id);
        if frame.dirty.get() && frame.role.get() == Role::Current && !frame.write_wanted.replace(true) {
            self.wanted.borrow_mut().push_back(id);
            self.work.wake();
        }
    }

    /// Wakes the writer when too much is dirty.
    pub(super) fn watch_dirty(&self) {
        if self.too_dirty() {
            self.work.wake();
        }
    }

    fn too_dirty(&self) -> bool {
        self.dirty.borrow().len() * 100 > self.frames.len() * usize::from(self.config.dirty_percent_max)
    }

    fn has_work(&self) -> bool {
        let behind = || self.dirty.borrow().first().is_some_and(|(lsn, _)| *lsn < self.writer_target.get());
        !self.wanted.borrow().is_empty() || self.starved.get() || self.too_dirty() || behind()
    }

    /// The next blocks to write: those asked for, then the oldest.
    fn choose(&self) -> Vec<FrameId> {
        let mut batch = Vec::with_capacity(WRITE_BATCH);
        let mut wanted = self.wanted.borrow_mut();
        for _ in 0..wanted.len() {
            let Some(id) = wanted.pop_front() else { break };
            let frame = self.frame(id);
            if batch.contains(&id) {
                // Twice in line: wanted once more after its frame had been given up and taken for another block.
            } else if batch.len() < WRITE_BATCH && writable(frame) {
                batch.push(id);
            } else if frame.write_wanted.get() && frame.dirty.get() && frame.role.get() == Role::Current {
                wanted.push_back(id);
            } else {
                // It was written or shipped meanwhile, or its frame has another block.
                frame.write_wanted.set(false);
            }
        }
        drop(wanted);
        let everything = self.too_dirty() || !self.has_free();
        let target = if everything { Lsn(u64::MAX) } else { self.writer_target.get() };
        let dirty = self.dirty.borrow();
        let oldest = dirty.iter().take_while(|(lsn, _)| *lsn < target).map(|(_, id)| FrameId(*id));
        for id in oldest.filter(|id| writable(self.frame(*id))) {
            if batch.len() == WRITE_BATCH {
                break;
            }
            if !batch.contains(&id) {
                batch.push(id);
            }
        }
        batch
    }

    async fn write_batch(self: &Rc<Self>, mut batch: Vec<FrameId>) -> Result<(), CacheError> {
        // In the volume's order: neighbours follow one another.
        batch.sort_unstable_by_key(|id| self.frame(*id).block.get().block);
        let memory = self.memory_for_copies();
        let copies: Vec<Copy> = batch.into_iter().zip(0..).map(|(id, place)| self.copy(id, &memory, place)).collect();
        if !kept(DesignRule::WrittenAfterWrite) {
            copies.iter().for_each(|copy| self.coherence.wrote(copy.block, copy.scn));
        }
        let written = self.write_copies(&copies, &memory).await;
        for copy in &copies {
            self.wrote(copy, written.is_ok());
        }
        if written.is_ok() {
            self.log_written(&copies);
            for copy in &copies {
                self.coherence.wrote(copy.block, copy.scn);
            }
        }
        self.settled.wake();
        written
    }

    /// Memory for a batch of copies. One batch at a time: it is used again unless the kernel still has a part of it.
    fn memory_for_copies(&self) -> Rc<IoBuf> {
        let mut kept = self.copies.borrow_mut();
        match &*kept {
            Some(memory) if Rc::strong_count(memory) == 1 => memory.clone(),
            _ => kept.insert(Rc::new(self.reactor.steady_buffer(WRITE_BATCH * BLOCK_SIZE))).clone(),
        }
    }

    /// Takes a copy to write, to a place in the batch's memory. Changes to the block may go on from here.
    fn copy(&self, id: FrameId, memory: &Rc<IoBuf>, place: usize) -> Copy {
        let frame = self.frame(id);
        let block = frame.block.get();
        assert!(writable(frame), "{block}: chosen for writing in the middle of something");
        let mut bytes = part(memory, place, 1);
        // SAFETY: no mini-transaction is under way in the frame, and this turn ends nowhere in here.
        bytes.as_mut_slice().copy_from_slice(unsafe { self.arena.bytes(id) });
        block::seal(bytes.as_mut_slice());
        frame.writing.set(Some(frame.scn.get()));
        frame.needs_image.set(true);
        frame.write_wanted.set(false);
        assert!(frame.redirtied_lsn.get().is_none(), "{block}: changes after a write that never was");
        Copy { frame: id, block, scn: frame.scn.get(), redo_end: frame.last_lsn.get() }
    }

    async fn write_copies(self: &Rc<Self>, copies: &[Copy], memory: &Rc<IoBuf>) -> Result<(), CacheError> {
        let redo_end = copies.iter().map(|copy| copy.redo_end).max().unwrap_or_default();
        self.log.flush_to(redo_end).await.map_err(|error| CacheError::log(&error))?;
        let durable = self.log.durable_lsn();
        for copy in copies {
            assert!(
                copy.redo_end <= durable,
                "{}: written with redo up to {}, and only {durable} is durable (rule 1)",
                copy.block,
                copy.redo_end
            );
        }
        let runs = neighbours(copies);
        let alone = runs.len() == 1;
        let writes = runs.iter().map(|run| self.write_run(&copies[run.clone()], part(memory, run.start, run.len()), alone));
        let results = join_all(writes.collect()).await;
        results.into_iter().collect::<Result<(), _>>()?;
        if !alone {
            let block = copies[0].block;
            let synced = self.reactor.sync(self.file).await;
            synced.map_err(|error| CacheError::io(block, "sync after writing", &error))?;
        }
        if self.config.verify_writes {
            let reads = runs.iter().map(|run| self.read_back(&copies[run.clone()], part(memory, run.start, run.len())));
            join_all(reads.collect()).await.into_iter().collect::<Result<(), _>>()?;
        }
        Ok(())
    }

    /// Writes copies that are neighbours on the volume.
    async fn write_run(&self, copies: &[Copy], bytes: IoBuf, durable: bool) -> Result<(), CacheError> {
        let (block, wanted) = (copies[0].block, bytes.len());
        let offset = block.block.0 * BLOCK_SIZE as u64;
        self.stats.write_operations.add(1);
        let (result, _) = if durable {
            self.reactor.write_durable(self.file, offset, bytes).await
        } else {
            self.reactor.write(self.file, offset, bytes).await
        };
        match result {
            Ok(written) if written == wanted => Ok(()),
            Ok(written) => {
                let error = format!("only {written} of {wanted} bytes were written");
                Err(CacheError::Io { block, operation: "write", error })
            }
            Err(error) => Err(CacheError::io(block, "write", &error)),
        }
    }

    /// Looks whether copies that were written are where they belong.
    async fn read_back(&self, copies: &[Copy], written: IoBuf) -> Result<(), CacheError> {
        let block = copies[0].block;
        let offset = block.block.0 * BLOCK_SIZE as u64;
        let (result, found) = self.reactor.read(self.file, offset, IoBuf::aligned(written.len())).await;
        let failed = |error: String| CacheError::Io { block, operation: "read back", error };
        let bytes = result.map_err(|error| failed(error.to_string()))?;
        if bytes != written.len() || found.as_slice() != written.as_slice() {
            return Err(failed("it is not what was written: the write was lost, or went to another place".into()));
        }
        Ok(())
    }

    /// Notes in the log that these versions are on disk, so that recovery can skip what is older. Left out when the log
    /// is full: it saves work, nothing depends on it.
    fn log_written(&self, copies: &[Copy]) {
        let blocks: Vec<(BlockId, Scn)> = copies.iter().map(|copy| (copy.block, copy.scn)).collect();
        let mut payload = Vec::new();
        BlocksWritten::encode(&blocks, &mut payload);
        if let Ok(Some(mut reservation)) = self.log.try_reserve(payload.len()) {
            self.log.append(&mut reservation, RecordKind::BlockWritten, &[&payload]);
        }
    }

    /// The write of a copy has ended.
    fn wrote(&self, copy: &Copy, completed: bool) {
        let frame = self.frame(copy.frame);
        let block = copy.block;
        assert!(
            frame.block.get() == block && frame.role.get() == Role::Current,
            "{block}: lost its frame while it was written (rule 8)"
        );
        assert!(frame.writing.take() == Some(copy.scn), "{block}: another write of it was under way");
        let redirtied = frame.redirtied_lsn.take();
        if !completed {
            return;
        }
        self.stats.writes.add(1);
        frame.disk_scn.set(copy.scn);
        self.mark_clean(copy.frame);
        match redirtied {
            Some(lsn) => {
                assert!(frame.scn.get() > copy.scn, "{block}: changed after its copy, and its version is the same");
                self.mark_dirty(copy.frame, lsn);
            }
            None => assert!(
                frame.scn.get() == copy.scn,
                "{block}: {} is clean after a write of {} (rule 7)",
                frame.scn.get(),
                copy.scn
            ),
        }
    }
}

/// Whether a copy of it may be taken: dirty, and nothing half done.
fn writable(frame: &Frame) -> bool {
    frame.role.get() == Role::Current
        && frame.dirty.get()
        && frame.writing.get().is_none()
        && !frame.pending.get()
        && matches!(frame.mode.get(), Mode::Shared | Mode::Exclusive)
        && !frame.is_barred(bar::LOADING | bar::EVICTING | bar::PROTECTED | bar::REMOTE)
}

/// Runs of copies, which are in the volume's order, whose blocks follow one another there.
fn neighbours(copies: &[Copy]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (place, copy) in copies.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if run.len() < WRITE_TOGETHER && copies[place - 1].block.block.0 + 1 == copy.block.block.0 => {
                run.end = place + 1;
            }
            _ => runs.push(place..place + 1),
        }
    }
    runs
}

/// The memory of some copies that lie side by side.
fn part(memory: &Rc<IoBuf>, place: usize, count: usize) -> IoBuf {
    assert!((place + count) * BLOCK_SIZE <= memory.len(), "copies {place} to {} of a batch", place + count);
    let start = NonNull::new(memory.as_ptr().cast_mut()).expect("a buffer lies somewhere");
    // SAFETY: the part lies inside the memory, which the guard keeps. A part is written by `copy` while nobody else has
    // one of these bytes, and only read from then on.
    unsafe { IoBuf::from_raw(start.add(place * BLOCK_SIZE), count * BLOCK_SIZE, memory.clone()) }
}

/// Awaits all of them, side by side.
async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut running: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    poll_fn(|context| {
        let mut pending = false;
        for (future, output) in running.iter_mut().zip(&mut outputs).filter(|(_, output)| output.is_none()) {
            match future.as_mut().poll(context) {
                Poll::Ready(value) => *output = Some(value),
                Poll::Pending => pending = true,
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    outputs.into_iter().map(|output| output.expect("all have ended")).collect()
}
