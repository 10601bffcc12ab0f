//! The undo of a shard: where records are appended, and where anybody's are read.
//!
//! Owned by one shard. Its home is the partition [`PartitionId::undo`]: the root and the blocks behind it are the
//! transaction table ([`super::slot`]), all others are a ring of undo blocks ([`super::ring`]). A record, the table's slot
//! and the row it is about change in ONE redo group. Appends take turns, because all go to the same block. Bounded by the
//! ring: it grows by an extent when the oldest block is still needed, and a full volume fails the writer before anything
//! has changed.

use std::cell::RefCell;
use std::collections::HashSet;

use crate::btree::SpaceError;
use crate::btree::space::{BlockAllocator, PartitionHome, SpaceReply, SpaceRequest, SpaceService, Urgency};
use crate::cache::{Cache, CacheError, Mtr, WriteGuard};
use crate::ids::{BlockId, BlockNo, NodeId, PartitionId, Scn, ShardId};
use crate::reactor::sync::{Permit, Semaphore};
use crate::volume::block::{self, BlockKind};
use crate::volume::change::Change;
use crate::volume::layout::EXTENT_BLOCKS;
use crate::volume::page::{Page, USER_HEADER, cell_bytes, page_capacity};

use super::error::TxnError;
use super::record::Record;
use super::ring::UndoRing;
use super::row::{Row, UndoPtr};
use super::slot::{SLOT_BYTES, SLOTS_MAX, Slot, TABLE_BLOCKS, TABLE_HEADER_BYTES, place, slots_of};

/// Undo blocks kept empty in advance, so that a writer that holds a leaf need not ask for an extent.
const SPARE_MIN: usize = 2;
/// Blocks asked for at a time: those of one extent, its header left out.
const GROW_BLOCKS: usize = EXTENT_BLOCKS as usize - 1;
/// Most redo of putting an extent's blocks into use, bytes.
const GROW_REDO_MAX: usize = 8192;
/// Most redo of one record beyond its key and the row's previous version, bytes: the record's head, the slot, the
/// formatting of a fresh block, and the group's overhead for both blocks.
pub const RECORD_REDO_MAX: usize = 512;

/// A shard's undo home.
pub struct UndoLog {
    node: NodeId,
    shard: ShardId,
    home: PartitionHome,
    cache: Cache,
    space: BlockAllocator,
    ring: RefCell<UndoRing>,
    /// Every block of the ring: an extent that a crash left half taken must not come in twice.
    blocks: RefCell<HashSet<BlockNo>>,
    append: Semaphore,
    growing: Semaphore,
    scratch: RefCell<Vec<u8>>,
}

/// The two blocks that the next record goes to, held; the caller makes the record in the group of the row's change.
pub struct UndoRoom {
    table: WriteGuard,
    block: WriteGuard,
    fresh: bool,
    _turn: Permit,
}

impl UndoLog {
    /// Opens the undo home, or makes it on the node's first start. Returns the table's slots with it.
    ///
    /// # Errors
    /// When blocks cannot be had, or the table is damaged.
    pub async fn open(
        cache: &Cache,
        space: &BlockAllocator,
        service: &dyn SpaceService,
        (node, shard): (NodeId, ShardId),
        retention_ms: u64,
    ) -> Result<(UndoLog, Vec<(u16, Slot)>), TxnError> {
        let partition = PartitionId::undo(node, shard);
        let home = match service.request(SpaceRequest::FindPartition(partition)).await {
            Ok(SpaceReply::Home(home)) => home,
            Ok(other) => unreachable!("a partition was looked for, {other:?} came"),
            Err(SpaceError::NoPartition(_)) => create(cache, space, service, partition).await?,
            Err(error) => return Err(error.into()),
        };
        let slots = UndoLog::read_table(cache, home).await?;
        let table = home.first_extent.0..=table_block(home, TABLE_BLOCKS - 1).block.0;
        let mut left = Vec::new();
        for extent in space.extents_of(home).await? {
            left.extend((extent.0 + 1..extent.0 + EXTENT_BLOCKS).filter(|block| !table.contains(block)).map(BlockNo));
        }
        let ring = UndoRing::new([], left.iter().copied(), cache.clock().latest(), retention_ms);
        Ok((UndoLog::assemble(cache, space, home, (node, shard), left, ring), slots))
    }

