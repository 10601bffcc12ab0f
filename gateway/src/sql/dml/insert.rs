//! INSERT.
//!
//! VALUES are evaluated by ourselves where they are simple, everything else is a query's rows. A table that its own
//! source reads is read to its end before the first row goes in.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{self, Expr, OnConflictAction, OnInsert, SetExpr, TableObject};
use futures::StreamExt as _;
use rustydb::ids::PartitionId;
use rustydb::store::{LockStrength, LockedRow, WaitPolicy};

use super::Returning;
use super::references;
use super::write::{Change, Changed, Writer};
use crate::sql::api::Execution;
use crate::sql::catalog::{Column, Identity, Table};
use crate::sql::context::Context;
use crate::sql::dferror::from_datafusion;
use crate::sql::error::{SqlError, code};
use crate::sql::expr::{self, Inputs, Typed};
use crate::sql::parse::fold;
use crate::sql::plan::{batch_rows, columns_of, target_table};
use crate::sql::rows;
use crate::sql::types::{Datum, PgType, Row};

/// The columns that an INSERT names, or all.
///
/// # Errors
/// `42703`, `42701`.
pub fn target_columns<'t>(table: &'t Table, names: &[String]) -> Result<Vec<&'t Column>, SqlError> {
    if names.is_empty() {
        return Ok(table.live_columns().collect());
    }
    let mut columns: Vec<&Column> = Vec::with_capacity(names.len());
    for name in names {
        let column = table.column(name).ok_or_else(|| {
            SqlError::new(code::UNDEFINED_COLUMN, format!("column \"{name}\" of relation \"{}\" does not exist", table.name))
        })?;
        if columns.iter().any(|c| c.number == column.number) {
            return Err(SqlError::new(code::DUPLICATE_COLUMN, format!("column \"{name}\" specified more than once")));
        }
        columns.push(column);
    }
    Ok(columns)
}

/// The names in an INSERT's column list.
///
/// # Errors
/// `42601`.
pub fn column_names(insert: &ast::Insert) -> Result<Vec<String>, SqlError> {
    insert.columns.iter().map(|name| Ok(crate::sql::parse::split_name(name)?.1)).collect()
}

/// The table of an INSERT and the name it goes by.
///
/// # Errors
/// `42P01` and the like.
pub fn table_of(context: &Context, insert: &ast::Insert) -> Result<(Arc<Table>, String), SqlError> {
    let TableObject::TableName(name) = &insert.table else {
        return Err(SqlError::unsupported("INSERT into anything but a table"));
    };
    let table = target_table(&context.catalog, &context.env, name)?;
    let alias = insert.table_alias.as_ref().map_or_else(|| table.name.clone(), |a| fold(&a.alias));
    Ok((table, alias))
}

/// What columns get that a statement does not name.
pub struct Defaults {
    /// By column number - 1.
    entries: Vec<DefaultValue>,
}

enum DefaultValue {
    Null,
    Fast(Typed),
    Sequence(Arc<crate::sql::catalog::Sequence>),
    Other(Box<Expr>),
}

impl Defaults {
    /// A table's defaults, compiled.
    ///
    /// # Errors
    /// A default that cannot be parsed, or whose sequence is gone.
    pub fn new(context: &Context, table: &Table) -> Result<Defaults, SqlError> {
        let compile = |column: &Column| {
            let Some(sql) = column.default.as_deref().filter(|_| !column.dropped) else { return Ok(DefaultValue::Null) };
            let expr = crate::sql::parse::parse_expression(sql)?;
            if let Expr::Function(function) = &expr
                && function.name.to_string().eq_ignore_ascii_case("nextval")
            {
                let arguments = crate::sql::rewrite::arguments(function);
                return Ok(DefaultValue::Sequence(crate::sql::select::sequence(context, arguments.first().copied())?));
            }
            Ok(match expr::compile(&expr, &[], &[], column.kind) {
                Some(fast) => DefaultValue::Fast(fast),
                None => DefaultValue::Other(Box::new(expr)),
            })
        };
        Ok(Defaults { entries: table.columns.iter().map(compile).collect::<Result<_, SqlError>>()? })
    }

