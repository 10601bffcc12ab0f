//! The blocks of a partition: its chain of extents, and who takes which block of them.
//!
//! Owned by one shard, for the partitions that live there. The extent headers on the volume are the truth; in memory is
//! only which extents of this node are worth looking at (at most [`EXTENTS_REMEMBERED_MAX`] a partition) and which blocks
//! have been promised to a change that is not made yet ([`Claim`]). Only the node that asked for an extent takes blocks
//! from it, so that a promise needs no message.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use super::{EXTENTS_PER_REQUEST_MAX, PartitionHome, SpaceReply, SpaceRequest, SpaceService, Urgency, make_durable};
use crate::btree::error::SpaceError;
use crate::cache::{Cache, CacheError, Mtr, WriteGuard};
use crate::ids::{BLOCK_SIZE, BlockId, BlockNo, NodeId, PartitionId};
use crate::reactor::Class;
use crate::reactor::sync::{Permit, Semaphore, oneshot};
use crate::volume::block::{self, BlockKind};
use crate::volume::change::Change;
use crate::volume::layout::EXTENT_BLOCKS;
use crate::volume::page::{Page, USER_HEADER};

/// Most extents of one partition that the allocator keeps in mind.
pub const EXTENTS_REMEMBERED_MAX: usize = 64;

/// Extents that are looked at along the chain before a new one is asked for.
const WALK_STEPS: usize = 16;

/// Longest chain of extents that is believed; beyond it the links go in a circle.
const CHAIN_MAX: usize = 1 << 24;

/// Most redo of linking new extents into a chain, in bytes.
const LINK_REDO_MAX: usize = 4096;

/// Most redo of formatting a partition, in bytes.
const FORMAT_REDO_MAX: usize = 2 * BLOCK_SIZE;

/// Most redo of one freed block, in bytes.
const FREE_REDO_MAX: usize = 512;

const OWNER: usize = 0;
const USED: usize = 4;
const NEXT: usize = 8;
const EXTENT_HEADER: usize = 24;

/// An extent header, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ExtentHeader {
    /// The node that takes blocks from it; 0 is nobody.
    pub(super) owner: NodeId,
    /// Bit `i` is block `i` of the extent; bit 0, the header, is always set.
    pub(super) used: u32,
    /// The next extent of the partition.
    pub(super) next: Option<BlockNo>,
}

impl ExtentHeader {
    fn encode(self) -> [u8; EXTENT_HEADER] {
        let mut bytes = [0; EXTENT_HEADER];
        bytes[OWNER] = self.owner.0;
        bytes[USED..USED + 4].copy_from_slice(&self.used.to_le_bytes());
        bytes[NEXT..NEXT + 8].copy_from_slice(&self.next.map_or(0, |next| next.0).to_le_bytes());
        bytes
    }

    fn decode(id: BlockId, block: &[u8]) -> Result<ExtentHeader, SpaceError> {
        let damaged = SpaceError::Corrupt { block: id, what: "it is no extent header" };
        let bytes = match block::kind(block) {
            Some(BlockKind::ExtentHeader) => Page::new(block).user_header(),
            _ => return Err(damaged),
        };
        let bytes: &[u8; EXTENT_HEADER] = bytes.try_into().map_err(|_| damaged)?;
        let next = u64::from_le_bytes(bytes[NEXT..NEXT + 8].try_into().expect("eight bytes"));
        Ok(ExtentHeader {
            owner: NodeId(bytes[OWNER]),
            used: u32::from_le_bytes(bytes[USED..USED + 4].try_into().expect("four bytes")),
            next: (next != 0).then_some(BlockNo(next)),
        })
    }
}

/// Gives out and takes back the blocks of the partitions that live in this shard. Clones are the same allocator.
#[derive(Clone)]
pub struct BlockAllocator(Rc<Inner>);

struct Inner {
    cache: Cache,
    service: Rc<dyn SpaceService>,
    node: NodeId,
    /// Where extent 0 begins.
    extents_first: BlockNo,
    partitions: RefCell<HashMap<PartitionId, Rc<Growth>>>,
}

