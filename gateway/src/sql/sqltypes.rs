//! Type names in SQL, as our types.
//!
//! Pure functions, and the hook by which DataFusion asks them.

use std::sync::Arc;

use datafusion::arrow::datatypes::FieldRef;
use datafusion::common::Result as DfResult;
use datafusion::logical_expr::planner::TypePlanner;
use datafusion::sql::sqlparser::ast::{ArrayElemTypeDef, CharacterLength, DataType, ExactNumberInfo, TimezoneInfo};

use super::error::{SqlError, code};
use super::types::arrow::arrow_field;
use super::types::{PgType, make_numeric_typmod};

/// A named type: what it is, its modifier, and whether it stands for a column with a sequence of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SqlType {
    /// The type.
    pub kind: PgType,
    /// Its modifier, -1 for none.
    pub typmod: i32,
    /// smallserial, serial, bigserial.
    pub serial: bool,
}

fn plain(kind: PgType) -> SqlType {
    SqlType { kind, typmod: -1, serial: false }
}

fn length(kind: PgType, length: Option<&CharacterLength>) -> Result<SqlType, SqlError> {
    let typmod = match length {
        // character without a length is character(1)
        None => {
            if kind == PgType::Bpchar {
                5
            } else {
                -1
            }
        }
        Some(CharacterLength::Max) => -1,
        Some(CharacterLength::IntegerLength { length, .. }) => {
            if *length == 0 || *length > 10_485_760 {
                return Err(SqlError::new(
                    code::INVALID_PARAMETER_VALUE,
                    format!("length for type {} must be between 1 and 10485760", kind.name()),
                ));
            }
            *length as i32 + 4
        }
    };
    Ok(SqlType { kind, typmod, serial: false })
}

fn numeric(info: &ExactNumberInfo) -> Result<SqlType, SqlError> {
    let (precision, scale) = match info {
        ExactNumberInfo::None => return Ok(plain(PgType::Numeric)),
        ExactNumberInfo::Precision(precision) => (*precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (*precision, *scale),
    };
    if !(1..=76).contains(&precision) || scale < 0 || scale as u64 > precision {
        return Err(SqlError::new(
            code::INVALID_PARAMETER_VALUE,
            format!("NUMERIC precision {precision} and scale {scale} are out of range: precision 1 to 76, scale 0 to precision"),
        ));
    }
    Ok(SqlType { kind: PgType::Numeric, typmod: make_numeric_typmod(precision as u8, scale as i8), serial: false })
}

fn fraction(kind: PgType, digits: Option<u64>) -> SqlType {
    SqlType { kind, typmod: digits.map_or(-1, |d| d.min(6) as i32), serial: false }
}

/// What a type name means.
///
/// # Errors
/// `42704` when there is no such type, `0A000` when there is one that is not supported.
pub fn sql_type(name: &DataType) -> Result<SqlType, SqlError> {
    Ok(match name {
        DataType::Bool | DataType::Boolean => plain(PgType::Bool),
        DataType::SmallInt(_) | DataType::Int2(_) => plain(PgType::Int2),
        DataType::Int(_) | DataType::Integer(_) | DataType::Int4(_) => plain(PgType::Int4),
        DataType::BigInt(_) | DataType::Int8(_) => plain(PgType::Int8),
        DataType::Real | DataType::Float4 => plain(PgType::Float4),
        DataType::Double(_) | DataType::DoublePrecision | DataType::Float8 => plain(PgType::Float8),
        DataType::Float(ExactNumberInfo::Precision(bits)) if *bits <= 24 => plain(PgType::Float4),
        DataType::Float(_) => plain(PgType::Float8),
        DataType::Numeric(info) | DataType::Decimal(info) | DataType::Dec(info) => numeric(info)?,
        DataType::Text | DataType::String(None) => plain(PgType::Text),
        DataType::Varchar(n) | DataType::CharacterVarying(n) | DataType::CharVarying(n) => length(PgType::Varchar, n.as_ref())?,
        DataType::Char(n) | DataType::Character(n) => length(PgType::Bpchar, n.as_ref())?,
        DataType::Bytea => plain(PgType::Bytea),
        DataType::Date => plain(PgType::Date),
        DataType::Time(_, TimezoneInfo::WithTimeZone | TimezoneInfo::Tz) => {
            return Err(SqlError::unsupported("type time with time zone"));
        }
        DataType::Time(digits, _) => fraction(PgType::Time, *digits),
        DataType::Timestamp(digits, TimezoneInfo::WithTimeZone | TimezoneInfo::Tz) => fraction(PgType::Timestamptz, *digits),
        DataType::Timestamp(digits, _) => fraction(PgType::Timestamp, *digits),
        DataType::Interval { .. } => plain(PgType::Interval),
        DataType::Uuid => plain(PgType::Uuid),
        DataType::JSON => plain(PgType::Json),
        DataType::JSONB => plain(PgType::Jsonb),
        DataType::Regclass => plain(PgType::Regclass),
        DataType::Array(ArrayElemTypeDef::SquareBracket(element, _) | ArrayElemTypeDef::AngleBracket(element)) => {
            let element = sql_type(element)?;
            let kind = PgType::array_of(element.kind);
            plain(kind.ok_or_else(|| SqlError::unsupported(format_args!("an array of {}", element.kind.sql_name())))?)
        }
        DataType::Custom(name, arguments) => {
            let last = name.0.last().and_then(|p| p.as_ident()).map(super::parse::fold).unwrap_or_default();
            let serial = |kind| SqlType { kind, typmod: -1, serial: true };
            match last.as_str() {
                "serial" | "serial4" => serial(PgType::Int4),
                "bigserial" | "serial8" => serial(PgType::Int8),
                "smallserial" | "serial2" => serial(PgType::Int2),
                "bpchar" => plain(PgType::Bpchar),
                "timestamptz" | "timestamp" | "varchar" | "numeric" | "char" | "time" if !arguments.is_empty() => {
                    let number: u64 = arguments[0].trim().parse().unwrap_or(0);
                    match last.as_str() {
                        "timestamptz" => fraction(PgType::Timestamptz, Some(number)),
                        "timestamp" => fraction(PgType::Timestamp, Some(number)),
                        "time" => fraction(PgType::Time, Some(number)),
                        "numeric" => {
                            let scale = arguments.get(1).and_then(|s| s.trim().parse().ok()).unwrap_or(0);
                            numeric(&ExactNumberInfo::PrecisionAndScale(number, scale))?
                        }
                        _ => length(PgType::Varchar, Some(&CharacterLength::IntegerLength { length: number, unit: None }))?,
                    }
                }
                other => match PgType::from_name(other) {
                    Some(kind) => plain(kind),
                    None => {
                        return Err(SqlError::new(code::UNDEFINED_OBJECT, format!("type \"{other}\" does not exist")));
                    }
                },
            }
        }
        other => {
            let shown = other.to_string().to_lowercase();
            return Err(SqlError::new(code::UNDEFINED_OBJECT, format!("type \"{shown}\" does not exist")));
        }
    })
}

/// Tells DataFusion what the types of casts are.
#[derive(Debug)]
pub struct Types;

impl TypePlanner for Types {
    fn plan_type_field(&self, name: &DataType) -> DfResult<Option<FieldRef>> {
        // Inside an interval expression DataFusion knows better.
        if matches!(name, DataType::Interval { .. }) {
            return Ok(None);
        }
        let found = sql_type(name)?;
        Ok(Some(Arc::new(arrow_field("", found.kind, found.typmod, true))))
    }
}
