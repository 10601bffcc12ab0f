//! Commits over several shards, carried out by a task of the home shard: promises and decision go to the logs at once, one
//! round of parallel writes, and the outcome comes to every branch whatever becomes of the client meanwhile.
//!
//! In one shard's thread; speaks with the node's other shards by letters. Bounded by the transaction tables. What is written
//! when, and why a crash at any moment leaves all or nothing: `txn::several` and docs/transactions.md.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Duration;

use crate::ids::{Scn, ShardId, TxnId};
use crate::reactor::Class;
use crate::reactor::sync::{CrossReceiver, CrossSender, cross_oneshot};
use crate::txn::several::{Promise, resolve};
use crate::txn::{HOUSEKEEPING_MS, Left, TxnError};

use super::StoreError;
use super::backend::Backend;
use super::departed::Whose;
use super::engine::NodeStore;
use super::shard::{Branch, ShardEngine};
use super::types::Committed;

/// How long a letter that must arrive waits for room in a full mailbox before it is tried again.
const MAILBOX_RETRY_MS: u64 = 1;

/// What a shard keeps for commits over several shards.
#[derive(Default)]
pub(super) struct Several {
    /// Branches here that have promised to follow a home, by home. Not their session's any more.
    promised: RefCell<HashMap<TxnId, Rc<Branch>>>,
    /// Homes here that are committed and whose slots, and those of their branches, do not say so plainly yet.
    kept: RefCell<Vec<Kept>>,
    settling: Cell<bool>,
}

/// A commit whose traces are still to be tidied.
struct Kept {
    home: TxnId,
    scn: Scn,
    branches: Vec<TxnId>,
}

/// What restarting nodes found between their shards, or a survivor in those of a dead node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settled {
    /// Decisions with all their promises: committed.
    pub committed: usize,
    /// Decisions that lacked a promise: rolled back.
    pub rolled_back: usize,
    /// Promises, settled by their home's outcome.
    pub branches: usize,
    /// Of a dead node: unfinished transactions, a branch each, that were rolled back.
    pub undone: usize,
}

/// A branch's answers: that its promise is in the log's memory, and that it is durable.
struct Promised {
    shard: ShardId,
    made: CrossReceiver<Result<Option<Promise>, StoreError>>,
    durable: CrossReceiver<Result<(), StoreError>>,
}

impl NodeStore {
    /// Takes up what the node's former life left between its shards. Once all shards are open, before clients are let in.
    ///
    /// # Errors
    /// Faults.
    pub async fn settle_branches(&self) -> Result<Settled, StoreError> {
        let settled = self.settle_between_shards(Whose::Own).await?;
        if settled != Settled::default() {
            tracing::info!(?settled, "commits over several shards that a crash had interrupted have been settled");
        }
        Ok(settled)
    }

    pub(super) async fn settle_between_shards(&self, whose: Whose) -> Result<Settled, StoreError> {
        let mut left = Vec::new();
        for shard in (0..Backend::shards(self)).map(ShardId) {
            let unsettled = async move |engine: Rc<ShardEngine>| Ok(engine.txns_of(whose)?.map(|txns| txns.unsettled()));
            left.extend(self.in_shard(shard, unsettled).await?.into_iter().flatten());
        }
        // The homes first: as long as a promise stands, its home's slot must say how it ended.
        let decisions = resolve(&left);
        let committed = decisions.iter().filter(|(_, scn)| scn.is_some()).count();
        let rolled_back = decisions.len() - committed;
        self.settle_all(whose, decisions).await?;
        let mut branches = Vec::new();
        for (branch, home) in left.iter().filter_map(|unfinished| match unfinished.left {
            Left::Branch { home } => Some((unfinished.txn, home)),
            _ => None,
        }) {
            let outcome = async move |engine: Rc<ShardEngine>| match engine.txns_of(whose)? {
                Some(txns) => Ok(txns.home_outcome(home).await?),
                None => Ok(None),
            };
            branches.push((branch, self.in_shard(home.shard(), outcome).await?));
        }
        let settled = Settled { committed, rolled_back, branches: branches.len(), undone: 0 };
        self.settle_all(whose, branches).await?;
        Ok(settled)
    }

    async fn settle_all(&self, whose: Whose, outcomes: Vec<(TxnId, Option<Scn>)>) -> Result<(), StoreError> {
        let mut by_shard: BTreeMap<ShardId, Vec<_>> = BTreeMap::new();
        for outcome in outcomes {
            by_shard.entry(outcome.0.shard()).or_default().push(outcome);
        }
        for (shard, outcomes) in by_shard {
            let settle = async move |engine: Rc<ShardEngine>| match engine.txns_of(whose)? {
                Some(txns) => Ok(txns.settle(&outcomes).await?),
                None => Ok(()),
            };
            self.in_shard(shard, settle).await?;
        }
        Ok(())
    }

