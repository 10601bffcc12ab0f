//! Files and streams as the engine uses them: futures over the driver's operations.
//!
//! Each future submits at its first poll. When it is dropped earlier than its completion, the operation goes on and its
//! result is thrown away: a write may or may not happen, received bytes are lost (close the stream then), and a stream that
//! was accepted or connected for nobody is closed.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::buffer::IoBuf;
use super::driver::{Buffers, Completion, DurableMethod, Handle, OpenOptions, Operation, StorageRoute, StorageWish, Token};
use super::{Instant, OPERATIONS_MAX, Reactor, add};

/// Bytes written at a time by [`Reactor::write_zeros`].
const ZEROS_CHUNK: usize = 1 << 20;

/// How often a write is tried again that was cut off: by a reset of its device's controller, for example.
const INTERRUPTIONS_MAX: u32 = 5;

/// Rounds of each method in [`Reactor::probe_durable_write`].
const PROBE_ROUNDS: usize = 16;

/// Bytes of each write in [`Reactor::probe_durable_write`].
pub const PROBE_BYTES: usize = 4096;

/// Why a write was not submitted: its moment lies beyond what [`Reactor::write_until`] allows.
#[derive(Clone, Copy, Debug)]
pub struct LeaseOver;

impl fmt::Display for LeaseOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its lease on the volume has run out")
    }
}

impl std::error::Error for LeaseOver {}

/// An open file of this reactor. Closed by [`Reactor::close`] or with the reactor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct FileId(pub(crate) Handle);

/// What the reactor knows of an operation in flight.
pub(crate) enum OperationSlot {
    Waiting(Waker),
    Abandoned,
    Done(Completion),
}

/// An operation as a future.
enum Submitted<'a> {
    New(&'a Reactor, Option<Operation>),
    InFlight(&'a Reactor, Token),
    Finished,
}

impl Future for Submitted<'_> {
    type Output = Completion;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Completion> {
        match &mut *self {
            Submitted::New(reactor, operation) => {
                let operation = operation.take().expect("an operation is submitted once");
                let token = reactor.submit(operation, context.waker());
                let reactor: &Reactor = reactor;
                *self = Submitted::InFlight(reactor, token);
                Poll::Pending
            }
            Submitted::InFlight(reactor, token) => {
                let mut operations = reactor.0.operations.borrow_mut();
                if let OperationSlot::Waiting(waker) = &mut operations[token.0] {
                    waker.clone_from(context.waker());
                    return Poll::Pending;
                }
                let OperationSlot::Done(completion) = operations.remove(token.0) else {
                    unreachable!("abandoned only by the drop of this future")
                };
                drop(operations);
                // Not by assignment: that would run the drop of an operation in flight.
                std::mem::forget(std::mem::replace(&mut *self, Submitted::Finished));
                Poll::Ready(completion)
            }
            Submitted::Finished => panic!("an operation was polled after its end"),
        }
    }
}

impl Drop for Submitted<'_> {
    fn drop(&mut self) {
        let Submitted::InFlight(reactor, token) = self else { return };
        let mut operations = reactor.0.operations.borrow_mut();
        if let OperationSlot::Waiting(_) = operations[token.0] {
            operations[token.0] = OperationSlot::Abandoned;
            return;
        }
        let slot = operations.remove(token.0);
        drop(operations);
        if let OperationSlot::Done(completion) = slot {
            reactor.discard(completion);
        }
    }
}

impl Reactor {
    fn submit(&self, operation: Operation, waker: &Waker) -> Token {
        let token = {
            let mut operations = self.0.operations.borrow_mut();
            assert!(operations.len() < OPERATIONS_MAX, "{OPERATIONS_MAX} operations in flight: who submits without bound?");
            Token(operations.insert(OperationSlot::Waiting(waker.clone())))
        };
        add(&self.0.counters.operations_submitted, 1);
        self.0.driver.borrow_mut().submit(token, operation);
        token
    }

