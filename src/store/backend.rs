//! The waist itself: `Store` and `Session` for the callers, [`Backend`] and [`SessionBackend`] for what stands behind.
//!
//! Everything here is `Send`, belongs to the caller's threads, and knows no runtime: the futures are woken from the
//! engine's threads. The engine's backend is `NodeStore`; tests of upper layers bring a double.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::ids::{NodeId, PartitionId, Scn};

use super::StoreError;
use super::types::*;

/// A future that may be awaited on any thread.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

type StoreResult<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// What a node's store can do besides sessions. See [`Store`] for what each promises.
pub trait Backend: Send + Sync {
    /// See [`Store::node_id`].
    fn node_id(&self) -> NodeId;
    /// See [`Store::shards`].
    fn shards(&self) -> u8;
    /// See [`Store::now`].
    fn now(&self) -> Scn;
    /// See [`Store::catalog_generation`].
    fn catalog_generation(&self) -> u64;
    /// See [`Store::catalog_version`].
    fn catalog_version(&self) -> StoreResult<'_, u64>;
    /// See [`Store::session`].
    fn session(&self) -> Box<dyn SessionBackend>;
    /// See [`Store::create_partition`].
    fn create_partition(&self, placement: Placement) -> StoreResult<'_, PartitionId>;
    /// See [`Store::drop_partition`].
    fn drop_partition(&self, partition: PartitionId) -> StoreResult<'_, ()>;
    /// See [`Store::vacuum`].
    fn vacuum(&self, partition: PartitionId) -> StoreResult<'_, VacuumReport>;
    /// See [`Store::allocate_range`].
    fn allocate_range(&self, counter: u64, count: u64) -> StoreResult<'_, u64>;
    /// See [`Store::read_counter`].
    fn read_counter(&self, counter: u64) -> StoreResult<'_, u64>;
    /// See [`Store::set_counter`].
    fn set_counter(&self, counter: u64, next: u64) -> StoreResult<'_, ()>;
    /// See [`Store::stats`].
    fn stats(&self) -> StoreResult<'_, StoreStats>;
}

/// One client's side of a backend. See [`Session`] for what each promises. Dropping it rolls its transaction back.
pub trait SessionBackend: Send {
    /// See [`Session::begin`].
    fn begin(&mut self, isolation: Isolation, read_only: bool) -> Result<(), StoreError>;
    /// See [`Session::in_transaction`].
    fn in_transaction(&self) -> bool;
    /// See [`Session::new_statement`].
    fn new_statement(&mut self);
    /// See [`Session::end_statement`].
    fn end_statement(&mut self);
    /// See [`Session::cancel_handle`].
    fn cancel_handle(&self) -> CancelHandle;
    /// See [`Session::get`].
    fn get<'a>(&'a mut self, partition: PartitionId, key: &'a [u8]) -> StoreResult<'a, Option<Vec<u8>>>;
    /// See [`Session::get_many`].
    fn get_many(&mut self, partition: PartitionId, keys: Vec<Vec<u8>>) -> StoreResult<'_, Vec<Option<Vec<u8>>>>;
    /// See [`Session::get_for_update`].
    fn get_for_update<'a>(
        &'a mut self,
        partition: PartitionId,
        key: &'a [u8],
        strength: LockStrength,
        wait: WaitPolicy,
    ) -> StoreResult<'a, LockedRow>;
    /// See [`Session::scan`].
    fn scan(&mut self, partition: PartitionId, range: ScanRange, limit: ScanLimit) -> StoreResult<'_, ScanChunk>;
    /// See [`Session::write`].
    fn write(&mut self, operations: Vec<WriteOp>) -> StoreResult<'_, Vec<WriteResult>>;
    /// See [`Session::write_and_commit`].
    fn write_and_commit(&mut self, operations: Vec<WriteOp>) -> StoreResult<'_, Vec<WriteResult>>;
    /// See [`Session::modify_many`].
    fn modify_many(&mut self, rows: Vec<(PartitionId, Vec<u8>)>, modifier: Modifier) -> StoreResult<'_, Vec<Modified>>;
    /// See [`Session::savepoint`].
    fn savepoint(&mut self) -> Savepoint;
    /// See [`Session::rollback_to`].
    fn rollback_to<'a>(&'a mut self, savepoint: &'a Savepoint) -> StoreResult<'a, ()>;
    /// See [`Session::commit`].
    fn commit(&mut self) -> StoreResult<'_, Committed>;
    /// See [`Session::rollback`].
    fn rollback(&mut self) -> StoreResult<'_, ()>;
    /// See [`Session::try_lock_for_statement`].
    fn try_lock_for_statement(&mut self, name: LockName) -> bool;
    /// See [`Session::lock`].
    fn lock(&mut self, name: LockName, mode: LockMode, wait: WaitPolicy) -> StoreResult<'_, ()>;
}

