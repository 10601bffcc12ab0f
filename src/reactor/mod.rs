//! The reactor: one thread per shard, its executor, timers and mail, over a driver that does the I/O.
//!
//! A [`Reactor`] is a handle (not `Send`) to the machinery of the shard that it was made on. Nothing here knows of other
//! shards but through [`Remote`], which is `Send`. Bounds: [`task::TASKS_MAX`] tasks, [`mail::MAILBOX_CAPACITY`] letters from threads and [`mail::RING_CAPACITY`] from each shard,
//! [`OPERATIONS_MAX`] operations in flight. Promises: tasks of one class run in the order in which they were woken; a
//! buffer in an operation is neither freed nor reused before the operation's completion; all time and randomness come
//! from the driver, so that the simulator repeats a run from its seed. `docs/reactor.md` tells how a turn goes.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

pub mod buffer;
pub mod driver;
mod executor;
mod gate;
mod io;
pub mod mail;
pub mod nvme;
mod slab;
pub mod stats;
mod steady;
pub mod sync;
pub mod task;
#[cfg(test)]
mod tests;
pub mod thread;
mod time;
mod timer;
mod turn;

pub use buffer::IoBuf;
pub use driver::{DurableMethod, OpenOptions, StorageRoute, StorageWish};
pub(crate) use gate::LogGate;
pub use io::{Adopted, FileId, LeaseOver, Listener, Stream};
pub use mail::{MailError, Remote};
pub use stats::ReactorStats;
pub use task::Class;
pub use thread::{DriverChoice, ReactorOptions};
pub use time::{Clock, Instant};

use driver::{Completion, Driver};
use executor::Executor;
use io::OperationSlot;
use mail::{Inbox, Mail, Mailbox, Outbox};
use slab::Slab;
use stats::{Counters, add};
use steady::SteadyBuffers;
use task::TaskId;
use time::Meter;
use timer::{TimerId, Timers};

/// Most operations in flight on one reactor. Reaching it is a bug: callers bound their own requests far below it.
pub const OPERATIONS_MAX: usize = 65_536;

/// A task that holds the core longer than this is reported by name.
pub const STALL_LIMIT: Duration = Duration::from_millis(25);

/// Handle to the reactor of the present shard. Cheap to clone, not `Send`.
#[derive(Clone)]
pub struct Reactor(pub(crate) Rc<Inner>);

pub(crate) struct Inner {
    pub(crate) driver: RefCell<Box<dyn Driver>>,
    driver_name: &'static str,
    pub(crate) clock: Clock,
    pub(crate) meter: Meter,
    random: Cell<u64>,
    /// The main task has ended: no turn may sleep any more.
    pub(crate) stopping: Cell<bool>,
    pub(crate) executor: Rc<Executor>,
    pub(crate) timers: RefCell<Timers>,
    pub(crate) operations: RefCell<Slab<OperationSlot>>,
    pub(crate) completions: RefCell<Vec<Completion>>,
    pub(crate) mailbox: std::sync::Arc<Mailbox>,
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Rc<Outbox>,
    /// Mail being read, to use its memory again.
    mail: RefCell<Vec<Mail>>,
    pub(crate) counters: Counters,
    pub(crate) options: ReactorOptions,
    locals: RefCell<Vec<Rc<dyn std::any::Any>>>,
    /// What unties the knots of the shard's objects, once nothing runs any more.
    endings: RefCell<Vec<Box<dyn FnOnce()>>>,
    /// Registered with the driver: goes after it.
    steady: SteadyBuffers,
    /// What beats are counted from.
    began: Instant,
    /// No write is submitted from then on.
    pub(crate) writes_until: Cell<Option<Instant>>,
}

impl Reactor {
    /// A reactor for the calling thread, over the driver that `options` choose.
    ///
    /// # Errors
    /// When no driver can be set up.
    pub fn new(options: ReactorOptions) -> std::io::Result<Reactor> {
        let driver = thread::make_driver(&options)?;
        Ok(Reactor::with_driver(driver, options))
    }

