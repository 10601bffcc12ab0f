//! How much may be under way on a lane: packets, credits, send queue, signalling. A state machine without I/O, owned by one
//! lane.
//!
//! A *packet* is one message of the device and takes one receive slot at the other side. Each carries, as its immediate
//! value, how many packets its sender has had and given slots back for: acknowledgement and credit in one. A side has at most
//! [`WINDOW`] packets unacknowledged, and [`WINDOW_RESERVE`] more that say nothing but that. An acknowledgement is due after [`ACK_EVERY`]
//! packets, so never more than WINDOW / ACK_EVERY + 1 of them are in the reserve on that account: it is never exhausted, both
//! sides can always acknowledge, and a message always finds a slot (no RNR by design).
//!
//! Work requests: every [`SIGNAL_EVERY`]-th asks for a completion, so that the send queue is never full of requests of whose end
//! nobody will hear.

use std::collections::VecDeque;

use super::verbs::SEND_QUEUE_DEPTH;

/// Packets with messages that may be unacknowledged.
pub const WINDOW: u64 = 64;

/// Packets beyond the window, for acknowledgements.
pub const WINDOW_RESERVE: u64 = 8;

/// Packets after which an acknowledgement is due.
pub const ACK_EVERY: u64 = WINDOW / 4;

/// Acknowledgements before they are due (of a block, whose sender keeps its frame until then; of an epoch) leave so much
/// of the reserve to those that are due.
const RESERVE_FOR_DUE: u64 = WINDOW / ACK_EVERY + 1;

/// Work requests after which one asks for its completion.
pub const SIGNAL_EVERY: u64 = 16;

const _: () = assert!(RESERVE_FOR_DUE < WINDOW_RESERVE);
const _: () = assert!(SIGNAL_EVERY as usize * 2 <= SEND_QUEUE_DEPTH);

/// See the module.
#[derive(Debug, Default)]
pub struct Window {
    /// Packets sent, and those of them that the other side has had.
    sent: u64,
    acknowledged: u64,
    /// Packets that came and whose slots are the device's again, and of how many of them the other side knows.
    received: u64,
    told: u64,
    /// Work requests posted, and known to be done.
    posted: u64,
    done: u64,
    since_signal: u64,
    /// Send slots in use: by the work request that they are in.
    staged: VecDeque<(u64, u32)>,
}

/// The other side acknowledges packets that were never sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NeverSent;

impl Window {
    /// Whether a message of so many packets and work requests may go now.
    #[must_use]
    pub fn has_room(&self, packets: u64, work: u64) -> bool {
        self.sent - self.acknowledged + packets <= WINDOW && self.has_work_room(work)
    }

    fn has_work_room(&self, work: u64) -> bool {
        self.posted - self.done + work <= SEND_QUEUE_DEPTH as u64
    }

    /// Whether an acknowledgement has to go, though nothing else does.
    #[must_use]
    pub fn acknowledgement_due(&self) -> bool {
        self.received - self.told >= ACK_EVERY
    }

    /// Whether the other side does not know yet of all that came.
    #[must_use]
    pub fn owes(&self) -> bool {
        self.received > self.told
    }

    /// Whether a packet that only acknowledges may go now.
    #[must_use]
    pub fn may_acknowledge(&self) -> bool {
        let reserve = if self.acknowledgement_due() { WINDOW_RESERVE } else { WINDOW_RESERVE - RESERVE_FOR_DUE };
        self.sent - self.acknowledged < WINDOW + reserve && self.has_work_room(1)
    }

    /// Counts a work request. Its name, and whether it asks for its completion.
    pub fn post(&mut self, wants_signal: bool) -> (u64, bool) {
        self.posted += 1;
        self.since_signal += 1;
        let signalled = wants_signal || self.since_signal >= SIGNAL_EVERY;
        if signalled {
            self.since_signal = 0;
        }
        (self.posted, signalled)
    }

    /// Counts a packet. The immediate value that goes with it.
    pub fn packet(&mut self) -> u32 {
        self.sent += 1;
        assert!(self.sent - self.acknowledged <= WINDOW + WINDOW_RESERVE, "a packet without a credit: {self:?}");
        self.told = self.received;
        self.told as u32
    }

    /// Packets that the other side is known to have had, where there are more.
    #[must_use]
    pub fn awaits(&self) -> Option<u64> {
        (self.sent > self.acknowledged).then_some(self.acknowledged)
    }

    /// Packets sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Send slots in use.
    #[must_use]
    pub fn staged(&self) -> usize {
        self.staged.len()
    }

    /// A send slot belongs to a work request until that is done.
    pub fn stage(&mut self, work: u64, slot: u32) {
        self.staged.push_back((work, slot));
    }

    /// A work request is done, and so are those before it. Send slots that are free now.
    pub fn completed(&mut self, work: u64) -> Vec<u32> {
        self.done = self.done.max(work);
        let mut free = Vec::new();
        while let Some((_, slot)) = self.staged.pop_front_if(|(of, _)| *of <= work) {
            free.push(slot);
        }
        free
    }

    /// The slots that are in use, of a lane that is no more.
    pub fn take_staged(&mut self) -> Vec<u32> {
        self.staged.drain(..).map(|(_, slot)| slot).collect()
    }

    /// A packet has come with this immediate value: how many packets the other side has had.
    ///
    /// # Errors
    /// When that is more than were sent.
    pub fn heard(&mut self, immediate: u32) -> Result<u64, NeverSent> {
        let more = immediate.wrapping_sub(self.acknowledged as u32);
        let acknowledged = self.acknowledged + u64::from(more);
        if acknowledged > self.sent {
            return Err(NeverSent);
        }
        self.acknowledged = acknowledged;
        Ok(acknowledged)
    }

    /// The slot of a packet that came is the device's again.
    pub fn slot_returned(&mut self) {
        self.received += 1;
    }
}
