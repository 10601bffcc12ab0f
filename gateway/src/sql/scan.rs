//! Our tables as DataFusion sees them: a provider that streams rows of the statement's snapshot.
//!
//! Lives as long as one statement; reads through the session's core, so all scans of a statement share its snapshot and
//! see its transaction's own changes. A batch holds at most what one trip to the store brings.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, BinaryBuilder, RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result as DfResult;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use rustydb::ids::PartitionId;
use rustydb::store::{ScanLimit, ScanRange};

use super::access::{self, Access};
use super::catalog::{Oid, Table};
use super::core::SessionCore;
use super::error::SqlError;
use super::row_codec::{Cell, RowReader};
use super::types::arrow::{ColumnBuilder, arrow_field};
use super::types::{Datum, PgType};

/// Hidden column: the row's key.
pub const KEY_COLUMN: &str = "__key";
/// Hidden column: the row as stored.
pub const ROW_COLUMN: &str = "__row";

/// A table's live columns as Arrow fields, with the two hidden ones behind if asked.
#[must_use]
pub fn table_schema(table: &Table, hidden: bool) -> SchemaRef {
    let mut fields: Vec<Field> = table.live_columns().map(|c| arrow_field(&c.name, c.kind, c.typmod, !c.not_null)).collect();
    if hidden {
        fields.push(Field::new(KEY_COLUMN, DataType::Binary, false));
        fields.push(Field::new(ROW_COLUMN, DataType::Binary, false));
    }
    Arc::new(Schema::new(fields))
}

/// See the module.
pub struct TableScan {
    table: Arc<Table>,
    core: Arc<SessionCore>,
    schema: SchemaRef,
}

impl TableScan {
    /// `hidden`: with [`KEY_COLUMN`] and [`ROW_COLUMN`].
    #[must_use]
    pub fn new(table: Arc<Table>, core: Arc<SessionCore>, hidden: bool) -> TableScan {
        let schema = table_schema(&table, hidden);
        TableScan { table, core, schema }
    }

    /// The table, and the number of the column at a place of its schema.
    #[must_use]
    pub fn origin(&self, at: usize) -> Option<(Oid, i16)> {
        self.table.live_columns().nth(at).map(|column| (self.table.oid, column.number))
    }
}

impl fmt::Debug for TableScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TableScan({})", self.table.name)
    }
}

#[async_trait]
impl TableProvider for TableScan {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let columns: Vec<usize> = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        let schema = Arc::new(self.schema.project(&columns)?);
        let way = access::choose(&self.table, filters);
        let limit = if filters.is_empty() { limit } else { None };
        let stream = RowScan {
            decoder: Arc::new(Decoder::new(&self.table, &columns)),
            table: Arc::clone(&self.table),
            core: Arc::clone(&self.core),
            schema: Arc::clone(&schema),
            way,
            limit,
        };
        Ok(Arc::new(StreamingTableExec::try_new(schema, vec![Arc::new(stream)], None, None, false, limit)?))
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DfResult<Vec<TableProviderFilterPushDown>> {
        let answer = |filter: &&Expr| {
            if access::is_useful(&self.table, filter) {
                TableProviderFilterPushDown::Inexact
            } else {
                TableProviderFilterPushDown::Unsupported
            }
        };
        Ok(filters.iter().map(answer).collect())
    }
}

/// Turns stored rows into columns.
pub struct Decoder {
    /// For each stored column up to the last one wanted: its type, what is there if the row is older, where it goes.
    steps: Vec<(PgType, i32, Option<Datum>, Option<usize>)>,
    /// Builders in the order of the output; `None`: the hidden key, then the hidden row.
    outputs: Vec<Output>,
}

enum Output {
    Column(PgType, i32),
    Key,
    Row,
}

impl Decoder {
    /// `columns` are positions in [`table_schema`].
    #[must_use]
    pub fn new(table: &Table, columns: &[usize]) -> Decoder {
        let live: Vec<_> = table.live_columns().collect();
        let mut outputs = Vec::with_capacity(columns.len());
        let mut steps: Vec<_> = table.columns.iter().map(|c| (c.kind, c.typmod, Table::missing_value(c), None)).collect();
        let mut last = 0;
        for (at, position) in columns.iter().enumerate() {
            match live.get(*position) {
                Some(column) => {
                    let number = column.number as usize;
                    steps[number - 1].3 = Some(at);
                    last = last.max(number);
                    outputs.push(Output::Column(column.kind, column.typmod));
                }
                None => outputs.push(if *position == live.len() { Output::Key } else { Output::Row }),
            }
        }
        steps.truncate(last);
        Decoder { steps, outputs }
    }

