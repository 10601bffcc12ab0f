//! Formation under every order of connections, losses and messages that a seed draws.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

struct World {
    nodes: BTreeMap<NodeId, Formation>,
    /// Per (from, to) in order, as a connection delivers.
    wires: BTreeMap<(NodeId, NodeId), VecDeque<Message>>,
    linked: BTreeSet<(NodeId, NodeId)>,
    recovered: u32,
    prepared: BTreeSet<NodeId>,
    open: BTreeSet<NodeId>,
    over: BTreeSet<NodeId>,
    pending: Vec<(NodeId, Output)>,
}

impl World {
    fn new(count: u8) -> World {
        let ids: Vec<NodeId> = (1..=count).map(NodeId).collect();
        let mut world = World {
            nodes: ids.iter().map(|id| (*id, Formation::new(*id, ids.clone()))).collect(),
            wires: BTreeMap::new(),
            linked: BTreeSet::new(),
            recovered: 0,
            prepared: BTreeSet::new(),
            open: BTreeSet::new(),
            over: BTreeSet::new(),
            pending: Vec::new(),
        };
        for id in ids {
            let mut out = Vec::new();
            world.nodes.get_mut(&id).unwrap().start(&mut out);
            world.perform(id, out);
        }
        world
    }

    fn input(&mut self, node: NodeId, input: Input) {
        let mut out = Vec::new();
        self.nodes.get_mut(&node).unwrap().on(input, &mut out);
        self.perform(node, out);
    }

    fn perform(&mut self, node: NodeId, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Send(to, message) => {
                    if self.linked.contains(&(node, to)) {
                        self.wires.entry((node, to)).or_default().push_back(message);
                    }
                }
                Output::Recover | Output::Prepare { .. } => self.pending.push((node, output)),
                Output::Open(_) => {
                    assert_eq!(self.prepared.len(), self.nodes.len(), "{node} opened while somebody's services were not ready");
                    self.open.insert(node);
                }
                Output::Lost(_) => {
                    self.over.insert(node);
                }
            }
        }
    }

    fn toggle(&mut self, a: NodeId, b: NodeId) {
        let up = self.linked.contains(&(a, b));
        for (from, to) in [(a, b), (b, a)] {
            self.wires.remove(&(from, to));
            if up {
                self.linked.remove(&(from, to));
            } else {
                self.linked.insert((from, to));
            }
        }
        for (me, peer) in [(a, b), (b, a)] {
            self.input(me, if up { Input::PeerDown(peer) } else { Input::PeerUp(peer, Incarnation(1)) });
        }
    }

    fn step(&mut self, choice: u32) -> bool {
        let wires: Vec<_> = self.wires.iter().filter(|(_, queue)| !queue.is_empty()).map(|(wire, _)| *wire).collect();
        let choices = wires.len() + self.pending.len();
        if choices == 0 {
            return false;
        }
        let choice = choice as usize % choices;
        if let Some((from, to)) = wires.get(choice) {
            let message = self.wires.get_mut(&(*from, *to)).unwrap().pop_front().unwrap();
            self.input(*to, Input::Received(*from, message));
        } else {
            let (node, output) = self.pending.swap_remove(choice - wires.len());
            if self.over.contains(&node) {
                return true;
            }
            match output {
                Output::Recover => {
                    self.recovered += 1;
                    self.input(node, Input::Recovered { epoch: Epoch(7), scn: Scn(70) });
                }
                Output::Prepare { epoch, .. } => {
                    assert_eq!(epoch, Epoch(7));
                    self.prepared.insert(node);
                    self.input(node, Input::Prepared);
                }
                _ => unreachable!(),
            }
        }
        true
    }
}

proptest! {
    /// Connections come and go in any order before they stay: the cluster opens on all nodes, after one recovery and
    /// with everybody's services ready, or it ends on all of them.
    #[test]
    fn a_cluster_opens_everywhere_or_ends(count in 1u8..5, flaps in prop::collection::vec((0u8..5, 0u8..5, any::<u32>()), 0..20), order in prop::collection::vec(any::<u32>(), 400)) {
        let mut world = World::new(count);
        for (a, b, choice) in flaps {
            let (a, b) = (NodeId(a % count + 1), NodeId(b % count + 1));
            if a != b {
                world.toggle(a, b);
            }
            world.step(choice);
        }
        for a in 1..=count {
            for b in a + 1..=count {
                if !world.linked.contains(&(NodeId(a), NodeId(b))) {
                    world.toggle(NodeId(a), NodeId(b));
                }
            }
        }
        let mut order = order.into_iter().cycle();
        while world.step(order.next().unwrap()) {}
        if world.over.is_empty() {
            prop_assert_eq!(world.open.len(), usize::from(count));
            prop_assert_eq!(world.recovered, 1);
        }
    }
}

#[test]
fn one_node_is_a_cluster() {
    let mut world = World::new(1);
    while world.step(0) {}
    assert_eq!((world.open.len(), world.recovered), (1, 1));
}

#[test]
fn a_member_lost_while_open_ends_this_life() {
    let mut world = World::new(3);
    for (a, b) in [(1, 2), (1, 3), (2, 3)] {
        world.toggle(NodeId(a), NodeId(b));
    }
    while world.step(0) {}
    assert_eq!(world.open.len(), 3);
    world.toggle(NodeId(1), NodeId(3));
    assert_eq!(world.over, BTreeSet::from([NodeId(1), NodeId(3)]));
}
