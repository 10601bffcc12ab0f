//! Changes of the view: leaving an epoch, claiming in the next what is held, taking the claims of others.
//!
//! Owned by the shard. Bounded: the claims are a copy of 40 bytes a block that the cache has; what waits to be sent of
//! them is held below [`CLAIMS_QUEUED_MAX`] a peer. Promises that nothing is said between leaving an epoch and going on
//! in the next, and that the claims are the state of one moment.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::recover::Recovery;
use super::{Gcs, Inner};
use crate::cache::{Cache, Mode};
use crate::fusion::gcs::message::{Kind, Message};
use crate::fusion::gcs::{Claim, Inspection, wire};
use crate::fusion::grd::MastershipMap;
use crate::fusion::recovery::RecoveryFault;
use crate::ids::{BlockId, NodeId, Scn};
use crate::interconnect::Body;
use crate::reactor::{Class, FileId};
use crate::volume::RedoArea;

/// Bytes that wait for a peer beyond which no more claims are queued.
const CLAIMS_QUEUED_MAX: usize = 8 << 20;

/// How long to wait then.
const CLAIMS_PAUSE: Duration = Duration::from_millis(1);

/// What the recovery that a view began with is at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum RecoveryPhase {
    /// Nothing is left to be done.
    #[default]
    Idle,
    /// The members have yet to say what they hold.
    Claims,
    /// The lost nodes' redo is being read.
    ReadingRedo,
    /// Blocks that have lost their owner are being made anew; all others are served.
    Blocks,
    /// The blocks of the lost nodes' redo that survivors own are being written, so that the redo can be given up.
    Writing,
}

impl RecoveryPhase {
    /// For tables.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            RecoveryPhase::Idle => "done",
            RecoveryPhase::Claims => "claims",
            RecoveryPhase::ReadingRedo => "reading redo",
            RecoveryPhase::Blocks => "blocks",
            RecoveryPhase::Writing => "writing",
        }
    }
}

/// How far the recovery of lost nodes is, in one shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RecoveryProgress {
    /// What is being done.
    pub phase: RecoveryPhase,
    /// Blocks made anew.
    pub blocks_done: u64,
    /// Blocks to be made anew, as far as is known.
    pub blocks_total: u64,
    /// Redo groups found in the lost nodes' logs.
    pub redo_groups: u64,
    /// Microseconds from the beginning until all claims were here, once they are.
    pub claims_us: Option<u64>,
    /// Microseconds from the beginning until the lost redo was read, once it is.
    pub pass1_us: Option<u64>,
    /// Microseconds from the directory's completion until all blocks were made anew, once they are.
    pub pass2_us: Option<u64>,
    /// Microseconds from the beginning until the lost redo was not needed any more, once it is not.
    pub total_us: Option<u64>,
}

impl Gcs {
    /// Leaves the former epoch for that of `map`: nothing is sent and nothing taken in any more, until [`Gcs::go`].
    /// Resolves when no write that this shard's recovery had under way can still reach the volume. The caller changes the
    /// interconnect's epoch right after it. May be called again at any time, for a newer epoch.
    ///
    /// # Panics
    /// When the epoch is not newer, or this node not a member.
    pub async fn enter(&self, map: Rc<MastershipMap>) {
        self.0.leave(map);
        loop {
            let moved = self.0.recovery_moved.notified();
            if self.0.recovery_writes.get() == 0 {
                return;
            }
            moved.await;
        }
    }

    /// All members have entered: tells the masters what is held here, asks again for what is open, and begins to recover
    /// what has lost its owner. `lost` are the redo areas, of this shard, of all nodes that are not recovered yet; `file`
    /// is the volume. Returns at once; [`Gcs::recovered`] tells the end.
    ///
    /// # Panics
    /// When the epoch has not been entered, by this and by the interconnect, or this has been called for it.
    pub fn go(&self, lost: Vec<RedoArea>, file: FileId) {
        let inner = &self.0;
        assert_eq!(inner.interconnect.epoch(), inner.epoch(), "the interconnect is in another epoch");
        assert!(inner.cores.borrow().holder.is_silent(), "{} went on in {} before", inner.node, inner.epoch());
        let recovery = Rc::new(Recovery::new(file, inner.reactor.now()));
        *inner.recovery.borrow_mut() = Some(recovery.clone());
        inner.claim(&recovery);
        inner.feed(|cores, out| cores.holder.go(out));
        let this = self.0.clone();
        inner.reactor.spawn(Class::Critical, "recover lost blocks", async move { this.run_recovery(recovery, lost).await });
    }

