//! Load: artifacts made at a pace, and each one's deliveries checked off.
//!
//! One thread makes all artifacts and consumes all deliveries of all nodes. It is the competitor of the executors for the
//! cores, so its work per delivery is small: an artifact carries its place in the tables here in its first bytes, and
//! nothing is hashed or looked up again. And being one thread it knows an artifact's id before it can see a delivery of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use corecast::types::ArtifactId;

use super::fault::{Exit, Fault};
use super::latency::Latency;
use super::port::{Arrival, Counters, Refusal, Subnet};
use super::stop::Stop;

/// Nodes of one process: one bit each in an artifact's set of receivers.
pub(crate) const MAX_NODES: u16 = 128;
/// Bytes at the start of each artifact that say where it stands in the tables here.
pub(crate) const STAMP: usize = 16;
/// Deliveries taken from one node, or artifacts made of one stream, before the next has its turn.
const BATCH: usize = 256;
/// Artifacts of one stream that may be on their way when the pace does not depend on deliveries.
const OPEN_INFLIGHT: usize = 4096;
/// After the last delivery, how long one too many is waited for.
const LINGER: Duration = Duration::from_millis(100);

/// Artifacts that one node makes, one after another.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    /// Which node.
    pub(crate) maker: usize,
    /// In which topic.
    pub(crate) topic: usize,
    /// Bytes of each artifact, in turn. At least [`STAMP`].
    pub(crate) sizes: Vec<usize>,
    /// When the next is made.
    pub(crate) pace: Pace,
    /// Receivers relay what they have, until all have it.
    pub(crate) relay: bool,
}

/// When artifacts are made.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// So many are on their way at a time: whenever one is complete, the next is made.
    Closed { inflight: usize },
    /// At fixed times, whether or not the subnet keeps up. Latency counts from the intended time.
    Open { first: Duration, every: Duration },
}

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

/// What was measured. An artifact counts when its last receiver has it.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Length of the measured time.
    pub(crate) seconds: f64,
    /// Artifacts that every other node has.
    pub(crate) artifacts: u64,
    /// Deliveries to one node each.
    pub(crate) deliveries: u64,
    /// Bytes delivered.
    pub(crate) bytes: u64,
    /// From making to each delivery.
    pub(crate) each: Latency,
    /// From making to the delivery at the last receiver.
    pub(crate) last: Latency,
    /// The nodes' counters over the measured time.
    pub(crate) counters: Counters,
    /// Over the whole run: what was not delivered exactly once.
    pub(crate) flaws: Flaws,
    /// Over the whole run: deliveries to a node that had let go already, as all had the artifact, on the word of a relay that
    /// had not yet. That is new to the node, and no flaw.
    pub(crate) again: u64,
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
}

impl Outcome {
    /// Payload delivered per second.
    pub(crate) fn goodput_gbit_s(&self) -> f64 {
        super::port::ratio(self.bytes as f64 * 8e-9, self.seconds)
    }
}

/// Runs `streams` over `subnet` and measures; `edge` is called at both ends of the measured time.
pub(crate) fn run(
    subnet: &mut Subnet,
    streams: Vec<Stream>,
    times: Times,
    stop: &Stop,
    mut edge: impl FnMut(Edge) -> Result<(), Fault>,
) -> Result<Outcome, Fault> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let begin = Instant::now();
    let mut flow = Flow::new(subnet.ports.len(), streams, begin)?;
    let measure_from = begin + times.warm_up;
    let mut measure_to = measure_from + times.measure;
    let mut counters = Counters::default();
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
        if !made && !taken {
            let next = if flow.measuring { measure_to } else { measure_from };
            flow.wait(subnet, &waker, next.min(flow.next_due(now)));
        }
        now = Instant::now();
    }
    edge(Edge::End)?;
    flow.counters = subnet.host.counters().since(&counters);
    flow.seconds =
        if flow.measuring { now.saturating_duration_since(flow.measured_from).as_secs_f64() } else { 0.0 };
    flow.finish_measuring();
    flow.settle(subnet, &waker, now + times.grace);
    Ok(flow.into_outcome())
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

struct Flow {
    nodes: usize,
    streams: Vec<StreamState>,
    template: Vec<u8>,
    on_the_way: u64,
    measuring: bool,
    measured_from: Instant,
    measured: Measured,
    counters: Counters,
    seconds: f64,
    flaws: Flaws,
    again: u64,
}

