//! What a commit costs above the device: the log's commits beside durable writes of the same bytes to the same file.
//!
//! Three ways take turns, one operation each: the bare system call (`pwritev2` with `RWF_DSYNC`, the device's own limit for
//! synchronous writes), the reactor's durable write, and a commit through the log. Then many commit at once, and group commit
//! must beat the device's limit for one after the other.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustydb::ids::{Incarnation, NodeId, Scn, ShardId};
use rustydb::reactor::thread::run_local;
use rustydb::reactor::{Class, DurableMethod, FileId, IoBuf, OpenOptions, Reactor, ReactorOptions};
use rustydb::volume::{RedoArea, SECTOR};
use rustydb::wal::batch::{BATCH_HEADER, framed};
use rustydb::wal::{Log, RecordKind};

use crate::Outcome;
use crate::load::{Load, Schedule, drive};
use crate::place::Place;
use crate::report::{Report, Samples, Target};

/// Bytes of the redo area that commits go to.
const AREA_BYTES: u64 = 64 << 20;
/// Bytes behind it that the bare writes go to, one after the other and round again, as a log does.
const BARE_BYTES: u64 = 16 << 20;
/// Commits of a schedule between two checkpoints.
const COMMITS_A_CHECKPOINT: u64 = 5_000;
/// How many commit at once.
const COMMITTERS: [usize; 3] = [1, 16, 64];
/// A lone commit costs at most so many durable writes of the same bytes.
const COMMIT_TARGET: Target = Target::AtMost(1.3);

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the file is made: on the device in question.
    pub folder: PathBuf,
    /// Bytes of a commit's redo.
    pub bytes: usize,
    /// Rounds; in each, every way has its turn.
    pub rounds: u32,
    /// Operations of each lone kind in a round, and commits of each of many committers.
    pub operations: u32,
    /// Sleep at once when there is nothing to do, instead of looking for work first.
    pub overprovisioned: bool,
    /// How durable writes are made; `None`: as a probe finds faster.
    pub durable: Option<DurableMethod>,
    /// After the rounds: commits as this load asks, for so long.
    pub load: Option<(Load, Duration)>,
}

/// Takes the figures.
///
/// # Errors
/// When the file can't be had or the device refuses.
pub fn run(options: &Options) -> Outcome<Report> {
    let place = Place::new(&options.folder);
    let inside = (options.clone(), place.path().to_owned());
    let reactor_options = ReactorOptions { overprovisioned: options.overprovisioned, ..ReactorOptions::default() };
    run_local(reactor_options, |reactor| async move { measure(&reactor, &inside.0, &inside.1).await })?
}

/// Writes through the bare system call, in a ring behind the redo area.
struct Bare {
    file: File,
    buffer: IoBuf,
    offset: u64,
}

impl Bare {
    fn open(path: &Path, bytes: usize) -> io::Result<Bare> {
        let open = |flags| File::options().write(true).custom_flags(flags).open(path);
        // A file system that refuses direct I/O (tmpfs) refuses it to the reactor too.
        let file = open(libc::O_DIRECT).or_else(|_| open(0))?;
        Ok(Bare { file, buffer: IoBuf::aligned(bytes), offset: 0 })
    }

    /// Where the next write goes.
    fn advance(&mut self) -> u64 {
        let bytes = self.buffer.len() as u64;
        self.offset = if self.offset + 2 * bytes > BARE_BYTES { 0 } else { self.offset + bytes };
        AREA_BYTES + self.offset
    }

    fn write(&mut self) -> io::Result<()> {
        let offset = self.advance();
        let bytes = self.buffer.as_slice();
        let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: the descriptor is open, and the one part lies in `buffer`, which nobody changes during the call.
        let written = unsafe { libc::pwritev2(self.file.as_raw_fd(), &raw const part, 1, offset as i64, libc::RWF_DSYNC) };
        match written {
            -1 => Err(io::Error::last_os_error()),
            written if written as usize == bytes.len() => Ok(()),
            written => Err(io::Error::other(format!("the device took {written} of {} bytes", bytes.len()))),
        }
    }

    async fn write_by_reactor(&mut self, reactor: &Reactor, file: FileId) -> io::Result<()> {
        let offset = self.advance();
        let buffer = std::mem::replace(&mut self.buffer, IoBuf::from_vec(Vec::new()));
        let (result, buffer) = reactor.write_durable(file, offset, buffer).await;
        self.buffer = buffer;
        result.map(|_| ())
    }
}

async fn commit(log: &Log, payload: &[u8]) -> Outcome<()> {
    let mut reservation = log.reserve(payload.len()).await?;
    let end = log.append(&mut reservation, RecordKind::RedoGroup, &[payload]);
    drop(reservation);
    log.flush_to(end).await?;
    Ok(())
}

