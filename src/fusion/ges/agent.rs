//! The lock service of one shard: performs what the state machines decide, and lets tasks wait.
//!
//! Owned by the shard's thread. Talks to the same shard of other nodes over [`Service::Ges`]; what is mastered here is
//! served without a message. Bounds: those of the state machines; one wait per user.

mod opened;
mod views;
mod waiting;

pub use opened::FreshVersion;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use super::core::{CoreStats, GesCore, Input, Output};
use super::deadlock::{Probe, Waits};
use super::gate::{Gate, GateStats};
use super::local::{Effect, Failure, LocalCore, WaitId};
use super::types::{LockMode, LockOwner, Resource, ResourceClass, SessionId, VALUE_BYTES, ValueBlock};
use super::wire::{self, Wire};
use crate::histogram::Histogram;
use crate::ids::{Epoch, NodeId, Scn, TxnId};
use crate::interconnect::{Body, Handler, Header, Interconnect, Service};
use crate::reactor::Reactor;
use crate::reactor::sync::{Notify, OneshotSender, Semaphore};

/// How long to wait for a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WaitPolicy {
    /// Until it is granted, or the wait turns out to be part of a deadlock.
    Wait,
    /// Not for anybody who uses it. (Messages, and nodes that only kept the lock, are waited for.)
    NoWait,
    /// At most so long.
    Timeout(Duration),
}

/// Why a lock was not granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockError {
    /// Somebody uses it, and the caller didn't want to wait.
    WouldBlock,
    /// The wait was part of a circle, and this transaction is its youngest.
    Deadlock,
    /// The time given is over.
    Timeout,
    /// The master has as many locks as it can have.
    TooManyLocks,
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockError::WouldBlock => write!(f, "somebody else has the lock"),
            LockError::Deadlock => write!(f, "the wait was part of a deadlock, and this transaction is the youngest in it"),
            LockError::Timeout => write!(f, "the lock was not granted within the time allowed"),
            LockError::TooManyLocks => write!(f, "the lock's master has no room for more locks: end some transactions"),
        }
    }
}

impl std::error::Error for LockError {}

/// What the lock service asks of the transactions of this node and shard.
pub trait Transactions {
    /// Whether a transaction whose home is here is still active (neither committed nor rolled back).
    fn is_active(&self, txn: TxnId) -> bool;
    /// When a transaction of this node began; the latest is the youngest, which dies in a deadlock.
    fn began(&self, txn: TxnId) -> Scn;
}

/// What the lock service asks of the sessions that have transactions in this shard.
pub trait Sessions {
    /// The session of a transaction, while it has one.
    fn session_of(&self, txn: TxnId) -> Option<SessionId>;
    /// The id of the session's transaction in this shard, if it has one.
    fn transaction_of(&self, session: SessionId) -> Option<TxnId>;
}

/// Most resources that a shard has open at its node's [`Gate`]; beyond it those opened first are closed.
pub const OPEN_MAX: usize = 10_000;

/// A lock that was granted: the receipt for [`Ges::unlock`]. Dropping it does nothing; a transaction gives up all its locks
/// at its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockHandle {
    /// What is locked.
    pub resource: Resource,
    /// For whom.
    pub owner: LockOwner,
}

/// What the lock service counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GesStats {
    /// Locks granted without waiting for anything.
    pub granted_at_once: u64,
    /// Locks granted after a wait.
    pub granted_later: u64,
    /// Waits ended as victims of a deadlock.
    pub deadlocks: u64,
    /// Waits that ran out of time.
    pub timeouts: u64,
    /// Probes started or sent on.
    pub probes: u64,
    /// Messages that no lock service of this version sends, or for somebody else.
    pub misplaced: u64,
    /// Resources with a lock of this node, used or kept.
    pub resources_held: u64,
    /// Locks and requests mastered here.
    pub locks_mastered: u64,
    /// The master's own counters.
    pub master: CoreStats,
    /// Locks that clients' threads took by themselves, over all shards of the node.
    pub gate: GateStats,
}

