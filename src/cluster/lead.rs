//! The first shard's lead of a node's life: does what the membership wants, shard by shard.
//!
//! Owned by the first shard's thread. It takes one wish after the other from the [`ViewsAgent`] and never waits for one
//! before it looks at the next: each is carried out by a task, which tells the membership when it is done. Entering views
//! is done one after the other; recovering and serving in one ends when the next is entered. Bounded by the membership,
//! which has at most one thing under way about each node.

mod roster;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::control::{Command, Control};
use super::fencing::{Fences, Life, Strength, Victim};
use super::node::{End, NodeContext};
use super::pulse::{Finding, Heart, HeartParts};
use super::read_lease::ReadLease;
use super::recovery;
use super::shard::ShardLife;
use super::status::{Phase, RecoveryStatus, RecoveryTimes};
use super::view::{EVERY_LIFE, Input, OVERRIDES_MAX, Output, Override, View, ViewsAgent};
use crate::btree::space::SpaceManager;
use crate::config::FencingMode;
use crate::ids::{Epoch, Incarnation, NodeId, Scn};
use crate::reactor::sync::{Notify, Semaphore};
use crate::reactor::{Class, Instant, Reactor, Remote, TaskHandle};
use crate::rules::{DesignRule, kept};
use crate::store::NodeStore;
use crate::txn::Obstacle;
use crate::volume::{ControlBlock, NodeSlot, NodeState, Roster, Volume};
use crate::wal::Log;

/// How long a node that stops waits for other nodes to write the blocks whose past images it keeps.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries to fence a node, or to end its transactions.
const RETRY: Duration = Duration::from_millis(500);
/// How often the recovery's progress is published.
const PROGRESS_EVERY: Duration = Duration::from_millis(20);

/// What the lead works with.
pub(super) struct LeadParts {
    pub(super) reactor: Reactor,
    pub(super) context: Arc<NodeContext>,
    pub(super) volume: Volume,
    pub(super) slot: NodeSlot,
    pub(super) agent: Rc<ViewsAgent>,
    pub(super) fences: Rc<dyn Fences>,
    pub(super) life: Rc<ShardLife>,
}

/// See the module.
pub(super) struct Lead {
    parts: LeadParts,
    slot: RefCell<NodeSlot>,
    remotes: Vec<Remote>,
    /// Views are entered one after the other.
    entering: Semaphore,
    /// Recovering and opening in the view that went last.
    going: RefCell<Option<TaskHandle>>,
    /// Held by what writes the cluster's own facts and the redo of others.
    volume_work: Semaphore,
    first_go: Cell<bool>,
    opened: Cell<bool>,
    /// Since when this view's changes leave nodes out: what they were granted before, they may read by.
    lost_since: RefCell<BTreeMap<NodeId, Instant>>,
    read_lease: RefCell<Option<Rc<ReadLease>>>,
    /// From the first view on.
    heart: RefCell<Option<Rc<Heart>>>,
    /// Lost nodes of which an operator has said that they can't write any more.
    confirmed: RefCell<BTreeSet<NodeId>>,
    /// An operator's change to the cluster's nodes is under way here.
    changing_roster: Cell<bool>,
    failure: RefCell<Option<End>>,
    failed: Notify,
}

impl Lead {
    pub(super) fn new(parts: LeadParts) -> Rc<Lead> {
        let remotes = parts.context.remotes.lock().expect("nobody panics while holding it").clone();
        Rc::new(Lead {
            slot: RefCell::new(parts.slot),
            parts,
            remotes,
            entering: Semaphore::new(1),
            going: RefCell::new(None),
            volume_work: Semaphore::new(1),
            first_go: Cell::new(true),
            opened: Cell::new(false),
            lost_since: RefCell::default(),
            read_lease: RefCell::default(),
            heart: RefCell::default(),
            confirmed: RefCell::default(),
            changing_roster: Cell::new(false),
            failure: RefCell::new(None),
            failed: Notify::new(),
        })
    }

