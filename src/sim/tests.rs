//! A few fixed seeds and fresh ones, for a bounded time. A failure prints the seed and the command that repeats it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Options, Outcome, run};

fn kept_its_promises(options: &Options) -> Outcome {
    let outcome = run(options);
    if let Some(failure) = &outcome.failure {
        let (events, arguments) = (outcome.events.join("\n"), options.arguments());
        panic!("{failure}\n{events}\nrepeat it with: cargo run --release --bin rusty-db-sim -- {arguments}");
    }
    outcome
}

fn seconds(seed: u64, seconds: u64) -> Options {
    Options { duration: Duration::from_secs(seconds), ..Options::new(seed) }
}

#[test]
fn a_seed_runs_twice_the_same_way_and_another_seed_does_not() {
    let once = |seed| {
        let outcome = kept_its_promises(&seconds(seed, 15));
        (outcome.trace, outcome.steps, outcome.ends)
    };
    let first = once(8);
    assert_eq!(first, once(8));
    assert_ne!(first, once(9));
}

#[test]
fn fixed_seeds_keep_their_promises() {
    let (mut faults, mut lives, mut committed) = (0, 0, 0);
    for seed in [4, 14, 112, 128] {
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

#[test]
fn without_faults_nobody_is_told_of_any() {
    let options = Options { calm: true, nodes: Some(2), ..seconds(7, 10) };
    let outcome = kept_its_promises(&options);
    assert_eq!((outcome.faults, outcome.lives >= 2), (0, true));
    let unavailable = |(end, _): &&(String, u64)| ["57P03", "58030", "40003", "XX001"].contains(&end.as_str());
    assert_eq!(outcome.ends.iter().find(unavailable), None);
}
