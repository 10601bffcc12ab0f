//! What the tests of this folder stand on: one node with one or more shards in one thread, on a volume in a temporary file.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::btree::space::{BlockAllocator, SpaceManager};
use crate::cache::{Cache, CacheConfig, CacheParts, LocalCoherence};
use crate::clock::ScnClock;
use crate::cluster::recovery::recover;
use crate::ids::{Incarnation, NodeId, PartitionId, ShardId};
use crate::reactor::{Class, Reactor, ReactorOptions};
use crate::store::*;
use crate::txn::{LocalWaits, NoPeers, NodeShared, TxnParts, Txns};
use crate::volume::{Expected, FormatOptions, Volume};
use crate::wal::Log;

static VOLUMES: AtomicU32 = AtomicU32::new(0);

/// A volume that outlives the nodes that run on it.
pub struct Disk(PathBuf);

impl Disk {
    pub fn new() -> Disk {
        Disk::of(96 << 20, 16 << 20)
    }

    /// A volume of so many bytes, with redo areas of so many.
    pub fn of(volume_bytes: u64, redo_bytes: u64) -> Disk {
        let number = VOLUMES.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("rustydb-store-{}-{number}", std::process::id()));
        let disk = Disk(path.clone());
        let reactor = Reactor::new(ReactorOptions::default()).expect("a reactor");
        let inside = reactor.clone();
        reactor.run(async move {
            let options =
                FormatOptions { nodes_max: 2, volume_bytes, redo_area_bytes: Some(redo_bytes), ..FormatOptions::new("test") };
            Volume::format(&inside, &path, &options, &mut |_| {}).await.expect("the temporary folder has room");
        });
        disk
    }

    /// One life of a node: recovery, start, `body`, and an end without any farewell.
    pub fn run<T: 'static, F: Future<Output = T> + 'static>(&self, life: u64, body: impl FnOnce(Node) -> F + 'static) -> T {
        let reactor = Reactor::new(ReactorOptions::default()).expect("a reactor");
        let (inside, path) = (reactor.clone(), self.0.clone());
        reactor.run(async move {
            let node = Node::start(&inside, &path, life).await;
            body(node).await
        })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).expect("it was there all the time");
    }
}

/// A node on a new volume.
pub fn run<F: Future<Output = ()> + 'static>(body: impl FnOnce(Node) -> F + 'static) {
    Disk::new().run(1, body);
}

/// Random numbers from a seed that is not 0.
pub struct Dice(pub Cell<u64>);

impl Dice {
    pub fn below(&self, bound: u64) -> u64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
    }
}

#[derive(Clone)]
pub struct Node {
    pub reactor: Reactor,
    pub store: Store,
    pub engine: Rc<ShardEngine>,
    dice: Rc<Dice>,
    /// The file is closed with its last handle.
    _volume: Rc<Volume>,
}

impl Node {
    async fn start(reactor: &Reactor, path: &Path, life: u64) -> Node {
        let volume = Volume::open(reactor, path, &Expected::default()).await.expect("the volume was formatted");
        let report = recover(reactor, &volume, Rc::new(|_, _| {})).await.expect("the redo fits the volume");
        let geometry = *volume.geometry();
        let (node, shard) = (NodeId(1), ShardId(0));
        let log =
            Log::open(reactor, volume.file(), geometry.redo_area(node, shard), Incarnation(life)).await.expect("the log opens");
        let clock = ScnClock::new();
        clock.start_above(report.scn);
        let config = CacheConfig { frames: 512, ..CacheConfig::default() };
        let coherence = Rc::new(LocalCoherence);
        let parts = CacheParts { reactor: reactor.clone(), file: volume.file(), log, clock: clock.clone(), coherence, config };
        let cache = Cache::new(parts).expect("memory for a few frames");
        let service = Rc::new(SpaceManager::open(&cache, node, &geometry).await.expect("the volume has a space map"));
        let space = BlockAllocator::new(&cache, service.clone(), node, geometry.extents_first);
        let shared = NodeShared::new(clock);
        let parts = TxnParts {
            node,
            shard,
            shared: shared.clone(),
            cache,
            space,
            service: service.clone(),
            waits: Rc::new(LocalWaits::new()),
            peers: Rc::new(NoPeers),
            undo_retention_ms: 0,
        };
        let txns = Txns::open(parts).await.expect("the undo home opens");
        txns.start_housekeeping(true);
        let engine = ShardEngine::new(&txns, shard, service, Rc::new(LocalLocks::new()));
        let store = NodeStore::new(node, vec![reactor.remote()], shared);
        store.create_system_partitions().await.expect("system partitions");
        Node {
            reactor: reactor.clone(),
            store: store.store(),
            engine,
            dice: Rc::new(Dice(Cell::new(life.wrapping_mul(77) | 1))),
            _volume: Rc::new(volume),
        }
    }

