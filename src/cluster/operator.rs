//! What operators ask of a running node, and its answers in words for them.
//!
//! `Send`, on whatever thread asks; each request is one letter to the first shard, whose lead carries it out. Bounded by that
//! shard's mailbox. A node that is starting or ending says so.

use std::rc::Rc;

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
    /// the operator's word that the node can't write to the volume any more, and otherwise if he `vouches`: it counts where no method
    /// of fencing has a proof.
    ///
    /// # Errors
    /// Why not, in words for the operator.
    pub async fn fence(&self, node: NodeId, vouches: bool) -> Result<(), String> {
        self.ask(Class::Critical, "fence by hand", async move |lead| lead.fence_by_hand(node, vouches)).await
    }

    /// Changes which nodes the cluster has: admits one, or removes one for good; a member that serves is removed only by
    /// `force`, which fences it first. Returns when the change holds, in words for the operator.
    ///
    /// # Errors
    /// Why not, in words for the operator; nothing is under way any more then, but it may have happened at the last moment.
    pub async fn change_roster(&self, change: RosterChange, force: bool) -> Result<String, String> {
        self.ask(Class::Normal, "change the nodes", async move |lead| lead.change_roster(change, force).await).await
    }

    /// Has the control group agree on something, wherever its leader is; it is applied on this node when this returns. The
    /// command is made with the epoch that this node is in.
    ///
    /// # Errors
    /// Why not, in words for the operator. When the group did not answer in time it may still happen.
    pub async fn agree(&self, command: impl FnOnce(Epoch) -> Command + Send + 'static) -> Result<(), String> {
        let agree = async move |lead: Rc<Lead>| {
            let (control, epoch) = lead.control().ok_or(STARTING)?;
            control.propose(&command(epoch)).await
        };
        self.ask(Class::Normal, "agree", agree).await
    }

    /// What the control group has agreed on, as far as this node has heard.
    ///
    /// # Errors
    /// In words for the operator: the node is starting or ending.
    pub async fn control_state(&self) -> Result<ControlState, String> {
        let look = async move |lead: Rc<Lead>| {
            let (control, _) = lead.control().ok_or(STARTING)?;
            Ok(control.state())
        };
        self.ask(Class::Normal, "look", look).await
    }

    /// Writes the node's dirty blocks, once its clients have gone, so that a stop has little left to do. The node goes on.
    /// Whether nothing was left that needs its redo.
    ///
    /// # Errors
    /// Why not, in words for the operator.
    pub async fn write_blocks(&self) -> Result<bool, String> {
        self.ask(Class::Normal, "write blocks", async move |lead| lead.write_blocks().await).await
    }

    /// Has the node's lead do something.
    async fn ask<T: Send + 'static>(
        &self,
        class: Class,
        name: &'static str,
        work: impl AsyncFnOnce(Rc<Lead>) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let ask = move |reactor: Reactor| async move {
            let lead = reactor.local::<Lead>().ok_or(STARTING)?;
            work(lead).await
        };
        let answer = self.0.call(class, name, ask).map_err(|error| error.to_string())?;
        answer.await.map_err(|_| ENDING)?
    }
}
