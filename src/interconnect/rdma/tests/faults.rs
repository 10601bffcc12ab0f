//! What goes wrong around lanes, each once, in a simulated world: TCP is its network, RDMA the device in memory.

use std::net::SocketAddr;

use super::*;
use crate::interconnect::rdma::lane::RETRY_MAX;
use crate::interconnect::rdma::{SEND_SLOTS_PER_LANE, SLOTS_PER_LANE};
use crate::reactor::driver::sim::{HostId, SimWorld};

const LANES: u32 = 4;
const LOST_AFTER: Duration = Duration::from_secs(2);

fn address(node: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node], 7000))
}

/// Nodes of a simulated world, each in its first life and in epoch 1.
pub(super) struct Cluster {
    pub(super) world: SimWorld,
    pub(super) network: Rc<SoftNetwork>,
    pub(super) nodes: Vec<Node>,
}

impl Cluster {
    fn new(nodes: u8, seed: u64) -> Cluster {
        let mut cluster = Cluster { world: SimWorld::new(seed), network: SoftNetwork::new(seed), nodes: Vec::new() };
        for node in 1..=nodes {
            let node = cluster.start(node, nodes, 1, Epoch(1));
            cluster.nodes.push(node);
        }
        cluster
    }

    /// As [`Cluster::new`], with lanes between all of them.
    fn with_lanes(nodes: u8) -> Cluster {
        Cluster::with_lanes_of(nodes, 1)
    }

    pub(super) fn with_lanes_of(nodes: u8, seed: u64) -> Cluster {
        let cluster = Cluster::new(nodes, seed);
        cluster.nodes.iter().for_each(|node| node.register().unwrap());
        cluster.until_by_rdma();
        cluster
    }

    pub(super) fn start(&self, node: u8, nodes: u8, life: u64, epoch: Epoch) -> Node {
        let reactor = self.world.reactor(HostId(u32::from(node)));
        let mut settings = Settings::new(1, NodeId(node), Incarnation(life), ShardId(0), 1, address(node));
        settings.peers = (1..=nodes).filter(|peer| *peer != node).map(|peer| (NodeId(peer), address(peer))).collect();
        settings.heartbeat_interval = Duration::from_millis(50);
        settings.heartbeat_timeout = LOST_AFTER;
        let net = Interconnect::new(&reactor, &ScnClock::new(), settings);
        let device = self.network.device(address(node), LANES * SLOTS_PER_LANE as u32, LANES * SEND_SLOTS_PER_LANE);
        net.use_rdma(device, false, Duration::ZERO);
        let heard = Rc::new(Heard::default());
        net.register(Service::Txn, heard.clone());
        net.register(Service::Gcs, Rc::new(AlsoHeard(heard.clone())));
        net.let_tell(&net.peers().collect());
        net.set_epoch(epoch);
        let starting = net.clone();
        self.world.block_on(&reactor, async move { starting.start().await.expect("a free address") });
        Node { net, heard, frames: Frames::new(), sent: Cell::new(0) }
    }

    pub(super) fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        for _ in 0..3_000 {
            if is_so() {
                return;
            }
            self.world.run_for(Duration::from_millis(10));
        }
        panic!("never came: {what}");
    }

    pub(super) fn until_by_rdma(&self) {
        let by_rdma = |node: &Node| node.net.stats().peers.iter().all(|peer| peer.by_rdma) && node.net.could_expose();
        self.until("all lanes", || self.nodes.iter().all(by_rdma));
        // Each has heard where the others' frames are.
        self.world.run_for(Duration::from_millis(100));
    }
}

impl Node {
    fn lost(&self) -> u64 {
        self.net.stats().peers.iter().map(|peer| peer.lost_count).sum()
    }

    /// The pause before the next lane to this peer.
    fn pause(&self, peer: u8) -> Duration {
        let peer = self.net.0.peer(NodeId(peer)).unwrap();
        let link = peer.link.borrow().clone().unwrap();
        link.lane.borrow().retry
    }
}

