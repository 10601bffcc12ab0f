//! Lock services of three nodes in the simulated world, one of which dies, and comes back in another life.

use super::*;
use crate::reactor::driver::sim::{HostId, SimWorld};

struct Simulated {
    world: SimWorld,
    nodes: Vec<(Reactor, Rc<Node>)>,
}

/// Where a wait's outcome appears.
type Outcome = Rc<Cell<Option<Result<(), LockError>>>>;

const PATIENCE: Duration = Duration::from_secs(10);

async fn start(reactor: Reactor, number: u8, life: u64, epoch: Epoch, members: &[NodeId]) -> Rc<Node> {
    let address = |node: u8| SocketAddr::from(([10, 0, 0, node], 7000));
    let mut settings = Settings::new(5, NodeId(number), Incarnation(life), ShardId(0), 1, address(number));
    settings.peers = (1..=3).filter(|node| *node != number).map(|node| (NodeId(node), address(node))).collect();
    let net = Interconnect::new(&reactor, &ScnClock::new(), settings);
    let active = Rc::new(Active::default());
    let ges = Ges::entering(&net, active.clone(), Duration::from_millis(20), epoch, members);
    net.register(Service::Ges, Rc::new(ges.clone()));
    net.set_epoch(epoch);
    net.start().await.expect("the address is free");
    Rc::new(Node { net, ges, active })
}

impl Simulated {
    fn new(seed: u64) -> Simulated {
        let world = SimWorld::new(seed);
        let members = [1, 2, 3].map(NodeId);
        let reactors: Vec<Reactor> = (1..=3).map(|host| world.reactor(HostId(host))).collect();
        let nodes = reactors.into_iter().zip(1..).map(|(reactor, number)| {
            let inside = reactor.clone();
            (reactor.clone(), world.block_on(&reactor, async move { start(inside, number, 1, Epoch(1), &members).await }))
        });
        let nodes: Vec<_> = nodes.collect();
        let simulated = Simulated { world, nodes };
        simulated.all_up(&[0, 1, 2]);
        simulated.go(&[0, 1, 2]);
        simulated
    }

    fn all_up(&self, nodes: &[usize]) {
        for node in nodes {
            let (reactor, node) = self.nodes[*node].clone();
            self.world.block_on(&reactor, async move { node.net.all_up().await });
        }
    }

    fn enter(&self, nodes: &[usize], epoch: Epoch, members: &[NodeId]) {
        for node in nodes {
            self.nodes[*node].1.ges.enter(epoch, members);
            self.nodes[*node].1.net.set_epoch(epoch);
        }
    }

    fn go(&self, nodes: &[usize]) {
        nodes.iter().for_each(|node| self.nodes[*node].1.ges.go());
        for node in nodes {
            let (reactor, node) = self.nodes[*node].clone();
            self.world.block_on(&reactor, async move { node.ges.rebuilt().await });
        }
    }

    fn lock(&self, node: usize, slot: u16, resource: Resource, mode: LockMode) -> (Outcome, LockHandle) {
        let (reactor, node) = &self.nodes[node];
        let txn = node.begin(slot);
        let handle = LockHandle { resource, owner: LockOwner::Transaction(txn) };
        (begin_task(reactor, locking(node, resource, txn, mode)), handle)
    }

    fn granted(&self, waits: &[&Outcome]) {
        let end = self.world.now() + PATIENCE;
        self.world.run_until(|| waits.iter().all(|wait| wait.get().is_some()) || self.world.now() > end).unwrap();
        assert!(waits.iter().all(|wait| wait.get() == Some(Ok(()))), "seed {}: {waits:?}", self.world.seed());
    }
}

