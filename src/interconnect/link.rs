//! One established connection to a peer: its send queue, its writer, its reader and its heartbeats.
//!
//! Owned by the shard's thread; three tasks share it. Ends once, for one [`DownReason`], whoever finds it first; then all
//! three tasks are ended and the handlers told. Bounds: the send queue (a setting), one receive buffer.
//!
//! Bytes are received into one buffer and copied from there, blocks into the frame that their handler reserved. With TCP the kernel
//! copies anyway, and copying 8 KiB of warm bytes once more costs less than the second system call that would avoid it.
//! It also means that no operation of the kernel ever points into a frame: losing a peer leaves no write under way
//! into memory that has found another use meanwhile.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use zerocopy::FromBytes;

use super::header::{BODY_BYTES_MAX, FrameFault, HEADER_BYTES, Header, Service, WireHeader};
use super::queue::{QueuedBody, SendQueue};
use super::stats::{Counters, DownReason};
use super::{Body, Inner, LINK_PING, LINK_PONG, Peer};
use crate::ids::{BLOCK_SIZE, Incarnation, NodeId, Scn};
use crate::reactor::sync::Notify;
use crate::reactor::{Instant, IoBuf, Stream, TaskHandle};

/// Bytes of the receive buffer of a connection: the largest message with room for what comes along with it.
const RECEIVE_BYTES: usize = 128 * 1024;

const _: () = assert!(RECEIVE_BYTES > HEADER_BYTES + BODY_BYTES_MAX);

/// An established connection.
pub(super) struct Link {
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub stream: Stream,
    pub queue: RefCell<SendQueue>,
    /// Wakes the writer.
    pub filled: Notify,
    /// Wakes the task that ends the connection.
    pub ended: Notify,
    pub fault: RefCell<Option<DownReason>>,
    pub last_heard: Cell<Instant>,
    /// The reader and the writer.
    pub tasks: RefCell<Vec<TaskHandle>>,
}

impl Link {
    pub fn new(node: NodeId, incarnation: Incarnation, stream: Stream, now: Instant) -> Rc<Link> {
        Rc::new(Link {
            node,
            incarnation,
            stream,
            queue: RefCell::default(),
            filled: Notify::new(),
            ended: Notify::new(),
            fault: RefCell::new(None),
            last_heard: Cell::new(now),
            tasks: RefCell::default(),
        })
    }

    /// Ends the connection, soon: never calls a handler before it returns. The first reason counts.
    pub fn fail(&self, reason: DownReason) {
        let mut fault = self.fault.borrow_mut();
        if fault.is_none() {
            *fault = Some(reason);
            self.queue.borrow_mut().clear();
            self.ended.notify_all();
        }
    }

    /// Ends the reader and the writer.
    pub fn stop(&self) {
        for task in self.tasks.take() {
            task.abort();
        }
    }

    pub fn has_failed(&self) -> bool {
        self.fault.borrow().is_some()
    }
}

/// Sends what is queued, batch by batch, until the connection ends.
pub(super) async fn write(link: Rc<Link>) {
    loop {
        let filled = link.filled.notified();
        let batch = link.queue.borrow_mut().take_batch();
        if batch.is_empty() {
            filled.await;
            continue;
        }
        let (result, _sent) = link.stream.send_vectored(batch).await;
        if let Err(error) = result {
            link.fail(DownReason::Broken(error.kind()));
            return;
        }
    }
}

/// Receives messages and hands them to their services until the connection ends.
pub(super) async fn read(inner: Rc<Inner>, peer: Rc<Peer>, link: Rc<Link>) {
    let mut buffer = IoBuf::aligned(RECEIVE_BYTES);
    let mut filled = 0;
    loop {
        let (result, back) = link.stream.recv(buffer.slice(filled..RECEIVE_BYTES)).await;
        buffer = back.whole();
        match result {
            Ok(0) => return link.fail(DownReason::ClosedByPeer),
            Ok(received) => filled += received,
            Err(error) => return link.fail(DownReason::Broken(error.kind())),
        }
        link.last_heard.set(inner.reactor.now());
        let bytes = buffer.as_mut_slice();
        let mut taken = 0;
        loop {
            if link.has_failed() {
                return;
            }
            match take_message(&inner, &peer, &link, &bytes[taken..filled]) {
                Ok(0) => break,
                Ok(length) => taken += length,
                Err(fault) => {
                    inner.counters.refuse_one(|refused| &mut refused.damaged);
                    return link.fail(DownReason::Damaged(fault));
                }
            }
        }
        bytes.copy_within(taken..filled, 0);
        filled -= taken;
        assert!(filled < RECEIVE_BYTES, "a message is never longer than the receive buffer");
    }
}

