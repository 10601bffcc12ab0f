//! What a shard's part of Cache Fusion looks like from outside, for checks of the whole: what it holds, and what the directory
//! that it masters says of others. A copy; made when asked for, bounded by cache and directory.

use std::collections::BTreeMap;

use super::MasterCore;
use super::rebuild::Claim;
use crate::cache::Mode;
use crate::fusion::NodeSet;
use crate::fusion::grd::{BlockMap, Bucket};
use crate::ids::{BlockId, Epoch, NodeId};

/// What a master knows of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// The block.
    pub block: BlockId,
    /// Who has a current copy.
    pub holders: NodeSet,
    /// The only one, in mode Exclusive.
    pub exclusive: Option<NodeId>,
    /// The holder of a Shared copy that has to write it.
    pub dirty_owner: Option<NodeId>,
    /// Who may keep past images.
    pub past_images: NodeSet,
    /// Nobody is being served or waits.
    pub idle: bool,
}

/// One shard at a moment.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The node.
    pub node: NodeId,
    /// Its view.
    pub epoch: Epoch,
    /// The buckets that have another master than the ring says, as it knows them.
    pub overrides: BTreeMap<Bucket, NodeId>,
    /// What it has.
    pub has: Vec<Claim>,
    /// What it masters, while its directory is known and no bucket is on its way to it or from it.
    pub masters: Option<Vec<Known>>,
    /// Frames of its cache that belong to nothing.
    pub frames_leaked: usize,
}

impl MasterCore {
    pub(super) fn known(&self) -> Option<Vec<Known>> {
        let known = |(block, entry): (BlockId, &super::directory::Entry)| Known {
            block,
            holders: entry.holders,
            exclusive: entry.exclusive(),
            dirty_owner: entry.dirty_owner(),
            past_images: entry.past_images,
            idle: entry.is_idle(),
        };
        (!self.is_rebuilding() && !self.is_remastering()).then(|| self.entries.iter().map(known).collect())
    }
}

/// What does not fit between the shards of the same number of all members, at a moment when nothing is under way: modes that
/// don't go together, two that have to write one block, a directory that says other than the caches, entries and frames that
/// nobody needs. Blocks that are being asked for right now are left out. `None`: they are not in one view, or one of them does
/// not know its directory at the moment.
#[must_use]
pub fn contradictions(shards: &[Inspection]) -> Option<Vec<String>> {
    let epoch = shards.first()?.epoch;
    if shards.iter().any(|shard| shard.epoch != epoch || shard.masters.is_none()) {
        return None;
    }
    let mut wrong = Vec::new();
    let first = &shards[0];
    for other in shards.iter().filter(|shard| shard.overrides != first.overrides) {
        let differs = |bucket: &&Bucket| first.overrides.get(*bucket) != other.overrides.get(*bucket);
        let bucket = first.overrides.keys().chain(other.overrides.keys()).find(differs).expect("they are not equal");
        wrong.push(format!("{} and {} take different nodes for the master of {bucket:?}", first.node, other.node));
    }
    let mut caches: BlockMap<Vec<(NodeId, Claim)>> = BlockMap::default();
    for shard in shards {
        for claim in &shard.has {
            caches.entry(claim.block).or_default().push((shard.node, *claim));
        }
        if shard.frames_leaked > 0 {
            wrong.push(format!("{}: {} frames of the cache belong to nothing", shard.node, shard.frames_leaked));
        }
    }
    let masters = shards.iter().flat_map(|shard| shard.masters.iter().flatten().map(|known| (shard.node, known)));
    for (master, known) in masters {
        let block = known.block;
        let have = caches.remove(&block).unwrap_or_default();
        if !known.idle {
            continue;
        }
        let of = |what: &dyn Fn(&Claim) -> bool| -> Vec<NodeId> {
            have.iter().filter(|(_, claim)| what(claim)).map(|(node, _)| *node).collect()
        };
        let held = of(&|claim| claim.mode != Mode::Null);
        let exclusive = of(&|claim| claim.mode == Mode::Exclusive);
        let dirty = of(&|claim| claim.mode != Mode::Null && claim.dirty);
        let images = of(&|claim| claim.past_image.is_some());
        if exclusive.len() > 1 || (exclusive.len() == 1 && held.len() > 1) {
            wrong.push(format!("{block}: {exclusive:?} have it Exclusive beside {held:?}"));
        }
        if dirty.len() > 1 {
            wrong.push(format!("{block}: {dirty:?} all have to write it (rule 6)"));
        }
        if known.holders.iter().collect::<Vec<_>>() != held || known.exclusive != exclusive.first().copied() {
            let (holders, owner) = (known.holders, known.exclusive);
            wrong.push(format!(
                "{block}: {master} takes {holders:?} for its holders, {owner:?} for the Exclusive one; it is held by {held:?}"
            ));
        }
        let owner = known.exclusive.or(known.dirty_owner);
        if dirty.first().is_some_and(|dirty| owner != Some(*dirty)) {
            wrong.push(format!("{block}: {dirty:?} has to write it, and {master} takes {owner:?} for its owner"));
        }
        if let Some(image) = images.iter().find(|node| !known.past_images.contains(**node)) {
            wrong.push(format!("{block}: {image} keeps a past image of which {master} does not know"));
        }
        if held.is_empty() && known.past_images.is_empty() {
            wrong.push(format!("{block}: {master} has an entry that nobody needs"));
        }
    }
    let unknown = caches.into_iter().map(|(block, have)| format!("{block}: no master knows that {have:?} have it"));
    wrong.extend(unknown);
    wrong.sort();
    Some(wrong)
}
