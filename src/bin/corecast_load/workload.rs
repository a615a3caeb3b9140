//! The workloads that are streams of artifacts within this process.

use std::time::Duration;

use corecast::config::TopicConfig;
use corecast::types::{Class, TopicId};
use serde_json::json;

use crate::options::{Consensus, Latency, Makers, Run, Throughput};
use crate::report::{Figures, Output, Report, latency_us, quantiles};
use crate::subnet::fault::Fault;
use crate::subnet::flow::{self, Edge, Hold, Measured, Outcome, Pace, Stream, Times};
use crate::subnet::inline::Inline;
use crate::subnet::loopback::{self, Plan};
use crate::subnet::port::Subnet;
use crate::subnet::resident;
use crate::subnet::stop::Stop;
use crate::system::{self, Used};

/// Seconds that a workload measures when nothing else is said.
pub(crate) const SECONDS: u64 = 10;
/// How long deliveries may take after the last artifact was made.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// How long the nodes may take to end.
pub(crate) const SHUTDOWN: Duration = Duration::from_secs(2);

/// A round of consensus.
const ROUND: Duration = Duration::from_secs(1);
const BLOCK: usize = 4 << 20;
/// Bytes of the shares that each node makes in a round.
const SHARES: [usize; 5] = [100, 175, 250, 325, 400];
const INGRESS: usize = 4 << 10;
/// Ingress messages of a round, made by all nodes together.
const INGRESS_PER_ROUND: u32 = 1000;

/// bulk and small: as much as goes through.
pub(crate) fn throughput(options: &Throughput, bulk: bool) -> Result<(), Fault> {
    let (name, class) = if bulk { ("bulk", Class::Bulk) } else { ("small", Class::Normal) };
    let size = options.size.unwrap_or(if bulk { 1 << 20 } else { 1 << 10 });
    let inflight = options.inflight.unwrap_or(if bulk { 16 } else { 64 });
    let nodes = options.run.nodes(4);
    let mut plan = options.run.plan(nodes)?;
    add_topic(&mut plan, name, class, size, inflight, options.relay);
    let stream = Stream {
        maker: 0,
        topic: 0,
        kind: 0,
        sizes: vec![size as usize],
        pace: Pace::Closed { inflight: inflight as usize },
        hold: Hold::UntilComplete,
        relay: options.relay,
    };
    let streams = (0..makers(options.makers, nodes)).map(|maker| Stream { maker, ..stream.clone() });
    single(name, &options.run, size as usize, &plan, streams.collect())
}

/// latency: one artifact after another, at fixed times.
pub(crate) fn latency(options: &Latency) -> Result<(), Fault> {
    let nodes = options.run.nodes(4);
    let mut plan = options.run.plan(nodes)?;
    add_topic(&mut plan, "latency", Class::High, options.size, 64, options.relay);
    let makers = makers(options.makers, nodes);
    let every = Duration::from_secs_f64(1.0 / f64::from(options.rate));
    let stream = |maker: usize| Stream {
        maker,
        topic: 0,
        kind: 0,
        sizes: vec![options.size as usize],
        // The makers take turns, so that together they keep the rate.
        pace: Pace::Open { first: every * maker as u32, every: every * makers as u32 },
        hold: Hold::UntilComplete,
        relay: options.relay,
    };
    single("latency", &options.run, options.size as usize, &plan, (0..makers).map(stream).collect())
}

fn makers(makers: Makers, nodes: u16) -> usize {
    if makers == Makers::All { usize::from(nodes) } else { 1 }
}

/// Adds a topic with room for what its makers have on their way.
pub(crate) fn add_topic(plan: &mut Plan, name: &str, class: Class, size: u32, inflight: u32, relay: bool) {
    plan.settings.artifact_bytes = plan.settings.artifact_bytes.max(size);
    let mut topic = TopicConfig::new(TopicId(plan.topics.len() as u16 + 1), name);
    topic.class = class;
    // Twice what is in flight: an aborted artifact leaves its place a moment later.
    let most = 2 * u64::from(inflight) * u64::from(size);
    topic.pending_bytes = topic.pending_bytes.max(most * u64::from(plan.nodes));
    // Whoever relays has room for what all makers have on their way.
    let makers = if relay { plan.nodes } else { 1 };
    topic.active_bytes = topic.active_bytes.max(most * u64::from(makers));
    topic.slots = topic.slots.max((2 * inflight * u32::from(makers)).min(1 << 16));
    plan.topics.push(topic);
}

/// One run of `streams`, all of one kind.
fn single(
    workload: &'static str,
    run: &Run,
    size: usize,
    plan: &Plan,
    streams: Vec<Stream>,
) -> Result<(), Fault> {
    let output = Output::open(run)?;
    let (outcome, used, peak_rss_bytes) = once(run, plan, streams)?;
    let measured = outcome.all()?;
    let (nodes, outcome) = (plan.nodes, &outcome);
    let report = Report::new(&Figures {
        workload,
        nodes,
        run,
        size,
        outcome,
        measured: &measured,
        used,
        peak_rss_bytes,
    });
    output.conclude(&report, outcome)
}

