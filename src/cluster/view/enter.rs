//! How a decided view is entered: fence, begin the epoch, freeze, go; then recover and release.
//!
//! Nothing here asks why these are the members. The order is what keeps the data: whoever is left out is fenced before
//! the epoch begins on the volume, so that nobody who was left out can begin one beside it; every member has left the
//! former epoch before one serves in the new.

use std::collections::BTreeSet;

use super::decide::{Attempt, Step};
use super::{EVERY_LIFE, Fence, Message, OVERRIDES_MAX, Output, Override, Quorum, Rule, View, Views, VolumeWork};
use crate::ids::{Epoch, Incarnation, NodeId, Scn};

impl Views {
    /// Takes the change that this node leads as far as it goes.
    pub(super) fn advance(&mut self, out: &mut Vec<Output>) {
        let Some(attempt) = &self.attempt else { return };
        match &attempt.step {
            Step::Gathering => {
                if !self.settled(attempt) || !self.answered(attempt) {
                    return;
                }
                let pending = self.ask_for_fences(out);
                let Some(attempt) = &mut self.attempt else { return };
                let fenced = pending == 0 || !self.rules.hold(Rule::FenceFirst);
                if !fenced
                    || attempt.accepted.len() < attempt.members.len()
                    || (self.volume.is_some() && self.rules.hold(Rule::OneVolumeWork))
                {
                    return;
                }
                attempt.step = Step::Beginning;
                self.volume = Some(VolumeWork::Begin { ballot: attempt.ballot });
                let roster = attempt.roster.clone();
                out.push(match attempt.base {
                    Epoch(0) => Output::Recover { known: self.known.epoch, roster },
                    base => Output::BeginEpoch { at_least: Epoch(base.0 + 1), roster },
                });
            }
            Step::Beginning => {}
            Step::Freezing(frozen) => {
                if frozen.len() < attempt.members.len() && (self.rules.hold(Rule::GoAfterAllFrozen) || !self.frozen) {
                    return;
                }
                let epoch = self.view.as_ref().expect("entered when it began to freeze").epoch;
                let others = attempt.members.iter().filter(|(node, _)| *node != self.me);
                out.extend(others.map(|(node, _)| Output::Send(*node, Message::Go(epoch))));
                self.go(out);
            }
        }
    }

    /// Fences who is left out; how many are not fenced yet. With half of the nodes one after the other from the lowest,
    /// so that the coordinators of two halves meet: one of them shoots first, and the other shoots nobody any more.
    fn ask_for_fences(&mut self, out: &mut Vec<Output>) -> usize {
        let Some(attempt) = &self.attempt else { return 0 };
        let one_by_one = Quorum::among(&attempt.former, attempt.voters.iter().copied()) == Quorum::Half;
        let mut pending = 0;
        for &lost in &attempt.lost {
            if self.fences.get(&lost) == Some(&Fence::Done) {
                continue;
            }
            pending += 1;
            self.fences.entry(lost).or_insert_with(|| {
                out.push(Output::Fence(lost.0, lost.1));
                Fence::Asked { failures: 0 }
            });
            if one_by_one {
                break;
            }
        }
        pending
    }

    pub(super) fn fence_failed(&mut self, node: NodeId, life: Incarnation, out: &mut Vec<Output>) {
        let wanted = |attempt: &Attempt| attempt.lost.contains(&(node, life));
        let back = self.peers.get(&node).is_some_and(|peer| peer.life == life && !peer.suspected);
        match self.fences.get_mut(&(node, life)) {
            // Nothing was proven, and it is there again in the same life: it can stay.
            Some(Fence::Asked { .. }) if back => {
                self.fences.remove(&(node, life));
                if self.attempt.as_ref().is_some_and(|attempt| wanted(attempt) && attempt.step == Step::Gathering) {
                    self.give_up();
                }
            }
            Some(Fence::Asked { failures }) if self.attempt.as_ref().is_some_and(wanted) => {
                *failures += 1;
                out.push(Output::Fence(node, life));
            }
            Some(Fence::Asked { .. }) => {
                self.fences.remove(&(node, life));
            }
            Some(Fence::Done) | None => {}
        }
    }

    /// The epoch is on the volume.
    pub(super) fn begun(&mut self, epoch: Epoch, scn: Scn, mut overrides: Vec<Override>, out: &mut Vec<Output>) {
        let Some(VolumeWork::Begin { ballot }) = self.volume.take() else {
            panic!("{epoch} was begun on the volume that nobody asked for")
        };
        // A member may have been lost meanwhile; then this epoch number is never used.
        let given_up = self.attempt.as_ref().is_none_or(|attempt| attempt.ballot != ballot || !self.still(attempt));
        if given_up {
            return;
        }
        let base = self.newest().cloned();
        let attempt = self.attempt.as_mut().expect("looked at above");
        let lost = attempt.lost.iter().filter(|(_, life)| *life != EVERY_LIFE).map(|(node, _)| *node);
        let mut unrecovered: BTreeSet<NodeId> = lost.collect();
        if let Some(base) = base {
            assert!(epoch > base.epoch, "{epoch} was begun after {}: the volume has gone back", base.epoch);
            if self.rules.hold(Rule::UnrecoveredStay) {
                unrecovered.extend(base.unrecovered);
            }
        }
        let view = View {
            epoch,
            members: attempt.members.clone(),
            unrecovered: unrecovered.into_iter().collect(),
            scn,
            roster: attempt.roster.clone(),
            new: attempt.new,
        };
        attempt.step = Step::Freezing(BTreeSet::new());
        // What was a lost node's goes back to the ring; everything else stays where it is.
        overrides.retain(|moved| view.has_node(moved.master));
        overrides.truncate(OVERRIDES_MAX);
        for (node, _) in view.members.iter().filter(|(node, _)| *node != self.me) {
            out.push(Output::Send(*node, Message::Freeze { ballot, view: view.clone(), overrides: overrides.clone() }));
        }
        self.enter(view, overrides, out);
    }

