//! Every way to a volume on one real device, against every other: `storage_on_a_device DEVICE [all]`, as root.
//!
//! hw-tests/run starts it in a virtual machine with an NVMe disk that has queues for polling. With `all`, every way must be there;
//! without, those that the device lacks are skipped with the reason. The device's first 256 MiB are overwritten. Ends with status
//! 0 when everything held.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::ptr::NonNull;
use std::rc::Rc;
use std::time::Duration;

use rustydb::reactor::thread::run_local;
use rustydb::reactor::{
    Class, DriverChoice, DurableMethod, FileId, IoBuf, OpenOptions, Reactor, ReactorOptions, StorageRoute, StorageWish,
};

const PLAIN: StorageWish = StorageWish { polled: false, passthrough: false };
const WAYS: [(&str, StorageWish); 4] = [
    ("plain", PLAIN),
    ("polled", StorageWish { polled: true, passthrough: false }),
    ("passthrough", StorageWish { polled: false, passthrough: true }),
    ("polled passthrough", StorageWish { polled: true, passthrough: true }),
];

const BLOCK: usize = 8192;
/// Where each way has its region, and how large it is.
const REGION: u64 = 16 << 20;
/// Longer than one command moves, and of odd lengths.
const LENGTHS: [usize; 5] = [4096, BLOCK, 516 << 10, 1 << 20, (3 << 20) + 4096];
/// Operations at once, more than either ring has entries.
const AT_ONCE: u64 = 1_500;
const STORM: Duration = Duration::from_secs(2);
/// The byte that the locks of a life are on.
const LOCK: u64 = 1 << 60;

fn step(what: &str) {
    println!("- {what}");
}

/// Runs `main` with the device open and routed that way.
fn by<F, Fut>(device: &Path, wish: StorageWish, main: F) -> (StorageRoute, Fut::Output)
where
    F: FnOnce(Reactor, FileId) -> Fut + 'static,
    Fut: Future,
    Fut::Output: 'static,
{
    let device = device.to_owned();
    let options = ReactorOptions { driver: DriverChoice::Uring, overprovisioned: true };
    let run = |reactor: Reactor| async move {
        let file = reactor.open(&device, OpenOptions::WRITE).await.expect("open the device");
        let route = reactor.route(file, wish);
        (route, main(reactor, file).await)
    };
    run_local(options, run).expect("io_uring")
}

/// What belongs at an offset, by whoever wrote it last.
fn pattern(way: u64, offset: u64, buffer: &mut [u8]) {
    for (number, word) in buffer.chunks_exact_mut(8).enumerate() {
        let place = offset + number as u64 * 8;
        word.copy_from_slice(&(place.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ way << 56).to_le_bytes());
    }
}

/// Both kinds of memory: registered with the rings, and not.
fn buffer(reactor: &Reactor, len: usize, steady: bool) -> IoBuf {
    if steady { reactor.steady_buffer(len) } else { IoBuf::aligned(len) }
}

/// The places of one region: offset, length and a number that says how it is written.
fn places(way: u64) -> Vec<(u64, usize, usize)> {
    let mut offset = (way + 1) * REGION;
    let mut places = Vec::new();
    for (number, length) in LENGTHS.into_iter().cycle().take(LENGTHS.len() * 2).enumerate() {
        places.push((offset, length, number));
        offset += length as u64;
    }
    assert!(offset <= (way + 2) * REGION);
    places
}

async fn write_region(reactor: Reactor, file: FileId, way: u64) {
    for (offset, length, number) in places(way) {
        let mut data = buffer(&reactor, length, number % 2 == 0);
        pattern(way, offset, data.as_mut_slice());
        let method = if number % 2 == 0 { DurableMethod::Dsync } else { DurableMethod::WriteThenSync };
        reactor.set_durable_method(file, method);
        let (written, back) = if number % 3 == 0 {
            reactor.write(file, offset, data).await
        } else {
            reactor.write_durable(file, offset, data).await
        };
        assert_eq!((written.expect("a write"), back.len()), (length, length));
    }
    reactor.sync(file).await.expect("a sync");
}

