//! Two runs beside each other: the ratio of every percentile of every series that both have.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value, json};

use crate::report::{Document, Report, Series};

/// Of the JSON: changes when a reader of the old one would read it wrongly.
pub const SCHEMA: &str = "rustydb-bench-comparison/1";

/// Memory that two looks at the same machine may differ by: what its kernel and devices keep for themselves.
const MEMORY_RATIO_SAME: f64 = 0.99;

/// A series that both runs have.
pub struct Pairing<'a> {
    /// The subcommand.
    pub benchmark: &'a str,
    /// In the first run.
    pub a: &'a Series,
    /// In the second.
    pub b: &'a Series,
}

/// See the module.
pub struct Comparison<'a> {
    /// The first run.
    pub a: &'a Document,
    /// The second.
    pub b: &'a Document,
    /// What both have, in the first's order.
    pub pairs: Vec<Pairing<'a>>,
    /// What only one of them has, in words.
    pub only: Vec<String>,
}

fn series(document: &Document) -> impl Iterator<Item = (&str, &Series)> {
    document.reports.iter().flat_map(|report| report.series.iter().map(|series| (report.benchmark.as_str(), series)))
}

fn find<'a>(document: &'a Document, benchmark: &str, name: &str) -> Option<&'a Series> {
    series(document).find(|(of, series)| *of == benchmark && series.name == name).map(|(_, series)| series)
}

impl<'a> Comparison<'a> {
    /// Finds what can be compared.
    #[must_use]
    pub fn new(a: &'a Document, b: &'a Document) -> Comparison<'a> {
        let pairs = series(a).filter_map(|(benchmark, a)| {
            let b = find(b, benchmark, &a.name)?;
            Some(Pairing { benchmark, a, b })
        });
        let missing = |from: &'a Document, other: &'a Document, letter: &'static str| {
            let alone = series(from).filter(|(benchmark, series)| find(other, benchmark, &series.name).is_none());
            alone.map(move |(benchmark, series)| format!("only in {letter}: {benchmark}: {}", series.name))
        };
        let only = missing(a, b, "A").chain(missing(b, a, "B")).collect();
        Comparison { a, b, pairs: pairs.collect(), only }
    }

    /// What makes the comparison doubtful.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let (a, b) = (&self.a.machine, &self.b.machine);
        let listed = |list: &[String]| if list.is_empty() { "none".to_owned() } else { list.join("; ") };
        let mut pairs = vec![
            ("processor", a.processor.clone(), b.processor.clone()),
            ("number of cores", a.cores.to_string(), b.cores.to_string()),
            ("kernel", a.kernel.clone(), b.kernel.clone()),
            ("huge pages", a.huge_pages.clone(), b.huge_pages.clone()),
            ("disk", a.device.clone(), b.device.clone()),
            ("network", listed(&a.network), listed(&b.network)),
            ("RDMA", listed(&a.rdma), listed(&b.rdma)),
            ("clock source", a.clock_source.clone(), b.clock_source.clone()),
            ("governor", a.governor.clone(), b.governor.clone()),
            ("build", a.build.clone(), b.build.clone()),
        ];
        let (less, more) = (a.memory_bytes.min(b.memory_bytes), a.memory_bytes.max(b.memory_bytes));
        if (less as f64) < more as f64 * MEMORY_RATIO_SAME {
            let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
            pairs.push(("memory", gib(a.memory_bytes), gib(b.memory_bytes)));
        }
        let differ = pairs.iter().filter(|(_, a, b)| a != b);
        let mut said: Vec<String> = differ.map(|(what, a, b)| format!("not the same {what}: {a} and {b}")).collect();
        for a in &self.a.reports {
            let of_b = self.b.reports.iter().filter(|b| b.benchmark == a.benchmark);
            said.extend(of_b.flat_map(|b| other_settings(a, b)));
        }
        let pairs = self.pairs.iter().filter(|pair| pair.a.load != pair.b.load);
        let none = "none".to_owned();
        said.extend(pairs.map(|Pairing { benchmark, a, b }| {
            let (a_load, b_load) = (a.load.as_ref().unwrap_or(&none), b.load.as_ref().unwrap_or(&none));
            format!("not the same load: {benchmark}: {}: {a_load} and {b_load}", a.name)
        }));
        said
    }
}

/// Settings that two reports of a benchmark don't share.
fn other_settings(a: &Report, b: &Report) -> Vec<String> {
    let names: BTreeSet<&String> = a.settings.keys().chain(b.settings.keys()).collect();
    let of = |report: &Report, name: &String| report.settings.get(name).map_or_else(|| "none".to_owned(), Clone::clone);
    let differ = names.into_iter().map(|name| (name, of(a, name), of(b, name))).filter(|(_, a, b)| a != b);
    differ.map(|(name, of_a, of_b)| format!("not the same setting: {}: {name}: {of_a} and {of_b}", a.benchmark)).collect()
}

