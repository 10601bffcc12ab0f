//! The engine behind [`Store`]: routes operations to the shards that own their partitions, as letters, and brings the
//! answers back.
//!
//! `Send`; lives on the clients' threads. A session remembers which shards its transaction has touched, one bit each.
//! Bounded by the shards' mailboxes: a full one is [`StoreError::Overloaded`]. A statement that touches one shard costs one
//! letter there and one answer back.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fusion::ges::SessionId;
use crate::ids::{NodeId, PartitionId, SHARDS_MAX, Scn, ShardId};
use crate::reactor::Reactor;
use crate::reactor::mail::{Letter, MailError, Remote};
use crate::reactor::sync::{CrossReceiver, CrossSender, cross_oneshot};
use crate::txn::{Isolation, NodeShared, SnapshotSlot, WaitPolicy};

use super::StoreError;
use super::backend::*;
use super::locks::{CATALOG_VERSION, resource};
use super::shard::{Batch, Context, ShardEngine};
use super::types::*;

/// Where counters live: rows of number → next.
pub const COUNTERS: PartitionId = PartitionId(2);
/// The counter that gives partitions their numbers.
const PARTITION_COUNTER: u64 = u64::MAX;

/// A node's store over its shards.
#[derive(Clone)]
pub struct NodeStore(Arc<Inner>);

struct Inner {
    node: NodeId,
    shards: Vec<Remote>,
    shared: NodeShared,
    sessions: AtomicU64,
    next_placement: AtomicU64,
}

impl NodeStore {
    /// A node whose shards' reactors are reached by `shards`, in order; each has its [`ShardEngine`] by the time that
    /// operations come.
    ///
    /// # Panics
    /// With no shard, or too many.
    #[must_use]
    pub fn new(node: NodeId, shards: Vec<Remote>, shared: NodeShared) -> NodeStore {
        assert!((1..=SHARDS_MAX).contains(&shards.len()), "a node has 1 to {SHARDS_MAX} shards, not {}", shards.len());
        NodeStore(Arc::new(Inner { node, shards, shared, sessions: AtomicU64::new(1), next_placement: AtomicU64::new(0) }))
    }

    /// The handle for the layers above.
    #[must_use]
    pub fn store(&self) -> Store {
        Store::new(Arc::new(self.clone()))
    }

    /// Makes the partitions that every node expects, if they are not there.
    ///
    /// # Errors
    /// Faults.
    pub async fn create_system_partitions(&self) -> Result<(), StoreError> {
        for partition in [PartitionId::CATALOG, COUNTERS] {
            self.create_numbered(partition).await?;
        }
        Ok(())
    }

    async fn create_numbered(&self, partition: PartitionId) -> Result<(), StoreError> {
        self.in_shard(self.0.shard_of(partition), async move |engine| engine.create_partition(partition).await).await
    }

