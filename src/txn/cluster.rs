//! Transactions of several nodes: the messages of the `Txn` service, and the agent that sends and answers them.
//!
//! Owned by one shard; shard i talks to shard i of the peers. What is asked and not yet answered is bounded by the tasks
//! that wait for it. The *members* of the view are asked, told and waited for, whether they are connected or not: a member
//! that is only disconnected may serve reads until it is fenced, so a commit waits until it knows, or until a view without
//! it is entered ([`ClusterPeers::enter`]). From there to [`ClusterPeers::go`] nothing is asked or told, because who is
//! still in the former epoch would drop it; at `go` everything unanswered is said again. The messages (kinds from
//! [`Service::Txn`] on):
//!
//! | message | argument | meaning |
//! |---|---|---|
//! | STATE, STATE_IS | transaction; SCN | what became of it; answered once it is not committing |
//! | COMMIT, COMMIT_KNOWN | SCN | commits up to here; acknowledged once the clock has taken notice. By RDMA instead where there is any |
//! | OLDEST | SCN | my oldest snapshot |
//! | FORGET, FORGOTTEN | | the partition in the block's place is being dropped |
//!
//! How a transaction has ended is first looked for on its node's board, where there is RDMA ([`Interconnect::read_published`]).
//!
//! Every message carries the sender's clock, and the clock has observed it before a handler runs: so a transaction that
//! answers "active" commits above the asker's snapshot.

mod published;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::{Rc, Weak};

use crate::cache::LocalFuture;
use crate::ids::{BlockId, BlockNo, NodeId, PartitionId, RequestId, Scn, TxnId};
use crate::interconnect::{Body, Handler, Header, Interconnect, Message, Service};
use crate::reactor::Class;
use crate::reactor::sync::{Notify, OneshotSender, oneshot};

use super::broadcast::{Announcement, Broadcast};
use super::error::TxnError;
use super::manager::{Inner as TxnsInner, NodeShared, Peers, Txns};
use super::visibility::TxnState;

const STATE: u8 = Service::Txn.base();
const STATE_IS: u8 = STATE + 1;
const COMMIT: u8 = STATE + 2;
const COMMIT_KNOWN: u8 = STATE + 3;
const OLDEST: u8 = STATE + 4;
const FORGET: u8 = STATE + 5;
const FORGOTTEN: u8 = STATE + 6;

/// In an answer's mode.
const ACTIVE: u8 = 0;
const COMMITTED: u8 = 1;
const ABORTED: u8 = 2;
const OK: u8 = 0;
const FAILED: u8 = 3;
const COMMITTED_BY: u8 = 4;

/// An answer; `None`: the one who owes it is no member any more.
type Answer = Option<(u8, u64)>;

/// What is asked and not answered.
struct Asked {
    to: NodeId,
    message: Message,
    answer: OneshotSender<Answer>,
}

/// The other nodes, for one shard's transactions: states, broadcast on commit, oldest snapshots.
#[derive(Clone)]
pub struct ClusterPeers(Rc<Inner>);

struct Inner {
    interconnect: Interconnect,
    shared: NodeShared,
    /// Whether this shard tells of the node's snapshots.
    announcer: bool,
    txns: RefCell<Weak<TxnsInner>>,
    attached: Notify,
    broadcast: RefCell<Broadcast>,
    /// The broadcast has gone forward.
    acknowledged: Notify,
    pending: RefCell<HashMap<u64, Asked>>,
    requests: Cell<u64>,
    /// The other members of the view.
    members: RefCell<BTreeSet<NodeId>>,
    /// Between entering a view and its `go`.
    silent: Cell<bool>,
    /// Clock readings at which members have left, in this node's life.
    left_at: RefCell<BTreeMap<NodeId, Scn>>,
}

impl ClusterPeers {
    /// The peers over this shard's interconnect, all of them members of a view in which all serve; to be made the handler of
    /// [`Service::Txn`] at once. `announcer`: true for one shard of the node.
    #[must_use]
    pub fn new(interconnect: &Interconnect, shared: NodeShared, announcer: bool) -> ClusterPeers {
        let peers = ClusterPeers::entering(interconnect, shared, announcer);
        peers.0.members.borrow_mut().extend(interconnect.peers());
        interconnect.let_tell(&peers.0.members.borrow());
        peers.0.silent.set(false);
        peers
    }

