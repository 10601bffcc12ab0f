use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::layout::{self, FileHeader, GroupEntry, MetricEntry};
use super::snapshot::checksum;
use super::*;

struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("rustydb-shm-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).expect("a folder of our own");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn metric(name: &str, labels: &str, scope: Scope, kind: Kind) -> Metric {
    let (name, labels) = (name.to_owned(), labels.to_owned());
    Metric { name, labels, unit: "ns".into(), help: format!("What is called {:?}", kind), scope, kind }
}

const HISTOGRAM: Kind = Kind::Histogram { unit_shift: 8, sub_bits: 3, buckets: 208 };

fn metrics() -> Vec<Metric> {
    vec![
        metric("rustydb_sessions", "", Scope::Node, Kind::Gauge),
        metric("rustydb_hits_total", "", Scope::Shard, Kind::Counter),
        metric("rustydb_wait_seconds", "mode=\"s\"", Scope::Shard, HISTOGRAM),
        metric("rustydb_wait_seconds", "mode=\"x\"", Scope::Shard, HISTOGRAM),
        metric("rustydb_misses_total", "", Scope::Shard, Kind::Counter),
    ]
}

fn description(incarnation: u64) -> Description {
    Description {
        cluster: "tested".into(),
        cluster_id: 0xABCD_EF01 << 96,
        node: 3,
        incarnation,
        shards: 2,
        interval_ms: 250,
        program_version: "0.7.0".into(),
    }
}

fn state(heartbeat_ms: u64, stage: Stage) -> NodeState {
    let detail = "waits for node2".into();
    NodeState { heartbeat_ms, stage, stage_since_ms: 1010, detail, epoch: 7, members: 0b1010, ..NodeState::default() }
}

fn publish(writers: &mut Writers, value: u64) {
    writers.state.publish(&state(1000 + value, Stage::Open));
    writers.node.publish(1000 + value, value, |slots| slots.put(value));
    for shard in &mut writers.shards {
        shard.publish(1000 + value, value, |slots| {
            slots.put(value);
            for _ in 0..2 {
                let mut buckets = [0; 208];
                buckets[40] = value;
                slots.put_histogram(value, value * 5000, 6000, &buckets);
            }
            slots.put(value);
        });
    }
}

fn written(folder: &Folder) -> (PathBuf, Writers) {
    let path = description(1).path_in(&folder.0);
    let mut writers = create(&path, &description(1), &metrics()).expect("there is room");
    publish(&mut writers, 10);
    (path, writers)
}

fn read(path: &Path) -> Result<Snapshot, ReadError> {
    Reader::open(path)?.snapshot()
}

#[test]
fn what_is_published_is_read() {
    let folder = Folder::new();
    let (path, _writers) = written(&folder);
    assert_eq!(find(&folder.0).expect("it is there"), std::slice::from_ref(&path));
    assert_eq!(path.file_name().expect("a name"), "rustydb-tested-abcdef01-node3.stats");
    let snapshot = read(&path).expect("whole");
    assert_eq!((snapshot.header.node, snapshot.header.cluster.as_str(), snapshot.header.shards), (3, "tested", 2));
    assert_eq!(snapshot.header.process, own_process());
    assert_eq!((snapshot.state.stage, snapshot.state.detail.as_str()), (Stage::Open, "waits for node2"));
    assert_eq!((snapshot.state.epoch, snapshot.state.members, snapshot.state.stage_since_ms), (7, 0b1010, 1010));
    assert_eq!(snapshot.metrics, metrics());
    assert!(snapshot.groups.iter().all(|group| !group.torn && group.published_ms == 1010));
    let sums = |shard| (snapshot.sum(shard, "rustydb_hits_total", ""), snapshot.sum(None, "rustydb_sessions", ""));
    assert_eq!((sums(None), sums(Some(1))), ((20, 10), (10, 10)));
    let waits = snapshot.histogram(None, "rustydb_wait_seconds", "mode=\"x\"");
    assert_eq!((waits.count(), waits.quantile(0.99), waits.mean()), (20, Some(6000), Some(5000.0)));
    assert_eq!(waits.since(&snapshot.histogram(Some(0), "rustydb_wait_seconds", "mode=\"s\"")).count(), 10);

    let text = prometheus(&snapshot);
    assert!(text.contains("# TYPE rustydb_wait_seconds histogram\n"), "{text}");
    assert!(text.contains("rustydb_hits_total{cluster=\"tested\",node=\"node3\",shard=\"1\"} 10\n"), "{text}");
    let sum = "rustydb_wait_seconds_sum{cluster=\"tested\",node=\"node3\",shard=\"0\",mode=\"x\"} 0.00005\n";
    assert!(text.contains(sum), "{text}");
}

