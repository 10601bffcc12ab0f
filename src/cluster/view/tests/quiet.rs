//! A cluster in which everything is done and arrives at once, for what happens in one order only.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use super::super::{Input, Known, Output, Override, Views};
use crate::fusion::grd::Bucket;
use crate::ids::{Epoch, Incarnation, NodeId, Scn, ShardId};
use crate::volume::Roster;

const LIFE: Incarnation = Incarnation(1);

struct Quiet {
    nodes: BTreeMap<NodeId, Views>,
    under_way: VecDeque<(NodeId, Input)>,
    epoch: Epoch,
    /// Nothing that is sent to them arrives.
    dead: BTreeSet<NodeId>,
    fenced: Vec<NodeId>,
    /// As whoever leads knows them.
    overrides: Vec<Override>,
    /// What the nodes' shards were told.
    entered_with: BTreeMap<NodeId, Vec<Override>>,
}

impl Quiet {
    /// So many nodes, in one view.
    fn new(count: u8) -> Quiet {
        let address = |node: u8| SocketAddr::from(([10, 0, 0, node], 7433));
        let roster = Roster::founding((1..=count).map(|node| (NodeId(node), address(node))));
        let numbers = (1..=count).map(NodeId);
        let new = |node| (node, Views::new(node, LIFE, Known { epoch: Epoch(0), roster: roster.clone() }));
        let mut quiet = Quiet {
            nodes: numbers.clone().map(new).collect(),
            under_way: VecDeque::new(),
            epoch: Epoch(0),
            dead: BTreeSet::new(),
            fenced: Vec::new(),
            overrides: Vec::new(),
            entered_with: BTreeMap::new(),
        };
        for node in numbers.clone() {
            let mut out = Vec::new();
            quiet.nodes.get_mut(&node).unwrap().start(&mut out);
            quiet.perform(node, out);
            for peer in numbers.clone().filter(|peer| *peer != node) {
                quiet.under_way.push_back((node, Input::PeerUp(peer, LIFE)));
            }
        }
        quiet.rest();
        quiet
    }

    fn perform(&mut self, node: NodeId, out: Vec<Output>) {
        for output in out {
            let done = match output {
                Output::Send(to, message) => {
                    self.under_way.push_back((to, Input::Received(node, message)));
                    continue;
                }
                Output::Recover { .. } => {
                    self.epoch.0 += 1;
                    Input::Recovered { epoch: self.epoch, scn: Scn(1) }
                }
                Output::BeginEpoch { at_least, .. } => {
                    self.epoch = Epoch(self.epoch.0 + 1).max(at_least);
                    Input::EpochBegun { epoch: self.epoch, scn: Scn(1), overrides: self.overrides.clone() }
                }
                Output::Fence(victim, life) => {
                    self.fenced.push(victim);
                    Input::Fenced(victim, life)
                }
                Output::Freeze(view, overrides) => {
                    self.entered_with.insert(node, overrides);
                    Input::Frozen(view.epoch)
                }
                Output::Go(view) => Input::InstancesRecovered(view.epoch),
                Output::ReleaseRedo { epoch, .. } => Input::RedoReleased(epoch),
                Output::Roster(_) | Output::Suspend(_) | Output::End(_) => continue,
            };
            self.under_way.push_back((node, done));
        }
    }

    /// Until nothing is under way any more.
    fn rest(&mut self) {
        while let Some((node, input)) = self.under_way.pop_front() {
            if !self.dead.contains(&node) {
                self.happens(node, input);
            }
        }
    }

    fn happens(&mut self, node: NodeId, input: Input) {
        let mut out = Vec::new();
        self.nodes.get_mut(&node).unwrap().on(input, &mut out);
        self.perform(node, out);
    }

    fn members(&self, node: u8) -> Vec<u8> {
        let view = self.nodes[&NodeId(node)].view().expect("it has one");
        view.members.iter().map(|(node, _)| node.0).collect()
    }
}

/// A node dies without a word. The others find out one after the other; until they all have, it seems to be connected to the
/// rest and whoever found out first seems to be cut off from it.
#[test]
fn the_first_to_miss_a_dead_node_is_not_shot_in_its_place() {
    for count in [3, 5, 6, 7] {
        for first in [1, 3, count] {
            let mut quiet = Quiet::new(count);
            assert_eq!(quiet.members(1).len(), usize::from(count));
            let dead = NodeId(2);
            quiet.dead.insert(dead);
            let others = (1..=count).filter(|node| *node != first && NodeId(*node) != dead);
            for node in [first].into_iter().chain(others) {
                quiet.happens(NodeId(node), Input::PeerDown(dead));
                quiet.rest();
            }
            assert_eq!(quiet.fenced, [dead], "node{first} of {count} missed it first");
            let living: Vec<u8> = (1..=count).filter(|node| NodeId(*node) != dead).collect();
            assert_eq!(quiet.members(1), living);
        }
    }
}

/// Of the buckets that follow their users only the dead node's get another master.
#[test]
fn masters_that_live_keep_their_buckets() {
    let mut quiet = Quiet::new(3);
    let moved = |bucket, master| Override { shard: ShardId(0), bucket: Bucket(bucket), master: NodeId(master) };
    quiet.overrides = vec![moved(7, 1), moved(8, 2), moved(9, 3)];
    let dead = NodeId(2);
    quiet.dead.insert(dead);
    for node in [1, 3] {
        quiet.happens(NodeId(node), Input::PeerDown(dead));
    }
    quiet.rest();
    assert_eq!(quiet.members(1), [1, 3]);
    for node in [1, 3] {
        assert_eq!(quiet.entered_with[&NodeId(node)], [moved(7, 1), moved(9, 3)]);
    }
}

/// Two nodes do not hear each other, and everybody else hears both: one of them is left out, though both live.
#[test]
fn a_broken_link_costs_the_higher_of_its_ends() {
    for count in [3, 5] {
        let mut quiet = Quiet::new(count);
        let (low, high) = (NodeId(2), NodeId(3));
        for (node, peer) in [(low, high), (high, low)] {
            quiet.happens(node, Input::PeerDown(peer));
        }
        quiet.rest();
        assert_eq!(quiet.fenced, [high], "of {count}");
    }
}
