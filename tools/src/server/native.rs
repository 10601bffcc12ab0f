//! Answers native clients' requests: rows by primary key, through the SQL layer, so that a row that such a client writes keeps
//! to the table's constraints, indexes and types like any other.
//!
//! One handler for each client, in the thread that `rustydb-shm` serves it by; a table's four statements are prepared once
//! and kept, at most [`TABLES_MAX`] tables' of them. They are made anew when the catalog has changed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rustydb::config::ServerConfig;
use rustydb_gateway::sql::catalog::{Catalog, Column, Table};
use rustydb_gateway::sql::error::SqlError;
use rustydb_gateway::sql::types::{Datum, PgType, Row};
use rustydb_gateway::sql::{Database, Execution, Prepared, SqlSession, Startup, TransactionStatus};
use rustydb_shm::native::wire::{ROWS_MAX, row_bytes};
use rustydb_shm::native::{Endpoint, EndpointOptions, Handler, Interrupter, Isolation, MESSAGE_BYTES_MAX, Reply, Request, Value};
use tokio::runtime::Handle;

use super::listen::listen;

/// Most tables whose statements a client's handler keeps.
const TABLES_MAX: usize = 1_000;
/// Most limits of scans of a table whose statements it keeps.
const SCANS_MAX: usize = 64;
/// Bytes of a scan's rows after which it says that there are more.
const ROWS_BYTES_MAX: usize = MESSAGE_BYTES_MAX / 2;

/// Begins to serve native clients as configured; nothing when nothing is.
pub(super) fn start(config: &ServerConfig, database: &Arc<Database>) -> Option<Endpoint> {
    let socket = Some(config.native_socket.clone()).filter(|path| !path.as_os_str().is_empty());
    let (address, clients_max) = (config.native_address, config.native_clients as usize);
    if socket.is_none() && address.is_none() {
        return None;
    }
    let options = EndpointOptions { socket, clients_max, spin: Duration::from_micros(config.native_spin) };
    let (database, runtime) = (database.clone(), Handle::current());
    let make = move || {
        let session = NativeSession::new(&database, runtime.clone())?;
        Ok(Box::new(session) as Box<dyn Handler>)
    };
    let port = address.map(|address| listen(address, "native clients", config)).transpose();
    match port.and_then(|port| Endpoint::start(options, port, make)) {
        Ok(endpoint) => {
            tracing::info!(socket = %config.native_socket.display(), ?address, "serving native clients");
            Some(endpoint)
        }
        Err(error) => {
            tracing::warn!(%error, socket = %config.native_socket.display(), ?address, "native clients are not served");
            None
        }
    }
}

/// One client's session.
pub(super) struct NativeSession {
    runtime: Handle,
    sql: SqlSession,
    database: Arc<Database>,
    tables: HashMap<String, Statements>,
}

/// What is prepared for a table.
struct Statements {
    /// Version of the catalog that they were made from.
    generation: u64,
    get: Prepared,
    put: Prepared,
    delete: Prepared,
    /// A scan's text up to its limit, by its bounds: none, a lower one, an upper one, both.
    scan_texts: [String; 4],
    scan_kind: PgType,
    /// By bounds and limit.
    scans: HashMap<(usize, u32), Prepared>,
}

impl NativeSession {
    pub(super) fn new(database: &Arc<Database>, runtime: Handle) -> Result<NativeSession, String> {
        let startup = Startup { user: "postgres".into(), database: "postgres".into(), ..Startup::default() };
        let sql = SqlSession::new(database.clone(), startup).map_err(|error| error.message().to_owned())?;
        Ok(NativeSession { runtime, sql, database: database.clone(), tables: HashMap::new() })
    }

