//! How operations are asked for, so that a slow one can't hide those that it kept waiting.
//!
//! In an **open loop** operations are due at fixed times, whether or not earlier ones have ended, and each one's latency
//! counts from when it was due: a system that stands still for a second shows in every operation that was due in that second.
//! (Counting from when a worker got to it would leave them out: coordinated omission.) In a **closed loop** each of so many
//! workers asks again as soon as it was answered; that tells what the system can do, and its percentiles flatter.
//!
//! A [`Schedule`] is arithmetic over the time that it is told; [`drive`] and [`drive_threads`] do what it says, for
//! operations in a shard and for threads.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustydb::reactor::{Class, Reactor};

use crate::samples::{Samples, Series};
use crate::{Failure, Outcome};

/// Workers of an open loop, when nobody says how many: so many operations may be under way at once, as tasks of a shard.
pub const OPEN_LOOP_WORKERS: u32 = 256;
/// The same where each worker is a thread.
pub const OPEN_LOOP_THREADS: u32 = 64;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// So many workers, each of which asks again when it was answered.
    Closed {
        /// Workers.
        concurrency: u32,
    },
    /// So many operations a second, due at even distances.
    Open {
        /// Operations a second.
        rate: f64,
        /// Most operations under way at once; more that are due wait, and their waiting counts.
        concurrency: u32,
    },
}

impl Load {
    /// From the options of the command line; `workers` of an open loop when they don't say.
    #[must_use]
    pub fn of(rate: Option<f64>, concurrency: Option<u32>, workers: u32) -> Load {
        match rate {
            Some(rate) => Load::Open { rate, concurrency: concurrency.unwrap_or(workers) },
            None => Load::Closed { concurrency: concurrency.unwrap_or(1) },
        }
    }

    /// Operations that may be under way at once.
    #[must_use]
    pub fn workers(self) -> u32 {
        match self {
            Load::Closed { concurrency } | Load::Open { concurrency, .. } => concurrency.max(1),
        }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Load::Closed { concurrency } => write!(f, "closed loop, {concurrency} at once"),
            Load::Open { rate, concurrency } => write!(f, "open loop, {rate:.0} due a second, at most {concurrency} under way"),
        }
    }
}

/// When it is over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// After this time; what is due until then is done.
    Time(Duration),
    /// After so many operations.
    Count(u64),
}

/// An operation that is due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Due {
    /// Its number, from 0.
    pub number: u64,
    /// When, from the schedule's beginning.
    pub at: Duration,
    /// Whether the warm-up is over by then.
    pub counts: bool,
}

/// Hands out what is due. Shared by workers of any thread; the time is told to it.
#[derive(Debug)]
pub struct Schedule {
    load: Load,
    warm_up: Duration,
    limit: Limit,
    next: AtomicU64,
    never_begun: AtomicU64,
}

impl Schedule {
    /// A schedule: a warm-up whose operations don't count, then `limit`.
    #[must_use]
    pub fn new(load: Load, warm_up: Duration, limit: Limit) -> Schedule {
        Schedule { load, warm_up, limit, next: AtomicU64::new(0), never_begun: AtomicU64::new(0) }
    }

    /// As long as `time`, with a tenth of it before as warm-up.
    #[must_use]
    pub fn lasting(load: Load, time: Duration) -> Schedule {
        Schedule::new(load, time / 10, Limit::Time(time))
    }

    /// The load.
    #[must_use]
    pub fn load(&self) -> Load {
        self.load
    }

    /// The next operation, for a worker that is free at `now`; `None` when it is over. An open loop's may lie in the future:
    /// then wait until then, or in the past: then hurry.
    pub fn next(&self, now: Duration) -> Option<Due> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let at = match self.load {
                Load::Closed { .. } => now,
                Load::Open { rate, .. } => Duration::from_nanos((number as f64 * 1e9 / rate) as u64),
            };
            match self.limit {
                Limit::Count(count) if number >= count => return None,
                Limit::Time(time) if at >= self.warm_up + time => return None,
                // So far behind that it would take as long again: what is due now will not be begun.
                Limit::Time(time) if now >= self.warm_up + 2 * time => _ = self.never_begun.fetch_add(1, Ordering::Relaxed),
                Limit::Count(_) | Limit::Time(_) => return Some(Due { number, at, counts: at >= self.warm_up }),
            }
        }
    }

    /// The series that came of it.
    #[must_use]
    pub fn series(&self, name: impl Into<String>, samples: &Samples) -> Series {
        let never_begun = self.never_begun.load(Ordering::Relaxed);
        Series { load: Some(self.load.to_string()), never_begun, ..samples.series(name) }
    }
}

