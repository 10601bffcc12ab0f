//! CREATE and ALTER SEQUENCE.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{self, Expr, SequenceOptions, UnaryOperator, Value};
use rustydb::store::LockMode;

use super::{Change, already_exists};
use crate::sql::api::Execution;
use crate::sql::catalog::{Oid, Relation, Sequence, undefined_table};
use crate::sql::context::SEQUENCE_ORIGIN;
use crate::sql::error::{SqlError, code};
use crate::sql::parse::{SequenceChange, split_name};
use crate::sql::session::SqlSession;
use crate::sql::sqltypes::sql_type;
use crate::sql::types::PgType;

/// A sequence's type and its limits.
#[derive(Clone, Copy)]
pub struct Bounds {
    kind: PgType,
    min: i64,
    max: i64,
}

impl Bounds {
    /// Of an integer type (bigint for any other).
    #[must_use]
    pub fn of(kind: PgType) -> Bounds {
        match kind {
            PgType::Int2 => Bounds { kind, min: i64::from(i16::MIN), max: i64::from(i16::MAX) },
            PgType::Int4 => Bounds { kind, min: i64::from(i32::MIN), max: i64::from(i32::MAX) },
            _ => Bounds { kind: PgType::Int8, min: i64::MIN, max: i64::MAX },
        }
    }
}

fn integer(expr: &Expr) -> Result<i64, SqlError> {
    let text = match expr {
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => format!("-{expr}"),
        Expr::Value(value) => match &value.value {
            Value::Number(digits, _) => digits.clone(),
            other => other.to_string(),
        },
        other => other.to_string(),
    };
    text.parse().map_err(|_| SqlError::syntax(format!("\"{text}\" is no integer in range")))
}

/// A new sequence, its counter set.
///
/// # Errors
/// `22023` for options that contradict each other.
pub async fn build(
    session: &SqlSession,
    schema: Oid,
    name: &str,
    bounds: Bounds,
    options: &[SequenceOptions],
) -> Result<Sequence, SqlError> {
    let (mut increment, mut min, mut max, mut start, mut cache, mut cycle) = (1, None, None, None, 1, false);
    for option in options {
        match option {
            SequenceOptions::IncrementBy(expr, _) => increment = integer(expr)?,
            SequenceOptions::MinValue(expr) => min = expr.as_ref().map(integer).transpose()?,
            SequenceOptions::MaxValue(expr) => max = expr.as_ref().map(integer).transpose()?,
            SequenceOptions::StartWith(expr, _) => start = Some(integer(expr)?),
            SequenceOptions::Cache(expr) => cache = integer(expr)?,
            SequenceOptions::Cycle(no) => cycle = !no,
        }
    }
    let invalid = |message: String| Err(SqlError::new(code::INVALID_PARAMETER_VALUE, message));
    if increment == 0 {
        return invalid("INCREMENT must not be zero".to_owned());
    }
    let (low, high) = if increment > 0 { (1, bounds.max) } else { (bounds.min, -1) };
    let (min, max) = (min.unwrap_or(low), max.unwrap_or(high));
    if min >= max {
        return invalid(format!("MINVALUE ({min}) must be less than MAXVALUE ({max})"));
    }
    let start = start.unwrap_or(if increment > 0 { min } else { max });
    if start < min {
        return invalid(format!("START value ({start}) cannot be less than MINVALUE ({min})"));
    }
    if start > max {
        return invalid(format!("START value ({start}) cannot be greater than MAXVALUE ({max})"));
    }
    let oid = session.db.new_oid().await?;
    session.db.store().set_counter(u64::from(oid), SEQUENCE_ORIGIN).await?;
    Ok(Sequence {
        oid,
        schema,
        name: name.to_owned(),
        kind: bounds.kind,
        start,
        increment,
        min,
        max,
        cache,
        cycle,
        owned_by: None,
        restarts: 0,
    })
}

