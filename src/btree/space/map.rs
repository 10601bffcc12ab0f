//! The space map: a bit per extent of the volume, and the directory of the partitions.
//!
//! Lives in shard 0 of each node; the map's blocks are ordinary cached blocks of partition 0, so that nodes take turns by
//! Cache Fusion. A block is held only while its bits change, never across a wait for another. Bounded by the volume.
//!
//! A map block keeps a share of its own extents back for undo and deletes ([`super::RESERVE_PERCENT`]), so that a full
//! volume can still free space. Every answer that gives or takes extents is durable.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::extent::{ExtentHeader, format_header};
use super::{
    BlockAllocator, EXTENTS_PER_REQUEST_MAX, PartitionHome, RESERVE_EXTENTS_MIN, RESERVE_PERCENT, SpaceReply, SpaceRequest,
    SpaceService, SpaceUsage, Urgency, make_durable,
};
use crate::btree::error::{SpaceError, TreeError};
use crate::btree::node;
use crate::btree::tree::{NeedRoom, Tree};
use crate::cache::{Cache, LocalFuture, Mtr, WriteGuard};
use crate::ids::{BlockId, BlockNo, Lsn, NodeId, PartitionId};
use crate::reactor::Class;
use crate::volume::block::{self, BlockKind};
use crate::volume::change::Change;
use crate::volume::layout::{EXTENTS_PER_SPACE_MAP, Geometry};
use crate::volume::page::{Page, USER_HEADER, USER_HEADER_MAX};

/// Most redo of one change to a map block, in bytes.
const MAP_REDO_MAX: usize = 2048;

/// Most redo of one change to the directory, in bytes.
const DIRECTORY_REDO_MAX: usize = 1024;

/// How often extents that are held back look whether the recovery is over.
const HELD_LOOK_EVERY: Duration = Duration::from_millis(20);

const FREE: usize = 0;
const NEXT_PARTITION: usize = 4;
const BITS: usize = 32;
const MAP_HEADER: usize = BITS + (EXTENTS_PER_SPACE_MAP as usize).div_ceil(8);
const ENTRY_LEN: usize = 8;

const _: () = assert!(MAP_HEADER <= USER_HEADER_MAX);

/// Where things lie.
#[derive(Clone, Copy, Debug)]
struct MapLayout(Geometry);

impl MapLayout {
    fn home(self) -> PartitionHome {
        PartitionHome { partition: PartitionId::SPACE, first_extent: self.0.extents_first }
    }

    fn map_block(self, map: u64) -> BlockId {
        BlockId::new(PartitionId::SPACE, BlockNo(self.0.space_maps_first.0 + map))
    }

    fn reserve_in(self, map: u64) -> u64 {
        (self.0.extents_in_space_map(map) * RESERVE_PERCENT / 100).max(if map == 0 { RESERVE_EXTENTS_MIN } else { 0 })
    }

    /// The extent that begins with this block.
    fn extent(self, block: BlockNo) -> u64 {
        match self.0.extent_of(block) {
            Some(extent) if extent > 0 && self.0.extent_block(extent) == block => extent,
            _ => panic!("{block} begins no extent that is ever given out"),
        }
    }

    /// Extents that a map block has to give, when nothing has been given yet: extent 0 is the directory's own.
    fn free_at_first(self, map: u64) -> u32 {
        (self.0.extents_in_space_map(map) - u64::from(map == 0)) as u32
    }

    /// The user header of a map block of which nothing was given yet; what is left out is zero.
    fn first_header(self, map: u64) -> [u8; BITS + 1] {
        let mut header = [0; BITS + 1];
        header[FREE..FREE + 4].copy_from_slice(&self.free_at_first(map).to_le_bytes());
        header[NEXT_PARTITION..NEXT_PARTITION + 4].copy_from_slice(&PartitionId::FIRST_USER.0.to_le_bytes());
        header[BITS] = u8::from(map == 0);
        header
    }
}

