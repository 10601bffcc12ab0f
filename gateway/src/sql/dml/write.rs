//! Rows into the store: keys, indexes, and the constraints that a row must keep by itself.
//!
//! A [`Writer`] serves one table within one statement. Checks of foreign keys are collected and made at the statement's
//! end.

use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray};
use datafusion::physical_plan::PhysicalExpr;
use rustydb::ids::PartitionId;
use rustydb::store::{BATCH_MAX, Modified, Modify, OnConflict, WriteOp, WriteResult};

use crate::sql::catalog::{Index, Table};
use crate::sql::context::Context;
use crate::sql::dferror::from_datafusion;
use crate::sql::error::{SqlError, code};
use crate::sql::rows;
use crate::sql::types::Row;

/// Most rows that go into the store in one trip.
pub const ROWS_PER_TRIP: usize = 512;

/// A row to be changed: its key, the row as it was read, and the new row (`None`: delete it).
pub struct Change {
    /// Its key.
    pub key: Vec<u8>,
    /// As stored when it was read.
    pub seen: Vec<u8>,
    /// As it shall be.
    pub new: Option<Row>,
}

/// A row that was changed.
pub struct Changed {
    /// As it was.
    pub old: Row,
    /// As it is; `None` when it is gone.
    pub new: Option<Row>,
}

/// See the module.
pub struct Writer {
    context: Context,
    table: Arc<Table>,
    schema: String,
    checks: Vec<(String, Arc<dyn PhysicalExpr>)>,
}

