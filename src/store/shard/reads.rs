//! Reads in a shard, as of the operation's snapshot: at once where nothing has to be waited for, and else by waiting.
//!
//! In the shard's thread. What has been read is shown only under the node's lease to read, which is looked at after the read:
//! without it the others may have gone on without this node, and what is cached here be out of date.

use std::time::Duration;

use super::{Context, ShardEngine};
use crate::btree::KeyRange;
use crate::ids::PartitionId;
use crate::rules::{DesignRule, kept};
use crate::store::StoreError;
use crate::store::types::*;
use crate::txn::{Cancel, Glance, View};

/// How long a read waits for the node's lease to read to be renewed.
const LEASE_PATIENCE: Duration = Duration::from_secs(5);
const LEASE_POLL: Duration = Duration::from_millis(2);

impl ShardEngine {
    /// Shows the newest committed row to `look`, for readers in this very thread; `None`: use a session. No hop, no copy, no
    /// allocation.
    ///
    /// # Errors
    /// When a block or the row is damaged.
    pub fn get_with<R>(
        &self,
        partition: PartitionId,
        key: &[u8],
        look: impl FnOnce(Option<&[u8]>) -> R,
    ) -> Result<Option<R>, StoreError> {
        let Some(tree) = self.txns.known_tree(partition) else { return Ok(None) };
        // A look that doesn't wait needs no registered snapshot: nothing is recycled while it runs.
        let view = View { snapshot: self.txns.shared().clock.latest(), own: None };
        match self.txns.glance(&tree, key, view, look)? {
            Glance::Seen(seen) if self.may_read() => Ok(Some(seen)),
            Glance::Seen(_) | Glance::NotNow => Ok(None),
        }
    }

    /// The row, if that takes no waiting.
    pub(in crate::store) fn try_get(
        &self,
        context: Context,
        partition: PartitionId,
        key: &[u8],
    ) -> Result<Option<Option<Vec<u8>>>, StoreError> {
        let Some(tree) = self.txns.known_tree(partition) else { return Ok(None) };
        match self.txns.glance(&tree, key, self.view(context), |row| row.map(<[u8]>::to_vec))? {
            Glance::Seen(row) if self.may_read() => Ok(Some(row)),
            Glance::Seen(_) | Glance::NotNow => Ok(None),
        }
    }

    pub(in crate::store) async fn get_many(
        &self,
        context: Context,
        partition: PartitionId,
        keys: &[Vec<u8>],
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let tree = self.txns.tree(partition).await?;
        let cancel = Cancel::new();
        let _running = self.running(context.session, &cancel);
        let view = self.view(context);
        let mut rows = Vec::with_capacity(keys.len());
        for key in keys {
            rows.push(self.txns.get(&tree, key, view, &cancel).await?);
        }
        self.wait_for_lease().await?;
        Ok(rows)
    }

    pub(in crate::store) async fn scan(
        &self,
        context: Context,
        partition: PartitionId,
        range: ScanRange,
        limit: ScanLimit,
    ) -> Result<ScanChunk, StoreError> {
        let tree = self.txns.tree(partition).await?;
        let cancel = Cancel::new();
        let _running = self.running(context.session, &cancel);
        let range = KeyRange { lower: range.lower, upper: range.upper, reverse: range.reverse };
        let limits = (limit.bytes.max(1), limit.rows.max(1));
        let found = self.txns.scan(&tree, &range, limits, self.view(context), &cancel).await?;
        let more = found.more.map(|range| ScanRange { lower: range.lower, upper: range.upper, reverse: range.reverse });
        self.wait_for_lease().await?;
        Ok(ScanChunk { rows: found.rows, more })
    }

    fn view(&self, context: Context) -> View {
        let own = context.isolation.and_then(|_| self.branch(context.session)).and_then(|branch| branch.txn.id());
        View { snapshot: context.snapshot, own }
    }

    fn may_read(&self) -> bool {
        self.txns.shared().serving.may_read(|| self.reactor().now()) || !kept(DesignRule::LeaseToRead)
    }

    /// Waits until what was read may be shown, which it nearly always may: to be called between reading and answering, for then
    /// nobody has gone on without this node before it read.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the node is suspended, or after [`LEASE_PATIENCE`].
    pub(super) async fn wait_for_lease(&self) -> Result<(), StoreError> {
        let since = self.reactor().now();
        while !self.may_read() {
            if let Some(reason) = self.txns.shared().serving.reason() {
                return Err(StoreError::Unavailable { reason });
            }
            if self.reactor().now().since(since) > LEASE_PATIENCE {
                let seconds = LEASE_PATIENCE.as_secs();
                let reason = format!(
                    "too few of the other nodes have answered this one for {seconds} s, so what it has cached may be out of date: \
                     check the interconnect, and how loaded the nodes are"
                );
                return Err(StoreError::Unavailable { reason });
            }
            self.reactor().sleep(LEASE_POLL).await;
        }
        Ok(())
    }
}
