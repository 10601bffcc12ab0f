//! Which statistics a node publishes: names, units, and where the engine counts them.
//!
//! One table for the file in shared memory, `/metrics` and the tools. A name, once published, keeps its meaning.

use rustydb::cluster::{ServiceStatistics, ShardStatistics};
use rustydb::fusion::gcs::{Path, message};
use rustydb::histogram::{BUCKETS, Histogram, SUB_BITS, UNIT_SHIFT};
use rustydb::interconnect::{BlockTraffic, RdmaTraffic, Service};
use rustydb::reactor::Class;
use rustydb::store::StoreStatistics;
use rustydb_gateway::wire::StatementStatistics;
use rustydb_shm::statistics::{Kind, Metric, Scope};

type ReadNumber = Box<dyn Fn(&ShardStatistics) -> u64 + Send>;
type ReadLatency = Box<dyn for<'a> Fn(&'a ShardStatistics) -> Option<&'a Histogram> + Send>;

/// Where a value is read.
pub(super) enum Source {
    /// A counter or a gauge.
    Number(ReadNumber),
    /// A histogram; none before its part of the shard is there.
    Latency(ReadLatency),
}

/// A metric of each shard.
pub(super) struct ShardSource {
    pub(super) metric: Metric,
    pub(super) read: Source,
}

const LATENCY: Kind = Kind::Histogram { unit_shift: UNIT_SHIFT as u8, sub_bits: SUB_BITS as u8, buckets: BUCKETS as u32 };

fn metric(scope: Scope, kind: Kind, name: &str, labels: String, unit: &str, help: &str) -> Metric {
    Metric { name: format!("rustydb_{name}"), labels, unit: unit.into(), help: help.into(), scope, kind }
}

/// What a node counts as a whole.
pub(super) struct NodeFigures {
    pub(super) sql_sessions: u64,
    pub(super) native_clients: u64,
    pub(super) statements: StatementStatistics,
    pub(super) cpu_us: u64,
    pub(super) resident_bytes: u64,
}

/// Where a value of the node's is read.
pub(super) enum NodeRead {
    Number(fn(&NodeFigures) -> u64),
    Latency(fn(&NodeFigures) -> &Histogram),
}

/// The node's own, in the order in which they are published.
pub(super) fn node_sources() -> Vec<(Metric, NodeRead)> {
    use NodeRead::{Latency, Number};
    let one = |kind, name, unit, help, read| (metric(Scope::Node, kind, name, String::new(), unit, help), read);
    let (counter, gauge) = (Kind::Counter, Kind::Gauge);
    let executed = "Simple queries, and executions of prepared statements";
    let answered = "From a statement's arrival until its answer is on its way";
    vec![
        one(gauge, "sessions", "sessions", "Sessions of PostgreSQL clients", Number(|node| node.sql_sessions)),
        one(gauge, "native_clients", "clients", "Native clients, through rings and over TCP", Number(|node| node.native_clients)),
        one(counter, "statements_total", "statements", executed, Number(|node| node.statements.statements)),
        one(
            counter,
            "statement_errors_total",
            "statements",
            "Of these, those that ended with an error",
            Number(|node| node.statements.errors),
        ),
        one(LATENCY, "statement_seconds", "ns", answered, Latency(|node| &node.statements.latency)),
        one(counter, "process_cpu_microseconds_total", "us", "Processor time of the node's process", Number(|node| node.cpu_us)),
        one(gauge, "process_resident_bytes", "bytes", "Memory of the node's process", Number(|node| node.resident_bytes)),
    ]
}

struct Table(Vec<ShardSource>);

impl Table {
    fn push(&mut self, kind: Kind, name: &str, labels: String, unit: &str, help: &str, read: Source) {
        self.0.push(ShardSource { metric: metric(Scope::Shard, kind, name, labels, unit, help), read });
    }

    fn number(
        &mut self,
        kind: Kind,
        name: &str,
        unit: &str,
        help: &str,
        read: impl Fn(&ShardStatistics) -> u64 + Send + 'static,
    ) {
        self.push(kind, name, String::new(), unit, help, Source::Number(Box::new(read)));
    }

    /// A counter of what answers the other nodes.
    fn counter(&mut self, name: &str, unit: &str, help: &str, read: fn(&ServiceStatistics) -> u64) {
        self.number(Kind::Counter, name, unit, help, move |all| all.services.as_ref().map_or(0, read));
    }

