//! One established connection to a peer: its send queue, its writer, its reader and its heartbeats.
//!
//! Owned by the shard's thread; three tasks share it. Ends once, for one [`DownReason`], whoever finds it first; then all
//! three tasks are ended and the handlers told. Bounds: the send queue (a setting), one receive buffer.
//!
//! **How a block arrives.** The reader takes whatever there is into one buffer. Of a block whose end has not come yet, the rest is
//! received straight into the frame that its handler reserves; one that lies in the buffer whole is copied there. To ask for the
//! header alone first, so that no block is ever copied, was tried and measured: the second system call costs more than the
//! copy of 8 KiB of warm bytes (docs/performance.md).
//!
//! While the kernel may write into a frame, the frame is *lent*. A connection that is lost is closed, and all that it was
//! lent has come back, before the handlers hear of the loss: nothing is written into memory that has found another use.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;

use zerocopy::FromBytes;

use super::header::{BODY_BYTES_MAX, FrameFault, HEADER_BYTES, Header, Service, WireHeader};
use super::queue::{QueuedBody, SendQueue};
use super::rdma::{self, LaneEnd, Place, StreamFault};
use super::stats::{Counters, DownReason};
use super::{Body, Handler, Inner, LINK_PING, LINK_PONG, Peer};
use crate::ids::{BLOCK_SIZE, Incarnation, NodeId, Scn};
use crate::reactor::sync::Notify;
use crate::reactor::{Instant, IoBuf, Stream, TaskHandle};
use crate::rules::{DesignRule, kept};

/// Bytes of the receive buffer of a connection: the largest message with room for what comes along with it.
const RECEIVE_BYTES: usize = 128 * 1024;

const _: () = assert!(RECEIVE_BYTES > HEADER_BYTES + BODY_BYTES_MAX);

/// An established connection.
pub(super) struct Link {
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub queue: RefCell<SendQueue>,
    /// Wakes the writer.
    pub filled: Notify,
    /// Wakes the task that ends the connection.
    pub ended: Notify,
    pub fault: RefCell<Option<DownReason>>,
    pub last_heard: Cell<Instant>,
    /// The reader and the writer.
    pub tasks: RefCell<Vec<TaskHandle>>,
    /// Frames that a block is being received into, or that have not been taken by their handler yet.
    lent: Cell<usize>,
    returned: Notify,
    /// The way beside the connection, where there is RDMA.
    pub lane: RefCell<LaneEnd>,
    /// The handlers know of it, and messages may be sent.
    pub announced: Cell<bool>,
}

impl Link {
    pub fn new(node: NodeId, incarnation: Incarnation, now: Instant) -> Rc<Link> {
        Rc::new(Link {
            node,
            incarnation,
            queue: RefCell::default(),
            filled: Notify::new(),
            ended: Notify::new(),
            fault: RefCell::new(None),
            last_heard: Cell::new(now),
            tasks: RefCell::default(),
            lent: Cell::new(0),
            returned: Notify::new(),
            lane: RefCell::default(),
            announced: Cell::new(false),
        })
    }

    /// Takes note of a handler's frame until it is dropped.
    fn lend(self: &Rc<Self>, mut frame: IoBuf) -> IoBuf {
        self.lent.set(self.lent.get() + 1);
        let (start, length) = (NonNull::new(frame.as_mut_ptr()).expect("a buffer lies somewhere"), frame.len());
        let guard = Rc::new(Lent { link: self.clone(), _frame: frame });
        // SAFETY: the guard owns the frame, which nobody else reaches, and keeps it as long as the buffer lives.
        unsafe { IoBuf::from_raw(start, length, guard) }
    }

    /// Resolves when no frame is lent. The reader has been stopped and the stream closed, so that this ends.
    pub async fn all_returned(&self) {
        while self.lent.get() > 0 {
            self.returned.notified().await;
        }
    }

    /// Bytes and messages that wait, whichever way they will go.
    pub fn waiting(&self) -> (usize, usize) {
        let (queue, (bytes, messages)) = (self.queue.borrow(), self.lane.borrow().kept());
        (queue.bytes() + bytes, queue.messages() + messages)
    }

    /// Ends the connection, soon: never calls a handler before it returns. The first reason counts. What waits for the lane stays
    /// until that is destroyed: its device may be reading it.
    pub fn fail(&self, reason: DownReason) {
        if self.has_failed() {
            return;
        }
        *self.fault.borrow_mut() = Some(reason);
        let waiting = self.queue.take();
        self.ended.notify_all();
        // Whose frames the cache takes back, so not within the borrow.
        drop(waiting);
    }

