//! Nodes that talk over loopback. Several nodes share one reactor here; what they say goes through real sockets.

#[cfg(feature = "rdma")]
mod devices;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::ptr::NonNull;
use std::rc::Rc;
use std::time::Duration;

use zerocopy::{FromBytes, IntoBytes};

#[cfg(feature = "rdma")]
use super::rdma::Device;
use super::rdma::soft::SoftNetwork;
use super::rdma::{SEND_SLOTS_PER_LANE, SLOTS_PER_LANE};
use super::*;
use crate::ids::{BlockId, BlockNo, PartitionId, RequestId, Scn};
use crate::reactor::thread::run_local;
use crate::reactor::{DriverChoice, ReactorOptions, Stream};

const CLUSTER: u128 = 0xc1;
const SMALL: u8 = Service::Txn.base() + 1;
const BLOCK: u8 = Service::Gcs.base() + 1;

/// What messages go by, besides TCP.
#[derive(Clone)]
enum Transport {
    Tcp,
    /// A device in memory.
    Soft(Rc<SoftNetwork>),
    /// The devices of these addresses: in the virtual machine of hw-tests, or on a machine that has some.
    #[cfg(feature = "rdma")]
    Device(Vec<std::net::IpAddr>),
}

thread_local! {
    static TRANSPORT: RefCell<Transport> = const { RefCell::new(Transport::Tcp) };
}

/// The addresses of the devices that the tests shall use.
#[cfg(feature = "rdma")]
pub(crate) fn device_addresses() -> Option<Vec<std::net::IpAddr>> {
    let addresses = std::env::var("RUSTYDB_TEST_RDMA").ok()?;
    Some(addresses.split(',').map(|address| address.parse().expect("RUSTYDB_TEST_RDMA is a list of addresses")).collect())
}

/// Runs a test on each driver that this machine has (poll always, io_uring where it is allowed), and by each transport: TCP and a
/// device in memory, or the real devices alone where such are named.
fn on_loopback<F: Future<Output = ()> + 'static>(make: impl Fn(Reactor) -> F) {
    #[cfg(feature = "rdma")]
    if let Some(addresses) = device_addresses() {
        return on_drivers(Transport::Device(addresses), &make);
    }
    on_drivers(Transport::Tcp, &make);
    on_drivers(Transport::Soft(SoftNetwork::new(1)), &make);
}

fn on_drivers<F: Future<Output = ()> + 'static>(transport: Transport, make: impl Fn(Reactor) -> F) {
    TRANSPORT.replace(transport);
    run_local(ReactorOptions { driver: DriverChoice::Poll, overprovisioned: true }, &make).expect("the poll driver starts");
    let uring = ReactorOptions { driver: DriverChoice::Uring, overprovisioned: true };
    if let Err(refused) = run_local(uring, &make) {
        println!("not on io_uring: {refused}");
    }
    TRANSPORT.replace(Transport::Tcp);
}

pub(crate) fn free_addresses(count: usize) -> Vec<SocketAddr> {
    let hosts: Vec<std::net::IpAddr> = match &TRANSPORT.with_borrow(Transport::clone) {
        #[cfg(feature = "rdma")]
        Transport::Device(addresses) => addresses.clone(),
        _ => vec![std::net::Ipv4Addr::LOCALHOST.into()],
    };
    let held: Vec<TcpListener> = hosts.iter().cycle().take(count).map(|host| TcpListener::bind((*host, 0)).unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap()).collect()
}

/// Gives an interconnect the device of the transport of now.
pub(crate) fn equip(net: &Interconnect, address: SocketAddr) {
    match &TRANSPORT.with_borrow(Transport::clone) {
        Transport::Tcp => {}
        Transport::Soft(network) => {
            net.use_rdma(network.device(address, 4 * SLOTS_PER_LANE as u32, 4 * SEND_SLOTS_PER_LANE), false, Duration::ZERO)
        }
        #[cfg(feature = "rdma")]
        Transport::Device(_) => {
            let device =
                Device::open(net.reactor(), address, 4 * SLOTS_PER_LANE as u32, 4 * SEND_SLOTS_PER_LANE).expect("a device");
            net.use_rdma(device, false, Duration::ZERO);
        }
    }
}

