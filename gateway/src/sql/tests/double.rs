//! A store in memory: one lock around everything, changes applied at once and undone by a list. One writer at a time sees
//! its own changes; there are no snapshots. Enough to test SQL on.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustydb::ids::{NodeId, PartitionId, Scn};
use rustydb::store::{
    Backend, BoxFuture, CancelHandle, Committed, Isolation, LockMode, LockName, LockStrength, LockedRow, Modified, Modifier,
    Modify, OnConflict, Placement, Savepoint, ScanChunk, ScanLimit, ScanRange, SessionBackend, Store, StoreError, StoreStats,
    VacuumReport, WaitPolicy, WriteOp, WriteResult,
};

type Tree = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Default)]
struct Inner {
    partitions: HashMap<PartitionId, Tree>,
    counters: HashMap<u64, u64>,
    next_partition: u32,
}

#[derive(Default)]
struct Shared {
    inner: Mutex<Inner>,
    generation: AtomicU64,
}

pub struct Memory(Arc<Shared>);

pub fn store() -> Store {
    let shared = Shared::default();
    {
        let mut inner = shared.inner.lock().unwrap();
        inner.next_partition = PartitionId::FIRST_USER.0;
        inner.partitions.insert(PartitionId::CATALOG, Tree::new());
    }
    Store::new(Arc::new(Memory(Arc::new(shared))))
}

fn ready<'a, T: Send + 'a>(value: T) -> BoxFuture<'a, T> {
    Box::pin(std::future::ready(value))
}

impl Backend for Memory {
    fn node_id(&self) -> NodeId {
        NodeId(1)
    }

    fn shards(&self) -> u8 {
        1
    }

    fn now(&self) -> Scn {
        Scn(1)
    }

    fn catalog_generation(&self) -> u64 {
        self.0.generation.load(Ordering::SeqCst)
    }

    fn catalog_version(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async { Ok(self.catalog_generation()) })
    }

    fn session(&self) -> Box<dyn SessionBackend> {
        Box::new(MemorySession { shared: Arc::clone(&self.0), undo: Vec::new(), open: false, read_only: false, catalog: false })
    }

    fn create_partition(&self, _placement: Placement) -> BoxFuture<'_, Result<PartitionId, StoreError>> {
        let mut inner = self.0.inner.lock().unwrap();
        let id = PartitionId(inner.next_partition);
        inner.next_partition += 1;
        inner.partitions.insert(id, Tree::new());
        ready(Ok(id))
    }

    fn drop_partition(&self, partition: PartitionId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.inner.lock().unwrap().partitions.remove(&partition);
        ready(Ok(()))
    }

    fn vacuum(&self, _partition: PartitionId) -> BoxFuture<'_, Result<VacuumReport, StoreError>> {
        ready(Ok(VacuumReport::default()))
    }

    fn allocate_range(&self, counter: u64, count: u64) -> BoxFuture<'_, Result<u64, StoreError>> {
        let mut inner = self.0.inner.lock().unwrap();
        let next = inner.counters.entry(counter).or_default();
        let first = *next;
        *next += count;
        ready(Ok(first))
    }

    fn read_counter(&self, counter: u64) -> BoxFuture<'_, Result<u64, StoreError>> {
        ready(Ok(self.0.inner.lock().unwrap().counters.get(&counter).copied().unwrap_or(0)))
    }

    fn set_counter(&self, counter: u64, next: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.inner.lock().unwrap().counters.insert(counter, next);
        ready(Ok(()))
    }

    fn stats(&self) -> BoxFuture<'_, Result<StoreStats, StoreError>> {
        ready(Ok(StoreStats::default()))
    }
}

struct MemorySession {
    shared: Arc<Shared>,
    undo: Vec<(PartitionId, Vec<u8>, Option<Vec<u8>>)>,
    open: bool,
    read_only: bool,
    catalog: bool,
}

