//! From a statement to its executor, inside the statement's transaction.
//!
//! The relation locks that a statement needs are taken before it looks at the catalog for good (`relation_locks`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use datafusion::physical_plan::displayable;
use datafusion::sql::sqlparser::ast;
use futures::StreamExt as _;
use rustydb::ids::PartitionId;
use rustydb::store::{LockMode, WaitPolicy};

use super::api::{ColumnDesc, Execution, RowStream, Tag};
use super::catalog::Table;
use super::context::Context;
use super::dferror::from_datafusion;
use super::dml::{insert, update};
use super::error::{SqlError, code};
use super::parse::{CopyDirection, ParsedStatement, Statement};
use super::plan::{Parameter, target_table};
use super::session::{SqlSession, State};
use super::types::{Datum, PgType};

/// Runs a statement.
///
/// # Errors
/// Everything that can go wrong with it.
pub async fn statement(
    session: &mut SqlSession,
    parsed: &ParsedStatement,
    parameters: Vec<Parameter>,
) -> Result<Execution, SqlError> {
    let single = session.transaction.state == State::Single;
    let catalog = session.lock_relations_of(&parsed.statement).await?;
    let context = session.context(catalog, parameters.clone());
    match &parsed.statement {
        Statement::Query(query) => {
            if let Some(name) = set_config(query) {
                return session.set_config(&name, query);
            }
            super::select::run(&context, query, single).await
        }
        Statement::Insert(insert) => {
            let (table, _) = insert::table_of(&context, insert)?;
            let context = for_writing(session, context, &table, parameters, "INSERT").await?;
            insert::run(&context, insert).await
        }
        Statement::Update(statement) => {
            let table = update::update_target(&context, statement)?.table;
            let context = for_writing(session, context, &table, parameters, "UPDATE").await?;
            update::update_target(&context, statement)?.run(&context, statement.returning.as_deref()).await
        }
        Statement::Delete(statement) => {
            let table = update::delete_target(&context, statement)?.table;
            let context = for_writing(session, context, &table, parameters, "DELETE").await?;
            update::delete_target(&context, statement)?.run(&context, statement.returning.as_deref()).await
        }
        Statement::Ddl(statement) => super::ddl::run(session, statement).await,
        Statement::AlterSequence { name, if_exists, changes } => {
            super::ddl::sequence::alter(session, name, *if_exists, changes).await
        }
        Statement::Explain { analyze, verbose, statement } => explain(session, &context, *analyze, *verbose, statement).await,
        Statement::Declare { name, hold, query } => {
            let Statement::Query(query) = &query.statement else {
                return Err(SqlError::syntax("DECLARE CURSOR takes a SELECT"));
            };
            let Execution::Rows(rows) = super::select::run(&context, query, false).await? else {
                return Err(SqlError::internal("a query without rows"));
            };
            session.declare(name, *hold, rows).await
        }
        Statement::Copy(copy) => match copy.direction {
            CopyDirection::In => {
                let super::parse::CopySource::Table(name, _) = &copy.source else {
                    return Err(SqlError::syntax("COPY FROM takes a table"));
                };
                let table = target_table(&context.catalog, &context.env, name)?;
                let context = for_writing(session, context, &table, parameters, "COPY FROM").await?;
                super::copy::copy_in(&context, copy, single)
            }
            CopyDirection::Out => super::copy::copy_out(&context, copy, single).await,
        },
        Statement::Vacuum(names) => {
            if !single {
                return Err(SqlError::new(code::ACTIVE_SQL_TRANSACTION, "VACUUM cannot run inside a transaction block"));
            }
            vacuum(&context, names).await
        }
        Statement::Lock { tables, mode, nowait } => {
            if single {
                return Err(SqlError::new(code::NO_ACTIVE_SQL_TRANSACTION, "LOCK TABLE can only be used in transaction blocks"));
            }
            let mode = match mode.as_str() {
                // Where the six modes have none of the kind, the weakest that keeps out whatever PostgreSQL's keeps out.
                "ACCESS SHARE" => LockMode::ConcurrentRead,
                "ROW SHARE" | "ROW EXCLUSIVE" => LockMode::ConcurrentWrite,
                "SHARE" => LockMode::ProtectedRead,
                "SHARE UPDATE EXCLUSIVE" | "SHARE ROW EXCLUSIVE" | "EXCLUSIVE" => LockMode::ProtectedWrite,
                "ACCESS EXCLUSIVE" => LockMode::Exclusive,
                other => return Err(SqlError::syntax(format!("syntax error at or near \"{other}\""))),
            };
            let wait = if *nowait { WaitPolicy::NoWait } else { WaitPolicy::Wait };
            for name in tables {
                let table = target_table(&context.catalog, &context.env, name)?;
                session.lock_table(&table, mode, wait).await?;
            }
            Ok(Execution::Command { tag: "LOCK TABLE".to_owned() })
        }
        other => Err(SqlError::internal(format!("a statement without an executor: {other:?}"))),
    }
}

/// Sees that the statement may write, and that its table is locked; looks at the catalog again if it had to wait.
async fn for_writing(
    session: &mut SqlSession,
    context: Context,
    table: &Arc<Table>,
    parameters: Vec<Parameter>,
    word: &str,
) -> Result<Context, SqlError> {
    session.require_writable(word)?;
    session.lock_relation(table.oid, LockMode::ConcurrentWrite).await?;
    let catalog = session.catalog().await?;
    if Arc::ptr_eq(&catalog, &context.catalog) {
        return Ok(context);
    }
    Ok(session.context(catalog, parameters))
}

