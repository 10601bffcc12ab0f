//! A file's content, read once and checked: nothing of it is trusted before.
//!
//! Every offset, length and count is held against the bytes that are there; what is wrong is an error that says what.

use zerocopy::FromBytes;

use super::histogram::Histogram;
use super::layout::{self, FileHeader, GroupEntry, MetricEntry, group, state, text};
use super::process::Process;
use super::reader::ReadError;
use super::schema::{Kind, Metric, Scope};

/// Who writes a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Name of its cluster.
    pub cluster: String,
    /// Number of its cluster's volume.
    pub cluster_id: u128,
    /// The node's number.
    pub node: u16,
    /// How often it has been started.
    pub incarnation: u64,
    /// Its shards.
    pub shards: u16,
    /// Its process.
    pub process: Process,
    /// When the file was made, milliseconds since 1970.
    pub created_ms: u64,
    /// Milliseconds between two publications.
    pub interval_ms: u32,
    /// The program's version.
    pub program_version: String,
}

/// Where in its life a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u64)]
pub enum Stage {
    /// None yet, or a number that this version does not know.
    #[default]
    Unknown = 0,
    /// Opens the volume, connects.
    Starting = 1,
    /// Replays what former lives left.
    Recovering = 2,
    /// Serves.
    Open = 3,
    /// Reaches too few of the others: answers nobody until it does.
    Suspended = 4,
    /// Was told to stop, writes its blocks.
    Stopping = 5,
    /// Has stopped cleanly.
    Stopped = 6,
    /// Has ended for another reason; the detail says which.
    Failed = 7,
}

impl Stage {
    fn from_code(code: u64) -> Stage {
        use Stage::*;
        [Starting, Recovering, Open, Suspended, Stopping, Stopped, Failed]
            .into_iter()
            .find(|stage| *stage as u64 == code)
            .unwrap_or(Unknown)
    }

    /// Whether nothing comes after it in this life.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(self, Stage::Stopped | Stage::Failed)
    }

    /// One word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Stage::Unknown => "unknown",
            Stage::Starting => "starting",
            Stage::Recovering => "recovering",
            Stage::Open => "serving",
            Stage::Suspended => "suspended",
            Stage::Stopping => "stopping",
            Stage::Stopped => "stopped",
            Stage::Failed => "failed",
        }
    }
}

/// What a node says of itself beside its metrics: how it was when it wrote last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    /// When that was, milliseconds since 1970.
    pub heartbeat_ms: u64,
    /// Where in its life it was.
    pub stage: Stage,
    /// Since when, milliseconds since 1970.
    pub stage_since_ms: u64,
    /// What it waited for, or why it has ended; cut to 128 bytes.
    pub detail: String,
    /// The membership's generation.
    pub epoch: u64,
    /// Bit n: node n is a member.
    pub members: u128,
    /// Bit n: node n is being recovered.
    pub lost: u128,
    /// Bit n: node n is one of the cluster's, also when it is away.
    pub configured: u128,
    /// Blocks recovered so far.
    pub blocks_done: u64,
    /// Blocks to recover.
    pub blocks_total: u64,
    /// Recoveries of other nodes that this life has seen to their end.
    pub recoveries: u64,
    /// How long the last took.
    pub recovery_us: u64,
    /// Blocks that it made anew.
    pub recovery_blocks: u64,
}

/// What a metric says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Of a counter or a gauge.
    Number(u64),
    /// Of a histogram.
    Histogram(Histogram),
}

/// The values of the node, or of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Which of the two.
    pub scope: Scope,
    /// The shard's number.
    pub index: u16,
    /// When they were published, milliseconds since 1970; 0 before the first time.
    pub published_ms: u64,
    /// The same on the machine's monotonic clock, in nanoseconds.
    pub published_ns: u64,
    /// The writer was at it: some values are of this publication and some of the one before. Of a dead writer they stay so.
    pub torn: bool,
    /// In the order of those of [`Snapshot::metrics`] that are of this scope.
    pub values: Vec<Value>,
}

/// Everything that a file said at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Who writes it.
    pub header: Header,
    /// How the node is.
    pub state: NodeState,
    /// What there is.
    pub metrics: Vec<Metric>,
    /// Its values.
    pub groups: Vec<Group>,
}

/// Where things stand in a file; checked against its length, which bounds what all values of all groups take.
pub(super) struct Plan {
    pub(super) header: FileHeader,
    pub(super) groups: Vec<GroupEntry>,
    pub(super) metrics: Vec<(Metric, usize)>,
}

fn damaged(what: impl Into<String>) -> ReadError {
    ReadError::Damaged(what.into())
}