/// Manages the volume's space, in shard 0. Clones are the same manager.
#[derive(Clone)]
pub struct SpaceManager {
    map: Rc<Map>,
    directory: Tree,
    /// Whether extents that are freed must wait; see [`SpaceManager::hold_frees_while`].
    held: Rc<RefCell<Option<Recovers>>>,
}

/// Says whether a recovery of lost nodes is under way.
type Recovers = Rc<dyn Fn() -> bool>;

/// The bits alone; serves the directory's own growth.
struct Map {
    cache: Cache,
    layout: MapLayout,
    /// The map block that had free extents last; each node starts elsewhere.
    hint: Cell<u64>,
}

impl SpaceManager {
    /// The space of a volume. For shard 0 only: `cache` is shard 0's. The first node to come puts an empty directory on a
    /// volume that was just formatted.
    ///
    /// # Errors
    /// When the map can't be had or is damaged.
    pub async fn open(cache: &Cache, node: NodeId, geometry: &Geometry) -> Result<SpaceManager, SpaceError> {
        let layout = MapLayout(*geometry);
        // Each node starts elsewhere on a volume large enough for that.
        let hint = Cell::new(u64::from(node.0) % geometry.space_maps);
        let map = Rc::new(Map { cache: cache.clone(), layout, hint });
        map.found_directory().await?;
        let own_space = BlockAllocator::new(cache, map.clone(), node, geometry.extents_first);
        let directory = Tree::open(cache, &own_space, layout.home());
        Ok(SpaceManager { map, directory, held: Rc::default() })
    }

    /// Extents that are freed while `recovers` are given to nobody until it is over: the redo that is being replayed may
    /// still lead to their blocks as those of the partition that they belonged to, whose masters know nothing of the next
    /// one's. Whoever frees them does not wait. (A node that ends meanwhile leaves them in use.)
    pub fn hold_frees_while(&self, recovers: Rc<dyn Fn() -> bool>) {
        *self.held.borrow_mut() = Some(recovers);
    }

    async fn free(&self, extents: Vec<BlockNo>) -> Result<(), SpaceError> {
        let recovers = self.held.borrow().clone().filter(|recovers| recovers());
        let Some(recovers) = recovers else { return self.map.free(&extents).await };
        let (map, reactor) = (self.map.clone(), self.map.cache.reactor().clone());
        self.map.cache.reactor().spawn(Class::Normal, "free extents after a recovery", async move {
            while recovers() {
                reactor.sleep(HELD_LOOK_EVERY).await;
            }
            if let Err(error) = map.free(&extents).await {
                tracing::warn!(extents = extents.len(), %error, "the space of a dropped table could not be given back; it stays in use");
            }
        });
        Ok(())
    }

    /// Carries a request out.
    ///
    /// # Errors
    /// As the request says.
    pub async fn serve(&self, request: SpaceRequest) -> Result<SpaceReply, SpaceError> {
        match request {
            SpaceRequest::AllocateExtents { partition, count, urgency } => {
                Ok(SpaceReply::Extents(self.map.allocate(partition, count, urgency).await?))
            }
            SpaceRequest::PreparePartition { partition, urgency } => {
                Ok(SpaceReply::Home(self.prepare(partition, urgency).await?))
            }
            SpaceRequest::PublishPartition(home) => self.publish(home).await,
            SpaceRequest::FindPartition(partition) => match self.find(partition).await? {
                Some(home) => Ok(SpaceReply::Home(home)),
                None => Err(SpaceError::NoPartition(partition)),
            },
            SpaceRequest::RemovePartition(home) => self.remove(home).await,
            SpaceRequest::FreeExtents(extents) => {
                self.free(extents).await?;
                Ok(SpaceReply::Done)
            }
            SpaceRequest::Usage => Ok(SpaceReply::Usage(self.map.usage().await?)),
        }
    }

