//! The driver for machines that refuse io_uring: epoll for streams, a few helper threads for files.
//!
//! Owned by one shard; the helpers see raw memory of operations only, which this driver keeps until they have answered
//! (also when it is dropped: it waits for them). Bounded by the reactor's operations; [`HELPERS`] files are busy at a time.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::system::{self, Descriptors, EventFd, RawAddress, last_errno};
use super::{Completion, Driver, DurableMethod, Handle, OpenOptions, Operation, Token, Wait, fill_io_vectors};
use crate::reactor::mail::WakeUp;
use crate::reactor::slab::Slab;
use crate::reactor::time::Clock;

/// Threads that do file operations for one shard.
pub const HELPERS: usize = 4;

/// Most readiness events taken by one call.
const EVENTS_MAX: usize = 256;

/// The eventfd's name among the epoll events; descriptors are named by their index.
const WAKE: u64 = u64::MAX;

/// See the module.
pub struct PollDriver {
    epoll: OwnedFd,
    wake: Arc<EventFd>,
    descriptors: Descriptors<Queues>,
    operations: Slab<InFlight>,
    done: Vec<Completion>,
    helpers: Option<Helpers>,
}

struct InFlight {
    token: Token,
    operation: Operation,
    /// The stream that a connect is making.
    connecting: Option<Handle>,
}

/// Operations that wait for a socket, first come first served.
#[derive(Default)]
struct Queues {
    receiving: VecDeque<u32>,
    sending: VecDeque<u32>,
}

impl PollDriver {
    /// Sets up epoll and the wake-up.
    ///
    /// # Errors
    /// The operating system's: too many open files.
    pub fn new() -> io::Result<PollDriver> {
        // SAFETY: no pointers are involved.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if epoll < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else owns it.
        let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
        let wake = Arc::new(EventFd::new()?);
        let driver = PollDriver {
            epoll,
            wake,
            descriptors: Descriptors::new(),
            operations: Slab::default(),
            done: Vec::new(),
            helpers: None,
        };
        driver.watch(driver.wake.fd(), libc::EPOLLIN as u32, WAKE)?;
        Ok(driver)
    }

    fn watch(&self, fd: RawFd, events: u32, name: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: name };
        // SAFETY: both descriptors are open, the event is live during the call.
        let result = unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Takes a socket into the table. Edge-triggered: operations are tried until they would block, then wait for an edge.
    fn add_socket(&mut self, fd: OwnedFd) -> Result<Handle, i32> {
        self.add_watched(fd, true)
    }

