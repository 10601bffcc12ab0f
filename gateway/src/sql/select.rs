//! Queries: planned and streamed by DataFusion, with functions of effect evaluated beforehand and rows locked by us.
//!
//! A stream holds at most a few batches; it ends the transaction of a statement outside a block when it is drained.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use datafusion::sql::sqlparser::ast::{self, Expr, SelectItem, SetExpr, TableFactor, VisitMut, VisitorMut};
use futures::StreamExt as _;
use rustydb::ids::PartitionId;
use rustydb::store::{LockStrength, LockedRow, WaitPolicy};

use super::api::{ColumnDesc, Execution, RowBatches, RowStream, Tag};
use super::catalog::{Relation, Sequence, Table};
use super::context::Context;
use super::dferror::from_datafusion;
use super::error::{SqlError, code};
use super::parse::{fold, split_name};
use super::plan::{batch_rows, columns_of};
use super::rewrite::{arguments, literal, string_literal};
use super::scan::{KEY_COLUMN, ROW_COLUMN};
use super::types::{Datum, PgType, Row};

/// Runs a query.
///
/// # Errors
/// Everything that is wrong with it; what goes wrong later comes from the stream.
pub async fn run(context: &Context, query: &ast::Query, single: bool) -> Result<Execution, SqlError> {
    let mut query = query.clone();
    effects(context, &mut query).await?;
    if !query.locks.is_empty() {
        let rows = Box::pin(locked(context, query)).await?;
        return Ok(Execution::Rows(finishing(context, rows, single)));
    }
    let planner = context.planner();
    let plan = planner.plan(&query, &context.parameters, true)?;
    let columns: Arc<[ColumnDesc]> = columns_of(&plan).into();
    let stream = planner.execute(planner.physical(&plan).await?)?;
    let (core, shown) = (Arc::clone(&context.core), Arc::clone(&columns));
    let batches = stream.then(move |batch| {
        let (core, columns) = (Arc::clone(&core), Arc::clone(&shown));
        async move {
            core.check_canceled()?;
            batch_rows(&batch.map_err(from_datafusion)?, &columns)
        }
    });
    let rows = RowStream::new(columns, Tag::Counted("SELECT"), Box::pin(batches));
    Ok(Execution::Rows(finishing(context, rows, single)))
}

/// Lets cancel reach a stream, and its end or its error reach the transaction.
fn finishing(context: &Context, rows: RowStream, single: bool) -> RowStream {
    let core = Arc::clone(&context.core);
    let columns = Arc::clone(rows.columns());
    let batches: RowBatches = Box::pin(futures::stream::try_unfold(Some(rows), move |state| {
        let core = Arc::clone(&core);
        async move {
            let Some(mut rows) = state else { return Ok(None) };
            match core.unless_canceled(rows.next()).await {
                Ok(Some(batch)) => Ok(Some((batch, Some(rows)))),
                Ok(None) => {
                    drop(rows);
                    core.finish(true).await?;
                    Ok(None)
                }
                Err(fault) => {
                    drop(rows);
                    if single {
                        // The statement's own fault is the one to tell.
                        let _ = core.finish(false).await;
                    } else {
                        core.failed.store(true, Ordering::Release);
                    }
                    Err(fault)
                }
            }
        }
    }));
    RowStream::new(columns, Tag::Counted("SELECT"), batches)
}

/// Calls of functions with effects, in the order of evaluation.
struct Calls {
    found: Vec<(String, Vec<Expr>)>,
    values: Option<Vec<Expr>>,
    from: bool,
}

fn is_effect(name: &str) -> bool {
    matches!(
        name,
        "nextval"
            | "currval"
            | "setval"
            | "lastval"
            | "set_config"
            | "pg_advisory_lock"
            | "pg_advisory_xact_lock"
            | "pg_try_advisory_lock"
            | "pg_try_advisory_xact_lock"
            | "pg_advisory_unlock"
            | "pg_advisory_unlock_all"
    )
}

