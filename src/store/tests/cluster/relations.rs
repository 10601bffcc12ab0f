//! Locks of tables that nodes keep: taken without a trip, given up when somebody alters the table elsewhere.

use super::*;

fn relation(id1: u64) -> LockName {
    LockName { space: LockSpace::Relation, id1, id2: 0 }
}

/// A table and the name of its lock, which are not of the same shard where there are two.
fn table_of_other_shard(cluster: &Cluster) -> (PartitionId, LockName) {
    let table = cluster.table(0);
    let shards = cluster.shards;
    (table, relation(100 + u64::from(table.shard(shards).0) + 1))
}

/// What became of a lock, once it is known, and whose it is.
type Altering = Rc<Cell<Option<(Result<(), StoreError>, Session)>>>;

impl Cluster {
    fn stats(&self, node: usize) -> StoreStats {
        let store = self.members[node].store.clone();
        self.run(node, async move { store.stats().await.unwrap() })
    }

    /// Messages of the lock service that all nodes have sent.
    fn lock_messages(&self) -> u64 {
        let kept = self.members.iter().flat_map(|member| member.kept.iter());
        kept.map(|Kept { interconnect, .. }| interconnect.stats().sent[Service::Ges.index()].messages).sum()
    }

    /// Begins on a node, locks the relations for writing rows, and makes some changes.
    fn writing(&self, node: usize, names: Vec<LockName>, operations: Vec<WriteOp>) -> Session {
        let mut session = self.begin(node, ReadCommitted);
        self.run(node, async move {
            for name in names {
                session.lock(name, LockMode::ConcurrentWrite, WaitPolicy::Wait).await.unwrap();
            }
            if !operations.is_empty() {
                session.write(operations).await.unwrap();
            }
            session
        })
    }

    fn commit(&self, node: usize, mut session: Session) {
        self.run(node, async move { session.commit().await.unwrap() });
    }

    /// Starts a lock in a transaction of its own; what became of it and the session come back.
    fn altering(&self, node: usize, name: LockName, wait: WaitPolicy) -> Altering {
        let mut session = self.begin(node, ReadCommitted);
        self.spawn(node, async move { (session.lock(name, LockMode::Exclusive, wait).await, session) })
    }
}

fn is_there<T>(output: &Rc<Cell<Option<T>>>) -> bool {
    let value = output.take();
    let there = value.is_some();
    output.set(value);
    there
}

#[test]
fn a_writing_transaction_locks_its_tables_without_a_trip_or_a_message() {
    const TRANSACTIONS: u64 = 30;
    let cluster = Cluster::new(40);
    let table = cluster.table(0);
    let names: Vec<LockName> = (1..=4).map(relation).collect();
    let transaction = |node: usize, round: u64| {
        let key = format!("{node}-{round}");
        let session = cluster.writing(node, names.clone(), vec![put(table, &key, "x")]);
        cluster.commit(node, session);
    };
    (0..3).for_each(|node| transaction(node, 0));
    let (messages, before) = (cluster.lock_messages(), (0..3).map(|node| cluster.stats(node)).collect::<Vec<_>>());
    for round in 1..=TRANSACTIONS {
        (0..3).for_each(|node| transaction(node, round));
    }
    assert_eq!(cluster.lock_messages() - messages, 0, "for {} transactions", 3 * TRANSACTIONS);
    for (node, before) in before.iter().enumerate() {
        let stats = cluster.stats(node);
        assert_eq!(before.lock_trips, 4, "the first on a node asks a shard for each table");
        assert_eq!((stats.lock_trips - before.lock_trips, stats.locks_at_gate), (0, 4 * TRANSACTIONS), "{stats:?}");
    }
}

