//! Small expressions evaluated by ourselves: values of INSERT, assignments of UPDATE, defaults, RETURNING of columns.
//! What does not compile here goes through DataFusion.
//!
//! Pure; an expression is compiled once and evaluated for many rows. Types and errors are PostgreSQL's.

use datafusion::sql::sqlparser::ast::{self, BinaryOperator, Expr, UnaryOperator, Value};

use super::catalog::Table;
use super::error::{SqlError, code};
use super::parse::fold;
use super::rewrite::{Env, arguments};
use super::sqltypes::sql_type;
use super::types::{Datum, Numeric, PgType, Row, datetime};

/// A compiled expression.
#[derive(Clone, Debug)]
pub enum Fast {
    /// A value.
    Constant(Option<Datum>),
    /// A parameter, from 0.
    Parameter(usize),
    /// Column `at` (number - 1) of relation `from` of the scope.
    Column {
        #[allow(missing_docs)]
        from: usize,
        #[allow(missing_docs)]
        at: usize,
    },
    /// Start of the transaction.
    Now(PgType),
    /// A cast with a modifier.
    Cast(Box<Typed>, PgType, i32),
    /// Arithmetic.
    Arithmetic(Operation, Box<Typed>, Box<Typed>),
    /// `-x`
    Negate(Box<Typed>),
    /// `||`
    Concat(Box<Typed>, Box<Typed>),
    /// DEFAULT
    Default,
}

/// Which arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    #[allow(missing_docs)]
    Add,
    #[allow(missing_docs)]
    Subtract,
    #[allow(missing_docs)]
    Multiply,
}

/// An expression with its type ([`PgType::Unknown`] for an untyped string).
#[derive(Clone, Debug)]
pub struct Typed {
    /// What to do.
    pub fast: Fast,
    /// The result's type.
    pub kind: PgType,
}

/// The relations that columns may come from, by the names that they go by.
pub type Scope<'a> = [(&'a str, &'a Table)];

fn typed(fast: Fast, kind: PgType) -> Typed {
    Typed { fast, kind }
}

