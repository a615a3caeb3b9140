//! Whole lanes without their shell: engine and transport with real TLS, over links that lose, repeat, delay and reorder
//! datagrams, in virtual time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure is the test's")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use corecast::config::{Granted, Limits, Settings, TopicConfig};
use corecast::engine::{Command, Effect, Effects, Engine, EngineConfig, Event};
use corecast::quic::{self, Identity, Quic, QuicConfig};
use corecast::types::{
    ArtifactId, Attribute, Class, HashKind, Instant, Member, Membership, PeerIndex, Received,
    RegistryVersion, Rng, TopicId, Verified,
};
use corecast::wire::Hello;

const TOPIC: TopicId = TopicId(3);
const URGENT: TopicId = TopicId(4);

struct Lane {
    quic: Quic,
    engine: Engine,
    fx: Effects,
    delivered: BTreeMap<ArtifactId, usize>,
    withdrawn: BTreeSet<ArtifactId>,
}

struct World {
    lanes: Vec<Lane>,
    /// In the order of arrival: to whom, from whom, what.
    wire: BTreeMap<(Instant, u64), (usize, usize, Bytes)>,
    sent: u64,
    rng: Rng,
    now: Instant,
    lose_one_in: u64,
    /// A member whose every datagram is lost.
    away: Option<usize>,
}

fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8 + 1], 4100))
}

impl World {
    fn new(nodes: usize, seed: u64, lose_one_in: u64) -> World {
        let mut identities: Vec<Identity> =
            (0..nodes).map(|n| Identity::from_seed([n as u8; 32]).unwrap()).collect();
        identities.sort_by_key(Identity::id);
        let members = identities.iter().enumerate();
        let members = members.map(|(n, key)| Member { id: key.id(), addresses: vec![address(n)] }).collect();
        let membership = Arc::new(Membership::new("lossy".into(), RegistryVersion(1), 1, members).unwrap());
        let epoch = std::time::Instant::now();
        let lanes =
            identities.iter().zip(1..).map(|(key, boot)| lane(key, &membership, boot, epoch)).collect();
        let (wire, rng) = (BTreeMap::new(), Rng::new(seed));
        World { lanes, wire, sent: 0, rng, now: Instant::ZERO, lose_one_in, away: None }
    }

    fn broadcast(&mut self, node: usize, topic: TopicId, body: &[u8]) -> ArtifactId {
        let body = Verified::hash(HashKind::Blake3, Bytes::copy_from_slice(body));
        let (id, attribute, since) = (body.id(), Attribute::EMPTY, self.now);
        self.command(node, Command::Broadcast { topic, body, attribute, since });
        id
    }

    fn command(&mut self, node: usize, command: Command) {
        let lane = &mut self.lanes[node];
        lane.engine.handle_command(command, self.now, &mut lane.fx);
    }

    /// Lets time pass until `done`, at most two virtual minutes.
    fn run(&mut self, what: &str, done: impl Fn(&World) -> bool) {
        let end = self.now + Duration::from_secs(120);
        while !done(self) {
            assert!(self.now < end, "in vain: {what}");
            self.step();
        }
    }

    fn step(&mut self) {
        while let Some(entry) = self.wire.first_entry()
            && entry.key().0 <= self.now
        {
            let (to, from, data) = entry.remove();
            let data = BytesMut::from(&data[..]);
            let received = Received { from: address(from), ecn: None, stride: data.len(), data };
            self.lanes[to].quic.handle_received(self.now, received);
        }
        for node in 0..self.lanes.len() {
            self.lanes[node].turn(self.now);
            self.transmit(node);
        }
        let lanes = self.lanes.iter();
        let due =
            lanes.flat_map(|lane| [lane.quic.poll_timeout(), lane.engine.poll_timeout().map(|(at, _)| at)]);
        let next = due.flatten().chain(self.wire.keys().map(|(at, _)| *at).take(1)).min();
        self.now = next.unwrap_or(self.now).max(self.now + Duration::from_micros(10));
    }