    /// The value for a new row.
    ///
    /// # Errors
    /// Those of its evaluation.
    pub async fn value(&self, context: &Context, column: &Column) -> Result<Option<Datum>, SqlError> {
        let value = match &self.entries[column.number as usize - 1] {
            DefaultValue::Null => return Ok(None),
            DefaultValue::Fast(fast) => fast.evaluate(&Inputs::constant(&[], &context.env))?,
            DefaultValue::Sequence(sequence) => Some(Datum::Int8(context.nextval(sequence).await?)),
            DefaultValue::Other(expr) => context.evaluate(expr).await?,
        };
        rows::assign(column, value)
    }
}

/// Where new rows come from.
enum Source {
    /// DEFAULT VALUES
    Defaults,
    /// VALUES of our own expressions; `None` in place of what DataFusion has to evaluate.
    Values(Vec<Vec<Cell>>),
    Query(Box<ast::Query>),
}

enum Cell {
    Fast(Typed),
    Slow(Box<Expr>),
}

fn source(insert: &ast::Insert, targets: &[&Column], parameters: &[PgType]) -> Result<Source, SqlError> {
    let Some(query) = &insert.source else { return Ok(Source::Defaults) };
    let plain = query.with.is_none() && query.order_by.is_none() && query.limit_clause.is_none();
    let SetExpr::Values(values) = &*query.body else { return Ok(Source::Query(query.clone())) };
    if !plain {
        return Ok(Source::Query(query.clone()));
    }
    let mut out = Vec::with_capacity(values.rows.len());
    let width = values.rows.first().map_or(0, |row| row.content.len());
    for row in &values.rows {
        let row = &row.content;
        if row.len() != width {
            return Err(SqlError::syntax("VALUES lists must all be the same length"));
        }
        if row.len() > targets.len() {
            return Err(SqlError::syntax("INSERT has more expressions than target columns"));
        }
        if row.len() < targets.len() && !insert.columns.is_empty() {
            return Err(SqlError::syntax("INSERT has more target columns than expressions"));
        }
        let cells = row.iter().zip(targets).map(|(expr, column)| match expr::compile(expr, &[], parameters, column.kind) {
            Some(fast) => Cell::Fast(fast),
            None => Cell::Slow(Box::new(expr.clone())),
        });
        out.push(cells.collect());
    }
    Ok(Source::Values(out))
}

/// Refuses values for GENERATED ALWAYS columns.
fn check_identity(insert: &ast::Insert, column: &Column) -> Result<(), SqlError> {
    if column.identity == Some(Identity::Always) && !insert.overwrite {
        return Err(SqlError::new("428C9", format!("cannot insert a non-DEFAULT value into column \"{}\"", column.name))
            .with_detail(format!("Column \"{}\" is an identity column defined as GENERATED ALWAYS.", column.name))
            .with_hint("Leave the column out, or say DEFAULT."));
    }
    Ok(())
}

