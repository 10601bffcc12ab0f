//! PostgreSQL's wire protocol: listens, lets clients in, and carries their statements to the SQL layer.
//!
//! Runs on the gateway's tokio runtime, one task a client. Bounded by `max_connections`; a client beyond that is told so
//! (53300). Each connection fails alone: garbage, a lying length or a panic ends that connection and no other.

mod counters;
pub mod framing;
mod leaving;
pub mod rows;
pub mod session;
pub mod startup;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use self::counters::Counters;
pub use self::counters::StatementStatistics;
use self::framing::{Connection, FramingError};
pub use self::leaving::Leave;
use self::leaving::Leaving;
use self::session::Conversation;
use self::startup::{CancelKey, Opening};
use crate::sql::error::{SqlError, code};
use crate::sql::{Canceler, Database, SqlSession, Startup};

/// How long a client may take to take its farewell.
const FAREWELL_PATIENCE: Duration = Duration::from_millis(500);

/// Serves PostgreSQL clients of one node.
pub struct Server {
    database: Arc<Database>,
    connections_max: usize,
    connections: AtomicUsize,
    next_pid: AtomicI32,
    running: Mutex<HashMap<CancelKey, Canceler>>,
    leaving: Leaving,
    counters: Arc<Counters>,
}

impl Server {
    /// For this database, with at most `connections_max` clients at once.
    #[must_use]
    pub fn new(database: Arc<Database>, connections_max: usize) -> Arc<Server> {
        Arc::new(Server {
            database,
            connections_max,
            connections: AtomicUsize::new(0),
            next_pid: AtomicI32::new(1),
            running: Mutex::new(HashMap::new()),
            leaving: Leaving::new(),
            counters: Arc::default(),
        })
    }

    /// Clients connected now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Sessions that go on now.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.running.lock().expect("nobody panics while holding it").len()
    }

    /// What clients' statements have cost since the start.
    #[must_use]
    pub fn statements(&self) -> StatementStatistics {
        self.counters.read()
    }

    /// Sends clients away: who comes is refused (57P03), idle sessions end (57P01), those in a transaction when it has
    /// ended, and all after `patience`. `why` is a clause about the node, which they are told. Again: the newest order counts.
    pub fn send_away(&self, patience: Duration, why: &str) {
        self.leaving.begin(patience, why);
    }

    /// Clients are welcome again, and who has not gone stays.
    pub fn welcome_again(&self) {
        self.leaving.end();
    }

    /// Ends what all sessions' statements wait for, but not a commit that is under way. They are told that the node is not
    /// available (57P03) and why.
    pub fn interrupt(&self, why: &str) {
        let running: Vec<Canceler> = self.running.lock().expect("nobody panics while holding it").values().cloned().collect();
        for canceler in running {
            canceler.interrupt(code::CANNOT_CONNECT_NOW, format!("the database is not available now: {why}"));
        }
    }

    /// Accepts clients until the task is dropped.
    ///
    /// # Errors
    /// When the runtime can't wait at the listener.
    pub async fn serve(self: Arc<Self>, listener: std::net::TcpListener) -> std::io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    stream.set_nodelay(true).ok();
                    let server = self.clone();
                    tokio::spawn(async move { server.client(stream, peer).await });
                }
                Err(error) => {
                    // Out of descriptors, most likely: those connected go on, the next try may find one.
                    tracing::warn!(%error, "can't accept a PostgreSQL client");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn client(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let mut connection = Connection::new(stream);
        let opening = match tokio::time::timeout(startup::PATIENCE, startup::open(&mut connection)).await {
            Ok(Ok(opening)) => opening,
            Ok(Err(FramingError::Violation(what))) => {
                tracing::warn!(%peer, "{what}: not a PostgreSQL client, or a broken one; connection closed");
                refuse(&mut connection, &SqlError::new(code::PROTOCOL_VIOLATION, what)).await;
                return;
            }
            Ok(Err(_)) | Err(_) => return,
        };
        match opening {
            Opening::Cancel(key) => {
                let cancel = self.running.lock().expect("nobody panics while holding it").get(&key).cloned();
                if let Some(cancel) = cancel {
                    cancel.cancel();
                }
            }
            Opening::Session(parameters) => {
                if let Some(refusal) = self.leaving.refusal() {
                    refuse(&mut connection, &refusal).await;
                    return;
                }
                let place = Place::take(&self);
                if self.connections() > self.connections_max {
                    let error = SqlError::new("53300", "sorry, too many clients already");
                    refuse(&mut connection, &error).await;
                    return;
                }
                let key = CancelKey { pid: self.next_pid.fetch_add(1, Ordering::Relaxed), secret: secret() };
                match startup_of(parameters, key).and_then(|startup| SqlSession::new(self.database.clone(), startup)) {
                    Ok(sql) => self.converse(connection, sql, key, peer).await,
                    Err(error) => refuse(&mut connection, &error).await,
                }
                drop(place);
            }
        }
    }

    async fn converse(&self, mut connection: Connection<TcpStream>, sql: SqlSession, key: CancelKey, peer: SocketAddr) {
        startup::welcome(&mut connection, &sql.reported_settings(), key);
        let canceler = sql.canceler();
        let _cancelable = Cancelable::enter(self, key, canceler.clone());
        let mut leave = self.leaving.watch();
        let mut conversation = Conversation::new(connection, sql, leave.clone(), self.counters.clone());
        let outcome = tokio::select! {
            biased;
            outcome = conversation.run() => outcome,
            () = leave.clone().overdue(&canceler) => {
                let farewell = leave.farewell();
                // Who does not read hears it by the connection's end.
                tokio::time::timeout(FAREWELL_PATIENCE, conversation.farewell(&farewell)).await.ok();
                Ok(())
            }
        };
        if let Err(error) = outcome {
            tracing::debug!(%peer, %error, "client lost");
        }
    }
}

fn startup_of(mut parameters: BTreeMap<String, String>, key: CancelKey) -> Result<Startup, SqlError> {
    let user =
        parameters.remove("user").ok_or_else(|| SqlError::new("28000", "no PostgreSQL user name specified in startup packet"))?;
    let database = parameters.remove("database").filter(|name| !name.is_empty()).unwrap_or_else(|| user.clone());
    parameters.retain(|name, _| name != "replication" && !name.starts_with("_pq_."));
    Ok(Startup { user, database, settings: parameters.into_iter().collect(), backend_pid: key.pid })
}

/// A session that can be cancelled by its key, until it ends in whatever way.
struct Cancelable<'a>(&'a Server, CancelKey);

impl<'a> Cancelable<'a> {
    fn enter(server: &'a Server, key: CancelKey, canceler: Canceler) -> Cancelable<'a> {
        server.running.lock().expect("nobody panics while holding it").insert(key, canceler);
        Cancelable(server, key)
    }
}

impl Drop for Cancelable<'_> {
    fn drop(&mut self) {
        self.0.running.lock().expect("nobody panics while holding it").remove(&self.1);
    }
}

/// A client's place among the connections, given back when it leaves in whatever way.
struct Place<'a>(&'a Server);

impl<'a> Place<'a> {
    fn take(server: &'a Server) -> Place<'a> {
        server.connections.fetch_add(1, Ordering::Relaxed);
        Place(server)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn refuse(connection: &mut Connection<TcpStream>, error: &SqlError) {
    connection.put(&rows::fatal(error));
    connection.flush().await.ok();
}

/// Not to be guessed by another client: from the operating system's generator.
fn secret() -> i32 {
    uuid::Uuid::new_v4().as_u128() as i32
}
