//! Line plots as SVG, by hand: three kinds of axes and one kind of line are less than a plotting library brings with it,
//! and colours come from the page's style sheet, so that they follow light and dark.

use std::fmt::Write;

/// How values lie along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, from 0.
    Linear,
    /// By their logarithm.
    Log,
    /// Quantiles by their nines: 0, 90, 99, 99.9 % at even distances (as HdrHistogram plots them).
    Nines,
}

/// An axis.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    /// What it shows, with its unit.
    pub label: &'static str,
    /// How.
    pub scale: Scale,
}

/// A line.
#[derive(Clone, Debug)]
pub struct Line {
    /// For its tooltip.
    pub name: String,
    /// Which of the page's colours.
    pub colour: usize,
    /// Drawn as steps to the next point.
    pub steps: bool,
    /// The area below it as well.
    pub filled: bool,
    /// In the order of their x.
    pub points: Vec<(f64, f64)>,
}

/// A plot.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Over it.
    pub title: String,
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// What it shows.
    pub lines: Vec<Line>,
}

/// Colours of the page; more lines are drawn dashed in the same.
pub const COLOURS: usize = 8;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 290.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 28.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 44.0;

/// Letters that mean something in HTML.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A latency with the unit that it reads well in.
#[must_use]
pub fn time(us: f64) -> String {
    let short = |value: f64| match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}").trim_end_matches(".0").to_owned(),
        value => format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned(),
    };
    match us {
        us if us >= 1_000_000.0 => format!("{} s", short(us / 1_000_000.0)),
        us if us >= 1_000.0 => format!("{} ms", short(us / 1_000.0)),
        us if us >= 1.0 => format!("{} µs", short(us)),
        us => format!("{} ns", short(us * 1_000.0)),
    }
}

/// Where an axis begins and ends, and its marks: place and words.
struct Marks {
    from: f64,
    to: f64,
    marks: Vec<(f64, String)>,
}

impl Scale {
    /// A value's place, before it is stretched to the plot.
    fn place(self, value: f64) -> f64 {
        match self {
            Scale::Linear => value,
            Scale::Log => value.max(1e-6).log10(),
            Scale::Nines => -(1.0 - value.min(0.999_999_9)).log10(),
        }
    }

    fn marks(self, values: impl Iterator<Item = f64>, is_time: bool) -> Marks {
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low > high { (1.0, 10.0) } else { (low, high) };
        let words = |value: f64| if is_time { time(value) } else { plain(value) };
        match self {
            Scale::Linear => {
                let step = nice_step(high / 5.0);
                let count = (high / step).ceil().max(1.0);
                let marks = (0..=count as u32).map(|index| f64::from(index) * step).map(|value| (value, words(value)));
                Marks { from: 0.0, to: count * step, marks: marks.collect() }
            }
            Scale::Log => {
                // Begins and ends at 1, 2 or 5 times a power of ten; between far ends only powers of ten are marked.
                let grid: Vec<f64> = (-4..=9).flat_map(|decade| [1.0, 2.0, 5.0].map(|part| part * 10f64.powi(decade))).collect();
                let from = grid.iter().copied().rev().find(|value| *value <= low).unwrap_or(grid[0]);
                let to = grid.iter().copied().find(|value| *value >= high * 0.999_999 && *value > from).unwrap_or(1e10);
                let dense = to / from <= 300.0;
                let is_power = |value: f64| (value.log10() - value.log10().round()).abs() < 1e-6;
                let shown = grid.into_iter().filter(|value| (from..=to * 1.000_001).contains(value));
                let marks = shown.filter(|value| dense || is_power(*value)).map(|value| (value.log10(), words(value)));
                Marks { from: from.log10(), to: to.log10(), marks: marks.collect() }
            }
            Scale::Nines => {
                let to = self.place(high).ceil().max(2.0);
                let words = |nines: u32| match nines {
                    0 => "0 %".to_owned(),
                    1 => "90 %".to_owned(),
                    2 => "99 %".to_owned(),
                    nines => format!("99.{} %", "9".repeat(nines as usize - 2)),
                };
                let mut marks: Vec<_> = (0..=to as u32).map(|nines| (f64::from(nines), words(nines))).collect();
                // Beside 0 and 90 % there is room for it only where there are few.
                if to <= 4.0 {
                    marks.push((self.place(0.5), "50 %".into()));
                }
                Marks { from: 0.0, to, marks }
            }
        }
    }
}

fn plain(value: f64) -> String {
    match value {
        0.0 => "0".into(),
        value if value >= 1e6 => format!("{} M", (value / 1e5).round() / 10.0),
        value if value >= 1e4 => format!("{} k", (value / 1e2).round() / 10.0),
        value => format!("{}", (value * 100.0).round() / 100.0),
    }
}

