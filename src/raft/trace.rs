//! raft-rs's log lines, passed on to ours. Its everyday ones are of interest only to whoever debugs it.

use slog::{Drain, KV, Level, Logger, Never, OwnedKVList, Record, o};

/// A logger for a replica.
pub(super) fn logger() -> Logger {
    Logger::root(Pass, o!())
}

struct Pass;

impl Drain for Pass {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "raft", "{}{}", record.msg(), pairs(record, values)),
            Level::Warning => tracing::warn!(target: "raft", "{}{}", record.msg(), pairs(record, values)),
            Level::Info => tracing::debug!(target: "raft", "{}{}", record.msg(), pairs(record, values)),
            Level::Debug | Level::Trace => tracing::trace!(target: "raft", "{}{}", record.msg(), pairs(record, values)),
        }
        Ok(())
    }
}

struct Pairs(String);

impl slog::Serializer for Pairs {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        use std::fmt::Write;
        write!(self.0, ", {key}: {value}").map_err(slog::Error::Fmt)
    }
}

fn pairs(record: &Record<'_>, values: &OwnedKVList) -> String {
    let mut pairs = Pairs(String::new());
    // A value that can't be shown is left out of the line.
    let _ = values.serialize(record, &mut pairs);
    let _ = record.kv().serialize(record, &mut pairs);
    pairs.0
}
