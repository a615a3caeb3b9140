//! What is measured, and how large; the same names as corecast-load's.

use std::time::Duration;

use clap::{Args, ValueEnum};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// As much as goes through of large artifacts.
    Bulk,
    /// The same of small ones.
    Small,
    /// One by one, at fixed times.
    Latency,
    /// Bulk from one node, which also makes a probe of 1 KiB every 10 ms.
    Mixed,
    /// Rounds of one second: a block of 4 MiB, five shares of each node, 1,000 ingress messages.
    Consensus,
    /// Bulk, and one receiver stops reading for ten seconds.
    Stall,
    /// One node is closed for three seconds and restarted with its key.
    Rejoin,
    /// Nothing but connections.
    Idle,
}

/// What makers and receivers of a peer do with a body. corecast hashes it at both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Work {
    /// One body is sent again and again; receivers that get it in pieces throw them away.
    Discard,
    /// Each artifact is a body of its own, and each receiver has it whole in the end.
    Deliver,
    /// Makers hash it with BLAKE3, and receivers compare.
    Verify,
}

/// Who makes artifacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Makers {
    /// Every node, in turn where the pace is fixed.
    All,
    /// The first node.
    First,
}

/// The options that a run and corecast-load have in common.
#[derive(Debug, Clone, Args)]
pub(crate) struct Load {
    /// Nodes in one process [default: 4; consensus and idle 40]
    #[arg(long, value_parser = clap::value_parser!(u16).range(2..=64))]
    nodes: Option<u16>,
    /// Bytes of each artifact [default: bulk, mixed and stall 1048576; small, latency and rejoin 1024]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(16..=64 << 20))]
    size: Option<u32>,
    /// Artifacts that each maker has on their way [default: bulk, mixed and stall 16; small 64]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=4096))]
    inflight: Option<u32>,
    /// Artifacts per second in all, for latency and rejoin
    #[arg(long, value_name = "PER_SECOND", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Seconds that each run measures, after a warm-up of a fifth of them (at most one second); idle ten at least
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Bytes of UDP payload of each datagram; quinn and what is built on it get 6500 at most, compio-quic 2040: their batches for
    /// one system call exceed 64 KiB beyond
    #[arg(long, default_value_t = 1452, value_parser = clap::value_parser!(u16).range(1200..=9000))]
    mtu: u16,
    /// Who makes artifacts [default: bulk the first node; small and latency all]
    #[arg(long, value_enum)]
    makers: Option<Makers>,
    /// Threads of a peer's runtime, and cores of corecast's executors
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    cores: u16,
    /// How much of corecast's work the peers do
    #[arg(long, value_enum, default_value_t = Work::Deliver)]
    work: Work,
}

/// One workload with its figures settled.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) workload: Workload,
    pub(crate) nodes: usize,
    pub(crate) size: usize,
    pub(crate) inflight: usize,
    pub(crate) rate: u32,
    pub(crate) seconds: u64,
    pub(crate) mtu: u16,
    pub(crate) makers: Makers,
    pub(crate) cores: usize,
    pub(crate) work: Work,
}

impl Choice {
    pub(crate) fn new(workload: Workload, load: &Load) -> Choice {
        let large = matches!(workload, Workload::Bulk | Workload::Mixed | Workload::Stall);
        let nodes = if matches!(workload, Workload::Consensus | Workload::Idle) { 40 } else { 4 };
        let makers = match workload {
            Workload::Bulk | Workload::Mixed | Workload::Stall => Makers::First,
            _ => Makers::All,
        };
        Choice {
            workload,
            nodes: usize::from(load.nodes.unwrap_or(nodes)),
            size: load.size.unwrap_or(if large { 1 << 20 } else { 1 << 10 }) as usize,
            inflight: load.inflight.unwrap_or(if large { 16 } else { 64 }) as usize,
            rate: load.rate,
            // Keep-alives come every five seconds.
            seconds: if workload == Workload::Idle { load.seconds.max(10) } else { load.seconds },
            mtu: load.mtu,
            makers: load.makers.unwrap_or(makers),
            cores: usize::from(load.cores),
            work: load.work,
        }
    }

    /// Before anything is measured.
    pub(crate) fn warm_up(&self) -> Duration {
        Duration::from_secs_f64((self.seconds as f64 / 5.0).min(1.0))
    }

    /// The arguments that give a process this choice, but for those that corecast-load and peers name differently.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![name(self.workload)];
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        add("--nodes", self.nodes.to_string());
        add("--mtu", self.mtu.to_string());
        add("--seconds", self.seconds.to_string());
        match self.workload {
            Workload::Bulk | Workload::Small | Workload::Mixed | Workload::Stall => {
                add("--size", self.size.to_string());
                add("--inflight", self.inflight.to_string());
            }
            Workload::Latency | Workload::Rejoin => {
                add("--size", self.size.to_string());
                add("--rate", self.rate.to_string());
            }
            Workload::Consensus | Workload::Idle => (),
        }
        arguments
    }

    /// Whether the workload lets one choose who makes artifacts.
    pub(crate) fn has_makers(&self) -> bool {
        matches!(self.workload, Workload::Bulk | Workload::Small | Workload::Latency)
    }
}

/// A value as it stands on a command line.
pub(crate) fn name<V: ValueEnum + Copy>(value: V) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
