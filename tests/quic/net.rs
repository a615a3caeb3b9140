//! Nodes joined by links in memory, in virtual time, by seed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use corecast::quic::{Event, HashOf, Identity, Quic, QuicConfig};
use corecast::types::{
    HashKind, Instant, Member, Membership, NodeId, PeerIndex, Received, RegistryVersion, Rng, TopicId,
    Transmit,
};
use corecast::wire::{Incoming, Outgoing};

use super::rogue::Rogue;

/// The topic that every node knows.
pub(crate) const TOPIC: TopicId = TopicId(7);
/// Another one.
pub(crate) const OTHER: TopicId = TopicId(8);

/// How datagrams travel.
#[derive(Clone, Copy)]
pub(crate) struct Path {
    pub(crate) delay: Duration,
    /// Up to this much longer: reordering.
    pub(crate) jitter: Duration,
    /// One in so many is lost; 0 for none.
    pub(crate) lose_one_in: u64,
    /// One in so many has a wrong byte.
    pub(crate) damage_one_in: u64,
    /// One in so many arrives twice.
    pub(crate) repeat_one_in: u64,
}

pub(crate) const PERFECT: Path = Path {
    delay: Duration::from_millis(1),
    jitter: Duration::ZERO,
    lose_one_in: 0,
    damage_one_in: 0,
    repeat_one_in: 0,
};
pub(crate) const LOSSY: Path = Path { jitter: Duration::from_micros(500), lose_one_in: 20, ..PERFECT };

/// Turns without time passing, from which on nothing will ever come to rest.
const MAX_TURNS_AT_ONCE: usize = 10_000;

pub(crate) enum Machine {
    Quic(Box<Quic>),
    Rogue(Box<Rogue>),
    /// Switched off: datagrams vanish.
    Off,
}

pub(crate) struct Node {
    pub(crate) machine: Machine,
    pub(crate) address: SocketAddr,
    pub(crate) events: Vec<(PeerIndex, Event)>,
    /// Batches and bodies to send as room allows, by peer.
    pub(crate) queue: Vec<(PeerIndex, Outgoing)>,
    pub(crate) datagrams_out: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

pub(crate) struct Net {
    pub(crate) now: Instant,
    pub(crate) path: Path,
    pub(crate) nodes: Vec<Node>,
    /// Links that are cut, by sender and receiver.
    pub(crate) cut: BTreeSet<(usize, usize)>,
    rng: Rng,
    sequence: u64,
    in_flight: BTreeMap<(Instant, u64), (usize, Received)>,
    pub(crate) epoch: std::time::Instant,
    /// Turns since time last passed.
    turns_now: usize,
}

impl Net {
    pub(crate) fn new(path: Path) -> Net {
        Net {
            now: Instant::ZERO,
            path,
            nodes: Vec::new(),
            cut: BTreeSet::new(),
            rng: Rng::new(7),
            sequence: 0,
            in_flight: BTreeMap::new(),
            epoch: std::time::Instant::now(),
            turns_now: 0,
        }
    }

    pub(crate) fn add(&mut self, address: SocketAddr, machine: Machine) -> usize {
        self.nodes.push(Node {
            machine,
            address,
            events: Vec::new(),
            queue: Vec::new(),
            datagrams_out: 0,
            bytes_in: 0,
            bytes_out: 0,
        });
        self.nodes.len() - 1
    }

    pub(crate) fn quic(&mut self, node: usize) -> &mut Quic {
        match &mut self.nodes[node].machine {
            Machine::Quic(quic) => quic,
            Machine::Rogue(_) | Machine::Off => panic!("node {node} is no Quic"),
        }
    }

    pub(crate) fn rogue(&mut self, node: usize) -> &mut Rogue {
        match &mut self.nodes[node].machine {
            Machine::Rogue(rogue) => rogue,
            Machine::Quic(_) | Machine::Off => panic!("node {node} is no rogue"),
        }
    }

    /// Runs until `done`, and fails the test when that takes longer than `limit` of virtual time.
    pub(crate) fn run(&mut self, limit: Duration, mut done: impl FnMut(&mut Net) -> bool) {
        let end = self.now + limit;
        loop {
            self.settle();
            if done(self) {
                return;
            }
            let next = self.next_time();
            assert!(next.is_some_and(|next| next <= end), "not done at {:?}, next {next:?}", self.now);
            self.advance(next.unwrap_or(end));
        }
    }

