//! How transactions have ended, as the other nodes read it: one record for each slot of a shard's transaction table.
//!
//! Pure functions. Only an end stands there, for it never changes: whatever is read is as true as an answer by message would be. That a
//! transaction is running or committing does not: who asks such a question must have its clock heard before it is answered.

use crate::ids::{Scn, TxnId};
use crate::interconnect::rdma::{CELLS, Record};
use crate::txn::slot::SLOTS_MAX;
use crate::txn::visibility::TxnState;

const COMMITTED: u64 = 1;
const ABORTED: u64 = 2;

// A cell for each slot.
const _: () = assert!(SLOTS_MAX <= CELLS);

/// What is published of a transaction's end; nothing of any other state.
pub(super) fn record_of(txn: TxnId, outcome: TxnState) -> Option<Record> {
    let (how, scn) = match outcome {
        TxnState::Committed(scn) => (COMMITTED, scn),
        TxnState::Aborted => (ABORTED, Scn::ZERO),
        TxnState::Active | TxnState::Committing(_) | TxnState::CommittedBy(_) => return None,
    };
    Some([u64::from(txn.wrap()) | how << 32, scn.0])
}

/// The end of this transaction, if the record of its slot is of it.
pub(super) fn outcome_in(txn: TxnId, record: Record) -> Option<TxnState> {
    let [end, scn] = record;
    match end >> 32 {
        _ if end as u32 != txn.wrap() => None,
        COMMITTED if scn != 0 && scn < Scn::MAX.0 => Some(TxnState::Committed(Scn(scn))),
        ABORTED if scn == 0 => Some(TxnState::Aborted),
        _ => None,
    }
}
