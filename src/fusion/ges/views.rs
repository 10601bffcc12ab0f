//! Random walks of clusters whose members change: nodes are lost, come in, lose messages, several changes in a row and into
//! each other, at every moment of users' locking. Whoever relies on a mode is compatible with everybody else on every
//! node; a value that passes for valid is the newest that was written; when nothing is under way any more whoever waits waits
//! for a user. Each rule of [`rules`](super::rules) is broken on purpose, and the walk notices.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::core::rebuild::{Claim, ClaimsEnd};
use super::core::{GesCore, Input, LockKey, Output};
use super::local::{Effect, Failure, LocalCore, WaitId, WaitsFor};
use super::rules::{Rule, Rules};
use super::types::{LockMode, LockOwner, Resource, ResourceClass, VALUE_BYTES};
use crate::ids::{NodeId, ShardId, TxnId};

const NODES: usize = 4;
const USERS: u16 = 2;
const RESOURCES: usize = 2;
const STEPS: usize = 600;

/// More messages than any cluster of this size may need to come to rest.
const STEPS_TO_QUIET: usize = 2_000;

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// What a test leaves out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Broken {
    Nothing,
    Rule(Rule),
    /// Messages of former epochs are taken for present ones: the interconnect's part.
    EpochsMatch,
}

#[derive(Clone, Copy, Debug)]
enum Letter {
    ToMaster(Input),
    FromMaster(Output),
    Claim(Claim),
    End(ClaimsEnd),
}

struct Node {
    alive: bool,
    epoch: u64,
    members: Vec<NodeId>,
    /// Went on in its epoch.
    gone: bool,
    local: LocalCore,
    core: GesCore,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Newest {
    Number(u64),
    /// Its writer was lost in the middle of it.
    InDoubt,
}

#[derive(Default, Debug)]
struct Seen {
    granted: usize,
    changes: usize,
    /// Users that waited when a node went on.
    waited_through: usize,
    valid: usize,
    in_doubt: usize,
}

struct Walk {
    broken: Broken,
    rng: Rng,
    nodes: Vec<Node>,
    epoch: u64,
    members: Vec<NodeId>,
    net: BTreeMap<(usize, usize), VecDeque<(u64, Letter)>>,
    /// Messages were lost between living nodes: the members change before long.
    disturbed: bool,
    waits: BTreeMap<WaitId, (usize, Resource, LockOwner, bool)>,
    next_wait: u64,
    newest: [Newest; RESOURCES],
    /// Written by a user that has not let go yet.
    open: [Option<(LockOwner, u64)>; RESOURCES],
    next_value: u64,
    /// Only holders of EX write; then whoever holds CR has the newest value, too.
    exclusive_writers: bool,
    seen: Seen,
}

fn id(node: usize) -> NodeId {
    NodeId(node as u8 + 1)
}

fn owner(node: usize, slot: usize) -> LockOwner {
    LockOwner::Transaction(TxnId::new(id(node), ShardId(0), slot as u16, 1))
}

/// Of two masters, where all nodes are members.
fn resource(number: usize) -> Resource {
    Resource::new(ResourceClass::CATALOG, number as u64, 0)
}

impl Walk {
    fn new(seed: u64, broken: Broken) -> Walk {
        let members: Vec<NodeId> = (0..NODES).map(id).collect();
        let node = |node| Node {
            alive: true,
            epoch: 1,
            members: members.clone(),
            gone: true,
            local: LocalCore::new(id(node)),
            core: GesCore::new(),
        };
        let mut walk = Walk {
            broken,
            rng: Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            nodes: (0..NODES).map(node).collect(),
            epoch: 1,
            members: members.clone(),
            net: BTreeMap::new(),
            disturbed: false,
            waits: BTreeMap::new(),
            next_wait: 1,
            newest: [Newest::Number(0); RESOURCES],
            open: [None; RESOURCES],
            next_value: 1,
            exclusive_writers: seed.is_multiple_of(2),
            seen: Seen::default(),
        };
        (0..NODES).for_each(|node| walk.break_a_rule(node));
        walk
    }

    fn break_a_rule(&mut self, node: usize) {
        let Broken::Rule(rule) = self.broken else { return };
        self.nodes[node].local.rules = Rules { off: Some(rule) };
        self.nodes[node].core.rules = Rules { off: Some(rule) };
    }

