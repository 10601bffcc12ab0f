//! Operations of one kind, each timed: a histogram of every single one, and how it went second by second.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longest operation that a series tells from longer ones.
const LONGEST: Duration = Duration::from_secs(60);
/// Slots of an octave in the coarse histogram of a second: its figures are right to within 5 %.
const SLOTS: u64 = 16;
/// Seconds that a time series goes on for; what comes later counts for its last.
const SECONDS_MAX: usize = 3_600;

static BEGINNING: OnceLock<Instant> = OnceLock::new();

/// Since the first call in this process: what the seconds of all series are counted from.
#[must_use]
pub fn since_beginning() -> Duration {
    BEGINNING.get_or_init(Instant::now).elapsed()
}

/// See the module.
pub struct Samples {
    nanoseconds: Histogram<u64>,
    busy: Duration,
    seconds: Vec<Option<Box<Second>>>,
}

/// One second of a series.
struct Second {
    operations: u64,
    max_ns: u64,
    /// By [`slot`].
    slots: [u32; 64 * SLOTS as usize],
}

/// As many digits after the point as tell something: a report is read by people too.
fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// An octave of nanoseconds and a sixteenth of it.
fn slot(ns: u64) -> usize {
    let ns = ns.max(SLOTS);
    let octave = u64::from(ns.ilog2());
    ((octave * SLOTS) + ((ns >> (octave - 4)) & (SLOTS - 1))) as usize
}

/// The middle of a slot, in nanoseconds.
fn slot_value(slot: usize) -> f64 {
    let (octave, part) = (slot as u64 / SLOTS, slot as u64 % SLOTS);
    2f64.powi(octave as i32) * (1.0 + (part as f64 + 0.5) / SLOTS as f64)
}

impl Second {
    fn new() -> Box<Second> {
        Box::new(Second { operations: 0, max_ns: 0, slots: [0; 64 * SLOTS as usize] })
    }

    fn quantile_us(&self, quantile: f64) -> f64 {
        let rank = (self.operations as f64 * quantile).ceil().max(1.0) as u64;
        let mut seen = 0;
        let found = self.slots.iter().position(|&count| {
            seen += u64::from(count);
            seen >= rank
        });
        found.map_or(0.0, slot_value).min(self.max_ns as f64) / 1_000.0
    }
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
        Samples { nanoseconds, busy: Duration::ZERO, seconds: Vec::new() }
    }

    /// One operation took so long.
    pub fn record(&mut self, took: Duration) {
        self.record_at(since_beginning(), took);
    }

    /// One operation ended at `at`, counted from the process's beginning, and took so long.
    pub fn record_at(&mut self, at: Duration, took: Duration) {
        let ns = took.as_nanos() as u64;
        self.nanoseconds.saturating_record(ns);
        let second = self.second(at.as_secs() as usize);
        second.operations += 1;
        second.max_ns = second.max_ns.max(ns);
        second.slots[slot(ns)] += 1;
    }

    fn second(&mut self, index: usize) -> &mut Second {
        let index = index.min(SECONDS_MAX - 1);
        if self.seconds.len() <= index {
            self.seconds.resize_with(index + 1, || None);
        }
        self.seconds[index].get_or_insert_with(Second::new)
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

    /// Takes over what another series of the same kind has, one after the other in time.
    pub fn add(&mut self, other: &Samples) {
        self.merge(other);
        self.busy += other.busy;
    }

    /// Takes over what another series has that ran beside this one.
    pub fn merge(&mut self, other: &Samples) {
        self.nanoseconds.add(&other.nanoseconds).expect("all series have the same bounds");
        for (index, theirs) in other.seconds.iter().enumerate() {
            let Some(theirs) = theirs else { continue };
            let ours = self.second(index);
            ours.operations += theirs.operations;
            ours.max_ns = ours.max_ns.max(theirs.max_ns);
            ours.slots.iter_mut().zip(&theirs.slots).for_each(|(ours, theirs)| *ours += theirs);
        }
    }

    /// How many operations there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.nanoseconds.len()
    }

    /// A quantile, 0 to 1, in nanoseconds.
    #[must_use]
    pub fn quantile_ns(&self, quantile: f64) -> f64 {
        self.nanoseconds.value_at_quantile(quantile) as f64
    }

    /// The median, in nanoseconds.
    #[must_use]
    pub fn median_ns(&self) -> f64 {
        self.quantile_ns(0.5)
    }

    /// Operations a second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.count() as f64 / self.busy.as_secs_f64().max(1e-9)
    }

    /// How long the series ran.
    #[must_use]
    pub fn busy(&self) -> Duration {
        self.busy
    }

    /// The series as a report has it, where each sample is a mean over several operations.
    #[must_use]
    pub fn series_of(&self, name: impl Into<String>, operations: u64, per_second: f64) -> Series {
        Series { operations, per_second, ..self.series(name) }
    }

    /// The series as a report has it.
    #[must_use]
    pub fn series(&self, name: impl Into<String>) -> Series {
        let us = |quantile| rounded(self.quantile_ns(quantile) / 1_000.0, 3);
        let latency_us = LatencyUs {
            min: self.nanoseconds.min() as f64 / 1_000.0,
            mean: rounded(self.nanoseconds.mean() / 1_000.0, 3),
            p50: us(0.5),
            p90: us(0.9),
            p99: us(0.99),
            p99_9: us(0.999),
            p99_99: us(0.9999),
            max: self.nanoseconds.max() as f64 / 1_000.0,
        };
        Series {
            name: name.into(),
            load: None,
            operations: self.count(),
            never_begun: 0,
            per_second: self.per_second(),
            latency_us,
            percentiles: self.percentiles(),
            histogram: self.histogram(),
            seconds: self.time_series(),
        }
    }

    /// Latency by quantile: steps that halve the distance to 1 every five, as far as there are samples to tell.
    fn percentiles(&self) -> Vec<(f64, f64)> {
        let count = self.count() as f64;
        let mut points: Vec<(f64, f64)> = Vec::new();
        for step in 0..=100 {
            let quantile = 1.0 - 0.5f64.powf(f64::from(step) / 5.0);
            if count * (1.0 - quantile) < 1.0 {
                break;
            }
            points.push((rounded(quantile, 9), rounded(self.quantile_ns(quantile) / 1_000.0, 3)));
        }
        points
    }

    /// Counts in twenty steps a decade: where each begins, in microseconds, and how many.
    fn histogram(&self) -> Vec<(f64, u64)> {
        let mut steps: Vec<(i32, u64)> = Vec::new();
        for value in self.nanoseconds.iter_recorded() {
            let step = ((value.value_iterated_to() as f64 / 1_000.0).log10() * 20.0).floor() as i32;
            match steps.last_mut() {
                Some((last, count)) if *last == step => *count += value.count_at_value(),
                _ => steps.push((step, value.count_at_value())),
            }
        }
        steps.into_iter().map(|(step, count)| (rounded(10f64.powf(f64::from(step) / 20.0), 6), count)).collect()
    }

    fn time_series(&self) -> Vec<SecondOf> {
        let second = |(index, second): (usize, &Option<Box<Second>>)| {
            let second = second.as_ref()?;
            Some(SecondOf {
                second: index as u64,
                operations: second.operations,
                p50_us: rounded(second.quantile_us(0.5), 3),
                p99_us: rounded(second.quantile_us(0.99), 3),
                max_us: second.max_ns as f64 / 1_000.0,
            })
        };
        self.seconds.iter().enumerate().filter_map(second).collect()
    }
}

