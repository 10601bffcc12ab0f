//! Filling a new index, and writing a whole table anew when its rows or keys change shape.
//!
//! The table is locked against writers. Rows go through memory a few thousand at a time.

use std::sync::Arc;

use rustydb::ids::PartitionId;
use rustydb::store::{Isolation, OnConflict, Placement, ScanLimit, ScanRange, WriteOp, WriteResult};

use crate::sql::catalog::{Catalog, Index, Table};
use crate::sql::error::{SqlError, code};
use crate::sql::rows;
use crate::sql::session::SqlSession;
use crate::sql::types::Row;

impl SqlSession {
    fn require_newest(&self) -> Result<(), SqlError> {
        if self.transaction.isolation == Isolation::RepeatableRead {
            return Err(SqlError::unsupported("building an index or rewriting a table in a REPEATABLE READ transaction")
                .with_hint("Its snapshot may be older than rows that belong in there; use READ COMMITTED."));
        }
        Ok(())
    }

    async fn scan_table(&self, table: &Table, range: ScanRange) -> Result<rustydb::store::ScanChunk, SqlError> {
        self.core.scan(PartitionId(table.partition), range, ScanLimit::default()).await
    }

    async fn write_checked(
        &self,
        catalog: &Catalog,
        table: &Table,
        ops: Vec<WriteOp>,
        of: &[(usize, Row)],
        indexes: &[&Index],
    ) -> Result<(), SqlError> {
        let work = async { Ok(self.core.store.lock().await.write(ops).await?) };
        let results = self.core.unless_canceled(work).await?;
        if matches!(results.last(), Some(WriteResult::Duplicate { .. })) {
            let (nth, row) = &of[results.len() - 1];
            let index = indexes[*nth];
            let key = rows::key_text(table, index.columns.iter().map(|c| c.number), row);
            return Err(SqlError::new(code::UNIQUE_VIOLATION, format!("could not create unique index \"{}\"", index.name))
                .with_detail(format!("Key {key} is duplicated."))
                .on_table(catalog.schema_name(table.schema), &table.name)
                .on_constraint(&index.name));
        }
        Ok(())
    }

    /// Puts an entry for each row of a table into a new index.
    pub(super) async fn fill_index(&mut self, catalog: &Arc<Catalog>, table: &Arc<Table>, index: &Index) -> Result<(), SqlError> {
        self.require_newest()?;
        let mut range = Some(ScanRange::all());
        while let Some(next) = range {
            let chunk = self.scan_table(table, next).await?;
            range = chunk.more;
            let (mut ops, mut of) = (Vec::with_capacity(chunk.rows.len()), Vec::with_capacity(chunk.rows.len()));
            for (key, value) in &chunk.rows {
                let row = rows::decode(table, value)?;
                let (entry, row_key) = rows::index_entry(index, &row, key)?;
                ops.push(WriteOp::Insert {
                    partition: PartitionId(index.partition),
                    key: entry,
                    value: row_key,
                    on_conflict: OnConflict::Error,
                });
                of.push((0, row));
            }
            if !ops.is_empty() {
                self.write_checked(catalog, table, ops, &of, &[index]).await?;
            }
        }
        Ok(())
    }

    /// Writes all rows of `old` into new partitions for `new`, each as `convert` makes it, with all of `new`'s indexes.
    /// Changes `new`'s partitions; the old ones are given up.
    pub(super) async fn rebuild(
        &mut self,
        catalog: &Arc<Catalog>,
        old: &Arc<Table>,
        new: &mut Table,
        convert: &(dyn Fn(Row) -> Result<Row, SqlError> + Send + Sync),
    ) -> Result<(), SqlError> {
        self.require_newest()?;
        new.partition = self.new_partition(Placement::Any).await?;
        let home = Placement::With(PartitionId(new.partition));
        for index in &mut new.indexes {
            index.partition = if index.primary { new.partition } else { self.new_partition(home).await? };
        }
        let schema = catalog.schema_name(new.schema).to_owned();
        let mut range = Some(ScanRange::all());
        while let Some(next) = range {
            let chunk = self.scan_table(old, next).await?;
            range = chunk.more;
            for part in chunk.rows.chunks(crate::sql::dml::write::ROWS_PER_TRIP) {
                let (mut ops, mut of) = (Vec::new(), Vec::new());
                for (_, value) in part {
                    let row = convert(rows::decode(old, value)?)?;
                    check_not_null(new, &schema, &row)?;
                    let key = match new.primary_key() {
                        Some(index) => rows::primary_key(index, &row)?,
                        None => self.db.new_row_number(new.oid).await?.to_be_bytes().to_vec(),
                    };
                    let before = ops.len();
                    rows::insert_ops(new, &key, &row, &mut ops)?;
                    for nth in 0..ops.len() - before {
                        of.push((nth, row.clone()));
                    }
                }
                let mut indexes: Vec<&Index> = Vec::new();
                // Without a primary key the first write of a row cannot clash; any index stands for it.
                indexes.extend(new.primary_key().or(new.indexes.first()));
                indexes.extend(new.secondary_indexes());
                self.write_checked(catalog, new, ops, &of, &indexes).await?;
            }
        }
        self.give_up_partition(old.partition);
        for index in old.secondary_indexes() {
            self.give_up_partition(index.partition);
        }
        Ok(())
    }

    /// Looks at all rows of a table.
    pub(super) async fn check_rows(
        &mut self,
        table: &Arc<Table>,
        check: &mut (dyn FnMut(&[Row]) -> Result<(), SqlError> + Send),
    ) -> Result<(), SqlError> {
        self.require_newest()?;
        let mut range = Some(ScanRange::all());
        while let Some(next) = range {
            let chunk = self.scan_table(table, next).await?;
            range = chunk.more;
            let rows: Vec<Row> = chunk.rows.iter().map(|(_, value)| rows::decode(table, value)).collect::<Result<_, _>>()?;
            check(&rows)?;
        }
        Ok(())
    }
}

/// `23502` in ALTER TABLE's words.
pub(super) fn check_not_null(table: &Table, schema: &str, row: &Row) -> Result<(), SqlError> {
    for column in table.live_columns() {
        if column.not_null && row[column.number as usize - 1].is_none() {
            return Err(SqlError::new(
                code::NOT_NULL_VIOLATION,
                format!("column \"{}\" of relation \"{}\" contains null values", column.name, table.name),
            )
            .on_table(schema, &table.name)
            .on_column(&column.name));
        }
    }
    Ok(())
}
