//! Who decides on the next view: targets, proposals and pledges.
//!
//! Every node works out, from what it sees and what its peers say they see, which members the next view can have: all
//! that are connected to each other. The lowest of them leads: it proposes this to the others, and each follows one
//! coordinator at a time until that withdraws, is done, or is lost. Where a broken link makes two lead, the higher
//! withdraws as soon as it sees somebody follow the lower, unless it has a quorum already; then the lower follows, or is
//! fenced.

use std::collections::{BTreeMap, BTreeSet};

use super::types::names;
use super::{EVERY_LIFE, Fence, Message, Output, Pledge, Quorum, Rule, View, Views};
use crate::ids::{Epoch, Incarnation, NodeId};
use crate::volume::{Roster, RosterChange};

type Member = (NodeId, Incarnation);

/// What a coordinator asks for.
#[derive(Clone, Debug)]
pub(super) struct Proposal {
    pub(super) ballot: u64,
    pub(super) base: Epoch,
    pub(super) members: Vec<Member>,
}

/// How far a change of view is, at its coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Pledges and fences are gathered.
    Gathering,
    /// The volume is recovered, or its epoch begun.
    Beginning,
    /// Members leave the former epoch; these have.
    Freezing(BTreeSet<NodeId>),
}

/// A change of view that this node leads.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) ballot: u64,
    /// The epoch of the view that it starts from; 0 at a cold start.
    pub(super) base: Epoch,
    pub(super) members: Vec<Member>,
    /// Those whose pledge counts.
    pub(super) voters: BTreeSet<NodeId>,
    /// The roster that it starts from, and the next view's, if that is another: it takes a quorum of both.
    pub(super) former: Roster,
    pub(super) roster: Roster,
    /// Who comes in for the first time.
    pub(super) new: Option<NodeId>,
    /// Who is left out and must be fenced, by number.
    pub(super) lost: Vec<Member>,
    pub(super) accepted: BTreeSet<NodeId>,
    /// A member was lost on the way.
    pub(super) broken: bool,
    pub(super) step: Step,
}

impl Attempt {
    pub(super) fn has_node(&self, node: NodeId) -> bool {
        self.members.iter().any(|(member, _)| *member == node)
    }

    pub(super) fn waiting_for(&self, fences: &BTreeMap<Member, Fence>, me: NodeId) -> String {
        let missing = |have: &BTreeSet<NodeId>| {
            let missing: Vec<NodeId> =
                self.members.iter().map(|(node, _)| *node).filter(|node| *node != me && !have.contains(node)).collect();
            names(&missing)
        };
        let failing = self.lost.iter().find_map(|lost| match fences.get(lost) {
            Some(Fence::Asked { failures }) => Some((lost.0, *failures)),
            _ => None,
        });
        match &self.step {
            Step::Gathering => match failing {
                Some((node, 0)) => format!("fences {node}"),
                Some((node, failures)) => {
                    format!("can't fence {node} (tried {failures} times): see the log, or turn it off and confirm that it is")
                }
                None => format!("waits for {} to follow into the next view", missing(&self.accepted)),
            },
            Step::Beginning if self.base == Epoch(0) => "replays the redo on the volume".into(),
            Step::Beginning => "begins an epoch on the volume".into(),
            Step::Freezing(frozen) => format!("waits for {} to leave the former epoch", missing(frozen)),
        }
    }
}

/// What the next view can be.
struct Target {
    base: Epoch,
    members: Vec<Member>,
    voters: BTreeSet<NodeId>,
    former: Roster,
    roster: Roster,
    new: Option<NodeId>,
    lost: Vec<Member>,
}

impl Views {
    /// Follows, leads, or gives up leading.
    pub(super) fn decide(&mut self, out: &mut Vec<Output>) {
        if self.attempt.as_ref().is_some_and(|attempt| !self.valid(attempt) || self.outranked(attempt)) {
            self.give_up();
        }
        if self.attempt.is_none() && self.volume.is_none() | !self.rules.hold(Rule::OneVolumeWork) {
            self.follow(out);
        }
        if self.attempt.is_none()
            && self.pledge.is_none()
            && let Some(target) = self.target()
        {
            self.propose(target, out);
        }
    }