    /// Serves until the life is over (an error), or until `stopped` resolves; then stops cleanly.
    pub(super) async fn run(self: &Rc<Self>, stopped: impl Future<Output = ()>) -> Result<(), End> {
        let outcome = self.serve(stopped).await;
        if let Some(going) = self.going.take() {
            going.abort();
        }
        outcome?;
        // No view is entered any more: its first one would write the slot, too.
        let _entered = self.entering.acquire(1).await;
        let all_written = self.close().await?;
        // The slot is this life's last write: to the others it proves that the life is over.
        let _quiet = self.volume_work.acquire(1).await;
        let heart = self.heart.borrow().clone();
        if let Some(heart) = &heart {
            heart.stop().await;
        }
        let mut slot = *self.slot.borrow();
        slot.scn = self.parts.context.shared.clock.latest();
        slot.state = if all_written { NodeState::Clean } else { NodeState::Stopped };
        self.parts.volume.write_node_slot(&mut slot).await?;
        if let Some(heart) = heart {
            heart.rest();
        }
        // Only now do the others hear that it is gone.
        self.parts.life.end();
        Ok(())
    }

    async fn serve(self: &Rc<Self>, stopped: impl Future<Output = ()>) -> Result<(), End> {
        let mut stopped = std::pin::pin!(stopped);
        let LeadParts { reactor, context, agent, .. } = &self.parts;
        let lease = ReadLease::start(reactor, agent, &context.shared.serving, context.config.ha.read_lease());
        *self.read_lease.borrow_mut() = Some(lease);
        let patience = self.parts.context.config.ha.cold_start_patience();
        let this = self.clone();
        self.parts.reactor.spawn(Class::Normal, "cold start patience", async move {
            loop {
                this.parts.reactor.sleep(patience).await;
                if !this.parts.agent.serves() {
                    // Whoever is fenced at a cold start for being missing had better be one of the nodes still.
                    if this.parts.agent.view().is_none()
                        && let Err(error) = this.read_roster().await
                    {
                        tracing::error!(%error, "the volume does not say which nodes the cluster has");
                        continue;
                    }
                    this.parts.agent.input(Input::FormWithoutMissing);
                }
            }
        });
        self.watch_roster();
        loop {
            let mut next = std::pin::pin!(self.next());
            let next = std::future::poll_fn(|context| {
                self.publish();
                if let std::task::Poll::Ready(next) = next.as_mut().poll(context) {
                    return std::task::Poll::Ready(Some(next));
                }
                stopped.as_mut().poll(context).map(|()| None)
            });
            match next.await {
                None => return Ok(()),
                Some(output) => self.perform(output?)?,
            }
        }
    }

    async fn next(&self) -> Result<Output, End> {
        let failed = async {
            loop {
                let failed = self.failed.notified();
                if let Some(end) = self.failure.borrow_mut().take() {
                    return end;
                }
                failed.await;
            }
        };
        let mut failed = std::pin::pin!(failed);
        let mut next = std::pin::pin!(self.parts.agent.next());
        std::future::poll_fn(|context| {
            if let std::task::Poll::Ready(end) = failed.as_mut().poll(context) {
                return std::task::Poll::Ready(Err(end));
            }
            next.as_mut().poll(context).map(Ok)
        })
        .await
    }

    /// Tells whoever asks what the node is at.
    fn publish(&self) {
        let status = &self.parts.context.status;
        let reason = if self.opened.get() { self.parts.context.shared.serving.reason() } else { None };
        status.detail(reason.unwrap_or_else(|| self.parts.agent.waiting_for()));
    }

    fn fail(&self, end: End) {
        self.failure.borrow_mut().get_or_insert(end);
        self.failed.notify_all();
    }

    fn spawn(self: &Rc<Self>, name: &'static str, work: impl AsyncFnOnce(Rc<Lead>) -> Result<(), End> + 'static) -> TaskHandle {
        let this = self.clone();
        self.parts.reactor.spawn(Class::Critical, name, async move {
            if let Err(end) = work(this.clone()).await {
                this.fail(end);
            }
        })
    }

