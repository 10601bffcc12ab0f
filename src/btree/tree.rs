//! The tree's handle: finding a key, and holding its leaf to write to it.
//!
//! Owned by the partition's shard. Reading holds one block at a time, writing one leaf; nothing here is buffered.

use super::error::TreeError;
use super::node;
use super::node::{CELL_MAX, FIRST, Incoming, KEY_MAX, LEVEL_MAX, Node, Target};
use super::space::{BlockAllocator, PartitionHome, Urgency};
use crate::cache::{Cache, Mtr, ReadGuard, WriteGuard};
use crate::ids::{BlockId, BlockNo, PartitionId};
use crate::volume::change::Change;
use crate::volume::page::cell_bytes;

/// More blocks than any way from the root to a leaf can have: beyond it the links go in a circle.
const STEPS_MAX: u32 = 1_000_000;

/// A partition's tree. A cheap handle; clones are the same tree.
#[derive(Clone)]
pub struct Tree {
    pub(super) cache: Cache,
    pub(super) space: BlockAllocator,
    pub(super) home: PartitionHome,
}

/// Tells of a cell whether nobody will ever want it again: it is a deleted row that no snapshot can see. Such cells are
/// dropped before a leaf is split. A cell that refers to blocks elsewhere (an overflow chain) must be answered `false`, or
/// the blocks are lost.
pub type DeadCells<'a> = &'a dyn Fn(&[u8], &[u8]) -> bool;

/// Most blocks that a write changes besides those that it formats: its leaf, and two of the caller's (undo, and the
/// transaction's slot).
const WRITE_BLOCKS_MAX: usize = 3;

/// What a write is going to need; see [`Tree::seek_write`].
#[derive(Clone, Copy)]
pub struct NeedRoom<'a> {
    /// Length of the longest value to come: the leaf has room for it. 0 where none is put (a removal, a patch).
    pub value_len: usize,
    /// Redo of the change that the caller will make, in bytes, his own blocks (undo) included.
    pub redo_bytes: usize,
    /// Whether a split may use the reserve of a full volume.
    pub urgency: Urgency,
    /// Which cells may go before a split is thought of.
    pub dead: DeadCells<'a>,
}

/// A leaf held for writing, and the place of one key in it. Composed by the caller with changes of other blocks in one
/// atomic group: `put` and `remove` say what happens to the leaf, the caller finishes the group.
pub struct LeafWrite<'k> {
    guard: WriteGuard,
    block: BlockId,
    key: &'k [u8],
    position: Result<u16, u16>,
}

/// A separator that a split left to be put into the parent: the split fell behind, or its node died.
#[derive(Clone, Debug)]
pub(super) struct Unfinished {
    /// Level of the parent that lacks it.
    pub(super) level: u8,
    pub(super) separator: Vec<u8>,
    pub(super) child: BlockNo,
}

/// Where the way goes on from a node.
enum Step {
    Arrived,
    Right(BlockNo),
    Down(BlockNo, u8),
}

impl Tree {
    /// The tree of a partition that exists.
    #[must_use]
    pub fn open(cache: &Cache, space: &BlockAllocator, home: PartitionHome) -> Tree {
        Tree { cache: cache.clone(), space: space.clone(), home }
    }

    /// Formats a new partition (see `SpaceRequest::PreparePartition`) as an empty tree, in one redo group, and waits until
    /// that is durable: then the partition may be published.
    ///
    /// # Errors
    /// When its blocks can't be had.
    pub async fn create(cache: &Cache, space: &BlockAllocator, home: PartitionHome) -> Result<Tree, TreeError> {
        let header = node::header(0, false, None);
        space.format_partition(home, &[node::format(0, &header), node::fence(&[], None)]).await?;
        Ok(Tree::open(cache, space, home))
    }