    /// A level of what answers the other nodes.
    fn gauge(&mut self, name: &str, unit: &str, help: &str, read: fn(&ServiceStatistics) -> u64) {
        self.number(Kind::Gauge, name, unit, help, move |all| all.services.as_ref().map_or(0, read));
    }

    /// A counter of rows and transactions.
    fn rows(&mut self, name: &str, unit: &str, help: &str, read: fn(&StoreStatistics) -> u64) {
        self.number(Kind::Counter, name, unit, help, move |all| all.store.as_ref().map_or(0, read));
    }

    fn latency(&mut self, name: &str, help: &str, read: for<'a> fn(&'a ShardStatistics) -> Option<&'a Histogram>) {
        self.push(LATENCY, name, String::new(), "ns", help, Source::Latency(Box::new(read)));
    }
}

/// Each shard's, in the order in which they are published.
pub(super) fn shard_sources() -> Vec<ShardSource> {
    let mut table = Table(Vec::new());
    cache(&mut table);
    fusion(&mut table);
    log(&mut table);
    locks(&mut table);
    rows(&mut table);
    interconnect(&mut table);
    transports(&mut table);
    reactor(&mut table);
    table.0
}

fn cache(table: &mut Table) {
    table.counter("cache_hits_total", "blocks", "Latches given on blocks that were in a frame", |all| all.cache.hits);
    table.counter("cache_misses_total", "blocks", "Blocks that were not in a frame", |all| all.cache.misses);
    table.counter("cache_reads_total", "blocks", "Blocks read from the volume", |all| all.cache.reads);
    table.counter("cache_writes_total", "blocks", "Blocks written to the volume", |all| all.cache.writes);
    table.counter("cache_write_operations_total", "operations", "Writes that this took", |all| all.cache.write_operations);
    table.counter("cache_write_failures_total", "operations", "Writes of blocks that failed", |all| all.cache.write_failures);
    table.counter("cache_evictions_total", "blocks", "Clean blocks that left the cache", |all| all.cache.evictions);
    table.counter("cache_corrupt_total", "blocks", "Blocks that did not verify", |all| all.cache.corrupt);
    table.counter("latch_waits_total", "waits", "Tasks that stood in line for a block", |all| all.cache.latch_waits);
    table.counter("frame_waits_total", "waits", "Tasks that waited for a free frame", |all| all.cache.frame_waits);
    table.counter("mini_transactions_total", "groups", "Atomic groups of changes", |all| all.cache.mini_transactions);
    table.counter("redo_bytes_total", "bytes", "Redo made", |all| all.cache.redo_bytes);
    table.counter("checkpoints_total", "checkpoints", "Checkpoints taken", |all| all.cache.checkpoints);
    table.gauge("cache_frames", "frames", "Frames in all", |all| all.cache.frames);
    table.gauge("cache_frames_free", "frames", "Frames without a block", |all| all.cache.frames_free);
    table.gauge("cache_dirty", "blocks", "Blocks newer than the volume that this node must write", |all| all.cache.dirty);
    table.gauge("cache_past_images", "blocks", "Past images kept", |all| all.cache.past_images);
    table.gauge("cache_huge_page_bytes", "bytes", "Of the frames, those on reserved huge pages", |all| all.cache.huge_page_bytes);
}

