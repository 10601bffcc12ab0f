//! Who gets a frame next: the shard's tasks first come first served, the cluster in between.
//!
//! Owned by one shard. [`Shared::pump`] is the only place that gives latches to waiters and asks the cluster for modes; it
//! is called after everything that may let somebody go on, and calling it once too often does nothing.
//!
//! Fairness: readers and writers are served in the order in which they came. What the cluster wants of a block (to give it
//! away, to stop reading it) goes after the tasks that were in line before it, but waits at most [`HOLD_US_MAX`] for them;
//! and it never waits for a task that itself waits for the cluster.

use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use super::cache::Shared;
use super::coherence::{Acquire, GrantSink, Mode};
use super::error::CacheError;
use super::frame::{FrameId, Remote, Role, bar};
use super::wait::{Kind, Outcome, Waiter};
use crate::ids::BlockId;

/// Local tasks that were in line before the cluster's request are served for at most this long, microseconds.
pub const HOLD_US_MAX: u64 = 100;

/// What [`Shared::pump`] does next.
enum Step {
    Rest,
    Settle(Rc<Waiter>),
    Request(Mode, bool),
    Give(Rc<Waiter>),
}

impl Shared {
    /// Takes a latch on a block, from the cluster and the disk if need be.
    pub(super) async fn latch(self: &Rc<Self>, block: BlockId, kind: Kind) -> Result<FrameId, CacheError> {
        loop {
            if self.closed.get() {
                return Err(CacheError::Closed);
            }
            if self.dropped.borrow().contains(block.partition) {
                return Err(CacheError::Dropped { partition: block.partition });
            }
            let frame = match self.map.find(block) {
                Some(frame) => frame,
                None => match self.admit(block) {
                    Some(frame) => frame,
                    None => {
                        self.stats.frame_waits.add(1);
                        self.frames_freed.until(|| self.has_free() || self.map.find(block).is_some() || self.closed.get()).await;
                        continue;
                    }
                },
            };
            match self.join(frame, kind).await {
                Outcome::Granted => return Ok(frame),
                Outcome::Gone => {}
                Outcome::Failed(error) => return Err(error),
            }
        }
    }

    /// Puts a task in line.
    fn join(self: &Rc<Self>, id: FrameId, kind: Kind) -> InLine {
        let waiter = Waiter::new(kind);
        let frame = self.frame(id);
        frame.line.borrow_mut().local.push_back(waiter.clone());
        self.pump(id);
        if waiter.settled().is_none() {
            self.stats.latch_waits.add(1);
        }
        InLine { shared: self.clone(), frame: id, waiter: Some(waiter) }
    }

    /// Puts what the cluster wants in line.
    pub(super) fn join_remote(self: &Rc<Self>, id: FrameId, kind: Kind) -> InLine {
        let waiter = Waiter::new(kind);
        let frame = self.frame(id);
        {
            let mut line = frame.line.borrow_mut();
            let block = frame.block.get();
            assert!(line.remote.is_none(), "{block}: the master does two things with it at once (rule 5)");
            let ahead = line.local.len();
            let deadline = self.reactor.now() + Duration::from_micros(HOLD_US_MAX);
            line.remote = Some(Remote { waiter: waiter.clone(), ahead, deadline });
        }
        self.pump(id);
        InLine { shared: self.clone(), frame: id, waiter: Some(waiter) }
    }

    /// Serves whoever can be served now.
    pub(super) fn pump(self: &Rc<Self>, id: FrameId) {
        let frame = self.frame(id);
        // What is called in here may come back to this frame, so the frame is looked at afresh in every round.
        while frame.role.get() == Role::Current && !frame.is_barred(bar::EVICTING | bar::LOADING | bar::PROTECTED) {
            match self.next_step(id) {
                Step::Rest => break,
                Step::Settle(waiter) => waiter.settle(Outcome::Granted),
                Step::Request(want, create) => self.request(id, want, create),
                Step::Give(waiter) => {
                    match waiter.kind {
                        Kind::Protect => {
                            frame.protected_from.set(frame.mode.get());
                            frame.mode.set(Mode::Protected);
                            frame.bar(bar::PROTECTED);
                        }
                        Kind::Invalidate => {
                            let block = frame.block.get();
                            assert!(!frame.dirty.get(), "{block}: invalidated at its dirty owner (rule 6)");
                            assert!(frame.mode.get() == Mode::Shared, "{block}: invalidated in mode {:?}", frame.mode.get());
                            frame.mode.set(Mode::Null);
                        }
                        local => unreachable!("{local:?} is not a request of the cluster"),
                    }
                    waiter.settle(Outcome::Granted);
                }
            }
        }
        let line = frame.line.borrow();
        let (waiting, remote) = (!line.local.is_empty(), line.remote.is_some());
        drop(line);
        if waiting {
            frame.bar(bar::WAITERS)
        } else {
            frame.unbar(bar::WAITERS)
        }
        if remote {
            frame.bar(bar::REMOTE)
        } else {
            frame.unbar(bar::REMOTE)
        }
        let idle = frame.barred.get() == 0 && frame.latch.get() == 0 && frame.acquiring.get().is_none();
        if idle && frame.role.get() == Role::Current && frame.mode.get() == Mode::Null {
            self.retire(id);
        }
    }

