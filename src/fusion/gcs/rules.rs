//! The rules of the protocol that a test may switch off, one at a time, to see that the explorer notices.
//!
//! In the product every rule holds: the switch exists in test builds only.

/// A rule of the design that these cores enforce (the numbers are the design's, section 6).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Rule {
    /// 3: messages of another epoch are dropped.
    EpochsMatch,
    /// 5: the master serves the next waiter only after Done.
    ServeAfterDone,
    /// 6: a dirty block has exactly one owner, and nothing is granted from disk beside it.
    OneDirtyOwner,
    /// 7: a stale Wrote clears nothing.
    StaleWroteClearsNothing,
    /// 9: no new request for a dropped block before DropAck.
    DropBeforeRequest,
    /// Of recovery: a block whose owner was lost is granted to nobody before its newest version is on the disk.
    RecoverBeforeGrant,
    /// Of remastering: a bucket is handed over when none of its blocks has a transition in flight.
    DrainBeforeHandOver,
    /// Of remastering: the next master serves when all of the bucket's entries are there.
    EntriesBeforeServe,
    /// Of remastering: the next master serves when every member sends to it.
    AllKnowBeforeServe,
    /// Of remastering: who has handed a bucket over applies nothing to it any more.
    OnlyTheMasterApplies,
    /// Of remastering: what reaches a former master is passed on.
    StragglersAreRelayed,
}

/// Which of them is switched off.
pub(super) type Rules = crate::rules::Rules<Rule>;
