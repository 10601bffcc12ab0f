//! Messages and blocks by RDMA: a *lane* beside the TCP connection to a peer, where both have a device.
//!
//! One [`Rdma`] per shard, owned by its thread, over one [`Verbs`]. The TCP connection stays: peers find and know each other by
//! it, its heartbeats go on, and it is what a lane falls back to. How the two carry one stream of messages, without losing
//! or doubling one, is in [`stream`]; how much may be under way in [`window`]; which frames others may write into in [`exposed`];
//! these and the device's stand-in [`soft`] do no I/O. `docs/rdma.md` draws it.
//!
//! Bounds: the receive slots (so the lanes: [`Rdma::lanes_max`]), the send slots, the window of each lane, the frames
//! exposed; what waits for a lane counts into its link's queue.

mod board;
#[cfg(feature = "rdma")]
mod device;
mod exposed;
mod lane;
mod post;
pub mod soft;
mod stream;
mod take;
mod terms;
#[cfg(test)]
mod tests;
pub mod verbs;
mod window;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use self::board::Board;
pub use self::board::{CELLS, Record};
#[cfg(feature = "rdma")]
pub use self::device::Device;
pub use self::exposed::{EXPOSED_MAX, ExposedFrames};
pub(super) use self::lane::{LaneEnd, Purpose, forget, link_is_up, on_message as on_link_message, tick};
use self::post::Acknowledge;
pub use self::stream::{Generation, NumberedStream, StreamFault};
use self::verbs::{Access, LocalFuture, MemoryKeys, Pair, SEND_QUEUE_DEPTH, SLOT_BYTES, Verbs, VerbsFault};
pub use self::window::{ACK_EVERY, NeverSent, WINDOW, WINDOW_RESERVE, Window};
use super::link::Link;
use super::stats::{Counters, RdmaTraffic};
use super::{BODY_BYTES_MAX, DownReason, HEADER_BYTES, Inner};
use crate::clock::ScnClock;
use crate::ids::{BLOCK_SIZE, Epoch, NodeId, RequestId};
use crate::reactor::sync::OneshotReceiver;
use crate::reactor::{Instant, IoBuf, Reactor};

/// Receive slots that one lane may need.
pub const SLOTS_PER_LANE: u64 = WINDOW + WINDOW_RESERVE;

/// Send slots that one lane may use at a time, for what does not fit into a work request: enough for the longest message, and no other
/// lane's, so that a peer that takes nothing holds nobody else up.
pub const SEND_SLOTS_PER_LANE: u32 = 32;

const _: () = assert!(SEND_SLOTS_PER_LANE as usize * SLOT_BYTES > 2 * (HEADER_BYTES + BODY_BYTES_MAX));

/// Lanes that there are slots for beyond those to the peers that are known at the start.
const LANES_MORE: usize = 4;

/// Bytes of memory that a shard's device locks beside the frames, with so many peers: the slots of its lanes, the board, and its queues,
/// about as adapters have them and rather more than less. For whoever wants to know before there is a device.
#[must_use]
pub fn locked_bytes(peers: usize) -> u64 {
    /// 64 bytes for a slot in the queue of receives, 256 for a request in the queue of sends, and 64 for the completion of either.
    const QUEUES_PER_LANE: u64 = SLOTS_PER_LANE * (64 + 64) + SEND_QUEUE_DEPTH as u64 * (256 + 64);
    let slots = (SLOTS_PER_LANE + u64::from(SEND_SLOTS_PER_LANE)) * SLOT_BYTES as u64;
    (peers + LANES_MORE) as u64 * (slots + QUEUES_PER_LANE) + board::BOARD_BYTES
}

/// The device of an interface, with slots for so many peers and a few more.
#[cfg(feature = "rdma")]
pub(super) fn open_device(reactor: &Reactor, address: SocketAddr, peers: usize) -> Result<Rc<dyn Verbs>, String> {
    let lanes = (peers + LANES_MORE) as u32;
    let (receive, send) = (lanes * SLOTS_PER_LANE as u32, lanes * SEND_SLOTS_PER_LANE);
    let device = Device::open(reactor, address, receive, send).map_err(|fault| fault.to_string())?;
    Ok(device)
}

