//! `rusty-db-cli top`: the nodes live, from their published statistics.
//!
//! One thread. Asks the nodes of this host nothing: it reads their files, and goes on showing a node that has died. Without a
//! terminal, or with `--once` or `--json`, it looks twice and prints what went on between.

mod columns;
mod figures;
mod terminal;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustydb_shm::statistics::{Liveness, Snapshot};

use self::columns::{Sort, body, fitting, head};
use self::figures::Row;
use self::terminal::{Key, Terminal};
use self::view::Screen;
use super::watched::{Unread, Watched, Which, now_ms};

const EXAMPLES: &str = "\
Examples:
  rusty-db-cli top                                        the nodes of this host
  rusty-db-cli top --folder /dev/shm --http 10.0.3.12:8080
  rusty-db-cli top --once                                 one table, for logs
  rusty-db-cli top --json --interval 5                    for scripts";

/// `top`
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Top {
    #[command(flatten)]
    which: Which,
    /// Seconds between two looks, 0.1 to 60
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = interval)]
    interval: f64,
    /// Print one table and stop
    #[arg(long)]
    once: bool,
    /// Print JSON once and stop
    #[arg(long)]
    json: bool,
}

fn interval(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds, 0.1 to 60".to_owned())?;
    if (0.1..=60.0).contains(&seconds) { Ok(seconds) } else { Err("0.1 to 60".into()) }
}

