//! Asking a node's HTTP port how it is.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What `GET /api/v1/health` answers.
pub use rustydb_gateway::http::Health;

/// Longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Asks the node at `address`: one HTTP/1.0 request on a connection of its own.
///
/// # Errors
/// In words: nobody listens, no answer within `patience`, or an answer that is not a node's.
pub fn health(address: SocketAddr, patience: Duration) -> Result<Health, String> {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        write!(stream, "GET /api/v1/health HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error: std::io::Error| error.to_string())?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).map_err(|error| format!("{address} answers, but not as a RustyDB node does: {error}"))
}

/// A node as the operator's tables show it.
#[derive(Debug, Serialize, Deserialize)]
pub struct NodeRow {
    /// Name.
    pub node: String,
    /// Where its HTTP port is.
    pub http: SocketAddr,
    /// Its answer, or why there is none.
    pub health: Result<Health, String>,
}
