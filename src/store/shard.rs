//! A shard's part of the store: what a message from a client's thread runs into, and the branches that sessions' transactions
//! have here, from their first operation to commit or rollback. What operations do in them: [`reads`], [`writes`]; what is done
//! to whole [`partitions`].
//!
//! Owned by one shard, found by letters through [`Reactor::local`](crate::reactor::Reactor::local). Bounded by the sessions
//! that have a branch here. A client's operations run one after the other: each takes the branch's turn, so that one whose
//! client went away has ended before the next begins.

mod partitions;
mod reads;
mod writes;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use crate::btree::space::SpaceService;
use crate::cache::Cache;
use crate::fusion::ges::{FreshVersion, Probe, SessionId, Sessions};
use crate::ids::{Scn, ShardId, TxnId};
use crate::reactor::sync::Semaphore;
use crate::reactor::{Class, Reactor};
use crate::txn::{Cancel, Isolation, Position, Transaction, TxnError, Txns, WaitPolicy};

use super::StoreError;
use super::departed::Adopted;
use super::locks::{LockService, Locker};
use super::several::Several;
use super::types::*;

/// What an operation carries from its session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context {
    /// Which session.
    pub(super) session: u64,
    /// The snapshot that it reads with; registered until the operation has ended.
    pub(super) snapshot: Scn,
    /// The transaction's; `None` outside one.
    pub(super) isolation: Option<Isolation>,
}

/// A session's transaction in this shard.
pub(super) struct Branch {
    pub(super) txn: Transaction,
    turn: Semaphore,
}

/// The store in one shard.
pub struct ShardEngine {
    txns: Txns,
    shard: ShardId,
    service: Rc<dyn SpaceService>,
    locks: Rc<dyn LockService>,
    branches: RefCell<HashMap<u64, Rc<Branch>>>,
    /// What commits over several shards need.
    pub(super) several: Several,
    /// Dead nodes' transactions that are being ended here.
    pub(super) adopted: Adopted,
    /// What can be canceled now.
    running: RefCell<HashMap<u64, Cancel>>,
    lock_trips: Cell<u64>,
}

impl Sessions for ShardEngine {
    fn session_of(&self, txn: TxnId) -> Option<SessionId> {
        let branches = self.branches.borrow();
        let mut ours = branches.iter().filter(|(_, branch)| branch.txn.id() == Some(txn));
        ours.next().map(|(&number, _)| SessionId { number, transaction: 0 })
    }

    fn transaction_of(&self, session: SessionId) -> Option<TxnId> {
        self.branches.borrow().get(&session.number)?.txn.id()
    }
}

/// Takes a running operation out of the list.
struct Running<'a>(&'a ShardEngine, u64);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.borrow_mut().remove(&self.1);
    }
}

impl ShardEngine {
    /// The store over a shard's transactions; put where letters find it.
    #[must_use]
    pub fn new(txns: &Txns, shard: ShardId, service: Rc<dyn SpaceService>, locks: Rc<dyn LockService>) -> Rc<ShardEngine> {
        let engine = Rc::new(ShardEngine {
            txns: txns.clone(),
            shard,
            service,
            locks,
            branches: RefCell::default(),
            several: Several::default(),
            adopted: Adopted::default(),
            running: RefCell::default(),
            lock_trips: Cell::new(0),
        });
        txns.reactor().set_local(engine.clone());
        let sessions: Weak<dyn Sessions> = Rc::downgrade(&engine) as _;
        engine.locks.attach(&txns.shared().gate, sessions);
        engine
    }

    /// The shard's transactions.
    #[must_use]
    pub fn txns(&self) -> &Txns {
        &self.txns
    }

    pub(super) fn reactor(&self) -> &Reactor {
        self.txns.reactor()
    }

    fn cache(&self) -> &Cache {
        self.txns.cache()
    }

    fn branch(&self, session: u64) -> Option<Rc<Branch>> {
        self.branches.borrow().get(&session).cloned()
    }

