//! A client's session: transactions, prepared statements, settings, and the way of each statement to its executor.
//!
//! Owned by one connection's task. A statement's rows are drained before the next statement begins; what a portal keeps
//! beyond that, the wire layer has drained into memory.

mod control;
mod transaction;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use rustydb::store::{Isolation, LockMode, Savepoint};

use crate::sql::api::{ColumnDesc, Execution, RowStream, Tag, TransactionStatus};
use crate::sql::catalog::{Catalog, Oid};
use crate::sql::context::{Context, SequenceMemory};
use crate::sql::core::{Canceler, SessionCore};
use crate::sql::cursor::Cursor;
use crate::sql::database::Database;
use crate::sql::error::{SqlError, code};
use crate::sql::fastpath::FastPlan;
use crate::sql::parse::{self, ParsedStatement, Statement};
use crate::sql::plan::Parameter;
use crate::sql::rewrite::Env;
use crate::sql::settings::{REPORTED, Settings};
use crate::sql::types::{Datum, PgType};

/// What a client says when it connects.
#[derive(Clone, Debug, Default)]
pub struct Startup {
    /// User.
    pub user: String,
    /// Database.
    pub database: String,
    /// Settings (`application_name`, `options`...).
    pub settings: Vec<(String, String)>,
    /// The number that BackendKeyData carries.
    pub backend_pid: i32,
}

/// A statement made ready: its parameters and columns are known.
#[derive(Clone)]
pub struct Prepared(pub(in crate::sql) Arc<PreparedInner>);

pub(in crate::sql) struct PreparedInner {
    pub(in crate::sql) parsed: Arc<ParsedStatement>,
    pub(in crate::sql) parameters: Vec<PgType>,
    pub(in crate::sql) columns: Option<Arc<[ColumnDesc]>>,
    pub(in crate::sql) fast: Option<Arc<FastPlan>>,
    pub(in crate::sql) generation: u64,
}

impl Prepared {
    /// Types of `$1`, `$2`...
    #[must_use]
    pub fn parameters(&self) -> &[PgType] {
        &self.0.parameters
    }

    /// The result's columns; `None` for what gives no rows.
    #[must_use]
    pub fn columns(&self) -> Option<&Arc<[ColumnDesc]>> {
        self.0.columns.as_ref()
    }

    /// The statement.
    #[must_use]
    pub fn statement(&self) -> &ParsedStatement {
        &self.0.parsed
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sql) enum State {
    /// No transaction.
    Idle,
    /// One statement's own.
    Single,
    /// Several statements until [`SqlSession::sync`].
    Implicit,
    /// BEGIN.
    Block,
    /// BEGIN, and an error since.
    Failed,
}

pub(in crate::sql) struct SavepointEntry {
    name: String,
    savepoint: Savepoint,
    catalog: Option<Arc<Catalog>>,
    created: usize,
    dropped: usize,
}

pub(in crate::sql) struct Transaction {
    pub(in crate::sql) state: State,
    pub(in crate::sql) isolation: Isolation,
    pub(in crate::sql) read_only: bool,
    pub(in crate::sql) started_micros: i64,
    /// The catalog with this transaction's own changes.
    pub(in crate::sql) catalog: Option<Arc<Catalog>>,
    pub(in crate::sql) savepoints: Vec<SavepointEntry>,
    /// Partitions to drop if it rolls back.
    pub(in crate::sql) created: Vec<rustydb::ids::PartitionId>,
    /// Partitions to drop when it has committed.
    pub(in crate::sql) dropped: Vec<rustydb::ids::PartitionId>,
    pub(in crate::sql) locks: HashMap<Oid, LockMode>,
    /// Settings as they were at BEGIN.
    settings_before: Option<Arc<std::collections::BTreeMap<String, String>>>,
    /// SET LOCAL: names and what they were.
    local_settings: Vec<(String, String)>,
    /// A query has run in it.
    touched: bool,
}

/// See the module.
pub struct SqlSession {
    pub(in crate::sql) db: Arc<Database>,
    pub(in crate::sql) core: Arc<SessionCore>,
    pub(in crate::sql) settings: Settings,
    pub(in crate::sql) user: String,
    pub(in crate::sql) database: String,
    backend_pid: i32,
    pub(in crate::sql) transaction: Transaction,
    prepared: HashMap<String, Prepared>,
    pub(in crate::sql) cursors: HashMap<String, Cursor>,
    pub(in crate::sql) notices: Vec<SqlError>,
    changed: Vec<(String, String)>,
    pub(in crate::sql) sequences: Arc<Mutex<SequenceMemory>>,
    implicit_block: bool,
}

/// Most statements prepared by name in a session.
const PREPARED_MAX: usize = 10_000;

fn now_micros() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    since.as_micros() as i64
}

