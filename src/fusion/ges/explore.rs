//! Every order of events in small worlds: three nodes that request, convert, cancel, unlock and die, with their messages
//! under way, around one master, which may be lost, too. Each state is looked at once (by hash); in each the promises of the core must hold.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashSet, VecDeque};
use std::hash::{Hash, Hasher};

use super::core::rebuild::{Claim, Claimed, ClaimsEnd};
use super::core::{GesCore, Input, LockKey, Output, Refusal, ValueChange};
use super::types::{LockMode, Resource, ResourceClass, ValueBlock};
use crate::ids::NodeId;

const TABLE: Resource = Resource::new(ResourceClass::TABLE, 7, 0);

/// The node of the master.
const MASTER: NodeId = NodeId(9);

/// Most messages that a node, or the master from one node, leaves unread; beside claims.
const UNREAD_MAX: usize = 2;

/// Most states that a world may have.
const STATES_MAX: usize = 300_000;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Client {
    Idle,
    Requested { mode: LockMode, canceled: bool },
    Held(LockMode),
    Converting { from: LockMode, to: LockMode, canceled: bool },
    Dead,
}

impl Client {
    /// What the node may rely on: a lower mode counts from the moment in which it is asked for.
    fn relies_on(self) -> LockMode {
        match self {
            Client::Held(mode) => mode,
            Client::Converting { from, to, .. } if from.covers(to) => to,
            Client::Converting { from, to, .. } if to.covers(from) => from,
            // Between CW and PR it has neither until it knows: the master may have made the change already.
            Client::Converting { .. } => LockMode::ConcurrentRead,
            Client::Idle | Client::Requested { .. } | Client::Dead => LockMode::Null,
        }
    }

    /// What it is, and says to the new master, when the members have changed.
    fn goes_on(&mut self, node: usize) -> VecDeque<Letter> {
        let (resource, key) = (TABLE, key(node));
        let relies_on = self.relies_on();
        let (mut claim, mut wish) = (None, None);
        match *self {
            Client::Dead => return VecDeque::new(),
            Client::Idle | Client::Requested { canceled: true, .. } => *self = Client::Idle,
            Client::Requested { mode, .. } => wish = Some(Input::Request { resource, key, mode, no_wait: false }),
            Client::Converting { to, canceled: false, .. } if relies_on != to => {
                claim = Some(relies_on);
                *self = Client::Converting { from: relies_on, to, canceled: false };
                wish = Some(Input::Convert { resource, key, mode: to, no_wait: false, value: ValueChange::Keep });
            }
            Client::Held(_) | Client::Converting { .. } => {
                claim = Some(relies_on);
                *self = Client::Held(relies_on);
            }
        }
        let claims = claim.map(|mode| Claim { resource, what: Claimed::Lock(mode), value: ValueBlock::default() });
        let end = Letter::End(ClaimsEnd { count: u64::from(claim.is_some()), in_doubt: false });
        let mut letters: VecDeque<Letter> = claims.map(Letter::Claim).into_iter().chain(wish.map(Letter::Input)).collect();
        // In whatever order.
        letters.insert(if node == 0 { letters.len() } else { 0 }, end);
        letters
    }
}

/// What goes to the master.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Letter {
    Input(Input),
    Claim(Claim),
    End(ClaimsEnd),
}

#[derive(Clone)]
struct World {
    core: GesCore,
    clients: Vec<Client>,
    to_master: Vec<VecDeque<Letter>>,
    to_node: Vec<VecDeque<Output>>,
    changes: usize,
}

struct Rules {
    nodes: usize,
    modes: &'static [LockMode],
    cancels: bool,
    no_wait: bool,
    /// Of the members.
    changes: usize,
}

fn key(node: usize) -> LockKey {
    LockKey { node: NodeId(node as u8 + 1), id: 0 }
}

impl World {
    fn new(rules: &Rules) -> World {
        World {
            core: GesCore::new(),
            clients: vec![Client::Idle; rules.nodes],
            to_master: vec![VecDeque::new(); rules.nodes],
            to_node: vec![VecDeque::new(); rules.nodes],
            changes: 0,
        }
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.core.hash_parts(&mut hasher);
        (&self.clients, &self.to_master, &self.to_node, self.changes).hash(&mut hasher);
        hasher.finish()
    }

    /// All states that one event leads to.
    fn next(&self, rules: &Rules) -> Vec<World> {
        let mut next = Vec::new();
        for node in 0..rules.nodes {
            if !self.to_master[node].is_empty() {
                let mut world = self.clone();
                let letter = world.to_master[node].pop_front().unwrap();
                world.master(node, letter);
                next.push(world);
            }
            if !self.to_node[node].is_empty() {
                let mut world = self.clone();
                let output = world.to_node[node].pop_front().unwrap();
                world.client(node, output);
                next.push(world);
            }
            self.actions(node, rules, &mut next);
        }
        if self.changes < rules.changes {
            let alive = (0..rules.nodes).filter(|node| self.clients[*node] != Client::Dead).map(Some);
            for lost in alive.chain([None]) {
                next.push(self.changed(lost, false));
                next.push(self.changed(lost, true));
            }
        }
        next
    }

