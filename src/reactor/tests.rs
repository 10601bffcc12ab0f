//! One suite over every driver: what the engine relies on must hold on all of them.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use super::driver::sim::{HostId, SimWorld};
use super::*;

/// A place to run the suite: makes a reactor, runs a future on it, names a fresh file.
trait Stage {
    fn run<F, Fut>(make: F) -> Fut::Output
    where
        F: FnOnce(Reactor) -> Fut,
        Fut: Future + 'static,
        Fut::Output: 'static;
    fn file(name: &str) -> PathBuf;
    fn address() -> SocketAddr;
    /// As `run`, beside a second reactor, which ends when what `make` gets for that is sent or dropped.
    fn run_beside<F, Fut>(make: F) -> Fut::Output
    where
        F: FnOnce(Reactor, Remote, sync::CrossSender<()>) -> Fut,
        Fut: Future + 'static,
        Fut::Output: 'static;
}

mod mail;
use mail::*;

struct OnPoll;
struct OnUring;

const ON_URING: ReactorOptions = ReactorOptions { driver: DriverChoice::Auto, overprovisioned: true };
const ON_POLL: ReactorOptions = ReactorOptions { driver: DriverChoice::Poll, overprovisioned: true };

fn run_beside_thread<F, Fut>(options: ReactorOptions, make: F) -> Fut::Output
where
    F: FnOnce(Reactor, Remote, sync::CrossSender<()>) -> Fut,
    Fut: Future + 'static,
    Fut::Output: 'static,
{
    let (stop, stopped) = sync::cross_oneshot();
    let main = |_| async move { _ = stopped.await };
    let (remote, thread) = thread::spawn_shard_thread(None, "neighbour", options, main).unwrap();
    let output = thread::run_local(options, |reactor| make(reactor, remote, stop)).unwrap();
    thread.join().unwrap();
    output
}

impl Stage for OnUring {
    fn run<F, Fut>(make: F) -> Fut::Output
    where
        F: FnOnce(Reactor) -> Fut,
        Fut: Future + 'static,
        Fut::Output: 'static,
    {
        // Where io_uring is refused this is the poll driver, with a warning: the suite must pass there too.
        thread::run_local(ON_URING, make).unwrap()
    }
    fn file(name: &str) -> PathBuf {
        temporary_file("uring", name)
    }
    fn address() -> SocketAddr {
        OnPoll::address()
    }
    fn run_beside<F, Fut>(make: F) -> Fut::Output
    where
        F: FnOnce(Reactor, Remote, sync::CrossSender<()>) -> Fut,
        Fut: Future + 'static,
        Fut::Output: 'static,
    {
        run_beside_thread(ON_URING, make)
    }
}

impl Stage for OnPoll {
    fn run<F, Fut>(make: F) -> Fut::Output
    where
        F: FnOnce(Reactor) -> Fut,
        Fut: Future + 'static,
        Fut::Output: 'static,
    {
        thread::run_local(ON_POLL, make).unwrap()
    }
    fn file(name: &str) -> PathBuf {
        temporary_file("poll", name)
    }
    fn address() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }
    fn run_beside<F, Fut>(make: F) -> Fut::Output
    where
        F: FnOnce(Reactor, Remote, sync::CrossSender<()>) -> Fut,
        Fut: Future + 'static,
        Fut::Output: 'static,
    {
        run_beside_thread(ON_POLL, make)
    }
}

struct OnSim;