type Outcome = Result<(), LockError>;
type TellInTheWay = Rc<dyn Fn(Resource, LockMode)>;
type ForwardProbe = Rc<dyn Fn(Probe)>;

struct Wait {
    ended: OneshotSender<Outcome>,
    owner: LockOwner,
    resource: Resource,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum EndWaiter {
    Here(WaitId),
    There(NodeId, u64),
}

struct Inner {
    reactor: Reactor,
    net: Interconnect,
    node: NodeId,
    members: RefCell<Vec<NodeId>>,
    deadlock_timeout: Duration,
    transactions: Rc<dyn Transactions>,
    core: RefCell<GesCore>,
    local: RefCell<LocalCore>,
    waits: RefCell<BTreeMap<WaitId, Wait>>,
    waiting_txns: RefCell<BTreeMap<TxnId, WaitId>>,
    end_waiters: RefCell<BTreeMap<TxnId, Vec<EndWaiter>>>,
    held: RefCell<BTreeMap<LockOwner, Vec<Resource>>>,
    next_wait: Cell<u64>,
    stats: Cell<GesStats>,
    wait_latency: RefCell<Histogram>,
    in_the_way: RefCell<Option<TellInTheWay>>,
    other_shards: RefCell<Option<ForwardProbe>>,
    gate: RefCell<Option<Arc<Gate>>>,
    /// What this shard has opened, in that order; some of it may be closed again.
    opened: RefCell<VecDeque<Resource>>,
    sessions: RefCell<Option<Weak<dyn Sessions>>>,
    /// One task at a time asks for the catalog's version.
    asks_version: Semaphore,
    /// The last one entered; zero before the first change of the members.
    epoch: Cell<Epoch>,
    rebuilt: Notify,
}

/// The lock service of one shard. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct Ges(Rc<Inner>);

enum Work {
    Effect(Effect),
    Output(Output),
}

impl Ges {
    /// Makes the service and registers it with the interconnect, which must not have started. The members are this node
    /// and the interconnect's peers.
    #[must_use]
    pub fn new(net: &Interconnect, transactions: Rc<dyn Transactions>, deadlock_timeout: Duration) -> Ges {
        let ges = Ges::unregistered(net, transactions, deadlock_timeout);
        net.register(Service::Ges, Rc::new(ges.clone()));
        ges
    }

    /// As [`Ges::new`], for a caller who passes the messages of [`Service::Ges`] on himself.
    #[must_use]
    pub fn unregistered(net: &Interconnect, transactions: Rc<dyn Transactions>, deadlock_timeout: Duration) -> Ges {
        let node = net.node();
        let mut members: Vec<NodeId> = net.peers().chain([node]).collect();
        members.sort_unstable();
        Ges::with_cores(net, transactions, deadlock_timeout, Epoch(0), members, GesCore::new(), LocalCore::new(node))
    }

    fn with_cores(
        net: &Interconnect,
        transactions: Rc<dyn Transactions>,
        deadlock_timeout: Duration,
        epoch: Epoch,
        members: Vec<NodeId>,
        core: GesCore,
        local: LocalCore,
    ) -> Ges {
        Ges(Rc::new(Inner {
            reactor: net.reactor().clone(),
            net: net.clone(),
            node: net.node(),
            members: RefCell::new(members),
            deadlock_timeout,
            transactions,
            core: RefCell::new(core),
            local: RefCell::new(local),
            waits: RefCell::default(),
            waiting_txns: RefCell::default(),
            end_waiters: RefCell::default(),
            held: RefCell::default(),
            next_wait: Cell::new(1),
            stats: Cell::default(),
            wait_latency: RefCell::default(),
            in_the_way: RefCell::default(),
            other_shards: RefCell::default(),
            gate: RefCell::default(),
            opened: RefCell::default(),
            sessions: RefCell::default(),
            asks_version: Semaphore::new(1),
            epoch: Cell::new(epoch),
            rebuilt: Notify::new(),
        }))
    }

