//! The values that Raft speaks of, as types. Plain data, owned by whoever holds it.

use std::fmt;

use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState};

use crate::fusion::NodeSet;
use crate::ids::{NODES_MAX, NodeId, shown};

/// A Raft group: the cluster's control group, or a replicated partition. Never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GroupId(pub u64);

impl GroupId {
    /// The group that all nodes of the cluster belong to: members, epochs, roles, settings.
    pub const CONTROL: GroupId = GroupId(1);
}

/// Position in a group's log, counted from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogIndex(pub u64);

/// Raft's term: at most one leader in each. Never goes back on a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Term(pub u64);

shown!(GroupId => "raft group {}", LogIndex => "index {}", Term => "term {}");

/// A proposal that the leader has taken into its log. It is committed when the entry at `index` is, in the same `term`;
/// when another term's entry is committed there, it never happened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ProposalId {
    /// The leader's term.
    pub term: Term,
    /// Where it stands.
    pub index: LogIndex,
}

/// What a replica is in its group at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Role {
    /// Follows the leader, and would stand for election without one.
    #[default]
    Follower,
    /// Asks whether an election could be won, without disturbing anybody.
    PreCandidate,
    /// Stands for election.
    Candidate,
    /// Takes proposals.
    Leader,
    /// Follows without a vote: an observer, or a node on its way in.
    Learner,
}

/// Who leads, as far as this replica knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Leadership {
    /// What this replica is.
    pub role: Role,
    /// The leader of the term, once it was heard of.
    pub leader: Option<NodeId>,
    /// The term.
    pub term: Term,
}

/// What a replica must never forget.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HardState {
    /// The highest term that it has been in.
    pub term: Term,
    /// Whom it has voted for in that term.
    pub vote: Option<NodeId>,
    /// The commit index when this was written. It may have been higher since.
    pub commit: LogIndex,
}

impl HardState {
    /// Takes over what is newer in `other`. Terms never go back, and a vote of a term is never changed.
    pub fn advance(&mut self, other: HardState) {
        if other.term > self.term {
            (self.term, self.vote) = (other.term, other.vote);
        } else if other.term == self.term {
            self.vote = self.vote.or(other.vote);
        }
        self.commit = self.commit.max(other.commit);
    }
}

/// Who belongs to a group. While `outgoing` is not empty two configurations hold together (joint consensus), and every
/// decision takes a majority of both.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Configuration {
    /// Members with a vote.
    pub voters: NodeSet,
    /// Members without one.
    pub learners: NodeSet,
    /// The voters of the configuration that is being left.
    pub outgoing: NodeSet,
    /// Voters of the configuration being left that become learners.
    pub learners_next: NodeSet,
    /// The leader leaves the joint configuration by itself.
    pub auto_leave: bool,
}

impl Configuration {
    /// A settled configuration.
    #[must_use]
    pub fn of(voters: impl IntoIterator<Item = NodeId>, learners: impl IntoIterator<Item = NodeId>) -> Configuration {
        let (voters, learners) = (voters.into_iter().collect(), learners.into_iter().collect());
        Configuration { voters, learners, ..Configuration::default() }
    }

    /// Whether two configurations hold together.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether the node belongs to the group in whichever way.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.is_voter(node) || self.learners.contains(node) || self.learners_next.contains(node)
    }

    /// Whether the node has a vote.
    #[must_use]
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.contains(node) || self.outgoing.contains(node)
    }

    /// Whether the node decides everything alone.
    #[must_use]
    pub fn is_only_voter(&self, node: NodeId) -> bool {
        self.is_voter(node) && self.voters.without(node).is_empty() && self.outgoing.without(node).is_empty()
    }

    pub(super) fn to_conf_state(self) -> ConfState {
        let ids = |set: NodeSet| set.iter().map(|node| u64::from(node.0)).collect::<Vec<u64>>();
        let mut state = ConfState::default();
        state.set_voters(ids(self.voters));
        state.set_learners(ids(self.learners));
        state.set_voters_outgoing(ids(self.outgoing));
        state.set_learners_next(ids(self.learners_next));
        state.set_auto_leave(self.auto_leave);
        state
    }

    pub(super) fn from_conf_state(state: &ConfState) -> Configuration {
        let set = |ids: &[u64]| ids.iter().map(|id| node_of(*id).expect("ids in a configuration are nodes' numbers")).collect();
        Configuration {
            voters: set(&state.voters),
            learners: set(&state.learners),
            outgoing: set(&state.voters_outgoing),
            learners_next: set(&state.learners_next),
            auto_leave: state.auto_leave,
        }
    }
}

/// Raft's number of a node is the node's.
pub(super) fn raft_id(node: NodeId) -> u64 {
    u64::from(node.0)
}

/// The node of a Raft number; `None` for 0, which is nobody, and for what is no node's.
pub(super) fn node_of(id: u64) -> Option<NodeId> {
    (1..=NODES_MAX as u64).contains(&id).then_some(NodeId(id as u8))
}

/// A change to one member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemberChange {
    /// The node becomes a member with a vote.
    AddVoter(NodeId),
    /// The node becomes (or is made) a member without a vote.
    AddLearner(NodeId),
    /// The node leaves the group.
    Remove(NodeId),
}

impl MemberChange {
    /// The node that it is about.
    #[must_use]
    pub const fn node(self) -> NodeId {
        match self {
            MemberChange::AddVoter(node) | MemberChange::AddLearner(node) | MemberChange::Remove(node) => node,
        }
    }
}

/// Changes to the members that take effect together: one at once, several by joint consensus, which the leader leaves by
/// itself. An empty change leaves a joint configuration.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConfigurationChange(pub Vec<MemberChange>);

impl ConfigurationChange {
    pub(super) fn to_raft(&self) -> ConfChangeV2 {
        let single = |change: &MemberChange| {
            let mut single = ConfChangeSingle::default();
            single.set_node_id(raft_id(change.node()));
            single.set_change_type(match change {
                MemberChange::AddVoter(_) => ConfChangeType::AddNode,
                MemberChange::AddLearner(_) => ConfChangeType::AddLearnerNode,
                MemberChange::Remove(_) => ConfChangeType::RemoveNode,
            });
            single
        };
        let mut change = ConfChangeV2::default();
        change.set_changes(self.0.iter().map(single).collect::<Vec<_>>().into());
        change
    }
}