    fn operate(&self, operation: Operation) -> Submitted<'_> {
        Submitted::New(self, Some(operation))
    }

    /// Hands a completion to whoever waits for it.
    pub(crate) fn complete(&self, completion: Completion) {
        let mut operations = self.0.operations.borrow_mut();
        let token = completion.token;
        match std::mem::replace(&mut operations[token.0], OperationSlot::Abandoned) {
            OperationSlot::Waiting(waker) => {
                operations[token.0] = OperationSlot::Done(completion);
                drop(operations);
                waker.wake();
            }
            OperationSlot::Abandoned => {
                operations.remove(token.0);
                drop(operations);
                self.discard(completion);
            }
            OperationSlot::Done(_) => panic!("the {} driver completed operation {} twice", self.driver_name(), token.0),
        }
    }

    fn discard(&self, completion: Completion) {
        if let Some((stream, _)) = completion.opened {
            self.0.driver.borrow_mut().close(stream);
        }
    }

    /// Opens a file.
    ///
    /// # Errors
    /// The operating system's, with the path in the message.
    pub async fn open(&self, path: &Path, how: OpenOptions) -> io::Result<FileId> {
        self.0.driver.borrow_mut().open(path, how).map(FileId)
    }

    /// Closes a file once its operations in flight are over.
    pub fn close(&self, file: FileId) {
        self.0.driver.borrow_mut().close(file.0);
    }

    /// The size of a file or block device in bytes.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn file_bytes(&self, file: FileId) -> io::Result<u64> {
        self.0.driver.borrow_mut().file_bytes(file.0)
    }

    /// Takes (or gives up) an advisory lock on one byte of a file. It belongs to the open file and so outlives a process that
    /// is killed until its last read or write has ended. `false`: somebody else has it. Nothing in the simulation.
    ///
    /// # Errors
    /// The operating system's.
    pub fn try_lock(&self, file: FileId, byte: u64, exclusive: bool) -> io::Result<bool> {
        self.0.driver.borrow_mut().try_lock(file.0, byte, exclusive)
    }

    /// Reserves space so that the file has at least `bytes` bytes. Use [`write_zeros`](Self::write_zeros) where later
    /// durable writes must not change metadata.
    ///
    /// # Errors
    /// The operating system's; ENOSPC when there is not that much.
    pub async fn allocate(&self, file: FileId, bytes: u64) -> io::Result<()> {
        self.0.driver.borrow_mut().allocate(file.0, bytes)
    }

    /// Writes real zeros from `offset` on for `bytes` (multiples of 4096) and syncs them.
    ///
    /// # Errors
    /// The first write's or the sync's.
    pub async fn write_zeros(&self, file: FileId, offset: u64, bytes: u64) -> io::Result<()> {
        let mut zeros = IoBuf::aligned(ZEROS_CHUNK);
        let mut done = 0;
        while done < bytes {
            zeros.truncate(usize::try_from(bytes - done).unwrap_or(usize::MAX));
            let (result, buffer) = self.write(file, offset + done, zeros).await;
            zeros = buffer;
            done += result? as u64;
        }
        self.sync(file).await
    }

    /// Fills `buffer` from the file; fewer bytes only at its end.
    pub async fn read(&self, file: FileId, offset: u64, buffer: IoBuf) -> (io::Result<usize>, IoBuf) {
        one(self.operate(Operation::Read { file: file.0, offset, buffer }).await)
    }

    /// Writes are submitted before this moment only, and fail from then on; `None`: at any time. What a node that holds a
    /// lease on its volume relies on: also a process that was stopped and wakes up asks the clock before it writes.
    pub fn write_until(&self, until: Option<Instant>) {
        self.0.writes_until.set(until);
    }

    fn may_write(&self) -> io::Result<()> {
        match self.0.writes_until.get() {
            Some(until) if self.now() >= until => Err(io::Error::other(LeaseOver)),
            _ => Ok(()),
        }
    }

    /// Writes all of `buffer`. It may be lost by a crash until [`sync`](Self::sync).
    pub async fn write(&self, file: FileId, offset: u64, buffer: IoBuf) -> (io::Result<usize>, IoBuf) {
        self.write_all(file, offset, buffer, false).await
    }

    /// Writes all of `buffer`; it is on stable storage when this resolves.
    pub async fn write_durable(&self, file: FileId, offset: u64, buffer: IoBuf) -> (io::Result<usize>, IoBuf) {
        self.write_all(file, offset, buffer, true).await
    }

    async fn write_all(&self, file: FileId, offset: u64, buffer: IoBuf, durable: bool) -> (io::Result<usize>, IoBuf) {
        let total = buffer.len();
        if let Err(error) = self.may_write() {
            return (Err(error), buffer);
        }
        let (result, mut buffer) = one(self.operate(Operation::Write { file: file.0, offset, buffer, durable }).await);
        let mut interruptions = 0;
        let mut done = match result {
            Ok(written) if written == total => return (Ok(total), buffer),
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return (Err(error), buffer),
        };
        // Short: the disk is nearly full, or a signal came, or it is more than the device takes at once. The next write tells.
        let address = buffer.as_ptr();
        while done < total {
            if let Err(error) = self.may_write() {
                return (Err(error), buffer);
            }
            let rest = buffer.slice(done..total);
            let operation = Operation::Write { file: file.0, offset: offset + done as u64, buffer: rest, durable };
            let (result, rest) = one(self.operate(operation).await);
            buffer = rest.view_at(address, total);
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buffer),
                Ok(written) => done += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted && interruptions < INTERRUPTIONS_MAX => {
                    interruptions += 1
                }
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(total), buffer)
    }

    /// Everything whose write has completed is on stable storage when this resolves.
    ///
    /// # Errors
    /// The device's. After one, what was written since the last sync is in doubt: do not try again, stop.
    pub async fn sync(&self, file: FileId) -> io::Result<()> {
        let completion = self.operate(Operation::Sync { file: file.0 }).await;
        completion.result.map(|_| ()).map_err(io::Error::from_raw_os_error)
    }

    /// Measures, on 4096 bytes of the file at `offset`, whether durable writes are faster as one RWF_DSYNC write or as
    /// write and fdatasync (drives differ), chooses that for the file and says which. Writes back the bytes that it finds
    /// there; nobody else may write others meanwhile.
    ///
    /// The methods take turns and their medians are compared: one completes in a worker of the kernel's that others may
    /// keep waiting for a core, and the best of a few rounds would not show that.
    ///
    /// # Errors
    /// The device's.
    pub async fn probe_durable_write(&self, file: FileId, offset: u64) -> io::Result<DurableMethod> {
        let (result, mut buffer) = self.read(file, offset, IoBuf::aligned(PROBE_BYTES)).await;
        result?;
        buffer = buffer.whole();
        let methods = [DurableMethod::Dsync, DurableMethod::WriteThenSync];
        let mut took = [[Duration::ZERO; PROBE_ROUNDS]; 2];
        for round in 0..PROBE_ROUNDS {
            for (method, took) in methods.into_iter().zip(&mut took) {
                self.set_durable_method(file, method);
                let start = self.now();
                let result;
                (result, buffer) = self.write_durable(file, offset, buffer).await;
                result?;
                took[round] = self.now().since(start);
            }
        }
        let [dsync, write_then_sync] = took.map(|mut took| {
            took.sort_unstable();
            took[PROBE_ROUNDS / 2]
        });
        let fastest = methods[usize::from(write_then_sync < dsync)];
        let (dsync_us, write_then_sync_us) = (dsync.as_micros() as u64, write_then_sync.as_micros() as u64);
        tracing::info!(?fastest, dsync_us, write_then_sync_us, "durable writes probed, medians");
        self.set_durable_method(file, fastest);
        Ok(fastest)
    }

    /// Makes durable writes to the file by this method from now on. None may be in flight.
    pub fn set_durable_method(&self, file: FileId, method: DurableMethod) {
        self.0.driver.borrow_mut().set_durable_method(file.0, method);
    }

    /// Chooses the way of a file's reads and writes (one file of a reactor may have another than the plain one), and tells which it
    /// is now. Nothing may be in flight on the file. Blocks for the time of a few reads.
    pub fn route(&self, file: FileId, wish: StorageWish) -> StorageRoute {
        self.0.driver.borrow_mut().route(file.0, wish)
    }

    /// Registers memory that many operations will use (a cache's frames) with the driver.
    ///
    /// # Errors
    /// When the operating system refuses, mostly by RLIMIT_MEMLOCK; operations work all the same, a little slower.
    ///
    /// # Safety
    /// The memory must stay mapped for as long as this reactor lives.
    pub unsafe fn register_memory(&self, pointer: *const u8, len: usize) -> io::Result<()> {
        // SAFETY: the caller promises what the driver asks.
        unsafe { self.0.driver.borrow_mut().register_memory(pointer, len) }
    }

    /// Before it sleeps, this thread looks for so long at the network devices that its streams' packets come by, which saves an
    /// interrupt and costs a core's time. Loopback has no such device.
    ///
    /// # Errors
    /// `InvalidInput` from kernels below 6.9 or built without `NET_RX_BUSY_POLL`; `Unsupported` without io_uring.
    pub fn busy_poll(&self, time: Duration) -> io::Result<()> {
        self.0.driver.borrow_mut().busy_poll(time)
    }

    /// `len` zeroed bytes, aligned for direct I/O, for a buffer that is used over and over: from memory that is registered with the
    /// driver where that gains something and there is room, and goes back there when it is dropped.
    #[must_use]
    pub fn steady_buffer(&self, len: usize) -> IoBuf {
        if self.driver_name() != "uring" {
            return IoBuf::aligned(len);
        }
        // SAFETY: the pool keeps the memory, and is dropped after the driver.
        self.0.steady.take(len, |memory| unsafe { self.register_memory(memory.as_ptr(), memory.len()) })
    }

    /// Takes over a descriptor that some other library reads, to be told when it can.
    ///
    /// # Errors
    /// The operating system's; `Unsupported` in the simulation.
    pub fn adopt(&self, fd: OwnedFd) -> io::Result<Adopted> {
        let handle = self.0.driver.borrow_mut().adopt(fd)?;
        Ok(Adopted { owner: Owned { reactor: self.clone(), handle } })
    }

    /// Opens a listening socket (port 0: any port, see [`Listener::address`]).
    ///
    /// # Errors
    /// With the address in the message; `AddrInUse` when another process has it.
    pub async fn listen(&self, address: SocketAddr) -> io::Result<Listener> {
        let (handle, address) = self.0.driver.borrow_mut().listen(address)?;
        Ok(Listener { owner: Owned { reactor: self.clone(), handle }, address })
    }

    /// Connects to `address`, without delay for small messages (TCP_NODELAY). Has no time limit of its own.
    ///
    /// # Errors
    /// With the address in the message.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<Stream> {
        let completion = self.operate(Operation::Connect { address }).await;
        match (completion.result, completion.opened) {
            (Ok(_), Some((handle, peer))) => Ok(Stream::new(self, handle, peer)),
            (Err(number), _) => Err(named(number, &format!("connect to {address}"))),
            (Ok(_), None) => unreachable!("a connection without a stream"),
        }
    }
}

