//! A world of replicas without clock or reactor: a seed decides who ticks, what arrives, and what breaks.
//!
//! What is written goes through the records of the log and is read back from them after a crash, and what is sent goes
//! through the frames, so the codec is part of what is tried.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use raft::eraftpb::{Entry, Message};

use crate::fusion::NodeSet;
use crate::ids::NodeId;
use crate::raft::codec::{
    Reader, decode_message, decode_snapshot_part, encode_entry, encode_message, is_snapshot, snapshot_parts,
};
use crate::raft::record::{Recovery, append_records, image_records};
use crate::raft::replica::*;
use crate::raft::storage::Durable;
use crate::raft::types::*;
use crate::reactor::split_mix;

const GROUP: GroupId = GroupId(5);

/// What may go wrong.
#[derive(Clone, Copy)]
pub struct Faults {
    pub messages: bool,
    pub partitions: bool,
    pub crashes: bool,
    pub changes: bool,
}

impl Faults {
    pub const NONE: Faults = Faults { messages: false, partitions: false, crashes: false, changes: false };
    pub const ALL: Faults = Faults { messages: true, partitions: true, crashes: true, changes: false };
}

/// A write under way.
struct Writing {
    records: Vec<Vec<u8>>,
    number: Option<WriteNumber>,
    /// Once it is durable, nothing before it is needed.
    replaces: bool,
}

struct Node {
    id: NodeId,
    replica: Replica,
    life: u64,
    /// Records that survive.
    disk: Vec<Vec<u8>>,
    writing: VecDeque<Writing>,
    /// Proposals in the order in which they were applied.
    applied: Vec<u64>,
    applied_index: u64,
    /// What was proposed here and is not decided.
    pending: BTreeMap<LogIndex, (Term, u64)>,
    /// Reads on their way, with how many proposals had been acknowledged by then.
    reads: BTreeMap<Vec<u8>, BTreeSet<u64>>,
}

pub struct World {
    random: u64,
    nodes: Vec<Node>,
    network: Vec<(NodeId, NodeId, Vec<u8>, bool)>,
    parted: BTreeSet<(NodeId, NodeId)>,
    faults: Faults,
    next_proposal: u64,
    next_read: u64,
    /// By index: what was applied there, by whoever came first.
    agreed: BTreeMap<u64, (u64, Content)>,
    /// By (index, term): the term of the entry before, and the content.
    logs: BTreeMap<(u64, u64), (u64, Vec<u8>)>,
    /// Proposals that were acknowledged, by where they stand.
    acknowledged: BTreeMap<u64, u64>,
    pub leaders: BTreeMap<Term, NodeId>,
    pub changes_applied: usize,
    pub trace: u64,
}

fn config(node: NodeId, seed: u64) -> ReplicaConfig {
    ReplicaConfig {
        entries_per_append_max: 4,
        append_bytes: 200,
        appends_in_flight_max: 3,
        uncommitted_entries_max: 40,
        uncommitted_bytes_max: 2_000,
        snapshot_threshold: 15,
        log_retention: 5,
        ..ReplicaConfig::new(node, seed)
    }
}

fn to_bytes(applied: &[u64]) -> Vec<u8> {
    applied.iter().flat_map(|id| id.to_le_bytes()).collect()
}

fn from_bytes(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect()
}

