//! What a call into a shard costs: from a thread that is no shard, as the gateway's are, and from another shard.

use std::time::{Duration, Instant};

use rustydb::reactor::{Class, ReactorOptions, Remote};

use crate::Outcome;
use crate::clock::block_on;
use crate::report::{Report, Samples};
use crate::shard::Shard;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Calls of each kind.
    pub calls: u32,
    /// Pin the two shards to the first two cores.
    pub pin: bool,
}

/// One call: a letter there, a task, and the answer back.
async fn call(remote: &Remote) -> Outcome<Duration> {
    let began = Instant::now();
    let answered = remote.call(Class::Normal, "call", |_| std::future::ready(1u64)).map_err(|error| error.to_string())?;
    let one = answered.await?;
    assert_eq!(one, 1, "a call's answer");
    Ok(began.elapsed())
}

async fn calls(remote: Remote, count: u32) -> Outcome<Samples> {
    for _ in 0..count / 10 {
        call(&remote).await?;
    }
    let mut samples = Samples::new();
    for _ in 0..count {
        samples.record_alone(call(&remote).await?);
    }
    Ok(samples)
}

/// Takes the figures.
///
/// # Errors
/// When the shards can't be started.
pub fn run(options: Options) -> Outcome<Report> {
    let mut report = Report::new("mail");
    report.setting("pinned", options.pin);
    report.condition("two shards; closed loop, one at a time: each call is answered before the next is made");
    for overprovisioned in [false, true] {
        let reactor_options = ReactorOptions { overprovisioned, ..ReactorOptions::default() };
        let idle = if overprovisioned { "sleeps at once" } else { "looks for work before it sleeps" };
        let shard = |core: usize| -> Outcome<Shard<()>> {
            let made = |_| std::future::ready(Ok(((), ())));
            Ok(Shard::start(options.pin.then_some(core), &format!("shard{core}"), reactor_options, made)?.wait()?.0)
        };
        let (first, second) = (shard(0)?, shard(1)?);
        let from_thread = block_on(calls(first.remote().clone(), options.calls))?;
        report.series(from_thread.series(format!("from a thread to a shard that {idle}")));
        let other = second.remote().clone();
        report.series(first.run(move |_| calls(other, options.calls))?.series(format!("from shard to shard, each {idle}")));
    }
    Ok(report)
}