    /// Runs for `span` of virtual time.
    pub(crate) fn run_for(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            self.settle();
            match self.next_time() {
                Some(next) if next <= end => self.advance(next),
                _ => break,
            }
        }
        self.now = end;
    }

    fn next_time(&mut self) -> Option<Instant> {
        let arrival = self.in_flight.keys().next().map(|&(at, _)| at);
        let timers = self.nodes.iter_mut().filter_map(|node| match &mut node.machine {
            Machine::Quic(quic) => quic.poll_timeout(),
            Machine::Rogue(rogue) => rogue.poll_timeout(),
            Machine::Off => None,
        });
        timers.chain(arrival).min().map(|at| at.max(self.now))
    }

    fn advance(&mut self, to: Instant) {
        self.turns_now = if to == self.now { self.turns_now + 1 } else { 0 };
        assert!(self.turns_now < MAX_TURNS_AT_ONCE, "turns without end at {to:?}");
        self.now = to;
        while let Some(entry) = self.in_flight.first_entry() {
            if entry.key().0 > to {
                break;
            }
            let (node, received) = entry.remove();
            let now = self.now;
            self.nodes[node].bytes_in += received.data.len() as u64;
            match &mut self.nodes[node].machine {
                Machine::Quic(quic) => quic.handle_received(now, received),
                Machine::Rogue(rogue) => rogue.handle_received(now, received),
                Machine::Off => (),
            }
            self.collect(node);
        }
        for node in 0..self.nodes.len() {
            match &mut self.nodes[node].machine {
                Machine::Quic(quic) => quic.handle_timeout(to),
                Machine::Rogue(rogue) => rogue.handle_timeout(to),
                Machine::Off => (),
            }
            self.collect(node);
        }
    }

    fn collect(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        if let Machine::Quic(quic) = &mut node.machine {
            while let Some(event) = quic.poll_event() {
                node.events.push(event);
            }
        }
    }

    /// One turn of every node: send what is queued, transmit.
    fn settle(&mut self) {
        let mut buf = Vec::new();
        for index in 0..self.nodes.len() {
            let now = self.now;
            self.collect(index);
            let node = &mut self.nodes[index];
            if let Machine::Quic(quic) = &mut node.machine {
                quic.begin_turn();
                let mut at = 0;
                while at < node.queue.len() {
                    let (peer, outgoing) = &node.queue[at];
                    if quic.room(*peer).has(outgoing.class()) {
                        let (peer, outgoing) = node.queue.remove(at);
                        quic.send(peer, outgoing);
                    } else {
                        at += 1;
                    }
                }
            }
            loop {
                let transmit = match &mut self.nodes[index].machine {
                    Machine::Quic(quic) => quic.poll_transmit(now, &mut buf),
                    Machine::Rogue(rogue) => rogue.poll_transmit(now, &mut buf),
                    Machine::Off => None,
                };
                let Some(transmit) = transmit else { break };
                assert_eq!(transmit.len, buf.len());
                self.carry(index, transmit, &buf);
            }
        }
    }

    fn carry(&mut self, from: usize, transmit: Transmit, bytes: &[u8]) {
        let source = self.nodes[from].address;
        self.nodes[from].datagrams_out += bytes.len().div_ceil(transmit.segment) as u64;
        self.nodes[from].bytes_out += bytes.len() as u64;
        let to = self.nodes.iter().position(|node| node.address == transmit.to);
        let Some(to) = to else { return };
        if self.cut.contains(&(from, to)) {
            return;
        }
        // A path that loses or reorders sees datagrams, a perfect one whole batches.
        let whole = self.path.lose_one_in == 0 && self.path.jitter.is_zero();
        let piece = if whole { bytes.len() } else { transmit.segment };
        for datagram in bytes.chunks(piece) {
            if self.rng.one_in(self.path.lose_one_in) {
                continue;
            }
            let mut data = BytesMut::from(datagram);
            if self.rng.one_in(self.path.damage_one_in) {
                let at = self.rng.below(data.len() as u64) as usize;
                data[at] ^= 1 << self.rng.below(8);
            }
            for _ in 0..1 + u8::from(self.rng.one_in(self.path.repeat_one_in)) {
                let jitter = self.rng.below(self.path.jitter.as_nanos() as u64);
                let at = self.now + self.path.delay + Duration::from_nanos(jitter);
                let (stride, data) = (transmit.segment, data.clone());
                self.sequence += 1;
                let received = Received { from: source, ecn: transmit.ecn, stride, data };
                self.in_flight.insert((at, self.sequence), (to, received));
            }
        }
    }