    pub(super) fn give_up(&mut self) {
        if let Some(attempt) = self.attempt.take() {
            let members = attempt.members.iter().map(|(node, _)| *node);
            self.withdraw.extend(members.filter(|node| self.peers.contains_key(node)));
        }
    }

    fn propose(&mut self, target: Target, out: &mut Vec<Output>) {
        // Whoever was in the attempt before and is in this one knows by this that the former is given up.
        for node in std::mem::take(&mut self.withdraw) {
            if !target.members.iter().any(|(member, _)| *member == node) {
                out.push(Output::Send(node, Message::Withdraw { ballot: self.ballot }));
            }
        }
        self.ballot += 1;
        let Target { base, members, voters, former, roster, new, lost } = target;
        for (node, _) in members.iter().filter(|(node, _)| *node != self.me) {
            out.push(Output::Send(*node, Message::Propose { ballot: self.ballot, base, members: members.clone() }));
        }
        self.forsake(&members);
        // Of the lives that nobody has seen, a new one may have begun since the last time.
        self.fences.retain(|(_, life), fence| *life != EVERY_LIFE || matches!(fence, Fence::Asked { .. }));
        self.attempt = Some(Attempt {
            ballot: self.ballot,
            base,
            members,
            voters,
            former,
            roster,
            new,
            lost,
            accepted: BTreeSet::from([self.me]),
            broken: false,
            step: Step::Gathering,
        });
    }

    /// Answers the proposal of the lowest coordinator that asks, if this node is free to.
    fn follow(&mut self, out: &mut Vec<Output>) {
        if self.pledge.is_some() && self.rules.hold(Rule::OnePledge) {
            return;
        }
        let next = self.asked.iter().find(|(node, proposal)| self.acceptable(**node, proposal)).map(|(node, _)| *node);
        if let Some(to) = next {
            let Proposal { ballot, members, .. } = self.asked.remove(&to).expect("found just now");
            self.forsake(&members);
            self.pledge = Some((to, ballot));
            out.push(Output::Send(to, Message::Accept { ballot }));
        }
    }

    fn acceptable(&self, from: NodeId, proposal: &Proposal) -> bool {
        let ours = self.view.as_ref().map_or(Epoch(0), |view| view.epoch);
        // Nobody starts cold beside a cluster that runs.
        let cold = proposal.base == Epoch(0);
        let runs = cold && self.known_views().next().is_some();
        // Who must take part in it, and who is fenced, follows from the roster.
        let agrees = !cold || self.knows_the_same(from);
        proposal.members.contains(&(self.me, self.life)) && proposal.base >= ours && !runs && agrees
    }

    /// The views that connected nodes say they have entered, and this node's.
    pub(super) fn known_views(&self) -> impl Iterator<Item = &View> {
        let told = self.peers.values().filter_map(|peer| peer.state.as_ref()?.view());
        told.chain(&self.view)
    }

    /// The newest view that any of them has entered.
    pub(super) fn newest(&self) -> Option<&View> {
        // Of the same view, whoever knows that nobody is unrecovered any more knows better.
        self.known_views().max_by_key(|view| (view.epoch, std::cmp::Reverse(view.unrecovered.len())))
    }

    /// Whether this life may still become or stay a member.
    fn usable(&self, node: NodeId, life: Incarnation) -> bool {
        let shot =
            self.fences.contains_key(&(node, life)) || matches!(self.fences.get(&(node, EVERY_LIFE)), Some(Fence::Asked { .. }));
        self.peers.get(&node).is_some_and(|peer| peer.life == life && !peer.suspected) && !shot
    }

