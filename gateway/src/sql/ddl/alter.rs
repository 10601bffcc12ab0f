//! ALTER TABLE and ALTER INDEX.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{self, AlterColumnOperation, AlterTableOperation, Expr, GeneratedAs, RenameTableNameKind};
use rustydb::store::LockMode;

use super::create::{self, Constraint, Draft};
use super::{Change, already_exists, cut, views};
use crate::sql::catalog::{Catalog, Column, Identity, Relation, Table};
use crate::sql::error::{SqlError, code};
use crate::sql::expr::{self, Inputs};
use crate::sql::parse::{fold, split_name};
use crate::sql::rows;
use crate::sql::session::SqlSession;
use crate::sql::sqltypes::sql_type;
use crate::sql::types::Row;

fn find_column(table: &Table, name: &str) -> Result<usize, SqlError> {
    table.column(name).map(|c| c.number as usize - 1).ok_or_else(|| {
        SqlError::new(code::UNDEFINED_COLUMN, format!("column \"{name}\" of relation \"{}\" does not exist", table.name))
    })
}

pub(super) async fn table(session: &mut SqlSession, alter: &ast::AlterTable) -> Result<&'static str, SqlError> {
    let (schema, plain) = split_name(&alter.name)?;
    let path = session.settings.search_path(&session.user);
    let catalog = session.catalog().await?;
    match catalog.resolve(schema.as_deref(), &plain, &path) {
        None if alter.if_exists => {
            session.notices.push(SqlError::notice(format!("relation \"{plain}\" does not exist, skipping")));
            return Ok("ALTER TABLE");
        }
        // ALTER TABLE also renames views, sequences and indexes.
        Some(relation @ (Relation::View(_) | Relation::Sequence(_))) => {
            let relation = relation.clone();
            return other_relation(session, relation, &alter.operations).await;
        }
        _ => {}
    }
    for operation in &alter.operations {
        let (catalog, old) = session.own_table(&alter.name).await?;
        let mut new = (*old).clone();
        new.version += 1;
        let mut changes = Vec::new();
        one(session, &catalog, &old, &mut new, operation, &mut changes).await?;
        let new = Arc::new(new);
        changes.push(Change::Put(Relation::Table(Arc::clone(&new))));
        let catalog = session.apply(changes).await?;
        session.check_expressions(&catalog, &new).await?;
    }
    Ok("ALTER TABLE")
}

async fn other_relation(
    session: &mut SqlSession,
    relation: Relation,
    operations: &[AlterTableOperation],
) -> Result<&'static str, SqlError> {
    for operation in operations {
        match operation {
            AlterTableOperation::RenameTable { table_name: RenameTableNameKind::To(to) | RenameTableNameKind::As(to) } => {
                let catalog = session.own_catalog().await?;
                let to = cut(&split_name(to)?.1);
                if catalog.name_taken(relation.schema(), &to) {
                    return Err(already_exists(&to));
                }
                let mut changes = views::table_renamed(&catalog, relation.oid(), &to)?;
                let renamed = match &relation {
                    Relation::View(view) => Relation::View(Arc::new(crate::sql::catalog::View { name: to, ..(**view).clone() })),
                    Relation::Sequence(sequence) => {
                        Relation::Sequence(Arc::new(crate::sql::catalog::Sequence { name: to, ..(**sequence).clone() }))
                    }
                    Relation::Table(_) => return Err(SqlError::internal("a table among other relations")),
                };
                changes.push(Change::Put(renamed));
                session.apply(changes).await?;
            }
            AlterTableOperation::OwnerTo { .. } => {}
            other => return Err(SqlError::unsupported(format_args!("ALTER ... {other} of a view or sequence"))),
        }
    }
    Ok("ALTER TABLE")
}

