//! What each way of io_uring to send and receive on a socket costs, beside each other in one run, without anything of the engine's: which
//! of them the engine's driver uses is decided by what this measures (`docs/performance.md`).
//!
//! Ping-pong between two threads with a ring each, as the engine's are made. A way is used at both ends. Owned by the threads of a turn.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustydb::ids::BLOCK_SIZE;
use rustydb::interconnect::HEADER_BYTES;

use crate::Outcome;
use crate::report::Report;
use crate::samples::Samples;

/// Round trips of a turn, and those before them that don't count.
const TURN: usize = 200;
const WARM_UP: usize = 20;
/// Bytes of a receive buffer, as in the interconnect.
const RECEIVE_BYTES: usize = 128 * 1024;
/// Buffers that the kernel may choose from, and the bytes of each.
const PROVIDED: u16 = 16;
const PROVIDED_BYTES: usize = 16 * 1024;
/// Don't try to receive before there is something (`IORING_RECVSEND_POLL_FIRST`).
const POLL_FIRST: u16 = 1;
const SENT: u64 = 1;
const RECEIVED: u64 = 2;

/// One way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The next receive, then the send, in one call.
    ReceiveFirst,
    /// The send, then the next receive, in one call.
    SendFirst,
    /// The same, and the receive does not look before it waits.
    PollFirst,
    /// One receive for all, into buffers that the kernel chooses.
    Multishot,
    /// Registered memory, by reads and writes, which take it on sockets too.
    Registered,
    /// Sent without a copy.
    ZeroCopy,
    /// Sent without a copy from registered memory.
    ZeroCopyRegistered,
}

impl Way {
    /// All of them; each is compared with the first.
    pub const ALL: [Way; 7] = [
        Way::ReceiveFirst,
        Way::SendFirst,
        Way::PollFirst,
        Way::Multishot,
        Way::Registered,
        Way::ZeroCopy,
        Way::ZeroCopyRegistered,
    ];

    /// For a report.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Way::ReceiveFirst => "receive, then send",
            Way::SendFirst => "send, then receive",
            Way::PollFirst => "send, then receive that polls first",
            Way::Multishot => "send, multishot receive",
            Way::Registered => "write and read of registered memory",
            Way::ZeroCopy => "SEND_ZC, then receive",
            Way::ZeroCopyRegistered => "SEND_ZC of registered memory, then receive",
        }
    }
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rounds; in each, every way has its turn.
    pub rounds: u32,
    /// Sleep at once instead of looking for completions.
    pub overprovisioned: bool,
    /// Pin the two threads to the first two cores.
    pub pin: bool,
    /// An address of this host.
    pub address: IpAddr,
}

/// Memory on whole pages.
struct Pages(*mut u8, Layout);

impl Pages {
    fn new(bytes: usize) -> Pages {
        let layout = Layout::from_size_align(bytes, 4096).expect("a small size");
        // SAFETY: the size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        assert!(!start.is_null(), "no memory");
        Pages(start, layout)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this layout, freed once.
        unsafe { dealloc(self.0, self.1) };
    }
}

/// One end of a connection.
struct End<'a> {
    ring: IoUring,
    fd: Fd,
    way: Way,
    sleeps: bool,
    out: &'a Pages,
    input: &'a Pages,
    provided: &'a Pages,
    armed: bool,
    received: usize,
    /// Completions of sends that are to come, notifications included.
    sends: u32,
}

