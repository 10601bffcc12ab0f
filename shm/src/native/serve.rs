//! The server's side: lets clients in, and gives each a thread that waits for its requests and has them answered.
//!
//! Clients over a Unix socket must be of the server's own user, or root; they get rings. Clients over TCP are not asked who
//! they are: listen where only those who may come can. Each kind has places of its own. A client's thread ends when the client
//! goes, is gone, is sent away ([`leaving`](super::leaving)), or breaks the rules; its [`Handler`] is dropped then, and with it the
//! transaction.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::leaving::Gate;
use super::link::{Link, LinkError, Socket, greeted, refuse};
use super::wire::{MESSAGE_BYTES_MAX, Reply, Request};

/// How long a client may take to greet, from its coming to the last byte of it.
const GREETING_PATIENCE: Duration = Duration::from_secs(5);
/// How long a client may leave its replies in a full ring, or a full socket.
const CLIENT_PATIENCE: Duration = Duration::from_secs(30);
/// How long one who can't be let in may take to greet; nobody else of its kind is let in meanwhile.
const REFUSED_PATIENCE: Duration = Duration::from_millis(50);
/// How long the clients' threads may take to end.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// What answers one client's requests. Dropping it gives its transaction up.
pub trait Handler: Send {
    /// Carries a request out.
    fn answer(&mut self, request: Request) -> Reply;

    /// The answer, of so many bytes, is longer than a message: the request has failed, and with it the transaction. Gives what the
    /// client is told instead.
    fn too_long(&mut self, bytes: usize) -> Reply;

    /// Whether a transaction goes on after the last answer.
    fn in_transaction(&self) -> bool;

    /// What ends, from another thread, that a request waits.
    fn interrupter(&self) -> Interrupter;
}

