//! The frames of the cache: what is in a frame, who uses it, what is under way with it.
//!
//! Owned by one shard; a frame's fields are cells, so that looking at one never conflicts with anything. The invariants
//! between the fields are asserted wherever a frame changes hands ([`Frame::check_unused`]).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

use super::coherence::Mode;
use super::wait::Waiter;
use crate::ids::{BlockId, Lsn, Scn};

/// Index of a frame in its shard's arena.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrameId(pub u32);

impl fmt::Debug for FrameId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame {}", self.0)
    }
}

/// What a frame is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// Nothing; on the free list.
    Free,
    /// The block's present version, or reserved for it. In the map.
    Current,
    /// A former version, kept until a newer one is on disk.
    PastImage,
    /// Given up, but bytes of it are still being sent. Becomes free when they are out.
    Doomed,
}

/// Reasons why a latch is not given on the fast path; the slow path sorts them out.
pub(super) mod bar {
    /// Somebody is in line.
    pub(in super::super) const WAITERS: u8 = 1;
    /// The cluster wants the block.
    pub(in super::super) const REMOTE: u8 = 2;
    /// The bytes are being read from disk.
    pub(in super::super) const LOADING: u8 = 4;
    /// The block is leaving the cache, the master has not acknowledged yet.
    pub(in super::super) const EVICTING: u8 = 8;
    /// The block is being given away.
    pub(in super::super) const PROTECTED: u8 = 16;
}

/// One frame's state.
pub(super) struct Frame {
    pub(super) block: Cell<BlockId>,
    /// Latch: -1 held exclusively, otherwise the number of shared holders.
    pub(super) latch: Cell<i32>,
    pub(super) mode: Cell<Mode>,
    /// The mode that it had before it became `Protected`.
    pub(super) protected_from: Cell<Mode>,
    /// Bits of [`bar`].
    pub(super) barred: Cell<u8>,
    /// Uses since replacement last looked, up to [`HEAT_MAX`].
    pub(super) heat: Cell<u8>,
    pub(super) role: Cell<Role>,
    /// The version in the frame.
    pub(super) scn: Cell<Scn>,
    /// The newest version that is known to be on disk; zero when none is.
    pub(super) disk_scn: Cell<Scn>,
    /// End of the last redo group that changed the block here: durable before the block is written or shipped.
    pub(super) last_lsn: Cell<Lsn>,
    /// Newer than the volume, and this node must write it (or, as a past image, must keep it).
    pub(super) dirty: Cell<bool>,
    /// Where the redo of this node begins that the volume's version lacks. Meaningful while dirty.
    pub(super) first_dirty_lsn: Cell<Lsn>,
    /// A copy of version `.0` is being written.
    pub(super) writing: Cell<Option<Scn>>,
    /// First redo group after the copy that is being written was taken.
    pub(super) redirtied_lsn: Cell<Option<Lsn>>,
    /// The next redo group must carry the whole block: a torn write of it could not be repaired from changes alone.
    pub(super) needs_image: Cell<bool>,
    /// Just created: no content yet, the first change must format it.
    pub(super) fresh: Cell<bool>,
    /// An unfinished mini-transaction has changed it.
    pub(super) pending: Cell<bool>,
    /// Its write guard was dropped before the mini-transaction finished, which now owes the release of the latch.
    pub(super) latch_owed: Cell<bool>,
    /// The checksum in the frame fits its bytes.
    pub(super) sealed: Cell<bool>,
    /// Someone asked for it to be written soon.
    pub(super) write_wanted: Cell<bool>,
    /// The mode asked for, while a request is in flight.
    pub(super) acquiring: Cell<Option<Mode>>,
    /// Links of the replacement queue that it is in.
    pub(super) previous: Cell<u32>,
    pub(super) next: Cell<u32>,
    pub(super) queue: Cell<u8>,
    /// Who waits for it.
    pub(super) line: RefCell<Line>,
}

/// Who waits for a frame.
#[derive(Default)]
pub(super) struct Line {
    /// Local tasks, first come first served. Bounded by the shard's tasks.
    pub(super) local: VecDeque<Rc<Waiter>>,
    /// What the cluster wants; one at a time, because the block's master does one thing with it at a time (rule 5).
    pub(super) remote: Option<Remote>,
}

