//! The manager of a shard's transactions: what the other files of this folder work on.
//!
//! Owned by one shard; a cheap handle. Bounded by the transaction table, the undo ring and the bounds named in each part.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::btree::Tree;
use crate::btree::space::{BlockAllocator, PartitionHome, SpaceReply, SpaceRequest, SpaceService};
use crate::cache::{Cache, LocalFuture};
use crate::clock::ScnClock;
use crate::fusion::ges::Gate;
use crate::fusion::grd::BlockHasher;
use crate::histogram::Histogram;
use crate::ids::{NodeId, PartitionId, Scn, ShardId, TxnId};
use crate::reactor::sync::Notify;
use crate::reactor::{Class, Reactor};
use crate::volume::layout::EXTENT_BLOCKS;
use crate::wal::redo::BlocksForgotten;

use super::departed::Departed;
use super::error::TxnError;
use super::outcomes::Outcomes;
use super::row::{FLAG_DELETED, FLAG_OVERFLOW, Row, Version};
use super::serving::Serving;
use super::slot::Slot;
use super::snapshot::Snapshots;
use super::table::{Left, Table, Unfinished};
use super::transaction::{Cancel, DeadChain, Transaction};
use super::types::Isolation;
use super::undo::UndoLog;
use super::visibility::TxnState;
use super::waits::{RowWaiter, WaitError};

/// How often the oldest snapshot is computed, undo is recycled, and peers are told.
pub const HOUSEKEEPING_MS: u64 = 50;
/// How long a transaction waits for a free slot of a full table before it fails.
const SLOT_WAIT_MS: u64 = 10_000;
/// How often a writer on a full volume looks whether old undo has become free, at the pace of the housekeeping, before it
/// fails: deletes must get through there.
const UNDO_WAITS_MAX: u32 = 20;

/// What the manager asks of the other nodes.
pub trait Peers {
    /// The state of another node's transaction. Waits while that is committing (the answer is never `Committing`), and
    /// while its node is a member that cannot be reached. `None`: its node is no member; what its slot says will stay.
    fn state(&self, txn: TxnId) -> LocalFuture<Result<Option<TxnState>, TxnError>>;
    /// A clock reading from when the node, which is no member, left the members: above every snapshot drawn here before
    /// and every SCN that it had told; zero if it has not been a member in this node's life.
    fn left_at(&self, node: NodeId) -> Scn;
    /// Lets the other nodes read how a transaction of this node has ended. That never changes.
    fn publish(&self, txn: TxnId, outcome: TxnState);
    /// Begins to make a commit's SCN known to all peers.
    fn announce(&self, scn: Scn);
    /// Resolves when all members know of `scn`.
    fn known(&self, scn: Scn) -> LocalFuture<()>;
    /// Every [`HOUSEKEEPING_MS`]: this node's oldest snapshot.
    fn tell_oldest(&self, oldest: Scn);
    /// Has all members forget a partition that is about to be dropped; resolves when they have, or are members no more.
    fn forget_partition(&self, partition: PartitionId) -> LocalFuture<Result<(), TxnError>>;
}

/// What a node shares between its shards.
#[derive(Clone)]
pub struct NodeShared {
    /// The clock.
    pub clock: ScnClock,
    /// The snapshots in use.
    pub snapshots: Snapshots,
    /// The locks that clients' threads take by themselves, and the catalog's version.
    pub gate: Arc<Gate>,
    /// Whether clients are answered.
    pub serving: Serving,
}

impl NodeShared {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(clock: ScnClock) -> NodeShared {
        NodeShared { snapshots: Snapshots::new(clock.clone()), clock, gate: Arc::default(), serving: Serving::default() }
    }
}

/// What a manager is made of.
pub struct TxnParts {
    /// This node.
    pub node: NodeId,
    /// This shard.
    pub shard: ShardId,
    /// Shared with the node's other shards.
    pub shared: NodeShared,
    /// The shard's blocks.
    pub cache: Cache,
    /// The shard's space.
    pub space: BlockAllocator,
    /// Where partitions are found.
    pub service: Rc<dyn SpaceService>,
    /// How rows are waited for.
    pub waits: Rc<dyn RowWaiter>,
    /// The other nodes.
    pub peers: Rc<dyn Peers>,
    /// How long undo is kept for flashback.
    pub undo_retention_ms: u64,
}

