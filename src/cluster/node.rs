//! A node: starts its shards, on threads of their own or on reactors that somebody else drives, and is the handle to them.
//!
//! [`Node`] is the process's handle; everything else runs in the shards. The first shard leads ([`super::lead`]); the
//! others do what it tells them. Bounded by the shards. A node whose life is over ([`Phase::Over`]), or whose volume fails
//! ([`Phase::Failed`]), ends as a whole; it never goes on with half of its parts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::control::{Command, ControlDoor, ControlState};
use super::door::{ClusterDoor, ReportLinks};
use super::fencing::{Fences, Life, ThreadFences, life_lock};
use super::late::LateHandler;
use super::lead::{Lead, LeadParts};
use super::shard::ShardLife;
use super::status::{Identity, Phase, Status};
use super::view::{EndReason, Known, ViewsAgent};
use crate::clock::ScnClock;
use crate::config::{Config, ConfigError, IoDriver, Protocol};
use crate::fusion::gcs::Inspection;
use crate::ids::{Epoch, Incarnation, NodeId, ShardId};
use crate::interconnect::{Interconnect, SEND_QUEUE_BYTES, Service, Settings};
use crate::reactor::sync::{CrossReceiver, CrossSender, cross_oneshot};
use crate::reactor::thread::spawn_shard_thread;
use crate::reactor::{Class, DriverChoice, Reactor, ReactorOptions, Remote, StorageWish, TaskHandle};
use crate::store::{NodeStore, Store};
use crate::txn::NodeShared;
use crate::volume::{ControlBlock, Expected, NodeState, Roster, RosterChange, Standing, Volume, block_offset};

/// A running node.
pub struct Node {
    status: Status,
    store: Store,
    shards: Vec<Remote>,
    stop: CrossSender<()>,
    threads: Vec<JoinHandle<()>>,
}

/// What operators ask of a running node. `Send`; clones are the same.
#[derive(Clone)]
pub struct Operator(Remote);

impl Operator {
    /// Takes a node out of the cluster: it is suspected at once, fenced, and recovered. With `fencing_mode = "manual"` it is
    /// the operator's word that the node can't write to the volume any more.
    ///
    /// # Errors
    /// Why not, in words for the operator.
    pub async fn fence(&self, node: NodeId) -> Result<(), String> {
        let fence = move |reactor: Reactor| async move {
            let lead = reactor.local::<Lead>().ok_or_else(|| String::from(STARTING))?;
            lead.fence_by_hand(node)
        };
        let ended = |_| String::from(ENDING);
        let answer = self.0.call(Class::Critical, "fence by hand", fence).map_err(|error| error.to_string())?;
        answer.await.map_err(ended)?
    }

    /// Changes which nodes the cluster has: admits one, or removes one for good; a member that serves is removed only by
    /// `force`, which fences it first. Returns when the change holds, in words for the operator.
    ///
    /// # Errors
    /// Why not, in words for the operator; nothing is under way any more then, but it may have happened at the last moment.
    pub async fn change_roster(&self, change: RosterChange, force: bool) -> Result<String, String> {
        let change = move |reactor: Reactor| async move {
            let lead = reactor.local::<Lead>().ok_or_else(|| String::from(STARTING))?;
            lead.change_roster(change, force).await
        };
        let answer = self.0.call(Class::Normal, "change the nodes", change).map_err(|error| error.to_string())?;
        answer.await.map_err(|_| String::from(ENDING))?
    }

    /// Has the control group agree on something, wherever its leader is; it is applied on this node when this returns. The
    /// command is made with the epoch that this node is in.
    ///
    /// # Errors
    /// Why not, in words for the operator. When the group did not answer in time it may still happen.
    pub async fn agree(&self, command: impl FnOnce(Epoch) -> Command + Send + 'static) -> Result<(), String> {
        let agree = move |reactor: Reactor| async move {
            let lead = reactor.local::<Lead>().ok_or_else(|| String::from(STARTING))?;
            let (control, epoch) = lead.control().ok_or_else(|| String::from(STARTING))?;
            control.propose(&command(epoch)).await
        };
        let answer = self.0.call(Class::Normal, "agree", agree).map_err(|error| error.to_string())?;
        answer.await.map_err(|_| String::from(ENDING))?
    }

