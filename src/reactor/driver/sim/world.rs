//! The world of a simulation: its clock, its events, its hosts, and who runs next.
//!
//! Lives in one thread. Its reactors hold it weakly, so dropping the [`SimWorld`] ends them all. Everything is ordered by
//! (time, sequence), and ties between reactors are broken by the seed.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use super::disk::Disk;
use super::faults::{Spoiling, Straying};
use super::network::{Connection, Listening, PORTS_FIRST, Segment};
use super::{ActorId, HostId, SimDriver, SimOptions};
use crate::reactor::driver::{Completion, Handle, Operation, Token, Wait};
use crate::reactor::slab::Slab;
use crate::reactor::{Class, Instant, Reactor, ReactorOptions, split_mix};

/// Virtual time that one turn of a reactor takes: busy tasks do not stop the clock.
const TURN_NS: u64 = 1_000;

/// A simulation that is left waiting gives up after this much virtual time.
const BLOCK_ON_MAX: Duration = Duration::from_secs(3600);

/// What a host has done to its disks and the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    /// Bytes read from disks.
    pub read_bytes: u64,
    /// Bytes written to disks.
    pub written_bytes: u64,
    /// Pieces sent to other hosts: what leaves in one turn of a reactor for one peer.
    pub sends: u64,
    /// Bytes of them.
    pub sent_bytes: u64,
}

/// A simulated world. Clones share it; the last one ends it.
#[derive(Clone)]
pub struct SimWorld(pub(super) Rc<World>);

/// Nothing will ever happen any more: every task waits for another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stuck {
    /// The world's seed, to repeat it.
    pub seed: u64,
    /// When it happened.
    pub at: Instant,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the simulation with seed {} is stuck at {:?}: no task can run and no event is due", self.seed, self.at)
    }
}

impl std::error::Error for Stuck {}

pub(super) struct World {
    pub(super) state: RefCell<State>,
    /// Those alive, in the order in which they were made.
    actors: RefCell<Vec<Actor>>,
    pub(super) now_ns: Rc<Cell<u64>>,
    pub(super) wall_base_ms: RefCell<BTreeMap<HostId, Rc<Cell<u64>>>>,
    /// Memory of [`SimWorld::step_within`].
    due: RefCell<Vec<ActorId>>,
    steps: Cell<u64>,
    seed: u64,
}

/// A reactor that lives.
struct Actor {
    id: ActorId,
    host: HostId,
    reactor: Reactor,
    busy_until_ns: u64,
}

impl Actor {
    /// When it wants its next turn.
    fn due_at(&self, state: &State, now: u64) -> Option<u64> {
        if state.paused.contains(&self.host) {
            return None;
        }
        let has_work = self.reactor.has_work() || !state.actors[self.id.0 as usize].completions.is_empty();
        let at = if has_work { now } else { self.reactor.next_deadline()?.0.max(now) };
        Some(at.max(self.busy_until_ns))
    }
}

/// What drivers reach.
pub(super) struct State {
    pub(super) options: SimOptions,
    pub(super) random: u64,
    pub(super) now_ns: Rc<Cell<u64>>,
    pub(super) sequence: u64,
    pub(super) events: BinaryHeap<Scheduled>,
    pub(super) actors: Vec<ActorState>,
    pub(super) operations: Slab<InFlight>,
    pub(super) operation_serial: u64,
    pub(super) disks: Vec<Disk>,
    pub(super) paths: BTreeMap<PathBuf, usize>,
    pub(super) descriptors: BTreeMap<u32, (ActorId, Descriptor)>,
    pub(super) descriptor_serial: u32,
    pub(super) listeners: BTreeMap<SocketAddr, Listening>,
    pub(super) connections: Slab<Connection>,
    pub(super) ports: u16,
    pub(super) parted: BTreeSet<(HostId, HostId)>,
    pub(super) powered_off_addresses: BTreeSet<(HostId, IpAddr)>,
    pub(super) paused: BTreeSet<HostId>,
    pub(super) disk_errors: BTreeMap<HostId, i32>,
    pub(super) disk_stalled_until_ns: BTreeMap<HostId, u64>,
    pub(super) spoiled_reads: BTreeMap<HostId, Spoiling>,
    pub(super) reads_spoiled: u64,
    pub(super) stray_writes: BTreeMap<HostId, Straying>,
    /// How often a host has ended: its present life.
    pub(super) lives: BTreeMap<HostId, u32>,
    pub(super) traffic: BTreeMap<HostId, Traffic>,
    pub(super) trace: u64,
    /// Operations of hosts that crashed: dropped outside of any borrow.
    pub(super) graveyard: Vec<Operation>,
}

