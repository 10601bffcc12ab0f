//! This node's part in one group: its replica, its state machine, and who waits for what.
//!
//! Owned by the shard's thread. [`Member::pump`] carries out what the replica asks for; it is called by the host when something has
//! happened. Bounds: [`QUEUE_MAX`] proposals and reads that wait to be taken up; what was proposed is bounded by the replica.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::error::{ProposeError, RaftError, StepError};
use super::host::Host;
use super::journal::Item;
use super::machine::{ANSWER_BYTES_MAX, StateMachine};
use super::record::{append_records, image_records};
use super::replica::{Committed, Content, Replica, Write};
use super::types::{ConfigurationChange, GroupId, LogIndex, ProposalId, Term};
use crate::ids::{NodeId, RequestId};
use crate::reactor::Instant;
use crate::reactor::sync::{Notify, OneshotSender};

/// Proposals and reads that may wait to be taken up in the next turn.
pub(super) const QUEUE_MAX: usize = 10_000;

/// What became of a proposal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposed {
    /// Where it stands in the log.
    pub index: LogIndex,
    /// The state machine's answer. Empty for a change of the members.
    pub answer: Vec<u8>,
}

/// Who asked for a proposal.
pub(super) enum Waiter {
    /// A task of this shard.
    Here(OneshotSender<Result<Proposed, RaftError>>),
    /// Another node's, by its request.
    There(NodeId, RequestId),
}

/// A read that waits for the leader's word, with all that were asked meanwhile.
struct ReadRound {
    context: Vec<u8>,
    asked: Instant,
    senders: Vec<OneshotSender<LogIndex>>,
}

/// See the module.
pub(super) struct Member {
    pub id: GroupId,
    pub replica: RefCell<Replica>,
    pub machine: Rc<dyn StateMachine>,
    proposals: RefCell<VecDeque<(Vec<u8>, Waiter)>>,
    /// What was proposed here, by index.
    pending: RefCell<BTreeMap<LogIndex, (Term, Waiter)>>,
    reads_asked: RefCell<Vec<OneshotSender<LogIndex>>>,
    reads: RefCell<VecDeque<ReadRound>>,
    reads_answered: RefCell<Vec<(LogIndex, Vec<OneshotSender<LogIndex>>)>>,
    /// Who leads, what is applied or who belongs to the group has changed.
    pub changed: Notify,
    pub failed: RefCell<Option<RaftError>>,
    last_snapshot: Cell<Instant>,
    /// The state machine's state is larger than the log bears.
    oversized: Cell<bool>,
}

impl Member {
    pub fn new(id: GroupId, replica: Replica, machine: Rc<dyn StateMachine>, now: Instant) -> Rc<Member> {
        Rc::new(Member {
            id,
            replica: RefCell::new(replica),
            machine,
            proposals: RefCell::default(),
            pending: RefCell::default(),
            reads_asked: RefCell::default(),
            reads: RefCell::default(),
            reads_answered: RefCell::default(),
            changed: Notify::new(),
            failed: RefCell::new(None),
            last_snapshot: Cell::new(now),
            oversized: Cell::new(false),
        })
    }

    /// Queues a proposal for this replica, which leads as far as is known.
    pub fn propose(&self, proposal: Vec<u8>, waiter: Waiter, host: &Host) {
        if let Some(failed) = self.failed.borrow().clone() {
            // To another node: that it was not proposed here, and that it may ask again.
            let error = match waiter {
                Waiter::Here(_) => failed,
                Waiter::There(..) => ProposeError::NotLeader { leader: None }.into(),
            };
            return host.complete(waiter, Err(error));
        }
        let waiting = self.proposals.borrow().len();
        if waiting >= QUEUE_MAX || self.oversized.get() {
            return host.complete(waiter, Err(ProposeError::Busy { uncommitted: waiting as u64 }.into()));
        }
        self.proposals.borrow_mut().push_back((proposal, waiter));
        host.mark(self.id);
    }

    pub fn change_members(&self, change: &ConfigurationChange, waiter: Waiter, host: &Host) {
        let proposed = self.replica.borrow_mut().change_members(change);
        match proposed {
            Ok(id) => self.await_outcome(id, waiter, host),
            Err(error) => host.complete(waiter, Err(error.into())),
        }
        host.mark(self.id);
    }

    pub fn read(&self, sender: OneshotSender<LogIndex>, host: &Host) -> Result<(), RaftError> {
        if self.reads_asked.borrow().len() >= QUEUE_MAX || self.reads.borrow().len() >= QUEUE_MAX {
            return Err(ProposeError::Busy { uncommitted: QUEUE_MAX as u64 }.into());
        }
        self.reads_asked.borrow_mut().push(sender);
        host.mark(self.id);
        Ok(())
    }

