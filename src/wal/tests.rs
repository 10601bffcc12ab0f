//! The log on real files: who is told what and when, what is found after a crash, and what is refused.

use std::cell::{Cell, RefCell};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::batch::{BATCH_HEADER, framed};
use super::*;
use crate::ids::{Incarnation, NodeId, Scn, ShardId};
use crate::reactor::{Class, DriverChoice, FileId, OpenOptions, Reactor, ReactorOptions, thread};
use crate::volume::{RedoArea, SECTOR};

mod crash;

/// A ring of 512 KiB, so a batch of 64 KiB. It does not begin at the file's start, as it doesn't on a volume.
const AREA: RedoArea =
    RedoArea { node: NodeId(2), shard: ShardId(1), offset: 64 << 10, bytes: RedoArea::HEADER + (512 << 10), stamp: 0x5711 };

struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let path = std::env::temp_dir().join(format!("rustydb-wal-{name}-{}", std::process::id()));
        fs::write(&path, vec![0; (AREA.offset + AREA.bytes) as usize]).unwrap();
        Place(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn on_reactor<F, Fut>(main: F) -> Fut::Output
where
    F: FnOnce(Reactor) -> Fut,
    Fut: Future + 'static,
    Fut::Output: 'static,
{
    thread::run_local(ReactorOptions { driver: DriverChoice::Auto, overprovisioned: true }, main).unwrap()
}

async fn open_file(reactor: &Reactor, path: &Path) -> FileId {
    reactor.open(path, OpenOptions::WRITE).await.unwrap()
}

async fn open_log(reactor: &Reactor, path: &Path, incarnation: u64) -> Log {
    let file = open_file(reactor, path).await;
    Log::open(reactor, file, AREA, Incarnation(incarnation)).await.unwrap()
}

/// A record's content that tells its number and has its own length.
fn content(number: u64, bytes: usize) -> Vec<u8> {
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(bytes.max(8), number as u8);
    payload
}

async fn append(log: &Log, payload: &[u8]) -> Lsn {
    let mut reservation = log.reserve(payload.len()).await.unwrap();
    let (first, second) = payload.split_at(payload.len() / 2);
    log.append(&mut reservation, RecordKind::RedoGroup, &[first, second])
}

type Found = Vec<(Lsn, Vec<u8>)>;

/// Everything that a restart would find.
async fn read_all(reactor: &Reactor, path: &Path) -> Result<(Found, LogEnd), LogError> {
    let file = open_file(reactor, path).await;
    let mut scan = LogScan::open(reactor, file, AREA).await?;
    let mut found = Vec::new();
    let mut last = scan.checkpoint().lsn;
    while let Some(record) = scan.next().await? {
        assert!(record.start >= last && record.end > record.start, "{record:?} after {last}");
        last = record.end;
        found.push((record.end, record.payload.to_vec()));
    }
    let end = scan.end();
    reactor.close(file);
    Ok((found, end))
}

fn found_after_crash(path: &Path) -> Result<(Found, LogEnd), LogError> {
    let path = path.to_owned();
    on_reactor(|reactor| async move { read_all(&reactor, &path).await })
}

#[test]
fn a_new_log_is_empty_and_a_restart_goes_on_behind_the_last_record() {
    let place = Place::new("restart");
    assert_eq!(found_after_crash(&place.0).unwrap().0, []);
    let mut expected = Vec::new();
    for life in 1..=4 {
        let path = place.0.clone();
        let written = on_reactor(|reactor| async move {
            let log = open_log(&reactor, &path, life).await;
            let payload = content(life, 100 * life as usize);
            let end = append(&log, &payload).await;
            assert!(log.durable_lsn() < end);
            log.flush_to(end).await.unwrap();
            assert!(log.durable_lsn() >= end);
            (end, payload)
        });
        expected.push(written);
        let (found, end) = found_after_crash(&place.0).unwrap();
        assert_eq!(found, expected);
        assert_eq!(end.incarnation, Incarnation(life));
    }
    let path = place.0.clone();
    let refused = on_reactor(|reactor| async move {
        let file = open_file(&reactor, &path).await;
        Log::open(&reactor, file, AREA, Incarnation(3)).await.err()
    });
    assert!(matches!(refused, Some(LogError::OlderIncarnation { found: Incarnation(4), .. })), "{refused:?}");
}

#[test]
fn commits_at_the_same_time_share_writes_and_each_is_durable_when_told() {
    let place = Place::new("group");
    let path = place.0.clone();
    let flushes = on_reactor(|reactor| async move {
        let log = open_log(&reactor, &path, 1).await;
        let before = log.stats().flushes;
        let tasks: Vec<_> = (0..200u64)
            .map(|number| {
                let (log, path) = (log.clone(), path.clone());
                reactor.spawn(Class::Normal, "commit", async move {
                    let end = append(&log, &content(number, 60)).await;
                    log.flush_to(end).await.unwrap();
                    assert!(log.durable_lsn() >= end);
                    // The promise is about the disk, so it is checked there: the record lies where its LSN says.
                    let start = Lsn(end.0 - framed(60) as u64);
                    let mut bytes = [0; 16];
                    let offset = area::Ring::new(AREA).offset(start);
                    fs::File::open(&path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
                    assert_eq!(bytes[8..16], number.to_le_bytes(), "record {number} at {start}");
                })
            })
            .collect();
        for task in tasks {
            task.join().await;
        }
        let stats = log.stats();
        assert_eq!(stats.batch_records.count(), stats.flushes);
        stats.flushes - before
    });
    assert!((1..=20).contains(&flushes), "200 concurrent commits took {flushes} writes");
    assert_eq!(found_after_crash(&place.0).unwrap().0.len(), 200);
}

#[test]
fn the_log_goes_around_its_ring_many_times() {
    let place = Place::new("laps");
    let path = place.0.clone();
    on_reactor(|reactor| async move {
        let mut log = open_log(&reactor, &path, 1).await;
        let mut kept: Found = Vec::new();
        let mut number = 0u64;
        for life in 2..8 {
            while log.append_lsn().0 < (life - 1) * 4 * AREA.ring_bytes() {
                number += 1;
                // Sizes from a few bytes to the largest, so that every way of ending a batch and the ring is met.
                let bytes = (number * 7919 % log.payload_max() as u64) as usize >> (number % 5 * 2);
                let payload = content(number, bytes);
                let end = append(&log, &payload).await;
                kept.push((end, payload));
                if number.is_multiple_of(3) {
                    log.flush_to(end).await.unwrap();
                }
                if log.checkpoint_due() {
                    let middle = kept[kept.len() / 2].0;
                    log.flush_to(middle).await.unwrap();
                    let at = log.checkpoint(middle, Scn(number)).await.unwrap();
                    assert!(at <= middle);
                    kept.retain(|(end, _)| *end > at);
                }
            }
            log.flush_to(log.append_lsn()).await.unwrap();
            let (found, _) = read_all(&reactor, &path).await.unwrap();
            assert_eq!(found.len(), kept.len());
            assert!(found == kept, "in life {life} something else was found than was written");
            log = open_log(&reactor, &path, life).await;
        }
        assert_eq!(Checkpoint::read(&reactor, open_file(&reactor, &path).await, &AREA).await.unwrap().lsn, log.checkpoint_lsn());
    });
}

#[test]
fn a_full_log_makes_writers_wait_in_turn_until_a_checkpoint() {
    let place = Place::new("full");
    let path = place.0.clone();
    on_reactor(|reactor| async move {
        let log = open_log(&reactor, &path, 1).await;
        while let Some(mut reservation) = log.try_reserve(8000).unwrap() {
            let _ = log.append(&mut reservation, RecordKind::RedoGroup, &[&[7; 8000]]);
        }
        assert!(log.checkpoint_due());
        let served = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = (0..4)
            .map(|number| {
                let (log, served) = (log.clone(), served.clone());
                reactor.spawn(Class::Normal, "writer", async move {
                    // The first wants the most: the others must not slip past it.
                    let bytes = if number == 0 { 30_000 } else { 8 };
                    let mut reservation = log.reserve(bytes).await.unwrap();
                    served.borrow_mut().push(number);
                    let _ = log.append(&mut reservation, RecordKind::RedoGroup, &[&vec![1; bytes]]);
                })
            })
            .collect();
        for _ in 0..20 {
            reactor.yield_now().await;
        }
        assert_eq!(*served.borrow(), [0; 0]);
        assert!(log.try_reserve(8).unwrap().is_none());
        // What frees space is let through meanwhile.
        let mut urgent = log.reserve_urgent(200).await.unwrap();
        let end = log.append(&mut urgent, RecordKind::BlockWritten, &[&[0; 192]]);
        log.flush_to(end).await.unwrap();
        log.checkpoint_wanted().await;
        log.checkpoint(end, Scn(1)).await.unwrap();
        for task in tasks {
            task.join().await;
        }
        assert_eq!(*served.borrow(), [0, 1, 2, 3]);
        assert_eq!(log.stats().space_waits, 4);
        let refused = log.reserve(log.payload_max() + 1).await.err();
        assert!(matches!(refused, Some(LogError::RecordTooLarge { .. })));
    });
}

#[test]
fn a_reservation_not_used_gives_its_space_back() {
    let place = Place::new("unused");
    let path = place.0.clone();
    on_reactor(|reactor| async move {
        let log = open_log(&reactor, &path, 1).await;
        let free = log.free_bytes();
        let mut held = Vec::new();
        while let Some(reservation) = log.try_reserve(10_000).unwrap() {
            held.push(reservation);
        }
        let admitted = Rc::new(Cell::new(false));
        let (waiter, seen) = (log.clone(), admitted.clone());
        let task = reactor.spawn(Class::Normal, "writer", async move {
            let _reservation = waiter.reserve(50_000).await.unwrap();
            seen.set(true);
        });
        reactor.yield_now().await;
        reactor.yield_now().await;
        assert!(!admitted.get());
        held.clear();
        task.join().await;
        assert!(admitted.get());
        assert_eq!(log.free_bytes(), free);
    });
}

/// Writes batches of several sectors, one after the other, and gives the place of the last and what was acknowledged before.
fn three_batches(place: &Place) -> (Lsn, Lsn, Found, Found) {
    let path = place.0.clone();
    on_reactor(|reactor| async move {
        let log = open_log(&reactor, &path, 1).await;
        let (mut all, mut starts) = (Vec::new(), Vec::new());
        for round in 0..3u64 {
            starts.push(log.append_lsn());
            for number in 0..4 {
                let payload = content(round * 10 + number, 5000);
                let end = append(&log, &payload).await;
                all.push((end, payload));
            }
            log.flush_to(all.last().unwrap().0).await.unwrap();
        }
        let before_last = all[..8].to_vec();
        // The start of an empty open batch is where its header will be.
        (starts[1], starts[2], before_last, all)
    })
}

#[test]
fn a_write_torn_anywhere_is_the_end_and_nothing_before_it_is_lost() {
    let place = Place::new("torn");
    let (_, last, acknowledged, all) = three_batches(&place);
    let ring = area::Ring::new(AREA);
    let whole = fs::read(&place.0).unwrap();
    let sectors = (BATCH_HEADER + 4 * framed(5000)).div_ceil(SECTOR);
    assert!(sectors > 4);
    let at = ring.offset(last) as usize;
    // Any one sector missing, and every prefix and suffix of the sectors missing.
    let lost = (0..sectors).map(|n| n..n + 1);
    let lost = lost.chain((0..sectors).map(|n| n..sectors)).chain((1..=sectors).map(|n| 0..n));
    for lost in lost {
        let mut torn = whole.clone();
        torn[at + lost.start * SECTOR..at + lost.end * SECTOR].fill(0xEE);
        fs::write(&place.0, &torn).unwrap();
        let (found, end) = found_after_crash(&place.0).unwrap();
        assert!(found == acknowledged, "lost sectors {lost:?}");
        assert_eq!(end.lsn, last);
        // A new life writes over the torn end, and what is left of it further on is not taken for a batch.
        let path = place.0.clone();
        let added = on_reactor(|reactor| async move {
            let log = open_log(&reactor, &path, 2).await;
            let payload = content(99, 50);
            let end = append(&log, &payload).await;
            log.flush_to(end).await.unwrap();
            (end, payload)
        });
        let (found, _) = found_after_crash(&place.0).unwrap();
        assert!(found[..8] == acknowledged[..] && found[8..] == [added], "after lost sectors {lost:?}");
    }
    fs::write(&place.0, &whole).unwrap();
    assert!(found_after_crash(&place.0).unwrap().0 == all);
}

#[test]
fn damage_in_the_middle_is_an_error_and_not_the_end() {
    let place = Place::new("middle");
    let (second, last, ..) = three_batches(&place);
    let ring = area::Ring::new(AREA);
    let whole = fs::read(&place.0).unwrap();
    let sectors = (last.0 - second.0) / SECTOR as u64;
    for sector in 0..sectors {
        let mut damaged = whole.clone();
        damaged[(ring.offset(second) + sector * SECTOR as u64 + 100) as usize] ^= 4;
        fs::write(&place.0, &damaged).unwrap();
        let refused = found_after_crash(&place.0).unwrap_err();
        assert!(matches!(refused, LogError::CorruptMiddle { lsn, later, .. } if lsn == second && later == last), "{refused}");
    }
}

#[test]
fn what_a_dead_life_writes_late_is_not_taken_for_the_log() {
    let place = Place::new("zombie");
    let (second, last, ..) = three_batches(&place);
    let ring = area::Ring::new(AREA);
    let old = fs::read(&place.0).unwrap();
    // The second and third batch have not landed when the next life begins, and writes over the place of the second.
    let mut early = old.clone();
    early[ring.offset(second) as usize..].fill(0);
    fs::write(&place.0, &early).unwrap();
    let path = place.0.clone();
    on_reactor(|reactor| async move {
        let log = open_log(&reactor, &path, 2).await;
        let end = append(&log, &content(50, 100)).await;
        log.flush_to(end).await.unwrap();
    });
    // Then the third batch of the old life appears.
    let third = &old[ring.offset(last) as usize..];
    fs::OpenOptions::new().write(true).open(&place.0).unwrap().write_all_at(third, ring.offset(last)).unwrap();
    let (found, end) = found_after_crash(&place.0).unwrap();
    assert_eq!(found.len(), 5);
    assert!(end.lsn < last);
}

#[test]
fn a_checkpoint_older_than_the_log_is_noticed() {
    let place = Place::new("oldheader");
    let path = place.0.clone();
    on_reactor(|reactor| async move {
        let log = open_log(&reactor, &path, 1).await;
        let header = |path: &Path| {
            let mut header = vec![0; RedoArea::HEADER as usize];
            fs::File::open(path).unwrap().read_exact_at(&mut header, AREA.offset).unwrap();
            header
        };
        let old = header(&path);
        while log.append_lsn().0 < 2 * AREA.ring_bytes() {
            let end = append(&log, &content(1, 3000)).await;
            log.flush_to(end).await.unwrap();
            if log.checkpoint_due() {
                log.checkpoint(end, Scn(1)).await.unwrap();
            }
        }
        assert!(read_all(&reactor, &path).await.is_ok());
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&old, AREA.offset).unwrap();
        let refused = read_all(&reactor, &path).await.unwrap_err();
        assert!(matches!(refused, LogError::Overwritten { .. }), "{refused}");
    });
}

#[test]
fn a_checkpoint_that_raft_holds_back_in_a_former_life_leaves_a_log_that_can_be_read() {
    let place = Place::new("heldback");
    let path = place.0.clone();
    on_reactor(|reactor| async move {
        let log = open_log(&reactor, &path, 1).await;
        let before = append(&log, &content(1, 100)).await;
        log.flush_to(before).await.unwrap();
        let mut reservation = log.reserve(100).await.unwrap();
        let vote = log.append(&mut reservation, RecordKind::Raft, &[&content(2, 100)]);
        log.flush_to(vote).await.unwrap();
        let after = append(&log, &content(3, 100)).await;
        log.flush_to(after).await.unwrap();
        drop((reservation, log));

        // The next life needs none of its redo, and Raft has not been asked yet.
        let log = open_log(&reactor, &path, 2).await;
        let held = log.checkpoint(log.append_lsn(), Scn(7)).await.unwrap();
        assert!(held >= before && held < vote, "{held} between {before} and {vote}");
        let (found, end) = read_all(&reactor, &path).await.unwrap();
        assert_eq!(found.iter().map(|(end, _)| *end).collect::<Vec<_>>(), [vote, after]);
        assert_eq!(end.incarnation, Incarnation(2));

        log.retain_from(None);
        log.checkpoint(log.append_lsn(), Scn(8)).await.unwrap();
        assert_eq!(read_all(&reactor, &path).await.unwrap().0, []);
    });
}