/// The device of an interface, with slots for so many peers and a few more.
#[cfg(not(feature = "rdma"))]
pub(super) fn open_device(_reactor: &Reactor, _address: SocketAddr, _peers: usize) -> Result<Rc<dyn Verbs>, String> {
    Err("this program was built without RDMA (cargo's feature `rdma`)".into())
}

/// A frame that was exposed: its place in this shard's registered memory, from 1 on. What a request carries so that the
/// block can be written there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Place(pub u64);

impl Place {
    /// No frame.
    pub const NONE: Place = Place(0);
}

/// The registered memory of this shard.
#[derive(Clone, Copy)]
struct OwnMemory {
    start: usize,
    bytes: usize,
    keys: MemoryKeys,
}

/// See the module.
pub(super) struct Rdma {
    verbs: Rc<dyn Verbs>,
    /// Nothing goes over TCP but what makes and keeps the connection.
    pub required: bool,
    /// How long to look for completions before sleeping.
    poll: Duration,
    memory: Cell<Option<OwnMemory>>,
    /// What the others may read; none where its memory could not be registered.
    board: Option<Board>,
    /// Nodes that may write their clocks here.
    tellers: RefCell<BTreeSet<NodeId>>,
    /// Registration has failed: no lanes any more.
    disabled: RefCell<Option<String>>,
    exposed: RefCell<ExposedFrames>,
    /// Whose lane a pair is.
    pairs: RefCell<HashMap<Pair, Rc<Link>>>,
    send_slots: RefCell<Vec<u32>>,
    send_slots_per_lane: usize,
    /// Receive slots to be given back.
    returned: RefCell<Vec<u32>>,
    /// Links with something to post.
    ready: RefCell<Vec<Rc<Link>>>,
    filled: crate::reactor::sync::Notify,
    /// Attempts made so far: a late request to connect of one is never taken for another's, of whichever connection.
    attempts: Cell<u64>,
}

impl Rdma {
    pub fn new(verbs: Rc<dyn Verbs>, clock: &ScnClock, required: bool, poll: Duration) -> Rc<Rdma> {
        let slots = (0..verbs.receive_slots()).collect();
        let send_slots = (0..verbs.send_slots()).collect();
        let lanes = u64::from(verbs.receive_slots()) / SLOTS_PER_LANE;
        let send_slots_per_lane = u64::from(verbs.send_slots()) / lanes.max(1);
        assert!(send_slots_per_lane >= u64::from(SEND_SLOTS_PER_LANE), "{lanes} lanes have {} send slots", verbs.send_slots());
        let board = Board::new(&*verbs).inspect_err(|fault| tracing::warn!("nothing is read by RDMA: {fault}")).ok();
        if let Some(board) = &board {
            clock.watch(board.told());
        }
        Rc::new(Rdma {
            verbs,
            required,
            poll,
            memory: Cell::new(None),
            board,
            tellers: RefCell::default(),
            disabled: RefCell::default(),
            exposed: RefCell::default(),
            pairs: RefCell::default(),
            send_slots: RefCell::new(send_slots),
            send_slots_per_lane: send_slots_per_lane as usize,
            returned: RefCell::new(slots),
            ready: RefCell::default(),
            filled: crate::reactor::sync::Notify::new(),
            attempts: Cell::new(0),
        })
    }

    /// Lanes that there are slots for.
    fn lanes_max(&self) -> usize {
        (u64::from(self.verbs.receive_slots()) / SLOTS_PER_LANE) as usize
    }

    /// Registers the memory of the frames. Without it there are no lanes.
    ///
    /// # Errors
    /// The device's; lanes that there are end, and no more are made.
    ///
    /// # Safety
    /// As for [`Verbs::register`].
    pub unsafe fn register(&self, inner: &Inner, start: *mut u8, bytes: usize) -> Result<(), VerbsFault> {
        assert!(self.memory.get().is_none(), "a shard registers its memory once");
        // SAFETY: the caller promises what is asked.
        match unsafe { self.verbs.register(start, bytes, Access::Write) } {
            Ok(keys) => {
                self.memory.set(Some(OwnMemory { start: start.addr(), bytes, keys }));
                self.each_link(inner, |link| lane::tell_memory(inner, link));
                Ok(())
            }
            Err(fault) => {
                let why = format!("the cache's memory can't be registered: {fault}");
                *self.disabled.borrow_mut() = Some(why.clone());
                self.each_link(inner, |link| lane::end(inner, link, &why));
                Err(fault)
            }
        }
    }

