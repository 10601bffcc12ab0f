//! Replay of the redo that the nodes of an earlier life left behind.
//!
//! A pure core: records of any number of logs go in, in any order of the logs; for each block that they changed, the core
//! then brings the version on disk up to the newest. No I/O, one thread, bounded by the redo areas whose records it was
//! given. It promises that a change is applied only onto the version that it was made for (`before_scn`), so that a
//! second replay, or one that was interrupted, gives the same bytes; and that a missing link is an error that names the
//! block, never a guess.
//!
//! Two uses: a cold start replays everything that any log has ([`Replay::add_group`]); the survivors of a loss each replay
//! the blocks that they master ([`read_redo`], [`Replay::lost_blocks`]), from a past image where one is newer than the disk.
//!
//! Changes are gathered by block number, not by block and partition: a block that was freed and given to another
//! partition has the history of both, and its number is where it lies.

mod error;
mod redo;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

pub use self::error::{RecoveryFault, ReplayError};
pub use self::redo::read_redo;
use crate::ids::{BLOCK_SIZE, BlockId, BlockNo, NodeId, PartitionId, Scn};
use crate::reactor::{FileId, IoBuf, Reactor};
use crate::volume::block::{self, BlockFault};
use crate::volume::change::Change;
use crate::wal::redo::{BlocksForgotten, RedoGroup};

