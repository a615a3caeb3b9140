//! The command line: a subcommand for each workload, with the options that it knows.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use corecast::Class;
use corecast::types::Weights;

use crate::sim::SimOptions;
use crate::subnet::cores::{self, CoreList};
use crate::subnet::fault::{Exit, Fault};
use crate::subnet::flow::{MAX_NODES, STAMP};
use crate::subnet::inline::Inline;
use crate::subnet::loopback::Plan;

/// Bytes of an artifact: the stamp that tells them apart, up to the most that a node takes.
const SIZES: std::ops::RangeInclusive<i64> = STAMP as i64..=64 << 20;
/// How long an executor looks for work before it parks, when nothing else is said.
const SPIN: Duration = Duration::from_micros(50);

/// Measure a subnet on loopback; or simulate one.
#[derive(Debug, Parser)]
#[command(name = "corecast-load", version, max_term_width = 100, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) tool: Tool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Tool {
    /// Throughput of large artifacts: as many as go through
    Bulk(Throughput),
    /// Throughput of small artifacts: as many as go through
    Small(Throughput),
    /// Latency of single artifacts, made at fixed times whether or not the subnet keeps up
    Latency(Latency),
    /// Critical probes at fixed times, bulk, and both of the same node, in turn
    Mixed(Mixed),
    /// Blocks, shares and ingress messages of consensus rounds of a second, aborted after two to four rounds
    Consensus(Consensus),
    /// All four classes from one node, each with more to send than goes through, and how they share
    Classes(Classes),
    /// Bulk while one receiver stops and comes back
    Stall(Stall),
    /// One topic's consumer at one node takes nothing for a time, while every topic goes on
    SlowConsumer(SlowConsumer),
    /// Artifacts made at fixed times and aborted milliseconds later
    AbortStorm(AbortStorm),
    /// A node that ends and starts again while the others go on
    Rejoin(Rejoin),
    /// Nodes that are connected, and nothing to send
    Idle(Idle),
    /// Run the engine in virtual time under faults and hostile members, by seed, and check every promise
    Sim(SimOptions),
    /// Nodes of `stall` in a process of their own
    #[command(hide = true)]
    Receivers,
}

/// What every workload knows.
#[derive(Debug, Clone, Args)]
pub(crate) struct Run {
    /// Nodes of the subnet [default: 4; consensus and idle 40]
    #[arg(long, value_parser = value_parser!(u16).range(2..=i64::from(MAX_NODES)))]
    pub(crate) nodes: Option<u16>,
    /// Lanes of each node
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u16).range(1..=256))]
    pub(crate) lanes: u16,
    /// Seconds that are measured, after a warm-up of a fifth of them (at most one second); for stall, slow-consumer and
    /// rejoin those before the mishap, and as many after it [default: 10; stall, slow-consumer and rejoin 5]
    #[arg(long, value_parser = value_parser!(u64).range(1..=86_400))]
    pub(crate) seconds: Option<u64>,
    /// Bytes of UDP payload of a datagram at most, 1200 to 9000
    #[arg(long, default_value_t = 1452, value_parser = value_parser!(u16).range(1200..=9000))]
    pub(crate) mtu: u16,
    /// Cores to pin executors to, as in 0-3,6 [default: the first of those allowed, one for each lane]
    #[arg(long, value_name = "LIST")]
    pub(crate) cores: Option<CoreList>,
    /// What an executor without work does [default: park, or spin-then-park with --spin]
    #[arg(long, value_enum)]
    pub(crate) wait: Option<Wait>,
    /// Microseconds that an executor looks for work before it parks, for spin-then-park [default: 50]
    #[arg(long, value_name = "MICROSECONDS", value_parser = value_parser!(u64).range(0..=1_000_000))]
    pub(crate) spin: Option<u64>,
    /// Take deliveries from the nodes' queues on another thread, as relaying always does, not on the lanes' own
    #[arg(long)]
    pub(crate) queued: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    /// Write the JSON object to this file as well; what it held is replaced at the end of the run
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

/// What an executor without work does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Wait {
    /// Sleep until something happens
    Park,
    /// Look for work for some microseconds, then sleep
    SpinThenPark,
    /// Look for work for ever: costs the core, and saves the wake-up
    Spin,
}

