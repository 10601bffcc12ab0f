//! Groups on simulated nodes: the real log on a shared volume, the real interconnect, virtual time, one seed a run.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::clock::ScnClock;
use crate::config::RaftConfig;
use crate::ids::{Incarnation, NodeId, Scn, ShardId};
use crate::interconnect::{Interconnect, Service, Settings};
use crate::reactor::driver::sim::{HostId, SimOptions, SimWorld};
use crate::reactor::{Class, Reactor};
use crate::volume::{Expected, FormatOptions, Volume};
use crate::wal::{Log, RecordKind};

const VOLUME: &str = "volume";
const GROUP: GroupId = GroupId::CONTROL;

/// A state that is a list of texts.
#[derive(Default)]
struct Texts {
    texts: RefCell<Vec<String>>,
    members: Cell<Configuration>,
    /// Bytes that its snapshots carry beside the texts.
    ballast: Cell<usize>,
    restored: Cell<u32>,
}

impl StateMachine for Texts {
    fn apply(&self, _: LogIndex, proposal: &[u8]) -> Vec<u8> {
        let mut texts = self.texts.borrow_mut();
        texts.push(String::from_utf8(proposal.to_vec()).unwrap());
        texts.len().to_string().into_bytes()
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut bytes = self.texts.borrow().join("\n").into_bytes();
        bytes.resize(bytes.len() + self.ballast.get(), 0);
        bytes
    }

    fn restore(&self, _: LogIndex, snapshot: &[u8]) -> Result<(), String> {
        let text = std::str::from_utf8(snapshot).map_err(|error| error.to_string())?;
        *self.texts.borrow_mut() = text.trim_end_matches('\0').lines().map(str::to_owned).collect();
        self.restored.set(self.restored.get() + 1);
        Ok(())
    }

    fn members_changed(&self, configuration: &Configuration) {
        self.members.set(*configuration);
    }
}

/// A node while it lives.
#[derive(Clone)]
struct Node {
    reactor: Reactor,
    log: Log,
    host: RaftHost,
    group: Group,
    texts: Rc<Texts>,
    _kept: Rc<(Volume, Interconnect)>,
}

struct Cluster {
    world: SimWorld,
    size: u8,
    config: RaftConfig,
    nodes: BTreeMap<u8, Node>,
    life: u64,
}

fn address(node: NodeId) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node.0], 7000))
}

/// How a node comes to its group.
#[derive(Clone)]
enum Start {
    Found(Configuration),
    Join,
    Resume,
}

async fn start(reactor: Reactor, node: NodeId, size: u8, life: u64, config: RaftConfig, how: Start) -> Node {
    let volume = Volume::open(&reactor, Path::new(VOLUME), &Expected::default()).await.unwrap();
    let area = volume.geometry().redo_area(node, ShardId(0));
    let recovered = recover(&reactor, volume.file(), area).await.unwrap();
    let log = Log::open(&reactor, volume.file(), area, Incarnation(life)).await.unwrap();
    // As a node does after the redo was replayed. Raft's records stay all the same.
    log.checkpoint(log.append_lsn(), Scn::ZERO).await.unwrap();
    let mut settings = Settings::new(1, node, Incarnation(life), ShardId(0), 1, address(node));
    settings.peers = (1..=size).map(NodeId).filter(|peer| *peer != node).map(|peer| (peer, address(peer))).collect();
    let interconnect = Interconnect::new(&reactor, &ScnClock::new(), settings);
    let parts = HostParts { reactor: reactor.clone(), interconnect: interconnect.clone(), log: log.clone(), recovered, config };
    let host = RaftHost::open(parts).await.unwrap();
    interconnect.register(Service::Raft, host.handler());
    interconnect.start().await.unwrap();
    let texts = Rc::new(Texts::default());
    let group = match how {
        Start::Found(members) => host.found(GROUP, members, texts.clone()).await.unwrap(),
        Start::Join => host.join(GROUP, texts.clone()).await.unwrap(),
        Start::Resume => host.resume(GROUP, texts.clone()).unwrap().expect("the group is in the log"),
    };
    Node { reactor, log, host, group, texts, _kept: Rc::new((volume, interconnect)) }
}

impl Cluster {
    /// The first three of so many nodes found the group.
    fn new(seed: u64, size: u8, redo_bytes: u64, config: RaftConfig) -> Cluster {
        let world = SimWorld::with_options(seed, SimOptions { slow_per_mille: 5, ..SimOptions::default() });
        let reactor = world.reactor(HostId(99));
        let inside = reactor.clone();
        world.block_on(&reactor, async move {
            let (volume_bytes, redo_area_bytes) = (64 << 20, Some(redo_bytes));
            let options = FormatOptions { nodes_max: size, volume_bytes, redo_area_bytes, ..FormatOptions::new("test") };
            Volume::format(&inside, Path::new(VOLUME), &options, &mut |_| {}).await.unwrap();
        });
        let mut cluster = Cluster { world, size, config, nodes: BTreeMap::new(), life: 0 };
        let founders = Configuration::of((1..=3).map(NodeId), []);
        cluster.start(&[1, 2, 3], &Start::Found(founders));
        cluster
    }