/// Two addresses that stay the same for a reactor.
pub(super) fn two_addresses(reactor: &Reactor) -> Vec<SocketAddr> {
    struct Two(Vec<SocketAddr>);
    if reactor.local::<Two>().is_none() {
        reactor.set_local(Rc::new(Two(free_addresses(2))));
    }
    reactor.local::<Two>().expect("just set").0.clone()
}

/// A device of the transport of now; in memory, where that is TCP.
pub(super) fn device_for_test(
    reactor: &Reactor,
    network: &Rc<SoftNetwork>,
    address: SocketAddr,
    lanes: u32,
) -> Rc<dyn super::rdma::verbs::Verbs> {
    #[cfg(feature = "rdma")]
    if let Transport::Device(_) = TRANSPORT.with_borrow(Transport::clone) {
        return Device::open(reactor, address, lanes * SLOTS_PER_LANE as u32, lanes * SEND_SLOTS_PER_LANE).expect("a device");
    }
    let _ = reactor;
    network.device(address, lanes * SLOTS_PER_LANE as u32, lanes * SEND_SLOTS_PER_LANE)
}

/// Runs something on the real devices, where some are named.
#[cfg(feature = "rdma")]
pub(crate) fn on_devices<T>(run: impl FnOnce() -> T) -> Option<T> {
    let addresses = device_addresses()?;
    TRANSPORT.replace(Transport::Device(addresses));
    let output = run();
    TRANSPORT.replace(Transport::Tcp);
    Some(output)
}

/// Runs something with every interconnect that is made in this thread on a device in memory. Gives that, to see what it did.
pub(crate) fn on_soft_devices<T>(seed: u64, run: impl FnOnce(&SoftNetwork) -> T) -> T {
    let network = SoftNetwork::new(seed);
    TRANSPORT.replace(Transport::Soft(network.clone()));
    let output = run(&network);
    TRANSPORT.replace(Transport::Tcp);
    output
}

fn goes_by_rdma() -> bool {
    !TRANSPORT.with_borrow(|transport| matches!(transport, Transport::Tcp))
}

/// What a handler saw.
#[derive(Default)]
struct Seen {
    messages: RefCell<Vec<(NodeId, Header, Body)>>,
    ups: RefCell<Vec<NodeId>>,
    downs: RefCell<Vec<NodeId>>,
    /// Memory for the next block.
    frame: RefCell<Option<IoBuf>>,
    count: Cell<u64>,
    keep: Cell<bool>,
    /// Memory that is lent out with `frame`, and how many had it when a peer went.
    arena: RefCell<Option<Rc<Vec<Cell<u8>>>>>,
    had_arena_at_down: Cell<usize>,
}

impl Handler for Seen {
    fn on_message(&self, from: NodeId, header: &Header, body: Body) {
        self.count.set(self.count.get() + 1);
        if self.keep.get() {
            self.messages.borrow_mut().push((from, *header, body));
        }
    }
    fn frame_for(&self, _: &Header) -> Option<IoBuf> {
        self.frame.take()
    }
    fn on_peer_up(&self, node: NodeId) {
        self.ups.borrow_mut().push(node);
    }
    fn on_peer_down(&self, node: NodeId) {
        self.downs.borrow_mut().push(node);
        self.had_arena_at_down.set(self.arena.borrow().as_ref().map_or(0, Rc::strong_count));
    }
}

/// The same for one more service, without counting comings and goings twice.
struct AlsoSeen(Rc<Seen>);

impl Handler for AlsoSeen {
    fn on_message(&self, from: NodeId, header: &Header, body: Body) {
        self.0.on_message(from, header, body);
    }
    fn frame_for(&self, header: &Header) -> Option<IoBuf> {
        self.0.frame_for(header)
    }
}

