//! Text forms of values, in and out, as PostgreSQL has them.
//!
//! Pure functions: [`Datum::parse`] reads, [`Datum::write_text`] prints.

use std::fmt::Write as _;

use super::{Datum, Numeric, PgType, datetime, json, numeric_typmod};
use crate::sql::error::{SqlError, code};

fn invalid(kind: PgType, text: &str) -> SqlError {
    SqlError::new(code::INVALID_TEXT_REPRESENTATION, format!("invalid input syntax for type {}: \"{text}\"", kind.sql_name()))
}

fn parse_integer(text: &str, kind: PgType, min: i64, max: i64) -> Result<i64, SqlError> {
    let trimmed = text.trim_matches(|c: char| c.is_ascii_whitespace());
    let digits = trimmed.strip_prefix(['-', '+']).unwrap_or(trimmed);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(invalid(kind, text));
    }
    trimmed.parse::<i64>().ok().filter(|v| (min..=max).contains(v)).ok_or_else(|| {
        SqlError::new(
            code::NUMERIC_VALUE_OUT_OF_RANGE,
            format!("value \"{trimmed}\" is out of range for type {}", kind.sql_name()),
        )
    })
}

fn parse_float(text: &str, kind: PgType) -> Result<f64, SqlError> {
    let trimmed = text.trim();
    let lower = trimmed.to_ascii_lowercase();
    let out_of_range =
        || SqlError::new(code::NUMERIC_VALUE_OUT_OF_RANGE, format!("\"{trimmed}\" is out of range for type {}", kind.sql_name()));
    match lower.as_str() {
        "nan" => return Ok(f64::NAN),
        "inf" | "infinity" | "+infinity" | "+inf" => return Ok(f64::INFINITY),
        "-infinity" | "-inf" => return Ok(f64::NEG_INFINITY),
        _ => {}
    }
    if !lower.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'-' | b'+')) {
        return Err(invalid(kind, text));
    }
    let value: f64 = lower.parse().map_err(|_| invalid(kind, text))?;
    let fits = if kind == PgType::Float4 { (value as f32).is_finite() } else { value.is_finite() };
    if fits { Ok(value) } else { Err(out_of_range()) }
}

fn parse_bool(text: &str) -> Option<bool> {
    let lower = text.trim().to_ascii_lowercase();
    if lower.is_empty() {
        return None;
    }
    let matches = |word: &str, least: usize| lower.len() >= least && word.starts_with(&lower);
    if matches("true", 1) || matches("yes", 1) || lower == "on" || lower == "1" {
        Some(true)
    } else if matches("false", 1) || matches("no", 1) || matches("off", 2) || lower == "0" {
        Some(false)
    } else {
        None
    }
}

fn parse_bytea(text: &str) -> Result<Vec<u8>, SqlError> {
    if let Some(hex) = text.strip_prefix("\\x") {
        let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
        let nibble = |b: u8| {
            (b as char).to_digit(16).map(|d| d as u8).ok_or_else(|| {
                SqlError::new(code::INVALID_PARAMETER_VALUE, format!("invalid hexadecimal digit: \"{}\"", b as char))
            })
        };
        if !digits.len().is_multiple_of(2) {
            return Err(SqlError::new(code::INVALID_PARAMETER_VALUE, "invalid hexadecimal data: odd number of digits"));
        }
        return digits.chunks(2).map(|pair| Ok(nibble(pair[0])? << 4 | nibble(pair[1])?)).collect();
    }
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'\\' {
            out.push(bytes[at]);
            at += 1;
        } else if bytes.get(at + 1) == Some(&b'\\') {
            out.push(b'\\');
            at += 2;
        } else {
            let octal = bytes.get(at + 1..at + 4).filter(|d| d.iter().all(|b| (b'0'..=b'7').contains(b)) && d[0] <= b'3');
            let octal = octal.ok_or_else(|| invalid(PgType::Bytea, text))?;
            out.push((octal[0] - b'0') << 6 | (octal[1] - b'0') << 3 | (octal[2] - b'0'));
            at += 4;
        }
    }
    Ok(out)
}