#[test]
fn a_node_that_dies_with_locks_makes_the_others_wait_and_nothing_else() {
    use LockMode::{ConcurrentRead, Exclusive, ProtectedRead, ProtectedWrite};

    for seed in 1..=20 {
        let mut cluster = Simulated::new(seed);
        let [first, second, third] = [1, 2, 3].map(|node| table(node, 3));
        // The third has locks at every master, and is one; the others have locks of their own, one with a value.
        for (slot, resource) in [(1, first), (2, second), (3, third)] {
            cluster.granted(&[&cluster.lock(2, slot, resource, Exclusive).0]);
        }
        let kept = Resource::new(ResourceClass::USER, 1, seed);
        let (wait, writer) = cluster.lock(0, 1, kept, ProtectedWrite);
        cluster.granted(&[&wait]);
        assert!(cluster.nodes[0].1.ges.set_value(writer, [7; VALUE_BYTES]));
        let survivors = [(0, 2, first), (0, 3, third), (1, 1, second), (1, 2, third)];
        let waits: Vec<_> = survivors.iter().map(|(node, slot, on)| cluster.lock(*node, *slot, *on, ProtectedRead)).collect();
        let (behind, reader) = cluster.lock(1, 3, kept, ProtectedRead);
        let holder = TxnId::new(NodeId(3), ShardId(0), 1, 1);
        let living = cluster.nodes[0].1.begin(30);
        let (reactor, node) = &cluster.nodes[1];
        let end = begin_task(reactor, awaiting(node, node.begin(4), holder));
        let other_end = begin_task(reactor, awaiting(node, node.begin(5), living));
        cluster.world.run_for(Duration::from_millis(seed * 3));

        cluster.world.crash(HostId(3));
        cluster.world.run_until(|| cluster.nodes[..2].iter().all(|(_, node)| !node.net.is_up(NodeId(3)))).unwrap();
        let waiting = || waits.iter().map(|(wait, _)| wait).chain([&behind, &end, &other_end]);
        assert!(waiting().all(|wait| wait.get().is_none()), "a lost connection says nothing about locks");
        cluster.enter(&[0, 1], Epoch(2), &[NodeId(1), NodeId(2)]);
        let (late, _) = cluster.lock(0, 20, second, ConcurrentRead);
        cluster.world.run_for(Duration::from_millis(50));
        assert!(waiting().chain([&late]).all(|wait| wait.get().is_none()), "nobody goes on before all have entered");
        cluster.go(&[0, 1]);
        let all: Vec<&Outcome> = waits.iter().map(|(wait, _)| wait).chain([&end, &late]).collect();
        cluster.granted(&all);
        for (at, (_, handle)) in survivors.iter().zip(&waits) {
            let value = cluster.nodes[at.0].1.ges.value(*handle).unwrap();
            assert!(!value.valid, "the third may have written {}", handle.resource);
        }
        // Of the living nothing has changed.
        cluster.world.run_for(Duration::from_millis(100));
        assert_eq!((behind.get(), other_end.get()), (None, None));
        cluster.nodes[0].1.end(living);
        cluster.nodes[0].1.ges.unlock(writer);
        cluster.granted(&[&behind, &other_end]);
        let value = cluster.nodes[1].1.ges.value(reader).unwrap();
        assert_eq!((value.bytes, value.valid), ([7; VALUE_BYTES], true));

        // It comes back, with nothing, and is a master again.
        let reactor = cluster.world.reactor(HostId(3));
        let (inside, members) = (reactor.clone(), [1, 2, 3].map(NodeId));
        let node = cluster.world.block_on(&reactor, async move { start(inside, 3, 2, Epoch(3), &members).await });
        cluster.nodes[2] = (reactor, node);
        cluster.all_up(&[0, 1, 2]);
        cluster.enter(&[0, 1], Epoch(3), &members);
        cluster.go(&[0, 1, 2]);
        let (back, _) = cluster.lock(2, 1, third, Exclusive);
        cluster.world.run_for(Duration::from_millis(100));
        assert_eq!(back.get(), None, "the others read it");
        waits.iter().zip(survivors).for_each(|((_, handle), (node, ..))| cluster.nodes[node].1.ges.unlock(*handle));
        cluster.granted(&[&back]);
        cluster.nodes.iter().for_each(|(_, node)| node.ges.invariants());
    }
}