impl VisitorMut for Calls {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut ast::Select) -> ControlFlow<()> {
        self.from |= !select.from.is_empty();
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expr
            && let Some(name) = function.name.0.last().and_then(|p| p.as_ident()).map(fold)
            && is_effect(&name)
        {
            match &mut self.values {
                None => self.found.push((name, arguments(function).into_iter().cloned().collect())),
                Some(values) if !values.is_empty() => *expr = values.remove(0),
                Some(_) => {}
            }
        }
        ControlFlow::Continue(())
    }
}

/// Names the outputs before their calls become literals, evaluates the calls, puts their values in.
async fn effects(context: &Context, query: &mut ast::Query) -> Result<(), SqlError> {
    let mut calls = Calls { found: Vec::new(), values: None, from: false };
    let _ = VisitMut::visit(query, &mut calls);
    if calls.found.is_empty() {
        return Ok(());
    }
    if calls.from && calls.found.iter().any(|(name, _)| name == "setval") {
        return Err(SqlError::unsupported("setval in a query with FROM").with_hint("Call it in a SELECT of its own."));
    }
    if calls.from && calls.found.iter().any(|(name, _)| name == "nextval") {
        // Called for each row, by the function that the planner knows under this name.
        return Ok(());
    }
    if let SetExpr::Select(select) = &mut *query.body {
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) = item {
                let alias = ast::Ident::with_quote('"', super::rewrite::output_name(expr));
                *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
            }
        }
    }
    let mut values = Vec::with_capacity(calls.found.len());
    for (name, arguments) in &calls.found {
        values.push(effect(context, name, arguments).await?);
    }
    let _ = VisitMut::visit(query, &mut Calls { found: Vec::new(), values: Some(values), from: false });
    Ok(())
}

/// The sequence that an argument names.
///
/// # Errors
/// `42P01`, `42809`.
pub fn sequence(context: &Context, argument: Option<&Expr>) -> Result<Arc<Sequence>, SqlError> {
    let text = argument.and_then(string_literal).ok_or_else(|| SqlError::unsupported("a sequence named by an expression"))?;
    let parts: Vec<String> = text
        .split('.')
        .map(|p| match p.strip_prefix('"').and_then(|p| p.strip_suffix('"')) {
            Some(quoted) => quoted.to_owned(),
            None => p.to_lowercase(),
        })
        .collect();
    let (schema, name) = match parts.as_slice() {
        [name] => (None, name.as_str()),
        [schema, name] => (Some(schema.as_str()), name.as_str()),
        _ => return Err(SqlError::syntax(format!("improper qualified name: {text}"))),
    };
    match context.catalog.resolve(schema, name, &context.env.search_path) {
        Some(Relation::Sequence(sequence)) => Ok(Arc::clone(sequence)),
        Some(_) => Err(SqlError::new(code::WRONG_OBJECT_TYPE, format!("\"{name}\" is not a sequence"))),
        None => Err(super::catalog::undefined_table(schema, name)),
    }
}