/// Compiles; `None`: not one of ours. `parameters` are the types of `$n`; one of unknown type takes `wanted` (which is also
/// what a string literal becomes).
#[must_use]
pub fn compile(expr: &Expr, scope: &Scope<'_>, parameters: &[PgType], wanted: PgType) -> Option<Typed> {
    match expr {
        Expr::Nested(inner) => compile(inner, scope, parameters, wanted),
        Expr::Value(value) => match &value.value {
            Value::Number(digits, _) => number(digits),
            Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) => {
                Some(typed(Fast::Constant(Some(Datum::Text(text.clone()))), PgType::Unknown))
            }
            Value::Boolean(value) => Some(typed(Fast::Constant(Some(Datum::Bool(*value))), PgType::Bool)),
            Value::Null => Some(typed(Fast::Constant(None), PgType::Unknown)),
            Value::Placeholder(name) => {
                let at = name.strip_prefix('$')?.parse::<usize>().ok()?.checked_sub(1)?;
                let kind = parameters.get(at).copied().unwrap_or(PgType::Unknown);
                Some(typed(Fast::Parameter(at), if kind == PgType::Unknown { wanted } else { kind }))
            }
            _ => None,
        },
        Expr::Identifier(ident) => {
            let name = fold(ident);
            if ident.quote_style.is_none() && name == "default" {
                return Some(typed(Fast::Default, wanted));
            }
            let mut found = scope.iter().enumerate().filter_map(|(from, (_, table))| Some((from, table.column(&name)?)));
            let (from, column) = found.next()?;
            if found.next().is_some() {
                return None;
            }
            Some(typed(Fast::Column { from, at: column.number as usize - 1 }, column.kind))
        }
        Expr::CompoundIdentifier(parts) => {
            let [relation, name] = parts.as_slice() else { return None };
            let (relation, name) = (fold(relation), fold(name));
            let from = scope.iter().position(|(alias, _)| *alias == relation)?;
            let column = scope[from].1.column(&name)?;
            Some(typed(Fast::Column { from, at: column.number as usize - 1 }, column.kind))
        }
        Expr::Cast { expr, data_type, kind: ast::CastKind::Cast | ast::CastKind::DoubleColon, .. } => {
            let target = sql_type(data_type).ok()?;
            if target.kind == PgType::Regclass || target.kind == PgType::Regtype {
                return None;
            }
            let inner = compile(expr, scope, parameters, target.kind)?;
            Some(typed(Fast::Cast(Box::new(inner), target.kind, target.typmod), target.kind))
        }
        Expr::TypedString(string) => {
            let target = sql_type(&string.data_type).ok()?;
            let inner = compile(&Expr::Value(string.value.clone()), scope, parameters, target.kind)?;
            Some(typed(Fast::Cast(Box::new(inner), target.kind, target.typmod), target.kind))
        }
        Expr::UnaryOp { op: UnaryOperator::Plus, expr } => compile(expr, scope, parameters, wanted),
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => {
            // The one number whose absolute value does not fit.
            if let Expr::Value(value) = &**expr
                && let Value::Number(digits, _) = &value.value
            {
                return number(&format!("-{digits}"));
            }
            let inner = compile(expr, scope, parameters, wanted)?;
            let kind = inner.kind;
            arithmetic_kind(kind, kind)?;
            Some(typed(Fast::Negate(Box::new(inner)), kind))
        }
        Expr::BinaryOp { left, op, right } => {
            let (mut a, mut b) =
                (compile(left, scope, parameters, PgType::Unknown)?, compile(right, scope, parameters, PgType::Unknown)?);
            if *op == BinaryOperator::StringConcat {
                let text = |t: PgType| matches!(t, PgType::Text | PgType::Varchar | PgType::Unknown);
                if !text(a.kind) || !text(b.kind) {
                    return None;
                }
                return Some(typed(Fast::Concat(Box::new(a), Box::new(b)), PgType::Text));
            }
            let operation = match op {
                BinaryOperator::Plus => Operation::Add,
                BinaryOperator::Minus => Operation::Subtract,
                BinaryOperator::Multiply => Operation::Multiply,
                _ => return None,
            };
            match (a.kind, b.kind) {
                (PgType::Unknown, PgType::Unknown) => return None,
                (PgType::Unknown, kind) => a = typed(Fast::Cast(Box::new(a), kind, -1), kind),
                (kind, PgType::Unknown) => b = typed(Fast::Cast(Box::new(b), kind, -1), kind),
                _ => {}
            }
            let kind = match (a.kind, b.kind) {
                (PgType::Timestamp | PgType::Timestamptz, PgType::Interval) if operation != Operation::Multiply => a.kind,
                (a, b) => arithmetic_kind(a, b)?,
            };
            Some(typed(Fast::Arithmetic(operation, Box::new(a), Box::new(b)), kind))
        }
        Expr::Function(function) if arguments(function).is_empty() && function.over.is_none() => {
            let name = function.name.0.last()?.as_ident().map(fold)?;
            let kind = match name.as_str() {
                "now" | "current_timestamp" | "transaction_timestamp" => PgType::Timestamptz,
                "localtimestamp" => PgType::Timestamp,
                "current_date" => PgType::Date,
                _ => return None,
            };
            Some(typed(Fast::Now(kind), kind))
        }
        _ => None,
    }
}

fn number(digits: &str) -> Option<Typed> {
    Some(if let Ok(value) = digits.parse::<i32>() {
        typed(Fast::Constant(Some(Datum::Int4(value))), PgType::Int4)
    } else if let Ok(value) = digits.parse::<i64>() {
        typed(Fast::Constant(Some(Datum::Int8(value))), PgType::Int8)
    } else {
        typed(Fast::Constant(Some(Datum::Numeric(Numeric::parse(digits).ok()?))), PgType::Numeric)
    })
}

fn rank(kind: PgType) -> Option<u8> {
    Some(match kind {
        PgType::Int2 => 1,
        PgType::Int4 => 2,
        PgType::Int8 => 3,
        PgType::Numeric => 4,
        PgType::Float4 => 5,
        PgType::Float8 => 6,
        _ => return None,
    })
}

fn arithmetic_kind(a: PgType, b: PgType) -> Option<PgType> {
    let (low, high) = if rank(a)? <= rank(b)? { (a, b) } else { (b, a) };
    // real with anything but real computes as double precision
    Some(if high == PgType::Float4 && low != PgType::Float4 { PgType::Float8 } else { high })
}

/// What an evaluation draws on.
pub struct Inputs<'a> {
    /// A row for each relation of the scope.
    pub rows: &'a [&'a Row],
    /// Parameters.
    pub parameters: &'a [Option<Datum>],
    /// Start of the transaction, microseconds since 1970.
    pub transaction_micros: i64,
}

impl<'a> Inputs<'a> {
    /// Without rows.
    #[must_use]
    pub fn constant(parameters: &'a [Option<Datum>], env: &Env) -> Inputs<'a> {
        Inputs { rows: &[], parameters, transaction_micros: env.transaction_micros }
    }
}

impl Typed {
    /// Whether DEFAULT stands here.
    #[must_use]
    pub fn is_default(&self) -> bool {
        matches!(self.fast, Fast::Default)
    }

