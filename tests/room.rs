//! Room for received bodies, when a member names much and serves nothing.
#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

use std::time::Duration;

use corecast::config::{Granted, Limits, Settings, TopicConfig};
use corecast::engine::{Effects, Engine, EngineConfig};
use corecast::types::{
    ArtifactId, Attribute, Class, ConnectionNumber, Instant, NodeId, PeerIndex, RegistryVersion, Slot,
    TopicId, Version,
};
use corecast::wire::{Change, Frame, Hello, Incoming, Open, Outgoing, Update};

const TOPIC: TopicId = TopicId(1);
const SIZE: u32 = 1000;
const SILENT: PeerIndex = PeerIndex(1);
const HONEST: PeerIndex = PeerIndex(2);

struct Lane {
    engine: Engine,
    now: Instant,
}

impl Lane {
    /// With room for 64 bodies, which is as many as may be asked of one peer.
    fn new() -> Lane {
        let hello = |boot| Hello { subnet: [0; 32], lanes: 1, lane: 0, registry: RegistryVersion(1), boot };
        let granted = Granted { receive: 8 << 20, send: 8 << 20 };
        let limits = Limits::derive(&Settings::default(), 3, 1, granted);
        assert_eq!(limits.fetch_per_peer[Class::Normal], 64);
        let members = (0..3).map(|n| NodeId([n; 32])).collect();
        let relay_grace = Duration::from_millis(50);
        let mut engine = Engine::new(EngineConfig { hello: hello(1), members, limits, relay_grace, seed: 1 });
        let mut topic = TopicConfig::new(TOPIC, "test");
        topic.pending_bytes = 64 * u64::from(SIZE);
        assert!(engine.handle_topic(topic));
        let mut lane = Lane { engine, now: Instant::ZERO };
        for peer in [SILENT, HONEST] {
            lane.engine.handle_connected(peer, ConnectionNumber(1), lane.now, &mut Effects::new());
            lane.hear(peer, Frame::Hello(hello(u64::from(peer.0))));
            lane.hear(peer, Frame::Open(Open { topic: TOPIC, slots: 1000, artifact_bytes: 1 << 20 }));
        }
        lane
    }

    fn hear(&mut self, peer: PeerIndex, frame: Frame) {
        self.engine.handle_link(peer, Incoming::Frame(frame), self.now, &mut Effects::new());
    }

    fn name(&mut self, peer: PeerIndex, number: u32) -> ArtifactId {
        let mut id = ArtifactId([peer.0 as u8; 32]);
        id.0[..4].copy_from_slice(&number.to_le_bytes());
        let change = Change::Advert { id, size: SIZE, relayed: false, attribute: Attribute::EMPTY };
        let (slot, version) = (Slot(number), Version(u64::from(number) + 1));
        self.hear(peer, Frame::Update(Update { topic: TOPIC, slot, version, change }));
        id
    }

    /// What is asked of `peer` within a time in which nobody answers.
    fn asked(&mut self, peer: PeerIndex, span: Duration) -> Vec<ArtifactId> {
        let (end, mut asked) = (self.now + span, Vec::new());
        loop {
            for link in [SILENT, HONEST] {
                while let Some(outgoing) = self.engine.poll_outgoing(link, Class::Bulk, self.now) {
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

#[test]
fn what_nobody_can_be_asked_for_does_not_keep_its_room_for_ever() {
    let mut lane = Lane::new();
    // Half of it is asked for in vain and gives up its room, to the other half, which cannot be asked for.
    for number in 0..128 {
        lane.name(SILENT, number);
    }
    assert_eq!(lane.asked(SILENT, Duration::from_secs(10)).len(), 64);
    let wanted = lane.name(HONEST, 0);
    assert_eq!(lane.asked(HONEST, Duration::from_secs(10)), [wanted]);
}
