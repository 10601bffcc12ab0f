//! `rusty-db-bench`: the engine's latency harness. See `docs/performance.md` for figures taken with it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use rustydb::reactor::DurableMethod;
use rustydb_bench::report::Report;
use rustydb_bench::{Outcome, log, mail, reads, transfer};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXAMPLES: &str = "Examples:
  rusty-db-bench log --dir /mnt/volume        commits beside durable writes, on that disk
  rusty-db-bench transfer                     blocks between two nodes beside bare TCP
  rusty-db-bench reads --rows 100000 --pin    cached point reads on the last core
  rusty-db-bench all --json > figures.json    everything, for a program

Each benchmark makes a file of its own in --dir and removes it at the end. Build with --release.";

/// Measures the engine beside what the machine can do: percentiles of every operation, and the ratios that matter.
#[derive(Parser)]
#[command(name = "rusty-db-bench", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    what: What,
    /// Print JSON instead of tables.
    #[arg(long, global = true)]
    json: bool,
    /// Folder for the volumes: on the disk in question.
    #[arg(long, global = true, default_value = ".", value_name = "FOLDER")]
    dir: PathBuf,
    /// Let idle shards sleep at once, as nodes that share their cores do.
    #[arg(long, global = true)]
    overprovisioned: bool,
    /// Pin shards to cores (reads: the last core; transfer and mail: the first two).
    #[arg(long, global = true)]
    pin: bool,
}

#[derive(Subcommand)]
enum What {
    /// Commits at 1, 16 and 64 at once against the device's limit for synchronous writes.
    Log {
        /// Bytes of redo that each commit writes.
        #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=60_000))]
        bytes: u32,
        /// Rounds in which all ways have their turns.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        rounds: u32,
        /// Operations of each kind and committer in a round.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100))]
        operations: u32,
        /// How durable writes are made; as a probe finds faster when not given.
        #[arg(long, value_enum)]
        durable: Option<Durable>,
    },
    /// Blocks that go between two nodes against a bare TCP round trip of 8 KiB.
    Transfer {
        /// Rounds in which all ways have their turns.
        #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        rounds: u32,
    },
    /// Point reads of cached rows, in the shard and through a session.
    Reads {
        /// Rows of the table, of some 100 bytes each.
        #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
        rows: u64,
        /// Seconds for each order of keys.
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
        /// Reads through a session.
        #[arg(long, default_value_t = 50_000)]
        session_reads: u32,
    },
    /// Calls into a shard from another thread, and from another shard.
    Mail {
        /// Calls of each kind.
        #[arg(long, default_value_t = 50_000)]
        calls: u32,
    },
    /// All of them, as they are by default.
    All,
}

#[derive(Clone, Copy, ValueEnum)]
enum Durable {
    /// One RWF_DSYNC write.
    Dsync,
    /// A write, then fdatasync.
    WriteThenSync,
}

impl From<Durable> for DurableMethod {
    fn from(durable: Durable) -> DurableMethod {
        match durable {
            Durable::Dsync => DurableMethod::Dsync,
            Durable::WriteThenSync => DurableMethod::WriteThenSync,
        }
    }
}

impl What {
    fn all() -> Vec<What> {
        vec![
            What::Log { bytes: 400, rounds: 20, operations: 50, durable: None },
            What::Transfer { rounds: 40 },
            What::Reads { rows: 1_000_000, seconds: 3.0, session_reads: 50_000 },
            What::Mail { calls: 50_000 },
        ]
    }

    fn run(&self, arguments: &Arguments) -> Outcome<Vec<Report>> {
        let (folder, overprovisioned, pin) = (arguments.dir.clone(), arguments.overprovisioned, arguments.pin);
        let report = match *self {
            What::Log { bytes, rounds, operations, durable } => {
                let durable = durable.map(DurableMethod::from);
                log::run(&log::Options { folder, bytes: bytes as usize, rounds, operations, overprovisioned, durable })
            }
            What::Transfer { rounds } => transfer::run(&transfer::Options { folder, rounds, overprovisioned, pin }),
            What::Reads { rows, seconds, session_reads } => {
                let time = Duration::try_from_secs_f64(seconds)?;
                reads::run(&reads::Options { folder, rows, time, session_reads, pin, overprovisioned })
            }
            What::Mail { calls } => mail::run(mail::Options { calls, pin }),
            What::All => {
                let all: Outcome<Vec<_>> = What::all().iter().map(|what| what.run(arguments)).collect();
                return all.map(|reports| reports.into_iter().flatten().collect());
            }
        };
        report.map(|report| vec![report])
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if cfg!(debug_assertions) {
        eprintln!("rusty-db-bench: this is a debug build, its figures say little; build with --release");
    }
    match arguments.what.run(&arguments) {
        Ok(reports) if arguments.json => {
            println!("{}", serde_json::to_string_pretty(&reports).expect("reports are numbers and texts"));
            ExitCode::SUCCESS
        }
        Ok(reports) => {
            reports.iter().for_each(|report| println!("{report}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("rusty-db-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
