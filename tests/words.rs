//! Several members' words on one artifact: none undoes what another's has brought about.
#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod lane;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;

use corecast::config::{Advert, FilterThread, Verdict};
use corecast::engine::{ArtifactState, Command, Effect, Effects, Event, Judged};
use corecast::proto::Question;
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
    assert!(matches!(lane.engine.poll_event(TOPIC, lane.now), Some(Event::Delivered { .. })));
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

/// The filter of the lane's topic is asked elsewhere.
fn asked_elsewhere() -> Lane {
    Lane::with(|topic| {
        topic.filter = Some(Arc::new(|_: &Advert| panic!("it is not asked here")));
        topic.filter_thread = FilterThread::Own;
    })
}

fn answer(lane: &mut Lane, question: &Question, verdict: Verdict) {
    let Question { ticket, advert } = question;
    let judged = Judged { id: advert.id, from: advert.from, ticket: *ticket, verdict: Some(verdict) };
    lane.engine.handle_command(Command::Judged { topic: TOPIC, judged }, lane.now, &mut Effects::new());
}

#[test]
fn a_pushed_body_is_let_go_before_its_verdict_and_fetched_after_it() {
    let mut lane = asked_elsewhere();
    let body = Bytes::from(vec![7; SIZE as usize]);
    let id = HashKind::Blake3.id(&body);
    lane.say(HONEST, 0, 1, Change::Push { attribute: Attribute::EMPTY, body });
    assert_eq!(lane.engine.pool_bytes(TOPIC), (0, 0));
    let question = lane.engine.poll_question(TOPIC).unwrap();
    assert_eq!((question.advert.id, question.advert.from), (id, of(HONEST)));
    assert_eq!(lane.asked(HONEST, HOUR), []);
    answer(&mut lane, &question, Verdict::Want);
    assert_eq!(lane.asked(HONEST, Duration::from_secs(1)), [id]);
}

#[test]
fn the_friendliest_verdict_from_elsewhere_counts_in_whatever_order_they_come() {
    for order in [[0, 1], [1, 0]] {
        let mut lane = asked_elsewhere();
        lane.say(SILENT, 0, 1, advert(ID, SIZE));
        lane.say(HONEST, 0, 1, advert(ID, SIZE - 1));
        let questions = [(); 2].map(|()| lane.engine.poll_question(TOPIC).unwrap());
        for at in order {
            answer(&mut lane, &questions[at], [Verdict::Discard, Verdict::Want][at]);
        }
        assert!(!lane.asked(HONEST, Duration::from_secs(9)).is_empty());
        assert_eq!(lane.engine.census().later, 0);
    }
}

#[test]
fn a_verdict_on_what_was_withdrawn_or_is_active_does_nothing() {
    let mut lane = asked_elsewhere();
    lane.say(HONEST, 0, 1, advert(ID, SIZE));
    let question = lane.engine.poll_question(TOPIC).unwrap();
    lane.say(HONEST, 0, 2, Change::Clear);
    answer(&mut lane, &question, Verdict::Want);
    assert_eq!((lane.asked(HONEST, HOUR), lane.engine.state_of(TOPIC, &ID)), (vec![], None));

    let body = Verified::hash(HashKind::Blake3, Bytes::from_static(b"made here, too"));
    lane.say(HONEST, 1, 3, advert(body.id(), SIZE));
    let question = lane.engine.poll_question(TOPIC).unwrap();
    let id = body.id();
    let (attribute, since) = (Attribute::EMPTY, lane.now);
    let broadcast = Command::Broadcast { topic: TOPIC, body, attribute, since };
    lane.engine.handle_command(broadcast, lane.now, &mut Effects::new());
    answer(&mut lane, &question, Verdict::Discard);
    assert_eq!(lane.engine.state_of(TOPIC, &id), Some(ArtifactState::Active));
}

#[test]
fn of_many_a_thousand_are_asked_again_at_a_time() {
    let asked = Arc::new(AtomicU32::new(0));
    let seen = asked.clone();
    let mut lane = Lane::with(|topic| {
        topic.filter = Some(Arc::new(move |_: &Advert| {
            seen.fetch_add(1, Ordering::Relaxed);
            Verdict::Later
        }));
    });
    (0..2500).for_each(|number| assert_ne!(lane.name(HONEST, number), ID));
    let named = asked.swap(0, Ordering::Relaxed);
    filter_changed(&mut lane);
    let mut steps = vec![asked.load(Ordering::Relaxed)];
    while let Some((at, "a filter is asked")) = lane.engine.poll_timeout() {
        assert!(at <= lane.now);
        lane.engine.handle_timeout(lane.now, &mut Effects::new());
        steps.push(asked.load(Ordering::Relaxed));
    }
    assert_eq!((steps, named), (vec![1024, 2048, 2500], 2500));
}
