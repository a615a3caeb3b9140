//! corecast-load: how much, how fast, at what cost, with all nodes of a subnet on this host.

mod abort_storm;
mod board;
mod classes;
mod idle;
mod intake;
mod mixed;
mod options;
mod raw_keys;
mod reader;
mod reading;
mod receivers;
mod rejoin;
mod report;
mod sim;
mod slow_consumer;
mod stall;
#[path = "../subnet/mod.rs"]
#[allow(dead_code, reason = "each tool uses its part")]
mod subnet;
mod system;
mod workload;

use std::process::ExitCode;

use options::{Cli, Tool};
use subnet::fault::Fault;
use subnet::{memory, terminal};

fn main() -> ExitCode {
    memory::keep_freed();
    let done = terminal::parse::<Cli>().and_then(|cli| cli.map_or(Ok(()), |cli| run(&cli.tool)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => fault.report("corecast-load"),
    }
}

fn run(tool: &Tool) -> Result<(), Fault> {
    match tool {
        Tool::Bulk(options) => workload::throughput(options, true),
        Tool::Small(options) => workload::throughput(options, false),
        Tool::Latency(options) => workload::latency(options),
        Tool::Mixed(options) => mixed::run(options),
        Tool::Consensus(options) => workload::consensus(options),
        Tool::Classes(options) => classes::run(options),
        Tool::Stall(options) => stall::run(options),
        Tool::SlowConsumer(options) => slow_consumer::run(options),
        Tool::AbortStorm(options) => abort_storm::run(options),
        Tool::Rejoin(options) => rejoin::run(options),
        Tool::Idle(options) => idle::run(options),
        Tool::Sim(options) => sim::run(options),
        Tool::Receivers => receivers::serve(),
    }
}