    /// What the control group has agreed on, as far as this node has heard.
    ///
    /// # Errors
    /// In words for the operator: the node is starting or ending.
    pub async fn control_state(&self) -> Result<ControlState, String> {
        let look = move |reactor: Reactor| async move {
            let lead = reactor.local::<Lead>().ok_or_else(|| String::from(STARTING))?;
            let (control, _) = lead.control().ok_or_else(|| String::from(STARTING))?;
            Ok(control.state())
        };
        let answer = self.0.call(Class::Normal, "look", look).map_err(|error| error.to_string())?;
        answer.await.map_err(|_| String::from(ENDING))?
    }

    /// Writes the node's dirty blocks, once its clients have gone, so that a stop has little left to do. The node goes on.
    /// Whether nothing was left that needs its redo.
    ///
    /// # Errors
    /// Why not, in words for the operator.
    pub async fn write_blocks(&self) -> Result<bool, String> {
        let write = move |reactor: Reactor| async move {
            match reactor.local::<Lead>() {
                Some(lead) => lead.write_blocks().await,
                None => Err("the node is still starting".into()),
            }
        };
        let answer = self.0.call(Class::Normal, "write blocks", write).map_err(|error| error.to_string())?;
        answer.await.map_err(|_| String::from("the node is ending"))?
    }
}

const STARTING: &str = "the node is still starting: ask again, or another";
const ENDING: &str = "the node is ending: ask another";

#[derive(Clone)]
struct Birth {
    cluster_id: u128,
    incarnation: Incarnation,
    /// The cluster's nodes, as the volume or the configuration file has them.
    roster: Roster,
}

/// A shard's ends of what it and the first shard tell each other at the start and at the end.
struct Follows {
    identity: CrossReceiver<Birth>,
    connected: CrossSender<()>,
    /// Resolves, one way or the other, when the first shard's life is over.
    ends: CrossReceiver<()>,
}

/// The first shard's ends.
struct Follower {
    identity: CrossSender<Birth>,
    connected: CrossReceiver<()>,
    ends: CrossSender<()>,
}

/// What all shards of the node know.
pub(super) struct NodeContext {
    pub(super) config: Config,
    pub(super) node: NodeId,
    /// Where this node's first shard listens.
    pub(super) address: SocketAddr,
    /// The nodes of the configuration file: they found a cluster whose volume is new, and are not asked afterwards.
    pub(super) file_nodes: BTreeMap<NodeId, SocketAddr>,
    pub(super) volume: PathBuf,
    pub(super) shards: u8,
    pub(super) shared: NodeShared,
    pub(super) status: Status,
    /// The shards' reactors, in order, once all are there.
    pub(super) remotes: Mutex<Vec<Remote>>,
}

/// A shard's main task, before it has a reactor.
struct ShardMain {
    shard: ShardId,
    context: Arc<NodeContext>,
    part: Part,
}

enum Part {
    Leads(Vec<Follower>, CrossReceiver<()>),
    Follows(Follows),
}

impl ShardMain {
    /// `fences`: how dead nodes are kept from the volume, if not as configured.
    async fn run(self, reactor: Reactor, fences: Option<Rc<dyn Fences>>) {
        let ShardMain { shard, context, part } = self;
        let end = match part {
            Part::Leads(followers, stopped) => lead(&reactor, &context, followers, stopped, fences).await,
            Part::Follows(follows) => follow(&reactor, &context, shard, follows).await,
        };
        match end {
            Ok(()) if shard == ShardId(0) => context.status.enter(Phase::Stopped, ""),
            Ok(()) => {}
            Err(End::Over(why)) => {
                tracing::error!("this life of the node is over: {why}");
                context.status.enter(Phase::Over(why.clone()), why);
            }
            Err(End::Removed(why)) => {
                tracing::error!("{why}");
                context.status.enter(Phase::Removed(why.clone()), why);
            }
            Err(End::Failed(message)) => {
                tracing::error!("{message}");
                context.status.enter(Phase::Failed(message.clone()), message);
            }
        }
    }
}

