//! One member's part in a Raft group: a state machine without I/O, clock or randomness of its own.
//!
//! Owned by one shard. Inputs are ticks, messages, proposals, and word of what has become durable and was applied; outputs
//! are taken with [`Replica::outputs`]. raft-rs (`raft` 0.7) decides; this wraps it so that its contract can't be broken
//! from outside: every input is followed at once by everything that it makes ready, a message that depends on a write
//! leaves only after [`Replica::persisted`], and a configuration takes effect when its entry is applied.
//!
//! What raft-rs 0.7 lacks is guarded here: a stale rejection can't set a follower's next entry back to one that it has
//! confirmed (its #557, see `guards.rs`); looking for changes of the configuration before an election copies no
//! entries (its #530, see `storage.rs`); its election timeouts come from the thread's random numbers, and are replaced before
//! they count (see `guards.rs`); a snapshot that got lost is sent again; a leader that was removed steps down; a joint
//! configuration is left also when the leader that entered it is gone.
//!
//! Bounds: [`ReplicaConfig`]. Follows D. Ongaro, "Consensus: Bridging Theory and Practice", 2014.

mod guards;
mod outputs;

use std::collections::{BTreeMap, VecDeque};

pub use outputs::{Committed, Content, Outputs, PeerProgress, ReadAnswer, ReplicaConfig, ReplicaStatus, Write, WriteNumber};
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::{Config, ProgressState, RawNode, SnapshotStatus, StateRole};

use super::codec::{PROPOSAL_BYTES_MAX, decode_change, encode_change};
use super::error::{ProposeError, StepError};
use super::storage::{Durable, Entries, SnapshotState};
use super::types::{
    Configuration, ConfigurationChange, HardState, Leadership, LogIndex, MemberChange, ProposalId, Role, Term, node_of, raft_id,
};
use crate::fusion::NodeSet;
use crate::ids::NodeId;

/// Something that became ready, and whose messages may leave when it is durable, with everything before it.
struct Waiting {
    number: u64,
    /// Whether it is written itself, or only waits for what is.
    written: bool,
    messages: Vec<Message>,
}

/// See the module.
pub struct Replica {
    raw: RawNode<Entries>,
    config: ReplicaConfig,
    random: u64,
    /// The election timeout in force, and what it was drawn for.
    timeout: u32,
    drawn_for: (u64, StateRole, u64, u64),
    campaigns: u64,
    outputs: Outputs,
    /// What is not durable yet, and what waits behind it.
    waiting: VecDeque<Waiting>,
    /// Changes of the configuration that are committed, to take effect when they are applied.
    changes: VecDeque<(u64, ConfigurationChange)>,
    /// The highest index that the state machine has been told.
    told: u64,
    /// What the state machine has reported, which may be ahead of what raft-rs may know: a snapshot that is not durable yet.
    applied: u64,
    /// Ticks since a follower was sent a snapshot.
    snapshots: BTreeMap<u64, u32>,
    leadership: Leadership,
}

impl Replica {
    /// A replica that goes on from what is durable.
    #[must_use]
    pub fn new(config: ReplicaConfig, durable: Durable) -> Replica {
        let (low, high) = config.election_ticks;
        assert!(low > config.heartbeat_ticks && high >= low && config.heartbeat_ticks > 0, "{config:?}");
        let applied = durable.snapshot.index.0;
        let raft_config = Config {
            id: raft_id(config.node),
            election_tick: low as usize,
            heartbeat_tick: config.heartbeat_ticks as usize,
            applied,
            max_size_per_msg: config.append_bytes as u64,
            max_inflight_msgs: config.appends_in_flight_max,
            check_quorum: true,
            pre_vote: true,
            min_election_tick: low as usize,
            max_election_tick: high as usize + 1,
            max_uncommitted_size: config.uncommitted_bytes_max.max(config.append_bytes) as u64,
            ..Config::default()
        };
        let entries = Entries::new(durable, config.entries_per_append_max);
        let raw = RawNode::new(&raft_config, entries, &super::trace::logger()).expect("the configuration is sound");
        let mut replica = Replica {
            raw,
            random: config.seed,
            timeout: low,
            drawn_for: (u64::MAX, StateRole::Follower, 0, 0),
            campaigns: 0,
            outputs: Outputs::default(),
            waiting: VecDeque::new(),
            changes: VecDeque::new(),
            told: applied,
            applied,
            snapshots: BTreeMap::new(),
            leadership: Leadership::default(),
            config,
        };
        replica.settle();
        replica
    }

