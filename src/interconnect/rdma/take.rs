//! Takes what the device reports: messages to their services, credits, connections, and ends.

use std::rc::Rc;

use zerocopy::FromBytes;

use super::super::header::{FrameFault, HEADER_BYTES, Header, WireHeader};
use super::super::link::{self, Arrival, Link};
use super::super::stats::{Counters, DownReason};
use super::super::{Body, Inner};
use super::lane;
use super::terms::LANE_ACKNOWLEDGE;
use super::verbs::{Event, Pair};
use super::{Rdma, post};
use crate::ids::BLOCK_SIZE;

/// Takes all events, and gives the slots back. What that made possible, and what the handlers said, is ready to be posted then.
pub(super) fn take_all(inner: &Rc<Inner>, rdma: &Rc<Rdma>, events: &mut Vec<Event>) {
    let mut came: Vec<(Pair, Rc<Link>)> = Vec::new();
    for event in events.drain(..) {
        match event {
            Event::Sent { pair, id } => {
                let Some(link) = link_of(rdma, pair) else { continue };
                let mut lane = link.lane.borrow_mut();
                let Some(attempt) = lane.on_pair(pair) else { continue };
                rdma.send_slots.borrow_mut().extend(attempt.window.completed(id));
                let reads = attempt.reads_done(id);
                drop(lane);
                if let Some(board) = &rdma.board {
                    lane::finish_reads(inner, &link, board, reads);
                }
                rdma.post_soon(&link);
            }
            Event::Received { pair, slot, bytes, immediate } => {
                Counters::change(&inner.counters.rdma, |rdma| rdma.received += 1);
                if let Some(link) = link_of(rdma, pair) {
                    came.push((pair, link.clone()));
                    take_packet(inner, rdma, &link, pair, slot, bytes, immediate);
                }
                rdma.returned.borrow_mut().push(slot);
            }
            Event::Returned { slot } => rdma.returned.borrow_mut().push(slot),
            Event::Asked { incoming, greeting } => lane::on_asked(inner, incoming, greeting),
            Event::Connected { pair } => {
                if let Some(link) = link_of(rdma, pair) {
                    lane::on_connected(inner, &link);
                }
            }
            Event::Failed { pair, why } => {
                if let Some(link) = link_of(rdma, pair) {
                    lane::end(inner, &link, &why);
                }
            }
        }
    }
    rdma.repost(inner);
    for (pair, link) in came {
        if let Some(attempt) = link.lane.borrow_mut().on_pair(pair) {
            attempt.window.slot_returned();
        }
        rdma.post_soon(&link);
    }
}

fn link_of(rdma: &Rdma, pair: Pair) -> Option<Rc<Link>> {
    rdma.pairs.borrow().get(&pair).cloned()
}

fn take_packet(inner: &Rc<Inner>, rdma: &Rc<Rdma>, link: &Rc<Link>, pair: Pair, slot: u32, bytes: u32, immediate: u32) {
    if link.has_failed() {
        return;
    }
    // The first message may be quicker than the word that the pair is connected.
    lane::on_connected(inner, link);
    let done = {
        let mut lane = link.lane.borrow_mut();
        let Some(attempt) = lane.on_pair(pair) else { return };
        match attempt.window.heard(immediate) {
            Ok(packets) => lane.acknowledged(packets),
            Err(_) => {
                drop(lane);
                return lane::end(inner, link, "it acknowledges what was never sent");
            }
        }
    };
    // The frames go back to the cache, which may have a lot to do about it.
    drop(done);
    if let Err(fault) = take_message(inner, rdma, link, pair, slot, bytes) {
        inner.counters.refuse_one(|refused| &mut refused.damaged);
        link.fail(DownReason::Damaged(fault));
    }
}

