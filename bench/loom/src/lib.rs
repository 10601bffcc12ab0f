//! The reactor's own `ring.rs` and `sleeper.rs`, built from loom's atomics instead of the standard library's: loom runs
//! each test once for every order in which the threads' steps, and the memory model, could have it.
#![cfg(test)]

mod primitives {
    pub(super) use loom::sync::Arc;
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering, fence};

    /// Loom's cell: it reports two threads at one item.
    pub(super) use loom::cell::UnsafeCell;
}

#[path = "../../../src/reactor/mail/ring.rs"]
mod ring;
#[path = "../../../src/reactor/mail/sleeper.rs"]
mod sleeper;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use loom::thread;
use ring::{Refused, ring};
use sleeper::Sleeper;

/// An item that counts its drop, so that none is lost and none is dropped twice.
struct Item(Arc<AtomicUsize>);

impl Drop for Item {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A thread that sleeps until it is woken; a wake-up beforehand is kept, as by the eventfd and the ring's completion.
#[derive(Clone)]
struct Bed(Arc<(Sleeper, loom::sync::Mutex<bool>, loom::sync::Condvar)>);

impl Bed {
    fn new() -> Bed {
        Bed(Arc::new((Sleeper::new(), loom::sync::Mutex::new(false), loom::sync::Condvar::new())))
    }

    fn sleep_unless(&self, has_work: impl FnOnce() -> bool) {
        let (sleeper, woken, bell) = &*self.0;
        if !sleeper.lie_down(has_work) {
            return;
        }
        let mut woken = woken.lock().unwrap();
        while !*woken {
            woken = bell.wait(woken).unwrap();
        }
        *woken = false;
        drop(woken);
        sleeper.get_up();
    }

    fn wake_if_asleep(&self) {
        fence(Ordering::SeqCst);
        let (sleeper, woken, bell) = &*self.0;
        if sleeper.must_be_woken() {
            *woken.lock().unwrap() = true;
            bell.notify_one();
        }
    }
}

/// A reader that sleeps whenever it finds nothing gets everything, in order; a lost wake-up would be a deadlock.
#[test]
fn no_mail_is_slept_over() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring::<u32>(2);
        let bed = Bed::new();
        let reader = {
            let bed = bed.clone();
            thread::spawn(move || {
                let mut got = Vec::new();
                while got.len() < 2 {
                    consumer.take_all(&mut got);
                    if got.len() < 2 {
                        bed.sleep_unless(|| !consumer.is_empty());
                    }
                }
                assert_eq!(got, [1, 2]);
            })
        };
        for number in 1..=2 {
            assert!(producer.push(number).is_ok());
            bed.wake_if_asleep();
        }
        reader.join().unwrap();
    });
}

/// A producer that waits for room is told of it: more items than the ring holds get through.
#[test]
fn room_is_told_to_who_waits_for_it() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring::<u32>(1);
        // The producer's nudge: a flag that its turn looks at, and its bed.
        let (nudged, bed) = (Arc::new(AtomicBool::new(false)), Bed::new());
        let reader = {
            let (nudged, bed) = (nudged.clone(), bed.clone());
            thread::spawn(move || {
                let mut got = Vec::new();
                while got.len() < 2 {
                    if consumer.take_all(&mut got) {
                        nudged.store(true, Ordering::Release);
                        bed.wake_if_asleep();
                    }
                    thread::yield_now();
                }
                assert_eq!(got, [1, 2]);
            })
        };
        for number in 1..=2 {
            let mut item = number;
            while let Err(Refused::Full(back)) = producer.push(item) {
                item = back;
                if producer.want_room() == 0 {
                    bed.sleep_unless(|| nudged.load(Ordering::Acquire));
                    nudged.store(false, Ordering::Relaxed);
                }
            }
        }
        reader.join().unwrap();
    });
}

/// The reader closes while items are pushed: each is dropped exactly once, by one of the two, while both still live.
#[test]
fn nothing_is_left_in_a_ring_whose_reader_ends() {
    loom::model(|| {
        let dropped = Arc::new(AtomicUsize::new(0));
        let (mut producer, mut consumer) = ring::<Item>(2);
        let reader = thread::spawn(move || {
            let mut got = Vec::new();
            consumer.take_all(&mut got);
            drop(got);
            drop(consumer.close());
        });
        let mut pushed = 0;
        for _ in 0..2 {
            match producer.push(Item(dropped.clone())) {
                Ok(()) => pushed += 1,
                Err(Refused::Closed(_) | Refused::Full(_)) => pushed += 1,
            }
        }
        fence(Ordering::SeqCst);
        if producer.is_closed() {
            loop {
                match producer.reclaim() {
                    Some(left) => break drop(left),
                    None => thread::yield_now(),
                }
            }
        }
        reader.join().unwrap();
        assert_eq!(dropped.load(Ordering::Relaxed), pushed);
    });
}

/// Either end may go first; what is left goes with the last.
#[test]
fn a_ring_drops_what_nobody_took() {
    loom::model(|| {
        let dropped = Arc::new(AtomicUsize::new(0));
        let (mut producer, consumer) = ring::<Item>(2);
        let writer = {
            let dropped = dropped.clone();
            thread::spawn(move || {
                assert!(producer.push(Item(dropped.clone())).is_ok());
                assert!(producer.push(Item(dropped)).is_ok());
            })
        };
        let finished = consumer.is_finished();
        drop(consumer);
        writer.join().unwrap();
        assert!(!finished, "there is something in it as soon as its producer is gone");
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
    });
}
