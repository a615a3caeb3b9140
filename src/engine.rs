//! One lane's broadcast engine: tables, pool, filter and fetches composed, without I/O.
//!
//! ```text
//! replica ── Command ──▶ Engine ── poll_outgoing(peer) ──▶ link
//! replica ◀── poll_event ── Engine ◀── handle_link(peer) ── link
//! ```
//!
//! The caller's duties, in this order each turn: hand in what arrived ([`Engine::handle_connected`],
//! [`Engine::handle_link`], [`Engine::handle_command`], [`Engine::handle_timeout`]); carry out the [`Effect`]s; pull
//! [`Engine::poll_outgoing`] for every peer whose link has room, and [`Engine::poll_event`] while the replica's queue has room;
//! come back at [`Engine::poll_timeout`]. Everything to be sent is built when it is pulled, from the tables as they are then, so
//! what is aborted before costs nothing and a stalled peer costs bits.

mod admission;
mod census;
mod egress;
mod ingress;
mod peer;
mod pushes;
mod standing;
mod topic;
mod trace;
mod turns;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::config::{Limits, TopicConfig};
use crate::metrics::{EngineCounters, Happening, Journal, Stage, TopicCounters};
use crate::proto::{Fault, Fetch, FetchEffect, FetchLimits, Score, ViewEffect};
use crate::types::{
    ArtifactId, Attribute, ConnectionNumber, IdMap, Instant, KeyedState, NodeId, PeerIndex, PerClass, Rng,
    StreamKey, TopicId, Verified,
};
use crate::wire::{BatchBuilder, CloseCode, Frame, Hello, Open, Refusal, Refused, Resync};

pub use admission::Judged;
pub use census::{ArtifactState, Census};
pub use trace::{Trace, TracedPeer};

use peer::Boot;
use topic::Topic;

/// What an engine must know of its lane.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// What it says to every peer first.
    pub hello: Hello,
    /// Every member's id, by peer index.
    pub members: Arc<[NodeId]>,
    /// Its bounds.
    pub limits: Limits,
    /// How long a relayed advert waits for the maker's push.
    pub relay_grace: Duration,
    /// All its randomness.
    pub seed: u64,
}

/// What the replica wants.
#[derive(Debug)]
pub enum Command {
    /// Make an artifact active. The caller has reserved a slot and the bytes; [`Effect::Freed`] gives them back.
    Broadcast {
        /// The topic.
        topic: TopicId,
        /// The artifact.
        body: Verified,
        /// What filters may look at.
        attribute: Attribute,
        /// When the replica asked for it.
        since: Instant,
    },
    /// End an active artifact.
    Abort {
        /// The topic.
        topic: TopicId,
        /// The artifact.
        id: ArtifactId,
    },
    /// Relay a delivered artifact. The caller has reserved a slot; [`Effect::Freed`] gives it back.
    Validate {
        /// The topic.
        topic: TopicId,
        /// The artifact.
        id: ArtifactId,
    },
    /// A delivered artifact is not needed any more and will not be relayed.
    Release {
        /// The topic.
        topic: TopicId,
        /// The artifact.
        id: ArtifactId,
    },
    /// Ask the filter again about everything it wanted later.
    FilterChanged {
        /// The topic.
        topic: TopicId,
    },
    /// Another filter judges from now on: ask it about everything that is wanted later. Verdicts of the one before that are on
    /// their way do not count.
    FilterReplaced {
        /// The topic.
        topic: TopicId,
        /// It is asked by [`Engine::poll_question`], not where adverts are heard.
        elsewhere: bool,
    },
    /// What a filter says that is asked elsewhere.
    Judged {
        /// The topic.
        topic: TopicId,
        /// The answer.
        judged: Judged,
    },
}

/// An artifact as the replica receives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Its topic.
    pub topic: TopicId,
    /// The hash of its bytes.
    pub id: ArtifactId,
    /// What its sender said of it.
    pub attribute: Attribute,
    /// Its bytes.
    pub bytes: Bytes,
}

/// What a topic's consumer is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An artifact arrived. Its memory counts against the topic's `pending_bytes` until it is validated, released or withdrawn.
    Delivered {
        /// The artifact.
        artifact: Artifact,
        /// Who sent its bytes.
        from: NodeId,
    },
    /// Nobody advertises this delivered artifact any more.
    Withdrawn {
        /// Its id.
        id: ArtifactId,
    },
    /// A member does not take an artifact that is active here, for a limit of its own. Told once per member and artifact as
    /// long as it stays active; the member may still get it from another. Aborting others makes room below a slot limit only
    /// for artifacts that are broadcast afterwards.
    Refused {
        /// The artifact.
        id: ArtifactId,
        /// Who refuses it.
        by: NodeId,
        /// Which limit.
        reason: Refusal,
    },
}