impl Stage for OnSim {
    fn run<F, Fut>(make: F) -> Fut::Output
    where
        F: FnOnce(Reactor) -> Fut,
        Fut: Future + 'static,
        Fut::Output: 'static,
    {
        let world = SimWorld::new(1);
        let reactor = world.reactor(HostId(1));
        world.block_on(&reactor, make(reactor.clone()))
    }
    fn file(name: &str) -> PathBuf {
        PathBuf::from(name)
    }
    fn address() -> SocketAddr {
        OnPoll::address()
    }
    fn run_beside<F, Fut>(make: F) -> Fut::Output
    where
        F: FnOnce(Reactor, Remote, sync::CrossSender<()>) -> Fut,
        Fut: Future + 'static,
        Fut::Output: 'static,
    {
        let world = SimWorld::new(1);
        let (reactor, neighbour) = (world.reactor(HostId(1)), world.reactor(HostId(2)));
        let (stop, stopped) = sync::cross_oneshot();
        let ending = neighbour.clone();
        neighbour.spawn(Class::Normal, "main", async move {
            _ = stopped.await;
            ending.shut_down();
        });
        world.block_on(&reactor, make(reactor.clone(), neighbour.remote(), stop))
    }
}

fn temporary_file(driver: &str, name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("rustydb-reactor-{driver}-{name}-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

fn filled(len: usize, byte: u8) -> IoBuf {
    let mut buffer = IoBuf::aligned(len);
    buffer.as_mut_slice().fill(byte);
    buffer
}

fn timers_fire_in_order<S: Stage>() {
    let order = S::run(|reactor| async move {
        let order = Rc::new(RefCell::new(Vec::new()));
        for ms in [6u64, 2, 4, 2] {
            let (order, task) = (order.clone(), reactor.clone());
            reactor.spawn(Class::Normal, "timer", async move {
                task.sleep(Duration::from_millis(ms)).await;
                order.borrow_mut().push(ms);
            });
        }
        reactor.sleep(Duration::from_millis(20)).await;
        order.take()
    });
    assert_eq!(order, [2, 2, 4, 6]);
}

fn beats_of_several_tasks_fall_together_however_long_each_works<S: Stage>() {
    let beats = S::run(|reactor| async move {
        let beats = Rc::new(RefCell::new(Vec::new()));
        for (period_ms, works_ms) in [(4, 0), (8, 5), (16, 3)] {
            let (beats, task) = (beats.clone(), reactor.clone());
            reactor.spawn(Class::Normal, "beat", async move {
                task.sleep(Duration::from_millis(works_ms)).await;
                for _ in 0..3 {
                    let due = task.next_beat(Duration::from_millis(period_ms));
                    task.beat(Duration::from_millis(period_ms)).await;
                    assert!(task.now() >= due);
                    beats.borrow_mut().push((period_ms, due));
                    task.sleep(Duration::from_millis(works_ms)).await;
                }
            });
        }
        reactor.sleep(Duration::from_millis(150)).await;
        beats.take()
    });
    assert_eq!(beats.len(), 9);
    let (_, longest) = beats.iter().find(|(period_ms, _)| *period_ms == 16).expect("three of them");
    for (period_ms, due) in &beats {
        let apart = due.as_ns().abs_diff(longest.as_ns());
        assert!(apart.is_multiple_of(period_ms * 1_000_000), "beats of {period_ms} and 16 ms are {apart} ns apart");
    }
}

fn files_keep_what_was_written<S: Stage>() {
    let path = S::file("durable");
    S::run(|reactor| async move {
        let file = reactor.open(&path, OpenOptions::CREATE_NEW).await.unwrap();
        assert!(
            reactor.open(&path, OpenOptions::CREATE_NEW).await.is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists)
        );
        reactor.allocate(file, 64 * 1024).await.unwrap();
        assert_eq!(reactor.file_bytes(file).await.unwrap(), 64 * 1024);
        reactor.probe_durable_write(file, 0).await.unwrap();
        for method in [DurableMethod::Dsync, DurableMethod::WriteThenSync] {
            reactor.0.driver.borrow_mut().set_durable_method(file.0, method);
            let byte = 1 + method as u8;
            let (result, _) = reactor.write_durable(file, 8192, filled(8192, byte)).await;
            assert_eq!(result.unwrap(), 8192);
            let (result, buffer) = reactor.read(file, 4096, IoBuf::aligned(8192)).await;
            assert_eq!(result.unwrap(), 8192);
            assert_eq!((buffer.as_slice()[4095], buffer.as_slice()[4096]), (0, byte));
        }
        let (result, _) = reactor.write(file, 0, filled(4096, 9).slice(0..4096)).await;
        assert_eq!(result.unwrap(), 4096);
        reactor.sync(file).await.unwrap();
        let (result, _) = reactor.read(file, 60 * 1024, IoBuf::aligned(8192)).await;
        assert_eq!(result.unwrap(), 4096, "short at the end of the file");
        reactor.write_zeros(file, 0, 16 * 1024).await.unwrap();
        let (_, buffer) = reactor.read(file, 0, IoBuf::aligned(16 * 1024)).await;
        assert!(buffer.as_slice().iter().all(|byte| *byte == 0));
        reactor.close(file);
        let missing = reactor.open(&path.join("missing"), OpenOptions::READ).await.unwrap_err();
        assert!(missing.to_string().contains("missing"), "the error names the file: {missing}");
        let _ = std::fs::remove_file(&path);
    });
}

fn streams_carry_bytes_both_ways<S: Stage>() {
    S::run(|reactor| async move {
        let listener = reactor.listen(S::address()).await.unwrap();
        let address = listener.address();
        let taken = reactor.listen(address).await.map(|_| ()).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        assert!(taken.to_string().contains(&address.to_string()), "{taken}");
        reactor.spawn(Class::High, "echo", async move {
            let (stream, _) = listener.accept().await.unwrap();
            loop {
                let (result, mut buffer) = stream.recv(IoBuf::from_vec(vec![0; 10_000])).await;
                match result.unwrap() {
                    0 => break,
                    count => buffer.truncate(count),
                }
                let (result, _) = stream.send(buffer).await;
                result.unwrap();
            }
        });
        let stream = reactor.connect(address).await.unwrap();
        assert_eq!(stream.peer(), address);
        // Larger than any socket buffer, so that both directions stall and go on.
        let parts: Vec<IoBuf> = (0..64u8).map(|part| filled(64 * 1024 + usize::from(part), part)).collect();
        let total: usize = parts.iter().map(IoBuf::len).sum();
        let sender = stream.clone();
        let sending = reactor.spawn(Class::Normal, "send", async move {
            let (result, parts) = sender.send_vectored(parts).await;
            result.unwrap();
            assert_eq!(parts.len(), 64);
            sender.shutdown();
        });
        let (result, buffer) = stream.recv_exact(IoBuf::from_vec(vec![0; total])).await;
        result.unwrap();
        let mut at = 0;
        for part in 0..64u8 {
            let len = 64 * 1024 + usize::from(part);
            assert!(buffer.as_slice()[at..at + len].iter().all(|byte| *byte == part), "part {part}");
            at += len;
        }
        let (result, _) = stream.recv_exact(IoBuf::from_vec(vec![0; 1])).await;
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        sending.join().await;
    });
}

/// Where the kernel can; streams carry what they carry, and timers fire.
#[test]
fn a_ring_that_polls_devices_still_hears_of_everything() {
    OnUring::run(|reactor| async move {
        if let Err(error) = reactor.busy_poll(Duration::from_micros(50)) {
            // The poll driver, or an older kernel.
            assert!(matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput), "{error}");
        }
        let listener = reactor.listen(OnUring::address()).await.unwrap();
        let stream = reactor.connect(listener.address()).await.unwrap();
        let (peer, _) = listener.accept().await.unwrap();
        for round in 0..20u8 {
            stream.send(IoBuf::from_vec(vec![round; 64])).await.0.unwrap();
            let (result, buffer) = peer.recv_exact(IoBuf::from_vec(vec![0; 64])).await;
            result.unwrap();
            assert_eq!(buffer.as_slice(), [round; 64]);
            reactor.sleep(Duration::from_micros(200)).await;
        }
    });
}