    /// A message for the replica.
    pub fn step(&self, message: raft::eraftpb::Message, host: &Host) {
        if self.failed.borrow().is_some() {
            return;
        }
        let stepped = self.replica.borrow_mut().step(message);
        if let Err(error @ StepError::LogLost { .. }) = stepped {
            self.fail(RaftError::Failed(error.to_string()), host);
        }
        host.mark(self.id);
    }

    /// A tick: time for the replica, and for reads whose word was lost.
    pub fn tick(&self, host: &Host) {
        if self.failed.borrow().is_some() {
            return;
        }
        self.replica.borrow_mut().tick();
        let now = host.reactor.now();
        let mut again = Vec::new();
        self.reads.borrow_mut().retain_mut(|round| {
            round.senders.retain(|sender| !sender.is_closed());
            if now.since(round.asked) >= host.read_retry {
                round.asked = now;
                again.push(round.context.clone());
            }
            !round.senders.is_empty()
        });
        for context in again {
            self.replica.borrow_mut().read_index(context);
        }
        let replica = self.replica.borrow();
        if replica.has_outputs() || (replica.wants_snapshot() && !self.oversized.get()) {
            host.mark(self.id);
        }
    }

    /// Stops taking part.
    pub fn fail(&self, error: RaftError, host: &Host) {
        if self.failed.borrow().is_some() {
            return;
        }
        if error != RaftError::Closed {
            tracing::error!(group = %self.id, "{error}");
        }
        *self.failed.borrow_mut() = Some(error.clone());
        let pending = std::mem::take(&mut *self.pending.borrow_mut());
        let queued = std::mem::take(&mut *self.proposals.borrow_mut());
        let waiters = pending.into_values().map(|(_, waiter)| waiter).chain(queued.into_iter().map(|(_, waiter)| waiter));
        waiters.for_each(|waiter| host.complete(waiter, Err(error.clone())));
        drop(std::mem::take(&mut *self.reads_asked.borrow_mut()));
        drop(std::mem::take(&mut *self.reads.borrow_mut()));
        drop(std::mem::take(&mut *self.reads_answered.borrow_mut()));
        self.changed.notify_all();
    }

    /// Carries out everything that is to be done now.
    pub fn pump(&self, host: &Host) {
        if self.failed.borrow().is_some() {
            return;
        }
        self.propose_queued(host);
        self.ask_reads(host);
        loop {
            let outputs = self.replica.borrow_mut().outputs();
            if outputs.is_empty() {
                break;
            }
            for message in &outputs.messages {
                host.queue_message(self.id, message);
            }
            for write in outputs.writes {
                host.journal.append(self.item(write));
            }
            for read in outputs.reads {
                self.read_answered(&read.context, read.index);
            }
            self.apply(outputs.committed, host);
            if let Some(leadership) = outputs.leadership {
                tracing::debug!(group = %self.id, role = ?leadership.role, leader = ?leadership.leader, term = leadership.term.0, "leadership");
                self.machine.leadership_changed(leadership);
                self.changed.notify_all();
            }
            if self.failed.borrow().is_some() {
                return;
            }
        }
        self.resolve_reads();
        let wanted = self.replica.borrow().wants_snapshot() && !self.oversized.get();
        let applied = self.replica.borrow().applied_index();
        let late = host.reactor.now().since(self.last_snapshot.get()) >= host.snapshot_interval;
        if wanted || (late && applied > self.replica.borrow().snapshot_index()) {
            self.compact(host);
        }
    }

    fn item(&self, write: Write) -> Item {
        let group = self.id;
        match write {
            Write::Append { number, hard_state, entries } => {
                let records = append_records(group, &hard_state, &entries);
                Item { group, records, image: false, number: Some(number) }
            }
            Write::Install { number, durable } => {
                Item { group, records: image_records(group, &durable), image: true, number: Some(number) }
            }
        }
    }

    fn propose_queued(&self, host: &Host) {
        loop {
            let batch: Vec<_> = {
                let mut queue = self.proposals.borrow_mut();
                let count = queue.len().min(host.proposals_per_batch);
                queue.drain(..count).collect()
            };
            if batch.is_empty() {
                return;
            }
            let (proposals, waiters): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            // Together they may be more than is allowed where each of them would not be.
            let one_by_one = proposals.len() > 1;
            let copies = if one_by_one { proposals.clone() } else { Vec::new() };
            let together = self.replica.borrow_mut().propose(proposals);
            match together {
                Ok(first) => {
                    for (at, waiter) in waiters.into_iter().enumerate() {
                        let id = ProposalId { term: first.term, index: LogIndex(first.index.0 + at as u64) };
                        self.await_outcome(id, waiter, host);
                    }
                }
                Err(_) if one_by_one => {
                    for (proposal, waiter) in copies.into_iter().zip(waiters) {
                        let proposed = self.replica.borrow_mut().propose(vec![proposal]);
                        match proposed {
                            Ok(id) => self.await_outcome(id, waiter, host),
                            Err(error) => host.complete(waiter, Err(error.into())),
                        }
                    }
                }
                Err(error) => waiters.into_iter().for_each(|waiter| host.complete(waiter, Err(error.into()))),
            }
        }
    }

