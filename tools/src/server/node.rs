//! One node: reads its configuration, starts the engine and the gateway, and stops both in order.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustydb::cluster::{ControlStatus, Node, Operator, Phase, Status};
use rustydb::config::{Config, NodeName};
use rustydb::ids::NodeId;
use rustydb::volume::{RosterChange, RosterNode, Standing};
use rustydb_gateway::http::{self, Admin, Answer, Health};
use rustydb_gateway::sql::{Database, Limits};
use rustydb_gateway::wire;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use super::Failure;
use super::clients::{Clients, DRAIN_TIMEOUT_S_MAX};
use super::listen::listen;
use super::native;
use super::statistics::Statistics;

/// Threads that serve clients; the shards have their own.
const GATEWAY_THREADS: usize = 2;

/// `--config FILE`
pub(super) fn run(path: &Path) -> Result<(), Failure> {
    start_logging();
    // A write beyond a limit of the process is an error of that write, which the engine handles, and no reason to die.
    // SAFETY: ignoring a signal touches nothing of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let config = Config::read(path).map_err(Failure::input)?;
    let _claim = claim(&config)?;
    let node = Node::start(&config).map_err(Failure::input)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(GATEWAY_THREADS)
        .thread_name("gateway")
        .enable_all()
        .build()
        .map_err(Failure::new)?;
    let clients = Clients::new(node.operator());
    let statistics = Statistics::start(&config, &node, clients.clone()).map_err(Failure::new)?;
    let outcome = runtime.block_on(serve(path, &config, &node, &clients, statistics.pages()));
    // Sessions end first, so that nothing changes while the engine writes its blocks.
    runtime.shutdown_timeout(Duration::from_secs(2));
    let ended = match (outcome, node.status().get().phase) {
        (_, Phase::Over(why)) => Err(Failure::with_status(format!("this life of the node is over: {why}"), Failure::LIFE_OVER)),
        (_, Phase::Removed(why)) => Err(Failure::with_status(why, Failure::REMOVED)),
        (_, Phase::Failed(message)) => Err(Failure::new(message)),
        (Err(failure), _) => Err(failure),
        (Ok(()), _) => match node.stop() {
            Phase::Failed(message) => Err(Failure::new(message)),
            _ => Ok(()),
        },
    };
    // The last word is how the node has ended.
    drop(statistics);
    ended
}

fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("RUSTYDB_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_target(false).init();
}

/// The same node started twice on one machine would have two lives at once; the second is told so.
fn claim(config: &Config) -> Result<File, Failure> {
    let volume = config.volume_path();
    let file = File::options().read(true).write(true).open(&volume).map_err(|error| {
        let hint = if error.kind() == io::ErrorKind::NotFound {
            "; format it first: rusty-db-server --init-rac --shared-storage PATH"
        } else {
            ""
        };
        Failure::input(format!("can't open the volume {}: {error}{hint}", volume.display()))
    })?;
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: libc::off_t::from(config.node_id().0),
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: fcntl on a descriptor that we own, with a lock structure that outlives the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &mut lock) } != 0 {
        return Err(Failure::input(format!(
            "{} runs already on this machine with the volume {}: stop it first",
            config.node_id(),
            volume.display()
        )));
    }
    Ok(file)
}

