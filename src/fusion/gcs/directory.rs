//! What a master remembers of a block: the directory's entry, and the activity around it while somebody waits.
//!
//! Owned by the [`super::MasterCore`] of one shard. An entry exists only while the block is cached somewhere (or a past
//! image of it is kept), so the directory is bounded by the caches; an activity exists only while a transition is in
//! flight, so there are at most as many as open requests. Activities are recycled with their buffers.

mod entries;

use std::collections::VecDeque;

pub(super) use self::entries::Entries;

use crate::cache::Mode;
use crate::fusion::NodeSet;
use crate::ids::{NodeId, RequestId, Scn};

/// An entry that is in no activity.
const IDLE: u32 = u32::MAX;

/// A block that is cached somewhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Entry {
    /// Who has a current copy, the Exclusive holder included.
    pub(super) holders: NodeSet,
    /// Who may keep a past image. May name nodes that have none any more; never misses one that has.
    pub(super) past_images: NodeSet,
    /// The newest version known to be on stable storage.
    pub(super) disk_scn: Scn,
    /// The version that `dirty_owner` has to write.
    pub(super) dirty_scn: Scn,
    /// No past image is newer than this.
    pub(super) past_image_scn: Scn,
    activity: u32,
    exclusive: NodeId,
    dirty_owner: NodeId,
    /// A keeper of a past image waits for a write; asked of the owner again after each transition.
    pub(super) write_wanted: bool,
    /// Of [`Entries`]: its place is taken. Here because it costs no byte.
    in_use: bool,
}

impl Default for Entry {
    fn default() -> Entry {
        Entry {
            holders: NodeSet::EMPTY,
            past_images: NodeSet::EMPTY,
            disk_scn: Scn::ZERO,
            dirty_scn: Scn::ZERO,
            past_image_scn: Scn::ZERO,
            activity: IDLE,
            exclusive: NodeId(0),
            dirty_owner: NodeId(0),
            write_wanted: false,
            in_use: false,
        }
    }
}

impl Entry {
    /// The only holder, if it holds Exclusive. It owns the block, dirty or not.
    pub(super) fn exclusive(&self) -> Option<NodeId> {
        (self.exclusive.0 != 0).then_some(self.exclusive)
    }

    pub(super) fn set_exclusive(&mut self, node: Option<NodeId>) {
        self.exclusive = node.unwrap_or_default();
    }

    /// The holder of a Shared copy newer than the disk that has to write it: the Exclusive holder of before (rule 6).
    pub(super) fn dirty_owner(&self) -> Option<NodeId> {
        (self.dirty_owner.0 != 0).then_some(self.dirty_owner)
    }

    pub(super) fn set_dirty_owner(&mut self, node: Option<NodeId>) {
        self.dirty_owner = node.unwrap_or_default();
    }

    /// Who writes the block if it needs writing.
    pub(super) fn owner(&self) -> Option<NodeId> {
        self.exclusive().or(self.dirty_owner())
    }

    /// `node` has its copy no more.
    pub(super) fn forget_holder(&mut self, node: NodeId) {
        self.holders.remove(node);
        if self.exclusive == node {
            self.exclusive = NodeId(0);
        }
        if self.dirty_owner == node {
            self.dirty_owner = NodeId(0);
        }
    }

    /// Whether nothing is known of the block that anybody needs.
    pub(super) fn is_vacant(&self) -> bool {
        self.activity == IDLE && self.holders.is_empty() && self.past_images.is_empty()
    }

    /// Becomes what another master's directory said.
    pub(super) fn take_over(&mut self, entry: &Entry) {
        assert!(self.is_idle() && self.is_vacant(), "{entry:?} is handed over to where {self:?} is");
        *self = Entry { activity: IDLE, in_use: true, ..*entry };
    }

    /// Whether its holders may be asked to give it up: nothing is under way, and nobody is known to have to write it. An
    /// Exclusive holder may have changed it meanwhile; then it keeps it.
    pub(super) fn may_be_recalled(&self) -> bool {
        self.is_idle() && !self.holders.is_empty() && self.dirty_owner().is_none() && self.past_images.is_empty()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.activity == IDLE
    }

