//! A peer's connections, one for each shard, as one: the peer is up when all of them are, and down as soon as one is.
//!
//! The membership hears of nodes, but services of every shard lose messages when their own connection breaks. So a broken
//! connection of any shard counts as the loss of the peer; the first shard's, which carries the membership's messages, is
//! then broken too, so that both ends forget together what was said on it. Messages that come on the first shard's
//! connection before the others stand wait here. A state machine without I/O, owned by the first shard; bounded by
//! [`WAITING_MAX`] messages for each peer.

use std::collections::{BTreeMap, VecDeque};

use crate::ids::{Incarnation, NodeId};

/// Most messages of one peer that wait for its other connections.
pub(super) const WAITING_MAX: usize = 1_024;

/// What the links' owner has to do, in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told<M> {
    /// This life of the peer is connected in all shards.
    Up(NodeId, Incarnation),
    /// It is not any more.
    Down(NodeId),
    /// End the first shard's connection to it.
    Break(NodeId),
    /// It said this.
    Message(NodeId, M),
}

struct Bundle<M> {
    /// By shard, which life is connected.
    up: Vec<Option<Incarnation>>,
    told_up: bool,
    /// The first shard's connection is about to be ended: what still comes on it is void.
    condemned: bool,
    waiting: VecDeque<M>,
}

/// See the module. `M` is a message.
pub(super) struct Links<M> {
    shards: usize,
    peers: BTreeMap<NodeId, Bundle<M>>,
}

impl<M> Links<M> {
    /// No peer is connected.
    pub(super) fn new(shards: u8) -> Links<M> {
        Links { shards: usize::from(shards), peers: BTreeMap::new() }
    }

    fn bundle(&mut self, node: NodeId) -> &mut Bundle<M> {
        let shards = self.shards;
        self.peers.entry(node).or_insert_with(|| Bundle {
            up: vec![None; shards],
            told_up: false,
            condemned: false,
            waiting: VecDeque::new(),
        })
    }

    /// A shard is connected to this life of the peer.
    pub(super) fn shard_up(&mut self, node: NodeId, shard: u8, life: Incarnation, out: &mut Vec<Told<M>>) {
        let bundle = self.bundle(node);
        bundle.up[usize::from(shard)] = Some(life);
        let all = bundle.up.iter().all(|up| *up == bundle.up[0]);
        if all && !bundle.condemned && !bundle.told_up {
            bundle.told_up = true;
            out.push(Told::Up(node, life));
            out.extend(bundle.waiting.drain(..).map(|message| Told::Message(node, message)));
        }
    }

    /// A shard's connection to the peer is gone.
    pub(super) fn shard_down(&mut self, node: NodeId, shard: u8, out: &mut Vec<Told<M>>) {
        let bundle = self.bundle(node);
        bundle.up[usize::from(shard)] = None;
        if std::mem::take(&mut bundle.told_up) {
            out.push(Told::Down(node));
        }
        bundle.waiting.clear();
        if shard == 0 {
            bundle.condemned = false;
        } else if bundle.up[0].is_some() && !bundle.condemned {
            bundle.condemned = true;
            out.push(Told::Break(node));
        }
    }

    /// The peer said something on the first shard's connection.
    pub(super) fn message(&mut self, node: NodeId, message: M, out: &mut Vec<Told<M>>) {
        let bundle = self.bundle(node);
        if bundle.told_up {
            out.push(Told::Message(node, message));
        } else if !bundle.condemned {
            if bundle.waiting.len() == WAITING_MAX {
                bundle.condemned = true;
                bundle.waiting.clear();
                out.push(Told::Break(node));
                return;
            }
            bundle.waiting.push_back(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId(2);

    fn told(act: impl FnOnce(&mut Vec<Told<u8>>)) -> Vec<Told<u8>> {
        let mut out = Vec::new();
        act(&mut out);
        out
    }

    #[test]
    fn a_peer_is_up_when_all_its_shards_are_and_what_it_said_before_is_not_lost() {
        let mut links = Links::new(2);
        assert_eq!(told(|out| links.shard_up(PEER, 0, Incarnation(4), out)), []);
        assert_eq!(told(|out| links.message(PEER, 9, out)), []);
        // The other shard is still connected to the life before.
        assert_eq!(told(|out| links.shard_up(PEER, 1, Incarnation(3), out)), []);
        assert_eq!(told(|out| links.shard_down(PEER, 1, out)), [Told::Break(PEER)]);
        assert_eq!(told(|out| links.shard_down(PEER, 0, out)), []);
        assert_eq!(told(|out| links.shard_up(PEER, 0, Incarnation(4), out)), []);
        assert_eq!(told(|out| links.message(PEER, 7, out)), []);
        let up = [Told::Up(PEER, Incarnation(4)), Told::Message(PEER, 7)];
        assert_eq!(told(|out| links.shard_up(PEER, 1, Incarnation(4), out)), up);
        assert_eq!(told(|out| links.message(PEER, 8, out)), [Told::Message(PEER, 8)]);
    }

    #[test]
    fn one_broken_connection_takes_the_first_shards_along() {
        let mut links = Links::new(2);
        told(|out| links.shard_up(PEER, 0, Incarnation(1), out));
        told(|out| links.shard_up(PEER, 1, Incarnation(1), out));
        assert_eq!(told(|out| links.shard_down(PEER, 1, out)), [Told::Down(PEER), Told::Break(PEER)]);
        // Reconnected before the first shard's connection has ended: not up, and its words are void.
        assert_eq!(told(|out| links.shard_up(PEER, 1, Incarnation(1), out)), []);
        assert_eq!(told(|out| links.message(PEER, 5, out)), []);
        assert_eq!(told(|out| links.shard_down(PEER, 0, out)), []);
        assert_eq!(told(|out| links.shard_up(PEER, 0, Incarnation(1), out)), [Told::Up(PEER, Incarnation(1))]);
    }
}
