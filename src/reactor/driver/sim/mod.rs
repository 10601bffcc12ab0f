//! The simulated driver: hosts, shared disks and a network in one thread, on virtual time, from one seed.
//!
//! A [`SimWorld`] owns everything; [`SimWorld::reactor`] makes a reactor on a host. The world steps them: it runs whoever
//! has work, and otherwise moves the clock to the next event. All choices come from the seed, so that the same seed gives
//! the same trace ([`SimWorld::trace`]). What happens outside of drivers must be deterministic too: iterate no `HashMap`
//! with random hashing, read no clock.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::{Completion, Driver, DurableMethod, Handle, OpenOptions, Operation, Token, Wait};
use crate::reactor::mail::WakeUp;
use crate::reactor::time::Clock;

mod disk;
mod faults;
mod files;
mod network;
#[cfg(test)]
mod tests;
mod world;

pub use faults::{DiskGates, Spoiling, Straying};
use world::World;
pub use world::{SimWorld, Stuck, Traffic};

/// A simulated machine; its reactors crash together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct HostId(pub u32);

/// The nature of a simulated world. Times are drawn evenly from the ranges (least, most), in microseconds.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// A read from a disk.
    pub read_us: (u64, u64),
    /// A write that is not durable.
    pub write_us: (u64, u64),
    /// A durable write, or a sync.
    pub durable_us: (u64, u64),
    /// One way over the network.
    pub network_us: (u64, u64),
    /// Of 1000 disk operations and messages, how many take `slow_factor` times as long.
    pub slow_per_mille: u64,
    /// See `slow_per_mille`.
    pub slow_factor: u64,
    /// What a disk writes whole or not at all, in bytes: 512 or 4096.
    pub sector_bytes: usize,
    /// Whether the unsynced writes of a host that crashes are lost (or survive in the disk's cache, as they do when only
    /// the process dies). [`SimWorld::power_loss`] loses them always.
    pub crash_loses_unsynced: bool,
    /// Most bytes of a file; beyond it the disk is full.
    pub file_bytes_max: u64,
    /// Milliseconds since 1970 when the world begins.
    pub wall_ms: u64,
}

impl Default for SimOptions {
    fn default() -> SimOptions {
        SimOptions {
            read_us: (60, 120),
            write_us: (15, 60),
            durable_us: (30, 150),
            network_us: (20, 80),
            slow_per_mille: 10,
            slow_factor: 50,
            sector_bytes: 512,
            crash_loses_unsynced: true,
            file_bytes_max: 1 << 40,
            wall_ms: 1_767_225_600_000,
        }
    }
}

/// Index of a reactor in its world; never used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
struct ActorId(u32);

/// One reactor's way into its world. After its host has crashed, nothing that it asks for happens.
struct SimDriver {
    world: Weak<World>,
    actor: ActorId,
    now_ns: Rc<Cell<u64>>,
    wall_base_ms: Rc<Cell<u64>>,
    seed: u64,
}

/// Everything is one thread: the world looks for mail itself.
struct NoWakeUp;

impl WakeUp for NoWakeUp {
    fn wake_up(&self) {}
}

impl SimDriver {
    fn with<T>(&self, act: impl FnOnce(&mut world::State) -> T) -> Option<T> {
        let world = self.world.upgrade()?;
        let mut state = world.state.borrow_mut();
        state.is_alive(self.actor).then(|| act(&mut state))
    }
}

fn crashed() -> io::Error {
    io::Error::other("the simulated host has crashed")
}

impl Driver for SimDriver {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn clock(&self) -> Clock {
        Clock::Virtual { now_ns: self.now_ns.clone(), wall_base_ms: self.wall_base_ms.clone() }
    }

    fn random_seed(&mut self) -> u64 {
        self.seed
    }

    fn wake_up(&self) -> Arc<dyn WakeUp> {
        Arc::new(NoWakeUp)
    }

    fn open(&mut self, path: &Path, how: OpenOptions) -> io::Result<Handle> {
        self.with(|state| state.open(self.actor, path, how)).unwrap_or_else(|| Err(crashed()))
    }

    fn file_bytes(&mut self, file: Handle) -> io::Result<u64> {
        self.with(|state| state.disk_of(file).bytes).ok_or_else(crashed)
    }

    fn allocate(&mut self, file: Handle, bytes: u64) -> io::Result<()> {
        self.with(|state| state.allocate(file, bytes)).unwrap_or_else(|| Err(crashed()))
    }

    fn set_durable_method(&mut self, _file: Handle, _method: DurableMethod) {}

    fn listen(&mut self, address: SocketAddr) -> io::Result<(Handle, SocketAddr)> {
        self.with(|state| state.listen(self.actor, address)).unwrap_or_else(|| Err(crashed()))
    }

    fn close(&mut self, handle: Handle) {
        self.with(|state| state.close(handle));
    }

    fn shutdown_send(&mut self, stream: Handle) {
        self.with(|state| state.shutdown_send(stream));
    }

    unsafe fn register_memory(&mut self, _pointer: *const u8, _len: usize) -> io::Result<()> {
        Ok(())
    }

    fn submit(&mut self, token: Token, operation: Operation) {
        let mut operation = Some(operation);
        self.with(|state| state.submit(self.actor, token, operation.take().expect("submitted once")));
        // A dead host's operation is dropped here, outside of the world: its memory may be a cache's, with code of its own.
        drop(operation);
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, wait: Wait) {
        assert_eq!(wait, Wait::No, "a simulated reactor is stepped by its world: SimWorld::block_on, not Reactor::run");
        self.with(|state| state.take_completions(self.actor, completions));
    }
}
