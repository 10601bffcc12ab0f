//! A link's end of its lanes: the attempt of now, what is kept for it, and the reads that it has under way.
//!
//! Part of a link; owned by the shard's thread. One attempt at a time, [`READS_PER_LANE`] reads; what is kept is bounded with the
//! link's queue. What the two sides say to each other to make a lane and to end it is in [`steps`].

mod steps;

use std::collections::VecDeque;
use std::time::Duration;

pub(super) use self::steps::{end, let_tell, on_asked, on_connected, tell_memory};
pub(in super::super) use self::steps::{forget, link_is_up, on_message, tick};
use super::super::Inner;
use super::super::header::{Header, WireHeader};
use super::super::link::Link;
use super::super::queue::QueuedBody;
use super::super::stats::Counters;
use super::board::{self, Board, Landing, Record};
use super::verbs::{Pair, RemotePlace};
use super::{Generation, NumberedStream, Place, StreamFault, Window};
use crate::ids::{BLOCK_SIZE, Epoch, Scn};
use crate::reactor::sync::{OneshotReceiver, OneshotSender, oneshot};
use crate::reactor::{Instant, IoBuf};

/// Pause before the attempt after a failed one; doubles. The tests' devices fail all the time.
const RETRY: Duration = if cfg!(test) { Duration::from_millis(5) } else { Duration::from_secs(2) };

/// Longest pause between attempts.
pub(super) const RETRY_MAX: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(60) };

/// Reads of a lane under way; a device works on no more at a time.
const READS_PER_LANE: usize = 4;

/// The frames of the other side.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeerMemory {
    pub start: u64,
    pub bytes: u64,
    pub key: u32,
    pub floor: Epoch,
}

/// A message on its way to a lane.
#[derive(Debug)]
pub(in super::super) struct Outgoing {
    pub header: Header,
    pub body: OutgoingBody,
    /// Where the block goes, if it may be written.
    pub place: Place,
}

/// See [`Outgoing`].
#[derive(Debug)]
pub(in super::super) enum OutgoingBody {
    Bytes(Vec<u8>),
    Block(IoBuf),
}

impl Outgoing {
    fn bytes(&self) -> usize {
        super::super::HEADER_BYTES + self.header.body_len as usize
    }
}

/// The attempt of now.
pub(super) struct Attempt {
    pub generation: Generation,
    since: Instant,
    pub pair: Option<Pair>,
    pub connected: bool,
    pub window: Window,
    /// Of the other side's frames: none of an earlier epoch may be written into.
    pub floor: Epoch,
    /// A body that is longer than a packet, as far as it has come.
    pub assembling: Option<(WireHeader, Vec<u8>)>,
    /// A block came that has not been acknowledged: its sender keeps the frame until it is.
    pub owes_block: bool,
    /// The other side shall hear of the epoch, or that we live.
    pub says_something: bool,
    /// Where the other side's board is.
    board: Option<RemotePlace>,
    /// Where this side's word is there.
    word: Option<RemotePlace>,
    /// In the order in which they were asked for.
    pub reads: VecDeque<Read>,
    /// Packets at the last heartbeat.
    sent_before: u64,
    /// Since when the other side has had no more than so many packets, of those that were sent.
    stalled: Option<(u64, Instant)>,
}

/// What a read is for.
#[derive(Clone, Copy)]
pub(in super::super) enum Purpose {
    /// A cell of the other side's board.
    Cell(u16),
    /// This side's word there, into which this SCN is written before.
    Tell(Scn),
}

/// A read of the other side's memory.
pub(super) struct Read {
    pub purpose: Purpose,
    pub landing: Landing,
    pub from: RemotePlace,
    /// The work request.
    pub posted: Option<u64>,
    answer: OneshotSender<Option<Record>>,
}

/// A link's end of its lanes.
#[derive(Default)]
pub(in super::super) struct LaneEnd {
    pub(super) stream: NumberedStream<Outgoing>,
    /// Bytes of what the stream keeps.
    bytes: usize,
    pub(super) attempt: Option<Attempt>,
    pub(super) memory: Option<PeerMemory>,
    last: Generation,
    /// The attempt that this side has refused last.
    refused: Option<Generation>,
    /// Our end of this lane is destroyed, the other has not said so yet.
    awaits_down: Option<Generation>,
    retry_at: Option<Instant>,
    /// The pause before the latest attempt: none once a lane has carried a block's worth of bytes.
    pub(super) retry: Duration,
    /// The failure has been told in the log.
    told: bool,
}