/// What the caller must carry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Abandon a stream.
    Reset {
        /// At which peer.
        peer: PeerIndex,
        /// Which stream.
        key: StreamKey,
    },
    /// Close the peer's connection.
    Disconnect {
        /// Which peer.
        peer: PeerIndex,
        /// Why.
        code: CloseCode,
    },
    /// A slot of a topic is free again, and so many bytes.
    Freed {
        /// The topic.
        topic: TopicId,
        /// Bytes of active bodies that went.
        bytes: u64,
    },
}

/// Effects in the order in which they arose.
pub type Effects = Vec<Effect>;

/// One peer's link as the engine sees it.
#[derive(Debug)]
struct Link {
    connection: Option<ConnectionNumber>,
    /// Since when it stands.
    since: Instant,
    /// Frames that precede everything else. At most one per topic and kind, and what names the slots that are held of the peer,
    /// about two bytes for each.
    control: VecDeque<Frame>,
    /// Updates of the peer that were not taken, and that it must hear of; at most [`Limits::REFUSALS`].
    refusals: VecDeque<Refused>,
    /// The peer has said which start of it speaks.
    greeted: bool,
    /// What the peer listens to.
    opened: BTreeMap<TopicId, Open>,
    /// Requests that wait for their turn; as many as the peer may have streams open.
    replies: PerClass<VecDeque<(StreamKey, TopicId, ArtifactId)>>,
    /// Streams of ours that carry a body now.
    carrying: BTreeMap<StreamKey, (TopicId, ArtifactId)>,
    /// Streams on which the peer pushes a body now.
    arriving: BTreeMap<StreamKey, (TopicId, ArtifactId)>,
}

impl Link {
    fn new() -> Link {
        Link {
            connection: None,
            since: Instant::ZERO,
            control: VecDeque::new(),
            refusals: VecDeque::new(),
            greeted: false,
            opened: BTreeMap::new(),
            replies: PerClass::from_fn(|_| VecDeque::new()),
            carrying: BTreeMap::new(),
            arriving: BTreeMap::new(),
        }
    }
}

/// See the module.
pub struct Engine {
    config: EngineConfig,
    /// By topic id.
    topics: Vec<Topic>,
    links: Vec<Link>,
    /// By peer; outlives its connections.
    boots: Vec<Option<Boot>>,
    fetch: Fetch,
    /// Whom each request of ours went to, and for what.
    requests: BTreeMap<StreamKey, (PeerIndex, TopicId, ArtifactId)>,
    /// Streams that carry a body to a peer now, by artifact: what an abort resets.
    carried: IdMap<Vec<(PeerIndex, StreamKey)>>,
    /// Streams on which peers push a body now, by artifact.
    arriving: IdMap<Vec<(PeerIndex, StreamKey)>>,
    fetch_effects: Vec<FetchEffect>,
    /// Kept for its capacity.
    heard: Vec<ViewEffect>,
    /// Where batches are built.
    batch: BatchBuilder,
    score: Score,
    /// Peers in poor standing, and when to look again.
    poor: BTreeMap<PeerIndex, Instant>,
    next_push: u64,
    rng: Rng,
    counters: EngineCounters,
    journal: Journal,
}

const _: () = assert!(size_of::<Refused>() as u64 <= Limits::REFUSED_BYTES);

impl Engine {
    /// Topics that a peer may open, and so frames that it may make us keep.
    const MAX_TOPICS: usize = 256;

    /// An engine without topics and connections.
    pub fn new(config: EngineConfig) -> Engine {
        let mut rng = Rng::new(config.seed);
        let peers = config.members.len();
        let limits = FetchLimits {
            peers,
            per_peer: config.limits.fetch_per_peer,
            per_peer_bytes: config.limits.fetch_peer_bytes,
            lane_bytes: config.limits.fetch_lane_bytes,
            hedge_min: Duration::from_millis(20),
            hedge_max: Duration::from_secs(2),
            explore_one_in: 10,
        };
        Engine {
            topics: Vec::new(),
            links: (0..peers).map(|_| Link::new()).collect(),
            boots: vec![None; peers],
            fetch: Fetch::new(limits, Rng::new(rng.next_u64())),
            requests: BTreeMap::new(),
            carried: IdMap::with_hasher(KeyedState::new(&mut rng)),
            arriving: IdMap::with_hasher(KeyedState::new(&mut rng)),
            fetch_effects: Vec::new(),
            heard: Vec::new(),
            batch: BatchBuilder::default(),
            score: Score::new(peers),
            poor: BTreeMap::new(),
            next_push: 0,
            rng,
            counters: EngineCounters::default(),
            journal: Journal::default(),
            config,
        }
    }

