//! What links and the replica bring: every event of an artifact's life, as a transition of its [`Stage`].

use crate::config::{Advert, Limits, Verdict};
use crate::metrics::Happening;
use crate::proto::{Active, Claim, Fault, Heard, Origin, Outcome, ViewEffect};
use crate::types::{ArtifactId, Attribute, Class, Instant, PeerIndex, StreamKey, Verified};
use crate::wire::{
    Change, CloseCode, FetchRequest, Frame, Incoming, Refusal, Refused, Reply, Resync, Update,
};

use super::topic::{Entry, Stage, Topic};
use super::{Effect, Effects, Engine};

/// What an advertiser says of an artifact, and how its body comes.
pub(super) struct Told {
    pub(super) peer: PeerIndex,
    pub(super) id: ArtifactId,
    pub(super) size: u32,
    pub(super) attribute: Attribute,
    pub(super) relayed: bool,
    pub(super) body: Coming,
}

/// How the body comes.
pub(super) enum Coming {
    /// When asked for.
    OnRequest,
    /// It is here.
    Here(Verified),
    /// On this stream.
    On(StreamKey),
}

impl Engine {
    /// Hands in what a peer's link brought. The link is connected.
    pub fn handle_link(&mut self, peer: PeerIndex, incoming: Incoming, now: Instant, fx: &mut Effects) {
        if self.links.get(peer.index()).is_none_or(|link| link.connection.is_none()) {
            return;
        }
        match incoming {
            Incoming::Frame(Frame::Hello(hello)) => self.hello(peer, hello, fx),
            Incoming::Frame(Frame::Open(open)) => self.open(peer, open, fx),
            Incoming::Frame(Frame::Resync(resync)) => self.resync(peer, &resync, now, fx),
            Incoming::Frame(Frame::Update(update)) => self.update(peer, update, now, fx),
            Incoming::Frame(Frame::Refused(refused)) => self.refused(peer, refused, now),
            Incoming::Frame(Frame::Held(held)) => self.held(peer, &held),
            Incoming::PushStarted { key, head } => self.push_started(peer, key, head, now, fx),
            Incoming::Pushed { key, head, body } => self.pushed(peer, key, &head, body, now, fx),
            Incoming::PushBroken { key, head } => {
                self.take_arriving(peer, key);
                self.push_broken(peer, key, head.topic, head.id, now);
            }
            Incoming::Request { key, request } => self.request(peer, key, request),
            Incoming::Progress { key } => self.fetch.handle_progress(peer, key, now),
            Incoming::Reply { key, reply } => self.reply(peer, key, reply, now, fx),
            Incoming::Sent { key, whole } => self.sent(peer, key, whole, now),
            Incoming::Fault(_) => {
                self.counters.faults += 1;
                self.blame(peer, Fault::Protocol, now);
            }
        }
        self.drain_fetch_effects(now, fx);
    }

    /// A stream that carried a body to a peer is over, or one on which it was to be answered.
    fn sent(&mut self, peer: PeerIndex, key: StreamKey, whole: bool, now: Instant) {
        let Some(link) = self.links.get_mut(peer.index()) else { return };
        match link.carrying.remove(&key) {
            Some((topic, id)) => {
                self.forget_carried(&id, peer, key);
                if whole {
                    self.journal.note(now, topic, &id, Happening::Acknowledged, Some(peer));
                }
            }
            None => link.replies.0.iter_mut().for_each(|queue| queue.retain(|(asked, ..)| *asked != key)),
        }
    }

    pub(super) fn fault(&mut self, peer: PeerIndex, code: CloseCode, fx: &mut Effects) {
        self.counters.faults += 1;
        fx.push(Effect::Disconnect { peer, code });
    }

