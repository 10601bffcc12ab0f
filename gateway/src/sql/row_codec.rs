//! How a row lies in its tree: `u16` number of columns, a bitmap of those that are not NULL, then their values in the order
//! of the columns' numbers.
//!
//! Pure functions. Adding a column needs no rewrite: a row with fewer columns than the table has takes the column's
//! missing value for those behind. A dropped column's place stays and is NULL in new rows. Fixed-length values are little
//! endian; the others carry their length in front (LEB128).

use datafusion::arrow::datatypes::i256;

use super::error::{SqlError, code};
use super::types::{Datum, Interval, Numeric, PgType};

fn corrupt(what: &str) -> SqlError {
    SqlError::new(code::DATA_CORRUPTED, format!("a stored row cannot be read: {what}"))
}

fn put_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

fn take_length(bytes: &[u8], at: &mut usize) -> Result<usize, SqlError> {
    let mut length = 0usize;
    for shift in (0..35).step_by(7) {
        let byte = *bytes.get(*at).ok_or_else(|| corrupt("a length is cut off"))?;
        *at += 1;
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(length);
        }
    }
    Err(corrupt("a length is too long"))
}

fn take<'a>(bytes: &'a [u8], at: &mut usize, count: usize) -> Result<&'a [u8], SqlError> {
    let end = at.checked_add(count).filter(|end| *end <= bytes.len()).ok_or_else(|| corrupt("a value is cut off"))?;
    let out = &bytes[*at..end];
    *at = end;
    Ok(out)
}

fn fixed<const N: usize>(bytes: &[u8], at: &mut usize) -> Result<[u8; N], SqlError> {
    Ok(take(bytes, at, N)?.try_into().expect("as many bytes as asked for"))
}

/// Bytes of a fixed-length value as stored; `None` for the types that carry a length.
const fn stored_length(kind: PgType) -> Option<usize> {
    Some(match kind {
        PgType::Bool => 1,
        PgType::Int2 => 2,
        PgType::Int4 | PgType::Float4 | PgType::Date | PgType::Oid | PgType::Regclass | PgType::Regtype | PgType::Regproc => 4,
        PgType::Int8 | PgType::Float8 | PgType::Time | PgType::Timestamp | PgType::Timestamptz => 8,
        PgType::Interval | PgType::Uuid => 16,
        _ => return None,
    })
}

fn put_value(out: &mut Vec<u8>, value: &Datum) {
    match value {
        Datum::Bool(v) => out.push(u8::from(*v)),
        Datum::Int2(v) => out.extend(v.to_le_bytes()),
        Datum::Int4(v) => out.extend(v.to_le_bytes()),
        Datum::Int8(v) => out.extend(v.to_le_bytes()),
        Datum::Float4(v) => out.extend(v.to_le_bytes()),
        Datum::Float8(v) => out.extend(v.to_le_bytes()),
        Datum::Oid(v) => out.extend(v.to_le_bytes()),
        Datum::Date(v) => out.extend(v.to_le_bytes()),
        Datum::Time(v) | Datum::Timestamp(v) => out.extend(v.to_le_bytes()),
        Datum::Interval(v) => {
            out.extend(v.micros.to_le_bytes());
            out.extend(v.days.to_le_bytes());
            out.extend(v.months.to_le_bytes());
        }
        Datum::Uuid(v) => out.extend(v),
        Datum::Text(v) => {
            put_length(out, v.len());
            out.extend(v.as_bytes());
        }
        Datum::Bytea(v) => {
            put_length(out, v.len());
            out.extend(v);
        }
        Datum::Numeric(v) => {
            let all = v.unscaled.to_be_bytes();
            let filler = if v.unscaled.is_negative() { 0xff } else { 0 };
            let mut skip = 0;
            while skip < 31 && all[skip] == filler && (all[skip + 1] & 0x80) == (filler & 0x80) {
                skip += 1;
            }
            put_length(out, 33 - skip);
            out.push(v.scale);
            out.extend(&all[skip..]);
        }
        Datum::Array(element, values) => {
            let mut inner = Vec::new();
            inner.extend(element.oid().to_le_bytes());
            put_length(&mut inner, values.len());
            for value in values {
                inner.push(u8::from(value.is_some()));
                if let Some(value) = value {
                    put_value(&mut inner, value);
                }
            }
            put_length(out, inner.len());
            out.extend(inner);
        }
    }
}

