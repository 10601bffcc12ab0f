//! Two or three nodes with a shard each, in threads of this process, on one volume, connected over loopback: their own
//! interconnect, Cache Fusion, locks, cache and log, as in as many processes, but for the address space.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use clap::ValueEnum;
use rustydb::cache::{Cache, CacheConfig, CacheParts};
use rustydb::clock::ScnClock;
use rustydb::fusion::gcs::message::Kind;
use rustydb::fusion::gcs::{Gcs, GcsConfig, GcsParts};
use rustydb::fusion::ges::{Ges, Transactions};
use rustydb::fusion::grd::{AffinityConfig, MastershipMap, VIRTUAL_NODES};
use rustydb::ids::{BLOCK_SIZE, BlockId, BlockNo, Epoch, Incarnation, NodeId, PartitionId, Scn, ShardId, TxnId};
use rustydb::interconnect::{Interconnect, Service, Settings};
use rustydb::reactor::thread::run_local;
use rustydb::reactor::{OpenOptions, Reactor, ReactorOptions};
use rustydb::volume::RedoArea;
use rustydb::wal::Log;

use crate::Outcome;
use crate::bare::Bare;
use crate::place::Place;
use crate::report::Report;
use crate::shard::Shard;

/// The nodes, of which the first two or all take part.
pub const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
/// Bytes of a node's redo area for a measurement: large enough that no checkpoint disturbs it.
pub const REDO_BYTES: u64 = 64 << 20;
/// How many there are.
const BLOCKS: u64 = 4096;
const FRAMES: usize = 4096;
const PARTITION: PartitionId = PartitionId(70);
/// Deadlocks are not measured.
const DEADLOCK_TIMEOUT: Duration = Duration::from_secs(60);

/// How blocks and messages travel between the nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// RDMA, or it is an error.
    Rdma,
}

impl Transport {
    /// For a report.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Rdma => "rdma",
        }
    }
}

/// How the nodes are made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the volume is made.
    pub folder: PathBuf,
    /// Sleep at once when there is nothing to do, instead of looking for work first.
    pub overprovisioned: bool,
    /// Pin the nodes' shards to the first cores.
    pub pin: bool,
    /// Addresses of this host that the nodes listen on, in their order; 127.0.0.1 and so on where there are none.
    pub addresses: Vec<IpAddr>,
    /// How blocks and messages travel.
    pub transport: Transport,
    /// Bytes of each node's redo area, written with zeros before it begins: [`REDO_BYTES`], or less for a quick look.
    pub redo_bytes: u64,
    /// By RDMA, blocks go between the frames of [`Parts::bare`] and not those of the cache: a shard registers one of the two.
    pub bare_frames: bool,
    /// How long shards look for what comes by RDMA before they sleep (`[rac.interconnect] poll_us`).
    pub poll: Duration,
}

impl Options {
    /// The first block that is not the log's.
    fn blocks_first(&self) -> u64 {
        NODES.len() as u64 * self.redo_bytes / BLOCK_SIZE as u64
    }

    /// Where the first `count` nodes listen.
    ///
    /// # Errors
    /// When too few are named.
    pub fn addresses_of(&self, count: usize) -> Outcome<Vec<IpAddr>> {
        if self.addresses.is_empty() {
            return Ok(NODES[..count].iter().map(|node| Ipv4Addr::new(127, 0, 0, node.0).into()).collect());
        }
        let given = self.addresses.len();
        let addresses =
            self.addresses.get(..count).ok_or_else(|| format!("{count} nodes want as many addresses, and there are {given}"))?;
        Ok(addresses.to_vec())
    }

    /// Where the first `count` nodes are, for a report.
    ///
    /// # Errors
    /// When too few addresses are named.
    pub fn places(&self, count: usize) -> Outcome<String> {
        let addresses: Vec<String> = self.addresses_of(count)?.iter().map(ToString::to_string).collect();
        Ok(format!("{count} nodes in as many threads of one process on {}", addresses.join(", ")))
    }