    fn resync(&mut self, peer: PeerIndex, resync: &Resync, now: Instant, fx: &mut Effects) {
        let connection = self.links.get(peer.index()).and_then(|link| link.connection);
        let (Some(index), Some(connection)) = (self.index_of(resync.topic), connection) else { return };
        if let Some(topic) = self.topics.get_mut(index) {
            topic.view.handle_resync(peer, connection, resync, &mut self.heard);
        }
        self.follow(index, None, now, fx);
    }

    fn update(&mut self, peer: PeerIndex, update: Update<Verified>, now: Instant, fx: &mut Effects) {
        let Some(index) = self.index_of(update.topic) else {
            self.counters.updates_unknown_topic += 1;
            return;
        };
        let Update { slot, version, change, .. } = update;
        let place = Refused { topic: update.topic, slot, version, reason: Refusal::SlotLimit };
        let told = match change {
            Change::Clear => {
                let connection = self.links.get(peer.index()).and_then(|link| link.connection);
                let (Some(topic), Some(connection)) = (self.topics.get_mut(index), connection) else {
                    return;
                };
                if topic.view.handle_clear(peer, connection, slot, version, &mut self.heard) == Heard::Stale {
                    self.counters.updates_stale += 1;
                }
                return self.follow(index, None, now, fx);
            }
            Change::Push { attribute, body } => {
                let (id, size) = (body.id(), body.bytes().len() as u32);
                self.count(index, |topic| topic.bodies_received += 1);
                self.counters.bodies_received += 1;
                self.counters.body_bytes_received += u64::from(size);
                Told { peer, id, size, attribute, relayed: false, body: Coming::Here(body) }
            }
            Change::Advert { id, size, relayed, attribute } => {
                Told { peer, id, size, attribute, relayed, body: Coming::OnRequest }
            }
        };
        self.set(index, place, told, now, fx);
    }

    /// A slot of a peer holds an artifact now. `place` is what a refusal would say.
    pub(super) fn set(
        &mut self,
        index: usize,
        place: Refused,
        told: Told,
        now: Instant,
        fx: &mut Effects,
    ) -> bool {
        let peer = told.peer;
        if told.id.lane(self.config.hello.lanes) != self.config.hello.lane {
            self.fault(peer, CloseCode::Protocol, fx);
            return false;
        }
        let connection = self.links.get(peer.index()).and_then(|link| link.connection);
        let (Some(topic), Some(connection)) = (self.topics.get_mut(index), connection) else { return false };
        if told.size > self.config.limits.artifact_bytes {
            self.refuse(peer, Refused { reason: Refusal::ArtifactSize, ..place }, now);
            return false;
        }
        let claim = Claim { id: told.id, size: told.size };
        match topic.view.handle_set(peer, connection, place.slot, place.version, claim, &mut self.heard) {
            Heard::Newer => (),
            Heard::Stale => {
                self.counters.updates_stale += 1;
                return false;
            }
            Heard::OverLimit => {
                self.refuse(peer, place, now);
                return false;
            }
        }
        self.follow(index, Some(told), now, fx);
        true
    }

    fn refuse(&mut self, peer: PeerIndex, refused: Refused, now: Instant) {
        self.counters.updates_refused += 1;
        if let Some(index) = self.index_of(refused.topic) {
            self.count(index, |topic| topic.updates_refused += 1);
        }
        self.blame(peer, Fault::OverLimit, now);
        let Some(link) = self.links.get_mut(peer.index()) else { return };
        if link.refusals.len() < Limits::REFUSALS {
            link.refusals.push_back(refused);
        }
    }