/// What the logs say about all blocks.
#[derive(Debug, Default)]
pub struct Replay {
    /// The payloads of all redo groups; the changes point into them.
    payloads: Vec<u8>,
    blocks: BTreeMap<BlockNo, Vec<Link>>,
    /// The newest change of each block whose changes were not wanted.
    elsewhere: BTreeMap<BlockNo, Scn>,
    /// Versions that a log says are on the disk.
    written: BTreeMap<BlockId, Scn>,
    /// Former lives of blocks' numbers.
    forgotten: BTreeMap<PartitionId, Vec<BlocksForgotten>>,
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
        self.add_group_of(from, payload, |_| true)
    }

    /// Takes of a redo group out of a log of `from` what it did to the blocks that are `wanted`.
    ///
    /// # Errors
    /// When the payload is not a redo group.
    pub fn add_group_of(&mut self, from: NodeId, payload: &[u8], wanted: impl Fn(BlockId) -> bool) -> Result<(), ReplayError> {
        let group = RedoGroup::decode(payload).map_err(|fault| ReplayError::Record { from, fault })?;
        self.groups += 1;
        self.highest = self.highest.max(group.scn);
        for entry in group.entries() {
            if !wanted(entry.id) {
                let newest = self.elsewhere.entry(entry.id.block).or_default();
                *newest = (*newest).max(group.scn);
                continue;
            }
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

    /// Version `scn` of a block, or a newer one, is on the disk: a log says so.
    pub fn note_written(&mut self, block: BlockId, scn: Scn) {
        let newest = self.written.entry(block).or_default();
        *newest = (*newest).max(scn);
    }

    /// The space of these blocks may have been given to others since: a log says so. Their changes are of no account.
    pub fn note_forgotten(&mut self, forgotten: BlocksForgotten) {
        self.forgotten.entry(forgotten.partition).or_default().push(forgotten);
    }

    fn drop_forgotten(&mut self) {
        if self.forgotten.is_empty() {
            return;
        }
        let forgotten = std::mem::take(&mut self.forgotten);
        let is_forgotten = |link: &Link| {
            let lives = forgotten.get(&link.id.partition).into_iter().flatten();
            lives.into_iter().any(|former| former.covers(link.id, link.after))
        };
        self.blocks.retain(|_, links| {
            links.retain(|link| !is_forgotten(link));
            !links.is_empty()
        });
    }

    /// Version of a block that a log says is on the disk; zero when none does.
    #[must_use]
    pub fn written(&self, block: BlockId) -> Scn {
        self.written.get(&block).copied().unwrap_or(Scn::ZERO)
    }

    /// The wanted blocks that the disk may be behind of, each with the version that the logs lead to. Forgets the others:
    /// those that the logs say were written, and those whose number has gone to a block that is not wanted.
    pub fn lost_blocks(&mut self) -> Vec<(BlockId, Scn)> {
        self.drop_forgotten();
        let mut lost = Vec::with_capacity(self.blocks.len());
        let (elsewhere, written) = (std::mem::take(&mut self.elsewhere), &self.written);
        self.blocks.retain(|number, links| {
            let Some(newest) = links.iter().max_by_key(|link| link.after) else { return false };
            let moved = elsewhere.get(number).is_some_and(|&scn| scn > newest.after);
            let needed = !moved && written.get(&newest.id).is_none_or(|&scn| scn < newest.after);
            if needed {
                lost.push((newest.id, newest.after));
            }
            needed
        });
        lost
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
    pub fn blocks(&mut self) -> Vec<BlockNo> {
        self.drop_forgotten();
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

        let found = version_of(block, bytes);
        // `None`: what is there can't be built upon; only a change that starts afresh can.
        let mut current = found.ok();
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
            return Err(ReplayError::Hole { block: newest, have, need, after, from, fault: found.err() });
        }
        match found {
            _ if steps > 0 => {
                block::seal(bytes);
                Ok(Replayed::Changed { id: newest, steps })
            }
            Err(fault) => Err(ReplayError::Unreadable { block: newest, fault }),
            Ok(_) => Ok(Replayed::Current),
        }
    }
}

/// The version that lies in the place of a block, whichever block it is: zero where nothing was ever written.
///
/// # Errors
/// What is wrong with the bytes.
pub fn version_of(number: BlockNo, bytes: &[u8]) -> Result<Scn, BlockFault> {
    match block::verify(bytes, BlockId::new(block::block_id(bytes).partition, number)) {
        Ok(()) => Ok(block::block_scn(bytes)),
        Err(BlockFault::NeverWritten) => Ok(Scn::ZERO),
        Err(fault) => Err(fault),
    }
}

/// Most reads of a block that does not look like one, before it counts as torn or never written.
pub const READS_MAX: u32 = 4;

/// Reads the place of a block for replay. What is torn on the disk is so at every read; what was only damaged on its way is
/// not, and taking it for torn would rebuild an old version over a newer one. So a block that fails its checksum, is another
/// block, or looks as if it was never written is read again. `buffer` is one block.
pub async fn read_place(reactor: &Reactor, file: FileId, block: BlockNo, mut buffer: IoBuf) -> (io::Result<usize>, IoBuf) {
    let offset = block.0 * BLOCK_SIZE as u64;
    let mut reads = 1;
    loop {
        let read;
        (read, buffer) = reactor.read(file, offset, buffer).await;
        let sound = read.as_ref().is_ok_and(|bytes| *bytes == BLOCK_SIZE)
            && version_of(block, buffer.as_slice()).is_ok_and(|version| version != Scn::ZERO);
        if sound || read.is_err() || reads == READS_MAX {
            return (read, buffer);
        }
        reads += 1;
    }
}

/// Writes a recovered block to its place and reads it back: what has landed elsewhere would leave an old version there, with
/// a good checksum, and nobody would know.
pub async fn write_place(reactor: &Reactor, file: FileId, block: BlockNo, mut bytes: IoBuf) -> (io::Result<usize>, IoBuf) {
    let offset = block.0 * BLOCK_SIZE as u64;
    let mut found = IoBuf::aligned(BLOCK_SIZE);
    for _ in 0..READS_MAX {
        let (written, read);
        (written, bytes) = reactor.write(file, offset, bytes).await;
        if !matches!(written, Ok(BLOCK_SIZE)) {
            return (written, bytes);
        }
        (read, found) = reactor.read(file, offset, found).await;
        if read.is_err() || found.as_slice() == bytes.as_slice() {
            return (read, bytes);
        }
    }
    let lost = "it is not found where it was written: the device loses writes, or puts them elsewhere";
    (Err(io::Error::other(lost)), bytes)
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
