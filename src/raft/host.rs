//! All Raft groups of a shard: their ticks, their frames, their way to the log.
//!
//! Owned by the shard's thread; the handler of [`Service::Raft`]. What happens to a group (a message, a tick, something durable) marks
//! it; one task then carries out what the marked groups want, and sends each peer one frame with the messages of all
//! groups of that turn. Bounds: one partly received snapshot for each peer and group; [`REQUESTS_MAX`] proposals on their way
//! to leaders; the replicas' own.

mod alone;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::time::Duration;

use raft::eraftpb::Message;

use super::codec::{
    self, CodecFault, Reader, SNAPSHOT_BYTES_MAX, decode_message, decode_snapshot_part, encode_message, is_snapshot, message_len,
};
use super::error::{OpenError, ProposeError, RaftError};
use super::group::Group;
use super::journal::{Item, Journal};
use super::machine::StateMachine;
use super::member::{Member, Proposed, Waiter};
use super::record::{Recovery, image_records};
use super::replica::{Replica, ReplicaConfig};
use super::storage::Durable;
use super::types::{Configuration, GroupId, LogIndex, Term, node_of};
use crate::config::RaftConfig;
use crate::ids::{NodeId, RequestId};
use crate::interconnect::{self, BODY_BYTES_MAX, Body, Handler, Header, Interconnect, Service};
use crate::reactor::sync::{Notify, OneshotSender};
use crate::reactor::{Class, FileId, Reactor, TaskHandle};
use crate::volume::RedoArea;
use crate::wal::{Log, LogError, LogScan, RecordKind};

/// Messages of groups, one behind the other.
const MESSAGES: u8 = Service::Raft.base();
/// A part of a snapshot.
const SNAPSHOT_PART: u8 = Service::Raft.base() + 1;
/// A proposal for the leader; the argument is the group.
const PROPOSE: u8 = Service::Raft.base() + 2;
/// What became of it: the mode is one of the outcomes below, the argument a number with it.
const PROPOSED: u8 = Service::Raft.base() + 3;

/// Proposals that may be on their way to leaders on other nodes.
pub const REQUESTS_MAX: usize = 10_000;

/// Ticks of one heartbeat interval. An election waits for at least two intervals and at most so long, in whole ticks: with the defaults
/// six different waits, and nodes don't tick at the same time. More ticks would find nothing sooner, but wake an idle node more often.
const TICKS_PER_HEARTBEAT: u64 = 2;

/// Ticks that are made up for when the shard was busy. After a longer pause time goes on from there: a node that was
/// stopped for a while first hears what has happened.
const TICKS_LATE_MAX: u32 = 2;

/// What [`RaftHost::open`] is told.
pub struct HostParts {
    /// The shard's.
    pub reactor: Reactor,
    /// The shard's; its handler of [`Service::Raft`] is the host.
    pub interconnect: Interconnect,
    /// The shard's.
    pub log: Log,
    /// What [`recover`] has found in it.
    pub recovered: BTreeMap<GroupId, Durable>,
    /// `[raft]`
    pub config: RaftConfig,
}

/// Reads the groups of a shard from its log. Before the log is opened for writing, or after: only what was durable counts.
///
/// # Errors
/// When the log or a record can't be read.
pub async fn recover(reactor: &Reactor, file: FileId, area: RedoArea) -> Result<BTreeMap<GroupId, Durable>, OpenError> {
    let mut scan = LogScan::open(reactor, file, area).await?;
    let mut recovery = Recovery::new();
    while let Some(record) = scan.next().await? {
        if record.kind == RecordKind::Raft {
            recovery.add(record.payload).map_err(|fault| OpenError::Record { lsn: record.start, fault })?;
        }
    }
    Ok(recovery.finish())
}

/// The Raft groups of a shard. Clones are the same.
#[derive(Clone)]
pub struct RaftHost(Rc<Host>);

/// A snapshot as far as it has come.
struct Assembly {
    index: LogIndex,
    term: Term,
    data: Vec<u8>,
}

