//! The formation's agent: carries its messages over the first shard's interconnect and performs what it decides.
//!
//! Owned by the first shard's thread. Bounded by the number of members.

use std::cell::RefCell;
use std::rc::Rc;

use super::formation::{Formation, Input, Message, Output};
use super::status::{Phase, Status};
use crate::ids::{BlockId, Epoch, NodeId, RequestId, Scn};
use crate::interconnect::{Body, Handler, Header, Interconnect, Message as WireMessage, Service};
use crate::reactor::sync::Notify;

const JOIN: u8 = Service::Cluster.base();
const FORMED: u8 = JOIN + 1;
const READY: u8 = JOIN + 2;
const OPEN: u8 = JOIN + 3;

/// See the module.
pub struct Membership {
    formation: RefCell<Formation>,
    interconnect: RefCell<Option<Interconnect>>,
    status: Status,
    /// What the node's main task has to do, in order.
    todo: RefCell<Vec<Output>>,
    changed: Notify,
}

impl Membership {
    /// For this node among these members; `status` is told at once when this life is over.
    #[must_use]
    pub fn new(me: NodeId, members: impl IntoIterator<Item = NodeId>, status: Status) -> Rc<Membership> {
        Rc::new(Membership {
            formation: RefCell::new(Formation::new(me, members)),
            interconnect: RefCell::new(None),
            status,
            todo: RefCell::default(),
            changed: Notify::new(),
        })
    }

    /// Begins, over an interconnect that has this as its handler.
    pub fn start(&self, interconnect: &Interconnect) {
        *self.interconnect.borrow_mut() = Some(interconnect.clone());
        let mut out = Vec::new();
        self.formation.borrow_mut().start(&mut out);
        self.perform(out);
    }

    /// Feeds what the node's main task has done.
    pub fn done(&self, input: Input) {
        self.input(input);
    }

    /// The next thing for the node's main task to do.
    pub async fn next(&self) -> Output {
        loop {
            let changed = self.changed.notified();
            let next = {
                let mut todo = self.todo.borrow_mut();
                // The end of this life is not to wait for anything.
                let lost = todo.iter().position(|output| matches!(output, Output::Lost(_)));
                if todo.is_empty() { None } else { Some(todo.remove(lost.unwrap_or(0))) }
            };
            match next {
                Some(output) => return output,
                None => changed.await,
            }
        }
    }

    /// What the node waits for, for a person.
    #[must_use]
    pub fn waiting_for(&self) -> String {
        self.formation.borrow().waiting_for()
    }

    fn input(&self, input: Input) {
        let mut out = Vec::new();
        self.formation.borrow_mut().on(input, &mut out);
        self.perform(out);
    }

    fn perform(&self, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Send(to, message) => self.send(to, message),
                // The node's main task may be waiting for an answer of the lost member, which never comes.
                Output::Lost(node) => {
                    self.status.enter(Phase::Lost(node), format!("{node} is gone"));
                    self.todo.borrow_mut().push(output);
                }
                other => self.todo.borrow_mut().push(other),
            }
        }
        self.changed.notify_all();
    }

    fn send(&self, to: NodeId, message: Message) {
        let (kind, epoch, scn) = match message {
            Message::Join => (JOIN, Epoch(0), Scn::ZERO),
            Message::Formed { epoch, scn } => (FORMED, epoch, scn),
            Message::Ready(epoch) => (READY, epoch, Scn::ZERO),
            Message::Open(epoch) => (OPEN, epoch, Scn::ZERO),
        };
        let wire =
            WireMessage { kind, flags: 0, mode: 0, block: BlockId::default(), request: RequestId(epoch.0), argument: scn.0 };
        let interconnect = self.interconnect.borrow();
        let interconnect = interconnect.as_ref().expect("started before anything is decided");
        if let Err(error) = interconnect.send(to, wire, Body::Empty) {
            // Its loss is on its way here as an input.
            tracing::debug!(%to, ?error, "a word on the formation of the cluster was not sent");
        }
    }
}

impl Handler for Membership {
    fn on_message(&self, from: NodeId, header: &Header, _body: Body) {
        let epoch = Epoch(header.request.0);
        let message = match header.kind {
            JOIN => Message::Join,
            FORMED => Message::Formed { epoch, scn: Scn(header.argument) },
            READY => Message::Ready(epoch),
            OPEN => Message::Open(epoch),
            kind => {
                tracing::warn!(%from, kind, "a message about the membership that this version does not know");
                return;
            }
        };
        self.input(Input::Received(from, message));
    }

    fn on_peer_up(&self, node: NodeId) {
        let incarnation = self.interconnect.borrow().as_ref().map(|interconnect| interconnect.incarnation_of(node));
        self.input(Input::PeerUp(node, incarnation.unwrap_or_default()));
    }

    fn on_peer_down(&self, node: NodeId) {
        self.input(Input::PeerDown(node));
    }
}