async fn effect(context: &Context, name: &str, arguments: &[Expr]) -> Result<Expr, SqlError> {
    let argument = async |at: usize| -> Result<Option<Datum>, SqlError> {
        match arguments.get(at) {
            Some(expr) => match super::expr::compile(expr, &[], &context.parameter_types(), PgType::Unknown) {
                Some(fast) => {
                    let values = context.parameter_values();
                    fast.evaluate(&super::expr::Inputs::constant(&values, &context.env))
                }
                None => context.evaluate(expr).await,
            },
            None => Ok(None),
        }
    };
    let memory = || context.sequences.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let value = match name {
        "nextval" => context.nextval(&*sequence(context, arguments.first())?).await?,
        "currval" => {
            let sequence = sequence(context, arguments.first())?;
            let value = memory().values.get(&sequence.oid).copied();
            value.ok_or_else(|| {
                let message = format!("currval of sequence \"{}\" is not yet defined in this session", sequence.name);
                SqlError::new(code::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
            })?
        }
        "lastval" => memory()
            .last
            .ok_or_else(|| SqlError::new(code::OBJECT_NOT_IN_PREREQUISITE_STATE, "lastval is not yet defined in this session"))?,
        "setval" => {
            let sequence = sequence(context, arguments.first())?;
            let Some(Datum::Int8(value)) = argument(1).await?.map(|v| v.cast(PgType::Int8, -1)).transpose()? else {
                return Ok(literal(None, PgType::Int8));
            };
            let called = !matches!(argument(2).await?, Some(Datum::Bool(false)));
            set_sequence(context, &sequence, value, called).await?;
            if called {
                memory().values.insert(sequence.oid, value);
            }
            value
        }
        "set_config" => {
            return Err(SqlError::unsupported("set_config inside a larger query").with_hint("Use SET."));
        }
        // Advisory locks.
        _ => {
            let mut ids = [0u64; 2];
            for (at, id) in ids.iter_mut().enumerate() {
                if let Some(Datum::Int8(value)) = argument(at).await?.map(|v| v.cast(PgType::Int8, -1)).transpose()? {
                    *id = value as u64;
                }
            }
            return advisory(context, name, ids).await;
        }
    };
    Ok(literal(Some(&Datum::Int8(value)), PgType::Int8))
}

async fn advisory(context: &Context, name: &str, ids: [u64; 2]) -> Result<Expr, SqlError> {
    use rustydb::store::{LockMode, LockName, LockSpace, StoreError};
    if !name.contains("xact") {
        return Err(SqlError::unsupported("an advisory lock beyond a transaction").with_hint("Use pg_advisory_xact_lock."));
    }
    let lock = LockName { space: LockSpace::Advisory, id1: ids[0], id2: ids[1] };
    let wait = if name.contains("try") { WaitPolicy::NoWait } else { WaitPolicy::Wait };
    let work = async { Ok(context.core.store.lock().await.lock(lock, LockMode::Exclusive, wait).await) };
    match context.core.unless_canceled(work).await? {
        Ok(()) if name.contains("try") => Ok(literal(Some(&Datum::Bool(true)), PgType::Bool)),
        Ok(()) => Ok(literal(Some(&Datum::Text(String::new())), PgType::Text)),
        Err(StoreError::LockNotAvailable) => Ok(literal(Some(&Datum::Bool(false)), PgType::Bool)),
        Err(fault) => Err(fault.into()),
    }
}

/// setval: at once and for all, whatever becomes of the transaction.
///
/// # Errors
/// `22003` out of the sequence's bounds, and the store's.
pub async fn set_sequence(context: &Context, sequence: &Sequence, value: i64, called: bool) -> Result<(), SqlError> {
    let counter = sequence.counter_at(value)? + u64::from(called);
    context.db.store.set_counter(u64::from(sequence.oid), counter).await?;
    context.db.forget_numbers(u64::from(sequence.oid));
    // Other nodes drop the numbers that they had taken when they see the new count of restarts.
    let mut current = sequence.clone();
    if let Some(Relation::Sequence(latest)) = context.db.current_catalog().await?.relation(sequence.oid) {
        current = (**latest).clone();
    }
    current.restarts += 1;
    let in_own_transaction = context.db.current_catalog().await?.relation(sequence.oid).is_some();
    if in_own_transaction {
        let write = super::catalog::cache::put_relation(&Relation::Sequence(Arc::new(current)));
        context.db.store.session().write(vec![write]).await?;
    }
    Ok(())
}

/// A table of a FROM clause that is to be locked.
struct Target {
    alias: String,
    table: Arc<Table>,
}

fn targets(context: &Context, select: &ast::Select, of: Option<&ast::ObjectName>) -> Result<Vec<Target>, SqlError> {
    let mut found = Vec::new();
    for from in &select.from {
        for factor in std::iter::once(&from.relation).chain(from.joins.iter().map(|j| &j.relation)) {
            if let TableFactor::Table { name, alias, args: None, .. } = factor {
                let (schema, name) = split_name(name)?;
                if let Some(Relation::Table(table)) = context.catalog.resolve(schema.as_deref(), &name, &context.env.search_path)
                {
                    let alias = alias.as_ref().map_or(name, |a| fold(&a.name));
                    found.push(Target { alias, table: Arc::clone(table) });
                }
            }
        }
    }
    if let Some(of) = of {
        let wanted = split_name(of)?.1;
        found.retain(|t| t.alias == wanted);
        if found.is_empty() {
            return Err(SqlError::new(
                code::UNDEFINED_TABLE,
                format!("relation \"{wanted}\" in FOR UPDATE clause not found in FROM clause"),
            ));
        }
    }
    Ok(found)
}

fn hidden_item(alias: &str, column: &str, name: String) -> SelectItem {
    SelectItem::ExprWithAlias {
        expr: Expr::CompoundIdentifier(vec![ast::Ident::with_quote('"', alias), ast::Ident::with_quote('"', column)]),
        alias: ast::Ident::with_quote('"', name),
    }
}

/// SELECT ... FOR UPDATE or SHARE: the query with the rows' keys, each row locked and, if it has changed, looked at again.
async fn locked(context: &Context, mut query: ast::Query) -> Result<RowStream, SqlError> {
    let locks = std::mem::take(&mut query.locks);
    let lock = &locks[0];
    let SetExpr::Select(select) = &mut *query.body else {
        return Err(SqlError::unsupported("FOR UPDATE with UNION/INTERSECT/EXCEPT or VALUES"));
    };
    let grouped = match &select.group_by {
        ast::GroupByExpr::Expressions(list, _) => !list.is_empty(),
        ast::GroupByExpr::All(_) => true,
    };
    if grouped || select.distinct.is_some() || select.having.is_some() {
        return Err(SqlError::unsupported("FOR UPDATE with DISTINCT, GROUP BY or HAVING"));
    }
    let targets = targets(context, select, lock.of.as_ref())?;
    if targets.is_empty() {
        return Err(SqlError::unsupported("FOR UPDATE of anything but tables"));
    }
    // Wildcards would show the hidden columns: they are spelled out.
    let visible = visible_items(context, select)?;
    select.projection = visible;
    let shown = select.projection.len();
    for (at, target) in targets.iter().enumerate() {
        select.projection.push(hidden_item(&target.alias, KEY_COLUMN, format!("__k{at}")));
        select.projection.push(hidden_item(&target.alias, ROW_COLUMN, format!("__r{at}")));
    }
    let (limit, offset) = take_limit(context, &mut query).await?;
    let strength = match lock.lock_type {
        ast::LockType::Share => LockStrength::Share,
        ast::LockType::Update => LockStrength::Update,
    };
    let wait = match lock.nonblock {
        None => WaitPolicy::Wait,
        Some(ast::NonBlock::Nowait) => WaitPolicy::NoWait,
        Some(ast::NonBlock::SkipLocked) => WaitPolicy::SkipLocked,
    };
    let (columns, candidates) = keyed_rows(context, &targets, &query).await?;
    let mut out: Vec<Row> = Vec::new();
    let mut skip = offset;
    let mut recheck = Vec::new();
    'rows: for mut row in candidates {
        if out.len() + recheck.len() >= limit {
            break;
        }
        let hidden = row.split_off(shown);
        let mut changed = false;
        for (at, target) in targets.iter().enumerate() {
            let (Some(Datum::Bytea(key)), Some(Datum::Bytea(seen))) = (&hidden[at * 2], &hidden[at * 2 + 1]) else { continue };
            let partition = PartitionId(target.table.partition);
            let work = async { Ok(context.core.store.lock().await.get_for_update(partition, key, strength, wait).await?) };
            match context.core.unless_canceled(work).await.map_err(|fault| named_lock(fault, &target.table))? {
                LockedRow::Skipped | LockedRow::Gone => continue 'rows,
                LockedRow::Row(now) => changed |= now != *seen,
            }
        }
        if changed {
            recheck.push(hidden);
        } else if skip > 0 {
            skip -= 1;
        } else {
            out.push(row);
        }
    }
    // Rows that others have changed meanwhile: the same question once more, about their newest versions.
    for hidden in recheck {
        context.core.store.lock().await.new_statement();
        let mut again = query.clone();
        if let SetExpr::Select(select) = &mut *again.body {
            for (at, target) in targets.iter().enumerate() {
                let key = key_filter(&target.alias, hidden[at * 2].as_ref());
                select.selection = Some(match select.selection.take() {
                    Some(old) => Expr::BinaryOp {
                        left: Box::new(Expr::Nested(Box::new(old))),
                        op: ast::BinaryOperator::And,
                        right: Box::new(key),
                    },
                    None => key,
                });
            }
        }
        for mut row in keyed_rows(context, &targets, &again).await?.1 {
            row.truncate(shown);
            if skip > 0 {
                skip -= 1;
            } else {
                out.push(row);
            }
        }
    }
    let columns: Arc<[ColumnDesc]> = columns[..shown].into();
    Ok(RowStream::ready(columns, Tag::Counted("SELECT"), out))
}

