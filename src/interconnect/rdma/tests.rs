//! Lanes that fail at any point of a stream of messages, and frames that others may still write into.

mod board;
mod faults;
mod polling;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::rc::Rc;
use std::time::Duration;

use super::super::tests::{device_for_test, two_addresses};
use super::super::{Body, DownReason, Handler, Header, Interconnect, Message, Service, Settings};
use super::Place;
use super::soft::SoftNetwork;
use super::stream::{Generation, NumberedStream};
use crate::clock::ScnClock;
use crate::ids::{BLOCK_SIZE, BlockId, BlockNo, Epoch, Incarnation, NodeId, PartitionId, RequestId, ShardId};
use crate::reactor::thread::run_local;
use crate::reactor::{DriverChoice, IoBuf, Reactor, ReactorOptions, split_mix};
use crate::rules::{DesignRule, without};

/// What goes over TCP between two streams.
#[derive(Debug)]
enum Wire {
    Message(u64),
    Switch(Generation),
    Go(Generation),
    Down(Generation, u64),
}

/// One side of a numbered stream, with what is on its way to the other.
#[derive(Default)]
struct Side {
    stream: NumberedStream<u64>,
    tcp: VecDeque<Wire>,
    lane: VecDeque<u64>,
    /// Its end of this lane is connected.
    lane_open: Option<Generation>,
    awaits_down: Option<Generation>,
    posted: u64,
    taken: u64,
    next: u64,
    delivered: Vec<u64>,
}

impl Side {
    fn send(&mut self) {
        let message = self.next;
        self.next += 1;
        if self.stream.goes_by_tcp() {
            self.tcp.push_back(Wire::Message(message));
        } else {
            self.stream.wait(message);
        }
    }

    fn end_lane(&mut self) {
        let Some(generation) = self.lane_open.take() else { return };
        self.awaits_down = Some(generation);
        let number = self.stream.lane_ended(generation);
        self.tcp.push_back(Wire::Down(generation, number));
    }

    fn post(&mut self) {
        while self.stream.next_for_lane().is_some() {
            let message = *self.stream.next_for_lane().unwrap();
            self.posted += 1;
            self.stream.posted(self.posted);
            self.lane.push_back(message);
        }
    }

    fn hear(&mut self, wire: Wire) {
        match wire {
            Wire::Message(message) => {
                self.stream.came_by_tcp().unwrap();
                self.delivered.push(message);
            }
            Wire::Switch(generation) if self.lane_open == Some(generation) => {
                self.stream.on_switch(generation).unwrap();
                self.tcp.push_back(Wire::Go(generation));
            }
            Wire::Go(generation) if self.lane_open == Some(generation) => self.stream.on_go(generation).unwrap(),
            Wire::Switch(_) | Wire::Go(_) => {}
            Wire::Down(generation, number) => {
                self.end_lane();
                assert_eq!(self.awaits_down.take(), Some(generation));
                let down = self.stream.on_down(generation, number).unwrap();
                self.tcp.extend(down.again.into_iter().map(Wire::Message));
                (self.posted, self.taken) = (0, 0);
            }
        }
    }
}

