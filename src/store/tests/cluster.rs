//! Three nodes on one volume, of one shard and of two, simulated: virtual time, one thread, one seed a run.

mod catalog;
mod death;
mod published;
mod relations;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::bed::{delete, get, insert, keys, put, update};
use super::*;
use crate::btree::SpaceError;
use crate::btree::space::{BlockAllocator, SpaceManager, SpaceReply, SpaceRequest, SpaceService};
use crate::cache::{Cache, CacheConfig, CacheParts, LocalFuture};
use crate::clock::ScnClock;
use crate::cluster::recovery::recover;
use crate::fusion::gcs::{Gcs, GcsConfig, GcsParts};
use crate::fusion::ges::Ges;
use crate::fusion::grd::{MastershipMap, VIRTUAL_NODES};
use crate::ids::{Epoch, Incarnation, NodeId, ShardId};
use crate::interconnect::{Interconnect, Service, Settings};
use crate::reactor::driver::sim::{HostId, SimOptions, SimWorld};
use crate::reactor::{Class, Reactor, Remote};
use crate::txn::{ClusterPeers, NodeShared, TransactionsForGes, TxnParts, Txns};
use crate::volume::{Expected, FormatOptions, Volume};
use crate::wal::Log;

const NODES: u8 = 3;
const VOLUME: &str = "volume";

fn address(node: NodeId, shard: ShardId) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node.0], 7000 + u16::from(shard.0)))
}

/// The way to the first shard's space manager.
struct SpaceByMail(Remote);

impl SpaceService for SpaceByMail {
    fn request(&self, request: SpaceRequest) -> LocalFuture<Result<SpaceReply, SpaceError>> {
        let called = self.0.call(Class::High, "space", move |reactor| async move {
            let manager = loop {
                match reactor.local::<SpaceManager>() {
                    Some(manager) => break manager,
                    None => reactor.sleep(Duration::from_millis(1)).await,
                }
            };
            manager.serve(request).await
        });
        Box::pin(async move { called.expect("a mailbox with room").await.expect("the first shard lives") })
    }
}

/// A node while it lives.
#[derive(Clone)]
struct Member {
    reactor: Reactor,
    store: Store,
    node_store: NodeStore,
    engines: Vec<Rc<ShardEngine>>,
    kept: Rc<Vec<Kept>>,
}

/// A shard's parts that take part in a change of the view.
struct Kept {
    volume: Volume,
    gcs: Gcs,
    peers: ClusterPeers,
    ges: Ges,
    interconnect: Interconnect,
}

struct Cluster {
    world: SimWorld,
    shards: u8,
    members: Vec<Member>,
    life: u64,
    /// What all restarts found between the shards of nodes.
    settled: Settled,
}

/// What the shards of a node have in common.
#[derive(Clone)]
struct NodePlan {
    node: NodeId,
    /// The nodes that start.
    members: Vec<NodeId>,
    life: u64,
    remotes: Vec<Remote>,
    shared: NodeShared,
}

