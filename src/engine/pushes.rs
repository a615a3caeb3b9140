//! Bodies that peers push on streams of their own.

use std::time::Duration;

use crate::proto::Fault;
use crate::types::{ArtifactId, Instant, PeerIndex, StreamKey, TopicId, Verified};
use crate::wire::{PushHead, Refusal, Refused};

use super::ingress::{Coming, Told};
use super::topic::{Stage, Topic};
use super::{Effect, Effects, Engine};

impl Engine {
    /// Bytes a second of a push for which no other source is sought.
    const PUSHED: u64 = 16 << 20;

    pub(super) fn push_started(
        &mut self,
        peer: PeerIndex,
        key: StreamKey,
        head: PushHead,
        now: Instant,
        fx: &mut Effects,
    ) {
        let index = self.index_of(head.topic);
        let Some(link) = self.links.get_mut(peer.index()) else { return };
        link.arriving.insert(key, (head.topic, head.id));
        self.arriving.entry(head.id).or_default().push((peer, key));
        let told = Told {
            peer,
            id: head.id,
            size: head.size,
            attribute: head.attribute,
            relayed: false,
            body: Coming::On(key),
        };
        let place =
            Refused { topic: head.topic, slot: head.slot, version: head.version, reason: Refusal::SlotLimit };
        let taken = match index {
            Some(index) => self.set(index, place, told, now, fx),
            None => {
                self.counters.updates_unknown_topic += 1;
                false
            }
        };
        if !taken {
            self.stop_push(peer, key, fx);
        }
    }

    pub(super) fn pushed(
        &mut self,
        peer: PeerIndex,
        key: StreamKey,
        head: &PushHead,
        body: Verified,
        now: Instant,
        fx: &mut Effects,
    ) {
        self.take_arriving(peer, key);
        let Some(index) = self.index_of(head.topic) else { return };
        if body.id() != head.id {
            self.counters.bodies_wrong += 1;
            self.blame(peer, Fault::WrongBytes, now);
            return self.push_broken(peer, key, head.topic, head.id, now);
        }
        self.count(index, |topic| topic.bodies_received += 1);
        self.counters.bodies_received += 1;
        self.counters.body_bytes_received += body.bytes().len() as u64;
        match self.stage(index, &head.id) {
            Some(Stage::Fetching | Stage::Arriving { .. } | Stage::Starved) => {
                self.arrived(index, peer, body, now, fx);
            }
            _ => self.counters.bodies_unneeded += 1,
        }
    }

    /// A push ended without its body: the artifact is fetched instead, if need be from the same peer.
    pub(super) fn push_broken(
        &mut self,
        peer: PeerIndex,
        key: StreamKey,
        topic: TopicId,
        id: ArtifactId,
        now: Instant,
    ) {
        let Some(index) = self.index_of(topic) else { return };
        let Some(topic) = self.topics.get_mut(index) else { return };
        match topic.stage(&id) {
            Some(stage) if stage == (Stage::Arriving { peer, key }) => {
                topic.advance(&id, Stage::Fetching, now)
            }
            Some(Stage::Fetching) => (),
            _ => return,
        }
        self.want(index, &id, None, now);
    }

    /// Who pushes a body may be slow on purpose, and others have it, too: those are due soon.
    pub(super) fn doubt(&mut self, index: usize, id: &ArtifactId, now: Instant) {
        let Some(topic) = self.topics.get_mut(index) else { return };
        topic.advance(id, Stage::Fetching, now);
        let size = topic.entry(id).map_or(0, |entry| u64::from(entry.size));
        let push = Duration::from_nanos(size * 1_000_000_000 / Self::PUSHED);
        self.want(index, id, Some(now + self.config.relay_grace + push), now);
    }

    /// A stream is over, or not to be read any more; whether a push was on it.
    pub(super) fn take_arriving(&mut self, peer: PeerIndex, key: StreamKey) -> bool {
        let taken = self.links.get_mut(peer.index()).and_then(|link| link.arriving.remove(&key));
        let Some((_, id)) = taken else { return false };
        self.forget_arriving(&id, peer, key);
        true
    }

    pub(super) fn forget_arriving(&mut self, id: &ArtifactId, peer: PeerIndex, key: StreamKey) {
        if let Some(streams) = self.arriving.get_mut(id) {
            streams.retain(|stream| *stream != (peer, key));
            if streams.is_empty() {
                self.arriving.remove(id);
            }
        }
    }

    pub(super) fn stop_push(&mut self, peer: PeerIndex, key: StreamKey, fx: &mut Effects) {
        if self.take_arriving(peer, key) {
            fx.push(Effect::Reset { peer, key });
        }
    }

    /// A body is here, or nobody wants it any more: whoever pushes it may stop.
    pub(super) fn stop_pushes(&mut self, index: usize, id: &ArtifactId, fx: &mut Effects) {
        if self.arriving.is_empty() {
            return;
        }
        let (Some(streams), Some(topic)) =
            (self.arriving.get(id).cloned(), self.topics.get(index).map(Topic::id))
        else {
            return;
        };
        for (peer, key) in streams {
            let link = self.links.get(peer.index());
            if link.and_then(|link| link.arriving.get(&key)).is_some_and(|(of, _)| *of == topic) {
                self.stop_push(peer, key, fx);
            }
        }
    }
}
