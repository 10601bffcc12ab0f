//! A shard's part of a node's life: enters each view with the others, opens once, closes once.
//!
//! Owned by the shard's thread; the first shard's `lead` tells it what to do, by letters. *Frozen* in a view it answers the
//! other nodes in that epoch and says nothing by itself; *going* it claims what it has and asks for what it wants.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::control::{Control, ControlParts};
use super::failure;
use super::node::{Doors, End, NodeContext};
use super::statistics::ServiceStatistics;
use super::view::{Override, View};
use crate::btree::SpaceError;
use crate::btree::space::{BlockAllocator, SpaceManager, SpaceReply, SpaceRequest, SpaceService};
use crate::cache::{Cache, CacheConfig, CacheParts, FRAMES_MIN, HUGE_PAGE, LocalFuture};
use crate::config::{GrdConfig, Protocol};
use crate::fusion::gcs::{Gcs, GcsConfig, GcsParts, Inspection, RecoveryProgress};
use crate::fusion::ges::Ges;
use crate::fusion::grd::{AffinityConfig, MastershipMap};
use crate::ids::{BLOCK_SIZE, Incarnation, NodeId, ShardId};
use crate::interconnect;
use crate::raft;
use crate::reactor::{Class, Instant, Reactor, Remote};
use crate::store::{ShardEngine, ask_other_shards, search_in_other_shards};
use crate::txn::{ClusterPeers, TransactionsForGes, TxnParts, Txns};
use crate::volume::{Roster, Standing, Volume};
use crate::wal::Log;

/// What is dirty is written for so long, also by a node that others don't hear any more.
const CLOSE_PATIENCE_MIN: Duration = Duration::from_secs(1);

/// A shard's part of the node's life. Found by letters as the reactor's local value.
pub(super) struct ShardLife {
    reactor: Reactor,
    context: Arc<NodeContext>,
    volume: Volume,
    shard: ShardId,
    incarnation: Incarnation,
    doors: Doors,
    /// From the first view on.
    services: RefCell<Option<Services>>,
}

/// What answers the other nodes. Clones are the same.
#[derive(Clone)]
struct Services {
    cache: Cache,
    gcs: Gcs,
    ges: Ges,
    for_ges: TransactionsForGes,
    peers: ClusterPeers,
    /// In the first shard.
    control: Option<Rc<Control>>,
}

impl ShardLife {
    /// A shard that is connected and has no view yet.
    pub(super) fn new(
        reactor: &Reactor,
        context: &Arc<NodeContext>,
        volume: &Volume,
        shard: ShardId,
        incarnation: Incarnation,
        doors: Doors,
    ) -> Rc<ShardLife> {
        Rc::new(ShardLife {
            reactor: reactor.clone(),
            context: context.clone(),
            volume: volume.clone(),
            shard,
            incarnation,
            doors,
            services: RefCell::default(),
        })
    }

    /// Listens, and begins to connect to the other nodes.
    pub(super) async fn connect(&self) -> Result<(), End> {
        Ok(self.doors.interconnect.start().await?)
    }

    fn services(&self) -> Services {
        self.services.borrow().clone().expect("the first view has been entered")
    }

    /// These are the cluster's nodes: connects to them. Who has left is refused from now on, if `refuses`.
    pub(super) fn knows_nodes(&self, roster: &Roster, refuses: bool) {
        for (node, there) in roster.nodes().iter().filter(|(node, _)| **node != self.context.node) {
            let address = SocketAddr::new(there.address.ip(), there.address.port() + u16::from(self.shard.0));
            match there.standing {
                Standing::Joining | Standing::Member => self.doors.interconnect.add_peer(*node, address),
                Standing::Removed if refuses => self.doors.interconnect.remove_peer(*node),
                Standing::Removed => {}
            }
        }
    }

    /// The buckets of this shard's blocks that have another master than the ring says, at most so many.
    pub(super) fn overrides(&self, most: usize) -> Vec<Override> {
        let services = self.services.borrow();
        let Some(services) = services.as_ref() else { return Vec::new() };
        let map = services.gcs.map();
        let moved = map.overrides().iter().take(most);
        moved.map(|(&bucket, &master)| Override { shard: self.shard, bucket, master }).collect()
    }

    /// Leaves the former epoch, or begins with this one: from now on this shard answers in the view's epoch only, and says
    /// nothing by itself until [`ShardLife::go`].
    pub(super) async fn freeze(&self, view: &View, overrides: &[Override]) -> Result<(), End> {
        let members: Vec<NodeId> = view.members.iter().map(|(node, _)| *node).collect();
        let virtual_nodes = self.context.config.rac.grd.virtual_nodes as u32;
        let ours = overrides.iter().filter(|moved| moved.shard == self.shard);
        let moved = ours.map(|moved| (moved.bucket, moved.master)).collect();
        let map = Rc::new(MastershipMap::new(view.epoch, &members, virtual_nodes, moved)?);
        let before = self.services.borrow().clone();
        match before {
            Some(services) => {
                services.gcs.enter(map).await;
                services.ges.enter(view.epoch, &members);
                services.peers.enter(&members);
            }
            None => {
                let services = self.prepare(map, &members, &view.roster).await?;
                *self.services.borrow_mut() = Some(services);
            }
        }
        self.context.shared.clock.start_above(view.scn);
        self.doors.interconnect.set_epoch(view.epoch);
        Ok(())
    }

