//! Words of transactions that the layers above use too.

/// How a transaction sees others' changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Isolation {
    /// Each statement sees what was committed before it began; a changed row is re-evaluated on its newest version.
    #[default]
    ReadCommitted,
    /// The whole transaction sees what was committed before its first statement; changing a row that somebody else has
    /// changed since is a serialization failure.
    RepeatableRead,
}

/// What to do when somebody else holds the lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WaitPolicy {
    /// Wait until it is free, the wait is a deadlock, or the operation is canceled.
    #[default]
    Wait,
    /// Fail at once.
    NoWait,
    /// Leave the row out; for anything but rows the same as `NoWait`.
    SkipLocked,
}
