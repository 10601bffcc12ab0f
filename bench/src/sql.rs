//! SQL against a server that runs, over PostgreSQL's protocol: RustyDB's, or PostgreSQL's own beside it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;

use crate::Outcome;
use crate::load::{Load, Schedule, drive_threads};
use crate::reads::Dice;
use crate::report::Report;
use crate::store::Operation;
use crate::wire::Connection;

/// The table that it makes, and drops at the end.
const TABLE: &str = "rusty_db_bench";
/// Rows of one INSERT while it is filled.
const LOAD_BATCH: u64 = 500;
/// Rows of a scan.
const SCANNED: u64 = 100;

/// How statements get to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// As text, parsed each time.
    Simple,
    /// Prepared once a client.
    Prepared,
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// The servers: clients are spread over them.
    pub addresses: Vec<SocketAddr>,
    /// Who connects.
    pub user: String,
    /// Where to.
    pub database: String,
    /// How.
    pub protocol: Protocol,
    /// Rows of the table.
    pub rows: u64,
    /// What is done, one after the other.
    pub operations: Vec<Operation>,
    /// A statement to be run instead, as it is.
    pub statement: Option<String>,
    /// Updates among a hundred of the mixture.
    pub write_percent: u32,
    /// How they are asked for.
    pub load: Load,
    /// How long each lasts.
    pub time: Duration,
}

const PREPARED: [(&str, &str); 5] = [
    ("get", "select value from rusty_db_bench where id = $1"),
    ("put", "update rusty_db_bench set value = $2 where id = $1"),
    ("scan", "select id, value from rusty_db_bench where id >= $1 and id < $2"),
    ("begin", "begin"),
    ("commit", "commit"),
];

struct Client {
    connection: Connection,
    protocol: Protocol,
    dice: Dice,
}

impl Client {
    fn open(options: &Options, worker: u32) -> Outcome<Client> {
        let address = options.addresses[worker as usize % options.addresses.len()];
        let said = |error| format!("{address}: {error}");
        let mut connection = Connection::open(address, &options.user, &options.database).map_err(said)?;
        if options.protocol == Protocol::Prepared && options.statement.is_none() {
            for (name, sql) in PREPARED {
                connection.prepare(name, sql).map_err(said)?;
            }
        }
        Ok(Client { connection, protocol: options.protocol, dice: Dice::new(u64::from(worker)) })
    }

    fn run(&mut self, name: &str, parameters: &[&str]) -> Outcome<u64> {
        if self.protocol == Protocol::Prepared {
            return Ok(self.connection.execute(name, parameters)?);
        }
        let (_, sql) = PREPARED.iter().find(|(of, _)| *of == name).expect("one of the list");
        let mut sql = (*sql).to_owned();
        for (index, parameter) in parameters.iter().enumerate() {
            sql = sql.replace(&format!("${}", index + 1), &format!("'{parameter}'"));
        }
        // Numbers are compared with numbers.
        let sql = if name == "put" { sql } else { sql.replace('\'', "") };
        Ok(self.connection.query(&sql)?)
    }

    fn operate(&mut self, options: &Options, operation: Operation, number: u64) -> Outcome<()> {
        if let Some(statement) = &options.statement {
            self.connection.query(statement)?;
            return Ok(());
        }
        let row = self.dice.below(options.rows);
        let operation = match operation {
            Operation::Mixed if self.dice.below(100) < u64::from(options.write_percent) => Operation::Put,
            Operation::Mixed => Operation::Get,
            other => other,
        };
        let value = format!("written by operation {number}");
        match operation {
            Operation::Get | Operation::Mixed => {
                let rows = self.run("get", &[&row.to_string()])?;
                assert_eq!(rows, 1, "every row is there");
            }
            Operation::Put => _ = self.run("put", &[&row.to_string(), &value])?,
            Operation::Scan => {
                let from = row.min(options.rows.saturating_sub(SCANNED));
                let rows = self.run("scan", &[&from.to_string(), &(from + SCANNED).to_string()])?;
                assert_eq!(rows, options.rows.min(SCANNED), "every row is there");
            }
            Operation::Commit => {
                let other = self.dice.below(options.rows);
                self.run("begin", &[])?;
                self.run("get", &[&row.to_string()])?;
                // In the order of the keys, so that no two clients wait for each other.
                self.run("put", &[&row.min(other).to_string(), &value])?;
                self.run("put", &[&row.max(other).to_string(), &value])?;
                self.run("commit", &[])?;
            }
        }
        Ok(())
    }
}

fn load(connection: &mut Connection, rows: u64) -> Outcome<()> {
    connection.query(&format!("drop table if exists {TABLE}"))?;
    connection.query(&format!("create table {TABLE} (id int primary key, value text)"))?;
    for first in (0..rows).step_by(LOAD_BATCH as usize) {
        let batch = first..rows.min(first + LOAD_BATCH);
        let values: Vec<String> = batch.map(|row| format!("({row}, '{}')", "x".repeat(88))).collect();
        connection.query(&format!("insert into {TABLE} values {}", values.join(", ")))?;
    }
    Ok(())
}

/// Takes the figures.
///
/// # Errors
/// When the server can't be reached, or refuses a statement.
pub fn run(options: &Options) -> Outcome<Report> {
    let first = options.addresses[0];
    let said = |error| format!("{first}: {error}; is a server running there? (rusty-db-server dev)");
    let mut connection = Connection::open(first, &options.user, &options.database).map_err(said)?;
    let mut report = Report::new("sql");
    let addresses: Vec<String> = options.addresses.iter().map(ToString::to_string).collect();
    report.setting("servers", addresses.join(" "));
    report.setting("protocol", format!("{:?}", options.protocol));
    report.condition(format!("{} clients, each a thread with a connection, on this machine", options.load.workers()));
    let operations = match &options.statement {
        Some(statement) => {
            report.condition(format!("statement: {statement}"));
            vec![(Operation::Get, "the statement".to_owned())]
        }
        None => {
            report.setting("rows", options.rows);
            load(&mut connection, options.rows)?;
            options.operations.iter().map(|operation| (*operation, operation.words(options.write_percent))).collect()
        }
    };
    let mut ended = Ok(());
    for (operation, words) in operations {
        let schedule = Arc::new(Schedule::lasting(options.load, options.time));
        let open = |worker| Client::open(options, worker);
        match drive_threads(&schedule, open, |client, number| client.operate(options, operation, number)) {
            Ok(samples) => report.series(schedule.series(words, &samples)),
            Err(error) => {
                ended = Err(error);
                break;
            }
        }
    }
    if options.statement.is_none() {
        connection.query(&format!("drop table if exists {TABLE}"))?;
    }
    ended.map(|()| report)
}
