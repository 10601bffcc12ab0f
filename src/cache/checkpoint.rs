//! Checkpoints: how far back recovery would have to read, and keeping that short.
//!
//! One task per shard. The log's checkpoint stands at the oldest redo that some dirty block or past image of this shard
//! still needs. It moves by writing the oldest dirty blocks (the writer's job) and by asking other nodes to write the
//! blocks of which this one keeps past images. Two things drive it: time (a dirty block is written after at most about
//! two intervals) and the log (from half full on, all but its newest quarter is written). Nobody waits for a
//! checkpoint but those who wait for room in the log.

use std::rc::Rc;
use std::time::Duration;

use super::cache::{Cache, Shared};
use super::error::CacheError;
use super::frame::FrameId;
use crate::ids::{BlockId, Lsn};
use crate::reactor::Class;
use crate::wal::LogError;

/// The task looks around this often, and when somebody calls it.
const TICK: Duration = Duration::from_millis(250);

/// While something is to be written, progress is looked at this often.
const BUSY_TICK: Duration = Duration::from_millis(5);

/// Requests to other nodes to write a block, per look.
const REQUESTS_MAX: usize = 64;

/// The checkpoint moves when it can give up at least this part of the log (or when time has come).
const STEP_PART: u64 = 32;

/// The writer goes on at its own pace when this goes, also when whoever hurried it was given up.
struct UsualPace<'a>(&'a Shared);

impl Drop for UsualPace<'_> {
    fn drop(&mut self) {
        self.0.writer_target.set(Lsn(0));
    }
}

impl Cache {
    /// Everything that the log holds from here on is needed by some block of this shard.
    #[must_use]
    pub fn checkpoint_position(&self) -> Lsn {
        self.0.position()
    }

    /// Writes every dirty block, asks other nodes to write those of which past images are kept here, and takes a
    /// checkpoint. For a clean shutdown, when nobody changes anything any more. Answers whether the log is empty
    /// afterwards: not if past images were still needed after `patience`.
    ///
    /// # Errors
    /// When the volume or the log refuses.
    pub async fn checkpoint_fully(&self, patience: Duration) -> Result<bool, CacheError> {
        let shared = &self.0;
        let deadline = shared.reactor.now() + patience;
        let failures = shared.write_error.borrow().0;
        let _usual_pace = UsualPace(shared);
        loop {
            shared.ask_owners(Lsn(u64::MAX));
            let clean = shared.dirty.borrow().is_empty();
            if clean && (shared.dirty_past.borrow().is_empty() || shared.reactor.now() >= deadline) {
                break;
            }
            shared.writer_target.set(Lsn(u64::MAX));
            shared.work.wake();
            if let (count, Some(error)) = &*shared.write_error.borrow()
                && *count != failures
            {
                return Err(error.clone());
            }
            shared.reactor.sleep(BUSY_TICK).await;
        }
        shared.take_checkpoint().await?;
        Ok(shared.dirty_past.borrow().is_empty())
    }

    /// As [`Cache::checkpoint_fully`], but not for longer than `patience` and as much again: somebody may still change blocks,
    /// or hold one while it waits for another that its owner can't give any more. What is not written then is in the redo.
    ///
    /// # Errors
    /// When the volume or the log refuses.
    pub async fn checkpoint_within(&self, patience: Duration) -> Result<bool, CacheError> {
        self.0.reactor.timeout(2 * patience, self.checkpoint_fully(patience)).await.unwrap_or(Ok(false))
    }

    /// Resolves when a cache that was [closed](Cache::close) has no write under way any more.
    pub async fn at_rest(&self) {
        self.0.settled.until(|| self.0.at_rest.get()).await;
    }

    /// Ends the writer and the checkpoints, and refuses whoever waits or comes. What is dirty stays unwritten: call
    /// [`Cache::checkpoint_fully`] before.
    pub fn close(&self) {
        let shared = &self.0;
        shared.closed.set(true);
        shared.work.wake();
        shared.frames_freed.wake();
        shared.settled.wake();
    }
}