async fn start_shard(reactor: Reactor, shard: ShardId, plan: NodePlan) -> (Rc<ShardEngine>, Kept) {
    let NodePlan { node, members: nodes, life, remotes, shared } = plan;
    let volume = Volume::open(&reactor, Path::new(VOLUME), &Expected::default()).await.unwrap();
    let geometry = *volume.geometry();
    let epoch = Epoch(life);
    let map = Rc::new(MastershipMap::new(epoch, &nodes, VIRTUAL_NODES, BTreeMap::new()).unwrap());
    let clock = shared.clock.clone();
    let mut settings = Settings::new(1, node, Incarnation(life), shard, remotes.len() as u8, address(node, shard));
    settings.peers = nodes.iter().filter(|peer| **peer != node).map(|&peer| (peer, address(peer, shard))).collect();
    let interconnect = Interconnect::new(&reactor, &clock, settings);
    crate::interconnect::tests::equip(&interconnect, address(node, shard));
    let config = GcsConfig { block_transfer_timeout_ms: 60_000, ..GcsConfig::default() };
    let gcs = Gcs::new(GcsParts { reactor: reactor.clone(), interconnect: interconnect.clone(), map, config });
    let log = Log::open(&reactor, volume.file(), geometry.redo_area(node, shard), Incarnation(life)).await.unwrap();
    let register_memory = interconnect.has_rdma();
    let config = CacheConfig { frames: 256, checkpoint_interval_ms: 50, register_memory, ..CacheConfig::default() };
    let coherence = Rc::new(gcs.clone());
    let cache = Cache::new(CacheParts { reactor: reactor.clone(), file: volume.file(), log, clock, coherence, config }).unwrap();
    gcs.attach(&cache);
    if let Some((start, bytes)) = cache.memory() {
        // SAFETY: the cache keeps it mapped.
        unsafe { interconnect.register_frames(start, bytes) }.unwrap();
    }
    interconnect.register(Service::Gcs, Rc::new(gcs.clone()));
    let peers = ClusterPeers::new(&interconnect, shared.clone(), shard == ShardId(0));
    interconnect.register(Service::Txn, Rc::new(peers.clone()));
    let for_ges = TransactionsForGes::default();
    let ges = Ges::new(&interconnect, Rc::new(for_ges.clone()), Duration::from_millis(200));
    interconnect.set_epoch(epoch);
    interconnect.start().await.unwrap();
    interconnect.all_up().await;
    let service: Rc<dyn SpaceService> = if shard == ShardId(0) {
        let manager = Rc::new(SpaceManager::open(&cache, node, &geometry).await.unwrap());
        reactor.set_local(manager.clone());
        manager
    } else {
        Rc::new(SpaceByMail(remotes[0].clone()))
    };
    let space = BlockAllocator::new(&cache, service.clone(), node, geometry.extents_first);
    let parts = TxnParts {
        node,
        shard,
        shared,
        cache,
        space,
        service: service.clone(),
        waits: Rc::new(ges.clone()),
        peers: Rc::new(peers.clone()),
        undo_retention_ms: 0,
    };
    let txns = Txns::open(parts).await.unwrap();
    peers.attach(&txns);
    for_ges.attach(&txns);
    txns.start_housekeeping(shard == ShardId(0));
    ask_other_shards(&txns, remotes.clone());
    search_in_other_shards(&ges, shard, remotes);
    let engine = ShardEngine::new(&txns, shard, service, Rc::new(ges.clone()));
    (engine, Kept { volume, gcs, peers, ges, interconnect })
}

impl Cluster {
    fn new(seed: u64) -> Cluster {
        Cluster::with_shards(seed, 1)
    }

    fn with_shards(seed: u64, shards: u8) -> Cluster {
        let options = SimOptions { slow_per_mille: 5, ..SimOptions::default() };
        let world = SimWorld::with_options(seed, options);
        let reactor = world.reactor(HostId(9));
        let inside = reactor.clone();
        world.block_on(&reactor, async move {
            let options = FormatOptions {
                nodes_max: NODES,
                shards,
                volume_bytes: 96 << 20,
                redo_area_bytes: Some(8 << 20),
                ..FormatOptions::new("test")
            };
            Volume::format(&inside, Path::new(VOLUME), &options, &mut |_| {}).await.unwrap();
        });
        let mut cluster = Cluster { world, shards, members: Vec::new(), life: 0, settled: Settled::default() };
        cluster.start();
        cluster
    }

    /// Recovers the volume and starts all nodes.
    fn start(&mut self) {
        self.start_nodes(1..=NODES);
    }

