//! What the cache counts. Owned by its shard; read by whoever asks the shard.

use std::cell::Cell;

use super::cache::Shared;

/// A counter that only grows.
#[derive(Default)]
pub(super) struct Counter(Cell<u64>);

impl Counter {
    #[inline]
    pub(super) fn add(&self, count: u64) {
        self.0.set(self.0.get().wrapping_add(count));
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        #[derive(Default)]
        pub(super) struct Counters { $(pub(super) $name: Counter),+ }

        /// Counts since the cache was set up, and its present levels.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct CacheStats {
            $($(#[$doc])* pub $name: u64,)+
            /// Frames in all.
            pub frames: u64,
            /// Frames on the free list.
            pub frames_free: u64,
            /// Blocks in frames, those on their way included.
            pub blocks: u64,
            /// Blocks that are newer than the volume and that this node must write.
            pub dirty: u64,
            /// Past images kept.
            pub past_images: u64,
            /// Bytes of the frames that lie on reserved huge pages.
            pub huge_page_bytes: u64,
        }

        impl Counters {
            pub(super) fn snapshot(&self, shared: &Shared) -> CacheStats {
                CacheStats {
                    $($name: self.$name.0.get(),)+
                    frames: shared.frames.len() as u64,
                    frames_free: shared.free_frames() as u64,
                    blocks: shared.map.len() as u64,
                    dirty: shared.dirty.borrow().len() as u64,
                    past_images: shared.past_images.borrow().len() as u64,
                    huge_page_bytes: shared.arena.reserved_bytes(),
                }
            }
        }
    };
}

counters! {
    /// Latches given on the fast path.
    hits,
    /// Blocks that were not in a frame.
    misses,
    /// Requests to the cluster.
    acquires,
    /// Blocks read from the volume.
    reads,
    /// Blocks received from other nodes.
    received,
    /// Buffers of blocks handed out to be sent to other nodes.
    shipped,
    /// Blocks that did not verify.
    corrupt,
    /// Block writes completed.
    writes,
    /// Operations that it took: neighbouring blocks are written together.
    write_operations,
    /// Batches that the writer could not write.
    write_failures,
    /// Clean blocks that left.
    evictions,
    /// Tasks that stood in line for a latch or a mode.
    latch_waits,
    /// Tasks that waited for a free frame.
    frame_waits,
    /// Mini-transactions finished with changes.
    mini_transactions,
    /// Bytes of redo groups appended.
    redo_bytes,
    /// Whole blocks among them.
    redo_images,
    /// Checkpoints taken.
    checkpoints,
}
