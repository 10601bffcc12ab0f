//! The seam between the reactor and the world: a few operations, each of which owns its memory until it completes.
//!
//! Three drivers implement [`Driver`]: [`uring`] (io_uring), [`poll`] (epoll and helper threads, for machines that refuse
//! io_uring) and [`sim`] (virtual time, disks and networks with faults). A driver belongs to one shard's thread. It keeps
//! an operation, buffers included, from `submit` until it appears among the completions, whatever became of the future.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::buffer::IoBuf;
use super::mail::WakeUp;
use super::time::Clock;

pub mod poll;
pub mod sim;
mod system;
#[cfg(feature = "rdma")]
pub(crate) use system::RawAddress;
pub mod uring;

/// An open file, listener or stream of a driver: index and generation, so that a stale one is noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct Handle {
    /// Place in the driver's table.
    pub index: u32,
    /// How often that place was used before.
    pub generation: u32,
}

/// Names an operation in flight; chosen by the reactor, returned with the completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct Token(pub u32);

/// How to open a file.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Open for writing too.
    pub write: bool,
    /// Create it when it does not exist.
    pub create: bool,
    /// Fail when it exists (with `create`).
    pub create_new: bool,
    /// Go around the page cache (O_DIRECT); where the file system refuses, a warning is logged and the cache is used.
    /// Asks for memory, offsets and lengths in multiples of [`IO_ALIGNMENT`](super::buffer::IO_ALIGNMENT).
    pub direct: bool,
}

impl OpenOptions {
    /// An existing file, for reading.
    pub const READ: OpenOptions = OpenOptions { write: false, create: false, create_new: false, direct: true };
    /// An existing file, for reading and writing.
    pub const WRITE: OpenOptions = OpenOptions { write: true, create: false, create_new: false, direct: true };
    /// For reading and writing; created when missing.
    pub const CREATE: OpenOptions = OpenOptions { write: true, create: true, create_new: false, direct: true };
    /// For reading and writing; must not exist yet.
    pub const CREATE_NEW: OpenOptions = OpenOptions { write: true, create: true, create_new: true, direct: true };
}

/// How a durable write is made durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DurableMethod {
    /// One write with RWF_DSYNC (forced unit access, where the device has it).
    Dsync,
    /// A write, then fdatasync.
    WriteThenSync,
}

/// By which ways a file's reads and writes may go beside the plain one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StorageWish {
    /// The device raises no interrupts: whoever waits for it polls for its completions, and takes the core while anything is in flight.
    pub polled: bool,
    /// An NVMe namespace gets its own commands, without the kernel's block layer.
    pub passthrough: bool,
}

/// By which way a file's reads and writes go.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StorageRoute {
    /// They are polled for.
    pub polled: bool,
    /// They are NVMe's own commands, to this character device.
    pub passthrough: Option<PathBuf>,
    /// What was wished for and can't be had, and why.
    pub refusals: Vec<String>,
}

impl fmt::Display for StorageRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.passthrough {
            Some(device) => write!(f, "NVMe commands to {}", device.display())?,
            None => f.write_str("the block layer")?,
        }
        f.write_str(if self.polled { ", polled" } else { ", by interrupts" })
    }
}

