//! Answers to what the cache has asked of the cluster: what a grant makes of the frame that was reserved for it.
//!
//! Owned by the shard; everything in here happens while the message that grants is handled (see [`coherence`](super::coherence)).

use std::rc::Rc;

use super::cache::Shared;
use super::coherence::{GrantSink, Granted, Mode, Source};
use super::error::CacheError;
use super::frame::{FrameId, Role, bar};
use super::wait::{Kind, Outcome};
use crate::ids::BlockId;
use crate::reactor::Class;

impl GrantSink for Shared {
    fn on_answer(&self, block: BlockId, answer: Result<Granted, CacheError>) {
        if let Some(shared) = self.this.upgrade() {
            shared.answered(block, answer);
        }
    }

    fn on_void(&self, block: BlockId) {
        if let Some(shared) = self.this.upgrade() {
            shared.voided(block);
        }
    }
}

impl Shared {
    /// The frame that is reserved for the answer to a request.
    fn reserved(&self, block: BlockId) -> FrameId {
        let id = self.map.find(block).unwrap_or_else(|| panic!("{block}: an answer, and no frame is reserved for it"));
        let frame = self.frame(id);
        assert!(frame.block.get() == block && frame.role.get() == Role::Current, "{block} is in {id:?} of {}", frame.block.get());
        assert!(frame.acquiring.get().is_some(), "{block}: an answer to no request");
        id
    }

    fn answered(self: &Rc<Self>, block: BlockId, answer: Result<Granted, CacheError>) {
        let id = self.reserved(block);
        let frame = self.frame(id);
        frame.acquiring.set(None);
        match answer {
            Err(error) => {
                self.dismiss(id, &Outcome::Failed(error));
                if frame.latch.get() != 0 && frame.mode.get() == Mode::Null {
                    // Somebody still receives into it.
                    self.detach(id);
                    frame.role.set(Role::Doomed);
                    return;
                }
            }
            Ok(granted) => self.apply(id, granted),
        }
        if frame.role.get() == Role::Current {
            self.pump(id);
        }
    }

    /// A request will not be answered: those who wait ask again.
    fn voided(self: &Rc<Self>, block: BlockId) {
        let id = self.reserved(block);
        let frame = self.frame(id);
        frame.acquiring.set(None);
        if frame.latch.get() != 0 && frame.mode.get() == Mode::Null {
            // Somebody still receives into it.
            self.dismiss(id, &Outcome::Gone);
            self.detach(id);
            frame.role.set(Role::Doomed);
        } else {
            self.pump(id);
        }
    }

    fn apply(self: &Rc<Self>, id: FrameId, granted: Granted) {
        let frame = self.frame(id);
        let block = frame.block.get();
        let had = frame.mode.get();
        assert!(
            !frame.is_barred(bar::EVICTING | bar::LOADING | bar::PROTECTED),
            "{block}: granted in the middle of something else"
        );
        match granted.source {
            Source::Held => {
                assert!(had == Mode::Shared, "{block}: granted as held, and it is in mode {had:?} here");
                frame.mode.set(granted.mode);
            }
            Source::Received => {
                assert!(had == Mode::Null, "{block}: shipped to a node that has it in mode {had:?}");
                assert!(frame.latch.get() == 0, "{block}: granted while its bytes are still being received");
                frame.mode.set(granted.mode);
                self.stats.received.add(1);
                if let Err(error) = self.take_in(id) {
                    self.refuse(id, error);
                    return;
                }
                // The volume may hold any older version of it, so the next group that this node logs brings it all.
                frame.needs_image.set(!granted.dirty_owner);
            }
            Source::Disk => {
                assert!(had == Mode::Null, "{block}: granted from disk to a node that has it in mode {had:?}");
                assert!(!granted.dirty_owner, "{block}: granted from disk while an owner has a newer version (rule 6)");
                assert!(frame.latch.get() == 0, "{block}: granted from disk while its bytes are being received");
                frame.mode.set(granted.mode);
                // Who asked may have left meanwhile: what counts is who will be served next.
                let create = frame.line.borrow().local.front().is_some_and(|waiter| waiter.kind == Kind::Create);
                if create && granted.mode == Mode::Exclusive {
                    // SAFETY: the frame was reserved for this answer, nobody has a latch on it.
                    unsafe { self.arena.bytes_mut(id) }.fill(0);
                    frame.fresh.set(true);
                } else {
                    frame.bar(bar::LOADING);
                    self.reactor.spawn(Class::Normal, "block read", self.clone().load(id));
                }
            }
        }
        if granted.dirty_owner && !frame.dirty.get() {
            // This node has no redo of it yet; the present end of the log keeps it in the order of age.
            self.mark_dirty(id, self.log.append_lsn());
        }
    }
}
