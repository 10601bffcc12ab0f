//! The operator's client: asks nodes over HTTP how they are, shows it as a table or as JSON for scripts, and gives orders.

mod nodes;
mod stats;
mod top;
mod watched;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

use rustydb::config::NodeName;
use rustydb_gateway::http::{Control, Recovery};

use crate::http::{Cluster, NodeRow, cluster, health, order};

const EXAMPLES: &str = "\
Examples:
  rusty-db-cli cluster status                            the development cluster on loopback
  rusty-db-cli rac-status --http 10.0.3.11:8080 --http 10.0.3.12:8080
  rusty-db-cli cluster status --json
  rusty-db-cli top                                       the nodes live
  rusty-db-cli stats                                     what the nodes of this host have counted
  rusty-db-cli node drain node2 --timeout 300            sends its clients away, then it can be stopped
  rusty-db-cli node stop node2                           ends it cleanly; the others go on
  rusty-db-cli node fence node3                          takes a node that hangs out of the cluster

  A fourth node, also while the others serve:
  rusty-db-cli node init --node-id node4 --from 127.0.0.1:8080 --output node4.toml
  rusty-db-cli cluster join --config node4.toml
  rusty-db-server --config node4.toml

  A node leaves for good:
  rusty-db-cli node drain node4
  rusty-db-cli cluster remove node4";

