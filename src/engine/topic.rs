//! One topic in one lane: its tables, and where each of its artifacts stands.

use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{FilterThread, TopicConfig};
use crate::metrics::{self, Stages, TopicCounters, TopicGauges};
use crate::proto::{
    self, Admission, Origin, Pool, PoolLimits, Promotion, SlotLimits, Slots, View, ViewLimits,
};
use crate::types::{
    ArtifactId, Attribute, IdMap, Instant, KeyedState, NodeId, PeerIndex, Rng, StreamKey, TopicId, Verified,
};

use super::turns::{Turn, Turns};
use super::{Artifact, Event};

/// Where an artifact stands, from the first advert until nobody names it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Wanted; its body is being asked for.
    Fetching,
    /// Wanted; its body is being pushed.
    Arriving {
        /// By whom.
        peer: PeerIndex,
        /// On which stream.
        key: StreamKey,
    },
    /// Wanted; there is no room for its body.
    Starved,
    /// The filter wants it later.
    Later,
    /// The filter does not want it.
    Discarded,
    /// Its body is here; the replica has not been told.
    Ready,
    /// The replica has it, and has not said what becomes of it.
    Delivered,
    /// The replica is done with it, but a peer still names it.
    Released,
    /// In our own active set.
    Active,
}

impl Stage {
    /// Wanted, and its body is not here.
    fn is_wanted(self) -> bool {
        matches!(self, Stage::Fetching | Stage::Arriving { .. } | Stage::Starved)
    }

    /// Whether the time at this stage and the time at `other` are one.
    fn continues(self, other: Stage) -> bool {
        let is_here = |stage| matches!(stage, Stage::Ready | Stage::Delivered | Stage::Released);
        self == other || (self.is_wanted() && other.is_wanted()) || (is_here(self) && is_here(other))
    }
}

/// What is known of an artifact.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) stage: Stage,
    /// Since when; ways of being wanted are one, and so are those of its body being here.
    pub(super) since: Instant,
    /// What is set aside for it: the smallest size that an advertiser has stated, or the true one once its body was seen.
    pub(super) size: u32,
    /// Whether its body was seen.
    pub(super) proven: bool,
    pub(super) attribute: Attribute,
    /// Its turn, when it starves.
    pub(super) turn: Option<Turn>,
    /// Until when room is set aside for it, should others starve; `None` when none is.
    pub(super) yields_at: Option<Instant>,
    /// How often its body was here and had no room: it may take twice the time after each.
    pub(super) dropped: u32,
    /// Whether every advert so far was a relay's.
    pub(super) relayed: bool,
    /// The number of the telling that offers its body to the replica, when that is here: the same id may have been offered
    /// before, withdrawn, and named again, while the replica took nothing.
    pub(super) offer: u64,
}

impl Entry {
    /// Of an artifact of which somebody has told.
    pub(super) fn new(stage: Stage, size: u32, attribute: Attribute, relayed: bool, since: Instant) -> Entry {
        let (proven, turn, yields_at, dropped, offer) = (false, None, None, 0, 0);
        Entry { stage, since, size, proven, attribute, turn, yields_at, dropped, relayed, offer }
    }

    /// The same at another stage, with nothing of the one before.
    pub(super) fn at(self, stage: Stage) -> Entry {
        Entry { stage, turn: None, yields_at: None, ..self }
    }

    /// Records how long it was at its stage, which it leaves for another; since when it is at that one.
    fn pass(&self, stage: Stage, stages: &Stages, now: Instant) -> Instant {
        if self.stage.continues(stage) {
            return self.since;
        }
        let waited = if self.stage == Stage::Later && stage.is_wanted() {
            Some(metrics::Stage::Admission)
        } else if self.stage.is_wanted() && stage == Stage::Ready && self.since != now {
            // A body that came with the first word was not waited for.
            Some(metrics::Stage::Fetch)
        } else {
            None
        };
        if let Some(waited) = waited {
            stages.record(waited, self.since, now);
        }
        now
    }

