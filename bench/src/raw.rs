//! Bare transports beside each other, in one run: TCP by blocking sockets, sockperf where it is installed, and the
//! interconnect without anything on top; then how many blocks the interconnect moves, and its latency at a fixed rate.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustydb::ids::BLOCK_SIZE;
use rustydb::interconnect::HEADER_BYTES;

use crate::Outcome;
use crate::bare::Shape;
use crate::load::{Load, OPEN_LOOP_WORKERS, Schedule, drive};
use crate::nodes::{NODES, Nodes, Options as NodesOptions, Parts};
use crate::report::{Report, Samples, Target};

/// An answer of the interconnect takes at most so many raw round trips of the same bytes.
const LATENCY_TARGET: Target = Target::AtMost(1.25);
/// Blocks a second between two nodes of one shard each.
const RATE_TARGET: Target = Target::AtLeast(100_000.0);
/// Half of that is due each second in the open loop, of which 99 of 100 must be answered within a millisecond.
pub const RATE_HALF: f64 = 50_000.0;
const P99_TARGET: Target = Target::AtMost(1_000.0);
/// Round trips of a turn.
const TURN: usize = 200;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the nodes are made.
    pub nodes: NodesOptions,
    /// Rounds; in each, every way has its turn.
    pub rounds: u32,
    /// Requests under way at once, for the rate.
    pub concurrency: u32,
    /// Requests a second of the open loop.
    pub rate: f64,
    /// How long each of the two lasts.
    pub time: Duration,
    /// Look for sockperf.
    pub sockperf: bool,
}

/// How many bytes go there and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// A header there.
    Request,
    /// A header and a block there.
    Echo,
    /// 8,192 bytes there and back, as sockperf does.
    Block,
    /// A header there and back.
    Lock,
}

impl Size {
    fn bytes(self) -> (usize, usize) {
        match self {
            Size::Request => (HEADER_BYTES, HEADER_BYTES + BLOCK_SIZE),
            Size::Echo => (HEADER_BYTES + BLOCK_SIZE, HEADER_BYTES + BLOCK_SIZE),
            Size::Block => (BLOCK_SIZE, BLOCK_SIZE),
            Size::Lock => (HEADER_BYTES, HEADER_BYTES),
        }
    }

    /// For a report.
    #[must_use]
    pub fn words(self) -> String {
        let (there, back) = self.bytes();
        format!("bare TCP round trip: {there} bytes there, {back} back, blocking sockets without delay, two threads")
    }
}

/// Bare round trips with a thread of its own at the other end.
pub struct PingPong {
    streams: [(Size, TcpStream); 4],
    bytes: Vec<u8>,
}

impl PingPong {
    /// Connects to `address`, which is one of this host's.
    ///
    /// # Errors
    /// When there is no port or no thread.
    pub fn start(address: IpAddr) -> Outcome<PingPong> {
        let listener = TcpListener::bind((address, 0))?;
        let connect = |size: Size| -> Outcome<(Size, TcpStream)> {
            let stream = TcpStream::connect(listener.local_addr()?)?;
            stream.set_nodelay(true)?;
            let (mut other, _) = listener.accept()?;
            other.set_nodelay(true)?;
            let (there, back) = size.bytes();
            std::thread::Builder::new().name("pong".into()).spawn(move || {
                let mut bytes = vec![0x5A; there.max(back)];
                // Ends when the benchmark closes its end.
                while other.read_exact(&mut bytes[..there]).is_ok() && other.write_all(&bytes[..back]).is_ok() {}
            })?;
            Ok((size, stream))
        };
        let streams = [connect(Size::Request)?, connect(Size::Echo)?, connect(Size::Block)?, connect(Size::Lock)?];
        Ok(PingPong { streams, bytes: vec![1; HEADER_BYTES + BLOCK_SIZE] })
    }

    /// So many round trips, one after the other.
    ///
    /// # Errors
    /// The system's.
    pub fn round_trips(&mut self, size: Size, count: usize) -> Outcome<Samples> {
        let (_, stream) = self.streams.iter_mut().find(|(of, _)| *of == size).expect("one for each size");
        let (there, back) = size.bytes();
        let mut samples = Samples::new();
        for _ in 0..count {
            let began = Instant::now();
            stream.write_all(&self.bytes[..there])?;
            stream.read_exact(&mut self.bytes[..back])?;
            samples.record_alone(began.elapsed());
        }
        Ok(samples)
    }
}

