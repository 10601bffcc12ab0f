//! Cache Fusion at work: feeds the two cores what the cache asks and the other nodes say, and does what they want done.
//!
//! One [`Gcs`] per shard, owned by its thread. Bounded: at most `max_outstanding_requests` requests are open, the others
//! wait in line here (one per frame at most); a protection and a release in flight per block. What it promises on top of
//! the cores: a grant is in its frame before the master hears of it, and before any later message about the block is
//! looked at; everything the cores want is done in the order in which they wanted it.
//!
//! It lives through changes of the membership: [`Gcs::enter`], [`Gcs::go`], [`Gcs::recovered`] (`agent/view.rs`,
//! `agent/recover.rs`; docs/cache-fusion.md, last section).
//!
//! The cache calls back into this module from within calls of this module. So the cores are borrowed only while they
//! think; what they want goes into a line that the outermost call works off.

mod numbers;
mod recover;
mod remaster;
mod transfer;
mod view;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::time::Duration;

use self::numbers::Numbers;
use self::recover::{Job, Recovery};
pub use self::view::{RecoveryPhase, RecoveryProgress};
use super::message::{FLAGS, Kind, Message, RELAYED, mode_from_wire};
use super::statistics::{Path, mode_index};
use super::{HolderCore, MasterCore, Output};
use crate::cache::{Acquire, Cache, CacheError, Coherence, Granted, LocalFuture, Mode, ProtectedBlock, Source, WeakCache};
use crate::fusion::grd::{AffinityConfig, AffinityTable, BlockMap, MastershipMap};
use crate::ids::{BlockId, Epoch, NodeId, RequestId, Scn};
use crate::interconnect::{Body, Handler, Header, Interconnect, PeerDown};
use crate::reactor::sync::{Notify, OneshotSender, oneshot};
use crate::reactor::{Class, Instant, IoBuf, Reactor, TaskHandle};
use crate::rules::{DesignRule, kept};

/// Settings of [`Gcs`].
#[derive(Clone, Copy, Debug)]
pub struct GcsConfig {
    /// Most requests of this shard that are open at other nodes or in the master here.
    pub max_outstanding_requests: usize,
    /// Most directory entries mastered by this shard before cold ones are recalled.
    pub max_grd_entries: usize,
    /// Milliseconds after which an open request is reported as stalled. It stays open: only a change of the membership
    /// can tell that its answer will not come.
    pub block_transfer_timeout_ms: u64,
    /// When buckets get another master.
    pub affinity: AffinityConfig,
}

impl Default for GcsConfig {
    fn default() -> GcsConfig {
        GcsConfig {
            max_outstanding_requests: 4096,
            max_grd_entries: 10_000_000,
            block_transfer_timeout_ms: 100,
            affinity: AffinityConfig::default(),
        }
    }
}

/// What a shard's Cache Fusion works with.
pub struct GcsParts {
    /// The shard's reactor.
    pub reactor: Reactor,
    /// The shard's end of the connections to the other nodes.
    pub interconnect: Interconnect,
    /// Who masters what, in which epoch.
    pub map: Rc<MastershipMap>,
    /// Settings.
    pub config: GcsConfig,
}

/// A request of the cache's that is open.
struct Pending {
    acquire: Acquire,
    request: RequestId,
    since: Instant,
    /// The interconnect was given the frame to receive into.
    in_place: bool,
    /// Who answered.
    answered_by: NodeId,
    reported: bool,
}

#[derive(Default)]
struct Tables {
    pending: BlockMap<Pending>,
    /// Requests beyond the bound.
    in_line: VecDeque<Acquire>,
    releases: BlockMap<Vec<OneshotSender<()>>>,
    protecting: BlockMap<TaskHandle>,
    protected: BlockMap<ProtectedBlock>,
    /// Past images asked of their keepers, for recovery. Bounded by its jobs.
    fetching: BlockMap<OneshotSender<Option<IoBuf>>>,
}

struct Cores {
    master: MasterCore,
    holder: HolderCore,
}