/// Where the outcome of a proposal goes.
type Outcome = OneshotSender<Result<Proposed, RaftError>>;

pub(super) struct Host {
    pub reactor: Reactor,
    interconnect: Interconnect,
    pub journal: Rc<Journal>,
    config: RaftConfig,
    tick: Duration,
    pub read_retry: Duration,
    pub snapshot_interval: Duration,
    pub snapshot_bytes_max: usize,
    pub proposals_per_batch: usize,
    members: RefCell<BTreeMap<GroupId, Rc<Member>>>,
    /// Found in the log, and not taken up yet.
    idle: RefCell<BTreeMap<GroupId, Durable>>,
    marked: RefCell<BTreeSet<GroupId>>,
    work: Notify,
    /// The frame that is being filled for each peer.
    frames: RefCell<BTreeMap<NodeId, Vec<u8>>>,
    /// Peers that could not be reached in this turn.
    unreachable: RefCell<BTreeSet<NodeId>>,
    /// Snapshots that are being received.
    assembling: RefCell<BTreeMap<(NodeId, GroupId), Assembly>>,
    /// Proposals on their way to leaders.
    requests: RefCell<BTreeMap<RequestId, (NodeId, Outcome)>>,
    last_request: Cell<u64>,
    tasks: RefCell<Vec<TaskHandle>>,
    closed: Cell<bool>,
}

impl RaftHost {
    /// Takes over the groups of a shard, as they were found in its log, and begins to serve. Each recovered group waits until it
    /// is taken up with [`RaftHost::resume`].
    ///
    /// # Errors
    /// When the log can't be written.
    pub async fn open(parts: HostParts) -> Result<RaftHost, OpenError> {
        let HostParts { reactor, interconnect, log, recovered, config } = parts;
        let headroom = log.headroom() as usize;
        let journal = Rc::new(Journal::open(log, &recovered).await?);
        let tick_ms = (config.heartbeat_interval / TICKS_PER_HEARTBEAT).max(1);
        let host = Rc::new(Host {
            tick: Duration::from_millis(tick_ms),
            read_retry: Duration::from_millis(2 * config.heartbeat_interval),
            snapshot_interval: Duration::from_secs(config.snapshot_interval),
            // Images use half of the log's headroom at most: snapshot, applied entries, and what is uncommitted.
            snapshot_bytes_max: (headroom / 4).min(SNAPSHOT_BYTES_MAX),
            proposals_per_batch: config.max_entries_per_append as usize,
            reactor: reactor.clone(),
            interconnect,
            journal: journal.clone(),
            config,
            members: RefCell::default(),
            idle: RefCell::new(recovered),
            marked: RefCell::default(),
            work: Notify::new(),
            frames: RefCell::default(),
            unreachable: RefCell::default(),
            assembling: RefCell::default(),
            requests: RefCell::default(),
            last_request: Cell::new(0),
            tasks: RefCell::default(),
            closed: Cell::new(false),
        });
        let weak = Rc::downgrade(&host);
        let tasks = vec![
            reactor.spawn(Class::Critical, "raft", run(weak.clone(), host.work.clone())),
            reactor.spawn(Class::Critical, "raft ticks", run_ticks(weak.clone(), reactor.clone(), host.tick)),
            reactor.spawn(Class::Critical, "raft appends", journal.clone().run_appends()),
            reactor.spawn(Class::Critical, "raft flushes", run_flush(weak, journal)),
        ];
        *host.tasks.borrow_mut() = tasks;
        Ok(RaftHost(host))
    }

    /// To be registered with the interconnect for [`Service::Raft`].
    #[must_use]
    pub fn handler(&self) -> Rc<dyn Handler> {
        self.0.clone()
    }

    /// The groups that were found in the log and not taken up yet.
    #[must_use]
    pub fn recovered(&self) -> Vec<GroupId> {
        self.0.idle.borrow().keys().copied().collect()
    }