struct Measured {
    artifacts: u64,
    deliveries: u64,
    bytes: u64,
    each: Latency,
    last: Latency,
}

struct StreamState {
    stream: Stream,
    slots: Vec<Slot>,
    free: Vec<u32>,
    made: u64,
    /// When the next is due, at an open pace.
    due: Instant,
    /// Bodies that are complete and can be stamped anew once the node has let go of them.
    spare: VecDeque<Bytes>,
    /// The node had no room when it was last asked.
    blocked: bool,
}

struct Slot {
    number: u64,
    id: ArtifactId,
    body: Bytes,
    start: Instant,
    /// One bit for each node that does not have it yet.
    missing: u128,
}

/// Where an artifact stands, as written into its first bytes.
struct Stamp {
    stream: u32,
    slot: u32,
    number: u64,
}

impl Stamp {
    fn write(&self, body: &mut [u8]) {
        let [stream, slot] = [self.stream, self.slot].map(u32::to_le_bytes);
        let parts = stream.iter().chain(&slot).copied().chain(self.number.to_le_bytes());
        body.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
    }

    fn read(body: &[u8]) -> Option<Stamp> {
        let (stream, rest) = body.split_first_chunk()?;
        let (slot, rest) = rest.split_first_chunk()?;
        let number = u64::from_le_bytes(*rest.first_chunk()?);
        Some(Stamp { stream: u32::from_le_bytes(*stream), slot: u32::from_le_bytes(*slot), number })
    }
}

impl Flow {
    fn new(nodes: usize, streams: Vec<Stream>, begin: Instant) -> Result<Flow, Fault> {
        let largest = streams.iter().flat_map(|stream| &stream.sizes).copied().max().unwrap_or(STAMP);
        // Any content will do, as long as it is not one that something on the way could compress.
        let mut template = vec![0; largest];
        corecast::types::Rng::new(0x636f_7265_6361_7374).fill(&mut template);
        let streams = streams.into_iter().map(|stream| StreamState::new(stream, begin)).collect();
        Ok(Flow {
            nodes,
            streams,
            template,
            on_the_way: 0,
            measuring: false,
            measured_from: begin,
            measured: Measured::new()?,
            counters: Counters::default(),
            seconds: 0.0,
            flaws: Flaws::default(),
            again: 0,
        })
    }

