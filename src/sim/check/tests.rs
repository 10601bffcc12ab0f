//! Histories made by hand: each anomaly is named, and the sound ones pass.

use std::collections::BTreeMap;

use super::bank::{self, Audit};
use super::lists;
use crate::sim::history::ListOperation::{self, Append, Read};
use crate::sim::history::Outcome::{self, Aborted, Committed, Unknown};
use crate::sim::history::{ListTransaction, Transfer};
use crate::store::Isolation::{self, ReadCommitted, RepeatableRead};

/// Began, isolation, operations as (list, element or 0 for a read, what was seen), outcome.
type Short<'a> = (u64, Isolation, &'a [(u32, u32, &'a [u32])], Outcome);

fn history(transactions: &[Short]) -> Vec<ListTransaction> {
    let operation = |began_ns: u64, (list, element, seen): &(u32, u32, &[u32])| -> ListOperation {
        match element {
            0 => Read { list: *list, elements: seen.to_vec(), at_ns: began_ns },
            element => Append { list: *list, element: *element, found: Some(seen.to_vec()), at_ns: began_ns },
        }
    };
    let whole = |(began_ns, isolation, operations, outcome): &Short| ListTransaction {
        node: 1,
        isolation: *isolation,
        began_ns: *began_ns,
        operations: operations.iter().map(|short| operation(*began_ns, short)).collect(),
        outcome: *outcome,
        ended_ns: *began_ns + 10,
    };
    transactions.iter().map(whole).collect()
}

/// What the checker says first; empty for a sound history.
fn verdict(transactions: &[Short], in_the_end: &[(u32, &[u32])]) -> String {
    let lists: BTreeMap<u32, Vec<u32>> = in_the_end.iter().map(|(list, elements)| (*list, elements.to_vec())).collect();
    lists::check(&history(transactions), &lists).first().cloned().unwrap_or_default()
}

#[track_caller]
fn assert_found(anomaly: &str, transactions: &[Short], in_the_end: &[(u32, &[u32])]) {
    let verdict = verdict(transactions, in_the_end);
    assert!(verdict.starts_with(anomaly), "{anomaly} is not what was found: {verdict:?}");
}

#[test]
fn sound_histories_pass() {
    let history: &[Short] = &[
        (10, ReadCommitted, &[(1, 1, &[]), (2, 2, &[])], Committed(20)),
        (11, RepeatableRead, &[(1, 0, &[]), (2, 0, &[])], Committed(30)),
        (21, RepeatableRead, &[(1, 0, &[1]), (1, 3, &[1]), (1, 0, &[1, 3])], Committed(40)),
        (22, ReadCommitted, &[(1, 9, &[1])], Aborted),
        (23, ReadCommitted, &[(2, 4, &[2])], Unknown),
        (24, ReadCommitted, &[(2, 5, &[2])], Unknown),
        (41, ReadCommitted, &[(1, 0, &[1, 3])], Committed(50)),
    ];
    assert_eq!(verdict(history, &[(1, &[1, 3]), (2, &[2, 4])]), "");
}

#[test]
fn write_skew_passes_and_a_cycle_with_one_missed_change_does_not() {
    // Each reads what the other is about to append to: two missed changes, which snapshots allow.
    let skew: &[Short] = &[
        (10, RepeatableRead, &[(1, 0, &[]), (2, 1, &[])], Committed(30)),
        (10, RepeatableRead, &[(2, 0, &[]), (1, 2, &[])], Committed(30)),
    ];
    assert_eq!(verdict(skew, &[(1, &[2]), (2, &[1])]), "");
    // The second sees the first's append to list 2 and misses its append to list 1.
    let torn: &[Short] = &[
        (10, RepeatableRead, &[(1, 1, &[]), (2, 2, &[])], Committed(40)),
        (20, RepeatableRead, &[(2, 0, &[2]), (1, 0, &[])], Committed(30)),
    ];
    assert_found("G-single", torn, &[(1, &[1]), (2, &[2])]);
    let allowed: &[Short] = &[torn[0], (20, ReadCommitted, torn[1].2, Committed(30))];
    assert_eq!(verdict(allowed, &[(1, &[1]), (2, &[2])]), "", "READ COMMITTED promises less");
}

#[test]
fn cycles_of_writes_and_of_reads_are_named() {
    let writes: &[Short] = &[
        (10, ReadCommitted, &[(1, 1, &[]), (2, 2, &[3])], Committed(30)),
        (10, ReadCommitted, &[(2, 3, &[]), (1, 4, &[1])], Committed(30)),
    ];
    assert_found("G0", writes, &[(1, &[1, 4]), (2, &[3, 2])]);
    let reads: &[Short] = &[
        (10, ReadCommitted, &[(1, 1, &[]), (2, 0, &[2])], Committed(30)),
        (10, ReadCommitted, &[(2, 2, &[]), (1, 0, &[1])], Committed(30)),
    ];
    assert_found("G1c", reads, &[(1, &[1]), (2, &[2])]);
}

#[test]
fn what_is_lost_doubled_halved_rolled_back_or_stale_is_named() {
    let one: &[Short] = &[(10, ReadCommitted, &[(1, 1, &[]), (2, 2, &[])], Committed(20))];
    assert_found("acknowledged and lost", one, &[(1, &[1]), (2, &[])]);
    assert_found("element 1 stands twice", one, &[(1, &[1, 1]), (2, &[2])]);
    assert_found("list 2 ends up with 7, which nobody", one, &[(1, &[1]), (2, &[2, 7])]);
    let unknown: &[Short] = &[(10, ReadCommitted, &[(1, 1, &[]), (2, 2, &[])], Unknown)];
    assert_found("half a transaction", unknown, &[(1, &[1]), (2, &[])]);
    assert_eq!(verdict(unknown, &[(1, &[1]), (2, &[2])]), "");
    assert_eq!(verdict(unknown, &[]), "");
    let rolled_back: &[Short] =
        &[(10, ReadCommitted, &[(1, 1, &[])], Aborted), (10, ReadCommitted, &[(1, 0, &[1])], Committed(20))];
    assert_found("list 1 ends up with 1 of a transaction that was rolled back", rolled_back, &[(1, &[1])]);
    assert_found("G1a", rolled_back, &[(1, &[])]);
    let middle: &[Short] =
        &[(10, ReadCommitted, &[(1, 1, &[]), (1, 2, &[1])], Committed(30)), (10, ReadCommitted, &[(1, 0, &[1])], Committed(20))];
    assert_found("G1b", middle, &[(1, &[1, 2])]);
    let lost_update: &[Short] =
        &[(10, ReadCommitted, &[(1, 1, &[])], Committed(20)), (10, ReadCommitted, &[(1, 2, &[])], Committed(20))];
    assert_found("acknowledged and lost", lost_update, &[(1, &[2])]);
    let stale: &[Short] =
        &[(10, ReadCommitted, &[(1, 1, &[])], Committed(20)), (21, ReadCommitted, &[(1, 0, &[])], Committed(30))];
    assert_found("stale", stale, &[(1, &[1])]);
    let blind: &[Short] = &[(10, ReadCommitted, &[(1, 1, &[]), (1, 0, &[])], Committed(20))];
    assert_found("a transaction does not see its own", blind, &[(1, &[1])]);
}

#[test]
fn audits_find_money_that_is_made_lost_or_forgotten() {
    let moved = |outcome| Transfer { from: 0, to: 1, amount: 10, outcome };
    let audit = |first: i64, second: i64, journal: &[(u64, (u64, u64, i64))]| Audit {
        balances: BTreeMap::from([(0, first), (1, second)]),
        journal: Some(journal.iter().copied().collect()),
        since_ns: 50,
        who: "an audit".into(),
    };
    let verdict = |audit: &Audit, outcome| bank::check(audit, &[moved(outcome)], 2, 100).join("; ");
    let entry = [(0, (0, 1, 10))];
    assert_eq!(verdict(&audit(90, 110, &entry), Committed(40)), "");
    assert_eq!(verdict(&audit(90, 110, &entry), Unknown), "");
    assert_eq!(verdict(&audit(100, 100, &[]), Unknown), "");
    assert_eq!(verdict(&audit(100, 100, &[]), Committed(60)), "", "it may have been under way");
    assert!(verdict(&audit(90, 100, &[]), Unknown).contains("in all accounts"));
    assert!(verdict(&audit(90, 110, &entry), Aborted).contains("rolled back"));
    assert!(verdict(&audit(100, 100, &[]), Committed(40)).contains("does not see"));
    assert!(verdict(&audit(100, 100, &entry), Committed(40)).contains("differ from the journal"));
}
