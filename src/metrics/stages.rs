//! Where artifacts' time goes: histograms by stage, written in place by a lane and read in place by whoever asks.
//!
//! Not hdrhistogram, which the tools use: its readers need a copy that the lane makes for them, 86 KiB for four classes at its
//! coarsest. Here the lane adds to plain words that others may read at any time, so publishing costs nothing.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::types::{Class, Instant};

/// Where an artifact's time goes on its way through a node, each stage measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// From the call of `broadcast` until its lane takes the command, hashing and waits for room apart.
    Ingress,
    /// From when it is active, and the peer's connection stands, until it is taken out of the table for that peer, as a push or
    /// by name. One for each peer.
    Table,
    /// From there until the stream that carries it, a batch with others as a rule, is wholly in QUIC's send buffer. One for each
    /// stream, requests and other words too.
    Egress,
    /// From there until the peer has acknowledged all of it: of bodies on streams of their own, pushed or asked for, and of
    /// batches one at a time for each peer and class.
    Flight,
    /// From when it was first heard of until the filter wants it: of artifacts that waited for the filter.
    Admission,
    /// From when it is wanted until its body is here: of bodies that did not come with the first word of them.
    Fetch,
    /// From when its body is here until its consumer takes it.
    Delivery,
}

impl Stage {
    /// Every stage, in the order in which an artifact passes them.
    pub const ALL: [Stage; 7] = [
        Stage::Ingress,
        Stage::Table,
        Stage::Egress,
        Stage::Flight,
        Stage::Admission,
        Stage::Fetch,
        Stage::Delivery,
    ];

    /// Its label.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Ingress => "ingress",
            Stage::Table => "table",
            Stage::Egress => "egress",
            Stage::Flight => "flight",
            Stage::Admission => "admission",
            Stage::Fetch => "fetch",
            Stage::Delivery => "delivery",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Durations from 256 ns to 4.5 minutes by eighths of powers of two: what it says of one is at most an eighth too long.
///
/// Readers see each word whole and the words a few nanoseconds apart.
#[derive(Debug)]
pub(crate) struct Histogram {
    counts: [AtomicU64; Self::BUCKETS],
    /// Nanoseconds.
    longest: AtomicU64,
}

impl Histogram {
    /// Nanoseconds of the smallest difference, as a power of two.
    const UNIT: u32 = 8;
    /// Buckets of an octave, as a power of two.
    const PART: u32 = 3;
    const OCTAVES: u32 = 27;
    const BUCKETS: usize = ((Self::OCTAVES + 1) << Self::PART) as usize;

    /// An empty one.
    pub(crate) const fn new() -> Histogram {
        Histogram { counts: [const { AtomicU64::new(0) }; Self::BUCKETS], longest: AtomicU64::new(0) }
    }

    /// Each octave above the first eight units has eight buckets, twice as wide as those of the one below.
    fn bucket(nanos: u64) -> usize {
        let units = (nanos >> Self::UNIT).min((1 << (Self::OCTAVES + Self::PART)) - 1);
        let octave = (units | (1 << Self::PART)).ilog2() - Self::PART;
        (octave << Self::PART) as usize + (units >> octave) as usize
    }

    /// The longest duration of a bucket, in nanoseconds.
    fn end(bucket: usize) -> u64 {
        let (octave, part) = (bucket as u64 >> Self::PART, bucket as u64 & ((1 << Self::PART) - 1));
        let units = match octave {
            0 => part + 1,
            octave => ((1 << Self::PART) + part + 1) << (octave - 1),
        };
        (units << Self::UNIT) - 1
    }