    /// The partition that the tree is.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        self.home.partition
    }

    /// Where the partition lives.
    #[must_use]
    pub fn home(&self) -> PartitionHome {
        self.home
    }

    /// Gives the value of `key` to `look`, if every block on the way is cached and free: `None` says "wait, by
    /// [`Tree::get`]". Copies nothing, allocates nothing.
    ///
    /// # Errors
    /// When a block on the way is damaged.
    #[inline]
    pub fn try_get<R>(&self, key: &[u8], look: impl FnOnce(Option<&[u8]>) -> R) -> Result<Option<R>, TreeError> {
        let target = Target::Key(key);
        let (mut at, mut level) = (self.home.root().block, None);
        for _ in 0..STEPS_MAX {
            let Some(guard) = self.cache.try_read(self.id(at)) else { return Ok(None) };
            let node = self.node(at, &guard, level)?;
            match self.step(at, node, 0, target)? {
                Step::Arrived => return Ok(Some(look(node.find(key).ok().map(|slot| node.page().value(slot))))),
                Step::Right(next) => at = next,
                Step::Down(next, below) => (at, level) = (next, Some(below)),
            }
        }
        Err(self.circle(at))
    }

    /// Gives the value of `key` to `look`, waiting for blocks where needed. `look` runs while the leaf is held: it must be
    /// short.
    ///
    /// # Errors
    /// When a block on the way can't be had or is damaged.
    pub async fn get<R>(&self, key: &[u8], look: impl FnOnce(Option<&[u8]>) -> R) -> Result<R, TreeError> {
        let guard = self.read_leaf(Target::Key(key)).await?;
        let node = Node::new(&guard).expect("the way here ended at a leaf");
        Ok(look(node.find(key).ok().map(|slot| node.page().value(slot))))
    }

    /// Finds the leaf of `key` and holds it for writing, with room for what `need` says. Splits first where there is none,
    /// each split in redo groups of its own. The reservation for the caller's group is taken before the leaf: nobody holds
    /// a block while he waits for the log.
    ///
    /// The caller must hold no block and no other reservation. He may hold the leaf while he takes blocks that come later
    /// in the lock order (undo), and change two of them beside it, not counting those that he formats.
    ///
    /// # Errors
    /// A key or cell over its bound; no space for a split; a block that can't be had or is damaged.
    pub async fn seek_write<'k>(&self, key: &'k [u8], need: NeedRoom<'_>) -> Result<(LeafWrite<'k>, Mtr), TreeError> {
        if key.len() > KEY_MAX {
            return Err(TreeError::KeyTooLong { len: key.len() });
        }
        if key.len() + need.value_len > CELL_MAX {
            return Err(TreeError::CellTooLong { len: key.len() + need.value_len });
        }
        let incoming = Incoming { key, value_len: need.value_len };
        let mut finished_one = false;
        loop {
            let mtr = self.cache.begin_mtr_of(need.redo_bytes, WRITE_BLOCKS_MAX).await?;
            let (guard, block, unfinished) = self.write_node(Target::Key(key), 0).await?;
            if let Some(unfinished) = unfinished.filter(|_| !finished_one) {
                // Once per call: somebody who splits all the time must not keep us here.
                finished_one = true;
                drop((guard, mtr));
                self.insert_separator(unfinished, need.urgency).await?;
                continue;
            }
            let leaf = Node::new(&guard).expect("the way here ended at a leaf");
            let position = leaf.find(key);
            if need.value_len == 0 || has_room(leaf, position, incoming) {
                return Ok((LeafWrite { guard, block, key, position }, mtr));
            }
            drop((guard, mtr));
            self.make_room(0, incoming, need.urgency, Some(need.dead)).await?;
        }
    }

    /// Stamps bytes of the value of `key` without redo (see [`WriteGuard::stamp_hint`]), if `block` is still its leaf and can
    /// be written without waiting. `hint` is shown the value and says where in it which bytes go.
    pub fn hint(&self, block: BlockId, key: &[u8], hint: impl FnOnce(&[u8]) -> Option<(usize, [u8; 8])>) {
        let Some(mut guard) = self.cache.try_write(block) else { return };
        let Some(leaf) = Node::new(&guard).filter(|node| node.level() == 0) else { return };
        let Ok(slot) = leaf.find(key) else { return };
        let range = leaf.page().value_range(slot);
        if let Some((offset, bytes)) = hint(&guard[range.clone()]) {
            assert!(offset + bytes.len() <= range.len(), "{block}: a hint beyond the value");
            guard.stamp_hint(range.start + offset, &bytes);
        }
    }

    pub(super) fn id(&self, block: BlockNo) -> BlockId {
        BlockId::new(self.home.partition, block)
    }

    fn corrupt(&self, block: BlockNo, what: &'static str) -> TreeError {
        TreeError::Corrupt { block: self.id(block), what }
    }

    fn circle(&self, block: BlockNo) -> TreeError {
        self.corrupt(block, "the links between the nodes go in a circle")
    }

    /// The block as a tree node of the level that its parent promised.
    #[inline]
    fn node<'a>(&self, at: BlockNo, block: &'a [u8], level: Option<u8>) -> Result<Node<'a>, TreeError> {
        match Node::new(block) {
            Some(node) if level.is_none_or(|level| level == node.level()) => Ok(node),
            Some(_) => Err(self.corrupt(at, "it stands on another level")),
            None => Err(self.corrupt(at, "it is no tree node")),
        }
    }

    #[inline]
    fn step(&self, at: BlockNo, node: Node<'_>, level: u8, target: Target<'_>) -> Result<Step, TreeError> {
        if node.is_left_of(target) {
            return Ok(Step::Right(node.right().ok_or_else(|| self.corrupt(at, "its right neighbour is missing"))?));
        }
        if node.level() <= level {
            return Ok(Step::Arrived);
        }
        let child = node.child_for(target).ok_or_else(|| self.corrupt(at, "a cell of it is no child"))?;
        Ok(Step::Down(child, node.level() - 1))
    }

    pub(super) async fn read_block(&self, block: BlockNo) -> Result<ReadGuard, TreeError> {
        match self.cache.try_read(self.id(block)) {
            Some(guard) => Ok(guard),
            None => Ok(self.cache.read(self.id(block)).await?),
        }
    }

    /// The leaf that `target` is in, held for reading.
    pub(super) async fn read_leaf(&self, target: Target<'_>) -> Result<ReadGuard, TreeError> {
        let (mut at, mut level) = (self.home.root().block, None);
        for _ in 0..STEPS_MAX {
            let guard = self.read_block(at).await?;
            match self.step(at, self.node(at, &guard, level)?, 0, target)? {
                Step::Arrived => return Ok(guard),
                Step::Right(next) => at = next,
                Step::Down(next, below) => (at, level) = (next, Some(below)),
            }
        }
        Err(self.circle(at))
    }

    /// The node of this level that `target` is in, held for writing, and a separator that was found missing on the way.
    pub(super) async fn write_node(
        &self,
        target: Target<'_>,
        level: u8,
    ) -> Result<(WriteGuard, BlockId, Option<Unfinished>), TreeError> {
        let root = self.home.root().block;
        let (mut at, mut known_level, mut unfinished) = (root, None, None);
        for _ in 0..STEPS_MAX {
            let next = if known_level == Some(level) {
                let guard = match self.cache.try_write(self.id(at)) {
                    Some(guard) => guard,
                    None => self.cache.write(self.id(at)).await?,
                };
                // The root is the one block whose level changes: it may have grown while we waited.
                let node = self.node(at, &guard, known_level.filter(|_| at != root))?;
                let step = self.step(at, node, level, target)?;
                if matches!(step, Step::Arrived) {
                    return Ok((guard, self.id(at), unfinished));
                }
                self.note_missing(&step, node, &mut unfinished);
                step
            } else {
                let guard = self.read_block(at).await?;
                let node = self.node(at, &guard, known_level)?;
                if node.level() < level || node.level() > LEVEL_MAX {
                    return Err(self.corrupt(at, "the tree is lower than its nodes say"));
                }
                let step = self.step(at, node, level, target)?;
                self.note_missing(&step, node, &mut unfinished);
                step
            };
            match next {
                // Only the root is met at the level that is looked for before it is known: take it again, for writing.
                Step::Arrived => known_level = Some(level),
                Step::Right(next) => at = next,
                Step::Down(next, below) => (at, known_level) = (next, Some(below)),
            }
        }
        Err(self.circle(at))
    }

    fn note_missing(&self, step: &Step, node: Node<'_>, unfinished: &mut Option<Unfinished>) {
        if let (Step::Right(child), Some(high)) = (step, node.high()) {
            *unfinished = Some(Unfinished { level: node.level() + 1, separator: high.to_vec(), child: *child });
        }
    }
}

