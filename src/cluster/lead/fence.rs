//! Keeping a lost node's life from the volume, before anybody touches what it leaves.
//!
//! In the first shard's thread, a task for each life that the membership wants fenced. Nothing is fenced by guess: the life's
//! own slot proves that it is over, or the configured method does, or in manual mode an operator's word. Whoever may still
//! read what it has cached is waited for as well, as long as its lease may last.

use std::time::Duration;

use super::{Lead, LeadParts};
use crate::cluster::fencing::{FencingError, Life, Strength, Victim};
use crate::cluster::view::{EVERY_LIFE, Input, View};
use crate::config::FencingMode;
use crate::ids::{Epoch, Incarnation, NodeId};
use crate::rules::{DesignRule, kept};
use crate::volume::{NodeSlot, NodeState};

/// It is tried again and again; the log has it once in this time.
pub(super) const SAY_EVERY: Duration = Duration::from_secs(10);

/// So long an operator's word counts: an attempt to fence comes twice a second, and what was true of a machine does not stay so.
const WORD_HOLDS: Duration = Duration::from_secs(60);

impl Lead {
    /// An operator wants the node out, and in manual mode, or when he says so, vouches for it that it can't write any more. His word is for
    /// this loss, and counts where no method has a proof.
    pub(in crate::cluster) fn fence_by_hand(&self, node: NodeId, vouches: bool) -> Result<(), String> {
        let LeadParts { context, agent, .. } = &self.parts;
        if node == context.node {
            return Err(format!("{node} can't fence itself: ask another node, or stop it"));
        }
        if !agent.roster().has(node) {
            return Err(format!("there is no {node} in this cluster"));
        }
        let vouches = vouches || context.config.ha.fencing_mode == FencingMode::Manual;
        if vouches {
            self.confirmed.borrow_mut().insert(node, self.parts.reactor.now());
        }
        tracing::warn!(%node, vouches, "an operator has it fenced");
        agent.input(Input::TakeOut(Some(node)));
        Ok(())
    }

    /// Whether an operator has just vouched for the node; once.
    fn take_word(&self, node: NodeId) -> bool {
        let given = self.confirmed.borrow_mut().remove(&node);
        given.is_some_and(|given| self.parts.reactor.now().since(given) <= WORD_HOLDS)
    }

    /// Why what a node says of itself on the volume is proof that a life of it is over, if it is.
    fn slot_proves(&self, slot: &NodeSlot, life: Incarnation) -> Option<&'static str> {
        let stopped = slot.state != NodeState::Running && slot.incarnation != Incarnation(0);
        if stopped && (slot.incarnation == life || life == EVERY_LIFE) {
            return Some("it was stopped, and wrote its slot last");
        }
        // The next life has waited for the end of the former one's writes before it wrote its slot.
        let next = life != EVERY_LIFE && slot.incarnation > life;
        (next && self.parts.fences.next_life_is_proof()).then_some("it has begun its next life: the former one is over")
    }

    /// Whether the life is proven to be kept from the volume, and answers nobody any more.
    pub(super) async fn fence(&self, node: NodeId, incarnation: Incarnation) -> bool {
        let (reactor, context) = (&self.parts.reactor, &self.parts.context);
        let asked = reactor.now();
        let asked_in = self.parts.agent.view().map_or(Epoch(0), |view| view.epoch);
        if !kept(DesignRule::RecoverAfterFence) {
            return true;
        }
        if let Ok(slot) = self.parts.volume.read_node_slot(node).await
            && let Some(why) = self.slot_proves(&slot, incarnation)
        {
            tracing::info!(%node, life = %slot.incarnation, "{why}");
            return true;
        }
        if context.config.ha.fencing_mode == FencingMode::Manual {
            let confirmed = self.take_word(node);
            if !confirmed && self.not_fenced.pass(reactor.now()).is_some() {
                tracing::error!(
                    %node,
                    "it is lost, and fencing_mode is manual: make sure that it can't write to the volume, then say so with \
                     `rusty-db-cli node fence {node}`"
                );
            }
            return confirmed;
        }
        let address = self.parts.agent.roster().nodes().get(&node).map(|there| there.address);
        let heart = self.heart.borrow().clone().filter(|_| self.parts.fences.lease().is_some());
        let mut evicted_ago = None;
        if let Some(heart) = heart {
            heart.evict(node, incarnation).await;
            evicted_ago = Some(Duration::ZERO);
        }
        let victim = Victim { life: Life { node, incarnation }, address, pid: None, evicted_ago };
        match self.parts.fences.fence(victim).await {
            Ok(proof) => {
                if !matches!(proof.strength(), Strength::Process | Strength::Operator) {
                    // It can't write, but may read what it has cached until its lease has run out.
                    let since = self.lost_since.borrow().get(&node).copied().unwrap_or(asked);
                    reactor.sleep_until(since + context.config.ha.read_lease()).await;
                    let again = |view: View| view.epoch > asked_in && view.has(node, incarnation);
                    if self.parts.agent.view().is_some_and(again) {
                        // Another coordinator has kept it, and so it has a lease again.
                        return false;
                    }
                }
                // The method has logged the proof.
                tracing::info!(%node, took_ms = reactor.now().since(asked).as_millis() as u64, "fenced");
                true
            }
            Err(error @ FencingError::NoProof { .. }) if self.take_word(node) => {
                tracing::warn!(%node, %error, "an operator has said that it can't write: recovered on his word");
                true
            }
            Err(error) => {
                if let Some(held_back) = self.not_fenced.pass(reactor.now()) {
                    tracing::error!(%node, held_back, "can't fence, tries again: {error}");
                }
                false
            }
        }
    }
}
