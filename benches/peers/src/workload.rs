//! The workloads as streams of artifacts.

use std::time::Duration;

use crate::options::{Choice, Makers, Workload};

/// Artifacts that one node makes, one after another.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    /// What its latencies are filed under.
    pub(crate) kind: Kind,
    /// Which node.
    pub(crate) maker: usize,
    /// Bytes of each artifact, in turn.
    pub(crate) sizes: Vec<usize>,
    pub(crate) pace: Pace,
    /// When an artifact is taken back; with none, once all have it.
    pub(crate) active: Option<Duration>,
}

/// What an artifact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Body,
    /// Urgent: goes first where a peer has priorities.
    Probe,
    /// Urgent too.
    Block,
    /// And so is this.
    Share,
    Ingress,
}

/// When artifacts are made.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// So many are on their way at a time: whenever one is complete, the next is made.
    Closed { inflight: usize },
    /// At fixed times, whether or not the peers keep up. Latency counts from the intended time.
    Open { first: Duration, every: Duration },
}

/// A round of consensus.
const ROUND: Duration = Duration::from_secs(1);
const BLOCK: usize = 4 << 20;
const SHARES: [usize; 5] = [100, 175, 250, 325, 400];
const INGRESS: (u32, usize) = (1_000, 4 << 10);
/// Artifacts of consensus are taken back in turn after so many rounds.
const ACTIVE: [u32; 3] = [2, 3, 4];
/// One probe, and how often.
const PROBE: (usize, Duration) = (1 << 10, Duration::from_millis(10));

impl Kind {
    pub(crate) const ALL: [Kind; 5] = [Kind::Body, Kind::Probe, Kind::Block, Kind::Share, Kind::Ingress];

    pub(crate) fn is_urgent(self) -> bool {
        matches!(self, Kind::Probe | Kind::Block | Kind::Share)
    }
}

/// Who makes what, when.
pub(crate) fn streams(choice: &Choice) -> Vec<Stream> {
    let body = |maker: usize, pace: Pace| Stream {
        kind: Kind::Body,
        maker,
        sizes: vec![choice.size],
        pace,
        active: None,
    };
    let makers = if choice.makers == Makers::All { choice.nodes } else { 1 };
    let closed = Pace::Closed { inflight: choice.inflight };
    let every = Duration::from_secs_f64(1.0 / f64::from(choice.rate));
    let open = |maker: usize| Pace::Open { first: every * maker as u32, every: every * makers as u32 };
    match choice.workload {
        Workload::Bulk | Workload::Small => (0..makers).map(|maker| body(maker, closed)).collect(),
        Workload::Stall => vec![body(0, closed)],
        Workload::Latency => (0..makers).map(|maker| body(maker, open(maker))).collect(),
        Workload::Rejoin => {
            // The last node is the one that goes, so it makes nothing; and nothing is taken back.
            let makers = choice.nodes - 1;
            let pace =
                |maker: usize| Pace::Open { first: every * maker as u32, every: every * makers as u32 };
            let hold = Some(Duration::from_secs(3600));
            (0..makers).map(|maker| Stream { active: hold, ..body(maker, pace(maker)) }).collect()
        }
        Workload::Mixed => {
            let probe = Pace::Open { first: Duration::ZERO, every: PROBE.1 };
            let probes = Stream { kind: Kind::Probe, sizes: vec![PROBE.0], ..body(0, probe) };
            vec![body(0, closed), probes]
        }
        Workload::Consensus => consensus(choice.nodes),
        Workload::Idle => Vec::new(),
    }
}

/// A round's block comes from each node in turn, shares from all at the same times, and ingress is evenly spread.
fn consensus(nodes: usize) -> Vec<Stream> {
    let mut streams = Vec::new();
    let turns = nodes as u32;
    for maker in 0..nodes {
        let turn = maker as u32;
        let mut add = |kind, sizes: &[usize], first, every| {
            streams.push(Stream {
                kind,
                maker,
                sizes: sizes.to_vec(),
                pace: Pace::Open { first, every },
                active: Some(ROUND * ACTIVE[maker % ACTIVE.len()]),
            });
        };
        add(Kind::Block, &[BLOCK], ROUND * turn, ROUND * turns);
        let share = ROUND / SHARES.len() as u32;
        add(Kind::Share, &SHARES, share / 2, share);
        let ingress = ROUND / INGRESS.0;
        add(Kind::Ingress, &[INGRESS.1], ingress * turn, ingress * turns);
    }
    streams
}