    /// Recovers the volume and starts these nodes; the others never come back in this life.
    fn start_nodes(&mut self, members: impl IntoIterator<Item = u8>) {
        let members: Vec<NodeId> = members.into_iter().map(NodeId).collect();
        self.life += 1;
        let life = self.life;
        let reactor = self.world.reactor(HostId(9));
        let inside = reactor.clone();
        let report = self.world.block_on(&reactor, async move {
            let volume = Volume::open(&inside, Path::new(VOLUME), &Expected::default()).await.unwrap();
            recover(&inside, &volume, Rc::new(|_, _| {})).await.unwrap()
        });
        let started = Rc::new(RefCell::new(BTreeMap::new()));
        let mut nodes = Vec::new();
        for &id in &members {
            let node = id.0;
            let reactors: Vec<_> = (0..self.shards).map(|_| self.world.reactor(HostId(u32::from(node)))).collect();
            let clock = ScnClock::new();
            clock.start_above(report.scn);
            let remotes = reactors.iter().map(Reactor::remote).collect();
            let plan = NodePlan { node: id, members: members.clone(), life, remotes, shared: NodeShared::new(clock) };
            for (shard, reactor) in reactors.iter().enumerate() {
                let (inside, plan, started) = (reactor.clone(), plan.clone(), started.clone());
                reactor.spawn(Class::Normal, "start", async move {
                    let opened = start_shard(inside, ShardId(shard as u8), plan).await;
                    started.borrow_mut().insert((node, shard), opened);
                });
            }
            nodes.push((plan, reactors));
        }
        let end = self.world.now() + Duration::from_secs(60);
        let expected = members.len() * usize::from(self.shards);
        self.world.run_until(|| started.borrow().len() == expected || self.world.now() > end).unwrap();
        let mut started = std::mem::take(&mut *started.borrow_mut());
        assert_eq!(started.len(), expected, "all shards start within a minute (seed {})", self.world.seed());
        for (plan, reactors) in nodes {
            let store = NodeStore::new(plan.node, plan.remotes, plan.shared);
            let node_store = store.clone();
            let (engines, kept) = (0..reactors.len()).map(|shard| started.remove(&(plan.node.0, shard)).unwrap()).unzip();
            let member = Member { reactor: reactors[0].clone(), store: store.store(), node_store, engines, kept: Rc::new(kept) };
            let settled = self.world.block_on(&reactors[0], async move {
                let settled = store.settle_branches().await.unwrap();
                assert_eq!(store.settle_branches().await.unwrap(), Settled::default(), "settled once, settled for good");
                store.create_system_partitions().await.unwrap();
                settled
            });
            self.settled.committed += settled.committed;
            self.settled.rolled_back += settled.rolled_back;
            self.settled.branches += settled.branches;
            self.members.push(member);
        }
    }

    /// Everything loses its power; nothing unsynced is safe.
    fn power_loss(&mut self) {
        self.world.power_loss();
        self.members.clear();
    }

