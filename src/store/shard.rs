//! A shard's part of the store: what a message from a client's thread runs into.
//!
//! Owned by one shard, found by letters through [`Reactor::local`](crate::reactor::Reactor::local). Bounded by the sessions
//! that have a branch here. A client's operations run one after the other: each takes the branch's turn, so that one whose
//! client went away has ended before the next begins.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use crate::btree::space::{SpaceReply, SpaceRequest, SpaceService, Urgency};
use crate::btree::{KeyRange, NeedRoom, SpaceError, Tree, Visit};
use crate::cache::Cache;
use crate::fusion::ges::{FreshVersion, Probe, SessionId, Sessions};
use crate::ids::{PartitionId, Scn, ShardId, TxnId};
use crate::reactor::sync::Semaphore;
use crate::reactor::{Class, Reactor};
use crate::rules::{DesignRule, kept};
use crate::txn::{Cancel, Decision, Glance, How, Isolation, Outcome, Position, Transaction, TxnError, Txns, View, WaitPolicy};

use super::StoreError;
use super::departed::Adopted;
use super::locks::{LockService, Locker};
use super::several::Several;
use super::types::*;

/// How long a read waits for the node's lease to read to be renewed.
const LEASE_PATIENCE: Duration = Duration::from_secs(5);
const LEASE_POLL: Duration = Duration::from_millis(2);
/// Dead rows taken out in one redo group.
const VACUUM_GROUP_ROWS: usize = 128;

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

/// How a batch ended without a fault.
pub(super) struct Batch<T> {
    pub(super) results: Vec<T>,
    /// Everything that it did was undone: a duplicate, or a modifier that gave up.
    pub(super) undone: bool,
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

    /// Shows the newest committed row to `look`, for readers in this very thread; `None`: use a session. No hop, no copy, no
    /// allocation.
    ///
    /// # Errors
    /// When a block or the row is damaged.
    pub fn get_with<R>(
        &self,
        partition: PartitionId,
        key: &[u8],
        look: impl FnOnce(Option<&[u8]>) -> R,
    ) -> Result<Option<R>, StoreError> {
        let Some(tree) = self.txns.known_tree(partition) else { return Ok(None) };
        // A look that doesn't wait needs no registered snapshot: nothing is recycled while it runs.
        let view = View { snapshot: self.txns.shared().clock.latest(), own: None };
        match self.txns.glance(&tree, key, view, look)? {
            Glance::Seen(seen) if self.may_read() => Ok(Some(seen)),
            Glance::Seen(_) | Glance::NotNow => Ok(None),
        }
    }

    fn branch(&self, session: u64) -> Option<Rc<Branch>> {
        self.branches.borrow().get(&session).cloned()
    }