async fn vacuum(context: &Context, names: &[ast::ObjectName]) -> Result<Execution, SqlError> {
    let tables: Vec<Arc<Table>> = if names.is_empty() {
        context
            .catalog
            .relations()
            .filter_map(|r| match r {
                super::catalog::Relation::Table(table) => Some(Arc::clone(table)),
                _ => None,
            })
            .collect()
    } else {
        names.iter().map(|name| target_table(&context.catalog, &context.env, name)).collect::<Result<_, _>>()?
    };
    for table in tables {
        let partitions = std::iter::once(table.partition).chain(table.secondary_indexes().map(|i| i.partition));
        for partition in partitions {
            let work = async { Ok(context.db.store.vacuum(PartitionId(partition)).await?) };
            context.core.unless_canceled(work).await?;
        }
    }
    Ok(Execution::Command { tag: "VACUUM".to_owned() })
}

fn lines(text: &str) -> Execution {
    let columns = [ColumnDesc::new("QUERY PLAN", PgType::Text)].into();
    let rows = text.lines().map(|line| vec![Some(Datum::Text(line.to_owned()))]).collect();
    Execution::Rows(RowStream::ready(columns, Tag::Fixed("EXPLAIN".to_owned()), rows))
}

async fn explain(
    session: &mut SqlSession,
    context: &Context,
    analyze: bool,
    verbose: bool,
    inner: &ParsedStatement,
) -> Result<Execution, SqlError> {
    let query = match &inner.statement {
        Statement::Query(query) => {
            let mut query = query.clone();
            query.locks.clear();
            query
        }
        Statement::Update(statement) => update::update_target(context, statement)?.query,
        Statement::Delete(statement) => update::delete_target(context, statement)?.query,
        Statement::Insert(statement) => match &statement.source {
            Some(source) => source.clone(),
            None => return Ok(lines("Insert of defaults")),
        },
        _ => return Err(SqlError::unsupported("EXPLAIN of this statement")),
    };
    let mut planner = context.planner();
    if let Statement::Update(statement) = &inner.statement {
        planner.show_hidden(update::update_target(context, statement)?.table.oid);
    }
    if let Statement::Delete(statement) = &inner.statement {
        planner.show_hidden(update::delete_target(context, statement)?.table.oid);
    }
    let plan = planner.plan(&query, &context.parameters, true)?;
    let physical = planner.physical(&plan).await?;
    let mut text = String::new();
    match &inner.statement {
        Statement::Update(_) => text.push_str("Update\n"),
        Statement::Delete(_) => text.push_str("Delete\n"),
        Statement::Insert(_) => text.push_str("Insert\n"),
        _ => {}
    }
    if analyze {
        let started = std::time::Instant::now();
        context.core.rows_scanned.store(0, Ordering::Relaxed);
        let mut rows = 0usize;
        if matches!(inner.statement, Statement::Query(_)) {
            let mut stream = planner.execute(Arc::clone(&physical))?;
            while let Some(batch) = stream.next().await {
                rows += batch.map_err(from_datafusion)?.num_rows();
            }
        } else {
            let statement = inner.clone();
            let parameters = context.parameters.to_vec();
            if let Execution::Rows(mut returned) = Box::pin(self::statement(session, &statement, parameters)).await? {
                rows = returned.collect().await?.len();
            }
        }
        text.push_str(&displayable(physical.as_ref()).indent(verbose).to_string());
        let scanned = context.core.rows_scanned.load(Ordering::Relaxed);
        text.push_str(&format!("Rows returned: {rows}, rows scanned: {scanned}\n"));
        text.push_str(&format!("Execution Time: {:.3} ms\n", started.elapsed().as_secs_f64() * 1000.0));
    } else {
        text.push_str(&displayable(physical.as_ref()).indent(verbose).to_string());
    }
    Ok(lines(&text))
}

/// `SELECT set_config(...)` on its own: the name of the output column.
fn set_config(query: &ast::Query) -> Option<String> {
    let ast::SetExpr::Select(select) = &*query.body else { return None };
    let (
        [
            ast::SelectItem::UnnamedExpr(ast::Expr::Function(function))
            | ast::SelectItem::ExprWithAlias { expr: ast::Expr::Function(function), .. },
        ],
        [],
    ) = (select.projection.as_slice(), select.from.as_slice())
    else {
        return None;
    };
    let name = function.name.0.last()?.as_ident().map(super::parse::fold)?;
    (name == "set_config").then_some(name)
}

impl SqlSession {
    fn set_config(&mut self, name: &str, query: &ast::Query) -> Result<Execution, SqlError> {
        let ast::SetExpr::Select(select) = &*query.body else { return Err(SqlError::internal("set_config")) };
        let (ast::SelectItem::UnnamedExpr(ast::Expr::Function(function))
        | ast::SelectItem::ExprWithAlias { expr: ast::Expr::Function(function), .. }) = &select.projection[0]
        else {
            return Err(SqlError::internal("set_config"));
        };
        let arguments = super::rewrite::arguments(function);
        let text = |at: usize| arguments.get(at).and_then(|e| super::rewrite::string_literal(e)).map(str::to_owned);
        let (Some(setting), Some(value)) = (text(0), text(1)) else {
            return Err(SqlError::unsupported("set_config of anything but literals"));
        };
        self.settings.set(&setting, Some(&value))?;
        let value = self.settings.get(&setting.to_lowercase()).to_owned();
        let columns = [ColumnDesc::new(name, PgType::Text)].into();
        Ok(Execution::Rows(RowStream::ready(columns, Tag::Counted("SELECT"), vec![vec![Some(Datum::Text(value))]])))
    }
}