async fn serve(
    path: &Path,
    config: &Config,
    node: &Node,
    clients: &Arc<Clients>,
    statistics: Arc<dyn http::Statistics>,
) -> Result<(), Failure> {
    let mut interrupted = signal(SignalKind::interrupt()).map_err(Failure::new)?;
    let mut terminated = signal(SignalKind::terminate()).map_err(Failure::new)?;
    let serving = Arc::new(AtomicBool::new(false));
    let health = health_source(config, node.status().clone(), serving.clone(), clients.clone());
    let asked_to_stop = Arc::new(Notify::new());
    let cluster = cluster_source(config, node.status().clone());
    let admin = Arc::new(NodeAdmin {
        operator: node.operator(),
        stop: asked_to_stop.clone(),
        clients: clients.clone(),
        config: path.to_owned(),
    });
    let page = tokio::spawn(http::serve(config.server.http_address, health, cluster, statistics, admin));
    tokio::select! {
        now = node.status().when(|phase| *phase == Phase::Open || phase.is_over()) => if now.phase.is_over() { return Ok(()) },
        _ = interrupted.recv() => return Ok(()),
        _ = terminated.recv() => return Ok(()),
        () = asked_to_stop.notified() => return Ok(()),
        ended = page_ended(page) => return Err(ended),
    }
    let database = Database::new(node.store().clone(), Limits::default()).map_err(Failure::new)?;
    let address = config.server.pg_address;
    let port = listen(address, "PostgreSQL clients", &config.server).map_err(Failure::input)?;
    let native = native::start(&config.server, &database);
    let server = wire::Server::new(database, config.server.max_connections as usize);
    // Native clients until this function ends: then their transactions are given up.
    let _native = clients.serve(&server, native);
    serving.store(true, Ordering::Release);
    tracing::info!(%address, "serving PostgreSQL clients");
    // Goes on while the node stops, to tell those who come.
    let mut listener = tokio::spawn(server.serve(port));
    tokio::select! {
        _ = node.status().when(Phase::is_over) => return Ok(()),
        () = clients.watch(node.status()) => {}
        _ = interrupted.recv() => {}
        _ = terminated.recv() => {}
        () = asked_to_stop.notified() => {}
        ended = &mut listener => return Err(match ended {
            Ok(Err(error)) => Failure::input(error),
            Ok(Ok(())) => Failure::new("the listener has ended"),
            Err(error) => Failure::new(format!("the listener has failed: {error}")),
        }),
    }
    // Asked once more, it does not wait for the clients.
    tokio::select! {
        () = clients.leave(Duration::from_secs(config.server.drain_timeout)) => {}
        _ = node.status().when(Phase::is_over) => {}
        _ = interrupted.recv() => {}
        _ = terminated.recv() => {}
    }
    Ok(())
}

/// What operators ask over HTTP.
struct NodeAdmin {
    operator: Operator,
    stop: Arc<Notify>,
    clients: Arc<Clients>,
    config: PathBuf,
}

fn change(operator: &Operator, node: &str, change: impl FnOnce(NodeId) -> RosterChange + Send + 'static, force: bool) -> Answer {
    let (operator, named) = (operator.clone(), NodeName::Name(node.to_owned()).node());
    Box::pin(async move {
        let node = named.map_err(|error| error.to_string())?;
        operator.change_roster(change(node), force).await
    })
}

impl Admin for NodeAdmin {
    fn stop(&self) -> Answer {
        self.stop.notify_one();
        Box::pin(std::future::ready(Ok("it sends its clients away, writes its blocks and stops".into())))
    }

    fn drain(&self, timeout_s: u64) -> Answer {
        let done = match timeout_s {
            ..=DRAIN_TIMEOUT_S_MAX => self.clients.drain(Duration::from_secs(timeout_s)),
            _ => Err(format!("the timeout is at most {DRAIN_TIMEOUT_S_MAX} s")),
        };
        Box::pin(std::future::ready(done))
    }

    fn undrain(&self) -> Answer {
        Box::pin(std::future::ready(self.clients.undrain()))
    }

    fn fence(&self, node: &str, vouches: bool) -> Answer {
        let (operator, named) = (self.operator.clone(), NodeName::Name(node.to_owned()).node());
        Box::pin(async move {
            let node = named.map_err(|error| error.to_string())?;
            operator.fence(node, vouches).await?;
            Ok(format!("{node} is being fenced: see cluster-status"))
        })
    }

    fn admit(&self, node: &str, address: SocketAddr) -> Answer {
        change(&self.operator, node, move |node| RosterChange::Admit(node, address), false)
    }

    fn remove(&self, node: &str, force: bool) -> Answer {
        change(&self.operator, node, RosterChange::Remove, force)
    }

    fn config(&self) -> Answer {
        let text = std::fs::read_to_string(&self.config).map_err(|error| format!("{}: {error}", self.config.display()));
        Box::pin(std::future::ready(text))
    }
}

