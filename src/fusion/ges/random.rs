//! Random walks of whole small clusters without I/O: users on three nodes, their nodes' side, one master, and messages
//! that wait in order between them. Users also come in by themselves where a node has opened the resource. After every step what users rely on must be compatible; and when nothing is under way,
//! whoever waits must wait for a user, never for a lock that a node only kept.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::core::{GesCore, Input, LockKey, Output};
use super::local::{Effect, Failure, LocalCore, WaitId, WaitsFor};
use super::types::{LockMode, LockOwner, Resource, ResourceClass, SessionId};
use crate::ids::{NodeId, ShardId, TxnId};

const TABLE: Resource = Resource::new(ResourceClass::TABLE, 7, 0);
const NODES: usize = 3;
const USERS: u16 = 3;

/// More messages than any cluster of this size may need to come to rest.
const STEPS_TO_QUIET: usize = 1_000;

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

struct Walk {
    core: GesCore,
    locals: Vec<LocalCore>,
    to_master: Vec<VecDeque<Input>>,
    to_node: Vec<VecDeque<Output>>,
    /// Who waits, on which node, and whether he was willing to.
    waits: BTreeMap<WaitId, (usize, LockOwner, bool)>,
    next_wait: u64,
    /// Who has come in by himself, on each node.
    inside: Vec<Vec<(SessionId, LockMode)>>,
    next_session: u64,
    granted: usize,
    refused: usize,
    entered: usize,
    taken_over: usize,
    weak: bool,
}

fn owner(node: usize, slot: u16) -> LockOwner {
    LockOwner::Transaction(TxnId::new(NodeId(node as u8 + 1), ShardId(0), slot, 1))
}

impl Walk {
    fn new() -> Walk {
        Walk {
            core: GesCore::new(),
            locals: (1..=NODES).map(|node| LocalCore::new(NodeId(node as u8))).collect(),
            to_master: vec![VecDeque::new(); NODES],
            to_node: vec![VecDeque::new(); NODES],
            waits: BTreeMap::new(),
            next_wait: 1,
            inside: vec![Vec::new(); NODES],
            next_session: 1,
            granted: 0,
            refused: 0,
            entered: 0,
            taken_over: 0,
            weak: false,
        }
    }

    fn close(&mut self, node: usize) -> Vec<Effect> {
        let inside = std::mem::take(&mut self.inside[node]);
        self.taken_over += inside.len();
        let mut effects = Vec::new();
        self.locals[node].closed(TABLE, inside, &mut effects);
        effects
    }

