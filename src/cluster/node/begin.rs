//! How a node's life begins in each of its shards, up to where the first one leads it and the others follow: the volume is
//! opened, the life before this one has ended, the cluster has a place for this node, and its shards are connected.
//!
//! In the shards' threads. The first one does all that concerns the node, and tells the others who they are; they tell it when
//! they are connected, and end with it. The order matters: nothing is written to the volume before this life is registered
//! with the fences, and that is not before the former one's last writes are over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::connect::connect;
use super::{End, NodeContext};
use crate::cluster::door::{ClusterDoor, ReportLinks};
use crate::cluster::fencing::{Fences, Life, ThreadFences, life_lock};
use crate::cluster::lead::{Lead, LeadParts};
use crate::cluster::shard::ShardLife;
use crate::cluster::status::{Identity, Phase};
use crate::cluster::view::{EndReason, Known, ViewsAgent};
use crate::ids::{Incarnation, NodeId, ShardId};
use crate::interconnect::Service;
use crate::reactor::sync::{CrossReceiver, CrossSender, cross_oneshot};
use crate::reactor::{Reactor, StorageWish};
use crate::volume::{ControlBlock, Expected, NodeState, Roster, Standing, Volume, block_offset};

/// How long an earlier life's last writes are waited for.
const FORMER_LIFE_PATIENCE: Duration = Duration::from_secs(30);

/// Who this node is in this life: what the first shard has found out, and tells the others.
#[derive(Clone)]
pub(super) struct Birth {
    pub(super) cluster_id: u128,
    pub(super) incarnation: Incarnation,
    /// The cluster's nodes, as the volume or the configuration file has them.
    pub(super) roster: Roster,
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

/// A shard's main task, before it has a reactor.
pub(super) struct ShardMain {
    pub(super) shard: ShardId,
    context: Arc<NodeContext>,
    part: Part,
}

enum Part {
    Leads(Vec<Follower>, CrossReceiver<()>),
    Follows(Follows),
}

/// The main tasks of a node's shards, in their order. The node is to stop when `stopped` resolves.
pub(super) fn mains(context: &Arc<NodeContext>, stopped: CrossReceiver<()>) -> Vec<ShardMain> {
    let (mut followers, mut others) = (Vec::new(), Vec::new());
    for _ in 1..context.shards {
        let (identity_sender, identity) = cross_oneshot();
        let (connected_sender, connected) = cross_oneshot();
        let (ends_sender, ends) = cross_oneshot();
        followers.push(Follower { identity: identity_sender, connected, ends: ends_sender });
        others.push(Part::Follows(Follows { identity, connected: connected_sender, ends }));
    }
    let parts = std::iter::once(Part::Leads(followers, stopped)).chain(others);
    let mains = (0..).zip(parts).map(|(number, part)| ShardMain { shard: ShardId(number), context: context.clone(), part });
    mains.collect()
}

impl ShardMain {
    /// `fences`: how dead nodes are kept from the volume, if not as configured.
    pub(super) async fn run(self, reactor: Reactor, fences: Option<Rc<dyn Fences>>) {
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

/// What the volume says of the cluster's nodes; of one that is new, what the configuration file says.
pub(in crate::cluster) fn known_roster(context: &NodeContext, control: ControlBlock) -> Known {
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