fn connecting_to_nobody_is_an_error<S: Stage>() {
    S::run(|reactor| async move {
        let address = reactor.listen(S::address()).await.unwrap().address();
        let error = reactor.connect(address).await.map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    });
}

/// The buffer of a dropped receive stays with the driver until the stream is closed, then it is let go.
fn an_aborted_operation_keeps_its_buffer<S: Stage>() {
    S::run(|reactor| async move {
        let listener = reactor.listen(S::address()).await.unwrap();
        let stream = reactor.connect(listener.address()).await.unwrap();
        let (peer, _) = listener.accept().await.unwrap();
        let memory: Rc<Vec<Cell<u8>>> = Rc::new(vec![Cell::new(0); 4096]);
        let pointer = std::ptr::NonNull::new(memory.as_ptr() as *mut u8).unwrap();
        // SAFETY: the guard owns the cells, which are writable while shared.
        let buffer = unsafe { IoBuf::from_raw(pointer, 4096, memory.clone()) };
        let receiving = reactor.spawn(Class::Normal, "receive", async move {
            let _ = stream.recv(buffer).await;
            unreachable!("aborted");
        });
        reactor.sleep(Duration::from_millis(5)).await;
        let in_flight = Rc::strong_count(&memory);
        receiving.abort();
        assert!(receiving.is_finished());
        assert_eq!((in_flight, Rc::strong_count(&memory)), (2, 2), "the driver still has the buffer");
        while Rc::strong_count(&memory) > 1 {
            reactor.sleep(Duration::from_millis(1)).await;
        }
        drop(peer);
    });
}