impl World {
    /// With changes of the members, the first three found the group and the others may be added.
    pub fn new(seed: u64, nodes: u8, faults: Faults) -> World {
        let members: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
        let founders = if faults.changes { &members[..3] } else { &members[..] };
        let founding = Durable::founding(Configuration::of(founders.iter().copied(), []), Vec::new());
        let node = |id: &NodeId| {
            let durable = if founders.contains(id) { founding.clone() } else { Durable::joining() };
            Node {
                id: *id,
                replica: Replica::new(config(*id, seed * 100 + u64::from(id.0)), durable.clone()),
                life: 1,
                disk: image_records(GROUP, &durable),
                writing: VecDeque::new(),
                applied: Vec::new(),
                applied_index: durable.snapshot.index.0,
                pending: BTreeMap::new(),
                reads: BTreeMap::new(),
            }
        };
        World {
            random: seed,
            nodes: members.iter().map(node).collect(),
            network: Vec::new(),
            parted: BTreeSet::new(),
            faults,
            next_proposal: 1,
            next_read: 1,
            agreed: BTreeMap::new(),
            logs: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            leaders: BTreeMap::new(),
            changes_applied: 0,
            trace: 0,
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        split_mix(&mut self.random) % bound
    }

    fn note(&mut self, what: u64) {
        let mut mixed = self.trace ^ what;
        self.trace = split_mix(&mut mixed);
    }

    fn any_node(&mut self) -> usize {
        self.below(self.nodes.len() as u64) as usize
    }

    pub fn run(&mut self, steps: usize) {
        for step in 0..steps {
            let at = self.any_node();
            match self.below(100) {
                0..=29 => {
                    self.nodes[at].replica.tick();
                    self.carry_out(at);
                }
                30..=69 => self.deliver_any(),
                70..=84 => self.write_done(at),
                85..=91 => self.propose(at),
                92 => self.read(at),
                93..=94 => self.image(at),
                95 if self.faults.crashes && self.below(3) == 0 => self.crash(at),
                96 if self.faults.partitions => self.part_or_heal(),
                97..=98 if self.faults.changes => self.change(at),
                _ => {}
            }
            if step % 50 == 0 {
                self.check_logs();
            }
        }
    }

    fn write_all(&mut self) {
        for at in 0..self.nodes.len() {
            while !self.nodes[at].writing.is_empty() {
                self.write_done(at);
            }
        }
    }

    /// Everybody ticks and everything that is under way arrives, so many times over.
    pub fn rounds(&mut self, rounds: usize) {
        for _ in 0..rounds {
            for at in 0..self.nodes.len() {
                self.nodes[at].replica.tick();
                self.carry_out(at);
            }
            self.write_all();
            for _ in 0..4 {
                for (from, to, body, snapshot) in std::mem::take(&mut self.network) {
                    self.arrive(from, to, &body, snapshot);
                }
                self.write_all();
            }
        }
    }

    /// Ends all faults, and sees to it that the group goes on and that nothing was lost.
    pub fn heal_and_check(&mut self) {
        self.parted.clear();
        self.faults = Faults::NONE;
        self.rounds(300);
        let before = self.acknowledged.len();
        let leader = self.leader().expect("a leader is found when nothing stands in the way");
        self.propose(leader);
        self.rounds(100);
        assert!(self.acknowledged.len() > before, "proposals are agreed on when nothing stands in the way");
        self.check_logs();
        let leader = self.leader().expect("a leader");
        let configuration = *self.nodes[leader].replica.configuration();
        assert!(!configuration.is_joint(), "the joint configuration was left: {configuration:?}");
        let members: NodeSet = configuration.voters.iter().chain(configuration.learners.iter()).collect();
        let expected = self.nodes[leader].applied.clone();
        for (index, id) in &self.acknowledged {
            assert!(expected.contains(id), "proposal {id} was acknowledged at {index} and is lost");
        }
        for node in self.nodes.iter().filter(|node| members.contains(node.id)) {
            assert_eq!(node.applied, expected, "{} has not caught up: {:?}", node.id, node.replica.status());
            assert_eq!(*node.replica.configuration(), configuration, "{}", node.id);
        }
        for at in 0..self.nodes.len() {
            if members.contains(self.nodes[at].id) {
                self.nodes[at].reads.clear();
                self.read(at);
            }
        }
        self.rounds(10);
        let waiting: usize = self.nodes.iter().filter(|node| members.contains(node.id)).map(|node| node.reads.len()).sum();
        assert_eq!(waiting, 0, "reads are answered when there is a leader");
    }

    fn leader(&self) -> Option<usize> {
        let leading = |at: &usize| self.nodes[*at].replica.leadership().role == Role::Leader;
        (0..self.nodes.len()).filter(leading).max_by_key(|at| self.nodes[*at].replica.leadership().term)
    }

    fn deliver_any(&mut self) {
        if self.network.is_empty() {
            return;
        }
        // Mostly in order, so that something comes about.
        let at = if self.faults.messages && self.below(4) == 0 { self.below(self.network.len() as u64) } else { 0 };
        let (from, to, body, snapshot) = self.network.remove(at as usize);
        if self.faults.messages {
            match self.below(40) {
                0..=1 => return,
                2 => self.network.push((from, to, body.clone(), snapshot)),
                _ => {}
            }
        }
        self.arrive(from, to, &body, snapshot);
    }

    fn arrive(&mut self, from: NodeId, to: NodeId, body: &[u8], snapshot: bool) {
        if self.parted.contains(&(from, to)) {
            return;
        }
        let message = if snapshot {
            let part = decode_snapshot_part(body).unwrap();
            part.message(part.bytes.to_vec(), from, to)
        } else {
            decode_message(&mut Reader(body), from, to).unwrap().1
        };
        self.note(u64::from(crc32c::crc32c(body)));
        let at = usize::from(to.0) - 1;
        match self.nodes[at].replica.step(message) {
            Ok(()) | Err(crate::raft::StepError::Stray) => {}
            Err(lost) => panic!("{to}: {lost}"),
        }
        self.carry_out(at);
    }

    fn write_done(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Some(done) = node.writing.pop_front() else { return };
        if done.replaces {
            node.disk.clear();
        }
        node.disk.extend(done.records);
        if let Some(number) = done.number {
            node.replica.persisted(number);
            self.carry_out(at);
        }
    }

    fn propose(&mut self, at: usize) {
        let count = 1 + self.below(6);
        let ids: Vec<u64> = (0..count).map(|more| self.next_proposal + more).collect();
        let proposals = ids.iter().map(|id| id.to_le_bytes().to_vec()).collect();
        let node = &mut self.nodes[at];
        if let Ok(first) = node.replica.propose(proposals) {
            self.next_proposal += count;
            for (more, id) in ids.into_iter().enumerate() {
                node.pending.insert(LogIndex(first.index.0 + more as u64), (first.term, id));
            }
            self.carry_out(at);
        }
    }

    fn read(&mut self, at: usize) {
        let name = self.next_read.to_le_bytes().to_vec();
        self.next_read += 1;
        let acknowledged = self.acknowledged.keys().copied().collect();
        self.nodes[at].reads.insert(name.clone(), acknowledged);
        self.nodes[at].replica.read_index(name);
        self.carry_out(at);
    }

    /// The log is about to forget what is old: everything is written anew.
    fn image(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let records = image_records(GROUP, &node.replica.durable());
        node.writing.push_back(Writing { records, number: None, replaces: true });
    }

    /// Of what was being written, the first records may have come through.
    fn crash(&mut self, at: usize) {
        let survive = self.below(4) as usize;
        let life = self.below(1 << 32);
        let node = &mut self.nodes[at];
        let writing = std::mem::take(&mut node.writing);
        node.disk.extend(writing.into_iter().flat_map(|writing| writing.records).take(survive));
        let mut recovery = Recovery::new();
        node.disk.iter().for_each(|record| recovery.add(record).unwrap());
        let durable = recovery.finish().remove(&GROUP).expect("an image stands at the beginning");
        node.applied = from_bytes(&durable.snapshot.data);
        node.applied_index = durable.snapshot.index.0;
        node.life += 1;
        node.pending.clear();
        node.reads.clear();
        node.replica = Replica::new(config(node.id, life), durable);
        self.carry_out(at);
    }

    fn part_or_heal(&mut self) {
        if !self.parted.is_empty() && self.below(2) == 0 {
            self.parted.clear();
            return;
        }
        let (one, other) = (self.any_node(), self.any_node());
        let (one, other) = (self.nodes[one].id, self.nodes[other].id);
        self.parted.insert((one, other));
        if self.below(2) == 0 {
            self.parted.insert((other, one));
        }
    }

    fn change(&mut self, at: usize) {
        let count = 1 + self.below(2);
        let mut changes = Vec::new();
        for _ in 0..count {
            let node = self.any_node();
            let node = self.nodes[node].id;
            changes.push(match self.below(3) {
                0 => MemberChange::AddVoter(node),
                1 => MemberChange::AddLearner(node),
                _ => MemberChange::Remove(node),
            });
        }
        let replica = &mut self.nodes[at].replica;
        let mut voters = replica.configuration().voters;
        for change in &changes {
            match change {
                MemberChange::AddVoter(node) => voters.insert(*node),
                MemberChange::AddLearner(node) | MemberChange::Remove(node) => {
                    voters.remove(*node);
                }
            }
        }
        if voters.len() >= 2 && replica.change_members(&ConfigurationChange(changes)).is_ok() {
            self.carry_out(at);
        }
        if self.below(3) == 0 {
            let to = self.any_node();
            let to = self.nodes[to].id;
            if self.nodes[at].replica.transfer_leader(to).is_ok() {
                self.carry_out(at);
            }
        }
    }

    fn carry_out(&mut self, at: usize) {
        loop {
            let node = &mut self.nodes[at];
            let outputs = node.replica.outputs();
            if outputs.is_empty() && node.replica.wants_snapshot() {
                node.replica.compact(to_bytes(&node.applied));
            }
            if outputs.is_empty() {
                return;
            }
            let id = self.nodes[at].id;
            for message in &outputs.messages {
                self.send(id, message);
            }
            for write in outputs.writes {
                let (records, number) = match write {
                    Write::Append { number, hard_state, entries } => (append_records(GROUP, &hard_state, &entries), number),
                    Write::Install { number, durable } => (image_records(GROUP, &durable), number),
                };
                self.nodes[at].writing.push_back(Writing { records, number: Some(number), replaces: false });
            }
            if let Some(leadership) = outputs.leadership {
                self.note(leadership.term.0 << 8 | leadership.leader.map_or(0, |node| u64::from(node.0)));
                if leadership.role == Role::Leader {
                    let before = *self.leaders.entry(leadership.term).or_insert(id);
                    assert_eq!(before, id, "two lead in {}", leadership.term);
                }
            }
            self.apply(at, outputs.committed);
            for read in outputs.reads {
                if let Some(acknowledged) = self.nodes[at].reads.remove(&read.context) {
                    let last = acknowledged.last().copied().unwrap_or(0);
                    assert!(last <= read.index.0, "a read at {} misses what was acknowledged at {last} before it", read.index);
                }
            }
        }
    }

    fn send(&mut self, from: NodeId, message: &Message) {
        let to = NodeId(message.to as u8);
        if is_snapshot(message) {
            let parts: Vec<_> = snapshot_parts(GROUP, message).collect();
            assert_eq!(parts.len(), 1, "snapshots are small here");
            self.network.extend(parts.into_iter().map(|body| (from, to, body, true)));
        } else {
            assert!(message.entries.len() <= 4, "{} entries in one message", message.entries.len());
            let mut body = Vec::new();
            encode_message(GROUP, message, &mut body);
            self.network.push((from, to, body, false));
        }
    }

    fn apply(&mut self, at: usize, committed: Vec<Committed>) {
        let node = &mut self.nodes[at];
        let mut last = None;
        for committed in committed {
            match committed {
                Committed::Snapshot(snapshot) => {
                    node.applied = from_bytes(&snapshot.data);
                    node.applied_index = snapshot.index.0;
                    node.pending.retain(|index, _| *index > snapshot.index);
                    last = Some(snapshot.index);
                }
                Committed::Entry { index, term, content } => {
                    assert_eq!(index.0, node.applied_index + 1, "{} applies in order", node.id);
                    node.applied_index = index.0;
                    let agreed = self.agreed.entry(index.0).or_insert_with(|| {
                        self.changes_applied += usize::from(matches!(content, Content::Change(_)));
                        (term.0, content.clone())
                    });
                    assert_eq!(*agreed, (term.0, content.clone()), "{} applies something else at {index}", node.id);
                    if let Content::Proposal(bytes) = &content {
                        node.applied.extend(from_bytes(bytes));
                    }
                    if let Some((proposed, id)) = node.pending.remove(&index)
                        && proposed == term
                    {
                        self.acknowledged.insert(index.0, id);
                    }
                    last = Some(index);
                }
            }
        }
        if let Some(index) = last {
            node.replica.applied(index);
        }
    }

    /// Two logs that hold an entry of the same index and term are the same up to there.
    fn check_logs(&mut self) {
        for node in &self.nodes {
            let durable = node.replica.durable();
            let mut before = durable.snapshot.term.0;
            for entry in &durable.entries {
                let content = content_of(entry);
                let known = self.logs.entry((entry.index, entry.term)).or_insert_with(|| (before, content.clone()));
                assert_eq!(*known, (before, content), "{} at {} of term {}", node.id, entry.index, entry.term);
                before = entry.term;
            }
        }
    }
}

fn content_of(entry: &Entry) -> Vec<u8> {
    let mut content = Vec::new();
    encode_entry(entry, &mut content);
    content
}