#[test]
fn the_bytes_are_where_the_page_on_formats_draws_them() {
    let folder = Folder::new();
    let (path, _writers) = written(&folder);
    let bytes = std::fs::read(path).expect("readable by everybody");
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
    let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
    assert_eq!((&bytes[..8], half(8), &bytes[12..16]), (&b"RdbStats"[..], 1, &[4, 3, 2, 1][..]));
    assert_eq!((word(16), half(28), word(48), bytes[56], bytes[58]), (bytes.len() as u64, 250, 1, 3, 2));
    assert_eq!((half(60), &bytes[104..110], &bytes[168..173]), (std::process::id(), &b"tested"[..], &b"0.7.0"[..]));
    // The node's state: written once.
    assert_eq!((word(256), word(264), word(272), word(280), word(288), word(296)), (2, 1010, 3, 1010, 7, 0b1010));
    assert_eq!(&bytes[384..399], b"waits for node2");
    let (groups, group_count, metrics, metric_count) = (half(88), half(92), half(96), half(100));
    assert_eq!((groups, group_count, metrics, metric_count), (512, 3, 512 + 3 * 32, 5));
    // The second shard's group, and its last metric in it.
    let group = 512 + 2 * 32;
    assert_eq!((bytes[group + 16], bytes[group + 18]), (2, 1));
    let metric = metrics as usize + 4 * 256;
    assert_eq!((&bytes[metric..metric + 20], bytes[metric + 246]), (&b"rustydb_misses_total"[..], 1));
    assert_eq!(word(word(group) as usize + half(metric + 240) as usize), 10);
    assert_eq!(word(word(group) as usize), 2, "published once");
}

#[test]
fn a_reader_sees_each_publication_whole_while_the_next_ones_are_made() {
    let folder = Folder::new();
    let (path, mut writers) = written(&folder);
    let done = Arc::new(AtomicBool::new(false));
    let stop = done.clone();
    let writer = std::thread::spawn(move || {
        for value in 11.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            publish(&mut writers, value);
            // A node pauses far longer between two.
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    });
    let reader = Reader::open(&path).expect("it is there");
    let mut whole = 0;
    for _ in 0..300 {
        let snapshot = reader.snapshot().expect("undamaged");
        for group in snapshot.groups.iter().filter(|group| !group.torn) {
            whole += 1;
            for (metric, value) in snapshot.values(group) {
                let value = match value {
                    Value::Number(number) => *number,
                    Value::Histogram(histogram) => histogram.count(),
                };
                assert_eq!(value, group.published_ns, "{} is of another publication", metric.name);
            }
        }
    }
    done.store(true, Ordering::Relaxed);
    writer.join().expect("it only publishes");
    assert!(whole > 300, "a reader finds whole groups: {whole}");
}

#[test]
fn a_writer_that_died_while_it_published_leaves_a_file_that_says_so() {
    let folder = Folder::new();
    let (path, mut writers) = written(&folder);
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        writers.shards[0].publish(2000, 11, |slots| {
            slots.put(11);
            panic!("in the middle");
        });
    }));
    assert!(died.is_err());
    let snapshot = read(&path).expect("undamaged");
    let torn: Vec<bool> = snapshot.groups.iter().map(|group| group.torn).collect();
    assert_eq!(torn, [false, true, false]);
    assert_eq!(snapshot.sum(Some(0), "rustydb_hits_total", ""), 11);
    assert_eq!(snapshot.sum(Some(0), "rustydb_misses_total", ""), 10);
}

