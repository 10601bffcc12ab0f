//! One node with one shard in a thread of its own, on a volume of its own, without other nodes: what `reads` and the
//! criterion benches run in.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustydb::btree::space::{BlockAllocator, SpaceManager};
use rustydb::cache::{Cache, CacheConfig, CacheParts, LocalCoherence};
use rustydb::clock::ScnClock;
use rustydb::ids::{BLOCK_SIZE, Incarnation, NodeId, PartitionId, ShardId};
use rustydb::reactor::{DurableMethod, Reactor, ReactorOptions};
use rustydb::store::{LocalLocks, NodeStore, Placement, ShardEngine, Store, WriteOp};
use rustydb::txn::{LocalWaits, NoPeers, NodeShared, TxnParts, Txns};
use rustydb::volume::{FormatOptions, InitZero, Volume, block_offset};
use rustydb::wal::Log;

use crate::Outcome;
use crate::clock::block_on;
use crate::place::Place;
use crate::shard::Shard;

/// Bytes of a loaded row's value; with its key of 8, a row has some 100 bytes.
pub const VALUE_BYTES: usize = 92;
/// Rows written in one transaction while loading.
const LOAD_BATCH: u64 = 500;

/// How the node is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where its volume is made.
    pub folder: PathBuf,
    /// Bytes of the volume.
    pub volume_bytes: u64,
    /// Bytes of the block cache.
    pub cache_bytes: u64,
    /// Pin the shard to the last core.
    pub pin: bool,
    /// Sleep at once when there is nothing to do.
    pub overprovisioned: bool,
    /// What of the volume is written once before anything is measured: what a file system has to do with the first write is not
    /// the engine's time.
    pub init_zero: InitZero,
}

/// What work in the shard finds there.
pub struct Parts {
    /// The shard's reactor.
    pub reactor: Reactor,
    /// The block cache.
    pub cache: Cache,
    /// The log.
    pub log: Log,
    /// The store's part in the shard.
    pub engine: Rc<ShardEngine>,
    _volume: Volume,
}

/// The node. Ends when it is dropped.
pub struct BenchNode {
    shard: Shard<Parts>,
    store: Store,
    durable: DurableMethod,
    _place: Place,
}

impl BenchNode {
    /// Formats a volume and starts the node on it.
    ///
    /// # Errors
    /// When there is no room for it, or no thread.
    pub fn start(options: &Options) -> Outcome<BenchNode> {
        let place = Place::new(&options.folder);
        let (path, inside) = (place.path().to_owned(), options.clone());
        let core = options.pin.then(|| std::thread::available_parallelism().map_or(0, |cores| cores.get() - 1));
        let reactor_options = ReactorOptions { overprovisioned: options.overprovisioned, ..ReactorOptions::default() };
        let make = move |reactor: Reactor| async move { open(&reactor, &path, &inside).await };
        let (shard, (store, durable)) = Shard::start(core, "shard0", reactor_options, make)?.wait()?;
        Ok(BenchNode { shard, store, durable, _place: place })
    }

    /// How its durable writes are made: as a probe found faster, which nodes make too.
    #[must_use]
    pub fn durable_method(&self) -> DurableMethod {
        self.durable
    }

    /// The store, for sessions from any thread.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Runs `work` as a task of the shard and waits for what it gives back.
    ///
    /// # Errors
    /// What `work` ends with.
    pub fn run<T, F, Fut>(&self, work: F) -> Outcome<T>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Parts>) -> Fut + Send + 'static,
        Fut: Future<Output = Outcome<T>> + 'static,
    {
        self.shard.run(work)
    }

    /// A new partition with the rows 0 to `rows`, in that order, under [`key`].
    ///
    /// # Errors
    /// The store's.
    pub fn load(&self, rows: u64) -> Outcome<PartitionId> {
        let partition = block_on(self.store.create_partition(Placement::Any))?;
        let mut session = self.store.session();
        for first in (0..rows).step_by(LOAD_BATCH as usize) {
            let batch = (first..rows.min(first + LOAD_BATCH)).map(|row| WriteOp::Put {
                partition,
                key: key(row).to_vec(),
                value: [(row % 251) as u8; VALUE_BYTES].to_vec(),
            });
            block_on(session.write_and_commit(batch.collect()))?;
        }
        Ok(partition)
    }
}

/// The key of a loaded row.
#[must_use]
pub fn key(row: u64) -> [u8; 8] {
    row.to_be_bytes()
}

async fn open(reactor: &Reactor, path: &Path, options: &Options) -> Outcome<(Parts, (Store, DurableMethod))> {
    let format = FormatOptions {
        nodes_max: 1,
        volume_bytes: options.volume_bytes,
        redo_area_bytes: Some(64 << 20),
        init_zero: options.init_zero,
        ..FormatOptions::new("bench")
    };
    let volume = Volume::format(reactor, path, &format, &mut |_| {}).await?;
    let geometry = *volume.geometry();
    let (node, shard) = (NodeId(1), ShardId(0));
    let durable = reactor.probe_durable_write(volume.file(), block_offset(geometry.vote_block(node))).await?;
    let log = Log::open(reactor, volume.file(), geometry.redo_area(node, shard), Incarnation(1)).await?;
    let clock = ScnClock::new();
    let cache = Cache::new(CacheParts {
        reactor: reactor.clone(),
        file: volume.file(),
        log: log.clone(),
        clock: clock.clone(),
        coherence: Rc::new(LocalCoherence),
        config: CacheConfig { frames: options.cache_bytes as usize / BLOCK_SIZE, ..CacheConfig::default() },
    })?;
    let service = Rc::new(SpaceManager::open(&cache, node, &geometry).await?);
    let shared = NodeShared::new(clock);
    let txns = Txns::open(TxnParts {
        node,
        shard,
        shared: shared.clone(),
        cache: cache.clone(),
        space: BlockAllocator::new(&cache, service.clone(), node, geometry.extents_first),
        service: service.clone(),
        waits: Rc::new(LocalWaits::new()),
        peers: Rc::new(NoPeers),
        undo_retention_ms: 0,
    })
    .await?;
    txns.start_housekeeping(true);
    let engine = ShardEngine::new(&txns, shard, service, Rc::new(LocalLocks::new()));
    let store = NodeStore::new(node, vec![reactor.remote()], shared);
    store.create_system_partitions().await?;
    Ok((Parts { reactor: reactor.clone(), cache, log, engine, _volume: volume }, (store.store(), durable)))
}
