//! The holder's side of a change of the membership: stop, take the new mastership, tell what is here, go on.
//!
//! Between [`HolderCore::enter`] and [`HolderCore::go`] nothing is sent: a master that is still in the former epoch would
//! drop it. The cache goes on using what it has in sufficient modes; what it asks for meanwhile waits. Owned by the shard
//! of its [`HolderCore`].

use std::rc::Rc;

use super::holder::HolderCore;
use super::output::Output;
use crate::cache::Mode;
use crate::fusion::grd::MastershipMap;
use crate::ids::BlockId;

impl HolderCore {
    /// Enters the epoch of `map`. What was under way with the former masters is void: protections are taken back, drops
    /// count as acknowledged, requests stay open and will be sent again.
    pub fn enter(&mut self, map: Rc<MastershipMap>, out: &mut Vec<Output>) {
        assert!(map.epoch() > self.map.epoch(), "from {} back to {}", self.map.epoch(), map.epoch());
        assert!(map.members().contains(&self.node), "{} enters {map:?} without being a member", self.node);
        self.map = map;
        self.silent = true;
        let blocks: Vec<BlockId> = self.blocks.keys().copied().collect();
        for block in blocks {
            let held = self.blocks.get_mut(&block).expect("listed above");
            held.take_demands().for_each(drop);
            if std::mem::take(&mut held.protecting) {
                out.push(Output::CancelProtect { block });
            }
            if std::mem::take(&mut held.dropping) {
                out.push(Output::Released { block });
            }
            if let Some(open) = &mut held.open {
                open.held_back = false;
            }
            self.tidy(block);
        }
    }

    /// A bucket has another master, by the map of the same epoch: it is spoken to from now on.
    pub fn remap(&mut self, map: Rc<MastershipMap>) {
        assert_eq!(map.epoch(), self.map.epoch(), "a view is entered, not remapped");
        self.map = map;
    }

    /// In silence: the open request for `block` is void, the cache will ask anew.
    pub fn abandon(&mut self, block: BlockId) {
        assert!(self.silent, "{block}: a request is given up that a master may be serving");
        let held = self.blocks.get_mut(&block).filter(|held| held.open.is_some());
        held.expect("a request that is given up is open").open = None;
        self.tidy(block);
    }

    /// The blocks of which something is to be claimed, each once, with the mode that this node has.
    pub fn held(&self) -> impl Iterator<Item = (BlockId, Mode)> + '_ {
        let something = self.blocks.iter().filter(|(_, held)| held.mode != Mode::Null || held.past_image.is_some());
        something.map(|(&block, held)| (block, held.mode))
    }

    /// All members are in the epoch, and the claims are on their way: asks again for what is open.
    pub fn go(&mut self, out: &mut Vec<Output>) {
        assert!(std::mem::take(&mut self.silent), "the holder was not silent");
        let open: Vec<BlockId> = self.blocks.iter().filter(|(_, held)| held.open.is_some()).map(|(&block, _)| block).collect();
        for block in open {
            self.send_request(block, out);
        }
    }

    /// Whether it says nothing until all members are in the epoch.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.silent
    }
}
