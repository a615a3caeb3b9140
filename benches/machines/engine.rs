//! The engine as a whole, without a transport: what one side gives its link, and what the other makes of it.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use corecast::config::{Granted, Limits, Settings, TopicConfig, Verdict};
use corecast::engine::{Command, Effects, Engine, EngineConfig, Event};
use corecast::types::{
    ArtifactId, Attribute, Classes, ConnectionNumber, HashKind, Instant, NodeId, PeerIndex, RegistryVersion,
    Rng, Slot, TopicId, Verified, Version,
};
use corecast::wire::{BatchReader, Change, Frame, Hello, Incoming, MAX_SLOTS, Open, Outgoing, Reply, Update};

use super::operations::{BATCH, Scale, Work};

/// Bytes of what stays active.
const STAYS: usize = 64;
/// Bytes of what comes and goes.
const PASSES: usize = 1 << 10;

/// One engine and its replica.
struct Node {
    engine: Engine,
    peers: u16,
    now: Instant,
    fx: Effects,
    rng: Rng,
    serial: u64,
}

fn hello(boot: u64) -> Hello {
    Hello { subnet: [0; 32], lanes: 1, lane: 0, registry: RegistryVersion(1), boot }
}

/// One alone has not enough slots for the largest scale.
const TOPICS: u16 = 2;

impl Node {
    fn new(scale: Scale, change: impl Fn(TopicConfig) -> TopicConfig) -> Node {
        let peers = scale.peers;
        let granted = Granted { receive: 8 << 20, send: 8 << 20 };
        let nodes = usize::from(peers) + 1;
        let member = |n: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&(n as u64).to_le_bytes());
            NodeId(id)
        };
        let mut engine = Engine::new(EngineConfig {
            hello: hello(1),
            members: (0..nodes).map(member).collect(),
            limits: Limits::derive(&Settings::default(), nodes, 1, granted),
            relay_grace: Duration::from_millis(50),
            seed: 1,
        });
        for topic in 1..=TOPICS {
            let mut config = TopicConfig::new(TopicId(topic), "bench");
            config.slots = MAX_SLOTS;
            assert!(engine.handle_topic(change(config)));
        }
        let now = Instant::ZERO + Duration::from_secs(1);
        let mut node = Node { engine, peers, now, fx: Vec::new(), rng: Rng::new(2), serial: 0 };
        for peer in 0..peers {
            let index = PeerIndex(peer);
            node.engine.handle_connected(index, ConnectionNumber(u64::from(peer) + 1), now, &mut node.fx);
            node.hear(peer, Frame::Hello(hello(u64::from(peer) + 1)));
            for topic in (1..=TOPICS).map(TopicId) {
                node.hear(peer, Frame::Open(Open { topic, slots: MAX_SLOTS, artifact_bytes: 8 << 20 }));
            }
        }
        node
    }

    /// A body that was not there before.
    fn fresh_body(&mut self, len: usize) -> Bytes {
        self.serial += 1;
        let mut body = vec![7; len];
        body[..8].copy_from_slice(&self.serial.to_le_bytes());
        body.into()
    }

    fn command(&mut self, command: Command) {
        self.engine.handle_command(command, self.now, &mut self.fx);
        self.fx.clear();
    }

    fn bring(&mut self, peer: u16, incoming: Incoming) {
        self.engine.handle_link(PeerIndex(peer), incoming, self.now, &mut self.fx);
        self.fx.clear();
    }

    fn hear(&mut self, peer: u16, frame: Frame) {
        self.bring(peer, Incoming::Frame(frame.verified(HashKind::Blake3)));
    }

    fn say(&mut self, place: Place, change: Change) {
        self.serial += 1;
        let Place { peer, topic, slot } = place;
        let update = Update { topic, slot: Slot(slot), version: Version(self.serial), change };
        self.hear(peer, Frame::Update(update));
    }

    fn outgoing(&mut self, peer: u16) -> Option<Outgoing> {
        self.engine.poll_outgoing(PeerIndex(peer), Classes::ALL, self.now)
    }

    /// Every peer is told what there is to tell.
    fn tell(&mut self) {
        for peer in 0..self.peers {
            while let Some(outgoing) = self.outgoing(peer) {
                drop(black_box(outgoing));
            }
        }
    }

    /// The replica takes what was delivered, and lets it go.
    fn consume(&mut self) -> usize {
        let mut delivered = 0;
        for topic in (1..=TOPICS).map(TopicId) {
            while let Some(event) = self.engine.poll_event(topic, self.now) {
                if let Event::Delivered { artifact, .. } = event {
                    delivered += 1;
                    self.command(Command::Release { topic, id: artifact.id });
                }
            }
        }
        delivered
    }
}

