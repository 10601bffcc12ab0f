//! Drives the cores through every order of events that a small world allows, and through long random orders of a larger
//! one. The bag of messages keeps no order at all, not even between two nodes: the protocol needs none.

mod membership;
mod world;

use std::collections::HashSet;
use std::hash::BuildHasherDefault;

use super::rules::Rule;
use crate::cache::Mode;
use crate::fusion::grd::BlockHasher;
use world::{Broken, Budget, Step, World};

/// A search that has found nothing after so many states is an error of the test, not of the protocol.
const STATES_MAX: usize = 4_000_000;

/// Something that must never happen, and how it came to it.
struct Violation {
    what: String,
    trace: Vec<Step>,
}

/// All states that can be reached from `start`: how many, or the first violation found.
fn exhaust(start: World) -> Result<usize, Violation> {
    let mut seen: HashSet<u64, BuildHasherDefault<BlockHasher>> = HashSet::default();
    // How each state was come by: its predecessor and the step from there.
    let mut history: Vec<(u32, Step)> = vec![(0, Step::Recall)];
    let mut stack = vec![(start, 0u32)];
    let mut steps = Vec::new();
    while let Some((world, index)) = stack.pop() {
        assert!(seen.len() < STATES_MAX, "the world is too large to be searched");
        world.steps(&mut steps);
        if !steps.iter().any(|step| step.finishes())
            && let Err(what) = world.check_quiet()
        {
            return Err(Violation { what, trace: trace_to(&history, index) });
        }
        for &step in &steps {
            let mut next = world.clone();
            if let Err(what) = next.apply(step) {
                let mut trace = trace_to(&history, index);
                trace.push(step);
                return Err(Violation { what, trace });
            }
            if seen.insert(next.fingerprint()) {
                history.push((index, step));
                stack.push((next, history.len() as u32 - 1));
            }
        }
    }
    Ok(seen.len())
}

fn trace_to(history: &[(u32, Step)], mut index: u32) -> Vec<Step> {
    let mut trace = Vec::new();
    while index != 0 {
        let (before, step) = history[index as usize];
        trace.push(step);
        index = before;
    }
    trace.reverse();
    trace
}

/// One long random walk, then everything begun is finished. The violation, if any.
fn walk(mut world: World, seed: u64, length: usize) -> Result<(), Violation> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % below
    };
    let mut trace = Vec::new();
    let mut steps = Vec::new();
    loop {
        if trace.len() == length {
            world.end_budget();
        }
        world.steps(&mut steps);
        if trace.len() >= length {
            steps.retain(|step| step.finishes());
        }
        if !steps.iter().any(|step| step.finishes())
            && let Err(what) = world.check_quiet()
        {
            return Err(Violation { what, trace });
        }
        if steps.is_empty() {
            assert!(trace.len() >= length, "the walk ended early");
            return Ok(());
        }
        let step = steps[random(steps.len())];
        trace.push(step);
        if let Err(what) = world.apply(step) {
            return Err(Violation { what, trace });
        }
    }
}

/// The trace in words, by doing it again.
fn tell(mut world: World, violation: &Violation) -> String {
    let mut story = String::new();
    for &step in violation.trace.iter() {
        story.push_str(&format!("  {}\n", world.describe_step(step)));
        let _ = world.apply(step);
    }
    format!("{}\nafter {} steps:\n{story}{}", violation.what, violation.trace.len(), world.describe())
}

fn must_hold(start: &World, outcome: Result<usize, Violation>) -> usize {
    outcome.unwrap_or_else(|violation| panic!("{}", tell(start.clone(), &violation)))
}

const SMALL: Budget = Budget {
    slow_disk: false,
    acquires: 4,
    writes: 2,
    hints: 0,
    evictions: 0,
    recalls: 0,
    wishes: 0,
    crashes: 0,
    joins: 0,
    moves: 0,
};

#[test]
fn no_order_of_events_between_two_nodes_breaks_a_rule() {
    let with_recalls = Budget { acquires: 3, writes: 1, evictions: 1, recalls: 1, wishes: 1, ..SMALL };
    let with_hints = Budget { writes: 1, hints: 1, evictions: 1, ..SMALL };
    for budget in [Budget { evictions: 2, ..SMALL }, with_recalls, with_hints] {
        let start = World::new(2, budget, Broken::Nothing);
        let states = must_hold(&start, exhaust(start.clone()));
        assert!(states > 20_000, "only {states} states are no exploration");
    }
}

