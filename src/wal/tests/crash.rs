//! The log under crashes of the simulated machine: what was acknowledged is there, and what is there was appended.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::reactor::driver::sim::{HostId, SimOptions, SimWorld};

const FILE: &str = "volume";
const HOST: HostId = HostId(1);

/// A world with a disk that tears writes at 512 bytes, and on it a blank area.
fn world(seed: u64) -> SimWorld {
    let world = SimWorld::with_options(seed, SimOptions { slow_per_mille: 100, sector_bytes: 512, ..SimOptions::default() });
    let reactor = world.reactor(HOST);
    let made = reactor.clone();
    world.block_on(&reactor, async move {
        let file = made.open(Path::new(FILE), OpenOptions::CREATE).await.unwrap();
        made.write_zeros(file, 0, AREA.offset + AREA.bytes).await.unwrap();
    });
    world
}

/// What the outside knows of the log: it survives the crash.
#[derive(Default)]
struct Outside {
    /// Every record appended in this life, after those found at its start; in the order of their LSNs.
    appended: Vec<(Lsn, Vec<u8>)>,
    /// The greatest end that was acknowledged.
    acknowledged: Lsn,
}

/// One life of the machine: six committers and a checkpointer, until the power goes.
async fn live(reactor: Reactor, life: u64, outside: Rc<RefCell<Outside>>) {
    let log = open_log(&reactor, Path::new(FILE), life).await;
    for committer in 0..6u64 {
        let (log, outside, task) = (log.clone(), outside.clone(), reactor.clone());
        reactor.spawn(Class::Normal, "committer", async move {
            loop {
                let bytes = match task.random() % 8 {
                    0 => task.random() % log.payload_max() as u64,
                    1 | 2 => task.random() % 9000,
                    _ => task.random() % 200,
                };
                let payload = content(committer, bytes as usize);
                let mut reservation = log.reserve(payload.len()).await.unwrap();
                let end = log.append(&mut reservation, RecordKind::RedoGroup, &[&payload]);
                outside.borrow_mut().appended.push((end, payload));
                if task.random() % 4 == 0 {
                    continue;
                }
                log.flush_to(end).await.unwrap();
                let mut outside = outside.borrow_mut();
                outside.acknowledged = outside.acknowledged.max(end);
            }
        });
    }
    loop {
        log.checkpoint_wanted().await;
        let target = log.durable_lsn();
        reactor.sleep(Duration::from_micros(reactor.random() % 2000)).await;
        log.checkpoint(target, Scn(life)).await.unwrap();
    }
}

#[test]
fn what_was_acknowledged_survives_every_crash() {
    let mut restarts_with_records = 0;
    for seed in 0..40 {
        let world = world(seed);
        let outside = Rc::new(RefCell::new(Outside::default()));
        for life in 1..6 {
            let reactor = world.reactor(HOST);
            reactor.spawn(Class::Normal, "life", live(reactor.clone(), life, outside.clone()));
            world.run_for(Duration::from_micros(500 + (seed * 7919 + life * 104_729) % 30_000));
            drop(reactor);
            if (seed + life) % 3 == 0 {
                world.crash(HOST)
            } else {
                world.power_loss()
            }

            let reactor = world.reactor(HOST);
            let reading = reactor.clone();
            let (found, end, checkpoint) = world.block_on(&reactor, async move {
                let file = open_file(&reading, Path::new(FILE)).await;
                let checkpoint = Checkpoint::read(&reading, file, &AREA).await.unwrap();
                let (found, end) = read_all(&reading, Path::new(FILE)).await.unwrap();
                (found, end, checkpoint)
            });
            let mut outside = outside.borrow_mut();
            assert!(end.lsn >= outside.acknowledged, "seed {seed}, life {life}: the log ends at {}", end.lsn);
            outside.appended.retain(|(end, _)| *end > checkpoint.lsn);
            let appended = &outside.appended;
            assert!(found.len() <= appended.len() && found == appended[..found.len()], "seed {seed}, life {life}");
            restarts_with_records += usize::from(!found.is_empty());
            // What was not found is gone for good.
            outside.appended.truncate(found.len());
        }
    }
    assert!(restarts_with_records > 150, "the crashes came too early: {restarts_with_records}");
}

#[test]
fn a_failed_write_is_told_to_everybody_and_nothing_later_is_acknowledged() {
    let world = world(1);
    let reactor = world.reactor(HOST);
    let (device, inside) = (world.clone(), reactor.clone());
    world.block_on(&reactor, async move {
        let log = open_log(&inside, Path::new(FILE), 1).await;
        let mut first = log.reserve(100).await.unwrap();
        let mut second = log.reserve(100).await.unwrap();
        let end = log.append(&mut first, RecordKind::RedoGroup, &[&[1; 100]]);
        device.set_disk_error(HOST, Some(5));
        let waiting: Vec<_> = (0..3).map(|_| log.flush_to(end)).collect();
        for waiter in waiting {
            assert!(matches!(waiter.await, Err(LogError::Io { .. })));
        }
        // Also when the device works again: what it holds of the lost write is unknown.
        device.set_disk_error(HOST, None);
        let later = log.append(&mut second, RecordKind::RedoGroup, &[&[2; 100]]);
        assert!(log.flush_to(later).await.is_err());
        assert!(log.reserve(8).await.is_err());
        assert!(log.checkpoint(end, Scn(1)).await.is_err());
        assert!(log.durable_lsn() < end && log.poison().is_some());
    });
}

#[test]
fn a_checkpoint_that_fails_frees_nothing() {
    let world = world(2);
    let reactor = world.reactor(HOST);
    let (device, inside) = (world.clone(), reactor.clone());
    world.block_on(&reactor, async move {
        let log = open_log(&inside, Path::new(FILE), 1).await;
        let end = append(&log, &content(1, 20_000)).await;
        log.flush_to(end).await.unwrap();
        let used = log.used_bytes();
        device.set_disk_error(HOST, Some(5));
        assert!(log.checkpoint(end, Scn(1)).await.is_err());
        assert_eq!(log.used_bytes(), used);
        device.set_disk_error(HOST, None);
        log.checkpoint(end, Scn(1)).await.unwrap();
        assert!(log.used_bytes() < used);
    });
}