    async fn find(&self, partition: PartitionId) -> Result<Option<PartitionHome>, SpaceError> {
        let decode = |value: Option<&[u8]>| value.map(|value| value.try_into().map(u64::from_le_bytes));
        match self.directory.get(&entry_key(partition), decode).await.map_err(into_space_error)? {
            None => Ok(None),
            Some(Ok(block)) => Ok(Some(PartitionHome { partition, first_extent: BlockNo(block) })),
            Some(Err(_)) => Err(SpaceError::Corrupt { block: self.map.layout.home().root(), what: "a directory entry" }),
        }
    }

    async fn prepare(&self, partition: Option<PartitionId>, urgency: Urgency) -> Result<PartitionHome, SpaceError> {
        let partition = match partition {
            Some(partition) if self.find(partition).await?.is_some() => return Err(SpaceError::PartitionExists(partition)),
            Some(partition) => partition,
            None => self.map.next_partition().await?,
        };
        let extents = self.map.allocate(partition, 1, urgency).await?;
        Ok(PartitionHome { partition, first_extent: extents[0] })
    }

    async fn publish(&self, home: PartitionHome) -> Result<SpaceReply, SpaceError> {
        let (key, value) = (entry_key(home.partition), home.first_extent.0.to_le_bytes());
        let (mut leaf, mut mtr) = self.directory.seek_write(&key, need(ENTRY_LEN)).await.map_err(into_space_error)?;
        if leaf.value().is_some_and(|present| present != value) {
            return Err(SpaceError::PartitionExists(home.partition));
        }
        leaf.put(&mut mtr, &value);
        self.map.finish(mtr.finish(), leaf).await
    }

    async fn remove(&self, home: PartitionHome) -> Result<SpaceReply, SpaceError> {
        let key = entry_key(home.partition);
        let (mut leaf, mut mtr) = self.directory.seek_write(&key, need(0)).await.map_err(into_space_error)?;
        if leaf.value() != Some(&home.first_extent.0.to_le_bytes()[..]) {
            return Err(SpaceError::NoPartition(home.partition));
        }
        leaf.remove(&mut mtr);
        self.map.finish(mtr.finish(), leaf).await
    }
}

impl SpaceService for SpaceManager {
    fn request(&self, request: SpaceRequest) -> LocalFuture<Result<SpaceReply, SpaceError>> {
        let manager = self.clone();
        Box::pin(async move { manager.serve(request).await })
    }
}

/// Serves the directory itself: it needs extents and nothing else.
impl SpaceService for Map {
    fn request(&self, request: SpaceRequest) -> LocalFuture<Result<SpaceReply, SpaceError>> {
        let SpaceRequest::AllocateExtents { partition, count, .. } = request else {
            unreachable!("the directory asks for extents only")
        };
        let map = Map { cache: self.cache.clone(), layout: self.layout, hint: self.hint.clone() };
        Box::pin(async move { Ok(SpaceReply::Extents(map.allocate(partition, count, Urgency::Reserve).await?)) })
    }
}

impl Map {
    /// Drops what is held, and answers once the group is durable.
    async fn finish<T>(&self, end: Lsn, held: T) -> Result<SpaceReply, SpaceError> {
        drop(held);
        make_durable(&self.cache, end).await?;
        Ok(SpaceReply::Done)
    }

    /// Holds a map block for a change; the formatting of the volume left it empty, and its first change is to fill it in.
    async fn hold(&self, map: u64, mtr: &mut Mtr) -> Result<WriteGuard, SpaceError> {
        let id = self.layout.map_block(map);
        let mut guard = self.cache.write(id).await?;
        if !is_filled(id, &guard)? {
            self.fill(map, mtr, &mut guard);
        }
        Ok(guard)
    }

    fn fill(&self, map: u64, mtr: &mut Mtr, guard: &mut WriteGuard) {
        let user_header = &self.layout.first_header(map);
        mtr.change(guard, &Change::Format { kind: BlockKind::SpaceMap, user_len: MAP_HEADER as u16, user_header });
    }

