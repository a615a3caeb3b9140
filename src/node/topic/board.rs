//! What a topic's lanes publish of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::metrics::{Histogram, Stage, StageTimes, Stages, TopicCounters, TopicGauges};
use crate::node::driver::Clock;
use crate::types::{Class, Instant, TopicId};

/// What happened to one topic's artifacts and what it holds, summed over the lanes ([`Topic::stats`](super::Topic::stats)): up to
/// one housekeeping old (5 ms under load).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TopicStats {
    /// What happened, since the topic was opened.
    pub counters: TopicCounters,
    /// What it holds now.
    pub gauges: TopicGauges,
}

impl TopicStats {
    /// Adds another topic's, or another lane's.
    pub fn merge(&mut self, other: &TopicStats) {
        self.counters.merge(&other.counters);
        self.gauges.merge(&other.gauges);
    }

    /// Every figure with its name.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counters.entries().chain(self.gauges.entries())
    }
}

/// One topic among those of a node ([`Node::topics`](super::super::Node::topics)).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicReport {
    /// Its id.
    pub id: TopicId,
    /// Its name.
    pub name: String,
    /// Its class.
    pub class: Class,
    /// Its figures.
    pub stats: TopicStats,
    /// How long its artifacts wait: [`Topic::stages`](super::Topic::stages).
    pub stages: StageTimes,
}

/// What one lane publishes.
#[derive(Debug, Default)]
struct LanePlace {
    stats: Mutex<TopicStats>,
    /// Which the lane writes in place; there once it has opened the topic.
    stages: OnceLock<Arc<Stages>>,
}

/// One entry per lane.
#[derive(Debug)]
pub(in crate::node) struct TopicBoard {
    lanes: Vec<LanePlace>,
    /// Events in the consumer's queue, and bytes of their bodies: nothing else counts those once their makers abort.
    queued: AtomicU64,
    queued_bytes: AtomicU64,
    /// Broadcasts that found no room.
    refused: AtomicU64,
    clock: Clock,
    /// What the consumer took from its queue.
    waits: Histogram,
}

impl TopicBoard {
    pub(in crate::node) fn new(lanes: u16, clock: Clock) -> TopicBoard {
        let lanes = (0..lanes).map(|_| LanePlace::default()).collect();
        let (queued, queued_bytes, refused) = Default::default();
        TopicBoard { lanes, queued, queued_bytes, refused, clock, waits: Histogram::new() }
    }

    /// Publishes a lane's figures; `false` if a reader holds them just now: they must come again.
    #[must_use]
    pub(in crate::node) fn publish(&self, lane: u16, counters: TopicCounters, gauges: TopicGauges) -> bool {
        let Some(place) = self.lanes.get(usize::from(lane)) else { return true };
        place.stats.try_lock().map(|mut stats| *stats = TopicStats { counters, gauges }).is_ok()
    }

    /// Shows what a lane writes in place.
    pub(in crate::node) fn show(&self, lane: u16, stages: &Arc<Stages>) {
        if let Some(place) = self.lanes.get(usize::from(lane)) {
            place.stages.get_or_init(|| stages.clone());
        }
    }

    /// What lanes have shown.
    pub(in crate::node) fn shown(&self) -> impl Iterator<Item = &Stages> {
        self.lanes.iter().filter_map(|place| place.stages.get()).map(|stages| &**stages)
    }

    /// How long what the consumer took from its queue had waited there and in the lanes.
    pub(in crate::node) fn waits(&self) -> &Histogram {
        &self.waits
    }

    /// How long artifacts have waited, over all lanes.
    pub(in crate::node) fn times(&self, class: Class) -> StageTimes {
        let (lanes, mut times) = (self.shown().collect::<Vec<_>>(), StageTimes::default());
        times.add(class, &lanes, &[&self.waits]);
        times
    }

    /// The sum over the lanes.
    pub(in crate::node) fn sum(&self) -> TopicStats {
        let mut sum = TopicStats::default();
        for lane in &self.lanes {
            // A poisoned place still holds whole figures: they are plain copies.
            sum.merge(&lane.stats.lock().unwrap_or_else(PoisonError::into_inner));
        }
        sum.gauges.queued = self.queued.load(Ordering::Relaxed);
        sum.counters.broadcasts_refused = self.refused.load(Ordering::Relaxed);
        sum
    }

    /// A broadcast found no room.
    pub(in crate::node) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes of the bodies in the consumer's queue.
    pub(in crate::node) fn queued_bytes(&self) -> u64 {
        self.queued_bytes.load(Ordering::Relaxed)
    }

    /// An event is put into the consumer's queue, with a body of so many bytes.
    pub(in crate::node) fn queued(&self, bytes: u64) {
        self.queued.fetch_add(1, Ordering::Relaxed);
        self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// It is out of it again; bytes that are left.
    pub(in crate::node) fn unqueued(&self, bytes: u64) -> u64 {
        self.queued.fetch_sub(1, Ordering::Relaxed);
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed) - bytes
    }

    /// A body that the consumer takes now is here since then.
    pub(in crate::node) fn waited(&self, since: Instant) {
        self.waits.record_shared(since, self.now());
    }

    /// An inline consumer was given a body by a lane.
    pub(in crate::node) fn given(&self, lane: u16, since: Instant, now: Instant) {
        if let Some(stages) = self.lanes.get(usize::from(lane)).and_then(|place| place.stages.get()) {
            stages.record(Stage::Delivery, since, now);
        }
    }

    /// The time on the lanes' clock.
    pub(in crate::node) fn now(&self) -> Instant {
        self.clock.now()
    }
}