    /// Ends the reader and the writer.
    pub fn stop(&self) {
        for task in self.tasks.take() {
            task.abort();
        }
    }

    /// Whether messages can be sent.
    pub fn is_up(&self) -> bool {
        self.announced.get() && !self.has_failed()
    }

    pub fn has_failed(&self) -> bool {
        self.fault.borrow().is_some()
    }
}

/// A frame between its handler and the kernel.
struct Lent {
    link: Rc<Link>,
    _frame: IoBuf,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.link.lent.set(self.link.lent.get() - 1);
        self.link.returned.notify_all();
    }
}

/// Sends what is queued, batch by batch, until the connection ends.
pub(super) async fn write(link: Rc<Link>, stream: Stream) {
    loop {
        let filled = link.filled.notified();
        let batch = link.queue.borrow_mut().take_batch();
        if batch.is_empty() {
            filled.await;
            continue;
        }
        let (result, _sent) = stream.send_vectored(batch).await;
        if let Err(error) = result {
            link.fail(DownReason::Broken(error.kind()));
            return;
        }
    }
}

/// What stands at the front of the receive buffer.
enum Front {
    /// Not a whole message yet.
    Incomplete,
    /// A message of this length, which has been delivered.
    Delivered(usize),
    /// The header of a block that has not arrived whole.
    Block(Header),
}

/// Receives messages and hands them to their services until the connection ends.
pub(super) async fn read(inner: Rc<Inner>, peer: Rc<Peer>, link: Rc<Link>, stream: Stream) {
    if let Err(reason) = read_until_end(&inner, &peer, &link, &stream).await {
        link.fail(reason);
    }
}

async fn read_until_end(inner: &Rc<Inner>, peer: &Peer, link: &Rc<Link>, stream: &Stream) -> Result<(), DownReason> {
    let mut buffer = IoBuf::aligned(RECEIVE_BYTES);
    let mut filled = 0;
    loop {
        let (result, back) = stream.recv(buffer.slice(filled..RECEIVE_BYTES)).await;
        buffer = back.whole();
        match result {
            Ok(0) => return Err(DownReason::ClosedByPeer),
            Ok(received) => filled += received,
            Err(error) => return Err(DownReason::Broken(error.kind())),
        }
        link.last_heard.set(inner.reactor.now());
        let bytes = buffer.as_mut_slice();
        let mut taken = 0;
        let block = loop {
            if link.has_failed() {
                return Ok(());
            }
            match take_message(inner, peer, link, &bytes[taken..filled]) {
                Ok(Front::Incomplete) => break None,
                Ok(Front::Delivered(length)) => taken += length,
                Ok(Front::Block(header)) => break Some(header),
                Err(fault) => {
                    inner.counters.refuse_one(|refused| &mut refused.damaged);
                    return Err(DownReason::Damaged(fault));
                }
            }
        };
        if let Some(header) = block {
            let there = &bytes[taken + HEADER_BYTES..filled];
            receive_block(inner, link, stream, &header, there).await?;
            filled = 0;
            continue;
        }
        bytes.copy_within(taken..filled, 0);
        filled -= taken;
        assert!(filled < RECEIVE_BYTES, "a message is never longer than the receive buffer");
    }
}

/// Receives the rest of a block into its frame, and delivers it. A block that nobody wants is received all the same, into
/// memory of its own: the next message stands behind it.
async fn receive_block(
    inner: &Rc<Inner>,
    link: &Rc<Link>,
    stream: &Stream,
    header: &Header,
    there: &[u8],
) -> Result<(), DownReason> {
    let wanted = is_of_now(inner, link, header).is_ok().then(|| handler_of(inner, header)).flatten();
    let mut frame = frame_for(inner, link, wanted.as_deref(), header);
    frame.as_mut_slice()[..there.len()].copy_from_slice(there);
    Counters::change(&inner.counters.blocks_tcp, |blocks| blocks.bytes_copied += there.len() as u64);
    let (result, back) = stream.recv_exact(frame.slice(there.len()..BLOCK_SIZE)).await;
    result.map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => DownReason::ClosedByPeer,
        kind => DownReason::Broken(kind),
    })?;
    link.last_heard.set(inner.reactor.now());
    if !link.has_failed() {
        note_tcp(inner, link).map_err(DownReason::Damaged)?;
        // What was of now when its header came need not be any more: it is looked at again.
        deliver(inner, link, header, Arrival::Tcp, |_| Some(Body::Block(back.whole())));
    }
    Ok(())
}