/// `alias.__key = X'...'`
pub fn key_filter(alias: &str, key: Option<&Datum>) -> Expr {
    Expr::BinaryOp {
        left: Box::new(Expr::CompoundIdentifier(vec![
            ast::Ident::with_quote('"', alias),
            ast::Ident::with_quote('"', KEY_COLUMN),
        ])),
        op: ast::BinaryOperator::Eq,
        right: Box::new(literal(key, PgType::Bytea)),
    }
}

fn named_lock(fault: SqlError, table: &Table) -> SqlError {
    if fault.code() == code::LOCK_NOT_AVAILABLE {
        return SqlError::new(code::LOCK_NOT_AVAILABLE, format!("could not obtain lock on row in relation \"{}\"", table.name));
    }
    fault
}

async fn keyed_rows(context: &Context, targets: &[Target], query: &ast::Query) -> Result<(Vec<ColumnDesc>, Vec<Row>), SqlError> {
    let mut planner = context.planner();
    for target in targets {
        planner.show_hidden(target.table.oid);
    }
    let (plan, batches) = planner.collect(query, &context.parameters).await?;
    let columns = columns_of(&plan);
    let mut rows = Vec::new();
    for batch in &batches {
        rows.extend(batch_rows(batch, &columns)?);
    }
    Ok((columns, rows))
}

