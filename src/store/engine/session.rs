//! One client's side of the engine: its transaction, the snapshot that its statements read by, its branches in the shards.
//!
//! `Send`; lives on the client's thread. It remembers which shards its transaction has touched, one bit each, and how many
//! changes it has made in each of them. A statement that touches one shard costs one letter there and one answer back. What
//! a session that goes away has begun is rolled back behind its back.

mod at_gate;
mod writes;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::NodeStore;
use crate::ids::{PartitionId, SHARDS_MAX, Scn, ShardId};
use crate::store::StoreError;
use crate::store::backend::*;
use crate::store::locks::CATALOG_VERSION;
use crate::store::shard::{Context, ShardEngine};
use crate::store::types::*;
use crate::txn::{Isolation, SnapshotSlot, Transaction, WaitPolicy};

/// One client's side of the engine.
pub(super) struct EngineSession {
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
    pub(super) fn new(store: &NodeStore) -> EngineSession {
        let id = store.next_number();
        EngineSession {
            id,
            id_now: Arc::new(AtomicU64::new(id)),
            slot: store.0.shared.snapshots.register(),
            store: store.clone(),
            transaction: None,
            transactions: 0,
            snapshot: None,
            in_statement: false,
            touched: 0,
            positions: vec![0; store.0.shards.len()],
            at_gate: Vec::new(),
            changed_catalog: false,
        }
    }

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
        work: impl AsyncFnOnce(&ShardEngine, &Transaction) -> Result<T, StoreError> + Send + 'static,
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
        Box::pin(self.write_all(operations))
    }

    fn write_and_commit(&mut self, operations: Vec<WriteOp>) -> BoxFuture<'_, Result<Vec<WriteResult>, StoreError>> {
        Box::pin(self.write_last(operations))
    }

    fn modify_many(
        &mut self,
        rows: Vec<(PartitionId, Vec<u8>)>,
        modifier: Modifier,
    ) -> BoxFuture<'_, Result<Vec<Modified>, StoreError>> {
        Box::pin(self.modify_all(rows, modifier))
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
        self.enter_for_statement(name)
    }

    fn lock(&mut self, name: LockName, mode: LockMode, wait: WaitPolicy) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.lock_name(name, mode, wait))
    }
}

impl Drop for EngineSession {
    fn drop(&mut self) {
        self.roll_back_in_background();
        self.slot.release();
    }
}
