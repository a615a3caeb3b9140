//! An honest member: the engine, and a replica that broadcasts, aborts, validates and releases.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::opinion::{Word, opinion};
use super::options::{Options, TopicOptions};
use crate::config::{Advert, FilterThread, Granted, Limits, Settings, TopicConfig, Verdict};
use crate::engine::{ArtifactState, Command, Effect, Effects, Engine, EngineConfig, Event, Judged};
use crate::proto::Question;
use crate::types::{
    ArtifactId, Attribute, ConnectionNumber, Instant, NodeId, PeerIndex, PerClass, RegistryVersion, TopicId,
    Verified,
};
use crate::wire::Hello;

/// What the replica has been told of an artifact, and made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// Delivered, and not decided about.
    Held,
    /// Validated.
    Relayed,
    /// Released; somebody may still name it.
    Released,
    /// Released after the engine had let go of it: `Withdrawn` is on its way.
    Leaving,
}

/// What a topic's handle counts.
#[derive(Debug, Default, Clone, Copy)]
struct Reserved {
    slots: u32,
    bytes: u64,
}

/// See the module.
pub(super) struct Member {
    pub(super) engine: Engine,
    pub(super) paused_until: Instant,
    pub(super) stalled_until: Instant,
    /// How far its clock is ahead of the world's.
    pub(super) skew: Duration,
    /// What it broadcasts itself.
    pub(super) own: BTreeSet<(TopicId, ArtifactId)>,
    pub(super) known: BTreeMap<(TopicId, ArtifactId), Known>,
    /// What the replica has had since the start. Others who still have it need not tell: it was let go of on purpose.
    pub(super) had: BTreeSet<(TopicId, ArtifactId)>,
    /// Of that, what it need not be given again: its engine has not forgotten it since, or it was active here and let go of.
    pub(super) current: BTreeSet<(TopicId, ArtifactId)>,
    /// What was active here once, and was aborted: others who knew that need not tell of it again.
    pub(super) ended: BTreeSet<(TopicId, ArtifactId)>,
    /// How often the engine had forgotten something, when it was last looked.
    pub(super) forgotten: u64,
    /// Events that the replica has taken since its last rest.
    pub(super) taken: u32,
    /// What it aborted last of its own.
    pub(super) aborted: Option<(TopicId, ArtifactId)>,
    /// Refusals that it has been told of what is active now.
    pub(super) refused: BTreeSet<(TopicId, ArtifactId, NodeId)>,
    /// Broadcasts and relays that the engine has not given back.
    reserved: BTreeMap<TopicId, Reserved>,
    generation: Arc<AtomicU64>,
    /// How often its filters have panicked.
    panics: Arc<AtomicU64>,
    /// By topic.
    judges: Vec<Judge>,
    /// Its start's number.
    pub(super) boot: u64,
    connections: u64,
    index: usize,
}

/// The filter's generation at which it wants nothing later any more.
pub(super) const SETTLED: u64 = 4;

/// The filter's verdict by the artifact alone, which every member shares: a later one comes with the generation.
fn verdict(topic: &TopicOptions, id: &ArtifactId, generation: u64) -> Verdict {
    if topic.sequences {
        return sequence(id)[generation.min(2) as usize];
    }
    let draw = u64::from(id.0[7]) * 100 / 256;
    match () {
        () if panics(topic, id, generation) => Verdict::Later,
        () if draw < topic.discard_percent => Verdict::Discard,
        () if draw < topic.discard_percent + topic.later_percent
            && (u64::from(id.0[8]) % SETTLED) >= generation =>
        {
            Verdict::Later
        }
        () => Verdict::Want,
    }
}

/// The filter's verdict on a member's word.
pub(super) fn judge(topic: &TopicOptions, word: &Word, generation: u64) -> Verdict {
    match verdict(topic, &word.id, generation) {
        Verdict::Want => opinion(topic, word, generation),
        verdict @ (Verdict::Later | Verdict::Discard) => verdict,
    }
}

/// Whether the filter panics: at some for ever, at others until it has changed so often. That counts as `Later`.
fn panics(topic: &TopicOptions, id: &ArtifactId, generation: u64) -> bool {
    let draw = u64::from(id.0[9]) * 100 / 256;
    draw < topic.panic_percent && u64::from(id.0[10]) % (SETTLED + 1) >= generation
}

