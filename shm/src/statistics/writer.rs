//! Making a file and publishing into it.
//!
//! A [`GroupWriter`] belongs to the one thread whose values it publishes: relaxed stores between two changes of the group's
//! sequence, no lock, no wait, no system call. The file is made beside its place with all its pages and put there when it is
//! whole, over that of a former life: who reads that one reads on.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{SystemTime, UNIX_EPOCH};

use memmap2::{MmapOptions, MmapRaw};
use zerocopy::IntoBytes;

use super::layout::{self, FileHeader, GroupEntry, MetricEntry, field, group, state};
use super::process::own_process;
use super::reader::Reader;
use super::schema::{Kind, Metric, Scope};
use super::snapshot::{NodeState, checksum};

/// Whose file it will be.
#[derive(Clone, Debug)]
pub struct Description {
    /// Name of the cluster.
    pub cluster: String,
    /// Number of its volume.
    pub cluster_id: u128,
    /// The node's number.
    pub node: u16,
    /// This life of it.
    pub incarnation: u64,
    /// Its shards.
    pub shards: u16,
    /// Milliseconds between two publications.
    pub interval_ms: u32,
    /// The program's version.
    pub program_version: String,
}

impl Description {
    /// Where the file belongs in a folder: its cluster's name, the first digits of its volume's number, its node.
    #[must_use]
    pub fn path_in(&self, folder: &Path) -> PathBuf {
        let plain = |letter: char| if letter.is_ascii_alphanumeric() || "-_.".contains(letter) { letter } else { '_' };
        let cluster: String = self.cluster.chars().map(plain).collect();
        folder.join(format!("rustydb-{cluster}-{:08x}-node{}.stats", (self.cluster_id >> 96) as u32, self.node))
    }
}

/// The file's memory, shared by its writers; each stores into its own part only.
struct Memory {
    map: MmapRaw,
    _file: File,
}

impl Memory {
    /// The words from a byte on.
    fn words(&self, offset: usize, count: usize) -> &[AtomicU64] {
        assert!(offset.is_multiple_of(8) && offset + count * 8 <= self.map.len(), "words outside of the statistics file");
        // SAFETY: the range lies within the mapping, which lives as long as self and was made on a whole page, so that
        // words are aligned; all access to it, from here on and by other processes of this version, is by whole words
        // that are atomic here, and any bits are a valid word.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(offset).cast::<AtomicU64>(), count) }
    }
}

fn store(word: &AtomicU64, value: u64) {
    word.store(value.to_le(), Ordering::Relaxed);
}

/// Runs `write` between two changes of the sequence: readers can tell that it was under way.
fn in_sequence(sequence: &AtomicU64, write: impl FnOnce()) {
    let before = u64::from_le(sequence.load(Ordering::Relaxed));
    store(sequence, before.wrapping_add(1));
    fence(Ordering::Release);
    write();
    sequence.store(before.wrapping_add(2).to_le(), Ordering::Release);
}

/// Publishes how the node is.
pub struct NodeWriter {
    memory: Arc<Memory>,
}

impl NodeWriter {
    /// Says how the node is: this is its heartbeat.
    pub fn publish(&mut self, now: &NodeState) {
        let words = self.memory.words(layout::STATE_OFFSET, state::WORDS);
        in_sequence(&words[state::SEQUENCE], || {
            let put = |number: usize, value| store(&words[number], value);
            let put_set = |number: usize, set: u128| {
                put(number, set as u64);
                put(number + 1, (set >> 64) as u64);
            };
            put(state::HEARTBEAT_MS, now.heartbeat_ms);
            put(state::STAGE, now.stage as u64);
            put(state::STAGE_SINCE_MS, now.stage_since_ms);
            put(state::EPOCH, now.epoch);
            put_set(state::MEMBERS, now.members);
            put_set(state::LOST, now.lost);
            put_set(state::CONFIGURED, now.configured);
            put(state::BLOCKS_DONE, now.blocks_done);
            put(state::BLOCKS_TOTAL, now.blocks_total);
            put(state::RECOVERIES, now.recoveries);
            put(state::RECOVERY_US, now.recovery_us);
            put(state::RECOVERY_BLOCKS, now.recovery_blocks);
            let detail: [u8; layout::DETAIL_WORDS * 8] = field(&now.detail);
            for (number, bytes) in detail.chunks_exact(8).enumerate() {
                put(state::DETAIL + number, u64::from_le_bytes(bytes.try_into().expect("eight bytes")));
            }
        });
    }
}

