//! The greeting that opens a connection between two nodes: who is speaking, which cluster and life it belongs to, and
//! what it takes for granted. Both sides say it once; the connecting side first.
//!
//! Plain data and pure checks, owned by the connection's task. 64 bytes both ways, drawn in `docs/formats.md`. The answer
//! of the accepting side carries a verdict, so that the refused side can tell its operator why. Whatever does not start
//! with the magic bytes is not a node at all, and gets no answer.

use std::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ids::{BLOCK_SIZE, Epoch, Incarnation, NodeId, Scn, ShardId};

/// Bytes of a HELLO.
pub const HELLO_BYTES: usize = 64;

/// First bytes on every connection, both ways.
pub const HELLO_MAGIC: [u8; 8] = *b"RUSTYIC\n";

/// Version of the messages between nodes. Nodes of different versions don't talk.
pub const PROTOCOL_VERSION: u16 = 1;

/// What one side says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the speaker.
    pub version: u16,
    /// The cluster's id, from the volume's superblock.
    pub cluster_id: u128,
    /// Who speaks.
    pub node: NodeId,
    /// Whom the speaker believes to be talking to.
    pub to: NodeId,
    /// The shard on both sides.
    pub shard: ShardId,
    /// Shards a node.
    pub shards: u8,
    /// Bytes of a block.
    pub block_size: u32,
    /// The speaker's life.
    pub incarnation: Incarnation,
    /// The speaker's epoch (told, not required to match: the cluster layer brings epochs together).
    pub epoch: Epoch,
    /// The speaker's clock.
    pub scn: Scn,
}

/// The HELLO as it lies on the wire.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct WireHello {
    magic: [u8; 8],
    version: U16,
    verdict: u8,
    shards: u8,
    block_size: U32,
    cluster_id: [u8; 16],
    node: u8,
    to: u8,
    shard: u8,
    reserved: u8,
    checksum: U32,
    incarnation: U64,
    epoch: U64,
    scn: U64,
}

const _: () = assert!(size_of::<WireHello>() == HELLO_BYTES);

/// Why two nodes don't talk to each other. The numbers of the verdicts on the wire are fixed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HelloFault {
    /// Not a RustyDB node at all.
    Magic,
    /// Damaged on the way.
    Checksum,
    /// Another protocol version.
    Version {
        /// Theirs.
        theirs: u16,
    },
    /// A node of another cluster.
    Cluster {
        /// Theirs.
        theirs: u128,
        /// Ours.
        ours: u128,
    },
    /// Formatted with other blocks.
    BlockSize {
        /// Theirs, in bytes.
        theirs: u32,
    },
    /// Another number of shards a node.
    Shards {
        /// Theirs.
        theirs: u8,
        /// Ours.
        ours: u8,
    },
    /// Another shard answers at this port.
    Shard {
        /// Theirs.
        theirs: ShardId,
        /// Ours.
        ours: ShardId,
    },
    /// A node that our configuration doesn't have.
    UnknownNode(NodeId),
    /// It says that it is us: two nodes with one number, or an address list that leads to ourselves.
    SameNode(NodeId),
    /// It takes us for somebody else: the address lists differ.
    NotMe {
        /// Whom it looks for.
        wanted: NodeId,
        /// Who we are.
        ours: NodeId,
    },
    /// Somebody else answered at the peer's address.
    OtherNode {
        /// Who answered.
        theirs: NodeId,
        /// Whom we looked for.
        wanted: NodeId,
    },
    /// The node of the lower number connected; that is the other side's part.
    Direction(NodeId),
    /// An earlier life of a node that we know a later life of.
    Stale {
        /// The life that spoke.
        theirs: Incarnation,
        /// The latest that we know.
        known: Incarnation,
    },
    /// A node that has left the cluster for good.
    Removed(NodeId),
    /// The other side refused us, with this verdict.
    Refused(u8),
}

impl HelloFault {
    /// The number that tells the other side why it is refused.
    #[must_use]
    pub const fn verdict(&self) -> u8 {
        match self {
            HelloFault::Magic => 1,
            HelloFault::Checksum => 2,
            HelloFault::Version { .. } => 3,
            HelloFault::Cluster { .. } => 4,
            HelloFault::BlockSize { .. } => 5,
            HelloFault::Shards { .. } => 6,
            HelloFault::Shard { .. } => 7,
            HelloFault::UnknownNode(_) => 8,
            HelloFault::SameNode(_) => 9,
            HelloFault::NotMe { .. } => 10,
            HelloFault::OtherNode { .. } => 11,
            HelloFault::Direction(_) => 12,
            HelloFault::Stale { .. } => 13,
            HelloFault::Removed(_) => 14,
            HelloFault::Refused(verdict) => *verdict,
        }
    }
}

