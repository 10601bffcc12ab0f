//! `rusty-db-sim`: whole clusters on virtual time, with everything that can go wrong, from seeds.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    rustydb_tools::sim::main()
}
