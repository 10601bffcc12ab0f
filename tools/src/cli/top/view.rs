//! The picture: what stands where on the terminal. A function of what is to be shown, and of nothing else.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Paragraph};
use rustydb_shm::statistics::quantity;

use super::super::watched::span;
use super::columns::{Sort, body, fitting, head, percent, rate, rdma, time};
use super::figures::{Figures, Row};

/// What is shown, and how.
pub(super) struct Screen {
    pub(super) rows: Vec<Row>,
    /// What could not be read, and why.
    pub(super) unread: Vec<(String, String)>,
    /// Index of the row that the cursor is on.
    pub(super) selected: usize,
    /// One node only, in detail.
    pub(super) drilled: bool,
    pub(super) help: bool,
    pub(super) paused: bool,
    pub(super) sort: Sort,
    pub(super) colour: bool,
    /// Time of day of the look.
    pub(super) clock: String,
    /// Seconds between two looks.
    pub(super) interval_s: f64,
}

const HELP: [&str; 17] = [
    "up, down, k, j   choose a node",
    "Enter            everything about it; again, or Esc: back",
    "s                sort by the next column",
    "p, space         pause, go on",
    "h, ?             this help",
    "q, Ctrl-C        quit",
    "",
    "Rates and latencies are those between two looks; P50 and P99",
    "are right to an eighth. XFER: blocks received from other nodes'",
    "memory. RDMA: the connections that go by it; no: all by TCP.",
    "FLUSH: durable writes of the log. WAIT: for rows and locks, its",
    "P99 too. LATCH: for blocks that somebody uses, and for frames.",
    "RECV, SHIP: blocks from other nodes, to them. REMAST: buckets",
    "taken over since the start.",
    "A node is down when its process is gone: its file says so, and",
    "says how it was. It is silent when the process is there and has",
    "not published for a while; gone when its file was removed.",
];

impl Screen {
    fn style(&self, colour: Color, modifier: Modifier) -> Style {
        let style = Style::new().add_modifier(modifier);
        if self.colour { style.fg(colour) } else { style }
    }

    fn style_of(&self, row: &Row) -> Style {
        match row.status {
            "serving" => Style::new(),
            "down" | "failed" | "silent" | "suspended" | "no answer" | "gone" => self.style(Color::Red, Modifier::BOLD),
            _ => self.style(Color::Yellow, Modifier::empty()),
        }
    }

