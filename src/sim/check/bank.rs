//! Money is neither made nor lost: balances, the journal and what clients were told must agree.

use std::collections::BTreeMap;

use crate::sim::history::{Outcome, Transfer};

/// What a client saw of the bank in one snapshot.
pub(in crate::sim) struct Audit {
    /// Balances by account.
    pub(in crate::sim) balances: BTreeMap<u64, i64>,
    /// The journal: transfer and (from, to, amount); `None` when it was not looked at.
    pub(in crate::sim) journal: Option<BTreeMap<u64, (u64, u64, i64)>>,
    /// Before its first operation was sent.
    pub(in crate::sim) since_ns: u64,
    /// Who looked, for the report.
    pub(in crate::sim) who: String,
}

/// Everything that is wrong with an audit.
pub(in crate::sim) fn check(audit: &Audit, transfers: &[Transfer], accounts: u64, initial: i64) -> Vec<String> {
    let Audit { balances, journal, since_ns, who } = audit;
    let mut broken = Vec::new();
    if balances.len() as u64 != accounts {
        broken.push(format!("{who} sees {} accounts of {accounts}: {balances:?}", balances.len()));
        return broken;
    }
    let sum: i64 = balances.values().sum();
    let expected = initial * accounts as i64;
    if sum != expected {
        broken.push(format!("{who} sees {sum} in all accounts, and it should be {expected}: {balances:?}"));
    }
    let Some(journal) = journal else { return broken };
    let mut replayed: BTreeMap<u64, i64> = (0..accounts).map(|account| (account, initial)).collect();
    for (number, (from, to, amount)) in journal {
        let Some(transfer) = transfers.get(*number as usize) else {
            broken.push(format!("{who} sees transfer {number}, which nobody made"));
            continue;
        };
        if (transfer.from, transfer.to, transfer.amount) != (*from, *to, *amount) {
            broken.push(format!("{who} sees transfer {number} as {from} to {to}, {amount}; it is {transfer:?}"));
        }
        if transfer.outcome == Outcome::Aborted {
            broken.push(format!("{who} sees transfer {number}, which was rolled back: {transfer:?}"));
        }
        *replayed.entry(*from).or_default() -= amount;
        *replayed.entry(*to).or_default() += amount;
    }
    for (number, transfer) in transfers.iter().enumerate() {
        if let Outcome::Committed(at_ns) = transfer.outcome
            && at_ns < *since_ns
            && !journal.contains_key(&(number as u64))
        {
            let at = at_ns as f64 / 1e9;
            broken.push(format!("{who} does not see transfer {number}, acknowledged at {at:.6}, before it looked: {transfer:?}"));
        }
    }
    let differ: Vec<_> = balances.iter().filter(|(account, balance)| replayed[account] != **balance).collect();
    if !differ.is_empty() {
        let what = differ
            .iter()
            .map(|(account, balance)| format!("account {account} has {balance}, by the journal {}", replayed[account]));
        let what: Vec<_> = what.collect();
        let concerns = |transfer: &Transfer| differ.iter().any(|(account, _)| [transfer.from, transfer.to].contains(account));
        let concerned = journal.keys().filter_map(|number| Some((number, transfers.get(*number as usize)?)));
        let concerned: Vec<_> = concerned.filter(|(_, transfer)| concerns(transfer)).collect();
        broken
            .push(format!("{who} sees balances that differ from the journal: {}; its transfers: {concerned:?}", what.join("; ")));
    }
    broken
}