    /// Whether nothing that an attempt relies on has changed.
    pub(super) fn still(&self, attempt: &Attempt) -> bool {
        !attempt.broken && attempt.step == Step::Beginning
    }

    pub(super) fn enter(&mut self, view: View, overrides: Vec<Override>, out: &mut Vec<Output>) {
        if self.rules.all_hold() {
            let ours = self.view.as_ref().map_or(Epoch(0), |view| view.epoch);
            assert!(view.epoch > ours, "from {ours} back to {}", view.epoch);
            assert!(view.has(self.me, self.life), "this life of {} is not a member of {}", self.me, view.epoch);
            assert!(!view.unrecovered.iter().any(|node| view.has_node(*node)), "an unrecovered member of {}", view.epoch);
            assert!(view.members.iter().all(|(node, _)| view.roster.votes(*node)), "{view:?} has a member that is no node's");
        }
        self.frozen = false;
        self.went = false;
        self.recovered.clear();
        self.forsaken.clear();
        // A member that was fenced when the change was another one's: should it be left out later, that is proven anew,
        // because it was let read until then.
        self.fences.retain(|(node, life), fence| *fence != Fence::Done || !view.has(*node, *life));
        self.disturbed = self.reached(&view).len() < view.members.len();
        self.view = Some(view.clone());
        self.takes_roster_of(&view);
        out.push(Output::Freeze(view, overrides));
    }

    pub(super) fn own_shards_frozen(&mut self, epoch: Epoch, out: &mut Vec<Output>) {
        if self.view.as_ref().is_none_or(|view| view.epoch != epoch) || self.frozen {
            return;
        }
        self.frozen = true;
        if self.attempt.is_some() {
            self.member_frozen(self.me, epoch);
        } else if let Some((to, _)) = self.pledge {
            out.push(Output::Send(to, Message::Frozen(epoch)));
        }
    }

    pub(super) fn member_frozen(&mut self, node: NodeId, epoch: Epoch) {
        let ours = self.view.as_ref().map(|view| view.epoch);
        if let Some(attempt) = &mut self.attempt
            && ours == Some(epoch)
            && attempt.has_node(node)
            && let Step::Freezing(frozen) = &mut attempt.step
        {
            frozen.insert(node);
        }
    }

    pub(super) fn go(&mut self, out: &mut Vec<Output>) {
        self.attempt = None;
        self.pledge = None;
        self.went = true;
        self.suspended = false;
        self.patience_over = false;
        out.push(Output::Go(self.view.clone().expect("a view is entered before it goes")));
    }

    pub(super) fn own_part_recovered(&mut self, epoch: Epoch, out: &mut Vec<Output>) {
        let Some(view) = &self.view else { return };
        let coordinator = view.coordinator();
        if view.epoch != epoch {
            return;
        }
        if coordinator == self.me {
            self.part_recovered(self.me, epoch);
        } else if self.peers.contains_key(&coordinator) {
            out.push(Output::Send(coordinator, Message::InstancesRecovered(epoch)));
        }
    }

    pub(super) fn part_recovered(&mut self, node: NodeId, epoch: Epoch) {
        if self.view.as_ref().is_some_and(|view| view.epoch == epoch) {
            self.recovered.insert(node);
        }
    }

    /// Has the redo of the unrecovered nodes reset, once nobody needs it.
    pub(super) fn release_redo(&mut self, out: &mut Vec<Output>) {
        let Some(view) = &self.view else { return };
        let quiet = self.attempt.is_none() && self.pledge.is_none() && self.volume.is_none();
        let all = view.members.iter().all(|(node, _)| self.recovered.contains(node));
        let all = all || (!self.rules.hold(Rule::ReleaseAfterAll) && !self.recovered.is_empty());
        if self.went && quiet && all && !view.unrecovered.is_empty() && view.coordinator() == self.me {
            self.volume = Some(VolumeWork::Release);
            out.push(Output::ReleaseRedo { epoch: view.epoch, nodes: view.unrecovered.clone() });
        }
    }

    pub(super) fn redo_released(&mut self, epoch: Epoch, out: &mut Vec<Output>) {
        assert_eq!(self.volume.take(), Some(VolumeWork::Release), "redo of {epoch} was released that nobody asked for");
        self.released(epoch);
        if let Some(view) = &self.view
            && view.epoch == epoch
        {
            let others = view.members.iter().filter(|(node, _)| self.peers.contains_key(node));
            out.extend(others.map(|(node, _)| Output::Send(*node, Message::Released(epoch))));
        }
    }

    pub(super) fn released(&mut self, epoch: Epoch) {
        if let Some(view) = &mut self.view
            && view.epoch == epoch
        {
            view.unrecovered.clear();
        }
    }
}