    fn next_step(&self, id: FrameId) -> Step {
        let frame = self.frame(id);
        let (mode, latch) = (frame.mode.get(), frame.latch.get());
        let mut line = frame.line.borrow_mut();
        let head = line.local.front().map(|waiter| waiter.kind);
        let suits = |kind: Kind| match kind {
            Kind::Read => matches!(mode, Mode::Shared | Mode::Exclusive),
            _ => mode == Mode::Exclusive,
        };
        if let Some(remote) = &line.remote {
            let local_first = remote.ahead > 0 && head.is_some_and(suits) && self.reactor.now() < remote.deadline;
            if !local_first {
                if latch != 0 {
                    return Step::Rest;
                }
                let remote = line.remote.take().expect("it was looked at just now");
                return Step::Give(remote.waiter);
            }
        }
        let Some(kind) = head else { return Step::Rest };
        if suits(kind) {
            if latch < 0 || (kind != Kind::Read && latch > 0) {
                return Step::Rest;
            }
            frame.latch.set(if kind == Kind::Read { latch + 1 } else { -1 });
            frame.touch();
            if let Some(remote) = &mut line.remote {
                remote.ahead -= 1;
            }
            return Step::Settle(line.local.pop_front().expect("there is a head"));
        }
        if frame.acquiring.get().is_some() {
            return Step::Rest;
        }
        match kind {
            Kind::Read => Step::Request(Mode::Shared, false),
            _ => Step::Request(Mode::Exclusive, kind == Kind::Create && mode == Mode::Null),
        }
    }

    fn request(self: &Rc<Self>, id: FrameId, want: Mode, create: bool) {
        let frame = self.frame(id);
        frame.acquiring.set(Some(want));
        self.stats.acquires.add(1);
        self.coherence.acquire(Acquire {
            block: frame.block.get(),
            want,
            have: frame.mode.get(),
            create,
            reply: Some(Rc::downgrade(self) as Weak<dyn GrantSink>),
        });
    }

    /// Ends a shared hold of a frame.
    #[inline]
    pub(super) fn unlatch_shared(self: &Rc<Self>, id: FrameId) {
        let frame = self.frame(id);
        let latch = frame.latch.get();
        assert!(latch > 0, "{}: a shared latch is released that nobody holds", frame.block.get());
        frame.latch.set(latch - 1);
        if latch == 1 && (frame.barred.get() != 0 || frame.role.get() != Role::Current) {
            self.unlatched(id);
        }
    }

    /// Ends the exclusive hold of a frame.
    #[inline]
    pub(super) fn unlatch_exclusive(self: &Rc<Self>, id: FrameId) {
        let frame = self.frame(id);
        assert!(frame.latch.get() == -1, "{}: an exclusive latch is released that nobody holds", frame.block.get());
        frame.latch.set(0);
        if frame.barred.get() != 0 || frame.role.get() != Role::Current || frame.fresh.get() {
            self.unlatched(id);
        }
    }

    #[cold]
    fn unlatched(self: &Rc<Self>, id: FrameId) {
        match self.frame(id).role.get() {
            Role::Current if self.frame(id).fresh.get() => {
                // Created, but never formatted: its bytes are nobody's data.
                self.dismiss(id, &Outcome::Gone);
                self.dismiss_remote(id);
                self.evict(id);
            }
            Role::Current => self.pump(id),
            Role::Doomed => self.free(id),
            Role::PastImage => {}
            Role::Free => unreachable!("a free frame was latched"),
        }
    }

    /// Sends everyone in line at a frame away.
    pub(super) fn dismiss(&self, id: FrameId, outcome: &Outcome) {
        let frame = self.frame(id);
        let local = std::mem::take(&mut frame.line.borrow_mut().local);
        frame.unbar(bar::WAITERS);
        local.into_iter().for_each(|waiter| waiter.settle(outcome.clone()));
    }

    /// Tells the cluster's request, if there is one, that the block is not here.
    pub(super) fn dismiss_remote(&self, id: FrameId) {
        let frame = self.frame(id);
        let remote = frame.line.borrow_mut().remote.take();
        frame.unbar(bar::REMOTE);
        if let Some(remote) = remote {
            remote.waiter.settle(Outcome::Gone);
        }
    }
}

/// A task's place in a frame's line. Dropping it leaves the line, or gives back what was granted meanwhile.
pub(super) struct InLine {
    shared: Rc<Shared>,
    frame: FrameId,
    waiter: Option<Rc<Waiter>>,
}

impl Future for InLine {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let waiter = self.waiter.as_ref().expect("not polled after it ended");
        match waiter.settled() {
            Some(outcome) => {
                self.waiter = None;
                Poll::Ready(outcome)
            }
            None => {
                waiter.park(context.waker());
                Poll::Pending
            }
        }
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else { return };
        match (waiter.settled(), waiter.kind) {
            (None, kind) => {
                let mut line = self.shared.frame(self.frame).line.borrow_mut();
                if matches!(kind, Kind::Protect | Kind::Invalidate) {
                    line.remote = None;
                } else {
                    let place = line.local.iter().position(|other| Rc::ptr_eq(other, &waiter));
                    let place = place.expect("a waiter that is not settled is in line");
                    line.local.remove(place);
                    if let Some(remote) = &mut line.remote
                        && place < remote.ahead
                    {
                        remote.ahead -= 1;
                    }
                }
                drop(line);
                self.shared.pump(self.frame);
            }
            (Some(Outcome::Granted), Kind::Read) => self.shared.unlatch_shared(self.frame),
            (Some(Outcome::Granted), Kind::Write | Kind::Create) => self.shared.unlatch_exclusive(self.frame),
            (Some(Outcome::Granted), Kind::Protect) => self.shared.unprotect(self.frame),
            (Some(_), _) => {}
        }
    }
}