    fn send(&mut self, from: usize, to: NodeId, letter: Letter) {
        let to = usize::from(to.0) - 1;
        assert!(self.nodes[from].gone, "node {from} speaks between two epochs: {letter:?}");
        // What is sent to a lost node is lost, too.
        if self.nodes[to].alive {
            self.net.entry((from, to)).or_default().push_back((self.nodes[from].epoch, letter));
        }
    }

    fn perform(&mut self, node: usize, effects: Vec<Effect>, outputs: Vec<Output>) {
        let mut effects = VecDeque::from(effects);
        let mut outputs = VecDeque::from(outputs);
        loop {
            if let Some(output) = outputs.pop_front() {
                let (Output::Granted { key, .. } | Output::Refused { key, .. } | Output::Blocking { key, .. }) = output;
                if key.node == id(node) {
                    let mut more = Vec::new();
                    self.nodes[node].local.on_master(output, &mut more);
                    effects.extend(more);
                } else {
                    self.send(node, key.node, Letter::FromMaster(output));
                }
                continue;
            }
            match effects.pop_front() {
                None => return,
                Some(Effect::Close(resource)) => {
                    let mut more = Vec::new();
                    self.nodes[node].local.closed(resource, Vec::new(), &mut more);
                    effects.extend(more);
                }
                Some(Effect::InTheWay(..)) => {}
                Some(Effect::ToMaster(resource, input)) => {
                    let master = resource.master(self.nodes[node].members.iter().copied()).unwrap();
                    if master == id(node) {
                        let mut more = Vec::new();
                        self.nodes[node].core.on(input, &mut more);
                        outputs.extend(more);
                    } else {
                        self.send(node, master, Letter::ToMaster(input));
                    }
                }
                Some(Effect::Ended(wait, outcome)) => {
                    let (_, resource, owner, no_wait) = self.waits.remove(&wait).expect("a wait ends once");
                    match outcome {
                        Ok(()) => self.granted(node, resource, owner),
                        Err(Failure::WouldBlock) if no_wait => {}
                        Err(failure) => panic!("{failure:?} for {owner}, who would have waited"),
                    }
                }
            }
        }
    }

    /// What a user reads when it is granted a lock.
    fn granted(&mut self, node: usize, resource: Resource, owner: LockOwner) {
        self.seen.granted += 1;
        let local = &self.nodes[node].local;
        let mode = local.held(resource, owner);
        if LockMode::ConcurrentRead.covers(mode) && !self.exclusive_writers {
            return;
        }
        let value = local.value(resource, owner).expect("it has just been granted");
        let number = resource.id1 as usize;
        let open = self.open[number].map(|(_, written)| Newest::Number(written));
        if value.valid {
            let read = Newest::Number(u64::from_le_bytes(value.bytes[..8].try_into().unwrap()));
            // A reader beside a writer on the same node sees what that has written already.
            assert!(
                read == self.newest[number] || Some(read) == open,
                "{owner} with {mode} on {resource} reads {read:?} as valid, the newest is {:?}",
                self.newest[number]
            );
            self.seen.valid += usize::from(read != Newest::Number(0) && self.seen.changes > 0);
        } else {
            self.seen.in_doubt += 1;
        }
    }

    fn act(&mut self) {
        let node = self.rng.below(NODES);
        if !self.nodes[node].alive {
            return;
        }
        let user = owner(node, self.rng.below(usize::from(USERS)));
        let number = self.rng.below(RESOURCES);
        let resource = resource(number);
        let waiting = self.waits.iter().find(|(_, (_, _, owner, _))| *owner == user).map(|(wait, (_, on, ..))| (*wait, *on));
        let what = self.rng.below(12);
        let mut effects = Vec::new();
        let local = &mut self.nodes[node].local;
        match (what, waiting) {
            (0..=4, None) => {
                let mode = LockMode::ALL[1 + self.rng.below(5)];
                let no_wait = self.rng.below(6) == 0;
                let wait = WaitId(self.next_wait);
                self.next_wait += 1;
                self.waits.insert(wait, (node, resource, user, no_wait));
                if local.is_open_against(resource, mode) {
                    local.closed(resource, Vec::new(), &mut effects);
                }
                local.lock(resource, user, mode, wait, no_wait, &mut effects);
            }
            (5 | 6, None) => {
                local.unlock(resource, user, &mut effects);
                self.let_go(number, user);
            }
            (7, None) if local.held(resource, user).covers(LockMode::ConcurrentRead) => {
                local.lower(resource, user, LockMode::ConcurrentRead, &mut effects);
                self.let_go(number, user);
            }
            (8 | 9, None) => {
                let mode = local.held(resource, user);
                if mode == LockMode::Exclusive || mode.writes_value() && !self.exclusive_writers {
                    let mut bytes = [0; VALUE_BYTES];
                    bytes[..8].copy_from_slice(&self.next_value.to_le_bytes());
                    assert!(local.set_value(resource, user, bytes));
                    self.open[number] = Some((user, self.next_value));
                    self.next_value += 1;
                }
            }
            (10, _) => {
                let _ = local.open(resource, [LockMode::ConcurrentRead, LockMode::ConcurrentWrite][self.rng.below(2)]);
            }
            (0, Some((wait, on))) => {
                self.waits.remove(&wait);
                local.cancel(on, wait, &mut effects);
            }
            _ => {}
        }
        self.perform(node, effects, Vec::new());
    }

