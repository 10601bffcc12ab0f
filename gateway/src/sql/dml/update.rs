//! UPDATE and DELETE: a query finds the rows, their keys and their new values; the rows are then changed by key.
//!
//! A row that somebody else has changed since the statement's snapshot is looked at again in its newest version, as READ
//! COMMITTED demands.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{self, AssignmentTarget, Expr, SelectItem, SetExpr, TableFactor, TableWithJoins};

use super::Returning;
use super::insert::Defaults;
use super::references;
use super::write::{Change, Changed, Writer};
use crate::sql::api::Execution;
use crate::sql::catalog::{Identity, Table};
use crate::sql::context::Context;
use crate::sql::error::{SqlError, code};
use crate::sql::parse::fold;
use crate::sql::plan::{batch_rows, columns_of, target_table};
use crate::sql::rows;
use crate::sql::scan::{KEY_COLUMN, ROW_COLUMN};
use crate::sql::select::key_filter;
use crate::sql::types::{Datum, Row};

/// SET's targets (column number - 1) with their expressions.
///
/// # Errors
/// `42703`, `42601`.
pub fn assignments(table: &Table, list: &[ast::Assignment]) -> Result<Vec<(usize, Expr)>, SqlError> {
    let mut out: Vec<(usize, Expr)> = Vec::new();
    let mut push = |name: &ast::ObjectName, expr: Expr| {
        let name = name.0.last().and_then(|p| p.as_ident()).map(fold).unwrap_or_default();
        let column = table.column(&name).ok_or_else(|| {
            SqlError::new(code::UNDEFINED_COLUMN, format!("column \"{name}\" of relation \"{}\" does not exist", table.name))
        })?;
        let at = column.number as usize - 1;
        if out.iter().any(|(other, _)| *other == at) {
            return Err(SqlError::syntax(format!("multiple assignments to same column \"{name}\"")));
        }
        let default = matches!(&expr, Expr::Identifier(i) if i.quote_style.is_none() && i.value.eq_ignore_ascii_case("default"));
        if column.identity == Some(Identity::Always) && !default {
            return Err(SqlError::new("428C9", format!("column \"{name}\" can only be updated to DEFAULT")));
        }
        out.push((at, expr));
        Ok(())
    };
    for assignment in list {
        match &assignment.target {
            AssignmentTarget::ColumnName(name) => push(name, assignment.value.clone())?,
            AssignmentTarget::Tuple(names) => match &assignment.value {
                Expr::Tuple(values) if values.len() == names.len() => {
                    for (name, value) in names.iter().zip(values) {
                        push(name, value.clone())?;
                    }
                }
                Expr::Nested(value) if names.len() == 1 => push(&names[0], (**value).clone())?,
                _ => return Err(SqlError::unsupported("SET (...) = with anything but a list of as many values")),
            },
        }
    }
    Ok(out)
}

/// An UPDATE or DELETE, taken apart.
pub struct Target {
    /// The table.
    pub table: Arc<Table>,
    /// The name that it goes by.
    pub alias: String,
    /// The query that finds the rows: key, row, then new values in the order of `columns`.
    pub query: Box<ast::Query>,
    /// Columns to set (number - 1); those with DEFAULT have `true` and no value in the query.
    pub columns: Vec<(usize, bool)>,
    /// DELETE.
    pub delete: bool,
}

fn item(expr: Expr, name: String) -> SelectItem {
    SelectItem::ExprWithAlias { expr, alias: ast::Ident::with_quote('"', name) }
}

fn build(
    context: &Context,
    relation: &TableFactor,
    from: &[TableWithJoins],
    selection: Option<&Expr>,
    list: Option<&[ast::Assignment]>,
) -> Result<Target, SqlError> {
    let TableFactor::Table { name, alias, .. } = relation else {
        return Err(SqlError::unsupported("UPDATE or DELETE of anything but a table"));
    };
    let table = target_table(&context.catalog, &context.env, name)?;
    let alias = alias.as_ref().map_or_else(|| table.name.clone(), |a| fold(&a.name));
    let quoted = |name: &str| ast::Ident::with_quote('"', name);
    let column = |name: &str| Expr::CompoundIdentifier(vec![quoted(&alias), quoted(name)]);
    let mut projection = vec![item(column(KEY_COLUMN), "__k".to_owned()), item(column(ROW_COLUMN), "__r".to_owned())];
    let mut columns = Vec::new();
    for (at, expr) in assignments(&table, list.unwrap_or(&[]))? {
        let default = matches!(&expr, Expr::Identifier(i) if i.quote_style.is_none() && i.value.eq_ignore_ascii_case("default"));
        columns.push((at, default));
        if !default {
            projection.push(item(expr, format!("__v{at}")));
        }
    }
    let mut query = crate::sql::parse::parse_query("SELECT 1 FROM t")?;
    if let SetExpr::Select(select) = &mut *query.body {
        select.projection = projection;
        select.from = std::iter::once(TableWithJoins { relation: relation.clone(), joins: Vec::new() })
            .chain(from.iter().cloned())
            .collect();
        select.selection = selection.cloned();
    }
    Ok(Target { table, alias, query, columns, delete: list.is_none() })
}

