//! Members joined by QUIC: real quinn-proto at every member, over datagrams that the run carries.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::hostile::Answer;
use super::member::limits;
use super::options::{Datagrams, Level, Options};
use super::path::Paths;
use super::plain::Plain;
use super::world::{Actor, Happening, World};
use crate::engine::Effects;
use crate::quic::{Event, Identity, Quic, QuicConfig, StreamCensus};
use crate::types::{
    ArtifactId, Class, Classes, HashKind, Instant, Membership, PeerIndex, Received, RegistryVersion, Rng,
    StreamKey, TopicId,
};
use crate::wire::{CloseCode, Incoming, Outgoing};

/// The whole level.
pub(super) struct Wire {
    keys: Vec<Identity>,
    membership: Arc<Membership>,
    epoch: std::time::Instant,
    pub(super) paths: Paths,
    lanes: Vec<Option<Box<Lane>>>,
}

/// One member's transport.
struct Lane {
    quic: Quic,
    /// What came while the member stood still, as its socket keeps it.
    waiting: VecDeque<(usize, Bytes)>,
    waiting_bytes: usize,
    /// The number of each peer's connection.
    connections: BTreeMap<usize, u64>,
    /// What peers ask for, until it is answered.
    asked: BTreeMap<(usize, StreamKey), (TopicId, ArtifactId)>,
    /// What a hostile member says as soon as there is room.
    outbox: VecDeque<(usize, Outgoing)>,
}

impl Lane {
    /// Bytes that a socket keeps.
    const SOCKET: usize = 256 << 10;
    /// What a hostile member keeps to say later.
    const OUTBOX: usize = 64;
}

/// The members' keys, in the order of their ids.
pub(super) fn identities(members: usize) -> Vec<Identity> {
    let mut keys: Vec<Identity> =
        (1..=members).filter_map(|n| Identity::from_seed([n as u8; 32]).ok()).collect();
    keys.sort_by_key(Identity::id);
    keys
}

fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8 + 1], 4100))
}

fn node_at(address: SocketAddr) -> Option<usize> {
    match address {
        SocketAddr::V4(address) => usize::from(address.ip().octets()[3]).checked_sub(1),
        SocketAddr::V6(_) => None,
    }
}

impl Wire {
    pub(super) fn new(options: &Options, datagrams: Datagrams, rng: Rng) -> Wire {
        let keys = identities(options.members);
        let member =
            |(n, key): (usize, &Identity)| crate::types::Member { id: key.id(), addresses: vec![address(n)] };
        let members = keys.iter().enumerate().map(member).collect();
        let membership = Membership::new("simulated".into(), RegistryVersion(1), 1, members);
        Wire {
            membership: Arc::new(membership.expect("distinct members at distinct addresses")),
            epoch: std::time::Instant::now(),
            paths: Paths::new(options.links, datagrams, options.members, rng),
            lanes: (0..options.members).map(|_| None).collect(),
            keys,
        }
    }

    /// A fresh start of a member's transport.
    pub(super) fn start(&mut self, options: &Options, node: usize, boot: u64) {
        let datagrams = options.datagrams;
        let hash_of = Arc::new(|_| Some(HashKind::Blake3));
        let key = self.keys[node].clone();
        let seed = options.seed ^ boot.rotate_left(32);
        let limits = limits(options);
        let config = QuicConfig {
            mtu: datagrams.mtu,
            stream_window: limits.stream_window,
            connection_window: limits.connection_window,
            send_window: limits.send_window,
            urgent_reserve: limits.urgent_reserve,
            uni_streams: datagrams.uni_streams,
            bidi_streams: datagrams.bidi_streams,
            pushes_in_assembly: limits.pushes_in_assembly,
            idle_timeout: options.links.idle_timeout,
            keep_alive: options.links.idle_timeout / 3,
            artifact_limit: limits.artifact_bytes,
            ..QuicConfig::new(key.clone(), self.membership.clone(), 0, hash_of, seed, self.epoch)
        };
        let quic = match options.level {
            Level::Tls => Quic::new(config),
            Level::Messages | Level::Quic => Quic::with_handshakes(config, Box::new(Plain { own: key.id() })),
        };
        let quic = quic.expect("the simulated settings are allowed");
        let lane = Lane {
            quic,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            connections: BTreeMap::new(),
            asked: BTreeMap::new(),
            outbox: VecDeque::new(),
        };
        self.lanes[node] = Some(Box::new(lane));
    }