/// Runs an INSERT. The table is locked already.
///
/// # Errors
/// Everything that can go wrong with it.
pub async fn run(context: &Context, insert: &ast::Insert) -> Result<Execution, SqlError> {
    let (table, alias) = table_of(context, insert)?;
    let names = column_names(insert)?;
    let targets = target_columns(&table, &names)?;
    let writer = Writer::new(context, &table)?;
    let defaults = Defaults::new(context, &table)?;
    let returning = insert.returning.as_ref().map(|items| Returning::compile(items, &table, &alias, &context.parameter_types()));
    let conflict = Conflict::new(context, insert, &table, &alias)?;
    let mut sink = Sink {
        context,
        writer: &writer,
        conflict,
        keep: returning.is_some() || !table.foreign_keys.is_empty(),
        kept: Vec::new(),
        changed: Vec::new(),
        touched: HashSet::new(),
        count: 0,
    };
    match source(insert, &targets, &context.parameter_types())? {
        Source::Defaults => {
            let row = complete(context, &table, &defaults, Vec::new(), &[]).await?;
            sink.take(vec![row]).await?;
        }
        Source::Values(list) => {
            let parameters = context.parameter_values();
            let mut rows = Vec::with_capacity(list.len());
            for cells in &list {
                let mut given = Vec::with_capacity(cells.len());
                for (cell, column) in cells.iter().zip(&targets) {
                    let value = match cell {
                        Cell::Fast(fast) if fast.is_default() => {
                            given.push(defaults.value(context, column).await?);
                            continue;
                        }
                        Cell::Fast(fast) => fast.evaluate(&Inputs::constant(&parameters, &context.env))?,
                        Cell::Slow(expr) => slow_value(context, expr).await?,
                    };
                    check_identity(insert, column)?;
                    given.push(rows::assign(column, value)?);
                }
                rows.push(complete(context, &table, &defaults, given, &targets).await?);
            }
            sink.take(rows).await?;
        }
        Source::Query(query) => {
            let planner = context.planner();
            let plan = planner.plan(&query, &context.parameters, true)?;
            let columns = columns_of(&plan);
            if columns.len() > targets.len() {
                return Err(SqlError::syntax("INSERT has more expressions than target columns"));
            }
            if columns.len() < targets.len() && !names.is_empty() {
                return Err(SqlError::syntax("INSERT has more target columns than expressions"));
            }
            for column in &targets[..columns.len()] {
                check_identity(insert, column)?;
            }
            // A source that reads the table must not meet the rows that it adds.
            let whole = format!("{}", plan.display_indent()).contains(&table.name);
            let mut stream = planner.execute(planner.physical(&plan).await?)?;
            let mut held = Vec::new();
            while let Some(batch) = context.core.unless_canceled(async { Ok(stream.next().await) }).await? {
                let batch = batch.map_err(from_datafusion)?;
                let mut rows = Vec::with_capacity(batch.num_rows());
                for values in batch_rows(&batch, &columns)? {
                    let given = values.into_iter().zip(&targets).map(|(v, c)| rows::assign(c, v)).collect::<Result<_, _>>()?;
                    rows.push(complete(context, &table, &defaults, given, &targets).await?);
                }
                if whole {
                    held.extend(rows);
                } else {
                    sink.take(rows).await?;
                }
            }
            sink.take(held).await?;
        }
    }
    let Sink { kept, changed, count, .. } = sink;
    references::check_new(context, &table, kept.iter()).await?;
    references::carry_on(context, &table, &changed).await?;
    super::outcome(context, format!("INSERT 0 {count}"), returning.as_ref(), &table, &alias, &kept).await
}

async fn slow_value(context: &Context, expr: &Expr) -> Result<Option<Datum>, SqlError> {
    let query = crate::sql::parse::parse_query(&format!("SELECT {expr}"))?;
    let Execution::Rows(mut rows) = crate::sql::select::run(context, &query, false).await? else { return Ok(None) };
    Ok(rows.collect().await?.pop().and_then(|mut row| row.pop()).flatten())
}

/// A whole row: what is given for `targets`, defaults for the rest.
async fn complete(
    context: &Context,
    table: &Table,
    defaults: &Defaults,
    given: Vec<Option<Datum>>,
    targets: &[&Column],
) -> Result<Row, SqlError> {
    let mut row: Row = vec![None; table.columns.len()];
    let count = given.len();
    for (value, column) in given.into_iter().zip(targets) {
        row[column.number as usize - 1] = value;
    }
    for column in table.live_columns() {
        if !targets[..count].iter().any(|c| c.number == column.number) {
            row[column.number as usize - 1] = defaults.value(context, column).await?;
        }
    }
    Ok(row)
}

/// ON CONFLICT.
struct Conflict {
    /// Names of the unique indexes that count; empty: all.
    targets: Vec<String>,
    update: Option<ConflictUpdate>,
}

struct ConflictUpdate {
    assignments: Vec<(usize, Expr, Option<Typed>)>,
    selection: Option<Expr>,
    alias: String,
}

