//! How often something is said in the log that happens again and again. In the shard's thread; two words.

use std::cell::Cell;
use std::time::Duration;

use super::time::Instant;

/// Lets one log line through per interval, and says how many it held back: a port scan must not fill the disk with logs.
pub(crate) struct LogGate {
    interval: Duration,
    last: Cell<Option<Instant>>,
    held_back: Cell<u64>,
}

impl LogGate {
    pub(crate) fn new(interval: Duration) -> LogGate {
        LogGate { interval, last: Cell::new(None), held_back: Cell::new(0) }
    }

    /// `Some(lines held back since the last one)` when a line may be written now.
    pub(crate) fn pass(&self, now: Instant) -> Option<u64> {
        if self.last.get().is_some_and(|last| now.since(last) < self.interval) {
            self.held_back.set(self.held_back.get() + 1);
            return None;
        }
        self.last.set(Some(now));
        Some(self.held_back.take())
    }

    /// The next line passes whatever the time: the matter has changed.
    pub(crate) fn reset(&self) {
        self.last.set(None);
    }
}
