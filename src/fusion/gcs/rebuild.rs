//! The directory after a change of the membership: thrown away, and rebuilt from what the members say that they have.
//!
//! A message of the former epoch is dropped wherever it arrives (rule 3), so nothing that was in flight can be relied on:
//! a block may have left its holder and not reached its requester, an owner may have become a past image and its heir
//! never have heard of it. What the members *have* is the truth. Each tells the new masters, block by block
//! ([`Claim`]); beside it each master is told which blocks the redo of the lost nodes has changed. With both at hand
//! it knows of every block who owns it, or that nobody does: then its newest version is made of the newest past image (or
//! the disk) and the lost nodes' redo, and written, before anyone gets it ([`Output::Recover`]). All other blocks are served
//! at once.
//!
//! Why past images and the disk are enough to start from: a version that is not on the disk is covered, step by step, by the
//! redo of those who made it. Where one of them lives, it has given the block away since, and keeps the past image until
//! a newer version is on the disk (rules 6 and 7). Where it is lost, its redo was durable before the block left it (rule 1).
//!
//! Owned by the shard of its [`MasterCore`]; bounded by what the members' caches hold.

use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;

use super::directory::{Activity, Entries, Entry, Transition};
use super::master::{MasterCore, bare};
use super::message::{Kind, Message};
use super::output::Output;
use super::remaster::Moves;
use super::rules::Rule;
use crate::cache::Mode;
use crate::fusion::NodeSet;
use crate::fusion::grd::{BlockMap, MastershipMap};
use crate::ids::{BlockId, Epoch, NodeId, Scn};

/// What a member says that it has of one block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Claim {
    /// The block.
    pub block: BlockId,
    /// Null where there is only a past image.
    pub mode: Mode,
    /// Its copy is newer than the disk, and it is the one that has to write it.
    pub dirty: bool,
    /// Version of its copy; zero while that is being read from the disk.
    pub scn: Scn,
    /// The newest version that it knows to be on the disk.
    pub disk_scn: Scn,
    /// Version of the past image that it keeps.
    pub past_image: Option<Scn>,
}

/// A directory that is being rebuilt.
#[derive(Clone, Default, Debug)]
pub(super) struct Rebuild {
    /// Of each member: how many claims it has sent here, once it has said so, and how many have come.
    pub(super) claims: BTreeMap<NodeId, (Option<u64>, u64)>,
    /// Copies whose Drop has overtaken their claim.
    pub(super) dropped: HashSet<(BlockId, NodeId)>,
    /// The newest past image of each block that has any.
    pub(super) past_images: BlockMap<(Scn, NodeId)>,
    /// The blocks that the lost nodes' redo has changed, and up to which version; `None` until that redo has been read.
    pub(super) lost: Option<Vec<(BlockId, Scn)>>,
}

impl Rebuild {
    fn has_all_claims(&self) -> bool {
        self.claims.values().all(|(sent, come)| *sent == Some(*come))
    }

    fn is_complete(&self) -> bool {
        self.lost.is_some() && self.has_all_claims()
    }
}

impl MasterCore {
    /// Enters the epoch of `map`: forgets the directory and everything in flight, and waits for the claims of its members
    /// (this node among them) and for [`MasterCore::on_redo_read`]. Requests that come meanwhile wait.
    pub fn enter(&mut self, map: Rc<MastershipMap>) {
        let epoch = map.epoch();
        assert!(epoch > self.epoch, "from {} back to {epoch}", self.epoch);
        assert!(map.members().contains(&self.node), "{} enters {epoch} without being a member of it", self.node);
        self.epoch = epoch;
        self.map = map;
        self.moves = Moves::default();
        self.entries = Entries::default();
        self.activities = super::directory::Activities::default();
        self.unwritten = BlockMap::default();
        self.begin_rebuild();
    }

    pub(super) fn begin_rebuild(&mut self) {
        let claims = self.map.members().iter().map(|&member| (member, (None, 0))).collect();
        self.rebuild = Some(Box::new(Rebuild { claims, ..Rebuild::default() }));
    }

    /// Whether requests wait until the directory has been rebuilt.
    #[must_use]
    pub fn is_rebuilding(&self) -> bool {
        self.rebuild.is_some()
    }

