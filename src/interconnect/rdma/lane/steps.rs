//! How a lane comes to be and how it ends: what the two sides tell each other over the TCP connection, and what they ask of
//! their devices.
//!
//! In the shard's thread. The side that made the TCP connection *offers*, the other *accepts* (or refuses), the first connects
//! the devices; then each side *switches* its direction when it is connected. An end that fails is destroyed at once and says
//! *down*; the next attempt comes when both have, after a pause that grows to [`RETRY_MAX`]. All of it goes through the TCP stream, in
//! order with the messages.

use std::rc::Rc;
use std::time::Duration;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::super::super::header::{FrameFault, Header};
use super::super::super::link::Link;
use super::super::super::queue::QueuedBody;
use super::super::super::stats::Counters;
use super::super::super::{Inner, Message, Peer, tcp};
use super::super::terms::{
    GREETING_MAGIC, LANE_ACCEPT, LANE_DOWN, LANE_GO, LANE_MEMORY, LANE_OFFER, LANE_REFUSE, LANE_SWITCH, LANE_WORD, WireGreeting,
    WireMemory, WireTerms, WireWord, terms, word_of,
};
use super::super::verbs::{GREETING_BYTES, Incoming, RemotePlace};
use super::super::{Generation, Place, Rdma, StreamFault, WINDOW};
use super::{Outgoing, OutgoingBody, PeerMemory, RETRY_MAX};
use crate::ids::{BLOCK_SIZE, Epoch, NodeId, RequestId};

/// An attempt that has not come to a lane by then has failed.
const ATTEMPT_TIME: Duration = Duration::from_secs(10);

fn say(inner: &Inner, link: &Link, message: Message, body: &[u8]) {
    if let Some(peer) = inner.peer(link.node)
        && !link.has_failed()
    {
        // A full queue ends the connection by itself.
        let _ = inner.enqueue(peer, link, message, QueuedBody::Bytes(body), Place::NONE);
    }
}

fn step(inner: &Inner, link: &Link, kind: u8, generation: Generation) {
    say(inner, link, Message { kind, argument: generation.0, ..Message::default() }, &[]);
}

/// The other side may write its clock from now on.
pub(in super::super) fn let_tell(inner: &Inner, link: &Link) {
    let generation = link.lane.borrow().attempt.as_ref().map(|attempt| attempt.generation);
    if let Some(generation) = generation {
        let message = Message { kind: LANE_WORD, argument: generation.0, ..Message::default() };
        say(inner, link, message, word_of(inner, link.node).as_bytes());
    }
}

/// Tells the other side where this side's frames are. Not before the first epoch of this life: whoever is still in a former one may
/// have been told to write what the former life had asked for.
pub(in super::super) fn tell_memory(inner: &Inner, link: &Link) {
    let Some(memory) = inner.rdma().and_then(|rdma| rdma.memory.get()) else { return };
    let floor = inner.epoch.get();
    if floor == Epoch::default() {
        return;
    }
    let wire = WireMemory {
        start: U64::new(memory.start as u64),
        bytes: U64::new(memory.bytes as u64),
        floor: U64::new(floor.0),
        key: U32::new(memory.keys.remote),
        zero: U32::ZERO,
    };
    say(inner, link, Message { kind: LANE_MEMORY, ..Message::default() }, wire.as_bytes());
}

/// The link is connected.
pub(in super::super::super) fn link_is_up(inner: &Inner, link: &Rc<Link>) {
    if inner.rdma().is_some() {
        tell_memory(inner, link);
        tick(inner, link);
    }
}