    fn start_measuring(&mut self) -> Result<(), Fault> {
        self.measured = Measured::new()?;
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
            for _ in 0..BATCH {
                let Some((slot, start)) = self.streams[index].next_slot(now) else { break };
                let taken = self.make_one(subnet, index, slot, start)?;
                self.streams[index].blocked = !taken;
                made |= taken;
                if !taken {
                    break;
                }
            }
        }
        Ok(made)
    }

    /// `false` when the node has no room now.
    fn make_one(&mut self, subnet: &Subnet, index: usize, slot: u32, start: Instant) -> Result<bool, Fault> {
        let receivers = self.everyone() & !(1 << self.streams[index].stream.maker);
        let state = &mut self.streams[index];
        let number = state.made;
        let body = state.body(&self.template, &Stamp { stream: index as u32, slot, number });
        let port = &subnet.ports[state.stream.maker][state.stream.topic];
        let id = match port.broadcast(body.clone()) {
            Ok(id) => id,
            Err(Refusal::Wait) => {
                state.spare.push_back(body);
                return Ok(false);
            }
            Err(Refusal::TooLarge) => {
                let problem = format!("an artifact of {} bytes is more than a node takes", body.len());
                return Err(Fault::new(Exit::Usage, problem));
            }
            Err(Refusal::Stopped) => return Err(Fault::new(Exit::Software, "a node has stopped by itself")),
        };
        state.take_slot(slot, Slot { number, id, body, start, missing: receivers });
        self.on_the_way += 1;
        if receivers == 0 {
            self.complete(subnet, index, slot);
        }
        Ok(true)
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
    fn wait(&mut self, subnet: &mut Subnet, waker: &Waker, until: Instant) {
        let mut context = Context::from_waker(waker);
        let mut taken = false;
        for node in 0..subnet.feeds.len() {
            for topic in 0..subnet.feeds[node].len() {
                if let Poll::Ready(arrival) = subnet.feeds[node][topic].poll(&mut context) {
                    taken = true;
                    self.take(subnet, node, topic, arrival);
                }
            }
        }
        if !taken {
            // Room in a node's table comes without a wake-up, so a stream that waits for it looks again soon.
            let blocked = self.streams.iter().any(|state| state.blocked);
            let longest = Duration::from_micros(if blocked { 100 } else { 20_000 });
            std::thread::park_timeout(until.saturating_duration_since(Instant::now()).min(longest));
        }
    }

    fn take(&mut self, subnet: &Subnet, node: usize, topic: usize, arrival: Arrival) {
        // Withdrawn: the maker aborted, as it does when all have it; one that had not, or that refused, will be missed.
        let Arrival::Delivered { id, bytes } = arrival else { return };
        let port = &subnet.ports[node][topic];
        let stamp = Stamp::read(&bytes);
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
            false => port.release(&id),
        }
        if slot.number != stamp.number || slot.missing & bit == 0 {
            return self.flaws.twice += 1;
        }
        if slot.id != id || slot.body.len() != bytes.len() || state.stream.topic != topic {
            return self.flaws.foreign += 1;
        }
        slot.missing &= !bit;
        let took = slot.start.elapsed();
        if self.measuring {
            self.measured.deliveries += 1;
            self.measured.bytes += bytes.len() as u64;
            self.measured.each.record(took);
        }
        if slot.missing == 0 {
            let (start, open) = (slot.start, matches!(state.stream.pace, Pace::Open { .. }));
            if self.counts_for_last(start, open) {
                self.measured.last.record(took);
            }
            self.measured.artifacts += u64::from(self.measuring);
            self.complete(subnet, stamp.stream as usize, stamp.slot);
        }
    }

    fn counts_for_last(&self, start: Instant, open: bool) -> bool {
        // At an open pace the slow ones that finish late count above all, and those that began before do not.
        if open {
            start >= self.measured_from && (self.measuring || self.seconds > 0.0)
        } else {
            self.measuring
        }
    }

    fn complete(&mut self, subnet: &Subnet, index: usize, slot: u32) {
        let state = &mut self.streams[index];
        let done = &mut state.slots[slot as usize];
        subnet.ports[state.stream.maker][state.stream.topic].abort(&done.id);
        if state.stream.relay {
            let others = (0..subnet.ports.len()).filter(|node| *node != state.stream.maker);
            others.for_each(|node| subnet.ports[node][state.stream.topic].abort(&done.id));
        }
        let body = std::mem::take(&mut done.body);
        if state.stream.sizes.len() == 1 && state.spare.len() < 2 * state.slots.len() {
            state.spare.push_back(body);
        }
        state.free.push(slot);
        self.on_the_way -= 1;
    }

    /// Waits until everything that was made has arrived, and a little for what should not.
    fn settle(&mut self, subnet: &mut Subnet, waker: &Waker, until: Instant) {
        self.streams.iter_mut().for_each(|state| state.blocked = false);
        while self.on_the_way > 0 && Instant::now() < until {
            if !self.drain(subnet) {
                self.wait(subnet, waker, until);
            }
        }
        let until = Instant::now() + LINGER;
        while Instant::now() < until {
            if !self.drain(subnet) {
                self.wait(subnet, waker, until);
            }
        }
        let missing = |slot: &Slot| u64::from(slot.missing.count_ones());
        self.flaws.lost = self.streams.iter().flat_map(|state| &state.slots).map(missing).sum();
    }

    fn next_due(&self, now: Instant) -> Instant {
        let open = self.streams.iter().filter(|state| matches!(state.stream.pace, Pace::Open { .. }));
        open.map(|state| state.due).min().unwrap_or(now + Duration::from_millis(20))
    }

    fn into_outcome(self) -> Outcome {
        let Measured { artifacts, deliveries, bytes, each, last } = self.measured;
        let Flow { seconds, counters, flaws, again, .. } = self;
        Outcome { seconds, artifacts, deliveries, bytes, each, last, counters, flaws, again }
    }
}

impl Measured {
    fn new() -> Result<Measured, Fault> {
        let (each, last) = (Latency::new()?, Latency::new()?);
        Ok(Measured { artifacts: 0, deliveries: 0, bytes: 0, each, last })
    }
}

