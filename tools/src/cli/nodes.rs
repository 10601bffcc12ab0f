//! Nodes come and go: a new node's configuration file, its admission, and a node's removal.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustydb::config::Config;
use toml::{Table, Value};

use super::{Asked, LOOK_EVERY, PATIENCE, ask_all, node_name};
use crate::http::{Cluster, NodeRow, cluster, config_of, order};

/// How long a node may take to carry out a change to the cluster's nodes: longer than it waits itself.
const CHANGE_PATIENCE: Duration = Duration::from_secs(30);
/// How long a drained node may take to stop.
const STOPPED_WITHIN: Duration = Duration::from_secs(60);

const INIT_EXAMPLES: &str = "\
Examples:
  rusty-db-cli node init --node-id node4 --from 127.0.0.1:8080
      settings as the node there has them (run it on that node's machine), addresses on 127.0.0.4
  rusty-db-cli node init --node-id node4 --from 127.0.0.1:8080 --address 10.0.3.14:7433
  rusty-db-cli node init --node-id node1 --address 10.0.3.11:7433 --cluster production --shared-storage /dev/sdx
      nobody to ask: the rest of the settings is to be filled in";

const JOIN_EXAMPLES: &str = "\
Examples:
  rusty-db-cli cluster join --config node4.toml          number and address from the new node's file
  rusty-db-cli cluster join --node-id node4 --address 10.0.3.14:7433 --http 10.0.3.11:8080";

const REMOVE_EXAMPLES: &str = "\
Examples:
  rusty-db-cli node drain node4 && rusty-db-cli cluster remove node4
  rusty-db-cli cluster remove node2                      one that is stopped, or dead and recovered
  rusty-db-cli cluster remove node2 --force              one that serves: it is fenced and recovered first";

/// `node init`
#[derive(Debug, clap::Args)]
#[command(after_help = INIT_EXAMPLES)]
pub(super) struct Init {
    /// The new node: node4, or 4; a number that the cluster never used
    #[arg(long, value_name = "NODE", value_parser = node_name)]
    node_id: String,
    /// HTTP address of a running node: cluster, volume and settings are taken from it
    #[arg(long, value_name = "ADDRESS")]
    from: Option<SocketAddr>,
    /// Where the new node listens for the others; shard i listens on this port plus i. Default on loopback: the address
    /// that `rusty-db-server dev` would give it
    #[arg(long, value_name = "ADDRESS:PORT")]
    address: Option<SocketAddr>,
    /// Where its PostgreSQL clients connect. Default: its address, with the port of the node that is asked, or 5432
    #[arg(long, value_name = "ADDRESS:PORT")]
    pg_address: Option<SocketAddr>,
    /// Where its HTTP port is. Default: its address, with the port of the node that is asked, or 8080
    #[arg(long, value_name = "ADDRESS:PORT")]
    http_address: Option<SocketAddr>,
    /// Name of the cluster, when there is nobody to ask
    #[arg(long, value_name = "NAME", conflicts_with = "from")]
    cluster: Option<String>,
    /// The volume, when there is nobody to ask, or the new node finds it elsewhere
    #[arg(long, value_name = "PATH")]
    shared_storage: Option<PathBuf>,
    /// Shards of each node, when there is nobody to ask
    #[arg(long, value_name = "N", conflicts_with = "from")]
    shards: Option<u8>,
    /// File to write. Default: the node's name with .toml
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write over a file that is there
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `cluster join`
#[derive(Debug, clap::Args)]
#[command(after_help = JOIN_EXAMPLES)]
pub(super) struct Join {
    /// The node: node4, or 4
    #[arg(long, value_name = "NODE", value_parser = node_name, required_unless_present = "config")]
    node_id: Option<String>,
    /// Where it listens for the other nodes
    #[arg(long, value_name = "ADDRESS:PORT", required_unless_present = "config")]
    address: Option<SocketAddr>,
    /// Both from the node's configuration file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["node_id", "address"])]
    config: Option<PathBuf>,
    #[command(flatten)]
    asked: Asked,
}

/// `cluster remove`
#[derive(Debug, clap::Args)]
#[command(after_help = REMOVE_EXAMPLES)]
pub(super) struct Remove {
    /// The node: node4, or 4
    #[arg(value_name = "NODE", value_parser = node_name)]
    node: String,
    /// Also while it serves: it is fenced, and what it leaves is recovered
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    asked: Asked,
}

fn told(json: bool, outcome: &Result<serde_json::Value, String>, words: impl FnOnce(&serde_json::Value) -> String) -> ExitCode {
    match outcome {
        Ok(done) if json => println!("{done}"),
        Ok(done) => println!("{}", words(done)),
        Err(error) if json => println!("{}", serde_json::json!({ "error": error })),
        Err(error) => eprintln!("rusty-db-cli: {error}"),
    }
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

pub(super) fn init(init: &Init) -> ExitCode {
    let outcome = write_init(init);
    told(init.json, &outcome, |done| {
        let text = |key: &str| done[key].as_str().unwrap_or_default().to_owned();
        let next = match done["joins"] == true {
            true => format!(
                "Next: rusty-db-cli cluster join --node-id {} --address {}\n      rusty-db-server --config {}",
                text("node"),
                text("address"),
                text("file")
            ),
            false => "Next: complete it, and start the server with --config once the volume is formatted (--init-rac)".into(),
        };
        format!("Wrote {}: {} at {}, clients at {}\n{next}", text("file"), text("node"), text("address"), text("pg_address"))
    })
}

fn write_init(init: &Init) -> Result<serde_json::Value, String> {
    let file = init.output.clone().unwrap_or_else(|| PathBuf::from(format!("{}.toml", init.node_id)));
    if file.exists() && !init.force {
        return Err(format!("{} is there already: give another --output, or --force to write over it", file.display()));
    }
    let (table, address, pg, http) = match init.from {
        Some(from) => from_member(init, from)?,
        None => from_arguments(init)?,
    };
    let how = if init.from.is_some() { "settings as a running node had them" } else { "with defaults where nothing is said" };
    let text = format!("# Written by `rusty-db-cli node init` for {}, {how}.\n{table}", init.node_id);
    // What the server would refuse is better found here.
    Config::parse(&text).map_err(|error| format!("the file would not be taken by the server: {error}"))?;
    std::fs::write(&file, text).map_err(|error| format!("can't write {}: {error}", file.display()))?;
    Ok(serde_json::json!({
        "node": init.node_id, "file": file, "address": address, "pg_address": pg, "http_address": http,
        "joins": init.from.is_some(),
    }))
}

type Template = (Table, SocketAddr, SocketAddr, SocketAddr);

/// The tables of these names in each other, made where they are not there.
fn table_of<'a>(table: &'a mut Table, names: &[&str]) -> Result<&'a mut Table, String> {
    names.iter().try_fold(table, |table, name| {
        let inner = table.entry(*name).or_insert_with(|| Value::Table(Table::new()));
        inner.as_table_mut().ok_or_else(|| format!("[{name}] is no table"))
    })
}

fn from_member(init: &Init, from: SocketAddr) -> Result<Template, String> {
    let there = cluster(from, PATIENCE).map_err(|error| format!("{from}: {error}"))?;
    if let Some(node) = there.nodes.iter().find(|node| node.node == init.node_id && node.state != "joining") {
        let what = if node.state == "removed" { "was removed from" } else { "is a member of" };
        return Err(format!("{} {what} the cluster: give a number that it never used", init.node_id));
    }
    let text = config_of(from, PATIENCE).map_err(|error| format!("{from} does not tell its settings: {error}"))?;
    let its = Config::parse(&text).map_err(|error| format!("the settings of {from}: {error}"))?;
    let mut table: Table = text.parse().map_err(|error| format!("the settings of {from}: {error}"))?;
    let number: u8 = init.node_id.trim_start_matches("node").parse().map_err(|_| "no node's number".to_owned())?;
    let admitted = there.nodes.iter().find(|node| node.node == init.node_id).map(|node| node.address);
    let asked = there.nodes.iter().find(|node| node.node == there.node).map(|node| node.address);
    let like_dev = asked.and_then(|asked| match asked.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => Some(SocketAddr::from(([127, 0, 0, number], asked.port()))),
        _ => None,
    });
    let address = init.address.or(admitted).or(like_dev);
    let address = address.ok_or("say where the new node listens for the others: --address ADDRESS:PORT")?;
    let pg = init.pg_address.unwrap_or_else(|| SocketAddr::new(address.ip(), its.server.pg_address.port()));
    let http = init.http_address.unwrap_or_else(|| SocketAddr::new(address.ip(), its.server.http_address.port()));

    let mut nodes = Table::new();
    for node in there.nodes.iter().filter(|node| node.state != "removed" && node.node != init.node_id) {
        nodes.insert(node.node.clone(), Value::String(node.address.to_string()));
    }
    nodes.insert(init.node_id.clone(), Value::String(address.to_string()));
    let in_cluster = table_of(&mut table, &["cluster"])?;
    in_cluster.insert("node_id".into(), Value::String(init.node_id.clone()));
    in_cluster.insert("nodes".into(), Value::Table(nodes));
    let rac = table_of(&mut table, &["rac"])?;
    rac.remove("node_count");
    if let Some(interconnect) = rac.get_mut("interconnect").and_then(Value::as_table_mut) {
        interconnect.remove("address");
        interconnect.remove("peers");
    }
    if let Some(path) = &init.shared_storage {
        let storage = table_of(&mut table, &["rac", "storage"])?;
        storage.insert("shared_storage_path".into(), Value::String(path.display().to_string()));
    }
    set_addresses(&mut table, pg, http)?;
    Ok((table, address, pg, http))
}