async fn check_region(reactor: Reactor, file: FileId, way: u64) {
    for (offset, length, number) in places(way) {
        let (read, found) = reactor.read(file, offset, buffer(&reactor, length, number % 2 == 1)).await;
        assert_eq!(read.expect("a read"), length);
        let mut wanted = vec![0; length];
        pattern(way, offset, &mut wanted);
        assert!(found.as_slice() == wanted, "what {} wrote at {offset} reads otherwise", WAYS[way as usize].0);
    }
}

/// Blocks at the start, in the middle and at the end of much more memory that is registered in one piece, as a block cache is.
async fn of_a_large_registration(reactor: Reactor, file: FileId) {
    const BYTES: usize = 64 << 20;
    let memory = Rc::new(IoBuf::aligned(BYTES));
    std::mem::forget(memory.clone());
    // SAFETY: it is never freed.
    if let Err(error) = unsafe { reactor.register_memory(memory.as_ptr(), BYTES) } {
        return println!("  not tested, the memory can't be registered: {error}");
    }
    let start = NonNull::new(memory.as_ptr().cast_mut()).expect("memory");
    for (number, place) in [0, BYTES / 2, BYTES - BLOCK].into_iter().enumerate() {
        let offset = 9 * REGION + (number * BLOCK) as u64;
        // SAFETY: nothing else looks at the memory, which the guard keeps.
        let mut data = unsafe { IoBuf::from_raw(start.add(place), BLOCK, memory.clone()) };
        pattern(number as u64, offset, data.as_mut_slice());
        let wanted = data.as_slice().to_vec();
        let (written, mut data) = reactor.write_durable(file, offset, data).await;
        assert_eq!(written.expect("a write"), BLOCK);
        data.as_mut_slice().fill(0);
        let (read, data) = reactor.read(file, offset, data).await;
        assert_eq!(read.expect("a read"), BLOCK);
        assert!(data.as_slice() == wanted, "what was written from byte {place} of registered memory reads otherwise");
    }
}

/// Reads and writes of blocks, as many at once as `AT_ONCE`, each block by one task at a time; what is read is what was written.
async fn storm(reactor: Reactor, file: FileId) -> u64 {
    let (done, running) = (Rc::new(Cell::new(0u64)), Rc::new(Cell::new(AT_ONCE)));
    let until = reactor.now() + STORM;
    for block in 0..AT_ONCE {
        let (task, done, running) = (reactor.clone(), done.clone(), running.clone());
        reactor.spawn(Class::Normal, "storm", async move {
            let offset = 8 * REGION + block * BLOCK as u64;
            let mut version = 0;
            while version == 0 || task.now() < until {
                version += 1;
                let mut data = IoBuf::aligned(BLOCK);
                pattern(version, offset, data.as_mut_slice());
                let (written, back) = match task.random() % 4 {
                    0 => task.write_durable(file, offset, data).await,
                    _ => task.write(file, offset, data).await,
                };
                assert_eq!(written.expect("a write"), BLOCK);
                let wanted = back.as_slice().to_vec();
                let (read, found) = task.read(file, offset, back).await;
                assert_eq!(read.expect("a read"), BLOCK);
                assert!(found.as_slice() == wanted, "block {block} reads otherwise than it was written");
                done.set(done.get() + 2);
            }
            running.set(running.get() - 1);
        });
    }
    while running.get() > 0 {
        reactor.sleep(Duration::from_millis(5)).await;
    }
    done.get()
}

/// What a transfer gives, as bytes or as an error's number.
fn number(result: std::io::Result<usize>) -> Result<usize, i32> {
    result.map_err(|error| error.raw_os_error().unwrap_or(-1))
}

