//! What a shard serves with, put together in two steps: *prepared*, it answers the other nodes; *opened*, it asks them.
//!
//! Owned by the shard's thread.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::failure;
use super::node::{Doors, End, NodeContext};
use super::status::{Phase, Status};
use crate::btree::SpaceError;
use crate::btree::space::{BlockAllocator, SpaceManager, SpaceReply, SpaceRequest, SpaceService};
use crate::cache::{Cache, CacheConfig, CacheParts, FRAMES_MIN, LocalFuture};
use crate::fusion::gcs::{Gcs, GcsConfig, GcsParts};
use crate::fusion::ges::Ges;
use crate::fusion::grd::MastershipMap;
use crate::ids::{BLOCK_SIZE, Epoch, Incarnation, NodeId, ShardId};
use crate::interconnect::{Body, Handler, Header};
use crate::reactor::{Class, Reactor, Remote};
use crate::store::{ShardEngine, ask_other_shards, search_in_other_shards};
use crate::txn::{ClusterPeers, TransactionsForGes, TxnParts, Txns};
use crate::volume::{Geometry, Volume};
use crate::wal::Log;

/// A shard that answers.
pub(super) struct Services {
    reactor: Reactor,
    shard: ShardId,
    geometry: Geometry,
    cache: Cache,
    gcs: Gcs,
    ges: Ges,
    for_ges: TransactionsForGes,
    peers: ClusterPeers,
}

/// A shard that serves.
pub(super) struct Opened {
    cache: Cache,
    gcs: Gcs,
}

impl Services {
    /// Opens the log, sets up the cache and Cache Fusion, and enters the epoch.
    pub(super) async fn prepare(
        reactor: &Reactor,
        context: &Arc<NodeContext>,
        volume: &Volume,
        shard: ShardId,
        incarnation: Incarnation,
        epoch: Epoch,
        doors: &Doors,
    ) -> Result<Services, End> {
        let geometry = *volume.geometry();
        let log = Log::open(reactor, volume.file(), geometry.redo_area(context.node, shard), incarnation).await?;
        // The coordinator has replayed everything that stands in it.
        log.checkpoint(log.append_lsn(), context.shared.clock.latest()).await?;
        let members: Vec<NodeId> = context.members.iter().map(|(node, _)| *node).collect();
        let map = MastershipMap::new(epoch, &members, context.config.rac.grd.virtual_nodes as u32, BTreeMap::new())?;
        let gcs = Gcs::new(GcsParts {
            reactor: reactor.clone(),
            interconnect: doors.interconnect.clone(),
            map: Rc::new(map),
            config: GcsConfig {
                max_outstanding_requests: context.config.rac.cache_fusion.max_outstanding_requests as usize,
                max_grd_entries: context.config.rac.grd.max_grd_entries as usize,
                block_transfer_timeout_ms: context.config.rac.cache_fusion.block_transfer_timeout,
            },
        });
        let bytes = context.config.rac.cache_fusion.global_cache_size.0 / u64::from(context.shards);
        let cache = Cache::new(CacheParts {
            reactor: reactor.clone(),
            file: volume.file(),
            log,
            clock: context.shared.clock.clone(),
            coherence: Rc::new(gcs.clone()),
            config: CacheConfig {
                frames: (bytes as usize / BLOCK_SIZE).max(FRAMES_MIN),
                checkpoint_interval_ms: context.config.rac.recovery.checkpoint_interval * 1_000,
                ..CacheConfig::default()
            },
        })?;
        gcs.attach(&cache);
        failure::watch(reactor, cache.log(), &gcs, &context.volume, &context.status);
        doors.interconnect.set_epoch(epoch);
        doors.gcs.bind(Rc::new(gcs.clone()));
        doors.interconnect.all_up().await;
        let peers = ClusterPeers::new(&doors.interconnect, context.shared.clone(), shard == ShardId(0));
        doors.txn.bind(Rc::new(peers.clone()));
        let for_ges = TransactionsForGes::default();
        let deadlock_timeout = Duration::from_millis(context.config.engine.deadlock_timeout);
        let ges = Ges::unregistered(&doors.interconnect, Rc::new(for_ges.clone()), deadlock_timeout);
        doors.ges.bind(Rc::new(ges.clone()));
        Ok(Services { reactor: reactor.clone(), shard, geometry, cache, gcs, ges, for_ges, peers })
    }

