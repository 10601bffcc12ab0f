//! The operator's client: asks nodes over HTTP how they are and shows it as a table, or as JSON for scripts.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::http::{NodeRow, health};

const EXAMPLES: &str = "\
Examples:
  rusty-db-cli cluster-status                            the development cluster on loopback
  rusty-db-cli rac-status --http 10.0.3.11:8080 --http 10.0.3.12:8080
  rusty-db-cli cluster-status --json";

/// Looks at a RustyDB cluster.
#[derive(Debug, Parser)]
#[command(name = "rusty-db-cli", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Which nodes there are and how they do
    #[command(visible_alias = "rac-status")]
    ClusterStatus(Asked),
}

#[derive(Debug, clap::Args)]
struct Asked {
    /// HTTP address of a node; may be given several times
    #[arg(long = "http", value_name = "ADDRESS", default_values = ["127.0.0.1:8080", "127.0.0.2:8080", "127.0.0.3:8080"])]
    http: Vec<SocketAddr>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the program on the process's arguments. Exit status 1 when a node asked is not healthy.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Command::ClusterStatus(asked) = &arguments.command;
    let rows: Vec<NodeRow> = asked
        .http
        .iter()
        .map(|address| {
            let answer = health(*address, Duration::from_secs(2));
            let node = answer.as_ref().map_or_else(|_| "?".into(), |health| health.node.clone());
            NodeRow { node, http: *address, health: answer }
        })
        .collect();
    if asked.json {
        println!("{}", serde_json::to_string_pretty(&rows).expect("rows are plain data"));
    } else {
        print_table(&rows);
    }
    let healthy = rows.iter().all(|row| row.health.as_ref().is_ok_and(|health| health.status == "healthy"));
    if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print_table(rows: &[NodeRow]) {
    if let Some(Ok(first)) = rows.iter().map(|row| row.health.as_ref()).find(|health| health.is_ok()) {
        println!("Cluster: {}   epoch {}   members: {}\n", first.cluster, first.epoch, first.members.join(", "));
    }
    println!("{:<8} {:<22} {:<11} {:>9} {:>8}  detail", "node", "http", "status", "uptime", "pid");
    for row in rows {
        match &row.health {
            Ok(health) => println!(
                "{:<8} {:<22} {:<11} {:>8}s {:>8}  {}",
                row.node, row.http, health.status, health.uptime_s, health.pid, health.detail
            ),
            Err(error) => println!("{:<8} {:<22} {:<11} {:>9} {:>8}  {error}", row.node, row.http, "no answer", "", ""),
        }
    }
}