    /// As [`ClusterPeers::new`], for a node that is in no view yet: says nothing before [`ClusterPeers::enter`] and
    /// [`ClusterPeers::go`].
    #[must_use]
    pub fn entering(interconnect: &Interconnect, shared: NodeShared, announcer: bool) -> ClusterPeers {
        ClusterPeers(Rc::new(Inner {
            interconnect: interconnect.clone(),
            shared,
            announcer,
            txns: RefCell::default(),
            attached: Notify::new(),
            broadcast: RefCell::default(),
            acknowledged: Notify::new(),
            pending: RefCell::default(),
            requests: Cell::new(1),
            members: RefCell::default(),
            silent: Cell::new(true),
            left_at: RefCell::default(),
        }))
    }

    /// Enters a view: its members, this node among them or not. Every node that left is fenced by now: commits no longer wait
    /// for it, and its snapshots hold nothing back. Nothing is said until [`ClusterPeers::go`]. What was asked of a node
    /// that stays, or that has left, stays asked until then. Twice in a row is harmless.
    pub fn enter(&self, members: &[NodeId]) {
        let inner = &self.0;
        let members: BTreeSet<NodeId> = members.iter().copied().filter(|node| *node != inner.interconnect.node()).collect();
        inner.silent.set(true);
        // Whoever has left must not come to think that a commit of his is known here: others may have come that do not know of it.
        inner.interconnect.let_tell(&members);
        let before = inner.members.replace(members.clone());
        for &gone in before.difference(&members) {
            // Drawn, so that it is above every snapshot in use here. Whatever the node has told anybody lies below, too.
            let now = inner.shared.clock.next(inner.interconnect.reactor().wall_ms());
            inner.left_at.borrow_mut().insert(gone, now);
            if inner.announcer {
                inner.shared.snapshots.peer_down(gone);
            }
        }
        if inner.announcer {
            members.difference(&before).for_each(|&new| inner.shared.snapshots.peer_up(new));
        }
        inner.broadcast.borrow_mut().enter(&members);
        inner.acknowledged.notify_all();
    }

    /// All members are in the view: they are told of all commits, and what is not answered is asked again. Whoever waits
    /// for an answer of a node that has left is told so.
    pub fn go(&self) {
        if !self.0.silent.replace(false) {
            return;
        }
        let members = self.0.members.borrow().clone();
        members.iter().for_each(|&member| self.greet(member));
        let mut lost = Vec::new();
        self.0.pending.borrow_mut().retain(|_, asked| {
            let stays = members.contains(&asked.to);
            if !stays {
                lost.push(std::mem::replace(&mut asked.answer, oneshot().0));
            }
            stays
        });
        for answer in lost {
            // Whoever asked may have gone away.
            let _ = answer.send(None);
        }
        members.iter().for_each(|&member| self.ask_again(member));
    }

    fn speaks_to(&self, node: NodeId) -> bool {
        !self.0.silent.get() && self.0.members.borrow().contains(&node)
    }

    /// Tells a member everything up to the clock.
    fn greet(&self, node: NodeId) {
        let mut announcements = Vec::new();
        self.0.broadcast.borrow_mut().peer_up(node, self.0.shared.clock.latest(), &mut announcements);
        self.announce_all(announcements);
    }

    fn ask_again(&self, node: NodeId) {
        // In the order in which they were asked, so that a run can be repeated.
        let of_node: BTreeMap<u64, Message> = {
            let pending = self.0.pending.borrow();
            pending.iter().filter(|(_, asked)| asked.to == node).map(|(&request, asked)| (request, asked.message)).collect()
        };
        for (request, message) in of_node {
            self.send(node, Message { request: RequestId(request), ..message });
        }
    }

    /// The shard's transactions are open: questions about them can be answered from now on. By now every peer that is
    /// connected must have entered the epoch: those that connected before this was their handler are greeted here.
    pub fn attach(&self, txns: &Txns) {
        let new = |peer: &NodeId| self.speaks_to(*peer) && !self.0.broadcast.borrow().has(*peer);
        self.0.interconnect.up_peers().into_iter().filter(new).for_each(|peer| self.on_peer_up(peer));
        *self.0.txns.borrow_mut() = Rc::downgrade(&txns.0);
        self.0.attached.notify_all();
    }

    fn send(&self, to: NodeId, message: Message) -> bool {
        // What doesn't reach a member is said again when it connects, or at the next `go`.
        self.0.interconnect.send(to, message, Body::Empty).is_ok()
    }

    fn announce_all(&self, announcements: Vec<Announcement>) {
        for Announcement { to, scn } in announcements {
            let Some(told) = self.0.interconnect.tell(to, scn) else {
                self.send(to, Message { kind: COMMIT, argument: scn.0, ..Message::default() });
                continue;
            };
            let (peers, epoch) = (self.clone(), self.0.interconnect.epoch());
            self.spawn(async move {
                let is_told = told.await;
                // What was under way in a former epoch is void.
                if peers.0.interconnect.epoch() != epoch || !peers.speaks_to(to) {
                    return;
                }
                if is_told {
                    peers.on_known(to, scn);
                } else {
                    peers.send(to, Message { kind: COMMIT, argument: scn.0, ..Message::default() });
                }
            });
        }
    }