    /// Its memory is gone.
    pub(super) fn stop(&mut self, node: usize) {
        self.lanes[node] = None;
    }

    fn lane(&mut self, node: usize) -> Option<&mut Lane> {
        self.lanes.get_mut(node)?.as_deref_mut()
    }

    pub(super) fn room(&self, node: usize, peer: usize) -> Classes {
        let lane = self.lanes.get(node).and_then(Option::as_ref);
        lane.map_or(Classes::NONE, |lane| lane.quic.room(PeerIndex(peer as u16)))
    }

    /// The connection of `node` with `peer`, by the number that `node` gave it.
    pub(super) fn connection(&self, node: usize, peer: usize) -> Option<u64> {
        self.lanes.get(node)?.as_ref()?.connections.get(&peer).copied()
    }

    pub(super) fn send(&mut self, node: usize, peer: usize, outgoing: Outgoing) {
        let Some(lane) = self.lane(node) else { return };
        if let Outgoing::Reply { key, .. } = &outgoing {
            lane.asked.remove(&(peer, *key));
        }
        lane.quic.send(PeerIndex(peer as u16), outgoing);
    }

    /// Moves on what was sent; whether any of it went.
    pub(super) fn write(&mut self, node: usize, peer: usize) -> bool {
        self.lane(node).is_some_and(|lane| lane.quic.write(PeerIndex(peer as u16)))
    }

    pub(super) fn reset(&mut self, node: usize, peer: usize, key: StreamKey) {
        let Some(lane) = self.lane(node) else { return };
        lane.asked.remove(&(peer, key));
        lane.quic.reset(PeerIndex(peer as u16), key);
    }

    pub(super) fn disconnect(&mut self, node: usize, peer: usize, code: CloseCode, now: Instant) {
        if let Some(lane) = self.lane(node) {
            lane.quic.disconnect(now, PeerIndex(peer as u16), code);
        }
    }

    /// What a peer's request asks for.
    pub(super) fn requested(
        &self,
        node: usize,
        peer: usize,
        key: StreamKey,
    ) -> Option<(TopicId, ArtifactId)> {
        self.lanes.get(node)?.as_ref()?.asked.get(&(peer, key)).copied()
    }

    pub(super) fn poll_timeout(&self, node: usize) -> Option<Instant> {
        self.lanes.get(node)?.as_ref()?.quic.poll_timeout()
    }

    /// Hands over what the socket kept, and what is due.
    /// How many things there were.
    fn take_in(&mut self, node: usize, now: Instant) -> usize {
        let Some(lane) = self.lane(node) else { return 0 };
        let mut moved = lane.waiting.len();
        lane.waiting_bytes = 0;
        while let Some((from, data)) = lane.waiting.pop_front() {
            let data = BytesMut::from(&data[..]);
            lane.quic
                .handle_received(now, Received { from: address(from), ecn: None, stride: data.len(), data });
        }
        if lane.quic.poll_timeout().is_some_and(|at| at <= now) {
            lane.quic.handle_timeout(now);
            moved += 1;
        }
        moved
    }

