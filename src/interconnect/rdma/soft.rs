//! A device in memory: several nodes of one thread, connected by nothing. For tests of everything above the verbs, with the
//! faults that a real device has: work that is late, a queue pair that fails with work under way (which may still arrive),
//! memory that can't be registered, a peer that can't be reached, or takes nothing, or nothing that is long.
//!
//! One [`SoftNetwork`] per test, one [`SoftVerbs`] per shard; all in one thread. It is as strict as a device: a write outside
//! of registered memory fails the pair, a message that finds no receive slot is counted ([`SoftNetwork::not_ready`]) and waits.
//! Work is done in order per pair, as on a reliable connection, and in any order among pairs, by the seed. A write reads its
//! source when it is done, not when it is posted, as late as a device may; a read takes its words at two moments.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use super::verbs::{
    Access, Action, Event, GREETING_BYTES, Incoming, LocalFuture, MemoryKeys, Pair, SEND_QUEUE_DEPTH, SLOT_BYTES, Verbs,
    VerbsFault, Work,
};
use crate::ids::BLOCK_SIZE;
use crate::interconnect::header::HEADER_BYTES;
use crate::reactor::split_mix;
use crate::reactor::sync::Notify;

/// Work on its way.
struct Flight {
    id: u64,
    signalled: bool,
    what: Payload,
}

enum Payload {
    Write {
        from: *const u8,
        to: u64,
        key: u32,
    },
    /// A write whose sender is gone: what it had read.
    Late {
        bytes: Vec<u8>,
        to: u64,
        key: u32,
    },
    /// A read, with the words that it has already.
    Read {
        to: *mut u8,
        from: u64,
        key: u32,
        words: Vec<Option<u64>>,
    },
    Message {
        bytes: Vec<u8>,
        immediate: u32,
    },
}

impl Payload {
    fn bytes(&self) -> usize {
        match self {
            Payload::Write { .. } => BLOCK_SIZE,
            Payload::Read { words, .. } => words.len() * 8,
            Payload::Late { bytes, .. } | Payload::Message { bytes, .. } => bytes.len(),
        }
    }
}

struct End {
    device: usize,
    other: Option<Pair>,
    /// Destroyed, or in error: nothing arrives.
    dead: bool,
    destroyed: bool,
    wire: VecDeque<Flight>,
}

struct Memory {
    start: u64,
    bytes: u64,
    key: u32,
    access: Access,
}

#[derive(Default)]
struct Device {
    address: Option<SocketAddr>,
    events: VecDeque<Event>,
    memory: Vec<Memory>,
    slots: Vec<Vec<u8>>,
    free: VecDeque<u32>,
    /// Nothing arrives here.
    held: bool,
    staged: Vec<Vec<u8>>,
    woken: Rc<Notify>,
}

/// See the module.
pub struct SoftNetwork {
    devices: RefCell<Vec<Device>>,
    ends: RefCell<BTreeMap<Pair, End>>,
    asked: RefCell<HashMap<Incoming, Pair>>,
    next: Cell<u64>,
    random: Cell<u64>,
    held: Cell<bool>,
    unreachable: Cell<bool>,
    memlock: Cell<Option<u64>>,
    packet_max: Cell<Option<usize>>,
    greetings: RefCell<Vec<[u8; GREETING_BYTES]>>,
    not_ready: Cell<u64>,
    writes: Cell<u64>,
    torn: Cell<u64>,
    told: Cell<u64>,
    arms: Cell<u64>,
    slow_reads: Cell<bool>,
}

/// A shard's end of a [`SoftNetwork`].
pub struct SoftVerbs {
    network: Rc<SoftNetwork>,
    device: usize,
    receive_slots: u32,
    send_slots: u32,
}

impl SoftNetwork {
    /// A network whose delays follow the seed.
    #[must_use]
    pub fn new(seed: u64) -> Rc<SoftNetwork> {
        Rc::new(SoftNetwork {
            devices: RefCell::default(),
            ends: RefCell::default(),
            asked: RefCell::default(),
            next: Cell::new(1),
            random: Cell::new(seed),
            held: Cell::new(false),
            unreachable: Cell::new(false),
            memlock: Cell::new(None),
            packet_max: Cell::new(None),
            greetings: RefCell::default(),
            not_ready: Cell::new(0),
            writes: Cell::new(0),
            torn: Cell::new(0),
            told: Cell::new(0),
            arms: Cell::new(0),
            slow_reads: Cell::new(false),
        })
    }

