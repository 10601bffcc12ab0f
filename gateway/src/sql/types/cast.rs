//! Assignment casts between values, with PostgreSQL's rounding, range checks and errors.
//!
//! Pure functions. Casts inside expressions are DataFusion's; these serve parameters, the fast path and what is stored.

use super::datetime::DAY;
use super::{Datum, Numeric, PgType};
use crate::sql::error::{SqlError, code};

fn out_of_range(kind: PgType) -> SqlError {
    SqlError::new(code::NUMERIC_VALUE_OUT_OF_RANGE, format!("{} out of range", kind.sql_name()))
}

/// Rounds half to even, as PostgreSQL's float to integer casts do.
fn float_to_integer(value: f64) -> Option<i64> {
    let rounded = value.round_ties_even();
    // 2^63 itself is no i64 but would saturate to one.
    (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&rounded).then_some(rounded as i64)
}

impl Datum {
    fn to_integer(&self) -> Option<Result<i64, ()>> {
        Some(match self {
            Datum::Int2(v) => Ok(i64::from(*v)),
            Datum::Int4(v) => Ok(i64::from(*v)),
            Datum::Int8(v) => Ok(*v),
            Datum::Oid(v) => Ok(i64::from(*v)),
            Datum::Bool(v) => Ok(i64::from(*v)),
            Datum::Float4(v) => float_to_integer(f64::from(*v)).ok_or(()),
            Datum::Float8(v) => float_to_integer(*v).ok_or(()),
            Datum::Numeric(v) => v.to_i64().ok_or(()),
            _ => return None,
        })
    }

    /// The number as a float, if it is one.
    #[must_use]
    pub fn to_f64(&self) -> Option<f64> {
        Some(match self {
            Datum::Int2(v) => f64::from(*v),
            Datum::Int4(v) => f64::from(*v),
            Datum::Int8(v) => *v as f64,
            Datum::Oid(v) => f64::from(*v),
            Datum::Float4(v) => f64::from(*v),
            Datum::Float8(v) => *v,
            Datum::Numeric(v) => v.to_f64(),
            _ => return None,
        })
    }

    /// Casts to `kind` and applies `typmod` (-1: none), as an assignment to a column does.
    ///
    /// # Errors
    /// `42804`-like `42846` when there is no such cast, else the errors of the value (`22003`, `22P02`, `22001`...).
    pub fn cast(self, kind: PgType, typmod: i32) -> Result<Datum, SqlError> {
        let natural = self.natural_type();
        let cannot =
            || SqlError::new(code::CANNOT_COERCE, format!("cannot cast type {} to {}", natural.sql_name(), kind.sql_name()));
        let integer = |datum: &Datum| match datum.to_integer() {
            Some(Ok(value)) => Ok(value),
            Some(Err(())) => Err(out_of_range(kind)),
            None => Err(cannot()),
        };
        let out = match (kind, self) {
            (_, Datum::Text(text)) if !kind.is_text() => return Datum::parse(kind, typmod, &text),
            (PgType::Json | PgType::Jsonb, Datum::Text(text)) => return Datum::parse(kind, typmod, &text),
            (_, Datum::Text(text)) => Datum::Text(text),
            (PgType::Int2, value) => Datum::Int2(i16::try_from(integer(&value)?).map_err(|_| out_of_range(kind))?),
            (PgType::Int4, value) => Datum::Int4(i32::try_from(integer(&value)?).map_err(|_| out_of_range(kind))?),
            (PgType::Int8, value) => Datum::Int8(integer(&value)?),
            (PgType::Oid | PgType::Regclass | PgType::Regtype | PgType::Regproc, value) => {
                Datum::Oid(u32::try_from(integer(&value)?).map_err(|_| out_of_range(PgType::Oid))?)
            }
            (PgType::Bool, Datum::Bool(value)) => Datum::Bool(value),
            (PgType::Bool, value @ Datum::Int4(_)) => Datum::Bool(integer(&value)? != 0),
            (PgType::Float8, value) => Datum::Float8(value.to_f64().ok_or_else(cannot)?),
            (PgType::Float4, value) => {
                let wide = value.to_f64().ok_or_else(cannot)?;
                let narrow = wide as f32;
                if narrow.is_infinite() && wide.is_finite() {
                    return Err(out_of_range(kind));
                }
                Datum::Float4(narrow)
            }
            (PgType::Numeric, Datum::Numeric(value)) => Datum::Numeric(value),
            (PgType::Numeric, Datum::Float4(value)) => Datum::Numeric(Numeric::parse(&value.to_string())?),
            (PgType::Numeric, Datum::Float8(value)) => Datum::Numeric(Numeric::from_f64(value)?),
            (PgType::Numeric, value) => Datum::Numeric(Numeric::from_i64(integer(&value)?)),
            (PgType::Bytea, value @ Datum::Bytea(_)) => value,
            (PgType::Date, value @ Datum::Date(_)) => value,
            (PgType::Date, Datum::Timestamp(micros)) => Datum::Date(match micros {
                i64::MAX => i32::MAX,
                i64::MIN => i32::MIN,
                _ => i32::try_from(micros.div_euclid(DAY)).map_err(|_| out_of_range(kind))?,
            }),
            (PgType::Timestamp | PgType::Timestamptz, value @ Datum::Timestamp(_)) => value,
            (PgType::Timestamp | PgType::Timestamptz, Datum::Date(days)) => Datum::Timestamp(match days {
                i32::MAX => i64::MAX,
                i32::MIN => i64::MIN,
                _ => i64::from(days) * DAY,
            }),
            (PgType::Time, value @ Datum::Time(_)) => value,
            (PgType::Time, Datum::Timestamp(micros)) => Datum::Time(micros.rem_euclid(DAY)),
            (PgType::Time, Datum::Interval(interval)) => Datum::Time(interval.micros.rem_euclid(DAY)),
            (PgType::Interval, value @ Datum::Interval(_)) => value,
            (PgType::Interval, Datum::Time(micros)) => Datum::Interval(super::Interval { months: 0, days: 0, micros }),
            (PgType::Uuid, value @ Datum::Uuid(_)) => value,
            (_, value) if kind.is_text() => {
                let text = match value {
                    Datum::Bool(value) => if value { "true" } else { "false" }.to_owned(),
                    value => value.to_text(natural, -1),
                };
                Datum::Text(text)
            }
            (_, Datum::Array(from, values)) => {
                let element = kind.element().ok_or_else(cannot)?;
                if element == from {
                    Datum::Array(from, values)
                } else {
                    let cast = |value: Option<Datum>| value.map(|v| v.cast(element, -1)).transpose();
                    Datum::Array(element, values.into_iter().map(cast).collect::<Result<_, _>>()?)
                }
            }
            _ => return Err(cannot()),
        };
        out.fit(kind, typmod)
    }
}
