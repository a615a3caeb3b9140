//! Where one artifact is and what happened to it, for whoever asks.

use std::collections::BTreeSet;

use crate::metrics::{Happening, Stage};
use crate::types::{ArtifactId, Instant, NodeId, PeerIndex, Slot, TopicId};

use super::Engine;
use super::census::ArtifactState;

/// What an engine knows of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Where it is; `None`: nowhere, or not yet.
    pub state: Option<ArtifactState>,
    /// Since when; a body that is here counts from when it came, whatever was done with it since.
    pub since: Option<Instant>,
    /// Bytes of its body, as far as it is known.
    pub size: Option<u32>,
    /// Its slot, if it is active here.
    pub slot: Option<Slot>,
    /// Every other member, by index.
    pub peers: Vec<TracedPeer>,
    /// What happened, the oldest first, as far back as the journal goes.
    pub events: Vec<(Instant, Happening, Option<NodeId>)>,
    /// What happened before is forgotten.
    pub forgotten_before: Option<Instant>,
}

/// How things stand between an artifact and a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TracedPeer {
    /// Which peer.
    pub peer: NodeId,
    /// Whether it is connected.
    pub connected: bool,
    /// It was told of the artifact on this connection, or has said that it holds it.
    pub told: bool,
    /// Its body is being sent to it, on a stream of its own.
    pub sending: bool,
    /// It has acknowledged that body whole, as far back as the journal goes.
    pub acknowledged: bool,
    /// It refuses the artifact, as it is active here now.
    pub refused: bool,
    /// It advertises the artifact itself.
    pub advertises: bool,
}

impl Engine {
    /// Where an artifact is, and what happened to it.
    pub fn trace(&self, topic: TopicId, id: &ArtifactId) -> Trace {
        let events: Vec<_> = self.journal.of(topic, id).collect();
        let own = self.topic(topic);
        let slot = own.and_then(|topic| topic.slots.get(id)).map(|(slot, _)| slot);
        let entry = own.and_then(|topic| topic.entry(id));
        let acknowledged: BTreeSet<PeerIndex> = events
            .iter()
            .filter(|event| event.1 == Happening::Acknowledged)
            .filter_map(|event| event.2)
            .collect();
        let traced = |index: usize| {
            let peer = PeerIndex(index as u16);
            let in_slot = |holds: fn(&crate::proto::Slots, PeerIndex, Slot) -> bool| {
                own.zip(slot).is_some_and(|(topic, slot)| holds(&topic.slots, peer, slot))
            };
            let link = self.links.get(index)?;
            Some(TracedPeer {
                peer: *self.config.members.get(index)?,
                connected: link.connection.is_some(),
                told: in_slot(|slots, peer, slot| slots.is_told(peer, slot)),
                sending: self.carried.get(id).is_some_and(|to| to.iter().any(|(to, _)| *to == peer)),
                acknowledged: acknowledged.contains(&peer),
                refused: in_slot(|slots, peer, slot| slots.is_refused(peer, slot)),
                advertises: self.is_named_by(topic, id, peer),
            })
        };
        Trace {
            state: self.state_of(topic, id),
            since: entry.map(|entry| entry.since),
            size: entry.map(|entry| entry.size),
            slot,
            peers: (0..self.links.len()).filter_map(traced).collect(),
            events: events.iter().map(|(at, what, peer)| (*at, *what, self.member(*peer))).collect(),
            forgotten_before: self.journal.forgets_before(),
        }
    }

    /// Something of a topic was in a stage since `since`, and is not any more.
    pub(super) fn record(&self, index: usize, stage: Stage, since: Instant, now: Instant) {
        if let Some(topic) = self.topics.get(index) {
            topic.stages.record(stage, since, now);
        }
    }

    fn member(&self, peer: Option<PeerIndex>) -> Option<NodeId> {
        self.config.members.get(peer?.index()).copied()
    }

    /// Notes what happened to an artifact of the topic at this place.
    pub(super) fn note_at(
        &mut self,
        now: Instant,
        index: usize,
        id: &ArtifactId,
        what: Happening,
        peer: Option<PeerIndex>,
    ) {
        if let Some(topic) = self.topics.get(index).map(super::Topic::id) {
            self.journal.note(now, topic, id, what, peer);
        }
    }
}
