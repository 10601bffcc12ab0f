//! The memory of the frames: one mapping, 8 KiB-aligned frames, on huge pages where the kernel gives them.
//!
//! Owned by one shard's cache, fixed in size for its life. The arena promises only where a frame's bytes are; who may
//! look at them is the business of the latches in [`super::guards`], so its accessors are unsafe.

use std::io;

use memmap2::{Advice, MmapMut, MmapOptions};

use super::frame::FrameId;
use crate::ids::BLOCK_SIZE;

/// A huge page of x86-64 and of the usual aarch64 kernels; frames begin at a boundary of it.
pub(crate) const HUGE_PAGE: usize = 1 << HUGE_PAGE_BITS;
const HUGE_PAGE_BITS: u8 = 21;

/// The mapped frames.
pub(super) struct Arena {
    /// Keeps the memory mapped; all access goes through `base`. `None` once it stays mapped until the process ends.
    mapping: Option<MmapMut>,
    base: *mut u8,
    frames: usize,
    /// It lies on huge pages that were reserved for the likes of it.
    reserved: bool,
}

impl Arena {
    /// Maps `frames` frames of zeros: on reserved huge pages if there are enough of them free, otherwise on memory that is taken as
    /// frames are first used, which the kernel may give in huge pages.
    pub(super) fn map(frames: usize) -> io::Result<Arena> {
        let bytes = frames * BLOCK_SIZE;
        let reserved = if bytes >= HUGE_PAGE { map_reserved(bytes.next_multiple_of(HUGE_PAGE)) } else { None };
        let is_reserved = reserved.is_some();
        let mut mapping = match reserved {
            Some(mapping) => mapping,
            None => {
                let mapping = MmapOptions::new().len(bytes + HUGE_PAGE).map_anon()?;
                // Only an advice: without huge pages everything works, with more misses in the TLB.
                let _ = mapping.advise(Advice::HugePage);
                mapping
            }
        };
        let start = mapping.as_mut_ptr();
        let base = start.wrapping_add(start.align_offset(HUGE_PAGE));
        assert!(base as usize + bytes <= start as usize + mapping.len(), "the arena does not fit its mapping");
        Ok(Arena { mapping: Some(mapping), base, frames, reserved: is_reserved })
    }

    /// Bytes on reserved huge pages: all or none.
    pub(super) fn reserved_bytes(&self) -> u64 {
        if self.reserved { (self.frames * BLOCK_SIZE) as u64 } else { 0 }
    }

    /// All of it, to register with the driver; it stays mapped until the process ends.
    pub(super) fn keep_mapped(&mut self) -> (*mut u8, usize) {
        std::mem::forget(self.mapping.take());
        (self.base, self.frames * BLOCK_SIZE)
    }

    /// Where a frame's bytes are.
    #[inline]
    pub(super) fn address(&self, frame: FrameId) -> *mut u8 {
        let index = frame.0 as usize;
        assert!(index < self.frames, "{frame:?} is beyond the arena's {} frames", self.frames);
        self.base.wrapping_add(index * BLOCK_SIZE)
    }

    /// A frame's bytes, to read.
    ///
    /// # Safety
    /// Nobody changes the frame while the slice lives: the caller holds its latch, or doesn't leave this turn of the shard.
    #[inline]
    pub(super) unsafe fn bytes(&self, frame: FrameId) -> &[u8] {
        // SAFETY: the address is inside the mapping, which lives as long as self; the caller excludes changes.
        unsafe { std::slice::from_raw_parts(self.address(frame), BLOCK_SIZE) }
    }

    /// A frame's bytes, to change.
    ///
    /// # Safety
    /// Nobody else looks at the frame while the slice lives: the caller holds its exclusive latch, or the frame is not
    /// yet, or no longer, in use and the caller doesn't leave this turn of the shard.
    #[inline]
    #[allow(clippy::mut_from_ref)] // The latch is what makes the reference unique; see Safety.
    pub(super) unsafe fn bytes_mut(&self, frame: FrameId) -> &mut [u8] {
        // SAFETY: the address is inside the mapping, which lives as long as self; the caller excludes everyone else.
        unsafe { std::slice::from_raw_parts_mut(self.address(frame), BLOCK_SIZE) }
    }
}

/// Memory on huge pages that the operator has reserved (`vm.nr_hugepages`); `None` when there are too few.
///
/// All of it is taken now: where a cgroup forbids what the kernel had promised, that is an error here, and would be a SIGBUS at
/// the first use of a page later.
fn map_reserved(bytes: usize) -> Option<MmapMut> {
    let mapping = MmapOptions::new().len(bytes).huge(Some(HUGE_PAGE_BITS)).map_anon().ok()?;
    mapping.advise(Advice::PopulateWrite).ok()?;
    Some(mapping)
}