pub(super) struct ActorState {
    pub(super) host: HostId,
    /// Which life of the host it belongs to.
    pub(super) life: u32,
    pub(super) alive: bool,
    /// The disks refuse its writes.
    pub(super) fenced: bool,
    pub(super) completions: Vec<Completion>,
}

pub(super) struct InFlight {
    pub(super) actor: ActorId,
    pub(super) token: Token,
    pub(super) serial: u64,
    pub(super) operation: Operation,
}

/// An operation that may be gone by now.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct OperationRef {
    pub(super) index: u32,
    pub(super) serial: u64,
}

#[derive(Clone, Copy)]
pub(super) enum Descriptor {
    File { disk: usize, direct: bool, write: bool },
    Listener(SocketAddr),
    Stream { connection: u32, side: usize },
}

pub(super) enum Event {
    /// A file operation takes effect.
    Disk { operation: OperationRef },
    /// A connection request reaches its target.
    Knock { operation: OperationRef, address: SocketAddr },
    /// Something sent arrives.
    Arrive { connection: u32, from: usize, segment: Segment },
    /// An operation ends.
    Finish { operation: OperationRef, result: Result<usize, i32>, opened: Option<(Handle, SocketAddr)> },
}

pub(super) struct Scheduled {
    pub(super) at_ns: u64,
    pub(super) sequence: u64,
    pub(super) event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    /// The earliest is the greatest, as a heap wants it.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at_ns, other.sequence).cmp(&(self.at_ns, self.sequence))
    }
}

impl State {
    pub(super) fn now(&self) -> u64 {
        self.now_ns.get()
    }

    pub(super) fn draw(&mut self, (least, most): (u64, u64)) -> u64 {
        let micros = least + split_mix(&mut self.random) % (most.saturating_sub(least) + 1);
        let slow = split_mix(&mut self.random) % 1000 < self.options.slow_per_mille;
        // Below the microsecond too, so that few things happen at once.
        micros * 1000 * if slow { self.options.slow_factor } else { 1 } + split_mix(&mut self.random) % 1000
    }

    pub(super) fn network_ns(&mut self) -> u64 {
        self.draw(self.options.network_us)
    }