struct Inner {
    this: Weak<Inner>,
    node: NodeId,
    reactor: Reactor,
    interconnect: Interconnect,
    map: RefCell<Rc<MastershipMap>>,
    config: GcsConfig,
    cache: RefCell<Option<WeakCache>>,
    cores: RefCell<Cores>,
    tables: RefCell<Tables>,
    numbers: RefCell<Numbers>,
    /// What the cores want done, in order.
    wanted: RefCell<VecDeque<Output>>,
    scratch: Cell<Vec<Output>>,
    working: Cell<bool>,
    failure: RefCell<Option<CacheError>>,
    failed: Notify,
    watch: RefCell<Option<TaskHandle>>,
    windows: RefCell<Option<TaskHandle>>,
    affinity: RefCell<AffinityTable>,
    /// Buckets taken and given when that was last told.
    remasters_reported: Cell<(u64, u64)>,
    /// Since when a bucket that leaves is frozen.
    frozen_since: Cell<Option<Instant>>,
    /// The recovery that the present view began with; kept for what it has to tell.
    recovery: RefCell<Option<Rc<Recovery>>>,
    /// Something about the recovery has changed.
    recovery_moved: Notify,
    /// Writes of recoveries, the former ones too, that can still reach the volume.
    recovery_writes: Cell<usize>,
}

/// A shard's Cache Fusion; clones are the same. Give it to the cache as its [`Coherence`] and to the interconnect as the
/// [`Handler`] of its service, then [`attach`](Gcs::attach) the cache.
#[derive(Clone)]
pub struct Gcs(Rc<Inner>);

impl Gcs {
    /// Cache Fusion of this node and shard, in the epoch of the map, which begins for all its members with this: nobody
    /// has anything, so all serve at once.
    #[must_use]
    pub fn new(parts: GcsParts) -> Gcs {
        let (node, map, entries_max) = (parts.interconnect.node(), parts.map.clone(), parts.config.max_grd_entries);
        let cores = Cores { master: MasterCore::new(node, map.clone(), entries_max), holder: HolderCore::new(node, map) };
        Gcs::with_cores(parts, cores)
    }

    /// Cache Fusion of a node that enters its first view, that of the map. Says and serves nothing before [`Gcs::go`].
    #[must_use]
    pub fn new_entering(parts: GcsParts) -> Gcs {
        let (node, map, entries_max) = (parts.interconnect.node(), parts.map.clone(), parts.config.max_grd_entries);
        let master = MasterCore::new_rebuilding(node, map.clone(), entries_max);
        Gcs::with_cores(parts, Cores { master, holder: HolderCore::new_silent(node, map) })
    }

    fn with_cores(parts: GcsParts, cores: Cores) -> Gcs {
        let GcsParts { reactor, interconnect, map, config } = parts;
        let node = interconnect.node();
        assert!(config.max_outstanding_requests > 0 && config.max_grd_entries > 0 && config.block_transfer_timeout_ms > 0);
        assert!(map.members().contains(&node), "{node} is not a member of {map:?}");
        Gcs(Rc::new_cyclic(|this| Inner {
            this: this.clone(),
            node,
            reactor,
            interconnect,
            cores: RefCell::new(cores),
            map: RefCell::new(map),
            config,
            cache: RefCell::new(None),
            tables: RefCell::default(),
            numbers: RefCell::default(),
            wanted: RefCell::default(),
            scratch: Cell::default(),
            working: Cell::new(false),
            failure: RefCell::new(None),
            failed: Notify::new(),
            watch: RefCell::new(None),
            windows: RefCell::new(None),
            affinity: RefCell::new(AffinityTable::new(node, config.affinity)),
            remasters_reported: Cell::default(),
            frozen_since: Cell::new(None),
            recovery: RefCell::new(None),
            recovery_moved: Notify::new(),
            recovery_writes: Cell::new(0),
        }))
    }

    /// Names the cache that this works for, and starts to watch for stalled requests. Once.
    pub fn attach(&self, cache: &Cache) {
        let before = self.0.cache.borrow_mut().replace(cache.downgrade());
        assert!(before.is_none(), "Cache Fusion works for one cache");
        let this = self.0.this.clone();
        let reactor = self.0.reactor.clone();
        let interval = Duration::from_millis(self.0.config.block_transfer_timeout_ms.div_ceil(2));
        let watch = async move {
            loop {
                reactor.beat(interval).await;
                let Some(inner) = this.upgrade() else { return };
                inner.report_stalls();
            }
        };
        *self.0.watch.borrow_mut() = Some(self.0.reactor.spawn(Class::Low, "stalled transfers", watch));
        if self.0.config.affinity.auto_remaster {
            let windows = remaster::watch_affinity(self.0.this.clone());
            *self.0.windows.borrow_mut() = Some(self.0.reactor.spawn(Class::Low, "affinity of buckets", windows));
        }
    }

