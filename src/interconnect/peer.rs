//! Another node as this shard knows it, connected or not: its address and latest life, the connection if there is one, and what
//! is counted over all of them.
//!
//! In the shard's thread. One for each node that ever was a peer; one that has left the cluster for good stays, to be refused.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::link::Link;
use super::stats::{DownReason, PeerStatus};
use crate::ids::{Incarnation, NodeId};
use crate::reactor::LogGate;
use crate::reactor::sync::Notify;

/// At most one log line about a peer that cannot be reached in this time.
const UNREACHABLE_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// A configured peer, connected or not.
pub(crate) struct Peer {
    pub(super) node: NodeId,
    pub(super) address: Cell<SocketAddr>,
    pub(super) link: RefCell<Option<Rc<Link>>>,
    /// The latest life seen.
    pub(super) incarnation: Cell<Incarnation>,
    pub(super) down_reason: RefCell<DownReason>,
    /// Tells whoever waits for a connection to come or go.
    pub(super) changed: Notify,
    pub(super) log: LogGate,
    pub(super) connected_count: Cell<u64>,
    pub(super) lost_count: Cell<u64>,
    queue_bytes_max: Cell<u64>,
    queue_messages_max: Cell<u64>,
    heartbeat_us: Cell<(u64, u64, u64)>,
    /// It has left the cluster for good.
    pub(super) removed: Cell<bool>,
}

impl Peer {
    pub(super) fn new(node: NodeId, address: SocketAddr) -> Rc<Peer> {
        Rc::new(Peer {
            node,
            address: Cell::new(address),
            link: RefCell::new(None),
            incarnation: Cell::default(),
            down_reason: RefCell::new(DownReason::NeverSeen),
            changed: Notify::new(),
            log: LogGate::new(UNREACHABLE_LOG_INTERVAL),
            connected_count: Cell::new(0),
            lost_count: Cell::new(0),
            queue_bytes_max: Cell::new(0),
            queue_messages_max: Cell::new(0),
            heartbeat_us: Cell::new((0, 0, 0)),
            removed: Cell::new(false),
        })
    }

    pub(super) fn note_queue(&self, bytes: u64, messages: u64) {
        self.queue_bytes_max.set(self.queue_bytes_max.get().max(bytes));
        self.queue_messages_max.set(self.queue_messages_max.get().max(messages));
    }

    pub(super) fn note_round_trip(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
        let (_, min, max) = self.heartbeat_us.get();
        self.heartbeat_us.set((us, if min == 0 { us } else { min.min(us) }, max.max(us)));
    }

    pub(super) fn status(&self) -> PeerStatus {
        let (heartbeat_us_last, heartbeat_us_min, heartbeat_us_max) = self.heartbeat_us.get();
        let link = self.link.borrow();
        PeerStatus {
            node: self.node,
            address: self.address.get(),
            up: link.as_ref().is_some_and(|link| link.is_up()),
            by_rdma: link.as_ref().is_some_and(|link| link.is_up() && link.lane.borrow().is_by_lane()),
            incarnation: self.incarnation.get(),
            down_reason: self.down_reason.borrow().clone(),
            connected_count: self.connected_count.get(),
            lost_count: self.lost_count.get(),
            queue_bytes: link.as_ref().map_or(0, |link| link.waiting().0 as u64),
            queue_bytes_max: self.queue_bytes_max.get(),
            queue_messages_max: self.queue_messages_max.get(),
            heartbeat_us_last,
            heartbeat_us_min,
            heartbeat_us_max,
        }
    }
}
