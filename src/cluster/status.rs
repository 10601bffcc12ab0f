//! How a node is, for its supervisor, its health page and its programs.
//!
//! Shared between the node's threads and whoever asks; a lock that is held only to copy a few words. Never on a hot path.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use super::control::ControlStatus;
use crate::fusion::gcs::{RecoveryPhase, RecoveryProgress};
use crate::ids::{Epoch, Incarnation, NodeId};
use crate::volume::Roster;

/// The stages of a node's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Opening the volume, connecting to the other nodes.
    Starting,
    /// The coordinator replays the redo.
    Recovering,
    /// Serves.
    Open,
    /// Was told to stop, writes its blocks.
    Stopping,
    /// Has stopped cleanly.
    Stopped,
    /// It reaches too few of the others: answers nobody, and goes on by itself when it reaches them again.
    Suspended,
    /// The cluster goes on without this life of the node; the words say why. Its next life joins again.
    Over(String),
    /// The node is none of the cluster's, or no more; the words say what to do. Starting it again won't help.
    Removed(String),
    /// Can't go on; the words are for the operator.
    Failed(String),
}

impl Phase {
    /// Whether the node's threads are ending or have ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self, Phase::Stopped | Phase::Over(_) | Phase::Removed(_) | Phase::Failed(_))
    }

    /// One word for health checks.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Recovering => "recovering",
            Phase::Open => "healthy",
            Phase::Stopping => "stopping",
            Phase::Stopped => "stopped",
            Phase::Suspended => "suspended",
            Phase::Over(_) | Phase::Removed(_) | Phase::Failed(_) => "failed",
        }
    }
}

/// Which life of which cluster it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The volume's.
    pub cluster_id: u128,
    /// This life of the node.
    pub incarnation: Incarnation,
}

/// A node's state at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// From the moment on at which the node has opened the volume.
    pub identity: Option<Identity>,
    /// Where in its life it is.
    pub phase: Phase,
    /// What it waits for, or how far it is.
    pub detail: String,
    /// The membership's generation; 0 before the cluster has formed.
    pub epoch: Epoch,
    /// Who is in it.
    pub members: Vec<NodeId>,
    /// The cluster's nodes, as far as this one knows; empty until it has read the volume.
    pub roster: Roster,
    /// The recovery of lost nodes, while it is under way.
    pub recovery: Option<RecoveryStatus>,
    /// How long the parts of the last one took that this life of the node has seen to its end.
    pub last_recovery: Option<RecoveryTimes>,
    /// How the control group stands, from the first view on.
    pub control: Option<ControlStatus>,
}

/// How long this node's part of a recovery took, in microseconds from the `go` of its view; of the slowest shard each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RecoveryTimes {
    /// Until all members had said what they have.
    pub claims_us: u64,
    /// Until the lost nodes' redo was read (pass 1).
    pub pass1_us: u64,
    /// From both to the last block made anew (pass 2).
    pub pass2_us: u64,
    /// Until nothing needed the lost redo any more.
    pub total_us: u64,
    /// Blocks made anew.
    pub blocks: u64,
}

impl RecoveryTimes {
    /// Of all shards together.
    #[must_use]
    pub fn of(shards: impl Iterator<Item = RecoveryProgress>) -> RecoveryTimes {
        shards.fold(RecoveryTimes::default(), |all, shard| RecoveryTimes {
            claims_us: all.claims_us.max(shard.claims_us.unwrap_or(0)),
            pass1_us: all.pass1_us.max(shard.pass1_us.unwrap_or(0)),
            pass2_us: all.pass2_us.max(shard.pass2_us.unwrap_or(0)),
            total_us: all.total_us.max(shard.total_us.unwrap_or(0)),
            blocks: all.blocks + shard.blocks_total,
        })
    }
}

