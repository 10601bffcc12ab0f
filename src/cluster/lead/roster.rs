//! The cluster's nodes in a node's life: what the volume says of them while the node starts, whom its shards connect to,
//! and what operators change.
//!
//! In the first shard's thread, as the lead is. One change at a time can be asked of a node.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::super::node::{End, known_roster};
use super::super::view::{Input, Known, View};
use super::{Lead, LeadParts, ShardLife};
use crate::ids::{Epoch, NodeId};
use crate::reactor::Class;
use crate::volume::{Roster, RosterChange, Standing};

/// How often a starting node looks whether the volume has other nodes by now.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long an operator's change is waited for before it is given up.
const CHANGE_WITHIN: Duration = Duration::from_secs(20);
/// How often it is looked whether it has come.
const CHANGED_EVERY: Duration = Duration::from_millis(10);

impl Lead {
    /// What the volume says.
    async fn known(&self) -> Result<Known, End> {
        Ok(known_roster(&self.parts.context, self.parts.volume.read_control().await?))
    }

    /// The roster on the volume, if it is of another epoch than this.
    pub(super) async fn newer_than(&self, epoch: Epoch) -> Result<Option<Known>, End> {
        let known = self.known().await?;
        Ok((known.epoch != epoch).then_some(known))
    }

    /// Looks what the volume says, and tells the membership.
    pub(super) async fn read_roster(&self) -> Result<(), String> {
        match self.known().await {
            Ok(known) => {
                self.parts.agent.input(Input::RosterRead(known));
                Ok(())
            }
            Err(End::Over(why) | End::Removed(why) | End::Failed(why)) => Err(why),
        }
    }

    /// Until the node has a view: who is removed meanwhile, or waits for somebody who was, hears of it.
    pub(super) fn watch_roster(self: &Rc<Self>) {
        let this = self.clone();
        self.parts.reactor.spawn(Class::Normal, "look for the cluster's nodes", async move {
            while this.parts.agent.view().is_none() {
                this.parts.reactor.sleep(LOOK_EVERY).await;
                if let Err(error) = this.read_roster().await {
                    tracing::warn!(%error, "the volume does not say which nodes the cluster has; looks again");
                }
            }
        });
    }

    /// Does what an operator wants with the cluster's nodes, and waits until it is so.
    pub(in super::super) async fn change_roster(self: &Rc<Self>, change: RosterChange, force: bool) -> Result<String, String> {
        let node = change.node();
        let LeadParts { agent, reactor, .. } = &self.parts;
        let view =
            agent.view().filter(|_| agent.serves() && self.opened.get()).ok_or("this node does not serve now: ask another")?;
        if view.roster.reflects(change) {
            return Ok(match change {
                RosterChange::Admit(..) => format!("{node} is one of the cluster's nodes already, with this address"),
                RosterChange::Remove(_) => format!("{node} was removed already"),
            });
        }
        match change {
            RosterChange::Admit(_, address) => self.may_admit(&view, node, address)?,
            RosterChange::Remove(_) => self.may_remove(&view, node, force)?,
        }
        if self.changing_roster.replace(true) {
            return Err("another change to the cluster's nodes was asked of this node: try again when it is done".into());
        }
        if matches!(change, RosterChange::Remove(_)) && view.has_node(node) {
            self.fence_by_hand(node, false)?;
        }
        tracing::info!(?change, "an operator changes the cluster's nodes");
        agent.input(Input::Wish(Some(change)));
        let until = reactor.now() + CHANGE_WITHIN;
        let holds = || agent.roster().reflects(change) && agent.serves();
        while !holds() && reactor.now() < until {
            reactor.sleep(CHANGED_EVERY).await;
        }
        agent.input(Input::Wish(None));
        agent.input(Input::TakeOut(None));
        self.changing_roster.set(false);
        if !agent.roster().reflects(change) {
            return Err(self.why_not(node));
        }
        Ok(match change {
            RosterChange::Admit(..) if view.roster.has(node) => format!("{node} is looked for at its new address: start it"),
            RosterChange::Admit(..) => format!("{node} is admitted: start its server, and it joins"),
            RosterChange::Remove(_) => format!("{node} is removed: it can't come back, its number is never used again"),
        })
    }

