//! Lanes of one subnet in virtual time: the real engine over real QUIC with TLS at every node, joined by links in memory that
//! lose nothing. A node's turn is in the order of the shell's, so what is measured of it is what a lane does, sockets apart.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    reason = "shared by test binaries and benches; a failure is the test's"
)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use corecast::config::{Granted, Limits, Settings, TopicConfig};
use corecast::engine::{Census, Command, Effect, Effects, Engine, EngineConfig, Event};
use corecast::metrics::EngineCounters;
use corecast::quic::{self, Identity, Quic, QuicConfig, QuicCounters};
use corecast::types::{
    ArtifactId, Attribute, HashKind, Instant, Member, Membership, PeerIndex, Received, RegistryVersion,
    TopicId, Transmit, Verified,
};
use corecast::wire::Hello;

pub const TOPIC: TopicId = TopicId(1);

/// A step of a lane's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Receive,
    Commands,
    Timers,
    Links,
    Effects,
    Fill,
    Transmit,
    Deliver,
}

impl Step {
    pub const ALL: [Step; 8] = [
        Step::Receive,
        Step::Commands,
        Step::Timers,
        Step::Links,
        Step::Effects,
        Step::Fill,
        Step::Transmit,
        Step::Deliver,
    ];
}

/// Told before each step of a node, and with `None` after it.
pub type Probe = fn(Option<(usize, Step)>);

struct Lane {
    quic: Quic,
    engine: Engine,
    commands: VecDeque<Command>,
    effects: Effects,
    /// Kept, as a shell keeps its send buffers.
    buffer: Vec<u8>,
    delivered: Vec<ArtifactId>,
}

pub struct Mesh {
    lanes: Vec<Lane>,
    probe: Probe,
    now: Instant,
    in_flight: VecDeque<(Instant, usize, Received)>,
    /// Whether a node lets go of what was delivered to it, at once.
    pub releases: bool,
    /// Whether a node relays what was delivered to it.
    pub validates: bool,
}

impl Mesh {
    /// Time between two turns of a node that has work.
    const TURN: Duration = Duration::from_micros(25);
    /// What a link delays.
    const DELAY: Duration = Duration::from_micros(50);
    /// As the shell has them.
    const OUTGOING: usize = 64;
    const TRANSMITS: usize = 32;

    /// `nodes` lanes with one topic, all connected.
    pub fn new(nodes: usize, topic: &TopicConfig, probe: Probe) -> Mesh {
        let mut keys: Vec<Identity> =
            (1..=nodes).map(|n| Identity::from_seed([n as u8; 32]).unwrap()).collect();
        keys.sort_by_key(Identity::id);
        let member = |(n, key): (usize, &Identity)| Member { id: key.id(), addresses: vec![address(n)] };
        let members = keys.iter().enumerate().map(member).collect();
        let membership = Membership::new("mesh".into(), RegistryVersion(1), 1, members).unwrap();
        let (membership, epoch) = (Arc::new(membership), std::time::Instant::now());
        let lane = |(n, key): (usize, &Identity)| Lane::new(n, key, &membership, topic, epoch);
        let mut mesh = Mesh {
            lanes: keys.iter().enumerate().map(lane).collect(),
            probe,
            now: Instant::ZERO,
            in_flight: VecDeque::new(),
            releases: true,
            validates: false,
        };
        let all = nodes - 1;
        mesh.run(Duration::from_secs(10), |mesh| mesh.lanes.iter().all(|lane| lane.quic.connected() == all));
        mesh.run_for(Duration::from_millis(200));
        mesh
    }

    /// Makes an artifact active at the next turn.
    pub fn broadcast(&mut self, node: usize, body: Bytes) -> ArtifactId {
        let body = Verified::hash(HashKind::Blake3, body);
        let id = body.id();
        let (attribute, since) = (Attribute::EMPTY, self.now);
        self.command(node, Command::Broadcast { topic: TOPIC, body, attribute, since });
        id
    }

    pub fn abort(&mut self, node: usize, id: ArtifactId) {
        self.command(node, Command::Abort { topic: TOPIC, id });
    }

    pub fn command(&mut self, node: usize, command: Command) {
        self.lanes[node].commands.push_back(command);
    }

    /// What was delivered to a node since it was asked last.
    pub fn take_delivered(&mut self, node: usize) -> Vec<ArtifactId> {
        std::mem::take(&mut self.lanes[node].delivered)
    }

