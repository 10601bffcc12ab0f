//! A node of a B-link tree: pure functions over the bytes of one block, no I/O and no waiting.
//!
//! Owned by whoever holds the block's guard; bounded by the block. After Lehman and Yao, "Efficient Locking for Concurrent
//! Operations on B-Trees" (1981): each node knows the range of keys that it is responsible for and its right neighbour, so
//! that a search that arrives after a split finds its way without its parent.
//!
//! A node is a page. Its user header holds level, flags and right link; slot 0 is the fence cell: key = lowest key that the
//! node may hold (its *low fence*), value = the *high fence*, the lowest key that it may not hold (where it has one). The
//! cells behind it are sorted by key. In a leaf they are the rows. In an inner node the value is a child's block number and
//! the key that child's low fence, but empty in the first one: it stands for "from my own low fence on".

use crate::ids::BlockNo;
use crate::volume::block::{self, BlockKind};
use crate::volume::change::Change;
use crate::volume::page::{Page, USER_HEADER, cell_bytes, compare_keys, page_capacity};

/// Longest key, in bytes.
pub const KEY_MAX: usize = 1024;

/// Most bytes of key and value together in one cell. Three such cells and the longest fences fit into a node, so that a
/// split always makes room for a fourth.
pub const CELL_MAX: usize = 2000;

/// The slot of the first cell behind the fence.
pub const FIRST: u16 = 1;

/// Most levels above the leaves: more than 2^40 blocks can need at three cells a node.
pub const LEVEL_MAX: u8 = 30;

/// Nodes with fewer cells are searched by halves.
const GUESS_FROM: u64 = 8;

const LEVEL: usize = 0;
const FLAGS: usize = 1;
const RIGHT: usize = 8;
const NODE_HEADER: usize = 16;
const HAS_HIGH: u8 = 1;
const FENCE: u16 = 0;
const CHILD_LEN: usize = 8;

const _: () = assert!(page_capacity(NODE_HEADER) >= cell_bytes(KEY_MAX, KEY_MAX) + 3 * cell_bytes(CELL_MAX, 0));

/// The user header of a node, as bytes.
pub type NodeHeader = [u8; NODE_HEADER];

/// What a descent looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'k> {
    /// The leaf whose range holds the key.
    Key(&'k [u8]),
    /// The leaf whose range holds the keys immediately below this one.
    Before(&'k [u8]),
    /// The last leaf.
    Last,
}

/// A tree node to read from.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    page: Page<'a>,
    level: u8,
    flags: u8,
}

/// Where a node is to be split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitPlan {
    /// The first slot that moves to the right; may be the count of slots: then the new node starts empty.
    pub at: u16,
    /// The key between the halves: high fence of the left, low fence of the right.
    pub separator: Vec<u8>,
}

/// What to put in, when a split has to make room for it.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'k> {
    /// Its key.
    pub key: &'k [u8],
    /// Length of its value.
    pub value_len: usize,
}

impl<'a> Node<'a> {
    /// Looks at a block as a tree node, if it is one.
    #[inline]
    #[must_use]
    pub fn new(block: &'a [u8]) -> Option<Node<'a>> {
        let kind = block::kind(block)?;
        let page = Page::new(block);
        let header: &NodeHeader = page.user_header().try_into().ok()?;
        let (level, flags) = (header[LEVEL], header[FLAGS]);
        let right_kind = if level == 0 { BlockKind::TreeLeaf } else { BlockKind::TreeInner };
        (kind == right_kind && level <= LEVEL_MAX && page.count() > FENCE).then_some(Node { page, level, flags })
    }

    /// The page that the node is.
    #[must_use]
    #[inline]
    pub fn page(self) -> Page<'a> {
        self.page
    }

    /// How far above the leaves the node stands; a leaf is at 0.
    #[must_use]
    #[inline]
    pub fn level(self) -> u8 {
        self.level
    }

    /// One past the last slot.
    #[must_use]
    #[inline]
    pub fn end(self) -> u16 {
        self.page.count()
    }

    /// The right neighbour.
    #[must_use]
    pub fn right(self) -> Option<BlockNo> {
        let header = self.page.user_header();
        let right = u64::from_le_bytes(header[RIGHT..RIGHT + 8].try_into().expect("eight bytes"));
        (right != 0).then_some(BlockNo(right))
    }