/// 1, 2 or 5 times a power of ten, at least `least`.
fn nice_step(least: f64) -> f64 {
    let least = least.max(1e-9);
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|part| part * power).find(|step| *step >= least * 0.999_999).unwrap_or(power * 10.0)
}

impl Plot {
    /// The plot, to be put into a page whose style sheet knows the classes.
    #[must_use]
    pub fn svg(&self) -> String {
        let values = |pick: fn(&(f64, f64)) -> f64| self.lines.iter().flat_map(move |line| line.points.iter().map(pick));
        let is_time = |axis: &Axis| axis.label.starts_with("latency");
        let x = self.x.scale.marks(values(|point| point.0), is_time(&self.x));
        let y = self.y.scale.marks(values(|point| point.1), is_time(&self.y));
        let stretch = |value: f64, marks: &Marks| (value - marks.from) / (marks.to - marks.from);
        let across = |place: f64| LEFT + stretch(place, &x) * (WIDTH - LEFT - RIGHT);
        let upward = |place: f64| HEIGHT - BOTTOM - stretch(place, &y) * (HEIGHT - TOP - BOTTOM);
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);

        let mut out = String::new();
        let _ = writeln!(
            out,
            "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escape(&self.title),
            escape(&self.title)
        );
        for (place, words) in &x.marks {
            let at = across(*place);
            // Long words at the right end would leave the picture.
            let (words_at, anchor) = if at > right - 10.0 { (WIDTH - 2.0, "end") } else { (at, "middle") };
            let _ = writeln!(
                out,
                "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\"/><text x=\"{words_at:.1}\" y=\"{}\" \
                 text-anchor=\"{anchor}\">{words}</text>",
                bottom + 15.0
            );
        }
        for (place, words) in &y.marks {
            let at = upward(*place);
            let _ = writeln!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\"/><text x=\"{}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{words}</text>",
                LEFT - 6.0,
                at + 3.5
            );
        }
        let _ = writeln!(
            out,
            "<text class=\"axis\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            f64::midpoint(LEFT, right),
            HEIGHT - 8.0,
            self.x.label
        );
        let middle = f64::midpoint(TOP, bottom);
        let _ = writeln!(
            out,
            "<text class=\"axis\" x=\"12\" y=\"{middle:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 12 {middle:.1})\">{}</text>",
            self.y.label
        );
        for line in &self.lines {
            let dashed = if line.colour >= COLOURS { " stroke-dasharray=\"5 3\"" } else { "" };
            let colour = line.colour % COLOURS;
            let points: Vec<(f64, f64)> =
                line.points.iter().map(|(a, b)| (across(self.x.scale.place(*a)), upward(self.y.scale.place(*b)))).collect();
            let Some(first) = points.first() else { continue };
            let mut path = format!("M{:.1} {:.1}", first.0, first.1);
            for pair in points.windows(2) {
                if line.steps {
                    let _ = write!(path, "H{:.1}V{:.1}", pair[1].0, pair[1].1);
                } else {
                    let _ = write!(path, "L{:.1} {:.1}", pair[1].0, pair[1].1);
                }
            }
            if line.filled {
                let last = points[points.len() - 1].0;
                let _ = writeln!(out, "<path class=\"fill c{colour}\" d=\"{path}L{last:.1} {bottom}H{:.1}Z\"/>", first.0);
            }
            let name = escape(&line.name);
            let _ = writeln!(out, "<path class=\"line c{colour}\"{dashed} d=\"{path}\"><title>{name}</title></path>");
            if points.len() == 1 {
                let _ = writeln!(out, "<circle class=\"dot c{colour}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/>", first.0, first.1);
            }
        }
        out.push_str("</svg></figure>\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_marked_with_round_values_that_hold_the_data() {
        let log = Scale::Log.marks([13.0, 740.0].into_iter(), true);
        assert_eq!((log.from, log.to), (1.0, 3.0));
        let words: Vec<&str> = log.marks.iter().map(|(_, words)| words.as_str()).collect();
        assert_eq!(words, ["10 µs", "20 µs", "50 µs", "100 µs", "200 µs", "500 µs", "1 ms"]);
        let linear = Scale::Linear.marks([3.0, 48_000.0].into_iter(), false);
        assert_eq!((linear.from, linear.to, linear.marks[1].1.as_str()), (0.0, 50_000.0, "10 k"));
        let nines = Scale::Nines.marks([0.0, 0.9995].into_iter(), false);
        assert_eq!((nines.to, nines.marks[3].1.as_str()), (4.0, "99.9 %"));
        assert_eq!([time(0.5), time(13.4), time(1_500.0), time(2e6)], ["500 ns", "13.4 µs", "1.5 ms", "2 s"]);
    }
}
