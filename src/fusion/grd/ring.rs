//! The consistent-hash ring: some 256 points a node, so that a node that leaves or comes moves only its own share.

use super::Bucket;
use super::hash::mix;
use crate::ids::NodeId;

/// The points of all members, sorted by their place on the circle of 2^64.
pub(super) struct Ring(Vec<(u64, NodeId)>);

impl Ring {
    pub(super) fn new(members: &[NodeId], virtual_nodes: u32) -> Ring {
        let points = members
            .iter()
            .flat_map(|&node| (0..virtual_nodes).map(move |index| (mix(mix(u64::from(node.0)) ^ u64::from(index)), node)));
        let mut points: Vec<_> = points.collect();
        points.sort_unstable();
        Ring(points)
    }

    /// The member whose point follows the bucket's place.
    pub(super) fn owner(&self, bucket: Bucket) -> NodeId {
        let place = mix(!u64::from(bucket.0));
        let next = self.0.partition_point(|&(point, _)| point < place);
        self.0[next % self.0.len()].1
    }
}
