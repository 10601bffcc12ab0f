//! What it takes to get a block from another node's memory: Cache Fusion beside a bare TCP round trip of the same bytes.
//!
//! Blocks lie at one of two nodes, and the other takes them. On the **two-way** path one of the two is their master; on
//! the **three-way** path a third node is. They are taken in mode Exclusive (to and fro), or Shared (then the first takes them
//! back, which is not counted). A *clean* block is as on disk. A *dirty* one was changed by whoever gives it away, and leaves a
//! past image there; its redo is on disk by then (what is not costs a durable write more, see `log`). *Contended* blocks
//! are wanted by several tasks of both nodes all the time.
//!
//! Each way takes its turn of some 64 blocks, and then as many bare round trips (64 bytes there, 64 and a block back, blocking
//! sockets without delay) have theirs.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use rustydb::fusion::gcs::message::Kind;
use rustydb::ids::{BlockId, Lsn};
use rustydb::volume::block::BlockKind;
use rustydb::volume::change::Change;

use crate::Outcome;
use crate::load::{Limit, Load, OPEN_LOOP_WORKERS, Schedule, drive};
use crate::nodes::{NODES, Nodes, Options as NodesOptions, Parts, Transport};
use crate::raw::{PingPong, Size};
use crate::report::{Report, Samples, Target};

/// Blocks of each set, which go to and fro.
const BLOCKS: usize = 64;
/// Blocks of the set that is taken with many requests under way.
const MANY: usize = 1_024;
/// Bytes of redo that a change of a counter takes at most.
const CHANGE_BYTES: usize = 1000;
/// A transfer takes at most so many bare round trips.
const TRANSFER_TARGET: Target = Target::AtMost(2.0);
/// Tasks of each node that want the contended blocks.
const RIVALS: u32 = 4;

/// Who masters the blocks that a node takes from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Path {
    /// One of the two nodes is the master.
    TwoWay,
    /// A third node is.
    ThreeWay,
}

/// In which mode they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TakenAs {
    /// Shared, to be read.
    #[value(name = "s")]
    Shared,
    /// Exclusive, to be changed.
    #[value(name = "x")]
    Exclusive,
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the nodes are made.
    pub nodes: NodesOptions,
    /// The paths.
    pub paths: Vec<Path>,
    /// The modes.
    pub modes: Vec<TakenAs>,
    /// Rounds; in each, every way has its turn.
    pub rounds: u32,
    /// Requests under way at once, for the rate; 0 leaves it out.
    pub concurrency: u32,
    /// Requests a second of an open loop after that; 0 leaves it out.
    pub rate: f64,
    /// How long blocks are contended for; zero leaves it out.
    pub contended: Duration,
}

/// Formats the blocks as one node's.
async fn create(parts: Rc<Parts>, blocks: Vec<BlockId>) -> Outcome<()> {
    for block in blocks {
        let mut mtr = parts.cache.begin_mtr(CHANGE_BYTES).await?;
        let mut guard = parts.cache.create(block).await?;
        mtr.change(&mut guard, &Change::Format { kind: BlockKind::TreeLeaf, user_len: 0, user_header: &[] });
        mtr.change(&mut guard, &Change::InsertCell { slot: 0, key: b"count", value: &0u64.to_le_bytes() });
        mtr.finish();
    }
    if !parts.cache.checkpoint_fully(Duration::from_secs(30)).await? {
        return Err("the new blocks did not get to the disk".into());
    }
    Ok(())
}

/// Takes the blocks from the other node in mode Exclusive, and changes them if they are to be `dirty`.
async fn take(parts: Rc<Parts>, blocks: Vec<BlockId>, dirty: bool, round: u32) -> Outcome<Samples> {
    let mut samples = Samples::new();
    let mut end = Lsn(0);
    for block in blocks {
        let mtr = if dirty { Some(parts.cache.begin_mtr(CHANGE_BYTES).await?) } else { None };
        assert!(parts.cache.try_write(block).is_none(), "{block} is at the other node");
        let began = Instant::now();
        let mut guard = parts.cache.write(block).await?;
        samples.record_alone(began.elapsed());
        if let Some(mut mtr) = mtr {
            mtr.change(&mut guard, &Change::ReplaceValue { slot: 0, value: &u64::from(round).to_le_bytes() });
            end = mtr.finish();
        }
    }
    parts.log.flush_to(end).await?;
    Ok(samples)
}

