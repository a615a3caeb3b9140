//! What a flow has measured.

use std::time::Duration;

use crate::subnet::counters::Counters;
use crate::subnet::fault::Fault;
use crate::subnet::latency::Latency;
use crate::subnet::resident::Peak;

/// How many of `nodes` may be faulty in a subnet that tolerates as many as can be.
pub(crate) fn faulty(nodes: usize) -> usize {
    nodes.saturating_sub(1) / 3
}

/// Artifacts of one kind within the measured time. One counts when its last receiver has it.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    /// Artifacts that every other node has.
    pub(crate) artifacts: u64,
    /// Deliveries to one node each.
    pub(crate) deliveries: u64,
    /// Over the whole run: deliveries that never came.
    pub(crate) lost: u64,
    /// Bytes delivered.
    pub(crate) bytes: u64,
    /// From making to each delivery.
    pub(crate) each: Latency,
    /// From making to the delivery at the receiver with which a quorum of N - f nodes has it, its maker among them.
    pub(crate) quorum: Latency,
    /// From making to the delivery at the last receiver.
    pub(crate) last: Latency,
    /// From the intended time to when it was really made, at an open pace: the generator's own part of the latencies.
    pub(crate) late: Latency,
}

impl Measured {
    /// Nothing yet.
    pub(crate) fn new() -> Result<Measured, Fault> {
        let latency = Latency::new;
        let (each, quorum, last, late) = (latency()?, latency()?, latency()?, latency()?);
        Ok(Measured { artifacts: 0, deliveries: 0, lost: 0, bytes: 0, each, quorum, last, late })
    }

    /// One more delivery.
    pub(crate) fn count_delivery(&mut self, bytes: usize, took: Duration) {
        self.deliveries += 1;
        self.bytes += bytes as u64;
        self.each.record(took);
    }

    /// Adds what another has measured.
    pub(crate) fn merge(&mut self, other: &Measured) {
        self.artifacts += other.artifacts;
        self.deliveries += other.deliveries;
        self.lost += other.lost;
        self.bytes += other.bytes;
        self.each.merge(&other.each);
        self.quorum.merge(&other.quorum);
        self.last.merge(&other.last);
        self.late.merge(&other.late);
    }
}

impl std::fmt::Display for Flaws {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Flaws { lost, twice, foreign, revived } = self;
        write!(f, "{lost} deliveries were lost, {twice} came twice, {foreign} brought what nobody made, ")?;
        write!(f, "{revived} what had been aborted")
    }
}

/// What was measured.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// Length of the measured time.
    pub(crate) seconds: f64,
    /// By kind of artifact.
    pub(crate) kinds: Vec<Measured>,
    /// The nodes' counters over the measured time.
    pub(crate) counters: Counters,
    /// Over the whole run: what was not delivered exactly once.
    pub(crate) flaws: Flaws,
    /// Over the whole run: deliveries to a node that had let go already, as all had the artifact, on the word of a relay that
    /// had not yet. That is new to the node, and no flaw.
    pub(crate) again: u64,
    /// Over the whole run: deliveries that an abort at its fixed time forestalled. They may come all the same. Such an artifact
    /// counts in the latencies with the time that it had.
    pub(crate) forestalled: u64,
    /// The user ended it early.
    pub(crate) partial: bool,
    /// Over the whole run, where that was looked for.
    pub(crate) peak: Option<Peak>,
}

/// Broken promises of the run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Flaws {
    /// Deliveries that never came.
    pub(crate) lost: u64,
    /// Deliveries that came twice.
    pub(crate) twice: u64,
    /// Bodies that nobody made.
    pub(crate) foreign: u64,
    /// Deliveries to a node that started after the artifact was aborted.
    pub(crate) revived: u64,
}

impl Flaws {
    /// Adds those of another run, or of other artifacts.
    pub(crate) fn add(&mut self, other: &Flaws) {
        self.lost += other.lost;
        self.twice += other.twice;
        self.foreign += other.foreign;
        self.revived += other.revived;
    }
}

impl Outcome {
    /// All kinds together.
    pub(crate) fn all(&self) -> Result<Measured, Fault> {
        let mut all = Measured::new()?;
        self.kinds.iter().for_each(|kind| all.merge(kind));
        Ok(all)
    }

    /// Adds another run of the same streams.
    pub(crate) fn merge(&mut self, other: &Outcome) {
        self.seconds += other.seconds;
        self.kinds.iter_mut().zip(&other.kinds).for_each(|(kind, other)| kind.merge(other));
        self.counters.add(&other.counters);
        self.flaws.add(&other.flaws);
        self.again += other.again;
        self.forestalled += other.forestalled;
        self.partial |= other.partial;
        let both = self.peak.into_iter().chain(other.peak);
        self.peak = both.max_by_key(|peak| peak.bytes);
    }
}