    fn transmit(&mut self, node: usize) {
        let mut buffer = Vec::new();
        self.lanes[node].quic.begin_turn();
        while let Some(transmit) = self.lanes[node].quic.poll_transmit(self.now, &mut buffer) {
            let to = (0..self.lanes.len())
                .find(|other| address(*other) == transmit.to)
                .expect("a member's address");
            for datagram in buffer[..transmit.len].chunks(transmit.segment) {
                let gone = self.away.is_some_and(|away| away == node || away == to);
                if gone || self.rng.one_in(self.lose_one_in) {
                    continue;
                }
                let copies = 1 + u64::from(self.rng.one_in(50));
                for _ in 0..copies {
                    let delay = Duration::from_micros(500 + self.rng.below(1500));
                    self.sent += 1;
                    let datagram = Bytes::copy_from_slice(datagram);
                    self.wire.insert((self.now + delay, self.sent), (to, node, datagram));
                }
            }
        }
    }

    fn has_all(&self, node: usize, ids: &[ArtifactId]) -> bool {
        ids.iter().all(|id| self.lanes[node].delivered.contains_key(id))
    }
}

fn lane(key: &Identity, membership: &Arc<Membership>, boot: u64, epoch: std::time::Instant) -> Lane {
    let settings = Settings::default();
    let granted = Granted { receive: 8 << 20, send: 8 << 20 };
    let limits = Limits::derive(&settings, membership.members().len(), 1, granted);
    let hash_of = Arc::new(|_| Some(HashKind::Blake3));
    let mut config = QuicConfig::new(key.clone(), membership.clone(), 0, hash_of, boot, epoch);
    config.stream_window = limits.stream_window;
    config.connection_window = limits.connection_window;
    config.send_window = limits.send_window;
    config.urgent_reserve = limits.urgent_reserve;
    config.artifact_limit = limits.artifact_bytes;
    let version = RegistryVersion(1);
    let hello = Hello { subnet: membership.subnet_hash(), lanes: 1, lane: 0, registry: version, boot };
    let members = membership.members().iter().map(|member| member.id).collect();
    let relay_grace = settings.relay_grace;
    let mut engine = Engine::new(EngineConfig { hello, members, limits, relay_grace, seed: boot });
    assert!(engine.handle_topic(TopicConfig::new(TOPIC, "plain")));
    assert!(engine.handle_topic(TopicConfig::new(URGENT, "urgent").class(Class::Critical)));
    let quic = Quic::new(config).unwrap();
    Lane { quic, engine, fx: Effects::new(), delivered: BTreeMap::new(), withdrawn: BTreeSet::new() }
}

impl Lane {
    /// What the shell does in a turn, without sockets and queues.
    fn turn(&mut self, now: Instant) {
        self.quic.handle_timeout(now);
        if self.engine.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.engine.handle_timeout(now, &mut self.fx);
        }
        while let Some((peer, event)) = self.quic.poll_event() {
            match event {
                quic::Event::Connected { connection } => {
                    self.engine.handle_connected(peer, connection, now, &mut self.fx);
                }
                quic::Event::Disconnected { .. } => self.engine.handle_disconnected(peer, now, &mut self.fx),
                quic::Event::Link(incoming) => self.engine.handle_link(peer, incoming, now, &mut self.fx),
            }
        }
        for effect in std::mem::take(&mut self.fx) {
            match effect {
                Effect::Reset { peer, key } => self.quic.reset(peer, key),
                Effect::Disconnect { peer, code } => panic!("{peer:?} broke the protocol: {code:?}"),
                Effect::Freed { .. } => (),
            }
        }
        for peer in (0..16).map(PeerIndex) {
            loop {
                match self.engine.poll_outgoing(peer, self.quic.room(peer), now) {
                    Some(outgoing) => self.quic.send(peer, outgoing),
                    None if self.quic.write(peer) => (),
                    None => break,
                }
            }
        }
        for topic in [TOPIC, URGENT] {
            while let Some(event) = self.engine.poll_event(topic, now) {
                match event {
                    Event::Delivered { artifact, .. } => *self.delivered.entry(artifact.id).or_default() += 1,
                    Event::Withdrawn { id } => drop(self.withdrawn.insert(id)),
                    Event::Refused { .. } => panic!("{event:?}"),
                }
            }
        }
    }
}