    fn start(&mut self, nodes: &[u8], how: &Start) {
        self.life += 1;
        let started = Rc::new(RefCell::new(BTreeMap::new()));
        for &node in nodes {
            let reactor = self.world.reactor(HostId(u32::from(node)));
            let (size, life, config, how) = (self.size, self.life, self.config.clone(), how.clone());
            let (inside, started) = (reactor.clone(), started.clone());
            reactor.spawn(Class::Normal, "start", async move {
                let opened = start(inside, NodeId(node), size, life, config, how).await;
                started.borrow_mut().insert(node, opened);
            });
        }
        let end = self.world.now() + Duration::from_secs(60);
        self.world.run_until(|| started.borrow().len() == nodes.len() || self.world.now() > end).unwrap();
        assert_eq!(started.borrow().len(), nodes.len(), "all start within a minute (seed {})", self.world.seed());
        self.nodes.append(&mut started.borrow_mut());
    }

    fn group(&self, node: u8) -> Group {
        self.nodes[&node].group.clone()
    }

    fn run<T: 'static>(&self, node: u8, work: impl Future<Output = T> + 'static) -> T {
        self.world.block_on(&self.nodes[&node].reactor, work)
    }

    fn propose(&self, node: u8, text: &str) -> Result<Proposed, RaftError> {
        let (group, text) = (self.group(node), text.as_bytes().to_vec());
        self.run(node, async move { group.propose_patiently(text, Duration::from_secs(20)).await })
    }

    /// Lets time pass until it is so.
    fn until(&self, what: &str, is_so: impl Fn(&Cluster) -> bool) {
        let end = self.world.now() + Duration::from_secs(60);
        self.world.run_until(|| is_so(self) || self.world.now() > end).unwrap();
        assert!(is_so(self), "never came: {what} (seed {})", self.world.seed());
    }

    fn leader(&self) -> u8 {
        let leads = |node: &Node| node.group.leadership().role == Role::Leader;
        self.until("a leader", |cluster| cluster.nodes.values().any(leads));
        let leaders = self.nodes.iter().filter(|(_, node)| leads(node));
        *leaders.max_by_key(|(_, node)| node.group.leadership().term).unwrap().0
    }

    fn texts(&self, node: u8) -> Vec<String> {
        self.nodes[&node].texts.texts.borrow().clone()
    }

    fn power_off(&mut self, node: u8) {
        self.world.power_off(HostId(u32::from(node)));
        self.nodes.remove(&node);
    }
}

#[test]
fn what_was_agreed_on_survives_the_leader_and_then_all_of_them() {
    for seed in 1..=5 {
        let mut cluster = Cluster::new(seed, 3, 4 << 20, RaftConfig { snapshot_threshold: 40, ..RaftConfig::default() });
        let mut agreed = Vec::new();
        for round in 0..50u32 {
            let text = format!("before {round}");
            let proposed = cluster.propose((round % 3) as u8 + 1, &text).unwrap();
            agreed.push(text);
            assert_eq!(proposed.answer, agreed.len().to_string().into_bytes());
            assert_eq!(cluster.texts((round % 3) as u8 + 1), agreed, "applied where it was proposed");
        }
        let dead = cluster.leader();
        cluster.power_off(dead);
        let others: Vec<u8> = cluster.nodes.keys().copied().collect();
        for round in 0..50 {
            let text = format!("after {round}");
            // What is not known to have happened is looked up.
            if cluster.propose(others[round % 2], &text).is_err() {
                cluster.propose(others[0], "a barrier").unwrap();
                agreed = cluster.texts(others[0]);
                continue;
            }
            agreed.push(text);
        }
        assert_eq!(cluster.texts(others[1]).len(), agreed.len());

        cluster.start(&[dead], &Start::Resume);
        let group = cluster.group(dead);
        cluster.run(dead, async move { group.read_barrier().await.unwrap() });
        assert_eq!(cluster.texts(dead), agreed, "a read sees everything that was agreed on before it");

        cluster.world.power_loss();
        cluster.nodes.clear();
        cluster.start(&[1, 2, 3], &Start::Resume);
        cluster.propose(2, "the last").unwrap();
        agreed.push("the last".into());
        for node in 1..=3 {
            cluster.until("everything everywhere", |cluster| cluster.texts(node) == agreed);
        }
    }
}

