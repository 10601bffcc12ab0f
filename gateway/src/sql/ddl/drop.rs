//! DROP and TRUNCATE.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{self, ObjectType};
use rustydb::ids::PartitionId;
use rustydb::store::{LockMode, Placement};

use super::Change;
use crate::sql::catalog::{Catalog, INFORMATION_SCHEMA, Oid, PG_CATALOG, PUBLIC, Relation, Table, View, undefined_table};
use crate::sql::context::SEQUENCE_ORIGIN;
use crate::sql::error::{SqlError, code};
use crate::sql::parse::split_name;
use crate::sql::session::SqlSession;

/// Relations that a view's query names.
pub(super) fn view_reads(catalog: &Catalog, view: &View) -> HashSet<Oid> {
    let mut found = HashSet::new();
    let Ok(query) = crate::sql::parse::parse_query(&view.query) else { return found };
    let path = [catalog.schema_name(view.schema).to_owned(), "public".to_owned()];
    let _ = ast::visit_relations(&*query, |name| {
        if let Ok((schema, name)) = split_name(name)
            && let Some(relation) = catalog.resolve(schema.as_deref(), &name, &path)
        {
            found.insert(relation.oid());
        }
        std::ops::ControlFlow::<()>::Continue(())
    });
    found
}

pub(super) fn dependents(catalog: &Catalog, oid: Oid) -> Vec<Arc<View>> {
    catalog
        .relations()
        .filter_map(|r| match r {
            Relation::View(view) if view_reads(catalog, view).contains(&oid) => Some(Arc::clone(view)),
            _ => None,
        })
        .collect()
}

fn still_needed(kind: &str, name: &str, details: &[String]) -> SqlError {
    SqlError::new(code::DEPENDENT_OBJECTS_STILL_EXIST, format!("cannot drop {kind} {name} because other objects depend on it"))
        .with_detail(details.join("\n"))
        .with_hint("Use DROP ... CASCADE to drop the dependent objects too.")
}

/// What goes when these relations go.
struct Going {
    oids: Vec<Oid>,
    /// Tables that lose foreign keys.
    unlinked: Vec<Arc<Table>>,
    /// What goes though nobody named it, as notices say it.
    cascaded: Vec<String>,
}

/// A relation as messages name it: its kind, and its name with the schema where the search path does not have it.
fn shown(catalog: &Catalog, relation: &Relation, path: &[String]) -> String {
    let kind = match relation {
        Relation::Table(_) => "table",
        Relation::View(_) => "view",
        Relation::Sequence(_) => "sequence",
    };
    let schema = catalog.schema_name(relation.schema());
    if path.iter().any(|visible| visible == schema) {
        format!("{kind} {}", relation.name())
    } else {
        format!("{kind} {schema}.{}", relation.name())
    }
}

/// What is told of objects that went along.
fn cascade_notice(cascaded: &[String]) -> Option<SqlError> {
    match cascaded {
        [] => None,
        [one] => Some(SqlError::notice(format!("drop cascades to {one}"))),
        many => {
            let lines: Vec<String> = many.iter().map(|object| format!("drop cascades to {object}")).collect();
            let notice = SqlError::notice(format!("drop cascades to {} other objects", many.len()));
            Some(notice.with_detail(lines.join("\n")))
        }
    }
}