/// Ends the operation that a session is in, from any thread.
#[derive(Clone)]
pub struct CancelHandle(Arc<dyn Fn() + Send + Sync>);

impl CancelHandle {
    /// `cancel` shall end the session's running operation with [`StoreError::Canceled`] at its next wait, and do nothing
    /// when none is running.
    #[must_use]
    pub fn new(cancel: Arc<dyn Fn() + Send + Sync>) -> CancelHandle {
        CancelHandle(cancel)
    }

    /// Ends the running operation, if there is one and it waits for somebody. Harmless otherwise.
    pub fn cancel(&self) {
        (self.0)();
    }
}

/// A node's store. Cheap to clone; any thread.
#[derive(Clone)]
pub struct Store {
    backend: Arc<dyn Backend>,
}

impl Store {
    /// Over the engine, or over a test's double.
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>) -> Store {
        Store { backend }
    }

    /// This node.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.backend.node_id()
    }

    /// How many shards a node of this cluster has.
    #[must_use]
    pub fn shards(&self) -> u8 {
        self.backend.shards()
    }

    /// The node's clock: not below any commit that was acknowledged on any node before the call.
    #[must_use]
    pub fn now(&self) -> Scn {
        self.backend.now()
    }

    /// The version of what stands in [`PartitionId::CATALOG`], while this node holds the lock that keeps it from changing on
    /// any node; 0 while it does not. One atomic load. A caller whose copy has this version, and who looks after having
    /// taken his relation locks, never works with an old one: a transaction that changed the catalog takes that lock from
    /// all nodes before it commits.
    #[must_use]
    pub fn catalog_generation(&self) -> u64 {
        self.backend.catalog_generation()
    }

    /// The version of the catalog, after having taken the lock that keeps it (see [`Store::catalog_generation`]). A copy of
    /// this version is the catalog as it is; otherwise read it, after this returned, and call what you read this version.
    /// Never 0. Waits while somebody commits a change.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the lock's master is gone, and faults.
    pub async fn catalog_version(&self) -> Result<u64, StoreError> {
        self.backend.catalog_version().await
    }

    /// A context for one client. No cost in the shards until it is used.
    #[must_use]
    pub fn session(&self) -> Session {
        Session { backend: self.backend.session() }
    }

    /// A new, empty partition: durable, visible to all nodes, and referenced by nobody until the caller's catalog does.
    /// A partition that the caller then doesn't commit to its catalog is his to drop.
    ///
    /// # Errors
    /// [`StoreError::VolumeFull`] and faults.
    pub async fn create_partition(&self, placement: Placement) -> Result<PartitionId, StoreError> {
        self.backend.create_partition(placement).await
    }

    /// Gives a partition's extents back. Call it after the transaction that took it out of the catalog has committed, and
    /// with the relation locked exclusively, so that nobody uses it. Not transactional; doing it twice is harmless.
    /// (TRUNCATE is: create a partition, swap it in the catalog, commit, drop the old one.)
    ///
    /// # Errors
    /// Faults.
    pub async fn drop_partition(&self, partition: PartitionId) -> Result<(), StoreError> {
        self.backend.drop_partition(partition).await
    }

    /// Sweeps a partition and takes out deleted rows that no snapshot can see any more.
    ///
    /// # Errors
    /// Faults.
    pub async fn vacuum(&self, partition: PartitionId) -> Result<VacuumReport, StoreError> {
        self.backend.vacuum(partition).await
    }

    /// Takes the next `count` numbers (at least one) of a counter for good, and returns the first; a counter begins at 0
    /// and comes into being when first used. Committed on its own before it returns, never rolled back; cluster-wide.
    /// Take many at once: each call is a commit.
    ///
    /// # Errors
    /// Faults.
    pub async fn allocate_range(&self, counter: u64, count: u64) -> Result<u64, StoreError> {
        self.backend.allocate_range(counter, count).await
    }

    /// The number that the next [`Store::allocate_range`] will return.
    ///
    /// # Errors
    /// Faults.
    pub async fn read_counter(&self, counter: u64) -> Result<u64, StoreError> {
        self.backend.read_counter(counter).await
    }

    /// Makes `next` the number that the next [`Store::allocate_range`] returns.
    ///
    /// # Errors
    /// Faults.
    pub async fn set_counter(&self, counter: u64, next: u64) -> Result<(), StoreError> {
        self.backend.set_counter(counter, next).await
    }

    /// Counters of the node.
    ///
    /// # Errors
    /// [`StoreError::ShardGone`].
    pub async fn stats(&self) -> Result<StoreStats, StoreError> {
        self.backend.stats().await
    }
}

