//! Messages between nodes: framing, connections, heartbeats, dispatch to the services.
//!
//! One [`Interconnect`] per shard, owned by that shard's thread; shard i of a node talks only to shard i of other nodes,
//! over one connection per pair. What bounds it: per peer a send queue and one receive buffer; a fixed number of
//! half-open connections. What it promises: messages to one peer arrive in the order in which they were sent, whole, at
//! most once, or the peer is reported down; never a message of another epoch or of an earlier life of the peer; a block
//! lies in the frame that its handler reserved.
//!
//! Where both nodes have RDMA, the messages of a connection go by a lane beside it ([`rdma`]), and over TCP again when that
//! fails, without a message lost or doubled; the handlers don't notice.
//!
//! Nothing is sent again when the connection itself breaks: whatever was under way when a connection broke is lost, and the
//! handlers of both sides hear `on_peer_down`. A later connection to the same life of the peer is a fresh start for them, not a
//! continuation.

mod header;
mod hello;
mod link;
mod one_sided;
mod peer;
mod queue;
pub mod rdma;
mod settings;
mod stats;
mod tcp;
#[cfg(test)]
pub(crate) mod tests;

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

pub use self::header::{
    BODY_BYTES_MAX, FLAG_BLOCK, FLAG_WRITTEN, FLAGS_OF_SERVICE, FrameFault, HEADER_BYTES, Header, Message, Service, WireHeader,
};
pub use self::hello::{Expected, HELLO_BYTES, HELLO_MAGIC, Hello, HelloFault, PROTOCOL_VERSION, WireHello};
use self::link::Link;
use self::peer::Peer;
use self::queue::QueuedBody;
use self::rdma::{Place, Rdma};
pub use self::settings::{InterconnectError, SEND_QUEUE_BYTES, Settings};
use self::stats::Counters;
pub use self::stats::{BlockTraffic, DownReason, Drops, PeerDown, PeerStatus, RdmaTraffic, Refusals, Stats, Traffic};
use crate::clock::ScnClock;
use crate::ids::{BLOCK_SIZE, Epoch, Incarnation, NODES_MAX, NodeId, ShardId};
use crate::reactor::{Class, IoBuf, LogGate, Reactor, TaskHandle};

/// Heartbeat; the argument comes back in the answer.
const LINK_PING: u8 = Service::Link.base();
/// Answer to a heartbeat.
const LINK_PONG: u8 = Service::Link.base() + 1;

/// At most one log line about strangers on the port in this time.
const STRANGER_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// What goes with a message.
#[derive(Debug)]
pub enum Body {
    /// Nothing.
    Empty,
    /// At most [`BODY_BYTES_MAX`] bytes.
    Bytes(Vec<u8>),
    /// One block: sent from where it lies, and received into the frame that the handler reserved for it. Whoever sends
    /// it does not change it until the buffer is dropped.
    Block(IoBuf),
}

/// One of the engine's services at this end of the connections. Called on the shard's thread, never from within
/// [`Interconnect::send`].
pub trait Handler {
    /// A message of one of the service's kinds, of our epoch and of the sender's present life.
    fn on_message(&self, from: NodeId, header: &Header, body: Body);

    /// Where the block that follows this header shall lie: exactly one block of memory. `None`: in memory of its own. The
    /// block is not there yet: it is when [`on_message`](Self::on_message) gives the buffer back. If the buffer is dropped
    /// instead (the connection breaks, the epoch ends), what is in it is worth nothing; that is over before
    /// [`on_peer_down`](Self::on_peer_down).
    fn frame_for(&self, header: &Header) -> Option<IoBuf> {
        let _ = header;
        None
    }

    /// The peer is connected; from here on messages reach it. [`Interconnect::incarnation_of`] tells which life it is.
    fn on_peer_up(&self, node: NodeId) {
        let _ = node;
    }

    /// The connection to the peer is lost, and with it everything under way in both directions.
    fn on_peer_down(&self, node: NodeId) {
        let _ = node;
    }
}

