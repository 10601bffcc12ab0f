//! Whole nodes on simulated machines, through losses and returns: what the control group remembers, and which nodes the
//! cluster has.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::control::{Command, ControlState, NodeStanding};
use super::fencing::{Fences, FencingError, Lease, Life, Proof, Strength, Victim};
use super::{HostedNode, Operator, Phase};
use crate::cache::LocalFuture;
use crate::config::{
    ByteSize, CacheFusionConfig, ClusterConfig, Config, EngineConfig, FencingMethod, GrdConfig, HaConfig, InterconnectConfig,
    NodeName, RacConfig, RaftConfig, RecoveryConfig, ServerConfig, StorageConfig,
};
use crate::fusion::grd::Bucket;
use crate::ids::{NodeId, ShardId};
use crate::reactor::driver::sim::{HostId, SimWorld};
use crate::volume::{Expected, FormatOptions, RosterChange, Standing, Volume};
use crate::wal::{LogScan, RecordKind};

const VOLUME: &str = "volume";
const NAME: &str = "tested";

/// Whom these tests take out has been killed before.
struct KilledBefore;

impl Fences for KilledBefore {
    fn register(&self, _: Life) -> LocalFuture<Result<(), FencingError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn fence(&self, victim: Victim) -> LocalFuture<Result<Proof, FencingError>> {
        let proof = Proof::new(victim.life, FencingMethod::Command, Strength::Process, "the test has killed it".into());
        Box::pin(std::future::ready(Ok(proof)))
    }

    fn next_life_is_proof(&self) -> bool {
        true
    }

    fn lease(&self) -> Option<Lease> {
        None
    }
}

struct Cluster {
    world: SimWorld,
    fences: Rc<dyn Fences>,
    nodes: BTreeMap<u8, HostedNode>,
}

fn host(node: u8) -> HostId {
    HostId(u32::from(node))
}

fn config(node: u8, of: u8) -> Config {
    let address = |node: u8| ([10, 7, 0, node], 7_000).into();
    Config {
        cluster: ClusterConfig {
            cluster_name: NAME.into(),
            node_id: NodeName::Number(u64::from(node)),
            nodes: (1..=of).map(|node| (format!("node{node}"), address(node))).collect(),
        },
        rac: RacConfig {
            node_count: None,
            interconnect: InterconnectConfig { heartbeat_interval: 100, heartbeat_timeout: 500, ..InterconnectConfig::default() },
            cache_fusion: CacheFusionConfig { global_cache_size: ByteSize(4 << 20), ..CacheFusionConfig::default() },
            grd: GrdConfig { virtual_nodes: 32, ..GrdConfig::default() },
            storage: StorageConfig { shared_storage_path: VOLUME.into(), ..StorageConfig::default() },
            recovery: RecoveryConfig { checkpoint_interval: 1 },
        },
        raft: RaftConfig::default(),
        ha: HaConfig::default(),
        server: ServerConfig::default(),
        engine: EngineConfig { shards: 2, ..EngineConfig::default() },
    }
}

impl Cluster {
    fn new(seed: u64) -> Cluster {
        let world = SimWorld::new(seed);
        let reactor = world.reactor(HostId(99));
        let inside = reactor.clone();
        world.block_on(&reactor, async move {
            let options = FormatOptions {
                nodes_max: 4,
                shards: 2,
                volume_bytes: 128 << 20,
                redo_area_bytes: Some(4 << 20),
                ..FormatOptions::new(NAME)
            };
            Volume::format(&inside, Path::new(VOLUME), &options, &mut |_| {}).await.expect("the simulated disk has room");
        });
        Cluster { world, fences: Rc::new(KilledBefore), nodes: BTreeMap::new() }
    }

    fn start(&mut self, node: u8, of: u8) {
        self.world.power_on(host(node));
        let reactors = [self.world.reactor(host(node)), self.world.reactor(host(node))];
        let hosted = HostedNode::start(&config(node, of), PathBuf::from(VOLUME), &reactors, &self.fences);
        self.nodes.insert(node, hosted.expect("a sound configuration"));
    }

