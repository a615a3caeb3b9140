//! Several members' words on one artifact: none undoes what another's has brought about.
#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod lane;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

use corecast::config::{Advert, Verdict};
use corecast::engine::{Command, Effect, Effects, Event};
use corecast::types::{ArtifactId, Attribute, Class, Classes, HashKind, NodeId, PeerIndex, Verified};
use corecast::wire::{Change, FetchRequest, Incoming, Outgoing, Reply};
use lane::{HONEST, Lane, SILENT, SIZE, TOPIC};

const ID: ArtifactId = ArtifactId([9; 32]);
const HOUR: Duration = Duration::from_secs(3600);

fn advert(id: ArtifactId, size: u32) -> Change {
    Change::Advert { id, size, relayed: false, attribute: Attribute::EMPTY }
}

fn of(peer: PeerIndex) -> NodeId {
    NodeId([peer.0 as u8; 32])
}

/// `Later` until the flag is set, then by sender.
fn filtered(then: impl Fn(&NodeId) -> Verdict + Send + Sync + 'static) -> (Lane, Arc<AtomicBool>) {
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    let lane = Lane::with(move |topic| {
        topic.filter = Some(Arc::new(move |advert: &Advert| match set.load(Ordering::Relaxed) {
            false => Verdict::Later,
            true => then(&advert.from),
        }));
    });
    (lane, flag)
}

fn filter_changed(lane: &mut Lane) {
    lane.engine.handle_command(Command::FilterChanged { topic: TOPIC }, lane.now, &mut Effects::new());
}

#[test]
fn what_is_wanted_on_one_word_is_not_discarded_on_another() {
    for (good, bad) in [(SILENT, HONEST), (HONEST, SILENT)] {
        let (mut lane, flag) =
            filtered(move |from| if *from == of(bad) { Verdict::Discard } else { Verdict::Want });
        lane.say(good, 0, 1, advert(ID, SIZE));
        lane.say(bad, 0, 1, advert(ID, SIZE - 1));
        flag.store(true, Ordering::Relaxed);
        filter_changed(&mut lane);
        assert_eq!(lane.asked(good, Duration::from_secs(9)), [ID]);
    }
}

#[test]
fn a_hanging_push_does_not_keep_what_another_named_before() {
    let (mut lane, flag) = filtered(|_| Verdict::Want);
    lane.say(HONEST, 0, 1, advert(ID, SIZE));
    flag.store(true, Ordering::Relaxed);
    // Before the engine is told.
    lane.push(SILENT, 0, ID, SIZE);
    filter_changed(&mut lane);
    assert_eq!(lane.asked(HONEST, Duration::from_secs(9)), [ID]);
}

#[test]
fn a_push_goes_on_beside_a_hanging_one_which_ends_with_it() {
    let mut lane = Lane::with(|topic| topic.class = Class::Critical);
    let body = Verified::hash(HashKind::Blake3, Bytes::from(vec![7; SIZE as usize]));
    let (hanging, _) = lane.push(SILENT, 0, body.id(), SIZE);
    let (key, head) = lane.push(HONEST, 1, body.id(), SIZE);
    assert_eq!(lane.engine.census().arriving, 2);
    let mut fx = Effects::new();
    lane.engine.handle_link(HONEST, Incoming::Pushed { key, head, body }, lane.now, &mut fx);
    assert_eq!(fx, [Effect::Reset { peer: SILENT, key: hanging }]);
    assert!(matches!(lane.engine.poll_event(TOPIC), Some(Event::Delivered { .. })));
    assert_eq!(lane.engine.census().arriving, 0);
    assert_eq!(lane.asked(HONEST, HOUR), []);
}

#[test]
fn who_began_to_push_what_is_fetched_is_asked_when_the_push_breaks() {
    let mut lane = Lane::new();
    lane.say(SILENT, 0, 1, advert(ID, SIZE));
    assert_eq!(lane.asked(SILENT, Duration::from_secs(1)), [ID]);
    let (key, head) = lane.push(HONEST, 0, ID, SIZE);
    let broken = Incoming::PushBroken { key, head };
    lane.engine.handle_link(HONEST, broken, lane.now, &mut Effects::new());
    assert_eq!(lane.asked(HONEST, Duration::from_secs(3)), [ID]);
}

#[test]
fn a_push_ends_when_the_body_comes_as_an_answer() {
    let mut lane = Lane::with(|topic| topic.class = Class::Critical);
    let body = Verified::hash(HashKind::Blake3, Bytes::from(vec![7; SIZE as usize]));
    let (pushed, _) = lane.push(SILENT, 0, body.id(), SIZE);
    lane.say(HONEST, 0, 1, advert(body.id(), SIZE));
    lane.now = lane.now + Duration::from_millis(60);
    lane.engine.handle_timeout(lane.now, &mut Effects::new());
    let mut fx = Effects::new();
    while let Some(outgoing) = lane.engine.poll_outgoing(HONEST, Classes::ALL, lane.now) {
        if let Outgoing::Fetch { key, .. } = outgoing {
            let reply = Reply::Found(body.clone());
            lane.engine.handle_link(HONEST, Incoming::Reply { key, reply }, lane.now, &mut fx);
        }
    }
    assert_eq!(fx, [Effect::Reset { peer: SILENT, key: pushed }]);
}

#[test]
fn a_request_that_its_peer_gives_up_is_forgotten() {
    let mut lane = Lane::new();
    for number in 0..1000 {
        let key = corecast::types::StreamKey(1 << 63 | number);
        let request = FetchRequest { topic: TOPIC, id: ID };
        lane.engine.handle_link(SILENT, Incoming::Request { key, request }, lane.now, &mut Effects::new());
        let given_up = Incoming::Sent { key, whole: false };
        lane.engine.handle_link(SILENT, given_up, lane.now, &mut Effects::new());
    }
    assert_eq!(lane.engine.census().replies, 0);
}
