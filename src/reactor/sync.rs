//! Waiting for each other: within one shard (`Notify`, `Semaphore`, `oneshot`), and from another thread for a shard's
//! result (`cross_oneshot`, which works under any runtime).
//!
//! The local ones are not `Send` and use no atomics. Each wait is one entry in a queue whose length is the number of
//! waiting tasks; a dropped wait leaves its queue.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// The other end is gone and will never send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the task that would have answered has ended")
    }
}

impl std::error::Error for Closed {}

type Waiters = RefCell<VecDeque<Rc<Waiter>>>;

/// One entry of a queue of waiters, shared between the queue and the waiting future.
#[derive(Default)]
struct Waiter {
    waker: RefCell<Option<Waker>>,
    served: Cell<bool>,
    /// Served together with everybody: nothing to pass on.
    for_all: Cell<bool>,
    wanted: u64,
}

impl Waiter {
    fn serve(&self) {
        self.served.set(true);
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Wakes tasks of the same shard that wait for something to change. Cheap to clone; clones share the waiters.
#[derive(Clone, Default)]
pub struct Notify {
    waiters: Rc<Waiters>,
}

impl Notify {
    /// Nobody waits yet.
    #[must_use]
    pub fn new() -> Notify {
        Notify::default()
    }

    /// Resolves at the first notification after THIS CALL (not after the first poll): take it, check the condition, await
    /// it, and nothing is missed.
    #[must_use]
    pub fn notified(&self) -> Notified {
        let waiter = Rc::new(Waiter::default());
        self.waiters.borrow_mut().push_back(waiter.clone());
        Notified { waiter, waiters: self.waiters.clone(), heard: false }
    }

    /// Wakes everybody who waits.
    pub fn notify_all(&self) {
        let waiters = std::mem::take(&mut *self.waiters.borrow_mut());
        for waiter in waiters {
            waiter.for_all.set(true);
            waiter.serve();
        }
    }

    /// Wakes the one who waits longest; when that wait is dropped before it hears of it, the next. False when nobody
    /// waits; the notification is not kept.
    pub fn notify_one(&self) -> bool {
        notify_first(&self.waiters)
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiters.borrow().len()
    }
}

fn notify_first(waiters: &Waiters) -> bool {
    let waiter = waiters.borrow_mut().pop_front();
    waiter.inspect(|waiter| waiter.serve()).is_some()
}

/// See [`Notify::notified`].
pub struct Notified {
    waiter: Rc<Waiter>,
    waiters: Rc<Waiters>,
    heard: bool,
}

impl Future for Notified {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.waiter.served.get() {
            self.heard = true;
            return Poll::Ready(());
        }
        *self.waiter.waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Notified {
    fn drop(&mut self) {
        if !self.waiter.served.get() {
            self.waiters.borrow_mut().retain(|waiter| !Rc::ptr_eq(waiter, &self.waiter));
        } else if !self.heard && !self.waiter.for_all.get() {
            notify_first(&self.waiters);
        }
    }
}

/// Credits within one shard, served strictly in order of arrival. Cheap to clone; clones share the credits.
#[derive(Clone)]
pub struct Semaphore {
    state: Rc<SemaphoreState>,
}

struct SemaphoreState {
    credits: Cell<u64>,
    waiters: Waiters,
}

impl Semaphore {
    /// Starts with `credits`.
    #[must_use]
    pub fn new(credits: u64) -> Semaphore {
        Semaphore { state: Rc::new(SemaphoreState { credits: Cell::new(credits), waiters: RefCell::default() }) }
    }

    /// Waits until `count` credits are free and nobody who came earlier waits; they return when the permit is dropped.
    pub async fn acquire(&self, count: u64) -> Permit {
        if let Some(permit) = self.try_acquire(count) {
            return permit;
        }
        let waiter = Rc::new(Waiter { wanted: count, ..Waiter::default() });
        self.state.waiters.borrow_mut().push_back(waiter.clone());
        let mut wait = Acquire { state: self.state.clone(), waiter, taken: false };
        std::future::poll_fn(|context| wait.poll(context)).await;
        Permit { state: self.state.clone(), count }
    }

    /// Takes `count` credits if they are free now and nobody waits.
    #[must_use]
    pub fn try_acquire(&self, count: u64) -> Option<Permit> {
        if !self.state.waiters.borrow().is_empty() || self.state.credits.get() < count {
            return None;
        }
        self.state.credits.set(self.state.credits.get() - count);
        Some(Permit { state: self.state.clone(), count })
    }

    /// Adds credits that no permit will return.
    pub fn release(&self, count: u64) {
        self.state.give_back(count);
    }

    /// Credits that nobody holds.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.state.credits.get()
    }
}

impl SemaphoreState {
    fn give_back(&self, count: u64) {
        self.credits.set(self.credits.get() + count);
        self.serve();
    }

    fn serve(&self) {
        loop {
            let next = match self.waiters.borrow().front() {
                Some(next) if next.wanted <= self.credits.get() => next.clone(),
                _ => return,
            };
            self.waiters.borrow_mut().pop_front();
            self.credits.set(self.credits.get() - next.wanted);
            next.serve();
        }
    }
}

struct Acquire {
    state: Rc<SemaphoreState>,
    waiter: Rc<Waiter>,
    taken: bool,
}

impl Acquire {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.waiter.served.get() {
            self.taken = true;
            return Poll::Ready(());
        }
        *self.waiter.waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        if self.waiter.served.get() {
            self.state.give_back(self.waiter.wanted);
        } else {
            self.state.waiters.borrow_mut().retain(|waiter| !Rc::ptr_eq(waiter, &self.waiter));
            self.state.serve();
        }
    }
}

/// Credits held; given back when dropped.
pub struct Permit {
    state: Rc<SemaphoreState>,
    count: u64,
}

impl Permit {
    /// Keeps the credits for good: somebody else will [`release`](Semaphore::release) them.
    pub fn forget(mut self) {
        self.count = 0;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.count > 0 {
            self.state.give_back(self.count);
        }
    }
}

struct OneshotState<T> {
    value: Option<T>,
    waker: Option<Waker>,
    sender_gone: bool,
    receiver_gone: bool,
}

impl<T> Default for OneshotState<T> {
    fn default() -> Self {
        OneshotState { value: None, waker: None, sender_gone: false, receiver_gone: false }
    }
}

impl<T> OneshotState<T> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<T, Closed>> {
        if let Some(value) = self.value.take() {
            return Poll::Ready(Ok(value));
        }
        if self.sender_gone {
            return Poll::Ready(Err(Closed));
        }
        self.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// A value from one task to another of the same shard.
#[must_use]
pub fn oneshot<T>() -> (OneshotSender<T>, OneshotReceiver<T>) {
    let state = Rc::new(RefCell::new(OneshotState::default()));
    (OneshotSender(state.clone()), OneshotReceiver(state))
}

/// Sends the value of a [`oneshot`].
pub struct OneshotSender<T>(Rc<RefCell<OneshotState<T>>>);

/// Awaits the value of a [`oneshot`]; fails with [`Closed`] when the sender was dropped.
pub struct OneshotReceiver<T>(Rc<RefCell<OneshotState<T>>>);

impl<T> OneshotSender<T> {
    /// Hands the value over.
    ///
    /// # Errors
    /// Gives the value back when the receiver is gone.
    pub fn send(self, value: T) -> Result<(), T> {
        let mut state = self.0.borrow_mut();
        if state.receiver_gone {
            return Err(value);
        }
        state.value = Some(value);
        Ok(())
    }