/// What is remembered of one partition.
struct Growth {
    /// Extents of this node that may have free blocks.
    known: RefCell<VecDeque<BlockNo>>,
    /// Blocks promised, by extent header.
    claimed: RefCell<HashMap<BlockNo, u32>>,
    /// Where to go on looking along the chain; `None` at its end.
    walk: Cell<Option<BlockNo>>,
    /// There were more extents with free blocks than can be remembered: walk the chain again when it has ended.
    overlooked: Cell<bool>,
    /// Extents seen or added: how large the partition is, roughly.
    seen: Cell<u64>,
    /// One task at a time looks for more.
    growing: Semaphore,
}

/// Blocks promised to one task, for a change that it is about to make. Dropped without [`Claim::mark`], they are free again.
pub struct Claim {
    allocator: BlockAllocator,
    partition: PartitionId,
    growth: Rc<Growth>,
    blocks: Vec<BlockNo>,
    marked: Cell<bool>,
}

impl BlockAllocator {
    /// An allocator for the shard that `cache` belongs to. `extents_first` is where the volume's extent
    /// 0 begins.
    #[must_use]
    pub fn new(cache: &Cache, service: Rc<dyn SpaceService>, node: NodeId, extents_first: BlockNo) -> BlockAllocator {
        assert!(node.0 > 0, "only a member of the cluster allocates blocks");
        BlockAllocator(Rc::new(Inner { cache: cache.clone(), service, node, extents_first, partitions: RefCell::default() }))
    }