#[test]
fn what_a_former_life_asked_for_is_not_written_into_the_frames_of_the_next() {
    let mut cluster = Cluster::with_lanes(2);
    let place = cluster.nodes[1].net.expose(RequestId(7), cluster.nodes[1].frames.take().unwrap()).unwrap();
    // The first was told to write there; before it does, the second dies and comes back, and is in no view yet.
    cluster.nodes[1].net.close();
    cluster.world.crash(HostId(2));
    cluster.nodes[1] = cluster.start(2, 2, 2, Epoch(0));
    cluster.nodes[1].register().unwrap();
    cluster.until_by_rdma();
    let [one, two] = [&cluster.nodes[0], &cluster.nodes[1]];
    let send = |request, place| {
        one.send_block(2, RequestId(request), place, 0x77);
        cluster.world.run_for(Duration::from_secs(1));
    };
    send(7, place);
    // It enters its first view before the other does.
    two.net.set_epoch(Epoch(2));
    cluster.world.run_for(Duration::from_secs(1));
    send(7, place);
    assert_eq!(cluster.network.writes(), 0);
    one.net.set_epoch(Epoch(2));
    let place = two.net.expose(RequestId(8), two.frames.take().unwrap()).unwrap();
    send(8, place);
    assert_eq!(*two.heard.blocks.borrow(), [(RequestId(8), 0x77)]);
    assert_eq!(cluster.network.writes(), 1);
}

#[test]
fn a_lane_that_can_not_carry_a_block_is_tried_less_and_less_often() {
    let cluster = Cluster::with_lanes(2);
    let [one, two] = [&cluster.nodes[0], &cluster.nodes[1]];
    cluster.network.limit_packets(Some(1_500));
    cluster.until("failures", || {
        one.send(2, 5_000);
        two.send(1, BLOCK_SIZE);
        one.net.stats().rdma.unwrap().lanes_connected > 5
    });
    assert_eq!((one.pause(2), two.pause(1)), (RETRY_MAX, RETRY_MAX));
    let all = |from: &Node, to: &Node| to.heard.small.borrow().len() as u64 == from.sent.get();
    cluster.until("all messages", || all(one, two) && all(two, one));
    assert_eq!(one.lost(), 0);
    cluster.network.limit_packets(None);
    cluster.until_by_rdma();
    two.send(1, BLOCK_SIZE);
    cluster.until("a lane of use", || two.pause(1) == Duration::ZERO);
}

#[test]
fn a_peer_of_which_only_the_lane_is_heard_is_lost() {
    let cluster = Cluster::with_lanes(2);
    cluster.world.part(HostId(1), HostId(2));
    cluster.until("the loss", || cluster.nodes.iter().all(|node| node.net.up_peers().is_empty()));
    cluster.world.heal();
    cluster.until_by_rdma();
}

#[test]
fn a_peer_that_enters_no_view_does_not_keep_frames_for_ever() {
    let cluster = Cluster::with_lanes(2);
    let one = &cluster.nodes[0];
    for epoch in 2..5 {
        for request in 0..5 {
            let _ = one.net.expose(RequestId(epoch * 10 + request), one.frames.take().unwrap()).unwrap();
        }
        one.net.abandon_frames();
        one.net.set_epoch(Epoch(epoch));
        assert_eq!(one.net.stats().rdma.unwrap().quarantined, 5, "it may be told to write still");
        cluster.until("the frames", || one.frames.free.borrow().len() == FRAMES);
        cluster.until_by_rdma();
    }
    assert_eq!(one.lost(), 0);
}

#[test]
fn an_attempt_that_fails_while_it_is_being_refused_does_no_harm() {
    let cluster = Cluster::new(2, 1);
    let [one, two] = [&cluster.nodes[0], &cluster.nodes[1]];
    cluster.network.limit_memory(Some(1));
    one.register().unwrap_err();
    while two.net.up_peers().is_empty() {
        cluster.world.step();
    }
    // Its offer is on the way.
    two.register().unwrap_err();
    cluster.world.run_for(Duration::from_secs(5));
    assert_eq!((one.lost(), two.lost()), (0, 0));
    assert_eq!(two.net.stats().rdma.unwrap().lanes_failed, 1);
}

