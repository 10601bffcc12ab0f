//! A node's side of the lock service: the locks that the node holds at their masters, and its own users of them.
//!
//! A state machine without I/O, owned by one shard. Per resource the node holds ONE lock at the master, in a mode that
//! covers what its users need, and keeps it when they are done until the master says that somebody else wants it: so the
//! usual lock of a table by a transaction costs no message. Users of one node queue among themselves first, in order of
//! arrival, conversions before new ones; whoever passes that queue waits, if the node's lock doesn't cover him, for a
//! request to the master. At most one request per resource is under way.
//!
//! A resource may be *open*: then users come in, in modes that the open one covers, without being named here (see
//! [`gate`](super::gate)). It counts as one user in that mode. Before somebody in its way is served it is closed, and those
//! inside become users by name.
//!
//! A value that a user has written is given to the master with a lower mode, never with the lock's end: the node keeps the
//! lock in NL, and with it the value, until the master says that it has it. What was on its way to a master that was lost
//! is then still known here. (Other messages may get lost without harm; see [`reconfigure`].)
//!
//! Fairness: once the master has said that somebody wants the lock, no new user gets in on the strength of the old one.
//! Bounds: [`CACHED_MAX`] locks kept without users; users are bounded by transactions.

pub mod reconfigure;

use std::collections::{BTreeMap, VecDeque};

use super::core::{Input, LockKey, Output, Refusal, ValueChange};
use super::rules::{Rule, Rules};
use super::types::{LockMode, LockOwner, Resource, SessionId, VALUE_BYTES, ValueBlock};
use crate::ids::NodeId;

/// Most resources whose lock a node keeps although nobody uses it.
pub const CACHED_MAX: usize = 100_000;

/// A user's wait, by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WaitId(pub u64);

/// Why a user doesn't get a lock.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Failure {
    /// It did not want to wait.
    WouldBlock,
    /// The master has too many locks.
    TooMany,
}

/// What follows from an event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Tell the resource's master.
    ToMaster(Resource, Input),
    /// Users of this node are in the way of somebody elsewhere who wants this mode.
    InTheWay(Resource, LockMode),
    /// Users that are not known here must be: answer with [`LocalCore::closed`].
    Close(Resource),
    /// A user's wait is over.
    Ended(WaitId, Result<(), Failure>),
}