    /// Starts to take part in a topic. `false`: it is open already, or there are too many.
    pub fn handle_topic(&mut self, config: TopicConfig) -> bool {
        let id = config.id;
        let Err(place) = self.topics.binary_search_by_key(&id, Topic::id) else { return false };
        if self.topics.len() >= Self::MAX_TOPICS {
            return false;
        }
        let open = open_frame(&config, self.config.limits.artifact_bytes);
        let mut topic = Topic::new(config, self.links.len(), &mut self.rng);
        for (index, link) in self.links.iter_mut().enumerate() {
            if link.connection.is_none() {
                continue;
            }
            link.control.push_back(Frame::Open(open));
            if link.opened.contains_key(&id) {
                link.control.push_back(resync_frame(&mut topic, PeerIndex(index as u16)));
            }
        }
        self.topics.insert(place, topic);
        true
    }

    /// A peer's connection stands; it is newer than any before.
    pub fn handle_connected(
        &mut self,
        peer: PeerIndex,
        connection: ConnectionNumber,
        now: Instant,
        fx: &mut Effects,
    ) {
        self.handle_disconnected(peer, now, fx);
        let Some(link) = self.links.get_mut(peer.index()) else { return };
        (link.connection, link.since) = (Some(connection), now);
        self.greet(peer);
        self.fetch.handle_connected(peer);
    }

    /// A peer's connection is gone. What it advertised stays, for it may come back.
    pub fn handle_disconnected(&mut self, peer: PeerIndex, now: Instant, fx: &mut Effects) {
        let Some(link) = self.links.get_mut(peer.index()) else { return };
        if link.connection.is_none() {
            return;
        }
        let Link { carrying, arriving, .. } = std::mem::replace(link, Link::new());
        for (key, (_, id)) in carrying {
            self.forget_carried(&id, peer, key);
        }
        for topic in &mut self.topics {
            topic.slots.handle_disconnected(peer);
        }
        self.fetch.handle_disconnected(peer, now);
        self.requests.retain(|_, (asked, ..)| *asked != peer);
        for (key, (topic, id)) in arriving {
            self.forget_arriving(&id, peer, key);
            self.push_broken(peer, key, topic, id, now);
        }
        self.drain_fetch_effects(now, fx);
    }

    /// Hands in a command of the replica.
    pub fn handle_command(&mut self, command: Command, now: Instant, fx: &mut Effects) {
        match command {
            Command::Broadcast { topic, body, attribute, since } => {
                let bytes = body.bytes().len() as u64;
                match self.index_of(topic) {
                    Some(index) => {
                        self.record(index, Stage::Ingress, since, now);
                        self.broadcast(index, body, attribute, now, fx);
                    }
                    None => fx.push(Effect::Freed { topic, bytes }),
                }
            }
            Command::Abort { topic, id } => {
                if let Some(index) = self.index_of(topic) {
                    self.abort(index, &id, now, fx);
                }
            }
            Command::Validate { topic, id } => match self.index_of(topic) {
                Some(index) => self.validate(index, &id, now, fx),
                None => fx.push(Effect::Freed { topic, bytes: 0 }),
            },
            Command::Release { topic, id } => {
                if let Some(index) = self.index_of(topic) {
                    self.release(index, &id, now);
                }
            }
            Command::FilterChanged { topic } => {
                if let Some(index) = self.index_of(topic) {
                    self.judge_again(index, now);
                }
            }
            Command::FilterReplaced { topic, elsewhere } => {
                if let Some(index) = self.index_of(topic) {
                    self.filter_replaced(index, elsewhere, now);
                }
            }
            Command::Judged { topic, judged } => {
                if let Some(index) = self.index_of(topic) {
                    self.judged(index, &judged, now);
                }
            }
        }
        self.drain_fetch_effects(now, fx);
    }