impl Shared {
    pub(super) fn start_checkpoints(self: &Rc<Self>) {
        let this = self.clone();
        self.reactor.spawn(Class::Low, "checkpoints", async move { this.checkpoints().await });
    }

    async fn checkpoints(self: Rc<Self>) {
        let interval = Duration::from_millis(self.config.checkpoint_interval_ms);
        let (mut marked_at, mut mark) = (self.reactor.now(), self.log.append_lsn());
        while !self.closed.get() {
            if self.log.checkpoint_due() {
                self.reactor.sleep(BUSY_TICK).await;
            } else {
                // Whether it was called or the time is over, it looks around.
                let _ = self.reactor.timeout(TICK, self.log.checkpoint_wanted()).await;
            }
            let (append, capacity) = (self.log.append_lsn(), self.log.capacity());
            // Where somebody waits for room although half of it is free, reservations have the rest; those end by
            // themselves, and a shorter log helps.
            let used = self.log.used_bytes();
            let keep = if used > capacity / 2 { capacity / 4 } else { capacity / 8 };
            let mut target = self.writer_target.get();
            if self.log.checkpoint_due() && used > keep {
                target = target.max(Lsn(append.0 - keep));
            }
            let due = self.reactor.now().since(marked_at) >= interval;
            if due {
                target = target.max(mark);
                (marked_at, mark) = (self.reactor.now(), append);
            }
            if target > self.writer_target.get() {
                self.writer_target.set(target);
                self.work.wake();
            }
            self.ask_owners(target);
            let step = self.position().min(self.log.retained_from()).0.saturating_sub(self.log.checkpoint_lsn().0);
            let worthwhile = (step > 0 && due) || step >= capacity / STEP_PART;
            if worthwhile && let Err(error) = self.take_checkpoint().await {
                tracing::error!(%error, "no checkpoint: the log keeps what it has, and fills up if this goes on");
            }
        }
    }

    /// The oldest redo that some block still needs; the end of the log when none does.
    fn position(&self) -> Lsn {
        let oldest = self.dirty.borrow().first().map(|(lsn, _)| *lsn);
        let oldest_past = self.dirty_past.borrow().first().map(|(lsn, _)| *lsn);
        oldest.into_iter().chain(oldest_past).min().unwrap_or_else(|| self.log.append_lsn())
    }

    /// Lets the log give up what no block needs any more.
    async fn take_checkpoint(&self) -> Result<(), CacheError> {
        let position = self.position();
        let failed = |error: LogError| CacheError::log(&error);
        // The log begins at the checkpoint after a crash, so it must reach there.
        self.log.flush_to(position).await.map_err(failed)?;
        let before = self.log.checkpoint_lsn();
        let taken = self.log.checkpoint(position, self.clock.latest()).await.map_err(failed)?;
        assert!(taken <= self.position(), "the log gave up {taken}, and a block needs {}", self.position());
        if taken > before {
            self.stats.checkpoints.add(1);
        }
        Ok(())
    }

    /// Asks the owners of blocks, of which past images from before `target` are kept here, to write them.
    fn ask_owners(&self, target: Lsn) {
        let past = self.past_images.borrow().len();
        let limit = self.frames.len() * usize::from(self.config.past_image_percent_max) / 100;
        let too_many = past.saturating_sub(limit);
        let blocks: Vec<BlockId> = {
            let set = self.dirty_past.borrow();
            let old = set.iter().enumerate().take_while(|(place, (lsn, _))| *place < too_many || *lsn < target);
            old.take(REQUESTS_MAX).map(|(_, (_, id))| self.frame(FrameId(*id)).block.get()).collect()
        };
        blocks.into_iter().for_each(|block| self.coherence.request_write(block));
    }
}
