//! Load: artifacts made at a pace, and each one's deliveries checked off.
//!
//! One thread makes all artifacts and consumes all deliveries of all nodes. It is the competitor of the executors for the
//! cores, so its work per delivery is small: an artifact carries its place in the tables here in its first bytes, and
//! nothing is hashed or looked up again. And being one thread it knows an artifact's id before it can see a delivery of it.

mod measured;
mod stream;

use std::time::{Duration, Instant};

use super::counters::Counters;
use super::fault::{Exit, Fault};
use super::listen::Listener;
use super::port::{Arrival, Refusal, Subnet};
use super::resident::Peak;
use super::stop::Stop;

pub(crate) use measured::{Flaws, Measured, Outcome, faulty};
use stream::{BATCH_BYTES, Draft, Slot, Stamp, StreamState};
pub(crate) use stream::{Hold, Pace, STAMP, Stream};

/// Nodes of one process: one bit each in an artifact's set of receivers.
pub(crate) const MAX_NODES: u16 = 128;
/// Deliveries taken from one node, or artifacts made of one stream, before the next has its turn.
const BATCH: usize = 256;
/// Shorter sleeps are not worth their wake-up.
const LEAST_NAP: Duration = Duration::from_millis(1);
/// After the last delivery, how long one too many is waited for.
const LINGER: Duration = Duration::from_millis(100);

/// How long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// Before anything is measured.
    pub(crate) warm_up: Duration,
    /// What is measured.
    pub(crate) measure: Duration,
    /// How long deliveries may take after the last artifact was made.
    pub(crate) grace: Duration,
}

/// The two ends of the measured time, at which the caller may read its own meters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Edge {
    Begin,
    End,
}

/// Runs `streams` over `subnet` and measures; `edge` is called at both ends of the measured time, and at its end alone when the
/// user stops it before the begin.
pub(crate) fn run(
    subnet: &mut Subnet,
    streams: Vec<Stream>,
    times: Times,
    stop: &Stop,
    mut edge: impl FnMut(Edge) -> Result<(), Fault>,
) -> Result<Outcome, Fault> {
    let listener = Listener::new();
    let begin = Instant::now();
    let mut flow = Flow::new(subnet, streams, begin)?;
    let measure_from = begin + times.warm_up;
    let mut measure_to = measure_from + times.measure;
    let mut counters = subnet.host.counters();
    let mut now = begin;
    while now < measure_to && !stop.is_set() {
        if !flow.measuring && now >= measure_from {
            edge(Edge::Begin)?;
            counters = subnet.host.counters();
            flow.start_measuring()?;
            measure_to = flow.measured_from + times.measure;
        }
        let made = flow.make(subnet, now)?;
        let taken = flow.drain(subnet);
        flow.abort_due(subnet, now);
        if taken {
            // Not just after something was made: that takes its way now, and may need this core.
            flow.peak.look(now, flow.bytes_on_the_way);
        }
        if !made && !taken {
            let next = if flow.measuring { measure_to } else { measure_from };
            flow.wait(subnet, &listener, next.min(flow.next_due(now)));
        }
        now = Instant::now();
    }
    edge(Edge::End)?;
    flow.counters = subnet.host.counters().since(&counters);
    flow.seconds =
        if flow.measuring { now.saturating_duration_since(flow.measured_from).as_secs_f64() } else { 0.0 };
    flow.partial = now < measure_to;
    flow.finish_measuring();
    flow.settle(subnet, &listener, now + times.grace);
    subnet.made = flow.streams.iter().map(|state| state.number).max().unwrap_or(subnet.made);
    Ok(flow.into_outcome())
}

struct Flow {
    nodes: usize,
    streams: Vec<StreamState>,
    template: Vec<u8>,
    on_the_way: u64,
    bytes_on_the_way: u64,
    measuring: bool,
    measured_from: Instant,
    kinds: Vec<Measured>,
    counters: Counters,
    seconds: f64,
    flaws: Flaws,
    again: u64,
    forestalled: u64,
    partial: bool,
    peak: Peak,
}