    /// Hands in time. To be called when [`Engine::poll_timeout`] has passed.
    pub fn handle_timeout(&mut self, now: Instant, fx: &mut Effects) {
        self.heal(now);
        for index in 0..self.topics.len() {
            if self.topics.get(index).and_then(Topic::next_turn).is_some_and(|at| at <= now) {
                self.feed(index, now);
            }
            if self.topics.get(index).and_then(Topic::next_question).is_some_and(|at| at <= now) {
                self.ask_open(index, now);
            }
        }
        self.fetch.handle_timeout(now, &mut self.fetch_effects);
        self.drain_fetch_effects(now, fx);
    }

    /// When to call [`Engine::handle_timeout`], and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let healing = self.next_healing().map(|at| (at, "standing heals"));
        let yielding =
            self.topics.iter().filter_map(Topic::next_turn).min().map(|at| (at, "room goes to another body"));
        let asking =
            self.topics.iter().filter_map(Topic::next_question).min().map(|at| (at, "a filter is asked"));
        self.fetch.poll_timeout().into_iter().chain(healing).chain(yielding).chain(asking).min()
    }

    /// The next event for a topic's consumer. To be called only when its queue has room.
    pub fn poll_event(&mut self, topic: TopicId, now: Instant) -> Option<Event> {
        self.poll_waiting(topic, now).map(|(event, _)| event)
    }

    /// The same; of a delivery, also since when its body is here.
    pub fn poll_waiting(&mut self, topic: TopicId, now: Instant) -> Option<(Event, Option<Instant>)> {
        let index = self.index_of(topic)?;
        let id = topic;
        let (topic, members) = (self.topics.get_mut(index)?, &self.config.members);
        let event = topic.poll_event(|peer| members.get(peer.index()).copied());
        match event.as_ref().map(|(event, _)| event) {
            Some(Event::Delivered { artifact, .. }) => {
                self.counters.delivered += 1;
                self.counters.delivered_bytes += artifact.bytes.len() as u64;
                self.journal.note(now, id, &artifact.id, Happening::Delivered, None);
            }
            Some(Event::Withdrawn { .. }) => self.counters.withdrawn += 1,
            Some(Event::Refused { .. }) | None => (),
        }
        event
    }

    /// Whether [`Engine::poll_event`] may have something.
    pub fn has_events(&self, topic: TopicId) -> bool {
        self.index_of(topic).and_then(|index| self.topics.get(index)).is_some_and(Topic::has_events)
    }

    /// What has been counted.
    pub fn counters(&self) -> &EngineCounters {
        &self.counters
    }

    /// Bytes of a topic's bodies here: active, and received but neither validated nor released.
    pub fn pool_bytes(&self, topic: TopicId) -> (u64, u64) {
        self.index_of(topic).and_then(|index| self.topics.get(index)).map_or((0, 0), Topic::pool_bytes)
    }

    fn index_of(&self, topic: TopicId) -> Option<usize> {
        self.topics.binary_search_by_key(&topic, Topic::id).ok()
    }

    fn count(&mut self, index: usize, count: impl FnOnce(&mut TopicCounters)) {
        if let Some(topic) = self.topics.get_mut(index) {
            count(&mut topic.counters);
        }
    }

    fn forget_carried(&mut self, id: &ArtifactId, peer: PeerIndex, key: StreamKey) {
        if let Some(streams) = self.carried.get_mut(id) {
            streams.retain(|stream| *stream != (peer, key));
            if streams.is_empty() {
                self.carried.remove(id);
            }
        }
    }

    fn drain_fetch_effects(&mut self, now: Instant, fx: &mut Effects) {
        for effect in std::mem::take(&mut self.fetch_effects) {
            match effect {
                FetchEffect::Cancel { peer, key } => {
                    self.requests.remove(&key);
                    fx.push(Effect::Reset { peer, key });
                }
                FetchEffect::Fault { peer, .. } => {
                    self.counters.bodies_wrong += 1;
                    self.blame(peer, Fault::WrongBytes, now);
                }
                FetchEffect::Silent { peer } => self.blame(peer, Fault::Silence, now),
            }
        }
    }
}

fn open_frame(config: &TopicConfig, artifact_bytes: u32) -> Open {
    Open { topic: config.id, slots: config.slots, artifact_bytes }
}

fn resync_frame(topic: &mut Topic, peer: PeerIndex) -> Frame {
    let (version, occupied) = topic.slots.handle_connected(peer);
    Frame::Resync(Resync { topic: topic.id(), version, occupied })
}