pub(super) async fn create(session: &mut SqlSession, statement: &ast::Statement) -> Result<&'static str, SqlError> {
    let ast::Statement::CreateSequence { temporary, if_not_exists, name, data_type, sequence_options, owned_by } = statement
    else {
        return Err(SqlError::internal("not a CREATE SEQUENCE"));
    };
    if *temporary {
        return Err(SqlError::unsupported("a temporary sequence"));
    }
    let catalog = session.own_catalog().await?;
    let (schema, plain) = session.new_name(&catalog, name)?;
    if catalog.name_taken(schema, &plain) {
        if *if_not_exists {
            session.notices.push(SqlError::notice(format!("relation \"{plain}\" already exists, skipping")));
            return Ok("CREATE SEQUENCE");
        }
        return Err(already_exists(&plain));
    }
    let kind = data_type.as_ref().map(sql_type).transpose()?.map_or(PgType::Int8, |t| t.kind);
    let mut sequence = build(session, schema, &plain, Bounds::of(kind), sequence_options).await?;
    if let Some(owner) = owned_by {
        let parts: Vec<String> = owner.0.iter().filter_map(|p| p.as_ident()).map(crate::sql::parse::fold).collect();
        if let [table @ .., column] = parts.as_slice()
            && !table.is_empty()
        {
            sequence.owned_by = Some(owner_of(session, table, column).await?);
        }
    }
    session.apply(vec![Change::Put(Relation::Sequence(Arc::new(sequence)))]).await?;
    Ok("CREATE SEQUENCE")
}

async fn owner_of(session: &SqlSession, table: &[String], column: &str) -> Result<(Oid, i16), SqlError> {
    let catalog = session.catalog().await?;
    let path = session.settings.search_path(&session.user);
    let (schema, name) = match table {
        [name] => (None, name),
        [.., schema, name] => (Some(schema.as_str()), name),
        [] => return Err(SqlError::syntax("OWNED BY names a table and a column")),
    };
    let table = catalog.resolve_table(schema, name, &path)?;
    let number = super::create::column_number(table, column)?;
    Ok((table.oid, number))
}

/// ALTER SEQUENCE.
///
/// # Errors
/// `42P01`, `42809`, `22023`.
pub async fn alter(
    session: &mut SqlSession,
    name: &ast::ObjectName,
    if_exists: bool,
    changes: &[SequenceChange],
) -> Result<Execution, SqlError> {
    let tag = || Execution::Command { tag: "ALTER SEQUENCE".to_owned() };
    let (schema, plain) = split_name(name)?;
    let path = session.settings.search_path(&session.user);
    let catalog = session.own_catalog().await?;
    let mut sequence = match catalog.resolve(schema.as_deref(), &plain, &path) {
        Some(Relation::Sequence(sequence)) => (**sequence).clone(),
        Some(_) => return Err(SqlError::new(code::WRONG_OBJECT_TYPE, format!("\"{plain}\" is not a sequence"))),
        None if if_exists => {
            session.notices.push(SqlError::notice(format!("relation \"{plain}\" does not exist, skipping")));
            return Ok(tag());
        }
        None => return Err(undefined_table(schema.as_deref(), &plain)),
    };
    session.lock_relation(sequence.oid, LockMode::Exclusive).await?;
    let counter = u64::from(sequence.oid);
    let mut restart = None;
    // The next value as it would be, kept when start or increment change.
    let next = sequence.value_at(session.db.store().read_counter(counter).await?).unwrap_or(sequence.start);
    let mut reshaped = false;
    for change in changes {
        match change {
            SequenceChange::Restart(value) => restart = Some(value.unwrap_or(sequence.start)),
            SequenceChange::Start(value) => {
                sequence.start = *value;
                reshaped = true;
            }
            SequenceChange::Increment(value) => {
                if *value == 0 {
                    return Err(SqlError::new(code::INVALID_PARAMETER_VALUE, "INCREMENT must not be zero"));
                }
                sequence.increment = *value;
                reshaped = true;
            }
            SequenceChange::Min(value) => sequence.min = *value,
            SequenceChange::Max(value) => sequence.max = *value,
            SequenceChange::Cache(value) => sequence.cache = *value,
            SequenceChange::Cycle(value) => sequence.cycle = *value,
            SequenceChange::OwnedBy(None) => sequence.owned_by = None,
            SequenceChange::OwnedBy(Some((table, column))) => {
                sequence.owned_by = Some(owner_of(session, table, column).await?);
            }
            SequenceChange::Nothing => {}
        }
    }
    if restart.is_some() || reshaped {
        let place = sequence.counter_at(restart.unwrap_or(next))?;
        session.db.store().set_counter(counter, place).await?;
        session.db.forget_numbers(counter);
        sequence.restarts += 1;
    }
    session.apply(vec![Change::Put(Relation::Sequence(Arc::new(sequence)))]).await?;
    Ok(tag())
}
