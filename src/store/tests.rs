//! Transactions over the whole engine of one node: what clients see of each other, what a rollback and a crash leave.

use super::*;
use crate::ids::PartitionId;
use crate::txn::Obstacle;

mod bed;
mod cluster;
mod crash;
mod money;
use bed::{Dice, Disk, delete, get, insert, keys, put, run, update};
use money::{ACCOUNTS, accounts, amount, open_accounts, sum, transfer};

use Isolation::{ReadCommitted, RepeatableRead};

fn done(previous: Option<&str>) -> WriteResult {
    WriteResult::Done { previous: previous.map(|row| row.as_bytes().to_vec()) }
}

fn append(suffix: &'static str) -> impl FnMut(Option<&[u8]>) -> Modify + Send + 'static {
    move |row| match row {
        Some(row) => Modify::Put([row, suffix.as_bytes()].concat()),
        None => Modify::Keep,
    }
}

#[test]
fn single_operations_are_transactions_of_their_own() {
    run(|node| async move {
        let table = node.table().await;
        let mut session = node.store.session();
        let results = session
            .write(vec![insert(table, "a", "1"), put(table, "b", "2"), update(table, "a", "3"), update(table, "c", "4")])
            .await;
        assert_eq!(results.unwrap(), [done(None), done(None), done(Some("1")), WriteResult::NotFound]);
        let results = session.write(vec![delete(table, "b"), insert(table, "a", "9"), put(table, "z", "0")]).await.unwrap();
        assert_eq!(results[1..], [WriteResult::Duplicate { existing: b"3".to_vec() }], "the batch ends at the duplicate");
        assert_eq!(keys(&mut session, table).await, ["a", "b"], "and nothing of it remains");
        let nothing =
            WriteOp::Insert { partition: table, key: b"a".to_vec(), value: b"9".to_vec(), on_conflict: OnConflict::Nothing };
        let results = session.write(vec![delete(table, "b"), nothing, delete(table, "b")]).await.unwrap();
        assert_eq!(results, [done(Some("2")), WriteResult::Duplicate { existing: b"3".to_vec() }, WriteResult::NotFound]);
        assert_eq!(session.write(vec![insert(table, "b", "5")]).await.unwrap(), [done(None)], "over a tombstone");
        assert!(matches!(session.modify(table, b"b", append("!")).await.unwrap(), Modified::Put { value, .. } if value == b"5!"));
        assert_eq!(node.read(table, "b").await.as_deref(), Some("5!"));
        assert!(
            session.get_for_update(table, b"b", LockStrength::Update, WaitPolicy::Wait).await.is_err(),
            "a lock needs a transaction"
        );
    });
}

#[test]
fn nobody_sees_what_is_not_committed() {
    run(|node| async move {
        let table = node.table().await;
        node.store.session().write(vec![put(table, "a", "old"), put(table, "gone", "1")]).await.unwrap();
        let mut writer = node.begin(ReadCommitted);
        writer.write(vec![put(table, "a", "new"), insert(table, "b", "1"), delete(table, "gone")]).await.unwrap();
        assert_eq!(node.read(table, "a").await.as_deref(), Some("old"));
        assert_eq!(keys(&mut node.store.session(), table).await, ["a", "gone"]);
        assert_eq!(get(&mut writer, table, "a").await.as_deref(), Some("new"), "it sees its own");
        assert_eq!(keys(&mut writer, table).await, ["a", "b"]);
        writer.rollback().await.unwrap();
        assert_eq!(node.read(table, "a").await.as_deref(), Some("old"));
        assert_eq!(keys(&mut node.store.session(), table).await, ["a", "gone"]);
    });
}

#[test]
fn a_suspended_node_answers_nobody_and_ends_transactions_without_committing_them() {
    run(|node| async move {
        let table = node.table().await;
        node.store.session().write(vec![put(table, "a", "old")]).await.unwrap();
        let mut session = node.begin(ReadCommitted);
        session.write(vec![put(table, "a", "new")]).await.unwrap();
        let mut reader = node.store.session();
        let serving = node.engine.txns().shared().serving.clone();
        serving.suspend(Obstacle::Quorum, "reaches 1 of 3".into());
        let unavailable = Err(StoreError::Unavailable { reason: "reaches 1 of 3".into() });
        assert_eq!(reader.get(table, b"a").await, unavailable);
        assert_eq!(session.commit().await.map(|_| None), unavailable, "told, and not committed");
        assert!(!session.in_transaction());
        assert!(session.begin(ReadCommitted, false).is_err());
        serving.resume(Obstacle::Quorum);
        // What the session does now has nothing to do with what it gave up.
        session.begin(ReadCommitted, false).unwrap();
        session.write(vec![put(table, "b", "1")]).await.unwrap();
        session.commit().await.unwrap();
        assert_eq!(node.read(table, "a").await.as_deref(), Some("old"));
        assert_eq!(node.read(table, "b").await.as_deref(), Some("1"));
        session.write(vec![put(table, "a", "free")]).await.unwrap();
    });
}

#[test]
fn read_committed_sees_each_commit_in_its_next_statement() {
    run(|node| async move {
        let table = node.table().await;
        let mut other = node.store.session();
        other.write(vec![put(table, "a", "1")]).await.unwrap();
        let mut reader = node.begin(ReadCommitted);
        reader.new_statement();
        assert_eq!(get(&mut reader, table, "a").await.as_deref(), Some("1"));
        other.write(vec![put(table, "a", "2"), put(table, "b", "2")]).await.unwrap();
        assert_eq!(get(&mut reader, table, "a").await.as_deref(), Some("1"), "within a statement nothing moves");
        assert_eq!(keys(&mut reader, table).await, ["a"]);
        reader.new_statement();
        assert_eq!(get(&mut reader, table, "a").await.as_deref(), Some("2"));
        assert_eq!(keys(&mut reader, table).await, ["a", "b"]);
    });
}

#[test]
fn repeatable_read_sees_one_moment_however_often_rows_change() {
    run(|node| async move {
        let table = node.table().await;
        let mut other = node.store.session();
        other.write(vec![put(table, "a", "0"), put(table, "b", "0"), put(table, "deleted", "0")]).await.unwrap();
        let mut reader = node.begin(RepeatableRead);
        assert_eq!(get(&mut reader, table, "a").await.as_deref(), Some("0"));
        for round in 1..40 {
            // More versions than an undo block holds, by several transactions.
            let value = format!("{round}-{}", "x".repeat(300));
            other.write(vec![put(table, "a", &value), put(table, "b", &value)]).await.unwrap();
        }
        other.write(vec![delete(table, "deleted"), insert(table, "phantom", "1")]).await.unwrap();
        reader.new_statement();
        assert_eq!(get(&mut reader, table, "a").await.as_deref(), Some("0"));
        assert_eq!(get(&mut reader, table, "b").await.as_deref(), Some("0"), "no read skew");
        assert_eq!(keys(&mut reader, table).await, ["a", "b", "deleted"], "no phantom");
        reader.commit().await.unwrap();
        assert_eq!(keys(&mut reader, table).await, ["a", "b", "phantom"]);
    });
}

#[test]
fn the_first_updater_wins_in_repeatable_read() {
    run(|node| async move {
        let table = node.table().await;
        node.store.session().write(vec![put(table, "a", "1"), put(table, "b", "1"), put(table, "c", "1")]).await.unwrap();
        let (mut first, mut second) = (node.begin(RepeatableRead), node.begin(RepeatableRead));
        get(&mut first, table, "a").await;
        get(&mut second, table, "a").await;
        first.modify(table, b"a", append("+first")).await.unwrap();
        let waiting =
            node.spawn_blocked(async move { (second.modify(table, b"a", append("+second")).await.err(), second) }).await;
        first.commit().await.unwrap();
        let (error, mut second) = waiting.join().await;
        assert_eq!(error.map(|error| error.sqlstate()), Some("40001"), "no lost update");
        second.rollback().await.unwrap();
        assert_eq!(node.read(table, "a").await.as_deref(), Some("1+first"));

        // Write skew is allowed: each changes what the other has only read.
        let (mut first, mut second) = (node.begin(RepeatableRead), node.begin(RepeatableRead));
        get(&mut first, table, "b").await;
        get(&mut second, table, "c").await;
        first.write(vec![update(table, "c", "2")]).await.unwrap();
        second.write(vec![update(table, "b", "2")]).await.unwrap();
        first.commit().await.unwrap();
        second.commit().await.unwrap();

        // A row that was only locked has not changed.
        let mut third = node.begin(RepeatableRead);
        get(&mut third, table, "a").await;
        let mut locker = node.begin(ReadCommitted);
        locker.get_for_update(table, b"b", LockStrength::Update, WaitPolicy::Wait).await.unwrap();
        locker.commit().await.unwrap();
        third.modify(table, b"b", append("+third")).await.unwrap();
        third.commit().await.unwrap();
        assert_eq!(node.read(table, "b").await.as_deref(), Some("2+third"));

        // A row deleted since the snapshot is a conflict, a row inserted since is a duplicate.
        let mut fourth = node.begin(RepeatableRead);
        get(&mut fourth, table, "a").await;
        node.store.session().write(vec![delete(table, "a"), insert(table, "new", "1")]).await.unwrap();
        assert_eq!(fourth.write(vec![delete(table, "a")]).await.unwrap_err().sqlstate(), "40001");
        assert!(matches!(fourth.write(vec![insert(table, "new", "2")]).await.unwrap()[..], [WriteResult::Duplicate { .. }]));
    });
}

#[test]
fn read_committed_goes_on_with_the_newest_version() {
    run(|node| async move {
        let table = node.table().await;
        node.store.session().write(vec![put(table, "a", "1")]).await.unwrap();
        let (mut first, mut second) = (node.begin(ReadCommitted), node.begin(ReadCommitted));
        get(&mut second, table, "a").await;
        first.modify(table, b"a", append("+first")).await.unwrap();
        let waiting =
            node.spawn_blocked(async move { (second.modify(table, b"a", append("+second")).await.is_ok(), second) }).await;
        first.commit().await.unwrap();
        let (modified, mut second) = waiting.join().await;
        assert!(modified);
        second.commit().await.unwrap();
        assert_eq!(node.read(table, "a").await.as_deref(), Some("1+first+second"));

        // Who waited for a transaction that gives up goes on with what was there before it; who waited for a deletion finds none.
        let (mut first, mut second) = (node.begin(ReadCommitted), node.begin(ReadCommitted));
        first.write(vec![put(table, "a", "never"), insert(table, "b", "never")]).await.unwrap();
        let waiting = node
            .spawn_blocked(async move {
                second.write(vec![insert(table, "b", "2"), delete(table, "a")]).await.map(|results| (results, second))
            })
            .await;
        first.rollback().await.unwrap();
        let (results, mut second) = waiting.join().await.unwrap();
        assert_eq!(results, [done(None), done(Some("1+first+second"))]);
        let waiting = node.spawn_blocked({
            let mut third = node.store.session();
            async move { third.modify(table, b"a", append("!")).await }
        });
        let waiting = waiting.await;
        second.commit().await.unwrap();
        assert!(matches!(waiting.join().await.unwrap(), Modified::Kept));
        assert_eq!(keys(&mut node.store.session(), table).await, ["b"]);
    });
}

#[test]
fn a_locked_row_is_waited_for_refused_or_skipped() {
    run(|node| async move {
        let table = node.table().await;
        node.store.session().write(vec![put(table, "a", "1")]).await.unwrap();
        let (mut first, mut second) = (node.begin(ReadCommitted), node.begin(ReadCommitted));
        let lock = |wait| (table, b"a", LockStrength::Update, wait);
        let (t, k, s, w) = lock(WaitPolicy::Wait);
        assert_eq!(first.get_for_update(t, k, s, w).await.unwrap(), LockedRow::Row(b"1".to_vec()));
        assert_eq!(first.get_for_update(t, b"none", s, w).await.unwrap(), LockedRow::Gone);
        assert_eq!(second.get_for_update(t, k, s, WaitPolicy::NoWait).await.unwrap_err().sqlstate(), "55P03");
        assert_eq!(second.get_for_update(t, k, s, WaitPolicy::SkipLocked).await.unwrap(), LockedRow::Skipped);
        assert_eq!(node.read(table, "a").await.as_deref(), Some("1"), "readers don't mind");
        let cancel = second.cancel_handle();
        let waiting = node.spawn_blocked(async move { (second.get_for_update(t, k, s, w).await, second) }).await;
        cancel.cancel();
        let (canceled, mut second) = waiting.join().await;
        assert_eq!(canceled.unwrap_err().sqlstate(), "57014");
        let waiting = node.spawn_blocked(async move { second.get_for_update(t, k, s, w).await }).await;
        first.write(vec![put(table, "a", "2")]).await.unwrap();
        drop(first);
        assert_eq!(waiting.join().await.unwrap(), LockedRow::Row(b"1".to_vec()), "a session that goes away rolls back");
    });
}

#[test]
fn of_two_that_wait_for_each_other_one_gets_40p01() {
    run(|node| async move {
        let table = node.table().await;
        node.store.session().write(vec![put(table, "a", "1"), put(table, "b", "1")]).await.unwrap();
        let (mut first, mut second) = (node.begin(ReadCommitted), node.begin(ReadCommitted));
        first.write(vec![update(table, "a", "2")]).await.unwrap();
        second.write(vec![update(table, "b", "2")]).await.unwrap();
        let waiting = node.spawn_blocked(async move { (first.write(vec![update(table, "b", "3")]).await.is_ok(), first) }).await;
        assert_eq!(second.write(vec![update(table, "a", "3")]).await.unwrap_err().sqlstate(), "40P01");
        second.rollback().await.unwrap();
        let (went_on, mut first) = waiting.join().await;
        assert!(went_on);
        first.commit().await.unwrap();
        assert_eq!(node.read(table, "b").await.as_deref(), Some("3"));
    });
}

#[test]
fn savepoints_nest_and_give_their_rows_up() {
    run(|node| async move {
        let table = node.table().await;
        node.store.session().write(vec![put(table, "a", "0"), put(table, "b", "0")]).await.unwrap();
        let mut session = node.begin(ReadCommitted);
        let start = session.savepoint();
        session.write(vec![update(table, "a", "1")]).await.unwrap();
        let one = session.savepoint();
        session.write(vec![update(table, "a", "2"), delete(table, "b"), insert(table, "c", "2")]).await.unwrap();
        let two = session.savepoint();
        session.write(vec![update(table, "a", "3"), insert(table, "b", "3")]).await.unwrap();
        session.rollback_to(&two).await.unwrap();
        assert_eq!(get(&mut session, table, "a").await.as_deref(), Some("2"));
        assert_eq!(keys(&mut session, table).await, ["a", "c"]);
        let waiting = {
            let mut other = node.store.session();
            node.spawn_blocked(async move { other.write(vec![update(table, "b", "other")]).await }).await
        };
        session.rollback_to(&one).await.unwrap();
        assert_eq!(waiting.join().await.unwrap(), [done(Some("0"))], "the row is free before the transaction ends");
        assert_eq!(get(&mut session, table, "a").await.as_deref(), Some("1"));
        session.write(vec![insert(table, "c", "again")]).await.unwrap();
        session.rollback_to(&one).await.unwrap();
        session.rollback_to(&one).await.unwrap();
        session.commit().await.unwrap();
        assert_eq!(node.read(table, "a").await.as_deref(), Some("1"));
        assert_eq!(keys(&mut node.store.session(), table).await, ["a", "b"]);
        let mut session = node.begin(ReadCommitted);
        session.write(vec![update(table, "a", "x")]).await.unwrap();
        session.rollback_to(&start).await.unwrap();
        assert_eq!(session.commit().await.unwrap().scn, None, "nothing was left to commit");
        assert_eq!(node.read(table, "a").await.as_deref(), Some("1"));
    });
}

#[test]
fn rows_of_many_blocks_come_back_whole_and_their_space_too() {
    run(|node| async move {
        let table = node.table().await;
        let big = |byte: u8, bytes: usize| vec![byte; bytes];
        let write = |key: &str, value: Vec<u8>| WriteOp::Put { partition: table, key: key.into(), value };
        let mut session = node.store.session();
        session.write(vec![write("a", big(1, 300_000)), write("edge", big(2, 1978)), write("over", big(3, 1990))]).await.unwrap();
        let mut reader = node.begin(RepeatableRead);
        assert_eq!(reader.get(table, b"a").await.unwrap(), Some(big(1, 300_000)));
        session
            .write(vec![write("a", big(4, 500_000)), write("edge", big(5, 100_000)), write("over", big(6, 10))])
            .await
            .unwrap();
        let mut loser = node.begin(ReadCommitted);
        loser.write(vec![write("a", big(7, 200_000)), write("edge", big(8, 5))]).await.unwrap();
        loser.get_for_update(table, b"over", LockStrength::Update, WaitPolicy::Wait).await.unwrap();
        loser.rollback().await.unwrap();
        reader.new_statement();
        let rows = reader.scan(table, ScanRange::all(), ScanLimit::default()).await.unwrap().rows;
        let values: Vec<_> = rows.into_iter().map(|(_, value)| value).collect();
        assert_eq!(values, [big(1, 300_000), big(2, 1978), big(3, 1990)], "the old snapshot has its large rows");
        reader.commit().await.unwrap();
        let rows = session.get_many(table, vec![b"a".to_vec(), b"edge".to_vec(), b"over".to_vec()]).await.unwrap();
        assert_eq!(rows, [Some(big(4, 500_000)), Some(big(5, 100_000)), Some(big(6, 10))]);
        let grown =
            session.modify(table, b"a", |row| Modify::Put(row.map_or(Vec::new(), |row| row[..250_000].to_vec()))).await.unwrap();
        assert!(
            matches!(grown, Modified::Put { previous: Some(row), value } if row == big(4, 500_000) && value == big(4, 250_000))
        );

        // Replacing a large row for ever does not fill the volume, once no snapshot needs the old ones.
        for round in 0..40 {
            session.write(vec![write("a", big(round, 4 << 20))]).await.unwrap();
            for _ in 0..3 {
                node.engine.txns().housekeep(false).await;
            }
        }
        assert_eq!(session.get(table, b"a").await.unwrap(), Some(big(39, 4 << 20)));
    });
}

#[test]
fn undo_and_deleted_rows_don_t_grow_without_bound() {
    run(|node| async move {
        let table = node.table().await;
        let mut session = node.store.session();
        let value = "x".repeat(500);
        for round in 0..300 {
            let operations = (0..20).map(|key| put(table, &format!("{key}"), &format!("{round}{value}"))).collect();
            session.write(operations).await.unwrap();
            if round % 10 == 0 {
                node.engine.txns().housekeep(false).await;
                node.engine.txns().housekeep(false).await;
            }
        }
        // 6,000 records of more than 500 bytes would fill 400 blocks.
        let blocks = node.store.stats().await.unwrap().undo_blocks;
        assert!(blocks < 100, "{blocks} undo blocks are in use");
        session.write((0..20).map(|key| delete(table, &format!("{key}"))).collect()).await.unwrap();
        let mut reader = node.begin(RepeatableRead);
        get(&mut reader, table, "1").await;
        session.write(vec![put(table, "late", "1"), put(table, "later", "1")]).await.unwrap();
        session.write(vec![delete(table, "late")]).await.unwrap();
        node.engine.txns().housekeep(false).await;
        let report = node.store.vacuum(table).await.unwrap();
        assert_eq!((report.rows_removed, report.rows_kept), (20, 1), "the reader may still need one: {report:?}");
        reader.commit().await.unwrap();
        session.write(vec![put(table, "later", "2")]).await.unwrap();
        node.engine.txns().housekeep(false).await;
        assert_eq!(node.store.vacuum(table).await.unwrap(), VacuumReport { rows_seen: 2, rows_removed: 1, rows_kept: 0 });
        assert_eq!(keys(&mut session, table).await, ["later"]);
    });
}

#[test]
fn a_full_volume_refuses_rows_and_goes_on_with_reads_and_deletes() {
    Disk::of(28 << 20, 8 << 20).run(1, |node| async move {
        let table = node.table().await;
        let mut session = node.store.session();
        let (mut rows, row) = (0, "x".repeat(1500));
        let error = loop {
            match session
                .write((0..20).map(|row_number| insert(table, &format!("{:06}", rows + row_number), &row)).collect())
                .await
            {
                Ok(_) => rows += 20,
                Err(error) => break error,
            }
        };
        assert_eq!(error.sqlstate(), "53100", "{error}");
        assert!(rows > 100);
        assert_eq!(keys(&mut session, table).await.len(), rows, "what was refused has left nothing");
        let large = WriteOp::Put { partition: table, key: b"large".to_vec(), value: vec![1; 1 << 20] };
        assert_eq!(session.write(vec![large]).await.unwrap_err().sqlstate(), "53100");
        assert_eq!(session.write(vec![update(table, "000000", &"y".repeat(1500))]).await.unwrap(), [done(Some(&row))]);
        for first in (0..rows).step_by(20) {
            let deletes: Vec<_> = (first..first + 20).map(|row_number| delete(table, &format!("{row_number:06}"))).collect();
            // On a volume as small as this the reserve is an extent or two: undo may have to be recycled in between.
            if session.write(deletes.clone()).await.is_err() {
                node.engine.txns().housekeep(false).await;
                session.write(deletes).await.unwrap();
            }
        }
        session.write(vec![put(COUNTERS, "12345678", "tick")]).await.unwrap();
        node.engine.txns().housekeep(false).await;
        session.write(vec![put(COUNTERS, "12345678", "tock")]).await.unwrap();
        node.engine.txns().housekeep(false).await;
        assert_eq!(node.store.vacuum(table).await.unwrap().rows_removed, rows as u64);
        session.write((0..20).map(|row_number| insert(table, &format!("{row_number:06}"), &row)).collect()).await.unwrap();
        assert_eq!(keys(&mut session, table).await.len(), 20);
    });
}

#[test]
fn a_long_report_neither_stops_the_writers_nor_is_misled() {
    run(|node| async move {
        let table = node.table().await;
        node.store.session().write(vec![put(table, "a", "old"), put(table, "b", "old")]).await.unwrap();
        let mut report = node.begin(RepeatableRead);
        assert_eq!(get(&mut report, table, "a").await.as_deref(), Some("old"));
        let mut writers = Vec::new();
        for writer in 0..50 {
            let mut session = node.store.session();
            writers.push(node.spawn(async move {
                // Together more transactions than the table has slots.
                for round in 0..100 {
                    session.write(vec![put(table, &format!("{writer}"), &round.to_string())]).await.unwrap();
                }
            }));
        }
        for writer in writers {
            writer.join().await;
        }
        node.store.session().write(vec![put(table, "a", "new")]).await.unwrap();
        assert_eq!(get(&mut report, table, "a").await.as_deref(), Some("old"));
        assert_eq!(keys(&mut report, table).await, ["a", "b"]);
    });
}

/// One client's random life against a map: every read must agree.
#[test]
fn a_transaction_is_a_map_with_undo() {
    run(|node| async move {
        let table = node.table().await;
        let mut committed = std::collections::BTreeMap::<String, String>::new();
        for _ in 0..60 {
            let isolation = if node.below(2) == 0 { ReadCommitted } else { RepeatableRead };
            let mut session = node.begin(isolation);
            let (mut model, mut savepoints) = (committed.clone(), Vec::new());
            for step in 0..node.below(40) {
                let (key, value) = (format!("{}", node.below(12)), format!("{step}{}", "v".repeat(node.below(600) as usize)));
                let existing = model.get(&key).cloned();
                match node.below(9) {
                    0 => savepoints.push((session.savepoint(), model.clone())),
                    1 if !savepoints.is_empty() => {
                        savepoints.truncate(1 + node.below(savepoints.len() as u64) as usize);
                        let (savepoint, then) = savepoints.last().unwrap();
                        session.rollback_to(savepoint).await.unwrap();
                        model = then.clone();
                    }
                    2 | 3 => {
                        assert_eq!(session.write(vec![put(table, &key, &value)]).await.unwrap(), [done(existing.as_deref())]);
                        model.insert(key, value);
                    }
                    4 => match existing {
                        Some(_) => assert!(matches!(
                            session.write(vec![put(table, "0", "lost"), insert(table, &key, &value)]).await.unwrap()[1],
                            WriteResult::Duplicate { .. }
                        )),
                        None => {
                            session.write(vec![insert(table, &key, &value)]).await.unwrap();
                            model.insert(key, value);
                        }
                    },
                    5 | 6 => {
                        session.write(vec![delete(table, &key)]).await.unwrap();
                        model.remove(&key);
                    }
                    7 => {
                        drop(session.get_for_update(table, key.as_bytes(), LockStrength::Share, WaitPolicy::Wait).await.unwrap())
                    }
                    _ => assert_eq!(get(&mut session, table, &key).await, existing),
                }
            }
            assert_eq!(keys(&mut session, table).await, model.keys().cloned().collect::<Vec<_>>());
            if node.below(3) == 0 {
                session.rollback().await.unwrap();
            } else {
                session.commit().await.unwrap();
                committed = model;
            }
            for (key, value) in &committed {
                assert_eq!(node.read(table, key).await.as_ref(), Some(value));
            }
            assert_eq!(keys(&mut node.store.session(), table).await, committed.keys().cloned().collect::<Vec<_>>());
        }
    });
}

#[test]
fn counters_give_every_number_once() {
    run(|node| async move {
        let mut takers = Vec::new();
        for _ in 0..4 {
            let store = node.store.clone();
            takers.push(node.spawn(async move {
                let mut taken = Vec::new();
                for count in 1..20 {
                    let first = store.allocate_range(7, count).await.unwrap();
                    taken.extend(first..first + count);
                }
                taken
            }));
        }
        let mut all = Vec::new();
        for taker in takers {
            all.extend(taker.join().await);
        }
        all.sort_unstable();
        assert_eq!(all, (0..all.len() as u64).collect::<Vec<_>>());
        node.store.set_counter(7, 5).await.unwrap();
        assert_eq!(node.store.read_counter(7).await.unwrap(), 5);
        assert_eq!(node.store.allocate_range(8, 1).await.unwrap(), 0);
    });
}

#[test]
fn a_dropped_partition_is_gone_and_a_new_one_is_empty() {
    run(|node| async move {
        let table = node.table().await;
        let mut session = node.store.session();
        session.write((0..200).map(|key| put(table, &format!("{key}"), &"x".repeat(1000))).collect()).await.unwrap();
        node.store.drop_partition(table).await.unwrap();
        node.store.drop_partition(table).await.unwrap();
        assert_eq!(session.get(table, b"1").await.unwrap_err(), StoreError::NoSuchPartition(table));
        let next = node.table().await;
        assert_ne!(next, table);
        assert_eq!(keys(&mut session, next).await, [""; 0]);
        let version = node.store.catalog_version().await.unwrap();
        session.write(vec![put(next, "a", "1")]).await.unwrap();
        assert_eq!(node.store.catalog_generation(), version);
        session.write(vec![put(PartitionId::CATALOG, "a", "1")]).await.unwrap();
        assert!(node.store.catalog_version().await.unwrap() > version);
    });
}