    pub fn delivered(&self, node: usize) -> usize {
        self.lanes[node].delivered.len()
    }

    pub fn census(&self, node: usize) -> Census {
        self.lanes[node].engine.census()
    }

    pub fn engine_counters(&self, node: usize) -> EngineCounters {
        *self.lanes[node].engine.counters()
    }

    pub fn quic_counters(&mut self, node: usize) -> QuicCounters {
        *self.lanes[node].quic.counters()
    }

    /// Turns all nodes until `done`, for at most `limit` of virtual time.
    pub fn run(&mut self, limit: Duration, mut done: impl FnMut(&Mesh) -> bool) {
        let end = self.now + limit;
        while !done(self) {
            let busy = self.turn();
            let next = if busy { None } else { self.next_time() };
            let soonest = self.now + Self::TURN;
            self.now = next.map_or(soonest, |next| next.max(soonest));
            assert!(self.now <= end, "not done within {limit:?}");
        }
    }

    /// Turns all nodes for `span` of virtual time.
    pub fn run_for(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            let busy = self.turn();
            let next = if busy { None } else { self.next_time() };
            let soonest = self.now + Self::TURN;
            self.now = next.map_or(soonest, |next| next.max(soonest)).min(end);
        }
    }

    fn next_time(&self) -> Option<Instant> {
        let deadlines = self.lanes.iter().filter_map(Lane::deadline);
        deadlines.chain(self.in_flight.front().map(|(at, ..)| *at)).min()
    }

    /// One turn of every node; whether one found work.
    pub fn turn(&mut self) -> bool {
        let mut busy = false;
        while self.in_flight.front().is_some_and(|(at, ..)| *at <= self.now) {
            let Some((_, to, received)) = self.in_flight.pop_front() else { break };
            (self.probe)(Some((to, Step::Receive)));
            self.lanes[to].quic.handle_received(self.now, received);
            (self.probe)(None);
            busy = true;
        }
        for node in 0..self.lanes.len() {
            busy |= self.turn_of(node);
        }
        busy
    }

    fn turn_of(&mut self, node: usize) -> bool {
        let (now, nodes, probe) = (self.now, self.lanes.len(), self.probe);
        let lane = &mut self.lanes[node];
        let mut busy = false;
        let mut step = |step: Step, lane: &mut Lane, work: &mut dyn FnMut(&mut Lane) -> bool| {
            probe(Some((node, step)));
            busy |= work(lane);
            probe(None);
        };
        step(Step::Commands, lane, &mut |lane| lane.take_commands(now));
        step(Step::Timers, lane, &mut |lane| lane.timers(now));
        step(Step::Links, lane, &mut |lane| lane.link_events(now));
        step(Step::Effects, lane, &mut |lane| lane.carry_out(now));
        step(Step::Fill, lane, &mut |lane| lane.fill(nodes, now));
        busy |= self.transmit(node);
        busy |= self.deliver(node);
        busy
    }

    fn transmit(&mut self, node: usize) -> bool {
        self.lanes[node].quic.begin_turn();
        for sent in 0..Self::TRANSMITS {
            let lane = &mut self.lanes[node];
            (self.probe)(Some((node, Step::Transmit)));
            let transmit = lane.quic.poll_transmit(self.now, &mut lane.buffer);
            (self.probe)(None);
            let Some(transmit) = transmit else { return sent > 0 };
            self.carry(node, &transmit);
        }
        true
    }

    /// A batch travels as the kernel would join it.
    fn carry(&mut self, from: usize, transmit: &Transmit) {
        let to = (0..self.lanes.len()).find(|node| address(*node) == transmit.to).unwrap();
        let data = BytesMut::from(&self.lanes[from].buffer[..transmit.len]);
        let received = Received { from: address(from), ecn: transmit.ecn, stride: transmit.segment, data };
        self.in_flight.push_back((self.now + Self::DELAY, to, received));
    }

    fn deliver(&mut self, node: usize) -> bool {
        let mut busy = false;
        loop {
            let lane = &mut self.lanes[node];
            (self.probe)(Some((node, Step::Deliver)));
            let event = lane.engine.poll_event(TOPIC, self.now);
            (self.probe)(None);
            let Some(event) = event else { return busy };
            busy = true;
            if let Event::Delivered { artifact, .. } = event {
                lane.delivered.push(artifact.id);
                if self.validates {
                    lane.commands.push_back(Command::Validate { topic: TOPIC, id: artifact.id });
                } else if self.releases {
                    lane.commands.push_back(Command::Release { topic: TOPIC, id: artifact.id });
                }
            }
        }
    }
}

