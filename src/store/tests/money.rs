//! Accounts between which money moves, in one of several ways and with clients that go away: whatever the transactions run into,
//! the sum of it stays, and every statement sees the same one. Tests of crashes and of clusters use the accounts, too.

use super::bed::{Node, put, run};
use super::*;

pub const ACCOUNTS: u64 = 12;

pub fn amount(row: Option<&[u8]>) -> i64 {
    std::str::from_utf8(row.expect("accounts are never deleted")).unwrap().parse().unwrap()
}

/// What opens the accounts.
pub fn accounts(table: PartitionId) -> Vec<WriteOp> {
    (0..ACCOUNTS).map(|account| put(table, &format!("{account}"), "100")).collect()
}

pub async fn open_accounts(node: &Node) -> PartitionId {
    let table = node.table().await;
    node.store.session().write(accounts(table)).await.unwrap();
    table
}

pub async fn sum(session: &mut Session, table: PartitionId) -> i64 {
    let (mut sum, mut more) = (0, Some(ScanRange::all()));
    while let Some(range) = more {
        let chunk = session.scan(table, range, ScanLimit { bytes: 1 << 20, rows: 2 }).await.unwrap();
        sum += chunk.rows.iter().map(|(_, row)| amount(Some(row))).sum::<i64>();
        more = chunk.more;
    }
    sum
}

/// Moves money between two accounts, in one of several ways; what is refused changes nothing.
pub async fn transfer(store: &Store, below: &dyn Fn(u64) -> u64, table: PartitionId) -> Result<(), StoreError> {
    let (from, to, money) = (below(ACCOUNTS), below(ACCOUNTS), below(20) as i64);
    if from == to {
        return Ok(());
    }
    let add = move |money: i64| move |row: Option<&[u8]>| Modify::Put((amount(row) + money).to_string().into_bytes());
    let key = |account: u64| account.to_string().into_bytes();
    let isolation = if below(2) == 0 { ReadCommitted } else { RepeatableRead };
    let mut session = store.session();
    session.begin(isolation, false)?;
    let savepoint = session.savepoint();
    if below(4) == 0 {
        session.modify(table, &key(below(ACCOUNTS)), add(1_000)).await?;
        session.rollback_to(&savepoint).await?;
    }
    session.modify(table, &key(from), add(-money)).await?;
    if below(8) == 0 {
        // The client goes away in the middle.
        return Ok(());
    }
    session.modify(table, &key(to), add(money)).await?;
    match below(6) {
        0 => session.rollback().await,
        _ => session.commit().await.map(|_| ()),
    }
}

#[test]
fn money_is_neither_made_nor_lost() {
    run(|node| async move {
        let table = open_accounts(&node).await;
        let mut clients = Vec::new();
        for _ in 0..8 {
            let node = node.clone();
            clients.push(node.clone().spawn(async move {
                let mut refused = 0;
                for _ in 0..150 {
                    match transfer(&node.store, &|bound| node.below(bound), table).await {
                        Ok(()) => {}
                        Err(StoreError::SerializationFailure { .. } | StoreError::DeadlockDetected) => refused += 1,
                        Err(error) => panic!("{error}"),
                    }
                }
                refused
            }));
        }
        let reader = node.spawn({
            let node = node.clone();
            async move {
                for round in 0..200 {
                    let mut session = if round % 2 == 0 { node.begin(RepeatableRead) } else { node.begin(ReadCommitted) };
                    session.new_statement();
                    assert_eq!(sum(&mut session, table).await, 100 * ACCOUNTS as i64, "a statement sees one moment");
                }
            }
        });
        let mut refused = 0;
        for client in clients {
            refused += client.join().await;
        }
        reader.join().await;
        assert!(refused > 0, "the clients got in each other's way");
        assert_eq!(sum(&mut node.store.session(), table).await, 100 * ACCOUNTS as i64);
    });
}