/// A walk over everything that can happen to two sides, in any order. How often a lane failed with messages under way.
fn walk(seed: u64) -> usize {
    let mut state = seed;
    let mut random = move |below: u64| split_mix(&mut state) % below;
    let mut sides = [Side::default(), Side::default()];
    let (mut generation, mut lost) = (0, 0);
    for step in 0..600 {
        let (at, calm) = (random(2) as usize, step > 500);
        let [a, b] = &mut sides;
        let (here, there) = if at == 0 { (a, b) } else { (b, a) };
        match random(8) {
            0 | 1 if !calm => here.send(),
            2 | 3 => {
                if let Some(wire) = here.tcp.pop_front() {
                    there.hear(wire);
                }
            }
            4 => here.post(),
            5 => {
                // Arrives where that end is still there; both ends are of one lane.
                if let Some(message) = here.lane.pop_front()
                    && let Some(generation) = there.lane_open
                {
                    there.stream.came_by_lane(generation).unwrap();
                    there.delivered.push(message);
                    there.taken += 1;
                    if random(2) == 0 && here.lane_open.is_some() {
                        while here.stream.acknowledged(there.taken).is_some() {}
                    }
                }
            }
            6 if random(4) == 0 && !calm => {
                lost += here.lane.len() + there.lane.len();
                // What is on its way may arrive still, as long as the other end is there.
                here.end_lane();
            }
            7 if random(3) == 0 => {
                let idle = |side: &Side| side.lane_open.is_none() && side.awaits_down.is_none();
                let quiet = |side: &Side| !side.tcp.iter().any(|wire| matches!(wire, Wire::Down(..)));
                if idle(here) && idle(there) && quiet(here) && quiet(there) {
                    generation += 1;
                    for side in [here, there] {
                        side.lane.clear();
                        side.lane_open = Some(Generation(generation));
                        side.stream.switch(Generation(generation));
                        side.tcp.push_back(Wire::Switch(Generation(generation)));
                    }
                }
            }
            _ => {}
        }
    }
    // The rest, over TCP.
    sides.iter_mut().for_each(Side::end_lane);
    while sides.iter().any(|side| !side.tcp.is_empty()) {
        let [a, b] = &mut sides;
        a.tcp.pop_front().into_iter().for_each(|wire| b.hear(wire));
        b.tcp.pop_front().into_iter().for_each(|wire| a.hear(wire));
    }
    for (here, there) in [(0, 1), (1, 0)] {
        let expected: Vec<u64> = (0..sides[here].next).collect();
        assert_eq!(sides[there].delivered, expected, "seed {seed}: lost, doubled or out of order");
        assert_eq!(sides[here].stream.kept(), 0);
    }
    lost
}

#[test]
fn whatever_a_lane_does_each_message_comes_once_and_in_order() {
    let lost: usize = (1..=3_000).map(walk).sum();
    assert!(lost > 3_000, "lanes hardly ever failed with messages under way: {lost}");
}

const SMALL: u8 = Service::Txn.base() + 1;
const BLOCK: u8 = Service::Gcs.base() + 1;
const FRAMES: usize = 64;

/// Frames of a node: memory that is never freed.
struct Frames {
    start: NonNull<u8>,
    free: RefCell<Vec<usize>>,
    /// Frames that are not the interconnect's, and what is in them then.
    used: RefCell<Vec<Option<u8>>>,
}

struct Held {
    frames: Rc<Frames>,
    index: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        // It finds another use at once.
        let stamp = (self.index * 7) as u8 | 1;
        self.frames.bytes(self.index).iter().for_each(|byte| byte.set(stamp));
        self.frames.used.borrow_mut()[self.index] = Some(stamp);
        self.frames.free.borrow_mut().push(self.index);
    }
}

impl Frames {
    fn new() -> Rc<Frames> {
        let memory = Box::leak(vec![Cell::new(0u8); (FRAMES + 1) * BLOCK_SIZE].into_boxed_slice());
        let start = memory.as_ptr().wrapping_add(memory.as_ptr().align_offset(BLOCK_SIZE)).cast_mut().cast::<u8>();
        Rc::new(Frames {
            start: NonNull::new(start).unwrap(),
            free: RefCell::new((0..FRAMES).collect()),
            used: RefCell::new(vec![None; FRAMES]),
        })
    }

    fn bytes(&self, index: usize) -> &[Cell<u8>] {
        // SAFETY: leaked memory of cells, within its bounds.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(index * BLOCK_SIZE).cast(), BLOCK_SIZE) }
    }

    fn take(self: &Rc<Self>) -> Option<IoBuf> {
        let index = self.free.borrow_mut().pop()?;
        self.used.borrow_mut()[index] = None;
        let guard = Rc::new(Held { frames: self.clone(), index });
        // SAFETY: leaked memory of cells, for the buffer alone.
        Some(unsafe { IoBuf::from_raw(NonNull::new(self.start.as_ptr().add(index * BLOCK_SIZE)).unwrap(), BLOCK_SIZE, guard) })
    }