    fn view(&self, context: Context) -> View {
        let own = context.isolation.and_then(|_| self.branch(context.session)).and_then(|branch| branch.txn.id());
        View { snapshot: context.snapshot, own }
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

    fn may_read(&self) -> bool {
        self.txns.shared().serving.may_read(|| self.reactor().now()) || !kept(DesignRule::LeaseToRead)
    }

    /// Waits until what was read may be shown, which it nearly always may: to be called between reading and answering, for then
    /// nobody has gone on without this node before it read.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the node is suspended, or after [`LEASE_PATIENCE`].
    async fn wait_for_lease(&self) -> Result<(), StoreError> {
        let since = self.reactor().now();
        while !self.may_read() {
            if let Some(reason) = self.txns.shared().serving.reason() {
                return Err(StoreError::Unavailable { reason });
            }
            if self.reactor().now().since(since) > LEASE_PATIENCE {
                let seconds = LEASE_PATIENCE.as_secs();
                let reason = format!(
                    "too few of the other nodes have answered this one for {seconds} s, so what it has cached may be out of date: \
                     check the interconnect, and how loaded the nodes are"
                );
                return Err(StoreError::Unavailable { reason });
            }
            self.reactor().sleep(LEASE_POLL).await;
        }
        Ok(())
    }

    /// The row, if that takes no waiting.
    pub(super) fn try_get(
        &self,
        context: Context,
        partition: PartitionId,
        key: &[u8],
    ) -> Result<Option<Option<Vec<u8>>>, StoreError> {
        let Some(tree) = self.txns.known_tree(partition) else { return Ok(None) };
        match self.txns.glance(&tree, key, self.view(context), |row| row.map(<[u8]>::to_vec))? {
            Glance::Seen(row) if self.may_read() => Ok(Some(row)),
            Glance::Seen(_) | Glance::NotNow => Ok(None),
        }
    }

    pub(super) async fn get_many(
        &self,
        context: Context,
        partition: PartitionId,
        keys: &[Vec<u8>],
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let tree = self.txns.tree(partition).await?;
        let cancel = Cancel::new();
        let _running = self.running(context.session, &cancel);
        let view = self.view(context);
        let mut rows = Vec::with_capacity(keys.len());
        for key in keys {
            rows.push(self.txns.get(&tree, key, view, &cancel).await?);
        }
        self.wait_for_lease().await?;
        Ok(rows)
    }

    pub(super) async fn scan(
        &self,
        context: Context,
        partition: PartitionId,
        range: ScanRange,
        limit: ScanLimit,
    ) -> Result<ScanChunk, StoreError> {
        let tree = self.txns.tree(partition).await?;
        let cancel = Cancel::new();
        let _running = self.running(context.session, &cancel);
        let range = KeyRange { lower: range.lower, upper: range.upper, reverse: range.reverse };
        let limits = (limit.bytes.max(1), limit.rows.max(1));
        let found = self.txns.scan(&tree, &range, limits, self.view(context), &cancel).await?;
        let more = found.more.map(|range| ScanRange { lower: range.lower, upper: range.upper, reverse: range.reverse });
        self.wait_for_lease().await?;
        Ok(ScanChunk { rows: found.rows, more })
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

    pub(super) async fn write_batch(&self, txn: &Transaction, operations: &[WriteOp]) -> Result<Batch<WriteResult>, StoreError> {
        let start = self.txns.position(txn);
        let mut results = Vec::with_capacity(operations.len());
        for operation in operations {
            match self.write_one(txn, operation).await {
                Ok((result, true)) => results.push(result),
                Ok((result, false)) => {
                    results.push(result);
                    self.txns.roll_back_to(txn, start).await?;
                    return Ok(Batch { results, undone: true });
                }
                Err(error) => {
                    self.txns.roll_back_to(txn, start).await?;
                    return Err(error.into());
                }
            }
        }
        self.wait_for_lease().await?;
        Ok(Batch { results, undone: false })
    }

    /// One operation; `false`: the batch ends here.
    async fn write_one(&self, txn: &Transaction, operation: &WriteOp) -> Result<(WriteResult, bool), TxnError> {
        let tree = self.txns.tree(operation.partition()).await?;
        let how = |expect_bytes, check_snapshot| How { wait: WaitPolicy::Wait, check_snapshot, expect_bytes };
        let mut found: Option<Vec<u8>> = None;
        match operation {
            WriteOp::Insert { key, value, on_conflict, .. } => {
                let how = how(value.len(), *on_conflict == OnConflict::Nothing);
                self.txns
                    .change(txn, &tree, key, how, &mut |row| {
                        found = row.map(<[u8]>::to_vec);
                        if found.is_none() { Decision::Put(value.clone()) } else { Decision::Keep }
                    })
                    .await?;
                Ok(match found {
                    None => (WriteResult::Done { previous: None }, true),
                    Some(existing) => (WriteResult::Duplicate { existing }, *on_conflict == OnConflict::Nothing),
                })
            }
            WriteOp::Put { key, value, .. } => {
                self.txns
                    .change(txn, &tree, key, how(value.len(), true), &mut |row| {
                        found = row.map(<[u8]>::to_vec);
                        Decision::Put(value.clone())
                    })
                    .await?;
                Ok((WriteResult::Done { previous: found }, true))
            }
            WriteOp::Update { key, value, .. } => {
                self.txns
                    .change(txn, &tree, key, how(value.len(), true), &mut |row| {
                        found = row.map(<[u8]>::to_vec);
                        if found.is_some() { Decision::Put(value.clone()) } else { Decision::Keep }
                    })
                    .await?;
                Ok((found.map_or(WriteResult::NotFound, |row| WriteResult::Done { previous: Some(row) }), true))
            }
            WriteOp::Delete { key, .. } => {
                self.txns
                    .change(txn, &tree, key, how(0, true), &mut |row| {
                        found = row.map(<[u8]>::to_vec);
                        Decision::Delete
                    })
                    .await?;
                Ok((found.map_or(WriteResult::NotFound, |row| WriteResult::Done { previous: Some(row) }), true))
            }
        }
    }

    pub(super) async fn modify_batch(
        &self,
        txn: &Transaction,
        rows: &[(PartitionId, Vec<u8>)],
        first: usize,
        modifier: &mut Modifier,
    ) -> Result<Batch<Modified>, StoreError> {
        let start = self.txns.position(txn);
        let mut results = Vec::with_capacity(rows.len());
        for (index, (partition, key)) in rows.iter().enumerate() {
            match self.modify_one(txn, *partition, key, first + index, modifier).await {
                Ok(result) => {
                    let failed = matches!(result, Modified::Failed(_));
                    results.push(result);
                    if failed {
                        self.txns.roll_back_to(txn, start).await?;
                        return Ok(Batch { results, undone: true });
                    }
                }
                Err(error) => {
                    self.txns.roll_back_to(txn, start).await?;
                    return Err(error.into());
                }
            }
        }
        self.wait_for_lease().await?;
        Ok(Batch { results, undone: false })
    }

    async fn modify_one(
        &self,
        txn: &Transaction,
        partition: PartitionId,
        key: &[u8],
        index: usize,
        modifier: &mut Modifier,
    ) -> Result<Modified, TxnError> {
        let tree = self.txns.tree(partition).await?;
        let mut done = Modified::Kept;
        let how = How { wait: WaitPolicy::Wait, check_snapshot: true, expect_bytes: 0 };
        let outcome = self
            .txns
            .change(txn, &tree, key, how, &mut |row| {
                let (decision, result) = match (modifier(index, row), row) {
                    (Modify::Keep, None) | (Modify::Delete, None) => (Decision::Keep, Modified::Kept),
                    (Modify::Keep, Some(_)) => (Decision::Lock, Modified::Kept),
                    (Modify::Put(value), _) => {
                        (Decision::Put(value.clone()), Modified::Put { previous: row.map(<[u8]>::to_vec), value })
                    }
                    (Modify::Delete, Some(row)) => (Decision::Delete, Modified::Deleted { previous: row.to_vec() }),
                    (Modify::Fail(why), _) => (Decision::Keep, Modified::Failed(why)),
                };
                done = result;
                decision
            })
            .await?;
        assert!(outcome != Outcome::Skipped, "a modification waits for its row");
        Ok(done)
    }

    pub(super) async fn lock_row(
        &self,
        txn: &Transaction,
        partition: PartitionId,
        key: &[u8],
        wait: WaitPolicy,
    ) -> Result<LockedRow, StoreError> {
        let tree = self.txns.tree(partition).await?;
        let mut found = None;
        let how = How { wait, check_snapshot: true, expect_bytes: 0 };
        let outcome = self
            .txns
            .change(txn, &tree, key, how, &mut |row| {
                found = row.map(<[u8]>::to_vec);
                Decision::Lock
            })
            .await?;
        self.wait_for_lease().await?;
        Ok(match (outcome, found) {
            (Outcome::Skipped, _) => LockedRow::Skipped,
            (_, Some(row)) => LockedRow::Row(row),
            (_, None) => LockedRow::Gone,
        })
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

    /// Makes a partition of this number; harmless if it is there.
    ///
    /// # Errors
    /// [`StoreError::VolumeFull`] and faults.
    pub async fn create_partition(&self, partition: PartitionId) -> Result<(), StoreError> {
        let urgency = if partition < PartitionId::FIRST_USER { Urgency::Reserve } else { Urgency::Normal };
        let prepared = self.service.request(SpaceRequest::PreparePartition { partition: Some(partition), urgency }).await;
        let home = match prepared.map_err(TxnError::from) {
            Ok(SpaceReply::Home(home)) => home,
            Ok(other) => unreachable!("a partition was asked for, {other:?} came"),
            Err(_) if self.txns.tree(partition).await.is_ok() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let tree = Tree::create(self.cache(), self.txns.space(), home).await.map_err(TxnError::from)?;
        match self.service.request(SpaceRequest::PublishPartition(home)).await {
            // Another node was quicker: its tree is the one, this one's extent goes back.
            Err(SpaceError::PartitionExists(_)) => {
                let extents = self.txns.space().extents_of(home).await.map_err(TxnError::from)?;
                self.txns.forget_unpublished(home).await?;
                self.service.request(SpaceRequest::FreeExtents(extents)).await.map_err(TxnError::from)?;
                drop(tree);
                self.txns.tree(partition).await?;
            }
            Err(error) => return Err(TxnError::from(error).into()),
            Ok(_) => {}
        }
        Ok(())
    }

    /// Takes a partition apart; harmless if it is gone.
    pub(super) async fn drop_partition(&self, partition: PartitionId) -> Result<(), StoreError> {
        let tree = match self.txns.tree(partition).await {
            Ok(tree) => tree,
            Err(TxnError::NoSuchPartition(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let extents = match self.txns.space().extents_of(tree.home()).await.map_err(TxnError::from) {
            Ok(extents) => extents,
            // Somebody else is at it.
            Err(TxnError::NoSuchPartition(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        match self.service.request(SpaceRequest::RemovePartition(tree.home())).await {
            Ok(_) => {}
            Err(SpaceError::NoPartition(_)) => return Ok(()),
            Err(error) => return Err(TxnError::from(error).into()),
        }
        // Nobody may have a block of it when its extents get new owners.
        self.txns.forget_everywhere(partition).await?;
        self.service.request(SpaceRequest::FreeExtents(extents)).await.map_err(TxnError::from)?;
        Ok(())
    }

    pub(super) async fn vacuum(&self, partition: PartitionId) -> Result<VacuumReport, StoreError> {
        let tree = self.txns.tree(partition).await?;
        let mut report = VacuumReport::default();
        let mut more = Some(KeyRange::all());
        while let Some(range) = more.take() {
            let mut dead = Vec::new();
            more = tree
                .scan_leaf(&range, &mut |key, value| {
                    report.rows_seen += 1;
                    if self.txns.is_dead(value) {
                        dead.push(key.to_vec());
                    } else if crate::txn::row::Row::parse(value).is_some_and(|row| row.is_deleted()) {
                        report.rows_kept += 1;
                    }
                    if dead.len() >= VACUUM_GROUP_ROWS { Visit::StopAfter } else { Visit::Continue }
                })
                .await
                .map_err(TxnError::from)?;
            report.rows_removed += self.remove_dead(&tree, &dead).await?;
            self.reactor().yield_now().await;
        }
        Ok(report)
    }

    async fn remove_dead(&self, tree: &Tree, keys: &[Vec<u8>]) -> Result<u64, StoreError> {
        let never = |_: &[u8], _: &[u8]| false;
        let mut keys = keys.iter().map(Vec::as_slice).peekable();
        let mut removed = 0;
        while let Some(first) = keys.next() {
            let redo_bytes = VACUUM_GROUP_ROWS * 16;
            let room = NeedRoom { value_len: 0, redo_bytes, urgency: Urgency::Reserve, dead: &never };
            let (mut leaf, mut mtr) = tree.seek_write(first, room).await.map_err(TxnError::from)?;
            loop {
                if leaf.value().is_some_and(|value| self.txns.is_dead(value)) {
                    leaf.remove(&mut mtr);
                    removed += 1;
                }
                match keys.peek() {
                    Some(next) if leaf.move_to(next, 0) => drop(keys.next()),
                    _ => break,
                }
            }
            mtr.finish();
        }
        Ok(removed)
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
