//! Transfers between accounts, each with a row in the journal, and audits of both in one snapshot.

use std::collections::BTreeMap;

use super::{Clients, TRANSACTIONS_MAX, Trouble};
use crate::ids::PartitionId;
use crate::sim::check;
use crate::sim::check::bank::Audit;
use crate::sim::dice::Dice;
use crate::sim::history::{Outcome, Transfer};
use crate::store::{
    Isolation, LockStrength, LockedRow, Modify, OnConflict, ScanLimit, ScanRange, Session, Store, StoreError, WaitPolicy, WriteOp,
};

/// What every account begins with.
pub(in crate::sim) const ACCOUNT_AT_FIRST: i64 = 100;

fn key(number: u64) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

fn number(bytes: &[u8]) -> i64 {
    i64::from_be_bytes(bytes.try_into().expect("rows of the bank have eight bytes each"))
}

fn money(amount: i64) -> Vec<u8> {
    amount.to_be_bytes().to_vec()
}

pub(super) async fn set_up(store: &Store, accounts: PartitionId, count: u64) -> Result<(), StoreError> {
    let rows = (0..count).map(|account| WriteOp::Put { partition: accounts, key: key(account), value: money(ACCOUNT_AT_FIRST) });
    store.session().write(rows.collect()).await.map(|_| ())
}

/// Updates every account to what it is.
pub(super) async fn touch(store: &Store, accounts: PartitionId) -> Result<(), StoreError> {
    let mut session = store.session();
    let rows = session.scan(accounts, ScanRange::all(), ScanLimit::default()).await?.rows;
    for (key, _) in rows {
        session.modify(accounts, &key, |row| row.map_or(Modify::Keep, |row| Modify::Put(row.to_vec()))).await?;
    }
    Ok(())
}

/// A client's next transaction.
pub(super) async fn turn(clients: &Clients, dice: &Dice) {
    let Some((node, store)) = clients.any_store(dice) else { return };
    if dice.chance(25) {
        let with_journal = dice.chance(20);
        let who = format!("an audit on node{node}");
        match clients.answer(dice, audit(clients, &store, with_journal, who)).await {
            Ok(audit) => judge(clients, &audit),
            Err(trouble) => clients.count(trouble.word()),
        }
    } else if clients.transfers.borrow().len() < TRANSACTIONS_MAX {
        transfer(clients, dice, &store).await;
    }
}

fn judge(clients: &Clients, audit: &Audit) {
    let found = check::bank::check(audit, &clients.transfers.borrow(), clients.plan.accounts, ACCOUNT_AT_FIRST);
    clients.broken.borrow_mut().extend(found);
    clients.count("audits");
}

/// Reads the bank in one snapshot.
pub(in crate::sim) async fn audit(
    clients: &Clients,
    store: &Store,
    with_journal: bool,
    who: String,
) -> Result<Audit, StoreError> {
    let tables = clients.tables();
    let since_ns = clients.now_ns();
    let mut session = store.session();
    session.begin(Isolation::RepeatableRead, true)?;
    let mut balances = BTreeMap::new();
    each_row(&mut session, tables.accounts, |account, row| {
        balances.insert(account, number(row));
    })
    .await?;
    let mut journal = None;
    if with_journal {
        let mut rows = BTreeMap::new();
        each_row(&mut session, tables.journal, |transfer, row| {
            let part = |at: usize| number(&row[at..at + 8]);
            rows.insert(transfer, (part(0) as u64, part(8) as u64, part(16)));
        })
        .await?;
        journal = Some(rows);
    }
    session.commit().await?;
    Ok(Audit { balances, journal, since_ns, who })
}

async fn each_row(session: &mut Session, partition: PartitionId, mut with: impl FnMut(u64, &[u8])) -> Result<(), StoreError> {
    let mut range = Some(ScanRange::all());
    while let Some(next) = range {
        let chunk = session.scan(partition, next, ScanLimit::default()).await?;
        chunk.rows.iter().for_each(|(key, row)| with(number(key) as u64, row));
        range = chunk.more;
    }
    Ok(())
}