    fn await_outcome(&self, id: ProposalId, waiter: Waiter, host: &Host) {
        let before = self.pending.borrow_mut().insert(id.index, (id.term, waiter));
        // An entry of an earlier term stood there, and this one's leader has replaced it.
        if let Some((term, waiter)) = before {
            host.complete(waiter, Err(RaftError::Superseded { term }));
        }
    }

    fn ask_reads(&self, host: &Host) {
        let senders = std::mem::take(&mut *self.reads_asked.borrow_mut());
        if senders.is_empty() {
            return;
        }
        let mut context = vec![host.node().0];
        context.extend_from_slice(&host.reactor.random().to_le_bytes());
        context.extend_from_slice(&host.next_request().0.to_le_bytes());
        self.reads.borrow_mut().push_back(ReadRound { context: context.clone(), asked: host.reactor.now(), senders });
        self.replica.borrow_mut().read_index(context);
    }

    fn read_answered(&self, context: &[u8], index: LogIndex) {
        let mut reads = self.reads.borrow_mut();
        if let Some(at) = reads.iter().position(|round| round.context == context)
            && let Some(round) = reads.remove(at)
        {
            self.reads_answered.borrow_mut().push((index, round.senders));
        }
    }

    fn resolve_reads(&self) {
        let applied = self.replica.borrow().applied_index();
        let answered = std::mem::take(&mut *self.reads_answered.borrow_mut());
        for (index, senders) in answered {
            if index > applied {
                self.reads_answered.borrow_mut().push((index, senders));
            } else {
                // Whoever does not wait any more needs no answer.
                for sender in senders {
                    let _ = sender.send(applied);
                }
            }
        }
    }

    fn apply(&self, committed: Vec<Committed>, host: &Host) {
        let configuration = *self.replica.borrow().configuration();
        let mut applied = None;
        for committed in committed {
            match committed {
                Committed::Snapshot(snapshot) => {
                    if let Err(message) = self.machine.restore(snapshot.index, &snapshot.data) {
                        return self.fail(RaftError::Failed(format!("the leader's snapshot can't be read: {message}")), host);
                    }
                    self.last_snapshot.set(host.reactor.now());
                    self.overtaken_until(snapshot.index, host);
                    applied = Some(snapshot.index);
                }
                Committed::Entry { index, term, content } => {
                    let answer = match content {
                        Content::Proposal(proposal) => self.machine.apply(index, &proposal),
                        Content::Nothing | Content::Change(_) => Vec::new(),
                    };
                    assert!(answer.len() <= ANSWER_BYTES_MAX, "an answer of {} bytes to a proposal of {}", answer.len(), self.id);
                    let waiter = self.pending.borrow_mut().remove(&index);
                    if let Some((proposed, waiter)) = waiter {
                        let outcome = match proposed == term {
                            true => Ok(Proposed { index, answer }),
                            false => Err(RaftError::Superseded { term: proposed }),
                        };
                        host.complete(waiter, outcome);
                    }
                    applied = Some(index);
                }
            }
        }
        if let Some(index) = applied {
            self.replica.borrow_mut().applied(index);
            let now = *self.replica.borrow().configuration();
            if now != configuration {
                self.machine.members_changed(&now);
            }
            self.changed.notify_all();
        }
    }

    /// A snapshot has taken the place of what was proposed here up to its index: what became of it can't be told.
    fn overtaken_until(&self, index: LogIndex, host: &Host) {
        let mut pending = self.pending.borrow_mut();
        let later = pending.split_off(&LogIndex(index.0 + 1));
        let overtaken = std::mem::replace(&mut *pending, later);
        drop(pending);
        for (_, (_, waiter)) in overtaken {
            let why = "this node was sent the state of the group in place of the entries that it had missed";
            host.complete(waiter, Err(RaftError::Unknown { why }));
        }
    }

    /// Takes a snapshot of the state machine, so that the log of the group can be shortened.
    pub fn compact(&self, host: &Host) {
        self.last_snapshot.set(host.reactor.now());
        let data = self.machine.snapshot();
        let oversized = data.len() > host.snapshot_bytes_max;
        if oversized && !self.oversized.get() {
            tracing::error!(
                group = %self.id, bytes = data.len(), maximum = host.snapshot_bytes_max,
                "the group's state is larger than this volume's redo areas bear: it takes no more proposals; a volume with larger redo areas is needed"
            );
        }
        self.oversized.set(oversized);
        if !oversized {
            self.replica.borrow_mut().compact(data);
        }
    }
}
