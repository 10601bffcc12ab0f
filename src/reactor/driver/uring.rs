//! The driver over io_uring: submissions of a turn go to the kernel with one call, completions come back with the same.
//!
//! Owned by the shard's thread, which is the ring's only issuer. Sockets and files are registered where there is room in
//! the ring's table, memory where [`Driver::register_memory`] told of it. Operations, with their memory, stay in a slab
//! until their completion (see [`entry`]); a driver that is dropped cancels and awaits what is in flight, and rather leaks
//! memory that the kernel will not give back than frees it. The volume may have a ring of its own beside this one: see
//! [`route`].

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, Napi, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use self::entry::{InFlight, Message, SPARE_MESSAGES};
use self::memory::RegisteredMemory;
use self::storage::StorageRing;
use super::system::{self, Descriptors, EventFd, RawAddress};
use super::{Completion, Driver, DurableMethod, Handle, OpenOptions, Operation, StorageRoute, StorageWish, Token, Wait};
use crate::reactor::mail::WakeUp;
use crate::reactor::slab::Slab;
use crate::reactor::time::Clock;

mod entry;
mod memory;
mod nvme;
mod route;
mod storage;
#[cfg(test)]
mod tests;

/// Entries of the submission ring; more in one turn take another call.
const ENTRIES: u32 = 1024;

/// Entries of the completion ring; the kernel keeps what overflows it.
const COMPLETIONS: u32 = 8192;

/// Files and sockets in the ring's own table; those beyond work by their ordinary numbers.
const FIXED_FILES: u32 = 1024;

/// How long a dropped driver waits for the kernel to give memory back.
const DROP_WAIT: Duration = Duration::from_secs(5);

/// How long one round of cancelling may take.
const CANCEL_WAIT: Timespec = Timespec::new().nsec(10_000_000);

/// The wake-up's completions carry this; operations carry twice their index, plus one for the linked sync.
const WAKE: u64 = u64::MAX;

/// A message from another ring that wakes this one carries this. A ring that took the number of one that has ended may get
/// it by mistake, and looks for work once too often.
const MESSAGE: u64 = u64::MAX - 1;

/// A message to another ring carries this and the place in `targets`; its completion is seen only when it failed.
const TO_TARGET: u64 = 1 << 63;

/// Rings that messages are sent to; others are woken by their eventfd.
const TARGETS_MAX: usize = 256;

/// See the module.
pub struct UringDriver {
    ring: IoUring,
    wake: Arc<UringWakeUp>,
    wake_armed: bool,
    /// Rings can wake each other.
    messages: bool,
    targets: Vec<Arc<dyn WakeUp>>,
    /// The kernel sets a flag in the ring when it has completions to deliver.
    tells_of_work: bool,
    descriptors: Descriptors<()>,
    operations: Slab<InFlight>,
    /// Receives of this turn: they go to the kernel behind all else, so that nothing is sent later because they are set up first.
    receives: Vec<u32>,
    done: Vec<Completion>,
    fixed_files: bool,
    memory: RegisteredMemory,
    /// The volume's own ring, if it has one.
    storage: Option<StorageRing>,
    stored: Vec<storage::Done>,
    #[expect(clippy::vec_box, reason = "the kernel knows their addresses: they move from here into operations as boxes")]
    spare: Vec<Box<Message>>,
}

/// Wakes a driver that sleeps: other rings with a message, other threads with an eventfd.
struct UringWakeUp {
    event: EventFd,
    /// The ring, until it is closed; then -1.
    ring: AtomicI32,
}

impl WakeUp for UringWakeUp {
    fn wake_up(&self) {
        self.event.wake_up();
    }

    fn uring(&self) -> Option<RawFd> {
        Some(self.ring.load(Ordering::Relaxed)).filter(|fd| *fd >= 0)
    }
}

