//! The engine behind [`Store`]: brings work to the shards that own the partitions, as letters, and their answers back; makes
//! and drops partitions, and keeps the counters. What a client does in them is its [`session`]'s.
//!
//! `Send`; lives on the clients' threads. Bounded by the shards' mailboxes: a full one is [`StoreError::Overloaded`], but for
//! what ends a transaction, which is always taken.

mod session;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ids::{NodeId, PartitionId, SHARDS_MAX, Scn, ShardId};
use crate::reactor::Reactor;
use crate::reactor::mail::{Letter, MailError, Remote};
use crate::reactor::sync::{CrossReceiver, CrossSender, cross_oneshot};
use crate::txn::NodeShared;

use super::StoreError;
use super::backend::*;
use super::locks::CATALOG_VERSION;
use super::shard::ShardEngine;
use super::types::*;
use session::EngineSession;

/// Where counters live: rows of number → next.
pub const COUNTERS: PartitionId = PartitionId(2);
/// The counter that gives partitions their numbers.
const PARTITION_COUNTER: u64 = u64::MAX;

/// A node's store over its shards.
#[derive(Clone)]
pub struct NodeStore(Arc<Inner>);

struct Inner {
    node: NodeId,
    shards: Vec<Remote>,
    shared: NodeShared,
    sessions: AtomicU64,
    next_placement: AtomicU64,
}

impl NodeStore {
    /// A node whose shards' reactors are reached by `shards`, in order; each has its [`ShardEngine`] by the time that
    /// operations come.
    ///
    /// # Panics
    /// With no shard, or too many.
    #[must_use]
    pub fn new(node: NodeId, shards: Vec<Remote>, shared: NodeShared) -> NodeStore {
        assert!((1..=SHARDS_MAX).contains(&shards.len()), "a node has 1 to {SHARDS_MAX} shards, not {}", shards.len());
        NodeStore(Arc::new(Inner { node, shards, shared, sessions: AtomicU64::new(1), next_placement: AtomicU64::new(0) }))
    }

    /// The handle for the layers above.
    #[must_use]
    pub fn store(&self) -> Store {
        Store::new(Arc::new(self.clone()))
    }

    /// Makes the partitions that every node expects, if they are not there.
    ///
    /// # Errors
    /// Faults.
    pub async fn create_system_partitions(&self) -> Result<(), StoreError> {
        for partition in [PartitionId::CATALOG, COUNTERS] {
            self.create_numbered(partition).await?;
        }
        Ok(())
    }

    async fn create_numbered(&self, partition: PartitionId) -> Result<(), StoreError> {
        self.in_shard(self.0.shard_of(partition), async move |engine| engine.create_partition(partition).await).await
    }

    /// Posts a letter that answers through its sender, now or later.
    pub(super) fn post<T: Send + 'static>(
        &self,
        shard: ShardId,
        letter: impl FnOnce(Rc<ShardEngine>, CrossSender<Result<T, StoreError>>) + Send + 'static,
    ) -> Result<CrossReceiver<Result<T, StoreError>>, StoreError> {
        self.post_as(Remote::post, shard, letter)
    }

    fn post_as<T: Send + 'static>(
        &self,
        post: fn(&Remote, Letter) -> Result<(), MailError>,
        shard: ShardId,
        letter: impl FnOnce(Rc<ShardEngine>, CrossSender<Result<T, StoreError>>) + Send + 'static,
    ) -> Result<CrossReceiver<Result<T, StoreError>>, StoreError> {
        let (sender, receiver) = cross_oneshot();
        let letter = Box::new(move |reactor: &Reactor| match reactor.local::<ShardEngine>() {
            Some(engine) => letter(engine, sender),
            None => sender.send(Err(StoreError::Unavailable { reason: format!("{shard} has not started yet") })),
        });
        match post(&self.0.shards[usize::from(shard.0)], letter) {
            Ok(()) => Ok(receiver),
            Err(MailError::Full) => Err(StoreError::Overloaded { resource: "the shard's mailbox" }),
            Err(MailError::Closed) => Err(StoreError::ShardGone(shard)),
        }
    }

    /// A number that no session of this node has, and no other caller gets.
    pub(super) fn next_number(&self) -> u64 {
        self.0.sessions.fetch_add(1, Ordering::Relaxed)
    }

    /// Runs `work` as a task of the shard.
    pub(super) fn start<T: Send + 'static>(
        &self,
        shard: ShardId,
        work: impl AsyncFnOnce(Rc<ShardEngine>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<CrossReceiver<Result<T, StoreError>>, StoreError> {
        self.post(shard, move |engine, sender| engine.clone().spawn(async move { sender.send(work(engine).await) }))
    }

    pub(super) async fn in_shard<T: Send + 'static>(
        &self,
        shard: ShardId,
        work: impl AsyncFnOnce(Rc<ShardEngine>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.start(shard, work)?.await.unwrap_or(Err(StoreError::ShardGone(shard)))
    }

    /// As [`in_shard`](Self::in_shard), for what ends a session's branch there: an overloaded shard takes it too. Refused, the
    /// branch would keep its locks for ever.
    pub(super) async fn end_in_shard<T: Send + 'static>(
        &self,
        shard: ShardId,
        work: impl AsyncFnOnce(Rc<ShardEngine>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let letter = move |engine: Rc<ShardEngine>, sender: CrossSender<_>| {
            engine.clone().spawn(async move { sender.send(work(engine).await) });
        };
        self.post_as(Remote::post_owed, shard, letter)?.await.unwrap_or(Err(StoreError::ShardGone(shard)))
    }

    async fn with_counter(&self, counter: u64, change: impl FnMut(u64) -> u64 + Send + 'static) -> Result<u64, StoreError> {
        let mut change = change;
        let mut session = self.session();
        let modifier: Modifier = Box::new(move |_, row| Modify::Put(change(decode_counter(row)).to_le_bytes().to_vec()));
        let key = counter.to_be_bytes().to_vec();
        match session.modify_many(vec![(COUNTERS, key)], modifier).await?.pop() {
            Some(Modified::Put { previous, .. }) => Ok(decode_counter(previous.as_deref())),
            _ => unreachable!("a counter is always put"),
        }
    }
}