fn fusion(table: &mut Table) {
    table.counter("block_transfers_total", "blocks", "Blocks received from other nodes", |all| all.gcs.total_transfers);
    table.counter("blocks_shipped_total", "blocks", "Blocks shipped to other nodes", |all| all.gcs.blocks_shipped_total);
    table.counter("past_image_transfers_total", "blocks", "Of these, dirty ones, which left a past image", |all| {
        all.gcs.pi_transfers
    });
    for path in Path::ALL {
        for (index, mode) in ["s", "x"].into_iter().enumerate() {
            let labels = format!("path=\"{}\",mode=\"{mode}\"", path.name());
            let help = "Time from the request for a block to its grant, by the path that it took";
            let source = Source::Latency(latency_of(path, index));
            table.push(LATENCY, "block_request_seconds", labels, "ns", help, source);
        }
    }
    for direction in ["sent", "received"] {
        for kind in message::Kind::ALL {
            let (index, sent) = (kind.index(), direction == "sent");
            let read = move |all: &ShardStatistics| {
                let gcs = all.services.as_ref().map(|services| &services.gcs);
                gcs.map_or(0, |gcs| if sent { gcs.sent[index] } else { gcs.received[index] })
            };
            let name = format!("gcs_messages_{direction}_total");
            let labels = format!("kind=\"{}\"", kind.name());
            let help = format!("Cache Fusion's messages {direction}");
            table.push(Kind::Counter, &name, labels, "messages", &help, Source::Number(Box::new(read)));
        }
    }
    table.counter("block_requests_stalled_total", "requests", "Requests that took longer than block_transfer_timeout", |all| {
        all.gcs.stalled_transfers_total
    });
    table.counter("block_requests_mastered_total", "requests", "Requests for blocks that this shard masters", |all| {
        all.gcs.master.requests_total
    });
    table.counter("block_requests_queued_total", "requests", "Of these, those that waited for another transition", |all| {
        all.gcs.master.requests_queued_total
    });
    table.counter("invalidations_total", "blocks", "Copies given up for another node's change", |all| {
        all.gcs.holder.invalidations_total
    });
    table.counter("downgrades_total", "blocks", "Exclusive copies that became shared", |all| all.gcs.holder.downgrades_total);
    table.counter("remasters_out_total", "buckets", "Buckets given to other masters", |all| all.gcs.master.remasters_out_total);
    table.counter("remasters_in_total", "buckets", "Buckets taken over", |all| all.gcs.master.remasters_in_total);
    table.counter("views_entered_total", "views", "Changes of the membership", |all| all.gcs.views_entered_total);
    table
        .counter("blocks_recovered_total", "blocks", "Blocks of lost nodes recovered here", |all| all.gcs.blocks_recovered_total);
    table.counter("peers_lost_total", "nodes", "Nodes lost, as often as they were", |all| all.gcs.peers_lost_total);
    table.gauge("block_requests_open", "requests", "Requests for blocks on their way", |all| all.gcs.outstanding_requests);
    table.gauge("block_requests_waiting", "requests", "Requests beyond max_outstanding_requests", |all| all.gcs.waiting_requests);
    table.gauge("grd_entries", "entries", "Entries of the directory here", |all| all.gcs.grd_entries);
    table.gauge("grd_buckets_mastered", "buckets", "Buckets of the directory mastered here", |all| all.gcs.buckets_mastered);
    table.gauge("grd_buckets_overridden", "buckets", "Buckets whose master is not the ring's", |all| all.gcs.buckets_overridden);
}

fn latency_of(path: Path, mode: usize) -> ReadLatency {
    Box::new(move |all| all.services.as_ref().map(|services| &services.gcs.latency[path as usize][mode]))
}

fn log(table: &mut Table) {
    table.counter("log_flushes_total", "writes", "Durable writes of the log", |all| all.log.flushes);
    table.counter("log_bytes_total", "bytes", "Bytes of these, padding included", |all| all.log.bytes);
    table.counter("log_records_total", "records", "Records in them", |all| all.log.records);
    table.latency("log_flush_seconds", "Duration of the log's durable writes", |all| {
        all.services.as_ref().map(|services| &services.log.flush_latency)
    });
    table.counter("log_space_waits_total", "waits", "Writers that waited for room in the redo area", |all| all.log.space_waits);
    table.counter("log_space_wait_microseconds_total", "us", "How long they waited", |all| all.log.space_wait.as_micros() as u64);
}

fn locks(table: &mut Table) {
    table.counter("locks_granted_at_once_total", "locks", "Locks granted without a wait", |all| all.ges.granted_at_once);
    table.counter("locks_granted_later_total", "locks", "Locks granted after a wait", |all| all.ges.granted_later);
    table.latency("lock_wait_seconds", "Waits for locks on tables and other names", |all| {
        all.services.as_ref().map(|services| &services.lock_wait_latency)
    });
    table.counter("lock_timeouts_total", "waits", "Waits for locks and rows that ran out of time", |all| all.ges.timeouts);
    table.counter("deadlocks_total", "waits", "Waits ended as victims of a deadlock", |all| all.ges.deadlocks);
    table.gauge("locks_mastered", "locks", "Locks and requests mastered here", |all| all.ges.locks_mastered);
    table.number(Kind::Counter, "locks_at_gate_total", "locks", "Locks taken without a shard; told by shard 0", |all| {
        let gate = all.services.as_ref().map_or(0, |services| services.ges.gate.entered_total);
        if all.shard.0 == 0 { gate } else { 0 }
    });
}