impl UringDriver {
    /// Sets up a ring, with the flags that this kernel has.
    ///
    /// # Errors
    /// The operating system's: see [`refusal`] for what EPERM means.
    pub fn new() -> io::Result<UringDriver> {
        let build = |flags: fn(&mut io_uring::Builder)| {
            let mut builder = IoUring::builder();
            builder.setup_clamp().setup_cqsize(COMPLETIONS).dontfork();
            flags(&mut builder);
            builder.build(ENTRIES)
        };
        let invalid = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
        let mut ring =
            build(|flags| _ = flags.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all());
        if ring.as_ref().is_err_and(invalid) {
            ring = build(|flags| _ = flags.setup_coop_taskrun().setup_taskrun_flag());
        }
        let mut tells_of_work = true;
        if ring.as_ref().is_err_and(invalid) {
            tells_of_work = false;
            ring = build(|_| ());
        }
        let ring = ring?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel's io_uring is older than 5.11"));
        }
        let fixed_files = ring.submitter().register_files_sparse(FIXED_FILES).is_ok();
        let mut probe = io_uring::Probe::new();
        let probed = ring.submitter().register_probe(&mut probe).is_ok();
        let messages = probed && probe.is_supported(opcode::MsgRingData::CODE) && ring.params().is_feature_skip_cqe_on_success();
        let wake = UringWakeUp { event: EventFd::new()?, ring: AtomicI32::new(ring.as_raw_fd()) };
        let mut driver = UringDriver {
            ring,
            wake: Arc::new(wake),
            wake_armed: false,
            messages,
            targets: Vec::new(),
            tells_of_work,
            descriptors: Descriptors::new(),
            operations: Slab::default(),
            receives: Vec::new(),
            done: Vec::new(),
            fixed_files,
            memory: RegisteredMemory::default(),
            storage: None,
            stored: Vec::new(),
            spare: Vec::new(),
        };
        driver.arm_wake();
        Ok(driver)
    }

    fn arm_wake(&mut self) {
        let entry = opcode::PollAdd::new(Fd(self.wake.event.fd()), libc::POLLIN as u32).multi(true).build();
        self.push(&[entry.user_data(WAKE)]);
        self.wake_armed = true;
    }

    fn room(&mut self) -> usize {
        let submission = self.ring.submission();
        submission.capacity() - submission.len()
    }

    /// Puts entries, which may be linked, into the submission ring.
    fn push(&mut self, entries: &[squeue::Entry]) {
        while self.room() < entries.len() {
            if let Err(error) = self.enter(Wait::No) {
                assert!(is_passing(&error), "io_uring does not take submissions any more: {error}");
                self.reap();
            }
        }
        // SAFETY: all that the entries point to lives in `self.operations` until their last completion, at addresses that
        // do not change (heap buffers, boxed messages).
        unsafe { self.ring.submission().push_multiple(entries) }.expect("room was made");
    }

    /// Tells the kernel of submissions and lets it deliver completions, without waiting or with.
    fn enter(&mut self, wait: Wait) -> io::Result<()> {
        /// `struct io_uring_getevents_arg` of the kernel.
        #[repr(C)]
        struct Argument {
            signals: u64,
            signals_bytes: u32,
            min_wait_us: u32,
            time: u64,
        }
        const GET_EVENTS: u32 = 1;
        const EXTENDED_ARGUMENT: u32 = 8;
        let pending = self.ring.submission().len() as u32;
        let result = match wait {
            Wait::No => {
                // SAFETY: no argument is passed; the entries were checked by `push`.
                unsafe { self.ring.submitter().enter::<libc::sigset_t>(pending, 0, GET_EVENTS, None) }
            }
            Wait::Park(time) => {
                let time = time.map(|time| Timespec::new().sec(time.as_secs()).nsec(time.subsec_nanos()));
                let time = time.as_ref().map_or(0, |time| std::ptr::from_ref(time).addr() as u64);
                let argument = Argument { signals: 0, signals_bytes: 0, min_wait_us: 0, time };
                // SAFETY: the argument is the kernel's structure, and the time that it points to is live during the call.
                unsafe { self.ring.submitter().enter(pending, 1, GET_EVENTS | EXTENDED_ARGUMENT, Some(&argument)) }
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn add(&mut self, fd: OwnedFd, is_socket: bool) -> Handle {
        let raw = fd.as_raw_fd();
        let handle = self.descriptors.add(fd, is_socket);
        if self.fixed_files && handle.index < FIXED_FILES {
            self.fixed_files = self.ring.submitter().register_files_update(handle.index, &[raw]).is_ok();
        }
        handle
    }

    fn remove(&mut self, handle: Handle) {
        if self.fixed_files && handle.index < FIXED_FILES {
            self.fixed_files = self.ring.submitter().register_files_update(handle.index, &[-1]).is_ok();
        }
        if self.storage.as_ref().is_some_and(|storage| storage.file() == handle) {
            self.storage = None;
        }
        drop(self.descriptors.remove(handle));
    }

    fn next_completion(&mut self) -> Option<cqueue::Entry> {
        self.ring.completion().next()
    }

    /// Takes what has completed from the completion ring. True when there was anything.
    fn reap(&mut self) -> bool {
        let mut any = false;
        while let Some(entry) = self.next_completion() {
            any = true;
            match entry.user_data() {
                WAKE => {
                    self.wake.event.drain();
                    self.wake_armed &= cqueue::more(entry.flags());
                    continue;
                }
                MESSAGE => continue,
                failed if failed & TO_TARGET != 0 => {
                    // Its ring is full, has ended, or is of a kind that takes none.
                    self.messages &= entry.result() != -libc::EINVAL;
                    self.targets[(failed & !TO_TARGET) as usize].wake_up();
                    continue;
                }
                _ => {}
            }
            self.completed((entry.user_data() >> 1) as u32, entry.user_data() & 1 == 1, entry.result());
        }
        if !self.wake_armed {
            self.arm_wake();
        }
        any
    }

    /// Whether the kernel has completions to deliver, or submissions to take. Without the flag it does not say: then it is asked
    /// every time.
    fn has_kernel_work(&mut self) -> bool {
        let submission = self.ring.submission();
        !self.tells_of_work || !submission.is_empty() || submission.taskrun()
    }

    fn completed(&mut self, index: u32, is_linked_sync: bool, result: i32) {
        let in_flight = &mut self.operations[index];
        if let Operation::Write { file, durable: true, .. } = &in_flight.operation
            && !is_linked_sync
            && self.descriptors.get(*file).durable == DurableMethod::WriteThenSync
        {
            // Its sync follows: done, or cancelled because the write failed or fell short.
            in_flight.written = Some(result);
            return;
        }
        let written = in_flight.written;
        // An interrupted write goes back to whoever knows until when it may be tried.
        let is_write = matches!(in_flight.operation, Operation::Write { .. });
        if result == -libc::EINTR && !is_linked_sync && !is_write {
            return self.start(index);
        }
        let result = match written {
            Some(written) if written < 0 || result == -libc::ECANCELED => written,
            Some(_) if result < 0 => result,
            Some(written) => written,
            None => result,
        };
        let InFlight { token, operation, connecting, message, .. } = self.operations.remove(index);
        let mut result = usize::try_from(result).map_err(|_| -result);
        if let Some(handle) = connecting.or(operation.handle())
            && self.descriptors.end(handle)
        {
            self.remove(handle);
        }
        let mut opened = None;
        match (&operation, connecting) {
            (Operation::Connect { .. }, Some(handle)) if result.is_err() => self.remove(handle),
            (Operation::Connect { address }, Some(handle)) => opened = Some((handle, *address)),
            (Operation::Accept { .. }, _) => {
                if let (Ok(fd), Some(message)) = (&mut result, &message) {
                    let raw = std::mem::take(fd) as RawFd;
                    system::set_no_delay(raw);
                    // SAFETY: accept has just made this descriptor for us.
                    let stream = self.add(unsafe { OwnedFd::from_raw_fd(raw) }, true);
                    opened = Some((stream, message.address.to_address()));
                }
            }
            _ => {}
        }
        if let Some(message) = message
            && self.spare.len() < SPARE_MESSAGES
        {
            self.spare.push(message);
        }
        self.done.push(Completion { token, result, buffers: operation.into_buffers(), opened });
    }
}

/// Whether a call failed only for now: the completion ring is full, or the kernel is short of memory.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN | libc::ENOMEM))
}

/// Why io_uring is refused, in an operator's words: tells seccomp from the sysctl.
pub(crate) fn refusal(error: &io::Error) -> String {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    match (error.raw_os_error(), disabled.trim()) {
        (Some(libc::EPERM), "1" | "2") => {
            format!("sysctl kernel.io_uring_disabled is {}: set it to 0 to allow io_uring", disabled.trim())
        }
        (Some(libc::EPERM | libc::EACCES), _) => {
            "a seccomp filter (of the container's runtime, for example) refuses io_uring: allow io_uring_setup, io_uring_enter \
             and io_uring_register"
                .into()
        }
        (Some(libc::ENOSYS), _) => "the kernel has no io_uring, or a seccomp filter hides it".into(),
        (Some(libc::ENOMEM), _) => "RLIMIT_MEMLOCK is too low for its rings: raise it (ulimit -l)".into(),
        _ => error.to_string(),
    }
}

impl Driver for UringDriver {
    fn name(&self) -> &'static str {
        "uring"
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

    fn wake_other(&mut self, target: &Arc<dyn WakeUp>) {
        let Some(ring) = target.uring().filter(|_| self.messages) else { return target.wake_up() };
        let place = match self.targets.iter().position(|known| Arc::ptr_eq(known, target)) {
            Some(place) => place,
            None if self.targets.len() < TARGETS_MAX => {
                self.targets.push(target.clone());
                self.targets.len() - 1
            }
            None => return target.wake_up(),
        };
        let entry = opcode::MsgRingData::new(Fd(ring), 0, MESSAGE, None).build();
        self.push(&[entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(TO_TARGET | place as u64)]);
    }

    fn open(&mut self, path: &Path, how: OpenOptions) -> io::Result<Handle> {
        let fd = system::open_file(path, how)?;
        Ok(self.add(fd, false))
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
        let descriptor = self.descriptors.get(file);
        assert!(descriptor.in_flight == 0, "the method of durable writes changes only while none is in flight");
        descriptor.durable = method;
    }

    fn listen(&mut self, address: SocketAddr) -> io::Result<(Handle, SocketAddr)> {
        let (fd, address) = system::listen(address, false)?;
        Ok((self.add(fd, true), address))
    }

    fn adopt(&mut self, fd: OwnedFd) -> io::Result<Handle> {
        Ok(self.add(fd, false))
    }

    fn close(&mut self, handle: Handle) {
        // What was pushed for this handle must reach the kernel before its socket is shut down, to be ended by that.
        self.start_receives();
        if self.descriptors.get(handle).in_flight > 0
            && let Err(error) = self.enter(Wait::No)
        {
            assert!(is_passing(&error), "io_uring does not take submissions any more: {error}");
        }
        if self.descriptors.close(handle) {
            self.remove(handle);
        }
    }

    fn shutdown_send(&mut self, stream: Handle) {
        system::shutdown_send(self.descriptors.get(stream).fd.as_raw_fd());
    }

    unsafe fn register_memory(&mut self, pointer: *const u8, len: usize) -> io::Result<()> {
        // SAFETY: the caller promises that the memory stays mapped for as long as this driver lives.
        unsafe { self.memory.register(&self.ring.submitter(), pointer, len)? };
        if let Some(storage) = &mut self.storage {
            // SAFETY: as above; the ring goes with the driver.
            unsafe { storage.register(pointer, len) };
        }
        Ok(())
    }

    fn route(&mut self, file: Handle, wish: StorageWish) -> StorageRoute {
        self.find_route(file, wish)
    }

    fn storage_operations(&self) -> u64 {
        self.storage.as_ref().map_or(0, StorageRing::taken)
    }

    fn busy_poll(&mut self, time: Duration) -> io::Result<()> {
        let time_us = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        self.ring.submitter().register_napi(&mut Napi::new().set_busy_poll_timeout(time_us).set_prefer_busy_poll(true))
    }

    fn submit(&mut self, token: Token, operation: Operation) {
        if let Some(handle) = operation.handle() {
            self.descriptors.begin(handle);
        }
        if let Some(storage) = &mut self.storage
            && storage.takes(&operation)
        {
            let durable_method = self.descriptors.get(storage.file()).durable;
            return storage.submit(token, operation, durable_method);
        }
        let mut connecting = None;
        let message = match &operation {
            Operation::Connect { address } => {
                match system::socket_for(*address, false) {
                    Ok(fd) => {
                        let handle = self.add(fd, true);
                        self.descriptors.begin(handle);
                        connecting = Some(handle);
                    }
                    Err(number) => {
                        let buffers = operation.into_buffers();
                        self.done.push(Completion { token, result: Err(number), buffers, opened: None });
                        return;
                    }
                }
                Some(self.message(RawAddress::from(*address)))
            }
            Operation::Accept { .. } | Operation::SendVectored { .. } => Some(self.message(RawAddress::empty())),
            _ => None,
        };
        let receives = matches!(operation, Operation::Receive { .. });
        let index = self.operations.insert(InFlight { token, operation, connecting, message, written: None });
        if receives {
            self.receives.push(index);
        } else {
            self.start(index);
        }
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, wait: Wait) {
        self.start_receives();
        self.reap();
        self.drive_storage();
        let mut wait = if self.done.is_empty() { wait } else { Wait::No };
        if let (Wait::Park(time), Some(storage)) = (wait, &mut self.storage) {
            if storage.must_poll() {
                self.look_for_completions(time);
                wait = Wait::No;
            } else if !storage.watch() {
                wait = Wait::No;
            }
        }
        if wait != Wait::No || self.has_kernel_work() {
            if let Err(error) = self.enter(wait) {
                assert!(is_passing(&error), "io_uring fails: {error}");
            }
            self.reap();
        }
        if let (Wait::Park(_), Some(storage)) = (wait, &mut self.storage) {
            storage.unwatch();
            self.drive_storage();
        }
        completions.append(&mut self.done);
    }
}

impl Drop for UringDriver {
    fn drop(&mut self) {
        self.wake.ring.store(-1, Ordering::Relaxed);
        // It waits for what is in flight there.
        self.storage = None;
        self.start_receives();
        let deadline = Clock::System.now() + DROP_WAIT;
        while self.operations.len() > 0 && Clock::System.now() < deadline {
            if self.enter(Wait::No).is_ok() {
                // Ends what waits; what runs ends by itself. Both complete below. Nothing to cancel is not an error here.
                let _ = self.ring.submitter().register_sync_cancel(Some(CANCEL_WAIT), CancelBuilder::any());
            }
            self.reap();
            if self.operations.len() > 0 {
                let _ = self.enter(Wait::Park(Some(Duration::from_millis(10))));
                self.reap();
            }
        }
        if self.operations.len() > 0 {
            tracing::error!(operations = self.operations.len(), "the kernel keeps memory of a ring that ends: leaking it");
            std::mem::forget(std::mem::take(&mut self.operations));
        }
    }
}