    /// Whether something was written into a frame after it found another use.
    fn are_sound(&self) -> bool {
        let used = self.used.borrow();
        (0..FRAMES).all(|index| used[index].is_none_or(|stamp| self.bytes(index).iter().all(|byte| byte.get() == stamp)))
    }
}

/// What a node heard.
#[derive(Default)]
struct Heard {
    small: RefCell<Vec<u64>>,
    blocks: RefCell<Vec<(RequestId, u8)>>,
    ups: Cell<usize>,
}

impl Handler for Heard {
    fn on_message(&self, _: NodeId, header: &Header, body: Body) {
        assert!(self.ups.get() > 0, "a message of a peer that nobody knows to be there");
        match body {
            Body::Block(block) => self.blocks.borrow_mut().push((header.request, block.as_slice()[BLOCK_SIZE - 1])),
            Body::Bytes(bytes) => {
                assert!(bytes.iter().all(|byte| *byte == header.argument as u8));
                self.small.borrow_mut().push(header.argument);
            }
            Body::Empty => self.small.borrow_mut().push(header.argument),
        }
    }
    fn on_peer_up(&self, _: NodeId) {
        self.ups.set(self.ups.get() + 1);
    }
}

struct AlsoHeard(Rc<Heard>);

impl Handler for AlsoHeard {
    fn on_message(&self, from: NodeId, header: &Header, body: Body) {
        self.0.on_message(from, header, body);
    }
}

struct Node {
    net: Interconnect,
    heard: Rc<Heard>,
    frames: Rc<Frames>,
    /// By the number of the message.
    sent: Cell<u64>,
}

impl Node {
    async fn start(reactor: &Reactor, network: &Rc<SoftNetwork>, node: u8, required: bool) -> Node {
        Node::start_with(reactor, network, node, required, Duration::ZERO, Duration::from_millis(5)).await
    }

    async fn start_with(
        reactor: &Reactor,
        network: &Rc<SoftNetwork>,
        node: u8,
        required: bool,
        poll: Duration,
        heartbeat: Duration,
    ) -> Node {
        let addresses = two_addresses(reactor);
        let address = |node: u8| addresses[usize::from(node) - 1];
        let mut settings = Settings::new(1, NodeId(node), Incarnation(1), ShardId(0), 1, address(node));
        settings.peers = vec![(NodeId(3 - node), address(3 - node))];
        settings.heartbeat_interval = heartbeat;
        settings.heartbeat_timeout = Duration::from_secs(30);
        let net = Interconnect::new(reactor, &ScnClock::new(), settings);
        net.use_rdma(device_for_test(reactor, network, address(node), 2), required, poll);
        let heard = Rc::new(Heard::default());
        net.register(Service::Txn, heard.clone());
        net.register(Service::Gcs, Rc::new(AlsoHeard(heard.clone())));
        net.let_tell(&net.peers().collect());
        net.set_epoch(Epoch(1));
        net.start().await.unwrap();
        Node { net, heard, frames: Frames::new(), sent: Cell::new(0) }
    }

    fn register(&self) -> Result<(), super::verbs::VerbsFault> {
        // SAFETY: the memory is leaked.
        unsafe { self.net.register_frames(self.frames.start.as_ptr(), FRAMES * BLOCK_SIZE) }
    }

    /// Sends the next message, with so many bytes.
    fn send(&self, to: u8, bytes: usize) {
        let argument = self.sent.get();
        self.sent.set(argument + 1);
        let message = Message { kind: SMALL, argument, ..Message::default() };
        let body = if bytes == 0 { Body::Empty } else { Body::Bytes(vec![argument as u8; bytes]) };
        self.net.send(NodeId(to), message, body).unwrap();
    }

    /// Sends a block that is all `fill` from one of the frames.
    fn send_block(&self, to: u8, request: RequestId, place: Place, fill: u8) {
        let Some(mut frame) = self.frames.take() else { return };
        frame.as_mut_slice().fill(fill);
        let block = BlockId::new(PartitionId(1), BlockNo(request.0));
        self.net.send_block(NodeId(to), Message { kind: BLOCK, request, block, ..Message::default() }, frame, place).unwrap();
    }