    /// Calls `tell` whenever users of this node are in the way of somebody on another node: an owner that is the node itself can
    /// then finish early. It must not call back into the service.
    pub fn on_in_the_way(&self, tell: TellInTheWay) {
        *self.0.in_the_way.borrow_mut() = Some(tell);
    }

    /// Calls `forward` with each probe whose transaction doesn't wait in this shard, to be given to
    /// [`Ges::probe_from_shard`] of the node's other shards. Needed with more than one shard only.
    pub fn on_probe_for_other_shards(&self, forward: ForwardProbe) {
        *self.0.other_shards.borrow_mut() = Some(forward);
    }

    /// Locks a resource for `owner` in `mode`, or in the weakest mode that covers this and what the owner has already. A
    /// transaction's own resource is not locked but awaited: see [`Ges::wait_for_end`]. When the future is dropped, the
    /// wait is over and the owner has what it had before.
    ///
    /// # Errors
    /// See [`LockError`]; the owner then has what it had before.
    pub async fn lock(
        &self,
        resource: Resource,
        owner: LockOwner,
        mode: LockMode,
        policy: WaitPolicy,
    ) -> Result<LockHandle, LockError> {
        let handle = LockHandle { resource, owner };
        if resource.class == ResourceClass::TRANSACTION {
            let holder = TxnId::from_raw(resource.id1).expect("the name of a transaction's resource is its id");
            return self.wait_for_end(owner, holder, policy).await.map(|()| handle);
        }
        // The common case: this very owner or its node has it already.
        if self.0.local.borrow().held(resource, owner).covers(mode) {
            return Ok(handle);
        }
        if self.0.local.borrow().is_open_against(resource, mode) {
            self.close(resource);
        }
        let (wait, ended) = self.begin_wait(owner, resource);
        let mut effects = Vec::new();
        self.0.local.borrow_mut().lock(resource, owner, mode, wait, policy == WaitPolicy::NoWait, &mut effects);
        self.run(effects);
        self.wait(wait, ended, policy).await?;
        if resource.class == ResourceClass::TABLE && LockMode::ConcurrentWrite.covers(mode) {
            self.open(resource);
        }
        Ok(handle)
    }

    /// Changes the mode of a lock: a stronger one may have to be waited for, a weaker one not.
    ///
    /// # Errors
    /// See [`LockError`]; the mode stays.
    pub async fn convert(&self, handle: LockHandle, mode: LockMode, policy: WaitPolicy) -> Result<(), LockError> {
        if self.0.local.borrow().held(handle.resource, handle.owner).covers(mode) {
            let mut effects = Vec::new();
            self.0.local.borrow_mut().lower(handle.resource, handle.owner, mode, &mut effects);
            self.run(effects);
            return Ok(());
        }
        self.lock(handle.resource, handle.owner, mode, policy).await.map(|_| ())
    }

    /// Gives a lock up.
    pub fn unlock(&self, handle: LockHandle) {
        if let Some(resources) = self.0.held.borrow_mut().get_mut(&handle.owner) {
            resources.retain(|resource| *resource != handle.resource);
        }
        let mut effects = Vec::new();
        self.0.local.borrow_mut().unlock(handle.resource, handle.owner, &mut effects);
        self.run(effects);
    }

    /// Gives up all locks of an owner.
    pub fn unlock_all(&self, owner: LockOwner) {
        let resources = self.0.held.borrow_mut().remove(&owner).unwrap_or_default();
        let mut effects = Vec::new();
        for resource in resources {
            self.0.local.borrow_mut().unlock(resource, owner, &mut effects);
        }
        self.run(effects);
    }

    /// The mode that an owner has.
    #[must_use]
    pub fn held(&self, resource: Resource, owner: LockOwner) -> LockMode {
        self.0.local.borrow().held(resource, owner)
    }

