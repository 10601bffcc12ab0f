//! The first shard's lead of a node's life: does what the membership wants, shard by shard.
//!
//! Owned by the first shard's thread. It takes one wish after the other from the [`ViewsAgent`] and never waits for one before
//! it looks at the next: each is carried out by a task, which tells the membership when it is done. How: entering and
//! recovering in [`views`], keeping dead nodes out in [`fence`], what it writes for the whole cluster in [`volume`], signs of
//! life in [`heart`], the cluster's nodes in [`roster`]. Bounded by the membership, which has at most one thing under way about
//! each node.

mod fence;
mod heart;
mod roster;
mod views;
mod volume;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::control::Control;
use super::fencing::Fences;
use super::node::{End, NodeContext};
use super::pulse::Heart;
use super::read_lease::ReadLease;
use super::shard::ShardLife;
use super::status::Phase;
use super::view::{Input, OVERRIDES_MAX, Output, ViewsAgent};
use crate::ids::{Epoch, NodeId, Scn};
use crate::reactor::sync::{Notify, Semaphore};
use crate::reactor::{Class, Instant, LogGate, Reactor, Remote, TaskHandle};
use crate::txn::Obstacle;
use crate::volume::{NodeSlot, NodeState, Volume};

/// How long a node that stops waits for other nodes to write the blocks whose past images it keeps.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries to fence a node, or to end its transactions.
const RETRY: Duration = Duration::from_millis(500);

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
    /// Lost nodes of which an operator has said that they can't write any more, and when.
    confirmed: RefCell<BTreeMap<NodeId, Instant>>,
    /// That a lost node can't be fenced.
    not_fenced: LogGate,
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
            not_fenced: LogGate::new(fence::SAY_EVERY),
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
                self.not_fenced.reset();
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

    /// The control group and the epoch that this node is in; none before the first view.
    pub(super) fn control(&self) -> Option<(Rc<Control>, Epoch)> {
        let epoch = self.parts.agent.view()?.epoch;
        Some((self.parts.life.control()?, epoch))
    }
}
