//! How a thread that wants to sleep and those who have work for it don't miss each other.
//!
//! The sleeper says that it sleeps, then looks for work once more; the others make work visible, then look whether it
//! sleeps. With a fence between the two steps on both sides at least one of them sees the other (Dekker). Whoever takes
//! the flag wakes the sleeper: once per sleep, however many have something for it.

use super::primitives::{AtomicBool, Ordering, fence};

/// Whether one thread sleeps, or is about to.
pub(super) struct Sleeper {
    asleep: AtomicBool,
}

impl Sleeper {
    pub(super) fn new() -> Sleeper {
        Sleeper { asleep: AtomicBool::new(false) }
    }

    /// Before sleeping. False when `has_work`, which is asked last, and the thread must stay awake.
    pub(super) fn lie_down(&self, has_work: impl FnOnce() -> bool) -> bool {
        // Swaps, here and below, where stores would do: loom does not know that no store comes between the halves of a swap.
        self.asleep.swap(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if has_work() {
            self.get_up();
            return false;
        }
        true
    }

    /// After sleeping, or instead of it.
    pub(super) fn get_up(&self) {
        self.asleep.swap(false, Ordering::Relaxed);
    }

    /// Whether the caller has to wake the thread. To be asked after the work was made visible and a `SeqCst` fence.
    #[inline]
    pub(super) fn must_be_woken(&self) -> bool {
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel)
    }
}
