//! Raft groups: the cluster's control group, and what replicated partitions will stand on.
//!
//! [`replica`] is one member's state machine around raft-rs, without I/O. [`RaftHost`] runs the replicas of a shard: it ticks
//! them, sends their messages, several groups' in one frame, and writes their entries into the shard's log together with
//! the redo. [`Group`] is what its users see. Everything of a group on a node belongs to one shard. `docs/raft.md` tells how
//! the parts go together.

pub mod codec;
pub mod error;
pub mod group;
pub mod host;
mod journal;
pub mod machine;
mod member;
pub mod record;
pub mod replica;
mod storage;
mod trace;
pub mod types;

pub use error::{OpenError, ProposeError, RaftError, StepError};
pub use group::{Group, GroupStatus};
pub use host::{HostParts, RaftHost, recover};
pub use machine::StateMachine;
pub use member::Proposed;
pub use record::Recovery;
pub use replica::{Replica, ReplicaConfig, ReplicaStatus};
pub use storage::{Durable, SnapshotState};
pub use types::{
    Configuration, ConfigurationChange, GroupId, HardState, Leadership, LogIndex, MemberChange, ProposalId, Role, Term,
};

#[cfg(test)]
mod tests;