impl Plan {
    pub(super) fn of(bytes: &[u8]) -> Result<Plan, ReadError> {
        if !bytes.starts_with(&layout::MAGIC) {
            return Err(ReadError::NotStatistics);
        }
        // The version comes before everything that another one may have elsewhere.
        let version = bytes.get(8..12).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")));
        match version {
            Some(layout::VERSION) => {}
            Some(found) => return Err(ReadError::OtherVersion { found }),
            None => return Err(damaged("it ends within its header")),
        }
        let (header, _) = FileHeader::read_from_prefix(bytes).map_err(|_| damaged("it ends within its header"))?;
        if header.byte_order.get() != layout::BYTE_ORDER {
            return Err(damaged("its mark of the byte order is not that of this layout"));
        }
        if header.file_bytes.get() != bytes.len() as u64 {
            return Err(damaged(format!("it should be {} bytes long and is {}", header.file_bytes, bytes.len())));
        }
        let groups: Vec<GroupEntry> = entries(bytes, header.groups_offset.get(), header.groups.get(), layout::GROUPS_MAX)?;
        let entries: Vec<MetricEntry> = entries(bytes, header.metrics_offset.get(), header.metrics.get(), layout::METRICS_MAX)?;
        let checksum = checksum(&header, &groups, &entries);
        if checksum != header.checksum.get() {
            return Err(damaged("its descriptions do not have the checksum that they should"));
        }
        let mut metrics = Vec::with_capacity(entries.len());
        // What the values of a group of each scope take together.
        let mut bytes_of = [layout::GROUP_HEAD_BYTES as u64; 2];
        for entry in &entries {
            let offset = entry.offset.get() as usize;
            let metric = metric(entry)?;
            let end = offset + metric.kind.words() * 8;
            bytes_of[usize::from(metric.scope == Scope::Shard)] += metric.kind.words() as u64 * 8;
            let fits = |group: &&GroupEntry| group.scope != entry.scope || end as u64 <= group.bytes.get();
            if !offset.is_multiple_of(8) || offset < layout::GROUP_HEAD_BYTES || !groups.iter().all(|group| fits(&group)) {
                return Err(damaged(format!("the value of {} lies outside of its group", metric.name)));
            }
            metrics.push((metric, offset));
        }
        let mut bytes_of_all = 0u64;
        for group in &groups {
            let (offset, length) = (group.offset.get(), group.bytes.get());
            let inside = offset.checked_add(length).is_some_and(|end| end <= bytes.len() as u64);
            let scope = Scope::from_code(group.scope.get()).filter(|_| inside && offset % 8 == 0);
            let Some(scope) = scope else { return Err(damaged("a group of values lies outside of the file")) };
            // What lies over each other could be described again and again, and a reader reserves memory for each description.
            bytes_of_all += length;
            if length < bytes_of[usize::from(scope == Scope::Shard)] || bytes_of_all > bytes.len() as u64 {
                return Err(damaged("its values, or groups of them, lie over each other"));
            }
        }
        if bytes.len() < layout::ENTRIES_OFFSET {
            return Err(damaged("it ends within the node's state"));
        }
        Ok(Plan { header, groups, metrics })
    }

    /// One group out of its bytes.
    pub(super) fn group(&self, entry: &GroupEntry, bytes: &[u8], torn: bool) -> Group {
        let scope = Scope::from_code(entry.scope.get()).expect("checked when planned");
        let ours = self.metrics.iter().filter(|(metric, _)| metric.scope == scope);
        let values = ours.map(|(metric, offset)| {
            let at = offset / 8;
            match Histogram::empty(metric.kind) {
                None => Value::Number(word(bytes, at)),
                Some(mut histogram) => {
                    (histogram.sum, histogram.max) = (word(bytes, at + 1), word(bytes, at + 2));
                    for (number, bucket) in histogram.buckets.iter_mut().enumerate() {
                        *bucket = word(bytes, at + layout::HISTOGRAM_HEAD_WORDS + number);
                    }
                    Value::Histogram(histogram)
                }
            }
        });
        Group {
            scope,
            index: entry.index.get(),
            published_ms: word(bytes, group::PUBLISHED_MS),
            published_ns: word(bytes, group::PUBLISHED_NS),
            torn,
            values: values.collect(),
        }
    }
}

/// What the checksum of a file's descriptions must be.
pub(super) fn checksum(header: &FileHeader, groups: &[GroupEntry], metrics: &[MetricEntry]) -> u32 {
    use zerocopy::IntoBytes;
    let header = FileHeader { checksum: 0.into(), ..*header };
    let sum = crc32c::crc32c(header.as_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(sum, groups.as_bytes()), metrics.as_bytes())
}

fn entries<T: FromBytes>(bytes: &[u8], offset: u32, count: u32, count_max: usize) -> Result<Vec<T>, ReadError> {
    let (offset, count) = (offset as usize, count as usize);
    let end = count.checked_mul(size_of::<T>()).and_then(|length| length.checked_add(offset));
    match end.and_then(|end| bytes.get(offset..end)) {
        Some(bytes) if count <= count_max => {
            Ok(bytes.chunks_exact(size_of::<T>()).map(|entry| T::read_from_bytes(entry).expect("of its size")).collect())
        }
        _ => Err(damaged("its descriptions lie outside of the file")),
    }
}

