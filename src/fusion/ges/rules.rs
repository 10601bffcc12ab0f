//! The rules of a change of the members that a test may switch off, one at a time, to see that its walk notices.
//!
//! In the product every rule holds: the switch exists in test builds only.

/// A rule that the state machines enforce.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Rule {
    /// A master grants nothing before it has all claims of all members.
    AllClaimsFirst,
    /// Whoever waited for the former master asks the new one.
    AskAgain,
    /// A value that a lost holder of PW or EX may have changed is in doubt.
    LostWriterLeavesDoubt,
    /// So is one of which neither its former master nor a holder of more than CR is left.
    LostMasterLeavesDoubt,
    /// So is one of a resource that nobody claims, after a master was lost.
    UnheardLeavesDoubt,
    /// A written value is kept, with a lock in NL, until the master has it.
    ValueUntilTaken,
}

/// Which of them is switched off.
pub(super) type Rules = crate::rules::Rules<Rule>;