    fn actions(&self, node: usize, rules: &Rules, next: &mut Vec<World>) {
        let mut act = |client: Client, input: Input| {
            let mut world = self.clone();
            world.clients[node] = client;
            world.to_master[node].push_back(Letter::Input(input));
            next.push(world);
        };
        let (resource, key) = (TABLE, key(node));
        // One message under way at a time, and a cancel may overtake nothing: more in flight only repeats these states.
        let quiet = self.to_master[node].is_empty();
        let waits: &[bool] = if rules.no_wait { &[false, true] } else { &[false] };
        match self.clients[node] {
            Client::Idle if quiet => {
                for (&mode, &no_wait) in rules.modes.iter().flat_map(|mode| waits.iter().map(move |w| (mode, w))) {
                    act(Client::Requested { mode, canceled: false }, Input::Request { resource, key, mode, no_wait });
                }
            }
            Client::Held(from) if quiet => {
                act(Client::Idle, Input::Unlock { resource, key, value: ValueChange::Keep });
                for &to in rules.modes.iter().filter(|to| **to != from) {
                    let input = Input::Convert { resource, key, mode: to, no_wait: false, value: ValueChange::Keep };
                    act(Client::Converting { from, to, canceled: false }, input);
                }
            }
            Client::Requested { mode, canceled: false } if rules.cancels => {
                act(Client::Requested { mode, canceled: true }, Input::Cancel { resource, key });
            }
            Client::Converting { from, to, canceled: false } if rules.cancels && !from.covers(to) => {
                act(Client::Converting { from, to, canceled: true }, Input::Cancel { resource, key });
            }
            _ => {}
        }
    }

    /// The members change: what is under way is lost, the claims are on their way. A node may be lost, and so may the master,
    /// for which another takes over.
    fn changed(&self, lost: Option<usize>, new_master: bool) -> World {
        let members = |world: &World| {
            let alive = world.clients.iter().enumerate().filter(|(_, client)| **client != Client::Dead);
            alive.map(|(node, _)| key(node).node).chain([MASTER]).collect::<Vec<NodeId>>()
        };
        let former = members(self);
        let mut world = self.clone();
        world.changes += 1;
        if let Some(lost) = lost {
            world.clients[lost] = Client::Dead;
        }
        let members = members(&world);
        if new_master {
            world.core = GesCore::entering(&members);
        } else {
            world.core.enter(&former, &members);
        }
        let (words, in_doubt) = world.core.go();
        let mut out = Vec::new();
        world.core.on_claims_end(MASTER, ClaimsEnd { count: words.len() as u64, in_doubt }, &mut out);
        for word in words {
            world.core.on_claim(MASTER, word, &mut out);
        }
        world.to_node.iter_mut().for_each(VecDeque::clear);
        for node in 0..world.clients.len() {
            world.to_master[node] = world.clients[node].goes_on(node);
        }
        // Where nobody is left the master is complete at once.
        assert_eq!(out, []);
        world
    }

    fn master(&mut self, node: usize, letter: Letter) {
        let mut out = Vec::new();
        match letter {
            Letter::Input(input) if !self.core.is_rebuilding() => self.serve(input, &mut out),
            Letter::Input(input) => self.core.on(input, &mut out),
            Letter::Claim(claim) => self.core.on_claim(key(node).node, claim, &mut out),
            Letter::End(end) => self.core.on_claims_end(key(node).node, end, &mut out),
        }
        self.core.invariants();
        for output in out {
            let (Output::Granted { key, .. } | Output::Refused { key, .. } | Output::Blocking { key, .. }) = output;
            let node = usize::from(key.node.0) - 1;
            if self.clients[node] != Client::Dead {
                self.to_node[node].push_back(output);
            }
        }
    }

    /// In no epoch's beginning: who goes first is looked at.
    fn serve(&mut self, input: Input, out: &mut Vec<Output>) {
        let before = self.core.queues(TABLE);
        self.core.on(input, out);
        let after = self.core.queues(TABLE);
        // Conversions first: nobody gets a new lock while one waits.
        let is_new =
            |key: &LockKey| before.1.contains(key) || matches!(input, Input::Request { key: asking, .. } if asking == *key);
        let new_lock = out.iter().any(|output| matches!(output, Output::Granted { key, .. } if is_new(key)));
        assert!(!new_lock || after.0.is_empty(), "{input:?}: {out:?} before {:?}", after.0);
        // First come, first served: whoever left a queue by a grant stood before all who stay.
        for (before, after) in [(&before.0, &after.0), (&before.1, &after.1)] {
            let granted: Vec<usize> = out
                .iter()
                .filter_map(|output| match output {
                    Output::Granted { key, .. } => before.iter().position(|waiting| waiting == key),
                    _ => None,
                })
                .collect();
            let stays = before.iter().position(|waiting| after.contains(waiting)).unwrap_or(before.len());
            assert!(granted.iter().all(|at| *at < stays) && granted.is_sorted(), "{input:?}: {before:?} to {after:?} by {out:?}");
        }
    }

