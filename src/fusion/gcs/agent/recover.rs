//! Recovery of the blocks that have lost their owner, by the shard that masters them.
//!
//! Owned by the shard; one [`Recovery`] per view. Bounded: [`JOBS_MAX`] blocks in hand, the others named in a line; beside
//! them the lost nodes' redo of the blocks mastered here, in memory. Promises: a block is granted to nobody before its
//! newest version has been written; a past image is given up only when that version is durable; nothing of it reaches the
//! volume once [`Gcs::enter`](super::Gcs::enter) of the next view has resolved. It can be broken off at any point and
//! begun anew, here or elsewhere: what it has done is then found done.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use super::Inner;
use super::view::{RecoveryPhase, RecoveryProgress};
use crate::fusion::gcs::message::{Kind, Message};
use crate::fusion::recovery::{RecoveryFault, Replay, ReplayError, Replayed, read_place, read_redo, version_of, write_place};
use crate::ids::{BLOCK_SIZE, BlockId, NodeId, Scn};
use crate::interconnect::Body;
use crate::reactor::sync::{Notify, oneshot};
use crate::reactor::{Class, FileId, Instant, IoBuf};
use crate::volume::RedoArea;
use crate::volume::block;

/// Blocks in hand at once.
const JOBS_MAX: usize = 64;

/// Blocks whose owners are asked to write, at a time.
const PRESSED_MAX: usize = 1024;

/// How often they are asked.
const PRESS_INTERVAL: Duration = Duration::from_millis(20);

/// A block that has lost its owner.
pub(super) struct Job {
    pub(super) block: BlockId,
    /// Who keeps its newest past image, in which version.
    pub(super) image: Option<(NodeId, Scn)>,
    /// A version that some member knows to be on the disk.
    pub(super) on_disk: Scn,
}

/// What one view has to recover.
pub(super) struct Recovery {
    file: FileId,
    begun: Instant,
    /// Broken off: the view has been left, or the node ends.
    ended: Cell<bool>,
    fault: RefCell<Option<RecoveryFault>>,
    replay: RefCell<Replay>,
    line: RefCell<VecDeque<Job>>,
    /// Tasks at work.
    workers: Cell<usize>,
    blocks_done: Cell<u64>,
    blocks_total: Cell<u64>,
    redo_groups: Cell<u64>,
    claims_at: OnceCell<Instant>,
    redo_read_at: OnceCell<Instant>,
    directory_at: OnceCell<Instant>,
    blocks_at: OnceCell<Instant>,
    done_at: OnceCell<Instant>,
    syncs: Syncs,
}

/// Syncs of the volume that several jobs share.
#[derive(Default)]
struct Syncs {
    /// Jobs that want a sync draw a number.
    wanted: Cell<u64>,
    /// Up to this number they have it.
    done: Cell<u64>,
    running: Cell<bool>,
    ended: Notify,
}

/// A write of recovery that can still reach the volume.
struct Writing(Rc<Inner>);

impl Writing {
    fn begin(inner: &Rc<Inner>) -> Writing {
        inner.recovery_writes.set(inner.recovery_writes.get() + 1);
        Writing(inner.clone())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.recovery_writes.set(self.0.recovery_writes.get() - 1);
        self.0.recovery_moved.notify_all();
    }
}

impl Recovery {
    pub(super) fn new(file: FileId, begun: Instant) -> Recovery {
        Recovery {
            file,
            begun,
            ended: Cell::new(false),
            fault: RefCell::new(None),
            replay: RefCell::new(Replay::new()),
            line: RefCell::default(),
            workers: Cell::new(0),
            blocks_done: Cell::new(0),
            blocks_total: Cell::new(0),
            redo_groups: Cell::new(0),
            claims_at: OnceCell::new(),
            redo_read_at: OnceCell::new(),
            directory_at: OnceCell::new(),
            blocks_at: OnceCell::new(),
            done_at: OnceCell::new(),
            syncs: Syncs::default(),
        }
    }

