//! A set of nodes as a bitmap: a plain value of 16 bytes, bounded by the 127 nodes of a cluster.

use std::fmt;

use crate::ids::{NODES_MAX, NodeId};

/// A set of nodes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct NodeSet(u128);

const _: () = assert!(NODES_MAX < 128, "a node's number is its bit");

impl NodeSet {
    /// Nobody.
    pub const EMPTY: NodeSet = NodeSet(0);

    /// Only `node`.
    #[must_use]
    pub fn of(node: NodeId) -> NodeSet {
        let mut set = NodeSet::EMPTY;
        set.insert(node);
        set
    }

    /// Adds `node`.
    pub fn insert(&mut self, node: NodeId) {
        self.0 |= Self::bit(node);
    }

    /// Takes `node` out; whether it was in.
    pub fn remove(&mut self, node: NodeId) -> bool {
        let was = self.contains(node);
        self.0 &= !Self::bit(node);
        was
    }

    /// Whether `node` is in.
    #[must_use]
    pub fn contains(self, node: NodeId) -> bool {
        self.0 & Self::bit(node) != 0
    }

    /// Whether nobody is in.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many are in.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The same without `node`.
    #[must_use]
    pub fn without(self, node: NodeId) -> NodeSet {
        NodeSet(self.0 & !Self::bit(node))
    }

    /// The bitmap: bit n is node n.
    #[must_use]
    pub const fn bits(self) -> u128 {
        self.0
    }

    /// From its bitmap; `None` when bit 0, which is no node's, is set.
    #[must_use]
    pub const fn from_bits(bits: u128) -> Option<NodeSet> {
        if bits & 1 == 0 { Some(NodeSet(bits)) } else { None }
    }

    /// The members in ascending order.
    pub fn iter(self) -> impl Iterator<Item = NodeId> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let node = NodeId(rest.trailing_zeros() as u8);
            rest &= rest - 1;
            Some(node)
        })
    }

    fn bit(node: NodeId) -> u128 {
        assert!((1..=NODES_MAX).contains(&usize::from(node.0)), "{node} is not one of the nodes 1..={NODES_MAX}");
        1 << node.0
    }
}

impl FromIterator<NodeId> for NodeSet {
    fn from_iter<I: IntoIterator<Item = NodeId>>(nodes: I) -> NodeSet {
        let mut set = NodeSet::EMPTY;
        for node in nodes {
            set.insert(node);
        }
        set
    }
}

impl fmt::Debug for NodeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
