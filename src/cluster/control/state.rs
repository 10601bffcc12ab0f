//! What the control group agrees on, as a state machine: commands in, answers out, the same on every node.
//!
//! A plain value behind a `RefCell`, owned by the first shard's thread. Everything in it is bounded by the constants here,
//! so that a snapshot stays far below what the smallest redo area bears (some 90 KB).

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;

use super::codec;
use crate::fusion::grd::Bucket;
use crate::ids::{Epoch, NODES_MAX, NodeId};
use crate::raft::{LogIndex, StateMachine};

/// Views that are remembered, the newest.
pub const VIEWS_MAX: usize = 64;
/// Most members of a view.
pub const MEMBERS_MAX: usize = NODES_MAX;
/// Most buckets that have a master out of turn.
pub const OVERRIDES_MAX: usize = 1_024;
/// Most settings.
pub const SETTINGS_MAX: usize = 128;
/// Most bytes of a setting's name.
pub const SETTING_NAME_BYTES_MAX: usize = 64;
/// Most bytes of a setting's value.
pub const SETTING_BYTES_MAX: usize = 256;

/// When something was last changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Changed {
    /// The epoch that the proposer was in.
    pub epoch: Epoch,
    /// The entry of the group's log.
    pub index: LogIndex,
}

/// Whether a configured node's vote counts in the control group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeRole {
    /// It does.
    Voter,
    /// It follows without one.
    Observer,
}

/// What a configured node is meant to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeStanding {
    /// Serves whenever it runs.
    Member,
    /// Takes no new clients.
    Draining,
    /// Has left for good: its number is not used again.
    Removed,
}

impl NodeStanding {
    /// One word for operators.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            NodeStanding::Member => "member",
            NodeStanding::Draining => "draining",
            NodeStanding::Removed => "removed",
        }
    }
}

impl NodeRole {
    /// One word for operators.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            NodeRole::Voter => "voter",
            NodeRole::Observer => "observer",
        }
    }
}

/// A node of the cluster, running or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfiguredNode {
    /// Where its first shard listens for the other nodes.
    pub address: SocketAddr,
    /// Whether its vote counts.
    pub role: NodeRole,
    /// What it is meant to be.
    pub standing: NodeStanding,
    /// When this was last changed.
    pub changed: Changed,
}

/// A view that went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewRecord {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its members, in order.
    pub members: Vec<NodeId>,
    /// Where it was written down.
    pub index: LogIndex,
}

/// What can be proposed. Each names the epoch that its proposer was in, and bears to be applied twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A view has gone.
    View {
        /// Its epoch.
        epoch: Epoch,
        /// Its members, in order; at most [`MEMBERS_MAX`].
        members: Vec<NodeId>,
    },
    /// A node is configured, or moves, or changes its role.
    Configure {
        /// The proposer's.
        epoch: Epoch,
        /// Which node.
        node: NodeId,
        /// Where it listens.
        address: SocketAddr,
        /// Its role.
        role: NodeRole,
    },
    /// A configured node is meant to be something else from now on.
    Stand {
        /// The proposer's.
        epoch: Epoch,
        /// Which node.
        node: NodeId,
        /// What it is meant to be.
        standing: NodeStanding,
    },
    /// A bucket gets a master out of turn, or loses it.
    Master {
        /// The proposer's.
        epoch: Epoch,
        /// Which bucket.
        bucket: Bucket,
        /// Its master; `None` for whose turn it is.
        node: Option<NodeId>,
    },
    /// A setting gets a value, or loses it.
    Set {
        /// The proposer's.
        epoch: Epoch,
        /// Its name, at most [`SETTING_NAME_BYTES_MAX`].
        name: String,
        /// Its value, at most [`SETTING_BYTES_MAX`]; `None` takes it away.
        value: Option<String>,
    },
}