/// Counters of a shard since the start.
#[derive(Default, Debug)]
pub struct TxnCounters {
    /// Committed, with changes.
    pub commits: Cell<u64>,
    /// Rolled back, with changes.
    pub rollbacks: Cell<u64>,
    /// Rows read by key.
    pub gets: Cell<u64>,
    /// Rows returned by scans.
    pub rows_scanned: Cell<u64>,
    /// Rows changed.
    pub rows_written: Cell<u64>,
    /// Waits for a row.
    pub row_lock_waits: Cell<u64>,
    /// First updater wins, and this one was not.
    pub serialization_failures: Cell<u64>,
    /// Waits refused for closing a circle.
    pub deadlocks: Cell<u64>,
    /// Versions fetched from undo.
    pub undo_reads: Cell<u64>,
    /// States asked of other nodes.
    pub state_requests: Cell<u64>,
    /// From the decision to commit until the client may be told, of transactions with changes.
    pub commit_latency: RefCell<Histogram>,
    /// Waits for a row that ended with the row's being free, or with a refusal.
    pub row_wait_latency: RefCell<Histogram>,
}

pub(super) fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

/// A shard's transactions. Clones are the same manager.
#[derive(Clone)]
pub struct Txns(pub(super) Rc<Inner>);

pub(super) struct Inner {
    pub(super) node: NodeId,
    pub(super) shard: ShardId,
    /// These are a dead node's, to be ended by this one: nothing begins, and somebody else may end them, too.
    pub(super) adopted: bool,
    pub(super) shared: NodeShared,
    pub(super) reactor: Reactor,
    pub(super) cache: Cache,
    pub(super) space: BlockAllocator,
    pub(super) service: Rc<dyn SpaceService>,
    pub(super) waits: Rc<dyn RowWaiter>,
    pub(super) peers: Rc<dyn Peers>,
    pub(super) table: RefCell<Table>,
    pub(super) undo: UndoLog,
    pub(super) outcomes: RefCell<Outcomes>,
    /// A transaction of this shard has committed or aborted.
    pub(super) decided: Notify,
    /// The oldest snapshot has moved.
    moved: Notify,
    /// Every operation looks here.
    pub(super) trees: RefCell<HashMap<PartitionId, Tree, BuildHasherDefault<BlockHasher>>>,
    pub(super) dead_chains: RefCell<std::collections::VecDeque<(Scn, DeadChain)>>,
    pub(super) scratch: RefCell<Vec<u8>>,
    pub(super) unsettled: RefCell<Vec<Unfinished>>,
    /// What other nodes' slots are found with.
    pub(super) departed: Departed,
    pub(super) counters: TxnCounters,
}

impl Txns {
    /// Opens the shard's undo home (making it on the first start) and takes up what a former life left. Rolling its dead
    /// transactions back goes on in the background; those over several shards are kept, to be settled by [`Txns::settle`]
    /// before anything else is let in.
    ///
    /// # Errors
    /// When the undo home cannot be had or is damaged.
    pub async fn open(parts: TxnParts) -> Result<Txns, TxnError> {
        let TxnParts { node, shard, cache, space, service, undo_retention_ms, .. } = &parts;
        let (undo, slots) = UndoLog::open(cache, space, &**service, (*node, *shard), *undo_retention_ms).await?;
        let (txns, unfinished) = Txns::assemble(parts, undo, slots, false);
        for unfinished in unfinished.iter().filter(|unfinished| unfinished.left == Left::Dead) {
            txns.roll_back_in_background(unfinished.txn);
        }
        txns.keep_unsettled(&unfinished);
        Ok(txns)
    }

    pub(super) fn assemble(parts: TxnParts, undo: UndoLog, slots: Vec<(u16, Slot)>, adopted: bool) -> (Txns, Vec<Unfinished>) {
        let TxnParts { node, shard, shared, cache, space, service, waits, peers, .. } = parts;
        let (table, unfinished) = Table::load(node, shard, slots, shared.clock.latest());
        shared.clock.observe(table.highest_scn());
        let txns = Txns(Rc::new(Inner {
            node,
            shard,
            adopted,
            shared,
            reactor: cache.reactor().clone(),
            cache,
            space,
            service,
            waits,
            peers,
            table: RefCell::new(table),
            undo,
            outcomes: RefCell::default(),
            decided: Notify::new(),
            moved: Notify::new(),
            trees: RefCell::default(),
            dead_chains: RefCell::default(),
            scratch: RefCell::default(),
            unsettled: RefCell::default(),
            departed: Departed::default(),
            counters: TxnCounters::default(),
        }));
        (txns, unfinished)
    }