/// Follows what depends on a relation; refuses unless `cascade`.
fn follow(catalog: &Catalog, first: &[Relation], cascade: bool, path: &[String]) -> Result<Going, SqlError> {
    let oids = first.iter().map(Relation::oid).collect();
    let mut going = Going { oids, unlinked: Vec::new(), cascaded: Vec::new() };
    let mut at = 0;
    while at < going.oids.len() {
        let oid = going.oids[at];
        at += 1;
        let Some(relation) = catalog.relation(oid) else { continue };
        let (kind, name) = match relation {
            Relation::Table(t) => ("table", t.name.clone()),
            Relation::View(v) => ("view", v.name.clone()),
            Relation::Sequence(s) => ("sequence", s.name.clone()),
        };
        let mut details = Vec::new();
        for view in dependents(catalog, oid) {
            if !going.oids.contains(&view.oid) {
                details.push(format!("view {} depends on {kind} {name}", view.name));
                going.cascaded.push(shown(catalog, &Relation::View(Arc::clone(&view)), path));
                going.oids.push(view.oid);
            }
        }
        for (table, key) in catalog.references_to(oid) {
            if !going.oids.contains(&table.oid) {
                details.push(format!("constraint {} on table {} depends on table {name}", key.name, table.name));
                let on = shown(catalog, &Relation::Table(Arc::clone(table)), path);
                going.cascaded.push(format!("constraint {} on {on}", key.name));
                if !going.unlinked.iter().any(|t| t.oid == table.oid) {
                    going.unlinked.push(Arc::clone(table));
                }
            }
        }
        if let Relation::Sequence(sequence) = relation {
            let used = catalog.relations().find_map(|r| match r {
                Relation::Table(t) if !going.oids.contains(&t.oid) => t
                    .live_columns()
                    .find(|c| c.default.as_deref().is_some_and(|d| d.contains(&format!("'{}'", sequence.name))))
                    .map(|c| (t, c)),
                _ => None,
            });
            if let Some((table, column)) = used {
                details
                    .push(format!("default value for column {} of table {} depends on sequence {name}", column.name, table.name));
                if cascade {
                    return Err(SqlError::unsupported("dropping a sequence from under a column's default")
                        .with_hint("ALTER TABLE ... ALTER COLUMN ... DROP DEFAULT first."));
                }
            }
        }
        if !details.is_empty() && !cascade {
            return Err(still_needed(kind, &name, &details));
        }
        if let Relation::Table(_) = relation {
            for other in catalog.relations() {
                if let Relation::Sequence(sequence) = other
                    && sequence.owned_by.is_some_and(|(table, _)| table == oid)
                    && !going.oids.contains(&sequence.oid)
                {
                    going.oids.push(sequence.oid);
                }
            }
        }
    }
    going.unlinked.retain(|t| !going.oids.contains(&t.oid));
    Ok(going)
}

impl SqlSession {
    fn drop_relations(&mut self, catalog: &Catalog, going: &Going) -> Vec<Change> {
        let mut changes = Vec::new();
        for oid in &going.oids {
            if let Some(table) = catalog.table(*oid) {
                self.give_up_partition(table.partition);
                for index in table.secondary_indexes() {
                    self.give_up_partition(index.partition);
                }
            }
            changes.push(Change::Remove(*oid));
        }
        for table in &going.unlinked {
            let mut table = (**table).clone();
            table.foreign_keys.retain(|k| !going.oids.contains(&k.references));
            table.version += 1;
            changes.push(Change::Put(Relation::Table(Arc::new(table))));
        }
        changes
    }
}

pub(super) async fn objects(
    session: &mut SqlSession,
    kind: ObjectType,
    if_exists: bool,
    names: &[ast::ObjectName],
    cascade: bool,
) -> Result<&'static str, SqlError> {
    match kind {
        ObjectType::Schema => return schemas(session, if_exists, names, cascade).await,
        ObjectType::Index => return indexes(session, if_exists, names).await,
        ObjectType::Table | ObjectType::View | ObjectType::Sequence => {}
        other => return Err(SqlError::unsupported(format_args!("DROP {other}"))),
    }
    let (tag, word) = match kind {
        ObjectType::Table => ("DROP TABLE", "table"),
        ObjectType::View => ("DROP VIEW", "view"),
        _ => ("DROP SEQUENCE", "sequence"),
    };
    let path = session.settings.search_path(&session.user);
    let mut found: Vec<Relation> = Vec::new();
    let before = session.catalog().await?;
    for name in names {
        let (schema, plain) = split_name(name)?;
        match before.resolve(schema.as_deref(), &plain, &path) {
            None if if_exists => {
                session.notices.push(SqlError::notice(format!("{word} \"{plain}\" does not exist, skipping")));
            }
            None => return Err(SqlError::new(code::UNDEFINED_TABLE, format!("{word} \"{plain}\" does not exist"))),
            Some(relation) => {
                let fits = matches!(
                    (kind, relation),
                    (ObjectType::Table, Relation::Table(_))
                        | (ObjectType::View, Relation::View(_))
                        | (ObjectType::Sequence, Relation::Sequence(_))
                );
                if !fits {
                    return Err(SqlError::new(code::WRONG_OBJECT_TYPE, format!("\"{plain}\" is not a {word}")));
                }
                found.push(relation.clone());
            }
        }
    }
    if found.is_empty() {
        return Ok(tag);
    }
    let mut order: Vec<Oid> = found.iter().map(Relation::oid).collect();
    order.sort_unstable();
    for oid in order {
        session.lock_relation(oid, LockMode::Exclusive).await?;
    }
    let catalog = session.own_catalog().await?;
    if let Some(gone) = found.iter().find(|r| catalog.relation(r.oid()).is_none()) {
        return Err(undefined_table(None, gone.name()));
    }
    let going = follow(&catalog, &found, cascade, &path)?;
    session.notices.extend(cascade_notice(&going.cascaded));
    let changes = session.drop_relations(&catalog, &going);
    session.apply(changes).await?;
    Ok(tag)
}