/// Publishes one group's values. Not `Clone`: there is one for each group.
pub struct GroupWriter {
    memory: Arc<Memory>,
    offset: usize,
    words: usize,
}

impl GroupWriter {
    /// Publishes: `fill` puts every value, in the order of the metrics of the group's scope.
    ///
    /// # Panics
    /// When it puts more or fewer than there are.
    pub fn publish(&mut self, now_ms: u64, now_ns: u64, fill: impl FnOnce(&mut Slots<'_>)) {
        let words = self.memory.words(self.offset, self.words);
        in_sequence(&words[group::SEQUENCE], || {
            store(&words[group::PUBLISHED_MS], now_ms);
            store(&words[group::PUBLISHED_NS], now_ns);
            let mut slots = Slots { words: words[group::HEAD_WORDS..].iter() };
            fill(&mut slots);
            assert!(slots.words.next().is_none(), "fewer values were published than were described");
        });
    }
}

/// Where a group's values go, one after the other.
pub struct Slots<'a> {
    words: std::slice::Iter<'a, AtomicU64>,
}

impl Slots<'_> {
    /// The next counter or gauge.
    pub fn put(&mut self, value: u64) {
        store(self.words.next().expect("more values are published than were described"), value);
    }

    /// The next histogram.
    pub fn put_histogram(&mut self, count: u64, sum: u64, max: u64, buckets: &[u64]) {
        [count, sum, max].iter().chain(buckets).for_each(|value| self.put(*value));
    }
}

/// What publishes into a new file.
pub struct Writers {
    /// Says how the node is.
    pub state: NodeWriter,
    /// The node's own metrics.
    pub node: GroupWriter,
    /// Each shard's, in order.
    pub shards: Vec<GroupWriter>,
    /// Reads what they write.
    pub reader: Reader,
}

/// Makes the file at `path`, over that of a former life, with every value zero.
///
/// # Errors
/// The system's: no such folder, no room, no right to write there.
///
/// # Panics
/// With more metrics or shards than a file describes.
pub fn create(path: &Path, description: &Description, metrics: &[Metric]) -> io::Result<Writers> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}.new", std::process::id()));
    let fresh = PathBuf::from(fresh);
    // A leftover of a process of the same number, long dead.
    fs::remove_file(&fresh).ok();
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(&fresh)?;
    let made = fill(file, description, metrics).and_then(|writers| {
        // Whoever may write to it could cut it short under the node's hands: nobody may by mistake.
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o444))?;
        fs::rename(&fresh, path)?;
        Ok(writers)
    });
    made.inspect_err(|_| {
        fs::remove_file(&fresh).ok();
    })
}

/// The same in memory that has no name, for those who are handed its reader.
///
/// # Errors
/// The system's: no memory.
///
/// # Panics
/// As [`create`].
pub fn create_unnamed(description: &Description, metrics: &[Metric]) -> io::Result<Writers> {
    // SAFETY: the name is a string that ends with a zero; the descriptor that comes back is nobody's yet.
    let file = unsafe {
        match libc::memfd_create(c"rustydb statistics".as_ptr(), libc::MFD_CLOEXEC) {
            -1 => return Err(io::Error::last_os_error()),
            descriptor => File::from_raw_fd(descriptor),
        }
    };
    fill(file, description, metrics)
}