/// What the filter says of an artifact at the generations 0, 1 and from 2 on, where all sequences of three occur.
pub(super) fn sequence(id: &ArtifactId) -> [Verdict; 3] {
    let number = usize::from(id.0[9]) % SEQUENCES;
    [number / 9, number / 3 % 3, number % 3].map(|at| [Verdict::Want, Verdict::Later, Verdict::Discard][at])
}

/// Sequences of three verdicts.
pub(super) const SEQUENCES: usize = 27;

/// The number of a topic.
pub(super) fn topic_id(index: usize) -> TopicId {
    TopicId(index as u16 + 1)
}

/// What every member is bounded by.
pub(super) fn limits(options: &Options) -> Limits {
    let largest = options.topics.iter().map(|topic| topic.largest as u32).fold(128 << 10, u32::max);
    let artifact_bytes = options.scarcity.map_or(largest, |scarcity| scarcity.artifact_bytes);
    let settings = Settings { artifact_bytes, ..Settings::default() };
    let granted = Granted { receive: 1 << 20, send: 1 << 20 };
    let mut limits = Limits::derive(&settings, options.members, 1, granted);
    limits.fetch_per_peer = PerClass([options.budget.requests; 4]);
    limits.fetch_peer_bytes = PerClass([options.budget.bytes; 4]);
    if let Some(scarcity) = options.scarcity {
        (limits.stream_window, limits.connection_window) = scarcity.windows;
        (limits.send_window, limits.urgent_reserve) = scarcity.send_windows;
        limits.pushes_in_assembly = scarcity.pushes_in_assembly;
        limits.fetch_lane_bytes = PerClass([scarcity.lane_bytes; 4]);
    }
    limits
}

impl Member {
    /// A fresh start, without memory.
    pub(super) fn new(options: &Options, ids: &[NodeId], index: usize, boot: u64, generation: u64) -> Member {
        let hello = Hello { subnet: [7; 32], lanes: 1, lane: 0, registry: RegistryVersion(1), boot };
        let mut engine = Engine::new(EngineConfig {
            hello,
            members: ids.into(),
            limits: limits(options),
            relay_grace: Duration::from_millis(50),
            seed: options.seed ^ boot,
        });
        let generation = Arc::new(AtomicU64::new(generation));
        let panics = Arc::new(AtomicU64::new(0));
        let honest: Arc<[NodeId]> = ids.iter().take(options.members - options.hostile).copied().collect();
        let judge = |topic: &TopicOptions| Judge {
            options: topic.clone(),
            honest: honest.clone(),
            generation: generation.clone(),
        };
        let judges: Vec<Judge> = options.topics.iter().map(judge).collect();
        for (number, judge) in judges.iter().enumerate() {
            let mut config = judge.config(topic_id(number), &panics);
            if !options.habits.deliberation.is_zero() {
                config = config.filter_thread(FilterThread::Own);
            }
            engine.handle_topic(config);
        }
        Member {
            engine,
            paused_until: Instant::ZERO,
            stalled_until: Instant::ZERO,
            skew: Duration::ZERO,
            own: BTreeSet::new(),
            known: BTreeMap::new(),
            had: BTreeSet::new(),
            current: BTreeSet::new(),
            ended: BTreeSet::new(),
            forgotten: 0,
            taken: 0,
            aborted: None,
            refused: BTreeSet::new(),
            reserved: BTreeMap::new(),
            generation,
            panics,
            judges,
            boot,
            connections: 0,
            index,
        }
    }

    /// What its clock shows at a time of the world.
    pub(super) fn clock(&self, now: Instant) -> Instant {
        now + self.skew
    }

    /// When its clock shows a time.
    pub(super) fn unskewed(&self, at: Instant) -> Instant {
        Instant::ZERO + at.saturating_since(Instant::ZERO + self.skew)
    }

    /// How often its filters have panicked.
    pub(super) fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// A connection of its own numbering.
    pub(super) fn connect(&mut self, peer: usize, now: Instant, fx: &mut Effects) {
        self.connections += 1;
        let number = ConnectionNumber(self.connections);
        self.engine.handle_disconnected(PeerIndex(peer as u16), now, fx);
        self.engine.handle_connected(PeerIndex(peer as u16), number, now, fx);
    }

