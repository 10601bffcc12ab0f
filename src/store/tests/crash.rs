//! A node that ends without a farewell, and comes back.

use std::cell::RefCell;
use std::rc::Rc;

use super::bed::{Disk, delete, get, insert, keys, put};
use super::*;

#[test]
fn after_a_crash_the_acknowledged_is_there_and_nothing_else() {
    let disk = Disk::new();
    let (table, big) = disk.run(1, |node| async move {
        let table = node.table().await;
        let mut session = node.store.session();
        session.write(vec![put(table, "a", "1"), put(table, "b", "1"), put(table, "c", "1")]).await.unwrap();
        session.write(vec![put(table, "a", "2"), delete(table, "b")]).await.unwrap();
        let mut open = node.begin(ReadCommitted);
        open.write(vec![put(table, "a", "never"), insert(table, "d", "never"), delete(table, "c")]).await.unwrap();
        let big = node.table().await;
        open.write((0..300).map(|key| put(big, &format!("{key}"), &"x".repeat(1500))).collect()).await.unwrap();
        // Another's commit makes the log durable up to here: what is open is in it.
        session.write(vec![put(big, "after", "1")]).await.unwrap();
        std::mem::forget(open);
        (table, big)
    });
    disk.run(2, move |node| async move {
        assert_eq!(node.read(table, "a").await.as_deref(), Some("2"), "read through to the predecessor at once");
        assert_eq!(keys(&mut node.store.session(), table).await, ["a", "c"]);
        assert_eq!(keys(&mut node.store.session(), big).await, ["after"]);
        let mut session = node.store.session();
        session.write(vec![put(table, "c", "3"), insert(table, "d", "3")]).await.unwrap();
        while node.store.stats().await.unwrap().transactions_active > 0 {
            node.reactor.sleep(std::time::Duration::from_millis(1)).await;
        }
        // Rolled back for good: even a look at everything there is finds no trace.
        let view = crate::txn::View { snapshot: crate::ids::Scn::MAX, own: None };
        let tree = node.engine.txns().tree(big).await.unwrap();
        let rows = tree.scan(&crate::btree::KeyRange::all(), 1 << 20).await.unwrap().rows;
        assert_eq!(rows.len(), 1, "the rolled back inserts have left no cells");
        assert!(node.engine.txns().get(&tree, b"after", view, &crate::txn::Cancel::never()).await.unwrap().is_some());
    });
    disk.run(3, move |node| async move {
        assert_eq!(node.read(table, "c").await.as_deref(), Some("3"));
        assert_eq!(node.read(table, "d").await.as_deref(), Some("3"));
        assert_eq!(get(&mut node.store.session(), table, "a").await.as_deref(), Some("2"));
    });
}

#[test]
fn money_survives_crashes_in_the_middle_of_everything() {
    let disk = Disk::new();
    let table = disk.run(1, |node| async move { open_accounts(&node).await });
    let mut acknowledged = 0;
    for life in 2..8 {
        acknowledged = disk.run(life, move |node| async move {
            let mut session = node.store.session();
            assert_eq!(sum(&mut session, table).await, 100 * ACCOUNTS as i64, "in life {life}");
            let counted = session
                .get(COUNTERS, &1u64.to_be_bytes())
                .await
                .unwrap()
                .map_or(0, |row| u64::from_le_bytes(row.try_into().unwrap()));
            assert!(counted >= acknowledged, "{acknowledged} were acknowledged, {counted} are there");
            let acknowledged = Rc::new(RefCell::new(counted));
            for _ in 0..6 {
                let (client, acknowledged) = (node.clone(), acknowledged.clone());
                node.spawn(async move {
                    loop {
                        match transfer(&client.store, &|bound| client.below(bound), table).await {
                            Ok(()) | Err(StoreError::SerializationFailure { .. } | StoreError::DeadlockDetected) => {}
                            Err(error) => panic!("{error}"),
                        }
                        let number = client.store.allocate_range(1, 1).await.unwrap();
                        let mut acknowledged = acknowledged.borrow_mut();
                        *acknowledged = (*acknowledged).max(number + 1);
                    }
                });
            }
            // The end comes after some acknowledgements, in the middle of whatever is under way.
            let enough = counted + 1 + node.below(40);
            while *acknowledged.borrow() < enough {
                node.reactor.yield_now().await;
            }
            for _ in 0..node.below(20) {
                node.reactor.yield_now().await;
            }
            *acknowledged.borrow()
        });
    }
}
