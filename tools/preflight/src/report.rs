//! How findings are said: a table for people, JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::check::{Check, Finding, GROUPS, Severity};
use crate::checks;
use crate::host::Host;

/// Of the JSON: changes when a reader of the old one would read it wrongly.
pub const SCHEMA: &str = "rustydb-preflight/1";

/// All that was found.
#[derive(Serialize)]
pub struct Report {
    schema: &'static str,
    version: &'static str,
    host: About,
    summary: Summary,
    checks: Vec<Row>,
}

#[derive(Serialize)]
struct About {
    name: String,
    kernel: String,
    user_id: u32,
    /// The configuration's file.
    config: Option<String>,
    volume: Option<String>,
}

#[derive(Serialize)]
struct Summary {
    /// Nothing fatal was found.
    fit: bool,
    #[serde(flatten)]
    counts: BTreeMap<&'static str, usize>,
}

#[derive(Serialize)]
struct Row {
    id: &'static str,
    what: &'static str,
    subject: String,
    severity: Severity,
    current: String,
    required: String,
    remedy: String,
}

impl Report {
    /// Of these findings on this host.
    #[must_use]
    pub fn new(host: &Host, found: Vec<(&'static Check, Finding)>) -> Report {
        let counts = Severity::ALL.map(|severity| {
            let count = found.iter().filter(|(_, finding)| finding.severity == severity).count();
            (severity.name(), count)
        });
        let rows = found.into_iter().map(|(check, finding)| {
            let Finding { severity, subject, current, required, remedy } = finding;
            Row { id: check.id, what: check.what, subject, severity, current, required, remedy }
        });
        Report {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            host: About {
                name: host.sysctl("kernel.hostname").unwrap_or_default(),
                kernel: host.sysctl("kernel.osrelease").unwrap_or_default(),
                user_id: host.facts.user_id,
                config: host.needs.file.as_ref().map(|(path, _)| path.display().to_string()),
                volume: host.needs.volume.as_ref().map(|path| path.display().to_string()),
            },
            summary: Summary { fit: counts[0].1 == 0, counts: counts.into_iter().collect() },
            checks: rows.collect(),
        }
    }

    /// 0 fit, 1 warnings where they count, 2 fatal.
    #[must_use]
    pub fn exit_status(&self, strict: bool) -> u8 {
        let has = |severity| self.checks.iter().any(|row| row.severity == severity);
        match () {
            () if has(Severity::Fatal) => 2,
            () if strict && has(Severity::Warning) => 1,
            () => 0,
        }
    }

    fn count(&self, severity: Severity) -> usize {
        self.checks.iter().filter(|row| row.severity == severity).count()
    }

    /// The table; `quiet` leaves out what needs nobody's attention.
    #[must_use]
    pub fn table(&self, colours: bool, quiet: bool) -> String {
        let paint = |code: &str, text: &str| if colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };
        let shown: Vec<&Row> = self.checks.iter().filter(|row| !quiet || row.severity >= Severity::Warning).collect();
        let title =
            |row: &Row| if row.subject.is_empty() { row.what.to_owned() } else { format!("{}: {}", row.what, row.subject) };
        let width = shown.iter().map(|row| title(row).chars().count()).max().unwrap_or(0).min(48);
        let mut out = String::new();
        let About { name, kernel, user_id, config, volume } = &self.host;
        let named = |what: &str, path: &Option<String>| path.as_ref().map_or_else(String::new, |path| format!(", {what} {path}"));
        let head = format!("{name}, Linux {kernel}, user {user_id}{}{}", named("config", config), named("volume", volume));
        let _ = writeln!(out, "{}", paint("1", &head));
        for (group, heading) in GROUPS {
            let rows: Vec<&&Row> =
                shown.iter().filter(|row| row.id.rsplit_once('-').is_some_and(|(of, _)| of == group)).collect();
            if rows.is_empty() {
                continue;
            }
            let _ = writeln!(out, "\n{}", paint("1", heading));
            let mut rows = rows.into_iter().peekable();
            while let Some(row) = rows.next() {
                let code = match row.severity {
                    Severity::Ok => "32",
                    Severity::Skipped => "2",
                    Severity::Info => "36",
                    Severity::Warning => "33",
                    Severity::Fatal => "1;31",
                };
                let (mut id, mut title) = (row.id.to_owned(), title(row));
                // Checks in a row that were skipped for the same reason take one line.
                let mut others = 0;
                while let Some(other) = rows.next_if(|other| is_skipped_as(other, row)) {
                    others += 1;
                    let number = other.id.rsplit_once('-').map_or(other.id, |(_, number)| number);
                    id = format!("{}..{number}", row.id);
                    title = format!("{} and {others} more", row.what);
                }
                let mark = paint(code, &format!("{:<7}", row.severity.name()));
                let current = if row.severity == Severity::Skipped { paint("2", &row.current) } else { row.current.clone() };
                let _ = writeln!(out, "  {mark}  {id:<17}  {title:<width$}  {current}");
                if row.severity >= Severity::Info {
                    for (label, text) in [("wanted", &row.required), ("remedy", &row.remedy)] {
                        if !text.is_empty() {
                            let _ = writeln!(out, "           {}", paint("2", &format!("{label}: {text}")));
                        }
                    }
                }
            }
        }
        let verdict = match (self.count(Severity::Fatal), self.count(Severity::Warning)) {
            (0, 0) => paint("1;32", "Fit to run a node."),
            (0, _) => paint("1;33", "Fit to run a node, with warnings."),
            _ => paint("1;31", "Not fit to run a node."),
        };
        let counts: Vec<String> = Severity::ALL.iter().map(|one| counted(self.count(*one), *one)).collect();
        let _ = writeln!(out, "\n{verdict} {}. --explain ID tells what a check is about.", counts.join(", "));
        out
    }
}

fn is_skipped_as(other: &Row, row: &Row) -> bool {
    let skipped = row.severity == Severity::Skipped && other.severity == Severity::Skipped;
    skipped && other.current == row.current && other.id != row.id
}

fn counted(count: usize, severity: Severity) -> String {
    match severity {
        Severity::Warning if count != 1 => format!("{count} warnings"),
        severity => format!("{count} {}", severity.name()),
    }
}

/// `--list`
#[must_use]
pub fn list() -> String {
    checks::all().map(|check| format!("{:<13}  {}\n", check.id, check.what)).collect()
}

/// `--explain`
#[must_use]
pub fn explanation(check: &'static Check) -> String {
    let mut out = format!("{}  {}\n\n", check.id, check.what);
    let (mut line, words) = (String::from(" "), check.why.split_whitespace());
    for word in words {
        if line.chars().count() + word.chars().count() >= 100 {
            let _ = writeln!(out, "{line}");
            line = String::from(" ");
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(out, "{line}\n");
    out
}
