//! What benchmarks found: series of timed operations, counters, and ratios between them; as tables for people, as JSON for
//! programs and for `compare`. `docs/benchmarks.md` documents the JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::machine::Machine;
pub use crate::samples::{Samples, Series};

/// Of the JSON: changes when a reader of the old one would read it wrongly.
pub const SCHEMA: &str = "rustydb-bench/1";

/// One run of the program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// [`SCHEMA`]
    pub schema: String,
    /// When it began, in milliseconds since 1970.
    pub taken_ms: u64,
    /// The arguments that repeat it.
    pub command: Vec<String>,
    /// Where.
    pub machine: Machine,
    /// What each benchmark found.
    pub reports: Vec<Report>,
}

impl Document {
    /// Nothing found yet.
    #[must_use]
    pub fn new(command: Vec<String>, folder: &Path) -> Document {
        let taken_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
        Document { schema: SCHEMA.into(), taken_ms, command, machine: Machine::here(folder), reports: Vec::new() }
    }

    /// Reads what `--json` wrote.
    ///
    /// # Errors
    /// When the file can't be read or is of another schema.
    pub fn read(path: &Path) -> Outcome<Document> {
        let said = |error: &dyn fmt::Display| format!("{}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| said(&error))?;
        let value: serde_json::Value = serde_json::from_str(&text).map_err(|error| said(&error))?;
        match value["schema"].as_str() {
            Some(SCHEMA) => Ok(serde_json::from_value(value).map_err(|error| said(&error))?),
            Some(other) => Err(said(&format!("its schema is {other:?}, and this program reads {SCHEMA:?}")).into()),
            None => Err(said(&"no report of rusty-db-bench").into()),
        }
    }
}

/// One figure, with the bound that it should keep if it has one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: String,
    /// What it should be.
    pub target: Option<Target>,
    /// Whether it is.
    pub met: Option<bool>,
}

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
    /// Just this.
    Exactly(f64),
}

impl Target {
    fn met(self, value: f64) -> bool {
        match self {
            Target::AtMost(bound) => value <= bound,
            Target::AtLeast(bound) => value >= bound,
            Target::Exactly(wanted) => value == wanted,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::AtMost(bound) => write!(f, "at most {}", quantity(*bound)),
            Target::AtLeast(bound) => write!(f, "at least {}", quantity(*bound)),
            Target::Exactly(wanted) => write!(f, "exactly {}", quantity(*wanted)),
        }
    }
}

/// What one benchmark found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The subcommand.
    pub benchmark: String,
    /// The engine's settings and flags, the transport, the load.
    pub settings: BTreeMap<String, String>,
    /// What a reader must know besides.
    pub conditions: Vec<String>,
    /// What was timed.
    pub series: Vec<Series>,
    /// Ratios, rates and counts.
    pub figures: Vec<Figure>,
}

impl Report {
    /// Nothing yet.
    #[must_use]
    pub fn new(benchmark: impl Into<String>) -> Report {
        let (settings, conditions, series, figures) = (BTreeMap::new(), Vec::new(), Vec::new(), Vec::new());
        Report { benchmark: benchmark.into(), settings, conditions, series, figures }
    }

    /// A setting of the engine or of the benchmark.
    pub fn setting(&mut self, name: &str, value: impl fmt::Display) {
        self.settings.insert(name.into(), value.to_string());
    }

    /// Something that the reader must know to repeat it.
    pub fn condition(&mut self, said: impl Into<String>) {
        self.conditions.push(said.into());
    }

    /// A series.
    pub fn series(&mut self, series: Series) {
        self.series.push(series);
    }

    /// A figure.
    pub fn figure(&mut self, name: impl Into<String>, value: f64, unit: impl Into<String>, target: Option<Target>) {
        let met = target.map(|target| target.met(value));
        self.figures.push(Figure { name: name.into(), value, unit: unit.into(), target, met });
    }
}

