//! One numbered stream of messages over two transports: what makes falling back from RDMA to TCP lose and double nothing.
//!
//! A state machine without I/O, owned by one link. Both sides count the messages of their services from the link's
//! beginning, whichever way they go. Each direction goes over TCP first; a marker in the TCP stream (*switch*) says that what
//! follows comes by the lane, and nothing is put on the lane before the receiver has said *go*. When a lane fails, each side
//! first ends its own end of it, so that nothing more can arrive that way, and then says over TCP how many messages it has
//! (*down*). Who hears that sends the rest again over TCP, and only then anything newer. So a message is delivered by the
//! lane or by TCP, never by both: the number that a receiver names is one after which it takes nothing from that lane.
//!
//! Bounds: what is not yet acknowledged is bounded by the lane's window, what waits by the link's queue.

use std::collections::VecDeque;
use std::fmt;

/// How often a lane was tried on a link; names the attempt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Generation(pub u64);

/// Which way this side's messages go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sending {
    Tcp,
    /// The marker is in the TCP stream; the other side has not said go.
    Switching(Generation),
    Lane(Generation),
    /// The lane has failed; how much of it has arrived is not known yet.
    Unknown(Generation),
}

/// A message that may have to be sent again, with the count of the lane's packets up to its end.
#[derive(Debug)]
struct Unacknowledged<T> {
    number: u64,
    message: T,
    packets: u64,
}

/// What is left of a lane.
#[derive(Debug)]
pub struct Down<T> {
    /// Goes over TCP now, in order.
    pub again: Vec<T>,
    /// The other side has it, though it had not said so.
    pub arrived: Vec<T>,
}

/// What the other side said that can't be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamFault {
    /// A message came over TCP while the stream goes by the lane.
    Tcp,
    /// A message came by a lane that the stream does not go by.
    Lane(Generation),
    /// A step of the switch that does not belong to the lane of now.
    Step(Generation),
    /// It says that it has messages that it can't have.
    Received {
        /// What it says.
        number: u64,
        /// The first that it may still lack.
        lowest: u64,
        /// What has been sent.
        sent: u64,
    },
}

impl fmt::Display for StreamFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StreamFault::Tcp => write!(f, "a message came over TCP in the middle of those that come by RDMA"),
            StreamFault::Lane(generation) => write!(f, "a message came by RDMA lane {} that it can't come by", generation.0),
            StreamFault::Step(generation) => {
                write!(f, "a step of changing to RDMA lane {}, which is not being changed to", generation.0)
            }
            StreamFault::Received { number, lowest, sent } => {
                write!(f, "it says that it has {number} messages: at least {lowest} are known to have come, {sent} were sent")
            }
        }
    }
}

/// See the module. `T` is a message.
#[derive(Debug)]
pub struct NumberedStream<T> {
    sending: Sending,
    /// Messages that have been given a number.
    sent: u64,
    /// How many these were when the marker was put into the TCP stream: those reach the other side over TCP, if anything does.
    switched_at: u64,
    /// For the lane, or for whatever way it will be.
    waiting: VecDeque<T>,
    unacknowledged: VecDeque<Unacknowledged<T>>,
    /// Messages delivered.
    received: u64,
    /// The lane that they come by.
    receiving: Option<Generation>,
}

impl<T> Default for NumberedStream<T> {
    fn default() -> Self {
        NumberedStream {
            sending: Sending::Tcp,
            sent: 0,
            switched_at: 0,
            waiting: VecDeque::new(),
            unacknowledged: VecDeque::new(),
            received: 0,
            receiving: None,
        }
    }
}

impl<T> NumberedStream<T> {
    /// Whether the next message goes over TCP, now; it is counted then. Otherwise it has to [`wait`](Self::wait).
    pub fn goes_by_tcp(&mut self) -> bool {
        let by_tcp = self.sending == Sending::Tcp;
        self.sent += u64::from(by_tcp);
        by_tcp
    }

    /// Keeps a message until its way is known.
    pub fn wait(&mut self, message: T) {
        assert_ne!(self.sending, Sending::Tcp, "what can go does not wait");
        self.waiting.push_back(message);
    }

    /// This side's end of the lane is connected: the marker has to be put into the TCP stream now, behind all that went.
    pub fn switch(&mut self, generation: Generation) {
        assert_eq!(self.sending, Sending::Tcp, "{generation:?}: one lane after the other");
        self.sending = Sending::Switching(generation);
        self.switched_at = self.sent;
    }