#[test]
fn no_order_of_events_between_three_nodes_breaks_a_rule() {
    let with_evictions = Budget { acquires: 3, evictions: 1, ..SMALL };
    let with_recalls = Budget { acquires: 3, writes: 1, recalls: 1, ..SMALL };
    let with_hints = Budget { acquires: 3, writes: 1, hints: 1, ..SMALL };
    for budget in [SMALL, with_evictions, with_recalls, with_hints] {
        let start = World::new(3, budget, Broken::Nothing);
        let states = must_hold(&start, exhaust(start.clone()));
        assert!(states > 20_000, "only {states} states are no exploration");
    }
}

/// Messages that cross the network when this is done and all that follows from it.
fn cost(world: &mut World, step: Step) -> usize {
    let before = world.messages_over_network;
    let mut steps = Vec::new();
    let mut next = Some(step);
    while let Some(step) = next {
        world.apply(step).unwrap();
        world.steps(&mut steps);
        next = steps.iter().copied().find(|step| step.finishes());
    }
    world.check_quiet().unwrap();
    world.messages_over_network - before
}

#[test]
fn each_kind_of_transfer_costs_its_messages_and_no_more() {
    // The block is mastered by node 1, which has index 0.
    let budget = Budget { acquires: 9, evictions: 9, ..SMALL };

    let mut world = World::new(3, budget, Broken::Nothing);
    assert_eq!(cost(&mut world, Step::Acquire(0, Mode::Exclusive)), 0, "from disk, master and requester are one");
    assert_eq!(cost(&mut world, Step::Acquire(1, Mode::Exclusive)), 3, "2-way: request, data, done");
    assert_eq!(cost(&mut world, Step::Acquire(2, Mode::Exclusive)), 4, "3-way: request, forward, data, done");
    assert_eq!(cost(&mut world, Step::Acquire(0, Mode::Exclusive)), 2, "2-way from the master: forward, data");
    assert_eq!(cost(&mut world, Step::Write(0)), 0);
    assert_eq!(cost(&mut world, Step::Acquire(1, Mode::Exclusive)), 3, "a dirty block costs no more");
    assert_eq!(cost(&mut world, Step::Acquire(2, Mode::Shared)), 4, "3-way for a reader: request, forward, data, done");
    assert_eq!(cost(&mut world, Step::Acquire(2, Mode::Exclusive)), 5, "upgrade: request, invalidate, its answer, grant, done");

    let mut world = World::new(3, budget, Broken::Nothing);
    assert_eq!(cost(&mut world, Step::Acquire(1, Mode::Shared)), 3, "from disk: request, grant, done");
    assert_eq!(cost(&mut world, Step::Acquire(2, Mode::Shared)), 4, "Shared copies come from memory, too");
    assert_eq!(cost(&mut world, Step::Evict(1)), 2, "drop and its answer");
}

/// Long walks of 2 to 5 nodes in which everything may happen without end, and nodes be lost and come back so many times.
fn walks(seeds: u64, losses: u32, moves: u32) {
    let many = u32::MAX;
    let budget = Budget {
        slow_disk: true,
        acquires: many,
        writes: many,
        hints: many,
        evictions: many,
        recalls: many,
        wishes: many,
        crashes: losses,
        joins: losses,
        moves,
    };
    for seed in 1..=seeds {
        let start = World::new(2 + (seed % 4) as u8, budget, Broken::Nothing);
        let outcome = walk(start.clone(), seed, 2_000);
        must_hold(&start, outcome.map(|()| 0).inspect_err(|_| println!("seed {seed}")));
    }
}

#[test]
fn long_random_orders_break_no_rule() {
    walks(40, 0, 0);
}

/// The explorer must find what a broken rule leads to, in worlds as small as those that it clears above.
fn must_be_caught(broken: Broken, nodes: u8, budget: Budget) {
    let mut start = World::new(nodes, budget, broken);
    if broken == Broken::Core(Rule::EpochsMatch) {
        start.add_a_message_of_an_older_epoch();
    }
    match exhaust(start.clone()) {
        Ok(states) => panic!("{broken:?} was not noticed in {states} states"),
        Err(violation) => println!("{broken:?}: {}", tell(start, &violation)),
    }
}

