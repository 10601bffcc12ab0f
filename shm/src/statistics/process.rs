//! Which process writes a file, and whether it is still there.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::snapshot::Snapshot;

/// How long a heartbeat may be old, in publications and in milliseconds, before its writer counts as silent.
const SILENT_INTERVALS: u64 = 10;
const SILENT_MS_MIN: u64 = 3_000;

/// A process as others can tell it from a later one of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since the machine did.
    pub started: u64,
    /// Inode of its PID namespace, in which the number counts.
    pub namespace: u64,
}

/// This process.
#[must_use]
pub fn own_process() -> Process {
    let pid = std::process::id();
    Process { pid, started: started(pid).unwrap_or(0), namespace: own_namespace() }
}

fn own_namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |link| link.ino())
}

/// Field 22 of the process's line; the second one, its name, may hold anything. `None`: there is no such process, or it is
/// only waited for.
fn started(pid: u32) -> Option<u64> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = line[line.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

impl Process {
    /// Whether it has ended, as seen from its own PID namespace. Where `/proc` does not show it (`hidepid`), it is there as long as
    /// anything has its number.
    fn has_ended(&self) -> bool {
        if self.started != 0 && fs::exists(format!("/proc/{}/stat", self.pid)).unwrap_or(true) {
            return started(self.pid) != Some(self.started);
        }
        let Ok(pid) = i32::try_from(self.pid) else { return true };
        // SAFETY: signal 0 is none: only whether it could be sent is asked.
        let there = unsafe { libc::kill(pid, 0) } == 0;
        !there && std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
    }
}

/// Whether the writer of a file still writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It does.
    Running,
    /// Its process is there and has not written for so many milliseconds: it hangs, or its machine is overloaded. Also the
    /// answer for a process in another container when it does not write any more.
    Silent(u64),
    /// It ended by itself and said so.
    Ended,
    /// Its process is gone; it wrote last so many milliseconds ago.
    Dead(u64),
}

impl Liveness {
    /// Of the writer of what was read at `now_ms`, milliseconds since 1970.
    #[must_use]
    pub fn of(snapshot: &Snapshot, now_ms: u64) -> Liveness {
        let (header, state) = (&snapshot.header, &snapshot.state);
        let silence_ms = now_ms.saturating_sub(state.heartbeat_ms);
        if state.stage.is_end() {
            return Liveness::Ended;
        }
        let same_namespace = header.process.namespace == own_namespace() && header.process.namespace != 0;
        if same_namespace && header.process.has_ended() {
            return Liveness::Dead(silence_ms);
        }
        let allowed_ms = (u64::from(header.interval_ms) * SILENT_INTERVALS).max(SILENT_MS_MIN);
        if silence_ms > allowed_ms { Liveness::Silent(silence_ms) } else { Liveness::Running }
    }

    /// Whether the node may be serving.
    #[must_use]
    pub fn is_alive(self) -> bool {
        self == Liveness::Running
    }
}