fn take_message(
    inner: &Rc<Inner>,
    rdma: &Rc<Rdma>,
    link: &Rc<Link>,
    pair: Pair,
    slot: u32,
    bytes: u32,
) -> Result<(), FrameFault> {
    let pending = link.lane.borrow_mut().on_pair(pair).and_then(|attempt| attempt.assembling.take());
    if let Some((wire, mut body)) = pending {
        rdma.verbs.read(slot, bytes, &mut |piece| body.extend_from_slice(piece));
        return assemble(inner, link, pair, &wire, body);
    }
    let mut first = None;
    rdma.verbs.read(slot, bytes, &mut |packet| {
        first = WireHeader::read_from_prefix(packet).ok().map(|(wire, rest)| (wire, rest.len()));
    });
    let Some((wire, there)) = first else { return Err(FrameFault::Length { body_len: bytes, block: false }) };
    let header = wire.open()?;
    let wrong_length = FrameFault::Length { body_len: header.body_len, block: header.is_block() };
    let is_summed_alone = header.is_block() || header.body_len == 0;
    if is_summed_alone {
        wire.verify(&[])?;
    }
    link::check_claims(link, &header)?;
    rdma.heard(link, header.epoch);
    if header.kind == LANE_ACKNOWLEDGE {
        return Ok(());
    }
    if is_summed_alone {
        let expected = if header.is_block() && !header.is_written() { BLOCK_SIZE } else { 0 };
        if there != expected {
            return Err(wrong_length);
        }
        if note(link, pair, header.is_block())? {
            take_block_or_nothing(inner, rdma, link, &header, slot, bytes);
        }
        return Ok(());
    }
    let mut body = Vec::with_capacity(header.body_len as usize);
    rdma.verbs.read(slot, bytes, &mut |packet| body.extend_from_slice(&packet[HEADER_BYTES..]));
    assemble(inner, link, pair, &wire, body)
}

/// Counts a message that has come whole. False where the lane has ended meanwhile: the other side has been told that it did not
/// come, and sends it again.
fn note(link: &Link, pair: Pair, is_block: bool) -> Result<bool, FrameFault> {
    let mut lane = link.lane.borrow_mut();
    let Some(attempt) = lane.on_pair(pair) else { return Ok(false) };
    attempt.owes_block |= is_block;
    let generation = attempt.generation;
    lane.stream.came_by_lane(generation).map_err(FrameFault::Stream).map(|()| true)
}

/// Delivers a body that is there whole, or keeps it until it is.
fn assemble(inner: &Rc<Inner>, link: &Rc<Link>, pair: Pair, wire: &WireHeader, body: Vec<u8>) -> Result<(), FrameFault> {
    let header = wire.open()?;
    let wanted = header.body_len as usize;
    if body.len() > wanted {
        return Err(FrameFault::Length { body_len: header.body_len, block: false });
    }
    if body.len() < wanted {
        if let Some(attempt) = link.lane.borrow_mut().on_pair(pair) {
            attempt.assembling = Some((*wire, body));
        }
        return Ok(());
    }
    wire.verify(&body)?;
    if note(link, pair, false)? {
        link::deliver(inner, link, &header, Arrival::Lane, |_| Some(Body::Bytes(body)));
    }
    Ok(())
}

fn take_block_or_nothing(inner: &Rc<Inner>, rdma: &Rc<Rdma>, link: &Rc<Link>, header: &Header, slot: u32, bytes: u32) {
    link::deliver(inner, link, header, Arrival::Lane, |handler| {
        if header.is_written() {
            return rdma.take_exposed(header.request).map(Body::Block);
        }
        if !header.is_block() {
            return Some(Body::Empty);
        }
        let mut frame = link::frame_for(inner, link, Some(handler), header);
        rdma.verbs.read(slot, bytes, &mut |packet| frame.as_mut_slice().copy_from_slice(&packet[HEADER_BYTES..]));
        post::count_copy(inner, BLOCK_SIZE);
        Some(Body::Block(frame))
    });
}