    /// The lowest key that the node may hold; empty in the leftmost.
    #[must_use]
    #[inline]
    pub fn low(self) -> &'a [u8] {
        self.page.key(FENCE)
    }

    /// The lowest key that the node may not hold; `None` in the rightmost.
    #[must_use]
    #[inline]
    pub fn high(self) -> Option<&'a [u8]> {
        (self.flags & HAS_HIGH != 0).then(|| self.page.value(FENCE))
    }

    /// Whether what is looked for lies to the right of this node: the node was split after the way here was read.
    #[inline]
    #[must_use]
    pub fn is_left_of(self, target: Target<'_>) -> bool {
        match (self.high(), target) {
            (None, _) => false,
            (Some(high), Target::Key(key)) => compare_keys(key, high).is_ge(),
            (Some(high), Target::Before(key)) => compare_keys(key, high).is_gt(),
            (Some(_), Target::Last) => true,
        }
    }

    /// Finds a key among the cells: `Ok` is its slot, `Err` the slot that it would take.
    #[inline]
    pub fn find(self, key: &[u8]) -> Result<u16, u16> {
        match self.guess(key) {
            Some(guess) => self.page.find_near(FIRST, guess, key),
            None => self.page.find(FIRST, key),
        }
    }

    /// Where the key would lie if the keys were spread evenly between the fences. Each cell that a search looks at is a
    /// cache miss in a large cache; numbers and hashes, which most keys are, are found near the guess.
    #[inline]
    fn guess(self, key: &[u8]) -> Option<u16> {
        let count = u64::from(self.end() - FIRST);
        let (low, high) = (self.low(), self.high()?);
        if count < GUESS_FROM {
            return None;
        }
        let common = low.iter().zip(high).take_while(|(a, b)| a == b).count();
        let number = |key: &[u8]| {
            let rest = key.get(common..).unwrap_or_default();
            rest.first_chunk::<4>().map_or_else(
                || rest.iter().chain(&[0; 4]).take(4).fold(0, |number, &byte| number << 8 | u64::from(byte)),
                |four| u64::from(u32::from_be_bytes(*four)),
            )
        };
        let (low, high, key) = (number(low), number(high), number(key));
        let offset = key.saturating_sub(low) * count / (high - low).max(1);
        Some(FIRST + offset.min(count - 1) as u16)
    }

    /// The child to go on to. `None` where the cell holds no child (a damaged node).
    ///
    /// # Panics
    /// When the node is a leaf.
    #[inline]
    #[must_use]
    pub fn child_for(self, target: Target<'_>) -> Option<BlockNo> {
        assert!(self.level > 0, "a leaf has no children");
        let slot = match target {
            Target::Key(key) => self.find(key).unwrap_or_else(|at| at.saturating_sub(1)),
            Target::Before(key) => self.find(key).unwrap_or_else(|at| at).saturating_sub(1),
            Target::Last => self.end() - 1,
        };
        self.child(slot.max(FIRST))
    }

    /// The child that the cell at `slot` points to.
    #[must_use]
    #[inline]
    pub fn child(self, slot: u16) -> Option<BlockNo> {
        if slot >= self.end() {
            return None;
        }
        let child = u64::from_le_bytes(self.page.value(slot).try_into().ok()?);
        (child != 0).then_some(BlockNo(child))
    }

    /// Where to split so that `incoming` finds room in the half that it belongs to.
    ///
    /// A cell that goes to the end of the node starts a new one and leaves this one full: loads in ascending order fill
    /// their pages. One that goes to the front does the same the other way round. Otherwise the halves get as equal as
    /// the cells allow.
    ///
    /// # Panics
    /// When there is no such place: keys and cells were longer than allowed, or the node is damaged.
    #[must_use]
    pub fn plan_split(self, incoming: Incoming<'_>) -> SplitPlan {
        let count = self.end();
        let position = match self.find(incoming.key) {
            // The cell will be replaced by a longer one. Count it as it will be, on top of what it is.
            Ok(slot) | Err(slot) => slot,
        };
        let capacity = page_capacity(NODE_HEADER);
        let new_cell = cell_bytes(incoming.key.len(), incoming.value_len);
        let high_len = self.high().map_or(0, <[u8]>::len);
        let mut left = 0;
        let mut right: usize = (FIRST..count).map(|slot| self.page.cell_size(slot)).sum();
        let mut best: Option<(usize, SplitPlan)> = None;
        for at in FIRST..=count {
            // An inner node never gets empty: its first child stands for its whole low end.
            let allowed = self.level == 0 || (at > FIRST && at < count);
            let empty_half = (at == FIRST && position > FIRST) || (at == count && position < count);
            if allowed && !empty_half {
                let separator = self.separator(at, position, incoming.key);
                let goes_right = incoming.key >= &separator[..];
                let left_used = left + cell_bytes(self.low().len(), separator.len()) + if goes_right { 0 } else { new_cell };
                let right_used = right + cell_bytes(separator.len(), high_len) + if goes_right { new_cell } else { 0 };
                if left_used <= capacity && right_used <= capacity && !separator.is_empty() {
                    let appends = position == count && count > FIRST;
                    let prepends = position == FIRST && count > FIRST;
                    let score = match (appends, prepends) {
                        (true, _) => right_used,
                        (_, true) => left_used,
                        _ => left_used.abs_diff(right_used),
                    };
                    if best.as_ref().is_none_or(|(lowest, _)| score < *lowest) {
                        best = Some((score, SplitPlan { at, separator }));
                    }
                }
            }
            if at < count {
                left += self.page.cell_size(at);
                right -= self.page.cell_size(at);
            }
        }
        best.expect("a node of cells within their bounds can be split").1
    }

    /// The shortest key that parts the cells below `at` from those from `at` on, counting the incoming key at `position`.
    fn separator(self, at: u16, position: u16, incoming: &[u8]) -> Vec<u8> {
        if self.level > 0 {
            // Between inner cells only the right one's own key parts exactly.
            return self.page.key(at).to_vec();
        }
        let below = if at > FIRST { Some(self.page.key(at - 1)) } else { None };
        let above = if at < self.end() { Some(self.page.key(at)) } else { None };
        // At the very place of the incoming key it joins the emptier side: right of what it is appended to, left of what
        // it is put in front of, and elsewhere to the right.
        let (below, above) = match (below, above) {
            (Some(below), None) => (below, incoming),
            (None, Some(above)) => (incoming, above),
            (Some(below), Some(above)) if position == at && incoming > below && incoming < above => (below, incoming),
            (Some(below), Some(above)) => (below, above),
            (None, None) => (self.low(), incoming),
        };
        shortest_between(below, above).to_vec()
    }
}