    fn writes(&self, mode: LockMode) -> bool {
        mode == LockMode::Exclusive || mode.writes_value() && !self.exclusive_writers
    }

    fn let_go(&mut self, number: usize, user: LockOwner) {
        if let Some((_, written)) = self.open[number].take_if(|(writer, _)| *writer == user) {
            self.newest[number] = Newest::Number(written);
        }
    }

    fn deliver(&mut self) -> bool {
        let ways: Vec<(usize, usize)> = self.net.iter().filter(|(_, queue)| !queue.is_empty()).map(|(way, _)| *way).collect();
        if ways.is_empty() {
            return false;
        }
        let (from, to) = ways[self.rng.below(ways.len())];
        let (epoch, letter) = self.net.get_mut(&(from, to)).and_then(VecDeque::pop_front).unwrap();
        let node = &mut self.nodes[to];
        assert!(epoch <= node.epoch, "{letter:?} comes from an epoch that not all have entered");
        let of_now = epoch == node.epoch || self.broken == Broken::EpochsMatch;
        if !node.alive || !of_now {
            return true;
        }
        let (mut effects, mut outputs) = (Vec::new(), Vec::new());
        match letter {
            Letter::ToMaster(input) => node.core.on(input, &mut outputs),
            Letter::FromMaster(output) => node.local.on_master(output, &mut effects),
            Letter::Claim(claim) => node.core.on_claim(id(from), claim, &mut outputs),
            Letter::End(end) => node.core.on_claims_end(id(from), end, &mut outputs),
        }
        self.perform(to, effects, outputs);
        true
    }

    fn change(&mut self) {
        self.seen.changes += 1;
        self.epoch += 1;
        self.members = (0..NODES).filter(|node| self.nodes[*node].alive).map(id).collect();
        self.disturbed = false;
    }

    /// A fault, or somebody who comes in.
    fn disturb(&mut self) {
        let node = self.rng.below(NODES);
        match self.rng.below(6) {
            0 | 1 if self.nodes[node].alive && self.members.len() > 1 => self.crash(node),
            2 | 3 if !self.nodes[node].alive && self.all_have_gone() => {
                // In a new life. Of the former one nothing arrives any more.
                self.net.retain(|(from, _), _| *from != node);
                let (core, local) = (GesCore::entering(&[]), LocalCore::entering(id(node)));
                self.nodes[node] = Node { alive: true, epoch: 0, members: Vec::new(), gone: false, local, core };
                self.change();
            }
            4 => {
                let other = self.rng.below(NODES);
                self.net.retain(|(from, to), _| !(*from == node && *to == other || *from == other && *to == node));
                self.disturbed = true;
            }
            5 => self.change(),
            _ => {}
        }
    }

    fn crash(&mut self, node: usize) {
        self.nodes[node].alive = false;
        // What it has sent may still arrive.
        self.net.retain(|(_, to), _| *to != node);
        self.waits.retain(|_, (at, ..)| *at != node);
        for number in 0..RESOURCES {
            let held = |slot| self.nodes[node].local.held(resource(number), owner(node, slot));
            if (0..usize::from(USERS)).any(|slot| self.writes(held(slot))) {
                self.newest[number] = Newest::InDoubt;
            }
            self.open[number].take_if(|(writer, _)| (0..usize::from(USERS)).any(|slot| owner(node, slot) == *writer));
        }
        self.change();
    }

    fn all_have_gone(&self) -> bool {
        self.members.iter().all(|member| self.nodes[usize::from(member.0) - 1].is_in(self.epoch, true))
    }

