//! What a lock costs between two nodes, by where its master is and who had it last.
//!
//! Locks of nodes, Exclusive, each on a name of its own, one after the other: granted by a master on this node or on the other;
//! held here already; and kept by the other node, which gave it back but has to be asked first. A bare TCP round trip of 64
//! bytes takes its turns beside them.

use std::rc::Rc;
use std::time::Instant;

use rustydb::fusion::ges::{LockMode, LockOwner, Resource, ResourceClass, WaitPolicy};
use rustydb::ids::NodeId;

use crate::Outcome;
use crate::nodes::{NODES, Nodes, Options as NodesOptions, Parts};
use crate::raw::{PingPong, Size};
use crate::report::{Report, Samples};

/// Locks of a turn.
const LOCKS: usize = 200;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the nodes are made.
    pub nodes: NodesOptions,
    /// Rounds; in each, every way has its turn.
    pub rounds: u32,
}

/// Names that `master` masters, none of which was used before.
fn names(master: NodeId, next: &mut u64) -> Vec<Resource> {
    let mut found = Vec::new();
    while found.len() < LOCKS {
        *next += 1;
        let resource = Resource::new(ResourceClass::USER, *next, 0);
        if resource.master(NODES[..2].iter().copied()) == Some(master) {
            found.push(resource);
        }
    }
    found
}

/// Locks them and gives them up; the node keeps them until another wants them.
async fn lock_all(parts: Rc<Parts>, node: NodeId, names: Vec<Resource>) -> Outcome<Samples> {
    let mut samples = Samples::new();
    let owner = LockOwner::Node(node);
    for name in names {
        let began = Instant::now();
        let handle =
            parts.ges.lock(name, owner, LockMode::Exclusive, WaitPolicy::Wait).await.map_err(|error| error.to_string())?;
        samples.record_alone(began.elapsed());
        parts.ges.unlock(handle);
    }
    Ok(samples)
}

/// Takes the figures.
///
/// # Errors
/// When there is no room, no thread or no port.
pub fn run(options: &Options) -> Outcome<Report> {
    let nodes = Nodes::start(2, &options.nodes)?;
    let mut bare = PingPong::start(options.nodes.addresses_of(2)?[1])?;
    let mut bare_samples = Samples::new();
    let ways = [
        "new name, its master is this node",
        "new name, its master is the other node",
        "kept by the other node, which is its master",
        "kept by the other node, its master is this node",
        "kept here since the last time",
    ];
    let mut samples = ways.map(|_| Samples::new());
    let mut next = 0;
    for round in 0..=options.rounds {
        if round == 1 {
            // The first round only warmed everything up.
            (samples, bare_samples) = (ways.map(|_| Samples::new()), Samples::new());
        }
        let lock = |node: usize, names: &[Resource]| {
            let names = names.to_vec();
            nodes.nodes[node].run(move |parts| lock_all(parts, NODES[node], names))
        };
        let (mine, theirs) = (names(NODES[0], &mut next), names(NODES[1], &mut next));
        samples[0].add(&lock(0, &mine)?);
        samples[1].add(&lock(0, &theirs)?);
        // The second node takes both, and then the first wants them again.
        lock(1, &mine)?;
        lock(1, &theirs)?;
        samples[2].add(&lock(0, &theirs)?);
        samples[3].add(&lock(0, &mine)?);
        samples[4].add(&lock(0, &mine)?);
        bare_samples.add(&bare.round_trips(Size::Lock, LOCKS)?);
    }
    let mut report = Report::new("lock");
    options.nodes.tell(&mut report);
    report.setting("rounds", options.rounds);
    report.condition(format!("{}; Exclusive; closed loop, one at a time", options.nodes.places(2)?));
    report.condition(Size::Lock.words());
    report.series(bare_samples.series("bare TCP round trip"));
    for (way, samples) in ways.into_iter().zip(&samples) {
        report.series(samples.series(way));
    }
    for way in [1, 2, 3] {
        let ratio = samples[way].median_ns() / bare_samples.median_ns();
        report.figure(format!("{} / bare round trip, medians", ways[way]), ratio, "times", None);
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_of_every_way_are_taken() {
        let nodes = crate::nodes::quick();
        let report = run(&Options { nodes, rounds: 1 }).expect("two ports and some room in the temporary folder");
        assert!(report.series.iter().all(|series| series.operations == LOCKS as u64), "{report}");
        assert_eq!(report.series.len(), 6);
    }
}
