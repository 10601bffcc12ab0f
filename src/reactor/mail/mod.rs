//! Mail from other threads to a reactor: closures to run there, and wake-ups of its tasks.
//!
//! The only door into a shard that is `Send`. From reactor to reactor mail goes through a ring of its own for each pair
//! ([`ring`], [`rings`]), without locks; threads that run no reactor share the receiver's entrance. Both are bounded
//! ([`RING_CAPACITY`], [`MAILBOX_CAPACITY`] closures); a full way refuses, it never blocks the sender's thread: the sender
//! sheds the work or awaits room ([`Remote::call_when_room`]). A reactor that sleeps is woken once per sleep, not per letter.
//! Promises: a sender's letters run in the order in which it posted them; a letter that was taken is run, or dropped when
//! the receiver ends.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::sync::{CrossReceiver, cross_oneshot};
use super::{Class, Reactor};

mod primitives;
mod ring;
mod rings;
mod sleeper;

use rings::Incoming;
pub(crate) use rings::{Inbox, Outbox};
use sleeper::Sleeper;

/// Most closures that wait in a reactor's entrance.
pub const MAILBOX_CAPACITY: usize = 65_536;

/// Most closures and wake-ups that wait in the ring from one reactor to another.
pub const RING_CAPACITY: usize = 1024;

/// A closure for a reactor's thread.
pub type Letter = Box<dyn FnOnce(&Reactor) + Send>;

/// Wakes a reactor that sleeps in its driver; called from any thread.
pub trait WakeUp: Send + Sync {
    /// Makes the driver's present or next sleep return at once.
    fn wake_up(&self);

    /// The io_uring that the driver sleeps in, which another ring can wake with a message; `None` when there is none, or it
    /// is closed.
    fn uring(&self) -> Option<RawFd> {
        None
    }
}

/// Why a letter was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MailError {
    /// The way there is full ([`MAILBOX_CAPACITY`], [`RING_CAPACITY`]): the shard is overloaded. Try again later, await
    /// room ([`Remote::call_when_room`]), or shed the work.
    Full,
    /// The reactor has ended.
    Closed,
}

impl fmt::Display for MailError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MailError::Full => f.write_str("too many requests wait for the shard: it is overloaded"),
            MailError::Closed => f.write_str("the shard has stopped"),
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
        // A letter that is refused is dropped here, where nothing is borrowed or locked: its captures may post letters too.
        self.try_post(letter).map_err(|(_, error)| error)
    }

    /// Posts what ends work that the reactor has in hand already, as a transaction's end does: a full mailbox takes it too, because
    /// refusing it would leave that work there for ever. So there are at most as many of these as there is such work, which
    /// the caller bounds. From a shard, whose letters go by a ring in their order, it is [`post`](Self::post).
    ///
    /// # Errors
    /// [`MailError`] when it will not be run.
    pub fn post_owed(&self, letter: Letter) -> Result<(), MailError> {
        match Outbox::current() {
            Some(outbox) if !outbox.is_own(&self.mailbox) => self.post(letter),
            _ => self.mailbox.put(letter, usize::MAX).map_err(|(_, error)| error),
        }
    }

    fn try_post(&self, letter: Letter) -> Result<(), (Mail, MailError)> {
        match Outbox::current() {
            Some(outbox) if !outbox.is_own(&self.mailbox) => outbox.post(&self.mailbox, Mail::Letter(letter)),
            _ => self.mailbox.post(letter),
        }
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
        let (letter, receiver) = call_letter(class, name, call);
        self.post(letter)?;
        Ok(receiver)
    }

    /// As [`call`](Self::call), for tasks of other shards: where the ring is full, it waits for room. From a thread that
    /// runs no reactor it is `call`.
    ///
    /// # Errors
    /// [`MailError`] when the call was not taken.
    pub async fn call_when_room<T, F, Fut>(
        &self,
        class: Class,
        name: &'static str,
        call: F,
    ) -> Result<CrossReceiver<T>, MailError>
    where
        T: Send + 'static,
        F: FnOnce(Reactor) -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
    {
        let (mut letter, receiver) = call_letter(class, name, call);
        loop {
            letter = match (self.try_post(letter), Outbox::current()) {
                (Ok(()), _) => return Ok(receiver),
                (Err((Mail::Letter(letter), MailError::Full)), Some(outbox)) if !outbox.is_own(&self.mailbox) => {
                    if let Some(room) = outbox.room(&self.mailbox) {
                        room.await;
                    }
                    letter
                }
                (Err((_, error)), _) => return Err(error),
            };
        }
    }
}

