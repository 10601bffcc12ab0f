//! The threads of fencing: one that takes requests in their order, and one for each method, because a method may hang in
//! the kernel and must not keep the next one from being tried.
//!
//! Shards hold a clone of the [`Fencer`], ask, and await the answer; nothing here runs on a shard's thread. At most
//! [`REQUESTS_MAX`] requests wait; more are refused. A method that doesn't answer within its patience is left alone until it
//! does. The threads end when the last clone is dropped (a thread that hangs in the kernel, with the process).

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use super::{Ability, FencingError, Intruder, Life, Method, Permit, Proof, Standing, Victim, name};
use crate::config::FencingMethod;
use crate::reactor::sync::{CrossReceiver, CrossSender, cross_oneshot};

/// Most requests that wait for the fencing thread.
pub const REQUESTS_MAX: usize = 64;

/// How long a method's thread may take from one answer to the next request before it counts as busy.
const HANDOVER_MS_MAX: u64 = 1_000;

type Job = Box<dyn FnOnce(&mut dyn Method) + Send>;
type Request = Box<dyn FnOnce(&mut Coordinator) + Send>;

/// Asks the fencing threads. Cheap to clone.
#[derive(Clone)]
pub struct Fencer(SyncSender<Request>);

/// What the methods of a volume can do, in their order.
pub type Abilities = Vec<(FencingMethod, Result<Ability, FencingError>)>;

struct Worker {
    method: FencingMethod,
    patience: Duration,
    jobs: SyncSender<Job>,
    /// Whether the last probe said that it can protect the volume.
    able: bool,
}

struct Coordinator {
    workers: Vec<Worker>,
    /// Leases count for nothing where another method can protect the volume.
    lease_is_last_resort: bool,
}

impl Fencer {
    /// Starts the threads. `volume` is for the log.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn start(methods: Vec<Box<dyn Method>>, volume: String) -> io::Result<Fencer> {
        Fencer::start_with(methods, volume, false)
    }

    /// As [`Fencer::start`]. `lease_is_last_resort`: leases are used only where no other method can protect the volume. Both
    /// who holds one and who waits for its end must see that alike, so it is a matter of the configuration and the volume.
    ///
    /// # Errors
    /// As above.
    pub fn start_with(methods: Vec<Box<dyn Method>>, volume: String, lease_is_last_resort: bool) -> io::Result<Fencer> {
        let workers = methods.into_iter().map(worker).collect::<io::Result<Vec<_>>>()?;
        let (sender, requests) = sync_channel::<Request>(REQUESTS_MAX);
        let mut coordinator = Coordinator { workers, lease_is_last_resort };
        thread::Builder::new().name("fencing".into()).spawn(move || {
            coordinator.probe(&volume);
            requests.iter().for_each(|request| request(&mut coordinator));
        })?;
        Ok(Fencer(sender))
    }

    /// Finds out anew what each method can do for the volume, and logs it. Done at start by itself.
    pub fn probe(&self, volume: String) -> CrossReceiver<Result<Abilities, FencingError>> {
        self.ask(move |coordinator| Ok(coordinator.probe(&volume)))
    }

    /// The methods that the last probe found able to protect the volume, in their order.
    pub fn able(&self) -> CrossReceiver<Result<Vec<FencingMethod>, FencingError>> {
        self.ask(|coordinator| Ok(coordinator.workers.iter().filter(|worker| worker.able).map(|worker| worker.method).collect()))
    }

    /// [`Method::register`] with every method that can protect the volume; the first refusal ends it.
    pub fn register(&self, me: Life) -> CrossReceiver<Result<(), FencingError>> {
        self.ask(move |coordinator| coordinator.each(move |method| method.register(me)))
    }

    /// Tries one method after the other until one proves that the victim is fenced.
    pub fn fence(&self, victim: Victim) -> CrossReceiver<Result<Proof, FencingError>> {
        self.ask(move |coordinator| {
            let result = coordinator.first(&victim, |method, victim| method.fence(victim));
            // Of a failure whoever asked says so, and how often.
            if let Ok(proof) = &result {
                tracing::warn!("{proof}");
            }
            result
        })
    }

    /// A proof from any method, without doing anything to the victim.
    pub fn verify(&self, victim: Victim) -> CrossReceiver<Result<Proof, FencingError>> {
        self.ask(move |coordinator| coordinator.first(&victim, |method, victim| method.verify(victim)))
    }

    /// [`Standing::Lost`] as soon as one method says so.
    pub fn standing(&self) -> CrossReceiver<Result<Standing, FencingError>> {
        self.ask(|coordinator| {
            let standings = coordinator.collect(|method| method.standing())?;
            Ok(if standings.contains(&Standing::Lost) { Standing::Lost } else { Standing::Registered })
        })
    }

    /// [`Method::reregister`] with every method that can protect the volume.
    pub fn reregister(&self, permit: Permit) -> CrossReceiver<Result<(), FencingError>> {
        self.ask(move |coordinator| coordinator.each(move |method| method.reregister(&permit)))
    }

    /// Who is registered beside these lives; each is logged too.
    pub fn audit(&self, members: Vec<Life>) -> CrossReceiver<Result<Vec<Intruder>, FencingError>> {
        self.ask(move |coordinator| {
            let intruders = coordinator.collect(move |method| method.audit(&members))?.concat();
            intruders.iter().for_each(|intruder| tracing::error!("{intruder}"));
            Ok(intruders)
        })
    }

    /// [`Method::leave`] with every method that can protect the volume.
    pub fn leave(&self) -> CrossReceiver<Result<(), FencingError>> {
        self.ask(|coordinator| coordinator.each(|method| method.leave()))
    }

    fn ask<T: Send + 'static>(
        &self,
        request: impl FnOnce(&mut Coordinator) -> Result<T, FencingError> + Send + 'static,
    ) -> CrossReceiver<Result<T, FencingError>> {
        let (answer, receiver) = cross_oneshot();
        // The answer's sender must survive a refused request to tell of it.
        let slot = std::sync::Arc::new(std::sync::Mutex::new(Some(answer)));
        let take = |slot: &std::sync::Mutex<Option<CrossSender<_>>>| {
            slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
        };
        let theirs = slot.clone();
        let refusal = match self.0.try_send(Box::new(move |coordinator: &mut Coordinator| {
            let result = request(coordinator);
            if let Some(answer) = take(&theirs) {
                answer.send(result);
            }
        })) {
            Ok(()) => return receiver,
            Err(TrySendError::Full(_)) => FencingError::Busy { method: None },
            Err(TrySendError::Disconnected(_)) => FencingError::Ended,
        };
        if let Some(answer) = take(&slot) {
            answer.send(Err(refusal));
        }
        receiver
    }
}