    /// The undo home of a dead node, for rolling back alone: there is no room in it ([`UndoLog::room`]), and nothing is
    /// recycled. Returns the table's slots with it.
    ///
    /// # Errors
    /// As [`UndoLog::open`].
    pub async fn adopt(
        cache: &Cache,
        space: &BlockAllocator,
        home: PartitionHome,
        whose: (NodeId, ShardId),
    ) -> Result<(UndoLog, Vec<(u16, Slot)>), TxnError> {
        let slots = UndoLog::read_table(cache, home).await?;
        let ring = UndoRing::new([], [], cache.clock().latest(), 0);
        Ok((UndoLog::assemble(cache, space, home, whose, Vec::new(), ring), slots))
    }

    fn assemble(
        cache: &Cache,
        space: &BlockAllocator,
        home: PartitionHome,
        (node, shard): (NodeId, ShardId),
        blocks: Vec<BlockNo>,
        ring: UndoRing,
    ) -> UndoLog {
        UndoLog {
            node,
            shard,
            home,
            cache: cache.clone(),
            space: space.clone(),
            blocks: RefCell::new(blocks.into_iter().collect()),
            ring: RefCell::new(ring),
            append: Semaphore::new(1),
            growing: Semaphore::new(1),
            scratch: RefCell::default(),
        }
    }

    /// All slots of a table, whoever's it is.
    ///
    /// # Errors
    /// When a block of it cannot be had or is damaged.
    pub async fn read_table(cache: &Cache, home: PartitionHome) -> Result<Vec<(u16, Slot)>, TxnError> {
        let mut slots = Vec::with_capacity(SLOTS_MAX);
        for index in 0..TABLE_BLOCKS {
            let id = table_block(home, index);
            let guard = cache.read(id).await?;
            check_table(id, &guard)?;
            for (number, slot) in slots_of(index, Page::new(&guard).user_header()) {
                slots.push((number, slot.ok_or_else(|| no_slot(id, number))?));
            }
        }
        Ok(slots)
    }

    /// One slot of a table, whoever's it is.
    ///
    /// # Errors
    /// As [`UndoLog::read_table`].
    pub async fn read_slot(cache: &Cache, home: PartitionHome, number: u16) -> Result<Slot, TxnError> {
        let id = table_block(home, place(number).0);
        let guard = match cache.try_read(id) {
            Some(guard) => guard,
            None => cache.read(id).await?,
        };
        slot_in(id, &guard, number)
    }

    /// What a slot says in its block as it is held.
    ///
    /// # Errors
    /// When the block is damaged.
    pub fn slot_in(&self, guard: &WriteGuard, number: u16) -> Result<Slot, TxnError> {
        slot_in(guard.block(), guard, number)
    }

    /// Sees to it that a few empty blocks are at hand. The caller holds no block.
    ///
    /// # Errors
    /// [`TxnError::VolumeFull`].
    pub async fn prepare(&self) -> Result<(), TxnError> {
        while self.ring.borrow().spare() < SPARE_MIN {
            let _turn = self.growing.acquire(1).await;
            if self.ring.borrow().spare() < SPARE_MIN {
                self.grow().await?;
            }
        }
        Ok(())
    }

    async fn grow(&self) -> Result<(), TxnError> {
        let claim = self.space.claim(self.home, GROW_BLOCKS, Urgency::Reserve).await?;
        let mut mtr = self.cache.begin_mtr(GROW_REDO_MAX).await?;
        let mut headers = claim.lock().await?;
        claim.mark(&mut mtr, &mut headers);
        mtr.finish();
        drop(headers);
        let mut known = self.blocks.borrow_mut();
        self.ring.borrow_mut().grow(claim.blocks().iter().copied().filter(|block| known.insert(*block)));
        Ok(())
    }