    fn perform(self: &Rc<Self>, output: Output) -> Result<(), End> {
        let status = &self.parts.context.status;
        match output {
            Output::Send(..) => unreachable!("the membership sends by itself"),
            Output::Recover { known, roster } => {
                status.enter(Phase::Recovering, "reads the redo of all nodes");
                self.spawn("recover the volume", async move |lead| {
                    let _work = lead.volume_work.acquire(1).await;
                    let done = lead.recover_volume(known, &roster).await?;
                    lead.parts.agent.input(done);
                    Ok(())
                });
            }
            Output::BeginEpoch { at_least, roster } => {
                self.spawn("begin an epoch", async move |lead| {
                    let _work = lead.volume_work.acquire(1).await;
                    let control = lead.parts.volume.read_control().await?;
                    let (epoch, scn) = lead.begin_epoch(control, at_least, Scn::ZERO, &roster).await?;
                    let most = OVERRIDES_MAX / lead.remotes.len();
                    let overrides = lead.each_shard("tell its buckets", async move |life| Ok(life.overrides(most))).await?;
                    lead.parts.agent.input(Input::EpochBegun { epoch, scn, overrides: overrides.concat() });
                    Ok(())
                });
            }
            Output::Fence(node, incarnation) => {
                self.lost_since.borrow_mut().entry(node).or_insert_with(|| self.parts.reactor.now());
                self.spawn("fence", async move |lead| {
                    let fenced = lead.fence(node, incarnation).await;
                    if !fenced {
                        lead.parts.reactor.sleep(RETRY).await;
                    }
                    let told = if fenced { Input::Fenced(node, incarnation) } else { Input::FenceFailed(node, incarnation) };
                    lead.parts.agent.input(told);
                    Ok(())
                });
            }
            Output::Freeze(view, overrides) => {
                self.lost_since.borrow_mut().clear();
                if let Some(going) = self.going.take() {
                    going.abort();
                }
                self.spawn("enter a view", async move |lead| lead.freeze(view, overrides).await);
            }
            Output::Go(view) => {
                // An operator's word is for the loss that it was given for, and for no later one.
                self.confirmed.borrow_mut().clear();
                let going = self.spawn("go in a view", async move |lead| lead.go(view).await);
                if let Some(before) = self.going.replace(Some(going)) {
                    before.abort();
                }
            }
            Output::ReleaseRedo { epoch, nodes } => {
                self.spawn("release redo", async move |lead| {
                    let _work = lead.volume_work.acquire(1).await;
                    lead.release_redo(&nodes).await?;
                    lead.parts.agent.input(Input::RedoReleased(epoch));
                    Ok(())
                });
            }
            Output::Suspend(reason) => {
                tracing::error!("suspended: {reason}");
                self.parts.context.shared.serving.suspend(Obstacle::Quorum, reason.to_string());
                self.tell_phase();
            }
            Output::Roster(roster) => self.knows_nodes(roster),
            Output::End(reason) => return Err(End::of(&reason)),
        }
        Ok(())
    }

