//! A whole cluster in one thread on virtual time, from one seed: nodes, disk, network, clients, and everything that goes
//! wrong with them. The programs around it are `rusty-db-sim` and the tests; `docs/simulator.md` tells people how to use it.
//!
//! [`run`] draws a plan from the seed, forms a cluster of real nodes ([`crate::cluster::HostedNode`]) on the simulated
//! driver, lets clients work and faults happen, then ends the faults and demands that everything goes on. What clients
//! were told is held against what is there. The same seed and options give the same trace, event by event. Owned by the
//! calling thread, which may run one simulation at a time; bounded by the plan.

mod check;
mod dice;
mod events;
mod history;
mod plan;
mod run;
#[cfg(test)]
mod tests;
mod workload;

use std::fmt;
use std::time::Duration;

pub use events::virtual_now_ns;
pub use run::{Failover, failover, run};

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Everything comes from it.
    pub seed: u64,
    /// Nodes, 1 to 100; three when not given.
    pub nodes: Option<u8>,
    /// Shards of each node; drawn when not given.
    pub shards: Option<u8>,
    /// Virtual time with faults. Forming, ending and checking come on top.
    pub duration: Duration,
    /// No faults at all.
    pub calm: bool,
    /// The disk rots and writes go astray. What is damaged must be named, and nothing wrong be shown; progress is not
    /// demanded, because nobody has a second copy.
    pub damage: bool,
}

impl Options {
    /// Ten virtual minutes of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Options {
        Options { seed, nodes: None, shards: None, duration: Duration::from_secs(600), calm: false, damage: false }
    }

    /// The program's arguments that repeat this run.
    #[must_use]
    pub fn arguments(&self) -> String {
        let mut text = format!("--seed {}", self.seed);
        let minutes = self.duration.as_secs_f64() / 60.0;
        text += &format!(" --minutes {minutes}");
        if let Some(nodes) = self.nodes {
            text += &format!(" --nodes {nodes}");
        }
        if let Some(shards) = self.shards {
            text += &format!(" --shards {shards}");
        }
        if self.calm {
            text += " --calm";
        }
        if self.damage {
            text += " --damage";
        }
        text
    }
}

/// How a run went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was run.
    pub options: Options,
    /// Over everything that happened: equal for equal options and code.
    pub trace: u64,
    /// Virtual time that went by.
    pub virtual_time: Duration,
    /// Turns of shards and events of the world.
    pub steps: u64,
    /// What the plan was, for people.
    pub plan: String,
    /// Faults that happened.
    pub faults: u64,
    /// Lives of nodes that were begun.
    pub lives: u64,
    /// Transactions that were acknowledged.
    pub committed: u64,
    /// Transactions by their end: a SQLSTATE, or a word.
    pub ends: Vec<(String, u64)>,
    /// The last things that the simulation did and saw.
    pub events: Vec<String>,
    /// What went wrong; `None` when every promise was kept.
    pub failure: Option<Failure>,
}

/// A promise that was broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// An assertion of the engine failed, or it panicked.
    Panic(String),
    /// Clients saw what they must not see.
    Broken(Vec<String>),
    /// Something did not go on although nothing kept it from going on.
    NoProgress(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Panic(message) => write!(f, "panic: {message}"),
            Failure::Broken(promises) => {
                write!(f, "{} promises were broken:", promises.len())?;
                promises.iter().take(5).try_for_each(|promise| write!(f, "\n  {promise}"))
            }
            Failure::NoProgress(what) => write!(f, "no progress: {what}"),
        }
    }
}