    /// Whether every member has said all that it has here.
    #[must_use]
    pub fn has_all_claims(&self) -> bool {
        self.rebuild.as_ref().is_none_or(|rebuild| rebuild.has_all_claims())
    }

    /// Takes what `from` says that it has of a block.
    pub fn on_claim(&mut self, from: NodeId, epoch: Epoch, claim: &Claim, out: &mut Vec<Output>) {
        if epoch != self.epoch {
            self.counters.other_epoch_total += 1;
            return;
        }
        let rebuild = self.rebuild.as_mut().expect("a claim of this epoch comes while its directory is rebuilt");
        let (sent, come) = rebuild.claims.get_mut(&from).expect("only members claim");
        *come += 1;
        assert!(sent.is_none_or(|sent| *come <= sent), "{from} has sent more claims than it said");
        let block = claim.block;
        let mode = if rebuild.dropped.remove(&(block, from)) { Mode::Null } else { claim.mode };
        let entry = self.entries.of(block);
        entry.disk_scn = entry.disk_scn.max(claim.disk_scn);
        match mode {
            Mode::Null => {}
            Mode::Exclusive => {
                assert!(entry.holders.is_empty(), "{block}: {from} claims Exclusive, but {:?} have it too", entry.holders);
                entry.holders = NodeSet::of(from);
                entry.set_exclusive(Some(from));
            }
            Mode::Shared => {
                assert_eq!(entry.exclusive(), None, "{block}: {from} claims Shared beside an Exclusive holder");
                entry.holders.insert(from);
                if claim.dirty && claim.scn > entry.disk_scn {
                    assert_eq!(entry.dirty_owner(), None, "{block}: {from} is a second dirty owner (rule 6)");
                    entry.set_dirty_owner(Some(from));
                    entry.dirty_scn = claim.scn;
                }
            }
            Mode::Protected => panic!("{block}: {from} claims a mode that is the cache's only"),
        }
        if let Some(scn) = claim.past_image {
            entry.past_images.insert(from);
            entry.past_image_scn = entry.past_image_scn.max(scn);
            let newest = rebuild.past_images.entry(block).or_insert((scn, from));
            *newest = (*newest).max((scn, from));
        }
        self.rebuilt(out);
    }

    /// `from` has sent `count` claims to this master in all.
    pub fn on_claims_end(&mut self, from: NodeId, epoch: Epoch, count: u64, out: &mut Vec<Output>) {
        if epoch != self.epoch {
            self.counters.other_epoch_total += 1;
            return;
        }
        let rebuild = self.rebuild.as_mut().expect("the claims of this epoch end while its directory is rebuilt");
        let (sent, come) = rebuild.claims.get_mut(&from).expect("only members claim");
        assert!(sent.is_none() && *come <= count, "{from} ends its claims twice, or has sent more than it says");
        *sent = Some(count);
        self.rebuilt(out);
    }

    /// The redo of the lost nodes has been read: which of the blocks mastered here it changes, and up to which version.
    pub fn on_redo_read(&mut self, lost: Vec<(BlockId, Scn)>, out: &mut Vec<Output>) {
        let rebuild = self.rebuild.as_mut().expect("the lost redo is read while the directory is rebuilt");
        assert!(rebuild.lost.is_none(), "the lost redo has been read already");
        rebuild.lost = Some(lost);
        self.rebuilt(out);
    }

    /// What [`Output::Recover`] asked for is done: version `scn` is on the disk.
    pub fn on_recovered(&mut self, block: BlockId, scn: Scn, out: &mut Vec<Output>) {
        let entry = self.entries.get_mut(block).expect("a block in recovery has an entry");
        let activity = self.activities.get_mut(entry).filter(|activity| activity.transition == Transition::Recover);
        activity.expect("the block is in recovery").transition = Transition::None;
        entry.disk_scn = entry.disk_scn.max(scn);
        assert!(
            entry.past_image_scn <= entry.disk_scn || entry.past_images.is_empty(),
            "{block}: recovered to {scn}, and a past image has {}",
            entry.past_image_scn
        );
        discard_past_images(self.epoch, block, entry, out);
        self.note_on_disk(block, scn);
        self.settle(block, out);
    }

