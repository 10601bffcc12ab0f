//! A bounded queue from one thread to one other, without locks: the way of mail from shard to shard.
//!
//! The producer alone moves `tail`, the consumer alone `head`; each keeps a copy of its own and reads the other's only to
//! find room or mail. Bounded by its capacity: a full ring refuses, and the producer asks to be told of room
//! ([`Producer::want_room`]). Whatever was pushed is either taken or dropped, also when either end goes away: a consumer
//! that closes drops what it sees, and what was pushed beside that the producer takes back ([`Producer::reclaim`]).
//! `bench/loom` tries every interleaving of small cases.

use std::mem::MaybeUninit;

use crossbeam_utils::CachePadded;

use super::primitives::{Arc, AtomicBool, AtomicU8, AtomicUsize, Ordering, UnsafeCell, fence};

/// The consumer takes mail.
const OPEN: u8 = 0;
/// It will take no more, and drops what there is.
const CLOSING: u8 = 1;
/// It touches the ring no more; what is left belongs to the producer.
const GONE: u8 = 2;

struct Ring<T> {
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    /// Items ever pushed.
    tail: CachePadded<AtomicUsize>,
    /// Items ever taken; `tail - head` is never more than the capacity.
    head: CachePadded<AtomicUsize>,
    /// The producer wants to be told when there is room.
    wanting: AtomicBool,
    consumer: AtomicU8,
    producer_gone: AtomicBool,
}

// SAFETY: an item is reached by one thread at a time: by the producer until it moved `tail` past it, then by the consumer
// until it moved `head` past it (each with release, read by the other with acquire). So items only travel.
unsafe impl<T: Send> Send for Ring<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Ring<T> {}

impl<T> Ring<T> {
    /// Moves the item at `position` out. The caller owns it: it is pushed, not taken, and nobody else takes it.
    fn take(&self, position: usize) -> T {
        self.slots[position & (self.slots.len() - 1)].with_mut(|slot| {
            // SAFETY: the slot was written by `push` before `tail` passed it, and the caller is the one who takes it.
            unsafe { (*slot).assume_init_read() }
        })
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        let (mut head, tail) = (self.head.load(Ordering::Relaxed), self.tail.load(Ordering::Relaxed));
        while head != tail {
            drop(self.take(head));
            head = head.wrapping_add(1);
        }
    }
}

/// Why an item was not taken; gives it back.
#[derive(Debug)]
pub(super) enum Refused<T> {
    /// No room.
    Full(T),
    /// The consumer is gone.
    Closed(T),
}

/// The end that puts in.
pub(super) struct Producer<T> {
    ring: Arc<Ring<T>>,
    tail: usize,
    /// `head` when last looked at.
    head: usize,
}

/// The end that takes out.
pub(super) struct Consumer<T> {
    ring: Arc<Ring<T>>,
    head: usize,
}

/// A ring for `capacity` items, a power of two.
pub(super) fn ring<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    assert!(capacity.is_power_of_two(), "a ring's capacity is a power of two, not {capacity}");
    let ring = Arc::new(Ring {
        slots: (0..capacity).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect(),
        tail: CachePadded::new(AtomicUsize::new(0)),
        head: CachePadded::new(AtomicUsize::new(0)),
        wanting: AtomicBool::new(false),
        consumer: AtomicU8::new(OPEN),
        producer_gone: AtomicBool::new(false),
    });
    (Producer { ring: ring.clone(), tail: 0, head: 0 }, Consumer { ring, head: 0 })
}

impl<T: Send> Producer<T> {
    /// Puts an item in; the consumer sees it from now on, if it looks. Before it relies on that, the caller makes a
    /// `SeqCst` fence (one for many items) and asks whether the consumer sleeps or [is closed](Self::is_closed).
    ///
    /// # Errors
    /// Full, or the consumer is gone; with the item.
    #[inline]
    pub(super) fn push(&mut self, item: T) -> Result<(), Refused<T>> {
        if self.is_closed() {
            return Err(Refused::Closed(item));
        }
        let capacity = self.ring.slots.len();
        if self.tail.wrapping_sub(self.head) == capacity && self.room() == 0 {
            return Err(Refused::Full(item));
        }
        self.ring.slots[self.tail & (capacity - 1)].with_mut(|slot| {
            // SAFETY: there is room, so the consumer has moved the former item out, and looks here only once `tail` says so.
            unsafe { (*slot).write(item) };
        });
        self.tail = self.tail.wrapping_add(1);
        self.ring.tail.store(self.tail, Ordering::Release);
        Ok(())
    }

    /// How many items there is room for.
    fn room(&mut self) -> usize {
        self.head = self.ring.head.load(Ordering::Acquire);
        self.ring.slots.len() - self.tail.wrapping_sub(self.head)
    }

    /// Asks the consumer to tell of the next room. Returns the room that there is already.
    pub(super) fn want_room(&mut self) -> usize {
        self.ring.wanting.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.room()
    }

    /// Whether the consumer takes no more. After a `SeqCst` fence behind a push: `false` means that the item will be taken
    /// or dropped by the consumer; `true` that it may be left to [`reclaim`](Self::reclaim).
    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        self.ring.consumer.load(Ordering::Relaxed) != OPEN
    }

    /// Takes back what a closed consumer has left. `None` while it is still at it: ask again.
    pub(super) fn reclaim(&mut self) -> Option<Vec<T>> {
        if self.ring.consumer.load(Ordering::Acquire) != GONE {
            return None;
        }
        let mut left = Vec::new();
        let mut head = self.ring.head.load(Ordering::Relaxed);
        while head != self.tail {
            left.push(self.ring.take(head));
            head = head.wrapping_add(1);
        }
        self.ring.head.store(head, Ordering::Relaxed);
        Some(left)
    }
}

impl<T> Drop for Producer<T> {
    fn drop(&mut self) {
        self.ring.producer_gone.store(true, Ordering::Release);
    }
}

impl<T: Send> Consumer<T> {
    /// Whether there is nothing to take.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.ring.tail.load(Ordering::Acquire) == self.head
    }

    /// Takes all that there is. True when the producer wants to be told that there is room again.
    #[inline]
    pub(super) fn take_all(&mut self, into: &mut Vec<T>) -> bool {
        let tail = self.ring.tail.load(Ordering::Acquire);
        if tail == self.head {
            return false;
        }
        while self.head != tail {
            into.push(self.ring.take(self.head));
            self.head = self.head.wrapping_add(1);
        }
        self.ring.head.store(self.head, Ordering::Release);
        // Pairs with the fence in `want_room`: either that sees the room, or this sees the wish.
        fence(Ordering::SeqCst);
        self.ring.wanting.load(Ordering::Relaxed) && self.ring.wanting.swap(false, Ordering::Relaxed)
    }

    /// Whether the producer is gone and nothing is left.
    pub(super) fn is_finished(&self) -> bool {
        self.ring.producer_gone.load(Ordering::Acquire) && self.is_empty()
    }

    /// Takes no more, and returns what there is; the rest is the producer's, who has to be told.
    pub(super) fn close(mut self) -> Vec<T> {
        let mut left = Vec::new();
        self.ring.consumer.store(CLOSING, Ordering::Relaxed);
        // Pairs with the producer's fence behind a push: either that sees the end, or this sees the item.
        fence(Ordering::SeqCst);
        self.take_all(&mut left);
        self.ring.consumer.store(GONE, Ordering::Release);
        left
    }
}
