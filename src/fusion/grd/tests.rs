use std::collections::{BTreeMap, HashSet};

use super::*;
use crate::ids::{BlockNo, Epoch, NodeId, PartitionId};

fn map(nodes: &[u8]) -> MastershipMap {
    let members: Vec<_> = nodes.iter().map(|&node| NodeId(node)).collect();
    MastershipMap::new(Epoch(1), &members, VIRTUAL_NODES, BTreeMap::new()).unwrap()
}

fn buckets() -> impl Iterator<Item = Bucket> {
    (0..=u16::MAX).map(Bucket)
}

#[test]
fn buckets_spread_over_the_nodes() {
    for nodes in [&[1, 2, 3][..], &[1, 2, 3, 4, 5, 6, 7, 8]] {
        let map = map(nodes);
        for &node in nodes {
            let share = buckets().filter(|&bucket| map.master_of_bucket(bucket) == NodeId(node)).count();
            let fair = BUCKETS / nodes.len();
            assert!(share > fair * 3 / 4 && share < fair * 5 / 4, "node {node} of {nodes:?} masters {share} buckets");
        }
    }
}

#[test]
fn only_the_buckets_of_a_lost_node_move() {
    let (before, after) = (map(&[1, 2, 3, 4]), map(&[1, 2, 4]));
    for bucket in buckets() {
        let (old, new) = (before.master_of_bucket(bucket), after.master_of_bucket(bucket));
        assert!(old == new || old == NodeId(3), "{bucket:?} moved from {old} to {new} though node 3 was lost");
    }
}

#[test]
fn neighbours_share_a_bucket_and_groups_spread() {
    let block = |partition, block| BlockId::new(PartitionId(partition), BlockNo(block));
    assert_eq!(Bucket::of(block(7, 128)), Bucket::of(block(7, 255)));
    let distinct: HashSet<_> = (0..1000).map(|group| Bucket::of(block(7, group * 128))).collect();
    assert!(distinct.len() > 950, "1000 groups fell into {} buckets", distinct.len());
    assert_ne!(Bucket::of(block(7, 128)), Bucket::of(block(8, 128)));
}

#[test]
fn every_build_computes_the_same_map() {
    // The hash is part of the protocol: two versions of the program that disagree here would both master a block.
    let sample: Vec<u16> = [(1, 0), (64, 4096), (0xf000_0100, 1 << 39)]
        .map(|(partition, block)| Bucket::of(BlockId::new(PartitionId(partition), BlockNo(block))).0)
        .to_vec();
    let map = map(&[3, 1, 2]);
    let owners: Vec<u8> = [0, 1, 1000, 65_535].map(|bucket| map.master_of_bucket(Bucket(bucket)).0).to_vec();
    assert_eq!((sample, owners), (vec![24129, 11212, 31064], vec![2, 1, 1, 2]));
}

#[test]
fn an_override_moves_one_bucket_to_a_member_only() {
    let members = [NodeId(1), NodeId(2)];
    let plain = map(&[1, 2]);
    let bucket = buckets().find(|&bucket| plain.master_of_bucket(bucket) == NodeId(1)).unwrap();
    let moved = MastershipMap::new(Epoch(2), &members, VIRTUAL_NODES, BTreeMap::from([(bucket, NodeId(2))])).unwrap();
    assert_eq!(buckets().filter(|&b| moved.master_of_bucket(b) != plain.master_of_bucket(b)).collect::<Vec<_>>(), [bucket]);
    let stranger = MastershipMap::new(Epoch(2), &members, VIRTUAL_NODES, BTreeMap::from([(bucket, NodeId(9))]));
    assert_eq!(stranger.unwrap_err(), MapError::NotAMember { bucket, node: NodeId(9) });
    assert_eq!(MastershipMap::new(Epoch(1), &[], VIRTUAL_NODES, BTreeMap::new()).unwrap_err(), MapError::NoMembers);
}