    /// One tick has passed.
    pub fn tick(&mut self) {
        if self.must_not_stand() && self.raw.raft.state != StateRole::Leader {
            return;
        }
        self.raw.raft.set_randomized_election_timeout(self.timeout as usize);
        let leads = self.raw.raft.state == StateRole::Leader;
        if self.raw.tick() && !leads {
            self.campaigns += 1;
        }
        self.resend_snapshots();
        self.leave_joint();
        self.settle();
    }

    /// Stands for election at once. For a group that has just one voter, or was just founded.
    pub fn campaign(&mut self) {
        if self.raw.raft.promotable() && self.waiting.is_empty() {
            self.campaigns += 1;
            // It is refused when a change of the configuration is to be applied first.
            let _ = self.raw.campaign();
            self.settle();
        }
    }

    /// A message has come. Losing, doubling and reordering messages is allowed.
    ///
    /// # Errors
    /// [`StepError`]; the message is dropped.
    pub fn step(&mut self, message: Message) -> Result<(), StepError> {
        if message.to != raft_id(self.config.node) || message.from == message.to || node_of(message.from).is_none() {
            return Err(StepError::Stray);
        }
        let last = self.raw.raft.raft_log.last_index();
        match message.get_msg_type() {
            MessageType::MsgHeartbeat if message.term >= self.raw.raft.term && message.commit > last => {
                return Err(StepError::LogLost { committed: LogIndex(message.commit), last: LogIndex(last) });
            }
            MessageType::MsgTimeoutNow if self.must_not_stand() => return Ok(()),
            MessageType::MsgAppendResponse if message.reject && self.stale_rejection(&message) => return Ok(()),
            MessageType::MsgTimeoutNow => self.campaigns += 1,
            _ => {}
        }
        let stepped = self.raw.step(message);
        self.settle();
        match stepped {
            Ok(()) => Ok(()),
            Err(_) => Err(StepError::Stray),
        }
    }

    /// Proposes entries, all or none. The names of all of them follow from the first one's: their indices are consecutive.
    ///
    /// # Errors
    /// [`ProposeError`]; nothing is proposed then.
    pub fn propose(&mut self, proposals: Vec<Vec<u8>>) -> Result<ProposalId, ProposeError> {
        assert!(!proposals.is_empty() && proposals.iter().all(|proposal| !proposal.is_empty()), "something is proposed");
        if let Some(large) = proposals.iter().find(|proposal| proposal.len() > PROPOSAL_BYTES_MAX) {
            return Err(ProposeError::TooLarge { bytes: large.len(), maximum: PROPOSAL_BYTES_MAX });
        }
        self.check_open(proposals.len() as u64)?;
        let count = proposals.len() as u64;
        let entries = proposals.into_iter().map(|proposal| Entry { data: proposal.into(), ..Entry::default() }).collect();
        self.propose_entries(entries)?;
        Ok(self.newest(count))
    }

    /// Proposes other members. It is done when the entry is applied; with more than one change, when the joint configuration
    /// that it enters was left.
    ///
    /// # Errors
    /// [`ProposeError`]; nothing is proposed then.
    pub fn change_members(&mut self, change: &ConfigurationChange) -> Result<ProposalId, ProposeError> {
        self.check_open(1)?;
        if self.raw.raft.has_pending_conf() || self.configuration().is_joint() {
            return Err(ProposeError::ChangePending);
        }
        self.check_change(change)?;
        let own_form = encode_change(change);
        let raft_form = change.to_raft();
        match self.raw.propose_conf_change(own_form, raft_form) {
            Ok(()) => {
                self.settle();
                Ok(self.newest(1))
            }
            Err(_) => Err(self.refusal()),
        }
    }

