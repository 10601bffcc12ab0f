//! Power loss at any moment, torn writes included; a log that fills up; a disk that refuses.

use super::world::*;
use crate::cache::*;
use crate::clock::ScnClock;
use crate::fusion::recovery::{Replay, ReplayError, Replayed};
use crate::ids::*;
use crate::reactor::driver::sim::SimWorld;
use crate::reactor::{Class, FileId, IoBuf, Reactor};
use crate::volume::block::{self, BlockFault};
use crate::volume::change::Change;
use crate::volume::{RedoArea, block_offset};
use crate::wal::{LogScan, RecordKind};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// A log small enough to go around many times.
const SMALL_REDO: RedoArea = RedoArea { bytes: 2 << 20, ..REDO };

/// Blocks that the workload changes: twice the frames.
const HOT: u64 = 2 * FRAMES_MIN as u64;

/// What every block says when nothing was done to it yet, and after each mini-transaction: in the order of the log.
#[derive(Default)]
struct History {
    groups: RefCell<BTreeMap<Lsn, Vec<(BlockId, u64)>>>,
    acknowledged: Cell<Lsn>,
    number: Cell<u64>,
}

impl History {
    fn log(&self, end: Lsn, number: u64, blocks: &[BlockId]) {
        let changed = blocks.iter().map(|block| (*block, number)).collect();
        assert!(self.groups.borrow_mut().insert(end, changed).is_none());
    }
}

/// Changes two blocks at a time, in ever new pairs, and waits for the log.
async fn work(cache: Cache, reactor: Reactor, history: Rc<History>) {
    loop {
        let (a, b) = (reactor.random() % HOT, reactor.random() % HOT);
        let (low, high) = (a.min(b), a.max(b) + u64::from(a == b));
        let mut mtr = cache.begin_mtr(2000).await.unwrap();
        let number = history.number.get() + 1;
        history.number.set(number);
        let value = number.to_le_bytes();
        // Some grow, so that pages differ in size.
        let padded = [&value[..], &vec![7; (reactor.random() % 3000) as usize]].concat();
        let mut first = write_or_create(&cache, id(low)).await;
        let mut second = write_or_create(&cache, id(high)).await;
        mtr.change(&mut first, &Change::ReplaceValue { slot: 0, value: &padded });
        mtr.change(&mut second, &Change::ReplaceValue { slot: 0, value: &value });
        let end = mtr.finish();
        history.log(end, number, &[id(low), id(high)]);
        drop((first, second));
        if reactor.random().is_multiple_of(2) {
            cache.log().flush_to(end).await.unwrap();
            history.acknowledged.set(history.acknowledged.get().max(end));
        }
    }
}

async fn write_or_create(cache: &Cache, block: BlockId) -> WriteGuard {
    cache.write(block).await.expect("all of them exist")
}

/// Brings the volume up to date from the log, as a restart does. Answers the highest SCN and how many blocks were torn.
async fn recover(reactor: &Reactor, file: FileId, redo: RedoArea, history: &History) -> Result<(Scn, usize), ReplayError> {
    let mut replay = Replay::new();
    let mut scan = LogScan::open(reactor, file, redo).await.unwrap();
    replay.observe(scan.checkpoint().scn);
    while let Some(record) = scan.next().await.unwrap() {
        if record.kind == RecordKind::RedoGroup {
            replay.add_group(NodeId(1), record.payload)?;
        }
    }
    let durable = scan.end().lsn;
    let mut torn = 0;
    for n in 0..=HOT {
        let read = reactor.read(file, block_offset(id(n).block), IoBuf::aligned(BLOCK_SIZE)).await;
        let mut bytes = read.1;
        match block::verify(bytes.as_slice(), id(n)) {
            // Rule 1: no version is on the volume whose redo is not in the log.
            Ok(()) => {
                let number = number(&value(bytes.as_slice()));
                let groups = history.groups.borrow();
                let end = groups.iter().find(|(_, changes)| changes.contains(&(id(n), number))).map(|(end, _)| *end);
                assert!(end.expect("a version that somebody made") <= durable, "{}: on disk before its redo", id(n));
            }
            Err(BlockFault::NeverWritten) => {}
            Err(_) => torn += 1,
        }
        if let Replayed::Changed { .. } = replay.replay(id(n).block, bytes.as_mut_slice())? {
            reactor.write(file, block_offset(id(n).block), bytes).await.0.unwrap();
        }
    }
    reactor.sync(file).await.unwrap();
    Ok((replay.highest_scn(), torn))
}