fn verdict_text(verdict: u8) -> &'static str {
    match verdict {
        2 => "our greeting arrived damaged; check the network",
        3 => "it speaks another protocol version; run the same release on every node",
        4 => "it belongs to another cluster; check the addresses in [cluster.nodes]",
        5 => "it uses another block size; both nodes must open the same volume",
        6 => "it runs another number of shards; set [engine] shards equal on every node",
        7 => "another shard listens on that port; leave a port free for every shard",
        8 => "its configuration doesn't have this node; complete its [cluster.nodes]",
        9 => "it has our own node number; give every node a number of its own",
        10 => "it is another node than our configuration says; check the addresses in [cluster.nodes]",
        12 => "it expects to be the one that connects; run the same release on every node",
        13 => "it knows a later start of this node; is a second process running as this node?",
        14 => "this node was removed from the cluster; stop it, a new node takes another number",
        _ => "for a reason that this version doesn't know; see its log",
    }
}

impl fmt::Display for HelloFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HelloFault::Magic => write!(f, "what arrived is not a RustyDB node's greeting"),
            HelloFault::Checksum => write!(f, "the greeting's checksum is wrong"),
            HelloFault::Version { theirs } => write!(
                f,
                "it speaks protocol version {theirs}, this node speaks {PROTOCOL_VERSION}: run the same release on every node"
            ),
            HelloFault::Cluster { theirs, ours } => {
                write!(f, "it belongs to cluster {theirs:032x}, this node to {ours:032x}: check the addresses in [cluster.nodes]")
            }
            HelloFault::BlockSize { theirs } => {
                write!(f, "its blocks have {theirs} bytes, ours {BLOCK_SIZE}: both nodes must open the same volume")
            }
            HelloFault::Shards { theirs, ours } => {
                write!(f, "it runs {theirs} shards, this node {ours}: set [engine] shards equal on every node")
            }
            HelloFault::Shard { theirs, ours } => {
                write!(f, "its {theirs} answered {ours} of this node: leave a port free for every shard")
            }
            HelloFault::UnknownNode(node) => write!(f, "{node} is not in this node's [cluster.nodes]"),
            HelloFault::SameNode(node) => write!(f, "it says that it is {node}, as this node is: give every node its own number"),
            HelloFault::NotMe { wanted, ours } => {
                write!(f, "it looks for {wanted} and reached {ours}: check the addresses in its [cluster.nodes]")
            }
            HelloFault::OtherNode { theirs, wanted } => {
                write!(f, "{theirs} answered where {wanted} should be: check the addresses in [cluster.nodes]")
            }
            HelloFault::Direction(node) => {
                write!(
                    f,
                    "{node} connected to us, but the node of the higher number connects: run the same release on every node"
                )
            }
            HelloFault::Stale { theirs, known } => {
                write!(f, "it is {theirs}, but {known} of the same node has been here: an old process is still running")
            }
            HelloFault::Removed(node) => {
                write!(f, "{node} was removed from the cluster: stop that process; a new node takes another number")
            }
            HelloFault::Refused(verdict) => write!(f, "it refused this node: {}", verdict_text(*verdict)),
        }
    }
}

impl std::error::Error for HelloFault {}

/// What a side expects of the other's HELLO.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Our own HELLO (its `to` is the peer we look for, or node 0 when we accept).
    pub ours: Hello,
    /// Whether we accepted the connection; else we connected.
    pub accepted: bool,
}

impl Hello {
    /// The wire form. `refused` is the fault that an accepting side found in the other's greeting.
    #[must_use]
    pub fn seal(&self, refused: Option<&HelloFault>) -> WireHello {
        let mut wire = WireHello {
            magic: HELLO_MAGIC,
            version: U16::new(self.version),
            verdict: refused.map_or(0, HelloFault::verdict),
            shards: self.shards,
            block_size: U32::new(self.block_size),
            cluster_id: self.cluster_id.to_le_bytes(),
            node: self.node.0,
            to: self.to.0,
            shard: self.shard.0,
            reserved: 0,
            checksum: U32::ZERO,
            incarnation: U64::new(self.incarnation.0),
            epoch: U64::new(self.epoch.0),
            scn: U64::new(self.scn.0),
        };
        wire.checksum = U32::new(wire.compute());
        wire
    }
}

