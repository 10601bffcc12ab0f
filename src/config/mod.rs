//! A node's settings: the TOML file of `rusty-db-server --config`, typed, with a default, a unit and a bound for each.
//!
//! Read once at start by the main thread, then shared read-only. An unknown key, a value out of bounds or two settings
//! that contradict each other are errors that name the key, the value and what would be right; nothing is ignored
//! silently. Names follow the product's documents (`[cluster]`, `[rac]`, `[rac.interconnect]`, …).

mod error;
mod ha;
mod size;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub use self::error::ConfigError;
pub use self::ha::{
    COMMAND_PLACEHOLDERS, COMMAND_WORDS_MAX, FencingConfig, FencingMethod, FencingMethods, FencingMode, HaConfig, WatchdogUse,
};
pub use self::size::ByteSize;
use crate::ids::{NODES_MAX, NodeId, SHARDS_MAX};

/// Name of the volume when `shared_storage_path` is a folder.
pub const VOLUME_FILE_NAME: &str = "rustydb.volume";

/// Everything that a node is told by its operator.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who the cluster and this node are.
    pub cluster: ClusterConfig,
    /// The shared-disk part: interconnect, Cache Fusion, directory, storage.
    pub rac: RacConfig,
    /// The consensus of the control group and of replicated partitions.
    #[serde(default)]
    pub raft: RaftConfig,
    /// What happens to a node that is declared dead.
    #[serde(default)]
    pub ha: HaConfig,
    /// What clients connect to.
    #[serde(default)]
    pub server: ServerConfig,
    /// Threads, I/O and transactions of the engine.
    #[serde(default)]
    pub engine: EngineConfig,
}

/// `[cluster]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// Must equal the name that the volume was formatted for. 1 to 63 bytes.
    pub cluster_name: String,
    /// This node: a number from 1, or `"node1"`.
    pub node_id: NodeName,
    /// Interconnect address of every node by name: `node1 = "10.0.3.11:7433"`. Shard i listens on port + i.
    #[serde(default)]
    pub nodes: BTreeMap<String, SocketAddr>,
}

/// A node as operators write it: `1` or `"node1"`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum NodeName {
    /// `node_id = 1`
    Number(u64),
    /// `node_id = "node1"`
    Name(String),
}

/// `[rac]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RacConfig {
    /// Nodes in the cluster, when they are given by `peers` and not by `[cluster.nodes]`.
    #[serde(default)]
    pub node_count: Option<u64>,
    /// `[rac.interconnect]`
    #[serde(default)]
    pub interconnect: InterconnectConfig,
    /// `[rac.cache_fusion]`
    #[serde(default)]
    pub cache_fusion: CacheFusionConfig,
    /// `[rac.grd]`
    #[serde(default)]
    pub grd: GrdConfig,
    /// `[rac.storage]`
    pub storage: StorageConfig,
    /// `[rac.recovery]`
    #[serde(default)]
    pub recovery: RecoveryConfig,
}

/// `[rac.interconnect]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InterconnectConfig {
    /// This node's own address, when `[cluster.nodes]` does not say it.
    pub address: Option<SocketAddr>,
    /// The other nodes' addresses in the order of their numbers, when `[cluster.nodes]` does not say them.
    pub peers: Vec<SocketAddr>,
    /// `"TCP"` (default): by TCP only. `"auto"`: by RDMA to every node that can be reached so, by TCP to the others. `"RDMA"`: a node that
    /// can't be reached by RDMA counts as lost; set on all nodes alike. What needs a build with RDMA: docs/rdma.md.
    pub protocol: Protocol,
    /// Microseconds for which a shard looks for what comes by RDMA before it sleeps. 0 to 1,000,000; default 0: more takes a
    /// core of its own for each shard.
    pub poll_us: u64,
    /// Microseconds for which a shard, before it sleeps, looks for packets at the network card itself instead of waiting for its
    /// interrupt (NAPI busy polling): less latency for a core's time. Takes io_uring, Linux 6.9 and a card whose driver can. 0 to
    /// 1,000,000; default 0: it does not.
    pub busy_poll_us: u64,
    /// Milliseconds between heartbeats on each connection. 10 to 60,000; default 1,000.
    pub heartbeat_interval: u64,
    /// Milliseconds of silence after which a peer counts as lost. More than twice the interval; default 5,000.
    pub heartbeat_timeout: u64,
}