impl Lane {
    /// Commands taken in one turn.
    const COMMANDS: usize = 256;

    fn new(
        node: usize,
        key: &Identity,
        membership: &Arc<Membership>,
        topic: &TopicConfig,
        epoch: std::time::Instant,
    ) -> Lane {
        let granted = Granted { receive: 8 << 20, send: 8 << 20 };
        let nodes = membership.members().len();
        let settings = Settings::default();
        let limits = Limits::derive(&settings, nodes, 1, granted);
        let hash_of = Arc::new(|_| Some(HashKind::Blake3));
        let config = QuicConfig {
            mtu: settings.mtu,
            stream_window: limits.stream_window,
            connection_window: limits.connection_window,
            send_window: limits.send_window,
            urgent_reserve: limits.urgent_reserve,
            uni_streams: limits.uni_streams,
            bidi_streams: limits.bidi_streams,
            idle_timeout: settings.idle_timeout,
            keep_alive: settings.idle_timeout / 5,
            artifact_limit: limits.artifact_bytes,
            pushes_in_assembly: limits.pushes_in_assembly,
            ..QuicConfig::new(key.clone(), membership.clone(), 0, hash_of, node as u64, epoch)
        };
        let hello =
            Hello { subnet: [0; 32], lanes: 1, lane: 0, registry: RegistryVersion(1), boot: node as u64 + 1 };
        let mut engine = Engine::new(EngineConfig {
            hello,
            members: membership.members().iter().map(|member| member.id).collect(),
            limits,
            relay_grace: settings.relay_grace,
            seed: node as u64,
        });
        assert!(engine.handle_topic(topic.clone()));
        Lane {
            quic: Quic::new(config).unwrap(),
            engine,
            commands: VecDeque::new(),
            effects: Effects::new(),
            buffer: Vec::with_capacity(64 << 10),
            delivered: Vec::new(),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let engine = self.engine.poll_timeout().map(|(at, _)| at);
        engine.into_iter().chain(self.quic.poll_timeout()).min()
    }

    fn take_commands(&mut self, now: Instant) -> bool {
        for taken in 0..Self::COMMANDS {
            let Some(command) = self.commands.pop_front() else { return taken > 0 };
            self.engine.handle_command(command, now, &mut self.effects);
        }
        true
    }

    fn timers(&mut self, now: Instant) -> bool {
        let mut busy = false;
        if self.quic.poll_timeout().is_some_and(|at| at <= now) {
            self.quic.handle_timeout(now);
            busy = true;
        }
        if self.engine.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.engine.handle_timeout(now, &mut self.effects);
            busy = true;
        }
        busy
    }

    fn link_events(&mut self, now: Instant) -> bool {
        let (engine, fx) = (&mut self.engine, &mut self.effects);
        let mut busy = false;
        while let Some((peer, event)) = self.quic.poll_event() {
            busy = true;
            match event {
                quic::Event::Connected { connection } => engine.handle_connected(peer, connection, now, fx),
                quic::Event::Disconnected { reason, .. } => panic!("a link of {peer:?} ended: {reason:?}"),
                quic::Event::Link(incoming) => engine.handle_link(peer, incoming, now, fx),
            }
        }
        busy
    }

    fn carry_out(&mut self, now: Instant) -> bool {
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Reset { peer, key } => self.quic.reset(peer, key),
                Effect::Disconnect { peer, code } => self.quic.disconnect(now, peer, code),
                Effect::Freed { .. } => (),
            }
        }
        false
    }

    fn fill(&mut self, nodes: usize, now: Instant) -> bool {
        let mut busy = false;
        for peer in (0..nodes as u16).map(PeerIndex) {
            if !self.engine.has_outgoing(peer) {
                continue;
            }
            for _ in 0..Mesh::OUTGOING {
                let room = self.quic.room(peer);
                if room.is_empty() {
                    self.engine.handle_full(peer);
                }
                match self.engine.poll_outgoing(peer, room, now) {
                    Some(outgoing) => self.quic.send(peer, outgoing),
                    None if self.quic.write(peer) => (),
                    None => break,
                }
                busy = true;
            }
        }
        busy
    }
}

fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1 + node as u8], 4100))
}