    /// A reactor over a given driver.
    #[must_use]
    pub fn with_driver(mut driver: Box<dyn Driver>, options: ReactorOptions) -> Reactor {
        let (executor, mailbox) = task::register(driver.wake_up());
        let clock = driver.clock();
        Reactor(Rc::new(Inner {
            meter: Meter::new(clock.clone()),
            began: clock.now(),
            clock,
            driver_name: driver.name(),
            random: Cell::new(driver.random_seed()),
            stopping: Cell::new(false),
            executor,
            driver: RefCell::new(driver),
            timers: RefCell::default(),
            operations: RefCell::default(),
            completions: RefCell::default(),
            inbox: Inbox::new(mailbox.clone()),
            outbox: Outbox::new(mailbox.clone()),
            mail: RefCell::default(),
            mailbox,
            counters: Counters::default(),
            options,
            locals: RefCell::default(),
            endings: RefCell::default(),
            steady: SteadyBuffers::default(),
            writes_until: Cell::new(None),
        }))
    }

    /// Runs until `main` ends, then drops all other tasks and refuses mail. Returns `main`'s output.
    pub fn run<F>(self, main: F) -> F::Output
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let _entered = self.0.outbox.enter();
        let output = Rc::new(Cell::new(None));
        let (slot, reactor) = (output.clone(), self.clone());
        self.spawn(Class::Normal, "main", async move {
            slot.set(Some(main.await));
            reactor.0.stopping.set(true);
        });
        while !self.0.stopping.get() {
            self.turn();
        }
        self.shut_down();
        output.take().expect("the main task ended by itself: nobody else has its handle")
    }

    /// The moment on the driver's monotonic clock.
    #[inline]
    #[must_use]
    pub fn now(&self) -> Instant {
        self.0.clock.now()
    }

    /// Milliseconds since 1970 by the driver's wall clock. May jump.
    #[must_use]
    pub fn wall_ms(&self) -> u64 {
        self.0.clock.wall_ms()
    }

    /// 64 random bits (SplitMix64, seeded by the driver): for jitter, sampling and names; not for secrets.
    #[must_use]
    pub fn random(&self) -> u64 {
        let mut state = self.0.random.get();
        let value = split_mix(&mut state);
        self.0.random.set(state);
        value
    }

    /// `uring`, `poll` or `sim`.
    #[must_use]
    pub fn driver_name(&self) -> &'static str {
        self.0.driver_name
    }

    /// Starts a task. It is first polled in a later step of the loop, never inside this call. Dropping the handle
    /// detaches the task.
    pub fn spawn(&self, class: Class, name: &'static str, future: impl Future<Output = ()> + 'static) -> TaskHandle {
        let id = self.0.executor.spawn(class, name, Box::pin(future));
        TaskHandle { executor: self.0.executor.clone(), id }
    }

    /// Resolves when `duration` has passed. The time runs from this call.
    #[must_use]
    pub fn sleep(&self, duration: Duration) -> Sleep {
        self.sleep_until(self.now() + duration)
    }

    /// Resolves at `deadline`; at once when it has passed.
    #[must_use]
    pub fn sleep_until(&self, deadline: Instant) -> Sleep {
        Sleep { reactor: self.clone(), deadline, timer: None }
    }

    /// The next whole multiple of `period` since the reactor began, later than now. For what is done again and again: tasks whose beats
    /// fall together wake the shard once, and what they say to a peer goes in one piece. An idle node's cost is its wake-ups.
    #[must_use]
    pub fn next_beat(&self, period: Duration) -> Instant {
        assert!(period >= Duration::from_micros(1), "a beat of {period:?} would never end");
        let period_ns = period.as_nanos() as u64;
        let passed = self.now().since(self.0.began).as_nanos() as u64;
        self.0.began + Duration::from_nanos((passed / period_ns + 1) * period_ns)
    }

    /// Resolves at the next beat ([`Reactor::next_beat`]).
    #[must_use]
    pub fn beat(&self, period: Duration) -> Sleep {
        self.sleep_until(self.next_beat(period))
    }

    /// Lets the other ready tasks run first.
    pub async fn yield_now(&self) {
        let mut yielded = false;
        std::future::poll_fn(|context| {
            if yielded {
                return Poll::Ready(());
            }
            yielded = true;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Awaits `future` for at most `duration`.
    ///
    /// # Errors
    /// [`Elapsed`] when the time is over; the future is dropped.
    pub async fn timeout<F: Future>(&self, duration: Duration, future: F) -> Result<F::Output, Elapsed> {
        let mut future = pin!(future);
        let mut sleep = pin!(self.sleep(duration));
        std::future::poll_fn(|context| {
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(Ok(output));
            }
            sleep.as_mut().poll(context).map(|()| Err(Elapsed))
        })
        .await
    }

    /// Keeps a value of the shard where letters from other threads find it, one per type. It is dropped with the reactor.
    pub fn set_local<T: 'static>(&self, value: Rc<T>) {
        let mut locals = self.0.locals.borrow_mut();
        locals.retain(|local| !local.is::<T>());
        locals.push(value);
    }

    /// The value that [`Reactor::set_local`] keeps for this type.
    #[must_use]
    pub fn local<T: 'static>(&self) -> Option<Rc<T>> {
        self.0.locals.borrow().iter().find_map(|local| local.clone().downcast().ok())
    }

    /// Has `ending` called when the reactor shuts down, after its tasks have gone. Whoever lets others put a reference into
    /// him that leads back to him (a handler, a hook) clears it here, or nothing of the circle is ever freed. `ending` keeps
    /// weak references only.
    pub fn at_end(&self, ending: impl FnOnce() + 'static) {
        self.0.endings.borrow_mut().push(Box::new(ending));
    }

    /// A handle for other threads.
    #[must_use]
    pub fn remote(&self) -> Remote {
        self.0.mailbox.remote()
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> ReactorStats {
        ReactorStats {
            tasks: self.0.executor.alive() as u64,
            operations_in_flight: self.0.operations.borrow().len() as u64,
            timers: self.0.timers.borrow().len() as u64,
            storage_operations: self.0.driver.borrow().storage_operations(),
            ..self.0.counters.snapshot()
        }
    }

    /// Drops every task and letter and refuses mail from now on.
    pub(crate) fn shut_down(&self) {
        drop(self.0.inbox.close());
        self.0.executor.abort_all();
        let locals = std::mem::take(&mut *self.0.locals.borrow_mut());
        drop(locals);
        let endings = std::mem::take(&mut *self.0.endings.borrow_mut());
        endings.into_iter().for_each(|ending| ending());
        self.0.outbox.close();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.inbox.close());
        self.outbox.close();
        task::unregister(&self.executor);
    }
}