impl<'a> End<'a> {
    fn new(stream: &TcpStream, way: Way, sleeps: bool, pages: &'a [Pages; 3]) -> Outcome<End<'a>> {
        let [out, input, provided] = pages;
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_cqsize(1024);
        let ring = builder.build(64)?;
        let pieces = [out, input].map(|pages| libc::iovec { iov_base: pages.0.cast(), iov_len: pages.1.size() });
        // SAFETY: the pages outlive the ring, which is dropped with this.
        unsafe { ring.submitter().register_buffers(&pieces) }?;
        let mut end =
            End { ring, fd: Fd(stream.as_raw_fd()), way, sleeps, out, input, provided, armed: false, received: 0, sends: 0 };
        if way == Way::Multishot {
            // SAFETY: as above; the pages are as long as the entries, and aligned to a page.
            unsafe { end.ring.submitter().register_buf_ring_with_flags(provided.0 as u64, PROVIDED, 0, 0) }?;
            (0..PROVIDED).for_each(|buffer| end.provide(buffer));
        }
        Ok(end)
    }

    /// Gives a buffer to the kernel, behind the others.
    fn provide(&mut self, buffer: u16) {
        let ring = self.provided.0.cast::<BufRingEntry>();
        // SAFETY: the entries stand at the beginning of the pages, the buffers behind their first page; the tail lies in the first
        // entry, and only this thread writes it.
        unsafe {
            let tail = &*BufRingEntry::tail(ring).cast::<AtomicU16>();
            let at = tail.load(Ordering::Relaxed);
            let entry = &mut *ring.add(usize::from(at % PROVIDED));
            entry.set_addr(self.provided.0 as u64 + 4096 + u64::from(buffer) * PROVIDED_BYTES as u64);
            entry.set_len(PROVIDED_BYTES as u32);
            entry.set_bid(buffer);
            tail.store(at.wrapping_add(1), Ordering::Release);
        }
    }

    fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: what entries point to are the pages, which outlive the ring.
        unsafe { self.ring.submission().push(&entry) }.expect("there is room for a few");
    }

    fn arm(&mut self) {
        if std::mem::replace(&mut self.armed, true) {
            return;
        }
        let (start, length) = (self.input.0, RECEIVE_BYTES as u32);
        let entry = match self.way {
            Way::Multishot => opcode::RecvMulti::new(self.fd, 0).build(),
            Way::Registered => opcode::ReadFixed::new(self.fd, start, length, 1).build(),
            Way::PollFirst => opcode::Recv::new(self.fd, start, length).ioprio(POLL_FIRST).build(),
            _ => opcode::Recv::new(self.fd, start, length).build(),
        };
        self.push(entry.user_data(RECEIVED));
    }

    fn send(&mut self, bytes: usize) {
        let (start, length, flags) = (self.out.0.cast_const(), bytes as u32, libc::MSG_NOSIGNAL | libc::MSG_WAITALL);
        let entry = match self.way {
            Way::Registered => opcode::WriteFixed::new(self.fd, start, length, 0).build(),
            Way::ZeroCopy => opcode::SendZc::new(self.fd, start, length).flags(flags).build(),
            Way::ZeroCopyRegistered => opcode::SendZc::new(self.fd, start, length).buf_index(Some(0)).flags(flags).build(),
            _ => opcode::Send::new(self.fd, start, length).flags(flags).build(),
        };
        self.sends += 1;
        self.push(entry.user_data(SENT));
    }

    /// Sends so many bytes and waits for others.
    fn step(&mut self, out: usize, wanted: usize) -> Outcome<()> {
        if self.way == Way::ReceiveFirst {
            self.arm();
        }
        if out > 0 {
            self.send(out);
        }
        self.arm();
        while self.received < wanted || self.sends > 0 {
            self.enter()?;
            while let Some(done) = { self.ring.completion().next() } {
                self.take(&done)?;
            }
            if self.received < wanted {
                self.arm();
            }
        }
        self.received -= wanted;
        Ok(())
    }

    fn take(&mut self, done: &cqueue::Entry) -> Outcome<()> {
        let result = done.result();
        if result < 0 {
            return Err(std::io::Error::from_raw_os_error(-result).into());
        }
        if done.user_data() == SENT {
            // Of two completions of a send without a copy, the first announces the second.
            self.sends -= u32::from(!cqueue::more(done.flags()));
            return Ok(());
        }
        if result == 0 {
            return Err("the other end has gone".into());
        }
        self.received += result as usize;
        if let Some(buffer) = cqueue::buffer_select(done.flags()) {
            self.provide(buffer);
        }
        self.armed = cqueue::more(done.flags());
        Ok(())
    }