    /// Stops the watching, and a recovery under way; open requests stay open.
    pub fn close(&self) {
        if let Some(recovery) = &*self.0.recovery.borrow() {
            recovery.end();
        }
        for task in [&self.0.watch, &self.0.windows] {
            if let Some(task) = task.borrow_mut().take() {
                task.abort();
            }
        }
    }

    /// Why no block can be given away any more, if that is so: the log can't make redo durable. The node has to stop.
    #[must_use]
    pub fn failure(&self) -> Option<CacheError> {
        self.0.failure.borrow().clone()
    }

    /// Resolves when there is a [`Gcs::failure`].
    pub async fn failed(&self) -> CacheError {
        loop {
            let failed = self.0.failed.notified();
            if let Some(failure) = self.failure() {
                return failure;
            }
            failed.await;
        }
    }

    /// Who masters what.
    #[must_use]
    pub fn map(&self) -> Rc<MastershipMap> {
        self.0.map.borrow().clone()
    }

    /// Asserts what must hold between two turns.
    pub fn invariants(&self) {
        let (cores, tables) = (self.0.cores.borrow(), self.0.tables.borrow());
        cores.master.invariants();
        cores.holder.invariants();
        assert!(tables.pending.len() <= self.0.config.max_outstanding_requests, "more requests open than allowed");
        for (&block, pending) in &tables.pending {
            assert_eq!(cores.holder.open_request(block), Some(pending.request), "{block}: the request is not the core's");
        }
        assert!(self.0.wanted.borrow().is_empty() && !self.0.working.get(), "work is left undone");
    }
}

impl Inner {
    /// Lets the cores think, then does what they and those whom that calls want done.
    fn feed(&self, think: impl FnOnce(&mut Cores, &mut Vec<Output>)) {
        let mut out = self.scratch.take();
        think(&mut self.cores.borrow_mut(), &mut out);
        self.note_frozen();
        self.wanted.borrow_mut().extend(out.drain(..));
        self.scratch.set(out);
        self.work();
    }

    fn work(&self) {
        if self.working.replace(true) {
            return;
        }
        loop {
            let next = self.wanted.borrow_mut().pop_front();
            let Some(output) = next else { break };
            self.perform(output);
        }
        self.working.set(false);
    }

    fn cache(&self) -> Option<Cache> {
        self.cache.borrow().as_ref().expect("the cache is attached before it asks for anything").upgrade()
    }

    fn perform(&self, output: Output) {
        match output {
            Output::Send { to, mut message } => {
                if message.kind == Kind::Request && message.flags & RELAYED == 0 {
                    message.scn = Scn(self.expose(&message).0);
                }
                if to == self.node { self.hear(to, &message) } else { self.send(to, &message, Body::Empty) }
            }
            Output::MakeWay { block } => self.make_way(block),
            Output::Ship { to, message, place } => {
                let bytes = self.tables.borrow().protected[&message.block].io_buf();
                let sent = self.interconnect.send_block(to, self.to_wire(to, &message), bytes, place);
                self.note_sent(to, &message, sent);
            }
            Output::Finish { block, remains } => {
                let protected = self.tables.borrow_mut().protected.remove(&block);
                protected.expect("only a protected block is finished").finish(remains);
            }
            Output::Unprotect { block } => {
                // Let go, it gives the block back to whoever is in line for it, who may ask for it at once.
                let protected = self.tables.borrow_mut().protected.remove(&block);
                drop(protected);
            }
            Output::Protect { block } => self.protect(block),
            Output::CancelProtect { block } => {
                // Ending it gives the block back to whoever is in line for it, who may ask for it at once.
                let task = self.tables.borrow_mut().protecting.remove(&block);
                if let Some(task) = task {
                    task.abort();
                }
            }
            Output::Granted { block, request, granted } => self.granted(block, request, granted),
            Output::Released { block } => {
                let waiting = self.tables.borrow_mut().releases.remove(&block);
                for sender in waiting.into_iter().flatten() {
                    // Nobody waits any more: fine.
                    let _ = sender.send(());
                }
            }
            Output::DiscardPastImage { block, up_to } => {
                if let Some(cache) = self.cache() {
                    cache.discard_past_image(block, up_to);
                }
            }
            Output::RequestWrite { block } => self.request_write(block),
            Output::Recover { block, image, on_disk } => self.recover(Job { block, image, on_disk }),
            Output::Gather => self.gather_later(),
            Output::HandOver { to, bucket } => self.hand_over(to, bucket),
            Output::Remapped { bucket, from, to } => self.remapped(bucket, from, to),
            Output::StaysHere { bucket } => self.stays_here(bucket),
        }
    }