    fn may_admit(&self, view: &View, node: NodeId, address: SocketAddr) -> Result<(), String> {
        let LeadParts { context, volume, .. } = &self.parts;
        let nodes_max = volume.geometry().nodes_max;
        if node.0 > nodes_max {
            return Err(format!(
                "the volume has room for the nodes node1 to node{nodes_max}: it was formatted so (--max-nodes), and {node} is beyond"
            ));
        }
        if view.roster.standing(node) == Some(Standing::Removed) {
            let unused = (1..=nodes_max).map(NodeId).find(|free| view.roster.standing(*free).is_none());
            let unused = unused.map_or_else(|| "there is none left on this volume".into(), |free| format!("{free}, for one"));
            return Err(format!("{node} was removed from the cluster; take a number that was never used: {unused}"));
        }
        if view.has_node(node) {
            return Err(format!("{node} serves: stop it before you give it another address"));
        }
        let last_port = u32::from(address.port()) + u32::from(context.shards) - 1;
        if address.ip().is_unspecified() || address.port() == 0 || last_port > u32::from(u16::MAX) {
            return Err(format!("{address} is no address that the other nodes could reach all {} shards at", context.shards));
        }
        let overlaps =
            |other: SocketAddr| other.ip() == address.ip() && other.port().abs_diff(address.port()) < u16::from(context.shards);
        match view.roster.present().find(|(other, there)| *other != node && overlaps(*there)) {
            Some((other, there)) => Err(match context.shards {
                1 => format!("{other} is at {there}: give another address"),
                shards => {
                    format!("{other} is at {there}, and each node listens on {shards} ports in a row from there on: give another")
                }
            }),
            None => Ok(()),
        }
    }

    fn may_remove(&self, view: &View, node: NodeId, force: bool) -> Result<(), String> {
        if !view.roster.has(node) {
            return Err(format!("there is no {node} in this cluster: see `rusty-db-cli cluster status`"));
        }
        if !view.roster.voters().any(|other| other != node) {
            return Err(format!("{node} is the cluster's last node: it can't be removed"));
        }
        if !view.has_node(node) {
            return Ok(());
        }
        if node == self.parts.context.node {
            return Err(format!("{node} can't remove itself: ask another node"));
        }
        if !force {
            return Err(format!(
                "{node} serves: first `rusty-db-cli node drain {node}`, then `rusty-db-cli node stop {node}`, then remove it; \
                 or remove it with --force, which fences it and recovers what it leaves"
            ));
        }
        let (left, all) = (view.members.len() - 1, view.roster.voters().count());
        if 2 * left < all {
            return Err(format!(
                "without {node} only {left} of {all} nodes would serve, no quorum: start the others first, or remove those that \
                 are gone for good"
            ));
        }
        Ok(())
    }

    /// Why a change has not come about in time.
    fn why_not(&self, node: NodeId) -> String {
        let LeadParts { agent, .. } = &self.parts;
        let view = agent.view();
        let waits = match &view {
            Some(view) if view.unrecovered.contains(&node) => format!("the redo of {node} is still being recovered"),
            Some(view) if view.has_node(node) => format!("{node} serves"),
            _ if !agent.serves() => "this node does not serve now".into(),
            _ => match agent.waiting_for() {
                nothing if nothing.is_empty() => "the nodes have not agreed on it".into(),
                waits => format!("the cluster {waits}"),
            },
        };
        format!("not done after {} s, and given up: {waits}; ask again", CHANGE_WITHIN.as_secs())
    }

    /// Has all shards connect to the nodes that there are, and refuse those that have left.
    pub(super) fn knows_nodes(self: &Rc<Self>, roster: Roster) {
        self.parts.context.status.roster(roster.clone());
        let refuses = self.parts.agent.view().is_some();
        self.spawn("know the nodes", async move |lead| {
            let know = async move |life: Rc<ShardLife>| {
                life.knows_nodes(&roster, refuses);
                Ok(())
            };
            lead.each_shard("know the nodes", know).await.map(|_| ())
        });
    }
}