    /// Blocks of the lost nodes' redo that are not on the disk yet in the version that the redo leads to. Their redo may
    /// be given up when there are none, and the directory has been rebuilt.
    #[must_use]
    pub fn unwritten(&self) -> usize {
        self.unwritten.len()
    }

    /// Asks the owners of such blocks, of `most` of them at a time, to write them; to be repeated until there are none.
    pub fn press_for_writes(&mut self, most: usize, out: &mut Vec<Output>) {
        let blocks: Vec<BlockId> = self.unwritten.keys().copied().take(most).collect();
        for block in blocks {
            let entry = self.entries.of(block);
            if let Some(owner) = entry.owner() {
                out.push(Output::Send { to: owner, message: bare(self.epoch, Kind::WriteRequest, block) });
            } else if entry.is_idle() {
                // Without an owner the disk has it, but nobody has told so: its holder may have been reading it when it
                // claimed, and have dropped it since.
                self.activities.open(entry).transition = Transition::Recover;
                out.push(Output::Recover { block, image: None, on_disk: entry.disk_scn });
            }
        }
    }

    /// A version is on the disk.
    pub(super) fn note_on_disk(&mut self, block: BlockId, scn: Scn) {
        if self.unwritten.get(&block).is_some_and(|&lost| scn >= lost) {
            self.unwritten.remove(&block);
        }
    }

    /// Remembers a Drop whose claim may still be under way.
    pub(super) fn note_drop(&mut self, block: BlockId, from: NodeId) {
        if let Some(rebuild) = &mut self.rebuild
            && !self.entries.get(block).is_some_and(|entry| entry.holders.contains(from))
        {
            rebuild.dropped.insert((block, from));
        }
    }

    /// Starts to serve, if everything is known that has to be.
    fn rebuilt(&mut self, out: &mut Vec<Output>) {
        let Some(rebuild) = self.rebuild.take_if(|rebuild| rebuild.is_complete()) else { return };
        let lost: BlockMap<Scn> = rebuild.lost.expect("complete").into_iter().collect();
        for &block in lost.keys() {
            self.entries.of(block);
        }
        let blocks: Vec<BlockId> = self.entries.iter().map(|(block, _)| block).collect();
        for block in blocks {
            self.rebuilt_block(block, lost.get(&block).copied(), rebuild.past_images.get(&block).copied(), out);
            self.settle(block, out);
        }
    }

    fn rebuilt_block(&mut self, block: BlockId, lost: Option<Scn>, image: Option<(Scn, NodeId)>, out: &mut Vec<Output>) {
        let entry = self.entries.get_mut(block).expect("the caller has found it");
        if entry.dirty_scn <= entry.disk_scn {
            entry.set_dirty_owner(None);
        }
        if entry.past_image_scn <= entry.disk_scn {
            discard_past_images(self.epoch, block, entry, out);
        }
        let lost = lost.filter(|&scn| scn > entry.disk_scn);
        if let Some(scn) = lost {
            self.unwritten.insert(block, scn);
        }
        let recover = lost.is_some() || !entry.past_images.is_empty();
        if entry.owner().is_none() && recover && self.rules.hold(Rule::RecoverBeforeGrant) {
            self.counters.recoveries_total += 1;
            self.activities.open(entry).transition = Transition::Recover;
            let image = image.filter(|(scn, _)| *scn > entry.disk_scn).map(|(scn, keeper)| (keeper, scn));
            out.push(Output::Recover { block, image, on_disk: entry.disk_scn });
        }
    }
}

impl Activity {
    /// Whether the block's newest version is being made out of the lost nodes' redo.
    pub(super) fn is_recovering(&self) -> bool {
        self.transition == Transition::Recover
    }
}

/// Tells everybody who keeps a past image of the block that the disk has it.
fn discard_past_images(epoch: Epoch, block: BlockId, entry: &mut Entry, out: &mut Vec<Output>) {
    for keeper in entry.past_images.iter() {
        let message = Message { scn: entry.disk_scn, ..bare(epoch, Kind::PastImageDiscard, block) };
        out.push(Output::Send { to: keeper, message });
    }
    entry.past_images = NodeSet::EMPTY;
    entry.write_wanted = false;
}
