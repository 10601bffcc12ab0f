//! Puts what waits on the lanes: all that has gathered since the last time, with one doorbell a peer.

use std::rc::Rc;

use zerocopy::IntoBytes;

use super::super::header::{FLAG_WRITTEN, HEADER_BYTES, Header};
use super::super::link::Link;
use super::super::stats::{BlockTraffic, Counters, RdmaTraffic};
use super::super::{Inner, Message};
use super::board::{Board, CELL_BYTES};
use super::lane::{self, Attempt, Outgoing, OutgoingBody, PeerMemory, Purpose};
use super::terms::LANE_ACKNOWLEDGE;
use super::verbs::{Action, RemotePlace, SLOT_BYTES, Work};
use super::{OwnMemory, Place, Rdma};
use crate::ids::{BLOCK_SIZE, Epoch};
use crate::rules::{DesignRule, kept};

/// Most work requests told to a device with one doorbell.
const BATCH: usize = 64;

/// When a lane on which nothing else is to be said acknowledges a block, or says its epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Acknowledge {
    Now,
    /// With what is posted next.
    Later,
}

/// Posts what waits on all lanes that have something.
pub(super) fn post_all(inner: &Rc<Inner>, rdma: &Rdma, acknowledge: Acknowledge) {
    let mut later = Vec::new();
    loop {
        let Some(link) = rdma.ready.borrow_mut().pop() else { break };
        if link.has_failed() {
            continue;
        }
        if !post(inner, rdma, &link, acknowledge) {
            lane::end(inner, &link, "the device takes no more work");
        } else if acknowledge == Acknowledge::Later {
            later.push(link);
        }
    }
    rdma.ready.borrow_mut().append(&mut later);
}

/// What a message becomes.
enum Parts {
    Written { from: *const u8, key: u32, to: RemotePlace },
    Inline,
    Staged,
}

/// Posts what waits on one lane, as far as there are credits. Whether the device took it.
fn post(inner: &Rc<Inner>, rdma: &Rdma, link: &Rc<Link>, acknowledge: Acknowledge) -> bool {
    let mut lane = link.lane.borrow_mut();
    let super::LaneEnd { stream, attempt, memory, .. } = &mut *lane;
    let Some(attempt) = attempt else { return true };
    let Some(pair) = attempt.pair.filter(|_| attempt.connected) else { return true };
    let mut work: Vec<Work> = Vec::with_capacity(BATCH);
    let mut counted = inner.counters.rdma.get();
    let mut blocks = inner.counters.blocks_rdma.get();
    while let Some(message) = stream.next_for_lane() {
        let parts = parts_of(message, attempt, rdma.memory.get(), *memory, inner.epoch.get());
        let packets = match parts {
            Parts::Written { .. } | Parts::Inline => 1,
            Parts::Staged => packets_of(message.header.body_len as usize),
        };
        let staged = if matches!(parts, Parts::Staged) { packets as usize } else { 0 };
        if !attempt.window.has_room(packets, packets + 1) || attempt.window.staged() + staged > rdma.send_slots_per_lane {
            break;
        }
        put(message, &parts, attempt, rdma, &mut work, &mut counted, &mut blocks);
        let sent = attempt.window.sent();
        stream.posted(sent);
        if work.len() >= BATCH {
            counted.doorbells += 1;
            if rdma.verbs.send(pair, &work).is_err() {
                return false;
            }
            work.clear();
        }
    }
    // What goes with a packet says how many came, but its epoch may be an older one.
    let owes = work.is_empty() && attempt.owes_block && attempt.window.owes();
    let wants = acknowledge == Acknowledge::Now && (attempt.says_something || owes) || attempt.window.acknowledgement_due();
    if wants && attempt.window.may_acknowledge() {
        let header = acknowledgement(inner).seal(&[]);
        let (id, signalled) = attempt.window.post(false);
        let immediate = attempt.window.packet();
        let action = Action::Inline { header: header.as_bytes().try_into().expect("a header"), immediate };
        work.push(Work { id, signalled, action });
        counted.acknowledgements += 1;
        counted.sends += 1;
        counted.inline += 1;
        counted.signalled += u64::from(signalled);
        attempt.says_something = false;
        attempt.owes_block = false;
    }
    if !work.is_empty() {
        // Each packet says how many came.
        attempt.owes_block = false;
    }
    if let Some(board) = &rdma.board {
        put_reads(attempt, board, &mut work, &mut counted);
    }
    counted.doorbells += u64::from(!work.is_empty());
    inner.counters.rdma.set(counted);
    inner.counters.blocks_rdma.set(blocks);
    work.is_empty() || rdma.verbs.send(pair, &work).is_ok()
}

/// Makes the work requests of reads.
fn put_reads(attempt: &mut Attempt, board: &Board, work: &mut Vec<Work>, counted: &mut RdmaTraffic) {
    for read in attempt.reads.iter_mut().filter(|read| read.posted.is_none()) {
        if !attempt.window.has_room(0, 2) {
            return;
        }
        let bytes = match read.purpose {
            Purpose::Cell(_) => CELL_BYTES,
            Purpose::Tell(scn) => {
                let (id, signalled) = attempt.window.post(false);
                work.push(Work { id, signalled, action: Action::WriteWord { value: scn.0, to: read.from } });
                counted.signalled += u64::from(signalled);
                counted.tells += 1;
                size_of::<u64>()
            }
        };
        // Its completion is the answer.
        let (id, signalled) = attempt.window.post(true);
        read.posted = Some(id);
        let (to, key) = board.address_of(&read.landing);
        work.push(Work { id, signalled, action: Action::Read { to, key, from: read.from, bytes: bytes as u32 } });
        counted.reads += 1;
        counted.signalled += 1;
    }
}

