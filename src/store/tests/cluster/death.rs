//! A node dies and does not come back for a while: the others use its rows, end its transactions, and it finds its tables
//! clean when it returns. Once with everybody dead at first, which tries every state that a table can be left in; then with
//! survivors that go on.

use super::*;

/// The one that dies, as a number of the volume and of the bed.
const DEAD: NodeId = NodeId(3);

impl Cluster {
    /// Settles what `DEAD` has left, on one of those that live.
    fn settle(&self, node: usize) -> Settled {
        let store = self.members[node].node_store.clone();
        self.run(node, async move { store.settle_dead_node(DEAD).await.unwrap() })
    }

    fn raw_rows(&self, node: usize, table: PartitionId) -> usize {
        let engine = self.members[node].engines[usize::from(table.shard(self.shards).0)].clone();
        self.run(node, async move {
            let tree = engine.txns().tree(table).await.unwrap();
            tree.scan(&crate::btree::KeyRange::all(), 1 << 20).await.unwrap().rows.len()
        })
    }

    fn unfinished(&self, node: usize) -> usize {
        self.members[node].engines.iter().map(|engine| engine.txns().in_use().0).sum()
    }

    fn sum(&self, node: usize, table: PartitionId) -> i64 {
        let mut session = self.begin(node, RepeatableRead);
        self.run(node, async move { sum(&mut session, table).await })
    }
}

#[test]
fn what_a_dead_node_committed_is_there_and_what_it_had_begun_is_gone() {
    let mut cluster = Cluster::new(50);
    let table = cluster.table(0);
    cluster.write(0, vec![put(table, "a", "old"), put(table, "b", "old"), put(table, "c", "old")]);
    let mut open = cluster.begin(2, ReadCommitted);
    cluster.run(2, async move {
        open.write(vec![put(table, "a", "never"), delete(table, "b"), insert(table, "d", "never")]).await.unwrap();
        open.write((0..300).map(|key| put(table, &format!("n{key}"), &"x".repeat(1500))).collect()).await.unwrap();
        std::mem::forget(open);
    });
    // Makes the log durable up to here.
    cluster.write(2, vec![put(table, "c", "new")]);
    cluster.power_loss();
    cluster.start_nodes([1, 2]);
    for node in 0..2 {
        assert_eq!(cluster.keys(node, table), ["a", "b", "c"]);
        assert_eq!(cluster.read(node, table, "a").as_deref(), Some("old"));
        assert_eq!(cluster.read(node, table, "c").as_deref(), Some("new"), "known by its slot alone: the stamp is lost");
    }
    cluster.write(1, vec![update(table, "a", "newer"), insert(table, "d", "newer")]);
    assert!(cluster.raw_rows(0, table) > 300);
    assert_eq!(cluster.settle(0), Settled { undone: 1, ..Settled::default() });
    assert_eq!(cluster.raw_rows(0, table), 4, "not a trace is left");
    assert_eq!((cluster.settle(1), cluster.settle(0)), (Settled::default(), Settled::default()));
    assert_eq!(cluster.read(0, table, "a").as_deref(), Some("newer"));
    cluster.power_loss();
    cluster.start();
    assert_eq!(cluster.unfinished(2), 0, "it finds nothing to do when it comes back");
    cluster.write(2, vec![put(table, "b", "again")]);
    assert_eq!(cluster.keys(2, table), ["a", "b", "c", "d"]);
}

