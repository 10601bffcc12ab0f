//! A program's side: rows by their keys, and transactions, as method calls that wait.

use std::fmt;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::link::{Link, LinkError};
use super::wire::{Isolation, MESSAGE_BYTES_MAX, Reply, Request, Value};

/// The code of a node's farewell.
const SENT_AWAY: &str = "57P01";

/// How a client waits.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    /// How long it looks for a reply in its ring before it sleeps: less latency for a core. Not used over TCP.
    pub spin: Duration,
    /// How long it waits for a reply before it gives the connection up; `None`: for ever, as a lock may take.
    pub patience: Option<Duration>,
    /// How long the server may take to let it in.
    pub connect_patience: Duration,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions { spin: Duration::ZERO, patience: None, connect_patience: Duration::from_secs(5) }
    }
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientError {
    /// The server says so; the connection goes on, unless the code is 57P01: the node sends its clients away, and the request was
    /// not done. A transaction that was open has failed and can only be rolled back.
    Refused {
        /// PostgreSQL's code.
        sqlstate: String,
        /// One line.
        message: String,
    },
    /// The connection is over, and what was under way may have happened or not.
    Disconnected(String),
    /// The request is longer than a message may be; nothing was sent.
    TooLong {
        /// Its bytes.
        bytes: usize,
    },
}

impl ClientError {
    /// PostgreSQL's code for it.
    #[must_use]
    pub fn sqlstate(&self) -> &str {
        match self {
            ClientError::Refused { sqlstate, .. } => sqlstate,
            ClientError::Disconnected(_) => "08006",
            ClientError::TooLong { .. } => "54000",
        }
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::Refused { sqlstate, message } => write!(f, "{message} ({sqlstate})"),
            ClientError::Disconnected(why) => {
                write!(f, "the connection is lost: {why}; connect anew, also to another node, and see what was done")
            }
            ClientError::TooLong { bytes } => {
                write!(f, "a request of {bytes} bytes is longer than the {MESSAGE_BYTES_MAX} of a message: use SQL for such rows")
            }
        }
    }
}

impl std::error::Error for ClientError {}

impl From<LinkError> for ClientError {
    fn from(error: LinkError) -> ClientError {
        ClientError::Disconnected(error.to_string())
    }
}

/// Rows of a scan.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// In the order of the primary key, all columns in the table's order.
    pub rows: Vec<Vec<Value>>,
    /// There are more in the range.
    pub more: bool,
}

/// A connection to a node. One request at a time; dropping it rolls its transaction back.
pub struct Client {
    link: Option<Link>,
    options: ClientOptions,
}

impl Client {
    /// To a node on this host, through rings: `path` is its `server.native_socket`.
    ///
    /// # Errors
    /// [`ClientError::Disconnected`]: nobody listens there, or the node does not want this process.
    pub fn connect_local(path: &Path, options: ClientOptions) -> Result<Client, ClientError> {
        let socket = UnixStream::connect(path)
            .map_err(|error| ClientError::Disconnected(format!("can't connect to {}: {error}", path.display())))?;
        let link = Link::ask_for_rings(socket, options.spin, options.connect_patience)?;
        Ok(Client { link: Some(link), options })
    }

    /// To a node anywhere, over TCP: `address` is its `server.native_address`.
    ///
    /// # Errors
    /// As [`Client::connect_local`].
    pub fn connect_tcp(address: SocketAddr, options: ClientOptions) -> Result<Client, ClientError> {
        let stream = TcpStream::connect_timeout(&address, options.connect_patience)
            .map_err(|error| ClientError::Disconnected(format!("can't connect to {address}: {error}")))?;
        Ok(Client { link: Some(Link::ask_over_tcp(stream, options.connect_patience)?), options })
    }

    fn ask(&mut self, request: &Request) -> Result<Reply, ClientError> {
        let message = request.encode();
        if message.len() > MESSAGE_BYTES_MAX {
            return Err(ClientError::TooLong { bytes: message.len() });
        }
        let patience = self.options.patience;
        let Some(link) = &mut self.link else {
            return Err(ClientError::Disconnected("it was lost before".into()));
        };
        let answered = link.send(&message, patience).and_then(|()| link.recv(patience));
        let decoded = answered
            .map_err(ClientError::from)
            .and_then(|reply| Reply::decode(&reply).map_err(|error| ClientError::Disconnected(error.to_string())));
        if decoded.is_err() {
            // A late reply would be taken for the next request's.
            self.link = None;
        }
        match decoded? {
            Reply::Refused { sqlstate, message } => {
                if sqlstate == SENT_AWAY {
                    self.link = None;
                }
                Err(ClientError::Refused { sqlstate, message })
            }
            reply => Ok(reply),
        }
    }

    fn strange<T>(&mut self, reply: &Reply) -> Result<T, ClientError> {
        self.link = None;
        Err(ClientError::Disconnected(format!("the server answered something else than it was asked: {reply:?}")))
    }

    fn done(&mut self, request: &Request) -> Result<u64, ClientError> {
        match self.ask(request)? {
            Reply::Done(count) => Ok(count),
            reply => self.strange(&reply),
        }
    }

    /// Begins a transaction; without one each request is a transaction of its own.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn begin(&mut self, isolation: Isolation) -> Result<(), ClientError> {
        self.done(&Request::Begin(isolation)).map(|_| ())
    }

    /// Commits: durable and visible on all nodes when it returns.
    ///
    /// # Errors
    /// [`ClientError`]; the transaction has been rolled back, unless the connection was lost or the code is 40003.
    pub fn commit(&mut self) -> Result<(), ClientError> {
        self.done(&Request::Commit).map(|_| ())
    }

    /// Gives the transaction up.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn rollback(&mut self) -> Result<(), ClientError> {
        self.done(&Request::Rollback).map(|_| ())
    }

    /// The row whose primary key is this.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn get(&mut self, table: &str, key: &[Value]) -> Result<Option<Vec<Value>>, ClientError> {
        match self.ask(&Request::Get { table: table.into(), key: key.to_vec() })? {
            Reply::Row(row) => Ok(row),
            reply => self.strange(&reply),
        }
    }

    /// Adds a row, or replaces the one with its primary key: all columns, in the table's order.
    ///
    /// # Errors
    /// [`ClientError`], with the codes of violated constraints among others.
    pub fn put(&mut self, table: &str, row: &[Value]) -> Result<(), ClientError> {
        self.done(&Request::Put { table: table.into(), row: row.to_vec() }).map(|_| ())
    }

    /// Takes a row away; whether it was there.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn delete(&mut self, table: &str, key: &[Value]) -> Result<bool, ClientError> {
        self.done(&Request::Delete { table: table.into(), key: key.to_vec() }).map(|count| count > 0)
    }

    /// Rows whose key's first column lies in `lower..upper`, in the order of the primary key, at most `limit` of them.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn scan(&mut self, table: &str, lower: Option<Value>, upper: Option<Value>, limit: u32) -> Result<Found, ClientError> {
        match self.ask(&Request::Scan { table: table.into(), lower, upper, limit })? {
            Reply::Rows { rows, more } => Ok(Found { rows, more }),
            reply => self.strange(&reply),
        }
    }
}