/// A heartbeat of the link: offers a lane where that is this side's part and its time has come, ends an attempt that takes too
/// long, and lets an idle lane say something, for a broken one is found only by that.
pub(in super::super::super) fn tick(inner: &Inner, link: &Rc<Link>) {
    let Some(rdma) = inner.rdma() else { return };
    let now = inner.reactor.now();
    let mut lane = link.lane.borrow_mut();
    if let Some(attempt) = &mut lane.attempt {
        if !attempt.connected && now.since(attempt.since) > ATTEMPT_TIME {
            drop(lane);
            return end(inner, link, "it was not connected in time");
        }
        // A device may go on trying for a minute before it says that the other side does not answer.
        let had = attempt.window.awaits();
        attempt.stalled = had.map(|had| attempt.stalled.filter(|(before, _)| *before == had).unwrap_or((had, now)));
        let limit = inner.settings.heartbeat_timeout;
        if attempt.stalled.is_some_and(|(_, since)| now.since(since) >= limit) {
            drop(lane);
            return end(inner, link, &format!("nothing was acknowledged for {} ms", limit.as_millis()));
        }
        // Whoever is connected and in no later view would bring no word of one, ever.
        if rdma.exposed.borrow().kept_since(link.node).is_some_and(|since| now.since(since) >= limit) {
            drop(lane);
            return end(inner, link, &format!("it brought no word of a later epoch for {} ms", limit.as_millis()));
        }
        if attempt.connected && attempt.window.sent() == attempt.sent_before {
            attempt.says_something = true;
            drop(lane);
            rdma.post_soon(link);
            return;
        }
        attempt.sent_before = attempt.window.sent();
        return;
    }
    let due = lane.retry_at.is_none_or(|at| at <= now);
    let offers = link.node < inner.settings.node && lane.awaits_down.is_none() && due;
    if !offers || rdma.disabled.borrow().is_some() {
        return;
    }
    if rdma.exposed.borrow().lanes() >= rdma.lanes_max() {
        lane.put_off(now);
        return;
    }
    let generation = rdma.next_attempt();
    lane.begin(generation, now);
    drop(lane);
    rdma.exposed.borrow_mut().lane_opens(link.node, generation, inner.epoch.get());
    let message = Message { kind: LANE_OFFER, argument: generation.0, ..Message::default() };
    say(inner, link, message, terms(inner, link.node).as_bytes());
}

/// A message of the link's own that is about lanes.
pub(in super::super::super) fn on_message(
    inner: &Inner,
    peer: &Peer,
    link: &Rc<Link>,
    header: &Header,
    body: &[u8],
) -> Result<(), FrameFault> {
    let generation = Generation(header.argument);
    let is_now = link.lane.borrow().attempt.as_ref().is_some_and(|attempt| attempt.generation == generation);
    let Some(rdma) = inner.rdma() else {
        if header.kind == LANE_OFFER {
            step(inner, link, LANE_REFUSE, generation);
        }
        return Ok(());
    };
    let unreadable = FrameFault::Length { body_len: header.body_len, block: false };
    let impossible = FrameFault::Stream(StreamFault::Step(generation));
    match header.kind {
        LANE_OFFER => {
            let offer = WireTerms::read_from_bytes(body).map_err(|_| unreadable)?;
            {
                let lane = link.lane.borrow();
                if lane.attempt.is_some()
                    || lane.awaits_down.is_some()
                    || generation <= lane.last
                    || link.node < inner.settings.node
                {
                    return Err(impossible);
                }
            }
            let full = rdma.exposed.borrow().lanes() >= rdma.lanes_max();
            if full || rdma.disabled.borrow().is_some() || offer.window.get() != WINDOW as u32 {
                let mut lane = link.lane.borrow_mut();
                (lane.last, lane.refused) = (generation, Some(generation));
                drop(lane);
                step(inner, link, LANE_REFUSE, generation);
                return Ok(());
            }
            link.lane.borrow_mut().begin(generation, inner.reactor.now());
            take_terms(link, &offer);
            rdma.exposed.borrow_mut().lane_opens(link.node, generation, inner.epoch.get());
            let message = Message { kind: LANE_ACCEPT, argument: generation.0, ..Message::default() };
            say(inner, link, message, terms(inner, link.node).as_bytes());
        }
        LANE_ACCEPT if is_now => {
            let terms = WireTerms::read_from_bytes(body).map_err(|_| unreadable)?;
            take_terms(link, &terms);
            match rdma.verbs.connect(peer.address.get(), &greeting(inner, link, generation)) {
                Ok(pair) => {
                    rdma.pairs.borrow_mut().insert(pair, link.clone());
                    link.lane.borrow_mut().attempt.as_mut().expect("it is of now").pair = Some(pair);
                }
                Err(fault) => end(inner, link, &fault.to_string()),
            }
        }
        // It may have failed here before the answer came; the other side has nothing to say of it then.
        LANE_REFUSE if is_now || link.lane.borrow().awaits_down == Some(generation) => {
            {
                let mut lane = link.lane.borrow_mut();
                (lane.attempt, lane.awaits_down) = (None, None);
                lane.put_off(inner.reactor.now());
                lane.retry_at = Some(inner.reactor.now() + RETRY_MAX);
            }
            rdma.lane_is_gone(link, generation);
            log_failure(inner, link, "it has no RDMA, or no room for another connection");
            rdma.note_failure(link, "it has none");
        }
        LANE_SWITCH if is_now => {
            link.lane.borrow_mut().stream.on_switch(generation).map_err(FrameFault::Stream)?;
            step(inner, link, LANE_GO, generation);
            note_ready(inner, link);
        }
        LANE_GO if is_now => {
            link.lane.borrow_mut().stream.on_go(generation).map_err(FrameFault::Stream)?;
            rdma.post_soon(link);
        }
        LANE_DOWN => {
            if is_now {
                end(inner, link, "its end has failed");
            }
            let mut lane = link.lane.borrow_mut();
            if lane.refused == Some(generation) {
                // The two crossed.
                return Ok(());
            }
            if lane.awaits_down != Some(generation) {
                return Err(impossible);
            }
            lane.awaits_down = None;
            let down = lane.stream.on_down(generation, header.request.0).map_err(FrameFault::Stream)?;
            lane.bytes = 0;
            drop(lane);
            // The frames go back to the cache, which may have a lot to do about it.
            drop(down.arrived);
            let count = down.again.len() as u64;
            Counters::change(&inner.counters.rdma, |rdma| rdma.sent_again += count);
            let mut queue = link.queue.borrow_mut();
            for Outgoing { header, body, .. } in down.again {
                match body {
                    OutgoingBody::Bytes(bytes) => queue.push(&header, QueuedBody::Bytes(&bytes)),
                    OutgoingBody::Block(block) => {
                        Counters::change(&inner.counters.blocks_tcp, |blocks| blocks.sent += 1);
                        queue.push(&header, QueuedBody::Block(block));
                    }
                }
            }
            link.filled.notify_all();
        }
        LANE_MEMORY => {
            let wire = WireMemory::read_from_bytes(body).map_err(|_| unreadable)?;
            let (start, bytes, floor) = (wire.start.get(), wire.bytes.get(), Epoch(wire.floor.get()));
            let memory = PeerMemory { start, bytes, key: wire.key.get(), floor };
            if memory.start.checked_add(memory.bytes).is_none() || !memory.bytes.is_multiple_of(BLOCK_SIZE as u64) {
                return Err(unreadable);
            }
            link.lane.borrow_mut().memory = Some(memory);
        }
        LANE_WORD if is_now => {
            let word = WireWord::read_from_bytes(body).map_err(|_| unreadable)?;
            link.lane.borrow_mut().attempt.as_mut().expect("it is of now").word = word.open();
        }
        // A step of a lane that has ended here: the other side will have heard of that by the time it matters.
        LANE_ACCEPT | LANE_REFUSE | LANE_SWITCH | LANE_GO | LANE_WORD => {}
        _ => inner.counters.drop_one(|drops| &mut drops.no_handler),
    }
    Ok(())
}

