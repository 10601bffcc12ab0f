//! The seam between the RDMA transport and a device: a few verbs. Two implementations: `device` (libibverbs and librdmacm,
//! feature `rdma`) and [`soft`](super::soft), a device in memory for tests without any hardware.
//!
//! One [`Verbs`] per shard, owned by its thread: one completion queue, one shared receive queue, one queue pair per peer.
//! Nothing here knows of nodes, numbers or frames. Bounded by what it was made with: receive slots, send slots, and
//! [`SEND_QUEUE_DEPTH`] work requests per queue pair.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;

use crate::ids::BLOCK_SIZE;
use crate::interconnect::header::HEADER_BYTES;

/// A future that stays in its shard.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// Bytes of a send or receive slot: a header with a block or a piece of a longer body behind it.
pub const SLOT_BYTES: usize = HEADER_BYTES + BLOCK_SIZE;

/// Work requests that one queue pair may have in flight.
pub const SEND_QUEUE_DEPTH: usize = 256;

/// Bytes that go with a request to connect, for the other side to know which attempt it is: what InfiniBand has room for.
pub const GREETING_BYTES: usize = 40;

/// One end of a connection; never used again for another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pair(pub u64);

/// A request to connect that waits for [`Verbs::accept`] or [`Verbs::refuse`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Incoming(pub u64);

/// The keys of registered memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemoryKeys {
    /// For our own work requests.
    pub local: u32,
    /// For the other side's one-sided work.
    pub remote: u32,
}

/// What the other sides may do with registered memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Write into it.
    Write,
    /// Read it.
    Read,
    /// Both.
    ReadAndWrite,
}

/// A place in the other side's registered memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemotePlace {
    /// In the other side's address space.
    pub address: u64,
    /// Of the memory that it lies in.
    pub key: u32,
}

/// A work request for the send queue. They are done in order.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Comes back with the completion.
    pub id: u64,
    /// Whether success is reported too; failure always is.
    pub signalled: bool,
    /// What.
    pub action: Action,
}

/// See [`Work`].
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// Writes a block into the other side's memory, without its taking part.
    Write {
        /// Start of the block, in memory registered here. It stays as it is until the work is known to be done.
        from: *const u8,
        /// The key of that memory.
        key: u32,
        /// Where to.
        to: RemotePlace,
    },
    /// Writes a word of eight bytes, in one piece, into the other side's memory, without its taking part.
    WriteWord {
        /// What.
        value: u64,
        /// Where to.
        to: RemotePlace,
    },
    /// Reads some words of the other side's memory, without its taking part. Always signalled. While they are written, part of what
    /// is read may be old and part new, in pieces of eight bytes. What was written on this pair before is there when it is done.
    Read {
        /// Where to, in memory registered here; nobody looks before the work is known to be done.
        to: *mut u8,
        /// The key of that memory.
        key: u32,
        /// Where from.
        from: RemotePlace,
        /// Bytes.
        bytes: u32,
    },
    /// A message of a header alone, copied into the work request itself.
    Inline {
        /// The header.
        header: [u8; HEADER_BYTES],
        /// Comes out at the other side beside the message.
        immediate: u32,
    },
    /// A message from a send slot that was filled with [`Verbs::stage`], and is not touched until the work is known to be done.
    Staged {
        /// Which slot.
        slot: u32,
        /// Its first bytes.
        bytes: u32,
        /// Comes out at the other side beside the message.
        immediate: u32,
    },
}

/// What a device reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A signalled work request and all before it on this pair are done: the other side's device has them.
    Sent {
        /// On which pair.
        pair: Pair,
        /// Which.
        id: u64,
    },
    /// A message came. Its slot is the receiver's until he gives it back by [`Verbs::receive`].
    Received {
        /// On which pair.
        pair: Pair,
        /// Where it lies.
        slot: u32,
        /// How long it is.
        bytes: u32,
        /// What came beside it.
        immediate: u32,
    },
    /// A slot comes back without a message.
    Returned {
        /// Which.
        slot: u32,
    },
    /// Somebody wants to connect.
    Asked {
        /// For the answer.
        incoming: Incoming,
        /// Its greeting.
        greeting: [u8; GREETING_BYTES],
    },
    /// The pair is connected.
    Connected {
        /// Which.
        pair: Pair,
    },
    /// The pair can't be used any more, or was never connected. It still has to be destroyed.
    Failed {
        /// Which.
        pair: Pair,
        /// What the device says.
        why: String,
    },
}