    /// Whether its body is on its way.
    fn is_coming(&self) -> bool {
        matches!(self.stage, Stage::Fetching | Stage::Arriving { .. })
    }

    /// Bytes set aside for its body.
    fn reserved(&self) -> u64 {
        self.yields_at.map_or(0, |_| u64::from(self.size))
    }
}

#[derive(Debug, Clone, Copy)]
enum Telling {
    /// With the number of the offer.
    Delivered(ArtifactId, u64),
    Withdrawn(ArtifactId),
    /// Of a relay: told only if it still is one, and still nobody else names it.
    Orphaned(ArtifactId),
}

/// See the module.
pub(super) struct Topic {
    config: TopicConfig,
    pub(super) slots: Slots,
    pub(super) view: View,
    pub(super) pool: Pool,
    pub(super) admission: Admission,
    /// When the filter was asked last about what it wanted later.
    pub(super) asked_at: Instant,
    ledger: IdMap<Entry>,
    /// Wanted artifacts without room; taken up again when bodies go.
    starved: Turns,
    /// Artifacts for whose bodies room is set aside, by when they yield it to the starved.
    promised: BTreeSet<(Instant, ArtifactId)>,
    /// Bytes of that room.
    reserved: u64,
    /// Artifacts that have left the ledger.
    forgotten: u64,
    /// Bytes of active bodies that are relays.
    relay_bytes: u64,
    /// What the replica is to be told besides refusals, which [`Slots`] keeps. A `Delivered` whose artifact is not `Ready` any
    /// more, or is again since, is skipped.
    tellings: VecDeque<Telling>,
    /// Bodies offered to the replica so far.
    offers: u64,
    /// How many of those are `Withdrawn`, and so never skipped.
    withdrawn: usize,
    /// Artifacts that are `Ready`.
    ready: usize,
    pub(super) counters: TopicCounters,
    pub(super) stages: Arc<Stages>,
}

impl Topic {
    /// Starved artifacts among which is chosen.
    const CHOICE: usize = 64;
    /// How long a body may take while others starve for its room; whatever its sender sends meanwhile, for it may be a liar.
    const PATIENCE: Duration = Duration::from_secs(1);
    /// One that was dropped so often gets no more time the next time.
    const DROPPED: u32 = 4;

    pub(super) fn new(config: TopicConfig, peers: usize, rng: &mut Rng) -> Topic {
        let slot_limits = SlotLimits {
            capacity: config.slots,
            peers,
            push_threshold: config.push_threshold,
            class: config.class,
        };
        // The replica's own bodies are counted by its handle, relays here; each may use `active_bytes`.
        let validated_bytes = config.active_bytes.saturating_mul(2);
        let pool_limits = PoolLimits { validated_bytes, unvalidated_bytes: config.pending_bytes };
        let elsewhere = config.filter.is_some() && config.filter_thread == FilterThread::Own;
        Topic {
            slots: Slots::new(slot_limits, rng),
            view: View::new(ViewLimits { slots_per_peer: config.slots, peers }, rng),
            pool: Pool::new(pool_limits, rng),
            admission: Admission::new(config.filter.clone(), elsewhere),
            asked_at: Instant::ZERO,
            ledger: IdMap::with_hasher(KeyedState::new(rng)),
            starved: Turns::new(peers),
            promised: BTreeSet::new(),
            reserved: 0,
            forgotten: 0,
            relay_bytes: 0,
            tellings: VecDeque::new(),
            offers: 0,
            withdrawn: 0,
            ready: 0,
            counters: TopicCounters::default(),
            stages: Arc::default(),
            config,
        }
    }

    pub(super) fn id(&self) -> TopicId {
        self.config.id
    }

    pub(super) fn config(&self) -> &TopicConfig {
        &self.config
    }

    pub(super) fn entry(&self, id: &ArtifactId) -> Option<&Entry> {
        self.ledger.get(id)
    }

