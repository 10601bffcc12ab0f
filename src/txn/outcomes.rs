//! What other nodes have told about their finished transactions.
//!
//! Owned by one shard. An outcome never changes and an id is never reused, so an entry is right for ever; the oldest are
//! forgotten beyond [`OUTCOMES_MAX`].

use std::collections::{HashMap, VecDeque};

use crate::ids::TxnId;

use super::visibility::TxnState;

/// Outcomes remembered.
pub const OUTCOMES_MAX: usize = 65_536;

/// Outcomes of others' transactions.
#[derive(Default, Debug)]
pub struct Outcomes {
    known: HashMap<TxnId, TxnState>,
    order: VecDeque<TxnId>,
}

impl Outcomes {
    /// What is known.
    #[must_use]
    pub fn get(&self, txn: TxnId) -> Option<TxnState> {
        self.known.get(&txn).copied()
    }

    /// Remembers an outcome; a state that can still change is not one.
    pub fn learn(&mut self, txn: TxnId, state: TxnState) {
        if !matches!(state, TxnState::Committed(_) | TxnState::CommittedBy(_) | TxnState::Aborted)
            || self.known.insert(txn, state).is_some()
        {
            return;
        }
        self.order.push_back(txn);
        if self.order.len() > OUTCOMES_MAX {
            let forgotten = self.order.pop_front().expect("not empty");
            self.known.remove(&forgotten);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{NodeId, Scn, ShardId};

    #[test]
    fn only_what_cannot_change_is_remembered_and_not_without_bound() {
        let txn = |wrap| TxnId::new(NodeId(2), ShardId(0), 1, wrap);
        let mut outcomes = Outcomes::default();
        outcomes.learn(txn(0), TxnState::Active);
        outcomes.learn(txn(0), TxnState::Committing(Some(Scn(4))));
        assert_eq!(outcomes.get(txn(0)), None);
        for wrap in 1..=OUTCOMES_MAX as u32 + 1 {
            outcomes.learn(txn(wrap), TxnState::Committed(Scn(u64::from(wrap))));
        }
        assert_eq!(outcomes.get(txn(1)), None);
        assert_eq!(outcomes.get(txn(2)), Some(TxnState::Committed(Scn(2))));
        assert_eq!(outcomes.known.len(), OUTCOMES_MAX);
    }
}
