//! What is said of runs: one failure at once and in full, all runs in a few numbers.

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use rustydb::sim::{Outcome, failover};
use serde::Serialize;

use super::args::Arguments;

/// Events that a failure shows without `--verbose`.
const EVENTS_SHOWN: usize = 25;

/// A run that broke a promise.
#[derive(Debug, Serialize)]
pub(super) struct Failed {
    seed: u64,
    message: String,
    /// Repeats it.
    command: String,
    trace: String,
}

impl Failed {
    pub(super) fn of(outcome: &Outcome, differs: Option<(u64, u64)>) -> Option<Failed> {
        let message = match (&outcome.failure, differs) {
            (Some(failure), _) => failure.to_string(),
            (None, Some((one, other))) => {
                format!("the same seed gave two traces, {one:016x} and {other:016x}: something asks the real world")
            }
            (None, None) => return None,
        };
        let mut command = format!("cargo run --release -p rustydb-sim -- {}", outcome.options.arguments());
        if differs.is_some() {
            command += " --check-determinism";
        }
        Some(Failed { seed: outcome.options.seed, message, command, trace: format!("{:016x}", outcome.trace) })
    }
}

/// All runs.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    runs: u64,
    virtual_minutes: f64,
    seconds: f64,
    virtual_minutes_per_second: f64,
    steps: u64,
    faults: u64,
    /// Lives of nodes that were begun.
    lives: u64,
    committed: u64,
    /// By seed.
    traces: Vec<(u64, String)>,
    pub(super) failures: Vec<Failed>,
}

impl Report {
    pub(super) fn add(&mut self, outcome: &Outcome, failed: Option<Failed>) {
        self.runs += 1;
        self.virtual_minutes += outcome.virtual_time.as_secs_f64() / 60.0;
        self.steps += outcome.steps;
        self.faults += outcome.faults;
        self.lives += outcome.lives;
        self.committed += outcome.committed;
        self.traces.push((outcome.options.seed, format!("{:016x}", outcome.trace)));
        self.failures.extend(failed);
    }

    pub(super) fn took(&mut self, time: Duration) {
        self.seconds = time.as_secs_f64();
        self.virtual_minutes_per_second = self.virtual_minutes / self.seconds.max(1e-9);
        self.traces.sort_unstable();
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { runs, virtual_minutes, seconds, steps, faults, lives, committed, .. } = self;
        writeln!(
            f,
            "{runs} runs, {virtual_minutes:.1} virtual minutes in {seconds:.1} s ({:.2} virtual minutes a second), {} steps a second",
            self.virtual_minutes_per_second,
            (*steps as f64 / seconds.max(1e-9)) as u64
        )?;
        write!(f, "{committed} transactions acknowledged, {faults} faults, {lives} lives of nodes: ")?;
        match &self.failures[..] {
            [] => write!(f, "every promise was kept"),
            failures => {
                write!(f, "{} runs FAILED. To repeat them:", failures.len())?;
                failures.iter().try_for_each(|failed| write!(f, "\n  {}", failed.command))
            }
        }
    }
}

/// A run that went well, when it is the only one.
pub(super) fn print_run(outcome: &Outcome) {
    println!("seed {}  trace {:016x}", outcome.options.seed, outcome.trace);
    println!("{}", outcome.plan);
    let ends: Vec<String> = outcome.ends.iter().map(|(end, count)| format!("{end} {count}")).collect();
    println!("transactions: {}", ends.join(", "));
}

/// On standard error, so that `--json` stays what a program reads.
pub(super) fn print_failure(arguments: &Arguments, outcome: &Outcome, failed: &Failed) {
    eprintln!("seed {} FAILED, trace {}: {}", failed.seed, failed.trace, failed.message);
    eprintln!("{}", outcome.plan);
    let shown = if arguments.verbose { usize::MAX } else { EVENTS_SHOWN };
    let skipped = outcome.events.len().saturating_sub(shown);
    eprintln!("the last events, in seconds of virtual time:");
    outcome.events.iter().skip(skipped).for_each(|event| eprintln!("{event}"));
    eprintln!("repeat it with: {}\n", failed.command);
}

/// Measures one node's death in clusters of these sizes and prints a table.
pub(super) fn print_failovers(nodes: &[u8], seed: u64) -> ExitCode {
    println!("virtual milliseconds from the death; blocks of all survivors; bytes and messages of the busiest survivor");
    println!(
        "nodes  detected  in view  claims  pass 1  pass 2  all writable  redo free  blocks  read KiB  written KiB  sends  sent KiB"
    );
    for &nodes in nodes {
        let one = match failover(seed, nodes) {
            Ok(one) => one,
            Err(failure) => {
                eprintln!("{nodes} nodes: {failure}");
                return ExitCode::FAILURE;
            }
        };
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let us = |us: u64| us as f64 / 1e3;
        let (recovery, busiest) = (one.recovery, one.busiest);
        println!(
            "{nodes:5}  {:8.1}  {:7.1}  {:6.1}  {:6.1}  {:6.1}  {:12.1}  {:9.1}  {:6}  {:8}  {:11}  {:5}  {:8}",
            ms(one.detect),
            ms(one.view),
            us(recovery.claims_us),
            us(recovery.pass1_us),
            us(recovery.pass2_us),
            ms(one.writable),
            ms(one.recovered),
            recovery.blocks,
            busiest.read_bytes / 1024,
            busiest.written_bytes / 1024,
            busiest.sends,
            busiest.sent_bytes / 1024,
        );
    }
    ExitCode::SUCCESS
}