    /// Goes on with a group that was found in the log; `None` when it was not. The state machine is given the group's snapshot, and
    /// then the entries behind it as far as they are known to be committed.
    ///
    /// # Errors
    /// When the state machine can't read its snapshot.
    pub fn resume(&self, id: GroupId, machine: Rc<dyn StateMachine>) -> Result<Option<Group>, OpenError> {
        let Some(durable) = self.0.idle.borrow().get(&id).cloned() else { return Ok(None) };
        if durable.snapshot.index > LogIndex(0) {
            let restored = machine.restore(durable.snapshot.index, &durable.snapshot.data);
            restored.map_err(|message| OpenError::Snapshot { group: id, message })?;
            machine.members_changed(&durable.snapshot.configuration);
        }
        self.0.idle.borrow_mut().remove(&id);
        Ok(Some(self.start(id, durable, machine)))
    }

    /// Founds a group: on every founding member, with the same members and the same (first) state of the state machine.
    ///
    /// # Errors
    /// When the group exists here, or the log can't be written.
    pub async fn found(
        &self,
        id: GroupId,
        configuration: Configuration,
        machine: Rc<dyn StateMachine>,
    ) -> Result<Group, OpenError> {
        let durable = Durable::founding(configuration, machine.snapshot());
        self.create(id, &durable).await?;
        machine.members_changed(&configuration);
        Ok(self.start(id, durable, machine))
    }

    /// Makes a replica that knows nothing, for a node that the leader is about to add: it is sent everything.
    ///
    /// # Errors
    /// When the group exists here, or the log can't be written.
    pub async fn join(&self, id: GroupId, machine: Rc<dyn StateMachine>) -> Result<Group, OpenError> {
        let durable = Durable::joining();
        self.create(id, &durable).await?;
        Ok(self.start(id, durable, machine))
    }

    async fn create(&self, id: GroupId, durable: &Durable) -> Result<(), OpenError> {
        let host = &self.0;
        if host.members.borrow().contains_key(&id) || host.idle.borrow().contains_key(&id) {
            return Err(OpenError::Exists(id));
        }
        host.journal.append(Item { group: id, records: image_records(id, durable), image: true, number: None });
        host.journal.settled(id).await?;
        Ok(())
    }

    fn start(&self, id: GroupId, durable: Durable, machine: Rc<dyn StateMachine>) -> Group {
        let host = &self.0;
        let mut replica = Replica::new(host.replica_config(), durable);
        if replica.configuration().is_only_voter(host.node()) {
            replica.campaign();
        }
        let member = Member::new(id, replica, machine, host.reactor.now());
        host.members.borrow_mut().insert(id, member.clone());
        host.mark(id);
        Group::new(host.clone(), member)
    }

    /// Ends this node's part in all groups. What others wait for ends with [`RaftError::Closed`].
    pub fn close(&self) {
        let host = &self.0;
        host.closed.set(true);
        host.tasks.take().iter().for_each(TaskHandle::abort);
        host.journal.close();
        host.fail_all(&RaftError::Closed);
        let requests = std::mem::take(&mut *host.requests.borrow_mut());
        for (_, (_, sender)) in requests {
            drop(sender.send(Err(RaftError::Closed)));
        }
    }
}

impl Host {
    pub fn node(&self) -> NodeId {
        self.interconnect.node()
    }

    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    pub fn next_request(&self) -> RequestId {
        self.last_request.set(self.last_request.get() + 1);
        RequestId(self.last_request.get())
    }

    fn replica_config(&self) -> ReplicaConfig {
        let (config, tick_ms) = (&self.config, self.tick.as_millis() as u64);
        let headroom = self.journal.log().headroom() as usize;
        let low = (config.election_timeout_min / tick_ms).max(2);
        let heartbeat_ticks = (config.heartbeat_interval / tick_ms).clamp(1, low - 1);
        ReplicaConfig {
            election_ticks: (low as u32, (config.election_timeout_max / tick_ms).max(low) as u32),
            heartbeat_ticks: heartbeat_ticks as u32,
            entries_per_append_max: config.max_entries_per_append as usize,
            appends_in_flight_max: config.max_inflight_appends as usize,
            uncommitted_entries_max: config.max_uncommitted_entries,
            uncommitted_bytes_max: (headroom / 8).min(config.max_uncommitted_size.0 as usize),
            snapshot_threshold: config.snapshot_threshold,
            snapshot_bytes: (headroom / 8).min(4 << 20),
            log_retention: config.log_retention,
            ..ReplicaConfig::new(self.node(), self.reactor.random())
        }
    }