#[test]
fn a_process_that_is_gone_is_told_from_one_that_is_silent() {
    let folder = Folder::new();
    let (path, mut writers) = written(&folder);
    let snapshot = read(&path).expect("whole");
    assert_eq!(Liveness::of(&snapshot, 1010), Liveness::Running);
    assert_eq!(Liveness::of(&snapshot, 61_010), Liveness::Silent(60_000));
    let mut earlier = snapshot.clone();
    earlier.header.process.started -= 1;
    assert_eq!(Liveness::of(&earlier, 2_010), Liveness::Dead(1_000), "a later process has its number now");
    earlier.header.process.namespace += 1;
    assert_eq!(Liveness::of(&earlier, 2_010), Liveness::Running, "numbers of another container say nothing here");
    writers.state.publish(&state(2000, Stage::Stopped));
    assert_eq!(Liveness::of(&read(&path).expect("whole"), 99_000), Liveness::Ended);
}

#[test]
fn the_next_life_takes_the_files_place_and_who_reads_the_last_reads_on() {
    let folder = Folder::new();
    let (path, mut writers) = written(&folder);
    let reader = Reader::open(&path).expect("it is there");
    let mut next = create(&path, &description(2), &metrics()).expect("there is room");
    publish(&mut next, 1);
    publish(&mut writers, 12);
    assert_eq!(reader.snapshot().expect("whole").sum(None, "rustydb_sessions", ""), 12);
    let now = read(&path).expect("whole");
    assert_eq!((now.header.incarnation, now.sum(None, "rustydb_sessions", "")), (2, 1));
    assert_eq!(std::fs::read_dir(&folder.0).expect("ours").count(), 1, "nothing is left beside it");
}

#[test]
fn what_is_no_file_of_this_version_is_refused_by_name() {
    let folder = Folder::new();
    let (path, _writers) = written(&folder);
    let bytes = std::fs::read(&path).expect("readable");
    let other = folder.0.join("other");
    let refused = |bytes: &[u8]| {
        std::fs::write(&other, bytes).expect("ours");
        read(&other).expect_err("it is not whole").to_string()
    };
    let mut newer = bytes.clone();
    newer[8] = 2;
    assert!(refused(&newer).contains("its layout is version 2, and this program reads version 1"));
    let mut renamed = bytes.clone();
    renamed[600] ^= 1;
    assert!(refused(&renamed).contains("checksum"));
    assert!(refused(b"something else").contains("no statistics file"));
    assert!(refused(b"").contains("no statistics file"));
    for length in [9, 100, 300, 700, bytes.len() - 1] {
        assert!(refused(&bytes[..length]).contains("damaged"), "{length} bytes of it");
    }
    assert!(read(&folder.0.join("none")).is_err_and(|error| matches!(error, ReadError::Io(_))));
}

#[test]
fn values_that_lie_over_each_other_are_refused_before_memory_is_taken_for_them() {
    let folder = Folder::new();
    let (path, _writers) = written(&folder);
    let bytes = std::fs::read(path).expect("readable");
    assert!(Snapshot::parse(&sealed(bytes.clone())).is_ok());
    let refused = |bytes: Vec<u8>| Snapshot::parse(&sealed(bytes)).expect_err("it lies over itself").to_string();
    // The second shard's group where the first one's is, and as long as the file allows.
    let (first, second) = (512 + 32, 512 + 64);
    let mut groups = bytes.clone();
    groups.copy_within(first..first + 8, second);
    let rest = bytes.len() as u64 - u64::from_le_bytes(bytes[first..first + 8].try_into().expect("eight"));
    for group in [first, second] {
        groups[group + 8..group + 16].copy_from_slice(&rest.to_le_bytes());
    }
    assert!(refused(groups).contains("lie over each other"));
    // The second histogram where the first one is, with the greatest number of buckets that fits.
    let metric = |number: usize| 512 + 3 * 32 + number * 256;
    let mut metrics = bytes.clone();
    metrics.copy_within(metric(2) + 240..metric(2) + 244, metric(3) + 240);
    metrics[metric(3) + 252..metric(3) + 256].copy_from_slice(&400u32.to_le_bytes());
    assert!(refused(metrics).contains("lie over each other"));
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let folder = Folder::new();
    let path = folder.0.join("rustydb-x.stats");
    let name = std::ffi::CString::new(path.to_str().expect("plain")).expect("plain");
    // SAFETY: the name is a C string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    assert!(Reader::open(&path).is_err());
    std::fs::remove_file(&path).expect("ours");
    std::os::unix::fs::symlink("/etc/hostname", &path).expect("ours");
    assert!(Reader::open(&path).is_err());
}