    fn perform(&mut self, node: usize, effects: Vec<Effect>) {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Close(_) => effects.extend(self.close(node)),
                Effect::ToMaster(_, input) => self.to_master[node].push_back(input),
                Effect::InTheWay(..) => {}
                Effect::Ended(wait, outcome) => {
                    let (_, _, no_wait) = self.waits.remove(&wait).expect("a wait ends once");
                    match outcome {
                        Ok(()) => self.granted += 1,
                        Err(Failure::WouldBlock) if no_wait => self.refused += 1,
                        Err(failure) => panic!("{failure:?} for somebody who would have waited"),
                    }
                }
            }
        }
        self.locals[node].invariants();
        self.core.invariants();
        let users: Vec<(LockOwner, LockMode)> = (0..NODES)
            .flat_map(|node| (0..USERS).map(move |slot| (node, owner(node, slot))))
            .map(|(node, owner)| (owner, self.locals[node].held(TABLE, owner)))
            .chain((0..NODES).flat_map(|node| self.sessions(node)))
            .collect();
        for (i, (one, mode)) in users.iter().enumerate() {
            for (other, other_mode) in &users[i + 1..] {
                assert!(mode.compatible(*other_mode), "{one} relies on {mode} beside {other} on {other_mode}");
            }
        }
    }

    /// Who has come in by himself, whether he is known by now or not.
    fn sessions(&self, node: usize) -> Vec<(LockOwner, LockMode)> {
        let inside = self.inside[node].iter().map(|(session, mode)| (LockOwner::Session(*session), *mode));
        let all = (0..self.next_session).map(|number| LockOwner::Session(SessionId { number, transaction: node as u64 }));
        let known = all.map(|owner| (owner, self.locals[node].held(TABLE, owner)));
        inside.chain(known.filter(|(_, mode)| *mode != LockMode::Null)).collect()
    }

    /// Somebody comes in by himself, or goes, or asks for more.
    fn act_at_gate(&mut self, rng: &mut Rng) {
        let node = rng.below(NODES);
        let mut effects = Vec::new();
        match rng.below(6) {
            0 | 1 => {
                let _ = self.locals[node].open(TABLE, [LockMode::ConcurrentRead, LockMode::ConcurrentWrite][rng.below(2)]);
            }
            2 | 3 => {
                let mode = [LockMode::ConcurrentRead, LockMode::ConcurrentWrite][rng.below(2)];
                if self.inside[node].len() < 3 && self.locals[node].is_open(TABLE).covers(mode) {
                    self.inside[node].push((SessionId { number: self.next_session, transaction: node as u64 }, mode));
                    self.next_session += 1;
                    self.entered += 1;
                }
            }
            4 => self.leave(node, rng, &mut effects),
            _ => {
                // Goes on as a user known by another name.
                let user = owner(node, rng.below(usize::from(USERS)) as u16);
                let waits = self.waits.values().any(|(_, owner, _)| *owner == user);
                if let Some((from, _)) = self.sessions(node).first().copied().filter(|_| !waits) {
                    let at = self.inside[node].iter().position(|(session, _)| LockOwner::Session(*session) == from);
                    let inside = at.map(|at| self.inside[node].swap_remove(at).1);
                    assert!(self.locals[node].adopt(TABLE, from, inside, user));
                }
            }
        }
        self.perform(node, effects);
    }

    fn leave(&mut self, node: usize, rng: &mut Rng, effects: &mut Vec<Effect>) {
        let sessions = self.sessions(node);
        if sessions.is_empty() {
            return;
        }
        let (session, _) = sessions[rng.below(sessions.len())];
        match self.inside[node].iter().position(|(inside, _)| LockOwner::Session(*inside) == session) {
            Some(at) => drop(self.inside[node].swap_remove(at)),
            None => self.locals[node].unlock(TABLE, session, effects),
        }
    }

    fn deliver(&mut self, node: usize, to_master: bool) -> bool {
        if to_master {
            let Some(input) = self.to_master[node].pop_front() else { return false };
            let mut out = Vec::new();
            self.core.on(input, &mut out);
            for output in out {
                let (Output::Granted { key, .. } | Output::Refused { key, .. } | Output::Blocking { key, .. }) = output;
                self.to_node[usize::from(key.node.0) - 1].push_back(output);
            }
            self.core.invariants();
        } else {
            let Some(output) = self.to_node[node].pop_front() else { return false };
            let mut effects = Vec::new();
            self.locals[node].on_master(output, &mut effects);
            self.perform(node, effects);
        }
        true
    }

    fn act(&mut self, rng: &mut Rng) {
        let node = rng.below(NODES);
        let user = owner(node, rng.below(usize::from(USERS)) as u16);
        let waiting = self.waits.iter().find(|(_, (_, owner, _))| *owner == user).map(|(wait, _)| *wait);
        let mut effects = Vec::new();
        match (rng.below(10), waiting) {
            (0..=4, None) => {
                // Tables are mostly used by readers and writers of rows.
                let mode = LockMode::ALL[1 + if self.weak && rng.below(8) > 0 { rng.below(2) } else { rng.below(5) }];
                let no_wait = rng.below(5) == 0;
                let wait = WaitId(self.next_wait);
                self.next_wait += 1;
                self.waits.insert(wait, (node, user, no_wait));
                if self.locals[node].is_open_against(TABLE, mode) {
                    effects.extend(self.close(node));
                }
                self.locals[node].lock(TABLE, user, mode, wait, no_wait, &mut effects);
            }
            (5..=8, None) => self.locals[node].unlock(TABLE, user, &mut effects),
            (9, None) if self.locals[node].held(TABLE, user).covers(LockMode::ConcurrentRead) => {
                self.locals[node].lower(TABLE, user, LockMode::ConcurrentRead, &mut effects);
            }
            (0, Some(wait)) => {
                self.waits.remove(&wait);
                self.locals[node].cancel(TABLE, wait, &mut effects);
            }
            _ => {}
        }
        self.perform(node, effects);
    }

    fn drain(&mut self) {
        for step in 0..STEPS_TO_QUIET {
            if step + 20 > STEPS_TO_QUIET {
                println!("to the master {:?}, from it {:?}", self.to_master, self.to_node);
            }
            if !(0..NODES).any(|node| self.deliver(node, true) || self.deliver(node, false)) {
                return;
            }
        }
        panic!("the nodes talk for ever: {:?}\n{:?}", self.locals, self.core);
    }

    /// Nothing is under way: everybody who waits waits, over however many steps, for some user.
    fn check_quiet(&self) {
        for (wait, (node, user, no_wait)) in &self.waits {
            assert!(!no_wait, "{user} did not want to wait");
            let users = match self.locals[*node].waits_for(TABLE, *wait).expect("it waits") {
                WaitsFor::Users(users) => users.into_iter().collect::<BTreeSet<_>>(),
                WaitsFor::Master(resource, key) => self.in_the_way(resource, key),
            };
            assert!(!users.is_empty(), "{user} waits for nobody: {:?}\n{:?}", self.locals, self.core);
            assert!(!users.contains(user), "{user} waits for itself: {:?}\n{:?}", self.locals, self.core);
        }
    }

    fn in_the_way(&self, resource: Resource, key: LockKey) -> BTreeSet<LockOwner> {
        let wanted = self.core.wanted(resource, key).expect("nothing is under way: it waits at the master");
        let blockers = self.core.blockers(resource, key).into_iter();
        blockers
            .flat_map(|blocker| {
                let local = &self.locals[usize::from(blocker.key.node.0) - 1];
                local.users_in_the_way(resource, wanted, blocker.holds, blocker.ahead)
            })
            .collect()
    }
}