async fn one(
    session: &mut SqlSession,
    catalog: &Arc<Catalog>,
    old: &Arc<Table>,
    new: &mut Table,
    operation: &AlterTableOperation,
    changes: &mut Vec<Change>,
) -> Result<(), SqlError> {
    match operation {
        AlterTableOperation::AddColumn { if_not_exists, column_def, .. } => {
            if new.column(&fold(&column_def.name)).is_some() {
                let name = fold(&column_def.name);
                let message = format!("column \"{name}\" of relation \"{}\" already exists", new.name);
                if *if_not_exists {
                    session.notices.push(SqlError::notice(format!("{message}, skipping")));
                    return Ok(());
                }
                return Err(SqlError::new(code::DUPLICATE_COLUMN, message));
            }
            add_column(session, catalog, old, new, column_def, changes).await
        }
        AlterTableOperation::DropColumn { column_names, if_exists, drop_behavior, .. } => {
            for name in column_names {
                let name = fold(name);
                if new.column(&name).is_none() && *if_exists {
                    session.notices.push(SqlError::notice(format!(
                        "column \"{name}\" of relation \"{}\" does not exist, skipping",
                        new.name
                    )));
                    continue;
                }
                let at = find_column(new, &name)?;
                drop_column(session, catalog, old, new, at, *drop_behavior == Some(ast::DropBehavior::Cascade), changes).await?;
            }
            Ok(())
        }
        AlterTableOperation::RenameColumn { old_column_name, new_column_name } => {
            let (from, to) = (fold(old_column_name), cut(&fold(new_column_name)));
            let at = find_column(new, &from)?;
            if new.column(&to).is_some() {
                return Err(SqlError::new(
                    code::DUPLICATE_COLUMN,
                    format!("column \"{to}\" of relation \"{}\" already exists", new.name),
                ));
            }
            new.columns[at].name.clone_from(&to);
            changes.extend(views::column_renamed(catalog, new, &from, &to)?);
            for check in &mut new.checks {
                let mut expr = crate::sql::parse::parse_expression(&check.expression)?;
                let _ = ast::visit_expressions_mut(&mut expr, |e| {
                    if let Expr::Identifier(ident) = e
                        && fold(ident) == from
                    {
                        *ident = ast::Ident::with_quote('"', &to);
                    }
                    std::ops::ControlFlow::<()>::Continue(())
                });
                check.expression = expr.to_string();
            }
            Ok(())
        }
        AlterTableOperation::RenameTable { table_name: RenameTableNameKind::To(to) | RenameTableNameKind::As(to) } => {
            let to = cut(&split_name(to)?.1);
            if catalog.name_taken(new.schema, &to) {
                return Err(already_exists(&to));
            }
            changes.extend(views::table_renamed(catalog, new.oid, &to)?);
            new.name = to;
            Ok(())
        }
        AlterTableOperation::RenameConstraint { old_name, new_name } => {
            let (from, to) = (fold(old_name), cut(&fold(new_name)));
            let names = new
                .indexes
                .iter_mut()
                .filter(|i| i.constraint)
                .map(|i| &mut i.name)
                .chain(new.checks.iter_mut().map(|c| &mut c.name))
                .chain(new.foreign_keys.iter_mut().map(|k| &mut k.name));
            match names.into_iter().find(|n| **n == from) {
                Some(name) => *name = to,
                None => return Err(no_constraint(&from, &new.name)),
            }
            Ok(())
        }
        AlterTableOperation::AddConstraint { constraint, .. } => {
            let constraint = create::table_constraint(new, constraint)?;
            add_constraint(session, catalog, old, new, constraint).await
        }
        AlterTableOperation::DropConstraint { if_exists, name, drop_behavior } => {
            let name = fold(name);
            let cascade = *drop_behavior == Some(ast::DropBehavior::Cascade);
            drop_constraint(session, catalog, old, new, &name, *if_exists, cascade, changes).await
        }
        AlterTableOperation::AlterColumn { column_name, op } => {
            let at = find_column(new, &fold(column_name))?;
            alter_column(session, catalog, old, new, at, op, changes).await
        }
        AlterTableOperation::SetOptionsParens { options } => {
            new.options = options.iter().map(ToString::to_string).collect();
            Ok(())
        }
        AlterTableOperation::ValidateConstraint { .. }
        | AlterTableOperation::OwnerTo { .. }
        | AlterTableOperation::ReplicaIdentity { .. } => Ok(()),
        other => Err(SqlError::unsupported(format_args!("ALTER TABLE ... {other}"))),
    }
}

