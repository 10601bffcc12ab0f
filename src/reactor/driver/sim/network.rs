//! The simulated network: listeners and streams with latency, a bounded window, and hosts that cannot reach each other.
//!
//! A stream keeps its bytes in order. While two hosts are parted, what one sends waits (as TCP would send it again) and
//! connecting times out. A window bounds the bytes between sender and reader.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use super::world::{Descriptor, Event, OperationRef, State};
use super::{ActorId, HostId};
use crate::reactor::driver::{Handle, Operation};
use crate::reactor::io::named;

/// Bytes on their way or unread, per direction of a stream.
const WINDOW: usize = 256 * 1024;

/// Connections that wait to be accepted; more are refused.
const BACKLOG_MAX: usize = 128;

/// When a connect to a host that does not answer gives up.
const CONNECT_NS_MAX: u64 = 3_000_000_000;

/// Time that a byte takes on the wire besides the latency: 10 Gbit/s.
const BYTE_NS: u64 = 1;

pub(super) struct Listening {
    actor: ActorId,
    backlog: VecDeque<(u32, SocketAddr)>,
    accepting: VecDeque<OperationRef>,
}

pub(super) struct Connection {
    pub(super) sides: [Side; 2],
    /// Segments that will arrive.
    under_way: usize,
}

pub(super) struct Side {
    pub(super) host: HostId,
    /// The handle of this side, once accepted.
    pub(super) handle: Option<Handle>,
    closed: bool,
    sent_end: bool,
    reset: bool,
    /// Received, not yet read: from the first piece, so many bytes have been read already.
    arrived: VecDeque<Vec<u8>>,
    first_read: usize,
    end_arrived: bool,
    receiving: VecDeque<OperationRef>,
    sending: VecDeque<OperationRef>,
    /// Sent by this side and not yet read by the other.
    in_window: usize,
    /// When the last segment sent by this side arrives, so that none overtakes it.
    last_arrival_ns: u64,
    /// Segments of this side that wait for the hosts to reach each other.
    held: VecDeque<Segment>,
}

/// What travels.
pub(super) enum Segment {
    Bytes(Vec<u8>),
    End,
    Reset,
}

impl Connection {
    /// Nobody looks at it any more, and nothing of it is on its way.
    fn is_over(&self) -> bool {
        self.under_way == 0 && self.sides.iter().all(|side| side.closed && side.receiving.is_empty() && side.sending.is_empty())
    }
}

impl Side {
    fn new(host: HostId) -> Side {
        Side {
            host,
            handle: None,
            closed: false,
            sent_end: false,
            reset: false,
            arrived: VecDeque::new(),
            first_read: 0,
            end_arrived: false,
            receiving: VecDeque::new(),
            sending: VecDeque::new(),
            in_window: 0,
            last_arrival_ns: 0,
            held: VecDeque::new(),
        }
    }
}

/// Moves bytes out of what has arrived, as many as there is space for.
fn read_pieces(arrived: &mut VecDeque<Vec<u8>>, first_read: &mut usize, space: &mut [u8]) -> usize {
    let mut count = 0;
    while let Some(piece) = arrived.front()
        && count < space.len()
    {
        let rest = &piece[*first_read..];
        let part = rest.len().min(space.len() - count);
        space[count..count + part].copy_from_slice(&rest[..part]);
        count += part;
        *first_read += part;
        if *first_read == piece.len() {
            arrived.pop_front();
            *first_read = 0;
        }
    }
    count
}

/// Ports that are given out by number come from here on.
pub(super) const PORTS_FIRST: u16 = 40_000;

impl State {
    fn next_port(&mut self) -> u16 {
        self.ports = self.ports.checked_add(1).unwrap_or(PORTS_FIRST);
        self.ports
    }

    pub(super) fn listen(&mut self, actor: ActorId, address: SocketAddr) -> io::Result<(Handle, SocketAddr)> {
        let mut address = address;
        if address.port() == 0 {
            address.set_port(self.next_port());
        }
        if self.listeners.contains_key(&address) {
            return Err(named(libc::EADDRINUSE, &format!("listen on {address}")));
        }
        let handle = self.add_descriptor(actor, Descriptor::Listener(address));
        let listening = Listening { actor, backlog: VecDeque::new(), accepting: VecDeque::new() };
        self.listeners.insert(address, listening);
        Ok((handle, address))
    }

    pub(super) fn close_listener(&mut self, address: SocketAddr) {
        let Some(listening) = self.listeners.remove(&address) else { return };
        for operation in listening.accepting {
            self.finish(operation, Err(libc::EINVAL), None);
        }
        for (connection, _) in listening.backlog {
            self.close_side(connection, 1, Segment::Reset);
        }
    }

    pub(super) fn submit_accept(&mut self, operation: OperationRef, address: SocketAddr) {
        let listening = self.listeners.get_mut(&address).expect("an open listener");
        listening.accepting.push_back(operation);
        self.match_accepts(address);
    }