    fn is_by_rdma(&self) -> bool {
        self.net.stats().peers[0].by_rdma
    }
}

fn run<F: Future<Output = T> + 'static, T: 'static>(make: impl Fn(Reactor) -> F) -> T {
    run_local(ReactorOptions { driver: DriverChoice::Poll, overprovisioned: true }, &make).expect("the poll driver starts")
}

async fn until(reactor: &Reactor, what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if is_so() {
            return;
        }
        reactor.sleep(Duration::from_micros(500)).await;
    }
    panic!("never came: {what}");
}

async fn two(reactor: &Reactor, network: &Rc<SoftNetwork>) -> [Node; 2] {
    let nodes = [Node::start(reactor, network, 1, false).await, Node::start(reactor, network, 2, false).await];
    nodes.iter().for_each(|node| node.register().unwrap());
    until(reactor, "both lanes", || nodes.iter().all(Node::is_by_rdma)).await;
    until(reactor, "both memories", || nodes.iter().all(|node| node.net.could_expose())).await;
    nodes
}

#[test]
fn connections_whose_lanes_fail_at_any_moment_lose_and_double_nothing() {
    for seed in 1..=4u64 {
        run(move |reactor| async move {
            let network = SoftNetwork::new(seed);
            let nodes = two(&reactor, &network).await;
            let mut state = seed;
            for step in 0.. {
                let connected = nodes[0].net.stats().rdma.unwrap().lanes_connected;
                if step > 700 {
                    // On a busy machine lanes may not have come back often by now.
                    if connected > 4 {
                        break;
                    }
                    reactor.sleep(Duration::from_millis(1)).await;
                }
                assert!(step < 20_000, "lanes don't come back: {connected}");
                let choice = split_mix(&mut state);
                let (from, bytes) =
                    ((choice & 1) as usize, [0, 0, 0, 10, 3_000, 8_192, 8_193, 20_000, 65_536][(choice >> 1) as usize % 9]);
                nodes[from].send(2 - from as u8, bytes);
                match (choice >> 20) % 40 {
                    0 => reactor.sleep(Duration::from_micros(choice >> 40 & 0xfff)).await,
                    1..=10 => reactor.yield_now().await,
                    11 => network.hold(true),
                    12 | 13 => network.hold(false),
                    14 => network.pairs().into_iter().take((choice >> 50 & 1) as usize + 1).for_each(|pair| network.fail(pair)),
                    _ => {}
                }
            }
            network.hold(false);
            for (here, there) in [(0, 1), (1, 0)] {
                let (here, there): (&Node, &Node) = (&nodes[here], &nodes[there]);
                until(&reactor, "all messages", || there.heard.small.borrow().len() as u64 >= here.sent.get()).await;
                let expected: Vec<u64> = (0..here.sent.get()).collect();
                assert_eq!(*there.heard.small.borrow(), expected, "seed {seed}");
                assert_eq!(here.heard.ups.get(), 1, "the connection itself never broke");
            }
            let stats = nodes[0].net.stats().rdma.unwrap();
            assert!(stats.lanes_failed > 2 && stats.lanes_connected > 2 && stats.sends > 20, "{stats:?}");
            assert!(stats.doorbells < stats.sends && stats.signalled < stats.sends && stats.inline > 0, "{stats:?}");
            assert_eq!(network.not_ready(), 0, "a message found no place to be received in");
            nodes.iter().for_each(|node| node.net.close());
        });
    }
}

#[test]
fn a_block_goes_from_frame_to_frame_and_without_a_place_with_its_message() {
    run(from_frame_to_frame);
    #[cfg(feature = "rdma")]
    super::super::tests::on_devices(|| run(from_frame_to_frame));
}