    fn add_watched(&mut self, fd: OwnedFd, is_socket: bool) -> Result<Handle, i32> {
        let raw = fd.as_raw_fd();
        let handle = self.descriptors.add(fd, is_socket);
        let events = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET) as u32;
        if let Err(error) = self.watch(raw, events, u64::from(handle.index)) {
            drop(self.descriptors.remove(handle));
            return Err(error.raw_os_error().unwrap_or(libc::EIO));
        }
        Ok(handle)
    }

    fn finish(&mut self, index: u32, result: Result<usize, i32>, opened: Option<(Handle, SocketAddr)>) {
        let InFlight { token, operation, connecting } = self.operations.remove(index);
        if let Some(handle) = connecting.or(operation.handle())
            && self.descriptors.end(handle)
        {
            drop(self.descriptors.remove(handle));
        }
        if let (Some(handle), Err(_)) = (connecting, result) {
            drop(self.descriptors.remove(handle));
        }
        self.done.push(Completion { token, result, buffers: operation.into_buffers(), opened });
    }

    fn submit_file(&mut self, index: u32) {
        let InFlight { operation, .. } = &mut self.operations[index];
        let (file, kind, offset, pointer, len) = match operation {
            Operation::Read { file, offset, buffer } => (*file, JobKind::Read, *offset, buffer.as_mut_ptr(), buffer.len()),
            Operation::Write { file, offset, buffer, durable } => {
                let kind = match self.descriptors.get(*file).durable {
                    _ if !*durable => JobKind::Write,
                    DurableMethod::Dsync => JobKind::WriteDsync,
                    DurableMethod::WriteThenSync => JobKind::WriteThenSync,
                };
                (*file, kind, *offset, buffer.as_mut_ptr(), buffer.len())
            }
            Operation::Sync { file } => (*file, JobKind::Sync, 0, std::ptr::null_mut(), 0),
            _ => unreachable!("not a file operation"),
        };
        let fd = self.descriptors.get(file).fd.as_raw_fd();
        let wake = &self.wake;
        let helpers = self.helpers.get_or_insert_with(|| Helpers::start(wake.clone()));
        helpers.give(Job { index, fd, kind, offset, pointer, len });
    }

    fn submit_connect(&mut self, index: u32, address: SocketAddr) {
        let handle = match system::socket_for(address, true).and_then(|fd| {
            let raw = RawAddress::from(address);
            // SAFETY: the address is live during the call and as long as said.
            let result = unsafe { libc::connect(fd.as_raw_fd(), raw.as_ptr(), raw.length) };
            match if result < 0 { last_errno() } else { 0 } {
                0 | libc::EINPROGRESS => self.add_socket(fd),
                number => Err(number),
            }
        }) {
            Ok(handle) => handle,
            Err(number) => return self.finish(index, Err(number), None),
        };
        self.operations[index].connecting = Some(handle);
        // An edge tells when it is connected; adding to epoll reports one for what is ready already.
        self.descriptors.begin(handle).extra.sending.push_back(index);
    }

    /// Tries the operations that wait on a socket until they would block.
    fn advance(&mut self, handle: Handle, receiving: bool) {
        loop {
            let Some(descriptor) = self.descriptors.find(handle) else { return };
            let fd = descriptor.fd.as_raw_fd();
            let queue = if receiving { &descriptor.extra.receiving } else { &descriptor.extra.sending };
            let Some(&index) = queue.front() else { return };
            let Some((result, opened)) = self.attempt(index, fd) else { return };
            let extra = &mut self.descriptors.get(handle).extra;
            let queue = if receiving { &mut extra.receiving } else { &mut extra.sending };
            queue.pop_front();
            self.finish(index, result, opened);
        }
    }

    /// Tries a stream operation. `None` when it would block.
    #[expect(clippy::type_complexity, reason = "the two halves of a completion, used once")]
    fn attempt(&mut self, index: u32, fd: RawFd) -> Option<(Result<usize, i32>, Option<(Handle, SocketAddr)>)> {
        let in_flight = &mut self.operations[index];
        let count = loop {
            let count = match &mut in_flight.operation {
                Operation::Accept { .. } => return self.attempt_accept(fd),
                Operation::Readable { .. } => return is_ready(fd, libc::POLLIN).then_some((Ok(0), None)),
                Operation::Connect { address } => {
                    let address = *address;
                    let handle = in_flight.connecting?;
                    return match system::socket_error(fd) {
                        0 if !is_ready(fd, libc::POLLOUT) => None,
                        0 => Some((Ok(0), Some((handle, address)))),
                        number => Some((Err(number), None)),
                    };
                }
                Operation::Send { buffer, done, .. } => {
                    let rest = &buffer.as_slice()[*done..];
                    // SAFETY: the bytes are live during the call.
                    unsafe { libc::send(fd, rest.as_ptr().cast(), rest.len(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) }
                }
                Operation::SendVectored { buffers, done, .. } => {
                    let mut vectors = Vec::new();
                    fill_io_vectors(&mut vectors, buffers, *done);
                    // SAFETY: msghdr is plain data, all zeros is a valid value.
                    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
                    message.msg_iov = vectors.as_ptr().cast_mut();
                    message.msg_iovlen = vectors.len();
                    // SAFETY: the message points to live vectors, which point into live buffers.
                    unsafe { libc::sendmsg(fd, &message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) }
                }
                Operation::Receive { buffer, done, .. } => {
                    let rest = &mut buffer.as_mut_slice()[*done..];
                    // SAFETY: the bytes are live and writable during the call.
                    unsafe { libc::recv(fd, rest.as_mut_ptr().cast(), rest.len(), libc::MSG_DONTWAIT) }
                }
                _ => unreachable!("not a stream operation"),
            };
            match if count < 0 { last_errno() } else { 0 } {
                0 => break count as usize,
                libc::EINTR => {}
                libc::EAGAIN => return None,
                number => return Some((Err(number), None)),
            }
        };
        Some((Ok(count), None))
    }

    #[expect(clippy::type_complexity, reason = "as `attempt`")]
    fn attempt_accept(&mut self, fd: RawFd) -> Option<(Result<usize, i32>, Option<(Handle, SocketAddr)>)> {
        loop {
            let mut peer = RawAddress::empty();
            let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            // SAFETY: address and length are live during the call, and the length is the address's.
            let accepted = unsafe { libc::accept4(fd, peer.as_mut_ptr(), &mut peer.length, flags) };
            if accepted >= 0 {
                system::set_no_delay(accepted);
                // SAFETY: the descriptor was just made and nobody else owns it.
                let stream = self.add_socket(unsafe { OwnedFd::from_raw_fd(accepted) });
                return Some(match stream {
                    Ok(handle) => (Ok(0), Some((handle, peer.to_address()))),
                    Err(number) => (Err(number), None),
                });
            }
            match last_errno() {
                libc::EINTR | libc::ECONNABORTED => {}
                libc::EAGAIN => return None,
                number => return Some((Err(number), None)),
            }
        }
    }

    fn collect_helped(&mut self) {
        let Some(helpers) = &self.helpers else { return };
        for (index, result) in helpers.take_answers() {
            self.finish(index, result, None);
        }
    }

    fn wait_for_events(&mut self, timeout_ms: libc::c_int) {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        // SAFETY: the array is live and as long as said.
        let count =
            unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), EVENTS_MAX as libc::c_int, timeout_ms) };
        for event in events.iter().take(usize::try_from(count).unwrap_or(0)) {
            let (bits, name) = (event.events as libc::c_int, event.u64);
            if name == WAKE {
                self.wake.drain();
                continue;
            }
            let broken = bits & (libc::EPOLLERR | libc::EPOLLHUP) != 0;
            let Some(handle) = self.descriptors.handle_at(name as u32) else { continue };
            if broken || bits & (libc::EPOLLIN | libc::EPOLLRDHUP) != 0 {
                self.advance(handle, true);
            }
            if broken || bits & libc::EPOLLOUT != 0 {
                self.advance(handle, false);
            }
        }
    }
}