impl MemorySession {
    fn put(&mut self, partition: PartitionId, key: Vec<u8>, value: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, StoreError> {
        if self.read_only && self.open {
            return Err(StoreError::ReadOnly);
        }
        let mut inner = self.shared.inner.lock().unwrap();
        let tree = inner.partitions.get_mut(&partition).ok_or(StoreError::NoSuchPartition(partition))?;
        let old = match value {
            Some(value) => tree.insert(key.clone(), value),
            None => tree.remove(&key),
        };
        drop(inner);
        self.catalog |= partition == PartitionId::CATALOG;
        self.undo.push((partition, key, old.clone()));
        Ok(old)
    }

    fn find(&self, partition: PartitionId, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let inner = self.shared.inner.lock().unwrap();
        let tree = inner.partitions.get(&partition).ok_or(StoreError::NoSuchPartition(partition))?;
        Ok(tree.get(key).cloned())
    }

    fn undo_to(&mut self, length: usize) {
        let mut inner = self.shared.inner.lock().unwrap();
        for (partition, key, old) in self.undo.drain(length..).rev() {
            if let Some(tree) = inner.partitions.get_mut(&partition) {
                match old {
                    Some(old) => tree.insert(key, old),
                    None => tree.remove(&key),
                };
            }
        }
    }

    fn end(&mut self) {
        self.undo.clear();
        self.open = false;
        if std::mem::take(&mut self.catalog) {
            self.shared.generation.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn write_now(&mut self, operations: Vec<WriteOp>) -> Result<Vec<WriteResult>, StoreError> {
        let start = self.undo.len();
        let mut results = Vec::new();
        for operation in operations {
            let partition = operation.partition();
            let existing = self.find(partition, operation.key())?;
            results.push(match operation {
                WriteOp::Insert { key, value, on_conflict, .. } => match existing {
                    Some(existing) => {
                        results.push(WriteResult::Duplicate { existing });
                        if on_conflict == OnConflict::Error {
                            self.undo_to(start);
                            return Ok(results);
                        }
                        continue;
                    }
                    None => WriteResult::Done { previous: self.put(partition, key, Some(value))? },
                },
                WriteOp::Put { key, value, .. } => WriteResult::Done { previous: self.put(partition, key, Some(value))? },
                WriteOp::Update { key, value, .. } => match existing {
                    Some(_) => WriteResult::Done { previous: self.put(partition, key, Some(value))? },
                    None => WriteResult::NotFound,
                },
                WriteOp::Delete { key, .. } => match existing {
                    Some(_) => WriteResult::Done { previous: self.put(partition, key, None)? },
                    None => WriteResult::NotFound,
                },
            });
        }
        if !self.open {
            self.end();
        }
        Ok(results)
    }
}

impl Drop for MemorySession {
    fn drop(&mut self) {
        self.undo_to(0);
    }
}

impl SessionBackend for MemorySession {
    fn begin(&mut self, _isolation: Isolation, read_only: bool) -> Result<(), StoreError> {
        if self.open {
            return Err(StoreError::NoTransaction);
        }
        self.open = true;
        self.read_only = read_only;
        Ok(())
    }

    fn in_transaction(&self) -> bool {
        self.open
    }

    fn new_statement(&mut self) {}

    fn end_statement(&mut self) {}

    fn cancel_handle(&self) -> CancelHandle {
        CancelHandle::new(Arc::new(|| {}))
    }

    fn get<'a>(&'a mut self, partition: PartitionId, key: &'a [u8]) -> BoxFuture<'a, Result<Option<Vec<u8>>, StoreError>> {
        ready(self.find(partition, key))
    }

    fn get_many(
        &mut self,
        partition: PartitionId,
        keys: Vec<Vec<u8>>,
    ) -> BoxFuture<'_, Result<Vec<Option<Vec<u8>>>, StoreError>> {
        ready(keys.iter().map(|key| self.find(partition, key)).collect())
    }

    fn get_for_update<'a>(
        &'a mut self,
        partition: PartitionId,
        key: &'a [u8],
        _strength: LockStrength,
        _wait: WaitPolicy,
    ) -> BoxFuture<'a, Result<LockedRow, StoreError>> {
        if !self.open {
            return ready(Err(StoreError::NoTransaction));
        }
        ready(self.find(partition, key).map(|found| found.map_or(LockedRow::Gone, LockedRow::Row)))
    }

