//! What a shard lets the other nodes read without asking it, and what it reads of them: a board of small cells. And what they write
//! without asking it: a word for each node, that the clock looks at.
//!
//! Owned by one shard. A cell holds the latest record that was published in it, two words, or none. This shard's thread
//! writes a cell while the others' devices may be reading it, so a read may find parts of two records, or of none. Therefore a cell
//! ends with a checksum over its record, its number and this node's life; where it does not fit, the read has no answer, and
//! whoever wanted one asks by a message, as without RDMA. An answer says what *was* published, not what is true now: cells
//! are for facts that never change.
//!
//! The word of a node holds the highest SCN that it wanted known here. It is written in one piece, so it needs no checksum; that it
//! has arrived is known when a read of it, behind it on the same queue pair, brings it back.
//!
//! Bounds: [`CELLS`] cells; words for nodes up to [`TOLD_NODES`], the others send messages; [`READS_MAX`] reads under way. The memory stays mapped until the process ends.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

use super::verbs::{Access, MemoryKeys, RemotePlace, Verbs, VerbsFault};
use crate::ids::{Incarnation, NodeId};
use crate::reactor::split_mix;
use crate::rules::{DesignRule, kept};

/// Cells of a board.
pub const CELLS: usize = 4096;

/// Reads of a shard that may be under way.
pub const READS_MAX: usize = 32;

/// Nodes that have a word to write into: those of lower numbers. All of a shard lie in two lines of the processor's cache.
pub const TOLD_NODES: usize = 16;

/// Words of a cell: the record, the life of the node that published it, and the checksum.
const CELL_WORDS: usize = 4;

/// Bytes of a cell: what a read fetches.
pub const CELL_BYTES: usize = CELL_WORDS * 8;

/// Bytes of a board with all that is registered beside it.
pub(super) const BOARD_BYTES: u64 = ((CELLS + READS_MAX) * CELL_BYTES + size_of::<Told>()) as u64;

/// What is published in a cell.
pub type Record = [u64; 2];

/// As it lies in memory: in one line of the processor's cache.
#[derive(Default)]
#[repr(C, align(32))]
struct Cell([AtomicU64; CELL_WORDS]);

const _: () = assert!(size_of::<Cell>() == CELL_BYTES);

/// What other nodes have told.
#[derive(Default)]
#[repr(C, align(64))]
struct Told([AtomicU64; TOLD_NODES]);

/// See the module.
pub(super) struct Board {
    /// First those that are published, then those that reads land in.
    cells: &'static [Cell],
    keys: MemoryKeys,
    told: &'static Told,
    told_keys: MemoryKeys,
    free: RefCell<Vec<Landing>>,
}

/// Where a read puts what it finds, until it is done or its queue pair destroyed.
#[derive(Debug)]
pub(super) struct Landing(usize);

fn checksum(cell: u16, life: Incarnation, record: Record) -> u64 {
    [life.0, record[0], record[1]].into_iter().fold(u64::from(cell), |sum, word| split_mix(&mut (sum ^ word)))
}

impl Board {
    /// A board with nothing on it.
    ///
    /// # Errors
    /// The device's.
    pub fn new(verbs: &dyn Verbs) -> Result<Board, VerbsFault> {
        let cells: &[Cell] = Box::leak((0..CELLS + READS_MAX).map(|_| Cell::default()).collect());
        // SAFETY: it is leaked. Others may only read it, and what this side's reads bring lands in cells that are atomic.
        let keys = unsafe { verbs.register(cells.as_ptr().cast_mut().cast(), size_of_val(cells), Access::Read) }?;
        let told: &Told = Box::leak(Box::default());
        // SAFETY: as above; the words are atomic.
        let told_keys = unsafe { verbs.register((&raw const *told).cast_mut().cast(), size_of_val(told), Access::ReadAndWrite) }?;
        let free = (CELLS..cells.len()).map(Landing).collect();
        Ok(Board { cells, keys, told, told_keys, free: RefCell::new(free) })
    }

    /// Where the others find it.
    pub fn place(&self) -> RemotePlace {
        RemotePlace { address: self.cells.as_ptr().addr() as u64, key: self.keys.remote }
    }

    /// The words that other nodes write.
    pub fn told(&self) -> &'static [AtomicU64] {
        &self.told.0
    }

    /// Where this node finds its word.
    pub fn word_of(&self, node: NodeId) -> Option<RemotePlace> {
        let word = self.told.0.get(usize::from(node.0))?;
        Some(RemotePlace { address: std::ptr::from_ref(word).addr() as u64, key: self.told_keys.remote })
    }

    /// Puts a record into a cell, over the one before.
    pub fn publish(&self, cell: u16, life: Incarnation, record: Record) {
        let Cell(words) = &self.cells[..CELLS][usize::from(cell)];
        let new = [record[0], record[1], life.0, checksum(cell, life, record)];
        for (word, new) in words.iter().zip(new) {
            // In whatever order another device may see them.
            word.store(new, Ordering::Relaxed);
        }
    }

    /// A landing for one more read.
    pub fn land(&self) -> Option<Landing> {
        self.free.borrow_mut().pop()
    }

    /// Its address, and the key of that memory.
    pub fn address_of(&self, landing: &Landing) -> (*mut u8, u32) {
        ((&raw const self.cells[landing.0]).cast_mut().cast(), self.keys.local)
    }

    /// Nothing arrives there any more.
    pub fn free(&self, landing: Landing) {
        self.free.borrow_mut().push(landing);
    }

    /// What a read of a word has brought.
    pub fn landed_word(&self, landing: &Landing) -> u64 {
        self.cells[landing.0].0[0].load(Ordering::Relaxed)
    }

    /// What a read of another node's cell has brought, if it is a record of that life.
    pub fn landed(&self, landing: &Landing, cell: u16, life: Incarnation) -> Option<Record> {
        let [first, second, of, sum] = std::array::from_fn(|i| self.cells[landing.0].0[i].load(Ordering::Relaxed));
        let record = [first, second];
        let is_whole = sum == checksum(cell, life, record) || !kept(DesignRule::TornCellsNoticed);
        (of == life.0 && is_whole).then_some(record)
    }
}

/// The place of another node's cell, given that of its board.
pub(super) fn cell_at(board: RemotePlace, cell: u16) -> RemotePlace {
    RemotePlace { address: board.address + u64::from(cell) * CELL_BYTES as u64, key: board.key }
}
