//! System calls that the uring and the poll driver share: the table of open descriptors, sockets, files, eventfd.
//! Owned by a driver, so by one shard. Bounded by the process's limit of open files.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{DurableMethod, Handle, OpenOptions};
use crate::reactor::mail::WakeUp;

/// The error number of the last system call.
pub(super) fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Adds to an error what it happened to.
pub(super) fn about(error: &io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// An eventfd: wakes a driver from any thread.
pub(super) struct EventFd(OwnedFd);

impl EventFd {
    pub(super) fn new() -> io::Result<EventFd> {
        // SAFETY: no pointers are involved.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: the descriptor was just made and nobody else owns it.
        Ok(EventFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(super) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    pub(super) fn drain(&self) {
        let mut count = 0u64;
        // SAFETY: eight bytes are written to a live u64; the descriptor is open.
        unsafe { libc::read(self.fd(), (&raw mut count).cast(), 8) };
    }
}

impl WakeUp for EventFd {
    fn wake_up(&self) {
        let one = 1u64;
        // SAFETY: eight bytes are read from a live u64. It fails only when the counter is full, and then it is readable.
        unsafe { libc::write(self.fd(), (&raw const one).cast(), 8) };
    }
}

/// An open file, listener or stream.
pub(super) struct Descriptor<X> {
    pub(super) fd: OwnedFd,
    pub(super) in_flight: u32,
    pub(super) closing: bool,
    pub(super) is_socket: bool,
    pub(super) durable: DurableMethod,
    /// What the driver keeps with it.
    pub(super) extra: X,
}

/// The descriptors of a driver.
pub(super) struct Descriptors<X> {
    entries: Vec<(u32, Option<Descriptor<X>>)>,
    free: Vec<u32>,
}

impl<X: Default> Descriptors<X> {
    pub(super) fn new() -> Self {
        Descriptors { entries: Vec::new(), free: Vec::new() }
    }

    pub(super) fn add(&mut self, fd: OwnedFd, is_socket: bool) -> Handle {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push((0, None));
            self.entries.len() as u32 - 1
        });
        let entry = &mut self.entries[index as usize];
        let durable = DurableMethod::Dsync;
        entry.1 = Some(Descriptor { fd, in_flight: 0, closing: false, is_socket, durable, extra: X::default() });
        Handle { index, generation: entry.0 }
    }

    /// Panics on a handle that was closed: using one is a bug.
    pub(super) fn get(&mut self, handle: Handle) -> &mut Descriptor<X> {
        let (generation, entry) = &mut self.entries[handle.index as usize];
        match entry {
            Some(descriptor) if *generation == handle.generation => descriptor,
            _ => panic!("{handle:?} was closed before"),
        }
    }

    /// The descriptor, if it is still open.
    pub(super) fn find(&mut self, handle: Handle) -> Option<&mut Descriptor<X>> {
        let (generation, entry) = self.entries.get_mut(handle.index as usize)?;
        entry.as_mut().filter(|_| *generation == handle.generation)
    }

    /// The handle of what lies at `index` now.
    pub(super) fn handle_at(&self, index: u32) -> Option<Handle> {
        let (generation, entry) = self.entries.get(index as usize)?;
        entry.as_ref().map(|_| Handle { index, generation: *generation })
    }

    /// Counts an operation in.
    pub(super) fn begin(&mut self, handle: Handle) -> &mut Descriptor<X> {
        let descriptor = self.get(handle);
        assert!(!descriptor.closing, "an operation on {handle:?}, which is being closed");
        descriptor.in_flight += 1;
        descriptor
    }

    /// Counts an operation out. True when it was the last of a closing descriptor, which may go now.
    pub(super) fn end(&mut self, handle: Handle) -> bool {
        let descriptor = self.get(handle);
        descriptor.in_flight -= 1;
        descriptor.in_flight == 0 && descriptor.closing
    }

    /// Starts closing. True when nothing is in flight and it may go now.
    pub(super) fn close(&mut self, handle: Handle) -> bool {
        let descriptor = self.get(handle);
        descriptor.closing = true;
        if descriptor.is_socket {
            // SAFETY: the descriptor is open; this ends the operations that wait on it, and tells the peer now. Kernels before 6.13
            // put off the closing of a ring's registered file until every operation submitted before has ended, on whatever file.
            unsafe { libc::shutdown(descriptor.fd.as_raw_fd(), libc::SHUT_RDWR) };
        }
        descriptor.in_flight == 0
    }

    /// Forgets a descriptor, which closes it.
    pub(super) fn remove(&mut self, handle: Handle) -> Descriptor<X> {
        let descriptor = self.entries[handle.index as usize].1.take().expect("removed once");
        self.entries[handle.index as usize].0 = handle.generation.wrapping_add(1);
        self.free.push(handle.index);
        descriptor
    }
}

/// Opens a file, around the page cache where that is asked for and possible.
pub(super) fn open_file(path: &Path, how: OpenOptions) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut flags = libc::O_CLOEXEC | if how.write { libc::O_RDWR } else { libc::O_RDONLY };
    flags |= if how.create { libc::O_CREAT } else { 0 } | if how.create_new { libc::O_EXCL } else { 0 };
    // SAFETY: the name is a C string that outlives the call.
    let open = |flags| check(unsafe { libc::open(name.as_ptr(), flags, 0o600 as libc::c_uint) });
    let direct = if how.direct { libc::O_DIRECT } else { 0 };
    let fd = open(flags | direct).or_else(|error| {
        if how.direct && error.raw_os_error() == Some(libc::EINVAL) {
            tracing::warn!(path = %path.display(), "the file system refuses O_DIRECT: using the page cache");
            // The refused open may have created the file already.
            return open(flags & !libc::O_EXCL);
        }
        Err(error)
    });
    let fd = fd.map_err(|error| about(&error, &format!("open {}", path.display())))?;
    // SAFETY: the descriptor was just opened and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Size of a file or a block device.
pub(super) fn file_bytes(fd: RawFd) -> io::Result<u64> {
    // SAFETY: no pointers; all I/O names its offset, so moving the file's position disturbs nobody.
    let end = unsafe { libc::lseek(fd, 0, libc::SEEK_END) };
    u64::try_from(end).map_err(|_| io::Error::last_os_error())
}

/// Locks or unlocks one byte of a file for this open file (not for the process: operations in flight keep it open).
pub(super) fn try_lock(fd: RawFd, byte: u64, exclusive: bool) -> io::Result<bool> {
    let start = libc::off_t::try_from(byte).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_UNLCK };
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: the structure outlives the call, which only reads it.
    match check(unsafe { libc::fcntl(fd, libc::F_OFD_SETLK, &lock) }) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reserves space for `bytes` bytes.
pub(super) fn allocate(fd: RawFd, bytes: u64) -> io::Result<()> {
    let length = libc::off_t::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: no pointers are involved.
    match check(unsafe { libc::fallocate(fd, 0, 0, length) }) {
        Ok(_) => Ok(()),
        Err(_) if file_bytes(fd)? >= bytes => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            // SAFETY: no pointers are involved.
            check(unsafe { libc::ftruncate(fd, length) }).map(|_| ())
        }
        Err(error) => Err(error),
    }
}