    /// Something is to be done for the group.
    pub fn mark(&self, group: GroupId) {
        self.marked.borrow_mut().insert(group);
        self.work.notify_all();
    }

    fn member(&self, group: GroupId) -> Option<Rc<Member>> {
        self.members.borrow().get(&group).cloned()
    }

    fn all_members(&self) -> Vec<Rc<Member>> {
        self.members.borrow().values().cloned().collect()
    }

    fn fail_all(&self, error: &RaftError) {
        self.all_members().iter().for_each(|member| member.fail(error.clone(), self));
    }

    /// Carries out what the marked groups want, and sends it.
    fn turn(&self) {
        loop {
            let marked = std::mem::take(&mut *self.marked.borrow_mut());
            if marked.is_empty() {
                break;
            }
            for group in marked {
                if let Some(member) = self.member(group) {
                    member.pump(self);
                }
            }
        }
        let frames = std::mem::take(&mut *self.frames.borrow_mut());
        for (to, body) in frames {
            self.send_messages(to, body);
        }
        let unreachable = std::mem::take(&mut *self.unreachable.borrow_mut());
        for peer in unreachable {
            for member in self.all_members() {
                member.replica.borrow_mut().unreachable(peer);
            }
        }
    }

    /// Adds a message to the frame for its receiver.
    pub fn queue_message(&self, group: GroupId, message: &Message) {
        let Some(to) = node_of(message.to) else { return };
        if is_snapshot(message) {
            // It goes behind what was said before it.
            if let Some(body) = self.frames.borrow_mut().remove(&to) {
                self.send_messages(to, body);
            }
            for body in codec::snapshot_parts(group, message) {
                self.send(to, SNAPSHOT_PART, body);
            }
            return;
        }
        let length = message_len(message);
        let full = self.frames.borrow().get(&to).is_some_and(|body| body.len() + length > BODY_BYTES_MAX);
        if full && let Some(body) = self.frames.borrow_mut().remove(&to) {
            self.send_messages(to, body);
        }
        encode_message(group, message, self.frames.borrow_mut().entry(to).or_default());
    }

    fn send_messages(&self, to: NodeId, body: Vec<u8>) {
        self.send(to, MESSAGES, body);
    }

    fn send(&self, to: NodeId, kind: u8, body: Vec<u8>) {
        let message = interconnect::Message { kind, ..Default::default() };
        if to == self.node() || self.interconnect.send(to, message, Body::Bytes(body)).is_err() {
            self.unreachable.borrow_mut().insert(to);
        }
    }

    /// Tells whoever has proposed something what became of it.
    pub fn complete(&self, waiter: Waiter, outcome: Result<Proposed, RaftError>) {
        match waiter {
            // Whoever does not wait any more needs no answer.
            Waiter::Here(sender) => drop(sender.send(outcome)),
            Waiter::There(node, request) => {
                let (mode, argument, body) = encode_outcome(outcome);
                let message = interconnect::Message { kind: PROPOSED, mode, request, argument, ..Default::default() };
                // If it does not arrive, the proposer hears that the connection is lost.
                let _ = self.interconnect.send(node, message, Body::Bytes(body));
            }
        }
    }