    fn match_accepts(&mut self, address: SocketAddr) {
        let Some(listening) = self.listeners.get_mut(&address) else { return };
        if listening.accepting.is_empty() || listening.backlog.is_empty() {
            return;
        }
        let actor = listening.actor;
        let (Some(operation), Some((connection, peer))) = (listening.accepting.pop_front(), listening.backlog.pop_front()) else {
            return;
        };
        let handle = self.add_descriptor(actor, Descriptor::Stream { connection, side: 1 });
        self.connections[connection].sides[1].handle = Some(handle);
        self.finish(operation, Ok(0), Some((handle, peer)));
        self.match_accepts(address);
    }

    pub(super) fn submit_connect(&mut self, operation: OperationRef, address: SocketAddr) {
        let at = self.now() + self.network_ns();
        self.schedule(at, Event::Knock { operation, address });
    }

    /// A connection request arrives at `address`.
    pub(super) fn knock(&mut self, operation: OperationRef, address: SocketAddr) {
        let Some(actor) = self.actor_of(operation) else { return };
        let from = self.host_of(actor);
        let back = self.now() + self.network_ns();
        let unreachable = match self.listeners.get(&address) {
            // Nobody there: the machine answers for the process, unless it is the machine that does not answer.
            None => self.powered_off_addresses.iter().any(|(_, ip)| *ip == address.ip()),
            Some(listening) => {
                let to = self.host_of(listening.actor);
                self.is_parted(from, to) || self.is_parted(to, from)
            }
        };
        if unreachable {
            let result = Err(libc::ETIMEDOUT);
            return self.schedule(back + CONNECT_NS_MAX, Event::Finish { operation, result, opened: None });
        }
        let Some(listening) = self.listeners.get(&address).filter(|listening| listening.backlog.len() < BACKLOG_MAX) else {
            return self.schedule(back, Event::Finish { operation, result: Err(libc::ECONNREFUSED), opened: None });
        };
        let to = self.host_of(listening.actor);
        let connection = self.connections.insert(Connection { sides: [Side::new(from), Side::new(to)], under_way: 0 });
        let ip = Ipv4Addr::new(10, 0, (from.0 >> 8) as u8, from.0 as u8);
        let peer = SocketAddr::from((ip, self.next_port()));
        let listening = self.listeners.get_mut(&address).expect("looked up just now");
        listening.backlog.push_back((connection, peer));
        self.match_accepts(address);
        let handle = self.add_descriptor(actor, Descriptor::Stream { connection, side: 0 });
        self.connections[connection].sides[0].handle = Some(handle);
        self.schedule(back, Event::Finish { operation, result: Ok(0), opened: Some((handle, address)) });
    }

    pub(super) fn submit_stream(&mut self, operation: OperationRef, connection: u32, side: usize) {
        let receives = matches!(self.operation(operation), Some(Operation::Receive { .. }));
        let own = &mut self.connections[connection].sides[side];
        if receives {
            own.receiving.push_back(operation);
            self.advance_receiving(connection, side);
        } else {
            own.sending.push_back(operation);
            self.advance_sending(connection, side);
        }
    }

    fn advance_receiving(&mut self, connection: u32, side: usize) {
        loop {
            let own = &mut self.connections[connection].sides[side];
            let Some(&reference) = own.receiving.front() else { return };
            let result = if own.reset {
                Err(libc::ECONNRESET)
            } else if !own.arrived.is_empty() {
                let Some(Operation::Receive { buffer, done, .. }) =
                    self.operations.get_mut(reference.index).map(|operation| &mut operation.operation)
                else {
                    unreachable!("queued as a receive")
                };
                Ok(read_pieces(&mut own.arrived, &mut own.first_read, &mut buffer.as_mut_slice()[*done..]))
            } else if own.end_arrived || own.closed {
                Ok(0)
            } else {
                return;
            };
            own.receiving.pop_front();
            if let Ok(count) = result {
                self.connections[connection].sides[1 - side].in_window -= count;
            }
            self.finish(reference, result, None);
            self.advance_sending(connection, 1 - side);
        }
    }

    fn advance_sending(&mut self, connection: u32, side: usize) {
        loop {
            let own = &self.connections[connection].sides[side];
            let Some(&reference) = own.sending.front() else { return };
            if own.reset || own.sent_end || own.closed {
                self.connections[connection].sides[side].sending.pop_front();
                self.finish(reference, Err(libc::EPIPE), None);
                continue;
            }
            let room = WINDOW - own.in_window;
            if room == 0 {
                return;
            }
            let mut bytes = Vec::new();
            match self.operation(reference) {
                Some(Operation::Send { buffer, done, .. }) => {
                    let rest = &buffer.as_slice()[*done..];
                    bytes.extend_from_slice(&rest[..rest.len().min(room)]);
                }
                Some(Operation::SendVectored { buffers, done, .. }) => {
                    let mut skip = *done;
                    for buffer in buffers {
                        let rest = buffer.as_slice().get(skip..).unwrap_or_default();
                        skip = skip.saturating_sub(buffer.len());
                        bytes.extend_from_slice(&rest[..rest.len().min(room - bytes.len())]);
                    }
                }
                _ => unreachable!("queued as a send"),
            }
            let count = bytes.len();
            let own = &mut self.connections[connection].sides[side];
            own.sending.pop_front();
            own.in_window += count;
            if let Some(actor) = self.actor_of(reference) {
                let traffic = self.traffic.entry(self.host_of(actor)).or_default();
                (traffic.sends, traffic.sent_bytes) = (traffic.sends + 1, traffic.sent_bytes + count as u64);
            }
            self.send_segment(connection, side, Segment::Bytes(bytes));
            self.finish(reference, Ok(count), None);
        }
    }