    /// Resolves when nobody will need the redo of the lost nodes on account of the blocks that this shard masters: the
    /// directory is known, every version that the redo leads to is on the volume, durably. A view that is entered
    /// meanwhile is waited for as well. Never resolves before the first [`Gcs::go`].
    ///
    /// # Errors
    /// When blocks can't be recovered. They stay locked; the node has to end.
    pub async fn recovered(&self) -> Result<(), RecoveryFault> {
        loop {
            let moved = self.0.recovery_moved.notified();
            let outcome = self.0.recovery.borrow().as_ref().and_then(|recovery| recovery.outcome());
            if let Some(outcome) = outcome {
                return outcome;
            }
            moved.await;
        }
    }

    /// What the recovery is at.
    #[must_use]
    pub fn recovery_progress(&self) -> RecoveryProgress {
        let cores = self.0.cores.borrow();
        let recovery = self.0.recovery.borrow();
        let Some(recovery) = &*recovery else {
            let phase = if cores.holder.is_silent() { RecoveryPhase::Claims } else { RecoveryPhase::Idle };
            return RecoveryProgress { phase, ..RecoveryProgress::default() };
        };
        recovery.progress(cores.master.is_rebuilding(), cores.master.has_all_claims())
    }
}

impl Gcs {
    /// What it holds and what its directory says, now.
    #[must_use]
    pub fn inspect(&self) -> Inspection {
        let inner = &self.0;
        Inspection {
            node: inner.node,
            epoch: inner.epoch(),
            overrides: inner.map.borrow().overrides().clone(),
            has: inner.claims(),
            masters: inner.cores.borrow().master.known(),
            frames_leaked: inner.cache().map_or(0, |cache| cache.frames_leaked()),
        }
    }
}

impl Inner {
    fn leave(&self, map: Rc<MastershipMap>) {
        assert!(!self.working.get(), "a view is entered from within Cache Fusion's own work");
        assert!(map.members().contains(&self.node), "{} enters {map:?} without being a member", self.node);
        if let Some(recovery) = self.recovery.borrow_mut().take() {
            recovery.end();
        }
        self.tables.borrow_mut().fetching.clear();
        let before = self.map.replace(map.clone());
        self.affinity.borrow_mut().enter(&before, &map);
        self.numbers.borrow_mut().views += 1;
        self.feed(|cores, out| {
            cores.master.enter(map.clone());
            cores.holder.enter(map, out);
        });
        // Who was told to write into the frames of the former epoch may still do it: the interconnect keeps them until nobody can.
        self.interconnect.abandon_frames();
        self.void_receives();
        self.recovery_moved.notify_all();
    }

    /// A block of the former epoch may be on its way into a frame that a request has reserved, for as long as its sender
    /// pleases. The answer of the new epoch must not meet it: such requests are asked anew, for other frames.
    fn void_receives(&self) {
        let Some(cache) = self.cache() else { return };
        let mut receiving = Vec::new();
        for (&block, pending) in &mut self.tables.borrow_mut().pending {
            if std::mem::take(&mut pending.in_place) && cache.is_receiving(block) {
                receiving.push(block);
            }
        }
        for block in receiving {
            let (pending, next) = {
                let mut tables = self.tables.borrow_mut();
                (tables.pending.remove(&block).expect("listed above"), tables.in_line.pop_front())
            };
            self.cores.borrow_mut().holder.abandon(block);
            pending.acquire.again();
            next.into_iter().for_each(|next| self.open(next));
        }
    }

