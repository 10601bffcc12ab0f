//! `rusty-db-bench`: the engine's latency harness. See `docs/benchmarks.md` for how to use it and what its reports mean,
//! `docs/performance.md` for figures taken with it.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use rustydb::reactor::DurableMethod;
use rustydb_bench::compare::Comparison;
use rustydb_bench::load::{Load, OPEN_LOOP_THREADS, OPEN_LOOP_WORKERS};
use rustydb_bench::nodes::Transport;
use rustydb_bench::report::{Document, Report};
use rustydb_bench::sql::Protocol;
use rustydb_bench::store::Operation;
use rustydb_bench::transfer::{Path as BlockPath, TakenAs};
use rustydb_bench::{Outcome, html, lock, log, mail, nodes, raw, reads, sql, store, transfer, ways};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Microseconds for which shards look for what comes by RDMA, where nothing else is asked for.
const POLL_US: u64 = 50;

const EXAMPLES: &str = "\
Examples:
  rusty-db-bench log --dir /mnt/volume                   commits beside durable writes, on that disk
  rusty-db-bench log --rate 2000 --html log.html         2,000 commits due a second, with plots
  rusty-db-bench transfer --path two-way --mode x        blocks between two nodes beside bare TCP, messages counted
  rusty-db-bench raw                                     the interconnect beside raw TCP and sockperf
  rusty-db-bench store --operation get,put --concurrency 8 --seconds 10
  rusty-db-bench sql --server 127.0.0.1:5432 --server 127.0.0.2:5432 --protocol prepared --rate 5000
  rusty-db-bench reads --rows 100000 --pin               cached point reads on the last core
  rusty-db-bench all --json before.json                  everything, kept for a comparison
  rusty-db-bench compare before.json after.json --html ratio.html

With --rate operations are due at fixed times and latency counts from when they were due (open loop): a stall shows in
all that it kept waiting. Without, each client asks again when it was answered (closed loop), which flatters the tail.
Each benchmark makes a file of its own in --dir and removes it at the end. Build with --release.";

/// With what nodes can talk by.
const VERSION: &str = if cfg!(feature = "rdma") {
    concat!(env!("CARGO_PKG_VERSION"), " (TCP and RDMA)")
} else {
    concat!(env!("CARGO_PKG_VERSION"), " (TCP; built without RDMA)")
};

/// Measures the engine beside what the machine can do: percentiles of every operation, and the ratios that matter.
#[derive(Parser)]
#[command(name = "rusty-db-bench", version = VERSION, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    what: What,
    /// Write the report as JSON, to a file or, with "-", instead of the tables
    #[arg(long, global = true, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
    /// Write the report as a page with plots
    #[arg(long, global = true, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Folder for the volumes: on the disk in question
    #[arg(long, global = true, default_value = ".", value_name = "FOLDER")]
    dir: PathBuf,
    /// Let idle shards sleep at once, as nodes that share their cores do (not mail, sql)
    #[arg(long, global = true)]
    overprovisioned: bool,
    /// transfer, raw, lock, ways: addresses of this host that the nodes listen on, separated by commas; default 127.0.0.1 and on
    #[arg(long, global = true, value_name = "ADDRESSES", value_delimiter = ',')]
    address: Vec<IpAddr>,
    /// transfer, raw, lock: how blocks and messages travel; rdma wants a build with it (docs/rdma.md) and --address
    #[arg(long, global = true, value_enum, default_value_t = Transport::Tcp)]
    transport: Transport,
    /// transfer, raw, lock by RDMA: microseconds for which shards look for what comes before they sleep, as [rac.interconnect] poll_us
    /// has it; default 50, and 0 with --overprovisioned
    #[arg(long, global = true, value_name = "MICROSECONDS")]
    poll_us: Option<u64>,
    /// Pin shards to cores (reads, store: the last core; transfer, raw, lock, mail, ways: the first ones)
    #[arg(long, global = true)]
    pin: bool,
}

/// How operations are asked for.
#[derive(Args, Clone, Copy)]
struct Asked {
    /// Open loop: so many operations due a second
    #[arg(long, value_name = "A SECOND", value_parser = rate)]
    rate: Option<f64>,
    /// Operations under way at once: clients of a closed loop (1), bound of an open one (log 256, store and sql 64)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    concurrency: Option<u32>,
    /// How long each operation is measured, after a tenth of it as warm-up
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    seconds: f64,
}

impl Asked {
    fn load(self, workers: u32) -> Load {
        Load::of(self.rate, self.concurrency, workers)
    }

