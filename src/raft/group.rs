//! A Raft group, as those who use it on a node see it.
//!
//! A handle of the shard's thread; clones are the same. Every question that waits has a bound on its time.

use std::rc::Rc;
use std::time::Duration;

use super::error::{ProposeError, RaftError};
use super::host::Host;
use super::member::{Member, Proposed, Waiter};
use super::replica::ReplicaStatus;
use super::types::{Configuration, ConfigurationChange, GroupId, Leadership, LogIndex};
use crate::ids::NodeId;
use crate::reactor::sync::oneshot;

/// Longest wait for an outcome.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Wait before something refused for a passing reason is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// How a group stands on this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupStatus {
    /// The group.
    pub id: GroupId,
    /// How its replica stands.
    pub replica: ReplicaStatus,
    /// Most bytes of the state machine's snapshot; follows from the size of the redo area.
    pub snapshot_bytes_max: usize,
    /// Why it takes part no more, if so.
    pub failed: Option<RaftError>,
}

/// See the module.
#[derive(Clone)]
pub struct Group {
    host: Rc<Host>,
    member: Rc<Member>,
}

impl Group {
    pub(super) fn new(host: Rc<Host>, member: Rc<Member>) -> Group {
        Group { host, member }
    }

    /// The group.
    #[must_use]
    pub fn id(&self) -> GroupId {
        self.member.id
    }

    /// Proposes something, wherever the leader is, and waits until it is agreed on and applied here. 1 to
    /// [`super::codec::PROPOSAL_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// [`RaftError`]. Only [`RaftError::Refused`] and [`RaftError::Superseded`] mean that it has not happened and won't.
    pub async fn propose(&self, proposal: Vec<u8>) -> Result<Proposed, RaftError> {
        self.within(self.propose_once(proposal)).await?
    }

    /// As [`Group::propose`], again and again as long as it is certain that it has not happened: while there is no leader, or it
    /// changes, or is busy. For at most `patience`.
    ///
    /// # Errors
    /// [`RaftError`], the last one when time is over.
    pub async fn propose_patiently(&self, proposal: Vec<u8>, patience: Duration) -> Result<Proposed, RaftError> {
        let deadline = self.host.reactor.now() + patience;
        loop {
            let outcome = self.propose(proposal.clone()).await;
            let passing = match &outcome {
                Err(RaftError::Refused(refused)) => {
                    use ProposeError::*;
                    matches!(refused, NotLeader { .. } | Busy { .. } | Transferring | ChangePending)
                }
                Err(RaftError::Superseded { .. }) => true,
                _ => false,
            };
            if !passing || self.host.reactor.now() + RETRY >= deadline {
                return outcome;
            }
            self.host.reactor.sleep(RETRY).await;
        }
    }

    /// Changes the members, and waits until the change is in force (with more than one: until the joint configuration was left).
    /// Only on the leader's node; which members the others have is learned as they apply it.
    ///
    /// # Errors
    /// [`RaftError`]; with [`ProposeError::NotLeader`] the leader's node is to be asked.
    pub async fn change_members(&self, change: ConfigurationChange) -> Result<Configuration, RaftError> {
        let (sender, receiver) = oneshot();
        self.check()?;
        self.member.change_members(&change, Waiter::Here(sender), &self.host);
        self.within(async {
            receiver.await.map_err(|_| RaftError::Closed)??;
            loop {
                let changed = self.member.changed.notified();
                let configuration = self.configuration();
                if !configuration.is_joint() {
                    return Ok(configuration);
                }
                self.check()?;
                changed.await;
            }
        })
        .await?
    }

    /// Hands leadership over to another member with a vote. Only on the leader's node; returns when another node leads.
    ///
    /// # Errors
    /// [`RaftError`]; after [`RaftError::TimedOut`] this node may still lead.
    pub async fn transfer_leader(&self, to: NodeId) -> Result<(), RaftError> {
        self.check()?;
        self.member.replica.borrow_mut().transfer_leader(to)?;
        self.host.mark(self.member.id);
        self.within(async {
            loop {
                let changed = self.member.changed.notified();
                self.check()?;
                if self.leadership().leader.is_some_and(|leader| leader != self.host.node()) {
                    return Ok(());
                }
                changed.await;
            }
        })
        .await?
    }

    /// Waits until everything is applied here that was committed anywhere when this was called: what is read from the state
    /// machine then is no older than the call. Gives the index up to which it is.
    ///
    /// # Errors
    /// [`RaftError::TimedOut`] without a leader that most members follow.
    pub async fn read_barrier(&self) -> Result<LogIndex, RaftError> {
        self.check()?;
        let (sender, receiver) = oneshot();
        self.member.read(sender, &self.host)?;
        match self.within(receiver).await? {
            Ok(index) => Ok(index),
            Err(_) => Err(self.check().err().unwrap_or(RaftError::Closed)),
        }
    }

    /// Who leads, as far as this node knows.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        self.member.replica.borrow().leadership()
    }

    /// The members, as of what was applied here.
    #[must_use]
    pub fn configuration(&self) -> Configuration {
        *self.member.replica.borrow().configuration()
    }

    /// Applied here.
    #[must_use]
    pub fn applied(&self) -> LogIndex {
        self.member.replica.borrow().applied_index()
    }

    /// Resolves when something has changed after this call: the leader, what is applied, the members, or that the group has stopped
    /// here.
    pub fn changed(&self) -> impl Future<Output = ()> + use<> {
        self.member.changed.notified()
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> GroupStatus {
        GroupStatus {
            id: self.member.id,
            replica: self.member.replica.borrow().status(),
            snapshot_bytes_max: self.host.snapshot_bytes_max,
            failed: self.member.failed.borrow().clone(),
        }
    }

    async fn propose_once(&self, proposal: Vec<u8>) -> Result<Proposed, RaftError> {
        self.check()?;
        let maximum = super::codec::PROPOSAL_BYTES_MAX;
        if proposal.is_empty() || proposal.len() > maximum {
            return Err(ProposeError::TooLarge { bytes: proposal.len(), maximum }.into());
        }
        let (sender, receiver) = oneshot();
        match self.leadership().leader {
            Some(leader) if leader != self.host.node() => self.host.forward(self.member.id, leader, proposal, sender),
            Some(_) => self.member.propose(proposal, Waiter::Here(sender), &self.host),
            None => return Err(ProposeError::NotLeader { leader: None }.into()),
        }
        let proposed = receiver.await.map_err(|_| RaftError::Closed)??;
        loop {
            let changed = self.member.changed.notified();
            if self.applied() >= proposed.index {
                return Ok(proposed);
            }
            self.check()?;
            changed.await;
        }
    }

    fn check(&self) -> Result<(), RaftError> {
        if self.host.is_closed() {
            return Err(RaftError::Closed);
        }
        self.member.failed.borrow().clone().map_or(Ok(()), Err)
    }

    async fn within<F: Future>(&self, work: F) -> Result<F::Output, RaftError> {
        self.host.reactor.timeout(PATIENCE, work).await.map_err(|_| RaftError::TimedOut)
    }
}