#[test]
fn peers_that_take_nothing_leave_the_others_their_send_slots() {
    let cluster = Cluster::with_lanes(4);
    let one = &cluster.nodes[0];
    for node in [2, 3] {
        cluster.network.hold_device(address(node), true);
        (0..100).for_each(|_| one.send(node, 100));
    }
    cluster.world.run_for(Duration::from_millis(200));
    (0..100).for_each(|_| one.send(4, 100));
    cluster.world.run_for(LOST_AFTER / 4);
    assert_eq!(cluster.nodes[3].heard.small.borrow().len(), 100);
    // Their lanes fail after a time, and they get it over TCP.
    cluster.until("the messages", || cluster.nodes[1..].iter().all(|node| node.heard.small.borrow().len() == 100));
}

/// A frame whose owner has something to say when it comes back.
struct Talkative {
    net: Interconnect,
    to: NodeId,
}

impl Drop for Talkative {
    fn drop(&mut self) {
        self.net.send(self.to, Message { kind: SMALL, argument: 99, ..Message::default() }, Body::Empty).unwrap();
    }
}

#[test]
fn a_frame_that_comes_back_when_its_lane_is_down_may_send() {
    let cluster = Cluster::with_lanes(2);
    let [one, two] = [&cluster.nodes[0], &cluster.nodes[1]];
    cluster.network.hold_device(address(2), true);
    let memory = Box::leak(vec![0x55u8; BLOCK_SIZE].into_boxed_slice());
    let guard = Rc::new(Talkative { net: two.net.clone(), to: NodeId(1) });
    // SAFETY: leaked memory, for the buffer alone.
    let frame = unsafe { IoBuf::from_raw(NonNull::from(memory).cast(), BLOCK_SIZE, guard) };
    two.net.send(NodeId(1), Message { kind: BLOCK, request: RequestId(5), ..Message::default() }, Body::Block(frame)).unwrap();
    cluster.until("the block", || one.heard.blocks.borrow().len() == 1);
    // It has come, but the second will hear of it only when the lane is down.
    cluster.network.pairs().into_iter().for_each(|pair| cluster.network.fail(pair));
    cluster.until("the owner's message", || *one.heard.small.borrow() == [99]);
    assert_eq!((one.heard.blocks.borrow().len(), one.lost()), (1, 0));
}

#[test]
fn blocks_that_are_sent_again_over_tcp_are_counted_there() {
    let cluster = Cluster::with_lanes(2);
    let [one, two] = [&cluster.nodes[0], &cluster.nodes[1]];
    cluster.network.hold_device(address(2), true);
    (0..5).for_each(|request| one.send_block(2, RequestId(request), Place::NONE, 0x11));
    cluster.world.run_for(Duration::from_millis(10));
    assert_eq!(one.net.stats().blocks_rdma.sent, 5);
    cluster.network.pairs().into_iter().for_each(|pair| cluster.network.fail(pair));
    cluster.until("the blocks", || two.heard.blocks.borrow().len() == 5);
    assert_eq!((one.net.stats().blocks_tcp.sent, two.net.stats().blocks_tcp.received), (5, 5));
}

#[test]
fn each_attempt_has_a_name_of_its_own() {
    let cluster = Cluster::with_lanes(2);
    for _ in 0..3 {
        cluster.nodes[0].net.break_off(NodeId(2));
        cluster.until("the loss", || cluster.nodes.iter().all(|node| node.net.up_peers().is_empty()));
        cluster.until_by_rdma();
    }
    let mut greetings = cluster.network.greetings();
    let count = greetings.len();
    greetings.sort_unstable();
    greetings.dedup();
    assert!(greetings.len() == count && count >= 4, "{} of {count} are different", greetings.len());
}

#[test]
fn whoever_ends_without_closing_lets_go_of_his_device() {
    let network = SoftNetwork::new(1);
    let frames = run({
        let network = network.clone();
        move |reactor| {
            let network = network.clone();
            async move {
                let nodes = two(&reactor, &network).await;
                nodes[1].send_block(1, RequestId(1), Place::NONE, 0x11);
                let _ = nodes[0].net.expose(RequestId(2), nodes[0].frames.take().unwrap()).unwrap();
                nodes.map(|node| node.frames.clone())
            }
        }
    });
    assert!(network.pairs().is_empty(), "a device still has its connections");
    assert!(frames.iter().all(|frames| frames.free.borrow().len() == FRAMES));
}