impl StreamState {
    fn new(stream: Stream, begin: Instant) -> StreamState {
        let due = match stream.pace {
            Pace::Closed { .. } => begin,
            Pace::Open { first, .. } => begin + first,
        };
        let (slots, free, spare) = (Vec::new(), Vec::new(), VecDeque::new());
        StreamState { stream, slots, free, made: 0, due, spare, blocked: false }
    }

    /// The slot for the next artifact and its start, if one is to be made now.
    fn next_slot(&mut self, now: Instant) -> Option<(u32, Instant)> {
        let (most, start) = match self.stream.pace {
            Pace::Closed { inflight } => (inflight, now),
            Pace::Open { .. } if now < self.due => return None,
            Pace::Open { .. } => (OPEN_INFLIGHT, self.due),
        };
        let slot = match self.free.last() {
            Some(slot) => *slot,
            None if self.slots.len() < most => self.slots.len() as u32,
            None => return None,
        };
        Some((slot, start))
    }

    fn take_slot(&mut self, index: u32, slot: Slot) {
        match self.slots.get_mut(index as usize) {
            Some(old) => {
                *old = slot;
                self.free.pop();
            }
            None => self.slots.push(slot),
        }
        self.made += 1;
        if let Pace::Open { every, .. } = self.stream.pace {
            self.due += every;
        }
    }

    /// A body with this stamp: an old one if the node has let go of it, otherwise a new one.
    fn body(&mut self, template: &[u8], stamp: &Stamp) -> Bytes {
        let size = self.stream.sizes[self.made as usize % self.stream.sizes.len()];
        let old = self.spare.pop_front().map(Bytes::try_into_mut);
        let mut body = match old {
            Some(Ok(body)) if body.len() == size => body,
            Some(Ok(_)) | None => BytesMut::from(&template[..size]),
            Some(Err(held)) => {
                self.spare.push_back(held);
                BytesMut::from(&template[..size])
            }
        };
        stamp.write(&mut body);
        body.freeze()
    }
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
        Stream { maker, topic, sizes: sizes.to_vec(), pace: Pace::Closed { inflight }, relay: false }
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
        assert!(outcome.artifacts > 100 && outcome.deliveries >= outcome.artifacts);
        assert!(outcome.seconds >= 0.1 && outcome.goodput_gbit_s() > 0.0);
    }

    #[test]
    fn what_is_lost_or_comes_twice_is_counted() {
        let lossy = Mishaps { lose: Some(50), ..Mishaps::default() };
        let outcome = run_on(&mut hub::start(3, &topics(), lossy), vec![closed(0, 0, &[100], 4)]);
        // Each of the four in flight ends up waiting for a delivery that was dropped.
        assert_eq!(outcome.flaws, Flaws { lost: 4, twice: 0, foreign: 0 });
        let twice = Mishaps { repeat: Some(50), ..Mishaps::default() };
        let outcome = run_on(&mut hub::start(3, &topics(), twice), vec![closed(0, 0, &[100], 4)]);
        assert!(outcome.flaws.twice > 0 && outcome.flaws.lost == 0);
    }

    #[test]
    fn an_open_pace_keeps_its_times() {
        let mut subnet = hub::start(3, &topics(), Mishaps::default());
        let pace = Pace::Open { first: Duration::ZERO, every: Duration::from_millis(2) };
        let outcome =
            run_on(&mut subnet, vec![Stream { maker: 0, topic: 0, sizes: vec![64], pace, relay: false }]);
        assert_eq!(outcome.flaws, Flaws::default());
        assert!((45..=52).contains(&outcome.artifacts), "{}", outcome.artifacts);
    }

    #[test]
    fn a_subnet_of_one_has_nobody_to_wait_for() {
        let outcome = run_on(&mut hub::start(1, &topics(), Mishaps::default()), vec![closed(0, 0, &[64], 2)]);
        assert_eq!((outcome.deliveries, outcome.flaws), (0, Flaws::default()));
    }

    #[test]
    fn a_full_table_is_waited_for() {
        let mut topics = topics();
        topics[0].slots = 2;
        let outcome = run_on(&mut hub::start(2, &topics, Mishaps::default()), vec![closed(0, 0, &[64], 5)]);
        assert!(outcome.artifacts > 10);
        assert_eq!(outcome.flaws, Flaws::default());
    }
}
