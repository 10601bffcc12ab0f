//! The server's side: lets clients in, and gives each a thread that waits for its requests and has them answered.
//!
//! Clients over a Unix socket must be of the server's own user, or root; they get rings. Clients over TCP are not asked who
//! they are: listen where only those who may come can. A client's thread ends when the client goes, is gone, or breaks the
//! rules; its [`Handler`] is dropped then, and with it the transaction.

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::link::{Link, LinkError, greeted, refuse};
use super::wire::{MESSAGE_BYTES_MAX, Reply, Request};

/// How long a client may take to greet, and how long it may leave its replies in a full ring.
const CLIENT_PATIENCE: Duration = Duration::from_secs(30);

/// How long one who can't be let in may take to greet; nobody else is let in meanwhile.
const REFUSED_PATIENCE: Duration = Duration::from_millis(50);
/// How long the clients' threads may take to end.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// What answers one client's requests. Dropping it gives its transaction up.
pub trait Handler: Send {
    /// Carries a request out.
    fn answer(&mut self, request: Request) -> Reply;
}

/// Why a client is not served now, in words for it.
pub type Refusal = String;

/// Where clients come from.
#[derive(Clone, Debug)]
pub struct EndpointOptions {
    /// The Unix socket for those on this host; a file of a former life there is replaced.
    pub socket: Option<PathBuf>,
    /// The TCP address.
    pub address: Option<SocketAddr>,
    /// Most clients at once, of both kinds together.
    pub clients_max: usize,
    /// How long a thread looks for a request in its ring before it sleeps: less latency for a core for each client.
    pub spin: Duration,
}

type MakeHandler = dyn Fn() -> Result<Box<dyn Handler>, Refusal> + Send + Sync;

struct Shared {
    options: EndpointOptions,
    make: Box<MakeHandler>,
    ending: AtomicBool,
    clients: Mutex<Clients>,
}

#[derive(Default)]
struct Clients {
    next: u64,
    /// What ends a client's thread: its connection shut down.
    open: HashMap<u64, Connection>,
    threads: Vec<JoinHandle<()>>,
}

enum Connection {
    Local(UnixStream),
    Tcp(TcpStream),
}

/// Serves native clients until it is dropped.
pub struct Endpoint {
    shared: Arc<Shared>,
    listeners: Vec<JoinHandle<()>>,
    /// What they listen on, to end that.
    doors: Vec<OwnedFd>,
    address: Option<SocketAddr>,
}

impl Endpoint {
    /// Begins to listen. `make` makes the handler of each client that comes.
    ///
    /// # Errors
    /// The system's: an address in use, a folder that is not there.
    pub fn start(
        options: EndpointOptions,
        make: impl Fn() -> Result<Box<dyn Handler>, Refusal> + Send + Sync + 'static,
    ) -> io::Result<Endpoint> {
        let unix = options.socket.as_deref().map(bind).transpose()?;
        let tcp = options.address.map(TcpListener::bind).transpose()?;
        let address = tcp.as_ref().map(TcpListener::local_addr).transpose()?;
        let shared =
            Arc::new(Shared { options, make: Box::new(make), ending: AtomicBool::new(false), clients: Mutex::default() });
        let (mut listeners, mut doors) = (Vec::new(), Vec::new());
        if let Some(listener) = unix {
            let shared = shared.clone();
            doors.push(OwnedFd::from(listener.try_clone()?));
            listeners.push(named("native").spawn(move || {
                shared.listen(|| listener.accept().map(|(stream, _)| Connection::Local(stream)));
            })?);
        }
        if let Some(listener) = tcp {
            let shared = shared.clone();
            doors.push(OwnedFd::from(listener.try_clone()?));
            listeners.push(named("native").spawn(move || {
                shared.listen(|| listener.accept().map(|(stream, _)| Connection::Tcp(stream)));
            })?);
        }
        Ok(Endpoint { shared, listeners, doors, address })
    }

    /// Where it listens for TCP, if it does.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Clients connected now.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.shared.lock().open.len()
    }
}