fn rows(table: &mut Table) {
    table.rows("commits_total", "transactions", "Transactions with changes that were committed", |all| all.counters.commits);
    table
        .rows("rollbacks_total", "transactions", "Transactions with changes that were rolled back", |all| all.counters.rollbacks);
    table.latency("commit_seconds", "From the decision to commit until the client may be told", |all| {
        all.store.as_ref().map(|store| &store.commit_latency)
    });
    table.rows("gets_total", "rows", "Rows read by key", |all| all.counters.gets);
    table.rows("rows_scanned_total", "rows", "Rows returned by scans", |all| all.counters.rows_scanned);
    table.rows("rows_written_total", "rows", "Rows changed", |all| all.counters.rows_written);
    table.rows("row_lock_waits_total", "waits", "Waits for rows", |all| all.counters.row_lock_waits);
    table.latency("row_lock_wait_seconds", "Waits for rows that others were changing", |all| {
        all.store.as_ref().map(|store| &store.row_wait_latency)
    });
    table.rows("serialization_failures_total", "transactions", "Refused with 40001", |all| all.counters.serialization_failures);
    table.rows("undo_reads_total", "rows", "Row versions fetched from undo", |all| all.counters.undo_reads);
    table.number(Kind::Gauge, "undo_blocks", "blocks", "Undo blocks in use", |all| {
        all.store.as_ref().map_or(0, |store| store.counters.undo_blocks)
    });
    table.number(Kind::Gauge, "transactions_active", "transactions", "Transactions with changes that have not ended", |all| {
        all.store.as_ref().map_or(0, |store| store.counters.transactions_active)
    });
}

fn interconnect(table: &mut Table) {
    for (direction, unit) in [("sent", "messages"), ("received", "messages"), ("sent", "bytes"), ("received", "bytes")] {
        for service in Service::ALL {
            let (index, sent, bytes) = (service.index(), direction == "sent", unit == "bytes");
            let read = move |all: &ShardStatistics| {
                let traffic = all.interconnect.as_ref().map(|stats| if sent { stats.sent[index] } else { stats.received[index] });
                traffic.map_or(0, |traffic| if bytes { traffic.bytes } else { traffic.messages })
            };
            let name = format!("interconnect_{direction}_{unit}_total");
            let labels = format!("service=\"{}\"", service.name());
            let help = format!("Interconnect: {unit} {direction}");
            table.push(Kind::Counter, &name, labels, unit, &help, Source::Number(Box::new(read)));
        }
    }
    table.number(Kind::Gauge, "interconnect_peers_up", "nodes", "Nodes connected now", |all| {
        all.interconnect.as_ref().map_or(0, |stats| stats.peers.iter().filter(|peer| peer.up).count() as u64)
    });
    table.number(Kind::Gauge, "interconnect_queue_bytes", "bytes", "Bytes that wait to be sent, over all nodes", |all| {
        all.interconnect.as_ref().map_or(0, |stats| stats.peers.iter().map(|peer| peer.queue_bytes).sum())
    });
    table.number(Kind::Gauge, "interconnect_heartbeat_us", "us", "Round trip of the last heartbeat to the slowest node", |all| {
        let round_trips = all.interconnect.iter().flat_map(|stats| stats.peers.iter().filter(|peer| peer.up));
        round_trips.map(|peer| peer.heartbeat_us_last).max().unwrap_or(0)
    });
}