    fn running(&self, session: u64, cancel: &Cancel) -> Running<'_> {
        self.running.borrow_mut().insert(session, cancel.clone());
        Running(self, session)
    }

    /// Ends what a session's operation waits for here.
    pub(super) fn cancel(&self, session: u64) {
        let cancel = self.running.borrow().get(&session).cloned();
        if let Some(cancel) = cancel {
            cancel.cancel();
        }
    }

    /// Runs `work` in the session's branch, which begins if there is none.
    pub(super) async fn in_branch<T>(
        self: &Rc<Self>,
        context: Context,
        work: impl AsyncFnOnce(&ShardEngine, &Transaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let isolation = context.isolation.ok_or(StoreError::NoTransaction)?;
        let branch = self
            .branches
            .borrow_mut()
            .entry(context.session)
            .or_insert_with(|| Rc::new(Branch { txn: self.txns.begin(isolation), turn: Semaphore::new(1) }))
            .clone();
        let _turn = branch.turn.acquire(1).await;
        if isolation == Isolation::RepeatableRead {
            branch.txn.set_snapshot(context.snapshot);
        }
        branch.txn.cancel().reset();
        let _running = self.running(context.session, branch.txn.cancel());
        work(self, &branch.txn).await
    }

    /// Runs `work` as a transaction of its own, committed if it says so.
    pub(super) async fn autocommit<T>(
        &self,
        session: u64,
        work: impl AsyncFnOnce(&ShardEngine, &Transaction) -> Result<(T, bool), StoreError>,
    ) -> Result<T, StoreError> {
        let txn = self.txns.begin(Isolation::ReadCommitted);
        let _running = self.running(session, txn.cancel());
        let done = match work(self, &txn).await {
            Ok((done, true)) => self.txns.commit(&txn).await.map(|_| done).map_err(StoreError::from),
            // What failed or ended early was undone; only the slot is left to be given back.
            Ok((done, false)) => self.txns.abort(&txn).await.map(|()| done).map_err(StoreError::from),
            Err(error) => Err(error),
        };
        if let Err(error) = &done
            && !matches!(error, StoreError::CommitUnknown { .. })
        {
            self.give_up(&txn).await;
        }
        done
    }

    pub(super) async fn give_up(&self, txn: &Transaction) {
        if let Err(error) = self.txns.abort(txn).await {
            tracing::warn!(%error, "a rollback was interrupted and goes on in the background");
        }
    }

    pub(super) async fn lock_name(
        &self,
        txn: &Transaction,
        session: SessionId,
        name: LockName,
        mode: LockMode,
        wait: WaitPolicy,
    ) -> Result<(), StoreError> {
        let locker = Locker { txn: self.txns.identify(txn).await?, session };
        self.lock_trips.set(self.lock_trips.get() + 1);
        let lock = self.locks.lock(locker, name, mode, wait);
        txn.cancel().race(lock).await?
    }

    /// The transaction is about to commit a change of the catalog.
    pub(super) async fn change_catalog(&self, txn: &Transaction) -> Result<(), StoreError> {
        let owner = self.txns.identify(txn).await?;
        txn.cancel().race(self.locks.change_catalog(owner, self.fresh_version())).await?
    }

    /// See [`Store::catalog_version`](super::Store::catalog_version).
    pub(super) async fn catalog_version(&self) -> Result<u64, StoreError> {
        self.locks.catalog_version(self.fresh_version()).await
    }

    /// Clocks only go forward, and whoever is granted a lock has heard of its former holders' clocks.
    fn fresh_version(&self) -> FreshVersion {
        let txns = self.txns.clone();
        Box::new(move || txns.shared().clock.next(txns.reactor().wall_ms()).0)
    }

    /// The session had come in at the gate and is done.
    pub(super) fn session_left(&self, session: SessionId, name: LockName) {
        self.locks.session_left(session, name);
    }

    pub(super) fn probe(&self, probe: Probe) {
        self.locks.probe(probe);
    }

    /// Where the session's transaction is now in this shard.
    pub(super) fn position(&self, session: u64) -> u64 {
        self.branch(session).map_or(0, |branch| u64::from(self.txns.position(&branch.txn).0))
    }

    pub(super) async fn roll_back_to(&self, txn: &Transaction, position: u64) -> Result<(), StoreError> {
        let position = u32::try_from(position).unwrap_or(u32::MAX);
        Ok(self.txns.roll_back_to(txn, Position(position)).await?)
    }

    pub(super) async fn take_branch(&self, session: u64) -> Option<Rc<Branch>> {
        let branch = self.branch(session)?;
        // An operation that nobody waits for any more ends at its next wait.
        branch.txn.cancel().cancel();
        let turn = branch.turn.acquire(1).await;
        turn.forget();
        branch.txn.cancel().reset();
        self.branches.borrow_mut().remove(&session);
        Some(branch)
    }

    pub(super) fn release_locks(&self, txn: &Transaction) {
        if let Some(id) = txn.id() {
            self.locks.release_all(id);
        }
    }

    /// Gives the session's transaction in this shard up.
    pub(super) async fn roll_back(&self, session: u64) {
        if let Some(branch) = self.take_branch(session).await {
            self.give_up(&branch.txn).await;
            self.release_locks(&branch.txn);
        }
    }

    /// Commits the session's only branch.
    pub(super) async fn commit(&self, session: u64) -> Result<Committed, StoreError> {
        let Some(branch) = self.take_branch(session).await else { return Ok(Committed { scn: None }) };
        let committed = self.txns.commit(&branch.txn).await;
        if !matches!(committed, Ok(_) | Err(TxnError::CommitUnknown(_))) {
            self.give_up(&branch.txn).await;
        }
        self.release_locks(&branch.txn);
        Ok(Committed { scn: committed? })
    }

    pub(super) fn stats(&self) -> StoreStats {
        let counters = self.txns.counters();
        let (transactions, undo_blocks) = self.txns.in_use();
        StoreStats {
            commits: counters.commits.get(),
            rollbacks: counters.rollbacks.get(),
            gets: counters.gets.get(),
            rows_scanned: counters.rows_scanned.get(),
            rows_written: counters.rows_written.get(),
            row_lock_waits: counters.row_lock_waits.get(),
            serialization_failures: counters.serialization_failures.get(),
            deadlocks: counters.deadlocks.get(),
            undo_reads: counters.undo_reads.get(),
            remote_state_requests: counters.state_requests.get(),
            undo_blocks: undo_blocks as u64,
            transactions_active: transactions as u64,
            lock_trips: self.lock_trips.get(),
            locks_at_gate: 0,
        }
    }

    /// The counters and latencies of this shard's transactions.
    pub(crate) fn statistics(&self) -> StoreStatistics {
        let counters = self.txns.counters();
        StoreStatistics {
            counters: self.stats(),
            commit_latency: counters.commit_latency.borrow().clone(),
            row_wait_latency: counters.row_wait_latency.borrow().clone(),
        }
    }

    /// Starts a task for a client.
    pub(super) fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.reactor().spawn(Class::Normal, "client", future);
    }

    /// Which shard it is.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }
}
