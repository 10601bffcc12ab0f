//! Every order of events in small worlds: three nodes that request, convert, cancel, unlock and die, with their messages
//! under way, around one master. Each state is looked at once (by hash); in each the promises of the core must hold.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashSet, VecDeque};
use std::hash::{Hash, Hasher};

use super::core::{GesCore, Input, LockKey, Output, Refusal, ValueChange};
use super::types::{LockMode, Resource, ResourceClass};
use crate::ids::NodeId;

const TABLE: Resource = Resource::new(ResourceClass::TABLE, 7, 0);

/// Most messages that a node, or the master from one node, leaves unread.
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
}

#[derive(Clone)]
struct World {
    core: GesCore,
    clients: Vec<Client>,
    to_master: Vec<VecDeque<Input>>,
    to_node: Vec<VecDeque<Output>>,
    deaths: usize,
}

struct Rules {
    nodes: usize,
    modes: &'static [LockMode],
    cancels: bool,
    no_wait: bool,
    deaths: usize,
}

fn key(node: usize) -> LockKey {
    LockKey { node: NodeId(node as u8 + 1), id: 1 }
}

impl World {
    fn new(rules: &Rules) -> World {
        World {
            core: GesCore::new(),
            clients: vec![Client::Idle; rules.nodes],
            to_master: vec![VecDeque::new(); rules.nodes],
            to_node: vec![VecDeque::new(); rules.nodes],
            deaths: 0,
        }
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.core.hash_parts(&mut hasher);
        (&self.clients, &self.to_master, &self.to_node, self.deaths).hash(&mut hasher);
        hasher.finish()
    }

    /// All states that one event leads to.
    fn next(&self, rules: &Rules) -> Vec<World> {
        let mut next = Vec::new();
        for node in 0..rules.nodes {
            if !self.to_master[node].is_empty() {
                let mut world = self.clone();
                let input = world.to_master[node].pop_front().unwrap();
                world.master(input);
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
        next
    }

    fn actions(&self, node: usize, rules: &Rules, next: &mut Vec<World>) {
        let mut act = |client: Client, input: Input| {
            let mut world = self.clone();
            world.clients[node] = client;
            world.to_master[node].push_back(input);
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
        if self.deaths < rules.deaths && self.clients[node] != Client::Dead {
            let mut world = self.clone();
            world.deaths += 1;
            world.clients[node] = Client::Dead;
            world.to_node[node].clear();
            world.to_master[node] = VecDeque::from([Input::NodeLost(key.node)]);
            next.push(world);
        }
    }

    fn master(&mut self, input: Input) {
        let before = self.core.queues(TABLE);
        let mut out = Vec::new();
        self.core.on(input, &mut out);
        self.core.invariants();
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
        for output in out {
            let (Output::Granted { key, .. } | Output::Refused { key, .. } | Output::Blocking { key, .. }) = output;
            let node = usize::from(key.node.0) - 1;
            if self.clients[node] != Client::Dead {
                self.to_node[node].push_back(output);
            }
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
                self.to_master[node].push_back(Input::Busy { resource: TABLE, key: key(node), wanted });
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
                || next.to_master.iter().any(|queue| queue.len() > UNREAD_MAX)
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
        ("two nodes, all modes", Rules { nodes: 2, modes: &LockMode::ALL, cancels: false, no_wait: false, deaths: 0 }, 10_000),
        ("two nodes, three modes", Rules { nodes: 2, modes: three, cancels: true, no_wait: false, deaths: 0 }, 10_000),
        ("two nodes, all events", Rules { nodes: 2, modes: &[Exclusive], cancels: true, no_wait: true, deaths: 1 }, 1_000),
        ("three nodes, conversions", Rules { nodes: 3, modes: both, cancels: false, no_wait: false, deaths: 0 }, 10_000),
        ("three nodes, cancels", Rules { nodes: 3, modes: &[Exclusive], cancels: true, no_wait: false, deaths: 0 }, 1_000),
    ] {
        let started = std::time::Instant::now();
        let states = explore(&rules);
        println!("{name}: {states} states in {:?}", started.elapsed());
        assert!(states >= at_least, "{name}: only {states} states: the world has stopped moving");
    }
}
