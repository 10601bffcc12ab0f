//! What raft-rs 0.7 lacks, shown one by one.

use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::{GetEntriesContext, Storage};

use crate::ids::NodeId;
use crate::raft::codec::encode_change;
use crate::raft::replica::*;
use crate::raft::storage::{Durable, Entries};
use crate::raft::types::*;
use crate::raft::{ProposeError, StepError};

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);
const THREE: NodeId = NodeId(3);

fn founding() -> Durable {
    Durable::founding(Configuration::of([ONE, TWO, THREE], []), Vec::new())
}

fn message(kind: MessageType, from: NodeId, term: u64) -> Message {
    let mut message = Message::default();
    message.set_msg_type(kind);
    (message.from, message.to, message.term) = (raft_id(from), raft_id(ONE), term);
    message
}

fn confirmation(from: NodeId, index: u64) -> Message {
    Message { index, ..message(MessageType::MsgAppendResponse, from, 2) }
}

/// Makes durable and applies what there is, and gives the messages.
fn drain(replica: &mut Replica) -> Vec<Message> {
    let mut messages = Vec::new();
    loop {
        let outputs = replica.outputs();
        if outputs.is_empty() {
            return messages;
        }
        messages.extend(outputs.messages);
        for write in outputs.writes {
            match write {
                Write::Append { number, .. } | Write::Install { number, .. } => replica.persisted(number),
            }
        }
        if let Some(Committed::Entry { index, .. }) = outputs.committed.last() {
            replica.applied(*index);
        }
    }
}

/// A leader of term 2 with an entry at index 2, which nobody else holds yet.
fn leader() -> Replica {
    let mut replica = Replica::new(ReplicaConfig::new(ONE, 7), founding());
    replica.campaign();
    drain(&mut replica);
    replica.step(message(MessageType::MsgRequestPreVoteResponse, TWO, 2)).unwrap();
    drain(&mut replica);
    replica.step(message(MessageType::MsgRequestVoteResponse, TWO, 2)).unwrap();
    drain(&mut replica);
    assert_eq!(replica.leadership(), Leadership { role: Role::Leader, leader: Some(ONE), term: Term(2) });
    replica
}

#[test]
fn a_late_rejection_does_not_take_a_follower_back_before_what_it_has_confirmed() {
    let mut replica = leader();
    replica.step(confirmation(TWO, 2)).unwrap();
    for _ in 0..8 {
        replica.propose(vec![vec![1]]).unwrap();
    }
    replica.step(confirmation(TWO, 10)).unwrap();
    // The way breaks: the leader probes from what is confirmed.
    replica.unreachable(TWO);
    drain(&mut replica);
    // A rejection of a probe at 10, from long ago, when the follower's log ended at 3.
    let rejection = Message { reject: true, reject_hint: 3, log_term: 2, ..confirmation(TWO, 10) };
    replica.step(rejection).unwrap();
    let sent = drain(&mut replica);
    let to_two = |message: &&Message| message.to == raft_id(TWO) && message.get_msg_type() == MessageType::MsgAppend;
    assert!(sent.iter().filter(to_two).all(|message| message.index >= 10), "the leader never goes back before 10: {sent:?}");
    let progress = replica.raw.raft.prs().get(raft_id(TWO)).unwrap();
    assert_eq!((progress.matched, progress.next_idx), (10, 11));
}

#[test]
fn looking_for_changes_before_an_election_copies_no_entries() {
    let entry = |index| Entry { index, term: 1, data: vec![0; 100].into(), ..Entry::default() };
    let mut entries = Entries::new(founding(), 100);
    entries.append(&(2..50_000).map(entry).collect::<Vec<_>>());
    let scan = |entries: &Entries, high| entries.entries(2, high, None, GetEntriesContext::empty(false)).unwrap();
    assert!(scan(&entries, 50_000).is_empty());
    let mut change = Entry { index: 50_000, term: 1, ..Entry::default() };
    change.set_entry_type(EntryType::EntryConfChangeV2);
    entries.append(&[change]);
    assert!(scan(&entries, 50_000).is_empty());
    assert_eq!(scan(&entries, 50_001).len(), 1);
}

#[test]
fn nobody_stands_for_election_before_a_committed_change_of_the_members_is_applied() {
    let mut durable = founding();
    let mut change = Entry { index: 2, term: 1, ..Entry::default() };
    change.set_entry_type(EntryType::EntryConfChangeV2);
    change.context = encode_change(&ConfigurationChange(vec![MemberChange::Remove(THREE)])).into();
    durable.entries = vec![change, Entry { index: 3, term: 1, data: vec![1].into(), ..Entry::default() }];
    durable.hard_state.commit = LogIndex(3);
    let mut replica = Replica::new(ReplicaConfig::new(ONE, 7), durable);
    for _ in 0..100 {
        replica.tick();
    }
    assert_eq!(replica.leadership().role, Role::Follower);
    replica.applied(LogIndex(3));
    assert_eq!(*replica.configuration(), Configuration::of([ONE, TWO], []));
    for _ in 0..31 {
        replica.tick();
    }
    assert_eq!(replica.leadership().role, Role::PreCandidate);
}

