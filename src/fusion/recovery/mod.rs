//! Replay of the redo that the nodes of an earlier life left behind.
//!
//! A pure core: records of any number of logs go in, in any order of the logs; for each block that they changed, the core
//! then brings the version on disk up to the newest. No I/O, one thread, bounded by the redo areas whose records it was
//! given. It promises that a change is applied only onto the version that it was made for (`before_scn`), so that a
//! second replay, or one that was interrupted, gives the same bytes; and that a missing link is an error that names the
//! block, never a guess.
//!
//! Changes are gathered by block number, not by block and partition: a block that was freed and given to another
//! partition has the history of both, and its number is where it lies.

mod error;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;

pub use self::error::ReplayError;
use crate::ids::{BlockId, BlockNo, NodeId, Scn};
use crate::volume::block::{self, BlockFault};
use crate::volume::change::Change;
use crate::wal::redo::RedoGroup;

/// What the logs say about all blocks.
#[derive(Debug, Default)]
pub struct Replay {
    /// The payloads of all redo groups; the changes point into them.
    payloads: Vec<u8>,
    blocks: BTreeMap<BlockNo, Vec<Link>>,
    highest: Scn,
    groups: u64,
}

/// One step of a block's history: what one redo group did to it.
#[derive(Clone, Debug)]
struct Link {
    id: BlockId,
    before: Scn,
    after: Scn,
    changes: Range<usize>,
    from: NodeId,
}

/// What became of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// The version on disk was the newest.
    Current,
    /// It has been brought up to date and must be written.
    Changed {
        /// The block.
        id: BlockId,
        /// How many redo groups were applied.
        steps: usize,
    },
}

impl Replay {
    /// Nothing read yet.
    #[must_use]
    pub fn new() -> Replay {
        Replay::default()
    }

    /// Takes a redo group out of a log of `from`.
    ///
    /// # Errors
    /// When the payload is not a redo group.
    pub fn add_group(&mut self, from: NodeId, payload: &[u8]) -> Result<(), ReplayError> {
        let group = RedoGroup::decode(payload).map_err(|fault| ReplayError::Record { from, fault })?;
        self.groups += 1;
        self.highest = self.highest.max(group.scn);
        for entry in group.entries() {
            let start = self.payloads.len();
            self.payloads.extend_from_slice(entry.changes);
            let changes = start..self.payloads.len();
            self.blocks.entry(entry.id.block).or_default().push(Link {
                id: entry.id,
                before: entry.before_scn,
                after: group.scn,
                changes,
                from,
            });
        }
        Ok(())
    }

    /// An SCN that was seen elsewhere in the logs and must not be drawn again.
    pub fn observe(&mut self, scn: Scn) {
        self.highest = self.highest.max(scn);
    }

    /// The highest SCN in any log.
    #[must_use]
    pub fn highest_scn(&self) -> Scn {
        self.highest
    }

    /// How many redo groups there are.
    #[must_use]
    pub fn groups(&self) -> u64 {
        self.groups
    }

    /// The blocks that some log changed, in the order in which they lie on the volume.
    #[must_use]
    pub fn blocks(&self) -> Vec<BlockNo> {
        self.blocks.keys().copied().collect()
    }

    /// Brings one block up to date: `bytes` is what the volume has in its place, whatever that is.
    ///
    /// # Errors
    /// [`ReplayError`] when the history has a hole or a change does not fit; `bytes` must then be thrown away.
    pub fn replay(&mut self, block: BlockNo, bytes: &mut [u8]) -> Result<Replayed, ReplayError> {
        let Some(links) = self.blocks.get_mut(&block) else { return Ok(Replayed::Current) };
        links.sort_by_key(|link| link.after);
        let Some(newest) = links.last().map(|link| link.id) else { return Ok(Replayed::Current) };

        let on_disk = block::block_id(bytes);
        let valid = block::verify(bytes, BlockId::new(on_disk.partition, block));
        // `None`: what is on disk can't be built upon; only a change that starts afresh can.
        let mut current = match valid {
            Ok(()) => Some(block::block_scn(bytes)),
            Err(BlockFault::NeverWritten) => Some(Scn::ZERO),
            Err(_) => None,
        };
        let mut steps = 0;
        let mut hole = None;
        for link in links.iter() {
            if current.is_some_and(|scn| link.after <= scn) {
                continue;
            }
            let changes = &self.payloads[link.changes.clone()];
            let afresh = Change::decode(&mut &*changes).is_ok_and(|change| change.starts_afresh());
            if !afresh && current != Some(link.before) {
                // A later link may start afresh and make this one unimportant.
                hole.get_or_insert((current, link.before, link.after, link.from));
                continue;
            }
            if afresh {
                if hole.take().is_some() || current.is_none() || block::block_id(bytes) != link.id {
                    bytes.fill(0);
                }
            } else if hole.is_some() {
                continue;
            }
            apply(link, changes, bytes)?;
            current = Some(link.after);
            steps += 1;
        }
        if let Some((have, need, after, from)) = hole {
            return Err(ReplayError::Hole { block: newest, have, need, after, from, fault: valid.err() });
        }
        match (current, valid) {
            (Some(_), _) if steps > 0 => {
                block::seal(bytes);
                Ok(Replayed::Changed { id: newest, steps })
            }
            (_, Err(fault)) if !matches!(fault, BlockFault::NeverWritten) => {
                Err(ReplayError::Unreadable { block: newest, fault })
            }
            _ => Ok(Replayed::Current),
        }
    }
}

fn apply(link: &Link, changes: &[u8], bytes: &mut [u8]) -> Result<(), ReplayError> {
    let mut rest = changes;
    while !rest.is_empty() {
        let change = Change::decode(&mut rest);
        let applied = change.and_then(|change| {
            if change.starts_afresh() && block::block_id(bytes) != link.id {
                block::format_block(bytes, link.id, block::BlockKind::Free);
            }
            change.apply(bytes)
        });
        applied.map_err(|fault| ReplayError::Change { block: link.id, after: link.after, from: link.from, fault })?;
    }
    block::set_identity(bytes, link.id);
    // A block that starts afresh may have been at a higher SCN in an earlier life under another partition.
    if block::block_scn(bytes) < link.after {
        block::set_scn(bytes, link.after);
    }
    Ok(())
}