    pub(super) fn stage(&self, id: &ArtifactId) -> Option<Stage> {
        self.ledger.get(id).map(|entry| entry.stage)
    }

    /// Enters an artifact, or replaces what is known of it.
    pub(super) fn enter(&mut self, id: ArtifactId, entry: Entry) {
        let stage = entry.stage;
        if let Some(old) = self.ledger.insert(id, entry) {
            self.left(&id, &old);
        }
        self.entered(id, stage);
    }

    /// Takes in an artifact of which nothing was known, together with its body, for which there is room ([`Topic::may_take`]).
    pub(super) fn take_in(&mut self, body: Verified, entry: Entry, from: PeerIndex) {
        let (id, attribute) = (body.id(), entry.attribute.clone());
        let taken = self.pool.insert_received(id, body.into_bytes(), attribute, from).is_ok();
        debug_assert!(taken, "room that was found is gone");
        self.enter(id, Entry { stage: Stage::Ready, ..entry });
    }

    /// Records how long an artifact was at a stage that it leaves for another; since when it is at that one.
    pub(super) fn passed(&self, before: &Entry, stage: Stage, now: Instant) -> Instant {
        before.pass(stage, &self.stages, now)
    }

    /// Moves an artifact to another stage. What is set aside for its body stays so as long as that is on its way.
    pub(super) fn advance(&mut self, id: &ArtifactId, stage: Stage, now: Instant) {
        let Some(entry) = self.ledger.get_mut(id) else { return };
        entry.since = entry.pass(stage, &self.stages, now);
        self.ready -= usize::from(entry.stage == Stage::Ready);
        entry.stage = stage;
        if let Some(turn) = entry.turn.take() {
            match stage {
                Stage::Fetching => self.starved.serve(turn),
                _ => self.starved.remove(turn),
            }
        }
        if !entry.is_coming() && entry.yields_at.is_some() {
            self.yield_room(id);
        }
        self.entered(*id, stage);
    }

    /// The replica is done with a delivered artifact; `false` if it is no such.
    pub(super) fn release(&mut self, id: &ArtifactId) -> bool {
        let Some(entry) = self.ledger.get_mut(id).filter(|entry| entry.stage == Stage::Delivered) else {
            return false;
        };
        entry.stage = Stage::Released;
        self.pool.remove(id);
        true
    }

    fn entered(&mut self, id: ArtifactId, stage: Stage) {
        if stage == Stage::Ready
            && let Some(entry) = self.ledger.get_mut(&id)
        {
            self.ready += 1;
            self.offers += 1;
            entry.offer = self.offers;
            self.tell(Telling::Delivered(id, self.offers));
        }
    }

    /// Lets a wanted artifact wait for room; if it does so already it keeps its turn.
    pub(super) fn starve(&mut self, id: &ArtifactId, now: Instant) {
        if self.entry(id).is_none_or(|entry| entry.turn.is_some()) {
            return;
        }
        self.advance(id, Stage::Starved, now);
        self.take_turn(id);
    }

    /// Gives what starves a turn, unless there can never be room for it.
    fn take_turn(&mut self, id: &ArtifactId) {
        let Some(entry) = self.ledger.get_mut(id) else { return };
        if u64::from(entry.size) <= self.config.pending_bytes {
            entry.turn = Some(self.starved.insert(*id, entry.size, self.view.advertisers(id)));
        }
    }

    /// Takes an artifact out; what was known of it.
    pub(super) fn leave(&mut self, id: &ArtifactId) {
        if let Some(entry) = self.ledger.remove(id) {
            self.left(id, &entry);
        }
    }

    fn left(&mut self, id: &ArtifactId, entry: &Entry) {
        self.ready -= usize::from(entry.stage == Stage::Ready);
        self.reserved -= entry.reserved();
        if let Some(at) = entry.yields_at {
            self.promised.remove(&(at, *id));
        }
        if let Some(turn) = entry.turn {
            self.starved.remove(turn);
        }
        self.forgotten += 1;
    }