#[test]
fn a_minority_agrees_on_nothing_and_says_so() {
    let mut cluster = Cluster::new(3, 3, 4 << 20, RaftConfig::default());
    cluster.propose(1, "a").unwrap();
    let leader = cluster.leader();
    for node in (1..=3).filter(|node| *node != leader) {
        cluster.world.part(HostId(u32::from(leader)), HostId(u32::from(node)));
    }
    let group = cluster.group(leader);
    let cut_off = cluster.run(leader, async move { (group.propose(b"b".to_vec()).await, group.read_barrier().await) });
    let term = cluster.group(leader).leadership().term;
    assert!(matches!(cut_off.0, Err(RaftError::TimedOut | RaftError::Refused(_))), "{:?}", cut_off.0);
    assert_eq!(cut_off.1, Err(RaftError::TimedOut));
    assert_ne!(cluster.group(leader).leadership().role, Role::Leader, "without most of the others nobody leads");
    let other = (1..=3).find(|node| *node != leader).unwrap();
    cluster.propose(other, "c").unwrap();
    cluster.world.heal();
    cluster.until("the same everywhere", |cluster| (1..=3).all(|node| cluster.texts(node) == ["a", "c"]));
    assert!(cluster.group(other).leadership().term > term, "the others have elected anew, and the one cut off did not disturb");
    // A node whose disk fails takes part no more, and says why.
    cluster.world.set_disk_error(HostId(u32::from(other)), Some(5));
    let third = (1..=3).find(|node| *node != leader && *node != other).unwrap();
    let failed = cluster.propose(other, "d");
    assert!(failed.is_err(), "{failed:?}");
    cluster.until("the failure", |cluster| cluster.group(other).status().failed.is_some());
    cluster.propose(third, "e").unwrap();
    cluster.nodes.get_mut(&third).unwrap().host.close();
    assert_eq!(cluster.propose(third, "f"), Err(RaftError::Closed));
}

#[test]
fn nodes_join_lead_and_leave() {
    let config = RaftConfig { snapshot_threshold: 20, log_retention: 5, ..RaftConfig::default() };
    let mut cluster = Cluster::new(4, 4, 8 << 20, config);
    for round in 0..60 {
        cluster.propose(1, &format!("{round}")).unwrap();
    }
    // Snapshots that take several frames.
    cluster.nodes.values().for_each(|node| node.texts.ballast.set(150_000));
    cluster.start(&[4], &Start::Join);
    let leader = cluster.leader();
    let change = |cluster: &Cluster, changes: Vec<MemberChange>| {
        let (at, changes) = (cluster.leader(), ConfigurationChange(changes));
        let group = cluster.group(at);
        cluster.run(at, async move { group.change_members(changes).await })
    };
    let learning = change(&cluster, vec![MemberChange::AddLearner(NodeId(4))]).unwrap();
    assert_eq!(learning, Configuration::of((1..=3).map(NodeId), [NodeId(4)]));
    cluster.until("the newcomer's state", |cluster| cluster.texts(4).len() == 60);
    assert_eq!(cluster.nodes[&4].texts.restored.get(), 1, "by a snapshot");
    cluster.propose(4, "from the observer").unwrap();

    // One comes, another one goes, at once.
    let gone = (1..=3).find(|node| *node != leader).unwrap();
    let changed = change(&cluster, vec![MemberChange::AddVoter(NodeId(4)), MemberChange::Remove(NodeId(gone))]).unwrap();
    let expected = Configuration::of((1..=4).filter(|node| *node != gone).map(NodeId), []);
    assert_eq!(changed, expected);
    let group = cluster.group(leader);
    cluster.run(leader, async move { group.transfer_leader(NodeId(4)).await.unwrap() });
    cluster.until("the new leader", |cluster| cluster.leader() == 4);
    let refused = change(&cluster, vec![MemberChange::Remove(NodeId(4))]).unwrap_err();
    assert!(refused.to_string().contains("transfer leadership first"), "{refused}");
    for node in (1..=4).filter(|node| *node != gone) {
        cluster.until("the members everywhere", |cluster| cluster.nodes[&node].texts.members.get() == expected);
        cluster.propose(node, "again").unwrap();
    }
    // The one that is gone neither learns of it nor disturbs the others.
    let term = cluster.group(4).leadership().term;
    cluster.world.run_for(Duration::from_secs(5));
    assert_eq!(cluster.group(4).leadership(), Leadership { role: Role::Leader, leader: Some(NodeId(4)), term });
    // The group lives on after its nodes with the members that it had last.
    cluster.world.power_loss();
    cluster.nodes.clear();
    cluster.start(&[1, 2, 3, 4], &Start::Resume);
    let any = (1..=3).find(|node| *node != gone).unwrap();
    cluster.propose(any, "after all").unwrap();
    assert_eq!(cluster.group(any).configuration(), expected);
    assert_eq!(cluster.texts(any).last().unwrap(), "after all");
}