    pub(super) fn keep_unsettled(&self, left: &[Unfinished]) {
        for unfinished in left {
            if let Left::Home { scn, .. } = unfinished.left {
                self.0.shared.clock.observe(scn);
            }
            if unfinished.left != Left::Dead {
                self.0.unsettled.borrow_mut().push(*unfinished);
            }
        }
    }

    /// Decisions and promises over several shards that a former life has left. They must be settled before the homes' slots
    /// can be reused: before clients are let in.
    #[must_use]
    pub fn unsettled(&self) -> Vec<Unfinished> {
        self.0.unsettled.borrow().clone()
    }

    /// Starts the shard's housekeeping; `announcer` for one shard of the node, which also tells the peers.
    pub fn start_housekeeping(&self, announcer: bool) {
        let weak = Rc::downgrade(&self.0);
        let reactor = self.0.reactor.clone();
        self.0.reactor.spawn(Class::High, "transaction housekeeping", async move {
            loop {
                reactor.beat(Duration::from_millis(HOUSEKEEPING_MS)).await;
                let Some(inner) = weak.upgrade() else { return };
                Txns(inner).housekeep(announcer).await;
            }
        });
    }

    /// One round of housekeeping: the oldest snapshot, the peers, undo and chains that nobody needs any more.
    pub async fn housekeep(&self, announcer: bool) {
        let wall_ms = self.0.reactor.wall_ms();
        let oldest = self.recycle();
        if announcer {
            self.0.peers.tell_oldest(self.0.shared.snapshots.oldest_here(wall_ms));
        }
        self.0.moved.notify_all();
        self.free_dead_chains(oldest).await;
    }

    async fn free_dead_chains(&self, oldest: Scn) {
        loop {
            let next = {
                let mut chains = self.0.dead_chains.borrow_mut();
                if chains.front().is_none_or(|&(scn, _)| scn >= oldest) {
                    return;
                }
                chains.pop_front().expect("looked at it").1
            };
            let Ok(tree) = self.tree(next.partition).await else { continue };
            if let Err(error) = tree.free_overflow(next.chain).await {
                tracing::warn!(partition = %next.partition, %error, "the blocks of a replaced large row are lost until the partition is dropped");
            }
        }
    }

    /// The shard's reactor.
    #[must_use]
    pub fn reactor(&self) -> &Reactor {
        &self.0.reactor
    }

    /// Shared with the node's other shards.
    #[must_use]
    pub fn shared(&self) -> &NodeShared {
        &self.0.shared
    }

