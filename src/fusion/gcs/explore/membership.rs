//! The world's membership: nodes are lost at any moment, the others enter a new epoch one after the other, claim, recover
//! and go on; lost ones come back empty. The decision about the view is not explored here, only what follows from it.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use super::world::{BLOCK, Broken, Envelope, ModelCache, Step, World};
use crate::cache::Mode;
use crate::fusion::gcs::message::{Kind, Message};
use crate::fusion::gcs::{Claim, HolderCore, MasterCore, Output};
use crate::fusion::grd::MastershipMap;
use crate::ids::{Epoch, NodeId, Scn};

impl World {
    /// Whether the present view has been entered by all its members, and recovered.
    pub(super) fn is_settled(&self) -> bool {
        let in_it = |node: &&super::world::Node| node.epoch == self.map.epoch() && !node.holder.is_silent();
        self.nodes.iter().filter(|node| node.alive).all(|node| in_it(&node))
            && self.nodes.iter().all(|node| !node.alive || !node.master.is_rebuilding())
            && self.recovering.is_none()
    }

    /// Whether no redo of a lost node is needed any more.
    fn is_released(&self) -> bool {
        self.is_settled() && self.nodes.iter().all(|node| node.redo.is_empty())
    }

    pub(super) fn membership_steps(&self, steps: &mut Vec<Step>) {
        let alive = self.nodes.iter().filter(|node| node.alive).count();
        let epoch = self.map.epoch();
        let all_in = self.nodes.iter().filter(|node| node.alive).all(|node| node.epoch == epoch);
        for (index, node) in self.nodes.iter().enumerate() {
            if node.alive && self.budget.crashes > 0 && alive > 1 {
                steps.push(Step::Crash(index, false));
                if node.cache.writing.is_some() {
                    steps.push(Step::Crash(index, true));
                }
            }
            if !node.alive && self.budget.joins > 0 && self.is_released() {
                steps.push(Step::Join(index));
            }
            if node.alive && node.epoch < epoch {
                steps.push(Step::Enter(index));
            } else if node.alive && all_in && node.holder.is_silent() {
                steps.push(Step::Go(index));
            }
        }
        if self.recovering.is_some() {
            steps.push(Step::EndRecovery);
        }
        if self.zombie.is_some() {
            steps.push(Step::ZombieWrite);
        }
    }

    /// Does the step; answers whose outputs are to be obeyed.
    pub(super) fn change_membership(&mut self, step: Step, out: &mut Vec<Output>) -> Result<Option<usize>, String> {
        match step {
            Step::Crash(at, lands) => {
                self.budget.crashes -= 1;
                self.crash(at, lands);
                Ok(None)
            }
            Step::Join(at) => {
                self.budget.joins -= 1;
                let node = &mut self.nodes[at];
                let id = NodeId(at as u8 + 1);
                node.alive = true;
                node.epoch = Epoch(0);
                let none = Rc::new(MastershipMap::new(Epoch(0), &[id], 8, BTreeMap::new()).expect("one member"));
                node.master = MasterCore::new(id, none.clone(), 1000);
                node.holder = HolderCore::new(id, none);
                // What its former lives wrote was durable, or has been forgotten.
                node.cache = ModelCache { log_durable: true, durable: self.newest, ..ModelCache::default() };
                self.break_a_rule(at);
                self.new_view();
                Ok(None)
            }
            Step::Enter(at) => {
                let node = &mut self.nodes[at];
                node.epoch = self.map.epoch();
                node.master.enter(self.map.clone());
                node.holder.enter(self.map.clone(), out);
                Ok(Some(at))
            }
            Step::Go(at) => {
                self.claim(at);
                let from = NodeId(at as u8 + 1);
                let redo = self.nodes.iter().flat_map(|node| node.redo.iter().copied()).max();
                let lost = redo.filter(|_| self.map.master(BLOCK) == from).map(|version| (BLOCK, Scn(version)));
                let node = &mut self.nodes[at];
                node.master.on_redo_read(lost.into_iter().collect(), out);
                node.holder.go(out);
                Ok(Some(at))
            }
            Step::EndRecovery => {
                let image = self.recovering.take().expect("a recovery is under way");
                let mut version = self.disk.max(image.map_or(0, |(_, scn)| scn.0));
                let redo: Vec<u64> = self.nodes.iter().flat_map(|node| node.redo.iter().copied()).collect();
                while redo.contains(&(version + 1)) {
                    version += 1;
                }
                if version != self.newest {
                    return Err(format!("recovered to version {version} of {}", self.newest));
                }
                self.disk = version;
                let at = usize::from(self.master.0) - 1;
                self.nodes[at].master.on_recovered(BLOCK, Scn(version), out);
                Ok(Some(at))
            }
            Step::ZombieWrite => {
                let version = self.zombie.take().expect("a zombie's write is under way");
                if version < self.disk {
                    return Err(format!("a lost node's version {version} overwrites {} on the disk", self.disk));
                }
                self.disk = version;
                Ok(None)
            }
            step => unreachable!("{step:?} is no change of the membership"),
        }
    }

