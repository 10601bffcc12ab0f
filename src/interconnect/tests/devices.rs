//! What only real devices can show: packets that are lost, a process that is gone, and one that may lock little memory. Runs where
//! devices are named (`RUSTYDB_TEST_RDMA`, two addresses; `hw-tests/rdma-in-vm`).

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::Instant;

use super::bed::{Node, Transport, device_addresses, on_drivers};
use super::*;
use crate::reactor::thread::run_local;
use crate::reactor::{DriverChoice, ReactorOptions};

/// Ends the process whatever becomes of the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command without holding the reactor up: its heartbeats go on.
async fn shell(reactor: &Reactor, variable: &str) {
    let command = std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is to be set with RUSTYDB_TEST_CUT"));
    let mut process = Command::new("sh").args(["-c", &command]).spawn().unwrap();
    let status = loop {
        if let Some(status) = process.try_wait().unwrap() {
            break status;
        }
        reactor.sleep(Duration::from_millis(10)).await;
    };
    assert!(status.success(), "{command}");
}

fn patient(mut settings: Settings) -> Settings {
    settings.heartbeat_interval = Duration::from_millis(200);
    settings.heartbeat_timeout = Duration::from_secs(5);
    settings
}

fn on_a_device<F: Future<Output = ()> + 'static>(make: impl Fn(Reactor) -> F) {
    let Some(addresses) = device_addresses() else { return println!("no RDMA devices are named") };
    // What happened is worth knowing when it took an emulated processor a minute.
    let _ = tracing_subscriber::fmt().with_test_writer().with_max_level(tracing::Level::INFO).try_init();
    on_drivers(Transport::Device(addresses), make);
}

async fn by_rdma(cluster: &Cluster, node: &Node) {
    let so = || node.net.stats().peers.iter().any(|peer| peer.by_rdma);
    for _ in 0..6 {
        if so() {
            return;
        }
        cluster.patient_until(so).await;
    }
    panic!("never by RDMA: {:?}", node.net.stats());
}

impl Cluster {
    async fn patient_until(&self, is_so: impl Fn() -> bool) {
        for _ in 0..3_000 {
            if is_so() {
                return;
            }
            self.reactor.sleep(Duration::from_millis(10)).await;
        }
    }
}

#[test]
fn a_partition_that_swallows_roce_alone_is_bridged_by_tcp() {
    if std::env::var_os("RUSTYDB_TEST_CUT").is_none() {
        return println!("RUSTYDB_TEST_CUT, what loses RoCE's packets here, is not set: no partition");
    }
    on_a_device(|reactor| async move {
        let cluster = Cluster::new(&reactor, 2);
        let one = cluster.start(patient(cluster.settings(1, 1))).await;
        let two = cluster.start(patient(cluster.settings(2, 1))).await;
        two.net.all_up().await;
        by_rdma(&cluster, &one).await;
        by_rdma(&cluster, &two).await;
        for round in 0..50 {
            two.net.send(NodeId(1), small(round), Body::Empty).unwrap();
        }
        cluster.until("the messages before", || one.seen.count.get() == 50).await;
        shell(&reactor, "RUSTYDB_TEST_CUT").await;
        for round in 50..150 {
            let (message, body) = block(round);
            two.net.send(NodeId(1), Message { argument: round, ..message }, body).unwrap();
            one.net.send(NodeId(2), small(round), Body::Bytes(vec![7; 20_000])).unwrap();
        }
        cluster.patient_until(|| one.seen.count.get() == 150).await;
        cluster.patient_until(|| two.seen.count.get() == 100).await;
        let arguments: Vec<u64> = one.seen.messages.borrow().iter().map(|(_, header, _)| header.argument).collect();
        let mended = one.net.stats().peers[0].by_rdma;
        shell(&reactor, "RUSTYDB_TEST_MEND").await;
        assert_eq!(arguments, (0..150).collect::<Vec<u64>>());
        assert_eq!(two.seen.count.get(), 100);
        assert!(!mended, "RoCE's packets were to be lost");
        assert!(one.seen.downs.borrow().is_empty() && two.seen.downs.borrow().is_empty(), "the connection held");
        assert!(two.net.stats().rdma.unwrap().sent_again > 0);
        by_rdma(&cluster, &two).await;
        by_rdma(&cluster, &one).await;
        [&one, &two].iter().for_each(|node| node.net.close());
    });
}

