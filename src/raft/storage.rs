//! A replica's log and snapshot in memory, as raft-rs reads them.
//!
//! Owned by one replica. Bounded by the replica: entries since the snapshot (`snapshot_threshold` and what is uncommitted)
//! and `log_retention` before it, for followers that are a little behind. It holds what has been handed out to be written,
//! which may not be durable yet; the replica knows how far it is.

use std::cell::Cell;
use std::collections::VecDeque;

use raft::eraftpb::{Entry, EntryType, HardState as RaftHardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::codec::{entry_len, raft_snapshot};
use super::types::{Configuration, HardState, LogIndex, Term, node_of, raft_id};

/// A state machine's state, and the entry that it stands for.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct SnapshotState {
    /// The last entry in it; 0 with nothing.
    pub index: LogIndex,
    /// That entry's term.
    pub term: Term,
    /// The configuration at that entry.
    pub configuration: Configuration,
    /// The state machine's bytes.
    pub data: Vec<u8>,
}

/// Everything about a replica that survives its node: what is read from the log at start.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Durable {
    /// Term, vote, and how far the log was committed at least.
    pub hard_state: HardState,
    /// The state that the entries build on.
    pub snapshot: SnapshotState,
    /// The entries behind the snapshot, without a gap.
    pub(super) entries: Vec<Entry>,
}

impl Durable {
    /// Of a replica that founds its group together with the other members. `data` is the state machine's first state; it
    /// and the configuration are the same on all of them.
    #[must_use]
    pub fn founding(configuration: Configuration, data: Vec<u8>) -> Durable {
        // The founding stands for entry 1, so that whoever joins later finds no entry 1 to begin with and gets the founding
        // configuration by a snapshot.
        let snapshot = SnapshotState { index: LogIndex(1), term: Term(1), configuration, data };
        let hard_state = HardState { term: Term(1), vote: None, commit: LogIndex(1) };
        Durable { hard_state, snapshot, entries: Vec::new() }
    }

    /// Of a replica that joins a group: it knows nothing, and takes part when a leader has sent it a snapshot.
    #[must_use]
    pub fn joining() -> Durable {
        Durable::default()
    }

    /// Of a replica that goes on without the others: its state machine has this state at `applied`. What stands behind it in
    /// the log will be applied, up to the first change of the members, which went by who is gone.
    #[must_use]
    pub(super) fn alone(former: Durable, configuration: Configuration, applied: LogIndex, data: Vec<u8>) -> Durable {
        let Durable { hard_state, snapshot, entries } = former;
        let term = match applied.0.checked_sub(snapshot.index.0) {
            // It was about to join, and has never heard of anything.
            _ if applied == LogIndex(0) => return Durable::founding(configuration, data),
            Some(0) | None => snapshot.term,
            Some(behind) => Term(entries[behind as usize - 1].term),
        };
        let kept = entries.into_iter().filter(|entry| entry.index > applied.0);
        let entries = kept.take_while(|entry| entry.get_entry_type() == EntryType::EntryNormal).collect();
        let snapshot = SnapshotState { index: applied, term, configuration, data };
        Durable { hard_state: HardState { term: Term(hard_state.term.0 + 1), vote: None, commit: applied }, snapshot, entries }
    }