/// Faults: past the end, misaligned, out of time.
async fn faults(reactor: Reactor, file: FileId) -> Vec<Result<usize, i32>> {
    let bytes = reactor.file_bytes(file).await.expect("the device's size");
    let page = || IoBuf::aligned(4096);
    let mut all = vec![
        number(reactor.read(file, bytes, page()).await.0),
        number(reactor.read(file, bytes - 4096, IoBuf::aligned(BLOCK)).await.0),
        number(reactor.read(file, 1, page()).await.0),
        number(reactor.write(file, bytes, page()).await.0),
        number(reactor.write_durable(file, bytes - 4096, IoBuf::aligned(BLOCK)).await.0),
        number(reactor.write(file, 100, page()).await.0),
    ];
    reactor.write_until(Some(reactor.now()));
    all.push(number(reactor.write(file, 9 * REGION, page()).await.0));
    all.push(number(reactor.write_durable(file, 9 * REGION, page()).await.0));
    all
}

/// Turns that the shard makes while nothing is under way, in half a second.
async fn turns_when_idle(reactor: Reactor, file: FileId) -> u64 {
    for _ in 0..50 {
        assert_eq!(reactor.read(file, REGION, IoBuf::aligned(BLOCK)).await.0.expect("a read"), BLOCK);
    }
    let before = reactor.stats().turns;
    reactor.sleep(Duration::from_millis(500)).await;
    reactor.stats().turns - before
}

/// The time of a read alone, its median.
async fn read_time(reactor: Reactor, file: FileId) -> Duration {
    let mut took = Vec::new();
    let mut memory = reactor.steady_buffer(BLOCK);
    for _ in 0..200 {
        let began = reactor.now();
        let result;
        (result, memory) = reactor.read(file, REGION, memory).await;
        assert_eq!(result.expect("a read"), BLOCK);
        took.push(reactor.now().since(began));
    }
    took.sort_unstable();
    took[took.len() / 2]
}

/// A life that writes until it is killed: `storage_on_a_device DEVICE life WAY`.
fn live(device: &Path, way: usize) -> ExitCode {
    let life = |reactor: Reactor, file| async move {
        // The kernel closes the files of the ring before a little later.
        while !reactor.try_lock(file, LOCK, true).expect("a lock") {
            reactor.sleep(Duration::from_millis(1)).await;
        }
        println!("lives");
        for task in 0..64u64 {
            let writer = reactor.clone();
            reactor.spawn(Class::Normal, "writer", async move {
                loop {
                    let mut data = IoBuf::aligned(1 << 18);
                    data.as_mut_slice().fill(writer.random() as u8);
                    writer.write(file, 10 * REGION + (task << 18), data).await.0.expect("a write");
                }
            });
        }
        std::future::pending::<()>().await;
    };
    by(device, WAYS[way].1, life);
    ExitCode::FAILURE
}

/// Kills such a life and waits for its lock: from then on nothing changes any more.
fn kill_a_life(device: &Path, way: usize) {
    let own = std::env::current_exe().expect("this program");
    let mut child =
        Command::new(own).arg(device).arg("life").arg(way.to_string()).stdout(Stdio::piped()).spawn().expect("a child");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a word of it");
    assert_eq!(line.trim(), "lives");
    std::thread::sleep(Duration::from_millis(300));
    child.kill().expect("kill it");
    let after = |reactor: Reactor, file| async move {
        let began = reactor.now();
        while !reactor.try_lock(file, LOCK, true).expect("a lock") {
            assert!(reactor.now().since(began) < Duration::from_secs(20), "a killed life keeps its lock");
            reactor.sleep(Duration::from_millis(1)).await;
        }
        let waited = reactor.now().since(began);
        let (first, before) = reactor.read(file, 10 * REGION, IoBuf::aligned(REGION as usize)).await;
        reactor.sleep(Duration::from_millis(300)).await;
        let (second, after) = reactor.read(file, 10 * REGION, IoBuf::aligned(REGION as usize)).await;
        assert_eq!((first.expect("a read"), second.expect("a read")), (REGION as usize, REGION as usize));
        assert!(before.as_slice() == after.as_slice(), "a killed life has written after its lock was free");
        waited
    };
    let waited = by(device, PLAIN, after).1;
    child.wait().expect("it is dead");
    println!("  {}: free after {waited:?}", WAYS[way].0);
}