impl Drop for Endpoint {
    /// Ends all connections and waits, for at most [`END_PATIENCE`], until their transactions have been given up.
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::SeqCst);
        for door in self.doors.drain(..) {
            // SAFETY: the descriptor is ours; a listener that waits at it gets EINVAL. Whether it can be reached by its path or
            // address is of no account: those may have gone.
            unsafe { libc::shutdown(door.as_raw_fd(), libc::SHUT_RDWR) };
        }
        if let Some(path) = &self.shared.options.socket {
            std::fs::remove_file(path).ok();
        }
        for listener in self.listeners.drain(..) {
            listener.join().ok();
        }
        let threads = {
            let mut clients = self.shared.lock();
            clients.open.values().for_each(Connection::shut_down);
            std::mem::take(&mut clients.threads)
        };
        // A request that waits for a lock ends when the node does: such a thread is not waited for.
        let until = Instant::now() + END_PATIENCE;
        for thread in threads {
            while !thread.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

fn named(name: &str) -> std::thread::Builder {
    std::thread::Builder::new().name(name.into())
}

/// Listens on a path of its own: what stands there is replaced if it is a socket that nobody listens on.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let is_socket = path.symlink_metadata().is_ok_and(|there| there.file_type().is_socket());
    let nobody_listens = || UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if is_socket && nobody_listens() {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl Connection {
    fn try_clone(&self) -> io::Result<Connection> {
        Ok(match self {
            Connection::Local(stream) => Connection::Local(stream.try_clone()?),
            Connection::Tcp(stream) => Connection::Tcp(stream.try_clone()?),
        })
    }

    fn shut_down(&self) {
        // One that is closed already needs no more.
        match self {
            Connection::Local(stream) => stream.shutdown(Shutdown::Both).ok(),
            Connection::Tcp(stream) => stream.shutdown(Shutdown::Both).ok(),
        };
    }
}

/// Takes a client out of the list when its thread ends in whatever way.
struct Place(Arc<Shared>, u64);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.lock().open.remove(&self.1);
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(self: Arc<Self>, accept: impl Fn() -> io::Result<Connection>) {
        while !self.ending.load(Ordering::SeqCst) {
            match accept() {
                Ok(connection) if !self.ending.load(Ordering::SeqCst) => self.admit(connection),
                Ok(_) => {}
                Err(_) if self.ending.load(Ordering::SeqCst) => return,
                // Out of descriptors, most likely: those connected go on, the next try may find one.
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    fn admit(self: &Arc<Self>, connection: Connection) {
        let Ok(again) = connection.try_clone() else { return };
        let mut clients = self.lock();
        clients.threads.retain(|thread| !thread.is_finished());
        if clients.open.len() >= self.options.clients_max {
            drop(clients);
            let why = format!("there are {} native clients already (server.native_clients)", self.options.clients_max);
            // Its greeting is taken first: a connection that is closed before that takes the words with it.
            match connection {
                Connection::Local(mut stream) if stream.set_read_timeout(Some(REFUSED_PATIENCE)).is_ok() => {
                    greeted(&mut stream).ok();
                    refuse(&mut stream, &why);
                }
                Connection::Tcp(mut stream) if stream.set_read_timeout(Some(REFUSED_PATIENCE)).is_ok() => {
                    greeted(&mut stream).ok();
                    refuse(&mut stream, &why);
                }
                _ => {}
            }
            return;
        }
        let number = clients.next;
        clients.next += 1;
        clients.open.insert(number, again);
        drop(clients);
        let place = Place(self.clone(), number);
        let serve = move || {
            let shared = place.0.clone();
            // What ended it is the client's matter.
            shared.serve(connection).ok();
        };
        // Without a thread for it the client finds its connection closed: its place goes with the closure.
        let thread = named("native client").spawn(serve);
        self.lock().threads.extend(thread);
    }

    fn serve(&self, connection: Connection) -> Result<(), LinkError> {
        let (mut link, mut handler) = match connection {
            Connection::Local(mut stream) => {
                stream.set_read_timeout(Some(CLIENT_PATIENCE))?;
                stream.set_write_timeout(Some(CLIENT_PATIENCE))?;
                let greeting = greeted(&mut stream);
                let may = if may_come(&stream)? { greeting } else { Err(LinkError::Refused(STRANGER.into())) };
                let handler = welcome(may, &*self.make, &mut stream)?;
                (Link::give_rings(stream, self.options.spin)?, handler)
            }
            Connection::Tcp(mut stream) => {
                stream.set_read_timeout(Some(CLIENT_PATIENCE))?;
                stream.set_write_timeout(Some(CLIENT_PATIENCE))?;
                let may = greeted(&mut stream);
                let handler = welcome(may, &*self.make, &mut stream)?;
                (Link::give_tcp(stream)?, handler)
            }
        };
        converse(&mut link, &mut *handler)
    }
}

const STRANGER: &str = "only processes of the server's own user may use its rings: use native_address, or SQL";

fn welcome(may: Result<(), LinkError>, make: &MakeHandler, stream: &mut impl io::Write) -> Result<Box<dyn Handler>, LinkError> {
    let made = may.and_then(|()| make().map_err(LinkError::Refused));
    if let Err(LinkError::Refused(why)) = &made {
        refuse(stream, why);
    }
    made
}

/// Answers requests until the client goes, or breaks the rules.
pub(super) fn converse(link: &mut Link, handler: &mut dyn Handler) -> Result<(), LinkError> {
    loop {
        let message = match link.recv(None) {
            Ok(message) => message,
            Err(LinkError::Closed) => return Ok(()),
            Err(error) => return Err(error),
        };
        let request = Request::decode(&message).map_err(|error| LinkError::Broken(error.to_string()))?;
        let mut reply = handler.answer(request).encode();
        if reply.len() > MESSAGE_BYTES_MAX {
            let message = format!("the answer of {} bytes is longer than a message: use SQL for such rows", reply.len());
            reply = Reply::Refused { sqlstate: "54000".into(), message }.encode();
        }
        link.send(&reply, Some(CLIENT_PATIENCE))?;
    }
}

/// Whether the process at the other end is of our user, or root.
fn may_come(stream: &UnixStream) -> io::Result<bool> {
    let mut who = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: a descriptor that we own; both places are ours, of the size said, and outlive the call.
    let asked = unsafe {
        let place = (&raw mut who).cast();
        libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, place, &raw mut length)
    };
    if asked != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no memory is involved.
    Ok(who.uid == 0 || who.uid == unsafe { libc::geteuid() })
}
