//! Fencing of processes by proof, for a volume that is a plain file on this machine's own disk.
//!
//! Every life of a node holds a byte of the volume's file locked on its *open file* (docs/decisions/0002), and the kernel
//! keeps that lock until the last of the process's writes has ended, io_uring's included. Who can take the lock has proof
//! that the life before is gone with all its writes. A process that was declared dead and still holds it (it hangs, or was
//! stopped by SIGSTOP) is killed: which process that is, the kernel says in /proc, never a remembered number.
//!
//! The lock is given back at once, so that the node can start anew. A new life that begins between the question and the
//! kill is killed too; that costs its start, never data.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::command::pidfd;
use super::{Ability, FencingError, Life, Method, Proof, Strength, Victim};
use crate::config::FencingMethod;
use crate::ids::NodeId;

/// Where the life locks lie in the volume's file: beyond any volume's end, 256 bytes for each node, one for each shard.
const LIFE_LOCKS: u64 = 1 << 50;
const LIFE_LOCKS_OF_NODE: u64 = 256;
const POLL: Duration = Duration::from_millis(5);
/// What a method may take beyond its own limit.
const SLACK: Duration = Duration::from_secs(5);
/// File systems whose files only this machine's kernel writes, by their numbers in linux/magic.h: ext4, XFS, Btrfs, tmpfs,
/// overlayfs, F2FS, ZFS, bcachefs.
const LOCAL_FILE_SYSTEMS: [u64; 8] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630, 0xf2f5_2010, 0x2fc1_2fc1, 0xca45_1a4e];

/// The method.
pub struct ProcessMethod {
    volume: PathBuf,
    kill: bool,
    limit: Duration,
    file: Option<File>,
    /// Whose end was proven, one life for a node: a process that has ended stays so.
    gone: Vec<Life>,
}

impl ProcessMethod {
    /// For the volume at this path. `kill`: whether a process that still holds it is killed; `limit`: how long its end is
    /// waited for.
    #[must_use]
    pub fn new(volume: &Path, kill: bool, limit: Duration) -> ProcessMethod {
        ProcessMethod { volume: volume.to_owned(), kill, limit, file: None, gone: Vec::new() }
    }

    fn error(&self, doing: &'static str, error: io::Error) -> FencingError {
        FencingError::System { doing, path: self.volume.clone(), error }
    }

    fn open(&mut self) -> Result<&File, FencingError> {
        if self.file.is_none() {
            // An open file of its own: locks of this process's other open files on the volume are somebody else's.
            let opened = OpenOptions::new().read(true).write(true).open(&self.volume);
            let file = opened.map_err(|error| self.error("open", error))?;
            let unable = |reason: String| FencingError::Unable { method: FencingMethod::Process, reason };
            let metadata = file.metadata().map_err(|error| self.error("look at", error))?;
            if !metadata.file_type().is_file() {
                let what = if metadata.file_type().is_block_device() { "a block device" } else { "no plain file" };
                return Err(unable(format!("it is {what}, which processes of other machines may write")));
            }
            let kind = file_system(&file).map_err(|error| self.error("look at the file system of", error))?;
            if !LOCAL_FILE_SYSTEMS.contains(&kind) {
                return Err(unable(format!("its file system (type {kind:#x}) is not known to be this machine's alone")));
            }
            self.file = Some(file);
        }
        Ok(self.file.as_ref().expect("just opened"))
    }

    /// Whether every lock of the node's lives is free at this moment.
    fn is_gone(&mut self, node: NodeId) -> Result<bool, FencingError> {
        let file = self.open()?;
        let taken = lock(file, node, libc::F_WRLCK);
        let result = match taken {
            Ok(true) => lock(file, node, libc::F_UNLCK),
            other => other,
        };
        result.map_err(|error| self.error("lock a byte of", error))
    }

    fn proven(&mut self, life: Life) -> Proof {
        self.gone.retain(|gone| gone.node != life.node);
        self.gone.push(life);
        proof(life, &self.volume)
    }
}

fn proof(life: Life, volume: &Path) -> Proof {
    let detail = format!("no process holds its locks on {} and no write of it is under way", volume.display());
    Proof::new(life, FencingMethod::Process, Strength::Process, detail)
}

impl Method for ProcessMethod {
    fn method(&self) -> FencingMethod {
        FencingMethod::Process
    }

    fn patience(&self) -> Duration {
        self.limit + SLACK
    }

