//! The catalog's version: what every node may rely on without a message, and what becomes of it.

use super::*;
use crate::fusion::ges::Resource;
use crate::store::locks::CATALOG_VERSION;

impl Cluster {
    pub(super) fn version(&self, node: usize) -> u64 {
        let store = self.members[node].store.clone();
        self.run(node, async move { store.catalog_version().await.unwrap() })
    }

    /// What the node relies on without asking.
    fn relied_on(&self, node: usize) -> u64 {
        self.members[node].store.catalog_generation()
    }

    /// The lock services of the others enter the next epoch.
    fn go_on_without(&self, lost: usize) {
        let epoch = Epoch(self.life + 1);
        let (members, others): (Vec<NodeId>, Vec<_>) =
            (0..3).filter(|node| *node != lost).map(|node| (NodeId(node as u8 + 1), self.members[node].kept.clone())).unzip();
        for Kept { interconnect, ges, .. } in others.iter().flat_map(|kept| kept.iter()) {
            ges.enter(epoch, &members);
            interconnect.set_epoch(epoch);
        }
        others.iter().flat_map(|kept| kept.iter()).for_each(|kept| kept.ges.go());
    }

    fn change(&self, node: usize, number: usize) -> Session {
        let mut session = self.begin(node, ReadCommitted);
        self.run(node, async move {
            session.lock(CATALOG, LockMode::Exclusive, WaitPolicy::Wait).await.unwrap();
            session.write(vec![put(PartitionId::CATALOG, "table", &number.to_string())]).await.unwrap();
            session
        })
    }
}

#[test]
fn after_a_change_was_committed_no_node_relies_on_an_older_version() {
    for seed in 60..64 {
        let cluster = Cluster::with_shards(seed, 1 + (seed % 2) as u8);
        for round in 0..9 {
            let before: Vec<u64> = (0..3).map(|node| cluster.version(node)).collect();
            assert!((0..3).all(|node| cluster.relied_on(node) == before[node]), "kept from the first statement on");
            let mut session = cluster.change(round % 3, round);
            assert!((0..3).all(|node| cluster.relied_on(node) == before[node]), "an open change disturbs nobody");
            if round % 3 == 1 {
                cluster.run(round % 3, async move { session.rollback().await.unwrap() });
                assert!((0..3).all(|node| cluster.relied_on(node) == before[node]), "nothing has come of it");
                continue;
            }
            cluster.run(round % 3, async move { session.commit().await.unwrap() });
            for (node, version) in before.iter().enumerate() {
                assert_ne!(cluster.relied_on(node), *version, "node {node} (seed {seed}, round {round})");
            }
            let after: Vec<u64> = (0..3).map(|node| cluster.version(node)).collect();
            assert!(after.iter().all(|version| *version == after[0]), "the value block is the same for all: {after:?}");
            assert!(before.iter().all(|version| *version < after[0]), "{before:?} and then {after:?}");
            assert_eq!(cluster.read(round % 3, PartitionId::CATALOG, "table"), Some(round.to_string()));
        }
    }
}

/// Statements on two nodes look at the version all the time, and read anew only when it is another: what they then have is
/// never older than a change that was acknowledged before.
#[test]
fn a_copy_that_passes_for_current_is_current() {
    for seed in 64..70 {
        let cluster = Cluster::with_shards(seed, 1 + (seed % 2) as u8);
        let acknowledged = Rc::new(Cell::new(0));
        cluster.write(0, vec![put(PartitionId::CATALOG, "table", "0")]);
        let mut tasks = Vec::new();
        for node in 0..3 {
            let (member, acknowledged) = (cluster.members[node].clone(), acknowledged.clone());
            tasks.push(cluster.spawn(node, async move {
                let (mut copy, mut copied, mut reloads) = (0, 0, 0);
                for _ in 0..150 {
                    member.reactor.sleep(Duration::from_micros(member.reactor.random() % 400)).await;
                    let floor: i64 = acknowledged.get();
                    if copied == 0 || member.store.catalog_generation() != copied {
                        let version = member.store.catalog_version().await.unwrap();
                        if version != copied {
                            let mut session = member.store.session();
                            copy = get(&mut session, PartitionId::CATALOG, "table").await.unwrap().parse().unwrap();
                            (copied, reloads) = (version, reloads + 1);
                        }
                    }
                    assert!(copy >= floor, "{copy} passes for current after {floor} was acknowledged");
                }
                reloads
            }));
        }
        let (store, told, reactor) = (cluster.members[1].store.clone(), acknowledged.clone(), cluster.members[1].reactor.clone());
        let changes = cluster.spawn(1, async move {
            for number in 1..=12i64 {
                let mut session = store.session();
                session.begin(ReadCommitted, false).unwrap();
                session.lock(CATALOG, LockMode::Exclusive, WaitPolicy::Wait).await.unwrap();
                session.write(vec![put(PartitionId::CATALOG, "table", &number.to_string())]).await.unwrap();
                reactor.sleep(Duration::from_millis(2)).await;
                session.commit().await.unwrap();
                told.set(number);
            }
        });
        let reloads = cluster.wait(&tasks);
        cluster.wait(&[changes]);
        assert!(reloads.iter().all(|reloads| (2..=14).contains(reloads)), "read anew {reloads:?} times for 12 changes");
    }
}

/// Who dies while it has the catalog exclusively may have committed or not: the version is in doubt, no copy passes for it.
#[test]
fn after_the_loss_of_a_node_that_was_changing_the_catalog_no_copy_passes_for_current() {
    let nodes = || (1..=NODES).map(NodeId);
    let master = usize::from(Resource::CATALOG_VERSION.master(nodes()).unwrap().0) - 1;
    let (dies, other) = ((master + 1) % 3, (master + 2) % 3);
    for name in [CATALOG, CATALOG_VERSION] {
        let cluster = Cluster::new(70);
        cluster.write(dies, vec![put(PartitionId::CATALOG, "table", "0")]);
        let before = cluster.version(other);
        let mut session = cluster.begin(dies, ReadCommitted);
        let session = cluster.run(dies, async move {
            session.lock(name, LockMode::Exclusive, WaitPolicy::Wait).await.unwrap();
            session
        });
        cluster.world.crash(HostId(dies as u32 + 1));
        let store = cluster.members[other].store.clone();
        let version = cluster.spawn(other, async move { store.catalog_version().await.unwrap() });
        cluster.go_on_without(dies);
        let version = cluster.wait(&[version])[0];
        std::mem::forget(session);
        if name == CATALOG {
            assert_eq!(version, before, "it had taken the version from nobody, and so has committed nothing");
        } else {
            assert!(version > before, "{version} may be older than what it has committed");
        }
    }
}