fn from_arguments(init: &Init) -> Result<Template, String> {
    let missing = |what: &str| format!("say {what}, or ask a running node with --from ADDRESS");
    let address = init.address.ok_or_else(|| missing("where the node listens: --address ADDRESS:PORT"))?;
    let cluster = init.cluster.clone().ok_or_else(|| missing("the cluster's name: --cluster NAME"))?;
    let storage = init.shared_storage.clone().ok_or_else(|| missing("where the volume is: --shared-storage PATH"))?;
    let pg = init.pg_address.unwrap_or_else(|| SocketAddr::new(address.ip(), 5432));
    let http = init.http_address.unwrap_or_else(|| SocketAddr::new(address.ip(), 8080));
    let mut table = Table::new();
    let in_cluster = table_of(&mut table, &["cluster"])?;
    in_cluster.insert("cluster_name".into(), Value::String(cluster));
    in_cluster.insert("node_id".into(), Value::String(init.node_id.clone()));
    table_of(&mut table, &["cluster", "nodes"])?.insert(init.node_id.clone(), Value::String(address.to_string()));
    let in_storage = table_of(&mut table, &["rac", "storage"])?;
    in_storage.insert("shared_storage_path".into(), Value::String(storage.display().to_string()));
    if let Some(shards) = init.shards {
        table_of(&mut table, &["engine"])?.insert("shards".into(), Value::Integer(i64::from(shards)));
    }
    set_addresses(&mut table, pg, http)?;
    Ok((table, address, pg, http))
}

