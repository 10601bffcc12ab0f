//! The clients of a running node, PostgreSQL's and native ones, for operators: drained, taken again, told when the node can't
//! answer.
//!
//! On the gateway's runtime; one for the process. Bounded by itself: one order at a time, the newest counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustydb::cluster::{Operator, Phase, Status};
use rustydb_gateway::wire;
use rustydb_shm::native::Endpoint;
use tokio::time::Instant;

/// How often it is looked whether all have gone.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Over the time that clients have, until what they still run is given up.
const OVERDUE: Duration = Duration::from_secs(2);
/// While the node is suspended: how often what began to wait just before is ended.
const INTERRUPT_EVERY: Duration = Duration::from_millis(200);
/// Longest time that clients can be given.
pub(super) const DRAIN_TIMEOUT_S_MAX: u64 = 7 * 86_400;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    Draining,
    Drained,
    Stopping,
}

/// See the module.
pub(super) struct Clients {
    server: OnceLock<Arc<wire::Server>>,
    /// Held by clones only within a call: it ends when [`Native`] takes it out.
    native: Mutex<Option<Arc<Endpoint>>>,
    operator: Operator,
    stage: Mutex<Stage>,
    /// Counts orders: a task that carries an older one out ends.
    orders: AtomicU64,
}

impl Clients {
    pub(super) fn new(operator: Operator) -> Arc<Clients> {
        Arc::new(Clients {
            server: OnceLock::new(),
            native: Mutex::default(),
            operator,
            stage: Mutex::new(Stage::Open),
            orders: AtomicU64::new(0),
        })
    }

    /// The node is open, these are its clients; the native ones until what is given back is dropped.
    pub(super) fn serve(self: &Arc<Self>, server: &Arc<wire::Server>, native: Option<Endpoint>) -> Native {
        self.server.set(server.clone()).ok().expect("a node opens once");
        *self.native.lock().unwrap_or_else(PoisonError::into_inner) = native.map(Arc::new);
        Native(self.clone())
    }

    fn native(&self) -> Option<Arc<Endpoint>> {
        self.native.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stage(&self) -> Stage {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, stage: Stage) -> u64 {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
        self.orders.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Sessions of PostgreSQL clients that go on now.
    pub(super) fn sql_sessions(&self) -> usize {
        self.server.get().map_or(0, |server| server.sessions())
    }

    /// Native clients connected now.
    pub(super) fn native_clients(&self) -> usize {
        self.native().map_or(0, |native| native.clients())
    }

    /// All of them.
    fn sessions(&self) -> usize {
        self.sql_sessions() + self.native_clients()
    }

    /// What their statements have cost; nothing before the node is open.
    pub(super) fn statements(&self) -> wire::StatementStatistics {
        self.server.get().map(|server| server.statements()).unwrap_or_default()
    }

    /// What health says about the clients of a node that could serve them.
    pub(super) fn health(&self) -> Option<(&'static str, String)> {
        let left = match self.sessions() {
            1 => "1 session left".to_owned(),
            many => format!("{many} sessions left"),
        };
        match self.stage() {
            Stage::Open => None,
            Stage::Draining => Some(("draining", left)),
            Stage::Drained => Some(("drained", "nobody is connected, its blocks are written; stop it, or undrain it".into())),
            Stage::Stopping => Some(("stopping", left)),
        }
    }

    /// Sends the clients away, and writes the node's blocks when they have gone. Returns at once.
    pub(super) fn drain(self: &Arc<Self>, patience: Duration) -> Result<String, String> {
        let server = self.server.get().ok_or("the node is still starting")?.clone();
        if self.stage() == Stage::Stopping {
            return Err("the node is stopping".into());
        }
        let order = self.enter(Stage::Draining);
        tracing::info!(sessions = self.sessions(), patience_s = patience.as_secs(), "drains: clients are sent away");
        self.send_away(&server, patience, "the node is being drained");
        let this = self.clone();
        let until = Instant::now() + patience;
        tokio::spawn(async move {
            if !this.gone(until, || this.orders.load(Ordering::Acquire) != order).await {
                return;
            }
            match this.operator.write_blocks().await {
                Ok(true) => tracing::info!("drained: nobody is connected, and all blocks are written"),
                Ok(false) => tracing::info!("drained: nobody is connected; some blocks are still to be written by other nodes"),
                Err(error) => tracing::warn!(%error, "drained, but its blocks could not be written"),
            }
            let mut stage = this.stage.lock().unwrap_or_else(PoisonError::into_inner);
            if this.orders.load(Ordering::Acquire) == order {
                *stage = Stage::Drained;
            }
        });
        Ok(format!("is being drained: transactions have {} s to end; see cluster-status", patience.as_secs()))
    }

    /// Takes clients again.
    pub(super) fn undrain(&self) -> Result<String, String> {
        let server = self.server.get().ok_or("the node is still starting")?;
        if self.stage() == Stage::Stopping {
            return Err("the node is stopping".into());
        }
        self.enter(Stage::Open);
        server.welcome_again();
        if let Some(native) = self.native() {
            native.welcome_again();
        }
        tracing::info!("takes clients again");
        Ok("takes clients again".into())
    }

    /// The node stops: sends the clients away and waits until they have gone, or their time is over.
    pub(super) async fn leave(&self, patience: Duration) {
        let Some(server) = self.server.get() else { return };
        self.enter(Stage::Stopping);
        tracing::info!(sessions = self.sessions(), "stops: clients are sent away");
        self.send_away(server, patience, "the node stops");
        let until = Instant::now() + patience;
        if !self.gone(until, || Instant::now() > until + OVERDUE).await {
            tracing::warn!(sessions = self.sessions(), "these sessions did not end in time");
        }
    }

    fn send_away(&self, server: &wire::Server, patience: Duration, why: &str) {
        server.send_away(patience, why);
        if let Some(native) = self.native() {
            native.send_away(why);
        }
    }

    /// Resolves to true when nobody is connected, and to false when `enough` says so. Native clients are cut off at `until`; PostgreSQL's
    /// go by themselves then.
    async fn gone(&self, until: Instant, enough: impl Fn() -> bool) -> bool {
        while self.sessions() > 0 {
            if enough() {
                return false;
            }
            if Instant::now() >= until
                && let Some(native) = self.native()
            {
                native.cut_off();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        true
    }

    /// Ends what clients wait for while the node is suspended, and tells them why; runs until it is dropped.
    pub(super) async fn watch(&self, status: &Status) {
        let Some(server) = self.server.get() else { return };
        loop {
            let now = status.when(|phase| *phase == Phase::Suspended).await;
            server.interrupt(&now.detail);
            if let Some(native) = self.native() {
                native.interrupt("57P03", &format!("the database is not available now: {}", now.detail));
            }
            tokio::time::sleep(INTERRUPT_EVERY).await;
        }
    }
}

/// Native clients are served until this is dropped; then their transactions have been given up, or soon will be.
pub(super) struct Native(Arc<Clients>);

impl Drop for Native {
    fn drop(&mut self) {
        // Not while it is locked: the end takes a moment.
        let endpoint = self.0.native.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(endpoint);
    }
}
