//! The main table: its columns, which of them a terminal is wide enough for, and by what it is sorted.

use std::cmp::Ordering;

use rustydb_shm::statistics::quantity;

use super::super::watched::span;
use super::figures::{Figures, Row};

/// A column; the less important ones go first when there is no room.
pub(super) struct Column {
    pub(super) title: &'static str,
    pub(super) width: usize,
    /// 0 stays to the last.
    importance: u8,
    cell: fn(&Row) -> String,
}

const fn column(title: &'static str, width: usize, importance: u8, cell: fn(&Row) -> String) -> Column {
    Column { title, width, importance, cell }
}

/// What nodes do, in the order from left to right.
const COLUMNS: [Column; 18] = [
    column("NODE", 7, 0, |row| format!("node{}", row.node)),
    column("STATUS", 16, 0, |row| format!("{} {}", row.status, span(row.since_ms))),
    column("CPU%", 6, 3, |row| row.cpu_percent.map_or_else(String::new, |cpu| format!("{cpu:.1}"))),
    column("SESS", 5, 5, |row| live(row, row.sessions.to_string())),
    column("STMT/S", 8, 1, |row| live(row, rate(row.all.statements_per_s))),
    column("P99", 9, 4, |row| time(row.all.statement_p99_ns)),
    column("COMMIT/S", 9, 2, |row| live(row, rate(row.all.commits_per_s))),
    column("P99", 9, 6, |row| time(row.all.commit_p99_ns)),
    column("HIT%", 7, 3, |row| percent(row.all.cache_hit_percent)),
    column("XFER/S", 8, 1, |row| live(row, rate(row.all.transfers_per_s))),
    column("P50", 9, 6, |row| time(row.all.transfer_p50_ns)),
    column("P99", 9, 4, |row| time(row.all.transfer_p99_ns)),
    column("RDMA", 6, 5, |row| live(row, rdma(&row.all))),
    column("FLUSH/S", 8, 2, |row| live(row, rate(row.all.flushes_per_s))),
    column("P99", 9, 5, |row| time(row.all.flush_p99_ns)),
    column("WAIT/S", 7, 3, |row| live(row, rate(row.all.waits_per_s))),
    column("P99", 9, 7, |row| time(row.all.wait_p99_ns)),
    column("REMAST", 7, 8, |row| row.remasters_total.to_string()),
];

fn live(row: &Row, cell: String) -> String {
    if row.alive { cell } else { String::new() }
}

/// To how many of the nodes that are connected blocks and messages go by RDMA, over all shards.
pub(super) fn rdma(figures: &Figures) -> String {
    match (figures.rdma_lanes, figures.peers_up) {
        (_, 0) => "-".into(),
        (0, _) => "no".into(),
        (lanes, peers) if lanes == peers => "all".into(),
        (lanes, peers) => format!("{lanes}/{peers}"),
    }
}

/// A rate, short.
pub(super) fn rate(per_s: f64) -> String {
    match per_s {
        0.0 => "0".into(),
        ..10.0 => format!("{per_s:.1}"),
        ..100_000.0 => format!("{per_s:.0}"),
        _ => format!("{:.0}k", per_s / 1e3),
    }
}

/// A latency, short; nothing when there was none.
pub(super) fn time(ns: Option<u64>) -> String {
    ns.map_or_else(|| "-".into(), |ns| quantity(ns, "ns"))
}

/// A share; nothing when there was none.
pub(super) fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".into(), |share| format!("{share:.1}"))
}

/// What there is room for.
pub(super) fn fitting(width: usize) -> Vec<&'static Column> {
    let mut chosen: Vec<&Column> = COLUMNS.iter().collect();
    while chosen.iter().map(|column| column.width + 1).sum::<usize>() > width + 1 {
        let Some(least) = chosen.iter().rposition(|column| {
            let worst = chosen.iter().map(|column| column.importance).max();
            column.importance > 0 && Some(column.importance) == worst
        }) else {
            break;
        };
        chosen.remove(least);
    }
    chosen
}

/// The head line, and a node's line.
pub(super) fn head(columns: &[&Column]) -> String {
    line(columns.iter().map(|column| (column.title.to_owned(), column.width)))
}

/// See [`head`].
pub(super) fn body(columns: &[&Column], row: &Row) -> String {
    line(columns.iter().map(|column| ((column.cell)(row), column.width)))
}

/// The first two cells to the left, the others to the right.
fn line(cells: impl Iterator<Item = (String, usize)>) -> String {
    let mut line = String::new();
    for (number, (cell, width)) in cells.enumerate() {
        if number > 0 {
            line.push(' ');
        }
        line += &if number < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") };
    }
    line
}

/// By what the nodes are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Node,
    Statements,
    Commits,
    Transfers,
    TransferLatency,
    Flushes,
    Waits,
}

impl Sort {
    const ALL: [Sort; 7] =
        [Sort::Node, Sort::Statements, Sort::Commits, Sort::Transfers, Sort::TransferLatency, Sort::Flushes, Sort::Waits];

    pub(super) fn next(self) -> Sort {
        let at = Sort::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Sort::ALL[(at + 1) % Sort::ALL.len()]
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Sort::Node => "node",
            Sort::Statements => "statements",
            Sort::Commits => "commits",
            Sort::Transfers => "transfers",
            Sort::TransferLatency => "transfer p99",
            Sort::Flushes => "flushes",
            Sort::Waits => "waits",
        }
    }

    /// The most first; nodes by their numbers.
    pub(super) fn sort(self, rows: &mut [Row]) {
        let key: fn(&Figures) -> f64 = match self {
            Sort::Node => |_| 0.0,
            Sort::Statements => |all| all.statements_per_s,
            Sort::Commits => |all| all.commits_per_s,
            Sort::Transfers => |all| all.transfers_per_s,
            Sort::TransferLatency => |all| all.transfer_p99_ns.unwrap_or(0) as f64,
            Sort::Flushes => |all| all.flushes_per_s,
            Sort::Waits => |all| all.waits_per_s,
        };
        let by = |one: &Row, other: &Row| key(&other.all).partial_cmp(&key(&one.all)).unwrap_or(Ordering::Equal);
        let place = |row: &Row| (row.cluster.clone(), row.cluster_id, row.node);
        rows.sort_by(|one, other| by(one, other).then_with(|| place(one).cmp(&place(other))));
    }
}
