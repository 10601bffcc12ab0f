//! A view, in the shards: they freeze for it, go in it, recover what the lost nodes have left; in the first one the node opens.
//!
//! Led by the first shard's thread. Views are entered one after the other. Going in one is a task that the next one aborts, and
//! that can be begun anew: what it has done by then stays done. The membership hears when all shards have frozen, and when the
//! lost nodes' blocks and transactions are recovered.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::{Lead, RETRY};
use crate::btree::space::SpaceManager;
use crate::cluster::control::Command;
use crate::cluster::node::End;
use crate::cluster::status::{RecoveryStatus, RecoveryTimes};
use crate::cluster::view::{Input, Override, View};
use crate::reactor::TaskHandle;
use crate::store::{NodeStore, StoreError};
use crate::txn::Obstacle;

/// How often the recovery's progress is published.
const PROGRESS_EVERY: Duration = Duration::from_millis(20);

impl Lead {
    pub(super) async fn freeze(self: Rc<Self>, view: View, overrides: Vec<Override>) -> Result<(), End> {
        let _turn = self.entering.acquire(1).await;
        if self.parts.agent.view().is_none_or(|newest| newest.epoch != view.epoch) {
            return Ok(());
        }
        let overrides: Arc<[Override]> = overrides.into();
        let (for_shards, first) = (view.clone(), self.slot.borrow().epoch < view.epoch && self.first_go.get());
        self.each_shard("enter a view", async move |life| life.freeze(&for_shards, &overrides).await).await?;
        if first {
            let mut slot = *self.slot.borrow();
            slot.epoch = view.epoch;
            slot.scn = view.scn;
            self.parts.volume.write_node_slot(&mut slot).await?;
            *self.slot.borrow_mut() = slot;
        }
        self.parts.agent.input(Input::Frozen(view.epoch));
        Ok(())
    }

    pub(super) async fn go(self: Rc<Self>, view: View) -> Result<(), End> {
        let since = self.parts.reactor.now();
        let epoch = view.epoch;
        let for_shards = view.clone();
        self.each_shard("go in a view", async move |life| {
            life.go(&for_shards);
            Ok(())
        })
        .await?;
        let context = &self.parts.context;
        if let Some(heart) = &*self.heart.borrow() {
            // Whoever is a member again is in a life that nobody evicts.
            view.members.iter().for_each(|(node, _)| heart.pardon(*node));
        }
        context.status.view(epoch, view.members.iter().map(|(node, _)| *node).collect());
        context.shared.serving.resume(Obstacle::Quorum);
        if let Some(lease) = &*self.read_lease.borrow() {
            lease.entered();
        }
        if let Some((control, _)) = self.control() {
            control.follow(epoch, &view.roster);
        }
        if self.first_go.take() {
            self.beat()?;
            self.spawn("open", async |lead| lead.open().await);
        }
        self.tell_phase();
        if !view.unrecovered.is_empty() {
            tracing::info!(epoch = epoch.0, lost = ?view.unrecovered, "recovers the lost nodes");
        }
        if view.coordinator() == context.node {
            self.write_down(&view);
        }
        let progress = self.watch_progress(&view);
        self.each_shard("recover", async |life| life.recovered().await).await?;
        let blocks = self.parts.reactor.now();
        if view.coordinator() == context.node {
            let store = self.store();
            for node in &view.unrecovered {
                while let Err(error) = store.settle_dead_node(*node).await {
                    tracing::error!(%node, %error, "the transactions of a lost node could not be ended; tries again");
                    self.parts.reactor.sleep(RETRY).await;
                }
            }
        }
        progress.abort();
        context.status.recovery(None);
        if !view.unrecovered.is_empty() {
            let shards = self.each_shard("tell its progress", async |life| Ok(life.recovery_progress())).await?;
            context.status.recovered(RecoveryTimes::of(shards.into_iter().flatten()));
            let (blocks_ms, all_ms) =
                (blocks.since(since).as_millis() as u64, self.parts.reactor.now().since(since).as_millis() as u64);
            tracing::info!(epoch = epoch.0, lost = ?view.unrecovered, blocks_ms, all_ms, "the lost nodes are recovered");
        }
        self.parts.agent.input(Input::InstancesRecovered(epoch));
        Ok(())
    }

    /// Has the control group remember the view. Nothing waits for it: it decides nothing.
    fn write_down(self: &Rc<Self>, view: &View) {
        let Some((control, _)) = self.control() else { return };
        let epoch = view.epoch;
        let members = view.members.iter().map(|(node, _)| *node).collect();
        self.spawn("write the view down", async move |lead| {
            let newest = || lead.parts.agent.view().is_some_and(|newest| newest.epoch == epoch);
            control.propose_while(&Command::View { epoch, members }, newest).await;
            Ok(())
        });
    }

    /// Publishes how far the shards' recovery is, until it is aborted or another view is entered.
    fn watch_progress(self: &Rc<Self>, view: &View) -> TaskHandle {
        let (lost, epoch) = (view.unrecovered.clone(), view.epoch);
        self.spawn("publish the recovery's progress", async move |lead| {
            while !lost.is_empty() {
                let shards = lead.each_shard("tell its progress", async |life| Ok(life.recovery_progress())).await?;
                // The task that awaits the recovery is aborted with its view, and can't abort this one then.
                if lead.parts.agent.view().is_none_or(|newest| newest.epoch != epoch) {
                    break;
                }
                let status = RecoveryStatus::of(&lost, shards.into_iter().flatten());
                lead.parts.context.status.recovery(Some(status));
                lead.parts.reactor.sleep(PROGRESS_EVERY).await;
            }
            Ok(())
        })
    }

    fn store(&self) -> NodeStore {
        NodeStore::new(self.parts.context.node, self.remotes.clone(), self.parts.context.shared.clone())
    }

    /// Once in a life: finds the transactions, makes what every node expects, serves clients.
    async fn open(self: Rc<Self>) -> Result<(), End> {
        // The first shard gives the others space.
        self.parts.life.open().await?;
        if let Some(space) = self.parts.reactor.local::<SpaceManager>() {
            let agent = self.parts.agent.clone();
            space.hold_frees_while(Rc::new(move || agent.view().is_some_and(|view| !view.unrecovered.is_empty())));
        }
        self.each_shard("open", async |life| if life.is_first() { Ok(()) } else { life.open().await }).await?;
        let store = self.store();
        let failed = |error: StoreError| End::Failed(error.to_string());
        store.settle_branches().await.map_err(failed)?;
        // The first node to come makes them; all may try at once.
        store.create_system_partitions().await.map_err(failed)?;
        self.opened.set(true);
        self.tell_phase();
        tracing::info!(node = %self.parts.context.node, "serves");
        Ok(())
    }
}
