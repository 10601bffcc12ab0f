//! The executor of one shard: slots of tasks, a ready queue per class, and shares between the classes.
//!
//! Classes share the core by virtual time: each poll adds the time that it took, divided by the class's shares, and the
//! ready class with the least goes next. A class that was idle starts from the present virtual time, so it cannot hoard.
//! Bounded by [`TASKS_MAX`]. Not `Send`; no borrow is held while a task runs, so tasks may spawn, wake and abort freely.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::task::{CLASSES, Class, GENERATION_MASK, TASKS_MAX, TaskId};

/// The least that a poll is charged, so that virtual time moves on clocks that do not (the simulator's).
const POLL_NS_MIN: u64 = 100;

type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

pub(crate) struct Executor {
    number: u16,
    state: RefCell<State>,
    ready: Cell<usize>,
}

struct State {
    tasks: Vec<Slot>,
    free: Vec<u32>,
    queues: [VecDeque<(u32, u32)>; CLASSES],
    /// Virtual time used by each class, in nanoseconds divided by shares.
    used: [u64; CLASSES],
    virtual_now: u64,
}

struct Slot {
    generation: u32,
    alive: bool,
    scheduled: bool,
    class: Class,
    name: &'static str,
    future: Option<LocalFuture>,
    joiner: Option<Waker>,
}

/// What one poll did.
pub(crate) struct Polled {
    pub(crate) class: Class,
    pub(crate) name: &'static str,
}

