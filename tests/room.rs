//! Room for received bodies, when a member names much and serves nothing.
#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

use std::time::Duration;

use bytes::Bytes;
use corecast::config::{Granted, Limits, Settings, TopicConfig};
use corecast::engine::{Effects, Engine, EngineConfig, Event};
use corecast::types::{
    ArtifactId, Attribute, Class, ConnectionNumber, HashKind, Instant, NodeId, PeerIndex, RegistryVersion,
    Slot, StreamKey, TopicId, Verified, Version,
};
use corecast::wire::{Change, Frame, Hello, Incoming, Open, Outgoing, PushHead, Update};

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
        self.name_sized(peer, number, SIZE)
    }

    fn name_sized(&mut self, peer: PeerIndex, number: u32, size: u32) -> ArtifactId {
        let mut id = ArtifactId([peer.0 as u8; 32]);
        id.0[..4].copy_from_slice(&number.to_le_bytes());
        let change = Change::Advert { id, size, relayed: false, attribute: Attribute::EMPTY };
        let (slot, version) = (Slot(number), Version(u64::from(number) + 1));
        self.hear(peer, Frame::Update(Update { topic: TOPIC, slot, version, change }));
        id
    }

    /// A member begins to push a body.
    fn push(&mut self, peer: PeerIndex, number: u32, id: ArtifactId, size: u32) -> (StreamKey, PushHead) {
        let (slot, version) = (Slot(number), Version(u64::from(number) + 1));
        let head = PushHead { topic: TOPIC, slot, version, id, size, attribute: Attribute::EMPTY };
        let key = StreamKey(number.into());
        self.engine.handle_link(peer, Incoming::PushStarted { key, head }, self.now, &mut Effects::new());
        (key, head)
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

#[test]
fn pushes_that_do_not_end_do_not_keep_their_room_for_ever() {
    let mut lane = Lane::new();
    for number in 0..64 {
        lane.push(SILENT, number, ArtifactId([number as u8; 32]), SIZE);
    }
    let wanted = lane.name(HONEST, 0);
    assert_eq!(lane.asked(HONEST, Duration::from_millis(900)), []);
    assert_eq!(lane.asked(HONEST, Duration::from_secs(1)), [wanted]);
}

#[test]
fn who_names_a_thousand_large_ones_does_not_hold_up_who_names_one() {
    let mut lane = Lane::new();
    for number in 0..1000 {
        lane.name_sized(SILENT, number, 64 * SIZE);
    }
    // It is known to be silent by then.
    lane.asked(SILENT, Duration::from_secs(5));
    let wanted = lane.name(HONEST, 0);
    assert_eq!(lane.asked(HONEST, Duration::from_secs(20)), [wanted]);
}

#[test]
fn a_body_that_lost_its_room_takes_it_back_when_it_comes() {
    let mut lane = Lane::new();
    let body = Verified::hash(HashKind::Blake3, Bytes::from(vec![7; 64 * SIZE as usize]));
    let (key, head) = lane.push(HONEST, 0, body.id(), 64 * SIZE);
    // Others wait for so long that they get the room.
    for number in 1..65 {
        lane.name(SILENT, number);
    }
    assert_eq!(lane.asked(SILENT, Duration::from_secs(3)).len(), 64);
    lane.engine.handle_link(HONEST, Incoming::Pushed { key, head, body }, lane.now, &mut Effects::new());
    assert!(matches!(lane.engine.poll_event(TOPIC), Some(Event::Delivered { .. })));
}

#[test]
fn what_needs_the_whole_room_is_not_overtaken_for_ever() {
    let mut lane = Lane::new();
    for number in 0..900 {
        lane.name(SILENT, number);
    }
    lane.asked(SILENT, Duration::from_millis(100));
    let wanted = lane.name_sized(HONEST, 0, 64 * SIZE);
    assert_eq!(lane.asked(HONEST, Duration::from_secs(4)), [wanted]);
}