/// A number as people read it: no more digits than tell something.
#[must_use]
pub fn quantity(value: f64) -> String {
    match value {
        value if value >= 10_000.0 => grouped(value.round() as u64),
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// `1,234,567`
#[must_use]
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.name, quantity(self.value), self.unit)?;
        match (self.target, self.met) {
            (Some(target), Some(met)) => write!(f, " (target: {target}; {})", if met { "met" } else { "missed" }),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.benchmark)?;
        let settings: Vec<String> = self.settings.iter().map(|(name, value)| format!("{name} {value}")).collect();
        if !settings.is_empty() {
            writeln!(f, "  {}", settings.join(", "))?;
        }
        for condition in &self.conditions {
            writeln!(f, "  {condition}")?;
        }
        let width = self.series.iter().map(|series| series.name.chars().count()).chain([9]).max().unwrap_or_default();
        if !self.series.is_empty() {
            writeln!(
                f,
                "\n{:width$} {:>11} {:>11} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
                "operation", "count", "a second", "p50 us", "p90 us", "p99 us", "p99.9 us", "p99.99 us", "max us"
            )?;
        }
        for series in &self.series {
            write!(f, "{:width$} {:>11} {:>11}", series.name, grouped(series.operations), quantity(series.per_second))?;
            for (_, value) in series.latency_us.columns() {
                write!(f, " {:>9}", quantity(value))?;
            }
            writeln!(f)?;
            if let Some(load) = &series.load {
                write!(f, "    {load}")?;
                match series.never_begun {
                    0 => writeln!(f)?,
                    behind => writeln!(f, "; {} were due and never begun: it can't keep up", grouped(behind))?,
                }
            }
        }
        writeln!(f)?;
        self.figures.iter().try_for_each(|figure| writeln!(f, "{figure}"))
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.machine.lines() {
            writeln!(f, "{name:13} {value}")?;
        }
        for report in &self.reports {
            writeln!(f, "\n== {report}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) use tests::sample;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A document with a bit of everything.
    pub(crate) fn sample(factor: u64) -> Document {
        let mut samples = Samples::new();
        for us in 1..=1_000 {
            samples.record_at(Duration::from_millis(us * 3), Duration::from_micros(us * factor));
            samples.add_busy(Duration::from_micros(us));
        }
        let mut report = Report::new("log");
        report.setting("driver", "uring");
        report.condition("a condition with <angles> & \"quotes\"");
        report.series(samples.series("a lone commit"));
        report.series(Series { load: Some("open loop".into()), never_begun: 7, ..samples.series("another") });
        report.figure("ratio", 1.25, "times", Some(Target::AtMost(1.3)));
        report.figure("rate", 999_999.0, "reads/s", Some(Target::AtLeast(1_000_000.0)));
        report.figure("messages", 3.0, "a transfer", Some(Target::Exactly(3.0)));
        let mut document = Document::new(vec!["log".into()], Path::new("."));
        document.reports.push(report);
        document
    }

    #[test]
    fn a_report_tells_people_and_programs_the_same() {
        let document = sample(1);
        let text = document.to_string();
        assert!(text.contains("ratio: 1.25 times (target: at most 1.30; met)"), "{text}");
        assert!(text.contains("rate: 999,999 reads/s (target: at least 1,000,000; missed)"), "{text}");
        assert!(text.contains("messages: 3.00 a transfer (target: exactly 3.00; met)"), "{text}");
        assert!(text.contains("7 were due and never begun"), "{text}");
        let json = serde_json::to_value(&document).expect("numbers and texts");
        assert_eq!(json["schema"], SCHEMA);
        assert_eq!(json["reports"][0]["series"][0]["operations"], 1_000);
        let median = json["reports"][0]["series"][0]["latency_us"]["p50"].as_f64().expect("a number");
        assert!((499.0..502.0).contains(&median), "{median}");
        assert_eq!(json["reports"][0]["figures"][1]["met"], false);
    }

    #[test]
    fn what_is_written_can_be_read_and_other_things_are_refused_by_name() {
        let document = sample(1);
        let path = std::env::temp_dir().join(format!("rusty-db-bench-report-{}.json", std::process::id()));
        std::fs::write(&path, serde_json::to_string(&document).expect("numbers and texts")).expect("the folder can be written");
        let read = Document::read(&path).expect("what was written");
        // Floats may differ in their last digit.
        assert_eq!(
            (read.to_string(), &read.command, read.taken_ms),
            (document.to_string(), &document.command, document.taken_ms)
        );
        let series = |document: &Document| {
            let [one, other] = &document.reports[0].series[..] else { panic!("two series") };
            (one.percentiles.len(), one.histogram.len(), one.seconds.clone(), other.load.clone(), other.never_begun)
        };
        assert_eq!(series(&read), series(&document));
        assert_eq!(read.reports[0].figures, document.reports[0].figures);
        std::fs::write(&path, r#"{"schema": "rustydb-bench/99"}"#).expect("the folder can be written");
        let refused = Document::read(&path).expect_err("another schema").to_string();
        assert!(refused.contains("rustydb-bench/99"), "{refused}");
        std::fs::remove_file(&path).ok();
    }
}
