//! Statements that control the session: transactions, savepoints, settings, prepared statements, cursors.

use std::sync::Arc;

use rustydb::store::Isolation;

use super::{PREPARED_MAX, SavepointEntry, SqlSession, State};
use crate::sql::api::{ColumnDesc, Execution, RowStream, Tag};
use crate::sql::error::{SqlError, code};
use crate::sql::parse::{Statement, TransactionModes};
use crate::sql::settings::REPORTED;
use crate::sql::types::{Datum, PgType};

impl SqlSession {
    /// Transaction control, settings, prepared statements. `None`: not one of these.
    pub(super) async fn control(&mut self, statement: &Statement) -> Result<Option<Execution>, SqlError> {
        let tag = match statement {
            Statement::Empty => return Ok(Some(Execution::Empty)),
            Statement::Begin(modes) => {
                match self.transaction.state {
                    State::Idle => self.begin(State::Block, *modes).await?,
                    State::Implicit => self.transaction.state = State::Block,
                    _ => self
                        .notices
                        .push(SqlError::warning(code::ACTIVE_SQL_TRANSACTION, "there is already a transaction in progress")),
                }
                "BEGIN"
            }
            Statement::Commit { chain } => {
                let modes = self.modes();
                let tag = match self.transaction.state {
                    State::Failed => {
                        self.rollback().await?;
                        "ROLLBACK"
                    }
                    State::Idle => {
                        self.warn_no_transaction();
                        "COMMIT"
                    }
                    _ => {
                        self.commit().await?;
                        "COMMIT"
                    }
                };
                if *chain {
                    self.begin(State::Block, modes).await?;
                }
                tag
            }
            Statement::Rollback { chain } => {
                let modes = self.modes();
                match self.transaction.state {
                    State::Idle => self.warn_no_transaction(),
                    _ => self.rollback().await?,
                }
                if *chain {
                    self.begin(State::Block, modes).await?;
                }
                "ROLLBACK"
            }
            Statement::Savepoint(name) => {
                self.require_block("SAVEPOINT")?;
                let savepoint = self.core.store.lock().await.savepoint();
                self.transaction.savepoints.push(SavepointEntry {
                    name: name.clone(),
                    savepoint,
                    catalog: self.transaction.catalog.clone(),
                    created: self.transaction.created.len(),
                    dropped: self.transaction.dropped.len(),
                });
                "SAVEPOINT"
            }
            Statement::Release(name) => {
                self.require_block("RELEASE SAVEPOINT")?;
                let at = self.find_savepoint(name)?;
                self.transaction.savepoints.truncate(at);
                "RELEASE"
            }
            Statement::RollbackTo(name) => {
                self.require_block("ROLLBACK TO SAVEPOINT")?;
                let at = self.find_savepoint(name)?;
                self.transaction.savepoints.truncate(at + 1);
                let entry = &self.transaction.savepoints[at];
                self.core.store.lock().await.rollback_to(&entry.savepoint).await?;
                self.transaction.catalog.clone_from(&entry.catalog);
                self.transaction.dropped.truncate(entry.dropped);
                let lost: Vec<_> = self.transaction.created.drain(entry.created..).collect();
                for partition in lost {
                    if let Err(fault) = self.db.store.drop_partition(partition).await {
                        tracing::warn!(%partition, %fault, "space of a table rolled back could not be given back; it stays in use");
                    }
                }
                self.transaction.state = State::Block;
                "ROLLBACK"
            }
            Statement::SetTransaction { modes, session } => {
                self.set_transaction(*modes, *session).await?;
                "SET"
            }
            Statement::Set { local, name, value } => {
                if *local && self.transaction.state == State::Idle {
                    let message = "SET LOCAL can only be used in transaction blocks";
                    self.notices.push(SqlError::warning(code::NO_ACTIVE_SQL_TRANSACTION, message));
                    return Ok(Some(Execution::Command { tag: "SET".to_owned() }));
                }
                if name == "transaction_isolation" || name == "transaction_read_only" {
                    let mut modes = TransactionModes::default();
                    match (name.as_str(), value.as_deref()) {
                        ("transaction_read_only", Some(value)) => modes.read_only = Some(matches!(value, "on" | "true" | "1")),
                        (_, Some(value)) => modes.repeatable_read = Some(!value.starts_with("read")),
                        _ => {}
                    }
                    self.set_transaction(modes, false).await?;
                    return Ok(Some(Execution::Command { tag: "SET".to_owned() }));
                }
                let old = self.settings.get(name).to_owned();
                if self.settings.set(name, value.as_deref())? {
                    self.report(name);
                }
                if *local {
                    self.transaction.local_settings.push((name.clone(), old));
                }
                "SET"
            }
            Statement::Reset(name) => {
                if name == "all" {
                    self.settings.reset();
                } else {
                    self.settings.set(name, None)?;
                    self.report(name);
                }
                "RESET"
            }
            Statement::Show(name) => return self.show(name).map(Some),
            Statement::Prepare { name, types, statement } => {
                if self.prepared.contains_key(name) {
                    return Err(SqlError::new(
                        code::DUPLICATE_PREPARED_STATEMENT,
                        format!("prepared statement \"{name}\" already exists"),
                    ));
                }
                if self.prepared.len() >= PREPARED_MAX {
                    return Err(SqlError::new("53000", format!("a session may have {PREPARED_MAX} prepared statements"))
                        .with_hint("DEALLOCATE those that are no longer needed."));
                }
                let types = types.iter().map(|t| crate::sql::sqltypes::sql_type(t).map(|t| Some(t.kind)));
                let types: Vec<_> = types.collect::<Result<_, _>>()?;
                let prepared = Box::pin(self.prepare_inner(Arc::clone(statement), &types)).await?;
                self.prepared.insert(name.clone(), prepared);
                "PREPARE"
            }
            Statement::Execute { name, parameters } => {
                let prepared = self.prepared.get(name).cloned();
                let prepared = prepared.ok_or_else(|| {
                    SqlError::new(code::INVALID_SQL_STATEMENT_NAME, format!("prepared statement \"{name}\" does not exist"))
                })?;
                if parameters.len() != prepared.0.parameters.len() {
                    return Err(SqlError::syntax(format!("wrong number of parameters for prepared statement \"{name}\""))
                        .with_detail(format!(
                            "Expected {} parameters but got {}.",
                            prepared.0.parameters.len(),
                            parameters.len()
                        )));
                }
                let mut values = Vec::with_capacity(parameters.len());
                let context = if parameters.is_empty() { None } else { Some(self.context(self.catalog().await?, Vec::new())) };
                for (expr, kind) in parameters.iter().zip(&prepared.0.parameters) {
                    let Some(context) = &context else { break };
                    let value = match crate::sql::expr::compile(expr, &[], &[], *kind) {
                        Some(fast) => fast.evaluate(&crate::sql::expr::Inputs::constant(&[], &context.env))?,
                        None => context.evaluate(expr).await?,
                    };
                    values.push(value.map(|v| v.cast(*kind, -1)).transpose()?);
                }
                return Box::pin(self.execute_inner(&prepared, values)).await.map(Some);
            }
            Statement::Deallocate(name) => match name {
                None => {
                    self.prepared.clear();
                    "DEALLOCATE ALL"
                }
                Some(name) => {
                    if self.prepared.remove(name).is_none() {
                        return Err(SqlError::new(
                            code::INVALID_SQL_STATEMENT_NAME,
                            format!("prepared statement \"{name}\" does not exist"),
                        ));
                    }
                    "DEALLOCATE"
                }
            },
            Statement::Discard(what) => match what.as_str() {
                "ALL" => {
                    self.prepared.clear();
                    self.cursors.clear();
                    self.settings.reset();
                    self.sequences = Arc::default();
                    "DISCARD ALL"
                }
                "PLANS" => "DISCARD PLANS",
                "SEQUENCES" => {
                    self.sequences = Arc::default();
                    "DISCARD SEQUENCES"
                }
                _ => "DISCARD TEMP",
            },
            Statement::Close(name) => {
                self.close_cursor(name.as_deref())?;
                if name.is_some() { "CLOSE CURSOR" } else { "CLOSE CURSOR ALL" }
            }
            Statement::Fetch { name, how, only_move } => return self.fetch(name, *how, *only_move).map(Some),
            Statement::Accepted(tag) => tag,
            _ => return Ok(None),
        };
        Ok(Some(Execution::Command { tag: tag.to_owned() }))
    }