    fn until(&self, what: &str, is_so: impl Fn(&Cluster) -> bool) {
        let end = self.world.now() + Duration::from_secs(120);
        self.world.run_until(|| is_so(self) || self.world.now() > end).expect("somebody has something to do");
        let states: Vec<_> = self.nodes.iter().map(|(node, hosted)| (node, hosted.status().get())).collect();
        assert!(is_so(self), "never came: {what} (seed {}): {states:#?}", self.world.seed());
    }

    fn until_open(&self) {
        let open = |hosted: &HostedNode| hosted.status().get().phase == Phase::Open;
        self.until("all are open", |cluster| cluster.nodes.values().all(open));
    }

    /// Asks a node, on a machine of the operator's.
    fn ask<T: 'static, F: Future<Output = T> + 'static>(&self, node: u8, ask: impl FnOnce(Operator) -> F) -> T {
        let reactor = self.world.reactor(HostId(99));
        self.world.block_on(&reactor, ask(self.nodes[&node].operator()))
    }

    fn set(&self, node: u8, name: &str, value: &str) {
        let (name, value) = (name.to_owned(), Some(value.to_owned()));
        let set = self.ask(node, async move |operator| operator.agree(move |epoch| Command::Set { epoch, name, value }).await);
        assert_eq!(set, Ok(()));
    }

    fn state(&self, node: u8) -> ControlState {
        self.ask(node, async move |operator| operator.control_state().await).expect("it runs")
    }

    /// Whether all that run have the same state, with this setting.
    fn all_have(&self, name: &'static str, value: &'static str) {
        let seen = RefCell::new(Vec::new());
        for _ in 0..100 {
            let states: Vec<ControlState> = self.nodes.keys().map(|node| self.state(*node)).collect();
            if states.iter().all(|state| *state == states[0] && state.setting(name) == Some(value)) {
                return;
            }
            *seen.borrow_mut() = states;
            self.world.run_for(Duration::from_millis(100));
        }
        panic!("not all have {name} = {value}: {seen:#?}");
    }

    /// Raft's records that a node's log holds behind its checkpoint.
    fn raft_records(&self, node: u8) -> usize {
        let reactor = self.world.reactor(HostId(99));
        let inside = reactor.clone();
        self.world.block_on(&reactor, async move {
            let volume = Volume::open(&inside, Path::new(VOLUME), &Expected::default()).await.unwrap();
            let area = volume.geometry().redo_area(NodeId(node), ShardId(0));
            let mut scan = LogScan::open(&inside, volume.file(), area).await.unwrap();
            let mut count = 0;
            while let Some(record) = scan.next().await.unwrap() {
                count += usize::from(record.kind == RecordKind::Raft);
            }
            count
        })
    }
}

#[test]
fn three_nodes_agree_while_one_is_dead_and_it_has_all_when_it_comes_back() {
    let mut cluster = Cluster::new(1);
    (1..=3).for_each(|node| cluster.start(node, 3));
    cluster.until_open();
    cluster.set(2, "a", "1");
    cluster.all_have("a", "1");

    cluster.world.crash(host(3));
    drop(cluster.nodes.remove(&3));
    cluster.until("the others go on", |cluster| {
        cluster.nodes.values().all(|node| node.status().get().members == [NodeId(1), NodeId(2)])
    });
    cluster.set(1, "a", "2");
    cluster.all_have("a", "2");
    let views: Vec<Vec<NodeId>> = cluster.state(1).views().map(|view| view.members.clone()).collect();
    assert_eq!(views.last(), Some(&vec![NodeId(1), NodeId(2)]), "{views:?}");
    cluster.until("its redo is released", |cluster| cluster.nodes[&1].status().get().recovery.is_none());
    assert!(cluster.raft_records(3) > 0, "whoever recovers a node leaves what it has voted");

    cluster.start(3, 3);
    cluster.until_open();
    cluster.all_have("a", "2");
    cluster.set(3, "a", "3");
    cluster.all_have("a", "3");
    let status = cluster.nodes[&3].status().get().control.expect("the group runs");
    assert_eq!(status.voters, [NodeId(1), NodeId(2), NodeId(3)]);
    assert!(status.leader.is_some() && status.nodes.values().all(|node| node.standing == NodeStanding::Member));
}