    /// Posts a letter that answers through its sender, now or later.
    pub(super) fn post<T: Send + 'static>(
        &self,
        shard: ShardId,
        letter: impl FnOnce(Rc<ShardEngine>, CrossSender<Result<T, StoreError>>) + Send + 'static,
    ) -> Result<CrossReceiver<Result<T, StoreError>>, StoreError> {
        self.post_as(Remote::post, shard, letter)
    }

    fn post_as<T: Send + 'static>(
        &self,
        post: fn(&Remote, Letter) -> Result<(), MailError>,
        shard: ShardId,
        letter: impl FnOnce(Rc<ShardEngine>, CrossSender<Result<T, StoreError>>) + Send + 'static,
    ) -> Result<CrossReceiver<Result<T, StoreError>>, StoreError> {
        let (sender, receiver) = cross_oneshot();
        let letter = Box::new(move |reactor: &Reactor| match reactor.local::<ShardEngine>() {
            Some(engine) => letter(engine, sender),
            None => sender.send(Err(StoreError::Unavailable { reason: format!("{shard} has not started yet") })),
        });
        match post(&self.0.shards[usize::from(shard.0)], letter) {
            Ok(()) => Ok(receiver),
            Err(MailError::Full) => Err(StoreError::Overloaded { resource: "the shard's mailbox" }),
            Err(MailError::Closed) => Err(StoreError::ShardGone(shard)),
        }
    }

    /// A number that no session of this node has, and no other caller gets.
    pub(super) fn next_number(&self) -> u64 {
        self.0.sessions.fetch_add(1, Ordering::Relaxed)
    }

    /// Runs `work` as a task of the shard.
    pub(super) fn start<T: Send + 'static>(
        &self,
        shard: ShardId,
        work: impl AsyncFnOnce(Rc<ShardEngine>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<CrossReceiver<Result<T, StoreError>>, StoreError> {
        self.post(shard, move |engine, sender| engine.clone().spawn(async move { sender.send(work(engine).await) }))
    }

    pub(super) async fn in_shard<T: Send + 'static>(
        &self,
        shard: ShardId,
        work: impl AsyncFnOnce(Rc<ShardEngine>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.start(shard, work)?.await.unwrap_or(Err(StoreError::ShardGone(shard)))
    }

    /// As [`in_shard`](Self::in_shard), for what ends a session's branch there: an overloaded shard takes it too. Refused, the branch would
    /// keep its locks for ever.
    pub(super) async fn end_in_shard<T: Send + 'static>(
        &self,
        shard: ShardId,
        work: impl AsyncFnOnce(Rc<ShardEngine>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let letter = move |engine: Rc<ShardEngine>, sender: CrossSender<_>| {
            engine.clone().spawn(async move { sender.send(work(engine).await) });
        };
        self.post_as(Remote::post_owed, shard, letter)?.await.unwrap_or(Err(StoreError::ShardGone(shard)))
    }

    async fn with_counter(&self, counter: u64, change: impl FnMut(u64) -> u64 + Send + 'static) -> Result<u64, StoreError> {
        let mut change = change;
        let mut session = self.session();
        let modifier: Modifier = Box::new(move |_, row| Modify::Put(change(decode_counter(row)).to_le_bytes().to_vec()));
        let key = counter.to_be_bytes().to_vec();
        match session.modify_many(vec![(COUNTERS, key)], modifier).await?.pop() {
            Some(Modified::Put { previous, .. }) => Ok(decode_counter(previous.as_deref())),
            _ => unreachable!("a counter is always put"),
        }
    }
}

