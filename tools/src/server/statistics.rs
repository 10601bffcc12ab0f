//! Publishes the node's live statistics: a file in shared memory that tools read without asking the node, also after its
//! death, and what the HTTP port tells of it.
//!
//! Each shard's thread stores its own counters; a thread of this module's own, four times a second by default, says how the
//! node is, which is its heartbeat. Nothing here is waited for by anybody else; a file that can't be made is a warning, and
//! the statistics are then kept in memory that has no name.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustydb::cluster::{Node, Phase, Publisher, RecoveryTimes, ShardStatistics, Snapshot, StatisticsSource, Status};
use rustydb::config::Config;
use rustydb::histogram::Histogram;
use rustydb::ids::NodeId;
use rustydb_gateway::http;
use rustydb_shm::statistics::{
    self as shm, Description, GroupWriter, Metric, NodeState, NodeWriter, Reader, Slots, Stage, Writers,
};

use super::clients::Clients;
use super::metrics::{NodeFigures, NodeRead, Source, node_sources, shard_sources};

/// How often it is looked whether the node has opened its volume, from which on the file can be named.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A node's statistics while its process lives.
pub(super) struct Statistics {
    end: Sender<()>,
    thread: Option<JoinHandle<()>>,
    pages: Arc<Pages>,
}

/// What the HTTP port tells.
#[derive(Default)]
struct Pages(OnceLock<Reader>);

impl http::Statistics for Pages {
    fn image(&self) -> Result<Vec<u8>, String> {
        let reader = self.0.get().ok_or("the node has not opened its volume yet")?;
        reader.copy().map_err(|error| error.to_string())
    }

    fn text(&self) -> Result<String, String> {
        let snapshot = shm::Snapshot::parse(&self.image()?).map_err(|error| error.to_string())?;
        Ok(shm::prometheus(&snapshot))
    }
}

impl Statistics {
    /// Begins; the file is made as soon as the node has opened its volume.
    pub(super) fn start(config: &Config, node: &Node, clients: Arc<Clients>) -> std::io::Result<Statistics> {
        let (end, ended) = channel();
        let pages = Arc::new(Pages::default());
        let publishing = Publishing {
            config: config.clone(),
            status: node.status().clone(),
            shards: node.statistics(),
            clients,
            pages: pages.clone(),
        };
        let pause = move |time| match ended.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => true,
            Ok(()) | Err(RecvTimeoutError::Disconnected) => false,
        };
        let thread = std::thread::Builder::new().name("statistics".into()).spawn(move || publishing.run(pause))?;
        Ok(Statistics { end, thread: Some(thread), pages })
    }

    /// For the HTTP port.
    pub(super) fn pages(&self) -> Arc<dyn http::Statistics> {
        self.pages.clone()
    }
}