/// Whether a cell fits at its position.
pub(super) fn has_room(node: Node<'_>, position: Result<u16, u16>, incoming: Incoming<'_>) -> bool {
    match position {
        Ok(slot) => node.page().fits_instead(slot, incoming.key.len(), incoming.value_len),
        Err(_) => node.page().fits(incoming.key.len(), incoming.value_len),
    }
}

impl<'k> LeafWrite<'k> {
    /// The leaf's block.
    #[must_use]
    pub fn block(&self) -> BlockId {
        self.block
    }

    /// The key that this is about.
    #[must_use]
    pub fn key(&self) -> &'k [u8] {
        self.key
    }

    /// The key's present value, if it has one.
    #[must_use]
    pub fn value(&self) -> Option<&[u8]> {
        self.position.ok().map(|slot| self.node().page().value(slot))
    }

    fn node(&self) -> Node<'_> {
        Node::new(&self.guard).expect("a leaf held for writing stays a leaf")
    }

    /// Whether a value of this length fits. It does up to the length that was asked for, until the leaf is changed.
    #[must_use]
    pub fn fits(&self, value_len: usize) -> bool {
        let incoming = Incoming { key: self.key, value_len };
        self.key.len() + value_len <= CELL_MAX && has_room(self.node(), self.position, incoming)
    }

    /// Sets the key's value.
    ///
    /// # Panics
    /// When the value does not fit: the caller asked for less room than he uses.
    pub fn put(&mut self, mtr: &mut Mtr, value: &[u8]) {
        assert!(self.fits(value.len()), "{}: a value of {} bytes was put where less was asked for", self.block, value.len());
        match self.position {
            Ok(slot) => mtr.change(&mut self.guard, &Change::ReplaceValue { slot, value }),
            Err(slot) => {
                mtr.change(&mut self.guard, &Change::InsertCell { slot, key: self.key, value });
                self.position = Ok(slot);
            }
        }
    }

    /// Overwrites bytes of the key's value in place: a stamp costs the redo of the stamp.
    ///
    /// # Panics
    /// When the key has no value, or a shorter one.
    pub fn patch(&mut self, mtr: &mut Mtr, offset: usize, bytes: &[u8]) {
        let slot = self.position.expect("a value that is patched is there");
        let range = self.node().page().value_range(slot);
        assert!(offset + bytes.len() <= range.len(), "{}: a patch beyond the value's {} bytes", self.block, range.len());
        mtr.change(&mut self.guard, &Change::Patch { offset: (range.start + offset) as u16, bytes });
    }

    /// Takes the key and its value away. Nothing happens when there is none.
    pub fn remove(&mut self, mtr: &mut Mtr) {
        if let Ok(slot) = self.position {
            mtr.change(&mut self.guard, &Change::RemoveCell { slot });
            self.position = Err(slot);
        }
    }

    /// Goes on to another key, if it belongs to this very leaf and a value of this length fits there. Otherwise nothing
    /// happens. For writes of many neighbouring keys in one group.
    pub fn move_to(&mut self, key: &'k [u8], value_len: usize) -> bool {
        let node = self.node();
        if key.len() > KEY_MAX || key < node.low() || node.is_left_of(Target::Key(key)) {
            return false;
        }
        let position = node.find(key);
        if key.len() + value_len > CELL_MAX || !has_room(node, position, Incoming { key, value_len }) {
            return false;
        }
        (self.key, self.position) = (key, position);
        true
    }

    /// Where in the block the key's value lies, for an unlogged hint; with the guard to stamp it through.
    ///
    /// # Panics
    /// When the key has no value.
    pub fn value_in_block(&mut self) -> (&mut WriteGuard, std::ops::Range<usize>) {
        let slot = self.position.expect("a value that is stamped is there");
        let range = self.node().page().value_range(slot);
        (&mut self.guard, range)
    }

    /// How many cells the leaf holds.
    #[must_use]
    pub fn cells(&self) -> usize {
        usize::from(self.node().end() - FIRST)
    }

    /// Bytes free in the leaf, in terms of a cell with this key and value.
    #[must_use]
    pub fn room_after(&self, value_len: usize) -> usize {
        self.node().page().free_bytes().saturating_sub(cell_bytes(self.key.len(), value_len))
    }
}