/// What a driver is asked to do.
#[derive(Debug)]
pub enum Operation {
    /// Fill the buffer from the file; short at its end.
    Read {
        /// An open file.
        file: Handle,
        /// In bytes.
        offset: u64,
        /// Filled from its first byte in view.
        buffer: IoBuf,
    },
    /// Write the buffer to the file. Interrupted, it fails with EINTR: whoever may write only until a certain moment looks at the clock
    /// before he tries again.
    Write {
        /// An open file.
        file: Handle,
        /// In bytes.
        offset: u64,
        /// What to write.
        buffer: IoBuf,
        /// Complete only when it is on stable storage.
        durable: bool,
    },
    /// Everything written to the file before is on stable storage when this completes.
    Sync {
        /// An open file.
        file: Handle,
    },
    /// Wait for a connection; completes with a stream.
    Accept {
        /// From [`Driver::listen`].
        listener: Handle,
    },
    /// Connect; completes with a stream.
    Connect {
        /// Whom to.
        address: SocketAddr,
    },
    /// Send the buffer's bytes from `done` on; may complete early with fewer.
    Send {
        /// An open stream.
        stream: Handle,
        /// What to send.
        buffer: IoBuf,
        /// Bytes that went before.
        done: usize,
    },
    /// As `Send`, of several buffers one after the other.
    SendVectored {
        /// An open stream.
        stream: Handle,
        /// What to send.
        buffers: Vec<IoBuf>,
        /// Bytes, over all buffers, that went before.
        done: usize,
    },
    /// Receive into the buffer from `done` on. 0 bytes mean that the peer has closed.
    Receive {
        /// An open stream.
        stream: Handle,
        /// Filled from `done` on.
        buffer: IoBuf,
        /// Bytes that it holds already.
        done: usize,
        /// Try to fill it whole (may still complete early).
        exact: bool,
    },
    /// Wait until there is something to read: of a descriptor that some other library reads ([`Driver::adopt`]).
    Readable {
        /// An adopted descriptor.
        file: Handle,
    },
}

/// The memory of a completed operation on its way back.
#[derive(Debug)]
pub enum Buffers {
    /// The operation had none.
    None,
    /// The one.
    One(IoBuf),
    /// Those of [`Operation::SendVectored`].
    Many(Vec<IoBuf>),
}

/// A completed operation.
#[derive(Debug)]
pub struct Completion {
    /// As given to [`Driver::submit`].
    pub token: Token,
    /// Bytes transferred, or the error number of the operating system.
    pub result: Result<usize, i32>,
    /// The operation's memory.
    pub buffers: Buffers,
    /// The stream that accept or connect opened, and its peer.
    pub opened: Option<(Handle, SocketAddr)>,
}

/// How long [`Driver::poll`] may sleep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until something completes, somebody wakes it, or the time is over (`None`: for ever).
    Park(Option<Duration>),
}

/// What the reactor asks of the world.
pub trait Driver {
    /// `uring`, `poll` or `sim`: for logs and metrics.
    fn name(&self) -> &'static str;

    /// The clocks. Asked for once.
    fn clock(&self) -> Clock;

    /// Seeds the reactor's random numbers. Asked for once.
    fn random_seed(&mut self) -> u64;

    /// Wakes this driver from its sleep, from any thread. Asked for once.
    fn wake_up(&self) -> Arc<dyn WakeUp>;

    /// Wakes another reactor, by the best way from here; at the latest with the next `poll`, before that sleeps.
    fn wake_other(&mut self, target: &Arc<dyn WakeUp>) {
        target.wake_up();
    }

    /// Opens a file. May block for the time of a system call: files are opened when a node starts.
    ///
    /// # Errors
    /// The operating system's, with the path in the message.
    fn open(&mut self, path: &Path, how: OpenOptions) -> io::Result<Handle>;

    /// The file's or block device's size in bytes.
    ///
    /// # Errors
    /// The operating system's.
    fn file_bytes(&mut self, file: Handle) -> io::Result<u64>;

    /// Takes (or gives up) an advisory lock on one byte of a file, for this open file: it is held until the file is closed
    /// and every operation on it has ended, also those of a process that was killed. `false`: somebody else has it.
    ///
    /// # Errors
    /// The operating system's.
    fn try_lock(&mut self, file: Handle, byte: u64, exclusive: bool) -> io::Result<bool> {
        // A driver without other processes has nobody to keep out.
        let _ = (file, byte, exclusive);
        Ok(true)
    }

    /// Reserves space, so that the file has at least `bytes` and later writes within do not fail for want of it. The
    /// reserved bytes read as zero.
    ///
    /// # Errors
    /// The operating system's; ENOSPC when there is not that much.
    fn allocate(&mut self, file: Handle, bytes: u64) -> io::Result<()>;

    /// Chooses how durable writes to the file are made.
    fn set_durable_method(&mut self, file: Handle, method: DurableMethod);

    /// Opens a listening socket; returns the address that it got (port 0 asks for any).
    ///
    /// # Errors
    /// The operating system's, with the address in the message.
    fn listen(&mut self, address: SocketAddr) -> io::Result<(Handle, SocketAddr)>;

