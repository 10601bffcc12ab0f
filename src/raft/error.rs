//! What can go wrong with Raft, in words that tell an operator what happened, to what, and what to do now.

use std::fmt;

use super::codec::CodecFault;
use super::types::{GroupId, LogIndex, Term};
use crate::ids::{Lsn, NodeId};
use crate::wal::LogError;

/// Why a replica does not take a proposal now. Nothing was proposed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProposeError {
    /// Another node leads, or nobody that is known.
    NotLeader {
        /// Whom to ask instead.
        leader: Option<NodeId>,
    },
    /// Too much waits for the other members already: try again later.
    Busy {
        /// Entries that are not committed.
        uncommitted: u64,
    },
    /// Leadership is being handed over: try again with the next leader.
    Transferring,
    /// More bytes than a proposal may have.
    TooLarge {
        /// Its bytes.
        bytes: usize,
        /// Most that it may have.
        maximum: usize,
    },
    /// An earlier change of the configuration is not finished.
    ChangePending,
    /// The members can't be changed like this.
    BadChange(&'static str),
}

impl fmt::Display for ProposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProposeError::NotLeader { leader: Some(leader) } => write!(f, "{leader} leads the group: ask there"),
            ProposeError::NotLeader { leader: None } => {
                write!(f, "the group has no leader at the moment: try again; if it stays so, most of its members are gone")
            }
            ProposeError::Busy { uncommitted } => {
                write!(
                    f,
                    "{uncommitted} entries wait for the other members already: try again later, look at their disks and network"
                )
            }
            ProposeError::Transferring => write!(f, "the group's leadership is being handed over: try again"),
            ProposeError::TooLarge { bytes, maximum } => write!(f, "a proposal of {bytes} bytes; at most {maximum} are allowed"),
            ProposeError::ChangePending => write!(f, "an earlier change of the group's members is not finished: try again"),
            ProposeError::BadChange(why) => write!(f, "the group's members can't be changed like this: {why}"),
        }
    }
}

impl std::error::Error for ProposeError {}

/// A message that a replica can't take. It is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StepError {
    /// The sender has reason to believe that this replica holds entries that it does not have: its log was lost or set back.
    /// A replica that goes on would break promises that it made before.
    LogLost {
        /// What the leader knows to be here.
        committed: LogIndex,
        /// What is here.
        last: LogIndex,
    },
    /// Not for this replica, or an answer from a node that is no member.
    Stray,
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StepError::LogLost { committed, last } => write!(
                f,
                "the leader knows that this node once held the group's log up to {committed}, and it ends at {last}: this node's log \
                 was lost or set back to an older copy. Remove the node from the cluster and join it anew"
            ),
            StepError::Stray => write!(f, "a message that is not for this replica"),
        }
    }
}

impl std::error::Error for StepError {}

/// Why something asked of a group did not happen, or is not known to have happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RaftError {
    /// It was not proposed.
    Refused(ProposeError),
    /// It was proposed, and another leader's entry took its place: it did not happen, and won't.
    Superseded {
        /// The term that it was proposed in.
        term: Term,
    },
    /// It was proposed, and nobody knows whether it will happen: the leader or the way to it was lost. Whoever repeats it must
    /// be able to bear that it happens twice.
    Unknown {
        /// What was lost.
        why: &'static str,
    },
    /// No answer in time. Of a proposal: it may still happen.
    TimedOut,
    /// The group ended on this node.
    Closed,
    /// The group has stopped on this node after a fault; it takes part in nothing any more.
    Failed(String),
}

impl fmt::Display for RaftError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RaftError::Refused(refused) => write!(f, "{refused}"),
            RaftError::Superseded { term } => {
                write!(
                    f,
                    "the leader of {term} lost its office before the proposal was agreed on: it has not happened; try again"
                )
            }
            RaftError::Unknown { why } => {
                write!(f, "{why}: the proposal may or may not happen; look at the group's state before repeating it")
            }
            RaftError::TimedOut => {
                write!(f, "no agreement in time: most of the group's members don't answer; what was proposed may still happen")
            }
            RaftError::Closed => write!(f, "the group has ended on this node"),
            RaftError::Failed(why) => write!(f, "the group has stopped on this node: {why}"),
        }
    }
}

impl std::error::Error for RaftError {}

impl From<ProposeError> for RaftError {
    fn from(error: ProposeError) -> Self {
        RaftError::Refused(error)
    }
}

/// Why a shard's Raft groups can't be opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OpenError {
    /// The log can't be read or written.
    Log(LogError),
    /// A record's content can't be understood.
    Record {
        /// Where it begins.
        lsn: Lsn,
        /// What is wrong with it.
        fault: CodecFault,
    },
    /// The group exists already.
    Exists(GroupId),
    /// The state machine refuses the snapshot.
    Snapshot {
        /// The group.
        group: GroupId,
        /// What it said.
        message: String,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Log(error) => write!(f, "Raft's records: {error}"),
            OpenError::Record { lsn, fault } => write!(
                f,
                "Raft's record at {lsn}: {fault}. A newer version has written it, or this is a bug: start the newer rusty-db-server"
            ),
            OpenError::Exists(group) => write!(f, "{group} exists on this node already"),
            OpenError::Snapshot { group, message } => {
                write!(f, "the snapshot of {group} can't be read: {message}; start the rusty-db-server that has written it")
            }
        }
    }
}

impl std::error::Error for OpenError {}

impl From<LogError> for OpenError {
    fn from(error: LogError) -> Self {
        OpenError::Log(error)
    }
}
