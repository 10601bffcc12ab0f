//! What goes into a replica and what comes out of it, as plain values.

use raft::eraftpb::{Entry, Message};

use crate::ids::NodeId;
use crate::raft::storage::{Durable, SnapshotState};
use crate::raft::types::{Configuration, ConfigurationChange, HardState, Leadership, LogIndex, Term};

/// What a replica is told when it is made.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// This node.
    pub node: NodeId,
    /// Ticks without a leader after which an election may begin, at least and at most: drawn anew for each wait.
    pub election_ticks: (u32, u32),
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: u32,
    /// Most entries of one message.
    pub entries_per_append_max: usize,
    /// Bytes of entries after which a message is full.
    pub append_bytes: usize,
    /// Messages with entries on their way to one follower.
    pub appends_in_flight_max: usize,
    /// Proposals that may wait to be committed.
    pub uncommitted_entries_max: u64,
    /// Bytes of such proposals.
    pub uncommitted_bytes_max: usize,
    /// Applied entries behind the snapshot after which a new one is wanted.
    pub snapshot_threshold: u64,
    /// Bytes of entries behind the snapshot after which a new one is wanted.
    pub snapshot_bytes: usize,
    /// Entries kept before a snapshot, for followers that are a little behind.
    pub log_retention: u64,
    /// Where the replica's random numbers begin.
    pub seed: u64,
}

impl ReplicaConfig {
    /// Elections after 15 to 30 ticks, heartbeats every 5.
    #[must_use]
    pub fn new(node: NodeId, seed: u64) -> ReplicaConfig {
        ReplicaConfig {
            node,
            election_ticks: (15, 30),
            heartbeat_ticks: 5,
            entries_per_append_max: 100,
            append_bytes: 32 * 1024,
            appends_in_flight_max: 64,
            uncommitted_entries_max: 100_000,
            uncommitted_bytes_max: 4 << 20,
            snapshot_threshold: 10_000,
            snapshot_bytes: 4 << 20,
            log_retention: 10_000,
            seed,
        }
    }
}

/// Names a write that a replica has asked for. Writes become durable in their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct WriteNumber(pub(super) u64);

/// What must be made durable, in the order in which it was asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Hard state and entries, which replace whatever stands at their indices and behind.
    Append {
        /// To be given to [`Replica::persisted`].
        number: WriteNumber,
        /// Goes with the entries.
        hard_state: HardState,
        /// May be none.
        entries: Vec<Entry>,
    },
    /// A leader's snapshot replaces everything.
    Install {
        /// To be given to [`Replica::persisted`].
        number: WriteNumber,
        /// All of the replica.
        durable: Durable,
    },
}

/// What the state machine is told next.
#[derive(Clone, Debug, PartialEq)]
pub enum Committed {
    /// Replace the state by a leader's snapshot.
    Snapshot(SnapshotState),
    /// Apply an entry.
    Entry {
        /// Where it stands.
        index: LogIndex,
        /// The term that it was proposed in.
        term: Term,
        /// What it is.
        content: Content,
    },
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// A leader's first: nothing for the state machine.
    Nothing,
    /// A proposal.
    Proposal(Vec<u8>),
    /// A change of the members, which takes effect when this is applied.
    Change(ConfigurationChange),
}

/// An answered read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadAnswer {
    /// The name that it was asked by.
    pub context: Vec<u8>,
    /// Once this is applied, the read sees everything that was committed before it was asked.
    pub index: LogIndex,
}

/// What is to be done, in any order between the lists, and in order within each.
#[derive(Debug, Default)]
pub struct Outputs {
    /// To be sent now. Losing one is allowed.
    pub messages: Vec<Message>,
    /// To be made durable.
    pub writes: Vec<Write>,
    /// For the state machine; then [`Replica::applied`].
    pub committed: Vec<Committed>,
    /// Reads that may go on.
    pub reads: Vec<ReadAnswer>,
    /// Who leads has changed.
    pub leadership: Option<Leadership>,
}

impl Outputs {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
            && self.writes.is_empty()
            && self.committed.is_empty()
            && self.reads.is_empty()
            && self.leadership.is_none()
    }
}

/// How a follower stands, as its leader knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerProgress {
    /// The follower.
    pub node: NodeId,
    /// It holds the log up to here.
    pub matched: LogIndex,
    /// It is being sent a snapshot.
    pub in_snapshot: bool,
    /// It answered lately.
    pub active: bool,
}

/// How a replica stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaStatus {
    /// Who leads.
    pub leadership: Leadership,
    /// The members, as of the applied entries.
    pub configuration: Configuration,
    /// Committed as far as this replica knows.
    pub committed: LogIndex,
    /// Applied here.
    pub applied: LogIndex,
    /// End of the log here.
    pub last: LogIndex,
    /// The entry that the snapshot stands for.
    pub snapshot: LogIndex,
    /// Of the other members; only with the leader.
    pub peers: Vec<PeerProgress>,
}
