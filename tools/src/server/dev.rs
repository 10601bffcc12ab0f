//! A whole cluster on one machine: formats the volume, starts each node as a child process and keeps them running.
//!
//! One thread, one loop. A node that ends by itself is started again and joins the others, which have gone on without it;
//! one that does not come to serve is not started more than [`RESTARTS_MAX`] times in a row.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use rustydb::config::{ServerConfig, VOLUME_FILE_NAME};
use rustydb::ids::BLOCK_SIZE;
use rustydb::volume::FormatOptions;
use rustydb_shm::statistics;

use super::args::DevOptions;
use super::{Failure, init};
use crate::http;

/// What the system allows for a Unix socket's path.
const SOCKET_PATH_BYTES_MAX: usize = 107;
const CLUSTER_NAME: &str = "dev";
const RESTARTS_MAX: u32 = 5;
const START_WITHIN: Duration = Duration::from_secs(120);
const STOP_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const PORTS_FREE_WITHIN: Duration = Duration::from_secs(3);

/// Signals to stop received so far; the handler may only count.
static STOPS: AtomicU32 = AtomicU32::new(0);

struct Node {
    number: u8,
    config: PathBuf,
    log: PathBuf,
    http: SocketAddr,
    child: Option<Child>,
    /// Of the last child, also when it has ended.
    pid: Option<u32>,
    started: Instant,
    /// Restarts since it has served last.
    restarts: u32,
}

/// Runs the cluster until it is told to stop.
pub(super) fn run(options: &DevOptions) -> Result<(), Failure> {
    let folder = &options.data_dir;
    fs::create_dir_all(folder)
        .map_err(|error| Failure::input(format!("can't make the data folder {}: {error}", folder.display())))?;
    let _claim = claim(folder)?;
    check_ports(options)?;
    let volume = folder.join(VOLUME_FILE_NAME);
    if is_formatted(&volume) {
        println!("Found the volume {}", volume.display());
    } else {
        let format = FormatOptions {
            nodes_max: options.nodes.max(8),
            shards: options.shards,
            volume_bytes: options.volume_size.0,
            init_zero: options.init_zero.into(),
            ..FormatOptions::new(CLUSTER_NAME)
        };
        init::format(&volume, &format)?;
    }
    catch_signals();
    let mut nodes = Vec::new();
    for number in 1..=options.nodes {
        let config = folder.join(format!("node{number}.toml"));
        write_config(options, number, &config)?;
        let log = folder.join(format!("node{number}.log"));
        nodes.push(Node {
            number,
            config,
            log,
            http: address(number, options.http_port),
            child: None,
            pid: None,
            started: Instant::now(),
            restarts: 0,
        });
    }
    let outcome = supervise(options, &mut nodes);
    stop(&mut nodes);
    forget_statistics(&nodes);
    outcome
}

/// Whether there is a volume whose formatting has come to its end. Ctrl-C may have ended it before: the superblock, which is the first
/// block and written last, is empty then.
fn is_formatted(volume: &Path) -> bool {
    let mut superblock = [0; BLOCK_SIZE];
    match File::open(volume).and_then(|file| file.read_exact_at(&mut superblock, 0)) {
        Ok(()) => superblock.iter().any(|byte| *byte != 0),
        // Whatever is there, the nodes will say what is wrong with it.
        Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof),
    }
}

fn address(node: u8, port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(127, 0, 0, node), port))
}

/// Two supervisors on one folder would start every node twice; a lock that dies with us prevents it.
fn claim(folder: &Path) -> Result<File, Failure> {
    let path = folder.join("supervisor.lock");
    let file = File::create(&path).map_err(|error| Failure::input(format!("can't write {}: {error}", path.display())))?;
    // SAFETY: flock on a descriptor that we own.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        return Err(Failure::input(format!(
            "{} is in use: another `rusty-db-server dev` runs on this data folder; stop it first, or give another --data-dir",
            folder.display()
        )));
    }
    Ok(file)
}

