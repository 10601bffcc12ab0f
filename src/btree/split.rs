//! Making room: dropping dead cells, splitting nodes, and telling their parents.
//!
//! Owned by the partition's shard. A split is one redo group over the node, the new node and the extent header; the
//! separator follows in a group of its own. Between the two the tree is whole: the right link shows the way, and whoever
//! follows it for a write puts the separator in. Recursion goes up the levels, at most [`super::node::LEVEL_MAX`].

use super::error::TreeError;
use super::node::{self, FIRST, Incoming, Node, SplitPlan, Target};
use super::space::{Claim, Urgency};
use super::tree::{DeadCells, Tree, Unfinished, has_room};
use crate::cache::{LocalFuture, Mtr, WriteGuard};
use crate::ids::{BLOCK_SIZE, BlockNo};
use crate::volume::change::Change;

/// Most redo of one split, in bytes: the cells that move (all of them, when the root is split), fences, extent headers.
const SPLIT_REDO_MAX: usize = 2 * BLOCK_SIZE;

/// Most redo of dropping the dead cells of a leaf, or of a separator put into its parent.
const SMALL_REDO_MAX: usize = BLOCK_SIZE;

/// Blocks that the split of a root takes: its content moves down into two.
const BLOCKS_PER_SPLIT: usize = 2;

impl Tree {
    /// Sees to it that the node of this level that `incoming` belongs to gets room for it. Others may take the room before
    /// the caller is back: he asks again.
    pub(super) async fn make_room(
        &self,
        level: u8,
        incoming: Incoming<'_>,
        urgency: Urgency,
        dead: Option<DeadCells<'_>>,
    ) -> Result<(), TreeError> {
        if let Some(dead) = dead
            && self.drop_dead(incoming, dead).await?
        {
            return Ok(());
        }
        let claim = self.space.claim(self.home, BLOCKS_PER_SPLIT, urgency).await?;
        let mtr = self.cache.begin_mtr(SPLIT_REDO_MAX).await?;
        let (guard, block, _) = self.write_node(Target::Key(incoming.key), level).await?;
        let node = Node::new(&guard).expect("the way here ended at a tree node");
        if has_room(node, node.find(incoming.key), incoming) {
            return Ok(());
        }
        let plan = node.plan_split(incoming);
        if block == self.home.root() {
            return self.split_root(guard, mtr, claim, plan).await;
        }
        let child = self.split_node(guard, mtr, claim, &plan).await?;
        self.insert_separator(Unfinished { level: level + 1, separator: plan.separator, child }, urgency).await
    }

    /// Drops the dead cells of the leaf that `incoming` belongs to. True when it has room then.
    async fn drop_dead(&self, incoming: Incoming<'_>, dead: DeadCells<'_>) -> Result<bool, TreeError> {
        let mut mtr = self.cache.begin_mtr(SMALL_REDO_MAX).await?;
        let (mut guard, _, _) = self.write_node(Target::Key(incoming.key), 0).await?;
        let leaf = Node::new(&guard).expect("the way here ended at a leaf");
        let position = leaf.find(incoming.key);
        if has_room(leaf, position, incoming) {
            return Ok(true);
        }
        let gone: Vec<u16> = (FIRST..leaf.end())
            .rev()
            .filter(|&slot| Ok(slot) != position)
            .filter(|&slot| dead(leaf.page().key(slot), leaf.page().value(slot)))
            .collect();
        if gone.is_empty() {
            return Ok(false);
        }
        for slot in gone {
            mtr.change(&mut guard, &Change::RemoveCell { slot });
        }
        mtr.finish();
        let leaf = Node::new(&guard).expect("a leaf without its dead cells is a leaf");
        Ok(has_room(leaf, leaf.find(incoming.key), incoming))
    }