/// Why the device refuses.
#[derive(Debug)]
pub enum VerbsFault {
    /// No RDMA device has the address.
    NoDevice {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The device is of a kind that nothing here was made for.
    NotSupported {
        /// Its name.
        device: String,
    },
    /// The memory can't be locked.
    Memlock {
        /// How much was asked for.
        bytes: u64,
        /// How much the process has locked already: other regions, other shards, io_uring's registered memory.
        locked: u64,
        /// RLIMIT_MEMLOCK of this process.
        limit: u64,
    },
    /// Anything else.
    System {
        /// The call.
        call: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

impl fmt::Display for VerbsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VerbsFault::NoDevice { address, source } => write!(
                f,
                "no RDMA device for {} ({source}): `rdma link` must show a device on that address's interface",
                address.ip()
            ),
            VerbsFault::NotSupported { device } => write!(
                f,
                "the RDMA device {device} is neither InfiniBand nor RoCE (iWARP is not supported): put addresses of another interface \
                 into [cluster.nodes], or set [rac.interconnect] protocol = \"TCP\""
            ),
            VerbsFault::Memlock { bytes, locked, limit } => write!(
                f,
                "RDMA needs {bytes} more bytes of memory locked; this process has {locked}, and RLIMIT_MEMLOCK allows {limit}: set LimitMEMLOCK=infinity in the service's unit, \
                 or `ulimit -l unlimited`"
            ),
            VerbsFault::System { call, source } => write!(f, "{call}: {source}"),
        }
    }
}

impl std::error::Error for VerbsFault {}

/// See the module.
pub trait Verbs {
    /// For logs.
    fn name(&self) -> String;

    /// Receive slots that there are.
    fn receive_slots(&self) -> u32;

    /// Send slots that there are.
    fn send_slots(&self) -> u32;

    /// Nobody can connect any more.
    fn stop_listening(&self);

    /// Asks to be connected. [`Event::Connected`] or [`Event::Failed`] follow.
    ///
    /// # Errors
    /// The device's.
    fn connect(&self, to: SocketAddr, greeting: &[u8; GREETING_BYTES]) -> Result<Pair, VerbsFault>;

    /// Says yes. [`Event::Connected`] or [`Event::Failed`] follow.
    ///
    /// # Errors
    /// The device's.
    fn accept(&self, incoming: Incoming) -> Result<Pair, VerbsFault>;

    /// Says no.
    fn refuse(&self, incoming: Incoming);

    /// Ends a pair: when this returns nothing that the other side sends or writes on it lands here any more, and the device
    /// has let go of our memory. What had arrived before is still reported by [`Verbs::poll`], or lost.
    fn destroy(&self, pair: Pair);

    /// Registers memory for this side's work, and for what the other sides may do with it.
    ///
    /// # Errors
    /// [`VerbsFault::Memlock`] where the system's limit is in the way.
    ///
    /// # Safety
    /// The memory stays mapped as long as the process lives; whoever writes into it is held to the rule of frames
    /// (docs/rdma.md).
    unsafe fn register(&self, start: *mut u8, bytes: usize, access: Access) -> Result<MemoryKeys, VerbsFault>;

    /// Fills a send slot.
    fn stage(&self, slot: u32, parts: &[&[u8]]);

    /// Posts work, all with one doorbell.
    ///
    /// # Errors
    /// The device's; the pair has to be destroyed.
    fn send(&self, pair: Pair, work: &[Work]) -> Result<(), VerbsFault>;

    /// Gives receive slots to the device, all with one doorbell.
    ///
    /// # Errors
    /// The device's.
    fn receive(&self, slots: &[u32]) -> Result<(), VerbsFault>;

    /// Shows a received message to `look`.
    fn read(&self, slot: u32, bytes: u32, look: &mut dyn FnMut(&[u8]));

    /// Appends what happened.
    fn poll(&self, events: &mut Vec<Event>);

    /// From now on [`Verbs::wait`] resolves when something happens. Whoever calls it polls once more before he waits.
    ///
    /// # Errors
    /// The device's.
    fn arm(&self) -> Result<(), VerbsFault>;

    /// Resolves when something may have happened since [`Verbs::arm`].
    fn wait(&self) -> LocalFuture<()>;
}
