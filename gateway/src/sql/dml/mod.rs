//! INSERT, UPDATE, DELETE and the changes that foreign keys carry on.
//!
//! A statement reads first (through DataFusion or by itself), then changes rows in the store by their keys; it never uses
//! DataFusion's own DML. All of a statement's changes stand or fall with its transaction. The rows of a statement are in
//! memory while it changes them.

pub mod insert;
pub mod references;
pub mod update;
pub mod write;

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::datasource::MemTable;
use datafusion::sql::sqlparser::ast::{self, SelectItem};

use super::api::{ColumnDesc, Execution, RowStream, Tag};
use super::catalog::Table;
use super::context::Context;
use super::dferror::from_datafusion;
use super::error::SqlError;
use super::expr::{self, Inputs, Typed};
use super::parse::fold;
use super::plan::{batch_rows, columns_of};
use super::rewrite::output_name;
use super::scan::table_schema;
use super::types::arrow::ColumnBuilder;
use super::types::{PgType, Row};

/// RETURNING, made ready.
pub enum Returning {
    /// Expressions of our own.
    Fast(Vec<Typed>, Arc<[ColumnDesc]>),
    /// Through DataFusion.
    Query(Box<ast::Query>),
}

impl Returning {
    /// Compiles a RETURNING list over a table that goes by `alias`.
    #[must_use]
    pub fn compile(items: &[SelectItem], table: &Table, alias: &str, parameters: &[PgType]) -> Returning {
        Returning::fast(items, table, alias, parameters).unwrap_or_else(|| {
            let mut query = super::parse::parse_query(&format!("SELECT 1 FROM {}", ast::Ident::with_quote('"', alias)))
                .expect("a query of our own making parses");
            if let ast::SetExpr::Select(select) = &mut *query.body {
                select.projection = items.to_vec();
            }
            Returning::Query(query)
        })
    }

    fn fast(items: &[SelectItem], table: &Table, alias: &str, parameters: &[PgType]) -> Option<Returning> {
        let scope = [(alias, table)];
        let (mut exprs, mut columns) = (Vec::new(), Vec::new());
        let mut push = |name: String, fast: Typed, typmod: i32| {
            let kind = if fast.kind == PgType::Unknown { PgType::Text } else { fast.kind };
            columns.push(ColumnDesc { name, kind, typmod, table: 0, number: 0 });
            exprs.push(fast);
        };
        for item in items {
            let (name, expr) = match item {
                SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..) => {
                    for column in table.live_columns() {
                        let ident = ast::Expr::Identifier(ast::Ident::with_quote('"', &column.name));
                        push(column.name.clone(), expr::compile(&ident, &scope, parameters, PgType::Unknown)?, column.typmod);
                    }
                    continue;
                }
                SelectItem::UnnamedExpr(expr) => (output_name(expr), expr),
                SelectItem::ExprWithAlias { expr, alias } => (fold(alias), expr),
                SelectItem::ExprWithAliases { .. } => return None,
            };
            let fast = expr::compile(expr, &scope, parameters, PgType::Unknown)?;
            let typmod = match &fast.fast {
                expr::Fast::Column { at, .. } => table.columns[*at].typmod,
                _ => -1,
            };
            push(name, fast, typmod);
        }
        Some(Returning::Fast(exprs, columns.into()))
    }

    /// The columns.
    ///
    /// # Errors
    /// What is wrong with the list.
    pub fn columns(&self, context: &Context, table: &Arc<Table>, alias: &str) -> Result<Arc<[ColumnDesc]>, SqlError> {
        match self {
            Returning::Fast(_, columns) => Ok(Arc::clone(columns)),
            Returning::Query(query) => {
                let mut planner = context.planner();
                planner.overlay(alias, Arc::new(mem_table(table, &[])?));
                Ok(columns_of(&planner.plan(query, &context.parameters, true)?).into())
            }
        }
    }

    /// The rows.
    ///
    /// # Errors
    /// What goes wrong in an expression.
    pub async fn rows(
        &self,
        context: &Context,
        table: &Arc<Table>,
        alias: &str,
        rows: &[Row],
    ) -> Result<(Arc<[ColumnDesc]>, Vec<Row>), SqlError> {
        match self {
            Returning::Fast(exprs, columns) => {
                let parameters = context.parameter_values();
                let evaluate = |row: &Row| {
                    let rows = [row];
                    let inputs =
                        Inputs { rows: &rows, parameters: &parameters, transaction_micros: context.env.transaction_micros };
                    exprs.iter().map(|e| e.evaluate(&inputs)).collect()
                };
                let rows = rows.iter().map(evaluate).collect::<Result<_, _>>()?;
                Ok((Arc::clone(columns), rows))
            }
            Returning::Query(query) => {
                let mut planner = context.planner();
                planner.overlay(alias, Arc::new(mem_table(table, rows)?));
                let (plan, batches) = planner.collect(query, &context.parameters).await?;
                let columns = columns_of(&plan);
                let mut out = Vec::new();
                for batch in &batches {
                    out.extend(batch_rows(batch, &columns)?);
                }
                Ok((columns.into(), out))
            }
        }
    }
}

/// Rows as a batch of the table's live columns.
///
/// # Errors
/// A bug of ours.
pub fn batch(table: &Table, rows: &[Row]) -> Result<RecordBatch, SqlError> {
    let schema = table_schema(table, false);
    let arrays = table
        .live_columns()
        .map(|column| {
            let mut builder = ColumnBuilder::new(column.kind, column.typmod, rows.len());
            for row in rows {
                builder.push(row[column.number as usize - 1].as_ref());
            }
            builder.finish()
        })
        .collect();
    // A row on its way in may have NULLs where the table has none.
    let fields: Vec<_> = schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
    let schema = Arc::new(datafusion::arrow::datatypes::Schema::new(fields));
    let options = datafusion::arrow::array::RecordBatchOptions::new().with_row_count(Some(rows.len()));
    RecordBatch::try_new_with_options(schema, arrays, &options).map_err(|fault| SqlError::internal(fault.to_string()))
}

/// Rows as a table for DataFusion.
///
/// # Errors
/// A bug of ours.
pub fn mem_table(table: &Table, rows: &[Row]) -> Result<MemTable, SqlError> {
    let batch = batch(table, rows)?;
    MemTable::try_new(batch.schema(), vec![vec![batch]]).map_err(from_datafusion)
}

/// A DML statement's outcome as the client gets it.
pub(super) async fn outcome(
    context: &Context,
    tag: String,
    returning: Option<&Returning>,
    table: &Arc<Table>,
    alias: &str,
    rows: &[Row],
) -> Result<Execution, SqlError> {
    match returning {
        None => Ok(Execution::Command { tag }),
        Some(returning) => {
            let (columns, rows) = returning.rows(context, table, alias, rows).await?;
            Ok(Execution::Rows(RowStream::ready(columns, Tag::Fixed(tag), rows)))
        }
    }
}
