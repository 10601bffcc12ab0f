//! The driver's second ring: the ways that a volume on a block device has besides the plain one.
//!
//! *Polled* (`IORING_SETUP_IOPOLL`): the device raises no interrupt, whoever waits looks for the completion; so as long as anything
//! is in flight here the shard does not sleep. *Passthrough*: NVMe's own commands instead of the block layer's requests, see
//! [`super::nvme`]. Both together are possible. One file of a driver, the volume, may go by this ring; what the ring can't do
//! (a sync without passthrough, a misaligned transfer) goes by the other.
//!
//! Owned by the shard's thread like the driver. Operations stay here with their memory until their completion. The file is
//! registered with the ring even if its commands go to another: the locks that belong to the open file then outlive a killed
//! process until its last command has ended (docs/decisions/0002-former-lives.md). A write is never sent to the device twice from
//! here, nor its rest after a part of it: who holds a lease has to look at the clock before that, so it goes back to him.

use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fixed};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::entry::length;
use super::memory::RegisteredMemory;
use super::nvme::{self, Namespace, Outcome};
use super::{CANCEL_WAIT, DROP_WAIT, is_passing};
use crate::reactor::buffer::IoBuf;
use crate::reactor::driver::{Buffers, DurableMethod, Handle, Operation, Token};
use crate::reactor::slab::Slab;
use crate::reactor::time::Clock;

/// Entries of the submission ring; more in one turn take another call.
const ENTRIES: u32 = 512;

/// Entries of the completion ring; the kernel keeps what overflows it.
const COMPLETIONS: u32 = 4096;

/// Places in the ring's table of files.
const BLOCK_DEVICE: Fixed = Fixed(0);
const CHARACTER_DEVICE: Fixed = Fixed(1);

/// How often a read or a flush is sent again that failed in passing.
const ATTEMPTS_MAX: u8 = 5;

/// How long a read that tries the ring out may take, and how many bytes it reads.
const PROBE_WAIT: Duration = Duration::from_secs(5);
const PROBE_BYTES: usize = 8192;

/// Bytes of registered memory that NVMe's commands are tried out with: more pages than a command may have segments.
const PROBE_MEMORY_BYTES: usize = 4 << 20;

/// With room for NVMe's commands, and for their results.
type Ring = IoUring<squeue::Entry128, cqueue::Entry32>;

/// See the module.
pub(super) struct StorageRing {
    ring: Ring,
    file: Handle,
    namespace: Option<Rc<Namespace>>,
    polled: bool,
    memory: RegisteredMemory,
    /// NVMe's commands can name registered memory here.
    commands_name_memory: bool,
    operations: Slab<Running>,
    done: Vec<Done>,
    /// Operations taken since the start.
    taken: u64,
}

struct Running {
    token: Token,
    operation: Operation,
    durable_method: DurableMethod,
    /// Bytes moved by earlier commands.
    moved: usize,
    /// The write is done, its flush is on its way.
    flushing: bool,
    attempts: u8,
}

/// What has completed.
pub(super) struct Done {
    pub(super) token: Token,
    pub(super) operation: Operation,
    pub(super) result: Result<usize, i32>,
    /// A durable write that is whole, and durable only after a sync, which this ring can't do.
    pub(super) sync_after: bool,
}