pub(crate) struct Inner {
    reactor: Reactor,
    clock: ScnClock,
    settings: Settings,
    epoch: Cell<Epoch>,
    handlers: RefCell<[Option<Rc<dyn Handler>>; Service::ALL.len()]>,
    /// By node number; one that is there stays.
    peers: Box<[OnceCell<Rc<Peer>>]>,
    counters: Counters,
    strangers: LogGate,
    half_open: Cell<usize>,
    rdma: OnceCell<Rc<Rdma>>,
    tasks: RefCell<Vec<TaskHandle>>,
    started: Cell<bool>,
    closed: Cell<bool>,
}

/// A shard's end of the connections to the same shard of every other node. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct Interconnect(Rc<Inner>);

impl Interconnect {
    /// An interconnect that does nothing yet: register the handlers, then [`start`](Interconnect::start) it.
    #[must_use]
    pub fn new(reactor: &Reactor, clock: &ScnClock, settings: Settings) -> Interconnect {
        let configured = settings.peers.clone();
        let interconnect = Interconnect(Rc::new(Inner {
            reactor: reactor.clone(),
            clock: clock.clone(),
            settings,
            epoch: Cell::default(),
            handlers: RefCell::default(),
            peers: (0..=NODES_MAX).map(|_| OnceCell::new()).collect(),
            counters: Counters::default(),
            strangers: LogGate::new(STRANGER_LOG_INTERVAL),
            half_open: Cell::new(0),
            rdma: OnceCell::new(),
            tasks: RefCell::default(),
            started: Cell::new(false),
            closed: Cell::new(false),
        }));
        for (node, address) in configured {
            interconnect.add_peer(node, address);
        }
        // The handlers know the interconnect.
        let inner = Rc::downgrade(&interconnect.0);
        reactor.at_end(move || {
            if let Some(inner) = inner.upgrade() {
                inner.close();
            }
        });
        interconnect
    }

    /// Makes a node a peer, also while messages flow: from now on it is connected to, or let in when it connects. One that is
    /// a peer already is looked for there from the next attempt to connect on.
    pub fn add_peer(&self, node: NodeId, address: SocketAddr) {
        assert_ne!(node, self.0.settings.node, "a node is no peer of itself");
        let place = &self.0.peers[usize::from(node.0)];
        if let Some(peer) = place.get() {
            peer.address.set(address);
            return;
        }
        let peer = place.get_or_init(|| Peer::new(node, address));
        if self.0.started.get() && !self.0.closed.get() {
            tcp::keep_connecting(&self.0, peer);
        }
    }

    /// Has nothing to do any more with a node that left the cluster for good: its connection ends, handlers hear of the loss as
    /// of any other, and its greetings are refused from now on, with words that say so in both logs.
    pub fn remove_peer(&self, node: NodeId) {
        if let Some(peer) = self.peer(node) {
            peer.removed.set(true);
            self.break_off(node);
        }
    }

    /// Names the handler of a service. Before [`start`](Interconnect::start), so that no message is missed.
    pub fn register(&self, service: Service, handler: Rc<dyn Handler>) {
        assert!(!self.0.started.get(), "handlers are registered before the interconnect starts");
        assert!(service != Service::Link, "heartbeats are the interconnect's own");
        let before = self.0.handlers.borrow_mut()[service.index()].replace(handler);
        assert!(before.is_none(), "the {} service has one handler", service.name());
    }

    /// Listens, and keeps connecting to the peers of lower number until [`close`](Interconnect::close). Does not wait for
    /// them; see [`all_up`](Interconnect::all_up).
    ///
    /// # Errors
    /// When the address can't be listened on.
    pub async fn start(&self) -> Result<(), InterconnectError> {
        assert!(!self.0.started.replace(true), "an interconnect is started once");
        tcp::start(&self.0).await?;
        if let Some(rdma) = self.0.rdma() {
            let driving = rdma::drive(self.0.clone(), rdma.clone());
            self.0.tasks.borrow_mut().push(self.0.reactor.spawn(Class::High, "interconnect RDMA", driving));
        }
        Ok(())
    }

    /// Sends a message to a peer, without waiting. Everything sent in one turn of the reactor leaves in one piece.
    /// Messages to oneself are a programming error: the caller takes the short way.
    ///
    /// # Errors
    /// [`PeerDown`] when the peer is not connected or has fallen too far behind; handlers are told separately. `Ok` does
    /// not mean that it arrives: the connection may break later.
    pub fn send(&self, to: NodeId, message: Message, body: Body) -> Result<(), PeerDown> {
        self.send_to_place(to, message, body, Place::NONE)
    }

