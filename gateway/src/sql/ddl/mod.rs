//! DDL: changes of the catalog, inside the transaction like any other.
//!
//! Each statement locks its relations exclusively, then the catalog as a whole (so names are taken once), works on the
//! catalog's newest state plus its own transaction's changes, and writes the documents that changed. Partitions made are
//! dropped when the transaction rolls back, those given up when it has committed.

mod alter;
mod create;
mod drop;
mod index;
mod rebuild;
pub mod sequence;
mod views;

use std::sync::Arc;

use datafusion::sql::sqlparser::ast;
use rustydb::ids::PartitionId;
use rustydb::store::{CATALOG, LockMode, Placement, WaitPolicy};

use super::api::Execution;
use super::catalog::{Catalog, Oid, Relation, Schema, Table, cache};
use super::context::Context;
use super::error::{SqlError, code};
use super::parse::split_name;
use super::session::SqlSession;

/// Runs a CREATE, DROP, ALTER or TRUNCATE.
///
/// # Errors
/// Everything that can go wrong with it.
pub async fn run(session: &mut SqlSession, statement: &ast::Statement) -> Result<Execution, SqlError> {
    let words: Vec<String> = statement.to_string().split_whitespace().take(2).map(str::to_uppercase).collect();
    session.require_writable(&words.join(" "))?;
    let tag = match statement {
        ast::Statement::CreateTable(create) => return create::table(session, create).await,
        ast::Statement::CreateView(view) => create::view(session, view).await?,
        ast::Statement::CreateIndex(index) => index::create(session, index).await?,
        ast::Statement::CreateSchema { schema_name, if_not_exists, .. } => {
            create::schema(session, schema_name, *if_not_exists).await?
        }
        ast::Statement::CreateSequence { .. } => sequence::create(session, statement).await?,
        ast::Statement::AlterTable(alter) => alter::table(session, alter).await?,
        ast::Statement::AlterIndex { name, operation: ast::AlterIndexOperation::RenameIndex { index_name } } => {
            index::rename(session, name, index_name).await?
        }
        ast::Statement::Drop { object_type, if_exists, names, cascade, .. } => {
            drop::objects(session, *object_type, *if_exists, names, *cascade).await?
        }
        ast::Statement::Truncate(truncate) => drop::truncate(session, truncate).await?,
        other => return Err(SqlError::unsupported(other)),
    };
    Ok(Execution::Command { tag: tag.to_owned() })
}

/// A change of the catalog.
pub(super) enum Change {
    PutSchema(Schema),
    RemoveSchema(Oid),
    Put(Relation),
    Remove(Oid),
}

impl SqlSession {
    /// Makes this transaction the only one that changes the catalog, and returns its newest state.
    pub(super) async fn own_catalog(&mut self) -> Result<Arc<Catalog>, SqlError> {
        self.core.lock(CATALOG, LockMode::Exclusive, WaitPolicy::Wait, self.lock_limit()).await?;
        self.catalog().await
    }

    /// Locks a table against everybody, then the catalog; returns both as they are now.
    pub(super) async fn own_table(&mut self, name: &ast::ObjectName) -> Result<(Arc<Catalog>, Arc<Table>), SqlError> {
        let catalog = self.catalog().await?;
        let (schema, plain) = split_name(name)?;
        let path = self.settings.search_path(&self.user);
        let oid = catalog.resolve_table(schema.as_deref(), &plain, &path)?.oid;
        self.lock_relation(oid, LockMode::Exclusive).await?;
        let catalog = self.own_catalog().await?;
        let table = catalog.table(oid).cloned().ok_or_else(|| super::catalog::undefined_table(schema.as_deref(), &plain))?;
        // What has been committed while it waited counts.
        self.core.store.lock().await.new_statement();
        Ok((catalog, table))
    }