    fn run<T: 'static>(&self, node: usize, work: impl Future<Output = T> + 'static) -> T {
        self.world.block_on(&self.members[node].reactor, work)
    }

    /// Starts `work` on a node.
    fn spawn<T: 'static>(&self, node: usize, work: impl Future<Output = T> + 'static) -> Rc<Cell<Option<T>>> {
        let output = Rc::new(Cell::new(None));
        let slot = output.clone();
        self.members[node].reactor.spawn(Class::Normal, "test", async move { slot.set(Some(work.await)) });
        output
    }

    fn waits(&self) -> u64 {
        let engines = self.members.iter().flat_map(|member| &member.engines);
        engines.map(|engine| engine.txns().counters().row_lock_waits.get()).sum()
    }

    /// Starts `work` on a node and lets time pass until it waits for a row.
    fn spawn_blocked<T: 'static>(&self, node: usize, work: impl Future<Output = T> + 'static) -> Rc<Cell<Option<T>>> {
        let before = self.waits();
        let output = self.spawn(node, work);
        self.world.run_until(|| self.waits() > before).unwrap();
        self.world.run_for(Duration::from_millis(20));
        output
    }

    /// Runs until all are there.
    fn wait<T>(&self, outputs: &[Rc<Cell<Option<T>>>]) -> Vec<T> {
        let there = |output: &Rc<Cell<Option<T>>>| {
            let value = output.take();
            let there = value.is_some();
            output.set(value);
            there
        };
        let end = self.world.now() + Duration::from_secs(600);
        self.world.run_until(|| outputs.iter().all(there) || self.world.now() > end).unwrap();
        outputs
            .iter()
            .map(|output| output.take().unwrap_or_else(|| panic!("still waiting (seed {})", self.world.seed())))
            .collect()
    }

    fn begin(&self, node: usize, isolation: Isolation) -> Session {
        let mut session = self.members[node].store.session();
        session.begin(isolation, false).unwrap();
        session
    }

    fn write(&self, node: usize, operations: Vec<WriteOp>) -> Vec<WriteResult> {
        let mut session = self.members[node].store.session();
        self.run(node, async move { session.write(operations).await.unwrap() })
    }

    fn read(&self, node: usize, table: PartitionId, key: &'static str) -> Option<String> {
        let mut session = self.members[node].store.session();
        self.run(node, async move { get(&mut session, table, key).await })
    }

    fn keys(&self, node: usize, table: PartitionId) -> Vec<String> {
        let mut session = self.members[node].store.session();
        self.run(node, async move { keys(&mut session, table).await })
    }

    fn table(&self, node: usize) -> PartitionId {
        let store = self.members[node].store.clone();
        self.run(node, async move { store.create_partition(Placement::Any).await.unwrap() })
    }
}

#[test]
fn what_one_node_commits_every_later_statement_on_every_node_sees() {
    for seed in 0..3 {
        let cluster = Cluster::new(seed);
        let table = cluster.table(0);
        for round in 0..12 {
            let writer = round % 3;
            cluster.write(writer, vec![put(table, "a", &round.to_string()), put(table, &format!("k{round}"), "1")]);
            for reader in 0..3 {
                assert_eq!(cluster.read(reader, table, "a"), Some(round.to_string()));
                assert_eq!(cluster.keys(reader, table).len(), round + 2);
            }
        }
    }
}

#[test]
fn readers_elsewhere_see_through_open_transactions_and_writers_wait_for_them() {
    let cluster = Cluster::new(7);
    let table = cluster.table(0);
    cluster.write(0, vec![put(table, "a", "old"), put(table, "b", "old")]);
    let mut writer = cluster.begin(1, ReadCommitted);
    let mut writer = cluster.run(1, async move {
        writer.write(vec![put(table, "a", "new"), delete(table, "b"), insert(table, "c", "new")]).await.unwrap();
        writer
    });
    assert_eq!(cluster.read(2, table, "a").as_deref(), Some("old"), "undo of another node");
    assert_eq!(cluster.keys(0, table), ["a", "b"]);
    let mut reader = cluster.begin(2, RepeatableRead);
    let mut reader = cluster.run(2, async move {
        assert_eq!(get(&mut reader, table, "a").await.as_deref(), Some("old"));
        reader
    });
    let mut refused = cluster.begin(0, ReadCommitted);
    let no_wait =
        cluster.run(0, async move { refused.get_for_update(table, b"a", LockStrength::Update, WaitPolicy::NoWait).await });
    assert_eq!(no_wait.unwrap_err().sqlstate(), "55P03");
    let mut second = cluster.members[0].store.session();
    let second = cluster.spawn_blocked(0, async move { second.modify(table, b"a", append("+second")).await.is_ok() });
    let mut third = cluster.members[2].store.session();
    let third = cluster.spawn_blocked(2, async move { third.write(vec![insert(table, "c", "third")]).await.unwrap() });
    cluster.run(1, async move { writer.commit().await.unwrap() });
    assert_eq!(cluster.wait(&[second]), [true]);
    assert_eq!(cluster.wait(&[third]), [vec![WriteResult::Duplicate { existing: b"new".to_vec() }]]);
    assert_eq!(cluster.read(1, table, "a").as_deref(), Some("new+second"));
    cluster.run(2, async move {
        assert_eq!(get(&mut reader, table, "a").await.as_deref(), Some("old"), "its snapshot stands");
        assert_eq!(reader.write(vec![update(table, "a", "x")]).await.unwrap_err().sqlstate(), "40001");
    });
    // A rollback elsewhere leaves nothing to wait for.
    let mut loser = cluster.begin(1, ReadCommitted);
    let mut loser = cluster.run(1, async move {
        loser.write(vec![update(table, "a", "lost")]).await.unwrap();
        loser
    });
    let mut next = cluster.members[2].store.session();
    let next = cluster.spawn_blocked(2, async move { next.modify(table, b"a", append("!")).await.is_ok() });
    cluster.run(1, async move { loser.rollback().await.unwrap() });
    assert_eq!(cluster.wait(&[next]), [true]);
    assert_eq!(cluster.read(0, table, "a").as_deref(), Some("new+second!"));
}

