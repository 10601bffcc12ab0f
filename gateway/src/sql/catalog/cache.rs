//! The node's copy of the catalog, and how the catalog lies in its partition.
//!
//! Shared by all sessions of a node. [`CatalogCache::current`] costs one atomic load while nobody commits DDL; it is never
//! older than what was committed anywhere before the call, because whoever commits DDL first takes from every node the lock
//! under which it relies on its version.
//!
//! Rows: key `0x01, schema oid` or `0x02, relation oid` (big endian), value the JSON document.

use std::sync::{Arc, RwLock};

use rustydb::ids::PartitionId;
use rustydb::store::{ScanLimit, ScanRange, Store, WriteOp};

use super::{Catalog, Oid, Relation, Schema};
use crate::sql::error::{SqlError, code};

const SCHEMA: u8 = 1;
const RELATION: u8 = 2;

/// See the module.
pub struct CatalogCache {
    latest: RwLock<Arc<Catalog>>,
    reload: tokio::sync::Mutex<()>,
}

impl Default for CatalogCache {
    fn default() -> CatalogCache {
        CatalogCache {
            latest: RwLock::new(Arc::new(Catalog { generation: u64::MAX, ..Catalog::empty() })),
            reload: tokio::sync::Mutex::default(),
        }
    }
}

impl CatalogCache {
    /// The catalog if it is known to be up to date without reading.
    #[must_use]
    pub fn fresh(&self, store: &Store) -> Option<Arc<Catalog>> {
        let latest = self.latest.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        (latest.generation == store.catalog_generation()).then(|| Arc::clone(&latest))
    }

    /// The catalog as of now.
    ///
    /// # Errors
    /// The store's.
    pub async fn current(&self, store: &Store) -> Result<Arc<Catalog>, SqlError> {
        if let Some(catalog) = self.fresh(store) {
            return Ok(catalog);
        }
        let _one_at_a_time = self.reload.lock().await;
        if let Some(catalog) = self.fresh(store) {
            return Ok(catalog);
        }
        // The version is read first: a commit while reading makes the copy look old, never the other way round.
        let version = store.catalog_version().await?;
        {
            // The lock was away for a while, and nothing came of it.
            let latest = self.latest.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            if latest.generation == version {
                return Ok(Arc::clone(&latest));
            }
        }
        let mut catalog = load(store).await?;
        catalog.generation = version;
        let catalog = Arc::new(catalog);
        *self.latest.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::clone(&catalog);
        Ok(catalog)
    }
}

async fn load(store: &Store) -> Result<Catalog, SqlError> {
    let mut catalog = Catalog::empty();
    let mut session = store.session();
    session.new_statement();
    let mut range = Some(ScanRange::all());
    while let Some(next) = range {
        let chunk = session.scan(PartitionId::CATALOG, next, ScanLimit::default()).await?;
        for (key, value) in &chunk.rows {
            let broken = |fault: serde_json::Error| {
                SqlError::new(code::DATA_CORRUPTED, format!("catalog row {key:02x?} cannot be read: {fault}"))
            };
            match key.first() {
                Some(&SCHEMA) => catalog.put_schema(serde_json::from_slice(value).map_err(broken)?),
                Some(&RELATION) => catalog.put(serde_json::from_slice(value).map_err(broken)?),
                _ => {}
            }
        }
        range = chunk.more;
    }
    session.end_statement();
    Ok(catalog)
}

fn key(kind: u8, oid: Oid) -> Vec<u8> {
    let mut key = vec![kind];
    key.extend(oid.to_be_bytes());
    key
}

/// The write that stores a schema.
#[must_use]
pub fn put_schema(schema: &Schema) -> WriteOp {
    let value = serde_json::to_vec(schema).expect("a schema is plain data");
    WriteOp::Put { partition: PartitionId::CATALOG, key: key(SCHEMA, schema.oid), value }
}

/// The write that takes a schema away.
#[must_use]
pub fn remove_schema(oid: Oid) -> WriteOp {
    WriteOp::Delete { partition: PartitionId::CATALOG, key: key(SCHEMA, oid) }
}

/// The write that stores a relation.
#[must_use]
pub fn put_relation(relation: &Relation) -> WriteOp {
    let value = serde_json::to_vec(relation).expect("a relation is plain data");
    WriteOp::Put { partition: PartitionId::CATALOG, key: key(RELATION, relation.oid()), value }
}

/// The write that takes a relation away.
#[must_use]
pub fn remove_relation(oid: Oid) -> WriteOp {
    WriteOp::Delete { partition: PartitionId::CATALOG, key: key(RELATION, oid) }
}
