//! What the cluster asks of the cache, and the rules that it keeps while it does it.

use super::world::*;
use crate::cache::*;
use crate::ids::*;
use crate::volume::block;

/// Ships a block from its frame into another buffer, as a transport would.
fn shipped(protected: &ProtectedBlock) -> Vec<u8> {
    protected.io_buf().as_slice().to_vec()
}

#[test]
fn a_block_is_protected_only_when_nobody_uses_it_and_its_redo_is_durable() {
    run(small(), |world| async move {
        let end = world.create(id(0), b"zero").await;
        let guard = world.cache.read(id(0)).await.unwrap();
        let cache = world.cache.clone();
        let mut protecting = start(async move { cache.protect(id(0)).await.unwrap().unwrap() });
        assert!(world.cache.try_read(id(0)).is_none(), "no new reader once the cluster wants it");
        world.settle().await;
        assert!(protecting.poll().is_none(), "a reader is still there");
        drop(guard);
        let protected = protecting.end().await;
        assert!(world.cache.log().durable_lsn() >= end, "rule 1");
        assert!(protected.dirty());
        assert_eq!(block::verify(protected.bytes(), id(0)), Ok(()), "what is shipped carries its checksum");
        let cache = world.cache.clone();
        let mut writer = start(async move { drop(cache.write(id(0)).await.unwrap()) });
        world.settle().await;
        assert!(writer.poll().is_none(), "rule 8");
        drop(protected);
        assert!(writer.poll().is_some(), "not given away after all");
    });
}

#[test]
fn tasks_in_line_go_before_the_cluster_but_not_for_ever() {
    run(small(), |world| async move {
        world.create(id(0), b"zero").await;
        let holder = world.cache.write(id(0)).await.unwrap();
        let write = || {
            let cache = world.cache.clone();
            start(async move { cache.write(id(0)).await.unwrap() })
        };
        let (mut ahead, mut too_late) = (write(), write());
        let cache = world.cache.clone();
        let mut protecting = start(async move { cache.protect(id(0)).await.unwrap().unwrap() });
        let mut behind = write();
        drop(holder);
        if let Some(guard) = ahead.poll() {
            world.reactor.sleep(std::time::Duration::from_micros(HOLD_US_MAX * 2)).await;
            drop(guard);
        }
        let protected = loop {
            world.settle().await;
            if let Some(protected) = protecting.poll() {
                break protected;
            }
        };
        assert!(too_late.poll().is_none() && behind.poll().is_none());
        protected.finish(Remains::KeepShared);
        // They are still in line, and ask for more than is left.
        assert!(behind.poll().is_none());
        drop(too_late.end().await);
        assert!(behind.poll().is_some());
    });
}

#[test]
fn a_dirty_block_given_away_stays_as_a_past_image_and_holds_the_checkpoint() {
    run(small(), |world| async move {
        let before = world.cache.log().append_lsn();
        world.create(id(0), b"zero").await;
        let protected = world.cache.protect(id(0)).await.unwrap().unwrap();
        let scn = protected.scn();
        let copy = shipped(&protected);
        protected.finish(Remains::BecomePastImage);
        assert_eq!((world.cache.mode(id(0)), world.cache.past_image(id(0))), (Mode::Null, Some(scn)));
        assert_eq!(world.cache.past_image_bytes(id(0)).unwrap(), copy);
        world.create(id(1), b"one").await;
        world.cache.write_now(id(1)).await.unwrap();
        assert!(world.cache.checkpoint_position() <= before.advance(8), "the volume has nothing of block 0 yet");
        assert!(!world.cache.checkpoint_fully(std::time::Duration::ZERO).await.unwrap());
        assert!(world.peers.write_requests.borrow().contains(&id(0)), "its owner was asked to write it");
        // A write of an older version clears nothing (rule 7).
        world.cache.discard_past_image(id(0), Scn(scn.0 - 1));
        assert_eq!(world.cache.past_image(id(0)), Some(scn));
        world.cache.discard_past_image(id(0), scn);
        assert_eq!(world.cache.past_image(id(0)), None);
        assert!(world.cache.checkpoint_fully(std::time::Duration::ZERO).await.unwrap());
    });
}