    /// Opens the log and sets up the cache and Cache Fusion.
    async fn prepare(&self, map: Rc<MastershipMap>, members: &[NodeId], roster: &Roster) -> Result<Services, End> {
        let ShardLife { reactor, context, volume, shard, doors, .. } = self;
        let area = volume.geometry().redo_area(context.node, *shard);
        let recovered = if self.is_first() { raft::recover(reactor, volume.file(), area).await? } else { BTreeMap::new() };
        let log = Log::open(reactor, volume.file(), area, self.incarnation).await?;
        // Everything that stands in it has been recovered: by the coordinator before the first view, or by the members
        // that let this node in again. Raft's records stay.
        log.checkpoint(log.append_lsn(), context.shared.clock.latest()).await?;
        let mut control = None;
        if self.is_first() {
            let opened = Control::open(ControlParts {
                reactor: reactor.clone(),
                interconnect: doors.interconnect.clone(),
                log: log.clone(),
                recovered,
                config: context.config.raft.clone(),
                founders: roster.nodes()[&context.node].founder.then(|| roster.founders().collect()),
                status: context.status.clone(),
            });
            let opened = opened.await?;
            // Raft's own records have been written anew behind the redo of former lives, which nobody needs.
            log.checkpoint(log.append_lsn(), context.shared.clock.latest()).await?;
            doors.raft.bind(opened.handler());
            control = Some(opened);
        }
        let epoch = map.epoch();
        let gcs = Gcs::new_entering(GcsParts {
            reactor: reactor.clone(),
            interconnect: doors.interconnect.clone(),
            map,
            config: GcsConfig {
                max_outstanding_requests: context.config.rac.cache_fusion.max_outstanding_requests as usize,
                max_grd_entries: (context.config.rac.grd.max_grd_entries as usize / usize::from(context.shards)).max(1),
                block_transfer_timeout_ms: context.config.rac.cache_fusion.block_transfer_timeout,
                affinity: affinity(&context.config.rac.grd),
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
                verify_writes: context.config.rac.storage.verify_writes,
                checkpoint_interval_ms: context.config.rac.recovery.checkpoint_interval * 1_000,
                register_memory: doors.interconnect.has_rdma() || reactor.driver_name() == "uring",
                ..CacheConfig::default()
            },
        })?;
        if *shard == ShardId(0) {
            tell_pages(bytes, u64::from(context.shards), cache.stats().huge_page_bytes > 0);
        }
        if let Some((start, bytes)) = cache.memory().filter(|_| doors.interconnect.has_rdma()) {
            // SAFETY: the cache has just promised that it stays mapped.
            let registered = unsafe { doors.interconnect.register_frames(start, bytes) };
            if let Err(fault) = registered {
                if context.config.rac.interconnect.protocol == Protocol::Rdma {
                    return Err(End::Failed(format!("[rac.interconnect] protocol is \"RDMA\": {fault}")));
                }
                tracing::warn!("no RDMA, everything goes over TCP: {fault}");
            }
        }
        gcs.attach(&cache);
        failure::watch(reactor, cache.log(), &gcs, &context.volume, &context.status);
        let peers = ClusterPeers::entering(&doors.interconnect, context.shared.clone(), *shard == ShardId(0));
        peers.enter(members);
        let for_ges = TransactionsForGes::default();
        let deadlock_timeout = Duration::from_millis(context.config.engine.deadlock_timeout);
        let ges = Ges::entering(&doors.interconnect, Rc::new(for_ges.clone()), deadlock_timeout, epoch, members);
        doors.gcs.bind(Rc::new(gcs.clone()));
        doors.txn.bind(Rc::new(peers.clone()));
        doors.ges.bind(Rc::new(ges.clone()));
        Ok(Services { cache, gcs, ges, for_ges, peers, control })
    }

    /// All members have entered the view: claims what is held, asks again for what is open, recovers what the lost nodes'
    /// redo of this shard has changed. Returns at once.
    pub(super) fn go(&self, view: &View) {
        let services = self.services();
        let geometry = self.volume.geometry();
        let lost = view.unrecovered.iter().map(|node| geometry.redo_area(*node, self.shard)).collect();
        services.gcs.go(lost, self.volume.file());
        services.ges.go();
        services.peers.go();
    }

    /// Resolves when this shard needs no lost node's redo any more.
    pub(super) async fn recovered(&self) -> Result<(), End> {
        let services = self.services();
        services.gcs.recovered().await?;
        services.ges.rebuilt().await;
        Ok(())
    }

