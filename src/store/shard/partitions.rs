//! Whole partitions in the shard that owns them: made, taken apart, freed of dead rows.
//!
//! In the shard's thread. Several nodes may make or drop the same partition at the same time: the space service decides, and
//! who comes second finds it done. A vacuum goes leaf by leaf and lets others work in between.

use super::ShardEngine;
use crate::btree::space::{SpaceReply, SpaceRequest, Urgency};
use crate::btree::{KeyRange, NeedRoom, SpaceError, Tree, Visit};
use crate::ids::PartitionId;
use crate::store::StoreError;
use crate::store::types::VacuumReport;
use crate::txn::TxnError;
use crate::txn::row::Row;

/// Dead rows taken out in one redo group.
const VACUUM_GROUP_ROWS: usize = 128;

impl ShardEngine {
    /// Makes a partition of this number; harmless if it is there.
    ///
    /// # Errors
    /// [`StoreError::VolumeFull`] and faults.
    pub async fn create_partition(&self, partition: PartitionId) -> Result<(), StoreError> {
        let urgency = if partition < PartitionId::FIRST_USER { Urgency::Reserve } else { Urgency::Normal };
        let prepared = self.service.request(SpaceRequest::PreparePartition { partition: Some(partition), urgency }).await;
        let home = match prepared.map_err(TxnError::from) {
            Ok(SpaceReply::Home(home)) => home,
            Ok(other) => unreachable!("a partition was asked for, {other:?} came"),
            Err(_) if self.txns.tree(partition).await.is_ok() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let tree = Tree::create(self.cache(), self.txns.space(), home).await.map_err(TxnError::from)?;
        match self.service.request(SpaceRequest::PublishPartition(home)).await {
            // Another node was quicker: its tree is the one, this one's extent goes back.
            Err(SpaceError::PartitionExists(_)) => {
                let extents = self.txns.space().extents_of(home).await.map_err(TxnError::from)?;
                self.txns.forget_unpublished(home).await?;
                self.service.request(SpaceRequest::FreeExtents(extents)).await.map_err(TxnError::from)?;
                drop(tree);
                self.txns.tree(partition).await?;
            }
            Err(error) => return Err(TxnError::from(error).into()),
            Ok(_) => {}
        }
        Ok(())
    }

    /// Takes a partition apart; harmless if it is gone.
    pub(in crate::store) async fn drop_partition(&self, partition: PartitionId) -> Result<(), StoreError> {
        let tree = match self.txns.tree(partition).await {
            Ok(tree) => tree,
            Err(TxnError::NoSuchPartition(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let extents = match self.txns.space().extents_of(tree.home()).await.map_err(TxnError::from) {
            Ok(extents) => extents,
            // Somebody else is at it.
            Err(TxnError::NoSuchPartition(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        match self.service.request(SpaceRequest::RemovePartition(tree.home())).await {
            Ok(_) => {}
            Err(SpaceError::NoPartition(_)) => return Ok(()),
            Err(error) => return Err(TxnError::from(error).into()),
        }
        // Nobody may have a block of it when its extents get new owners.
        self.txns.forget_everywhere(partition).await?;
        self.service.request(SpaceRequest::FreeExtents(extents)).await.map_err(TxnError::from)?;
        Ok(())
    }

    pub(in crate::store) async fn vacuum(&self, partition: PartitionId) -> Result<VacuumReport, StoreError> {
        let tree = self.txns.tree(partition).await?;
        let mut report = VacuumReport::default();
        let mut more = Some(KeyRange::all());
        while let Some(range) = more.take() {
            let mut dead = Vec::new();
            more = tree
                .scan_leaf(&range, &mut |key, value| {
                    report.rows_seen += 1;
                    if self.txns.is_dead(value) {
                        dead.push(key.to_vec());
                    } else if Row::parse(value).is_some_and(|row| row.is_deleted()) {
                        report.rows_kept += 1;
                    }
                    if dead.len() >= VACUUM_GROUP_ROWS { Visit::StopAfter } else { Visit::Continue }
                })
                .await
                .map_err(TxnError::from)?;
            report.rows_removed += self.remove_dead(&tree, &dead).await?;
            self.reactor().yield_now().await;
        }
        Ok(report)
    }

    async fn remove_dead(&self, tree: &Tree, keys: &[Vec<u8>]) -> Result<u64, StoreError> {
        let never = |_: &[u8], _: &[u8]| false;
        let mut keys = keys.iter().map(Vec::as_slice).peekable();
        let mut removed = 0;
        while let Some(first) = keys.next() {
            let redo_bytes = VACUUM_GROUP_ROWS * 16;
            let room = NeedRoom { value_len: 0, redo_bytes, urgency: Urgency::Reserve, dead: &never };
            let (mut leaf, mut mtr) = tree.seek_write(first, room).await.map_err(TxnError::from)?;
            loop {
                if leaf.value().is_some_and(|value| self.txns.is_dead(value)) {
                    leaf.remove(&mut mtr);
                    removed += 1;
                }
                match keys.peek() {
                    Some(next) if leaf.move_to(next, 0) => drop(keys.next()),
                    _ => break,
                }
            }
            mtr.finish();
        }
        Ok(removed)
    }
}
