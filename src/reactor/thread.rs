//! Starting reactors: their options, the choice of a driver, and pinned threads.

use std::future::Future;
use std::io;
use std::thread::JoinHandle;

use super::driver::Driver;
use super::driver::poll::PollDriver;
use super::driver::uring::{self, UringDriver};
use super::{Reactor, Remote};

/// Which driver a reactor is to use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DriverChoice {
    /// io_uring; where the machine refuses it, poll, with a warning that says why.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// epoll and helper threads.
    Poll,
}

/// How a reactor behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReactorOptions {
    /// Which driver.
    pub driver: DriverChoice,
    /// The core is shared with others: sleep at once when there is nothing to do, instead of looking for 50 µs first.
    pub overprovisioned: bool,
}

pub(crate) fn make_driver(options: &ReactorOptions) -> io::Result<Box<dyn Driver>> {
    if options.driver == DriverChoice::Poll {
        return Ok(Box::new(PollDriver::new()?));
    }
    match UringDriver::new() {
        Ok(driver) => Ok(Box::new(driver)),
        Err(error) => {
            let reason = uring::refusal(&error);
            if options.driver == DriverChoice::Uring {
                return Err(io::Error::new(error.kind(), format!("io_uring: {reason}")));
            }
            tracing::warn!(%reason, "no io_uring: using the slower poll driver");
            Ok(Box::new(PollDriver::new()?))
        }
    }
}

/// Starts a shard: a thread named `name`, pinned to `core` (`None`: the scheduler chooses), that runs a reactor until the
/// future made by `make_main` ends. Returns when the reactor takes mail. A panic in the shard ends the process: its state
/// is not to be trusted, and other shards wait for answers that would never come.
///
/// # Errors
/// When the thread or the driver cannot be set up.
pub fn spawn_shard_thread<F, Fut>(
    core: Option<usize>,
    name: &str,
    options: ReactorOptions,
    make_main: F,
) -> io::Result<(Remote, JoinHandle<()>)>
where
    F: FnOnce(Reactor) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let (ready, started) = std::sync::mpsc::sync_channel(1);
    let thread_name = name.to_owned();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        if let Some(core) = core
            && !core_affinity::set_for_current(core_affinity::CoreId { id: core })
        {
            tracing::warn!(shard = thread_name, core, "cannot pin the shard to its core: it runs where the scheduler puts it");
        }
        let reactor = match Reactor::new(options) {
            Ok(reactor) => reactor,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        tracing::info!(shard = thread_name, core, driver = reactor.driver_name(), "shard started");
        let _ = ready.send(Ok(reactor.remote()));
        let run = std::panic::AssertUnwindSafe(|| reactor.clone().run(make_main(reactor)));
        if std::panic::catch_unwind(run).is_err() {
            tracing::error!(shard = thread_name, "the shard has panicked: ending the process");
            std::process::abort();
        }
    })?;
    match started.recv() {
        Ok(Ok(remote)) => Ok((remote, thread)),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other(format!("the shard thread {name} ended before it began"))),
    }
}

/// Runs one reactor on the calling thread: for tests and tools.
///
/// # Errors
/// When no driver can be set up.
pub fn run_local<F, Fut>(options: ReactorOptions, make_main: F) -> io::Result<Fut::Output>
where
    F: FnOnce(Reactor) -> Fut,
    Fut: Future + 'static,
    Fut::Output: 'static,
{
    let reactor = Reactor::new(options)?;
    Ok(reactor.clone().run(make_main(reactor)))
}