    /// A member enters the present view, or goes on in it.
    fn step_view(&mut self, at: usize) {
        let member = self.members[at % self.members.len()];
        let all_in = self.members.iter().all(|member| self.nodes[usize::from(member.0) - 1].is_in(self.epoch, false));
        let index = usize::from(member.0) - 1;
        let (epoch, members) = (self.epoch, self.members.clone());
        let node = &mut self.nodes[index];
        if node.epoch < epoch {
            let newcomer = node.epoch == 0;
            if newcomer {
                node.core = GesCore::entering(&members);
            } else {
                node.core.enter(&node.members, &members);
                node.local.enter();
            }
            (node.epoch, node.members, node.gone) = (epoch, members, false);
            if newcomer {
                self.break_a_rule(index);
            }
        } else if all_in && !node.gone {
            self.go(index);
        }
    }

    fn go(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        this.gone = true;
        self.seen.waited_through += self.waits.values().filter(|(at, ..)| *at == node).count();
        let (mut claims, in_doubt) = this.core.go();
        claims.extend(this.local.claims());
        for master in this.members.clone() {
            let mine = claims.iter().filter(|claim| claim.resource.master(self.members.iter().copied()) == Some(master));
            let mut letters: Vec<Letter> = mine.map(|claim| Letter::Claim(*claim)).collect();
            let end = Letter::End(ClaimsEnd { count: letters.len() as u64, in_doubt });
            letters.insert(self.rng.below(letters.len() + 1), end);
            for letter in letters {
                if master != id(node) {
                    self.send(node, master, letter);
                    continue;
                }
                let mut outputs = Vec::new();
                match letter {
                    Letter::Claim(claim) => self.nodes[node].core.on_claim(master, claim, &mut outputs),
                    Letter::End(end) => self.nodes[node].core.on_claims_end(master, end, &mut outputs),
                    letter => unreachable!("{letter:?} is no claim"),
                }
                self.perform(node, Vec::new(), outputs);
            }
        }
        let mut effects = Vec::new();
        self.nodes[node].local.go(&mut effects);
        self.perform(node, effects, Vec::new());
    }

    fn check(&mut self) {
        for node in self.nodes.iter().filter(|node| node.alive) {
            node.local.invariants();
            node.core.invariants();
        }
        for number in 0..RESOURCES {
            let resource = resource(number);
            let alive = || (0..NODES).filter(|node| self.nodes[*node].alive);
            let users = alive().flat_map(|node| (0..usize::from(USERS)).map(move |slot| (node, owner(node, slot))));
            let mut held: Vec<(String, LockMode)> =
                users.map(|(node, owner)| (owner.to_string(), self.nodes[node].local.held(resource, owner))).collect();
            held.extend(alive().map(|node| (format!("whoever is in at node {node}"), self.nodes[node].local.is_open(resource))));
            for (i, (one, mode)) in held.iter().enumerate() {
                for (other, other_mode) in &held[i + 1..] {
                    assert!(mode.compatible(*other_mode), "{one} relies on {mode} of {resource} beside {other} on {other_mode}");
                }
            }
            // Forgotten with its last lock; by a master that has not left a former epoch yet, too.
            let serves = |node: &usize| self.nodes[*node].gone && !self.nodes[*node].core.is_rebuilding();
            let master = |node: &usize| resource.master(self.nodes[*node].members.iter().copied()) == Some(id(*node));
            if alive().filter(serves).any(|node| master(&node) && !self.nodes[node].core.knows(resource)) {
                self.newest[number] = Newest::Number(0);
            }
        }
    }

    /// All messages arrive, all members go on.
    fn drain(&mut self) {
        if self.disturbed {
            self.change();
        }
        for round in 0..STEPS_TO_QUIET {
            let moved = self.deliver();
            self.step_view(round);
            self.check();
            if !moved && self.all_have_gone() && self.net.values().all(VecDeque::is_empty) {
                return;
            }
        }
        panic!("the nodes talk for ever");
    }

