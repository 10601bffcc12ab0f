//! The bound on a directory's entries.

use std::collections::BTreeSet;

use super::*;
use crate::cache::Mode;
use crate::fusion::gcs::master::bare;
use crate::fusion::gcs::message::{KEPT, Message, request_id};

/// A node asks for one block after the other and never drops one by itself: a full directory takes them back. What it has
/// changed, which is every fourth, it keeps until it has been asked to write it.
#[test]
fn a_full_directory_takes_back_what_it_has_given() {
    const ROOM: usize = 100;
    let (me, other) = (NodeId(1), NodeId(2));
    let map = map_of(1, &[me, other]);
    let mut master = MasterCore::new(me, map.clone(), ROOM);
    let mut dirty = BTreeSet::new();
    let mine = (0..).map(id).filter(|&block| map.master(block) == me);
    let mut most = 0;
    for (number, block) in mine.take(2_000).enumerate() {
        if number % 4 == 0 {
            dirty.insert(block);
        }
        let request = request_id(other, number as u64 + 1);
        let asked = Message { mode: Mode::Shared, request, ..bare(map.epoch(), Kind::Request, block) };
        let mut out = Vec::new();
        master.on_message(other, &asked, &mut out);
        while let Some(output) = out.pop() {
            let Output::Send { to, message } = output else { panic!("{output:?}") };
            assert_eq!(to, other);
            let answer = match message.kind {
                Kind::GrantDisk => Message { kind: Kind::Done, ..message },
                Kind::Invalidate if dirty.contains(&message.block) => {
                    Message { kind: Kind::InvalidateAck, flags: KEPT, ..message }
                }
                Kind::Invalidate => Message { kind: Kind::InvalidateAck, ..message },
                Kind::WriteRequest => {
                    dirty.remove(&message.block);
                    Message { kind: Kind::Wrote, scn: Scn(1), ..message }
                }
                kind => panic!("{kind:?}"),
            };
            master.on_message(other, &answer, &mut out);
        }
        most = most.max(master.entries());
        master.invariants();
    }
    let counters = master.counters();
    assert!(most <= ROOM + 10, "{most} entries, where {ROOM} have room");
    assert!(counters.recalls_kept_total > 300 && counters.recalls_total >= 1_800 + counters.recalls_kept_total, "{counters:?}");
}