impl Expected {
    /// Checks a greeting against ours, in the order in which the answer helps an operator most. Whether the peer is a
    /// configured one and its life not an old one is for the caller, who knows the peers.
    pub fn check(&self, wire: &WireHello) -> Result<Hello, HelloFault> {
        let theirs = wire.open()?;
        if wire.verdict != 0 {
            return Err(HelloFault::Refused(wire.verdict));
        }
        let ours = &self.ours;
        if theirs.cluster_id != ours.cluster_id {
            return Err(HelloFault::Cluster { theirs: theirs.cluster_id, ours: ours.cluster_id });
        }
        if theirs.block_size != ours.block_size {
            return Err(HelloFault::BlockSize { theirs: theirs.block_size });
        }
        if theirs.shards != ours.shards {
            return Err(HelloFault::Shards { theirs: theirs.shards, ours: ours.shards });
        }
        if theirs.node == ours.node {
            return Err(HelloFault::SameNode(theirs.node));
        }
        if theirs.to != ours.node {
            return Err(HelloFault::NotMe { wanted: theirs.to, ours: ours.node });
        }
        if !self.accepted && theirs.node != ours.to {
            return Err(HelloFault::OtherNode { theirs: theirs.node, wanted: ours.to });
        }
        if theirs.shard != ours.shard {
            return Err(HelloFault::Shard { theirs: theirs.shard, ours: ours.shard });
        }
        if self.accepted && theirs.node < ours.node {
            return Err(HelloFault::Direction(theirs.node));
        }
        Ok(theirs)
    }
}

impl WireHello {
    /// Reads a greeting without comparing it with anything: magic bytes, checksum, version.
    pub fn open(&self) -> Result<Hello, HelloFault> {
        if self.magic != HELLO_MAGIC {
            return Err(HelloFault::Magic);
        }
        if self.checksum.get() != self.compute() {
            return Err(HelloFault::Checksum);
        }
        if self.version.get() != PROTOCOL_VERSION {
            return Err(HelloFault::Version { theirs: self.version.get() });
        }
        Ok(Hello {
            version: self.version.get(),
            cluster_id: u128::from_le_bytes(self.cluster_id),
            node: NodeId(self.node),
            to: NodeId(self.to),
            shard: ShardId(self.shard),
            shards: self.shards,
            block_size: self.block_size.get(),
            incarnation: Incarnation(self.incarnation.get()),
            epoch: Epoch(self.epoch.get()),
            scn: Scn(self.scn.get()),
        })
    }

    fn compute(&self) -> u32 {
        let mut bare = *self;
        bare.checksum = U32::ZERO;
        crc32c::crc32c(bare.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(node: u8, to: u8) -> Hello {
        Hello {
            version: PROTOCOL_VERSION,
            cluster_id: 77,
            node: NodeId(node),
            to: NodeId(to),
            shard: ShardId(0),
            shards: 2,
            block_size: BLOCK_SIZE as u32,
            incarnation: Incarnation(3),
            epoch: Epoch(1),
            scn: Scn(9),
        }
    }

    #[test]
    fn each_disagreement_has_its_own_fault() {
        let expected = Expected { ours: hello(1, 0), accepted: true };
        let good = hello(2, 1);
        assert_eq!(expected.check(&good.seal(None)), Ok(good));
        let check = |theirs: Hello| expected.check(&theirs.seal(None)).unwrap_err();
        assert_eq!(check(Hello { cluster_id: 78, ..good }), HelloFault::Cluster { theirs: 78, ours: 77 });
        assert_eq!(check(Hello { version: 9, ..good }), HelloFault::Version { theirs: 9 });
        assert_eq!(check(Hello { block_size: 4096, ..good }), HelloFault::BlockSize { theirs: 4096 });
        assert_eq!(check(Hello { shards: 4, ..good }), HelloFault::Shards { theirs: 4, ours: 2 });
        assert_eq!(check(Hello { shard: ShardId(1), ..good }), HelloFault::Shard { theirs: ShardId(1), ours: ShardId(0) });
        assert_eq!(check(Hello { node: NodeId(1), ..good }), HelloFault::SameNode(NodeId(1)));
        assert_eq!(check(Hello { to: NodeId(3), ..good }), HelloFault::NotMe { wanted: NodeId(3), ours: NodeId(1) });

        let connecting = Expected { ours: hello(3, 1), accepted: false };
        let other = connecting.check(&hello(2, 3).seal(None)).unwrap_err();
        assert_eq!(other, HelloFault::OtherNode { theirs: NodeId(2), wanted: NodeId(1) });
        let refused = hello(1, 3).seal(Some(&HelloFault::Cluster { theirs: 1, ours: 2 }));
        assert_eq!(connecting.check(&refused), Err(HelloFault::Refused(4)));
        let accepting = Expected { ours: hello(3, 0), accepted: true };
        assert_eq!(accepting.check(&hello(2, 3).seal(None)), Err(HelloFault::Direction(NodeId(2))));
    }

    #[test]
    fn damage_and_strangers_are_told_apart() {
        let mut wire = hello(2, 1).seal(None);
        wire.shards ^= 1;
        assert_eq!(wire.open(), Err(HelloFault::Checksum));
        let http = WireHello::read_from_bytes(&[b'G'; HELLO_BYTES]).unwrap();
        assert_eq!(http.open(), Err(HelloFault::Magic));
    }
}
