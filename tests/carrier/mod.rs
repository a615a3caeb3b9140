//! Engines of one subnet, lane 0 of 1, joined by ideal links: what one engine gives its link, the other is brought at
//! once, whole and in order. Links can be cut and joined again.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by test binaries; a failure is the test's"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use corecast::config::{Granted, Limits, Settings, TopicConfig};
use corecast::engine::{Command, Effect, Effects, Engine, EngineConfig, Event};
use corecast::metrics::EngineCounters;
use corecast::types::{
    ArtifactId, Attribute, Classes, ConnectionNumber, HashKind, Instant, NodeId, PeerIndex, RegistryVersion,
    StreamKey, TopicId, Verified,
};
use corecast::wire::{BatchReader, Hello, Incoming, Outgoing, PushHead, Reply};

pub fn topic() -> TopicConfig {
    TopicConfig::new(TopicId(1), "test")
}

pub fn bytes(body: &[u8]) -> Bytes {
    Bytes::copy_from_slice(body)
}

pub struct Subnet {
    engines: Vec<Engine>,
    topics: Vec<TopicConfig>,
    /// Which pairs are connected, the lower node first.
    links: BTreeMap<(usize, usize), bool>,
    connections: u64,
    /// The transport's keys of requests at their server: (server, key there) to (asker, key there).
    requests: BTreeMap<(usize, StreamKey), (usize, StreamKey)>,
    next_key: u64,
    now: Instant,
    starts: u64,
    lost: EngineCounters,
}

impl Subnet {
    /// `nodes` engines with one topic, all connected.
    pub fn new(nodes: usize, topic: &TopicConfig) -> Subnet {
        let mut subnet = Subnet {
            engines: Vec::new(),
            topics: vec![topic.clone()],
            links: BTreeMap::new(),
            connections: 0,
            requests: BTreeMap::new(),
            next_key: 0,
            now: Instant::ZERO,
            starts: 0,
            lost: EngineCounters::default(),
        };
        for node in 0..nodes {
            let engine = subnet.start(node, nodes);
            subnet.engines.push(engine);
        }
        for a in 0..nodes {
            for b in a + 1..nodes {
                subnet.join(a, b);
            }
        }
        subnet.settle();
        subnet
    }

    fn start(&mut self, node: usize, nodes: usize) -> Engine {
        self.starts += 1;
        let granted = Granted { receive: 8 << 20, send: 8 << 20 };
        let members: Arc<[NodeId]> = (0..nodes).map(|n| NodeId([n as u8; 32])).collect();
        let hello =
            Hello { subnet: [0; 32], lanes: 1, lane: 0, registry: RegistryVersion(1), boot: self.starts };
        let mut engine = Engine::new(EngineConfig {
            hello,
            members,
            limits: Limits::derive(&Settings::default(), nodes, 1, granted),
            relay_grace: Duration::from_millis(50),
            seed: node as u64,
        });
        for topic in &self.topics {
            assert!(engine.handle_topic(topic.clone()));
        }
        engine
    }

    pub fn open(&mut self, topic: &TopicConfig) {
        self.topics.push(topic.clone());
        for engine in &mut self.engines {
            assert!(engine.handle_topic(topic.clone()));
        }
    }

    /// Opens a topic at one node.
    pub fn open_at(&mut self, node: usize, topic: &TopicConfig) {
        assert!(self.engines[node].handle_topic(topic.clone()));
    }

    /// What `from` would say to `to` next is lost, as on a link that breaks.
    pub fn say_in_vain(&mut self, from: usize, to: usize) {
        let (peer, now) = (PeerIndex(to as u16), self.now);
        while self.engines[from].poll_outgoing(peer, Classes::ALL, now).is_some() {}
    }

