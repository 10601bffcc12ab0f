//! The session's settings: PostgreSQL's names, defaults and checks.
//!
//! Owned by one session. Names with a dot are free (as PostgreSQL's custom settings); others must be in [`KNOWN`].

use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::{SqlError, code};

/// Known settings with their defaults, and whether a client may change them.
pub const KNOWN: &[(&str, &str, bool)] = &[
    ("application_name", "", true),
    ("backslash_quote", "safe_encoding", true),
    ("block_size", "8192", false),
    ("bytea_output", "hex", true),
    ("check_function_bodies", "on", true),
    ("client_encoding", "UTF8", true),
    ("client_min_messages", "notice", true),
    ("constraint_exclusion", "partition", true),
    ("cursor_tuple_fraction", "0.1", true),
    ("datestyle", "ISO, MDY", true),
    ("deadlock_timeout", "1s", true),
    ("default_statistics_target", "100", true),
    ("default_table_access_method", "heap", true),
    ("default_tablespace", "", true),
    ("default_text_search_config", "pg_catalog.simple", true),
    ("default_transaction_deferrable", "off", true),
    ("default_transaction_isolation", "read committed", true),
    ("default_transaction_read_only", "off", true),
    ("enable_hashjoin", "on", true),
    ("enable_indexscan", "on", true),
    ("enable_mergejoin", "on", true),
    ("enable_nestloop", "on", true),
    ("enable_seqscan", "on", true),
    ("escape_string_warning", "on", true),
    ("extra_float_digits", "1", true),
    ("from_collapse_limit", "8", true),
    ("gin_fuzzy_search_limit", "0", true),
    ("hot_standby", "on", false),
    ("idle_in_transaction_session_timeout", "0", true),
    ("idle_session_timeout", "0", true),
    ("in_hot_standby", "off", false),
    ("integer_datetimes", "on", false),
    ("intervalstyle", "postgres", true),
    ("is_superuser", "on", false),
    ("jit", "off", true),
    ("join_collapse_limit", "8", true),
    ("lc_collate", "C", false),
    ("lc_ctype", "C.UTF-8", false),
    ("lc_messages", "C", true),
    ("lc_monetary", "C", true),
    ("lc_numeric", "C", true),
    ("lc_time", "C", true),
    ("listen_addresses", "localhost", false),
    ("lock_timeout", "0", true),
    ("log_min_messages", "warning", true),
    ("log_statement", "none", true),
    ("maintenance_work_mem", "64MB", true),
    ("max_connections", "1000", false),
    ("max_identifier_length", "63", false),
    ("max_index_keys", "32", false),
    ("max_parallel_workers_per_gather", "0", true),
    ("max_prepared_transactions", "0", false),
    ("password_encryption", "scram-sha-256", true),
    ("port", "5432", false),
    ("quote_all_identifiers", "off", true),
    ("random_page_cost", "4", true),
    ("role", "none", true),
    ("row_security", "on", true),
    ("search_path", "\"$user\", public", true),
    ("seq_page_cost", "1", true),
    ("server_encoding", "UTF8", false),
    ("server_version", "15.8", false),
    ("server_version_num", "150008", false),
    ("session_authorization", "postgres", true),
    ("session_replication_role", "origin", true),
    ("shared_buffers", "128MB", false),
    ("standard_conforming_strings", "on", true),
    ("statement_timeout", "0", true),
    ("synchronize_seqscans", "on", true),
    ("synchronous_commit", "on", true),
    ("tcp_keepalives_idle", "0", true),
    ("tcp_keepalives_interval", "0", true),
    ("temp_buffers", "8MB", true),
    ("timezone", "UTC", true),
    ("transaction_deferrable", "off", true),
    ("transaction_isolation", "read committed", true),
    ("transaction_read_only", "off", true),
    ("transaction_timeout", "0", true),
    ("vacuum_cost_delay", "0", true),
    ("wal_level", "replica", false),
    ("wal_segment_size", "16MB", false),
    ("work_mem", "4MB", true),
    ("xmlbinary", "base64", true),
    ("xmloption", "content", true),
];