    /// Breaks it off. Its tasks end when they next look.
    pub(super) fn end(&self) {
        self.ended.set(true);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    fn goes_on(&self) -> bool {
        !self.ended.get() && self.fault.borrow().is_none()
    }

    /// How it ended, if it did by itself.
    pub(super) fn outcome(&self) -> Option<Result<(), RecoveryFault>> {
        let fault = self.fault.borrow().clone();
        fault.map(Err).or_else(|| self.done_at.get().map(|_| Ok(())))
    }

    /// All claims are here.
    pub(super) fn note_claims(&self, now: Instant, rebuilding: bool) {
        self.claims_at.get_or_init(|| now);
        if !rebuilding {
            self.directory_at.get_or_init(|| now);
        }
    }

    pub(super) fn progress(&self, rebuilding: bool, all_claims: bool) -> RecoveryProgress {
        let phase = if self.done_at.get().is_some() {
            RecoveryPhase::Idle
        } else if rebuilding && !all_claims {
            RecoveryPhase::Claims
        } else if rebuilding {
            RecoveryPhase::ReadingRedo
        } else if self.blocks_at.get().is_none() {
            RecoveryPhase::Blocks
        } else {
            RecoveryPhase::Writing
        };
        let us = |from: Instant, at: &OnceCell<Instant>| {
            let at = at.get()?;
            Some(u64::try_from(at.since(from).as_micros()).unwrap_or(u64::MAX))
        };
        RecoveryProgress {
            phase,
            blocks_done: self.blocks_done.get(),
            blocks_total: self.blocks_total.get(),
            redo_groups: self.redo_groups.get(),
            claims_us: us(self.begun, &self.claims_at),
            pass1_us: us(self.begun, &self.redo_read_at),
            pass2_us: self.directory_at.get().and_then(|&from| us(from, &self.blocks_at)),
            total_us: us(self.begun, &self.done_at),
        }
    }

    fn next(&self) -> Option<Job> {
        if self.goes_on() { self.line.borrow_mut().pop_front() } else { None }
    }

    fn fail(&self, fault: RecoveryFault) {
        if !self.ended.get() {
            tracing::error!(%fault, "recovery has failed; this node has to stop");
            self.fault.borrow_mut().get_or_insert(fault);
        }
    }
}

impl Inner {
    /// The core wants a block made anew.
    pub(super) fn recover(&self, job: Job) {
        let recovery = self.recovery.borrow().clone().expect("blocks are recovered in a view that has gone on");
        recovery.line.borrow_mut().push_back(job);
        recovery.blocks_total.set(recovery.blocks_total.get() + 1);
        if recovery.workers.get() < JOBS_MAX {
            recovery.workers.set(recovery.workers.get() + 1);
            let this = self.this.upgrade().expect("it is at work");
            self.reactor.spawn(Class::Critical, "recover a block", async move {
                while let Some(job) = recovery.next() {
                    if let Err(fault) = this.recover_block(&recovery, job).await {
                        recovery.fail(fault);
                    }
                }
                recovery.workers.set(recovery.workers.get() - 1);
                this.recovery_moved.notify_all();
            });
        }
    }

    /// The whole of it, from the lost redo to the point where it is not needed any more.
    pub(super) async fn run_recovery(self: Rc<Self>, recovery: Rc<Recovery>, lost: Vec<RedoArea>) {
        if let Err(fault) = self.recover_all(&recovery, lost).await {
            recovery.fail(fault);
        }
        self.recovery_moved.notify_all();
    }