    /// Formats the first two blocks of a partition that was prepared: the extent header, and the root by the changes given
    /// (the first must be a `Format`). One redo group; durable on return.
    ///
    /// # Errors
    /// When a block can't be had.
    pub async fn format_partition(&self, home: PartitionHome, root_changes: &[Change<'_>]) -> Result<(), SpaceError> {
        let cache = &self.0.cache;
        let mut mtr = cache.begin_mtr(FORMAT_REDO_MAX).await?;
        let mut header = cache.create(home.head()).await?;
        let mut root = cache.create(home.root()).await?;
        format_header(&mut mtr, &mut header, ExtentHeader { owner: self.0.node, used: 0b11, next: None });
        for change in root_changes {
            mtr.change(&mut root, change);
        }
        let end = mtr.finish();
        drop((header, root));
        make_durable(cache, end).await?;
        Ok(())
    }

    /// Promises `count` blocks of the partition to the caller, asking for more extents where none are free. The caller holds
    /// no block.
    ///
    /// # Errors
    /// [`SpaceError::VolumeFull`], or a block of the space management that can't be had.
    pub async fn claim(&self, home: PartitionHome, count: usize, urgency: Urgency) -> Result<Claim, SpaceError> {
        let growth = self.growth(home);
        let mut claim = Claim {
            allocator: self.clone(),
            partition: home.partition,
            growth,
            blocks: Vec::with_capacity(count),
            marked: Cell::new(false),
        };
        let growth = claim.growth.clone();
        self.claim_known(&mut claim, count).await?;
        while claim.blocks.len() < count {
            // Whoever comes second finds what the first has got.
            let turn = growth.growing.acquire(1).await;
            self.claim_known(&mut claim, count).await?;
            if claim.blocks.len() < count && !self.walk(home, &growth).await? {
                self.grow_to_the_end(home, &growth, urgency, turn).await?;
            }
            self.claim_known(&mut claim, count).await?;
        }
        Ok(claim)
    }

    /// Takes a block back. Nobody may refer to it any more, durably or not. The caller holds no block.
    ///
    /// # Errors
    /// When the extent header can't be had, or a block was free already: two owners believed that it was theirs. Blocks in
    /// other extents may have been freed.
    pub async fn free(&self, home: PartitionHome, blocks: &[BlockNo]) -> Result<(), SpaceError> {
        let mut by_extent: BTreeMap<BlockNo, u32> = BTreeMap::new();
        for &block in blocks {
            let (extent, bit) = self.place(block);
            *by_extent.entry(extent).or_default() |= bit;
        }
        for (extent, bits) in by_extent {
            let id = BlockId::new(home.partition, extent);
            let mut mtr = self.0.cache.begin_mtr(FREE_REDO_MAX).await?;
            let mut guard = self.0.cache.write(id).await?;
            let header = ExtentHeader::decode(id, &guard)?;
            if header.used & bits != bits {
                return Err(SpaceError::Corrupt { block: id, what: "a block that is to be freed is free already" });
            }
            set_used(&mut mtr, &mut guard, header.used & !bits);
            mtr.finish();
            if header.owner == self.0.node {
                self.growth(home).remember(extent);
            }
        }
        Ok(())
    }

    /// All the extents of a partition, by their header blocks. For dropping it: the caller sees to it that nobody extends
    /// the partition meanwhile.
    ///
    /// # Errors
    /// When an extent header can't be had.
    pub async fn extents_of(&self, home: PartitionHome) -> Result<Vec<BlockNo>, SpaceError> {
        let (mut extents, mut at) = (Vec::new(), Some(home.first_extent));
        while let Some(extent) = at {
            if extents.len() > CHAIN_MAX {
                return Err(SpaceError::Corrupt { block: home.head(), what: "its chain of extents goes in a circle" });
            }
            extents.push(extent);
            at = self.read_header(home.partition, extent).await?.next;
        }
        Ok(extents)
    }

    /// Which blocks of an extent are in use, a bit each; bit 0 is the header itself. For checks of the space.
    ///
    /// # Errors
    /// When the extent header can't be had.
    pub async fn used_in(&self, partition: PartitionId, extent: BlockNo) -> Result<u32, SpaceError> {
        Ok(self.read_header(partition, extent).await?.used)
    }

    /// Forgets a partition that is being dropped. Claims that are still held for it die with the partition.
    pub fn forget(&self, partition: PartitionId) {
        self.0.partitions.borrow_mut().remove(&partition);
    }

    fn growth(&self, home: PartitionHome) -> Rc<Growth> {
        let mut partitions = self.0.partitions.borrow_mut();
        let fresh = || {
            Rc::new(Growth {
                known: RefCell::default(),
                claimed: RefCell::default(),
                walk: Cell::new(Some(home.first_extent)),
                overlooked: Cell::new(false),
                seen: Cell::new(0),
                growing: Semaphore::new(1),
            })
        };
        partitions.entry(home.partition).or_insert_with(fresh).clone()
    }

    /// The extent header that a block belongs to, and its bit there.
    fn place(&self, block: BlockNo) -> (BlockNo, u32) {
        let start = self.0.extents_first.0;
        assert!(block.0 > start, "{block} lies before the volume's data");
        let within = (block.0 - start) % EXTENT_BLOCKS;
        assert!(within > 0, "{block} is an extent header");
        (BlockNo(block.0 - within), 1 << within)
    }

    async fn read_header(&self, partition: PartitionId, extent: BlockNo) -> Result<ExtentHeader, SpaceError> {
        let id = BlockId::new(partition, extent);
        let guard = match self.0.cache.try_read(id) {
            Some(guard) => guard,
            None => self.0.cache.read(id).await?,
        };
        ExtentHeader::decode(id, &guard)
    }

    /// Claims from the extents that are known, and forgets those that have nothing left.
    async fn claim_known(&self, claim: &mut Claim, count: usize) -> Result<(), SpaceError> {
        let growth = claim.growth.clone();
        while claim.blocks.len() < count {
            let Some(extent) = growth.known.borrow().front().copied() else { return Ok(()) };
            let header = self.read_header(claim.partition, extent).await?;
            // No waiting from here on: nobody else claims between the look and the claim.
            let mut claimed = growth.claimed.borrow_mut();
            let taken = claimed.entry(extent).or_default();
            let mut free = !(header.used | *taken);
            while free != 0 && claim.blocks.len() < count {
                let bit = free & free.wrapping_neg();
                claim.blocks.push(BlockNo(extent.0 + u64::from(bit.trailing_zeros())));
                *taken |= bit;
                free &= !bit;
            }
            if *taken == 0 {
                claimed.remove(&extent);
            }
            if free == 0 {
                growth.known.borrow_mut().retain(|known| *known != extent);
            }
        }
        Ok(())
    }

    /// Looks further along the chain for extents of this node with free blocks. True when there is one, or more to look at.
    async fn walk(&self, home: PartitionHome, growth: &Growth) -> Result<bool, SpaceError> {
        for _ in 0..WALK_STEPS {
            let extent = match growth.walk.get() {
                Some(extent) => extent,
                None if growth.overlooked.replace(false) => {
                    growth.seen.set(0);
                    home.first_extent
                }
                None => return Ok(false),
            };
            let header = self.read_header(home.partition, extent).await?;
            growth.walk.set(header.next);
            growth.seen.set(growth.seen.get() + 1);
            let taken = growth.claimed.borrow().get(&extent).copied().unwrap_or(0);
            if header.owner == self.0.node && header.used | taken != u32::MAX {
                growth.remember(extent);
                return Ok(true);
            }
        }
        // Nothing so far: take a new extent now, and go on looking when that is full.
        Ok(false)
    }

    /// Grows in a task of its own: whoever asked may go away meanwhile, and the extents must not get lost with him.
    async fn grow_to_the_end(
        &self,
        home: PartitionHome,
        growth: &Rc<Growth>,
        urgency: Urgency,
        turn: Permit,
    ) -> Result<(), SpaceError> {
        let (allocator, growth) = (self.clone(), growth.clone());
        let (sender, receiver) = oneshot();
        self.0.cache.reactor().spawn(Class::Normal, "extend a partition", async move {
            let result = allocator.grow(home, &growth, urgency).await;
            drop(turn);
            // Nobody waits any more: what has grown is there for the next.
            let _ = sender.send(result);
        });
        receiver.await.unwrap_or(Err(SpaceError::Closed))
    }

    /// Asks for extents and puts them behind the first one in the chain.
    async fn grow(&self, home: PartitionHome, growth: &Growth, urgency: Urgency) -> Result<(), SpaceError> {
        // A partition grows by a quarter of what it has, so that a large load waits seldom and a small table stays small.
        let count = (growth.seen.get() / 4).clamp(1, u64::from(EXTENTS_PER_REQUEST_MAX)) as u16;
        let request = SpaceRequest::AllocateExtents { partition: home.partition, count, urgency };
        let extents = match self.0.service.request(request).await? {
            SpaceReply::Extents(extents) => extents,
            other => unreachable!("extents were asked for, {other:?} came"),
        };
        let cache = &self.0.cache;
        let mut mtr = cache.begin_mtr(LINK_REDO_MAX).await?;
        let mut head = match cache.write(home.head()).await {
            Ok(head) => head,
            Err(error) => {
                drop(mtr);
                if matches!(error, CacheError::Dropped { .. }) {
                    // Nobody will ever find them in the chain, and nothing was written to them.
                    self.0.service.request(SpaceRequest::FreeExtents(extents)).await?;
                }
                return Err(error.into());
            }
        };
        let mut next = ExtentHeader::decode(home.head(), &head)?.next;
        let mut guards = Vec::with_capacity(extents.len());
        for &extent in &extents {
            guards.push(cache.create(BlockId::new(home.partition, extent)).await?);
        }
        for (&extent, guard) in extents.iter().zip(&mut guards).rev() {
            format_header(&mut mtr, guard, ExtentHeader { owner: self.0.node, used: 1, next });
            next = Some(extent);
        }
        let first = extents[0];
        mtr.change(&mut head, &Change::Patch { offset: (USER_HEADER + NEXT) as u16, bytes: &first.0.to_le_bytes() });
        mtr.finish();
        growth.seen.set(growth.seen.get() + extents.len() as u64);
        extents.into_iter().for_each(|extent| growth.remember(extent));
        Ok(())
    }
}

impl Growth {
    fn remember(&self, extent: BlockNo) {
        let mut known = self.known.borrow_mut();
        if known.contains(&extent) {
            return;
        }
        if known.len() < EXTENTS_REMEMBERED_MAX {
            known.push_back(extent);
        } else {
            self.overlooked.set(true);
        }
    }
}

impl Claim {
    /// The blocks.
    #[must_use]
    pub fn blocks(&self) -> &[BlockNo] {
        &self.blocks
    }