fn packets_of(body: usize) -> u64 {
    let first = SLOT_BYTES - HEADER_BYTES;
    1 + body.saturating_sub(first).div_ceil(SLOT_BYTES) as u64
}

/// Whether the block may be written into the other side's frame: at this moment, not when it was queued (the rule of frames).
fn may_write(message: &Outgoing, attempt: &Attempt, peer: &PeerMemory, now: Epoch) -> bool {
    let epoch = message.header.epoch;
    let floor = attempt.floor.max(peer.floor);
    message.place != Place::NONE && epoch >= floor && (epoch == now || !kept(DesignRule::WritesOfThisEpoch))
}

fn parts_of(message: &Outgoing, attempt: &Attempt, own: Option<OwnMemory>, peer: Option<PeerMemory>, now: Epoch) -> Parts {
    let block = match &message.body {
        OutgoingBody::Bytes(bytes) if bytes.is_empty() => return Parts::Inline,
        OutgoingBody::Bytes(_) => return Parts::Staged,
        OutgoingBody::Block(block) => block,
    };
    let (Some(own), Some(peer)) = (own, peer) else { return Parts::Staged };
    if !may_write(message, attempt, &peer, now) {
        return Parts::Staged;
    }
    let offset = (message.place.0 - 1).checked_mul(BLOCK_SIZE as u64);
    let Some(offset) = offset.filter(|offset| offset.checked_add(BLOCK_SIZE as u64).is_some_and(|end| end <= peer.bytes)) else {
        tracing::error!(request = %message.header.request, place = message.place.0, "asked to write a frame outside of its node's memory");
        return Parts::Staged;
    };
    let start = block.as_ptr().addr();
    let is_ours = start >= own.start && start + BLOCK_SIZE <= own.start + own.bytes;
    if !is_ours {
        return Parts::Staged;
    }
    Parts::Written { from: block.as_ptr(), key: own.keys.local, to: RemotePlace { address: peer.start + offset, key: peer.key } }
}

/// Makes the work requests of one message. There is room for them.
fn put(
    message: &Outgoing,
    parts: &Parts,
    attempt: &mut Attempt,
    rdma: &Rdma,
    work: &mut Vec<Work>,
    counted: &mut RdmaTraffic,
    blocks: &mut BlockTraffic,
) {
    let is_block = matches!(message.body, OutgoingBody::Block(_));
    blocks.sent += u64::from(is_block);
    let inline = |header: &Header, attempt: &mut Attempt, work: &mut Vec<Work>, counted: &mut RdmaTraffic| {
        let sealed = header.seal(&[]);
        let (id, signalled) = attempt.window.post(false);
        let immediate = attempt.window.packet();
        let action = Action::Inline { header: sealed.as_bytes().try_into().expect("a header"), immediate };
        work.push(Work { id, signalled, action });
        counted.sends += 1;
        counted.inline += 1;
        counted.signalled += u64::from(signalled);
    };
    match parts {
        Parts::Inline => inline(&message.header, attempt, work, counted),
        Parts::Written { from, key, to } => {
            let (id, signalled) = attempt.window.post(false);
            work.push(Work { id, signalled, action: Action::Write { from: *from, key: *key, to: *to } });
            counted.writes += 1;
            counted.signalled += u64::from(signalled);
            inline(&Header { flags: message.header.flags | FLAG_WRITTEN, ..message.header }, attempt, work, counted);
        }
        Parts::Staged => {
            let (sealed, mut rest): (_, &[u8]) = match &message.body {
                OutgoingBody::Bytes(bytes) => (message.header.seal(bytes), bytes),
                OutgoingBody::Block(block) => (message.header.seal(&[]), block.as_slice()),
            };
            if is_block {
                blocks.bytes_copied += BLOCK_SIZE as u64;
            }
            let mut head: &[u8] = sealed.as_bytes();
            loop {
                let (piece, after) = rest.split_at(rest.len().min(SLOT_BYTES - head.len()));
                let slot = rdma.send_slots.borrow_mut().pop().expect("looked at before");
                rdma.verbs.stage(slot, &[head, piece]);
                // Its completion frees the slot.
                let (id, signalled) = attempt.window.post(true);
                attempt.window.stage(id, slot);
                let (bytes, immediate) = ((head.len() + piece.len()) as u32, attempt.window.packet());
                work.push(Work { id, signalled, action: Action::Staged { slot, bytes, immediate } });
                counted.sends += 1;
                counted.signalled += 1;
                (head, rest) = (&[], after);
                if rest.is_empty() {
                    break;
                }
            }
        }
    }
}

fn acknowledgement(inner: &Inner) -> Header {
    inner.header_of(Message { kind: LANE_ACKNOWLEDGE, ..Message::default() }, 0, 0)
}

/// Adds to what was copied of blocks that came by a lane.
pub(super) fn count_copy(inner: &Inner, bytes: usize) {
    Counters::change(&inner.counters.blocks_rdma, |blocks| blocks.bytes_copied += bytes as u64);
}