/// The select list with wildcards spelled out.
///
/// # Errors
/// `0A000` where FROM has anything but tables.
pub fn visible_items(context: &Context, select: &ast::Select) -> Result<Vec<SelectItem>, SqlError> {
    let all = targets(context, select, None)?;
    let expand = |target: &Target, out: &mut Vec<SelectItem>| {
        for column in target.table.live_columns() {
            out.push(SelectItem::UnnamedExpr(Expr::CompoundIdentifier(vec![
                ast::Ident::with_quote('"', &target.alias),
                ast::Ident::with_quote('"', &column.name),
            ])));
        }
    };
    let mut items = Vec::new();
    for item in &select.projection {
        match item {
            SelectItem::Wildcard(_) => {
                let factors: usize = select.from.iter().map(|f| 1 + f.joins.len()).sum();
                if factors != all.len() {
                    return Err(SqlError::unsupported("SELECT * FOR UPDATE over anything but tables"));
                }
                all.iter().for_each(|target| expand(target, &mut items));
            }
            SelectItem::QualifiedWildcard(ast::SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
                let alias = split_name(name)?.1;
                match all.iter().find(|t| t.alias == alias) {
                    Some(target) => expand(target, &mut items),
                    None => items.push(item.clone()),
                }
            }
            other => items.push(other.clone()),
        }
    }
    Ok(items)
}

/// Takes LIMIT and OFFSET off: they count locked rows, after those skipped.
async fn take_limit(context: &Context, query: &mut ast::Query) -> Result<(usize, usize), SqlError> {
    let (mut limit, mut offset) = (None, None);
    match query.limit_clause.take() {
        Some(ast::LimitClause::LimitOffset { limit: l, offset: o, .. }) => {
            limit = l;
            offset = o.map(|o| o.value);
        }
        Some(ast::LimitClause::OffsetCommaLimit { offset: o, limit: l }) => {
            limit = Some(l);
            offset = Some(o);
        }
        None => {}
    }
    if let Some(fetch) = query.fetch.take() {
        limit = fetch.quantity;
    }
    let mut numbers = [usize::MAX, 0];
    for (number, expr) in numbers.iter_mut().zip([limit, offset]) {
        if let Some(expr) = expr
            && let Some(value) = context.evaluate(&expr).await?
            && let Datum::Int8(value) = value.cast(PgType::Int8, -1)?
        {
            *number = usize::try_from(value).map_err(|_| SqlError::new("2201W", "LIMIT must not be negative"))?;
        }
    }
    Ok((numbers[0], numbers[1]))
}