/// Why a command changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The node was removed: its number is not used again.
    Removed(NodeId),
    /// There is no such node.
    Unknown(NodeId),
    /// The last node that serves can't be removed.
    LastNode(NodeId),
    /// Another node listens there.
    AddressTaken(NodeId),
    /// There are as many as there may be.
    Full,
    /// A newer program has proposed it.
    NotUnderstood,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Removed(node) => {
                write!(f, "{node} was removed from the cluster: its number is not used again, take another one")
            }
            Refusal::Unknown(node) => write!(f, "there is no {node} in this cluster: see `rusty-db-cli cluster status`"),
            Refusal::LastNode(node) => write!(f, "{node} is the last voter of the cluster: it can't be removed"),
            Refusal::AddressTaken(node) => write!(f, "{node} has that address: give another one"),
            Refusal::Full => write!(f, "the control group keeps no more of these: take some away first"),
            Refusal::NotUnderstood => {
                write!(f, "the node that leads the control group runs an older release: bring all nodes to the same one")
            }
        }
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ControlState {
    pub(super) nodes: BTreeMap<NodeId, ConfiguredNode>,
    pub(super) views: VecDeque<ViewRecord>,
    pub(super) overrides: BTreeMap<Bucket, (NodeId, Changed)>,
    pub(super) settings: BTreeMap<String, (String, Changed)>,
}

impl ControlState {
    /// The same on all that found the group.
    #[must_use]
    pub fn founding(founders: &BTreeMap<NodeId, SocketAddr>) -> ControlState {
        let node = |address: SocketAddr| ConfiguredNode {
            address,
            role: NodeRole::Voter,
            standing: NodeStanding::Member,
            changed: Changed::default(),
        };
        ControlState { nodes: founders.iter().map(|(id, address)| (*id, node(*address))).collect(), ..Default::default() }
    }

