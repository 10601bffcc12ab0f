//! Which version of a row a reader sees: the decision alone, without I/O.
//!
//! Pure functions; the walk over undo that follows them is `walk.rs`. The rule: a version is seen if the reader wrote it, or
//! if it was committed at or below the reader's snapshot. A transaction in the act of committing at or below the snapshot
//! must be waited for: its outcome decides, and its client may already have been promised that it is seen.

use crate::ids::{Scn, TxnId};

use super::row::Version;

/// What is known of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TxnState {
    /// Running: commits, if ever, above every SCN that the asker has seen.
    Active,
    /// Its commit is on the way to the log. `Scn` is its commit SCN, or `None` where that is drawn by another shard.
    Committing(Option<Scn>),
    /// Committed.
    Committed(Scn),
    /// Committed at or below this SCN, by a node that has died since: when exactly, only its memory knew.
    CommittedBy(Scn),
    /// Rolled back, or died with its node; rows that still carry its id count as their predecessors.
    Aborted,
}

/// Who reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct View {
    /// Sees commits up to and including this.
    pub snapshot: Scn,
    /// Sees its own changes.
    pub own: Option<TxnId>,
}

/// What to do with a version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// This is the one.
    Visible,
    /// Look at the predecessor.
    Previous,
    /// Wait for this transaction's outcome, then judge again.
    Wait(TxnId),
    /// Find out the state of this transaction, then judge again.
    Ask(TxnId),
    /// Nobody knows any more whether the snapshot sees it.
    TooOld,
}

/// Judges a version for a reader. `state` answers from memory, `None` when it does not know.
#[inline]
pub fn judge(version: Version, view: View, state: impl FnOnce(TxnId) -> Option<TxnState>) -> Verdict {
    let txn = match version {
        Version::Committed(scn) if scn <= view.snapshot => return Verdict::Visible,
        Version::Committed(_) => return Verdict::Previous,
        Version::Written(txn) if view.own == Some(txn) => return Verdict::Visible,
        Version::Written(txn) => txn,
    };
    match state(txn) {
        None => Verdict::Ask(txn),
        Some(TxnState::Active | TxnState::Aborted) => Verdict::Previous,
        Some(TxnState::Committing(None)) => Verdict::Wait(txn),
        Some(TxnState::Committing(Some(scn))) => {
            if scn <= view.snapshot {
                Verdict::Wait(txn)
            } else {
                Verdict::Previous
            }
        }
        Some(TxnState::Committed(scn)) => {
            if scn <= view.snapshot {
                Verdict::Visible
            } else {
                Verdict::Previous
            }
        }
        Some(TxnState::CommittedBy(scn)) => {
            if scn <= view.snapshot {
                Verdict::Visible
            } else {
                Verdict::TooOld
            }
        }
    }
}

/// What a writer finds when it comes to a row's newest version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// Own already, or committed: `Scn` of the commit, `None` for own.
    Free(Option<Scn>),
    /// Left by a dead transaction: put the predecessor back first.
    RollBack(TxnId),
    /// Locked: wait for this transaction's end.
    Wait(TxnId),
    /// Find out the state of this transaction, then judge again.
    Ask(TxnId),
}

