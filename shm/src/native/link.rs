//! A connection that carries messages: a pair of rings and a socket, whose bytes wake and whose end tells of a death, or a TCP
//! stream.
//!
//! Owned by one thread, which waits in it. A side that finds its ring empty (or full) spins for as long as it was told to,
//! then says that it sleeps, looks once more, and sleeps on the socket. The server never waits for a client anywhere else: each
//! call on the socket says for itself that it does not block, so that nothing a client does to its end can change that.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::ring::{Broken, Consumer, Memory, Producer, Which};
use super::wire::MESSAGE_BYTES_MAX;

/// The first bytes from each side.
const MAGIC: [u8; 8] = *b"RdbNativ";
/// This protocol.
const VERSION: u32 = 2;
/// Longest refusal.
const REFUSAL_BYTES_MAX: usize = 1024;
/// Most of a peer's rings at its bell that are taken at once.
const RUNG_BYTES: usize = 64;

/// Why a connection is over.
#[derive(Debug)]
pub(super) enum LinkError {
    /// The peer closed it, or is dead.
    Closed,
    /// It did not do its part in time.
    TimedOut,
    /// It sent what can't be.
    Broken(String),
    /// It does not want us.
    Refused(String),
    /// The system's.
    Io(io::Error),
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkError::Closed => write!(f, "the other side has closed the connection, or has died"),
            LinkError::TimedOut => write!(f, "the other side did not answer in time"),
            LinkError::Broken(what) => write!(f, "the other side breaks the rules: {what}"),
            LinkError::Refused(why) => write!(f, "{why}"),
            LinkError::Io(error) => write!(f, "{error}"),
        }
    }
}

impl From<Broken> for LinkError {
    fn from(broken: Broken) -> LinkError {
        LinkError::Broken(broken.0.into())
    }
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> LinkError {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof, WouldBlock};
        match error.kind() {
            UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe => LinkError::Closed,
            TimedOut | WouldBlock => LinkError::TimedOut,
            _ => LinkError::Io(error),
        }
    }
}

/// See the module.
pub(super) enum Link {
    Shared(Box<Rings>),
    Tcp(TcpStream),
}

/// A side of a pair of rings.
pub(super) struct Rings {
    come: Consumer,
    go: Producer,
    /// A byte on it wakes; nothing else is said on it any more, and it ends with the peer.
    socket: UnixStream,
    spin: Duration,
}

enum Woken {
    ByBell,
    Closed,
    TimedOut,
}

impl Rings {
    fn ring_for_peer(&self) {
        // What does not fit any more stands behind rings enough. A peer that is gone is found by the next wait.
        // SAFETY: a byte that outlives the call, into a socket that we own.
        unsafe { libc::send(self.socket.as_raw_fd(), b"!".as_ptr().cast(), 1, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    }

    fn wait(&self, until: Option<Instant>) -> io::Result<Woken> {
        let mut socket = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // Whoever rings and does nothing else gains no time by it.
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(Woken::TimedOut);
        }
        let left_ms = left.map_or(-1, |left| left.as_millis().min(1_000_000) as libc::c_int + 1);
        // SAFETY: a structure of ours, which outlives the call.
        let ready = unsafe { libc::poll(&raw mut socket, 1, left_ms) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(Woken::ByBell) } else { Err(error) };
        }
        if socket.revents == 0 {
            // The time is over, or nearly: the next look tells.
            return Ok(Woken::ByBell);
        }
        let mut rung = [0u8; RUNG_BYTES];
        // SAFETY: the bytes are ours, as many as said, and outlive the call.
        let taken = unsafe { libc::recv(socket.fd, rung.as_mut_ptr().cast(), rung.len(), libc::MSG_DONTWAIT) };
        match taken {
            0 => Ok(Woken::Closed),
            1.. => Ok(Woken::ByBell),
            _ => match io::Error::last_os_error().kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(Woken::ByBell),
                _ => Ok(Woken::Closed),
            },
        }
    }

    fn recv(&mut self, until: Option<Instant>) -> Result<Vec<u8>, LinkError> {
        let mut spin_until = Some(Instant::now() + self.spin);
        loop {
            let mut message = self.come.pop()?;
            if message.is_none() {
                if spin_until.is_some_and(|until| Instant::now() < until) {
                    std::hint::spin_loop();
                    continue;
                }
                spin_until = None;
                self.come.say_sleeps(true);
                message = self.come.pop()?;
                if message.is_none() {
                    let woken = self.wait(until)?;
                    self.come.say_sleeps(false);
                    match woken {
                        Woken::ByBell => continue,
                        Woken::TimedOut => return Err(LinkError::TimedOut),
                        // What it put in before it went counts.
                        Woken::Closed => return self.come.pop()?.ok_or(LinkError::Closed),
                    }
                }
                self.come.say_sleeps(false);
            }
            if self.come.must_wake_producer() {
                self.ring_for_peer();
            }
            return Ok(message.expect("looked at above"));
        }
    }

    fn send(&mut self, message: &[u8], until: Option<Instant>) -> Result<(), LinkError> {
        while !self.go.push(message)? {
            self.go.say_sleeps(true);
            if self.go.push(message)? {
                self.go.say_sleeps(false);
                break;
            }
            let woken = self.wait(until)?;
            self.go.say_sleeps(false);
            match woken {
                Woken::ByBell => {}
                Woken::TimedOut => return Err(LinkError::TimedOut),
                Woken::Closed => return Err(LinkError::Closed),
            }
        }
        if self.go.must_wake_consumer() {
            self.ring_for_peer();
        }
        Ok(())
    }
}

