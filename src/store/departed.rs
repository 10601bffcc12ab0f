//! What a node does about the transactions of one that has died: asks its own shards about those that went over several,
//! and ends what is unfinished.
//!
//! In one shard's thread each; the shards speak by letters. A settling is carried out by one survivor; if that dies, too, or
//! goes on where another has been asked, nothing is lost: every step looks at the slots as they are by then. Bounded by the
//! dead node's transaction tables.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use crate::cache::LocalFuture;
use crate::ids::{NodeId, ShardId, TxnId};
use crate::reactor::{Class, Reactor, Remote};
use crate::txn::{OtherShards, TxnError, TxnState, Txns};

use super::StoreError;
use super::backend::Backend;
use super::engine::NodeStore;
use super::several::Settled;
use super::shard::ShardEngine;

/// How often a shard that has not opened yet is looked for.
const OPENING_RETRY_MS: u64 = 1;

/// Whose transactions are settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Whose {
    /// This node's, from its former life.
    Own,
    /// A dead node's, by this call.
    Departed(NodeId, u64),
}

/// The dead nodes' transactions that a shard is settling, and for which call.
#[derive(Default)]
pub(super) struct Adopted(RefCell<BTreeMap<NodeId, (u64, Txns)>>);

impl NodeStore {
    /// Ends everything that a dead node has left unfinished, in all its shards: commits over several shards as their logs
    /// say, all else rolled back, rows and all; durable when it returns. The node is fenced and no member, its redo is
    /// replayed or its blocks are held back until it is; it must not come back before this has returned. Meanwhile everybody
    /// may use its rows. For one survivor; dropped or failed half-way, it is to be called again, there or elsewhere.
    /// Nothing is left to do the second time.
    ///
    /// # Errors
    /// Faults; [`StoreError::Unavailable`] where a later call has taken over.
    pub async fn settle_dead_node(&self, node: NodeId) -> Result<Settled, StoreError> {
        let whose = Whose::Departed(node, self.next_number());
        let shards = || (0..Backend::shards(self)).map(ShardId);
        for shard in shards() {
            self.in_shard(shard, async move |engine: Rc<ShardEngine>| engine.adopt(whose).await).await?;
        }
        let mut settled = self.settle_between_shards(whose).await?;
        let mut answers = Vec::new();
        for shard in shards() {
            let roll_back = async move |engine: Rc<ShardEngine>| match engine.txns_of(whose)? {
                Some(txns) => Ok(txns.roll_back_unfinished().await?),
                None => Ok(0),
            };
            answers.push((shard, self.start(shard, roll_back)?));
        }
        for (shard, answer) in answers {
            settled.undone += answer.await.unwrap_or(Err(StoreError::ShardGone(shard)))?;
        }
        for shard in shards() {
            self.in_shard(shard, async move |engine: Rc<ShardEngine>| engine.let_go(whose)).await?;
        }
        tracing::info!(%node, ?settled, "the transactions of a dead node have ended");
        Ok(settled)
    }
}

impl ShardEngine {
    async fn adopt(&self, whose: Whose) -> Result<(), StoreError> {
        let Whose::Departed(node, call) = whose else { unreachable!("own transactions are not adopted") };
        let adopted = self.txns().adopt(node).await?;
        let mut all = self.adopted.0.borrow_mut();
        if all.get(&node).is_some_and(|(later, _)| *later > call) {
            return Err(taken_over(node));
        }
        match adopted {
            Some(txns) => all.insert(node, (call, txns)),
            None => all.remove(&node),
        };
        Ok(())
    }

    /// The transactions meant, in this shard; `None`: that node has none here.
    pub(super) fn txns_of(&self, whose: Whose) -> Result<Option<Txns>, StoreError> {
        let Whose::Departed(node, call) = whose else { return Ok(Some(self.txns().clone())) };
        match self.adopted.0.borrow().get(&node) {
            Some((adopted_for, txns)) if *adopted_for == call => Ok(Some(txns.clone())),
            Some(_) => Err(taken_over(node)),
            None => Ok(None),
        }
    }

    fn let_go(&self, whose: Whose) -> Result<(), StoreError> {
        if let (Whose::Departed(node, _), Some(_)) = (whose, self.txns_of(whose)?) {
            self.adopted.0.borrow_mut().remove(&node);
        }
        Ok(())
    }
}

fn taken_over(node: NodeId) -> StoreError {
    StoreError::Unavailable { reason: format!("the transactions of {node} are being ended by a later call") }
}

/// Has a shard's transactions ask the node's other shards about those of dead nodes. To be called as it opens.
pub fn ask_other_shards(txns: &Txns, shards: Vec<Remote>) {
    txns.attach_other_shards(Rc::new(ByMail(shards)));
}

struct ByMail(Vec<Remote>);

impl ByMail {
    fn ask<T: Send + 'static>(
        &self,
        shard: ShardId,
        question: impl AsyncFnOnce(Txns) -> Result<T, TxnError> + Send + 'static,
    ) -> LocalFuture<Result<T, TxnError>> {
        let remote = self.0[usize::from(shard.0)].clone();
        let gone = move || TxnError::Unavailable(format!("{shard} of this node has ended"));
        Box::pin(async move {
            let work = move |reactor: Reactor| async move { question(engine(&reactor).await.txns().clone()).await };
            let called = remote.call_when_room(Class::High, "state of a dead node's transaction", work).await;
            called.map_err(|_| gone())?.await.map_err(|_| gone())?
        })
    }
}

async fn engine(reactor: &Reactor) -> Rc<ShardEngine> {
    loop {
        match reactor.local::<ShardEngine>() {
            Some(engine) => return engine,
            None => reactor.sleep(Duration::from_millis(OPENING_RETRY_MS)).await,
        }
    }
}

impl OtherShards for ByMail {
    fn departed_outcome(&self, txn: TxnId) -> LocalFuture<Result<Option<TxnState>, TxnError>> {
        self.ask(txn.shard(), async move |txns: Txns| txns.departed_outcome(txn).await)
    }

    fn has_departed_promise(&self, shard: ShardId, home: TxnId) -> LocalFuture<Result<bool, TxnError>> {
        self.ask(shard, async move |txns: Txns| txns.has_departed_promise(home).await)
    }
}