struct Node {
    net: Interconnect,
    clock: ScnClock,
    seen: Rc<Seen>,
}

struct Cluster {
    reactor: Reactor,
    addresses: Vec<SocketAddr>,
}

impl Cluster {
    fn new(reactor: &Reactor, nodes: usize) -> Cluster {
        Cluster { reactor: reactor.clone(), addresses: free_addresses(nodes) }
    }

    fn settings(&self, node: u8, life: u64) -> Settings {
        let own = self.addresses[usize::from(node) - 1];
        let mut settings = Settings::new(CLUSTER, NodeId(node), Incarnation(life), ShardId(0), 1, own);
        settings.peers = (1u8..).map(NodeId).zip(self.addresses.iter().copied()).filter(|(id, _)| id.0 != node).collect();
        settings.heartbeat_interval = Duration::from_millis(20);
        settings
    }

    async fn start(&self, settings: Settings) -> Node {
        let clock = ScnClock::new();
        let seen = Rc::new(Seen::default());
        seen.keep.set(true);
        let listen = settings.listen;
        let net = Interconnect::new(&self.reactor, &clock, settings);
        equip(&net, listen);
        net.register(Service::Cluster, Rc::new(AlsoSeen(seen.clone())));
        net.register(Service::Gcs, Rc::new(AlsoSeen(seen.clone())));
        net.register(Service::Txn, seen.clone());
        net.set_epoch(Epoch(1));
        net.start().await.expect("the address is free");
        Node { net, clock, seen }
    }

    async fn start_all(&self) -> Vec<Node> {
        let mut nodes = Vec::new();
        for node in 1..=self.addresses.len() {
            nodes.push(self.start(self.settings(node as u8, 1)).await);
        }
        for node in &nodes {
            node.net.all_up().await;
        }
        if goes_by_rdma() {
            let by_rdma = || nodes.iter().all(|node| node.net.stats().peers.iter().all(|peer| peer.by_rdma));
            self.until("all lanes", by_rdma).await;
        }
        nodes
    }

    /// Waits until something is so; a test that never gets there ends with `what`.
    async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        for _ in 0..10_000 {
            if is_so() {
                return;
            }
            self.reactor.sleep(Duration::from_millis(1)).await;
        }
        panic!("never came: {what}");
    }

    /// A connection to a node that says whatever a test wants, as node `from`.
    async fn stranger(&self, to: u8, from: u8, greeting: Option<Hello>) -> Stream {
        let stream = self.reactor.connect(self.addresses[usize::from(to) - 1]).await.unwrap();
        let ours = greeting.unwrap_or(Hello {
            version: PROTOCOL_VERSION,
            cluster_id: CLUSTER,
            node: NodeId(from),
            to: NodeId(to),
            shard: ShardId(0),
            shards: 1,
            block_size: BLOCK_SIZE as u32,
            incarnation: Incarnation(1),
            epoch: Epoch(1),
            scn: Scn(0),
        });
        let (sent, _) = stream.send(IoBuf::from_vec(ours.seal(None).as_bytes().to_vec())).await;
        sent.unwrap();
        let (received, answer) = stream.recv_exact(IoBuf::from_vec(vec![0; HELLO_BYTES])).await;
        received.unwrap();
        WireHello::read_from_bytes(answer.as_slice()).unwrap().open().unwrap();
        stream
    }
}

fn small(argument: u64) -> Message {
    Message { kind: SMALL, mode: 3, flags: 0x40, request: RequestId(argument + 1), argument, ..Message::default() }
}

fn block(number: u64) -> (Message, Body) {
    let mut bytes = IoBuf::aligned(BLOCK_SIZE);
    for (i, byte) in bytes.as_mut_slice().iter_mut().enumerate() {
        *byte = (i as u64 * 31 + number) as u8;
    }
    let block = BlockId::new(PartitionId(7), BlockNo(number));
    (Message { kind: BLOCK, block, ..Message::default() }, Body::Block(bytes))
}