    async fn carry_out(&mut self, request: Request) -> Result<Reply, SqlError> {
        match request {
            Request::Begin(Isolation::ReadCommitted) => self.command("BEGIN ISOLATION LEVEL READ COMMITTED").await,
            Request::Begin(Isolation::RepeatableRead) => self.command("BEGIN ISOLATION LEVEL REPEATABLE READ").await,
            Request::Commit => self.command("COMMIT").await,
            Request::Rollback => self.command("ROLLBACK").await,
            Request::Get { table, key } => {
                let statement = self.statements(&table).await?.get.clone();
                let row = self.rows(&statement, &key).await?.0.pop();
                Ok(Reply::Row(row))
            }
            Request::Put { table, row } => {
                let statement = self.statements(&table).await?.put.clone();
                self.change(&statement, &row).await
            }
            Request::Delete { table, key } => {
                let statement = self.statements(&table).await?.delete.clone();
                self.change(&statement, &key).await
            }
            Request::Scan { table, lower, upper, limit } => {
                let which = usize::from(lower.is_some()) + 2 * usize::from(upper.is_some());
                let limit = limit.min(ROWS_MAX);
                let statement = self.scan(&table, which, limit).await?;
                let bounds: Vec<Value> = lower.into_iter().chain(upper).collect();
                let (mut rows, cut) = self.rows(&statement, &bounds).await?;
                let more = cut || rows.len() > limit as usize;
                rows.truncate(limit as usize);
                Ok(Reply::Rows { rows, more })
            }
        }
    }

    /// The request has failed, and the transaction with it.
    async fn failed(&mut self, error: &SqlError) -> Reply {
        self.sql.after_error().await;
        Reply::Refused { sqlstate: error.code().to_owned(), message: error.message().to_owned() }
    }

    async fn command(&mut self, text: &str) -> Result<Reply, SqlError> {
        for mut execution in self.sql.run(text).await? {
            // COMMIT of a transaction that has failed rolls back, which is no success here.
            if let Execution::Command { tag } = &mut execution
                && text == "COMMIT"
                && tag != "COMMIT"
            {
                return Err(SqlError::new("25P02", "the transaction had failed: it was rolled back"));
            }
        }
        Ok(Reply::Done(0))
    }

    async fn execution(&mut self, statement: &Prepared, values: &[Value]) -> Result<Execution, SqlError> {
        let kinds = statement.parameters();
        if kinds.len() != values.len() {
            let message = format!("{} values were given for {}", values.len(), kinds.len());
            return Err(SqlError::new("22023", message));
        }
        let parameters = kinds.iter().zip(values).map(|(kind, value)| datum(*kind, value)).collect::<Result<_, _>>()?;
        self.sql.execute(statement, parameters).await
    }

    /// A query's rows, and whether they were cut for their length.
    async fn rows(&mut self, statement: &Prepared, values: &[Value]) -> Result<(Vec<Vec<Value>>, bool), SqlError> {
        let Execution::Rows(mut stream) = self.execution(statement, values).await? else {
            return Err(SqlError::internal("a query without rows"));
        };
        let kinds: Vec<PgType> = stream.columns().iter().map(|column| column.kind).collect();
        let (mut rows, mut bytes, mut cut) = (Vec::new(), 0, false);
        // To its end, which is the statement's, whatever is given out of it.
        while let Some(batch) = stream.next().await? {
            for row in batch {
                let row = row_of(&kinds, row);
                bytes += row_bytes(&row);
                cut |= bytes > ROWS_BYTES_MAX && !rows.is_empty();
                if !cut {
                    rows.push(row);
                }
            }
        }
        drop(stream);
        self.sql.sync().await?;
        Ok((rows, cut))
    }

