//! Two nodes with a shard each, in two threads of this process, on one volume, connected over loopback TCP: their own
//! interconnect, Cache Fusion, cache and log, as in two processes, but for the address space.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustydb::cache::{Cache, CacheConfig, CacheParts};
use rustydb::clock::ScnClock;
use rustydb::fusion::gcs::{Gcs, GcsConfig, GcsParts};
use rustydb::fusion::grd::{MastershipMap, VIRTUAL_NODES};
use rustydb::ids::{BLOCK_SIZE, BlockId, BlockNo, Epoch, Incarnation, NodeId, PartitionId, ShardId};
use rustydb::interconnect::{Interconnect, Service, Settings};
use rustydb::reactor::thread::run_local;
use rustydb::reactor::{OpenOptions, Reactor, ReactorOptions};
use rustydb::volume::RedoArea;
use rustydb::wal::Log;

use crate::Outcome;
use crate::place::Place;
use crate::shard::Shard;

/// The nodes.
pub const NODES: [NodeId; 2] = [NodeId(1), NodeId(2)];
/// Bytes of a node's redo area: large enough that no checkpoint disturbs the measurement.
const REDO_BYTES: u64 = 128 << 20;
/// The first block that is not the log's.
const BLOCKS_FIRST: u64 = NODES.len() as u64 * REDO_BYTES / BLOCK_SIZE as u64;
/// How many there are.
const BLOCKS: u64 = 4096;
const FRAMES: usize = 2048;
const PARTITION: PartitionId = PartitionId(70);

/// What work in a node's shard finds there.
pub struct Parts {
    /// The block cache.
    pub cache: Cache,
    /// The log.
    pub log: Log,
    _gcs: Gcs,
    _interconnect: Interconnect,
}

/// The two nodes.
pub struct Pair {
    /// In the order of [`NODES`].
    pub nodes: [Shard<Parts>; 2],
    map: MastershipMap,
    _place: Place,
}

fn mastership() -> Outcome<MastershipMap> {
    Ok(MastershipMap::new(Epoch(1), &NODES, VIRTUAL_NODES, BTreeMap::new())?)
}

impl Pair {
    /// Starts both on a new volume in `folder`; `pin` puts them on the first two cores.
    ///
    /// # Errors
    /// When there is no room, no thread or no port.
    pub fn start(folder: &Path, overprovisioned: bool, pin: bool) -> Outcome<Pair> {
        let place = Place::new(folder);
        let reactor_options = ReactorOptions { overprovisioned, ..ReactorOptions::default() };
        let path = place.path().to_owned();
        run_local(reactor_options, |reactor| async move {
            let file = reactor.open(&path, OpenOptions::CREATE).await?;
            reactor.write_zeros(file, 0, (BLOCKS_FIRST + BLOCKS) * BLOCK_SIZE as u64).await?;
            reactor.sync(file).await
        })??;
        // Ports that were free a moment ago.
        let held = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.2:0")?];
        let addresses = [held[0].local_addr()?, held[1].local_addr()?];
        drop(held);
        let start = |index: usize| {
            let path = place.path().to_owned();
            let make = move |reactor: Reactor| async move { Ok((open(&reactor, index, path, addresses).await?, ())) };
            Shard::start(pin.then_some(index), &format!("node{}", index + 1), reactor_options, make)
        };
        let (first, second) = (start(0)?, start(1)?);
        let nodes = [first.wait()?.0, second.wait()?.0];
        Ok(Pair { nodes, map: mastership()?, _place: place })
    }

    /// `count` blocks that `master` masters, beginning with the `skip`-th.
    #[must_use]
    pub fn mastered_by(&self, master: NodeId, skip: usize, count: usize) -> Vec<BlockId> {
        let blocks = (0..BLOCKS).map(|n| BlockId::new(PARTITION, BlockNo(BLOCKS_FIRST + n)));
        let found: Vec<_> = blocks.filter(|block| self.map.master(*block) == master).skip(skip).take(count).collect();
        assert_eq!(found.len(), count, "{master} masters too few blocks for the benchmark");
        found
    }
}

async fn open(reactor: &Reactor, index: usize, path: PathBuf, addresses: [SocketAddr; 2]) -> Outcome<Parts> {
    let (node, shard, other) = (NODES[index], ShardId(0), 1 - index);
    let file = reactor.open(&path, OpenOptions::WRITE).await?;
    let mut settings = Settings::new(1, node, Incarnation(1), shard, 1, addresses[index]);
    settings.peers = vec![(NODES[other], addresses[other])];
    let clock = ScnClock::new();
    let interconnect = Interconnect::new(reactor, &clock, settings);
    let gcs = Gcs::new(GcsParts {
        reactor: reactor.clone(),
        interconnect: interconnect.clone(),
        map: Rc::new(mastership()?),
        config: GcsConfig { block_transfer_timeout_ms: 60_000, ..GcsConfig::default() },
    });
    let area = RedoArea { node, shard, offset: index as u64 * REDO_BYTES, bytes: REDO_BYTES, stamp: 1 };
    let log = Log::open(reactor, file, area, Incarnation(1)).await?;
    let cache = Cache::new(CacheParts {
        reactor: reactor.clone(),
        file,
        log: log.clone(),
        clock,
        coherence: Rc::new(gcs.clone()),
        config: CacheConfig {
            frames: FRAMES,
            dirty_percent_max: 90,
            checkpoint_interval_ms: 3_600_000,
            ..CacheConfig::default()
        },
    })?;
    gcs.attach(&cache);
    interconnect.register(Service::Gcs, Rc::new(gcs.clone()));
    interconnect.set_epoch(Epoch(1));
    interconnect.start().await?;
    interconnect.all_up().await;
    Ok(Parts { cache, log, _gcs: gcs, _interconnect: interconnect })
}
