//! What a peer is told next, built when its link has room: urgent before bulk, words before bodies.

use crate::metrics::{EngineCounters, Happening, Stage, TopicCounters};
use crate::proto::{Origin, Told};
use crate::types::{ArtifactId, Class, Classes, Instant, PeerIndex, StreamKey, TopicId};
use crate::wire::{
    BatchBuilder, Change, FRAME_HEADER, FetchRequest, Frame, MAX_FRAME, Outgoing, PushHead, Reply, Update,
};

use super::{Engine, Link};

/// How a topic's updates for one batch ended.
enum Packed {
    /// All are in.
    All,
    /// The batch is full.
    Stopped,
    /// The next one is a body for a stream of its own.
    Alone(Outgoing),
}

impl Engine {
    /// Whether [`Engine::poll_outgoing`] may have something for the peer. Cheap.
    pub fn has_outgoing(&self, peer: PeerIndex) -> bool {
        let Some(link) = self.links.get(peer.index()) else { return false };
        link.connection.is_some()
            && (!link.control.is_empty()
                || !link.refusals.is_empty()
                || link.replies.0.iter().any(|queue| !queue.is_empty())
                || self.fetch.has_requests(peer)
                || self.topics.iter().any(|topic| topic.slots.has_updates(peer)))
    }

    /// The peer's link takes nothing now: to be said instead of [`Engine::poll_outgoing`], so that nothing is left to it.
    pub fn handle_full(&mut self, peer: PeerIndex) {
        self.fetch.handle_full(peer);
    }

    /// The next thing to send to a peer whose link has room for some classes, the most urgent first. Words (adverts, clears,
    /// requests) of every class may go where `High` may: they are small, and bodies wait for them.
    pub fn poll_outgoing(&mut self, peer: PeerIndex, room: Classes, now: Instant) -> Option<Outgoing> {
        self.links.get(peer.index())?.connection?;
        if room.has(Class::Critical)
            && let Some(control) = self.control(peer)
        {
            return Some(control);
        }
        for class in Class::ALL {
            let bodies = room.has(class);
            if !bodies && !room.has(Class::High) {
                continue;
            }
            if let Some(request) = self.fetch.next_request(peer, class, now) {
                let limit = request.size;
                self.requests.insert(request.key, (peer, request.topic, request.id));
                self.counters.requests_sent += 1;
                if let Some(index) = self.index_of(request.topic) {
                    self.count(index, |topic| topic.requests_sent += 1);
                }
                self.journal.note(now, request.topic, &request.id, Happening::Requested, Some(peer));
                let (key, class) = (request.key, request.class);
                let request = FetchRequest { topic: request.topic, id: request.id };
                return Some(Outgoing::Fetch { class, key, request, limit });
            }
            if let Some(updates) = self.updates(peer, class, bodies, now) {
                return Some(updates);
            }
            if bodies && let Some(reply) = self.next_reply(peer, class, now) {
                return Some(reply);
            }
        }
        None
    }

    fn control(&mut self, peer: PeerIndex) -> Option<Outgoing> {
        let link = self.links.get_mut(peer.index())?;
        if link.control.is_empty() && link.refusals.is_empty() {
            return None;
        }
        let mut batch = BatchBuilder::new(256);
        while let Some(frame) = link.control.front() {
            if !batch.fits(frame.encoded_len()) {
                break;
            }
            batch.push(frame);
            link.control.pop_front();
        }
        while link.control.is_empty()
            && let Some(refused) = link.refusals.front().copied().map(Frame::Refused)
            && batch.fits(refused.encoded_len())
        {
            batch.push(&refused);
            link.refusals.pop_front();
        }
        (!batch.is_empty()).then(|| Outgoing::Batch { class: Class::Critical, bytes: batch.finish() })
    }

    /// Updates of one class, as many as fit a batch.
    fn updates(&mut self, peer: PeerIndex, class: Class, bodies: bool, now: Instant) -> Option<Outgoing> {
        let mut batch = std::mem::take(&mut self.batch);
        batch.begin();
        let alone = self.pack_all(peer, class, bodies, now, &mut batch);
        let outgoing = alone.or_else(|| {
            // Words travel at least as `High`.
            let class = if bodies { class } else { class.min(Class::High) };
            (!batch.is_empty()).then(|| Outgoing::Batch { class, bytes: batch.take() })
        });
        self.batch = batch;
        outgoing
    }

    /// Packs the topics of one class; a body that goes alone leaves the batch empty.
    fn pack_all(
        &mut self,
        peer: PeerIndex,
        class: Class,
        bodies: bool,
        now: Instant,
        batch: &mut BatchBuilder,
    ) -> Option<Outgoing> {
        for index in 0..self.topics.len() {
            let Some(topic) = self.topics.get(index) else { break };
            let slots = &topic.slots;
            let has = if bodies { slots.has_updates(peer) } else { slots.has_words(peer) };
            if topic.config().class != class || !has {
                continue;
            }
            match self.pack(index, peer, batch, bodies, now) {
                Packed::All => (),
                Packed::Stopped => break,
                Packed::Alone(outgoing) => return Some(outgoing),
            }
        }
        None
    }

