//! What a node needs of its host, from its configuration or, without one, from the defaults.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use rustydb::config::{
    ByteSize, CacheFusionConfig, Config, EngineConfig, FencingMethod, HaConfig, IoDriver, Protocol, ServerConfig, volume_path,
};

/// Memory that a node uses beside its cache, roughly: the gateway's queries, directories, rings, connections.
pub const BESIDE_CACHE_BYTES: u64 = 1 << 30;
/// Open files that a node needs beside its clients' and its peers' connections: volume, rings, logs, listeners.
pub const FILES_BESIDE_CLIENTS: u64 = 512;

/// See the module.
#[derive(Clone, Debug)]
pub struct Needs {
    /// The file, and what is wrong with it; `None` without `--config`.
    pub file: Option<(PathBuf, Result<(), String>)>,
    /// The volume, if one was named.
    pub volume: Option<PathBuf>,
    /// The cluster's name, when the configuration says it.
    pub cluster_name: Option<String>,
    /// This node's number, when the configuration says it.
    pub node: Option<u8>,
    /// The nodes' interconnect addresses by number.
    pub nodes: BTreeMap<u8, SocketAddr>,
    /// What this node listens on, by the setting that says so.
    pub listens: Vec<(String, SocketAddr)>,
    /// Bytes of block cache.
    pub cache_bytes: u64,
    /// Threads that want a core each.
    pub shards: u64,
    /// Whether they share their cores with others.
    pub overprovisioned: bool,
    /// Whether another driver than io_uring is out of the question.
    pub uring_only: bool,
    /// Whether io_uring is not used at all.
    pub poll_only: bool,
    /// Clients at once.
    pub connections: u64,
    /// Whether a node without RDMA is of no use.
    pub rdma: bool,
    /// Whether RDMA is not used although there may be some.
    pub tcp_only: bool,
    /// Microseconds for which a shard looks at the network card before it sleeps; 0: it does not.
    pub busy_poll_us: u64,
    /// Whether the volume's reads and writes are to be polled for.
    pub polled_io: bool,
    /// Whether they are to be NVMe's own commands.
    pub nvme_passthrough: bool,
    /// Where live statistics are published; empty: nowhere.
    pub statistics_folder: PathBuf,
    /// How dead nodes are fenced.
    pub ha: HaConfig,
}

impl Default for Needs {
    fn default() -> Needs {
        let (engine, server) = (EngineConfig::default(), ServerConfig::default());
        Needs {
            file: None,
            volume: None,
            cluster_name: None,
            node: None,
            nodes: BTreeMap::new(),
            listens: vec![("server.pg_address".into(), server.pg_address), ("server.http_address".into(), server.http_address)],
            cache_bytes: CacheFusionConfig::default().global_cache_size.0,
            shards: engine.shards,
            overprovisioned: engine.overprovisioned,
            uring_only: false,
            poll_only: false,
            connections: server.max_connections,
            rdma: false,
            tcp_only: false,
            busy_poll_us: 0,
            polled_io: false,
            nvme_passthrough: false,
            statistics_folder: server.statistics_folder,
            ha: HaConfig::default(),
        }
    }
}

impl Needs {
    /// From a configuration file, if there is one, and the volume of the command line, which comes first.
    #[must_use]
    pub fn read(file: Option<&Path>, volume: Option<&Path>) -> Needs {
        let mut needs = match file {
            None => Needs::default(),
            Some(path) => match Config::read(path) {
                Ok(config) => Needs::of(path, &config),
                Err(error) => Needs { file: Some((path.to_owned(), Err(error.to_string()))), ..Needs::default() },
            },
        };
        if let Some(volume) = volume {
            needs.volume = Some(volume_path(volume));
        }
        needs
    }

    fn of(path: &Path, config: &Config) -> Needs {
        let (me, shards) = (config.node_id(), config.engine.shards);
        let found = config.nodes();
        let state = found.as_ref().map(|_| ()).map_err(ToString::to_string);
        let nodes = found.unwrap_or_default();
        let mut listens = vec![
            ("server.pg_address".to_owned(), config.server.pg_address),
            ("server.http_address".to_owned(), config.server.http_address),
        ];
        if let Some(own) = nodes.get(&me) {
            for shard in 0..shards {
                let port = own.port().saturating_add(shard as u16);
                listens.push((format!("the interconnect's, shard {shard}"), SocketAddr::new(own.ip(), port)));
            }
        }
        Needs {
            file: Some((path.to_owned(), state)),
            volume: Some(volume_path(&config.rac.storage.shared_storage_path)),
            cluster_name: Some(config.cluster.cluster_name.clone()),
            node: Some(me.0),
            nodes: nodes.iter().map(|(node, address)| (node.0, *address)).collect(),
            listens,
            cache_bytes: config.rac.cache_fusion.global_cache_size.0,
            shards,
            overprovisioned: config.engine.overprovisioned,
            uring_only: config.engine.io_driver == IoDriver::Uring,
            poll_only: config.engine.io_driver == IoDriver::Poll,
            connections: config.server.max_connections,
            rdma: config.rac.interconnect.protocol == Protocol::Rdma,
            tcp_only: config.rac.interconnect.protocol == Protocol::Tcp,
            busy_poll_us: config.rac.interconnect.busy_poll_us,
            polled_io: config.rac.storage.polled_io,
            nvme_passthrough: config.rac.storage.nvme_passthrough,
            statistics_folder: config.server.statistics_folder.clone(),
            ha: config.ha.clone(),
        }
    }

    /// The address of this node's interconnect.
    #[must_use]
    pub fn own_address(&self) -> Option<IpAddr> {
        self.node.and_then(|me| self.nodes.get(&me)).map(SocketAddr::ip)
    }

    /// Whether the configuration asks for RDMA, be it only where it is to be had.
    #[must_use]
    pub fn asks_for_rdma(&self) -> bool {
        self.rdma || self.configured() && !self.tcp_only
    }

    /// The other nodes that the configuration names.
    #[must_use]
    pub fn peers(&self) -> usize {
        self.nodes.keys().filter(|node| Some(**node) != self.node).count()
    }

    /// Whether a method is among those that may fence.
    #[must_use]
    pub fn fences_by(&self, method: FencingMethod) -> bool {
        self.ha.fencing_method.as_slice().contains(&method)
    }

    /// Whether the configuration was read, and so says what is wanted.
    #[must_use]
    pub fn configured(&self) -> bool {
        matches!(self.file, Some((_, Ok(()))))
    }

    /// A size of memory with where it comes from.
    #[must_use]
    pub fn cache_words(&self) -> String {
        let origin = if self.configured() { "global_cache_size" } else { "the default global_cache_size" };
        format!("{} of block cache ({origin})", ByteSize(self.cache_bytes))
    }
}
