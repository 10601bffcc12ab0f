//! The value block's rules at the master.

use super::*;
use crate::fusion::ges::types::ResourceClass;

const CATALOG: Resource = Resource::new(ResourceClass::CATALOG, 1, 0);

fn key(node: u8) -> LockKey {
    LockKey { node: NodeId(node), id: u64::from(node) }
}

fn request(node: u8, mode: LockMode) -> Input {
    Input::Request { resource: CATALOG, key: key(node), mode, no_wait: false }
}

fn convert(node: u8, mode: LockMode, value: ValueChange) -> Input {
    Input::Convert { resource: CATALOG, key: key(node), mode, no_wait: false, value }
}

fn value_granted(out: &[Output]) -> Option<ValueBlock> {
    out.iter().rev().find_map(|output| match output {
        Output::Granted { value, .. } => Some(*value),
        _ => None,
    })
}

fn step(core: &mut GesCore, input: Input) -> Vec<Output> {
    let mut out = Vec::new();
    core.on(input, &mut out);
    core.invariants();
    out
}

#[test]
fn a_value_is_written_by_writers_on_the_way_down_and_seen_by_whoever_is_granted_next() {
    let mut core = GesCore::new();
    assert_eq!(value_granted(&step(&mut core, request(1, LockMode::Exclusive))), Some(ValueBlock::default()));
    step(&mut core, request(2, LockMode::ProtectedRead));
    let out = step(&mut core, convert(1, LockMode::ProtectedRead, ValueChange::Write([5; 32])));
    assert_eq!(value_granted(&out), Some(ValueBlock { bytes: [5; 32], valid: true, sequence: 1 }));
    // A reader has no right to write.
    let unlock = Input::Unlock { resource: CATALOG, key: key(2), value: ValueChange::Write([6; 32]) };
    step(&mut core, unlock);
    let out = step(&mut core, request(3, LockMode::ConcurrentRead));
    assert_eq!(value_granted(&out), Some(ValueBlock { bytes: [5; 32], valid: true, sequence: 1 }));
}
