//! Which nodes are the cluster, and how that changes while it runs: a state machine without I/O and clocks.
//!
//! A [`View`] is one generation of the membership. Nodes tell each other what they see ([`State`]); from that, whoever
//! would lead works out which members the next view can have, asks them to follow it ([`decide`]), and enters the
//! decided view: fence who is left out, begin an epoch on the volume, have all members leave the former epoch, go
//! ([`enter`]). Who decides is thus apart from how a decided view is entered. A loss at any step begins a new change, by
//! whoever leads then; what was learned is in the members' newest views.
//!
//! It promises that of two views, whoever serves in the older is fenced, has ended, or has left it before anybody serves
//! in the newer; that no two views share an epoch; and that a node stays unrecovered in every view until its redo is
//! released. It relies on one thing: a life reported as fenced, from then on, writes nothing, fences nobody and answers
//! nobody. Owned by the node's first shard; bounded by the number of the cluster's nodes.
//!
//! Which nodes the cluster has is a fact of each view, its [`Roster`], written to the volume with the view's epoch. It
//! changes by one node per view ([`roster`]).

mod agent;
mod decide;
mod enter;
mod lease;
mod roster;
mod rules;
#[cfg(test)]
mod tests;
mod types;
mod wire;

use std::collections::{BTreeMap, BTreeSet};

pub use self::agent::ViewsAgent;
use self::decide::{Attempt, Proposal};
use self::rules::{Rule, Rules};
use self::types::names;
pub use self::types::{
    EVERY_LIFE, EndReason, Input, Known, Message, OVERRIDES_MAX, Output, Override, Pledge, State, SuspendReason, View,
};
use crate::ids::{Epoch, Incarnation, NodeId};
use crate::volume::{Roster, RosterChange};

/// A connected node.
#[derive(Debug)]
struct Peer {
    life: Incarnation,
    /// What it said last; nothing yet when `None`.
    state: Option<State>,
    suspected: bool,
}

/// The one thing that this node is doing to the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum VolumeWork {
    /// Replaying, or beginning an epoch, for this attempt.
    Begin { ballot: u64 },
    /// Releasing redo.
    Release,
}

/// How far a fence is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fence {
    Asked { failures: u32 },
    Done,
}

/// One node's part in the membership. See the module.
#[derive(Debug)]
pub struct Views {
    me: NodeId,
    life: Incarnation,
    /// The newest view's roster; without a view the newest that it has heard of.
    known: Known,
    /// The roster of which [`Output::Roster`] has told, and whether in a view.
    announced: Option<(Roster, bool)>,
    /// What an operator has asked this node for.
    wish: Option<RosterChange>,
    /// The member that an operator wants out.
    out: Option<NodeId>,
    peers: BTreeMap<NodeId, Peer>,
    /// The newest view that this node has been told to enter.
    view: Option<View>,
    /// Its own shards have left the former epoch.
    frozen: bool,
    went: bool,
    /// A member of the view was lost since this node entered it, if only for a moment.
    disturbed: bool,
    suspended: bool,
    over: bool,
    patience_over: bool,
    /// The coordinator, not this node itself, that it follows, and in which proposal.
    pledge: Option<(NodeId, u64)>,
    /// The latest proposal of each connected coordinator that is not answered yet.
    asked: BTreeMap<NodeId, Proposal>,
    ballot: u64,
    attempt: Option<Attempt>,
    /// Members of an attempt that was given up, not told so yet.
    withdraw: BTreeSet<NodeId>,
    fences: BTreeMap<(NodeId, Incarnation), Fence>,
    /// Members of the view that this node has followed somebody into a change without: none of them may rely on it.
    forsaken: BTreeSet<NodeId>,
    volume: Option<VolumeWork>,
    /// Who has done its part of the recovery, as far as this view's coordinator has heard.
    recovered: BTreeSet<NodeId>,
    /// What the connected nodes have been told.
    told: Option<State>,
    rules: Rules,
}

impl Views {
    /// `known` is the roster as the volume, or before the first epoch the configuration, has it; `life` is this node's.
    #[must_use]
    pub fn new(me: NodeId, life: Incarnation, known: Known) -> Views {
        Views {
            me,
            life,
            announced: None,
            known,
            wish: None,
            out: None,
            peers: BTreeMap::new(),
            view: None,
            frozen: false,
            went: false,
            disturbed: false,
            suspended: false,
            over: false,
            patience_over: false,
            pledge: None,
            asked: BTreeMap::new(),
            ballot: 0,
            attempt: None,
            withdraw: BTreeSet::new(),
            fences: BTreeMap::new(),
            forsaken: BTreeSet::new(),
            volume: None,
            recovered: BTreeSet::new(),
            told: None,
            rules: Rules::default(),
        }
    }