    /// The last entry of the log.
    #[must_use]
    pub fn last_index(&self) -> LogIndex {
        LogIndex(self.snapshot.index.0 + self.entries.len() as u64)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Entries {
    snapshot: Snapshot,
    /// Configuration as of the last applied entry.
    configuration: Configuration,
    hard_state: HardState,
    /// The entry before the first of `entries`.
    base: (u64, u64),
    entries: VecDeque<Entry>,
    /// Bytes of the entries behind the snapshot.
    tail_bytes: usize,
    /// Most entries of one message to a follower.
    entries_per_append_max: usize,
    /// A member must be sent a snapshot, and the one that is there is from before it became one: it would not take it.
    newer_wanted: Cell<bool>,
}

impl Entries {
    pub fn new(durable: Durable, entries_per_append_max: usize) -> Entries {
        let SnapshotState { index, term, configuration, data } = durable.snapshot;
        let mut hard_state = durable.hard_state;
        let last = index.0 + durable.entries.len() as u64;
        // The end of a write that was torn may be missing, with a commit index from beyond it.
        hard_state.commit = LogIndex(hard_state.commit.0.clamp(index.0, last));
        Entries {
            snapshot: raft_snapshot(index, term, &configuration, data),
            configuration,
            hard_state,
            base: (index.0, term.0),
            tail_bytes: durable.entries.iter().map(entry_len).sum(),
            entries: durable.entries.into(),
            entries_per_append_max,
            newer_wanted: Cell::new(false),
        }
    }

    /// Whether a snapshot is wanted for a member that the last one does not know.
    pub fn newer_wanted(&self) -> bool {
        self.newer_wanted.get()
    }

    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    pub fn set_hard_state(&mut self, hard_state: HardState) {
        assert!(hard_state.term >= self.hard_state.term, "back to {} from {}", hard_state.term, self.hard_state.term);
        self.hard_state = hard_state;
    }

    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    pub fn set_configuration(&mut self, configuration: Configuration) {
        self.configuration = configuration;
    }

    pub fn snapshot_index(&self) -> u64 {
        self.snapshot.get_metadata().index
    }

    pub fn first(&self) -> u64 {
        self.base.0 + 1
    }

    pub fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    /// Bytes of the entries behind the snapshot.
    pub fn tail_bytes(&self) -> usize {
        self.tail_bytes
    }

    /// Takes entries over; those that stand in their place or behind it go.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let snapshot = self.snapshot_index();
        assert!(
            first.index > snapshot && first.index <= self.last() + 1,
            "entries from {} on, in a log of {}..={} over a snapshot at {snapshot}",
            first.index,
            self.first(),
            self.last()
        );
        let keep = (first.index - self.first()) as usize;
        self.tail_bytes -= self.entries.drain(keep..).map(|entry| entry_len(&entry)).sum::<usize>();
        self.tail_bytes += entries.iter().map(entry_len).sum::<usize>();
        self.entries.extend(entries.iter().cloned());
    }

    /// Replaces everything by a leader's snapshot.
    pub fn install(&mut self, snapshot: Snapshot) {
        let metadata = snapshot.get_metadata();
        self.base = (metadata.index, metadata.term);
        self.configuration = Configuration::from_conf_state(metadata.get_conf_state());
        self.entries.clear();
        self.tail_bytes = 0;
        self.snapshot = snapshot;
    }

    /// Takes over the state machine's own snapshot at the applied entry `index`, and forgets entries up to `retain` before it.
    pub fn compact(&mut self, index: u64, data: Vec<u8>, retain: u64) {
        assert!(index >= self.snapshot_index() && index <= self.last(), "a snapshot at {index} of a log up to {}", self.last());
        let term = self.term_at(index).expect("an applied entry of the log");
        let covered = index - self.snapshot_index().max(self.base.0);
        let from = (self.snapshot_index() - self.base.0) as usize;
        self.tail_bytes -= self.entries.range(from..from + covered as usize).map(entry_len).sum::<usize>();
        self.snapshot = raft_snapshot(LogIndex(index), Term(term), &self.configuration, data);
        self.newer_wanted.set(false);
        let base = index.saturating_sub(retain);
        if base > self.base.0 {
            let term = self.term_at(base).expect("an entry of the log");
            self.entries.drain(..(base - self.base.0) as usize);
            self.base = (base, term);
        }
    }

    /// Everything that must survive, as it stands.
    pub fn durable(&self) -> Durable {
        let metadata = self.snapshot.get_metadata();
        let tail = (metadata.index - self.base.0) as usize;
        Durable {
            hard_state: self.hard_state,
            snapshot: SnapshotState {
                index: LogIndex(metadata.index),
                term: Term(metadata.term),
                configuration: Configuration::from_conf_state(metadata.get_conf_state()),
                data: self.snapshot.data.to_vec(),
            },
            entries: self.entries.range(tail..).cloned().collect(),
        }
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        match index.checked_sub(self.base.0)? {
            0 => Some(self.base.1),
            at => self.entries.get(at as usize - 1).map(|entry| entry.term),
        }
    }
}

impl Storage for Entries {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let mut hard_state = RaftHardState::default();
        hard_state.term = self.hard_state.term.0;
        hard_state.vote = self.hard_state.vote.map_or(0, raft_id);
        hard_state.commit = self.hard_state.commit.0;
        Ok(RaftState::new(hard_state, self.configuration.to_conf_state()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(StorageError::Compacted.into());
        }
        assert!(high <= self.last() + 1, "entries up to {high} of a log that ends at {}", self.last());
        let (from, to) = ((low - self.first()) as usize, (high - self.first()) as usize);
        let range = self.entries.range(from..to);
        let max_size = max_size.into();
        if max_size.is_none() && !context.can_async() {
            // raft-rs asks like this only to see whether a change of the configuration waits to be applied before it
            // campaigns, and 0.7 wants the whole range for that (its #530): one such entry, or none, tells it as much.
            let change = range.clone().find(|entry| entry.get_entry_type() != EntryType::EntryNormal);
            return Ok(change.into_iter().cloned().collect());
        }
        let count_max = if context.can_async() { self.entries_per_append_max } else { usize::MAX };
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        for entry in range.take(count_max) {
            bytes += entry_len(entry) as u64;
            if !entries.is_empty() && max_size.is_some_and(|max| bytes > max) {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.base.0 {
            return Err(StorageError::Compacted.into());
        }
        self.term_at(index).ok_or_else(|| StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let members = Configuration::from_conf_state(self.snapshot.get_metadata().get_conf_state());
        if !node_of(to).is_some_and(|node| members.contains(node)) {
            self.newer_wanted.set(true);
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        if self.snapshot_index() == 0 || self.snapshot_index() < request_index {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        Ok(self.snapshot.clone())
    }
}
