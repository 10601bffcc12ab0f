//! What must be true of the small world between any two steps, and when nothing is left to do.

use super::{BLOCK, Broken, ModelCache, Node, World};
use crate::cache::Mode;
use crate::fusion::NodeSet;
use crate::fusion::gcs::directory::Transition;
use crate::fusion::gcs::message::Kind;
use crate::ids::NodeId;

impl World {
    /// Between any two steps: one writer, nobody reads what is not the newest, one owner of what the disk does not have, and its redo.
    pub(super) fn check(&self) -> Result<(), String> {
        let caches = || self.nodes.iter().filter(|node| node.alive).map(|node| &node.cache);
        let exclusive = caches().filter(|cache| cache.mode == Mode::Exclusive).count();
        let shared = caches().filter(|cache| cache.mode == Mode::Shared).count();
        if exclusive > 1 || (exclusive == 1 && shared > 0) {
            return Err(format!("{exclusive} nodes hold Exclusive and {shared} Shared"));
        }
        if let Some(cache) = caches().find(|cache| cache.protecting && cache.mode == Mode::Null) {
            return Err(format!("a block that is not there is being protected: {cache:?}"));
        }
        if let Some(cache) = caches().find(|c| c.mode != Mode::Null && !c.reading && c.content != self.newest) {
            return Err(format!("version {} is read, {} is the newest", cache.content, self.newest));
        }
        if !self.is_settled() {
            return self.check_redo();
        }
        let epoch = self.map.epoch();
        let masters = self.nodes.iter().filter(|node| node.alive && node.master.masters(BLOCK)).count();
        if masters > 1 {
            return Err(format!("{masters} nodes are masters of the block at once"));
        }
        let in_flight =
            self.net.iter().filter(|e| e.message.epoch == epoch && e.message.is_dirty() && e.message.scn.0 > self.disk).filter(
                |e| match e.message.kind {
                    Kind::Data => e.message.mode == Mode::Exclusive,
                    kind => matches!(kind, Kind::Grant | Kind::InvalidateAck),
                },
            );
        let entry = self.master_core().entry(BLOCK);
        let with_master = entry
            .and_then(|(_, activity)| activity)
            .is_some_and(|a| a.inherited.is_some_and(|scn| scn.0 > self.disk) && !a.awaiting.is_empty());
        let owners = caches().filter(|cache| cache.dirty && cache.content > self.disk).count()
            + in_flight.count()
            + usize::from(with_master);
        if owners != usize::from(self.disk < self.newest) {
            return Err(format!("{owners} owners, while the disk has version {} of {}", self.disk, self.newest));
        }
        self.nodes.iter().filter(|node| node.alive).for_each(|node| node.holder.invariants());
        if matches!(self.broken, Broken::Nothing) {
            self.nodes.iter().filter(|node| node.alive).for_each(|node| node.master.invariants());
        }
        self.check_redo()
    }

    fn check_redo(&self) -> Result<(), String> {
        for version in self.disk + 1..=self.newest {
            let author = self.authors[version as usize - 1];
            let node = &self.nodes[usize::from(author.0) - 1];
            let cache = &node.cache;
            if node.alive && !node.redo.contains(&version) && !cache.dirty && cache.past_image.is_none_or(|image| image < version)
            {
                return Err(format!("version {version} is not on the disk, and {author} no longer keeps its redo"));
            }
        }
        Ok(())
    }

    /// To be called when nothing is left to finish: whether everybody was served and the directory says what the caches
    /// say.
    pub(in super::super) fn check_quiet(&self) -> Result<(), String> {
        let ids = |what: &dyn Fn(&ModelCache) -> bool| -> NodeSet {
            let nodes = self.nodes.iter().enumerate().filter(|(_, node)| node.alive && what(&node.cache));
            nodes.map(|(index, _)| NodeId(index as u8 + 1)).collect()
        };
        let waiting = ids(&|cache| cache.acquiring.is_some() || cache.releasing);
        if !waiting.is_empty() {
            return Err(format!("{waiting:?} wait and nothing happens any more"));
        }
        if !self.is_settled() {
            return Err("the view is entered and nothing happens any more".to_owned());
        }
        let Some(owner) = self.owner() else { return Err("nobody is the master of the block".to_owned()) };
        let alive = || self.nodes.iter().filter(|node| node.alive);
        if alive().any(|node| node.master.is_remastering()) {
            return Err("a change of master is not finished, and nothing happens any more".to_owned());
        }
        if alive().any(|node| usize::from(node.holder.map.master(BLOCK).0) != owner + 1) {
            return Err("a member does not know the block's master".to_owned());
        }
        let elsewhere = |(index, node): (usize, &Node)| index != owner && node.alive && node.master.entry(BLOCK).is_some();
        if self.nodes.iter().enumerate().any(elsewhere) {
            return Err("a node that is not the block's master has an entry of it".to_owned());
        }
        let holders = ids(&|cache| cache.mode != Mode::Null);
        let images = ids(&|cache| cache.past_image.is_some());
        let written = self.disk == self.newest && ids(&|cache| cache.dirty).is_empty();
        if written && !images.is_empty() {
            return Err(format!("{images:?} keep past images of what is on the disk"));
        }
        let Some((entry, activity)) = self.master_core().entry(BLOCK) else {
            let nobody = holders.is_empty() && images.is_empty();
            return if nobody { Ok(()) } else { Err(format!("no directory entry, but {holders:?} and {images:?}")) };
        };
        if let Some(activity) = activity {
            return Err(format!("left in flight: {:?} of {:?}", activity, Transition::None));
        }
        // Who is dirty with hints only may be known as the owner or not.
        let owner = ids(&|cache| cache.mode == Mode::Exclusive || (cache.dirty && cache.content > self.disk));
        let possible = ids(&|cache| cache.mode == Mode::Exclusive || cache.dirty);
        let owner_fits =
            entry.owner().map_or(owner.is_empty(), |known| possible.contains(known) && owner.without(known).is_empty());
        let same = entry.holders == holders
            && owner_fits
            && images.iter().all(|keeper| entry.past_images.contains(keeper))
            && (entry.past_images.is_empty() || !written);
        if same {
            Ok(())
        } else {
            Err(format!("directory {entry:?}, but holders {holders:?}, owner {owner:?}, images {images:?}"))
        }
    }
}