fn parse_uuid(text: &str) -> Result<[u8; 16], SqlError> {
    let fail = || invalid(PgType::Uuid, text);
    let trimmed = text.trim();
    let trimmed = trimmed.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(trimmed);
    let mut out = [0u8; 16];
    let mut count = 0;
    for byte in trimmed.bytes() {
        if byte == b'-' {
            if count % 4 != 0 {
                return Err(fail());
            }
            continue;
        }
        let digit = (byte as char).to_digit(16).ok_or_else(fail)? as u8;
        if count == 32 {
            return Err(fail());
        }
        out[count / 2] |= if count % 2 == 0 { digit << 4 } else { digit };
        count += 1;
    }
    if count == 32 { Ok(out) } else { Err(fail()) }
}

/// Reads `{a,"b c",NULL}`.
fn parse_array(text: &str, element: PgType) -> Result<Datum, SqlError> {
    let malformed = || SqlError::new(code::INVALID_TEXT_REPRESENTATION, format!("malformed array literal: \"{text}\""));
    let inner = text.trim().strip_prefix('{').and_then(|t| t.strip_suffix('}')).ok_or_else(malformed)?;
    let mut values = Vec::new();
    let mut chars = inner.chars().peekable();
    if inner.trim().is_empty() {
        return Ok(Datum::Array(element, values));
    }
    loop {
        while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        let mut item = String::new();
        let mut quoted = false;
        if chars.next_if_eq(&'"').is_some() {
            quoted = true;
            loop {
                match chars.next().ok_or_else(malformed)? {
                    '"' => break,
                    '\\' => item.push(chars.next().ok_or_else(malformed)?),
                    c => item.push(c),
                }
            }
            while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        } else {
            while let Some(c) = chars.next_if(|c| *c != ',') {
                match c {
                    '{' | '}' | '"' => return Err(malformed()),
                    '\\' => item.push(chars.next().ok_or_else(malformed)?),
                    c => item.push(c),
                }
            }
            item.truncate(item.trim_end().len());
            if item.is_empty() {
                return Err(malformed());
            }
        }
        values.push(if !quoted && item.eq_ignore_ascii_case("null") { None } else { Some(Datum::parse(element, -1, &item)?) });
        match chars.next() {
            None => return Ok(Datum::Array(element, values)),
            Some(',') => {}
            Some(_) => return Err(malformed()),
        }
    }
}

impl Datum {
    /// Reads the text form of `kind` and applies the type modifier (-1: none) as an assignment does.
    ///
    /// # Errors
    /// PostgreSQL's: `22P02`, `22003`, `22007`, `22008`, `22001`.
    pub fn parse(kind: PgType, typmod: i32, text: &str) -> Result<Datum, SqlError> {
        let datum = match kind {
            PgType::Bool => Datum::Bool(parse_bool(text).ok_or_else(|| invalid(kind, text))?),
            PgType::Int2 => Datum::Int2(parse_integer(text, kind, i64::from(i16::MIN), i64::from(i16::MAX))? as i16),
            PgType::Int4 => Datum::Int4(parse_integer(text, kind, i64::from(i32::MIN), i64::from(i32::MAX))? as i32),
            PgType::Int8 => Datum::Int8(parse_integer(text, kind, i64::MIN, i64::MAX)?),
            PgType::Oid | PgType::Regclass | PgType::Regtype | PgType::Regproc => {
                Datum::Oid(parse_integer(text, kind, i64::from(i32::MIN), i64::from(u32::MAX))? as u32)
            }
            PgType::Float4 => Datum::Float4(parse_float(text, kind)? as f32),
            PgType::Float8 => Datum::Float8(parse_float(text, kind)?),
            PgType::Numeric => Datum::Numeric(Numeric::parse(text)?),
            PgType::Text | PgType::Varchar | PgType::Bpchar | PgType::Name | PgType::Char | PgType::Unknown | PgType::Void => {
                if text.contains('\0') {
                    return Err(SqlError::new("22021", "invalid byte sequence for encoding \"UTF8\": 0x00"));
                }
                Datum::Text(text.to_owned())
            }
            PgType::Json => {
                json::check(text)?;
                Datum::Text(text.to_owned())
            }
            PgType::Jsonb => Datum::Text(json::normalize(text)?),
            PgType::Bytea => Datum::Bytea(parse_bytea(text)?),
            PgType::Date => Datum::Date(datetime::parse_date(text)?),
            PgType::Time => Datum::Time(datetime::parse_time(text)?),
            PgType::Timestamp => Datum::Timestamp(datetime::parse_timestamp(text, false)?),
            PgType::Timestamptz => Datum::Timestamp(datetime::parse_timestamp(text, true)?),
            PgType::Interval => Datum::Interval(datetime::parse_interval(text)?),
            PgType::Uuid => Datum::Uuid(parse_uuid(text)?),
            PgType::Int2Vector | PgType::OidVector => {
                let element = kind.element().unwrap_or(PgType::Oid);
                let items = text.split_whitespace().map(|item| Datum::parse(element, -1, item).map(Some));
                Datum::Array(element, items.collect::<Result<_, _>>()?)
            }
            _ => match kind.element() {
                Some(element) => parse_array(text, element)?,
                None => return Err(SqlError::unsupported(format_args!("a literal of type {}", kind.sql_name()))),
            },
        };
        datum.fit(kind, typmod)
    }