impl Executor {
    pub(crate) fn new(number: u16) -> Executor {
        let state = State { tasks: Vec::new(), free: Vec::new(), queues: Default::default(), used: [0; CLASSES], virtual_now: 0 };
        Executor { number, state: RefCell::new(state), ready: Cell::new(0) }
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// Entries of the ready queues; zero means that no task can run.
    #[inline]
    pub(crate) fn ready(&self) -> usize {
        self.ready.get()
    }

    pub(crate) fn alive(&self) -> usize {
        let state = self.state.borrow();
        state.tasks.len() - state.free.len()
    }

    pub(crate) fn spawn(&self, class: Class, name: &'static str, future: LocalFuture) -> TaskId {
        let id = {
            let mut state = self.state.borrow_mut();
            let slot = match state.free.pop() {
                Some(slot) => slot,
                None => {
                    assert!(
                        state.tasks.len() < TASKS_MAX,
                        "{TASKS_MAX} tasks alive, the next is {name}: who spawns without bound?"
                    );
                    state.tasks.push(Slot {
                        generation: 0,
                        alive: false,
                        scheduled: false,
                        class,
                        name,
                        future: None,
                        joiner: None,
                    });
                    state.tasks.len() as u32 - 1
                }
            };
            let entry = &mut state.tasks[slot as usize];
            assert!(!entry.alive, "slot {slot} of the free list is in use by {}", entry.name);
            (entry.alive, entry.scheduled, entry.class, entry.name) = (true, false, class, name);
            entry.future = Some(future);
            TaskId { executor: self.number, slot, generation: entry.generation }
        };
        self.wake(id);
        id
    }

    /// Makes the task ready, unless it is gone or is ready already.
    #[inline]
    pub(crate) fn wake(&self, id: TaskId) {
        let state = &mut *self.state.borrow_mut();
        let Some(slot) = state.tasks.get_mut(id.slot as usize) else { return };
        if slot.generation != id.generation || !slot.alive || slot.scheduled {
            return;
        }
        slot.scheduled = true;
        let class = slot.class as usize;
        if state.queues[class].is_empty() {
            state.used[class] = state.used[class].max(state.virtual_now);
        }
        state.queues[class].push_back((id.slot, id.generation));
        self.ready.set(self.ready.get() + 1);
    }

    /// Takes the next task that may run, by the classes' shares.
    #[inline]
    fn pick(&self) -> Option<(TaskId, LocalFuture, Polled)> {
        let state = &mut *self.state.borrow_mut();
        loop {
            let mut best: Option<usize> = None;
            for class in 0..CLASSES {
                if !state.queues[class].is_empty() && best.is_none_or(|best| state.used[class] < state.used[best]) {
                    best = Some(class);
                }
            }
            let class = best?;
            state.virtual_now = state.virtual_now.max(state.used[class]);
            let Some((index, generation)) = state.queues[class].pop_front() else { continue };
            self.ready.set(self.ready.get() - 1);
            let slot = &mut state.tasks[index as usize];
            if slot.generation != generation {
                continue;
            }
            slot.scheduled = false;
            if let Some(future) = slot.future.take() {
                let id = TaskId { executor: self.number, slot: index, generation };
                return Some((id, future, Polled { class: slot.class, name: slot.name }));
            }
        }
    }

    /// Polls one task. `None` when no task is ready.
    #[inline]
    pub(crate) fn poll_one(&self) -> Option<Polled> {
        let (id, mut future, polled) = self.pick()?;
        let waker = id.waker();
        let result = future.as_mut().poll(&mut Context::from_waker(&waker));
        let mut state = self.state.borrow_mut();
        let slot = &mut state.tasks[id.slot as usize];
        if result == Poll::Pending && slot.alive && slot.generation == id.generation {
            slot.future = Some(future);
            return Some(polled);
        }
        let joiner = if slot.alive && slot.generation == id.generation { Self::release(&mut state, id.slot) } else { None };
        drop(state);
        drop(future);
        if let Some(joiner) = joiner {
            joiner.wake();
        }
        Some(polled)
    }

    /// Charges `elapsed_ns` of the core to a class.
    #[inline]
    pub(crate) fn charge(&self, class: Class, elapsed_ns: u64) {
        let mut state = self.state.borrow_mut();
        state.used[class as usize] += elapsed_ns.max(POLL_NS_MIN) * 8 / class.shares();
    }

    pub(crate) fn is_alive(&self, id: TaskId) -> bool {
        let state = self.state.borrow();
        let slot = &state.tasks[id.slot as usize];
        slot.alive && slot.generation == id.generation
    }

    /// Registers who waits for the task's end. False when it has ended.
    pub(crate) fn join(&self, id: TaskId, waker: &Waker) -> bool {
        let mut state = self.state.borrow_mut();
        let slot = &mut state.tasks[id.slot as usize];
        if !slot.alive || slot.generation != id.generation {
            return false;
        }
        slot.joiner = Some(waker.clone());
        true
    }

    /// Ends the task: its future is dropped now, or when its present poll returns (a task may abort itself).
    pub(crate) fn abort(&self, id: TaskId) {
        let mut state = self.state.borrow_mut();
        let slot = &mut state.tasks[id.slot as usize];
        if !slot.alive || slot.generation != id.generation {
            return;
        }
        let future = slot.future.take();
        let joiner = Self::release(&mut state, id.slot);
        drop(state);
        drop(future);
        if let Some(joiner) = joiner {
            joiner.wake();
        }
    }

    /// Drops every task. Tasks spawned by the dropping are dropped too.
    pub(crate) fn abort_all(&self) {
        loop {
            let alive: Vec<TaskId> = {
                let state = self.state.borrow();
                let alive = state.tasks.iter().enumerate().filter(|(_, slot)| slot.alive);
                alive
                    .map(|(slot, entry)| TaskId { executor: self.number, slot: slot as u32, generation: entry.generation })
                    .collect()
            };
            if alive.is_empty() {
                return;
            }
            alive.into_iter().for_each(|id| self.abort(id));
        }
    }

    fn release(state: &mut State, index: u32) -> Option<Waker> {
        let slot = &mut state.tasks[index as usize];
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        (slot.alive, slot.scheduled) = (false, false);
        state.free.push(index);
        slot.joiner.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_time_whatever_a_poll_costs() {
        let executor = Executor::new(0);
        let ids = Class::ALL.map(|class| executor.spawn(class, "pending", Box::pin(std::future::pending())));
        let cost_ns = [1_000, 500, 7_000, 4_000];
        let mut used_ns = [0u64; CLASSES];
        while used_ns.iter().sum::<u64>() < 100_000_000 {
            let class = executor.poll_one().unwrap().class;
            executor.charge(class, cost_ns[class as usize]);
            used_ns[class as usize] += cost_ns[class as usize];
            executor.wake(ids[class as usize]);
        }
        for class in Class::ALL {
            let ratio = used_ns[class as usize] as f64 / used_ns[Class::Low as usize] as f64 / class.shares() as f64;
            assert!((ratio - 1.0).abs() < 0.05, "{used_ns:?}");
        }
    }

    #[test]
    fn a_class_that_was_idle_does_not_catch_up() {
        let executor = Executor::new(0);
        let low = executor.spawn(Class::Low, "low", Box::pin(std::future::pending()));
        for _ in 0..1000 {
            assert_eq!(executor.poll_one().unwrap().class, Class::Low);
            executor.charge(Class::Low, 1_000_000);
            executor.wake(low);
        }
        let normal = executor.spawn(Class::Normal, "normal", Box::pin(std::future::pending()));
        let mut in_a_row = 0;
        while executor.poll_one().unwrap().class == Class::Normal {
            executor.charge(Class::Normal, 1_000_000);
            executor.wake(normal);
            in_a_row += 1;
        }
        assert!(in_a_row <= 4, "Low waited for {in_a_row} polls of Normal");
    }
}
