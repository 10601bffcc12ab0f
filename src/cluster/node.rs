//! A node's life: starts a thread per shard, forms the cluster with the other nodes, recovers the volume, serves, and
//! stops cleanly.
//!
//! [`Node`] is the process's handle; everything else runs in the shards. The first shard leads: it holds the membership
//! and tells the others when to prepare and when to open. Bounded by the shards. A node that loses a member, or whose
//! volume fails, ends ([`Phase::Lost`], [`Phase::Failed`]); it never goes on with half of its parts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::fencing::life_lock;
use super::formation::{Input, Output};
use super::late::LateHandler;
use super::membership::Membership;
use super::recovery;
use super::shard::{Opened, Services};
use super::status::{Phase, Status};
use crate::clock::ScnClock;
use crate::config::{Config, ConfigError, IoDriver};
use crate::ids::{Epoch, Incarnation, NodeId, Scn, ShardId};
use crate::interconnect::{Interconnect, SEND_QUEUE_BYTES, Service, Settings};
use crate::reactor::sync::{CrossReceiver, CrossSender, cross_oneshot};
use crate::reactor::thread::spawn_shard_thread;
use crate::reactor::{Class, DriverChoice, Reactor, ReactorOptions, Remote, TaskHandle};
use crate::store::{NodeStore, Store};
use crate::txn::NodeShared;
use crate::volume::{Expected, NodeState, Volume, block_offset};

/// How long a node that stops waits for other nodes to write the blocks whose past images it keeps.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// A running node.
pub struct Node {
    status: Status,
    store: Store,
    stop: Vec<CrossSender<()>>,
    threads: Vec<JoinHandle<()>>,
}

/// What the first shard tells the others, each once.
struct Orders {
    identity: CrossReceiver<Identity>,
    prepare: CrossReceiver<(Epoch, Scn)>,
    prepared: CrossSender<()>,
    open: CrossReceiver<()>,
    opened: CrossSender<()>,
}

/// The first shard's ends of one other shard's orders.
struct Follower {
    identity: CrossSender<Identity>,
    prepare: CrossSender<(Epoch, Scn)>,
    prepared: CrossReceiver<()>,
    open: CrossSender<()>,
    opened: CrossReceiver<()>,
}

#[derive(Clone, Copy)]
struct Identity {
    cluster_id: u128,
    incarnation: Incarnation,
}

/// What all shards of the node know.
pub(super) struct NodeContext {
    pub(super) config: Config,
    pub(super) node: NodeId,
    pub(super) members: Vec<(NodeId, SocketAddr)>,
    pub(super) volume: PathBuf,
    pub(super) shards: u8,
    pub(super) shared: NodeShared,
    pub(super) status: Status,
    /// The shards' reactors, in order, once all are there.
    pub(super) remotes: Mutex<Vec<Remote>>,
}

/// A shard's whole life, before it has a reactor.
struct ShardLife {
    shard: ShardId,
    context: Arc<NodeContext>,
    part: Part,
    stopped: CrossReceiver<()>,
}

enum Part {
    Leads(Vec<Follower>),
    Follows(Orders),
}

impl ShardLife {
    async fn run(self, reactor: Reactor) {
        let ShardLife { shard, context, part, stopped } = self;
        match part {
            Part::Leads(followers) => lead(reactor, context, followers, stopped).await,
            Part::Follows(orders) => follow(reactor, context, shard, orders, stopped).await,
        }
    }
}

/// A node before its shards have reactors.
struct Prepared {
    context: Arc<NodeContext>,
    /// In the order of the shards.
    lives: Vec<ShardLife>,
    stop: Vec<CrossSender<()>>,
}

fn prepare(config: &Config, volume: PathBuf) -> Result<Prepared, ConfigError> {
    let shards = config.engine.shards as u8;
    let context = Arc::new(NodeContext {
        node: config.node_id(),
        members: config.nodes()?.into_iter().collect(),
        volume,
        shards,
        shared: NodeShared::new(ScnClock::new()),
        status: Status::default(),
        remotes: Mutex::new(Vec::new()),
        config: config.clone(),
    });
    let (mut stop, mut followers, mut orders_of_others) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 1..shards {
        let (orders, follower) = orders();
        followers.push(follower);
        orders_of_others.push(Part::Follows(orders));
    }
    let parts = std::iter::once(Part::Leads(followers)).chain(orders_of_others);
    let lives = (0..).zip(parts).map(|(number, part)| {
        let (stop_sender, stopped) = cross_oneshot();
        stop.push(stop_sender);
        ShardLife { shard: ShardId(number), context: context.clone(), part, stopped }
    });
    let lives = lives.collect();
    Ok(Prepared { context, lives, stop })
}