impl Link {
    /// The next message.
    pub(super) fn recv(&mut self, patience: Option<Duration>) -> Result<Vec<u8>, LinkError> {
        match self {
            Link::Shared(rings) => rings.recv(patience.map(|patience| Instant::now() + patience)),
            Link::Tcp(stream) => {
                stream.set_read_timeout(patience)?;
                let mut length = [0; 4];
                stream.read_exact(&mut length)?;
                let length = u32::from_le_bytes(length) as usize;
                if length > MESSAGE_BYTES_MAX {
                    return Err(LinkError::Broken(format!("a message of {length} bytes")));
                }
                let mut message = vec![0; length];
                stream.read_exact(&mut message)?;
                Ok(message)
            }
        }
    }

    /// Sends a message of at most [`MESSAGE_BYTES_MAX`].
    pub(super) fn send(&mut self, message: &[u8], patience: Option<Duration>) -> Result<(), LinkError> {
        match self {
            Link::Shared(rings) => rings.send(message, patience.map(|patience| Instant::now() + patience)),
            Link::Tcp(stream) => {
                stream.set_write_timeout(patience)?;
                let mut framed = Vec::with_capacity(4 + message.len());
                framed.extend_from_slice(&(message.len() as u32).to_le_bytes());
                framed.extend_from_slice(message);
                Ok(stream.write_all(&framed)?)
            }
        }
    }

    /// A client's rings, over a socket of the server's.
    pub(super) fn ask_for_rings(mut socket: UnixStream, spin: Duration, patience: Duration) -> Result<Link, LinkError> {
        socket.set_read_timeout(Some(patience))?;
        greet(&mut socket)?;
        let (head, memory) = recv_with_descriptor(&socket)?;
        accepted(head, &mut socket)?;
        let memory = Memory::open(memory.ok_or_else(|| LinkError::Broken("a greeting without rings".into()))?)?;
        Ok(Link::Shared(Box::new(Rings {
            come: Consumer::new(&memory, Which::Replies),
            go: Producer::new(&memory, Which::Requests),
            socket,
            spin,
        })))
    }

    /// The rings that a client has asked for; made here, by who serves it.
    pub(super) fn give_rings(socket: UnixStream, spin: Duration) -> Result<Link, LinkError> {
        let (memory, descriptor) = Memory::create()?;
        send_with_descriptor(&socket, &answer_head(0, 0), descriptor.as_raw_fd())?;
        Ok(Link::Shared(Box::new(Rings {
            come: Consumer::new(&memory, Which::Requests),
            go: Producer::new(&memory, Which::Replies),
            socket,
            spin,
        })))
    }

    /// A client's end of a TCP connection.
    pub(super) fn ask_over_tcp(mut stream: TcpStream, patience: Duration) -> Result<Link, LinkError> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        greet(&mut stream)?;
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        accepted(head, &mut stream)?;
        Ok(Link::Tcp(stream))
    }

    /// The server's end.
    pub(super) fn give_tcp(mut stream: TcpStream) -> Result<Link, LinkError> {
        stream.set_nodelay(true)?;
        stream.write_all(&answer_head(0, 0))?;
        Ok(Link::Tcp(stream))
    }
}

fn greet(stream: &mut impl Write) -> io::Result<()> {
    let mut hello = [0; 16];
    hello[..8].copy_from_slice(&MAGIC);
    hello[8..12].copy_from_slice(&VERSION.to_le_bytes());
    stream.write_all(&hello)
}

/// A connected socket of either kind.
pub(super) trait Socket: Read + Write {
    /// How long a read may take.
    fn read_within(&self, patience: Duration) -> io::Result<()>;
}

impl Socket for UnixStream {
    fn read_within(&self, patience: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(patience))
    }
}

impl Socket for TcpStream {
    fn read_within(&self, patience: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(patience))
    }
}

/// Reads a client's greeting, all of it within `patience`, however it comes.
pub(super) fn greeted(stream: &mut impl Socket, patience: Duration) -> Result<(), LinkError> {
    let (mut hello, mut filled, until) = ([0; 16], 0, Instant::now() + patience);
    while filled < hello.len() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LinkError::TimedOut);
        }
        stream.read_within(left)?;
        match stream.read(&mut hello[filled..]) {
            Ok(0) => return Err(LinkError::Closed),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    if hello[..8] != MAGIC {
        return Err(LinkError::Broken("it is no native client of RustyDB".into()));
    }
    let version = u32::from_le_bytes(hello[8..12].try_into().expect("four bytes"));
    if version != VERSION {
        return Err(LinkError::Refused(format!("the client speaks version {version}, this server version {VERSION}")));
    }
    Ok(())
}