#[test]
fn a_block_comes_back_from_another_node_into_another_frame_beside_its_past_image() {
    run(small(), |world| async move {
        world.create(id(0), b"zero").await;
        let protected = world.cache.protect(id(0)).await.unwrap().unwrap();
        let (scn, mut bytes) = (protected.scn(), shipped(&protected));
        protected.finish(Remains::BecomePastImage);
        // The other node changes it and ships it back.
        block::set_scn(&mut bytes, Scn(scn.0 + (5 << 20)));
        block::seal(&mut bytes);
        world.peers.hold_answers.set(true);
        let cache = world.cache.clone();
        let reader = start(async move { value(&cache.read(id(0)).await.unwrap()) });
        let request = world.peers.next();
        assert_eq!((request.want, request.have), (Mode::Shared, Mode::Null));
        let mut buffer = world.cache.receive_buffer(id(0)).expect("it waits for the bytes");
        assert!(world.cache.receive_buffer(id(0)).is_none(), "once");
        buffer.as_mut_slice().copy_from_slice(&bytes);
        drop(buffer);
        request.granted(Granted { mode: Mode::Exclusive, source: Source::Received, dirty_owner: true });
        assert!(world.cache.receive_buffer(id(0)).is_none(), "what comes later is late");
        assert_eq!(reader.end().await, b"zero");
        assert!(world.cache.clock().latest() >= Scn(scn.0 + (5 << 20)), "its SCN is known now (rule 10)");
        // This node is the owner now, and must write it although it has not changed it.
        assert_eq!((world.cache.stats().dirty, world.cache.past_image(id(0))), (1, Some(scn)));
        world.cache.write_now(id(0)).await.unwrap();
        assert_eq!(*world.peers.wrote.borrow(), [(id(0), Scn(scn.0 + (5 << 20)))]);
    });
}

#[test]
fn damaged_bytes_from_another_node_are_not_taken() {
    run(small(), |world| async move {
        world.create(id(0), b"zero").await;
        let protected = world.cache.protect(id(0)).await.unwrap().unwrap();
        let mut bytes = shipped(&protected);
        protected.finish(Remains::BecomePastImage);
        bytes[5000] ^= 1;
        world.peers.hold_answers.set(true);
        let cache = world.cache.clone();
        let reader = start(async move { cache.read(id(0)).await.map(|_| ()) });
        let request = world.peers.next();
        world.cache.receive_buffer(id(0)).unwrap().as_mut_slice().copy_from_slice(&bytes);
        request.granted(Granted { mode: Mode::Shared, source: Source::Received, dirty_owner: false });
        assert!(matches!(reader.end().await, Err(CacheError::Corrupt { .. })));
        assert_eq!(*world.peers.released.borrow(), [(id(0), Mode::Shared)], "the master learns that nobody has it");
    });
}

#[test]
fn an_owner_that_downgrades_still_writes_its_block() {
    run(small(), |world| async move {
        world.create(id(0), b"zero").await;
        let protected = world.cache.protect(id(0)).await.unwrap().unwrap();
        let (scn, buffer) = (protected.scn(), protected.io_buf());
        protected.finish(Remains::KeepShared);
        assert_eq!((world.cache.mode(id(0)), world.cache.stats().dirty), (Mode::Shared, 1));
        assert_eq!(world.value(id(0)).await, b"zero", "reading goes on while it is being sent");
        world.cache.write_now(id(0)).await.unwrap();
        assert_eq!((world.cache.stats().dirty, &*world.peers.wrote.borrow()), (0, &vec![(id(0), scn)]));
        drop(buffer);
        // A change asks the cluster for more, and an invalidation that comes first is not in its way.
        world.peers.hold_answers.set(true);
        let cache = world.cache.clone();
        let mut writer = start(async move { cache.write(id(0)).await.unwrap() });
        let request = world.peers.next();
        assert_eq!((request.want, request.have), (Mode::Exclusive, Mode::Shared));
        world.cache.invalidate(id(0)).await;
        assert_eq!(world.cache.mode(id(0)), Mode::Null);
        assert!(writer.poll().is_none());
        request.granted(Granted { mode: Mode::Exclusive, source: Source::Disk, dirty_owner: false });
        assert_eq!(value(&writer.end().await), b"zero");
    });
}

