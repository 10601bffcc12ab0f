//! One client's conversation: simple and extended queries, portals, COPY.
//!
//! Runs in the client's task and owns its [`SqlSession`]. Bounded: at most [`STATEMENTS_MAX`] prepared statements and
//! [`PORTALS_MAX`] portals; results are sent as they are made (the socket's back-pressure reaches the query).
//! The order of messages follows PostgreSQL's manual, chapter "Message Flow".

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgwire::messages::PgWireFrontendMessage as Message;
use pgwire::messages::copy::{CopyData, CopyDone, CopyInResponse, CopyOutResponse};
use pgwire::messages::data::{NoData, ParameterDescription};
use pgwire::messages::extendedquery::{Bind, BindComplete, CloseComplete, Execute, Parse, ParseComplete, PortalSuspended};
use pgwire::messages::response::{CommandComplete, EmptyQueryResponse, ReadyForQuery, TransactionStatus as Status};
use pgwire::messages::startup::ParameterStatus;
use tokio::io::{AsyncRead, AsyncWrite};

use super::counters::Counters;
use super::framing::{Connection, FramingError};
use super::leaving::Leave;
use super::rows::{self, CellFormat, Format, Scratch};
use crate::sql::copy::{CopyIn, CopyOut};
use crate::sql::error::{SqlError, code};
use crate::sql::types::{Datum, PgType, Row};
use crate::sql::{ColumnDesc, Execution, Prepared, RowStream, SqlSession, TransactionStatus};

/// Most prepared statements of one client.
pub const STATEMENTS_MAX: usize = 10_000;
/// How long a client that is sent away is listened to before it is told.
const LAST_WORD: Duration = Duration::from_millis(50);
/// How long what it still sends is read, so that it gets its farewell.
const LINGER: Duration = Duration::from_millis(100);
/// Most open portals of one client.
pub const PORTALS_MAX: usize = 1_000;

/// A bound statement.
struct Portal {
    /// `None` for an empty statement.
    statement: Option<Prepared>,
    parameters: Vec<Option<Datum>>,
    result_formats: Vec<i16>,
    state: PortalState,
}

enum PortalState {
    Bound,
    /// The client asked for so many rows and has them; there may be more.
    Suspended(SuspendedRows),
    Done,
}

struct SuspendedRows {
    stream: RowStream,
    /// Rows of the last batch that the client has not asked for yet.
    rest: std::vec::IntoIter<Row>,
}

/// Why a message was not carried out: the client's mistake, or the end of the connection.
enum Trouble {
    Sql(SqlError),
    Connection(FramingError),
}

impl From<SqlError> for Trouble {
    fn from(error: SqlError) -> Self {
        Trouble::Sql(error)
    }
}

impl From<FramingError> for Trouble {
    fn from(error: FramingError) -> Self {
        Trouble::Connection(error)
    }
}