    /// The value that a resource had when this node was last granted its lock. `None` without a lock.
    #[must_use]
    pub fn value(&self, handle: LockHandle) -> Option<ValueBlock> {
        self.0.local.borrow().value(handle.resource, handle.owner)
    }

    /// Writes the value; false without a lock in PW or EX.
    #[must_use]
    pub fn set_value(&self, handle: LockHandle, bytes: [u8; VALUE_BYTES]) -> bool {
        self.0.local.borrow_mut().set_value(handle.resource, handle.owner, bytes)
    }

    /// Resolves when `holder` has committed or rolled back, or its node is no member any more (after a change of the members,
    /// never by a lost connection alone): then its end is for the caller to find out. Its home shard must be this shard (of
    /// whichever node).
    ///
    /// # Errors
    /// See [`LockError`].
    pub async fn wait_for_end(&self, waiter: LockOwner, holder: TxnId, policy: WaitPolicy) -> Result<(), LockError> {
        assert_eq!(holder.shard(), self.0.net.shard(), "{holder} is awaited in the shard that is its home");
        let resource = Resource::transaction(holder);
        let here = holder.node() == self.0.node;
        if here && !self.0.transactions.is_active(holder) || self.is_lost(holder.node()) {
            return Ok(());
        }
        if policy == WaitPolicy::NoWait {
            return Err(LockError::WouldBlock);
        }
        let (wait, ended) = self.begin_wait(waiter, resource);
        if here {
            self.0.end_waiters.borrow_mut().entry(holder).or_default().push(EndWaiter::Here(wait));
        } else if !self.is_silent() {
            self.send(holder.node(), &Wire::AwaitEnd(holder, wait.0));
        }
        self.wait(wait, ended, policy).await
    }

    /// A transaction of this shard has ended: whoever awaits it goes on, and its locks are given up.
    pub fn transaction_ended(&self, txn: TxnId) {
        self.look_again(txn);
        self.unlock_all(LockOwner::Transaction(txn));
    }

    /// A transaction of this shard no longer has some of what it is awaited for (it has rolled back to a savepoint): whoever
    /// awaits it goes on, to look again. Its locks stay.
    pub fn look_again(&self, txn: TxnId) {
        let waiters = self.0.end_waiters.borrow_mut().remove(&txn).unwrap_or_default();
        for waiter in waiters {
            match waiter {
                EndWaiter::Here(wait) => self.end(wait, Ok(())),
                EndWaiter::There(node, id) => {
                    self.send(node, &Wire::Ended(txn, id));
                }
            }
        }
    }