    pub fn join(&mut self, a: usize, b: usize) {
        self.links.insert((a, b), true);
        for (node, peer) in [(a, b), (b, a)] {
            self.connections += 1;
            let (connection, mut fx) = (ConnectionNumber(self.connections), Effects::new());
            self.engines[node].handle_connected(PeerIndex(peer as u16), connection, self.now, &mut fx);
            self.carry_out(node, fx);
        }
    }

    pub fn cut(&mut self, a: usize, b: usize) {
        self.links.insert((a.min(b), a.max(b)), false);
        for (node, peer) in [(a, b), (b, a)] {
            let mut fx = Effects::new();
            self.engines[node].handle_disconnected(PeerIndex(peer as u16), self.now, &mut fx);
            self.carry_out(node, fx);
        }
    }

    /// The node comes back without memory.
    pub fn restart(&mut self, node: usize) {
        let nodes = self.engines.len();
        let peers: Vec<usize> = (0..nodes).filter(|peer| *peer != node).collect();
        peers.iter().for_each(|peer| self.cut(node, *peer));
        let engine = self.start(node, nodes);
        let old = std::mem::replace(&mut self.engines[node], engine);
        self.lost.merge(old.counters());
        peers.iter().for_each(|peer| self.join(node.min(*peer), node.max(*peer)));
    }

    pub fn broadcast(&mut self, node: usize, body: &[u8]) -> ArtifactId {
        self.broadcast_on(TopicId(1), node, body)
    }

    pub fn broadcast_on(&mut self, topic: TopicId, node: usize, body: &[u8]) -> ArtifactId {
        let body = Verified::hash(HashKind::Blake3, bytes(body));
        let id = body.id();
        let (attribute, since) = (Attribute::EMPTY, self.now);
        self.command(node, Command::Broadcast { topic, body, attribute, since });
        id
    }

    pub fn abort(&mut self, node: usize, id: &ArtifactId) {
        self.abort_on(TopicId(1), node, id);
    }

    pub fn abort_on(&mut self, topic: TopicId, node: usize, id: &ArtifactId) {
        self.command(node, Command::Abort { topic, id: *id });
    }

    pub fn validate(&mut self, node: usize, id: &ArtifactId) {
        self.command(node, Command::Validate { topic: TopicId(1), id: *id });
    }

    pub fn release(&mut self, node: usize, id: &ArtifactId) {
        self.command(node, Command::Release { topic: TopicId(1), id: *id });
    }

    pub fn filter_changed(&mut self, node: usize) {
        self.command(node, Command::FilterChanged { topic: TopicId(1) });
    }

    fn command(&mut self, node: usize, command: Command) {
        let mut fx = Effects::new();
        self.engines[node].handle_command(command, self.now, &mut fx);
        self.carry_out(node, fx);
    }

    fn carry_out(&mut self, node: usize, fx: Effects) {
        for effect in fx {
            match effect {
                Effect::Disconnect { peer, code } => {
                    panic!("node {node} closes its link to {peer:?}: {code:?}")
                }
                // A stream is over at once here: by the time of a reset nothing is left of it.
                Effect::Reset { .. } | Effect::Freed { .. } => (),
            }
        }
    }

