//! The three workloads as streams of artifacts.

use std::time::Duration;

use clap::ValueEnum;
use corecast::config::{Settings, TopicConfig};
use corecast::types::{Class, TopicId};

use crate::Options;
use crate::subnet::flow::{Pace, Stream};
use crate::subnet::loopback::Plan;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// Throughput of large artifacts.
    Bulk,
    /// Throughput of small artifacts.
    Small,
    /// Latency of single artifacts.
    Latency,
}

/// Who makes artifacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Makers {
    /// Every node.
    All,
    /// The first node.
    One,
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

impl Options {
    /// Bytes of each artifact.
    pub(crate) fn artifact_size(&self) -> usize {
        let default = if self.workload == Workload::Bulk { 1 << 20 } else { 1 << 10 };
        self.size.map_or(default, |size| size as usize)
    }

    fn inflight(&self) -> usize {
        let default = if self.workload == Workload::Bulk { 16 } else { 64 };
        self.inflight.map_or(default, |inflight| inflight as usize)
    }

    fn makers(&self) -> usize {
        if self.makers == Makers::All { usize::from(self.nodes) } else { 1 }
    }
}

/// The subnet that carries the workload, in one topic.
pub(crate) fn plan(options: &Options, cores: Vec<usize>) -> Plan {
    let mut settings = Settings::default();
    settings.mtu = options.mtu;
    settings.artifact_bytes = settings.artifact_bytes.max(options.artifact_size() as u32);
    let mut topic = TopicConfig::new(TopicId(1), options.workload.name());
    topic.class = match options.workload {
        Workload::Bulk => Class::Bulk,
        Workload::Small => Class::Normal,
        Workload::Latency => Class::High,
    };
    // Twice what is in flight: an aborted artifact leaves its place a moment later.
    let most = 2 * options.inflight() as u64 * options.artifact_size() as u64;
    topic.pending_bytes = topic.pending_bytes.max(most * u64::from(options.nodes));
    // Whoever relays has room for what all makers have on their way.
    let makers = if options.relay { options.nodes } else { 1 };
    topic.active_bytes = topic.active_bytes.max(most * u64::from(makers));
    topic.slots = topic.slots.max(2 * options.inflight() as u32 * u32::from(makers));
    let spin = Duration::from_micros(options.spin);
    Plan { nodes: options.nodes, lanes: options.lanes, cores, spin, settings, topics: vec![topic] }
}

/// Who makes what, when.
pub(crate) fn streams(options: &Options) -> Vec<Stream> {
    let makers = options.makers();
    let every = Duration::from_secs_f64(1.0 / f64::from(options.rate.unwrap_or(200)));
    let pace = |maker: usize| match options.workload {
        Workload::Bulk | Workload::Small => Pace::Closed { inflight: options.inflight() },
        // The makers take turns, so that together they keep the rate.
        Workload::Latency => Pace::Open { first: every * maker as u32, every: every * makers as u32 },
    };
    let sizes = vec![options.artifact_size()];
    (0..makers)
        .map(|maker| Stream {
            maker,
            topic: 0,
            sizes: sizes.clone(),
            pace: pace(maker),
            relay: options.relay,
        })
        .collect()
}