/// A listening socket with SO_REUSEADDR (std sets it on Unix).
pub(super) fn listen(address: SocketAddr, nonblocking: bool) -> io::Result<(OwnedFd, SocketAddr)> {
    let listener = TcpListener::bind(address).map_err(|error| about(&error, &format!("listen on {address}")))?;
    listener.set_nonblocking(nonblocking)?;
    let address = listener.local_addr()?;
    Ok((listener.into(), address))
}

/// A socket for connecting to `address`.
pub(super) fn socket_for(address: SocketAddr, nonblocking: bool) -> Result<OwnedFd, i32> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let flags = libc::SOCK_CLOEXEC | if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
    // SAFETY: no pointers are involved.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | flags, 0) };
    if fd < 0 {
        return Err(last_errno());
    }
    set_no_delay(fd);
    // SAFETY: the descriptor was just made and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends small messages at once.
pub(super) fn set_no_delay(fd: RawFd) {
    let one: libc::c_int = 1;
    let length = size_of_val(&one) as libc::socklen_t;
    // SAFETY: the option's value is a live int of the given length. Only non-TCP sockets refuse, and they don't need it.
    unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, (&raw const one).cast(), length) };
}

/// The pending error of a socket: how a connect ended.
pub(super) fn socket_error(fd: RawFd) -> i32 {
    let mut error: libc::c_int = 0;
    let mut length = size_of_val(&error) as libc::socklen_t;
    // SAFETY: both pointers are to live values, the length is the value's.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut error).cast(), &mut length) };
    if result < 0 { last_errno() } else { error }
}

/// Ends sending.
pub(super) fn shutdown_send(fd: RawFd) {
    // SAFETY: no pointers; an error means that the connection is gone already.
    unsafe { libc::shutdown(fd, libc::SHUT_WR) };
}

/// A socket address in the kernel's form.
pub(crate) struct RawAddress {
    pub(super) storage: libc::sockaddr_storage,
    pub(super) length: libc::socklen_t,
}

impl RawAddress {
    pub(super) fn empty() -> RawAddress {
        // SAFETY: sockaddr_storage is plain data, all zeros is a valid value (AF_UNSPEC).
        let storage = unsafe { MaybeUninit::<libc::sockaddr_storage>::zeroed().assume_init() };
        RawAddress { storage, length: size_of::<libc::sockaddr_storage>() as libc::socklen_t }
    }

    pub(crate) fn from(address: SocketAddr) -> RawAddress {
        let mut raw = RawAddress::empty();
        match address {
            SocketAddr::V4(address) => {
                let value = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: sockaddr_storage is at least as large and as aligned as every socket address.
                unsafe { (&raw mut raw.storage).cast::<libc::sockaddr_in>().write(value) };
                raw.length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            SocketAddr::V6(address) => {
                let value = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                };
                // SAFETY: sockaddr_storage is at least as large and as aligned as every socket address.
                unsafe { (&raw mut raw.storage).cast::<libc::sockaddr_in6>().write(value) };
                raw.length = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            }
        }
        raw
    }

    /// The address; `0.0.0.0:0` when it is of no internet family.
    pub(super) fn to_address(&self) -> SocketAddr {
        match i32::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says that the storage holds a sockaddr_in.
                let value = unsafe { (&raw const self.storage).cast::<libc::sockaddr_in>().read() };
                let ip = Ipv4Addr::from(value.sin_addr.s_addr.to_ne_bytes());
                SocketAddrV4::new(ip, u16::from_be(value.sin_port)).into()
            }
            libc::AF_INET6 => {
                // SAFETY: the family says that the storage holds a sockaddr_in6.
                let value = unsafe { (&raw const self.storage).cast::<libc::sockaddr_in6>().read() };
                let ip = Ipv6Addr::from(value.sin6_addr.s6_addr);
                SocketAddrV6::new(ip, u16::from_be(value.sin6_port), value.sin6_flowinfo, value.sin6_scope_id).into()
            }
            _ => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0).into(),
        }
    }

    pub(super) fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.storage).cast()
    }
}

/// A seed from the machine's entropy.
pub(super) fn random_seed() -> u64 {
    use std::io::Read;
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer is live and as long as said.
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if count != bytes.len() as isize {
        File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).expect("a source of random numbers");
    }
    u64::from_ne_bytes(bytes)
}