async fn schemas(
    session: &mut SqlSession,
    if_exists: bool,
    names: &[ast::ObjectName],
    cascade: bool,
) -> Result<&'static str, SqlError> {
    for name in names {
        let name = split_name(name)?.1;
        let catalog = session.own_catalog().await?;
        let Some(schema) = catalog.schema(&name).cloned() else {
            if if_exists {
                session.notices.push(SqlError::notice(format!("schema \"{name}\" does not exist, skipping")));
                continue;
            }
            return Err(SqlError::new(code::INVALID_SCHEMA_NAME, format!("schema \"{name}\" does not exist")));
        };
        if [PG_CATALOG, PUBLIC, INFORMATION_SCHEMA].contains(&schema.oid) {
            return Err(SqlError::new(
                code::DEPENDENT_OBJECTS_STILL_EXIST,
                format!("cannot drop schema {name} because it is required by the database system"),
            ));
        }
        let mut inside: Vec<Relation> = catalog.relations().filter(|r| r.schema() == schema.oid).cloned().collect();
        inside.sort_unstable_by_key(Relation::oid);
        let path = session.settings.search_path(&session.user);
        // A sequence that goes with its column goes with its table.
        let owned = |relation: &&Relation| matches!(relation, Relation::Sequence(sequence) if sequence.owned_by.is_some());
        let named = inside.iter().filter(|relation| !owned(relation));
        let named: Vec<String> = named.map(|relation| shown(&catalog, relation, &path)).collect();
        if !inside.is_empty() && !cascade {
            let details: Vec<String> = named.iter().map(|object| format!("{object} depends on schema {name}")).collect();
            return Err(still_needed("schema", &name, &details));
        }
        for relation in &inside {
            session.lock_relation(relation.oid(), LockMode::Exclusive).await?;
        }
        let mut going = follow(&catalog, &inside, true, &path)?;
        going.cascaded.splice(0..0, named);
        session.notices.extend(cascade_notice(&going.cascaded));
        let mut changes = session.drop_relations(&catalog, &going);
        changes.push(Change::RemoveSchema(schema.oid));
        session.apply(changes).await?;
    }
    Ok("DROP SCHEMA")
}