impl StorageRing {
    /// A ring for the file of `block`.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn new(file: Handle, block: RawFd, namespace: Option<Rc<Namespace>>, polled: bool) -> io::Result<StorageRing> {
        let build = |deferred: bool| {
            let mut builder = Ring::builder();
            builder.setup_clamp().setup_cqsize(COMPLETIONS).dontfork().setup_submit_all().setup_taskrun_flag();
            if deferred {
                builder.setup_single_issuer().setup_defer_taskrun();
            } else {
                builder.setup_coop_taskrun();
            }
            if polled {
                builder.setup_iopoll();
            }
            builder.build(ENTRIES)
        };
        // A polled command completes by task work. That of a deferred ring is run by nobody once its process is killed: Linux 6.12 then
        // polls for ever, and never closes the ring's files. Seen in the virtual machine (hw-tests/storage.rs).
        let deferred = !(polled && namespace.is_some());
        let ring = match build(deferred) {
            Err(error) if deferred && error.raw_os_error() == Some(libc::EINVAL) => build(false)?,
            ring => ring?,
        };
        let mut files = vec![block];
        files.extend(namespace.as_ref().map(|namespace| namespace.device()));
        ring.submitter().register_files(&files)?;
        Ok(StorageRing {
            ring,
            file,
            namespace,
            polled,
            memory: RegisteredMemory::default(),
            commands_name_memory: true,
            operations: Slab::default(),
            done: Vec::new(),
            taken: 0,
        })
    }

    /// Has `event` signalled when something completes while [`watch`](Self::watch) is in force.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn tell(&mut self, event: RawFd) -> io::Result<()> {
        if !self.polled {
            self.ring.submitter().register_eventfd(event)?;
            self.ring.completion().disable_eventfd();
        }
        Ok(())
    }

    /// The file that goes by this ring.
    pub(super) fn file(&self) -> Handle {
        self.file
    }

    /// Whether completions have to be looked for now: the shard must not sleep.
    pub(super) fn must_poll(&self) -> bool {
        self.polled && self.operations.len() > 0
    }

    /// Operations taken since the start.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// Registers memory with this ring too, if that can be had: without, what goes by it is a little slower.
    ///
    /// # Safety
    /// The memory must stay mapped for as long as the ring lives.
    pub(super) unsafe fn register(&mut self, pointer: *const u8, len: usize) {
        // SAFETY: the caller promises what is asked for.
        if let Err(error) = unsafe { self.memory.register(&self.ring.submitter(), pointer, len) } {
            tracing::info!(%error, bytes = len, "memory is not registered with the volume's own ring; raise RLIMIT_MEMLOCK for a little speed");
        }
    }

    /// Whether the operation goes by this ring.
    pub(super) fn takes(&self, operation: &Operation) -> bool {
        match operation {
            Operation::Read { file, offset, buffer } | Operation::Write { file, offset, buffer, .. } if *file == self.file => {
                let fits = |namespace: &Rc<Namespace>| namespace.fits(*offset, buffer.as_ptr(), buffer.len());
                self.namespace.as_ref().map_or(!buffer.is_empty(), fits)
            }
            Operation::Sync { file } => *file == self.file && self.namespace.is_some(),
            _ => false,
        }
    }

    /// Takes an operation over, which [`takes`](Self::takes) has approved of. It reaches the kernel with the next
    /// [`drive`](Self::drive).
    pub(super) fn submit(&mut self, token: Token, operation: Operation, durable_method: DurableMethod) {
        self.taken += 1;
        let running = Running { token, operation, durable_method, moved: 0, flushing: false, attempts: 0 };
        let index = self.operations.insert(running);
        self.start(index);
    }

    /// Sends the next request of an operation.
    fn start(&mut self, index: u32) {
        let entry = match self.namespace.clone() {
            Some(namespace) => self.command(index, &namespace),
            None => Some(self.request(index)),
        };
        match entry {
            Some(entry) => self.push(&entry.user_data(u64::from(index))),
            None => {
                let Running { operation, moved, .. } = &self.operations[index];
                let is_write = matches!(operation, Operation::Write { .. });
                // At the end of the device; as the block layer says it.
                let result = if is_write && *moved == 0 { Err(libc::ENOSPC) } else { Ok(*moved) };
                self.finish(index, result);
            }
        }
    }

    /// The block layer's request.
    fn request(&mut self, index: u32) -> squeue::Entry128 {
        let Running { operation, durable_method, .. } = &mut self.operations[index];
        let entry = match operation {
            Operation::Read { offset, buffer, .. } => {
                let (pointer, len) = (buffer.as_mut_ptr(), length(buffer.len()));
                match self.memory.find(pointer, buffer.len()) {
                    Some(piece) => opcode::ReadFixed::new(BLOCK_DEVICE, pointer, len, piece).offset(*offset).build(),
                    None => opcode::Read::new(BLOCK_DEVICE, pointer, len).offset(*offset).build(),
                }
            }
            Operation::Write { offset, buffer, durable, .. } => {
                let (pointer, len) = (buffer.as_ptr(), length(buffer.len()));
                let at_once = *durable && *durable_method == DurableMethod::Dsync;
                let flags = if at_once { libc::RWF_DSYNC } else { 0 };
                match self.memory.find(pointer, buffer.len()) {
                    Some(piece) => {
                        opcode::WriteFixed::new(BLOCK_DEVICE, pointer, len, piece).offset(*offset).rw_flags(flags).build()
                    }
                    None => opcode::Write::new(BLOCK_DEVICE, pointer, len).offset(*offset).rw_flags(flags).build(),
                }
            }
            _ => unreachable!("only transfers are taken"),
        };
        entry.into()
    }

    /// NVMe's command; `None` when the device ends here.
    fn command(&mut self, index: u32, namespace: &Namespace) -> Option<squeue::Entry128> {
        let Running { operation, durable_method, moved, flushing, .. } = &mut self.operations[index];
        let find =
            |pointer: *const u8, bytes: u32| self.memory.find(pointer, bytes as usize).filter(|_| self.commands_name_memory);
        let (command, memory) = match operation {
            Operation::Read { offset, buffer, .. } => {
                let (place, rest) = (*offset + *moved as u64, &mut buffer.as_mut_slice()[*moved..]);
                let bytes = namespace.part(place, rest.len());
                if bytes == 0 {
                    return None;
                }
                let pointer = rest.as_mut_ptr();
                (namespace.read(place, pointer, bytes), find(pointer, bytes))
            }
            Operation::Write { .. } | Operation::Sync { .. } if *flushing => (namespace.flush(), None),
            Operation::Write { offset, buffer, durable, .. } => {
                let (pointer, bytes) = (buffer.as_ptr(), namespace.part(*offset, buffer.len()));
                if bytes == 0 {
                    return None;
                }
                let at_once = *durable && *durable_method == DurableMethod::Dsync;
                (namespace.write(*offset, pointer, bytes, at_once), find(pointer, bytes))
            }
            Operation::Sync { .. } => (namespace.flush(), None),
            _ => unreachable!("only transfers and flushes are taken"),
        };
        Some(opcode::UringCmd80::new(CHARACTER_DEVICE, nvme::URING_COMMAND).cmd(command).buf_index(memory).build())
    }

    fn push(&mut self, entry: &squeue::Entry128) {
        loop {
            // SAFETY: what the entry points to lives in `self.operations` until its completion, at addresses that do not change.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            self.enter();
        }
    }

    /// Tells the kernel of submissions, lets it deliver completions, and looks for those that are polled for.
    fn enter(&mut self) {
        const GET_EVENTS: u32 = 1;
        let pending = self.ring.submission().len() as u32;
        // SAFETY: no argument is passed; the entries were checked by `push`.
        let result = unsafe { self.ring.submitter().enter::<libc::sigset_t>(pending, 0, GET_EVENTS, None) };
        if let Err(error) = result {
            let passing = is_passing(&error) || matches!(error.raw_os_error(), Some(libc::EINTR | libc::ETIME));
            assert!(passing, "the volume's io_uring fails: {error}");
        }
    }

    /// Passes on what was submitted and takes what has completed.
    pub(super) fn drive(&mut self, done: &mut Vec<Done>) {
        if self.operations.len() > 0 {
            let submission = self.ring.submission();
            let ask = !submission.is_empty() || submission.taskrun() || submission.cq_overflow();
            drop(submission);
            if ask || self.polled {
                self.enter();
            }
            self.reap();
            // What goes on with another request does so at once.
            if !self.ring.submission().is_empty() {
                self.enter();
            }
        }
        done.append(&mut self.done);
    }

    /// From now on completions are signalled by the event. `false`: there are some already, or the kernel has not taken all submissions
    /// yet (it may be short of memory), so don't sleep.
    pub(super) fn watch(&mut self) -> bool {
        assert!(!self.must_poll(), "nobody would look for the completions");
        if self.polled || self.operations.len() == 0 {
            return true;
        }
        self.ring.completion().enable_eventfd();
        // The kernel says that there is work before it looks whether it is to signal; this side the other way round.
        fence(Ordering::SeqCst);
        let submission = self.ring.submission();
        let has_work = !submission.is_empty() || submission.taskrun();
        drop(submission);
        !has_work && self.ring.completion().is_empty()
    }

    /// No more signals: the shard is awake and looks by itself.
    pub(super) fn unwatch(&mut self) {
        if !self.polled {
            self.ring.completion().disable_eventfd();
        }
    }

    fn reap(&mut self) {
        loop {
            // One at a time: what a completion leads to needs the ring.
            let Some(entry) = self.ring.completion().next() else { return };
            self.completed(entry.user_data() as u32, entry.result());
        }
    }

    fn completed(&mut self, index: u32, result: i32) {
        let Running { operation, durable_method, moved, flushing, attempts, .. } = &mut self.operations[index];
        let is_write = matches!(operation, Operation::Write { .. }) && !*flushing;
        let outcome = match &self.namespace {
            Some(_) => nvme::outcome(result),
            None if result >= 0 => Outcome::Done,
            None if matches!(-result, libc::EINTR | libc::EAGAIN) => Outcome::Again,
            None => Outcome::Failed(-result),
        };
        match outcome {
            Outcome::Failed(number) => return self.finish(index, Err(number)),
            // A write goes back to whoever knows until when it may be tried.
            Outcome::Again if is_write => return self.finish(index, Err(libc::EINTR)),
            Outcome::Again if *attempts < ATTEMPTS_MAX => {
                *attempts += 1;
                return self.start(index);
            }
            Outcome::Again => return self.finish(index, Err(libc::EIO)),
            Outcome::Done => *attempts = 0,
        }
        let Some(namespace) = &self.namespace else { return self.finish(index, Ok(result as usize)) };
        match operation {
            Operation::Read { offset, buffer, .. } => {
                *moved += namespace.part(*offset + *moved as u64, buffer.len() - *moved) as usize;
                if *moved == buffer.len() {
                    let moved = *moved;
                    self.finish(index, Ok(moved));
                } else {
                    self.start(index);
                }
            }
            Operation::Write { .. } if *flushing => {
                let moved = *moved;
                self.finish(index, Ok(moved));
            }
            Operation::Write { offset, buffer, durable, .. } => {
                *moved = namespace.part(*offset, buffer.len()) as usize;
                // A part is made durable with the last one.
                *flushing = *durable && *durable_method == DurableMethod::WriteThenSync && *moved == buffer.len();
                if *flushing {
                    self.start(index);
                } else {
                    let moved = *moved;
                    self.finish(index, Ok(moved));
                }
            }
            _ => self.finish(index, Ok(0)),
        }
    }

    fn finish(&mut self, index: u32, result: Result<usize, i32>) {
        let Running { token, operation, durable_method, .. } = self.operations.remove(index);
        let sync_after = match &operation {
            Operation::Write { durable: true, buffer, .. } => {
                self.namespace.is_none() && durable_method == DurableMethod::WriteThenSync && result == Ok(buffer.len())
            }
            _ => false,
        };
        self.done.push(Done { token, operation, result, sync_after });
    }

    /// Reads the beginning of the file by this ring and compares it with what a plain read finds; commands into registered memory, too,
    /// which is not used for them if that fails. Before any memory is registered.
    ///
    /// # Errors
    /// What is wrong, for an operator. The ring is not to be used then.
    pub(super) fn probe(&mut self, block: RawFd) -> Result<(), String> {
        self.try_out(block, IoBuf::aligned(PROBE_BYTES))?;
        if self.namespace.is_some()
            && let Err(why) = self.probe_registered(block)
        {
            if self.operations.len() > 0 {
                return Err(why);
            }
            self.commands_name_memory = false;
            tracing::info!("NVMe commands don't use registered memory: {why}");
        }
        // Nothing may be left of what was tried: the table is given up, or the ring with it.
        if self.memory.pieces().is_empty() {
            return Ok(());
        }
        self.memory = RegisteredMemory::default();
        self.ring.submitter().unregister_buffers().map_err(|error| format!("it keeps memory: {error}"))
    }

    /// Reads into the middle of much more memory. Linux before 6.1 takes no command into registered memory; several up to 6.12 take
    /// only what fills all of a registration, and refuse the others with EINVAL (`blk_rq_map_user_bvec`).
    fn probe_registered(&mut self, block: RawFd) -> Result<(), String> {
        let memory = IoBuf::aligned(PROBE_MEMORY_BYTES);
        // SAFETY: whoever calls takes the table from the ring before it is used for anything else.
        let registered = unsafe { self.memory.register(&self.ring.submitter(), memory.as_ptr(), memory.len()) };
        registered.map_err(|error| error.to_string())?;
        self.try_out(block, memory.slice(PROBE_MEMORY_BYTES / 2..PROBE_MEMORY_BYTES / 2 + PROBE_BYTES))
    }

    fn try_out(&mut self, block: RawFd, mut buffer: IoBuf) -> Result<(), String> {
        // What is there may be changed meanwhile, by another node: then it is looked at again.
        for _ in 0..3 {
            let before = plain_read(block)?;
            buffer = self.read_now(buffer)?;
            let after = plain_read(block)?;
            if buffer.as_slice() == before.as_slice() || buffer.as_slice() == after.as_slice() {
                return Ok(());
            }
        }
        Err("what it reads is not what a plain read finds there".into())
    }

    fn read_now(&mut self, buffer: IoBuf) -> Result<IoBuf, String> {
        let operation = Operation::Read { file: self.file, offset: 0, buffer };
        if !self.takes(&operation) {
            return Err("it does not take a read of 8,192 bytes".into());
        }
        self.submit(Token(0), operation, DurableMethod::Dsync);
        let until = Clock::System.now() + PROBE_WAIT;
        let mut done = Vec::new();
        loop {
            self.drive(&mut done);
            match done.pop() {
                Some(Done { operation, result: Ok(PROBE_BYTES), .. }) => {
                    let Buffers::One(buffer) = operation.into_buffers() else { unreachable!("a read has one buffer") };
                    return Ok(buffer);
                }
                Some(Done { result: Ok(bytes), .. }) => return Err(format!("a read of {PROBE_BYTES} bytes gave {bytes}")),
                Some(Done { result: Err(number), .. }) => {
                    return Err(format!("a read failed: {}", io::Error::from_raw_os_error(number)));
                }
                None if Clock::System.now() > until => return Err(format!("a read did not end within {PROBE_WAIT:?}")),
                None => std::thread::yield_now(),
            }
        }
    }
}

fn plain_read(block: RawFd) -> Result<IoBuf, String> {
    let mut buffer = IoBuf::aligned(PROBE_BYTES);
    // SAFETY: the buffer is live and as long as said.
    let count = unsafe { libc::pread(block, buffer.as_mut_ptr().cast(), PROBE_BYTES, 0) };
    if count != PROBE_BYTES as isize {
        return Err(format!("a plain read gave {count} bytes: {}", io::Error::last_os_error()));
    }
    Ok(buffer)
}

impl Drop for StorageRing {
    fn drop(&mut self) {
        let (deadline, mut done) = (Clock::System.now() + DROP_WAIT, Vec::new());
        while self.operations.len() > 0 && Clock::System.now() < deadline {
            self.drive(&mut done);
            if self.operations.len() > 0 && !self.polled {
                // Nothing to cancel is not an error here. Transfers on their way end by themselves.
                let _ = self.ring.submitter().register_sync_cancel(Some(CANCEL_WAIT), CancelBuilder::any());
            }
        }
        if self.operations.len() > 0 {
            tracing::error!(operations = self.operations.len(), "the kernel keeps memory of a ring that ends: leaking it");
            std::mem::forget(std::mem::take(&mut self.operations));
        }
    }
}