    fn scan(
        &mut self,
        partition: PartitionId,
        range: ScanRange,
        limit: ScanLimit,
    ) -> BoxFuture<'_, Result<ScanChunk, StoreError>> {
        let inner = self.shared.inner.lock().unwrap();
        let Some(tree) = inner.partitions.get(&partition) else { return ready(Err(StoreError::NoSuchPartition(partition))) };
        let empty = match (&range.lower, &range.upper) {
            (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => {
                a > b || (a == b && !matches!((&range.lower, &range.upper), (Bound::Included(_), Bound::Included(_))))
            }
            _ => false,
        };
        if empty {
            return ready(Ok(ScanChunk::default()));
        }
        // Few rows at a time, so that tests see a scan go on.
        let most = limit.rows.min(7);
        let found = tree.range((range.lower.clone(), range.upper.clone()));
        let rows: Vec<(Vec<u8>, Vec<u8>)> = if range.reverse {
            found.rev().take(most + 1).map(|(k, v)| (k.clone(), v.clone())).collect()
        } else {
            found.take(most + 1).map(|(k, v)| (k.clone(), v.clone())).collect()
        };
        let mut chunk = ScanChunk { rows, more: None };
        if chunk.rows.len() > most {
            chunk.rows.pop();
            let last = chunk.rows[most - 1].0.clone();
            chunk.more = Some(if range.reverse {
                ScanRange { upper: Bound::Excluded(last), ..range }
            } else {
                ScanRange { lower: Bound::Excluded(last), ..range }
            });
        }
        ready(Ok(chunk))
    }

    fn write(&mut self, operations: Vec<WriteOp>) -> BoxFuture<'_, Result<Vec<WriteResult>, StoreError>> {
        ready(self.write_now(operations))
    }

    fn write_and_commit(&mut self, operations: Vec<WriteOp>) -> BoxFuture<'_, Result<Vec<WriteResult>, StoreError>> {
        let results = self.write_now(operations);
        if let Ok(list) = &results
            && !matches!(list.last(), Some(WriteResult::Duplicate { .. }))
        {
            self.end();
        }
        ready(results)
    }

    fn modify_many(
        &mut self,
        rows: Vec<(PartitionId, Vec<u8>)>,
        mut modifier: Modifier,
    ) -> BoxFuture<'_, Result<Vec<Modified>, StoreError>> {
        let start = self.undo.len();
        let mut results = Vec::new();
        for (at, (partition, key)) in rows.into_iter().enumerate() {
            let now = match self.find(partition, &key) {
                Ok(now) => now,
                Err(fault) => return ready(Err(fault)),
            };
            let wanted: Result<Modified, StoreError> = match modifier(at, now.as_deref()) {
                Modify::Keep => Ok(Modified::Kept),
                Modify::Put(value) => {
                    self.put(partition, key, Some(value.clone())).map(|previous| Modified::Put { previous, value })
                }
                Modify::Delete => match now {
                    Some(previous) => self.put(partition, key, None).map(|_| Modified::Deleted { previous }),
                    None => Ok(Modified::Kept),
                },
                Modify::Fail(reason) => {
                    let reason: Box<dyn Any + Send> = reason;
                    self.undo_to(start);
                    results.push(Modified::Failed(reason));
                    return ready(Ok(results));
                }
            };
            match wanted {
                Ok(modified) => results.push(modified),
                Err(fault) => return ready(Err(fault)),
            }
        }
        if !self.open {
            self.end();
        }
        ready(Ok(results))
    }

    fn savepoint(&mut self) -> Savepoint {
        Savepoint::new(vec![self.undo.len() as u64])
    }

    fn rollback_to<'a>(&'a mut self, savepoint: &'a Savepoint) -> BoxFuture<'a, Result<(), StoreError>> {
        self.undo_to(savepoint.positions()[0] as usize);
        ready(Ok(()))
    }

    fn commit(&mut self) -> BoxFuture<'_, Result<Committed, StoreError>> {
        self.end();
        ready(Ok(Committed { scn: None }))
    }

    fn rollback(&mut self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.undo_to(0);
        self.catalog = false;
        self.open = false;
        ready(Ok(()))
    }

    fn try_lock_for_statement(&mut self, _name: LockName) -> bool {
        !self.in_transaction()
    }

    fn lock(&mut self, _name: LockName, _mode: LockMode, _wait: WaitPolicy) -> BoxFuture<'_, Result<(), StoreError>> {
        ready(if self.open { Ok(()) } else { Err(StoreError::NoTransaction) })
    }
}