    /// Has every shard do something, at the same time; what all answered, in the order of the shards.
    async fn each_shard<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl AsyncFn(Rc<ShardLife>) -> Result<T, End> + Clone + Send + 'static,
    ) -> Result<Vec<T>, End> {
        let mut answers = Vec::new();
        for (shard, remote) in self.remotes.iter().enumerate() {
            let work = work.clone();
            let call = async move |reactor: Reactor| match reactor.local::<ShardLife>() {
                Some(life) => work(life).await,
                None => Err(End::Failed(format!("shard{shard} has ended"))),
            };
            let ended = move || End::Failed(format!("shard{shard} has ended while it was to {name}"));
            let answer = remote.call_when_room(Class::Critical, name, call).await.map_err(|_| ended())?;
            answers.push((answer, ended));
        }
        let mut all = Vec::new();
        for (answer, ended) in answers {
            all.push(answer.await.map_err(|_| ended())??);
        }
        Ok(all)
    }

    async fn freeze(self: Rc<Self>, view: View, overrides: Vec<Override>) -> Result<(), End> {
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

    async fn go(self: Rc<Self>, view: View) -> Result<(), End> {
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
        }
        if !view.unrecovered.is_empty() {
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
        let failed = |error: crate::store::StoreError| End::Failed(error.to_string());
        store.settle_branches().await.map_err(failed)?;
        // The first node to come makes them; all may try at once.
        store.create_system_partitions().await.map_err(failed)?;
        self.opened.set(true);
        self.tell_phase();
        tracing::info!(node = %self.parts.context.node, "serves");
        Ok(())
    }

    /// Tells whether clients are answered, once the node has opened.
    fn tell_phase(&self) {
        let context = &self.parts.context;
        if self.opened.get() {
            match context.shared.serving.reason() {
                None => context.status.enter(Phase::Open, ""),
                // With the reason at once: whoever waits for the phase tells it to clients.
                Some(reason) => context.status.enter(Phase::Suspended, reason),
            }
            self.publish();
        }
    }

    /// Begins to show and to watch the signs of life on the disk.
    fn beat(self: &Rc<Self>) -> Result<(), End> {
        let LeadParts { reactor, context, volume, life, .. } = &self.parts;
        // Weak: the lead keeps the heart.
        let (agent, me, found) = (self.parts.agent.clone(), context.node, Rc::downgrade(self));
        let lease = self.parts.fences.lease();
        if lease.is_some() {
            tracing::info!("this node writes under a lease that its heartbeats on the disk renew");
        }
        let heart = Heart::start(HeartParts {
            reactor: reactor.clone(),
            volume: volume.clone(),
            log: life.log(),
            me: context.node,
            life: self.slot.borrow().incarnation,
            interval: Duration::from_millis(context.config.ha.disk_heartbeat_interval),
            timeout: Duration::from_millis(context.config.ha.disk_timeout),
            lease,
            watchdog: self.parts.fences.arm_watchdog()?,
            members: Rc::new(move || {
                let members = agent.view().into_iter().flat_map(|view| view.members);
                members.filter(|(node, _)| *node != me).collect()
            }),
            found: Rc::new(move |finding| {
                if let Some(lead) = found.upgrade() {
                    lead.on_finding(finding);
                }
            }),
        });
        *self.heart.borrow_mut() = Some(heart);
        Ok(())
    }

    fn on_finding(self: &Rc<Self>, finding: Finding) {
        let LeadParts { context, agent, .. } = &self.parts;
        match finding {
            Finding::Suspected(node) => {
                tracing::error!(%node, "its heartbeat on the disk stands still: its disk or its process hangs");
                agent.input(Input::Suspected(node));
            }
            Finding::Trusted(node) => {
                tracing::info!(%node, "it beats on the disk again");
                agent.input(Input::Trusted(node));
            }
            Finding::OwnDiskStalled => {
                let (volume, timeout) = (context.volume.display(), context.config.ha.disk_timeout);
                let reason =
                    format!("the volume {volume} has not answered this node for {timeout} ms: check its path to the disk");
                tracing::error!("suspended: {reason}");
                context.shared.serving.suspend(Obstacle::Disk, reason);
                self.tell_phase();
            }
            Finding::OwnDiskAnswers => {
                tracing::info!("the volume answers again");
                context.shared.serving.resume(Obstacle::Disk);
                self.tell_phase();
            }
            Finding::Evicted(by) => {
                self.fail(End::Over(format!("{by} has evicted this life of the node; it joins again in its next")));
            }
            Finding::LeaseUntil(until) => {
                self.spawn("renew the lease", async move |lead| {
                    let renew = async move |life: Rc<ShardLife>| {
                        life.write_until(until);
                        Ok(())
                    };
                    lead.each_shard("renew the lease", renew).await.map(|_| ())
                });
            }
            Finding::LeaseLost => {
                self.fail(End::Over("its lease on the volume has run out: the disk did not take its heartbeats".into()));
            }
        }
    }

    /// Writes what is dirty, and has others write the blocks whose past images are kept here, so that a stop has little
    /// left to do and a loss little to recover. The node goes on. Whether nothing was left.
    pub(super) async fn write_blocks(&self) -> Result<bool, String> {
        if !self.opened.get() || !self.parts.agent.serves() {
            return Err("the node does not serve now".into());
        }
        let written = self.each_shard("write its blocks", async |life| life.write_blocks(STOP_PATIENCE).await).await;
        match written {
            Ok(written) => Ok(written.into_iter().all(|all| all)),
            Err(End::Over(why) | End::Removed(why) | End::Failed(why)) => Err(why),
        }
    }

    async fn close(&self) -> Result<bool, End> {
        // Nobody who could write them is there while the node is suspended.
        let patience = if self.parts.agent.serves() { STOP_PATIENCE } else { Duration::ZERO };
        let written = self.each_shard("close", async move |life| life.close(patience).await).await?;
        Ok(written.into_iter().all(|all| all))
    }

    async fn recover_volume(&self, known: Epoch, roster: &Roster) -> Result<Input, End> {
        if let Some(newer) = self.newer_than(known).await? {
            return Ok(Input::RosterOutdated(newer));
        }
        let status = self.parts.context.status.clone();
        let progress = Rc::new(move |done, total| {
            if done % 256 == 0 || done == total {
                status.detail(format!("replays the redo: {done} of {total} blocks"));
            }
        });
        let report = recovery::recover(&self.parts.reactor, &self.parts.volume, progress).await?;
        tracing::info!(
            groups = report.groups, blocks = report.blocks, written = report.written, scn = %report.scn,
            "the volume is recovered"
        );
        if let Some(newer) = self.newer_than(known).await? {
            return Ok(Input::RosterOutdated(newer));
        }
        let control = self.parts.volume.read_control().await?;
        let (epoch, scn) = self.begin_epoch(control, Epoch(0), report.scn, roster).await?;
        Ok(Input::Recovered { epoch, scn })
    }

    /// Begins an epoch on the volume, durably. Nobody draws an SCN of an earlier epoch in it, also when this machine's
    /// clock is behind (rule 10).
    async fn begin_epoch(
        &self,
        mut control: ControlBlock,
        at_least: Epoch,
        found: Scn,
        roster: &Roster,
    ) -> Result<(Epoch, Scn), End> {
        let (reactor, context, volume) = (&self.parts.reactor, &self.parts.context, &self.parts.volume);
        control.epoch = Epoch(control.epoch.0 + 1).max(at_least);
        control.formed_by = context.node;
        control.members = roster.voters().fold(0, |members, node| members | 1 << node.0);
        control.roster = roster.clone();
        let seen = found.max(control.scn).max(context.shared.clock.latest());
        control.scn = seen.max(Scn::from_unix_ms(reactor.wall_ms())).next();
        control.formed_ms = reactor.wall_ms();
        volume.write_control(&mut control).await?;
        Ok((control.epoch, control.scn))
    }

    /// The control group and the epoch that this node is in; none before the first view.
    pub(super) fn control(&self) -> Option<(Rc<Control>, Epoch)> {
        let epoch = self.parts.agent.view()?.epoch;
        Some((self.parts.life.control()?, epoch))
    }

    /// An operator wants the node out, and in manual mode vouches for it that it can't write any more.
    pub(super) fn fence_by_hand(&self, node: NodeId) -> Result<(), String> {
        let LeadParts { context, agent, .. } = &self.parts;
        if node == context.node {
            return Err(format!("{node} can't fence itself: ask another node, or stop it"));
        }
        if !agent.roster().has(node) {
            return Err(format!("there is no {node} in this cluster"));
        }
        self.confirmed.borrow_mut().insert(node);
        tracing::warn!(%node, "an operator has it fenced");
        agent.input(Input::TakeOut(Some(node)));
        Ok(())
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
    async fn fence(&self, node: NodeId, incarnation: Incarnation) -> bool {
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
            let confirmed = self.confirmed.borrow_mut().remove(&node);
            if !confirmed {
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
            Err(error) => {
                tracing::error!(%node, %error, "can't fence; tries again");
                false
            }
        }
    }

    /// Resets the redo areas of nodes that have been recovered: their next lives begin with empty logs.
    async fn release_redo(&self, nodes: &[NodeId]) -> Result<(), End> {
        let (reactor, volume) = (&self.parts.reactor, &self.parts.volume);
        for node in nodes {
            let slot = volume.read_node_slot(*node).await?;
            for area in volume.geometry().redo_areas().filter(|area| area.node == *node) {
                let log = Log::open(reactor, volume.file(), area, slot.incarnation).await?;
                log.checkpoint(log.append_lsn(), self.parts.context.shared.clock.latest()).await?;
            }
        }
        Ok(())
    }
}
