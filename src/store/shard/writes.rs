//! Changes of rows in a shard: batches of operations, modifications by their callers' closures, and locks on rows.
//!
//! In the shard's thread, in a transaction of it. A batch goes row by row and is undone as a whole when one of them ends it:
//! a fault, a duplicate, or a modifier that gives up. Other transactions' rows are waited for, as the caller wishes.

use super::ShardEngine;
use crate::ids::PartitionId;
use crate::store::StoreError;
use crate::store::types::*;
use crate::txn::{Decision, How, Outcome, Transaction, TxnError, WaitPolicy};

/// How a batch ended without a fault.
pub(in crate::store) struct Batch<T> {
    pub(in crate::store) results: Vec<T>,
    /// Everything that it did was undone: a duplicate, or a modifier that gave up.
    pub(in crate::store) undone: bool,
}

impl ShardEngine {
    pub(in crate::store) async fn write_batch(
        &self,
        txn: &Transaction,
        operations: &[WriteOp],
    ) -> Result<Batch<WriteResult>, StoreError> {
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

    pub(in crate::store) async fn modify_batch(
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

    pub(in crate::store) async fn lock_row(
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
}