/// The process that is killed: node 2.
#[test]
fn the_other_process() {
    let Ok(addresses) = std::env::var("RUSTYDB_TEST_PEER") else { return };
    let addresses: Vec<SocketAddr> = addresses.split(',').map(|address| address.parse().unwrap()).collect();
    on_a_device(move |reactor| {
        let addresses = addresses.clone();
        async move {
            let cluster = Cluster { reactor: reactor.clone(), addresses };
            let two = cluster.start(patient(cluster.settings(2, u64::from(std::process::id())))).await;
            two.net.all_up().await;
            by_rdma(&cluster, &two).await;
            for round in 0u64.. {
                let (message, body) = block(round);
                let sent = two.net.send(NodeId(1), Message { argument: round, ..message }, body);
                reactor.sleep(Duration::from_millis(if sent.is_ok() { 1 } else { 100 })).await;
            }
        }
    });
}

#[test]
fn a_peer_that_crashes_is_lost_and_its_next_life_comes_back_by_rdma() {
    on_a_device(|reactor| async move {
        let cluster = Cluster::new(&reactor, 2);
        let one = cluster.start(patient(cluster.settings(1, 1))).await;
        let list = format!("{},{}", cluster.addresses[0], cluster.addresses[1]);
        let start = || {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "interconnect::tests::devices::the_other_process", "--nocapture"]);
            Process(command.env("RUSTYDB_TEST_PEER", &list).spawn().unwrap())
        };
        for life in 1..=2usize {
            let process = start();
            let before = one.seen.count.get();
            for _ in 0..6 {
                cluster.patient_until(|| one.seen.count.get() > before + 100).await;
            }
            assert!(one.net.stats().blocks_rdma.received > 50, "{:?}", one.net.stats());
            drop(process);
            cluster.patient_until(|| one.seen.downs.borrow().len() == life).await;
            assert_eq!((one.seen.ups.borrow().len(), one.seen.downs.borrow().len()), (life, life));
        }
        // Of each life, what came came in order and once.
        let arguments: Vec<u64> = one.seen.messages.borrow().iter().map(|(_, header, _)| header.argument).collect();
        let restarts = arguments.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
        assert_eq!((restarts, arguments[0]), (1, 0));
        one.net.close();
    });
}

/// RLIMIT_MEMLOCK of a process that may lock no more: enough for one shard's device of what is asked for here, not for two.
const MEMLOCK_BYTES: u64 = 8 << 20;

/// In the process that may lock little: each shard has a device of its own.
#[test]
fn shards_that_may_lock_little_memory() {
    if std::env::var_os("RUSTYDB_TEST_MEMLOCK").is_none() {
        return;
    }
    let address = SocketAddr::new(device_addresses().expect("devices")[0], 0);
    let options = ReactorOptions { driver: DriverChoice::Poll, overprovisioned: true };
    let run = |reactor: Reactor| async move {
        let shard = || {
            let own = Cluster::new(&reactor, 1);
            let net = Interconnect::new(&reactor, &ScnClock::new(), own.settings(1, 1));
            (net.use_device(address, 3, false, Duration::ZERO), net)
        };
        let [first, second, third] = [shard(), shard(), shard()];
        assert!(first.0.is_ok(), "{:?}", first.0);
        for (opened, net) in [second, third] {
            let why = opened.expect_err("more than the limit allows");
            assert!(why.contains("RLIMIT_MEMLOCK allows 8388608") && why.contains("LimitMEMLOCK=infinity"), "{why}");
            // The others' count, too: what is asked for alone would fit.
            let numbers: Vec<u64> = why.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
            let [asked, locked, limit, ..] = numbers[..] else { panic!("{why}") };
            assert!(asked < limit && asked + locked > limit, "{why}");
            assert!(!net.has_rdma(), "it goes by TCP");
        }
    };
    run_local(options, run).expect("the poll driver starts");
    println!("said, and went on");
}

/// A device that can't be had is an error, whatever was there of it when it failed. (It kept its shard for ever.)
#[test]
fn a_shard_whose_device_may_not_lock_its_memory_says_so_and_goes_on() {
    if device_addresses().is_none() {
        return println!("no RDMA devices are named");
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "interconnect::tests::devices::shards_that_may_lock_little_memory", "--nocapture"]);
    command.env("RUSTYDB_TEST_MEMLOCK", "1");
    let confine = || {
        /// linux/capability.h
        const CAP_IPC_LOCK: libc::c_ulong = 14;
        let limit = libc::rlimit { rlim_cur: MEMLOCK_BYTES, rlim_max: MEMLOCK_BYTES };
        // SAFETY: the limit is live during the call; the other takes no pointers.
        let done = unsafe {
            // root would get it back with the next program.
            libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) == 0 && libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0) == 0
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec it makes two system calls, and allocates nothing.
    let mut process = Process(unsafe { command.pre_exec(confine) }.spawn().unwrap());
    let until = Instant::now() + Duration::from_secs(120);
    let status = loop {
        if let Some(status) = process.0.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < until, "the shard hangs");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(status.success(), "{status}");
}