    /// Finds the shard's transactions and puts the store where clients' letters find it.
    pub(super) async fn open(self, context: &Arc<NodeContext>) -> Result<Opened, End> {
        let Services { reactor, shard, geometry, cache, gcs, ges, for_ges, peers } = self;
        let service: Rc<dyn SpaceService> = if shard == ShardId(0) {
            let manager = Rc::new(SpaceManager::open(&cache, context.node, &geometry).await?);
            reactor.set_local(manager.clone());
            manager
        } else {
            let remotes = context.remotes.lock().expect("nobody panics while holding it");
            Rc::new(SpaceByMail(remotes[0].clone()))
        };
        let space = BlockAllocator::new(&cache, service.clone(), context.node, geometry.extents_first);
        let parts = TxnParts {
            node: context.node,
            shard,
            shared: context.shared.clone(),
            cache: cache.clone(),
            space,
            service: service.clone(),
            waits: Rc::new(ges.clone()),
            peers: Rc::new(peers.clone()),
            undo_retention_ms: context.config.engine.undo_retention * 1_000,
        };
        let txns = Txns::open(parts).await?;
        peers.attach(&txns);
        for_ges.attach(&txns);
        txns.start_housekeeping(shard == ShardId(0));
        let remotes = context.remotes.lock().expect("nobody panics while holding it").clone();
        ask_other_shards(&txns, remotes.clone());
        search_in_other_shards(&ges, shard, remotes);
        let _engine = ShardEngine::new(&txns, shard, service, Rc::new(ges));
        Ok(Opened { cache, gcs })
    }
}

impl Opened {
    /// Writes everything that this shard owns. Answers whether nothing needs its redo any more.
    pub(super) async fn close(self, patience: Duration) -> Result<bool, End> {
        let empty = self.cache.checkpoint_fully(patience).await?;
        self.cache.close();
        self.gcs.close();
        Ok(empty)
    }
}

/// The way to the first shard's space manager from the others.
struct SpaceByMail(Remote);

impl SpaceService for SpaceByMail {
    fn request(&self, request: SpaceRequest) -> LocalFuture<Result<SpaceReply, SpaceError>> {
        let remote = self.0.clone();
        Box::pin(async move {
            let serve = move |reactor: Reactor| async move {
                match reactor.local::<SpaceManager>() {
                    Some(manager) => manager.serve(request).await,
                    None => Err(SpaceError::Closed),
                }
            };
            let called = remote.call_when_room(Class::High, "space", serve).await;
            called.map_err(|_| SpaceError::Closed)?.await.map_err(|_| SpaceError::Closed)?
        })
    }
}

/// The cluster service of the shards but the first: it only notices a peer that goes.
pub(super) struct WatchPeers {
    status: Status,
    armed: Cell<bool>,
}

impl WatchPeers {
    pub(super) fn new(status: Status) -> WatchPeers {
        WatchPeers { status, armed: Cell::new(false) }
    }

    /// From now on a peer that goes ends the node's life.
    pub(super) fn arm(&self) {
        self.armed.set(true);
    }
}

impl Handler for WatchPeers {
    fn on_message(&self, from: NodeId, header: &Header, _body: Body) {
        tracing::warn!(%from, kind = header.kind, "a message about the membership to a shard that has no part in it");
    }

    fn on_peer_down(&self, node: NodeId) {
        if self.armed.get() {
            self.status.enter(Phase::Lost(node), format!("{node} is gone"));
        }
    }
}
