//! Binary forms of values on PostgreSQL's wire (its `recv` and `send` functions).
//!
//! Pure functions; lengths are checked before anything is read.

use datafusion::arrow::datatypes::i256;

use super::datetime::{DAY, PG_EPOCH_DAYS};
use super::{Datum, Interval, Numeric, PgType};
use crate::sql::error::{SqlError, code};

const EPOCH_MICROS: i64 = PG_EPOCH_DAYS as i64 * DAY;

fn bad(kind: PgType) -> SqlError {
    SqlError::new(code::INVALID_BINARY_REPRESENTATION, format!("incorrect binary data format for type {}", kind.sql_name()))
}

fn fixed<const N: usize>(kind: PgType, bytes: &[u8]) -> Result<[u8; N], SqlError> {
    bytes.try_into().map_err(|_| bad(kind))
}

impl Datum {
    /// Reads the binary form of `kind`.
    ///
    /// # Errors
    /// `22P03` when the bytes are not of that form, `0A000` when the type has no binary form here.
    pub fn from_binary(kind: PgType, bytes: &[u8]) -> Result<Datum, SqlError> {
        Ok(match kind {
            PgType::Bool => Datum::Bool(fixed::<1>(kind, bytes)?[0] != 0),
            PgType::Int2 => Datum::Int2(i16::from_be_bytes(fixed(kind, bytes)?)),
            PgType::Int4 => Datum::Int4(i32::from_be_bytes(fixed(kind, bytes)?)),
            PgType::Int8 => Datum::Int8(i64::from_be_bytes(fixed(kind, bytes)?)),
            PgType::Oid | PgType::Regclass | PgType::Regtype | PgType::Regproc => {
                Datum::Oid(u32::from_be_bytes(fixed(kind, bytes)?))
            }
            PgType::Float4 => Datum::Float4(f32::from_be_bytes(fixed(kind, bytes)?)),
            PgType::Float8 => Datum::Float8(f64::from_be_bytes(fixed(kind, bytes)?)),
            PgType::Numeric => Datum::Numeric(numeric_from_binary(bytes)?),
            PgType::Text | PgType::Varchar | PgType::Bpchar | PgType::Name | PgType::Char | PgType::Unknown | PgType::Json => {
                return Datum::parse(kind, -1, utf8(bytes)?);
            }
            PgType::Jsonb => match bytes.split_first() {
                Some((1, text)) => return Datum::parse(kind, -1, utf8(text)?),
                _ => return Err(SqlError::new(code::INVALID_BINARY_REPRESENTATION, "unsupported jsonb version number")),
            },
            PgType::Bytea => Datum::Bytea(bytes.to_vec()),
            PgType::Date => Datum::Date(match i32::from_be_bytes(fixed(kind, bytes)?) {
                i32::MAX => i32::MAX,
                i32::MIN => i32::MIN,
                days => days.checked_add(PG_EPOCH_DAYS).ok_or_else(|| bad(kind))?,
            }),
            PgType::Time => Datum::Time(i64::from_be_bytes(fixed(kind, bytes)?)),
            PgType::Timestamp | PgType::Timestamptz => Datum::Timestamp(match i64::from_be_bytes(fixed(kind, bytes)?) {
                i64::MAX => i64::MAX,
                i64::MIN => i64::MIN,
                micros => micros.checked_add(EPOCH_MICROS).ok_or_else(|| bad(kind))?,
            }),
            PgType::Interval => {
                let all: [u8; 16] = fixed(kind, bytes)?;
                Datum::Interval(Interval {
                    micros: i64::from_be_bytes(fixed(kind, &all[..8])?),
                    days: i32::from_be_bytes(fixed(kind, &all[8..12])?),
                    months: i32::from_be_bytes(fixed(kind, &all[12..])?),
                })
            }
            PgType::Uuid => Datum::Uuid(fixed(kind, bytes)?),
            _ => match kind.element() {
                Some(element) => array_from_binary(kind, element, bytes)?,
                None => return Err(SqlError::unsupported(format_args!("the binary form of type {}", kind.sql_name()))),
            },
        })
    }