fn number(value: &[u8]) -> u64 {
    u64::from_le_bytes(value[..8].try_into().unwrap())
}

/// The state of the volume is that after some group of the history, not before the last acknowledged one. What was
/// logged after it has never happened.
async fn check(reactor: &Reactor, file: FileId, history: &History) {
    let mut found = BTreeMap::new();
    for n in 0..=HOT {
        let (_, bytes) = reactor.read(file, block_offset(id(n).block), IoBuf::aligned(BLOCK_SIZE)).await;
        block::verify(bytes.as_slice(), id(n)).unwrap();
        found.insert(id(n), number(&value(bytes.as_slice())));
    }
    let mut state = BTreeMap::new();
    let mut matches = None;
    for (end, changes) in history.groups.borrow().iter() {
        state.extend(changes.iter().copied());
        if state == found && *end >= history.acknowledged.get() {
            matches = Some(*end);
        }
    }
    let survived = matches.expect("the volume is as it was after some mini-transaction, none acknowledged missing");
    history.groups.borrow_mut().retain(|end, _| *end <= survived);
}

/// Several lives of a node, each ended by power loss. Answers how many torn blocks were met.
fn lives(seed: u64, config: &CacheConfig) -> Result<usize, ReplayError> {
    let sim = SimWorld::new(seed);
    let history = Rc::new(History::default());
    let mut torn_total = 0;
    for life in 1..=4 {
        let reactor = sim.reactor(HOST);
        let (inside, history, config) = (reactor.clone(), history.clone(), config.clone());
        let torn = sim.block_on(&reactor, async move {
            let file = volume(&inside, SMALL_REDO).await;
            let clock = ScnClock::new();
            let mut torn = 0;
            if life > 1 {
                let scn;
                (scn, torn) = recover(&inside, file, SMALL_REDO, &history).await?;
                check(&inside, file, &history).await;
                clock.start_above(scn);
            }
            let world = World::open(&inside, file, SMALL_REDO, Incarnation(life), clock, config).await;
            if life == 1 {
                for n in 0..=HOT {
                    let end = world.create(id(n), &0u64.to_le_bytes()).await;
                    history.log(end, 0, &[id(n)]);
                }
                let end = world.cache.log().append_lsn();
                world.cache.log().flush_to(end).await.unwrap();
                history.acknowledged.set(end);
            }
            for _ in 0..4 {
                let task = work(world.cache.clone(), inside.clone(), history.clone());
                inside.spawn(Class::Normal, "work", task);
            }
            Ok(torn)
        })?;
        torn_total += torn;
        sim.run_for(Duration::from_micros(3_000 + reactor.random() % 60_000));
        sim.power_loss();
    }
    Ok(torn_total)
}

/// Everything goes to disk early and often.
fn busy() -> CacheConfig {
    CacheConfig { frames: FRAMES_MIN, dirty_percent_max: 10, checkpoint_interval_ms: 5, ..CacheConfig::default() }
}

#[test]
fn after_power_loss_at_any_moment_the_redo_gives_every_acknowledged_change_and_no_half_of_one() {
    let torn: usize = (0..30).map(|seed| lives(seed, &busy()).unwrap_or_else(|error| panic!("seed {seed}: {error}"))).sum();
    assert!(torn > 0, "no write was ever caught in the middle: the test shows less than it says");
}

#[test]
fn without_whole_blocks_in_the_log_a_torn_block_is_found_and_named_not_used() {
    let config = CacheConfig { full_images: false, ..busy() };
    let named = (0..30).filter(|seed| lives(*seed, &config).is_err()).count();
    assert!(named > 0, "nothing was torn: then the other test shows nothing either");
}

