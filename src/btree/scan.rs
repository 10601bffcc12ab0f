//! Scans: the keys of a range, in either direction, a leaf at a time.
//!
//! Owned by the partition's shard; holds one leaf while its rows are visited and nothing between. A scan goes on by key,
//! not by position, so that splits, and even a restart, between two leaves don't matter to it. Bounded by the leaf, or by
//! the caller's limit.

use std::ops::Bound;

use super::error::TreeError;
use super::node::{FIRST, Node, Target};
use super::tree::Tree;

/// A range of keys and the direction to walk it in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// Where the range begins.
    pub lower: Bound<Vec<u8>>,
    /// Where it ends.
    pub upper: Bound<Vec<u8>>,
    /// From the upper end to the lower.
    pub reverse: bool,
}

/// What a visitor says to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visit {
    /// The next one, please.
    Continue,
    /// Enough; this row is done.
    StopAfter,
    /// Enough; begin with this row when going on.
    StopBefore,
}

/// A part of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Keys and values, in the direction of the scan.
    pub rows: Vec<(Vec<u8>, Vec<u8>)>,
    /// What is left to scan; `None` at the end.
    pub more: Option<KeyRange>,
}

impl KeyRange {
    /// Every key, ascending.
    #[must_use]
    pub fn all() -> KeyRange {
        KeyRange { lower: Bound::Unbounded, upper: Bound::Unbounded, reverse: false }
    }

    /// The same keys the other way round.
    #[must_use]
    pub fn reversed(self) -> KeyRange {
        KeyRange { reverse: !self.reverse, ..self }
    }

    /// Whether the range goes below `key`, so that leaves that end before it matter.
    fn reaches_below(&self, key: &[u8]) -> bool {
        match &self.lower {
            Bound::Unbounded => true,
            Bound::Included(lower) | Bound::Excluded(lower) => &lower[..] < key,
        }
    }

    /// Whether the range goes up to `key` or beyond, so that leaves that begin with it matter.
    fn reaches(&self, key: &[u8]) -> bool {
        match &self.upper {
            Bound::Unbounded => true,
            Bound::Included(upper) => &upper[..] >= key,
            Bound::Excluded(upper) => &upper[..] > key,
        }
    }

    /// What is left once everything before `key` has been seen, in the direction of the scan.
    fn from(&self, key: Bound<&[u8]>) -> KeyRange {
        let bound = key.map(<[u8]>::to_vec);
        let mut rest = self.clone();
        *(if self.reverse { &mut rest.upper } else { &mut rest.lower }) = bound;
        rest
    }

    fn target(&self) -> Target<'_> {
        match (self.reverse, &self.lower, &self.upper) {
            (false, Bound::Unbounded, _) => Target::Key(&[]),
            (false, Bound::Included(key) | Bound::Excluded(key), _) => Target::Key(key),
            (true, _, Bound::Unbounded) => Target::Last,
            (true, _, Bound::Included(key)) => Target::Key(key),
            (true, _, Bound::Excluded(key)) => Target::Before(key),
        }
    }

    /// The slots of a leaf that lie in the range.
    fn slots(&self, leaf: Node<'_>) -> std::ops::Range<u16> {
        let place = |key: &[u8], after: bool| match leaf.find(key) {
            Ok(slot) if after => slot + 1,
            Ok(slot) | Err(slot) => slot,
        };
        let from = match &self.lower {
            Bound::Unbounded => FIRST,
            Bound::Included(key) => place(key, false),
            Bound::Excluded(key) => place(key, true),
        };
        let to = match &self.upper {
            Bound::Unbounded => leaf.end(),
            Bound::Included(key) => place(key, true),
            Bound::Excluded(key) => place(key, false),
        };
        from..to.max(from)
    }
}

impl Tree {
    /// Shows the rows of one leaf, the next of the range, to `visit`, and returns what is left of the range: `None` at its
    /// end. A leaf may have no row of the range: then nothing was visited and there may still be more. `visit` runs while
    /// the leaf is held: it must not wait.
    ///
    /// # Errors
    /// When a block on the way can't be had or is damaged.
    pub async fn scan_leaf(
        &self,
        range: &KeyRange,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Visit,
    ) -> Result<Option<KeyRange>, TreeError> {
        let guard = self.read_leaf(range.target()).await?;
        let leaf = Node::new(&guard).expect("the way here ended at a leaf");
        let mut slots = range.slots(leaf);
        while let Some(slot) = if range.reverse { slots.next_back() } else { slots.next() } {
            let (key, value) = leaf.page().cell(slot);
            match visit(key, value) {
                Visit::Continue => {}
                Visit::StopAfter => return Ok(Some(range.from(Bound::Excluded(key)))),
                Visit::StopBefore => return Ok(Some(range.from(Bound::Included(key)))),
            }
        }
        if range.reverse {
            let low = leaf.low();
            Ok((!low.is_empty() && range.reaches_below(low)).then(|| range.from(Bound::Excluded(low))))
        } else {
            Ok(leaf.high().filter(|high| range.reaches(high)).map(|high| range.from(Bound::Included(high))))
        }
    }

    /// Copies rows of the range until they make `bytes_max` (at least one, where there is one).
    ///
    /// # Errors
    /// As [`Tree::scan_leaf`].
    pub async fn scan(&self, range: &KeyRange, bytes_max: usize) -> Result<Chunk, TreeError> {
        let (mut rows, mut bytes, mut full) = (Vec::new(), 0, false);
        let mut more = Some(range.clone());
        while let Some(range) = more.take() {
            more = self
                .scan_leaf(&range, &mut |key, value| {
                    let size = key.len() + value.len();
                    if bytes > 0 && bytes + size > bytes_max {
                        full = true;
                        return Visit::StopBefore;
                    }
                    bytes += size.max(1);
                    rows.push((key.to_vec(), value.to_vec()));
                    Visit::Continue
                })
                .await?;
            if full || bytes >= bytes_max {
                break;
            }
        }
        Ok(Chunk { rows, more })
    }
}
