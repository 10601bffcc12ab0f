//! A few fixed seeds and fresh ones, for a bounded time. A failure prints the seed and the command that repeats it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::plan::{Fault, Plan};
use super::run::run_plan;
use super::{Options, Outcome, failover, run};
use crate::fusion::gcs::Rule as GcsRule;
use crate::reactor::driver::sim::SimOptions;
use crate::reactor::task::executors_here;
use crate::rules::{DesignRule, without};

/// Runs a simulation twice: it keeps every promise, the same way.
fn kept_its_promises(options: &Options) -> Outcome {
    let outcome = run(options);
    let arguments = options.arguments();
    if let Some(failure) = &outcome.failure {
        let events = outcome.events.join("\n");
        panic!("{failure}\n{events}\nrepeat it with: cargo run --release -p rustydb-sim -- {arguments}");
    }
    let again = run(options);
    assert_eq!(
        (outcome.trace, outcome.steps, &outcome.ends),
        (again.trace, again.steps, &again.ends),
        "the same seed went two ways: cargo run --release -p rustydb-sim -- {arguments} --check-determinism"
    );
    outcome
}

fn seconds(seed: u64, seconds: u64) -> Options {
    Options { duration: Duration::from_secs(seconds), ..Options::new(seed) }
}

#[test]
fn fixed_seeds_keep_their_promises() {
    let (mut faults, mut lives, mut committed) = (0, 0, 0);
    // Of nodes that join, that leave, and neither.
    for seed in [26, 32, 112, 128] {
        let outcome = kept_its_promises(&seconds(seed, 20));
        faults += outcome.faults;
        lives += outcome.lives;
        committed += outcome.committed;
    }
    assert!(faults > 5 && lives > 20 && committed > 500, "{faults} faults, {lives} lives, {committed} commits");
}

#[test]
fn fresh_seeds_keep_their_promises() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_millis() as u64;
    for number in 0..3 {
        kept_its_promises(&seconds((now % 1_000_000_000) * 1_000 + number, 15));
    }
}

/// Tables come and go, their space goes from one to the next, and what their clients have begun goes on after they hung up.
#[test]
fn a_write_to_a_dropped_table_reaches_nobody_elses_block() {
    for seed in 0..6 {
        let options = Options { calm: true, ..seconds(seed, 10) };
        let drawn = Plan::draw(&options);
        let plan = Plan {
            tables_per_cent: 100,
            hangs_up_per_cent: 30,
            think: Duration::from_millis(40),
            cache_bytes: 1 << 20,
            fills_volume: false,
            ..drawn
        };
        let outcome = run_plan(&options, plan);
        assert_eq!(outcome.failure, None, "seed {seed}");
    }
}

#[test]
fn nothing_is_left_of_a_run() {
    let before = executors_here();
    // With lives that end in every way: killed at any step, stopped, over.
    let lives: u64 = [4, 5, 6].map(|seed| run(&seconds(seed, 10)).lives).iter().sum();
    assert!(lives > 9, "{lives} lives");
    assert_eq!(executors_here() - before, 0, "reactors outlive their world");
}

#[test]
fn without_faults_nobody_is_told_of_any() {
    let options = Options { calm: true, nodes: Some(2), ..seconds(7, 10) };
    let outcome = kept_its_promises(&options);
    assert_eq!((outcome.faults, outcome.lives >= 2), (0, true));
    let unavailable = |(end, _): &&(String, u64)| ["57P03", "58030", "40003", "XX001"].contains(&end.as_str());
    assert_eq!(outcome.ends.iter().find(unavailable), None);
}

/// The disk turns bits around and puts writes in other places: what is damaged is named, and nothing wrong is ever shown.
#[test]
fn damage_on_the_disk_is_named_and_never_shown() {
    let mut named = 0;
    for seed in 0..4 {
        let outcome = run(&Options { damage: true, ..seconds(seed, 15) });
        assert_eq!(outcome.failure, None, "seed {seed}: {}", outcome.events.join("\n"));
        named += outcome.ends.iter().filter(|(end, _)| end == "XX001").map(|(_, count)| count).sum::<u64>();
        named += outcome.events.iter().filter(|event| event.contains("has failed") && event.contains("block ")).count() as u64;
    }
    assert!(named > 0, "damage was never met");
}

/// What one survivor does for a dead node is what the dead node had changed, however many survivors there are; what they say
/// to each other is a few words to each.
#[test]
fn what_a_death_costs_a_survivor_does_not_grow_with_the_cluster() {
    let [few, many] = [3, 12].map(|nodes| failover(1, nodes).unwrap_or_else(|failure| panic!("{nodes} nodes: {failure}")));
    assert!(few.recovery.blocks > 10 && many.recovery.blocks > 10, "{few:?} {many:?}");
    assert!(many.busiest.read_bytes <= few.busiest.read_bytes * 3 / 2, "{few:?} {many:?}");
    assert!(many.busiest.written_bytes <= few.busiest.written_bytes * 2, "{few:?} {many:?}");
    let per_peer = |failover: &super::Failover| failover.busiest.sends / u64::from(failover.nodes - 2);
    assert!(per_peer(&many) <= per_peer(&few), "{few:?} {many:?}");
}