/// Takes the message at the front of `bytes` and delivers it. `Ok(0)` when it isn't there whole yet.
fn take_message(inner: &Rc<Inner>, peer: &Peer, link: &Rc<Link>, bytes: &[u8]) -> Result<usize, FrameFault> {
    let Ok((wire, rest)) = WireHeader::read_from_prefix(bytes) else { return Ok(0) };
    let header = wire.open()?;
    let length = header.body_len as usize;
    if header.is_block() {
        // The claims of a block's header are checked before the block is waited for.
        wire.verify(&[])?;
    }
    if rest.len() < length {
        return Ok(0);
    }
    let body = &rest[..length];
    if !header.is_block() {
        wire.verify(body)?;
    }
    if header.from != link.node {
        return Err(FrameFault::Sender(header.from));
    }
    if header.scn >= Scn::MAX {
        return Err(FrameFault::Clock(header.scn));
    }
    deliver(inner, peer, link, &header, body);
    Ok(HEADER_BYTES + length)
}

fn deliver(inner: &Rc<Inner>, peer: &Peer, link: &Rc<Link>, header: &Header, body: &[u8]) {
    let service = header.service().expect("the kind was checked when the header was opened");
    Counters::count(&inner.counters.received, service, (HEADER_BYTES + body.len()) as u64);
    if header.incarnation != link.incarnation {
        inner.counters.drop_one(|drops| &mut drops.incarnation);
        return;
    }
    inner.clock.observe(header.scn);
    match service {
        Service::Link => return on_heartbeat(inner, peer, link, header),
        Service::Cluster | Service::Raft => {}
        Service::Gcs | Service::Ges | Service::Txn => {
            if header.epoch != inner.epoch.get() {
                inner.counters.drop_one(|drops| &mut drops.epoch);
                return;
            }
        }
    }
    let handler = inner.handlers.borrow()[service.index()].clone();
    let Some(handler) = handler else {
        inner.counters.drop_one(|drops| &mut drops.no_handler);
        return;
    };
    let body = if header.is_block() {
        let mut frame = handler.frame_for(header).unwrap_or_else(|| IoBuf::aligned(BLOCK_SIZE));
        assert_eq!(frame.len(), BLOCK_SIZE, "the frame reserved for {} is one block", header.block);
        frame.as_mut_slice().copy_from_slice(body);
        Body::Block(frame)
    } else if body.is_empty() {
        Body::Empty
    } else {
        Body::Bytes(body.to_vec())
    };
    handler.on_message(link.node, header, body);
}

fn on_heartbeat(inner: &Rc<Inner>, peer: &Peer, link: &Rc<Link>, header: &Header) {
    match header.kind {
        LINK_PING => inner.enqueue_link(peer, link, LINK_PONG, header.argument),
        LINK_PONG => peer.note_round_trip(inner.reactor.now().since(Instant(header.argument))),
        _ => inner.counters.drop_one(|drops| &mut drops.no_handler),
    }
}

/// Sends heartbeats and watches for the peer's life until the connection ends; gives back why it did.
pub(super) async fn watch(inner: &Rc<Inner>, peer: &Peer, link: &Rc<Link>) -> DownReason {
    let reactor = &inner.reactor;
    let timeout = inner.settings.heartbeat_timeout;
    loop {
        inner.enqueue_link(peer, link, LINK_PING, reactor.now().as_ns());
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

/// Queues a message on the connection; a full queue ends it.
pub(super) fn enqueue(
    link: &Link,
    peer: &Peer,
    bytes_max: usize,
    header: &Header,
    body: QueuedBody<'_>,
) -> Result<(), DownReason> {
    let (bytes, messages) = {
        let mut queue = link.queue.borrow_mut();
        queue.push(header, body);
        (queue.bytes(), queue.messages())
    };
    peer.note_queue(bytes as u64, messages as u64);
    if bytes > bytes_max {
        let reason = DownReason::QueueFull { bytes: bytes as u64 };
        link.fail(reason.clone());
        return Err(reason);
    }
    link.filled.notify_all();
    Ok(())
}