    fn client(&mut self, node: usize, output: Output) {
        let client = &mut self.clients[node];
        match (output, *client) {
            (Output::Granted { mode, .. }, Client::Requested { mode: wanted, .. }) => {
                assert_eq!(mode, wanted);
                *client = Client::Held(mode);
            }
            (Output::Granted { mode, .. }, Client::Converting { to, .. }) => {
                assert_eq!(mode, to);
                *client = Client::Held(mode);
            }
            (Output::Refused { reason, .. }, Client::Requested { canceled, .. }) => {
                assert!(reason == Refusal::WouldBlock || canceled && reason == Refusal::Canceled, "{output:?}");
                *client = Client::Idle;
            }
            (Output::Refused { reason: Refusal::Canceled, .. }, Client::Converting { from, canceled: true, .. }) => {
                *client = Client::Held(from);
            }
            (Output::Blocking { wanted, .. }, Client::Held(_)) if wanted != LockMode::Null => {
                self.to_master[node].push_back(Letter::Input(Input::Busy { resource: TABLE, key: key(node), wanted }));
            }
            // It is changing its mode already, or has given the lock up: the answer is on its way.
            (Output::Blocking { .. }, _) => {}
            (output, client) => panic!("node {node} got {output:?} in {client:?}"),
        }
    }

    fn check(&self) {
        for (i, one) in self.clients.iter().enumerate() {
            for other in &self.clients[i + 1..] {
                assert!(one.relies_on().compatible(other.relies_on()), "{one:?} beside {other:?}");
            }
        }
        let quiet = self.to_master.iter().chain(std::iter::empty()).all(VecDeque::is_empty)
            && self.to_node.iter().all(VecDeque::is_empty);
        if quiet {
            for (node, client) in self.clients.iter().enumerate() {
                let (granted, wanted) = (self.core.granted(TABLE, key(node)), self.core.wanted(TABLE, key(node)));
                match client {
                    Client::Idle | Client::Dead => assert_eq!((granted, wanted), (None, None)),
                    Client::Requested { mode, .. } => {
                        assert_eq!((granted, wanted), (None, Some(*mode)));
                        assert!(!self.core.blockers(TABLE, key(node)).is_empty(), "a wait for nobody");
                    }
                    Client::Held(mode) => assert_eq!((granted, wanted), (Some(*mode), None)),
                    Client::Converting { from, to, .. } => assert_eq!((granted, wanted), (Some(*from), Some(*to))),
                }
            }
        }
    }
}

fn explore(rules: &Rules) -> usize {
    let start = World::new(rules);
    let mut seen = HashSet::from([start.fingerprint()]);
    let mut todo = vec![start];
    while let Some(world) = todo.pop() {
        for next in world.next(rules) {
            // Whoever never reads could be told things without end.
            if next.to_node.iter().any(|queue| queue.len() > UNREAD_MAX)
                || next
                    .to_master
                    .iter()
                    .any(|queue| queue.iter().filter(|letter| matches!(letter, Letter::Input(_))).count() > UNREAD_MAX)
            {
                continue;
            }
            if seen.insert(next.fingerprint()) {
                next.check();
                todo.push(next);
                assert!(seen.len() < STATES_MAX, "the world has no end");
            }
        }
    }
    seen.len()
}

#[test]
fn three_nodes_in_every_order() {
    use LockMode::{ConcurrentWrite, Exclusive, ProtectedRead};

    let both: &[LockMode] = &[ProtectedRead, Exclusive];
    let three: &[LockMode] = &[ConcurrentWrite, ProtectedRead, Exclusive];
    for (name, rules, at_least) in [
        ("two nodes, all modes", Rules { nodes: 2, modes: &LockMode::ALL, cancels: false, no_wait: false, changes: 0 }, 10_000),
        ("two nodes, three modes", Rules { nodes: 2, modes: three, cancels: true, no_wait: false, changes: 0 }, 10_000),
        ("two nodes, all events", Rules { nodes: 2, modes: &[Exclusive], cancels: true, no_wait: true, changes: 2 }, 1_000),
        ("two nodes, modes and a change", Rules { nodes: 2, modes: three, cancels: false, no_wait: false, changes: 1 }, 10_000),
        ("three nodes, changes", Rules { nodes: 3, modes: &[Exclusive], cancels: false, no_wait: false, changes: 2 }, 10_000),
        ("three nodes, conversions", Rules { nodes: 3, modes: both, cancels: false, no_wait: false, changes: 0 }, 10_000),
        ("three nodes, cancels", Rules { nodes: 3, modes: &[Exclusive], cancels: true, no_wait: false, changes: 0 }, 1_000),
    ] {
        let started = std::time::Instant::now();
        let states = explore(&rules);
        println!("{name}: {states} states in {:?}", started.elapsed());
        assert!(states >= at_least, "{name}: only {states} states: the world has stopped moving");
    }
}