#[test]
fn three_nodes_exchange_small_messages_and_blocks_in_order() {
    on_loopback(|reactor| async move {
        let cluster = Cluster::new(&reactor, 3);
        let nodes = cluster.start_all().await;
        assert_eq!(nodes[1].net.up_peers(), [NodeId(1), NodeId(3)]);
        let ahead = nodes[2].clock.next(5_000_000);
        for round in 0..100u64 {
            for (from, node) in nodes.iter().enumerate() {
                for to in (1..=3u8).filter(|to| usize::from(*to) != from + 1) {
                    let (message, body) = block(round);
                    let text = vec![round as u8; (round * 700) as usize % BODY_BYTES_MAX];
                    node.net.send(NodeId(to), small(round), Body::Bytes(text)).unwrap();
                    node.net.send(NodeId(to), message, body).unwrap();
                    node.net.send(NodeId(to), small(round), Body::Empty).unwrap();
                }
            }
        }
        for node in &nodes {
            cluster.until("all messages", || node.seen.count.get() == 600).await;
            for sender in node.net.peers() {
                let messages = node.seen.messages.borrow();
                let theirs: Vec<_> = messages.iter().filter(|(from, ..)| *from == sender).collect();
                for (i, (_, header, body)) in theirs.iter().enumerate() {
                    let round = (i / 3) as u64;
                    match (i % 3, body) {
                        (0, Body::Bytes(bytes)) => assert_eq!(*bytes, vec![round as u8; (round * 700) as usize % BODY_BYTES_MAX]),
                        (1, Body::Block(bytes)) => {
                            let (message, Body::Block(sent)) = block(round) else { unreachable!() };
                            assert_eq!((header.block, bytes.as_slice()), (message.block, sent.as_slice()));
                        }
                        (0 | 2, Body::Empty) => {
                            assert_eq!((header.argument, header.mode, header.flags), (round, 3, 0x40));
                        }
                        (_, other) => panic!("message {i} of {sender} has a body of the wrong kind: {other:?}"),
                    }
                }
            }
            assert!(node.clock.latest() >= ahead, "the clock of node 3 has spread");
            let stats = node.net.stats();
            assert_eq!(stats.received[Service::Gcs.index()], Traffic { messages: 200, bytes: 200 * (64 + 8192) });
            assert_eq!(stats.sent[Service::Gcs.index()].messages, 200);
            assert_eq!((stats.dropped, stats.refused), (Drops::default(), Refusals::default()));
        }
        nodes.iter().for_each(|node| node.net.close());
    });
}

#[test]
fn a_block_arrives_in_the_frame_that_the_handler_reserved() {
    on_loopback(|reactor| async move {
        let cluster = Cluster::new(&reactor, 2);
        let nodes = cluster.start_all().await;
        let arena: Rc<Vec<Cell<u8>>> = Rc::new(vec![Cell::new(0xee); 3 * BLOCK_SIZE]);
        let frame = NonNull::from(&arena[BLOCK_SIZE]).cast::<u8>();
        // SAFETY: Cells are writable through a shared reference, and the guard owns them.
        let frame = unsafe { IoBuf::from_raw(frame, BLOCK_SIZE, arena.clone()) };
        *nodes[0].seen.frame.borrow_mut() = Some(frame);
        let (message, body) = block(9);
        nodes[1].net.send(NodeId(1), message, body).unwrap();
        cluster.until("the block", || nodes[0].seen.count.get() == 1).await;
        let (_, Body::Block(sent)) = block(9) else { unreachable!() };
        let held: Vec<u8> = arena.iter().map(Cell::get).collect();
        assert_eq!(held[BLOCK_SIZE..2 * BLOCK_SIZE], *sent.as_slice());
        assert!(held[..BLOCK_SIZE].iter().chain(&held[2 * BLOCK_SIZE..]).all(|byte| *byte == 0xee));
        nodes.iter().for_each(|node| node.net.close());
    });
}

