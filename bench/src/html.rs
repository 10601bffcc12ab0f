//! Reports as one HTML page that needs nothing else: styles and plots are in it, there are no scripts, and it follows the
//! reader's light or dark.

use std::fmt::Write;

use crate::compare::{Comparison, Pairing};
use crate::report::{Document, Report, Series, grouped, quantity};
use crate::samples::SecondOf;
use crate::svg::{Axis, COLOURS, Line, Plot, Scale, escape};

const STYLE: &str = "
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #57606a; --rule: #d8dee4; --panel: #f6f8fa;
  --good: #116329; --bad: #b3261e;
  --c0: #0b62d6; --c1: #c9510c; --c2: #0a7d55; --c3: #8a3ffc; --c4: #b0246b; --c5: #0a7c8c; --c6: #8c6a00; --c7: #57606a; }
@media (prefers-color-scheme: dark) { :root { --paper: #0f1318; --ink: #e6e9ed; --soft: #9aa4b0; --rule: #2c343e; --panel: #171d24;
  --good: #57c98a; --bad: #ff8a80;
  --c0: #6ea8ff; --c1: #ff9b5c; --c2: #4ecb9c; --c3: #bd95ff; --c4: #ff86bd; --c5: #57cfe0; --c6: #e0bc4a; --c7: #9aa4b0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 28px 60px; max-width: 1360px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 44px 0 6px; padding-top: 14px; border-top: 2px solid var(--rule); }
h3 { font-size: 16px; margin: 28px 0 6px; }
p, ul { margin: 4px 0; } .soft { color: var(--soft); } code { font-family: ui-monospace, monospace; font-size: 13px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 14px 0; padding: 12px 16px;
  background: var(--panel); border-radius: 8px; } dt { color: var(--soft); } dd { margin: 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: 12px 0; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 220px; }
.key { display: inline-block; width: 14px; height: 4px; border-radius: 2px; margin-right: 8px; vertical-align: middle; }
.key.dashed { -webkit-mask: repeating-linear-gradient(90deg, #000 0 4px, #0000 4px 6px);
  mask: repeating-linear-gradient(90deg, #000 0 4px, #0000 4px 6px); }
.good { color: var(--good); } .bad { color: var(--bad); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(560px, 100%), 1fr)); gap: 18px; margin: 14px 0; }
figure { margin: 0; padding: 10px 12px 4px; background: var(--panel); border-radius: 8px; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font-size: 11px; font-family: inherit; }
svg .axis { fill: var(--ink); font-size: 12px; } .grid { stroke: var(--rule); stroke-width: 1; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .fill { stroke: none; opacity: 0.13; }
";

/// Classes of the colours, for lines, fills and keys.
fn colour_styles() -> String {
    let one = |index| {
        format!(
            ".line.c{index} {{ stroke: var(--c{index}); }} .fill.c{index}, .dot.c{index} {{ fill: var(--c{index}); }} \
             .key.c{index} {{ background: var(--c{index}); }}\n"
        )
    };
    (0..COLOURS).map(one).collect()
}

/// Histograms of more series are lines only: areas over areas show nothing.
const FILLED_MAX: usize = 4;

fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{}</title>\n<style>{STYLE}{}</style></head>\n<body>\n{body}</body></html>\n",
        escape(title),
        colour_styles()
    )
}

/// Milliseconds since 1970 as a date and time, UTC.
fn date(ms: u64) -> String {
    let (days, seconds) = (ms / 86_400_000, ms / 1_000 % 86_400);
    // Days to a civil date (Hinnant's algorithm), for days after 1970.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3_600, seconds / 60 % 60)
}

fn describe(document: &Document) -> String {
    let mut out = String::from("<dl>");
    for (name, value) in document.machine.lines() {
        let _ = write!(out, "<dt>{name}</dt><dd>{}</dd>", escape(&value));
    }
    let command = document.command.join(" ");
    let _ = writeln!(
        out,
        "<dt>taken</dt><dd>{} by <code>rusty-db-bench {}</code></dd></dl>",
        date(document.taken_ms),
        escape(&command)
    );
    out
}

fn key(colour: usize) -> String {
    let dashed = if colour >= COLOURS { " dashed" } else { "" };
    format!("<span class=\"key c{}{dashed}\"></span>", colour % COLOURS)
}

fn table(series: &[Series]) -> String {
    let mut out = String::from("<div class=\"scroll\"><table><tr><th>operation</th><th>count</th><th>a second</th>");
    for name in ["p50", "p90", "p99", "p99.9", "p99.99", "max"] {
        let _ = write!(out, "<th>{name} µs</th>");
    }
    out.push_str("</tr>\n");
    for (index, series) in series.iter().enumerate() {
        let load =
            series.load.as_ref().map_or_else(String::new, |load| format!("<br><span class=\"soft\">{}</span>", escape(load)));
        let behind = match series.never_begun {
            0 => String::new(),
            count => format!("<br><span class=\"bad\">{} were due and never begun: it can't keep up</span>", grouped(count)),
        };
        let (count, rate) = (grouped(series.operations), quantity(series.per_second));
        let _ = write!(out, "<tr><td>{}{}{load}{behind}</td><td>{count}</td><td>{rate}</td>", key(index), escape(&series.name));
        for (_, value) in series.latency_us.columns() {
            let _ = write!(out, "<td>{}</td>", quantity(value));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
    out
}

const LATENCY: Axis = Axis { label: "latency", scale: Scale::Log };

fn percentile_plot(title: &str, series: &[(&str, &Series)]) -> Plot {
    let line = |(colour, (name, series)): (usize, &(&str, &Series))| Line {
        name: (*name).to_owned(),
        colour,
        steps: false,
        filled: false,
        points: series.percentiles.clone(),
    };
    let x = Axis { label: "percentile", scale: Scale::Nines };
    Plot { title: title.into(), x, y: LATENCY, lines: series.iter().enumerate().map(line).collect() }
}

fn histogram_plot(title: &str, series: &[(&str, &Series)]) -> Plot {
    let filled = series.len() <= FILLED_MAX;
    let line = |(colour, (name, series)): (usize, &(&str, &Series))| {
        let total = series.histogram.iter().map(|(_, count)| count).sum::<u64>().max(1) as f64;
        let step = 10f64.powf(1.0 / 20.0);
        let mut points = Vec::new();
        let mut end = 0.0;
        for (from, count) in &series.histogram {
            // Down to nothing where nothing was.
            if end > 0.0 && *from > end * 1.000_1 {
                points.push((end, 0.0));
            }
            points.push((*from, *count as f64 / total * 100.0));
            end = from * step;
        }
        points.push((end, 0.0));
        Line { name: (*name).to_owned(), colour, steps: true, filled, points }
    };
    let y = Axis { label: "% of operations", scale: Scale::Linear };
    Plot { title: title.into(), x: LATENCY, y, lines: series.iter().enumerate().map(line).collect() }
}

/// Those in which a scheduled series ran from beginning to end: of the first and the last it had only a part, which is no rate.
fn whole_seconds(series: &Series) -> &[SecondOf] {
    match &series.seconds[..] {
        [_, whole @ .., _] if series.load.is_some() && whole.len() > 1 => whole,
        all => all,
    }
}

fn time_plots(series: &[(&str, &Series)]) -> [Plot; 2] {
    let first = series.iter().flat_map(|(_, series)| series.seconds.iter().map(|second| second.second)).min().unwrap_or(0);
    let lines = |seconds_of: fn(&Series) -> &[SecondOf], value: fn(&SecondOf) -> f64| {
        let line = move |(colour, (name, series)): (usize, &(&str, &Series))| Line {
            name: (*name).to_owned(),
            colour,
            steps: false,
            filled: false,
            points: seconds_of(series).iter().map(|second| ((second.second - first) as f64, value(second))).collect(),
        };
        series.iter().enumerate().map(line).collect::<Vec<_>>()
    };
    let x = Axis { label: "seconds", scale: Scale::Linear };
    let rate = Axis { label: "operations a second", scale: Scale::Linear };
    [
        Plot {
            title: "99th percentile, second by second".into(),
            x,
            y: LATENCY,
            lines: lines(|series| &series.seconds, |second| second.p99_us),
        },
        Plot {
            title: "Operations, second by second".into(),
            x,
            y: rate,
            lines: lines(whole_seconds, |second| second.operations as f64),
        },
    ]
}

fn report(report: &Report) -> String {
    let mut out = format!("<h2>{}</h2>\n", escape(&report.benchmark));
    let settings: Vec<String> =
        report.settings.iter().map(|(name, value)| format!("{} <code>{}</code>", escape(name), escape(value))).collect();
    if !settings.is_empty() {
        let _ = writeln!(out, "<p class=\"soft\">{}</p>", settings.join(" · "));
    }
    report.conditions.iter().for_each(|said| _ = writeln!(out, "<p class=\"soft\">{}</p>", escape(said)));
    if !report.figures.is_empty() {
        out.push_str("<ul>\n");
        for figure in &report.figures {
            let class = figure.met.map_or("", |met| if met { "good" } else { "bad" });
            let _ = writeln!(out, "<li class=\"{class}\">{}</li>", escape(&figure.to_string()));
        }
        out.push_str("</ul>\n");
    }
    if report.series.is_empty() {
        return out;
    }
    let named: Vec<(&str, &Series)> = report.series.iter().map(|series| (series.name.as_str(), series)).collect();
    let [tail, rate] = time_plots(&named);
    out.push_str(&table(&report.series));
    out.push_str("<div class=\"plots\">\n");
    for plot in [percentile_plot("Latency by percentile", &named), histogram_plot("Latency histogram", &named), tail, rate] {
        out.push_str(&plot.svg());
    }
    out.push_str("</div>\n");
    out
}

/// A run as a page.
#[must_use]
pub fn document(document: &Document) -> String {
    let names: Vec<&str> = document.reports.iter().map(|report| report.benchmark.as_str()).collect();
    let title = format!("RustyDB benchmark: {}", names.join(", "));
    let reports: String = document.reports.iter().map(report).collect();
    page(&title, &format!("<h1>{}</h1>\n{}{reports}", escape(&title), describe(document)))
}

/// Two runs on one page.
#[must_use]
pub fn comparison(comparison: &Comparison<'_>) -> String {
    let Comparison { a, b, pairs, only } = comparison;
    let title = "RustyDB benchmark: two runs";
    let mut body = format!("<h1>{title}</h1>\n<h3>{} A</h3>{}<h3>{} B</h3>{}", key(0), describe(a), key(1), describe(b));
    for said in comparison.warnings() {
        let _ = writeln!(body, "<p class=\"bad\">{}</p>", escape(&said));
    }
    body.push_str("<h2>B / A</h2>\n<div class=\"scroll\"><table><tr><th>operation</th><th>a second</th>");
    for name in ["p50", "p90", "p99", "p99.9", "p99.99", "max"] {
        let _ = write!(body, "<th>{name}</th>");
    }
    body.push_str("</tr>\n");
    for Pairing { benchmark, a, b } in pairs {
        let _ = write!(body, "<tr><td>{}: {}</td>", escape(benchmark), escape(&a.name));
        // More a second is better, more latency is worse.
        let rate = b.per_second / a.per_second;
        let _ = write!(body, "<td class=\"{}\">{rate:.2}</td>", judged(1.0 / rate));
        for ((_, a), (_, b)) in a.latency_us.columns().into_iter().zip(b.latency_us.columns()) {
            let _ = write!(body, "<td class=\"{}\">{:.2}</td>", judged(b / a), b / a);
        }
        body.push_str("</tr>\n");
    }
    body.push_str("</table></div>\n");
    only.iter().for_each(|said| _ = writeln!(body, "<p class=\"soft\">{}</p>", escape(said)));
    for Pairing { benchmark, a, b } in pairs {
        let both = [("A", *a), ("B", *b)];
        let _ = writeln!(body, "<h3>{}: {}</h3><div class=\"plots\">", escape(benchmark), escape(&a.name));
        body.push_str(&percentile_plot("Latency by percentile: A and B", &both).svg());
        body.push_str(&histogram_plot("Latency histogram: A and B", &both).svg());
        body.push_str("</div>\n");
    }
    page(title, &body)
}

/// Differences below a tenth are left to noise.
fn judged(worse_by: f64) -> &'static str {
    match worse_by {
        ratio if ratio > 1.1 => "bad",
        ratio if ratio < 0.9 => "good",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::report::sample;
    use crate::samples::Samples;

    #[test]
    fn a_page_has_every_plot_of_every_series_and_needs_nothing_else() {
        let run = sample(1);
        let html = document(&run);
        for plot in
            ["Latency by percentile", "Latency histogram", "99th percentile, second by second", "Operations, second by second"]
        {
            assert!(html.contains(&format!("<figcaption>{plot}</figcaption>")), "{plot} is missing");
        }
        // A line for each of the two series in each plot, and both filled in the histogram.
        assert_eq!(html.matches("class=\"line c").count(), 8);
        assert_eq!(html.matches("class=\"fill c").count(), 2);
        assert!(!html.contains("NaN") && !html.contains("inf"), "every point has a place");
        assert!(!html.contains("http") && !html.contains("<script") && !html.contains("url("), "nothing is fetched or run");
        assert!(html.contains("&lt;angles&gt; &amp; &quot;quotes&quot;") && !html.contains("<angles>"));
        assert!(html.contains("prefers-color-scheme: dark"));
    }

    #[test]
    fn a_rate_is_shown_of_whole_seconds() {
        let mut samples = Samples::new();
        for ms in 700..4_200 {
            samples.record_at(Duration::from_millis(ms), Duration::from_micros(10));
        }
        let taken_in_turns = samples.series("x");
        assert_eq!(whole_seconds(&taken_in_turns).len(), 5);
        let scheduled = Series { load: Some("1000 due a second".into()), ..taken_in_turns };
        let shown: Vec<u64> = whole_seconds(&scheduled).iter().map(|second| second.operations).collect();
        assert_eq!(shown, [1_000, 1_000, 1_000]);
    }

    #[test]
    fn two_runs_lie_over_each_other() {
        let (a, b) = (sample(1), sample(2));
        let html = comparison(&Comparison::new(&a, &b));
        assert!(html.contains("A and B") && html.contains("<td class=\"bad\">2.00</td>"), "B takes twice as long");
        assert_eq!(html.matches("class=\"line c").count(), 8, "two plots of two lines for each of two series");
        assert!(!html.contains("NaN"));
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400_000), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_795_269_960_000), "2026-11-21 14:06 UTC");
    }
}