    /// Gives `node` datagrams as if `from` had sent them.
    pub(crate) fn inject(&mut self, node: usize, from: SocketAddr, data: &[u8]) {
        let received = Received { from, ecn: None, stride: data.len(), data: BytesMut::from(data) };
        self.sequence += 1;
        self.in_flight.insert((self.now, self.sequence), (node, received));
    }

    /// What the link of `peer` brought to `node`.
    pub(crate) fn incoming(&self, node: usize, peer: PeerIndex) -> impl Iterator<Item = &Incoming> {
        self.nodes[node].events.iter().filter_map(move |(from, event)| match event {
            Event::Link(incoming) if *from == peer => Some(incoming),
            _ => None,
        })
    }

    pub(crate) fn connected(&self, node: usize) -> usize {
        self.nodes[node].events.iter().filter(|(_, event)| matches!(event, Event::Connected { .. })).count()
    }
}

/// Keys of `count` members, by ascending id: member `i` of the record is `keys[i]`.
pub(crate) fn keys(count: u8) -> Vec<Identity> {
    let mut keys: Vec<Identity> = (1..=count).map(|i| Identity::from_seed([i; 32]).unwrap()).collect();
    keys.sort_by_key(Identity::id);
    keys
}

pub(crate) fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1 + node as u8], 4100))
}

/// The record in which member `i` is at `address(i)`.
pub(crate) fn record(version: u64, ids: &[NodeId]) -> Arc<Membership> {
    let member = |(i, &id): (usize, &NodeId)| Member { id, addresses: vec![address(i)] };
    let members = ids.iter().enumerate().map(member).collect();
    Arc::new(Membership::new("test".into(), RegistryVersion(version), 1, members).unwrap())
}

/// The record of these keys at these places.
pub(crate) fn record_at(version: u64, members: &[(&Identity, usize)]) -> Arc<Membership> {
    let member = |&(key, at): &(&Identity, usize)| Member { id: key.id(), addresses: vec![address(at)] };
    let members = members.iter().map(member).collect();
    Arc::new(Membership::new("test".into(), RegistryVersion(version), 1, members).unwrap())
}

pub(crate) fn ids(keys: &[Identity]) -> Vec<NodeId> {
    keys.iter().map(Identity::id).collect()
}

pub(crate) fn config(net: &Net, key: &Identity, membership: &Arc<Membership>, seed: u64) -> QuicConfig {
    let hash_of: HashOf = Arc::new(|topic| [TOPIC, OTHER].contains(&topic).then_some(HashKind::Blake3));
    QuicConfig::new(key.clone(), membership.clone(), 0, hash_of, seed, net.epoch)
}

/// `count` members, each at its address, not yet connected.
pub(crate) fn mesh(path: Path, count: u8) -> (Net, Vec<Identity>) {
    let mut net = Net::new(path);
    let keys = keys(count);
    let membership = record(1, &ids(&keys));
    for (i, key) in keys.iter().enumerate() {
        let quic = Quic::new(config(&net, key, &membership, i as u64)).unwrap();
        net.add(address(i), Machine::Quic(Box::new(quic)));
    }
    (net, keys)
}

/// The same, connected.
pub(crate) fn connected(path: Path, count: u8) -> (Net, Vec<Identity>) {
    let (mut net, keys) = mesh(path, count);
    let all = usize::from(count) - 1;
    net.run(Duration::from_secs(10), |net| (0..=all).all(|node| net.connected(node) == all));
    (net, keys)
}

pub(crate) fn body(seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    Rng::new(seed).fill(&mut bytes);
    bytes.into()
}

pub(crate) fn peer(node: usize) -> PeerIndex {
    PeerIndex(node as u16)
}