/// Settings whose changes the client is told (ParameterStatus), as it spells them.
pub const REPORTED: &[(&str, &str)] = &[
    ("application_name", "application_name"),
    ("client_encoding", "client_encoding"),
    ("datestyle", "DateStyle"),
    ("default_transaction_read_only", "default_transaction_read_only"),
    ("in_hot_standby", "in_hot_standby"),
    ("integer_datetimes", "integer_datetimes"),
    ("intervalstyle", "IntervalStyle"),
    ("is_superuser", "is_superuser"),
    ("server_encoding", "server_encoding"),
    ("server_version", "server_version"),
    ("session_authorization", "session_authorization"),
    ("standard_conforming_strings", "standard_conforming_strings"),
    ("timezone", "TimeZone"),
];

/// See the module.
#[derive(Clone)]
pub struct Settings {
    values: Arc<BTreeMap<String, String>>,
    defaults: BTreeMap<String, String>,
}

impl Settings {
    /// The defaults, with those that the client asked for at the start.
    ///
    /// # Errors
    /// A startup option that cannot be.
    pub fn new(user: &str, startup: &[(String, String)]) -> Result<Settings, SqlError> {
        let defaults: BTreeMap<String, String> = KNOWN.iter().map(|(n, v, _)| ((*n).to_owned(), (*v).to_owned())).collect();
        let mut settings = Settings { values: Arc::new(defaults.clone()), defaults };
        for (name, value) in startup {
            if name == "options" {
                for (name, value) in command_line(value) {
                    settings.set(&name, Some(&value))?;
                }
            } else {
                settings.set(name, Some(value))?;
            }
        }
        settings.put("session_authorization", user);
        settings.defaults = (*settings.values).clone();
        Ok(settings)
    }

    /// All, by name.
    #[must_use]
    pub fn all(&self) -> &Arc<BTreeMap<String, String>> {
        &self.values
    }

    /// One.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    /// A snapshot, for ROLLBACK.
    #[must_use]
    pub fn snapshot(&self) -> Arc<BTreeMap<String, String>> {
        Arc::clone(&self.values)
    }

    /// Goes back to a snapshot.
    pub fn restore(&mut self, snapshot: Arc<BTreeMap<String, String>>) {
        self.values = snapshot;
    }

    /// Sets without a check.
    pub fn put(&mut self, name: &str, value: &str) {
        Arc::make_mut(&mut self.values).insert(name.to_owned(), value.to_owned());
    }

    /// SET; `None`: to the default. Returns whether it changed.
    ///
    /// # Errors
    /// `42704` for an unknown name, `22023` for a value that cannot be, `55P02` for what cannot be changed.
    pub fn set(&mut self, name: &str, value: Option<&str>) -> Result<bool, SqlError> {
        let name = name.to_lowercase();
        let known = KNOWN.iter().find(|(n, _, _)| *n == name);
        match known {
            None if !name.contains('.') => {
                return Err(SqlError::new(code::UNDEFINED_OBJECT, format!("unrecognized configuration parameter \"{name}\"")));
            }
            Some((_, _, false)) if value.is_some() => {
                return Err(SqlError::new("55P02", format!("parameter \"{name}\" cannot be changed")));
            }
            _ => {}
        }
        let value = match value {
            None => self.defaults.get(&name).cloned().unwrap_or_default(),
            Some(value) => check(&name, value)?,
        };
        let changed = self.values.get(&name) != Some(&value);
        if changed {
            Arc::make_mut(&mut self.values).insert(name, value);
        }
        Ok(changed)
    }

    /// RESET ALL.
    pub fn reset(&mut self) {
        self.values = Arc::new(self.defaults.clone());
    }

    /// The schemas of search_path, the user's name put in, with pg_catalog in front unless it is named.
    #[must_use]
    pub fn search_path(&self, user: &str) -> Vec<String> {
        let mut path: Vec<String> = self
            .get("search_path")
            .split(',')
            .map(|part| part.trim().trim_matches('"'))
            .filter(|part| !part.is_empty())
            .map(|part| if part == "$user" { user.to_owned() } else { part.to_owned() })
            .collect();
        if !path.iter().any(|s| s == "pg_catalog") {
            path.insert(0, "pg_catalog".to_owned());
        }
        path
    }

