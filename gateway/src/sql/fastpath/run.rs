//! Running a [`FastPlan`].

use std::sync::Arc;

use rustydb::ids::PartitionId;
use rustydb::store::{LockMode, Modified, Modify, WriteOp, WriteResult};

use super::{FastPlan, Kind, Source};
use crate::sql::api::{Execution, RowStream, Tag};
use crate::sql::catalog::{Catalog, Table};
use crate::sql::context::Context;
use crate::sql::error::SqlError;
use crate::sql::expr::Inputs;
use crate::sql::key_codec;
use crate::sql::relation_locks::relation_lock;
use crate::sql::row_codec::{Cell, RowReader};
use crate::sql::rows;
use crate::sql::session::{SqlSession, State};
use crate::sql::types::{Datum, Row};

/// Runs a plan. `None`: it does not fit after all, nothing has happened.
///
/// # Errors
/// The statement's.
pub async fn run(
    session: &mut SqlSession,
    plan: &Arc<FastPlan>,
    parameters: &[Option<Datum>],
    catalog: &Arc<Catalog>,
) -> Result<Option<Execution>, SqlError> {
    if plan.generation != catalog.generation || session.transaction.catalog.is_some() {
        return Ok(None);
    }
    let micros = session.statement_clock();
    let word = match &plan.kind {
        Kind::Select { .. } => None,
        Kind::Update { .. } => Some("UPDATE"),
        Kind::Delete => Some("DELETE"),
        Kind::Insert { .. } => Some("INSERT"),
    };
    if let Some(word) = word {
        session.require_writable(word)?;
    }
    let Some(key) = key(plan, parameters, micros)? else { return Ok(None) };
    match &plan.kind {
        Kind::Select { items, columns, plain } => {
            let found = match read_alone(session, plan, &key).await? {
                Some(found) => found,
                None => {
                    if !ready(session, plan, LockMode::ConcurrentRead).await? {
                        return step_back(session).await;
                    }
                    let found = {
                        let mut store = session.core.store.lock().await;
                        let found = store.get(PartitionId(plan.table.partition), &key).await;
                        store.end_statement();
                        found?
                    };
                    finish(session).await?;
                    found
                }
            };
            let mut out = Vec::new();
            if let Some(bytes) = found {
                out.push(match plain {
                    Some(positions) => project(&plan.table, &bytes, positions)?,
                    None => {
                        let row = rows::decode(&plan.table, &bytes)?;
                        let rows = [&row];
                        let inputs = Inputs { rows: &rows, parameters, transaction_micros: micros };
                        items.iter().map(|item| item.evaluate(&inputs)).collect::<Result<_, _>>()?
                    }
                });
            }
            Ok(Some(Execution::Rows(RowStream::ready(Arc::clone(columns), Tag::Counted("SELECT"), out))))
        }
        Kind::Update { .. } | Kind::Delete => change(session, plan, parameters, key).await,
        Kind::Insert { rows, hidden_key } => insert(session, plan, parameters, catalog, rows, *hidden_key).await,
    }
}

/// The row's key. `None` when a value cannot be one of the column's (the long way says what that means).
fn key(plan: &FastPlan, parameters: &[Option<Datum>], micros: i64) -> Result<Option<Vec<u8>>, SqlError> {
    let mut key = Vec::with_capacity(16);
    let Some(primary) = plan.table.primary_key() else { return Ok(Some(key)) };
    let inputs = Inputs { rows: &[], parameters, transaction_micros: micros };
    for (value, column) in plan.key.iter().zip(&primary.columns) {
        let target = plan.table.column_by_number(column.number);
        let Some(value) = value.evaluate(&inputs)? else { return Ok(None) };
        let Ok(value) = value.cast(target.kind, -1) else { return Ok(None) };
        key_codec::put(&mut key, Some(&value), column.descending);
    }
    Ok((key.len() <= key_codec::KEY_BYTES_MAX).then_some(key))
}

/// Some columns of a stored row, without decoding the others.
fn project(table: &Table, bytes: &[u8], positions: &[usize]) -> Result<Row, SqlError> {
    let last = positions.iter().copied().max().unwrap_or(0);
    let mut reader = RowReader::new(bytes)?;
    let mut out: Row = vec![None; positions.len()];
    for (at, column) in table.columns.iter().enumerate().take(last + 1) {
        if !positions.contains(&at) {
            reader.skip(column.kind)?;
            continue;
        }
        let value = match reader.read(column.kind)? {
            Cell::Value(value) => Some(value),
            Cell::Null => None,
            Cell::Missing => Table::missing_value(column),
        };
        for (target, _) in positions.iter().enumerate().filter(|(_, p)| **p == at) {
            out[target].clone_from(&value);
        }
    }
    Ok(out)
}

/// Outside a transaction: the row in one trip, with the table locked where that costs none. `None`: it would, or the plan
/// holds no longer; nothing has happened.
async fn read_alone(session: &SqlSession, plan: &FastPlan, key: &[u8]) -> Result<Option<Option<Vec<u8>>>, SqlError> {
    if session.transaction.state != State::Idle {
        return Ok(None);
    }
    let mut store = session.core.store.lock().await;
    store.new_statement();
    // Who has altered the table has, by the time that it can be locked, withdrawn the version that the plan is of.
    let holds =
        store.try_lock_for_statement(relation_lock(plan.table.oid)) && session.db.store.catalog_generation() == plan.generation;
    let found = if holds { store.get(PartitionId(plan.table.partition), key).await.map(Some) } else { Ok(None) };
    store.end_statement();
    Ok(found?)
}