    /// Whether the receiver is gone, so that sending is pointless.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.borrow().receiver_gone
    }
}

impl<T> Drop for OneshotSender<T> {
    fn drop(&mut self) {
        let waker = {
            let mut state = self.0.borrow_mut();
            state.sender_gone = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Future for OneshotReceiver<T> {
    type Output = Result<T, Closed>;
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.borrow_mut().poll(context)
    }
}

impl<T> Drop for OneshotReceiver<T> {
    fn drop(&mut self) {
        let value = {
            let mut state = self.0.borrow_mut();
            state.receiver_gone = true;
            state.value.take()
        };
        drop(value);
    }
}

/// A value from any thread to any other: a shard's answer to a task of tokio's, for example.
#[must_use]
pub fn cross_oneshot<T: Send>() -> (CrossSender<T>, CrossReceiver<T>) {
    let state = Arc::new(Mutex::new(OneshotState::default()));
    (CrossSender(state.clone()), CrossReceiver(state))
}

/// Sends the value of a [`cross_oneshot`].
pub struct CrossSender<T: Send>(Arc<Mutex<OneshotState<T>>>);

/// Awaits the value of a [`cross_oneshot`] under any runtime; fails with [`Closed`] when the sender was dropped.
pub struct CrossReceiver<T: Send>(Arc<Mutex<OneshotState<T>>>);

impl<T: Send> CrossSender<T> {
    /// Hands the value over; it is dropped when nobody waits for it any more.
    pub fn send(self, value: T) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.receiver_gone {
            state.value = Some(value);
        }
    }

    /// Whether the receiver is gone: the client went away.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).receiver_gone
    }
}

impl<T: Send> Drop for CrossSender<T> {
    fn drop(&mut self) {
        let waker = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.sender_gone = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T: Send> CrossReceiver<T> {
    /// Blocks the calling thread for the value. Never call it on a reactor's thread.
    ///
    /// # Errors
    /// [`Closed`] when the sender was dropped without sending.
    pub fn wait(mut self) -> Result<T, Closed> {
        struct Unpark(std::thread::Thread);
        impl std::task::Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            match Pin::new(&mut self).poll(&mut context) {
                Poll::Ready(result) => return result,
                Poll::Pending => std::thread::park(),
            }
        }
    }
}

impl<T: Send> Future for CrossReceiver<T> {
    type Output = Result<T, Closed>;
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).poll(context)
    }
}