    async fn change(&mut self, statement: &Prepared, values: &[Value]) -> Result<Reply, SqlError> {
        let tag = match self.execution(statement, values).await? {
            Execution::Command { tag } => tag,
            Execution::Rows(mut stream) => {
                stream.collect().await?;
                stream.tag()
            }
            _ => return Err(SqlError::internal("a change that is none")),
        };
        self.sql.sync().await?;
        Ok(Reply::Done(tag.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0)))
    }

    async fn statements(&mut self, name: &str) -> Result<&Statements, SqlError> {
        let generation = self.database.store().catalog_generation();
        let fresh = self.tables.get(name).is_some_and(|known| generation != 0 && known.generation == generation);
        if !fresh {
            let catalog = self.database.current_catalog().await?;
            let table = find(&catalog, name)?;
            let texts = Texts::of(&catalog, table)?;
            let statements = Statements {
                generation,
                get: self.prepare(&texts.get, &texts.key_kinds).await?,
                put: self.prepare(&texts.put, &texts.kinds).await?,
                delete: self.prepare(&texts.delete, &texts.key_kinds).await?,
                scan_texts: texts.scans,
                scan_kind: texts.key_kinds[0],
                scans: HashMap::new(),
            };
            if self.tables.len() >= TABLES_MAX {
                self.tables.clear();
            }
            self.tables.insert(name.to_owned(), statements);
        }
        Ok(&self.tables[name])
    }
}

impl NativeSession {
    async fn prepare(&mut self, text: &str, kinds: &[PgType]) -> Result<Prepared, SqlError> {
        let parsed = self.sql.parse(text)?;
        let kinds: Vec<Option<PgType>> = kinds.iter().copied().map(Some).collect();
        self.sql.prepare(&parsed[0], &kinds).await
    }

    async fn scan(&mut self, table: &str, which: usize, limit: u32) -> Result<Prepared, SqlError> {
        let known = self.statements(table).await?;
        if let Some(statement) = known.scans.get(&(which, limit)) {
            return Ok(statement.clone());
        }
        // One more than asked for tells whether there are more.
        let text = format!("{} LIMIT {}", known.scan_texts[which], limit + 1);
        let kinds = vec![known.scan_kind; which.count_ones() as usize];
        let statement = self.prepare(&text, &kinds).await?;
        if let Some(known) = self.tables.get_mut(table) {
            if known.scans.len() >= SCANS_MAX {
                known.scans.clear();
            }
            known.scans.insert((which, limit), statement.clone());
        }
        Ok(statement)
    }
}

impl Handler for NativeSession {
    fn answer(&mut self, request: Request) -> Reply {
        let runtime = self.runtime.clone();
        runtime.block_on(async {
            match self.carry_out(request).await {
                Ok(reply) => reply,
                Err(error) => self.failed(&error).await,
            }
        })
    }

    fn too_long(&mut self, bytes: usize) -> Reply {
        let message =
            format!("the answer of {bytes} bytes is longer than the {MESSAGE_BYTES_MAX} of a message: use SQL for such rows");
        let error = SqlError::new("54000", message);
        self.runtime.clone().block_on(self.failed(&error))
    }

    fn in_transaction(&self) -> bool {
        self.sql.transaction_status() != TransactionStatus::Idle
    }

    fn interrupter(&self) -> Interrupter {
        let canceler = self.sql.canceler();
        Box::new(move |sqlstate, words| canceler.interrupt(sqlstate, words.to_owned()))
    }
}

fn find<'a>(catalog: &'a Catalog, name: &str) -> Result<&'a Table, SqlError> {
    let (schema, table) = name.split_once('.').map_or((None, name), |(schema, table)| (Some(schema), table));
    catalog.resolve_table(schema, table, &["public".to_owned()]).map(|table| &**table)
}

/// A table's statements as SQL.
struct Texts {
    get: String,
    put: String,
    delete: String,
    scans: [String; 4],
    key_kinds: Vec<PgType>,
    kinds: Vec<PgType>,
}