#[test]
fn a_file_that_is_cut_short_under_a_reader_is_an_error() {
    let folder = Folder::new();
    let (path, writers) = written(&folder);
    drop(writers);
    let copy = folder.0.join("copy");
    std::fs::write(&copy, std::fs::read(&path).expect("readable")).expect("ours");
    let reader = Reader::open(&copy).expect("it is there");
    std::fs::File::options().write(true).open(&copy).and_then(|file| file.set_len(1000)).expect("ours");
    assert!(matches!(reader.snapshot(), Err(ReadError::Damaged(_))));
}

/// Makes the checksum right again, so that what lies behind it is reached.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let Ok((mut header, _)) = FileHeader::read_from_prefix(&bytes) else { return bytes };
    fn all<T: FromBytes>(bytes: &[u8], offset: u32, count: u32) -> Option<Vec<T>> {
        let (offset, length) = (offset as usize, (count as usize).checked_mul(size_of::<T>())?);
        let range = bytes.get(offset..offset.checked_add(length)?)?;
        Some(range.chunks_exact(size_of::<T>()).map(|entry| T::read_from_bytes(entry).expect("of its size")).collect())
    }
    let groups: Option<Vec<GroupEntry>> = all(&bytes, header.groups_offset.get(), header.groups.get());
    let metrics: Option<Vec<MetricEntry>> = all(&bytes, header.metrics_offset.get(), header.metrics.get());
    if let (Some(groups), Some(metrics)) = (groups, metrics) {
        header.file_bytes = (bytes.len() as u64).into();
        header.checksum = checksum(&header, &groups, &metrics).into();
        bytes[..size_of::<FileHeader>()].copy_from_slice(header.as_bytes());
    }
    bytes
}

/// Everything that a reader does with bytes.
fn look(bytes: &[u8]) {
    let Ok(snapshot) = Snapshot::parse(bytes) else { return };
    let _ = (Liveness::of(&snapshot, 5), prometheus(&snapshot));
    for group in &snapshot.groups {
        for (_, value) in snapshot.values(group) {
            if let Value::Histogram(histogram) = value {
                let _ = (histogram.quantile(0.5), histogram.mean(), histogram.since(histogram).count());
            }
        }
    }
    let _ = snapshot.histogram(None, "rustydb_wait_seconds", "").quantile(1.0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_a_reader_fall_over(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        look(&bytes);
        let named = [&layout::MAGIC[..], &1u32.to_le_bytes(), &layout::BYTE_ORDER.to_le_bytes(), &bytes].concat();
        look(&sealed(named));
    }

    #[test]
    fn no_damage_makes_a_reader_fall_over(
        spots in prop::collection::vec((0usize..2000, any::<u8>()), 1..8),
        cut in 0usize..12_000,
    ) {
        let folder = Folder::new();
        let (path, _writers) = written(&folder);
        let mut bytes = std::fs::read(path).expect("readable");
        for (place, value) in spots {
            bytes[place] = value;
        }
        look(&bytes);
        look(&sealed(bytes.clone()));
        bytes.truncate(cut);
        look(&sealed(bytes.clone()));
        let damaged = folder.0.join("damaged");
        let file = std::fs::File::create(&damaged).expect("ours");
        file.write_all_at(&sealed(bytes), 0).expect("ours");
        let _ = read(&damaged);
    }
}