    fn time(self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

fn bounded(text: &str, most: f64) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= most => Ok(value),
        _ => Err(format!("a number above 0, at most {most}")),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    bounded(text, 100_000_000.0)
}

fn seconds(text: &str) -> Result<f64, String> {
    bounded(text, 86_400.0)
}

#[derive(Subcommand)]
enum What {
    /// Commits at 1, 16 and 64 at once against the device's limit for synchronous writes
    Log {
        /// Bytes of redo that each commit writes
        #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=60_000))]
        bytes: u32,
        /// Rounds in which all ways have their turns
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        rounds: u32,
        /// Operations of each kind and committer in a round
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100))]
        operations: u32,
        /// How durable writes are made; as a probe finds faster when not given
        #[arg(long, value_enum)]
        durable: Option<Durable>,
        #[command(flatten)]
        asked: Asked,
    },
    /// Blocks that go between nodes against a bare TCP round trip of 64 bytes there and 8,256 back; messages are counted
    Transfer {
        /// Rounds in which all ways have their turns
        #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        rounds: u32,
        /// Whether one of the two nodes is the block's master, or a third
        #[arg(long, value_enum, value_delimiter = ',', default_values_t = [BlockPath::TwoWay, BlockPath::ThreeWay])]
        path: Vec<BlockPath>,
        /// Shared or Exclusive
        #[arg(long, value_enum, value_delimiter = ',', default_values_t = [TakenAs::Exclusive, TakenAs::Shared])]
        mode: Vec<TakenAs>,
        /// Transfers under way at once, for the rate; 0 leaves it out
        #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1_000))]
        concurrency: u32,
        /// Transfers due a second of an open loop after that
        #[arg(long, value_name = "A SECOND", value_parser = rate)]
        rate: Option<f64>,
        /// Seconds for which both nodes want the same two blocks; 0 leaves it out
        #[arg(long, default_value_t = 1.0)]
        contended: f64,
    },
    /// Locks between two nodes, by where their master is and who has them
    Lock {
        /// Rounds in which all ways have their turns
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        rounds: u32,
    },
    /// Calls into a shard from another thread, and from another shard
    Mail {
        /// Calls of each kind
        #[arg(long, default_value_t = 50_000)]
        calls: u32,
    },
    /// The interconnect by itself beside raw TCP and sockperf, with 8 KiB
    Raw {
        /// Rounds in which all ways have their turns
        #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        rounds: u32,
        /// Requests under way at once, for the rate
        #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
        concurrency: u32,
        /// Requests due a second of the open loop
        #[arg(long, default_value_t = raw::RATE_HALF, value_name = "A SECOND", value_parser = rate)]
        rate: f64,
        /// How long rate and open loop are measured
        #[arg(long, default_value_t = 5.0, value_parser = seconds)]
        seconds: f64,
        /// Leave sockperf out
        #[arg(long)]
        no_sockperf: bool,
    },
    /// Ways of io_uring to send and receive on a socket, without the engine
    Ways {
        /// Rounds in which all ways have their turns
        #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        rounds: u32,
    },
    /// Rows through the store's sessions: get, put, scan, commit and a mixture
    Store {
        /// Rows of the table, of some 100 bytes each
        #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
        rows: u64,
        /// What is done, one after the other
        #[arg(long, value_enum, value_delimiter = ',', default_values_t = Operation::ALL)]
        operation: Vec<Operation>,
        /// Puts among a hundred operations of the mixture
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=100))]
        write_percent: u32,
        #[command(flatten)]
        asked: Asked,
    },
    /// SQL against a server that runs, over PostgreSQL's protocol
    Sql {
        /// A server; several times: clients are spread over them
        #[arg(long, default_value = "127.0.0.1:5432", value_name = "ADDRESS")]
        server: Vec<SocketAddr>,
        /// Who connects; without a password
        #[arg(long, default_value = "postgres")]
        user: String,
        /// Where to
        #[arg(long, default_value = "postgres")]
        database: String,
        /// Statements as text, or prepared once
        #[arg(long, value_enum, default_value_t = Protocol::Prepared)]
        protocol: Protocol,
        /// Rows of the table that is made for it and dropped at the end
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
        rows: u64,
        /// What is done, one after the other
        #[arg(long, value_enum, value_delimiter = ',', default_values_t = Operation::ALL)]
        operation: Vec<Operation>,
        /// Run this statement instead, as it is; no table is made
        #[arg(long, value_name = "SQL")]
        statement: Option<String>,
        /// Updates among a hundred operations of the mixture
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=100))]
        write_percent: u32,
        #[command(flatten)]
        asked: Asked,
    },
    /// Point reads of cached rows in the shard itself, by the core's time
    Reads {
        /// Rows of the table, of some 100 bytes each
        #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
        rows: u64,
        /// Seconds for each order of keys
        #[arg(long, default_value_t = 3.0, value_parser = seconds)]
        seconds: f64,
        /// Reads through a session
        #[arg(long, default_value_t = 50_000)]
        session_reads: u32,
    },
    /// All but sql and ways, as they are by default
    All,
    /// Two reports beside each other: B / A for every percentile; also with --json and --html
    Compare {
        /// JSON of the first run
        #[arg(value_name = "A.json")]
        a: PathBuf,
        /// JSON of the second
        #[arg(value_name = "B.json")]
        b: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Durable {
    /// One RWF_DSYNC write
    Dsync,
    /// A write, then fdatasync
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
    /// What `all` runs, as the command line has it without options.
    fn all() -> Vec<What> {
        let one = |name: &str| Arguments::parse_from(["rusty-db-bench", name]).what;
        ["log", "raw", "transfer", "lock", "mail", "store", "reads"].map(one).into()
    }

    /// Options that were given and change nothing here: a figure must not be taken for one that it is not.
    fn without_effect(&self, arguments: &Arguments) -> Vec<&'static str> {
        let (mut address, mut transport, mut pin, mut overprovisioned) = (true, true, true, true);
        match self {
            What::Transfer { .. } | What::Lock { .. } | What::Raw { .. } | What::All => {}
            What::Ways { .. } => transport = false,
            What::Store { .. } | What::Reads { .. } => (address, transport) = (false, false),
            What::Log { .. } => (address, transport, pin) = (false, false, false),
            What::Mail { .. } => (address, transport, overprovisioned) = (false, false, false),
            What::Sql { .. } | What::Compare { .. } => (address, transport, pin, overprovisioned) = (false, false, false, false),
        }
        let by_rdma = matches!(arguments.transport, Transport::Rdma);
        let given = [
            ("--address", address, !arguments.address.is_empty()),
            ("--transport rdma", transport, by_rdma),
            ("--poll-us", transport && by_rdma && !arguments.overprovisioned, arguments.poll_us.is_some()),
            ("--pin", pin, arguments.pin),
            ("--overprovisioned", overprovisioned, arguments.overprovisioned),
        ];
        given.into_iter().filter(|(_, used, given)| *given && !used).map(|(name, ..)| name).collect()
    }

    fn run(&self, arguments: &Arguments) -> Outcome<Vec<Report>> {
        let (folder, overprovisioned, pin) = (arguments.dir.clone(), arguments.overprovisioned, arguments.pin);
        let (addresses, redo_bytes) = (arguments.address.clone(), nodes::REDO_BYTES);
        let transport = arguments.transport;
        let poll = if overprovisioned { Duration::ZERO } else { Duration::from_micros(arguments.poll_us.unwrap_or(POLL_US)) };
        let nodes = nodes::Options {
            folder: folder.clone(),
            overprovisioned,
            pin,
            addresses,
            transport,
            redo_bytes,
            bare_frames: false,
            poll,
        };
        let report = match self {
            What::Log { bytes, rounds, operations, durable, asked } => {
                let load =
                    (asked.rate.is_some() || asked.concurrency.is_some()).then(|| (asked.load(OPEN_LOOP_WORKERS), asked.time()));
                let (bytes, rounds, operations, durable) =
                    (*bytes as usize, *rounds, *operations, durable.map(DurableMethod::from));
                log::run(&log::Options { folder, bytes, rounds, operations, overprovisioned, durable, load })
            }
            What::Transfer { rounds, path, mode, concurrency, rate, contended } => transfer::run(&transfer::Options {
                nodes,
                paths: path.clone(),
                modes: mode.clone(),
                rounds: *rounds,
                concurrency: *concurrency,
                rate: rate.unwrap_or(0.0),
                contended: Duration::try_from_secs_f64(*contended)?,
            }),
            What::Lock { rounds } => lock::run(&lock::Options { nodes, rounds: *rounds }),
            What::Mail { calls } => mail::run(mail::Options { calls: *calls, pin }),
            What::Raw { rounds, concurrency, rate, seconds, no_sockperf } => {
                let (rounds, concurrency, rate) = (*rounds, *concurrency, *rate);
                let time = Duration::from_secs_f64(*seconds);
                raw::run(&raw::Options { nodes, rounds, concurrency, rate, time, sockperf: !no_sockperf })
            }
            What::Ways { rounds } => {
                let address = nodes.addresses_of(2)?[1];
                ways::run(&ways::Options { rounds: *rounds, overprovisioned, pin, address })
            }
            What::Store { rows, operation, write_percent, asked } => store::run(&store::Options {
                folder,
                rows: *rows,
                operations: operation.clone(),
                write_percent: *write_percent,
                load: asked.load(OPEN_LOOP_THREADS),
                time: asked.time(),
                pin,
                overprovisioned,
            }),
            What::Sql { server, user, database, protocol, rows, operation, statement, write_percent, asked } => {
                sql::run(&sql::Options {
                    addresses: server.clone(),
                    user: user.clone(),
                    database: database.clone(),
                    protocol: *protocol,
                    rows: *rows,
                    operations: operation.clone(),
                    statement: statement.clone(),
                    write_percent: *write_percent,
                    load: asked.load(OPEN_LOOP_THREADS),
                    time: asked.time(),
                })
            }
            What::Reads { rows, seconds, session_reads } => {
                let (rows, session_reads, time) = (*rows, *session_reads, Duration::from_secs_f64(*seconds));
                reads::run(&reads::Options { folder, rows, time, session_reads, pin, overprovisioned })
            }
            What::All => {
                let all: Outcome<Vec<_>> = What::all().iter().map(|what| what.run(arguments)).collect();
                return all.map(|reports| reports.into_iter().flatten().collect());
            }
            What::Compare { .. } => unreachable!("it runs nothing"),
        };
        report.map(|report| vec![report])
    }
}

