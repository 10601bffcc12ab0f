//! Rows through the store's sessions, from threads that are no shards, as the gateway's are: reads, writes, scans,
//! transactions and a mixture, closed loop or at a fixed rate.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use rustydb::ids::PartitionId;
use rustydb::store::{Isolation, ScanLimit, ScanRange, Session, WriteOp};
use rustydb::volume::InitZero;

use crate::Outcome;
use crate::clock::block_on;
use crate::load::{Load, Schedule, drive_threads};
use crate::node::{self, BenchNode, VALUE_BYTES, key};
use crate::reads::{CACHED_ROW_BYTES_MAX, Dice};
use crate::report::Report;

/// From so many rows on the volume is worth being written once before.
const WRITTEN_ONCE_ROWS: u64 = 10_000;
/// Rows of a scan.
const SCANNED: usize = 100;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Operation {
    /// A row by its key.
    Get,
    /// A row replaced, in a transaction of its own.
    Put,
    /// A hundred rows from a key on.
    Scan,
    /// A transaction: begin, a read, two writes, commit.
    Commit,
    /// Reads, and now and then a write.
    Mixed,
}

impl Operation {
    /// Every one.
    pub const ALL: [Operation; 5] = [Operation::Get, Operation::Put, Operation::Scan, Operation::Commit, Operation::Mixed];

    /// For a report.
    #[must_use]
    pub fn words(self, write_percent: u32) -> String {
        match self {
            Operation::Get => "get: a row by its key".into(),
            Operation::Put => "put: a row replaced and committed".into(),
            Operation::Scan => format!("scan: {SCANNED} rows"),
            Operation::Commit => "commit: begin, a read, two writes, commit".into(),
            Operation::Mixed => format!("mixed: {write_percent} % puts, the rest gets"),
        }
    }
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the volume is made.
    pub folder: PathBuf,
    /// Rows of the table.
    pub rows: u64,
    /// What is done, one after the other.
    pub operations: Vec<Operation>,
    /// Puts among a hundred of the mixture.
    pub write_percent: u32,
    /// How they are asked for.
    pub load: Load,
    /// How long each lasts.
    pub time: Duration,
    /// Pin the shard to the last core.
    pub pin: bool,
    /// Let the shard sleep at once when there is nothing to do.
    pub overprovisioned: bool,
}

struct Client {
    session: Session,
    dice: Dice,
}

fn put(partition: PartitionId, row: u64, number: u64) -> WriteOp {
    WriteOp::Put { partition, key: key(row).to_vec(), value: [(number % 251) as u8; VALUE_BYTES].to_vec() }
}

fn operate(client: &mut Client, partition: PartitionId, options: &Options, operation: Operation, number: u64) -> Outcome<()> {
    let Client { session, dice } = client;
    let row = dice.below(options.rows);
    let operation = match operation {
        Operation::Mixed if dice.below(100) < u64::from(options.write_percent) => Operation::Put,
        Operation::Mixed => Operation::Get,
        other => other,
    };
    match operation {
        Operation::Get | Operation::Mixed => {
            let found = block_on(session.get(partition, &key(row)))?;
            assert_eq!(found.map(|row| row.len()), Some(VALUE_BYTES), "every row is there, whole");
        }
        Operation::Put => _ = block_on(session.write_and_commit(vec![put(partition, row, number)]))?,
        Operation::Scan => {
            let from = row.min(options.rows.saturating_sub(SCANNED as u64));
            let range = ScanRange { lower: std::ops::Bound::Included(key(from).to_vec()), ..ScanRange::all() };
            let limit = ScanLimit { rows: SCANNED, ..ScanLimit::default() };
            let chunk = block_on(session.scan(partition, range, limit))?;
            assert_eq!(chunk.rows.len() as u64, options.rows.min(SCANNED as u64), "every row is there");
        }
        Operation::Commit => {
            // In the order of the keys, so that no two clients wait for each other.
            let other = dice.below(options.rows);
            let (first, second) = (row.min(other), row.max(other));
            session.begin(Isolation::ReadCommitted, false)?;
            block_on(session.get(partition, &key(row)))?;
            block_on(session.write(vec![put(partition, first, number)]))?;
            block_on(session.write(vec![put(partition, second, number)]))?;
            block_on(session.commit())?;
        }
    }
    Ok(())
}

/// Takes the figures.
///
/// # Errors
/// When there is no room for the table.
pub fn run(options: &Options) -> Outcome<Report> {
    let cache_bytes = (options.rows * CACHED_ROW_BYTES_MAX).max(64 << 20);
    let node = BenchNode::start(&node::Options {
        folder: options.folder.clone(),
        volume_bytes: 2 * cache_bytes + (256 << 20),
        cache_bytes,
        pin: options.pin,
        overprovisioned: options.overprovisioned,
        init_zero: if options.rows >= WRITTEN_ONCE_ROWS { InitZero::All } else { InitZero::Redo },
    })?;
    let partition = node.load(options.rows)?;
    let mut report = Report::new("store");
    report.setting("rows", options.rows);
    report.setting("cache", format!("{} MiB", cache_bytes >> 20));
    report.setting("durable writes", format!("{:?}", node.durable_method()));
    report.setting("pinned", options.pin);
    report.setting("overprovisioned", options.overprovisioned);
    report.condition(format!(
        "one node, one shard; {} clients, each a thread with a session; all rows cached",
        options.load.workers()
    ));
    for &operation in &options.operations {
        let schedule = Arc::new(Schedule::lasting(options.load, options.time));
        let client = |worker: u32| Ok(Client { session: node.store().session(), dice: Dice::new(u64::from(worker)) });
        let samples = drive_threads(&schedule, client, |client, number| operate(client, partition, options, operation, number))?;
        report.series(schedule.series(operation.words(options.write_percent), &samples));
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_finds_its_rows_at_a_fixed_rate() {
        let report = run(&Options {
            folder: std::env::temp_dir(),
            rows: 500,
            operations: Operation::ALL.to_vec(),
            write_percent: 20,
            load: Load::Open { rate: 200.0, concurrency: 4 },
            time: Duration::from_millis(100),
            pin: false,
            overprovisioned: true,
        })
        .expect("some room in the temporary folder");
        // 200 a second for 0.1 s: twenty each, and what can't be begun in time is counted.
        assert!(report.series.iter().all(|series| series.operations + series.never_begun == 20), "{report}");
        assert_eq!(report.series.len(), 5);
    }
}
