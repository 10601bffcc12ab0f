//! `rusty-db-preflight`: looks at this host and says what a node would miss.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use rustydb_preflight::args::{Arguments, names};
use rustydb_preflight::checks;
use rustydb_preflight::host::Host;
use rustydb_preflight::needs::Needs;
use rustydb_preflight::probe::{self, Options};
use rustydb_preflight::report::{self, Report};

/// EX_USAGE of sysexits.h: 2 is taken.
const WRONG_ARGUMENTS: u8 = 64;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            // Nobody is left to tell when the terminal is gone.
            error.print().ok();
            return if asked { ExitCode::SUCCESS } else { ExitCode::from(WRONG_ARGUMENTS) };
        }
    };
    if arguments.list {
        return say(&report::list());
    }
    if let Some(id) = &arguments.explain {
        return say(&checks::all().filter(|check| names(id, check)).map(report::explanation).collect::<String>());
    }
    let needs = Needs::read(arguments.config.as_deref(), arguments.volume.as_deref());
    let facts = probe::gather(&needs, Options { writes: arguments.probe_writes });
    let host = Host::new(Path::new("/"), facts, needs);
    let report = Report::new(&host, checks::run(&host, |check| arguments.wants(check)));
    if arguments.json {
        let text = serde_json::to_string_pretty(&report).expect("a report is plain data");
        say(&format!("{text}\n"));
    } else {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        say(&report.table(colours, arguments.quiet));
    }
    ExitCode::from(report.exit_status(arguments.strict))
}

/// On standard output. Whoever has heard enough (`| head`) ends it.
fn say(text: &str) -> ExitCode {
    std::io::stdout().write_all(text.as_bytes()).ok();
    ExitCode::SUCCESS
}
