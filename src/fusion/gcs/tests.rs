//! Three nodes with real caches, logs and connections over loopback, on one volume, in one thread.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::TcpListener;
use std::rc::Rc;
use std::time::Duration;

use super::message::Kind;
use super::*;
use crate::cache::{Cache, CacheConfig, CacheParts, FRAMES_MIN};
use crate::clock::ScnClock;
use crate::fusion::grd::{MastershipMap, VIRTUAL_NODES};
use crate::ids::{BLOCK_SIZE, BlockId, BlockNo, Epoch, Incarnation, NodeId, PartitionId, ShardId};
use crate::interconnect::{Interconnect, Service, Settings};
use crate::reactor::thread::run_local;
use crate::reactor::{Class, DriverChoice, FileId, OpenOptions, Reactor, ReactorOptions};
use crate::volume::RedoArea;
use crate::volume::block::BlockKind;
use crate::volume::change::Change;
use crate::volume::page::Page;
use crate::wal::Log;

const NODES: usize = 3;
const PARTITION: PartitionId = PartitionId(70);
/// Bytes of a node's redo area.
const REDO_BYTES: u64 = 4 << 20;
const FIRST: u64 = NODES as u64 * REDO_BYTES / BLOCK_SIZE as u64;
const BLOCKS: u64 = 512;

struct Node {
    cache: Cache,
    gcs: Gcs,
    interconnect: Interconnect,
}

struct Cluster {
    reactor: Reactor,
    map: Rc<MastershipMap>,
    nodes: Vec<Node>,
}

/// Neighbours share a master, so the blocks of the tests lie a bucket group apart.
fn id(n: u64) -> BlockId {
    BlockId::new(PARTITION, BlockNo(FIRST + n))
}

fn with_cluster<F: Future<Output = ()> + 'static>(config: CacheConfig, body: impl FnOnce(Rc<Cluster>) -> F + 'static) {
    let options = ReactorOptions { driver: DriverChoice::Poll, overprovisioned: true };
    run_local(options, move |reactor| async move {
        let cluster = Rc::new(Cluster::start(&reactor, config).await);
        body(cluster.clone()).await;
        cluster.nodes.iter().for_each(|node| node.gcs.invariants());
    })
    .expect("the poll driver starts");
}

async fn new_volume(reactor: &Reactor) -> FileId {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    // The port makes the name unique while it is held; the file goes with the last handle to it.
    let path = std::env::temp_dir().join(format!("rustydb-gcs-{}", held.local_addr().unwrap().port()));
    let file = reactor.open(&path, OpenOptions::CREATE).await.expect("the temporary folder takes files");
    std::fs::remove_file(&path).unwrap();
    reactor.write_zeros(file, 0, (FIRST + BLOCKS) * BLOCK_SIZE as u64).await.expect("the temporary folder has room");
    file
}

impl Cluster {
    async fn start(reactor: &Reactor, config: CacheConfig) -> Cluster {
        let file = new_volume(reactor).await;
        let held: Vec<_> = (0..NODES).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<_> = held.iter().map(|listener| listener.local_addr().unwrap()).collect();
        drop(held);
        let members: Vec<_> = (1..=NODES as u8).map(NodeId).collect();
        let map = Rc::new(MastershipMap::new(Epoch(1), &members, VIRTUAL_NODES, BTreeMap::new()).unwrap());
        let mut nodes = Vec::new();
        for (index, &node) in members.iter().enumerate() {
            let mut settings = Settings::new(1, node, Incarnation(1), ShardId(0), 1, addresses[index]);
            settings.peers = members.iter().copied().zip(addresses.iter().copied()).filter(|(peer, _)| *peer != node).collect();
            let clock = ScnClock::new();
            let interconnect = Interconnect::new(reactor, &clock, settings);
            let gcs = Gcs::new(GcsParts {
                reactor: reactor.clone(),
                interconnect: interconnect.clone(),
                map: map.clone(),
                config: GcsConfig { max_outstanding_requests: 8, block_transfer_timeout_ms: 60_000, ..GcsConfig::default() },
            });
            let area = RedoArea { node, shard: ShardId(0), offset: index as u64 * REDO_BYTES, bytes: REDO_BYTES, stamp: 7 };
            let log = Log::open(reactor, file, area, Incarnation(1)).await.unwrap();
            let coherence = Rc::new(gcs.clone());
            let parts = CacheParts { reactor: reactor.clone(), file, log, clock, coherence, config: config.clone() };
            let cache = Cache::new(parts).unwrap();
            gcs.attach(&cache);
            interconnect.register(Service::Gcs, Rc::new(gcs.clone()));
            interconnect.set_epoch(Epoch(1));
            interconnect.start().await.unwrap();
            nodes.push(Node { cache, gcs, interconnect });
        }
        for node in &nodes {
            node.interconnect.all_up().await;
        }
        Cluster { reactor: reactor.clone(), map, nodes }
    }