/// A block that comes in pieces: its bytes lie in the frame as they come, and nobody hears of it before the last. If that
/// never comes, or the epoch ends before, the frame is given back, and what comes behind the block is heard.
#[test]
fn a_block_that_does_not_come_whole_is_nobodys_block() {
    on_loopback(|reactor| async move {
        let cluster = Cluster::new(&reactor, 2);
        let one = cluster.start(cluster.settings(1, 1)).await;
        let header = Header {
            kind: BLOCK,
            flags: FLAG_BLOCK,
            mode: 0,
            from: NodeId(2),
            body_len: BLOCK_SIZE as u32,
            epoch: Epoch(1),
            incarnation: Incarnation(1),
            scn: Scn(0),
            block: BlockId::new(PartitionId(7), BlockNo(1)),
            request: RequestId(1),
            argument: 0,
        };
        let next = Header { kind: SMALL, flags: 0, body_len: 0, argument: 77, epoch: Epoch(2), ..header };
        let wire = |header: &Header| header.seal(&[]).as_bytes().to_vec();
        let lend = || {
            let arena: Rc<Vec<Cell<u8>>> = Rc::new(vec![Cell::new(0xee); BLOCK_SIZE]);
            let frame = NonNull::from(&arena[0]).cast::<u8>();
            // SAFETY: Cells are writable through a shared reference, and the guard owns them.
            *one.seen.frame.borrow_mut() = Some(unsafe { IoBuf::from_raw(frame, BLOCK_SIZE, arena.clone()) });
            *one.seen.arena.borrow_mut() = Some(arena.clone());
            arena
        };
        let in_frame = |arena: &Vec<Cell<u8>>| arena.iter().filter(|byte| byte.get() == 0xaa).count();

        // Header alone, a part, the rest with the next message behind it.
        let arena = lend();
        let evil = cluster.stranger(1, 2, None).await;
        cluster.until("the welcome", || one.net.is_up(NodeId(2))).await;
        let send = async |bytes: Vec<u8>| evil.send(IoBuf::from_vec(bytes)).await.0.unwrap();
        send(wire(&header)).await;
        cluster.until("its frame", || one.seen.frame.borrow().is_none()).await;
        send(vec![0xaa; 5000]).await;
        cluster.until("the first part", || in_frame(&arena) == 5000).await;
        assert_eq!(one.seen.count.get(), 0, "not before it is whole");
        send([vec![0xaa; BLOCK_SIZE - 5000], wire(&Header { epoch: Epoch(1), ..next })].concat()).await;
        cluster.until("both messages", || one.seen.count.get() == 2).await;
        assert_eq!(in_frame(&arena), BLOCK_SIZE);
        one.seen.messages.borrow_mut().clear();

        // The epoch ends in the middle.
        let arena = lend();
        send([wire(&header), vec![0xaa; 100]].concat()).await;
        cluster.until("its frame", || in_frame(&arena) == 100).await;
        one.net.set_epoch(Epoch(2));
        send([vec![0xaa; BLOCK_SIZE - 100], wire(&next)].concat()).await;
        cluster.until("the message behind it", || one.seen.count.get() == 3).await;
        assert_eq!(one.seen.messages.borrow()[0].1.argument, 77);
        assert_eq!(one.net.stats().dropped, Drops { epoch: 1, ..Drops::default() });
        assert_eq!(Rc::strong_count(&arena), 2, "the frame is given back");

        // One of the old epoch gets no frame, and is taken from the stream all the same.
        let _arena = lend();
        send(wire(&header)).await;
        reactor.sleep(Duration::from_millis(2)).await;
        send([vec![0xaa; BLOCK_SIZE], wire(&next)].concat()).await;
        cluster.until("the message behind it", || one.seen.count.get() == 4).await;
        assert!(one.seen.frame.borrow().is_some(), "nobody asked for a frame");

        // The connection breaks in the middle: the frame is back before the loss is told.
        let arena = lend();
        send([wire(&Header { epoch: Epoch(2), ..header }), vec![0xaa; 100]].concat()).await;
        cluster.until("its frame", || in_frame(&arena) == 100).await;
        assert_eq!(Rc::strong_count(&arena), 3, "lent");
        evil.shutdown();
        cluster.until("the loss", || !one.seen.downs.borrow().is_empty()).await;
        assert_eq!(one.seen.had_arena_at_down.get(), 2, "it was lent still when the peer's loss was told");
        // The same when it is this side that gives the peer up, with the kernel still receiving.
        let arena = lend();
        let mute = cluster.stranger(1, 2, None).await;
        cluster.until("the welcome", || one.net.is_up(NodeId(2))).await;
        let piece = [wire(&Header { epoch: Epoch(2), ..header }), vec![0xaa; 100]].concat();
        mute.send(IoBuf::from_vec(piece)).await.0.unwrap();
        cluster.until("its frame", || in_frame(&arena) == 100).await;
        let peer = one.net.peer(NodeId(2)).unwrap().clone();
        peer.link.borrow().as_ref().unwrap().fail(DownReason::ClosedHere);
        cluster.until("the loss", || one.seen.downs.borrow().len() == 2).await;
        assert_eq!(one.seen.had_arena_at_down.get(), 2, "it was lent still when the peer's loss was told");
        assert_eq!(one.seen.count.get(), 4);
        one.net.close();
    });
}

