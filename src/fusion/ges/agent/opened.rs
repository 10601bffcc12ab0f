//! The lock service and its node's [`Gate`]: what is open there, for whom, and the version of the catalog.
//!
//! Part of the agent; owned by its shard, which alone opens and closes its resources.

use std::rc::Weak;
use std::sync::Arc;

use super::super::gate::Gate;
use super::super::local::Effect;
use super::super::types::{LockMode, LockOwner, Resource, SessionId, VALUE_BYTES};
use super::{Ges, LockError, LockHandle, OPEN_MAX, Sessions, WaitPolicy};
use crate::ids::TxnId;

/// Draws a number that was never a version of the catalog: called when the lock is there, so that this node's clock has heard
/// of its former holders'.
pub type FreshVersion = Box<dyn FnOnce() -> u64>;

impl Ges {
    /// From now on sessions take the locks of tables at `gate` where they can; `sessions` says whose transaction is whose.
    pub fn attach(&self, gate: Arc<Gate>, sessions: Weak<dyn Sessions>) {
        *self.0.gate.borrow_mut() = Some(gate);
        *self.0.sessions.borrow_mut() = Some(sessions);
    }

    /// What a session has of a resource, by its gate or because it was taken over, its transaction here has from now on.
    /// Before the transaction asks for more, so that it does not wait for itself.
    pub fn adopt(&self, resource: Resource, session: SessionId, txn: TxnId) {
        let inside = self.0.gate.borrow().as_ref().and_then(|gate| gate.take(resource, session));
        let (from, to) = (LockOwner::Session(session), LockOwner::Transaction(txn));
        if self.0.local.borrow_mut().adopt(resource, from, inside, to) {
            let mut held = self.0.held.borrow_mut();
            let resources = held.entry(to).or_default();
            if !resources.contains(&resource) {
                resources.push(resource);
            }
        }
    }

    /// A session that was taken over has ended its transaction.
    pub fn session_left(&self, resource: Resource, session: SessionId) {
        self.unlock(LockHandle { resource, owner: LockOwner::Session(session) });
    }

    /// The version of the catalog. Until it may change, on whichever node, the gate's version says the same; the node holds
    /// the catalog's lock in CR for that. While somebody commits a change of the catalog this waits until he has.
    ///
    /// Where nobody has written one, or where it is in doubt, the version is `fresh`: no copy of the catalog passes for it.
    ///
    /// # Errors
    /// See [`LockError`].
    pub async fn catalog_version(&self, fresh: FreshVersion) -> Result<u64, LockError> {
        let _one_at_a_time = self.0.asks_version.acquire(1).await;
        let gate = self.0.gate.borrow().clone();
        let known = gate.as_ref().map_or(0, |gate| gate.catalog_version());
        if known != 0 {
            return Ok(known);
        }
        let handle = self
            .lock(Resource::CATALOG_VERSION, LockOwner::Node(self.0.node), LockMode::ConcurrentRead, WaitPolicy::Wait)
            .await?;
        let value = self.value(handle).filter(|value| value.valid);
        let written = value.map_or(0, |value| u64::from_le_bytes(value.bytes[..8].try_into().expect("8 of a value's bytes")));
        let version = if written == 0 { fresh() } else { written };
        if let Some(gate) = gate
            && self.0.local.borrow_mut().open(Resource::CATALOG_VERSION, LockMode::ConcurrentRead)
        {
            gate.set_catalog_version(version);
        }
        self.unlock(handle);
        Ok(version)
    }

    /// A transaction is about to commit a change of the catalog, which has this version afterwards. When this returns no
    /// node relies on an older one, and none learns of any before the transaction has ended.
    ///
    /// # Errors
    /// See [`LockError`].
    pub async fn change_catalog(&self, txn: TxnId, version: FreshVersion) -> Result<(), LockError> {
        let handle =
            self.lock(Resource::CATALOG_VERSION, LockOwner::Transaction(txn), LockMode::Exclusive, WaitPolicy::Wait).await?;
        let mut bytes = [0; VALUE_BYTES];
        bytes[..8].copy_from_slice(&version().to_le_bytes());
        assert!(self.set_value(handle, bytes), "{txn} has the catalog exclusively and may write its value");
        Ok(())
    }

    /// Lets sessions in by themselves, as far as this node's lock allows.
    pub(super) fn open(&self, resource: Resource) {
        let Some(gate) = self.0.gate.borrow().clone() else { return };
        let mut local = self.0.local.borrow_mut();
        let before = local.is_open(resource);
        let modes = [LockMode::ConcurrentWrite, LockMode::ConcurrentRead];
        let Some(mode) = modes.into_iter().find(|mode| !before.covers(*mode) && local.open(resource, *mode)) else { return };
        drop(local);
        gate.open(resource, mode);
        if before != LockMode::Null {
            return;
        }
        let first = {
            let mut opened = self.0.opened.borrow_mut();
            opened.push_back(resource);
            if opened.len() > OPEN_MAX { opened.pop_front() } else { None }
        };
        if let Some(first) = first.filter(|first| *first != resource && self.0.local.borrow().is_open(*first) != LockMode::Null) {
            self.close(first);
        }
    }

    /// Lets nobody in any more by himself.
    pub(super) fn close(&self, resource: Resource) {
        let mut effects = Vec::new();
        self.take_over(resource, &mut effects);
        self.run(effects);
    }

    pub(super) fn take_over(&self, resource: Resource, effects: &mut Vec<Effect>) {
        let gate = self.0.gate.borrow().clone();
        let inside = match gate {
            Some(gate) if resource == Resource::CATALOG_VERSION => {
                gate.set_catalog_version(0);
                Vec::new()
            }
            Some(gate) => gate.close(resource),
            None => Vec::new(),
        };
        self.0.local.borrow_mut().closed(resource, inside, effects);
    }

    /// Takes note of sessions that could not say that they have left.
    pub(super) fn hear_untold(&self) {
        let known = |resource, session| self.held(resource, LockOwner::Session(session)) != LockMode::Null;
        let untold = self.0.gate.borrow().as_ref().map(|gate| gate.take_untold(known)).unwrap_or_default();
        for (resource, session) in untold {
            self.session_left(resource, session);
        }
    }
}