    fn pack(
        &mut self,
        index: usize,
        peer: PeerIndex,
        batch: &mut BatchBuilder,
        bodies: bool,
        now: Instant,
    ) -> Packed {
        let since = self.heard_since(peer);
        let connected = self.links.get(peer.index()).map_or(now, |link| link.since);
        let (Some(topic), Some(since)) = (self.topics.get_mut(index), since) else { return Packed::All };
        let (id, class) = (topic.id(), topic.config().class);
        let (view, slots, pool, counted) = (&topic.view, &mut topic.slots, &topic.pool, &mut topic.counters);
        let (stages, journal) = (&topic.stages, &mut self.journal);
        let mut told = |artifact: &ArtifactId, since: Instant, how: Happening| {
            stages.record(Stage::Table, connected.max(since), now);
            journal.note(now, id, artifact, how, Some(peer));
        };
        let knows = &mut |id: &ArtifactId| view.advertises_since(peer, since, id);
        while let Some(next) =
            if bodies { slots.next_update(peer, knows) } else { slots.next_word(peer, knows) }
        {
            let (slot, version) = (next.slot, next.version);
            let (change, since) = match next.told {
                Told::Clear => (Change::Clear, now),
                Told::Advert(active) => {
                    let (relayed, attribute) = (active.origin == Origin::Relay, active.attribute.clone());
                    (Change::Advert { id: active.id, size: active.size, relayed, attribute }, active.since)
                }
                Told::Push(active) => {
                    let Some(body) = pool.get_validated(&active.id) else {
                        debug_assert!(false, "an active artifact has no body");
                        continue;
                    };
                    let len = Update::push_len(&active.attribute, body.len());
                    if len <= FRAME_HEADER + MAX_FRAME && batch.fits(len) {
                        batch.push_body(id, slot, version, &active.attribute, body);
                        told(&active.id, active.since, Happening::Pushed);
                        counted.pushes_sent += 1;
                        self.counters.pushes_sent += 1;
                        continue;
                    }
                    if len <= FRAME_HEADER + MAX_FRAME || !batch.is_empty() {
                        slots.put_back(peer, slot);
                        return Packed::Stopped;
                    }
                    let (size, attribute, body) = (body.len() as u32, active.attribute.clone(), body.clone());
                    let head = PushHead { topic: id, slot, version, id: active.id, size, attribute };
                    told(&active.id, active.since, Happening::Pushed);
                    counted.pushes_sent += 1;
                    return Packed::Alone(self.push_alone(peer, class, &head, body));
                }
            };
            if !batch.fits(Update::encoded_len(&change)) {
                slots.put_back(peer, slot);
                return Packed::Stopped;
            }
            if let Change::Advert { id, .. } = &change {
                told(id, since, Happening::Advertised);
            }
            count_words(&change, &mut self.counters, counted);
            batch.push(&Frame::Update(Update { topic: id, slot, version, change }));
        }
        Packed::All
    }

    fn push_alone(&mut self, peer: PeerIndex, class: Class, head: &PushHead, body: bytes::Bytes) -> Outgoing {
        // Below the keys of fetches.
        let key = StreamKey(self.next_push);
        self.next_push += 1;
        self.carry(peer, key, head.topic, head.id);
        self.counters.pushes_sent += 1;
        Outgoing::Push { class, key, head: head.encode(), body }
    }

    fn carry(&mut self, peer: PeerIndex, key: StreamKey, topic: TopicId, id: ArtifactId) {
        if let Some(link) = self.links.get_mut(peer.index()) {
            link.carrying.insert(key, (topic, id));
            self.carried.entry(id).or_default().push((peer, key));
        }
    }

    fn next_reply(&mut self, peer: PeerIndex, class: Class, now: Instant) -> Option<Outgoing> {
        let (key, topic, id) =
            self.links.get_mut(peer.index()).and_then(|link: &mut Link| link.replies[class].pop_front())?;
        let of = topic;
        let mut topic = self.index_of(topic).and_then(|index| self.topics.get_mut(index));
        let Some(body) = topic.as_ref().and_then(|topic| topic.pool.get_validated(&id)).cloned() else {
            self.counters.not_found_sent += 1;
            return Some(Outgoing::Reply { class, key, reply: Reply::NotFound });
        };
        topic.iter_mut().for_each(|topic| topic.counters.replies_sent += 1);
        self.counters.replies_sent += 1;
        self.journal.note(now, of, &id, Happening::Answered, Some(peer));
        self.carry(peer, key, of, id);
        Some(Outgoing::Reply { class, key, reply: Reply::Found(body) })
    }
}

/// Counts an update without a body.
fn count_words(change: &Change, engine: &mut EngineCounters, topic: &mut TopicCounters) {
    match change {
        Change::Advert { relayed, .. } => {
            engine.adverts_sent += 1;
            topic.adverts_sent += 1;
            if *relayed {
                engine.relay_adverts_sent += 1;
                engine.relay_advert_bytes_sent += Update::encoded_len(change) as u64;
            }
        }
        Change::Clear => {
            engine.clears_sent += 1;
            topic.clears_sent += 1;
        }
        // It is counted where its body is.
        Change::Push { .. } => (),
    }
}