impl Writer {
    /// For a table, in a statement.
    ///
    /// # Errors
    /// A CHECK that cannot be compiled.
    pub fn new(context: &Context, table: &Arc<Table>) -> Result<Writer, SqlError> {
        let checks = table
            .checks
            .iter()
            .map(|check| {
                let expr = crate::sql::parse::parse_expression(&check.expression)?;
                let schema = super::batch(table, &[])?.schema();
                Ok((check.name.clone(), context.planner().physical_expression(&expr, &schema, &table.name)?))
            })
            .collect::<Result<_, SqlError>>()?;
        let schema = context.schema_name(table.schema).to_owned();
        Ok(Writer { context: context.clone(), table: Arc::clone(table), schema, checks })
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// NOT NULL and CHECK.
    ///
    /// # Errors
    /// `23502`, `23514`.
    pub fn check(&self, rows: &[Row]) -> Result<(), SqlError> {
        for row in rows {
            rows::check_not_null(&self.table, &self.schema, row)?;
        }
        if self.checks.is_empty() || rows.is_empty() {
            return Ok(());
        }
        let batch = super::batch(&self.table, rows)?;
        for (name, check) in &self.checks {
            let result = check.evaluate(&batch).and_then(|v| v.into_array(rows.len())).map_err(from_datafusion)?;
            if result.data_type() == &datafusion::arrow::datatypes::DataType::Null {
                continue;
            }
            let passed = result.as_boolean();
            // NULL passes.
            if let Some(at) = (0..rows.len()).find(|at| passed.is_valid(*at) && !passed.value(*at)) {
                return Err(SqlError::new(
                    code::CHECK_VIOLATION,
                    format!("new row for relation \"{}\" violates check constraint \"{name}\"", self.table.name),
                )
                .with_detail(rows::failing_row(&self.table, &rows[at]))
                .on_table(&self.schema, &self.table.name)
                .on_constraint(name));
            }
        }
        Ok(())
    }

    /// The key of a new row.
    ///
    /// # Errors
    /// `54000`, the store's.
    pub async fn new_key(&self, row: &Row) -> Result<Vec<u8>, SqlError> {
        match self.table.primary_key() {
            Some(index) => rows::primary_key(index, row),
            None => Ok(self.context.db.new_row_number(self.table.oid).await?.to_be_bytes().to_vec()),
        }
    }

    async fn write(&self, ops: Vec<WriteOp>) -> Result<Vec<WriteResult>, SqlError> {
        let work = async { Ok(self.context.core.store.lock().await.write(ops).await?) };
        self.context.core.unless_canceled(work).await
    }

    /// Adds rows.
    ///
    /// # Errors
    /// `23502`, `23514`, `23505`, and the store's.
    pub async fn insert(&self, new: &[Row]) -> Result<(), SqlError> {
        self.check(new)?;
        let indexes = 1 + self.table.secondary_indexes().count();
        for chunk in new.chunks(ROWS_PER_TRIP.min(BATCH_MAX / indexes)) {
            let mut ops = Vec::with_capacity(chunk.len() * indexes);
            for row in chunk {
                let key = self.new_key(row).await?;
                rows::insert_ops(&self.table, &key, row, &mut ops)?;
            }
            let results = self.write(ops).await?;
            if matches!(results.last(), Some(WriteResult::Duplicate { .. })) {
                let at = results.len() - 1;
                return Err(self.duplicate(at % indexes, &chunk[at / indexes]));
            }
        }
        Ok(())
    }

    /// The index of the nth write of a row: the row itself (its primary key), then the secondary ones.
    #[must_use]
    pub fn index_at(&self, nth: usize) -> Option<&Index> {
        if nth == 0 { self.table.primary_key() } else { self.table.secondary_indexes().nth(nth - 1) }
    }

    fn duplicate(&self, nth: usize, row: &Row) -> SqlError {
        match self.index_at(nth) {
            Some(index) => rows::unique_violation(&self.table, &self.schema, index, row),
            None => SqlError::internal(format!("a row number of \"{}\" was given twice", self.table.name)),
        }
    }

    /// Adds one row unless it clashes; then says with which index and which row (its key).
    ///
    /// # Errors
    /// `23502`, `23514`, and the store's.
    pub async fn try_insert(&self, row: &Row) -> Result<Option<(usize, Vec<u8>)>, SqlError> {
        let key = self.new_key(row).await?;
        let mut ops = Vec::new();
        rows::insert_ops(&self.table, &key, row, &mut ops)?;
        let results = self.write(ops).await?;
        match results.last() {
            Some(WriteResult::Duplicate { existing }) => {
                let nth = results.len() - 1;
                Ok(Some((nth, if nth == 0 { key } else { existing.clone() })))
            }
            _ => Ok(None),
        }
    }

    /// Changes rows that are still as they were read. Returns what was changed, and the keys of rows that somebody else
    /// has changed meanwhile (locked now, unless they are gone).
    ///
    /// # Errors
    /// `23502`, `23514`, `23505`, and the store's.
    pub async fn change(&self, changes: Vec<Change>) -> Result<(Vec<Changed>, Vec<Vec<u8>>), SqlError> {
        let new_rows: Vec<Row> = changes.iter().filter_map(|c| c.new.clone()).collect();
        self.check(&new_rows)?;
        let (mut done, mut stale) = (Vec::with_capacity(changes.len()), Vec::new());
        let mut changes = changes.into_iter().peekable();
        while changes.peek().is_some() {
            let chunk: Vec<Change> = changes.by_ref().take(ROWS_PER_TRIP).collect();
            self.change_chunk(chunk, &mut done, &mut stale).await?;
        }
        Ok((done, stale))
    }

    async fn change_chunk(&self, chunk: Vec<Change>, done: &mut Vec<Changed>, stale: &mut Vec<Vec<u8>>) -> Result<(), SqlError> {
        let partition = PartitionId(self.table.partition);
        let primary = self.table.primary_key();
        // What each row becomes: rewritten in place, or taken away (and put back under another key).
        let mut plans = Vec::with_capacity(chunk.len());
        let mut moved: Vec<Option<Vec<u8>>> = Vec::with_capacity(chunk.len());
        for change in &chunk {
            let new_key = match (&change.new, primary) {
                (Some(row), Some(index)) => Some(rows::primary_key(index, row)?).filter(|key| *key != change.key),
                _ => None,
            };
            let in_place = change.new.as_ref().filter(|_| new_key.is_none()).map(rows::encode);
            plans.push((change.seen.clone(), in_place));
            moved.push(new_key);
        }
        let keys = chunk.iter().map(|c| (partition, c.key.clone())).collect();
        let modifier = Box::new(move |at: usize, now: Option<&[u8]>| {
            let (seen, new) = &plans[at];
            match (now, new) {
                (Some(now), _) if now != seen.as_slice() => Modify::Keep,
                (Some(_), Some(new)) => Modify::Put(new.clone()),
                (Some(_), None) => Modify::Delete,
                (None, _) => Modify::Keep,
            }
        });
        let work = async { Ok(self.context.core.store.lock().await.modify_many(keys, modifier).await?) };
        let results = self.context.core.unless_canceled(work).await?;
        let (mut removals, mut additions) = (Vec::new(), Vec::new());
        // For each addition: which row it is for, and which index it may clash with.
        let mut clashes: Vec<(usize, usize)> = Vec::new();
        let first = done.len();
        for ((change, new_key), result) in chunk.into_iter().zip(moved).zip(results) {
            if matches!(result, Modified::Kept | Modified::Failed(_)) {
                stale.push(change.key);
                continue;
            }
            let old = rows::decode(&self.table, &change.seen)?;
            let row_at = done.len();
            if let (Some(key), Some(row)) = (&new_key, &change.new) {
                additions.push(WriteOp::Insert {
                    partition,
                    key: key.clone(),
                    value: rows::encode(row),
                    on_conflict: OnConflict::Error,
                });
                clashes.push((row_at, 0));
            }
            let now_key = new_key.as_ref().unwrap_or(&change.key);
            for (nth, index) in self.table.secondary_indexes().enumerate() {
                let before = rows::index_entry(index, &old, &change.key)?;
                let after = change.new.as_ref().map(|row| rows::index_entry(index, row, now_key)).transpose()?;
                if after.as_ref() == Some(&before) {
                    continue;
                }
                let partition = PartitionId(index.partition);
                removals.push(WriteOp::Delete { partition, key: before.0 });
                if let Some((key, value)) = after {
                    additions.push(WriteOp::Insert { partition, key, value, on_conflict: OnConflict::Error });
                    clashes.push((row_at, nth + 1));
                }
            }
            done.push(Changed { old, new: change.new });
        }
        debug_assert!(done.len() >= first);
        if !removals.is_empty() {
            self.write(removals).await?;
        }
        if !additions.is_empty() {
            let results = self.write(additions).await?;
            if matches!(results.last(), Some(WriteResult::Duplicate { .. })) {
                let (row_at, nth) = clashes[results.len() - 1];
                let row = done[row_at].new.as_ref().unwrap_or(&done[row_at].old);
                return Err(self.duplicate(nth, row));
            }
        }
        Ok(())
    }
}