/// How many seeds a broken rule may take to be noticed.
const SEEDS_MAX: u64 = 150;

/// A busy cluster with hot rows, checkpoints all the time, and just these faults: what it takes to see a rule broken soon.
/// Messages take anything up to 3 ms, so that connections overtake each other.
fn busy(seed: u64, faults: &[Fault], fault_interval_ms: u64) -> (Options, Plan) {
    let options = Options { shards: Some(1), ..seconds(seed, 15) };
    let drawn = Plan::draw(&options);
    let plan = Plan {
        world: SimOptions { network_us: (10, 3_000), ..drawn.world.clone() },
        faults: faults.to_vec(),
        fault_interval: Duration::from_millis(fault_interval_ms),
        checkpoint_interval_s: 1,
        clients: 9,
        think: Duration::from_millis(30),
        accounts: 4,
        lists: 2,
        fills_volume: false,
        ..drawn
    };
    (options, plan)
}

/// Switches a rule off and runs one seed after the other until one fails.
#[track_caller]
fn is_noticed(rule: impl Copy + std::fmt::Debug + 'static, faults: &[Fault], fault_interval_ms: u64) {
    is_noticed_in(rule, |seed| busy(seed, faults, fault_interval_ms));
}

#[track_caller]
fn is_noticed_in(rule: impl Copy + std::fmt::Debug + 'static, run_of: impl Fn(u64) -> (Options, Plan)) {
    let failure = |seed| {
        let (options, plan) = run_of(seed);
        without(rule, || run_plan(&options, plan)).failure.map(|failure| (seed, failure.to_string()))
    };
    let (seed, failure) = (0..SEEDS_MAX).find_map(failure).unwrap_or_else(|| panic!("{rule:?} is broken, and nobody notices"));
    println!("{rule:?} is noticed with seed {seed}: {}", failure.lines().take(3).collect::<Vec<_>>().join(" "));
}

#[test]
fn a_block_shipped_before_its_redo_is_noticed() {
    is_noticed(DesignRule::RedoBeforeShip, &[Fault::Crash, Fault::PowerLoss], 1_000);
}

/// A node that stood still writes, when it wakes, what it had changed before: over what the others have written since. It
/// shows where a block is read again: caches are small, and everything loses its power now and then.
#[test]
fn a_recovery_before_the_fence_is_noticed() {
    is_noticed_in(DesignRule::RecoverAfterFence, |seed| {
        let (options, plan) = busy(seed, &[Fault::Pause, Fault::Pause, Fault::PowerLoss], 6_000);
        let options = Options { duration: Duration::from_secs(60), ..options };
        let (heartbeat_interval_ms, heartbeat_timeout_ms) = (200, 1_000);
        let plan = Plan { heartbeat_interval_ms, heartbeat_timeout_ms, cache_bytes: 1 << 20, pause_ms: (4_000, 9_000), ..plan };
        (options, plan)
    });
}

#[test]
fn a_message_of_an_older_epoch_is_noticed() {
    is_noticed(DesignRule::OlderEpochsDropped, &[Fault::Crash, Fault::SlowNetwork], 500);
}

#[test]
fn a_block_that_counts_as_written_too_early_is_noticed() {
    // A crash must come while a write hangs that has counted already.
    is_noticed_in(DesignRule::WrittenAfterWrite, |seed| {
        busy(seed, &[Fault::DiskStall, Fault::Crash], [500, 250, 1_000][seed as usize % 3])
    });
}

#[test]
fn a_waiter_served_before_done_is_noticed() {
    is_noticed(GcsRule::ServeAfterDone, &[Fault::SlowNetwork], 2_000);
}

#[test]
fn a_grant_from_disk_beside_an_owner_is_noticed() {
    is_noticed(GcsRule::OneDirtyOwner, &[Fault::SlowNetwork], 2_000);
}

#[test]
fn a_block_shipped_while_it_is_written_is_noticed() {
    is_noticed(DesignRule::NotShippedWhileWritten, &[Fault::SlowNetwork], 2_000);
}

#[test]
fn a_node_that_slept_and_shows_what_was_true_is_noticed() {
    is_noticed(DesignRule::LeaseToRead, &[Fault::Pause], 3_000);
}

#[test]
fn an_scn_used_again_is_noticed() {
    is_noticed(DesignRule::ScnsNeverReused, &[Fault::ClockJump, Fault::ClockJump, Fault::PowerLoss], 500);
}

#[test]
fn a_busy_cluster_that_keeps_all_rules_keeps_its_promises() {
    // What the broken rules are noticed with must not be what breaks the promises.
    let faults =
        [(&[Fault::DiskStall, Fault::Crash][..], 500), (&[Fault::Crash, Fault::PowerLoss], 1_000), (&[Fault::Pause], 3_000)];
    for (faults, fault_interval_ms) in faults {
        let (options, plan) = busy(21, faults, fault_interval_ms);
        let outcome = run_plan(&options, plan);
        assert!(outcome.failure.is_none(), "{faults:?}: {:?}", outcome.failure.map(|failure| failure.to_string()));
    }
}