    /// Carries out what a change of a view means. `told` is the update that caused it.
    fn follow(&mut self, index: usize, told: Option<Told>, now: Instant, fx: &mut Effects) {
        let mut heard = std::mem::take(&mut self.heard);
        for effect in heard.drain(..) {
            match effect {
                // The update itself follows below, once for all that it caused.
                ViewEffect::Advertised { .. } => (),
                ViewEffect::Unadvertised { id, peer } => {
                    let Some(topic) = self.topics.get_mut(index) else { continue };
                    match (topic.stage(&id), self.config.members.get(peer.index())) {
                        (Some(Stage::Fetching), _) => {
                            self.fetch.handle_unadvertised(topic.id(), id, peer, &mut self.fetch_effects);
                        }
                        (Some(Stage::Later), Some(from)) => topic.admission.forget_one(&id, from),
                        _ => (),
                    }
                }
                ViewEffect::Withdrawn { id } => self.withdrawn(index, id, now, fx),
            }
        }
        self.heard = heard;
        if let Some(told) = told {
            self.advertised(index, told, now, fx);
        }
    }

    pub(super) fn stage(&self, index: usize, id: &ArtifactId) -> Option<Stage> {
        self.topics.get(index)?.stage(id)
    }

    /// A peer names an artifact in a slot of its table.
    fn advertised(&mut self, index: usize, told: Told, now: Instant, fx: &mut Effects) {
        let Some(topic) = self.topics.get_mut(index) else { return };
        // A body that comes with the word is noted as such.
        if let Coming::OnRequest | Coming::On(_) = &told.body {
            self.journal.note(now, topic.id(), &told.id, Happening::Heard, Some(told.peer));
        }
        let id = told.id;
        match (topic.hear(&id, told.peer, told.size, told.relayed), told.body) {
            (before @ (None | Some(Stage::Later | Stage::Discarded)), body) => {
                self.admit(index, before, Told { body, ..told }, now, fx);
            }
            (Some(Stage::Fetching), Coming::OnRequest) => {
                self.fetch.handle_advertiser(topic.id(), id, told.peer, told.size)
            }
            (Some(Stage::Arriving { .. }), Coming::OnRequest | Coming::On(_)) => {
                self.doubt(index, &id, now);
            }
            (Some(Stage::Fetching | Stage::Arriving { .. } | Stage::Starved), Coming::Here(body)) => {
                self.arrived(index, told.peer, body, now, fx);
            }
            (Some(Stage::Fetching | Stage::Starved), Coming::On(_)) => (),
            // Its size may be smaller than was said before.
            (Some(Stage::Starved), Coming::OnRequest) => self.feed(index, now),
            (Some(_), Coming::OnRequest) => (),
            (Some(_), Coming::Here(_)) => self.counters.bodies_unneeded += 1,
            (Some(_), Coming::On(key)) => self.stop_push(told.peer, key, fx),
        }
    }

    /// Asks the filter about an artifact that is new here, or that it did not want on another advertiser's word: nobody's lie
    /// about size or attribute keeps an artifact out. The friendliest verdict counts.
    fn admit(&mut self, index: usize, before: Option<Stage>, told: Told, now: Instant, fx: &mut Effects) {
        let (Some(topic), Some(from)) =
            (self.topics.get_mut(index), self.config.members.get(told.peer.index()).copied())
        else {
            return;
        };
        let Told { peer, id, size, attribute, relayed, body } = told;
        let panics = topic.admission.panics();
        let advert = Advert { topic: topic.id(), id, size, attribute, from };
        let verdict = topic.admission.judge(&advert);
        self.counters.filter_panics += topic.admission.panics() - panics;
        let fresh = Entry::new(Stage::Starved, size, advert.attribute, relayed, now);
        let body = match (verdict, before, body) {
            (Verdict::Want, None, Coming::Here(body)) if topic.may_take(size, now) => {
                topic.take_in(body, fresh, peer);
                return self.note_at(now, index, &id, Happening::Arrived, Some(peer));
            }
            (.., body) => body,
        };
        let stage = match (verdict, &body) {
            (Verdict::Want, Coming::On(key)) if topic.may_take(size, now) => {
                Stage::Arriving { peer, key: *key }
            }
            (Verdict::Want, _) => Stage::Starved,
            (Verdict::Later, _) => Stage::Later,
            (Verdict::Discard, _) if before == Some(Stage::Later) => Stage::Later,
            (Verdict::Discard, _) => Stage::Discarded,
        };
        if verdict == Verdict::Want && before == Some(Stage::Later) {
            topic.admission.forget(&id);
        }
        // What others said of its size still counts.
        let entry = match before.and_then(|_| topic.entry(&id)) {
            Some(known) => {
                let since = topic.passed(known, stage, now);
                Entry { attribute: fresh.attribute, since, ..known.clone().at(stage) }
            }
            None => fresh.at(stage),
        };
        topic.enter(id, entry);
        topic.promise(&id, now);
        if let Some(judged) = judged(stage, before) {
            self.journal.note(now, topic.id(), &id, judged, Some(peer));
        }
        match (stage, body) {
            (Stage::Starved, Coming::Here(body)) => self.arrived(index, peer, body, now, fx),
            (Stage::Starved, Coming::OnRequest) => {
                topic.starve(&id, now);
                if topic.fits(&id) {
                    self.feed(index, now);
                }
            }
            // Others have named it before.
            (Stage::Arriving { .. }, _) if topic.view.advertisers(&id).nth(1).is_some() => {
                self.doubt(index, &id, now);
            }
            (Stage::Arriving { .. }, _) => (),
            (_, Coming::Here(_)) => self.counters.bodies_unneeded += 1,
            (_, Coming::On(key)) => {
                if stage == Stage::Starved {
                    topic.starve(&id, now);
                }
                self.stop_push(peer, key, fx);
            }
            (_, Coming::OnRequest) => (),
        }
    }