    /// Moves the upper half of a node to a new right neighbour, whose number is returned.
    pub(super) async fn split_node(
        &self,
        mut left: WriteGuard,
        mut mtr: Mtr,
        mut claim: Claim,
        plan: &SplitPlan,
    ) -> Result<BlockNo, TreeError> {
        let claim = claim.take(1);
        let mut headers = claim.lock().await?;
        let right_block = claim.blocks()[0];
        let mut right = self.cache.create(self.id(right_block)).await?;
        claim.mark(&mut mtr, &mut headers);

        let node = Node::new(&left).expect("a node to split is a node");
        let level = node.level();
        let header = node::header(level, node.high().is_some(), node.right());
        fill(&mut mtr, &mut right, node, &header, (&plan.separator, node.high()), plan.at..node.end());
        mtr.change(&mut left, &Change::TruncateCells { from: plan.at });
        mtr.change(&mut left, &node::lower_high(&plan.separator));
        mtr.change(&mut left, &node::set_header(&node::header(level, true, Some(right_block))));
        mtr.finish();
        Ok(right_block)
    }

    /// Moves the root's content down into two new nodes; the root itself stays where it is, one level higher.
    async fn split_root(&self, mut root: WriteGuard, mut mtr: Mtr, claim: Claim, plan: SplitPlan) -> Result<(), TreeError> {
        let mut headers = claim.lock().await?;
        let &[left_block, right_block] = claim.blocks() else { unreachable!("two blocks were claimed") };
        let mut left = self.cache.create(self.id(left_block)).await?;
        let mut right = self.cache.create(self.id(right_block)).await?;
        claim.mark(&mut mtr, &mut headers);

        let node = Node::new(&root).expect("a root to split is a node");
        assert!(node.low().is_empty() && node.high().is_none(), "{}: the root holds all keys", self.home.root());
        let (level, separator) = (node.level(), &plan.separator[..]);
        let left_header = node::header(level, true, Some(right_block));
        let right_header = node::header(level, false, None);
        fill(&mut mtr, &mut left, node, &left_header, (&[], Some(separator)), FIRST..plan.at);
        fill(&mut mtr, &mut right, node, &right_header, (separator, None), plan.at..node.end());
        let root_header = node::header(level + 1, false, None);
        mtr.change(&mut root, &node::format(level + 1, &root_header));
        mtr.change(&mut root, &node::fence(&[], None));
        let children = [(&[][..], node::child_value(left_block)), (separator, node::child_value(right_block))];
        for (slot, (key, value)) in (FIRST..).zip(children) {
            mtr.change(&mut root, &Change::InsertCell { slot, key, value: &value });
        }
        mtr.finish();
        Ok(())
    }

    /// Puts a separator into the parent level, unless it is there already.
    pub(super) fn insert_separator(&self, missing: Unfinished, urgency: Urgency) -> LocalFuture<Result<(), TreeError>> {
        let tree = self.clone();
        Box::pin(async move {
            let value = node::child_value(missing.child);
            let incoming = Incoming { key: &missing.separator, value_len: value.len() };
            loop {
                let mut mtr = tree.cache.begin_mtr(SMALL_REDO_MAX).await?;
                let (mut guard, block, _) = tree.write_node(Target::Key(incoming.key), missing.level).await?;
                let parent = Node::new(&guard).expect("the way here ended at a tree node");
                match parent.find(incoming.key) {
                    Ok(slot) => {
                        assert_eq!(parent.child(slot), Some(missing.child), "{block}: two children begin at one key");
                        return Ok(());
                    }
                    Err(slot) if has_room(parent, Err(slot), incoming) => {
                        mtr.change(&mut guard, &Change::InsertCell { slot, key: incoming.key, value: &value });
                        mtr.finish();
                        return Ok(());
                    }
                    Err(_) => {
                        drop((guard, mtr));
                        tree.make_room(missing.level, incoming, urgency, None).await?;
                    }
                }
            }
        })
    }
}

/// Makes a new block a node with these fences and a copy of those cells of `from`.
fn fill(
    mtr: &mut Mtr,
    to: &mut WriteGuard,
    from: Node<'_>,
    header: &node::NodeHeader,
    (low, high): (&[u8], Option<&[u8]>),
    slots: std::ops::Range<u16>,
) {
    mtr.change(to, &node::format(from.level(), header));
    mtr.change(to, &node::fence(low, high));
    for (slot, source) in (FIRST..).zip(slots) {
        // The first child of an inner node stands for everything from the low fence on.
        let first_child = from.level() > 0 && slot == FIRST;
        let key = if first_child { &[][..] } else { from.page().key(source) };
        mtr.change(to, &Change::InsertCell { slot, key, value: from.page().value(source) });
    }
}
