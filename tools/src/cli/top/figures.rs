//! What is shown of a node: rates, shares and latencies between two looks at its statistics, or since its start.

use rustydb_shm::statistics::{Histogram, Liveness, Scope, Snapshot};
use serde::Serialize;

use super::super::watched::{nodes_of, now_ms, word};

/// What a node, or one of its shards, has done in a time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Figures {
    pub(super) statements_per_s: f64,
    pub(super) statement_p50_ns: Option<u64>,
    pub(super) statement_p99_ns: Option<u64>,
    pub(super) commits_per_s: f64,
    pub(super) commit_p99_ns: Option<u64>,
    /// Share of the block accesses that found the block in a frame, per cent.
    pub(super) cache_hit_percent: Option<f64>,
    pub(super) transfers_per_s: f64,
    pub(super) transfer_p50_ns: Option<u64>,
    pub(super) transfer_p99_ns: Option<u64>,
    pub(super) shipped_per_s: f64,
    pub(super) flushes_per_s: f64,
    pub(super) flush_p50_ns: Option<u64>,
    pub(super) flush_p99_ns: Option<u64>,
    /// For rows and locks.
    pub(super) waits_per_s: f64,
    pub(super) wait_p99_ns: Option<u64>,
    /// For latches of blocks, and for free frames: of these there is no latency.
    pub(super) latch_waits_per_s: f64,
    /// Connections to other nodes, of each shard.
    pub(super) peers_up: u64,
    /// Of these, those that are sent to by RDMA.
    pub(super) rdma_lanes: u64,
    /// Share of the blocks from other nodes that came by RDMA, per cent.
    pub(super) rdma_block_percent: Option<f64>,
    /// Buckets that changed their master, in and out.
    pub(super) remasters_per_s: f64,
    /// Time that the shards' tasks held their threads, per cent of one thread.
    pub(super) busy_percent: f64,
    pub(super) dirty_blocks: u64,
    pub(super) requests_open: u64,
    pub(super) transactions_active: u64,
}

/// A latency over a time, by what it is of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Latency {
    pub(super) name: String,
    pub(super) per_s: f64,
    pub(super) p50_ns: Option<u64>,
    pub(super) p99_ns: Option<u64>,
    /// Of the node's whole life.
    pub(super) max_ns: u64,
}

/// A node as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) source: String,
    pub(super) cluster: String,
    #[serde(skip)]
    pub(super) cluster_id: u128,
    pub(super) node: u16,
    pub(super) status: &'static str,
    pub(super) alive: bool,
    /// How long it has been so, milliseconds.
    pub(super) since_ms: u64,
    pub(super) detail: String,
    pub(super) epoch: u64,
    pub(super) members: String,
    pub(super) lost: String,
    pub(super) blocks_done: u64,
    pub(super) blocks_total: u64,
    pub(super) recoveries: u64,
    pub(super) recovery_us: u64,
    pub(super) pid: u32,
    pub(super) incarnation: u64,
    pub(super) sessions: u64,
    /// Of one core.
    pub(super) cpu_percent: Option<f64>,
    pub(super) resident_bytes: u64,
    pub(super) remasters_total: u64,
    pub(super) all: Figures,
    pub(super) shards: Vec<Figures>,
    pub(super) latencies: Vec<Latency>,
}

/// Two looks at the same life of a node, or one look and the life's beginning.
struct Between<'a> {
    now: &'a Snapshot,
    before: Option<&'a Snapshot>,
}

