//! What can be wrong with a volume, in words that tell an operator what happened, to what, and what to do now.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::block::BlockFault;
use super::sector::{SectorFault, SectorKind, VOLUME_FORMAT};
use crate::ids::{BlockId, BlockNo, NodeId};
use crate::reactor::LeaseOver;

/// Why a volume takes no more writes of this life of a node, though nothing is wrong with the disk: the node's next life
/// may write again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The device says so: a reservation conflict, in the kernel's word.
    Fenced,
    /// The node does not try: its lease was not renewed in time, and others may already go on without it.
    LeaseOver,
}

impl Refusal {
    /// Whether a write failed for this.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<Refusal> {
        let lease_over = error.get_ref().is_some_and(|source| source.is::<LeaseOver>());
        let fenced = error.raw_os_error() == Some(libc::EBADE);
        if fenced { Some(Refusal::Fenced) } else { lease_over.then_some(Refusal::LeaseOver) }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the volume takes no writes of this life of the node: ")?;
        match self {
            Refusal::Fenced => write!(f, "the others have fenced it; it joins again in its next"),
            Refusal::LeaseOver => write!(f, "{LeaseOver}; it joins again in its next"),
        }
    }
}

/// Why a volume can't be formatted, opened, read or written.
#[derive(Debug)]
pub enum VolumeError {
    /// The operating system or the device refused.
    Io {
        /// The volume.
        path: PathBuf,
        /// What was tried: "open", "read block 7".
        doing: String,
        /// What it said.
        error: io::Error,
    },
    /// Nothing at this place was formatted by RustyDB.
    NotAVolume {
        /// The volume.
        path: PathBuf,
        /// The two copies of the superblock.
        copies: [SectorFault; 2],
    },
    /// Both copies of the superblock are damaged.
    CorruptSuperblock {
        /// The volume.
        path: PathBuf,
        /// The two copies of the superblock.
        copies: [SectorFault; 2],
    },
    /// The superblock is whole and says something impossible.
    BadSuperblock {
        /// The volume.
        path: PathBuf,
        /// What.
        what: String,
    },
    /// A newer program formatted it.
    NewerFormat {
        /// The volume.
        path: PathBuf,
        /// Version of its format.
        format: u16,
    },
    /// An older program wrote the volume.
    OlderFormat {
        /// The volume.
        path: PathBuf,
        /// Its format.
        format: u16,
    },
    /// It belongs to another cluster.
    OtherCluster {
        /// The volume.
        path: PathBuf,
        /// The cluster expected: name or id.
        expected: String,
        /// The cluster that it belongs to: name or id.
        found: String,
    },
    /// The file or device is shorter than the volume on it.
    Truncated {
        /// The volume.
        path: PathBuf,
        /// Its length now, in bytes.
        bytes: u64,
        /// Its length when it was formatted, in bytes.
        expected: u64,
    },
    /// The configuration says another number of shards than the volume.
    OtherShards {
        /// The volume.
        path: PathBuf,
        /// Shards a node that the volume was formatted for.
        volume: u8,
        /// Shards a node in the configuration.
        configured: u8,
    },
    /// The volume has no slot for this node.
    NoSuchNode {
        /// The volume.
        path: PathBuf,
        /// The node.
        node: NodeId,
        /// Nodes that the volume was formatted for.
        nodes_max: u8,
    },
    /// Formatting would destroy data.
    HasData {
        /// The place.
        path: PathBuf,
        /// What is there.
        what: String,
    },
    /// Too small for what was asked.
    TooSmall {
        /// The place.
        path: PathBuf,
        /// Its size, in bytes.
        bytes: u64,
        /// The least that such a volume needs, in bytes.
        minimum: u64,
    },
    /// An option of the formatting is out of its bounds.
    BadOption {
        /// What, with its bounds.
        what: String,
    },
    /// Both copies of a small fact are damaged.
    Sector {
        /// The volume.
        path: PathBuf,
        /// What it tells about.
        kind: SectorKind,
        /// Where it lies.
        block: BlockNo,
        /// What is wrong with either copy.
        faults: [SectorFault; 2],
    },
    /// A block is not what it should be.
    Block {
        /// The volume.
        path: PathBuf,
        /// The block that was asked for.
        id: BlockId,
        /// What is wrong with it.
        fault: BlockFault,
    },
}

impl fmt::Display for VolumeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use VolumeError::*;
        match self {
            Io { path, doing, error } => write!(f, "volume {}: can't {doing}: {error}", path.display()),
            NotAVolume { path, copies: [first, second] } => write!(
                f,
                "{} is not a RustyDB volume (superblock: {first}; its copy: {second}); check shared_storage_path, or format it \
                 with rusty-db-server --init-rac",
                path.display()
            ),
            CorruptSuperblock { path, copies: [first, second] } => write!(
                f,
                "volume {}: both copies of the superblock are unusable (block 0: {first}; block 1: {second}); don't format it: \
                 the data may be whole. Check the device, restore the first 16 KiB from a backup",
                path.display()
            ),
            BadSuperblock { path, what } => write!(f, "volume {}: {what}", path.display()),
            NewerFormat { path, format } => write!(
                f,
                "volume {}: its format {format} is newer than this program's {VOLUME_FORMAT}; start the newer rusty-db-server",
                path.display()
            ),
            OlderFormat { path, format } => write!(
                f,
                "volume {}: its format {format} is older than this program's {VOLUME_FORMAT}, which reads no other; take its data out \
                 with the rusty-db-server that wrote it (COPY or pg_dump), and load it into a new volume. Nothing was changed",
                path.display()
            ),
            OtherCluster { path, expected, found } => write!(
                f,
                "volume {} belongs to the cluster {found}, not to {expected}; check shared_storage_path and the cluster's name in \
                 the configuration. Nothing was changed",
                path.display()
            ),
            Truncated { path, bytes, expected } => write!(
                f,
                "volume {} is cut off: it has {bytes} bytes and was formatted with {expected}; restore its full length (was it \
                 copied, or the LUN resized?) before starting a node",
                path.display()
            ),
            OtherShards { path, volume, configured } => write!(
                f,
                "volume {} was formatted for {volume} shards a node, and the configuration says {configured}; the number is fixed \
                 when the volume is formatted: set it to {volume}",
                path.display()
            ),
            NoSuchNode { path, node, nodes_max } => write!(
                f,
                "volume {} was formatted for nodes 1 to {nodes_max} and has no slot for {node}; correct node_id, or format a volume \
                 for more nodes",
                path.display()
            ),
            HasData { path, what } => write!(
                f,
                "{} holds {what}; formatting would destroy it. Nothing was changed; use another place, or --force if it may go",
                path.display()
            ),
            TooSmall { path, bytes, minimum } => write!(
                f,
                "{} has {bytes} bytes, too few for a volume with these nodes, shards and redo areas: it takes at least {minimum} \
                 ({} MiB)",
                path.display(),
                minimum.div_ceil(1 << 20)
            ),
            BadOption { what } => write!(f, "can't format: {what}"),
            Sector { path, kind, block, faults: [first, second] } => write!(
                f,
                "volume {}: both copies of the {kind} in {block} are unusable (first: {first}; second: {second}); check the device",
                path.display()
            ),
            Block { path, id, fault } => {
                write!(f, "volume {}: {id} can't be used: {fault}; check the device, restore it from a backup", path.display())
            }
        }
    }
}

impl std::error::Error for VolumeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            VolumeError::Io { error, .. } => Some(error),
            _ => None,
        }
    }
}