    fn probe(&mut self) -> Result<Ability, FencingError> {
        self.open()?;
        let how = if self.kill { "killed" } else { "waited for" };
        let detail = format!("a file of this machine alone: processes of dead nodes are {how} until their locks are free");
        Ok(Ability { strength: Strength::Process, detail })
    }

    fn register(&mut self, _me: Life) -> Result<(), FencingError> {
        // The life lock itself is taken by the node when it opens the volume.
        self.open().map(|_| ())
    }

    fn fence(&mut self, victim: &Victim) -> Result<Proof, FencingError> {
        let node = victim.life.node;
        let until = Instant::now() + self.limit;
        loop {
            if self.is_gone(node)? {
                return Ok(self.proven(victim.life));
            }
            let holders = holders(self.open()?, node);
            if self.kill {
                for pid in holders.iter().copied().filter(|pid| *pid != std::process::id()) {
                    kill(self.open()?, node, pid);
                }
            }
            if Instant::now() >= until {
                let own = if holders.contains(&std::process::id()) { ", among them this very process" } else { "" };
                let reason = format!("processes {holders:?}{own} hold its locks on {}", self.volume.display());
                return Err(FencingError::NotFenced { life: victim.life, reason });
            }
            std::thread::sleep(POLL);
        }
    }

    fn verify(&mut self, victim: &Victim) -> Result<Proof, FencingError> {
        let life = victim.life;
        let covers = |gone: &Life| gone.node == life.node && gone.incarnation >= life.incarnation;
        if self.gone.iter().any(covers) {
            return Ok(proof(life, &self.volume));
        }
        if self.is_gone(life.node)? {
            return Ok(self.proven(life));
        }
        let reason = format!("a process holds its locks on {}", self.volume.display());
        Err(FencingError::NotFenced { life, reason })
    }
}

/// The byte that a shard of a node keeps locked on its open volume for as long as any write of that life may come.
pub(in crate::cluster) fn life_lock(node: NodeId, shard: u8) -> u64 {
    range(node).0 + u64::from(shard)
}

fn range(node: NodeId) -> (u64, u64) {
    (LIFE_LOCKS + u64::from(node.0) * LIFE_LOCKS_OF_NODE, LIFE_LOCKS_OF_NODE)
}

fn lock(file: &File, node: NodeId, kind: libc::c_int) -> io::Result<bool> {
    let (start, length) = range(node);
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start as libc::off_t,
        l_len: length as libc::off_t,
        l_pid: 0,
    };
    // SAFETY: the structure outlives the call, which only reads it.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } >= 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) { Ok(false) } else { Err(error) }
}

fn file_system(file: &File) -> io::Result<u64> {
    let mut about = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the kernel fills the structure, which outlives the call.
    if unsafe { libc::fstatfs(file.as_raw_fd(), about.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled by the successful call above.
    Ok(unsafe { about.assume_init() }.f_type as u64)
}

/// The processes that hold a life lock of `node` on the file, as far as this process may see.
fn holders(volume: &File, node: NodeId) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| holds(volume, node, *pid)).collect()
}

fn holds(volume: &File, node: NodeId, pid: u32) -> bool {
    let Ok(ours) = volume.metadata() else { return false };
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    descriptors.map(|entry| entry.file_name().to_string_lossy().into_owned()).any(|descriptor| {
        let locks = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")).unwrap_or_default();
        locks.lines().any(|line| is_life_lock(line, node))
            && std::fs::metadata(format!("/proc/{pid}/fd/{descriptor}"))
                .is_ok_and(|theirs| (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()))
    })
}

/// Whether a line of /proc/PID/fdinfo tells of an open file's lock among those of the node:
/// `lock: 1: OFDLCK ADVISORY WRITE -1 fe:00:1234 1125899906842624 1125899906842624`.
pub(super) fn is_life_lock(line: &str, node: NodeId) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let ["lock:", _, "OFDLCK", _, "WRITE", _, _, first, _] = words[..] else { return false };
    let (start, length) = range(node);
    first.parse::<u64>().is_ok_and(|first| (start..start + length).contains(&first))
}

/// Kills the process if it still holds the lock once it can't be mistaken for another any more.
fn kill(volume: &File, node: NodeId, pid: u32) {
    let Ok(process) = libc::pid_t::try_from(pid).map_err(io::Error::other).and_then(pidfd) else { return };
    if !holds(volume, node, pid) {
        return;
    }
    tracing::warn!(%node, pid, "kills the process of a node that was declared dead and still holds the volume");
    let no_details = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open, and a null pointer asks for the plain signal. An error means that it has ended.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), libc::SIGKILL, no_details, 0) };
}