    /// Takes a descriptor over, to be told when it is readable; only [`Operation::Readable`] may be used on it. Closing it does not
    /// end an operation in flight: that ends when the descriptor becomes readable, or with the driver.
    ///
    /// # Errors
    /// `Unsupported` where there are no descriptors (in the simulation), otherwise the operating system's.
    fn adopt(&mut self, fd: OwnedFd) -> io::Result<Handle> {
        drop(fd);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Closes a file, listener or stream. Operations in flight complete, those on streams with an error or end of stream.
    fn close(&mut self, handle: Handle);

    /// Ends sending on a stream (the peer reads end of stream), receiving goes on.
    fn shutdown_send(&mut self, stream: Handle);

    /// Tells the driver of memory that will be used in many operations, so that it may register it with the kernel. A
    /// driver that gains nothing by it ignores it.
    ///
    /// # Errors
    /// The operating system's (a limit on locked memory): operations work all the same. Of less than a gigabyte nothing is registered
    /// then, so its owner may free it.
    ///
    /// # Safety
    /// The memory must stay mapped for as long as the driver lives.
    unsafe fn register_memory(&mut self, pointer: *const u8, len: usize) -> io::Result<()>;

    /// Looks for packets at the network devices of the streams for so long before it sleeps, instead of waiting for their
    /// interrupts.
    ///
    /// # Errors
    /// The operating system's; `Unsupported` where there is no such thing.
    fn busy_poll(&mut self, time: Duration) -> io::Result<()> {
        let _ = time;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Chooses the way of a file's reads and writes: tried out before it is used, and whatever fails is told as a refusal; the plain
    /// way is there always. One file of a driver may have another. Nothing may be in flight on it. May block for the time of some
    /// reads: it is called when a node starts.
    fn route(&mut self, file: Handle, wish: StorageWish) -> StorageRoute {
        let _ = file;
        let mut route = StorageRoute::default();
        if wish != StorageWish::default() {
            route.refusals.push(format!("the {} driver has but one way", self.name()));
        }
        route
    }

    /// Operations that went by another way than the plain one.
    fn storage_operations(&self) -> u64 {
        0
    }

    /// Takes an operation over. It reaches the kernel at the latest with the next `poll`.
    fn submit(&mut self, token: Token, operation: Operation);

    /// Passes on what was submitted, sleeps as `wait` allows while nothing has completed, and appends what has.
    fn poll(&mut self, completions: &mut Vec<Completion>, wait: Wait);
}

impl Operation {
    /// The handle that the operation works on.
    pub(crate) fn handle(&self) -> Option<Handle> {
        match self {
            Operation::Read { file, .. }
            | Operation::Write { file, .. }
            | Operation::Sync { file }
            | Operation::Readable { file } => Some(*file),
            Operation::Accept { listener } => Some(*listener),
            Operation::Connect { .. } => None,
            Operation::Send { stream, .. } | Operation::SendVectored { stream, .. } | Operation::Receive { stream, .. } => {
                Some(*stream)
            }
        }
    }

    /// The operation's memory, to be given back.
    pub(crate) fn into_buffers(self) -> Buffers {
        match self {
            Operation::Read { buffer, .. }
            | Operation::Write { buffer, .. }
            | Operation::Send { buffer, .. }
            | Operation::Receive { buffer, .. } => Buffers::One(buffer),
            Operation::SendVectored { buffers, .. } => Buffers::Many(buffers),
            Operation::Sync { .. } | Operation::Accept { .. } | Operation::Connect { .. } | Operation::Readable { .. } => {
                Buffers::None
            }
        }
    }
}

/// The buffers, from byte `done` on, as the kernel wants them, into memory that is used again. At most as many as the
/// kernel takes in one call; the rest goes with the next.
fn fill_io_vectors(vectors: &mut Vec<libc::iovec>, buffers: &[IoBuf], mut done: usize) {
    vectors.clear();
    for buffer in buffers {
        let rest = buffer.as_slice().get(done..).unwrap_or_default();
        done = done.saturating_sub(buffer.len());
        if !rest.is_empty() && vectors.len() < libc::UIO_MAXIOV as usize {
            vectors.push(libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() });
        }
    }
}
