//! Where artifacts are and where they waited, seen from outside, in real nodes.
#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod subnet;

use std::time::Duration;

use corecast::{
    ArtifactId, ArtifactState, BroadcastError, Class, Event, Happening, Stage, StageTime, Topic, TopicConfig,
    TopicId, TopicStats, Verdict,
};
use subnet::{Running, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);

fn topic() -> TopicConfig {
    TopicConfig::new(TopicId(1), "test").class(Class::High)
}

fn deliver(member: &Running) -> Event {
    member.deliveries.recv_timeout(PATIENCE).unwrap()
}

fn settles(topic: &Topic, holds: impl Fn(&TopicStats) -> bool) {
    wait_until("the figures settle", || holds(&topic.stats()));
}

#[test]
fn a_topic_counts_what_happens_to_its_artifacts() {
    let mut config = topic();
    config.queue = 2;
    let members = subnet::start(3, 1, &config);
    let maker = &members[0];
    // One that is pushed, and one that is asked for.
    let sizes = [100, config.push_threshold as usize + 1];
    let ids = sizes.map(|size| maker.topic.broadcast(vec![7; size]).unwrap());
    settles(&maker.topic, |stats| stats.counters.broadcasts == 2 && stats.gauges.active == 2);
    for member in &members[1..] {
        settles(&member.topic, |stats| stats.counters.delivered == 2 && stats.gauges.queued == 2);
        let stats = member.topic.stats();
        assert_eq!(stats.gauges.pending_bytes, (sizes[0] + sizes[1]) as u64);
        assert_eq!((stats.counters.requests_sent, stats.counters.bodies_received), (1, 2));
        for _ in sizes {
            let Event::Delivered { artifact, .. } = deliver(member) else { panic!("no delivery") };
            member.topic.release(&artifact.id).unwrap();
        }
        settles(&member.topic, |stats| stats.gauges.pending_bytes == 0 && stats.gauges.queued == 0);
    }
    settles(&maker.topic, |stats| stats.counters.replies_sent == 2 && stats.gauges.backlog == 0);
    assert_eq!(maker.topic.stats().counters.pushes_sent, 2);
    assert_eq!(maker.topic.stats().counters.adverts_sent, 2);
    ids.iter().for_each(|id| maker.topic.abort(id).unwrap());
    settles(&maker.topic, |stats| stats.counters.aborts == 2 && stats.counters.clears_sent == 4);
    assert_eq!(maker.topic.stats().gauges.active, 0);
    let classes = maker.node.class_stats();
    assert_eq!(classes[Class::High], maker.topic.stats());
    assert_eq!(classes[Class::Bulk], TopicStats::default());
}

#[test]
fn a_consumer_that_takes_nothing_shows_in_its_own_topic() {
    let mut config = topic();
    config.queue = 2;
    let members = subnet::start(2, 1, &config);
    for byte in 0..10 {
        members[0].topic.broadcast(vec![byte; 100]).unwrap();
    }
    let waits = |stats: &TopicStats| (stats.gauges.queued, stats.gauges.waiting) == (2, 8);
    settles(&members[1].topic, waits);
    let report = members[1].node.topics().pop().unwrap();
    assert_eq!((report.id, report.name.as_str(), report.class), (TopicId(1), "test", Class::High));
    assert!(waits(&report.stats));
    (0..10).for_each(|_| drop(deliver(&members[1])));
    settles(&members[1].topic, |stats| stats.gauges.queued + stats.gauges.waiting == 0);
}

#[test]
fn a_broadcast_that_finds_no_room_is_counted() {
    let mut config = topic();
    config.slots = 1;
    let members = subnet::start(2, 1, &config);
    let topic = &members[0].topic;
    topic.broadcast("one").unwrap();
    assert_eq!(topic.broadcast("two"), Err(BroadcastError::Full));
    settles(topic, |stats| (stats.counters.broadcasts, stats.counters.broadcasts_refused) == (1, 1));
}

fn time(member: &Running, stage: Stage) -> StageTime {
    *member.node.stages().of(Class::High, stage).unwrap()
}

#[test]
fn every_stage_that_an_artifact_passes_is_measured() {
    let config = topic();
    let members = subnet::start(2, 1, &config);
    let (maker, taker) = (&members[0], &members[1]);
    // One that is pushed in a batch; one that is named in a batch and then asked for.
    for (size, flown) in [(100, 1), (config.push_threshold as usize + 1, 3)] {
        maker.topic.broadcast(vec![7; size]).unwrap();
        drop(deliver(taker));
        wait_until("it is acknowledged", || time(maker, Stage::Flight).count == flown);
    }
    let counts = |member| Stage::ALL.map(|stage| time(member, stage).count);
    assert_eq!(counts(maker), [2, 2, 3, 3, 0, 0, 0]);
    let [ingress, table, _, flight, admission, fetch, delivery] = counts(taker);
    assert_eq!((ingress, table, flight, admission, fetch, delivery), (0, 0, 0, 0, 1, 2));
    for time in maker.node.stages().rows() {
        assert!(time.p50 <= time.p99 && time.p99 <= time.max, "{time:?}");
        let of_links = matches!(time.stage, Stage::Egress | Stage::Flight);
        assert!(time.class == Class::High || time.count == 0 || of_links, "{time:?}");
    }
    // What is known by topic is the same where there is one topic.
    for time in taker.topic.stages().rows() {
        let of_links = matches!(time.stage, Stage::Egress | Stage::Flight);
        assert!(of_links || taker.node.stages().of(Class::High, time.stage) == Some(time), "{time:?}");
        assert!(!of_links || time.count == 0, "{time:?}");
    }
}