#[test]
fn whoever_waits_waits_for_a_user_and_is_served_when_all_are_done() {
    let (mut granted, mut refused, mut waited, mut entered, mut taken_over) = (0, 0, 0, 0, 0);
    for seed in 1..=400u64 {
        let mut rng = Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut walk = Walk::new();
        walk.weak = seed % 2 == 0;
        for _ in 0..300 {
            match rng.below(4) {
                0 => walk.act(&mut rng),
                3 => walk.act_at_gate(&mut rng),
                side => {
                    let node = rng.below(NODES);
                    walk.deliver(node, side == 1);
                }
            }
            if rng.below(40) == 0 {
                walk.drain();
                walk.check_quiet();
                waited += walk.waits.len();
            }
        }
        for node in 0..NODES {
            while !walk.sessions(node).is_empty() {
                let mut effects = Vec::new();
                walk.leave(node, &mut rng, &mut effects);
                walk.perform(node, effects);
            }
        }
        // Everybody ends, one after the other: those who waited are served, and nobody is left.
        for _ in 0..2 {
            for node in 0..NODES {
                for slot in 0..USERS {
                    walk.drain();
                    walk.check_quiet();
                    if walk.waits.values().any(|(_, user, _)| *user == owner(node, slot)) {
                        let wait = *walk.waits.iter().find(|(_, (_, user, _))| *user == owner(node, slot)).unwrap().0;
                        walk.waits.remove(&wait);
                        let mut effects = Vec::new();
                        walk.locals[node].cancel(TABLE, wait, &mut effects);
                        walk.perform(node, effects);
                    }
                    let mut effects = Vec::new();
                    walk.locals[node].unlock(TABLE, owner(node, slot), &mut effects);
                    walk.perform(node, effects);
                }
            }
        }
        walk.drain();
        assert!(walk.waits.is_empty(), "seed {seed}: {:?}", walk.waits);
        granted += walk.granted;
        refused += walk.refused;
        entered += walk.entered;
        taken_over += walk.taken_over;
    }
    assert!(
        granted > 3_000 && refused > 200 && waited > 1_000 && entered > 1_000 && taken_over > 200,
        "a tame walk: {granted} granted, {refused} refused, {waited} waited, {entered} entered, {taken_over} taken over"
    );
}
