//! What operators ask of a running node, and its answers in words for them.
//!
//! `Send`, on whatever thread asks; each request is one letter to the first shard, whose lead carries it out. Bounded by that
//! shard's mailbox. A node that is starting or ending says so.

use super::control::{Command, ControlState};
use super::lead::Lead;
use crate::ids::{Epoch, NodeId};
use crate::reactor::{Class, Reactor, Remote};
use crate::volume::RosterChange;

const STARTING: &str = "the node is still starting: ask again, or another";
const ENDING: &str = "the node is ending: ask another";

/// What operators ask of a running node. `Send`; clones are the same.
#[derive(Clone)]
pub struct Operator(pub(super) Remote);

impl Operator {
    /// Takes a node out of the cluster: it is suspected at once, fenced, and recovered. With `fencing_mode = "manual"` it is
    /// the operator's word that the node can't write to the volume any more.
    ///
    /// # Errors
    /// Why not, in words for the operator.
    pub async fn fence(&self, node: NodeId) -> Result<(), String> {
        let fence = move |reactor: Reactor| async move {
            let lead = reactor.local::<Lead>().ok_or_else(|| String::from(STARTING))?;
            lead.fence_by_hand(node)
        };
        let ended = |_| String::from(ENDING);
        let answer = self.0.call(Class::Critical, "fence by hand", fence).map_err(|error| error.to_string())?;
        answer.await.map_err(ended)?
    }

    /// Changes which nodes the cluster has: admits one, or removes one for good; a member that serves is removed only by
    /// `force`, which fences it first. Returns when the change holds, in words for the operator.
    ///
    /// # Errors
    /// Why not, in words for the operator; nothing is under way any more then, but it may have happened at the last moment.
    pub async fn change_roster(&self, change: RosterChange, force: bool) -> Result<String, String> {
        let change = move |reactor: Reactor| async move {
            let lead = reactor.local::<Lead>().ok_or_else(|| String::from(STARTING))?;
            lead.change_roster(change, force).await
        };
        let answer = self.0.call(Class::Normal, "change the nodes", change).map_err(|error| error.to_string())?;
        answer.await.map_err(|_| String::from(ENDING))?
    }

    /// Has the control group agree on something, wherever its leader is; it is applied on this node when this returns. The
    /// command is made with the epoch that this node is in.
    ///
    /// # Errors
    /// Why not, in words for the operator. When the group did not answer in time it may still happen.
    pub async fn agree(&self, command: impl FnOnce(Epoch) -> Command + Send + 'static) -> Result<(), String> {
        let agree = move |reactor: Reactor| async move {
            let lead = reactor.local::<Lead>().ok_or_else(|| String::from(STARTING))?;
            let (control, epoch) = lead.control().ok_or_else(|| String::from(STARTING))?;
            control.propose(&command(epoch)).await
        };
        let answer = self.0.call(Class::Normal, "agree", agree).map_err(|error| error.to_string())?;
        answer.await.map_err(|_| String::from(ENDING))?
    }

    /// What the control group has agreed on, as far as this node has heard.
    ///
    /// # Errors
    /// In words for the operator: the node is starting or ending.
    pub async fn control_state(&self) -> Result<ControlState, String> {
        let look = move |reactor: Reactor| async move {
            let lead = reactor.local::<Lead>().ok_or_else(|| String::from(STARTING))?;
            let (control, _) = lead.control().ok_or_else(|| String::from(STARTING))?;
            Ok(control.state())
        };
        let answer = self.0.call(Class::Normal, "look", look).map_err(|error| error.to_string())?;
        answer.await.map_err(|_| String::from(ENDING))?
    }

    /// Writes the node's dirty blocks, once its clients have gone, so that a stop has little left to do. The node goes on.
    /// Whether nothing was left that needs its redo.
    ///
    /// # Errors
    /// Why not, in words for the operator.
    pub async fn write_blocks(&self) -> Result<bool, String> {
        let write = move |reactor: Reactor| async move {
            match reactor.local::<Lead>() {
                Some(lead) => lead.write_blocks().await,
                None => Err("the node is still starting".into()),
            }
        };
        let answer = self.0.call(Class::Normal, "write blocks", write).map_err(|error| error.to_string())?;
        answer.await.map_err(|_| String::from("the node is ending"))?
    }
}