    fn send_to_place(&self, to: NodeId, message: Message, body: Body, place: Place) -> Result<(), PeerDown> {
        assert_ne!(to, self.0.settings.node, "a message of kind {:#04x} to this node itself", message.kind);
        let service = Service::of(message.kind);
        assert!(
            service.is_some_and(|service| service != Service::Link),
            "kind {:#04x} belongs to no service that sends",
            message.kind
        );
        assert_eq!(message.flags & !FLAGS_OF_SERVICE, 0, "flags {:#04x} are the interconnect's own", message.flags);
        let Some(peer) = self.peer(to) else { return Err(PeerDown { node: to, reason: DownReason::NeverSeen }) };
        let link = match &*peer.link.borrow() {
            Some(link) => link.clone(),
            None => return Err(PeerDown { node: to, reason: peer.down_reason.borrow().clone() }),
        };
        if !link.announced.get() {
            return Err(PeerDown { node: to, reason: peer.down_reason.borrow().clone() });
        }
        if let Some(reason) = link.fault.borrow().clone() {
            return Err(PeerDown { node: to, reason });
        }
        let sent = match body {
            Body::Empty => self.0.enqueue(peer, &link, message, QueuedBody::Bytes(&[]), Place::NONE),
            Body::Bytes(bytes) => {
                assert!(bytes.len() <= BODY_BYTES_MAX, "a body of {} bytes is longer than {BODY_BYTES_MAX}", bytes.len());
                self.0.enqueue(peer, &link, message, QueuedBody::Bytes(&bytes), Place::NONE)
            }
            Body::Block(block) => self.0.enqueue(peer, &link, message, QueuedBody::Block(block), place),
        };
        if let Some(rdma) = self.0.rdma()
            && link.lane.borrow().has_to_post()
        {
            rdma.post_soon(&link);
        }
        sent.map_err(|reason| PeerDown { node: to, reason })
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.0.settings.node
    }

    /// This shard.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.0.settings.shard
    }

    /// The reactor that it runs on.
    #[must_use]
    pub fn reactor(&self) -> &Reactor {
        &self.0.reactor
    }

    /// The node's clock, which takes notice of every message.
    #[must_use]
    pub fn clock(&self) -> &ScnClock {
        &self.0.clock
    }

    /// This node's epoch: sent with every message, required of every message but the cluster service's.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.0.epoch.get()
    }

    /// Enters an epoch. Epochs only grow.
    pub fn set_epoch(&self, epoch: Epoch) {
        let before = self.0.epoch.replace(epoch);
        assert!(epoch >= before, "from {before} back to {epoch}");
        if let Some(rdma) = self.0.rdma() {
            rdma.on_epoch(&self.0, before);
        }
    }

    /// Whether messages to this peer can be sent now.
    #[must_use]
    pub fn is_up(&self, node: NodeId) -> bool {
        self.peer(node).is_some_and(|peer| peer.link.borrow().as_ref().is_some_and(|link| link.is_up()))
    }

    /// Bytes that wait to be sent to a peer; 0 while it is not connected. Who has a lot to say paces itself by this.
    #[must_use]
    pub fn queued_bytes(&self, node: NodeId) -> usize {
        let link = self.peer(node).and_then(|peer| peer.link.borrow().clone());
        link.map_or(0, |link| link.waiting().0)
    }

    /// The configured peers, in the order of their numbers.
    pub fn peers(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.0.present().map(|peer| peer.node)
    }

    /// The peers that are connected, in the order of their numbers.
    #[must_use]
    pub fn up_peers(&self) -> Vec<NodeId> {
        self.peers().filter(|node| self.is_up(*node)).collect()
    }

    /// The latest life seen of a peer; 0 when it was never seen.
    #[must_use]
    pub fn incarnation_of(&self, node: NodeId) -> Incarnation {
        self.peer(node).map_or(Incarnation(0), |peer| peer.incarnation.get())
    }

    /// Resolves when every peer is connected. Has no time limit of its own.
    pub async fn all_up(&self) {
        for peer in self.0.present() {
            loop {
                let changed = peer.changed.notified();
                if self.is_up(peer.node) {
                    break;
                }
                changed.await;
            }
        }
    }

    /// Breaks the connection to a peer off, if there is one; it is connected to anew soon. Handlers hear of the loss as of
    /// any other.
    pub fn break_off(&self, node: NodeId) {
        if let Some(link) = self.peer(node).and_then(|peer| peer.link.borrow().clone()) {
            link.fail(DownReason::GivenUp);
        }
    }

    /// Everything counted since the start.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let counters = &self.0.counters;
        Stats {
            sent: std::array::from_fn(|i| counters.sent[i].get()),
            received: std::array::from_fn(|i| counters.received[i].get()),
            dropped: counters.dropped.get(),
            refused: counters.refused.get(),
            blocks_tcp: counters.blocks_tcp.get(),
            blocks_rdma: counters.blocks_rdma.get(),
            rdma: self.0.rdma().map(|rdma| rdma.traffic(counters.rdma.get())),
            peers: self.0.all_peers().map(|peer| peer.status()).collect(),
        }
    }

    /// Ends all connections and stops listening. What is queued is not sent. Handlers are not told; they are let go.
    pub fn close(&self) {
        self.0.close();
    }

    fn peer(&self, node: NodeId) -> Option<&Rc<Peer>> {
        self.0.peer(node)
    }
}