fn mail_wakes_a_sleeping_reactor<S: Stage>() {
    S::run(|reactor| async move {
        let remote = reactor.remote();
        let (to_shard, from_thread) = sync::cross_oneshot::<u32>();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            let doubled = remote.call(Class::High, "double", |reactor| async move {
                reactor.yield_now().await;
                21 * 2
            });
            to_shard.send(doubled.unwrap().wait().unwrap());
        });
        // Also shows that a waker works from another thread.
        assert_eq!(from_thread.await, Ok(42));
        thread.join().unwrap();
        assert_eq!(reactor.stats().mail_received, 1);
    });
}

macro_rules! suite {
    ($stage:ident: $($test:ident)*) => { $(#[test] fn $test() { super::$test::<super::$stage>(); })* };
}

mod on_uring {
    suite!(OnUring: timers_fire_in_order beats_of_several_tasks_fall_together_however_long_each_works
        files_keep_what_was_written streams_carry_bytes_both_ways connecting_to_nobody_is_an_error
        an_aborted_operation_keeps_its_buffer many_operations_at_once_in_registered_memory an_ending_reactor_gives_memory_back
        mail_wakes_a_sleeping_reactor shards_call_each_other a_full_ring_refuses_and_room_is_awaited a_full_mailbox_takes_what_ends_something
        callers_learn_that_a_shard_has_ended letters_of_an_ended_shard_are_still_read);
}

mod on_sim {
    suite!(OnSim: timers_fire_in_order beats_of_several_tasks_fall_together_however_long_each_works
        files_keep_what_was_written streams_carry_bytes_both_ways connecting_to_nobody_is_an_error
        an_aborted_operation_keeps_its_buffer many_operations_at_once_in_registered_memory an_ending_reactor_gives_memory_back
        shards_call_each_other a_full_ring_refuses_and_room_is_awaited a_full_mailbox_takes_what_ends_something callers_learn_that_a_shard_has_ended
        letters_of_an_ended_shard_are_still_read);
}

mod on_poll {
    suite!(OnPoll: timers_fire_in_order beats_of_several_tasks_fall_together_however_long_each_works
        files_keep_what_was_written streams_carry_bytes_both_ways connecting_to_nobody_is_an_error
        an_aborted_operation_keeps_its_buffer many_operations_at_once_in_registered_memory an_ending_reactor_gives_memory_back
        mail_wakes_a_sleeping_reactor shards_call_each_other a_full_ring_refuses_and_room_is_awaited a_full_mailbox_takes_what_ends_something
        callers_learn_that_a_shard_has_ended letters_of_an_ended_shard_are_still_read);
}

#[test]
fn a_stopped_reactor_refuses_mail_and_its_callers_learn_it() {
    let (remote, never) = OnPoll::run(|reactor| async move {
        let never = reactor.remote().call(Class::Low, "never", |_| std::future::pending::<()>()).unwrap();
        reactor.yield_now().await;
        (reactor.remote(), never)
    });
    assert_eq!(never.wait(), Err(sync::Closed));
    assert_eq!(remote.post(Box::new(|_| ())), Err(MailError::Closed));
}

/// On virtual time every poll costs the same, so that shares of time are shares of polls.
#[test]
fn classes_share_a_busy_core_by_their_shares() {
    let polls = OnSim::run(|reactor| async move {
        for class in Class::ALL {
            for _ in 0..3 {
                let task = reactor.clone();
                reactor.spawn(class, "busy", async move {
                    loop {
                        task.yield_now().await;
                    }
                });
            }
        }
        reactor.sleep(Duration::from_millis(2)).await;
        reactor.stats().polls
    });
    let of_low = |class: Class| polls[class as usize] as f64 / polls[Class::Low as usize] as f64;
    for class in Class::ALL {
        let (expected, found) = (class.shares() as f64, of_low(class));
        assert!((found / expected - 1.0).abs() < 0.05, "{class:?} has {found} times the polls of Low, not {expected}");
    }
}

#[test]
fn a_task_may_abort_itself_and_what_it_spawned() {
    OnPoll::run(|reactor| async move {
        let own = Rc::new(RefCell::new(None::<TaskHandle>));
        let dropped = Rc::new(Cell::new(false));
        struct SetOnDrop(Rc<Cell<bool>>);
        impl Drop for SetOnDrop {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        let (slot, guard) = (own.clone(), SetOnDrop(dropped.clone()));
        let handle = reactor.spawn(Class::Normal, "suicidal", async move {
            let _guard = guard;
            if let Some(handle) = &*slot.borrow() {
                handle.abort();
            }
            std::future::pending::<()>().await;
        });
        *own.borrow_mut() = Some(handle);
        reactor.yield_now().await;
        reactor.yield_now().await;
        assert!(dropped.get());
        assert!(own.borrow().as_ref().unwrap().is_finished());
        assert_eq!(reactor.stats().tasks, 1);
    });
}

/// More at once than the ring has entries, into memory that is registered.
fn many_operations_at_once_in_registered_memory<S: Stage>() {
    let path = S::file("many");
    S::run(|reactor| async move {
        let file = reactor.open(&path, OpenOptions::CREATE).await.unwrap();
        let count = 3000u64;
        let arena = Rc::new(IoBuf::aligned(count as usize * 4096));
        // SAFETY: the arena is leaked below, so it lives as long as the reactor.
        let registered = unsafe { reactor.register_memory(arena.as_ptr(), arena.len()) };
        if let Err(error) = registered {
            eprintln!("memory is not registered (RLIMIT_MEMLOCK?), the rest is tested all the same: {error}");
        }
        std::mem::forget(arena.clone());
        let done = Rc::new(Cell::new(0));
        for page in 0..count {
            let (task, arena, done) = (reactor.clone(), arena.clone(), done.clone());
            reactor.spawn(Class::Low, "page", async move {
                let pointer = std::ptr::NonNull::new(arena.as_ptr().cast_mut()).unwrap();
                // SAFETY: each task has its own page of the arena, which the guard keeps.
                let mut buffer = unsafe { IoBuf::from_raw(pointer.add(page as usize * 4096), 4096, arena) };
                buffer.as_mut_slice().fill(page as u8 | 1);
                let (result, mut buffer) = task.write(file, page * 4096, buffer).await;
                assert_eq!(result.unwrap(), 4096);
                buffer.as_mut_slice().fill(0);
                let (result, buffer) = task.read(file, page * 4096, buffer).await;
                assert_eq!(result.unwrap(), 4096);
                assert!(buffer.as_slice().iter().all(|byte| *byte == page as u8 | 1));
                done.set(done.get() + 1);
            });
        }
        while done.get() < count {
            reactor.sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(reactor.stats().operations_in_flight, 0);
        let _ = std::fs::remove_file(&path);
    });
}

/// A reactor that ends with operations in flight: their memory is given back, and nothing is written into it later.
fn an_ending_reactor_gives_memory_back<S: Stage>() {
    let memory = S::run(|reactor| async move {
        let listener = reactor.listen(S::address()).await.unwrap();
        let stream = reactor.connect(listener.address()).await.unwrap();
        let memory = Rc::new(vec![Cell::new(0u8); 4096]);
        let pointer = std::ptr::NonNull::new(memory.as_ptr() as *mut u8).unwrap();
        // SAFETY: the guard owns the cells, which are writable while shared.
        let buffer = unsafe { IoBuf::from_raw(pointer, 4096, memory.clone()) };
        let task = reactor.clone();
        reactor.spawn(Class::Normal, "receive", async move {
            let _listener = (listener, task);
            let _ = stream.recv(buffer).await;
        });
        reactor.sleep(Duration::from_millis(5)).await;
        assert_eq!(Rc::strong_count(&memory), 2);
        memory
    });
    assert_eq!(Rc::strong_count(&memory), 1);
}

#[test]
fn a_task_that_holds_the_core_is_counted() {
    let stalls = OnPoll::run(|reactor| async move {
        reactor.spawn(Class::Low, "long", async { std::thread::sleep(STALL_LIMIT * 2) }).join().await;
        reactor.yield_now().await;
        (reactor.stats().stalls, reactor.stats().poll_us_max)
    });
    assert!(stalls.0 >= 1 && stalls.1 >= 50_000, "{stalls:?}");
}

/// Where a filter refuses io_uring, the reactor says so and goes on with poll. The filter holds for one thread.
#[test]
fn a_refused_ring_falls_back_to_poll_and_names_the_filter() {
    let refused = std::thread::spawn(|| {
        let statement =
            |code: u32, jump_false: u8, value: u32| libc::sock_filter { code: code as u16, jt: 0, jf: jump_false, k: value };
        let mut program = [
            statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
            statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, libc::SYS_io_uring_setup as u32),
            statement(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
            statement(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: the program is live during the calls; it changes only which system calls this thread may make.
        let installed = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter) == 0
        };
        assert!(installed, "{}", io::Error::last_os_error());
        let name = Reactor::new(ReactorOptions::default()).unwrap().driver_name();
        let demanded = ReactorOptions { driver: DriverChoice::Uring, ..ReactorOptions::default() };
        (name, Reactor::new(demanded).map(|_| ()).unwrap_err().to_string())
    });
    let (name, error) = refused.join().unwrap();
    assert_eq!(name, "poll");
    assert!(error.contains("seccomp") || error.contains("sysctl"), "{error}");
}

#[test]
fn what_is_tied_in_a_circle_is_untied_at_the_end() {
    struct Circle(RefCell<Option<Rc<Circle>>>);
    let kept = thread::run_local(ReactorOptions::default(), |reactor| async move {
        let circle = Rc::new(Circle(RefCell::new(None)));
        *circle.0.borrow_mut() = Some(circle.clone());
        let weak = Rc::downgrade(&circle);
        let ended = weak.clone();
        reactor.at_end(move || drop(ended.upgrade().and_then(|circle| circle.0.take())));
        weak
    });
    assert!(kept.unwrap().upgrade().is_none());
}
