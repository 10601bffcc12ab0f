//! The server program: its arguments, and what each of them starts.

mod args;
mod clients;
mod dev;
mod init;
mod listen;
mod metrics;
mod native;
mod node;
mod statistics;

use std::process::ExitCode;

use clap::Parser;

use self::args::{Arguments, Command};

/// What went wrong, in one line for the operator, and the exit status that says of which kind it is.
#[derive(Debug)]
pub struct Failure {
    message: String,
    status: u8,
}

impl Failure {
    /// Exit status of a node without which the cluster goes on: its supervisor starts it again, and it joins.
    pub const LIFE_OVER: u8 = 75;

    /// Exit status of a node that is none of the cluster's, or no more: no supervisor is to start it again.
    pub const REMOVED: u8 = 77;

    /// Something at run time: status 1.
    pub fn new(message: impl ToString) -> Failure {
        Failure { message: message.to_string(), status: 1 }
    }

    /// The operator's input is wrong, starting again won't help: status 2.
    pub fn input(message: impl ToString) -> Failure {
        Failure { message: message.to_string(), status: 2 }
    }

    /// With a status of its own.
    pub fn with_status(message: impl ToString, status: u8) -> Failure {
        Failure { message: message.to_string(), status }
    }
}

/// Runs the program on the process's arguments.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match (&arguments.command, &arguments.config, arguments.init_rac) {
        (Some(Command::Dev(options)), None, false) => dev::run(options),
        (None, Some(config), false) => node::run(config),
        (None, None, true) => init::run(&arguments),
        _ => Err(Failure::input(
            "say one thing to do: `dev` for a development cluster, `--config FILE` for one node, `--init-rac --shared-storage PATH` to format a volume (see --help)",
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("rusty-db-server: {}", failure.message);
            ExitCode::from(failure.status)
        }
    }
}
