//! Peers over simulated connections: who is waited for while nodes are cut off, leave and come.

use std::net::SocketAddr;
use std::time::Duration;

use super::*;
use crate::clock::ScnClock;
use crate::ids::{Epoch, Incarnation, ShardId};
use crate::interconnect::Settings;
use crate::reactor::Reactor;
use crate::reactor::driver::sim::{HostId, SimWorld};

const NODES: u8 = 3;

struct Node {
    reactor: Reactor,
    interconnect: Interconnect,
    shared: NodeShared,
    peers: ClusterPeers,
}

fn address(node: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node], 7000))
}

impl Node {
    fn start(world: &SimWorld, node: u8, joins: bool) -> Node {
        let reactor = world.reactor(HostId(u32::from(node)));
        let shared = NodeShared::new(ScnClock::new());
        let mut settings = Settings::new(1, NodeId(node), Incarnation(1 + u64::from(joins)), ShardId(0), 1, address(node));
        settings.peers = (1..=NODES).filter(|peer| *peer != node).map(|peer| (NodeId(peer), address(peer))).collect();
        let interconnect = Interconnect::new(&reactor, &shared.clock, settings);
        let make = if joins { ClusterPeers::entering } else { ClusterPeers::new };
        let peers = make(&interconnect, shared.clone(), true);
        interconnect.register(Service::Txn, Rc::new(peers.clone()));
        interconnect.set_epoch(Epoch(u64::from(!joins)));
        let starting = interconnect.clone();
        world.block_on(&reactor, async move { starting.start().await.expect("a free address") });
        Node { reactor, interconnect, shared, peers }
    }

    fn commit(&self) -> Scn {
        let scn = self.shared.clock.next(self.reactor.wall_ms());
        self.peers.announce(scn);
        scn
    }

    fn tell_oldest(&self) {
        self.peers.tell_oldest(self.shared.snapshots.oldest_here(self.reactor.wall_ms()));
    }

    /// What comes of a future, once it does.
    fn spawn<T: 'static>(&self, future: LocalFuture<T>) -> Rc<RefCell<Option<T>>> {
        let output: Rc<RefCell<Option<T>>> = Rc::default();
        let slot = output.clone();
        self.reactor.spawn(Class::Normal, "test", async move { *slot.borrow_mut() = Some(future.await) });
        output
    }

    fn enter(&self, epoch: u64, members: &[NodeId]) {
        self.peers.enter(members);
        self.interconnect.set_epoch(Epoch(epoch));
    }
}

#[test]
fn a_node_that_is_cut_off_is_waited_for_until_a_view_without_it_is_entered() {
    let world = SimWorld::new(1);
    let nodes: Vec<Node> = (1..=NODES).map(|node| Node::start(&world, node, false)).collect();
    let (first, second) = (&nodes[0], &nodes[1]);
    let second_long = Duration::from_secs(5);
    world.run_for(second_long);
    let known = first.spawn(first.peers.known(first.commit()));
    nodes.iter().for_each(Node::tell_oldest);
    world.run_for(second_long);
    assert!(known.borrow().is_some());
    let before = first.shared.snapshots.refresh(first.reactor.wall_ms());
    assert!(before > Scn::ZERO);

    for other in [1, 2] {
        world.part(HostId(3), HostId(other));
    }
    world.run_for(Duration::from_secs(60));
    assert!(!first.interconnect.is_up(NodeId(3)));
    let scn = first.commit();
    let known = first.spawn(first.peers.known(scn));
    let txn = TxnId::new(NodeId(3), ShardId(0), 4, 1);
    let state = first.spawn(first.peers.state(txn));
    [first, second].into_iter().for_each(Node::tell_oldest);
    world.run_for(Duration::from_secs(60));
    assert!(known.borrow().is_none(), "it may serve reads that must not miss the commit");
    assert!(state.borrow().is_none(), "it may still commit");
    let held = first.shared.snapshots.refresh(first.reactor.wall_ms());
    assert!(held < scn, "its snapshots still count");

    // One enters before the other: what it says meanwhile would get lost.
    let members = [NodeId(1), NodeId(2)];
    first.enter(2, &members);
    let later = first.commit();
    world.run_for(second_long);
    assert!(known.borrow().is_some(), "the second had acknowledged it");
    assert!(state.borrow().is_none());
    second.enter(2, &members);
    let later = first.spawn(first.peers.known(later));
    world.run_for(second_long);
    assert!(later.borrow().is_none());
    [first, second].into_iter().for_each(|node| node.peers.go());
    [first, second].into_iter().for_each(Node::tell_oldest);
    world.run_for(second_long);
    assert!(later.borrow().is_some());
    assert_eq!(*state.borrow(), Some(Ok(None)), "it stands in its blocks");
    assert!(first.peers.left_at(NodeId(3)) > scn);
    let state = second.spawn(second.peers.state(txn));
    world.run_for(second_long);
    assert_eq!(*state.borrow(), Some(Ok(None)));
    assert!(first.shared.snapshots.refresh(first.reactor.wall_ms()) > scn);

    // Its next life joins, and is told of everything before a commit counts.
    world.crash(HostId(3));
    world.heal();
    let third = Node::start(&world, 3, true);
    world.run_for(Duration::from_secs(60));
    let all = [NodeId(1), NodeId(2), NodeId(3)];
    [first, second].into_iter().for_each(|node| node.enter(3, &all));
    let scn = second.commit();
    let known = second.spawn(second.peers.known(scn));
    third.enter(3, &all);
    world.run_for(second_long);
    assert!(known.borrow().is_none());
    [first, second, &third].into_iter().for_each(|node| node.peers.go());
    let oldest = first.shared.snapshots.refresh(first.reactor.wall_ms());
    world.run_for(second_long);
    assert!(known.borrow().is_some() && third.shared.clock.latest() >= scn);
    assert_eq!(first.shared.snapshots.refresh(first.reactor.wall_ms()), oldest, "until it has told of its snapshots");
    [second, &third].into_iter().for_each(Node::tell_oldest);
    world.run_for(second_long);
    assert!(first.shared.snapshots.refresh(first.reactor.wall_ms()) > oldest);
}