/// A series of timed operations, in a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// What was done.
    pub name: String,
    /// How it was asked for, where it was by a schedule: closed or open loop.
    pub load: Option<String>,
    /// How many were done.
    pub operations: u64,
    /// How many an open loop's schedule had and were not begun when it was over.
    pub never_begun: u64,
    /// Operations a second.
    pub per_second: f64,
    /// Their latencies, in microseconds.
    pub latency_us: LatencyUs,
    /// Quantile (0 to 1) and latency in microseconds, for plots.
    pub percentiles: Vec<(f64, f64)>,
    /// Where a step begins, in microseconds, and how many fell into it; twenty steps a decade.
    pub histogram: Vec<(f64, u64)>,
    /// Second by second of the process's time; without those in which nothing ended.
    pub seconds: Vec<SecondOf>,
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct LatencyUs {
    pub min: f64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub p99_99: f64,
    pub max: f64,
}

impl LatencyUs {
    /// What tables and comparisons show, with its name.
    #[must_use]
    pub fn columns(&self) -> [(&'static str, f64); 6] {
        let LatencyUs { p50, p90, p99, p99_9, p99_99, max, .. } = *self;
        [("p50", p50), ("p90", p90), ("p99", p99), ("p99.9", p99_9), ("p99.99", p99_99), ("max", max)]
    }
}

/// One second of a series.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SecondOf {
    /// Which, from the process's beginning.
    pub second: u64,
    /// Operations that ended in it.
    pub operations: u64,
    /// Median, microseconds, to within 5 %.
    pub p50_us: f64,
    /// 99th percentile, the same.
    pub p99_us: f64,
    /// The longest.
    pub max_us: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_in_the_histogram_in_its_second_and_on_the_curve() {
        let mut samples = Samples::new();
        for us in 1..=10_000u64 {
            samples.record_at(Duration::from_millis(us / 2), Duration::from_micros(us));
            samples.add_busy(Duration::from_micros(us));
        }
        let series = samples.series("reads");
        assert_eq!(series.operations, 10_000);
        assert!((series.latency_us.p50 - 5_000.0).abs() < 10.0, "{:?}", series.latency_us);
        assert!((series.latency_us.p99_99 - 9_999.0).abs() < 12.0, "{:?}", series.latency_us);
        assert_eq!(series.histogram.iter().map(|(_, count)| count).sum::<u64>(), 10_000);
        assert_eq!(series.seconds.iter().map(|second| second.operations).sum::<u64>(), 10_000);
        // The third second has those of 4 to 6 ms.
        let third = series.seconds[2];
        assert!((third.p50_us - 5_000.0).abs() < 250.0 && (third.max_us - 5_999.0).abs() < 1.0, "{third:?}");
        assert!(series.percentiles.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));
        let (last, _) = series.percentiles.last().expect("ten thousand are enough for some");
        assert!(*last > 0.9998 && *last < 1.0, "{last}");
    }

    #[test]
    fn slots_hold_their_values() {
        for ns in [16, 17, 100, 999, 65_535, 1_000_000, 60_000_000_000] {
            let middle = slot_value(slot(ns));
            assert!((middle / ns as f64 - 1.0).abs() < 0.04, "{ns} is taken for {middle}");
        }
    }
}