    /// A block that this node masters, the n-th.
    fn mastered_by(&self, node: usize, n: usize) -> BlockId {
        let mut mastered = (0..BLOCKS).map(id).filter(|&block| self.map.master(block) == NodeId(node as u8 + 1));
        mastered.nth(n).expect("enough blocks for every master")
    }

    fn sent(&self, kind: Kind) -> u64 {
        self.nodes.iter().map(|node| node.gcs.stats().sent_of(kind)).sum()
    }

    fn sent_total(&self) -> u64 {
        Kind::ALL.into_iter().map(|kind| self.sent(kind)).sum()
    }

    /// Waits until no message is under way and nobody waits for one.
    async fn settle(&self) {
        let mut before = u64::MAX;
        for _ in 0..10_000 {
            let stats: Vec<_> = self.nodes.iter().map(|node| node.gcs.stats()).collect();
            let busy = stats.iter().any(|stats| stats.outstanding_requests + stats.transitions_in_flight > 0);
            let now = self.sent_total();
            if !busy && now == before {
                return;
            }
            before = now;
            self.reactor.sleep(Duration::from_millis(2)).await;
        }
        panic!("the cluster does not settle");
    }
}

impl Node {
    async fn create(&self, block: BlockId) {
        let mut mtr = self.cache.begin_mtr(1000).await.unwrap();
        let mut guard = self.cache.create(block).await.unwrap();
        mtr.change(&mut guard, &Change::Format { kind: BlockKind::TreeLeaf, user_len: 0, user_header: &[] });
        mtr.change(&mut guard, &Change::InsertCell { slot: 0, key: b"count", value: &0u64.to_le_bytes() });
        mtr.finish();
    }

    /// Adds one to the block's counter.
    async fn increment(&self, block: BlockId) {
        let mut mtr = self.cache.begin_mtr(1000).await.unwrap();
        let mut guard = self.cache.write(block).await.unwrap();
        let count = counter(&guard) + 1;
        mtr.change(&mut guard, &Change::ReplaceValue { slot: 0, value: &count.to_le_bytes() });
        mtr.finish();
    }

    async fn count(&self, block: BlockId) -> u64 {
        counter(&self.cache.read(block).await.unwrap())
    }
}

fn counter(block: &[u8]) -> u64 {
    u64::from_le_bytes(Page::new(block).value(0).try_into().unwrap())
}

/// A cache that writes only when it is told to.
fn quiet() -> CacheConfig {
    CacheConfig { frames: FRAMES_MIN, dirty_percent_max: 90, checkpoint_interval_ms: 3_600_000, ..CacheConfig::default() }
}

#[test]
fn a_transfer_takes_the_messages_that_the_protocol_says() {
    with_cluster(quiet(), |cluster| async move {
        let cost = async |before: u64| {
            cluster.settle().await;
            cluster.sent_total() - before
        };
        let block = cluster.mastered_by(0, 0);
        cluster.nodes[0].create(block).await;
        assert_eq!(cost(0).await, 0, "created by its master");
        cluster.nodes[1].increment(block).await;
        assert_eq!(cost(0).await, 3, "2-way: request, data, done");
        assert_eq!(cluster.nodes[2].count(block).await, 1);
        assert_eq!(cost(3).await, 4, "3-way: request, forward, data, done");
        cluster.nodes[2].increment(block).await;
        assert_eq!(cost(7).await, 5, "upgrade: request, invalidate, its answer, grant, done");
        assert_eq!((cluster.sent(Kind::Forward), cluster.sent(Kind::Miss)), (1, 0));

        let (second, third) = (cluster.nodes[1].gcs.stats(), cluster.nodes[2].gcs.stats());
        assert_eq!((second.total_transfers, third.total_transfers), (1, 1));
        let paths = |stats: &GcsStats| Path::ALL.map(|path| stats.latency_of(path).count());
        assert_eq!(paths(&second), [0, 0, 0, 1, 0]);
        assert_eq!(paths(&third), [0, 0, 1, 0, 1]);
        assert_eq!(cluster.nodes[0].gcs.stats().pi_transfers, 1, "created blocks are dirty");
    });
}