    pub fn below(&self, bound: u64) -> u64 {
        self.dice.below(bound)
    }

    pub async fn table(&self) -> PartitionId {
        self.store.create_partition(Placement::Any).await.expect("a partition")
    }

    /// A session in a transaction.
    pub fn begin(&self, isolation: Isolation) -> Session {
        let mut session = self.store.session();
        session.begin(isolation, false).expect("a new session is in no transaction");
        session
    }

    /// Runs `work` beside the caller.
    pub fn spawn<T: 'static>(&self, work: impl Future<Output = T> + 'static) -> Task<T> {
        let output = Rc::new(Cell::new(None));
        let slot = output.clone();
        let handle = self.reactor.spawn(Class::Normal, "test", async move { slot.set(Some(work.await)) });
        Task { handle, output }
    }

    fn waits(&self) -> u64 {
        self.engine.txns().counters().row_lock_waits.get()
    }

    /// Runs `work` beside the caller until it waits for a row.
    pub async fn spawn_blocked<T: 'static>(&self, work: impl Future<Output = T> + 'static) -> Task<T> {
        let before = self.waits();
        let task = self.spawn(work);
        while self.waits() == before {
            assert!(!task.handle.is_finished(), "it did not have to wait for anybody");
            self.reactor.yield_now().await;
        }
        task
    }

    /// Reads a row in a statement of its own.
    pub async fn read(&self, table: PartitionId, key: &str) -> Option<String> {
        get(&mut self.store.session(), table, key).await
    }
}

pub struct Task<T> {
    handle: crate::reactor::TaskHandle,
    output: Rc<Cell<Option<T>>>,
}

impl<T> Task<T> {
    pub async fn join(self) -> T {
        self.handle.join().await;
        self.output.take().expect("the task was not aborted")
    }
}

pub async fn get(session: &mut Session, table: PartitionId, key: &str) -> Option<String> {
    let row = session.get(table, key.as_bytes()).await.expect("a readable row");
    row.map(|row| String::from_utf8(row).expect("a text"))
}

pub fn put(partition: PartitionId, key: &str, value: &str) -> WriteOp {
    WriteOp::Put { partition, key: key.into(), value: value.into() }
}

pub fn insert(partition: PartitionId, key: &str, value: &str) -> WriteOp {
    WriteOp::Insert { partition, key: key.into(), value: value.into(), on_conflict: OnConflict::Error }
}

pub fn update(partition: PartitionId, key: &str, value: &str) -> WriteOp {
    WriteOp::Update { partition, key: key.into(), value: value.into() }
}

pub fn delete(partition: PartitionId, key: &str) -> WriteOp {
    WriteOp::Delete { partition, key: key.into() }
}

pub async fn keys(session: &mut Session, table: PartitionId) -> Vec<String> {
    let (mut keys, mut more) = (Vec::new(), Some(ScanRange::all()));
    while let Some(range) = more {
        let chunk = session.scan(table, range, ScanLimit { bytes: 100, rows: 3 }).await.expect("a readable table");
        keys.extend(chunk.rows.into_iter().map(|(key, _)| String::from_utf8(key).expect("a text")));
        more = chunk.more;
    }
    keys
}