/// Below this a worker's thread does not sleep: a sleep would be longer.
const WORTH_SLEEPING: Duration = Duration::from_micros(100);

/// Lets the calling thread's sleeps end when they are due, and not 50 µs later.
pub fn sleep_precisely() {
    // SAFETY: the call takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
}

/// Does what is due as tasks of a shard. `operation` gets the number of the worker and of the operation.
///
/// # Errors
/// The first that an operation ends with; the others then end too.
pub async fn drive<F, Fut>(reactor: &Reactor, schedule: &Rc<Schedule>, operation: F) -> Outcome<Samples>
where
    F: Fn(u32, u64) -> Fut + 'static,
    Fut: Future<Output = Outcome<()>> + 'static,
{
    sleep_precisely();
    let operation = Rc::new(operation);
    let samples = Rc::new(RefCell::new(Samples::new()));
    let failure: Rc<RefCell<Option<Failure>>> = Rc::default();
    let began = Instant::now();
    let tasks: Vec<_> = (0..schedule.load().workers())
        .map(|worker| {
            let (reactor, schedule, operation) = (reactor.clone(), schedule.clone(), operation.clone());
            let (samples, failure) = (samples.clone(), failure.clone());
            reactor.clone().spawn(Class::Normal, "worker", async move {
                while let Some(due) = schedule.next(began.elapsed()) {
                    // The reactor's timers are exact; how late it wakes up counts like all else.
                    let left = due.at.saturating_sub(began.elapsed());
                    if !left.is_zero() {
                        reactor.sleep(left).await;
                    }
                    if failure.borrow().is_some() {
                        return;
                    }
                    if let Err(error) = operation(worker, due.number).await {
                        *failure.borrow_mut() = Some(error);
                        return;
                    }
                    if due.counts {
                        samples.borrow_mut().record(began.elapsed() - due.at);
                    }
                }
            })
        })
        .collect();
    for task in &tasks {
        task.join().await;
    }
    if let Some(error) = failure.borrow_mut().take() {
        return Err(error);
    }
    let mut samples = samples.replace(Samples::new());
    samples.add_busy(began.elapsed().saturating_sub(schedule.warm_up));
    Ok(samples)
}