    /// Starts to fetch starved artifacts, as many as have room.
    pub(super) fn feed(&mut self, index: usize, now: Instant) {
        while self.topics.get(index).is_some_and(Topic::starves) {
            let fed = self.next_fed(index, now);
            let Some(topic) = self.topics.get_mut(index) else { return };
            let Some(id) = fed else {
                let Some(late) = topic.yield_one(now) else { return };
                if let Stage::Arriving { peer, .. } = late {
                    self.blame(peer, Fault::Silence, now);
                }
                continue;
            };
            topic.advance(&id, Stage::Fetching, now);
            topic.promise(&id, now);
            // A relay's advert may overtake the maker's push.
            let pushed = topic.entry(&id).is_some_and(|entry| {
                entry.relayed
                    && (entry.size < topic.config().push_threshold || topic.config().class == Class::Critical)
            });
            let not_before = pushed.then(|| now + self.config.relay_grace);
            self.want(index, &id, not_before, now);
        }
    }

    pub(super) fn want(&mut self, index: usize, id: &ArtifactId, not_before: Option<Instant>, now: Instant) {
        let Some(topic) = self.topics.get_mut(index) else { return };
        self.fetch.handle_wanted(topic.id(), *id, topic.config().class, not_before, now);
        for (peer, size) in topic.view.claims(id) {
            self.fetch.handle_advertiser(topic.id(), *id, peer, size);
        }
    }

    /// A wanted body is here: it is kept, or its name alone when there is no room.
    pub(super) fn arrived(
        &mut self,
        index: usize,
        peer: PeerIndex,
        body: Verified,
        now: Instant,
        fx: &mut Effects,
    ) {
        let (id, size) = (body.id(), body.bytes().len() as u32);
        self.stop_pushes(index, &id, fx);
        let Some(topic) = self.topics.get_mut(index) else { return };
        if topic.stage(&id) == Some(Stage::Fetching) {
            self.fetch.handle_cancel(topic.id(), id, &mut self.fetch_effects);
        }
        let attribute = topic.entry(&id).map_or(Attribute::EMPTY, |entry| entry.attribute.clone());
        let fits = topic.take_room(&id, size, now);
        if fits && topic.pool.insert_received(id, body.into_bytes(), attribute, peer).is_ok() {
            topic.advance(&id, Stage::Ready, now);
            self.note_at(now, index, &id, Happening::Arrived, Some(peer));
        } else {
            topic.prove(&id, size);
            topic.starve(&id, now);
            topic.counters.bodies_dropped += 1;
            self.counters.bodies_dropped += 1;
            self.note_at(now, index, &id, Happening::Dropped, Some(peer));
        }
        self.feed(index, now);
    }