/// Looks at a RustyDB cluster and operates it.
#[derive(Debug, Parser)]
#[command(name = "rusty-db-cli", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The cluster as a whole
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// One node
    #[command(subcommand)]
    Node(NodeCommand),
    /// What the nodes of this host publish: counters, levels and latencies, read from shared memory without asking them
    Stats(stats::Stats),
    /// The nodes live: what they do, how long it takes, who is down
    Top(top::Top),
    /// The same as `cluster status`
    #[command(visible_alias = "rac-status")]
    ClusterStatus(Asked),
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Which nodes there are and how they do
    Status(Asked),
    /// Admits a node to the cluster, or tells it the new address of one that is stopped. Run it on the machine of a node
    /// that serves; then start the new node's server
    Join(nodes::Join),
    /// Removes a node for good: it can't come back, and its number is never used again. One that was drained is stopped
    /// first. Run it on the machine of another node that serves
    Remove(nodes::Remove),
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Writes the configuration file of a new node
    Init(nodes::Init),
    /// Ends a node cleanly: it writes its blocks and leaves. Run where its HTTP port can be reached from its own machine
    Stop(Named),
    /// Sends a node's clients away and has it write its blocks: idle sessions at once, transactions may end until the
    /// timeout. Waits until it is drained. Run it on the node's own machine
    Drain {
        #[command(flatten)]
        named: Named,
        /// Seconds that transactions have to end
        #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(..=604_800))]
        timeout: u64,
    },
    /// Has a node that was drained take clients again
    Undrain(Named),
    /// Takes a node out of the cluster: it is fenced, recovered, and may join again in its next life. With fencing_mode =
    /// "manual" it is your word that the node can't write to the volume any more
    Fence {
        #[command(flatten)]
        named: Named,
        /// Your word, whatever the mode, that the node can't write to the volume any more: its machine is off, or cut off from the volume.
        /// Counts for a minute, where no method of fencing has a proof. IF IT IS NOT SO, DATA IS LOST
        #[arg(long)]
        confirm: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Named {
    /// The node: node2, or 2
    #[arg(value_name = "NODE", value_parser = node_name)]
    node: String,
    #[command(flatten)]
    asked: Asked,
}

fn node_name(text: &str) -> Result<String, String> {
    NodeName::Name(text.to_owned()).node().map(|node| node.to_string()).map_err(|error| error.to_string())
}

#[derive(Debug, clap::Args)]
struct Asked {
    /// HTTP address of a node; may be given several times. Default: port 8080 of 127.0.0.1 to 127.0.0.3, and of further
    /// ones up to 127.0.0.8 where somebody answers
    #[arg(long = "http", value_name = "ADDRESS")]
    http: Vec<SocketAddr>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `rusty-db-server dev` has by default.
const DEV_HTTP_PORT: u16 = 8080;
const DEV_NODES: u8 = 3;
const DEV_NODES_MAX: u8 = 8;
/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a node may take to write its blocks once its clients' time is over.
const DRAINED_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Runs the program on the process's arguments. Exit status 1 when a node asked is not healthy, or an order is refused.
pub fn main() -> ExitCode {
    // Whoever stops reading (`| head`) ends the program, as with other tools.
    // SAFETY: sets a signal back to what it does by default, before any thread is there.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    match Arguments::parse().command {
        Command::ClusterStatus(asked) | Command::Cluster(ClusterCommand::Status(asked)) => status(&asked),
        Command::Stats(asked) => stats::run(&asked),
        Command::Top(asked) => top::run(&asked),
        Command::Cluster(ClusterCommand::Join(join)) => nodes::join(&join),
        Command::Cluster(ClusterCommand::Remove(remove)) => nodes::remove(&remove),
        Command::Node(NodeCommand::Init(init)) => nodes::init(&init),
        Command::Node(NodeCommand::Stop(named)) => {
            let is_it = |row: &NodeRow| row.node == named.node;
            give_order(&named, is_it, "/api/v1/node/stop")
        }
        Command::Node(NodeCommand::Drain { named, timeout }) => {
            let is_it = |row: &NodeRow| row.node == named.node;
            let taken = give_order(&named, is_it, &format!("/api/v1/node/drain/{timeout}"));
            if taken == ExitCode::SUCCESS { await_drained(&named, Duration::from_secs(timeout)) } else { taken }
        }
        Command::Node(NodeCommand::Undrain(named)) => {
            let is_it = |row: &NodeRow| row.node == named.node;
            give_order(&named, is_it, "/api/v1/node/undrain")
        }
        Command::Node(NodeCommand::Fence { named, confirm }) => {
            let word = if confirm { "/confirm" } else { "" };
            // All others: which of them fences, and so has to know the operator's word, may be another in a moment.
            let another = |row: &NodeRow| row.node != named.node;
            give_order(&named, another, &format!("/api/v1/node/fence/{}{word}", named.node))
        }
    }
}

fn ask_all(asked: &Asked) -> Vec<NodeRow> {
    let ask = |address: &SocketAddr| {
        let answer = health(*address, PATIENCE);
        let node = answer.as_ref().map_or_else(|_| "?".into(), |health| health.node.clone());
        NodeRow { node, http: *address, health: answer }
    };
    if !asked.http.is_empty() {
        return asked.http.iter().map(ask).collect();
    }
    let dev = |node: u8| SocketAddr::from(([127, 0, 0, node], DEV_HTTP_PORT));
    let rows = (1..=DEV_NODES_MAX).map(|node| (node, ask(&dev(node))));
    rows.filter(|(node, row)| *node <= DEV_NODES || row.health.is_ok()).map(|(_, row)| row).collect()
}

/// The cluster's nodes, as one of those that answer sees them, one that serves if there is any.
fn ask_cluster(rows: &[NodeRow]) -> Option<Cluster> {
    let mut answering: Vec<&NodeRow> = rows.iter().filter(|row| row.health.is_ok()).collect();
    answering.sort_by_key(|row| row.health.as_ref().map_or(0, |health| health.epoch));
    answering.iter().rev().find_map(|row| cluster(row.http, PATIENCE).ok())
}

fn status(asked: &Asked) -> ExitCode {
    let rows = ask_all(asked);
    if asked.json {
        println!("{}", serde_json::to_string_pretty(&rows).expect("rows are plain data"));
    } else {
        print_table(&rows);
        if let Some(cluster) = ask_cluster(&rows) {
            nodes::print_others(&cluster, &rows);
        }
    }
    let healthy = rows.iter().all(|row| row.health.as_ref().is_ok_and(|health| health.status == "healthy"));
    if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Gives an order to every node that answers and fits. One that takes it is enough.
fn give_order(named: &Named, fits: impl Fn(&NodeRow) -> bool, path: &str) -> ExitCode {
    let rows: Vec<NodeRow> = ask_all(&named.asked).into_iter().filter(|row| row.health.is_ok() && fits(row)).collect();
    if rows.is_empty() {
        eprintln!("no node that could do that for {} answers on the addresses given with --http", named.node);
    }
    let mut taken = false;
    for row in rows {
        let outcome = order(row.http, PATIENCE, path);
        taken |= outcome.is_ok();
        match outcome {
            outcome if named.asked.json => {
                println!("{}", serde_json::json!({ "asked": row.node, "node": named.node, "outcome": outcome }));
            }
            Ok(words) => println!("{}: {words}", row.node),
            Err(words) => eprintln!("{}: {words}", row.node),
        }
    }
    if taken { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Waits until the node's health says that it is drained.
fn await_drained(named: &Named, timeout: Duration) -> ExitCode {
    let until = Instant::now() + timeout + DRAINED_WITHIN;
    loop {
        let rows = ask_all(&named.asked);
        let health = rows.iter().find(|row| row.node == named.node).and_then(|row| row.health.as_ref().ok());
        match health {
            Some(health) if health.status == "draining" && Instant::now() < until => std::thread::sleep(LOOK_EVERY),
            Some(health) if health.status == "drained" => {
                if !named.asked.json {
                    println!("{}: drained", named.node);
                }
                return ExitCode::SUCCESS;
            }
            Some(health) => {
                eprintln!("{}: not drained: it is {} {}", named.node, health.status, health.detail);
                return ExitCode::FAILURE;
            }
            None => {
                eprintln!("{}: not drained: it does not answer any more", named.node);
                return ExitCode::FAILURE;
            }
        }
    }
}

fn print_table(rows: &[NodeRow]) {
    if let Some(Ok(first)) = rows.iter().map(|row| row.health.as_ref()).find(|health| health.is_ok()) {
        let away: Vec<&str> = first.configured.iter().filter(|node| !first.members.contains(node)).map(String::as_str).collect();
        let away = if away.is_empty() { String::new() } else { format!("   away: {}", away.join(", ")) };
        println!("Cluster: {}   epoch {}   members: {}{away}", first.cluster, first.epoch, first.members.join(", "));
        // Whoever has applied most knows best.
        let healths = rows.iter().filter_map(|row| row.health.as_ref().ok()?.control.as_ref());
        if let Some(control) = healths.max_by_key(|control| (control.term, control.applied)) {
            println!("{}", control_words(control));
        }
        println!();
    }
    println!("{:<8} {:<22} {:<11} {:>9} {:>8}  detail", "node", "http", "status", "uptime", "pid");
    for row in rows {
        match &row.health {
            Ok(health) => println!(
                "{:<8} {:<22} {:<11} {:>8}s {:>8}  {}",
                row.node,
                row.http,
                health.status,
                health.uptime_s,
                health.pid,
                health.recovery.as_ref().map_or_else(|| health.detail.clone(), recovery_words)
            ),
            Err(error) => println!("{:<8} {:<22} {:<11} {:>9} {:>8}  {error}", row.node, row.http, "no answer", "", ""),
        }
    }
}

fn control_words(control: &Control) -> String {
    let leader = control.leader.as_ref().map_or_else(
        || "no leader: nothing can be agreed on until most voters are there".to_owned(),
        |leader| format!("leader {leader}"),
    );
    let nodes = control.nodes.iter().map(|node| match (node.role.as_str(), node.state.as_str()) {
        ("voter", "member") => node.node.clone(),
        ("voter", state) => format!("{} ({state})", node.node),
        (role, "member") => format!("{} ({role})", node.node),
        (role, state) => format!("{} ({role}, {state})", node.node),
    });
    let nodes: Vec<String> = nodes.collect();
    let failed = control.failed.as_ref().map(|why| format!("   stopped: {why}")).unwrap_or_default();
    let Control { term, applied, .. } = control;
    format!("Control group: {leader}   term {term}   applied {applied}   configured: {}{failed}", nodes.join(", "))
}

fn recovery_words(recovery: &Recovery) -> String {
    let Recovery { lost, phase, blocks_done, blocks_total } = recovery;
    format!("recovers {}: {phase}, {blocks_done} of {blocks_total} blocks", lost.join(", "))
}
