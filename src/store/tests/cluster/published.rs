//! How transactions have ended: read on the boards of their nodes, and told by them. The two ways agree.

use super::*;
use crate::ids::{Scn, TxnId};
use crate::interconnect::tests::on_soft_devices;
use crate::txn::{Peers, TxnState};

/// Slots that are looked at: those that are used first.
const SLOTS: u16 = 24;

impl Cluster {
    fn until_by_rdma(&self) {
        let by_rdma = |kept: &Kept| kept.interconnect.stats().peers.iter().all(|peer| peer.by_rdma);
        self.world.run_until(|| self.members.iter().all(|member| member.kept.iter().all(by_rdma))).unwrap();
    }

    /// Looks at all ends that one node can read on the board of another.
    fn compare(&self, reader: usize, owner: usize) -> usize {
        let node = self.members[owner].store.node_id();
        let interconnect = self.members[reader].kept[0].interconnect.clone();
        let mut compared = 0;
        for slot in 0..SLOTS {
            let reading = interconnect.clone();
            let Some(record) = self.run(reader, async move { reading.read_published(node, slot).await }) else { continue };
            let txn = TxnId::new(node, ShardId(0), slot, record[0] as u32);
            let peers = self.members[reader].kept[0].peers.clone();
            let read = self.run(reader, async move { peers.state(txn).await.unwrap().unwrap() });
            let txns = self.members[owner].engines[0].txns().clone();
            let told = self.run(owner, async move { txns.own_state(txn).await.unwrap() });
            // A slot that has been used again has forgotten the SCN: below every snapshot.
            if told != TxnState::Committed(Scn::ZERO) {
                assert_eq!(read, told, "{txn}");
                compared += 1;
            }
        }
        compared
    }
}

#[test]
fn an_end_that_is_read_on_a_board_is_the_one_that_its_node_tells() {
    on_soft_devices(11, |network| {
        let cluster = Cluster::new(80);
        cluster.until_by_rdma();
        let table = cluster.table(0);
        cluster.write(1, accounts(table));
        let mut clients = Vec::new();
        for client in 0..6usize {
            let member = cluster.members[client % 3].clone();
            clients.push(cluster.spawn(client % 3, async move {
                let dice = Dice(Cell::new(client as u64 + 1));
                for round in 0..60 {
                    let done = transfer(&member.store, &|bound| dice.below(bound), table).await;
                    assert!(!matches!(done, Err(StoreError::Unavailable { .. })), "{done:?}");
                    if round % 5 == 0 {
                        let mut session = member.store.session();
                        session.begin(ReadCommitted, false).unwrap();
                        session.write(vec![put(table, &format!("never{client}"), "1")]).await.unwrap();
                        session.rollback().await.unwrap();
                    }
                }
            }));
        }
        let mut compared = 0;
        for round in 0..12 {
            cluster.world.run_for(Duration::from_millis(3));
            compared += cluster.compare(round % 3, (round + 1 + round / 3 % 2) % 3);
        }
        cluster.wait(&clients);
        for node in 0..3 {
            let mut session = cluster.begin(node, RepeatableRead);
            assert_eq!(cluster.run(node, async move { sum(&mut session, table).await }), 100 * ACCOUNTS as i64);
        }
        let answered: u64 =
            cluster.members.iter().map(|member| member.kept[0].interconnect.stats().rdma.unwrap().reads_answered).sum();
        assert!(
            compared > 50 && answered > 2 * compared as u64 && network.torn() > 20,
            "{compared} {answered} {}",
            network.torn()
        );
    });
}

#[test]
fn by_rdma_money_is_neither_made_nor_lost() {
    on_soft_devices(12, |network| {
        what_one_node_commits_every_later_statement_on_every_node_sees();
        a_transaction_over_two_shards_is_there_whole_or_not_at_all();
        let told = network.told();
        death::money_of_three_nodes_is_still_there_with_two();
        death::survivors_of_a_node_lose_nothing_and_wait_for_nobody();
        assert_eq!(network.not_ready(), 0);
        assert!(network.writes() > 100 && network.torn() > 0, "{} {}", network.writes(), network.torn());
        assert!(told > 100, "commits were told {told} times");
    });
}