    /// The shard's blocks.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.0.cache
    }

    /// Counters.
    #[must_use]
    pub fn counters(&self) -> &TxnCounters {
        &self.0.counters
    }

    /// Unfinished transactions with a slot, and undo blocks in use.
    #[must_use]
    pub fn in_use(&self) -> (usize, usize) {
        (self.0.table.borrow().unfinished(), self.0.undo.blocks_in_use())
    }

    pub(super) fn wall_ms(&self) -> u64 {
        self.0.reactor.wall_ms()
    }

    /// The tree of a partition of this shard.
    ///
    /// # Errors
    /// [`TxnError::NoSuchPartition`] and faults.
    pub async fn tree(&self, partition: PartitionId) -> Result<Tree, TxnError> {
        if let Some(tree) = self.0.trees.borrow().get(&partition) {
            return Ok(tree.clone());
        }
        let home = match self.0.service.request(SpaceRequest::FindPartition(partition)).await? {
            SpaceReply::Home(home) => home,
            other => unreachable!("a partition was looked for, {other:?} came"),
        };
        if self.0.cache.is_dropped(partition) {
            return Err(TxnError::NoSuchPartition(partition));
        }
        let tree = Tree::open(&self.0.cache, &self.0.space, home);
        self.0.trees.borrow_mut().insert(partition, tree.clone());
        Ok(tree)
    }

    /// The tree of a partition, if it was used before.
    #[inline]
    #[must_use]
    pub fn known_tree(&self, partition: PartitionId) -> Option<Tree> {
        self.0.trees.borrow().get(&partition).cloned()
    }

    /// The shard's space.
    #[must_use]
    pub fn space(&self) -> &BlockAllocator {
        &self.0.space
    }

    /// Gives a transaction its id before it has changed anything: for locks.
    ///
    /// # Errors
    /// [`TxnError::TableFull`].
    pub async fn identify(&self, txn: &Transaction) -> Result<TxnId, TxnError> {
        self.ensure_id(txn).await
    }

    /// Begins a transaction: no slot and no cost before its first change.
    #[must_use]
    pub fn begin(&self, isolation: Isolation) -> Transaction {
        Transaction::new(isolation)
    }

    /// Gives a transaction its id, waiting for a slot if the table is full.
    pub(super) async fn ensure_id(&self, txn: &Transaction) -> Result<TxnId, TxnError> {
        if let Some(id) = txn.id() {
            return Ok(id);
        }
        let deadline = self.0.reactor.now() + Duration::from_millis(SLOT_WAIT_MS);
        loop {
            let moved = self.0.moved.notified();
            let (now, oldest) = (self.0.shared.clock.now(self.wall_ms()), self.0.shared.snapshots.oldest());
            let begun = self.0.table.borrow_mut().begin(now, oldest);
            if let Some(id) = begun {
                txn.set_id(id);
                return Ok(id);
            }
            let left = deadline.since(self.0.reactor.now());
            if self.0.reactor.timeout(left, moved).await.is_err() {
                return Err(TxnError::TableFull);
            }
        }
    }

    /// Sees to it that there is room for undo. On a full volume that may take until older undo is free.
    pub(super) async fn prepare_undo(&self) -> Result<(), TxnError> {
        let mut waits = 0;
        loop {
            match self.0.undo.prepare().await {
                Err(TxnError::VolumeFull) if waits < UNDO_WAITS_MAX => waits += 1,
                done => return done,
            }
            self.0.reactor.sleep(Duration::from_millis(HOUSEKEEPING_MS)).await;
            self.recycle();
        }
    }

    /// Looks which undo is free again; returns the cluster's oldest snapshot.
    fn recycle(&self) -> Scn {
        let wall_ms = self.wall_ms();
        let oldest = self.0.shared.snapshots.refresh(wall_ms);
        let oldest_begin = self.0.table.borrow().oldest_begin();
        self.0.undo.recycle(self.0.shared.clock.now(wall_ms), oldest_begin, oldest);
        oldest
    }

    /// What is known here of a transaction, without asking anybody.
    #[inline]
    pub(super) fn known_state(&self, txn: TxnId) -> Result<Option<TxnState>, TxnError> {
        if txn.node() != self.0.node {
            return Ok(self.0.outcomes.borrow().get(txn));
        }
        if txn.shard() != self.0.shard {
            return Err(TxnError::Corrupt(format!("a row of {} names {txn}", self.0.shard)));
        }
        self.0.table.borrow().state(txn).map(Some).ok_or_else(|| TxnError::unknown_transaction(txn))
    }

    /// The state of a transaction of any node; never `Committing`.
    pub(super) async fn settled_state(&self, txn: TxnId, cancel: &Cancel) -> Result<TxnState, TxnError> {
        loop {
            let decided = self.0.decided.notified();
            match self.known_state(txn)? {
                None => {
                    count(&self.0.counters.state_requests);
                    let state = cancel.race(self.state_elsewhere(txn)).await??;
                    self.0.outcomes.borrow_mut().learn(txn, state);
                    return Ok(state);
                }
                Some(TxnState::Committing(_)) => cancel.race(decided).await?,
                Some(state) => return Ok(state),
            }
        }
    }

    /// The state of another node's transaction: from that node, or from its slot if the node is no member.
    async fn state_elsewhere(&self, txn: TxnId) -> Result<TxnState, TxnError> {
        match self.0.peers.state(txn).await? {
            Some(state) => Ok(state),
            None => self.departed_state(txn).await,
        }
    }

    /// The state of a transaction of this shard, for a peer that asks; waits while it is committing.
    ///
    /// # Errors
    /// [`TxnError::Corrupt`] for an id that this shard never gave out.
    pub async fn own_state(&self, txn: TxnId) -> Result<TxnState, TxnError> {
        if txn.node() != self.0.node || txn.shard() != self.0.shard {
            return Err(TxnError::unknown_transaction(txn));
        }
        self.settled_state(txn, &Cancel::never()).await
    }

    /// Waits until `owner` has ended or given up rows. Where its node has left the members the wait ends, too: the row
    /// is then looked at again.
    pub(super) async fn wait_for(&self, txn: &Transaction, owner: TxnId) -> Result<(), TxnError> {
        let waiter = self.ensure_id(txn).await?;
        if owner.node() == self.0.node && !matches!(self.known_state(owner)?, Some(TxnState::Active | TxnState::Committing(_))) {
            return Ok(());
        }
        count(&self.0.counters.row_lock_waits);
        let since = self.0.reactor.now();
        let waited = txn.cancel().race(self.0.waits.wait(waiter, owner)).await?;
        self.0.counters.row_wait_latency.borrow_mut().record_ns(self.0.reactor.now().since(since).as_nanos() as u64);
        match waited {
            Ok(()) => Ok(()),
            Err(WaitError::Deadlock) => {
                count(&self.0.counters.deadlocks);
                Err(TxnError::Deadlock)
            }
        }
    }

    /// Whether a cell is a tombstone that nobody can see past any more. Not for rows with an overflow chain.
    #[must_use]
    pub fn is_dead(&self, value: &[u8]) -> bool {
        let Some(row) = Row::parse(value) else { return false };
        if row.flags & (FLAG_DELETED | FLAG_OVERFLOW) != FLAG_DELETED {
            return false;
        }
        let oldest = self.0.shared.snapshots.oldest();
        match row.version {
            Version::Committed(scn) => scn < oldest,
            Version::Written(txn) => matches!(
                self.known_state(txn),
                Ok(Some(TxnState::Committed(scn) | TxnState::CommittedBy(scn))) if scn < oldest
            ),
        }
    }

    /// Forgets a partition that is being dropped, on this node: its tree and its blocks, of which none comes back, whoever
    /// still uses them. On return this node's log says durably that it has no more to do with them.
    ///
    /// # Errors
    /// Faults of the cache and the log.
    pub async fn forget_partition(&self, partition: PartitionId) -> Result<(), TxnError> {
        self.0.dead_chains.borrow_mut().retain(|(_, dead)| dead.partition != partition);
        self.0.cache.drop_partition(partition).await?;
        self.0.trees.borrow_mut().remove(&partition);
        self.0.space.forget(partition);
        Ok(self.0.cache.log_forgotten(BlocksForgotten::all_of(partition)).await?)
    }

    /// Gives a partition up that this node has formatted, and that nobody has found: another node's of the same number has.
    ///
    /// # Errors
    /// Faults of the cache.
    pub async fn forget_unpublished(&self, home: PartitionHome) -> Result<(), TxnError> {
        self.0.trees.borrow_mut().remove(&home.partition);
        self.0.space.forget(home.partition);
        self.0.cache.let_go(home.partition).await?;
        let (first, scn) = (home.first_extent, self.0.cache.clock().latest());
        let forgotten = BlocksForgotten { first, count: EXTENT_BLOCKS, scn, ..BlocksForgotten::all_of(home.partition) };
        Ok(self.0.cache.log_forgotten(forgotten).await?)
    }

    /// [`Txns::forget_partition`] on all nodes.
    ///
    /// # Errors
    /// Faults, here and of peers.
    pub async fn forget_everywhere(&self, partition: PartitionId) -> Result<(), TxnError> {
        // All at the same time: one's past images go when another has written its blocks.
        let peers = self.0.peers.forget_partition(partition);
        self.forget_partition(partition).await?;
        peers.await
    }
}

/// A node without peers.
#[derive(Clone, Copy, Default, Debug)]
pub struct NoPeers;

impl Peers for NoPeers {
    fn state(&self, _txn: TxnId) -> LocalFuture<Result<Option<TxnState>, TxnError>> {
        Box::pin(std::future::ready(Ok(None)))
    }
    fn left_at(&self, _node: NodeId) -> Scn {
        Scn::ZERO
    }
    fn publish(&self, _txn: TxnId, _outcome: TxnState) {}
    fn announce(&self, _scn: Scn) {}
    fn known(&self, _scn: Scn) -> LocalFuture<()> {
        Box::pin(std::future::ready(()))
    }
    fn tell_oldest(&self, _oldest: Scn) {}
    fn forget_partition(&self, _partition: PartitionId) -> LocalFuture<Result<(), TxnError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
