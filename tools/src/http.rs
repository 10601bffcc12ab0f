//! Asking a node's HTTP port how it is.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What `GET /api/v1/health` answers.
pub use rustydb_gateway::http::Health;

/// Asks the node at `address`.
///
/// # Errors
/// In words: nobody listens, no answer within `patience`, or an answer that is not a node's.
pub fn health(address: SocketAddr, patience: Duration) -> Result<Health, String> {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(patience)).http_status_as_error(false).build().into();
    let mut answer = agent.get(format!("http://{address}/api/v1/health")).call().map_err(|error| error.to_string())?;
    let text = answer.body_mut().read_to_string().map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| format!("{address} answers, but not as a RustyDB node does: {error}"))
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
