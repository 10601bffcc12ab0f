//! The node's HTTP port: health for load balancers, supervisors and people.
//!
//! Runs on the gateway's tokio runtime; answers from a snapshot that the node publishes, so that a busy engine can't
//! make a health check hang.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use serde::{Deserialize, Serialize};

/// How a node is. The HTTP status is 200 when `status` is `healthy`, else 503.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// `starting`, `recovering`, `healthy` or `stopping`.
    pub status: String,
    /// This node: `node1`.
    pub node: String,
    /// The cluster's name.
    pub cluster: String,
    /// The membership's generation, 0 until the cluster has formed.
    pub epoch: u64,
    /// Members of the cluster.
    pub members: Vec<String>,
    /// What it waits for, while it is not healthy.
    pub detail: String,
    /// Seconds since the process started.
    pub uptime_s: u64,
    /// The process.
    pub pid: u32,
    /// The program's version.
    pub version: String,
}

/// Where the health comes from.
pub type HealthSource = Arc<dyn Fn() -> Health + Send + Sync>;

/// Serves until the task is dropped.
///
/// # Errors
/// When the address is in use or not this machine's; the message names it.
pub async fn serve(address: SocketAddr, health: HealthSource) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(|error| std::io::Error::new(error.kind(), format!("can't listen for HTTP on {address}: {error}")))?;
    let routes = Router::new().route("/api/v1/health", get(answer)).with_state(health);
    axum::serve(listener, routes).await
}

async fn answer(State(health): State<HealthSource>) -> (StatusCode, Json<Health>) {
    let health = health();
    let status = if health.status == "healthy" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health))
}
