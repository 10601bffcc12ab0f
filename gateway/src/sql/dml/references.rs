//! Foreign keys: new rows find their parents, and what happens to a parent reaches its children.
//!
//! A parent is locked when a child comes to refer to it, so neither misses the other. Runs at a statement's end.

use std::collections::HashMap;
use std::sync::Arc;

use rustydb::ids::PartitionId;
use rustydb::store::{LockStrength, LockedRow, ScanLimit, ScanRange, WaitPolicy};

use super::insert::Defaults;
use super::write::{Change, Changed, Writer};
use crate::sql::catalog::{Action, ForeignKey, Table};
use crate::sql::context::Context;
use crate::sql::error::{SqlError, code};
use crate::sql::key_codec;
use crate::sql::rows;
use crate::sql::types::{Datum, Row};

/// Deepest chain of cascades.
const CASCADE_DEPTH_MAX: usize = 64;

fn values(row: &Row, columns: &[i16]) -> Option<Vec<Datum>> {
    columns.iter().map(|n| row[*n as usize - 1].clone()).collect()
}

/// Sees that each new row's references exist, and locks what they point at.
///
/// # Errors
/// `23503`.
pub async fn check_new(context: &Context, table: &Arc<Table>, new: impl Iterator<Item = &Row> + Clone) -> Result<(), SqlError> {
    for key in &table.foreign_keys {
        let mut wanted: HashMap<Vec<u8>, (&Row, Vec<Datum>)> = HashMap::new();
        for row in new.clone() {
            // A NULL among them refers to nothing.
            let Some(found) = values(row, &key.columns) else { continue };
            let mut encoded = Vec::new();
            found.iter().for_each(|v| key_codec::put(&mut encoded, Some(v), false));
            wanted.entry(encoded).or_insert((row, found));
        }
        let Some(parent) = context.catalog.table(key.references) else { continue };
        // Always in the same order, so that two statements do not wait for each other in a circle.
        let mut wanted: Vec<_> = wanted.into_iter().collect();
        wanted.sort_by(|a, b| a.0.cmp(&b.0));
        for (_, (row, found)) in wanted {
            if !lock_parent(context, parent, key, &found).await? {
                return Err(SqlError::new(
                    code::FOREIGN_KEY_VIOLATION,
                    format!("insert or update on table \"{}\" violates foreign key constraint \"{}\"", table.name, key.name),
                )
                .with_detail(format!(
                    "Key {} is not present in table \"{}\".",
                    rows::key_text(table, key.columns.iter().copied(), row),
                    parent.name
                ))
                .on_table(context.schema_name(table.schema), &table.name)
                .on_constraint(&key.name));
            }
        }
    }
    Ok(())
}

async fn lock_parent(context: &Context, parent: &Arc<Table>, key: &ForeignKey, found: &[Datum]) -> Result<bool, SqlError> {
    let index = parent
        .unique_index_on(&key.referenced_columns)
        .ok_or_else(|| SqlError::internal(format!("foreign key \"{}\" points at columns that are no longer unique", key.name)))?;
    let mut encoded = Vec::new();
    for column in &index.columns {
        let at = key.referenced_columns.iter().position(|n| *n == column.number);
        let value = at.and_then(|at| found.get(at)).cloned();
        let value = rows::assign(parent.column_by_number(column.number), value)?;
        key_codec::put(&mut encoded, value.as_ref(), column.descending);
    }
    let work = async {
        let mut session = context.core.store.lock().await;
        let row_key = if index.primary {
            Some(encoded)
        } else {
            // The newest entry counts, not the snapshot's.
            match session.get_for_update(PartitionId(index.partition), &encoded, LockStrength::Share, WaitPolicy::Wait).await? {
                LockedRow::Row(row_key) => Some(row_key),
                _ => None,
            }
        };
        let Some(row_key) = row_key else { return Ok(false) };
        let partition = PartitionId(parent.partition);
        let locked = session.get_for_update(partition, &row_key, LockStrength::Share, WaitPolicy::Wait).await?;
        Ok(matches!(locked, LockedRow::Row(_)))
    };
    context.core.unless_canceled(work).await
}

/// What changes of a table mean for those that refer to it.
///
/// # Errors
/// `23503`, and those of the changes carried on.
pub async fn carry_on(context: &Context, table: &Arc<Table>, changed: &[Changed]) -> Result<(), SqlError> {
    Box::pin(carry(context, table, changed, 0)).await
}