fn set_addresses(table: &mut Table, pg: SocketAddr, http: SocketAddr) -> Result<(), String> {
    let server = table_of(table, &["server"])?;
    server.insert("pg_address".into(), Value::String(pg.to_string()));
    server.insert("http_address".into(), Value::String(http.to_string()));
    // Two nodes can't listen in one place.
    server.remove("native_socket");
    server.remove("native_address");
    Ok(())
}

/// Asks the nodes that answer and serve, one after the other, until one has an answer; it tells who.
fn change(rows: &[NodeRow], path: &str) -> Result<serde_json::Value, String> {
    let serves = |row: &&NodeRow| {
        row.health.as_ref().is_ok_and(|health| matches!(health.status.as_str(), "healthy" | "draining" | "drained"))
    };
    let Some(row) = rows.iter().find(serves) else {
        return Err("no node that serves and could do that answers on the addresses given with --http".into());
    };
    let words = order(row.http, CHANGE_PATIENCE, path).map_err(|words| format!("{} says: {words}", row.node))?;
    Ok(serde_json::json!({ "asked": row.node, "outcome": words }))
}

fn outcome_words(done: &serde_json::Value) -> String {
    done["outcome"].as_str().unwrap_or_default().to_owned()
}

fn node_in(path: &Path) -> Result<(String, SocketAddr), String> {
    let config = Config::read(path).map_err(|error| error.to_string())?;
    let nodes = config.nodes().map_err(|error| error.to_string())?;
    Ok((config.node_id().to_string(), nodes[&config.node_id()]))
}

