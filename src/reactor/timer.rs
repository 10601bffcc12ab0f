//! Timers of one reactor: a heap of deadlines. Timers with equal deadlines fire in the order in which they were set.
//!
//! Cancelling leaves the heap entry behind; entries of dead timers are swept out as soon as they outnumber the living by
//! [`STALE_MAX`], so that the heap is bounded by the sleeping tasks.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::task::Waker;

use super::slab::Slab;
use super::time::Instant;

/// Dead heap entries that are tolerated beyond the number of live timers.
const STALE_MAX: usize = 1024;

#[derive(Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, u64, u32)>>,
    live: Slab<Timer>,
    sequence: u64,
}

struct Timer {
    sequence: u64,
    waker: Waker,
    fired: bool,
}

/// Names a timer until it is cancelled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TimerId(u32);

impl Timers {
    pub(crate) fn set(&mut self, deadline: Instant, waker: Waker) -> TimerId {
        self.sequence += 1;
        let index = self.live.insert(Timer { sequence: self.sequence, waker, fired: false });
        self.heap.push(Reverse((deadline, self.sequence, index)));
        if self.heap.len() > 2 * self.live.len() + STALE_MAX {
            let live = &self.live;
            self.heap.retain(|Reverse((_, sequence, index))| live.get(*index).is_some_and(|timer| timer.sequence == *sequence));
        }
        TimerId(index)
    }

    pub(crate) fn has_fired(&self, id: TimerId) -> bool {
        self.live[id.0].fired
    }

    pub(crate) fn set_waker(&mut self, id: TimerId, waker: &Waker) {
        self.live[id.0].waker.clone_from(waker);
    }

    pub(crate) fn cancel(&mut self, id: TimerId) {
        self.live.remove(id.0);
    }

    /// The earliest deadline of a live timer.
    pub(crate) fn next_deadline(&mut self) -> Option<Instant> {
        while let Some(Reverse((deadline, sequence, index))) = self.heap.peek().copied() {
            if self.is_armed(sequence, index) {
                return Some(deadline);
            }
            self.heap.pop();
        }
        None
    }

    /// Marks the timers due at `now` as fired and wakes their tasks.
    pub(crate) fn fire(&mut self, now: Instant) -> usize {
        let mut fired = 0;
        while self.next_deadline().is_some_and(|deadline| deadline <= now) {
            let Some(Reverse((_, _, index))) = self.heap.pop() else { break };
            let timer = &mut self.live[index];
            timer.fired = true;
            timer.waker.wake_by_ref();
            fired += 1;
        }
        fired
    }

    pub(crate) fn len(&self) -> usize {
        self.live.len()
    }

    fn is_armed(&self, sequence: u64, index: u32) -> bool {
        self.live.get(index).is_some_and(|timer| timer.sequence == sequence && !timer.fired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancelled_timers_do_not_pile_up() {
        let mut timers = Timers::default();
        for round in 0..100_000 {
            let id = timers.set(Instant(1_000_000 + round), Waker::noop().clone());
            timers.cancel(id);
        }
        assert!(timers.heap.len() <= STALE_MAX + 2, "{} entries for no live timer", timers.heap.len());
        assert_eq!(timers.next_deadline(), None);
    }

    #[test]
    fn a_reused_slot_does_not_fire_for_the_timer_before_it() {
        let mut timers = Timers::default();
        let first = timers.set(Instant(10), Waker::noop().clone());
        timers.cancel(first);
        let second = timers.set(Instant(20), Waker::noop().clone());
        assert_eq!(first, second);
        assert_eq!(timers.fire(Instant(15)), 0);
        assert!(!timers.has_fired(second));
        assert_eq!(timers.fire(Instant(20)), 1);
        assert!(timers.has_fired(second));
    }
}
