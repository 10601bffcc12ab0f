//! Mail from other threads to a reactor: closures to run there, and wake-ups of its tasks.
//!
//! The only door into a shard that is `Send`. Bounded by [`MAILBOX_CAPACITY`] closures; a full mailbox refuses and the
//! sender decides (it never blocks the sender's thread). A reactor that sleeps is woken once per sleep, not per letter.
//! A lock is held only to push or to swap the queue out; the reactor looks at one flag per turn while there is no mail.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::sync::{CrossReceiver, cross_oneshot};
use super::{Class, Reactor};

/// Most closures that wait in a mailbox.
pub const MAILBOX_CAPACITY: usize = 65_536;

/// A closure for a reactor's thread.
pub type Letter = Box<dyn FnOnce(&Reactor) + Send>;

/// Wakes a reactor that sleeps in its driver; called from any thread.
pub trait WakeUp: Send + Sync {
    /// Makes the driver's present or next sleep return at once.
    fn wake_up(&self);
}

/// Why a letter was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MailError {
    /// [`MAILBOX_CAPACITY`] letters wait already: the shard is overloaded. Try again later, or shed the work.
    Full,
    /// The reactor has ended.
    Closed,
}

impl fmt::Display for MailError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MailError::Full => {
                write!(f, "the shard's mailbox is full ({MAILBOX_CAPACITY} requests wait): the shard is overloaded")
            }
            MailError::Closed => write!(f, "the shard has stopped"),
        }
    }
}

impl std::error::Error for MailError {}

/// A handle to a reactor for other threads. Cheap to clone.
#[derive(Clone)]
pub struct Remote {
    mailbox: Arc<Mailbox>,
}

impl Remote {
    /// Has `letter` run on the reactor's thread, after those posted before by this thread.
    ///
    /// # Errors
    /// [`MailError`] when it will not be run; the letter is dropped.
    pub fn post(&self, letter: Letter) -> Result<(), MailError> {
        self.mailbox.post(letter)
    }

    /// Runs an asynchronous call in the shard as a task of `class` and hands its result back to any thread. Dropping the
    /// receiver does not stop the call.
    ///
    /// # Errors
    /// [`MailError`] when the call was not taken; awaiting the result fails when the shard ends before it.
    pub fn call<T, F, Fut>(&self, class: Class, name: &'static str, call: F) -> Result<CrossReceiver<T>, MailError>
    where
        T: Send + 'static,
        F: FnOnce(Reactor) -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
    {
        let (sender, receiver) = cross_oneshot();
        self.post(Box::new(move |reactor| {
            let future = call(reactor.clone());
            reactor.spawn(class, name, async move { sender.send(future.await) });
        }))?;
        Ok(receiver)
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remote")
    }
}

pub(crate) struct Mailbox {
    inner: Mutex<Inner>,
    pending: AtomicBool,
    parked: AtomicBool,
    wake_up: Arc<dyn WakeUp>,
}

#[derive(Default)]
struct Inner {
    letters: Vec<Letter>,
    /// Tasks to wake, slot to generation: bounded by the number of slots.
    wakes: BTreeMap<u32, u32>,
    closed: bool,
}

impl Mailbox {
    pub(crate) fn new(wake_up: Arc<dyn WakeUp>) -> Arc<Mailbox> {
        let (pending, parked) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Mailbox { inner: Mutex::default(), pending, parked, wake_up })
    }

    pub(crate) fn remote(self: &Arc<Self>) -> Remote {
        Remote { mailbox: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post(&self, letter: Letter) -> Result<(), MailError> {
        {
            let mut inner = self.lock();
            // The letter itself is dropped by the caller's frame, after the lock: its captures may post letters too.
            if inner.closed {
                return Err(MailError::Closed);
            }
            if inner.letters.len() >= MAILBOX_CAPACITY {
                return Err(MailError::Full);
            }
            inner.letters.push(letter);
        }
        self.notify();
        Ok(())
    }

    pub(crate) fn wake_task(&self, slot: u32, generation: u32) {
        {
            let mut inner = self.lock();
            if inner.closed {
                return;
            }
            inner.wakes.insert(slot, generation);
        }
        self.notify();
    }

    fn notify(&self) {
        self.pending.store(true, Ordering::Release);
        // Pairs with the fence in `prepare_park`: either that sees the mail, or this sees the sleeper.
        fence(Ordering::SeqCst);
        if self.parked.load(Ordering::Relaxed) && self.parked.swap(false, Ordering::AcqRel) {
            self.wake_up.wake_up();
        }
    }

    #[inline]
    pub(crate) fn has_mail(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// Takes everything that has arrived.
    pub(crate) fn take(&self) -> (Vec<Letter>, BTreeMap<u32, u32>) {
        self.pending.store(false, Ordering::Relaxed);
        // The clearing must be seen before the queue is looked at; the lock's acquire alone lets the store sink below it.
        fence(Ordering::SeqCst);
        let mut inner = self.lock();
        (std::mem::take(&mut inner.letters), std::mem::take(&mut inner.wakes))
    }

    /// Announces that the reactor is about to sleep. False when there is mail and it must not.
    pub(crate) fn prepare_park(&self) -> bool {
        self.parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.has_mail() {
            self.parked.store(false, Ordering::Relaxed);
            return false;
        }
        true
    }

    pub(crate) fn unpark(&self) {
        self.parked.store(false, Ordering::Relaxed);
    }

    /// Refuses mail from now on and gives back what waits, to be dropped.
    pub(crate) fn close(&self) -> Vec<Letter> {
        let mut inner = self.lock();
        inner.closed = true;
        inner.wakes.clear();
        std::mem::take(&mut inner.letters)
    }
}