fn answer_head(status: u32, length: usize) -> [u8; 16] {
    let mut head = [0; 16];
    head[..8].copy_from_slice(&MAGIC);
    head[8..12].copy_from_slice(&status.to_le_bytes());
    head[12..].copy_from_slice(&(length as u32).to_le_bytes());
    head
}

/// Tells a client why it is not wanted.
pub(super) fn refuse(stream: &mut impl Write, why: &str) {
    let mut end = why.len().min(REFUSAL_BYTES_MAX);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    // Who does not listen hears it by the connection's end.
    stream.write_all(&[&answer_head(1, end)[..], &why.as_bytes()[..end]].concat()).ok();
}

fn accepted(head: [u8; 16], stream: &mut impl Read) -> Result<(), LinkError> {
    let field = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
    let (status, length) = (field(8), field(12) as usize);
    if head[..8] != MAGIC || length > REFUSAL_BYTES_MAX {
        return Err(LinkError::Broken("it is no native endpoint of RustyDB".into()));
    }
    let mut why = vec![0; length];
    stream.read_exact(&mut why)?;
    if status == 0 { Ok(()) } else { Err(LinkError::Refused(String::from_utf8_lossy(&why).into_owned())) }
}

const DESCRIPTOR_BYTES: usize = size_of::<RawFd>();

/// Room for a control message with a descriptor, aligned as its header wants.
#[repr(C, align(8))]
struct Control([u8; 64]);

fn send_with_descriptor(socket: &UnixStream, bytes: &[u8; 16], descriptor: RawFd) -> io::Result<()> {
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all zeros is a valid header; its pointers are to locals that outlive the call. The control message's place
    // and lengths are those that the macros say for a descriptor, which the buffer has room for.
    let sent = unsafe {
        assert!(libc::CMSG_SPACE(DESCRIPTOR_BYTES as u32) as usize <= control.0.len());
        let mut header: libc::msghdr = std::mem::zeroed();
        (header.msg_iov, header.msg_iovlen) = (&raw mut part, 1);
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = libc::CMSG_SPACE(DESCRIPTOR_BYTES as u32) as _;
        let first = libc::CMSG_FIRSTHDR(&raw const header);
        (*first).cmsg_level = libc::SOL_SOCKET;
        (*first).cmsg_type = libc::SCM_RIGHTS;
        (*first).cmsg_len = libc::CMSG_LEN(DESCRIPTOR_BYTES as u32) as _;
        libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(descriptor);
        libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL)
    };
    match sent {
        16 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Sixteen bytes, and the descriptor that came with them; more of those are closed.
fn recv_with_descriptor(socket: &UnixStream) -> io::Result<([u8; 16], Option<OwnedFd>)> {
    let mut bytes = [0u8; 16];
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut descriptors = Vec::new();
    // SAFETY: as above. What the kernel has written into the control buffer is walked by its own macros; the descriptors in
    // it are this process's now and nobody else's.
    let received = unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        (header.msg_iov, header.msg_iovlen) = (&raw mut part, 1);
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = control.0.len() as _;
        let received = libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC | libc::MSG_WAITALL);
        let error = io::Error::last_os_error();
        let mut next = if received < 0 { std::ptr::null_mut() } else { libc::CMSG_FIRSTHDR(&raw const header) };
        while !next.is_null() {
            if ((*next).cmsg_level, (*next).cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let bytes = (*next).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                for number in 0..bytes / size_of::<RawFd>() {
                    let place = libc::CMSG_DATA(next).cast::<RawFd>().add(number);
                    descriptors.push(OwnedFd::from_raw_fd(place.read_unaligned()));
                }
            }
            next = libc::CMSG_NXTHDR(&raw const header, next);
        }
        if received < 0 {
            return Err(error);
        }
        received
    };
    if received == 16 { Ok((bytes, descriptors.pop())) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
impl Link {
    /// Rings for the peer, whether it sleeps or not.
    pub(super) fn ring(&self) {
        let Link::Shared(rings) = self else { panic!("a stream has no bell") };
        rings.ring_for_peer();
    }
}

/// A memory that a test may write anything into, in the hands of a peer.
#[cfg(test)]
pub(super) fn pair(spin: Duration) -> (Link, Link, std::sync::Arc<Memory>) {
    let (memory, _descriptor) = Memory::create().expect("memory");
    let (one, other) = UnixStream::pair().expect("sockets");
    let server =
        Rings { come: Consumer::new(&memory, Which::Requests), go: Producer::new(&memory, Which::Replies), socket: one, spin };
    let client =
        Rings { come: Consumer::new(&memory, Which::Replies), go: Producer::new(&memory, Which::Requests), socket: other, spin };
    (Link::Shared(Box::new(server)), Link::Shared(Box::new(client)), memory)
}
