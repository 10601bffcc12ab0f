//! Histories of a block, spread over the logs of several nodes, replayed from every version that the disk may have.

use super::*;
use crate::ids::BLOCK_SIZE;
use crate::volume::block::BlockKind;
use crate::wal::redo::RedoGroupBuilder;
use proptest::prelude::*;

/// Whose log, and the redo group in it.
type Logged = (NodeId, Vec<u8>);

const ID: BlockId = BlockId::new(PartitionId(70), BlockNo(9));

fn encoded(id: BlockId, before: u64, after: u64, changes: &[Change<'_>]) -> Vec<u8> {
    let mut builder = RedoGroupBuilder::new();
    for change in changes {
        change.encode(builder.changes(id, Scn(before)));
    }
    let mut payload = Vec::new();
    builder.encode(Scn(after), &mut payload);
    payload
}

fn format() -> Change<'static> {
    Change::Format { kind: BlockKind::TreeLeaf, user_len: 0, user_header: &[] }
}

/// A history of `steps` versions: what each node logged, and the bytes of each version as a block writer would have left
/// them on disk (version 0 is a block never written).
fn history(steps: u64) -> (Vec<Logged>, Vec<Vec<u8>>) {
    let mut bytes = vec![0; BLOCK_SIZE];
    let mut versions = vec![bytes.clone()];
    let mut logged = Vec::new();
    for step in 1..=steps {
        let value = step.to_le_bytes();
        let change = if step == 1 { format() } else { Change::InsertCell { slot: 0, key: &value, value: &value } };
        if step == 1 {
            block::format_block(&mut bytes, ID, BlockKind::Free);
        }
        change.apply(&mut bytes).unwrap();
        block::set_scn(&mut bytes, Scn(step));
        let mut sealed = bytes.clone();
        block::seal(&mut sealed);
        versions.push(sealed);
        logged.push((NodeId((step % 3) as u8 + 1), encoded(ID, step - 1, step, &[change])));
    }
    (logged, versions)
}

fn replay_all(logged: &[Logged]) -> Replay {
    let mut replay = Replay::new();
    for (node, payload) in logged {
        replay.add_group(*node, payload).unwrap();
    }
    replay
}

proptest! {
    #[test]
    fn every_version_on_disk_leads_to_the_newest(steps in 1u64..40, start in 0usize..41, shuffle in any::<u64>()) {
        let (mut logged, versions) = history(steps);
        let start = start % versions.len();
        let turn = shuffle as usize % logged.len();
        logged.rotate_left(turn);
        let mut bytes = versions[start].clone();
        let mut replay = replay_all(&logged);
        let outcome = replay.replay(ID.block, &mut bytes).unwrap();
        prop_assert_eq!(&bytes, versions.last().unwrap());
        prop_assert_eq!(outcome == Replayed::Current, start + 1 == versions.len());
        // Once more changes nothing: recovery may be interrupted and run again.
        prop_assert_eq!(replay.replay(ID.block, &mut bytes).unwrap(), Replayed::Current);
    }
}

#[test]
fn a_missing_link_is_named_and_never_jumped() {
    let (mut logged, versions) = history(6);
    logged.remove(3);
    let error = replay_all(&logged).replay(ID.block, &mut versions[2].clone()).unwrap_err();
    let ReplayError::Hole { block, have, need, .. } = error else { panic!("{error}") };
    assert_eq!((block, have, need), (ID, Some(Scn(3)), Scn(4)));
}

#[test]
fn a_torn_block_is_made_anew_when_the_redo_begins_with_it() {
    let (logged, versions) = history(4);
    let mut torn = versions[3].clone();
    torn[4096..].copy_from_slice(&versions[2][4096..]);
    replay_all(&logged).replay(ID.block, &mut torn.clone()).unwrap();
    let error = replay_all(&logged[2..]).replay(ID.block, &mut torn).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
}

#[test]
fn a_block_that_changed_hands_ends_with_its_new_owner() {
    let (mut logged, versions) = history(3);
    let new = BlockId::new(PartitionId(71), ID.block);
    logged.push((NodeId(2), encoded(new, 0, 10, &[format()])));
    for version in versions {
        let mut bytes = version.clone();
        let outcome = replay_all(&logged).replay(ID.block, &mut bytes).unwrap();
        assert!(matches!(outcome, Replayed::Changed { id, .. } if id == new));
        block::verify(&bytes, new).unwrap();
        assert_eq!(block::block_scn(&bytes), Scn(10));
    }
}

#[test]
fn a_former_life_that_its_log_has_ended_is_nobodys_loss() {
    let (mut logged, versions) = history(3);
    let new = BlockId::new(PartitionId(71), ID.block);
    let ended = |scn| BlocksForgotten { scn: Scn(scn), ..BlocksForgotten::all_of(ID.partition) };
    // One node's log says so; what others still changed before they heard of it is of no account either.
    let mut replay = replay_all(&logged);
    replay.note_forgotten(BlocksForgotten::all_of(ID.partition));
    assert_eq!((replay.lost_blocks(), replay.blocks()), (vec![], vec![]));
    // Another partition's blocks, and what came later, are not meant.
    let mut replay = replay_all(&logged);
    replay.note_forgotten(ended(2));
    replay.note_forgotten(BlocksForgotten::all_of(new.partition));
    assert_eq!(replay.lost_blocks(), [(ID, Scn(3))]);
    // The next owner's history stands alone: a torn write of it is made anew from its own beginning.
    logged.push((NodeId(2), encoded(new, 0, 10, &[format()])));
    let mut replay = replay_all(&logged);
    replay.note_forgotten(ended(3));
    assert_eq!(replay.lost_blocks(), [(new, Scn(10))]);
    let mut torn = versions[3].clone();
    torn[..512].fill(0x5a);
    assert_eq!(replay.replay(ID.block, &mut torn), Ok(Replayed::Changed { id: new, steps: 1 }));
}
