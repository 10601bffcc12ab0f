//! Lock services of several nodes over real sockets on loopback, in one reactor.

mod views;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::clock::ScnClock;
use crate::ids::{Epoch, Incarnation, NodeId, Scn, ShardId, TxnId};
use crate::interconnect::{Interconnect, Service, Settings};
use crate::reactor::thread::run_local;
use crate::reactor::{Class, DriverChoice, Reactor, ReactorOptions};

/// Transactions that a test begins and ends; the slot says how young one is.
#[derive(Default)]
struct Active(RefCell<BTreeSet<u64>>);

impl Transactions for Active {
    fn is_active(&self, txn: TxnId) -> bool {
        self.0.borrow().contains(&txn.raw())
    }
    fn began(&self, txn: TxnId) -> Scn {
        Scn(1_000 + u64::from(txn.slot()))
    }
}

struct Node {
    net: Interconnect,
    ges: Ges,
    active: Rc<Active>,
}

impl Node {
    fn begin(&self, slot: u16) -> TxnId {
        let txn = TxnId::new(self.net.node(), ShardId(0), slot, 1);
        self.active.0.borrow_mut().insert(txn.raw());
        txn
    }

    fn end(&self, txn: TxnId) {
        self.active.0.borrow_mut().remove(&txn.raw());
        self.ges.transaction_ended(txn);
    }

    fn sent(&self) -> u64 {
        self.net.stats().sent[Service::Ges.index()].messages
    }

    async fn lock(&self, resource: Resource, txn: TxnId, mode: LockMode) -> Result<LockHandle, LockError> {
        self.ges.lock(resource, LockOwner::Transaction(txn), mode, WaitPolicy::Wait).await
    }
}

fn on_nodes<F: Future<Output = ()> + 'static>(count: usize, test: impl FnOnce(Reactor, Vec<Rc<Node>>) -> F + 'static) {
    let options = ReactorOptions { driver: DriverChoice::Poll, overprovisioned: true };
    let main = |reactor: Reactor| async move {
        let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<SocketAddr> = held.iter().map(|listener| listener.local_addr().unwrap()).collect();
        drop(held);
        let mut nodes = Vec::new();
        for id in 1..=count as u8 {
            let own = addresses[usize::from(id) - 1];
            let mut settings = Settings::new(5, NodeId(id), Incarnation(1), ShardId(0), 1, own);
            settings.peers = (1..).map(NodeId).zip(addresses.iter().copied()).filter(|(node, _)| node.0 != id).collect();
            let net = Interconnect::new(&reactor, &ScnClock::new(), settings);
            net.set_epoch(Epoch(1));
            let active = Rc::new(Active::default());
            let ges = Ges::new(&net, active.clone(), Duration::from_millis(20));
            net.start().await.expect("the address is free");
            nodes.push(Rc::new(Node { net, ges, active }));
        }
        for node in &nodes {
            node.net.all_up().await;
        }
        test(reactor, nodes.clone()).await;
        for node in nodes {
            node.ges.invariants();
            node.net.close();
        }
    };
    run_local(options, main).expect("the poll driver starts");
}

/// Runs a lock or a wait as a task; the outcome appears in the cell.
fn begin_task(
    reactor: &Reactor,
    task: impl Future<Output = Result<(), LockError>> + 'static,
) -> Rc<Cell<Option<Result<(), LockError>>>> {
    let outcome = Rc::new(Cell::new(None));
    let slot = outcome.clone();
    reactor.spawn(Class::Normal, "a test's wait", async move { slot.set(Some(task.await)) });
    outcome
}

fn locking(
    node: &Rc<Node>,
    resource: Resource,
    txn: TxnId,
    mode: LockMode,
) -> impl Future<Output = Result<(), LockError>> + 'static {
    let node = node.clone();
    async move { node.lock(resource, txn, mode).await.map(|_| ()) }
}

fn awaiting(node: &Rc<Node>, waiter: TxnId, holder: TxnId) -> impl Future<Output = Result<(), LockError>> + 'static {
    let node = node.clone();
    async move { node.ges.wait_for_end(LockOwner::Transaction(waiter), holder, WaitPolicy::Wait).await }
}

async fn until(reactor: &Reactor, what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if is_so() {
            return;
        }
        reactor.sleep(Duration::from_millis(1)).await;
    }
    panic!("never came: {what}");
}

fn table(node: u8, nodes: usize) -> Resource {
    let members = |count: usize| (1..=count as u8).map(NodeId);
    let tables = (1..).map(|id| Resource::new(ResourceClass::TABLE, id, 0));
    tables.into_iter().find(|table| table.master(members(nodes)) == Some(NodeId(node))).expect("every node masters some")
}