/// A reactor that ends in the middle of it.
fn end_in_the_middle(device: &Path, wish: StorageWish) {
    let memory = Rc::new(RefCell::new(None::<std::rc::Weak<IoBuf>>));
    let seen = memory.clone();
    let main = |reactor: Reactor, file| async move {
        let arena = Rc::new(IoBuf::aligned(1 << 20));
        *seen.borrow_mut() = Some(Rc::downgrade(&arena));
        for page in 0..256usize {
            let (task, arena) = (reactor.clone(), arena.clone());
            reactor.spawn(Class::Normal, "abandoned", async move {
                let start = NonNull::new(arena.as_ptr().cast_mut()).expect("memory");
                // SAFETY: each task has its own page of the arena, which the guard keeps.
                let part = unsafe { IoBuf::from_raw(start.add(page * 4096), 4096, arena) };
                let _ = task.read(file, REGION, part).await;
            });
        }
        reactor.yield_now().await;
    };
    by(device, wish, main);
    let memory = memory.borrow_mut().take().expect("it ran");
    assert!(memory.upgrade().is_none(), "memory of operations in flight is not given back");
}

fn main() -> ExitCode {
    // Less than an error would be the stalls of an emulated processor.
    tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::ERROR).with_writer(std::io::stderr).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(device) = arguments.first().map(PathBuf::from) else {
        eprintln!("a device is needed; what is on it is lost");
        return ExitCode::from(2);
    };
    if let Some(way) = arguments.get(2).filter(|_| arguments[1] == "life") {
        return live(&device, way.parse().expect("the number of a way"));
    }
    let all = arguments.get(1).is_some_and(|word| word == "all");

    step("what the device has, tried out");
    let mut ways = Vec::new();
    for (index, (name, wish)) in WAYS.into_iter().enumerate() {
        let (route, ()) = by(&device, wish, |_, _| async {});
        println!("  {name}: {route}");
        route.refusals.iter().for_each(|refusal| println!("    {refusal}"));
        if (route.polled, route.passthrough.is_some()) == (wish.polled, wish.passthrough) {
            ways.push((index as u64, name, wish));
        } else {
            assert!(!all, "{name} is not to be had on {}", device.display());
        }
    }

    step("each way writes its region, durably and not, in registered memory and not; each reads the regions of all");
    for &(way, _, wish) in &ways {
        by(&device, wish, move |reactor, file| write_region(reactor, file, way));
    }
    for &(_, name, wish) in &ways {
        for &(way, ..) in &ways {
            let check = move |reactor: Reactor, file| async move {
                check_region(reactor.clone(), file, way).await;
                reactor.stats().storage_operations
            };
            let (_, by_own_ring) = by(&device, wish, check);
            assert_eq!(by_own_ring > 0, wish != PLAIN, "{name} goes by a ring of its own");
        }
    }

    step("each way reads and writes blocks of a large registration");
    for &(_, name, wish) in &ways {
        println!("  {name}");
        by(&device, wish, of_a_large_registration);
    }

    step("faults are the same by all: past the end, misaligned, after the lease");
    let expected = by(&device, PLAIN, faults).1;
    println!("  {expected:?}");
    for &(_, name, wish) in &ways {
        assert_eq!(by(&device, wish, faults).1, expected, "{name}");
    }

    step("a storm of reads and writes");
    for &(_, name, wish) in &ways {
        let (_, done) = by(&device, wish, storm);
        println!("  {name}: {done} operations in {STORM:?}");
    }

    step("with nothing under way the shard sleeps");
    for &(_, name, wish) in &ways {
        let (_, turns) = by(&device, wish, turns_when_idle);
        println!("  {name}: {turns} turns in half a second");
        assert!(turns < 50, "{name}: the shard does not sleep");
    }

    step("a reactor that ends with operations under way gives their memory back");
    for &(_, _, wish) in &ways {
        end_in_the_middle(&device, wish);
    }

    step("once the lock of a killed life is free, none of its writes arrives any more");
    for &(way, ..) in &ways {
        kill_a_life(&device, way as usize);
    }

    step("a read of 8 KiB alone, median (not judged)");
    for &(_, name, wish) in &ways {
        println!("  {name}: {:?}", by(&device, wish, read_time).1);
    }
    println!("all held, by {} ways", ways.len());
    ExitCode::SUCCESS
}