    async fn recover_all(self: &Rc<Self>, recovery: &Rc<Recovery>, lost: Vec<RedoArea>) -> Result<(), RecoveryFault> {
        self.read_lost(recovery, lost).await?;
        let blocks_are_made = || recovery.directory_at.get().is_some() && recovery.workers.get() == 0;
        if !self.until(recovery, blocks_are_made).await {
            return Ok(());
        }
        let _ = recovery.blocks_at.set(self.reactor.now());
        // Whoever owns what the lost redo leads to has it in memory only: a second loss would need that redo again.
        while self.cores.borrow().master.unwritten() > 0 {
            self.feed(|cores, out| cores.master.press_for_writes(PRESSED_MAX, out));
            self.reactor.sleep(PRESS_INTERVAL).await;
            if !recovery.goes_on() {
                return Ok(());
            }
        }
        if recovery.blocks_total.get() > 0 {
            self.sync(recovery, BlockId::default()).await?;
        }
        if recovery.goes_on() {
            let _ = recovery.done_at.set(self.reactor.now());
            let progress = recovery.progress(false, true);
            if progress.blocks_total > 0 || progress.redo_groups > 0 {
                tracing::info!(?progress, "lost blocks are recovered");
            }
        }
        Ok(())
    }

    /// Waits until something about the recovery is so; whether it goes on then.
    async fn until(&self, recovery: &Recovery, condition: impl Fn() -> bool) -> bool {
        loop {
            let moved = self.recovery_moved.notified();
            if !recovery.goes_on() {
                return false;
            }
            if condition() {
                return true;
            }
            moved.await;
        }
    }

    /// Pass 1: which of the blocks mastered here the lost redo changes.
    async fn read_lost(&self, recovery: &Recovery, lost: Vec<RedoArea>) -> Result<(), RecoveryFault> {
        let mut replay = Replay::new();
        let map = self.map.borrow().clone();
        for area in lost {
            let mastered_here = |block| map.master(block) == self.node;
            let go_on = || recovery.goes_on();
            read_redo(&self.reactor, recovery.file, area, &mut replay, mastered_here, go_on).await?;
            recovery.redo_groups.set(replay.groups());
        }
        if !recovery.goes_on() {
            return Ok(());
        }
        // What is changed from here on is newer than all that the lost nodes have done.
        self.interconnect.clock().observe(replay.highest_scn());
        let blocks = replay.lost_blocks();
        *recovery.replay.borrow_mut() = replay;
        let _ = recovery.redo_read_at.set(self.reactor.now());
        self.feed(|cores, out| cores.master.on_redo_read(blocks, out));
        self.note_claims();
        Ok(())
    }

    /// Pass 2, one block: from the newer of the past image and the disk, along the lost redo, to the disk.
    async fn recover_block(
        self: &Rc<Self>,
        recovery: &Recovery,
        Job { block, image, on_disk }: Job,
    ) -> Result<(), RecoveryFault> {
        let file = recovery.file;
        let kept = match image {
            Some((keeper, _)) => self.fetch_image(keeper, block).await,
            None => None,
        };
        if !recovery.goes_on() {
            return Ok(());
        }
        let (read, mut bytes) = read_place(&self.reactor, file, block.block, IoBuf::aligned(BLOCK_SIZE)).await;
        whole(read, block, "read")?;
        let mut behind = false;
        if let Some(kept) = kept
            && version_of(block.block, bytes.as_slice()).ok() < Some(block::block_scn(kept.as_slice()))
        {
            bytes.as_mut_slice().copy_from_slice(kept.as_slice());
            behind = true;
        }
        let replayed = recovery.replay.borrow_mut().replay(block.block, bytes.as_mut_slice())?;
        behind |= matches!(replayed, Replayed::Changed { .. });
        let scn = version_of(block.block, bytes.as_slice()).map_err(|fault| ReplayError::Unreadable { block, fault })?;
        // The disk had this version once: what is older now was damaged there, or did not come from there.
        let known = on_disk.max(recovery.replay.borrow().written(block));
        if scn < known {
            return Err(RecoveryFault::Older { block, found: scn, known });
        }
        if behind {
            if !recovery.goes_on() {
                return Ok(());
            }
            let writing = Writing::begin(self);
            let (written, _) = write_place(&self.reactor, file, block.block, bytes).await;
            drop(writing);
            whole(written, block, "write")?;
        }
        // The keepers of past images give up their redo with them.
        if image.is_some() {
            self.sync(recovery, block).await?;
        }
        if !recovery.goes_on() {
            return Ok(());
        }
        recovery.blocks_done.set(recovery.blocks_done.get() + 1);
        {
            let mut numbers = self.numbers.borrow_mut();
            numbers.blocks_recovered += 1;
            numbers.blocks_rewritten += u64::from(behind);
        }
        self.feed(|cores, out| cores.master.on_recovered(block, scn, out));
        Ok(())
    }

