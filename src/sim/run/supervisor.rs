//! Starts nodes, notices when they open and when their lives end, and starts them again, as the operator's supervisor
//! does. It knows of a node only what a supervisor knows: that it runs, serves, or has ended.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use super::nodes::Asked;
use super::{CLUSTER_NAME, Due, Run, VOLUME};
use crate::cluster::fencing::Fences;
use crate::cluster::{HostedNode, Phase};
use crate::config::{
    ByteSize, CacheFusionConfig, ClusterConfig, Config, EngineConfig, GrdConfig, HaConfig, InterconnectConfig, NodeName,
    RacConfig, RaftConfig, RecoveryConfig, ServerConfig, StorageConfig,
};
use crate::reactor::driver::sim::HostId;
use crate::reactor::{Class, Reactor};
use crate::sim::plan::Plan;
use crate::sim::{Failure, run::OPEN_WITHIN};

/// Longest time until an ended node is started again, in milliseconds.
const RESTART_MS_MAX: u64 = 3_000;

/// Whether a node belongs to the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// It is to be admitted.
    Comes,
    Member,
    /// It is to be removed; it may serve until it is.
    Leaves,
    /// It was removed.
    Gone,
}

/// A node and its machine.
pub(super) struct Member {
    pub(super) place: Place,
    /// An operator asks for it to come or to leave, and waits for the answer.
    pub(super) asked: Option<Asked>,
    pub(super) index: usize,
    pub(super) hosted: Option<HostedNode>,
    pub(super) open: bool,
    /// Asked to stop.
    pub(super) stopping: bool,
    /// Answers nobody for now.
    pub(super) suspended: bool,
}

impl Member {
    pub(super) fn new(index: usize, place: Place) -> Member {
        Member { place, asked: None, index, hosted: None, open: false, stopping: false, suspended: false }
    }

    /// Serves now: not suspended either.
    pub(super) fn is_open(&self) -> bool {
        let open_now = |hosted: &HostedNode| hosted.status().get().phase == Phase::Open;
        self.open && !self.stopping && self.hosted.as_ref().is_some_and(open_now)
    }

    /// How many members its view has.
    pub(super) fn sees(&self) -> usize {
        self.hosted.as_ref().map_or(0, |hosted| hosted.status().get().members.len())
    }

    /// Is where it shall be: open, or gone for good.
    pub(super) fn is_settled(&self) -> bool {
        match self.place {
            Place::Member => self.is_open(),
            Place::Gone => self.hosted.is_none(),
            Place::Comes | Place::Leaves => false,
        }
    }

    pub(super) fn describe(&self) -> String {
        let state = self.hosted.as_ref().map(|hosted| hosted.status().get());
        let state = state.map_or("down".to_owned(), |state| format!("{:?}, {}", state.phase, state.detail));
        let place = if self.place == Place::Member { String::new() } else { format!(" ({:?})", self.place) };
        format!("node{}{place}: {state}", self.index + 1)
    }
}

pub(super) fn host(node: usize) -> HostId {
    HostId(node as u32 + 1)
}

fn config(plan: &Plan, node: usize) -> Config {
    // The founders, and, where it came later, itself.
    let named = (0..usize::from(plan.nodes)).chain((node >= usize::from(plan.nodes)).then_some(node));
    Config {
        cluster: ClusterConfig {
            cluster_name: CLUSTER_NAME.into(),
            node_id: NodeName::Number(node as u64 + 1),
            nodes: named.map(|node| (format!("node{}", node + 1), address(node))).collect(),
        },
        rac: RacConfig {
            node_count: None,
            interconnect: InterconnectConfig {
                heartbeat_interval: plan.heartbeat_interval_ms,
                heartbeat_timeout: plan.heartbeat_timeout_ms,
                ..InterconnectConfig::default()
            },
            cache_fusion: CacheFusionConfig { global_cache_size: ByteSize(plan.cache_bytes), ..CacheFusionConfig::default() },
            grd: GrdConfig {
                virtual_nodes: 32,
                remaster_threshold: plan.remaster_threshold,
                load_balance_interval: plan.load_balance_interval_s,
                ..GrdConfig::default()
            },
            storage: StorageConfig {
                shared_storage_path: VOLUME.into(),
                verify_writes: plan.damages,
                ..StorageConfig::default()
            },
            recovery: RecoveryConfig { checkpoint_interval: plan.checkpoint_interval_s },
        },
        raft: RaftConfig::default(),
        ha: HaConfig::default(),
        server: ServerConfig::default(),
        engine: EngineConfig { shards: u64::from(plan.shards), ..EngineConfig::default() },
    }
}

/// Where a node's first shard listens.
pub(super) fn address(node: usize) -> SocketAddr {
    ([10, 1, (node >> 8) as u8, node as u8 + 1], 7_000).into()
}