    pub(super) fn activity(&self) -> Option<u32> {
        (self.activity != IDLE).then_some(self.activity)
    }
}

#[cfg(test)]
impl Entry {
    /// The entry without the number of its activity, which is chance.
    pub(super) fn fingerprint(&self) -> Entry {
        Entry { activity: IDLE, ..*self }
    }
}

/// A request that waits for its turn.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Waiter {
    pub(super) request: RequestId,
    /// Where the block may be written to, as the request said.
    pub(super) place: Scn,
    pub(super) mode: Mode,
}

/// Where a leg's requester gets the block from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum LegSource {
    /// Not decided: sharers are giving their copies up.
    Undecided,
    /// Forwarded to this holder.
    Holder(NodeId),
    /// Read from the disk.
    Disk,
    /// The requester's own Shared copy.
    Held,
}

/// One request that is being served.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Leg {
    pub(super) request: RequestId,
    /// Where the block may be written to, as the request said.
    pub(super) place: Scn,
    pub(super) source: LegSource,
    /// The requester's Drop has overtaken its Done.
    pub(super) dropped: bool,
}

/// The one transition of a block that is in flight: one Exclusive request, or any number of Shared ones, or a recall.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) enum Transition {
    #[default]
    None,
    Shared,
    Exclusive,
    /// Every holder is asked to give its copy up, so that the entry can go.
    Recall,
    /// Nobody gets the block before its newest version is on the disk: its owner was lost.
    Recover,
}

/// What goes on around a block.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Activity {
    pub(super) transition: Transition,
    /// The requests being served. One an outstanding Done.
    pub(super) legs: Vec<Leg>,
    /// Sharers that have yet to acknowledge an Invalidate.
    pub(super) awaiting: NodeSet,
    /// The owner became a past image by an Invalidate, at this version: the requester will be the owner.
    pub(super) inherited: Option<Scn>,
    /// First come, first served; at most one of each node.
    pub(super) waiters: VecDeque<Waiter>,
}

impl Activity {
    pub(super) fn leg_of(&self, request: RequestId) -> Option<usize> {
        self.legs.iter().position(|leg| leg.request == request)
    }

    pub(super) fn is_over(&self) -> bool {
        self.legs.is_empty() && self.awaiting.is_empty() && !self.is_recovering()
    }
}

/// The activities, with the buffers of former ones kept for the next.
#[derive(Clone, Default)]
pub(super) struct Activities {
    slots: Vec<Activity>,
    free: Vec<u32>,
}

impl Activities {
    /// The activity of `entry`, begun if there is none.
    pub(super) fn open(&mut self, entry: &mut Entry) -> &mut Activity {
        if entry.activity == IDLE {
            entry.activity = self.free.pop().unwrap_or_else(|| {
                self.slots.push(Activity::default());
                u32::try_from(self.slots.len() - 1).expect("activities are bounded by open requests")
            });
        }
        &mut self.slots[entry.activity as usize]
    }

    /// The activity of `entry`, if there is one.
    pub(super) fn get(&self, entry: &Entry) -> Option<&Activity> {
        entry.activity().map(|index| &self.slots[index as usize])
    }

    /// The same, to change it.
    pub(super) fn get_mut(&mut self, entry: &Entry) -> Option<&mut Activity> {
        entry.activity().map(|index| &mut self.slots[index as usize])
    }

    /// Ends the activity of `entry`.
    pub(super) fn close(&mut self, entry: &mut Entry) {
        let index = entry.activity().expect("only an open activity is closed");
        let activity = &mut self.slots[index as usize];
        assert!(activity.is_over() && activity.waiters.is_empty(), "an activity ends with work left: {activity:?}");
        activity.transition = Transition::None;
        activity.inherited = None;
        entry.activity = IDLE;
        self.free.push(index);
    }

    /// How many are open.
    pub(super) fn open_count(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