fn decode_counter(row: Option<&[u8]>) -> u64 {
    // A row of another length is no counter of ours: it begins anew rather than fail for ever.
    row.and_then(|row| row.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// The relations whose locks a session's transaction has taken at the node's gate; given up when this goes.
struct AtGate {
    store: NodeStore,
    session: SessionId,
    names: Vec<LockName>,
}

impl Drop for AtGate {
    fn drop(&mut self) {
        let (session, inner) = (self.session, &self.store.0);
        for name in self.names.drain(..) {
            if inner.shared.gate.leave(resource(name), session) {
                continue;
            }
            let left = inner.shards[usize::from(inner.shard_of_name(name).0)].post(Box::new(move |reactor| {
                if let Some(engine) = reactor.local::<ShardEngine>() {
                    engine.session_left(session, name);
                }
            }));
            if matches!(left, Err(MailError::Full)) {
                inner.shared.gate.left_untold(resource(name), session);
            }
        }
    }
}

impl Inner {
    /// # Errors
    /// [`StoreError::Unavailable`] while the node is suspended.
    fn serves(&self) -> Result<(), StoreError> {
        self.shared.serving.reason().map_or(Ok(()), |reason| Err(StoreError::Unavailable { reason }))
    }

    /// The shard, on every node, that locks this name.
    fn shard_of_name(&self, name: LockName) -> ShardId {
        ShardId(((name.id1 ^ name.id2.rotate_left(17)) % self.shards.len() as u64) as u8)
    }

    fn shard_of(&self, partition: PartitionId) -> ShardId {
        partition.shard(self.shards.len() as u8)
    }
}

impl Backend for NodeStore {
    fn node_id(&self) -> NodeId {
        self.0.node
    }

    fn shards(&self) -> u8 {
        self.0.shards.len() as u8
    }

    fn now(&self) -> Scn {
        self.0.shared.clock.latest()
    }

    fn catalog_generation(&self) -> u64 {
        if self.0.shared.serving.is_suspended() { 0 } else { self.0.shared.gate.catalog_version() }
    }

    fn catalog_version(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async move {
            self.0.serves()?;
            match self.catalog_generation() {
                0 => {
                    self.in_shard(self.0.shard_of_name(CATALOG_VERSION), async move |engine| engine.catalog_version().await).await
                }
                version => Ok(version),
            }
        })
    }

    fn session(&self) -> Box<dyn SessionBackend> {
        let id = self.next_number();
        Box::new(EngineSession {
            id,
            id_now: Arc::new(AtomicU64::new(id)),
            slot: self.0.shared.snapshots.register(),
            store: self.clone(),
            transaction: None,
            transactions: 0,
            snapshot: None,
            in_statement: false,
            touched: 0,
            positions: vec![0; usize::from(self.shards())],
            at_gate: Vec::new(),
            changed_catalog: false,
        })
    }

    fn create_partition(&self, placement: Placement) -> BoxFuture<'_, Result<PartitionId, StoreError>> {
        Box::pin(async move {
            self.0.serves()?;
            let shards = self.shards();
            let wanted = match placement {
                Placement::With(neighbour) => self.0.shard_of(neighbour),
                Placement::Any => ShardId((self.0.next_placement.fetch_add(1, Ordering::Relaxed) % u64::from(shards)) as u8),
            };
            // As many numbers as there are shards: one of them falls to the shard that is wanted.
            let first = self.allocate_range(PARTITION_COUNTER, u64::from(shards)).await?;
            let number =
                |offset| u32::try_from(first + offset).ok().and_then(|number| PartitionId::FIRST_USER.0.checked_add(number));
            let partition = (0..u64::from(shards))
                .filter_map(number)
                .map(PartitionId)
                .find(|partition| partition.undo_home().is_none() && self.0.shard_of(*partition) == wanted)
                .ok_or(StoreError::Overloaded { resource: "the numbering of partitions" })?;
            self.create_numbered(partition).await?;
            Ok(partition)
        })
    }

    fn drop_partition(&self, partition: PartitionId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.in_shard(self.0.shard_of(partition), async move |engine| engine.drop_partition(partition).await))
    }

    fn vacuum(&self, partition: PartitionId) -> BoxFuture<'_, Result<VacuumReport, StoreError>> {
        Box::pin(self.in_shard(self.0.shard_of(partition), async move |engine| engine.vacuum(partition).await))
    }

    fn allocate_range(&self, counter: u64, count: u64) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(self.with_counter(counter, move |next| next.wrapping_add(count.max(1))))
    }

    fn read_counter(&self, counter: u64) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async move {
            let mut session = self.session();
            Ok(decode_counter(session.get(COUNTERS, &counter.to_be_bytes()).await?.as_deref()))
        })
    }

    fn set_counter(&self, counter: u64, next: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.with_counter(counter, move |_| next).await.map(|_| ()) })
    }

    fn stats(&self) -> BoxFuture<'_, Result<StoreStats, StoreError>> {
        Box::pin(async move {
            let mut sum = StoreStats::default();
            for shard in 0..self.shards() {
                let one = self
                    .post(ShardId(shard), |engine, sender| sender.send(Ok(engine.stats())))?
                    .await
                    .unwrap_or(Err(StoreError::ShardGone(ShardId(shard))))?;
                sum.add(&one);
            }
            sum.locks_at_gate = self.0.shared.gate.stats().entered_total;
            Ok(sum)
        })
    }
}

/// One client's side of the engine.
struct EngineSession {
    id: u64,
    /// For those who cancel.
    id_now: Arc<AtomicU64>,
    store: NodeStore,
    slot: Arc<SnapshotSlot>,
    /// Isolation, and whether it is read-only.
    transaction: Option<(Isolation, bool)>,
    /// How many it has begun.
    transactions: u64,
    snapshot: Option<Scn>,
    /// Outside a transaction: the snapshot lasts until the statement's end.
    in_statement: bool,
    /// Shards in which the transaction has a branch, a bit each.
    touched: u64,
    /// How many changes the transaction has made in each shard.
    positions: Vec<u64>,
    /// The locks taken at the node's gate, and in which mode.
    at_gate: Vec<(LockName, LockMode)>,
    /// The transaction has written to the catalog's partition.
    changed_catalog: bool,
}