    /// Commits a session's transaction over several shards.
    pub(super) async fn commit_over(&self, session: u64, home: ShardId, others: Vec<ShardId>) -> Result<Committed, StoreError> {
        let store = self.clone();
        self.end_in_shard(home, async move |engine| engine.commit_several(&store, session, others).await).await
    }
}

impl ShardEngine {
    async fn commit_several(
        self: &Rc<Self>,
        store: &NodeStore,
        session: u64,
        others: Vec<ShardId>,
    ) -> Result<Committed, StoreError> {
        let Some(home) = self.take_branch(session).await else {
            // Its client has given it up.
            return Err(StoreError::Canceled);
        };
        let id = match self.txns().identify(&home.txn).await {
            Ok(id) => id,
            Err(error) => {
                for shard in others {
                    let letter = move |engine: Rc<ShardEngine>, sender: CrossSender<_>| {
                        engine.clone().spawn(async move {
                            engine.roll_back(session).await;
                            sender.send(Ok(()));
                        });
                    };
                    drop(self.tell(store, shard, letter).await?);
                }
                self.give_up(&home.txn).await;
                return Err(error.into());
            }
        };
        let asked: Vec<_> = others.iter().map(|&shard| ask_for_promise(store, shard, session, id)).collect();
        let (mut promises, mut durable, mut failed) = (Vec::new(), Vec::new(), None);
        for promised in asked {
            match promised {
                Ok(Promised { shard, made, durable: written }) => match made.await.unwrap_or(Err(StoreError::ShardGone(shard))) {
                    Ok(Some(promise)) => {
                        promises.push(promise);
                        durable.push((shard, written));
                    }
                    Ok(None) => {}
                    Err(error) => failed = Some(error),
                },
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            return Err(self.break_off(store, session, &home, id, &others).await.err().unwrap_or(error));
        }
        let committed = if promises.is_empty() {
            self.txns().commit(&home.txn).await
        } else {
            let parts = promises.iter().map(|promise| promise.branch.shard()).collect();
            let promises_durable = async {
                for (shard, written) in durable {
                    let written = written.await.unwrap_or(Err(StoreError::ShardGone(shard)));
                    written.map_err(|error| TxnError::Io(error.to_string()))?;
                }
                Ok(())
            };
            self.txns().commit_home(&home.txn, parts, promises_durable).await.map(Some)
        };
        let scn = match committed {
            Ok(scn) => scn,
            // The log has failed, and the node with it.
            Err(error @ TxnError::CommitUnknown(_)) => return Err(error.into()),
            Err(error) => {
                self.break_off(store, session, &home, id, &others).await?;
                return Err(error.into());
            }
        };
        self.release_locks(&home.txn);
        let mut told = Vec::with_capacity(others.len());
        for &shard in &others {
            // Who reads there before the letter has come waits for it.
            let follow = move |engine: Rc<ShardEngine>, sender: CrossSender<_>| {
                engine.follow(id, scn);
                sender.send(Ok(()));
            };
            told.push((shard, self.tell(store, shard, follow).await?));
        }
        for (shard, told) in told {
            told.await.unwrap_or(Err(StoreError::ShardGone(shard)))?;
        }
        let Some(scn) = scn.filter(|_| !promises.is_empty()) else { return Ok(Committed { scn }) };
        let branches = promises.iter().map(|promise| promise.branch).collect();
        self.several.kept.borrow_mut().push(Kept { home: id, scn, branches });
        if !self.several.settling.replace(true) {
            let (engine, store) = (self.clone(), store.clone());
            self.reactor().spawn(Class::Low, "settling of commits", async move { engine.tidy(&store).await });
        }
        Ok(Committed { scn: Some(scn) })
    }

    /// Posts a letter that must arrive: waits for room in the shard's mailbox.
    async fn tell<T: Send + 'static>(
        &self,
        store: &NodeStore,
        shard: ShardId,
        letter: impl FnOnce(Rc<ShardEngine>, CrossSender<Result<T, StoreError>>) + Clone + Send + 'static,
    ) -> Result<CrossReceiver<Result<T, StoreError>>, StoreError> {
        loop {
            match store.post(shard, letter.clone()) {
                Err(StoreError::Overloaded { .. }) => self.reactor().sleep(Duration::from_millis(MAILBOX_RETRY_MS)).await,
                posted => return posted,
            }
        }
    }