async fn indexes(session: &mut SqlSession, if_exists: bool, names: &[ast::ObjectName]) -> Result<&'static str, SqlError> {
    let path = session.settings.search_path(&session.user);
    for name in names {
        let (schema, plain) = split_name(name)?;
        let catalog = session.catalog().await?;
        let schemas = schema.map_or_else(|| path.clone(), |s| vec![s]);
        let found = schemas.iter().filter_map(|s| catalog.schema(s)).find_map(|s| catalog.find_index(s.oid, &plain));
        let Some((table, index)) = found else {
            if if_exists {
                session.notices.push(SqlError::notice(format!("index \"{plain}\" does not exist, skipping")));
                continue;
            }
            return Err(SqlError::new(code::UNDEFINED_OBJECT, format!("index \"{plain}\" does not exist")));
        };
        if index.constraint {
            return Err(SqlError::new(
                code::DEPENDENT_OBJECTS_STILL_EXIST,
                format!("cannot drop index {plain} because constraint {plain} on table {} requires it", table.name),
            )
            .with_hint(format!("You can drop constraint {plain} on table {} instead.", table.name)));
        }
        let (table_oid, oid) = (table.oid, index.oid);
        session.lock_relation(table_oid, LockMode::Exclusive).await?;
        let catalog = session.own_catalog().await?;
        let Some(table) = catalog.table(table_oid) else { return Err(undefined_table(None, &plain)) };
        let mut table = (**table).clone();
        let used = catalog
            .references_to(table.oid)
            .find(|(_, key)| table.unique_index_on(&key.referenced_columns).is_some_and(|i| i.oid == oid));
        if let Some((child, key)) = used {
            let detail = format!("constraint {} on table {} depends on index {plain}", key.name, child.name);
            return Err(still_needed("index", &plain, &[detail]));
        }
        if let Some(at) = table.indexes.iter().position(|i| i.oid == oid) {
            let index = table.indexes.remove(at);
            session.give_up_partition(index.partition);
        }
        table.version += 1;
        session.apply(vec![Change::Put(Relation::Table(Arc::new(table)))]).await?;
    }
    Ok("DROP INDEX")
}

pub(super) async fn truncate(session: &mut SqlSession, truncate: &ast::Truncate) -> Result<&'static str, SqlError> {
    let path = session.settings.search_path(&session.user);
    let before = session.catalog().await?;
    let mut oids = Vec::new();
    for target in &truncate.table_names {
        let (schema, name) = split_name(&target.name)?;
        oids.push(before.resolve_table(schema.as_deref(), &name, &path)?.oid);
    }
    let cascade = matches!(truncate.cascade, Some(ast::CascadeOption::Cascade));
    let mut at = 0;
    while at < oids.len() {
        let oid = oids[at];
        at += 1;
        let children: Vec<(Oid, String, String)> =
            before.references_to(oid).map(|(t, k)| (t.oid, t.name.clone(), k.name.clone())).collect();
        for (child, name, _) in children {
            if oids.contains(&child) {
                continue;
            }
            if !cascade {
                let parent = before.table(oid).map_or("", |t| &t.name);
                return Err(SqlError::new(
                    code::FEATURE_NOT_SUPPORTED,
                    "cannot truncate a table referenced in a foreign key constraint",
                )
                .with_detail(format!("Table \"{name}\" references \"{parent}\"."))
                .with_hint(format!("Truncate table \"{name}\" at the same time, or use TRUNCATE ... CASCADE.")));
            }
            oids.push(child);
        }
    }
    let mut order = oids.clone();
    order.sort_unstable();
    order.dedup();
    for oid in &order {
        session.lock_relation(*oid, LockMode::Exclusive).await?;
    }
    let catalog = session.own_catalog().await?;
    let restart = matches!(truncate.identity, Some(ast::TruncateIdentityOption::Restart));
    let mut changes = Vec::new();
    for oid in order {
        let Some(old) = catalog.table(oid).cloned() else { continue };
        let mut table = (*old).clone();
        table.partition = session.new_partition(Placement::Any).await?;
        let home = Placement::With(PartitionId(table.partition));
        session.give_up_partition(old.partition);
        for index in &mut table.indexes {
            if index.primary {
                index.partition = table.partition;
            } else {
                session.give_up_partition(index.partition);
                index.partition = session.new_partition(home).await?;
            }
        }
        table.version += 1;
        changes.push(Change::Put(Relation::Table(Arc::new(table))));
        if restart {
            for relation in catalog.relations() {
                if let Relation::Sequence(sequence) = relation
                    && sequence.owned_by.is_some_and(|(table, _)| table == oid)
                {
                    let mut sequence = (**sequence).clone();
                    sequence.restarts += 1;
                    session.db.store().set_counter(u64::from(sequence.oid), SEQUENCE_ORIGIN).await?;
                    session.db.forget_numbers(u64::from(sequence.oid));
                    changes.push(Change::Put(Relation::Sequence(Arc::new(sequence))));
                }
            }
        }
    }
    session.apply(changes).await?;
    Ok("TRUNCATE TABLE")
}