    /// The other side takes messages from the lane.
    ///
    /// # Errors
    /// When that was not asked for.
    pub fn on_go(&mut self, generation: Generation) -> Result<(), StreamFault> {
        match self.sending {
            Sending::Switching(own) if own == generation => self.sending = Sending::Lane(generation),
            // Said before it heard that the lane has failed here.
            Sending::Unknown(own) if own == generation => {}
            _ => return Err(StreamFault::Step(generation)),
        }
        Ok(())
    }

    /// The marker has come: what follows comes by the lane, so *go* has to be said now.
    ///
    /// # Errors
    /// When the stream comes by a lane already.
    pub fn on_switch(&mut self, generation: Generation) -> Result<(), StreamFault> {
        if self.receiving.is_some() {
            return Err(StreamFault::Step(generation));
        }
        self.receiving = Some(generation);
        Ok(())
    }

    /// The message that goes by the lane next.
    pub fn next_for_lane(&self) -> Option<&T> {
        matches!(self.sending, Sending::Lane(_)).then(|| self.waiting.front()).flatten()
    }

    /// That message was posted; it is acknowledged when the other side has had `packets` of the lane.
    pub fn posted(&mut self, packets: u64) {
        assert!(matches!(self.sending, Sending::Lane(_)), "posted while the stream is {:?}", self.sending);
        let message = self.waiting.pop_front().expect("what was posted had waited");
        self.unacknowledged.push_back(Unacknowledged { number: self.sent, message, packets });
        self.sent += 1;
    }

    /// The other side has had so many packets of the lane: gives back what is behind them, one by one.
    pub fn acknowledged(&mut self, packets: u64) -> Option<T> {
        let done = self.unacknowledged.front().is_some_and(|first| first.packets <= packets);
        done.then(|| self.unacknowledged.pop_front().map(|first| first.message)).flatten()
    }

    /// A whole message came over TCP.
    ///
    /// # Errors
    /// When the stream comes by a lane.
    pub fn came_by_tcp(&mut self) -> Result<(), StreamFault> {
        if self.receiving.is_some() {
            return Err(StreamFault::Tcp);
        }
        self.received += 1;
        Ok(())
    }

    /// A whole message came by the lane.
    ///
    /// # Errors
    /// When the stream does not come by it.
    pub fn came_by_lane(&mut self, generation: Generation) -> Result<(), StreamFault> {
        if self.receiving != Some(generation) {
            return Err(StreamFault::Lane(generation));
        }
        self.received += 1;
        Ok(())
    }

    /// This side's end of the lane is no more, nothing can come by it: *down* has to be said, with the number returned.
    pub fn lane_ended(&mut self, generation: Generation) -> u64 {
        match self.sending {
            Sending::Switching(own) | Sending::Lane(own) if own == generation => self.sending = Sending::Unknown(generation),
            _ => {}
        }
        if self.receiving == Some(generation) {
            self.receiving = None;
        }
        self.received
    }

    /// The other side's end is no more, and it has `number` messages. Ours has ended before. Gives back what goes over TCP
    /// now, in order, and what has arrived.
    ///
    /// # Errors
    /// When it can't have that number.
    pub fn on_down(&mut self, generation: Generation, number: u64) -> Result<Down<T>, StreamFault> {
        match self.sending {
            Sending::Unknown(own) if own == generation => {}
            // The lane never came to be on this side.
            Sending::Tcp => return Ok(Down { again: Vec::new(), arrived: Vec::new() }),
            _ => return Err(StreamFault::Step(generation)),
        }
        // What went over TCP before the lane may still be on its way, and will come.
        let number = number.max(self.switched_at);
        let lowest = self.unacknowledged.front().map_or(self.sent, |first| first.number);
        if number < lowest || number > self.sent {
            return Err(StreamFault::Received { number, lowest, sent: self.sent });
        }
        let (lost, arrived): (Vec<_>, Vec<_>) = self.unacknowledged.drain(..).partition(|kept| kept.number >= number);
        let mut again: Vec<T> = lost.into_iter().map(|kept| kept.message).collect();
        again.extend(self.waiting.drain(..));
        self.sent = number + again.len() as u64;
        self.sending = Sending::Tcp;
        Ok(Down { again, arrived: arrived.into_iter().map(|kept| kept.message).collect() })
    }

    /// The lane that this side's messages go by.
    #[must_use]
    pub fn sends_by(&self) -> Option<Generation> {
        match self.sending {
            Sending::Lane(generation) => Some(generation),
            _ => None,
        }
    }

    /// The lane that the other side's messages come by.
    #[must_use]
    pub fn receives_by(&self) -> Option<Generation> {
        self.receiving
    }

    /// Messages that are kept here.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.waiting.len() + self.unacknowledged.len()
    }

    /// Forgets everything that is kept: the link is over.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.unacknowledged.clear();
    }
}
