//! The control group in a node's life: one Raft group over the configured nodes, which remembers what the cluster agreed
//! on: who is configured, which views there were, who masters what out of turn, settings.
//!
//! Owned by the first shard's thread. It decides nothing about who is *in*: that is fence and epoch
//! (`docs/decisions/0001`). It stands on the first shard's log and interconnect; its messages pass whatever the epoch, and
//! a node takes part from its first view on. Bounds: the constants of [`state`], and one task.

mod codec;
mod follow;
mod state;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

pub use self::codec::{decode_command, encode_command};
pub use self::state::{
    Changed, Command, ConfiguredNode, ControlMachine, ControlState, MEMBERS_MAX, NodeRole, NodeStanding, OVERRIDES_MAX, Refusal,
    SETTING_BYTES_MAX, SETTING_NAME_BYTES_MAX, SETTINGS_MAX, VIEWS_MAX, ViewRecord,
};
use super::status::Status;
use crate::config::RaftConfig;
use crate::ids::{Epoch, NodeId};
use crate::interconnect::{Body, Handler, Header, Interconnect};
use crate::raft::{Configuration, Durable, Group, GroupId, HostParts, LogIndex, OpenError, RaftError, RaftHost, Term};
use crate::reactor::sync::Notify;
use crate::reactor::{Class, Reactor, TaskHandle};
use crate::volume::Roster;
use crate::wal::Log;

/// How long one try to have something agreed on goes on while there is no leader.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(500);

/// How the control group stands on this node, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlStatus {
    /// Who leads it, as far as this node knows.
    pub leader: Option<NodeId>,
    /// Raft's term.
    pub term: Term,
    /// What this node has applied.
    pub applied: LogIndex,
    /// Whose vote counts.
    pub voters: Vec<NodeId>,
    /// The configured nodes, removed ones too, as of what is applied here.
    pub nodes: BTreeMap<NodeId, ConfiguredNode>,
    /// Why the group has stopped on this node, if so.
    pub failed: Option<String>,
}

/// Raft's door at a shard's connections. A node that waits for its first view has no group yet, and the others' groups go
/// on talking to it: what they say is dropped, which Raft bears and repeats.
#[derive(Default)]
pub(super) struct ControlDoor(RefCell<Option<Rc<dyn Handler>>>);

impl ControlDoor {
    /// Hands everything that comes from now on to `handler`.
    pub(super) fn bind(&self, handler: Rc<dyn Handler>) {
        let before = self.0.borrow_mut().replace(handler);
        assert!(before.is_none(), "a node has one control group");
    }
}

impl Handler for ControlDoor {
    fn on_message(&self, from: NodeId, header: &Header, body: Body) {
        let handler = self.0.borrow().clone();
        if let Some(handler) = handler {
            handler.on_message(from, header, body);
        }
    }

    fn on_peer_down(&self, node: NodeId) {
        let handler = self.0.borrow().clone();
        if let Some(handler) = handler {
            handler.on_peer_down(node);
        }
    }
}

/// What [`Control::open`] is told.
pub(super) struct ControlParts {
    pub(super) reactor: Reactor,
    pub(super) interconnect: Interconnect,
    pub(super) log: Log,
    /// What the log held of Raft's groups.
    pub(super) recovered: BTreeMap<GroupId, Durable>,
    pub(super) config: RaftConfig,
    /// Who founds the group, if it is not in the log, the same on all of them; none on a node that came later, which joins
    /// the group.
    pub(super) founders: Option<BTreeMap<NodeId, SocketAddr>>,
    pub(super) status: Status,
}

/// See the module.
pub(super) struct Control {
    me: NodeId,
    reactor: Reactor,
    host: RaftHost,
    group: RefCell<Group>,
    status: Status,
    machine: Rc<ControlMachine>,
    /// The cluster's nodes, which the group's members follow.
    roster: RefCell<Option<(Epoch, Roster)>>,
    roster_changed: Notify,
    tasks: RefCell<Vec<TaskHandle>>,
}

impl Control {
    /// Goes on with the group that the log holds, or founds it. Afterwards a checkpoint of the log leaves nothing but what
    /// the group needs.
    pub(super) async fn open(parts: ControlParts) -> Result<Rc<Control>, OpenError> {
        let ControlParts { reactor, interconnect, log, recovered, config, founders, status } = parts;
        let me = interconnect.node();
        let host = RaftHost::open(HostParts { reactor: reactor.clone(), interconnect, log, recovered, config }).await?;
        let machine = Rc::new(ControlMachine::founding(founders.as_ref().unwrap_or(&BTreeMap::new())));
        let group = match (host.resume(GroupId::CONTROL, machine.clone())?, founders) {
            (Some(group), _) => group,
            (None, Some(founders)) => {
                let voters = Configuration::of(founders.keys().copied(), []);
                host.found(GroupId::CONTROL, voters, machine.clone()).await?
            }
            (None, None) => host.join(GroupId::CONTROL, machine.clone()).await?,
        };
        let publishes =
            reactor.spawn(Class::Low, "control group's state", publish(group.clone(), machine.clone(), status.clone()));
        let control = Rc::new(Control {
            me,
            reactor: reactor.clone(),
            host,
            group: RefCell::new(group),
            status,
            machine,
            roster: RefCell::default(),
            roster_changed: Notify::new(),
            tasks: RefCell::new(vec![publishes]),
        });
        let follows = reactor.spawn(Class::Low, "control group's members", control.clone().follow_roster());
        control.tasks.borrow_mut().push(follows);
        Ok(control)
    }

    fn group(&self) -> Group {
        self.group.borrow().clone()
    }

    /// What takes the group's messages.
    pub(super) fn handler(&self) -> Rc<dyn Handler> {
        self.host.handler()
    }

    /// What is agreed on, as far as it is applied here.
    pub(super) fn state(&self) -> ControlState {
        self.machine.state()
    }

    /// Has something agreed on, wherever the leader is.
    ///
    /// # Errors
    /// Why not, in words for an operator.
    pub(super) async fn propose(&self, command: &Command) -> Result<(), String> {
        let proposed = self.group().propose_patiently(encode_command(command), PATIENCE).await;
        let answer = proposed.map_err(|error| format!("the control group did not agree: {error}"))?.answer;
        codec::decode_answer(&answer).map_err(|refusal| refusal.to_string())
    }

    /// Has something agreed on that may as well happen twice: again and again, as long as it is `wanted`.
    pub(super) async fn propose_while(&self, command: &Command, wanted: impl Fn() -> bool) {
        while wanted() {
            match self.group().propose_patiently(encode_command(command), PATIENCE).await {
                Ok(_) | Err(RaftError::Closed | RaftError::Failed(_)) => return,
                Err(error) => tracing::debug!(%error, ?command, "the control group did not take it yet"),
            }
            self.reactor.sleep(RETRY).await;
        }
    }

    /// Ends this node's part. Before the log ends.
    pub(super) fn close(&self) {
        self.tasks.take().iter().for_each(TaskHandle::abort);
        self.host.close();
    }
}

/// Shows how the group stands to whoever asks the node.
async fn publish(group: Group, machine: Rc<ControlMachine>, status: Status) {
    loop {
        let changed = group.changed();
        let now = group.status();
        let leadership = group.leadership();
        status.control(ControlStatus {
            leader: leadership.leader,
            term: leadership.term,
            applied: group.applied(),
            voters: group.configuration().voters.iter().collect(),
            nodes: machine.state().nodes().clone(),
            failed: now.failed.map(|error| error.to_string()),
        });
        changed.await;
    }
}