    /// The last advertiser of an artifact is gone.
    fn withdrawn(&mut self, index: usize, id: ArtifactId, now: Instant, fx: &mut Effects) {
        let Some(topic) = self.topics.get_mut(index) else { return };
        match topic.stage(&id) {
            None => return,
            Some(Stage::Active) => {
                if topic.slots.get(&id).is_some_and(|(_, active)| active.origin == Origin::Relay) {
                    topic.tell_orphaned(id);
                }
                return;
            }
            Some(Stage::Fetching) => self.fetch.handle_cancel(topic.id(), id, &mut self.fetch_effects),
            Some(Stage::Later) => topic.admission.forget(&id),
            Some(Stage::Delivered) => {
                topic.pool.remove(&id);
                topic.tell_withdrawn(id);
            }
            Some(Stage::Ready) => drop(topic.pool.remove(&id)),
            Some(Stage::Arriving { .. } | Stage::Starved | Stage::Discarded | Stage::Released) => (),
        }
        self.stop_pushes(index, &id, fx);
        if let Some(topic) = self.topics.get_mut(index) {
            topic.leave(&id);
        }
        self.note_at(now, index, &id, Happening::Withdrawn, None);
        self.feed(index, now);
    }

    fn request(&mut self, peer: PeerIndex, key: StreamKey, request: FetchRequest) {
        let topic = self.index_of(request.topic).and_then(|index| self.topics.get(index));
        let class = topic.map_or(Class::Bulk, |topic| topic.config().class);
        if let Some(link) = self.links.get_mut(peer.index()) {
            link.replies[class].push_back((key, request.topic, request.id));
        }
    }

    fn reply(
        &mut self,
        peer: PeerIndex,
        key: StreamKey,
        reply: Reply<Verified>,
        now: Instant,
        fx: &mut Effects,
    ) {
        let asked = self.requests.remove(&key);
        let outcome = match (&reply, asked) {
            (Reply::Found(body), Some((.., id))) if body.id() == id => Outcome::Found,
            (Reply::Found(_), _) => Outcome::WrongBytes,
            (Reply::NotFound, _) => Outcome::NotFound,
            (Reply::Busy, _) => Outcome::Busy,
            (Reply::Broken, _) => Outcome::Broken,
        };
        if let (Outcome::NotFound | Outcome::Broken, Some(_)) = (outcome, asked) {
            self.blame(peer, Fault::Unserved, now);
        }
        self.fetch.handle_reply(peer, key, outcome, now, &mut self.fetch_effects);
        let (Outcome::Found, Reply::Found(body), Some((_, topic, id))) = (outcome, reply, asked) else {
            return;
        };
        let Some(index) = self.index_of(topic) else { return };
        self.count(index, |topic| topic.bodies_received += 1);
        self.counters.bodies_received += 1;
        self.counters.body_bytes_received += body.bytes().len() as u64;
        match self.stage(index, &id) {
            Some(Stage::Fetching) => self.arrived(index, peer, body, now, fx),
            _ => self.counters.bodies_unneeded += 1,
        }
    }

