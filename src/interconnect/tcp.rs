//! Connections over byte streams (TCP, and the simulator's network): listening, connecting, greeting, keeping at it.
//!
//! Runs as tasks of the shard's reactor. Of two nodes the one of the higher number connects, the other accepts.
//! Bounds: [`HALF_OPEN_MAX`] connections that haven't greeted yet, each at most [`GREETING_TIME`] long; delays between
//! attempts grow to [`RETRY_DELAY_MAX`]. A stranger costs himself his connection and nobody else anything.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use zerocopy::{FromBytes, IntoBytes};

use super::hello::{Expected, HELLO_BYTES, Hello, HelloFault, PROTOCOL_VERSION, WireHello};
use super::link::{self, Link};
use super::rdma;
use super::stats::DownReason;
use super::{Inner, InterconnectError, Peer};
use crate::ids::{BLOCK_SIZE, NodeId, Scn};
use crate::reactor::{Class, IoBuf, Listener, Stream};

/// Longest time from the start of a connection to the end of its greeting.
pub(super) const GREETING_TIME: Duration = Duration::from_secs(3);

/// Most accepted connections that haven't greeted yet; more are closed at once.
pub(super) const HALF_OPEN_MAX: usize = 32;

/// Pause after the first failed attempt to connect; doubles with each further one.
const RETRY_DELAY: Duration = Duration::from_millis(20);

/// Longest pause between attempts to connect.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(1);

/// Pause after a failed accept (most likely there are no descriptors left).
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Why a greeting came to nothing.
enum Unmet {
    Io(io::Error),
    Time,
    Fault(HelloFault),
}

impl std::fmt::Display for Unmet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unmet::Io(error) => write!(f, "{error}"),
            Unmet::Time => write!(f, "no greeting within {} s", GREETING_TIME.as_secs()),
            Unmet::Fault(fault) => write!(f, "{fault}"),
        }
    }
}

pub(super) async fn start(inner: &Rc<Inner>) -> Result<(), InterconnectError> {
    let address = inner.settings.listen;
    let listener = inner.reactor.listen(address).await.map_err(|source| InterconnectError::Listen { address, source })?;
    let accepting = inner.reactor.spawn(Class::High, "interconnect accept", accept(inner.clone(), listener));
    inner.tasks.borrow_mut().push(accepting);
    for peer in inner.present() {
        keep_connecting(inner, peer);
    }
    Ok(())
}

/// Keeps a connection to the peer, where that is this side's part.
pub(super) fn keep_connecting(inner: &Rc<Inner>, peer: &Rc<Peer>) {
    if peer.node < inner.settings.node {
        let connecting = connect(inner.clone(), peer.clone());
        inner.tasks.borrow_mut().push(inner.reactor.spawn(Class::Critical, "interconnect connect", connecting));
    }
}