    /// To be called once, before any input: a cluster of one needs no other.
    pub fn start(&mut self, out: &mut Vec<Output>) {
        self.settle(out);
    }

    /// The view that this node has entered or is entering, if any.
    #[must_use]
    pub fn view(&self) -> Option<&View> {
        self.view.as_ref()
    }

    /// Whether it has gone in that view and is not suspended.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.went && !self.suspended && !self.over
    }

    /// Takes one input and appends what is to be done, in this order.
    pub fn on(&mut self, input: Input, out: &mut Vec<Output>) {
        if self.over {
            return;
        }
        match input {
            Input::PeerUp(node, life) => {
                assert!(node != self.me, "{node} is connected to itself");
                if self.peers.contains_key(&node) {
                    self.lost(node);
                }
                self.peers.insert(node, Peer { life, state: None, suspected: false });
                // The new connection has heard nothing yet.
                self.told = None;
                self.tell_if_fenced(node, life, out);
            }
            Input::PeerDown(node) => self.lost(node),
            Input::Suspected(node) => {
                let member = |life| self.view.as_ref().is_none_or(|view| view.has(node, life));
                // It may be connected in its next life already, which is not to blame.
                if let Some(peer) = self.peers.get_mut(&node).filter(|peer| member(peer.life)) {
                    peer.suspected = true;
                    self.let_go_of(node);
                }
            }
            Input::Trusted(node) => {
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.suspected = false;
                }
            }
            Input::FormWithoutMissing => self.patience_over = !self.serves(),
            Input::Received(from, message) => self.received(from, message, out),
            Input::Fenced(node, life) => {
                self.fences.insert((node, life), Fence::Done);
                self.tell_if_fenced(node, life, out);
            }
            Input::FenceFailed(node, life) => self.fence_failed(node, life, out),
            Input::RosterRead(known) => self.learn(&known),
            Input::RosterOutdated(known) => self.roster_outdated(&known),
            Input::Wish(wish) => self.wish = wish,
            Input::TakeOut(out) => {
                self.out = out.filter(|node| *node != self.me && self.view.as_ref().is_some_and(|view| view.has_node(*node)));
            }
            Input::Recovered { epoch, scn } => self.begun(epoch, scn, Vec::new(), out),
            Input::EpochBegun { epoch, scn, overrides } => self.begun(epoch, scn, overrides, out),
            Input::Frozen(epoch) => self.own_shards_frozen(epoch, out),
            Input::InstancesRecovered(epoch) => self.own_part_recovered(epoch, out),
            Input::RedoReleased(epoch) => self.redo_released(epoch, out),
        }
        self.settle(out);
    }

    fn received(&mut self, from: NodeId, message: Message, out: &mut Vec<Output>) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        match message {
            Message::State(state) => {
                peer.state = Some(state);
                self.learn_from(from);
            }
            Message::Propose { ballot, base, members } => {
                // The coordinator has given its former proposal up for this one.
                if self.pledge.is_some_and(|(to, _)| to == from) {
                    self.pledge = None;
                }
                self.asked.insert(from, Proposal { ballot, base, members });
            }
            Message::Accept { ballot } => {
                if let Some(attempt) = &mut self.attempt
                    && attempt.ballot == ballot
                {
                    attempt.accepted.insert(from);
                }
            }
            Message::Withdraw { ballot } => {
                self.asked.retain(|node, proposal| *node != from || proposal.ballot > ballot);
                if self.pledge == Some((from, ballot)) {
                    self.pledge = None;
                }
            }
            Message::Freeze { ballot, view, overrides } => {
                if self.pledge == Some((from, ballot)) {
                    self.enter(view, overrides, out);
                }
            }
            Message::Frozen(epoch) => self.member_frozen(from, epoch),
            Message::Go(epoch) => {
                let entered = self.view.as_ref().is_some_and(|view| view.epoch == epoch) && self.frozen;
                if entered && self.pledge.is_some_and(|(to, _)| to == from) {
                    self.go(out);
                }
            }
            Message::InstancesRecovered(epoch) => self.part_recovered(from, epoch),
            Message::Released(epoch) => self.released(epoch),
            Message::AskLease { epoch, asked_ns } => {
                if self.grants_lease(from, epoch) {
                    out.push(Output::Send(from, Message::GrantLease { epoch, asked_ns }));
                }
            }
            // The lease's owner is told by the agent: it needs a clock.
            Message::GrantLease { .. } => {}
            Message::Excluded(life) => {
                if life == self.life && self.rules.hold(Rule::ExcludedEnd) {
                    self.end(EndReason::Excluded { by: from, epoch: Epoch(0) }, out);
                }
            }
        }
    }

    /// A life that is fenced and still talks had better hear of it.
    fn tell_if_fenced(&self, node: NodeId, life: Incarnation, out: &mut Vec<Output>) {
        let connected = self.peers.get(&node).is_some_and(|peer| peer.life == life);
        if connected && self.fences.get(&(node, life)) == Some(&Fence::Done) {
            out.push(Output::Send(node, Message::Excluded(life)));
        }
    }

    fn lost(&mut self, node: NodeId) {
        self.peers.remove(&node);
        self.let_go_of(node);
    }

    fn let_go_of(&mut self, node: NodeId) {
        self.asked.remove(&node);
        self.withdraw.remove(&node);
        if self.pledge.is_some_and(|(to, _)| to == node) {
            self.pledge = None;
        }
        if self.view.as_ref().is_some_and(|view| view.has_node(node)) {
            self.disturbed = true;
        }
        // What it had accepted is void: it follows whom it likes now.
        if let Some(attempt) = &mut self.attempt {
            attempt.broken |= attempt.has_node(node);
        }
    }

    /// Draws the conclusions of what has changed.
    fn settle(&mut self, out: &mut Vec<Output>) {
        if self.over || self.ends(out) {
            return;
        }
        self.announce(out);
        self.tell(out);
        self.decide(out);
        self.advance(out);
        self.release_redo(out);
        self.suspend(out);
        for node in std::mem::take(&mut self.withdraw) {
            out.push(Output::Send(node, Message::Withdraw { ballot: self.ballot }));
        }
        self.tell(out);
    }

    /// Whether this life is over by now.
    fn ends(&mut self, out: &mut Vec<Output>) -> bool {
        if let Some(reason) = self.is_stranger() {
            self.end(reason, out);
            return true;
        }
        let Some(view) = &self.view else { return false };
        let newer = self.peers.iter().find_map(|(node, peer)| {
            let theirs = peer.state.as_ref()?.view()?;
            (theirs.epoch > view.epoch && !theirs.has(self.me, self.life)).then_some((*node, theirs.epoch))
        });
        if let Some((by, epoch)) = newer
            && self.rules.hold(Rule::ExcludedEnd)
        {
            self.end(EndReason::Excluded { by, epoch }, out);
            return true;
        }
        let ended = |(node, life): &(NodeId, Incarnation)| self.peers.get(node).is_some_and(|peer| peer.life > *life);
        let left: Vec<NodeId> = view.members.iter().filter(|member| !ended(member)).map(|(node, _)| *node).collect();
        let reached: Vec<NodeId> = self.reached(view).into_iter().collect();
        let trusted = self.peers.iter().filter(|(_, peer)| !peer.suspected).map(|(node, _)| *node);
        let connected = self.quorum_of(trusted.chain([self.me]));
        // As a change that starts from here would need it.
        let former = self.former_roster(view);
        let quorum_exists = |nodes: &[NodeId]| {
            let rosters = [&former, &self.known.roster];
            rosters.into_iter().all(|roster| Quorum::among(roster, nodes.iter().copied()).exists())
        };
        let fresh_start = self.suspended && self.patience_over && !quorum_exists(&reached) && connected == Quorum::Majority;
        if (!quorum_exists(&left) && self.rules.hold(Rule::Quorum)) || fresh_start {
            let epoch = view.epoch;
            self.end(EndReason::ViewLost { epoch }, out);
            return true;
        }
        false
    }

    fn end(&mut self, reason: EndReason, out: &mut Vec<Output>) {
        self.over = true;
        out.push(Output::End(reason));
    }

    /// Stops serving when a quorum is out of reach.
    fn suspend(&mut self, out: &mut Vec<Output>) {
        let Some(view) = &self.view else { return };
        if self.suspended || !self.rules.hold(Rule::SuspendWithoutQuorum) {
            return;
        }
        let reached = self.reached(view);
        let reason = match self.quorum_of(reached.iter().copied()) {
            Quorum::Majority => return,
            Quorum::Half if reached.len() == view.members.len() => return,
            Quorum::Half => {
                let lost = view.members.iter().map(|(node, _)| *node).filter(|node| !reached.contains(node));
                SuspendReason::WaitsForFence(lost.collect())
            }
            Quorum::None => SuspendReason::NoQuorum { reached: reached.len(), configured: self.known.roster.voters().count() },
        };
        self.suspended = true;
        out.push(Output::Suspend(reason));
    }

    /// The members of a view that this node is connected to in the same life, itself included.
    fn reached(&self, view: &View) -> BTreeSet<NodeId> {
        let reached = |(node, life): &&(NodeId, Incarnation)| {
            (*node, *life) == (self.me, self.life)
                || self.peers.get(node).is_some_and(|peer| peer.life == *life && !peer.suspected)
        };
        view.members.iter().filter(reached).map(|(node, _)| *node).collect()
    }

    fn quorum_of(&self, nodes: impl IntoIterator<Item = NodeId>) -> Quorum {
        Quorum::among(&self.known.roster, nodes)
    }

    fn state(&self) -> State {
        let pledge = match (&self.attempt, self.pledge) {
            (Some(attempt), _) => Pledge::Leads { settled: self.settled(attempt) },
            (None, Some((to, _))) => Pledge::To(to),
            (None, None) => Pledge::Free,
        };
        State {
            view: self.view.clone().ok_or_else(|| self.known.clone()),
            went: self.went,
            suspended: self.suspended,
            disturbed: self.disturbed,
            pledge,
            wish: self.wish,
            out: self.out,
            links: self.peers.iter().filter(|(_, peer)| !peer.suspected).map(|(node, _)| *node).collect(),
        }
    }

    fn tell(&mut self, out: &mut Vec<Output>) {
        let state = self.state();
        if self.told.as_ref() != Some(&state) {
            out.extend(self.peers.keys().map(|node| Output::Send(*node, Message::State(state.clone()))));
            self.told = Some(state);
        }
    }

    /// What this node is at and waits for, for a person to read. Empty when it serves and nothing is changing.
    #[must_use]
    pub fn waiting_for(&self) -> String {
        if let Some(attempt) = &self.attempt {
            return attempt.waiting_for(&self.fences, self.me);
        }
        if let Some((to, _)) = self.pledge {
            return format!("follows {to} into the next view");
        }
        match &self.view {
            None if self.known_views().next().is_some() => "the cluster runs: waits to be let in".into(),
            None if !self.known.roster.votes(self.me) => "admitted: waits for a node that serves, to be let in".into(),
            None if self.disagrees().is_some() => {
                let other = self.disagrees().expect("looked at above");
                format!("{other} was told of other nodes than this one: make [cluster.nodes] the same in all configuration files")
            }
            None => {
                let voters = self.known.roster.voters();
                let missing: Vec<NodeId> = voters.filter(|node| *node != self.me && !self.peers.contains_key(node)).collect();
                match missing.is_empty() {
                    true => "waits for all nodes to see each other".into(),
                    false => format!("waits for a connection to {}", names(&missing)),
                }
            }
            Some(view) if self.suspended => {
                let reached = self.reached(view);
                let lost: Vec<NodeId> =
                    view.members.iter().map(|(node, _)| *node).filter(|node| !reached.contains(node)).collect();
                let all = self.known.roster.voters().count();
                format!("suspended: reaches {} of {all} nodes, not {}", reached.len(), names(&lost))
            }
            Some(view) if !view.unrecovered.is_empty() && self.went => {
                format!("recovers the redo of {}", names(&view.unrecovered))
            }
            Some(_) => String::new(),
        }
    }
}

/// What so many votes are worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Quorum {
    None,
    /// Enough once the others are fenced: of two halves only one wins that.
    Half,
    Majority,
}

impl Quorum {
    /// What the votes of these nodes are worth in a roster.
    fn among(roster: &Roster, nodes: impl IntoIterator<Item = NodeId>) -> Quorum {
        let votes = nodes.into_iter().filter(|node| roster.votes(*node)).count();
        match (2 * votes).cmp(&roster.voters().count()) {
            std::cmp::Ordering::Greater => Quorum::Majority,
            std::cmp::Ordering::Equal => Quorum::Half,
            std::cmp::Ordering::Less => Quorum::None,
        }
    }

    fn exists(self) -> bool {
        self != Quorum::None
    }
}