impl SqlSession {
    /// A session for a client.
    ///
    /// # Errors
    /// A startup setting that cannot be, an unknown database.
    pub fn new(db: Arc<Database>, startup: Startup) -> Result<SqlSession, SqlError> {
        let settings = Settings::new(&startup.user, &startup.settings)?;
        let core = SessionCore::new(db.store.session());
        Ok(SqlSession {
            core,
            db,
            settings,
            user: startup.user,
            database: startup.database,
            backend_pid: startup.backend_pid,
            transaction: Transaction {
                state: State::Idle,
                isolation: Isolation::ReadCommitted,
                read_only: false,
                started_micros: 0,
                catalog: None,
                savepoints: Vec::new(),
                created: Vec::new(),
                dropped: Vec::new(),
                locks: HashMap::new(),
                settings_before: None,
                local_settings: Vec::new(),
                touched: false,
            },
            prepared: HashMap::new(),
            cursors: HashMap::new(),
            notices: Vec::new(),
            changed: Vec::new(),
            sequences: Arc::default(),
            implicit_block: false,
        })
    }

    /// What ReadyForQuery says.
    #[must_use]
    pub fn transaction_status(&self) -> TransactionStatus {
        match self.transaction.state {
            State::Block if self.core.failed.load(std::sync::atomic::Ordering::Acquire) => TransactionStatus::Failed,
            State::Block => TransactionStatus::InBlock,
            State::Failed => TransactionStatus::Failed,
            _ => TransactionStatus::Idle,
        }
    }

    /// Cancels this session's statement from another task.
    #[must_use]
    pub fn canceler(&self) -> Canceler {
        self.core.canceler()
    }

    /// Notices since the last call.
    pub fn take_notices(&mut self) -> Vec<SqlError> {
        std::mem::take(&mut self.notices)
    }

    /// Settings that the client is told at the start (ParameterStatus).
    #[must_use]
    pub fn reported_settings(&self) -> Vec<(String, String)> {
        REPORTED.iter().map(|(name, shown)| ((*shown).to_owned(), self.settings.get(name).to_owned())).collect()
    }

