//! A cluster without I/O: nodes with lives, connections that break at one end first, a volume, fences. One random step at
//! a time; after each, what must never be is looked for.

mod lease;
mod promises;
mod weather;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::rules::{Rule, Rules};
use super::super::{EVERY_LIFE, Input, Known, Message, Output, View, Views};
use crate::ids::{Epoch, Incarnation, NodeId, Scn};
use crate::volume::Roster;
use lease::Lease;
pub(super) use weather::Weather;

/// Numbers of nodes that the cluster does not begin with.
const SPARE: u8 = 2;

/// Most messages that may be under way on one connection: more than any protocol of this size needs.
const UNDER_WAY_MAX: usize = 500;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// The connection stands, this end has not been told.
    NotYet,
    Up,
    Gone,
}

/// A connection between two nodes, the lower first.
#[derive(Debug)]
struct Connection {
    alive: bool,
    ends: [End; 2],
    /// What is under way to the first and to the second.
    to: [VecDeque<Message>; 2],
}

/// What a node's executor has begun.
#[derive(Clone, Debug)]
enum Work {
    /// Replay all, then begin an epoch.
    Recover {
        known: Epoch,
        roster: Roster,
    },
    ReadEpoch {
        at_least: Epoch,
        roster: Roster,
    },
    WriteEpoch {
        epoch: Epoch,
        roster: Roster,
        recovered: bool,
    },
    Fence(NodeId, Incarnation),
    /// Until whoever is fenced reads no more; asked in this epoch.
    WaitForLease(NodeId, Incarnation, Epoch),
    Freeze(Epoch),
    RecoverInstances(Epoch),
    ReleaseRedo(Epoch, Vec<NodeId>),
}

struct Node {
    life: Incarnation,
    /// None: dead.
    views: Option<Views>,
    /// Stopped by a signal: does nothing and notices nothing.
    paused: bool,
    serving: Option<Epoch>,
    work: Vec<Work>,
    suspects: BTreeSet<NodeId>,
    lease: Lease,
    /// Whom it connects to or lets in.
    peers: BTreeSet<NodeId>,
}

pub(super) struct World {
    state: u64,
    /// Counts steps, and is the clock of leases.
    clock: u64,
    nodes: BTreeMap<NodeId, Node>,
    connections: BTreeMap<(NodeId, NodeId), Connection>,
    blocked: BTreeSet<(NodeId, NodeId)>,
    disk_epoch: Epoch,
    disk_roster: Roster,
    /// The latest life of each node that is fenced.
    fenced: BTreeMap<NodeId, Incarnation>,
    /// Whose redo holds what is nowhere else, by life.
    redo: BTreeMap<NodeId, Incarnation>,
    /// Who has done its part of the recovery in an epoch.
    recovered: BTreeSet<(Epoch, NodeId)>,
    gone: BTreeMap<Epoch, View>,
    rules: Rules,
    weather: Weather,
    violation: Option<String>,
    pub(super) log: Option<Vec<String>>,
    pub(super) changes: usize,
    pub(super) joins: usize,
    pub(super) releases: usize,
    pub(super) coordinators_lost: usize,
    /// Views with another roster than the one before.
    pub(super) roster_changes: usize,
    /// Until every node is up again: these stay dead.
    stay_dead: BTreeSet<NodeId>,
    calm: bool,
}

fn address(node: u8) -> std::net::SocketAddr {
    ([10, 0, 0, node], 7433).into()
}

impl World {
    /// How many nodes may stay dead for good, so that the others have a majority whatever is still under way.
    pub(super) fn may_stay_dead(&self) -> Vec<NodeId> {
        let voters: Vec<NodeId> = self.disk_roster.voters().collect();
        let count = voters.len().saturating_sub(2) / 2;
        voters.into_iter().take(count).collect()
    }