/// Looks at the front of `bytes`, and delivers the message if it is there whole.
fn take_message(inner: &Rc<Inner>, peer: &Peer, link: &Rc<Link>, bytes: &[u8]) -> Result<Front, FrameFault> {
    let Ok((wire, rest)) = WireHeader::read_from_prefix(bytes) else { return Ok(Front::Incomplete) };
    let header = wire.open()?;
    let length = header.body_len as usize;
    // The claims of a block's header are checked before the block is waited for.
    let body = match rest.get(..length) {
        _ if header.is_block() => {
            wire.verify(&[])?;
            rest.get(..length)
        }
        Some(body) => {
            wire.verify(body)?;
            Some(body)
        }
        None => return Ok(Front::Incomplete),
    };
    check_claims(link, &header)?;
    if header.is_written() {
        return Err(FrameFault::Stream(StreamFault::Tcp));
    }
    let Some(body) = body else { return Ok(Front::Block(header)) };
    if header.service() == Some(Service::Link) {
        on_own_message(inner, peer, link, &header, body)?;
        return Ok(Front::Delivered(HEADER_BYTES + length));
    }
    note_tcp(inner, link)?;
    deliver(inner, link, &header, Arrival::Tcp, |handler| {
        Some(if header.is_block() {
            let mut frame = frame_for(inner, link, Some(handler), &header);
            frame.as_mut_slice().copy_from_slice(body);
            Counters::change(&inner.counters.blocks_tcp, |blocks| blocks.bytes_copied += BLOCK_SIZE as u64);
            Body::Block(frame)
        } else if body.is_empty() {
            Body::Empty
        } else {
            Body::Bytes(body.to_vec())
        })
    });
    Ok(Front::Delivered(HEADER_BYTES + length))
}

/// Checks what a header claims, that its checksum says nothing of.
pub(super) fn check_claims(link: &Link, header: &Header) -> Result<(), FrameFault> {
    if header.from != link.node {
        return Err(FrameFault::Sender(header.from));
    }
    if header.scn >= Scn::MAX {
        return Err(FrameFault::Clock(header.scn));
    }
    Ok(())
}

/// Counts a message that came over TCP, where the two ways are counted.
fn note_tcp(inner: &Inner, link: &Link) -> Result<(), FrameFault> {
    let Some(rdma) = inner.rdma() else { return Ok(()) };
    if rdma.required {
        link.fail(DownReason::NoRdma("it sends over TCP: the setting has to be the same on both".into()));
    }
    link.lane.borrow_mut().came_by_tcp().map_err(FrameFault::Stream)
}

/// Memory for the block behind a header: the frame that was exposed for its request, the handler's, or our own.
pub(super) fn frame_for(inner: &Inner, link: &Rc<Link>, handler: Option<&dyn Handler>, header: &Header) -> IoBuf {
    let exposed = || inner.rdma().and_then(|rdma| rdma.take_exposed(header.request));
    let frame = match handler.and_then(|handler| exposed().or_else(|| handler.frame_for(header))) {
        Some(frame) => link.lend(frame),
        None => IoBuf::aligned(BLOCK_SIZE),
    };
    assert_eq!(frame.len(), BLOCK_SIZE, "the frame reserved for {} is one block", header.block);
    frame
}

/// Which way a message came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Arrival {
    Tcp,
    Lane,
}

/// Why a message is not delivered.
enum Outdated {
    Incarnation,
    Epoch,
}

/// Whether a message is of the sender's present life and, where that counts, of our epoch.
fn is_of_now(inner: &Inner, link: &Link, header: &Header) -> Result<(), Outdated> {
    if header.incarnation != link.incarnation {
        return Err(Outdated::Incarnation);
    }
    match header.service().expect("the kind was checked when the header was opened") {
        Service::Link | Service::Cluster | Service::Raft => Ok(()),
        Service::Gcs | Service::Ges | Service::Txn if header.epoch == inner.epoch.get() => Ok(()),
        Service::Gcs | Service::Ges | Service::Txn if !kept(DesignRule::OlderEpochsDropped) => Ok(()),
        Service::Gcs | Service::Ges | Service::Txn => Err(Outdated::Epoch),
    }
}