    /// Nothing is under way: everybody who waits waits, over however many steps, for some user.
    fn check_quiet(&self) {
        for node in self.nodes.iter().filter(|node| node.alive) {
            assert!(!node.core.is_rebuilding(), "a master never heard all claims");
        }
        for (wait, (node, resource, user, no_wait)) in &self.waits {
            assert!(!no_wait, "{user} did not want to wait");
            let users = match self.nodes[*node].local.waits_for(*resource, *wait).expect("it waits") {
                WaitsFor::Users(users) => users.into_iter().collect::<BTreeSet<_>>(),
                WaitsFor::Master(resource, key) => self.in_the_way(resource, key),
            };
            assert!(!users.is_empty(), "{user} waits for nobody");
            assert!(!users.contains(user), "{user} waits for itself");
        }
    }

    fn in_the_way(&self, resource: Resource, key: LockKey) -> BTreeSet<LockOwner> {
        let master = usize::from(resource.master(self.members.iter().copied()).unwrap().0) - 1;
        let core = &self.nodes[master].core;
        let wanted = core.wanted(resource, key).unwrap_or_else(|| panic!("{key:?} waits, and its master does not know"));
        let in_the_way = core.blockers(resource, key).into_iter().flat_map(|blocker| {
            let local = &self.nodes[usize::from(blocker.key.node.0) - 1].local;
            local.users_in_the_way(resource, wanted, blocker.holds, blocker.ahead)
        });
        in_the_way.collect()
    }

    fn run(mut self) -> Seen {
        for _ in 0..STEPS {
            match self.rng.below(100) {
                0 | 1 => self.disturb(),
                2..=14 => {
                    let at = self.rng.below(NODES);
                    self.step_view(at);
                }
                15..=49 => self.act(),
                _ => drop(self.deliver()),
            }
            if self.disturbed && self.rng.below(20) == 0 {
                self.change();
            }
            self.check();
            if self.rng.below(80) == 0 {
                self.drain();
                self.check_quiet();
            }
        }
        // Everybody ends, one after the other: those who waited are served, and nobody is left.
        for round in 0..2 {
            for (node, slot) in (0..NODES).flat_map(|node| (0..usize::from(USERS)).map(move |slot| (node, slot))) {
                self.drain();
                self.check_quiet();
                if !self.nodes[node].alive {
                    continue;
                }
                let user = owner(node, slot);
                let waiting =
                    self.waits.iter().find(|(_, (_, _, owner, _))| *owner == user).map(|(wait, (_, on, ..))| (*wait, *on));
                let mut effects = Vec::new();
                if let Some((wait, on)) = waiting {
                    assert!(round == 0, "{user} still waits for {on} when all others are done");
                    self.waits.remove(&wait);
                    self.nodes[node].local.cancel(on, wait, &mut effects);
                }
                for number in 0..RESOURCES {
                    self.nodes[node].local.unlock(resource(number), user, &mut effects);
                    self.let_go(number, user);
                }
                self.perform(node, effects, Vec::new());
            }
        }
        self.drain();
        assert!(self.waits.is_empty(), "{:?}", self.waits);
        self.seen
    }
}

impl Node {
    fn is_in(&self, epoch: u64, gone: bool) -> bool {
        self.alive && self.epoch == epoch && (self.gone || !gone)
    }
}

#[test]
fn locks_and_values_live_through_every_change_of_the_members() {
    let mut all = Seen::default();
    for seed in 1..=500 {
        let seen = std::panic::catch_unwind(|| Walk::new(seed, Broken::Nothing).run());
        let Ok(seen) = seen else { panic!("seed {seed}: see above") };
        all.granted += seen.granted;
        all.changes += seen.changes;
        all.waited_through += seen.waited_through;
        all.valid += seen.valid;
        all.in_doubt += seen.in_doubt;
    }
    println!("{all:?}");
    assert!(all.granted > 5_000 && all.changes > 2_000 && all.waited_through > 1_000, "a tame walk: {all:?}");
    assert!(all.valid > 500 && all.in_doubt > 500, "values that nobody reads: {all:?}");
}

#[test]
fn each_broken_rule_is_noticed() {
    let rules = [
        Rule::AllClaimsFirst,
        Rule::AskAgain,
        Rule::LostWriterLeavesDoubt,
        Rule::LostMasterLeavesDoubt,
        Rule::UnheardLeavesDoubt,
        Rule::ValueUntilTaken,
    ];
    for broken in rules.map(Broken::Rule).into_iter().chain([Broken::EpochsMatch]) {
        let noticed = (1..=500).find(|seed| std::panic::catch_unwind(|| Walk::new(*seed, broken).run()).is_err());
        println!("{broken:?}: noticed with seed {noticed:?}");
        assert!(noticed.is_some(), "{broken:?} is not noticed");
    }
}