impl Flow {
    fn new(subnet: &Subnet, streams: Vec<Stream>, begin: Instant) -> Result<Flow, Fault> {
        let largest = streams.iter().flat_map(|stream| &stream.sizes).copied().max().unwrap_or(STAMP);
        let kinds = streams.iter().map(|stream| stream.kind + 1).max().unwrap_or(1);
        // Any content will do, as long as it is not one that something on the way could compress.
        let mut template = vec![0; largest];
        corecast::types::Rng::new(0x636f_7265_6361_7374).fill(&mut template);
        let state = |(index, stream)| StreamState::new(stream, index, subnet.made, begin);
        Ok(Flow {
            nodes: subnet.ports.len(),
            streams: streams.into_iter().enumerate().map(state).collect(),
            template,
            on_the_way: 0,
            bytes_on_the_way: 0,
            measuring: false,
            measured_from: begin,
            kinds: nothing(kinds)?,
            counters: Counters::default(),
            seconds: 0.0,
            flaws: Flaws::default(),
            again: 0,
            forestalled: 0,
            partial: false,
            peak: Peak::new(),
        })
    }

    fn start_measuring(&mut self) -> Result<(), Fault> {
        self.kinds = nothing(self.kinds.len())?;
        self.measured_from = Instant::now();
        self.measuring = true;
        Ok(())
    }

    /// Deliveries from here on do not count; latencies of artifacts made at an open pace still do.
    fn finish_measuring(&mut self) {
        self.measuring = false;
    }

    /// Makes what is due. Whether anything was made.
    fn make(&mut self, subnet: &Subnet, now: Instant) -> Result<bool, Fault> {
        let mut made = false;
        for index in 0..self.streams.len() {
            // At an open pace each is taken or refused before the next one's time is looked at.
            let (calls, each) = if self.streams[index].is_open() { (BATCH, 1) } else { (1, BATCH) };
            let mut bytes = 0;
            for _ in 0..calls {
                let drafts = self.streams[index].drafts(&self.template, index, each, now);
                if drafts.is_empty() {
                    break;
                }
                bytes += drafts.iter().map(|draft| draft.body.len()).sum::<usize>();
                let (all, taken) = (drafts.len(), self.start(subnet, index, drafts)?);
                made |= taken > 0;
                self.streams[index].blocked = taken < all;
                if taken < all || bytes >= BATCH_BYTES {
                    break;
                }
            }
        }
        Ok(made)
    }

    /// Broadcasts together. How many the node took; for others it has no room now.
    fn start(&mut self, subnet: &Subnet, index: usize, drafts: Vec<Draft>) -> Result<usize, Fault> {
        let missing = self.everyone() & !(1 << self.streams[index].stream.maker);
        let Stream { maker, topic, kind, .. } = self.streams[index].stream;
        let bodies = drafts.iter().map(|draft| draft.body.clone()).collect();
        let mut count = 0;
        for (draft, taken) in drafts.into_iter().zip(subnet.ports[maker][topic].broadcast_all(bodies)) {
            let id = match taken {
                Ok(id) => id,
                Err(Refusal::Wait) => {
                    self.streams[index].put_back(draft);
                    continue;
                }
                Err(Refusal::TooLarge) => {
                    let size = draft.body.len();
                    let problem = format!("an artifact of {size} bytes is more than a node takes");
                    return Err(Fault::new(Exit::Usage, problem));
                }
                Err(Refusal::Stopped) => {
                    return Err(Fault::new(Exit::Software, "a node has stopped by itself"));
                }
            };
            let Draft { slot, start, number, body } = draft;
            if self.streams[index].is_open() && self.measuring {
                self.kinds[kind].late.record(start.elapsed());
            }
            self.bytes_on_the_way += body.len() as u64;
            let made = Slot { number, id, body, start, missing, given_up: false };
            self.streams[index].take_slot(slot, made);
            self.on_the_way += 1;
            count += 1;
            if missing == 0 {
                self.complete(subnet, index, slot);
            }
        }
        Ok(count)
    }

    fn everyone(&self) -> u128 {
        u128::MAX >> (128 - self.nodes.clamp(1, 128))
    }

    /// Takes what has arrived. Whether anything had.
    fn drain(&mut self, subnet: &mut Subnet) -> bool {
        let mut taken = false;
        for node in 0..subnet.feeds.len() {
            for topic in 0..subnet.feeds[node].len() {
                for _ in 0..BATCH {
                    let Some(arrival) = subnet.feeds[node][topic].try_next() else { break };
                    taken = true;
                    self.take(subnet, node, topic, arrival);
                }
            }
        }
        taken
    }