/// A slot of a peer.
#[derive(Clone, Copy)]
struct Place {
    peer: u16,
    topic: TopicId,
    slot: u32,
}

struct Publisher {
    node: Node,
    active: Vec<(TopicId, ArtifactId)>,
}

impl Publisher {
    fn new(scale: Scale, change: impl Fn(TopicConfig) -> TopicConfig) -> Publisher {
        let mut publisher = Publisher { node: Node::new(scale, change), active: Vec::new() };
        for number in 0..scale.active {
            let topic = TopicId(1 + (number % u32::from(TOPICS)) as u16);
            let id = publisher.broadcast(topic, STAYS);
            publisher.active.push((topic, id));
        }
        publisher
    }

    fn broadcast(&mut self, topic: TopicId, len: usize) -> ArtifactId {
        let body = Verified::hash(HashKind::Blake3, self.node.fresh_body(len));
        let id = body.id();
        let (attribute, since) = (Attribute::EMPTY, self.node.now);
        self.node.command(Command::Broadcast { topic, body, attribute, since });
        id
    }

    fn replace(&mut self) {
        let at = self.node.rng.below(self.active.len() as u64) as usize;
        let (topic, id) = self.active[at];
        self.node.command(Command::Abort { topic, id });
        self.active[at].1 = self.broadcast(topic, PASSES);
    }
}

fn publish(scale: Scale, batch: usize, change: impl Fn(TopicConfig) -> TopicConfig) -> Work {
    let mut publisher = Publisher::new(scale, change);
    publisher.node.tell();
    Box::new(move || {
        (0..batch).for_each(|_| publisher.replace());
        publisher.node.tell();
    })
}

pub(crate) fn publish_one(scale: Scale) -> Work {
    publish(scale, 1, |topic| topic)
}

pub(crate) fn publish_batch(scale: Scale) -> Work {
    publish(scale, BATCH, |topic| topic)
}

pub(crate) fn publish_name(scale: Scale) -> Work {
    publish(scale, 1, |mut topic| {
        topic.push_threshold = 0;
        topic
    })
}

/// What a lane asks of its engine in every turn.
pub(crate) fn idle(scale: Scale) -> Work {
    let mut publisher = Publisher::new(scale, |topic| topic);
    publisher.node.tell();
    Box::new(move || {
        let Node { engine, peers, .. } = &publisher.node;
        assert!(black_box(engine.poll_timeout()).is_none());
        assert!(!(0..*peers).any(|peer| engine.has_outgoing(PeerIndex(peer))));
        assert!(!(1..=TOPICS).any(|topic| engine.has_events(TopicId(topic))));
    })
}

/// Knows of as many artifacts as are active elsewhere; its replica has let go of their bodies.
struct Receiver {
    node: Node,
    places: Vec<Place>,
}