#[test]
fn locks_are_kept_without_messages_and_given_up_with_their_value_when_another_node_wants_them() {
    on_nodes(3, |reactor, nodes| async move {
        let table = table(3, 3);
        let first = nodes[1].begin(1);
        nodes[1].lock(table, first, LockMode::ConcurrentWrite).await.unwrap();
        nodes[1].end(first);
        let sent = nodes[1].sent();
        for slot in 2..10 {
            let next = nodes[1].begin(slot);
            nodes[1].lock(table, next, LockMode::ConcurrentWrite).await.unwrap();
            nodes[1].lock(table, next, LockMode::ConcurrentRead).await.unwrap();
            nodes[1].end(next);
        }
        assert_eq!(nodes[1].sent(), sent, "the node has kept its lock");

        // Another node wants it: kept locks are given up, used ones are waited for.
        let ddl = nodes[0].begin(1);
        let handle = nodes[0].lock(table, ddl, LockMode::Exclusive).await.unwrap();
        assert_eq!(nodes[0].ges.value(handle), Some(ValueBlock::default()));
        assert!(nodes[0].ges.set_value(handle, [9; VALUE_BYTES]));
        let dml = nodes[1].begin(20);
        let waiting = begin_task(&reactor, locking(&nodes[1], table, dml, LockMode::ConcurrentWrite));
        let here = nodes[2].begin(1);
        let busy = nodes[2].ges.lock(table, LockOwner::Transaction(here), LockMode::ConcurrentRead, WaitPolicy::NoWait).await;
        assert_eq!(busy, Err(LockError::WouldBlock));
        let limit = WaitPolicy::Timeout(Duration::from_millis(50));
        let late = nodes[2].ges.lock(table, LockOwner::Transaction(here), LockMode::ConcurrentRead, limit).await;
        assert_eq!((late, waiting.get()), (Err(LockError::Timeout), None));
        nodes[0].end(ddl);
        until(&reactor, "the lock", || waiting.get() == Some(Ok(()))).await;
        let handle = LockHandle { resource: table, owner: LockOwner::Transaction(dml) };
        assert_eq!(nodes[1].ges.value(handle), Some(ValueBlock { bytes: [9; VALUE_BYTES], valid: true, sequence: 1 }));
        // Nobody uses the lock in a mode in the way: not to wait is enough to get it.
        let reading = nodes[2].ges.lock(table, LockOwner::Transaction(here), LockMode::ConcurrentRead, WaitPolicy::NoWait).await;
        assert!(reading.is_ok(), "{reading:?}");
    });
}

#[test]
fn a_transaction_is_awaited_from_its_own_node_and_from_others() {
    on_nodes(2, |reactor, nodes| async move {
        let holder = nodes[0].begin(1);
        let (here, there) = (nodes[0].begin(2), nodes[1].begin(3));
        let near = begin_task(&reactor, awaiting(&nodes[0], here, holder));
        let far = begin_task(&reactor, awaiting(&nodes[1], there, holder));
        reactor.sleep(Duration::from_millis(60)).await;
        assert_eq!((near.get(), far.get()), (None, None));
        nodes[0].end(holder);
        until(&reactor, "both", || near.get() == Some(Ok(())) && far.get() == Some(Ok(()))).await;
        // One that has ended already is not awaited.
        assert_eq!(awaiting(&nodes[1], there, holder).await, Ok(()));
        assert_eq!(awaiting(&nodes[0], here, holder).await, Ok(()));
    });
}

#[test]
fn the_youngest_of_a_circle_over_three_nodes_dies_and_nobody_else() {
    on_nodes(3, |reactor, nodes| async move {
        // The youngest is in turn on each node.
        for youngest in 0..3usize {
            let txns: Vec<TxnId> = (0..3).map(|i| nodes[i].begin(if i == youngest { 90 } else { 10 + i as u16 })).collect();
            let waits: Vec<_> = (0..3).map(|i| begin_task(&reactor, awaiting(&nodes[i], txns[i], txns[(i + 1) % 3]))).collect();
            until(&reactor, "a victim", || waits.iter().any(|wait| wait.get().is_some())).await;
            reactor.sleep(Duration::from_millis(100)).await;
            for (i, wait) in waits.iter().enumerate() {
                assert_eq!(wait.get(), (i == youngest).then_some(Err(LockError::Deadlock)), "node {}", i + 1);
            }
            // The victim rolls back, and so one after the other gets what it waited for.
            for i in 0..3 {
                let at = (youngest + 3 - i) % 3;
                nodes[at].end(txns[at]);
                let before = (at + 2) % 3;
                until(&reactor, "the next", || waits[before].get().is_some()).await;
            }
        }
        let deadlocks: u64 = nodes.iter().map(|node| node.ges.stats().deadlocks).sum();
        assert_eq!(deadlocks, 3);
    });
}