    /// Waits for an arrival, and takes it, or until `until`.
    fn wait(&mut self, subnet: &mut Subnet, listener: &Listener, until: Instant) {
        // Room in a node's table comes without a wake-up, so a stream that waits for it looks again soon.
        let blocked = self.streams.iter().any(|state| state.blocked);
        let longest = Duration::from_micros(if blocked { 100 } else { 20_000 });
        if subnet.inline && self.streams.iter().all(StreamState::is_open) {
            // Nothing is made for what arrives, and it carries its time: whoever is awake disturbs. What is complete is aborted
            // half-way to the next, lest its abort be in the way of that.
            let left = until.saturating_duration_since(Instant::now());
            let nap = if self.on_the_way > 0 { (left / 2).max(LEAST_NAP) } else { left };
            return std::thread::sleep(nap.min(left).min(longest));
        }
        if let Some((node, topic, arrival)) = listener.next(&mut subnet.feeds, until, longest) {
            self.take(subnet, node, topic, arrival);
        }
    }

    fn take(&mut self, subnet: &Subnet, node: usize, topic: usize, arrival: Arrival) {
        // Withdrawn: the maker aborted, as it does when all have it; one that had not, or that refused, will be missed.
        let (id, head, bytes, at, held) = match arrival {
            Arrival::Delivered { id, bytes } => {
                (id, bytes.first_chunk().copied(), bytes.len(), Instant::now(), true)
            }
            Arrival::Consumed { id, head, bytes, at } => (id, head, bytes, at, false),
            Arrival::Withdrawn { .. } | Arrival::Refused { .. } => return,
        };
        let port = &subnet.ports[node][topic];
        let stamp = head.as_ref().map(Stamp::read);
        let stream = stamp.as_ref().and_then(|stamp| self.streams.get_mut(stamp.stream as usize));
        let (Some(stamp), Some(state)) = (stamp, stream) else {
            port.release(&id);
            return self.flaws.foreign += 1;
        };
        let Some(slot) = state.slots.get_mut(stamp.slot as usize) else { return self.flaws.foreign += 1 };
        let bit = 1 << node;
        let over = slot.number != stamp.number || slot.missing == 0;
        match state.stream.relay {
            true if over => {
                port.release(&id);
                return self.again += 1;
            }
            true => port.validate(&id),
            false if held => port.release(&id),
            false => (),
        }
        if slot.number != stamp.number || slot.missing & bit == 0 {
            return self.flaws.twice += 1;
        }
        if slot.id != id || slot.body.len() != bytes || state.stream.topic != topic {
            return self.flaws.foreign += 1;
        }
        slot.missing &= !bit;
        if slot.given_up {
            return;
        }
        let (start, left, open) = (slot.start, slot.missing.count_ones() as usize, state.is_open());
        let took = at.saturating_duration_since(start);
        let (counts, kind) = (self.counts(start, open), self.streams[stamp.stream as usize].stream.kind);
        let kind = &mut self.kinds[kind];
        if self.measuring {
            kind.count_delivery(bytes, took);
        }
        if counts && left == faulty(self.nodes) {
            kind.quorum.record(took);
        }
        if left == 0 {
            if counts {
                kind.last.record(took);
            }
            kind.artifacts += u64::from(self.measuring);
            self.complete(subnet, stamp.stream as usize, stamp.slot);
        }
    }

    /// Whether an artifact's latency to the quorum and to the last counts.
    fn counts(&self, start: Instant, open: bool) -> bool {
        // At an open pace the slow ones that finish late count above all, and those that began before do not.
        if open {
            start >= self.measured_from && (self.measuring || self.seconds > 0.0)
        } else {
            self.measuring
        }
    }

    fn complete(&mut self, subnet: &Subnet, index: usize, slot: u32) {
        self.on_the_way -= 1;
        self.bytes_on_the_way -= self.streams[index].slots[slot as usize].body.len() as u64;
        if let Hold::UntilComplete = self.streams[index].stream.hold {
            self.abort(subnet, index, slot);
            self.streams[index].free(slot);
        }
    }

    fn abort(&self, subnet: &Subnet, index: usize, slot: u32) {
        let state = &self.streams[index];
        let id = &state.slots[slot as usize].id;
        subnet.ports[state.stream.maker][state.stream.topic].abort(id);
        if state.stream.relay {
            let others = (0..subnet.ports.len()).filter(|node| *node != state.stream.maker);
            others.for_each(|node| subnet.ports[node][state.stream.topic].abort(id));
        }
    }

