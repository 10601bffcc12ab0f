//! A reactor's ends of the rings: the outbox, from which its tasks post to other reactors, and the inbox, which it reads.
//!
//! Owned by the reactor's thread. A ring is made by the first mail from one reactor to another and handed to its reader
//! through the reader's entrance, so there are at most as many as there are pairs that talk. Mail is visible to a reader
//! that is awake at once; sleepers are woken at the end of the turn, all with one call to the driver.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::ring::{Consumer, Producer, Refused, ring};
use super::{Mail, MailError, Mailbox, RING_CAPACITY, WakeUp};
use crate::reactor::sync::{Notified, Notify};

thread_local! {
    /// The outbox of the reactor that runs on this thread now.
    static CURRENT: RefCell<Option<Rc<Outbox>>> = const { RefCell::new(None) };
}

/// The rings to other reactors.
pub(crate) struct Outbox {
    own: Arc<Mailbox>,
    /// By the number of the receiver's executor.
    lines: RefCell<Vec<Option<Line>>>,
    /// The lines with mail of which nobody was told.
    unannounced: RefCell<Vec<u16>>,
    any_unannounced: Cell<bool>,
    /// Somebody waits for room, or a receiver has gone: [`Outbox::serve`] has something to do.
    waiting: Cell<bool>,
    /// A receiver has gone and has not yet let go of its ring.
    closing: Cell<bool>,
    closed: Cell<bool>,
}

struct Line {
    to: Arc<Mailbox>,
    ring: Producer<Mail>,
    unannounced: bool,
    room: Notify,
}

/// While it lives, mail posted on this thread goes through the reactor's rings.
pub(crate) struct Entered(Option<Rc<Outbox>>);

impl Drop for Entered {
    fn drop(&mut self) {
        let before = self.0.take();
        let entered = CURRENT.try_with(|current| current.replace(before));
        drop(entered);
    }
}

impl Outbox {
    pub(crate) fn new(own: Arc<Mailbox>) -> Rc<Outbox> {
        Rc::new(Outbox {
            own,
            lines: RefCell::default(),
            unannounced: RefCell::default(),
            any_unannounced: Cell::default(),
            waiting: Cell::default(),
            closing: Cell::default(),
            closed: Cell::default(),
        })
    }

    /// Makes this the outbox of the calling thread.
    pub(crate) fn enter(self: &Rc<Self>) -> Entered {
        Entered(CURRENT.with(|current| current.replace(Some(self.clone()))))
    }

    /// The outbox of the reactor that runs on this thread, if one does.
    pub(crate) fn current() -> Option<Rc<Outbox>> {
        CURRENT.try_with(|current| current.borrow().clone()).ok().flatten().filter(|outbox| !outbox.closed.get())
    }

    pub(super) fn is_own(&self, mailbox: &Arc<Mailbox>) -> bool {
        Arc::ptr_eq(&self.own, mailbox)
    }

    /// Puts mail into the ring to `to`.
    pub(super) fn post(&self, to: &Arc<Mailbox>, mail: Mail) -> Result<(), (Mail, MailError)> {
        let number = to.number();
        let mut replaced = None;
        let result = {
            let lines = &mut *self.lines.borrow_mut();
            if lines.len() <= usize::from(number) {
                lines.resize_with(usize::from(number) + 1, || None);
            }
            let place = &mut lines[usize::from(number)];
            match place {
                Some(line) if Arc::ptr_eq(&line.to, to) => self.push(line, mail),
                _ => match self.connect(to) {
                    Some(line) => {
                        // Who had this number before is gone.
                        replaced = place.take();
                        self.push(place.insert(line), mail)
                    }
                    None => Err((mail, MailError::Closed)),
                },
            }
        };
        if let Some(line) = replaced {
            line.room.notify_all();
        }
        result
    }

    fn connect(&self, to: &Arc<Mailbox>) -> Option<Line> {
        let (producer, consumer) = ring(RING_CAPACITY);
        let incoming = Incoming { from: self.own.clone(), ring: consumer };
        to.connect(incoming).then(|| Line { to: to.clone(), ring: producer, unannounced: false, room: Notify::new() })
    }

    #[inline]
    fn push(&self, line: &mut Line, mail: Mail) -> Result<(), (Mail, MailError)> {
        match line.ring.push(mail) {
            Ok(()) => {}
            Err(Refused::Full(mail)) => return Err((mail, MailError::Full)),
            Err(Refused::Closed(mail)) => return Err((mail, MailError::Closed)),
        }
        if !line.unannounced {
            line.unannounced = true;
            self.unannounced.borrow_mut().push(line.to.number());
            self.any_unannounced.set(true);
        }
        Ok(())
    }

    /// Wakes a task of another reactor through the ring to it. False when there is none and it has to go another way.
    pub(crate) fn wake_task(&self, executor: u16, slot: u32, generation: u32) -> bool {
        let mut lines = self.lines.borrow_mut();
        // A line that is open leads to the reactor of this number: it gives the number up only after it has closed.
        match lines.get_mut(usize::from(executor)) {
            Some(Some(line)) => self.push(line, Mail::Wake { slot, generation }).is_ok(),
            _ => false,
        }
    }