fn metric(entry: &MetricEntry) -> Result<Metric, ReadError> {
    let name = text(&entry.name);
    let (scope, buckets) = (Scope::from_code(entry.scope.get()), entry.buckets.get());
    let kind = match entry.kind {
        1 => Some(Kind::Counter),
        2 => Some(Kind::Gauge),
        3 if buckets as usize <= layout::BUCKETS_MAX => {
            Some(Kind::Histogram { unit_shift: entry.unit_shift, sub_bits: entry.sub_bits, buckets })
        }
        _ => None,
    };
    let (Some(scope), Some(kind)) = (scope, kind) else {
        return Err(damaged(format!("the description of {name:?} is none")));
    };
    Ok(Metric { labels: text(&entry.labels), unit: text(&entry.unit), help: text(&entry.help), name, scope, kind })
}

/// A word of `bytes`; zero beyond their end.
pub(super) fn word(bytes: &[u8], number: usize) -> u64 {
    let at = number * 8;
    bytes.get(at..at + 8).map_or(0, |word| u64::from_le_bytes(word.try_into().expect("eight bytes")))
}

pub(super) fn node_state(bytes: &[u8]) -> NodeState {
    let word = |number| word(bytes, number);
    let set = |number| u128::from(word(number)) | u128::from(word(number + 1)) << 64;
    let detail: Vec<u8> = (0..layout::DETAIL_WORDS).flat_map(|number| word(state::DETAIL + number).to_le_bytes()).collect();
    NodeState {
        heartbeat_ms: word(state::HEARTBEAT_MS),
        stage: Stage::from_code(word(state::STAGE)),
        stage_since_ms: word(state::STAGE_SINCE_MS),
        detail: text(&detail),
        epoch: word(state::EPOCH),
        members: set(state::MEMBERS),
        lost: set(state::LOST),
        configured: set(state::CONFIGURED),
        blocks_done: word(state::BLOCKS_DONE),
        blocks_total: word(state::BLOCKS_TOTAL),
        recoveries: word(state::RECOVERIES),
        recovery_us: word(state::RECOVERY_US),
        recovery_blocks: word(state::RECOVERY_BLOCKS),
    }
}

pub(super) fn header(header: &FileHeader) -> Header {
    Header {
        cluster: text(&header.cluster_name),
        cluster_id: u128::from_le_bytes(header.cluster_id),
        node: header.node.get(),
        incarnation: header.incarnation.get(),
        shards: header.shards.get(),
        process: Process {
            pid: header.process.get(),
            started: header.process_started.get(),
            namespace: header.process_namespace.get(),
        },
        created_ms: header.created_ms.get(),
        interval_ms: header.interval_ms.get(),
        program_version: text(&header.program_version),
    }
}

impl Snapshot {
    /// A file's whole content, as another node's HTTP port gives it: `GET /api/v1/statistics`.
    ///
    /// # Errors
    /// [`ReadError`]: what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Snapshot, ReadError> {
        let plan = Plan::of(bytes)?;
        let groups = plan.groups.iter().map(|entry| {
            let (offset, length) = (entry.offset.get() as usize, entry.bytes.get() as usize);
            let bytes = &bytes[offset..offset + length];
            plan.group(entry, bytes, word(bytes, group::SEQUENCE) % 2 == 1)
        });
        Ok(Snapshot {
            header: header(&plan.header),
            state: node_state(&bytes[layout::STATE_OFFSET..]),
            groups: groups.collect(),
            metrics: plan.metrics.into_iter().map(|(metric, _)| metric).collect(),
        })
    }

    /// The metrics of a group with their values.
    pub fn values<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = (&'a Metric, &'a Value)> {
        self.metrics.iter().filter(|metric| metric.scope == group.scope).zip(&group.values)
    }

    fn find<'a>(&'a self, shard: Option<u16>, name: &'a str, labels: &'a str) -> impl Iterator<Item = &'a Value> {
        let groups = self.groups.iter().filter(move |group| match shard {
            Some(shard) => group.scope == Scope::Shard && group.index == shard,
            None => true,
        });
        let values = groups.flat_map(|group| self.values(group));
        values.filter(move |(metric, _)| metric.name == name && metric.labels.contains(labels)).map(|(_, value)| value)
    }

    /// The sum of a counter's or a gauge's values whose labels contain `labels`, of one shard or over all.
    #[must_use]
    pub fn sum(&self, shard: Option<u16>, name: &str, labels: &str) -> u64 {
        let numbers = self.find(shard, name, labels).map(|value| match value {
            Value::Number(number) => *number,
            Value::Histogram(_) => 0,
        });
        numbers.fold(0, u64::saturating_add)
    }

    /// A histogram of the same kind, likewise.
    #[must_use]
    pub fn histogram(&self, shard: Option<u16>, name: &str, labels: &str) -> Histogram {
        let mut sum = Histogram::default();
        for value in self.find(shard, name, labels) {
            if let Value::Histogram(histogram) = value {
                sum.add(histogram);
            }
        }
        sum
    }
}