/// One client's transactions, one after the other. `Send`, not shared; one operation at a time. Dropping it rolls back.
///
/// Dropping an operation's future leaves it unknown how far the operation went; roll the transaction (or to a savepoint)
/// back before going on, which waits until the operation has ended. Outside a transaction every operation is one of its own.
pub struct Session {
    backend: Box<dyn SessionBackend>,
}

impl Session {
    /// Begins a transaction. Costs nothing; the snapshot is drawn by the first operation.
    ///
    /// # Errors
    /// [`StoreError::NoTransaction`] when one is running already.
    pub fn begin(&mut self, isolation: Isolation, read_only: bool) -> Result<(), StoreError> {
        self.backend.begin(isolation, read_only)
    }

    /// Between `begin` and `commit` or `rollback`.
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        self.backend.in_transaction()
    }

    /// A statement begins: the next read draws a new snapshot, unless the transaction is REPEATABLE READ. All reads until
    /// the next `new_statement` share it, outside a transaction too (then until `end_statement`).
    pub fn new_statement(&mut self) {
        self.backend.new_statement();
    }

    /// A statement outside a transaction, or of a READ COMMITTED one, has ended: its snapshot no longer holds undo back.
    pub fn end_statement(&mut self) {
        self.backend.end_statement();
    }

    /// Ends what this session is waiting for, from another thread.
    #[must_use]
    pub fn cancel_handle(&self) -> CancelHandle {
        self.backend.cancel_handle()
    }

    /// The row in the statement's snapshot, own changes included; `None` if there is none.
    ///
    /// # Errors
    /// [`StoreError::SnapshotTooOld`] and faults.
    pub async fn get(&mut self, partition: PartitionId, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.backend.get(partition, key).await
    }

    /// Several rows of one partition in one go, in the order of `keys` (at most [`BATCH_MAX`]).
    ///
    /// # Errors
    /// As [`Session::get`].
    pub async fn get_many(&mut self, partition: PartitionId, keys: Vec<Vec<u8>>) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.backend.get_many(partition, keys).await
    }

    /// Locks a row until the transaction ends and returns its newest version.
    ///
    /// # Errors
    /// [`StoreError::NoTransaction`] outside one; [`StoreError::LockNotAvailable`] under `NoWait`;
    /// [`StoreError::SerializationFailure`] in REPEATABLE READ when the row has changed since the snapshot.
    pub async fn get_for_update(
        &mut self,
        partition: PartitionId,
        key: &[u8],
        strength: LockStrength,
        wait: WaitPolicy,
    ) -> Result<LockedRow, StoreError> {
        self.backend.get_for_update(partition, key, strength, wait).await
    }

    /// The next rows of a range in the statement's snapshot, own changes included. Go on with [`ScanChunk::more`].
    ///
    /// # Errors
    /// As [`Session::get`].
    pub async fn scan(&mut self, partition: PartitionId, range: ScanRange, limit: ScanLimit) -> Result<ScanChunk, StoreError> {
        self.backend.scan(partition, range, limit).await
    }

    /// Changes rows, in order; waits for rows that others hold. One result each, except after an insert that ended the
    /// batch ([`OnConflict::Error`]). If it fails, everything that this call did is undone. Outside a transaction it is one
    /// of its own, committed before it returns.
    ///
    /// # Errors
    /// [`StoreError::SerializationFailure`], [`StoreError::DeadlockDetected`], [`StoreError::VolumeFull`] and faults.
    pub async fn write(&mut self, operations: Vec<WriteOp>) -> Result<Vec<WriteResult>, StoreError> {
        operations.iter().try_for_each(WriteOp::check_sizes)?;
        self.backend.write(operations).await
    }

    /// As [`Session::write`], and if the batch went through commits the transaction in the same trip. If it ended with a
    /// duplicate, or failed, the transaction goes on uncommitted.
    ///
    /// # Errors
    /// Those of `write` and of `commit`.
    pub async fn write_and_commit(&mut self, operations: Vec<WriteOp>) -> Result<Vec<WriteResult>, StoreError> {
        operations.iter().try_for_each(WriteOp::check_sizes)?;
        self.backend.write_and_commit(operations).await
    }

    /// Locks a row, shows its newest version to `modifier`, and does what it says: an UPDATE by key in one trip. In
    /// REPEATABLE READ a row that has changed since the snapshot fails instead. Outside a transaction it is one of its own,
    /// committed before it returns. A row that does not exist is not locked.
    ///
    /// # Errors
    /// As [`Session::write`].
    pub async fn modify(
        &mut self,
        partition: PartitionId,
        key: &[u8],
        mut modifier: impl FnMut(Option<&[u8]>) -> Modify + Send + 'static,
    ) -> Result<Modified, StoreError> {
        let rows = vec![(partition, key.to_vec())];
        let mut results = self.backend.modify_many(rows, Box::new(move |_, row| modifier(row))).await?;
        Ok(results.pop().expect("one row was asked for"))
    }

    /// [`Session::modify`] for several rows (at most [`BATCH_MAX`]), in order; all undone if one fails.
    ///
    /// # Errors
    /// As [`Session::write`].
    pub async fn modify_many(
        &mut self,
        rows: Vec<(PartitionId, Vec<u8>)>,
        modifier: Modifier,
    ) -> Result<Vec<Modified>, StoreError> {
        self.backend.modify_many(rows, modifier).await
    }

    /// Remembers this place. No trip to a shard.
    pub fn savepoint(&mut self) -> Savepoint {
        self.backend.savepoint()
    }

    /// Undoes everything since the savepoint. Row locks taken since then are given up; relation locks stay.
    ///
    /// # Errors
    /// Faults; the transaction can then only be rolled back.
    pub async fn rollback_to(&mut self, savepoint: &Savepoint) -> Result<(), StoreError> {
        self.backend.rollback_to(savepoint).await
    }

    /// Commits: durable on the volume and known to all nodes when it returns. Nothing to do, and no trip, for a
    /// transaction that wrote nothing.
    ///
    /// # Errors
    /// [`StoreError::CommitUnknown`]; otherwise the transaction has been rolled back. Ended either way.
    pub async fn commit(&mut self) -> Result<Committed, StoreError> {
        self.backend.commit().await
    }

    /// Gives the transaction up. Without one, nothing.
    ///
    /// # Errors
    /// [`StoreError::ShardGone`]; ended in any case: what could not be undone now is undone in the background.
    pub async fn rollback(&mut self) -> Result<(), StoreError> {
        self.backend.rollback().await
    }

    /// Outside a transaction: keeps a relation from being altered or dropped (mode CR) until [`Session::end_statement`], if
    /// that costs no trip. False: it would, or no statement has begun; begin a transaction and [`Session::lock`] there.
    #[must_use]
    pub fn try_lock_for_statement(&mut self, name: LockName) -> bool {
        self.backend.try_lock_for_statement(name)
    }

    /// Takes a lock for the rest of the transaction, or converts the one held to a stronger mode.
    ///
    /// # Errors
    /// [`StoreError::NoTransaction`], [`StoreError::LockNotAvailable`], [`StoreError::DeadlockDetected`].
    pub async fn lock(&mut self, name: LockName, mode: LockMode, wait: WaitPolicy) -> Result<(), StoreError> {
        self.backend.lock(name, mode, wait).await
    }
}
