//! The volume's own ring, on a file: what is the same for all its ways. Polling and NVMe's commands need a device that has them:
//! hw-tests/storage.rs.

use std::cell::Cell;
use std::rc::Rc;

use super::*;
use crate::reactor::{Class, FileId, IoBuf, Reactor, ReactorOptions};

const PAGE: usize = 4096;

/// A driver with a file of 16 pages that has a ring of its own, by the block layer's requests and interrupts. `None` where that can't be.
fn own_ring(name: &str) -> Option<(UringDriver, Handle)> {
    let path = std::env::temp_dir().join(format!("rustydb-own-ring-{name}-{}", std::process::id()));
    std::fs::write(&path, vec![7; 16 * PAGE]).unwrap();
    let made = UringDriver::new().map_err(|error| refusal(&error)).and_then(|mut driver| {
        let file = driver.open(&path, OpenOptions::WRITE).unwrap();
        driver.storage = Some(driver.storage_ring(file, None, false)?);
        Ok((driver, file))
    });
    std::fs::remove_file(&path).unwrap();
    made.inspect_err(|why| eprintln!("not tested: {why}")).ok()
}

/// Runs `main` with such a driver.
fn with_own_ring<F, Fut>(name: &str, main: F)
where
    F: FnOnce(Reactor, FileId) -> Fut,
    Fut: Future<Output = ()> + 'static,
{
    let Some((driver, file)) = own_ring(name) else { return };
    let reactor = Reactor::with_driver(Box::new(driver), ReactorOptions { overprovisioned: true, ..ReactorOptions::default() });
    let main = main(reactor.clone(), FileId(file));
    reactor.run(main);
}

fn page(byte: u8) -> IoBuf {
    let mut buffer = IoBuf::aligned(PAGE);
    buffer.as_mut_slice().fill(byte);
    buffer
}