    fn each_link(&self, inner: &Inner, mut call: impl FnMut(&Rc<Link>)) {
        let links: Vec<_> = inner.all_peers().filter_map(|peer| peer.link.borrow().clone()).collect();
        links.iter().for_each(&mut call);
    }

    /// Exposes a frame for a request of the present epoch, where some peer could write into it.
    pub fn expose(&self, inner: &Inner, request: RequestId, mut frame: IoBuf) -> Option<Place> {
        let memory = self.memory.get()?;
        if self.pairs.borrow().is_empty() {
            return None;
        }
        let offset = frame.as_mut_ptr().addr().checked_sub(memory.start)?;
        if frame.len() != BLOCK_SIZE || !offset.is_multiple_of(BLOCK_SIZE) || offset + BLOCK_SIZE > memory.bytes {
            return None;
        }
        let exposed = self.exposed.borrow_mut().expose(request, inner.epoch.get(), frame);
        // Given back, it is dropped after the borrow.
        exposed.is_ok().then(|| Place((offset / BLOCK_SIZE) as u64 + 1))
    }

    /// Lets the other nodes read a record.
    pub fn publish(&self, inner: &Inner, cell: u16, record: Record) {
        if let Some(board) = &self.board {
            board.publish(cell, inner.settings.incarnation, record);
        }
    }

    /// Begins to read another node's memory. `None` where that can't be done now.
    pub fn begin_read(&self, inner: &Inner, node: NodeId, purpose: Purpose) -> Option<OneshotReceiver<Option<Record>>> {
        let link = inner.peer(node)?.link.borrow().clone().filter(|link| link.is_up())?;
        let receiver = link.lane.borrow_mut().begin_read(self.board.as_ref()?, purpose)?;
        self.post_soon(&link);
        Some(receiver)
    }

    /// These nodes, and no others, may write their clocks here from now on.
    pub fn set_tellers(&self, inner: &Inner, tellers: &BTreeSet<NodeId>) {
        let before = self.tellers.replace(tellers.clone());
        self.each_link(inner, |link| match (before.contains(&link.node), tellers.contains(&link.node)) {
            (false, true) => lane::let_tell(inner, link),
            // It knows where: only a lane that is no more keeps it from writing there.
            (true, false) => lane::end(inner, link, "it is no member any more"),
            _ => {}
        });
    }

    /// Whether there is a lane, so that somebody could write.
    pub fn has_lanes(&self) -> bool {
        self.memory.get().is_some() && !self.pairs.borrow().is_empty()
    }

    /// The frame of a request that is answered.
    pub fn take_exposed(&self, request: RequestId) -> Option<IoBuf> {
        self.exposed.borrow_mut().take(request)
    }

    /// Nothing of the former epoch will be answered.
    pub fn abandon(&self, inner: &Inner) {
        let live = self.exposed.borrow().counts().0 as u64;
        Counters::change(&inner.counters.rdma, |rdma| rdma.quarantined_total += live);
        let free = self.exposed.borrow_mut().abandon(inner.reactor.now());
        // Whose end the cache hears of, so not within the borrow.
        drop(free);
    }

    /// Word of a later epoch came, by which frames may be free.
    fn heard(&self, link: &Link, epoch: Epoch) {
        let free = self.exposed.borrow_mut().lane_heard(link.node, epoch);
        drop(free);
    }

    fn lane_is_gone(&self, link: &Link, generation: Generation) {
        let free = self.exposed.borrow_mut().lane_is_gone(link.node, generation);
        drop(free);
    }

    /// The epoch is another: every lane brings word of it. The first is the one from which on frames can be exposed.
    pub fn on_epoch(&self, inner: &Inner, before: Epoch) {
        self.each_link(inner, |link| {
            if before == Epoch::default() {
                lane::tell_memory(inner, link);
            }
            self.acknowledge_soon(link);
        });
    }