/// How blocks travel between nodes.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub enum Protocol {
    /// TCP on any network.
    #[serde(rename = "TCP", alias = "tcp")]
    Tcp,
    /// RDMA where both nodes have it, TCP where not.
    #[serde(rename = "auto", alias = "AUTO")]
    Auto,
    /// RDMA, or nothing.
    #[serde(rename = "RDMA", alias = "rdma")]
    Rdma,
}

/// `[rac.cache_fusion]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheFusionConfig {
    /// Milliseconds after which a block transfer that has not finished is reported as stalled. 1 to 600,000; default 100.
    pub block_transfer_timeout: u64,
    /// Most block requests that one shard may have open. 1 to 1,000,000; default 4,096.
    pub max_outstanding_requests: u64,
    /// Bytes of block cache on this node, over all its shards. At least 4 MiB a shard; default 256 MiB.
    pub global_cache_size: ByteSize,
}

/// `[rac.grd]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrdConfig {
    /// Points of each node on the consistent-hash ring. 1 to 4,096; default 256. The same on all nodes.
    pub virtual_nodes: u64,
    /// Most directory entries mastered here, over all shards. 1,000 to 100,000,000; default 10,000,000.
    pub max_grd_entries: u64,
    /// Whether buckets of blocks are moved to the nodes that ask for them most. Default true.
    pub auto_remaster: bool,
    /// Requests of another node, faded by `affinity_decay`, after which it may become a bucket's master: it must also ask
    /// for more than twice as much as all others together. 1 to 1,000,000,000; default 100. More where little shall move.
    pub remaster_threshold: u64,
    /// What a request counts for after each second: 0.95 of what it did. 0 to 0.999; default 0.95.
    pub affinity_decay: f64,
    /// Seconds between two looks at how busy the masters are. 1 to 86,400; default 300.
    pub load_balance_interval: u64,
    /// How far above the mean a master's load may be before it gives buckets away, as a part of the mean. 0.01 to 100;
    /// default 0.2.
    pub load_imbalance_threshold: f64,
}

/// `[rac.storage]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageConfig {
    /// The shared volume: a block device, a file, or a folder that holds [`VOLUME_FILE_NAME`].
    pub shared_storage_path: PathBuf,
    /// Reads back every block that was written, before its redo is given up: what has landed in another place, or was lost on
    /// its way, is written again. Costs a read for every block written. Default off; for devices that are not to be trusted.
    #[serde(default)]
    pub verify_writes: bool,
    /// Looks for the completions of the volume's reads and writes instead of waiting for interrupts: for NVMe devices with queues for
    /// it (`poll_queues` of the kernel's module nvme). A shard then takes a whole core while anything is in flight. Where it can't be
    /// had, the log says why, and interrupts are waited for. Default off.
    #[serde(default)]
    pub polled_io: bool,
    /// Reads and writes the volume by NVMe's own commands (`/dev/ngXnY`) instead of the kernel's block layer: for volumes that are a
    /// whole NVMe namespace. Where it can't be had, the log says why, and the block layer is used. Default off.
    #[serde(default)]
    pub nvme_passthrough: bool,
}

/// `[rac.recovery]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecoveryConfig {
    /// Seconds between checkpoints when the redo area's filling does not ask for one earlier. 1 to 3,600; default 300.
    pub checkpoint_interval: u64,
}

