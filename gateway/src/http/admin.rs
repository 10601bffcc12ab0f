//! What operators ask of a node over HTTP: `POST /api/v1/node/…` and `/api/v1/cluster/…`, `GET /api/v1/node/config`.
//!
//! Only from this machine: whoever can open a connection from an address of the loopback network, or from the very address
//! that the node listens on, could stop the process anyway. Everybody else gets 403.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

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
    /// Takes another node, by name, out of the cluster. `vouches`: the operator has made sure that it can't write any more.
    fn fence(&self, node: &str, vouches: bool) -> Answer;
    /// Admits a node, by name, at this interconnect address.
    fn admit(&self, node: &str, address: SocketAddr) -> Answer;
    /// Removes a node, by name, for good; one that serves only by force.
    fn remove(&self, node: &str, force: bool) -> Answer;
    /// The text of the node's configuration file.
    fn config(&self) -> Answer;
}

#[derive(Clone)]
struct Door {
    admin: Arc<dyn Admin>,
    own: SocketAddr,
}

pub(super) fn routes(admin: Arc<dyn Admin>, own: SocketAddr) -> Router {
    let door = Door { admin, own };
    Router::new()
        .route("/api/v1/node/stop", post(stop))
        .route("/api/v1/node/drain/{timeout_s}", post(drain))
        .route("/api/v1/node/undrain", post(undrain))
        .route("/api/v1/node/fence/{node}", post(fence))
        .route("/api/v1/node/fence/{node}/confirm", post(fence_confirmed))
        .route("/api/v1/node/config", get(config))
        .route("/api/v1/cluster/join/{node}/{address}", post(join))
        .route("/api/v1/cluster/remove/{node}", post(remove))
        .route("/api/v1/cluster/remove/{node}/force", post(remove_by_force))
        .route_layer(from_fn_with_state(door.clone(), only_from_here))
        .with_state(door)
}

/// Before every route, so that none can forget it.
async fn only_from_here(
    State(door): State<Door>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    if from.ip().is_loopback() || from.ip() == door.own.ip() {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, "operators are served on the node's own machine only\n").into_response()
    }
}

async fn stop(State(door): State<Door>) -> (StatusCode, String) {
    answered(door.admin.stop().await)
}

async fn drain(State(door): State<Door>, Path(timeout_s): Path<u64>) -> (StatusCode, String) {
    answered(door.admin.drain(timeout_s).await)
}

async fn undrain(State(door): State<Door>) -> (StatusCode, String) {
    answered(door.admin.undrain().await)
}

async fn fence(State(door): State<Door>, Path(node): Path<String>) -> (StatusCode, String) {
    answered(door.admin.fence(&node, false).await)
}

async fn fence_confirmed(State(door): State<Door>, Path(node): Path<String>) -> (StatusCode, String) {
    answered(door.admin.fence(&node, true).await)
}

async fn config(State(door): State<Door>) -> (StatusCode, String) {
    answered(door.admin.config().await)
}

async fn join(State(door): State<Door>, Path((node, address)): Path<(String, SocketAddr)>) -> (StatusCode, String) {
    answered(door.admin.admit(&node, address).await)
}

async fn remove(State(door): State<Door>, Path(node): Path<String>) -> (StatusCode, String) {
    answered(door.admin.remove(&node, false).await)
}

async fn remove_by_force(State(door): State<Door>, Path(node): Path<String>) -> (StatusCode, String) {
    answered(door.admin.remove(&node, true).await)
}

fn answered(outcome: Result<String, String>) -> (StatusCode, String) {
    match outcome {
        Ok(words) => (StatusCode::OK, words + "\n"),
        Err(words) => (StatusCode::CONFLICT, words + "\n"),
    }
}