    fn next_attempt(&self) -> Generation {
        self.attempts.set(self.attempts.get() + 1);
        Generation(self.attempts.get())
    }

    /// The lane has something to say, if only that.
    pub fn acknowledge_soon(&self, link: &Rc<Link>) {
        link.lane.borrow_mut().says_something();
        self.post_soon(link);
    }

    /// There is something to post.
    pub fn post_soon(&self, link: &Rc<Link>) {
        let mut ready = self.ready.borrow_mut();
        if !ready.iter().any(|known| Rc::ptr_eq(known, link)) {
            ready.push(link.clone());
        }
        drop(ready);
        self.filled.notify_all();
    }

    pub fn traffic(&self, counted: RdmaTraffic) -> RdmaTraffic {
        let (exposed, quarantined) = self.exposed.borrow().counts();
        RdmaTraffic { exposed: exposed as u64, quarantined: quarantined as u64, ..counted }
    }

    /// Everything is over: the links have been forgotten.
    pub fn close(&self) {
        assert!(self.pairs.borrow().is_empty(), "a lane outlives its link");
        self.verbs.stop_listening();
        // Whose frames the cache takes back, so not within the borrow.
        let mut exposed = self.exposed.take();
        exposed.clear();
    }
}

/// Drives the device until the interconnect closes: takes what came, gives slots back, posts what waits, and sleeps.
pub(super) async fn drive(inner: Rc<Inner>, rdma: Rc<Rdma>) {
    let mut events = Vec::new();
    let mut sleeping: Option<LocalFuture<()>> = None;
    let mut busy_since: Option<Instant> = None;
    loop {
        if inner.closed.get() {
            return;
        }
        rdma.verbs.poll(&mut events);
        if !events.is_empty() {
            take::take_all(&inner, &rdma, &mut events);
            // What the handlers have said goes at once. Who was woken may have to say something, too, which acknowledges as well.
            post::post_all(&inner, &rdma, Acknowledge::Later);
            busy_since = None;
            inner.reactor.yield_now().await;
        }
        if !rdma.ready.borrow().is_empty() {
            // Whoever says something is answered soon.
            busy_since = None;
        }
        post::post_all(&inner, &rdma, Acknowledge::Now);
        let now = inner.reactor.now();
        if now.since(*busy_since.get_or_insert(now)) < rdma.poll {
            inner.reactor.yield_now().await;
            continue;
        }
        if let Err(fault) = rdma.verbs.arm() {
            rdma.give_up(&inner, &fault);
            return;
        }
        rdma.verbs.poll(&mut events);
        if !events.is_empty() {
            continue;
        }
        // Nothing has run since all was posted that waited.
        let mut filled = std::pin::pin!(rdma.filled.notified());
        let waiting = sleeping.get_or_insert_with(|| rdma.verbs.wait());
        let woken = std::future::poll_fn(|context| {
            if waiting.as_mut().poll(context).is_ready() {
                return Poll::Ready(true);
            }
            filled.as_mut().poll(context).map(|()| false)
        })
        .await;
        if woken {
            sleeping = None;
        }
    }
}

impl Rdma {
    /// The device does not work any more.
    fn give_up(&self, inner: &Inner, fault: &VerbsFault) {
        let why = format!("the RDMA device fails: {fault}");
        tracing::error!("{why}; everything goes over TCP from now on");
        *self.disabled.borrow_mut() = Some(why.clone());
        self.each_link(inner, |link| lane::end(inner, link, &why));
    }

    /// Gives the receive slots that were read back to the device.
    fn repost(&self, inner: &Inner) {
        let slots = self.returned.take();
        if slots.is_empty() {
            return;
        }
        Counters::change(&inner.counters.rdma, |rdma| rdma.reposts += 1);
        if let Err(fault) = self.verbs.receive(&slots) {
            self.give_up(inner, &fault);
        }
    }

    /// Ends the link where only RDMA is wanted.
    fn note_failure(&self, link: &Link, why: &str) {
        if self.required {
            link.fail(DownReason::NoRdma(why.to_owned()));
        }
    }
}