/// Does what is due in a thread for each worker; `make` makes a worker's state in its thread, `operation` works with it.
///
/// # Errors
/// The first that making a worker or an operation ends with.
pub fn drive_threads<W>(
    schedule: &Arc<Schedule>,
    make: impl Fn(u32) -> Outcome<W> + Sync,
    operation: impl Fn(&mut W, u64) -> Outcome<()> + Sync,
) -> Outcome<Samples> {
    let workers = schedule.load().workers();
    // All are ready before the first operation is due.
    let barrier = std::sync::Barrier::new(workers as usize);
    let began = std::sync::OnceLock::new();
    let work = |worker: u32| -> Outcome<Samples> {
        sleep_precisely();
        let made = make(worker);
        barrier.wait();
        let began = *began.get_or_init(Instant::now);
        let (mut state, mut samples) = (made?, Samples::new());
        while let Some(due) = schedule.next(began.elapsed()) {
            loop {
                let left = due.at.saturating_sub(began.elapsed());
                match left {
                    Duration::ZERO => break,
                    left if left > WORTH_SLEEPING => std::thread::sleep(left - WORTH_SLEEPING / 2),
                    _ => std::thread::yield_now(),
                }
            }
            operation(&mut state, due.number)?;
            if due.counts {
                samples.record(began.elapsed() - due.at);
            }
        }
        Ok(samples)
    };
    let mut all = Samples::new();
    std::thread::scope(|scope| -> Outcome<()> {
        let threads: Vec<_> = (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        let ended: Vec<_> = threads.into_iter().map(|thread| thread.join().map_err(|_| "a worker panicked")).collect();
        for samples in ended {
            all.merge(&samples??);
        }
        Ok(())
    })?;
    let took = began.get().map_or(Duration::ZERO, Instant::elapsed);
    all.add_busy(took.saturating_sub(schedule.warm_up));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn an_open_loop_is_due_at_its_times_whoever_asks_when() {
        let schedule = Schedule::new(Load::Open { rate: 1_000.0, concurrency: 2 }, ms(2), Limit::Time(ms(3)));
        let first = schedule.next(ms(0)).expect("it has just begun");
        assert_eq!((first.number, first.at, first.counts), (0, ms(0), false));
        // The worker comes back late: what was due meanwhile is still due at its own time, so the wait counts.
        let late = ms(4);
        let due: Vec<Due> = std::iter::from_fn(|| schedule.next(late)).collect();
        assert_eq!(due.iter().map(|due| due.at).collect::<Vec<_>>(), [ms(1), ms(2), ms(3), ms(4)]);
        assert_eq!(due.iter().map(|due| due.counts).collect::<Vec<_>>(), [false, true, true, true]);
        let latencies: Vec<_> = due.iter().map(|due| late - due.at).collect();
        assert_eq!(latencies, [ms(3), ms(2), ms(1), ms(0)], "a stall shows in everything that it kept waiting");
    }

    #[test]
    fn a_closed_loop_is_due_when_it_is_asked_and_ends_with_its_time() {
        let schedule = Schedule::new(Load::Closed { concurrency: 1 }, ms(1), Limit::Time(ms(10)));
        assert_eq!(schedule.next(ms(7)).map(|due| (due.at, due.counts)), Some((ms(7), true)));
        assert_eq!(schedule.next(ms(11)), None);
        let counted = Schedule::new(Load::Closed { concurrency: 1 }, ms(0), Limit::Count(2));
        assert_eq!(std::iter::from_fn(|| counted.next(ms(99))).count(), 2);
    }

    #[test]
    fn what_can_not_be_begun_any_more_is_counted_and_not_forgotten() {
        let schedule = Schedule::new(Load::Open { rate: 1_000.0, concurrency: 1 }, ms(0), Limit::Time(ms(5)));
        assert!(schedule.next(ms(0)).is_some());
        // The first operation took twice as long as all were to take.
        assert_eq!(schedule.next(ms(10)), None);
        assert_eq!(schedule.series("reads", &Samples::new()).never_begun, 4);
    }

    /// The first operation stands still for 40 ms, and forty more become due meanwhile. Bounds from below only: a busy machine makes
    /// them all longer.
    #[test]
    fn a_stall_counts_for_everything_that_it_keeps_waiting() {
        let schedule = || Schedule::new(Load::Open { rate: 1_000.0, concurrency: 1 }, ms(0), Limit::Count(41));
        let stall = |number| if number == 0 { ms(40) } else { ms(0) };
        let by_threads = drive_threads(
            &Arc::new(schedule()),
            |_| Ok(()),
            |_: &mut (), number| {
                std::thread::sleep(stall(number));
                Ok(())
            },
        );
        let by_tasks = rustydb::reactor::thread::run_local(Default::default(), |reactor| async move {
            let sleeper = reactor.clone();
            let operation = move |_, number| {
                let sleep = sleeper.sleep(stall(number));
                async move {
                    sleep.await;
                    Ok(())
                }
            };
            drive(&reactor, &Rc::new(schedule()), operation).await
        });
        for samples in [by_threads.expect("nothing fails"), by_tasks.expect("a reactor").expect("nothing fails")] {
            assert!(samples.median_ns() >= 19e6, "half of them waited for 20 ms and more: {}", samples.median_ns());
        }
    }

    #[test]
    fn threads_and_tasks_do_all_that_is_due_and_pass_errors_on() {
        let load = Load::Open { rate: 50_000.0, concurrency: 4 };
        let threads = Arc::new(Schedule::new(load, ms(0), Limit::Count(200)));
        let done = AtomicU64::new(0);
        let operation = |_: &mut (), number| {
            done.fetch_add(number + 1, Ordering::Relaxed);
            Ok(())
        };
        let samples = drive_threads(&threads, |_| Ok(()), operation).expect("nothing fails");
        assert_eq!((samples.count(), done.into_inner()), (200, 200 * 201 / 2));
        let refused = drive_threads(&Arc::new(Schedule::lasting(load, ms(5))), |_| Ok(()), |_: &mut (), _| Err("no".into()));
        assert!(refused.is_err());
        let count = rustydb::reactor::thread::run_local(Default::default(), |reactor| async move {
            let schedule = Rc::new(Schedule::new(load, ms(0), Limit::Count(100)));
            drive(&reactor, &schedule, |_, _| async { Ok(()) }).await.expect("nothing fails").count()
        });
        assert_eq!(count.expect("a reactor"), 100);
    }
}
