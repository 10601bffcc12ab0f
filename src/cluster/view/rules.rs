//! The rules of the protocol that a test may switch off, one at a time, to see that the random walk notices.
//!
//! In the product every rule holds: the switch exists in test builds only.

/// A rule that [`Views`](super::Views) keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rule {
    /// A view without a life begins its epoch only after that life is fenced.
    FenceFirst,
    /// A cold start without some configured nodes fences whatever life they may have.
    FenceTheMissing,
    /// Whoever changes the view has the pledges of a majority, or of half and won the fence.
    Quorum,
    /// Nobody serves in an epoch before all of its members have left the former one.
    GoAfterAllFrozen,
    /// Nodes that are not recovered yet stay so in the next view.
    UnrecoveredStay,
    /// The redo of a dead node is released only after every member has done its part of the recovery.
    ReleaseAfterAll,
    /// A node is let in again only after the redo of its former life was released.
    JoinAfterRelease,
    /// Who has pledged to one coordinator follows no other until it is released.
    OnePledge,
    /// Who is changing the volume begins nothing else there, and follows nobody who might, before that is done.
    OneVolumeWork,
    /// A life that others have excluded ends.
    ExcludedEnd,
    /// Who has followed into a change grants no lease any more to whom it leaves out.
    Forsake,
    /// A node that can't reach a quorum stops serving.
    SuspendWithoutQuorum,
    /// A node leaves for good only after the redo of its last life was released.
    RemoveAfterRelease,
    /// Who has left for good is let in no more.
    RemovedStayOut,
}

/// Which of them is switched off.
pub(super) type Rules = crate::rules::Rules<Rule>;