    /// The configured nodes, removed ones too.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<NodeId, ConfiguredNode> {
        &self.nodes
    }

    /// The views that went, the oldest first.
    pub fn views(&self) -> impl DoubleEndedIterator<Item = &ViewRecord> {
        self.views.iter()
    }

    /// Buckets with a master out of turn.
    #[must_use]
    pub fn overrides(&self) -> &BTreeMap<Bucket, (NodeId, Changed)> {
        &self.overrides
    }

    /// A setting's value.
    #[must_use]
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(|(value, _)| value.as_str())
    }

    /// Takes a command.
    ///
    /// # Errors
    /// Why it changes nothing.
    pub fn apply(&mut self, index: LogIndex, command: Command) -> Result<(), Refusal> {
        match command {
            Command::View { epoch, members } => self.view(epoch, members, index),
            Command::Configure { epoch, node, address, role } => {
                let changed = Changed { epoch, index };
                return self.configure(node, address, role, changed);
            }
            Command::Stand { epoch, node, standing } => return self.stand(node, standing, Changed { epoch, index }),
            Command::Master { epoch, bucket, node: Some(node) } => {
                if !self.overrides.contains_key(&bucket) && self.overrides.len() >= OVERRIDES_MAX {
                    return Err(Refusal::Full);
                }
                self.present(node)?;
                self.overrides.insert(bucket, (node, Changed { epoch, index }));
            }
            Command::Master { bucket, node: None, .. } => drop(self.overrides.remove(&bucket)),
            Command::Set { epoch, name, value: Some(value) } => {
                if !self.settings.contains_key(&name) && self.settings.len() >= SETTINGS_MAX {
                    return Err(Refusal::Full);
                }
                self.settings.insert(name, (value, Changed { epoch, index }));
            }
            Command::Set { name, value: None, .. } => drop(self.settings.remove(&name)),
        }
        Ok(())
    }

    /// Views come from their coordinators, late and twice: only what is newer than all before counts.
    fn view(&mut self, epoch: Epoch, members: Vec<NodeId>, index: LogIndex) {
        if self.views.back().is_none_or(|newest| newest.epoch < epoch) {
            self.views.push_back(ViewRecord { epoch, members, index });
            if self.views.len() > VIEWS_MAX {
                self.views.pop_front();
            }
        }
    }

    fn configure(&mut self, node: NodeId, address: SocketAddr, role: NodeRole, changed: Changed) -> Result<(), Refusal> {
        let taken = |(other, there): &(&NodeId, &ConfiguredNode)| {
            **other != node && there.address == address && there.standing != NodeStanding::Removed
        };
        if let Some((other, _)) = self.nodes.iter().find(taken) {
            return Err(Refusal::AddressTaken(*other));
        }
        let standing = match self.nodes.get(&node) {
            Some(there) if there.standing == NodeStanding::Removed => return Err(Refusal::Removed(node)),
            Some(there) if (there.address, there.role) == (address, role) => return Ok(()),
            Some(there) => there.standing,
            None => NodeStanding::Member,
        };
        if role == NodeRole::Observer {
            self.another_voter(node)?;
        }
        self.nodes.insert(node, ConfiguredNode { address, role, standing, changed });
        Ok(())
    }

    fn stand(&mut self, node: NodeId, standing: NodeStanding, changed: Changed) -> Result<(), Refusal> {
        let before = self.nodes.get(&node).ok_or(Refusal::Unknown(node))?.standing;
        if before == standing {
            return Ok(());
        }
        if before == NodeStanding::Removed {
            return Err(Refusal::Removed(node));
        }
        if standing == NodeStanding::Removed {
            self.another_voter(node)?;
            self.overrides.retain(|_, (master, _)| *master != node);
        }
        let there = self.nodes.get_mut(&node).expect("looked at above");
        (there.standing, there.changed) = (standing, changed);
        Ok(())
    }

    fn present(&self, node: NodeId) -> Result<(), Refusal> {
        match self.nodes.get(&node).map(|there| there.standing) {
            None => Err(Refusal::Unknown(node)),
            Some(NodeStanding::Removed) => Err(Refusal::Removed(node)),
            Some(_) => Ok(()),
        }
    }

    fn another_voter(&self, node: NodeId) -> Result<(), Refusal> {
        let votes = |there: &ConfiguredNode| there.role == NodeRole::Voter && there.standing != NodeStanding::Removed;
        let other = self.nodes.iter().any(|(other, there)| *other != node && votes(there));
        if other { Ok(()) } else { Err(Refusal::LastNode(node)) }
    }
}

/// The state on a node, as Raft drives it.
#[derive(Debug, Default)]
pub struct ControlMachine(RefCell<ControlState>);

impl ControlMachine {
    /// The same on all that found the group.
    #[must_use]
    pub fn founding(founders: &BTreeMap<NodeId, SocketAddr>) -> ControlMachine {
        ControlMachine(RefCell::new(ControlState::founding(founders)))
    }

    /// What is applied.
    #[must_use]
    pub fn state(&self) -> ControlState {
        self.0.borrow().clone()
    }
}

impl StateMachine for ControlMachine {
    fn apply(&self, index: LogIndex, proposal: &[u8]) -> Vec<u8> {
        // A newer release has proposed it. Those who can read it have it and this node has not: the operator hears of it.
        let outcome = match codec::decode_command(proposal) {
            Ok(command) => self.0.borrow_mut().apply(index, command),
            Err(fault) => {
                tracing::error!(%index, %fault, "a command of the control group that this release can't read is left out");
                Err(Refusal::NotUnderstood)
            }
        };
        codec::encode_answer(outcome)
    }

    fn snapshot(&self) -> Vec<u8> {
        codec::encode_state(&self.0.borrow())
    }

    fn restore(&self, _: LogIndex, snapshot: &[u8]) -> Result<(), String> {
        let state = codec::decode_state(snapshot).map_err(|fault| fault.to_string())?;
        *self.0.borrow_mut() = state;
        Ok(())
    }
}