pub(super) fn join(join: &Join) -> ExitCode {
    let named = match (&join.config, &join.node_id, join.address) {
        (Some(path), ..) => node_in(path),
        (None, Some(node), Some(address)) => Ok((node.clone(), address)),
        _ => unreachable!("clap requires one or the other"),
    };
    let outcome = named.and_then(|(node, address)| {
        let address = address.to_string().replace('[', "%5B").replace(']', "%5D");
        change(&ask_all(&join.asked), &format!("/api/v1/cluster/join/{node}/{address}"))
    });
    told(join.asked.json, &outcome, outcome_words)
}

pub(super) fn remove(remove: &Remove) -> ExitCode {
    let outcome = stop_if_drained(remove).and_then(|()| {
        let others: Vec<NodeRow> = ask_all(&remove.asked).into_iter().filter(|row| row.node != remove.node).collect();
        let force = if remove.force { "/force" } else { "" };
        change(&others, &format!("/api/v1/cluster/remove/{}{force}", remove.node))
    });
    told(remove.asked.json, &outcome, outcome_words)
}

/// A node that was drained has nothing left to do: it is stopped, if it can be asked.
fn stop_if_drained(remove: &Remove) -> Result<(), String> {
    let rows = ask_all(&remove.asked);
    let drained =
        |row: &&NodeRow| row.health.as_ref().is_ok_and(|health| health.node == remove.node && health.status == "drained");
    let Some(row) = rows.iter().find(drained) else { return Ok(()) };
    let another = rows.iter().find(|row| row.node != remove.node && row.health.is_ok());
    let another = another.ok_or("no other node answers on the addresses given with --http: who would remove it?")?;
    order(row.http, PATIENCE, "/api/v1/node/stop")?;
    let until = Instant::now() + STOPPED_WITHIN;
    // It has left when the others say so.
    while cluster(another.http, PATIENCE)?.nodes.iter().any(|node| node.node == remove.node && node.serves) {
        if Instant::now() > until {
            return Err(format!("{} was told to stop and has not within {} s", remove.node, STOPPED_WITHIN.as_secs()));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// The nodes that none of the rows is about.
pub(super) fn print_others(cluster: &Cluster, rows: &[NodeRow]) {
    let shown = |node: &str| rows.iter().any(|row| row.node == node && row.health.is_ok());
    for node in cluster.nodes.iter().filter(|node| !shown(&node.node)) {
        let state = if node.state == "member" && node.serves { "serving" } else { node.state.as_str() };
        println!("{:<8} {:<22} {state:<11} {:>9} {:>8}  {}", node.node, node.address, "", "", node.detail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_anybody_to_ask_is_one_that_the_server_takes() {
        let file = std::env::temp_dir().join(format!("rustydb-init-{}.toml", std::process::id()));
        let init = Init {
            node_id: "node4".into(),
            from: None,
            address: Some(SocketAddr::from(([10, 0, 3, 14], 7433))),
            pg_address: None,
            http_address: None,
            cluster: Some("production".into()),
            shared_storage: Some("/dev/sdx".into()),
            shards: Some(2),
            output: Some(file.clone()),
            force: false,
            json: false,
        };
        write_init(&init).expect("everything is said");
        let config = Config::read(&file).expect("the server takes it");
        assert_eq!((config.node_id().0, config.engine.shards), (4, 2));
        assert_eq!(node_in(&file), Ok(("node4".into(), SocketAddr::from(([10, 0, 3, 14], 7433)))));
        assert!(write_init(&init).is_err_and(|error| error.contains("--force")), "it writes over nothing");
        std::fs::remove_file(file).expect("it was written");
    }
}