impl Conflict {
    fn new(context: &Context, insert: &ast::Insert, table: &Arc<Table>, alias: &str) -> Result<Option<Conflict>, SqlError> {
        let clause = match &insert.on {
            None => return Ok(None),
            Some(OnInsert::OnConflict(clause)) => clause,
            Some(_) => return Err(SqlError::syntax("syntax error at or near \"DUPLICATE\"")),
        };
        let targets = match &clause.conflict_target {
            None => Vec::new(),
            Some(ast::ConflictTarget::Columns(columns)) => {
                let numbers = columns.iter().map(|c| {
                    let name = fold(c);
                    table
                        .column(&name)
                        .map(|c| c.number)
                        .ok_or_else(|| SqlError::new(code::UNDEFINED_COLUMN, format!("column \"{name}\" does not exist")))
                });
                let numbers: Vec<i16> = numbers.collect::<Result<_, _>>()?;
                let index = table.unique_index_on(&numbers).ok_or_else(|| {
                    SqlError::new(
                        code::INVALID_COLUMN_REFERENCE,
                        "there is no unique or exclusion constraint matching the ON CONFLICT specification",
                    )
                })?;
                vec![index.name.clone()]
            }
            Some(ast::ConflictTarget::OnConstraint(name)) => {
                let name = crate::sql::parse::split_name(name)?.1;
                if !table.indexes.iter().any(|i| i.name == name && i.unique) {
                    return Err(SqlError::new(
                        code::UNDEFINED_OBJECT,
                        format!("constraint \"{name}\" for table \"{}\" does not exist", table.name),
                    ));
                }
                vec![name]
            }
        };
        let update = match &clause.action {
            OnConflictAction::DoNothing => None,
            OnConflictAction::DoUpdate(update) => {
                if targets.is_empty() {
                    return Err(SqlError::syntax("ON CONFLICT DO UPDATE requires inference specification or constraint name"));
                }
                let scope = [(alias, &**table), ("excluded", &**table)];
                let assignments = super::update::assignments(table, &update.assignments)?
                    .into_iter()
                    .map(|(at, expr)| {
                        // An unqualified column is the target's.
                        let qualified = qualify(&expr, alias);
                        let kind = table.columns[at].kind;
                        let fast =
                            expr::compile(&qualified, &scope, &context.parameter_types(), kind).filter(|t| !t.is_default());
                        (at, qualified, fast)
                    })
                    .collect();
                let selection = update.selection.as_ref().map(|s| qualify(s, alias));
                Some(ConflictUpdate { assignments, selection, alias: alias.to_owned() })
            }
        };
        Ok(Some(Conflict { targets, update }))
    }
}

fn qualify(expr: &Expr, alias: &str) -> Expr {
    let mut expr = expr.clone();
    let _ = ast::visit_expressions_mut(&mut expr, |e| {
        if let Expr::Identifier(ident) = e
            && !(ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("default"))
        {
            *e = Expr::CompoundIdentifier(vec![ast::Ident::with_quote('"', alias), ident.clone()]);
        }
        std::ops::ControlFlow::<()>::Continue(())
    });
    expr
}

/// Takes new rows and sees them into the store.
struct Sink<'a> {
    context: &'a Context,
    writer: &'a Writer,
    conflict: Option<Conflict>,
    keep: bool,
    kept: Vec<Row>,
    changed: Vec<Changed>,
    touched: HashSet<Vec<u8>>,
    count: u64,
}

