//! The 64-bit key under which a life of a node registers with a device.
//!
//! `cluster (24 bits) | node (8) | incarnation (32)`: who lists the keys of a device sees which cluster, which node and
//! which of its lives each belongs to.

use super::Life;
use crate::ids::{Incarnation, NodeId};

/// A registration key. Never 0: node numbers begin with 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u64);

impl Key {
    /// The key of a life. Its incarnation must be below 2^32 (a node that starts each second for 136 years).
    #[must_use]
    pub fn new(cluster_id: u128, life: Life) -> Key {
        assert!(life.node.0 > 0, "nobody registers");
        assert!(life.incarnation.0 <= u64::from(u32::MAX), "{life}: incarnations beyond 32 bits don't fit a key");
        Key(Key::cluster(cluster_id) << 40 | u64::from(life.node.0) << 32 | life.incarnation.0)
    }

    /// Whose key it is; `None` when it is not one of this cluster.
    #[must_use]
    pub fn life(self, cluster_id: u128) -> Option<Life> {
        let node = NodeId((self.0 >> 32) as u8);
        let ours = self.0 >> 40 == Key::cluster(cluster_id) && node.0 > 0;
        ours.then_some(Life { node, incarnation: Incarnation(self.0 & u64::from(u32::MAX)) })
    }

    /// 24 bits of a random 128-bit identifier: two clusters on one device are told apart all but once in 16 million.
    fn cluster(cluster_id: u128) -> u64 {
        let folded = (cluster_id ^ cluster_id >> 64) as u64;
        (folded ^ folded >> 24 ^ folded >> 48) & 0xff_ffff
    }
}