    /// Hands leadership over to a voter, which stands for election as soon as it has the whole log. Proposals are refused
    /// meanwhile, for at most one election timeout.
    ///
    /// # Errors
    /// [`ProposeError`] when this replica does not lead, or the other one has no vote.
    pub fn transfer_leader(&mut self, to: NodeId) -> Result<(), ProposeError> {
        if self.raw.raft.state != StateRole::Leader {
            return Err(self.not_leader());
        }
        if !self.configuration().voters.contains(to) {
            return Err(ProposeError::BadChange("only a member with a vote can lead"));
        }
        self.raw.transfer_leader(raft_id(to));
        self.settle();
        Ok(())
    }

    /// Asks for a point up to which a read must wait. Answered in [`Outputs::reads`], or not at all: ask again after a while,
    /// with the same name, which is one of this node's and was never used before.
    pub fn read_index(&mut self, context: Vec<u8>) {
        assert!(!context.is_empty() && context.len() <= super::codec::CONTEXT_BYTES_MAX, "a name of {} bytes", context.len());
        self.raw.read_index(context);
        self.settle();
    }

    /// This write and those before it are durable.
    pub fn persisted(&mut self, number: WriteNumber) {
        let mut upto = number.0;
        while let Some(first) = self.waiting.pop_front_if(|first| first.number <= number.0 || !first.written) {
            upto = upto.max(first.number);
            self.outputs.messages.extend(first.messages);
        }
        self.raw.on_persist_ready(upto);
        self.report_applied();
        self.settle();
    }

    /// The state machine has taken everything up to this index.
    pub fn applied(&mut self, index: LogIndex) {
        assert!(index.0 >= self.applied && index.0 <= self.told, "applied {index}, which it was not told (up to {})", self.told);
        self.applied = index.0;
        while self.changes.front().is_some_and(|(at, _)| *at <= index.0) {
            let (at, change) = self.changes.pop_front().expect("it was looked at");
            self.apply_change(at, &change);
        }
        self.report_applied();
        self.leave_joint();
        self.settle();
    }

    /// Whether the state machine should be asked for a snapshot.
    #[must_use]
    pub fn wants_snapshot(&self) -> bool {
        let entries = self.raw.store();
        let behind = self.applied.saturating_sub(entries.snapshot_index());
        behind > 0
            && (entries.newer_wanted()
                || behind >= self.config.snapshot_threshold
                || entries.tail_bytes() >= self.config.snapshot_bytes)
    }

    /// Takes over a snapshot of the state machine at the applied index, and forgets entries that are not needed for it any more.
    pub fn compact(&mut self, data: Vec<u8>) {
        if self.applied == self.raw.store().snapshot_index() || self.applied != self.raw.raft.raft_log.applied {
            // Nothing new, or a leader's snapshot is about to replace everything.
            return;
        }
        let (index, retain) = (self.applied, self.config.log_retention);
        self.raw.mut_store().compact(index, data, retain);
    }

    /// Everything of this replica that must survive, as it stands: with what was handed out to be written.
    #[must_use]
    pub fn durable(&self) -> Durable {
        self.raw.store().durable()
    }

    /// The way to a peer broke: what was on it is lost.
    pub fn unreachable(&mut self, peer: NodeId) {
        self.raw.report_unreachable(raft_id(peer));
        if self.snapshots.remove(&raft_id(peer)).is_some() {
            self.raw.report_snapshot(raft_id(peer), SnapshotStatus::Failure);
        }
        self.settle();
    }

    /// Takes what is to be done.
    pub fn outputs(&mut self) -> Outputs {
        std::mem::take(&mut self.outputs)
    }

    /// Whether [`Replica::outputs`] has something.
    #[must_use]
    pub fn has_outputs(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// Who leads.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        self.leadership
    }

    /// The members, as of the applied entries.
    #[must_use]
    pub fn configuration(&self) -> &Configuration {
        self.raw.store().configuration()
    }

    /// Applied here.
    #[must_use]
    pub fn applied_index(&self) -> LogIndex {
        LogIndex(self.applied)
    }