impl Sink<'_> {
    async fn take(&mut self, rows: Vec<Row>) -> Result<(), SqlError> {
        if self.conflict.is_none() {
            self.writer.insert(&rows).await?;
            self.count += rows.len() as u64;
            if self.keep {
                self.kept.extend(rows);
            }
            return Ok(());
        }
        self.writer.check(&rows)?;
        for row in rows {
            self.take_or_conflict(row).await?;
        }
        Ok(())
    }

    async fn take_or_conflict(&mut self, row: Row) -> Result<(), SqlError> {
        loop {
            let Some((nth, key)) = self.writer.try_insert(&row).await? else {
                if let Some(index) = self.writer.table().primary_key() {
                    self.touched.insert(rows::primary_key(index, &row)?);
                }
                self.count += 1;
                self.kept.push(row);
                return Ok(());
            };
            let conflict = self.conflict.as_ref().expect("called with a conflict clause");
            let index = self.writer.index_at(nth).ok_or_else(|| SqlError::internal("a clash without an index"))?;
            let table = self.writer.table();
            if !conflict.targets.is_empty() && !conflict.targets.contains(&index.name) {
                return Err(rows::unique_violation(table, self.context.schema_name(table.schema), index, &row));
            }
            let Some(update) = &conflict.update else { return Ok(()) };
            if self.touched.contains(&key) {
                return Err(SqlError::new(
                    code::CARDINALITY_VIOLATION,
                    "ON CONFLICT DO UPDATE command cannot affect row a second time",
                )
                .with_hint(
                    "Ensure that no rows proposed for insertion within the same command have duplicate constrained values.",
                ));
            }
            let partition = PartitionId(table.partition);
            let work = async {
                Ok(self
                    .context
                    .core
                    .store
                    .lock()
                    .await
                    .get_for_update(partition, &key, LockStrength::Update, WaitPolicy::Wait)
                    .await?)
            };
            // A row that is gone by now makes room: try again.
            let LockedRow::Row(seen) = self.context.core.unless_canceled(work).await? else { continue };
            let old = rows::decode(table, &seen)?;
            let Some(new) = update.apply(self.context, table, &old, &row).await? else { return Ok(()) };
            let (done, _) = self.writer.change(vec![Change { key: key.clone(), seen, new: Some(new.clone()) }]).await?;
            self.touched.insert(key);
            self.count += 1;
            self.changed.extend(done);
            self.kept.push(new);
            return Ok(());
        }
    }
}

impl ConflictUpdate {
    /// The row as DO UPDATE makes it; `None` when its WHERE says no.
    async fn apply(&self, context: &Context, table: &Arc<Table>, old: &Row, excluded: &Row) -> Result<Option<Row>, SqlError> {
        let mut new = old.clone();
        if self.selection.is_none() && self.assignments.iter().all(|(_, _, fast)| fast.is_some()) {
            let parameters = context.parameter_values();
            let rows = [old, excluded];
            let inputs = Inputs { rows: &rows, parameters: &parameters, transaction_micros: context.env.transaction_micros };
            for (at, _, fast) in &self.assignments {
                if let Some(fast) = fast {
                    new[*at] = rows::assign(&table.columns[*at], fast.evaluate(&inputs)?)?;
                }
            }
            return Ok(Some(new));
        }
        let mut query =
            crate::sql::parse::parse_query(&format!("SELECT 1 FROM {} , excluded", ast::Ident::with_quote('"', &self.alias)))?;
        if let SetExpr::Select(select) = &mut *query.body {
            select.projection = self
                .assignments
                .iter()
                .enumerate()
                .map(|(at, (_, expr, _))| ast::SelectItem::ExprWithAlias {
                    expr: expr.clone(),
                    alias: ast::Ident::with_quote('"', format!("v{at}")),
                })
                .collect();
            select.selection.clone_from(&self.selection);
        }
        let mut planner = context.planner();
        planner.overlay(&self.alias, Arc::new(super::mem_table(table, std::slice::from_ref(old))?));
        planner.overlay("excluded", Arc::new(super::mem_table(table, std::slice::from_ref(excluded))?));
        let (plan, batches) = planner.collect(&query, &context.parameters).await?;
        let columns = columns_of(&plan);
        if let Some(batch) = batches.iter().find(|b| b.num_rows() > 0) {
            let values = batch_rows(batch, &columns)?.swap_remove(0);
            for ((at, _, _), value) in self.assignments.iter().zip(values) {
                new[*at] = rows::assign(&table.columns[*at], value)?;
            }
            return Ok(Some(new));
        }
        Ok(None)
    }
}