    /// Aborts what has been held for its time.
    fn abort_due(&mut self, subnet: &Subnet, now: Instant) {
        for index in 0..self.streams.len() {
            while let Some(slot) = self.streams[index].next_abort(now) {
                self.abort(subnet, index, slot);
                if self.streams[index].slots[slot as usize].missing == 0 {
                    self.streams[index].free(slot);
                } else {
                    self.give_up(index, slot);
                }
            }
        }
    }

    /// An artifact was aborted before all had it. Its latency is at least the time that it had; were it left out, the slowest
    /// would make the figures better. Its place stays taken, so that a delivery that was under way finds it.
    fn give_up(&mut self, index: usize, slot: u32) {
        let state = &mut self.streams[index];
        let (open, kind, held) = (state.is_open(), state.stream.kind, &mut state.slots[slot as usize]);
        held.given_up = true;
        let (start, left) = (held.start, held.missing.count_ones() as usize);
        self.bytes_on_the_way -= held.body.len() as u64;
        self.forestalled += left as u64;
        self.on_the_way -= 1;
        if self.counts(start, open) {
            let had = start.elapsed();
            self.kinds[kind].last.record(had);
            if left > faulty(self.nodes) {
                self.kinds[kind].quorum.record(had);
            }
        }
    }

    /// Waits until everything that was made has arrived or was aborted, and a little for what should not.
    fn settle(&mut self, subnet: &mut Subnet, listener: &Listener, until: Instant) {
        self.streams.iter_mut().for_each(|state| state.blocked = false);
        while self.on_the_way > 0 && Instant::now() < until {
            let now = Instant::now();
            self.abort_due(subnet, now);
            self.peak.look(now, self.bytes_on_the_way);
            if !self.drain(subnet) {
                let next = self.streams.iter().filter_map(StreamState::next_abort_at).min();
                self.wait(subnet, listener, next.map_or(until, |next| next.min(until)));
            }
        }
        let until = Instant::now() + LINGER;
        while Instant::now() < until {
            if !self.drain(subnet) {
                self.wait(subnet, listener, until);
            }
        }
        // Whatever grew since the last look counts as beyond what is on its way.
        self.peak.look(Instant::now(), self.bytes_on_the_way);
        for state in &self.streams {
            let awaited = state.slots.iter().filter(|slot| !slot.given_up);
            let lost = awaited.map(|slot| u64::from(slot.missing.count_ones())).sum::<u64>();
            self.kinds[state.stream.kind].lost += lost;
            self.flaws.lost += lost;
        }
    }

    fn next_due(&self, now: Instant) -> Instant {
        let due = self.streams.iter().filter_map(StreamState::next_due).min();
        due.unwrap_or(now + Duration::from_millis(20))
    }

    fn into_outcome(self) -> Outcome {
        let Flow { seconds, kinds, counters, flaws, again, forestalled, partial, peak, .. } = self;
        Outcome { seconds, kinds, counters, flaws, again, forestalled, partial, peak: Some(peak) }
    }
}