    fn epoch(&self) -> Epoch {
        self.map.borrow().epoch()
    }

    fn master(&self, block: BlockId) -> NodeId {
        self.map.borrow().master(block)
    }

    /// The master wants the block on the disk. Where it is there already, the word of that may have been lost with an
    /// epoch: it is said again.
    fn request_write(&self, block: BlockId) {
        let Some(cache) = self.cache() else { return };
        match cache.standing(block) {
            Some(standing) if !standing.dirty && standing.disk_scn > Scn::ZERO => {
                self.feed(|cores, out| cores.holder.wrote(block, standing.disk_scn, out));
            }
            _ => cache.request_write(block),
        }
    }

    /// A message for one of the cores of this node.
    fn hear(&self, from: NodeId, message: &Message) {
        self.note_affinity(message);
        self.feed(|cores, out| {
            if message.kind.is_for_master() {
                cores.master.on_message(from, message, out);
            } else {
                cores.holder.on_message(from, message, out);
            }
        });
    }

    fn send(&self, to: NodeId, message: &Message, body: Body) {
        let sent = self.interconnect.send(to, self.to_wire(to, message), body);
        self.note_sent(to, message, sent);
    }

    fn to_wire(&self, to: NodeId, message: &Message) -> crate::interconnect::Message {
        assert_eq!(message.epoch, self.interconnect.epoch(), "{message:?} to {to} in another epoch");
        crate::interconnect::Message {
            kind: message.kind as u8,
            flags: message.flags,
            mode: message.mode as u8,
            block: message.block,
            request: message.request,
            argument: message.scn.0,
        }
    }

    fn note_sent(&self, to: NodeId, message: &Message, sent: Result<(), PeerDown>) {
        let mut numbers = self.numbers.borrow_mut();
        match sent {
            Ok(()) => numbers.sent[message.kind.index()] += 1,
            // What hangs on it is sorted out by the next view, which the loss of the peer brings.
            Err(down) => {
                numbers.unsent += 1;
                tracing::debug!(%to, ?message, %down, "a message about a block was not sent");
            }
        }
    }

    fn granted(&self, block: BlockId, request: RequestId, granted: Granted) {
        let (pending, next) = {
            let mut tables = self.tables.borrow_mut();
            let pending = tables.pending.remove(&block).expect("the core grants what was asked for");
            (pending, tables.in_line.pop_front())
        };
        assert_eq!(pending.request, request, "{block}: a grant for another request");
        let master = self.master(block);
        let path = match granted.source {
            Source::Disk if master == self.node => Path::DiskLocal,
            Source::Disk => Path::DiskRemote,
            Source::Held => Path::Upgrade,
            Source::Received if master == self.node || master == pending.answered_by => Path::TwoWay,
            Source::Received => Path::ThreeWay,
        };
        let ns = u64::try_from(self.reactor.now().since(pending.since).as_nanos()).unwrap_or(u64::MAX);
        self.numbers.borrow_mut().latency[path as usize][mode_index(pending.acquire.want)].record_ns(ns);
        // Answered without the block, it gets its frame back: whoever was to write there has said that he won't.
        self.interconnect.answered(request);
        pending.acquire.granted(granted);
        next.into_iter().for_each(|next| self.open(next));
    }

    fn open(&self, acquire: Acquire) {
        let (block, want, create) = (acquire.block, acquire.want, acquire.create);
        let since = self.reactor.now();
        self.feed(|cores, out| {
            let request = cores.holder.acquire(block, want, create, out);
            let pending = Pending { acquire, request, since, in_place: false, answered_by: NodeId(0), reported: false };
            let before = self.tables.borrow_mut().pending.insert(block, pending);
            assert!(before.is_none(), "{block} was asked for twice");
        });
    }

