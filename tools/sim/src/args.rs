//! The simulator's arguments.

use std::ops::Range;

use clap::Parser;

const EXAMPLES: &str = "\
Examples:
  rusty-db-sim --seed 42                                 ten virtual minutes of this seed
  rusty-db-sim --seed 42 --verbose 2>log                 with the nodes' logs, on virtual time
  rusty-db-sim --runs 100 --check-determinism            fresh seeds, each twice
  rusty-db-sim --seeds 0..100000 --time-limit 28800      a night
  rusty-db-sim --runs 50 --minutes 2 --json              for a program

A failure prints the command that repeats it. Build with --release. docs/simulator.md tells more.";

/// Simulates whole RustyDB clusters on virtual time, with crashes, power losses, bad disks and networks, from seeds.
#[derive(Debug, Parser)]
#[command(name = "rusty-db-sim", version, after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Run this seed; without --seed, --seeds and --runs, one fresh seed
    #[arg(long, value_name = "N", conflicts_with_all = ["seeds", "runs"])]
    pub(super) seed: Option<u64>,
    /// Run these seeds
    #[arg(long, value_name = "A..B", value_parser = range, conflicts_with = "runs")]
    pub(super) seeds: Option<Range<u64>>,
    /// Run so many fresh seeds
    #[arg(long, value_name = "N")]
    pub(super) runs: Option<u64>,
    /// Virtual minutes with faults, for each seed
    #[arg(long, default_value_t = 10.0, value_parser = minutes)]
    pub(super) minutes: f64,
    /// Nodes; three when not given
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(super) nodes: Option<u8>,
    /// Shards of each node; drawn from the seed when not given
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub(super) shards: Option<u8>,
    /// Instead: let one of so many nodes die under load and measure what that costs the others
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', value_parser = clap::value_parser!(u8).range(3..=100))]
    pub(super) failover: Vec<u8>,
    /// No faults
    #[arg(long)]
    pub(super) calm: bool,
    /// The disk rots and writes go astray: what is damaged must be named, and nothing wrong be shown
    #[arg(long)]
    pub(super) damage: bool,
    /// Run each seed twice and compare: the same seed must give the same trace
    #[arg(long)]
    pub(super) check_determinism: bool,
    /// Threads, each with a simulation of its own; as many as there are cores when not given
    #[arg(long, value_name = "N")]
    pub(super) jobs: Option<usize>,
    /// Begin no further run after so many seconds
    #[arg(long, value_name = "SECONDS")]
    pub(super) time_limit: Option<u64>,
    /// Begin no further run after a failure
    #[arg(long)]
    pub(super) fail_fast: bool,
    /// Print the nodes' logs on standard error, and all last events of a failure; RUSTYDB_LOG chooses what
    #[arg(long)]
    pub(super) verbose: bool,
    /// Print a summary as JSON
    #[arg(long)]
    pub(super) json: bool,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let parsed = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    parsed.filter(|range: &Range<u64>| !range.is_empty()).ok_or_else(|| "write it as 0..100: the second is left out".into())
}

fn minutes(text: &str) -> Result<f64, String> {
    let parsed: Option<f64> = text.parse().ok();
    parsed.filter(|minutes| *minutes > 0.0 && *minutes <= 10_000.0).ok_or_else(|| "more than 0, at most 10000".into())
}