fn fill(file: File, description: &Description, metrics: &[Metric]) -> io::Result<Writers> {
    let (header, groups, entries) = plan(description, metrics);
    let length = header.file_bytes.get();
    // All pages are there before the first store: a full memory file system is an error here and no signal later.
    // SAFETY: a descriptor that we own.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length as libc::off_t) } {
        0 => {}
        error => return Err(io::Error::from_raw_os_error(error)),
    }
    file.write_all_at(header.as_bytes(), 0)?;
    file.write_all_at(groups.as_bytes(), u64::from(header.groups_offset.get()))?;
    file.write_all_at(entries.as_bytes(), u64::from(header.metrics_offset.get()))?;
    let map = MmapOptions::new().len(length as usize).map_raw(&file)?;
    let reader = Reader::of(file.try_clone()?);
    let memory = Arc::new(Memory { map, _file: file });
    let mut writers = groups.iter().map(|entry| GroupWriter {
        memory: memory.clone(),
        offset: entry.offset.get() as usize,
        words: entry.bytes.get() as usize / 8,
    });
    let node = writers.next().expect("the node's group is the first");
    let shards = writers.collect();
    let state = NodeWriter { memory: memory.clone() };
    Ok(Writers { state, node, shards, reader })
}

fn plan(description: &Description, metrics: &[Metric]) -> (FileHeader, Vec<GroupEntry>, Vec<MetricEntry>) {
    assert!(metrics.len() <= layout::METRICS_MAX, "a file describes at most {} metrics", layout::METRICS_MAX);
    let groups = 1 + usize::from(description.shards);
    assert!(groups <= layout::GROUPS_MAX, "a file has at most {} groups", layout::GROUPS_MAX);
    let mut bytes_of = [layout::GROUP_HEAD_BYTES; 2];
    let mut entries = Vec::with_capacity(metrics.len());
    for metric in metrics {
        let bytes = &mut bytes_of[usize::from(metric.scope == Scope::Shard)];
        entries.push(entry(metric, *bytes));
        *bytes += metric.kind.words() * 8;
    }
    let groups_offset = layout::ENTRIES_OFFSET;
    let metrics_offset = groups_offset + groups * size_of::<GroupEntry>();
    let mut offset = (metrics_offset + size_of_val(entries.as_slice())).next_multiple_of(64);
    let scopes = std::iter::once((Scope::Node, 0)).chain((0..description.shards).map(|shard| (Scope::Shard, shard)));
    let groups: Vec<GroupEntry> = scopes
        .map(|(scope, index)| {
            let bytes = bytes_of[usize::from(scope == Scope::Shard)];
            let group = GroupEntry {
                offset: (offset as u64).into(),
                bytes: (bytes as u64).into(),
                scope: scope.code().into(),
                index: index.into(),
                reserved: [0; 12],
            };
            offset = (offset + bytes).next_multiple_of(64);
            group
        })
        .collect();
    let process = own_process();
    let created_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
    let mut header = FileHeader {
        magic: layout::MAGIC,
        version: layout::VERSION.into(),
        byte_order: layout::BYTE_ORDER.into(),
        file_bytes: (offset.next_multiple_of(4096) as u64).into(),
        checksum: 0.into(),
        interval_ms: description.interval_ms.into(),
        cluster_id: description.cluster_id.to_le_bytes(),
        incarnation: description.incarnation.into(),
        node: description.node.into(),
        shards: description.shards.into(),
        process: process.pid.into(),
        process_started: process.started.into(),
        process_namespace: process.namespace.into(),
        created_ms: created_ms.into(),
        groups_offset: (groups_offset as u32).into(),
        groups: (groups.len() as u32).into(),
        metrics_offset: (metrics_offset as u32).into(),
        metrics: (entries.len() as u32).into(),
        cluster_name: field(&description.cluster),
        program_version: field(&description.program_version),
        reserved: [0; 56],
    };
    header.checksum = checksum(&header, &groups, &entries).into();
    (header, groups, entries)
}

fn entry(metric: &Metric, offset: usize) -> MetricEntry {
    let (unit_shift, sub_bits, buckets) = match metric.kind {
        Kind::Counter | Kind::Gauge => (0, 0, 0),
        Kind::Histogram { unit_shift, sub_bits, buckets } => (unit_shift, sub_bits, buckets),
    };
    MetricEntry {
        name: field(&metric.name),
        labels: field(&metric.labels),
        unit: field(&metric.unit),
        help: field(&metric.help),
        offset: (offset as u32).into(),
        scope: metric.scope.code().into(),
        kind: metric.kind.code(),
        unit_shift,
        sub_bits,
        reserved: [0; 3],
        buckets: buckets.into(),
    }
}