/// Whom a waiting user waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WaitsFor {
    /// Users of this node.
    Users(Vec<LockOwner>),
    /// Whoever is in the way of this node's request at the master.
    Master(Resource, LockKey),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct User {
    owner: LockOwner,
    /// What it may rely on.
    held: LockMode,
    /// What it has or waits for the node's lock to cover.
    wanted: LockMode,
    wait: Option<(WaitId, bool)>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Queued {
    owner: LockOwner,
    mode: LockMode,
    wait: WaitId,
    conversion: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Pending {
    up: bool,
    no_wait: bool,
    canceled: bool,
    /// Canceled in order to give up what the node has; then it does so, whatever it hears meanwhile. Taking it back at
    /// every change of mind of the master's could go on for ever.
    gives_up: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Entry {
    /// The master knows a lock of ours.
    known: bool,
    /// Its mode.
    mode: LockMode,
    pending: Option<Pending>,
    /// The mode that the master said somebody wants.
    give_up: Option<LockMode>,
    told_busy: bool,
    /// Lower the lock to what is used, now.
    lower: bool,
    /// As the master has it, or will have it.
    value: ValueBlock,
    /// What a user has written since, to be given to the master with the lock's next lower mode.
    written: Option<[u8; VALUE_BYTES]>,
    /// Users come in by themselves in modes that this one covers; Null: they do not.
    open: LockMode,
    closing: bool,
    users: Vec<User>,
    queue: VecDeque<Queued>,
}

/// The node's side of the locks of one shard.
#[derive(Clone, Debug)]
pub struct LocalCore {
    node: NodeId,
    resources: BTreeMap<Resource, Entry>,
    /// The node is between two epochs, and says nothing.
    silent: bool,
    pub(super) rules: Rules,
}

impl Entry {
    fn needed(&self) -> LockMode {
        self.users.iter().fold(self.open, |mode, user| mode.join(user.held))
    }

    fn fits(&self, owner: LockOwner, mode: LockMode) -> bool {
        self.open.compatible(mode) && self.users.iter().all(|user| user.owner == owner || user.wanted.compatible(mode))
    }

    /// Whether a user may rely on the node's lock as it is now.
    fn covers(&self, user: &User) -> bool {
        let welcome = match self.give_up {
            None => true,
            Some(wanted) => user.held != LockMode::Null || user.wanted.compatible(wanted),
        };
        // A weaker mode is under way to the master: what we have now is what we will have then.
        let mode = self.mode;
        welcome && self.known && mode.covers(user.wanted)
    }

    fn is_idle(&self) -> bool {
        self.users.is_empty() && self.queue.is_empty() && self.pending.is_none() && self.open == LockMode::Null
    }

    /// Whether whoever is inside must be known by name now.
    fn must_close(&self) -> bool {
        let in_the_way = |wanted: LockMode| !self.open.compatible(wanted);
        let lost = !self.known || !self.mode.covers(self.open);
        self.open != LockMode::Null && (lost || self.give_up.is_some_and(in_the_way))
    }

    fn value_change(&mut self) -> ValueChange {
        let Some(bytes) = self.written.take() else { return ValueChange::Keep };
        self.value = self.value.written(bytes);
        ValueChange::Write(bytes)
    }
}

impl LocalCore {
    /// The node holds nothing.
    #[must_use]
    pub fn new(node: NodeId) -> LocalCore {
        LocalCore { node, resources: BTreeMap::new(), silent: false, rules: Rules::default() }
    }

    fn key(&self) -> LockKey {
        // One lock per resource and node: its name needs no number of its own.
        LockKey { node: self.node, id: 0 }
    }

    /// A user wants a lock in `mode`, or, when it has one already, one that covers both. Its wait ends with
    /// [`Effect::Ended`], at the latest when [`LocalCore::cancel`] ends it. A user waits for one thing at a time.
    pub fn lock(
        &mut self,
        resource: Resource,
        owner: LockOwner,
        mode: LockMode,
        wait: WaitId,
        no_wait: bool,
        out: &mut Vec<Effect>,
    ) {
        assert!(mode != LockMode::Null, "{owner} asks for no lock on {resource}");
        assert!(!self.is_open_against(resource, mode), "{resource} is closed before {owner} asks for {mode}");
        let entry = self.resources.entry(resource).or_default();
        let at = entry.users.iter().position(|user| user.owner == owner);
        let mode = match at {
            Some(at) => {
                assert!(entry.users[at].wait.is_none(), "{owner} waits for {resource} already");
                entry.users[at].held.join(mode)
            }
            None => mode,
        };
        let first = entry.queue.iter().all(|queued| at.is_some() && !queued.conversion);
        if first && entry.fits(owner, mode) {
            admit(entry, owner, mode, wait, no_wait);
        } else if no_wait {
            out.push(Effect::Ended(wait, Err(Failure::WouldBlock)));
        } else {
            let conversion = at.is_some();
            let place =
                if conversion { entry.queue.iter().take_while(|queued| queued.conversion).count() } else { entry.queue.len() };
            entry.queue.insert(place, Queued { owner, mode, wait, conversion });
        }
        self.advance(resource, out);
    }

    /// A user gives up all that it has on the resource.
    pub fn unlock(&mut self, resource: Resource, owner: LockOwner, out: &mut Vec<Effect>) {
        let Some(entry) = self.resources.get_mut(&resource) else { return };
        entry.users.retain(|user| user.owner != owner);
        entry.queue.retain(|queued| queued.owner != owner);
        self.advance(resource, out);
    }

    /// A user goes on with a weaker mode than it has.
    pub fn lower(&mut self, resource: Resource, owner: LockOwner, mode: LockMode, out: &mut Vec<Effect>) {
        let Some(entry) = self.resources.get_mut(&resource) else { return };
        if let Some(user) = entry.users.iter_mut().find(|user| user.owner == owner && user.wait.is_none()) {
            assert!(user.held.covers(mode) && mode != LockMode::Null, "{owner} lowers {resource} from {} to {mode}", user.held);
            (user.held, user.wanted) = (mode, mode);
        }
        self.advance(resource, out);
    }

    /// A user waits no longer; it keeps what it had before.
    pub fn cancel(&mut self, resource: Resource, wait: WaitId, out: &mut Vec<Effect>) {
        let Some(entry) = self.resources.get_mut(&resource) else { return };
        entry.queue.retain(|queued| queued.wait != wait);
        for user in &mut entry.users {
            if user.wait.is_some_and(|(id, _)| id == wait) {
                user.wait = None;
                user.wanted = user.held;
            }
        }
        entry.users.retain(|user| user.wait.is_some() || user.held != LockMode::Null);
        self.advance(resource, out);
    }

    /// The master answers or asks.
    pub fn on_master(&mut self, output: Output, out: &mut Vec<Effect>) {
        let (Output::Granted { resource, .. } | Output::Refused { resource, .. } | Output::Blocking { resource, .. }) = output;
        let Some(entry) = self.resources.get_mut(&resource) else { return };
        match output {
            Output::Granted { mode, value, .. } => {
                entry.known = true;
                entry.mode = mode;
                entry.value = value;
                entry.pending = None;
                // What was said about the former mode is over; the master says it again where it still holds.
                entry.give_up = None;
                entry.told_busy = false;
            }
            Output::Refused { reason, .. } => {
                let gives_up = entry.pending.take().is_some_and(|pending| pending.gives_up);
                match reason {
                    Refusal::Canceled => entry.lower = gives_up,
                    Refusal::WouldBlock => fail(entry, Failure::WouldBlock, true, out),
                    Refusal::Full => fail(entry, Failure::TooMany, false, out),
                    Refusal::Unknown => panic!("{resource}: this node has {}, and its master does not know it", entry.mode),
                }
            }
            Output::Blocking { wanted, .. } if entry.known => {
                entry.give_up = (!entry.mode.compatible(wanted)).then_some(wanted);
                entry.told_busy = false;
            }
            // It is about a lock that we have given up meanwhile.
            Output::Blocking { .. } => {}
        }
        self.advance(resource, out);
    }

    /// Lets users in by themselves in modes that `mode` covers, if nobody on this node or elsewhere wants what does not go
    /// with that, as far as is known here. `false`: not now.
    #[must_use]
    pub fn open(&mut self, resource: Resource, mode: LockMode) -> bool {
        let Some(entry) = self.resources.get_mut(&resource) else { return false };
        let quiet = entry.queue.is_empty() && entry.pending.is_none() && entry.give_up.is_none() && !entry.closing;
        let welcome = entry.users.iter().all(|user| user.wanted.compatible(mode));
        let may = quiet && welcome && entry.known && entry.mode.covers(mode);
        if may {
            entry.open = entry.open.join(mode);
        }
        may
    }

    /// The mode in which users come in by themselves; Null: they do not.
    #[must_use]
    pub fn is_open(&self, resource: Resource) -> LockMode {
        self.resources.get(&resource).map_or(LockMode::Null, |entry| entry.open)
    }

    /// Whether the resource must be closed (see [`LocalCore::closed`]) before somebody here asks for `mode`.
    #[must_use]
    pub fn is_open_against(&self, resource: Resource, mode: LockMode) -> bool {
        !self.is_open(resource).compatible(mode)
    }

    /// Nobody comes in by himself any more. Those who are inside are users from now on.
    pub fn closed(&mut self, resource: Resource, inside: Vec<(SessionId, LockMode)>, out: &mut Vec<Effect>) {
        let Some(entry) = self.resources.get_mut(&resource) else {
            assert!(inside.is_empty(), "{resource} was open and is not known: {inside:?}");
            return;
        };
        for (session, mode) in inside {
            assert!(entry.open.covers(mode), "{session} came in with {mode}, {resource} was open in {}", entry.open);
            let owner = LockOwner::Session(session);
            assert!(entry.users.iter().all(|user| user.owner != owner), "{session} has {resource} twice");
            entry.users.push(User { owner, held: mode, wanted: mode, wait: None });
        }
        (entry.open, entry.closing) = (LockMode::Null, false);
        self.advance(resource, out);
    }

    /// What `from` has, `to` has from now on, beside what it has already. `inside`: what `from` has by itself, of an open
    /// resource. Whether it had something.
    pub fn adopt(&mut self, resource: Resource, from: LockOwner, inside: Option<LockMode>, to: LockOwner) -> bool {
        let Some(entry) = self.resources.get_mut(&resource) else { return false };
        let known = entry.users.iter().position(|user| user.owner == from).map(|at| entry.users.remove(at));
        let Some(mode) = known.map(|user| user.held).into_iter().chain(inside).reduce(LockMode::join) else { return false };
        match entry.users.iter_mut().find(|user| user.owner == to) {
            Some(user) => {
                assert!(user.wait.is_none(), "{to} waits for {resource} and asks for it again");
                user.held = user.held.join(mode);
                user.wanted = user.held;
            }
            None => entry.users.push(User { owner: to, held: mode, wanted: mode, wait: None }),
        }
        true
    }

    /// The value of a resource on which `owner` has a lock.
    #[must_use]
    pub fn value(&self, resource: Resource, owner: LockOwner) -> Option<ValueBlock> {
        let entry = self.resources.get(&resource)?;
        let holds = entry.users.iter().any(|user| user.owner == owner && user.held != LockMode::Null);
        holds.then(|| entry.written.map_or(entry.value, |bytes| entry.value.written(bytes)))
    }

    /// Writes the value; false when `owner` has no mode that may. Others see it when they are granted a lock after this
    /// node's has been lowered.
    pub fn set_value(&mut self, resource: Resource, owner: LockOwner, bytes: [u8; VALUE_BYTES]) -> bool {
        let Some(entry) = self.resources.get_mut(&resource) else { return false };
        let may = entry.users.iter().any(|user| user.owner == owner && user.held.writes_value());
        if may {
            entry.written = Some(bytes);
        }
        may
    }

    /// What `owner` may rely on.
    #[must_use]
    pub fn held(&self, resource: Resource, owner: LockOwner) -> LockMode {
        let user = self.resources.get(&resource).and_then(|entry| entry.users.iter().find(|user| user.owner == owner));
        user.map_or(LockMode::Null, |user| user.held)
    }

    /// The mode that the node has at the master, and whether the master knows of one.
    #[must_use]
    pub fn cached(&self, resource: Resource) -> Option<LockMode> {
        self.resources.get(&resource).filter(|entry| entry.known).map(|entry| entry.mode)
    }

    /// Whom a waiting user waits for; `None` when it doesn't wait.
    #[must_use]
    pub fn waits_for(&self, resource: Resource, wait: WaitId) -> Option<WaitsFor> {
        let entry = self.resources.get(&resource)?;
        if let Some(at) = entry.queue.iter().position(|queued| queued.wait == wait) {
            let queued = &entry.queue[at];
            let users = entry.users.iter().filter(|user| user.owner != queued.owner && !user.wanted.compatible(queued.mode));
            let ahead = entry.queue.iter().take(at).map(|queued| queued.owner);
            return Some(WaitsFor::Users(users.map(|user| user.owner).chain(ahead).collect()));
        }
        let waiting = entry.users.iter().find(|user| user.wait.is_some_and(|(id, _)| id == wait))?;
        if entry.pending.is_some() {
            return Some(WaitsFor::Master(resource, self.key()));
        }
        let wanted = entry.give_up.unwrap_or_default();
        let users = entry.users.iter().filter(|user| user.owner != waiting.owner && !user.held.compatible(wanted));
        Some(WaitsFor::Users(users.map(|user| user.owner).collect()))
    }

    /// The users that keep this node from letting somebody else have `wanted` (`holds`), and those whose request stands
    /// before the other's (`ahead`).
    #[must_use]
    pub fn users_in_the_way(&self, resource: Resource, wanted: LockMode, holds: bool, ahead: bool) -> Vec<LockOwner> {
        let Some(entry) = self.resources.get(&resource) else { return Vec::new() };
        let in_the_way =
            |user: &&User| (holds && !user.held.compatible(wanted)) || (ahead && user.wait.is_some() && entry.pending.is_some());
        entry.users.iter().filter(in_the_way).map(|user| user.owner).collect()
    }

    /// Resources with a lock of this node, used or kept.
    #[must_use]
    pub fn resources(&self) -> usize {
        self.resources.len()
    }

    /// Does what can be done now: lets users in, lowers, raises or cancels the node's lock.
    fn advance(&mut self, resource: Resource, out: &mut Vec<Effect>) {
        let key = self.key();
        let crowded = self.resources.len() > CACHED_MAX;
        let Some(entry) = self.resources.get_mut(&resource) else { return };
        loop {
            if entry.must_close() {
                if !std::mem::replace(&mut entry.closing, true) {
                    out.push(Effect::Close(resource));
                }
                return;
            }
            while let Some(first) = entry.queue.front() {
                if !entry.fits(first.owner, first.mode) {
                    break;
                }
                let first = entry.queue.pop_front().expect("there is a first one");
                admit(entry, first.owner, first.mode, first.wait, false);
            }
            for i in 0..entry.users.len() {
                if entry.users[i].wait.is_some() && entry.covers(&entry.users[i]) {
                    let user = &mut entry.users[i];
                    user.held = user.wanted;
                    let (wait, _) = user.wait.take().expect("it waits");
                    out.push(Effect::Ended(wait, Ok(())));
                }
            }
            if self.silent {
                break;
            }
            let can_give = entry.give_up.is_some_and(|wanted| entry.needed().compatible(wanted));
            let is_blocked = entry.give_up.is_some_and(|wanted| !entry.mode.compatible(wanted));
            if is_blocked && !can_give && !entry.told_busy {
                entry.told_busy = true;
                let wanted = entry.give_up.unwrap_or_default();
                out.push(Effect::ToMaster(resource, Input::Busy { resource, key, wanted }));
                out.push(Effect::InTheWay(resource, wanted));
            }
            // Whoever doesn't want to wait leaves before it comes to waiting for users of this node, or with others for a
            // request that waits.
            if is_blocked && !can_give || entry.pending.is_some_and(|pending| pending.up && !pending.no_wait) {
                let ended = out.len();
                fail(entry, Failure::WouldBlock, true, out);
                if out.len() > ended {
                    continue;
                }
            }
            if let Some(pending) = &mut entry.pending {
                let wanted = entry.users.iter().any(|user| user.wait.is_some());
                if pending.up && !pending.canceled && (!wanted || is_blocked && can_give) {
                    pending.canceled = true;
                    pending.gives_up = is_blocked && can_give;
                    out.push(Effect::ToMaster(resource, Input::Cancel { resource, key }));
                }
                return;
            }
            let unused = crowded && entry.is_idle() && entry.known;
            let lower = std::mem::take(&mut entry.lower) && entry.known && entry.needed() != entry.mode;
            // Kept for its value only, and the master has that. Who waits asks anew: from NL he would overtake others.
            let kept = entry.known && entry.mode == LockMode::Null;
            if is_blocked && can_give || unused || lower || kept {
                let mode = entry.needed();
                let value = entry.value_change();
                (entry.give_up, entry.told_busy, entry.mode) = (None, false, mode);
                let taken = value == ValueChange::Keep || !self.rules.hold(Rule::ValueUntilTaken);
                if mode == LockMode::Null && taken {
                    entry.known = false;
                    out.push(Effect::ToMaster(resource, Input::Unlock { resource, key, value }));
                } else {
                    entry.pending = Some(Pending { up: false, no_wait: false, canceled: false, gives_up: false });
                    out.push(Effect::ToMaster(resource, Input::Convert { resource, key, mode, no_wait: false, value }));
                }
                continue;
            }
            if !is_blocked {
                entry.give_up = None;
            }
            // Old users may ask for more although somebody else waits: he waits for them anyhow. New ones wait with him.
            let asking = entry.users.iter().filter(|user| user.wait.is_some() && (!is_blocked || user.held != LockMode::Null));
            let (mut mode, mut asked, mut no_wait) = (entry.mode.join(entry.needed()), false, false);
            for user in asking {
                mode = mode.join(user.wanted);
                asked = true;
                // One who doesn't want to wait is enough: when it comes to waiting he leaves, and the others ask again.
                no_wait |= user.wait.is_some_and(|(_, no_wait)| no_wait);
            }
            if asked {
                entry.pending = Some(Pending { up: true, no_wait, canceled: false, gives_up: false });
                let input = if entry.known {
                    Input::Convert { resource, key, mode, no_wait, value: ValueChange::Keep }
                } else {
                    Input::Request { resource, key, mode, no_wait }
                };
                out.push(Effect::ToMaster(resource, input));
            }
            break;
        }
        if entry.is_idle() && !entry.known {
            self.resources.remove(&resource);
        }
    }

    /// Panics when anything is as it must never be: for tests and for the simulator.
    pub fn invariants(&self) {
        for (resource, entry) in &self.resources {
            for (i, user) in entry.users.iter().enumerate() {
                for other in &entry.users[i + 1..] {
                    assert!(user.wanted.compatible(other.wanted), "{resource}: {user:?} beside {other:?}");
                    assert_ne!(user.owner, other.owner);
                }
                assert!(user.wanted.compatible(entry.open), "{resource}: {user:?} beside whoever is in by {}", entry.open);
                assert!(user.held == user.wanted || user.wait.is_some(), "{resource}: {user:?} waits for nothing");
                assert!(!entry.known || entry.mode.covers(user.held), "{resource}: {} does not cover {user:?}", entry.mode);
                let moving = entry.pending.is_some() || entry.give_up.is_some();
                assert!(user.wait.is_none() || moving || self.silent, "{resource}: {user:?} waits and nothing is under way");
            }
            if let Some(first) = entry.queue.front() {
                assert!(!entry.fits(first.owner, first.mode), "{resource}: {first:?} could go on");
            }
            if entry.open != LockMode::Null && !entry.closing {
                assert!(entry.known && entry.mode.covers(entry.open), "{resource} is open without a lock");
                assert!(!entry.must_close(), "{resource} is open and wanted elsewhere");
                let in_the_way = entry.queue.iter().find(|queued| !entry.open.compatible(queued.mode));
                assert!(in_the_way.is_none(), "{resource} is open in {} and {in_the_way:?} waits", entry.open);
            }
            assert!(entry.known || !entry.is_idle(), "{resource} is remembered for nothing");
        }
    }
}

fn admit(entry: &mut Entry, owner: LockOwner, mode: LockMode, wait: WaitId, no_wait: bool) {
    match entry.users.iter_mut().find(|user| user.owner == owner) {
        Some(user) => {
            user.wanted = user.held.join(mode);
            user.wait = Some((wait, no_wait));
        }
        None => entry.users.push(User { owner, held: LockMode::Null, wanted: mode, wait: Some((wait, no_wait)) }),
    }
}

/// Ends the waits of users for the node's lock: all, or only of those who don't want to wait.
fn fail(entry: &mut Entry, failure: Failure, no_wait_only: bool, out: &mut Vec<Effect>) {
    for user in &mut entry.users {
        if let Some((wait, no_wait)) = user.wait
            && (no_wait || !no_wait_only)
        {
            user.wait = None;
            user.wanted = user.held;
            out.push(Effect::Ended(wait, Err(failure)));
        }
    }
    entry.users.retain(|user| user.wait.is_some() || user.held != LockMode::Null);
}
