//! corecast-load: how much, how fast, at what cost, with all nodes of a subnet in this process.

mod report;
mod sim;
#[path = "../subnet/mod.rs"]
#[allow(dead_code, reason = "each tool uses its part")]
mod subnet;
mod usage;
mod workload;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use subnet::cores::{self, CoreList};
use subnet::fault::{Exit, Fault};
use subnet::flow::{self, Edge, Flaws, Outcome, Times};
use subnet::stop::Stop;
use subnet::{loopback, memory, terminal};
use workload::{Makers, Workload};

/// Bytes of an artifact: the stamp that tells them apart, up to the most that a node takes.
const SIZES: std::ops::RangeInclusive<i64> = flow::STAMP as i64..=64 << 20;

/// Measure a subnet whose nodes all run in this process, over loopback; or simulate one.
#[derive(Debug, Parser)]
#[command(name = "corecast-load", version, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    tool: Option<Tool>,
    #[command(flatten)]
    options: Option<Options>,
}

#[derive(Debug, Subcommand)]
enum Tool {
    /// Run the engine in virtual time under faults and hostile members, by seed, and check every promise
    Sim(sim::SimOptions),
}

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// bulk: large artifacts, as many as go through. small: the same with small ones. latency: at fixed times, one by one
    #[arg(value_enum)]
    workload: Workload,
    /// Nodes in this process
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(2..=i64::from(flow::MAX_NODES)))]
    nodes: u16,
    /// Lanes of each node
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    lanes: u16,
    /// Bytes of each artifact [default: bulk 1048576, small and latency 1024]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(SIZES))]
    size: Option<u32>,
    /// Artifacts that each maker has on their way at a time [default: bulk 16, small 64; not for latency]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=4096))]
    inflight: Option<u32>,
    /// Seconds that are measured, after a warm-up of a fifth of them (at most one second)
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Bytes of UDP payload of each datagram, 1200 to 9000
    #[arg(long, default_value_t = 1452, value_parser = clap::value_parser!(u16).range(1200..=9000))]
    mtu: u16,
    /// Artifacts per second in all, for latency only [default: 200]
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// Who makes artifacts: every node, in turn for latency; or the first one alone
    #[arg(long, value_enum, default_value_t = Makers::All)]
    makers: Makers,
    /// Cores to pin executors to, as in 0-3,6 [default: the first of those allowed, one for each lane]
    #[arg(long, value_name = "LIST")]
    cores: Option<CoreList>,
    /// Receivers relay what they have, as replicas do, until all have it
    #[arg(long)]
    relay: bool,
    /// Microseconds that an executor looks for work before it parks
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    spin: u64,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    memory::keep_freed();
    let done = terminal::parse::<Cli>().and_then(|cli| match cli {
        Some(Cli { tool: Some(Tool::Sim(options)), .. }) => sim::run(&options),
        Some(Cli { options: Some(options), .. }) => measure(&options),
        Some(_) | None => Ok(()),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => fault.report("corecast-load"),
    }
}

fn measure(options: &Options) -> Result<(), Fault> {
    options.check()?;
    let stop = Stop::on_signals()?;
    let plan = workload::plan(options, cores::choose(options.cores.as_ref(), options.lanes_in_all())?);
    let mut subnet = loopback::start(&plan)?;
    usage::sleep_precisely();
    let mut cpu = [0.0; 2];
    let times = Times {
        warm_up: Duration::from_secs_f64((options.seconds as f64 / 5.0).min(1.0)),
        measure: Duration::from_secs(options.seconds),
        grace: Duration::from_secs(10),
    };
    let outcome = flow::run(&mut subnet, workload::streams(options), times, &stop, |edge| {
        cpu[usize::from(edge == Edge::End)] = usage::cpu_seconds()?;
        Ok(())
    })?;
    let peak_rss = usage::peak_rss_bytes();
    subnet.ports.clear();
    subnet.feeds.clear();
    subnet.host.shutdown(Duration::from_secs(2))?;
    let report = report::Report::new(options, &outcome, cpu[1] - cpu[0], peak_rss);
    terminal::say(&if options.json { report.json() } else { report.table() })?;
    verdict(&outcome)
}

/// Every artifact must have reached every other node exactly once.
fn verdict(outcome: &Outcome) -> Result<(), Fault> {
    let Flaws { lost, twice, foreign } = outcome.flaws;
    if outcome.flaws == Flaws::default() {
        return Ok(());
    }
    let problem =
        format!("{lost} deliveries were lost, {twice} came twice, {foreign} brought what nobody made");
    Err(Fault::new(Exit::Software, format!("{problem}; each artifact must reach each other node once")))
}

impl Options {
    fn lanes_in_all(&self) -> usize {
        usize::from(self.nodes) * usize::from(self.lanes)
    }

    fn check(&self) -> Result<(), Fault> {
        let usage = |problem: &str| Err(Fault::new(Exit::Usage, problem));
        match (self.workload, self.inflight, self.rate) {
            (Workload::Latency, Some(_), _) => usage(
                "--inflight is for bulk and small; latency makes artifacts at fixed times, --rate says how many",
            ),
            (Workload::Bulk | Workload::Small, _, Some(_)) => usage(
                "--rate is for latency; bulk and small make as much as goes through, --inflight bounds it",
            ),
            _ => Ok(()),
        }
    }
}