    /// Writes changes of the catalog and makes them this transaction's view.
    pub(super) async fn apply(&mut self, changes: Vec<Change>) -> Result<Arc<Catalog>, SqlError> {
        let mut catalog = (*self.catalog().await?).clone();
        let mut ops = Vec::with_capacity(changes.len());
        for change in changes {
            match change {
                Change::PutSchema(schema) => {
                    ops.push(cache::put_schema(&schema));
                    catalog.put_schema(schema);
                }
                Change::RemoveSchema(oid) => {
                    ops.push(cache::remove_schema(oid));
                    catalog.remove_schema(oid);
                }
                Change::Put(relation) => {
                    ops.push(cache::put_relation(&relation));
                    catalog.put(relation);
                }
                Change::Remove(oid) => {
                    ops.push(cache::remove_relation(oid));
                    catalog.remove(oid);
                }
            }
        }
        self.core.store.lock().await.write(ops).await?;
        let catalog = Arc::new(catalog);
        self.transaction.catalog = Some(Arc::clone(&catalog));
        Ok(catalog)
    }

    /// A new partition, dropped again if the transaction rolls back.
    pub(super) async fn new_partition(&mut self, placement: Placement) -> Result<u32, SqlError> {
        let partition = self.db.store.create_partition(placement).await?;
        self.transaction.created.push(partition);
        Ok(partition.0)
    }

    /// Gives a partition up when the transaction has committed.
    pub(super) fn give_up_partition(&mut self, partition: u32) {
        self.transaction.dropped.push(PartitionId(partition));
    }

    /// A context over a catalog of this transaction's own.
    pub(super) fn own_context(&self, catalog: &Arc<Catalog>) -> Context {
        self.context(Arc::clone(catalog), Vec::new())
    }

    /// The schema that a new relation goes into, and its name.
    pub(super) fn new_name(&self, catalog: &Catalog, name: &ast::ObjectName) -> Result<(Oid, String), SqlError> {
        let (schema, name) = split_name(name)?;
        let oid = match schema {
            Some(schema) => {
                catalog
                    .schema(&schema)
                    .ok_or_else(|| SqlError::new(code::INVALID_SCHEMA_NAME, format!("schema \"{schema}\" does not exist")))?
                    .oid
            }
            None => {
                let path = self.settings.search_path(&self.user);
                path.iter()
                    .filter(|s| *s != "pg_catalog")
                    .find_map(|s| catalog.schema(s))
                    .ok_or_else(|| SqlError::new(code::INVALID_SCHEMA_NAME, "no schema has been selected to create in"))?
                    .oid
            }
        };
        if oid == super::catalog::PG_CATALOG || oid == super::catalog::INFORMATION_SCHEMA {
            return Err(SqlError::new(
                code::INSUFFICIENT_PRIVILEGE,
                format!("permission denied to create \"{}.{name}\"", catalog.schema_name(oid)),
            )
            .with_detail("System catalog modifications are currently disallowed."));
        }
        Ok((oid, cut(&name)))
    }

    /// A name for an index or constraint that is not taken.
    pub(super) fn free_name(catalog: &Catalog, schema: Oid, taken: &[String], wanted: &str) -> String {
        let wanted = cut(wanted);
        let free = |name: &String| !catalog.name_taken(schema, name) && !taken.contains(name);
        (0..).map(|n| if n == 0 { wanted.clone() } else { format!("{wanted}{n}") }).find(free).unwrap_or(wanted)
    }
}

/// PostgreSQL's names have at most 63 bytes.
pub(super) fn cut(name: &str) -> String {
    let mut end = name.len().min(63);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].to_owned()
}

pub(super) fn already_exists(name: &str) -> SqlError {
    SqlError::new(code::DUPLICATE_TABLE, format!("relation \"{name}\" already exists"))
}

/// `schema.name` in quotes where needed, as a literal for nextval.
pub(super) fn qualified(catalog: &Catalog, schema: Oid, name: &str) -> String {
    let quote = |part: &str| {
        let plain = !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            && !part.as_bytes()[0].is_ascii_digit();
        if plain { part.to_owned() } else { format!("\"{}\"", part.replace('"', "\"\"")) }
    };
    if schema == super::catalog::PUBLIC { quote(name) } else { format!("{}.{}", quote(catalog.schema_name(schema)), quote(name)) }
}
