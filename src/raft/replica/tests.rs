//! Replicas in worlds that lose, delay, double and reorder messages, part and heal networks, and crash nodes with what they
//! had not made durable; and the guards for what raft-rs lacks, one by one.

mod guards;
mod world;

use world::{Faults, World};

#[test]
fn groups_agree_and_lose_nothing_whatever_happens() {
    for seed in 1..=150 {
        let mut world = World::new(seed, 3, Faults::ALL);
        world.run(2_500);
        world.heal_and_check();
    }
}

#[test]
fn five_nodes_change_their_members_under_faults() {
    let mut changes = 0;
    for seed in 1..=60 {
        let mut world = World::new(seed, 5, Faults { changes: true, ..Faults::ALL });
        world.run(4_000);
        world.heal_and_check();
        changes += world.changes_applied;
    }
    assert!(changes > 100, "only {changes} changes of the members came about");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let trace = |seed| {
        let mut world = World::new(seed, 3, Faults { changes: true, ..Faults::ALL });
        world.run(3_000);
        world.trace
    };
    for seed in [3, 17] {
        assert_eq!(trace(seed), trace(seed));
    }
    assert_ne!(trace(3), trace(17));
}

#[test]
fn without_faults_a_leader_is_found_and_keeps_its_office() {
    for seed in 1..=20 {
        let mut world = World::new(seed, 3, Faults::NONE);
        world.heal_and_check();
        let terms = world.leaders.len();
        world.rounds(2_000);
        assert_eq!(world.leaders.len(), terms, "seed {seed}: nobody had a reason to stand for election");
    }
}
