//! What the tests of this folder stand on: nodes on loopback that share one reactor, on each driver and by each transport, with
//! handlers that keep what they see. Tests of other folders take the devices in memory from here.

use std::cell::{Cell, RefCell};
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::time::Duration;

use zerocopy::{FromBytes, IntoBytes};

use crate::clock::ScnClock;
use crate::ids::{BLOCK_SIZE, BlockId, BlockNo, Epoch, Incarnation, NodeId, PartitionId, RequestId, Scn, ShardId};
#[cfg(feature = "rdma")]
use crate::interconnect::rdma::Device;
use crate::interconnect::rdma::soft::SoftNetwork;
use crate::interconnect::rdma::verbs::Verbs;
use crate::interconnect::rdma::{SEND_SLOTS_PER_LANE, SLOTS_PER_LANE};
use crate::interconnect::*;
use crate::reactor::thread::run_local;
use crate::reactor::{DriverChoice, IoBuf, Reactor, ReactorOptions, Stream};

pub const CLUSTER: u128 = 0xc1;
pub const SMALL: u8 = Service::Txn.base() + 1;
pub const BLOCK: u8 = Service::Gcs.base() + 1;

/// What messages go by, besides TCP.
#[derive(Clone)]
pub enum Transport {
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
pub fn device_addresses() -> Option<Vec<std::net::IpAddr>> {
    let addresses = std::env::var("RUSTYDB_TEST_RDMA").ok()?;
    Some(addresses.split(',').map(|address| address.parse().expect("RUSTYDB_TEST_RDMA is a list of addresses")).collect())
}

/// Runs a test on each driver that this machine has (poll always, io_uring where it is allowed), and by each transport: TCP and a
/// device in memory, or the real devices alone where such are named.
pub fn on_loopback<F: Future<Output = ()> + 'static>(make: impl Fn(Reactor) -> F) {
    #[cfg(feature = "rdma")]
    if let Some(addresses) = device_addresses() {
        return on_drivers(Transport::Device(addresses), &make);
    }
    on_drivers(Transport::Tcp, &make);
    on_drivers(Transport::Soft(SoftNetwork::new(1)), &make);
}

pub fn on_drivers<F: Future<Output = ()> + 'static>(transport: Transport, make: impl Fn(Reactor) -> F) {
    TRANSPORT.replace(transport);
    run_local(ReactorOptions { driver: DriverChoice::Poll, overprovisioned: true }, &make).expect("the poll driver starts");
    let uring = ReactorOptions { driver: DriverChoice::Uring, overprovisioned: true };
    if let Err(refused) = run_local(uring, &make) {
        println!("not on io_uring: {refused}");
    }
    TRANSPORT.replace(Transport::Tcp);
}

pub fn free_addresses(count: usize) -> Vec<SocketAddr> {
    let hosts: Vec<std::net::IpAddr> = match &TRANSPORT.with_borrow(Transport::clone) {
        #[cfg(feature = "rdma")]
        Transport::Device(addresses) => addresses.clone(),
        _ => vec![std::net::Ipv4Addr::LOCALHOST.into()],
    };
    let held: Vec<TcpListener> = hosts.iter().cycle().take(count).map(|host| TcpListener::bind((*host, 0)).unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap()).collect()
}

/// Gives an interconnect the device of the transport of now.
pub fn equip(net: &Interconnect, address: SocketAddr) {
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
pub fn two_addresses(reactor: &Reactor) -> Vec<SocketAddr> {
    struct Two(Vec<SocketAddr>);
    if reactor.local::<Two>().is_none() {
        reactor.set_local(Rc::new(Two(free_addresses(2))));
    }
    reactor.local::<Two>().expect("just set").0.clone()
}

/// A device of the transport of now; in memory, where that is TCP.
pub fn device_for_test(reactor: &Reactor, network: &Rc<SoftNetwork>, address: SocketAddr, lanes: u32) -> Rc<dyn Verbs> {
    #[cfg(feature = "rdma")]
    if let Transport::Device(_) = TRANSPORT.with_borrow(Transport::clone) {
        return Device::open(reactor, address, lanes * SLOTS_PER_LANE as u32, lanes * SEND_SLOTS_PER_LANE).expect("a device");
    }
    let _ = reactor;
    network.device(address, lanes * SLOTS_PER_LANE as u32, lanes * SEND_SLOTS_PER_LANE)
}

/// Runs something on the real devices, where some are named.
#[cfg(feature = "rdma")]
pub fn on_devices<T>(run: impl FnOnce() -> T) -> Option<T> {
    let addresses = device_addresses()?;
    TRANSPORT.replace(Transport::Device(addresses));
    let output = run();
    TRANSPORT.replace(Transport::Tcp);
    Some(output)
}

/// Runs something with every interconnect that is made in this thread on a device in memory. Gives that, to see what it did.
pub fn on_soft_devices<T>(seed: u64, run: impl FnOnce(&SoftNetwork) -> T) -> T {
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
pub struct Seen {
    pub messages: RefCell<Vec<(NodeId, Header, Body)>>,
    pub ups: RefCell<Vec<NodeId>>,
    pub downs: RefCell<Vec<NodeId>>,
    /// Memory for the next block.
    pub frame: RefCell<Option<IoBuf>>,
    pub count: Cell<u64>,
    pub keep: Cell<bool>,
    /// Memory that is lent out with `frame`, and how many had it when a peer went.
    pub arena: RefCell<Option<Rc<Vec<Cell<u8>>>>>,
    pub had_arena_at_down: Cell<usize>,
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

pub struct Node {
    pub net: Interconnect,
    pub clock: ScnClock,
    pub seen: Rc<Seen>,
}

pub struct Cluster {
    pub reactor: Reactor,
    pub addresses: Vec<SocketAddr>,
}

impl Cluster {
    pub fn new(reactor: &Reactor, nodes: usize) -> Cluster {
        Cluster { reactor: reactor.clone(), addresses: free_addresses(nodes) }
    }

    pub fn settings(&self, node: u8, life: u64) -> Settings {
        let own = self.addresses[usize::from(node) - 1];
        let mut settings = Settings::new(CLUSTER, NodeId(node), Incarnation(life), ShardId(0), 1, own);
        settings.peers = (1u8..).map(NodeId).zip(self.addresses.iter().copied()).filter(|(id, _)| id.0 != node).collect();
        settings.heartbeat_interval = Duration::from_millis(20);
        settings
    }

    pub async fn start(&self, settings: Settings) -> Node {
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

    pub async fn start_all(&self) -> Vec<Node> {
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
    pub async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        for _ in 0..10_000 {
            if is_so() {
                return;
            }
            self.reactor.sleep(Duration::from_millis(1)).await;
        }
        panic!("never came: {what}");
    }

    /// A connection to a node that says whatever a test wants, as node `from`.
    pub async fn stranger(&self, to: u8, from: u8, greeting: Option<Hello>) -> Stream {
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

pub fn small(argument: u64) -> Message {
    Message { kind: SMALL, mode: 3, flags: 0x40, request: RequestId(argument + 1), argument, ..Message::default() }
}

pub fn block(number: u64) -> (Message, Body) {
    let mut bytes = IoBuf::aligned(BLOCK_SIZE);
    for (i, byte) in bytes.as_mut_slice().iter_mut().enumerate() {
        *byte = (i as u64 * 31 + number) as u8;
    }
    let block = BlockId::new(PartitionId(7), BlockNo(number));
    (Message { kind: BLOCK, block, ..Message::default() }, Body::Block(bytes))
}