    /// Waits for room in the ring to `to`; `None` when there is some, or there is no such ring.
    pub(super) fn room(&self, to: &Arc<Mailbox>) -> Option<Notified> {
        let mut lines = self.lines.borrow_mut();
        let line = lines.get_mut(usize::from(to.number()))?.as_mut().filter(|line| Arc::ptr_eq(&line.to, to))?;
        let notified = line.room.notified();
        if line.ring.want_room() > 0 || line.ring.is_closed() {
            return None;
        }
        self.waiting.set(true);
        Some(notified)
    }

    /// Whether mail was posted of which sleepers have not been told.
    #[inline]
    pub(crate) fn has_unannounced(&self) -> bool {
        self.any_unannounced.get()
    }

    /// Whether [`serve`](Self::serve) has to be called again without anybody's asking.
    #[inline]
    pub(crate) fn must_serve(&self) -> bool {
        self.closing.get()
    }

    /// Has `wake` called for every reactor that sleeps over mail from here. Returns how many.
    pub(crate) fn announce(&self, mut wake: impl FnMut(&Arc<dyn WakeUp>)) -> u64 {
        if !self.any_unannounced.replace(false) {
            return 0;
        }
        let mut woken = 0;
        let mut lines = self.lines.borrow_mut();
        // One for all that was pushed: see `Sleeper` and `Producer::is_closed`.
        fence(Ordering::SeqCst);
        for number in self.unannounced.borrow_mut().drain(..) {
            let Some(line) = lines[usize::from(number)].as_mut() else { continue };
            line.unannounced = false;
            if line.ring.is_closed() {
                self.closing.set(true);
            } else if line.to.sleeper.must_be_woken() {
                woken += 1;
                wake(&line.to.wake_up);
            }
        }
        woken
    }

    /// Tells those who wait for room of it, and lets go of receivers that have gone.
    pub(crate) fn serve(&self) {
        if !self.waiting.get() && !self.closing.get() {
            return;
        }
        let (mut waiting, mut closing) = (false, false);
        let (mut left, mut told) = (Vec::new(), Vec::new());
        for place in self.lines.borrow_mut().iter_mut() {
            let Some(line) = place else { continue };
            if line.ring.is_closed() {
                told.push((line.room.clone(), usize::MAX));
                match line.ring.reclaim() {
                    Some(rest) => {
                        left.extend(rest);
                        *place = None;
                    }
                    None => closing = true,
                }
            } else if line.room.waiting() > 0 {
                let room = line.ring.want_room().min(line.room.waiting());
                waiting |= room < line.room.waiting();
                told.push((line.room.clone(), room));
            }
        }
        self.waiting.set(waiting);
        self.closing.set(closing);
        for (room, count) in told {
            if count == usize::MAX {
                room.notify_all();
            } else {
                (0..count).for_each(|_| _ = room.notify_one());
            }
        }
        drop(left);
    }

    /// The reactor ends: what was posted is still read by the others.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.announce(|wake_up| wake_up.wake_up());
        let lines = std::mem::take(&mut *self.lines.borrow_mut());
        for line in lines.into_iter().flatten() {
            let Line { to, ring, room, .. } = line;
            drop(ring);
            room.notify_all();
            // So that it lets go of the ring.
            to.nudge();
        }
    }
}

/// A ring from another reactor.
pub(crate) struct Incoming {
    from: Arc<Mailbox>,
    ring: Consumer<Mail>,
}

impl Incoming {
    fn close(self) -> Vec<Mail> {
        let left = self.ring.close();
        self.from.nudge();
        left
    }
}

/// The rings from other reactors, and the entrance for everybody else.
pub(crate) struct Inbox {
    mailbox: Arc<Mailbox>,
    rings: RefCell<Vec<Incoming>>,
}

impl Inbox {
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Inbox {
        Inbox { mailbox, rings: RefCell::default() }
    }

    #[inline]
    pub(crate) fn has_mail(&self) -> bool {
        self.mailbox.has_mail() || self.rings.borrow().iter().any(|incoming| !incoming.ring.is_empty())
    }

    /// Takes everything that has arrived; each sender's in its order.
    pub(crate) fn take(&self, mail: &mut Vec<Mail>) {
        let rings = &mut *self.rings.borrow_mut();
        let entered = self.mailbox.has_mail();
        if entered {
            self.mailbox.take(mail, rings);
        }
        for incoming in rings.iter_mut() {
            if incoming.ring.take_all(mail) {
                incoming.from.nudge();
            }
        }
        if entered {
            rings.retain(|incoming| !incoming.ring.is_finished());
        }
    }

    /// Refuses mail from now on and gives back what waits, to be dropped.
    pub(crate) fn close(&self) -> Vec<Mail> {
        let mut mail = Vec::new();
        let mut rings = std::mem::take(&mut *self.rings.borrow_mut());
        self.mailbox.close(&mut mail, &mut rings);
        for incoming in rings {
            mail.extend(incoming.close());
        }
        mail
    }
}