impl Between<'_> {
    /// Between the two publications of a scope, or of one shard.
    fn seconds(&self, scope: Scope, shard: Option<u16>) -> f64 {
        let published = |snapshot: &Snapshot| {
            let ours =
                snapshot.groups.iter().filter(|group| group.scope == scope && shard.is_none_or(|shard| group.index == shard));
            ours.map(|group| group.published_ns).max().unwrap_or(0)
        };
        let since_start = || {
            let last_ms = self.now.groups.iter().map(|group| group.published_ms).max().unwrap_or(0);
            last_ms.saturating_sub(self.now.header.created_ms) as f64 / 1e3
        };
        self.before.map_or_else(since_start, |before| published(self.now).saturating_sub(published(before)) as f64 / 1e9)
    }

    fn count(&self, shard: Option<u16>, name: &str, labels: &str) -> u64 {
        let before = self.before.map_or(0, |before| before.sum(shard, name, labels));
        self.now.sum(shard, name, labels).saturating_sub(before)
    }

    fn rate(&self, shard: Option<u16>, scope: Scope, names: &[(&str, &str)]) -> f64 {
        if scope == Scope::Shard && shard.is_none() {
            // Each publishes at times of its own.
            return (0..self.now.header.shards).map(|shard| self.rate(Some(shard), scope, names)).sum();
        }
        let count: u64 = names.iter().map(|(name, labels)| self.count(shard, name, labels)).sum();
        per_second(count, self.seconds(scope, shard))
    }

    fn histogram(&self, shard: Option<u16>, name: &str, labels: &str) -> Histogram {
        let now = self.now.histogram(shard, name, labels);
        self.before.map_or(now.clone(), |before| now.since(&before.histogram(shard, name, labels)))
    }

    fn figures(&self, shard: Option<u16>) -> Figures {
        let shards = |names: &[(&str, &str)]| self.rate(shard, Scope::Shard, names);
        let (hits, misses) =
            (self.count(shard, "rustydb_cache_hits_total", ""), self.count(shard, "rustydb_cache_misses_total", ""));
        let blocks = |transport| self.count(shard, "rustydb_interconnect_blocks_received_total", transport);
        let (by_tcp, by_rdma) = (blocks("transport=\"tcp\""), blocks("transport=\"rdma\""));
        let mut transfer = self.histogram(shard, "rustydb_block_request_seconds", "path=\"two_way\"");
        transfer.add(&self.histogram(shard, "rustydb_block_request_seconds", "path=\"three_way\""));
        let mut wait = self.histogram(shard, "rustydb_row_lock_wait_seconds", "");
        wait.add(&self.histogram(shard, "rustydb_lock_wait_seconds", ""));
        let flush = self.histogram(shard, "rustydb_log_flush_seconds", "");
        // Statements are the node's, not a shard's.
        let statement =
            if shard.is_none() { self.histogram(None, "rustydb_statement_seconds", "") } else { Histogram::default() };
        Figures {
            statements_per_s: per_second(statement.count(), self.seconds(Scope::Node, None)),
            statement_p50_ns: statement.quantile(0.5),
            statement_p99_ns: statement.quantile(0.99),
            commits_per_s: shards(&[("rustydb_commits_total", "")]),
            commit_p99_ns: self.histogram(shard, "rustydb_commit_seconds", "").quantile(0.99),
            cache_hit_percent: share(hits, misses),
            transfers_per_s: shards(&[("rustydb_block_transfers_total", "")]),
            transfer_p50_ns: transfer.quantile(0.5),
            transfer_p99_ns: transfer.quantile(0.99),
            shipped_per_s: shards(&[("rustydb_blocks_shipped_total", "")]),
            flushes_per_s: shards(&[("rustydb_log_flushes_total", "")]),
            flush_p50_ns: flush.quantile(0.5),
            flush_p99_ns: flush.quantile(0.99),
            waits_per_s: shards(&[("rustydb_row_lock_waits_total", ""), ("rustydb_locks_granted_later_total", "")]),
            wait_p99_ns: wait.quantile(0.99),
            latch_waits_per_s: shards(&[("rustydb_latch_waits_total", ""), ("rustydb_frame_waits_total", "")]),
            peers_up: self.now.sum(shard, "rustydb_interconnect_peers_up", ""),
            rdma_lanes: self.now.sum(shard, "rustydb_rdma_lanes", ""),
            rdma_block_percent: share(by_rdma, by_tcp),
            remasters_per_s: shards(&[("rustydb_remasters_in_total", ""), ("rustydb_remasters_out_total", "")]),
            busy_percent: shards(&[("rustydb_reactor_busy_microseconds_total", "")]) / 1e4,
            dirty_blocks: self.now.sum(shard, "rustydb_cache_dirty", ""),
            requests_open: self.now.sum(shard, "rustydb_block_requests_open", ""),
            transactions_active: self.now.sum(shard, "rustydb_transactions_active", ""),
        }
    }

    fn latencies(&self) -> Vec<Latency> {
        let seconds = self.seconds(Scope::Shard, None);
        let mut latencies = Vec::new();
        for metric in &self.now.metrics {
            if Histogram::empty(metric.kind).is_none() {
                continue;
            }
            let between = self.histogram(None, &metric.name, &metric.labels);
            let name = metric.name.trim_start_matches("rustydb_").trim_end_matches("_seconds");
            let name = format!("{name} {}", metric.labels.replace(['"'], "")).trim_end().to_owned();
            latencies.push(Latency {
                name,
                per_s: per_second(between.count(), seconds),
                p50_ns: between.quantile(0.5),
                p99_ns: between.quantile(0.99),
                max_ns: between.max,
            });
        }
        latencies
    }
}