/// Takes an UPDATE apart.
///
/// # Errors
/// `42P01`, `42703` and the like.
pub fn update_target(context: &Context, update: &ast::Update) -> Result<Target, SqlError> {
    let from = match &update.from {
        Some(ast::UpdateTableFromKind::BeforeSet(list) | ast::UpdateTableFromKind::AfterSet(list)) => list.as_slice(),
        None => &[],
    };
    build(context, &update.table.relation, from, update.selection.as_ref(), Some(&update.assignments))
}

/// Takes a DELETE apart.
///
/// # Errors
/// `42P01` and the like.
pub fn delete_target(context: &Context, delete: &ast::Delete) -> Result<Target, SqlError> {
    let (ast::FromTable::WithFromKeyword(list) | ast::FromTable::WithoutKeyword(list)) = &delete.from;
    let [table] = list.as_slice() else { return Err(SqlError::syntax("DELETE names one table")) };
    build(context, &table.relation, delete.using.as_deref().unwrap_or(&[]), delete.selection.as_ref(), None)
}

impl Target {
    /// What the query finds: each row once.
    async fn find(&self, context: &Context, query: &ast::Query, defaults: Option<&Defaults>) -> Result<Vec<Change>, SqlError> {
        let mut planner = context.planner();
        planner.show_hidden(self.table.oid);
        let (plan, batches) = planner.collect(query, &context.parameters).await?;
        let columns = columns_of(&plan);
        let mut seen_keys = HashSet::new();
        let mut changes = Vec::new();
        for batch in &batches {
            for mut values in batch_rows(batch, &columns)? {
                let new_values = values.split_off(2);
                let (Some(Datum::Bytea(seen)), Some(Datum::Bytea(key))) = (values.pop().flatten(), values.pop().flatten()) else {
                    return Err(SqlError::internal("a row was found without its key"));
                };
                if !seen_keys.insert(key.clone()) {
                    continue;
                }
                let new = if self.delete {
                    None
                } else {
                    let mut row = rows::decode(&self.table, &seen)?;
                    let mut new_values = new_values.into_iter();
                    for (at, default) in &self.columns {
                        let column = &self.table.columns[*at];
                        row[*at] = match (default, defaults) {
                            (true, Some(defaults)) => defaults.value(context, column).await?,
                            _ => rows::assign(column, new_values.next().flatten())?,
                        };
                    }
                    Some(row)
                };
                changes.push(Change { key, seen, new });
            }
        }
        Ok(changes)
    }

    /// Runs it. The table is locked already.
    ///
    /// # Errors
    /// Everything that can go wrong with it.
    pub async fn run(&self, context: &Context, returning: Option<&[SelectItem]>) -> Result<Execution, SqlError> {
        let writer = Writer::new(context, &self.table)?;
        let needs_defaults = self.columns.iter().any(|(_, default)| *default);
        let defaults = if needs_defaults { Some(Defaults::new(context, &self.table)?) } else { None };
        let returning = returning.map(|items| Returning::compile(items, &self.table, &self.alias, &context.parameter_types()));
        let mut all: Vec<Changed> = Vec::new();
        let changes = self.find(context, &self.query, defaults.as_ref()).await?;
        let (done, mut stale) = writer.change(changes).await?;
        all.extend(done);
        while !stale.is_empty() {
            // They are locked now; a new snapshot shows their newest versions.
            context.core.store.lock().await.new_statement();
            let mut again = Vec::new();
            for key in stale {
                let mut query = self.query.clone();
                if let SetExpr::Select(select) = &mut *query.body {
                    let key = key_filter(&self.alias, Some(&Datum::Bytea(key)));
                    select.selection = Some(match select.selection.take() {
                        None => key,
                        Some(old) => Expr::BinaryOp {
                            left: Box::new(Expr::Nested(Box::new(old))),
                            op: ast::BinaryOperator::And,
                            right: Box::new(key),
                        },
                    });
                }
                again.extend(self.find(context, &query, defaults.as_ref()).await?);
            }
            let (done, left) = writer.change(again).await?;
            all.extend(done);
            stale = left;
        }
        if !self.delete {
            let changed_key = |c: &&Changed| {
                self.table.foreign_keys.iter().any(|key| {
                    key.columns.iter().any(|n| c.new.as_ref().is_some_and(|new| new[*n as usize - 1] != c.old[*n as usize - 1]))
                })
            };
            let rows: Vec<&Row> = all.iter().filter(changed_key).filter_map(|c| c.new.as_ref()).collect();
            references::check_new(context, &self.table, rows.into_iter()).await?;
        }
        references::carry_on(context, &self.table, &all).await?;
        let tag = format!("{} {}", if self.delete { "DELETE" } else { "UPDATE" }, all.len());
        let rows: Vec<Row> =
            if returning.is_some() { all.into_iter().map(|c| c.new.unwrap_or(c.old)).collect() } else { Vec::new() };
        super::outcome(context, tag, returning.as_ref(), &self.table, &self.alias, &rows).await
    }
}
