//! The master's side of the lock service: which locks are granted on the resources mastered here, and who waits for what.
//!
//! A state machine without I/O, owned by one shard: inputs in, outputs out. It follows the VMS lock manager (and so the Linux DLM):
//! per resource a list of granted locks, a queue of conversions and a queue of new requests. Promises: granted modes are
//! compatible; conversions go before new requests; each queue is served in order of arrival, and nobody overtakes; whatever
//! can be granted is granted before [`GesCore::on`] returns. Holders in the way of whoever is served next are told so once, and
//! again when it is somebody else's turn. With a change of the members all of this is thrown away and [`rebuild`] from what
//! the members say that they hold.
//! Bounds: [`LOCKS_MAX`] locks and requests together; beyond it new requests are refused.

use std::collections::{BTreeMap, VecDeque};

use self::rebuild::{Rebuild, Word};
use super::rules::Rules;
use super::types::{LockMode, Resource, VALUE_BYTES, ValueBlock};
use crate::ids::NodeId;

pub mod rebuild;

/// Most locks (granted or requested) that one shard masters. What members claim after a change of theirs is taken all the
/// same.
pub const LOCKS_MAX: usize = 1_000_000;

/// A lock's name at its master: who holds or wants it, and the number that they gave it. One node has at most one lock
/// per number and resource.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LockKey {
    /// The node.
    pub node: NodeId,
    /// The node's number for it.
    pub id: u64,
}

/// What becomes of the value block when a lock is given up or lowered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum ValueChange {
    /// It stays.
    #[default]
    Keep,
    /// It is written; only where the mode held until now may write it.
    Write([u8; VALUE_BYTES]),
    /// The holder knows that it is wrong.
    Invalidate,
}

/// What happens to the master.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Input {
    /// Somebody wants a new lock.
    Request {
        /// On what.
        resource: Resource,
        /// Which.
        key: LockKey,
        /// In which mode.
        mode: LockMode,
        /// Rather not at all than wait for somebody who uses it.
        no_wait: bool,
    },
    /// A holder wants another mode, stronger or weaker. Until the answer it may rely on the weaker of the two, and between
    /// CW and PR, which are not comparable, on CR.
    Convert {
        /// Of what.
        resource: Resource,
        /// Which.
        key: LockKey,
        /// The mode wanted.
        mode: LockMode,
        /// Rather not at all than wait for somebody who uses it.
        no_wait: bool,
        /// With a weaker mode: the value.
        value: ValueChange,
    },
    /// A holder gives a lock up. A waiting conversion of it goes too.
    Unlock {
        /// Of what.
        resource: Resource,
        /// Which.
        key: LockKey,
        /// The value.
        value: ValueChange,
    },
    /// Somebody waits no longer: a new request is forgotten, a conversion keeps the mode that it had.
    Cancel {
        /// Of what.
        resource: Resource,
        /// Which.
        key: LockKey,
    },
    /// A holder that was told that it is in the way answers that it needs the lock for now.
    Busy {
        /// Of what.
        resource: Resource,
        /// Which.
        key: LockKey,
        /// The mode that it was told is wanted.
        wanted: LockMode,
    },
}

/// Why a request is refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Refusal {
    /// It did not want to wait.
    WouldBlock = 1,
    /// It was canceled.
    Canceled = 2,
    /// The master has [`LOCKS_MAX`] locks already.
    Full = 3,
    /// A conversion of a lock that the master doesn't know: one of the two is wrong.
    Unknown = 4,
}

/// What the master says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Output {
    /// The lock is held in this mode now.
    Granted {
        /// On what.
        resource: Resource,
        /// Which.
        key: LockKey,
        /// The mode.
        mode: LockMode,
        /// The value as it is now.
        value: ValueBlock,
    },
    /// A request or conversion came to nothing.
    Refused {
        /// On what.
        resource: Resource,
        /// Which.
        key: LockKey,
        /// Why.
        reason: Refusal,
    },
    /// Tells a holder that it is in the way of the one who is served next, who wants this mode; with Null, that it is in
    /// nobody's way any more. Only the latest counts, and a grant of a new mode takes all earlier ones back.
    Blocking {
        /// Of what.
        resource: Resource,
        /// Which.
        key: LockKey,
        /// What is wanted.
        wanted: LockMode,
    },
}