    fn malformed(&self, from: NodeId, what: &str, header: &Header) {
        self.numbers.borrow_mut().malformed += 1;
        tracing::error!(%from, ?header, "{what}; dropped. Do all nodes run the same version?");
    }
}

impl Coherence for Gcs {
    fn acquire(&self, request: Acquire) {
        let full = {
            let tables = self.0.tables.borrow();
            tables.pending.len() >= self.0.config.max_outstanding_requests
        };
        if full {
            self.0.tables.borrow_mut().in_line.push_back(request);
        } else {
            self.0.open(request);
        }
    }

    fn release(&self, block: BlockId, _mode: Mode) -> LocalFuture<()> {
        let (sender, receiver) = oneshot();
        self.0.tables.borrow_mut().releases.entry(block).or_default().push(sender);
        self.0.feed(|cores, out| cores.holder.release(block, out));
        Box::pin(async move {
            // The other end goes only with the whole of Cache Fusion.
            let _ = receiver.await;
        })
    }

    fn wrote(&self, block: BlockId, scn: Scn) {
        self.0.feed(|cores, out| cores.holder.wrote(block, scn, out));
    }

    fn request_write(&self, block: BlockId) {
        self.0.feed(|cores, out| cores.holder.want_written(block, out));
    }
}

impl Handler for Gcs {
    fn on_message(&self, from: NodeId, header: &Header, body: Body) {
        let (Some(kind), Some(mode)) = (Kind::from_wire(header.kind), mode_from_wire(header.mode)) else {
            return self.0.malformed(from, "a message about a block of a kind or mode that does not exist", header);
        };
        let message = Message {
            kind,
            flags: header.flags & FLAGS,
            mode,
            epoch: header.epoch,
            block: header.block,
            request: header.request,
            scn: Scn(header.argument),
        };
        if message.epoch != self.0.epoch() && kept(DesignRule::OlderEpochsDropped) {
            // The interconnect drops such messages, but it changes its epoch a moment later than this does.
            self.0.numbers.borrow_mut().other_epoch += 1;
            return;
        }
        self.0.numbers.borrow_mut().received[kind.index()] += 1;
        match (kind, body) {
            (Kind::Data, Body::Block(bytes)) => {
                if !self.0.take_in(from, &message, bytes) {
                    return self.0.malformed(from, "a block that nobody waits for", header);
                }
            }
            (Kind::Claims, Body::Bytes(bytes)) => {
                return match super::wire::decode(&bytes) {
                    Some(claims) => self.0.on_claims(from, &claims),
                    None => self.0.malformed(from, "claims that can't be read", header),
                };
            }
            (Kind::RemasterEntries, Body::Bytes(bytes)) => {
                if !self.0.on_entries(from, &message, &bytes) {
                    self.0.malformed(from, "entries of a directory that can't be read", header);
                }
                return;
            }
            (Kind::Load, Body::Empty) => return self.0.affinity.borrow_mut().heard_load(from, message.scn.0),
            (Kind::ClaimsEnd, Body::Empty) => return self.0.on_claims_end(from, message.scn.0),
            (Kind::FetchImage, Body::Empty) => return self.0.give_image(from, message.block),
            (Kind::Image, Body::Block(bytes)) => return self.0.image_came(message.block, Some(bytes)),
            (Kind::Image, Body::Empty) => return self.0.image_came(message.block, None),
            (Kind::Data | Kind::Claims | Kind::RemasterEntries, _) => {
                return self.0.malformed(from, "a message without the body that it needs", header);
            }
            (_, Body::Empty) => {
                if let Some(pending) = self.0.tables.borrow_mut().pending.get_mut(&message.block) {
                    pending.answered_by = from;
                }
            }
            (_, _) => return self.0.malformed(from, "a body on a message that has none", header),
        }
        self.0.hear(from, &message);
    }

    fn frame_for(&self, header: &Header) -> Option<IoBuf> {
        self.0.frame_for(header)
    }

    fn on_peer_down(&self, node: NodeId) {
        self.0.numbers.borrow_mut().peers_lost += 1;
        tracing::warn!(%node, "a node is lost: what it masters, holds or asked for waits for the next view");
    }
}