    fn crash(&mut self, at: usize, lands: bool) {
        let node = &mut self.nodes[at];
        node.alive = false;
        if let Some(version) = node.cache.writing {
            if lands {
                self.disk = self.disk.max(version);
            } else if self.broken == Broken::FenceFirst {
                self.zombie = Some(version);
            }
        }
        // What it had not made durable never left it, and is as if it had never been.
        let (durable, id) = (node.cache.durable, NodeId(at as u8 + 1));
        let lost = |&(index, &author): &(usize, &NodeId)| author == id && index as u64 + 1 > durable;
        let kept = self.authors.iter().enumerate().find(lost).map_or(self.authors.len(), |(index, _)| index);
        self.authors.truncate(kept);
        self.newest = kept as u64;
        let all = self.authors.iter().enumerate().filter(|(_, author)| **author == id);
        self.nodes[at].redo = all.map(|(index, _)| index as u64 + 1).collect();
        self.nodes[at].cache = ModelCache::default();
        self.new_view();
    }

    /// The survivors' view begins: nobody has entered it yet.
    fn new_view(&mut self) {
        let alive = self.nodes.iter().enumerate().filter(|(_, node)| node.alive);
        let members: Vec<NodeId> = alive.map(|(index, _)| NodeId(index as u8 + 1)).collect();
        let epoch = Epoch(self.map.epoch().0 + 1);
        // As whoever leads knows it: buckets of those who live stay where they are.
        let leader = self.nodes.iter().find(|node| node.alive && node.epoch == self.map.epoch());
        let mut overrides = leader.map_or_else(BTreeMap::new, |node| node.master.map().overrides().clone());
        overrides.retain(|_, node| members.contains(node));
        self.map = Rc::new(MastershipMap::new(epoch, &members, 8, overrides).expect("somebody lives"));
        self.master = self.map.master(BLOCK);
        // Its writes are waited for before the node enters: here they take no time.
        self.recovering = None;
    }

    fn claim(&mut self, at: usize) {
        let from = NodeId(at as u8 + 1);
        let node = &self.nodes[at];
        let cache = &node.cache;
        let message = |kind| Message { epoch: self.map.epoch(), ..super::super::master::bare(self.map.epoch(), kind, BLOCK) };
        let held: Vec<_> = node.holder.held().collect();
        let mut count = 0;
        for (block, mode) in held {
            // A clean Shared copy may be of a version that its owner has not written: only who is alone knows the disk.
            let written = !cache.dirty && mode == Mode::Exclusive;
            let scn = if cache.reading || mode == Mode::Null { 0 } else { cache.content };
            let claim = Claim {
                block,
                mode,
                dirty: cache.dirty && mode != Mode::Null,
                scn: Scn(scn),
                disk_scn: Scn(if written { scn } else { 0 }),
                past_image: cache.past_image.map(Scn),
            };
            count += 1;
            self.net.push(Envelope { claim: Some(claim), ..Envelope::new(from, self.master, message(Kind::Claims)) });
        }
        for &to in self.map.members() {
            let count = if to == self.master { count } else { 0 };
            let message = Message { scn: Scn(count), ..message(Kind::ClaimsEnd) };
            self.net.push(Envelope::new(from, to, message));
        }
    }

    /// The redo of lost nodes is given up once nobody needs it.
    pub(super) fn release_redo(&mut self) {
        let epoch = self.map.epoch();
        let in_it = self.nodes.iter().filter(|node| node.alive).all(|node| node.epoch == epoch && !node.holder.is_silent());
        let master = self.master_core();
        let rebuilding = self.nodes.iter().any(|node| node.alive && node.master.is_rebuilding());
        if in_it && !rebuilding && self.recovering.is_none() && master.unwritten() == 0 {
            self.nodes.iter_mut().for_each(|node| node.redo.clear());
        }
    }
}

impl MasterCore {
    /// What a rebuild knows, for the explorer's table of states seen.
    pub(super) fn fingerprint(&self, hasher: &mut impl Hasher) {
        self.epoch.hash(hasher);
        if let Some(rebuild) = &self.rebuild {
            let dropped: Vec<NodeId> = (1..=9).map(NodeId).filter(|&node| rebuild.dropped.contains(&(BLOCK, node))).collect();
            (&rebuild.claims, dropped, rebuild.past_images.get(&BLOCK), &rebuild.lost).hash(hasher);
        }
        let mut unwritten: Vec<_> = self.unwritten.iter().collect();
        unwritten.sort_unstable();
        unwritten.hash(hasher);
        self.entry(BLOCK).map(|(entry, activity)| (entry.fingerprint(), activity)).hash(hasher);
        (self.map.master(BLOCK), &self.moves).hash(hasher);
    }
}