impl Comparison<'_> {
    /// For programs; docs/benchmarks.md tells what is where.
    #[must_use]
    pub fn json(&self) -> Value {
        let both = |a: f64, b: f64| json!({ "a": a, "b": b, "ratio": b / a });
        let run = |document: &Document| json!({ "taken_ms": document.taken_ms, "command": document.command, "machine": document.machine });
        let series = self.pairs.iter().map(|Pairing { benchmark, a, b }| {
            let columns = a.latency_us.columns().into_iter().zip(b.latency_us.columns());
            let latency_us: Map<String, Value> =
                columns.map(|((name, a), (_, b))| (name.replace('.', "_"), both(a, b))).collect();
            json!({
                "benchmark": benchmark,
                "name": a.name,
                "load": { "a": a.load, "b": b.load },
                "per_second": both(a.per_second, b.per_second),
                "latency_us": latency_us,
            })
        });
        json!({
            "schema": SCHEMA,
            "a": run(self.a),
            "b": run(self.b),
            "warnings": self.warnings(),
            "series": series.collect::<Vec<_>>(),
            "only": self.only,
        })
    }
}

impl fmt::Display for Comparison<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, document) in [("A", self.a), ("B", self.b)] {
            let machine = &document.machine;
            writeln!(
                f,
                "{letter}: {}, {}, Linux {}, load average {}",
                machine.commit, machine.build, machine.kernel, machine.load_average
            )?;
        }
        self.warnings().iter().try_for_each(|said| writeln!(f, "{said}"))?;
        let name = |pair: &Pairing<'_>| format!("{}: {}", pair.benchmark, pair.a.name);
        let width = self.pairs.iter().map(|pair| name(pair).chars().count()).chain([9]).max().unwrap_or_default();
        write!(f, "\n{:width$} {:>9}", "B / A", "a second")?;
        if let Some(pair) = self.pairs.first() {
            pair.a.latency_us.columns().iter().try_for_each(|(name, _)| write!(f, " {name:>7}"))?;
        }
        writeln!(f)?;
        for pair in &self.pairs {
            write!(f, "{:width$} {:>9.2}", name(pair), pair.b.per_second / pair.a.per_second)?;
            for ((_, a), (_, b)) in pair.a.latency_us.columns().into_iter().zip(pair.b.latency_us.columns()) {
                write!(f, " {:>7.2}", b / a)?;
            }
            writeln!(f)?;
        }
        self.only.iter().try_for_each(|said| writeln!(f, "{said}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn every_series_of_both_is_compared_and_what_one_lacks_is_said() {
        let (a, mut b) = (sample(1), sample(2));
        b.reports[0].series[1].name = "something new".into();
        b.reports[0].series[0].load = Some("closed loop".into());
        b.machine.kernel = "6.1.0".into();
        b.machine.cores += 2;
        b.machine.memory_bytes /= 2;
        b.machine.network = vec!["enp1: mlx5_core, MTU 9000".into()];
        b.machine.rdma = vec!["mlx5_0: MT4123".into()];
        b.reports[0].setting("driver", "poll");
        b.reports[0].setting("pin", true);
        let text = Comparison::new(&a, &b).to_string();
        let row = text.lines().find(|line| line.starts_with("log: a lone commit")).expect("both have it");
        assert_eq!(row.split_whitespace().filter(|word| *word == "2.00").count(), 6, "{row}");
        let warned = [
            "only in A: log: another",
            "only in B: log: something new",
            "not the same kernel",
            "not the same load",
            "not the same number of cores",
            "not the same memory",
            "enp1: mlx5_core, MTU 9000",
            "not the same RDMA",
            "not the same setting: log: driver: uring and poll",
            "not the same setting: log: pin: none and true",
        ];
        for said in warned {
            assert!(text.contains(said), "{said}: {text}");
        }
        assert_eq!(Comparison::new(&a, &a).warnings(), Vec::<String>::new());
    }

    #[test]
    fn programs_get_the_same_ratios() {
        let (a, b) = (sample(1), sample(2));
        let json = Comparison::new(&a, &b).json();
        assert_eq!((&json["schema"], json["series"].as_array().map(Vec::len)), (&SCHEMA.into(), Some(2)));
        let first = &json["series"][0];
        assert_eq!((&first["benchmark"], &first["name"]), (&"log".into(), &"a lone commit".into()));
        let ratio = |value: &Value| value["ratio"].as_f64().map(|ratio| (ratio * 100.0).round());
        for column in ["p50", "p90", "p99", "p99_9", "p99_99", "max"] {
            assert_eq!(ratio(&first["latency_us"][column]), Some(200.0), "{column}: {first}");
        }
        assert_eq!(json["a"]["machine"]["kernel"], a.machine.kernel.as_str());
    }
}