#[test]
fn a_settling_that_is_broken_off_anywhere_is_taken_up_by_another_node() {
    let mut undone = 0;
    for seed in 51..54 {
        let mut cluster = Cluster::with_shards(seed, 2);
        let store = cluster.members[0].store.clone();
        let tables = cluster.run(0, async move {
            [store.create_partition(Placement::Any).await.unwrap(), store.create_partition(Placement::Any).await.unwrap()]
        });
        let rows = move |value: &'static str| {
            (0..60).flat_map(move |key| tables.map(|table| put(table, &format!("{key}"), value))).collect::<Vec<_>>()
        };
        cluster.write(0, rows("old"));
        for part in 0..12 {
            let mut open = cluster.begin(2, ReadCommitted);
            cluster.run(2, async move {
                open.write(rows("never")[part * 10..][..10].to_vec()).await.unwrap();
                std::mem::forget(open);
            });
        }
        // In both shards, durable.
        cluster.write(2, tables.map(|table| put(table, "z", "")).to_vec());
        for round in 0..4u64 {
            cluster.power_loss();
            cluster.start_nodes([1, 2]);
            let store = cluster.members[round as usize % 2].node_store.clone();
            let _ = cluster.spawn(round as usize % 2, async move { store.settle_dead_node(DEAD).await.is_ok() });
            cluster.world.run_for(Duration::from_micros(400 + (seed * 7 + round) * 331 % 3000));
            assert_eq!(cluster.read(1, tables[round as usize % 2], "7").as_deref(), Some("old"), "seed {seed}");
        }
        // What is still under way on the one is done once more by the other at the same time.
        let store = cluster.members[1].node_store.clone();
        let other = cluster.spawn(1, async move { store.settle_dead_node(DEAD).await.unwrap() });
        undone += cluster.settle(0).undone;
        cluster.wait(&[other]);
        assert_eq!(cluster.settle(0), Settled::default());
        cluster.power_loss();
        cluster.start();
        assert_eq!(cluster.unfinished(2), 0);
        for table in tables {
            assert_eq!((cluster.keys(2, table).len(), cluster.raw_rows(0, table)), (61, 61));
            assert!((0..60).all(|_| cluster.read(2, table, "59").as_deref() == Some("old")));
        }
    }
    assert!(undone > 0, "the crashes came too late to leave anything");
}

#[test]
pub(super) fn money_of_three_nodes_is_still_there_with_two() {
    for seed in 55..58 {
        let mut cluster = Cluster::new(seed);
        let table = cluster.table(0);
        cluster.write(1, accounts(table));
        for round in 0..2 {
            for client in 0..6usize {
                let member = cluster.members[client % 3].clone();
                let _ = cluster
                    .spawn(client % 3, async move { transfers(member.store, seed * 100 + client as u64, table, 500).await });
            }
            cluster.world.run_for(Duration::from_millis(20 + seed % 7));
            cluster.power_loss();
            cluster.start_nodes([1, 2]);
            let clients: Vec<_> = (0..4usize)
                .map(|client| {
                    let store = cluster.members[client % 2].store.clone();
                    cluster.spawn(client % 2, transfers(store, seed * 1000 + client as u64, table, 10))
                })
                .collect();
            assert_eq!(cluster.sum(0, table), 100 * ACCOUNTS as i64, "seed {seed}");
            cluster.settle(round);
            assert_eq!(cluster.sum(1, table), 100 * ACCOUNTS as i64, "seed {seed}");
            cluster.wait(&clients);
            cluster.power_loss();
            cluster.start();
            assert_eq!(cluster.sum(2, table), 100 * ACCOUNTS as i64, "seed {seed}");
        }
    }
}