#[test]
fn a_peer_is_lost_and_comes_back_in_another_life() {
    on_loopback(|reactor| async move {
        let cluster = Cluster::new(&reactor, 2);
        let nodes = cluster.start_all().await;
        nodes[1].net.close();
        cluster.until("the loss", || nodes[0].seen.downs.borrow().len() == 1).await;
        assert!(!nodes[0].net.is_up(NodeId(2)));
        let refused = nodes[0].net.send(NodeId(2), small(0), Body::Empty).unwrap_err();
        assert_eq!(refused.node, NodeId(2));
        assert!(nodes[1].net.send(NodeId(1), small(0), Body::Empty).is_err());

        let again = cluster.start(cluster.settings(2, 2)).await;
        again.net.all_up().await;
        cluster.until("the return", || nodes[0].seen.ups.borrow().len() == 2).await;
        assert_eq!(nodes[0].net.incarnation_of(NodeId(2)), Incarnation(2));
        again.net.send(NodeId(1), small(5), Body::Empty).unwrap();
        cluster.until("its message", || nodes[0].seen.count.get() == 1).await;

        // The first life wakes up and knocks: refused, and the second one is left alone.
        let old = Cluster { reactor: reactor.clone(), addresses: vec![cluster.addresses[0], free_addresses(1)[0]] };
        let old = old.start(old.settings(2, 1)).await;
        cluster.until("its refusal", || old.net.stats().refused.greeting > 0).await;
        assert!(nodes[0].net.stats().refused.greeting > 0);
        assert_eq!((nodes[0].seen.downs.borrow().len(), old.seen.ups.borrow().len()), (1, 0));
        [&nodes[0], &again, &old].iter().for_each(|node| node.net.close());
    });
}