#[test]
fn a_circle_through_all_three_nodes_is_broken() {
    for seed in 10..13 {
        let cluster = Cluster::new(seed);
        let table = cluster.table(0);
        cluster.write(0, vec![put(table, "0", "x"), put(table, "1", "x"), put(table, "2", "x")]);
        let mut waiting = Vec::new();
        let sessions: Vec<_> = (0..3)
            .map(|node| {
                let mut session = cluster.begin(node, ReadCommitted);
                cluster.run(node, async move {
                    session.write(vec![update(table, &node.to_string(), "y")]).await.unwrap();
                    session
                })
            })
            .collect();
        for (node, mut session) in sessions.into_iter().enumerate() {
            waiting.push(cluster.spawn(node, async move {
                let done = session.write(vec![update(table, &((node + 1) % 3).to_string(), "z")]).await;
                match &done {
                    Ok(_) => drop(session.commit().await.unwrap()),
                    Err(_) => session.rollback().await.unwrap(),
                }
                done.err().map(|error| error.sqlstate())
            }));
        }
        let outcomes = cluster.wait(&waiting);
        let victims = outcomes.iter().filter(|outcome| **outcome == Some("40P01")).count();
        assert!(victims >= 1 && outcomes.contains(&None), "{outcomes:?} with seed {seed}");
    }
}

#[test]
fn a_circle_of_a_table_and_a_row_on_two_nodes_is_broken() {
    let cluster = Cluster::new(14);
    let table = cluster.table(0);
    cluster.write(0, vec![put(table, "a", "1")]);
    let name = LockName { space: LockSpace::Relation, id1: 7, id2: 0 };
    let (mut first, mut second) = (cluster.begin(0, ReadCommitted), cluster.begin(1, ReadCommitted));
    let first = cluster.run(0, async move {
        first.lock(name, LockMode::ConcurrentWrite, WaitPolicy::Wait).await.unwrap();
        first
    });
    let second = cluster.run(1, async move {
        second.lock(name, LockMode::ConcurrentWrite, WaitPolicy::Wait).await.unwrap();
        second.write(vec![update(table, "a", "2")]).await.unwrap();
        second
    });
    let mut third = cluster.begin(2, ReadCommitted);
    let refused = cluster.run(2, async move { third.lock(name, LockMode::Exclusive, WaitPolicy::NoWait).await });
    assert_eq!(refused.unwrap_err().sqlstate(), "55P03");
    let finish = async |mut session: Session, done: Result<(), StoreError>| {
        match &done {
            Ok(()) => drop(session.commit().await.unwrap()),
            Err(_) => session.rollback().await.unwrap(),
        }
        done.map_err(|error| error.sqlstate())
    };
    let (mut first, mut second) = (first, second);
    let row = cluster.spawn(0, async move {
        let done = first.write(vec![update(table, "a", "3")]).await.map(|_| ());
        finish(first, done).await
    });
    let alter = cluster.spawn(1, async move {
        let done = second.lock(name, LockMode::Exclusive, WaitPolicy::Wait).await;
        finish(second, done).await
    });
    let outcomes = cluster.wait(&[row, alter]);
    assert!(outcomes.contains(&Ok(())) && outcomes.contains(&Err("40P01")), "{outcomes:?}");
}