impl Run {
    /// The nodes that are the cluster's, as far as operators know.
    pub(super) fn present(&self) -> Vec<usize> {
        self.members.iter().filter(|member| matches!(member.place, Place::Member | Place::Leaves)).map(|it| it.index).collect()
    }

    /// Starts a node on its machine, if it does not run.
    pub(super) fn start(&mut self, node: usize) {
        if self.members[node].hosted.is_some() {
            return;
        }
        let host = host(node);
        self.world.power_on(host);
        let reactors: Vec<Reactor> = (0..self.plan.shards).map(|_| self.world.reactor(host)).collect();
        let fences: Rc<dyn Fences> = self.fences.clone();
        let hosted = HostedNode::start(&config(&self.plan, node), PathBuf::from(VOLUME), &reactors, &fences);
        self.members[node].hosted = Some(hosted.expect("the simulation's configuration is sound"));
        self.lives += 1;
        self.events.note(format_args!("node{} starts", node + 1));
    }

    /// What has become of the nodes.
    pub(super) fn look(&mut self) -> Result<(), Failure> {
        for node in 0..self.members.len() {
            let member = &mut self.members[node];
            let Some(hosted) = &member.hosted else { continue };
            let state = hosted.status().get();
            match state.phase {
                Phase::Open if !member.open && !member.stopping => {
                    member.open = true;
                    self.clients.stores.borrow_mut()[node] = Some(hosted.store().clone());
                    self.events.note(format_args!("node{} is open in epoch {}", node + 1, state.epoch.0));
                }
                Phase::Stopped if hosted.has_ended() => self.kill(node, "has stopped"),
                Phase::Suspended if !member.suspended => {
                    member.suspended = true;
                    self.events.note(format_args!("node{} is suspended", node + 1));
                }
                Phase::Open if member.suspended => {
                    member.suspended = false;
                    self.events.note(format_args!("node{} goes on", node + 1));
                }
                Phase::Removed(why) => self.refused(node, &why)?,
                Phase::Over(why) => self.kill(node, &format!("is over: {why}")),
                Phase::Failed(message) => self.kill(node, &format!("has failed: {message}")),
                _ => {}
            }
        }
        self.change_nodes();
        Ok(())
    }

    /// The end of a node's process, wherever it is. It is started again after a while.
    pub(super) fn kill(&mut self, node: usize, why: &str) {
        self.end(node, why, |run| run.world.crash(host(node)));
    }

    /// Ends a node by `how`.
    pub(super) fn end(&mut self, node: usize, why: &str, how: impl FnOnce(&mut Run)) {
        let Some(hosted) = self.members[node].hosted.take() else { return };
        self.events.note(format_args!("node{} {why}", node + 1));
        let member = &mut self.members[node];
        (member.open, member.stopping, member.suspended) = (false, false, false);
        let store = self.clients.stores.borrow_mut()[node].take();
        how(self);
        drop((hosted, store));
        if self.supervised && self.is_started_again(node) {
            let pause = self.dice.spread_ms(1, RESTART_MS_MAX);
            self.schedule(pause, Due::Start(node));
        }
    }

    pub(super) fn ask_to_stop(&mut self, node: usize) {
        let member = &mut self.members[node];
        let Some(hosted) = member.hosted.as_mut().filter(|_| member.open && !member.stopping) else { return };
        self.events.note(format_args!("node{} is asked to stop", node + 1));
        hosted.ask_to_stop();
        member.stopping = true;
        self.clients.stores.borrow_mut()[node] = None;
    }

    /// Sends a node's clients away and has it write its blocks. The node goes on. False: it does not serve anyhow.
    pub(super) fn drain(&mut self, node: usize) -> bool {
        let Some(hosted) = self.members[node].hosted.as_ref().filter(|_| self.members[node].is_open()) else { return false };
        let operator = hosted.operator();
        self.clients.stores.borrow_mut()[node] = None;
        self.clients.reactor.spawn(Class::Normal, "drain", async move {
            // It may be lost meanwhile, or its disk refuse: that is another fault's.
            let _ = operator.write_blocks().await;
        });
        true
    }

    /// A drained node takes clients again.
    pub(super) fn undrain(&mut self, node: usize) {
        let member = &self.members[node];
        let Some(hosted) = member.hosted.as_ref().filter(|_| member.open && !member.stopping) else { return };
        self.clients.stores.borrow_mut()[node].get_or_insert_with(|| hosted.store().clone());
    }

    /// An operator stops the whole cluster and starts it again.
    pub(super) fn stop_and_start_all(&mut self) -> Result<(), Failure> {
        self.supervised = false;
        let present = self.present();
        present.iter().for_each(|node| self.ask_to_stop(*node));
        self.run_until("all nodes stop", OPEN_WITHIN, |run| run.members.iter().all(|member| member.hosted.is_none()))?;
        self.supervised = true;
        present.iter().for_each(|node| self.start(*node));
        self.wait_until_open("after a stop of all")?;
        self.pass(self.world.now() + Duration::from_millis(100))
    }
}
