//! Tasks: classes, handles, and wakers that cost nothing to clone.
//!
//! A waker is a plain 64-bit name (executor, slot, generation), not a pointer: cloning and dropping it does nothing, and a
//! stale one can at worst wake a newer task for nothing, which every future allows. On the shard's own thread waking is a
//! look-up in a thread-local table; from any other thread the name goes through the executor's mail. The thread-local
//! holds no state of its own: several reactors live side by side in one thread (the simulator does that).

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{RawWaker, RawWakerVTable, Waker};

use super::executor::Executor;
use super::mail::{Mailbox, Outbox, WakeUp};

/// How many classes there are.
pub const CLASSES: usize = 4;

/// What a task is for; decides its share of the core when more is ready than can run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Class {
    /// Heartbeats, fencing, recovery: half of the core.
    Critical = 0,
    /// Block transfers and log writes.
    High = 1,
    /// Foreground work.
    Normal = 2,
    /// Checkpoints, rebalancing, scrubbing: what is left, but never nothing.
    Low = 3,
}

impl Class {
    /// All classes, most urgent first.
    pub const ALL: [Class; CLASSES] = [Class::Critical, Class::High, Class::Normal, Class::Low];

    /// The class's share of a core on which every class has work, relative to the others' (8 : 4 : 3 : 1).
    #[must_use]
    pub const fn shares(self) -> u64 {
        match self {
            Class::Critical => 8,
            Class::High => 4,
            Class::Normal => 3,
            Class::Low => 1,
        }
    }
}

const SLOT_BITS: u32 = 20;
const GENERATION_BITS: u32 = 28;

/// Most tasks that one reactor may have at a time. Reaching it is a bug: something spawns without bound.
pub const TASKS_MAX: usize = 1 << SLOT_BITS;

pub(crate) const GENERATION_MASK: u32 = (1 << GENERATION_BITS) - 1;

const _: () = assert!(usize::BITS == 64, "a waker's name takes the 64 bits of a pointer");

/// A task's name, as its wakers carry it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TaskId {
    pub(crate) executor: u16,
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl TaskId {
    fn pack(self) -> usize {
        ((self.executor as usize) << (SLOT_BITS + GENERATION_BITS))
            | ((self.slot as usize) << GENERATION_BITS)
            | self.generation as usize
    }

    fn unpack(name: usize) -> TaskId {
        TaskId {
            executor: (name >> (SLOT_BITS + GENERATION_BITS)) as u16,
            slot: ((name >> GENERATION_BITS) as u32) & (TASKS_MAX as u32 - 1),
            generation: name as u32 & GENERATION_MASK,
        }
    }

    pub(crate) fn waker(self) -> Waker {
        // SAFETY: the data is a number that nobody dereferences; clone and drop do nothing, and waking is safe from any
        // thread at any time (see `wake`), which is all that the RawWaker contract asks.
        unsafe { Waker::from_raw(RawWaker::new(std::ptr::without_provenance(self.pack()), &VTABLE)) }
    }
}

static VTABLE: RawWakerVTable = RawWakerVTable::new(|data| RawWaker::new(data, &VTABLE), wake, wake, |_| {});

fn wake(data: *const ()) {
    let id = TaskId::unpack(data.addr());
    let here = LOCAL.try_with(|table| match table.borrow().get(id.executor as usize) {
        Some(Some(executor)) => {
            executor.wake(id);
            true
        }
        _ => false,
    });
    if here != Ok(true) {
        if Outbox::current().is_some_and(|outbox| outbox.wake_task(id.executor, id.slot, id.generation)) {
            return;
        }
        let mailbox = registry().get(id.executor as usize).cloned().flatten();
        if let Some(mailbox) = mailbox {
            mailbox.wake_task(id.slot, id.generation);
        }
    }
}

thread_local! {
    /// This thread's executors, by their number.
    static LOCAL: RefCell<Vec<Option<Rc<Executor>>>> = const { RefCell::new(Vec::new()) };
}

/// Every executor's mailbox, by its number: where wake-ups from other threads go.
static REGISTRY: Mutex<Vec<Option<Arc<Mailbox>>>> = Mutex::new(Vec::new());

fn registry() -> std::sync::MutexGuard<'static, Vec<Option<Arc<Mailbox>>>> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes an executor and its mailbox, and makes it known to its wakers. Its number may have been another's before; stale
/// wakers wake for nothing.
pub(crate) fn register(wake_up: Arc<dyn WakeUp>) -> (Rc<Executor>, Arc<Mailbox>) {
    let (number, mailbox) = {
        let mut registry = registry();
        let number = registry.iter().position(Option::is_none).unwrap_or(registry.len());
        if number == registry.len() {
            registry.push(None);
        }
        let mailbox = Mailbox::new(u16::try_from(number).expect("at most 65,536 reactors in a process"), wake_up);
        registry[number] = Some(mailbox.clone());
        (number, mailbox)
    };
    let executor = Rc::new(Executor::new(number as u16));
    LOCAL.with(|table| {
        let mut table = table.borrow_mut();
        if table.len() <= number {
            table.resize(number + 1, None);
        }
        table[number] = Some(executor.clone());
    });
    (executor, mailbox)
}

/// Undoes [`register`], on the same thread.
pub(crate) fn unregister(executor: &Executor) {
    let number = executor.number() as usize;
    registry()[number] = None;
    let gone = LOCAL.try_with(|table| table.borrow_mut().get_mut(number).and_then(Option::take));
    drop(gone);
}

/// How many executors of this thread have not been dropped.
#[cfg(test)]
pub(crate) fn executors_here() -> usize {
    LOCAL.with(|table| table.borrow().iter().flatten().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_packing() {
        let id = TaskId { executor: u16::MAX, slot: TASKS_MAX as u32 - 1, generation: GENERATION_MASK };
        assert_eq!(TaskId::unpack(id.pack()), id);
        let id = TaskId { executor: 3, slot: 77, generation: 1 };
        assert_eq!(TaskId::unpack(id.pack()), id);
    }
}
