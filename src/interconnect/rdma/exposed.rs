//! Which frames other nodes may write into, and when such a frame may find another use: the rule of frames (docs/rdma.md).
//!
//! A state machine without I/O, owned by one shard. A frame is *exposed* for one request, in one epoch. The answer to the
//! request ends that: the master sends one answer, and whoever was to write has written before his answer came (same queue
//! pair), or has said that he will not. Only a change of the epoch leaves requests without an answer; then nobody knows who was
//! told to write. Such frames are in *quarantine*, and so is their memory, until nobody can write any more: until every lane
//! has brought word from a later epoch than that of the request, or is destroyed. A sender posts a write only for a message of the epoch
//! that it is in at that moment, and a queue pair carries everything in order: what comes after word of a later epoch
//! writes into no frame of the former one.
//!
//! A lane that is made later counts too, unless its sender was told, when it was made, not to write for that epoch any more
//! (its *floor*). A lane that brings no such word for too long is ended by whoever owns it ([`ExposedFrames::kept_since`]). Bounds: [`EXPOSED_MAX`] frames, exposed and in quarantine together; more requests are answered by messages
//! with the block in them.

use std::collections::HashMap;

use crate::ids::{Epoch, NodeId, RequestId};
use crate::reactor::{Instant, IoBuf};
use crate::rules::{DesignRule, kept};

use super::stream::Generation;

/// Most frames that others may write into at a time.
pub const EXPOSED_MAX: usize = 4096;

struct Exposed {
    epoch: Epoch,
    frame: IoBuf,
}

/// A frame whose request will have no answer.
struct Abandoned {
    epoch: Epoch,
    frame: IoBuf,
    since: Instant,
}

struct Open {
    node: NodeId,
    generation: Generation,
    /// Nothing of an earlier epoch is written by it any more: the floor, or the latest epoch that it has brought word of.
    heard: Epoch,
}

/// See the module.
#[derive(Default)]
pub struct ExposedFrames {
    live: HashMap<RequestId, Exposed>,
    /// In the order in which they came.
    quarantine: Vec<Abandoned>,
    lanes: Vec<Open>,
}

impl ExposedFrames {
    /// Exposes a frame for a request of `epoch`. Gives it back where there are too many.
    pub fn expose(&mut self, request: RequestId, epoch: Epoch, frame: IoBuf) -> Result<(), IoBuf> {
        if self.live.len() + self.quarantine.len() >= EXPOSED_MAX {
            return Err(frame);
        }
        let before = self.live.insert(request, Exposed { epoch, frame });
        assert!(before.is_none(), "{request} has two frames");
        Ok(())
    }

    /// The request is answered: its frame, if it has one.
    pub fn take(&mut self, request: RequestId) -> Option<IoBuf> {
        self.live.remove(&request).map(|exposed| exposed.frame)
    }

    /// Whether the request has a frame.
    pub fn has(&self, request: RequestId) -> bool {
        self.live.contains_key(&request)
    }

    /// None of the requests of now will be answered: their epoch is over. Gives back what nobody can write into.
    pub fn abandon(&mut self, now: Instant) -> Vec<IoBuf> {
        let abandoned = |(_, Exposed { epoch, frame })| Abandoned { epoch, frame, since: now };
        self.quarantine.extend(self.live.drain().map(abandoned));
        self.free()
    }

    /// A lane is about to be offered, or accepted, whose other end is told not to write for epochs before `floor`.
    pub fn lane_opens(&mut self, node: NodeId, generation: Generation, floor: Epoch) {
        assert!(!self.lanes.iter().any(|lane| lane.node == node), "{node} has two lanes");
        self.lanes.push(Open { node, generation, heard: floor });
    }

    /// Lanes that there are, or will be at once.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// A message of this epoch has come by the lane.
    pub fn lane_heard(&mut self, node: NodeId, epoch: Epoch) -> Vec<IoBuf> {
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.node == node) else { return Vec::new() };
        if epoch <= lane.heard {
            return Vec::new();
        }
        lane.heard = epoch;
        self.free()
    }

    /// This side's end of the lane is destroyed: nothing can be written by it any more.
    pub fn lane_is_gone(&mut self, node: NodeId, generation: Generation) -> Vec<IoBuf> {
        self.lanes.retain(|lane| (lane.node, lane.generation) != (node, generation));
        self.free()
    }

    /// Takes out of quarantine what nobody can write into.
    fn free(&mut self) -> Vec<IoBuf> {
        let lowest = self.lanes.iter().map(|lane| lane.heard).min();
        let is_free = |abandoned: &Abandoned| match lowest {
            Some(heard) => heard > abandoned.epoch || !kept(DesignRule::AbandonedFramesQuarantined),
            None => true,
        };
        let (free, still) = std::mem::take(&mut self.quarantine).into_iter().partition(is_free);
        self.quarantine = still;
        let free: Vec<Abandoned> = free;
        free.into_iter().map(|abandoned| abandoned.frame).collect()
    }

    /// Since when the lane to this node alone would keep a frame in quarantine.
    #[must_use]
    pub fn kept_since(&self, node: NodeId) -> Option<Instant> {
        let lane = self.lanes.iter().find(|lane| lane.node == node)?;
        self.quarantine.iter().find(|abandoned| lane.heard <= abandoned.epoch).map(|abandoned| abandoned.since)
    }

    /// Frames exposed now, and in quarantine.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.live.len(), self.quarantine.len())
    }

    /// Everything goes: every lane is destroyed.
    pub fn clear(&mut self) {
        assert!(self.lanes.is_empty(), "frames are given up while they can still be written into");
        self.live.clear();
        self.quarantine.clear();
    }
}
