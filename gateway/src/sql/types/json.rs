//! JSON as text: a check for `json`, the normal form for `jsonb` (keys by length and bytes, the last of equal keys wins,
//! `": "` and `", "`, numbers as decimals).
//!
//! Pure; nesting is bounded by [`DEPTH_MAX`].

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Numeric;
use crate::sql::error::{SqlError, code};

/// Deepest nesting of a document.
pub const DEPTH_MAX: usize = 512;

/// A parsed document. Numbers keep their digits.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// The digits as written
    Number(String),
    /// Unescaped
    String(String),
    /// `[...]`
    Array(Vec<Json>),
    /// `{...}`, in jsonb's order
    Object(BTreeMap<(usize, String), Json>),
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

/// Refuses what is not JSON.
///
/// # Errors
/// `22P02`.
pub fn check(text: &str) -> Result<(), SqlError> {
    parse(text).map(|_| ())
}

/// jsonb's form of a document.
///
/// # Errors
/// `22P02`.
pub fn normalize(text: &str) -> Result<String, SqlError> {
    let mut out = String::with_capacity(text.len());
    parse(text)?.write(&mut out);
    Ok(out)
}

/// Reads a document.
///
/// # Errors
/// `22P02`.
pub fn parse(text: &str) -> Result<Json, SqlError> {
    let mut reader = Reader { text, at: 0 };
    let value = reader.value(0)?;
    reader.blanks();
    if reader.at == text.len() { Ok(value) } else { Err(reader.fail()) }
}

impl Reader<'_> {
    fn fail(&self) -> SqlError {
        let rest: String = self.text[self.at..].chars().take_while(|c| !c.is_whitespace()).take(20).collect();
        let detail = if rest.is_empty() {
            "The input string ended unexpectedly.".to_owned()
        } else {
            format!("Token \"{rest}\" is invalid.")
        };
        SqlError::new(code::INVALID_TEXT_REPRESENTATION, "invalid input syntax for type json").with_detail(detail)
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> Result<(), SqlError> {
        self.blanks();
        if self.peek() == Some(byte) {
            self.at += 1;
            Ok(())
        } else {
            Err(self.fail())
        }
    }

    fn value(&mut self, depth: usize) -> Result<Json, SqlError> {
        if depth > DEPTH_MAX {
            return Err(SqlError::new(code::PROGRAM_LIMIT_EXCEEDED, format!("JSON is nested deeper than {DEPTH_MAX}")));
        }
        self.blanks();
        match self.peek() {
            Some(b'{') => {
                self.at += 1;
                let mut members = BTreeMap::new();
                self.blanks();
                if self.peek() == Some(b'}') {
                    self.at += 1;
                    return Ok(Json::Object(members));
                }
                loop {
                    self.blanks();
                    let key = self.string()?;
                    self.take(b':')?;
                    let value = self.value(depth + 1)?;
                    members.insert((key.len(), key), value);
                    self.blanks();
                    if self.peek() == Some(b',') {
                        self.at += 1;
                    } else {
                        self.take(b'}')?;
                        return Ok(Json::Object(members));
                    }
                }
            }
            Some(b'[') => {
                self.at += 1;
                let mut items = Vec::new();
                self.blanks();
                if self.peek() == Some(b']') {
                    self.at += 1;
                    return Ok(Json::Array(items));
                }
                loop {
                    items.push(self.value(depth + 1)?);
                    self.blanks();
                    if self.peek() == Some(b',') {
                        self.at += 1;
                    } else {
                        self.take(b']')?;
                        return Ok(Json::Array(items));
                    }
                }
            }
            Some(b'"') => Ok(Json::String(self.string()?)),
            Some(b't') => self.word("true", Json::Bool(true)),
            Some(b'f') => self.word("false", Json::Bool(false)),
            Some(b'n') => self.word("null", Json::Null),
            _ => self.number(),
        }
    }

    fn word(&mut self, word: &str, value: Json) -> Result<Json, SqlError> {
        if self.text[self.at..].starts_with(word) {
            self.at += word.len();
            Ok(value)
        } else {
            Err(self.fail())
        }
    }

    fn number(&mut self) -> Result<Json, SqlError> {
        let start = self.at;
        let digits = |reader: &mut Self| {
            let from = reader.at;
            while reader.peek().is_some_and(|b| b.is_ascii_digit()) {
                reader.at += 1;
            }
            reader.at - from
        };
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        let first = self.peek();
        let whole = digits(self);
        if whole == 0 || (whole > 1 && first == Some(b'0')) {
            self.at = start;
            return Err(self.fail());
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            if digits(self) == 0 {
                return Err(self.fail());
            }
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if digits(self) == 0 {
                return Err(self.fail());
            }
        }
        Ok(Json::Number(self.text[start..self.at].to_owned()))
    }

    fn hex4(&mut self) -> Result<u32, SqlError> {
        let digits = self.text.get(self.at..self.at + 4).ok_or_else(|| self.fail())?;
        let value = u32::from_str_radix(digits, 16).map_err(|_| self.fail())?;
        self.at += 4;
        Ok(value)
    }

    fn string(&mut self) -> Result<String, SqlError> {
        if self.peek() != Some(b'"') {
            return Err(self.fail());
        }
        self.at += 1;
        let mut out = String::new();
        loop {
            let rest = &self.text[self.at..];
            let plain = rest.find(|c: char| c == '"' || c == '\\' || c < ' ').ok_or_else(|| self.fail())?;
            out.push_str(&rest[..plain]);
            self.at += plain;
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    self.at += 1;
                    let escape = self.peek().ok_or_else(|| self.fail())?;
                    self.at += 1;
                    out.push(match escape {
                        b'"' | b'\\' | b'/' => escape as char,
                        b'b' => '\u{8}',
                        b'f' => '\u{c}',
                        b'n' => '\n',
                        b'r' => '\r',
                        b't' => '\t',
                        b'u' => {
                            let mut unit = self.hex4()?;
                            if (0xd800..0xdc00).contains(&unit) && self.text[self.at..].starts_with("\\u") {
                                self.at += 2;
                                let low = self.hex4()?;
                                unit = 0x10000 + ((unit - 0xd800) << 10) + (low.wrapping_sub(0xdc00) & 0x3ff);
                            }
                            char::from_u32(unit).ok_or_else(|| self.fail())?
                        }
                        _ => {
                            self.at -= 1;
                            return Err(self.fail());
                        }
                    });
                }
                _ => return Err(self.fail()),
            }
        }
    }
}

impl Json {
    /// Prints jsonb's form.
    pub fn write(&self, out: &mut String) {
        match self {
            Json::Null => out.push_str("null"),
            Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Json::Number(digits) => match Numeric::parse(digits) {
                Ok(number) => {
                    let _ = write!(out, "{number}");
                }
                Err(_) => out.push_str(digits),
            },
            Json::String(text) => write_string(out, text),
            Json::Array(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        out.push_str(", ");
                    }
                    item.write(out);
                }
                out.push(']');
            }
            Json::Object(members) => {
                out.push('{');
                for (at, ((_, key), value)) in members.iter().enumerate() {
                    if at > 0 {
                        out.push_str(", ");
                    }
                    write_string(out, key);
                    out.push_str(": ");
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

/// Prints a string in quotes, escaped.
pub fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