    pub(super) fn schedule(&mut self, at_ns: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Scheduled { at_ns, sequence: self.sequence, event });
    }

    pub(super) fn note(&mut self, words: &[u64]) {
        for word in words {
            self.trace = (self.trace ^ word).wrapping_mul(0x0100_0000_01B3).rotate_left(23);
        }
    }

    pub(super) fn is_alive(&self, actor: ActorId) -> bool {
        self.actors[actor.0 as usize].alive
    }

    pub(super) fn host_of(&self, actor: ActorId) -> HostId {
        self.actors[actor.0 as usize].host
    }

    pub(super) fn life_of(&self, host: HostId) -> u32 {
        self.lives.get(&host).copied().unwrap_or(0)
    }

    pub(super) fn is_parted(&self, from: HostId, to: HostId) -> bool {
        self.parted.contains(&(from, to))
    }

    pub(super) fn add_descriptor(&mut self, actor: ActorId, descriptor: Descriptor) -> Handle {
        self.descriptor_serial += 1;
        self.descriptors.insert(self.descriptor_serial, (actor, descriptor));
        Handle { index: self.descriptor_serial, generation: 0 }
    }

    pub(super) fn descriptor(&self, handle: Handle) -> Descriptor {
        self.descriptors.get(&handle.index).unwrap_or_else(|| panic!("{handle:?} was closed before")).1
    }

    pub(super) fn close(&mut self, handle: Handle) {
        match self.descriptor(handle) {
            // Operations in flight on a file run to their end: they look the descriptor up when they take effect.
            Descriptor::File { .. } => {}
            Descriptor::Listener(address) => {
                self.descriptors.remove(&handle.index);
                self.close_listener(address);
            }
            Descriptor::Stream { connection, side } => {
                self.descriptors.remove(&handle.index);
                self.close_side(connection, side, Segment::End);
            }
        }
    }

    pub(super) fn shutdown_send(&mut self, stream: Handle) {
        let Descriptor::Stream { connection, side } = self.descriptor(stream) else { panic!("{stream:?} is no stream") };
        self.end_sending(connection, side);
    }

    pub(super) fn submit(&mut self, actor: ActorId, token: Token, operation: Operation) {
        self.operation_serial += 1;
        let serial = self.operation_serial;
        let index = self.operations.insert(InFlight { actor, token, serial, operation });
        let reference = OperationRef { index, serial };
        match &self.operations[index].operation {
            Operation::Connect { address } => {
                let address = *address;
                self.submit_connect(reference, address);
            }
            operation => match self.descriptor(operation.handle().expect("only connect has none")) {
                Descriptor::File { direct, write, .. } => self.submit_disk(reference, direct, write),
                Descriptor::Listener(address) => self.submit_accept(reference, address),
                Descriptor::Stream { connection, side } => self.submit_stream(reference, connection, side),
            },
        }
    }

    pub(super) fn operation(&self, reference: OperationRef) -> Option<&Operation> {
        let in_flight = self.operations.get(reference.index)?;
        (in_flight.serial == reference.serial).then_some(&in_flight.operation)
    }

    pub(super) fn actor_of(&self, reference: OperationRef) -> Option<ActorId> {
        let in_flight = self.operations.get(reference.index)?;
        (in_flight.serial == reference.serial).then_some(in_flight.actor)
    }

    /// Ends an operation; nothing happens when its host has crashed meanwhile.
    pub(super) fn finish(&mut self, reference: OperationRef, result: Result<usize, i32>, opened: Option<(Handle, SocketAddr)>) {
        if self.actor_of(reference).is_none() {
            return;
        }
        let InFlight { actor, token, operation, .. } = self.operations.remove(reference.index);
        let content = match (&operation, result) {
            (Operation::Read { buffer, .. }, Ok(count)) => crc32c::crc32c(&buffer.as_slice()[..count]),
            (Operation::Receive { buffer, done, .. }, Ok(count)) => crc32c::crc32c(&buffer.as_slice()[*done..*done + count]),
            (Operation::Write { buffer, .. }, Ok(_)) => crc32c::crc32c(buffer.as_slice()),
            _ => 0,
        };
        let outcome = result.map_or_else(|number| u64::MAX - number as u64, |count| count as u64);
        self.note(&[self.now(), u64::from(actor.0), u64::from(token.0), outcome, u64::from(content)]);
        let completion = Completion { token, result, buffers: operation.into_buffers(), opened };
        self.actors[actor.0 as usize].completions.push(completion);
    }

    pub(super) fn take_completions(&mut self, actor: ActorId, completions: &mut Vec<Completion>) {
        completions.append(&mut self.actors[actor.0 as usize].completions);
    }

    fn run_event(&mut self, event: Event) {
        match event {
            Event::Disk { operation } => self.run_disk(operation),
            Event::Knock { operation, address } => self.knock(operation, address),
            Event::Arrive { connection, from, segment } => self.arrive(connection, from, segment),
            Event::Finish { operation, result, opened } => self.finish(operation, result, opened),
        }
    }
}

impl SimWorld {
    /// An empty world with the usual times.
    #[must_use]
    pub fn new(seed: u64) -> SimWorld {
        SimWorld::with_options(seed, SimOptions::default())
    }

    /// An empty world.
    #[must_use]
    pub fn with_options(seed: u64, options: SimOptions) -> SimWorld {
        let now_ns = Rc::new(Cell::new(0));
        let state = State {
            options,
            random: seed,
            now_ns: now_ns.clone(),
            sequence: 0,
            events: BinaryHeap::new(),
            actors: Vec::new(),
            operations: Slab::default(),
            operation_serial: 0,
            disks: Vec::new(),
            paths: BTreeMap::new(),
            descriptors: BTreeMap::new(),
            descriptor_serial: 0,
            listeners: BTreeMap::new(),
            connections: Slab::default(),
            ports: PORTS_FIRST,
            parted: BTreeSet::new(),
            powered_off_addresses: BTreeSet::new(),
            paused: BTreeSet::new(),
            disk_errors: BTreeMap::new(),
            disk_stalled_until_ns: BTreeMap::new(),
            spoiled_reads: BTreeMap::new(),
            reads_spoiled: 0,
            stray_writes: BTreeMap::new(),
            lives: BTreeMap::new(),
            traffic: BTreeMap::new(),
            trace: seed,
            graveyard: Vec::new(),
        };
        let (actors, wall_base_ms, due) = (RefCell::default(), RefCell::default(), RefCell::default());
        SimWorld(Rc::new(World { state: RefCell::new(state), actors, now_ns, wall_base_ms, due, steps: Cell::new(0), seed }))
    }

