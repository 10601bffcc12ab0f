//! Who gets a block when; how blocks come and go.

use super::world::*;
use crate::cache::*;
use crate::volume::change::Change;
use std::cell::RefCell;
use std::rc::Rc;

#[test]
fn tasks_that_miss_the_same_block_cause_one_request_and_one_read() {
    run(small(), |world| async move {
        world.create(id(0), b"zero").await;
        world.forget_all().await;
        let (asked, before) = (world.peers.asked_total.get(), world.cache.stats());
        let mut readers: Vec<_> = (0..5)
            .map(|_| {
                let cache = world.cache.clone();
                start(async move { value(&cache.read(id(0)).await.unwrap()) })
            })
            .collect();
        for reader in readers.drain(..) {
            assert_eq!(reader.end().await, b"zero");
        }
        let after = world.cache.stats();
        assert_eq!((world.peers.asked_total.get() - asked, after.reads - before.reads), (1, 1));
    });
}

#[test]
fn latches_are_given_first_come_first_served_and_readers_share() {
    run(small(), |world| async move {
        world.create(id(0), b"zero").await;
        let order: Rc<RefCell<Vec<u32>>> = Rc::default();
        let holder = world.cache.write(id(0)).await.unwrap();
        assert!(world.cache.try_read(id(0)).is_none() && world.cache.try_write(id(0)).is_none());
        let reader = |n: u32| {
            let (cache, order) = (world.cache.clone(), order.clone());
            start(async move {
                let guard = cache.read(id(0)).await.unwrap();
                order.borrow_mut().push(n);
                guard
            })
        };
        let writer = |n: u32| {
            let (cache, order) = (world.cache.clone(), order.clone());
            start(async move {
                let guard = cache.write(id(0)).await.unwrap();
                order.borrow_mut().push(n);
                guard
            })
        };
        let (mut r1, mut w2, mut r3, mut r4, w5) = (reader(1), writer(2), reader(3), reader(4), writer(5));
        drop(w5);
        drop(holder);
        assert!(world.cache.try_read(id(0)).is_none(), "nobody overtakes those in line");
        let first = r1.poll().expect("first in line");
        assert!(w2.poll().is_none() && r3.poll().is_none());
        drop(first);
        let second = w2.poll().expect("next in line");
        assert!(r3.poll().is_none() && r4.poll().is_none());
        drop(second);
        let (_third, _fourth) = (r3.poll().expect("shared"), r4.poll().expect("with the other"));
        assert_eq!(*order.borrow(), [1, 2, 3, 4]);
        assert!(world.cache.try_read(id(0)).is_some(), "the one that gave up is not in the way");
    });
}

#[test]
fn a_latch_granted_to_a_task_that_is_gone_goes_to_the_next() {
    run(small(), |world| async move {
        world.create(id(0), b"zero").await;
        let holder = world.cache.write(id(0)).await.unwrap();
        let line = |_: u32| {
            let cache = world.cache.clone();
            start(async move { cache.write(id(0)).await.unwrap() })
        };
        let (gone, mut next) = (line(0), line(1));
        drop(holder);
        drop(gone);
        assert!(next.poll().is_some());
    });
}

#[test]
fn a_mini_transaction_keeps_its_blocks_latched_until_it_is_finished() {
    run(small(), |world| async move {
        world.create(id(0), b"zero").await;
        let mut mtr = world.cache.begin_mtr(100).await.unwrap();
        let mut guard = world.cache.write(id(0)).await.unwrap();
        let before = guard.scn();
        mtr.change(&mut guard, &Change::ReplaceValue { slot: 0, value: b"one" });
        drop(guard);
        assert!(world.cache.try_read(id(0)).is_none(), "half of it is nobody's to see");
        mtr.finish();
        let guard = world.cache.try_read(id(0)).expect("it is complete");
        assert_eq!(value(&guard), b"one");
        assert!(guard.scn() > before);
    });
}

#[test]
#[should_panic(expected = "was dropped after it changed 1 blocks")]
fn changes_without_redo_are_a_bug() {
    run(small(), |world| async move {
        let mut mtr = world.cache.begin_mtr(100).await.unwrap();
        let mut guard = world.cache.create(id(0)).await.unwrap();
        mtr.change(&mut guard, &FORMAT);
        drop(mtr);
    });
}

#[test]
fn a_cache_far_smaller_than_its_data_keeps_every_change() {
    run(CacheConfig { frames: FRAMES_MIN, ..CacheConfig::default() }, |world| async move {
        let blocks = FRAMES_MIN as u64 * 6;
        for n in 0..blocks {
            world.create(id(n), format!("{n}").as_bytes()).await;
        }
        for round in 0..3 {
            for n in (0..blocks).step_by(round + 2) {
                let old = String::from_utf8(world.value(id(n)).await).unwrap();
                world.update(id(n), format!("{old}+{round}").as_bytes()).await;
            }
        }
        for n in 0..blocks {
            let mut expected = format!("{n}");
            for round in (0..3).filter(|round| n % (round + 2) == 0) {
                expected += &format!("+{round}");
            }
            assert_eq!(String::from_utf8(world.value(id(n)).await).unwrap(), expected);
        }
        let stats = world.cache.stats();
        assert!(stats.evictions > blocks && stats.reads > blocks && stats.writes > blocks, "{stats:?}");
        assert_eq!(stats.blocks + stats.frames_free, stats.frames, "no frame is lost");
    });
}