/// Begins if need be, locks the table, and sees that the plan still holds. `false`: it does not.
async fn ready(session: &mut SqlSession, plan: &FastPlan, mode: LockMode) -> Result<bool, SqlError> {
    session.ensure_transaction().await?;
    session.lock_relation(plan.table.oid, mode).await?;
    if session.db.store.catalog_generation() != plan.generation {
        return Ok(false);
    }
    session.touch();
    session.core.store.lock().await.new_statement();
    Ok(true)
}

/// Gives the statement's own transaction up, so that the long way begins afresh.
async fn step_back(session: &mut SqlSession) -> Result<Option<Execution>, SqlError> {
    if session.transaction.state == State::Single {
        session.rollback().await?;
    }
    Ok(None)
}

async fn finish(session: &mut SqlSession) -> Result<(), SqlError> {
    if session.transaction.state == State::Single { session.commit().await } else { Ok(()) }
}

async fn change(
    session: &mut SqlSession,
    plan: &Arc<FastPlan>,
    parameters: &[Option<Datum>],
    key: Vec<u8>,
) -> Result<Option<Execution>, SqlError> {
    if !ready(session, plan, LockMode::ConcurrentWrite).await? {
        return step_back(session).await;
    }
    let micros = session.statement_clock();
    let (shared, values) = (Arc::clone(plan), parameters.to_vec());
    let modifier = move |bytes: Option<&[u8]>| {
        let Some(bytes) = bytes else { return Modify::Keep };
        match &shared.kind {
            Kind::Update { assignments } => match updated(&shared, assignments, bytes, &values, micros) {
                Ok(new) => Modify::Put(new),
                Err(fault) => Modify::Fail(Box::new(fault)),
            },
            _ => Modify::Delete,
        }
    };
    let core = Arc::clone(&session.core);
    let work = async {
        let mut store = core.store.lock().await;
        Ok(store.modify(PartitionId(plan.table.partition), &key, modifier).await?)
    };
    let count = match core.to_its_end(work).await? {
        Modified::Kept => 0,
        Modified::Put { .. } | Modified::Deleted { .. } => 1,
        Modified::Failed(fault) => {
            return Err(fault.downcast::<SqlError>().map_or_else(|_| SqlError::internal("a change was refused"), |f| *f));
        }
    };
    finish(session).await?;
    let word = if matches!(plan.kind, Kind::Delete) { "DELETE" } else { "UPDATE" };
    Ok(Some(Execution::Command { tag: format!("{word} {count}") }))
}

fn updated(
    plan: &FastPlan,
    assignments: &[(usize, crate::sql::expr::Typed)],
    bytes: &[u8],
    parameters: &[Option<Datum>],
    micros: i64,
) -> Result<Vec<u8>, SqlError> {
    let table = &plan.table;
    let old = rows::decode(table, bytes)?;
    let mut new = old.clone();
    let rows = [&old];
    let inputs = Inputs { rows: &rows, parameters, transaction_micros: micros };
    for (at, expr) in assignments {
        new[*at] = rows::assign(&table.columns[*at], expr.evaluate(&inputs)?)?;
    }
    rows::check_not_null(table, &plan.schema, &new)?;
    Ok(rows::encode(&new))
}

async fn insert(
    session: &mut SqlSession,
    plan: &Arc<FastPlan>,
    parameters: &[Option<Datum>],
    catalog: &Arc<Catalog>,
    sources: &[Vec<Source>],
    hidden_key: bool,
) -> Result<Option<Execution>, SqlError> {
    if !ready(session, plan, LockMode::ConcurrentWrite).await? {
        return step_back(session).await;
    }
    let micros = session.statement_clock();
    let table = &plan.table;
    let inputs = Inputs { rows: &[], parameters, transaction_micros: micros };
    let indexes = 1 + table.secondary_indexes().count();
    let mut ops: Vec<WriteOp> = Vec::with_capacity(sources.len() * indexes);
    let mut new = Vec::with_capacity(sources.len());
    let mut context: Option<Context> = None;
    for row_sources in sources {
        let mut row: Row = Vec::with_capacity(row_sources.len());
        for (source, column) in row_sources.iter().zip(&table.columns) {
            let value = match source {
                Source::Null => None,
                Source::Value(expr) => expr.evaluate(&inputs)?,
                Source::Sequence(sequence) => {
                    let context = context.get_or_insert_with(|| session.context(Arc::clone(catalog), Vec::new()));
                    Some(Datum::Int8(context.nextval(sequence).await?))
                }
            };
            row.push(rows::assign(column, value)?);
        }
        rows::check_not_null(table, &plan.schema, &row)?;
        let key = match table.primary_key() {
            Some(primary) if !hidden_key => rows::primary_key(primary, &row)?,
            _ => session.db.new_row_number(table.oid).await?.to_be_bytes().to_vec(),
        };
        rows::insert_ops(table, &key, &row, &mut ops)?;
        new.push(row);
    }
    let core = Arc::clone(&session.core);
    let single = session.transaction.state == State::Single;
    let work = async {
        let mut store = core.store.lock().await;
        Ok(if single { store.write_and_commit(ops).await? } else { store.write(ops).await? })
    };
    let results = core.to_its_end(work).await?;
    if matches!(results.last(), Some(WriteResult::Duplicate { .. })) {
        let at = results.len() - 1;
        let index = if at % indexes == 0 { table.primary_key() } else { table.secondary_indexes().nth(at % indexes - 1) };
        return Err(match index {
            Some(index) => rows::unique_violation(table, &plan.schema, index, &new[at / indexes]),
            None => SqlError::internal(format!("a row number of \"{}\" was given twice", table.name)),
        });
    }
    if single {
        session.committed().await;
    }
    Ok(Some(Execution::Command { tag: format!("INSERT 0 {}", sources.len()) }))
}