    /// Takes up a probe that another shard of this node could not follow.
    pub fn probe_from_shard(&self, probe: Probe) {
        self.follow(probe, false);
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> GesStats {
        let core = self.0.core.borrow();
        GesStats {
            resources_held: self.0.local.borrow().resources() as u64,
            locks_mastered: core.locks() as u64,
            master: core.stats(),
            gate: self.0.gate.borrow().as_ref().map(|gate| gate.stats()).unwrap_or_default(),
            ..self.0.stats.get()
        }
    }

    /// How long waits for locks took that were granted or refused in the end. Waits for rows are counted by `txn`.
    #[must_use]
    pub fn wait_latency(&self) -> Histogram {
        self.0.wait_latency.borrow().clone()
    }

    /// Panics when anything is as it must never be: for tests and for the simulator.
    pub fn invariants(&self) {
        self.0.core.borrow().invariants();
        self.0.local.borrow().invariants();
    }

    /// Performs effects, and what follows from them, until nothing follows.
    fn run(&self, effects: Vec<Effect>) {
        self.work_off(effects.into_iter().map(Work::Effect).collect());
    }

    fn work_off(&self, mut work: VecDeque<Work>) {
        while let Some(next) = work.pop_front() {
            match next {
                Work::Effect(Effect::ToMaster(resource, input)) => {
                    let master = self.0.master(&resource);
                    if master == self.0.node {
                        let mut outputs = Vec::new();
                        self.0.core.borrow_mut().on(input, &mut outputs);
                        work.extend(outputs.into_iter().map(Work::Output));
                    } else {
                        self.send(master, &Wire::ToMaster(input));
                    }
                }
                Work::Effect(Effect::InTheWay(resource, wanted)) => {
                    let tell = self.0.in_the_way.borrow().clone();
                    if let Some(tell) = tell {
                        tell(resource, wanted);
                    }
                }
                Work::Effect(Effect::Close(resource)) => {
                    let mut effects = Vec::new();
                    self.take_over(resource, &mut effects);
                    work.extend(effects.into_iter().map(Work::Effect));
                }
                Work::Effect(Effect::Ended(wait, outcome)) => {
                    self.end(
                        wait,
                        outcome.map_err(|failure| match failure {
                            Failure::WouldBlock => LockError::WouldBlock,
                            Failure::TooMany => LockError::TooManyLocks,
                        }),
                    );
                }
                Work::Output(output) => {
                    let (Output::Granted { key, .. } | Output::Refused { key, .. } | Output::Blocking { key, .. }) = output;
                    if key.node == self.0.node {
                        let mut effects = Vec::new();
                        self.0.local.borrow_mut().on_master(output, &mut effects);
                        work.extend(effects.into_iter().map(Work::Effect));
                    } else {
                        self.send(key.node, &Wire::FromMaster(output));
                    }
                }
            }
        }
    }

    fn send(&self, to: NodeId, wire: &Wire) {
        let (message, body) = wire::encode(wire);
        // What does not reach a peer is as lost as what was on its way to it: the members change, and all is said anew.
        let _ = self.0.net.send(to, message, body);
    }

    fn count(&self, pick: impl FnOnce(&mut GesStats) -> &mut u64) {
        let mut stats = self.0.stats.get();
        *pick(&mut stats) += 1;
        self.0.stats.set(stats);
    }
}

/// A lost connection alone changes nothing here: see [`Ges::enter`].
impl Handler for Ges {
    fn on_message(&self, from: NodeId, header: &Header, body: Body) {
        let wire = wire::decode(from, self.0.node, header, &body).filter(|_| self.0.members.borrow().contains(&from));
        let Some(wire) = wire else {
            self.count(|stats| &mut stats.misplaced);
            return;
        };
        match wire {
            Wire::ToMaster(input) => {
                let (Input::Request { resource, .. }
                | Input::Convert { resource, .. }
                | Input::Unlock { resource, .. }
                | Input::Cancel { resource, .. }
                | Input::Busy { resource, .. }) = input;
                if self.0.master(&resource) != self.0.node {
                    self.count(|stats| &mut stats.misplaced);
                    return;
                }
                self.run(vec![Effect::ToMaster(resource, input)]);
            }
            Wire::FromMaster(output) => {
                let mut effects = Vec::new();
                self.0.local.borrow_mut().on_master(output, &mut effects);
                self.run(effects);
            }
            Wire::Probe(probe) => self.follow(probe, true),
            Wire::Victim(txn, wait) => self.victim(txn, wait),
            Wire::AwaitEnd(txn, id) => {
                if txn.node() != self.0.node {
                    self.count(|stats| &mut stats.misplaced);
                } else if self.0.transactions.is_active(txn) {
                    self.0.end_waiters.borrow_mut().entry(txn).or_default().push(EndWaiter::There(from, id));
                } else {
                    self.send(from, &Wire::Ended(txn, id));
                }
            }
            Wire::ForgetEnd(txn, id) => self.forget_end_waiter(txn, EndWaiter::There(from, id)),
            Wire::Ended(_, id) => self.end(WaitId(id), Ok(())),
            Wire::Claims(claims) => {
                for claim in claims {
                    self.tell_master(|core, outputs| core.on_claim(from, claim, outputs));
                }
            }
            Wire::ClaimsEnd(end) => self.tell_master(|core, outputs| core.on_claims_end(from, end, outputs)),
        }
    }
}