async fn transfers(store: Store, seed: u64, table: PartitionId, count: usize) {
    let dice = Dice(Cell::new(seed + 1));
    for _ in 0..count {
        match transfer(&store, &|bound| dice.below(bound), table).await {
            Ok(()) | Err(StoreError::SerializationFailure { .. } | StoreError::DeadlockDetected) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Power goes at every stage of commits over two shards; the survivors find out from the slots, in whichever shard they are
/// asked, and whoever settles finds the same.
#[test]
fn a_dead_nodes_commit_over_two_shards_is_judged_by_all_its_slots() {
    let mut settled = Settled::default();
    for seed in 60..66 {
        let mut cluster = Cluster::with_shards(seed, 2);
        let store = cluster.members[0].store.clone();
        let (left, right) = cluster.run(0, async move {
            (store.create_partition(Placement::Any).await.unwrap(), store.create_partition(Placement::Any).await.unwrap())
        });
        let rows = move |client: usize| vec![(left, vec![b'a' + client as u8]), (right, vec![b'a' + client as u8])];
        for row in (0..6).flat_map(rows) {
            cluster.write(0, vec![WriteOp::Put { partition: row.0, key: row.1, value: b"0".to_vec() }]);
        }
        for round in 0..4u64 {
            let acknowledged: Rc<RefCell<[i64; 6]>> = Rc::default();
            let before = both(&cluster, 0, &rows);
            for client in 0..6usize {
                let (store, acknowledged) = (cluster.members[2].store.clone(), acknowledged.clone());
                let _ = cluster.spawn(2, async move {
                    loop {
                        let add_one = |_: usize, row: Option<&[u8]>| Modify::Put((amount(row) + 1).to_string().into_bytes());
                        let mut rows = rows(client);
                        rows.rotate_left(client % 2);
                        store.session().modify_many(rows, Box::new(add_one)).await.unwrap();
                        acknowledged.borrow_mut()[client] += 1;
                    }
                });
            }
            cluster.world.run_until(|| acknowledged.borrow().iter().sum::<i64>() > 6).unwrap();
            cluster.world.run_for(Duration::from_micros((seed * 8 + round) * 37 % 1000));
            cluster.power_loss();
            cluster.start_nodes([1, 2]);
            let seen = both(&cluster, 1, &rows);
            for client in 0..6 {
                let least = before[client] + acknowledged.borrow()[client];
                assert!(seen[client] >= least, "{} of {least} of client {client} (seed {seed})", seen[client]);
            }
            let more = cluster.settle(0);
            settled.committed += more.committed;
            settled.rolled_back += more.rolled_back;
            assert_eq!(both(&cluster, 0, &rows), seen, "round {round} with seed {seed}");
            cluster.power_loss();
            cluster.start();
            assert_eq!(both(&cluster, 2, &rows), seen, "round {round} with seed {seed}");
        }
    }
    assert!(settled.committed > 0 && settled.rolled_back > 0, "the power went at other moments: {settled:?}");
}

/// Each client's amount, the same in both tables.
fn both(cluster: &Cluster, node: usize, rows: &dyn Fn(usize) -> Vec<(PartitionId, Vec<u8>)>) -> Vec<i64> {
    let amounts = (0..6).map(|client| {
        let [(left, key), (right, _)] = rows(client).try_into().unwrap();
        let mut session = cluster.members[node].store.session();
        let both = cluster.run(node, async move {
            session.begin(RepeatableRead, true).unwrap();
            (session.get(left, &key).await.unwrap(), session.get(right, &key).await.unwrap())
        });
        assert_eq!(both.0, both.1, "client {client}");
        amount(both.0.as_deref())
    });
    amounts.collect()
}

impl Cluster {
    /// Lets a node die, and the others enter the view without it, recover its blocks and settle its transactions.
    fn lose(&mut self, dead: NodeId) {
        self.world.crash(HostId(u32::from(dead.0)));
        let survivors: Vec<usize> = (0..self.members.len()).filter(|node| self.members[*node].store.node_id() != dead).collect();
        let nodes: Vec<NodeId> = survivors.iter().map(|node| self.members[*node].store.node_id()).collect();
        let epoch = Epoch(self.life + 1);
        let map = MastershipMap::new(epoch, &nodes, VIRTUAL_NODES, BTreeMap::new()).unwrap();
        let each_shard = || survivors.iter().flat_map(|node| (0..self.shards).map(move |shard| (*node, usize::from(shard))));
        let entered: Vec<_> = each_shard()
            .map(|(node, shard)| {
                let (kept, nodes, map) = (self.members[node].kept.clone(), nodes.clone(), map.clone());
                self.spawn_in(node, shard, async move {
                    let Kept { gcs, peers, ges, interconnect, .. } = &kept[shard];
                    gcs.enter(Rc::new(map)).await;
                    peers.enter(&nodes);
                    ges.enter(epoch, &nodes);
                    interconnect.set_epoch(epoch);
                })
            })
            .collect();
        self.wait(&entered);
        let recovered: Vec<_> = each_shard()
            .map(|(node, shard)| {
                let kept = self.members[node].kept.clone();
                self.spawn_in(node, shard, async move {
                    let Kept { gcs, peers, ges, volume, .. } = &kept[shard];
                    gcs.go(vec![volume.geometry().redo_area(dead, ShardId(shard as u8))], volume.file());
                    peers.go();
                    ges.go();
                    ges.rebuilt().await;
                    gcs.recovered().await.unwrap();
                })
            })
            .collect();
        let settled = self.settle(0);
        self.settled.committed += settled.committed;
        self.settled.undone += settled.undone;
        self.wait(&recovered);
    }

    fn spawn_in<T: 'static>(&self, node: usize, shard: usize, work: impl Future<Output = T> + 'static) -> Rc<Cell<Option<T>>> {
        let output = Rc::new(Cell::new(None));
        let slot = output.clone();
        let reactor = self.members[node].engines[shard].txns().reactor();
        reactor.spawn(Class::Normal, "test", async move { slot.set(Some(work.await)) });
        output
    }
}

/// A node dies in the middle of everything, while the others work on its rows and wait for its transactions.
#[test]
pub(super) fn survivors_of_a_node_lose_nothing_and_wait_for_nobody() {
    let mut undone = 0;
    for seed in 70..74 {
        let mut cluster = Cluster::with_shards(seed, 2);
        // One for each survivor to share with the node that dies: waits between survivors belong to the lock service.
        let tables = [cluster.table(0), cluster.table(0)];
        for table in tables {
            cluster.write(1, accounts(table));
        }
        cluster.write(0, tables.map(|table| put(table, "x", "0")).to_vec());
        let mut old = cluster.begin(0, RepeatableRead);
        let old = cluster.run(0, async move {
            assert_eq!(get(&mut old, tables[0], "x").await.as_deref(), Some("0"));
            old
        });
        let mut holder = cluster.begin(2, ReadCommitted);
        cluster.run(2, async move {
            holder.write(vec![put(tables[0], "x", "never"), put(tables[1], "held", "never")]).await.unwrap();
            std::mem::forget(holder);
        });
        let mut mine = cluster.begin(1, ReadCommitted);
        let mine = cluster.run(1, async move {
            mine.write(vec![put(tables[1], "mine", "kept")]).await.unwrap();
            mine
        });
        let mut waiter = cluster.members[0].store.session();
        let waiter = cluster.spawn_blocked(0, async move { waiter.modify(tables[0], b"x", append("+waited")).await.unwrap() });

        let acknowledged = Rc::new(Cell::new(0));
        let counted = acknowledged.clone();
        let store = cluster.members[2].store.clone();
        cluster.write(2, tables.map(|table| put(table, "n", "0")).to_vec());
        let _ = cluster.spawn(2, async move {
            let add_one = |_: usize, row: Option<&[u8]>| Modify::Put((amount(row) + 1).to_string().into_bytes());
            loop {
                let rows = tables.map(|table| (table, b"n".to_vec())).to_vec();
                store.session().modify_many(rows, Box::new(add_one)).await.unwrap();
                counted.set(counted.get() + 1);
            }
        });
        let clients: Vec<_> = (0..8usize)
            .map(|client| {
                let (node, table) = [(0, tables[0]), (2, tables[0]), (1, tables[1]), (2, tables[1])][client % 4];
                let store = cluster.members[node].store.clone();
                (node, cluster.spawn(node, transfers(store, seed * 100 + client as u64, table, 40)))
            })
            .collect();
        cluster.world.run_until(|| acknowledged.get() > 3).unwrap();
        cluster.world.run_for(Duration::from_micros(seed * 391 % 5000));
        cluster.lose(DEAD);
        assert!(matches!(&cluster.wait(&[waiter])[0], Modified::Put { value, .. } if value == b"0+waited"), "seed {seed}");
        let survivors: Vec<_> = clients.into_iter().filter(|(node, _)| *node != 2).map(|(_, client)| client).collect();
        cluster.wait(&survivors);
        for (table, node) in tables.into_iter().flat_map(|table| [(table, 0), (table, 1)]) {
            assert_eq!(cluster.sum_of_accounts(node, table), 100 * ACCOUNTS as i64, "seed {seed}");
            let counted: i64 = cluster.read(node, table, "n").unwrap().parse().unwrap();
            assert!(counted >= acknowledged.get(), "{counted} of {} (seed {seed})", acknowledged.get());
            assert_eq!(cluster.read(node, tables[0], "n"), cluster.read(node, tables[1], "n"), "seed {seed}");
        }
        assert_eq!(cluster.read(1, tables[1], "held"), None);
        let (mut old, mut mine) = (old, mine);
        cluster.run(0, async move {
            assert_eq!(get(&mut old, tables[0], "x").await.as_deref(), Some("0"), "its snapshot stands");
            old.commit().await.unwrap();
        });
        cluster.run(1, async move { mine.commit().await.unwrap() });
        assert_eq!(cluster.read(0, tables[1], "mine").as_deref(), Some("kept"));
        cluster.power_loss();
        cluster.start();
        assert_eq!(cluster.unfinished(2), 0);
        assert_eq!(cluster.read(2, tables[0], "x").as_deref(), Some("0+waited"));
        undone += cluster.settled.undone;
    }
    assert!(undone > 4, "the node had more open than what was held: {undone}");
}

/// A long report holds a snapshot; meanwhile the node that dies uses all of its slots again and keeps old outcomes in memory.
#[test]
fn an_outcome_that_died_with_its_node_is_not_guessed() {
    let mut cluster = Cluster::new(80);
    let table = cluster.table(0);
    // More rows than a commit stamps: the last ones name their transaction.
    let rows = |value: &str| (0..80).map(|key| put(table, &format!("{key:02}"), value)).collect::<Vec<_>>();
    cluster.write(0, rows("old"));
    let reports = [0, 1].map(|node| {
        let mut report = cluster.begin(node, RepeatableRead);
        cluster.run(node, async move {
            assert_eq!(get(&mut report, table, "00").await.as_deref(), Some("old"));
            report
        })
    });
    cluster.write(2, rows("new"));
    let mut session = cluster.members[2].store.session();
    cluster.run(2, async move {
        for _ in 0..crate::txn::slot::SLOTS_MAX + 8 {
            session.write(vec![put(table, "n", "1")]).await.unwrap();
        }
    });
    let [mut told, mut untold] = reports;
    let told = cluster.run(0, async move {
        assert_eq!(get(&mut told, table, "79").await.as_deref(), Some("old"), "the node remembers");
        told
    });
    cluster.lose(DEAD);
    let mut told = told;
    cluster.run(0, async move { assert_eq!(get(&mut told, table, "79").await.as_deref(), Some("old"), "told before") });
    let refused = cluster.run(1, async move { untold.get(table, b"79").await });
    assert_eq!(refused.unwrap_err().sqlstate(), "72000");
    assert_eq!(cluster.read(1, table, "79").as_deref(), Some("new"), "for whoever begins now it is certain");
    cluster.write(1, vec![update(table, "79", "newer")]);
}

impl Cluster {
    /// Only the rows that transfers work on.
    fn sum_of_accounts(&self, node: usize, table: PartitionId) -> i64 {
        let mut session = self.begin(node, RepeatableRead);
        self.run(node, async move {
            let mut sum = 0;
            for account in 0..ACCOUNTS {
                sum += amount(session.get(table, account.to_string().as_bytes()).await.unwrap().as_deref());
            }
            sum
        })
    }
}