/// Somebody whom a waiting request waits for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Blocker {
    /// Which lock.
    pub key: LockKey,
    /// It holds the resource in a mode in the way.
    pub holds: bool,
    /// It stands before the request in a queue.
    pub ahead: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Lock {
    key: LockKey,
    mode: LockMode,
    /// The mode that it was last told it is in the way of since its mode changed; Null: of none.
    told: LockMode,
    /// It answered that it needs the lock.
    busy: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Waiting {
    key: LockKey,
    mode: LockMode,
    no_wait: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Entry {
    granted: Vec<Lock>,
    converting: VecDeque<Waiting>,
    waiting: VecDeque<Waiting>,
    value: ValueBlock,
}

/// What the master counts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct CoreStats {
    /// Requests and conversions granted at once.
    pub granted_at_once: u64,
    /// Requests and conversions granted after a wait.
    pub granted_later: u64,
    /// Requests and conversions refused, canceled ones included.
    pub refused: u64,
    /// Holders told that they are in the way.
    pub told: u64,
    /// Inputs about locks that the master doesn't know.
    pub stale: u64,
}

/// The lock master of one shard.
#[derive(Clone, Debug, Default)]
pub struct GesCore {
    /// Ordered, so that every run works a change of the members off in the same order.
    resources: BTreeMap<Resource, Entry>,
    locks: usize,
    stats: CoreStats,
    /// Inputs wait while the members claim what they hold.
    rebuild: Option<Box<Rebuild>>,
    /// What this master knew of values when it last served; for the masters of the next epoch.
    words: BTreeMap<Resource, Word>,
    /// What former masters knew of values of resources that nobody claimed, until somebody asks for them: whoever was
    /// granted the last lock may not have heard of it, and asks again.
    unclaimed: BTreeMap<Resource, ValueBlock>,
    /// All members have entered the present epoch.
    gone: bool,
    /// Masters have been lost: a value that nobody here has heard of may have been written.
    in_doubt: bool,
    pub(super) rules: Rules,
}

impl Entry {
    fn fits(&self, key: LockKey, mode: LockMode) -> bool {
        self.granted.iter().all(|lock| lock.key == key || lock.mode.compatible(mode))
    }

    fn is_empty(&self) -> bool {
        self.granted.is_empty() && self.converting.is_empty() && self.waiting.is_empty()
    }

    fn change_value(&mut self, held: LockMode, change: ValueChange) {
        match change {
            ValueChange::Keep => {}
            ValueChange::Write(bytes) if held.writes_value() => self.value = self.value.written(bytes),
            ValueChange::Invalidate if held.writes_value() => self.value = self.value.doubted(),
            // The holder has no right to it: its message stands, its value doesn't.
            ValueChange::Write(_) | ValueChange::Invalidate => {}
        }
    }
}

impl GesCore {
    /// Nothing is locked, and never was.
    #[must_use]
    pub fn new() -> GesCore {
        GesCore { gone: true, ..GesCore::default() }
    }

    /// Takes one input in and says what follows. While the members' claims are coming in, it waits.
    pub fn on(&mut self, input: Input, out: &mut Vec<Output>) {
        if let Some(rebuild) = &mut self.rebuild {
            rebuild.hold_back(input);
            return;
        }
        match input {
            Input::Request { resource, key, mode, no_wait } => self.request(resource, Waiting { key, mode, no_wait }, out),
            Input::Convert { resource, key, mode, no_wait, value } => {
                self.convert(resource, Waiting { key, mode, no_wait }, value, out);
            }
            Input::Unlock { resource, key, value } => self.unlock(resource, key, value, out),
            Input::Cancel { resource, key } => self.cancel(resource, key, out),
            Input::Busy { resource, key, wanted } => self.busy(resource, key, wanted, out),
        }
    }

    fn request(&mut self, resource: Resource, wanted: Waiting, out: &mut Vec<Output>) {
        let known = self.resources.get(&resource).is_some_and(|entry| {
            entry.granted.iter().any(|lock| lock.key == wanted.key) || entry.waiting.iter().any(|w| w.key == wanted.key)
        });
        if known {
            // A number is used once at a time; a second request under it is the sender's mistake, and changes nothing.
            self.stats.stale += 1;
            return;
        }
        if self.locks >= LOCKS_MAX {
            self.stats.refused += 1;
            out.push(Output::Refused { resource, key: wanted.key, reason: Refusal::Full });
            return;
        }
        self.locks += 1;
        let entry = self.resources.entry(resource).or_insert_with(|| Entry {
            value: self.unclaimed.remove(&resource).unwrap_or(ValueBlock { valid: !self.in_doubt, ..ValueBlock::default() }),
            ..Entry::default()
        });
        entry.waiting.push_back(wanted);
        let before = out.len();
        self.serve(resource, out);
        self.count_grants(&out[before..], true);
    }

    fn convert(&mut self, resource: Resource, wanted: Waiting, value: ValueChange, out: &mut Vec<Output>) {
        let key = wanted.key;
        let Some(entry) = self.resources.get_mut(&resource) else { return self.refuse_unknown(resource, key, out) };
        let Some(lock) = entry.granted.iter_mut().find(|lock| lock.key == key) else {
            return self.refuse_unknown(resource, key, out);
        };
        if entry.converting.iter().any(|waiting| waiting.key == key) {
            self.stats.stale += 1;
            return;
        }
        let held = lock.mode;
        let before = out.len();
        if held.covers(wanted.mode) {
            // Down (or to the same): nobody can be against it. The value is written before others may see it.
            (lock.mode, lock.told, lock.busy) = (wanted.mode, LockMode::Null, false);
            entry.change_value(held, value);
            out.push(Output::Granted { resource, key, mode: wanted.mode, value: entry.value });
        } else {
            entry.converting.push_back(wanted);
        }
        self.serve(resource, out);
        self.count_grants(&out[before..], true);
    }

    fn refuse_unknown(&mut self, resource: Resource, key: LockKey, out: &mut Vec<Output>) {
        self.stats.stale += 1;
        out.push(Output::Refused { resource, key, reason: Refusal::Unknown });
    }

    fn unlock(&mut self, resource: Resource, key: LockKey, value: ValueChange, out: &mut Vec<Output>) {
        let Some(entry) = self.resources.get_mut(&resource) else {
            self.stats.stale += 1;
            return;
        };
        let Some(at) = entry.granted.iter().position(|lock| lock.key == key) else {
            self.stats.stale += 1;
            return;
        };
        let lock = entry.granted.remove(at);
        entry.change_value(lock.mode, value);
        entry.converting.retain(|waiting| waiting.key != key);
        self.locks -= 1;
        let before = out.len();
        self.serve(resource, out);
        self.count_grants(&out[before..], false);
    }

    fn cancel(&mut self, resource: Resource, key: LockKey, out: &mut Vec<Output>) {
        let Some(entry) = self.resources.get_mut(&resource) else {
            self.stats.stale += 1;
            return;
        };
        let waiting = entry.converting.len() + entry.waiting.len();
        entry.converting.retain(|waiting| waiting.key != key);
        let conversions_gone = waiting - entry.converting.len() - entry.waiting.len();
        entry.waiting.retain(|waiting| waiting.key != key);
        let gone = waiting - entry.converting.len() - entry.waiting.len();
        if gone == 0 {
            // Granted meanwhile: the grant is on its way, and answers the cancel too.
            self.stats.stale += 1;
            return;
        }
        self.locks -= gone - conversions_gone;
        self.stats.refused += 1;
        out.push(Output::Refused { resource, key, reason: Refusal::Canceled });
        let before = out.len();
        self.serve(resource, out);
        self.count_grants(&out[before..], false);
    }

    fn busy(&mut self, resource: Resource, key: LockKey, wanted: LockMode, out: &mut Vec<Output>) {
        let lock = self.resources.get_mut(&resource).and_then(|entry| entry.granted.iter_mut().find(|lock| lock.key == key));
        match lock {
            // An answer to an older question says nothing about the present one.
            Some(lock) if lock.told == wanted && wanted != LockMode::Null => lock.busy = true,
            _ => {
                self.stats.stale += 1;
                return;
            }
        }
        let before = out.len();
        self.serve(resource, out);
        self.count_grants(&out[before..], false);
    }

    /// Grants what can be granted, then tells the holders in the way of who is first now.
    fn serve(&mut self, resource: Resource, out: &mut Vec<Output>) {
        let Some(entry) = self.resources.get_mut(&resource) else { return };
        loop {
            if let Some(first) = entry.converting.front() {
                if entry.fits(first.key, first.mode) {
                    let first = entry.converting.pop_front().expect("there is a first one");
                    let lock = entry.granted.iter_mut().find(|lock| lock.key == first.key).expect("only holders convert");
                    (lock.mode, lock.told, lock.busy) = (first.mode, LockMode::Null, false);
                    out.push(Output::Granted { resource, key: first.key, mode: first.mode, value: entry.value });
                    continue;
                }
            } else if let Some(first) = entry.waiting.front()
                && entry.fits(first.key, first.mode)
            {
                let first = entry.waiting.pop_front().expect("there is a first one");
                let lock = Lock { key: first.key, mode: first.mode, told: LockMode::Null, busy: false };
                entry.granted.push(lock);
                out.push(Output::Granted { resource, key: first.key, mode: first.mode, value: entry.value });
                continue;
            }
            // Nobody can be granted. Whoever didn't want to wait leaves, when waiting is what it would come to: behind
            // others, or for a holder that has said that it needs the lock.
            let Some((key, conversion)) = Self::unwilling(entry) else { break };
            if conversion {
                entry.converting.retain(|waiting| waiting.key != key);
            } else {
                entry.waiting.retain(|waiting| waiting.key != key);
                self.locks -= 1;
            }
            self.stats.refused += 1;
            out.push(Output::Refused { resource, key, reason: Refusal::WouldBlock });
        }
        let first = entry.converting.front().or(entry.waiting.front()).map(|first| (first.key, first.mode));
        for lock in &mut entry.granted {
            let wanted = match first {
                Some((key, mode)) if lock.key != key && !lock.mode.compatible(mode) => mode,
                _ => LockMode::Null,
            };
            if lock.told != wanted {
                (lock.told, lock.busy) = (wanted, false);
                self.stats.told += 1;
                out.push(Output::Blocking { resource, key: lock.key, wanted });
            }
        }
        if entry.is_empty() {
            self.resources.remove(&resource);
        }
    }

    /// The first request that doesn't want to wait and would have to; whether it is a conversion.
    fn unwilling(entry: &Entry) -> Option<(LockKey, bool)> {
        let conversions = entry.converting.iter().map(|waiting| (waiting, true));
        let requests = entry.waiting.iter().map(|waiting| (waiting, false));
        conversions.chain(requests).enumerate().find_map(|(ahead, (waiting, conversion))| {
            let in_use = entry.granted.iter().any(|lock| lock.key != waiting.key && lock.busy && lock.told == waiting.mode);
            (waiting.no_wait && (ahead > 0 || in_use)).then_some((waiting.key, conversion))
        })
    }

    fn count_grants(&mut self, out: &[Output], first_at_once: bool) {
        let grants = out.iter().filter(|output| matches!(output, Output::Granted { .. })).count() as u64;
        let at_once = u64::from(first_at_once && grants > 0);
        self.stats.granted_at_once += at_once;
        self.stats.granted_later += grants - at_once;
    }

    /// Whom a waiting request or conversion waits for: holders of modes in its way, and whoever stands before it. Empty
    /// when it doesn't wait.
    #[must_use]
    pub fn blockers(&self, resource: Resource, key: LockKey) -> Vec<Blocker> {
        let Some(entry) = self.resources.get(&resource) else { return Vec::new() };
        let queue: Vec<&Waiting> = entry.converting.iter().chain(&entry.waiting).collect();
        let Some(at) = queue.iter().position(|waiting| waiting.key == key) else { return Vec::new() };
        let mut blockers: Vec<Blocker> = Vec::new();
        for lock in &entry.granted {
            if lock.key != key && !lock.mode.compatible(queue[at].mode) {
                blockers.push(Blocker { key: lock.key, holds: true, ahead: false });
            }
        }
        for before in &queue[..at] {
            match blockers.iter_mut().find(|blocker| blocker.key == before.key) {
                Some(blocker) => blocker.ahead = true,
                None => blockers.push(Blocker { key: before.key, holds: false, ahead: true }),
            }
        }
        blockers
    }

    /// The mode wanted by a waiting request or conversion.
    #[must_use]
    pub fn wanted(&self, resource: Resource, key: LockKey) -> Option<LockMode> {
        let entry = self.resources.get(&resource)?;
        entry.converting.iter().chain(&entry.waiting).find(|waiting| waiting.key == key).map(|waiting| waiting.mode)
    }

    /// The mode granted.
    #[must_use]
    pub fn granted(&self, resource: Resource, key: LockKey) -> Option<LockMode> {
        let entry = self.resources.get(&resource)?;
        entry.granted.iter().find(|lock| lock.key == key).map(|lock| lock.mode)
    }

    /// Locks and requests mastered here.
    #[must_use]
    pub fn locks(&self) -> usize {
        self.locks
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> CoreStats {
        self.stats
    }

    /// Panics when anything is as it must never be. Costs a walk over all locks: for tests and for the simulator.
    pub fn invariants(&self) {
        let mut locks = 0;
        for (resource, entry) in &self.resources {
            assert!(!entry.is_empty(), "{resource} is remembered without a lock");
            locks += entry.granted.len() + entry.waiting.len();
            for (i, lock) in entry.granted.iter().enumerate() {
                for other in &entry.granted[i + 1..] {
                    assert!(lock.mode.compatible(other.mode), "{resource}: {lock:?} beside {other:?}");
                    assert_ne!(lock.key, other.key, "{resource}: one lock twice");
                }
            }
            for (i, waiting) in entry.converting.iter().enumerate() {
                let held = entry.granted.iter().find(|lock| lock.key == waiting.key);
                assert!(held.is_some_and(|lock| !lock.mode.covers(waiting.mode)), "{resource}: {waiting:?} converts {held:?}");
                assert!(entry.converting.iter().skip(i + 1).all(|other| other.key != waiting.key));
            }
            match (entry.converting.front(), entry.waiting.front()) {
                (Some(first), _) | (None, Some(first)) => {
                    assert!(!entry.fits(first.key, first.mode), "{resource}: {first:?} could be granted and isn't");
                    for lock in entry.granted.iter().filter(|lock| lock.key != first.key && !lock.mode.compatible(first.mode)) {
                        assert_eq!(lock.told, first.mode, "{resource}: {lock:?} was not told of {first:?}");
                    }
                }
                (None, None) => {}
            }
        }
        assert_eq!(locks, self.locks);
    }
}

#[cfg(test)]
impl GesCore {
    /// Everything but the counters.
    pub(super) fn hash_parts(&self, hasher: &mut impl std::hash::Hasher) {
        std::hash::Hash::hash(&(&self.resources, &self.rebuild, self.in_doubt), hasher);
    }

    /// Whether anybody has or wants a lock on it, or may have been granted one when the members changed.
    pub(super) fn knows(&self, resource: Resource) -> bool {
        self.resources.contains_key(&resource) || self.unclaimed.contains_key(&resource)
    }

    /// The keys in the conversion queue and in the queue of new requests.
    pub(super) fn queues(&self, resource: Resource) -> (Vec<LockKey>, Vec<LockKey>) {
        let keys = |queue: &VecDeque<Waiting>| queue.iter().map(|waiting| waiting.key).collect();
        self.resources.get(&resource).map(|entry| (keys(&entry.converting), keys(&entry.waiting))).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