/// Judges a row's newest version for a writer.
#[inline]
pub fn claim(version: Version, own: Option<TxnId>, state: impl FnOnce(TxnId) -> Option<TxnState>) -> Claim {
    let txn = match version {
        Version::Committed(scn) => return Claim::Free(Some(scn)),
        Version::Written(txn) if own == Some(txn) => return Claim::Free(None),
        Version::Written(txn) => txn,
    };
    match state(txn) {
        None => Claim::Ask(txn),
        Some(TxnState::Active | TxnState::Committing(_)) => Claim::Wait(txn),
        Some(TxnState::Committed(scn) | TxnState::CommittedBy(scn)) => Claim::Free(Some(scn)),
        Some(TxnState::Aborted) => Claim::RollBack(txn),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{NodeId, ShardId};
    use proptest::prelude::*;

    fn txn(slot: u16) -> TxnId {
        TxnId::new(NodeId(1), ShardId(0), slot, 1)
    }

    fn any_state() -> impl Strategy<Value = TxnState> {
        prop_oneof![
            Just(TxnState::Active),
            Just(TxnState::Aborted),
            proptest::option::of(0u64..20).prop_map(|scn| TxnState::Committing(scn.map(Scn))),
            (0u64..20).prop_map(|scn| TxnState::Committed(Scn(scn))),
            (0u64..20).prop_map(|scn| TxnState::CommittedBy(Scn(scn))),
        ]
    }

    proptest! {
        /// Whether the commit's stamp has reached the row or not makes no difference to anybody.
        #[test]
        fn a_stamped_row_is_judged_as_an_unstamped_one(scn in 0u64..20, snapshot in 0u64..20) {
            let view = View { snapshot: Scn(snapshot), own: Some(txn(1)) };
            let stamped = judge(Version::Committed(Scn(scn)), view, |_| None);
            let unstamped = judge(Version::Written(txn(2)), view, |_| Some(TxnState::Committed(Scn(scn))));
            prop_assert_eq!(stamped, unstamped);
        }

        /// A reader never sees what may still be rolled back.
        #[test]
        fn only_finished_transactions_are_visible(state in any_state(), snapshot in 0u64..20) {
            let view = View { snapshot: Scn(snapshot), own: None };
            let verdict = judge(Version::Written(txn(2)), view, |_| Some(state));
            prop_assert_eq!(verdict == Verdict::Visible, matches!(state, TxnState::Committed(scn) | TxnState::CommittedBy(scn) if scn.0 <= snapshot));
        }

        /// Where only a bound of the commit is known, a reader gets what it would get with the SCN itself, or nothing.
        #[test]
        fn a_commit_that_is_known_roughly_is_never_judged_wrongly(scn in 0u64..20, later in 0u64..20, snapshot in 0u64..20) {
            let view = View { snapshot: Scn(snapshot), own: None };
            let exactly = judge(Version::Written(txn(2)), view, |_| Some(TxnState::Committed(Scn(scn))));
            let roughly = judge(Version::Written(txn(2)), view, |_| Some(TxnState::CommittedBy(Scn(scn + later))));
            prop_assert!(roughly == exactly || roughly == Verdict::TooOld);
        }

        /// A verdict once given with an outcome known stays: going from committing to committed turns no `Previous` to `Visible`.
        #[test]
        fn an_outcome_does_not_change_a_verdict_given(scn in 0u64..20, snapshot in 0u64..20) {
            let view = View { snapshot: Scn(snapshot), own: None };
            let before = judge(Version::Written(txn(2)), view, |_| Some(TxnState::Committing(Some(Scn(scn)))));
            let after = judge(Version::Written(txn(2)), view, |_| Some(TxnState::Committed(Scn(scn))));
            prop_assert!(before == Verdict::Wait(txn(2)) || before == after);
        }
    }

    #[test]
    fn own_changes_are_seen_and_claimed() {
        let view = View { snapshot: Scn(1), own: Some(txn(3)) };
        assert_eq!(judge(Version::Written(txn(3)), view, |_| unreachable!()), Verdict::Visible);
        assert_eq!(claim(Version::Written(txn(3)), view.own, |_| unreachable!()), Claim::Free(None));
        assert_eq!(judge(Version::Written(txn(4)), view, |_| None), Verdict::Ask(txn(4)));
    }

    #[test]
    fn a_writer_waits_for_whoever_may_still_commit() {
        for state in [TxnState::Active, TxnState::Committing(None), TxnState::Committing(Some(Scn(5)))] {
            assert_eq!(claim(Version::Written(txn(4)), None, |_| Some(state)), Claim::Wait(txn(4)));
        }
        assert_eq!(claim(Version::Written(txn(4)), None, |_| Some(TxnState::Aborted)), Claim::RollBack(txn(4)));
    }
}
