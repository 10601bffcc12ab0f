//! Whether the node answers its clients, and if not, why.
//!
//! Shared by a node's threads: set by the cluster's lead, looked at before each operation of a client. One atomic load
//! where it does.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What keeps a node from answering; each comes and goes by itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Obstacle {
    /// It reaches too few of the other nodes.
    Quorum,
    /// Its disk does not answer.
    Disk,
}

/// See the module; clones are the same. Answers until it is told otherwise.
#[derive(Clone, Default, Debug)]
pub struct Serving(Arc<Inner>);

#[derive(Default, Debug)]
struct Inner {
    suspended: AtomicBool,
    obstacles: Mutex<BTreeMap<Obstacle, String>>,
}

impl Serving {
    fn obstacles(&self) -> MutexGuard<'_, BTreeMap<Obstacle, String>> {
        self.0.obstacles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody is answered from now on; the reason is what clients are told.
    pub fn suspend(&self, obstacle: Obstacle, reason: String) {
        let mut obstacles = self.obstacles();
        obstacles.insert(obstacle, reason);
        self.0.suspended.store(true, Ordering::Release);
    }

    /// This one is gone; clients are answered again if it was the last.
    pub fn resume(&self, obstacle: Obstacle) {
        let mut obstacles = self.obstacles();
        obstacles.remove(&obstacle);
        self.0.suspended.store(!obstacles.is_empty(), Ordering::Release);
    }

    /// Whether clients are not answered. One atomic load.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        self.0.suspended.load(Ordering::Acquire)
    }

    /// Why clients are not answered; `None` when they are.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.is_suspended().then(|| self.obstacles().values().next().cloned()).flatten()
    }
}
