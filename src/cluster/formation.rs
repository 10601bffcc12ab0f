//! How a cluster of fixed members comes together: a state machine without I/O.
//!
//! Every node waits until it is connected to all others, then tells the coordinator (the lowest number) so. When all
//! have, the coordinator starts a new epoch, replays the redo that an earlier life left behind, and tells the others;
//! each of them gets its services ready for that epoch and says so. Only when all are ready does the coordinator open
//! the cluster: no node sends a request before every node can answer it, so none is dropped for its epoch.
//!
//! A member lost before the epoch began is waited for; a member lost afterwards ends this life of the cluster
//! ([`Output::Lost`]), because nobody may serve blocks whose newest version died with that member before its redo is
//! replayed. Owned by the node's first shard; bounded by the number of members.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{Epoch, Incarnation, NodeId, Scn};

/// What nodes tell each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// To the coordinator: I am connected to everybody.
    Join,
    /// From the coordinator: the volume is recovered, make ready for this epoch; no SCN below `scn` may be drawn.
    Formed {
        /// The new epoch.
        epoch: Epoch,
        /// Above every SCN that was ever used.
        scn: Scn,
    },
    /// To the coordinator: my services answer in this epoch.
    Ready(Epoch),
    /// From the coordinator: begin.
    Open(Epoch),
}

/// What happens to this node.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    /// A connection to a member stands.
    PeerUp(NodeId, Incarnation),
    /// It is gone.
    PeerDown(NodeId),
    /// A member said something.
    Received(NodeId, Message),
    /// [`Output::Recover`] is done.
    Recovered {
        /// The epoch that was written to the volume for this life.
        epoch: Epoch,
        /// Above every SCN found.
        scn: Scn,
    },
    /// [`Output::Prepare`] is done.
    Prepared,
}

/// What this node has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Tell a member.
    Send(NodeId, Message),
    /// Coordinator only: begin a new epoch on the volume and replay all redo; answer with [`Input::Recovered`].
    Recover,
    /// Start the services in this epoch; answer with [`Input::Prepared`].
    Prepare {
        /// The epoch.
        epoch: Epoch,
        /// Where the clock starts.
        scn: Scn,
    },
    /// Serve clients.
    Open(Epoch),
    /// This life of the cluster is over.
    Lost(NodeId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    Joined,
    Recovering,
    Preparing(Epoch),
    /// Services are ready, a connection between two members is not (any more).
    Prepared(Epoch),
    Ready(Epoch),
    Open,
    Over,
}

/// One node's part in the formation.
#[derive(Debug)]
pub struct Formation {
    me: NodeId,
    members: BTreeSet<NodeId>,
    up: BTreeMap<NodeId, Incarnation>,
    joined: BTreeSet<NodeId>,
    ready: BTreeSet<NodeId>,
    phase: Phase,
}

impl Formation {
    /// `members` are all nodes of the cluster, `me` among them. The first outputs of a cluster of one come from
    /// [`Formation::start`].
    #[must_use]
    pub fn new(me: NodeId, members: impl IntoIterator<Item = NodeId>) -> Formation {
        let members: BTreeSet<NodeId> = members.into_iter().collect();
        assert!(members.contains(&me), "{me} is not one of the members");
        Formation { me, members, up: BTreeMap::new(), joined: BTreeSet::new(), ready: BTreeSet::new(), phase: Phase::Connecting }
    }

    /// To be called once, before any input.
    pub fn start(&mut self, out: &mut Vec<Output>) {
        self.advance(out);
    }

    /// The members that this node still waits for, for a person to read.
    #[must_use]
    pub fn waiting_for(&self) -> String {
        let missing = |have: &dyn Fn(NodeId) -> bool| {
            let names: Vec<String> =
                self.members.iter().filter(|node| **node != self.me && !have(**node)).map(NodeId::to_string).collect();
            names.join(", ")
        };
        match self.phase {
            Phase::Connecting | Phase::Prepared(_) => {
                format!("waits for a connection to {}", missing(&|node| self.up.contains_key(&node)))
            }
            Phase::Joined if self.is_coordinator() => {
                format!("waits for {} to be connected to everybody", missing(&|node| self.joined.contains(&node)))
            }
            Phase::Joined => format!("waits for {} to recover the volume", self.coordinator()),
            Phase::Recovering => "replays the redo on the volume".into(),
            Phase::Preparing(_) => "starts its services".into(),
            Phase::Ready(_) if self.is_coordinator() => {
                format!("waits for the services of {}", missing(&|node| self.ready.contains(&node)))
            }
            Phase::Ready(_) => format!("waits for {} to open the cluster", self.coordinator()),
            Phase::Open | Phase::Over => String::new(),
        }
    }