    /// A duration setting in milliseconds (`0`: none).
    #[must_use]
    pub fn milliseconds(&self, name: &str) -> u64 {
        duration_ms(self.get(name)).unwrap_or(0)
    }
}

/// `-c name=value --other-name=value`, as a client's `options` has it.
fn command_line(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut words = text.split_whitespace();
    while let Some(word) = words.next() {
        let setting = match word {
            "-c" => words.next(),
            _ => word.strip_prefix("--").or_else(|| word.strip_prefix("-c")),
        };
        if let Some((name, value)) = setting.and_then(|s| s.split_once('=')) {
            found.push((name.replace('-', "_"), value.to_owned()));
        }
    }
    found
}

fn duration_ms(text: &str) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let number: f64 = text[..split].parse().ok()?;
    let unit = match text[split..].trim() {
        "" | "ms" => 1.0,
        "us" => 0.001,
        "s" => 1000.0,
        "min" => 60_000.0,
        "h" => 3_600_000.0,
        "d" => 86_400_000.0,
        _ => return None,
    };
    Some((number * unit).round() as u64)
}

fn check(name: &str, value: &str) -> Result<String, SqlError> {
    let invalid = || SqlError::new(code::INVALID_PARAMETER_VALUE, format!("invalid value for parameter \"{name}\": \"{value}\""));
    let lower = value.trim().to_lowercase();
    Ok(match name {
        "client_encoding" => match lower.replace(['-', '_'], "").as_str() {
            "utf8" | "unicode" => "UTF8".to_owned(),
            "sqlascii" => "SQL_ASCII".to_owned(),
            _ => return Err(invalid().with_hint("Only UTF8 is offered.")),
        },
        "timezone" => match lower.as_str() {
            "utc" | "gmt" | "etc/utc" | "etc/gmt" | "0" | "z" | "zulu" | "+00" | "+00:00" | "uct" => "UTC".to_owned(),
            // A client that announces its own zone gets its timestamps in UTC, each with its offset.
            _ => "UTC".to_owned(),
        },
        "datestyle" => "ISO, MDY".to_owned(),
        "intervalstyle" if lower != "postgres" => return Err(invalid().with_hint("Only postgres is offered.")),
        "bytea_output" if lower != "hex" => return Err(invalid().with_hint("Only hex is offered.")),
        "standard_conforming_strings"
        | "default_transaction_read_only"
        | "transaction_read_only"
        | "row_security"
        | "check_function_bodies"
        | "synchronize_seqscans"
        | "escape_string_warning" => match lower.as_str() {
            "on" | "true" | "1" | "yes" | "t" => "on".to_owned(),
            "off" | "false" | "0" | "no" | "f" => "off".to_owned(),
            _ => {
                return Err(SqlError::new(
                    code::INVALID_PARAMETER_VALUE,
                    format!("parameter \"{name}\" requires a Boolean value"),
                ));
            }
        },
        "default_transaction_isolation" | "transaction_isolation" => match lower.as_str() {
            "read committed" | "read uncommitted" | "repeatable read" | "serializable" => lower,
            _ => return Err(invalid()),
        },
        "statement_timeout" | "lock_timeout" | "idle_in_transaction_session_timeout" | "idle_session_timeout" => {
            let ms = duration_ms(&lower).ok_or_else(invalid)?;
            match ms {
                0 => "0".to_owned(),
                ms if ms % 60_000 == 0 => format!("{}min", ms / 60_000),
                ms if ms % 1000 == 0 => format!("{}s", ms / 1000),
                ms => format!("{ms}ms"),
            }
        }
        "extra_float_digits" => {
            let digits: i32 = lower.parse().map_err(|_| invalid())?;
            if !(-15..=3).contains(&digits) {
                return Err(SqlError::new(
                    code::INVALID_PARAMETER_VALUE,
                    format!("{digits} is outside the valid range for parameter \"extra_float_digits\" (-15 .. 3)"),
                ));
            }
            digits.to_string()
        }
        _ => value.to_owned(),
    })
}
