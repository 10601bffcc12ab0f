//! A small world for the cores: some nodes, one block, a model of each node's cache, a bag of messages in flight, and the
//! checks of what must be true between any two steps.

mod checks;

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use crate::cache::{Mode, Remains, Source};
use crate::fusion::gcs::master::bare;
use crate::fusion::gcs::message::{Kind, Message, name_of_bucket};
use crate::fusion::gcs::rules::Rule;
use crate::fusion::gcs::{Claim, HolderCore, MasterCore, MovedEntry, Output, ProtectedImage};
use crate::fusion::grd::{BlockHasher, Bucket, MastershipMap};
use crate::ids::{BlockId, BlockNo, Epoch, NodeId, PartitionId, RequestId, Scn};

pub(super) const BLOCK: BlockId = BlockId::new(PartitionId(64), BlockNo(4096));
const EPOCH: Epoch = Epoch(7);

/// What is broken on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Broken {
    Nothing,
    /// A rule of the cores.
    Core(Rule),
    /// Rule 1, which the cache keeps: a block is shipped before its redo is durable.
    RedoFirst,
    /// Rule 8, which the cache keeps: a block under write is shipped.
    NoShipUnderWrite,
    /// Rule 2, which the cluster keeps: a lost node's last write reaches the disk after its blocks have been recovered.
    FenceFirst,
}

/// How much may happen.
#[derive(Clone, Copy, Hash, Debug)]
pub(super) struct Budget {
    /// Disk reads and log writes are steps of their own; otherwise they take no time, which makes the world smaller.
    pub(super) slow_disk: bool,
    pub(super) acquires: u32,
    pub(super) writes: u32,
    /// Changes without a version, which need not survive (commit stamps).
    pub(super) hints: u32,
    pub(super) evictions: u32,
    pub(super) recalls: u32,
    pub(super) wishes: u32,
    /// Nodes that may be lost, at any moment.
    pub(super) crashes: u32,
    /// Lost nodes that may come back, with nothing in their memories.
    pub(super) joins: u32,
    /// Changes of the block's master.
    pub(super) moves: u32,
}

/// One thing that can happen next. The number is a node's index, or that of a message in the bag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Deliver(usize),
    Acquire(usize, Mode),
    Write(usize),
    Hint(usize),
    FlushLog(usize),
    BeginDiskWrite(usize),
    EndDiskWrite(usize),
    EndDiskRead(usize),
    Protected(usize),
    Evict(usize),
    WantWritten(usize),
    Recall,
    /// The block's master begins to give its bucket to this node.
    Remaster(usize),
    /// The master has waited too long for the bucket to be drained.
    GiveUpDraining(usize),
    /// The node is lost; whether its write under way still reaches the disk (before the fence closes).
    Crash(usize, bool),
    Join(usize),
    /// The node enters the epoch of the present view.
    Enter(usize),
    /// It hears that all members are in it.
    Go(usize),
    /// The master has made the block's newest version and written it.
    EndRecovery,
    /// A node that was never fenced writes.
    ZombieWrite,
}