#[test]
fn nodes_come_into_a_running_cluster_and_leave_it_for_good() {
    on_loopback(|reactor| async move {
        let cluster = Cluster::new(&reactor, 3);
        let knowing = |node: u8, known: &[u8]| {
            let mut settings = cluster.settings(node, 1);
            settings.peers.retain(|(peer, _)| known.contains(&peer.0));
            settings
        };
        // One that the others don't know, of a higher number: it connects, they refuse until they have heard of it.
        let two = cluster.start(knowing(2, &[])).await;
        let three = cluster.start(knowing(3, &[2])).await;
        cluster.until("the refusal", || two.net.stats().refused.greeting > 0).await;
        two.net.add_peer(NodeId(3), cluster.addresses[2]);
        cluster.until("the connection", || two.net.is_up(NodeId(3)) && three.net.is_up(NodeId(2))).await;
        // One of a lower number: it is connected to.
        let one = cluster.start(knowing(1, &[2, 3])).await;
        two.net.add_peer(NodeId(1), cluster.addresses[0]);
        three.net.add_peer(NodeId(1), cluster.addresses[0]);
        one.net.all_up().await;
        one.net.send(NodeId(3), small(5), Body::Empty).unwrap();
        cluster.until("its message", || three.seen.count.get() == 1).await;

        // Node 3 leaves: those who know it refuse it, and tell it why. To remove one that is no peer is nothing.
        let before = three.net.stats().refused.greeting;
        for node in [&one, &two] {
            node.net.remove_peer(NodeId(3));
            node.net.remove_peer(NodeId(9));
        }
        cluster.until("the losses", || three.seen.downs.borrow().len() == 2).await;
        cluster.until("its refusals", || three.net.stats().refused.greeting >= before + 2).await;
        assert!(three.net.up_peers().is_empty());
        assert_eq!((one.net.up_peers(), two.net.up_peers()), (vec![NodeId(2)], vec![NodeId(1)]));
        assert_eq!(one.net.peers().collect::<Vec<_>>(), [NodeId(2)]);
        assert_eq!(one.seen.downs.borrow().len(), 1, "the handlers hear of it as of any loss");
        one.net.all_up().await;
        [&one, &two, &three].iter().for_each(|node| node.net.close());
    });
}

#[test]
fn a_node_of_another_cluster_is_refused_by_name() {
    on_loopback(|reactor| async move {
        let cluster = Cluster::new(&reactor, 3);
        let one = cluster.start(cluster.settings(1, 1)).await;
        let two = cluster.start(cluster.settings(2, 1)).await;
        let three = cluster.start(Settings { cluster_id: 0xbad, ..cluster.settings(3, 1) }).await;
        cluster.until("the others' connection", || one.net.is_up(NodeId(2))).await;
        cluster.until("the refusals", || three.net.stats().refused.greeting >= 2).await;
        assert!(one.net.stats().refused.greeting > 0 && two.net.stats().refused.greeting > 0);
        assert_eq!(one.net.up_peers(), [NodeId(2)]);
        assert!(three.net.up_peers().is_empty());
        [&one, &two, &three].iter().for_each(|node| node.net.close());
    });
}

#[test]
fn garbage_closes_its_own_connection_and_no_other() {
    on_loopback(|reactor| async move {
        let cluster = Cluster::new(&reactor, 3);
        let one = cluster.start(cluster.settings(1, 1)).await;
        let two = cluster.start(cluster.settings(2, 1)).await;
        cluster.until("the connection", || one.net.is_up(NodeId(2))).await;

        let browser = reactor.connect(cluster.addresses[0]).await.unwrap();
        let (_, _) = browser.send(IoBuf::from_vec(b"GET / HTTP/1.1\r\n".repeat(8))).await;
        let (end, _) = browser.recv(IoBuf::from_vec(vec![0; 10])).await;
        assert!(matches!(end, Ok(0) | Err(_)), "a stranger hears nothing: {end:?}");
        assert_eq!(one.net.stats().refused.not_a_node, 1);

        // A peer that greets well and then claims more bytes than a message may have.
        let header = Header {
            kind: SMALL,
            flags: 0,
            mode: 0,
            from: NodeId(3),
            body_len: u32::MAX,
            epoch: Epoch(1),
            incarnation: Incarnation(1),
            scn: Scn(0),
            block: BlockId::default(),
            request: RequestId(0),
            argument: 0,
        };
        let forged = |header: Header, body: &[u8]| IoBuf::from_vec([header.seal(body).as_bytes(), body].concat());
        let damaged = |which: u8| {
            let mut bytes = forged(Header { body_len: 3, ..header }, b"abc").into_vec();
            bytes[usize::from(which)] ^= 1;
            IoBuf::from_vec(bytes)
        };
        let cases = [
            forged(header, b""),
            forged(Header { body_len: 0, from: NodeId(2), ..header }, b""),
            forged(Header { body_len: 0, scn: Scn::MAX, ..header }, b""),
            damaged(40),
            damaged(66),
        ];
        for (i, bytes) in cases.into_iter().enumerate() {
            let evil = cluster.stranger(1, 3, None).await;
            cluster.until("its welcome", || one.net.is_up(NodeId(3))).await;
            let (_, _) = evil.send(bytes).await;
            cluster.until("its end", || one.seen.downs.borrow().len() == i + 1).await;
            let status = one.net.stats().peers[1].clone();
            assert!(matches!(status.down_reason, DownReason::Damaged(_)), "case {i}: {}", status.down_reason);
            assert_eq!(one.net.stats().refused.damaged, i as u64 + 1);
        }
        two.net.send(NodeId(1), small(1), Body::Empty).unwrap();
        cluster.until("a message of the peer that behaves", || one.seen.count.get() == 1).await;
        assert!(one.seen.downs.borrow().iter().all(|node| *node == NodeId(3)));
        [&one, &two].iter().for_each(|node| node.net.close());
    });
}

