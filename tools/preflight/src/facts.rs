//! What only system calls tell about a host: plain values, made up in tests, gathered by [`crate::probe`] on a real one.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The user that asked.
    pub user_id: u32,
    /// What io_uring can do here, or the error number that it was refused with.
    pub uring: Option<Result<Uring, i32>>,
    /// Limits of this process.
    pub limits: Limits,
    /// Processors that this process may run on.
    pub processors_allowed: usize,
    /// The clock's synchronisation, by adjtimex.
    pub clock: Option<Result<ClockSync, String>>,
    /// This host's addresses, by interface.
    pub addresses: Vec<(String, IpAddr)>,
    /// Whether each address that a node listens on is free.
    pub listens: Vec<Listen>,
    /// What the server says of itself (`--version`), or why it does not start; `None` where none was found.
    pub server: Option<Result<String, String>>,
    /// Why files can't be made in the folder of live statistics; `None` when they can.
    pub statistics_folder: Option<String>,
    /// The volume, if one was named.
    pub volume: Option<VolumeFacts>,
    /// What NVMe controllers and namespaces under the volume say of themselves, by namespace.
    pub nvme: Vec<(String, Result<NvmeIdentity, String>)>,
    /// The character devices for commands to the namespaces under the volume, or why they can't be opened; only where the
    /// configuration asks for passthrough.
    pub passthrough: Vec<(String, Result<String, String>)>,
    /// What each configured fencing method can do, by its name.
    pub fencing: Vec<(&'static str, Result<String, String>)>,
    /// What a durable write takes; only with `--probe-writes`.
    pub durable: Option<Result<DurableWrites, String>>,
    /// Whether a key could be registered with the device and taken away again; only with `--probe-writes`.
    pub registration: Option<Result<(), String>>,
}

/// What io_uring can do here.
#[derive(Clone, Debug, Default)]
pub struct Uring {
    /// Set-up flags that the kernel takes.
    pub single_issuer: bool,
    /// With `single_issuer`.
    pub defer_taskrun: bool,
    /// Older kernels' way.
    pub coop_taskrun: bool,
    /// Rings that poll the device.
    pub iopoll: bool,
    /// Waiting with a time limit (5.11), and no completion is ever dropped.
    pub needed_features: bool,
    /// Completions of messages that went well can be left out.
    pub skip_success: bool,
    /// Operations that a node needs and the kernel lacks.
    pub missing: Vec<&'static str>,
    /// IORING_OP_MSG_RING
    pub msg_ring: bool,
    /// IORING_OP_SEND_ZC
    pub send_zc: bool,
    /// IORING_OP_URING_CMD
    pub uring_cmd: bool,
    /// Files can be registered; else the error number.
    pub registered_files: Option<i32>,
    /// Memory can be registered (2 MiB were tried); else the error number.
    pub registered_buffers: Option<i32>,
}

/// A limit of getrlimit; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// In force.
    pub soft: Option<u64>,
    /// As far as the process may raise it.
    pub hard: Option<u64>,
}

/// Limits of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// RLIMIT_MEMLOCK, bytes.
    pub locked_memory: Limit,
    /// RLIMIT_NOFILE
    pub open_files: Limit,
    /// RLIMIT_FSIZE, bytes.
    pub file_size: Limit,
    /// RLIMIT_AS, bytes.
    pub address_space: Limit,
    /// RLIMIT_NPROC
    pub threads: Limit,
    /// RLIMIT_CORE, bytes.
    pub core: Limit,
}

/// The kernel's opinion of its clock.
#[derive(Clone, Copy, Debug)]
pub struct ClockSync {
    /// Somebody disciplines it.
    pub synchronised: bool,
    /// It may be off by so much.
    pub error_us_max: i64,
}

/// An address that a node would listen on.
#[derive(Clone, Debug)]
pub struct Listen {
    /// The setting.
    pub setting: String,
    /// Where.
    pub address: SocketAddr,
    /// Why not; `None` when it is free.
    pub refused: Option<String>,
}

/// What kind of thing the volume's path names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VolumeKind {
    /// Nothing.
    #[default]
    Missing,
    /// A plain file.
    File,
    /// A block device.
    Device,
    /// Something that can't be a volume.
    Other,
}

/// The volume.
#[derive(Clone, Debug, Default)]
pub struct VolumeFacts {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub kind: VolumeKind,
    /// The device that it is, or that its file (or the folder where it would be) lies on.
    pub device: Option<(u32, u32)>,
    /// Its length.
    pub bytes: u64,
    /// Its file system's name, when it is a file; by its magic number where it has none here.
    pub file_system: String,
    /// Whether that file system is one that several machines can mount at once.
    pub file_system_shared: bool,
    /// Bytes that the file system has free, when it is a file.
    pub free_bytes: u64,
    /// Whether this process may read and write it; else why not.
    pub access: Option<String>,
    /// Whether it can be read around the page cache; else why not.
    pub direct: Option<String>,
    /// What is on it.
    pub format: VolumeFormat,
}

/// What the superblock says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum VolumeFormat {
    /// It could not be read; the reason is elsewhere.
    #[default]
    Unread,
    /// Nothing of ours.
    Unformatted(String),
    /// Ours, and not usable.
    Unusable(String),
    /// A volume.
    Volume {
        /// For this cluster.
        cluster_name: String,
        /// Nodes 1 to this.
        nodes_max: u8,
        /// Shards a node.
        shards: u8,
        /// Bytes when it was formatted.
        bytes: u64,
    },
}

/// What an NVMe controller and namespace say of themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NvmeIdentity {
    /// The model.
    pub model: String,
    /// It has a volatile write cache.
    pub volatile_cache: bool,
    /// It knows reservations.
    pub reservations: bool,
    /// The namespace may be attached to several controllers.
    pub shared: bool,
}

/// What durable writes of 4 KiB took.
#[derive(Clone, Copy, Debug, Default)]
pub struct DurableWrites {
    /// Median of RWF_DSYNC, microseconds.
    pub dsync_p50_us: u64,
    /// Its worst of a hundred.
    pub dsync_max_us: u64,
    /// Median of a write and fdatasync, microseconds.
    pub sync_p50_us: u64,
}
