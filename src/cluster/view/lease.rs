//! The lease to read: a member answers from its cache only as long as it knows that the others can't have gone on without it.
//!
//! Fencing by the device stops a node's writes, not its reads: a node that stood still (SIGSTOP, a paused machine) and
//! wakes has a cache full of what was true. So every member asks the others again and again whether they still count it in,
//! and answers reads for seven eighths of the lease's time from when it *asked*. Whoever fences a node by other
//! means than ending its process waits for the whole time, from when it first asked for the fence.
//!
//! Why that is enough: a member that follows a change (or leads one) *forsakes* those whom the change leaves out, and grants
//! them nothing more in this view, also when the change is given up. Fencing begins when half of the roster's voters or
//! more have followed (of the roster before, while the view that brought a new one has not gone); a lease needs more than
//! half, or all of a view's members where that is less. So of those whose grants hold a lease one is among those who
//! followed, or was when its life ended: it granted before the fence was asked for, and what was asked before that has run
//! out after the wait. A later life of it grants nothing: it is not in the view. It relies on clocks that run equally fast
//! within an eighth, not on what they show.
//!
//! Here is what needs no clock. The clock's part is in `cluster/read_lease.rs`.

use std::collections::BTreeMap;

use super::{Quorum, Rule, Views};
use crate::ids::{Epoch, Incarnation, NodeId};

impl Views {
    /// Grants no lease to members of the view that a change to these members leaves out.
    pub(super) fn forsake(&mut self, next: &[(NodeId, Incarnation)]) {
        if let Some(view) = &self.view {
            self.forsaken.extend(view.members.iter().filter(|member| !next.contains(member)).map(|(node, _)| *node));
        }
    }

    /// Whether the connected life of this node is a member of the view that this node is in, and was never forsaken there.
    pub(super) fn grants_lease(&self, node: NodeId, epoch: Epoch) -> bool {
        let member = |view: &super::View| self.peers.get(&node).is_some_and(|peer| view.has(node, peer.life));
        self.view.as_ref().is_some_and(|view| view.epoch == epoch && member(view))
            && !(self.forsaken.contains(&node) && self.rules.hold(Rule::Forsake))
    }

    /// The other members of the view that are connected in that life.
    pub(super) fn connected_members(&self) -> Vec<NodeId> {
        let members = self.view.iter().flat_map(|view| &view.members);
        let connected = members.filter(|(node, life)| self.peers.get(node).is_some_and(|peer| peer.life == *life));
        connected.map(|(node, _)| *node).collect()
    }

    /// The newest moment such that enough members have granted what was asked then or later: `granted` has for each the
    /// last such moment, in this view. `Some(None)`: this node needs nobody's grant. `None`: not enough have.
    #[must_use]
    pub fn leased_since(&self, granted: &BTreeMap<NodeId, u64>) -> Option<Option<u64>> {
        let view = self.view.as_ref()?;
        let mut votes = vec![self.me];
        let enough =
            |votes: &[NodeId]| self.quorum_of(votes.iter().copied()) == Quorum::Majority || votes.len() == view.members.len();
        if enough(&votes) {
            return Some(None);
        }
        let members = granted.iter().filter(|(node, _)| **node != self.me && view.has_node(**node));
        let mut moments: Vec<(u64, NodeId)> = members.map(|(node, moment)| (*moment, *node)).collect();
        moments.sort_unstable_by(|a, b| b.cmp(a));
        for (moment, node) in moments {
            votes.push(node);
            if enough(&votes) {
                return Some(Some(moment));
            }
        }
        None
    }
}