#[test]
fn a_full_log_makes_checkpoints_and_the_writers_go_on() {
    let sim = SimWorld::new(3);
    let reactor = sim.reactor(HOST);
    let inside = reactor.clone();
    sim.block_on(&reactor, async move {
        let file = volume(&inside, SMALL_REDO).await;
        let world = World::open(&inside, file, SMALL_REDO, Incarnation(1), ScnClock::new(), small()).await;
        for n in 0..8 {
            world.create(id(n), b"").await;
        }
        let first = world.cache.log().append_lsn();
        for n in 0..8_000u64 {
            world.update(id(n % 8), &[n as u8; 2000]).await;
            assert!(world.cache.log().used_bytes() <= world.cache.log().capacity());
        }
        let log = world.cache.log();
        assert!(log.append_lsn().0 - first.0 > 5 * SMALL_REDO.bytes, "it went around several times");
        let stats = world.cache.stats();
        assert!(stats.checkpoints > 5 && stats.writes > 8, "{stats:?}");
    });
}

#[test]
fn blocks_are_written_in_time_also_when_nothing_else_happens() {
    run(CacheConfig { checkpoint_interval_ms: 1_000, ..small() }, |world| async move {
        world.create(id(0), b"zero").await;
        world.reactor.sleep(Duration::from_secs(4)).await;
        assert_eq!(world.cache.stats().dirty, 0);
        assert_eq!(value(world.read_raw(id(0)).await.as_slice()), b"zero");
    });
}

#[test]
fn a_disk_that_refuses_a_block_write_loses_nothing_once_it_is_mended() {
    let sim = SimWorld::new(4);
    let reactor = sim.reactor(HOST);
    let inside = reactor.clone();
    let world = sim.block_on(&reactor, async move {
        let file = volume(&inside, REDO).await;
        let world = World::open(&inside, file, REDO, Incarnation(1), ScnClock::new(), small()).await;
        let end = world.create(id(0), b"zero").await;
        world.cache.log().flush_to(end).await.unwrap();
        world
    });
    sim.set_disk_error(HOST, Some(libc::EIO));
    let cache = world.cache.clone();
    let written = sim.block_on(&reactor, async move { cache.write_now(id(0)).await });
    assert!(matches!(written, Err(CacheError::Io { operation: "write", .. })), "{written:?}");
    assert_eq!((world.cache.stats().dirty, world.peers.wrote.borrow().len()), (1, 0), "rule 4");
    sim.set_disk_error(HOST, None);
    let cache = world.cache.clone();
    sim.block_on(&reactor, async move { cache.write_now(id(0)).await }).unwrap();
    assert_eq!((world.cache.stats().dirty, world.peers.wrote.borrow().len()), (0, 1));
}

#[test]
fn neighbours_are_written_together_and_others_for_themselves() {
    run(CacheConfig { frames: 256, ..small() }, |world| async move {
        // Not in the volume's order, with a gap of one, and more in a row than go together.
        let blocks: Vec<u64> = (0..20).rev().chain([40, 42, 43, 300]).collect();
        for &n in &blocks {
            world.create(id(n), n.to_string().as_bytes()).await;
        }
        assert!(world.cache.checkpoint_fully(Duration::ZERO).await.unwrap());
        let stats = world.cache.stats();
        assert_eq!((stats.writes, stats.write_operations), (24, 5), "0-15, 16-19, 40, 42-43, 300");
        for &n in &blocks {
            let bytes = world.read_raw(id(n)).await;
            block::verify(bytes.as_slice(), id(n)).unwrap();
            assert_eq!(value(bytes.as_slice()), n.to_string().as_bytes());
        }
        // The next batch uses the memory again.
        for &n in &blocks {
            world.update(id(n), b"again").await;
        }
        assert!(world.cache.checkpoint_fully(Duration::ZERO).await.unwrap());
        for &n in &blocks {
            assert_eq!(value(world.read_raw(id(n)).await.as_slice()), b"again");
        }
    });
}