#[test]
fn a_file_with_a_ring_of_its_own_reads_and_writes_by_it_and_is_closed_with_it() {
    with_own_ring("reads", |reactor, file| async move {
        for (place, method) in [(1, DurableMethod::Dsync), (2, DurableMethod::WriteThenSync)] {
            reactor.set_durable_method(file, method);
            let (written, _) = reactor.write_durable(file, place * PAGE as u64, page(place as u8)).await;
            assert_eq!(written.unwrap(), PAGE);
        }
        assert_eq!(reactor.write(file, 0, page(3)).await.0.unwrap(), PAGE);
        reactor.sync(file).await.unwrap();
        let (read, buffer) = reactor.read(file, 0, IoBuf::aligned(4 * PAGE)).await;
        assert_eq!(read.unwrap(), 4 * PAGE);
        let pages: Vec<u8> = buffer.as_slice().iter().step_by(PAGE).copied().collect();
        assert_eq!(pages, [3, 1, 2, 7]);
        assert_eq!(reactor.stats().storage_operations, 5, "a probe, three writes and a read; syncs go by the driver's ring");
        assert_eq!(reactor.read(file, 16 * PAGE as u64, page(0)).await.0.unwrap(), 0, "past the end");
        // With a read still on its way.
        let task = reactor.clone();
        reactor.spawn(Class::Normal, "last read", async move { assert_eq!(task.read(file, 0, page(0)).await.0.unwrap(), PAGE) });
        reactor.yield_now().await;
        reactor.close(file);
        while reactor.stats().operations_in_flight > 0 {
            reactor.sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(reactor.stats().storage_operations, 0, "the ring has gone with the file");
    });
}

/// More at once than either ring has entries, while the shard sleeps and is woken by nothing else.
#[test]
fn a_sleeping_shard_is_woken_by_its_files_own_ring() {
    with_own_ring("wakes", |reactor, file| async move {
        let (count, done) = (2_000u64, Rc::new(Cell::new(0)));
        for number in 0..count {
            let (task, done) = (reactor.clone(), done.clone());
            reactor.spawn(Class::Normal, "page", async move {
                let place = number % 16 * PAGE as u64;
                let result = if number % 3 == 0 {
                    task.write(file, place, page(7)).await.0
                } else {
                    task.read(file, place, page(0)).await.0
                };
                assert_eq!(result.unwrap(), PAGE);
                done.set(done.get() + 1);
            });
        }
        // One after the other, too: each is a sleep of its own.
        for _ in 0..100 {
            let (read, buffer) = reactor.read(file, 0, page(0)).await;
            assert_eq!((read.unwrap(), buffer.as_slice()[0]), (PAGE, 7));
        }
        while done.get() < count {
            reactor.yield_now().await;
        }
    });
}

/// Who is told that his memory is not registered frees it: the kernel must not go on reading and writing its pages.
#[test]
fn memory_counts_as_registered_when_the_driver_has_it_whatever_the_files_own_ring_says() {
    let memory: Vec<IoBuf> = (0..=memory::PIECES).map(|_| page(0)).collect();
    let Some((mut driver, _)) = own_ring("registers") else { return };
    // So the own ring's table is full one piece earlier than the driver's.
    // SAFETY: the memory outlives the driver, here and below.
    unsafe { driver.storage.as_mut().unwrap().register(memory[0].as_ptr(), PAGE) };
    let mut told = Vec::new();
    for piece in &memory {
        // SAFETY: as above.
        told.push(unsafe { driver.register_memory(piece.as_ptr(), PAGE) }.is_ok());
        assert_eq!(told.last() == Some(&true), driver.memory.find(piece.as_ptr(), PAGE).is_some());
    }
    if !told[0] {
        return eprintln!("not tested: no memory can be registered");
    }
    assert_eq!(told.iter().filter(|told| **told).count(), memory.len() - 1, "but what does not fit into the driver's own table");
}

/// The lease is asked before each write, so none is made a second time in here.
#[test]
fn an_interrupted_write_is_given_back_and_an_interrupted_read_is_made_again() {
    let Some((mut driver, file)) = own_ring("interrupted") else { return };
    driver.storage = None;
    for (method, durable) in [(DurableMethod::Dsync, false), (DurableMethod::Dsync, true), (DurableMethod::WriteThenSync, true)] {
        driver.set_durable_method(file, method);
        let before = driver.ring.submission().len();
        driver.descriptors.begin(file);
        let operation = Operation::Write { file, offset: 0, buffer: page(1), durable };
        let in_flight = InFlight { token: Token(1), operation, connecting: None, message: None, written: None };
        let index = driver.operations.insert(in_flight);
        driver.completed(index, false, -libc::EINTR);
        if method == DurableMethod::WriteThenSync {
            driver.completed(index, true, -libc::ECANCELED);
        }
        let done = driver.done.pop().expect("it is over");
        assert_eq!((done.result, driver.ring.submission().len()), (Err(libc::EINTR), before), "{method:?}, durable: {durable}");
    }
    driver.descriptors.begin(file);
    let operation = Operation::Read { file, offset: 0, buffer: page(0) };
    let in_flight = InFlight { token: Token(2), operation, connecting: None, message: None, written: None };
    let index = driver.operations.insert(in_flight);
    driver.completed(index, false, -libc::EINTR);
    let mut completions = Vec::new();
    while completions.is_empty() {
        driver.poll(&mut completions, Wait::Park(None));
    }
    assert_eq!((completions[0].token, completions[0].result), (Token(2), Ok(PAGE)));
}

#[test]
fn a_shard_does_not_sleep_on_what_the_kernel_has_not_taken() {
    let Some((mut driver, file)) = own_ring("not-taken") else { return };
    let storage = driver.storage.as_mut().unwrap();
    assert!(storage.watch(), "nothing is under way");
    // As after a call that failed for want of memory.
    storage.submit(Token(1), Operation::Read { file, offset: 0, buffer: page(0) }, DurableMethod::Dsync);
    assert!(!storage.watch());
    storage.unwatch();
    let mut done = Vec::new();
    while done.is_empty() {
        storage.drive(&mut done);
    }
    assert_eq!(done[0].result, Ok(PAGE));
}

#[test]
fn a_file_that_has_no_other_way_says_why_and_goes_the_plain_one() {
    let path = std::env::temp_dir().join(format!("rustydb-no-way-{}", std::process::id()));
    std::fs::write(&path, vec![7; PAGE]).unwrap();
    let at = path.clone();
    let main = |reactor: Reactor| async move {
        let file = reactor.open(&at, OpenOptions::WRITE).await.unwrap();
        assert_eq!(reactor.route(file, StorageWish::default()), StorageRoute::default());
        let route = reactor.route(file, StorageWish { polled: true, passthrough: true });
        assert!(!route.polled && route.passthrough.is_none());
        assert!(!route.refusals.is_empty());
        if reactor.driver_name() == "uring" {
            let wanted =
                ["no NVMe passthrough: it is a file, not a block device", "no polling: it is a file, not a block device"];
            assert_eq!(route.refusals, wanted);
        }
        assert_eq!(reactor.read(file, 0, page(0)).await.0.unwrap(), PAGE);
    };
    crate::reactor::thread::run_local(ReactorOptions::default(), main).unwrap();
    std::fs::remove_file(&path).unwrap();
}
