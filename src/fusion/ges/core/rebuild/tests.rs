//! What becomes of locks, and of the value block, when the members change.

use super::*;
use crate::fusion::ges::core::{Refusal, ValueChange};
use crate::fusion::ges::types::ResourceClass;

const CATALOG: Resource = Resource::new(ResourceClass::CATALOG, 1, 0);

fn key(node: u8) -> LockKey {
    LockKey { node: NodeId(node), id: 0 }
}

fn nodes(numbers: &[u8]) -> Vec<NodeId> {
    numbers.iter().map(|number| NodeId(*number)).collect()
}

fn on(core: &mut GesCore, input: Input) -> Vec<Output> {
    let mut out = Vec::new();
    core.on(input, &mut out);
    core.invariants();
    out
}

fn request(core: &mut GesCore, node: u8, mode: LockMode) -> Option<ValueBlock> {
    granted(&on(core, Input::Request { resource: CATALOG, key: key(node), mode, no_wait: false }), node)
}

fn granted(out: &[Output], node: u8) -> Option<ValueBlock> {
    out.iter().find_map(|output| match output {
        Output::Granted { key, value, .. } if key.node == NodeId(node) => Some(*value),
        _ => None,
    })
}

/// The next epoch has these members; they hold this. Its master is `core`, and was the former one's if it has words.
fn change(core: &mut GesCore, former: &[u8], members: &[u8], held: &[(u8, LockMode, ValueBlock)]) -> Vec<Output> {
    core.enter(&nodes(former), &nodes(members));
    let (words, in_doubt) = core.go();
    claim(core, members, words, in_doubt, held)
}

fn claim(
    core: &mut GesCore,
    members: &[u8],
    words: Vec<Claim>,
    in_doubt: bool,
    held: &[(u8, LockMode, ValueBlock)],
) -> Vec<Output> {
    let mut out = Vec::new();
    let master = members[0];
    for member in nodes(members) {
        assert!(core.is_rebuilding() && out.is_empty());
        let mine = held.iter().filter(|(node, ..)| NodeId(*node) == member);
        let mut claims: Vec<Claim> =
            mine.map(|(_, mode, value)| Claim { resource: CATALOG, what: Claimed::Lock(*mode), value: *value }).collect();
        if member == NodeId(master) {
            claims.extend(words.clone());
        }
        // The number of the claims may come before they do.
        let end = ClaimsEnd { count: claims.len() as u64, in_doubt: in_doubt && member == NodeId(master) };
        core.on_claims_end(member, end, &mut out);
        for claim in claims {
            core.on_claim(member, claim, &mut out);
        }
    }
    assert!(!core.is_rebuilding());
    core.invariants();
    out
}

fn value(byte: u8, valid: bool, sequence: u64) -> ValueBlock {
    ValueBlock { bytes: [byte; 32], valid, sequence }
}

#[test]
fn the_locks_of_the_lost_are_free_and_those_of_the_others_stand() {
    use LockMode::{ConcurrentRead, Exclusive, ProtectedRead};

    let mut core = GesCore::new();
    assert!(request(&mut core, 3, Exclusive).is_some());
    core.enter(&nodes(&[1, 2, 3]), &nodes(&[1, 2]));
    // What is asked for meanwhile waits until all is known, in its order.
    assert_eq!(request(&mut core, 1, ProtectedRead), None);
    let no_wait = Input::Request { resource: CATALOG, key: key(4), mode: Exclusive, no_wait: true };
    assert_eq!(on(&mut core, no_wait), []);
    let (words, in_doubt) = core.go();
    let out = claim(&mut core, &[1, 2], words, in_doubt, &[(2, ConcurrentRead, value(0, true, 0))]);
    assert!(granted(&out, 1).is_some_and(|value| !value.valid), "node 3 may have written it");
    assert!(out.contains(&Output::Blocking { resource: CATALOG, key: key(2), wanted: Exclusive }), "{out:?}");
    assert_eq!(core.granted(CATALOG, key(2)), Some(ConcurrentRead));
    let out = on(&mut core, Input::Busy { resource: CATALOG, key: key(2), wanted: Exclusive });
    assert!(out.contains(&Output::Refused { resource: CATALOG, key: key(4), reason: Refusal::WouldBlock }), "{out:?}");
    assert_eq!(core.locks(), 2);
}

