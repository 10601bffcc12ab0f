//! A node: starts its shards, on threads of their own or on reactors that somebody else drives, and is the handle to them.
//!
//! [`Node`] is the process's handle; everything else runs in the shards, whose lives begin in [`begin`]. The first shard leads
//! ([`super::lead`]); the others do what it tells them. Bounded by the shards. A node whose life is over ([`Phase::Over`]), or
//! whose volume fails ([`Phase::Failed`]), ends as a whole; it never goes on with half of its parts.

mod begin;
mod connect;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use self::begin::ShardMain;
pub(super) use self::begin::known_roster;
pub(super) use self::connect::Doors;
use super::fencing::Fences;
use super::operator::Operator;
use super::shard::ShardLife;
use super::status::{Phase, Status};
use super::view::EndReason;
use crate::clock::ScnClock;
use crate::config::{Config, ConfigError, IoDriver};
use crate::fusion::gcs::Inspection;
use crate::ids::NodeId;
use crate::reactor::sync::{CrossSender, cross_oneshot};
use crate::reactor::thread::spawn_shard_thread;
use crate::reactor::{Class, DriverChoice, Reactor, ReactorOptions, Remote, TaskHandle};
use crate::store::{NodeStore, Store};
use crate::txn::NodeShared;

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

/// A node before its shards have reactors.
struct Prepared {
    context: Arc<NodeContext>,
    /// In the order of the shards.
    mains: Vec<ShardMain>,
    stop: CrossSender<()>,
}

fn prepare(config: &Config, volume: PathBuf) -> Result<Prepared, ConfigError> {
    let file_nodes = config.nodes()?;
    let context = Arc::new(NodeContext {
        node: config.node_id(),
        address: file_nodes[&config.node_id()],
        file_nodes,
        volume,
        shards: config.engine.shards as u8,
        shared: NodeShared::new(ScnClock::new()),
        status: Status::default(),
        remotes: Mutex::new(Vec::new()),
        config: config.clone(),
    });
    let (stop, stopped) = cross_oneshot();
    let mains = begin::mains(&context, stopped);
    Ok(Prepared { context, mains, stop })
}

/// Tells the shards of each other; what clients of the node use.
fn introduce(context: &NodeContext, remotes: Vec<Remote>) -> Store {
    context.remotes.lock().expect("nobody panics while holding it").clone_from(&remotes);
    NodeStore::new(context.node, remotes, context.shared.clone()).store()
}

/// A running node.
pub struct Node {
    status: Status,
    store: Store,
    shards: Vec<Remote>,
    stop: CrossSender<()>,
    threads: Vec<JoinHandle<()>>,
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

impl<E: std::error::Error> From<E> for End {
    fn from(error: E) -> Self {
        End::Failed(error.to_string())
    }
}
