//! What operators ask of a node over HTTP: `POST /api/v1/node/…`.
//!
//! Only from this machine: whoever can open a connection from an address of the loopback network, or from the very address
//! that the node listens on, could stop the process anyway. Everybody else gets 403.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::StatusCode;
use axum::routing::post;

/// An answer to an operator: words, or why not.
pub type Answer = Pin<Box<dyn Future<Output = Result<String, String>> + Send>>;

/// What a node does for operators.
pub trait Admin: Send + Sync {
    /// Ends the node cleanly.
    fn stop(&self) -> Answer;
    /// Sends the node's clients away, those in a transaction within so many seconds.
    fn drain(&self, timeout_s: u64) -> Answer;
    /// Takes clients again.
    fn undrain(&self) -> Answer;
    /// Takes another node, by name, out of the cluster.
    fn fence(&self, node: &str) -> Answer;
}

#[derive(Clone)]
struct Door {
    admin: Arc<dyn Admin>,
    own: SocketAddr,
}

pub(super) fn routes(admin: Arc<dyn Admin>, own: SocketAddr) -> Router {
    Router::new()
        .route("/api/v1/node/stop", post(stop))
        .route("/api/v1/node/drain/{timeout_s}", post(drain))
        .route("/api/v1/node/undrain", post(undrain))
        .route("/api/v1/node/fence/{node}", post(fence))
        .with_state(Door { admin, own })
}

impl Door {
    fn refuses(&self, from: SocketAddr) -> Option<(StatusCode, String)> {
        let local = from.ip().is_loopback() || from.ip() == self.own.ip();
        (!local).then(|| (StatusCode::FORBIDDEN, "operators are served on the node's own machine only\n".into()))
    }
}

async fn stop(State(door): State<Door>, ConnectInfo(from): ConnectInfo<SocketAddr>) -> (StatusCode, String) {
    match door.refuses(from) {
        Some(refusal) => refusal,
        None => answered(door.admin.stop().await),
    }
}

async fn drain(
    State(door): State<Door>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(timeout_s): Path<u64>,
) -> (StatusCode, String) {
    match door.refuses(from) {
        Some(refusal) => refusal,
        None => answered(door.admin.drain(timeout_s).await),
    }
}

async fn undrain(State(door): State<Door>, ConnectInfo(from): ConnectInfo<SocketAddr>) -> (StatusCode, String) {
    match door.refuses(from) {
        Some(refusal) => refusal,
        None => answered(door.admin.undrain().await),
    }
}

async fn fence(
    State(door): State<Door>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(node): Path<String>,
) -> (StatusCode, String) {
    match door.refuses(from) {
        Some(refusal) => refusal,
        None => answered(door.admin.fence(&node).await),
    }
}

fn answered(outcome: Result<String, String>) -> (StatusCode, String) {
    match outcome {
        Ok(words) => (StatusCode::OK, words + "\n"),
        Err(words) => (StatusCode::CONFLICT, words + "\n"),
    }
}