    /// Settings that the client is to be told of, changed since the last call.
    pub fn take_setting_changes(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.changed)
    }

    /// The user.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// From here to [`SqlSession::sync`] statements outside a block share one transaction (several statements in one
    /// simple query, or a pipeline).
    pub fn begin_implicit_block(&mut self) {
        self.implicit_block = true;
    }

    /// Ends what [`SqlSession::begin_implicit_block`] began: commits, unless it is a block by now.
    ///
    /// # Errors
    /// The commit's.
    pub async fn sync(&mut self) -> Result<(), SqlError> {
        self.implicit_block = false;
        self.core.finish(true).await?;
        if self.transaction.state == State::Implicit {
            self.commit().await?;
        }
        Ok(())
    }

    /// Splits and parses a text.
    ///
    /// # Errors
    /// `42601`.
    pub fn parse(&mut self, sql: &str) -> Result<Vec<ParsedStatement>, SqlError> {
        let result = parse::parse(sql);
        if result.is_err() {
            self.fail_block();
        }
        result
    }

    fn fail_block(&mut self) {
        if self.transaction.state == State::Block {
            self.transaction.state = State::Failed;
        }
    }

    /// A simple statement by its text, if the node has it planned already: the way of a driver that sends literals.
    /// `None`: parse it.
    pub async fn execute_cached(&mut self, sql: &str) -> Option<Result<Execution, SqlError>> {
        if self.implicit_block || !matches!(self.transaction.state, State::Idle | State::Block) {
            return None;
        }
        let catalog = self.known_catalog()?;
        let (plan, values) = self.db.fast.lookup(sql, &self.db, &catalog, &self.settings, &self.user)?;
        let result = self.run_fast(&plan, &values, &catalog).await;
        match result {
            Ok(Some(execution)) => Some(Ok(execution)),
            Ok(None) => None,
            Err(fault) => {
                self.after_error().await;
                Some(Err(fault))
            }
        }
    }

    fn known_catalog(&self) -> Option<Arc<Catalog>> {
        match &self.transaction.catalog {
            Some(catalog) => Some(Arc::clone(catalog)),
            None => self.db.catalog.fresh(&self.db.store),
        }
    }

    /// The catalog that a statement sees now.
    pub(in crate::sql) async fn catalog(&self) -> Result<Arc<Catalog>, SqlError> {
        match &self.transaction.catalog {
            Some(catalog) => Ok(Arc::clone(catalog)),
            None => self.db.current_catalog().await,
        }
    }

    pub(in crate::sql) fn env(&self) -> Env {
        Env {
            database: self.database.clone(),
            user: self.user.clone(),
            search_path: self.settings.search_path(&self.user),
            transaction_micros: self.transaction.started_micros,
            statement_micros: now_micros(),
            backend_pid: self.backend_pid,
            settings: Arc::clone(self.settings.all()),
        }
    }

    pub(in crate::sql) fn context(&self, catalog: Arc<Catalog>, parameters: Vec<Parameter>) -> Context {
        Context {
            db: Arc::clone(&self.db),
            core: Arc::clone(&self.core),
            catalog,
            env: Arc::new(self.env()),
            sequences: Arc::clone(&self.sequences),
            parameters: Arc::new(parameters),
        }
    }

    /// Makes a statement ready. `types`: those of the parameters, as far as the client says.
    ///
    /// # Errors
    /// Everything that is wrong with the statement; `25P02` in a failed transaction.
    pub async fn prepare(&mut self, parsed: &ParsedStatement, types: &[Option<PgType>]) -> Result<Prepared, SqlError> {
        let result = self.prepare_inner(Arc::new(parsed.clone()), types).await;
        if result.is_err() {
            self.fail_block();
        }
        result
    }

    async fn prepare_inner(&mut self, parsed: Arc<ParsedStatement>, types: &[Option<PgType>]) -> Result<Prepared, SqlError> {
        self.check_failed(&parsed)?;
        let mut declared: Vec<PgType> = types.iter().map(|t| t.unwrap_or(PgType::Unknown)).collect();
        declared.resize(declared.len().max(parsed.parameters), PgType::Unknown);
        if matches!(
            parsed.statement,
            Statement::Begin(_)
                | Statement::Commit { .. }
                | Statement::Rollback { .. }
                | Statement::Empty
                | Statement::Savepoint(_)
        ) {
            let inner = PreparedInner { parsed, parameters: declared, columns: None, fast: None, generation: 0 };
            return Ok(Prepared(Arc::new(inner)));
        }
        self.core.begin_statement();
        let catalog = self.core.unless_canceled(self.catalog()).await?;
        let context = self.context(Arc::clone(&catalog), Vec::new());
        let (parameters, columns) = match &parsed.statement {
            Statement::Fetch { name, only_move: false, .. } => (declared, self.cursors.get(name).map(|c| c.columns())),
            Statement::Execute { name, .. } => (declared, self.prepared.get(name).and_then(|p| p.columns().cloned())),
            _ => crate::sql::describe::describe(&context, &parsed.statement, declared)?,
        };
        let fast = FastPlan::compile(&parsed.statement, &parameters, &catalog, &context.env.search_path).map(Arc::new);
        let inner = PreparedInner { parsed, parameters, columns, fast, generation: catalog.generation };
        Ok(Prepared(Arc::new(inner)))
    }

    fn check_failed(&mut self, parsed: &ParsedStatement) -> Result<(), SqlError> {
        if self.core.failed.swap(false, std::sync::atomic::Ordering::AcqRel) {
            self.fail_block();
        }
        if self.transaction.state == State::Failed && !parsed.ends_transaction() {
            return Err(SqlError::new(
                code::IN_FAILED_SQL_TRANSACTION,
                "current transaction is aborted, commands ignored until end of transaction block",
            ));
        }
        Ok(())
    }

    /// Parses and runs a text of one or more statements to their ends (for tests and tools; the wire layer streams).
    ///
    /// # Errors
    /// The first statement's that fails; the others do not run.
    pub async fn run(&mut self, sql: &str) -> Result<Vec<Execution>, SqlError> {
        if let Some(result) = self.execute_cached(sql).await {
            return result.map(|e| vec![e]);
        }
        let statements = self.parse(sql)?;
        if statements.len() > 1 {
            self.begin_implicit_block();
        }
        let mut results = Vec::new();
        for statement in &statements {
            let outcome = async {
                let prepared = self.prepare(statement, &[]).await?;
                self.execute(&prepared, Vec::new()).await
            }
            .await;
            match outcome {
                Ok(mut execution) => {
                    if let Execution::Rows(rows) = &mut execution {
                        let all = match rows.collect().await {
                            Ok(all) => all,
                            Err(fault) => {
                                self.implicit_block = false;
                                self.after_error().await;
                                return Err(fault);
                            }
                        };
                        let tag = Tag::Fixed(rows.tag());
                        execution = Execution::Rows(RowStream::ready(Arc::clone(rows.columns()), tag, all));
                    }
                    results.push(execution);
                }
                Err(fault) => {
                    self.implicit_block = false;
                    self.after_error().await;
                    return Err(fault);
                }
            }
        }
        self.sync().await?;
        Ok(results)
    }

    /// Runs a prepared statement with its parameters' values.
    ///
    /// # Errors
    /// Everything that can go wrong. Outside a block the statement's transaction is rolled back then; a block has failed.
    pub async fn execute(&mut self, prepared: &Prepared, parameters: Vec<Option<Datum>>) -> Result<Execution, SqlError> {
        let timeout_ms = self.settings.milliseconds("statement_timeout");
        let result = if timeout_ms == 0 {
            self.execute_inner(prepared, parameters).await
        } else {
            let limit = std::time::Duration::from_millis(timeout_ms);
            match tokio::time::timeout(limit, self.execute_inner(prepared, parameters)).await {
                Ok(result) => result,
                Err(_) => Err(SqlError::new(code::QUERY_CANCELED, "canceling statement due to statement timeout")),
            }
        };
        match result {
            Ok(execution) => Ok(execution),
            Err(fault) => {
                self.after_error().await;
                Err(fault)
            }
        }
    }

    /// What an error means for the transaction. The wire layer calls it when rows that it was sending failed.
    pub async fn after_error(&mut self) {
        // Faults of the rollback itself are the store's to repair; the client has its error already.
        let _ = self.core.finish(false).await;
        match self.transaction.state {
            State::Idle => self.core.store.lock().await.end_statement(),
            State::Failed => {}
            State::Single | State::Implicit => {
                self.implicit_block = false;
                let _ = self.rollback().await;
            }
            State::Block => {
                self.transaction.state = State::Failed;
                if self.transaction.savepoints.is_empty() {
                    let _ = self.core.store.lock().await.rollback().await;
                }
            }
        }
        self.core.failed.store(false, std::sync::atomic::Ordering::Release);
    }

    async fn execute_inner(&mut self, prepared: &Prepared, parameters: Vec<Option<Datum>>) -> Result<Execution, SqlError> {
        self.core.finish(false).await?;
        self.check_failed(&prepared.0.parsed)?;
        self.core.begin_statement();
        if parameters.len() != prepared.0.parameters.len() {
            return Err(SqlError::new(
                code::PROTOCOL_VIOLATION,
                format!(
                    "bind message supplies {} parameters, but prepared statement requires {}",
                    parameters.len(),
                    prepared.0.parameters.len()
                ),
            ));
        }
        if let Some(fast) = &prepared.0.fast
            && !self.implicit_block
            && let Some(catalog) = self.known_catalog()
            && (catalog.generation == prepared.0.generation && self.transaction.catalog.is_none())
            && let Some(execution) = self.run_fast(fast, &parameters, &catalog).await?
        {
            return Ok(execution);
        }
        let parsed = Arc::clone(&prepared.0.parsed);
        if let Some(execution) = self.control(&parsed.statement).await? {
            return Ok(execution);
        }
        let values = prepared.0.parameters.iter().copied().zip(parameters).collect();
        self.execute_statement(&parsed, values).await
    }

    /// Runs a statement that works on data or the catalog, in its transaction.
    pub(in crate::sql) async fn execute_statement(
        &mut self,
        parsed: &ParsedStatement,
        parameters: Vec<Parameter>,
    ) -> Result<Execution, SqlError> {
        self.ensure_transaction().await?;
        self.transaction.touched = true;
        self.core.store.lock().await.new_statement();
        let result = Box::pin(crate::sql::execute::statement(self, parsed, parameters)).await?;
        if self.transaction.state != State::Single {
            return Ok(result);
        }
        match result {
            Execution::Rows(rows) => {
                // The rows' end is the commit.
                self.core.open.store(true, std::sync::atomic::Ordering::Release);
                self.end_transaction(true).await;
                Ok(Execution::Rows(rows))
            }
            Execution::CopyIn(copy) => {
                self.core.open.store(true, std::sync::atomic::Ordering::Release);
                self.end_transaction(true).await;
                Ok(Execution::CopyIn(copy))
            }
            Execution::CopyOut(copy) => {
                self.core.open.store(true, std::sync::atomic::Ordering::Release);
                self.end_transaction(true).await;
                Ok(Execution::CopyOut(copy))
            }
            other => {
                self.commit().await?;
                Ok(other)
            }
        }
    }

    pub(in crate::sql) async fn run_fast(
        &mut self,
        plan: &Arc<FastPlan>,
        parameters: &[Option<Datum>],
        catalog: &Arc<Catalog>,
    ) -> Result<Option<Execution>, SqlError> {
        self.core.finish(false).await?;
        self.core.begin_statement();
        crate::sql::fastpath::run(self, plan, parameters, catalog).await
    }

    /// Start of the running transaction, or now.
    pub(in crate::sql) fn statement_clock(&self) -> i64 {
        if self.transaction.state == State::Idle { now_micros() } else { self.transaction.started_micros }
    }

    /// Refuses a statement that writes in a transaction that must not.
    pub(in crate::sql) fn require_writable(&self, statement: &str) -> Result<(), SqlError> {
        let read_only = match self.transaction.state {
            State::Idle => self.settings.get("default_transaction_read_only") == "on",
            _ => self.transaction.read_only,
        };
        if read_only {
            let message = format!("cannot execute {statement} in a read-only transaction");
            return Err(SqlError::new(code::READ_ONLY_SQL_TRANSACTION, message));
        }
        Ok(())
    }

    /// A query has run in the transaction.
    pub(in crate::sql) fn touch(&mut self) {
        self.transaction.touched = true;
    }

    /// The store has committed the statement's own transaction.
    pub(in crate::sql) async fn committed(&mut self) {
        self.end_transaction(true).await;
        self.forget_transaction_settings();
    }
}