/// Exit status 1 when there is nothing to show.
pub(super) fn run(top: &Top) -> ExitCode {
    let interval = Duration::from_secs_f64(top.interval);
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let outcome = if top.once || top.json || !terminal { once(top, interval) } else { live(top, interval) };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("rusty-db-cli: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What was seen of the nodes so far.
#[derive(Default)]
struct Watch {
    /// By file or address.
    seen: BTreeMap<String, Seen>,
}

struct Seen {
    now: Snapshot,
    liveness: Liveness,
    /// The latest look in which everything was newer than in `before`.
    latest: Snapshot,
    /// What rates are counted from. Not simply the look before: when that is of the same publication, or of half of one, there is
    /// nothing between the two to be counted.
    before: Option<Snapshot>,
    /// Why it can't be read any more, and since when.
    lost: Option<(Unread, Instant)>,
}

impl Seen {
    fn first(now: Snapshot, liveness: Liveness) -> Seen {
        Seen { latest: now.clone(), now, liveness, before: None, lost: None }
    }

    fn again(&mut self, now: Snapshot, liveness: Liveness) {
        if is_newer(&now, &self.latest) {
            self.before = Some(std::mem::replace(&mut self.latest, now.clone()));
        }
        (self.now, self.liveness, self.lost) = (now, liveness, None);
    }
}

/// Publications of the node after which a shard that has not published is not waited for.
const LATE_INTERVALS: u64 = 4;

/// Whether everything was published anew; a shard that hangs does not hold the others' figures up.
fn is_newer(now: &Snapshot, before: &Snapshot) -> bool {
    let past_ms = now.state.heartbeat_ms.saturating_sub(before.state.heartbeat_ms);
    let all = now.groups.iter().zip(&before.groups).all(|(now, before)| now.published_ns > before.published_ns);
    let same_life = now.header.incarnation == before.header.incarnation;
    past_ms > 0 && (all || !same_life || past_ms > LATE_INTERVALS * u64::from(now.header.interval_ms))
}

impl Watch {
    /// Takes a look in. What can't be read and never could is told back.
    fn look(&mut self, nodes: Vec<Watched>) -> Vec<(String, String)> {
        let mut unread = Vec::new();
        let there: BTreeSet<String> = nodes.iter().map(|node| node.source.clone()).collect();
        for (_, seen) in self.seen.iter_mut().filter(|(source, _)| !there.contains(*source)) {
            seen.lost.get_or_insert_with(|| (Unread::Gone, Instant::now()));
        }
        for Watched { source, found } in nodes {
            match (found, self.seen.get_mut(&source)) {
                (Ok((now, liveness)), Some(seen)) => seen.again(now, liveness),
                (Ok((now, liveness)), None) => _ = self.seen.insert(source, Seen::first(now, liveness)),
                (Err(error), Some(seen)) => _ = seen.lost.get_or_insert_with(|| (error, Instant::now())),
                (Err(error), None) => unread.push((source, error.to_string())),
            }
        }
        unread
    }

    /// The nodes. Of clusters that are dead altogether there are leftovers in a folder: they are shown when nothing else is.
    fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self
            .seen
            .iter()
            .map(|(source, seen)| {
                let mut row = Row::of(source, &seen.now, seen.liveness, seen.before.as_ref());
                if let Some((error, since)) = &seen.lost {
                    let status = if *error == Unread::Gone { "gone" } else { "no answer" };
                    (row.alive, row.status, row.detail) = (false, status, error.to_string());
                    row.since_ms = since.elapsed().as_millis() as u64;
                }
                row
            })
            .collect();
        let lives = |id: u128| rows.iter().any(|row| row.alive && row.cluster_id == id);
        let living: Vec<bool> = rows.iter().map(|row| lives(row.cluster_id)).collect();
        if living.contains(&true) {
            let mut living = living.into_iter();
            rows.retain(|_| living.next() == Some(true));
        }
        rows
    }
}

fn once(top: &Top, interval: Duration) -> Result<bool, String> {
    let mut watch = Watch::default();
    watch.look(top.which.look()?);
    std::thread::sleep(interval);
    let unread = watch.look(top.which.look()?);
    let mut rows = watch.rows();
    Sort::Node.sort(&mut rows);
    if top.json {
        let unread: Vec<_> =
            unread.iter().map(|(source, error)| serde_json::json!({ "source": source, "error": error })).collect();
        let all = serde_json::json!({ "nodes": rows, "unread": unread });
        println!("{}", serde_json::to_string_pretty(&all).expect("plain data"));
    } else {
        let columns = fitting(usize::MAX - 1);
        println!("{}", head(&columns).trim_end());
        rows.iter().for_each(|row| println!("{}", body(&columns, row).trim_end()));
        unread.iter().for_each(|(source, error)| eprintln!("rusty-db-cli: {source}: {error}"));
    }
    Ok(!rows.is_empty())
}

fn live(top: &Top, interval: Duration) -> Result<bool, String> {
    let mut watch = Watch::default();
    let mut screen = Screen {
        rows: Vec::new(),
        unread: watch.look(top.which.look()?),
        selected: 0,
        drilled: false,
        help: false,
        paused: false,
        sort: Sort::Node,
        colour: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        clock: clock(),
        interval_s: top.interval,
    };
    screen.rows = watch.rows();
    screen.sort.sort(&mut screen.rows);
    let mut terminal = Terminal::take().map_err(|error| format!("the terminal can't be used: {error}; try --once"))?;
    let mut next = Instant::now() + interval;
    loop {
        terminal.draw(|frame| screen.draw(frame)).map_err(|error| error.to_string())?;
        let keys = terminal.keys(next.saturating_duration_since(Instant::now())).map_err(|error| error.to_string())?;
        for key in keys {
            if !screen.press(key) {
                return Ok(true);
            }
        }
        if Instant::now() >= next {
            next = Instant::now() + interval;
            if !screen.paused {
                // The cursor stays on its node, wherever that is sorted to.
                let chosen = screen.rows.get(screen.selected).map(|row| row.source.clone());
                screen.unread = match top.which.look() {
                    Ok(nodes) => watch.look(nodes),
                    Err(error) => vec![(top.which.folder.display().to_string(), error)],
                };
                screen.rows = watch.rows();
                screen.sort.sort(&mut screen.rows);
                screen.clock = clock();
                screen.choose(chosen.as_deref());
            }
        }
    }
}

impl Screen {
    fn choose(&mut self, source: Option<&str>) {
        let at = self.rows.iter().position(|row| Some(row.source.as_str()) == source);
        self.selected = at.unwrap_or(self.selected).min(self.rows.len().saturating_sub(1));
    }

    /// Does what a key stands for; false: to quit.
    fn press(&mut self, key: Key) -> bool {
        match key {
            Key::Interrupt => return false,
            Key::Char('q') if self.help => self.help = false,
            Key::Char('q') => return false,
            Key::Escape => (self.help, self.drilled) = (false, self.drilled && self.help),
            Key::Char('h' | '?') => self.help = !self.help,
            Key::Char('p' | ' ') => self.paused = !self.paused,
            Key::Char('s') => {
                let chosen = self.rows.get(self.selected).map(|row| row.source.clone());
                self.sort = self.sort.next();
                self.sort.sort(&mut self.rows);
                self.choose(chosen.as_deref());
            }
            Key::Enter => self.drilled = !self.drilled && !self.rows.is_empty(),
            Key::Up | Key::Char('k') => self.selected = self.selected.saturating_sub(1),
            Key::Down | Key::Char('j') => self.selected = (self.selected + 1).min(self.rows.len().saturating_sub(1)),
            Key::Char(_) => {}
        }
        true
    }
}

/// The time of day, in the operator's zone.
fn clock() -> String {
    let seconds = (now_ms() / 1000) as libc::time_t;
    let mut broken = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both are ours and outlive the call, which fills the second; zeros are a valid one if it fails.
    let time = unsafe {
        libc::localtime_r(&seconds, broken.as_mut_ptr());
        broken.assume_init()
    };
    format!("{:02}:{:02}:{:02}", time.tm_hour, time.tm_min, time.tm_sec)
}
