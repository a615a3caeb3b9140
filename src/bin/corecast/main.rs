//! corecast: a node, a subnet in one process, and the keys and registries that both need.

mod ask;
mod cli;
mod daemon;
mod devnet;
mod files;
mod identity;
#[path = "../subnet/mod.rs"]
#[allow(dead_code, reason = "each tool uses its part")]
mod subnet;

use std::process::ExitCode;

use cli::{Cli, Command};
use subnet::{memory, terminal};

fn main() -> ExitCode {
    memory::keep_freed();
    let done = terminal::parse::<Cli>().and_then(|cli| match cli.map(|cli| cli.command) {
        None => Ok(()),
        Some(Command::Devnet(options)) => devnet::run(&options),
        Some(Command::Node(options)) => daemon::run(&options),
        Some(Command::Keygen(options)) => identity::keygen(&options),
        Some(Command::Stats(options)) => ask::stats(&options),
        Some(Command::Trace(options)) => ask::trace(&options),
        Some(Command::Registry(command)) => identity::registry(command),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => fault.report("corecast"),
    }
}