#[test]
fn bytes_on_their_way_out_stay_as_they_are_whatever_happens_to_the_block() {
    run(small(), |world| async move {
        world.create(id(0), b"zero").await;
        world.cache.write_now(id(0)).await.unwrap();
        let protected = world.cache.protect(id(0)).await.unwrap().unwrap();
        let buffer = protected.io_buf();
        let bytes = buffer.as_slice().to_vec();
        protected.finish(Remains::Dropped);
        for n in 0..FRAMES_MIN as u64 * 2 {
            world.update_or_create(id(n), b"other").await;
        }
        assert_eq!(buffer.as_slice(), bytes);
        drop(buffer);
        let stats = world.cache.stats();
        assert_eq!(stats.blocks + stats.frames_free, stats.frames, "its frame is free again");
    });
}

#[test]
fn a_past_image_makes_room_for_the_answer_that_its_frame_is_reserved_for() {
    run(small(), |world| async move {
        world.create(id(0), b"zero").await;
        let protected = world.cache.protect(id(0)).await.unwrap().unwrap();
        protected.finish(Remains::KeepShared);
        world.peers.hold_answers.set(true);
        let cache = world.cache.clone();
        let writer = start(async move { cache.write(id(0)).await.unwrap() });
        let request = world.peers.next();
        // Another node gets the block first. Its bytes leave from where they are, while the answer may come into another frame.
        let mut protected = world.cache.protect(id(0)).await.unwrap().unwrap();
        assert!(protected.make_way() && !protected.make_way());
        let (scn, outgoing) = (protected.scn(), protected.io_buf());
        assert_eq!(outgoing.as_slice().as_ptr(), protected.bytes().as_ptr(), "sent without being copied");
        protected.finish(Remains::BecomePastImage);
        let mut bytes = outgoing.as_slice().to_vec();
        block::set_scn(&mut bytes, Scn(scn.0 + 1));
        block::seal(&mut bytes);
        world.cache.receive_buffer(id(0)).unwrap().as_mut_slice().copy_from_slice(&bytes);
        request.granted(Granted { mode: Mode::Exclusive, source: Source::Received, dirty_owner: true });
        assert_eq!(writer.end().await.scn(), Scn(scn.0 + 1));
        assert_eq!(world.cache.past_image(id(0)), Some(scn));
        assert_eq!(block::block_scn(&world.cache.past_image_bytes(id(0)).unwrap()), scn);
        assert_eq!(block::block_scn(outgoing.as_slice()), scn, "what is being sent is not changed by the answer");
    });
}

#[test]
fn a_clean_block_makes_way_too_and_its_frame_is_free_once_it_is_sent() {
    run(small(), |world| async move {
        world.create(id(0), b"zero").await;
        world.cache.write_now(id(0)).await.unwrap();
        world.cache.protect(id(0)).await.unwrap().unwrap().finish(Remains::KeepShared);
        world.peers.hold_answers.set(true);
        let cache = world.cache.clone();
        let writer = start(async move { cache.write(id(0)).await.unwrap() });
        let request = world.peers.next();
        let mut protected = world.cache.protect(id(0)).await.unwrap().unwrap();
        assert!(protected.make_way());
        let outgoing = protected.io_buf();
        protected.finish(Remains::Dropped);
        assert_eq!(world.cache.mode(id(0)), Mode::Null);
        world.cache.receive_buffer(id(0)).unwrap().as_mut_slice().copy_from_slice(outgoing.as_slice());
        request.granted(Granted { mode: Mode::Exclusive, source: Source::Received, dirty_owner: false });
        assert_eq!(value(&writer.end().await), b"zero");
        assert_eq!(world.cache.frames_leaked(), 1, "its bytes are still being sent");
        drop(outgoing);
        assert_eq!(world.cache.frames_leaked(), 0);
    });
}

