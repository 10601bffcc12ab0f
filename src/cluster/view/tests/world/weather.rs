//! What befalls the nodes: they die, stop and go on, their connections break and stay broken, they suspect each other, somebody
//! starts one that is none of the cluster's, operators want something; and how it all calms down.

use std::collections::BTreeSet;

use super::super::super::{Input, Views};
use super::lease::Lease;
use super::{End, SPARE, Work, World, address};
use crate::ids::{Incarnation, NodeId};
use crate::volume::RosterChange;

/// How wild it is.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Weather {
    /// One step in so many is a fault; 0: none.
    pub(in super::super) faults: usize,
    /// One fence in so many fails; 0: none.
    pub(in super::super) fence_failures: usize,
}

impl World {
    pub(super) fn fault(&mut self) {
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

    pub(super) fn crash(&mut self, node: NodeId) {
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

    pub(super) fn break_connection(&mut self, pair: (NodeId, NodeId)) {
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

    pub(super) fn restart(&mut self, node: NodeId) {
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

    pub(super) fn read_roster(&mut self, node: NodeId) {
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

    /// No more faults: all nodes but these stay or come up, and all links heal.
    pub(in super::super) fn calm_down(&mut self, stay_dead: BTreeSet<NodeId>) {
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
}