    /// Whether `a` says that it is connected to `b`.
    fn sees(&self, a: NodeId, b: NodeId) -> bool {
        let Some(peer) = (if a == self.me { self.peers.get(&b) } else { self.peers.get(&a) }) else { return false };
        if a == self.me { !peer.suspected } else { peer.state.as_ref().is_some_and(|state| state.links.contains(&b)) }
    }

    /// Leaves out the worst connected until all are connected to each other.
    fn prune(&self, candidates: &mut BTreeSet<NodeId>) {
        // A bit for each node: with a hundred of them this is asked ten thousand times while they connect.
        let bit = |node: NodeId| 1u128 << node.0;
        let bits = |nodes: &BTreeSet<NodeId>| nodes.iter().fold(0, |bits, node| bits | bit(*node));
        let seen_by = |node: NodeId| match self.peers.get(&node) {
            _ if node == self.me => {
                self.peers.iter().filter(|(_, peer)| !peer.suspected).fold(0, |bits, (node, _)| bits | bit(*node))
            }
            Some(peer) => peer.state.as_ref().map_or(0, |state| bits(&state.links)),
            None => 0,
        };
        let seen: Vec<(NodeId, u128)> = candidates.iter().map(|node| (*node, seen_by(*node))).collect();
        let linked_to = |node: NodeId, seen_by_it: u128| {
            let back = seen.iter().filter(|(_, sees)| sees & bit(node) != 0);
            seen_by_it & back.fold(0, |bits, (other, _)| bits | bit(*other)) | bit(node)
        };
        let linked: Vec<(NodeId, u128)> = seen.iter().map(|(node, sees)| (*node, linked_to(*node, *sees))).collect();
        let mut left = bits(candidates);
        loop {
            let candidates = linked.iter().filter(|(node, _)| left & bit(*node) != 0);
            match candidates.map(|(node, linked)| ((left & !linked).count_ones(), *node)).max() {
                Some((gaps, worst)) if gaps > 0 => left &= !bit(worst),
                _ => break,
            }
        }
        candidates.retain(|node| left & bit(*node) != 0);
    }

    fn life_of(&self, node: NodeId) -> Member {
        (node, if node == self.me { self.life } else { self.peers[&node].life })
    }

    /// What this node would lead into now, if anything has to change and it is the one to lead.
    fn target(&self) -> Option<Target> {
        match self.newest() {
            Some(base) => self.running_target(base),
            None => self.cold_target(),
        }
    }

    fn cold_target(&self) -> Option<Target> {
        if self.peers.values().any(|peer| peer.state.is_none() && !peer.suspected) {
            return None;
        }
        // Whoever has never been a member comes in when the others serve.
        let voters: BTreeSet<NodeId> = self.known.roster.voters().collect();
        if !voters.contains(&self.me) {
            return None;
        }
        let usable = self.peers.iter().filter(|(node, peer)| voters.contains(node) && self.usable(**node, peer.life));
        let mut members: BTreeSet<NodeId> = usable.map(|(node, _)| *node).collect();
        members.insert(self.me);
        self.prune(&mut members);
        let enough = members == voters || (self.patience_over && self.quorum_of(members.iter().copied()) == Quorum::Majority);
        let agreed = members.iter().all(|node| *node == self.me || self.knows_the_same(*node));
        if !enough || !agreed || members.first() != Some(&self.me) || self.waits_for_another(&members) {
            return None;
        }
        let missing = voters.iter().filter(|node| !members.contains(node));
        let lost = missing.map(|node| (*node, EVERY_LIFE)).filter(|_| self.rules.hold(Rule::FenceTheMissing)).collect();
        Some(Target {
            base: Epoch(0),
            members: members.iter().map(|node| self.life_of(*node)).collect(),
            voters: members,
            former: self.known.roster.clone(),
            roster: self.known.roster.clone(),
            new: None,
            lost,
        })
    }

