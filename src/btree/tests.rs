//! Trees, scans, chains and space over a cache, with tasks that take turns at random.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::ops::Bound;
use std::pin::Pin;
use std::rc::Rc;

use super::node::{FIRST, Incoming, Node, Target};
use super::overflow::{CHUNK, OverflowRef};
use super::space::{BlockAllocator, PartitionHome, SpaceManager, SpaceReply, SpaceRequest, SpaceService, Urgency};
use super::*;
use crate::ids::{BlockNo, NodeId, PartitionId};

mod bed;
use bed::{Bed, Dice, Size, run};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn need(value_len: usize) -> NeedRoom<'static> {
    NeedRoom { value_len, redo_bytes: 4096, urgency: Urgency::Normal, dead: &|_, _| false }
}

async fn put(tree: &Tree, key: &[u8], value: &[u8]) -> Result<(), TreeError> {
    let (mut leaf, mut mtr) = tree.seek_write(key, need(value.len())).await?;
    leaf.put(&mut mtr, value);
    mtr.finish();
    assert_eq!(leaf.value(), Some(value));
    Ok(())
}

async fn remove(tree: &Tree, key: &[u8]) -> bool {
    let (mut leaf, mut mtr) = tree.seek_write(key, need(0)).await.unwrap();
    let had = leaf.value().is_some();
    leaf.remove(&mut mtr);
    if had {
        mtr.finish();
    }
    had
}

async fn get(tree: &Tree, key: &[u8]) -> Option<Vec<u8>> {
    let quick = tree.try_get(key, |value| value.map(<[u8]>::to_vec)).unwrap();
    let slow = tree.get(key, |value| value.map(<[u8]>::to_vec)).await.unwrap();
    if let Some(quick) = quick {
        assert_eq!(quick, slow);
    }
    slow
}

async fn rows(tree: &Tree, range: KeyRange, bytes_max: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (mut rows, mut more) = (Vec::new(), Some(range));
    while let Some(range) = more {
        let chunk = tree.scan(&range, bytes_max).await.unwrap();
        rows.extend(chunk.rows);
        more = chunk.more;
    }
    rows
}

/// What is wrong with the tree as a whole; also how full its leaves are, in percent.
async fn inspect(tree: &Tree) -> (usize, u64) {
    let mut low: Vec<u8> = Vec::new();
    let (mut leaves, mut free) = (0, 0);
    loop {
        let guard = tree.read_leaf(Target::Key(&low)).await.unwrap();
        let leaf = Node::new(&guard).unwrap();
        assert_eq!(leaf.low(), low, "each leaf begins where the one before it ends");
        let keys: Vec<&[u8]> = (FIRST..leaf.end()).map(|slot| leaf.page().key(slot)).collect();
        assert!(keys.windows(2).all(|pair| pair[0] < pair[1]), "keys in order, each once");
        assert!(
            keys.iter().all(|key| *key >= leaf.low() && leaf.high().is_none_or(|high| *key < high)),
            "keys within their fences"
        );
        leaves += 1;
        free += leaf.page().free_bytes();
        match leaf.high() {
            Some(high) => low = high.to_vec(),
            None => break,
        }
    }
    (leaves, 100 - (free * 100 / (leaves * 8096)) as u64)
}

fn random_key(dice: &Dice, keys: u64) -> Vec<u8> {
    let number = dice.below(keys);
    let mut key = number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes().to_vec();
    // Some keys are as long as they may be, so that splits go up several levels.
    if number.is_multiple_of(5) {
        key.resize(KEY_MAX - (number % 7) as usize, b'k');
    }
    key
}

fn random_value(dice: &Dice, key: &[u8]) -> Vec<u8> {
    let longest = (CELL_MAX - key.len()).min(if dice.below(8) == 0 { CELL_MAX } else { 200 });
    vec![dice.below(256) as u8; 1 + dice.below(longest as u64) as usize]
}

