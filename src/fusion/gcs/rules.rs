//! The rules of the protocol that a test may switch off, one at a time, to see that the explorer notices.
//!
//! In the product every rule holds: the switch exists in test builds only.

/// A rule of the design that these cores enforce (the numbers are the design's, section 6).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Rule {
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
}

/// Which rule is switched off.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Rules {
    #[cfg(test)]
    pub(super) off: Option<Rule>,
}

impl Rules {
    /// Whether `rule` is kept.
    #[cfg(test)]
    pub(super) fn hold(self, rule: Rule) -> bool {
        self.off != Some(rule)
    }

    /// Whether `rule` is kept.
    #[cfg(not(test))]
    pub(super) const fn hold(self, _rule: Rule) -> bool {
        true
    }

    /// Whether every rule is kept. Where one is not, what the cores would assert is left for the explorer to find in the
    /// data.
    #[cfg(test)]
    pub(super) fn all_hold(self) -> bool {
        self.off.is_none()
    }

    /// Whether every rule is kept.
    #[cfg(not(test))]
    pub(super) const fn all_hold(self) -> bool {
        true
    }
}