    /// Adds a duration in nanoseconds. Only one thread does.
    fn record(&self, nanos: u64) {
        if let Some(count) = self.counts.get(Self::bucket(nanos)) {
            count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
        if nanos > self.longest.load(Ordering::Relaxed) {
            self.longest.store(nanos, Ordering::Relaxed);
        }
    }

    /// Something began at `since` and is over; from any thread, where no lane records.
    pub(crate) fn record_shared(&self, since: Instant, now: Instant) {
        let nanos = now.as_nanos().saturating_sub(since.as_nanos());
        if let Some(count) = self.counts.get(Self::bucket(nanos)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if nanos > self.longest.load(Ordering::Relaxed) {
            self.longest.fetch_max(nanos, Ordering::Relaxed);
        }
    }
}

/// The sum of histograms, as of when it was read.
#[derive(Debug, Clone)]
struct Counts {
    counts: [u64; Histogram::BUCKETS],
    longest: u64,
}

impl Counts {
    const EMPTY: Counts = Counts { counts: [0; Histogram::BUCKETS], longest: 0 };

    fn add(&mut self, histogram: &Histogram) {
        for (sum, count) in self.counts.iter_mut().zip(&histogram.counts) {
            *sum += count.load(Ordering::Relaxed);
        }
        self.longest = self.longest.max(histogram.longest.load(Ordering::Relaxed));
    }

    fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The duration that so many thousandths do not exceed.
    fn at(&self, thousandths: u64) -> Duration {
        let wanted = (self.count() * thousandths).div_ceil(1000).max(1);
        let mut below = 0;
        let bucket = self.counts.iter().position(|count| {
            below += count;
            below >= wanted
        });
        Duration::from_nanos(bucket.map_or(0, Histogram::end).min(self.longest))
    }
}

/// Histograms by stage: of one topic in one lane, or of one class at a lane's links. The lane writes; anyone reads.
#[derive(Debug)]
pub struct Stages([Histogram; Stage::ALL.len()]);

impl Default for Stages {
    fn default() -> Stages {
        Stages([const { Histogram::new() }; Stage::ALL.len()])
    }
}

impl Stages {
    /// Memory that they take.
    pub const BYTES: u64 = size_of::<Stages>() as u64;

    fn of(&self, stage: Stage) -> Option<&Histogram> {
        self.0.get(stage as usize)
    }

    /// Something was in `stage` since `since`, and is not any more. To be called by one thread only.
    pub fn record(&self, stage: Stage, since: Instant, now: Instant) {
        if let Some(histogram) = self.of(stage) {
            histogram.record(now.as_nanos().saturating_sub(since.as_nanos()));
        }
    }
}

/// How long one stage took, of the artifacts of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StageTime {
    /// The class.
    pub class: Class,
    /// The stage.
    pub stage: Stage,
    /// How many were measured.
    pub count: u64,
    /// Half of them took no longer; at most an eighth more than it was.
    pub p50: Duration,
    /// 99 of 100 took no longer; at most an eighth more than it was.
    pub p99: Duration,
    /// The longest, exactly.
    pub max: Duration,
}

/// Where artifacts' time has gone since the node's start, over all its lanes, of all topics
/// ([`Node::stages`](crate::Node::stages)) or of one ([`Topic::stages`](crate::Topic::stages)). Prints as a table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StageTimes {
    rows: Vec<StageTime>,
}

impl StageTimes {
    /// Adds a class: the sum of lanes' histograms, and of those of `consumers`, which lanes do not see.
    pub(crate) fn add(&mut self, class: Class, lanes: &[&Stages], consumers: &[&Histogram]) {
        for stage in Stage::ALL {
            let mut counts = Counts::EMPTY;
            lanes.iter().filter_map(|lane| lane.of(stage)).for_each(|one| counts.add(one));
            if stage == Stage::Delivery {
                consumers.iter().for_each(|one| counts.add(one));
            }
            let max = Duration::from_nanos(counts.longest);
            let (count, p50, p99) = (counts.count(), counts.at(500), counts.at(990));
            self.rows.push(StageTime { class, stage, count, p50, p99, max });
        }
    }

    /// Every stage of every class, or of the topic's, also those of which nothing was measured.
    pub fn rows(&self) -> &[StageTime] {
        &self.rows
    }

    /// One of them.
    pub fn of(&self, class: Class, stage: Stage) -> Option<&StageTime> {
        self.rows.iter().find(|row| (row.class, row.stage) == (class, stage))
    }
}

impl fmt::Display for StageTimes {
    /// Those of which something was measured, in microseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |duration: Duration| duration.as_nanos() as f64 / 1e3;
        write!(
            f,
            "{:<9}{:<10}{:>12}{:>13}{:>13}{:>13}",
            "class", "stage", "count", "p50 µs", "p99 µs", "max µs"
        )?;
        for row in self.rows.iter().filter(|row| row.count > 0) {
            let StageTime { class, stage, count, .. } = row;
            let (p50, p99, max) = (micros(row.p50), micros(row.p99), micros(row.max));
            write!(
                f,
                "\n{:<9}{:<10}{count:>12}{p50:>13.1}{p99:>13.1}{max:>13.1}",
                class.to_string(),
                stage.name()
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_is_in_the_bucket_that_ends_at_it_or_after() {
        let mut last = None;
        for bucket in 0..Histogram::BUCKETS {
            let end = Histogram::end(bucket);
            assert_eq!(Histogram::bucket(end), bucket);
            let first = last.map_or(0, |last| last + 1);
            assert_eq!(Histogram::bucket(first), bucket);
            assert!(bucket < 8 || end - first < first / 8, "bucket {bucket}: {first} to {end}");
            last = Some(end);
        }
        assert_eq!(Histogram::bucket(u64::MAX), Histogram::BUCKETS - 1);
        assert!(last.unwrap() > 270_000_000_000);
    }

    #[test]
    fn percentiles_are_of_what_was_recorded() {
        let (lane, other) = (Stages::default(), Histogram::new());
        for millis in 1..=99 {
            let now = Instant::ZERO + Duration::from_millis(millis);
            lane.record(Stage::Delivery, Instant::ZERO, now);
        }
        other.record_shared(Instant::ZERO, Instant::ZERO + Duration::from_secs(1));
        let mut times = StageTimes::default();
        times.add(Class::High, &[&lane], &[&other]);
        times.add(Class::Bulk, &[], &[]);
        let row = times.of(Class::High, Stage::Delivery).unwrap();
        assert_eq!((row.count, row.max), (100, Duration::from_secs(1)));
        let near = |found: Duration, millis: u32| {
            let least = Duration::from_millis(1) * millis;
            (least..least * 9 / 8).contains(&found)
        };
        assert!(near(row.p50, 50) && near(row.p99, 99), "{times}");
        assert_eq!(times.to_string().lines().count(), 2);
        assert_eq!(times.of(Class::Bulk, Stage::Fetch).unwrap().count, 0);
    }
}