/// `[raft]`. The same on all nodes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RaftConfig {
    /// Milliseconds without a leader after which an election may begin: at least this many, drawn anew for each wait. 10 to
    /// 60,000, and at least twice `heartbeat_interval`; default 150.
    pub election_timeout_min: u64,
    /// As above: at most this many. More than `election_timeout_min`, at most 120,000; default 300.
    pub election_timeout_max: u64,
    /// Milliseconds between a leader's heartbeats. 5 to 10,000; default 50.
    pub heartbeat_interval: u64,
    /// Most entries of one message to a follower. 1 to 4,096; default 100.
    pub max_entries_per_append: u64,
    /// Most messages with entries on their way to one follower. 1 to 4,096; default 64.
    pub max_inflight_appends: u64,
    /// Most proposals that wait for the other members; more are refused. 1 to 1,000,000; default 100,000.
    pub max_uncommitted_entries: u64,
    /// Most bytes of such proposals. 64 KiB to 64 MiB, and never more than the redo area bears; default 4 MiB.
    pub max_uncommitted_size: ByteSize,
    /// Entries applied since the last snapshot after which the next one is taken. 10 to 10,000,000; default 10,000.
    pub snapshot_threshold: u64,
    /// Seconds after which a snapshot is taken although fewer were applied. 1 to 604,800; default 3,600.
    pub snapshot_interval: u64,
    /// Entries kept in memory before a snapshot, for followers that are a little behind. 0 to 1,000,000; default 10,000.
    pub log_retention: u64,
}

/// `[server]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Where PostgreSQL clients connect. Default 127.0.0.1:5432.
    pub pg_address: SocketAddr,
    /// Where `GET /api/v1/health` answers. Default 127.0.0.1:8080.
    pub http_address: SocketAddr,
    /// Most client connections at once. 1 to 100,000; default 1,000.
    pub max_connections: u64,
    /// Seconds that clients in a transaction have to end it when the node stops; idle ones are sent away at once. 0 to 3,600;
    /// default 5.
    pub drain_timeout: u64,
    /// Folder of the file in which the node publishes its live statistics, best one in memory; its name is made of the
    /// cluster's, the volume's and the node's. Empty: no file. Default "/dev/shm".
    pub statistics_folder: PathBuf,
    /// Milliseconds between two publications of the statistics. 10 to 60,000; default 250.
    pub statistics_interval: u64,
    /// Unix socket at which native clients on this host come in, which then talk through rings in shared memory; for the
    /// server's own user only. Empty, the default: none.
    pub native_socket: PathBuf,
    /// Where native clients come in over TCP, without being asked who they are. Default: nowhere.
    pub native_address: Option<SocketAddr>,
    /// Most native clients at once through rings, and as many again over TCP, each served by a thread of its own. 1 to 4,096;
    /// default 64.
    pub native_clients: u64,
    /// Microseconds that such a thread looks for the next request before it sleeps. 0 to 1,000,000; default 0.
    pub native_spin: u64,
    /// Seconds of silence after which the system asks whether a client over TCP, PostgreSQL's or native, is still there. 0 to
    /// 32,767, 0 being the system's own; default 30.
    pub tcp_keepalives_idle: u64,
    /// Seconds between such questions. As above; default 10.
    pub tcp_keepalives_interval: u64,
    /// Unanswered questions after which the client counts as gone, where `tcp_user_timeout` is 0. 0 to 127; default 3.
    pub tcp_keepalives_count: u64,
    /// Milliseconds without an acknowledgement, of bytes or of questions, after which the client counts as gone. 0 to
    /// 2,147,483,647, 0 being the system's own; default 60,000.
    pub tcp_user_timeout: u64,
}

/// `[engine]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineConfig {
    /// Shards, one thread each. Fixed when the volume is formatted, equal on all nodes. 1 to 64; default 1.
    pub shards: u64,
    /// Shards park at once when idle instead of spinning: for machines whose cores are shared. Default true.
    pub overprovisioned: bool,
    /// `"auto"`, `"uring"` or `"poll"`. Default auto: io_uring where the kernel lets us.
    pub io_driver: IoDriver,
    /// Seconds that old row versions are kept at least. 0 to 604,800; default 0.
    pub undo_retention: u64,
    /// Milliseconds that a lock is waited for before a search for a deadlock starts. 10 to 60,000; default 200.
    pub deadlock_timeout: u64,
}