    /// Tells each master what this node has of its blocks, at this moment.
    fn claim(&self, recovery: &Rc<Recovery>) {
        let map = self.map.borrow().clone();
        let mut claims: BTreeMap<NodeId, Vec<Claim>> = map.members().iter().map(|&member| (member, Vec::new())).collect();
        for claim in self.claims() {
            claims.get_mut(&map.master(claim.block)).expect("masters are members").push(claim);
        }
        for (to, claims) in claims {
            if to == self.node {
                self.on_claims(to, &claims);
                self.on_claims_end(to, claims.len() as u64);
                continue;
            }
            let this = self.this.clone();
            let (recovery, reactor) = (recovery.clone(), self.reactor.clone());
            self.reactor.spawn(Class::Critical, "claim blocks", async move {
                for batch in claims.chunks(wire::CLAIMS_PER_MESSAGE) {
                    while this.upgrade().is_some_and(|inner| inner.interconnect.queued_bytes(to) > CLAIMS_QUEUED_MAX) {
                        reactor.sleep(CLAIMS_PAUSE).await;
                    }
                    let Some(inner) = this.upgrade().filter(|_| !recovery.has_ended()) else { return };
                    inner.numbers.borrow_mut().claims_sent += batch.len() as u64;
                    let message = inner.about_all(Kind::Claims, 0);
                    inner.send(to, &message, Body::Bytes(wire::encode(batch)));
                }
                if let Some(inner) = this.upgrade().filter(|_| !recovery.has_ended()) {
                    inner.send(to, &inner.about_all(Kind::ClaimsEnd, claims.len() as u64), Body::Empty);
                }
            });
        }
    }

    fn claims(&self) -> Vec<Claim> {
        let Some(cache) = self.cache() else { return Vec::new() };
        let cores = self.cores.borrow();
        let held = cores.holder.held().filter(|(_, mode)| *mode != Mode::Null);
        let mut claims: Vec<Claim> = held.map(|(block, mode)| claim_of(&cache, block, mode)).collect();
        // The cache's word counts for past images: it keeps one until the master has said that it may go, also where the
        // newer version was written from here.
        let images = cache.past_images().into_iter();
        claims.extend(images.filter(|(block, _)| cores.holder.mode(*block) == Mode::Null).map(|(block, scn)| Claim {
            block,
            mode: Mode::Null,
            dirty: false,
            scn: Scn::ZERO,
            disk_scn: Scn::ZERO,
            past_image: Some(scn),
        }));
        claims
    }

    /// A message that is about no block in particular.
    fn about_all(&self, kind: Kind, number: u64) -> Message {
        Message { scn: Scn(number), ..super::super::master::bare(self.epoch(), kind, BlockId::default()) }
    }

    pub(super) fn on_claims(&self, from: NodeId, claims: &[Claim]) {
        let epoch = self.epoch();
        if from != self.node {
            self.numbers.borrow_mut().claims_received += claims.len() as u64;
        }
        self.feed(|cores, out| {
            for claim in claims {
                cores.master.on_claim(from, epoch, claim, out);
            }
        });
        self.note_claims();
    }

    pub(super) fn on_claims_end(&self, from: NodeId, count: u64) {
        let epoch = self.epoch();
        self.feed(|cores, out| cores.master.on_claims_end(from, epoch, count, out));
        self.note_claims();
    }

    /// Looks whether the directory is known now.
    pub(super) fn note_claims(&self) {
        let (all, rebuilding) = {
            let master = &self.cores.borrow().master;
            (master.has_all_claims(), master.is_rebuilding())
        };
        if let (true, Some(recovery)) = (all, &*self.recovery.borrow()) {
            recovery.note_claims(self.reactor.now(), rebuilding);
            self.recovery_moved.notify_all();
        }
    }
}

fn claim_of(cache: &Cache, block: BlockId, mode: Mode) -> Claim {
    let standing = cache.standing(block).unwrap_or_else(|| panic!("{block} is held in {mode:?}, and the cache has nothing"));
    let past_image = cache.past_image(block);
    Claim { block, mode, dirty: standing.dirty, scn: standing.scn, disk_scn: standing.disk_scn, past_image }
}
