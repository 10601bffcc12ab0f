//! What was encoded comes back; what was not is a fault, never a panic.

use proptest::prelude::*;

use super::*;
use crate::raft::record::{Recovery, append_records, image_records};
use crate::raft::storage::{Durable, SnapshotState};

const FROM: NodeId = NodeId(2);
const TO: NodeId = NodeId(3);

fn any_node() -> impl Strategy<Value = NodeId> {
    (1..=NODES_MAX as u8).prop_map(NodeId)
}

fn any_change() -> impl Strategy<Value = ConfigurationChange> {
    let one = (0..3, any_node()).prop_map(|(kind, node)| match kind {
        0 => MemberChange::AddVoter(node),
        1 => MemberChange::AddLearner(node),
        _ => MemberChange::Remove(node),
    });
    proptest::collection::vec(one, 0..5).prop_map(ConfigurationChange)
}

fn any_configuration() -> impl Strategy<Value = Configuration> {
    let set = || proptest::collection::vec(any_node(), 0..6).prop_map(|nodes| nodes.into_iter().collect::<NodeSet>());
    (set(), set(), set(), any::<bool>()).prop_map(|(voters, others, outgoing, auto)| {
        let only = |set: NodeSet, not: NodeSet| set.iter().filter(|node| !not.contains(*node)).collect::<NodeSet>();
        let voting = voters.iter().chain(outgoing.iter()).collect();
        Configuration {
            voters,
            learners: only(others, voting),
            outgoing,
            learners_next: only(outgoing, voters),
            auto_leave: auto && !outgoing.is_empty(),
        }
    })
}

/// Entries that follow each other from `first` on, with terms that do not go back.
fn entries(first: u64, term: u64) -> impl Strategy<Value = Vec<Entry>> {
    let one = (0u64..3, proptest::collection::vec(any::<u8>(), 0..200), proptest::option::of(any_change()));
    proptest::collection::vec(one, 0..8).prop_map(move |all| {
        let mut term = term;
        let mut entries = Vec::new();
        for (step, data, change) in all {
            term += step;
            let mut entry = Entry { index: first + entries.len() as u64, term, ..Entry::default() };
            match change {
                None => entry.data = data.into(),
                Some(change) => {
                    entry.set_entry_type(EntryType::EntryConfChangeV2);
                    entry.context = encode_change(&change).into();
                }
            }
            entries.push(entry);
        }
        entries
    })
}

fn any_message() -> impl Strategy<Value = Message> {
    let numbers = (1u64..1 << 40, 1u64..1 << 40, any::<u64>(), any::<u64>(), any::<u64>());
    (0..KINDS.len(), numbers, any::<bool>(), proptest::collection::vec(any::<u8>(), 1..CONTEXT_BYTES_MAX)).prop_flat_map(
        |(kind, (term, index, commit, commit_term, hint), reject, context)| {
            entries(index + 1, term).prop_map(move |entries| {
                let mut message = Message::default();
                message.set_msg_type(KINDS[kind]);
                (message.from, message.to) = (raft_id(FROM), raft_id(TO));
                message.term = entries.last().map_or(term, |last| last.term);
                (message.log_term, message.index) = (term, index);
                (message.commit, message.commit_term, message.reject_hint) = (commit, commit_term, hint);
                message.reject = reject;
                if is_read(KINDS[kind]) {
                    message.set_entries(vec![Entry { data: context.clone().into(), ..Entry::default() }].into());
                } else {
                    message.context = context.clone().into();
                }
                if KINDS[kind] == MessageType::MsgReadIndex {
                    message.term = 0;
                }
                if carries_entries(KINDS[kind]) {
                    message.set_entries(entries.into());
                }
                message
            })
        },
    )
}