fn write(path: &Path, text: &str) -> Outcome<()> {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    eprintln!("rusty-db-bench: wrote {}", path.display());
    Ok(())
}

fn compare(arguments: &Arguments, a: &Path, b: &Path) -> Outcome<()> {
    let (a, b) = (Document::read(a)?, Document::read(b)?);
    let comparison = Comparison::new(&a, &b);
    let json = || serde_json::to_string_pretty(&comparison.json()).expect("reports are numbers and texts");
    match arguments.json.as_deref() {
        Some(path) if path.as_os_str() == "-" => println!("{}", json()),
        Some(path) => {
            print!("{comparison}");
            write(path, &json())?;
        }
        None => print!("{comparison}"),
    }
    arguments.html.as_deref().map_or(Ok(()), |path| write(path, &html::comparison(&comparison)))
}

fn measure(arguments: &Arguments) -> Outcome<()> {
    if cfg!(debug_assertions) {
        eprintln!("rusty-db-bench: this is a debug build, its figures say little; build with --release");
    }
    // The first second of all time series begins here.
    let _ = rustydb_bench::samples::since_beginning();
    let mut document = Document::new(std::env::args().skip(1).collect(), &arguments.dir);
    document.reports = arguments.what.run(arguments)?;
    let json = || serde_json::to_string_pretty(&document).expect("reports are numbers and texts");
    match arguments.json.as_deref() {
        Some(path) if path.as_os_str() == "-" => println!("{}", json()),
        Some(path) => {
            println!("{document}");
            write(path, &json())?;
        }
        None => println!("{document}"),
    }
    arguments.html.as_deref().map_or(Ok(()), |path| write(path, &html::document(&document)))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let without_effect = arguments.what.without_effect(&arguments);
    if !without_effect.is_empty() {
        let words = format!("{} changes nothing here: leave it out", without_effect.join(", "));
        Arguments::command().error(ErrorKind::ArgumentConflict, words).exit();
    }
    let done = match &arguments.what {
        What::Compare { a, b } => compare(&arguments, a, b),
        _ => measure(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rusty-db-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound_and_all_is_all_but_sql_and_ways() {
        Arguments::command().debug_assert();
        assert_eq!(What::all().len(), 7);
        let parsed = Arguments::parse_from(["rusty-db-bench", "transfer", "--path", "two-way", "--json", "--rate", "5000"]);
        assert_eq!(parsed.json.as_deref(), Some(Path::new("-")), "--json without a file is standard output");
        assert!(Arguments::try_parse_from(["rusty-db-bench", "store", "--rate", "0"]).is_err());
    }

    #[test]
    fn options_that_would_change_nothing_are_refused() {
        let refused = |line: &str| {
            let arguments = Arguments::parse_from(line.split(' '));
            arguments.what.without_effect(&arguments)
        };
        let given = "--pin --address 127.0.0.1 --transport rdma --overprovisioned";
        for what in ["transfer", "raw", "lock", "all"] {
            assert!(refused(&format!("rusty-db-bench {what} {given}")).is_empty(), "{what}");
        }
        assert_eq!(refused(&format!("rusty-db-bench ways {given}")), ["--transport rdma"]);
        assert_eq!(refused(&format!("rusty-db-bench mail {given}")), ["--address", "--transport rdma", "--overprovisioned"]);
        assert_eq!(refused(&format!("rusty-db-bench log {given}")), ["--address", "--transport rdma", "--pin"]);
        assert!(refused("rusty-db-bench raw --transport rdma --poll-us 10").is_empty());
        for nothing in ["raw", "ways --transport tcp", "raw --transport rdma --overprovisioned"] {
            assert_eq!(refused(&format!("rusty-db-bench {nothing} --poll-us 10")), ["--poll-us"], "{nothing}");
        }
        for what in ["sql", "compare a.json b.json"] {
            assert_eq!(refused(&format!("rusty-db-bench {given} {what}")).len(), 4, "{what}");
            assert!(refused(&format!("rusty-db-bench {what} --json --dir /tmp")).is_empty(), "{what}");
        }
    }
}
