//! Whether clients may come and stay: open, closed while the node is drained or stops, and over when the endpoint ends.
//!
//! Shared by all clients' threads, which look at it before and after each wait for a request; one flag is read then. Who closes it
//! ends the waits of those that are idle afterwards, so that either side sees the other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// See the module.
#[derive(Default)]
pub(super) struct Gate {
    over: AtomicBool,
    closed: AtomicBool,
    /// A clause about the node.
    why: Mutex<String>,
}

impl Gate {
    /// Nobody is let in any more, and who has no transaction is to go; `why` is a clause about the node.
    pub(super) fn close(&self, why: &str) {
        why.clone_into(&mut self.why.lock().unwrap_or_else(PoisonError::into_inner));
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Clients may come and stay.
    pub(super) fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }

    /// The endpoint ends.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    /// Whether it does.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn why(&self, words: impl FnOnce(&str) -> String) -> Option<String> {
        let closed = self.closed.load(Ordering::SeqCst);
        closed.then(|| words(&self.why.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// What a client is told that is to go; nothing while it may stay.
    pub(super) fn farewell(&self) -> Option<String> {
        self.why(|why| format!("terminating connection because {why}; connect to another node"))
    }

    /// What one who comes is told; nothing while it may.
    pub(super) fn refusal(&self) -> Option<String> {
        self.why(|why| format!("{why}: no connections are accepted; connect to another node"))
    }
}