/// Who makes artifacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Makers {
    /// Every node
    All,
    /// The first node alone
    #[value(alias = "one")]
    First,
}

#[derive(Debug, Args)]
pub(crate) struct Throughput {
    #[command(flatten)]
    pub(crate) run: Run,
    /// Bytes of each artifact [default: bulk 1048576, small 1024]
    #[arg(long, value_name = "BYTES", value_parser = value_parser!(u32).range(SIZES))]
    pub(crate) size: Option<u32>,
    /// Artifacts that each maker has on their way at a time [default: bulk 16, small 64]
    #[arg(long, value_name = "K", value_parser = value_parser!(u32).range(1..=4096))]
    pub(crate) inflight: Option<u32>,
    /// Who makes artifacts
    #[arg(long, value_enum, default_value_t = Makers::All)]
    pub(crate) makers: Makers,
    /// Receivers relay what they have, as replicas do, until all have it
    #[arg(long)]
    pub(crate) relay: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Latency {
    #[command(flatten)]
    pub(crate) run: Run,
    /// Bytes of each artifact
    #[arg(long, value_name = "BYTES", default_value_t = 1024, value_parser = value_parser!(u32).range(SIZES))]
    pub(crate) size: u32,
    /// Artifacts per second in all
    #[arg(long, value_name = "PER_SECOND", default_value_t = 100, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub(crate) rate: u32,
    /// Who makes artifacts: every node in turn, or the first one alone
    #[arg(long, value_enum, default_value_t = Makers::All)]
    pub(crate) makers: Makers,
    /// Receivers relay what they have, as replicas do, until all have it
    #[arg(long)]
    pub(crate) relay: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Mixed {
    #[command(flatten)]
    pub(crate) run: Run,
    /// Bytes of each bulk artifact
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, value_parser = value_parser!(u32).range(SIZES))]
    pub(crate) size: u32,
    /// Bulk artifacts on their way at a time
    #[arg(long, value_name = "K", default_value_t = 16, value_parser = value_parser!(u32).range(1..=4096))]
    pub(crate) inflight: u32,
    /// Bytes of each probe
    #[arg(long, value_name = "BYTES", default_value_t = 1024, value_parser = value_parser!(u32).range(SIZES))]
    pub(crate) probe_size: u32,
    /// Probes per second
    #[arg(long, value_name = "PER_SECOND", default_value_t = 100, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(crate) rate: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Classes {
    #[command(flatten)]
    pub(crate) run: Run,
    /// Bytes of each artifact
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 10, value_parser = value_parser!(u32).range(SIZES))]
    pub(crate) size: u32,
    /// Artifacts of each class on their way at a time
    #[arg(long, value_name = "K", default_value_t = 128, value_parser = value_parser!(u32).range(1..=4096))]
    pub(crate) inflight: u32,
    /// What each class has of a contended link, the most urgent first
    #[arg(long, value_name = "C,H,N,B", default_value_t = Weights::DEFAULT)]
    pub(crate) weights: Weights,
}

#[derive(Debug, Args)]
pub(crate) struct Consensus {
    #[command(flatten)]
    pub(crate) run: Run,
    /// Receivers relay what they have, as replicas do, until it is aborted
    #[arg(long)]
    pub(crate) relay: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SlowConsumer {
    #[command(flatten)]
    pub(crate) run: Run,
    /// Class of the topic whose consumer at one node takes nothing for a time; the other classes have a topic of probes each
    #[arg(long, value_name = "CLASS", default_value = "normal", value_parser = class_of)]
    pub(crate) held: Class,
    /// Seconds that it takes nothing for
    #[arg(long, default_value_t = 10, value_parser = value_parser!(u64).range(1..=3600))]
    pub(crate) hold_seconds: u64,
    /// Bytes of each artifact of that topic
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 10, value_parser = value_parser!(u32).range(SIZES))]
    pub(crate) size: u32,
    /// Artifacts per second of that topic
    #[arg(long, value_name = "PER_SECOND", default_value_t = 500, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(crate) rate: u32,
    /// Bytes of each probe
    #[arg(long, value_name = "BYTES", default_value_t = 1024, value_parser = value_parser!(u32).range(SIZES))]
    pub(crate) probe_size: u32,
    /// Probes per second of each other topic
    #[arg(long, value_name = "PER_SECOND", default_value_t = 100, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(crate) probe_rate: u32,
}

