//! The mastership map of one epoch: bucket → master.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::ring::Ring;
use super::{BUCKETS, Bucket};
use crate::ids::{BlockId, Epoch, NodeId};

/// Who masters which bucket in one epoch. A look-up is one hash and one array access; the map takes 128 KiB.
#[derive(Clone, PartialEq, Eq)]
pub struct MastershipMap {
    epoch: Epoch,
    members: Vec<NodeId>,
    /// The ring's word on each bucket.
    ring: Arc<[NodeId]>,
    owners: Vec<NodeId>,
    overrides: BTreeMap<Bucket, NodeId>,
}

/// Why a map cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// There is no member to master anything.
    NoMembers,
    /// An override names a node that is not a member.
    NotAMember {
        /// The bucket that was to be moved.
        bucket: Bucket,
        /// The node that it was to be moved to.
        node: NodeId,
    },
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MapError::NoMembers => write!(f, "a mastership map needs at least one member node; check the cluster's node list"),
            MapError::NotAMember { bucket, node } => {
                write!(f, "bucket {} cannot be mastered by {node}, which is not a member of this epoch", bucket.0)
            }
        }
    }
}

impl std::error::Error for MapError {}

impl MastershipMap {
    /// The map of `epoch` for these members: the ring's with `virtual_nodes` points each, but for the `overrides`. The
    /// order of the members is of no account. Every node must make it from the same arguments.
    pub fn new(
        epoch: Epoch,
        members: &[NodeId],
        virtual_nodes: u32,
        overrides: BTreeMap<Bucket, NodeId>,
    ) -> Result<MastershipMap, MapError> {
        let mut members = members.to_vec();
        members.sort_unstable();
        members.dedup();
        assert!(virtual_nodes > 0, "a node without a point on the ring masters nothing");
        if members.is_empty() {
            return Err(MapError::NoMembers);
        }
        if let Some((&bucket, &node)) = overrides.iter().find(|(_, node)| !members.contains(node)) {
            return Err(MapError::NotAMember { bucket, node });
        }
        let ring = Ring::new(&members, virtual_nodes);
        let ring: Arc<[NodeId]> = (0..BUCKETS).map(|bucket| ring.owner(Bucket(bucket as u16))).collect();
        let mut owners = ring.to_vec();
        for (bucket, &node) in &overrides {
            owners[usize::from(bucket.0)] = node;
        }
        Ok(MastershipMap { epoch, members, ring, owners, overrides })
    }

    /// The same map but for one bucket, which `node` masters from now on. Back in its place on the ring, it is no override
    /// any more.
    #[must_use]
    pub fn moved(&self, bucket: Bucket, node: NodeId) -> MastershipMap {
        assert!(self.members.contains(&node), "{bucket:?} goes to {node}, which is not a member of {self:?}");
        let mut map = self.clone();
        map.owners[usize::from(bucket.0)] = node;
        if map.ring_master(bucket) == node {
            map.overrides.remove(&bucket);
        } else {
            map.overrides.insert(bucket, node);
        }
        map
    }

    /// The epoch that the map is of.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The members, ascending.
    #[must_use]
    pub fn members(&self) -> &[NodeId] {
        &self.members
    }

    /// The buckets that affinity has moved away from their place on the ring.
    #[must_use]
    pub fn overrides(&self) -> &BTreeMap<Bucket, NodeId> {
        &self.overrides
    }

    /// The master of a block.
    #[must_use]
    pub fn master(&self, block: BlockId) -> NodeId {
        self.owners[usize::from(Bucket::of(block).0)]
    }

    /// The master of a bucket.
    #[must_use]
    pub fn master_of_bucket(&self, bucket: Bucket) -> NodeId {
        self.owners[usize::from(bucket.0)]
    }

    /// Who would master the bucket without an override.
    #[must_use]
    pub fn ring_master(&self, bucket: Bucket) -> NodeId {
        self.ring[usize::from(bucket.0)]
    }

    /// How many buckets `node` masters.
    #[must_use]
    pub fn buckets_of(&self, node: NodeId) -> usize {
        self.owners.iter().filter(|&&owner| owner == node).count()
    }
}

impl fmt::Debug for MastershipMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mastership of {} over {:?}, {} overrides", self.epoch, self.members, self.overrides.len())
    }
}