    fn poll_event(&mut self, node: usize) -> Option<(usize, Event)> {
        let lane = self.lane(node)?;
        let (peer, event) = lane.quic.poll_event()?;
        let peer = peer.index();
        match &event {
            Event::Connected { connection } => drop(lane.connections.insert(peer, connection.0)),
            Event::Disconnected { .. } => {
                lane.connections.remove(&peer);
                lane.asked.retain(|(of, _), _| *of != peer);
            }
            Event::Link(Incoming::Request { key, request }) => {
                lane.asked.insert((peer, *key), (request.topic, request.id));
            }
            Event::Link(_) => (),
        }
        Some((peer, event))
    }

    /// What a member's transport holds of a peer.
    pub(super) fn census_of(&self, node: usize, peer: usize) -> StreamCensus {
        let lane = self.lanes.get(node).and_then(Option::as_ref);
        lane.map_or(StreamCensus::default(), |lane| lane.quic.census_of(PeerIndex(peer as u16)))
    }

    /// At rest no honest member's transport holds anything for a stream.
    pub(super) fn check_streams(&self, honest: usize) -> Result<(), String> {
        for (node, lane) in self.lanes.iter().enumerate().take(honest) {
            let census = lane.as_ref().map_or(StreamCensus::default(), |lane| lane.quic.census());
            if census != StreamCensus::default() {
                return Err(format!("M5: the transport of member {node} is left with {census:?}"));
            }
        }
        Ok(())
    }

    /// A hostile member wants to say something.
    pub(super) fn say(&mut self, node: usize, peer: usize, outgoing: Outgoing) {
        let Some(lane) = self.lane(node) else { return };
        if lane.outbox.len() < Lane::OUTBOX {
            lane.outbox.push_back((peer, outgoing));
        }
    }

    /// Says what there is room for, the oldest first.
    fn speak(&mut self, node: usize) -> bool {
        let Some(lane) = self.lane(node) else { return false };
        let mut said = false;
        while let Some((peer, outgoing)) = lane.outbox.pop_front() {
            let index = PeerIndex(peer as u16);
            if !lane.connections.contains_key(&peer) {
                continue;
            }
            if !lane.quic.room(index).has(outgoing.class()) {
                lane.outbox.push_front((peer, outgoing));
                break;
            }
            lane.quic.send(index, outgoing);
            said = true;
        }
        said
    }
}

impl World {
    /// A datagram reaches a member's link.
    pub(super) fn datagram(&mut self, from: usize, to: usize, data: Bytes) -> Result<(), String> {
        let Some(wire) = &mut self.wire else { return Ok(()) };
        match wire.paths.receive(to, data.len(), self.now) {
            Some(at) if at > self.now => self.at(at, Happening::Received { from, to, data }),
            Some(_) => return self.received(from, to, data),
            None => (),
        }
        Ok(())
    }

    /// It is through.
    pub(super) fn received(&mut self, from: usize, to: usize, data: Bytes) -> Result<(), String> {
        self.inversions.received(from, to, &data);
        let Some(lane) = self.wire.as_mut().and_then(|wire| wire.lane(to)) else { return Ok(()) };
        if lane.waiting_bytes + data.len() <= Lane::SOCKET {
            lane.waiting_bytes += data.len();
            lane.waiting.push_back((from, data));
        }
        self.turn(to)
    }

    /// What the links bring a member; whether it was something.
    pub(super) fn hear_links(&mut self, node: usize) -> Result<bool, String> {
        let now = self.clock(node);
        let Some(wire) = &mut self.wire else { return Ok(false) };
        let taken = wire.take_in(node, now);
        (0..taken).for_each(|_| self.effort.arrived(node));
        let mut moved = taken > 0;
        while let Some((peer, event)) = self.wire.as_mut().and_then(|wire| wire.poll_event(node)) {
            moved = true;
            match &mut self.actors[node] {
                Actor::Honest(_) => self.hear_honest(node, peer, event),
                Actor::Hostile(_) => self.hear_hostile(node, peer, event),
                Actor::Off => (),
            }
        }
        Ok(moved)
    }