#[test]
fn a_tree_is_a_sorted_map() {
    for seed in 0..4 {
        run(seed, Size::Roomy, |task| async move {
            let tree = task.tree().await;
            let (dice, mut model) = (&task.dice, Model::new());
            for _ in 0..6000 {
                let key = random_key(dice, 1500);
                match dice.below(10) {
                    0..6 => {
                        let value = random_value(dice, &key);
                        put(&tree, &key, &value).await.unwrap();
                        model.insert(key, value);
                    }
                    6..8 => assert_eq!(remove(&tree, &key).await, model.remove(&key).is_some()),
                    _ => assert_eq!(get(&tree, &key).await, model.get(&key).cloned()),
                }
            }
            inspect(&tree).await;
            let all: Vec<_> = model.clone().into_iter().collect();
            assert_eq!(rows(&tree, KeyRange::all(), 10_000).await, all);
            let back: Vec<_> = all.iter().rev().cloned().collect();
            assert_eq!(rows(&tree, KeyRange::all().reversed(), 10_000).await, back);
            for _ in 0..200 {
                let (a, b) = (random_key(dice, 1500), random_key(dice, 1500));
                let bound = |key: Vec<u8>| match dice.below(5) {
                    0 => Bound::Unbounded,
                    1 | 2 => Bound::Included(key),
                    _ => Bound::Excluded(key),
                };
                let range =
                    KeyRange { lower: bound(a.clone().min(b.clone())), upper: bound(a.max(b)), reverse: dice.below(2) == 0 };
                let (lower, upper) = (range.lower.clone(), range.upper.clone());
                let mut expected: Vec<_> = if matches!((&lower, &upper), (Bound::Excluded(a), Bound::Excluded(b)) if a == b) {
                    Vec::new()
                } else {
                    model.range((lower, upper)).map(|(key, value)| (key.clone(), value.clone())).collect()
                };
                if range.reverse {
                    expected.reverse();
                }
                assert_eq!(rows(&tree, range, 1 + dice.below(5000) as usize).await, expected);
            }
        });
    }
}

/// Writers split leaves and inner nodes under each other's feet, and under scans in both directions.
#[test]
fn tasks_take_turns_without_losing_a_key() {
    for seed in 10..13 {
        run(seed, Size::Roomy, |bed| async move {
            let tree = bed.tree().await;
            // Rows that stay: every scan must see each of them once.
            for number in 0..300u64 {
                put(&tree, &deep_key(number * 1000), b"stays").await.unwrap();
            }
            let writers_left = Rc::new(Cell::new(8));
            let mut tasks: Vec<Pin<Box<dyn Future<Output = ()>>>> = Vec::new();
            for writer in 1..=8u64 {
                tasks.push(Box::pin(write_among_others(tree.clone(), bed.clone(), writer, writers_left.clone())));
            }
            for reader in 0..3 {
                tasks.push(Box::pin(scan_again_and_again(tree.clone(), bed.clone(), reader, writers_left.clone())));
            }
            bed.run_all(tasks).await;
            let (leaves, _) = inspect(&tree).await;
            let levels = bed.levels(&tree).await;
            assert!(leaves > 100 && levels > 2, "only {leaves} leaves and {levels} levels: hardly anything was split");
            bed.check_space(&tree, &[]).await;
        });
    }
}

/// Keys that begin alike for long: separators are as long, inner nodes have few children, and the tree many levels.
fn deep_key(number: u64) -> Vec<u8> {
    [&[b'p'; 800][..], &number.to_be_bytes()].concat()
}

/// Writes keys of its own, among those of the others.
async fn write_among_others(tree: Tree, bed: Bed, writer: u64, writers_left: Rc<Cell<u32>>) {
    for _ in 0..300 {
        let number = bed.dice.below(300) * 1000 + writer * 100 + bed.dice.below(99);
        let mut key = deep_key(number);
        key.resize(key.len() + bed.dice.below(200) as usize, b'x');
        put(&tree, &key, &vec![writer as u8; 1 + bed.dice.below(900) as usize]).await.unwrap();
        bed.pause().await;
        assert!(get(&tree, &key).await.is_some(), "a key just written is found");
        if bed.dice.below(3) == 0 {
            assert!(remove(&tree, &key).await);
        }
    }
    writers_left.set(writers_left.get() - 1);
}

