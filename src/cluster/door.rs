//! The cluster service at a node's connections: what the membership hears of them.
//!
//! In each shard's thread its own; those of the other shards tell the first by letters. Bounded by [`super::links`].

use std::cell::RefCell;
use std::rc::Rc;

use super::links::{Links, Told};
use super::status::{Phase, Status};
use super::view::{Input, ViewsAgent};
use crate::ids::{Incarnation, NodeId, ShardId};
use crate::interconnect::{Body, Handler, Header, Interconnect};
use crate::reactor::Remote;
use crate::reactor::mail::MailError;

/// The cluster service of the shards but the first: tells that one of the connections that come and go.
pub(super) struct ReportLinks {
    shard: ShardId,
    /// To learn of lives.
    interconnect: RefCell<Option<Interconnect>>,
    first: Remote,
    failed: RefCell<Option<Status>>,
}

impl ReportLinks {
    pub(super) fn new(shard: ShardId, first: Remote, status: Status) -> Rc<ReportLinks> {
        Rc::new(ReportLinks { shard, interconnect: RefCell::default(), first, failed: RefCell::new(Some(status)) })
    }

    /// Where it learns of the peers' lives. Before the interconnect starts.
    pub(super) fn watch(&self, interconnect: &Interconnect) {
        *self.interconnect.borrow_mut() = Some(interconnect.clone());
    }

    fn tell(&self, node: NodeId, up: Option<Incarnation>) {
        let shard = self.shard.0;
        let told = self.first.post(Box::new(move |reactor| {
            if let Some(door) = reactor.local::<ClusterDoor>() {
                door.shard_link(node, shard, up);
            }
        }));
        if told == Err(MailError::Full)
            && let Some(status) = self.failed.borrow_mut().take()
        {
            // The membership would go on with a connection that is not there.
            let message = format!("the first shard took no letter about {node}: it is overloaded beyond repair");
            status.enter(Phase::Failed(message.clone()), message);
        }
    }
}

impl Handler for ReportLinks {
    fn on_message(&self, from: NodeId, header: &Header, _body: Body) {
        tracing::warn!(%from, kind = header.kind, "a message about the membership to a shard that has no part in it");
    }

    fn on_peer_up(&self, node: NodeId) {
        let life = self.interconnect.borrow().as_ref().map(|interconnect| interconnect.incarnation_of(node));
        self.tell(node, life);
    }

    fn on_peer_down(&self, node: NodeId) {
        self.tell(node, None);
    }
}

/// The cluster service of the first shard: joins the shards' connections to a peer into one, and passes what the
/// membership is to hear on to it.
pub(super) struct ClusterDoor {
    agent: Rc<ViewsAgent>,
    links: RefCell<Links<(Header, Body)>>,
    interconnect: RefCell<Option<Interconnect>>,
}

impl ClusterDoor {
    pub(super) fn new(agent: &Rc<ViewsAgent>, shards: u8) -> Rc<ClusterDoor> {
        Rc::new(ClusterDoor { agent: agent.clone(), links: RefCell::new(Links::new(shards)), interconnect: RefCell::default() })
    }

    /// Whose connections these are. Before the interconnect starts.
    pub(super) fn watch(&self, interconnect: &Interconnect) {
        *self.interconnect.borrow_mut() = Some(interconnect.clone());
    }

    fn shard_link(&self, node: NodeId, shard: u8, up: Option<Incarnation>) {
        self.feed(|links, out| match up {
            Some(life) => links.shard_up(node, shard, life, out),
            None => links.shard_down(node, shard, out),
        });
    }

    fn feed(&self, think: impl FnOnce(&mut Links<(Header, Body)>, &mut Vec<Told<(Header, Body)>>)) {
        let mut out = Vec::new();
        think(&mut self.links.borrow_mut(), &mut out);
        for told in out {
            match told {
                Told::Up(node, life) => self.agent.input(Input::PeerUp(node, life)),
                Told::Down(node) => self.agent.input(Input::PeerDown(node)),
                Told::Message(node, (header, body)) => self.agent.on_message(node, &header, body),
                Told::Break(node) => {
                    let interconnect = self.interconnect.borrow();
                    interconnect.as_ref().expect("watched before it starts").break_off(node);
                }
            }
        }
    }
}

impl Handler for ClusterDoor {
    fn on_message(&self, from: NodeId, header: &Header, body: Body) {
        let header = *header;
        self.feed(|links, out| links.message(from, (header, body), out));
    }

    fn on_peer_up(&self, node: NodeId) {
        let life = self.interconnect.borrow().as_ref().map(|interconnect| interconnect.incarnation_of(node));
        self.shard_link(node, 0, Some(life.unwrap_or_default()));
    }

    fn on_peer_down(&self, node: NodeId) {
        self.shard_link(node, 0, None);
    }
}