#[test]
fn messages_of_another_epoch_are_dropped_but_for_the_clusters_own() {
    on_loopback(|reactor| async move {
        let cluster = Cluster::new(&reactor, 2);
        let nodes = cluster.start_all().await;
        let founding = Message { kind: Service::Cluster.base() + 2, argument: 1, ..Message::default() };
        nodes[0].net.set_epoch(Epoch(2));
        nodes[1].net.send(NodeId(1), small(1), Body::Empty).unwrap();
        let (stale, body) = block(1);
        nodes[1].net.send(NodeId(1), stale, body).unwrap();
        nodes[1].net.send(NodeId(1), founding, Body::Empty).unwrap();
        nodes[1].net.set_epoch(Epoch(2));
        nodes[1].net.send(NodeId(1), small(2), Body::Empty).unwrap();
        cluster.until("both messages", || nodes[0].seen.count.get() == 2).await;
        let arguments: Vec<u64> = nodes[0].seen.messages.borrow().iter().map(|(_, header, _)| header.argument).collect();
        assert_eq!(arguments, [1, 2]);
        assert_eq!(nodes[0].seen.messages.borrow()[0].1.kind, founding.kind);
        assert_eq!(nodes[0].net.stats().dropped, Drops { epoch: 2, ..Drops::default() });
        nodes.iter().for_each(|node| node.net.close());
    });
}

#[test]
fn a_peer_that_falls_too_far_behind_is_lost_and_a_silent_one_too() {
    on_loopback(|reactor| async move {
        let cluster = Cluster::new(&reactor, 2);
        let mut settings = cluster.settings(1, 1);
        settings.send_queue_bytes_max = 1_000_000;
        settings.heartbeat_timeout = Duration::from_millis(100);
        let one = cluster.start(settings).await;
        let _slow = cluster.stranger(1, 2, None).await;
        cluster.until("the welcome", || one.net.is_up(NodeId(2))).await;
        let sent = (0..1_000u64).map(|i| one.net.send(NodeId(2), small(i), Body::Bytes(vec![0; 10_000])));
        let refused = sent.filter_map(Result::err).next().expect("the queue is bounded");
        assert!(matches!(refused.reason, DownReason::QueueFull { bytes } if bytes <= 1_020_000), "{refused}");
        assert!(one.seen.downs.borrow().is_empty(), "handlers are not called from within send");
        cluster.until("the loss", || one.seen.downs.borrow().len() == 1).await;

        let _mute = cluster.stranger(1, 2, None).await;
        cluster.until("the welcome", || one.seen.ups.borrow().len() == 2).await;
        cluster.until("the loss", || one.seen.downs.borrow().len() == 2).await;
        assert!(matches!(one.net.stats().peers[0].down_reason, DownReason::Silent(_)));
        one.net.close();
    });
}

#[test]
fn a_port_in_use_is_named() {
    on_loopback(|reactor| async move {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let settings = Settings::new(CLUSTER, NodeId(1), Incarnation(1), ShardId(0), 1, address);
        let net = Interconnect::new(&reactor, &ScnClock::new(), settings);
        let error = net.start().await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("another process"), "{error}");
    });
}