impl EngineSession {
    /// # Errors
    /// [`StoreError::Unavailable`] while the node is suspended.
    fn context(&mut self) -> Result<Context, StoreError> {
        self.store.0.serves()?;
        let snapshot = match self.snapshot {
            Some(snapshot) => snapshot,
            None => {
                let snapshot = self.store.0.shared.snapshots.draw(&self.slot);
                self.snapshot = Some(snapshot);
                snapshot
            }
        };
        Ok(Context { session: self.id, snapshot, isolation: self.transaction.map(|(isolation, _)| isolation) })
    }

    /// An operation has ended: outside a statement its snapshot ends with it.
    fn operation_ended(&mut self) {
        if self.transaction.is_none() && !self.in_statement {
            self.drop_snapshot();
        }
    }

    fn drop_snapshot(&mut self) {
        self.snapshot = None;
        self.slot.release();
    }

    fn shard_of(&self, partition: PartitionId) -> ShardId {
        self.store.0.shard_of(partition)
    }

    fn touch(&mut self, shard: ShardId) {
        self.touched |= 1 << shard.0;
    }

    fn touched(&self) -> Vec<ShardId> {
        (0..SHARDS_MAX as u8).filter(|shard| self.touched & (1 << shard) != 0).map(ShardId).collect()
    }

    fn may_write(&self) -> Result<(), StoreError> {
        match self.transaction {
            Some((_, true)) => Err(StoreError::ReadOnly),
            _ => Ok(()),
        }
    }

    /// How the lock service knows the transaction.
    fn at_locks(&self) -> SessionId {
        SessionId { number: self.id, transaction: self.transactions }
    }

    /// What gives the locks taken at the gate up, once nothing of the transaction is left.
    fn leave_gate(&mut self) -> AtGate {
        let names = self.at_gate.drain(..).map(|(name, _)| name).collect();
        AtGate { store: self.store.clone(), session: self.at_locks(), names }
    }

    /// Outside a transaction the locks end with the statement (also one that was given up half way).
    fn leave_statements_locks(&mut self) {
        if self.transaction.is_none() && !self.at_gate.is_empty() {
            drop(self.leave_gate());
        }
    }

    fn end_transaction(&mut self) {
        drop(self.leave_gate());
        self.changed_catalog = false;
        self.transaction = None;
        self.touched = 0;
        self.positions.fill(0);
        self.drop_snapshot();
    }

    /// Has every shard that the transaction has touched roll back, and waits for none.
    fn roll_back_in_background(&mut self) {
        let session = self.id;
        // Goes when the last shard has rolled back: until then nobody may drop the tables.
        let at_gate = Arc::new(self.leave_gate());
        for shard in self.touched() {
            let at_gate = at_gate.clone();
            // A shard that takes not even this is ending, and its restart rolls back.
            let _ = self.store.0.shards[usize::from(shard.0)].post_owed(Box::new(move |reactor| {
                if let Some(engine) = reactor.local::<ShardEngine>() {
                    engine.clone().spawn(async move {
                        engine.roll_back(session).await;
                        drop(at_gate);
                    });
                }
            }));
        }
    }

