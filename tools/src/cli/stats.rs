//! `rusty-db-cli stats`: everything that nodes publish, read once.

use std::process::ExitCode;

use rustydb_shm::statistics::{Group, Histogram, Kind, Liveness, Metric, Scope, Snapshot, Value, quantity};
use serde_json::{Value as Json, json};

use super::watched::{Watched, Which, nodes_of, now_ms, span, word};

const EXAMPLES: &str = "\
Examples:
  rusty-db-cli stats                                      all nodes of this host, also those that have died
  rusty-db-cli stats --filter block_request               only what has that in its name
  rusty-db-cli stats --http 10.0.3.12:8080                a node on another host
  rusty-db-cli stats --file /tmp/rustydb-node2.stats --json";

/// `stats`
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Stats {
    #[command(flatten)]
    which: Which,
    /// Only metrics with this in their names
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Show what is zero, too
    #[arg(long)]
    all: bool,
    /// Print JSON: everything, whatever is zero
    #[arg(long)]
    json: bool,
}

/// Exit status 1 when nothing could be read.
pub(super) fn run(stats: &Stats) -> ExitCode {
    let nodes = match stats.which.look() {
        Ok(nodes) => nodes,
        Err(error) => {
            eprintln!("rusty-db-cli: {error}");
            return ExitCode::FAILURE;
        }
    };
    if stats.json {
        let nodes: Vec<Json> = nodes.iter().map(|node| as_json(node, &stats.filter)).collect();
        println!("{}", serde_json::to_string_pretty(&nodes).expect("plain data"));
    } else {
        nodes.iter().for_each(|node| print(node, stats));
        if nodes.is_empty() {
            eprintln!("rusty-db-cli: no statistics of any node in {}: does one run on this host?", stats.which.folder.display());
        }
    }
    if nodes.iter().any(|node| node.found.is_ok()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print(node: &Watched, stats: &Stats) {
    let (snapshot, liveness) = match &node.found {
        Ok(found) => found,
        Err(error) => return println!("{}: {error}\n", node.source),
    };
    println!("{}", headline(snapshot, *liveness));
    println!("{}", node.source);
    if snapshot.groups.iter().any(|group| group.torn) {
        println!("It died while it published: the values of one group are of two moments, 250 ms apart by default.");
    }
    let shards = usize::from(snapshot.header.shards);
    let heads: Vec<String> = (0..shards).map(|shard| format!("shard {shard}")).collect();
    let shown = |metric: &Metric| metric.name.contains(&stats.filter);
    let mut number_lines = Vec::new();
    let mut histogram_lines = Vec::new();
    for (metric, values) in by_metric(snapshot).filter(|(metric, _)| shown(metric)) {
        let name = full_name(metric);
        match metric.kind {
            Kind::Histogram { .. } => {
                for (group, value) in values {
                    let Value::Histogram(histogram) = value else { continue };
                    if histogram.count() > 0 || stats.all {
                        let place = if metric.scope == Scope::Shard { group.index.to_string() } else { "node".into() };
                        histogram_lines.push(histogram_line(&name, &place, histogram, &metric.unit));
                    }
                }
            }
            Kind::Counter | Kind::Gauge => {
                let values: Vec<u64> = values.iter().map(|(_, value)| number(value)).collect();
                if stats.all || values.iter().any(|value| *value > 0) {
                    let values = values.iter().map(|value| format!("{:>14}", quantity(*value, &metric.unit)));
                    number_lines.push(format!("{name:<62}{}", values.collect::<String>()));
                }
            }
        }
    }
    if !number_lines.is_empty() {
        println!("\n{:<62}{}", "", heads.iter().map(|head| format!("{head:>14}")).collect::<String>());
        number_lines.iter().for_each(|line| println!("{line}"));
    }
    if !histogram_lines.is_empty() {
        println!("\n{:<62}{:>6}{:>12}{:>10}{:>10}{:>10}{:>10}{:>10}", "", "shard", "count", "mean", "p50", "p95", "p99", "max");
        histogram_lines.iter().for_each(|line| println!("{line}"));
    }
    println!();
}

fn full_name(metric: &Metric) -> String {
    let name = metric.name.strip_prefix("rustydb_").unwrap_or(&metric.name);
    if metric.labels.is_empty() { name.to_owned() } else { format!("{name} {}", metric.labels.replace('"', "")) }
}

fn histogram_line(name: &str, place: &str, histogram: &Histogram, unit: &str) -> String {
    let at = |value: Option<u64>| value.map_or_else(|| "-".into(), |value| quantity(value, unit));
    let mean = histogram.mean().map(|mean| mean as u64);
    format!(
        "{name:<62}{place:>6}{:>12}{:>10}{:>10}{:>10}{:>10}{:>10}",
        quantity(histogram.count(), ""),
        at(mean),
        at(histogram.quantile(0.5)),
        at(histogram.quantile(0.95)),
        at(histogram.quantile(0.99)),
        at(Some(histogram.max).filter(|max| *max > 0))
    )
}

/// Who it is and how it is.
fn headline(snapshot: &Snapshot, liveness: Liveness) -> String {
    let (header, state) = (&snapshot.header, &snapshot.state);
    let since = match liveness {
        Liveness::Running | Liveness::Ended => format!("for {}", span(now_ms().saturating_sub(state.stage_since_ms))),
        Liveness::Silent(ms) => format!("for {}, was {}", span(ms), state.stage.word()),
        Liveness::Dead(ms) => format!("for {}, was {}", span(ms), state.stage.word()),
    };
    let detail = if state.detail.is_empty() { String::new() } else { format!("   {}", state.detail) };
    format!(
        "node{} of {}: {} {since}   epoch {}   members {}   life {}   pid {}   version {}{detail}",
        header.node,
        header.cluster,
        word(snapshot, liveness),
        state.epoch,
        nodes_of(state.members),
        header.incarnation,
        header.process.pid,
        header.program_version,
    )
}

/// Each metric with its value in each group.
fn by_metric(snapshot: &Snapshot) -> impl Iterator<Item = (&Metric, Vec<(&Group, &Value)>)> {
    snapshot.metrics.iter().enumerate().map(|(number, metric)| {
        let place = snapshot.metrics[..number].iter().filter(|other| other.scope == metric.scope).count();
        let groups = snapshot.groups.iter().filter(|group| group.scope == metric.scope);
        (metric, groups.map(|group| (group, &group.values[place])).collect())
    })
}

fn number(value: &Value) -> u64 {
    match value {
        Value::Number(number) => *number,
        Value::Histogram(_) => 0,
    }
}

fn as_json(node: &Watched, filter: &str) -> Json {
    let (snapshot, liveness) = match &node.found {
        Ok(found) => found,
        Err(error) => return json!({ "source": node.source, "error": error.to_string() }),
    };
    let (header, state) = (&snapshot.header, &snapshot.state);
    let metrics = by_metric(snapshot).filter(|(metric, _)| metric.name.contains(filter)).map(|(metric, values)| {
        let values = values.into_iter().map(|(group, value)| {
            let shard = (group.scope == Scope::Shard).then_some(group.index);
            match value {
                Value::Number(number) => json!({ "shard": shard, "value": number }),
                Value::Histogram(histogram) => json!({
                    "shard": shard, "count": histogram.count(), "sum": histogram.sum, "max": histogram.max,
                    "p50": histogram.quantile(0.5), "p95": histogram.quantile(0.95),
                    "p99": histogram.quantile(0.99), "p999": histogram.quantile(0.999),
                }),
            }
        });
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram { .. } => "histogram",
        };
        json!({
            "name": metric.name, "labels": metric.labels, "kind": kind, "unit": metric.unit, "help": metric.help,
            "values": values.collect::<Vec<_>>(),
        })
    });
    json!({
        "source": node.source,
        "cluster": header.cluster,
        "cluster_id": format!("{:032x}", header.cluster_id),
        "node": format!("node{}", header.node),
        "incarnation": header.incarnation,
        "pid": header.process.pid,
        "version": header.program_version,
        "status": word(snapshot, *liveness),
        "alive": liveness.is_alive(),
        "heartbeat_ms": state.heartbeat_ms,
        "stage": state.stage.word(),
        "stage_since_ms": state.stage_since_ms,
        "detail": state.detail,
        "epoch": state.epoch,
        "members": nodes_of(state.members),
        "lost": nodes_of(state.lost),
        "recoveries": state.recoveries,
        "torn": snapshot.groups.iter().any(|group| group.torn),
        "metrics": metrics.collect::<Vec<_>>(),
    })
}
