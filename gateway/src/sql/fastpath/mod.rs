//! The fast path: statements about one row by its primary key, and INSERT of values, straight onto the store.
//!
//! A plan is compiled once per text (literals taken out) and catalog generation, and shared by the node's sessions; a
//! statement then costs a look-up, a key, and the store's trips. What does not fit is `None` and goes the long way, with
//! the same result.

mod cache;
mod run;

use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{self, BinaryOperator, Expr, SelectItem, SetExpr, TableFactor};

pub use cache::FastCache;
pub use run::run;

use super::api::ColumnDesc;
use super::catalog::{Catalog, Column, Identity, Relation, Sequence, Table};
use super::expr::{self, Fast, Typed};
use super::parse::{Statement, fold, split_name};
use super::rewrite::output_name;
use super::types::PgType;

/// See the module.
pub struct FastPlan {
    pub(super) table: Arc<Table>,
    pub(super) schema: String,
    pub(super) generation: u64,
    /// What the primary key's columns are equal to, in its order.
    pub(super) key: Vec<Typed>,
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    Select { items: Vec<Typed>, columns: Arc<[ColumnDesc]>, plain: Option<Vec<usize>> },
    Update { assignments: Vec<(usize, Typed)> },
    Delete,
    Insert { rows: Vec<Vec<Source>>, hidden_key: bool },
}

/// Where a column of a new row comes from.
pub(super) enum Source {
    Null,
    Value(Typed),
    Sequence(Arc<Sequence>),
}

impl FastPlan {
    /// Compiles a statement, if it is one of ours. All parameters' types are known ([`PgType::Unknown`]: a string literal).
    #[must_use]
    pub fn compile(statement: &Statement, parameters: &[PgType], catalog: &Catalog, search_path: &[String]) -> Option<FastPlan> {
        match statement {
            Statement::Query(query) => select(query, parameters, catalog, search_path),
            Statement::Update(update) => self::update(update, parameters, catalog, search_path),
            Statement::Delete(delete) => self::delete(delete, parameters, catalog, search_path),
            Statement::Insert(insert) => self::insert(insert, parameters, catalog, search_path),
            _ => None,
        }
    }
}

fn table<'c>(catalog: &'c Catalog, search_path: &[String], name: &ast::ObjectName) -> Option<&'c Arc<Table>> {
    let (schema, name) = split_name(name).ok()?;
    match catalog.resolve(schema.as_deref(), &name, search_path)? {
        Relation::Table(table) => Some(table),
        _ => None,
    }
}

fn plain_table<'c>(catalog: &'c Catalog, search_path: &[String], factor: &TableFactor) -> Option<(&'c Arc<Table>, String)> {
    match factor {
        TableFactor::Table { name, alias, args: None, sample: None, with_ordinality: false, .. } => {
            let table = table(catalog, search_path, name)?;
            match alias {
                Some(alias) if !alias.columns.is_empty() => None,
                Some(alias) => Some((table, fold(&alias.name))),
                None => Some((table, table.name.clone())),
            }
        }
        _ => None,
    }
}

fn plan(catalog: &Catalog, table: &Arc<Table>, key: Vec<Typed>, kind: Kind) -> FastPlan {
    FastPlan {
        table: Arc::clone(table),
        schema: catalog.schema_name(table.schema).to_owned(),
        generation: catalog.generation,
        key,
        kind,
    }
}

/// `pk1 = e1 AND pk2 = e2`, over all columns of the primary key and nothing else.
fn key_of(table: &Table, alias: &str, selection: Option<&Expr>, parameters: &[PgType]) -> Option<Vec<Typed>> {
    let primary = table.primary_key()?;
    let mut found: Vec<(i16, Typed)> = Vec::new();
    fn walk(expr: &Expr, table: &Table, alias: &str, parameters: &[PgType], found: &mut Vec<(i16, Typed)>) -> Option<()> {
        match expr {
            Expr::Nested(inner) => walk(inner, table, alias, parameters, found),
            Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
                walk(left, table, alias, parameters, found)?;
                walk(right, table, alias, parameters, found)
            }
            Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => {
                let scope = [(alias, table)];
                let column = |expr: &Expr| match expr::compile(expr, &scope, &[], PgType::Unknown)?.fast {
                    Fast::Column { at, .. } => Some(&table.columns[at]),
                    _ => None,
                };
                let (column, value) = match (column(left), column(right)) {
                    (Some(column), None) => (column, right),
                    (None, Some(column)) => (column, left),
                    _ => return None,
                };
                let value = expr::compile(value, &[], parameters, column.kind)?;
                if !comparable(column, &value) || found.iter().any(|(n, _)| *n == column.number) {
                    return None;
                }
                found.push((column.number, value));
                Some(())
            }
            _ => None,
        }
    }
    walk(selection?, table, alias, parameters, &mut found)?;
    if found.len() != primary.columns.len() {
        return None;
    }
    primary.columns.iter().map(|c| Some(found.iter().find(|(n, _)| *n == c.number)?.1.clone())).collect()
}