    /// A device with this address.
    #[must_use]
    pub fn device(self: &Rc<Self>, address: SocketAddr, receive_slots: u32, send_slots: u32) -> Rc<SoftVerbs> {
        let mut devices = self.devices.borrow_mut();
        // A device of an earlier life at this address is gone.
        devices.iter_mut().filter(|device| device.address == Some(address)).for_each(|device| device.address = None);
        devices.push(Device {
            address: Some(address),
            slots: (0..receive_slots).map(|_| vec![0; SLOT_BYTES]).collect(),
            staged: (0..send_slots).map(|_| Vec::new()).collect(),
            ..Device::default()
        });
        Rc::new(SoftVerbs { network: self.clone(), device: devices.len() - 1, receive_slots, send_slots })
    }

    /// While held nothing arrives; what is posted waits.
    pub fn hold(&self, held: bool) {
        self.held.set(held);
        self.wake_all();
    }

    /// As [`hold`](Self::hold), of what is on its way to one device.
    pub fn hold_device(&self, address: SocketAddr, held: bool) {
        let mut devices = self.devices.borrow_mut();
        devices.iter_mut().filter(|device| device.address == Some(address)).for_each(|device| device.held = held);
        drop(devices);
        self.wake_all();
    }

    /// From now on a pair fails that carries more bytes at a time.
    pub fn limit_packets(&self, bytes: Option<usize>) {
        self.packet_max.set(bytes);
    }

    /// What came with each request to connect.
    #[must_use]
    pub fn greetings(&self) -> Vec<[u8; GREETING_BYTES]> {
        self.greetings.borrow().clone()
    }

    /// While unreachable no connection is made.
    pub fn set_unreachable(&self, unreachable: bool) {
        self.unreachable.set(unreachable);
    }

    /// From now on no more than so many bytes can be registered.
    pub fn limit_memory(&self, bytes: Option<u64>) {
        self.memlock.set(bytes);
    }

    /// Pairs that are connected.
    #[must_use]
    pub fn pairs(&self) -> Vec<Pair> {
        self.ends.borrow().iter().filter(|(_, end)| !end.dead && end.other.is_some()).map(|(pair, _)| *pair).collect()
    }

    /// One end breaks. The other finds out when it sends, or when this one is destroyed.
    pub fn fail(&self, pair: Pair) {
        self.fail_end(pair, "the test broke it");
    }

    /// Messages that found no receive slot, or no room in the send queue.
    #[must_use]
    pub fn not_ready(&self) -> u64 {
        self.not_ready.get()
    }

    /// Writes of words that were done.
    #[must_use]
    pub fn told(&self) -> u64 {
        self.told.get()
    }

    /// How often somebody was about to sleep.
    #[must_use]
    pub fn arms(&self) -> u64 {
        self.arms.get()
    }

