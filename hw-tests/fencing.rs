//! The engine's reservation method on two paths to one real device: `fencing_on_a_device PATH1 PATH2`, as root.
//!
//! hw-tests/run starts it in a virtual machine, where two iSCSI sessions are the paths of two nodes. Whatever is on the
//! device is overwritten, and its keys are removed at the end. Ends with status 0 when everything held.

use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rustydb::cluster::fencing::{
    Fencer, FencingError, Intruder, Life, Method, Permit, PersistentReservations, ReservationMethod, Standing, Strength, Victim,
};
use rustydb::ids::{Epoch, Incarnation, NodeId};

const CLUSTER: u128 = 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef;
const PATIENCE: Duration = Duration::from_secs(60);
/// Written and read past the cache, as the engine does it.
const PAGE: usize = 4096;

#[repr(align(4096))]
struct Page([u8; PAGE]);

fn life(node: u8, incarnation: u64) -> Life {
    Life { node: NodeId(node), incarnation: Incarnation(incarnation) }
}

fn victim(life: Life) -> Victim {
    Victim { life, address: None, pid: None, evicted_ago: None }
}

fn method(path: &Path) -> ReservationMethod<PersistentReservations> {
    ReservationMethod::new(PersistentReservations::new(path), CLUSTER, PATIENCE)
}

fn open(path: &Path) -> std::fs::File {
    let opened = std::fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path);
    opened.unwrap_or_else(|error| panic!("open {}: {error}", path.display()))
}

/// Writes one page of `byte`; the number of the system's error when it is refused.
fn write(path: &Path, byte: u8) -> Result<(), i32> {
    let written = open(path).write_all_at(&Page([byte; PAGE]).0, 8192);
    written.map_err(|error| error.raw_os_error().expect("an error of the system"))
}

fn read(path: &Path) -> u8 {
    let mut page = Page([0; PAGE]);
    open(path).read_exact_at(&mut page.0, 8192).expect("reads are never refused");
    page.0[77]
}

fn step(what: &str) {
    println!("- {what}");
}

fn main() -> ExitCode {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [one, two] = &paths[..] else {
        eprintln!("two paths to one device are needed");
        return ExitCode::from(2);
    };
    let (first, second) = (life(1, 1), life(2, 7));
    let (mut a, mut b) = (method(one), method(two));

    step("both paths say what the device can do");
    for found in [a.probe().expect("probe"), b.probe().expect("probe")] {
        println!("  {}", found.detail);
        assert_eq!(found.strength, Strength::Device);
    }

    step("both nodes register; both write, and read what the other wrote");
    a.register(first).expect("register");
    b.register(second).expect("register");
    b.register(second).expect("register, said twice");
    write(one, 1).expect("node 1 writes");
    assert_eq!(read(two), 1);
    write(two, 2).expect("node 2 writes");
    assert_eq!(read(one), 2);
    assert!(a.audit(&[first, second]).expect("audit").is_empty());
    assert!(matches!(a.verify(&victim(second)), Err(FencingError::NotFenced { .. })), "nobody is fenced yet");
    assert!(matches!(method(one).register(life(3, 1)), Err(FencingError::PathTaken { .. })), "one path, one node");

    step("node 1 fences node 2: its writes fail with EBADE, reads succeed, node 1 goes on");
    println!("  {}", a.fence(&victim(second)).expect("fence"));
    assert_eq!(write(two, 3), Err(libc::EBADE));
    assert_eq!(read(two), 2, "nothing of the refused write is there");
    write(one, 4).expect("the survivor writes");
    assert_eq!(read(two), 4);

    step("fencing twice is fine, and so is verifying");
    assert!(a.fence(&victim(second)).is_ok());
    assert!(a.verify(&victim(second)).is_ok());

    step("the fenced node learns of it, can't shoot back, and does not register by itself");
    assert_eq!(b.standing().expect("standing"), Standing::Lost);
    assert!(matches!(b.fence(&victim(first)), Err(FencingError::SelfFenced { .. })));
    assert!(matches!(b.register(second), Err(FencingError::SelfFenced { .. })));
    let foreign = Permit { life: life(2, 8), epoch: Epoch(2) };
    assert!(matches!(b.reregister(&foreign), Err(FencingError::NotPermitted { .. })));
    assert_eq!(write(two, 5), Err(libc::EBADE));

    step("one that registers without permission is noticed and fenced again");
    method(two).register(second).expect("the device itself lets it");
    assert_eq!(a.audit(&[first]).expect("audit"), [Intruder::Life(second)]);
    assert!(matches!(a.verify(&victim(second)), Err(FencingError::NotFenced { .. })));
    assert!(a.fence(&victim(second)).is_ok());
    assert_eq!(write(two, 6), Err(libc::EBADE));
    assert!(a.audit(&[first]).expect("audit").is_empty());

    step("its next life registers, writes, and is not touched by the fence of the life before");
    let next = life(2, 8);
    let mut b = method(two);
    b.register(next).expect("register");
    write(two, 7).expect("node 2's next life writes");
    assert!(a.fence(&victim(second)).is_ok());
    write(two, 8).expect("and goes on");

    step("the holder of the reservation is fenced: it passes to the survivor; asked through the fencing threads");
    let fencer = Fencer::start(vec![Box::new(b)], two.display().to_string()).expect("threads");
    println!("  {}", fencer.fence(victim(first)).wait().expect("an answer").expect("fence"));
    assert_eq!(write(one, 9), Err(libc::EBADE));
    write(two, 10).expect("the survivor writes");
    assert_eq!(a.standing().expect("standing"), Standing::Lost);

    step("with the quorum's permission the fenced node registers again");
    a.reregister(&Permit { life: first, epoch: Epoch(3) }).expect("register again");
    write(one, 11).expect("node 1 writes again");

    step("a write storm is cut off by the fence, and the last page on the device is the survivor's");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (refused, storm) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut count = 0u64;
            loop {
                if let Err(error) = write(one, 12) {
                    return (error, count);
                }
                count += 1;
                assert!(!stop.load(std::sync::atomic::Ordering::Relaxed), "writes go on after the fence");
            }
        });
        std::thread::sleep(Duration::from_millis(500));
        assert!(fencer.fence(victim(first)).wait().expect("an answer").is_ok());
        write(two, 13).expect("the survivor writes");
        // From here on not one write of the victim may succeed: those that were on their way were aborted.
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.join().expect("the writer ends")
    });
    println!("  refused with error {refused} after {storm} writes");
    assert_eq!(refused, libc::EBADE);
    assert_eq!(read(one), 13);

    fencer.leave().wait().expect("an answer").expect("leave");
    println!("all held");
    ExitCode::SUCCESS
}
