//! A real process holds a node's life lock on a file, and is stopped, killed or left alone.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::*;

/// Locks byte `$2` of the file `$1` as the engine does (F_OFD_SETLK of one byte) and waits. Perl, because it is on every
/// machine that builds this and neither it nor the kernel locks anything else.
const HOLDER: &str = r#"
open(my $file, "+<", $ARGV[0]) or die "open: $!";
my $lock = pack("s s x4 q q i x4", 1, 0, $ARGV[1], 1, 0);
fcntl($file, 37, $lock) or die "lock: $!";
$| = 1; print "held\n"; sleep 600;
"#;

struct Holder(Child);

impl Holder {
    fn start(volume: &Path, byte: u64) -> Holder {
        let mut command = Command::new("perl");
        command.arg("-e").arg(HOLDER).arg(volume).arg(byte.to_string()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("perl");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        Holder(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

struct Volume(PathBuf);

impl Volume {
    fn new(name: &str) -> Volume {
        let path = std::env::temp_dir().join(format!("rustydb-fencing-{name}-{}", std::process::id()));
        std::fs::write(&path, [0; 4096]).unwrap();
        Volume(path)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

const LOCK_OF_NODE_2_SHARD_1: u64 = (1 << 50) + 2 * 256 + 1;

#[test]
fn a_process_that_holds_the_lock_is_not_fenced_until_it_has_ended() {
    let volume = Volume::new("patient");
    let mut method = ProcessMethod::new(&volume.0, false, Duration::from_millis(50));
    assert_eq!(method.probe().unwrap().strength, Strength::Process);
    let mut holder = Holder::start(&volume.0, LOCK_OF_NODE_2_SHARD_1);
    let refusal = method.fence(&victim(2, 5)).unwrap_err();
    assert!(matches!(refusal, FencingError::NotFenced { .. }), "{refusal}");
    assert!(refusal.to_string().contains(&holder.0.id().to_string()), "{refusal}");
    assert!(method.verify(&victim(2, 5)).is_err());
    assert!(method.fence(&victim(1, 5)).is_ok(), "another node's lock is another byte");

    holder.0.kill().unwrap();
    holder.0.wait().unwrap();
    assert_eq!(method.fence(&victim(2, 5)).unwrap().life(), life(2, 5));
    // The next life holds the lock; the one before stays proven to be gone, and it alone.
    let _next = Holder::start(&volume.0, LOCK_OF_NODE_2_SHARD_1);
    assert!(method.verify(&victim(2, 5)).is_ok());
    assert!(method.verify(&victim(2, 6)).is_err());
}

#[test]
fn a_stopped_process_is_killed_and_then_proven_to_be_gone() {
    let volume = Volume::new("stopped");
    let mut holder = Holder::start(&volume.0, LOCK_OF_NODE_2_SHARD_1);
    let mut bystander = Holder::start(&volume.0, LOCK_OF_NODE_2_SHARD_1 + 256);
    // SAFETY: no pointers; the child is not reaped, so the number is its own.
    assert_eq!(unsafe { libc::kill(holder.0.id() as libc::pid_t, libc::SIGSTOP) }, 0);
    let mut method = ProcessMethod::new(&volume.0, true, Duration::from_secs(30));
    assert_eq!(method.fence(&victim(2, 5)).unwrap().strength(), Strength::Process);
    assert!(!holder.0.wait().unwrap().success());
    assert!(bystander.0.try_wait().unwrap().is_none(), "node 3's process lives on");
}

#[test]
fn files_that_other_machines_may_write_are_refused() {
    let refusal = ProcessMethod::new(Path::new("/dev/null"), true, Duration::ZERO).probe().unwrap_err();
    assert!(matches!(refusal, FencingError::Unable { .. }), "{refusal}");
}