/// Blocks by either transport, and what RDMA does besides.
fn transports(table: &mut Table) {
    type OfBlocks = fn(&BlockTraffic) -> u64;
    let blocks: [(&str, &str, &str, OfBlocks); 3] = [
        ("blocks_sent", "blocks", "Blocks sent", |blocks| blocks.sent),
        ("blocks_received", "blocks", "Blocks received", |blocks| blocks.received),
        ("block_bytes_copied", "bytes", "Bytes of blocks copied from one place in memory to another", |blocks| {
            blocks.bytes_copied
        }),
    ];
    for (name, unit, help, of) in blocks {
        for by_rdma in [false, true] {
            let read = move |all: &ShardStatistics| {
                all.interconnect.as_ref().map_or(0, |stats| of(if by_rdma { &stats.blocks_rdma } else { &stats.blocks_tcp }))
            };
            let labels = format!("transport=\"{}\"", if by_rdma { "rdma" } else { "tcp" });
            table.push(
                Kind::Counter,
                &format!("interconnect_{name}_total"),
                labels,
                unit,
                &format!("Interconnect: {help}"),
                Source::Number(Box::new(read)),
            );
        }
    }
    table.number(Kind::Gauge, "rdma_lanes", "nodes", "Nodes that are sent to by RDMA now", |all| {
        all.interconnect.as_ref().map_or(0, |stats| stats.peers.iter().filter(|peer| peer.by_rdma).count() as u64)
    });
    type OfRdma = fn(&RdmaTraffic) -> u64;
    let mut rdma = |kind, name, unit, help, of: OfRdma| {
        table.number(kind, name, unit, help, move |all| {
            all.interconnect.as_ref().and_then(|stats| stats.rdma.as_ref()).map_or(0, of)
        });
    };
    let (counter, gauge) = (Kind::Counter, Kind::Gauge);
    rdma(counter, "rdma_lanes_connected_total", "connections", "Connections made by RDMA", |rdma| rdma.lanes_connected);
    rdma(counter, "rdma_lanes_failed_total", "connections", "Of these, or of attempts, those that fell back to TCP", |rdma| {
        rdma.lanes_failed
    });
    rdma(counter, "rdma_sent_again_total", "messages", "Messages sent over TCP after their connection by RDMA failed", |rdma| {
        rdma.sent_again
    });
    rdma(counter, "rdma_writes_total", "blocks", "Blocks written into other nodes' frames", |rdma| rdma.writes);
    rdma(counter, "rdma_tells_total", "commits", "Commits written into other nodes' clocks", |rdma| rdma.tells);
    rdma(
        counter,
        "rdma_reads_total",
        "reads",
        "Reads of other nodes' memory: ends of transactions, and what they were told",
        |rdma| rdma.reads,
    );
    rdma(counter, "rdma_reads_answered_total", "reads", "Of these, those with an answer", |rdma| rdma.reads_answered);
    rdma(counter, "rdma_sends_total", "packets", "Packets sent by RDMA", |rdma| rdma.sends);
    rdma(counter, "rdma_sends_inline_total", "packets", "Of these, those that lay in the work request itself", |rdma| {
        rdma.inline
    });
    rdma(counter, "rdma_acknowledgements_total", "packets", "Of those sent, those that only acknowledge", |rdma| {
        rdma.acknowledgements
    });
    rdma(counter, "rdma_received_total", "packets", "Packets received by RDMA", |rdma| rdma.received);
    rdma(counter, "rdma_signalled_total", "requests", "Work requests that asked for their completion", |rdma| rdma.signalled);
    rdma(counter, "rdma_reposts_total", "doorbells", "Times that slots to receive into were given back", |rdma| rdma.reposts);
    rdma(counter, "rdma_doorbells_total", "doorbells", "Times that the device was told of new work", |rdma| rdma.doorbells);
    rdma(gauge, "rdma_frames_exposed", "frames", "Frames that other nodes may write into", |rdma| rdma.exposed);
    rdma(gauge, "rdma_frames_quarantined", "frames", "Frames without a use that they may still write into", |rdma| {
        rdma.quarantined
    });
    rdma(counter, "rdma_frames_quarantined_total", "frames", "Frames that ever were", |rdma| rdma.quarantined_total);
}

fn reactor(table: &mut Table) {
    table.number(Kind::Counter, "reactor_turns_total", "turns", "Turns of the shard's loop", |all| all.reactor.turns);
    table.number(Kind::Counter, "reactor_parks_total", "turns", "Of these, those that slept", |all| all.reactor.parks);
    for (index, class) in ["critical", "high", "normal", "low"].into_iter().enumerate() {
        let read = move |all: &ShardStatistics| all.reactor.busy_ns[index] / 1000;
        let (labels, help) = (format!("class=\"{class}\""), "Time that tasks held the shard's thread");
        let source = Source::Number(Box::new(read));
        table.push(Kind::Counter, "reactor_busy_microseconds_total", labels, "us", help, source);
    }
    table.number(Kind::Counter, "reactor_stalls_total", "polls", "Tasks that held the thread beyond 25 ms", |all| {
        all.reactor.stalls
    });
    table.number(Kind::Counter, "reactor_operations_total", "operations", "Operations given to the system", |all| {
        all.reactor.operations_submitted
    });
    let help = "On the volume, polled for or by NVMe's own commands";
    table.number(Kind::Counter, "volume_own_ring_operations_total", "operations", help, |all| all.reactor.storage_operations);
    table.number(Kind::Counter, "reactor_mail_total", "letters", "Letters from other threads", |all| all.reactor.mail_received);
    table.number(Kind::Gauge, "reactor_tasks", "tasks", "Tasks alive", |all| all.reactor.tasks);
    table.number(Kind::Gauge, "reactor_operations_in_flight", "operations", "Operations on their way", |all| {
        all.reactor.operations_in_flight
    });
}

const _: () = assert!(Class::ALL.len() == 4);
