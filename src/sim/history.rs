//! What the clients did and what they were told: the input of the checkers.
//!
//! A transaction is recorded before its first operation, so that one whose client was never answered is known too. Bounded
//! by the workload's length ([`super::workload`]).

use crate::store::Isolation;

/// What became of a transaction, as its client knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// The client was told so, at this moment (nanoseconds of virtual time).
    Committed(u64),
    /// The client knows that it did not happen.
    Aborted,
    /// It may have happened, whole, or not: no answer came.
    Unknown,
}

/// A transaction over lists.
#[derive(Clone, Debug)]
pub(super) struct ListTransaction {
    pub(super) node: u8,
    pub(super) isolation: Isolation,
    /// Before its first operation was sent.
    pub(super) began_ns: u64,
    pub(super) operations: Vec<ListOperation>,
    pub(super) outcome: Outcome,
    /// When its client was done with it.
    pub(super) ended_ns: u64,
}

/// One operation on a list, in the order of the transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum ListOperation {
    /// An element was put at the list's end.
    Append {
        list: u32,
        element: u32,
        /// The list as it was found, newest version under lock; not known when the answer did not come.
        found: Option<Vec<u32>>,
        /// Before it was sent.
        at_ns: u64,
    },
    /// The list was read.
    Read {
        list: u32,
        elements: Vec<u32>,
        /// Before it was sent.
        at_ns: u64,
    },
}

/// Money moved between two accounts, and a row of the journal that says so.
#[derive(Clone, Debug)]
pub(super) struct Transfer {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) amount: i64,
    pub(super) outcome: Outcome,
}