    /// A new reactor on a host: a shard of a process there. Start a host again after its crash by asking for new ones.
    #[must_use]
    pub fn reactor(&self, host: HostId) -> Reactor {
        let wall_base_ms = {
            let state = self.0.state.borrow();
            let mut bases = self.0.wall_base_ms.borrow_mut();
            bases.entry(host).or_insert_with(|| Rc::new(Cell::new(state.options.wall_ms))).clone()
        };
        let (id, driver) = {
            let mut state = self.0.state.borrow_mut();
            let life = state.life_of(host);
            state.actors.push(ActorState { host, life, alive: true, fenced: false, completions: Vec::new() });
            let actor = ActorId(state.actors.len() as u32 - 1);
            let driver = SimDriver {
                world: Rc::downgrade(&self.0),
                actor,
                now_ns: self.0.now_ns.clone(),
                wall_base_ms,
                seed: split_mix(&mut state.random),
            };
            (actor, driver)
        };
        let reactor = Reactor::with_driver(Box::new(driver), ReactorOptions::default());
        self.0.actors.borrow_mut().push(Actor { id, host, reactor: reactor.clone(), busy_until_ns: 0 });
        reactor
    }

    /// The moment on the virtual clock.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant(self.0.now_ns.get())
    }

    /// The virtual clock, to be asked by somebody who does not hold the world.
    pub fn clock(&self) -> impl Fn() -> Instant + 'static {
        let now_ns = self.0.now_ns.clone();
        move || Instant(now_ns.get())
    }

    /// The seed, to repeat this world.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// A hash over everything that has happened: equal for equal seeds and code.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.0.state.borrow().trace
    }

    /// Does the next thing. False when there is nothing left to do.
    pub fn step(&self) -> bool {
        self.step_within(Instant(u64::MAX - 1))
    }

    /// Does the next thing, if it happens at `limit` or before. False otherwise: the clock stands where it was then.
    pub fn step_within(&self, limit: Instant) -> bool {
        let now = self.0.now_ns.get();
        let mut at = u64::MAX;
        let mut event_first = false;
        // Whoever has the earliest turn; ties are drawn.
        let mut due = self.0.due.take();
        due.clear();
        {
            let state = self.0.state.borrow();
            if let Some(scheduled) = state.events.peek() {
                (at, event_first) = (scheduled.at_ns, true);
            }
            for actor in self.0.actors.borrow().iter() {
                let Some(time) = actor.due_at(&state, now) else { continue };
                match time.cmp(&at) {
                    Ordering::Less => {
                        (at, event_first) = (time, false);
                        due.clear();
                        due.push(actor.id);
                    }
                    Ordering::Equal => due.push(actor.id),
                    Ordering::Greater => {}
                }
            }
        }
        let happens = at <= limit.0;
        if happens {
            assert!(at >= now, "time runs forward");
            self.0.now_ns.set(at);
            self.0.steps.set(self.0.steps.get() + 1);
            if event_first {
                let mut state = self.0.state.borrow_mut();
                let scheduled = state.events.pop().expect("peeked above");
                state.run_event(scheduled.event);
            } else {
                self.turn(&due, at);
            }
        }
        self.0.due.replace(due);
        happens
    }

    /// One of these reactors has its turn.
    fn turn(&self, due: &[ActorId], at: u64) {
        let chosen = {
            let mut state = self.0.state.borrow_mut();
            let chosen = due[(split_mix(&mut state.random) % due.len() as u64) as usize];
            state.note(&[at, u64::from(chosen.0)]);
            chosen
        };
        let reactor = {
            let mut actors = self.0.actors.borrow_mut();
            let actor = actors.iter_mut().find(|actor| actor.id == chosen).expect("it was due just now");
            actor.busy_until_ns = at + TURN_NS;
            actor.reactor.clone()
        };
        let _entered = reactor.0.outbox.enter();
        reactor.drive(Wait::No);
        reactor.run_ready();
    }

    /// What a host has done so far, in all its lives.
    #[must_use]
    pub fn traffic(&self, host: HostId) -> Traffic {
        self.0.state.borrow().traffic.get(&host).copied().unwrap_or_default()
    }

    /// Things done so far: turns of reactors, and events.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.0.steps.get()
    }

    /// Runs until `done` says so.
    ///
    /// # Errors
    /// [`Stuck`] when nothing is left to do before.
    pub fn run_until(&self, mut done: impl FnMut() -> bool) -> Result<(), Stuck> {
        while !done() {
            if !self.step() {
                return Err(Stuck { seed: self.seed(), at: self.now() });
            }
        }
        Ok(())
    }

    /// Lets `duration` of virtual time pass.
    pub fn run_for(&self, duration: Duration) {
        let end = self.now() + duration;
        while self.step_within(end) {}
        self.rest_until(end);
    }

    /// Moves the clock to `moment`, up to which nothing is left to do.
    pub fn rest_until(&self, moment: Instant) {
        self.0.now_ns.set(self.0.now_ns.get().max(moment.0));
    }

    /// Runs a future on a reactor, and the world with it, to the future's end. Panics, naming the seed, when the world
    /// gets stuck, the host crashes, or an hour of virtual time goes by.
    pub fn block_on<T: 'static>(&self, reactor: &Reactor, future: impl Future<Output = T> + 'static) -> T {
        let output = Rc::new(Cell::new(None));
        let slot = output.clone();
        let task = reactor.spawn(Class::Normal, "block_on", async move { slot.set(Some(future.await)) });
        let end = self.now() + BLOCK_ON_MAX;
        let result = self.run_until(|| task.is_finished() || self.now() > end);
        if let Err(stuck) = result {
            panic!("{stuck}");
        }
        assert!(task.is_finished(), "seed {}: no end after {BLOCK_ON_MAX:?} of virtual time", self.seed());
        output.take().unwrap_or_else(|| panic!("seed {}: the host crashed under block_on", self.seed()))
    }

    /// The processes of a host are killed: peers see their connections reset; writes in flight are torn; unsynced writes
    /// are lost as [`SimOptions::crash_loses_unsynced`] says.
    pub fn crash(&self, host: HostId) {
        self.end_host(host, false);
        let mut state = self.0.state.borrow_mut();
        if state.options.crash_loses_unsynced {
            state.lose_unsynced(Some(host));
        } else {
            state.leave_unsynced(host);
        }
    }

    /// The machine loses its power: as [`crash`](Self::crash), but its peers hear nothing.
    pub fn power_off(&self, host: HostId) {
        self.end_host(host, true);
        self.0.state.borrow_mut().lose_unsynced(Some(host));
    }

    /// All hosts and disks lose their power at once: every unsynced write of anybody may be lost.
    pub fn power_loss(&self) {
        let hosts: BTreeSet<HostId> = self.0.actors.borrow().iter().map(|actor| actor.host).collect();
        self.power_loss_of(&hosts.into_iter().collect::<Vec<_>>());
    }

    /// These hosts and all disks lose their power at once: every unsynced write of anybody may be lost.
    pub fn power_loss_of(&self, hosts: &[HostId]) {
        hosts.iter().for_each(|host| self.end_host(*host, true));
        self.0.state.borrow_mut().lose_unsynced(None);
    }

    fn end_host(&self, host: HostId, silently: bool) {
        self.0.state.borrow_mut().bury(host, silently);
        let gone: Vec<Reactor> = {
            let mut actors = self.0.actors.borrow_mut();
            let (gone, left) = std::mem::take(&mut *actors).into_iter().partition(|actor| actor.host == host);
            *actors = left;
            let gone: Vec<Actor> = gone;
            gone.into_iter().map(|actor| actor.reactor).collect()
        };
        gone.iter().for_each(Reactor::shut_down);
        let operations = std::mem::take(&mut self.0.state.borrow_mut().graveyard);
        drop(operations);
        let mut state = self.0.state.borrow_mut();
        *state.lives.entry(host).or_default() += 1;
        // A host that comes back answers again.
        state.paused.remove(&host);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Tasks hold their reactors, and reactors their tasks: end them.
        let actors = std::mem::take(self.actors.get_mut());
        actors.iter().for_each(|actor| actor.reactor.shut_down());
    }
}