async fn carry(context: &Context, table: &Arc<Table>, changed: &[Changed], depth: usize) -> Result<(), SqlError> {
    if changed.is_empty() {
        return Ok(());
    }
    let references: Vec<(Arc<Table>, ForeignKey)> =
        context.catalog.references_to(table.oid).map(|(t, k)| (Arc::clone(t), k.clone())).collect();
    if references.is_empty() {
        return Ok(());
    }
    if depth > CASCADE_DEPTH_MAX {
        return Err(SqlError::new("54001", format!("foreign keys cascade deeper than {CASCADE_DEPTH_MAX}")));
    }
    // Children committed since the statement's snapshot count too.
    context.core.store.lock().await.new_statement();
    for (child, key) in references {
        for change in changed {
            let Some(old) = values(&change.old, &key.referenced_columns) else { continue };
            let new = change.new.as_ref().map(|row| values(row, &key.referenced_columns));
            if new.as_ref().is_some_and(|new| new.as_ref() == Some(&old)) {
                continue;
            }
            let children = find_children(context, &child, &key.columns, &old).await?;
            if children.is_empty() {
                continue;
            }
            let action = if change.new.is_some() { key.on_update } else { key.on_delete };
            // A row with the same values may have come back (or never gone: an update that swaps keys).
            if matches!(action, Action::NoAction | Action::Restrict) {
                if action == Action::NoAction && lock_parent(context, table, &key, &old).await? {
                    continue;
                }
                return Err(SqlError::new(
                    code::FOREIGN_KEY_VIOLATION,
                    format!(
                        "update or delete on table \"{}\" violates foreign key constraint \"{}\" on table \"{}\"",
                        table.name, key.name, child.name
                    ),
                )
                .with_detail(format!(
                    "Key {} is still referenced from table \"{}\".",
                    rows::key_text(table, key.referenced_columns.iter().copied(), &change.old),
                    child.name
                ))
                .on_table(context.schema_name(child.schema), &child.name)
                .on_constraint(&key.name));
            }
            let replacement = new.flatten();
            apply_action(context, &child, &key, action, change.new.is_some(), replacement, children, depth).await?;
        }
    }
    Ok(())
}

#[allow(clippy::too_many_arguments, reason = "one call, all of it is the action")]
async fn apply_action(
    context: &Context,
    child: &Arc<Table>,
    key: &ForeignKey,
    action: Action,
    update: bool,
    replacement: Option<Vec<Datum>>,
    children: Vec<(Vec<u8>, Vec<u8>)>,
    depth: usize,
) -> Result<(), SqlError> {
    let defaults = if action == Action::SetDefault { Some(Defaults::new(context, child)?) } else { None };
    let mut changes = Vec::with_capacity(children.len());
    for (row_key, seen) in children {
        let mut row = rows::decode(child, &seen)?;
        for (at, number) in key.columns.iter().enumerate() {
            let column = child.column_by_number(*number);
            row[*number as usize - 1] = match (&defaults, action) {
                (Some(defaults), _) => defaults.value(context, column).await?,
                (None, Action::Cascade) => rows::assign(column, replacement.as_ref().map(|r| r[at].clone()))?,
                _ => None,
            };
        }
        let delete = action == Action::Cascade && !update;
        changes.push(Change { key: row_key, seen, new: (!delete).then_some(row) });
    }
    let writer = Writer::new(context, child)?;
    let (done, stale) = writer.change(changes).await?;
    if !stale.is_empty() {
        return Err(SqlError::new(
            code::SERIALIZATION_FAILURE,
            format!("rows of \"{}\" that refer to the changed row were changed by somebody else; try again", child.name),
        ));
    }
    if action == Action::SetDefault {
        check_new(context, child, done.iter().filter_map(|c| c.new.as_ref())).await?;
    }
    Box::pin(carry(context, child, &done, depth + 1)).await
}

/// Rows whose columns have these values, by an index that begins with them or else by looking at all.
async fn find_children(
    context: &Context,
    table: &Arc<Table>,
    columns: &[i16],
    wanted: &[Datum],
) -> Result<Vec<(Vec<u8>, Vec<u8>)>, SqlError> {
    let assigned: Vec<Option<Datum>> = columns
        .iter()
        .zip(wanted)
        .map(|(n, v)| rows::assign(table.column_by_number(*n), Some(v.clone())))
        .collect::<Result<_, _>>()?;
    let serves = |index: &&crate::sql::catalog::Index| {
        index.columns.len() >= columns.len() && index.columns[..columns.len()].iter().all(|c| columns.contains(&c.number))
    };
    let index = table.indexes.iter().find(serves);
    let mut range = Some(match index {
        None => ScanRange::all(),
        Some(index) => {
            let mut prefix = Vec::new();
            for column in &index.columns[..columns.len()] {
                let at = columns.iter().position(|n| *n == column.number).unwrap_or(0);
                key_codec::put(&mut prefix, assigned[at].as_ref(), column.descending);
            }
            ScanRange::prefix(&prefix)
        }
    });
    let partition = PartitionId(table.partition);
    let from = index.filter(|i| !i.primary).map_or(partition, |i| PartitionId(i.partition));
    let mut out = Vec::new();
    while let Some(next) = range {
        let chunk = context.core.scan(from, next, ScanLimit::default()).await?;
        range = chunk.more;
        let found = if from == partition {
            chunk.rows
        } else {
            let keys: Vec<Vec<u8>> = chunk.rows.into_iter().map(|(_, key)| key).collect();
            let values = context.core.store.lock().await.get_many(partition, keys.clone()).await?;
            keys.into_iter().zip(values).filter_map(|(k, v)| v.map(|v| (k, v))).collect()
        };
        for (key, value) in found {
            let row = rows::decode(table, &value)?;
            if columns.iter().zip(&assigned).all(|(n, v)| row[*n as usize - 1] == *v) {
                out.push((key, value));
            }
        }
    }
    Ok(out)
}