impl Texts {
    fn of(catalog: &Catalog, table: &Table) -> Result<Texts, SqlError> {
        let name = format!("{}.{}", quoted(catalog.schema_name(table.schema)), quoted(&table.name));
        let Some(key) = table.primary_key() else {
            return Err(SqlError::unsupported(format_args!("a native client on {name}, which has no primary key")));
        };
        let key: Vec<_> = key.columns.iter().map(|column| table.column_by_number(column.number)).collect();
        let columns: Vec<_> = table.live_columns().collect();
        let list = |parts: Vec<String>, between: &str| parts.join(between);
        let all = list(columns.iter().map(|column| quoted(&column.name)).collect(), ", ");
        let keys = list(key.iter().map(|column| quoted(&column.name)).collect(), ", ");
        let equal = |(number, column): (usize, &&Column)| format!("{} = ${number}", quoted(&column.name));
        let by_key = list((1..).zip(&key).map(equal).collect(), " AND ");
        let values = list((1..=columns.len()).map(|number| format!("${number}")).collect(), ", ");
        let others = columns.iter().filter(|column| key.iter().all(|key| key.number != column.number));
        let taken = |column: &&Column| format!("{0} = EXCLUDED.{0}", quoted(&column.name));
        let replaced = list(others.map(taken).collect(), ", ");
        let otherwise = if replaced.is_empty() { "NOTHING".to_owned() } else { format!("UPDATE SET {replaced}") };
        let first = quoted(&key[0].name);
        let bounds = ["", "WHERE {k} >= $1", "WHERE {k} < $1", "WHERE {k} >= $1 AND {k} < $2"];
        Ok(Texts {
            get: format!("SELECT {all} FROM {name} WHERE {by_key}"),
            put: format!("INSERT INTO {name} ({all}) VALUES ({values}) ON CONFLICT ({keys}) DO {otherwise}"),
            delete: format!("DELETE FROM {name} WHERE {by_key}"),
            scans: bounds.map(|bound| format!("SELECT {all} FROM {name} {} ORDER BY {keys}", bound.replace("{k}", &first))),
            key_kinds: key.iter().map(|column| column.kind).collect(),
            kinds: columns.iter().map(|column| column.kind).collect(),
        })
    }
}

/// A client's value as one of a column's type.
fn datum(kind: PgType, value: &Value) -> Result<Option<Datum>, SqlError> {
    let out_of_range = || SqlError::new("22003", format!("{} out of range", kind.sql_name()));
    let parsed = |text: &str| Datum::parse(kind, -1, text);
    Ok(Some(match (value, kind) {
        (Value::Null, _) => return Ok(None),
        (Value::Int(value), PgType::Int2) => Datum::Int2(i16::try_from(*value).map_err(|_| out_of_range())?),
        (Value::Int(value), PgType::Int4) => Datum::Int4(i32::try_from(*value).map_err(|_| out_of_range())?),
        (Value::Int(value), PgType::Int8) => Datum::Int8(*value),
        (Value::Int(value), _) => parsed(&value.to_string())?,
        (Value::Bool(value), PgType::Bool) => Datum::Bool(*value),
        (Value::Float(value), PgType::Float8) => Datum::Float8(*value),
        (Value::Float(value), _) => parsed(&value.to_string())?,
        (Value::Text(value), _) => parsed(value)?,
        (Value::Bytes(value), PgType::Bytea) => Datum::Bytea(value.clone()),
        (Value::Bool(_) | Value::Bytes(_), _) => {
            return Err(SqlError::new("42804", format!("a value of another type was given for one of type {}", kind.sql_name())));
        }
    }))
}

fn row_of(kinds: &[PgType], row: Row) -> Vec<Value> {
    let value = |(kind, datum): (&PgType, Option<Datum>)| match datum {
        None => Value::Null,
        Some(Datum::Bool(value)) => Value::Bool(value),
        Some(Datum::Int2(value)) => Value::Int(value.into()),
        Some(Datum::Int4(value)) => Value::Int(value.into()),
        Some(Datum::Int8(value)) => Value::Int(value),
        Some(Datum::Float4(value)) => Value::Float(value.into()),
        Some(Datum::Float8(value)) => Value::Float(value),
        Some(Datum::Bytea(value)) => Value::Bytes(value),
        Some(other) => Value::Text(other.to_text(*kind, -1)),
    };
    kinds.iter().zip(row).map(value).collect()
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