fn no_constraint(name: &str, table: &str) -> SqlError {
    SqlError::new(code::UNDEFINED_OBJECT, format!("constraint \"{name}\" of relation \"{table}\" does not exist"))
}

async fn add_column(
    session: &mut SqlSession,
    catalog: &Arc<Catalog>,
    old: &Arc<Table>,
    new: &mut Table,
    definition: &ast::ColumnDef,
    changes: &mut Vec<Change>,
) -> Result<(), SqlError> {
    let number = new.columns.len() as i16 + 1;
    let mut options = Vec::new();
    let (mut column, sequence) = create::column(number, definition, &mut options)?;
    // A default that is the same for all rows is remembered once; older rows take it from there.
    let mut per_row = sequence.is_some();
    if let Some(sql) = &column.default {
        let expr = crate::sql::parse::parse_expression(sql)?;
        match expr::compile(&expr, &[], &[], column.kind) {
            Some(fast) => {
                let context = session.own_context(catalog);
                let value = rows::assign(&column, fast.evaluate(&Inputs::constant(&[], &context.env))?)?;
                column.missing = value.map(|v| v.to_text(column.kind, -1));
            }
            None => per_row = true,
        }
    }
    let not_null = column.not_null;
    let missing = column.missing.is_some();
    new.columns.push(column);
    let mut draft = Draft { table: new.clone(), sequences: sequence.map(|s| (number, s)).into_iter().collect() };
    session.own_sequences(catalog, &mut draft, changes).await?;
    *new = draft.table;
    if per_row {
        // Each row gets a value of its own, so they are counted first and given their values in order.
        let mut with_sequences = (**catalog).clone();
        for change in changes.iter() {
            if let Change::Put(relation) = change {
                with_sequences.put(relation.clone());
            }
        }
        let context = session.own_context(&Arc::new(with_sequences));
        let defaults = crate::sql::dml::insert::Defaults::new(&context, new)?;
        let mut count = 0usize;
        session
            .check_rows(old, &mut |rows| {
                count += rows.len();
                Ok(())
            })
            .await?;
        let column = new.columns[number as usize - 1].clone();
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push(defaults.value(&context, &column).await?);
        }
        values.reverse();
        let values = std::sync::Mutex::new(values);
        let convert = move |mut row: Row| {
            let value = values.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop().flatten();
            row.push(value);
            Ok(row)
        };
        session.rebuild(catalog, old, new, &convert).await?;
    } else if not_null && !missing {
        let (name, table) = (new.columns[number as usize - 1].name.clone(), new.name.clone());
        session
            .check_rows(old, &mut |rows| {
                if rows.is_empty() {
                    return Ok(());
                }
                Err(SqlError::new(
                    code::NOT_NULL_VIOLATION,
                    format!("column \"{name}\" of relation \"{table}\" contains null values"),
                ))
            })
            .await?;
    }
    for (name, option) in options {
        if let Some(constraint) = create::column_constraint(number, name, option) {
            // Its rows are found where they are by now.
            let current = Arc::new(Table { indexes: new.indexes.clone(), ..new.clone() });
            add_constraint(session, catalog, &current, new, constraint).await?;
        }
    }
    Ok(())
}