/// Ends what a request waits for; the client is told this SQLSTATE and these words. Does nothing between requests.
pub type Interrupter = Box<dyn Fn(&'static str, &str) + Send + Sync>;

/// Why a client is not served now, in words for it.
pub type Refusal = String;

/// Where clients come from.
#[derive(Clone, Debug)]
pub struct EndpointOptions {
    /// The Unix socket for those on this host; a file of a former life there is replaced.
    pub socket: Option<PathBuf>,
    /// Most clients at once: so many through rings, and so many over TCP.
    pub clients_max: usize,
    /// How long a thread looks for a request in its ring before it sleeps: less latency for a core for each client.
    pub spin: Duration,
}

type MakeHandler = dyn Fn() -> Result<Box<dyn Handler>, Refusal> + Send + Sync;

struct Shared {
    options: EndpointOptions,
    make: Box<MakeHandler>,
    gate: Gate,
    clients: Mutex<Clients>,
}

#[derive(Default)]
struct Clients {
    next: u64,
    open: HashMap<u64, Arc<Client>>,
    threads: Vec<JoinHandle<()>>,
}

/// A client, as others than its thread see it.
struct Client {
    /// Its connection, to be shut down.
    connection: Connection,
    /// Known when it is let in.
    interrupter: OnceLock<Interrupter>,
    /// It waits for a request, or greets, and has no transaction.
    idle: AtomicBool,
}

/// A socket of a client.
enum Connection {
    Local(UnixStream),
    Tcp(TcpStream),
}

/// What clients come through.
enum Door {
    Local(UnixListener),
    Tcp(TcpListener),
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
    /// Begins to listen, on the Unix socket of the options and on `tcp`. `make` makes the handler of each client that comes.
    ///
    /// # Errors
    /// The system's: a path in use, a folder that is not there.
    pub fn start(
        options: EndpointOptions,
        tcp: Option<TcpListener>,
        make: impl Fn() -> Result<Box<dyn Handler>, Refusal> + Send + Sync + 'static,
    ) -> io::Result<Endpoint> {
        let local = options.socket.as_deref().map(bind).transpose()?;
        let address = tcp.as_ref().map(TcpListener::local_addr).transpose()?;
        let shared = Arc::new(Shared { options, make: Box::new(make), gate: Gate::default(), clients: Mutex::default() });
        let (mut listeners, mut doors) = (Vec::new(), Vec::new());
        for door in local.map(Door::Local).into_iter().chain(tcp.map(Door::Tcp)) {
            doors.push(door.descriptor()?);
            let shared = shared.clone();
            listeners.push(named("native").spawn(move || shared.listen(&door))?);
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

    /// Sends clients away: who comes is refused, who has no transaction is told and goes, the others when theirs has ended. `why` is a
    /// clause about the node.
    pub fn send_away(&self, why: &str) {
        self.shared.gate.close(why);
        // The others look at the gate when they have answered their requests.
        for client in self.shared.all().iter().filter(|client| client.idle.load(Ordering::SeqCst)) {
            client.connection.shut_down(Shutdown::Read);
        }
    }

    /// Ends what is left of those that are sent away, their transactions with them.
    pub fn cut_off(&self) {
        if let Some(farewell) = self.shared.gate.farewell() {
            self.interrupt("57P01", &farewell);
            self.shared.all().iter().for_each(|client| client.connection.shut_down(Shutdown::Read));
        }
    }

    /// Clients are welcome again; who was sent away is not called back.
    pub fn welcome_again(&self) {
        self.shared.gate.open();
    }

    /// Ends what all clients' requests wait for: they are told this SQLSTATE and these words.
    pub fn interrupt(&self, sqlstate: &'static str, words: &str) {
        for client in self.shared.all() {
            if let Some(interrupter) = client.interrupter.get() {
                interrupter(sqlstate, words);
            }
        }
    }
}

impl Drop for Endpoint {
    /// Ends all connections and waits, for at most [`END_PATIENCE`], until their transactions have been given up.
    fn drop(&mut self) {
        self.shared.gate.end();
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
        self.interrupt("57P01", "terminating connection because the node stops");
        let threads = {
            let mut clients = self.shared.lock();
            clients.open.values().for_each(|client| client.connection.shut_down(Shutdown::Both));
            std::mem::take(&mut clients.threads)
        };
        // A commit that is under way is not interrupted: such a thread may stay.
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

impl Door {
    fn descriptor(&self) -> io::Result<OwnedFd> {
        Ok(match self {
            Door::Local(listener) => listener.try_clone()?.into(),
            Door::Tcp(listener) => listener.try_clone()?.into(),
        })
    }

    fn accept(&self) -> io::Result<Connection> {
        Ok(match self {
            Door::Local(listener) => Connection::Local(listener.accept()?.0),
            Door::Tcp(listener) => Connection::Tcp(listener.accept()?.0),
        })
    }
}

impl Connection {
    fn try_clone(&self) -> io::Result<Connection> {
        Ok(match self {
            Connection::Local(stream) => Connection::Local(stream.try_clone()?),
            Connection::Tcp(stream) => Connection::Tcp(stream.try_clone()?),
        })
    }

    fn is_local(&self) -> bool {
        matches!(self, Connection::Local(_))
    }

    fn shut_down(&self, how: Shutdown) {
        // One that is closed already needs no more.
        match self {
            Connection::Local(stream) => stream.shutdown(how).ok(),
            Connection::Tcp(stream) => stream.shutdown(how).ok(),
        };
    }

    fn write_within(&self, patience: Duration) -> io::Result<()> {
        match self {
            Connection::Local(stream) => stream.set_write_timeout(Some(patience)),
            Connection::Tcp(stream) => stream.set_write_timeout(Some(patience)),
        }
    }

    /// Whether whoever is at the other end may be let in.
    fn may_come(&self) -> io::Result<bool> {
        match self {
            Connection::Local(stream) => is_trusted(stream),
            Connection::Tcp(_) => Ok(true),
        }
    }

    /// Welcomes it.
    fn into_link(self, spin: Duration) -> Result<Link, LinkError> {
        match self {
            Connection::Local(stream) => Link::give_rings(stream, spin),
            Connection::Tcp(stream) => Link::give_tcp(stream),
        }
    }
}

impl Read for Connection {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Connection::Local(stream) => stream.read(bytes),
            Connection::Tcp(stream) => stream.read(bytes),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Connection::Local(stream) => stream.write(bytes),
            Connection::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Socket for Connection {
    fn read_within(&self, patience: Duration) -> io::Result<()> {
        match self {
            Connection::Local(stream) => stream.set_read_timeout(Some(patience)),
            Connection::Tcp(stream) => stream.set_read_timeout(Some(patience)),
        }
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

    fn all(&self) -> Vec<Arc<Client>> {
        self.lock().open.values().cloned().collect()
    }

    fn listen(self: Arc<Self>, door: &Door) {
        while !self.gate.is_over() {
            match door.accept() {
                Ok(connection) if !self.gate.is_over() => self.admit(connection),
                Ok(_) => {}
                Err(_) if self.gate.is_over() => return,
                // Out of descriptors, most likely: those connected go on, the next try may find one.
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Why this one can't be let in now.
    fn refusal(&self, connection: &Connection, clients: &Clients) -> Option<Refusal> {
        let alike = |client: &&Arc<Client>| client.connection.is_local() == connection.is_local();
        let there = clients.open.values().filter(alike).count();
        if there >= self.options.clients_max {
            return Some(format!("there are {there} native clients already (server.native_clients)"));
        }
        self.gate.refusal()
    }

    fn admit(self: &Arc<Self>, mut connection: Connection) {
        let Ok(again) = connection.try_clone() else { return };
        let mut clients = self.lock();
        clients.threads.retain(|thread| !thread.is_finished());
        if let Some(why) = self.refusal(&connection, &clients) {
            drop(clients);
            // Its greeting is taken first: a connection that is closed before that takes the words with it.
            greeted(&mut connection, REFUSED_PATIENCE).ok();
            refuse(&mut connection, &why);
            return;
        }
        let number = clients.next;
        clients.next += 1;
        let client = Arc::new(Client { connection: again, interrupter: OnceLock::new(), idle: AtomicBool::new(true) });
        clients.open.insert(number, client.clone());
        drop(clients);
        let place = Place(self.clone(), number);
        let serve = move || {
            let shared = place.0.clone();
            // What ended it is the client's matter.
            shared.serve(connection, &client).ok();
        };
        // Without a thread for it the client finds its connection closed: its place goes with the closure.
        let thread = named("native client").spawn(serve);
        self.lock().threads.extend(thread);
    }

    fn serve(&self, mut connection: Connection, client: &Client) -> Result<(), LinkError> {
        connection.write_within(CLIENT_PATIENCE)?;
        let greeting = greeted(&mut connection, GREETING_PATIENCE);
        let may = if connection.may_come()? { greeting } else { Err(LinkError::Refused(STRANGER.into())) };
        let made = may.and_then(|()| (self.make)().map_err(LinkError::Refused));
        if let Err(LinkError::Refused(why)) = &made {
            refuse(&mut connection, why);
        }
        let mut handler = made?;
        client.interrupter.set(handler.interrupter()).ok();
        let mut link = connection.into_link(self.options.spin)?;
        converse(&mut link, &mut *handler, &self.gate, &client.idle)
    }
}

const STRANGER: &str = "only processes of the server's own user may use its rings: use native_address, or SQL";

/// Answers requests until the client goes, is sent away, or breaks the rules. `idle` is told to whoever sends it away.
pub(super) fn converse(link: &mut Link, handler: &mut dyn Handler, gate: &Gate, idle: &AtomicBool) -> Result<(), LinkError> {
    loop {
        let is_idle = !handler.in_transaction();
        idle.store(is_idle, Ordering::SeqCst);
        let (mut message, mut leaving) = (None, gate.farewell().filter(|_| is_idle));
        if leaving.is_none() {
            message = match link.recv(None) {
                Ok(message) => Some(message),
                Err(LinkError::Closed) => None,
                Err(error) => return Err(error),
            };
            idle.store(false, Ordering::SeqCst);
            // What comes when it is to go already is not done any more. One that is cut off hears of it, too.
            leaving = gate.farewell().filter(|_| is_idle || message.is_none());
        }
        if gate.is_over() {
            return Ok(());
        }
        if let Some(farewell) = leaving {
            let reply = Reply::Refused { sqlstate: "57P01".into(), message: farewell };
            return link.send(&reply.encode(), Some(CLIENT_PATIENCE));
        }
        let Some(message) = message else { return Ok(()) };
        let request = Request::decode(&message).map_err(|error| LinkError::Broken(error.to_string()))?;
        let mut reply = handler.answer(request).encode();
        if reply.len() > MESSAGE_BYTES_MAX {
            reply = handler.too_long(reply.len()).encode();
        }
        link.send(&reply, Some(CLIENT_PATIENCE))?;
    }
}

/// Whether the process at the other end is of our user, or root.
fn is_trusted(stream: &UnixStream) -> io::Result<bool> {
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