/// Whether a descriptor is readable, or writable (of a socket that connects: connected; its SO_ERROR is zero before, too).
fn is_ready(fd: RawFd, events: libc::c_short) -> bool {
    let mut poll = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one live pollfd, and it says one.
    unsafe { libc::poll(&mut poll, 1, 0) == 1 && poll.revents & (events | libc::POLLERR | libc::POLLHUP) != 0 }
}

impl Driver for PollDriver {
    fn name(&self) -> &'static str {
        "poll"
    }

    fn clock(&self) -> Clock {
        Clock::System
    }

    fn random_seed(&mut self) -> u64 {
        system::random_seed()
    }

    fn wake_up(&self) -> Arc<dyn WakeUp> {
        self.wake.clone()
    }

    fn open(&mut self, path: &Path, how: OpenOptions) -> io::Result<Handle> {
        Ok(self.descriptors.add(system::open_file(path, how)?, false))
    }

    fn file_bytes(&mut self, file: Handle) -> io::Result<u64> {
        system::file_bytes(self.descriptors.get(file).fd.as_raw_fd())
    }

    fn try_lock(&mut self, file: Handle, byte: u64, exclusive: bool) -> io::Result<bool> {
        system::try_lock(self.descriptors.get(file).fd.as_raw_fd(), byte, exclusive)
    }

    fn allocate(&mut self, file: Handle, bytes: u64) -> io::Result<()> {
        system::allocate(self.descriptors.get(file).fd.as_raw_fd(), bytes)
    }

    fn set_durable_method(&mut self, file: Handle, method: DurableMethod) {
        self.descriptors.get(file).durable = method;
    }

    fn listen(&mut self, address: SocketAddr) -> io::Result<(Handle, SocketAddr)> {
        let (fd, address) = system::listen(address, true)?;
        Ok((self.add_socket(fd).map_err(io::Error::from_raw_os_error)?, address))
    }

    fn adopt(&mut self, fd: OwnedFd) -> io::Result<Handle> {
        self.add_watched(fd, false).map_err(io::Error::from_raw_os_error)
    }

    fn close(&mut self, handle: Handle) {
        if self.descriptors.close(handle) {
            drop(self.descriptors.remove(handle));
        }
    }

    fn shutdown_send(&mut self, stream: Handle) {
        system::shutdown_send(self.descriptors.get(stream).fd.as_raw_fd());
    }

    unsafe fn register_memory(&mut self, _pointer: *const u8, _len: usize) -> io::Result<()> {
        Ok(())
    }

    fn submit(&mut self, token: Token, operation: Operation) {
        let handle = operation.handle();
        if let Some(handle) = handle {
            self.descriptors.begin(handle);
        }
        let index = self.operations.insert(InFlight { token, operation, connecting: None });
        match &self.operations[index].operation {
            Operation::Read { .. } | Operation::Write { .. } | Operation::Sync { .. } => self.submit_file(index),
            Operation::Connect { address } => {
                let address = *address;
                self.submit_connect(index, address);
            }
            operation => {
                let receiving =
                    matches!(operation, Operation::Accept { .. } | Operation::Receive { .. } | Operation::Readable { .. });
                let handle = handle.expect("stream operations have one");
                let extra = &mut self.descriptors.get(handle).extra;
                let queue = if receiving { &mut extra.receiving } else { &mut extra.sending };
                queue.push_back(index);
                if queue.len() == 1 {
                    self.advance(handle, receiving);
                }
            }
        }
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, wait: Wait) {
        self.collect_helped();
        let timeout_ms = match wait {
            _ if !self.done.is_empty() => 0,
            Wait::No => 0,
            Wait::Park(None) => -1,
            // Rounded up: waking before the timer is due would only spin.
            Wait::Park(Some(time)) => i32::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX),
        };
        self.wait_for_events(timeout_ms);
        self.collect_helped();
        completions.append(&mut self.done);
    }
}