    /// Decodes rows into a batch of `schema`.
    ///
    /// # Errors
    /// `XX001` when a row is not what it should be.
    pub fn decode(&self, schema: &SchemaRef, rows: &[(Vec<u8>, Vec<u8>)]) -> Result<RecordBatch, SqlError> {
        let mut builders: Vec<ColumnBuilder> = self
            .outputs
            .iter()
            .map(|output| match output {
                Output::Column(kind, typmod) => ColumnBuilder::new(*kind, *typmod, rows.len()),
                Output::Key | Output::Row => ColumnBuilder::Binary(BinaryBuilder::with_capacity(rows.len(), rows.len() * 32)),
            })
            .collect();
        for (key, value) in rows {
            let mut reader = RowReader::new(value)?;
            for (kind, _, missing, target) in &self.steps {
                match target {
                    None => reader.skip(*kind)?,
                    Some(at) => match reader.read(*kind)? {
                        Cell::Value(datum) => builders[*at].push(Some(&datum)),
                        Cell::Null => builders[*at].push(None),
                        Cell::Missing => builders[*at].push(missing.as_ref()),
                    },
                }
            }
            for (at, output) in self.outputs.iter().enumerate() {
                if let ColumnBuilder::Binary(builder) = &mut builders[at] {
                    match output {
                        Output::Key => builder.append_value(key),
                        Output::Row => builder.append_value(value),
                        Output::Column(..) => {}
                    }
                }
            }
        }
        let arrays: Vec<ArrayRef> = builders.iter_mut().map(ColumnBuilder::finish).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options)
            .map_err(|fault| SqlError::internal(fault.to_string()))
    }
}

struct RowScan {
    decoder: Arc<Decoder>,
    table: Arc<Table>,
    core: Arc<SessionCore>,
    schema: SchemaRef,
    way: Access,
    limit: Option<usize>,
}

impl fmt::Debug for RowScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.way.describe(&self.table))
    }
}

/// Most rows that are fetched by key in one trip.
const LOOKUP_ROWS: usize = 1024;

/// What a scan has still to do; the next work last.
struct Progress {
    points: Vec<Vec<u8>>,
    ranges: Vec<ScanRange>,
    index: Option<PartitionId>,
    rows_left: usize,
}

impl PartitionStream for RowScan {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut progress =
            Progress { points: Vec::new(), ranges: Vec::new(), index: None, rows_left: self.limit.unwrap_or(usize::MAX) };
        match &self.way {
            Access::Points(keys) => progress.points = keys.iter().rev().cloned().collect(),
            Access::Ranges(ranges) => progress.ranges = ranges.iter().rev().cloned().collect(),
            Access::Index { partition, ranges, .. } => {
                progress.ranges = ranges.iter().rev().cloned().collect();
                progress.index = Some(*partition);
            }
        }
        let (core, decoder, schema) = (Arc::clone(&self.core), Arc::clone(&self.decoder), Arc::clone(&self.schema));
        let partition = PartitionId(self.table.partition);
        let batches = futures::stream::try_unfold(progress, move |mut progress| {
            let (core, decoder, schema) = (Arc::clone(&core), Arc::clone(&decoder), Arc::clone(&schema));
            async move {
                let rows = next_rows(&core, partition, &mut progress).await?;
                match rows {
                    None => Ok(None),
                    Some(rows) => Ok(Some((decoder.decode(&schema, &rows)?, progress))),
                }
            }
        });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches))
    }
}

type KeyedRows = Vec<(Vec<u8>, Vec<u8>)>;

async fn next_rows(core: &SessionCore, partition: PartitionId, progress: &mut Progress) -> Result<Option<KeyedRows>, SqlError> {
    loop {
        if progress.rows_left == 0 {
            return Ok(None);
        }
        if !progress.points.is_empty() {
            let keep = progress.points.len().saturating_sub(LOOKUP_ROWS);
            let mut keys = progress.points.split_off(keep);
            keys.reverse();
            core.check_canceled()?;
            let found = core.store.lock().await.get_many(partition, keys.clone()).await?;
            let rows: KeyedRows = keys.into_iter().zip(found).filter_map(|(k, v)| v.map(|v| (k, v))).collect();
            if !rows.is_empty() {
                progress.rows_left = progress.rows_left.saturating_sub(rows.len());
                return Ok(Some(rows));
            }
            continue;
        }
        let Some(range) = progress.ranges.pop() else { return Ok(None) };
        let limit = ScanLimit { rows: progress.rows_left.min(ScanLimit::default().rows), ..ScanLimit::default() };
        let chunk = core.scan(progress.index.unwrap_or(partition), range, limit).await?;
        progress.ranges.extend(chunk.more);
        if chunk.rows.is_empty() {
            continue;
        }
        if progress.index.is_some() {
            progress.points = chunk.rows.into_iter().rev().map(|(_, key)| key).collect();
            continue;
        }
        progress.rows_left = progress.rows_left.saturating_sub(chunk.rows.len());
        return Ok(Some(chunk.rows));
    }
}