#[test]
fn readers_finish_before_the_right_to_read_is_gone() {
    run(small(), |world| async move {
        world.create(id(0), b"zero").await;
        world.cache.write_now(id(0)).await.unwrap();
        world.cache.protect(id(0)).await.unwrap().unwrap().finish(Remains::KeepShared);
        let guard = world.cache.read(id(0)).await.unwrap();
        let cache = world.cache.clone();
        let mut invalidating = start(async move { cache.invalidate(id(0)).await });
        world.settle().await;
        assert!(invalidating.poll().is_none());
        drop(guard);
        assert!(invalidating.poll().is_some());
        assert!(world.cache.try_read(id(0)).is_none());
        world.cache.invalidate(id(0)).await;
    });
}

#[test]
#[should_panic(expected = "rule 6")]
fn a_dirty_owner_is_not_invalidated() {
    run(small(), |world| async move {
        world.create(id(0), b"zero").await;
        world.cache.protect(id(0)).await.unwrap().unwrap().finish(Remains::KeepShared);
        world.cache.invalidate(id(0)).await;
    });
}

#[test]
#[should_panic(expected = "rule 6")]
fn a_dirty_block_is_not_dropped() {
    run(small(), |world| async move {
        world.create(id(0), b"zero").await;
        world.cache.protect(id(0)).await.unwrap().unwrap().finish(Remains::Dropped);
    });
}

#[test]
#[should_panic(expected = "rule 6")]
fn a_grant_from_disk_while_an_owner_has_a_newer_version_is_a_bug() {
    run(small(), |world| async move {
        world.peers.hold_answers.set(true);
        let cache = world.cache.clone();
        let _reader = start(async move { cache.read(id(0)).await.map(|_| ()) });
        world.peers.next().granted(Granted { mode: Mode::Shared, source: Source::Disk, dirty_owner: true });
    });
}

#[test]
#[should_panic(expected = "rule 5")]
fn the_master_wants_one_thing_at_a_time() {
    run(small(), |world| async move {
        world.create(id(0), b"zero").await;
        let _guard = world.cache.read(id(0)).await.unwrap();
        let (one, two) = (world.cache.clone(), world.cache.clone());
        let _first = start(async move { one.protect(id(0)).await.map(|_| ()) });
        let _second = start(async move { two.protect(id(0)).await.map(|_| ()) });
    });
}

#[test]
fn a_block_under_write_is_shipped_only_afterwards() {
    run(small(), |world| async move {
        world.create(id(0), b"zero").await;
        world.cache.request_write(id(0));
        let frame = world.cache.0.map.find(id(0)).unwrap();
        while world.cache.0.frame(frame).writing.get().is_none() {
            world.reactor.yield_now().await;
        }
        // Changes go on meanwhile; the write clears only what it wrote.
        world.update(id(0), b"one").await;
        let protected = world.cache.protect(id(0)).await.unwrap().unwrap();
        assert_eq!(world.peers.wrote.borrow().len(), 1, "rule 8");
        assert!(protected.dirty() && protected.scn() > world.peers.wrote.borrow()[0].1, "rule 7");
        assert_eq!(value(protected.bytes()), b"one");
    });
}

#[test]
fn a_frame_that_stands_in_line_for_the_writer_twice_is_written_once() {
    run(small(), |world| async move {
        world.create(id(0), b"zero").await;
        let frame = world.cache.0.map.find(id(0)).unwrap();
        world.cache.request_write(id(0));
        // As when it was wanted for a block that has left, and then for the block that came after it.
        world.cache.0.wanted.borrow_mut().push_back(frame);
        world.reactor.sleep(std::time::Duration::from_millis(100)).await;
        assert_eq!(world.cache.stats().dirty, 0);
        assert_eq!(world.peers.wrote.borrow().len(), 1);
    });
}