#[test]
fn a_value_is_in_doubt_after_a_writer_was_lost_until_it_is_written_again() {
    use LockMode::{ConcurrentRead, Null, ProtectedRead, ProtectedWrite};

    let mut core = GesCore::new();
    let convert = |node, mode, value| Input::Convert { resource: CATALOG, key: key(node), mode, no_wait: false, value };
    request(&mut core, 1, ProtectedWrite);
    on(&mut core, convert(1, Null, ValueChange::Write([1; 32])));
    assert_eq!(request(&mut core, 3, ConcurrentRead), Some(value(1, true, 1)));
    // Node 1 is lost; it was no writer any more.
    change(&mut core, &[4, 1, 2, 3], &[4, 2, 3], &[(3, ConcurrentRead, value(1, true, 1))]);
    assert_eq!(request(&mut core, 2, ProtectedWrite), Some(value(1, true, 1)));
    // Node 2 is lost, and was.
    change(&mut core, &[4, 2, 3], &[4, 3], &[(3, ConcurrentRead, value(1, true, 1))]);
    // In a change without a loss the doubt stays.
    change(&mut core, &[4, 3], &[4, 1, 3], &[(3, ConcurrentRead, value(1, true, 1))]);
    assert_eq!(request(&mut core, 1, ProtectedWrite), Some(value(1, false, 2)));
    let out = on(&mut core, convert(1, ProtectedRead, ValueChange::Write([2; 32])));
    assert_eq!(granted(&out, 1), Some(value(2, true, 3)));
}

#[test]
fn a_value_that_was_on_its_way_to_the_master_counts() {
    use LockMode::{ConcurrentRead, Exclusive, Null};

    let mut core = GesCore::new();
    request(&mut core, 2, Exclusive);
    change(&mut core, &[1, 2, 3], &[1, 2], &[(2, Null, value(7, true, 1))]);
    assert_eq!(request(&mut core, 1, ConcurrentRead), Some(value(7, true, 1)));
}

#[test]
fn without_its_former_master_a_value_is_valid_where_somebody_holds_more_than_cr() {
    use LockMode::{ConcurrentRead, ConcurrentWrite, Null, ProtectedRead};

    let new_master = |held: &[(u8, LockMode, ValueBlock)]| {
        let mut core = GesCore::new();
        change(&mut core, &[1, 2, 3], &[1, 2], held);
        request(&mut core, 1, ConcurrentRead).unwrap()
    };
    for mode in [ConcurrentWrite, ProtectedRead] {
        assert_eq!(new_master(&[(2, mode, value(4, true, 5))]), value(4, true, 5));
        assert_eq!(new_master(&[(2, mode, value(4, false, 5))]), value(4, false, 5), "it was in doubt before");
    }
    for mode in [Null, ConcurrentRead] {
        assert_eq!(new_master(&[(2, mode, value(4, true, 5))]), value(4, false, 6));
    }
    assert_eq!(new_master(&[]), value(0, false, 0), "nobody has heard of it");
}

#[test]
fn what_is_known_of_values_outlives_epochs_in_which_nobody_came_to_serve() {
    use LockMode::{ConcurrentRead, Exclusive, Null};

    for lost_in_between in [false, true] {
        let mut core = GesCore::new();
        request(&mut core, 2, Null);
        assert!(request(&mut core, 3, Exclusive).is_some());
        let between: &[u8] = if lost_in_between { &[1, 2] } else { &[1, 2, 3] };
        core.enter(&nodes(&[1, 2, 3]), &nodes(between));
        // Not all have gone on in that one. In the next, 3 may be there in another life.
        change(&mut core, between, &[1, 2, 3], &[(2, Null, value(0, true, 0))]);
        assert_eq!(request(&mut core, 1, ConcurrentRead).unwrap().valid, !lost_in_between);
    }
}

#[test]
fn whoever_never_came_to_serve_knows_no_value() {
    use LockMode::ConcurrentRead;

    let mut core = GesCore::new();
    request(&mut core, 2, ConcurrentRead);
    core.enter(&nodes(&[1, 2]), &nodes(&[1, 2]));
    let (words, _) = core.go();
    assert_eq!(words.len(), 1);
    // The claims did not all come; another master may have got all of its own, and served.
    core.enter(&nodes(&[1, 2]), &nodes(&[1, 2]));
    assert_eq!(core.go(), (Vec::new(), true));
}
