//! A connection that carries messages: a pair of rings with a bell for each side and a socket whose end tells of a death, or a
//! TCP stream.
//!
//! Owned by one thread, which waits in it. A side that finds its ring empty (or full) spins for as long as it was told to,
//! then says that it sleeps, looks once more, and sleeps on its bell and on the socket.

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
const VERSION: u32 = 1;
/// Longest refusal.
const REFUSAL_BYTES_MAX: usize = 1024;
/// Descriptors that come with rings: the memory, the server's bell, the client's.
const DESCRIPTORS: usize = 3;

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
    bell: OwnedFd,
    peers_bell: OwnedFd,
    /// Nothing is said on it any more; it ends with the peer.
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
        // A bell that is full already has been rung.
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes of ours into a descriptor that we own.
        unsafe { libc::write(self.peers_bell.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    fn wait(&self, until: Option<Instant>) -> io::Result<Woken> {
        let wanted = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut both = [wanted(self.bell.as_raw_fd()), wanted(self.socket.as_raw_fd())];
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // Whoever rings and does nothing else gains no time by it.
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(Woken::TimedOut);
        }
        let left_ms = left.map_or(-1, |left| left.as_millis().min(1_000_000) as libc::c_int + 1);
        // SAFETY: two structures of ours, which outlive the call.
        let ready = unsafe { libc::poll(both.as_mut_ptr(), 2, left_ms) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(Woken::ByBell) } else { Err(error) };
        }
        if both[0].revents != 0 {
            let mut count = [0u8; 8];
            // SAFETY: eight bytes of ours; the bell does not block.
            unsafe { libc::read(self.bell.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
            return Ok(Woken::ByBell);
        }
        // Whatever comes on the socket now is none of the protocol.
        if both[1].revents != 0 {
            return Ok(Woken::Closed);
        }
        // The time is over, or nearly: the next look tells.
        Ok(Woken::ByBell)
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
        let (head, descriptors) = recv_with_descriptors(&socket)?;
        accepted(head, &mut socket)?;
        let [memory, servers_bell, bell]: [OwnedFd; DESCRIPTORS] =
            descriptors.try_into().map_err(|_| LinkError::Broken("a greeting without rings".into()))?;
        let memory = Memory::open(memory)?;
        Ok(Link::Shared(Box::new(Rings {
            come: Consumer::new(&memory, Which::Replies),
            go: Producer::new(&memory, Which::Requests),
            bell,
            peers_bell: servers_bell,
            socket,
            spin,
        })))
    }

    /// The rings that a client has asked for; made here, by who serves it.
    pub(super) fn give_rings(mut socket: UnixStream, spin: Duration) -> Result<Link, LinkError> {
        let (memory, descriptor) = Memory::create()?;
        let (bell, clients_bell) = (eventfd()?, eventfd()?);
        let descriptors = [descriptor.as_raw_fd(), bell.as_raw_fd(), clients_bell.as_raw_fd()];
        send_with_descriptors(&socket, &answer_head(0, 0), descriptors)?;
        socket.flush()?;
        Ok(Link::Shared(Box::new(Rings {
            come: Consumer::new(&memory, Which::Requests),
            go: Producer::new(&memory, Which::Replies),
            bell,
            peers_bell: clients_bell,
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

/// Reads a client's greeting.
pub(super) fn greeted(stream: &mut impl Read) -> Result<(), LinkError> {
    let mut hello = [0; 16];
    stream.read_exact(&mut hello)?;
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

fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no memory is handed over; the descriptor that comes back is nobody's yet.
    match unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: as above.
        descriptor => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
    }
}

const DESCRIPTOR_BYTES: usize = DESCRIPTORS * size_of::<RawFd>();

/// Room for a control message with the descriptors, aligned as its header wants.
#[repr(C, align(8))]
struct Control([u8; 64]);

fn send_with_descriptors(socket: &UnixStream, bytes: &[u8; 16], descriptors: [RawFd; DESCRIPTORS]) -> io::Result<()> {
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all zeros is a valid header; its pointers are to locals that outlive the call. The control message's place
    // and lengths are those that the macros say for three descriptors, which the buffer has room for.
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
        let place = libc::CMSG_DATA(first);
        std::ptr::copy_nonoverlapping(descriptors.as_ptr().cast::<u8>(), place, DESCRIPTOR_BYTES);
        libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL)
    };
    match sent {
        16 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

fn recv_with_descriptors(socket: &UnixStream) -> io::Result<([u8; 16], Vec<OwnedFd>)> {
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
    if received == 16 { Ok((bytes, descriptors)) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// A memory that a test may write anything into, in the hands of a peer.
#[cfg(test)]
pub(super) fn pair(spin: Duration) -> (Link, Link, std::sync::Arc<Memory>) {
    let (memory, _descriptor) = Memory::create().expect("memory");
    let (one, other) = UnixStream::pair().expect("sockets");
    let (bell, peers_bell) = (eventfd().expect("a bell"), eventfd().expect("a bell"));
    let same = |fd: &OwnedFd| fd.try_clone().expect("a descriptor");
    let server = Rings {
        come: Consumer::new(&memory, Which::Requests),
        go: Producer::new(&memory, Which::Replies),
        bell: same(&bell),
        peers_bell: same(&peers_bell),
        socket: one,
        spin,
    };
    let client = Rings {
        come: Consumer::new(&memory, Which::Replies),
        go: Producer::new(&memory, Which::Requests),
        bell: peers_bell,
        peers_bell: bell,
        socket: other,
        spin,
    };
    (Link::Shared(Box::new(server)), Link::Shared(Box::new(client)), memory)
}
