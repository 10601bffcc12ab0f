//! What a benchmark found: series of timed operations, and ratios between them; as tables for people or as JSON.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest operation that a series tells from longer ones.
const LONGEST: Duration = Duration::from_secs(60);

/// Operations of one kind, each timed.
pub struct Samples {
    nanoseconds: Histogram<u64>,
    busy: Duration,
}

impl Default for Samples {
    fn default() -> Samples {
        Samples::new()
    }
}

impl Samples {
    /// None yet.
    #[must_use]
    pub fn new() -> Samples {
        let nanoseconds = Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, 3).expect("bounds and precision are fixed");
        Samples { nanoseconds, busy: Duration::ZERO }
    }

    /// One operation took so long.
    pub fn record(&mut self, took: Duration) {
        self.nanoseconds.saturating_record(took.as_nanos() as u64);
    }

    /// The series ran for so long more: what its rate is reckoned from.
    pub fn add_busy(&mut self, time: Duration) {
        self.busy += time;
    }

    /// One operation that nothing ran beside.
    pub fn record_alone(&mut self, took: Duration) {
        self.record(took);
        self.add_busy(took);
    }

    /// Takes over what another series of the same kind has.
    pub fn add(&mut self, other: &Samples) {
        self.nanoseconds.add(&other.nanoseconds).expect("all series have the same bounds");
        self.busy += other.busy;
    }

    /// The median, in nanoseconds.
    #[must_use]
    pub fn median_ns(&self) -> f64 {
        self.nanoseconds.value_at_quantile(0.5) as f64
    }

    /// Operations a second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.nanoseconds.len() as f64 / self.busy.as_secs_f64()
    }

    /// How long the series ran.
    #[must_use]
    pub fn busy(&self) -> Duration {
        self.busy
    }

    /// The series as a row of the report, where each sample is a mean over several operations.
    #[must_use]
    pub fn row_of(&self, name: impl Into<String>, operations: u64, per_second: f64) -> Row {
        Row { operations, per_second, ..self.row(name) }
    }

    /// The series as a row of the report.
    #[must_use]
    pub fn row(&self, name: impl Into<String>) -> Row {
        let us = |quantile| self.nanoseconds.value_at_quantile(quantile) as f64 / 1_000.0;
        Row {
            name: name.into(),
            operations: self.nanoseconds.len(),
            per_second: self.per_second(),
            p50_us: us(0.5),
            p90_us: us(0.9),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_us: self.nanoseconds.max() as f64 / 1_000.0,
        }
    }
}

/// A series.
#[derive(Serialize)]
pub struct Row {
    name: String,
    operations: u64,
    per_second: f64,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
}

/// One figure, with the bound that it should keep if it has one.
#[derive(Serialize)]
pub struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    target: Option<Target>,
    met: Option<bool>,
}

/// What a figure should be.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Target {
    fn met(self, value: f64) -> bool {
        match self {
            Target::AtMost(bound) => value <= bound,
            Target::AtLeast(bound) => value >= bound,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::AtMost(bound) => write!(f, "at most {}", quantity(*bound)),
            Target::AtLeast(bound) => write!(f, "at least {}", quantity(*bound)),
        }
    }
}

/// The machine, as far as it matters for a figure.
#[derive(Serialize)]
pub struct Machine {
    kernel: String,
    processor: String,
    cores: usize,
    load_average: String,
}

impl Machine {
    /// This one, now.
    #[must_use]
    pub fn here() -> Machine {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let processors = read("/proc/cpuinfo");
        let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
        Machine {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: model.trim_start_matches([' ', '\t', ':']).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            load_average: read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
        }
    }
}

/// What one benchmark found.
#[derive(Serialize)]
pub struct Report {
    benchmark: &'static str,
    machine: Machine,
    conditions: Vec<String>,
    rows: Vec<Row>,
    figures: Vec<Figure>,
}

impl Report {
    /// Nothing yet.
    #[must_use]
    pub fn new(benchmark: &'static str) -> Report {
        Report { benchmark, machine: Machine::here(), conditions: Vec::new(), rows: Vec::new(), figures: Vec::new() }
    }

    /// Something that the reader must know to repeat it.
    pub fn condition(&mut self, said: impl Into<String>) {
        self.conditions.push(said.into());
    }

    /// A series.
    pub fn row(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// A figure.
    pub fn figure(&mut self, name: impl Into<String>, value: f64, unit: &'static str, target: Option<Target>) {
        let met = target.map(|target| target.met(value));
        self.figures.push(Figure { name: name.into(), value, unit, target, met });
    }
}

/// A number as people read it: no more digits than tell something.
fn quantity(value: f64) -> String {
    match value {
        value if value >= 10_000.0 => grouped(value.round() as u64),
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

fn grouped(value: u64) -> String {
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

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { kernel, processor, cores, load_average } = &self.machine;
        writeln!(
            f,
            "{} on {processor}, {cores} cores, Linux {kernel}, load average at the start {load_average}",
            self.benchmark
        )?;
        for condition in &self.conditions {
            writeln!(f, "  {condition}")?;
        }
        let width = self.rows.iter().map(|row| row.name.len()).chain([9]).max().unwrap_or_default();
        if !self.rows.is_empty() {
            writeln!(
                f,
                "\n{:width$} {:>11} {:>11} {:>9} {:>9} {:>9} {:>9} {:>9}",
                "operation", "count", "a second", "p50 us", "p90 us", "p99 us", "p99.9 us", "max us"
            )?;
        }
        for row in &self.rows {
            writeln!(
                f,
                "{:width$} {:>11} {:>11} {:>9} {:>9} {:>9} {:>9} {:>9}",
                row.name,
                grouped(row.operations),
                quantity(row.per_second),
                quantity(row.p50_us),
                quantity(row.p90_us),
                quantity(row.p99_us),
                quantity(row.p999_us),
                quantity(row.max_us)
            )?;
        }
        writeln!(f)?;
        for figure in &self.figures {
            write!(f, "{}: {} {}", figure.name, quantity(figure.value), figure.unit)?;
            match (figure.target, figure.met) {
                (Some(target), Some(met)) => writeln!(f, " (target: {target}; {})", if met { "met" } else { "missed" })?,
                _ => writeln!(f)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_tells_people_and_programs_the_same() {
        let mut samples = Samples::new();
        for us in 1..=1_000 {
            samples.record_alone(Duration::from_micros(us));
        }
        let mut report = Report::new("log");
        report.row(samples.row("a lone commit"));
        report.figure("ratio", 1.25, "times", Some(Target::AtMost(1.3)));
        report.figure("rate", 999_999.0, "reads/s", Some(Target::AtLeast(1_000_000.0)));
        let text = report.to_string();
        assert!(text.contains("ratio: 1.25 times (target: at most 1.30; met)"), "{text}");
        assert!(text.contains("rate: 999,999 reads/s (target: at least 1,000,000; missed)"), "{text}");
        let json: serde_json::Value = serde_json::to_value(&report).expect("numbers and texts");
        assert_eq!(json["rows"][0]["operations"], 1_000);
        let median = json["rows"][0]["p50_us"].as_f64().expect("a number");
        assert!((499.0..502.0).contains(&median), "{median}");
        assert_eq!(json["figures"][1]["met"], false);
    }
}