    fn running_target(&self, base: &View) -> Option<Target> {
        if !base.has(self.me, self.life) {
            return None;
        }
        let unwanted = self.unwanted(base);
        if unwanted.contains(&self.me) {
            return None;
        }
        let mut members = BTreeSet::from([self.me]);
        for &(node, life) in base.members.iter().filter(|(node, _)| *node != self.me) {
            if !unwanted.contains(&node) && self.usable(node, life) {
                // It is about to say how it is.
                self.peers[&node].state.as_ref()?;
                members.insert(node);
            }
        }
        self.prune(&mut members);
        if members.first() != Some(&self.me) || self.waits_for_another(&members) {
            return None;
        }
        let former = self.former_roster(base);
        let quorum_of_both = [&former, &base.roster].iter().all(|roster| Quorum::among(roster, members.iter().copied()).exists());
        if !quorum_of_both && self.rules.hold(Rule::Quorum) {
            return None;
        }
        let lost: Vec<Member> = base.members.iter().copied().filter(|(node, _)| !members.contains(node)).collect();
        let mut voters = members.clone();
        let (mut roster, mut new) = (base.roster.clone(), None);
        if lost.is_empty() && !self.unsettled(base, &members) {
            // Losses go first, then what operators want; whoever wants to come in is let in when nothing else is to be done.
            let wished = self.wishes(&members).find_map(|wish| self.granted(base, wish));
            if let Some(next) = wished {
                roster = next;
            } else {
                let joiners = self.joiners(base, &members);
                if joiners.is_empty() {
                    return None;
                }
                new = joiners.iter().copied().find(|node| !roster.votes(*node));
                if let Some(new) = new {
                    // Its first vote is for its own coming.
                    roster = roster.with_member(new);
                    voters.insert(new);
                }
                members.extend(joiners);
            }
        }
        let members = members.iter().map(|node| self.life_of(*node)).collect();
        Some(Target { base: base.epoch, members, voters, former, roster, new, lost })
    }

    /// Whether a member has lost messages in this view, or was left behind by a change that nobody leads any more.
    fn unsettled(&self, base: &View, members: &BTreeSet<NodeId>) -> bool {
        let ours = self.view.as_ref().is_none_or(|view| view.epoch != base.epoch) || !self.went || self.disturbed;
        let theirs = members.iter().filter_map(|node| self.peers.get(node)?.state.as_ref());
        ours || theirs.into_iter().any(|state| {
            let here = state.view().is_some_and(|view| view.epoch == base.epoch);
            (here && state.disturbed) || (state.pledge == Pledge::Free && !(here && state.went))
        })
    }

    /// Whether one of these follows another that leads, or leads itself: that change comes first.
    fn waits_for_another(&self, members: &BTreeSet<NodeId>) -> bool {
        members.iter().filter_map(|node| self.peers.get(node)?.state.as_ref()).any(|state| match state.pledge {
            Pledge::Free => false,
            // Somebody out of reach: the lower goes first, the higher gives up when it hears of it.
            Pledge::To(leader) => leader != self.me && (members.contains(&leader) || leader < self.me),
            Pledge::Leads { .. } => true,
        })
    }

    /// What operators have asked this node and these for, this node's first.
    fn wishes(&self, members: &BTreeSet<NodeId>) -> impl Iterator<Item = RosterChange> {
        let others = members.iter().filter_map(|node| self.peers.get(node)?.state.as_ref()?.wish);
        self.wish.into_iter().chain(others)
    }

