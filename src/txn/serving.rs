//! Whether the node answers its clients, and if not, why.
//!
//! Shared by a node's threads: set by the cluster's lead, looked at before each operation of a client. One atomic load
//! where it does, two and a look at the clock for reads in a cluster.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::reactor::Instant;

/// What keeps a node from answering; each comes and goes by itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Obstacle {
    /// It reaches too few of the other nodes.
    Quorum,
    /// Its disk does not answer.
    Disk,
}

/// Reads need no lease.
const FOR_EVER: u64 = u64::MAX;

/// See the module; clones are the same. Answers until it is told otherwise.
#[derive(Clone, Default, Debug)]
pub struct Serving(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    suspended: AtomicBool,
    read_until_ns: AtomicU64,
    obstacles: Mutex<BTreeMap<Obstacle, String>>,
}

impl Default for Inner {
    fn default() -> Inner {
        let (suspended, read_until_ns) = (AtomicBool::new(false), AtomicU64::new(FOR_EVER));
        Inner { suspended, read_until_ns, obstacles: Mutex::default() }
    }
}

impl Serving {
    /// What is cached may be shown until then (`cluster/read_lease.rs`). Before the first call: always.
    pub fn read_until(&self, until: Instant) {
        self.0.read_until_ns.store(until.as_ns(), Ordering::Release);
    }

    /// Whether what is cached may be shown. `now` must be a look at the clock that begins after what is shown was read.
    #[must_use]
    pub fn may_read(&self, now: impl FnOnce() -> Instant) -> bool {
        let until = self.0.read_until_ns.load(Ordering::Acquire);
        until == FOR_EVER || now().as_ns() < until
    }

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