    fn send_segment(&mut self, connection: u32, side: usize, segment: Segment) {
        let bytes = if let Segment::Bytes(bytes) = &segment { bytes.len() as u64 } else { 0 };
        let at = self.now() + self.network_ns() + bytes * BYTE_NS;
        let own = &mut self.connections[connection].sides[side];
        own.last_arrival_ns = own.last_arrival_ns.max(at);
        let at = own.last_arrival_ns;
        self.connections[connection].under_way += 1;
        self.schedule(at, Event::Arrive { connection, from: side, segment });
    }

    /// A segment sent by side `from` arrives at the other.
    pub(super) fn arrive(&mut self, connection: u32, from: usize, segment: Segment) {
        let pair = &mut self.connections[connection];
        pair.under_way -= 1;
        let (sender, receiver) = (pair.sides[from].host, pair.sides[1 - from].host);
        let parted = self.is_parted(sender, receiver);
        let pair = &mut self.connections[connection];
        if parted || !pair.sides[from].held.is_empty() {
            pair.sides[from].held.push_back(segment);
        } else {
            self.take_in(connection, from, segment);
        }
        self.remove_if_over(connection);
    }

    fn take_in(&mut self, connection: u32, from: usize, segment: Segment) {
        let to = &mut self.connections[connection].sides[1 - from];
        match segment {
            Segment::Bytes(_) if to.closed => {
                if !to.reset {
                    to.reset = true;
                    self.send_segment(connection, 1 - from, Segment::Reset);
                }
                return;
            }
            Segment::Bytes(bytes) if bytes.is_empty() => {}
            Segment::Bytes(bytes) => to.arrived.push_back(bytes),
            Segment::End => to.end_arrived = true,
            Segment::Reset => to.reset = true,
        }
        self.advance_receiving(connection, 1 - from);
        self.advance_sending(connection, 1 - from);
    }

    /// Hosts reach each other again: what waited is on its way now.
    pub(super) fn release_held(&mut self) {
        for connection in self.connections.indexes() {
            for from in 0..2 {
                let pair = &self.connections[connection];
                if pair.sides[from].held.is_empty() || self.is_parted(pair.sides[from].host, pair.sides[1 - from].host) {
                    continue;
                }
                let held = std::mem::take(&mut self.connections[connection].sides[from].held);
                for segment in held {
                    self.send_segment(connection, from, segment);
                }
            }
        }
    }

    /// See [`SimWorld::break_connections`](super::SimWorld::break_connections).
    pub(super) fn break_connections(&mut self, one: HostId, other: HostId) {
        for connection in self.connections.indexes() {
            let hosts = [0, 1].map(|side| self.connections[connection].sides[side].host);
            if hosts != [one, other] && hosts != [other, one] {
                continue;
            }
            for side in 0..2 {
                let own = &mut self.connections[connection].sides[side];
                own.reset = true;
                own.held.clear();
                self.advance_receiving(connection, side);
                self.advance_sending(connection, side);
            }
        }
    }

    pub(super) fn end_sending(&mut self, connection: u32, side: usize) {
        let own = &mut self.connections[connection].sides[side];
        if !own.sent_end {
            own.sent_end = true;
            self.send_segment(connection, side, Segment::End);
            self.advance_sending(connection, side);
        }
    }

    /// One side closes; `farewell` is what the other side hears.
    pub(super) fn close_side(&mut self, connection: u32, side: usize, farewell: Segment) {
        let own = &mut self.connections[connection].sides[side];
        if own.closed {
            return;
        }
        own.closed = true;
        // As TCP does: unread bytes make the end a reset.
        let unread = own.arrived.iter().map(Vec::len).sum::<usize>() - std::mem::take(&mut own.first_read);
        own.arrived.clear();
        self.connections[connection].sides[1 - side].in_window -= unread;
        if unread > 0 || matches!(farewell, Segment::Reset) {
            self.send_segment(connection, side, Segment::Reset);
        } else {
            self.end_sending(connection, side);
        }
        self.advance_receiving(connection, side);
        self.advance_sending(connection, side);
        self.advance_sending(connection, 1 - side);
        self.remove_if_over(connection);
    }

    fn remove_if_over(&mut self, connection: u32) {
        if self.connections[connection].is_over() {
            self.connections.remove(connection);
        }
    }

    /// One side's machine is gone without a word.
    pub(super) fn vanish_side(&mut self, connection: u32, side: usize) {
        let own = &mut self.connections[connection].sides[side];
        // Bytes that arrive later are not answered either.
        (own.closed, own.reset, own.sent_end) = (true, true, true);
        own.receiving.clear();
        own.sending.clear();
        own.held.clear();
        self.remove_if_over(connection);
    }
}
