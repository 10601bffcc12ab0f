//! The switch by which a test turns one rule of a protocol off, to see that its exploration, or the simulator, notices.
//!
//! In the product every rule holds, and asking costs nothing: the switch exists in test builds only. A plain value of its
//! core, where `R` names the core's rules; whole clusters take it from their thread ([`without`]).

/// Rules of the design (section 6) that the shards keep outside of a protocol's core. A test of whole clusters may switch
/// one off for its thread, as it may a core's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DesignRule {
    /// 1: a changed block is not shipped before its redo is durable.
    RedoBeforeShip,
    /// 2: recovery of a node starts only after it is fenced.
    RecoverAfterFence,
    /// 3: messages of an older epoch are dropped everywhere.
    OlderEpochsDropped,
    /// 4: a block counts as written when the write has completed.
    WrittenAfterWrite,
    /// 8: a block under write is not shipped.
    NotShippedWhileWritten,
    /// 10: an SCN is never used again.
    ScnsNeverReused,
    /// None of the ten: a frame that others may still write into finds no other use (`interconnect/rdma/exposed.rs`).
    AbandonedFramesQuarantined,
    /// None of the ten: a block is written into another node's frame only in the epoch of the message that it belongs to.
    WritesOfThisEpoch,
    /// None of the ten: what was read of another node's cell while that was written is no answer (`interconnect/rdma/board.rs`).
    TornCellsNoticed,
    /// None of the ten: what is cached is shown only under a lease (`cluster/view/lease.rs`).
    LeaseToRead,
}

/// Whether the rule is kept here.
#[cfg(test)]
pub(crate) fn kept(rule: DesignRule) -> bool {
    switched_off() != Some(rule)
}

/// Whether the rule is kept here.
#[cfg(not(test))]
pub(crate) const fn kept(_rule: DesignRule) -> bool {
    true
}

#[cfg(test)]
thread_local! {
    static OFF: std::cell::RefCell<Option<Box<dyn std::any::Any>>> = const { std::cell::RefCell::new(None) };
}

#[cfg(test)]
fn switched_off<R: Copy + 'static>() -> Option<R> {
    OFF.with_borrow(|off| off.as_ref().and_then(|rule| rule.downcast_ref::<R>().copied()))
}

/// Runs something with one rule (a [`DesignRule`], or one of a core's) switched off in all that is made in this thread.
#[cfg(test)]
pub(crate) fn without<T>(rule: impl Copy + 'static, run: impl FnOnce() -> T) -> T {
    OFF.replace(Some(Box::new(rule)));
    let output = run();
    OFF.replace(None);
    output
}

/// Which of the rules `R` is switched off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rules<R> {
    #[cfg(test)]
    pub(crate) off: Option<R>,
    #[cfg(not(test))]
    all_hold: std::marker::PhantomData<R>,
}

impl<R: Copy + 'static> Default for Rules<R> {
    fn default() -> Rules<R> {
        Rules {
            #[cfg(test)]
            off: switched_off(),
            #[cfg(not(test))]
            all_hold: std::marker::PhantomData,
        }
    }
}

#[cfg(test)]
impl<R: Copy + PartialEq> Rules<R> {
    /// Whether `rule` is kept.
    pub(crate) fn hold(self, rule: R) -> bool {
        self.off != Some(rule)
    }

    /// Whether every rule is kept. Where one is not, what the core would assert is left for the exploration to find.
    pub(crate) fn all_hold(self) -> bool {
        self.off.is_none()
    }
}

#[cfg(not(test))]
impl<R: Copy> Rules<R> {
    /// Whether `rule` is kept.
    pub(crate) const fn hold(self, _rule: R) -> bool {
        true
    }

    /// Whether every rule is kept.
    pub(crate) const fn all_hold(self) -> bool {
        true
    }
}
