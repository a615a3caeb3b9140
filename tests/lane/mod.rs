//! One engine, driven by hand.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "shared by several tests")]

use std::time::Duration;

use corecast::config::{Granted, Limits, Settings, TopicConfig};
use corecast::engine::{Effects, Engine, EngineConfig};
use corecast::types::{
    ArtifactId, Attribute, Class, Classes, ConnectionNumber, HashKind, Instant, NodeId, PeerIndex,
    RegistryVersion, Slot, StreamKey, TopicId, Version,
};
use corecast::wire::{Change, Frame, Hello, Incoming, Open, Outgoing, PushHead, Update};

pub const TOPIC: TopicId = TopicId(1);
pub const SIZE: u32 = 1000;
pub const SILENT: PeerIndex = PeerIndex(1);
pub const HONEST: PeerIndex = PeerIndex(2);

/// Between a silent member and an honest one.
pub struct Lane {
    pub engine: Engine,
    pub now: Instant,
}

impl Lane {
    /// With room for 64 bodies, which is as many as may be asked of one peer.
    pub fn new() -> Lane {
        Lane::with(|_| ())
    }

    /// With other settings of its topic.
    pub fn with(change: impl FnOnce(&mut TopicConfig)) -> Lane {
        let hello = |boot| Hello { subnet: [0; 32], lanes: 1, lane: 0, registry: RegistryVersion(1), boot };
        let granted = Granted { receive: 8 << 20, send: 8 << 20 };
        let limits = Limits::derive(&Settings::default(), 3, 1, granted);
        assert_eq!(limits.fetch_per_peer[Class::Normal], 64);
        let members = (0..3).map(|n| NodeId([n; 32])).collect();
        let relay_grace = Duration::from_millis(50);
        let mut engine = Engine::new(EngineConfig { hello: hello(1), members, limits, relay_grace, seed: 1 });
        let mut topic = TopicConfig::new(TOPIC, "test");
        topic.pending_bytes = 64 * u64::from(SIZE);
        change(&mut topic);
        assert!(engine.handle_topic(topic));
        let mut lane = Lane { engine, now: Instant::ZERO };
        for peer in [SILENT, HONEST] {
            lane.engine.handle_connected(peer, ConnectionNumber(1), lane.now, &mut Effects::new());
            lane.hear(peer, Frame::Hello(hello(u64::from(peer.0))));
            lane.hear(peer, Frame::Open(Open { topic: TOPIC, slots: 1000, artifact_bytes: 1 << 20 }));
        }
        lane
    }

    pub fn hear(&mut self, peer: PeerIndex, frame: Frame) {
        let frame = Incoming::Frame(frame.verified(HashKind::Blake3));
        self.engine.handle_link(peer, frame, self.now, &mut Effects::new());
    }

    /// A member says something of a slot.
    pub fn say(&mut self, peer: PeerIndex, slot: u32, version: u64, change: Change) {
        let (slot, version) = (Slot(slot), Version(version));
        self.hear(peer, Frame::Update(Update { topic: TOPIC, slot, version, change }));
    }

    pub fn name(&mut self, peer: PeerIndex, number: u32) -> ArtifactId {
        self.name_sized(peer, number, SIZE)
    }

    pub fn name_sized(&mut self, peer: PeerIndex, number: u32, size: u32) -> ArtifactId {
        let mut id = ArtifactId([peer.0 as u8; 32]);
        id.0[..4].copy_from_slice(&number.to_le_bytes());
        let change = Change::Advert { id, size, relayed: false, attribute: Attribute::EMPTY };
        self.say(peer, number, u64::from(number) + 1, change);
        id
    }

    /// A member begins to push a body.
    pub fn push(&mut self, peer: PeerIndex, number: u32, id: ArtifactId, size: u32) -> (StreamKey, PushHead) {
        let (slot, version) = (Slot(number), Version(u64::from(number) + 1));
        let head = PushHead { topic: TOPIC, slot, version, id, size, attribute: Attribute::EMPTY };
        let key = StreamKey(number.into());
        let started = Incoming::PushStarted { key, head: head.clone() };
        self.engine.handle_link(peer, started, self.now, &mut Effects::new());
        (key, head)
    }

    /// What is asked of `peer` within a time in which nobody answers.
    pub fn asked(&mut self, peer: PeerIndex, span: Duration) -> Vec<ArtifactId> {
        let (end, mut asked) = (self.now + span, Vec::new());
        loop {
            for link in [SILENT, HONEST] {
                while let Some(outgoing) = self.engine.poll_outgoing(link, Classes::ALL, self.now) {
                    if let Outgoing::Fetch { request, .. } = outgoing
                        && link == peer
                    {
                        asked.push(request.id);
                    }
                }
            }
            match self.engine.poll_timeout().filter(|(at, _)| *at <= end) {
                Some((at, _)) => self.now = self.now.max(at),
                None => break,
            }
            self.engine.handle_timeout(self.now, &mut Effects::new());
        }
        self.now = end;
        asked
    }
}