    /// Another advertiser's word on an artifact; where that stands. Of two sizes the smaller is set aside, lest a liar use up the
    /// topic's bytes; a body that turns out larger finds room when it comes, or is fetched again when its true size has room.
    pub(super) fn hear(
        &mut self,
        id: &ArtifactId,
        peer: PeerIndex,
        size: u32,
        relayed: bool,
    ) -> Option<Stage> {
        let entry = self.ledger.get_mut(id)?;
        let stage = entry.stage;
        let before = entry.reserved();
        if !entry.proven {
            entry.size = entry.size.min(size);
        }
        entry.relayed &= relayed;
        self.reserved = self.reserved - before + entry.reserved();
        match &mut entry.turn {
            Some(turn) => *turn = self.starved.hasten(*turn, entry.size, peer),
            None if stage == Stage::Starved => self.take_turn(id),
            None => (),
        }
        Some(stage)
    }

    /// The body was here and had no room: from now on its true size is waited for, lest it be fetched again in vain.
    pub(super) fn prove(&mut self, id: &ArtifactId, size: u32) {
        if let Some(entry) = self.ledger.get_mut(id) {
            (entry.size, entry.proven) = (size, true);
            entry.dropped = (entry.dropped + 1).min(Self::DROPPED);
        }
    }

    /// Tells the replica that a delivered artifact is withdrawn.
    pub(super) fn tell_withdrawn(&mut self, id: ArtifactId) {
        self.tell(Telling::Withdrawn(id));
    }

    /// Tells the replica that nobody else names an artifact that it relays.
    pub(super) fn tell_orphaned(&mut self, id: ArtifactId) {
        self.tell(Telling::Orphaned(id));
    }

    /// Whether an artifact's body waits for the replica, by this offer.
    fn is_offered(&self, id: &ArtifactId, offer: u64) -> bool {
        self.entry(id).is_some_and(|entry| entry.stage == Stage::Ready && entry.offer == offer)
    }

    fn is_orphaned(&self, id: &ArtifactId) -> bool {
        let relayed = self.slots.get(id).is_some_and(|(_, active)| active.origin == Origin::Relay);
        relayed && !self.view.is_advertised(id)
    }

    fn tell(&mut self, telling: Telling) {
        // Artifacts that come and go while the consumer is away leave skipped entries; more than half are never kept.
        let lasting = self.ledger.len() + self.withdrawn;
        if self.tellings.len() > 64 + 2 * lasting {
            let (mut tellings, mut seen) = (mem::take(&mut self.tellings), BTreeSet::new());
            tellings.retain(|telling| match telling {
                Telling::Delivered(id, offer) => self.is_offered(id, *offer),
                Telling::Withdrawn(_) => true,
                Telling::Orphaned(id) => self.is_orphaned(id) && seen.insert(*id),
            });
            self.tellings = tellings;
        }
        self.withdrawn += usize::from(matches!(telling, Telling::Withdrawn(_)));
        self.tellings.push_back(telling);
    }

    /// Whether there is room for a body of `size` bytes besides those on their way.
    pub(super) fn has_room(&self, size: u32) -> bool {
        let taken = self.reserved + self.pool.bytes(proto::Stage::Unvalidated);
        taken + u64::from(size) <= self.config.pending_bytes
    }

    /// Makes a delivered artifact active as a relay, if there is room for its body; its size.
    pub(super) fn relay(&mut self, id: &ArtifactId) -> Option<u32> {
        let size = self.pool.get(id)?.bytes.len() as u32;
        let relay_bytes = self.relay_bytes + u64::from(size);
        if relay_bytes > self.config.active_bytes || !matches!(self.pool.validate(id), Promotion::Promoted(_))
        {
            return None;
        }
        self.relay_bytes = relay_bytes;
        Some(size)
    }