fn any_durable() -> impl Strategy<Value = Durable> {
    let fixed = (1u64..1 << 40, 1u64..1 << 30, any::<u64>(), any::<u64>(), proptest::option::of(any_node()));
    (fixed, any_configuration(), (0usize..600_000).prop_map(|size| vec![7; size])).prop_flat_map(
        |((index, term, hard_term, commit, vote), configuration, data)| {
            entries(index + 1, term).prop_map(move |entries| Durable {
                hard_state: HardState { term: Term(hard_term), vote, commit: LogIndex(commit) },
                snapshot: SnapshotState { index: LogIndex(index), term: Term(term), configuration, data: data.clone() },
                entries,
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn messages_of_several_groups_come_back_from_one_frame(messages in proptest::collection::vec(any_message(), 1..5)) {
        let mut bytes = Vec::new();
        for (group, message) in messages.iter().enumerate() {
            encode_message(GroupId(group as u64), message, &mut bytes);
        }
        prop_assert_eq!(bytes.len(), messages.iter().map(message_len).sum::<usize>());
        let mut reader = Reader(&bytes);
        for (group, message) in messages.iter().enumerate() {
            prop_assert_eq!(decode_message(&mut reader, FROM, TO), Ok((GroupId(group as u64), message.clone())));
        }
        prop_assert_eq!(reader.end(), Ok(()));
    }

    #[test]
    fn snapshots_come_back_from_their_parts(
        configuration in any_configuration(), size in 0usize..200_000, index in 1u64.., term in 1u64..1 << 60
    ) {
        let data: Vec<u8> = (0..size).map(|at| at as u8).collect();
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgSnapshot);
        (message.from, message.to, message.term) = (raft_id(FROM), raft_id(TO), term + 3);
        message.set_snapshot(raft_snapshot(LogIndex(index), Term(term), &configuration, data));
        let mut received = Vec::new();
        for body in snapshot_parts(GroupId(7), &message) {
            let part = decode_snapshot_part(&body).unwrap();
            prop_assert_eq!((part.group, part.offset), (GroupId(7), received.len()));
            received.extend_from_slice(part.bytes);
            if received.len() == part.total {
                prop_assert_eq!(&part.message(std::mem::take(&mut received), FROM, TO), &message);
            }
        }
        prop_assert!(received.is_empty());
    }

    #[test]
    fn a_replica_comes_back_from_its_records(durable in any_durable(), cut in any::<prop::sample::Index>()) {
        let group = GroupId(9);
        let mut recovery = Recovery::new();
        // What is left of an older image, or of one that a crash has cut off, does no harm.
        let records = image_records(group, &durable);
        for record in records[..cut.index(records.len())].iter().chain(&records) {
            recovery.add(record).unwrap();
        }
        prop_assert_eq!(recovery.finish().remove(&group), Some(durable));
    }

    #[test]
    fn garbage_is_a_fault(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0u8..14, flips in 0usize..4) {
        let mut whole = Vec::new();
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgAppend);
        (message.term, message.index) = (3, 5);
        message.set_entries(vec![Entry { index: 6, term: 2, data: bytes.clone().into(), ..Entry::default() }].into());
        encode_message(GroupId(1), &message, &mut whole);
        for flip in 0..flips {
            let at = bytes.get(flip).map_or(0, |byte| usize::from(*byte)) % whole.len();
            whole[at] ^= bytes.get(flip + 4).copied().unwrap_or(1);
        }
        let _ = decode_message(&mut Reader(&whole), FROM, TO);
        if let Some(first) = bytes.get_mut(4) {
            *first = kind;
        }
        let _ = decode_message(&mut Reader(&bytes), FROM, TO);
        let _ = decode_snapshot_part(&bytes);
        let _ = decode_change(&bytes);
        let mut recovery = Recovery::new();
        let _ = recovery.add(&bytes);
        if let Some(first) = bytes.first_mut() {
            *first = kind % 4;
        }
        let _ = recovery.add(&bytes);
    }
}

#[test]
fn entries_that_are_written_later_replace_those_behind_them() {
    let group = GroupId(1);
    let entry = |index, term, text: &str| Entry { index, term, data: text.as_bytes().to_vec().into(), ..Entry::default() };
    let state = |term, vote| HardState { term: Term(term), vote, commit: LogIndex(1) };
    let mut recovery = Recovery::new();
    let mut add = |records: Vec<Vec<u8>>| records.iter().for_each(|record| recovery.add(record).unwrap());
    let founding = Durable::founding(Configuration::of([NodeId(1)], []), b"state".to_vec());
    add(append_records(group, &state(9, None), &[entry(50, 9, "of an older image")]));
    add(image_records(group, &founding));
    add(append_records(group, &state(2, Some(NodeId(2))), &[entry(2, 2, "a"), entry(3, 2, "lost"), entry(4, 2, "lost too")]));
    add(append_records(group, &state(3, None), &[entry(3, 3, "b")]));
    assert!(recovery.add(&append_records(group, &state(3, None), &[entry(7, 3, "behind a gap")])[0]).is_err());
    let found = recovery.finish().remove(&group).unwrap();
    assert_eq!(found.entries, [entry(2, 2, "a"), entry(3, 3, "b")]);
    assert_eq!((found.hard_state.term, found.hard_state.vote, found.snapshot), (Term(3), None, founding.snapshot));

    let large: Vec<Entry> = (2..40).map(|index| entry(index, 2, &"x".repeat(50_000))).collect();
    let records = append_records(group, &state(2, None), &large);
    assert!(records.len() > 5 && records.iter().all(|record| record.len() <= 100_000));
}
