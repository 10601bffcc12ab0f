//! What clients' threads may do about locks without a trip to a shard: come in, and leave, where the node holds the lock
//! anyway.
//!
//! Shared by a node's threads. A shard that has the lock of a table for its node, with nobody waiting for it, *opens* the
//! table here in the mode that the node has (CR or CW). From then on sessions come in by themselves, in modes that this one
//! covers: no letter, no message. Before the shard gives the lock away, or grants a stronger mode to somebody on this
//! node, it *closes* the table and takes over whoever is in: those are users as if they had asked it, are waited for, and are
//! found by a search for deadlocks. It is PostgreSQL's fast-path locking (weak locks beside the lock table, moved there by
//! the first strong locker), over a node's lock of VMS's kind.
//!
//! A map in 16 parts, a mutex each, held for a few steps. Bounded: tables by what the shards open
//! ([`OPEN_MAX`](super::OPEN_MAX) each), sessions by the clients, one entry per session and table.
//! Opening and closing is done by the resource's shard only, so what that shard sees open stays open until it closes it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::types::{LockMode, Resource, SessionId};

const PARTS: usize = 16;

struct Open {
    mode: LockMode,
    inside: Vec<(SessionId, LockMode)>,
}

/// See the module.
#[derive(Default)]
pub struct Gate {
    parts: [Mutex<HashMap<Resource, Open>>; PARTS],
    catalog_version: AtomicU64,
    /// Sessions that have left after the shard had taken them over, and could not tell it: its mailbox was full.
    untold: Mutex<Vec<(Resource, SessionId)>>,
    entered: AtomicU64,
    turned_away: AtomicU64,
    closings: AtomicU64,
    taken_over: AtomicU64,
}

/// What a node's gate counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GateStats {
    /// Locks that sessions took without a trip to a shard.
    pub entered_total: u64,
    /// Locks that they had to ask a shard for: not open, or not in so strong a mode.
    pub turned_away_total: u64,
    /// Resources closed because somebody wanted a mode that does not go with those inside, or because too many were open.
    pub closings_total: u64,
    /// Sessions that were inside when that happened.
    pub taken_over_total: u64,
    /// Resources open now.
    pub open: u64,
}

impl Gate {
    /// Nothing is open.
    #[must_use]
    pub fn new() -> Gate {
        Gate::default()
    }

    fn part(&self, resource: &Resource) -> MutexGuard<'_, HashMap<Resource, Open>> {
        let part = resource.hash() as usize % PARTS;
        self.parts[part].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session takes a lock, if the resource is open in a mode that covers it. Any thread. For one that is inside
    /// already there is [`Gate::raise`].
    #[must_use]
    pub fn enter(&self, resource: Resource, session: SessionId, mode: LockMode) -> bool {
        let mut part = self.part(&resource);
        let Some(open) = part.get_mut(&resource).filter(|open| open.mode.covers(mode)) else {
            drop(part);
            self.turned_away.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        assert!(open.inside.iter().all(|(inside, _)| *inside != session), "{session} has {resource} already");
        open.inside.push((session, mode));
        drop(part);
        self.entered.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// A session that is inside wants a stronger mode, if the resource is open in one that covers it. False when it is not,
    /// or when the shard has taken the session over: then it asks its shard.
    #[must_use]
    pub fn raise(&self, resource: Resource, session: SessionId, mode: LockMode) -> bool {
        let mut part = self.part(&resource);
        let Some(open) = part.get_mut(&resource).filter(|open| open.mode.covers(mode)) else { return false };
        let inside = open.inside.iter_mut().find(|(inside, _)| *inside == session);
        let Some((_, held)) = inside else { return false };
        *held = mode;
        true
    }

    /// A session is done with a resource. False when it is not inside: then the shard has taken it over, and must be told.
    #[must_use]
    pub fn leave(&self, resource: Resource, session: SessionId) -> bool {
        self.take(resource, session).is_some()
    }

    /// Takes one session out, to go on as a user that the shard knows. `None` when it is not inside.
    pub(super) fn take(&self, resource: Resource, session: SessionId) -> Option<LockMode> {
        let mut part = self.part(&resource);
        let inside = &mut part.get_mut(&resource)?.inside;
        let at = inside.iter().position(|(inside, _)| *inside == session)?;
        Some(inside.swap_remove(at).1)
    }

    /// The resource's shard lets sessions in, in modes up to this one.
    pub(super) fn open(&self, resource: Resource, mode: LockMode) {
        assert!(LockMode::ConcurrentWrite.covers(mode), "{resource} opened in {mode}: its users would have to ask each other");
        self.part(&resource).entry(resource).or_insert(Open { mode, inside: Vec::new() }).mode = mode;
    }

    /// The resource's shard lets nobody in any more; who is inside.
    pub(super) fn close(&self, resource: Resource) -> Vec<(SessionId, LockMode)> {
        let inside = self.part(&resource).remove(&resource).map(|open| open.inside).unwrap_or_default();
        self.closings.fetch_add(1, Ordering::Relaxed);
        self.taken_over.fetch_add(inside.len() as u64, Ordering::Relaxed);
        inside
    }

    /// The version of the catalog, while this node holds the lock that keeps it from changing anywhere; otherwise 0.
    /// One atomic load.
    #[must_use]
    pub fn catalog_version(&self) -> u64 {
        self.catalog_version.load(Ordering::Acquire)
    }

    /// The catalog is at this version until it is said otherwise; with 0, it may be changing.
    pub fn set_catalog_version(&self, version: u64) {
        self.catalog_version.store(version, Ordering::Release);
    }

    /// Notes that a session has left that its shard still knows as a user. Told when a wait looks for what it waits for.
    pub fn left_untold(&self, resource: Resource, session: SessionId) {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner).push((resource, session));
    }

    /// Takes those out that the asking shard knows.
    pub(super) fn take_untold(&self, is_known: impl Fn(Resource, SessionId) -> bool) -> Vec<(Resource, SessionId)> {
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, others) = untold.drain(..).partition(|(resource, session)| is_known(*resource, *session));
        *untold = others;
        known
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> GateStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let open = |part: &Mutex<HashMap<_, _>>| part.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
        GateStats {
            entered_total: load(&self.entered),
            turned_away_total: load(&self.turned_away),
            closings_total: load(&self.closings),
            taken_over_total: load(&self.taken_over),
            open: self.parts.iter().map(open).sum(),
        }
    }
}