async fn ask(parts: Rc<Parts>, shape: Shape) -> Outcome<Samples> {
    let mut samples = Samples::new();
    for _ in 0..TURN {
        let began = Instant::now();
        parts.bare.ask(NODES[1], shape).await?;
        samples.record_alone(began.elapsed());
    }
    Ok(samples)
}

async fn ask_many(parts: Rc<Parts>, load: Load, time: Duration) -> Outcome<(Samples, u64)> {
    let schedule = Rc::new(Schedule::lasting(load, time));
    let reactor = parts.reactor.clone();
    let ask = move |_, _| {
        let parts = parts.clone();
        async move { parts.bare.ask(NODES[1], Shape::Request).await }
    };
    let samples = drive(&reactor, &schedule, ask).await?;
    let never_begun = schedule.series("", &samples).never_begun;
    Ok((samples, never_begun))
}

/// sockperf's answer.
struct Sockperf {
    /// Median and 99th percentile of round trips, microseconds.
    p50_us: f64,
    p99_us: f64,
    round_trips: u64,
}

/// A percentile or count out of what sockperf prints: `sockperf: ---> percentile 50.000 =   11.338`.
fn number_after(text: &str, words: &str) -> Option<f64> {
    let rest = &text[text.find(words)? + words.len()..];
    rest.trim_start_matches([' ', '=']).split(|letter: char| !letter.is_ascii_digit() && letter != '.').next()?.parse().ok()
}

