//! A ring of messages in memory that two processes share: one puts in, one takes out.
//!
//! Positions count bytes from the beginning of time; each side keeps its own position to itself and only tells the other.
//! What the other tells is copied once and held against what can be; a lie is a [`Broken`] ring, and never an access outside
//! of it. All access is by whole atomic words, so that a peer that writes where it must not changes values and nothing else.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use memmap2::{MmapOptions, MmapRaw};

use super::wire::MESSAGE_BYTES_MAX;

/// Bytes of each of the two rings: a power of two, and room for a longest message and more.
pub const RING_BYTES: usize = 1 << 20;
/// The first bytes of the memory.
const MAGIC: u64 = u64::from_le_bytes(*b"RdbRing\n");
/// This layout.
const VERSION: u64 = 1;
/// Where a ring's words stand, counted in words from its beginning; each in a cache line of its own.
const TAIL: usize = 0;
const HEAD: usize = 8;
const CONSUMER_SLEEPS: usize = 16;
const PRODUCER_SLEEPS: usize = 24;
/// Words of the memory's head, and of each ring's.
const HEAD_WORDS: usize = 8;
const CONTROL_WORDS: usize = 32;
const RING_WORDS: usize = RING_BYTES / 8;
const MEMORY_BYTES: usize = (HEAD_WORDS + 2 * (CONTROL_WORDS + RING_WORDS)) * 8;

const _: () = assert!(RING_BYTES.is_power_of_two() && RING_BYTES >= 2 * (MESSAGE_BYTES_MAX + 8));

/// The peer has told what can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(pub(super) &'static str);

/// The memory of a pair of rings.
pub(super) struct Memory(MmapRaw);

/// Which ring of the pair.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Requests,
    Replies,
}

impl Memory {
    /// Makes one that nobody can cut short, and the descriptor by which another process maps it.
    pub(super) fn create() -> io::Result<(Arc<Memory>, OwnedFd)> {
        // SAFETY: the name is a string that ends with a zero; the descriptor that comes back is nobody's yet.
        let file = unsafe {
            match libc::memfd_create(c"rustydb rings".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) {
                -1 => return Err(io::Error::last_os_error()),
                descriptor => File::from_raw_fd(descriptor),
            }
        };
        // All pages are there before the first store: memory that is full is an error here and no signal later.
        // SAFETY: a descriptor that we own.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, MEMORY_BYTES as libc::off_t) } {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: a descriptor that we own.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let memory = Memory(MmapOptions::new().len(MEMORY_BYTES).map_raw(&file)?);
        memory.word(0).store(MAGIC, Ordering::Relaxed);
        memory.word(1).store(VERSION, Ordering::Relaxed);
        memory.word(2).store(RING_BYTES as u64, Ordering::Release);
        Ok((Arc::new(memory), file.into()))
    }

    /// Maps the one that a server has handed over.
    pub(super) fn open(descriptor: OwnedFd) -> io::Result<Arc<Memory>> {
        let file = File::from(descriptor);
        let other = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        if file.metadata()?.len() != MEMORY_BYTES as u64 {
            return Err(other("the server's rings have another size: use the client of its own release"));
        }
        let memory = Memory(MmapOptions::new().len(MEMORY_BYTES).map_raw(&file)?);
        let head = [0, 1, 2].map(|word| memory.word(word).load(Ordering::Acquire));
        if head != [MAGIC, VERSION, RING_BYTES as u64] {
            return Err(other("the server's rings have another layout: use the client of its own release"));
        }
        Ok(Arc::new(memory))
    }

    fn word(&self, number: usize) -> &AtomicU64 {
        assert!(number < MEMORY_BYTES / 8, "a word outside of the rings");
        // SAFETY: within the mapping, which is on a whole page and lives as long as self; no other access to it than by
        // atomic words, and every bit pattern is one.
        unsafe { &*self.0.as_ptr().cast::<AtomicU64>().add(number) }
    }
}

/// One ring of a memory.
#[derive(Clone)]
struct Ring {
    memory: Arc<Memory>,
    first: usize,
}

impl Ring {
    fn of(memory: &Arc<Memory>, which: Which) -> Ring {
        let first = HEAD_WORDS + if which == Which::Requests { 0 } else { CONTROL_WORDS + RING_WORDS };
        Ring { memory: memory.clone(), first }
    }

    fn control(&self, word: usize) -> &AtomicU64 {
        self.memory.word(self.first + word)
    }

    fn data(&self, position: u64) -> &AtomicU64 {
        let word = (position / 8) as usize % RING_WORDS;
        self.memory.word(self.first + CONTROL_WORDS + word)
    }

