//! The roster: which nodes are the cluster's, as the volume knows it. It stands in the control block, so that it changes
//! together with the epoch or not at all.
//!
//! A plain value, bounded by [`NODES_MAX`]. Nodes that left for good stay in it: their numbers are never used again.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use zerocopy::byteorder::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ids::{NODES_MAX, NodeId};

/// How a node stands in the cluster's roster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It may come in, and has never been a member: nothing is counted on it.
    Joining,
    /// It has been a member, or founds the cluster: quorums are counted over these.
    Member,
    /// It has left for good.
    Removed,
}

impl Standing {
    /// One word for operators.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Standing::Joining => "joining",
            Standing::Member => "member",
            Standing::Removed => "removed",
        }
    }
}

/// A node of the roster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RosterNode {
    /// Where its first shard listens for the other nodes; shard i on port + i.
    pub address: SocketAddr,
    /// How it stands.
    pub standing: Standing,
    /// Whether it was in the roster that the cluster began with.
    pub founder: bool,
}

/// A change to a roster: of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RosterChange {
    /// The node may come in, or is found at another address from now on.
    Admit(NodeId, SocketAddr),
    /// The node has left for good.
    Remove(NodeId),
}

impl RosterChange {
    /// The node that it is about.
    #[must_use]
    pub const fn node(self) -> NodeId {
        match self {
            RosterChange::Admit(node, _) | RosterChange::Remove(node) => node,
        }
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Roster {
    nodes: BTreeMap<NodeId, RosterNode>,
}

impl Roster {
    /// The roster of a cluster that is founded by these.
    #[must_use]
    pub fn founding(nodes: impl IntoIterator<Item = (NodeId, SocketAddr)>) -> Roster {
        let member = |address| RosterNode { address, standing: Standing::Member, founder: true };
        Roster { nodes: nodes.into_iter().map(|(node, address)| (node, member(address))).collect() }
    }

    /// Of these nodes.
    ///
    /// # Panics
    /// With more than [`NODES_MAX`], or numbers beyond it.
    #[must_use]
    pub fn of(nodes: BTreeMap<NodeId, RosterNode>) -> Roster {
        assert!(nodes.keys().all(|node| (1..=NODES_MAX).contains(&usize::from(node.0))), "{nodes:?}");
        Roster { nodes }
    }

    /// Whether nothing was written yet: the cluster has never formed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Every node, those that left too, by number.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<NodeId, RosterNode> {
        &self.nodes
    }

    /// How a node stands; none that was never in it.
    #[must_use]
    pub fn standing(&self, node: NodeId) -> Option<Standing> {
        self.nodes.get(&node).map(|there| there.standing)
    }

    /// Whether the node belongs to the cluster: it has not left.
    #[must_use]
    pub fn has(&self, node: NodeId) -> bool {
        matches!(self.standing(node), Some(Standing::Joining | Standing::Member))
    }

    /// Whether the node counts in quorums.
    #[must_use]
    pub fn votes(&self, node: NodeId) -> bool {
        self.standing(node) == Some(Standing::Member)
    }

    /// The nodes that belong to the cluster and where they are, by number.
    pub fn present(&self) -> impl Iterator<Item = (NodeId, SocketAddr)> + '_ {
        let present = self.nodes.iter().filter(|(_, there)| there.standing != Standing::Removed);
        present.map(|(node, there)| (*node, there.address))
    }

    /// The nodes over which quorums are counted, by number.
    pub fn voters(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.iter().filter(|(_, there)| there.standing == Standing::Member).map(|(node, _)| *node)
    }