    /// Runs `work` in the transaction's branch in `shard`.
    async fn in_branch<T: Send + 'static>(
        &mut self,
        shard: ShardId,
        work: impl AsyncFnOnce(&ShardEngine, &crate::txn::Transaction) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let context = self.context()?;
        let work = async move |engine: Rc<ShardEngine>| {
            let done = engine.in_branch(context, work).await?;
            Ok((done, engine.position(context.session)))
        };
        // A letter that was taken makes the branch, also if nobody waits for its answer any more.
        let answer = self.store.start(shard, work)?;
        self.touch(shard);
        // What fails has undone itself: then the position is the one from before.
        let (done, position) = answer.await.unwrap_or(Err(StoreError::ShardGone(shard)))?;
        self.positions[usize::from(shard.0)] = position;
        Ok(done)
    }

    async fn write_here(&mut self, operations: Vec<WriteOp>, commit: bool) -> Result<(Vec<WriteResult>, bool), StoreError> {
        self.may_write()?;
        let Some(first) = operations.first() else { return Ok((Vec::new(), false)) };
        let shard = self.shard_of(first.partition());
        let one_shard = operations.iter().all(|operation| self.shard_of(operation.partition()) == shard);
        if self.transaction.is_none() && one_shard {
            let session = self.context()?.session;
            let work = async move |engine: Rc<ShardEngine>| {
                engine
                    .autocommit(session, async |engine: &ShardEngine, txn: &_| {
                        let batch = engine.write_batch(txn, &operations).await?;
                        Ok((batch.results, !batch.undone))
                    })
                    .await
            };
            return Ok((self.store.in_shard(shard, work).await?, true));
        }
        self.changed_catalog |= operations.iter().any(|operation| operation.partition() == PartitionId::CATALOG);
        if one_shard && commit && !self.changed_catalog && (self.touched & !(1 << shard.0)) == 0 {
            // The batch and the commit in one trip.
            let context = self.context()?;
            self.touch(shard);
            let work = async move |engine: Rc<ShardEngine>| {
                let batch = engine
                    .in_branch(context, async move |engine: &ShardEngine, txn: &_| engine.write_batch(txn, &operations).await)
                    .await?;
                if !batch.undone {
                    return Ok((batch.results, Some(engine.commit(context.session).await)));
                }
                Ok((batch.results, None))
            };
            let (results, committed) = self.store.in_shard(shard, work).await?;
            if let Some(committed) = committed {
                self.end_transaction();
                committed?;
                return Ok((results, true));
            }
            return Ok((results, false));
        }
        let (results, undone) = self.write_groups(operations).await?;
        if commit && !undone {
            SessionBackend::commit(self).await?;
            return Ok((results, true));
        }
        Ok((results, false))
    }

    /// Over several shards, in order: a stretch of operations for one shard is one letter.
    async fn write_groups(&mut self, operations: Vec<WriteOp>) -> Result<(Vec<WriteResult>, bool), StoreError> {
        let start = SessionBackend::savepoint(self);
        let mut results = Vec::with_capacity(operations.len());
        let mut operations = operations.into_iter().peekable();
        while let Some(first) = operations.next() {
            let shard = self.shard_of(first.partition());
            let mut group = vec![first];
            while let Some(next) = operations.next_if(|next| self.shard_of(next.partition()) == shard) {
                group.push(next);
            }
            let done =
                self.in_branch(shard, async move |engine: &ShardEngine, txn: &_| engine.write_batch(txn, &group).await).await;
            match done {
                Ok(Batch { results: more, undone }) => {
                    results.extend(more);
                    if undone {
                        SessionBackend::rollback_to(self, &start).await?;
                        return Ok((results, true));
                    }
                }
                Err(error) => {
                    SessionBackend::rollback_to(self, &start).await?;
                    return Err(error);
                }
            }
        }
        Ok((results, false))
    }

    async fn modify_groups(
        &mut self,
        rows: Vec<(PartitionId, Vec<u8>)>,
        modifier: Modifier,
    ) -> Result<(Vec<Modified>, bool), StoreError> {
        let start = SessionBackend::savepoint(self);
        let mut results = Vec::with_capacity(rows.len());
        let mut rows = rows.into_iter().peekable();
        let mut modifier = modifier;
        while let Some(first) = rows.next() {
            let shard = self.shard_of(first.0);
            let mut group = vec![first];
            while let Some(next) = rows.next_if(|next| self.shard_of(next.0) == shard) {
                group.push(next);
            }
            let index = results.len();
            let done = self
                .in_branch(shard, async move |engine: &ShardEngine, txn: &_| {
                    let batch = engine.modify_batch(txn, &group, index, &mut modifier).await?;
                    Ok((batch, modifier))
                })
                .await;
            match done {
                Ok((Batch { results: more, undone }, back)) => {
                    results.extend(more);
                    modifier = back;
                    if undone {
                        SessionBackend::rollback_to(self, &start).await?;
                        return Ok((results, true));
                    }
                }
                Err(error) => {
                    SessionBackend::rollback_to(self, &start).await?;
                    return Err(error);
                }
            }
        }
        Ok((results, false))
    }
}