/// A node before its shards have reactors.
struct Prepared {
    context: Arc<NodeContext>,
    /// In the order of the shards.
    mains: Vec<ShardMain>,
    stop: CrossSender<()>,
}

fn prepare(config: &Config, volume: PathBuf) -> Result<Prepared, ConfigError> {
    let shards = config.engine.shards as u8;
    let file_nodes = config.nodes()?;
    let context = Arc::new(NodeContext {
        node: config.node_id(),
        address: file_nodes[&config.node_id()],
        file_nodes,
        volume,
        shards,
        shared: NodeShared::new(ScnClock::new()),
        status: Status::default(),
        remotes: Mutex::new(Vec::new()),
        config: config.clone(),
    });
    let (mut followers, mut others) = (Vec::new(), Vec::new());
    for _ in 1..shards {
        let (identity_sender, identity) = cross_oneshot();
        let (connected_sender, connected) = cross_oneshot();
        let (ends_sender, ends) = cross_oneshot();
        followers.push(Follower { identity: identity_sender, connected, ends: ends_sender });
        others.push(Part::Follows(Follows { identity, connected: connected_sender, ends }));
    }
    let (stop, stopped) = cross_oneshot();
    let parts = std::iter::once(Part::Leads(followers, stopped)).chain(others);
    let mains = (0..).zip(parts).map(|(number, part)| ShardMain { shard: ShardId(number), context: context.clone(), part });
    let mains = mains.collect();
    Ok(Prepared { context, mains, stop })
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
    first: Remote,
    stop: Option<CrossSender<()>>,
    mains: Vec<TaskHandle>,
    reactors: Vec<Reactor>,
}