    /// Sends a proposal to the node that leads.
    pub fn forward(&self, group: GroupId, leader: NodeId, proposal: Vec<u8>, sender: Outcome) {
        let request = self.next_request();
        let message = interconnect::Message { kind: PROPOSE, request, argument: group.0, ..Default::default() };
        let full = self.requests.borrow().len() >= REQUESTS_MAX;
        if full {
            self.requests.borrow_mut().retain(|_, (_, sender)| !sender.is_closed());
        }
        let waiting = self.requests.borrow().len();
        let refused = if waiting >= REQUESTS_MAX {
            Some(ProposeError::Busy { uncommitted: waiting as u64 })
        } else if self.interconnect.send(leader, message, Body::Bytes(proposal)).is_err() {
            Some(ProposeError::NotLeader { leader: None })
        } else {
            None
        };
        match refused {
            Some(error) => drop(sender.send(Err(error.into()))),
            None => drop(self.requests.borrow_mut().insert(request, (leader, sender))),
        }
    }

    fn on_messages(&self, from: NodeId, body: &[u8]) -> Result<(), CodecFault> {
        let mut reader = Reader(body);
        while !reader.0.is_empty() {
            let (group, message) = decode_message(&mut reader, from, self.node())?;
            // A group that was not taken up yet hears again from its peers.
            if let Some(member) = self.member(group) {
                member.step(message, self);
            }
        }
        Ok(())
    }

    fn on_snapshot_part(&self, from: NodeId, body: &[u8]) -> Result<(), CodecFault> {
        let part = decode_snapshot_part(body)?;
        let Some(member) = self.member(part.group) else { return Ok(()) };
        let key = (from, part.group);
        let mut assembling = self.assembling.borrow_mut();
        if part.offset == 0 {
            let data = Vec::with_capacity(part.total);
            assembling.insert(key, Assembly { index: part.index, term: part.term, data });
        }
        let Some(assembly) = assembling.get_mut(&key) else { return Ok(()) };
        if (assembly.index, assembly.term, assembly.data.len()) != (part.index, part.term, part.offset) {
            assembling.remove(&key);
            return Err(CodecFault::Inconsistent("a part of a snapshot does not follow the one before it"));
        }
        assembly.data.extend_from_slice(part.bytes);
        if assembly.data.len() == part.total {
            let data = std::mem::take(&mut assembly.data);
            assembling.remove(&key);
            drop(assembling);
            member.step(part.message(data, from, self.node()), self);
        }
        Ok(())
    }

    fn on_proposed(&self, header: &Header, body: Vec<u8>) {
        if let Some((_, sender)) = self.requests.borrow_mut().remove(&header.request) {
            drop(sender.send(decode_outcome(header.mode, header.argument, body)));
        }
    }

    /// Time has passed.
    fn tick(&self) {
        for member in self.all_members() {
            member.tick(self);
        }
        for group in self.journal.due() {
            let durable = match self.member(group) {
                Some(member) => {
                    member.compact(self);
                    member.replica.borrow().durable()
                }
                None => match self.idle.borrow().get(&group) {
                    Some(durable) => durable.clone(),
                    None => continue,
                },
            };
            self.journal.append(Item { group, records: image_records(group, &durable), image: true, number: None });
        }
    }
}

impl Handler for Host {
    fn on_message(&self, from: NodeId, header: &Header, body: Body) {
        if self.closed.get() {
            return;
        }
        let body = match body {
            Body::Bytes(bytes) => bytes,
            Body::Empty | Body::Block(_) => Vec::new(),
        };
        let taken = match header.kind {
            MESSAGES => self.on_messages(from, &body),
            SNAPSHOT_PART => self.on_snapshot_part(from, &body),
            PROPOSE => {
                let waiter = Waiter::There(from, header.request);
                match self.member(GroupId(header.argument)) {
                    Some(member) if !body.is_empty() => member.propose(body, waiter, self),
                    _ => self.complete(waiter, Err(ProposeError::NotLeader { leader: None }.into())),
                }
                Ok(())
            }
            PROPOSED => {
                self.on_proposed(header, body);
                Ok(())
            }
            kind => Err(CodecFault::Kind(kind)),
        };
        if let Err(fault) = taken {
            tracing::warn!(%from, kind = header.kind, %fault, "a message about raft groups that can't be understood is dropped: does the node run another release?");
        }
    }