/// The shortest prefix of `above` that is greater than `below`.
fn shortest_between<'k>(below: &[u8], above: &'k [u8]) -> &'k [u8] {
    let common = below.iter().zip(above).take_while(|(a, b)| a == b).count();
    &above[..(common + 1).min(above.len())]
}

/// The kind of block that a node of this level lies in.
#[must_use]
pub fn kind(level: u8) -> BlockKind {
    if level == 0 { BlockKind::TreeLeaf } else { BlockKind::TreeInner }
}

/// The user header of a node.
#[must_use]
pub fn header(level: u8, has_high: bool, right: Option<BlockNo>) -> NodeHeader {
    assert!(level <= LEVEL_MAX, "a tree of {level} levels can't be");
    let mut header = [0; NODE_HEADER];
    header[LEVEL] = level;
    header[FLAGS] = if has_high { HAS_HIGH } else { 0 };
    header[RIGHT..].copy_from_slice(&right.map_or(0, |right| right.0).to_le_bytes());
    header
}

/// The change that makes a block an empty node; [`fence`] must follow.
#[must_use]
pub fn format(level: u8, header: &NodeHeader) -> Change<'_> {
    Change::Format { kind: kind(level), user_len: NODE_HEADER as u16, user_header: header }
}

/// The change that gives a node just formatted its fences.
#[must_use]
pub fn fence<'k>(low: &'k [u8], high: Option<&'k [u8]>) -> Change<'k> {
    Change::InsertCell { slot: FENCE, key: low, value: high.unwrap_or_default() }
}

/// The change that lowers the high fence of a node that was split.
#[must_use]
pub fn lower_high(separator: &[u8]) -> Change<'_> {
    Change::ReplaceValue { slot: FENCE, value: separator }
}

/// The change that replaces the whole user header of a node.
#[must_use]
pub fn set_header(header: &NodeHeader) -> Change<'_> {
    Change::Patch { offset: USER_HEADER as u16, bytes: header }
}

/// The value of an inner node's cell.
#[must_use]
pub fn child_value(child: BlockNo) -> [u8; CHILD_LEN] {
    child.0.to_le_bytes()
}

#[cfg(test)]
mod tests;