    fn hear_honest(&mut self, node: usize, peer: usize, event: Event) {
        let index = PeerIndex(peer as u16);
        let now = self.clock(node);
        if let Event::Connected { .. } = event {
            self.effort.connected(node);
        }
        let Actor::Honest(member) = &mut self.actors[node] else { return };
        let mut fx = Effects::new();
        match event {
            Event::Connected { connection } => {
                member.engine.handle_connected(index, connection, now, &mut fx)
            }
            Event::Disconnected { .. } => member.engine.handle_disconnected(index, now, &mut fx),
            Event::Link(incoming) => {
                if let Incoming::Sent { key, .. } = incoming {
                    self.inversions.end(node, peer, key);
                }
                return self.bring(node, peer, incoming);
            }
        }
        member.forget_unnamed();
        self.pending.push_back((node, fx));
    }

    fn hear_hostile(&mut self, node: usize, peer: usize, event: Event) {
        let (Actor::Hostile(hostile), Some(wire)) = (&mut self.actors[node], &mut self.wire) else { return };
        match event {
            Event::Connected { .. } => {
                let greeting = hostile.greet();
                wire.say(node, peer, greeting);
            }
            Event::Link(Incoming::Request { key, request }) => {
                if let Answer::Reply(reply) = hostile.answer(&request, &self.options) {
                    wire.say(node, peer, Outgoing::Reply { class: Class::High, key, reply });
                }
            }
            Event::Link(Incoming::Frame(frame)) => hostile.hear(frame),
            Event::Disconnected { .. } | Event::Link(_) => (),
        }
    }

    /// A hostile member's turn: it says what it has to.
    pub(super) fn hostile_turn(&mut self, node: usize) -> Result<(), String> {
        while self.hear_links(node)?
            | self.wire.as_mut().is_some_and(|wire| wire.speak(node))
            | self.transmit(node)
        {}
        self.arm(node);
        Ok(())
    }

    /// At rest connections are kept alive, and lost ones are dialled; that is all.
    pub(super) fn rest(&mut self) -> Result<(), String> {
        let span = Duration::from_secs(20);
        let before = self.wire.as_ref().map_or(0, |wire| wire.paths.carried().0);
        self.run_until(self.now + span)?;
        let sent = self.wire.as_ref().map_or(0, |wire| wire.paths.carried().0) - before;
        let links = (self.options.members * (self.options.members - 1)) as u64;
        let signs = span.as_nanos().div_ceil((self.options.links.idle_timeout / 3).as_nanos()) as u64;
        let allowed = links * Self::PER_SIGN * (signs + 1);
        if sent <= allowed {
            Ok(())
        } else {
            Err(format!("L2: {sent} datagrams in {span:?} of rest, allowed are {allowed}"))
        }
    }

    /// Datagrams that one sign of life, or one attempt to dial, may cost each side.
    const PER_SIGN: u64 = 4;

    /// Sends a member's datagrams; whether there were any.
    pub(super) fn transmit(&mut self, node: usize) -> bool {
        let (mut buffer, mut sent, clock) = (Vec::new(), false, self.clock(node));
        loop {
            let Some(wire) = &mut self.wire else { return false };
            let Some(lane) = wire.lane(node) else { return sent };
            lane.quic.begin_turn();
            let Some(transmit) = lane.quic.poll_transmit(clock, &mut buffer) else { return sent };
            sent = true;
            let Some(to) = node_at(transmit.to) else { continue };
            let mut arrivals = Vec::new();
            for datagram in buffer[..transmit.len].chunks(transmit.segment) {
                arrivals.extend(wire.paths.carry(node, to, datagram, self.now));
            }
            self.sniff(node, to, &buffer[..transmit.len], transmit.segment);
            self.record_bytes(&buffer[..transmit.len]);
            for (at, data) in arrivals {
                self.at(at, Happening::Datagram { from: node, to, data });
            }
        }
    }
}