    /// Parts the first `count` blocks off.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn take(&mut self, count: usize) -> Claim {
        let rest = self.blocks.split_off(count);
        let blocks = std::mem::replace(&mut self.blocks, rest);
        let (allocator, growth) = (self.allocator.clone(), self.growth.clone());
        Claim { allocator, partition: self.partition, growth, blocks, marked: Cell::new(false) }
    }

    /// Holds the extent headers of the blocks, in ascending order. The caller may hold tree nodes, and nothing that comes
    /// later in the lock order.
    ///
    /// # Errors
    /// When a header can't be had.
    pub async fn lock(&self) -> Result<ClaimHeaders, SpaceError> {
        let mut extents: Vec<BlockNo> = self.blocks.iter().map(|&block| self.allocator.place(block).0).collect();
        extents.sort_unstable();
        extents.dedup();
        let mut headers = Vec::with_capacity(extents.len());
        for extent in extents {
            let id = BlockId::new(self.partition, extent);
            let guard = self.allocator.0.cache.write(id).await?;
            ExtentHeader::decode(id, &guard)?;
            headers.push((extent, guard));
        }
        Ok(ClaimHeaders(headers))
    }

    /// Marks the blocks as used, in the group of the change that uses them. From here on they are the partition's.
    pub fn mark(&self, mtr: &mut Mtr, headers: &mut ClaimHeaders) {
        assert!(!self.marked.replace(true), "a claim is marked once");
        for (extent, guard) in &mut headers.0 {
            let id = BlockId::new(self.partition, *extent);
            let header = ExtentHeader::decode(id, guard).expect("an extent header that is held stays one");
            let bits = self.bits_in(*extent);
            assert_eq!(header.used & bits, 0, "{id}: a claimed block is in use already");
            set_used(mtr, guard, header.used | bits);
        }
        self.give_up_claims();
    }