impl<T: Send> Drop for CrossReceiver<T> {
    fn drop(&mut self) {
        let value = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.receiver_gone = true;
            state.value.take()
        };
        drop(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(future: Pin<&mut impl Future<Output = impl Sized>>) -> bool {
        future.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn a_dropped_wait_passes_its_notification_on() {
        let notify = Notify::new();
        let (first, mut second) = (notify.notified(), notify.notified());
        assert!(notify.notify_one());
        assert!(!poll(Pin::new(&mut second)), "the first was chosen");
        drop(first);
        assert!(poll(Pin::new(&mut second)));
        assert!(!notify.notify_one(), "nobody waits");
    }

    #[test]
    fn credits_go_in_order_and_come_back_from_waits_that_were_dropped() {
        let semaphore = Semaphore::new(3);
        let held = semaphore.try_acquire(2).unwrap();
        let mut large = Box::pin(semaphore.acquire(3));
        let mut small = Box::pin(semaphore.acquire(1));
        assert!(!poll(large.as_mut()) && !poll(small.as_mut()), "a small wish does not overtake a large one");
        assert!(semaphore.try_acquire(1).is_none());
        drop(held);
        // Served, not yet polled, and dropped: its credits go to the next.
        drop(large);
        assert!(poll(small.as_mut()));
        drop(small);
        assert_eq!(semaphore.available(), 3);
    }

    #[test]
    fn a_oneshot_tells_when_the_other_end_is_gone() {
        let (sender, receiver) = oneshot::<u8>();
        drop(receiver);
        assert_eq!(sender.send(1), Err(1));
        let (sender, receiver) = cross_oneshot::<u8>();
        drop(sender);
        assert_eq!(receiver.wait(), Err(Closed));
    }
}
