//! Statistics as text: Prometheus' format for scrapers, plain quantities for people.

use std::fmt::Write;

use super::schema::{Kind, Scope};
use super::snapshot::{Group, Snapshot, Stage, Value};

/// Everything in Prometheus' text format. Histograms' buckets are the powers of two; values counted in nanoseconds are told
/// in seconds, as Prometheus wants them.
#[must_use]
pub fn prometheus(snapshot: &Snapshot) -> String {
    let mut text = node(snapshot);
    let mut told = "";
    for (number, metric) in snapshot.metrics.iter().enumerate() {
        let seconds = metric.unit == "ns" && matches!(metric.kind, Kind::Histogram { .. });
        if told != metric.name {
            told = &metric.name;
            let kind = match metric.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram { .. } => "histogram",
            };
            writeln!(text, "# HELP {told} {}\n# TYPE {told} {kind}", metric.help).expect("a string takes all");
        }
        let place = snapshot.metrics[..number].iter().filter(|other| other.scope == metric.scope).count();
        for group in snapshot.groups.iter().filter(|group| group.scope == metric.scope) {
            let labels = labels(snapshot, group, &metric.labels);
            match &group.values[place] {
                Value::Number(value) => writeln!(text, "{told}{{{labels}}} {value}").expect("a string takes all"),
                Value::Histogram(histogram) => {
                    let scale = if seconds { 1e9 } else { 1.0 };
                    let mut below = 0u64;
                    for (bucket, count) in histogram.buckets.iter().enumerate() {
                        below = below.saturating_add(*count);
                        let end = histogram.end_of(bucket);
                        if end.is_power_of_two() && end != u64::MAX {
                            let end = end as f64 / scale;
                            writeln!(text, "{told}_bucket{{{labels},le=\"{end}\"}} {below}").expect("a string takes all");
                        }
                    }
                    writeln!(
                        text,
                        "{told}_bucket{{{labels},le=\"+Inf\"}} {below}\n{told}_sum{{{labels}}} {}\n{told}_count{{{labels}}} {below}",
                        histogram.sum as f64 / scale
                    )
                    .expect("a string takes all");
                }
            }
        }
    }
    text
}

/// What stands in the node's state.
fn node(snapshot: &Snapshot) -> String {
    let state = &snapshot.state;
    let cluster = escaped(&snapshot.header.cluster);
    let labels = format!("cluster=\"{cluster}\",node=\"node{}\"", snapshot.header.node);
    let fields = [
        ("node_serving", "gauge", "Whether the node serves clients", u64::from(state.stage == Stage::Open)),
        ("cluster_epoch", "gauge", "Generation of the membership", state.epoch),
        ("cluster_quorum_members", "gauge", "Nodes that serve together", u64::from(state.members.count_ones())),
        ("cluster_nodes", "gauge", "Nodes of the cluster, those that are away too", u64::from(state.configured.count_ones())),
        ("recoveries_total", "counter", "Recoveries of lost nodes seen to their end", state.recoveries),
        ("recovery_microseconds", "gauge", "How long the last of them took", state.recovery_us),
    ];
    let lines = fields.map(|(name, kind, help, value)| {
        format!("# HELP rustydb_{name} {help}\n# TYPE rustydb_{name} {kind}\nrustydb_{name}{{{labels}}} {value}\n")
    });
    lines.concat()
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn labels(snapshot: &Snapshot, group: &Group, more: &str) -> String {
    let cluster = escaped(&snapshot.header.cluster);
    let mut labels = format!("cluster=\"{cluster}\",node=\"node{}\"", snapshot.header.node);
    if group.scope == Scope::Shard {
        write!(labels, ",shard=\"{}\"", group.index).expect("a string takes all");
    }
    if !more.is_empty() {
        write!(labels, ",{more}").expect("a string takes all");
    }
    labels
}

/// A number with its unit, as people read it: `1.5 ms`, `12.0 MiB`, `40,321`.
#[must_use]
pub fn quantity(value: u64, unit: &str) -> String {
    match unit {
        "ns" => {
            let [us, ms, s] = [1e3, 1e6, 1e9].map(|scale| value as f64 / scale);
            match value {
                0..1_000 => format!("{value} ns"),
                1_000..1_000_000 => format!("{us:.1} us"),
                1_000_000..1_000_000_000 => format!("{ms:.1} ms"),
                _ => format!("{s:.1} s"),
            }
        }
        "bytes" => {
            let mut scaled = value as f64;
            for unit in ["B", "KiB", "MiB", "GiB"] {
                if scaled < 1024.0 {
                    return if unit == "B" { format!("{value} B") } else { format!("{scaled:.1} {unit}") };
                }
                scaled /= 1024.0;
            }
            format!("{scaled:.1} TiB")
        }
        _ => {
            let digits = value.to_string();
            let mut grouped = String::new();
            for (place, digit) in digits.chars().enumerate() {
                if place > 0 && (digits.len() - place).is_multiple_of(3) {
                    grouped.push(',');
                }
                grouped.push(digit);
            }
            grouped
        }
    }
}
