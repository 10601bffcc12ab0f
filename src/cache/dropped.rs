//! Partitions whose blocks never come back into a cache.
//!
//! The space of a dropped partition is given to others. Whoever still has its root in mind (a statement whose client hung up,
//! a rollback, a task that extends it) would write a block of it over the new owner's. So a cache in which a partition was
//! dropped takes no block of it any more, whoever asks: numbers of partitions are not used again. Owned by the shard;
//! bounded by the partitions that live ([`PartitionSet`]).

use std::collections::BTreeMap;

use super::cache::{Cache, Shared};
use super::error::CacheError;
use crate::ids::{BlockId, PartitionId};
use crate::wal::LogError;
use crate::wal::redo::{BlocksForgotten, RecordKind};

/// A set of partitions, as ranges: those that were dropped one after the other take one entry, so that there are never many
/// more entries than partitions between them that live.
#[derive(Debug, Default)]
pub(super) struct PartitionSet {
    /// First to last.
    ranges: BTreeMap<u32, u32>,
}

impl PartitionSet {
    #[inline]
    pub(super) fn contains(&self, partition: PartitionId) -> bool {
        self.ranges.range(..=partition.0).next_back().is_some_and(|(_, last)| partition.0 <= *last)
    }

    pub(super) fn insert(&mut self, partition: PartitionId) {
        if self.contains(partition) {
            return;
        }
        let (mut first, mut last) = (partition.0, partition.0);
        if let Some((&before, _)) = self.ranges.range(..first).next_back().filter(|(_, end)| **end + 1 == first) {
            first = before;
        }
        if let Some(after) = last.checked_add(1).and_then(|next| self.ranges.remove(&next)) {
            last = after;
        }
        self.ranges.insert(first, last);
    }
}

impl Cache {
    /// Whether the partition was dropped here.
    #[must_use]
    pub fn is_dropped(&self, partition: PartitionId) -> bool {
        self.0.dropped.borrow().contains(partition)
    }

    /// Ends a partition in this cache: from now on nobody gets a block of it ([`CacheError::Dropped`]), and when this returns
    /// none is left here, written first where it was dirty, and no past image: nothing of it will be written again.
    /// Where the volume refuses a write, this waits and the writer tries again.
    ///
    /// # Errors
    /// [`CacheError::Closed`]; the caller keeps the partition's space then.
    pub async fn drop_partition(&self, partition: PartitionId) -> Result<(), CacheError> {
        let shared = &self.0;
        shared.dropped.borrow_mut().insert(partition);
        self.let_go(partition).await?;
        // Owners elsewhere write them when they are asked, or because they drop the partition, too.
        loop {
            let kept: Vec<BlockId> =
                shared.past_images.borrow().keys().copied().filter(|block| block.partition == partition).collect();
            if kept.is_empty() {
                return Ok(());
            }
            let mut kept = kept;
            kept.sort_unstable();
            kept.into_iter().for_each(|block| shared.coherence.request_write(block));
            self.pause().await?;
        }
    }

    /// Lets every block of a partition leave this cache, written first where it is dirty. They may come back.
    ///
    /// # Errors
    /// [`CacheError::Closed`].
    pub async fn let_go(&self, partition: PartitionId) -> Result<(), CacheError> {
        let shared = &self.0;
        for (block, _) in shared.map.entries().into_iter().filter(|(block, _)| block.partition == partition) {
            // Each await may let it leave, come back, or become dirty again.
            while let Some(id) = shared.map.find(block) {
                let frame = shared.frame(id);
                if frame.evictable() {
                    shared.evict(id);
                } else if frame.dirty.get() {
                    // A failure has been logged, and the writer tries again.
                    if self.write_now(block).await.is_err() {
                        self.pause().await?;
                    }
                } else {
                    self.pause().await?;
                }
            }
        }
        Ok(())
    }

    /// Says in the log, durably, that blocks have left their partition for good; afterwards their space may go to others. By
    /// now none of them is here.
    ///
    /// # Errors
    /// When the log takes no more.
    pub async fn log_forgotten(&self, forgotten: BlocksForgotten) -> Result<(), CacheError> {
        let log = &self.0.log;
        let failed = |error: LogError| CacheError::log(&error);
        let mut payload = Vec::new();
        forgotten.encode(&mut payload);
        let mut reservation = log.reserve(payload.len()).await.map_err(failed)?;
        let end = log.append(&mut reservation, RecordKind::BlocksForgotten, &[&payload]);
        log.flush_to(end).await.map_err(failed)
    }

    async fn pause(&self) -> Result<(), CacheError> {
        if self.0.closed.get() {
            return Err(CacheError::Closed);
        }
        self.0.reactor.sleep(Shared::tick() / 100).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_has_what_was_put_in_and_few_ranges(put in proptest::collection::vec(0u32..60, 0..80)) {
            let (mut set, mut model) = (PartitionSet::default(), BTreeSet::new());
            for number in put {
                set.insert(PartitionId(number));
                model.insert(number);
            }
            for number in 0..60 {
                prop_assert_eq!(set.contains(PartitionId(number)), model.contains(&number));
            }
            let gaps = (1..60).filter(|number| model.contains(number) && !model.contains(&(number - 1))).count();
            prop_assert_eq!(set.ranges.len(), gaps + usize::from(model.contains(&0)));
        }
    }
}