    /// Makes the directory's extent and its root, together with the first map block: all or nothing.
    async fn found_directory(&self) -> Result<(), SpaceError> {
        let home = self.layout.home();
        let mut mtr = self.cache.begin_mtr(MAP_REDO_MAX).await?;
        let id = self.layout.map_block(0);
        let mut guard = self.cache.write(id).await?;
        if is_filled(id, &guard)? {
            return Ok(());
        }
        let mut header = self.cache.create(home.head()).await?;
        let mut root = self.cache.create(home.root()).await?;
        self.fill(0, &mut mtr, &mut guard);
        // Nobody owns the first extent: all nodes' directories grow into extents of their own.
        format_header(&mut mtr, &mut header, ExtentHeader { owner: NodeId(0), used: 0b11, next: None });
        mtr.change(&mut root, &node::format(0, &node::header(0, false, None)));
        mtr.change(&mut root, &node::fence(&[], None));
        let end = mtr.finish();
        drop((guard, header, root));
        make_durable(&self.cache, end).await?;
        Ok(())
    }

    async fn allocate(&self, partition: PartitionId, count: u16, urgency: Urgency) -> Result<Vec<BlockNo>, SpaceError> {
        let count = u64::from(count.clamp(1, EXTENTS_PER_REQUEST_MAX));
        let (maps, first) = (self.layout.0.space_maps, self.hint.get());
        let mut extents_free = 0;
        for map in (first..maps).chain(0..first) {
            let mut mtr = self.cache.begin_mtr(MAP_REDO_MAX).await?;
            let mut guard = self.hold(map, &mut mtr).await?;
            let free = u64::from(free_in(&guard));
            let kept = if urgency == Urgency::Reserve { 0 } else { self.layout.reserve_in(map) };
            let count = count.min(free.saturating_sub(kept));
            let chosen = choose(bits(&guard), self.layout.0.extents_in_space_map(map), count);
            if chosen.is_empty() {
                // A map block that was just filled in stays so.
                mtr.finish();
                extents_free += free;
                continue;
            }
            let count = chosen.len() as u64;
            for &extent in &chosen {
                set_bit(&mut mtr, &mut guard, extent, true);
            }
            set_free(&mut mtr, &mut guard, (free - count) as u32);
            let end = mtr.finish();
            drop(guard);
            self.hint.set(map);
            // Durable before it is used: after a crash nobody else may get these extents.
            make_durable(&self.cache, end).await?;
            return Ok(chosen.iter().map(|extent| self.layout.0.extent_block(map * EXTENTS_PER_SPACE_MAP + extent)).collect());
        }
        Err(SpaceError::VolumeFull { partition, extents_free })
    }

    async fn free(&self, extents: &[BlockNo]) -> Result<(), SpaceError> {
        let mut extents: Vec<u64> = extents.iter().map(|&block| self.layout.extent(block)).collect();
        extents.sort_unstable();
        let mut last = Lsn::default();
        for part in extents.chunk_by(|a, b| a / EXTENTS_PER_SPACE_MAP == b / EXTENTS_PER_SPACE_MAP) {
            // Few enough for one group's redo.
            for part in part.chunks(usize::from(EXTENTS_PER_REQUEST_MAX)) {
                let map = part[0] / EXTENTS_PER_SPACE_MAP;
                let mut mtr = self.cache.begin_mtr(MAP_REDO_MAX).await?;
                let mut guard = self.hold(map, &mut mtr).await?;
                let free = free_in(&guard) + part.len() as u32;
                for extent in part {
                    set_bit(&mut mtr, &mut guard, extent % EXTENTS_PER_SPACE_MAP, false);
                }
                set_free(&mut mtr, &mut guard, free);
                last = mtr.finish();
            }
        }
        make_durable(&self.cache, last).await?;
        Ok(())
    }