/// Which driver does the I/O.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum IoDriver {
    /// io_uring where it is to be had, poll otherwise.
    Auto,
    /// io_uring or an error.
    Uring,
    /// readiness polling and plain reads and writes.
    Poll,
}

impl Default for InterconnectConfig {
    fn default() -> Self {
        InterconnectConfig {
            address: None,
            peers: Vec::new(),
            protocol: Protocol::Tcp,
            poll_us: 0,
            busy_poll_us: 0,
            heartbeat_interval: 1_000,
            heartbeat_timeout: 5_000,
        }
    }
}

impl Default for CacheFusionConfig {
    fn default() -> Self {
        CacheFusionConfig { block_transfer_timeout: 100, max_outstanding_requests: 4_096, global_cache_size: ByteSize(256 << 20) }
    }
}

impl Default for GrdConfig {
    fn default() -> Self {
        GrdConfig {
            virtual_nodes: 256,
            max_grd_entries: 10_000_000,
            auto_remaster: true,
            remaster_threshold: 100,
            affinity_decay: 0.95,
            load_balance_interval: 300,
            load_imbalance_threshold: 0.2,
        }
    }
}

impl Default for RecoveryConfig {
    fn default() -> Self {
        RecoveryConfig { checkpoint_interval: 300 }
    }
}

impl Default for RaftConfig {
    fn default() -> Self {
        RaftConfig {
            election_timeout_min: 150,
            election_timeout_max: 300,
            heartbeat_interval: 50,
            max_entries_per_append: 100,
            max_inflight_appends: 64,
            max_uncommitted_entries: 100_000,
            max_uncommitted_size: ByteSize(4 << 20),
            snapshot_threshold: 10_000,
            snapshot_interval: 3_600,
            log_retention: 10_000,
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            pg_address: SocketAddr::from(([127, 0, 0, 1], 5432)),
            http_address: SocketAddr::from(([127, 0, 0, 1], 8080)),
            max_connections: 1_000,
            drain_timeout: 5,
            statistics_folder: PathBuf::from("/dev/shm"),
            statistics_interval: 250,
            native_socket: PathBuf::new(),
            native_address: None,
            native_clients: 64,
            native_spin: 0,
            tcp_keepalives_idle: 30,
            tcp_keepalives_interval: 10,
            tcp_keepalives_count: 3,
            tcp_user_timeout: 60_000,
        }
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig { shards: 1, overprovisioned: true, io_driver: IoDriver::Auto, undo_retention: 0, deadlock_timeout: 200 }
    }
}

impl NodeName {
    /// The node's number.
    ///
    /// # Errors
    /// When it is neither 1..=[`NODES_MAX`] nor `node` with such a number.
    pub fn node(&self) -> Result<NodeId, ConfigError> {
        let number = match self {
            NodeName::Number(number) => Some(*number),
            NodeName::Name(name) => name.strip_prefix("node").unwrap_or(name).parse().ok(),
        };
        match number {
            Some(number) if (1..=NODES_MAX as u64).contains(&number) => Ok(NodeId(number as u8)),
            _ => Err(ConfigError::out_of_range(
                "cluster.node_id",
                self,
                format!("1 to {NODES_MAX}, or \"node1\" to \"node{NODES_MAX}\""),
            )),
        }
    }
}