impl Receiver {
    fn new(scale: Scale, change: impl Fn(TopicConfig) -> TopicConfig) -> Receiver {
        let mut node = Node::new(scale, change);
        let (peers, topics) = (u32::from(node.peers), u32::from(TOPICS));
        let place = |number: u32| Place {
            peer: (number % peers) as u16,
            topic: TopicId(1 + (number / peers % topics) as u16),
            slot: number / peers / topics,
        };
        let places: Vec<_> = (0..scale.active).map(place).collect();
        for place in &places {
            let body = node.fresh_body(STAYS);
            node.say(*place, Change::Push { attribute: Attribute::EMPTY, body });
            node.consume();
        }
        node.tell();
        Receiver { node, places }
    }

    fn any(&mut self) -> Place {
        self.places[self.node.rng.below(self.places.len() as u64) as usize]
    }

    fn pushed(&mut self, place: Place, body: Bytes) {
        self.node.say(place, Change::Push { attribute: Attribute::EMPTY, body });
        assert_eq!(self.node.consume(), 1);
    }

    fn named(&mut self, place: Place, body: &Verified, relayed: bool) {
        let (id, size) = (body.id(), body.bytes().len() as u32);
        self.node.say(place, Change::Advert { id, size, relayed, attribute: Attribute::EMPTY });
    }
}

/// Its hash included.
pub(crate) fn receive(scale: Scale) -> Work {
    let mut receiver = Receiver::new(scale, |topic| topic);
    Box::new(move || {
        let (place, body) = (receiver.any(), receiver.node.fresh_body(PASSES));
        receiver.pushed(place, body);
    })
}

pub(crate) fn discard(scale: Scale) -> Work {
    let mut receiver = Receiver::new(scale, |topic| topic.filter(|_| Verdict::Discard));
    Box::new(move || {
        let (place, body) = (receiver.any(), receiver.node.fresh_body(STAYS));
        receiver.named(place, &Verified::hash(HashKind::Blake3, body), false);
    })
}

pub(crate) fn fetch(scale: Scale) -> Work {
    let mut receiver = Receiver::new(scale, |topic| topic);
    Box::new(move || {
        let (place, body) = (receiver.any(), receiver.node.fresh_body(STAYS));
        let body = Verified::hash(HashKind::Blake3, body);
        receiver.named(place, &body, false);
        let Some(Outgoing::Fetch { key, .. }) = receiver.node.outgoing(place.peer) else {
            panic!("it is not asked for");
        };
        receiver.node.bring(place.peer, Incoming::Reply { key, reply: Reply::Found(body) });
        assert_eq!(receiver.node.consume(), 1);
    })
}

pub(crate) fn relayed(scale: Scale) -> Work {
    let mut receiver = Receiver::new(scale, |topic| topic);
    Box::new(move || {
        let (maker, body) = (receiver.any(), receiver.node.fresh_body(STAYS));
        let mut relay = receiver.any();
        while relay.topic != maker.topic || relay.peer == maker.peer {
            relay = receiver.any();
        }
        receiver.named(relay, &Verified::hash(HashKind::Blake3, body.clone()), true);
        receiver.pushed(maker, body);
    })
}

/// Two engines, and the bytes between them.
pub(crate) fn pair(scale: Scale) -> Work {
    let mut publisher = Publisher::new(Scale { peers: 1, ..scale }, |topic| topic);
    let mut receiver = Node::new(scale, |topic| topic);
    receiver.tell();
    let mut frames = Vec::new();
    let mut carry = move |publisher: &mut Publisher| {
        let mut delivered = 0;
        while let Some(outgoing) = publisher.node.outgoing(0) {
            let Outgoing::Batch { bytes, .. } = outgoing else { panic!("it is no batch") };
            let mut reader = BatchReader::default();
            reader.read(&bytes[1..], &mut frames).expect("frames decode");
            frames.drain(..).for_each(|frame| receiver.hear(0, frame));
            delivered += receiver.consume();
        }
        delivered
    };
    assert_eq!(carry(&mut publisher), scale.active as usize);
    Box::new(move || {
        (0..BATCH).for_each(|_| publisher.replace());
        // One of them may have taken another's place.
        let delivered = carry(&mut publisher);
        assert!(delivered > 0 && delivered <= BATCH);
    })
}