    async fn next_partition(&self) -> Result<PartitionId, SpaceError> {
        let mut mtr = self.cache.begin_mtr(MAP_REDO_MAX).await?;
        let mut guard = self.hold(0, &mut mtr).await?;
        let header = Page::new(&guard).user_header();
        let next = u32::from_le_bytes(header[NEXT_PARTITION..NEXT_PARTITION + 4].try_into().expect("four bytes"));
        assert!(next < PartitionId::FIRST_UNDO.0, "the numbers for partitions have run out");
        let bytes = (next + 1).to_le_bytes();
        mtr.change(&mut guard, &Change::Patch { offset: (USER_HEADER + NEXT_PARTITION) as u16, bytes: &bytes });
        let end = mtr.finish();
        drop(guard);
        make_durable(&self.cache, end).await?;
        Ok(PartitionId(next))
    }

    async fn usage(&self) -> Result<SpaceUsage, SpaceError> {
        let mut usage = SpaceUsage { extents_total: self.layout.0.extents, ..SpaceUsage::default() };
        for map in 0..self.layout.0.space_maps {
            let id = self.layout.map_block(map);
            let guard = self.cache.read(id).await?;
            let free = if is_filled(id, &guard)? { free_in(&guard) } else { self.layout.free_at_first(map) };
            usage.extents_free += u64::from(free);
            usage.extents_reserved += u64::from(free).min(self.layout.reserve_in(map));
        }
        Ok(usage)
    }
}

fn need(value_len: usize) -> NeedRoom<'static> {
    NeedRoom { value_len, redo_bytes: DIRECTORY_REDO_MAX, urgency: Urgency::Reserve, dead: &|_, _| false }
}

fn entry_key(partition: PartitionId) -> [u8; 4] {
    partition.0.to_be_bytes()
}

fn into_space_error(error: TreeError) -> SpaceError {
    match error {
        TreeError::Cache(error) => SpaceError::Cache(error),
        TreeError::Space(error) => error,
        TreeError::Corrupt { block, what } => SpaceError::Corrupt { block, what },
        TreeError::KeyTooLong { .. } | TreeError::CellTooLong { .. } => unreachable!("the directory's entries are small"),
    }
}

/// Whether a map block has its content; a volume just formatted has empty ones.
fn is_filled(id: BlockId, bytes: &[u8]) -> Result<bool, SpaceError> {
    match (block::kind(bytes), Page::new(bytes).user_header().len()) {
        (Some(BlockKind::SpaceMap), MAP_HEADER) => Ok(true),
        (Some(BlockKind::SpaceMap), 0) => Ok(false),
        _ => Err(SpaceError::Corrupt { block: id, what: "it is no space map" }),
    }
}

fn free_in(bytes: &[u8]) -> u32 {
    let header = Page::new(bytes).user_header();
    u32::from_le_bytes(header[FREE..FREE + 4].try_into().expect("four bytes"))
}

fn bits(bytes: &[u8]) -> &[u8] {
    &Page::new(bytes).user_header()[BITS..]
}

/// The lowest `count` free extents.
fn choose(bits: &[u8], extents: u64, count: u64) -> Vec<u64> {
    let free = |extent: &u64| bits[(*extent / 8) as usize] & (1 << (*extent % 8)) == 0;
    let mut chosen = Vec::with_capacity(count as usize);
    for byte in 0..extents.div_ceil(8) {
        if bits[byte as usize] != 0xff {
            chosen.extend((byte * 8..extents.min(byte * 8 + 8)).filter(free).take(count as usize - chosen.len()));
            if chosen.len() as u64 == count {
                break;
            }
        }
    }
    chosen
}

fn set_bit(mtr: &mut Mtr, guard: &mut WriteGuard, extent: u64, used: bool) {
    let at = (extent / 8) as usize;
    let byte = bits(guard)[at];
    let mask = 1u8 << (extent % 8);
    assert_eq!(byte & mask != 0, !used, "extent {extent} of a map block is given out or freed twice");
    mtr.change(guard, &Change::Patch { offset: (USER_HEADER + BITS + at) as u16, bytes: &[byte ^ mask] });
}

fn set_free(mtr: &mut Mtr, guard: &mut WriteGuard, free: u32) {
    mtr.change(guard, &Change::Patch { offset: (USER_HEADER + FREE) as u16, bytes: &free.to_le_bytes() });
}