/// The ports of every node, each with the flag that chooses it. One port can't be two of them.
fn ports(options: &DevOptions) -> Result<BTreeMap<u16, &'static str>, Failure> {
    let shard_port = |shard| options.interconnect_port.checked_add(u16::from(shard)).filter(|port| *port != 0);
    let interconnect = (0..options.shards).map(|shard| (shard_port(shard), "--interconnect-port"));
    let one = |port, flag| (Some(port).filter(|port| *port != 0), flag);
    let native = Some(one(options.native_port, "--native-port")).filter(|_| options.native_port != 0);
    let clients = [one(options.pg_port, "--pg-port"), one(options.http_port, "--http-port")].into_iter().chain(native);
    let mut ports = BTreeMap::new();
    for (port, flag) in clients.chain(interconnect) {
        let Some(port) = port else {
            return Err(Failure::input(format!(
                "{flag} leads beyond the ports that there are: choose one from 1 to 65535 less the shards"
            )));
        };
        if let Some(other) = ports.insert(port, flag) {
            return Err(Failure::input(format!("{flag} and {other} both use port {port}: choose another for one of them")));
        }
    }
    Ok(ports)
}

fn check_ports(options: &DevOptions) -> Result<(), Failure> {
    let ports = ports(options)?;
    for number in 1..=options.nodes {
        for (&port, flag) in &ports {
            let address = address(number, port);
            // Nodes that were just killed keep their ports for a moment.
            let until = Instant::now() + PORTS_FREE_WITHIN;
            while let Err(error) = TcpListener::bind(address) {
                if Instant::now() > until {
                    let what = format!("node{number} can't listen on {address}: {error}");
                    return Err(Failure::input(format!("{what}; free the port or choose another with {flag}")));
                }
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }
    Ok(())
}

fn write_config(options: &DevOptions, number: u8, path: &Path) -> Result<(), Failure> {
    let storage =
        fs::canonicalize(&options.data_dir).map_err(|error| Failure::new(format!("{}: {error}", options.data_dir.display())))?;
    let members: String =
        (1..=options.nodes).map(|node| format!("node{node} = \"{}\"\n", address(node, options.interconnect_port))).collect();
    let text = format!(
        "# Written by `rusty-db-server dev` at each start; changes made here are lost.\n\
         [cluster]\ncluster_name = \"{CLUSTER_NAME}\"\nnode_id = \"node{number}\"\n\n\
         [cluster.nodes]\n{members}\n\
         [rac.storage]\nshared_storage_path = {storage:?}\n\n\
         [rac.cache_fusion]\nglobal_cache_size = {cache}\n\n\
         [server]\npg_address = \"{pg}\"\nhttp_address = \"{http}\"\n{native}\n\
         [engine]\nshards = {shards}\noverprovisioned = true\nio_driver = \"{driver}\"\n",
        cache = options.cache_size.0,
        native = native(options, number, &storage),
        pg = address(number, options.pg_port),
        http = address(number, options.http_port),
        shards = options.shards,
        driver = options.io_driver,
    );
    fs::write(path, text).map_err(|error| Failure::new(format!("can't write {}: {error}", path.display())))
}

/// Where a node's native clients come in.
fn native(options: &DevOptions, number: u8, folder: &Path) -> String {
    let mut lines = String::new();
    let socket = folder.join(format!("node{number}.native"));
    if socket.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        lines += &format!("native_socket = {socket:?}\n");
    }
    if options.native_port != 0 {
        lines += &format!("native_address = \"{}\"\n", address(number, options.native_port));
    }
    lines
}

fn catch_signals() {
    extern "C" fn count(_signal: libc::c_int) {
        STOPS.fetch_add(1, Ordering::Relaxed);
    }
    let handler = count as extern "C" fn(libc::c_int);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only touches an atomic.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

fn supervise(options: &DevOptions, nodes: &mut [Node]) -> Result<(), Failure> {
    for node in nodes.iter_mut() {
        start(node)?;
    }
    let started = Instant::now();
    if !wait_until_healthy(nodes)? {
        return Ok(());
    }
    announce(options, nodes, started.elapsed());
    // Nodes that were started again and don't serve yet.
    let mut joining = BTreeSet::new();
    while STOPS.load(Ordering::Relaxed) == 0 {
        for node in nodes.iter_mut() {
            if let Some(status) = ended(node)? {
                if status.code() == Some(i32::from(Failure::REMOVED)) {
                    println!("node{} is not started again: {}", node.number, last_line(&node.log));
                    node.child = None;
                    continue;
                }
                if status.success() {
                    println!(
                        "node{} was stopped; start it again with: rusty-db-server --config {}",
                        node.number,
                        node.config.display()
                    );
                    node.child = None;
                    continue;
                }
                restart(node, status, &options.data_dir)?;
                joining.insert(node.number);
            } else if joining.contains(&node.number)
                && http::health(node.http, LOOK_EVERY).is_ok_and(|health| health.status == "healthy")
            {
                joining.remove(&node.number);
                node.restarts = 0;
                println!("node{} serves again, {:.1} s after its start", node.number, node.started.elapsed().as_secs_f64());
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Starts a node that has ended by itself.
fn restart(node: &mut Node, status: ExitStatus, folder: &Path) -> Result<(), Failure> {
    let number = node.number;
    node.restarts += 1;
    if node.restarts > RESTARTS_MAX {
        return Err(Failure::new(format!(
            "node{number} ended {} times in a row without serving, last with {status}; see its log in {}",
            node.restarts,
            folder.display()
        )));
    }
    println!("node{number} ended ({status}): {}", last_line(&node.log));
    println!("node{number} is started again; the others go on meanwhile");
    start(node)
}

fn start(node: &mut Node) -> Result<(), Failure> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(&node.log)
        .map_err(|error| Failure::new(format!("{}: {error}", node.log.display())))?;
    let errors = log.try_clone().map_err(Failure::new)?;
    let program = std::env::current_exe().map_err(Failure::new)?;
    let mut command = Command::new(program);
    command.arg("--config").arg(&node.config).stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
    // SAFETY: prctl is async-signal-safe; a node must not outlive a supervisor that was killed.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        })
    };
    node.started = Instant::now();
    let child = command.spawn().map_err(|error| Failure::new(format!("can't start node{}: {error}", node.number)))?;
    (node.pid, node.child) = (Some(child.id()), Some(child));
    Ok(())
}

/// Waits until every node says it is healthy; `false` when told to stop meanwhile.
fn wait_until_healthy(nodes: &mut [Node]) -> Result<bool, Failure> {
    let spinner = ProgressBar::new_spinner()
        .with_style(ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("a valid template"));
    let until = Instant::now() + START_WITHIN;
    loop {
        if STOPS.load(Ordering::Relaxed) > 0 {
            return Ok(false);
        }
        let mut waiting = Vec::new();
        for node in nodes.iter_mut() {
            if let Some(status) = ended(node)? {
                if status.code() == Some(i32::from(Failure::REMOVED)) {
                    println!("node{} takes no part: {}", node.number, last_line(&node.log));
                    node.child = None;
                    continue;
                }
                spinner.finish_and_clear();
                return Err(Failure::new(format!(
                    "node{} did not start ({status}): {}\nThe whole log is in {}",
                    node.number,
                    last_line(&node.log),
                    node.log.display()
                )));
            }
            if node.child.is_none() {
                continue;
            }
            match http::health(node.http, Duration::from_millis(500)) {
                Ok(health) if health.status == "healthy" => {}
                Ok(health) => waiting.push(format!("node{} {} {}", node.number, health.status, health.detail)),
                Err(_) => waiting.push(format!("node{} starting", node.number)),
            }
        }
        if waiting.is_empty() {
            spinner.finish_and_clear();
            return Ok(true);
        }
        if Instant::now() > until {
            spinner.finish_and_clear();
            return Err(Failure::new(format!(
                "the cluster is not up after {} s: {}",
                START_WITHIN.as_secs(),
                waiting.join("; ")
            )));
        }
        spinner.set_message(waiting.join("; "));
        spinner.tick();
        std::thread::sleep(LOOK_EVERY);
    }
}

fn announce(options: &DevOptions, nodes: &[Node], took: Duration) {
    let serving = nodes.iter().filter(|node| node.child.is_some()).count();
    println!(
        "\nRustyDB is up: {} node{} on one volume, started in {:.1} s\n",
        serving,
        if serving == 1 { "" } else { "s" },
        took.as_secs_f64()
    );
    for node in nodes {
        let Some(pid) = node.child.as_ref().map(Child::id) else { continue };
        println!(
            "  node{}  psql -h 127.0.0.{} -p {} -U postgres postgres   http://{}/api/v1/health   pid {pid}",
            node.number, node.number, options.pg_port, node.http
        );
    }
    println!("\nLogs: {}/node*.log   Ctrl-C stops the cluster cleanly.\n", options.data_dir.display());
    io::stdout().flush().ok();
}

fn ended(node: &mut Node) -> Result<Option<ExitStatus>, Failure> {
    let Some(child) = &mut node.child else { return Ok(None) };
    child.try_wait().map_err(|error| Failure::new(format!("can't ask after node{}: {error}", node.number)))
}

/// Asks all nodes to stop, waits for them, and kills what does not stop in time or when asked a second time.
fn stop(nodes: &mut [Node]) {
    let asked = STOPS.load(Ordering::Relaxed);
    if nodes.iter().any(|node| node.child.is_some()) && asked > 0 {
        println!("Stopping; once more Ctrl-C kills the nodes");
    }
    for child in nodes.iter().filter_map(|node| node.child.as_ref()) {
        // SAFETY: the child is ours and not yet waited for, so its id is still its own.
        unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
    }
    let until = Instant::now() + STOP_WITHIN;
    for node in nodes.iter_mut() {
        let Some(mut child) = node.child.take() else { continue };
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() > until || STOPS.load(Ordering::Relaxed) > asked.max(1) {
                println!("killing node{}", node.number);
                child.kill().ok();
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// What the nodes have left in shared memory: of a node in production it stays, to be looked at.
fn forget_statistics(nodes: &[Node]) {
    let folder = ServerConfig::default().statistics_folder;
    let here = statistics::own_process().namespace;
    for path in statistics::find(&folder).unwrap_or_default() {
        let Ok(header) = statistics::Reader::open(&path).and_then(|reader| reader.snapshot()).map(|it| it.header) else {
            continue;
        };
        let ours = |node: &Node| node.pid == Some(header.process.pid) && u16::from(node.number) == header.node;
        // Numbers of processes are used again, and are others in other containers.
        let from_here = header.process.namespace == here && header.cluster == CLUSTER_NAME;
        if from_here && nodes.iter().any(ours) {
            fs::remove_file(path).ok();
        }
    }
}

fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("its log is empty").to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::{Arguments, Command};
    use super::*;

    fn of(arguments: &[&str]) -> Result<Vec<u16>, String> {
        let all = ["rusty-db-server", "dev"].iter().chain(arguments);
        let Some(Command::Dev(options)) = Arguments::parse_from(all).command else { panic!("`dev` was asked for") };
        ports(&options).map(|ports| ports.into_keys().collect()).map_err(|failure| failure.message)
    }

    #[test]
    fn no_port_is_used_twice_and_none_lies_beyond_the_last() {
        assert_eq!(of(&["--shards", "2"]), Ok(vec![5432, 7433, 7434, 8080]));
        assert_eq!(of(&["--native-port", "7533"]), Ok(vec![5432, 7433, 7533, 8080]));
        let refused = |arguments: &[&str]| of(arguments).expect_err("it can't be");
        assert!(refused(&["--native-port", "5432"]).contains("--native-port and --pg-port both use port 5432"));
        assert!(refused(&["--native-port", "7434", "--shards", "2"]).contains("both use port 7434"));
        assert!(refused(&["--interconnect-port", "65535", "--shards", "2"]).contains("--interconnect-port leads beyond"));
        assert!(refused(&["--pg-port", "0"]).contains("--pg-port leads beyond"));
    }
}
