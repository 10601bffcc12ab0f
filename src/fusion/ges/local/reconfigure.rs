//! A node's side of a change of the members: stop, tell the new masters what is held, go on.
//!
//! Between [`LocalCore::enter`] and [`LocalCore::go`] nothing is said to any master: one that is still in the former epoch
//! would not hear it. Users go on with what the node holds; what they ask for beyond that waits. Owned by the shard of its
//! [`LocalCore`].

use super::super::core::rebuild::{Claim, Claimed};
use super::super::rules::Rule;
use super::super::types::Resource;
use super::{Effect, LocalCore};
use crate::ids::NodeId;

impl LocalCore {
    /// The node is new, and enters its first epoch.
    #[must_use]
    pub fn entering(node: NodeId) -> LocalCore {
        LocalCore { silent: true, ..LocalCore::new(node) }
    }

    /// Leaves an epoch. What was asked of its masters has not been asked, what they have said but a grant that came is
    /// void; a mode that was being lowered is lowered.
    pub fn enter(&mut self) {
        self.silent = true;
        for entry in self.resources.values_mut() {
            (entry.pending, entry.give_up, entry.told_busy, entry.lower) = (None, None, false, false);
        }
        self.resources.retain(|_, entry| entry.known || !entry.is_idle());
    }

    /// What the node holds, each lock once, also those that nobody uses.
    pub fn claims(&self) -> impl Iterator<Item = Claim> + '_ {
        let known = self.resources.iter().filter(|(_, entry)| entry.known);
        known.map(|(resource, entry)| Claim { resource: *resource, what: Claimed::Lock(entry.mode), value: entry.value })
    }

    /// All members have entered, and the claims are on their way: asks again for what users wait for.
    pub fn go(&mut self, out: &mut Vec<Effect>) {
        assert!(std::mem::take(&mut self.silent), "the members go once in an epoch");
        if !self.rules.hold(Rule::AskAgain) {
            return;
        }
        let resources: Vec<Resource> = self.resources.keys().copied().collect();
        for resource in resources {
            self.advance(resource, out);
        }
    }

    /// Whether it says nothing until all members are in the epoch.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.silent
    }
}
