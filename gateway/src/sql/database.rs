//! What the sessions of a node share: the store, the catalog's copy, number caches, DataFusion's functions and limits.
//!
//! One per node, shared by all its tasks. Everything that it caches is bounded by the number of relations, and
//! DataFusion's memory by [`Limits::query_bytes_max`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::common::config::Dialect;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::prelude::SessionConfig;
use rustydb::store::Store;

use super::catalog::cache::CatalogCache;
use super::catalog::{Catalog, FIRST_USER_OID, Oid};
use super::error::SqlError;
use super::fastpath::FastCache;
use super::types::arrow::ZONE;

/// Bounds of a node's SQL layer.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes that all running queries together may hold in sorts, joins and aggregates.
    pub query_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { query_bytes_max: 512 << 20 }
    }
}

/// A node's numbers of one counter, taken in advance.
struct Numbers {
    next: u64,
    end: u64,
    take: u64,
    epoch: u64,
}

/// See the module.
pub struct Database {
    pub(super) store: Store,
    pub(super) catalog: CatalogCache,
    pub(super) state: SessionState,
    pub(super) fast: FastCache,
    numbers: Mutex<HashMap<u64, Arc<tokio::sync::Mutex<Numbers>>>>,
}

/// Counter of oids in `store`.
const OID_COUNTER: u64 = 1 << 40;
/// Counters of hidden row numbers are this plus the table's oid.
const ROW_COUNTERS: u64 = 1 << 41;
/// Most numbers that a node takes at once.
const TAKE_MAX: u64 = 4096;

impl Database {
    /// Over a store.
    ///
    /// # Errors
    /// When DataFusion refuses its limits, which would be a bug.
    pub fn new(store: Store, limits: Limits) -> Result<Arc<Database>, SqlError> {
        let mut config = SessionConfig::new().with_target_partitions(1).with_batch_size(4096).with_information_schema(false);
        let options = config.options_mut();
        options.sql_parser.dialect = Dialect::PostgreSQL;
        options.sql_parser.parse_float_as_decimal = true;
        options.sql_parser.map_string_types_to_utf8view = false;
        options.sql_parser.support_varchar_with_length = true;
        options.execution.time_zone = Some(ZONE.to_owned());
        options.optimizer.max_passes = 2;
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(GreedyMemoryPool::new(limits.query_bytes_max)))
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
            .build_arc()
            .map_err(|fault| SqlError::internal(fault.to_string()))?;
        let mut state = SessionStateBuilder::new().with_config(config).with_runtime_env(runtime).with_default_features().build();
        super::functions::register(&mut state)?;
        Ok(Arc::new(Database {
            store,
            catalog: CatalogCache::default(),
            state,
            fast: FastCache::default(),
            numbers: Mutex::default(),
        }))
    }

    /// The node's store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The catalog as of now.
    ///
    /// # Errors
    /// The store's.
    pub async fn current_catalog(&self) -> Result<Arc<Catalog>, SqlError> {
        self.catalog.current(&self.store).await
    }

    /// A new oid.
    pub(super) async fn new_oid(&self) -> Result<Oid, SqlError> {
        let number = self.number(OID_COUNTER, 0, 16).await?;
        u32::try_from(u64::from(FIRST_USER_OID) + number).map_err(|_| SqlError::new("54000", "all oids have been used"))
    }

    /// A new hidden row number of a table without primary key.
    pub(super) async fn new_row_number(&self, table: Oid) -> Result<u64, SqlError> {
        self.number(ROW_COUNTERS + u64::from(table), 0, TAKE_MAX).await
    }

    /// The next number of a counter, out of those that this node has taken. `epoch` other than at the last call discards
    /// what was taken. Takes ever more at once, up to `take_max`.
    pub(super) async fn number(&self, counter: u64, epoch: u64, take_max: u64) -> Result<u64, SqlError> {
        let numbers = {
            let mut all = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = || Arc::new(tokio::sync::Mutex::new(Numbers { next: 0, end: 0, take: 8, epoch }));
            Arc::clone(all.entry(counter).or_insert_with(fresh))
        };
        let mut numbers = numbers.lock().await;
        if numbers.epoch != epoch {
            *numbers = Numbers { next: 0, end: 0, take: 8, epoch };
        }
        if numbers.next == numbers.end {
            let take = numbers.take.min(take_max).max(1);
            let first = self.store.allocate_range(counter, take).await?;
            *numbers = Numbers { next: first, end: first + take, take: (take * 4).min(TAKE_MAX), epoch };
        }
        numbers.next += 1;
        Ok(numbers.next - 1)
    }

    /// Forgets the numbers taken of a counter, so that the next comes from the store.
    pub(super) fn forget_numbers(&self, counter: u64) {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner).remove(&counter);
    }
}
