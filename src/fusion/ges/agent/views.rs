//! The lock service through a change of the members.
//!
//! Part of the agent; owned by its shard. The caller fences who is lost, has [`Ges::enter`] called on every member, and, when
//! all have entered, [`Ges::go`]; the interconnect drops what is of another epoch. A lost connection by itself neither fails
//! nor grants anything here: whoever waits goes on waiting, and the next change of the members sorts it out. What is claimed
//! is sent at once, in messages of [`CLAIMS_PER_MESSAGE`] claims; bounded by the locks that this node has.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::super::core::rebuild::{Claim, ClaimsEnd};
use super::super::core::{GesCore, Output};
use super::super::deadlock::Waits;
use super::super::local::LocalCore;
use super::super::types::ResourceClass;
use super::super::wire::{CLAIMS_PER_MESSAGE, Wire};
use super::{EndWaiter, Ges, Transactions, Work};
use crate::ids::{Epoch, NodeId, TxnId};
use crate::interconnect::Interconnect;

impl Ges {
    /// As [`Ges::unregistered`], in an epoch of these members that is being entered: until [`Ges::go`] nothing is sent, and
    /// no lock is granted before the members' claims are in.
    #[must_use]
    pub fn entering(
        net: &Interconnect,
        transactions: Rc<dyn Transactions>,
        deadlock_timeout: Duration,
        epoch: Epoch,
        members: &[NodeId],
    ) -> Ges {
        let node = net.node();
        let members = sorted(node, epoch, members);
        let (core, local) = (GesCore::entering(&members), LocalCore::entering(node));
        Ges::with_cores(net, transactions, deadlock_timeout, epoch, members, core, local)
    }

    /// Leaves the former epoch: nothing is sent any more, the master's state is thrown away. Users keep what they hold, and
    /// those who wait go on waiting. A further epoch may be entered before the members have gone on in this one. To be
    /// followed, in the same turn, by [`Interconnect::set_epoch`].
    pub fn enter(&self, epoch: Epoch, members: &[NodeId]) {
        let before = self.0.epoch.replace(epoch).max(self.0.net.epoch());
        assert!(epoch > before, "from {before} back to {epoch}");
        let members = sorted(self.0.node, epoch, members);
        let former = self.0.members.replace(members.clone());
        self.0.core.borrow_mut().enter(&former, &members);
        self.0.local.borrow_mut().enter();
        // Who still waits asks again.
        self.0.end_waiters.borrow_mut().retain(|_, waiters| {
            waiters.retain(|waiter| matches!(waiter, EndWaiter::Here(_)));
            !waiters.is_empty()
        });
    }

    /// All members have entered: claims at the new masters what this node holds, and asks again for what its users wait for.
    /// Who waits for the end of a transaction of a node that is no member any more goes on.
    pub fn go(&self) {
        let (mut claims, in_doubt) = self.0.core.borrow_mut().go();
        claims.extend(self.0.local.borrow().claims());
        let members = self.0.members.borrow().clone();
        let mut by_master: BTreeMap<NodeId, Vec<Claim>> = members.iter().map(|member| (*member, Vec::new())).collect();
        for claim in claims {
            let master = self.0.master(&claim.resource);
            by_master.get_mut(&master).expect("members are masters").push(claim);
        }
        let node = self.0.node;
        for (master, claims) in by_master {
            let end = ClaimsEnd { count: claims.len() as u64, in_doubt };
            if master == node {
                for claim in claims {
                    self.tell_master(|core, outputs| core.on_claim(node, claim, outputs));
                }
                self.tell_master(|core, outputs| core.on_claims_end(node, end, outputs));
                continue;
            }
            for some in claims.chunks(CLAIMS_PER_MESSAGE) {
                self.send(master, &Wire::Claims(some.to_vec()));
            }
            self.send(master, &Wire::ClaimsEnd(end));
        }
        let mut effects = Vec::new();
        self.0.local.borrow_mut().go(&mut effects);
        self.run(effects);
        self.await_ends_again(&members);
    }

    /// Resolves when this shard's master has heard what all members hold, and serves.
    pub async fn rebuilt(&self) {
        loop {
            let changed = self.0.rebuilt.notified();
            if !self.0.core.borrow().is_rebuilding() {
                return;
            }
            changed.await;
        }
    }

    /// Whether nothing is to be sent, because not all members are known to be in the epoch.
    pub(super) fn is_silent(&self) -> bool {
        self.0.local.borrow().is_silent()
    }

    /// Whether a node is known not to be among the members with which this one goes on.
    pub(super) fn is_lost(&self, node: NodeId) -> bool {
        !self.is_silent() && !self.0.members.borrow().contains(&node)
    }

    /// Has the master take something in, and performs what follows.
    pub(super) fn tell_master(&self, tell: impl FnOnce(&mut GesCore, &mut Vec<Output>)) {
        let mut outputs = Vec::new();
        let (before, after) = {
            let mut core = self.0.core.borrow_mut();
            let before = core.is_rebuilding();
            tell(&mut core, &mut outputs);
            (before, core.is_rebuilding())
        };
        if before && !after {
            self.0.rebuilt.notify_all();
        }
        self.work_off(outputs.into_iter().map(Work::Output).collect());
    }

    fn await_ends_again(&self, members: &[NodeId]) {
        let waits = self.0.waits.borrow();
        let transactions = waits.iter().filter(|(_, wait)| wait.resource.class == ResourceClass::TRANSACTION);
        let awaited: Vec<_> = transactions
            .map(|(id, wait)| (*id, TxnId::from_raw(wait.resource.id1).expect("a transaction's name is its id")))
            .filter(|(_, holder)| holder.node() != self.0.node)
            .collect();
        drop(waits);
        for (wait, holder) in awaited {
            if members.contains(&holder.node()) {
                self.send(holder.node(), &Wire::AwaitEnd(holder, wait.0));
            } else {
                self.end(wait, Ok(()));
            }
        }
    }
}

fn sorted(node: NodeId, epoch: Epoch, members: &[NodeId]) -> Vec<NodeId> {
    assert!(members.contains(&node), "{node} enters {epoch} without being a member of it: {members:?}");
    let mut members = members.to_vec();
    members.sort_unstable();
    members
}