    /// Takes one input and appends what is to be done.
    pub fn on(&mut self, input: Input, out: &mut Vec<Output>) {
        if self.phase == Phase::Over {
            return;
        }
        match input {
            Input::PeerUp(node, incarnation) => {
                assert!(self.members.contains(&node), "{node} is connected but not a member");
                self.up.insert(node, incarnation);
            }
            Input::PeerDown(node) => {
                self.up.remove(&node);
                self.joined.remove(&node);
                match self.phase {
                    // Nothing of this life has touched the volume through us yet: wait for the member to come back.
                    Phase::Connecting | Phase::Joined => self.phase = Phase::Connecting,
                    Phase::Recovering | Phase::Preparing(_) | Phase::Prepared(_) | Phase::Ready(_) | Phase::Open => {
                        self.phase = Phase::Over;
                        out.push(Output::Lost(node));
                    }
                    Phase::Over => {}
                }
            }
            Input::Received(node, message) => self.received(node, message, out),
            Input::Recovered { epoch, scn } => {
                assert_eq!(self.phase, Phase::Recovering, "recovery ended that nobody asked for");
                let others: Vec<NodeId> = self.others().collect();
                out.extend(others.into_iter().map(|node| Output::Send(node, Message::Formed { epoch, scn })));
                self.phase = Phase::Preparing(epoch);
                out.push(Output::Prepare { epoch, scn });
            }
            Input::Prepared => {
                let Phase::Preparing(epoch) = self.phase else { panic!("services became ready in phase {:?}", self.phase) };
                self.phase = Phase::Prepared(epoch);
            }
        }
        self.advance(out);
    }

    fn received(&mut self, node: NodeId, message: Message, out: &mut Vec<Output>) {
        match (message, self.phase) {
            (Message::Join, Phase::Connecting | Phase::Joined) if self.is_coordinator() => {
                self.joined.insert(node);
            }
            // Two other members may have lost sight of each other since they joined; the coordinator went on, so do we.
            (Message::Formed { epoch, scn }, Phase::Connecting | Phase::Joined) if node == self.coordinator() => {
                self.phase = Phase::Preparing(epoch);
                out.push(Output::Prepare { epoch, scn });
            }
            (Message::Ready(epoch), Phase::Preparing(ours) | Phase::Prepared(ours) | Phase::Ready(ours))
                if self.is_coordinator() && epoch == ours =>
            {
                self.ready.insert(node);
            }
            (Message::Open(epoch), Phase::Ready(ours)) if node == self.coordinator() && epoch == ours => {
                self.phase = Phase::Open;
                out.push(Output::Open(epoch));
            }
            // A word from a life that has ended, or one that overtook a reconnection: whoever sent it will say it again.
            _ => {}
        }
    }

    fn advance(&mut self, out: &mut Vec<Output>) {
        let all = self.members.len();
        if self.phase == Phase::Connecting && self.up.len() + 1 == all {
            self.phase = Phase::Joined;
            self.joined.insert(self.me);
            if !self.is_coordinator() {
                out.push(Output::Send(self.coordinator(), Message::Join));
            }
        }
        if self.phase == Phase::Joined && self.is_coordinator() && self.joined.len() == all {
            self.phase = Phase::Recovering;
            out.push(Output::Recover);
        }
        if let Phase::Prepared(epoch) = self.phase
            && self.up.len() + 1 == all
        {
            self.phase = Phase::Ready(epoch);
            self.ready.insert(self.me);
            if !self.is_coordinator() {
                out.push(Output::Send(self.coordinator(), Message::Ready(epoch)));
            }
        }
        if let Phase::Ready(epoch) = self.phase
            && self.is_coordinator()
            && self.ready.len() == all
        {
            self.phase = Phase::Open;
            let others: Vec<NodeId> = self.others().collect();
            out.extend(others.into_iter().map(|node| Output::Send(node, Message::Open(epoch))));
            out.push(Output::Open(epoch));
        }
    }

    fn coordinator(&self) -> NodeId {
        *self.members.first().expect("a cluster has members")
    }

    fn is_coordinator(&self) -> bool {
        self.coordinator() == self.me
    }

    fn others(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.members.iter().copied().filter(|node| *node != self.me)
    }
}

#[cfg(test)]
mod tests;