/// Of either kind.
fn clients(now: &Snapshot) -> u64 {
    now.sum(None, "rustydb_sessions", "") + now.sum(None, "rustydb_native_clients", "")
}

/// The part that the first is of both, per cent.
fn share(part: u64, rest: u64) -> Option<f64> {
    (part + rest > 0).then(|| 100.0 * part as f64 / (part + rest) as f64)
}

fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

impl Row {
    /// Of a node as it is now, and as it was at the look before. That counts only if it is of the same life.
    pub(super) fn of(source: &str, now: &Snapshot, liveness: Liveness, before: Option<&Snapshot>) -> Row {
        let life = |snapshot: &Snapshot| (snapshot.header.cluster_id, snapshot.header.node, snapshot.header.incarnation);
        // A file that did not move on says what it said at first, over its life.
        let before = before.filter(|before| life(before) == life(now) && before.state.heartbeat_ms < now.state.heartbeat_ms);
        let between = Between { now, before };
        let (header, state) = (&now.header, &now.state);
        let cpu_percent = between.rate(None, Scope::Node, &[("rustydb_process_cpu_microseconds_total", "")]) / 1e4;
        let since_ms = match liveness {
            Liveness::Running | Liveness::Ended => now_ms().saturating_sub(state.stage_since_ms),
            Liveness::Silent(ms) | Liveness::Dead(ms) => ms,
        };
        let alive = liveness.is_alive();
        // What a node did before it died is not what it does.
        let figures = |shard| if alive { between.figures(shard) } else { Figures::default() };
        Row {
            source: source.to_owned(),
            cluster: header.cluster.clone(),
            cluster_id: header.cluster_id,
            node: header.node,
            status: word(now, liveness),
            alive,
            since_ms,
            detail: if alive { state.detail.clone() } else { format!("was {} {}", state.stage.word(), state.detail) },
            epoch: state.epoch,
            members: nodes_of(state.members),
            lost: nodes_of(state.lost),
            blocks_done: state.blocks_done,
            blocks_total: state.blocks_total,
            recoveries: state.recoveries,
            recovery_us: state.recovery_us,
            pid: header.process.pid,
            incarnation: header.incarnation,
            sessions: if alive { clients(now) } else { 0 },
            cpu_percent: alive.then_some(cpu_percent),
            resident_bytes: now.sum(None, "rustydb_process_resident_bytes", ""),
            remasters_total: now.sum(None, "rustydb_remasters_in_total", ""),
            all: figures(None),
            shards: (0..header.shards).map(|shard| figures(Some(shard))).collect(),
            latencies: if alive { between.latencies() } else { Between { now, before: None }.latencies() },
        }
    }
}
