//! The lease to read, with the clock: asks the other members again and again, and tells the shards until when they may
//! answer reads. Why that keeps a node which stood still from showing what was true: `view/lease.rs`.
//!
//! Owned by the first shard's thread. Bounded by the members of a view: one moment each.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::view::{Message, ViewsAgent};
use crate::ids::{Epoch, NodeId};
use crate::reactor::sync::Notify;
use crate::reactor::{Class, Instant, Reactor};
use crate::txn::Serving;

/// In its time, a lease is asked for so often: one lost or late answer is nobody's trouble.
const ASKED_TIMES: u32 = 4;

/// Seven eighths of the lease are used: clocks that run at different speeds have the rest.
fn used(lease: Duration) -> Duration {
    lease / 8 * 7
}

/// See the module.
pub(super) struct ReadLease {
    reactor: Reactor,
    agent: Rc<ViewsAgent>,
    serving: Serving,
    lease: Duration,
    epoch: Cell<Epoch>,
    until: Cell<Instant>,
    granted: RefCell<BTreeMap<NodeId, u64>>,
    entered: Notify,
}

impl ReadLease {
    /// Nobody is answered before the first view and its grants.
    pub(super) fn start(reactor: &Reactor, agent: &Rc<ViewsAgent>, serving: &Serving, lease: Duration) -> Rc<ReadLease> {
        serving.read_until(Instant::default());
        let this = Rc::new(ReadLease {
            reactor: reactor.clone(),
            agent: agent.clone(),
            serving: serving.clone(),
            lease,
            epoch: Cell::new(Epoch(0)),
            until: Cell::default(),
            granted: RefCell::default(),
            entered: Notify::new(),
        });
        let weak = Rc::downgrade(&this);
        agent.on_grant(Rc::new(move |from, epoch, asked_ns| {
            if let Some(lease) = weak.upgrade() {
                lease.granted(from, epoch, asked_ns);
            }
        }));
        let asks = this.clone();
        reactor.spawn(Class::Critical, "lease to read", async move {
            loop {
                let entered = asks.entered.notified();
                asks.ask();
                asks.reactor.timeout(asks.lease / ASKED_TIMES, entered).await.ok();
            }
        });
        this
    }

    /// All members are in the view: asks at once.
    pub(super) fn entered(&self) {
        self.entered.notify_all();
    }

    fn ask(&self) {
        let Some(view) = self.agent.view() else { return };
        if self.epoch.replace(view.epoch) != view.epoch {
            self.granted.borrow_mut().clear();
        }
        self.renew();
        let asked_ns = self.reactor.now().as_ns();
        self.agent.tell_members(&Message::AskLease { epoch: view.epoch, asked_ns });
    }

    fn granted(&self, from: NodeId, epoch: Epoch, asked_ns: u64) {
        if epoch == self.epoch.get() {
            let mut granted = self.granted.borrow_mut();
            let newest = granted.entry(from).or_default();
            *newest = asked_ns.max(*newest);
            drop(granted);
            self.renew();
        }
    }

    fn renew(&self) {
        if let Some(since) = self.agent.leased_since(&self.granted.borrow()) {
            let since = since.map_or(self.reactor.now(), Instant);
            // What an earlier view has granted still holds.
            self.until.set(self.until.get().max(since + used(self.lease)));
            self.serving.read_until(self.until.get());
        }
    }
}