    /// Gives a transaction up of which some branches may have made their promises: the home goes last.
    async fn break_off(
        &self,
        store: &NodeStore,
        session: u64,
        home: &Branch,
        id: TxnId,
        others: &[ShardId],
    ) -> Result<(), StoreError> {
        for &shard in others {
            let gone = self.tell(store, shard, move |engine: Rc<ShardEngine>, sender: CrossSender<_>| {
                engine.clone().spawn(async move { sender.send(engine.give_promise_up(session, id).await) });
            });
            gone.await?.await.unwrap_or(Err(StoreError::ShardGone(shard)))?;
        }
        self.give_up(&home.txn).await;
        self.release_locks(&home.txn);
        Ok(())
    }

    /// The branch here promises to follow `home`, and is no longer its session's; `None`: it has changed nothing, and
    /// keeps its locks until it is told the outcome.
    async fn promise(&self, session: u64, home: TxnId) -> Result<Option<Promise>, StoreError> {
        // Given up by its client meanwhile: then the others must not commit without it.
        let branch = self.take_branch(session).await.ok_or(StoreError::Canceled)?;
        match self.txns().promise(&branch.txn, home).await {
            Ok(promise) => {
                self.several.promised.borrow_mut().insert(home, branch);
                Ok(promise)
            }
            Err(error) => {
                self.give_up(&branch.txn).await;
                self.release_locks(&branch.txn);
                Err(error.into())
            }
        }
    }

    async fn give_promise_up(&self, session: u64, home: TxnId) -> Result<(), StoreError> {
        let promised = self.several.promised.borrow_mut().remove(&home);
        match promised {
            Some(branch) => {
                self.txns().take_promise_back(&branch.txn).await?;
                self.release_locks(&branch.txn);
            }
            None => self.roll_back(session).await,
        }
        Ok(())
    }

    /// The home is committed.
    fn follow(&self, home: TxnId, scn: Option<Scn>) {
        let branch = self.several.promised.borrow_mut().remove(&home).expect("a branch keeps its promise until it is told");
        self.txns().follow_home(&branch.txn, scn);
        self.release_locks(&branch.txn);
    }

    /// Puts plain outcomes into the slots of all commits over several shards of which this one is the home, in batches, until
    /// there are none left. Nobody waits for it.
    async fn tidy(&self, store: &NodeStore) {
        loop {
            self.reactor().sleep(Duration::from_millis(HOUSEKEEPING_MS)).await;
            let batch = std::mem::take(&mut *self.several.kept.borrow_mut());
            if batch.is_empty() {
                self.several.settling.set(false);
                return;
            }
            if let Err(error) = self.tidy_batch(store, &batch).await {
                tracing::warn!(%error, "the outcomes of commits over several shards could not be written; trying again");
                self.several.kept.borrow_mut().extend(batch);
            }
        }
    }

    async fn tidy_batch(&self, store: &NodeStore, batch: &[Kept]) -> Result<(), StoreError> {
        let homes: Vec<_> = batch.iter().map(|kept| (kept.home, kept.scn)).collect();
        self.txns().write_outcomes(&homes).await?;
        let mut by_shard: BTreeMap<ShardId, Vec<(TxnId, Scn)>> = BTreeMap::new();
        for kept in batch {
            for &branch in &kept.branches {
                by_shard.entry(branch.shard()).or_default().push((branch, kept.scn));
            }
        }
        let mut answers = Vec::with_capacity(by_shard.len());
        for (shard, branches) in by_shard {
            let letter = move |engine: Rc<ShardEngine>, sender: CrossSender<Result<(), StoreError>>| {
                engine.clone().spawn(async move {
                    let written = engine.txns().write_outcomes(&branches).await;
                    if written.is_ok() {
                        engine.txns().release(&branches);
                    }
                    sender.send(written.map_err(StoreError::from));
                });
            };
            answers.push((shard, self.tell(store, shard, letter).await?));
        }
        for (shard, answer) in answers {
            answer.await.unwrap_or(Err(StoreError::ShardGone(shard)))?;
        }
        self.txns().release(&homes);
        Ok(())
    }
}

fn ask_for_promise(store: &NodeStore, shard: ShardId, session: u64, home: TxnId) -> Result<Promised, StoreError> {
    let (written, durable) = cross_oneshot();
    let made = store.post(shard, move |engine: Rc<ShardEngine>, made: CrossSender<_>| {
        engine.clone().spawn(async move {
            let promise = engine.promise(session, home).await;
            let end = promise.as_ref().ok().and_then(|promise| promise.map(|promise| promise.end));
            made.send(promise);
            if let Some(end) = end {
                written.send(engine.txns().flush_to(end).await.map_err(StoreError::from));
            }
        });
    })?;
    Ok(Promised { shard, made, durable })
}