    /// Tells a report how the nodes were made.
    pub fn tell(&self, report: &mut Report) {
        report.setting("transport", self.transport.words());
        report.setting("idle shards", if self.overprovisioned { "sleep at once" } else { "look for work before they sleep" });
        report.setting("pinned", self.pin);
    }
}

/// What work in a node's shard finds there.
pub struct Parts {
    /// The shard's reactor.
    pub reactor: Reactor,
    /// The block cache.
    pub cache: Cache,
    /// The log.
    pub log: Log,
    /// Cache Fusion.
    pub gcs: Gcs,
    /// Locks.
    pub ges: Ges,
    /// Requests without any of that.
    pub bare: Rc<Bare>,
    /// The connections to the other nodes.
    pub interconnect: Interconnect,
}

/// See [`Nodes::blocks_sent`].
#[derive(Clone, Copy, Debug, Default)]
pub struct BlocksSent {
    /// By RDMA.
    pub by_rdma: u64,
    /// By TCP.
    pub by_tcp: u64,
    /// Bytes of both that a process copied from one place to another.
    pub bytes_copied: u64,
}

/// The nodes.
pub struct Nodes {
    /// In the order of [`NODES`].
    pub nodes: Vec<Shard<Parts>>,
    map: MastershipMap,
    blocks_first: u64,
    _place: Place,
}

/// Nobody has transactions here.
struct NoTransactions;

impl Transactions for NoTransactions {
    fn is_active(&self, _txn: TxnId) -> bool {
        false
    }

    fn began(&self, _txn: TxnId) -> Scn {
        Scn(0)
    }
}

fn mastership(count: usize) -> Outcome<MastershipMap> {
    Ok(MastershipMap::new(Epoch(1), &NODES[..count], VIRTUAL_NODES, BTreeMap::new())?)
}

/// Ports that were free a moment ago.
fn free_addresses(addresses: &[IpAddr]) -> Outcome<Vec<SocketAddr>> {
    let hold = |address: &IpAddr| TcpListener::bind((*address, 0)).map_err(|error| format!("{address}: {error}"));
    let held = addresses.iter().map(hold).collect::<Result<Vec<_>, _>>()?;
    Ok(held.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?)
}

#[cfg(test)]
pub(crate) fn quick() -> Options {
    Options {
        folder: std::env::temp_dir(),
        overprovisioned: true,
        pin: false,
        addresses: Vec::new(),
        transport: Transport::Tcp,
        redo_bytes: 8 << 20,
        bare_frames: false,
        poll: Duration::ZERO,
    }
}

impl Nodes {
    /// Starts `count` of them on a new volume.
    ///
    /// # Errors
    /// When there is no room, no thread or no port.
    pub fn start(count: usize, options: &Options) -> Outcome<Nodes> {
        let place = Place::new(&options.folder);
        let reactor_options = ReactorOptions { overprovisioned: options.overprovisioned, ..ReactorOptions::default() };
        let (path, blocks_first, options) = (place.path().to_owned(), options.blocks_first(), options.clone());
        run_local(reactor_options, |reactor| async move {
            let file = reactor.open(&path, OpenOptions::CREATE).await?;
            reactor.write_zeros(file, 0, (blocks_first + BLOCKS) * BLOCK_SIZE as u64).await?;
            reactor.sync(file).await
        })??;
        let addresses = free_addresses(&options.addresses_of(count)?)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let start = |index: usize| {
            let (path, addresses, options) = (place.path().to_owned(), addresses.clone(), options.clone());
            let core = options.pin.then_some(index % cores);
            let make = move |reactor: Reactor| async move { Ok((open(&reactor, index, &path, &addresses, &options).await?, ())) };
            Shard::start(core, &format!("node{}", index + 1), reactor_options, make)
        };
        let starting = (0..count).map(start).collect::<Outcome<Vec<_>>>()?;
        let nodes = starting.into_iter().map(|starting| Ok(starting.wait()?.0)).collect::<Outcome<Vec<_>>>()?;
        Ok(Nodes { nodes, map: mastership(count)?, blocks_first, _place: place })
    }