    fn bits_in(&self, extent: BlockNo) -> u32 {
        self.blocks
            .iter()
            .map(|&block| self.allocator.place(block))
            .filter(|(of, _)| *of == extent)
            .fold(0, |bits, (_, bit)| bits | bit)
    }

    fn give_up_claims(&self) {
        let mut claimed = self.growth.claimed.borrow_mut();
        for &block in &self.blocks {
            let (extent, bit) = self.allocator.place(block);
            let taken = claimed.get_mut(&extent).expect("a claim is remembered until it is marked or dropped");
            assert!(*taken & bit != 0, "{block}: its claim was lost");
            *taken &= !bit;
            if *taken == 0 {
                claimed.remove(&extent);
            }
        }
    }
}

/// The extent headers of a claim, held.
pub struct ClaimHeaders(Vec<(BlockNo, WriteGuard)>);

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.marked.get() {
            self.give_up_claims();
            for &block in &self.blocks {
                self.growth.remember(self.allocator.place(block).0);
            }
        }
    }
}

pub(super) fn format_header(mtr: &mut Mtr, guard: &mut WriteGuard, header: ExtentHeader) {
    let (kind, user_len) = (BlockKind::ExtentHeader, EXTENT_HEADER as u16);
    mtr.change(guard, &Change::Format { kind, user_len, user_header: &header.encode() });
}

fn set_used(mtr: &mut Mtr, guard: &mut WriteGuard, used: u32) {
    mtr.change(guard, &Change::Patch { offset: (USER_HEADER + USED) as u16, bytes: &used.to_le_bytes() });
}