async fn page_ended(page: tokio::task::JoinHandle<io::Result<()>>) -> Failure {
    match page.await {
        Ok(Err(error)) => Failure::input(error),
        Ok(Ok(())) => Failure::new("the HTTP server has ended"),
        Err(error) => Failure::new(format!("the HTTP server has failed: {error}")),
    }
}

fn control_of(status: ControlStatus) -> http::Control {
    http::Control {
        leader: status.leader.map(|node| node.to_string()),
        term: status.term.0,
        applied: status.applied.0,
        voters: status.voters.iter().map(ToString::to_string).collect(),
        nodes: status
            .nodes
            .iter()
            .map(|(id, node)| http::ControlNode {
                node: id.to_string(),
                address: node.address,
                role: node.role.word().to_owned(),
                state: node.standing.word().to_owned(),
            })
            .collect(),
        failed: status.failed,
    }
}

fn cluster_source(config: &Config, status: Status) -> http::ClusterSource {
    let (me, cluster, shards) = (config.node_id(), config.cluster.cluster_name.clone(), config.engine.shards);
    Arc::new(move || {
        let now = status.get();
        let node = |(node, there): (&NodeId, &RosterNode)| {
            let serves = now.members.contains(node);
            let recovering = now.recovery.as_ref().is_some_and(|recovery| recovery.lost.contains(node));
            let role = now.control.as_ref().map_or("", |control| match () {
                () if control.leader == Some(*node) => "leader",
                () if control.voters.contains(node) => "voter",
                () => "",
            });
            let detail = match there.standing {
                Standing::Joining => "admitted: start its server, and it joins",
                Standing::Removed => "its number is never used again",
                Standing::Member if serves || now.members.is_empty() => "",
                Standing::Member if recovering => "lost: what it leaves is being recovered",
                Standing::Member => "away: start its server, or remove it when it is gone for good",
            };
            http::ClusterNode {
                node: node.to_string(),
                address: there.address,
                state: there.standing.word().to_owned(),
                serves,
                role: role.to_owned(),
                detail: detail.to_owned(),
            }
        };
        http::Cluster {
            cluster: cluster.clone(),
            node: me.to_string(),
            epoch: now.epoch.0,
            leader: now.control.as_ref().and_then(|control| control.leader).map(|leader| leader.to_string()),
            shards,
            nodes: now.roster.nodes().iter().map(node).collect(),
            detail: now.detail.clone(),
        }
    })
}

fn health_source(config: &Config, status: Status, serving: Arc<AtomicBool>, clients: Arc<Clients>) -> http::HealthSource {
    let started = Instant::now();
    let name = |number: u8| format!("node{number}");
    let still = Health {
        status: String::new(),
        node: name(config.node_id().0),
        cluster: config.cluster.cluster_name.clone(),
        epoch: 0,
        configured: Vec::new(),
        members: Vec::new(),
        recovery: None,
        control: None,
        detail: String::new(),
        uptime_s: 0,
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    Arc::new(move || {
        let mut now = status.get();
        // The engine is open a moment before the port is: who is told healthy must be able to connect.
        if now.phase == Phase::Open && !serving.load(Ordering::Acquire) {
            now.phase = Phase::Starting;
            now.detail = "opens the port for PostgreSQL clients".into();
        }
        let mut word = now.phase.word();
        if now.phase == Phase::Open
            && let Some((stage, detail)) = clients.health()
        {
            (word, now.detail) = (stage, detail);
        }
        Health {
            status: word.to_owned(),
            epoch: now.epoch.0,
            configured: now.roster.voters().map(|node| name(node.0)).collect(),
            members: now.members.iter().map(|node| name(node.0)).collect(),
            recovery: now.recovery.map(|recovery| http::Recovery {
                lost: recovery.lost.iter().map(|node| name(node.0)).collect(),
                phase: recovery.phase.word().to_owned(),
                blocks_done: recovery.blocks_done,
                blocks_total: recovery.blocks_total,
            }),
            control: now.control.map(control_of),
            detail: now.detail,
            uptime_s: started.elapsed().as_secs(),
            ..still.clone()
        }
    })
}
