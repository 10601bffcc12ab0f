//! Which nodes the cluster has, and how that changes: one node per view.
//!
//! A running view's roster is the view's. A starting node has the one that it read from the volume (or, of a volume that
//! is new, from its configuration file), until it hears of a newer one: of two, the one that was written with the higher
//! epoch counts. So all that start together agree on who must be there or be fenced, and whoever replays the redo looks
//! once more whether the volume says the same.
//!
//! An operator asks any member, which tells the wish with its state; whoever leads grants it when nothing else is to be
//! done. A wish is lost with the node that was asked, and whoever asked is told so or asks again.

use std::collections::BTreeSet;

use super::types::{EndReason, Known, View};
use super::{Output, Peer, Rule, Views, VolumeWork};
use crate::ids::NodeId;
use crate::volume::{Roster, RosterChange, Standing};

impl Views {
    /// The cluster's nodes, as far as this one knows.
    #[must_use]
    pub fn roster(&self) -> &Roster {
        &self.known.roster
    }

    pub(super) fn learn(&mut self, known: &Known) {
        if self.view.is_none() && known.epoch > self.known.epoch {
            self.known = known.clone();
        }
    }

    pub(super) fn learn_from(&mut self, peer: NodeId) {
        let Some(state) = self.peers.get(&peer).and_then(|peer| peer.state.as_ref()) else { return };
        let known = match &state.view {
            Ok(view) => Known { epoch: view.epoch, roster: view.roster.clone() },
            Err(known) => known.clone(),
        };
        self.learn(&known);
    }

    /// [`Output::Recover`] has done nothing, because the volume has a newer roster than the one that it was decided by.
    pub(super) fn roster_outdated(&mut self, known: &Known) {
        let Some(VolumeWork::Begin { ballot }) = self.volume.take() else { panic!("nobody asked for a recovery") };
        if let Some(attempt) = self.attempt.as_mut().filter(|attempt| attempt.ballot == ballot) {
            attempt.broken = true;
        }
        self.learn(known);
    }

    pub(super) fn takes_roster_of(&mut self, view: &View) {
        self.known = Known { epoch: view.epoch, roster: view.roster.clone() };
        if self.wish.is_some_and(|wish| view.roster.reflects(wish)) {
            self.wish = None;
        }
        self.out = self.out.filter(|node| view.has_node(*node));
    }

    /// The members that operators want out. Each member is told, so that all leave out the same ones.
    pub(super) fn unwanted(&self, base: &View) -> BTreeSet<NodeId> {
        let member = |node: &NodeId, peer: &Peer| base.has(*node, peer.life);
        let told = self.peers.iter().filter(|(node, peer)| member(node, peer)).filter_map(|(_, peer)| peer.state.as_ref()?.out);
        told.chain(self.out).filter(|node| base.has_node(*node)).collect()
    }

    /// Tells of a roster that is new to this node.
    pub(super) fn announce(&mut self, out: &mut Vec<Output>) {
        let now = (&self.known.roster, self.view.is_some());
        if self.announced.as_ref().is_none_or(|(roster, in_view)| (roster, *in_view) != now) {
            self.announced = Some((self.known.roster.clone(), self.view.is_some()));
            out.push(Output::Roster(self.known.roster.clone()));
        }
    }

    /// Why this node has no place in the cluster, if so.
    pub(super) fn is_stranger(&self) -> Option<EndReason> {
        match self.known.roster.standing(self.me) {
            _ if !self.rules.hold(Rule::RemovedStayOut) => None,
            Some(Standing::Joining | Standing::Member) => None,
            Some(Standing::Removed) => Some(EndReason::Removed),
            None => Some(EndReason::NotAdmitted),
        }
    }

    /// Whether a starting node has said that it goes by the same roster as this one.
    pub(super) fn knows_the_same(&self, node: NodeId) -> bool {
        let state = self.peers.get(&node).and_then(|peer| peer.state.as_ref());
        state.is_some_and(|state| state.view.as_ref().is_err_and(|known| *known == self.known))
    }

    /// A starting node whose configuration file names other nodes, before there is anything better to go by.
    pub(super) fn disagrees(&self) -> Option<NodeId> {
        let differs = |known: &Known| known.epoch == self.known.epoch && known.roster != self.known.roster;
        let mut told = self.peers.iter().filter_map(|(node, peer)| Some((*node, peer.state.as_ref()?.view.as_ref().err()?)));
        told.find(|(_, known)| differs(known)).map(|(node, _)| node)
    }

    /// The roster by which a change that starts from a view must have a quorum, too: while nobody is known to have gone in
    /// it, members may still be in the view before, where whoever came with this one has no vote.
    pub(super) fn former_roster(&self, base: &View) -> Roster {
        let at_base = |view: Option<&View>| view.is_some_and(|view| view.epoch == base.epoch);
        let mut states = self.peers.values().filter_map(|peer| peer.state.as_ref());
        let went = (self.went && at_base(self.view.as_ref())) || states.any(|state| state.went && at_base(state.view()));
        match base.new {
            Some(new) if !went => base.roster.without_vote_of(new),
            _ => base.roster.clone(),
        }
    }

    /// The roster that grants a wish in the next view, if that can be now.
    pub(super) fn granted(&self, base: &View, wish: RosterChange) -> Option<Roster> {
        let node = wish.node();
        // Whoever is a member is where it is; whoever leaves has left already, and nobody needs its redo any more.
        let unrecovered = base.unrecovered.contains(&node) && self.rules.hold(Rule::RemoveAfterRelease);
        if base.has_node(node) || unrecovered {
            return None;
        }
        base.roster.after(wish)
    }
}