/// Whether equality with the value is equality with the value cast to the column's type.
fn comparable(column: &Column, value: &Typed) -> bool {
    let text = |kind| matches!(kind, PgType::Text | PgType::Varchar);
    (value.kind == column.kind || value.kind == PgType::Unknown) && column.kind != PgType::Bpchar
        || value.kind.is_integer() && (column.kind.is_integer() || column.kind == PgType::Numeric)
        || text(value.kind) && text(column.kind)
}

fn select(query: &ast::Query, parameters: &[PgType], catalog: &Catalog, search_path: &[String]) -> Option<FastPlan> {
    if query.with.is_some()
        || query.order_by.is_some()
        || query.limit_clause.is_some()
        || query.fetch.is_some()
        || !query.locks.is_empty()
    {
        return None;
    }
    let SetExpr::Select(select) = &*query.body else { return None };
    let grouped = match &select.group_by {
        ast::GroupByExpr::Expressions(list, modifiers) => !list.is_empty() || !modifiers.is_empty(),
        ast::GroupByExpr::All(_) => true,
    };
    if grouped || select.distinct.is_some() || select.having.is_some() || select.into.is_some() || !select.named_window.is_empty()
    {
        return None;
    }
    let [from] = select.from.as_slice() else { return None };
    if !from.joins.is_empty() {
        return None;
    }
    let (table, alias) = plain_table(catalog, search_path, &from.relation)?;
    let key = key_of(table, &alias, select.selection.as_ref(), parameters)?;
    let scope = [(alias.as_str(), &**table)];
    let (mut items, mut columns) = (Vec::new(), Vec::new());
    let mut add_column = |column: &Column, name: String| {
        items.push(Typed { fast: Fast::Column { from: 0, at: column.number as usize - 1 }, kind: column.kind });
        columns.push(ColumnDesc { name, kind: column.kind, typmod: column.typmod, table: table.oid, number: column.number });
    };
    for item in &select.projection {
        match item {
            SelectItem::Wildcard(_) => table.live_columns().for_each(|c| add_column(c, c.name.clone())),
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => {
                let name = match item {
                    SelectItem::ExprWithAlias { alias, .. } => fold(alias),
                    _ => output_name(expr),
                };
                let Fast::Column { at, .. } = expr::compile(expr, &scope, &[], PgType::Unknown)?.fast else { return None };
                add_column(&table.columns[at], name);
            }
            _ => return None,
        }
    }
    let positions = items.iter().map(|item| match item.fast {
        Fast::Column { at, .. } => Some(at),
        _ => None,
    });
    let plain = positions.collect();
    Some(plan(catalog, table, key, Kind::Select { items, columns: columns.into(), plain }))
}

fn update(update: &ast::Update, parameters: &[PgType], catalog: &Catalog, search_path: &[String]) -> Option<FastPlan> {
    if update.from.is_some() || update.returning.is_some() || !update.table.joins.is_empty() || update.limit.is_some() {
        return None;
    }
    let (table, alias) = plain_table(catalog, search_path, &update.table.relation)?;
    if !table.checks.is_empty() {
        return None;
    }
    let key = key_of(table, &alias, update.selection.as_ref(), parameters)?;
    let scope = [(alias.as_str(), &**table)];
    let list = super::dml::update::assignments(table, &update.assignments).ok()?;
    let mut assignments = Vec::with_capacity(list.len());
    for (at, expr) in list {
        let column = &table.columns[at];
        let indexed = table.indexes.iter().any(|i| i.columns.iter().any(|c| c.number == column.number));
        let refers = table.foreign_keys.iter().any(|k| k.columns.contains(&column.number));
        let fast = expr::compile(&expr, &scope, parameters, column.kind)?;
        if indexed || refers || fast.is_default() {
            return None;
        }
        assignments.push((at, fast));
    }
    Some(plan(catalog, table, key, Kind::Update { assignments }))
}

