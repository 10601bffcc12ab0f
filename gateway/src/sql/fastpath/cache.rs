//! Plans by text: literals are taken out of a statement, so that texts which differ only in them share a plan.
//!
//! One cache per node, behind a mutex held for a look-up only; at most [`PLANS_MAX`] texts, then it starts anew. That a
//! text has no plan is remembered too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::FastPlan;
use crate::sql::catalog::Catalog;
use crate::sql::database::Database;
use crate::sql::settings::Settings;
use crate::sql::types::{Datum, PgType};

/// Most texts remembered.
pub const PLANS_MAX: usize = 8192;
/// Longest text that is looked up.
const TEXT_BYTES_MAX: usize = 16 << 10;

struct Entry {
    generation: u64,
    plan: Option<Arc<FastPlan>>,
}

/// See the module.
#[derive(Default)]
pub struct FastCache {
    plans: Mutex<HashMap<String, Entry>>,
}

impl FastCache {
    /// The plan for a statement's text, with its literals as parameters.
    #[must_use]
    pub fn lookup(
        &self,
        sql: &str,
        _db: &Database,
        catalog: &Catalog,
        settings: &Settings,
        user: &str,
    ) -> Option<(Arc<FastPlan>, Vec<Option<Datum>>)> {
        let (key, values) = normalize(sql, settings.get("search_path"), user)?;
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        match plans.get(&key) {
            Some(entry) if entry.generation == catalog.generation => {
                return entry.plan.as_ref().map(|plan| (Arc::clone(plan), values));
            }
            _ => {}
        }
        drop(plans);
        let plan = compile(sql, catalog, settings, user).map(Arc::new);
        plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if plans.len() >= PLANS_MAX {
            plans.clear();
        }
        plans.insert(key, Entry { generation: catalog.generation, plan: plan.clone() });
        plan.map(|plan| (plan, values))
    }
}

fn compile(sql: &str, catalog: &Catalog, settings: &Settings, user: &str) -> Option<FastPlan> {
    let pieces = scan(sql)?;
    let (mut text, mut types) = (String::with_capacity(sql.len()), Vec::new());
    for piece in pieces {
        match piece {
            Piece::Text(part) => text.push_str(part),
            Piece::Number(digits) => {
                types.push(if digits.parse::<i32>().is_ok() { PgType::Int4 } else { PgType::Int8 });
                text.push_str(&format!("${}", types.len()));
            }
            Piece::String(_) => {
                types.push(PgType::Unknown);
                text.push_str(&format!("${}", types.len()));
            }
        }
    }
    let mut statements = crate::sql::parse::parse(&text).ok()?;
    let statement = statements.pop()?;
    if !statements.is_empty() {
        return None;
    }
    FastPlan::compile(&statement.statement, &types, catalog, &settings.search_path(user))
}

/// The text with marks in place of literals, and the literals.
fn normalize(sql: &str, search_path: &str, user: &str) -> Option<(String, Vec<Option<Datum>>)> {
    let pieces = scan(sql)?;
    let mut key = String::with_capacity(sql.len() + 16);
    let mut values = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Text(part) => key.push_str(part),
            Piece::Number(digits) => match digits.parse::<i32>() {
                Ok(value) => {
                    key.push('\u{1}');
                    values.push(Some(Datum::Int4(value)));
                }
                Err(_) => {
                    key.push('\u{2}');
                    values.push(Some(Datum::Int8(digits.parse().ok()?)));
                }
            },
            Piece::String(text) => {
                key.push('\u{3}');
                values.push(Some(Datum::Text(text.replace("''", "'"))));
            }
        }
    }
    key.push('\u{4}');
    key.push_str(user);
    key.push('\u{4}');
    key.push_str(search_path);
    Some((key, values))
}