async fn from_frame_to_frame(reactor: Reactor) {
    let network = SoftNetwork::new(1);
    let [one, two] = two(&reactor, &network).await;
    let writes = || two.net.stats().rdma.unwrap().writes;
    let place = one.net.expose(RequestId(7), one.frames.take().unwrap()).unwrap();
    until(&reactor, "the other's memory", || {
        two.send_block(1, RequestId(6), Place::NONE, 0x66);
        !one.heard.blocks.borrow().is_empty()
    })
    .await;
    until(&reactor, "rest", || two.frames.free.borrow().len() == FRAMES).await;
    let before = one.net.stats().blocks_rdma;
    assert!(before.bytes_copied >= BLOCK_SIZE as u64 && writes() == 0, "{before:?}");
    let sent = two.net.stats().blocks_rdma;
    two.send_block(1, RequestId(7), place, 0x77);
    until(&reactor, "the block", || one.heard.blocks.borrow().contains(&(RequestId(7), 0x77))).await;
    let after = one.net.stats().blocks_rdma;
    assert_eq!((after.received, after.bytes_copied), (before.received + 1, before.bytes_copied));
    assert_eq!((two.net.stats().blocks_rdma.bytes_copied, writes()), (sent.bytes_copied, 1));
    until(&reactor, "the sender's frame", || two.frames.free.borrow().len() == FRAMES).await;
    assert_eq!(one.frames.free.borrow().len(), FRAMES, "the receiver's too");
    // One that was answered otherwise, and a place that no node has.
    let _ = one.net.expose(RequestId(8), one.frames.take().unwrap()).unwrap();
    one.net.answered(RequestId(8));
    assert_eq!(one.frames.free.borrow().len(), FRAMES);
    two.send_block(1, RequestId(9), Place(FRAMES as u64 + 1), 0x99);
    until(&reactor, "the block", || one.heard.blocks.borrow().contains(&(RequestId(9), 0x99))).await;
    assert_eq!(writes(), 1);
    one.net.close();
    two.net.close();
}

/// Requests, blocks, and changes of the epoch on either side, with writes that are as late as can be. Whether no frame was
/// written into after it found another use.
fn frames_are_sound(seed: u64) -> bool {
    run(move |reactor| async move {
        let network = SoftNetwork::new(seed);
        let nodes = two(&reactor, &network).await;
        let [one, two] = &nodes;
        let mut state = seed;
        let (mut request, mut sound) = (100, true);
        // What the second node was told to write, and in which epoch.
        let mut told: Vec<(RequestId, Place, Epoch)> = Vec::new();
        for step in 0..1_500u64 {
            let choice = split_mix(&mut state);
            match choice % 32 {
                0..=7 => {
                    request += 1;
                    if let Some(frame) = one.frames.take()
                        && let Some(place) = one.net.expose(RequestId(request), frame)
                    {
                        told.push((RequestId(request), place, one.net.epoch()));
                    }
                }
                8..=15 if !told.is_empty() => {
                    let (request, place, epoch) = told.swap_remove((choice >> 8) as usize % told.len());
                    // Whoever is told in another epoch does not hear it.
                    if epoch == two.net.epoch() {
                        two.send_block(1, request, place, 0xee);
                    }
                }
                16 => one.net.answered(RequestId(u64::MAX)),
                17 | 18 if one.net.epoch() <= two.net.epoch() => {
                    one.net.abandon_frames();
                    one.net.set_epoch(Epoch(one.net.epoch().0 + 1));
                }
                19 | 20 if two.net.epoch() < one.net.epoch() => two.net.set_epoch(one.net.epoch()),
                21 => (0..70).for_each(|_| two.send(1, 0)),
                22 => network.hold(true),
                23 | 24 => network.hold(false),
                25 if step % 11 == 0 => network.pairs().into_iter().take(1).for_each(|pair| network.fail(pair)),
                26 => reactor.sleep(Duration::from_micros(choice >> 40 & 0x7ff)).await,
                _ => reactor.yield_now().await,
            }
            sound &= one.frames.are_sound();
        }
        network.hold(false);
        // Both in one epoch, everything comes to rest, and every frame comes back.
        one.net.abandon_frames();
        let epoch = Epoch(one.net.epoch().0.max(two.net.epoch().0) + 1);
        nodes.iter().for_each(|node| node.net.set_epoch(epoch));
        until(&reactor, "all frames", || nodes.iter().all(|node| node.frames.free.borrow().len() == FRAMES)).await;
        let stats = one.net.stats().rdma.unwrap();
        assert_eq!((stats.exposed, stats.quarantined), (0, 0));
        assert!(stats.quarantined_total > 10 && network.writes() > 10, "{stats:?}");
        sound &= one.frames.are_sound();
        nodes.iter().for_each(|node| node.net.close());
        sound
    })
}

