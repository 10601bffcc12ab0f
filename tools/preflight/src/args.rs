//! The program's arguments.

use std::path::PathBuf;

use clap::Parser;

use crate::check::Check;
use crate::checks;

const EXAMPLES: &str = "\
Examples:
  rusty-db-preflight                                     this host, for a node with the default settings
  rusty-db-preflight --config /etc/rustydb/node1.toml    for this node, its volume and its ports
  rusty-db-preflight --volume /dev/mapper/lun0           a disk that is to become the volume
  rusty-db-preflight --config node1.toml --strict -q     in a deployment: only what is wrong, warnings count
  rusty-db-preflight --only RDB-RDMA,RDB-NET-003 --json  a part of it, for a program
  rusty-db-preflight --explain RDB-MEM-001               what a check is about

Run it as the user, and with the limits, that the node will have: from its systemd unit (ExecStartPre=), or with
systemd-run -p User=... -p LimitMEMLOCK=infinity --pipe.

Exit status: 0 fit to run a node, 1 warnings (only with --strict), 2 something fatal, 64 wrong arguments.
It changes nothing, without --probe-writes. docs/preflight.md lists the checks.";

/// Looks whether this host is fit to run a RustyDB node.
#[derive(Debug, Parser)]
#[command(name = "rusty-db-preflight", version, after_help = EXAMPLES)]
pub struct Arguments {
    /// The node's configuration file, as for rusty-db-server
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The volume: a block device, a file, or a folder that holds it. Default: what the configuration says
    #[arg(long, value_name = "PATH")]
    pub volume: Option<PathBuf>,
    /// Only these checks: ids or their beginnings (RDB-IO), separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',', value_parser = known)]
    pub only: Vec<String>,
    /// All but these
    #[arg(long, value_name = "IDS", value_delimiter = ',', value_parser = known)]
    pub skip: Vec<String>,
    /// Also what writes: times durable writes to a temporary file beside the volume's, registers a key with the volume's
    /// device and removes it again
    #[arg(long)]
    pub probe_writes: bool,
    /// Warnings count: exit status 1
    #[arg(long)]
    pub strict: bool,
    /// Only warnings and what is fatal
    #[arg(long, short)]
    pub quiet: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Tell what a check is about, and end
    #[arg(long, value_name = "ID", value_parser = known, conflicts_with = "list")]
    pub explain: Option<String>,
    /// List all checks, and end
    #[arg(long)]
    pub list: bool,
}

/// An id or the beginning of some.
fn known(text: &str) -> Result<String, String> {
    let wanted = text.trim().to_ascii_uppercase();
    match checks::all().any(|check| names(&wanted, check)) {
        true => Ok(wanted),
        false => Err("no check has this id: --list shows all".into()),
    }
}

/// Whether an id, or a beginning of ids that ends at a dash, names the check.
#[must_use]
pub fn names(wanted: &str, check: &Check) -> bool {
    check.id.strip_prefix(wanted.trim_end_matches('-')).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

impl Arguments {
    /// Whether a check is asked for.
    #[must_use]
    pub fn wants(&self, check: &Check) -> bool {
        let named = |list: &[String]| list.iter().any(|wanted| names(wanted, check));
        (self.only.is_empty() || named(&self.only)) && !named(&self.skip)
    }
}