async fn scan_again_and_again(tree: Tree, bed: Bed, reader: u64, writers_left: Rc<Cell<u32>>) {
    while writers_left.get() > 0 {
        let range = if reader == 0 { KeyRange::all() } else { KeyRange::all().reversed() };
        let reverse = range.reverse;
        let seen = rows(&tree, range, 3000).await;
        assert!(seen.windows(2).all(|pair| (pair[0].0 < pair[1].0) != reverse), "in order, none twice");
        let stays = seen.iter().filter(|(_, value)| value == b"stays").count();
        assert_eq!(stays, 300);
        bed.pause().await;
    }
}

/// A crash between a split and its separator: the row is found all the same, and the next writer makes up for it.
#[test]
fn a_split_without_its_separator_is_completed() {
    run(21, Size::Roomy, |bed| async move {
        let tree = bed.tree().await;
        let mut model = Model::new();
        for number in 0..400u64 {
            let key = (number * 10).to_be_bytes().to_vec();
            put(&tree, &key, &[1; 100]).await.unwrap();
            model.insert(key, vec![1; 100]);
        }
        let (before, _) = inspect(&tree).await;
        let key = 2005u64.to_be_bytes();
        let mut claim = bed.space.claim(tree.home(), 2, Urgency::Normal).await.unwrap();
        let mtr = bed.cache.begin_mtr(20_000).await.unwrap();
        let (guard, block, _) = tree.write_node(Target::Key(&key), 0).await.unwrap();
        let plan = Node::new(&guard).unwrap().plan_split(Incoming { key: &key, value_len: 100 });
        let right = tree.split_node(guard, mtr, claim.take(1), &plan).await.unwrap();
        drop(claim);

        assert_eq!(inspect(&tree).await.0, before + 1);
        assert_eq!(rows(&tree, KeyRange::all(), 1000).await, model.clone().into_iter().collect::<Vec<_>>());
        assert_eq!(rows(&tree, KeyRange::all().reversed(), 1000).await, model.clone().into_iter().rev().collect::<Vec<_>>());
        for (key, value) in &model {
            assert_eq!(get(&tree, key).await.as_ref(), Some(value));
        }
        let child_of_root = async |key: &[u8]| {
            let guard = bed.cache.read(tree.home().root()).await.unwrap();
            Node::new(&guard).unwrap().child_for(Target::Key(key)).unwrap()
        };
        assert_eq!(child_of_root(&plan.separator).await, block.block, "the root doesn't know the new node");
        put(&tree, &plan.separator, &[2; 100]).await.unwrap();
        assert_eq!(child_of_root(&plan.separator).await, right, "the writer that had to go right has told it");
        bed.check_space(&tree, &[]).await;
    });
}

/// A client that goes away drops its statement wherever it waits.
#[test]
fn abandoned_writes_leave_a_whole_tree() {
    run(20, Size::Roomy, |bed| async move {
        let tree = bed.tree().await;
        let mut model = Model::new();
        for round in 0..1500u64 {
            let (key, value) = (random_key(&bed.dice, 1 << 40), vec![round as u8; 1 + bed.dice.below(700) as usize]);
            let (writer, row) = (tree.clone(), (key.clone(), value.clone()));
            let task = async move { put(&writer, &row.0, &row.1).await.unwrap() };
            if !bed.run_for_a_while(task, bed.dice.below(8)).await {
                // It may have got through or not, and nothing in between.
                match get(&tree, &key).await {
                    Some(present) => assert_eq!(present, value),
                    None => continue,
                }
            }
            model.insert(key, value);
        }
        inspect(&tree).await;
        assert_eq!(rows(&tree, KeyRange::all(), 50_000).await, model.into_iter().collect::<Vec<_>>());
        bed.check_space(&tree, &[]).await;
    });
}

#[test]
fn ascending_loads_fill_their_pages() {
    run(3, Size::Roomy, |task| async move {
        let tree = task.tree().await;
        for number in 0..20_000u64 {
            put(&tree, &number.to_be_bytes(), &[7; 50]).await.unwrap();
        }
        let (_, filled) = inspect(&tree).await;
        assert!(filled > 90, "leaves are {filled} % full");
        let down = task.tree().await;
        for number in (0..20_000u64).rev() {
            put(&down, &number.to_be_bytes(), &[7; 50]).await.unwrap();
        }
        let (_, filled) = inspect(&down).await;
        assert!(filled > 90, "leaves are {filled} % full");
    });
}

