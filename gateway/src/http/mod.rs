//! The node's HTTP port: health for load balancers, supervisors and people.
//!
//! Runs on the gateway's tokio runtime; answers from a snapshot that the node publishes, so that a busy engine can't
//! make a health check hang.

mod admin;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};

/// How a node is. The HTTP status is 200 when `status` is `healthy`, else 503.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// `starting`, `recovering`, `healthy`, `suspended`, `draining`, `drained` or `stopping`.
    pub status: String,
    /// This node: `node1`.
    pub node: String,
    /// The cluster's name.
    pub cluster: String,
    /// The membership's generation, 0 until the cluster has formed.
    pub epoch: u64,
    /// The cluster's nodes: those over which quorums are counted.
    pub configured: Vec<String>,
    /// The nodes that serve together in this epoch.
    pub members: Vec<String>,
    /// The recovery of lost nodes, while it is under way on this node.
    pub recovery: Option<Recovery>,
    /// The control group, as this node sees it; none before the cluster has formed.
    #[serde(default)]
    pub control: Option<Control>,
    /// What it waits for, while it is not healthy.
    pub detail: String,
    /// Seconds since the process started.
    pub uptime_s: u64,
    /// The process.
    pub pid: u32,
    /// The program's version.
    pub version: String,
}

/// The cluster as one of its nodes sees it: `GET /api/v1/cluster`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its name.
    pub cluster: String,
    /// Who says so.
    pub node: String,
    /// The membership's generation, 0 until the cluster has formed.
    pub epoch: u64,
    /// Who leads the control group, if anybody does.
    pub leader: Option<String>,
    /// Shards of each node: as many ports in a row are each node's.
    pub shards: u64,
    /// Every node, those that were removed too.
    pub nodes: Vec<ClusterNode>,
    /// What this node waits for, if anything.
    pub detail: String,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterNode {
    /// Its name.
    pub node: String,
    /// Where its first shard listens for the other nodes.
    pub address: SocketAddr,
    /// `member`, `joining` (admitted, has never served) or `removed`.
    pub state: String,
    /// Whether it is in the newest view.
    pub serves: bool,
    /// Its part in the control group: `leader`, `voter`, or nothing.
    pub role: String,
    /// What it waits for, or what is to be done.
    pub detail: String,
}

/// How far a node's part of the recovery of lost nodes is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recovery {
    /// Whose blocks and transactions are recovered.
    pub lost: Vec<String>,
    /// What it does.
    pub phase: String,
    /// Blocks recovered so far.
    pub blocks_done: u64,
    /// Blocks to recover, as far as they are known.
    pub blocks_total: u64,
}

/// How the control group stands, as a node sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Control {
    /// The node that leads it; none while there is no majority, or nobody is elected yet.
    pub leader: Option<String>,
    /// Raft's term.
    pub term: u64,
    /// What this node has applied of the group's log.
    pub applied: u64,
    /// The nodes whose vote counts.
    pub voters: Vec<String>,
    /// The configured nodes, those that were removed too.
    pub nodes: Vec<ControlNode>,
    /// Why the group has stopped on this node, if so.
    pub failed: Option<String>,
}

/// A configured node, as the control group has agreed on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ControlNode {
    /// Its name.
    pub node: String,
    /// Where its first shard listens for the other nodes.
    pub address: SocketAddr,
    /// `voter` or `observer`.
    pub role: String,
    /// `member`, `draining` or `removed`.
    pub state: String,
}

pub use admin::{Admin, Answer};

/// Where the health comes from.
pub type HealthSource = Arc<dyn Fn() -> Health + Send + Sync>;

/// Where the cluster's picture comes from.
pub type ClusterSource = Arc<dyn Fn() -> Cluster + Send + Sync>;

/// The node's live statistics.
pub trait Statistics: Send + Sync {
    /// All of them in one piece, in the layout of the statistics file.
    ///
    /// # Errors
    /// Why there are none, in words.
    fn image(&self) -> Result<Vec<u8>, String>;
    /// The same in Prometheus' text format.
    ///
    /// # Errors
    /// Why there are none, in words.
    fn text(&self) -> Result<String, String>;
}

/// Serves until the task is dropped.
///
/// # Errors
/// When the address is in use or not this machine's; the message names it.
pub async fn serve(
    address: SocketAddr,
    health: HealthSource,
    cluster: ClusterSource,
    statistics: Arc<dyn Statistics>,
    admin: Arc<dyn Admin>,
) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(|error| std::io::Error::new(error.kind(), format!("can't listen for HTTP on {address}: {error}")))?;
    let routes = Router::new().route("/api/v1/health", get(answer)).with_state(health);
    let cluster = Router::new().route("/api/v1/cluster", get(picture)).with_state(cluster);
    let statistics = Router::new().route("/metrics", get(metrics)).route("/api/v1/statistics", get(image)).with_state(statistics);
    let routes = routes.merge(cluster).merge(statistics).merge(admin::routes(admin, address));
    axum::serve(listener, routes.into_make_service_with_connect_info::<SocketAddr>()).await
}

async fn picture(State(cluster): State<ClusterSource>) -> Json<Cluster> {
    Json(cluster())
}

async fn metrics(State(statistics): State<Arc<dyn Statistics>>) -> Response {
    let kind = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    aside(move || statistics.text()).await.map_or_else(unavailable, |text| (kind, text).into_response())
}

async fn image(State(statistics): State<Arc<dyn Statistics>>) -> Response {
    let kind = [(CONTENT_TYPE, "application/octet-stream")];
    aside(move || statistics.image()).await.map_or_else(unavailable, |image| (kind, image).into_response())
}

/// Reads statistics, which may wait for a publication to end, in a thread that no client's task waits for.
async fn aside<T: Send + 'static>(read: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    let read = tokio::task::spawn_blocking(read).await;
    read.unwrap_or_else(|_| Err("the statistics could not be read: see the node's log".into()))
}

fn unavailable(why: String) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response()
}

async fn answer(State(health): State<HealthSource>) -> (StatusCode, Json<Health>) {
    let health = health();
    let status = if health.status == "healthy" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health))
}