fn handler_of(inner: &Inner, header: &Header) -> Option<Rc<dyn Handler>> {
    inner.handlers.borrow()[header.service()?.index()].clone()
}

/// Hands a message to its service, if it is of now. `body` gives none where its block is not wanted any more.
pub(super) fn deliver(
    inner: &Rc<Inner>,
    link: &Rc<Link>,
    header: &Header,
    arrival: Arrival,
    body: impl FnOnce(&dyn Handler) -> Option<Body>,
) {
    let service = header.service().expect("the kind was checked when the header was opened");
    Counters::count(&inner.counters.received, service, HEADER_BYTES as u64 + u64::from(header.body_len));
    if header.is_block() {
        let blocks = if arrival == Arrival::Lane { &inner.counters.blocks_rdma } else { &inner.counters.blocks_tcp };
        Counters::change(blocks, |blocks| blocks.received += 1);
    }
    let of_now = is_of_now(inner, link, header);
    if !matches!(of_now, Err(Outdated::Incarnation)) {
        inner.clock.observe(header.scn);
    }
    match of_now {
        Err(Outdated::Incarnation) => return inner.counters.drop_one(|drops| &mut drops.incarnation),
        Err(Outdated::Epoch) => return inner.counters.drop_one(|drops| &mut drops.epoch),
        Ok(()) => {}
    }
    let Some(handler) = handler_of(inner, header) else {
        return inner.counters.drop_one(|drops| &mut drops.no_handler);
    };
    let Some(body) = body(&*handler) else {
        return inner.counters.drop_one(|drops| &mut drops.abandoned);
    };
    handler.on_message(link.node, header, body);
}

/// A message of the interconnect's own.
fn on_own_message(inner: &Rc<Inner>, peer: &Peer, link: &Rc<Link>, header: &Header, body: &[u8]) -> Result<(), FrameFault> {
    Counters::count(&inner.counters.received, Service::Link, HEADER_BYTES as u64 + u64::from(header.body_len));
    if header.incarnation != link.incarnation {
        inner.counters.drop_one(|drops| &mut drops.incarnation);
        return Ok(());
    }
    inner.clock.observe(header.scn);
    match header.kind {
        LINK_PING => inner.enqueue_link(peer, link, LINK_PONG, header.argument),
        LINK_PONG => peer.note_round_trip(inner.reactor.now().since(Instant(header.argument))),
        _ => return rdma::on_link_message(inner, peer, link, header, body),
    }
    Ok(())
}

/// Sends heartbeats and watches for the peer's life until the connection ends; gives back why it did.
pub(super) async fn watch(inner: &Rc<Inner>, peer: &Peer, link: &Rc<Link>) -> DownReason {
    let reactor = &inner.reactor;
    let timeout = inner.settings.heartbeat_timeout;
    loop {
        inner.enqueue_link(peer, link, LINK_PING, reactor.now().as_ns());
        rdma::tick(inner, link);
        let ended = link.ended.notified();
        if let Some(reason) = link.fault.borrow().clone() {
            return reason;
        }
        // Elapsed is the usual case: the next heartbeat is due.
        let _ = reactor.timeout(inner.settings.heartbeat_interval, ended).await;
        if reactor.now().since(link.last_heard.get()) >= timeout {
            link.fail(DownReason::Silent(timeout));
        }
    }
}

/// Queues a message on the connection, or for its lane; a full queue ends it.
pub(super) fn enqueue(
    inner: &Inner,
    link: &Link,
    peer: &Peer,
    header: &Header,
    body: QueuedBody<'_>,
    place: Place,
) -> Result<(), DownReason> {
    let of_stream = inner.rdma().is_some() && header.service() != Some(Service::Link);
    let by_tcp = !of_stream || link.lane.borrow_mut().goes_by_tcp();
    if by_tcp {
        let is_block = header.is_block();
        link.queue.borrow_mut().push(header, body);
        if is_block {
            Counters::change(&inner.counters.blocks_tcp, |blocks| blocks.sent += 1);
        }
    } else {
        link.lane.borrow_mut().keep(header, body, place);
    }
    let (bytes, messages) = link.waiting();
    peer.note_queue(bytes as u64, messages as u64);
    if bytes > inner.settings.send_queue_bytes_max {
        let reason = DownReason::QueueFull { bytes: bytes as u64 };
        link.fail(reason.clone());
        return Err(reason);
    }
    if by_tcp {
        link.filled.notify_all();
    }
    Ok(())
}