    /// Applies a type modifier as an assignment does: lengths of strings, precision of numbers and times.
    ///
    /// # Errors
    /// `22001` for a string too long, `22003` for a number too large.
    pub fn fit(self, kind: PgType, typmod: i32) -> Result<Datum, SqlError> {
        match (self, kind) {
            (Datum::Text(mut text), PgType::Varchar | PgType::Bpchar) => {
                if kind == PgType::Bpchar {
                    text.truncate(text.trim_end_matches(' ').len());
                }
                let limit = if typmod >= 4 { (typmod - 4) as usize } else { usize::MAX };
                if text.len() > limit && text.chars().count() > limit {
                    let end = text.char_indices().nth(limit).map_or(text.len(), |(at, _)| at);
                    if text[end..].bytes().any(|b| b != b' ') {
                        return Err(SqlError::new(
                            code::STRING_DATA_RIGHT_TRUNCATION,
                            format!("value too long for type {}", kind.display_name(typmod)),
                        ));
                    }
                    text.truncate(end);
                }
                Ok(Datum::Text(text))
            }
            (Datum::Text(mut text), PgType::Name) if text.len() > 63 => {
                let mut end = 63;
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                text.truncate(end);
                Ok(Datum::Text(text))
            }
            (Datum::Numeric(number), PgType::Numeric) if typmod >= 4 => {
                let (precision, scale) = numeric_typmod(typmod);
                Ok(Datum::Numeric(number.fit(precision, scale)?))
            }
            (Datum::Timestamp(micros), PgType::Timestamp | PgType::Timestamptz)
                if (0..6).contains(&typmod) && micros != i64::MAX && micros != i64::MIN =>
            {
                Ok(Datum::Timestamp(round_micros(micros, typmod)))
            }
            (Datum::Time(micros), PgType::Time) if (0..6).contains(&typmod) => Ok(Datum::Time(round_micros(micros, typmod))),
            (datum, _) => Ok(datum),
        }
    }

    /// Prints the text form of a value of type `kind` with modifier `typmod` (for `char(n)`'s padding).
    pub fn write_text(&self, kind: PgType, typmod: i32, out: &mut String) {
        match self {
            Datum::Bool(value) => out.push(if *value { 't' } else { 'f' }),
            Datum::Int2(value) => write_display(out, value),
            Datum::Int4(value) => write_display(out, value),
            Datum::Int8(value) => write_display(out, value),
            Datum::Oid(value) => write_display(out, value),
            Datum::Numeric(value) => write_display(out, value),
            Datum::Float4(value) => write_float4(out, *value),
            Datum::Float8(value) => write_float8(out, *value),
            Datum::Text(text) => {
                out.push_str(text);
                if kind == PgType::Bpchar && typmod >= 4 {
                    let width = (typmod - 4) as usize;
                    let length = if text.is_ascii() { text.len() } else { text.chars().count() };
                    out.extend(std::iter::repeat_n(' ', width.saturating_sub(length)));
                }
            }
            Datum::Bytea(bytes) => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.push_str("\\x");
                out.reserve(bytes.len() * 2);
                for byte in bytes {
                    out.push(HEX[usize::from(byte >> 4)] as char);
                    out.push(HEX[usize::from(byte & 15)] as char);
                }
            }
            Datum::Date(days) => datetime::write_date(out, *days),
            Datum::Time(micros) => datetime::write_time(out, *micros),
            Datum::Timestamp(micros) => datetime::write_timestamp(out, *micros, kind == PgType::Timestamptz),
            Datum::Interval(interval) => datetime::write_interval(out, *interval),
            Datum::Uuid(bytes) => {
                for (at, byte) in bytes.iter().enumerate() {
                    if matches!(at, 4 | 6 | 8 | 10) {
                        out.push('-');
                    }
                    let _ = write!(out, "{byte:02x}");
                }
            }
            Datum::Array(element, values) => write_array(out, kind, *element, values),
        }
    }

    /// The text form on its own.
    #[must_use]
    pub fn to_text(&self, kind: PgType, typmod: i32) -> String {
        let mut out = String::new();
        self.write_text(kind, typmod, &mut out);
        out
    }

    /// The type that the value has by itself.
    #[must_use]
    pub fn natural_type(&self) -> PgType {
        match self {
            Datum::Bool(_) => PgType::Bool,
            Datum::Int2(_) => PgType::Int2,
            Datum::Int4(_) => PgType::Int4,
            Datum::Int8(_) => PgType::Int8,
            Datum::Float4(_) => PgType::Float4,
            Datum::Float8(_) => PgType::Float8,
            Datum::Numeric(_) => PgType::Numeric,
            Datum::Text(_) => PgType::Text,
            Datum::Bytea(_) => PgType::Bytea,
            Datum::Date(_) => PgType::Date,
            Datum::Time(_) => PgType::Time,
            Datum::Timestamp(_) => PgType::Timestamp,
            Datum::Interval(_) => PgType::Interval,
            Datum::Uuid(_) => PgType::Uuid,
            Datum::Oid(_) => PgType::Oid,
            Datum::Array(element, _) => PgType::array_of(*element).unwrap_or(PgType::TextArray),
        }
    }
}