fn decode_counter(row: Option<&[u8]>) -> u64 {
    // A row of another length is no counter of ours: it begins anew rather than fail for ever.
    row.and_then(|row| row.try_into().ok()).map_or(0, u64::from_le_bytes)
}

impl Inner {
    /// # Errors
    /// [`StoreError::Unavailable`] while the node is suspended.
    fn serves(&self) -> Result<(), StoreError> {
        self.shared.serving.reason().map_or(Ok(()), |reason| Err(StoreError::Unavailable { reason }))
    }

    /// The shard, on every node, that locks this name.
    fn shard_of_name(&self, name: LockName) -> ShardId {
        ShardId(((name.id1 ^ name.id2.rotate_left(17)) % self.shards.len() as u64) as u8)
    }

    fn shard_of(&self, partition: PartitionId) -> ShardId {
        partition.shard(self.shards.len() as u8)
    }
}

impl Backend for NodeStore {
    fn node_id(&self) -> NodeId {
        self.0.node
    }

    fn shards(&self) -> u8 {
        self.0.shards.len() as u8
    }

    fn now(&self) -> Scn {
        self.0.shared.clock.latest()
    }

    fn catalog_generation(&self) -> u64 {
        if self.0.shared.serving.is_suspended() { 0 } else { self.0.shared.gate.catalog_version() }
    }

    fn catalog_version(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async move {
            self.0.serves()?;
            match self.catalog_generation() {
                0 => {
                    self.in_shard(self.0.shard_of_name(CATALOG_VERSION), async move |engine| engine.catalog_version().await).await
                }
                version => Ok(version),
            }
        })
    }

    fn session(&self) -> Box<dyn SessionBackend> {
        Box::new(EngineSession::new(self))
    }

    fn create_partition(&self, placement: Placement) -> BoxFuture<'_, Result<PartitionId, StoreError>> {
        Box::pin(async move {
            self.0.serves()?;
            let shards = self.shards();
            let wanted = match placement {
                Placement::With(neighbour) => self.0.shard_of(neighbour),
                Placement::Any => ShardId((self.0.next_placement.fetch_add(1, Ordering::Relaxed) % u64::from(shards)) as u8),
            };
            // As many numbers as there are shards: one of them falls to the shard that is wanted.
            let first = self.allocate_range(PARTITION_COUNTER, u64::from(shards)).await?;
            let number =
                |offset| u32::try_from(first + offset).ok().and_then(|number| PartitionId::FIRST_USER.0.checked_add(number));
            let partition = (0..u64::from(shards))
                .filter_map(number)
                .map(PartitionId)
                .find(|partition| partition.undo_home().is_none() && self.0.shard_of(*partition) == wanted)
                .ok_or(StoreError::Overloaded { resource: "the numbering of partitions" })?;
            self.create_numbered(partition).await?;
            Ok(partition)
        })
    }

    fn drop_partition(&self, partition: PartitionId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.in_shard(self.0.shard_of(partition), async move |engine| engine.drop_partition(partition).await))
    }

    fn vacuum(&self, partition: PartitionId) -> BoxFuture<'_, Result<VacuumReport, StoreError>> {
        Box::pin(self.in_shard(self.0.shard_of(partition), async move |engine| engine.vacuum(partition).await))
    }

    fn allocate_range(&self, counter: u64, count: u64) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(self.with_counter(counter, move |next| next.wrapping_add(count.max(1))))
    }

    fn read_counter(&self, counter: u64) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async move {
            let mut session = self.session();
            Ok(decode_counter(session.get(COUNTERS, &counter.to_be_bytes()).await?.as_deref()))
        })
    }

    fn set_counter(&self, counter: u64, next: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.with_counter(counter, move |_| next).await.map(|_| ()) })
    }

    fn stats(&self) -> BoxFuture<'_, Result<StoreStats, StoreError>> {
        Box::pin(async move {
            let mut sum = StoreStats::default();
            for shard in 0..self.shards() {
                let one = self
                    .post(ShardId(shard), |engine, sender| sender.send(Ok(engine.stats())))?
                    .await
                    .unwrap_or(Err(StoreError::ShardGone(ShardId(shard))))?;
                sum.add(&one);
            }
            sum.locks_at_gate = self.0.shared.gate.stats().entered_total;
            Ok(sum)
        })
    }
}