fn take_terms(link: &Link, terms: &WireTerms) {
    let mut lane = link.lane.borrow_mut();
    let attempt = lane.attempt.as_mut().expect("it is of now");
    attempt.floor = Epoch(terms.floor.get());
    let board = RemotePlace { address: terms.board.get(), key: terms.board_key.get() };
    attempt.board = (board.address != 0).then_some(board);
    attempt.word = terms.word.open();
}

fn greeting(inner: &Inner, link: &Link, generation: Generation) -> [u8; GREETING_BYTES] {
    let greeting = WireGreeting {
        magic: GREETING_MAGIC,
        node: inner.settings.node.0,
        to: link.node.0,
        shard: inner.settings.shard.0,
        zero: 0,
        generation: U64::new(generation.0),
        incarnation: U64::new(inner.settings.incarnation.0),
        cluster_id: inner.settings.cluster_id.to_le_bytes(),
    };
    zerocopy::transmute!(greeting)
}

/// Somebody's device asks to be connected: yes, if it is the attempt of now of one of the links.
pub(in super::super) fn on_asked(inner: &Inner, incoming: Incoming, greeting: [u8; GREETING_BYTES]) {
    let rdma = inner.rdma().expect("the device is this one's");
    let greeting: WireGreeting = zerocopy::transmute!(greeting);
    let for_us = greeting.magic == GREETING_MAGIC
        && greeting.cluster_id == inner.settings.cluster_id.to_le_bytes()
        && greeting.to == inner.settings.node.0
        && greeting.shard == inner.settings.shard.0;
    let link = inner.peer(NodeId(greeting.node)).and_then(|peer| peer.link.borrow().clone());
    let link = link.filter(|link| {
        let lane = link.lane.borrow();
        let attempt = lane.attempt.as_ref().filter(|attempt| attempt.pair.is_none());
        let is_now = attempt.is_some_and(|attempt| attempt.generation.0 == greeting.generation.get());
        for_us
            && is_now
            && link.incarnation.0 == greeting.incarnation.get()
            && link.node > inner.settings.node
            && !link.has_failed()
    });
    let Some(link) = link else {
        tracing::debug!("a connection by RDMA that nobody expects is refused");
        return rdma.verbs.refuse(incoming);
    };
    match rdma.verbs.accept(incoming) {
        Ok(pair) => {
            rdma.pairs.borrow_mut().insert(pair, link.clone());
            link.lane.borrow_mut().attempt.as_mut().expect("looked at above").pair = Some(pair);
        }
        Err(fault) => end(inner, &link, &fault.to_string()),
    }
}