fn worker(mut method: Box<dyn Method>) -> io::Result<Worker> {
    // One under way; a second is refused, so that a method that hangs doesn't gather work.
    let (jobs, received): (SyncSender<Job>, Receiver<Job>) = sync_channel(0);
    let (which, patience) = (method.method(), method.patience());
    let run = move || received.iter().for_each(|job| job(&mut *method));
    thread::Builder::new().name(format!("fence {}", name(which))).spawn(run)?;
    Ok(Worker { method: which, patience, jobs, able: true })
}

impl Worker {
    fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut dyn Method) -> Result<T, FencingError> + Send + 'static,
    ) -> Result<T, FencingError> {
        let (sender, answer) = sync_channel(1);
        let mut job: Job = Box::new(move |method| {
            // An answer that comes too late is nobody's.
            sender.try_send(job(method)).ok();
        });
        // The thread answers just before it waits for the next job: give it that moment.
        for attempt in 0.. {
            match self.jobs.try_send(job) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if attempt < HANDOVER_MS_MAX => job = back,
                Err(TrySendError::Full(_)) => return Err(FencingError::Busy { method: Some(self.method) }),
                Err(TrySendError::Disconnected(_)) => return Err(FencingError::Ended),
            }
            thread::sleep(Duration::from_millis(1));
        }
        match answer.recv_timeout(self.patience) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(FencingError::TimedOut { method: self.method, after: self.patience }),
            Err(RecvTimeoutError::Disconnected) => Err(FencingError::Ended),
        }
    }
}

impl Coordinator {
    fn probe(&mut self, volume: &str) -> Abilities {
        let mut abilities = Vec::new();
        for worker in &mut self.workers {
            let result = worker.call(|method| method.probe());
            worker.able = result.is_ok();
            match &result {
                Ok(ability) => tracing::info!(volume, method = name(worker.method), "fencing is possible: {}", ability.detail),
                Err(error) => tracing::info!(volume, method = name(worker.method), "no fencing: {error}"),
            }
            abilities.push((worker.method, result));
        }
        let other = |worker: &Worker| worker.able && worker.method != FencingMethod::Lease;
        if self.lease_is_last_resort && self.workers.iter().any(other) {
            let leases = self.workers.iter_mut().filter(|worker| worker.method == FencingMethod::Lease);
            leases.for_each(|worker| worker.able = false);
        }
        match self.workers.iter().find(|worker| worker.able) {
            Some(first) => tracing::info!(volume, "protected by {} first", name(first.method)),
            None => tracing::error!(volume, "nothing keeps a dead node from the volume: see ha.fencing_method"),
        }
        abilities
    }

    fn collect<T: Send + 'static>(
        &mut self,
        job: impl Fn(&mut dyn Method) -> Result<T, FencingError> + Clone + Send + 'static,
    ) -> Result<Vec<T>, FencingError> {
        self.workers.iter().filter(|worker| worker.able).map(|worker| worker.call(job.clone())).collect()
    }

    fn each(
        &mut self,
        job: impl Fn(&mut dyn Method) -> Result<(), FencingError> + Clone + Send + 'static,
    ) -> Result<(), FencingError> {
        self.collect(job).map(|_| ())
    }

    fn first(
        &mut self,
        victim: &Victim,
        job: fn(&mut dyn Method, &Victim) -> Result<Proof, FencingError>,
    ) -> Result<Proof, FencingError> {
        let mut attempts = Vec::new();
        for worker in self.workers.iter().filter(|worker| worker.able) {
            let victim = victim.clone();
            match worker.call(move |method| job(method, &victim)) {
                Ok(proof) => return Ok(proof),
                // Who was fenced itself must not go on to shoot by other means.
                Err(error @ FencingError::SelfFenced { .. }) => return Err(error),
                Err(error) => attempts.push(error),
            }
        }
        Err(FencingError::NoProof { life: victim.life, attempts })
    }
}