    /// The value.
    ///
    /// # Errors
    /// PostgreSQL's for overflow and casts.
    pub fn evaluate(&self, inputs: &Inputs<'_>) -> Result<Option<Datum>, SqlError> {
        Ok(match &self.fast {
            Fast::Constant(value) => value.clone(),
            Fast::Parameter(at) => match inputs.parameters.get(*at) {
                Some(value) => value.clone(),
                None => return Err(SqlError::new(code::UNDEFINED_PARAMETER, format!("there is no parameter ${}", at + 1))),
            },
            Fast::Column { from, at } => inputs.rows[*from][*at].clone(),
            Fast::Now(kind) => Some(Datum::Timestamp(inputs.transaction_micros).cast(*kind, -1)?),
            Fast::Cast(inner, kind, typmod) => match inner.evaluate(inputs)? {
                None => None,
                // An explicit cast to a string type truncates where an assignment refuses.
                Some(value) if matches!(kind, PgType::Varchar | PgType::Bpchar) && *typmod >= 4 => {
                    let Datum::Text(text) = value.cast(PgType::Text, -1)? else { return Ok(None) };
                    Some(Datum::Text(text.chars().take((*typmod - 4) as usize).collect()).fit(*kind, *typmod)?)
                }
                Some(value) => Some(value.cast(*kind, *typmod)?),
            },
            Fast::Negate(inner) => match inner.evaluate(inputs)? {
                None => None,
                Some(value) => Some(arithmetic(Operation::Subtract, Datum::Int2(0), value, self.kind)?),
            },
            Fast::Arithmetic(operation, a, b) => match (a.evaluate(inputs)?, b.evaluate(inputs)?) {
                (Some(a), Some(b)) => Some(arithmetic(*operation, a, b, self.kind)?),
                _ => None,
            },
            Fast::Concat(a, b) => match (a.evaluate(inputs)?, b.evaluate(inputs)?) {
                (Some(Datum::Text(mut a)), Some(Datum::Text(b))) => {
                    a.push_str(&b);
                    Some(Datum::Text(a))
                }
                _ => None,
            },
            Fast::Default => return Err(SqlError::syntax("DEFAULT is not allowed in this context")),
        })
    }
}

fn arithmetic(operation: Operation, a: Datum, b: Datum, kind: PgType) -> Result<Datum, SqlError> {
    let out_of_range = || SqlError::new(code::NUMERIC_VALUE_OUT_OF_RANGE, format!("{} out of range", kind.sql_name()));
    if let (Datum::Timestamp(timestamp), Datum::Interval(interval)) = (&a, &b) {
        let interval = match operation {
            Operation::Subtract => {
                super::types::Interval { months: -interval.months, days: -interval.days, micros: -interval.micros }
            }
            _ => *interval,
        };
        return datetime::add_interval(*timestamp, interval).map(Datum::Timestamp).ok_or_else(out_of_range);
    }
    match kind {
        PgType::Int2 | PgType::Int4 | PgType::Int8 => {
            let (Datum::Int8(a), Datum::Int8(b)) = (a.cast(PgType::Int8, -1)?, b.cast(PgType::Int8, -1)?) else {
                return Err(out_of_range());
            };
            let result = match operation {
                Operation::Add => a.checked_add(b),
                Operation::Subtract => a.checked_sub(b),
                Operation::Multiply => a.checked_mul(b),
            };
            Datum::Int8(result.ok_or_else(out_of_range)?).cast(kind, -1)
        }
        PgType::Numeric => {
            let (Datum::Numeric(a), Datum::Numeric(b)) = (a.cast(kind, -1)?, b.cast(kind, -1)?) else {
                return Err(out_of_range());
            };
            let result = match operation {
                Operation::Add => a.checked_add(b),
                Operation::Subtract => a.checked_sub(b),
                Operation::Multiply => a.checked_mul(b),
            };
            result
                .map(Datum::Numeric)
                .ok_or_else(|| SqlError::new(code::NUMERIC_VALUE_OUT_OF_RANGE, "value overflows numeric format"))
        }
        _ => {
            let (Some(x), Some(y)) = (a.to_f64(), b.to_f64()) else { return Err(out_of_range()) };
            let result = match operation {
                Operation::Add => x + y,
                Operation::Subtract => x - y,
                Operation::Multiply => x * y,
            };
            if result.is_infinite() && x.is_finite() && y.is_finite() {
                return Err(SqlError::new(code::NUMERIC_VALUE_OUT_OF_RANGE, "value out of range: overflow"));
            }
            Datum::Float8(result).cast(kind, -1)
        }
    }
}