fn take_value(kind: PgType, bytes: &[u8], at: &mut usize) -> Result<Datum, SqlError> {
    Ok(match kind {
        PgType::Bool => Datum::Bool(fixed::<1>(bytes, at)?[0] != 0),
        PgType::Int2 => Datum::Int2(i16::from_le_bytes(fixed(bytes, at)?)),
        PgType::Int4 => Datum::Int4(i32::from_le_bytes(fixed(bytes, at)?)),
        PgType::Int8 => Datum::Int8(i64::from_le_bytes(fixed(bytes, at)?)),
        PgType::Float4 => Datum::Float4(f32::from_le_bytes(fixed(bytes, at)?)),
        PgType::Float8 => Datum::Float8(f64::from_le_bytes(fixed(bytes, at)?)),
        PgType::Oid | PgType::Regclass | PgType::Regtype | PgType::Regproc => Datum::Oid(u32::from_le_bytes(fixed(bytes, at)?)),
        PgType::Date => Datum::Date(i32::from_le_bytes(fixed(bytes, at)?)),
        PgType::Time => Datum::Time(i64::from_le_bytes(fixed(bytes, at)?)),
        PgType::Timestamp | PgType::Timestamptz => Datum::Timestamp(i64::from_le_bytes(fixed(bytes, at)?)),
        PgType::Interval => Datum::Interval(Interval {
            micros: i64::from_le_bytes(fixed(bytes, at)?),
            days: i32::from_le_bytes(fixed(bytes, at)?),
            months: i32::from_le_bytes(fixed(bytes, at)?),
        }),
        PgType::Uuid => Datum::Uuid(fixed(bytes, at)?),
        PgType::Bytea => {
            let length = take_length(bytes, at)?;
            Datum::Bytea(take(bytes, at, length)?.to_vec())
        }
        PgType::Numeric => {
            let length = take_length(bytes, at)?;
            let (scale, digits) = take(bytes, at, length)?.split_first().ok_or_else(|| corrupt("an empty number"))?;
            if digits.is_empty() || digits.len() > 32 {
                return Err(corrupt("a number of a wrong length"));
            }
            let mut all = [if digits[0] & 0x80 != 0 { 0xff } else { 0 }; 32];
            all[32 - digits.len()..].copy_from_slice(digits);
            Datum::Numeric(Numeric { unscaled: i256::from_be_bytes(all), scale: *scale })
        }
        _ => match kind.element() {
            Some(_) => {
                let length = take_length(bytes, at)?;
                let inner = take(bytes, at, length)?;
                let mut inner_at = 0;
                let element = PgType::from_oid(u32::from_le_bytes(fixed(inner, &mut inner_at)?));
                let element = element.ok_or_else(|| corrupt("an array of an unknown type"))?;
                let count = take_length(inner, &mut inner_at)?;
                let mut values = Vec::with_capacity(count.min(inner.len()));
                for _ in 0..count {
                    let there = fixed::<1>(inner, &mut inner_at)?[0] != 0;
                    values.push(if there { Some(take_value(element, inner, &mut inner_at)?) } else { None });
                }
                Datum::Array(element, values)
            }
            None => {
                let length = take_length(bytes, at)?;
                let text = std::str::from_utf8(take(bytes, at, length)?).map_err(|_| corrupt("a text is not UTF-8"))?;
                Datum::Text(text.to_owned())
            }
        },
    })
}

/// Encodes a row: one value for each column number from 1 on.
#[must_use]
pub fn encode<'a>(values: impl ExactSizeIterator<Item = Option<&'a Datum>>) -> Vec<u8> {
    let count = values.len();
    let mut out = Vec::with_capacity(2 + count.div_ceil(8) + count * 8);
    out.extend((count as u16).to_le_bytes());
    out.resize(2 + count.div_ceil(8), 0);
    for (at, value) in values.enumerate() {
        if let Some(value) = value {
            out[2 + at / 8] |= 1 << (at % 8);
            put_value(&mut out, value);
        }
    }
    out
}

/// Reads a stored row column by column, in the order of the columns' numbers.
pub struct RowReader<'a> {
    bytes: &'a [u8],
    count: usize,
    column: usize,
    at: usize,
}

/// What a row says about a column.
#[derive(Debug, PartialEq)]
pub enum Cell {
    /// A value.
    Value(Datum),
    /// NULL.
    Null,
    /// The row is older than the column.
    Missing,
}

impl<'a> RowReader<'a> {
    /// At the first column.
    ///
    /// # Errors
    /// `XX001` when the bytes are no row.
    pub fn new(bytes: &'a [u8]) -> Result<RowReader<'a>, SqlError> {
        let mut at = 0;
        let count = usize::from(u16::from_le_bytes(fixed(bytes, &mut at)?));
        take(bytes, &mut at, count.div_ceil(8))?;
        Ok(RowReader { bytes, count, column: 0, at })
    }

    fn present(&self) -> bool {
        self.bytes[2 + self.column / 8] & (1 << (self.column % 8)) != 0
    }

    /// The next column's value; it is of this type.
    ///
    /// # Errors
    /// `XX001` when the bytes are not such a value.
    pub fn read(&mut self, kind: PgType) -> Result<Cell, SqlError> {
        if self.column >= self.count {
            return Ok(Cell::Missing);
        }
        let cell = if self.present() { Cell::Value(take_value(kind, self.bytes, &mut self.at)?) } else { Cell::Null };
        self.column += 1;
        Ok(cell)
    }

    /// Passes over the next column, which is of this type.
    ///
    /// # Errors
    /// `XX001` when the row is cut off.
    pub fn skip(&mut self, kind: PgType) -> Result<(), SqlError> {
        if self.column < self.count {
            if self.present() {
                let length = match stored_length(kind) {
                    Some(length) => length,
                    None => take_length(self.bytes, &mut self.at)?,
                };
                take(self.bytes, &mut self.at, length)?;
            }
            self.column += 1;
        }
        Ok(())
    }
}