    /// A member's clock stands at or above this.
    fn on_known(&self, node: NodeId, scn: Scn) {
        let mut announcements = Vec::new();
        self.0.broadcast.borrow_mut().acknowledged(node, scn, &mut announcements);
        self.announce_all(announcements);
        self.0.acknowledged.notify_all();
    }

    /// Sends a request; the answer comes through what is returned, `None` if the peer is no member, now or at a later `go`.
    fn ask(&self, to: NodeId, message: Message) -> LocalFuture<Answer> {
        let request = self.0.requests.get();
        self.0.requests.set(request + 1);
        let (sender, receiver) = oneshot();
        if self.0.silent.get() || self.speaks_to(to) {
            self.0.pending.borrow_mut().insert(request, Asked { to, message, answer: sender });
        }
        if self.speaks_to(to) {
            self.send(to, Message { request: RequestId(request), ..message });
        }
        let pending = Pending { peers: self.clone(), request };
        let answer = async move {
            let answer = receiver.await.unwrap_or(None);
            drop(pending);
            answer
        };
        Box::pin(answer)
    }

    fn answer(&self, to: NodeId, kind: u8, request: RequestId, mode: u8, argument: u64) {
        self.send(to, Message { kind, request, mode, argument, ..Message::default() });
    }

    /// The shard's transactions; waits until they are open.
    async fn txns(&self) -> Txns {
        loop {
            let attached = self.0.attached.notified();
            if let Some(inner) = self.0.txns.borrow().upgrade() {
                return Txns(inner);
            }
            attached.await;
        }
    }

    /// How a transaction of a member has ended, if that stands on its node's board. It is read there without its taking part, so
    /// nothing but what never changes counts: that node has not heard of the asker's clock.
    async fn published_outcome(&self, txn: TxnId) -> Option<TxnState> {
        let node = txn.node();
        if !self.speaks_to(node) {
            return None;
        }
        let record = self.0.interconnect.read_published(node, txn.slot()).await?;
        // Of who is no member any more, its slot tells.
        let outcome = published::outcome_in(txn, record).filter(|_| self.speaks_to(node))?;
        if let TxnState::Committed(scn) = outcome {
            self.0.shared.clock.observe(scn);
        }
        Some(outcome)
    }

    fn spawn(&self, work: impl Future<Output = ()> + 'static) {
        self.0.interconnect.reactor().spawn(Class::High, "transaction message", work);
    }

    fn on_state(&self, from: NodeId, request: RequestId, txn: TxnId) {
        let peers = self.clone();
        // Most answers need no task: the state is known and stays.
        let ready = self.0.txns.borrow().upgrade().map(Txns).and_then(|txns| match txns.known_state(txn) {
            Ok(Some(TxnState::Committing(_)) | None) => None,
            state => Some(state.map(|state| state.expect("an own transaction has a state"))),
        });
        if let Some(state) = ready {
            return self.answer_state(from, request, state);
        }
        self.spawn(async move {
            let state = peers.txns().await.own_state(txn).await;
            peers.answer_state(from, request, state);
        });
    }

    fn answer_state(&self, to: NodeId, request: RequestId, state: Result<TxnState, TxnError>) {
        let (mode, scn) = match state {
            Ok(TxnState::Active) => (ACTIVE, Scn::ZERO),
            Ok(TxnState::Committed(scn)) => (COMMITTED, scn),
            Ok(TxnState::CommittedBy(scn)) => (COMMITTED_BY, scn),
            Ok(TxnState::Aborted) => (ABORTED, Scn::ZERO),
            Ok(TxnState::Committing(_)) => unreachable!("a state is told once it is settled"),
            Err(error) => {
                tracing::error!(%to, %error, "a peer asks for a transaction that this node does not know");
                (FAILED, Scn::ZERO)
            }
        };
        self.answer(to, STATE_IS, request, mode, scn.0);
    }
}

/// Forgets a request whose asker went away.
struct Pending {
    peers: ClusterPeers,
    request: u64,
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.peers.0.pending.borrow_mut().remove(&self.request);
    }
}