enum Piece<'a> {
    Text(&'a str),
    Number(&'a str),
    /// Without the quotes, quotes inside still doubled.
    String(&'a str),
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

/// Cuts a statement into literals and the rest. `None` for what this does not want to understand: comments, parameters,
/// several statements, strings of other kinds.
fn scan(sql: &str) -> Option<Vec<Piece<'_>>> {
    let trimmed = sql.trim();
    let trimmed = trimmed.strip_suffix(';').unwrap_or(trimmed).trim_end();
    let first = trimmed.get(..6)?;
    if trimmed.len() > TEXT_BYTES_MAX || !["select", "update", "insert", "delete"].iter().any(|w| first.eq_ignore_ascii_case(w)) {
        return None;
    }
    let bytes = trimmed.as_bytes();
    let mut pieces = Vec::with_capacity(16);
    let (mut start, mut at) = (0, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'\'' => {
                if at > 0 && is_word(bytes[at - 1]) {
                    return None;
                }
                let mut end = at + 1;
                loop {
                    match bytes.get(end)? {
                        b'\'' if bytes.get(end + 1) == Some(&b'\'') => end += 2,
                        b'\'' => break,
                        _ => end += 1,
                    }
                }
                pieces.push(Piece::Text(&trimmed[start..at]));
                pieces.push(Piece::String(&trimmed[at + 1..end]));
                at = end + 1;
                start = at;
            }
            b'"' => {
                at += 1 + trimmed[at + 1..].find('"')? + 1;
            }
            b'0'..=b'9' => {
                let mut end = at;
                while bytes.get(end).is_some_and(u8::is_ascii_digit) {
                    end += 1;
                }
                let after = bytes.get(end).copied().unwrap_or(b' ');
                if after == b'.' || is_word(after) || (at > 0 && bytes[at - 1] == b'.') || end - at > 18 {
                    // A fraction, an exponent: stays part of the text.
                    while bytes.get(end).is_some_and(|b| is_word(*b) || *b == b'.') {
                        end += 1;
                    }
                    at = end;
                    continue;
                }
                pieces.push(Piece::Text(&trimmed[start..at]));
                pieces.push(Piece::Number(&trimmed[at..end]));
                at = end;
                start = end;
            }
            b'$' | b';' | b'\\' => return None,
            b'-' if bytes.get(at + 1) == Some(&b'-') => return None,
            b'/' if bytes.get(at + 1) == Some(&b'*') => return None,
            byte if is_word(byte) => {
                while bytes.get(at).is_some_and(|b| is_word(*b)) {
                    at += 1;
                }
            }
            0..=4 => return None,
            _ => at += 1,
        }
    }
    pieces.push(Piece::Text(&trimmed[start..]));
    Some(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_that_differ_in_literals_share_a_key() {
        let key = |sql| normalize(sql, "public", "u").map(|(key, _)| key);
        let a = key("SELECT abalance FROM pgbench_accounts WHERE aid = 17;");
        assert!(a.is_some());
        assert_eq!(a, key("SELECT abalance FROM pgbench_accounts WHERE aid = 99"));
        assert_ne!(a, key("SELECT abalance FROM pgbench_accounts WHERE aid = 9999999999"));
        assert_ne!(a, key("SELECT abalance FROM pgbench_accounts WHERE aid = '17'"));
    }

    #[test]
    fn literals_come_back_as_they_were() {
        let (key, values) = normalize("update t1 set a = a + -5, b = 'it''s' where id=7", "public", "u").unwrap();
        assert_eq!(values, vec![Some(Datum::Int4(5)), Some(Datum::Text("it's".to_owned())), Some(Datum::Int4(7))]);
        assert!(key.starts_with("update t1 set a = a + -\u{1}, b = \u{3} where id=\u{1}"));
    }

    #[test]
    fn what_is_not_plain_is_left_alone() {
        for sql in ["select $1", "select 1 -- x", "select E'a'", "select 1; select 2", "create table t()", "select 'a"] {
            assert!(normalize(sql, "public", "u").is_none(), "{sql}");
        }
        assert_eq!(normalize("select 1.5, 1e3, a1 from t", "p", "u").unwrap().1, vec![]);
    }
}