fn write_display(out: &mut String, value: impl std::fmt::Display) {
    let _ = write!(out, "{value}");
}

fn round_micros(micros: i64, digits: i32) -> i64 {
    let unit = 10i64.pow((6 - digits) as u32);
    micros.saturating_add(unit / 2).div_euclid(unit) * unit
}

fn write_array(out: &mut String, kind: PgType, element: PgType, values: &[Option<Datum>]) {
    if matches!(kind, PgType::Int2Vector | PgType::OidVector) {
        for (at, value) in values.iter().flatten().enumerate() {
            if at > 0 {
                out.push(' ');
            }
            value.write_text(element, -1, out);
        }
        return;
    }
    out.push('{');
    for (at, value) in values.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        match value {
            None => out.push_str("NULL"),
            Some(value) => {
                let text = value.to_text(element, -1);
                let plain = !text.is_empty()
                    && !text.eq_ignore_ascii_case("null")
                    && !text.contains(|c: char| matches!(c, '{' | '}' | ',' | '"' | '\\') || c.is_ascii_whitespace());
                if plain {
                    out.push_str(&text);
                } else {
                    out.push('"');
                    for c in text.chars() {
                        if matches!(c, '"' | '\\') {
                            out.push('\\');
                        }
                        out.push(c);
                    }
                    out.push('"');
                }
            }
        }
    }
    out.push('}');
}

/// Shortest digits that read back to the same float, laid out as PostgreSQL does: an exponent below 1e-4 and from 1e15 (1e6
/// for float4).
fn write_shortest(out: &mut String, scientific: &str, exponent_max: i32) {
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |m| ("-", m));
    out.push_str(sign);
    if exponent < -4 || exponent >= exponent_max {
        let _ = write!(out, "{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.unsigned_abs());
        return;
    }
    let digits: String = mantissa.chars().filter(|c| *c != '.').collect();
    if exponent < 0 {
        out.push_str("0.");
        out.extend(std::iter::repeat_n('0', (-exponent - 1) as usize));
        out.push_str(&digits);
    } else {
        let whole = exponent as usize + 1;
        if digits.len() <= whole {
            out.push_str(&digits);
            out.extend(std::iter::repeat_n('0', whole - digits.len()));
        } else {
            let _ = write!(out, "{}.{}", &digits[..whole], &digits[whole..]);
        }
    }
}

fn write_special(out: &mut String, value: f64) -> bool {
    let word = if value.is_nan() {
        "NaN"
    } else if value == f64::INFINITY {
        "Infinity"
    } else if value == f64::NEG_INFINITY {
        "-Infinity"
    } else {
        return false;
    };
    out.push_str(word);
    true
}

fn write_float8(out: &mut String, value: f64) {
    if !write_special(out, value) {
        write_shortest(out, &format!("{value:e}"), 15);
    }
}

fn write_float4(out: &mut String, value: f32) {
    if !write_special(out, f64::from(value)) {
        write_shortest(out, &format!("{value:e}"), 6);
    }
}