impl Peers for ClusterPeers {
    fn state(&self, txn: TxnId) -> LocalFuture<Result<Option<TxnState>, TxnError>> {
        let peers = self.clone();
        Box::pin(async move {
            if let Some(outcome) = peers.published_outcome(txn).await {
                return Ok(Some(outcome));
            }
            match peers.ask(txn.node(), Message { kind: STATE, argument: txn.raw(), ..Message::default() }).await {
                Some((ACTIVE, _)) => Ok(Some(TxnState::Active)),
                Some((COMMITTED, scn)) => Ok(Some(TxnState::Committed(Scn(scn)))),
                Some((COMMITTED_BY, scn)) => Ok(Some(TxnState::CommittedBy(Scn(scn)))),
                Some((ABORTED, _)) => Ok(Some(TxnState::Aborted)),
                Some(_) => Err(TxnError::unknown_transaction(txn)),
                None => Ok(None),
            }
        })
    }

    fn publish(&self, txn: TxnId, outcome: TxnState) {
        assert_eq!(txn.node(), self.0.interconnect.node(), "{txn} is not this node's to tell of");
        if let Some(record) = published::record_of(txn, outcome) {
            self.0.interconnect.publish(txn.slot(), record);
        }
    }

    fn left_at(&self, node: NodeId) -> Scn {
        self.0.left_at.borrow().get(&node).copied().unwrap_or(Scn::ZERO)
    }

    fn announce(&self, scn: Scn) {
        if self.0.silent.get() {
            // `go` tells of everything up to the clock.
            return;
        }
        let mut announcements = Vec::new();
        self.0.broadcast.borrow_mut().announce(scn, &mut announcements);
        self.announce_all(announcements);
    }

    fn known(&self, scn: Scn) -> LocalFuture<()> {
        let peers = self.clone();
        Box::pin(async move {
            loop {
                let acknowledged = peers.0.acknowledged.notified();
                if peers.0.broadcast.borrow().is_known(scn) {
                    return;
                }
                acknowledged.await;
            }
        })
    }

    fn tell_oldest(&self, oldest: Scn) {
        for peer in self.0.interconnect.up_peers() {
            if self.speaks_to(peer) {
                self.send(peer, Message { kind: OLDEST, argument: oldest.0, ..Message::default() });
            }
        }
    }

    fn forget_partition(&self, partition: PartitionId) -> LocalFuture<Result<(), TxnError>> {
        let block = BlockId::new(partition, BlockNo(0));
        let members: Vec<NodeId> = self.0.members.borrow().iter().copied().collect();
        let answers: Vec<_> =
            members.into_iter().map(|peer| self.ask(peer, Message { kind: FORGET, block, ..Message::default() })).collect();
        Box::pin(async move {
            for answer in answers {
                // A node that has left the members has lost its cache, too; one that has come since never had the blocks.
                if let Some((FAILED, _)) = answer.await {
                    return Err(TxnError::Unavailable(format!("a peer could not give up its blocks of {partition}")));
                }
            }
            Ok(())
        })
    }
}

impl Handler for ClusterPeers {
    fn on_message(&self, from: NodeId, header: &Header, _body: Body) {
        let named = TxnId::from_raw(header.argument);
        match (header.kind, named) {
            (STATE, Some(txn)) => self.on_state(from, header.request, txn),
            (STATE_IS | FORGOTTEN, _) => {
                let pending = self.0.pending.borrow_mut().remove(&header.request.0);
                if let Some(Asked { answer, .. }) = pending {
                    // Whoever asked may have gone away.
                    let _ = answer.send(Some((header.mode, header.argument)));
                }
            }
            (COMMIT, _) => self.answer(from, COMMIT_KNOWN, header.request, OK, header.argument),
            (COMMIT_KNOWN, _) => self.on_known(from, Scn(header.argument)),
            (OLDEST, _) => self.0.shared.snapshots.peer_reported(from, Scn(header.argument)),
            (FORGET, _) => {
                let (peers, partition, request) = (self.clone(), header.block.partition, header.request);
                self.spawn(async move {
                    let mode = match peers.txns().await.forget_partition(partition).await {
                        Ok(()) => OK,
                        Err(error) => {
                            tracing::error!(%partition, %error, "the blocks of a dropped partition could not be given up");
                            FAILED
                        }
                    };
                    peers.answer(from, FORGOTTEN, request, mode, 0);
                });
            }
            (kind, _) => tracing::warn!(%from, kind, "a transaction message that makes no sense was ignored"),
        }
    }

    fn on_peer_up(&self, node: NodeId) {
        // A node that is no member yet is greeted when it has become one.
        if !self.speaks_to(node) {
            return;
        }
        if self.0.announcer {
            self.0.shared.snapshots.peer_up(node);
        }
        self.greet(node);
        self.ask_again(node);
    }

    // Nothing to do in `on_peer_down`: as long as the node is a member it may serve reads, and its answers are waited for.
}