fn call_letter<T, F, Fut>(class: Class, name: &'static str, call: F) -> (Letter, CrossReceiver<T>)
where
    T: Send + 'static,
    F: FnOnce(Reactor) -> Fut + Send + 'static,
    Fut: Future<Output = T> + 'static,
{
    let (sender, receiver) = cross_oneshot();
    let letter = Box::new(move |reactor: &Reactor| {
        let future = call(reactor.clone());
        reactor.spawn(class, name, async move { sender.send(future.await) });
    });
    (letter, receiver)
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remote")
    }
}

/// What is sent to a reactor.
pub(crate) enum Mail {
    /// Something to run.
    Letter(Letter),
    /// A task of its executor to wake.
    Wake {
        /// See [`TaskId`](super::task::TaskId).
        slot: u32,
        /// See [`TaskId`](super::task::TaskId).
        generation: u32,
    },
}

/// A reactor's entrance for everybody, where its rings are handed over too; and its bell.
pub(crate) struct Mailbox {
    number: u16,
    inner: Mutex<Inner>,
    pending: AtomicBool,
    sleeper: Sleeper,
    wake_up: Arc<dyn WakeUp>,
}

#[derive(Default)]
struct Inner {
    letters: Vec<Mail>,
    /// Tasks to wake, slot to generation: bounded by the number of slots.
    wakes: BTreeMap<u32, u32>,
    /// Rings from reactors that had none before.
    rings: Vec<Incoming>,
    closed: bool,
}

impl Mailbox {
    /// The mailbox of the executor of this number.
    pub(crate) fn new(number: u16, wake_up: Arc<dyn WakeUp>) -> Arc<Mailbox> {
        let pending = AtomicBool::new(false);
        Arc::new(Mailbox { number, inner: Mutex::default(), pending, sleeper: Sleeper::new(), wake_up })
    }

    pub(crate) fn remote(self: &Arc<Self>) -> Remote {
        Remote { mailbox: self.clone() }
    }

    fn number(&self) -> u16 {
        self.number
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post(&self, letter: Letter) -> Result<(), (Mail, MailError)> {
        self.put(letter, MAILBOX_CAPACITY)
    }

    fn put(&self, letter: Letter, letters_max: usize) -> Result<(), (Mail, MailError)> {
        {
            let mut inner = self.lock();
            if inner.closed {
                return Err((Mail::Letter(letter), MailError::Closed));
            }
            if inner.letters.len() >= letters_max {
                return Err((Mail::Letter(letter), MailError::Full));
            }
            inner.letters.push(Mail::Letter(letter));
        }
        self.nudge();
        Ok(())
    }

    /// Wakes a task of the reactor, from any thread.
    pub(crate) fn wake_task(self: &Arc<Self>, slot: u32, generation: u32) {
        if let Some(outbox) = Outbox::current()
            && !outbox.is_own(self)
            && outbox.post(self, Mail::Wake { slot, generation }).is_ok()
        {
            return;
        }
        {
            let mut inner = self.lock();
            if inner.closed {
                return;
            }
            inner.wakes.insert(slot, generation);
        }
        self.nudge();
    }

    /// Takes the reader's end of a ring over, or drops it: false when the reactor has ended.
    fn connect(&self, ring: Incoming) -> bool {
        {
            let mut inner = self.lock();
            if inner.closed {
                return false;
            }
            inner.rings.push(ring);
        }
        self.nudge();
        true
    }

    /// Has the reactor look at its mail, also if it sleeps.
    fn nudge(&self) {
        self.pending.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.sleeper.must_be_woken() {
            self.wake_up.wake_up();
        }
    }

    #[inline]
    fn has_mail(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// Takes everything that has come through the entrance.
    fn take(&self, mail: &mut Vec<Mail>, rings: &mut Vec<Incoming>) {
        self.pending.store(false, Ordering::Relaxed);
        // The clearing must be seen before the queue is looked at; the lock's acquire alone lets the store sink below it.
        fence(Ordering::SeqCst);
        let inner = &mut *self.lock();
        while let Some((slot, generation)) = inner.wakes.pop_first() {
            mail.push(Mail::Wake { slot, generation });
        }
        mail.append(&mut inner.letters);
        rings.append(&mut inner.rings);
    }

    /// Announces that the reactor is about to sleep. False when `has_mail` and it must not.
    pub(crate) fn prepare_park(&self, has_mail: impl FnOnce() -> bool) -> bool {
        self.sleeper.lie_down(has_mail)
    }

    pub(crate) fn unpark(&self) {
        self.sleeper.get_up();
    }

    fn close(&self, mail: &mut Vec<Mail>, rings: &mut Vec<Incoming>) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.wakes.clear();
        mail.append(&mut inner.letters);
        rings.append(&mut inner.rings);
    }
}