/// Tells the shards of each other; what clients of the node use.
fn introduce(context: &NodeContext, remotes: Vec<Remote>) -> Store {
    context.remotes.lock().expect("nobody panics while holding it").clone_from(&remotes);
    NodeStore::new(context.node, remotes, context.shared.clone()).store()
}

/// A node on reactors that somebody else drives, as the simulator does. Its process is its host: whoever made it ends the
/// host when the node's life [is over](Phase::is_over).
pub struct HostedNode {
    status: Status,
    store: Store,
    stop: Vec<CrossSender<()>>,
    mains: Vec<TaskHandle>,
}

impl HostedNode {
    /// Starts a node with the volume at `volume`, one shard on each of the `reactors`.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn start(config: &Config, volume: PathBuf, reactors: &[Reactor]) -> Result<HostedNode, ConfigError> {
        let Prepared { context, lives, stop } = prepare(config, volume)?;
        assert_eq!(lives.len(), reactors.len(), "one reactor for each shard");
        let store = introduce(&context, reactors.iter().map(Reactor::remote).collect());
        let mains = reactors.iter().zip(lives);
        let mains = mains.map(|(reactor, life)| reactor.spawn(Class::Normal, "main", life.run(reactor.clone()))).collect();
        Ok(HostedNode { status: context.status.clone(), store, stop, mains })
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Rows and transactions; serves once the phase is [`Phase::Open`].
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Asks the node to stop cleanly; it has when [`HostedNode::has_ended`].
    pub fn ask_to_stop(&mut self) {
        self.status.enter(Phase::Stopping, "writes its blocks");
        self.stop.drain(..).for_each(|stop| stop.send(()));
    }

    /// Whether all its shards' lives are over.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.mains.iter().all(TaskHandle::is_finished)
    }
}