#[test]
fn nothing_is_written_into_a_frame_that_has_found_another_use() {
    (1..=12).for_each(|seed| assert!(frames_are_sound(seed), "seed {seed}"));
    for rule in [DesignRule::AbandonedFramesQuarantined, DesignRule::WritesOfThisEpoch] {
        let noticed = (1..=60).any(|seed| !without(rule, || frames_are_sound(seed)));
        assert!(noticed, "without {rule:?} nobody notices anything");
    }
}

#[test]
fn where_rdma_fails_tcp_takes_over_and_where_only_rdma_is_wanted_nothing_does() {
    run(|reactor| async move {
        // Nobody can be reached: by TCP, and by RDMA once that has changed.
        let network = SoftNetwork::new(1);
        network.set_unreachable(true);
        let nodes = [Node::start(&reactor, &network, 1, false).await, Node::start(&reactor, &network, 2, false).await];
        nodes[1].net.all_up().await;
        nodes[1].send(1, 100);
        until(&reactor, "the message", || nodes[0].heard.small.borrow().len() == 1).await;
        until(&reactor, "the failure", || nodes[1].net.stats().rdma.unwrap().lanes_failed > 1).await;
        assert!(!nodes[0].is_by_rdma() && !nodes[1].is_by_rdma());
        network.set_unreachable(false);
        until(&reactor, "the lanes", || nodes.iter().all(Node::is_by_rdma)).await;

        // The memory can't be registered: said, and by TCP.
        network.limit_memory(Some(65_536));
        let refused = nodes[0].register().unwrap_err().to_string();
        assert!(refused.contains("RLIMIT_MEMLOCK allows 65536") && refused.contains("LimitMEMLOCK"), "{refused}");
        until(&reactor, "the end", || nodes.iter().all(|node| !node.is_by_rdma())).await;
        assert!(nodes[0].net.expose(RequestId(1), nodes[0].frames.take().unwrap()).is_none());
        nodes[0].send(2, 0);
        nodes[1].send(1, 0);
        let heard = || nodes[0].heard.small.borrow().len() == 2 && !nodes[1].heard.small.borrow().is_empty();
        until(&reactor, "the messages", heard).await;
        assert_eq!(*nodes[0].heard.small.borrow(), [0, 1]);
        nodes.iter().for_each(|node| node.net.close());
    });
    run(|reactor| async move {
        let network = SoftNetwork::new(1);
        network.set_unreachable(true);
        let nodes = [Node::start(&reactor, &network, 1, true).await, Node::start(&reactor, &network, 2, true).await];
        let lost = |node: &Node| node.net.stats().peers[0].lost_count > 0;
        until(&reactor, "the refusal", || lost(&nodes[1])).await;
        let reason = nodes[1].net.stats().peers[0].down_reason.clone();
        assert!(matches!(&reason, DownReason::NoRdma(_)) && reason.to_string().contains("docs/rdma.md"), "{reason}");
        assert!(!nodes[1].net.is_up(NodeId(1)) && nodes[1].heard.ups.get() == 0, "handlers never heard of it");
        network.set_unreachable(false);
        until(&reactor, "the connection", || nodes.iter().all(|node| node.heard.ups.get() == 1)).await;
        for round in 0..100 {
            nodes[0].send(2, round * 600);
            nodes[1].send(1, round * 600);
        }
        until(&reactor, "the messages", || nodes.iter().all(|node| node.heard.small.borrow().len() == 100)).await;
        let stats = nodes[0].net.stats();
        assert_eq!(stats.rdma.unwrap().sent_again, 0);
        network.pairs().into_iter().take(1).for_each(|pair| network.fail(pair));
        until(&reactor, "the loss, and the return", || nodes.iter().all(|node| node.heard.ups.get() == 2)).await;
        nodes.iter().for_each(|node| node.net.close());
    });
}
