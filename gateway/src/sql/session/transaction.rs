//! The session's transaction: its beginning, its end, and what it leaves behind in settings, cursors and partitions.
//!
//! Owned by the session's task.

use rustydb::store::Isolation;

use super::{SqlSession, State, now_micros};
use crate::sql::error::SqlError;
use crate::sql::parse::TransactionModes;
use crate::sql::settings::REPORTED;

impl SqlSession {
    /// Begins a transaction if there is none.
    pub(in crate::sql) async fn ensure_transaction(&mut self) -> Result<(), SqlError> {
        if self.transaction.state != State::Idle {
            return Ok(());
        }
        let state = if self.implicit_block { State::Implicit } else { State::Single };
        self.begin(state, TransactionModes::default()).await
    }

    pub(super) async fn begin(&mut self, state: State, modes: TransactionModes) -> Result<(), SqlError> {
        let default = self.settings.get("default_transaction_isolation");
        let repeatable = modes.repeatable_read.unwrap_or(matches!(default, "repeatable read" | "serializable"));
        let read_only = modes.read_only.unwrap_or(self.settings.get("default_transaction_read_only") == "on");
        let transaction = &mut self.transaction;
        transaction.isolation = if repeatable { Isolation::RepeatableRead } else { Isolation::ReadCommitted };
        transaction.read_only = read_only;
        transaction.started_micros = now_micros();
        transaction.settings_before = Some(self.settings.snapshot());
        transaction.touched = false;
        self.core.store.lock().await.begin(transaction.isolation, read_only)?;
        self.transaction.state = state;
        if state == State::Block {
            self.show_transaction_settings(modes.serializable);
        }
        Ok(())
    }

    pub(super) fn show_transaction_settings(&mut self, serializable: bool) {
        let level = match self.transaction.isolation {
            _ if serializable => "serializable",
            Isolation::ReadCommitted => "read committed",
            Isolation::RepeatableRead => "repeatable read",
        };
        self.settings.put("transaction_isolation", level);
        self.settings.put("transaction_read_only", if self.transaction.read_only { "on" } else { "off" });
    }

    /// Bookkeeping after the store's transaction has ended.
    pub(super) async fn end_transaction(&mut self, committed: bool) {
        let transaction = &mut self.transaction;
        transaction.state = State::Idle;
        transaction.catalog = None;
        transaction.savepoints.clear();
        transaction.locks.clear();
        let created = std::mem::take(&mut transaction.created);
        let dropped = std::mem::take(&mut transaction.dropped);
        let before = transaction.settings_before.take();
        let local = std::mem::take(&mut transaction.local_settings);
        if committed {
            for (name, old) in local.into_iter().rev() {
                self.settings.put(&name, &old);
                self.report(&name);
            }
        } else if let Some(before) = before {
            self.settings.restore(before);
        }
        if !self.cursors.is_empty() {
            self.cursors.retain(|_, cursor| cursor.hold && committed);
        }
        for partition in if committed { dropped } else { created } {
            if let Err(fault) = self.db.store.drop_partition(partition).await {
                tracing::warn!(%partition, %fault, "space of a dropped table could not be given back; it stays in use");
            }
        }
    }

    pub(in crate::sql) async fn commit(&mut self) -> Result<(), SqlError> {
        let result = self.core.store.lock().await.commit().await;
        self.end_transaction(result.is_ok()).await;
        self.forget_transaction_settings();
        result.map(|_| ()).map_err(SqlError::from)
    }

    pub(in crate::sql) async fn rollback(&mut self) -> Result<(), SqlError> {
        let result = self.core.store.lock().await.rollback().await;
        self.end_transaction(false).await;
        self.forget_transaction_settings();
        result.map_err(SqlError::from)
    }

    pub(super) fn forget_transaction_settings(&mut self) {
        for (name, default) in [
            ("transaction_isolation", "default_transaction_isolation"),
            ("transaction_read_only", "default_transaction_read_only"),
        ] {
            if self.settings.get(name) != self.settings.get(default) {
                let value = self.settings.get(default).to_owned();
                self.settings.put(name, &value);
            }
        }
    }

    pub(super) fn report(&mut self, name: &str) {
        if let Some((_, shown)) = REPORTED.iter().find(|(n, _)| *n == name) {
            self.changed.push(((*shown).to_owned(), self.settings.get(name).to_owned()));
        }
    }
}