pub(crate) fn named(number: i32, what: &str) -> io::Error {
    let error = io::Error::from_raw_os_error(number);
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn one(completion: Completion) -> (io::Result<usize>, IoBuf) {
    let Buffers::One(buffer) = completion.buffers else { unreachable!("the operation had one buffer") };
    (completion.result.map_err(io::Error::from_raw_os_error), buffer)
}

/// Closes its handle when dropped.
struct Owned {
    reactor: Reactor,
    handle: Handle,
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.reactor.0.driver.borrow_mut().close(self.handle);
    }
}

/// A descriptor that another library reads; closed when dropped, and nobody waits for it any more.
pub struct Adopted {
    owner: Owned,
}

impl Adopted {
    /// Resolves when it is readable. Level-triggered; also when it is broken, which reading tells.
    pub async fn readable(&self) {
        let operation = Operation::Readable { file: self.owner.handle };
        // An error is found by whoever reads.
        let _ = self.owner.reactor.operate(operation).await;
    }
}

/// A listening socket; closed when dropped.
pub struct Listener {
    owner: Owned,
    address: SocketAddr,
}

impl Listener {
    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection and who made it.
    ///
    /// # Errors
    /// The operating system's; most concern one connection or a shortage (EMFILE): wait a little and go on.
    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        let reactor = &self.owner.reactor;
        let completion = reactor.operate(Operation::Accept { listener: self.owner.handle }).await;
        match (completion.result, completion.opened) {
            (Ok(_), Some((handle, peer))) => Ok((Stream::new(reactor, handle, peer), peer)),
            (Err(number), _) => Err(named(number, &format!("accept on {}", self.address))),
            (Ok(_), None) => unreachable!("a connection without a stream"),
        }
    }
}