/// The next number of the SplitMix64 sequence (Steele, Lea, Flood 2014).
pub(crate) fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut value = *state;
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// A task that was spawned. Dropping the handle lets the task go on.
pub struct TaskHandle {
    executor: Rc<Executor>,
    id: TaskId,
}

impl TaskHandle {
    /// Ends the task where it stands: its future is dropped (a task that aborts itself ends when it next returns to the
    /// loop). Operations that it had in flight run to their end, and their results are dropped.
    pub fn abort(&self) {
        self.executor.abort(self.id);
    }

    /// Whether the task has ended or was aborted.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        !self.executor.is_alive(self.id)
    }

    /// Waits until the task has ended or was aborted. One waiter per task.
    pub async fn join(&self) {
        std::future::poll_fn(
            |context| {
                if self.executor.join(self.id, context.waker()) { Poll::Pending } else { Poll::Ready(()) }
            },
        )
        .await;
    }
}

/// The time given to [`Reactor::timeout`] is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Elapsed;

impl std::fmt::Display for Elapsed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no answer within the time limit")
    }
}

impl std::error::Error for Elapsed {}

/// See [`Reactor::sleep`].
pub struct Sleep {
    reactor: Reactor,
    deadline: Instant,
    timer: Option<TimerId>,
}

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let reactor = self.reactor.clone();
        let mut timers = reactor.0.timers.borrow_mut();
        match self.timer {
            None if self.deadline <= reactor.now() => return Poll::Ready(()),
            None => self.timer = Some(timers.set(self.deadline, context.waker().clone())),
            Some(timer) if timers.has_fired(timer) => {
                timers.cancel(timer);
                self.timer = None;
                self.deadline = Instant::default();
                return Poll::Ready(());
            }
            Some(timer) => timers.set_waker(timer, context.waker()),
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer.take() {
            self.reactor.0.timers.borrow_mut().cancel(timer);
        }
    }
}