#[test]
fn dead_cells_make_room_before_a_split() {
    run(4, Size::Roomy, |task| async move {
        let tree = task.tree().await;
        let dead = |_: &[u8], value: &[u8]| value.first() == Some(&b'd');
        for number in 0..5000u64 {
            let need = NeedRoom { dead: &dead, ..need(100) };
            let key = (number % 50).to_be_bytes();
            let key = [&key[..], &number.to_be_bytes()].concat();
            let (mut leaf, mut mtr) = tree.seek_write(&key, need).await.unwrap();
            leaf.put(&mut mtr, &[if number < 40 { b'l' } else { b'd' }; 100]);
            mtr.finish();
        }
        let (leaves, _) = inspect(&tree).await;
        assert!(leaves < 6, "{leaves} leaves: the dead were kept");
        let live = rows(&tree, KeyRange::all(), 1000).await.iter().filter(|(_, value)| value[0] == b'l').count();
        assert_eq!(live, 40, "the living stay");
    });
}

#[test]
fn neighbouring_keys_go_into_one_group() {
    run(5, Size::Roomy, |task| async move {
        let tree = task.tree().await;
        let keys: Vec<[u8; 8]> = (0..1000u64).map(u64::to_be_bytes).collect();
        let (mut at, mut groups) = (0, 0);
        while at < keys.len() {
            let (mut leaf, mut mtr) = tree.seek_write(&keys[at], NeedRoom { redo_bytes: 16_384, ..need(50) }).await.unwrap();
            loop {
                leaf.put(&mut mtr, &[1; 50]);
                at += 1;
                if at == keys.len() || !leaf.move_to(&keys[at], 50) {
                    break;
                }
            }
            mtr.finish();
            groups += 1;
        }
        assert!(groups < 40, "{groups} groups for 1000 rows");
        assert_eq!(rows(&tree, KeyRange::all(), 1 << 20).await.len(), 1000);
        // In place, by the redo of the stamp alone.
        let (mut leaf, mut mtr) = tree.seek_write(&keys[500], need(0)).await.unwrap();
        leaf.patch(&mut mtr, 10, b"stamp");
        mtr.finish();
        assert_eq!(leaf.value().map(|value| value[10..15].to_vec()), Some(b"stamp".to_vec()));
        assert!(leaf.move_to(&keys[501], 50) && !leaf.move_to(&keys[0], 50));
    });
}

#[test]
fn bounds_are_refused_by_name() {
    run(6, Size::Roomy, |task| async move {
        let tree = task.tree().await;
        let long = vec![1; KEY_MAX + 1];
        assert_eq!(put(&tree, &long, b"").await, Err(TreeError::KeyTooLong { len: KEY_MAX + 1 }));
        assert_eq!(put(&tree, &long[1..], &[0; CELL_MAX]).await, Err(TreeError::CellTooLong { len: KEY_MAX + CELL_MAX }));
        put(&tree, &long[1..], &[0; CELL_MAX - KEY_MAX]).await.unwrap();
        put(&tree, b"", &[0; CELL_MAX]).await.unwrap();
        assert_eq!(rows(&tree, KeyRange::all(), 1).await.len(), 2);
    });
}

