use super::*;
use crate::ids::Epoch;

const ME: NodeId = NodeId(1);
const MEMBERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
const HOT: Bucket = Bucket(7);

fn table() -> AffinityTable {
    AffinityTable::new(ME, AffinityConfig { load_balance_interval: 4, ..AffinityConfig::default() })
}

/// A second with so many requests of each of these nodes; the moves planned at its end.
fn window(table: &mut AffinityTable, requests: &[(Bucket, u8, u64)]) -> Vec<(Bucket, NodeId)> {
    for &(bucket, node, count) in requests {
        (0..count).for_each(|_| table.record(bucket, NodeId(node)));
    }
    table.end_window(&MEMBERS);
    std::iter::from_fn(|| table.next_move()).collect()
}

#[test]
fn a_bucket_goes_to_the_node_that_asks_for_it_and_then_rests() {
    let mut table = table();
    assert_eq!(window(&mut table, &[(HOT, 2, 99)]), [], "below the threshold");
    assert_eq!(window(&mut table, &[(HOT, 2, 10)]), [(HOT, NodeId(2))], "what was asked before counts, a little less");
    table.moved(HOT);
    // It comes back.
    for _ in 1..REST_WINDOWS {
        assert_eq!(window(&mut table, &[(HOT, 3, 500)]), [], "it has moved a moment ago");
    }
    assert_eq!(window(&mut table, &[(HOT, 3, 500)]), [(HOT, NodeId(3))]);
}

#[test]
fn a_bucket_that_several_want_stays() {
    for requests in [&[(HOT, 2, 1_000), (HOT, 3, 501)][..], &[(HOT, 2, 1_000), (HOT, 1, 501)], &[(HOT, 1, 5_000)]] {
        let mut table = table();
        for _ in 0..30 {
            assert_eq!(window(&mut table, requests), []);
        }
    }
    // Turns of two seconds: nobody outweighs the other for long.
    let mut moves = 0;
    let mut turns = table();
    for second in 0..200u64 {
        let node = if second / 2 % 2 == 0 { 2 } else { 3 };
        moves += window(&mut turns, &[(HOT, node, 1_000)]).len();
    }
    assert!(moves <= 3, "{moves} moves: it thrashes");
}

#[test]
fn what_is_not_asked_for_any_more_fades() {
    let mut table = table();
    window(&mut table, &[(HOT, 2, 90), (Bucket(8), 2, 90)]);
    for _ in 0..200 {
        assert_eq!(window(&mut table, &[]), []);
    }
    assert_eq!((table.heat.len(), table.load()), (0, 0));
    // A node that is not a member any more is given nothing.
    (0..200).for_each(|_| table.record(HOT, NodeId(9)));
    assert_eq!(window(&mut table, &[]), []);
}

#[test]
fn after_a_change_of_the_view_buckets_go_back_to_where_they_were() {
    let map = |epoch, members: &[NodeId]| MastershipMap::new(Epoch(epoch), members, 64, BTreeMap::new()).unwrap();
    let (before, after) = (map(1, &MEMBERS), map(2, &MEMBERS[..2]));
    let buckets = |map: &MastershipMap, node, most| -> Vec<Bucket> {
        (0..u16::MAX).map(Bucket).filter(|&bucket| map.master_of_bucket(bucket) == node).take(most).collect()
    };
    let mine = buckets(&before, ME, 3);
    let hers = buckets(&before, NodeId(2), 1)[0];
    let moved = before.moved(mine[0], NodeId(2)).moved(mine[1], NodeId(3)).moved(hers, NodeId(3)).moved(hers, ME);
    let mut table = table();
    table.enter(&moved, &after);
    // Node 3 is gone; what has come here from node 2 is hers to send.
    assert_eq!(table.next_move(), Some((mine[0], NodeId(2))));
    assert_eq!(table.next_move(), None);
    // Begun, not finished, and the view changes again.
    table.enter(&moved, &after);
    table.enter(&after, &map(3, &MEMBERS));
    assert_eq!(table.next_move(), Some((mine[0], NodeId(2))));
}

#[test]
fn it_keeps_to_its_bounds() {
    let mut table = table();
    for bucket in 0..u16::MAX {
        for node in 1..=9 {
            table.record(Bucket(bucket), NodeId(node));
        }
        table.moved(Bucket(bucket / 2));
    }
    for bucket in 0..u16::MAX {
        table.record(Bucket(bucket), NodeId(2));
    }
    assert!(table.heat.len() <= HOT_MAX && table.resting.len() <= RESTING_MAX);
    let mut off = AffinityTable::new(ME, AffinityConfig { auto_remaster: false, ..AffinityConfig::default() });
    assert_eq!((window(&mut off, &[(HOT, 2, 1_000)]), off.tells_load()), (vec![], false));
}

#[test]
fn the_busiest_master_gives_its_cooler_buckets_to_the_least_busy_one() {
    let contested: Vec<(Bucket, u8, u64)> =
        (0..10).flat_map(|n| [(Bucket(n), 2, 10 + u64::from(n)), (Bucket(n), 3, 10 + u64::from(n))]).collect();
    let mine = [(Bucket(90), 1, 50)];
    let mut table = table();
    let mut plans = Vec::new();
    for second in 0..12 {
        plans.extend(window(&mut table, &[&contested[..], &mine].concat()));
        if table.tells_load() {
            assert!(plans.is_empty() || second > 4);
            table.heard_load(NodeId(2), 500);
            table.heard_load(NodeId(3), 100);
        }
    }
    assert!(!plans.is_empty(), "nothing is given away");
    assert!(plans.iter().all(|&(bucket, to)| to == NodeId(3) && bucket.0 < 10), "{plans:?}");
    assert!(!plans.iter().any(|(bucket, _)| *bucket == Bucket(9)), "the hottest goes last: {plans:?}");
    // Where all have as much, everything stays.
    for _ in 0..8 {
        table.heard_load(NodeId(2), table.load());
        table.heard_load(NodeId(3), table.load());
        assert_eq!(window(&mut table, &[&contested[..], &mine].concat()), []);
    }
}
