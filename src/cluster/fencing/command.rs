//! Fencing by a command of the operator's: a power switch, a `fence_*` agent, a script that closes a port.
//!
//! The command runs without a shell, in a process group of its own, with nothing on its standard input. Exit status 0 says
//! that the node is fenced; anything else, or no end within the time limit, says that it is not. After the limit its group
//! is killed by its id.

use std::io::{self, PipeReader, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::{Ability, FencingError, Life, Method, Proof, Strength, Victim};
use crate::config::FencingMethod;

/// How much of what a command wrote is kept for the log.
const OUTPUT_BYTES_MAX: usize = 1024;
/// What a method may take beyond the command's own limit.
const SLACK: Duration = Duration::from_secs(5);

/// The method. Verifying is not possible; what was proven in this process is remembered.
pub struct CommandMethod {
    words: Vec<String>,
    limit: Duration,
    /// Whom this process has fenced, one life for a node: at most [`crate::ids::NODES_MAX`].
    fenced: Vec<Life>,
}

impl CommandMethod {
    /// The command as configured; empty when there is none.
    #[must_use]
    pub fn new(words: Vec<String>, limit: Duration) -> CommandMethod {
        CommandMethod { words, limit, fenced: Vec::new() }
    }

    /// The words with the victim's data in them.
    fn filled(&self, victim: &Victim) -> Result<Vec<String>, FencingError> {
        let life = victim.life;
        let known = |word: &str, name: &str, value: Option<String>| -> Result<String, FencingError> {
            match value {
                _ if !word.contains(name) => Ok(word.to_owned()),
                Some(value) => Ok(word.replace(name, &value)),
                None => Err(FencingError::CommandFailed { reason: format!("it wants {name}, which is not known of {life}") }),
            }
        };
        let fill = |word: &String| {
            let word = word.replace("{node}", &life.node.0.to_string()).replace("{incarnation}", &life.incarnation.0.to_string());
            let word = known(&word, "{pid}", victim.pid.map(|pid| pid.to_string()))?;
            known(&word, "{address}", victim.address.map(|address| address.to_string()))
        };
        self.words.iter().map(fill).collect()
    }
}

impl Method for CommandMethod {
    fn method(&self) -> FencingMethod {
        FencingMethod::Command
    }

    fn patience(&self) -> Duration {
        self.limit + SLACK
    }

    fn probe(&mut self) -> Result<Ability, FencingError> {
        let unable = |reason: String| FencingError::Unable { method: FencingMethod::Command, reason };
        let program = self.words.first().ok_or_else(|| unable("ha.fencing.command is empty".into()))?;
        if program.contains('/') && !std::path::Path::new(program).is_file() {
            return Err(unable(format!("there is no program {program}")));
        }
        Ok(Ability { strength: Strength::Operator, detail: format!("the command {:?}, not tried", self.words) })
    }

    fn register(&mut self, _me: Life) -> Result<(), FencingError> {
        Ok(())
    }

    fn fence(&mut self, victim: &Victim) -> Result<Proof, FencingError> {
        let words = self.filled(victim)?;
        let failed = |reason: String| FencingError::CommandFailed { reason };
        let ended = run(&words, self.limit).map_err(|error| failed(format!("{:?} can't be run: {error}", words.first())))?;
        match ended.status {
            Some(status) if status.success() => {}
            Some(status) => {
                let how = status.signal().map_or_else(|| status.to_string(), |signal| format!("killed by signal {signal}"));
                return Err(failed(format!("{words:?}: {how}, it wrote {:?}", ended.output)));
            }
            None => {
                let limit_ms = self.limit.as_millis();
                return Err(failed(format!(
                    "{words:?} took longer than {limit_ms} ms and was killed, it wrote {:?}",
                    ended.output
                )));
            }
        }
        self.fenced.retain(|life| life.node != victim.life.node);
        self.fenced.push(victim.life);
        self.verify(victim)
    }

    fn verify(&mut self, victim: &Victim) -> Result<Proof, FencingError> {
        let life = victim.life;
        let covers = |fenced: &Life| fenced.node == life.node && fenced.incarnation >= life.incarnation;
        if !self.fenced.iter().any(covers) {
            let reason = "the fencing command has not succeeded for it in this process".into();
            return Err(FencingError::NotFenced { life, reason });
        }
        let detail = format!("the command {:?} ended with status 0", self.words);
        Ok(Proof::new(life, FencingMethod::Command, Strength::Operator, detail))
    }
}

/// How a command ended.
struct Ended {
    /// `None`: it was killed at the limit.
    status: Option<ExitStatus>,
    /// The end of what it wrote.
    output: String,
}

fn run(words: &[String], limit: Duration) -> io::Result<Ended> {
    let (program, arguments) = words.split_first().ok_or_else(|| io::Error::other("no command"))?;
    let (mut reader, writer) = io::pipe()?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    let mut child = command.spawn()?;
    // The command holds the pipe's writing ends; without them its output never ends.
    drop(command);
    let watched = watch(&mut child, &mut reader, limit);
    if !matches!(watched, Ok((true, _))) {
        let group = libc::pid_t::try_from(child.id()).expect("the kernel's process numbers fit");
        // SAFETY: no pointers. The child is not reaped yet, so its number, which is its group's, is nobody else's.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
    let status = child.wait()?;
    let (in_time, output) = watched?;
    Ok(Ended { status: in_time.then_some(status), output: String::from_utf8_lossy(&output).trim_end().to_owned() })
}

/// Reads what the child writes until it ends (true) or the limit has passed (false).
fn watch(child: &mut Child, reader: &mut PipeReader, limit: Duration) -> io::Result<(bool, Vec<u8>)> {
    let pid = libc::pid_t::try_from(child.id()).expect("the kernel's process numbers fit");
    let process = pidfd(pid)?;
    let until = Instant::now() + limit;
    let mut output = Vec::new();
    let mut reading = true;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // A negative descriptor is passed over.
        let mut entries = [entry(if reading { reader.as_raw_fd() } else { -1 }), entry(process.as_raw_fd())];
        let timeout = libc::c_int::try_from(left.as_millis()).unwrap_or(libc::c_int::MAX).saturating_add(1);
        // SAFETY: the array and its length belong together, and it outlives the call.
        let ready = unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        if entries[0].revents != 0 {
            let mut bytes = [0; 512];
            // Readable or at its end, so this does not block.
            let count = reader.read(&mut bytes)?;
            reading = count > 0;
            output.extend_from_slice(&bytes[..count]);
            output.drain(..output.len().saturating_sub(OUTPUT_BYTES_MAX));
        } else if entries[1].revents != 0 {
            return Ok((true, output));
        }
        if Instant::now() >= until {
            return Ok((false, output));
        }
    }
}

/// A descriptor that becomes readable when the process ends, and that stays with this process whatever its number becomes.
pub(super) fn pidfd(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the answer is a new descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}