/// A class by its name.
fn class_of(name: &str) -> Result<Class, String> {
    let found = Class::ALL.into_iter().find(|class| class.to_string() == name);
    found.ok_or_else(|| "possible values: critical, high, normal, bulk".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct AbortStorm {
    #[command(flatten)]
    pub(crate) run: Run,
    /// Bytes of each artifact
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, value_parser = value_parser!(u32).range(SIZES))]
    pub(crate) size: u32,
    /// Artifacts per second
    #[arg(long, value_name = "PER_SECOND", default_value_t = 1000, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(crate) rate: u32,
    /// Milliseconds from making an artifact to its abort
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 10, value_parser = value_parser!(u64).range(0..=10_000))]
    pub(crate) life_ms: u64,
}

/// How a receiver stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StallKind {
    /// Its consumer takes no deliveries, while its node runs on
    Application,
    /// Its whole process is stopped (SIGSTOP) and continued
    Process,
    /// It is no node but a member by hand, which acknowledges all that comes and reads none of it
    Unread,
}

#[derive(Debug, Args)]
pub(crate) struct Stall {
    #[command(flatten)]
    pub(crate) run: Run,
    /// Bytes of each artifact
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, value_parser = value_parser!(u32).range(SIZES))]
    pub(crate) size: u32,
    /// Artifacts on their way to the healthy receivers at a time
    #[arg(long, value_name = "K", default_value_t = 16, value_parser = value_parser!(u32).range(1..=1024))]
    pub(crate) inflight: u32,
    /// How the receiver stops
    #[arg(long, value_enum, default_value_t = StallKind::Application)]
    pub(crate) stall: StallKind,
    /// Seconds that it stops for
    #[arg(long, default_value_t = 10, value_parser = value_parser!(u64).range(1..=3600))]
    pub(crate) stall_seconds: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Rejoin {
    #[command(flatten)]
    pub(crate) run: Run,
    /// Bytes of each artifact
    #[arg(long, value_name = "BYTES", default_value_t = 1024, value_parser = value_parser!(u32).range(SIZES))]
    pub(crate) size: u32,
    /// Artifacts per second in all, made by the other nodes in turn
    #[arg(long, value_name = "PER_SECOND", default_value_t = 100, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(crate) rate: u32,
    /// Seconds that the node is away
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u64).range(1..=3600))]
    pub(crate) away_seconds: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Idle {
    #[command(flatten)]
    pub(crate) run: Run,
}

impl Run {
    /// Nodes, when the workload's default is `default`.
    pub(crate) fn nodes(&self, default: u16) -> u16 {
        self.nodes.unwrap_or(default)
    }

    /// Measured time, when the workload's default is `default` seconds.
    pub(crate) fn measure(&self, default: u64) -> Duration {
        Duration::from_secs(self.seconds.unwrap_or(default))
    }

    /// How long executors look for work before they park; `Duration::MAX` when they never do.
    pub(crate) fn spin(&self) -> Result<Duration, Fault> {
        match (self.wait, self.spin.map(Duration::from_micros)) {
            (None, spin) => Ok(spin.unwrap_or_default()),
            (Some(Wait::SpinThenPark), spin) => Ok(spin.unwrap_or(SPIN)),
            (Some(Wait::Park), None) => Ok(Duration::ZERO),
            (Some(Wait::Spin), None) => Ok(Duration::MAX),
            (Some(Wait::Park | Wait::Spin), Some(_)) => Err(Fault::new(
                Exit::Usage,
                "--spin is for --wait spin-then-park; park never looks for work, and spin never ends to",
            )),
        }
    }

    /// A subnet of so many nodes, without topics yet.
    pub(crate) fn plan(&self, nodes: u16) -> Result<Plan, Fault> {
        let mut settings = corecast::Settings::default();
        settings.mtu = self.mtu;
        let lanes_in_all = usize::from(nodes) * usize::from(self.lanes);
        let cores = cores::choose(self.cores.as_ref(), lanes_in_all)?;
        let (lanes, spin, topics) = (self.lanes, self.spin()?, Vec::new());
        Ok(Plan { nodes, lanes, cores, spin, settings, topics, inline: Inline::None })
    }
}