/// Takes the blocks from the other node in mode Shared.
async fn read(parts: Rc<Parts>, blocks: Vec<BlockId>) -> Outcome<Samples> {
    let mut samples = Samples::new();
    for block in blocks {
        assert!(parts.cache.try_read(block).is_none(), "{block} is at the other node");
        let began = Instant::now();
        parts.cache.read(block).await?;
        samples.record_alone(began.elapsed());
    }
    Ok(samples)
}

/// Takes them as the schedule asks.
async fn take_many(parts: Rc<Parts>, blocks: Vec<BlockId>, load: Load) -> Outcome<Samples> {
    let schedule = Rc::new(Schedule::new(load, Duration::ZERO, Limit::Count(blocks.len() as u64)));
    let (reactor, blocks) = (parts.reactor.clone(), Rc::new(blocks));
    let take = move |_, number: u64| {
        let (parts, block) = (parts.clone(), blocks[number as usize]);
        async move { Ok(parts.cache.write(block).await.map(drop)?) }
    };
    drive(&reactor, &schedule, take).await
}

/// Tasks that all want the same blocks, until the time is over.
async fn rival(parts: Rc<Parts>, blocks: Vec<BlockId>, time: Duration) -> Outcome<Samples> {
    let schedule = Rc::new(Schedule::lasting(Load::Closed { concurrency: RIVALS }, time));
    let reactor = parts.reactor.clone();
    let count = Rc::new(Cell::new(0u64));
    let change = move |_, number: u64| {
        let (parts, count, block) = (parts.clone(), count.clone(), blocks[number as usize % blocks.len()]);
        async move {
            let mut mtr = parts.cache.begin_mtr(CHANGE_BYTES).await?;
            let mut guard = parts.cache.write(block).await?;
            count.set(count.get() + 1);
            mtr.change(&mut guard, &Change::ReplaceValue { slot: 0, value: &count.get().to_le_bytes() });
            mtr.finish();
            Ok(())
        }
    };
    drive(&reactor, &schedule, change).await
}

/// A set of blocks that goes between the first two nodes.
struct Set {
    name: String,
    path: Path,
    mode: TakenAs,
    dirty: bool,
    /// Index of the master.
    master: usize,
    blocks: Vec<BlockId>,
    /// By whether the taker is the master; all in the first where a third is.
    samples: [Samples; 2],
    messages: [u64; 2],
}

impl Set {
    fn ways(&self) -> Range<usize> {
        if self.path == Path::TwoWay { 0..2 } else { 0..1 }
    }

    fn way_words(&self, way: usize) -> &'static str {
        match (self.path, way) {
            (Path::ThreeWay, _) => "three-way",
            (Path::TwoWay, 0) => "two-way, the giver is the master",
            (Path::TwoWay, _) => "two-way, the taker is the master",
        }
    }

    /// What a transfer costs in messages, where nothing else is going on: one to ask, one that passes it on, the block, one
    /// that it has arrived; a node sends itself none.
    fn messages_wanted(&self, way: usize) -> Option<Target> {
        let exclusive = self.mode == TakenAs::Exclusive && !self.dirty;
        let wanted = match (self.path, way) {
            (Path::ThreeWay, _) => 4.0,
            (Path::TwoWay, 0) => 3.0,
            (Path::TwoWay, _) => 2.0,
        };
        exclusive.then_some(Target::Exactly(wanted))
    }

    fn forget(&mut self) {
        (self.samples, self.messages) = ([Samples::new(), Samples::new()], [0; 2]);
    }
}

/// Messages about single blocks: not what nodes tell each other of their load and their buckets.
fn of_blocks(messages: &[u64; Kind::ALL.len()]) -> u64 {
    Kind::ALL.iter().filter(|kind| !kind.is_of_remastering() && **kind != Kind::Load).map(|kind| messages[kind.index()]).sum()
}

/// One turn of a set: the second node takes it from the first, and the first takes it back.
fn turn(nodes: &Nodes, set: &mut Set, round: u32) -> Outcome<()> {
    for taker in [1, 0] {
        let (blocks, dirty) = (set.blocks.clone(), set.dirty);
        let way = usize::from(set.path == Path::TwoWay && set.master == taker);
        let before = of_blocks(&nodes.messages()?);
        let taken = match (set.mode, taker) {
            (TakenAs::Exclusive, _) => nodes.nodes[taker].run(move |parts| take(parts, blocks, dirty, round))?,
            (TakenAs::Shared, 1) => nodes.nodes[1].run(move |parts| read(parts, blocks))?,
            (TakenAs::Shared, _) => {
                // The reader's copy goes, and nothing of that is counted.
                nodes.nodes[0].run(move |parts| write_back(parts, blocks, dirty, round))?;
                continue;
            }
        };
        set.messages[way] += of_blocks(&nodes.messages()?) - before;
        set.samples[way].add(&taken);
    }
    Ok(())
}