    /// Holds the blocks for a record about `slot`'s transaction; `None` when no empty block is at hand ([`Self::prepare`]
    /// again, without holding the leaf). The caller may hold a leaf.
    ///
    /// # Errors
    /// When a block cannot be had.
    pub async fn room(&self, slot: u16, key_bytes: usize, before_bytes: usize) -> Result<Option<UndoRoom>, TxnError> {
        let turn = match self.append.try_acquire(1) {
            Some(turn) => turn,
            None => self.append.acquire(1).await,
        };
        let table = self.write(table_block(self.home, place(slot).0)).await?;
        let need = cell_bytes(super::record::RECORD_HEAD_BYTES + key_bytes, before_bytes);
        assert!(need <= page_capacity(0), "an undo record of {need} bytes");
        let current = self.ring.borrow().current();
        if let Some(current) = current {
            let block = self.write(self.id(current)).await?;
            if Page::new(&block).free_bytes() >= need {
                return Ok(Some(UndoRoom { table, block, fresh: false, _turn: turn }));
            }
        }
        let Some(next) = self.ring.borrow_mut().next() else { return Ok(None) };
        match self.cache.create(self.id(next)).await {
            Ok(block) => Ok(Some(UndoRoom { table, block, fresh: true, _turn: turn })),
            Err(error) => {
                self.ring.borrow_mut().give_back(next);
                Err(error.into())
            }
        }
    }

    /// Writes a record and the slot, into the group of the row's change. Synchronous. Returns where the record is.
    pub fn append(&self, room: &mut UndoRoom, mtr: &mut Mtr, record: &Record<'_>, wrap_slot: (u16, Slot)) -> UndoPtr {
        if room.fresh {
            mtr.change(&mut room.block, &Change::Format { kind: BlockKind::Undo, user_len: 0, user_header: &[] });
            room.fresh = false;
        }
        let index = Page::new(&room.block).count();
        let mut key = self.scratch.borrow_mut();
        record.encode_key(&mut key);
        mtr.change(&mut room.block, &Change::InsertCell { slot: index, key: &key, value: record.before });
        let pointer = UndoPtr::new(self.node, room.block.block().block, index);
        let (number, slot) = wrap_slot;
        write_slot(mtr, &mut room.table, number, &Slot { undo_head: pointer, ..slot });
        self.ring.borrow_mut().written(record.written);
        pointer
    }

    /// Holds the table's block of a slot, for changing the slot alone.
    ///
    /// # Errors
    /// When the block cannot be had.
    pub async fn table(&self, slot: u16) -> Result<WriteGuard, TxnError> {
        Ok(self.write(table_block(self.home, place(slot).0)).await?)
    }

    async fn write(&self, id: BlockId) -> Result<WriteGuard, CacheError> {
        match self.cache.try_write(id) {
            Some(guard) => Ok(guard),
            None => self.cache.write(id).await,
        }
    }

    fn id(&self, block: BlockNo) -> BlockId {
        BlockId::new(self.home.partition, block)
    }