    /// `count` blocks that `master` masters, beginning with the `skip`-th.
    #[must_use]
    pub fn mastered_by(&self, master: NodeId, skip: usize, count: usize) -> Vec<BlockId> {
        let blocks = (0..BLOCKS).map(|n| BlockId::new(PARTITION, BlockNo(self.blocks_first + n)));
        let found: Vec<_> = blocks.filter(|block| self.map.master(*block) == master).skip(skip).take(count).collect();
        assert_eq!(found.len(), count, "{master} masters too few blocks for the benchmark");
        found
    }

    /// Blocks that all nodes have sent to each other by RDMA and by TCP, and bytes of them that they copied.
    ///
    /// # Errors
    /// When a shard is gone.
    pub fn blocks_sent(&self) -> Outcome<BlocksSent> {
        let mut sum = BlocksSent::default();
        for node in &self.nodes {
            let stats = node.run(|parts| async move { Ok(parts.interconnect.stats()) })?;
            sum.by_rdma += stats.blocks_rdma.sent;
            sum.by_tcp += stats.blocks_tcp.sent;
            sum.bytes_copied += stats.blocks_rdma.bytes_copied + stats.blocks_tcp.bytes_copied;
        }
        Ok(sum)
    }

    /// Messages about blocks that all nodes have sent to each other, by kind.
    ///
    /// # Errors
    /// When a shard is gone.
    pub fn messages(&self) -> Outcome<[u64; Kind::ALL.len()]> {
        let mut sum = [0; Kind::ALL.len()];
        for node in &self.nodes {
            let sent = node.run(|parts| async move { Ok(parts.gcs.stats().sent) })?;
            sum.iter_mut().zip(sent).for_each(|(sum, sent)| *sum += sent);
        }
        Ok(sum)
    }
}

async fn open(reactor: &Reactor, index: usize, path: &Path, addresses: &[SocketAddr], options: &Options) -> Outcome<Parts> {
    let redo_bytes = options.redo_bytes;
    let (node, shard) = (NODES[index], ShardId(0));
    let file = reactor.open(path, OpenOptions::WRITE).await?;
    let mut settings = Settings::new(1, node, Incarnation(1), shard, 1, addresses[index]);
    let peers = NODES.iter().copied().zip(addresses.iter().copied());
    settings.peers = peers.filter(|(peer, _)| *peer != node).collect();
    let clock = ScnClock::new();
    let interconnect = Interconnect::new(reactor, &clock, settings);
    if options.transport == Transport::Rdma {
        interconnect.use_device(addresses[index], addresses.len() - 1, true, options.poll)?;
    }
    let gcs = Gcs::new(GcsParts {
        reactor: reactor.clone(),
        interconnect: interconnect.clone(),
        map: Rc::new(mastership(addresses.len())?),
        // Buckets stay where the paths that are measured want them.
        config: GcsConfig {
            block_transfer_timeout_ms: 60_000,
            affinity: AffinityConfig { auto_remaster: false, ..AffinityConfig::default() },
            ..GcsConfig::default()
        },
    });
    let area = RedoArea { node, shard, offset: index as u64 * redo_bytes, bytes: redo_bytes, stamp: 1 };
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
            register_memory: interconnect.has_rdma(),
            ..CacheConfig::default()
        },
    })?;
    let bare = Bare::new(&interconnect);
    let frames = if options.bare_frames { Some(bare.memory()) } else { cache.memory() };
    if let Some((start, bytes)) = frames {
        // SAFETY: both promise that it stays mapped.
        unsafe { interconnect.register_frames(start, bytes) }.map_err(|fault| fault.to_string())?;
    }
    gcs.attach(&cache);
    interconnect.register(Service::Gcs, Rc::new(gcs.clone()));
    let ges = Ges::new(&interconnect, Rc::new(NoTransactions), DEADLOCK_TIMEOUT);
    interconnect.register(Service::Txn, bare.clone());
    interconnect.set_epoch(Epoch(1));
    interconnect.start().await?;
    interconnect.all_up().await;
    Ok(Parts { reactor: reactor.clone(), cache, log, gcs, ges, bare, interconnect })
}