    fn modes(&self) -> TransactionModes {
        TransactionModes {
            repeatable_read: Some(self.transaction.isolation == Isolation::RepeatableRead),
            read_only: Some(self.transaction.read_only),
            serializable: false,
        }
    }

    fn warn_no_transaction(&mut self) {
        self.notices.push(SqlError::warning(code::NO_ACTIVE_SQL_TRANSACTION, "there is no transaction in progress"));
    }

    fn require_block(&self, what: &str) -> Result<(), SqlError> {
        if matches!(self.transaction.state, State::Block | State::Failed | State::Implicit) {
            Ok(())
        } else {
            Err(SqlError::new(code::NO_ACTIVE_SQL_TRANSACTION, format!("{what} can only be used in transaction blocks")))
        }
    }

    fn find_savepoint(&self, name: &str) -> Result<usize, SqlError> {
        self.transaction
            .savepoints
            .iter()
            .rposition(|s| s.name == name)
            .ok_or_else(|| SqlError::new(code::INVALID_SAVEPOINT_SPECIFICATION, format!("savepoint \"{name}\" does not exist")))
    }

    async fn set_transaction(&mut self, modes: TransactionModes, session: bool) -> Result<(), SqlError> {
        let level = modes.repeatable_read.map(|repeatable| match (modes.serializable, repeatable) {
            (true, _) => "serializable",
            (_, true) => "repeatable read",
            _ => "read committed",
        });
        if session {
            if let Some(level) = level {
                self.settings.set("default_transaction_isolation", Some(level))?;
            }
            if let Some(read_only) = modes.read_only {
                self.settings.set("default_transaction_read_only", Some(if read_only { "on" } else { "off" }))?;
            }
            return Ok(());
        }
        if self.transaction.state == State::Idle {
            let message = "SET TRANSACTION can only be used in transaction blocks";
            self.notices.push(SqlError::warning(code::NO_ACTIVE_SQL_TRANSACTION, message));
            return Ok(());
        }
        if self.transaction.touched {
            if level.is_some() {
                let message = "SET TRANSACTION ISOLATION LEVEL must be called before any query";
                return Err(SqlError::new(code::ACTIVE_SQL_TRANSACTION, message));
            }
            if modes.read_only == Some(false) && self.transaction.read_only {
                let message = "transaction read-write mode must be set before any query";
                return Err(SqlError::new(code::ACTIVE_SQL_TRANSACTION, message));
            }
        }
        if let Some(repeatable) = modes.repeatable_read {
            self.transaction.isolation = if repeatable { Isolation::RepeatableRead } else { Isolation::ReadCommitted };
        }
        if let Some(read_only) = modes.read_only {
            self.transaction.read_only = read_only;
        }
        if !self.transaction.touched {
            let mut session = self.core.store.lock().await;
            session.rollback().await?;
            session.begin(self.transaction.isolation, self.transaction.read_only)?;
            drop(session);
        }
        self.show_transaction_settings(modes.serializable);
        Ok(())
    }

    fn show(&self, name: &str) -> Result<Execution, SqlError> {
        let text = |value: &str| Some(Datum::Text(value.to_owned()));
        if name == "all" {
            let columns = ["name", "setting", "description"].map(|n| ColumnDesc::new(n, PgType::Text));
            let rows = self.settings.all().iter().map(|(n, v)| vec![text(n), text(v), text("")]).collect();
            return Ok(Execution::Rows(RowStream::ready(columns.into(), Tag::Fixed("SHOW".to_owned()), rows)));
        }
        let Some(value) = self.settings.all().get(name) else {
            return Err(SqlError::new(code::UNDEFINED_OBJECT, format!("unrecognized configuration parameter \"{name}\"")));
        };
        let shown = REPORTED.iter().find(|(n, _)| *n == name).map_or(name, |(_, shown)| shown);
        let columns = [ColumnDesc::new(shown, PgType::Text)].into();
        Ok(Execution::Rows(RowStream::ready(columns, Tag::Fixed("SHOW".to_owned()), vec![vec![text(value)]])))
    }
}
