//! Two runs beside each other: the ratio of every percentile of every series that both have.

use std::fmt;

use crate::report::{Document, Series};

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
        let pairs = [
            ("processor", &a.processor, &b.processor),
            ("kernel", &a.kernel, &b.kernel),
            ("disk", &a.device, &b.device),
            ("clock source", &a.clock_source, &b.clock_source),
            ("governor", &a.governor, &b.governor),
            ("build", &a.build, &b.build),
        ];
        let mut said: Vec<String> =
            pairs.iter().filter(|(_, a, b)| a != b).map(|(what, a, b)| format!("not the same {what}: {a} and {b}")).collect();
        let pairs = self.pairs.iter().filter(|pair| pair.a.load != pair.b.load);
        let none = "none".to_owned();
        said.extend(pairs.map(|Pairing { benchmark, a, b }| {
            let (a_load, b_load) = (a.load.as_ref().unwrap_or(&none), b.load.as_ref().unwrap_or(&none));
            format!("not the same load: {benchmark}: {}: {a_load} and {b_load}", a.name)
        }));
        said
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
        let text = Comparison::new(&a, &b).to_string();
        let row = text.lines().find(|line| line.starts_with("log: a lone commit")).expect("both have it");
        assert_eq!(row.split_whitespace().filter(|word| *word == "2.00").count(), 6, "{row}");
        for said in ["only in A: log: another", "only in B: log: something new", "not the same kernel", "not the same load"] {
            assert!(text.contains(said), "{said}: {text}");
        }
    }
}