async fn drop_column(
    session: &mut SqlSession,
    catalog: &Arc<Catalog>,
    old: &Arc<Table>,
    new: &mut Table,
    at: usize,
    cascade: bool,
    changes: &mut Vec<Change>,
) -> Result<(), SqlError> {
    let number = new.columns[at].number;
    let name = new.columns[at].name.clone();
    let referring: Vec<(Arc<Table>, String)> = catalog
        .references_to(new.oid)
        .filter(|(_, key)| key.referenced_columns.contains(&number))
        .map(|(t, k)| (Arc::clone(t), k.name.clone()))
        .collect();
    if !referring.is_empty() && !cascade {
        let details: Vec<String> = referring
            .iter()
            .map(|(t, k)| format!("constraint {k} on table {} depends on column {name} of table {}", t.name, new.name))
            .collect();
        return Err(SqlError::new(
            code::DEPENDENT_OBJECTS_STILL_EXIST,
            format!("cannot drop column {name} of table {} because other objects depend on it", new.name),
        )
        .with_detail(details.join("\n"))
        .with_hint("Use DROP ... CASCADE to drop the dependent objects too."));
    }
    for (child, key) in referring {
        if child.oid != new.oid {
            let mut child = (*child).clone();
            child.foreign_keys.retain(|k| k.name != key);
            child.version += 1;
            changes.push(Change::Put(Relation::Table(Arc::new(child))));
        }
    }
    let lost_primary = new.primary_key().is_some_and(|i| i.columns.iter().any(|c| c.number == number));
    let lost: Vec<u32> =
        new.secondary_indexes().filter(|i| i.columns.iter().any(|c| c.number == number)).map(|i| i.partition).collect();
    new.indexes.retain(|i| !i.columns.iter().any(|c| c.number == number));
    new.foreign_keys
        .retain(|k| !(k.columns.contains(&number) || k.references == new.oid && k.referenced_columns.contains(&number)));
    let mut keep = Vec::new();
    for check in std::mem::take(&mut new.checks) {
        let expr = crate::sql::parse::parse_expression(&check.expression)?;
        let mut uses = false;
        let _ = ast::visit_expressions(&expr, |e| {
            uses |= matches!(e, Expr::Identifier(ident) if fold(ident) == name);
            std::ops::ControlFlow::<()>::Continue(())
        });
        if !uses {
            keep.push(check);
        }
    }
    new.checks = keep;
    for relation in catalog.relations() {
        if let Relation::Sequence(sequence) = relation
            && sequence.owned_by == Some((new.oid, number))
        {
            changes.push(Change::Remove(sequence.oid));
        }
    }
    let column = &mut new.columns[at];
    column.dropped = true;
    column.not_null = false;
    column.default = None;
    column.identity = None;
    column.missing = None;
    column.name = format!("........pg.dropped.{number}........");
    if lost_primary {
        session.rebuild(catalog, old, new, &Ok).await?;
    } else {
        lost.into_iter().for_each(|p| session.give_up_partition(p));
    }
    Ok(())
}

