//! Finding circles of waiting transactions over all nodes: edge chasing (Chandy, Misra, Haas 1983), the youngest dies.
//!
//! Pure steps over what one node knows. A transaction that has waited for a while sends a probe along its wait, which
//! follows: a waiting transaction, to the master of what it waits for; there, to the nodes whose locks are in the way; there,
//! to the transactions that use them; and so on. The probe carries the path. When it comes back to its first transaction,
//! the path is a circle, and the youngest on it loses its wait. Every member may find the circle; all of them find the
//! same youngest, and the wait that it is to lose is named by number, so it loses it once.
//! Bounds: [`PATH_MAX`] transactions on a path, [`STEPS_MAX`] steps at a time on a node. Longer circles are not found by
//! one probe, but by those of other members after some of them have died or timed out.

use super::core::{Blocker, LockKey};
use super::local::WaitId;
use super::types::{LockMode, LockOwner, Resource, SessionId};
use crate::ids::{NodeId, TxnId};

/// Most transactions on a probe's path.
pub const PATH_MAX: usize = 32;

/// Most steps that one probe may cause on one node at a time.
pub const STEPS_MAX: usize = 1_000;

/// A waiting transaction on a probe's path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Waiter {
    /// The transaction.
    pub txn: TxnId,
    /// When it began, as an SCN: the highest is the youngest.
    pub began: u64,
    /// The wait that it has.
    pub wait: WaitId,
}

/// Where a probe goes next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Target {
    /// To a transaction's home: what does it wait for?
    Transaction(TxnId),
    /// To the shard of this node in which a session waits: its transaction may have another id in each. Never to another
    /// node.
    Session(SessionId),
    /// To a resource's master: who is in the way of this request?
    Request(Resource, LockKey),
    /// To a node that has (or asked before for) a lock: which of its users are in the way?
    Users {
        /// On what.
        resource: Resource,
        /// In the way of which mode.
        wanted: LockMode,
        /// Those who use the lock that the node has.
        holds: bool,
        /// Those whose request the node sent before.
        ahead: bool,
    },
}

/// A search for a circle.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Probe {
    /// Where it goes.
    pub target: Target,
    /// The transactions that it has come along, each waiting for the next; the first started the search.
    pub path: Vec<Waiter>,
}

/// What a transaction waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WaitsOn {
    /// The end of another transaction.
    Transaction(TxnId),
    /// Users of locks on its own node.
    Users(Vec<LockOwner>),
    /// Its node's request at a master.
    Master(Resource, LockKey),
}

/// What a node knows of waits.
pub trait Waits {
    /// The wait of a transaction of this node, if it has one.
    fn wait_of(&self, txn: TxnId) -> Option<(Waiter, WaitsOn)>;
    /// The session of this node to which a transaction belongs.
    fn session_of(&self, txn: TxnId) -> Option<SessionId>;
    /// The transaction that a session of this node has in this shard.
    fn transaction_of(&self, session: SessionId) -> Option<TxnId>;
    /// At the master: the mode wanted by a waiting request, and who is in its way.
    fn blockers(&self, resource: Resource, key: LockKey) -> Option<(LockMode, Vec<Blocker>)>;
    /// The users of this node that are in the way; see [`Target::Users`].
    fn users_in_the_way(&self, resource: Resource, wanted: LockMode, holds: bool, ahead: bool) -> Vec<LockOwner>;
    /// Who masters a resource.
    fn master(&self, resource: &Resource) -> NodeId;
}

/// What follows from a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// The probe goes on at another node.
    Send(NodeId, Probe),
    /// The session doesn't wait in this shard; perhaps in another of this node.
    OtherShards(Probe),
    /// A circle: this transaction (of that node) is its youngest, and loses this wait.
    Victim(NodeId, TxnId, WaitId),
}

/// Follows a probe on node `us` as far as it goes here.
pub fn follow(us: NodeId, probe: Probe, waits: &impl Waits, out: &mut Vec<Next>) {
    let mut todo = vec![probe];
    let mut steps = 0;
    while let Some(probe) = todo.pop() {
        steps += 1;
        if steps > STEPS_MAX {
            return;
        }
        let to = match probe.target {
            Target::Transaction(txn) => txn.node(),
            Target::Request(resource, _) => waits.master(&resource),
            Target::Session(_) | Target::Users { .. } => us,
        };
        if to != us {
            out.push(Next::Send(to, probe));
            continue;
        }
        match probe.target {
            Target::Transaction(txn) => at_transaction(txn, probe, waits, &mut todo, out),
            Target::Session(session) => match waits.transaction_of(session) {
                Some(txn) => at_transaction(txn, probe, waits, &mut todo, out),
                None => out.push(Next::OtherShards(probe)),
            },
            Target::Request(resource, key) => at_master(us, resource, key, &probe, waits, &mut todo, out),
            Target::Users { resource, wanted, holds, ahead } => {
                for owner in waits.users_in_the_way(resource, wanted, holds, ahead) {
                    along(owner, &probe, &mut todo);
                }
            }
        }
    }
}

fn along(owner: LockOwner, probe: &Probe, todo: &mut Vec<Probe>) {
    let target = match owner {
        LockOwner::Transaction(txn) => Target::Transaction(txn),
        LockOwner::Session(session) => Target::Session(session),
        // A node that holds a lock for itself waits for nobody.
        LockOwner::Node(_) => return,
    };
    todo.push(Probe { target, path: probe.path.clone() });
}

fn at_transaction(txn: TxnId, mut probe: Probe, waits: &impl Waits, todo: &mut Vec<Probe>, out: &mut Vec<Next>) {
    match probe.path.iter().position(|waiter| waiter.txn == txn) {
        Some(0) => {
            let youngest = probe.path.iter().max_by_key(|waiter| (waiter.began, waiter.txn)).expect("it has a first one");
            out.push(Next::Victim(youngest.txn.node(), youngest.txn, youngest.wait));
            return;
        }
        // A circle that the first transaction is not part of: its members look for it themselves.
        Some(_) => return,
        None if probe.path.len() >= PATH_MAX => return,
        None => {}
    }
    let Some((waiter, on)) = waits.wait_of(txn) else {
        if !probe.path.is_empty()
            && let Some(session) = waits.session_of(txn)
        {
            out.push(Next::OtherShards(Probe { target: Target::Session(session), path: probe.path }));
        }
        return;
    };
    probe.path.push(waiter);
    match on {
        WaitsOn::Transaction(holder) => todo.push(Probe { target: Target::Transaction(holder), path: probe.path }),
        WaitsOn::Master(resource, key) => todo.push(Probe { target: Target::Request(resource, key), path: probe.path }),
        WaitsOn::Users(users) => {
            for owner in users {
                along(owner, &probe, todo);
            }
        }
    }
}

fn at_master(
    us: NodeId,
    resource: Resource,
    key: LockKey,
    probe: &Probe,
    waits: &impl Waits,
    todo: &mut Vec<Probe>,
    out: &mut Vec<Next>,
) {
    // Granted meanwhile: the search has lost its track, and that is good news.
    let Some((wanted, blockers)) = waits.blockers(resource, key) else { return };
    for Blocker { key, holds, ahead } in blockers {
        let probe = Probe { target: Target::Users { resource, wanted, holds, ahead }, path: probe.path.clone() };
        if key.node == us {
            todo.push(probe);
        } else {
            out.push(Next::Send(key.node, probe));
        }
    }
}
