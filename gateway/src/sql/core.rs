//! The part of a session that its running streams share with it: the store's session, cancellation, and whether a
//! statement outside a transaction block is still open.
//!
//! One per session; the streams of a statement run one at a time or take turns at the store's session by its mutex.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use datafusion::common::DataFusionError;
use rustydb::ids::PartitionId;
use rustydb::store::{CancelHandle, LockMode, LockName, ScanChunk, ScanLimit, ScanRange, Session, StoreError, WaitPolicy};
use tokio::sync::{Mutex, Notify};

use super::error::{SqlError, code};

/// How often an operation that was canceled is canceled again, until it has ended.
const CANCEL_AGAIN: Duration = Duration::from_millis(100);

/// See the module.
pub struct SessionCore {
    /// The client's transaction.
    pub store: Mutex<Session>,
    cancel_store: CancelHandle,
    canceled: AtomicBool,
    /// Why, if not because the client asked for it: code and words.
    interruption: SyncMutex<Option<(&'static str, String)>>,
    wake: Notify,
    /// A stream hit an error inside a transaction block.
    pub failed: AtomicBool,
    /// A statement outside a block has a transaction open until its rows are drained.
    pub open: AtomicBool,
    /// Rows read by scans, for EXPLAIN ANALYZE.
    pub rows_scanned: AtomicU64,
}

/// Cancels a session's running statement, from any thread.
#[derive(Clone)]
pub struct Canceler(Arc<SessionCore>);

impl Canceler {
    /// Ends the running statement with `57014`; nothing happens when none runs.
    pub fn cancel(&self) {
        self.0.cancel(None);
    }

    /// As [`Canceler::cancel`], for a reason of the node's: the client is told this code and these words. A commit that is
    /// under way is not given up.
    pub fn interrupt(&self, code: &'static str, why: String) {
        self.0.cancel(Some((code, why)));
    }
}

impl SessionCore {
    /// Around a store's session.
    #[must_use]
    pub fn new(session: Session) -> Arc<SessionCore> {
        let cancel_store = session.cancel_handle();
        Arc::new(SessionCore {
            store: Mutex::new(session),
            cancel_store,
            canceled: AtomicBool::new(false),
            interruption: SyncMutex::default(),
            wake: Notify::new(),
            failed: AtomicBool::new(false),
            open: AtomicBool::new(false),
            rows_scanned: AtomicU64::new(0),
        })
    }

    /// A handle that cancels.
    #[must_use]
    pub fn canceler(self: &Arc<SessionCore>) -> Canceler {
        Canceler(Arc::clone(self))
    }

    /// A statement begins: an earlier cancel no longer counts.
    pub fn begin_statement(&self) {
        self.canceled.store(false, Ordering::Release);
    }

    fn cancel(&self, interruption: Option<(&'static str, String)>) {
        *self.interruption.lock().unwrap_or_else(PoisonError::into_inner) = interruption;
        self.canceled.store(true, Ordering::Release);
        self.wake.notify_waiters();
        self.cancel_store.cancel();
    }

    /// What the client is told of its statement that was canceled.
    fn canceled(&self) -> SqlError {
        match &*self.interruption.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((code, why)) => SqlError::new(code, why.clone()),
            None => SqlError::new(code::QUERY_CANCELED, "canceling statement due to user request"),
        }
    }

    /// The store says only that it was canceled, not why.
    fn explained(&self, fault: SqlError) -> SqlError {
        let ours = fault.fields().code == code::QUERY_CANCELED && self.canceled.load(Ordering::Acquire);
        if ours { self.canceled() } else { fault }
    }

    /// Whether the statement was canceled.
    ///
    /// # Errors
    /// `57014`, or what [`Canceler::interrupt`] was given.
    pub fn check_canceled(&self) -> Result<(), SqlError> {
        if self.canceled.load(Ordering::Acquire) { Err(self.canceled()) } else { Ok(()) }
    }

    /// Runs `work` unless the statement is canceled meanwhile.
    ///
    /// # Errors
    /// `57014`, or the work's own.
    pub async fn unless_canceled<T>(&self, work: impl Future<Output = Result<T, SqlError>>) -> Result<T, SqlError> {
        let woken = self.wake.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        self.check_canceled()?;
        tokio::select! {
            biased;
            result = work => result.map_err(|fault| self.explained(fault)),
            () = woken => Err(self.canceled()),
        }
    }

    /// Runs `work`, which may commit: when the statement is canceled the store ends its waits for others, and the work is
    /// never left without knowing what came of it.
    ///
    /// # Errors
    /// `57014`, or the work's own.
    pub async fn to_its_end<T>(&self, work: impl Future<Output = Result<T, SqlError>>) -> Result<T, SqlError> {
        let woken = self.wake.notified();
        tokio::pin!(woken, work);
        woken.as_mut().enable();
        self.check_canceled()?;
        tokio::select! {
            biased;
            result = &mut work => return result.map_err(|fault| self.explained(fault)),
            () = woken => {}
        }
        loop {
            // Whoever canceled may have come before the operation had begun to wait.
            match tokio::time::timeout(CANCEL_AGAIN, &mut work).await {
                Ok(result) => return result.map_err(|fault| self.explained(fault)),
                Err(_) => self.cancel_store.cancel(),
            }
        }
    }

    /// Takes a lock for the rest of the transaction; gives up after `limit`.
    ///
    /// # Errors
    /// `55P03` when it could not be had in time or, with [`WaitPolicy::NoWait`], at once; `40P01`, `57014`.
    pub async fn lock(&self, name: LockName, mode: LockMode, wait: WaitPolicy, limit: Option<Duration>) -> Result<(), SqlError> {
        let work = async {
            let lock = async { self.store.lock().await.lock(name, mode, wait).await };
            tokio::pin!(lock);
            let Some(limit) = limit else { return Ok(lock.await?) };
            if let Ok(done) = tokio::time::timeout(limit, &mut lock).await {
                return Ok(done?);
            }
            self.cancel_store.cancel();
            match lock.await {
                Err(StoreError::Canceled) => {
                    Err(SqlError::new(code::LOCK_NOT_AVAILABLE, "canceling statement due to lock timeout"))
                }
                // It came just then.
                other => Ok(other?),
            }
        };
        self.unless_canceled(work).await
    }

    /// The next rows of a scan.
    ///
    /// # Errors
    /// The store's, or `57014`.
    pub async fn scan(&self, partition: PartitionId, range: ScanRange, limit: ScanLimit) -> Result<ScanChunk, SqlError> {
        self.check_canceled()?;
        let chunk = self.store.lock().await.scan(partition, range, limit).await?;
        self.rows_scanned.fetch_add(chunk.rows.len() as u64, Ordering::Relaxed);
        Ok(chunk)
    }

    /// Ends the transaction of a statement outside a block, if one is open.
    ///
    /// # Errors
    /// The commit's.
    pub async fn finish(&self, commit: bool) -> Result<(), SqlError> {
        if self.open.swap(false, Ordering::AcqRel) {
            let mut session = self.store.lock().await;
            if commit {
                session.commit().await?;
            } else {
                session.rollback().await?;
            }
        }
        Ok(())
    }
}

impl From<SqlError> for DataFusionError {
    fn from(fault: SqlError) -> DataFusionError {
        DataFusionError::External(Box::new(fault))
    }
}
