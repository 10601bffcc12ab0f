//! What DataFusion and Arrow report, as PostgreSQL would have put it.
//!
//! Pure functions. DataFusion has no codes, so this goes by error kinds and, where there is nothing better, by words.

use datafusion::arrow::error::ArrowError;
use datafusion::common::{Column, DataFusionError, SchemaError};

use super::error::{SqlError, code};

fn shown(column: &Column) -> String {
    match &column.relation {
        Some(relation) => format!("column {}.{} does not exist", relation.table(), column.name),
        None => format!("column \"{}\" does not exist", column.name),
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = text.split_once(before)?.1;
    Some(rest.split_once(after)?.0)
}

fn type_name(arrow: &str) -> &str {
    match arrow {
        "Int16" => "smallint",
        "Int32" => "integer",
        "Int64" => "bigint",
        "Float32" => "real",
        "Float64" => "double precision",
        "Boolean" => "boolean",
        "Date32" => "date",
        other if other.starts_with("Decimal") => "numeric",
        other if other.starts_with("Timestamp") => "timestamp",
        other if other.starts_with("Time") => "time",
        other if other.starts_with("Interval") => "interval",
        other => other,
    }
}

/// A type in a list of arguments' types; integers of unknown origin are literals.
fn argument_type(arrow: &str) -> &str {
    match arrow {
        "Int64" => "integer",
        "Utf8" | "LargeUtf8" | "Utf8View" => "text",
        "Null" => "unknown",
        other if other.starts_with("Timestamp") && other.contains("+00:00") => "timestamp with time zone",
        other if other.starts_with("Timestamp") => "timestamp without time zone",
        other => type_name(other),
    }
}

/// By the words of a message that has no kind of its own.
fn by_words(message: &str) -> SqlError {
    let lower = message.to_ascii_lowercase();
    if lower.contains("divide by zero") || lower.contains("division by zero") {
        return SqlError::new(code::DIVISION_BY_ZERO, "division by zero");
    }
    if let (Some(value), Some(kind)) = (between(message, "Cannot cast string '", "'"), between(message, "to value of ", " type"))
    {
        return SqlError::new(
            code::INVALID_TEXT_REPRESENTATION,
            format!("invalid input syntax for type {}: \"{value}\"", type_name(kind)),
        );
    }
    if let Some(value) = between(message, "Error parsing timestamp from '", "'") {
        return SqlError::new(code::INVALID_DATETIME_FORMAT, format!("invalid input syntax for type timestamp: \"{value}\""));
    }
    if let Some(kind) = between(message, "Can't cast value ", " to type ").and(message.rsplit_once(" to type ")) {
        let kind = kind.1.split_whitespace().next().unwrap_or_default();
        return SqlError::new(code::NUMERIC_VALUE_OUT_OF_RANGE, format!("{} out of range", type_name(kind)));
    }
    for (array, kind) in [("Int16Array", "smallint"), ("Int32Array", "integer"), ("Int64Array", "bigint")] {
        if message.contains(array) && lower.contains("overflow") {
            return SqlError::new(code::NUMERIC_VALUE_OUT_OF_RANGE, format!("{kind} out of range"));
        }
    }
    if lower.contains("overflow") || lower.contains("out of range") || lower.contains("too large to store") {
        return SqlError::new(code::NUMERIC_VALUE_OUT_OF_RANGE, "value out of range").with_detail(message.to_owned());
    }
    if let Some(name) = between(message, "Invalid function '", "'") {
        return SqlError::new(code::UNDEFINED_FUNCTION, format!("function {name} does not exist"))
            .with_hint("No function matches the given name and argument types. You might need to add explicit type casts.");
    }
    if let Some(name) = between(message, "table function '", "'") {
        return SqlError::new(code::UNDEFINED_FUNCTION, format!("function {name} does not exist"));
    }
    if lower.contains("must appear in the group by")
        || lower.contains("must be part of group by")
        || lower.contains("could not be resolved from available columns")
    {
        let name = between(
            message,
            "Column in SELECT must be in GROUP BY or an aggregate function: While expanding wildcard, column \"",
            "\"",
        );
        let column = name.or_else(|| between(message, "column \"", "\"")).unwrap_or("?");
        return SqlError::new(
            code::GROUPING_ERROR,
            format!("column \"{column}\" must appear in the GROUP BY clause or be used in an aggregate function"),
        )
        .with_detail(message.to_owned());
    }
    if let Some(call) = between(message, "No function matches the given name and argument types '", "'")
        && let Some((name, arguments)) = call.trim_end_matches(')').split_once('(')
    {
        let shown: Vec<&str> = arguments.split(", ").map(argument_type).collect();
        return SqlError::undefined_function(name, &shown.join(", "));
    }
    if lower.contains("no function matches") || lower.contains("failed to coerce arguments") {
        return SqlError::new(code::UNDEFINED_FUNCTION, message.to_owned());
    }
    if lower.contains("cannot coerce")
        || lower.contains("cannot infer common argument type")
        || lower.contains("operator does not exist")
    {
        return SqlError::new(code::UNDEFINED_FUNCTION, format!("operator does not exist: {message}"));
    }
    if lower.contains("scalar subquery") && (lower.contains("more than one row") || lower.contains("must return only one")) {
        return SqlError::new(code::CARDINALITY_VIOLATION, "more than one row returned by a subquery used as an expression");
    }
    if lower.contains("unsupported cast") || lower.contains("casting from") {
        return SqlError::new(code::CANNOT_COERCE, message.to_owned());
    }
    SqlError::new(code::SYNTAX_ERROR, message.to_owned())
}

/// PostgreSQL's error for DataFusion's.
#[must_use]
pub fn from_datafusion(fault: DataFusionError) -> SqlError {
    match fault {
        DataFusionError::External(inner) => match inner.downcast::<SqlError>() {
            Ok(ours) => *ours,
            Err(inner) => match inner.downcast::<DataFusionError>() {
                Ok(nested) => from_datafusion(*nested),
                Err(inner) => SqlError::internal(inner.to_string()),
            },
        },
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => from_datafusion(*inner),
        DataFusionError::Shared(inner) => match std::sync::Arc::try_unwrap(inner) {
            Ok(inner) => from_datafusion(inner),
            Err(inner) => shared(&inner),
        },
        DataFusionError::Collection(mut all) if !all.is_empty() => from_datafusion(all.remove(0)),
        DataFusionError::SchemaError(fault, _) => match *fault {
            SchemaError::AmbiguousReference { field } => {
                SqlError::new(code::AMBIGUOUS_COLUMN, format!("column reference \"{}\" is ambiguous", field.name))
            }
            SchemaError::DuplicateQualifiedField { name, .. } | SchemaError::DuplicateUnqualifiedField { name } => {
                SqlError::new(code::DUPLICATE_COLUMN, format!("column \"{name}\" specified more than once"))
            }
            SchemaError::FieldNotFound { field, .. } => SqlError::new(code::UNDEFINED_COLUMN, shown(&field)),
        },
        DataFusionError::ArrowError(fault, _) => from_arrow(*fault),
        DataFusionError::ResourcesExhausted(message) => SqlError::new(code::OUT_OF_MEMORY, "out of memory")
            .with_detail(message)
            .with_hint("The query needs more memory than the node grants; make it smaller or raise the limit."),
        DataFusionError::NotImplemented(message) => SqlError::new(code::FEATURE_NOT_SUPPORTED, message),
        DataFusionError::Internal(message) => {
            let first = message.lines().next().unwrap_or_default();
            SqlError::internal(first.to_owned())
        }
        DataFusionError::Plan(message) | DataFusionError::Execution(message) => by_words(&message),
        other => by_words(&other.strip_backtrace()),
    }
}

fn shared(fault: &DataFusionError) -> SqlError {
    match fault {
        DataFusionError::External(inner) => match inner.downcast_ref::<SqlError>() {
            Some(ours) => ours.clone(),
            None => SqlError::internal(inner.to_string()),
        },
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => shared(inner),
        DataFusionError::Shared(inner) => shared(inner),
        other => by_words(&other.strip_backtrace()),
    }
}

fn from_arrow(fault: ArrowError) -> SqlError {
    match fault {
        ArrowError::DivideByZero => SqlError::new(code::DIVISION_BY_ZERO, "division by zero"),
        ArrowError::ArithmeticOverflow(message) => {
            SqlError::new(code::NUMERIC_VALUE_OUT_OF_RANGE, "value out of range").with_detail(message)
        }
        ArrowError::ExternalError(inner) => match inner.downcast::<DataFusionError>() {
            Ok(nested) => from_datafusion(*nested),
            Err(inner) => match inner.downcast::<SqlError>() {
                Ok(ours) => *ours,
                Err(inner) => SqlError::internal(inner.to_string()),
            },
        },
        other => by_words(&other.to_string()),
    }
}