/// How far this node's part of the recovery of lost nodes is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryStatus {
    /// Whose redo it is.
    pub lost: Vec<NodeId>,
    /// What the shard that is furthest behind does.
    pub phase: RecoveryPhase,
    /// Blocks mastered here that are recovered, over all shards.
    pub blocks_done: u64,
    /// Of these.
    pub blocks_total: u64,
}

impl RecoveryStatus {
    /// Of all shards together.
    #[must_use]
    pub fn of(lost: &[NodeId], shards: impl Iterator<Item = RecoveryProgress>) -> RecoveryStatus {
        let mut all = RecoveryStatus { lost: lost.to_vec(), phase: RecoveryPhase::Idle, blocks_done: 0, blocks_total: 0 };
        for shard in shards {
            // Idle comes first of the phases and means that the shard is done.
            if shard.phase != RecoveryPhase::Idle && (all.phase == RecoveryPhase::Idle || shard.phase < all.phase) {
                all.phase = shard.phase;
            }
            all.blocks_done += shard.blocks_done;
            all.blocks_total += shard.blocks_total;
        }
        all
    }
}

/// Handle to a node's state; clones share it.
#[derive(Clone)]
pub struct Status(Arc<Shared>);

struct Shared {
    state: Mutex<Snapshot>,
    changed: Condvar,
    /// Tasks that wait for another phase, on whichever runtimes; each registers anew when it looks again.
    waiting: Mutex<Vec<Waker>>,
}

impl Default for Status {
    fn default() -> Status {
        let state = Snapshot {
            identity: None,
            phase: Phase::Starting,
            detail: "opens the volume".into(),
            epoch: Epoch(0),
            members: Vec::new(),
            roster: Roster::default(),
            recovery: None,
            last_recovery: None,
            control: None,
        };
        Status(Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), waiting: Mutex::default() }))
    }
}

impl Status {
    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state now.
    #[must_use]
    pub fn get(&self) -> Snapshot {
        self.lock().clone()
    }

    /// Enters a phase. The first end of a life is the one that is kept.
    pub fn enter(&self, phase: Phase, detail: impl Into<String>) {
        let mut state = self.lock();
        if !state.phase.is_over() {
            state.phase = phase;
            state.detail = detail.into();
        }
        drop(state);
        self.0.changed.notify_all();
        let waiting = std::mem::take(&mut *self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Says what the node waits for, in the same phase.
    pub fn detail(&self, detail: impl Into<String>) {
        self.lock().detail = detail.into();
    }

    /// Notes which life it is.
    pub fn identity(&self, identity: Identity) {
        self.lock().identity = Some(identity);
    }

    /// Notes the view.
    pub fn view(&self, epoch: Epoch, members: Vec<NodeId>) {
        let mut state = self.lock();
        state.epoch = epoch;
        state.members = members;
    }

    /// Notes the cluster's nodes.
    pub fn roster(&self, roster: Roster) {
        self.lock().roster = roster;
    }

    /// Notes how far the recovery of lost nodes is; `None` when there is none under way.
    pub fn recovery(&self, recovery: Option<RecoveryStatus>) {
        self.lock().recovery = recovery;
    }

    /// A recovery is over on this node; so long did it take.
    pub fn recovered(&self, times: RecoveryTimes) {
        let mut state = self.lock();
        (state.recovery, state.last_recovery) = (None, Some(times));
    }

    /// Notes how the control group stands.
    pub fn control(&self, control: ControlStatus) {
        self.lock().control = Some(control);
    }

    /// Resolves when `until` holds for the phase, with the state then. Of no runtime; costs nothing while it waits.
    pub async fn when(&self, until: impl Fn(&Phase) -> bool) -> Snapshot {
        std::future::poll_fn(|context| {
            let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let now = self.get();
            if until(&now.phase) {
                return Poll::Ready(now);
            }
            if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// Waits until `until` holds or the time is over; the state then.
    pub fn wait(&self, patience: Duration, until: impl Fn(&Phase) -> bool) -> Snapshot {
        let state = self.lock();
        let waited = self.0.changed.wait_timeout_while(state, patience, |state| !until(&state.phase));
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}