    /// The entry that the snapshot stands for.
    #[must_use]
    pub fn snapshot_index(&self) -> LogIndex {
        LogIndex(self.raw.store().snapshot_index())
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> ReplicaStatus {
        let raft = &self.raw.raft;
        let peer = |(id, progress): (&u64, &raft::Progress)| {
            let node = node_of(*id).filter(|node| *node != self.config.node)?;
            let in_snapshot = progress.state == ProgressState::Snapshot;
            Some(PeerProgress { node, matched: LogIndex(progress.matched), in_snapshot, active: progress.recent_active })
        };
        let mut peers: Vec<PeerProgress> =
            if raft.state == StateRole::Leader { raft.prs().iter().filter_map(peer).collect() } else { Vec::new() };
        peers.sort_by_key(|peer| peer.node);
        ReplicaStatus {
            leadership: self.leadership,
            configuration: *self.configuration(),
            committed: LogIndex(raft.raft_log.committed),
            applied: LogIndex(self.applied),
            last: LogIndex(raft.raft_log.last_index()),
            snapshot: LogIndex(self.raw.store().snapshot_index()),
            peers,
        }
    }

    fn not_leader(&self) -> ProposeError {
        let leader = self.leadership.leader.filter(|leader| *leader != self.config.node);
        ProposeError::NotLeader { leader }
    }

    fn check_open(&self, count: u64) -> Result<(), ProposeError> {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader {
            return Err(self.not_leader());
        }
        if raft.lead_transferee.is_some() {
            return Err(ProposeError::Transferring);
        }
        let uncommitted = raft.raft_log.last_index() - raft.raft_log.committed;
        if uncommitted + count > self.config.uncommitted_entries_max {
            return Err(ProposeError::Busy { uncommitted });
        }
        Ok(())
    }

    fn refusal(&self) -> ProposeError {
        let raft = &self.raw.raft;
        match raft.state {
            StateRole::Leader if raft.lead_transferee.is_some() => ProposeError::Transferring,
            StateRole::Leader => ProposeError::Busy { uncommitted: raft.raft_log.last_index() - raft.raft_log.committed },
            _ => self.not_leader(),
        }
    }

    fn check_change(&self, change: &ConfigurationChange) -> Result<(), ProposeError> {
        let now = self.configuration();
        let mut voters = now.voters;
        let mut seen = NodeSet::EMPTY;
        for change in &change.0 {
            let node = change.node();
            if seen.contains(node) {
                return Err(ProposeError::BadChange("a node is named twice"));
            }
            seen.insert(node);
            match change {
                MemberChange::AddVoter(node) => voters.insert(*node),
                MemberChange::AddLearner(_) | MemberChange::Remove(_) => {
                    if node == self.config.node {
                        return Err(ProposeError::BadChange("the leader keeps its vote: transfer leadership first"));
                    }
                    voters.remove(node);
                }
            }
        }
        if change.0.is_empty() {
            return Err(ProposeError::BadChange("it names nobody"));
        }
        if voters.is_empty() {
            return Err(ProposeError::BadChange("nobody would have a vote"));
        }
        Ok(())
    }

    fn propose_entries(&mut self, entries: Vec<Entry>) -> Result<(), ProposeError> {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = raft_id(self.config.node);
        message.set_entries(entries.into());
        let proposed = self.raw.raft.step(message);
        self.settle();
        proposed.map_err(|_| self.refusal())
    }

    /// The first of the newest `count` entries.
    fn newest(&self, count: u64) -> ProposalId {
        let last = self.raw.raft.raft_log.last_index();
        ProposalId { term: Term(self.raw.raft.term), index: LogIndex(last + 1 - count) }
    }

    fn apply_change(&mut self, at: u64, change: &ConfigurationChange) {
        match self.raw.apply_conf_change(&change.to_raft()) {
            Ok(state) => {
                let configuration = Configuration::from_conf_state(&state);
                self.raw.mut_store().set_configuration(configuration);
                let leads = self.raw.raft.state == StateRole::Leader;
                if leads && !configuration.is_voter(self.config.node) {
                    // A leader that is no voter any more would keep its office without being able to use it.
                    let term = self.raw.raft.term;
                    self.raw.raft.become_follower(term, 0);
                }
            }
            // Every replica comes to the same result, because it follows from the log alone.
            Err(error) => tracing::warn!(index = at, %error, "a change of a raft group's members has no effect"),
        }
    }

    /// Lets raft-rs know what is applied, as far as it may: a snapshot must be durable before.
    fn report_applied(&mut self) {
        let log = &self.raw.raft.raft_log;
        let may = self.applied.min(log.persisted.min(log.committed));
        if may > log.applied {
            self.raw.advance_apply_to(may);
        }
    }

    /// Takes everything that the last input has made ready, so that raft-rs never sees two inputs without it.
    fn settle(&mut self) {
        self.redraw();
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            let number = ready.number();
            self.outputs.messages.extend(ready.take_messages());
            let depending = ready.take_persisted_messages();
            self.outputs.reads.extend(
                ready
                    .take_read_states()
                    .into_iter()
                    .map(|read| ReadAnswer { context: read.request_ctx, index: LogIndex(read.index) }),
            );

            let installs = !ready.snapshot().is_empty();
            if installs {
                let snapshot = ready.snapshot().clone();
                let metadata = snapshot.get_metadata();
                self.told = metadata.index;
                self.changes.clear();
                self.outputs.committed.clear();
                self.outputs.committed.push(Committed::Snapshot(SnapshotState {
                    index: LogIndex(metadata.index),
                    term: Term(metadata.term),
                    configuration: Configuration::from_conf_state(metadata.get_conf_state()),
                    data: snapshot.data.to_vec(),
                }));
                self.raw.mut_store().install(snapshot);
            }
            let entries = ready.take_entries();
            self.raw.mut_store().append(&entries);
            let before = self.raw.store().hard_state();
            if let Some(state) = ready.hs() {
                let hard_state = HardState { term: Term(state.term), vote: node_of(state.vote), commit: LogIndex(state.commit) };
                self.raw.mut_store().set_hard_state(hard_state);
            }
            let hard_state = self.raw.store().hard_state();
            self.told_of(ready.take_committed_entries());

            // A commit index alone is learned again by whoever forgets it; it goes with the next entries.
            let voted = (hard_state.term, hard_state.vote) != (before.term, before.vote);
            let number = WriteNumber(number);
            let writes = installs || !entries.is_empty() || voted;
            if installs {
                self.outputs.writes.push(Write::Install { number, durable: self.raw.store().durable() });
            } else if writes {
                self.outputs.writes.push(Write::Append { number, hard_state, entries });
            }
            self.raw.advance_append_async(ready);
            if writes || !self.waiting.is_empty() {
                self.waiting.push_back(Waiting { number: number.0, written: writes, messages: depending });
            } else {
                self.outputs.messages.extend(depending);
                self.raw.on_persist_ready(number.0);
            }
            self.report_applied();
            self.redraw();
        }
        for message in &self.outputs.messages {
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.snapshots.entry(message.to).or_insert(0);
            }
        }
        self.split_appends();
        self.note_leadership();
    }

    fn told_of(&mut self, committed: Vec<Entry>) {
        for entry in committed {
            let content = match entry.get_entry_type() {
                EntryType::EntryNormal if entry.data.is_empty() => Content::Nothing,
                EntryType::EntryNormal => Content::Proposal(entry.data.to_vec()),
                _ => {
                    let change = decode_change(&entry.context).expect("changes are checked when they are proposed or received");
                    self.changes.push_back((entry.index, change.clone()));
                    Content::Change(change)
                }
            };
            assert!(entry.index == self.told + 1, "entry {} is committed behind {}", entry.index, self.told);
            self.told = entry.index;
            self.outputs.committed.push(Committed::Entry { index: LogIndex(entry.index), term: Term(entry.term), content });
        }
    }

    fn note_leadership(&mut self) {
        let raft = &self.raw.raft;
        let role = match raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate => Role::Candidate,
            StateRole::PreCandidate => Role::PreCandidate,
            StateRole::Follower if raft.promotable() => Role::Follower,
            StateRole::Follower => Role::Learner,
        };
        let now = Leadership { role, leader: node_of(raft.leader_id), term: Term(raft.term) };
        if now != self.leadership {
            self.leadership = now;
            self.outputs.leadership = Some(now);
        }
    }
}

#[cfg(test)]
mod tests;
