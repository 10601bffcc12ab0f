//! Keys whose bytes compare as the values do: what rows and index entries are found by.
//!
//! Pure functions. Each column is a marker (1 a value, 2 NULL: NULLs come last) and the value: integers big endian with
//! the sign flipped; floats with the sign bit handled so that -0 = 0 and NaN is greatest; strings with 0x00 as 00 FF and
//! ended by 00 01; numerics by sign, exponent and decimal digits, so that 1.0 = 1.00. Text compares as bytes (collation "C").

use super::error::{SqlError, code};
use super::types::{Datum, Numeric, PgType};

/// Longest key that the engine takes.
pub use rustydb::store::KEY_BYTES_MAX;

const VALUE: u8 = 1;
const NULL: u8 = 2;

/// Whether values of the type can be keys.
#[must_use]
pub const fn can_be_key(kind: PgType) -> bool {
    !matches!(kind, PgType::Json | PgType::Void | PgType::Unknown)
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        out.push(*byte);
        if *byte == 0 {
            out.push(0xff);
        }
    }
    out.extend([0, 1]);
}

fn put_numeric(out: &mut Vec<u8>, value: Numeric) {
    let normal = value.normalized();
    let text =
        if normal.unscaled.is_negative() { normal.unscaled.wrapping_neg().to_string() } else { normal.unscaled.to_string() };
    let digits = text.trim_end_matches('0');
    if digits.is_empty() {
        out.push(2);
        return;
    }
    // value = 0.digits * 10^exponent
    let exponent = (text.len() as i32 - i32::from(normal.scale) + 0x4000) as u16;
    let negative = normal.unscaled.is_negative();
    out.push(if negative { 1 } else { 3 });
    let start = out.len();
    out.extend(exponent.to_be_bytes());
    for pair in digits.as_bytes().chunks(2) {
        let tens = pair[0] - b'0';
        let ones = pair.get(1).map_or(0, |b| b - b'0');
        out.push(tens * 10 + ones + 1);
    }
    out.push(0);
    if negative {
        out[start..].iter_mut().for_each(|b| *b = !*b);
    }
}

fn put_float(out: &mut Vec<u8>, value: f64) {
    let value = if value == 0.0 {
        0.0
    } else if value.is_nan() {
        f64::NAN
    } else {
        value
    };
    let bits = value.to_bits() & if value.is_nan() { u64::MAX >> 1 } else { u64::MAX };
    let ordered = if bits >> 63 == 0 { bits | 1 << 63 } else { !bits };
    out.extend(ordered.to_be_bytes());
}

/// Appends a column of a key; `descending` turns its order round.
pub fn put(out: &mut Vec<u8>, value: Option<&Datum>, descending: bool) {
    let start = out.len();
    match value {
        None => out.push(NULL),
        Some(value) => {
            out.push(VALUE);
            put_value(out, value);
        }
    }
    if descending {
        out[start..].iter_mut().for_each(|b| *b = !*b);
    }
}

fn put_value(out: &mut Vec<u8>, value: &Datum) {
    match value {
        Datum::Bool(v) => out.push(u8::from(*v)),
        Datum::Int2(v) => out.extend((*v as u16 ^ 1 << 15).to_be_bytes()),
        Datum::Int4(v) | Datum::Date(v) => out.extend((*v as u32 ^ 1 << 31).to_be_bytes()),
        Datum::Int8(v) | Datum::Time(v) | Datum::Timestamp(v) => out.extend((*v as u64 ^ 1 << 63).to_be_bytes()),
        Datum::Oid(v) => out.extend(v.to_be_bytes()),
        Datum::Float4(v) => put_float(out, f64::from(*v)),
        Datum::Float8(v) => put_float(out, *v),
        Datum::Numeric(v) => put_numeric(out, *v),
        Datum::Text(v) => put_bytes(out, v.as_bytes()),
        Datum::Bytea(v) => put_bytes(out, v),
        Datum::Uuid(v) => out.extend(v),
        Datum::Interval(v) => out.extend((v.comparison_micros() as u128 ^ 1 << 127).to_be_bytes()),
        Datum::Array(_, values) => {
            for value in values {
                put(out, value.as_ref(), false);
            }
            out.push(0);
        }
    }
}

/// Refuses keys that the engine would refuse, in PostgreSQL's words.
///
/// # Errors
/// `54000`.
pub fn check_length(key: &[u8], index: &str) -> Result<(), SqlError> {
    if key.len() > KEY_BYTES_MAX {
        return Err(SqlError::new(
            code::PROGRAM_LIMIT_EXCEEDED,
            format!("index row size {} exceeds maximum {KEY_BYTES_MAX} for index \"{index}\"", key.len()),
        )
        .with_hint("Keep long values out of keys and indexes; index a hash of them instead."));
    }
    Ok(())
}
