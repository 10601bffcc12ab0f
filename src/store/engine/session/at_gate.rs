//! The locks on names that a session takes: at the node's gate where that lets it in, which costs no letter, and else by the
//! shard that the name belongs to.
//!
//! On the client's thread. What came in at the gate is given up with the transaction, or with the statement outside one, once
//! nothing of it is left; a shard that has taken such a lock over by then is told. Bounded by the names that a transaction
//! locks.

use super::EngineSession;
use crate::fusion::ges::SessionId;
use crate::reactor::mail::MailError;
use crate::store::locks::resource;
use crate::store::shard::ShardEngine;
use crate::store::types::{LockMode, LockName, LockSpace};
use crate::store::{NodeStore, StoreError};
use crate::txn::WaitPolicy;

/// The relations whose locks a session's transaction has taken at the node's gate; given up when this goes.
pub(super) struct AtGate {
    store: NodeStore,
    session: SessionId,
    names: Vec<LockName>,
}

impl Drop for AtGate {
    fn drop(&mut self) {
        let (session, inner) = (self.session, &self.store.0);
        for name in self.names.drain(..) {
            if inner.shared.gate.leave(resource(name), session) {
                continue;
            }
            let left = inner.shards[usize::from(inner.shard_of_name(name).0)].post(Box::new(move |reactor| {
                if let Some(engine) = reactor.local::<ShardEngine>() {
                    engine.session_left(session, name);
                }
            }));
            if matches!(left, Err(MailError::Full)) {
                inner.shared.gate.left_untold(resource(name), session);
            }
        }
    }
}

impl EngineSession {
    /// How the lock service knows the transaction.
    fn at_locks(&self) -> SessionId {
        SessionId { number: self.id, transaction: self.transactions }
    }

    /// What gives the locks taken at the gate up, once nothing of the transaction is left.
    pub(super) fn leave_gate(&mut self) -> AtGate {
        let names = self.at_gate.drain(..).map(|(name, _)| name).collect();
        AtGate { store: self.store.clone(), session: self.at_locks(), names }
    }

    /// Outside a transaction the locks end with the statement (also one that was given up half way).
    pub(super) fn leave_statements_locks(&mut self) {
        if self.transaction.is_none() && !self.at_gate.is_empty() {
            drop(self.leave_gate());
        }
    }

    /// See [`Session::try_lock_for_statement`](crate::store::Session::try_lock_for_statement).
    pub(super) fn enter_for_statement(&mut self, name: LockName) -> bool {
        if self.transaction.is_some() || !self.in_statement {
            return false;
        }
        if self.at_gate.iter().any(|(locked, _)| *locked == name) {
            return true;
        }
        if self.at_gate.is_empty() {
            // The lock service may still have to hear that an earlier statement is done.
            self.transactions += 1;
        }
        let mode = LockMode::ConcurrentRead;
        let entered = self.store.0.shared.gate.enter(resource(name), self.at_locks(), mode.into());
        if entered {
            self.at_gate.push((name, mode));
        }
        entered
    }

    /// See [`Session::lock`](crate::store::Session::lock).
    pub(super) async fn lock_name(&mut self, name: LockName, mode: LockMode, wait: WaitPolicy) -> Result<(), StoreError> {
        self.store.0.serves()?;
        if self.transaction.is_none() {
            return Err(StoreError::NoTransaction);
        }
        let session = self.at_locks();
        let at_gate = self.at_gate.iter().find(|(locked, _)| *locked == name).map(|(_, mode)| *mode);
        if at_gate.is_some_and(|held| mode <= held) {
            return Ok(());
        }
        // Who has come in there and wants more than is to be had there asks the shard, which then knows of all that he has.
        if name.space == LockSpace::Relation && mode <= LockMode::ConcurrentWrite {
            let gate = &self.store.0.shared.gate;
            let granted = match at_gate {
                None => gate.enter(resource(name), session, mode.into()),
                Some(_) => gate.raise(resource(name), session, mode.into()),
            };
            if granted {
                self.at_gate.retain(|(locked, _)| *locked != name);
                self.at_gate.push((name, mode));
                return Ok(());
            }
        }
        let shard = self.store.0.shard_of_name(name);
        let lock = async move |engine: &ShardEngine, txn: &_| engine.lock_name(txn, session, name, mode, wait).await;
        self.in_branch(shard, lock).await?;
        // The branch has it now, and gives it up at its end.
        self.at_gate.retain(|(locked, _)| *locked != name);
        Ok(())
    }
}