#[test]
fn election_timeouts_follow_from_the_seed_alone() {
    let waits = |seed| {
        let mut replica = Replica::new(ReplicaConfig::new(ONE, seed), founding());
        drain(&mut replica);
        let mut waits = Vec::new();
        for _ in 0..30 {
            let mut ticks = 0;
            while drain(&mut replica).is_empty() {
                replica.tick();
                ticks += 1;
            }
            waits.push(ticks);
        }
        waits
    };
    assert_eq!(waits(4), waits(4));
    assert_ne!(waits(4), waits(5));
    let all: Vec<u32> = (0..20).flat_map(waits).collect();
    assert_eq!((all.iter().min(), all.iter().max()), (Some(&15), Some(&30)));
}

#[test]
fn nothing_that_depends_on_a_write_leaves_before_it_is_durable() {
    let mut replica = Replica::new(ReplicaConfig::new(TWO, 7), founding());
    drain(&mut replica);
    let mut append = Message { to: raft_id(TWO), log_term: 1, commit: 1, index: 1, ..message(MessageType::MsgAppend, ONE, 4) };
    append.set_entries(vec![Entry { index: 2, term: 4, data: vec![1].into(), ..Entry::default() }].into());
    replica.step(append).unwrap();
    replica.step(Message { to: raft_id(TWO), commit: 1, ..message(MessageType::MsgHeartbeat, ONE, 4) }).unwrap();
    let outputs = replica.outputs();
    assert!(outputs.messages.is_empty(), "neither the answer nor the sign of life: {:?}", outputs.messages);
    let [Write::Append { number, hard_state, entries }] = &outputs.writes[..] else { panic!("{:?}", outputs.writes) };
    assert_eq!((hard_state.term, entries.len()), (Term(4), 1));
    replica.persisted(*number);
    let kinds: Vec<_> = replica.outputs().messages.iter().map(Message::get_msg_type).collect();
    assert_eq!(kinds, [MessageType::MsgAppendResponse, MessageType::MsgHeartbeatResponse]);
}

#[test]
fn a_follower_that_lost_its_log_is_told_apart_from_one_that_is_behind() {
    let mut replica = Replica::new(ReplicaConfig::new(TWO, 7), founding());
    let heartbeat = Message { to: raft_id(TWO), commit: 9, ..message(MessageType::MsgHeartbeat, ONE, 4) };
    let lost = replica.step(heartbeat).unwrap_err();
    assert_eq!(lost, StepError::LogLost { committed: LogIndex(9), last: LogIndex(1) });
    assert!(lost.to_string().contains("index 9") && lost.to_string().contains("join it anew"), "{lost}");
}

#[test]
fn too_much_that_is_uncommitted_is_refused_until_it_is_committed() {
    let mut replica = leader();
    let refused = (0..200).find_map(|_| replica.propose(vec![vec![1; 50_000]]).err());
    assert!(matches!(refused, Some(ProposeError::Busy { uncommitted: 80..=90 })), "{refused:?}");
    drain(&mut replica);
    let last = replica.status().last;
    replica.step(confirmation(THREE, last.0)).unwrap();
    drain(&mut replica);
    assert_eq!(replica.status().applied, last);
    replica.propose(vec![vec![1]]).unwrap();
    let large = replica.propose(vec![vec![1; 60_000]]).unwrap_err();
    assert!(matches!(large, ProposeError::TooLarge { bytes: 60_000, .. }));
}

#[test]
fn the_leader_is_not_removed_and_nobody_is_named_twice() {
    let mut replica = leader();
    replica.step(confirmation(TWO, 2)).unwrap();
    drain(&mut replica);
    let mut change = |changes: Vec<MemberChange>| replica.change_members(&ConfigurationChange(changes));
    assert!(change(vec![MemberChange::Remove(ONE)]).unwrap_err().to_string().contains("transfer leadership first"));
    assert!(change(vec![MemberChange::Remove(TWO), MemberChange::AddVoter(TWO)]).unwrap_err().to_string().contains("twice"));
    change(vec![MemberChange::AddLearner(NodeId(4))]).unwrap();
    assert_eq!(change(vec![MemberChange::Remove(THREE)]), Err(ProposeError::ChangePending));
}