    pub(super) fn new(count: u8, seed: u64, off: Option<Rule>, weather: Weather) -> World {
        let mut world = World {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            clock: 0,
            nodes: BTreeMap::new(),
            connections: BTreeMap::new(),
            blocked: BTreeSet::new(),
            disk_epoch: Epoch(3),
            disk_roster: Roster::founding((1..=count).map(|node| (NodeId(node), address(node)))),
            fenced: BTreeMap::new(),
            redo: BTreeMap::new(),
            recovered: BTreeSet::new(),
            gone: BTreeMap::new(),
            rules: Rules { off },
            weather,
            violation: None,
            log: None,
            changes: 0,
            joins: 0,
            releases: 0,
            coordinators_lost: 0,
            roster_changes: 0,
            stay_dead: BTreeSet::new(),
            calm: false,
        };
        for number in 1..=count + SPARE {
            let node = Node {
                life: Incarnation(0),
                views: None,
                paused: false,
                serving: None,
                work: Vec::new(),
                suspects: BTreeSet::new(),
                lease: Lease::default(),
                peers: BTreeSet::new(),
            };
            world.nodes.insert(NodeId(number), node);
        }
        world
    }

    pub(super) fn random(&mut self, below: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 33) as usize % below
    }

    fn one_in(&mut self, count: usize) -> bool {
        count > 0 && self.random(count) == 0
    }

    fn say(&mut self, what: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(what());
        }
    }

    fn violated(&mut self, what: String) {
        self.say(|| format!("VIOLATION {what}"));
        self.violation.get_or_insert(what);
    }

    pub(super) fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    fn is_fenced(&self, node: NodeId) -> bool {
        self.fenced.get(&node).is_some_and(|life| *life >= self.nodes[&node].life)
    }

    fn input(&mut self, node: NodeId, input: Input) {
        self.say(|| format!("{node} <- {input:?}"));
        let mut out = Vec::new();
        let Some(views) = self.nodes.get_mut(&node).expect("it exists").views.as_mut() else { return };
        views.on(input, &mut out);
        self.perform(node, out);
    }

    fn perform(&mut self, node: NodeId, out: Vec<Output>) {
        for output in out {
            if !matches!(output, Output::Send(_, Message::State(_))) {
                self.say(|| format!("    {node} -> {output:?}"));
            }
            let begin = |world: &mut World, work| world.nodes.get_mut(&node).expect("it exists").work.push(work);
            match output {
                Output::Send(to, message) => self.send(node, to, message),
                Output::Recover { known, roster } => begin(self, Work::Recover { known, roster }),
                Output::Fence(target, life) => {
                    self.fence_asked(node, target);
                    begin(self, Work::Fence(target, life));
                }
                Output::BeginEpoch { at_least, roster } => begin(self, Work::ReadEpoch { at_least, roster }),
                Output::Roster(roster) => self.connects_to(node, &roster),
                Output::Freeze(view, _) => {
                    self.lease_of_new_view(node);
                    begin(self, Work::Freeze(view.epoch));
                }
                Output::Go(view) => self.goes(node, view),
                Output::ReleaseRedo { epoch, nodes } => begin(self, Work::ReleaseRedo(epoch, nodes)),
                Output::Suspend(_) => self.nodes.get_mut(&node).expect("it exists").serving = None,
                Output::End(_) => return self.crash(node),
            }
        }
    }

    /// A node has heard of a roster. Whoever has left is refused by those that have a view.
    fn connects_to(&mut self, node: NodeId, roster: &Roster) {
        let it = self.nodes.get_mut(&node).expect("it exists");
        it.peers.extend(roster.present().map(|(peer, _)| peer));
        if it.views.as_ref().is_some_and(|views| views.view().is_some()) {
            let left: Vec<NodeId> = it.peers.iter().copied().filter(|peer| !roster.has(*peer)).collect();
            it.peers.retain(|peer| roster.has(*peer));
            for peer in left {
                let pair = (node.min(peer), node.max(peer));
                if self.connections.get(&pair).is_some_and(|connection| connection.alive) {
                    self.break_connection(pair);
                }
            }
        }
    }

    fn send(&mut self, from: NodeId, to: NodeId, message: Message) {
        let pair = (from.min(to), from.max(to));
        let (mine, theirs) = if from < to { (0, 1) } else { (1, 0) };
        let Some(connection) = self.connections.get_mut(&pair) else { return };
        if connection.alive && connection.ends[mine] == End::Up {
            connection.to[theirs].push_back(message);
            if connection.to[theirs].len() > UNDER_WAY_MAX {
                self.violated(format!("{from} floods {to}"));
            }
        }
    }

    fn forget(&mut self, pair: (NodeId, NodeId)) {
        if self.connections.get(&pair).is_some_and(|connection| connection.ends == [End::Gone; 2]) {
            self.connections.remove(&pair);
        }
    }

    fn fence(&mut self, target: NodeId, life: Incarnation) {
        let life = if life == EVERY_LIFE { self.nodes[&target].life } else { life };
        let fenced = self.fenced.entry(target).or_default();
        *fenced = (*fenced).max(life);
    }

    fn on_disk(&self) -> Known {
        Known { epoch: self.disk_epoch, roster: self.disk_roster.clone() }
    }

    fn let_each_other_in(&self, a: NodeId, b: NodeId) -> bool {
        self.nodes[&a].peers.contains(&b) && self.nodes[&b].peers.contains(&a)
    }

    fn active(&self, node: NodeId) -> bool {
        self.nodes[&node].views.is_some() && !self.nodes[&node].paused
    }

    /// Something that was begun goes on, or a node that is connected to nobody connects. False: nothing is under way.
    fn go_on(&mut self) -> bool {
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        let mut choices: Vec<(NodeId, NodeId, usize)> = Vec::new();
        for (i, &a) in nodes.iter().enumerate() {
            if self.active(a) {
                choices.extend((0..self.nodes[&a].work.len()).map(|work| (a, a, work)));
            }
            for &b in &nodes[i + 1..] {
                match self.connections.get(&(a, b)) {
                    None if self.active(a)
                        && self.active(b)
                        && !self.blocked.contains(&(a, b))
                        && self.let_each_other_in(a, b) =>
                    {
                        choices.push((a, b, 9));
                    }
                    None => {}
                    Some(connection) => {
                        for (side, node) in [a, b].into_iter().enumerate() {
                            if !self.active(node) {
                                continue;
                            }
                            let up = connection.ends[side] == End::Up;
                            if connection.ends[side] == End::NotYet || (up && !connection.to[side].is_empty()) {
                                choices.push((a, b, side));
                            }
                            if up && !connection.alive {
                                choices.push((a, b, 2 + side));
                            }
                        }
                    }
                }
            }
        }
        if choices.is_empty() {
            return false;
        }
        let (a, b, what) = choices[self.random(choices.len())];
        if a == b {
            let work = self.nodes.get_mut(&a).expect("it exists").work.remove(what);
            self.work(a, work);
            return true;
        }
        if what == 9 {
            let ends = [End::NotYet; 2];
            self.connections.insert((a, b), Connection { alive: true, ends, to: Default::default() });
            return true;
        }
        let (side, down) = (what % 2, what >= 2);
        let (node, other) = if side == 0 { (a, b) } else { (b, a) };
        let life = self.nodes[&other].life;
        let connection = self.connections.get_mut(&(a, b)).expect("chosen above");
        if down {
            connection.ends[side] = End::Gone;
            connection.to[side].clear();
            self.forget((a, b));
            self.nodes.get_mut(&node).expect("it exists").suspects.remove(&other);
            self.input(node, Input::PeerDown(other));
        } else if connection.ends[side] == End::NotYet {
            connection.ends[side] = End::Up;
            self.input(node, Input::PeerUp(other, life));
        } else {
            let message = connection.to[side].pop_front().expect("chosen above");
            self.lease_granted(node, other, &message);
            self.input(node, Input::Received(other, message));
        }
        true
    }

    fn work(&mut self, node: NodeId, work: Work) {
        let scn = Scn(self.disk_epoch.0);
        if self.is_fenced(node) && !matches!(work, Work::Freeze(_)) {
            // The volume takes nothing from it: it ends.
            return self.crash(node);
        }
        match work {
            Work::Recover { known, .. } if known != self.disk_epoch => {
                let known = self.on_disk();
                self.input(node, Input::RosterOutdated(known));
            }
            Work::Recover { roster, .. } => {
                let serving = self.nodes.iter().find(|(other, it)| it.serving.is_some() && !self.is_fenced(**other));
                if let Some(other) = serving.map(|(other, _)| *other) {
                    self.violated(format!("{node} replays all redo while {other} serves"));
                }
                let epoch = Epoch(self.disk_epoch.0 + 1);
                self.nodes.get_mut(&node).expect("it exists").work.push(Work::WriteEpoch { epoch, roster, recovered: true });
            }
            Work::ReadEpoch { at_least, roster } => {
                let epoch = at_least.max(Epoch(self.disk_epoch.0 + 1));
                self.nodes.get_mut(&node).expect("it exists").work.push(Work::WriteEpoch { epoch, roster, recovered: false });
            }
            Work::WriteEpoch { epoch, roster, recovered } => {
                (self.disk_epoch, self.disk_roster) = (epoch, roster);
                if recovered {
                    self.redo.clear();
                    self.input(node, Input::Recovered { epoch, scn });
                } else {
                    self.input(node, Input::EpochBegun { epoch, scn, overrides: Vec::new() });
                }
            }
            Work::Fence(target, life) => {
                if self.one_in(self.weather.fence_failures) && !self.calm {
                    self.input(node, Input::FenceFailed(target, life));
                } else {
                    self.fence(target, life);
                    self.wait_for_lease(node, target, life);
                }
            }
            Work::WaitForLease(target, life, epoch) => self.go_on_waiting(node, target, life, epoch),
            Work::Freeze(epoch) => {
                let it = self.nodes.get_mut(&node).expect("it exists");
                if it.serving.is_some_and(|serving| serving < epoch) {
                    it.serving = None;
                }
                self.input(node, Input::Frozen(epoch));
            }
            Work::RecoverInstances(epoch) => {
                self.recovered.insert((epoch, node));
                self.input(node, Input::InstancesRecovered(epoch));
            }
            Work::ReleaseRedo(epoch, nodes) => {
                let members = self.gone[&epoch].members.clone();
                for (member, _) in members {
                    if !self.recovered.contains(&(epoch, member)) {
                        self.violated(format!("the redo of {nodes:?} is gone before {member} has recovered in {epoch}"));
                    }
                }
                for dead in nodes {
                    if self.gone.values().next_back().is_some_and(|view| view.has_node(dead)) {
                        self.violated(format!("the redo of {dead} is released while it writes to it"));
                    }
                    self.redo.remove(&dead);
                }
                self.releases += 1;
                self.input(node, Input::RedoReleased(epoch));
            }
        }
    }

    /// One step of a life with faults.
    pub(super) fn step(&mut self) {
        self.clock += 1;
        let faults = self.weather.faults;
        if self.one_in(8) {
            self.ask_for_lease();
        }
        if self.one_in(faults) || !self.go_on() {
            self.fault();
        }
        self.check();
    }

    /// Goes on until nothing is under way any more, every life that ends being followed by another. Whether it came to
    /// that within so many steps.
    pub(super) fn come_to_rest(&mut self, steps: usize) -> bool {
        for _ in 0..steps {
            for node in self.nodes.keys().copied().collect::<Vec<_>>() {
                if self.nodes[&node].views.is_none() && !self.stay_dead.contains(&node) && self.disk_roster.has(node) {
                    self.restart(node);
                }
            }
            if !self.go_on() {
                // Whoever is fenced and has not heard of it finds out when it writes.
                let fenced = self.nodes.keys().copied().filter(|node| self.is_fenced(*node) && self.active(*node));
                let fenced: Vec<NodeId> = fenced.collect();
                let newest = self.gone.last_key_value().map_or(Epoch(0), |(epoch, _)| *epoch);
                for &node in &fenced {
                    if self.nodes[&node].serving.is_some_and(|epoch| epoch < newest) {
                        self.violated(format!("{node} serves on, connected to the members of {newest} who fenced it"));
                    }
                    self.crash(node);
                }
                if fenced.is_empty() {
                    return true;
                }
            }
            self.check();
            if self.violation.is_some() {
                return true;
            }
        }
        false
    }

    /// Whoever does not serve has waited long enough. Whether that is anybody.
    pub(super) fn lose_patience(&mut self) -> bool {
        let waiting: Vec<NodeId> =
            self.nodes.iter().filter(|(_, it)| it.views.is_some() && it.serving.is_none()).map(|(node, _)| *node).collect();
        for node in &waiting {
            self.read_roster(*node);
            self.input(*node, Input::FormWithoutMissing);
        }
        !waiting.is_empty()
    }

    pub(super) fn describe(&self) -> String {
        let nodes = self.nodes.iter().map(|(node, it)| {
            let fenced = if self.is_fenced(*node) { ", fenced" } else { "" };
            let what = it.views.as_ref().map_or("dead".into(), |views| format!("{} {views:?}", views.waiting_for()));
            format!("{node} {}{fenced}, serves {:?}, paused {}, at {:?}: {what}\n", it.life, it.serving, it.paused, it.work)
        });
        nodes.collect()
    }
}