    fn on_peer_down(&self, node: NodeId) {
        self.assembling.borrow_mut().retain(|(from, _), _| *from != node);
        let lost: Vec<_> = self.requests.borrow_mut().extract_if(.., |_, (to, _)| *to == node).collect();
        for (_, (_, sender)) in lost {
            let why = "the connection to the leader was lost";
            drop(sender.send(Err(RaftError::Unknown { why })));
        }
        for member in self.all_members() {
            member.replica.borrow_mut().unreachable(node);
        }
    }
}

/// Outcomes of a forwarded proposal, with what goes into the argument.
const APPLIED: u8 = 0; // index
const NOT_LEADER: u8 = 1; // node that leads, 0 when unknown
const BUSY: u8 = 2; // uncommitted entries
const TRANSFERRING: u8 = 3;
const SUPERSEDED: u8 = 4; // term
const UNKNOWN: u8 = 5;
const TOO_LARGE: u8 = 6; // bytes

fn encode_outcome(outcome: Result<Proposed, RaftError>) -> (u8, u64, Vec<u8>) {
    match outcome {
        Ok(Proposed { index, answer }) => (APPLIED, index.0, answer),
        Err(RaftError::Refused(refused)) => match refused {
            ProposeError::NotLeader { leader } => (NOT_LEADER, leader.map_or(0, |node| u64::from(node.0)), Vec::new()),
            ProposeError::Busy { uncommitted } => (BUSY, uncommitted, Vec::new()),
            ProposeError::Transferring => (TRANSFERRING, 0, Vec::new()),
            ProposeError::TooLarge { bytes, .. } => (TOO_LARGE, bytes as u64, Vec::new()),
            ProposeError::ChangePending | ProposeError::BadChange(_) => (UNKNOWN, 0, Vec::new()),
        },
        Err(RaftError::Superseded { term }) => (SUPERSEDED, term.0, Vec::new()),
        Err(RaftError::Unknown { .. } | RaftError::TimedOut | RaftError::Closed | RaftError::Failed(_)) => {
            (UNKNOWN, 0, Vec::new())
        }
    }
}

fn decode_outcome(mode: u8, argument: u64, answer: Vec<u8>) -> Result<Proposed, RaftError> {
    match mode {
        APPLIED => Ok(Proposed { index: LogIndex(argument), answer }),
        NOT_LEADER => Err(ProposeError::NotLeader { leader: node_of(argument) }.into()),
        BUSY => Err(ProposeError::Busy { uncommitted: argument }.into()),
        TRANSFERRING => Err(ProposeError::Transferring.into()),
        TOO_LARGE => Err(ProposeError::TooLarge { bytes: argument as usize, maximum: codec::PROPOSAL_BYTES_MAX }.into()),
        SUPERSEDED => Err(RaftError::Superseded { term: Term(argument) }),
        _ => Err(RaftError::Unknown { why: "the leader's node has lost track of it" }),
    }
}

async fn run(host: Weak<Host>, work: Notify) {
    loop {
        let more = work.notified();
        match host.upgrade() {
            Some(host) => host.turn(),
            None => return,
        }
        more.await;
    }
}

async fn run_ticks(host: Weak<Host>, reactor: Reactor, tick: Duration) {
    let mut next = reactor.next_beat(tick);
    loop {
        reactor.sleep_until(next).await;
        let Some(host) = host.upgrade() else { return };
        let mut ticks = 0;
        while next <= reactor.now() && ticks < TICKS_LATE_MAX {
            host.tick();
            next = next + tick;
            ticks += 1;
        }
        next = next.max(reactor.next_beat(tick));
    }
}

async fn run_flush(host: Weak<Host>, journal: Rc<Journal>) {
    let weak = host.clone();
    let durable = move |group: GroupId, number| {
        if let Some(host) = weak.upgrade()
            && let Some(member) = host.member(group)
        {
            member.replica.borrow_mut().persisted(number);
            host.mark(group);
        }
    };
    let ended: Result<(), LogError> = journal.run_flush(durable).await;
    if let (Err(error), Some(host)) = (ended, host.upgrade()) {
        host.fail_all(&RaftError::Failed(error.to_string()));
    }
}