#[test]
fn a_corrupt_block_is_an_error_that_names_it_and_touches_no_other() {
    run(small(), |world| async move {
        for n in 0..3 {
            world.create(id(n), b"good").await;
        }
        world.forget_all().await;
        world.damage(id(1)).await;
        let error = world.cache.read(id(1)).await.unwrap_err();
        assert!(matches!(error, CacheError::Corrupt { block, .. } if block == id(1)), "{error}");
        assert!(matches!(world.cache.write(id(1)).await, Err(CacheError::Corrupt { .. })), "again, not data from the first try");
        assert_eq!(world.value(id(0)).await, b"good");
        // Another block's bytes in its place are just as wrong.
        world.copy_on_disk(id(0), id(2)).await;
        assert!(matches!(world.cache.read(id(2)).await, Err(CacheError::Corrupt { .. })));
        world.settle().await;
        assert_eq!(world.cache.stats().blocks, 1, "the frames of the two are free again");
    });
}

#[test]
fn a_block_that_was_created_and_never_formatted_is_nobodys_data() {
    run(small(), |world| async move {
        drop(world.cache.create(id(0)).await.unwrap());
        assert_eq!(world.cache.mode(id(0)), Mode::Null);
        assert!(matches!(world.cache.read(id(0)).await, Err(CacheError::Corrupt { .. })), "there is none on disk");
    });
}

#[test]
fn no_request_for_a_block_overtakes_its_release() {
    run(small(), |world| async move {
        world.create(id(0), b"zero").await;
        world.forget_all().await;
        drop(world.cache.read(id(0)).await.unwrap());
        let asked = world.peers.asked_total.get();
        world.peers.hold_releases.set(true);
        world.cache.0.evict(world.cache.0.map.find(id(0)).unwrap());
        let cache = world.cache.clone();
        let mut reader = start(async move { value(&cache.read(id(0)).await.unwrap()) });
        world.settle().await;
        assert!(reader.poll().is_none());
        assert_eq!(world.peers.asked_total.get(), asked, "rule 9");
        assert!(world.cache.protect(id(0)).await.unwrap().is_none(), "it is on its way out");
        world.peers.hold_releases.set(false);
        assert_eq!(reader.end().await, b"zero");
        assert_eq!(world.peers.asked_total.get(), asked + 1);
    });
}

#[test]
#[should_panic(expected = "rule 9")]
fn a_dirty_block_is_never_evicted() {
    run(small(), |world| async move {
        world.create(id(0), b"zero").await;
        world.cache.0.evict(world.cache.0.map.find(id(0)).unwrap());
    });
}

#[test]
fn a_refused_request_reaches_everyone_who_waits_and_the_next_one_starts_anew() {
    run(small(), |world| async move {
        world.create(id(0), b"zero").await;
        world.forget_all().await;
        world.peers.hold_answers.set(true);
        let read = || {
            let cache = world.cache.clone();
            start(async move { cache.read(id(0)).await.map(|guard| value(&guard)) })
        };
        let (first, second) = (read(), read());
        drop(world.peers.next());
        assert!(matches!(first.end().await, Err(CacheError::Unavailable { .. })));
        assert!(matches!(second.end().await, Err(CacheError::Unavailable { .. })));
        world.peers.hold_answers.set(false);
        assert_eq!(world.value(id(0)).await, b"zero");
    });
}

#[test]
fn a_hint_goes_with_the_block_or_vanishes() {
    run(small(), |world| async move {
        world.create(id(0), b"stamp me").await;
        world.forget_all().await;
        let stamp = |value: &'static [u8]| {
            let cache = world.cache.clone();
            async move {
                let mut guard = cache.write(id(0)).await.unwrap();
                let at = crate::volume::page::Page::new(&guard).value_range(0).start;
                guard.stamp_hint(at, value);
            }
        };
        stamp(b"STAMP").await;
        assert_eq!(world.value(id(0)).await, b"STAMP me");
        assert_eq!(world.cache.stats().dirty, 0, "not worth a write");
        world.forget_all().await;
        assert_eq!(world.value(id(0)).await, b"stamp me");
        stamp(b"STAMP").await;
        world.update(id(0), b"stamp me").await;
        stamp(b"Stamp").await;
        world.forget_all().await;
        assert_eq!(world.value(id(0)).await, b"Stamp me", "the checksum fits the stamped block");
    });
}