#[test]
fn an_alteration_waits_for_the_writers_of_all_nodes_and_later_ones_wait_for_it() {
    for seed in 41..45 {
        let cluster = Cluster::with_shards(seed, 1 + (seed % 2) as u8);
        let (table, name) = table_of_other_shard(&cluster);
        // Everybody keeps the lock.
        for node in 0..3 {
            let session = cluster.writing(node, vec![name], vec![put(table, "warm", "1")]);
            cluster.commit(node, session);
        }
        // The last one's table was opened by an earlier transaction: these two come in by themselves.
        let trips = (cluster.stats(1).lock_trips, cluster.stats(2).lock_trips);
        let second = cluster.writing(1, vec![name], vec![put(table, "second", "1")]);
        let third = cluster.writing(2, vec![name], vec![put(table, "third", "1")]);
        assert_eq!((cluster.stats(1).lock_trips, cluster.stats(2).lock_trips), trips);
        let refused = cluster.wait(&[cluster.altering(0, name, WaitPolicy::NoWait)]).pop().unwrap();
        assert_eq!(refused.0.unwrap_err().sqlstate(), "55P03", "they are inside");
        drop(refused.1);

        let alter = cluster.altering(0, name, WaitPolicy::Wait);
        cluster.world.run_for(Duration::from_millis(50));
        assert!(!is_there(&alter));
        let mut late = cluster.begin(1, ReadCommitted);
        let store = cluster.members[1].store.clone();
        let late = cluster.spawn(1, async move {
            late.lock(name, LockMode::ConcurrentWrite, WaitPolicy::Wait).await.unwrap();
            // As the SQL layer does: first the lock, then a look at the version.
            let generation = store.catalog_generation();
            late.commit().await.unwrap();
            generation
        });
        cluster.world.run_for(Duration::from_millis(50));
        assert!(!is_there(&late), "nobody overtakes the alteration");
        cluster.commit(1, second);
        cluster.world.run_for(Duration::from_millis(300));
        assert!(!is_there(&alter), "node 3 still writes");
        let generation = cluster.version(1);
        cluster.commit(2, third);
        let (done, mut session) = cluster.wait(&[alter]).pop().unwrap();
        done.unwrap();
        assert!(!is_there(&late));
        cluster.run(0, async move {
            session.write(vec![put(PartitionId::CATALOG, "t", "altered")]).await.unwrap();
            session.commit().await.unwrap();
        });
        let seen = cluster.wait(&[late]).pop().unwrap();
        assert!(seen != generation, "who comes after the alteration knows that the catalog has changed (seed {seed})");
    }
}

#[test]
fn a_lock_that_a_node_only_keeps_is_no_reason_to_refuse() {
    let cluster = Cluster::new(45);
    let name = relation(9);
    for node in 1..3 {
        let session = cluster.writing(node, vec![name], Vec::new());
        cluster.commit(node, session);
    }
    let (done, session) = cluster.wait(&[cluster.altering(0, name, WaitPolicy::NoWait)]).pop().unwrap();
    done.unwrap();
    cluster.commit(0, session);
}

#[test]
fn a_writer_who_alters_his_table_does_not_wait_for_himself_and_keeps_it_until_his_end() {
    let cluster = Cluster::with_shards(46, 2);
    let (table, name) = table_of_other_shard(&cluster);
    for node in 0..2 {
        let session = cluster.writing(node, vec![name], Vec::new());
        cluster.commit(node, session);
    }
    let mut own = cluster.writing(0, vec![name], vec![put(table, "own", "1")]);
    let own = cluster.run(0, async move {
        own.lock(name, LockMode::Exclusive, WaitPolicy::NoWait).await.unwrap();
        own.lock(name, LockMode::ConcurrentWrite, WaitPolicy::NoWait).await.unwrap();
        own
    });
    let other = cluster.altering(1, name, WaitPolicy::Wait);
    cluster.world.run_for(Duration::from_millis(50));
    assert!(!is_there(&other));
    // A client that goes away: its changes are undone before anybody gets the table.
    drop(own);
    let (done, session) = cluster.wait(&[other]).pop().unwrap();
    done.unwrap();
    assert_eq!(cluster.read(1, table, "own"), None);
    cluster.commit(1, session);

    // The same for one who has never asked a shard for the lock.
    let session = cluster.writing(0, vec![name], Vec::new());
    cluster.commit(0, session);
    let trips = cluster.stats(0).lock_trips;
    let gone = cluster.writing(0, vec![name], vec![put(table, "gone", "1")]);
    assert_eq!(cluster.stats(0).lock_trips, trips);
    let other = cluster.altering(1, name, WaitPolicy::Wait);
    cluster.world.run_for(Duration::from_millis(50));
    assert!(!is_there(&other));
    drop(gone);
    let (done, session) = cluster.wait(&[other]).pop().unwrap();
    done.unwrap();
    assert_eq!(cluster.read(1, table, "gone"), None);
    cluster.commit(1, session);
}