#[test]
fn values_of_any_length_survive_their_chains() {
    run(7, Size::Roomy, |task| async move {
        let tree = task.tree().await;
        let before = task.used_blocks(&tree).await;
        let mut chains = Vec::new();
        for length in [1, CHUNK - 1, CHUNK, CHUNK + 1, 30 * CHUNK, 31 * CHUNK + 1, 3 << 20] {
            let value: Vec<u8> = (0..length).map(|at| (at % 251) as u8 ^ (at >> 13) as u8).collect();
            let chain = tree.write_overflow(&value, Urgency::Normal).await.unwrap();
            assert_eq!(OverflowRef::decode(&chain.encode()), Some(chain));
            chains.push((chain, value));
        }
        for (chain, value) in &chains {
            assert!(tree.overflow_value(*chain).await.unwrap() == *value, "a value of {} bytes", value.len());
        }
        // A reference to the middle of a chain, and one that lies about the length, is found out.
        let (chain, _) = chains[5];
        let lie = OverflowRef { length: chain.length + 1, ..chain };
        assert!(matches!(tree.overflow_value(lie).await, Err(TreeError::Corrupt { .. })));
        let refs: Vec<OverflowRef> = chains.iter().map(|(chain, _)| *chain).collect();
        task.check_space(&tree, &refs).await;
        for chain in refs {
            tree.free_overflow(chain).await.unwrap();
        }
        assert_eq!(task.used_blocks(&tree).await, before, "freed chains give their blocks back");
        // And the blocks are used again: no more extents than before.
        let extents = task.space.extents_of(tree.home()).await.unwrap().len();
        let again = tree.write_overflow(&vec![9; 3 << 20], Urgency::Normal).await.unwrap();
        assert_eq!(task.space.extents_of(tree.home()).await.unwrap().len(), extents);
        assert_eq!(tree.overflow_value(again).await.unwrap(), vec![9; 3 << 20]);
    });
}

/// The longest row promised, through a log that is much shorter.
#[test]
fn a_value_of_64_mib_goes_through_a_small_log() {
    run(12, Size::Large, |task| async move {
        let tree = task.tree().await;
        let length = (64 << 20) + 12_345;
        let byte = |at: usize| (at % 253) as u8 ^ (at >> 16) as u8;
        let value: Vec<u8> = (0..length).map(byte).collect();
        let chain = tree.write_overflow(&value, Urgency::Normal).await.unwrap();
        let mut at = 0;
        tree.read_overflow(chain, &mut |chunk| {
            assert!(*chunk == value[at..at + chunk.len()], "the chunk at {at}");
            at += chunk.len();
        })
        .await
        .unwrap();
        assert_eq!(at, length);
        tree.free_overflow(chain).await.unwrap();
        assert_eq!(task.used_blocks(&tree).await, BTreeSet::from([tree.home().root().block]));
    });
}

#[test]
fn a_full_volume_says_so_and_lives_on() {
    run(8, Size::Small, |task| async move {
        let keeps = task.tree().await;
        put(&keeps, b"kept", b"row").await.unwrap();
        let tree = task.tree().await;
        let before = task.usage().await;
        let mut number = 0u64;
        let full = loop {
            match put(&tree, &number.to_be_bytes(), &[1; 1000]).await {
                Ok(()) => number += 1,
                Err(error) => break error,
            }
        };
        let TreeError::Space(SpaceError::VolumeFull { partition, extents_free }) = full else { panic!("{full}") };
        let usage = task.usage().await;
        assert_eq!((partition, extents_free), (tree.partition(), usage.extents_reserved));
        assert!(extents_free > 0 && usage.extents_free == usage.extents_reserved, "the reserve is kept: {usage:?}");
        assert!(matches!(tree.write_overflow(&vec![0; 3 << 20], Urgency::Normal).await, Err(TreeError::Space(_))));
        task.check_space(&tree, &[]).await;

        // What is there is read, deleted, and undo still finds room.
        assert_eq!(get(&keeps, b"kept").await, Some(b"row".to_vec()));
        assert_eq!(rows(&tree, KeyRange::all(), 1 << 20).await.len() as u64, number);
        assert!(remove(&tree, &0u64.to_be_bytes()).await);
        let undo = task.service.request(SpaceRequest::AllocateExtents {
            partition: tree.partition(),
            count: 1,
            urgency: Urgency::Reserve,
        });
        let Ok(SpaceReply::Extents(extents)) = undo.await else { panic!("the reserve is for undo") };
        task.service.request(SpaceRequest::FreeExtents(extents)).await.unwrap();

        // Dropping it gives all its space back.
        task.drop_tree(&tree).await;
        assert_eq!(task.usage().await, before_without(before, 1));
        let tree = task.tree().await;
        for number in 0..50u64 {
            put(&tree, &number.to_be_bytes(), &[1; 1000]).await.unwrap();
        }
        assert_eq!(get(&keeps, b"kept").await, Some(b"row".to_vec()));
    });
}

