//! Leases to read in the walk: the part that needs a clock, which here counts steps. What a node's lead does, in short.

use std::collections::BTreeMap;

use super::super::super::{Input, Message};
use super::{Work, World};
use crate::ids::{Epoch, Incarnation, NodeId};

/// Steps that a lease lasts: some orders of a change of view.
const LEASE: u64 = 60;

/// A node's.
#[derive(Default)]
pub(super) struct Lease {
    granted: BTreeMap<NodeId, u64>,
    until: u64,
    /// When it first asked for a fence since the last view.
    lost_since: BTreeMap<NodeId, u64>,
}

impl World {
    /// Whether the node would answer a read from its cache, also when it wakes first.
    pub(super) fn reads(&self, node: NodeId) -> bool {
        let it = &self.nodes[&node];
        it.views.is_some() && it.serving.is_some() && it.lease.until > self.clock
    }

    /// Some node asks those that it sees, or finds that it needs to ask nobody.
    pub(super) fn ask_for_lease(&mut self) {
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        let node = nodes[self.random(nodes.len())];
        if !self.active(node) {
            return;
        }
        self.renew(node);
        let view = self.nodes[&node].views.as_ref().and_then(|views| views.view().cloned());
        let asked_ns = self.clock;
        for (other, _) in view.iter().flat_map(|view| &view.members).filter(|(other, _)| *other != node) {
            self.send(node, *other, Message::AskLease { epoch: view.as_ref().expect("it has members").epoch, asked_ns });
        }
    }

    fn renew(&mut self, node: NodeId) {
        let clock = self.clock;
        let it = self.nodes.get_mut(&node).expect("it exists");
        if let Some(since) = it.views.as_ref().and_then(|views| views.leased_since(&it.lease.granted)) {
            it.lease.until = it.lease.until.max(since.unwrap_or(clock) + LEASE);
        }
    }

    pub(super) fn lease_granted(&mut self, node: NodeId, by: NodeId, message: &Message) {
        let Message::GrantLease { epoch, asked_ns } = message else { return };
        let it = self.nodes.get_mut(&node).expect("it exists");
        if it.views.as_ref().and_then(|views| views.view()).is_some_and(|view| view.epoch == *epoch) {
            it.lease.granted.insert(by, *asked_ns);
            self.renew(node);
        }
    }

    pub(super) fn lease_of_new_view(&mut self, node: NodeId) {
        let lease = &mut self.nodes.get_mut(&node).expect("it exists").lease;
        lease.granted.clear();
        lease.lost_since.clear();
    }

    pub(super) fn fence_asked(&mut self, node: NodeId, target: NodeId) {
        let clock = self.clock;
        self.nodes.get_mut(&node).expect("it exists").lease.lost_since.entry(target).or_insert(clock);
    }

    fn epoch_of(&self, node: NodeId) -> Epoch {
        self.nodes[&node].views.as_ref().and_then(|views| views.view()).map_or(Epoch(0), |view| view.epoch)
    }

    pub(super) fn wait_for_lease(&mut self, node: NodeId, target: NodeId, life: Incarnation) {
        let epoch = self.epoch_of(node);
        self.nodes.get_mut(&node).expect("it exists").work.push(Work::WaitForLease(target, life, epoch));
    }

    pub(super) fn go_on_waiting(&mut self, node: NodeId, target: NodeId, life: Incarnation, epoch: Epoch) {
        let (it, clock) = (&self.nodes[&node], self.clock);
        let view = it.views.as_ref().and_then(|views| views.view());
        let member_again = view.is_some_and(|view| view.epoch > epoch && view.has(target, life));
        if member_again {
            self.input(node, Input::FenceFailed(target, life));
        } else if it.lease.lost_since.get(&target).is_some_and(|since| clock < since + LEASE) {
            // Nothing else may be under way: time passes all the same.
            self.clock += LEASE / 8;
            self.nodes.get_mut(&node).expect("it exists").work.push(Work::WaitForLease(target, life, epoch));
        } else {
            self.input(node, Input::Fenced(target, life));
        }
    }
}