impl Drop for PollDriver {
    fn drop(&mut self) {
        // First the helpers, who may still read and write the operations' memory; then the operations go.
        drop(self.helpers.take());
    }
}

#[derive(Clone, Copy)]
enum JobKind {
    Read,
    Write,
    WriteDsync,
    WriteThenSync,
    Sync,
}

struct Job {
    index: u32,
    fd: RawFd,
    kind: JobKind,
    offset: u64,
    pointer: *mut u8,
    len: usize,
}

// SAFETY: the memory behind the pointer belongs to an operation that the driver keeps, untouched, until the job's answer
// has come back; so only the helper that holds the job uses it.
unsafe impl Send for Job {}

/// The threads that do file operations.
struct Helpers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    jobs: Mutex<(VecDeque<Job>, bool)>,
    more: Condvar,
    answers: Mutex<Vec<(u32, Result<usize, i32>)>>,
    wake: Arc<EventFd>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Helpers {
    fn start(wake: Arc<EventFd>) -> Helpers {
        let shared = Arc::new(Shared { jobs: Mutex::default(), more: Condvar::new(), answers: Mutex::default(), wake });
        let thread = |_| {
            let shared = shared.clone();
            let builder = std::thread::Builder::new().name("file-helper".into());
            builder.spawn(move || shared.help()).expect("a thread for file operations")
        };
        let threads = (0..HELPERS).map(thread).collect();
        Helpers { shared, threads }
    }

    fn give(&self, job: Job) {
        lock(&self.shared.jobs).0.push_back(job);
        self.shared.more.notify_one();
    }

    fn take_answers(&self) -> Vec<(u32, Result<usize, i32>)> {
        std::mem::take(&mut *lock(&self.shared.answers))
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        lock(&self.shared.jobs).1 = true;
        self.shared.more.notify_all();
        for thread in self.threads.drain(..) {
            thread.join().expect("a helper runs system calls only");
        }
    }
}