impl Step {
    /// Whether the step only finishes what has been begun. Without these the world is quiet.
    pub(super) fn finishes(self) -> bool {
        !matches!(
            self,
            Step::Acquire(..)
                | Step::Write(_)
                | Step::Hint(_)
                | Step::BeginDiskWrite(_)
                | Step::Evict(_)
                | Step::WantWritten(_)
                | Step::Recall
                | Step::Remaster(_)
                | Step::GiveUpDraining(_)
                | Step::Crash(..)
                | Step::Join(_)
                | Step::ZombieWrite
        )
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Envelope {
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    pub(super) message: Message,
    /// The version shipped with a Data.
    pub(super) content: u64,
    /// What a Claims has in its body.
    pub(super) claim: Option<Claim>,
    /// What a RemasterEntries has in its body.
    pub(super) moved: Option<(BlockId, super::super::directory::Entry)>,
}

impl Envelope {
    pub(super) fn new(from: NodeId, to: NodeId, message: Message) -> Envelope {
        Envelope { from, to, message, content: 0, claim: None, moved: None }
    }
}

/// The one block in one node's cache. Versions count up from 0, the one on the disk at first.
#[derive(Clone, Default, Debug)]
pub(super) struct ModelCache {
    pub(super) mode: Mode,
    pub(super) content: u64,
    pub(super) dirty: bool,
    pub(super) reading: bool,
    pub(super) writing: Option<u64>,
    pub(super) log_durable: bool,
    /// The newest version of this node's that a crash would leave in its redo.
    pub(super) durable: u64,
    pub(super) protecting: bool,
    pub(super) past_image: Option<u64>,
    pub(super) acquiring: Option<RequestId>,
    pub(super) releasing: bool,
}

#[derive(Clone)]
pub(super) struct Node {
    pub(super) alive: bool,
    /// The epoch that it is in.
    pub(super) epoch: Epoch,
    /// Versions in the redo that its former life left, until that has been recovered.
    pub(super) redo: Vec<u64>,
    pub(super) master: MasterCore,
    pub(super) holder: HolderCore,
    pub(super) cache: ModelCache,
}

#[derive(Clone)]
pub(super) struct World {
    pub(super) nodes: Vec<Node>,
    /// Mastership in the present view.
    pub(super) map: Rc<MastershipMap>,
    pub(super) master: NodeId,
    /// The master makes the newest version, from this past image where there is one.
    pub(super) recovering: Option<Option<(NodeId, Scn)>>,
    pub(super) zombie: Option<u64>,
    pub(super) wrote_already: Vec<(usize, Scn)>,
    pub(super) net: Vec<Envelope>,
    pub(super) disk: u64,
    pub(super) newest: u64,
    pub(super) authors: Vec<NodeId>,
    pub(super) budget: Budget,
    pub(super) broken: Broken,
    /// Sent from one node to another so far.
    pub(super) messages_over_network: usize,
}

impl World {
    /// `nodes` nodes; the block is mastered by one of them, the same for the same number.
    pub(super) fn new(nodes: u8, budget: Budget, broken: Broken) -> World {
        let members: Vec<_> = (1..=nodes).map(NodeId).collect();
        let map = Rc::new(MastershipMap::new(EPOCH, &members, 8, BTreeMap::new()).unwrap());
        let node = |&id: &NodeId| Node {
            alive: true,
            epoch: EPOCH,
            redo: Vec::new(),
            master: MasterCore::new(id, map.clone(), 1000),
            holder: HolderCore::new(id, map.clone()),
            cache: ModelCache { log_durable: true, ..ModelCache::default() },
        };
        let mut world = World {
            nodes: members.iter().map(node).collect(),
            master: map.master(BLOCK),
            map,
            recovering: None,
            zombie: None,
            wrote_already: Vec::new(),
            net: Vec::new(),
            disk: 0,
            newest: 0,
            authors: Vec::new(),
            budget,
            broken,
            messages_over_network: 0,
        };
        (0..world.nodes.len()).for_each(|at| world.break_a_rule(at));
        world
    }

    pub(super) fn break_a_rule(&mut self, at: usize) {
        if let Broken::Core(rule) = self.broken {
            self.nodes[at].master.rules.off = Some(rule);
            self.nodes[at].holder.rules.off = Some(rule);
        }
    }

    /// A message that a node of an older epoch has sent and the network has kept until now.
    pub(super) fn add_a_message_of_an_older_epoch(&mut self) {
        let message =
            Message { epoch: Epoch(EPOCH.0 - 1), scn: Scn(99), ..super::super::master::bare(EPOCH, Kind::Wrote, BLOCK) };
        self.net.push(Envelope::new(NodeId(1), self.master, message));
    }

    pub(super) fn end_budget(&mut self) {
        self.budget = Budget {
            slow_disk: true,
            acquires: 0,
            writes: 0,
            hints: 0,
            evictions: 0,
            recalls: 0,
            wishes: 0,
            crashes: 0,
            joins: 0,
            moves: 0,
        };
    }

    /// Everything that can happen now.
    pub(super) fn steps(&self, steps: &mut Vec<Step>) {
        steps.clear();
        self.membership_steps(steps);
        for (index, envelope) in self.net.iter().enumerate() {
            if !self.net[..index].contains(envelope) {
                steps.push(Step::Deliver(index));
            }
        }
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.alive && node.epoch != Epoch(0)) {
            let cache = &node.cache;
            let there = cache.mode != Mode::Null && !cache.reading;
            if cache.reading {
                steps.push(Step::EndDiskRead(index));
            }
            if cache.writing.is_some() {
                steps.push(Step::EndDiskWrite(index));
            } else if there && cache.dirty && cache.log_durable {
                steps.push(Step::BeginDiskWrite(index));
            }
            if !cache.log_durable {
                steps.push(Step::FlushLog(index));
            }
            let still = (cache.writing.is_none() || self.broken == Broken::NoShipUnderWrite)
                && (cache.log_durable || self.broken == Broken::RedoFirst)
                && !cache.reading;
            if cache.protecting && still {
                steps.push(Step::Protected(index));
            }
            if self.budget.acquires > 0 && cache.acquiring.is_none() {
                for want in [Mode::Shared, Mode::Exclusive] {
                    if want > cache.mode {
                        steps.push(Step::Acquire(index, want));
                    }
                }
            }
            if self.budget.writes > 0 && there && cache.mode == Mode::Exclusive {
                steps.push(Step::Write(index));
            }
            if self.budget.hints > 0 && there && cache.mode == Mode::Exclusive && !cache.dirty {
                steps.push(Step::Hint(index));
            }
            let clean = !cache.dirty && cache.writing.is_none() && cache.acquiring.is_none();
            if self.budget.evictions > 0 && there && clean {
                steps.push(Step::Evict(index));
            }
            if node.master.is_draining() {
                steps.push(Step::GiveUpDraining(index));
            }
            if self.budget.wishes > 0 && cache.past_image.is_some() {
                steps.push(Step::WantWritten(index));
            }
        }
        let idle =
            |(entry, _): (&super::super::directory::Entry, Option<&super::super::directory::Activity>)| entry.may_be_recalled();
        let recalls = self.budget.recalls > 0 && self.is_settled() && !self.master_core().moves.concern(BLOCK);
        if recalls && self.master_core().entry(BLOCK).is_some_and(idle) {
            steps.push(Step::Recall);
        }
        if self.budget.moves > 0
            && self.is_settled()
            && let Some(owner) = self.owner()
            && self.nodes[owner].master.may_offer()
        {
            let others = self.nodes.iter().enumerate().filter(|(index, node)| node.alive && *index != owner);
            steps.extend(others.map(|(index, _)| Step::Remaster(index)));
        }
    }

    /// Lets one thing happen and checks everything. What goes wrong comes back in words.
    pub(super) fn apply(&mut self, step: Step) -> Result<(), String> {
        let done = catch_unwind(AssertUnwindSafe(|| {
            self.perform(step)?;
            self.check()
        }));
        done.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Err(text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_default())
        })
    }

    fn perform(&mut self, step: Step) -> Result<(), String> {
        let mut out = Vec::new();
        let at = match step {
            Step::Deliver(index) => {
                let Envelope { from, to, message, content, claim, moved } = self.net.swap_remove(index);
                let at = usize::from(to.0) - 1;
                let node = &mut self.nodes[at];
                if !node.alive {
                    return Ok(());
                }
                if let Some(claim) = claim {
                    node.master.on_claim(from, message.epoch, &claim, &mut out);
                } else if let Some((block, entry)) = moved {
                    let entries = vec![MovedEntry { block, entry }];
                    node.master.on_entries(from, message.epoch, Bucket::of(BLOCK), entries, &mut out);
                } else if message.kind == Kind::ClaimsEnd {
                    node.master.on_claims_end(from, message.epoch, message.scn.0, &mut out);
                } else if message.kind.is_for_master() {
                    node.master.on_message(from, &message, &mut out);
                } else {
                    let in_time = message.epoch == node.epoch || !node.holder.rules.all_hold();
                    if message.kind == Kind::Data && node.cache.acquiring == Some(message.request) && in_time {
                        node.cache.content = content;
                    }
                    node.holder.on_message(from, &message, &mut out);
                }
                at
            }
            Step::Acquire(at, want) => {
                self.budget.acquires -= 1;
                let node = &mut self.nodes[at];
                node.cache.acquiring = Some(node.holder.acquire(BLOCK, want, false, &mut out));
                at
            }
            Step::Write(at) => {
                self.budget.writes -= 1;
                let cache = &mut self.nodes[at].cache;
                self.newest += 1;
                self.authors.push(NodeId(at as u8 + 1));
                cache.content = self.newest;
                cache.dirty = true;
                cache.log_durable = !self.budget.slow_disk;
                if cache.log_durable {
                    cache.durable = cache.content;
                }
                at
            }
            Step::Hint(at) => {
                self.budget.hints -= 1;
                self.nodes[at].cache.dirty = true;
                at
            }
            Step::FlushLog(at) => {
                let cache = &mut self.nodes[at].cache;
                cache.log_durable = true;
                cache.durable = cache.durable.max(cache.content);
                at
            }
            Step::BeginDiskWrite(at) => {
                self.nodes[at].cache.writing = Some(self.nodes[at].cache.content);
                if self.nodes.iter().filter(|node| node.alive && node.cache.writing.is_some()).count() > 1 {
                    return Err("two nodes write the block at once".to_owned());
                }
                at
            }
            Step::EndDiskWrite(at) => {
                let node = &mut self.nodes[at];
                let version = node.cache.writing.take().expect("a write is under way");
                if version < self.disk {
                    return Err(format!("version {version} overwrites {} on the disk", self.disk));
                }
                self.disk = version;
                if node.cache.content == version {
                    node.cache.dirty = false;
                }
                node.cache.past_image = node.cache.past_image.filter(|&image| image > version);
                node.holder.wrote(BLOCK, Scn(version), &mut out);
                at
            }
            Step::EndDiskRead(at) => {
                self.nodes[at].cache.reading = false;
                self.nodes[at].cache.content = self.disk;
                if self.nodes.iter().any(|node| node.cache.writing.is_some()) {
                    return Err("the block is read while it is being written".to_owned());
                }
                at
            }
            Step::Protected(at) => {
                let node = &mut self.nodes[at];
                node.cache.protecting = false;
                let image = ProtectedImage { scn: Scn(node.cache.content), dirty: node.cache.dirty };
                node.holder.on_protected(BLOCK, Some(image), &mut out);
                at
            }
            Step::Evict(at) => {
                self.budget.evictions -= 1;
                let node = &mut self.nodes[at];
                node.cache.mode = Mode::Null;
                node.cache.releasing = true;
                node.holder.release(BLOCK, &mut out);
                at
            }
            Step::WantWritten(at) => {
                self.budget.wishes -= 1;
                self.nodes[at].holder.want_written(BLOCK, &mut out);
                at
            }
            Step::Recall => {
                self.budget.recalls -= 1;
                let at = self.owner().expect("somebody has the entry");
                self.nodes[at].master.recall(BLOCK, &mut out);
                at
            }
            Step::GiveUpDraining(at) => {
                self.nodes[at].master.give_up_draining(&mut out);
                at
            }
            Step::Remaster(to) => {
                self.budget.moves -= 1;
                let at = self.owner().expect("somebody masters the block");
                self.nodes[at].master.offer(Bucket::of(BLOCK), NodeId(to as u8 + 1), &mut out);
                at
            }
            Step::Crash(..) | Step::Join(_) | Step::Enter(_) | Step::Go(_) | Step::EndRecovery | Step::ZombieWrite => {
                match self.change_membership(step, &mut out)? {
                    Some(at) => at,
                    None => return Ok(()),
                }
            }
        };
        self.obey(at, &out)?;
        self.release_redo();
        Ok(())
    }

    /// Does what a core of node `at` wants done.
    fn obey(&mut self, at: usize, out: &[Output]) -> Result<(), String> {
        let from = NodeId(at as u8 + 1);
        let crosses = |output: &&Output| matches!(output, Output::Send { to, .. } | Output::Ship { to, .. } if *to != from);
        self.messages_over_network += out.iter().filter(crosses).count();
        for &output in out {
            let cache = &mut self.nodes[at].cache;
            match output {
                Output::Send { to, message } => self.net.push(Envelope::new(from, to, message)),
                Output::Protect { .. } => cache.protecting = true,
                Output::CancelProtect { .. } | Output::Unprotect { .. } => cache.protecting = false,
                Output::Ship { to, message, .. } => {
                    if to == from {
                        return Err(format!("{from} ships the block to itself"));
                    }
                    if !cache.log_durable {
                        return Err("the block is shipped before its redo is durable".to_owned());
                    }
                    self.net.push(Envelope { content: cache.content, ..Envelope::new(from, to, message) });
                }
                Output::Finish { remains, .. } => match remains {
                    Remains::KeepShared => cache.mode = Mode::Shared,
                    Remains::BecomePastImage => {
                        cache.mode = Mode::Null;
                        cache.past_image = Some(cache.content);
                        cache.dirty = false;
                    }
                    Remains::Dropped => {
                        if cache.dirty {
                            return Err("a dirty block vanishes".to_owned());
                        }
                        cache.mode = Mode::Null;
                    }
                },
                Output::Granted { granted, request, .. } => {
                    if cache.acquiring.take() != Some(request) {
                        return Err("a grant for a request that is not open".to_owned());
                    }
                    cache.mode = granted.mode;
                    if granted.source == Source::Disk && !self.budget.slow_disk {
                        cache.content = self.disk;
                        continue;
                    }
                    cache.dirty |= granted.dirty_owner;
                    cache.reading = granted.source == Source::Disk || (granted.source == Source::Held && cache.reading);
                }
                Output::Released { .. } => cache.releasing = false,
                Output::DiscardPastImage { up_to, .. } => {
                    cache.past_image = cache.past_image.filter(|&image| image > up_to.0);
                }
                Output::RequestWrite { .. } => {
                    // Whoever has nothing to write says so: the word of its last write may have been lost with an epoch.
                    // Only who is alone knows the disk: the request may be late, and meet a reader of somebody else's version.
                    if !cache.dirty && !cache.reading && cache.writing.is_none() && cache.mode == Mode::Exclusive {
                        self.wrote_already.push((at, Scn(cache.content)));
                    }
                }
                Output::Recover { image, .. } => {
                    if self.recovering.replace(image).is_some() {
                        return Err("the block is recovered twice at once".to_owned());
                    }
                }
                Output::Gather | Output::StaysHere { .. } | Output::MakeWay { .. } => {}
                Output::HandOver { to, bucket } => {
                    let master = &mut self.nodes[at].master;
                    let shipment = master.take_shipment();
                    let epoch = master.map().epoch();
                    let message = |kind| Message { scn: name_of_bucket(bucket), ..bare(epoch, kind, BlockId::default()) };
                    let end = Message { request: RequestId(shipment.len() as u64), ..message(Kind::RemasterEnd) };
                    self.net.push(Envelope::new(from, to, end));
                    for MovedEntry { block, entry } in shipment {
                        let moved = Some((block, entry));
                        self.net.push(Envelope { moved, ..Envelope::new(from, to, message(Kind::RemasterEntries)) });
                    }
                    self.messages_over_network += 2;
                }
                Output::Remapped { .. } => {
                    let node = &mut self.nodes[at];
                    node.holder.remap(node.master.map().clone());
                }
            }
        }
        while let Some((at, scn)) = self.wrote_already.pop() {
            let mut out = Vec::new();
            self.nodes[at].holder.wrote(BLOCK, scn, &mut out);
            self.obey(at, &out)?;
        }
        Ok(())
    }

    /// The node in the present view that applies what comes for the block. Nobody does while its bucket is on its way.
    fn owner(&self) -> Option<usize> {
        let epoch = self.map.epoch();
        self.nodes.iter().position(|node| node.alive && node.epoch == epoch && node.master.masters(BLOCK))
    }

    pub(super) fn master_core(&self) -> &MasterCore {
        &self.nodes[self.owner().unwrap_or(usize::from(self.master.0) - 1)].master
    }

    /// The state in 64 bits: equal for states that behave equally.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = BlockHasher::default();
        for node in &self.nodes {
            (node.alive, node.epoch, node.holder.is_silent(), node.cache.durable).hash(&mut hasher);
            node.master.fingerprint(&mut hasher);
            node.holder.fingerprint(BLOCK, &mut hasher);
            node.holder.map.master(BLOCK).hash(&mut hasher);
            let c = &node.cache;
            (c.mode, c.content, c.dirty, c.reading, c.writing, c.log_durable).hash(&mut hasher);
            (c.protecting, c.past_image, c.acquiring, c.releasing).hash(&mut hasher);
        }
        let entry = self.master_core().entry(BLOCK);
        entry.map(|(entry, activity)| (entry.fingerprint(), activity)).hash(&mut hasher);
        (self.recovering, self.zombie).hash(&mut hasher);
        (self.disk, self.newest, &self.authors, self.budget).hash(&mut hasher);
        let bag = self.net.iter().fold(0u64, |sum, envelope| {
            let mut one = BlockHasher::default();
            envelope.hash(&mut one);
            sum.wrapping_add(one.finish() | 1)
        });
        bag.hash(&mut hasher);
        hasher.finish()
    }

    /// What is in the bag and where everybody stands, for the trace of a failure.
    pub(super) fn describe(&self) -> String {
        let caches: Vec<_> = self.nodes.iter().map(|node| format!("    {:?}", node.cache)).collect();
        format!(
            "    disk {} of {}, directory {:?}\n{}",
            self.disk,
            self.newest,
            self.master_core().entry(BLOCK),
            caches.join("\n")
        )
    }

    pub(super) fn describe_step(&self, step: Step) -> String {
        match step {
            Step::Deliver(index) => {
                let envelope = self.net[index];
                format!("{} -> {}: {:?}", envelope.from, envelope.to, envelope.message)
            }
            step => format!("{step:?} (counted from 0)"),
        }
    }
}