    /// Broadcasts a body, unless the table is full.
    pub(super) fn broadcast(
        &mut self,
        topic: TopicId,
        body: Verified,
        limits: &TopicOptions,
        now: Instant,
        fx: &mut Effects,
    ) -> bool {
        let bytes = body.bytes().len() as u64;
        let reserved = self.reserved.entry(topic).or_default();
        if reserved.slots >= limits.slots || reserved.bytes + bytes > limits.active_room() {
            return false;
        }
        reserved.slots += 1;
        reserved.bytes += bytes;
        let id = body.id();
        if self.engine.state_of(topic, &id) == Some(ArtifactState::Active) {
            // It is refused.
            self.engine.handle_command(broadcast(topic, body, now), now, fx);
            return true;
        }
        self.own.insert((topic, id));
        self.had.insert((topic, id));
        self.current.insert((topic, id));
        // A `Withdrawn` may be on its way.
        match self.known.get_mut(&(topic, id)) {
            Some(known @ (Known::Held | Known::Leaving))
                if self.engine.state_of(topic, &id) != Some(ArtifactState::Delivered) =>
            {
                *known = Known::Leaving;
            }
            _ => drop(self.known.remove(&(topic, id))),
        }
        self.engine.handle_command(broadcast(topic, body, now), now, fx);
        true
    }

    /// Ends whatever the replica has to do with an artifact.
    pub(super) fn abort(&mut self, topic: TopicId, id: ArtifactId, now: Instant, fx: &mut Effects) {
        if self.own.remove(&(topic, id)) {
            self.aborted = Some((topic, id));
        }
        if self.engine.state_of(topic, &id) == Some(ArtifactState::Active) {
            self.ended.insert((topic, id));
        }
        self.refused.retain(|(of, what, _)| (*of, *what) != (topic, id));
        if let Some(known) = self.known.get_mut(&(topic, id)).filter(|known| **known != Known::Leaving) {
            *known = Known::Released;
        }
        self.engine.handle_command(Command::Abort { topic, id }, now, fx);
    }

    /// Relays a delivered artifact if a slot is free; otherwise lets it go.
    pub(super) fn validate(
        &mut self,
        topic: TopicId,
        id: ArtifactId,
        limits: &TopicOptions,
        now: Instant,
        fx: &mut Effects,
    ) {
        let reserved = self.reserved.entry(topic).or_default();
        if reserved.slots >= limits.slots {
            return self.release(topic, id, now, fx);
        }
        reserved.slots += 1;
        let had = self.engine.state_of(topic, &id) == Some(ArtifactState::Delivered);
        self.engine.handle_command(Command::Validate { topic, id }, now, fx);
        let relayed = self.engine.state_of(topic, &id) == Some(ArtifactState::Active);
        if let Some(known) = self.known.get_mut(&(topic, id)) {
            *known = match (relayed, had) {
                (true, _) => Known::Relayed,
                (false, true) => Known::Released,
                (false, false) => Known::Leaving,
            };
        }
    }

    pub(super) fn release(&mut self, topic: TopicId, id: ArtifactId, now: Instant, fx: &mut Effects) {
        let had = self.engine.state_of(topic, &id) == Some(ArtifactState::Delivered);
        if let Some(known) = self.known.get_mut(&(topic, id)) {
            *known = if had { Known::Released } else { Known::Leaving };
        }
        self.engine.handle_command(Command::Release { topic, id }, now, fx);
    }

    /// The filter changes its mind about some of what it wanted later.
    pub(super) fn set_filter(&mut self, generation: u64) {
        self.generation.store(generation, Ordering::Relaxed);
    }

    /// The engine hears of it. Where filters deliberate, it is another filter now and then, asked here or elsewhere.
    pub(super) fn tell_filter(&mut self, deliberate: bool, now: Instant, fx: &mut Effects) {
        let generation = self.generation.load(Ordering::Relaxed);
        for topic in (0..self.judges.len()).map(topic_id) {
            let command = match generation {
                1 | 2 if deliberate => Command::FilterReplaced { topic, elsewhere: generation == 2 },
                SETTLED if deliberate && self.index % 2 == 1 => {
                    Command::FilterReplaced { topic, elsewhere: true }
                }
                _ => Command::FilterChanged { topic },
            };
            self.engine.handle_command(command, now, fx);
        }
    }

