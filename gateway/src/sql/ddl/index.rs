//! CREATE INDEX and the renaming of indexes.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast;
use rustydb::store::Placement;

use super::create;
use super::{Change, already_exists, cut};
use crate::sql::catalog::{Index, Relation, undefined_table};
use crate::sql::error::SqlError;
use crate::sql::parse::split_name;
use crate::sql::session::SqlSession;

pub(super) async fn create(session: &mut SqlSession, create: &ast::CreateIndex) -> Result<&'static str, SqlError> {
    if create.predicate.is_some() {
        return Err(SqlError::unsupported("a partial index"));
    }
    match &create.using {
        None | Some(ast::IndexType::BTree) => {}
        Some(other) => {
            session.notices.push(SqlError::notice(format!("access method {other} is not offered; the index is a btree")));
        }
    }
    let (catalog, old) = session.own_table(&create.table_name).await?;
    let mut table = (*old).clone();
    let columns = create::index_columns(&table, &create.columns)?;
    let name = match &create.name {
        Some(name) => {
            let name = cut(&split_name(name)?.1);
            if catalog.name_taken(table.schema, &name) {
                if create.if_not_exists {
                    session.notices.push(SqlError::notice(format!("relation \"{name}\" already exists, skipping")));
                    return Ok("CREATE INDEX");
                }
                return Err(already_exists(&name));
            }
            name
        }
        None => {
            let names: Vec<&str> = columns.iter().map(|c| table.column_by_number(c.number).name.as_str()).collect();
            SqlSession::free_name(&catalog, table.schema, &[], &format!("{}_{}_idx", table.name, names.join("_")))
        }
    };
    let partition = session.new_partition(Placement::With(rustydb::ids::PartitionId(table.partition))).await?;
    let oid = session.db.new_oid().await?;
    let index = Index { oid, name, partition, columns, unique: create.unique, primary: false, constraint: false };
    table.indexes.push(index.clone());
    table.version += 1;
    session.fill_index(&catalog, &old, &index).await?;
    session.apply(vec![Change::Put(Relation::Table(Arc::new(table)))]).await?;
    Ok("CREATE INDEX")
}

pub(super) async fn rename(
    session: &mut SqlSession,
    name: &ast::ObjectName,
    to: &ast::ObjectName,
) -> Result<&'static str, SqlError> {
    let (schema, plain) = split_name(name)?;
    let to = cut(&split_name(to)?.1);
    let path = session.settings.search_path(&session.user);
    let catalog = session.own_catalog().await?;
    let schemas = schema.clone().map_or(path, |s| vec![s]);
    let found = schemas.iter().filter_map(|s| catalog.schema(s)).find_map(|s| catalog.find_index(s.oid, &plain));
    let Some((table, index)) = found else { return Err(undefined_table(schema.as_deref(), &plain)) };
    if catalog.name_taken(table.schema, &to) {
        return Err(already_exists(&to));
    }
    let oid = index.oid;
    let mut table = (**table).clone();
    table.version += 1;
    if let Some(index) = table.indexes.iter_mut().find(|i| i.oid == oid) {
        index.name = to;
    }
    session.apply(vec![Change::Put(Relation::Table(Arc::new(table)))]).await?;
    Ok("ALTER INDEX")
}