    /// Carries everything, and lets time pass, until nobody has anything to say.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            let moved = self.round();
            let due = self.engines.iter().filter_map(|engine| engine.poll_timeout()).map(|(at, _)| at).min();
            match due {
                _ if moved => (),
                Some(at) => {
                    self.now = self.now.max(at);
                    for node in 0..self.engines.len() {
                        let mut fx = Effects::new();
                        self.engines[node].handle_timeout(self.now, &mut fx);
                        self.carry_out(node, fx);
                    }
                }
                None => return,
            }
        }
        panic!("the subnet does not settle");
    }

    fn round(&mut self) -> bool {
        let mut moved = false;
        let links: Vec<_> = self.links.iter().filter(|(_, up)| **up).map(|(pair, _)| *pair).collect();
        for (a, b) in links {
            for (from, to) in [(a, b), (b, a)] {
                let (peer, now) = (PeerIndex(to as u16), self.now);
                while let Some(outgoing) = self.engines[from].poll_outgoing(peer, Classes::ALL, now) {
                    self.carry(from, to, outgoing);
                    moved = true;
                }
            }
        }
        moved
    }

    fn carry(&mut self, from: usize, to: usize, outgoing: Outgoing) {
        match outgoing {
            Outgoing::Batch { bytes, .. } => {
                let (mut reader, mut frames) = (BatchReader::default(), Vec::new());
                reader.read(&bytes[1..], &mut frames).expect("frames decode");
                reader.end().expect("a batch ends with a frame");
                for frame in frames {
                    self.bring(from, to, Incoming::Frame(frame.verified(HashKind::Blake3)));
                }
            }
            Outgoing::Push { key, head, body, .. } => {
                let (head, _) = PushHead::decode(&head[1..]).expect("a head decodes").expect("it is whole");
                let there = self.key();
                self.bring(from, to, Incoming::PushStarted { key: there, head: head.clone() });
                let body = Verified::hash(HashKind::Blake3, body);
                self.bring(from, to, Incoming::Pushed { key: there, head, body });
                self.bring(to, from, Incoming::Sent { key, whole: true });
            }
            Outgoing::Fetch { key, request, .. } => {
                let there = self.key();
                self.requests.insert((to, there), (from, key));
                self.bring(from, to, Incoming::Request { key: there, request });
            }
            Outgoing::Reply { key, reply, .. } => {
                let (asker, asked) = self.requests.remove(&(from, key)).expect("a reply answers a request");
                let found = matches!(reply, Reply::Found(_));
                let reply = match reply {
                    Reply::Found(body) => Reply::Found(Verified::hash(HashKind::Blake3, body)),
                    Reply::NotFound => Reply::NotFound,
                    Reply::Busy => Reply::Busy,
                    Reply::Broken => Reply::Broken,
                };
                assert_eq!(asker, to);
                self.bring(from, to, Incoming::Reply { key: asked, reply });
                if found {
                    self.bring(to, from, Incoming::Sent { key, whole: true });
                }
            }
        }
    }

    /// Hands in what a link brings.
    pub fn bring(&mut self, from: usize, to: usize, incoming: Incoming) {
        let mut fx = Effects::new();
        self.engines[to].handle_link(PeerIndex(from as u16), incoming, self.now, &mut fx);
        self.carry_out(to, fx);
    }

    fn key(&mut self) -> StreamKey {
        self.next_key += 1;
        StreamKey(self.next_key)
    }

    /// What the node's replica is told next, all of it.
    pub fn events(&mut self, node: usize) -> Vec<Event> {
        self.events_on(TopicId(1), node)
    }

    pub fn events_on(&mut self, topic: TopicId, node: usize) -> Vec<Event> {
        std::iter::from_fn(|| self.engines[node].poll_event(topic, self.now)).collect()
    }

    /// The deliveries among them.
    pub fn delivered(&mut self, node: usize) -> Vec<(ArtifactId, Bytes)> {
        let delivered = |event| match event {
            Event::Delivered { artifact, .. } => Some((artifact.id, artifact.bytes)),
            Event::Withdrawn { .. } | Event::Refused { .. } => None,
        };
        self.events(node).into_iter().filter_map(delivered).collect()
    }

    /// One counter, summed over all nodes.
    pub fn count(&self, pick: fn(&EngineCounters) -> u64) -> u64 {
        pick(&self.lost) + self.engines.iter().map(|engine| pick(engine.counters())).sum::<u64>()
    }

    /// Bytes of bodies held by all nodes.
    pub fn pool_bytes(&self) -> u64 {
        let held = |engine: &Engine| {
            self.topics.iter().map(|topic| engine.pool_bytes(topic.id)).map(|(a, b)| a + b).sum::<u64>()
        };
        self.engines.iter().map(held).sum()
    }
}