#[test]
fn what_was_agreed_outlives_a_stop_of_all_nodes() {
    let mut cluster = Cluster::new(2);
    (1..=3).for_each(|node| cluster.start(node, 3));
    cluster.until_open();
    cluster.set(3, "kept", "yes");
    let before = cluster.state(3);
    cluster.nodes.values_mut().for_each(HostedNode::ask_to_stop);
    cluster.until("all have ended", |cluster| cluster.nodes.values().all(HostedNode::has_ended));
    cluster.nodes.clear();
    (1..=3).for_each(|node| cluster.start(node, 3));
    cluster.until_open();
    cluster.all_have("kept", "yes");
    let written_down = |cluster: &Cluster| cluster.state(1).views().count() > before.views().count();
    for _ in 0..100 {
        if written_down(&cluster) {
            return;
        }
        cluster.world.run_for(Duration::from_millis(100));
    }
    panic!("the new life of the cluster is not written down: {:#?}", cluster.state(1));
}

fn address(node: u8) -> std::net::SocketAddr {
    ([10, 7, 0, node], 7_000).into()
}

impl Cluster {
    fn change(&self, asked: u8, change: RosterChange, force: bool) -> Result<String, String> {
        self.ask(asked, async move |operator| operator.change_roster(change, force).await)
    }

    fn voters(&self, asked: u8) -> Vec<u8> {
        let status = self.nodes[&asked].status().get();
        status.control.map(|control| control.voters.iter().map(|node| node.0).collect()).unwrap_or_default()
    }

    fn members(&self, asked: u8) -> Vec<u8> {
        self.nodes[&asked].status().get().members.iter().map(|node| node.0).collect()
    }
}