    /// Ends an active artifact; the bytes that the handle counted for it.
    pub(super) fn end(&mut self, id: &ArtifactId) -> u64 {
        let Some(active) = self.slots.handle_abort(id) else { return 0 };
        self.pool.remove(id);
        match active.origin {
            Origin::Own => u64::from(active.size),
            Origin::Relay => {
                self.relay_bytes -= u64::from(active.size);
                0
            }
        }
    }

    /// Whether anything waits for room.
    pub(super) fn starves(&self) -> bool {
        !self.starved.is_empty()
    }

    /// The starved artifacts that are the first in turn.
    pub(super) fn first_starved(&self) -> impl Iterator<Item = ArtifactId> {
        self.starved.iter().take(Self::CHOICE)
    }

    /// What is first in turn has no room; perhaps `other` has. What may have it now.
    pub(super) fn overtaker(
        &mut self,
        first: ArtifactId,
        other: Option<ArtifactId>,
        now: Instant,
    ) -> Option<ArtifactId> {
        self.starved.wait(first, now);
        let other = other?;
        if self.starved.is_kept_free(now) {
            self.starved.block();
            return None;
        }
        Some(other)
    }

    /// Lets the first in turn take another one: for long the replica has held what is in its way, which perhaps it can let go
    /// only after others have come.
    pub(super) fn step_back(&mut self, now: Instant) {
        let Some((first, _)) = self.steps_back().filter(|(_, at)| *at <= now) else { return };
        if let Some(turn) = self.ledger.get_mut(&first).and_then(|entry| entry.turn.take()) {
            self.starved.remove(turn);
            self.take_turn(&first);
        }
    }

    fn steps_back(&self) -> Option<(ArtifactId, Instant)> {
        let (first, at) = self.starved.steps_back()?;
        self.ledger.get(&first).filter(|entry| !self.could_fit(entry.size)).map(|_| (first, at))
    }

    /// Whether the body of an artifact has room now.
    pub(super) fn fits(&self, id: &ArtifactId) -> bool {
        self.ledger.get(id).is_some_and(|entry| self.has_room(entry.size))
    }

    /// Sets room aside for a body that is on its way, for as long as nobody starves or it may take.
    pub(super) fn promise(&mut self, id: &ArtifactId, now: Instant) {
        let Some(entry) = self.ledger.get_mut(id).filter(|entry| entry.is_coming()) else { return };
        let at = now + Self::PATIENCE * (1 << entry.dropped);
        debug_assert!(entry.yields_at.is_none());
        entry.yields_at = Some(at);
        self.promised.insert((at, *id));
        self.reserved += entry.reserved();
    }

    /// What is set aside for a body is free again.
    fn yield_room(&mut self, id: &ArtifactId) {
        let Some(entry) = self.ledger.get_mut(id) else { return };
        self.reserved -= entry.reserved();
        if let Some(at) = entry.yields_at.take() {
            self.promised.remove(&(at, *id));
        }
    }

    /// When room goes to something else that starves, if nothing happens before.
    pub(super) fn next_turn(&self) -> Option<Instant> {
        let yields = self.promised.first().map(|(at, _)| *at).filter(|_| !self.starved.is_empty());
        yields.into_iter().chain(self.steps_back().map(|(_, at)| at)).min()
    }

    /// When the filter is to be asked more, of what it wanted later.
    pub(super) fn next_question(&self) -> Option<Instant> {
        self.admission.is_open_here().then_some(self.asked_at)
    }

    /// One body that was waited for for long enough, while others starve, loses its room. How it is on its way.
    pub(super) fn yield_one(&mut self, now: Instant) -> Option<Stage> {
        let (_, id) =
            self.promised.first().copied().filter(|(at, _)| *at <= now && !self.starved.is_empty())?;
        self.yield_room(&id);
        self.stage(&id)
    }

