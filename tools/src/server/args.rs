//! The server's arguments. `--help` is the first manual that an operator reads, so it has examples.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use rustydb::config::ByteSize;
use rustydb::volume;

const EXAMPLES: &str = "\
Examples:
  rusty-db-server dev                                    three nodes on this machine, volume in ./data
  rusty-db-server dev --nodes 1 --data-dir /tmp/db       one node, elsewhere
  rusty-db-server --init-rac --shared-storage /dev/sdx \\
      --cluster-name production --shards 4               format a shared volume, once
  rusty-db-server --init-rac --shared-storage /mnt/db \\
      --volume-size 100GiB --init-zero redo              a large file, at once: reserved, not written
  rusty-db-server --config /etc/rustydb/node1.toml       start this node";

/// With what nodes can talk by. `rusty-db-preflight` reads it (RDB-RDMA-008).
const VERSION: &str = if cfg!(feature = "rdma") {
    concat!(env!("CARGO_PKG_VERSION"), " (TCP and RDMA)")
} else {
    concat!(env!("CARGO_PKG_VERSION"), " (TCP; built without RDMA)")
};

/// RustyDB: a clustered SQL database whose nodes share one disk.
#[derive(Debug, Parser)]
#[command(name = "rusty-db-server", version = VERSION, after_help = EXAMPLES)]
pub struct Arguments {
    #[command(subcommand)]
    pub(super) command: Option<Command>,

    /// Start one node with the settings of this file
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    /// Format a shared volume for a new cluster, then stop
    #[arg(long, requires = "shared_storage")]
    pub(super) init_rac: bool,

    /// The volume to format: a block device, a file, or a folder for one
    #[arg(long, value_name = "PATH", requires = "init_rac")]
    pub(super) shared_storage: Option<PathBuf>,

    /// Name of the new cluster; every node's configuration must say the same
    #[arg(long, value_name = "NAME", default_value = "rustydb")]
    pub(super) cluster_name: String,

    /// Most nodes that the new cluster can ever have
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(super) max_nodes: u8,

    /// Shards (threads that own data) of each node; fixed for the volume's life
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) shards: u8,

    /// Size of the volume when it is a file
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub(super) volume_size: ByteSize,

    /// What is written with zeros: all, so that no commit waits for a file system's first writes (see PostgreSQL's wal_init_zero),
    /// or redo: the redo areas only, at once [default: all of a file, redo of a block device]
    #[arg(long, value_name = "WHAT", value_enum, requires = "init_rac", hide_possible_values = true)]
    pub(super) init_zero: Option<InitZero>,

    /// Format even over a volume that holds data: ALL OF IT IS LOST
    #[arg(long, requires = "init_rac")]
    pub(super) force: bool,
}

/// What of a new volume is written with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum InitZero {
    /// All of it
    All,
    /// The redo areas, and what stands before them
    Redo,
}

impl From<InitZero> for volume::InitZero {
    fn from(chosen: InitZero) -> volume::InitZero {
        match chosen {
            InitZero::All => volume::InitZero::All,
            InitZero::Redo => volume::InitZero::Redo,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a whole cluster on this machine, for development; Ctrl-C stops it cleanly
    Dev(DevOptions),
}

/// A cluster on loopback: node N listens on 127.0.0.N.
#[derive(Clone, Debug, Args)]
pub struct DevOptions {
    /// Nodes to start, each a process of its own
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub(super) nodes: u8,

    /// Folder for the volume, the nodes' configurations and their logs
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub(super) data_dir: PathBuf,

    /// Size of the shared volume when it is made
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub(super) volume_size: ByteSize,

    /// What of the shared volume is written with zeros when it is made: all (before you measure), or redo: the redo areas only
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = InitZero::Redo, hide_possible_values = true)]
    pub(super) init_zero: InitZero,

    /// Block cache of each node
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    pub(super) cache_size: ByteSize,

    /// Shards of each node; fixed when the volume is made
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(super) shards: u8,

    /// PostgreSQL port of every node
    #[arg(long, value_name = "PORT", default_value_t = 5432)]
    pub(super) pg_port: u16,

    /// HTTP port of every node
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub(super) http_port: u16,

    /// Interconnect port of every node's first shard; shard i listens on this plus i
    #[arg(long, value_name = "PORT", default_value_t = 7433)]
    pub(super) interconnect_port: u16,

    /// Port of every node for native clients over TCP; 0: none. On this machine they come in by DIR/nodeN.native anyway
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub(super) native_port: u16,

    /// How the nodes do their I/O: auto, uring or poll
    #[arg(long, value_name = "DRIVER", default_value = "auto", value_parser = ["auto", "uring", "poll"])]
    pub(super) io_driver: String,
}