#[test]
fn money_is_neither_made_nor_lost_on_three_nodes_that_lose_their_power() {
    for seed in 20..22 {
        let mut cluster = Cluster::new(seed);
        let table = cluster.table(0);
        cluster.write(1, accounts(table));
        for _ in 0..3 {
            let mut clients = Vec::new();
            for client in 0..6usize {
                let (node, member) = (client % 3, cluster.members[client % 3].clone());
                clients.push(cluster.spawn(node, async move {
                    let dice = Dice(Cell::new(seed * 100 + client as u64 + 1));
                    for _ in 0..25 {
                        match transfer(&member.store, &|bound| dice.below(bound), table).await {
                            Ok(()) | Err(StoreError::SerializationFailure { .. } | StoreError::DeadlockDetected) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                }));
            }
            for node in 0..3 {
                let mut session = cluster.begin(node, RepeatableRead);
                assert_eq!(cluster.run(node, async move { sum(&mut session, table).await }), 100 * ACCOUNTS as i64);
            }
            if seed % 2 == 0 {
                cluster.wait(&clients);
                let sums: Vec<_> = (0..3)
                    .map(|node| {
                        let mut session = cluster.members[node].store.session();
                        cluster.run(node, async move { sum(&mut session, table).await })
                    })
                    .collect();
                assert_eq!(sums, [100 * ACCOUNTS as i64; 3], "on every node (seed {seed})");
            }
            cluster.power_loss();
            cluster.start();
            let mut session = cluster.members[2].store.session();
            assert_eq!(
                cluster.run(2, async move { sum(&mut session, table).await }),
                100 * ACCOUNTS as i64,
                "after the crash (seed {seed})"
            );
        }
    }
}

/// Two tables in two shards; their rows move together, whatever happens.
#[test]
fn a_transaction_over_two_shards_is_there_whole_or_not_at_all() {
    for seed in 30..34 {
        let mut cluster = Cluster::with_shards(seed, 2);
        let store = cluster.members[0].store.clone();
        let (left, right) = cluster.run(0, async move {
            let left = store.create_partition(Placement::Any).await.unwrap();
            let right = store.create_partition(Placement::Any).await.unwrap();
            assert_ne!(left.shard(2), right.shard(2));
            assert_eq!(store.create_partition(Placement::With(right)).await.unwrap().shard(2), right.shard(2));
            (left, right)
        });
        cluster.write(0, vec![put(left, "n", "0"), put(right, "n", "0"), put(left, "m", "0")]);
        let add_one = |_: usize, row: Option<&[u8]>| Modify::Put((amount(row) + 1).to_string().into_bytes());
        for round in 0..4 {
            let clients: Vec<_> = (0..6usize)
                .map(|client| {
                    let store = cluster.members[client % 3].store.clone();
                    cluster.spawn(client % 3, async move {
                        let mut committed = 0;
                        for turn in 0..8 {
                            let mut session = store.session();
                            let rows = vec![(left, b"n".to_vec()), (right, b"n".to_vec())];
                            let done = if turn % 2 == 0 {
                                session.modify_many(rows, Box::new(add_one)).await.map(|_| true)
                            } else {
                                session.begin(ReadCommitted, false).unwrap();
                                let savepoint = session.savepoint();
                                session.modify_many(rows.clone(), Box::new(add_one)).await.unwrap();
                                session.rollback_to(&savepoint).await.unwrap();
                                session.modify_many(rows, Box::new(add_one)).await.unwrap();
                                match turn % 4 {
                                    1 => session.commit().await.map(|_| true),
                                    _ => session.rollback().await.map(|()| false),
                                }
                            };
                            committed += i64::from(done.unwrap());
                        }
                        committed
                    })
                })
                .collect();
            let mut reader = cluster.begin(round % 3, RepeatableRead);
            cluster.run(round % 3, async move {
                let (a, b) = (get(&mut reader, left, "n").await, get(&mut reader, right, "n").await);
                assert_eq!(a, b, "a snapshot sees both or neither (seed {seed})");
            });
            if round % 2 == 0 {
                let before: i64 = cluster.read(1, left, "n").unwrap().parse().unwrap();
                let committed: i64 = cluster.wait(&clients).iter().sum();
                let after: i64 = cluster.read(2, right, "n").unwrap().parse().unwrap();
                assert!(after >= committed && after >= before);
            } else {
                cluster.world.run_for(Duration::from_millis(3 + seed));
                cluster.power_loss();
                cluster.start();
            }
            assert_eq!(cluster.read(0, left, "n"), cluster.read(0, right, "n"), "after round {round} with seed {seed}");
            assert_eq!(cluster.read(1, left, "m").as_deref(), Some("0"));
        }
    }
}

/// Power goes at every stage of commits over two shards: also where a decision is durable and a promise is not, and the
/// other way round.
#[test]
fn a_commit_of_which_only_one_shards_part_is_durable_has_not_happened() {
    let mut settled = Settled::default();
    for seed in 40..44 {
        let more = lose_power_between_two_shards(seed);
        settled.committed += more.committed;
        settled.rolled_back += more.rolled_back;
        settled.branches += more.branches;
    }
    assert!(settled.committed > 0 && settled.rolled_back > 0, "the power went at other moments: {settled:?}");
}

/// One cluster that loses its power again and again; what its restarts found.
fn lose_power_between_two_shards(seed: u64) -> Settled {
    let mut cluster = Cluster::with_shards(seed, 2);
    let store = cluster.members[0].store.clone();
    let (left, right) = cluster.run(0, async move {
        (store.create_partition(Placement::Any).await.unwrap(), store.create_partition(Placement::Any).await.unwrap())
    });
    let acknowledged = Rc::new(Cell::new(0));
    let rows = move |client: usize| vec![(left, vec![b'a' + client as u8]), (right, vec![b'a' + client as u8])];
    for row in (0..6).flat_map(rows) {
        cluster.write(0, vec![WriteOp::Put { partition: row.0, key: row.1, value: b"0".to_vec() }]);
    }
    for round in 0..8 {
        let before = acknowledged.get();
        for client in 0..6usize {
            let (store, acknowledged) = (cluster.members[client % 3].store.clone(), acknowledged.clone());
            let _ = cluster.spawn(client % 3, async move {
                loop {
                    let add_one = |_: usize, row: Option<&[u8]>| Modify::Put((amount(row) + 1).to_string().into_bytes());
                    // In both orders, so that either shard is the home.
                    let mut rows = rows(client);
                    rows.rotate_left(client % 2);
                    store.session().modify_many(rows, Box::new(add_one)).await.unwrap();
                    acknowledged.set(acknowledged.get() + 1);
                }
            });
        }
        cluster.world.run_until(|| acknowledged.get() > before + 6).unwrap();
        cluster.world.run_for(Duration::from_micros((seed * 8 + round) * 37 % 1000));
        cluster.power_loss();
        cluster.start();
        let mut sum = 0;
        for client in 0..6 {
            let mut session = cluster.members[client % 3].store.session();
            let both = cluster.run(client % 3, async move {
                let [(left, key), (right, _)] = rows(client).try_into().unwrap();
                (session.get(left, &key).await.unwrap(), session.get(right, &key).await.unwrap())
            });
            assert_eq!(both.0, both.1, "client {client} after round {round} with seed {seed}");
            sum += amount(both.0.as_deref());
        }
        assert!(sum >= acknowledged.get(), "{sum} of {} acknowledged after round {round} with seed {seed}", acknowledged.get());
        acknowledged.set(sum);
    }
    cluster.settled
}