#[test]
fn a_dropped_partitions_space_is_given_to_nobody_while_lost_nodes_are_recovered() {
    run(12, Size::Roomy, |task| async move {
        let tree = task.tree().await;
        put(&tree, b"key", b"row").await.unwrap();
        let before = task.usage().await;
        let recovers = Rc::new(Cell::new(true));
        let until = recovers.clone();
        task.service.hold_frees_while(Rc::new(move || until.get()));
        task.drop_tree(&tree).await;
        assert_eq!(task.usage().await, before, "whoever drops it does not wait, and its extents stay taken");
        let next = task.tree().await;
        assert_ne!(next.home().first_extent, tree.home().first_extent);
        recovers.set(false);
        while task.usage().await.extents_free < before.extents_free {
            task.pause().await;
        }
    });
}

/// The usage once `extents` more are free.
fn before_without(mut usage: space::SpaceUsage, extents: u64) -> space::SpaceUsage {
    usage.extents_free += extents;
    usage
}

#[test]
fn partitions_are_found_once_published_and_not_twice() {
    run(9, Size::Roomy, |task| async move {
        let mut homes = BTreeSet::new();
        for _ in 0..40 {
            let tree = task.tree().await;
            let found = task.service.request(SpaceRequest::FindPartition(tree.partition())).await;
            assert_eq!(found, Ok(SpaceReply::Home(tree.home())));
            assert!(homes.insert(tree.home().first_extent) && tree.partition() >= PartitionId::FIRST_USER);
        }
        let unknown = PartitionId(4_000_000);
        assert_eq!(task.service.request(SpaceRequest::FindPartition(unknown)).await, Err(SpaceError::NoPartition(unknown)));
        let prepare = |partition| SpaceRequest::PreparePartition { partition, urgency: Urgency::Reserve };
        let undo = PartitionId::FIRST_UNDO;
        let Ok(SpaceReply::Home(home)) = task.service.request(prepare(Some(undo))).await else { panic!() };
        assert_eq!(task.service.request(SpaceRequest::FindPartition(undo)).await, Err(SpaceError::NoPartition(undo)));
        task.service.request(SpaceRequest::PublishPartition(home)).await.unwrap();
        assert_eq!(task.service.request(prepare(Some(undo))).await, Err(SpaceError::PartitionExists(undo)));
        let other = PartitionHome { first_extent: BlockNo(home.first_extent.0 + 32), ..home };
        assert_eq!(task.service.request(SpaceRequest::PublishPartition(other)).await, Err(SpaceError::PartitionExists(undo)));
    });
}

/// A new life of the node knows nothing of the free blocks of the last; it finds them along the chain.
#[test]
fn free_blocks_are_found_again_after_a_restart() {
    run(11, Size::Roomy, |task| async move {
        let tree = task.tree().await;
        let chain = tree.write_overflow(&vec![3; 2 << 20], Urgency::Normal).await.unwrap();
        put(&tree, b"key", b"value").await.unwrap();
        tree.free_overflow(chain).await.unwrap();
        let extents = task.space.extents_of(tree.home()).await.unwrap().len();
        let space = BlockAllocator::new(&task.cache, task.service.clone(), NodeId(1), task.extents_first);
        let tree = Tree::open(&task.cache, &space, tree.home());
        let chain = tree.write_overflow(&vec![4; 2 << 20], Urgency::Normal).await.unwrap();
        assert_eq!(space.extents_of(tree.home()).await.unwrap().len(), extents, "old space first");
        assert_eq!(get(&tree, b"key").await, Some(b"value".to_vec()));
        assert_eq!(tree.overflow_value(chain).await.unwrap(), vec![4; 2 << 20]);

        // Another node leaves this node's extents alone, and takes its own.
        let space = BlockAllocator::new(&task.cache, task.service.clone(), NodeId(2), task.extents_first);
        let tree = Tree::open(&task.cache, &space, tree.home());
        let chain = tree.write_overflow(&[5; 100], Urgency::Normal).await.unwrap();
        let now = space.extents_of(tree.home()).await.unwrap();
        assert!(now.len() > extents, "node 2 took from an extent of node 1");
        // What one node has written, the other frees.
        Tree::open(&task.cache, &task.space, tree.home()).free_overflow(chain).await.unwrap();
    });
}