/// `committers` tasks commit side by side.
async fn commit_together(reactor: &Reactor, log: &Log, payload: &Rc<Vec<u8>>, committers: usize, each: u32) -> Outcome<Samples> {
    let samples = Rc::new(RefCell::new(Samples::new()));
    let failure = Rc::new(RefCell::new(None));
    let began = Instant::now();
    let tasks: Vec<_> = (0..committers)
        .map(|_| {
            let (log, payload, samples, failure) = (log.clone(), payload.clone(), samples.clone(), failure.clone());
            reactor.spawn(Class::Normal, "committer", async move {
                for _ in 0..each {
                    let began = Instant::now();
                    if let Err(error) = commit(&log, &payload).await {
                        *failure.borrow_mut() = Some(error);
                        return;
                    }
                    samples.borrow_mut().record(began.elapsed());
                }
            })
        })
        .collect();
    for task in &tasks {
        task.join().await;
    }
    let took = began.elapsed();
    if let Some(error) = failure.borrow_mut().take() {
        return Err(error);
    }
    let mut samples = samples.replace(Samples::new());
    samples.add_busy(took);
    Ok(samples)
}

async fn measure(reactor: &Reactor, options: &Options, path: &Path) -> Outcome<Report> {
    let file = reactor.open(path, OpenOptions::CREATE).await?;
    reactor.write_zeros(file, 0, AREA_BYTES + BARE_BYTES).await?;
    reactor.sync(file).await?;
    let method = match options.durable {
        Some(method) => {
            reactor.set_durable_method(file, method);
            method
        }
        None => reactor.probe_durable_write(file, AREA_BYTES).await?,
    };
    let area = RedoArea { node: NodeId(1), shard: ShardId(0), offset: 0, bytes: AREA_BYTES, stamp: 1 };
    let log = Log::open(reactor, file, area, Incarnation(1)).await?;
    let payload = Rc::new(vec![0x5A; options.bytes]);
    let on_disk = (BATCH_HEADER + framed(options.bytes)).next_multiple_of(SECTOR);
    let mut bare = Bare::open(path, on_disk)?;

    let (mut system_call, mut durable_write) = (Samples::new(), Samples::new());
    let mut commits = COMMITTERS.map(|_| Samples::new());
    for round in 0..=options.rounds {
        if round == 1 {
            // The first round only warmed everything up.
            (system_call, durable_write) = (Samples::new(), Samples::new());
            commits = COMMITTERS.map(|_| Samples::new());
        }
        for _ in 0..options.operations {
            let began = Instant::now();
            bare.write()?;
            system_call.record_alone(began.elapsed());
            let began = Instant::now();
            bare.write_by_reactor(reactor, file).await?;
            durable_write.record_alone(began.elapsed());
            let began = Instant::now();
            commit(&log, &payload).await?;
            commits[0].record_alone(began.elapsed());
        }
        for (samples, committers) in commits.iter_mut().zip(COMMITTERS).skip(1) {
            samples.add(&commit_together(reactor, &log, &payload, committers, options.operations).await?);
        }
        log.checkpoint(log.durable_lsn(), Scn::from_unix_ms(reactor.wall_ms())).await?;
    }

    let mut report = Report::new("log");
    report.setting("driver", reactor.driver_name());
    report.setting("durable writes", format!("{method:?}"));
    report.setting("overprovisioned", options.overprovisioned);
    report.setting("rounds", options.rounds);
    report.condition(format!(
        "{} bytes of redo a commit, {on_disk} bytes on disk; {} driver, durable writes by {method:?}; file in {}",
        options.bytes,
        reactor.driver_name(),
        options.folder.display()
    ));
    report.series(system_call.series("pwritev2(RWF_DSYNC), one at a time"));
    report.series(durable_write.series("Reactor::write_durable, one at a time"));
    for (samples, committers) in commits.iter().zip(COMMITTERS) {
        report.series(samples.series(format!("commit, {committers} at once")));
    }
    let lone = commits[0].median_ns();
    report.figure("lone commit / pwritev2, medians", lone / system_call.median_ns(), "times", Some(COMMIT_TARGET));
    report.figure("lone commit / write_durable, medians", lone / durable_write.median_ns(), "times", Some(COMMIT_TARGET));
    for (samples, committers) in commits.iter().zip(COMMITTERS) {
        let name = format!("commits a second of {committers} at once / pwritev2 calls a second");
        report.figure(name, samples.per_second() / system_call.per_second(), "times", None);
    }
    if let Some((load, time)) = options.load {
        let schedule = Rc::new(Schedule::lasting(load, time));
        let (committer, payload, wall) = (log.clone(), payload.clone(), reactor.clone());
        let commit = move |_, number: u64| {
            let (log, payload, reactor) = (committer.clone(), payload.clone(), wall.clone());
            async move {
                // The area is not to fill up.
                if number.is_multiple_of(COMMITS_A_CHECKPOINT) {
                    log.checkpoint(log.durable_lsn(), Scn::from_unix_ms(reactor.wall_ms())).await?;
                }
                commit(&log, &payload).await
            }
        };
        let samples = drive(reactor, &schedule, commit).await?;
        report.series(schedule.series("commit, by a schedule", &samples));
    }
    let flushes = log.stats().flush_latency;
    report.condition(format!("the log's own count: {} writes", flushes.count()));
    drop(log);
    reactor.sleep(Duration::from_millis(1)).await;
    reactor.close(file);
    Ok(report)
}