async fn accept(inner: Rc<Inner>, listener: Listener) {
    loop {
        if inner.closed.get() {
            return;
        }
        match listener.accept().await {
            Ok((stream, from)) if inner.half_open.get() < HALF_OPEN_MAX => {
                inner.half_open.set(inner.half_open.get() + 1);
                let greeting = greet_accepted(inner.clone(), stream, from);
                inner.reactor.spawn(Class::Critical, "interconnect greeting", greeting);
            }
            Ok((stream, from)) => {
                drop(stream);
                inner.counters.refuse_one(|refused| &mut refused.too_many);
                warn_of_stranger(&inner, from, &"too many connections wait for their greeting");
            }
            Err(error) => {
                warn_of_stranger(&inner, inner.settings.listen, &error);
                inner.reactor.sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

async fn greet_accepted(inner: Rc<Inner>, stream: Stream, from: SocketAddr) {
    let greeted = inner.reactor.timeout(GREETING_TIME, greeting_of_accepted(&inner, &stream)).await;
    inner.half_open.set(inner.half_open.get() - 1);
    if inner.closed.get() {
        return;
    }
    match greeted.unwrap_or(Err(Unmet::Time)) {
        Ok((peer, hello)) => {
            // Only one connection per peer: the newer one wins, for the peer knows best which of them it still uses.
            loop {
                let changed = peer.changed.notified();
                match &*peer.link.borrow() {
                    Some(old) => old.fail(DownReason::Replaced),
                    None => break,
                }
                changed.await;
            }
            if hello.incarnation >= peer.incarnation.get() {
                converse(&inner, &peer, stream, &hello).await;
            }
        }
        Err(unmet) => {
            count_unmet(&inner, &unmet);
            warn_of_stranger(&inner, from, &unmet);
        }
    }
}

async fn greeting_of_accepted(inner: &Rc<Inner>, stream: &Stream) -> Result<(Rc<Peer>, Hello), Unmet> {
    let wire = receive_hello(stream).await?;
    // A stranger gets no answer: it may be anything, and what we say is none of its business.
    if let Err(fault @ (HelloFault::Magic | HelloFault::Checksum)) = wire.open() {
        return Err(Unmet::Fault(fault));
    }
    let ours = our_hello(inner, NodeId(0));
    let checked = Expected { ours, accepted: true }.check(&wire).and_then(|theirs| admit(inner, &theirs));
    let to = wire.open().map_or(NodeId(0), |theirs| theirs.node);
    let answer = our_hello(inner, to).seal(checked.as_ref().err());
    let (sent, _) = stream.send(IoBuf::from_vec(answer.as_bytes().to_vec())).await;
    let admitted = checked.map_err(Unmet::Fault)?;
    sent.map_err(Unmet::Io)?;
    Ok(admitted)
}

async fn connect(inner: Rc<Inner>, peer: Rc<Peer>) {
    let mut delay = RETRY_DELAY;
    while !inner.closed.get() && !peer.removed.get() {
        let greeted = inner.reactor.timeout(GREETING_TIME, greeting_of_connected(&inner, &peer)).await;
        match greeted.unwrap_or(Err(Unmet::Time)) {
            Ok((stream, hello)) => {
                // One that was never of use is not tried again at once.
                if converse(&inner, &peer, stream, &hello).await {
                    delay = RETRY_DELAY;
                }
            }
            Err(unmet) => {
                // A peer that is not there yet is no refusal.
                if !matches!(unmet, Unmet::Io(_)) {
                    count_unmet(&inner, &unmet);
                }
                if let Some(held_back) = peer.log.pass(inner.reactor.now()) {
                    tracing::warn!(peer = %peer.node, address = %peer.address.get(), held_back, "no connection: {unmet}; trying on");
                }
            }
        }
        // Jitter, so that nodes that start together don't knock together for ever.
        let jitter = Duration::from_nanos(inner.reactor.random() % (delay.as_nanos() as u64 / 4 + 1));
        inner.reactor.sleep(delay + jitter).await;
        delay = (delay * 2).min(RETRY_DELAY_MAX);
    }
}

async fn greeting_of_connected(inner: &Rc<Inner>, peer: &Peer) -> Result<(Stream, Hello), Unmet> {
    let stream = inner.reactor.connect(peer.address.get()).await.map_err(Unmet::Io)?;
    let ours = our_hello(inner, peer.node);
    let (sent, _) = stream.send(IoBuf::from_vec(ours.seal(None).as_bytes().to_vec())).await;
    sent.map_err(Unmet::Io)?;
    let wire = receive_hello(&stream).await?;
    let checked = Expected { ours, accepted: false }.check(&wire).and_then(|theirs| admit(inner, &theirs));
    let (_, hello) = checked.map_err(Unmet::Fault)?;
    Ok((stream, hello))
}

async fn receive_hello(stream: &Stream) -> Result<WireHello, Unmet> {
    let (received, buffer) = stream.recv_exact(IoBuf::from_vec(vec![0; HELLO_BYTES])).await;
    received.map_err(Unmet::Io)?;
    Ok(WireHello::read_from_bytes(buffer.as_slice()).expect("the buffer has a greeting's length"))
}

fn our_hello(inner: &Inner, to: NodeId) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        cluster_id: inner.settings.cluster_id,
        node: inner.settings.node,
        to,
        shard: inner.settings.shard,
        shards: inner.settings.shards,
        block_size: BLOCK_SIZE as u32,
        incarnation: inner.settings.incarnation,
        epoch: inner.epoch.get(),
        scn: inner.clock.latest(),
    }
}

/// The rest of the checks: a peer that we have, in a life that isn't over.
fn admit(inner: &Inner, theirs: &Hello) -> Result<(Rc<Peer>, Hello), HelloFault> {
    let peer = inner.peer(theirs.node).ok_or(HelloFault::UnknownNode(theirs.node))?;
    if peer.removed.get() {
        return Err(HelloFault::Removed(theirs.node));
    }
    let known = peer.incarnation.get();
    if theirs.incarnation < known {
        return Err(HelloFault::Stale { theirs: theirs.incarnation, known });
    }
    // A clock beyond all time can only come from damage that the checksum was made over.
    if theirs.scn >= Scn::MAX {
        return Err(HelloFault::Checksum);
    }
    Ok((peer.clone(), *theirs))
}

/// From the greeting to the end of the connection. Whether the handlers ever heard of it.
async fn converse(inner: &Rc<Inner>, peer: &Rc<Peer>, stream: Stream, hello: &Hello) -> bool {
    // It may have left while it was greeted.
    if peer.removed.get() {
        return false;
    }
    let link = Link::new(peer.node, hello.incarnation, inner.reactor.now());
    peer.incarnation.set(hello.incarnation);
    inner.clock.observe(hello.scn);
    let before = peer.link.replace(Some(link.clone()));
    assert!(before.is_none(), "{} has one connection at a time", peer.node);
    peer.connected_count.set(peer.connected_count.get() + 1);
    // Where only RDMA is wanted, the peer is there when RDMA is.
    let needs_rdma = inner.rdma().is_some_and(|rdma| rdma.required);
    if !needs_rdma {
        announce(inner, peer, &link);
    }

    let reading = link::read(inner.clone(), peer.clone(), link.clone(), stream.clone());
    let reader = inner.reactor.spawn(Class::High, "interconnect read", reading);
    let writer = inner.reactor.spawn(Class::High, "interconnect write", link::write(link.clone(), stream.clone()));
    link.tasks.borrow_mut().extend([reader, writer]);
    rdma::link_is_up(inner, &link);
    let reason = link::watch(inner, peer, &link).await;
    link.stop();
    // First the lane, whose device may be reading what waits; then everything else.
    rdma::forget(inner, &link);
    // Closes it, which ends what the kernel still receives: into a frame, perhaps, that its handler will want back.
    drop(stream);
    if inner.closed.get() {
        return link.announced.get();
    }
    link.all_returned().await;
    if link.announced.get() {
        tracing::warn!(peer = %peer.node, life = %hello.incarnation, "connection lost: {reason}");
    } else if let Some(held_back) = peer.log.pass(inner.reactor.now()) {
        tracing::warn!(peer = %peer.node, life = %hello.incarnation, held_back, "not connected: {reason}");
    }
    *peer.down_reason.borrow_mut() = reason;
    peer.link.take();
    peer.lost_count.set(peer.lost_count.get() + 1);
    if link.announced.get() {
        inner.each_handler(|handler| handler.on_peer_down(peer.node));
    }
    peer.changed.notify_all();
    link.announced.get()
}

/// The handlers hear of the peer, before any message of it.
pub(super) fn announce(inner: &Inner, peer: &Peer, link: &Link) {
    peer.log.reset();
    link.announced.set(true);
    tracing::info!(peer = %peer.node, life = %link.incarnation, "connected");
    inner.each_handler(|handler| handler.on_peer_up(peer.node));
    peer.changed.notify_all();
}

fn count_unmet(inner: &Inner, unmet: &Unmet) {
    inner.counters.refuse_one(|refused| match unmet {
        Unmet::Time => &mut refused.timeout,
        Unmet::Io(_) | Unmet::Fault(HelloFault::Magic | HelloFault::Checksum) => &mut refused.not_a_node,
        Unmet::Fault(_) => &mut refused.greeting,
    });
}

fn warn_of_stranger(inner: &Inner, from: SocketAddr, what: &dyn std::fmt::Display) {
    if let Some(held_back) = inner.strangers.pass(inner.reactor.now()) {
        tracing::warn!(address = %from, held_back, "interconnect connection refused: {what}");
    }
}