/// What the cluster wants of a block.
pub(super) struct Remote {
    pub(super) waiter: Rc<Waiter>,
    /// So many local tasks were in line before it and may go first…
    pub(super) ahead: usize,
    /// …but not after this point of the shard's clock.
    pub(super) deadline: crate::reactor::Instant,
}

/// Heat counts up to this.
pub(super) const HEAT_MAX: u8 = 3;

/// No frame, in a link.
pub(super) const NO_FRAME: u32 = u32::MAX;

impl Frame {
    pub(super) fn free() -> Frame {
        Frame {
            block: Cell::new(BlockId::default()),
            latch: Cell::new(0),
            mode: Cell::new(Mode::Null),
            protected_from: Cell::new(Mode::Null),
            barred: Cell::new(0),
            heat: Cell::new(0),
            role: Cell::new(Role::Free),
            scn: Cell::new(Scn::ZERO),
            disk_scn: Cell::new(Scn::ZERO),
            last_lsn: Cell::new(Lsn(0)),
            dirty: Cell::new(false),
            first_dirty_lsn: Cell::new(Lsn(0)),
            writing: Cell::new(None),
            redirtied_lsn: Cell::new(None),
            needs_image: Cell::new(true),
            fresh: Cell::new(false),
            pending: Cell::new(false),
            latch_owed: Cell::new(false),
            sealed: Cell::new(false),
            write_wanted: Cell::new(false),
            acquiring: Cell::new(None),
            previous: Cell::new(NO_FRAME),
            next: Cell::new(NO_FRAME),
            queue: Cell::new(0),
            line: RefCell::new(Line::default()),
        }
    }

    /// Ready for another block. The frame must be out of every list and use.
    pub(super) fn reset(&self, block: BlockId, role: Role) {
        self.check_unused();
        self.block.set(block);
        self.role.set(role);
        self.mode.set(Mode::Null);
        self.barred.set(0);
        self.heat.set(0);
        self.scn.set(Scn::ZERO);
        self.disk_scn.set(Scn::ZERO);
        self.last_lsn.set(Lsn(0));
        self.first_dirty_lsn.set(Lsn(0));
        self.needs_image.set(true);
        self.fresh.set(false);
        self.sealed.set(false);
        self.write_wanted.set(false);
    }

    /// Nothing is under way with the frame: it may be used for something else.
    pub(super) fn check_unused(&self) {
        let block = self.block.get();
        assert!(self.latch.get() == 0, "{block}: its frame is given up while its latch is held ({})", self.latch.get());
        assert!(!self.dirty.get(), "{block}: its frame is given up while it is dirty (rule 9)");
        assert!(self.writing.get().is_none(), "{block}: its frame is given up while it is being written (rule 8)");
        assert!(self.redirtied_lsn.get().is_none(), "{block}: its frame is given up with changes after a write");
        assert!(!self.pending.get() && !self.latch_owed.get(), "{block}: its frame is given up in a mini-transaction");
        assert!(self.acquiring.get().is_none(), "{block}: its frame is given up while it is reserved for an answer");
        assert!(self.queue.get() == 0, "{block}: its frame is given up while replacement still counts on it");
        let line = self.line.borrow();
        assert!(line.local.is_empty() && line.remote.is_none(), "{block}: its frame is given up while tasks wait for it");
    }

    /// Whether replacement may take it: clean, unused, nobody in line, nothing under way.
    pub(super) fn evictable(&self) -> bool {
        self.role.get() == Role::Current
            && self.latch.get() == 0
            && self.barred.get() == 0
            && !self.dirty.get()
            && self.writing.get().is_none()
            && self.acquiring.get().is_none()
            && matches!(self.mode.get(), Mode::Shared | Mode::Exclusive)
    }

    #[inline]
    pub(super) fn bar(&self, bit: u8) {
        self.barred.set(self.barred.get() | bit);
    }

    #[inline]
    pub(super) fn unbar(&self, bit: u8) {
        self.barred.set(self.barred.get() & !bit);
    }

    #[inline]
    pub(super) fn is_barred(&self, bits: u8) -> bool {
        self.barred.get() & bits != 0
    }

    #[inline]
    pub(super) fn touch(&self) {
        let heat = self.heat.get();
        if heat < HEAT_MAX {
            self.heat.set(heat + 1);
        }
    }
}