    fn enter(&mut self) -> Outcome<()> {
        const GET_EVENTS: u32 = 1;
        loop {
            let (pending, work) = {
                let submission = self.ring.submission();
                (submission.len() as u32, submission.taskrun())
            };
            if pending > 0 || work || self.sleeps {
                let wait = u32::from(self.sleeps);
                // SAFETY: no argument is passed; what the entries point to is live.
                unsafe { self.ring.submitter().enter::<libc::sigset_t>(pending, wait, GET_EVENTS, None) }?;
            }
            if !self.ring.completion().is_empty() {
                return Ok(());
            }
            std::hint::spin_loop();
        }
    }
}

fn pin_to(core: usize, wanted: bool) {
    if wanted {
        // SAFETY: a plain structure of ours, which outlives the call. Where it is refused the thread runs anywhere.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(core, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
        }
    }
}

fn pages() -> [Pages; 3] {
    [BLOCK_SIZE * 2, RECEIVE_BYTES, 4096 + usize::from(PROVIDED) * PROVIDED_BYTES].map(Pages::new)
}

/// Round trips of a way, one after the other.
fn turn(options: &Options, way: Way, there: usize, back: usize) -> Outcome<Samples> {
    let listener = TcpListener::bind((options.address, 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let (sleeps, pin) = (options.overprovisioned, options.pin);
    // The other thread begins on this one's core, and must have left it before this one looks for completions there.
    let apart = Barrier::new(2);
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| -> Outcome<()> {
            pin_to(1, pin);
            apart.wait();
            let pages = pages();
            let mut end = End::new(&server, way, sleeps, &pages)?;
            end.step(0, there)?;
            (1..WARM_UP + TURN).try_for_each(|_| end.step(back, there))?;
            end.step(back, 0)
        });
        apart.wait();
        pin_to(0, pin);
        let pages = pages();
        let mut end = End::new(&client, way, sleeps, &pages)?;
        let mut samples = Samples::new();
        for round in 0..WARM_UP + TURN {
            let began = Instant::now();
            end.step(there, back)?;
            if round >= WARM_UP {
                samples.record_alone(began.elapsed());
            }
        }
        answering.join().map_err(|_| "the other end has panicked")??;
        Ok(samples)
    })
}

/// Takes the figures.
///
/// # Errors
/// When there is no port, or the kernel knows one of the ways not.
pub fn run(options: &Options) -> Outcome<Report> {
    let block = HEADER_BYTES + BLOCK_SIZE;
    let sizes = [(HEADER_BYTES, HEADER_BYTES), (HEADER_BYTES, block), (block, block)];
    let mut samples = sizes.map(|_| Way::ALL.map(|_| Samples::new()));
    for _ in 0..options.rounds {
        for ((there, back), samples) in sizes.into_iter().zip(&mut samples) {
            for (way, samples) in Way::ALL.into_iter().zip(samples) {
                samples.add(&turn(options, way, there, back)?);
            }
        }
    }
    let mut report = Report::new("ways");
    report.setting("threads", if options.overprovisioned { "sleep at once" } else { "look for completions" });
    report.setting("pinned", options.pin);
    report.setting("rounds", options.rounds);
    report.condition(format!("closed loop, one at a time, in turns of {TURN}; both ends by the same way; bare io_uring"));
    for ((there, back), samples) in sizes.into_iter().zip(&samples) {
        let mut first = None;
        for (way, samples) in Way::ALL.into_iter().zip(samples) {
            report.series(samples.series(format!("{there} bytes there, {back} back: {}", way.words())));
            let first = *first.get_or_insert(samples.median_ns());
            if way != Way::ReceiveFirst {
                let name = format!("{there} there, {back} back: {} / {}, medians", way.words(), Way::ReceiveFirst.words());
                report.figure(name, samples.median_ns() / first, "times", None);
            }
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_carries_the_bytes() {
        let options = Options { rounds: 1, overprovisioned: true, pin: false, address: [127, 0, 0, 1].into() };
        for way in Way::ALL {
            let counted = turn(&options, way, HEADER_BYTES, HEADER_BYTES + BLOCK_SIZE).map(|samples| samples.count());
            assert!(counted.as_ref().is_ok_and(|count| *count == TURN as u64), "{way:?}: {counted:?}");
        }
    }
}