    /// Writes of blocks that were done.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes.get()
    }

    /// Reads that took their words at two moments.
    #[must_use]
    pub fn torn(&self) -> u64 {
        self.torn.get()
    }

    /// From now on half a read may wait until the devices have something else to do.
    pub fn slow_reads(&self) {
        self.slow_reads.set(true);
    }

    fn fail_end(&self, pair: Pair, why: &str) {
        let device = {
            let mut ends = self.ends.borrow_mut();
            let Some(end) = ends.get_mut(&pair).filter(|end| !end.dead) else { return };
            end.dead = true;
            end.device
        };
        self.report(device, Event::Failed { pair, why: why.into() });
    }

    fn report(&self, device: usize, event: Event) {
        let mut devices = self.devices.borrow_mut();
        devices[device].events.push_back(event);
        devices[device].woken.notify_all();
    }

    fn wake_all(&self) {
        self.devices.borrow().iter().for_each(|device| device.woken.notify_all());
    }

    fn name(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    fn random(&self) -> u64 {
        let mut state = self.random.get();
        let value = split_mix(&mut state);
        self.random.set(state);
        value
    }

    /// Lets some of what is on its way to a device arrive.
    fn deliver_to(&self, device: usize) {
        if self.held.get() || self.devices.borrow()[device].held {
            return;
        }
        let to_here = |end: &End, ends: &BTreeMap<Pair, End>| {
            end.other.and_then(|other| ends.get(&other)).is_some_and(|other| other.device == device)
        };
        let sources: Vec<(Pair, usize)> = {
            let ends = self.ends.borrow();
            ends.iter().filter(|(_, end)| to_here(end, &ends)).map(|(pair, end)| (*pair, end.wire.len())).collect()
        };
        let mut left = false;
        for (pair, waiting) in sources.into_iter().filter(|(_, waiting)| *waiting > 0) {
            let count = self.random() as usize % (waiting + 1);
            let done = (0..count).take_while(|_| self.deliver(pair)).count();
            left |= done < waiting;
        }
        if left {
            self.devices.borrow()[device].woken.notify_all();
        }
    }

    /// Lets the next work of a pair arrive. False when it has to wait.
    fn deliver(&self, pair: Pair) -> bool {
        let (flight, other, source, source_dead) = {
            let mut ends = self.ends.borrow_mut();
            let Some(end) = ends.get_mut(&pair) else { return false };
            let Some(flight) = end.wire.pop_front() else { return false };
            (flight, end.other.expect("it was connected"), end.device, end.dead)
        };
        let target = {
            let ends = self.ends.borrow();
            ends.get(&other).filter(|end| !end.dead).map(|end| end.device)
        };
        let Some(target) = target else {
            self.fail_end(pair, "retry count exceeded");
            return true;
        };
        let Flight { id, signalled, mut what } = flight;
        if self.packet_max.get().is_some_and(|most| what.bytes() > most) {
            self.fail_end(pair, "retry count exceeded");
            return true;
        }
        let arrived = match &mut what {
            Payload::Write { from, to, key } => {
                // SAFETY: whoever posted it keeps the block until the work is known to be done.
                let bytes = unsafe { std::slice::from_raw_parts(*from, BLOCK_SIZE) }.to_vec();
                self.write(target, *to, *key, &bytes)
            }
            Payload::Late { bytes, to, key } => self.write(target, *to, *key, bytes),
            Payload::Read { to, from, key, words } => match self.read_words(target, *from, *key, words) {
                Some(true) => {
                    let bytes: Vec<u8> = words.iter().flat_map(|word| word.expect("all are there").to_ne_bytes()).collect();
                    // SAFETY: whoever posted it keeps the landing until the work is done or the pair destroyed, and then it is gone
                    // from the wire.
                    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), *to, bytes.len()) };
                    true
                }
                Some(false) => {
                    let mut ends = self.ends.borrow_mut();
                    ends.get_mut(&pair).expect("looked at above").wire.push_front(Flight { id, signalled, what });
                    return false;
                }
                None => false,
            },
            Payload::Message { bytes, immediate } => {
                let mut devices = self.devices.borrow_mut();
                let device = &mut devices[target];
                let Some(slot) = device.free.pop_front() else {
                    drop(devices);
                    self.not_ready.set(self.not_ready.get() + 1);
                    let mut ends = self.ends.borrow_mut();
                    ends.get_mut(&pair).expect("looked at above").wire.push_front(Flight { id, signalled, what });
                    return false;
                };
                device.slots[slot as usize][..bytes.len()].copy_from_slice(bytes);
                let bytes = bytes.len() as u32;
                device.events.push_back(Event::Received { pair: other, slot, bytes, immediate: *immediate });
                device.woken.notify_all();
                true
            }
        };
        if !arrived {
            self.fail_end(other, "remote access error");
            self.fail_end(pair, "remote access error");
        } else if signalled && !source_dead {
            self.report(source, Event::Sent { pair, id });
        }
        true
    }

    /// Reads some of the words that are not there yet, or all of them. Whether they are all there then; `None` where nobody may read.
    fn read_words(&self, target: usize, from: u64, key: u32, words: &mut [Option<u64>]) -> Option<bool> {
        let begins = words.iter().all(Option::is_none);
        if !self.may(target, from, words.len() as u64 * 8, key, Access::Read) {
            return None;
        }
        let waits = self.slow_reads.get() && !begins && !self.random().is_multiple_of(4);
        let now = if begins { self.random() } else { u64::MAX * u64::from(!waits) };
        for (i, word) in words.iter_mut().enumerate().filter(|(i, word)| word.is_none() && now >> i & 1 == 1) {
            // SAFETY: the memory was registered, so it stays mapped, and its owner writes it by whole words.
            *word = Some(unsafe { std::ptr::read_volatile((from as *const u64).add(i)) });
        }
        let done = words.iter().all(Option::is_some);
        self.torn.set(self.torn.get() + u64::from(!done));
        Some(done)
    }

    fn may(&self, target: usize, start: u64, bytes: u64, key: u32, access: Access) -> bool {
        let inside = |memory: &Memory| {
            let allowed = memory.access == access || memory.access == Access::ReadAndWrite;
            memory.key == key && allowed && start >= memory.start && start + bytes <= memory.start + memory.bytes
        };
        self.devices.borrow()[target].memory.iter().any(inside)
    }

    fn write(&self, target: usize, to: u64, key: u32, bytes: &[u8]) -> bool {
        if !self.may(target, to, bytes.len() as u64, key, Access::Write) {
            return false;
        }
        let counter = if bytes.len() == BLOCK_SIZE { &self.writes } else { &self.told };
        counter.set(counter.get() + 1);
        // SAFETY: the memory was registered, so it stays mapped, and its owner lets a device write into it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        true
    }

    fn new_end(&self, device: usize, other: Option<Pair>) -> Pair {
        let pair = Pair(self.name());
        self.ends.borrow_mut().insert(pair, End { device, other, dead: false, destroyed: false, wire: VecDeque::new() });
        pair
    }
}

