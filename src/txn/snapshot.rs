//! Which snapshots are in use: on this node exactly, in the cluster within a bounded staleness.
//!
//! Shared by the shards and the clients' threads of one node (the only locks here are taken when a session opens, and when
//! the oldest is computed, ten-odd times a second). Bounded by the number of sessions. It promises that
//! [`Snapshots::oldest`] is never above a snapshot that is in use on this node or, as far as they have told, on a peer:
//! whatever was superseded by a commit at or below it, nobody needs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::clock::ScnClock;
use crate::ids::{NODES_MAX, NodeId, Scn};

/// The slot is free of any snapshot.
const IDLE: u64 = u64::MAX;

/// One session's place for the snapshot that it reads with.
#[derive(Debug)]
pub struct SnapshotSlot(AtomicU64);

/// The snapshots of a node.
#[derive(Clone, Debug)]
pub struct Snapshots {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    clock: ScnClock,
    slots: Mutex<Vec<Arc<SnapshotSlot>>>,
    /// What peers have said last; `IDLE` for a peer that is not connected.
    peers: Vec<AtomicU64>,
    /// The cluster's oldest as last computed. Only ever grows.
    oldest: AtomicU64,
}

impl Snapshots {
    /// For a node that has heard of nobody yet.
    #[must_use]
    pub fn new(clock: ScnClock) -> Snapshots {
        let peers = (0..=NODES_MAX).map(|_| AtomicU64::new(IDLE)).collect();
        Snapshots { inner: Arc::new(Inner { clock, slots: Mutex::new(Vec::new()), peers, oldest: AtomicU64::new(0) }) }
    }

    /// A place for a session; given back when the last `Arc` outside is dropped.
    #[must_use]
    pub fn register(&self) -> Arc<SnapshotSlot> {
        let slot = Arc::new(SnapshotSlot(AtomicU64::new(IDLE)));
        let mut slots = self.inner.slots.lock().expect("nobody panics while holding this");
        // Sweep only when the vector would grow: amortised, and bounded by twice the sessions.
        if slots.len() == slots.capacity() {
            slots.retain(|slot| Arc::strong_count(slot) > 1);
        }
        slots.push(slot.clone());
        slot
    }

    /// Draws a snapshot of now into `slot`: it sees every commit acknowledged before. Any thread; reads no wall clock.
    pub fn draw(&self, slot: &SnapshotSlot) -> Scn {
        // Zero first: whoever scans the slots before this store has read its clock before the one below is read; whoever
        // scans after it is held back until the snapshot stands.
        slot.0.store(0, Ordering::SeqCst);
        let snapshot = self.inner.clock.latest();
        slot.0.store(snapshot.0, Ordering::SeqCst);
        snapshot
    }

    /// The cluster's oldest snapshot as last computed: one load.
    #[must_use]
    pub fn oldest(&self) -> Scn {
        Scn(self.inner.oldest.load(Ordering::SeqCst))
    }

    /// This node's oldest snapshot, or the present if there is none: what peers are told.
    #[must_use]
    pub fn oldest_here(&self, wall_ms: u64) -> Scn {
        // The clock first: a snapshot drawn after the scan began is at or above it.
        let mut oldest = self.inner.clock.now(wall_ms).0;
        for slot in self.inner.slots.lock().expect("nobody panics while holding this").iter() {
            oldest = oldest.min(slot.0.load(Ordering::SeqCst));
        }
        Scn(oldest)
    }

    /// Computes the cluster's oldest anew from this node's slots and what the peers have said, publishes and returns it.
    pub fn refresh(&self, wall_ms: u64) -> Scn {
        let mut oldest = self.oldest_here(wall_ms).0;
        for peer in &self.inner.peers {
            oldest = oldest.min(peer.load(Ordering::SeqCst));
        }
        Scn(self.inner.oldest.fetch_max(oldest, Ordering::SeqCst).max(oldest))
    }

    /// A peer has said what its oldest snapshot is.
    pub fn peer_reported(&self, peer: NodeId, oldest: Scn) {
        self.inner.peers[usize::from(peer.0)].store(oldest.0, Ordering::SeqCst);
    }

    /// A peer has connected and said nothing yet: nothing is given up until it has.
    pub fn peer_up(&self, peer: NodeId) {
        self.inner.peers[usize::from(peer.0)].store(0, Ordering::SeqCst);
    }

    /// A peer is gone, and its snapshots with it.
    pub fn peer_down(&self, peer: NodeId) {
        self.inner.peers[usize::from(peer.0)].store(IDLE, Ordering::SeqCst);
    }
}

impl SnapshotSlot {
    /// The snapshot is no longer needed.
    pub fn release(&self) {
        self.0.store(IDLE, Ordering::SeqCst);
    }

    /// The snapshot held, if any.
    #[must_use]
    pub fn get(&self) -> Option<Scn> {
        let raw = self.0.load(Ordering::SeqCst);
        (raw != IDLE).then_some(Scn(raw))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_stays_below_every_snapshot_in_use_and_moves_on_when_it_ends() {
        let clock = ScnClock::new();
        let snapshots = Snapshots::new(clock.clone());
        let (a, b) = (snapshots.register(), snapshots.register());
        let _first = clock.next(10);
        let first = snapshots.draw(&a);
        let _later = clock.next(20);
        let second = snapshots.draw(&b);
        assert!(first < second);
        assert_eq!(snapshots.refresh(40), first);
        a.release();
        assert_eq!(snapshots.refresh(40), second);
        drop(b);
        // A slot whose session has gone counts until it is released: sessions release on drop.
        a.release();
        assert!(snapshots.refresh(50) >= second);
    }

    #[test]
    fn a_peer_that_has_just_connected_holds_everything_back() {
        let snapshots = Snapshots::new(ScnClock::new());
        let before = snapshots.refresh(10);
        snapshots.peer_up(NodeId(2));
        assert_eq!(snapshots.refresh(20), before);
        snapshots.peer_reported(NodeId(2), Scn::from_unix_ms(15));
        assert_eq!(snapshots.refresh(20), Scn::from_unix_ms(15));
        snapshots.peer_down(NodeId(2));
        assert_eq!(snapshots.refresh(30), Scn::from_unix_ms(30));
    }

    #[test]
    fn a_snapshot_drawn_while_the_oldest_is_computed_is_never_above_it() {
        let clock = ScnClock::new();
        let snapshots = Snapshots::new(clock.clone());
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let (snapshots, clock) = (snapshots.clone(), clock.clone());
                scope.spawn(move || {
                    let slot = snapshots.register();
                    for ms in 0..2_000 {
                        let _moved = clock.next(ms);
                        let snapshot = snapshots.draw(&slot);
                        assert!(snapshots.oldest() <= snapshot);
                        slot.release();
                    }
                });
            }
            let snapshots = snapshots.clone();
            scope.spawn(move || (0..2_000).for_each(|ms| assert!(snapshots.refresh(ms) <= Scn::from_unix_ms(2_000))));
        });
    }
}
