//! Asking a node's HTTP port how it is.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What `GET /api/v1/health` answers.
pub use rustydb_gateway::http::Health;
/// What `GET /api/v1/cluster` answers.
pub use rustydb_gateway::http::{Cluster, ClusterNode};

/// Longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// Longest statistics that are read.
const STATISTICS_BYTES_MAX: u64 = 64 << 20;

/// Asks the node at `address`: one HTTP/1.0 request on a connection of its own.
///
/// # Errors
/// In words: nobody listens, no answer within `patience`, or an answer that is not a node's.
pub fn health(address: SocketAddr, patience: Duration) -> Result<Health, String> {
    let (_, body) = request(address, patience, "GET", "/api/v1/health")?;
    serde_json::from_str(&body).map_err(|error| format!("{address} answers, but not as a RustyDB node does: {error}"))
}

/// Asks the node at `address` which nodes the cluster has.
///
/// # Errors
/// As [`health`].
pub fn cluster(address: SocketAddr, patience: Duration) -> Result<Cluster, String> {
    let (_, body) = request(address, patience, "GET", "/api/v1/cluster")?;
    serde_json::from_str(&body).map_err(|error| format!("{address} answers, but not as a RustyDB node does: {error}"))
}

/// The statistics of the node at `address`, in the layout of the statistics file.
///
/// # Errors
/// As [`health`].
pub fn statistics(address: SocketAddr, patience: Duration) -> Result<Vec<u8>, String> {
    let (done, body) = request_bytes(address, patience, "GET", "/api/v1/statistics", STATISTICS_BYTES_MAX)?;
    if done { Ok(body) } else { Err(String::from_utf8_lossy(&body).trim_end().to_owned()) }
}

/// The text of the configuration file of the node at `address`, which tells it on its own machine only.
///
/// # Errors
/// Its words, or why there are none.
pub fn config_of(address: SocketAddr, patience: Duration) -> Result<String, String> {
    let (done, body) = request(address, patience, "GET", "/api/v1/node/config")?;
    if done { Ok(body) } else { Err(body.trim_end().to_owned()) }
}

/// Asks the node at `address` to do something: its words.
///
/// # Errors
/// Its words, or why there are none.
pub fn order(address: SocketAddr, patience: Duration, path: &str) -> Result<String, String> {
    let (done, body) = request(address, patience, "POST", path)?;
    let words = body.trim_end().to_owned();
    if done { Ok(words) } else { Err(words) }
}

/// One HTTP/1.0 request on a connection of its own: whether its status is 200, and the body.
fn request(address: SocketAddr, patience: Duration, method: &str, path: &str) -> Result<(bool, String), String> {
    let (done, body) = request_bytes(address, patience, method, path, ANSWER_BYTES_MAX)?;
    Ok((done, String::from_utf8(body).map_err(|error| error.to_string())?))
}

fn request_bytes(
    address: SocketAddr,
    patience: Duration,
    method: &str,
    path: &str,
    bytes_max: u64,
) -> Result<(bool, Vec<u8>), String> {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        write!(stream, "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.take(bytes_max).read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error: std::io::Error| error.to_string())?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(answer.len());
    let head = String::from_utf8_lossy(&answer[..end]);
    let body = answer.get(end + 4..).unwrap_or_default();
    Ok((head.split(' ').nth(1) == Some("200"), body.to_owned()))
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
