//! The simulator's program: which seeds, on how many threads, and what is said of them. The simulation itself is the
//! engine's ([`rustydb::sim`]); this only runs it again and again.

mod args;
mod report;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustydb::sim::{Failure, Options, Outcome, run, virtual_now_ns};

use self::args::Arguments;
use self::report::{Failed, Report};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit status 1 when a promise was broken.
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.verbose {
        log_on_virtual_time();
    }
    let seeds = seeds(&arguments);
    if !arguments.failover.is_empty() {
        return report::print_failovers(&arguments.failover, seeds[0]);
    }
    let started = Instant::now();
    let report = run_all(&arguments, &seeds, started);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report).expect("a report is plain data"));
    } else {
        println!("{report}");
    }
    if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The seeds that are asked for; fresh ones when none are.
fn seeds(arguments: &Arguments) -> Vec<u64> {
    if let Some(seed) = arguments.seed {
        return vec![seed];
    }
    if let Some(range) = &arguments.seeds {
        return range.clone().collect();
    }
    // Short ones, for people who type them again.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
    let first = (now % 1_000_000_000) * 1_000;
    (first..first + arguments.runs.unwrap_or(1)).collect()
}

fn options(arguments: &Arguments, seed: u64) -> Options {
    Options {
        nodes: arguments.nodes,
        shards: arguments.shards,
        duration: Duration::from_secs_f64(arguments.minutes * 60.0),
        calm: arguments.calm,
        damage: arguments.damage,
        ..Options::new(seed)
    }
}

fn run_all(arguments: &Arguments, seeds: &[u64], started: Instant) -> Report {
    let bar = ProgressBar::new(seeds.len() as u64);
    bar.set_style(
        ProgressStyle::with_template("{wide_bar} {pos}/{len} runs  {msg}  {elapsed}, {eta} left").expect("the template is sound"),
    );
    if arguments.json || arguments.verbose || seeds.len() == 1 || !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let (next, report) = (Mutex::new(seeds.iter()), Mutex::new(Report::default()));
    let stop = AtomicBool::new(false);
    let jobs = arguments.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let work = || {
        loop {
            let out_of_time = arguments.time_limit.is_some_and(|limit| started.elapsed() > Duration::from_secs(limit));
            if stop.load(Ordering::Relaxed) || out_of_time {
                return;
            }
            let Some(seed) = next.lock().expect("nobody panics while holding it").next() else { return };
            let (outcome, differs) = run_one(arguments, *seed);
            let failed = Failed::of(&outcome, differs);
            if let Some(failed) = &failed {
                bar.suspend(|| report::print_failure(arguments, &outcome, failed));
                stop.fetch_or(arguments.fail_fast, Ordering::Relaxed);
            } else if seeds.len() == 1 && !arguments.json {
                report::print_run(&outcome);
            }
            let mut report = report.lock().expect("nobody panics while holding it");
            report.add(&outcome, failed);
            bar.set_message(format!("{} failed", report.failures.len()));
            bar.inc(1);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, seeds.len().max(1)) {
            scope.spawn(work);
        }
    });
    bar.finish_and_clear();
    let mut report = report.into_inner().expect("nobody panics while holding it");
    report.took(started.elapsed());
    report
}

/// Runs a seed, twice if asked. The traces of the two when they are not the same.
fn run_one(arguments: &Arguments, seed: u64) -> (Outcome, Option<(u64, u64)>) {
    let options = options(arguments, seed);
    let outcome = run(&options);
    if !arguments.check_determinism {
        return (outcome, None);
    }
    let again = run(&options);
    let same = outcome.trace == again.trace && outcome.steps == again.steps && same_failure(&outcome.failure, &again.failure);
    let traces = (outcome.trace, again.trace);
    (outcome, (!same).then_some(traces))
}

fn same_failure(one: &Option<Failure>, other: &Option<Failure>) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
}

/// The engine's own log on standard error, each line with the virtual time.
fn log_on_virtual_time() {
    struct VirtualTime;
    impl tracing_subscriber::fmt::time::FormatTime for VirtualTime {
        fn format_time(&self, to: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
            write!(to, "{:14.6}", virtual_now_ns().unwrap_or(0) as f64 / 1e9)
        }
    }
    let filter = tracing_subscriber::EnvFilter::try_from_env("RUSTYDB_LOG").unwrap_or_else(|_| "info".into());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_timer(VirtualTime).with_ansi(false);
    log.with_writer(std::io::stderr).init();
}