pub(crate) fn once(run: &Run, plan: &Plan, streams: Vec<Stream>) -> Result<(Outcome, Used, u64), Fault> {
    let stop = Stop::on_signals()?;
    let inline = Inline::all(!run.queued && streams.iter().all(Stream::is_noted));
    let mut subnet = loopback::start(&Plan { inline, ..plan.clone() })?;
    system::run_promptly();
    let measure = run.measure(SECONDS);
    let times = Times { warm_up: (measure / 5).min(Duration::from_secs(1)), measure, grace: GRACE };
    let measured = measure_once(&mut subnet, streams, times, &stop);
    let peak_rss_bytes = resident::peak_rss_bytes();
    let (outcome, used) = shut_down(subnet, measured)?;
    Ok((outcome, used, peak_rss_bytes))
}

pub(crate) fn measure_once(
    subnet: &mut Subnet,
    streams: Vec<Stream>,
    times: Times,
    stop: &Stop,
) -> Result<(Outcome, Used), Fault> {
    let mut used = [Used::now()?; 2];
    let outcome = flow::run(subnet, streams, times, stop, |edge| {
        used[usize::from(edge == Edge::End)] = Used::now()?;
        Ok(())
    })?;
    Ok((outcome, used[1].since(&used[0])))
}

/// Ends the nodes, whatever became of their work; the first fault is the one that is told.
pub(crate) fn shut_down<T>(subnet: Subnet, measured: Result<T, Fault>) -> Result<T, Fault> {
    drop((subnet.ports, subnet.feeds));
    let ended = subnet.host.shutdown(SHUTDOWN);
    let measured = measured?;
    ended.map(|()| measured)
}

/// consensus: what a subnet's rounds send.
pub(crate) fn consensus(options: &Consensus) -> Result<(), Fault> {
    let run = &options.run;
    let nodes = run.nodes(40);
    let mut plan = run.plan(nodes)?;
    let rounds = 5;
    add_topic(&mut plan, "block", Class::High, BLOCK as u32, rounds, options.relay);
    add_topic(&mut plan, "share", Class::Critical, 400, rounds * SHARES.len() as u32, options.relay);
    let ingress = (INGRESS_PER_ROUND * rounds).div_ceil(u32::from(nodes));
    add_topic(&mut plan, "ingress", Class::Normal, INGRESS as u32, ingress, options.relay);
    let output = Output::open(run)?;
    let (outcome, used, peak_rss_bytes) = once(run, &plan, rounds_of(nodes, options.relay))?;
    let all = outcome.all()?;
    let mut report = Report::new(&Figures {
        workload: "consensus",
        nodes,
        run,
        size: 0,
        outcome: &outcome,
        measured: &all,
        used,
        peak_rss_bytes,
    });
    let kind = |kind: &Measured| {
        json!({
            "artifacts": kind.artifacts,
            "latency_us": latency_us(&kind.last),
            "quorum_latency_us": latency_us(&kind.quorum),
            "late_us": latency_us(&kind.late),
        })
    };
    let [block, share, ingress] = [0, 1, 2].map(|index| &outcome.kinds[index]);
    report.add(
        "consensus",
        json!({
            "block": kind(block),
            "share": kind(share),
            "ingress": kind(ingress),
            "forestalled": outcome.forestalled,
        }),
    );
    report.row("blocks to the last receiver", quantiles(&block.last));
    report.row("blocks to the quorum", quantiles(&block.quorum));
    report.row("shares to the last receiver", quantiles(&share.last));
    report.row("shares to the quorum", quantiles(&share.quorum));
    report.row("ingress to the last receiver", quantiles(&ingress.last));
    report.row("ingress to the quorum", quantiles(&ingress.quorum));
    report.row("deliveries forestalled by an abort", outcome.forestalled.to_string());
    output.conclude(&report, &outcome)
}

/// Per round a block from one node in turn, five shares from each, all nodes at the same times, and ingress evenly spread.
fn rounds_of(nodes: u16, relay: bool) -> Vec<Stream> {
    let all = u32::from(nodes);
    let share = ROUND / SHARES.len() as u32;
    let message = ROUND / INGRESS_PER_ROUND;
    let kinds = |maker: u32| {
        [
            (vec![BLOCK], ROUND * maker, ROUND * all),
            (SHARES.to_vec(), share / 2, share),
            (vec![INGRESS], message * maker, message * all),
        ]
    };
    let hold = Hold::For { least: 2 * ROUND, most: 4 * ROUND };
    let streams = (0..all).flat_map(|maker| {
        kinds(maker).into_iter().enumerate().map(move |(kind, (sizes, first, every))| Stream {
            maker: maker as usize,
            topic: kind,
            kind,
            sizes,
            pace: Pace::Open { first, every },
            hold,
            relay,
        })
    });
    streams.collect()
}