impl SessionBackend for EngineSession {
    fn begin(&mut self, isolation: Isolation, read_only: bool) -> Result<(), StoreError> {
        if self.transaction.is_some() {
            return Err(StoreError::NoTransaction);
        }
        self.store.0.serves()?;
        self.drop_snapshot();
        drop(self.leave_gate());
        self.transaction = Some((isolation, read_only));
        self.transactions += 1;
        Ok(())
    }

    fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    fn new_statement(&mut self) {
        self.in_statement = true;
        self.leave_statements_locks();
        if !matches!(self.transaction, Some((Isolation::RepeatableRead, _))) {
            self.drop_snapshot();
        }
    }

    fn end_statement(&mut self) {
        self.in_statement = false;
        self.leave_statements_locks();
        if !matches!(self.transaction, Some((Isolation::RepeatableRead, _))) {
            self.drop_snapshot();
        }
    }

    fn cancel_handle(&self) -> CancelHandle {
        let (store, id) = (self.store.clone(), self.id_now.clone());
        CancelHandle::new(Arc::new(move || {
            let session = id.load(Ordering::Relaxed);
            for shard in &store.0.shards {
                // A shard that takes no mail runs nothing for us either.
                let _ = shard.post(Box::new(move |reactor| {
                    if let Some(engine) = reactor.local::<ShardEngine>() {
                        engine.cancel(session);
                    }
                }));
            }
        }))
    }

    fn get<'a>(&'a mut self, partition: PartitionId, key: &'a [u8]) -> BoxFuture<'a, Result<Option<Vec<u8>>, StoreError>> {
        Box::pin(async move {
            let (context, shard, key) = (self.context()?, self.shard_of(partition), key.to_vec());
            let answer = self.store.post(shard, move |engine, sender| match engine.try_get(context, partition, &key) {
                Ok(Some(row)) => sender.send(Ok(row)),
                Err(error) => sender.send(Err(error)),
                Ok(None) => engine.clone().spawn(async move {
                    let row = engine.get_many(context, partition, &[key]).await;
                    sender.send(row.map(|mut rows| rows.pop().expect("one row was asked for")));
                }),
            })?;
            let row = answer.await.unwrap_or(Err(StoreError::ShardGone(shard)));
            self.operation_ended();
            row
        })
    }