#[test]
fn a_consumer_that_is_late_shows_in_delivery() {
    let members = subnet::start(2, 1, &topic());
    members[0].topic.broadcast("late").unwrap();
    settles(&members[1].topic, |stats| stats.gauges.queued == 1);
    assert_eq!(time(&members[1], Stage::Delivery).count, 0);
    std::thread::sleep(Duration::from_millis(200));
    drop(deliver(&members[1]));
    let delivery = time(&members[1], Stage::Delivery);
    assert!(delivery.count == 1 && delivery.max >= Duration::from_millis(200), "{delivery:?}");
}

#[test]
fn an_artifact_that_its_filter_wants_later_shows_in_admission() {
    let members = subnet::start(2, 1, &topic());
    let (maker, taker) = (&members[0], &members[1]);
    taker.topic.set_filter(|_| Verdict::Later);
    maker.topic.broadcast("later").unwrap();
    settles(&taker.topic, |stats| stats.gauges.later == 1);
    std::thread::sleep(Duration::from_millis(200));
    taker.topic.remove_filter();
    drop(deliver(taker));
    let admission = time(taker, Stage::Admission);
    assert!(admission.count == 1 && admission.max >= Duration::from_millis(200), "{admission:?}");
    let fetch = time(taker, Stage::Fetch);
    assert!(fetch.count == 1 && fetch.max < admission.max, "{fetch:?}");
}

fn story(member: &Running, id: &ArtifactId) -> Vec<Happening> {
    member.topic.trace(id).unwrap().events.iter().map(|event| event.what).collect()
}

#[test]
fn a_trace_tells_the_story_on_both_sides_in_order() {
    let config = topic();
    let members = subnet::start(2, 2, &config);
    let (maker, taker) = (&members[0], &members[1]);
    let body = vec![7; config.push_threshold as usize + 1];
    let id = maker.topic.broadcast(body.clone()).unwrap();
    let Event::Delivered { artifact, .. } = deliver(taker) else { panic!("no delivery") };
    // The batch that named it, and its body.
    wait_until("it is acknowledged", || time(maker, Stage::Flight).count == 2);

    let trace = maker.topic.trace(&id).unwrap();
    assert_eq!((trace.state, trace.size), (Some(ArtifactState::Active), Some(body.len() as u32)));
    assert!(trace.slot.is_some() && trace.forgotten.is_none());
    let [peer] = trace.peers[..] else { panic!("one peer: {trace}") };
    assert_eq!(peer.peer, taker.node.id());
    assert!(peer.connected && peer.told && peer.acknowledged, "{trace}");
    assert!(!peer.sending && !peer.refused && !peer.advertises, "{trace}");
    assert!(trace.events.windows(2).all(|pair| pair[0].ago >= pair[1].ago), "{trace}");
    use Happening::*;
    assert_eq!(story(maker, &id), [Broadcast, Advertised, Answered, Acknowledged]);
    assert!(trace.events[1..].iter().all(|event| event.peer == Some(taker.node.id())));

    assert_eq!(taker.topic.trace(&id).unwrap().state, Some(ArtifactState::Delivered));
    assert_eq!(story(taker, &id), [Heard, Requested, Arrived, Delivered]);
    assert!(taker.topic.trace(&id).unwrap().peers[0].advertises);
    taker.topic.release(&artifact.id).unwrap();
    maker.topic.abort(&id).unwrap();
    wait_until("it is withdrawn", || taker.topic.trace(&id).unwrap().state.is_none());
    assert_eq!(story(taker, &id), [Heard, Requested, Arrived, Delivered, Released, Withdrawn]);
    assert_eq!(story(maker, &id)[4..], [Aborted]);
    let everywhere = maker.node.trace(&id).unwrap();
    assert_eq!(everywhere.iter().map(|trace| trace.topic).collect::<Vec<_>>(), [TopicId(1)]);
}

#[test]
fn a_trace_says_where_an_artifact_waits() {
    let members = subnet::start(2, 1, &topic());
    let (maker, taker) = (&members[0], &members[1]);
    let nothing = ArtifactId([9; 32]);
    assert!(maker.topic.trace(&nothing).unwrap().is_unknown());
    assert_eq!(maker.node.trace(&nothing).unwrap(), []);
    taker.topic.set_filter(|_| Verdict::Later);
    let id = maker.topic.broadcast("later").unwrap();
    let state = |id| taker.topic.trace(id).unwrap().state;
    wait_until("it waits", || state(&id) == Some(ArtifactState::Later));
    assert_eq!(story(taker, &id), [Happening::Later]);
    taker.topic.remove_filter();
    drop(deliver(taker));
    let wanted = story(taker, &id);
    assert_eq!(
        wanted[1..],
        [Happening::Wanted, Happening::Requested, Happening::Arrived, Happening::Delivered]
    );
    let text = taker.topic.trace(&id).unwrap().to_string();
    assert!(
        text.contains("wanted later") && text.contains(&format!("arrived from {}", maker.node.id())),
        "{text}"
    );
}