impl HostedNode {
    /// Starts a node with the volume at `volume`, one shard on each of the `reactors`. `fences` keeps dead nodes from it.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn start(
        config: &Config,
        volume: PathBuf,
        reactors: &[Reactor],
        fences: &Rc<dyn Fences>,
    ) -> Result<HostedNode, ConfigError> {
        let Prepared { context, mains, stop } = prepare(config, volume)?;
        assert_eq!(mains.len(), reactors.len(), "one reactor for each shard");
        let store = introduce(&context, reactors.iter().map(Reactor::remote).collect());
        let first = reactors[0].remote();
        let mains = reactors.iter().zip(mains);
        let mains =
            mains.map(|(reactor, main)| reactor.spawn(Class::Normal, "main", main.run(reactor.clone(), Some(fences.clone()))));
        Ok(HostedNode {
            status: context.status.clone(),
            store,
            first,
            stop: Some(stop),
            mains: mains.collect(),
            reactors: reactors.to_vec(),
        })
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

    /// What operators may ask of the node.
    #[must_use]
    pub fn operator(&self) -> Operator {
        Operator(self.first.clone())
    }

    /// Asks the node to stop cleanly; it has when [`HostedNode::has_ended`].
    pub fn ask_to_stop(&mut self) {
        self.status.enter(Phase::Stopping, "writes its blocks");
        if let Some(stop) = self.stop.take() {
            stop.send(());
        }
    }

    #[cfg(test)]
    pub(super) fn gcs(&self) -> crate::fusion::gcs::Gcs {
        self.reactors[0].local::<ShardLife>().expect("it runs").gcs()
    }

    /// How its shards' parts of Cache Fusion are, in order: for checks of the whole cluster. Those that have one by now.
    #[must_use]
    pub fn inspect(&self) -> Vec<Inspection> {
        let lives = self.reactors.iter().filter_map(Reactor::local::<ShardLife>);
        lives.filter_map(|life| life.inspect()).collect()
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
        let Prepared { context, mains, stop } = prepare(config, config.volume_path())?;
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
        for main in mains.into_iter().rev() {
            let number = main.shard.0;
            let core = (!options.overprovisioned).then_some(usize::from(number));
            let spawned = spawn_shard_thread(core, &format!("shard{number}"), options, move |reactor| main.run(reactor, None));
            let (remote, thread) =
                spawned.map_err(|error| ConfigError::Unreadable { path: PathBuf::from("engine.io_driver"), error })?;
            remotes.push(remote);
            threads.push(thread);
        }
        remotes.reverse();
        let store = introduce(&context, remotes.clone());
        Ok(Node { status: context.status.clone(), store, shards: remotes, stop, threads })
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

    /// What operators may ask of the node.
    #[must_use]
    pub fn operator(&self) -> Operator {
        Operator(self.shards[0].clone())
    }

    /// The shards' reactors, in order.
    pub(super) fn shards(&self) -> Vec<Remote> {
        self.shards.clone()
    }

    /// Asks the node to stop and waits until it has: every block that it owns is on disk, and its slot says so.
    pub fn stop(self) -> Phase {
        self.status.enter(Phase::Stopping, "writes its blocks");
        self.stop.send(());
        for thread in self.threads {
            thread.join().ok();
        }
        self.status.get().phase
    }
}

/// Why a shard's life ended early.
pub(super) enum End {
    /// The cluster goes on without this life: its supervisor starts the next.
    Over(String),
    /// The node is none of the cluster's, or no more: no supervisor is to start it again.
    Removed(String),
    /// It can't go on.
    Failed(String),
}

impl End {
    pub(super) fn of(reason: &EndReason) -> End {
        match reason {
            EndReason::Excluded { .. } | EndReason::ViewLost { .. } => End::Over(reason.to_string()),
            EndReason::Removed | EndReason::NotAdmitted => End::Removed(reason.to_string()),
        }
    }
}

/// What the volume says of the cluster's nodes; of one that is new, what the configuration file says.
pub(super) fn known_roster(context: &NodeContext, control: ControlBlock) -> Known {
    let from_file = || Roster::founding(context.file_nodes.iter().map(|(node, address)| (*node, *address)));
    let roster = if control.roster.is_empty() { from_file() } else { control.roster };
    Known { epoch: control.epoch, roster }
}

/// Whether this node has a place in the cluster; what its configuration file has differently goes into the log.
fn check_roster(context: &NodeContext, known: &Known) -> Result<(), End> {
    let NodeContext { node, file_nodes, .. } = context;
    match known.roster.standing(*node) {
        Some(Standing::Removed) => return Err(End::of(&EndReason::Removed)),
        None => return Err(End::of(&EndReason::NotAdmitted)),
        Some(Standing::Joining | Standing::Member) => {}
    }
    let there: BTreeMap<NodeId, SocketAddr> = known.roster.present().collect();
    if there[node] != context.address {
        tracing::warn!(
            listens = %context.address, others_look_at = %there[node],
            "the others look for this node at another address than its configuration file has: correct the file, or, while \
             the node is stopped, tell them with `rusty-db-cli cluster join --node-id {node} --address {}`", context.address
        );
    }
    let differs = |other: &NodeId| other != node && there.get(other) != file_nodes.get(other);
    let differ: Vec<String> =
        there.keys().chain(file_nodes.keys()).filter(|other| differs(other)).map(NodeId::to_string).collect();
    if !differ.is_empty() {
        let differ = differ.into_iter().collect::<BTreeSet<String>>().into_iter().collect::<Vec<String>>().join(", ");
        tracing::info!(
            nodes = differ,
            "the cluster's nodes are those that the volume knows; this node's configuration file has these otherwise"
        );
    }
    Ok(())
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
    /// Bound in the first shard only, where the control group is.
    pub(super) raft: Rc<ControlDoor>,
}

fn connect(reactor: &Reactor, context: &NodeContext, shard: ShardId, identity: &Birth) -> Result<Doors, End> {
    let at = |address: &SocketAddr| SocketAddr::new(address.ip(), address.port() + u16::from(shard.0));
    let peers = identity.roster.present().filter(|(node, _)| *node != context.node);
    let settings = Settings {
        cluster_id: identity.cluster_id,
        node: context.node,
        incarnation: identity.incarnation,
        shard,
        shards: context.shards,
        listen: at(&context.address),
        peers: peers.map(|(node, address)| (node, at(&address))).collect(),
        heartbeat_interval: Duration::from_millis(context.config.rac.interconnect.heartbeat_interval),
        heartbeat_timeout: context.config.heartbeat_timeout(),
        send_queue_bytes_max: SEND_QUEUE_BYTES,
    };
    let (listen, nodes) = (settings.listen, settings.peers.len());
    let interconnect = Interconnect::new(reactor, &context.shared.clock, settings);
    let config = &context.config.rac.interconnect;
    let poll = Duration::from_micros(config.poll_us);
    if config.busy_poll_us > 0 {
        match reactor.busy_poll(Duration::from_micros(config.busy_poll_us)) {
            Ok(()) => {
                tracing::info!(%shard, time_us = config.busy_poll_us, "looks for packets at the network card before it sleeps")
            }
            Err(error) => tracing::warn!(
                %shard,
                %error,
                "busy_poll_us is set, and this kernel does not let a ring poll network cards (it takes io_uring, Linux 6.9 and \
                 NET_RX_BUSY_POLL): packets are waited for as ever"
            ),
        }
    }
    match config.protocol {
        Protocol::Tcp => {}
        Protocol::Auto => match interconnect.use_device(listen, nodes, false, poll) {
            Ok(device) => tracing::info!(%shard, device, "RDMA to the nodes that have it too"),
            Err(why) => tracing::info!(%shard, "TCP only: {why}"),
        },
        Protocol::Rdma => {
            let device = interconnect.use_device(listen, nodes, true, poll);
            let device = device.map_err(|why| End::Failed(format!("[rac.interconnect] protocol is \"RDMA\": {why}")))?;
            tracing::info!(%shard, device, "RDMA only");
        }
    }
    let late = LateHandler::new;
    let doors = Doors { interconnect, gcs: late(), ges: late(), txn: late(), raft: Rc::default() };
    doors.interconnect.register(Service::Gcs, doors.gcs.clone());
    doors.interconnect.register(Service::Ges, doors.ges.clone());
    doors.interconnect.register(Service::Txn, doors.txn.clone());
    doors.interconnect.register(Service::Raft, doors.raft.clone());
    Ok(doors)
}

async fn open_volume(reactor: &Reactor, context: &NodeContext) -> Result<Volume, End> {
    let expected = Expected {
        cluster_id: None,
        cluster_name: Some(context.config.cluster.cluster_name.clone()),
        shards: Some(context.shards),
        node: Some(context.node),
    };
    let volume = Volume::open(reactor, &context.volume, &expected).await?;
    let storage = &context.config.rac.storage;
    let wish = StorageWish { polled: storage.polled_io, passthrough: storage.nvme_passthrough };
    let route = reactor.route(volume.file(), wish);
    let volume_path = context.volume.display();
    for refusal in &route.refusals {
        tracing::warn!(volume = %volume_path, "the volume goes without what its settings ask for: {refusal}");
    }
    if wish != StorageWish::default() {
        tracing::info!(volume = %volume_path, "reads and writes of the volume go by {route}");
    }
    Ok(volume)
}

/// Finds out how this thread's durable writes are fastest. Only once the life is registered: until then a device with
/// reservations refuses its writes.
async fn probe_volume(reactor: &Reactor, context: &NodeContext, volume: &Volume) -> Result<(), End> {
    // In this node's own voting block, which is written back as it is.
    let place = block_offset(volume.geometry().vote_block(context.node));
    let probed = reactor.probe_durable_write(volume.file(), place).await;
    let volume_path = context.volume.display();
    probed.map_err(|error| End::Failed(format!("{volume_path} takes no durable writes: {error}; check the device")))?;
    Ok(())
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

/// The first shard: begins the node's life and leads it.
async fn lead(
    reactor: &Reactor,
    context: &Arc<NodeContext>,
    followers: Vec<Follower>,
    stopped: CrossReceiver<()>,
    fences: Option<Rc<dyn Fences>>,
) -> Result<(), End> {
    let volume = open_volume(reactor, context).await?;
    wait_for_former_life(reactor, context, &volume).await?;
    let known = known_roster(context, volume.read_control().await?);
    check_roster(context, &known)?;
    let mut slot = volume.read_node_slot(context.node).await?;
    slot.incarnation = Incarnation(slot.incarnation.0 + 1);
    slot.state = NodeState::Running;
    let roster = known.roster.clone();
    let identity = Birth { cluster_id: volume.geometry().cluster_id, incarnation: slot.incarnation, roster };
    context.status.identity(Identity { cluster_id: identity.cluster_id, incarnation: identity.incarnation });
    let fences = match fences {
        Some(fences) => fences,
        None => ThreadFences::start(&context.config.ha, &context.volume, identity.cluster_id)?,
    };
    // From here on its writes count as this life's: before it the device would refuse them, or take them for another's.
    fences.register(Life { node: context.node, incarnation: identity.incarnation }).await?;
    probe_volume(reactor, context, &volume).await?;
    volume.write_node_slot(&mut slot).await?;

    let agent = ViewsAgent::new(context.node, identity.incarnation, known);
    let door = ClusterDoor::new(&agent, context.shards);
    let doors = connect(reactor, context, ShardId(0), &identity)?;
    door.watch(&doors.interconnect);
    doors.interconnect.register(Service::Cluster, door.clone());
    agent.start(&doors.interconnect);
    reactor.set_local(door);
    let life = ShardLife::new(reactor, context, &volume, ShardId(0), identity.incarnation, doors);
    reactor.set_local(life.clone());
    life.connect().await?;
    let mut ends = Vec::new();
    for Follower { identity: sender, connected, ends: end } in followers {
        sender.send(identity.clone());
        connected.await.map_err(|_| End::Failed("a shard has ended while it connected".into()))?;
        ends.push(end);
    }
    let parts = LeadParts { reactor: reactor.clone(), context: context.clone(), volume, slot, agent, fences, life };
    let lead = Lead::new(parts);
    reactor.set_local(lead.clone());
    let outcome = lead.run(async move {
        // A stop that is dropped means that the process ends.
        stopped.await.ok();
    });
    let outcome = outcome.await;
    // The others' lives end with these.
    drop(ends);
    outcome
}

/// Every other shard.
async fn follow(reactor: &Reactor, context: &Arc<NodeContext>, shard: ShardId, follows: Follows) -> Result<(), End> {
    let volume = open_volume(reactor, context).await?;
    // The first shard says itself why it has ended.
    let Ok(identity) = follows.identity.await else { return Ok(()) };
    if !reactor.try_lock(volume.file(), life_lock(context.node, shard.0), true)? {
        return Err(End::Failed(format!("{} {shard} runs twice on the volume {}", context.node, context.volume.display())));
    }
    // The first shard has registered before it told this one who they are.
    probe_volume(reactor, context, &volume).await?;
    let first = context.remotes.lock().expect("nobody panics while holding it")[0].clone();
    let links = ReportLinks::new(shard, first, context.status.clone());
    let doors = connect(reactor, context, shard, &identity)?;
    links.watch(&doors.interconnect);
    doors.interconnect.register(Service::Cluster, links);
    let life = ShardLife::new(reactor, context, &volume, shard, identity.incarnation, doors);
    reactor.set_local(life.clone());
    life.connect().await?;
    follows.connected.send(());
    // Sent or dropped, it means the same.
    follows.ends.await.ok();
    life.end();
    Ok(())
}