    /// The past image that a member keeps, unless it has given it up meanwhile.
    async fn fetch_image(&self, keeper: NodeId, block: BlockId) -> Option<IoBuf> {
        if keeper == self.node {
            return self.past_image(block);
        }
        let (sender, receiver) = oneshot();
        let before = self.tables.borrow_mut().fetching.insert(block, sender);
        assert!(before.is_none(), "{block} is recovered twice at once");
        self.send(keeper, &super::super::master::bare(self.epoch(), Kind::FetchImage, block), Body::Empty);
        // The sender goes with the view.
        let image = receiver.await.ok().flatten()?;
        if let Err(fault) = block::verify(image.as_slice(), block) {
            tracing::error!(%block, %keeper, %fault, "a past image came damaged; the disk is taken instead");
            return None;
        }
        self.numbers.borrow_mut().images_fetched += 1;
        Some(image)
    }

    fn past_image(&self, block: BlockId) -> Option<IoBuf> {
        let bytes = self.cache()?.past_image_bytes(block)?;
        let mut image = IoBuf::aligned(BLOCK_SIZE);
        image.as_mut_slice().copy_from_slice(&bytes);
        Some(image)
    }

    /// A master wants the past image that is kept here.
    pub(super) fn give_image(&self, to: NodeId, block: BlockId) {
        let message = super::super::master::bare(self.epoch(), Kind::Image, block);
        match self.past_image(block) {
            Some(image) => {
                let scn = block::block_scn(image.as_slice());
                self.send(to, &Message { scn, ..message }, Body::Block(image));
            }
            None => self.send(to, &message, Body::Empty),
        }
    }

    /// A keeper's answer.
    pub(super) fn image_came(&self, block: BlockId, image: Option<IoBuf>) {
        let waiting = self.tables.borrow_mut().fetching.remove(&block);
        if let Some(sender) = waiting {
            // Whoever waited may have ended with an error of another block's.
            let _ = sender.send(image);
        }
    }

    /// Makes durable what has been written so far. Those who come while one sync runs share the next.
    async fn sync(&self, recovery: &Recovery, block: BlockId) -> Result<(), RecoveryFault> {
        let syncs = &recovery.syncs;
        let mine = syncs.wanted.get() + 1;
        syncs.wanted.set(mine);
        while syncs.done.get() < mine {
            let ended = syncs.ended.notified();
            if !recovery.goes_on() {
                return Ok(());
            }
            if syncs.running.replace(true) {
                ended.await;
                continue;
            }
            let covers = syncs.wanted.get();
            let synced = self.reactor.sync(recovery.file).await;
            syncs.running.set(false);
            if synced.is_ok() {
                syncs.done.set(covers);
            }
            syncs.ended.notify_all();
            synced.map_err(|error| RecoveryFault::Block { block, doing: "make durable", error: error.to_string() })?;
        }
        Ok(())
    }
}

fn whole(result: std::io::Result<usize>, block: BlockId, doing: &'static str) -> Result<(), RecoveryFault> {
    let error = match result {
        Ok(BLOCK_SIZE) => return Ok(()),
        Ok(bytes) => format!("only {bytes} bytes of {BLOCK_SIZE}"),
        Err(error) => error.to_string(),
    };
    Err(RecoveryFault::Block { block, doing, error })
}
