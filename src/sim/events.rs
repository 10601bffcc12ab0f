//! What the simulation does to the cluster and what it sees of it, for people: the last lines, and a hash over all.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt::Display;
use std::rc::Rc;

/// Lines that are kept for a failure's report.
const LINES_MAX: usize = 200;

thread_local! {
    static NOW_NS: RefCell<Option<Rc<dyn Fn() -> u64>>> = const { RefCell::new(None) };
}

/// The virtual time of the simulation that runs in this thread, in nanoseconds: for the clock of a log.
#[must_use]
pub fn virtual_now_ns() -> Option<u64> {
    NOW_NS.with_borrow(|now| now.as_ref().map(|now| now()))
}

/// From here on [`virtual_now_ns`] tells this world's time.
pub(super) fn set_virtual_clock(now: Option<Rc<dyn Fn() -> u64>>) {
    NOW_NS.replace(now);
}

/// See the module.
#[derive(Default)]
pub(super) struct Events {
    lines: RefCell<VecDeque<String>>,
    hash: Cell<u64>,
}

impl Events {
    pub(super) fn note(&self, event: impl Display) {
        let ns = virtual_now_ns().unwrap_or(0);
        tracing::info!(target: "sim", "{event}");
        let line = format!("{:>12.6} {event}", ns as f64 / 1e9);
        let hash = line.bytes().fold(self.hash.get(), |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
        self.hash.set(hash.rotate_left(17));
        let mut lines = self.lines.borrow_mut();
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// Over everything that was noted.
    pub(super) fn hash(&self) -> u64 {
        self.hash.get()
    }

    pub(super) fn last(&self) -> Vec<String> {
        self.lines.borrow().iter().cloned().collect()
    }
}
