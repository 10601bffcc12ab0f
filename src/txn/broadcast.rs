//! Broadcast on commit: every peer has taken notice of a commit's SCN before the commit is acknowledged.
//!
//! Owned by one shard; a state machine without I/O. One message is under way to a peer at a time, and it carries the highest
//! SCN wanted by then: the faster commits come, the more of them share a message, as with the log's group commit. Bounded
//! by the number of peers.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{NodeId, Scn};

/// A message to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Announcement {
    /// To whom.
    pub to: NodeId,
    /// Commits up to here.
    pub scn: Scn,
}

#[derive(Clone, Copy, Default, Debug)]
struct Peer {
    acknowledged: Scn,
    under_way: Option<Scn>,
    wanted: Scn,
}

impl Peer {
    fn next(&mut self, to: NodeId) -> Option<Announcement> {
        if self.under_way.is_some() || self.wanted <= self.acknowledged {
            return None;
        }
        self.under_way = Some(self.wanted);
        Some(Announcement { to, scn: self.wanted })
    }
}

/// What the peers of a shard know of its commits.
#[derive(Default, Debug)]
pub struct Broadcast {
    peers: BTreeMap<NodeId, Peer>,
}

impl Broadcast {
    /// A commit wants to be known.
    pub fn announce(&mut self, scn: Scn, send: &mut Vec<Announcement>) {
        for (&node, peer) in &mut self.peers {
            peer.wanted = peer.wanted.max(scn);
            send.extend(peer.next(node));
        }
    }

    /// A peer has acknowledged.
    pub fn acknowledged(&mut self, node: NodeId, scn: Scn, send: &mut Vec<Announcement>) {
        // An answer from before the peer's connection broke may still come in.
        let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.under_way == Some(scn)) else { return };
        peer.under_way = None;
        peer.acknowledged = peer.acknowledged.max(scn);
        send.extend(peer.next(node));
    }

    /// Whether all peers know of `scn`.
    #[must_use]
    pub fn is_known(&self, scn: Scn) -> bool {
        self.peers.values().all(|peer| peer.acknowledged >= scn)
    }

    /// A member has connected, or may be spoken to: it is told of everything up to our clock. What it has acknowledged it
    /// knows; what was under way is void.
    pub fn peer_up(&mut self, node: NodeId, clock: Scn, send: &mut Vec<Announcement>) {
        let peer = self.peers.entry(node).or_default();
        peer.under_way = None;
        peer.wanted = peer.wanted.max(clock);
        send.extend(peer.next(node));
    }

    /// Whether the peer is one of those that are waited for.
    #[must_use]
    pub fn has(&self, node: NodeId) -> bool {
        self.peers.contains_key(&node)
    }

    /// A view with these peers is entered: nobody else is waited for any more, and what is under way is void. Each is to be
    /// greeted ([`Broadcast::peer_up`]) before anything else is announced.
    pub fn enter(&mut self, members: &BTreeSet<NodeId>) {
        self.peers.retain(|node, _| members.contains(node));
        for &member in members {
            self.peers.entry(member).or_default().under_way = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected(nodes: &[NodeId]) -> Broadcast {
        let (mut broadcast, mut sent) = (Broadcast::default(), Vec::new());
        for &node in nodes {
            broadcast.peer_up(node, Scn(5), &mut sent);
            assert_eq!(sent.pop(), Some(Announcement { to: node, scn: Scn(5) }));
            broadcast.acknowledged(node, Scn(5), &mut sent);
        }
        broadcast
    }

    #[test]
    fn commits_that_come_meanwhile_share_the_next_message() {
        let (a, b) = (NodeId(2), NodeId(3));
        let mut broadcast = connected(&[a, b]);
        let mut sent = Vec::new();
        broadcast.announce(Scn(10), &mut sent);
        assert_eq!(sent.len(), 2);
        broadcast.announce(Scn(11), &mut sent);
        broadcast.announce(Scn(12), &mut sent);
        assert_eq!(sent.len(), 2, "one is under way to each");
        broadcast.acknowledged(a, Scn(10), &mut sent);
        assert_eq!(sent[2..], [Announcement { to: a, scn: Scn(12) }]);
        assert!(!broadcast.is_known(Scn(10)));
        broadcast.acknowledged(b, Scn(10), &mut sent);
        assert!(broadcast.is_known(Scn(10)) && !broadcast.is_known(Scn(11)));
        broadcast.acknowledged(a, Scn(12), &mut sent);
        assert_eq!(sent.len(), 4);
        assert!(!broadcast.is_known(Scn(12)), "a member is waited for, connected or not");
        broadcast.enter(&[a].into());
        assert!(broadcast.is_known(Scn(12)), "a node that is no member any more is not");
    }

    #[test]
    fn a_late_answer_from_a_broken_connection_counts_for_nothing() {
        let mut broadcast = connected(&[NodeId(2)]);
        let mut sent = Vec::new();
        broadcast.announce(Scn(10), &mut sent);
        broadcast.peer_up(NodeId(2), Scn(12), &mut sent);
        broadcast.acknowledged(NodeId(2), Scn(10), &mut sent);
        assert!(!broadcast.is_known(Scn(10)));
        broadcast.acknowledged(NodeId(2), Scn(12), &mut sent);
        assert!(broadcast.is_known(Scn(10)), "a commit from before the connection is in what it is told first");
    }

    #[test]
    fn whoever_enters_with_a_view_is_told_before_a_commit_counts_as_known() {
        let (a, b) = (NodeId(2), NodeId(3));
        let mut broadcast = connected(&[a]);
        let mut sent = Vec::new();
        broadcast.announce(Scn(10), &mut sent);
        broadcast.enter(&[a, b].into());
        broadcast.acknowledged(a, Scn(10), &mut sent);
        assert!(!broadcast.is_known(Scn(5)), "the new one knows nothing");
        sent.clear();
        broadcast.peer_up(a, Scn(11), &mut sent);
        broadcast.peer_up(b, Scn(11), &mut sent);
        assert_eq!(sent, [Announcement { to: a, scn: Scn(11) }, Announcement { to: b, scn: Scn(11) }]);
        broadcast.acknowledged(a, Scn(11), &mut sent);
        assert!(!broadcast.is_known(Scn(10)));
        broadcast.acknowledged(b, Scn(11), &mut sent);
        assert!(broadcast.is_known(Scn(11)));
    }
}
