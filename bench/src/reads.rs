//! Point reads of rows that are in the cache: in the shard itself, and from another thread through a session.
//!
//! The rate "a core second" is of the time that the shard's thread really had a core: on a busy machine that is what the
//! code costs; the wall's rate is what was left to it.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustydb::ids::PartitionId;
use rustydb::volume::InitZero;

use crate::Outcome;
use crate::clock::{block_on, thread_cpu};
use crate::node::{self, BenchNode, Parts, VALUE_BYTES, key};
use crate::report::{Report, Samples, Target};

/// Reads between two looks at the clock, and between two chances for others: some 100 µs.
const BATCH: u64 = 128;
/// Bytes that a row of the table may take in the cache at most, its undo included.
pub(crate) const CACHED_ROW_BYTES_MAX: u64 = 640;
/// Reads a second and core that are wanted.
const READS_TARGET: Target = Target::AtLeast(1_000_000.0);

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the volume is made.
    pub folder: PathBuf,
    /// Rows of the table.
    pub rows: u64,
    /// How long each order of keys is read.
    pub time: Duration,
    /// Reads through a session.
    pub session_reads: u32,
    /// Pin the shard to the last core.
    pub pin: bool,
    /// Let the shard sleep at once when there is nothing to do.
    pub overprovisioned: bool,
}

/// In which order the keys come.
#[derive(Clone, Copy)]
enum Order {
    Random,
    Ascending,
}

/// Numbers without an order (xorshift64*, Vigna 2014), without a modulo's cost.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(number: u64) -> Dice {
        // Never 0, and far from its neighbours'.
        Dice((number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let value = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D);
        ((u128::from(value) * u128::from(bound)) >> 64) as u64
    }
}

struct Found {
    /// Of a read, averaged over a batch.
    samples: Samples,
    cpu: Duration,
    reads: u64,
    not_at_once: u64,
}

async fn read(parts: Rc<Parts>, partition: PartitionId, rows: u64, order: Order, time: Duration) -> Outcome<Found> {
    let (mut dice, mut next) = (Dice::new(0), 0);
    let mut found = Found { samples: Samples::new(), cpu: Duration::ZERO, reads: 0, not_at_once: 0 };
    let end = Instant::now() + time;
    let mut bytes = 0usize;
    while Instant::now() < end {
        let (began, cpu) = (Instant::now(), thread_cpu());
        for _ in 0..BATCH {
            let row = match order {
                Order::Random => dice.below(rows),
                Order::Ascending => {
                    next = if next + 1 == rows { 0 } else { next + 1 };
                    next
                }
            };
            match parts.engine.get_with(partition, &key(row), |value| value.map_or(0, <[u8]>::len))? {
                Some(len) => bytes += len,
                None => found.not_at_once += 1,
            }
        }
        found.cpu += thread_cpu() - cpu;
        let took = began.elapsed();
        found.samples.record(took / BATCH as u32);
        found.samples.add_busy(took);
        found.reads += BATCH;
        parts.reactor.yield_now().await;
    }
    assert_eq!(bytes as u64, (found.reads - found.not_at_once) * VALUE_BYTES as u64, "every row was there, whole");
    Ok(found)
}

/// Takes the figures.
///
/// # Errors
/// When there is no room for the table.
pub fn run(options: &Options) -> Outcome<Report> {
    let rows = options.rows;
    let cache_bytes = (rows * CACHED_ROW_BYTES_MAX).max(16 << 20);
    let node = BenchNode::start(&node::Options {
        folder: options.folder.clone(),
        volume_bytes: cache_bytes + (256 << 20),
        cache_bytes,
        pin: options.pin,
        overprovisioned: options.overprovisioned,
        // Nothing is written while it is measured.
        init_zero: InitZero::Redo,
    })?;
    let began = Instant::now();
    let partition = node.load(rows)?;
    let load_time = began.elapsed();

    let mut report = Report::new("reads");
    report.setting("pinned", options.pin);
    report.setting("overprovisioned", options.overprovisioned);
    report.condition(format!(
        "{rows} rows of {} bytes, loaded in {:.1} s; {} MiB of cache; one shard",
        VALUE_BYTES + 8,
        load_time.as_secs_f64(),
        cache_bytes >> 20
    ));
    report.condition(format!("in the shard: percentiles are of means over {BATCH} reads"));
    for (order, name) in [(Order::Random, "random keys"), (Order::Ascending, "ascending keys")] {
        // The first pass touches everything once.
        node.run(move |parts| read(parts, partition, rows, order, Duration::from_millis(300)))?;
        let time = options.time;
        let found = node.run(move |parts| read(parts, partition, rows, order, time))?;
        let per_core = found.reads as f64 / found.cpu.as_secs_f64();
        let wall = found.reads as f64 / found.samples.busy().as_secs_f64();
        report.series(found.samples.series_of(format!("in the shard, {name}"), found.reads, wall));
        report.figure(format!("in the shard, {name}, by core time"), per_core, "reads/s a core", Some(READS_TARGET));
        report.figure(format!("in the shard, {name}, by the wall"), wall, "reads/s", None);
        if found.not_at_once > 0 {
            report.condition(format!("{name}: {} of {} reads would have had to wait", found.not_at_once, found.reads));
        }
    }

    let (mut session, mut dice, mut samples) = (node.store().session(), Dice::new(7), Samples::new());
    for number in 0..options.session_reads {
        let began = Instant::now();
        let row = block_on(session.get(partition, &key(dice.below(rows))))?;
        if number >= options.session_reads / 10 {
            samples.record_alone(began.elapsed());
        }
        assert_eq!(row.map(|row| row.len()), Some(VALUE_BYTES), "every row was there, whole");
    }
    report.series(samples.series("Session::get from another thread, one at a time"));
    Ok(report)
}