#[test]
fn a_circle_through_table_locks_and_transactions_on_two_nodes_is_found() {
    on_nodes(2, |reactor, nodes| async move {
        for master in 1..=2 {
            let table = table(master, 2);
            let (old, young) = (nodes[0].begin(1), nodes[1].begin(5));
            let bystander = nodes[1].begin(9);
            nodes[0].lock(table, old, LockMode::ConcurrentWrite).await.unwrap();
            nodes[1].lock(table, bystander, LockMode::ConcurrentWrite).await.unwrap();
            // Young wants the table for itself and waits for old and the bystander; old waits for a row of young's.
            let alter = begin_task(&reactor, locking(&nodes[1], table, young, LockMode::Exclusive));
            let update = begin_task(&reactor, awaiting(&nodes[0], old, young));
            // The bystander keeps young waiting on its own node: no circle yet.
            reactor.sleep(Duration::from_millis(100)).await;
            assert_eq!((alter.get(), update.get()), (None, None));
            nodes[1].end(bystander);
            until(&reactor, "the victim", || alter.get() == Some(Err(LockError::Deadlock))).await;
            assert_eq!(update.get(), None);
            nodes[1].end(young);
            until(&reactor, "the survivor", || update.get() == Some(Ok(()))).await;
            nodes[0].end(old);
        }
    });
}

#[test]
fn two_users_who_both_want_more_are_a_circle_on_one_node() {
    on_nodes(2, |reactor, nodes| async move {
        let table = table(2, 2);
        let (old, young) = (nodes[0].begin(1), nodes[0].begin(2));
        for txn in [old, young] {
            nodes[0].lock(table, txn, LockMode::ProtectedRead).await.unwrap();
        }
        let first = begin_task(&reactor, locking(&nodes[0], table, old, LockMode::Exclusive));
        let second = begin_task(&reactor, locking(&nodes[0], table, young, LockMode::Exclusive));
        until(&reactor, "the victim", || second.get() == Some(Err(LockError::Deadlock))).await;
        assert_eq!(first.get(), None);
        assert_eq!(nodes[0].ges.held(table, LockOwner::Transaction(young)), LockMode::ProtectedRead);
        nodes[0].end(young);
        until(&reactor, "the survivor", || first.get() == Some(Ok(()))).await;
    });
}

#[test]
fn a_wait_that_is_dropped_leaves_nothing_behind_and_a_lost_node_its_locks() {
    on_nodes(3, |reactor, nodes| async move {
        let (ours, theirs) = (table(1, 3), table(3, 3));
        let holder = nodes[2].begin(1);
        nodes[2].lock(ours, holder, LockMode::Exclusive).await.unwrap();
        nodes[2].lock(theirs, holder, LockMode::Exclusive).await.unwrap();

        let canceled = nodes[1].begin(2);
        let dropped = reactor.timeout(Duration::from_millis(30), nodes[1].lock(ours, canceled, LockMode::Exclusive)).await;
        assert!(dropped.is_err());
        assert_eq!(nodes[1].ges.held(ours, LockOwner::Transaction(canceled)), LockMode::Null);
        let waiter = nodes[1].begin(3);
        let waiting = begin_task(&reactor, locking(&nodes[1], ours, waiter, LockMode::Exclusive));
        let lost = nodes[1].begin(4);
        let hopeless = begin_task(&reactor, locking(&nodes[1], theirs, lost, LockMode::Exclusive));
        let stranded = nodes[0].begin(5);
        let end = begin_task(&reactor, awaiting(&nodes[0], stranded, holder));
        reactor.sleep(Duration::from_millis(30)).await;
        assert_eq!((waiting.get(), hopeless.get(), end.get()), (None, None, None));
        nodes[2].net.close();
        // A lost connection by itself fails nothing and grants nothing.
        until(&reactor, "the loss", || nodes[..2].iter().all(|node| !node.net.is_up(NodeId(3)))).await;
        reactor.sleep(Duration::from_millis(30)).await;
        assert_eq!((waiting.get(), hopeless.get(), end.get()), (None, None, None));
        let members = [NodeId(1), NodeId(2)];
        for node in &nodes[..2] {
            node.ges.enter(Epoch(2), &members);
            node.net.set_epoch(Epoch(2));
        }
        nodes[..2].iter().for_each(|node| node.ges.go());
        until(&reactor, "the dead node's locks, and its end", || {
            [&waiting, &hopeless, &end].iter().all(|outcome| outcome.get() == Some(Ok(())))
        })
        .await;
        let handle = |resource, txn| LockHandle { resource, owner: LockOwner::Transaction(txn) };
        assert!(!nodes[1].ges.value(handle(ours, waiter)).unwrap().valid, "its writer died");
        assert!(!nodes[1].ges.value(handle(theirs, lost)).unwrap().valid, "its master died, too");
    });
}
