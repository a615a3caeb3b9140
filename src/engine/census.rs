//! What an engine holds at this moment, for whoever watches over its promises: tests, the simulator, an operator.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::metrics::{Stages, TopicCounters, TopicGauges};
use crate::proto::{Active, Asked};
use crate::types::{ArtifactId, PeerIndex, PerClass, Slot, TopicId, Version};

use super::topic::{Stage, Topic};
use super::{Engine, Link};

/// Where an artifact stands, as seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ArtifactState {
    /// Its body is on its way, or waits for room.
    Wanted,
    /// The filter wants it later.
    Later,
    /// The filter does not want it.
    Discarded,
    /// Its body is here; the replica has not been told.
    Ready,
    /// The replica has it.
    Delivered,
    /// The replica is done with it.
    Released,
    /// Broadcast or relayed from here.
    Active,
}

impl fmt::Display for ArtifactState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ArtifactState::Wanted => "wanted",
            ArtifactState::Later => "later",
            ArtifactState::Discarded => "discarded",
            ArtifactState::Ready => "ready",
            ArtifactState::Delivered => "delivered",
            ArtifactState::Released => "released",
            ArtifactState::Active => "active",
        })
    }
}

/// How many things an engine holds. After everything was aborted, released and settled, all are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Census {
    /// Artifacts of which something is known.
    pub artifacts: usize,
    /// Artifacts that some peer names.
    pub named: usize,
    /// Events that wait for the replica, and traces of withdrawn ones.
    pub tellings: usize,
    /// Adverts that wait for the filter to change.
    pub later: usize,
    /// Bodies being fetched.
    pub fetches: usize,
    /// Requests on their way.
    pub requests: usize,
    /// Requests of peers that wait for an answer.
    pub replies: usize,
    /// Bodies being sent on streams of their own.
    pub carried: usize,
    /// Bodies being received on streams of their own.
    pub arriving: usize,
    /// Bodies that are known by the streams which carry them, out and in.
    pub streamed: usize,
    /// Frames that precede everything else.
    pub control: usize,
    /// Slots of which some connected peer must still hear.
    pub backlog: usize,
    /// Bytes of bodies that peers were asked for.
    pub fetch_bytes: u64,
    /// Bytes set aside for bodies that are on their way.
    pub reserved_bytes: u64,
    /// Bytes of bodies: active, and received.
    pub body_bytes: u64,
    /// Of those, bytes of bodies that were received and not validated.
    pub received_bytes: u64,
}

impl Engine {
    /// Counts what is held.
    pub fn census(&self) -> Census {
        let mut census = Census {
            requests: self.requests.len(),
            fetches: self.fetch.len(),
            fetch_bytes: self.fetch.asked_bytes(),
            streamed: self.carried.len() + self.arriving.len(),
            ..Census::default()
        };
        self.topics.iter().for_each(|topic| topic.count(self.links.len(), &mut census));
        self.links.iter().for_each(|link| link.count(&mut census));
        census
    }

    /// Counts what is held for one topic alone: artifacts and their bodies.
    pub fn census_of_topic(&self, topic: TopicId) -> Census {
        let mut census = Census::default();
        self.topic(topic).into_iter().for_each(|topic| topic.count(self.links.len(), &mut census));
        census
    }

    /// Counts what is held for one peer alone: streams and words.
    pub fn census_of_link(&self, peer: PeerIndex) -> Census {
        let mut census = Census::default();
        self.links.get(peer.index()).into_iter().for_each(|link| link.count(&mut census));
        census
    }

    /// Requests on their way to `peer` and the bytes that they announce, by class.
    pub fn asked_of(&self, peer: PeerIndex) -> PerClass<Asked> {
        self.fetch.asked_of(peer)
    }

    /// By peer: whether it is connected, and of how many slots of a topic's table it must still hear. Of one that is away, or has
    /// not opened the topic, that is every active artifact.
    pub fn lags(&self, topic: TopicId) -> impl Iterator<Item = (bool, usize)> {
        let topic = self.topic(topic);
        self.links.iter().enumerate().map(move |(peer, link)| {
            let backlog = topic.map_or(0, |topic| {
                topic.slots.backlog_of(PeerIndex(peer as u16)).unwrap_or(topic.slots.len())
            });
            (link.connection.is_some(), backlog)
        })
    }