    /// Starting nodes that everybody sees and whose former life has been dealt with; one of them at most for the first
    /// time.
    fn joiners(&self, base: &View, members: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let mut joiners = BTreeSet::new();
        let mut leaving = self.wishes(members).filter_map(|wish| match wish {
            RosterChange::Remove(node) => Some(node),
            RosterChange::Admit(..) => None,
        });
        let leaving: BTreeSet<NodeId> = leaving.by_ref().collect();
        for (&node, peer) in &self.peers {
            let admitted = base.roster.has(node) || !self.rules.hold(Rule::RemovedStayOut);
            let first_time = !base.roster.votes(node);
            let one = !first_time || joiners.iter().all(|other| base.roster.votes(*other));
            if !admitted || !one || leaving.contains(&node) {
                continue;
            }
            let released = !base.unrecovered.contains(&node) || !self.rules.hold(Rule::JoinAfterRelease);
            let starting = peer.state.as_ref().is_some_and(|state| state.view().is_none() && state.pledge == Pledge::Free);
            let everybody = members.iter().chain(&joiners);
            let mut linked = everybody.map(|other| self.sees(node, *other) && self.sees(*other, node));
            if starting && released && !base.has_node(node) && self.usable(node, peer.life) && linked.all(|linked| linked) {
                joiners.insert(node);
            }
        }
        joiners
    }

    /// Whether the attempt has the pledges that it needs to fence.
    pub(super) fn settled(&self, attempt: &Attempt) -> bool {
        if !self.rules.hold(Rule::Quorum) {
            return true;
        }
        let settled = |roster: &Roster| {
            // Half is enough only where more can't be had.
            let enough = match Quorum::among(roster, attempt.voters.iter().copied()) {
                Quorum::Half => Quorum::Half,
                _ => Quorum::Majority,
            };
            Quorum::among(roster, attempt.voters.intersection(&attempt.accepted).copied()) == enough
        };
        settled(&attempt.former) && settled(&attempt.roster)
    }

    /// Whether every member of the attempt has shown that it lives: it has accepted, or follows somebody who is left out. One
    /// that has done neither may be dead, and not everybody knows: who lost it first seems to be cut off from it, and
    /// would be left out and shot in its place.
    pub(super) fn answered(&self, attempt: &Attempt) -> bool {
        let follows_lost = |node: &NodeId| {
            let state = self.peers.get(node).and_then(|peer| peer.state.as_ref());
            let leader = state.and_then(|state| if let Pledge::To(leader) = state.pledge { Some(leader) } else { None });
            leader.is_some_and(|leader| attempt.lost.iter().any(|(lost, _)| *lost == leader))
        };
        let mut members = attempt.members.iter().map(|(node, _)| node);
        members.all(|node| attempt.accepted.contains(node) || follows_lost(node))
    }

    /// Whether the attempt can still come to its end as it was proposed.
    fn valid(&self, attempt: &Attempt) -> bool {
        let newest = self.newest().map_or(Epoch(0), |view| view.epoch);
        let expected = match (&attempt.step, &self.view) {
            (Step::Freezing(_), Some(view)) => view.epoch,
            _ => attempt.base,
        };
        let connected = attempt.members.iter().all(|&(a, life)| {
            (a == self.me || self.peers.get(&a).is_some_and(|peer| peer.life == life))
                && attempt.members.iter().all(|(b, _)| a == *b || self.sees(a, *b))
        });
        // A cold start goes by what is known of the roster.
        let current = attempt.base > Epoch(0) || attempt.step != Step::Gathering || attempt.former == self.known.roster;
        !attempt.broken && connected && newest == expected && current
    }

    /// Whether this attempt has to give way to another coordinator's.
    fn outranked(&self, attempt: &Attempt) -> bool {
        if attempt.step != Step::Gathering || self.settled(attempt) {
            return false;
        }
        let asks = self.asked.iter().any(|(leader, proposal)| {
            let settled = |state: &super::State| state.pledge == (Pledge::Leads { settled: true });
            let settled = self.peers.get(leader).is_some_and(|peer| peer.state.as_ref().is_some_and(settled));
            self.acceptable(*leader, proposal) && (*leader < self.me || settled)
        });
        let followed = attempt.members.iter().any(|(node, _)| {
            let state = self.peers.get(node).and_then(|peer| peer.state.as_ref());
            state.is_some_and(|state| matches!(state.pledge, Pledge::To(leader) if leader < self.me))
        });
        asks || followed
    }
}
