//! A cluster without I/O: nodes with lives, connections that break at one end first, a volume, fences. One random step at
//! a time; after each, what must never be is looked for.

mod lease;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::rules::{Rule, Rules};
use super::super::{EVERY_LIFE, Input, Known, Message, Output, View, Views};
use crate::ids::{Epoch, Incarnation, NodeId, Scn};
use crate::volume::{Roster, RosterChange, Standing};
use lease::Lease;

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

/// How wild it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    /// One step in so many is a fault; 0: none.
    pub(super) faults: usize,
    /// One fence in so many fails; 0: none.
    pub(super) fence_failures: usize,
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

    fn goes(&mut self, node: NodeId, view: View) {
        let life = self.nodes[&node].life;
        let epoch = view.epoch;
        if let Some(other) = self.gone.get(&epoch) {
            let other = other.clone();
            if (&other.members, other.scn) != (&view.members, view.scn) {
                self.violated(format!("two views of {epoch}: {other:?} and {view:?}"));
            }
        } else if !self.is_fenced(node) {
            // (One that was fenced before it heard that all have frozen goes in a view of the past.)
            self.first_goes(&view);
        }
        if !view.has(node, life) {
            self.violated(format!("{node} goes in {view:?} without being a member in {life}"));
        }
        // Who is fenced leaves no redo, whatever it believes.
        if !self.is_fenced(node) {
            self.redo.insert(node, life);
        }
        let member = self.nodes.get_mut(&node).expect("it exists");
        member.serving = Some(epoch);
        if !view.unrecovered.is_empty() {
            member.work.push(Work::RecoverInstances(epoch));
        }
    }

    /// What must be true when the first member serves in a view.
    fn first_goes(&mut self, view: &View) {
        self.changes += 1;
        let before = self.gone.last_key_value().map(|(_, view)| view.clone());
        if let Some(before) = before.filter(|before| before.epoch < view.epoch) {
            self.roster_changes += usize::from(before.roster != view.roster);
            for (node, there) in before.roster.nodes() {
                let now = view.roster.standing(*node);
                if there.standing >= Standing::Member && now.is_none_or(|now| now < there.standing) {
                    self.violated(format!("{view:?} has forgotten that {node} was {:?}", there.standing));
                }
            }
            self.joins += view.members.iter().filter(|(node, _)| !before.has_node(*node)).count();
            for &(node, life) in &before.members {
                let unfenced = self.fenced.get(&node).is_none_or(|fenced| *fenced < life);
                // A newer life is proof that the former has ended.
                if !view.has(node, life) && unfenced && self.nodes[&node].life == life {
                    self.violated(format!("{view:?} goes without {node} {life}, which is not fenced"));
                }
            }
        }
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            let life = self.nodes[&node].life;
            let alive = self.nodes[&node].views.is_some();
            let starting = self.nodes[&node].views.as_ref().is_some_and(|views| views.view().is_none());
            if !view.has(node, life) && alive && !starting && !self.is_fenced(node) {
                self.violated(format!("{view:?} goes while {node} {life} has entered a view and is not fenced"));
            }
        }
        for (&node, &life) in &self.redo.clone() {
            if view.has_node(node) && !view.has(node, life) {
                self.violated(format!("{node} is let into {view:?} over the redo of its {life}"));
            } else if !view.has_node(node) && !view.unrecovered.contains(&node) {
                self.violated(format!("{view:?} has forgotten that the redo of {node} {life} is not recovered"));
            }
        }
        for node in self.redo.keys().copied().collect::<Vec<_>>() {
            if !view.roster.has(node) {
                self.violated(format!("{view:?} is without {node}, whose redo is not recovered"));
            }
        }
        if view.members.iter().any(|(node, _)| !view.roster.votes(*node)) {
            self.violated(format!("{view:?} has a member that is none of the cluster's nodes"));
        }
        if 2 * view.members.len() < view.roster.voters().count() {
            self.violated(format!("{view:?} has no quorum"));
        }
        self.gone.insert(view.epoch, view.clone());
    }

    fn crash(&mut self, node: NodeId) {
        self.say(|| format!("    {node} dies"));
        if self.gone.last_key_value().is_some_and(|(_, view)| view.coordinator() == node) {
            self.coordinators_lost += 1;
        }
        let dead = self.nodes.get_mut(&node).expect("it exists");
        dead.views = None;
        dead.serving = None;
        dead.paused = false;
        dead.suspects.clear();
        dead.lease = Lease::default();
        // What the device has taken may still be carried out; the next life begins after that.
        for work in std::mem::take(&mut self.nodes.get_mut(&node).expect("it exists").work) {
            if self.one_in(2) {
                match work {
                    Work::WriteEpoch { epoch, roster, recovered: false } if !self.is_fenced(node) && epoch > self.disk_epoch => {
                        (self.disk_epoch, self.disk_roster) = (epoch, roster);
                    }
                    Work::Fence(target, life) if !self.is_fenced(node) => self.fence(target, life),
                    _ => {}
                }
            }
        }
        let pairs: Vec<_> = self.connections.keys().copied().filter(|(a, b)| *a == node || *b == node).collect();
        for pair in pairs {
            self.break_connection(pair);
            if let Some(connection) = self.connections.get_mut(&pair) {
                connection.ends[usize::from(pair.1 == node)] = End::Gone;
            }
            self.forget(pair);
        }
    }

    fn break_connection(&mut self, pair: (NodeId, NodeId)) {
        for side in 0..2 {
            let length = self.connections[&pair].to[side].len();
            let kept = self.random(length + 1);
            self.connections.get_mut(&pair).expect("it stands").to[side].truncate(kept);
        }
        let connection = self.connections.get_mut(&pair).expect("it stands");
        connection.alive = false;
        for end in &mut connection.ends {
            if *end == End::NotYet {
                *end = End::Gone;
            }
        }
        self.forget(pair);
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

    fn restart(&mut self, node: NodeId) {
        self.say(|| format!("{node} starts"));
        let rules = self.rules;
        let known = self.on_disk();
        let starting = self.nodes.get_mut(&node).expect("it exists");
        starting.life = Incarnation(starting.life.0 + 1);
        let mut views = Views::new(node, starting.life, known);
        views.rules = rules;
        let mut out = Vec::new();
        views.start(&mut out);
        starting.views = Some(views);
        starting.peers = BTreeSet::new();
        self.perform(node, out);
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

    fn fault(&mut self) {
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        let (node, other) = (nodes[self.random(nodes.len())], nodes[self.random(nodes.len())]);
        let pair = (node.min(other), node.max(other));
        match self.random(13) {
            0 if self.nodes[&node].views.is_some() => self.crash(node),
            1..=4 => self.revive(node),
            5 | 6 if self.connections.get(&pair).is_some_and(|connection| connection.alive) => {
                self.say(|| format!("{pair:?} breaks"));
                self.break_connection(pair);
                if node != other && self.random(3) == 0 {
                    self.blocked.insert(pair);
                }
            }
            7 => {
                let blocked: Vec<_> = self.blocked.iter().copied().collect();
                if !blocked.is_empty() {
                    let healed = blocked[self.random(blocked.len())];
                    self.blocked.remove(&healed);
                }
            }
            8 if self.active(node) && node != other => {
                let up = self.connections.get(&pair).is_some_and(|it| it.ends[usize::from(node > other)] == End::Up);
                if up && self.nodes.get_mut(&node).expect("it exists").suspects.insert(other) {
                    self.input(node, Input::Suspected(other));
                }
            }
            9 => self.trust(node),
            10 if self.nodes[&node].views.is_some() && self.random(3) == 0 => {
                self.nodes.get_mut(&node).expect("it exists").paused = true;
                // The others lose it before it can notice anything.
                let pairs: Vec<_> = self.connections.keys().copied().filter(|(a, b)| *a == node || *b == node).collect();
                for pair in pairs {
                    self.break_connection(pair);
                }
            }
            11 if self.active(node) && self.nodes[&node].serving.is_none() && self.random(4) == 0 => {
                // As it is done: with a fresh look at the volume, and with none.
                if self.random(2) == 0 {
                    self.read_roster(node);
                }
                self.input(node, Input::FormWithoutMissing);
            }
            12 if self.random(4) == 0 => self.read_roster(node),
            12 => self.wish(node, other),
            _ if self.is_fenced(node) && self.active(node) => self.crash(node),
            _ => {}
        }
    }

    fn read_roster(&mut self, node: NodeId) {
        if self.active(node) {
            let known = self.on_disk();
            self.input(node, Input::RosterRead(known));
        }
    }

    /// An operator wants something of a node, or does not any more.
    fn wish(&mut self, asked: NodeId, about: NodeId) {
        let founders = NodeId(self.nodes.len() as u8 - SPARE);
        if self.random(5) == 0 && self.active(asked) {
            return self.input(asked, Input::TakeOut(Some(about)));
        }
        let change = match self.random(4) {
            0 => None,
            1 if about > founders => Some(RosterChange::Admit(about, address(about.0))),
            1 => Some(RosterChange::Admit(about, address(100 + about.0))),
            2 => Some(RosterChange::Admit(founders.max(NodeId(founders.0 + 1)), address(founders.0 + 1))),
            _ => Some(RosterChange::Remove(about)),
        };
        if self.active(asked) && self.nodes[&asked].serving.is_some() {
            self.input(asked, Input::Wish(change));
        }
    }

    fn revive(&mut self, node: NodeId) {
        if self.nodes[&node].views.is_none() {
            // Once in a while a node is started that is none of the cluster's.
            if self.disk_roster.has(node) || self.random(4) == 0 {
                self.restart(node);
            }
        } else {
            self.nodes.get_mut(&node).expect("it exists").paused = false;
        }
    }

    fn trust(&mut self, node: NodeId) {
        if self.active(node) {
            for other in std::mem::take(&mut self.nodes.get_mut(&node).expect("it exists").suspects) {
                self.input(node, Input::Trusted(other));
            }
        }
    }

    fn check(&mut self) {
        let serving: BTreeMap<Epoch, NodeId> = self
            .nodes
            .iter()
            .filter(|(node, _)| !self.is_fenced(**node))
            .filter_map(|(node, it)| Some((it.serving?, *node)))
            .collect();
        if serving.len() > 1 {
            self.violated(format!("nodes serve in different epochs: {serving:?}"));
        }
        let newest = self.gone.last_key_value().map_or(Epoch(0), |(epoch, _)| *epoch);
        let late = self.nodes.iter().find(|(node, it)| it.serving.is_some_and(|epoch| epoch < newest) && self.reads(**node));
        if let Some((node, _)) = late {
            self.violated(format!("{node} has a lease to read in a view before {newest}, which has gone"));
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

    /// No more faults: all nodes but these stay or come up, and all links heal.
    pub(super) fn calm_down(&mut self, stay_dead: BTreeSet<NodeId>) {
        self.say(|| format!("the weather calms down, {stay_dead:?} stay dead"));
        self.calm = true;
        self.blocked.clear();
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            if self.active(node) {
                self.input(node, Input::Wish(None));
                self.input(node, Input::TakeOut(None));
            }
        }
        self.stay_dead = stay_dead;
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            if self.stay_dead.contains(&node) {
                if self.nodes[&node].views.is_some() {
                    self.crash(node);
                }
            } else {
                self.revive(node);
                self.trust(node);
            }
        }
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

    /// One view with all live nodes serves, and nothing is left to recover.
    pub(super) fn all_is_well(&self) -> Result<(), String> {
        let (_, view) = self.gone.last_key_value().ok_or("no view ever went")?;
        let live: Vec<_> = self.nodes.iter().filter(|(_, it)| it.views.is_some()).map(|(node, it)| (*node, it.life)).collect();
        if view.roster != self.disk_roster {
            return Err(format!("{view:?} has another roster than the volume: {:?}", self.disk_roster));
        }
        if let Some((idle, _)) = view.roster.present().find(|(node, _)| !view.has_node(*node) && !self.stay_dead.contains(node)) {
            return Err(format!("{idle} is none of {view:?}"));
        }
        if view.members != live {
            return Err(format!("{view:?} is not of all live nodes {live:?}"));
        }
        for (node, it) in self.nodes.iter().filter(|(_, it)| it.views.is_some()) {
            let views = it.views.as_ref().expect("filtered");
            if it.serving != Some(view.epoch) || !views.serves() {
                return Err(format!("{node} serves {:?}, not {}: {}", it.serving, view.epoch, views.waiting_for()));
            }
            let left = &views.view().expect("it serves").unrecovered;
            if !left.is_empty() {
                return Err(format!("{left:?} are still to be recovered at {node}"));
            }
        }
        Ok(())
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
