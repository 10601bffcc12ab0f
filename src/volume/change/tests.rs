use proptest::prelude::*;

use super::*;
use crate::ids::BLOCK_SIZE;
use crate::volume::block::BLOCK_HEADER;

/// A change that owns its bytes.
#[derive(Clone, Debug)]
struct Owned {
    which: u8,
    number: u16,
    first: Vec<u8>,
    second: Vec<u8>,
}

impl Owned {
    fn change(&self) -> Change<'_> {
        let (first, second, slot) = (&self.first[..], &self.second[..], self.number);
        match self.which {
            0 => Change::Format { kind: BlockKind::TreeLeaf, user_len: slot, user_header: first },
            1 => Change::FullImage { kind: BlockKind::TreeInner, low: first, high: second },
            2 => Change::InsertCell { slot, key: first, value: second },
            3 => Change::ReplaceCell { slot, key: first, value: second },
            4 => Change::ReplaceValue { slot, value: first },
            5 => Change::RemoveCell { slot },
            6 => Change::TruncateCells { from: slot },
            _ => Change::Patch { offset: slot, bytes: first },
        }
    }
}

fn owned(which: impl Strategy<Value = u8>, number: impl Strategy<Value = u16>) -> impl Strategy<Value = Owned> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..200);
    (which, number, bytes(), bytes()).prop_map(|(which, number, first, second)| Owned { which, number, first, second })
}

fn fresh() -> Vec<u8> {
    let mut block = vec![0u8; BLOCK_SIZE];
    Change::Format { kind: BlockKind::TreeLeaf, user_len: 24, user_header: b"user" }.apply(&mut block).unwrap();
    block
}

proptest! {
    #[test]
    fn a_change_survives_its_encoding(changes in prop::collection::vec(owned(0u8..8, any::<u16>()), 1..20)) {
        let mut encoded = Vec::new();
        for change in &changes {
            let before = encoded.len();
            change.change().encode(&mut encoded);
            prop_assert!(encoded.len() - before <= change.change().encoded_len_max());
        }
        let mut input = &encoded[..];
        for change in &changes {
            prop_assert_eq!(Change::decode(&mut input), Ok(change.change()));
        }
        prop_assert!(input.is_empty());
    }

    /// Forward and replay are the same bytes, also when the replay starts from a full image taken on the way, over a
    /// block full of something else.
    #[test]
    fn a_replay_gives_the_same_bytes(changes in prop::collection::vec(owned(2u8..8, 0u16..40), 1..200), image_at: prop::sample::Index) {
        let (mut forward, mut redo) = (fresh(), Vec::new());
        let image_at = image_at.index(changes.len());
        let mut from_image = vec![0xABu8; BLOCK_SIZE];
        from_image[..BLOCK_HEADER].copy_from_slice(&forward[..BLOCK_HEADER]);
        for (at, change) in changes.iter().enumerate() {
            let before = forward.clone();
            let applied = change.change().apply(&mut forward).is_ok();
            if applied {
                change.change().encode(&mut redo);
            } else {
                forward = before;
            }
            if at == image_at {
                let mut image = Vec::new();
                Change::full_image(&forward).encode(&mut image);
                Change::decode(&mut &image[..]).unwrap().apply(&mut from_image).unwrap();
                prop_assert!(from_image == forward, "the image differs from the block");
            } else if at > image_at && applied {
                change.change().apply(&mut from_image).unwrap();
            }
        }
        let (mut replayed, mut input) = (fresh(), &redo[..]);
        while !input.is_empty() {
            Change::decode(&mut input).unwrap().apply(&mut replayed).unwrap();
        }
        prop_assert!(replayed == forward, "replay from the start differs");
        prop_assert!(from_image == forward, "replay from the image differs");
    }

    /// Whatever bytes come out of a damaged log: decoding and applying end in a value or a typed fault.
    #[test]
    fn garbage_is_a_fault_not_a_panic(garbage in prop::collection::vec(any::<u8>(), 0..300), tag in 0u8..10) {
        let mut block = fresh();
        for slot in 0..30 {
            Change::InsertCell { slot, key: b"key", value: &[7; 100] }.apply(&mut block).unwrap();
        }
        let mut bytes = vec![tag];
        bytes.extend(garbage);
        let mut input = &bytes[..];
        while let Ok(change) = Change::decode(&mut input) {
            if change.apply(&mut block).is_err() {
                break;
            }
            prop_assert_eq!(Page::new(&block).check(), Ok(()));
        }
    }
}

#[test]
fn impossible_changes_name_their_fault() {
    let mut block = fresh();
    let fault = Change::RemoveCell { slot: 3 }.apply(&mut block);
    assert_eq!(fault, Err(ChangeFault::Impossible(PageFault::NoSlot { slot: 3, count: 0 })));
    let fault = Change::InsertCell { slot: 0, key: &[0; 5000], value: &[0; 5000] }.apply(&mut block);
    assert!(matches!(fault, Err(ChangeFault::Impossible(PageFault::Full { .. }))));
    assert_eq!(Change::decode(&mut &[99u8, 0][..]), Err(ChangeFault::UnknownTag(99)));
    assert_eq!(Change::decode(&mut &[FORMAT, 250, 0, 0][..]), Err(ChangeFault::UnknownKind(250)));
    assert_eq!(Change::decode(&mut &[INSERT, 0x80][..]), Err(ChangeFault::Truncated));
    assert_eq!(Change::decode(&mut &[REMOVE, 0xff, 0xff, 0xff, 0x7f][..]), Err(ChangeFault::Number));
}