impl Node {
    /// Starts a node's threads. They go on by themselves; ask [`Node::status`].
    ///
    /// # Errors
    /// What is wrong with the configuration, or why a thread can't be had.
    pub fn start(config: &Config) -> Result<Node, ConfigError> {
        let Prepared { context, lives, stop } = prepare(config, config.volume_path())?;
        let options = ReactorOptions {
            driver: match config.engine.io_driver {
                IoDriver::Auto => DriverChoice::Auto,
                IoDriver::Uring => DriverChoice::Uring,
                IoDriver::Poll => DriverChoice::Poll,
            },
            overprovisioned: config.engine.overprovisioned,
        };
        let (mut threads, mut remotes) = (Vec::new(), Vec::new());
        // The first shard starts last: it leads the others.
        for life in lives.into_iter().rev() {
            let number = life.shard.0;
            let core = (!options.overprovisioned).then_some(usize::from(number));
            let spawned = spawn_shard_thread(core, &format!("shard{number}"), options, move |reactor| life.run(reactor));
            let (remote, thread) =
                spawned.map_err(|error| ConfigError::Unreadable { path: PathBuf::from("engine.io_driver"), error })?;
            remotes.push(remote);
            threads.push(thread);
        }
        remotes.reverse();
        let store = introduce(&context, remotes);
        Ok(Node { status: context.status.clone(), store, stop, threads })
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Rows and transactions; serves once the phase is [`Phase::Open`].
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Asks the node to stop and waits until it has: every block that it owns is on disk, and its slot says so.
    pub fn stop(mut self) -> Phase {
        self.status.enter(Phase::Stopping, "writes its blocks");
        for stop in self.stop.drain(..) {
            stop.send(());
        }
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
        self.status.get().phase
    }
}

fn orders() -> (Orders, Follower) {
    let (identity_sender, identity) = cross_oneshot();
    let (prepare_sender, prepare) = cross_oneshot();
    let (prepared, prepared_receiver) = cross_oneshot();
    let (open_sender, open) = cross_oneshot();
    let (opened, opened_receiver) = cross_oneshot();
    let follower = Follower {
        identity: identity_sender,
        prepare: prepare_sender,
        prepared: prepared_receiver,
        open: open_sender,
        opened: opened_receiver,
    };
    (Orders { identity, prepare, prepared, open, opened }, follower)
}

/// Why a shard's life ended early.
pub(super) enum End {
    Lost(NodeId),
    Failed(String),
}

impl<E: std::error::Error> From<E> for End {
    fn from(error: E) -> Self {
        End::Failed(error.to_string())
    }
}

/// A shard's end of the connections, and the doors of the services that come later.
pub(super) struct Doors {
    pub(super) interconnect: Interconnect,
    pub(super) gcs: Rc<LateHandler>,
    pub(super) ges: Rc<LateHandler>,
    pub(super) txn: Rc<LateHandler>,
}

fn connect(reactor: &Reactor, context: &NodeContext, shard: ShardId, identity: Identity) -> Doors {
    let at = |address: &SocketAddr| SocketAddr::new(address.ip(), address.port() + u16::from(shard.0));
    let own = context.members.iter().find(|(node, _)| *node == context.node).expect("the configuration was checked");
    let peers = context.members.iter().filter(|(node, _)| *node != context.node);
    let settings = Settings {
        cluster_id: identity.cluster_id,
        node: context.node,
        incarnation: identity.incarnation,
        shard,
        shards: context.shards,
        listen: at(&own.1),
        peers: peers.map(|(node, address)| (*node, at(address))).collect(),
        heartbeat_interval: Duration::from_millis(context.config.rac.interconnect.heartbeat_interval),
        heartbeat_timeout: context.config.heartbeat_timeout(),
        send_queue_bytes_max: SEND_QUEUE_BYTES,
    };
    let interconnect = Interconnect::new(reactor, &context.shared.clock, settings);
    let doors = Doors { interconnect, gcs: LateHandler::new(), ges: LateHandler::new(), txn: LateHandler::new() };
    doors.interconnect.register(Service::Gcs, doors.gcs.clone());
    doors.interconnect.register(Service::Ges, doors.ges.clone());
    doors.interconnect.register(Service::Txn, doors.txn.clone());
    doors
}

async fn open_volume(reactor: &Reactor, context: &NodeContext) -> Result<Volume, End> {
    let expected = Expected {
        cluster_id: None,
        cluster_name: Some(context.config.cluster.cluster_name.clone()),
        shards: Some(context.shards),
        node: Some(context.node),
    };
    let volume = Volume::open(reactor, &context.volume, &expected).await?;
    // In this node's own voting block, which is written back as it is.
    let place = block_offset(volume.geometry().vote_block(context.node));
    let probed = reactor.probe_durable_write(volume.file(), place).await;
    let volume_path = context.volume.display();
    probed.map_err(|error| End::Failed(format!("{volume_path} takes no durable writes: {error}; check the device")))?;
    Ok(volume)
}

/// How long an earlier life's last writes are waited for.
const FORMER_LIFE_PATIENCE: Duration = Duration::from_secs(30);

/// A process that was killed is gone before its last writes are: io_uring and the block layer still carry them out. One
/// of them landing after recovery would put an old version over a new one. Each shard of a life holds a lock on its open
/// volume, which the kernel keeps until its last operation has ended; so wait for the locks of the life before.
async fn wait_for_former_life(reactor: &Reactor, context: &NodeContext, volume: &Volume) -> Result<(), End> {
    let until = reactor.now() + FORMER_LIFE_PATIENCE;
    for shard in 0..context.shards {
        let byte = life_lock(context.node, shard);
        while !reactor.try_lock(volume.file(), byte, true)? {
            context.status.detail("waits for the last writes of this node's former life");
            if reactor.now() > until {
                return Err(End::Failed(format!(
                    "a former life of {} still holds the volume {}: end its process, or see why its last writes hang",
                    context.node,
                    context.volume.display()
                )));
            }
            reactor.sleep(Duration::from_millis(5)).await;
        }
        if shard > 0 {
            reactor.try_lock(volume.file(), byte, false)?;
        }
    }
    Ok(())
}

/// The first shard.
async fn lead(reactor: Reactor, context: Arc<NodeContext>, followers: Vec<Follower>, stopped: CrossReceiver<()>) {
    let end = lead_until_end(&reactor, &context, followers, stopped).await;
    finish(&context, end);
}

async fn lead_until_end(
    reactor: &Reactor,
    context: &Arc<NodeContext>,
    followers: Vec<Follower>,
    stopped: CrossReceiver<()>,
) -> Result<(), End> {
    let volume = open_volume(reactor, context).await?;
    wait_for_former_life(reactor, context, &volume).await?;
    let mut slot = volume.read_node_slot(context.node).await?;
    slot.incarnation = Incarnation(slot.incarnation.0 + 1);
    slot.state = NodeState::Running;
    volume.write_node_slot(&mut slot).await?;
    let identity = Identity { cluster_id: volume.geometry().cluster_id, incarnation: slot.incarnation };

    let doors = connect(reactor, context, ShardId(0), identity);
    let members = context.members.iter().map(|(node, _)| *node);
    let membership = Membership::new(context.node, members, context.status.clone());
    doors.interconnect.register(Service::Cluster, membership.clone());
    doors.interconnect.start().await?;
    membership.start(&doors.interconnect);
    let mut others = Vec::new();
    for follower in followers {
        follower.identity.send(identity);
        others.push((Some(follower.prepare), Some(follower.prepared), Some(follower.open), Some(follower.opened)));
    }

    let mut stopped = std::pin::pin!(stopped);
    let mut services: Option<Services> = None;
    let mut opened: Option<Opened> = None;
    loop {
        if opened.is_none() {
            context.status.detail(membership.waiting_for());
        }
        let next = std::pin::pin!(membership.next());
        let next = either(next, stopped.as_mut(), || {
            if opened.is_none() {
                context.status.detail(membership.waiting_for());
            }
        });
        match next.await {
            Either::Second(()) => break,
            Either::First(Output::Recover) => {
                context.status.enter(Phase::Recovering, "reads the redo of all nodes");
                let (epoch, scn) = recover(reactor, context, &volume).await?;
                membership.done(Input::Recovered { epoch, scn });
            }
            Either::First(Output::Prepare { epoch, scn }) => {
                for (prepare, ..) in &mut others {
                    prepare.take().expect("a life has one epoch").send((epoch, scn));
                }
                context.shared.clock.start_above(scn);
                slot.epoch = epoch;
                slot.scn = scn;
                volume.write_node_slot(&mut slot).await?;
                services =
                    Some(Services::prepare(reactor, context, &volume, ShardId(0), identity.incarnation, epoch, &doors).await?);
                for (_, prepared, ..) in &mut others {
                    prepared
                        .take()
                        .expect("asked once")
                        .await
                        .map_err(|_| End::Failed("a shard has ended while it prepared".into()))?;
                }
                membership.done(Input::Prepared);
            }
            Either::First(Output::Open(epoch)) => {
                let services = services.take().expect("prepared before it is opened");
                opened = Some(services.open(context).await?);
                for (.., open, opened) in &mut others {
                    open.take().expect("asked once").send(());
                    opened
                        .take()
                        .expect("asked once")
                        .await
                        .map_err(|_| End::Failed("a shard has ended while it opened".into()))?;
                }
                create_system_partitions(context).await?;
                context.status.epoch(epoch);
                context.status.enter(Phase::Open, "");
                tracing::info!(node = %context.node, epoch = epoch.0, "the cluster is open");
            }
            Either::First(Output::Lost(node)) => return Err(End::Lost(node)),
            Either::First(Output::Send(..)) => unreachable!("the membership sends by itself"),
        }
    }
    if let Some(opened) = opened {
        let all_written = opened.close(STOP_PATIENCE).await?;
        slot.scn = context.shared.clock.latest();
        if all_written {
            slot.state = NodeState::Clean;
        }
        volume.write_node_slot(&mut slot).await?;
    }
    doors.interconnect.close();
    Ok(())
}

async fn recover(reactor: &Reactor, context: &Arc<NodeContext>, volume: &Volume) -> Result<(Epoch, Scn), End> {
    let status = context.status.clone();
    let progress = Rc::new(move |done, total| {
        if done % 256 == 0 || done == total {
            status.detail(format!("replays the redo: {done} of {total} blocks"));
        }
    });
    let report = recovery::recover(reactor, volume, progress).await?;
    tracing::info!(groups = report.groups, blocks = report.blocks, written = report.written, scn = %report.scn, "the volume is recovered");
    let mut control = volume.read_control().await?;
    control.epoch = Epoch(control.epoch.0 + 1);
    control.formed_by = context.node;
    control.members = context.members.iter().fold(0, |members, (node, _)| members | 1 << node.0);
    // Nobody draws an SCN of an earlier life, also when this machine's clock is behind (rule 10).
    control.scn = report.scn.max(Scn::from_unix_ms(reactor.wall_ms())).next();
    control.formed_ms = reactor.wall_ms();
    volume.write_control(&mut control).await?;
    Ok((control.epoch, control.scn))
}

/// The first node to come makes what every node expects; the others find it. All may try at once.
async fn create_system_partitions(context: &Arc<NodeContext>) -> Result<(), End> {
    let remotes = context.remotes.lock().expect("nobody panics while holding it").clone();
    let store = NodeStore::new(context.node, remotes, context.shared.clone());
    store.settle_branches().await.map_err(|error| End::Failed(error.to_string()))?;
    store.create_system_partitions().await.map_err(|error| End::Failed(error.to_string()))
}

/// Every other shard.
async fn follow(reactor: Reactor, context: Arc<NodeContext>, shard: ShardId, orders: Orders, stopped: CrossReceiver<()>) {
    let end = follow_until_end(&reactor, &context, shard, orders, stopped).await;
    finish(&context, end);
}

async fn follow_until_end(
    reactor: &Reactor,
    context: &Arc<NodeContext>,
    shard: ShardId,
    orders: Orders,
    stopped: CrossReceiver<()>,
) -> Result<(), End> {
    let leader_ended = || End::Failed("the first shard has ended".into());
    let volume = open_volume(reactor, context).await?;
    let identity = orders.identity.await.map_err(|_| leader_ended())?;
    if !reactor.try_lock(volume.file(), life_lock(context.node, shard.0), true)? {
        return Err(End::Failed(format!("{} {shard} runs twice on the volume {}", context.node, context.volume.display())));
    }
    let doors = connect(reactor, context, shard, identity);
    let watch = Rc::new(super::shard::WatchPeers::new(context.status.clone()));
    doors.interconnect.register(Service::Cluster, watch.clone());
    doors.interconnect.start().await?;
    let (epoch, _) = orders.prepare.await.map_err(|_| leader_ended())?;
    let services = Services::prepare(reactor, context, &volume, shard, identity.incarnation, epoch, &doors).await?;
    watch.arm();
    orders.prepared.send(());
    orders.open.await.map_err(|_| leader_ended())?;
    let opened = services.open(context).await?;
    orders.opened.send(());
    // A stop that is dropped means that the process ends.
    stopped.await.ok();
    opened.close(STOP_PATIENCE).await?;
    doors.interconnect.close();
    Ok(())
}

fn finish(context: &NodeContext, end: Result<(), End>) {
    match end {
        Ok(()) => context.status.enter(Phase::Stopped, ""),
        Err(End::Lost(node)) => {
            tracing::error!(lost = %node, "a member of the cluster is gone: this node stops serving, and recovers with the others when it is started again");
            context.status.enter(Phase::Lost(node), format!("{node} is gone"));
        }
        Err(End::Failed(message)) => {
            tracing::error!("{message}");
            context.status.enter(Phase::Failed(message.clone()), message);
        }
    }
}

enum Either<A, B> {
    First(A),
    Second(B),
}

/// The first of two futures to be ready; `meanwhile` runs whenever this task wakes and neither is.
async fn either<A: Future, B: Future<Output = Result<(), crate::reactor::sync::Closed>>>(
    mut first: std::pin::Pin<&mut A>,
    mut second: std::pin::Pin<&mut B>,
    meanwhile: impl Fn(),
) -> Either<A::Output, ()> {
    std::future::poll_fn(|context| {
        if let std::task::Poll::Ready(value) = first.as_mut().poll(context) {
            return std::task::Poll::Ready(Either::First(value));
        }
        if second.as_mut().poll(context).is_ready() {
            return std::task::Poll::Ready(Either::Second(()));
        }
        meanwhile();
        std::task::Poll::Pending
    })
    .await
}