/// Bodies of every kind: pushed in a batch, fetched, and pushed on a stream of their own.
fn load(world: &mut World, node: usize, round: u8) -> Vec<ArtifactId> {
    let tag = [node as u8, round];
    vec![
        world.broadcast(node, TOPIC, &[&tag[..], &[1; 100]].concat()),
        world.broadcast(node, TOPIC, &[&tag[..], &[2; 300_000]].concat()),
        world.broadcast(node, URGENT, &[&tag[..], &[3; 200_000]].concat()),
    ]
}

#[test]
fn everyone_receives_everything_once_over_lossy_links() {
    for seed in 0..3 {
        let mut world = World::new(4, seed, 20);
        let made: Vec<Vec<ArtifactId>> = (0..4).map(|node| load(&mut world, node, 0)).collect();
        let others = |node: usize| made.iter().enumerate().filter(move |(maker, _)| *maker != node);
        let complete =
            |world: &World| (0..4).all(|node| others(node).all(|(_, ids)| world.has_all(node, ids)));
        world.run("every artifact is everywhere", complete);
        for (node, lane) in world.lanes.iter().enumerate() {
            assert!(lane.delivered.values().all(|times| *times == 1));
            assert_eq!(lane.delivered.len(), others(node).map(|(_, ids)| ids.len()).sum::<usize>());
        }
    }
}

#[test]
fn what_is_aborted_is_withdrawn_everywhere_and_leaves_nothing_over_lossy_links() {
    let mut world = World::new(4, 7, 20);
    let ids = load(&mut world, 0, 0);
    world.run("delivery", |world| (1..4).all(|node| world.has_all(node, &ids)));
    for id in &ids {
        for topic in [TOPIC, URGENT] {
            world.command(0, Command::Abort { topic, id: *id });
        }
    }
    world.run("withdrawal", |world| {
        (1..4).all(|node| ids.iter().all(|id| world.lanes[node].withdrawn.contains(id)))
    });
    for lane in &world.lanes {
        assert_eq!((lane.engine.pool_bytes(TOPIC), lane.engine.pool_bytes(URGENT)), ((0, 0), (0, 0)));
    }
}

#[test]
fn a_member_that_was_cut_off_catches_up_and_the_others_did_not_wait() {
    let mut world = World::new(4, 11, 50);
    let first = load(&mut world, 0, 0);
    world.run("delivery", |world| (1..4).all(|node| world.has_all(node, &first)));
    world.away = Some(3);
    let second = load(&mut world, 1, 1);
    world.run("delivery to the others", |world| [0, 2].into_iter().all(|node| world.has_all(node, &second)));
    let healed = world.now + Duration::from_secs(8);
    world.run("the cut is noticed", |world| world.now >= healed);
    world.away = None;
    world.run("catching up", |world| world.has_all(3, &second));
    assert!(world.lanes[3].delivered.values().all(|times| *times == 1));
    assert!(world.lanes[3].withdrawn.is_empty());
    let slots = first.len() as u64;
    world.run("resuming", |world| world.lanes[0].engine.counters().slots_resumed >= slots);
    let settled = world.now + Duration::from_secs(2);
    world.run("the rest", |world| world.now >= settled);
    let maker = world.lanes[0].engine.counters();
    assert_eq!(maker.pushes_sent + maker.adverts_sent, 3 * slots, "nothing is told twice");
}