impl Attempt {
    /// The reads that are done when this work request is.
    pub(super) fn reads_done(&mut self, work: u64) -> Vec<Read> {
        let done = self.reads.iter().take_while(|read| read.posted.is_some_and(|posted| posted <= work)).count();
        self.reads.drain(..done).collect()
    }
}

/// The reads are done: tells whoever waits for them, who may have gone away.
pub(super) fn finish_reads(inner: &Inner, link: &Link, board: &Board, reads: Vec<Read>) {
    for Read { purpose, landing, answer, .. } in reads {
        let record = match purpose {
            Purpose::Cell(cell) => board.landed(&landing, cell, link.incarnation),
            Purpose::Tell(scn) => Some([board.landed_word(&landing), 0]).filter(|[word, _]| *word >= scn.0),
        };
        board.free(landing);
        Counters::change(&inner.counters.rdma, |rdma| rdma.reads_answered += u64::from(record.is_some()));
        let _ = answer.send(record);
    }
}

impl LaneEnd {
    /// Whether a message goes over TCP, now.
    pub fn goes_by_tcp(&mut self) -> bool {
        self.stream.goes_by_tcp()
    }

    /// Keeps a message for the lane. Bytes that are kept then.
    pub fn keep(&mut self, header: &Header, body: QueuedBody<'_>, place: Place) -> usize {
        let body = match body {
            QueuedBody::Bytes(bytes) => OutgoingBody::Bytes(bytes.to_vec()),
            QueuedBody::Block(block) => OutgoingBody::Block(block),
        };
        let message = Outgoing { header: *header, body, place };
        self.bytes += message.bytes();
        self.stream.wait(message);
        self.bytes
    }

    /// Bytes and messages kept.
    pub fn kept(&self) -> (usize, usize) {
        (self.bytes, self.stream.kept())
    }

    /// Whether there are messages for the lane to take.
    pub fn has_to_post(&self) -> bool {
        self.stream.next_for_lane().is_some()
    }

    /// Whether what is sent goes by the lane.
    pub fn is_by_lane(&self) -> bool {
        self.stream.sends_by().is_some()
    }

    /// The other side has had so many packets.
    pub(super) fn acknowledged(&mut self, packets: u64) -> Vec<Outgoing> {
        let mut done = Vec::new();
        while let Some(message) = self.stream.acknowledged(packets) {
            self.bytes -= message.bytes();
            if message.header.body_len as usize >= BLOCK_SIZE {
                self.retry = Duration::ZERO;
            }
            done.push(message);
        }
        done
    }

    pub(super) fn says_something(&mut self) {
        if let Some(attempt) = &mut self.attempt {
            attempt.says_something = true;
        }
    }

    /// A whole message has come over TCP.
    pub fn came_by_tcp(&mut self) -> Result<(), StreamFault> {
        self.stream.came_by_tcp()
    }

    /// The attempt of now, if it is this one and has a pair.
    pub(super) fn on_pair(&mut self, pair: Pair) -> Option<&mut Attempt> {
        self.attempt.as_mut().filter(|attempt| attempt.pair == Some(pair))
    }

    /// Begins to read of the other side's memory, if the lane is in use and has not too many reads under way.
    pub(super) fn begin_read(&mut self, own: &Board, purpose: Purpose) -> Option<OneshotReceiver<Option<Record>>> {
        self.stream.sends_by()?;
        let attempt = self.attempt.as_mut().filter(|attempt| attempt.reads.len() < READS_PER_LANE)?;
        let from = match purpose {
            Purpose::Cell(cell) => board::cell_at(attempt.board?, cell),
            Purpose::Tell(_) => attempt.word?,
        };
        let landing = own.land()?;
        let (answer, receiver) = oneshot();
        attempt.reads.push_back(Read { purpose, landing, from, posted: None, answer });
        Some(receiver)
    }

    fn begin(&mut self, generation: Generation, now: Instant) {
        assert!(self.attempt.is_none() && self.awaits_down.is_none(), "one lane at a time");
        self.last = generation;
        self.attempt = Some(Attempt {
            generation,
            since: now,
            pair: None,
            connected: false,
            window: Window::default(),
            floor: Epoch::default(),
            assembling: None,
            owes_block: false,
            says_something: false,
            board: None,
            word: None,
            reads: VecDeque::new(),
            sent_before: 0,
            stalled: None,
        });
    }

    fn put_off(&mut self, now: Instant) {
        self.retry = (self.retry * 2).clamp(RETRY, RETRY_MAX);
        self.retry_at = Some(now + self.retry);
    }
}
