//! Remastering at work: counts who asks, decides at the end of each second what to move, and carries a move's messages.
//!
//! Owned by the shard: one task for its windows, one for a search of the directory at a time. What is moved, and why that
//! is safe, is in `remaster.rs` beside the cores; what should be moved is in [`AffinityTable`](crate::fusion::grd).

use std::rc::{Rc, Weak};
use std::time::Duration;

use super::Inner;
use crate::fusion::gcs::master::bare;
use crate::fusion::gcs::message::{Kind, Message, bucket_of, name_of_bucket, requester};
use crate::fusion::gcs::{Gcs, wire};
use crate::fusion::grd::Bucket;
use crate::ids::{BlockId, NodeId, RequestId, Scn};
use crate::interconnect::Body;
use crate::reactor::{Class, Instant};

/// How long a window of the affinity is.
const WINDOW: Duration = Duration::from_secs(1);

/// How long the requests for a bucket are parked for its transitions to end, before it stays where it is.
const DRAIN_MAX: Duration = Duration::from_millis(20);

/// Buckets that this shard's map may have out of their place on the ring before no more are moved.
const OVERRIDES_MAX: usize = 16_384;

/// Counts the windows as long as the shard lives.
pub(super) async fn watch_affinity(this: Weak<Inner>) {
    loop {
        let Some(reactor) = this.upgrade().map(|inner| inner.reactor.clone()) else { return };
        reactor.beat(WINDOW).await;
        let Some(inner) = this.upgrade() else { return };
        inner.end_window();
    }
}

impl Gcs {
    /// Begins to give a bucket that is mastered here to another member, where that is possible now. Done by itself where
    /// the settings want it; this is for tests and tools that know better.
    pub fn remaster(&self, bucket: Bucket, to: NodeId) -> bool {
        let mut begun = false;
        self.0.feed(|cores, out| begun = cores.master.offer(bucket, to, out));
        begun
    }
}

impl Inner {
    /// Counts a request that comes to this master.
    pub(super) fn note_affinity(&self, message: &Message) {
        if message.kind == Kind::Request {
            self.affinity.borrow_mut().record(Bucket::of(message.block), requester(message.request));
        }
    }

    fn end_window(&self) {
        if self.cores.borrow().holder.is_silent() {
            return;
        }
        let map = self.map.borrow().clone();
        let load = {
            let mut affinity = self.affinity.borrow_mut();
            affinity.end_window(map.members());
            affinity.tells_load().then(|| affinity.load())
        };
        if let Some(load) = load {
            let message = Message { scn: Scn(load), ..bare(self.epoch(), Kind::Load, BlockId::default()) };
            for &to in map.members().iter().filter(|&&member| member != self.node) {
                self.send(to, &message, Body::Empty);
            }
        }
        self.next_remaster();
        self.report_remasters();
    }

    /// One line a window in which buckets have come or gone.
    fn report_remasters(&self) {
        let master = self.cores.borrow().master.counters();
        let now = (master.remasters_in_total, master.remasters_out_total);
        let before = self.remasters_reported.replace(now);
        if now != before {
            let map = self.map.borrow();
            let (taken, given) = (now.0 - before.0, now.1 - before.1);
            let (buckets, overrides) = (map.buckets_of(self.node), map.overrides().len());
            tracing::info!(taken, given, buckets, overrides, "buckets of blocks have another master: they follow their users");
        }
    }

    /// Begins the next move that is planned, unless one is under way.
    fn next_remaster(&self) {
        while self.cores.borrow().master.may_offer() {
            let Some((bucket, to)) = self.affinity.borrow_mut().next_move() else { return };
            let map = self.map.borrow().clone();
            if map.overrides().len() >= OVERRIDES_MAX && map.ring_master(bucket) != to {
                continue;
            }
            self.feed(|cores, out| {
                cores.master.offer(bucket, to, out);
            });
        }
    }

    /// The core goes on looking for entries when others have had their turn.
    pub(super) fn gather_later(&self) {
        let this = self.this.clone();
        self.reactor.spawn(Class::Low, "gather a bucket", async move {
            let Some(inner) = this.upgrade() else { return };
            inner.reactor.yield_now().await;
            inner.feed(|cores, out| cores.master.gather(out));
        });
    }

    pub(super) fn hand_over(&self, to: NodeId, bucket: Bucket) {
        let entries = self.cores.borrow_mut().master.take_shipment();
        let message = |kind| Message { scn: name_of_bucket(bucket), ..bare(self.epoch(), kind, BlockId::default()) };
        for batch in entries.chunks(wire::MOVED_PER_MESSAGE) {
            self.send(to, &message(Kind::RemasterEntries), Body::Bytes(wire::encode_moved(batch)));
        }
        let request = RequestId(entries.len() as u64);
        self.send(to, &Message { request, ..message(Kind::RemasterEnd) }, Body::Empty);
    }

    /// Entries of a bucket that is handed over to this node. Whether they can be read.
    pub(super) fn on_entries(&self, from: NodeId, message: &Message, body: &[u8]) -> bool {
        let (Some(bucket), Some(entries)) = (bucket_of(message), wire::decode_moved(body)) else { return false };
        self.feed(|cores, out| cores.master.on_entries(from, message.epoch, bucket, entries, out));
        true
    }

    pub(super) fn remapped(&self, bucket: Bucket, from: NodeId, to: NodeId) {
        let map = self.cores.borrow().master.map().clone();
        self.cores.borrow_mut().holder.remap(Rc::clone(&map));
        *self.map.borrow_mut() = map;
        if from == self.node || to == self.node {
            tracing::debug!(bucket = bucket.0, %from, %to, "a bucket has another master");
            self.affinity.borrow_mut().moved(bucket);
            self.next_remaster();
        }
    }

    pub(super) fn stays_here(&self, bucket: Bucket) {
        self.affinity.borrow_mut().refused(bucket);
        self.next_remaster();
    }

    /// Ends the draining that began then, if it is not over in time.
    fn give_up_after(&self, since: Instant) {
        let (this, reactor) = (self.this.clone(), self.reactor.clone());
        self.reactor.spawn(Class::High, "drain a bucket", async move {
            reactor.sleep(DRAIN_MAX).await;
            if let Some(inner) = this.upgrade().filter(|inner| inner.frozen_since.get() == Some(since)) {
                inner.feed(|cores, out| cores.master.give_up_draining(out));
            }
        });
    }

    /// Notes since when a bucket is frozen, or for how long one was.
    pub(super) fn note_frozen(&self) {
        let frozen = self.cores.borrow().master.frozen().is_some();
        match (self.frozen_since.get(), frozen) {
            (None, true) => {
                let since = self.reactor.now();
                self.frozen_since.set(Some(since));
                if self.cores.borrow().master.is_draining() {
                    self.give_up_after(since);
                }
            }
            (Some(since), false) => {
                let ns = u64::try_from(self.reactor.now().since(since).as_nanos()).unwrap_or(u64::MAX);
                self.numbers.borrow_mut().frozen_ns += ns;
                self.frozen_since.set(None);
            }
            _ => {}
        }
    }
}
