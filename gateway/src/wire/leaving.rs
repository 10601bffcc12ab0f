//! Sending clients away: the node is being drained, or stops.
//!
//! Shared by the server and its clients' tasks. Idle sessions go at once, those in a transaction when it has ended, and
//! everybody when the time is over. Whoever comes is told so before it is let in.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::sql::Canceler;
use crate::sql::error::{SqlError, code};

/// How long a statement may take to end after it was canceled, until its connection is closed over it.
const CANCEL_GRACE: Duration = Duration::from_secs(1);

/// Why clients are to go, and until when.
#[derive(Clone, Debug)]
struct Order {
    until: Instant,
    why: Arc<str>,
}

/// The server's side.
#[derive(Debug)]
pub(super) struct Leaving(watch::Sender<Option<Order>>);

/// A client's side.
#[derive(Clone, Debug)]
pub struct Leave(watch::Receiver<Option<Order>>);

impl Leaving {
    pub(super) fn new() -> Leaving {
        Leaving(watch::Sender::new(None))
    }

    /// Sends everybody away; `why` is a clause about the node.
    pub(super) fn begin(&self, patience: Duration, why: &str) {
        self.0.send_replace(Some(Order { until: Instant::now() + patience, why: why.into() }));
    }

    /// Clients may stay again.
    pub(super) fn end(&self) {
        self.0.send_replace(None);
    }

    /// Why nobody is let in; `None` when clients are.
    pub(super) fn refusal(&self) -> Option<SqlError> {
        let order = self.0.borrow();
        order.as_ref().map(|Order { why, .. }| {
            SqlError::new(code::CANNOT_CONNECT_NOW, format!("{why}: no connections are accepted; connect to another node"))
        })
    }

    pub(super) fn watch(&self) -> Leave {
        Leave(self.0.subscribe())
    }
}

impl Leave {
    /// Nobody is ever sent away.
    #[must_use]
    pub fn never() -> Leave {
        // A sender that is gone changes nothing any more.
        Leave(watch::channel(None).1)
    }

    fn order(&mut self) -> Option<Order> {
        self.0.borrow_and_update().clone()
    }

    /// Whether clients are being sent away.
    pub(super) fn is_ordered(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Resolves when this client must go: an idle one at once, another when the time is over. May be dropped.
    pub(super) async fn must_go(&mut self, idle: bool) {
        loop {
            let order = self.order();
            if idle && order.is_some() {
                return;
            }
            let over = async {
                match order {
                    Some(order) => tokio::time::sleep_until(order.until).await,
                    None => std::future::pending().await,
                }
            };
            let changed = async {
                if self.0.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = over => return,
                () = changed => {}
            }
        }
    }

    /// Cancels what the client runs when the time is over, and resolves if it does not end for that.
    pub(super) async fn overdue(mut self, canceler: &Canceler) {
        loop {
            self.must_go(false).await;
            let farewell = self.farewell();
            canceler.interrupt(code::ADMIN_SHUTDOWN, farewell.message().to_owned());
            tokio::time::sleep(CANCEL_GRACE).await;
            if self.order().is_some_and(|order| order.until <= Instant::now()) {
                return;
            }
        }
    }

    /// What a client is told that is sent away.
    pub(super) fn farewell(&mut self) -> SqlError {
        let order = self.order();
        let why = order.as_ref().map_or("the node stops", |order| &order.why);
        SqlError::new(code::ADMIN_SHUTDOWN, format!("terminating connection because {why}; connect to another node"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    async fn goes(leave: &mut Leave, idle: bool) -> bool {
        tokio::time::timeout(Duration::ZERO, leave.must_go(idle)).await.is_ok()
    }

    #[tokio::test]
    async fn idle_clients_go_at_once_and_busy_ones_when_the_time_is_over() {
        let leaving = Leaving::new();
        let mut client = leaving.watch();
        assert!(leaving.refusal().is_none() && !goes(&mut client, true).await);
        leaving.begin(LONG, "the node is being drained");
        assert!(goes(&mut client, true).await && !goes(&mut client, false).await);
        assert_eq!(leaving.refusal().expect("drained").fields().code, "57P03");
        assert_eq!(
            client.farewell().message(),
            "terminating connection because the node is being drained; connect to another node"
        );
        let waits = tokio::spawn(async move { client.must_go(false).await });
        // Less patience than before: who waits hears of it.
        leaving.begin(Duration::ZERO, "the node stops");
        waits.await.expect("no panic");
    }

    #[tokio::test]
    async fn whoever_has_not_gone_when_the_order_is_taken_back_stays() {
        let leaving = Leaving::new();
        let mut client = leaving.watch();
        leaving.begin(Duration::ZERO, "the node is being drained");
        leaving.end();
        assert!(!goes(&mut client, true).await && !goes(&mut client, false).await);
        assert!(leaving.refusal().is_none());
    }
}
