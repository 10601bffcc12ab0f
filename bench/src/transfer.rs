//! What it takes to get a block from another node's memory: Cache Fusion beside a bare TCP round trip of the same bytes.
//!
//! Each leg, one node takes a set of blocks in mode Exclusive, one after the other, that the other node has; then the other
//! takes them back; then as many bare round trips (64 bytes there, 64 and a block back, blocking sockets without delay) have
//! their turn. A *clean* block is as on disk. A *dirty* one was changed by whoever gives it away, and leaves a past image
//! there; its redo is on disk by then (what is not costs a durable write more, see `log`).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustydb::ids::{BLOCK_SIZE, BlockId, Lsn};
use rustydb::interconnect::HEADER_BYTES;
use rustydb::volume::block::BlockKind;
use rustydb::volume::change::Change;

use crate::Outcome;
use crate::pair::{NODES, Pair, Parts};
use crate::report::{Report, Samples, Target};

/// Blocks of each master, clean and dirty.
const BLOCKS: usize = 64;
/// Bytes of redo that a change of a counter takes at most.
const CHANGE_BYTES: usize = 1000;
/// A transfer takes at most so many bare round trips.
const TRANSFER_TARGET: Target = Target::AtMost(2.0);

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the volume is made.
    pub folder: PathBuf,
    /// Rounds; in each, every way has its turn.
    pub rounds: u32,
    /// Sleep at once when there is nothing to do, instead of looking for work first.
    pub overprovisioned: bool,
    /// Pin the nodes' shards to the first two cores.
    pub pin: bool,
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

/// Takes the blocks from the other node, and changes them if they are to be `dirty`.
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

/// The bare round trip.
struct PingPong {
    stream: TcpStream,
    request: [u8; HEADER_BYTES],
    reply: Vec<u8>,
}

impl PingPong {
    fn start() -> Outcome<PingPong> {
        let listener = TcpListener::bind("127.0.0.2:0")?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        stream.set_nodelay(true)?;
        let (mut other, _) = listener.accept()?;
        other.set_nodelay(true)?;
        std::thread::Builder::new().name("pong".into()).spawn(move || {
            let (mut request, reply) = ([0; HEADER_BYTES], vec![0x5A; HEADER_BYTES + BLOCK_SIZE]);
            // Ends when the benchmark closes its end.
            while other.read_exact(&mut request).is_ok() && other.write_all(&reply).is_ok() {}
        })?;
        Ok(PingPong { stream, request: [1; HEADER_BYTES], reply: vec![0; HEADER_BYTES + BLOCK_SIZE] })
    }

    fn round_trips(&mut self, count: usize) -> Outcome<Samples> {
        let mut samples = Samples::new();
        for _ in 0..count {
            let began = Instant::now();
            self.stream.write_all(&self.request)?;
            self.stream.read_exact(&mut self.reply)?;
            samples.record_alone(began.elapsed());
        }
        Ok(samples)
    }
}

/// A set of blocks that goes to and fro.
struct Set {
    name: &'static str,
    dirty: bool,
    /// By the number of their master.
    blocks: [Vec<BlockId>; 2],
    /// The master is who asks; the master is who has it.
    samples: [Samples; 2],
}

/// Takes the figures.
///
/// # Errors
/// When there is no room, no thread or no port.
pub fn run(options: &Options) -> Outcome<Report> {
    let pair = Pair::start(&options.folder, options.overprovisioned, options.pin)?;
    let mut bare = PingPong::start()?;
    let mut bare_samples = Samples::new();
    let mut sets = [("clean", false), ("dirty", true)].map(|(name, dirty)| {
        let skip = if dirty { BLOCKS } else { 0 };
        let blocks = NODES.map(|node| pair.mastered_by(node, skip, BLOCKS));
        Set { name, dirty, blocks, samples: [Samples::new(), Samples::new()] }
    });
    let all: Vec<_> = sets.iter().flat_map(|set| set.blocks.iter().flatten().copied()).collect();
    pair.nodes[1].run(move |parts| create(parts, all))?;

    for round in 0..=options.rounds {
        if round == 1 {
            // The first round only warmed everything up.
            bare_samples = Samples::new();
            sets.iter_mut().for_each(|set| set.samples = [Samples::new(), Samples::new()]);
        }
        for set in &mut sets {
            for taker in 0..2 {
                for master in 0..2 {
                    let (blocks, dirty) = (set.blocks[master].clone(), set.dirty);
                    let taken = pair.nodes[taker].run(move |parts| take(parts, blocks, dirty, round))?;
                    set.samples[usize::from(master != taker)].add(&taken);
                    bare_samples.add(&bare.round_trips(BLOCKS)?);
                }
            }
        }
    }

    let mut report = Report::new("transfer");
    let idle = if options.overprovisioned { "sleep at once when idle" } else { "look for work before they sleep" };
    report.condition(format!("two nodes in two threads over 127.0.0.1 and 127.0.0.2; their shards {idle}"));
    report
        .condition(format!("bare round trip: {HEADER_BYTES} bytes there, {} back, blocking sockets", HEADER_BYTES + BLOCK_SIZE));
    report.row(bare_samples.row("bare TCP round trip"));
    for set in &sets {
        let mut both = Samples::new();
        for (samples, master) in set.samples.iter().zip(["the taker", "the giver"]) {
            report.row(samples.row(format!("{} block, mastered by {master}", set.name)));
            both.add(samples);
        }
        let ratio = both.median_ns() / bare_samples.median_ns();
        report.figure(format!("{} block / bare round trip, medians", set.name), ratio, "times", Some(TRANSFER_TARGET));
    }
    Ok(report)
}
