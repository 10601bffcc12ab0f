//! What a session writes and modifies: in its transaction's branches, or as a transaction of its own.
//!
//! On the client's thread. A batch for one shard is one letter, which brings the commit along where nothing comes after it. A
//! batch for several shards goes in stretches, in order, and is undone as a whole where one of them fails.

use std::rc::Rc;

use super::EngineSession;
use crate::ids::{PartitionId, ShardId};
use crate::store::StoreError;
use crate::store::backend::SessionBackend;
use crate::store::shard::ShardEngine;
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

    /// Over several shards, in order: a stretch of operations for one shard is one letter. Says also whether all was undone.
    async fn write_groups(&mut self, operations: Vec<WriteOp>) -> Result<(Vec<WriteResult>, bool), StoreError> {
        let start = SessionBackend::savepoint(self);
        let done = self.write_stretches(operations).await;
        self.all_or_nothing(&start, done).await
    }

    async fn write_stretches(&mut self, operations: Vec<WriteOp>) -> Result<(Vec<WriteResult>, bool), StoreError> {
        let mut results = Vec::with_capacity(operations.len());
        for (shard, stretch) in self.stretches(operations, WriteOp::partition) {
            let write = async move |engine: &ShardEngine, txn: &_| engine.write_batch(txn, &stretch).await;
            let batch = self.in_branch(shard, write).await?;
            results.extend(batch.results);
            if batch.undone {
                return Ok((results, true));
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

    /// As [`write_groups`](Self::write_groups).
    async fn modify_groups(
        &mut self,
        rows: Vec<(PartitionId, Vec<u8>)>,
        modifier: Modifier,
    ) -> Result<(Vec<Modified>, bool), StoreError> {
        let start = SessionBackend::savepoint(self);
        let done = self.modify_stretches(rows, modifier).await;
        self.all_or_nothing(&start, done).await
    }

    async fn modify_stretches(
        &mut self,
        rows: Vec<(PartitionId, Vec<u8>)>,
        mut modifier: Modifier,
    ) -> Result<(Vec<Modified>, bool), StoreError> {
        let mut results = Vec::with_capacity(rows.len());
        for (shard, stretch) in self.stretches(rows, |row| row.0) {
            let first = results.len();
            // The modifier goes there and comes back.
            let modify = async move |engine: &ShardEngine, txn: &_| {
                let batch = engine.modify_batch(txn, &stretch, first, &mut modifier).await?;
                Ok((batch, modifier))
            };
            let (batch, back) = self.in_branch(shard, modify).await?;
            modifier = back;
            results.extend(batch.results);
            if batch.undone {
                return Ok((results, true));
            }
        }
        Ok((results, false))
    }

    /// What comes for the same shard, one behind the other, together.
    fn stretches<T>(&self, all: Vec<T>, partition: impl Fn(&T) -> PartitionId) -> Vec<(ShardId, Vec<T>)> {
        let mut stretches: Vec<(ShardId, Vec<T>)> = Vec::new();
        for one in all {
            let shard = self.shard_of(partition(&one));
            match stretches.last_mut() {
                Some((last, stretch)) if *last == shard => stretch.push(one),
                _ => stretches.push((shard, vec![one])),
            }
        }
        stretches
    }

    /// A stretch that was undone, or has failed, takes those before it along.
    async fn all_or_nothing<T: Send>(
        &mut self,
        start: &Savepoint,
        done: Result<(Vec<T>, bool), StoreError>,
    ) -> Result<(Vec<T>, bool), StoreError> {
        if !matches!(done, Ok((_, false))) {
            SessionBackend::rollback_to(self, start).await?;
        }
        done
    }
}
