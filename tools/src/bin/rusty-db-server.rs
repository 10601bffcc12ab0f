//! `rusty-db-server`: one node, a development cluster of several, or the formatting of a shared volume.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    rustydb_tools::server::main()
}
