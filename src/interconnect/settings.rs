//! What an interconnect is told when it is made, and why it did not start with it.
//!
//! Plain values. The bound of a peer's send queue and the times after which it counts as lost are here.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::ids::{Incarnation, NodeId, ShardId};

/// Bytes that may wait for one peer by default: some 8,000 blocks.
pub const SEND_QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// What an interconnect is told when it is made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Id of the cluster, from the superblock: nodes of other clusters are refused.
    pub cluster_id: u128,
    /// This node.
    pub node: NodeId,
    /// This node's life.
    pub incarnation: Incarnation,
    /// This shard.
    pub shard: ShardId,
    /// Shards a node; equal on all nodes.
    pub shards: u8,
    /// Where this shard listens.
    pub listen: SocketAddr,
    /// Where this shard of every other node listens.
    pub peers: Vec<(NodeId, SocketAddr)>,
    /// Time between heartbeats.
    pub heartbeat_interval: Duration,
    /// Silence after which a peer counts as lost; more than twice the interval.
    pub heartbeat_timeout: Duration,
    /// Most bytes that may wait for one peer; one that falls further behind counts as lost.
    pub send_queue_bytes_max: usize,
}

impl Settings {
    /// Settings with the default times and bounds (heartbeat 1 s, lost after 5 s, [`SEND_QUEUE_BYTES`]).
    #[must_use]
    pub fn new(
        cluster_id: u128,
        node: NodeId,
        incarnation: Incarnation,
        shard: ShardId,
        shards: u8,
        listen: SocketAddr,
    ) -> Settings {
        Settings {
            cluster_id,
            node,
            incarnation,
            shard,
            shards,
            listen,
            peers: Vec::new(),
            heartbeat_interval: Duration::from_secs(1),
            heartbeat_timeout: Duration::from_secs(5),
            send_queue_bytes_max: SEND_QUEUE_BYTES,
        }
    }
}

/// Why an interconnect did not start.
#[derive(Debug)]
pub enum InterconnectError {
    /// The address cannot be listened on.
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

impl fmt::Display for InterconnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let InterconnectError::Listen { address, source } = self;
        match source.kind() {
            io::ErrorKind::AddrInUse => write!(
                f,
                "the interconnect can't listen on {address}: another process has that port; stop it, or give this node another \
                 address in [cluster.nodes]"
            ),
            io::ErrorKind::AddrNotAvailable => write!(
                f,
                "the interconnect can't listen on {address}: this machine doesn't have that address; correct this node's line in \
                 [cluster.nodes]"
            ),
            _ => write!(f, "the interconnect can't listen on {address}: {source}"),
        }
    }
}

impl std::error::Error for InterconnectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let InterconnectError::Listen { source, .. } = self;
        Some(source)
    }
}