/// A byte stream to a peer. Clones share it; it is closed when the last is dropped. One task may send while another
/// receives; two that send (or receive) at once mix their bytes.
#[derive(Clone)]
pub struct Stream {
    owner: Rc<Owned>,
    peer: SocketAddr,
}

impl Stream {
    fn new(reactor: &Reactor, handle: Handle, peer: SocketAddr) -> Stream {
        Stream { owner: Rc::new(Owned { reactor: reactor.clone(), handle }), peer }
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Sends all bytes of `buffer`. After an error it is unknown how many went: close the stream.
    pub async fn send(&self, mut buffer: IoBuf) -> (io::Result<()>, IoBuf) {
        let stream = self.owner.handle;
        let mut done = 0;
        while done < buffer.len() {
            let result;
            (result, buffer) = one(self.owner.reactor.operate(Operation::Send { stream, buffer, done }).await);
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buffer),
                Ok(sent) => done += sent,
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(()), buffer)
    }

    /// Sends all bytes of all buffers, in order. After an error it is unknown how many went: close the stream.
    pub async fn send_vectored(&self, mut buffers: Vec<IoBuf>) -> (io::Result<()>, Vec<IoBuf>) {
        let stream = self.owner.handle;
        let total: usize = buffers.iter().map(IoBuf::len).sum();
        let mut done = 0;
        while done < total {
            let completion = self.owner.reactor.operate(Operation::SendVectored { stream, buffers, done }).await;
            let Buffers::Many(back) = completion.buffers else { unreachable!("the operation had many buffers") };
            buffers = back;
            match completion.result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buffers),
                Ok(sent) => done += sent,
                Err(number) => return (Err(io::Error::from_raw_os_error(number)), buffers),
            }
        }
        (Ok(()), buffers)
    }

    /// Receives at least one byte, at most the buffer's length; 0 when the peer has closed. The buffer keeps its length.
    pub async fn recv(&self, buffer: IoBuf) -> (io::Result<usize>, IoBuf) {
        let stream = self.owner.handle;
        one(self.owner.reactor.operate(Operation::Receive { stream, buffer, done: 0, exact: false }).await)
    }

    /// Fills the buffer; `UnexpectedEof` when the peer closes before.
    pub async fn recv_exact(&self, mut buffer: IoBuf) -> (io::Result<()>, IoBuf) {
        let stream = self.owner.handle;
        let mut done = 0;
        while done < buffer.len() {
            let operation = Operation::Receive { stream, buffer, done, exact: true };
            let result;
            (result, buffer) = one(self.owner.reactor.operate(operation).await);
            match result {
                Ok(0) => return (Err(io::ErrorKind::UnexpectedEof.into()), buffer),
                Ok(received) => done += received,
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(()), buffer)
    }

    /// Ends sending: the peer reads the end of the stream after what was sent. Receiving goes on.
    pub fn shutdown(&self) {
        self.owner.reactor.0.driver.borrow_mut().shutdown_send(self.owner.handle);
    }
}
