use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::ids::BLOCK_SIZE;
use crate::volume::page::PageMut;

fn leaf(low: &[u8], high: Option<&[u8]>, rows: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<u8> {
    let mut block = vec![0; BLOCK_SIZE];
    format(0, &header(0, high.is_some(), None)).apply(&mut block).unwrap();
    fence(low, high).apply(&mut block).unwrap();
    for (slot, (key, value)) in (FIRST..).zip(rows) {
        Change::InsertCell { slot, key, value }.apply(&mut block).unwrap();
    }
    block
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(0u8..4, 1..10),
        (prop::collection::vec(0u8..3, 3), 0usize..=KEY_MAX - 6).prop_map(|(start, len)| [
            &[1][..],
            &start,
            &vec![7; len],
            &start[..2]
        ]
        .concat()),
    ]
}

proptest! {
    /// However large keys and values are, a full leaf can be split so that the row that did not fit fits then, in the
    /// half whose range it belongs to.
    #[test]
    fn a_full_leaf_always_splits(rows in prop::collection::vec((key(), any::<prop::sample::Index>()), 4..80), long_high: bool) {
        let mut kept = BTreeMap::new();
        let low = vec![0u8; if long_high { KEY_MAX } else { 0 }];
        let high = vec![9u8; KEY_MAX];
        let high = long_high.then_some(&high[..]);
        let mut incoming = None;
        for (key, len) in rows {
            if key <= low {
                continue;
            }
            let value = vec![5; len.index(CELL_MAX - key.len() + 1)];
            let block = leaf(&low, high, &kept);
            let node = Node::new(&block).unwrap();
            let fits = match node.find(&key) {
                Ok(slot) => node.page().fits_instead(slot, key.len(), value.len()),
                Err(_) => node.page().fits(key.len(), value.len()),
            };
            if !fits {
                incoming = Some((key, value));
                break;
            }
            kept.insert(key, value);
        }
        let Some((key, value)) = incoming else { return Ok(()) };
        let block = leaf(&low, high, &kept);
        let plan = Node::new(&block).unwrap().plan_split(Incoming { key: &key, value_len: value.len() });
        prop_assert!(plan.separator > low && high.is_none_or(|high| &plan.separator[..] < high));

        let right_rows = kept.split_off(&plan.separator);
        prop_assert_eq!(kept.len(), usize::from(plan.at - FIRST), "the separator parts at the slot");
        for (low, high, rows) in [(&low[..], Some(&plan.separator[..]), &kept), (&plan.separator[..], high, &right_rows)] {
            let mut half = leaf(low, high, rows);
            let node = Node::new(&half).unwrap();
            if &key[..] >= low && !node.is_left_of(Target::Key(&key)) {
                let change = match node.find(&key) {
                    Ok(slot) => Change::ReplaceValue { slot, value: &value },
                    Err(slot) => Change::InsertCell { slot, key: &key, value: &value },
                };
                change.apply(&mut half).unwrap();
            }
            PageMut::new(&mut half).view().check().unwrap();
        }
    }

    #[test]
    fn separators_are_short_and_part_their_neighbours(mut a in prop::collection::vec(0u8..3, 0..8), mut b in prop::collection::vec(0u8..3, 0..8)) {
        if a > b {
            std::mem::swap(&mut a, &mut b);
        }
        if a < b {
            let between = shortest_between(&a, &b);
            prop_assert!(&a[..] < between && between <= &b[..]);
            prop_assert!(between.len() == 1 || a >= between[..between.len() - 1].to_vec(), "one byte less would not part them");
        }
    }
}

#[test]
fn ascending_keys_leave_the_left_half_full() {
    let rows: BTreeMap<_, _> = (0..100u32).map(|i| (i.to_be_bytes().to_vec(), vec![1; 60])).collect();
    let block = leaf(&[], None, &rows);
    let node = Node::new(&block).unwrap();
    let next = 100u32.to_be_bytes();
    let plan = node.plan_split(Incoming { key: &next, value_len: 1000 });
    assert_eq!((plan.at, &plan.separator[..]), (node.end(), &next[..]));
    // And a key in the middle parts it in the middle.
    let plan = node.plan_split(Incoming { key: &[0, 0, 0, 50, 1], value_len: 60 });
    assert!((45..=56).contains(&plan.at), "split at {}", plan.at);
}

#[test]
fn a_search_finds_its_child() {
    let mut block = vec![0; BLOCK_SIZE];
    format(1, &header(1, true, Some(BlockNo(99)))).apply(&mut block).unwrap();
    fence(b"c", Some(b"x")).apply(&mut block).unwrap();
    for (slot, (key, child)) in (FIRST..).zip([(&b""[..], 10), (b"g", 11), (b"p", 12)]) {
        Change::InsertCell { slot, key, value: &child_value(BlockNo(child)) }.apply(&mut block).unwrap();
    }
    let node = Node::new(&block).unwrap();
    let to = |target| node.child_for(target).unwrap().0;
    assert_eq!([&b"c"[..], b"f", b"g", b"h", b"p", b"w"].map(|key| to(Target::Key(key))), [10, 10, 11, 11, 12, 12]);
    assert_eq!([&b"d"[..], b"g", b"ga", b"p", b"q", b"x"].map(|key| to(Target::Before(key))), [10, 10, 11, 11, 12, 12]);
    assert_eq!(to(Target::Last), 12);
    assert_eq!([&b"w"[..], b"x"].map(|key| node.is_left_of(Target::Key(key))), [false, true]);
    assert_eq!([&b"x"[..], b"xa"].map(|key| node.is_left_of(Target::Before(key))), [false, true]);
    assert!(node.is_left_of(Target::Last) && node.right() == Some(BlockNo(99)));
}

#[test]
fn other_blocks_are_no_nodes() {
    let mut block = vec![0; BLOCK_SIZE];
    assert!(Node::new(&block).is_none(), "a block that was never formatted");
    format(1, &header(1, false, None)).apply(&mut block).unwrap();
    assert!(Node::new(&block).is_none(), "a node without fences");
    fence(b"", None).apply(&mut block).unwrap();
    assert!(Node::new(&block).is_some());
    set_header(&header(0, false, None)).apply(&mut block).unwrap();
    assert!(Node::new(&block).is_none(), "a leaf in the block of an inner node");
}