/// One waits for a row, the other for the table that the first has come in to by itself: in one shard, and with the row
/// and the table in different shards.
#[test]
fn a_circle_of_an_alteration_and_a_row_on_two_nodes_is_broken() {
    for (seed, shards) in [(47, 1), (48, 2), (49, 2)] {
        let cluster = Cluster::with_shards(seed, shards);
        let (table, name) = table_of_other_shard(&cluster);
        cluster.write(0, vec![put(table, "a", "1")]);
        for node in 0..2 {
            let session = cluster.writing(node, vec![name], Vec::new());
            cluster.commit(node, session);
        }
        let trips = cluster.stats(0).lock_trips;
        let mut inside = cluster.writing(0, vec![name], Vec::new());
        assert_eq!(cluster.stats(0).lock_trips, trips);
        let mut alters = cluster.writing(1, Vec::new(), vec![update(table, "a", "2")]);
        let finish = async |mut session: Session, done: Result<(), StoreError>| {
            match &done {
                Ok(()) => drop(session.commit().await.unwrap()),
                Err(_) => session.rollback().await.unwrap(),
            }
            done.map_err(|error| error.sqlstate())
        };
        let row = cluster.spawn(0, async move {
            let done = inside.write(vec![update(table, "a", "3")]).await.map(|_| ());
            finish(inside, done).await
        });
        let alter = cluster.spawn(1, async move {
            let done = alters.lock(name, LockMode::Exclusive, WaitPolicy::Wait).await;
            finish(alters, done).await
        });
        let outcomes = cluster.wait(&[row, alter]);
        assert!(outcomes.contains(&Ok(())) && outcomes.contains(&Err("40P01")), "{outcomes:?} with {shards} shards");
    }
}

/// A point read outside a transaction, under the table's lock if that is to be had at the gate.
fn read_under_lock(cluster: &Cluster, node: usize, name: LockName, table: PartitionId, key: &str) -> bool {
    let (mut session, key) = (cluster.members[node].store.session(), key.as_bytes().to_vec());
    cluster.run(node, async move {
        session.new_statement();
        let locked = session.try_lock_for_statement(name);
        session.get(table, &key).await.unwrap();
        session.end_statement();
        locked
    })
}

#[test]
fn who_only_reads_keeps_an_alteration_waiting_without_a_trip() {
    const READS: u64 = 20;
    for shards in [1, 2] {
        let cluster = Cluster::with_shards(50, shards);
        let (table, name) = table_of_other_shard(&cluster);
        assert!(!read_under_lock(&cluster, 1, name, table, "a"), "the node has not got the lock yet");
        let session = cluster.writing(1, vec![name], vec![put(table, "a", "1")]);
        cluster.commit(1, session);
        let (before, messages) = (cluster.stats(1), cluster.lock_messages());
        (0..READS).for_each(|_| assert!(read_under_lock(&cluster, 1, name, table, "a")));
        // Transactions that read, and then write: the stronger lock costs no trip either.
        for round in 0..READS {
            let mut session = cluster.begin(1, ReadCommitted);
            cluster.run(1, async move {
                session.lock(name, LockMode::ConcurrentRead, WaitPolicy::Wait).await.unwrap();
                session.lock(name, LockMode::ConcurrentWrite, WaitPolicy::Wait).await.unwrap();
                session.write(vec![put(table, &format!("r{round}"), "1")]).await.unwrap();
                session.commit().await.unwrap();
            });
        }
        let stats = cluster.stats(1);
        assert_eq!((stats.lock_trips - before.lock_trips, stats.locks_at_gate - before.locks_at_gate), (0, 2 * READS));
        assert_eq!(cluster.lock_messages(), messages);

        // One statement outside a transaction that is still at it: alterations elsewhere wait for its end.
        let mut reader = cluster.members[1].store.session();
        reader.new_statement();
        assert!(reader.try_lock_for_statement(name));
        let refused = cluster.wait(&[cluster.altering(0, name, WaitPolicy::NoWait)]).pop().unwrap();
        assert_eq!(refused.0.unwrap_err().sqlstate(), "55P03");
        drop(refused.1);
        let alter = cluster.altering(0, name, WaitPolicy::Wait);
        cluster.world.run_for(Duration::from_millis(300));
        assert!(!is_there(&alter));
        assert!(!read_under_lock(&cluster, 1, name, table, "a"), "nobody overtakes the alteration");
        reader.end_statement();
        let (done, session) = cluster.wait(&[alter]).pop().unwrap();
        done.unwrap();
        cluster.commit(0, session);

        // And for one that was given up half way, until the session does something else or goes.
        let session = cluster.writing(1, vec![name], Vec::new());
        cluster.commit(1, session);
        reader.new_statement();
        assert!(reader.try_lock_for_statement(name));
        let alter = cluster.altering(0, name, WaitPolicy::Wait);
        cluster.world.run_for(Duration::from_millis(50));
        assert!(!is_there(&alter));
        drop(reader);
        let (done, session) = cluster.wait(&[alter]).pop().unwrap();
        done.unwrap();
        cluster.commit(0, session);
    }
}