    /// Whether the other side has said that it sleeps; it is taken to be woken then.
    fn must_wake(&self, sleeper: usize) -> bool {
        fence(Ordering::SeqCst);
        self.control(sleeper).load(Ordering::Relaxed) != 0 && self.control(sleeper).swap(0, Ordering::SeqCst) != 0
    }

    fn say_sleeps(&self, sleeper: usize, sleeps: bool) {
        self.control(sleeper).store(u64::from(sleeps), Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }
}

/// Bytes that a message takes: its length, and itself on whole words.
fn room_for(length: usize) -> u64 {
    8 + length.next_multiple_of(8) as u64
}

/// The side that puts in.
pub(super) struct Producer {
    ring: Ring,
    tail: u64,
}

impl Producer {
    /// Of a fresh memory.
    pub(super) fn new(memory: &Arc<Memory>, which: Which) -> Producer {
        Producer { ring: Ring::of(memory, which), tail: 0 }
    }

    /// Puts a message in; false when there is no room now.
    pub(super) fn push(&mut self, message: &[u8]) -> Result<bool, Broken> {
        assert!(message.len() <= MESSAGE_BYTES_MAX, "a message of {} bytes", message.len());
        let head = self.ring.control(HEAD).load(Ordering::Acquire);
        let used = self.tail.wrapping_sub(head);
        if used > RING_BYTES as u64 {
            return Err(Broken("it has taken more out of a ring than was put in"));
        }
        if RING_BYTES as u64 - used < room_for(message.len()) {
            return Ok(false);
        }
        self.ring.data(self.tail).store((message.len() as u64).to_le(), Ordering::Relaxed);
        for (number, chunk) in (1..).zip(message.chunks(8)) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.ring.data(self.tail.wrapping_add(number * 8)).store(u64::from_ne_bytes(word), Ordering::Relaxed);
        }
        self.tail = self.tail.wrapping_add(room_for(message.len()));
        self.ring.control(TAIL).store(self.tail, Ordering::Release);
        Ok(true)
    }

    /// Whether the consumer waits to be told.
    pub(super) fn must_wake_consumer(&self) -> bool {
        self.ring.must_wake(CONSUMER_SLEEPS)
    }

    /// Says that this side waits for room, or does no more; look again between this and the wait.
    pub(super) fn say_sleeps(&self, sleeps: bool) {
        self.ring.say_sleeps(PRODUCER_SLEEPS, sleeps);
    }
}

/// The side that takes out.
pub(super) struct Consumer {
    ring: Ring,
    head: u64,
}

impl Consumer {
    /// Of a fresh memory.
    pub(super) fn new(memory: &Arc<Memory>, which: Which) -> Consumer {
        Consumer { ring: Ring::of(memory, which), head: 0 }
    }

    /// The next message, if there is one.
    pub(super) fn pop(&mut self) -> Result<Option<Vec<u8>>, Broken> {
        let tail = self.ring.control(TAIL).load(Ordering::Acquire);
        let there = tail.wrapping_sub(self.head);
        if there == 0 {
            return Ok(None);
        }
        if there > RING_BYTES as u64 || !there.is_multiple_of(8) {
            return Err(Broken("it has put more into a ring than there is room for"));
        }
        let length = u64::from_le(self.ring.data(self.head).load(Ordering::Relaxed));
        if length > MESSAGE_BYTES_MAX as u64 || room_for(length as usize) > there {
            return Err(Broken("it has put a message into a ring that is longer than it can be"));
        }
        let length = length as usize;
        let mut message = Vec::with_capacity(length.next_multiple_of(8));
        for number in 1..=length.div_ceil(8) as u64 {
            let word = self.ring.data(self.head.wrapping_add(number * 8)).load(Ordering::Relaxed);
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.truncate(length);
        self.head = self.head.wrapping_add(room_for(length));
        self.ring.control(HEAD).store(self.head, Ordering::Release);
        Ok(Some(message))
    }

    /// Whether the producer waits for room.
    pub(super) fn must_wake_producer(&self) -> bool {
        self.ring.must_wake(PRODUCER_SLEEPS)
    }

    /// Says that this side waits for a message, or does no more; look again between this and the wait.
    pub(super) fn say_sleeps(&self, sleeps: bool) {
        self.ring.say_sleeps(CONSUMER_SLEEPS, sleeps);
    }
}

/// What a hostile peer can do: write any word of the memory.
#[cfg(test)]
impl Memory {
    pub(super) fn scribble(&self, word: usize, value: u64) {
        self.word(word % (MEMORY_BYTES / 8)).store(value, Ordering::Relaxed);
    }
}