    /// What was counted of a topic, and what it holds; `backlog`: the sum over connected peers of [`Engine::lags`].
    pub fn topic_figures(&self, topic: TopicId, backlog: usize) -> (TopicCounters, TopicGauges) {
        self.topic(topic).map(|topic| (topic.counters, topic.gauges(backlog))).unwrap_or_default()
    }

    /// How long a topic's artifacts wait.
    pub fn stages(&self, topic: TopicId) -> Option<&Arc<Stages>> {
        self.topic(topic).map(|topic| &topic.stages)
    }

    /// Bodies being fetched.
    pub fn fetches(&self) -> usize {
        self.fetch.len()
    }

    /// Where an artifact stands; `None` when nothing is known of it.
    pub fn state_of(&self, topic: TopicId, id: &ArtifactId) -> Option<ArtifactState> {
        Some(match self.topic(topic)?.stage(id)? {
            Stage::Fetching | Stage::Arriving { .. } | Stage::Starved => ArtifactState::Wanted,
            Stage::Later => ArtifactState::Later,
            Stage::Discarded => ArtifactState::Discarded,
            Stage::Ready => ArtifactState::Ready,
            Stage::Delivered => ArtifactState::Delivered,
            Stage::Released => ArtifactState::Released,
            Stage::Active => ArtifactState::Active,
        })
    }

    /// How often an artifact was forgotten, since the start: one that comes again after that is new.
    pub fn forgotten(&self) -> u64 {
        self.topics.iter().map(Topic::forgotten).sum()
    }

    /// What is broadcast or relayed from here.
    pub fn active(&self, topic: TopicId) -> BTreeSet<ArtifactId> {
        self.topic(topic)
            .map(|topic| topic.slots.iter().map(|(_, active)| active.id).collect())
            .unwrap_or_default()
    }

    /// What `peer` names in its slots, as far as it is known here.
    pub fn named_by(&self, topic: TopicId, peer: PeerIndex) -> BTreeSet<ArtifactId> {
        self.topic(topic).map(|topic| topic.view.named_by(peer).collect()).unwrap_or_default()
    }

    /// Whether any peer names an artifact.
    pub fn is_named(&self, topic: TopicId, id: &ArtifactId) -> bool {
        self.topic(topic).is_some_and(|topic| topic.view.is_advertised(id))
    }

    /// Whether `peer` names an artifact, as far as it is known here.
    pub fn is_named_by(&self, topic: TopicId, id: &ArtifactId, peer: PeerIndex) -> bool {
        self.topic(topic).is_some_and(|topic| topic.view.advertisers(id).any(|one| one == peer))
    }

    /// What is active in a slot of ours, and since which version of the table.
    pub fn slot(&self, topic: TopicId, slot: Slot) -> Option<(Version, &Active)> {
        self.topic(topic)?.slots.get_slot(slot)
    }

    /// Which slot of ours an active artifact is in, and since which version of the table.
    pub fn place_of(&self, topic: TopicId, id: &ArtifactId) -> Option<(Slot, Version)> {
        let slots = &self.topic(topic)?.slots;
        let (slot, _) = slots.get(id)?;
        Some((slot, slots.get_slot(slot)?.0))
    }

    pub(super) fn topic(&self, topic: TopicId) -> Option<&Topic> {
        self.topics.get(self.index_of(topic)?)
    }
}

impl Topic {
    fn count(&self, peers: usize, census: &mut Census) {
        let (active, received) = self.pool_bytes();
        census.artifacts += self.artifacts();
        census.named += self.view.artifacts();
        census.tellings += self.tellings();
        census.later += self.admission.len();
        census.reserved_bytes += self.reserved();
        census.body_bytes += active + received;
        census.received_bytes += received;
        let backlog = |peer: usize| self.slots.backlog(PeerIndex(peer as u16));
        census.backlog += (0..peers).map(backlog).sum::<usize>();
    }
}

impl Link {
    fn count(&self, census: &mut Census) {
        let Link { control, refusals, replies, carrying, arriving, .. } = self;
        census.control += control.len() + refusals.len();
        census.replies += replies.0.iter().map(|queue| queue.len()).sum::<usize>();
        census.carried += carrying.len();
        census.arriving += arriving.len();
    }
}
