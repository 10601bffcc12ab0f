//! The membership's agent: carries the messages of [`Views`] over the first shard's interconnect, and hands what else it
//! wants to the node's main task.
//!
//! Owned by the first shard's thread. Bounded by the number of configured nodes: `Views` asks for one thing about each
//! at a time. The main task must not wait for one output before it takes the next: a fence may take long, and what comes
//! after it may be the end of this life.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::{Input, Known, Message, Output, View, Views};
use crate::ids::{BlockId, Epoch, Incarnation, NodeId, RequestId};
use crate::interconnect::{Body, Handler, Header, Interconnect, Message as WireMessage};
use crate::reactor::sync::Notify;
use crate::volume::Roster;

/// See the module.
pub struct ViewsAgent {
    views: RefCell<Views>,
    interconnect: RefCell<Option<Interconnect>>,
    /// What the node's main task has to do, in order.
    todo: RefCell<VecDeque<Output>>,
    changed: Notify,
    granted: RefCell<Option<Granted>>,
}

/// Told of every lease that a connected node grants: by whom, in which epoch, and when it was asked for.
type Granted = Rc<dyn Fn(NodeId, Epoch, u64)>;

impl ViewsAgent {
    /// For this life of this node, with the roster that it starts from.
    #[must_use]
    pub fn new(me: NodeId, life: Incarnation, known: Known) -> Rc<ViewsAgent> {
        Rc::new(ViewsAgent {
            views: RefCell::new(Views::new(me, life, known)),
            interconnect: RefCell::new(None),
            todo: RefCell::default(),
            changed: Notify::new(),
            granted: RefCell::default(),
        })
    }

    /// Begins, over an interconnect that has this as its handler of the cluster service.
    pub fn start(&self, interconnect: &Interconnect) {
        *self.interconnect.borrow_mut() = Some(interconnect.clone());
        let mut out = Vec::new();
        self.views.borrow_mut().start(&mut out);
        self.perform(out);
    }

    /// Tells the state machine what has happened: something that it asked for is done, a detector suspects, patience is
    /// over. What comes up and down it hears from the interconnect.
    pub fn input(&self, input: Input) {
        let mut out = Vec::new();
        self.views.borrow_mut().on(input, &mut out);
        self.perform(out);
    }

    /// The next thing for the node's main task to do; never [`Output::Send`]. The end of this life comes before all
    /// else.
    pub async fn next(&self) -> Output {
        loop {
            let changed = self.changed.notified();
            let next = {
                let mut todo = self.todo.borrow_mut();
                let end = todo.iter().position(|output| matches!(output, Output::End(_)));
                todo.remove(end.unwrap_or(0))
            };
            match next {
                Some(output) => return output,
                None => changed.await,
            }
        }
    }

    /// What the node is at and waits for, for a person to read.
    #[must_use]
    pub fn waiting_for(&self) -> String {
        self.views.borrow().waiting_for()
    }

    /// The view that this node has entered or is entering.
    #[must_use]
    pub fn view(&self) -> Option<View> {
        self.views.borrow().view().cloned()
    }

    /// The cluster's nodes, as far as this one knows.
    #[must_use]
    pub fn roster(&self) -> Roster {
        self.views.borrow().roster().clone()
    }

    /// Whether it has gone in that view and is not suspended.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.views.borrow().serves()
    }

    /// Whoever wants to hear of granted leases; the last to ask does.
    pub fn on_grant(&self, granted: Granted) {
        *self.granted.borrow_mut() = Some(granted);
    }

    /// As [`Views::leased_since`].
    #[must_use]
    pub fn leased_since(&self, granted: &BTreeMap<NodeId, u64>) -> Option<Option<u64>> {
        self.views.borrow().leased_since(granted)
    }

    /// Tells the other members of the view that are connected.
    pub fn tell_members(&self, message: &Message) {
        for member in self.views.borrow().connected_members() {
            self.send(member, message);
        }
    }

    fn perform(&self, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Send(to, message) => self.send(to, &message),
                other => self.todo.borrow_mut().push_back(other),
            }
        }
        self.changed.notify_all();
    }

    fn send(&self, to: NodeId, message: &Message) {
        let (kind, body) = message.encode();
        let wire = WireMessage { kind, flags: 0, mode: 0, block: BlockId::default(), request: RequestId(0), argument: 0 };
        let interconnect = self.interconnect.borrow();
        let interconnect = interconnect.as_ref().expect("started before anything is decided");
        if let Err(error) = interconnect.send(to, wire, Body::Bytes(body)) {
            // Its loss is on its way here as an input.
            tracing::debug!(%to, ?error, "a word on the membership was not sent");
        }
    }
}