    fn get_many(
        &mut self,
        partition: PartitionId,
        keys: Vec<Vec<u8>>,
    ) -> BoxFuture<'_, Result<Vec<Option<Vec<u8>>>, StoreError>> {
        Box::pin(async move {
            let (context, shard) = (self.context()?, self.shard_of(partition));
            let rows = self.store.in_shard(shard, async move |engine| engine.get_many(context, partition, &keys).await).await;
            self.operation_ended();
            rows
        })
    }

    fn get_for_update<'a>(
        &'a mut self,
        partition: PartitionId,
        key: &'a [u8],
        _strength: LockStrength,
        wait: WaitPolicy,
    ) -> BoxFuture<'a, Result<LockedRow, StoreError>> {
        Box::pin(async move {
            self.may_write()?;
            if self.transaction.is_none() {
                return Err(StoreError::NoTransaction);
            }
            let (shard, key) = (self.shard_of(partition), key.to_vec());
            self.in_branch(shard, async move |engine: &ShardEngine, txn: &_| engine.lock_row(txn, partition, &key, wait).await)
                .await
        })
    }

    fn scan(
        &mut self,
        partition: PartitionId,
        range: ScanRange,
        limit: ScanLimit,
    ) -> BoxFuture<'_, Result<ScanChunk, StoreError>> {
        Box::pin(async move {
            let (context, shard) = (self.context()?, self.shard_of(partition));
            let chunk = self.store.in_shard(shard, async move |engine| engine.scan(context, partition, range, limit).await).await;
            self.operation_ended();
            chunk
        })
    }

    fn write(&mut self, operations: Vec<WriteOp>) -> BoxFuture<'_, Result<Vec<WriteResult>, StoreError>> {
        Box::pin(async move {
            let alone = self.transaction.is_none();
            let one_shard =
                operations.windows(2).all(|pair| self.shard_of(pair[0].partition()) == self.shard_of(pair[1].partition()));
            let catalog = operations.iter().any(|operation| operation.partition() == PartitionId::CATALOG);
            if alone && (!one_shard || catalog) {
                SessionBackend::begin(self, Isolation::ReadCommitted, false)?;
            }
            let done = self.write_here(operations, alone).await;
            if alone && self.transaction.is_some() {
                // It ended early or failed; its own transaction ends with it.
                SessionBackend::rollback(self).await?;
            }
            self.operation_ended();
            Ok(done?.0)
        })
    }

    fn write_and_commit(&mut self, operations: Vec<WriteOp>) -> BoxFuture<'_, Result<Vec<WriteResult>, StoreError>> {
        Box::pin(async move {
            if self.transaction.is_none() {
                return SessionBackend::write(self, operations).await;
            }
            if operations.is_empty() {
                SessionBackend::commit(self).await?;
                return Ok(Vec::new());
            }
            Ok(self.write_here(operations, true).await?.0)
        })
    }

    fn modify_many(
        &mut self,
        rows: Vec<(PartitionId, Vec<u8>)>,
        modifier: Modifier,
    ) -> BoxFuture<'_, Result<Vec<Modified>, StoreError>> {
        Box::pin(async move {
            self.may_write()?;
            let Some(first) = rows.first() else { return Ok(Vec::new()) };
            let shard = self.shard_of(first.0);
            let one_shard = rows.iter().all(|row| self.shard_of(row.0) == shard);
            let catalog = rows.iter().any(|(partition, _)| *partition == PartitionId::CATALOG);
            let mut modifier = modifier;
            if self.transaction.is_some() {
                self.changed_catalog |= catalog;
                if one_shard {
                    let work = async move |engine: &ShardEngine, txn: &_| engine.modify_batch(txn, &rows, 0, &mut modifier).await;
                    return Ok(self.in_branch(shard, work).await?.results);
                }
                return Ok(self.modify_groups(rows, modifier).await?.0);
            }
            if one_shard && !catalog {
                let session = self.context()?.session;
                let work = async move |engine: Rc<ShardEngine>| {
                    engine
                        .autocommit(session, async |engine: &ShardEngine, txn: &_| {
                            let batch = engine.modify_batch(txn, &rows, 0, &mut modifier).await?;
                            Ok((batch.results, !batch.undone))
                        })
                        .await
                };
                let done = self.store.in_shard(shard, work).await;
                self.operation_ended();
                return done;
            }
            SessionBackend::begin(self, Isolation::ReadCommitted, false)?;
            self.changed_catalog = catalog;
            match self.modify_groups(rows, modifier).await {
                Ok((results, false)) => {
                    SessionBackend::commit(self).await?;
                    Ok(results)
                }
                other => {
                    SessionBackend::rollback(self).await?;
                    Ok(other?.0)
                }
            }
        })
    }

    fn savepoint(&mut self) -> Savepoint {
        Savepoint::new(self.positions.clone())
    }

    fn rollback_to<'a>(&'a mut self, savepoint: &'a Savepoint) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            for shard in self.touched() {
                let position = savepoint.positions().get(usize::from(shard.0)).copied().unwrap_or(0);
                self.in_branch(shard, async move |engine: &ShardEngine, txn: &_| engine.roll_back_to(txn, position).await)
                    .await?;
            }
            Ok(())
        })
    }

    fn commit(&mut self) -> BoxFuture<'_, Result<Committed, StoreError>> {
        Box::pin(async move {
            if self.transaction.is_none() {
                return Err(StoreError::NoTransaction);
            }
            if self.touched != 0
                && let Err(error) = self.store.0.serves()
            {
                SessionBackend::rollback(self).await?;
                return Err(error);
            }
            if self.changed_catalog {
                let change = async move |engine: &ShardEngine, txn: &_| engine.change_catalog(txn).await;
                if let Err(error) = self.in_branch(self.store.0.shard_of_name(CATALOG_VERSION), change).await {
                    SessionBackend::rollback(self).await?;
                    return Err(error);
                }
            }
            let (store, session, mut shards) = (self.store.clone(), self.id, self.touched());
            // A shard with changes, best: then it may turn out to be the only one, and no other has a part in the commit.
            let home = shards.iter().rposition(|shard| self.positions[usize::from(shard.0)] > 0).or(shards.len().checked_sub(1));
            let done = match home.map(|home| shards.remove(home)) {
                None => Ok(Committed { scn: None }),
                Some(only) if shards.is_empty() => {
                    store.end_in_shard(only, async move |engine| engine.commit(session).await).await
                }
                Some(home) => store.commit_over(session, home, shards).await,
            };
            self.end_transaction();
            done
        })
    }

    fn rollback(&mut self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            if self.touched != 0 && self.store.0.serves().is_err() {
                // It may need blocks that are not to be had now. What comes next is not to meet its branches.
                self.roll_back_in_background();
                self.id = self.store.next_number();
                self.id_now.store(self.id, Ordering::Relaxed);
                self.end_transaction();
                return Ok(());
            }
            let session = self.id;
            let mut done = Ok(());
            for shard in self.touched() {
                let rolled_back = async move |engine: Rc<ShardEngine>| {
                    engine.roll_back(session).await;
                    Ok(())
                };
                let one = self.store.end_in_shard(shard, rolled_back).await;
                done = done.and(one);
            }
            self.end_transaction();
            done
        })
    }

    fn try_lock_for_statement(&mut self, name: LockName) -> bool {
        if self.transaction.is_some() || !self.in_statement {
            return false;
        }
        if self.at_gate.iter().any(|(locked, _)| *locked == name) {
            return true;
        }
        if self.at_gate.is_empty() {
            // The lock service may still have to hear that an earlier statement is done.
            self.transactions += 1;
        }
        let mode = LockMode::ConcurrentRead;
        let entered = self.store.0.shared.gate.enter(resource(name), self.at_locks(), mode.into());
        if entered {
            self.at_gate.push((name, mode));
        }
        entered
    }

    fn lock(&mut self, name: LockName, mode: LockMode, wait: WaitPolicy) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.store.0.serves()?;
            if self.transaction.is_none() {
                return Err(StoreError::NoTransaction);
            }
            let session = self.at_locks();
            let at_gate = self.at_gate.iter().find(|(locked, _)| *locked == name).map(|(_, mode)| *mode);
            if at_gate.is_some_and(|held| mode <= held) {
                return Ok(());
            }
            // Who has come in there and wants more than is to be had there asks the shard, which then knows of all that he has.
            if name.space == LockSpace::Relation && mode <= LockMode::ConcurrentWrite {
                let gate = &self.store.0.shared.gate;
                let granted = match at_gate {
                    None => gate.enter(resource(name), session, mode.into()),
                    Some(_) => gate.raise(resource(name), session, mode.into()),
                };
                if granted {
                    self.at_gate.retain(|(locked, _)| *locked != name);
                    self.at_gate.push((name, mode));
                    return Ok(());
                }
            }
            let shard = self.store.0.shard_of_name(name);
            let lock = async move |engine: &ShardEngine, txn: &_| engine.lock_name(txn, session, name, mode, wait).await;
            self.in_branch(shard, lock).await?;
            // The branch has it now, and gives it up at its end.
            self.at_gate.retain(|(locked, _)| *locked != name);
            Ok(())
        })
    }
}

impl Drop for EngineSession {
    fn drop(&mut self) {
        self.roll_back_in_background();
        self.slot.release();
    }
}