impl std::fmt::Display for NodeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NodeName::Number(number) => write!(f, "{number}"),
            NodeName::Name(name) => write!(f, "{name:?}"),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`] when the file can't be read, holds an unknown key, or fails [`Config::parse`]'s checks.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
        Config::parse(&text).map_err(|error| error.in_file(path))
    }

    /// Parses and checks the text of a configuration.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key, its value and the bound.
    pub fn parse(text: &str) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(text).map_err(|error| ConfigError::Syntax { message: error.to_string() })?;
        config.check()?;
        Ok(config)
    }

    /// This node.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.cluster.node_id.node().expect("checked when parsed")
    }

    /// The interconnect address of every node, this one included, in the order of their numbers.
    ///
    /// # Errors
    /// When `[cluster.nodes]` and `peers` leave out this node or contradict `node_count`.
    pub fn nodes(&self) -> Result<BTreeMap<NodeId, SocketAddr>, ConfigError> {
        let me = self.cluster.node_id.node()?;
        let mut nodes = BTreeMap::new();
        if self.cluster.nodes.is_empty() {
            let own = self.rac.interconnect.address.ok_or_else(|| ConfigError::Missing {
                key: "rac.interconnect.address",
                remedy: "give this node's interconnect address there, or every node's in [cluster.nodes]".into(),
            })?;
            let mut peers = self.rac.interconnect.peers.iter();
            let total = self.rac.interconnect.peers.len() as u64 + 1;
            for number in 1..=total.max(u64::from(me.0)) {
                let node = NodeName::Number(number).node()?;
                let address = if node == me { Some(&own) } else { peers.next() };
                if let Some(address) = address {
                    nodes.insert(node, *address);
                }
            }
        } else {
            for (name, address) in &self.cluster.nodes {
                nodes.insert(NodeName::Name(name.clone()).node()?, *address);
            }
            if !nodes.contains_key(&me) {
                return Err(ConfigError::Missing {
                    key: "cluster.nodes",
                    remedy: format!("add this node: {} = \"ADDRESS:PORT\"", format!("{me}").replace(' ', "")),
                });
            }
        }
        if let Some(count) = self.rac.node_count
            && count != nodes.len() as u64
        {
            return Err(ConfigError::out_of_range(
                "rac.node_count",
                &count,
                format!("{}, the number of nodes whose addresses are given", nodes.len()),
            ));
        }
        Ok(nodes)
    }

    /// Where the volume is: `shared_storage_path`, or the volume's file in it when that is a folder.
    #[must_use]
    pub fn volume_path(&self) -> PathBuf {
        volume_path(&self.rac.storage.shared_storage_path)
    }

    /// Silence after which a peer counts as lost.
    #[must_use]
    pub fn heartbeat_timeout(&self) -> Duration {
        Duration::from_millis(self.rac.interconnect.heartbeat_timeout)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let within = |key: &'static str, value: u64, low: u64, high: u64| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(ConfigError::out_of_range(key, &value, format!("{low} to {high}")))
            }
        };
        let within_parts = |key: &'static str, value: f64, low: f64, high: f64| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(ConfigError::out_of_range(key, &value, format!("{low} to {high}")))
            }
        };
        let name = &self.cluster.cluster_name;
        if name.is_empty() || name.len() > 63 {
            return Err(ConfigError::out_of_range("cluster.cluster_name", name, "a name of 1 to 63 bytes".into()));
        }
        self.nodes()?;
        let interconnect = &self.rac.interconnect;
        within("rac.interconnect.heartbeat_interval", interconnect.heartbeat_interval, 10, 60_000)?;
        within("rac.interconnect.poll_us", interconnect.poll_us, 0, 1_000_000)?;
        within("rac.interconnect.busy_poll_us", interconnect.busy_poll_us, 0, 1_000_000)?;
        within(
            "rac.interconnect.heartbeat_timeout",
            interconnect.heartbeat_timeout,
            interconnect.heartbeat_interval * 2 + 1,
            600_000,
        )?;
        within("rac.cache_fusion.block_transfer_timeout", self.rac.cache_fusion.block_transfer_timeout, 1, 600_000)?;
        within("rac.cache_fusion.max_outstanding_requests", self.rac.cache_fusion.max_outstanding_requests, 1, 1_000_000)?;
        within("rac.grd.virtual_nodes", self.rac.grd.virtual_nodes, 1, 4_096)?;
        within("rac.grd.max_grd_entries", self.rac.grd.max_grd_entries, 1_000, 100_000_000)?;
        within("rac.grd.remaster_threshold", self.rac.grd.remaster_threshold, 1, 1_000_000_000)?;
        within_parts("rac.grd.affinity_decay", self.rac.grd.affinity_decay, 0.0, 0.999)?;
        within("rac.grd.load_balance_interval", self.rac.grd.load_balance_interval, 1, 86_400)?;
        within_parts("rac.grd.load_imbalance_threshold", self.rac.grd.load_imbalance_threshold, 0.01, 100.0)?;
        within("rac.recovery.checkpoint_interval", self.rac.recovery.checkpoint_interval, 1, 3_600)?;
        let raft = &self.raft;
        within("raft.heartbeat_interval", raft.heartbeat_interval, 5, 10_000)?;
        within("raft.election_timeout_min", raft.election_timeout_min, (2 * raft.heartbeat_interval).max(10), 60_000)?;
        within("raft.election_timeout_max", raft.election_timeout_max, raft.election_timeout_min + 1, 120_000)?;
        within("raft.max_entries_per_append", raft.max_entries_per_append, 1, 4_096)?;
        within("raft.max_inflight_appends", raft.max_inflight_appends, 1, 4_096)?;
        within("raft.max_uncommitted_entries", raft.max_uncommitted_entries, 1, 1_000_000)?;
        let (size, bounds) = (raft.max_uncommitted_size, (ByteSize(64 << 10), ByteSize(64 << 20)));
        if size < bounds.0 || size > bounds.1 {
            let allowed = format!("{} to {}", bounds.0, bounds.1);
            return Err(ConfigError::out_of_range("raft.max_uncommitted_size", &size, allowed));
        }
        within("raft.snapshot_threshold", raft.snapshot_threshold, 10, 10_000_000)?;
        within("raft.snapshot_interval", raft.snapshot_interval, 1, 604_800)?;
        within("raft.log_retention", raft.log_retention, 0, 1_000_000)?;
        self.ha.check(&within)?;
        within("server.max_connections", self.server.max_connections, 1, 100_000)?;
        within("server.drain_timeout", self.server.drain_timeout, 0, 3_600)?;
        within("server.statistics_interval", self.server.statistics_interval, 10, 60_000)?;
        within("server.native_clients", self.server.native_clients, 1, 4_096)?;
        within("server.native_spin", self.server.native_spin, 0, 1_000_000)?;
        within("server.tcp_keepalives_idle", self.server.tcp_keepalives_idle, 0, 32_767)?;
        within("server.tcp_keepalives_interval", self.server.tcp_keepalives_interval, 0, 32_767)?;
        within("server.tcp_keepalives_count", self.server.tcp_keepalives_count, 0, 127)?;
        within("server.tcp_user_timeout", self.server.tcp_user_timeout, 0, i32::MAX as u64)?;
        within("engine.shards", self.engine.shards, 1, SHARDS_MAX as u64)?;
        within("engine.undo_retention", self.engine.undo_retention, 0, 604_800)?;
        within("engine.deadlock_timeout", self.engine.deadlock_timeout, 10, 60_000)?;
        let cache = self.rac.cache_fusion.global_cache_size;
        let least = ByteSize(self.engine.shards * (4 << 20));
        if cache < least {
            return Err(ConfigError::out_of_range(
                "rac.cache_fusion.global_cache_size",
                &cache,
                format!("{least} or more (4 MiB for each shard)"),
            ));
        }
        Ok(())
    }
}

/// Where the volume is when an operator names `path`: the path itself, or the volume's file in it when that is a folder.
#[must_use]
pub fn volume_path(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(VOLUME_FILE_NAME) } else { path.to_owned() }
}