impl Drop for Statistics {
    /// The last that is published says how the node has ended.
    fn drop(&mut self) {
        self.end.send(()).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

struct Publishing {
    config: Config,
    status: Status,
    shards: StatisticsSource,
    clients: Arc<Clients>,
    pages: Arc<Pages>,
}

impl Publishing {
    /// `pause` waits so long, and says whether to go on.
    fn run(self, pause: impl Fn(Duration) -> bool) {
        let identity = loop {
            if let Some(identity) = self.status.get().identity {
                break identity;
            }
            if !pause(LOOK_EVERY) {
                return;
            }
        };
        let server = &self.config.server;
        let description = Description {
            cluster: self.config.cluster.cluster_name.clone(),
            cluster_id: identity.cluster_id,
            node: u16::from(self.config.node_id().0),
            incarnation: identity.incarnation.0,
            shards: self.config.engine.shards as u16,
            interval_ms: server.statistics_interval as u32,
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let mut metrics: Vec<Metric> = node_sources().into_iter().map(|(metric, _)| metric).collect();
        metrics.extend(shard_sources().into_iter().map(|source| source.metric));
        let folder = &server.statistics_folder;
        let made = match folder.as_os_str().is_empty() {
            true => shm::create_unnamed(&description, &metrics),
            false => {
                let path = description.path_in(folder);
                shm::create(&path, &description, &metrics).or_else(|error| {
                    let file = path.display();
                    tracing::warn!(%error, %file, "the statistics file can't be made: rusty-db-cli top and stats won't see this node");
                    shm::create_unnamed(&description, &metrics)
                })
            }
        };
        let Writers { state, node, shards, reader } = match made {
            Ok(writers) => writers,
            Err(error) => return tracing::warn!(%error, "no statistics are published"),
        };
        self.pages.0.set(reader).ok();
        let interval = Duration::from_millis(server.statistics_interval);
        self.shards.publish(interval, shards.into_iter().map(publisher).collect());
        let reads = node_sources().into_iter().map(|(_, read)| read).collect();
        let mut heart =
            Heart { state, node, reads, stage: Stage::Unknown, stage_since_ms: 0, recoveries: 0, recovered_before: None };
        while {
            heart.beat(&self.status.get(), &self.clients);
            pause(interval)
        } {}
        heart.beat(&self.status.get(), &self.clients);
    }
}

/// Publishes a shard's counters into its group.
fn publisher(mut group: GroupWriter) -> Publisher {
    let sources = shard_sources();
    let nothing = Histogram::default();
    Box::new(move |statistics: &ShardStatistics| {
        group.publish(statistics.wall_ms, statistics.now.as_ns(), |slots| {
            for source in &sources {
                match &source.read {
                    Source::Number(read) => slots.put(read(statistics)),
                    Source::Latency(read) => {
                        put_latency(slots, read(statistics).unwrap_or(&nothing));
                    }
                }
            }
        });
    })
}

fn put_latency(slots: &mut Slots<'_>, latency: &Histogram) {
    slots.put_histogram(latency.count(), latency.sum_ns(), latency.max_ns(), latency.buckets());
}

/// The node's own part, beat by beat.
struct Heart {
    state: NodeWriter,
    node: GroupWriter,
    reads: Vec<NodeRead>,
    stage: Stage,
    stage_since_ms: u64,
    recoveries: u64,
    recovered_before: Option<RecoveryTimes>,
}

impl Heart {
    fn beat(&mut self, now: &Snapshot, clients: &Clients) {
        if now.last_recovery.is_some() && now.last_recovery != self.recovered_before {
            self.recoveries += 1;
            self.recovered_before = now.last_recovery;
        }
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
        if stage(&now.phase) != self.stage {
            (self.stage, self.stage_since_ms) = (stage(&now.phase), now_ms);
        }
        let recovery = now.recovery.as_ref();
        self.state.publish(&NodeState {
            heartbeat_ms: now_ms,
            stage: self.stage,
            stage_since_ms: self.stage_since_ms,
            detail: now.detail.clone(),
            epoch: now.epoch.0,
            members: set(now.members.iter().copied()),
            lost: recovery.map_or(0, |recovery| set(recovery.lost.iter().copied())),
            configured: set(now.roster.present().map(|(node, _)| node)),
            blocks_done: recovery.map_or(0, |recovery| recovery.blocks_done),
            blocks_total: recovery.map_or(0, |recovery| recovery.blocks_total),
            recoveries: self.recoveries,
            recovery_us: now.last_recovery.map_or(0, |last| last.total_us),
            recovery_blocks: now.last_recovery.map_or(0, |last| last.blocks),
        });
        let (cpu_us, resident_bytes) = process();
        let figures = NodeFigures {
            sql_sessions: clients.sql_sessions() as u64,
            native_clients: clients.native_clients() as u64,
            statements: clients.statements(),
            cpu_us,
            resident_bytes,
        };
        self.node.publish(now_ms, monotonic_ns(), |slots| {
            for read in &self.reads {
                match read {
                    NodeRead::Number(read) => slots.put(read(&figures)),
                    NodeRead::Latency(read) => put_latency(slots, read(&figures)),
                }
            }
        });
    }
}

fn set(nodes: impl Iterator<Item = NodeId>) -> u128 {
    nodes.fold(0, |set, node| set | 1 << node.0)
}

fn stage(phase: &Phase) -> Stage {
    match phase {
        Phase::Starting => Stage::Starting,
        Phase::Recovering => Stage::Recovering,
        Phase::Open => Stage::Open,
        Phase::Suspended => Stage::Suspended,
        Phase::Stopping => Stage::Stopping,
        Phase::Stopped => Stage::Stopped,
        Phase::Over(_) | Phase::Removed(_) | Phase::Failed(_) => Stage::Failed,
    }
}

/// The process's time on cores, in microseconds, and its resident bytes.
fn process() -> (u64, u64) {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the structure is ours, plain numbers, and outlives the call, which fills it.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let us = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    let pages: Option<u64> =
        std::fs::read_to_string("/proc/self/statm").ok().and_then(|line| line.split_ascii_whitespace().nth(1)?.parse().ok());
    // SAFETY: asks for a constant of the system.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64;
    (us(usage.ru_utime) + us(usage.ru_stime), pages.unwrap_or(0) * page)
}

/// The clock that the shards' publications bear, too.
fn monotonic_ns() -> u64 {
    rustydb::reactor::Clock::System.now().as_ns()
}

#[cfg(test)]
mod tests {
    use rustydb_shm::statistics::{Kind, Scope};

    use super::*;

    #[test]
    fn readers_and_the_engine_mean_the_same_buckets() {
        use rustydb::histogram::{BUCKETS, SUB_BITS, UNIT_SHIFT, bucket_of};
        let kind = Kind::Histogram { unit_shift: UNIT_SHIFT as u8, sub_bits: SUB_BITS as u8, buckets: BUCKETS as u32 };
        let read = shm::Histogram::empty(kind).expect("a histogram");
        let mut ns = 0;
        while ns < 200_000_000_000 {
            let bucket = bucket_of(ns);
            assert!(ns < read.end_of(bucket), "{ns} ns in bucket {bucket}");
            assert!(bucket == 0 || ns >= read.end_of(bucket - 1), "{ns} ns in bucket {bucket}");
            ns += 1 + ns / 61;
        }
        assert_eq!((bucket_of(u64::MAX), bucket_of(64_500_000_000)), (BUCKETS - 1, BUCKETS - 1));
        for bucket in 16..BUCKETS - 1 {
            let width = read.end_of(bucket) - read.end_of(bucket - 1);
            assert!(width * 8 <= read.end_of(bucket - 1), "bucket {bucket} is wider than an eighth");
        }
    }

    #[test]
    fn quantiles_are_right_to_an_eighth() {
        use rustydb::histogram::{SUB_BITS, UNIT_SHIFT};
        let mut histogram = Histogram::default();
        (1..=1000).for_each(|us| histogram.record_ns(us * 1000));
        let read = shm::Histogram {
            unit_shift: UNIT_SHIFT as u8,
            sub_bits: SUB_BITS as u8,
            buckets: histogram.buckets().to_vec(),
            sum: histogram.sum_ns(),
            max: histogram.max_ns(),
        };
        for (quantile, exact_us) in [(0.5, 500), (0.95, 950), (0.99, 990)] {
            let found = read.quantile(quantile).expect("there are some") / 1000;
            assert!((exact_us..=exact_us * 9 / 8).contains(&found), "{quantile}: {found} us");
        }
        assert_eq!((read.quantile(1.0), read.count(), read.mean()), (Some(1_000_000), 1000, Some(500_500.0)));
    }

    #[test]
    fn every_metric_has_a_name_of_its_own_that_fits_the_file() {
        let mut metrics: Vec<Metric> = node_sources().into_iter().map(|(metric, _)| metric).collect();
        metrics.extend(shard_sources().into_iter().map(|source| source.metric));
        let mut names: Vec<(String, String)> =
            metrics.iter().map(|metric| (metric.name.clone(), metric.labels.clone())).collect();
        for metric in &metrics {
            let Metric { name, labels, unit, help, .. } = metric;
            let fits = name.len() <= 64 && labels.len() <= 48 && unit.len() <= 16 && help.len() <= 112;
            assert!(fits && name.starts_with("rustydb_") && !help.is_empty(), "{metric:?}");
            assert_eq!(metric.kind == Kind::Counter, name.ends_with("_total"), "{name}");
        }
        assert!(metrics.iter().any(|metric| metric.scope == Scope::Shard));
        // Prometheus wants what has one name in one place.
        let mut in_a_row: Vec<String> = names.iter().map(|(name, _)| name.clone()).collect();
        in_a_row.dedup();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "two metrics are called the same");
        names.dedup_by(|one, other| one.0 == other.0);
        assert_eq!(names.len(), in_a_row.len(), "metrics of one name stand apart");
    }
}