    /// Shows the record behind a pointer to `take`, whoever's it is. `None`: the block has been reused since.
    ///
    /// # Errors
    /// When the block cannot be had.
    pub async fn read<R>(&self, pointer: UndoPtr, take: impl FnOnce(Record<'_>) -> R) -> Result<Option<R>, TxnError> {
        let id = BlockId::new(PartitionId::undo(pointer.node(), self.shard), pointer.block());
        let guard = match self.cache.try_read(id) {
            Some(guard) => guard,
            None => self.cache.read(id).await?,
        };
        if block::kind(&guard) != Some(BlockKind::Undo) {
            return Ok(None);
        }
        let page = Page::new(&guard);
        if pointer.slot() >= page.count() {
            return Ok(None);
        }
        let (key, before) = page.cell(pointer.slot());
        match Record::decode(key, before) {
            Some(record) => Ok(Some(take(record))),
            None => Err(TxnError::Corrupt(format!("record {} of {id} is no undo record", pointer.slot()))),
        }
    }

    /// The version before `row`, header included; `None` if there was no row.
    ///
    /// # Errors
    /// [`TxnError::SnapshotTooOld`] when the undo has been reused.
    pub async fn before(&self, partition: PartitionId, key: &[u8], row: &Row<'_>) -> Result<Option<Vec<u8>>, TxnError> {
        if row.undo.is_none() {
            return Ok(None);
        }
        self.read(row.undo, |record| {
            record.is_undo_of(partition, key, row).then(|| (!record.before.is_empty()).then(|| record.before.to_vec()))
        })
        .await?
        .flatten()
        .ok_or(TxnError::SnapshotTooOld)
    }

    /// Looks which blocks are free again.
    pub fn recycle(&self, now: Scn, oldest_begin: Option<Scn>, oldest_snapshot: Scn) {
        self.ring.borrow_mut().recycle(now, oldest_begin, oldest_snapshot);
    }

    /// Undo blocks in use.
    #[must_use]
    pub fn blocks_in_use(&self) -> usize {
        self.ring.borrow().blocks_in_use()
    }
}

/// Writes a slot into its block.
pub fn write_slot(mtr: &mut Mtr, table: &mut WriteGuard, number: u16, slot: &Slot) {
    let offset = USER_HEADER + place(number).1;
    let bytes: [u8; SLOT_BYTES] = slot.encode();
    mtr.change(table, &Change::Patch { offset: offset as u16, bytes: &bytes });
}

fn table_block(home: PartitionHome, index: usize) -> BlockId {
    BlockId::new(home.partition, BlockNo(home.root().block.0 + index as u64))
}

fn check_table(id: BlockId, block: &[u8]) -> Result<(), TxnError> {
    if block::kind(block) != Some(BlockKind::UndoHeader) || Page::new(block).user_header().len() != TABLE_HEADER_BYTES {
        return Err(TxnError::Corrupt(format!("{id} is no transaction table")));
    }
    Ok(())
}

fn no_slot(id: BlockId, number: u16) -> TxnError {
    TxnError::Corrupt(format!("slot {number} of {id} is no slot"))
}

fn slot_in(id: BlockId, block: &[u8], number: u16) -> Result<Slot, TxnError> {
    check_table(id, block)?;
    let bytes = Page::new(block).user_header()[place(number).1..].first_chunk::<SLOT_BYTES>();
    Slot::decode(bytes.expect("a table's header holds its slots")).ok_or_else(|| no_slot(id, number))
}

/// Makes an undo home: the table in the first blocks of the first extent.
async fn create(
    cache: &Cache,
    space: &BlockAllocator,
    service: &dyn SpaceService,
    partition: PartitionId,
) -> Result<PartitionHome, TxnError> {
    let urgency = Urgency::Reserve;
    let home = match service.request(SpaceRequest::PreparePartition { partition: Some(partition), urgency }).await? {
        SpaceReply::Home(home) => home,
        other => unreachable!("a partition was asked for, {other:?} came"),
    };
    let format = Change::Format { kind: BlockKind::UndoHeader, user_len: TABLE_HEADER_BYTES as u16, user_header: &[] };
    space.format_partition(home, &[format]).await?;
    let claim = space.claim(home, GROW_BLOCKS - 1, urgency).await?;
    let mut mtr = cache.begin_mtr(GROW_REDO_MAX).await?;
    let mut headers = claim.lock().await?;
    let mut guards = Vec::with_capacity(TABLE_BLOCKS);
    for index in 1..TABLE_BLOCKS {
        let id = table_block(home, index);
        assert!(claim.blocks().contains(&id.block), "{id}: the first extent of a new partition is its own");
        guards.push(cache.create(id).await?);
    }
    claim.mark(&mut mtr, &mut headers);
    for guard in &mut guards {
        mtr.change(guard, &format);
    }
    let end = mtr.finish();
    drop((headers, guards));
    cache.log().flush_to(end).await.map_err(|error| TxnError::Io(error.to_string()))?;
    service.request(SpaceRequest::PublishPartition(home)).await?;
    Ok(home)
}
