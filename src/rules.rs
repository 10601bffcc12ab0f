//! The switch by which a test turns one rule of a protocol's core off, to see that its exploration notices.
//!
//! In the product every rule holds, and asking costs nothing: the switch exists in test builds only. A plain value of its
//! core. `R` names the core's rules.

/// Which of the rules `R` is switched off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rules<R> {
    #[cfg(test)]
    pub(crate) off: Option<R>,
    #[cfg(not(test))]
    all_hold: std::marker::PhantomData<R>,
}

impl<R> Default for Rules<R> {
    fn default() -> Rules<R> {
        Rules {
            #[cfg(test)]
            off: None,
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