    /// Appends the binary form of a value of type `kind` (with modifier `typmod`).
    pub fn write_binary(&self, kind: PgType, typmod: i32, out: &mut Vec<u8>) {
        match self {
            Datum::Bool(value) => out.push(u8::from(*value)),
            Datum::Int2(value) => out.extend(value.to_be_bytes()),
            Datum::Int4(value) => out.extend(value.to_be_bytes()),
            Datum::Int8(value) => out.extend(value.to_be_bytes()),
            Datum::Oid(value) => out.extend(value.to_be_bytes()),
            Datum::Float4(value) => out.extend(value.to_be_bytes()),
            Datum::Float8(value) => out.extend(value.to_be_bytes()),
            Datum::Numeric(value) => numeric_to_binary(*value, out),
            Datum::Text(_) => {
                if kind == PgType::Jsonb {
                    out.push(1);
                }
                out.extend_from_slice(self.to_text(kind, typmod).as_bytes());
            }
            Datum::Bytea(bytes) => out.extend_from_slice(bytes),
            Datum::Date(days) => {
                let days = if matches!(*days, i32::MAX | i32::MIN) { *days } else { days.saturating_sub(PG_EPOCH_DAYS) };
                out.extend(days.to_be_bytes());
            }
            Datum::Time(micros) => out.extend(micros.to_be_bytes()),
            Datum::Timestamp(micros) => {
                let micros = if matches!(*micros, i64::MAX | i64::MIN) { *micros } else { micros.saturating_sub(EPOCH_MICROS) };
                out.extend(micros.to_be_bytes());
            }
            Datum::Interval(interval) => {
                out.extend(interval.micros.to_be_bytes());
                out.extend(interval.days.to_be_bytes());
                out.extend(interval.months.to_be_bytes());
            }
            Datum::Uuid(bytes) => out.extend_from_slice(bytes),
            Datum::Array(element, values) => {
                let dimensions = i32::from(!values.is_empty());
                out.extend(dimensions.to_be_bytes());
                out.extend(i32::from(values.iter().any(Option::is_none)).to_be_bytes());
                out.extend(element.oid().to_be_bytes());
                if !values.is_empty() {
                    out.extend((values.len() as i32).to_be_bytes());
                    let lower_bound = i32::from(!matches!(kind, PgType::Int2Vector | PgType::OidVector));
                    out.extend(lower_bound.to_be_bytes());
                }
                for value in values {
                    match value {
                        None => out.extend((-1i32).to_be_bytes()),
                        Some(value) => {
                            let at = out.len();
                            out.extend([0; 4]);
                            value.write_binary(*element, -1, out);
                            let length = (out.len() - at - 4) as i32;
                            out[at..at + 4].copy_from_slice(&length.to_be_bytes());
                        }
                    }
                }
            }
        }
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, SqlError> {
    std::str::from_utf8(bytes).map_err(|fault| {
        let byte = bytes.get(fault.valid_up_to()).copied().unwrap_or(0);
        SqlError::new("22021", format!("invalid byte sequence for encoding \"UTF8\": 0x{byte:02x}"))
    })
}

fn array_from_binary(kind: PgType, element: PgType, bytes: &[u8]) -> Result<Datum, SqlError> {
    let word = |at: usize| -> Result<i32, SqlError> {
        bytes.get(at..at + 4).map(|b| i32::from_be_bytes([b[0], b[1], b[2], b[3]])).ok_or_else(|| bad(kind))
    };
    let dimensions = word(0)?;
    if dimensions == 0 {
        return Ok(Datum::Array(element, Vec::new()));
    }
    if dimensions != 1 {
        return Err(SqlError::unsupported("an array of more than one dimension"));
    }
    let count = word(12)?;
    let mut values = Vec::new();
    let mut at = 20;
    for _ in 0..count {
        let length = word(at)?;
        at += 4;
        if length < 0 {
            values.push(None);
        } else {
            let item = bytes.get(at..at + length as usize).ok_or_else(|| bad(kind))?;
            values.push(Some(Datum::from_binary(element, item)?));
            at += length as usize;
        }
    }
    Ok(Datum::Array(element, values))
}

/// Base-10000 digits, the weight of the first, and the digits behind the point (PostgreSQL's numeric.c).
fn numeric_to_binary(value: Numeric, out: &mut Vec<u8>) {
    let text = value.to_string();
    let (negative, digits) = text.strip_prefix('-').map_or((false, text.as_str()), |d| (true, d));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole = whole.trim_start_matches('0');
    let mut padded = "0".repeat((4 - whole.len() % 4) % 4) + whole;
    let mut weight = (padded.len() / 4) as i16 - 1;
    padded.push_str(fraction);
    padded.push_str(&"0".repeat((4 - padded.len() % 4) % 4));
    let mut groups: Vec<i16> =
        padded.as_bytes().chunks(4).map(|c| c.iter().fold(0, |n, b| n * 10 + i16::from(b - b'0'))).collect();
    while groups.first() == Some(&0) {
        groups.remove(0);
        weight -= 1;
    }
    while groups.last() == Some(&0) {
        groups.pop();
    }
    if groups.is_empty() {
        weight = 0;
    }
    out.extend((groups.len() as i16).to_be_bytes());
    out.extend(weight.to_be_bytes());
    out.extend((if negative { 0x4000u16 } else { 0 }).to_be_bytes());
    out.extend(u16::from(value.scale).to_be_bytes());
    for group in groups {
        out.extend(group.to_be_bytes());
    }
}

fn numeric_from_binary(bytes: &[u8]) -> Result<Numeric, SqlError> {
    let kind = PgType::Numeric;
    let words: Vec<u16> = bytes.chunks(2).map(|c| if c.len() == 2 { u16::from_be_bytes([c[0], c[1]]) } else { 0 }).collect();
    let &[count, weight, sign, scale, ref digits @ ..] = words.as_slice() else { return Err(bad(kind)) };
    if digits.len() != usize::from(count) || !bytes.len().is_multiple_of(2) {
        return Err(bad(kind));
    }
    let weight = i32::from(weight as i16);
    match sign {
        0 | 0x4000 => {}
        _ => return Err(SqlError::unsupported("a numeric NaN or infinity")),
    }
    let overflow = || SqlError::new(code::NUMERIC_VALUE_OUT_OF_RANGE, "value overflows numeric format");
    let mut unscaled = i256::ZERO;
    for digit in digits {
        unscaled = unscaled
            .checked_mul(i256::from_i128(10_000))
            .and_then(|v| v.checked_add(i256::from_i128(i128::from(*digit))))
            .ok_or_else(overflow)?;
    }
    // The digits stand for unscaled * 10000^(weight - count + 1).
    let exponent = 4 * (weight - i32::from(count) + 1);
    let number = if exponent >= 0 {
        let factor = i256::from_i128(10).checked_pow(exponent as u32).ok_or_else(overflow)?;
        Numeric { unscaled: unscaled.checked_mul(factor).ok_or_else(overflow)?, scale: 0 }
    } else {
        Numeric { unscaled, scale: u8::try_from(-exponent).map_err(|_| overflow())? }
    };
    let number = if sign == 0 { number } else { Numeric { unscaled: number.unscaled.wrapping_neg(), ..number } };
    let scale = u8::try_from(scale).map_err(|_| overflow())?;
    number.rescale(scale).ok_or_else(overflow)
}