    pub(super) fn broadcast(
        &mut self,
        index: usize,
        body: Verified,
        attribute: Attribute,
        now: Instant,
        fx: &mut Effects,
    ) {
        let (id, size) = (body.id(), body.bytes().len() as u32);
        let Some(topic) = self.topics.get_mut(index) else { return };
        let refused = Effect::Freed { topic: topic.id(), bytes: size.into() };
        let before = topic.stage(&id);
        match before {
            Some(Stage::Active) => return fx.push(refused),
            Some(Stage::Fetching) => self.fetch.handle_cancel(topic.id(), id, &mut self.fetch_effects),
            Some(Stage::Later) => topic.admission.forget(&id),
            _ => (),
        }
        self.stop_pushes(index, &id, fx);
        let Some(topic) = self.topics.get_mut(index) else { return };
        if before.is_some() {
            topic.pool.remove(&id);
        }
        let active = Active { id, size, attribute: attribute.clone(), origin: Origin::Own, since: now };
        if topic.pool.insert_own(id, body.into_bytes(), attribute.clone()).is_err()
            || topic.slots.handle_broadcast(active).is_err()
        {
            // Reservations make this impossible as long as the handle counts what the tables count.
            debug_assert!(false, "a reserved broadcast found no room");
            topic.pool.remove(&id);
            return fx.push(refused);
        }
        topic.enter(id, Entry { proven: true, ..Entry::new(Stage::Active, size, attribute, false, now) });
        topic.counters.broadcasts += 1;
        self.counters.broadcasts += 1;
        self.note_at(now, index, &id, Happening::Broadcast, None);
        self.feed(index, now);
    }

    pub(super) fn abort(&mut self, index: usize, id: &ArtifactId, now: Instant, fx: &mut Effects) {
        if self.stage(index, id) != Some(Stage::Active) {
            return self.release(index, id, now);
        }
        let Some(topic) = self.topics.get_mut(index) else { return };
        let bytes = topic.end(id);
        fx.push(Effect::Freed { topic: topic.id(), bytes });
        if topic.view.is_advertised(id) {
            topic.advance(id, Stage::Released, now);
        } else {
            topic.leave(id);
        }
        topic.counters.aborts += 1;
        self.counters.aborts += 1;
        self.note_at(now, index, id, Happening::Aborted, None);
        let carried = if self.carried.is_empty() { None } else { self.carried.remove(id) };
        for (peer, key) in carried.into_iter().flatten() {
            if let Some(link) = self.links.get_mut(peer.index()) {
                link.carrying.remove(&key);
            }
            self.count(index, |topic| topic.resets_sent += 1);
            self.counters.resets_sent += 1;
            fx.push(Effect::Reset { peer, key });
        }
    }

    pub(super) fn validate(&mut self, index: usize, id: &ArtifactId, now: Instant, fx: &mut Effects) {
        let Some(topic) = self.topics.get_mut(index) else { return };
        let freed = Effect::Freed { topic: topic.id(), bytes: 0 };
        let (Some(Stage::Delivered), Some(entry)) = (topic.stage(id), topic.entry(id).cloned()) else {
            return fx.push(freed);
        };
        let Some(size) = topic.relay(id) else {
            self.counters.relays_refused += 1;
            fx.push(freed);
            return self.release(index, id, now);
        };
        let (attribute, origin) = (entry.attribute, Origin::Relay);
        if topic.slots.handle_broadcast(Active { id: *id, size, attribute, origin, since: now }).is_err() {
            debug_assert!(false, "a reserved relay found no slot");
            fx.push(freed);
            return self.release(index, id, now);
        }
        topic.advance(id, Stage::Active, now);
        topic.counters.relays += 1;
        self.counters.relays += 1;
        self.note_at(now, index, id, Happening::Relayed, None);
        self.feed(index, now);
    }

    pub(super) fn release(&mut self, index: usize, id: &ArtifactId, now: Instant) {
        let Some(topic) = self.topics.get_mut(index) else { return };
        if topic.release(id) {
            self.note_at(now, index, id, Happening::Released, None);
            self.feed(index, now);
        }
    }
}

/// What of a verdict is worth a note: that something is wanted at first sight is not.
fn judged(stage: Stage, before: Option<Stage>) -> Option<Happening> {
    match (stage, before) {
        (Stage::Later, _) => Some(Happening::Later),
        (Stage::Discarded, _) => Some(Happening::Discarded),
        (_, Some(_)) => Some(Happening::Wanted),
        (_, None) => None,
    }
}