impl Shared {
    fn help(&self) {
        loop {
            let mut jobs = lock(&self.jobs);
            let job = loop {
                match (jobs.0.pop_front(), jobs.1) {
                    (Some(job), _) => break job,
                    (None, true) => return,
                    (None, false) => jobs = self.more.wait(jobs).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(jobs);
            let result = run(&job);
            lock(&self.answers).push((job.index, result));
            self.wake.wake_up();
        }
    }
}

fn run(job: &Job) -> Result<usize, i32> {
    let offset = job.offset as libc::off_t;
    let transfer = |flags: libc::c_int| {
        let vector = libc::iovec { iov_base: job.pointer.cast(), iov_len: job.len };
        // SAFETY: the operation's memory stays live and untouched until the answer (see `Job`).
        unsafe { libc::pwritev2(job.fd, &vector, 1, offset, flags) }
    };
    loop {
        let count = match job.kind {
            // SAFETY: as above, and the read has the memory for itself.
            JobKind::Read => unsafe { libc::pread(job.fd, job.pointer.cast(), job.len, offset) },
            JobKind::Write => transfer(0),
            JobKind::WriteDsync => transfer(libc::RWF_DSYNC),
            JobKind::WriteThenSync => match transfer(0) {
                // SAFETY: no pointers are involved.
                written if written >= 0 && unsafe { libc::fdatasync(job.fd) } < 0 => -1,
                written => written,
            },
            // SAFETY: no pointers are involved.
            JobKind::Sync => unsafe { libc::fdatasync(job.fd) as isize },
        };
        if count >= 0 {
            return Ok(count as usize);
        }
        let number = last_errno();
        // An interrupted write goes back to whoever knows until when it may be tried.
        if number != libc::EINTR || !matches!(job.kind, JobKind::Read | JobKind::Sync) {
            return Err(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::thread::JoinHandleExt;

    use super::*;

    extern "C" fn nothing(_: libc::c_int) {}

    /// The lease is asked before each write, so none is made a second time in here.
    #[test]
    fn a_write_that_a_signal_interrupts_is_given_back() {
        let (reader, writer) = io::pipe().unwrap();
        // SAFETY: the action is a valid one, and its handler does nothing.
        let set = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut())
        };
        assert_eq!(set, 0);
        // A pipe takes anything at this offset; when it is full, it waits for a reader.
        let (fd, kind, offset) = (writer.as_raw_fd(), JobKind::Write, u64::MAX);
        // SAFETY: no pointers are involved.
        let len = unsafe { libc::fcntl(fd, libc::F_GETPIPE_SZ) } as usize;
        let mut memory = vec![0u8; len];
        let job = Job { index: 0, fd, kind, offset, pointer: memory.as_mut_ptr(), len };
        assert_eq!(run(&job), Ok(len));
        let helper = std::thread::spawn(move || run(&job));
        for _ in 0..1_000 {
            if helper.is_finished() {
                break;
            }
            // SAFETY: the thread has not been joined.
            unsafe { libc::pthread_kill(helper.as_pthread_t(), libc::SIGUSR1) };
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        // If it still waits, it ends with another error.
        drop(reader);
        assert_eq!(helper.join().unwrap(), Err(libc::EINTR));
    }
}
