//! A shard in a thread of its own with what a benchmark puts into it, driven from a thread that is no shard.

use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use rustydb::reactor::sync::{CrossSender, cross_oneshot};
use rustydb::reactor::thread::spawn_shard_thread;
use rustydb::reactor::{Class, Reactor, ReactorOptions, Remote};

use crate::Outcome;
use crate::clock::block_on;

/// A shard that works with a `P`. Ends when it is dropped.
pub struct Shard<P> {
    remote: Remote,
    stop: Option<CrossSender<()>>,
    thread: Option<JoinHandle<()>>,
    parts: PhantomData<fn() -> P>,
}

/// A shard that puts its parts together.
#[must_use]
pub struct Starting<P, T> {
    shard: Shard<P>,
    ready: Receiver<Outcome<T>>,
}

impl<P, T> Starting<P, T> {
    /// Waits until the shard works, and gives what it has for the caller's thread.
    ///
    /// # Errors
    /// Why it doesn't.
    pub fn wait(self) -> Outcome<(Shard<P>, T)> {
        let given = self.ready.recv()??;
        Ok((self.shard, given))
    }
}

impl<P: 'static> Shard<P> {
    /// Starts a shard, pinned to `core` if there is one; `make` puts together what it works with.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start<T, F, Fut>(core: Option<usize>, name: &str, options: ReactorOptions, make: F) -> Outcome<Starting<P, T>>
    where
        T: Send + 'static,
        F: FnOnce(Reactor) -> Fut + Send + 'static,
        Fut: Future<Output = Outcome<(P, T)>> + 'static,
    {
        let (stop, stopped) = cross_oneshot::<()>();
        let (started, ready) = sync_channel(1);
        let main = move |reactor: Reactor| async move {
            let given = make(reactor.clone()).await.map(|(parts, given)| {
                reactor.set_local(Rc::new(parts));
                given
            });
            let works = given.is_ok();
            // Nobody listens any more when another shard has failed already.
            started.send(given).ok();
            if works {
                stopped.await.ok();
            }
        };
        let (remote, thread) = spawn_shard_thread(core, name, options, main)?;
        Ok(Starting { shard: Shard { remote, stop: Some(stop), thread: Some(thread), parts: PhantomData }, ready })
    }

    /// Runs `work` as a task of the shard and waits for what it gives back.
    ///
    /// # Errors
    /// What `work` ends with.
    pub fn run<T, F, Fut>(&self, work: F) -> Outcome<T>
    where
        T: Send + 'static,
        F: FnOnce(Rc<P>) -> Fut + Send + 'static,
        Fut: Future<Output = Outcome<T>> + 'static,
    {
        let letter = |reactor: Reactor| work(reactor.local::<P>().expect("they were put there before the shard was given out"));
        let answer = self.remote.call(Class::Normal, "benchmark", letter).map_err(|error| error.to_string())?;
        block_on(answer)?
    }

    /// The way into it for other threads.
    #[must_use]
    pub fn remote(&self) -> &Remote {
        &self.remote
    }
}

impl<P> Drop for Shard<P> {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
