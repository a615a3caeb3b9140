//! corecast beside what a user would pick instead, doing the same work.
//!
//! `cargo run --release --manifest-path benches/peers/Cargo.toml` builds corecast-load, runs it and every peer in turn for
//! some rounds, each in a process of its own with all nodes of a subnet on loopback, and prints medians and ratios. Peers have
//! authentication and encryption on, AES-128-GCM where it can be chosen, and corecast-load's allocator. corecast hashes every
//! body at its maker and at each receiver; how much of that work the peers do, [`options::Work`] says.

mod board;
mod compare;
mod contender;
mod contenders;
mod drive;
mod host;
mod intake;
#[path = "../../../src/bin/subnet/memory.rs"]
mod memory;
mod message;
mod options;
mod pace;
mod report;
#[path = "../../../src/bin/subnet/resident.rs"]
mod resident;
mod table;
mod workload;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use contenders::Peer;
use options::{Choice, Load, Workload};

/// Compare corecast with its peers: interleaved rounds, medians, ratios
#[derive(Debug, Parser)]
#[command(name = "peers", max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    contend: Option<Contend>,
    #[command(flatten)]
    compare: compare::Options,
}

#[derive(Debug, Subcommand)]
enum Contend {
    /// Be one peer for one workload, and print one JSON object
    #[command(hide = true)]
    Contend(One),
}

#[derive(Debug, Args)]
struct One {
    #[arg(value_enum)]
    peer: Peer,
    #[arg(value_enum)]
    workload: Workload,
    #[command(flatten)]
    load: Load,
}

/// What a part of the harness fails with; its message is all that matters.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Exit codes of sysexits.h.
const USAGE: u8 = 64;
const SOFTWARE: u8 = 70;

fn main() -> ExitCode {
    memory::keep_freed();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and versions are what was asked for.
            let code = if error.use_stderr() { USAGE } else { 0 };
            error.print().ok();
            return ExitCode::from(code);
        }
    };
    let done = match cli.contend {
        Some(Contend::Contend(one)) => contenders::contend(one.peer, Choice::new(one.workload, &one.load)),
        None => compare::run(&cli.compare),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("peers: {failure}");
            ExitCode::from(SOFTWARE)
        }
    }
}