    /// The next question for a filter elsewhere, and what that will say.
    pub(super) fn poll_question(&mut self) -> Option<(TopicId, Judged)> {
        self.judges.iter().enumerate().find_map(|(number, judge)| {
            let topic = topic_id(number);
            let Question { ticket, advert } = self.engine.poll_question(topic)?;
            let judged = Judged { id: advert.id, from: advert.from, ticket, verdict: judge.ask(&advert) };
            Some((topic, judged))
        })
    }

    /// A filter elsewhere has come to its verdict.
    pub(super) fn judged(&mut self, topic: TopicId, judged: Judged, now: Instant, fx: &mut Effects) {
        if judged.verdict.is_none() {
            self.panics.fetch_add(1, Ordering::Relaxed);
        }
        self.engine.handle_command(Command::Judged { topic, judged }, now, fx);
    }

    /// What an effect gives back.
    pub(super) fn freed(&mut self, effect: Effect) -> Result<(), String> {
        let Effect::Freed { topic, bytes } = effect else { return Ok(()) };
        let reserved = self.reserved.entry(topic).or_default();
        let slots = reserved.slots.checked_sub(1);
        let left = reserved.bytes.checked_sub(bytes);
        let (Some(slots), Some(bytes)) = (slots, left) else {
            return Err(format!("P4: member {} is given back more than it reserved", self.index));
        };
        (reserved.slots, reserved.bytes) = (slots, bytes);
        Ok(())
    }

    /// Slots and bytes that the replica's handles count.
    pub(super) fn reserved(&self) -> (u32, u64) {
        self.reserved.values().fold((0, 0), |(slots, bytes), r| (slots + r.slots, bytes + r.bytes))
    }

    /// Bytes that a topic's handle counts.
    pub(super) fn reserved_in(&self, topic: TopicId) -> u64 {
        self.reserved.get(&topic).map_or(0, |reserved| reserved.bytes)
    }

    /// The next event of any topic.
    pub(super) fn poll_event(&mut self, topics: usize, now: Instant) -> Option<(TopicId, Event)> {
        (0..topics).map(topic_id).find_map(|topic| Some((topic, self.engine.poll_event(topic, now)?)))
    }
}

fn broadcast(topic: TopicId, body: Verified, since: Instant) -> Command {
    Command::Broadcast { topic, body, attribute: Attribute::EMPTY, since }
}

impl TopicOptions {
    /// Bytes that a member's own artifacts may have.
    pub(super) fn active_room(&self) -> u64 {
        self.active_bytes.unwrap_or((128 << 10) + u64::from(self.slots) * self.largest / 2)
    }
}

/// A topic's filter.
#[derive(Clone)]
struct Judge {
    options: TopicOptions,
    honest: Arc<[NodeId]>,
    generation: Arc<AtomicU64>,
}

impl Judge {
    /// What it says now; `None`: it panics.
    fn ask(&self, advert: &Advert) -> Option<Verdict> {
        let generation = self.generation.load(Ordering::Relaxed);
        if panics(&self.options, &advert.id, generation) {
            return None;
        }
        let Advert { id, size, from, .. } = *advert;
        let lie = (!self.honest.contains(&from)).then_some(size);
        Some(judge(&self.options, &Word { id, from, lie }, generation))
    }

    fn config(&self, id: TopicId, panicked: &Arc<AtomicU64>) -> TopicConfig {
        let options = &self.options;
        let mut config = TopicConfig::new(id, "simulated").class(options.class);
        config.slots = options.slots;
        config.push_threshold = options.push_threshold;
        config.pending_bytes = options.pending_bytes;
        config.active_bytes = options.active_room();
        let (judge, panicked) = (self.clone(), panicked.clone());
        config.filter(move |advert| {
            judge.ask(advert).unwrap_or_else(|| {
                panicked.fetch_add(1, Ordering::Relaxed);
                // A panic that no hook prints.
                resume_unwind(Box::new("a filter's own bug"))
            })
        })
    }
}