fn nothing(kinds: usize) -> Result<Vec<Measured>, Fault> {
    (0..kinds).map(|_| Measured::new()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subnet::hub::{self, Mishaps};
    use corecast::config::TopicConfig;
    use corecast::types::TopicId;

    fn topics() -> Vec<TopicConfig> {
        vec![TopicConfig::new(TopicId(1), "a"), TopicConfig::new(TopicId(2), "b")]
    }

    fn closed(maker: usize, topic: usize, sizes: &[usize], inflight: usize) -> Stream {
        let (sizes, hold) = (sizes.to_vec(), Hold::UntilComplete);
        Stream { maker, topic, kind: topic, sizes, pace: Pace::Closed { inflight }, hold, relay: false }
    }

    fn run_on(subnet: &mut Subnet, streams: Vec<Stream>) -> Outcome {
        let ms = Duration::from_millis;
        let times = Times { warm_up: ms(20), measure: ms(100), grace: ms(300) };
        run(subnet, streams, times, &Stop::default(), |_| Ok(())).unwrap()
    }

    #[test]
    fn every_artifact_of_every_stream_is_delivered_once_everywhere() {
        let mut subnet = hub::start(4, &topics(), Mishaps::default());
        let streams =
            (0..4).flat_map(|maker| [closed(maker, 0, &[100], 8), closed(maker, 1, &[16, 5000], 3)]);
        let outcome = run_on(&mut subnet, streams.collect());
        assert_eq!(outcome.flaws, Flaws::default());
        let all = outcome.all().unwrap();
        assert!(outcome.kinds.iter().all(|kind| kind.artifacts > 50 && kind.bytes > 0));
        assert!(all.deliveries >= all.artifacts && all.quorum.max_us() <= all.last.max_us());
        assert!(outcome.seconds >= 0.1 && !outcome.partial);
    }

    #[test]
    fn what_is_lost_or_comes_twice_is_counted() {
        let lossy = Mishaps { lose: Some(50), ..Mishaps::default() };
        let outcome = run_on(&mut hub::start(3, &topics(), lossy), vec![closed(0, 0, &[100], 4)]);
        // Each of the four in flight ends up waiting for a delivery that was dropped.
        assert_eq!(outcome.flaws, Flaws { lost: 4, ..Flaws::default() });
        let twice = Mishaps { repeat: Some(50), ..Mishaps::default() };
        let outcome = run_on(&mut hub::start(3, &topics(), twice), vec![closed(0, 0, &[100], 4)]);
        assert!(outcome.flaws.twice > 0 && outcome.flaws.lost == 0);
    }

    #[test]
    fn an_open_pace_keeps_its_times() {
        let mut subnet = hub::start(3, &topics(), Mishaps::default());
        let pace = Pace::Open { first: Duration::ZERO, every: Duration::from_millis(2) };
        let outcome = run_on(&mut subnet, vec![Stream { pace, ..closed(0, 0, &[64], 0) }]);
        assert_eq!(outcome.flaws, Flaws::default());
        let artifacts = outcome.kinds[0].artifacts;
        assert!((45..=52).contains(&artifacts), "{artifacts}");
    }

    #[test]
    fn a_subnet_of_one_has_nobody_to_wait_for() {
        let outcome = run_on(&mut hub::start(1, &topics(), Mishaps::default()), vec![closed(0, 0, &[64], 2)]);
        assert_eq!((outcome.kinds[0].deliveries, outcome.flaws), (0, Flaws::default()));
    }

    #[test]
    fn a_full_table_is_waited_for() {
        let mut topics = topics();
        topics[0].slots = 2;
        let outcome = run_on(&mut hub::start(2, &topics, Mishaps::default()), vec![closed(0, 0, &[64], 5)]);
        assert!(outcome.kinds[0].artifacts > 10);
        assert_eq!(outcome.flaws, Flaws::default());
    }

    #[test]
    fn what_is_held_stays_active_for_its_time() {
        let mut topics = topics();
        topics[0].slots = 10;
        let mut subnet = hub::start(2, &topics, Mishaps::default());
        let pace = Pace::Open { first: Duration::ZERO, every: Duration::from_millis(1) };
        let ms = Duration::from_millis;
        let hold = Hold::For { least: ms(20), most: ms(30) };
        let outcome = run_on(&mut subnet, vec![Stream { pace, hold, ..closed(0, 0, &[64], 0) }]);
        // Ten places, each for 20 ms and more: at most so many fit.
        let artifacts = outcome.kinds[0].artifacts;
        assert!((10..=60).contains(&artifacts), "{artifacts}");
        assert_eq!((outcome.flaws, outcome.forestalled), (Flaws::default(), 0));
    }

    #[test]
    fn what_is_aborted_before_all_have_it_is_counted_apart() {
        let lossy = Mishaps { lose: Some(10), ..Mishaps::default() };
        let pace = Pace::Open { first: Duration::ZERO, every: Duration::from_millis(1) };
        let hold = Hold::For { least: Duration::from_millis(5), most: Duration::from_millis(10) };
        let stream = Stream { pace, hold, ..closed(0, 0, &[64], 0) };
        let outcome = run_on(&mut hub::start(2, &topics(), lossy), vec![stream]);
        assert!(outcome.forestalled > 5 && outcome.flaws.lost == 0, "{outcome:?}");
        // One in ten never came, and counts with the time that it had.
        assert!(outcome.kinds[0].last.max_us() >= 5_000.0);
    }

    #[test]
    fn a_second_run_over_one_subnet_makes_other_artifacts() {
        let mut subnet = hub::start(3, &topics(), Mishaps::default());
        let mut outcome = run_on(&mut subnet, vec![closed(0, 0, &[16], 4)]);
        let first = outcome.kinds[0].artifacts;
        outcome.merge(&run_on(&mut subnet, vec![closed(0, 0, &[16], 4)]));
        assert_eq!(outcome.flaws, Flaws::default());
        assert!(outcome.kinds[0].artifacts > first + 10);
    }
}