impl Handler for ViewsAgent {
    fn on_message(&self, from: NodeId, header: &Header, body: Body) {
        let bytes: &[u8] = match &body {
            Body::Bytes(bytes) => bytes,
            Body::Empty | Body::Block(_) => &[],
        };
        match Message::decode(header.kind, bytes) {
            Some(Message::GrantLease { epoch, asked_ns }) => {
                let granted = self.granted.borrow().clone();
                if let Some(granted) = granted {
                    granted(from, epoch, asked_ns);
                }
            }
            Some(message) => self.input(Input::Received(from, message)),
            None => tracing::warn!(%from, kind = header.kind, "a message about the membership that this version can't read"),
        }
    }

    fn on_peer_up(&self, node: NodeId) {
        let life = self.interconnect.borrow().as_ref().map(|interconnect| interconnect.incarnation_of(node));
        self.input(Input::PeerUp(node, life.unwrap_or_default()));
    }

    fn on_peer_down(&self, node: NodeId) {
        self.input(Input::PeerDown(node));
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;
    use crate::clock::ScnClock;
    use crate::ids::{Scn, ShardId};
    use crate::interconnect::{Service, Settings};
    use crate::reactor::driver::sim::{HostId, SimWorld};
    use crate::reactor::{Class, Reactor};

    fn address(node: u8) -> SocketAddr {
        SocketAddr::from(([10, 1, 0, node], 7000))
    }

    async fn node(reactor: Reactor, number: u8, count: u8) -> Rc<ViewsAgent> {
        let me = NodeId(number);
        let settings = Settings {
            peers: (1..=count).filter(|peer| *peer != number).map(|peer| (NodeId(peer), address(peer))).collect(),
            ..Settings::new(1, me, Incarnation(4), ShardId(0), 1, address(number))
        };
        let interconnect = Interconnect::new(&reactor, &ScnClock::new(), settings);
        let roster = Roster::founding((1..=count).map(|node| (NodeId(node), address(node))));
        let agent = ViewsAgent::new(me, Incarnation(4), Known { epoch: Epoch(0), roster });
        interconnect.register(Service::Cluster, agent.clone());
        interconnect.start().await.expect("the address is this host's");
        agent.start(&interconnect);
        let doing = agent.clone();
        reactor.spawn(Class::Critical, "the node", async move {
            loop {
                match doing.next().await {
                    Output::Recover { .. } => doing.input(Input::Recovered { epoch: Epoch(7), scn: Scn(70) }),
                    Output::Fence(node, life) => doing.input(Input::Fenced(node, life)),
                    Output::BeginEpoch { at_least, .. } => {
                        doing.input(Input::EpochBegun { epoch: at_least, scn: Scn(80), overrides: Vec::new() })
                    }
                    Output::Freeze(view, _) => doing.input(Input::Frozen(view.epoch)),
                    Output::Go(view) => doing.input(Input::InstancesRecovered(view.epoch)),
                    Output::ReleaseRedo { epoch, .. } => doing.input(Input::RedoReleased(epoch)),
                    Output::Roster(_) | Output::Suspend(_) | Output::End(_) | Output::Send(..) => {}
                }
            }
        });
        agent
    }

    #[test]
    fn three_nodes_over_the_interconnect_go_on_when_one_is_gone() {
        let world = SimWorld::new(3);
        let agents: Vec<_> = (1..=3)
            .map(|number| {
                let reactor = world.reactor(HostId(u32::from(number)));
                let started = node(reactor.clone(), number, 3);
                (reactor.clone(), world.block_on(&reactor, started))
            })
            .collect();
        world.run_for(Duration::from_secs(2));
        for (_, agent) in &agents {
            assert!(agent.serves(), "{}", agent.waiting_for());
            assert_eq!(agent.view().map(|view| (view.epoch, view.members.len())), Some((Epoch(7), 3)));
        }
        world.crash(HostId(1));
        world.run_for(Duration::from_secs(20));
        for (_, agent) in &agents[1..] {
            let view = agent.view().expect("it went");
            assert!(agent.serves(), "{}", agent.waiting_for());
            let members: Vec<NodeId> = view.members.iter().map(|(node, _)| *node).collect();
            assert_eq!((view.epoch, members, view.unrecovered), (Epoch(8), vec![NodeId(2), NodeId(3)], vec![]));
        }
    }
}