async fn add_constraint(
    session: &mut SqlSession,
    catalog: &Arc<Catalog>,
    old: &Arc<Table>,
    new: &mut Table,
    constraint: Constraint,
) -> Result<(), SqlError> {
    let (keys, checks, foreign) = (new.indexes.len(), new.checks.len(), new.foreign_keys.len());
    session.add_constraint(catalog, new, constraint).await?;
    if new.indexes.len() > keys {
        let index = new.indexes[keys].clone();
        if index.primary {
            // Rows lie in the order of the primary key.
            session.rebuild(catalog, old, new, &Ok).await?;
        } else {
            session.fill_index(catalog, old, &index).await?;
        }
    }
    if new.checks.len() > checks {
        let mut only = new.clone();
        only.checks.drain(..checks);
        only.columns.iter_mut().for_each(|c| c.not_null = false);
        let context = session.own_context(catalog);
        let writer = crate::sql::dml::write::Writer::new(&context, &Arc::new(only))?;
        let (name, table) = (new.checks[checks].name.clone(), new.name.clone());
        session
            .check_rows(old, &mut |rows| {
                writer.check(rows).map_err(|fault| match fault.code() {
                    code::CHECK_VIOLATION => SqlError::new(
                        code::CHECK_VIOLATION,
                        format!("check constraint \"{name}\" of relation \"{table}\" is violated by some row"),
                    ),
                    _ => fault,
                })
            })
            .await?;
    }
    if new.foreign_keys.len() > foreign {
        let mut only = new.clone();
        only.foreign_keys.drain(..foreign);
        let only = Arc::new(only);
        let context = session.own_context(catalog);
        let mut all: Vec<Row> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        let columns = new.foreign_keys[foreign].columns.clone();
        session
            .check_rows(old, &mut |rows| {
                for row in rows {
                    let mut key = Vec::new();
                    columns.iter().for_each(|n| crate::sql::key_codec::put(&mut key, row[*n as usize - 1].as_ref(), false));
                    // One row for each value referred to is enough.
                    if seen.insert(key) {
                        all.push(row.clone());
                    }
                }
                Ok(())
            })
            .await?;
        crate::sql::dml::references::check_new(&context, &only, all.iter()).await?;
    }
    Ok(())
}

#[allow(clippy::too_many_arguments, reason = "one call, all of it is the clause")]
async fn drop_constraint(
    session: &mut SqlSession,
    catalog: &Arc<Catalog>,
    old: &Arc<Table>,
    new: &mut Table,
    name: &str,
    if_exists: bool,
    cascade: bool,
    changes: &mut Vec<Change>,
) -> Result<(), SqlError> {
    if let Some(at) = new.checks.iter().position(|c| c.name == name) {
        new.checks.remove(at);
        return Ok(());
    }
    if let Some(at) = new.foreign_keys.iter().position(|k| k.name == name) {
        new.foreign_keys.remove(at);
        return Ok(());
    }
    let Some(at) = new.indexes.iter().position(|i| i.constraint && i.name == name) else {
        if if_exists {
            session
                .notices
                .push(SqlError::notice(format!("constraint \"{name}\" of relation \"{}\" does not exist, skipping", new.name)));
            return Ok(());
        }
        return Err(no_constraint(name, &new.name));
    };
    let oid = new.indexes[at].oid;
    let users: Vec<(Arc<Table>, String)> = catalog
        .references_to(new.oid)
        .filter(|(_, key)| new.unique_index_on(&key.referenced_columns).is_some_and(|i| i.oid == oid))
        .map(|(t, k)| (Arc::clone(t), k.name.clone()))
        .collect();
    if !users.is_empty() && !cascade {
        let details: Vec<String> =
            users.iter().map(|(t, k)| format!("constraint {k} on table {} depends on index {name}", t.name)).collect();
        return Err(SqlError::new(
            code::DEPENDENT_OBJECTS_STILL_EXIST,
            format!("cannot drop constraint {name} on table {} because other objects depend on it", new.name),
        )
        .with_detail(details.join("\n"))
        .with_hint("Use DROP ... CASCADE to drop the dependent objects too."));
    }
    for (child, key) in users {
        if child.oid == new.oid {
            new.foreign_keys.retain(|k| k.name != key);
            continue;
        }
        session.lock_relation(child.oid, LockMode::Exclusive).await?;
        let mut child = (*child).clone();
        child.foreign_keys.retain(|k| k.name != key);
        child.version += 1;
        changes.push(Change::Put(Relation::Table(Arc::new(child))));
    }
    let index = new.indexes.remove(at);
    if index.primary {
        session.rebuild(catalog, old, new, &Ok).await
    } else {
        session.give_up_partition(index.partition);
        Ok(())
    }
}