/// Others fill a small log again and again.
async fn fill(log: Log, rounds: Rc<Cell<u64>>) {
    loop {
        let mut reservation = log.reserve(40_000).await.unwrap();
        let end = log.append(&mut reservation, RecordKind::CheckpointMark, &[&[0; 24], &[0; 39_976]]);
        drop(reservation);
        log.flush_to(end).await.unwrap();
        rounds.set(rounds.get() + 1);
    }
}

async fn checkpoint(reactor: Reactor, log: Log) {
    loop {
        log.checkpoint(log.append_lsn(), Scn::ZERO).await.unwrap();
        reactor.sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn the_log_goes_round_many_times_and_keeps_what_raft_needs() {
    let mut cluster = Cluster::new(5, 3, 2 << 20, RaftConfig::default());
    let rounds = Rc::new(Cell::new(0));
    for node in cluster.nodes.values() {
        node.reactor.spawn(Class::Normal, "others", fill(node.log.clone(), rounds.clone()));
        node.reactor.spawn(Class::Low, "checkpoints", checkpoint(node.reactor.clone(), node.log.clone()));
    }
    for text in 0..10 {
        cluster.propose(text % 3 + 1, &text.to_string()).unwrap();
        let before = rounds.get();
        cluster.until("a full log", |_| rounds.get() >= before + 150);
    }
    for node in cluster.nodes.values() {
        assert!(node.log.append_lsn().0 > 4 * node.log.capacity(), "the log went round");
    }
    cluster.world.power_loss();
    cluster.nodes.clear();
    cluster.start(&[1, 2, 3], &Start::Resume);
    cluster.propose(3, "10").unwrap();
    let expected: Vec<String> = (0..=10).map(|text| text.to_string()).collect();
    assert_eq!(cluster.texts(3), expected);
}

#[test]
fn several_groups_share_the_log_and_wait_there_until_they_are_taken_up() {
    const SECOND: GroupId = GroupId(7);
    let mut cluster = Cluster::new(6, 3, 4 << 20, RaftConfig::default());
    let members = Configuration::of((1..=3).map(NodeId), []);
    let second = |cluster: &Cluster, node: u8| {
        let host = cluster.nodes[&node].host.clone();
        let texts = Rc::new(Texts::default());
        let machine = texts.clone();
        let group = cluster.run(node, async move {
            match host.resume(SECOND, machine.clone()).unwrap() {
                Some(group) => group,
                None => host.found(SECOND, members, machine).await.unwrap(),
            }
        });
        (group, texts)
    };
    let seconds: Vec<_> = (1..=3).map(|node| second(&cluster, node)).collect();
    let proposed = |cluster: &Cluster, group: Group, text: &str| {
        let text = text.as_bytes().to_vec();
        cluster.run(1, async move { group.propose_patiently(text, Duration::from_secs(20)).await.unwrap() })
    };
    for round in 0..20 {
        cluster.propose(1, &format!("first {round}")).unwrap();
        proposed(&cluster, seconds[0].0.clone(), &format!("second {round}"));
    }
    let twice = cluster.nodes[&1].host.clone();
    let again = cluster.run(1, async move { twice.found(SECOND, members, Rc::new(Texts::default())).await.err() });
    assert_eq!(again, Some(OpenError::Exists(SECOND)));

    // Once with nobody who takes the second group up: it stays in the log.
    for _ in 0..2 {
        cluster.world.power_loss();
        cluster.nodes.clear();
        cluster.start(&[1, 2, 3], &Start::Resume);
        assert_eq!(cluster.nodes[&2].host.recovered(), [SECOND]);
    }
    let seconds: Vec<_> = (1..=3).map(|node| second(&cluster, node)).collect();
    proposed(&cluster, seconds[0].0.clone(), "second 20");
    cluster.propose(1, "first 20").unwrap();
    let expected = |name: &str| (0..=20).map(|round| format!("{name} {round}")).collect::<Vec<_>>();
    assert_eq!((cluster.texts(1), seconds[0].1.texts.borrow().clone()), (expected("first"), expected("second")));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let trace = |seed| {
        let mut cluster = Cluster::new(seed, 3, 4 << 20, RaftConfig::default());
        cluster.propose(1, "a").unwrap();
        let leader = cluster.leader();
        cluster.power_off(leader);
        let other = cluster.leader();
        cluster.propose(other, "b").unwrap();
        (cluster.world.trace(), cluster.world.now())
    };
    assert_eq!(trace(8), trace(8));
    assert_ne!(trace(8), trace(9));
}