/// The owner writes again what another node has read.
async fn write_back(parts: Rc<Parts>, blocks: Vec<BlockId>, dirty: bool, round: u32) -> Outcome<()> {
    let mut end = Lsn(0);
    for block in blocks {
        let mut mtr = parts.cache.begin_mtr(CHANGE_BYTES).await?;
        let mut guard = parts.cache.write(block).await?;
        if dirty {
            mtr.change(&mut guard, &Change::ReplaceValue { slot: 0, value: &u64::from(round).to_le_bytes() });
            end = mtr.finish();
        }
    }
    parts.log.flush_to(end).await?;
    Ok(())
}

fn sets(nodes: &Nodes, options: &Options) -> Vec<Set> {
    let mut used = [0; 3];
    let mut take = |master: usize, count: usize| {
        used[master] += count;
        nodes.mastered_by(NODES[master], used[master] - count, count)
    };
    let mut sets = Vec::new();
    for &path in &options.paths {
        for &mode in &options.modes {
            for dirty in [false, true] {
                // Shared goes one way only, so the two-way path wants a set for each master.
                let masters = match (path, mode) {
                    (Path::ThreeWay, _) => 2..3,
                    (Path::TwoWay, TakenAs::Exclusive) => 0..1,
                    (Path::TwoWay, TakenAs::Shared) => 0..2,
                };
                let state = if dirty { "dirty" } else { "clean" };
                let name = format!("{state} block, {mode:?}");
                sets.extend(masters.map(|master| {
                    let blocks = take(master, BLOCKS);
                    let samples = [Samples::new(), Samples::new()];
                    Set { name: name.clone(), path, mode, dirty, master, blocks, samples, messages: [0; 2] }
                }));
            }
        }
    }
    sets
}

/// Takes the figures.
///
/// # Errors
/// When there is no room, no thread or no port.
pub fn run(options: &Options) -> Outcome<Report> {
    let count = if options.paths.contains(&Path::ThreeWay) { 3 } else { 2 };
    let nodes = Nodes::start(count, &options.nodes)?;
    let mut bare = PingPong::start(options.nodes.addresses_of(2)?[1])?;
    let mut bare_samples = Samples::new();
    let mut sets = sets(&nodes, options);
    let blocks_used = sets.iter().map(|set| set.blocks.len()).sum::<usize>();
    let mut all: Vec<_> = sets.iter().flat_map(|set| set.blocks.iter().copied()).collect();
    let many = nodes.mastered_by(NODES[1], blocks_used, if options.concurrency > 0 { MANY } else { 0 });
    let hot = nodes.mastered_by(NODES[0], blocks_used, 2);
    all.extend(many.iter().chain(&hot));
    nodes.nodes[0].run(move |parts| create(parts, all))?;

    for round in 0..=options.rounds {
        if round == 1 {
            // The first round only warmed everything up.
            bare_samples = Samples::new();
            sets.iter_mut().for_each(Set::forget);
        }
        for set in &mut sets {
            turn(&nodes, set, round)?;
            bare_samples.add(&bare.round_trips(Size::Request, BLOCKS)?);
        }
    }

    let mut report = Report::new("transfer");
    options.nodes.tell(&mut report);
    report.setting("nodes", count);
    report.setting("rounds", options.rounds);
    report.condition(format!("{}; closed loop, one at a time", options.nodes.places(count)?));
    report.condition(Size::Request.words());
    report.series(bare_samples.series("bare TCP round trip"));
    for set in &sets {
        for way in set.ways().filter(|way| set.samples[*way].count() > 0) {
            let (name, samples) = (format!("{}, {}", set.name, set.way_words(way)), &set.samples[way]);
            report.series(samples.series(&name));
            let each = set.messages[way] as f64 / samples.count() as f64;
            report.figure(format!("{name}: messages"), each, "a transfer", set.messages_wanted(way));
        }
        if (set.path, set.mode) == (Path::TwoWay, TakenAs::Exclusive) {
            let mut both = Samples::new();
            set.samples.iter().for_each(|samples| both.add(samples));
            let ratio = both.median_ns() / bare_samples.median_ns();
            report.figure(format!("{}, two-way / bare round trip, medians", set.name), ratio, "times", Some(TRANSFER_TARGET));
        }
    }
    let sent = nodes.blocks_sent()?;
    report.condition(format!("blocks sent: {} by RDMA, {} by TCP", sent.by_rdma, sent.by_tcp));
    let copied = sent.bytes_copied as f64 / (sent.by_rdma + sent.by_tcp).max(1) as f64;
    // By RDMA a block goes from frame to frame.
    let wanted = (options.nodes.transport == Transport::Rdma).then_some(Target::Exactly(0.0));
    report.figure("bytes copied by the nodes' processes", copied, "a block", wanted);
    if options.concurrency > 0 {
        many_at_once(&nodes, options, &many, &mut report)?;
    }
    if !options.contended.is_zero() {
        contend(&nodes, options, &hot, &mut report)?;
    }
    Ok(report)
}