/// The ways of a transfer.
#[derive(Clone, Copy)]
enum Way {
    /// Both accounts in one operation, which is a transaction.
    AtOnce,
    /// Locks both, then writes both.
    Locks,
    /// Reads both in a snapshot, writes both; somebody else's change since is noticed.
    Snapshot,
    /// Update by update, with a part rolled back to a savepoint in between.
    Savepoint,
}

async fn transfer(clients: &Clients, dice: &Dice, store: &Store) {
    let accounts = clients.plan.accounts;
    let from = dice.below(accounts);
    let to = (from + 1 + dice.below(accounts - 1)) % accounts;
    let amount = dice.between(1, 10) as i64;
    let index = clients.transfers.borrow().len();
    clients.transfers.borrow_mut().push(Transfer { from, to, amount, outcome: Outcome::Unknown });
    let way = dice.pick(&[Way::AtOnce, Way::Locks, Way::Snapshot, Way::Savepoint]);
    let mut session = store.session();
    let outcome = match run(clients, dice, &mut session, way, index as u64, (from, to, amount)).await {
        Ok(committed) => clients.judge(&committed),
        Err(trouble) => {
            clients.count(trouble.word());
            clients.give_up(dice, &mut session).await;
            Outcome::Aborted
        }
    };
    clients.transfers.borrow_mut()[index].outcome = outcome;
}

/// The inner answer is the commit's, the outer one of what came before.
async fn run(
    clients: &Clients,
    dice: &Dice,
    session: &mut Session,
    way: Way,
    index: u64,
    (from, to, amount): (u64, u64, i64),
) -> Result<Result<(), Trouble>, Trouble> {
    let tables = clients.tables();
    let partition = tables.accounts;
    let entry = [money(from as i64), money(to as i64), money(amount)].concat();
    let note = WriteOp::Insert { partition: tables.journal, key: key(index), value: entry, on_conflict: OnConflict::Error };
    let add = |account: u64, amount: i64| (key(account), move |row: &[u8]| money(number(row) + amount));
    let isolation = if matches!(way, Way::Snapshot) { Isolation::RepeatableRead } else { Isolation::ReadCommitted };
    session.begin(isolation, false).map_err(Trouble::Store)?;
    match way {
        Way::AtOnce => {
            let rows = vec![(partition, key(from)), (partition, key(to))];
            let change = move |place: usize, row: Option<&[u8]>| {
                row.map_or(Modify::Keep, |row| Modify::Put(money(number(row) + if place == 0 { -amount } else { amount })))
            };
            clients.answer(dice, session.modify_many(rows, Box::new(change))).await?;
            return Ok(clients.answer(dice, session.write_and_commit(vec![note])).await.map(|_| ()));
        }
        Way::Locks => {
            let mut writes = vec![note];
            for (key, value) in [add(from, -amount), add(to, amount)] {
                let locked = session.get_for_update(partition, &key, LockStrength::Update, WaitPolicy::Wait);
                if let LockedRow::Row(row) = clients.answer(dice, locked).await? {
                    writes.push(WriteOp::Update { partition, value: value(&row), key });
                }
            }
            clients.answer(dice, session.write(writes)).await?;
        }
        Way::Snapshot => {
            let mut writes = vec![note];
            for (key, value) in [add(from, -amount), add(to, amount)] {
                if let Some(row) = clients.answer(dice, session.get(partition, &key)).await? {
                    writes.push(WriteOp::Put { partition, value: value(&row), key });
                }
            }
            clients.answer(dice, session.write(writes)).await?;
        }
        Way::Savepoint => {
            clients.answer(dice, session.write(vec![note])).await?;
            let savepoint = session.savepoint();
            for round in 0..2 {
                for (key, value) in [add(from, -amount), add(to, amount)] {
                    let change = move |row: Option<&[u8]>| row.map_or(Modify::Keep, |row| Modify::Put(value(row)));
                    session.new_statement();
                    clients.answer(dice, session.modify(partition, &key, change)).await?;
                }
                if round == 0 {
                    clients.answer(dice, session.rollback_to(&savepoint)).await?;
                }
            }
        }
    }
    if dice.chance(5) {
        clients.answer(dice, session.rollback()).await?;
        return Err(Trouble::Store(StoreError::Canceled));
    }
    Ok(clients.answer(dice, session.commit()).await.map(|_| ()))
}