    fn title(&self) -> Line<'static> {
        let serving = self.rows.iter().filter(|row| row.alive && row.status == "serving").count();
        let mut clusters: Vec<&str> = self.rows.iter().map(|row| row.cluster.as_str()).collect();
        clusters.dedup();
        let clusters = if clusters.is_empty() { "no cluster".to_owned() } else { clusters.join(", ") };
        let epoch = self.rows.iter().filter(|row| row.alive).map(|row| row.epoch).max().unwrap_or(0);
        let nodes = self.rows.len();
        let mut text = format!("{clusters}: {serving} of {nodes} nodes serve   epoch {epoch}   {}", self.clock);
        text += &format!("   every {} s   by {}", self.interval_s, self.sort.word());
        let mut spans = vec![Span::styled(text, Style::new().add_modifier(Modifier::BOLD))];
        if self.paused {
            spans.push(Span::styled("   PAUSED", self.style(Color::Yellow, Modifier::BOLD)));
        }
        Line::from(spans)
    }

    fn table(&self, width: usize) -> Vec<Line<'static>> {
        let columns = fitting(width);
        let mut lines = vec![Line::styled(head(&columns), Style::new().add_modifier(Modifier::UNDERLINED))];
        for (number, row) in self.rows.iter().enumerate() {
            let mut style = self.style_of(row);
            if number == self.selected {
                style = style.add_modifier(Modifier::REVERSED);
            }
            lines.push(Line::styled(format!("{:<width$}", body(&columns, row)), style));
        }
        lines
    }

    /// What needs a word: who is away and why, who is being recovered, what could not be read.
    fn remarks(&self) -> Vec<Line<'static>> {
        let mut lines = Vec::new();
        for row in &self.rows {
            let node = format!("node{}", row.node);
            if !row.lost.is_empty() {
                let text = format!("{node} recovers node {}: {} of {} blocks", row.lost, row.blocks_done, row.blocks_total);
                lines.push(Line::styled(text, self.style(Color::Yellow, Modifier::empty())));
            }
            if row.status != "serving" {
                let text = format!("{node} {} for {}: {}", row.status, span(row.since_ms), row.detail);
                lines.push(Line::styled(text.trim_end().trim_end_matches(':').to_owned(), self.style_of(row)));
            }
        }
        for (source, error) in &self.unread {
            lines.push(Line::styled(format!("{source}: {error}"), self.style(Color::Red, Modifier::empty())));
        }
        let recovered = self.rows.iter().filter(|row| row.alive && row.recoveries > 0);
        for row in recovered {
            lines.push(Line::raw(format!(
                "node{} has recovered lost nodes {} times, the last in {}",
                row.node,
                row.recoveries,
                quantity(row.recovery_us * 1000, "ns")
            )));
        }
        lines
    }

    fn detail(&self, row: &Row) -> Vec<Line<'static>> {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let underlined = Style::new().add_modifier(Modifier::UNDERLINED);
        let mut lines = vec![
            Line::styled(
                format!(
                    "node{} of {}   {} for {}   pid {}   life {}   epoch {}   members {}",
                    row.node,
                    row.cluster,
                    row.status,
                    span(row.since_ms),
                    row.pid,
                    row.incarnation,
                    row.epoch,
                    row.members
                ),
                if row.status == "serving" { bold } else { self.style_of(row) },
            ),
            Line::raw(format!(
                "{}   {} resident   {} sessions   {} recoveries   {} buckets taken over   {}",
                row.cpu_percent.map_or_else(String::new, |cpu| format!("cpu {cpu:.1} %")),
                quantity(row.resident_bytes, "bytes"),
                row.sessions,
                row.recoveries,
                row.remasters_total,
                row.detail
            )),
            Line::raw(format!(
                "{} of {} connections to other nodes by RDMA{}   {}",
                row.all.rdma_lanes,
                row.all.peers_up,
                row.all
                    .rdma_block_percent
                    .map_or_else(String::new, |share| format!(", and {share:.1} % of the blocks from them")),
                row.source
            )),
            Line::raw(""),
            Line::styled(
                format!(
                    "{:<7}{:>7}{:>8}{:>10}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>8}{:>8}{:>8}",
                    "SHARD",
                    "BUSY%",
                    "HIT%",
                    "COMMIT/S",
                    "RECV/S",
                    "SHIP/S",
                    "FLUSH/S",
                    "WAIT/S",
                    "LATCH/S",
                    "REMAST/S",
                    "DIRTY",
                    "OPEN",
                    "TXNS"
                ),
                underlined,
            ),
        ];
        for (number, shard) in row.shards.iter().enumerate() {
            lines.push(Line::raw(shard_line(&number.to_string(), shard)));
        }
        if row.shards.len() > 1 {
            lines.push(Line::styled(shard_line("all", &row.all), bold));
            // Of one shard they are those of the table below.
            lines.push(Line::raw(""));
            let title = format!(
                "{:<7}{:>12}{:>11}{:>11}{:>11}{:>11}{:>11}{:>7}",
                "SHARD", "COMMIT P99", "RECV P50", "P99", "FLUSH P50", "P99", "WAIT P99", "RDMA"
            );
            lines.push(Line::styled(title, underlined));
            for (number, shard) in row.shards.iter().enumerate() {
                lines.push(Line::raw(shard_latencies(number, shard)));
            }
        }
        lines.push(Line::raw(""));
        let title = format!("{:<44}{:>9}{:>10}{:>10}{:>11}", "LATENCY", "PER S", "P50", "P99", "LONGEST");
        lines.push(Line::styled(title, underlined));
        for latency in row.latencies.iter().filter(|latency| latency.max_ns > 0) {
            lines.push(Line::raw(format!(
                "{:<44}{:>9}{:>10}{:>10}{:>11}",
                latency.name,
                rate(latency.per_s),
                time(latency.p50_ns),
                time(latency.p99_ns),
                quantity(latency.max_ns, "ns")
            )));
        }
        lines
    }

    /// Draws it all.
    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let area = frame.area();
        if area.height == 0 || area.width == 0 {
            return;
        }
        let (width, height) = (usize::from(area.width), usize::from(area.height));
        let mut lines = vec![self.title()];
        match self.rows.get(self.selected).filter(|_| self.drilled) {
            Some(row) => lines.extend(self.detail(row)),
            None if self.rows.is_empty() && self.unread.is_empty() => {
                lines.push(Line::raw("No node publishes statistics here: does one run on this host? See --folder and --http."));
            }
            None => {
                lines.extend(self.table(width));
                let remarks = self.remarks();
                if !remarks.is_empty() && lines.len() + 1 < height {
                    lines.push(Line::raw(""));
                }
                lines.extend(remarks);
            }
        }
        // The last line is the keys', where there is room for more than the nodes.
        let keys = height > lines.len().min(4);
        if keys {
            lines.truncate(height - 1);
        }
        frame.render_widget(Paragraph::new(lines), area);
        if keys {
            let bottom = Rect { y: area.bottom() - 1, height: 1, ..area };
            let text = "q quit  Enter detail  s sort  p pause  h help";
            frame.render_widget(Paragraph::new(Line::styled(text, self.style(Color::Cyan, Modifier::DIM))), bottom);
        }
        if self.help {
            let text: Vec<Line<'_>> = HELP.iter().map(|line| Line::raw(format!(" {line:<64}"))).collect();
            let size = (66.min(area.width), (HELP.len() as u16).min(area.height));
            let place = Rect {
                x: area.x + (area.width - size.0) / 2,
                y: area.y + (area.height - size.1) / 2,
                width: size.0,
                height: size.1,
            };
            frame.render_widget(Clear, place);
            frame.render_widget(Paragraph::new(text).style(Style::new().add_modifier(Modifier::REVERSED)), place);
        }
    }
}

fn shard_line(name: &str, shard: &Figures) -> String {
    format!(
        "{name:<7}{:>7}{:>8}{:>10}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>8}{:>8}{:>8}",
        format!("{:.1}", shard.busy_percent),
        percent(shard.cache_hit_percent),
        rate(shard.commits_per_s),
        rate(shard.transfers_per_s),
        rate(shard.shipped_per_s),
        rate(shard.flushes_per_s),
        rate(shard.waits_per_s),
        rate(shard.latch_waits_per_s),
        rate(shard.remasters_per_s),
        shard.dirty_blocks,
        shard.requests_open,
        shard.transactions_active,
    )
}

fn shard_latencies(number: usize, shard: &Figures) -> String {
    format!(
        "{number:<7}{:>12}{:>11}{:>11}{:>11}{:>11}{:>11}{:>7}",
        time(shard.commit_p99_ns),
        time(shard.transfer_p50_ns),
        time(shard.transfer_p99_ns),
        time(shard.flush_p50_ns),
        time(shard.flush_p99_ns),
        time(shard.wait_p99_ns),
        rdma(shard),
    )
}