    /// The node's lease lets this shard write until then.
    pub(super) fn write_until(&self, until: Instant) {
        self.reactor.write_until(Some(until));
    }

    /// The shard's log.
    pub(super) fn log(&self) -> Log {
        self.services().cache.log().clone()
    }

    /// The control group, in the first shard from the first view on.
    pub(super) fn control(&self) -> Option<Rc<Control>> {
        self.services.borrow().as_ref()?.control.clone()
    }

    /// How far the recovery of lost nodes is.
    pub(super) fn recovery_progress(&self) -> Option<RecoveryProgress> {
        self.services.borrow().as_ref().map(|services| services.gcs.recovery_progress())
    }

    /// How its part of Cache Fusion is, from the first view on.
    pub(super) fn inspect(&self) -> Option<Inspection> {
        self.services.borrow().as_ref().map(|services| services.gcs.inspect())
    }

    /// What its connections have counted.
    pub(super) fn interconnect_statistics(&self) -> interconnect::Stats {
        self.doors.interconnect.stats()
    }

    /// What the services have counted, from the first view on.
    pub(super) fn service_statistics(&self) -> Option<ServiceStatistics> {
        let services = self.services.borrow();
        services.as_ref().map(|services| ServiceStatistics {
            cache: services.cache.stats(),
            log: services.cache.log().stats(),
            gcs: services.gcs.stats(),
            ges: services.ges.stats(),
            lock_wait_latency: services.ges.wait_latency(),
        })
    }

    #[cfg(test)]
    pub(super) fn gcs(&self) -> Gcs {
        self.services().gcs
    }

    /// Whether it is the one that leads.
    pub(super) fn is_first(&self) -> bool {
        self.shard == ShardId(0)
    }

    /// Finds the shard's transactions and puts the store where clients' letters find it. Once in a life.
    pub(super) async fn open(&self) -> Result<(), End> {
        let ShardLife { reactor, context, shard, volume, .. } = self;
        let Services { cache, ges, for_ges, peers, .. } = self.services();
        let geometry = volume.geometry();
        let service: Rc<dyn SpaceService> = if self.is_first() {
            let manager = Rc::new(SpaceManager::open(&cache, context.node, geometry).await?);
            reactor.set_local(manager.clone());
            manager
        } else {
            let remotes = context.remotes.lock().expect("nobody panics while holding it");
            Rc::new(SpaceByMail(remotes[0].clone()))
        };
        let space = BlockAllocator::new(&cache, service.clone(), context.node, geometry.extents_first);
        let parts = TxnParts {
            node: context.node,
            shard: *shard,
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
        txns.start_housekeeping(*shard == ShardId(0));
        let remotes = context.remotes.lock().expect("nobody panics while holding it").clone();
        ask_other_shards(&txns, remotes.clone());
        search_in_other_shards(&ges, *shard, remotes);
        let _engine = ShardEngine::new(&txns, *shard, service, Rc::new(ges));
        Ok(())
    }

    /// Writes everything that this shard owns, and goes on. Answers whether nothing needed its redo any more at that moment.
    pub(super) async fn write_blocks(&self, patience: Duration) -> Result<bool, End> {
        let cache = self.services().cache;
        Ok(cache.checkpoint_within(patience).await?)
    }

    /// Writes everything that this shard owns and ends its part. Answers whether nothing needs its redo any more.
    pub(super) async fn close(&self, patience: Duration) -> Result<bool, End> {
        let Some(services) = self.services.borrow().clone() else { return Ok(true) };
        if let Some(control) = &services.control {
            control.close();
        }
        let empty = services.cache.checkpoint_within(patience.max(CLOSE_PATIENCE_MIN)).await?;
        services.cache.close();
        services.cache.at_rest().await;
        services.gcs.close();
        Ok(empty)
    }

    /// Ends the shard's connections.
    pub(super) fn end(&self) {
        self.doors.interconnect.close();
    }
}

/// On which pages the block cache lies, by the first shard's part. Each shard has as much, and takes whole pages for it.
fn tell_pages(shard_bytes: u64, shards: u64, reserved: bool) {
    let bytes = shard_bytes * shards;
    if reserved {
        tracing::info!(bytes, "the block cache lies on reserved huge pages of 2 MiB");
    } else {
        let pages = shard_bytes.div_ceil(HUGE_PAGE as u64) * shards;
        tracing::info!(
            bytes,
            "the block cache lies on ordinary memory, which the kernel may give in huge pages; to be sure of them reserve {pages} of \
             2 MiB before the node starts: sysctl vm.nr_hugepages={pages}"
        );
    }
}

fn affinity(settings: &GrdConfig) -> AffinityConfig {
    AffinityConfig {
        auto_remaster: settings.auto_remaster,
        remaster_threshold: settings.remaster_threshold,
        affinity_decay: settings.affinity_decay,
        load_balance_interval: settings.load_balance_interval,
        load_imbalance_threshold: settings.load_imbalance_threshold,
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