#[test]
fn a_write_by_the_new_owner_releases_the_past_images_everywhere() {
    with_cluster(quiet(), |cluster| async move {
        let block = cluster.mastered_by(2, 0);
        cluster.nodes[0].create(block).await;
        cluster.nodes[1].increment(block).await;
        cluster.nodes[2].increment(block).await;
        let images = || cluster.nodes.iter().filter(|node| node.cache.past_image(block).is_some()).count();
        assert_eq!(images(), 2);
        // Node 1's log is to be emptied: that takes a write by node 3.
        assert!(cluster.nodes[0].cache.checkpoint_fully(Duration::from_secs(30)).await.unwrap());
        cluster.settle().await;
        assert_eq!(images(), 0);
        assert_eq!(cluster.sent(Kind::WriteWanted), cluster.nodes[0].gcs.stats().sent_of(Kind::WriteWanted));
        assert!(cluster.sent(Kind::PastImageDiscard) >= 2);
    });
}

#[test]
fn every_change_of_every_node_is_kept_under_contention() {
    const HOT: u64 = 2;
    const TASKS: usize = 4;
    const CHANGES: u64 = 60;
    let config = CacheConfig { frames: FRAMES_MIN, checkpoint_interval_ms: 20, ..CacheConfig::default() };
    with_cluster(config, |cluster| async move {
        for n in 0..BLOCKS {
            cluster.nodes[n as usize % NODES].create(id(n)).await;
        }
        let made = Rc::new(Cell::new(0));
        let tasks: Vec<_> = (0..NODES * TASKS)
            .map(|task| {
                let (inside, made) = (cluster.clone(), made.clone());
                cluster.reactor.spawn(Class::Normal, "changes", async move {
                    let node = &inside.nodes[task % NODES];
                    for round in 0..CHANGES {
                        // Half of the changes go to a few hot blocks, the rest to more blocks than a cache holds.
                        let choice = inside.reactor.random();
                        let block = id(if choice & 1 == 0 { (choice >> 8) % HOT } else { (choice >> 8) % BLOCKS });
                        if round % 4 == 3 {
                            node.count(block).await;
                        } else {
                            node.increment(block).await;
                            made.set(made.get() + 1);
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.join().await;
        }
        for node in &cluster.nodes {
            let mut sum = 0;
            for n in 0..BLOCKS {
                sum += node.count(id(n)).await;
            }
            assert_eq!(sum, made.get(), "changes are lost or made twice");
        }
        let stats: Vec<_> = cluster.nodes.iter().map(|node| node.gcs.stats()).collect();
        assert!(stats.iter().all(|stats| stats.total_transfers > 0 && stats.pi_transfers > 0 && stats.holder.drops_total > 0));
        assert!(stats.iter().all(|stats| stats.unsent_total + stats.malformed_total + stats.stalled_transfers_total == 0));

        // When everything has left the caches, nothing is left of it in the directories.
        for node in &cluster.nodes {
            node.cache.drop_partition(PARTITION).await.unwrap();
        }
        for node in &cluster.nodes {
            assert!(node.cache.checkpoint_fully(Duration::from_secs(30)).await.unwrap(), "past images remain");
        }
        cluster.settle().await;
        for node in &cluster.nodes {
            let stats = node.gcs.stats();
            assert_eq!((stats.grd_entries, stats.blocks_held), (0, 0), "{stats:?}");
        }
    });
}