/// Runs its ping-pong of 8 KiB with `--full-rtt`: without it, it halves its round trips.
fn sockperf(address: IpAddr, seconds: u64) -> Outcome<Option<Sockperf>> {
    let port = TcpListener::bind((address, 0))?.local_addr()?.port().to_string();
    let address = address.to_string();
    let common = ["--tcp", "-i", &address, "-p", &port];
    let spawned = Command::new("sockperf").arg("server").args(common).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut server = match spawned {
        Ok(server) => server,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    std::thread::sleep(Duration::from_millis(300));
    let time = seconds.max(1).to_string();
    let bytes = BLOCK_SIZE.to_string();
    let client = Command::new("sockperf").arg("ping-pong").args(common).args(["-m", &bytes, "-t", &time, "--full-rtt"]).output();
    // It was started here, and ends here.
    server.kill()?;
    server.wait()?;
    let client = client?;
    let text = String::from_utf8_lossy(&client.stdout).into_owned() + &String::from_utf8_lossy(&client.stderr);
    let found = || {
        Some(Sockperf {
            p50_us: number_after(&text, "percentile 50.000")?,
            p99_us: number_after(&text, "percentile 99.000")?,
            round_trips: number_after(&text, "ReceivedMessages")? as u64,
        })
    };
    found().map(Some).ok_or_else(|| format!("sockperf ping-pong says: {}", text.trim()).into())
}

/// Takes the figures.
///
/// # Errors
/// When there is no room, no thread or no port.
pub fn run(options: &Options) -> Outcome<Report> {
    let nodes = Nodes::start(2, &NodesOptions { bare_frames: true, ..options.nodes.clone() })?;
    let peer_address = options.nodes.addresses_of(2)?[1];
    let mut bare = PingPong::start(peer_address)?;
    let sizes = [(Size::Request, Shape::Request), (Size::Echo, Shape::Echo)];
    let mut raw = [Samples::new(), Samples::new()];
    let mut ours = [Samples::new(), Samples::new()];
    let mut block = Samples::new();
    let mut peer = Vec::new();
    for round in 0..=options.rounds {
        if round == 1 {
            // The first round only warmed everything up.
            (raw, ours, block) = ([Samples::new(), Samples::new()], [Samples::new(), Samples::new()], Samples::new());
        }
        for (index, (size, shape)) in sizes.into_iter().enumerate() {
            raw[index].add(&bare.round_trips(size, TURN)?);
            ours[index].add(&nodes.nodes[0].run(move |parts| ask(parts, shape))?);
        }
        block.add(&bare.round_trips(Size::Block, TURN)?);
        // At the beginning, in the middle and at the end.
        if options.sockperf && [1, options.rounds.div_ceil(2), options.rounds].contains(&round) && round > 0 {
            peer.extend(sockperf(peer_address, 1)?);
        }
    }

    let mut report = Report::new("raw");
    options.nodes.tell(&mut report);
    report.setting("rounds", options.rounds);
    report.condition(format!("{}; closed loop, one at a time, in turns of {TURN}", options.nodes.places(2)?));
    for (index, (size, _)) in sizes.into_iter().enumerate() {
        let (there, back) = size.bytes();
        report.series(raw[index].series(format!("raw TCP, {there} bytes there, {back} back")));
        report.series(ours[index].series(format!("interconnect, {there} bytes there, {back} back")));
    }
    report.series(block.series(format!("raw TCP, {BLOCK_SIZE} bytes there and back")));
    let (request, echo) = (ours[0].median_ns(), ours[1].median_ns());
    report.figure(
        "block asked for by the interconnect / raw TCP of the same bytes, medians",
        request / raw[0].median_ns(),
        "times",
        Some(LATENCY_TARGET),
    );
    report.figure(
        "block there and back by the interconnect / raw TCP of the same bytes, medians",
        echo / raw[1].median_ns(),
        "times",
        Some(LATENCY_TARGET),
    );
    if !options.sockperf {
        report.condition("sockperf was not asked for");
    } else if peer.is_empty() {
        report.condition("sockperf was not run (apt-get install sockperf)");
    } else {
        peer.sort_by(|a, b| a.p50_us.total_cmp(&b.p50_us));
        let Sockperf { p50_us, p99_us, round_trips } = peer[peer.len() / 2];
        report.condition(format!(
            "sockperf ping-pong --tcp -m {BLOCK_SIZE} --full-rtt, the median of {} runs of 1 s: {round_trips} round trips, p50 {p50_us} us, p99 \
             {p99_us} us",
            peer.len()
        ));
        report.figure(
            "raw TCP of 8192 bytes there and back / sockperf's, medians",
            block.median_ns() / 1e3 / p50_us,
            "times",
            None,
        );
        report.figure(
            "block asked for by the interconnect / sockperf's 8 KiB round trip, medians",
            request / 1e3 / p50_us,
            "times",
            Some(LATENCY_TARGET),
        );
        report.figure(
            "block there and back by the interconnect / sockperf's 8 KiB round trip, medians",
            echo / 1e3 / p50_us,
            "times",
            Some(LATENCY_TARGET),
        );
    }
    many(&nodes, options, &mut report)?;
    Ok(report)
}

/// The rate with many requests under way, then half of the rate that is wanted.
fn many(nodes: &Nodes, options: &Options, report: &mut Report) -> Outcome<()> {
    let time = options.time;
    let closed = Load::Closed { concurrency: options.concurrency };
    let (samples, _) = nodes.nodes[0].run(move |parts| ask_many(parts, closed, time))?;
    let name = format!("interconnect, blocks asked for, {} at once", options.concurrency);
    report.series(crate::Series { load: Some(closed.to_string()), ..samples.series(name) });
    report.figure("blocks by the interconnect, two nodes of one shard", samples.per_second(), "a second", Some(RATE_TARGET));
    let open = Load::Open { rate: options.rate, concurrency: OPEN_LOOP_WORKERS };
    let (samples, never_begun) = nodes.nodes[0].run(move |parts| ask_many(parts, open, time))?;
    let name = format!("interconnect, blocks asked for, {:.0} due a second", options.rate);
    report.series(crate::Series { load: Some(open.to_string()), never_begun, ..samples.series(name) });
    let name = format!("99th percentile with {:.0} blocks due a second", options.rate);
    let target = (options.rate == RATE_HALF).then_some(P99_TARGET);
    report.figure(name, samples.quantile_ns(0.99) / 1e3, "us", target);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockperf_is_read_as_it_prints() {
        let text = "sockperf: [Total Run] RunTime=1.000 sec; Warm up time=400 msec; SentMessages=41205; ReceivedMessages=41204\n\
                    sockperf: ---> percentile 99.000 =   41.020\nsockperf: ---> percentile 50.000 =   23.957\n";
        assert_eq!(number_after(text, "percentile 50.000"), Some(23.957));
        assert_eq!(number_after(text, "percentile 99.000"), Some(41.02));
        assert_eq!(number_after(text, "ReceivedMessages"), Some(41_204.0));
        assert_eq!(number_after(text, "percentile 75.000"), None);
    }
}