    /// Whether a body of `size` bytes, which is here, may be kept; what was set aside for it is free from now on. One that lost
    /// its room takes that of bodies which are not here yet: so what is slow comes in, too, and is not fetched in vain.
    pub(super) fn take_room(&mut self, id: &ArtifactId, size: u32, now: Instant) -> bool {
        let Some(entry) = self.ledger.get(id) else { return false };
        let (coming, promised) = (entry.is_coming(), entry.yields_at.is_some());
        self.yield_room(id);
        if !coming {
            return self.may_take(size, now);
        }
        while !promised && !self.has_room(size) && self.could_fit(size) {
            let Some((_, other)) = self.promised.first().copied() else { break };
            self.yield_room(&other);
        }
        self.has_room(size)
    }

    /// Whether a body of `size` bytes may be kept though it is not its turn.
    pub(super) fn may_take(&self, size: u32, now: Instant) -> bool {
        self.has_room(size) && !self.starved.is_kept_free(now)
    }

    /// Whether there were room for a body of `size` bytes if nothing were on its way.
    fn could_fit(&self, size: u32) -> bool {
        self.pool.bytes(proto::Stage::Unvalidated) + u64::from(size) <= self.config.pending_bytes
    }

    /// Artifacts of which something is known.
    pub(super) fn artifacts(&self) -> usize {
        self.ledger.len()
    }

    /// How often an artifact was forgotten.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Events that wait for the replica, skipped ones included.
    pub(super) fn tellings(&self) -> usize {
        self.tellings.len()
    }

    /// Bytes set aside for bodies that are on their way.
    pub(super) fn reserved(&self) -> u64 {
        self.reserved
    }

    pub(super) fn has_events(&self) -> bool {
        !self.tellings.is_empty() || self.slots.has_refusals()
    }

    /// The next event; of a delivery, since when the body is here.
    pub(super) fn poll_event(
        &mut self,
        member: impl Fn(PeerIndex) -> Option<NodeId>,
    ) -> Option<(Event, Option<Instant>)> {
        while let Some(telling) = self.tellings.pop_front() {
            match telling {
                Telling::Withdrawn(id) => {
                    self.withdrawn -= 1;
                    self.counters.withdrawn += 1;
                    return Some((Event::Withdrawn { id }, None));
                }
                Telling::Delivered(id, offer) => {
                    if !self.is_offered(&id, offer) {
                        continue;
                    }
                    let (Some(entry), Some(held)) = (self.ledger.get_mut(&id), self.pool.get(&id)) else {
                        continue;
                    };
                    entry.stage = Stage::Delivered;
                    let since = entry.since;
                    self.ready -= 1;
                    let (attribute, bytes) = (held.attribute.clone(), held.bytes.clone());
                    let Some(from) = held.from.and_then(&member) else { continue };
                    self.counters.delivered += 1;
                    self.counters.delivered_bytes += bytes.len() as u64;
                    let artifact = Artifact { topic: self.config.id, id, attribute, bytes };
                    return Some((Event::Delivered { artifact, from }, Some(since)));
                }
                Telling::Orphaned(id) if self.is_orphaned(&id) => {
                    self.counters.withdrawn += 1;
                    return Some((Event::Withdrawn { id }, None));
                }
                Telling::Orphaned(_) => (),
            }
        }
        // Last: refusals are not urgent, and a member could make one of every artifact.
        let (id, peer, reason) = self.slots.next_refusal()?;
        Some((Event::Refused { id, by: member(peer)?, reason }, None))
    }

    /// What is held now; `backlog` is the peers'.
    pub(super) fn gauges(&self, backlog: usize) -> TopicGauges {
        let (active_bytes, pending_bytes) = self.pool_bytes();
        TopicGauges {
            active: self.slots.len() as u64,
            active_bytes,
            backlog: backlog as u64,
            later: self.admission.len() as u64,
            waiting: self.ready as u64,
            queued: 0,
            pending_bytes,
        }
    }

    pub(super) fn pool_bytes(&self) -> (u64, u64) {
        (self.pool.bytes(proto::Stage::Validated), self.pool.bytes(proto::Stage::Unvalidated))
    }
}