impl Verbs for SoftVerbs {
    fn name(&self) -> String {
        "memory".into()
    }

    fn receive_slots(&self) -> u32 {
        self.receive_slots
    }

    fn send_slots(&self) -> u32 {
        self.send_slots
    }

    fn stop_listening(&self) {
        self.network.devices.borrow_mut()[self.device].address = None;
    }

    fn connect(&self, to: SocketAddr, greeting: &[u8; GREETING_BYTES]) -> Result<Pair, VerbsFault> {
        let network = &self.network;
        network.greetings.borrow_mut().push(*greeting);
        let pair = network.new_end(self.device, None);
        let target = network.devices.borrow().iter().position(|device| device.address == Some(to));
        match target.filter(|_| !network.unreachable.get()) {
            Some(target) => {
                let incoming = Incoming(network.name());
                network.asked.borrow_mut().insert(incoming, pair);
                network.report(target, Event::Asked { incoming, greeting: *greeting });
            }
            None => network.fail_end(pair, "unreachable"),
        }
        Ok(pair)
    }

    fn accept(&self, incoming: Incoming) -> Result<Pair, VerbsFault> {
        let network = &self.network;
        let asking = network.asked.borrow_mut().remove(&incoming).expect("answered once");
        let pair = network.new_end(self.device, Some(asking));
        let there = {
            let mut ends = network.ends.borrow_mut();
            ends.get_mut(&asking).filter(|end| !end.dead).map(|end| {
                end.other = Some(pair);
                end.device
            })
        };
        match there {
            Some(device) => {
                network.report(device, Event::Connected { pair: asking });
                network.report(self.device, Event::Connected { pair });
            }
            None => network.fail_end(pair, "the other side has given up"),
        }
        Ok(pair)
    }

    fn refuse(&self, incoming: Incoming) {
        let asking = self.network.asked.borrow_mut().remove(&incoming).expect("answered once");
        self.network.fail_end(asking, "refused");
    }

    fn destroy(&self, pair: Pair) {
        let other = {
            let mut ends = self.network.ends.borrow_mut();
            let end = ends.get_mut(&pair).filter(|end| !end.destroyed).expect("a pair is destroyed once");
            (end.dead, end.destroyed) = (true, true);
            // What is on the wire may still arrive, but the memory that it came from, or was to come to, is its owner's again.
            end.wire.retain(|flight| !matches!(flight.what, Payload::Read { .. }));
            for flight in &mut end.wire {
                if let Payload::Write { from, to, key } = flight.what {
                    // SAFETY: until now the owner keeps the block.
                    let bytes = unsafe { std::slice::from_raw_parts(from, BLOCK_SIZE) }.to_vec();
                    flight.what = Payload::Late { bytes, to, key };
                }
            }
            end.other.filter(|_| end.wire.is_empty())
        };
        if let Some(other) = other {
            // A disconnection that is heard of. With work under way, it is as if that was lost.
            self.network.fail_end(other, "disconnected");
        }
    }

