//! `rusty-db-cli`: looks at a cluster from outside.

use std::process::ExitCode;

fn main() -> ExitCode {
    rustydb_tools::cli::main()
}
