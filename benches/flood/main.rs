//! corecast beside what a user would write instead: a plain flood over quinn on tokio, doing the same work.
//!
//! `cargo bench --bench flood` runs both in turn for some rounds, each in a process of its own, and prints medians and
//! ratios: four nodes in one process on loopback, mutual TLS, AES-128-GCM, 1,452-byte datagrams, the same allocator.
//! corecast hashes every body at its maker and at each receiver; how much of its work the flood does, [`Work`] says.

mod compare;
mod host;
#[path = "../../src/bin/subnet/memory.rs"]
mod memory;
mod mesh;
mod shapes;
mod work;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};

/// Compare corecast with a flood over quinn on tokio
#[derive(Debug, Clone, Parser)]
#[command(name = "flood", max_term_width = 100)]
pub(crate) struct Options {
    /// What to measure
    #[arg(value_enum, default_values_t = [Workload::Bulk, Workload::Small, Workload::Latency])]
    pub(crate) workloads: Vec<Workload>,
    /// Rounds; each runs every contender once
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Seconds that each run measures
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) seconds: u64,
    /// Nodes in one process
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(2..=128))]
    pub(crate) nodes: u16,
    /// Bytes of each artifact [default: bulk 1048576, small and latency 1024]
    #[arg(long)]
    pub(crate) size: Option<u32>,
    /// Artifacts that each maker has on their way [default: bulk 16, small 64]
    #[arg(long)]
    pub(crate) inflight: Option<u32>,
    /// Artifacts per second in all, for latency
    #[arg(long, default_value_t = 200)]
    pub(crate) rate: u32,
    /// Bytes of UDP payload of each datagram
    #[arg(long, default_value_t = 1452)]
    pub(crate) mtu: u16,
    /// Cores: tokio's threads, and corecast's executors
    #[arg(long, default_value_t = 2)]
    pub(crate) cores: usize,
    /// How much of corecast's work the flood does
    #[arg(long, value_enum, default_value_t = Work::Deliver)]
    pub(crate) work: Work,
    /// Flood shapes to run
    #[arg(long, value_enum, default_values_t = [Shape::Long, Shape::Uni])]
    pub(crate) shapes: Vec<Shape>,
    /// Be the flood of this shape, for the first workload, and print one JSON object
    #[arg(long, value_enum, hide = true)]
    contender: Option<Shape>,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// The same three as corecast-load's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// As much as goes through of large artifacts.
    Bulk,
    /// The same of small ones.
    Small,
    /// One by one, at fixed times.
    Latency,
}

/// How the flood uses streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shape {
    /// One stream and a queue of 64 for each peer.
    Long,
    /// A stream for each artifact and peer.
    Uni,
}

/// What the flood's makers and receivers do with a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Work {
    /// One body is sent again and again, and receivers throw its pieces away as they come: nobody gets an artifact.
    Discard,
    /// Each artifact is a body of its own, and each receiver has it whole in the end.
    Deliver,
    /// Makers and receivers also hash it with BLAKE3, as corecast must.
    Verify,
}

impl Work {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Work::Discard => "discard",
            Work::Deliver => "deliver",
            Work::Verify => "verify",
        }
    }
}

impl Workload {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Workload::Bulk => "bulk",
            Workload::Small => "small",
            Workload::Latency => "latency",
        }
    }
}

impl Shape {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Shape::Long => "long",
            Shape::Uni => "uni",
        }
    }
}

impl Options {
    /// Bytes of each artifact.
    pub(crate) fn size_of(&self, workload: Workload) -> usize {
        let default = if workload == Workload::Bulk { 1 << 20 } else { 1 << 10 };
        self.size.map_or(default, |size| size as usize)
    }

    /// Artifacts of each maker on their way at a time.
    pub(crate) fn inflight_of(&self, workload: Workload) -> usize {
        let default = match workload {
            Workload::Bulk => 16,
            Workload::Small => 64,
            Workload::Latency => 1024,
        };
        self.inflight.map_or(default, |inflight| inflight as usize)
    }
}

/// What a part of the bench fails with; its message is all that matters.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    memory::keep_freed();
    let options = Options::parse();
    let done = match (options.contender, options.workloads.first()) {
        (Some(shape), Some(&workload)) => work::contend(&options, shape, workload),
        _ => compare::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("flood: {failure}");
            ExitCode::FAILURE
        }
    }
}