async fn alter_column(
    session: &mut SqlSession,
    catalog: &Arc<Catalog>,
    old: &Arc<Table>,
    new: &mut Table,
    at: usize,
    operation: &AlterColumnOperation,
    changes: &mut Vec<Change>,
) -> Result<(), SqlError> {
    match operation {
        AlterColumnOperation::SetNotNull => {
            new.columns[at].not_null = true;
            let (schema, checked) = (catalog.schema_name(new.schema).to_owned(), new.clone());
            session
                .check_rows(old, &mut |rows| {
                    rows.iter().try_for_each(|row| super::rebuild::check_not_null(&checked, &schema, row))
                })
                .await
        }
        AlterColumnOperation::DropNotNull => {
            let number = new.columns[at].number;
            if new.primary_key().is_some_and(|i| i.columns.iter().any(|c| c.number == number)) {
                return Err(SqlError::new(
                    code::INVALID_TABLE_DEFINITION,
                    format!("column \"{}\" is in a primary key", new.columns[at].name),
                ));
            }
            new.columns[at].not_null = false;
            Ok(())
        }
        AlterColumnOperation::SetDefault { value } => {
            new.columns[at].default = Some(value.to_string());
            Ok(())
        }
        AlterColumnOperation::DropDefault => {
            new.columns[at].default = None;
            Ok(())
        }
        AlterColumnOperation::SetDataType { data_type, using, .. } => {
            let target = sql_type(data_type)?;
            let from: Column = new.columns[at].clone();
            new.columns[at].kind = target.kind;
            new.columns[at].typmod = target.typmod;
            new.columns[at].missing = None;
            let column = new.columns[at].clone();
            let scope_table = (**old).clone();
            let fast = match using {
                None => None,
                Some(expr) => Some(
                    expr::compile(expr, &[(scope_table.name.as_str(), &scope_table)], &[], target.kind)
                        .ok_or_else(|| SqlError::unsupported("this USING expression"))?,
                ),
            };
            let micros = session.statement_clock();
            let convert = move |mut row: Row| {
                let value = match &fast {
                    Some(fast) => {
                        let rows = [&row];
                        fast.evaluate(&Inputs { rows: &rows, parameters: &[], transaction_micros: micros })?
                    }
                    None => row[at].take(),
                };
                row[at] = rows::assign(&column, value).map_err(|fault| match fault.code() {
                    code::DATATYPE_MISMATCH => SqlError::new(
                        code::DATATYPE_MISMATCH,
                        format!("column \"{}\" cannot be cast automatically to type {}", column.name, column.kind.sql_name()),
                    )
                    .with_hint(format!(
                        "You might need to specify \"USING {}::{}\".",
                        column.name,
                        column.kind.sql_name()
                    )),
                    _ => fault,
                })?;
                Ok(row)
            };
            if from.kind == target.kind && using.is_none() && widens(&from, target.typmod) {
                return Ok(());
            }
            session.rebuild(catalog, old, new, &convert).await
        }
        AlterColumnOperation::AddGenerated { generated_as, sequence_options } => {
            if !new.columns[at].not_null {
                return Err(SqlError::new(
                    code::OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!(
                        "column \"{}\" of relation \"{}\" must be declared NOT NULL before identity can be added",
                        new.columns[at].name, new.name
                    ),
                ));
            }
            let always = matches!(generated_as, None | Some(GeneratedAs::Always));
            new.columns[at].identity = Some(if always { Identity::Always } else { Identity::ByDefault });
            let number = new.columns[at].number;
            let mut draft = Draft { table: new.clone(), sequences: vec![(number, sequence_options.clone().unwrap_or_default())] };
            session.own_sequences(catalog, &mut draft, changes).await?;
            *new = draft.table;
            Ok(())
        }
    }
}

/// Whether every value of the column already fits the new modifier.
fn widens(from: &Column, typmod: i32) -> bool {
    from.typmod == typmod
        || (typmod < 0)
        || (matches!(from.kind, crate::sql::types::PgType::Varchar) && from.typmod >= 0 && typmod >= from.typmod)
}