/// Whoever ends without closing it: a device must not go on with memory that is somebody else's again.
impl Drop for Inner {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.close();
        }
    }
}

impl Inner {
    fn close(&self) {
        self.closed.set(true);
        for task in self.tasks.take() {
            task.abort();
        }
        for peer in self.all_peers() {
            if let Some(link) = peer.link.take() {
                link.fail(DownReason::ClosedHere);
                link.stop();
                rdma::forget(self, &link);
            }
            *peer.down_reason.borrow_mut() = DownReason::ClosedHere;
        }
        if let Some(rdma) = self.rdma() {
            rdma.close();
        }
        let handlers = self.handlers.take();
        drop(handlers);
    }

    fn peer(&self, node: NodeId) -> Option<&Rc<Peer>> {
        self.peers.get(usize::from(node.0)).and_then(OnceCell::get)
    }

    fn all_peers(&self) -> impl Iterator<Item = &Rc<Peer>> {
        self.peers.iter().filter_map(OnceCell::get)
    }

    /// Those that have not left for good.
    fn present(&self) -> impl Iterator<Item = &Rc<Peer>> {
        self.all_peers().filter(|peer| !peer.removed.get())
    }

    fn rdma(&self) -> Option<&Rc<Rdma>> {
        self.rdma.get()
    }

    /// The header of a message that leaves now.
    fn header_of(&self, message: Message, flag: u8, body_len: u32) -> Header {
        Header {
            kind: message.kind,
            flags: message.flags | flag,
            mode: message.mode,
            from: self.settings.node,
            body_len,
            epoch: self.epoch.get(),
            incarnation: self.settings.incarnation,
            scn: self.clock.latest(),
            block: message.block,
            request: message.request,
            argument: message.argument,
        }
    }

    fn enqueue(&self, peer: &Peer, link: &Link, message: Message, body: QueuedBody<'_>, place: Place) -> Result<(), DownReason> {
        let (length, flag) = match &body {
            QueuedBody::Bytes(bytes) => (bytes.len(), 0),
            QueuedBody::Block(_) => (BLOCK_SIZE, FLAG_BLOCK),
        };
        let header = self.header_of(message, flag, u32::try_from(length).expect("bodies are at most 64 KiB"));
        let service = Service::of(message.kind).expect("checked by the caller");
        Counters::count(&self.counters.sent, service, (HEADER_BYTES + length) as u64);
        link::enqueue(self, link, peer, &header, body, place)
    }

    fn enqueue_link(&self, peer: &Peer, link: &Link, kind: u8, argument: u64) {
        if !link.has_failed() {
            let message = Message { kind, argument, ..Message::default() };
            // A full queue ends the connection by itself; there is nobody else to tell.
            let _ = self.enqueue(peer, link, message, QueuedBody::Bytes(&[]), Place::NONE);
        }
    }

    fn each_handler(&self, call: impl Fn(&dyn Handler)) {
        let handlers = self.handlers.borrow().clone();
        for handler in handlers.iter().flatten() {
            call(&**handler);
        }
    }
}