/// The rate of clean two-way transfers with many under way, and their latency at a fixed rate.
fn many_at_once(nodes: &Nodes, options: &Options, blocks: &[BlockId], report: &mut Report) -> Outcome<()> {
    let concurrency = options.concurrency;
    let mut loads = vec![Load::Closed { concurrency }];
    if options.rate > 0.0 {
        loads.push(Load::Open { rate: options.rate, concurrency: OPEN_LOOP_WORKERS });
    }
    for load in loads {
        let mut samples = Samples::new();
        for leg in 0..2 * options.rounds.div_ceil(4).max(1) + 2 {
            let blocks = blocks.to_vec();
            let taken = nodes.nodes[1 - leg as usize % 2].run(move |parts| take_many(parts, blocks, load))?;
            if leg >= 2 {
                samples.add(&taken);
            }
        }
        let name = match load {
            Load::Closed { concurrency } => format!("clean block, Exclusive, two-way, {concurrency} at once"),
            Load::Open { rate, .. } => format!("clean block, Exclusive, two-way, {rate:.0} due a second"),
        };
        report.series(crate::Series { load: Some(load.to_string()), ..samples.series(name) });
        match load {
            Load::Closed { .. } => report.figure("blocks through Cache Fusion", samples.per_second(), "a second", None),
            Load::Open { .. } => {
                let name = format!("99th percentile through Cache Fusion with {:.0} due a second", options.rate);
                report.figure(name, samples.quantile_ns(0.99) / 1_000.0, "us", None);
            }
        }
    }
    Ok(())
}

/// Both nodes want the same blocks.
fn contend(nodes: &Nodes, options: &Options, hot: &[BlockId], report: &mut Report) -> Outcome<()> {
    let shipped = || -> Outcome<u64> { Ok(nodes.messages()?[Kind::Data.index()]) };
    let before = shipped()?;
    let ask = |node: usize| {
        let (hot, time) = (hot.to_vec(), options.contended);
        move || nodes.nodes[node].run(move |parts| rival(parts, hot, time))
    };
    let (mut samples, other) = std::thread::scope(|scope| -> Outcome<_> {
        let second = scope.spawn(ask(1));
        let first = ask(0)();
        Ok((first?, second.join().map_err(|_| "a thread panicked")??))
    })?;
    samples.merge(&other);
    let load = format!("closed loop, {RIVALS} tasks of each of two nodes");
    let name = format!("change of one of {} contended blocks", hot.len());
    report.series(crate::Series { load: Some(load), ..samples.series(name) });
    let changes = samples.count() as f64 / (shipped()? - before).max(1) as f64;
    report.figure("contended: changes that a node makes each time it gets a block", changes, "changes", None);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Figure;

    /// The promise, counted and not reckoned: 3 messages two-way, 4 three-way; 2 where the taker is the master.
    #[test]
    fn a_transfer_of_a_clean_block_costs_three_messages_two_way_and_four_three_way() {
        let report = run(&Options {
            nodes: crate::nodes::quick(),
            paths: vec![Path::TwoWay, Path::ThreeWay],
            modes: vec![TakenAs::Exclusive, TakenAs::Shared],
            rounds: 1,
            concurrency: 0,
            rate: 0.0,
            contended: Duration::ZERO,
        })
        .expect("two ports and some room in the temporary folder");
        let figure = |start: &str| -> &Figure {
            report.figures.iter().find(|figure| figure.name.starts_with(start)).unwrap_or_else(|| panic!("{start}: {report}"))
        };
        let messages = |way: &str| figure(&format!("clean block, Exclusive, {way}: messages")).value;
        assert_eq!(messages("two-way, the giver is the master"), 3.0);
        assert_eq!(messages("two-way, the taker is the master"), 2.0);
        assert_eq!(messages("three-way"), 4.0);
        // In mode Shared the same steps are made.
        assert_eq!(figure("clean block, Shared, two-way, the giver is the master: messages").value, 3.0);
        assert_eq!(figure("clean block, Shared, three-way: messages").value, 4.0);
    }
}