#[test]
fn a_node_joins_and_another_leaves_for_good_while_the_others_serve() {
    let mut cluster = Cluster::new(3);
    (1..=3).for_each(|node| cluster.start(node, 3));
    cluster.until_open();
    cluster.set(1, "a", "1");
    let refused = cluster.change(2, RosterChange::Admit(NodeId(9), address(9)), false).unwrap_err();
    assert!(refused.contains("node1 to node4"), "{refused}");
    let refused = cluster.change(2, RosterChange::Admit(NodeId(4), address(3)), false).unwrap_err();
    assert!(refused.contains("node3 is at 10.7.0.3:7000"), "{refused}");

    // Whoever was not admitted is told so, and is in nobody's way.
    cluster.start(4, 4);
    cluster.until("it is refused", |cluster| matches!(cluster.nodes[&4].status().get().phase, Phase::Removed(_)));
    drop(cluster.nodes.remove(&4));
    cluster.world.crash(host(4));
    cluster.change(2, RosterChange::Admit(NodeId(4), address(4)), false).expect("there is room");
    assert_eq!(cluster.nodes[&1].status().get().roster.standing(NodeId(4)), Some(Standing::Joining));
    cluster.start(4, 4);
    cluster.until_open();
    cluster.until("it has a vote", |cluster| cluster.nodes.keys().all(|node| cluster.voters(*node) == [1, 2, 3, 4]));
    cluster.set(4, "a", "2");
    cluster.all_have("a", "2");

    // One of the founders leaves: not while it serves, but when it has died and was recovered.
    let refused = cluster.change(4, RosterChange::Remove(NodeId(1)), false).unwrap_err();
    assert!(refused.contains("node drain node1"), "{refused}");
    cluster.world.crash(host(1));
    drop(cluster.nodes.remove(&1));
    cluster.until("the others go on", |cluster| cluster.nodes.keys().all(|node| cluster.members(*node) == [2, 3, 4]));
    cluster.change(4, RosterChange::Remove(NodeId(1)), false).expect("it is gone");
    cluster.until("it has no vote", |cluster| cluster.nodes.keys().all(|node| cluster.voters(*node) == [2, 3, 4]));
    let again = cluster.change(3, RosterChange::Admit(NodeId(1), address(1)), false).unwrap_err();
    assert!(again.contains("never used"), "{again}");
    cluster.start(1, 3);
    cluster.until("it is refused", |cluster| matches!(cluster.nodes[&1].status().get().phase, Phase::Removed(_)));
    drop(cluster.nodes.remove(&1));
    cluster.world.crash(host(1));

    // One more is taken out while it serves.
    cluster.change(4, RosterChange::Remove(NodeId(3)), true).expect("it is fenced first");
    assert_eq!(cluster.members(4), [2, 4]);
    drop(cluster.nodes.remove(&3));
    cluster.world.crash(host(3));
    cluster.until("it has no vote", |cluster| cluster.nodes.keys().all(|node| cluster.voters(*node) == [2, 4]));

    // All start anew, with the configuration files that they have always had.
    cluster.nodes.values_mut().for_each(HostedNode::ask_to_stop);
    cluster.until("all have ended", |cluster| cluster.nodes.values().all(HostedNode::has_ended));
    cluster.nodes.clear();
    cluster.start(2, 3);
    cluster.start(4, 4);
    cluster.until_open();
    cluster.all_have("a", "2");
    assert_eq!(cluster.members(2), [2, 4]);

    // Of two one dies. The other goes on, and is the cluster when the dead one is removed: it starts alone.
    cluster.world.crash(host(2));
    drop(cluster.nodes.remove(&2));
    cluster.until("the last one goes on", |cluster| cluster.members(4) == [4]);
    cluster.change(4, RosterChange::Remove(NodeId(2)), false).expect("it is gone");
    let refused = cluster.change(4, RosterChange::Remove(NodeId(4)), false).unwrap_err();
    assert!(refused.contains("last node"), "{refused}");
    cluster.until("the group goes on alone", |cluster| cluster.voters(4) == [4]);
    cluster.set(4, "a", "3");
    cluster.world.crash(host(4));
    cluster.nodes.clear();
    cluster.start(4, 4);
    cluster.until_open();
    cluster.all_have("a", "3");
}

/// Buckets that have followed their users: of a death only the dead node's get another master, on all that live the same one.
#[test]
fn masters_that_live_keep_their_buckets() {
    let mut cluster = Cluster::new(5);
    (1..=3).for_each(|node| cluster.start(node, 3));
    cluster.until_open();
    let map = cluster.nodes[&1].gcs().map();
    let mut of_node_1 = (0..u16::MAX).map(Bucket).filter(|bucket| map.ring_master(*bucket) == NodeId(1));
    let [stays, moves] = [of_node_1.next().unwrap(), of_node_1.next().unwrap()];
    let overrides = |cluster: &Cluster| -> Vec<BTreeMap<Bucket, NodeId>> {
        cluster.nodes.values().map(|hosted| hosted.inspect()[0].overrides.clone()).collect()
    };
    let mut expected = BTreeMap::new();
    for (bucket, to) in [(stays, NodeId(2)), (moves, NodeId(3))] {
        assert!(cluster.nodes[&1].gcs().remaster(bucket, to));
        expected.insert(bucket, to);
        cluster.until("all know", |cluster| overrides(cluster).iter().all(|known| *known == expected));
    }
    cluster.world.crash(host(3));
    drop(cluster.nodes.remove(&3));
    cluster.until("the others go on", |cluster| cluster.nodes.keys().all(|node| cluster.members(*node) == [1, 2]));
    cluster.until_open();
    expected.remove(&moves);
    assert_eq!(overrides(&cluster), [expected.clone(), expected.clone()]);
    // Who comes finds them where they are.
    cluster.start(3, 3);
    cluster.until_open();
    cluster.until("all are members", |cluster| cluster.members(1) == [1, 2, 3]);
    assert_eq!(overrides(&cluster), vec![expected; 3]);
}
