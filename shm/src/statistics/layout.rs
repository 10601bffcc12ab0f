//! The file's structures as they lie in it, little-endian. `docs/formats.md` draws them; where the two differ, this is right.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first bytes of every file.
pub const MAGIC: [u8; 8] = *b"RdbStats";
/// This layout. A reader refuses every other.
pub const VERSION: u32 = 1;
/// As this number stands in the file, so do all others.
pub const BYTE_ORDER: u32 = 0x0102_0304;
/// Longest file that is written or read.
pub const FILE_BYTES_MAX: u64 = 64 << 20;
/// Most metrics that a file describes.
pub const METRICS_MAX: usize = 4096;
/// Most groups of values: the node's, and one for each shard.
pub const GROUPS_MAX: usize = 1024;
/// Most buckets of a histogram.
pub const BUCKETS_MAX: usize = 4096;

/// What stands still in a file's life.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct FileHeader {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: U32,
    /// [`BYTE_ORDER`].
    pub byte_order: U32,
    /// Length of the whole file.
    pub file_bytes: U64,
    /// crc32c of this header, the groups' and the metrics' entries, with this field taken as zero.
    pub checksum: U32,
    /// Milliseconds between two publications.
    pub interval_ms: U32,
    /// The volume's.
    pub cluster_id: [u8; 16],
    /// This life of the node.
    pub incarnation: U64,
    /// The node's number.
    pub node: U16,
    /// Its shards.
    pub shards: U16,
    /// Its process, in the namespace below.
    pub process: U32,
    /// When that started, in clock ticks since the machine did: field 22 of /proc/PID/stat.
    pub process_started: U64,
    /// The process's PID namespace: inode of /proc/PID/ns/pid.
    pub process_namespace: U64,
    /// When the file was made, milliseconds since 1970.
    pub created_ms: U64,
    /// Where the entries of the groups stand.
    pub groups_offset: U32,
    /// How many they are.
    pub groups: U32,
    /// Where the entries of the metrics stand.
    pub metrics_offset: U32,
    /// How many they are.
    pub metrics: U32,
    /// The cluster's name, UTF-8, padded with zeros.
    pub cluster_name: [u8; 64],
    /// The program's version, UTF-8, padded with zeros.
    pub program_version: [u8; 32],
    /// Zero.
    pub reserved: [u8; 56],
}

/// How the node is: one group of words of its own behind the header, written by one thread.
pub const STATE_OFFSET: usize = 256;
/// Words of the text that says what the node waits for.
pub const DETAIL_WORDS: usize = 16;
/// Offsets of the state's words, counted from [`STATE_OFFSET`] in words of 8 bytes.
pub mod state {
    /// Odd while the words are being written; grows with each writing.
    pub const SEQUENCE: usize = 0;
    /// When they were, milliseconds since 1970.
    pub const HEARTBEAT_MS: usize = 1;
    /// Stage of the node's life: see [`super::super::Stage`].
    pub const STAGE: usize = 2;
    /// Since when, milliseconds since 1970.
    pub const STAGE_SINCE_MS: usize = 3;
    /// The membership's generation.
    pub const EPOCH: usize = 4;
    /// Members: bit n of the two words is node n.
    pub const MEMBERS: usize = 5;
    /// Nodes that are being recovered, likewise.
    pub const LOST: usize = 7;
    /// The cluster's nodes, likewise, those that are away too.
    pub const CONFIGURED: usize = 9;
    /// Blocks recovered so far.
    pub const BLOCKS_DONE: usize = 11;
    /// Blocks to recover.
    pub const BLOCKS_TOTAL: usize = 12;
    /// Recoveries that this life has seen to their end.
    pub const RECOVERIES: usize = 13;
    /// How long the last took, microseconds.
    pub const RECOVERY_US: usize = 14;
    /// Blocks that it made anew.
    pub const RECOVERY_BLOCKS: usize = 15;
    /// What the node waits for: UTF-8, padded with zeros.
    pub const DETAIL: usize = 16;
    /// All of them.
    pub const WORDS: usize = DETAIL + super::DETAIL_WORDS;
}
/// Where the entries begin.
pub const ENTRIES_OFFSET: usize = STATE_OFFSET + state::WORDS * 8;

/// A group: the values of the node, or of one shard.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GroupEntry {
    /// Where it stands in the file, a multiple of 64.
    pub offset: U64,
    /// Its length, [`GROUP_HEAD_BYTES`] included.
    pub bytes: U64,
    /// 1 the node's, 2 a shard's.
    pub scope: U16,
    /// The shard's number; 0 for the node.
    pub index: U16,
    /// Zero.
    pub reserved: [u8; 12],
}

/// Words before a group's values.
pub mod group {
    /// Odd while the group is being written; grows with each publication.
    pub const SEQUENCE: usize = 0;
    /// When it was published, milliseconds since 1970.
    pub const PUBLISHED_MS: usize = 1;
    /// The same on the monotonic clock of the machine, nanoseconds.
    pub const PUBLISHED_NS: usize = 2;
    /// The words up to here; the rest of the line is zero.
    pub const HEAD_WORDS: usize = 8;
}
/// Bytes before a group's values.
pub const GROUP_HEAD_BYTES: usize = group::HEAD_WORDS * 8;

/// A metric: the same for every group of its scope.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct MetricEntry {
    /// UTF-8, padded with zeros, as all texts here.
    pub name: [u8; 64],
    /// What tells it from others of the same name: `path="two_way",mode="x"`.
    pub labels: [u8; 48],
    /// Of its values: `blocks`, `bytes`, `ns`.
    pub unit: [u8; 16],
    /// A sentence.
    pub help: [u8; 112],
    /// Where its value stands, counted from the beginning of a group; a multiple of 8.
    pub offset: U32,
    /// 1 the node's, 2 of each shard.
    pub scope: U16,
    /// 1 counter, 2 gauge, 3 histogram.
    pub kind: u8,
    /// Histograms: values are counted in units of 2 to this.
    pub unit_shift: u8,
    /// Histograms: each power of two is divided into 2 to this buckets.
    pub sub_bits: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Histograms: buckets. Before them stand three words: count, sum, greatest value.
    pub buckets: U32,
}

/// Words of a histogram before its buckets: count, sum, greatest value.
pub const HISTOGRAM_HEAD_WORDS: usize = 3;

const _: () = assert!(size_of::<FileHeader>() == STATE_OFFSET);
const _: () = assert!(offset_of!(FileHeader, cluster_name) == 104);
const _: () = assert!(ENTRIES_OFFSET == 512);
const _: () = assert!(size_of::<GroupEntry>() == 32);
const _: () = assert!(size_of::<MetricEntry>() == 256);
const _: () = assert!(offset_of!(MetricEntry, offset) == 240);

/// The text in a padded field; what is no UTF-8 is replaced.
pub(crate) fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// A text as a padded field; cut at a character's border when it is too long.
pub(crate) fn field<const N: usize>(text: &str) -> [u8; N] {
    let mut end = text.len().min(N);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut field = [0; N];
    field[..end].copy_from_slice(&text.as_bytes()[..end]);
    field
}