    unsafe fn register(&self, start: *mut u8, bytes: usize, access: Access) -> Result<MemoryKeys, VerbsFault> {
        if let Some(limit) = self.network.memlock.get()
            && bytes as u64 > limit
        {
            return Err(VerbsFault::Memlock { bytes: bytes as u64, locked: 0, limit });
        }
        let key = self.network.name() as u32;
        let memory = Memory { start: start.addr() as u64, bytes: bytes as u64, key, access };
        self.network.devices.borrow_mut()[self.device].memory.push(memory);
        Ok(MemoryKeys { local: key, remote: key })
    }

    fn stage(&self, slot: u32, parts: &[&[u8]]) {
        self.network.devices.borrow_mut()[self.device].staged[slot as usize] = parts.concat();
    }

    fn send(&self, pair: Pair, work: &[Work]) -> Result<(), VerbsFault> {
        let other = {
            let mut ends = self.network.ends.borrow_mut();
            let end = ends.get_mut(&pair).expect("posted on a pair that exists");
            if end.dead {
                return Err(VerbsFault::System { call: "post_send", source: io::ErrorKind::BrokenPipe.into() });
            }
            for &Work { id, signalled, action } in work {
                let what = match action {
                    Action::Write { from, to, .. } => Payload::Write { from, to: to.address, key: to.key },
                    Action::WriteWord { value, to } => {
                        Payload::Late { bytes: value.to_ne_bytes().to_vec(), to: to.address, key: to.key }
                    }
                    Action::Read { to, from, bytes, .. } => {
                        Payload::Read { to, from: from.address, key: from.key, words: vec![None; bytes as usize / 8] }
                    }
                    Action::Inline { header, immediate } => Payload::Message { bytes: header.to_vec(), immediate },
                    Action::Staged { slot, bytes, immediate } => {
                        let bytes = self.network.devices.borrow()[self.device].staged[slot as usize][..bytes as usize].to_vec();
                        Payload::Message { bytes, immediate }
                    }
                };
                end.wire.push_back(Flight { id, signalled, what });
            }
            if end.wire.len() > SEND_QUEUE_DEPTH {
                self.network.not_ready.set(self.network.not_ready.get() + 1);
            }
            end.other
        };
        let target = other.and_then(|other| self.network.ends.borrow().get(&other).map(|end| end.device));
        if let Some(target) = target {
            self.network.devices.borrow()[target].woken.notify_all();
        }
        Ok(())
    }

    fn receive(&self, slots: &[u32]) -> Result<(), VerbsFault> {
        self.network.devices.borrow_mut()[self.device].free.extend(slots);
        Ok(())
    }

    fn read(&self, slot: u32, bytes: u32, look: &mut dyn FnMut(&[u8])) {
        assert!(bytes as usize >= HEADER_BYTES || bytes > 0, "an empty message");
        let packet = self.network.devices.borrow()[self.device].slots[slot as usize][..bytes as usize].to_vec();
        look(&packet);
    }

    fn poll(&self, events: &mut Vec<Event>) {
        self.network.deliver_to(self.device);
        events.extend(self.network.devices.borrow_mut()[self.device].events.drain(..));
    }

    fn arm(&self) -> Result<(), VerbsFault> {
        self.network.arms.set(self.network.arms.get() + 1);
        Ok(())
    }

    fn wait(&self) -> LocalFuture<()> {
        let woken = self.network.devices.borrow()[self.device].woken.clone();
        let busy = {
            let devices = self.network.devices.borrow();
            let ends = self.network.ends.borrow();
            let on_its_way = ends.values().any(|end| {
                let target = end.other.and_then(|other| ends.get(&other)).map(|other| other.device);
                let half =
                    |flight: &Flight| matches!(&flight.what, Payload::Read { words, .. } if words.iter().any(Option::is_some));
                let waits = self.network.slow_reads.get() && end.wire.front().is_some_and(half);
                target == Some(self.device) && !end.wire.is_empty() && !waits
            });
            let held = self.network.held.get() || devices[self.device].held;
            !devices[self.device].events.is_empty() || (on_its_way && !held)
        };
        if busy {
            return Box::pin(std::future::ready(()));
        }
        let notified = woken.notified();
        Box::pin(notified)
    }
}
