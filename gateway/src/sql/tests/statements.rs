//! Statements and their results, as PostgreSQL 15 gives them.

use std::sync::Arc;

use super::double;
use crate::sql::{Database, Execution, Limits, SqlSession, Startup};

pub fn session_of(db: &Arc<Database>) -> SqlSession {
    let startup = Startup { user: "postgres".into(), database: "postgres".into(), settings: Vec::new(), backend_pid: 7 };
    SqlSession::new(Arc::clone(db), startup).unwrap()
}

fn session() -> SqlSession {
    session_of(&Database::new(double::store(), Limits::default()).unwrap())
}

/// Runs statements; the last one's outcome as text: rows as `a|b`, one a line, else the tag.
pub async fn outcome(session: &mut SqlSession, sql: &str) -> String {
    let executions = match session.run(sql).await {
        Ok(executions) => executions,
        Err(fault) => return format!("{} {}", fault.code(), fault.message()),
    };
    match executions.into_iter().next_back() {
        Some(Execution::Rows(mut rows)) => {
            let columns = Arc::clone(rows.columns());
            let text = |row: &crate::sql::Row| {
                let cells = row.iter().zip(columns.iter());
                cells
                    .map(|(v, c)| v.as_ref().map_or_else(String::new, |v| v.to_text(c.kind, c.typmod)))
                    .collect::<Vec<_>>()
                    .join("|")
            };
            let all = match rows.collect().await {
                Ok(all) => all,
                Err(fault) => return format!("{} {}", fault.code(), fault.message()),
            };
            all.iter().map(text).collect::<Vec<_>>().join("\n")
        }
        Some(Execution::Command { tag }) => tag,
        Some(Execution::CopyIn(_)) => "COPY IN".to_owned(),
        Some(Execution::CopyOut(mut out)) => {
            let mut all = Vec::new();
            while let Some(lines) = out.next().await.unwrap() {
                all.extend(lines.concat());
            }
            String::from_utf8(all).unwrap()
        }
        Some(Execution::Empty) | None => String::new(),
    }
}

/// A script: statements, each followed by `-- ` lines with its outcome.
async fn check(name: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/sql/tests/{name}.sql"));
    let script = std::fs::read_to_string(path).unwrap();
    let mut session = session();
    let mut wrong = Vec::new();
    for block in script.split("\n\n") {
        let (mut sql, mut expected) = (Vec::new(), Vec::new());
        for line in block.lines().filter(|l| !l.is_empty()) {
            match line.strip_prefix("--") {
                Some(outcome) => expected.push(outcome.strip_prefix(' ').unwrap_or(outcome)),
                None => sql.push(line),
            }
        }
        if sql.is_empty() {
            continue;
        }
        let sql = sql.join("\n");
        let is = outcome(&mut session, &sql).await;
        if is != expected.join("\n") {
            wrong.push(format!("{sql}\n   expected: {}\n   is:       {is}", expected.join("\n             ")));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_go_in_and_come_out() {
    check("basics").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_keep_and_give_up() {
    check("transactions").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn constraints_hold() {
    check("constraints").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_change() {
    check("ddl").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_print_as_postgresql_prints_them() {
    check("types").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_answer() {
    check("queries").await;
}