    /// The nodes that the cluster began with and where they are, also those that have left.
    pub fn founders(&self) -> impl Iterator<Item = (NodeId, SocketAddr)> + '_ {
        self.nodes.iter().filter(|(_, there)| there.founder).map(|(node, there)| (*node, there.address))
    }

    /// Whether a change leaves nothing to be done.
    #[must_use]
    pub fn reflects(&self, change: RosterChange) -> bool {
        match change {
            RosterChange::Admit(node, address) => self.present().any(|present| present == (node, address)),
            RosterChange::Remove(node) => self.standing(node) == Some(Standing::Removed),
        }
    }

    /// The roster after a change; none when there is nothing to change, or it is not possible: a node that left comes never
    /// back, a number is never used again, and somebody must be left who votes.
    #[must_use]
    pub fn after(&self, change: RosterChange) -> Option<Roster> {
        let mut next = self.clone();
        match change {
            RosterChange::Admit(node, address) => {
                let taken = self.present().any(|(other, there)| other != node && there == address);
                if taken || self.reflects(change) || self.standing(node) == Some(Standing::Removed) {
                    return None;
                }
                let fresh = RosterNode { address, standing: Standing::Joining, founder: false };
                next.nodes.entry(node).or_insert(fresh).address = address;
            }
            RosterChange::Remove(node) => {
                if !self.has(node) || !self.voters().any(|voter| voter != node) {
                    return None;
                }
                next.nodes.get_mut(&node).expect("it has it").standing = Standing::Removed;
            }
        }
        Some(next)
    }

    /// The roster in which a node that may come in has come in.
    #[must_use]
    pub fn with_member(&self, node: NodeId) -> Roster {
        let mut next = self.clone();
        let there = next.nodes.get_mut(&node).expect("who comes in is in the roster");
        assert!(there.standing != Standing::Removed, "{node} left for good");
        there.standing = Standing::Member;
        next
    }

    /// The roster in which a member has no vote yet.
    #[must_use]
    pub fn without_vote_of(&self, node: NodeId) -> Roster {
        let mut former = self.clone();
        former.nodes.get_mut(&node).expect("it is a member").standing = Standing::Joining;
        former
    }

    pub(super) fn to_bytes(&self) -> RosterBody {
        let mut body = RosterBody { count: U16::new(self.nodes.len() as u16), ..RosterBody::default() };
        for (place, (node, there)) in body.nodes.iter_mut().zip(&self.nodes) {
            let ip = match there.address.ip() {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            let standing = match there.standing {
                Standing::Joining => 1,
                Standing::Member => 2,
                Standing::Removed => 3,
            };
            *place = RosterEntry {
                node: node.0,
                standing: standing | if there.founder { FOUNDER } else { 0 },
                port: U16::new(there.address.port()),
                ip: ip.octets(),
            };
        }
        body
    }

    /// `None` when the bytes are of a version that this one can't read.
    pub(super) fn from_bytes(body: &RosterBody) -> Option<Roster> {
        let mut nodes = BTreeMap::new();
        for place in body.nodes.get(..usize::from(body.count.get()))? {
            let ip = Ipv6Addr::from(place.ip);
            let ip = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
            let standing = match place.standing & !FOUNDER {
                1 => Standing::Joining,
                2 => Standing::Member,
                3 => Standing::Removed,
                _ => return None,
            };
            let address = SocketAddr::new(ip, place.port.get());
            if !(1..=NODES_MAX).contains(&usize::from(place.node)) {
                return None;
            }
            nodes.insert(NodeId(place.node), RosterNode { address, standing, founder: place.standing & FOUNDER != 0 });
        }
        Some(Roster { nodes })
    }
}

const FOUNDER: u8 = 0x80;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RosterEntry {
    node: u8,
    standing: u8,
    port: U16,
    ip: [u8; 16],
}

/// The roster as it stands in the control block.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RosterBody {
    count: U16,
    reserved: [u8; 6],
    nodes: [RosterEntry; NODES_MAX],
}

impl Default for RosterBody {
    fn default() -> RosterBody {
        let nobody = RosterEntry { node: 0, standing: 0, port: U16::ZERO, ip: [0; 16] };
        RosterBody { count: U16::ZERO, reserved: [0; 6], nodes: [nobody; NODES_MAX] }
    }
}

const _: () = assert!(size_of::<RosterBody>() == 8 + NODES_MAX * 20);

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn rosters() -> impl Strategy<Value = Roster> {
        let standing = prop_oneof![Just(Standing::Joining), Just(Standing::Member), Just(Standing::Removed)];
        let ip = prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::from(bits.to_be_bytes())),
            (0x2000_0000_u32..0x3000_0000).prop_map(|high| IpAddr::from((u128::from(high) << 96 | 1).to_be_bytes())),
        ];
        let there = (ip, any::<u16>(), standing, any::<bool>());
        let nodes = prop::collection::btree_map(1..=NODES_MAX as u8, there, 0..=NODES_MAX);
        nodes.prop_map(|nodes| {
            let there = |(ip, port, standing, founder)| RosterNode { address: SocketAddr::new(ip, port), standing, founder };
            Roster::of(nodes.into_iter().map(|(node, it)| (NodeId(node), there(it))).collect())
        })
    }

    proptest! {
        #[test]
        fn a_roster_comes_back_from_its_bytes(roster in rosters()) {
            prop_assert_eq!(Roster::from_bytes(&roster.to_bytes()), Some(roster));
        }
    }

    #[test]
    fn a_change_is_of_one_node_and_who_left_never_comes_back() {
        let address = |node: u8| SocketAddr::from(([10, 0, 0, node], 7433));
        let (one, two, three) = (NodeId(1), NodeId(2), NodeId(3));
        let founded = Roster::founding([(one, address(1)), (two, address(2))]);
        let admitted = founded.after(RosterChange::Admit(three, address(3))).expect("there is room");
        assert_eq!(admitted.voters().collect::<Vec<_>>(), [one, two]);
        assert_eq!(admitted.standing(three), Some(Standing::Joining));
        assert_eq!(admitted.after(RosterChange::Admit(three, address(3))), None);
        assert_eq!(founded.after(RosterChange::Admit(three, address(2))), None, "somebody is there");
        let grown = admitted.with_member(three);
        let moved = grown.after(RosterChange::Admit(three, address(9))).expect("it moves");
        assert!(moved.votes(three) && moved.reflects(RosterChange::Admit(three, address(9))));
        let shrunk = grown.after(RosterChange::Remove(one)).expect("others are left");
        assert!(!shrunk.has(one) && shrunk.reflects(RosterChange::Remove(one)));
        assert_eq!(shrunk.after(RosterChange::Admit(one, address(1))), None);
        assert_eq!(shrunk.founders().collect::<Vec<_>>(), [(one, address(1)), (two, address(2))]);
        let alone = shrunk.after(RosterChange::Remove(two)).expect("one is left");
        assert_eq!(alone.after(RosterChange::Remove(three)), None, "nobody would be left");
    }
}