#[test]
fn each_broken_rule_is_noticed() {
    let budget = Budget { evictions: 2, ..SMALL };
    must_be_caught(Broken::RedoFirst, 2, Budget { slow_disk: true, ..budget });
    must_be_caught(Broken::Core(Rule::EpochsMatch), 2, budget);
    must_be_caught(Broken::Core(Rule::ServeAfterDone), 2, budget);
    must_be_caught(Broken::Core(Rule::OneDirtyOwner), 3, Budget { acquires: 3, ..SMALL });
    must_be_caught(Broken::Core(Rule::StaleWroteClearsNothing), 3, budget);
    must_be_caught(Broken::NoShipUnderWrite, 2, budget);
    must_be_caught(Broken::Core(Rule::DropBeforeRequest), 2, budget);
    let loss = Budget { acquires: 2, writes: 1, crashes: 1, ..SMALL };
    must_be_caught(Broken::Core(Rule::RecoverBeforeGrant), 2, loss);
    must_be_caught(Broken::Core(Rule::EpochsMatch), 2, loss);
    must_be_caught(Broken::FenceFirst, 2, Budget { acquires: 3, writes: 2, ..loss });
}

#[test]
fn a_message_of_an_older_epoch_changes_nothing() {
    let mut start = World::new(2, Budget { acquires: 3, ..SMALL }, Broken::Nothing);
    start.add_a_message_of_an_older_epoch();
    must_hold(&start, exhaust(start.clone()));
}

/// Everything that a loss can meet: a node lost at each step, messages of the former epoch still on their way, the others
/// entering one after the other, claims in any order, a return. (A second loss in the middle: the walks below.)
#[test]
fn no_order_of_events_around_a_lost_node_breaks_a_rule() {
    let loss = Budget { acquires: 2, writes: 1, crashes: 1, ..SMALL };
    let two = World::new(2, Budget { acquires: 3, ..loss }, Broken::Nothing);
    let comes_back = World::new(2, Budget { joins: 1, ..loss }, Broken::Nothing);
    let three = World::new(3, loss, Broken::Nothing);
    for start in [two, comes_back, three] {
        let states = must_hold(&start, exhaust(start.clone()));
        assert!(states > 20_000, "only {states} states are no exploration");
    }
}

#[test]
fn long_random_orders_with_losses_and_returns_break_no_rule() {
    walks(60, 40, 0);
}

/// A change of the block's master at any moment, with everything that may meet it.
#[test]
fn no_order_of_events_around_a_change_of_master_breaks_a_rule() {
    let moves = Budget { acquires: 3, writes: 1, moves: 1, ..SMALL };
    let there_and_back = World::new(2, Budget { acquires: 2, evictions: 1, moves: 2, ..moves }, Broken::Nothing);
    let two = World::new(2, Budget { evictions: 1, wishes: 1, ..moves }, Broken::Nothing);
    let three = World::new(3, Budget { acquires: 2, ..moves }, Broken::Nothing);
    let recalled = World::new(3, Budget { acquires: 2, recalls: 1, evictions: 1, writes: 0, ..moves }, Broken::Nothing);
    for start in [there_and_back, two, three, recalled] {
        let states = must_hold(&start, exhaust(start.clone()));
        println!("{states} states");
        assert!(states > 20_000, "only {states} states are no exploration");
    }
}

/// A node lost, and a view begun, at each step of a change of master.
#[test]
fn no_order_of_events_around_a_loss_during_a_change_of_master_breaks_a_rule() {
    let moves = Budget { acquires: 2, writes: 1, crashes: 1, moves: 1, ..SMALL };
    let two = World::new(2, moves, Broken::Nothing);
    let three = World::new(3, Budget { acquires: 1, writes: 0, ..moves }, Broken::Nothing);
    for start in [two, three] {
        let states = must_hold(&start, exhaust(start.clone()));
        println!("{states} states");
        assert!(states > 20_000, "only {states} states are no exploration");
    }
}

#[test]
fn long_random_orders_with_changes_of_master_break_no_rule() {
    walks(40, 0, u32::MAX);
    walks(40, 40, u32::MAX);
}

#[test]
fn each_broken_rule_of_remastering_is_noticed() {
    let budget = Budget { acquires: 3, writes: 1, moves: 1, ..SMALL };
    must_be_caught(Broken::Core(Rule::DrainBeforeHandOver), 2, budget);
    must_be_caught(Broken::Core(Rule::EntriesBeforeServe), 2, budget);
    must_be_caught(Broken::Core(Rule::AllKnowBeforeServe), 3, budget);
    must_be_caught(Broken::Core(Rule::OnlyTheMasterApplies), 2, budget);
    must_be_caught(Broken::Core(Rule::StragglersAreRelayed), 2, budget);
}