fn delete(delete: &ast::Delete, parameters: &[PgType], catalog: &Catalog, search_path: &[String]) -> Option<FastPlan> {
    let (ast::FromTable::WithFromKeyword(list) | ast::FromTable::WithoutKeyword(list)) = &delete.from;
    let [from] = list.as_slice() else { return None };
    if delete.using.is_some() || delete.returning.is_some() || !from.joins.is_empty() || delete.limit.is_some() {
        return None;
    }
    let (table, alias) = plain_table(catalog, search_path, &from.relation)?;
    // A row's index entries go with it: that takes the long way.
    if catalog.references_to(table.oid).next().is_some() || table.secondary_indexes().next().is_some() {
        return None;
    }
    let key = key_of(table, &alias, delete.selection.as_ref(), parameters)?;
    Some(plan(catalog, table, key, Kind::Delete))
}

/// Most rows of an INSERT on the fast path.
const INSERT_ROWS_MAX: usize = 256;

fn insert(insert: &ast::Insert, parameters: &[PgType], catalog: &Catalog, search_path: &[String]) -> Option<FastPlan> {
    if insert.on.is_some() || insert.returning.is_some() || insert.overwrite {
        return None;
    }
    let ast::TableObject::TableName(name) = &insert.table else { return None };
    let table = table(catalog, search_path, name)?;
    if !table.checks.is_empty() || !table.foreign_keys.is_empty() {
        return None;
    }
    let query = insert.source.as_ref()?;
    let SetExpr::Values(values) = &*query.body else { return None };
    if query.with.is_some() || query.order_by.is_some() || query.limit_clause.is_some() || values.rows.len() > INSERT_ROWS_MAX {
        return None;
    }
    let names = super::dml::insert::column_names(insert).ok()?;
    let targets = super::dml::insert::target_columns(table, &names).ok()?;
    let mut rows = Vec::with_capacity(values.rows.len());
    for cells in &values.rows {
        let cells = &cells.content;
        if cells.len() != values.rows[0].content.len()
            || cells.len() > targets.len()
            || (cells.len() < targets.len() && !names.is_empty())
        {
            return None;
        }
        let mut row: Vec<Option<Source>> = (0..table.columns.len()).map(|_| None).collect();
        for (cell, column) in cells.iter().zip(&targets) {
            let fast = expr::compile(cell, &[], parameters, column.kind)?;
            if fast.is_default() {
                continue;
            }
            if column.identity == Some(Identity::Always) {
                return None;
            }
            row[column.number as usize - 1] = Some(Source::Value(fast));
        }
        let mut complete = Vec::with_capacity(row.len());
        for (source, column) in row.into_iter().zip(&table.columns) {
            complete.push(match source {
                Some(source) => source,
                None => default_source(column, catalog, search_path)?,
            });
        }
        rows.push(complete);
    }
    let hidden_key = table.primary_key().is_none();
    Some(plan(catalog, table, Vec::new(), Kind::Insert { rows, hidden_key }))
}

fn default_source(column: &Column, catalog: &Catalog, search_path: &[String]) -> Option<Source> {
    let Some(sql) = column.default.as_deref().filter(|_| !column.dropped) else { return Some(Source::Null) };
    let expr = super::parse::parse_expression(sql).ok()?;
    if let Some(fast) = expr::compile(&expr, &[], &[], column.kind) {
        return Some(Source::Value(fast));
    }
    let Expr::Function(function) = &expr else { return None };
    if !function.name.to_string().eq_ignore_ascii_case("nextval") {
        return None;
    }
    let text = super::rewrite::arguments(function).first().and_then(|e| super::rewrite::string_literal(e))?.to_owned();
    let (schema, name) = text.split_once('.').map_or((None, text.as_str()), |(s, n)| (Some(s), n));
    let unquote = |part: &str| part.trim_matches('"').to_owned();
    match catalog.resolve(schema.map(unquote).as_deref(), &unquote(name), search_path)? {
        Relation::Sequence(sequence) => Some(Source::Sequence(Arc::clone(sequence))),
        _ => None,
    }
}