/// The conversation with one client, after its startup.
pub struct Conversation<S> {
    connection: Connection<S>,
    sql: SqlSession,
    statements: HashMap<String, Option<Prepared>>,
    portals: HashMap<String, Portal>,
    scratch: Scratch,
    leave: Leave,
    counters: Arc<Counters>,
    /// Nothing has come since ReadyForQuery.
    rests: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Conversation<S> {
    /// Over a connection that has been welcomed.
    pub fn new(connection: Connection<S>, sql: SqlSession, leave: Leave, counters: Arc<Counters>) -> Conversation<S> {
        Conversation {
            connection,
            sql,
            statements: HashMap::new(),
            portals: HashMap::new(),
            scratch: Scratch::default(),
            leave,
            counters,
            rests: false,
        }
    }

    /// Serves until the client leaves, is sent away or the connection breaks; the session's transaction is then rolled back.
    ///
    /// # Errors
    /// What ended it, other than the client's goodbye.
    pub async fn run(&mut self) -> Result<(), FramingError> {
        self.ready().await?;
        loop {
            let idle = self.rests && self.sql.transaction_status() == TransactionStatus::Idle;
            if idle && self.leave.is_ordered() {
                return self.go().await;
            }
            let message = tokio::select! {
                biased;
                message = self.connection.next() => message,
                () = self.leave.must_go(idle) => return self.go().await,
            };
            self.rests = false;
            let message = match message {
                Ok(message) => message,
                Err(FramingError::Closed) => return Ok(()),
                Err(FramingError::Violation(what)) => {
                    self.farewell(&SqlError::new(code::PROTOCOL_VIOLATION, what.clone())).await;
                    return Err(FramingError::Violation(what));
                }
                Err(error) => return Err(error),
            };
            match message {
                Message::Query(query) => {
                    let came = Instant::now();
                    let done = self.simple_query(&query.query).await;
                    self.counters.count(came.elapsed(), done.is_err());
                    if let Err(trouble) = done {
                        self.report(trouble).await?;
                    }
                    self.portals.retain(|name, _| !name.is_empty());
                    self.ready().await?;
                }
                Message::Terminate(_) => return Ok(()),
                Message::Sync(_) => self.sync().await?,
                Message::Flush(_) => self.connection.flush().await?,
                // The client did not notice yet that its COPY has ended.
                Message::CopyData(_) | Message::CopyDone(_) | Message::CopyFail(_) => {}
                message => {
                    if let Err(trouble) = self.extended(message).await {
                        self.report(trouble).await?;
                        if self.skip_to_sync().await? {
                            return Ok(());
                        }
                        self.sync().await?;
                    }
                }
            }
        }
    }

    /// Sends an idle client away.
    async fn go(&mut self) -> Result<(), FramingError> {
        // A client that gets this together with its last answer takes it for a notice and drops it: so it answers what
        // comes next, if something comes soon.
        tokio::time::timeout(LAST_WORD, self.connection.next()).await.ok();
        let farewell = self.leave.farewell();
        self.farewell(&farewell).await;
        self.connection.part(LINGER).await;
        Ok(())
    }

    /// Tells the client why it is being sent away.
    pub async fn farewell(&mut self, error: &SqlError) {
        self.connection.put(&rows::fatal(error));
        self.connection.flush().await.ok();
    }

    async fn report(&mut self, trouble: Trouble) -> Result<(), FramingError> {
        match trouble {
            Trouble::Sql(error) => {
                self.sql.after_error().await;
                self.notices();
                self.connection.put(&rows::error(&error));
                Ok(())
            }
            Trouble::Connection(error) => Err(error),
        }
    }

    fn notices(&mut self) {
        for notice in self.sql.take_notices() {
            self.connection.put(&rows::notice(&notice));
        }
        for (name, value) in self.sql.take_setting_changes() {
            self.connection.put(&ParameterStatus::new(name, value));
        }
    }

    async fn ready(&mut self) -> Result<(), FramingError> {
        self.notices();
        let status = match self.sql.transaction_status() {
            TransactionStatus::Idle => Status::Idle,
            TransactionStatus::InBlock => Status::Transaction,
            TransactionStatus::Failed => Status::Error,
        };
        if status == Status::Idle && !self.portals.is_empty() {
            self.portals.clear();
        }
        self.connection.put(&ReadyForQuery::new(status));
        self.rests = true;
        self.connection.flush().await
    }

    /// After an error of the extended protocol everything is ignored up to Sync. `true`: the client left instead.
    async fn skip_to_sync(&mut self) -> Result<bool, FramingError> {
        self.connection.flush().await?;
        loop {
            match self.connection.next().await {
                Ok(Message::Sync(_)) => return Ok(false),
                Ok(Message::Terminate(_)) | Err(FramingError::Closed) => return Ok(true),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn sync(&mut self) -> Result<(), FramingError> {
        if let Err(error) = self.sql.sync().await {
            self.connection.put(&rows::error(&error));
        }
        self.ready().await
    }

    /// A session runs one statement at a time: what suspended portals have not given out yet is fetched before the next.
    async fn drain_suspended(&mut self) -> Result<(), Trouble> {
        for portal in self.portals.values_mut() {
            if let PortalState::Suspended(rows) = &mut portal.state {
                let mut all: Vec<Row> = rows.rest.by_ref().collect();
                while let Some(batch) = rows.stream.next().await? {
                    all.extend(batch);
                }
                rows.rest = all.into_iter();
            }
        }
        Ok(())
    }

    async fn simple_query(&mut self, text: &str) -> Result<(), Trouble> {
        self.drain_suspended().await?;
        if let Some(execution) = self.sql.execute_cached(text).await {
            return self.send_execution(execution?).await;
        }
        let statements = self.sql.parse(text)?;
        if statements.is_empty() {
            self.connection.put(&EmptyQueryResponse::new());
            return Ok(());
        }
        if statements.len() > 1 {
            self.sql.begin_implicit_block();
        }
        for statement in &statements {
            let prepared = self.sql.prepare(statement, &[]).await?;
            let execution = self.sql.execute(&prepared, Vec::new()).await?;
            self.send_execution(execution).await?;
        }
        self.sql.sync().await?;
        Ok(())
    }

    /// Sends a whole result with its description, in text, as a simple query's.
    async fn send_execution(&mut self, execution: Execution) -> Result<(), Trouble> {
        let Execution::Rows(mut stream) = execution else { return self.finish_execution(execution).await };
        let columns = stream.columns().clone();
        self.describe_columns(Some(&columns), &[]);
        let formats = cell_formats(&columns, &[]);
        while let Some(batch) = stream.next().await? {
            self.put_rows(batch.into_iter(), &formats).await?;
        }
        self.complete(stream.tag());
        Ok(())
    }

    async fn extended(&mut self, message: Message) -> Result<(), Trouble> {
        match message {
            Message::Parse(parse) => self.parse(parse).await,
            Message::Bind(bind) => self.bind(bind),
            Message::Describe(describe) => {
                let name = describe.name.unwrap_or_default();
                if describe.target_type == b'S' {
                    let statement = self.statement(&name)?.clone();
                    let kinds = statement.as_ref().map_or(&[][..], Prepared::parameters);
                    self.connection.put(&ParameterDescription::new(kinds.iter().map(|kind| kind.oid()).collect()));
                    self.describe_columns(statement.as_ref().and_then(Prepared::columns).map(|columns| &**columns), &[]);
                } else {
                    let portal = self.portals.get(&name).ok_or_else(|| no_portal(&name))?;
                    let (statement, formats) = (portal.statement.clone(), portal.result_formats.clone());
                    self.describe_columns(statement.as_ref().and_then(Prepared::columns).map(|columns| &**columns), &formats);
                }
                Ok(())
            }
            Message::Execute(execute) => {
                let came = Instant::now();
                let done = self.execute(execute).await;
                self.counters.count(came.elapsed(), done.is_err());
                done
            }
            Message::Close(close) => {
                let name = close.name.unwrap_or_default();
                if close.target_type == b'S' {
                    self.statements.remove(&name);
                } else {
                    self.portals.remove(&name);
                }
                self.connection.put(&CloseComplete::new());
                Ok(())
            }
            other => Err(SqlError::new(code::PROTOCOL_VIOLATION, format!("unexpected message {other:?}")).into()),
        }
    }

    async fn parse(&mut self, parse: Parse) -> Result<(), Trouble> {
        let name = parse.name.unwrap_or_default();
        if !name.is_empty() && self.statements.contains_key(&name) {
            let message = format!("prepared statement \"{name}\" already exists");
            return Err(SqlError::new(code::DUPLICATE_PREPARED_STATEMENT, message).into());
        }
        if self.statements.len() >= STATEMENTS_MAX {
            let message = format!("more than {STATEMENTS_MAX} prepared statements");
            return Err(SqlError::new(code::PROGRAM_LIMIT_EXCEEDED, message)
                .with_hint("Close statements that are no longer used.")
                .into());
        }
        let statements = self.sql.parse(&parse.query)?;
        if statements.len() > 1 {
            return Err(SqlError::syntax("cannot insert multiple commands into a prepared statement").into());
        }
        let known: Vec<Option<PgType>> = parse.type_oids.iter().map(|oid| parameter_type(*oid)).collect::<Result<_, _>>()?;
        let prepared = match statements.first() {
            Some(statement) => Some(self.sql.prepare(statement, &known).await?),
            None => None,
        };
        self.statements.insert(name, prepared);
        self.connection.put(&ParseComplete::new());
        Ok(())
    }

    fn bind(&mut self, bind: Bind) -> Result<(), Trouble> {
        let statement = self.statement(&bind.statement_name.unwrap_or_default())?.clone();
        let kinds = statement.as_ref().map_or(&[][..], Prepared::parameters);
        if bind.parameters.len() != kinds.len() {
            let message = format!(
                "bind message supplies {} parameters, but prepared statement requires {}",
                bind.parameters.len(),
                kinds.len()
            );
            return Err(SqlError::new(code::PROTOCOL_VIOLATION, message).into());
        }
        let mut parameters = Vec::with_capacity(kinds.len());
        for (index, (bytes, kind)) in bind.parameters.iter().zip(kinds).enumerate() {
            parameters.push(match bytes {
                None => None,
                Some(bytes) => Some(match Format::of(&bind.parameter_format_codes, index) {
                    Format::Binary => Datum::from_binary(*kind, bytes)?,
                    Format::Text => {
                        let text = std::str::from_utf8(bytes)
                            .map_err(|_| SqlError::new("22021", "invalid byte sequence for encoding \"UTF8\""))?;
                        Datum::parse(*kind, -1, text)?
                    }
                }),
            });
        }
        let name = bind.portal_name.unwrap_or_default();
        if !name.is_empty() && self.portals.contains_key(&name) {
            return Err(SqlError::new(code::DUPLICATE_CURSOR, format!("cursor \"{name}\" already exists")).into());
        }
        if self.portals.len() >= PORTALS_MAX {
            return Err(SqlError::new(code::PROGRAM_LIMIT_EXCEEDED, format!("more than {PORTALS_MAX} open portals")).into());
        }
        let portal = Portal {
            statement: statement.clone(),
            parameters,
            result_formats: bind.result_column_format_codes,
            state: PortalState::Bound,
        };
        self.portals.insert(name, portal);
        self.connection.put(&BindComplete::new());
        Ok(())
    }

    async fn execute(&mut self, execute: Execute) -> Result<(), Trouble> {
        let name = execute.name.unwrap_or_default();
        if self.portals.get(&name).is_some_and(|portal| matches!(portal.state, PortalState::Bound)) {
            self.drain_suspended().await?;
        }
        let portal = self.portals.get_mut(&name).ok_or_else(|| no_portal(&name))?;
        let formats = portal.result_formats.clone();
        let mut rows = match std::mem::replace(&mut portal.state, PortalState::Done) {
            PortalState::Bound => {
                let Some(statement) = portal.statement.clone() else {
                    self.connection.put(&EmptyQueryResponse::new());
                    return Ok(());
                };
                // A lone statement commits by itself, in one trip to the engine; a pipeline is one transaction.
                const SYNC: u8 = b'S';
                if self.connection.next_kind() != Some(SYNC) {
                    self.sql.begin_implicit_block();
                }
                match self.sql.execute(&statement, std::mem::take(&mut portal.parameters)).await? {
                    Execution::Rows(stream) => SuspendedRows { stream, rest: Vec::new().into_iter() },
                    other => return self.finish_execution(other).await,
                }
            }
            PortalState::Suspended(rows) => rows,
            PortalState::Done => {
                let message = format!("portal \"{name}\" cannot be run");
                return Err(SqlError::new(code::OBJECT_NOT_IN_PREREQUISITE_STATE, message).into());
            }
        };
        let cells = cell_formats(rows.stream.columns(), &formats);
        let mut wanted = usize::try_from(execute.max_rows).ok().filter(|rows| *rows > 0).unwrap_or(usize::MAX);
        loop {
            let batch: Vec<Row> = rows.rest.by_ref().take(wanted).collect();
            wanted -= batch.len();
            self.put_rows(batch.into_iter(), &cells).await?;
            if wanted == 0 {
                self.connection.put(&PortalSuspended::new());
                if let Some(portal) = self.portals.get_mut(&name) {
                    portal.state = PortalState::Suspended(rows);
                }
                return Ok(());
            }
            match rows.stream.next().await? {
                Some(batch) => rows.rest = batch.into_iter(),
                None => break,
            }
        }
        self.complete(rows.stream.tag());
        Ok(())
    }

    async fn finish_execution(&mut self, execution: Execution) -> Result<(), Trouble> {
        match execution {
            Execution::Rows(_) => unreachable!("rows were handled by the caller"),
            Execution::Empty => self.connection.put(&EmptyQueryResponse::new()),
            Execution::Command { tag } => self.complete(tag),
            Execution::CopyIn(copy) => self.copy_in(copy).await?,
            Execution::CopyOut(copy) => self.copy_out(copy).await?,
        }
        Ok(())
    }

    async fn copy_in(&mut self, mut copy: CopyIn) -> Result<(), Trouble> {
        self.notices();
        let columns = copy.columns() as i16;
        self.connection.put(&CopyInResponse::new(0, columns, vec![0; columns as usize]));
        self.connection.flush().await?;
        loop {
            match self.connection.next().await? {
                Message::CopyData(data) => copy.feed(&data.data).await?,
                Message::CopyDone(_) => {
                    let tag = copy.finish().await?;
                    self.complete(tag);
                    return Ok(());
                }
                Message::CopyFail(fail) => {
                    return Err(copy.fail(&fail.message).await.into());
                }
                Message::Flush(_) | Message::Sync(_) => {}
                other => {
                    let error = copy.fail("unexpected message").await;
                    let detail = format!("unexpected message during COPY from stdin: {other:?}");
                    return Err(SqlError::new(code::PROTOCOL_VIOLATION, detail).with_detail(error.message()).into());
                }
            }
        }
    }

    async fn copy_out(&mut self, mut copy: CopyOut) -> Result<(), Trouble> {
        self.notices();
        let columns = copy.columns().len() as i16;
        self.connection.put(&CopyOutResponse::new(0, columns, vec![0; columns as usize]));
        while let Some(lines) = copy.next().await? {
            for line in lines {
                self.connection.put(&CopyData::new(line.into()));
            }
            self.connection.flush_if_full().await?;
        }
        self.connection.put(&CopyDone::new());
        self.complete(copy.tag());
        Ok(())
    }

    async fn put_rows(&mut self, rows: impl Iterator<Item = Row>, formats: &[CellFormat]) -> Result<(), FramingError> {
        for row in rows {
            rows::put_row(self.connection.output(), &row, formats, &mut self.scratch);
            self.connection.flush_if_full().await?;
        }
        Ok(())
    }

    fn complete(&mut self, tag: String) {
        self.notices();
        self.connection.put(&CommandComplete::new(tag));
    }

    fn describe_columns(&mut self, columns: Option<&[ColumnDesc]>, formats: &[i16]) {
        let Some(columns) = columns else {
            self.connection.put(&NoData::new());
            return;
        };
        let fields = columns
            .iter()
            .enumerate()
            .map(|(index, column)| {
                rows::field(&column.name, column.table, column.number, column.kind, column.typmod, Format::of(formats, index))
            })
            .collect();
        self.connection.put(&rows::description(fields));
    }

    fn statement(&self, name: &str) -> Result<&Option<Prepared>, SqlError> {
        self.statements.get(name).ok_or_else(|| {
            let message = match name {
                "" => "unnamed prepared statement does not exist".to_owned(),
                name => format!("prepared statement \"{name}\" does not exist"),
            };
            SqlError::new(code::INVALID_SQL_STATEMENT_NAME, message)
        })
    }
}

fn cell_formats(columns: &[ColumnDesc], formats: &[i16]) -> Vec<CellFormat> {
    let cell = |(index, column): (usize, &ColumnDesc)| CellFormat {
        kind: column.kind,
        typmod: column.typmod,
        format: Format::of(formats, index),
    };
    columns.iter().enumerate().map(cell).collect()
}

fn no_portal(name: &str) -> SqlError {
    SqlError::new(code::INVALID_CURSOR_NAME, format!("portal \"{name}\" does not exist"))
}

fn parameter_type(oid: u32) -> Result<Option<PgType>, SqlError> {
    const UNSPECIFIED: u32 = 0;
    match oid {
        UNSPECIFIED => Ok(None),
        oid => match PgType::from_oid(oid) {
            Some(PgType::Unknown) => Ok(None),
            Some(kind) => Ok(Some(kind)),
            None => Err(SqlError::new(code::UNDEFINED_OBJECT, format!("type with OID {oid} does not exist"))),
        },
    }
}
