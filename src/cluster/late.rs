//! A handler whose service comes into being after the connections do.
//!
//! The interconnect wants its handlers before it starts, and the cluster forms over it; blocks, locks and transactions
//! exist only in a formed cluster. Until the service is bound, its messages wait here in order. Owned by one shard; bounded
//! by [`WAITING_MAX`] messages, beyond which the peer broke the membership's promise not to send before all have entered.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use crate::ids::NodeId;
use crate::interconnect::{Body, Handler, Header};
use crate::reactor::IoBuf;

/// Most messages that wait for their service.
pub const WAITING_MAX: usize = 65_536;

/// See the module.
#[derive(Default)]
pub struct LateHandler {
    bound: RefCell<Option<Rc<dyn Handler>>>,
    waiting: RefCell<VecDeque<(NodeId, Header, Body)>>,
    open: Cell<bool>,
}

impl LateHandler {
    /// Nothing is bound yet.
    #[must_use]
    pub fn new() -> Rc<LateHandler> {
        Rc::default()
    }

    /// Hands everything that waits, and all that comes, to `handler`.
    pub fn bind(&self, handler: Rc<dyn Handler>) {
        let before = self.bound.borrow_mut().replace(handler.clone());
        assert!(before.is_none(), "a service is bound once");
        loop {
            let next = self.waiting.borrow_mut().pop_front();
            let Some((from, header, body)) = next else { break };
            handler.on_message(from, &header, body);
        }
        self.open.set(true);
    }

    fn handler(&self) -> Option<Rc<dyn Handler>> {
        self.bound.borrow().clone()
    }
}

impl Handler for LateHandler {
    fn on_message(&self, from: NodeId, header: &Header, body: Body) {
        if self.open.get() {
            if let Some(handler) = self.handler() {
                handler.on_message(from, header, body);
            }
            return;
        }
        let mut waiting = self.waiting.borrow_mut();
        assert!(
            waiting.len() < WAITING_MAX,
            "{from} sent {WAITING_MAX} messages of kind {:#04x} before the cluster was open",
            header.kind
        );
        waiting.push_back((from, *header, body));
    }

    fn frame_for(&self, header: &Header) -> Option<IoBuf> {
        self.handler()?.frame_for(header)
    }

    fn on_peer_up(&self, node: NodeId) {
        if let Some(handler) = self.handler() {
            handler.on_peer_up(node);
        }
    }

    fn on_peer_down(&self, node: NodeId) {
        if let Some(handler) = self.handler() {
            handler.on_peer_down(node);
        }
    }
}
