//! What a session writes and modifies: in its transaction's branches, or as a transaction of its own.
//!
//! On the client's thread. A batch for one shard is one letter, which brings the commit along where nothing comes after it. A
//! batch for several shards goes in stretches, in order, and is undone as a whole where one of them fails.

use std::rc::Rc;

use super::EngineSession;
use crate::ids::PartitionId;
use crate::store::StoreError;
use crate::store::backend::SessionBackend;
use crate::store::shard::{Batch, ShardEngine};
use crate::store::types::*;
use crate::txn::Isolation;

impl EngineSession {
    /// See [`Session::write`](crate::store::Session::write).
    pub(super) async fn write_all(&mut self, operations: Vec<WriteOp>) -> Result<Vec<WriteResult>, StoreError> {
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
    }

    /// See [`Session::write_and_commit`](crate::store::Session::write_and_commit).
    pub(super) async fn write_last(&mut self, operations: Vec<WriteOp>) -> Result<Vec<WriteResult>, StoreError> {
        if self.transaction.is_none() {
            return SessionBackend::write(self, operations).await;
        }
        if operations.is_empty() {
            SessionBackend::commit(self).await?;
            return Ok(Vec::new());
        }
        Ok(self.write_here(operations, true).await?.0)
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

    /// See [`Session::modify_many`](crate::store::Session::modify_many).
    pub(super) async fn modify_all(
        &mut self,
        rows: Vec<(PartitionId, Vec<u8>)>,
        modifier: Modifier,
    ) -> Result<Vec<Modified>, StoreError> {
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