/// The devices are connected: from now on this side's messages go that way.
pub(in super::super) fn on_connected(inner: &Inner, link: &Rc<Link>) {
    let mut lane = link.lane.borrow_mut();
    let now = inner.reactor.now();
    let attempt = lane.attempt.as_mut().expect("its pair is known");
    if std::mem::replace(&mut attempt.connected, true) {
        return;
    }
    let generation = attempt.generation;
    attempt.since = now;
    lane.stream.switch(generation);
    lane.retry_at = None;
    lane.told = false;
    drop(lane);
    Counters::change(&inner.counters.rdma, |rdma| rdma.lanes_connected += 1);
    let device = inner.rdma().map(|rdma| rdma.verbs.name());
    tracing::info!(peer = %link.node, device, "by RDMA from now on");
    step(inner, link, LANE_SWITCH, generation);
    note_ready(inner, link);
}

/// Where only RDMA is wanted the peer counts as connected when both directions go that way.
fn note_ready(inner: &Inner, link: &Rc<Link>) {
    let is_ready = {
        let lane = link.lane.borrow();
        lane.attempt.as_ref().is_some_and(|attempt| attempt.connected) && lane.stream.receives_by().is_some()
    };
    if let Some(peer) = inner.peer(link.node).filter(|_| is_ready && !link.announced.get() && !link.has_failed()) {
        tcp::announce(inner, peer, link);
    }
}

/// Ends this side's end of the lane, whatever state it is in, and tells the other.
pub(in super::super) fn end(inner: &Inner, link: &Rc<Link>, why: &str) {
    let Some(rdma) = inner.rdma() else { return };
    let Some((generation, number)) = take_down(link, rdma) else { return };
    link.lane.borrow_mut().put_off(inner.reactor.now());
    Counters::change(&inner.counters.rdma, |rdma| rdma.lanes_failed += 1);
    log_failure(inner, link, why);
    let message = Message { kind: LANE_DOWN, argument: generation.0, request: RequestId(number), ..Message::default() };
    say(inner, link, message, &[]);
    rdma.note_failure(link, why);
}

fn log_failure(inner: &Inner, link: &Link, why: &str) {
    let required = inner.rdma().is_some_and(|rdma| rdma.required);
    if !std::mem::replace(&mut link.lane.borrow_mut().told, true) && !required {
        tracing::warn!(peer = %link.node, "not by RDMA: {why}; by TCP until that changes");
    }
}

/// Destroys the pair, so that nothing comes by it any more, and takes note of how many messages have come.
fn take_down(link: &Rc<Link>, rdma: &Rdma) -> Option<(Generation, u64)> {
    let mut attempt = link.lane.borrow_mut().attempt.take()?;
    if let Some(pair) = attempt.pair {
        rdma.verbs.destroy(pair);
        rdma.pairs.borrow_mut().remove(&pair);
    }
    rdma.send_slots.borrow_mut().extend(attempt.window.take_staged());
    // Whoever waits for a read hears that it has no answer.
    for read in attempt.reads.drain(..) {
        rdma.board.as_ref().expect("it has read").free(read.landing);
    }
    let number = {
        let mut lane = link.lane.borrow_mut();
        lane.awaits_down = Some(attempt.generation);
        lane.stream.lane_ended(attempt.generation)
    };
    rdma.lane_is_gone(link, attempt.generation);
    Some((attempt.generation, number))
}

/// The link is over.
pub(in super::super::super) fn forget(inner: &Inner, link: &Rc<Link>) {
    let Some(rdma) = inner.rdma() else { return };
    take_down(link, rdma);
    rdma.ready.borrow_mut().retain(|known| !Rc::ptr_eq(known, link));
    let stream = std::mem::take(&mut link.lane.borrow_mut().stream);
    // The frames that were to be sent go back to the cache, which may have a lot to do about it.
    drop(stream);
}
