//! Real nodes in one process: real sockets on loopback, real TLS, pinned executors on io_uring.

mod subnet;

use std::time::Duration;

use corecast::{Attribute, BroadcastError, Class, Event, HashKind, RecvError, TopicConfig, TopicId};
use subnet::{Running, wait_until};

fn topic() -> TopicConfig {
    TopicConfig::new(TopicId(7), "test")
}

/// The next delivery, or a failure after ten seconds.
fn delivered(member: &Running) -> (corecast::Artifact, corecast::NodeId) {
    match member.deliveries.recv_timeout(Duration::from_secs(10)) {
        Ok(Event::Delivered { artifact, from }) => (artifact, from),
        other => panic!("expected a delivery, found {other:?}"),
    }
}

#[test]
fn small_and_large_artifacts_reach_every_member() {
    let subnet = subnet::start(4, 1, &topic());
    let small = subnet[0].topic.broadcast("a share").unwrap();
    let body = vec![42; 3_000_000];
    let large = subnet[1].topic.broadcast_with(body.clone(), Attribute::new(b"height 9").unwrap()).unwrap();
    for (index, member) in subnet.iter().enumerate() {
        let expected = 2 - usize::from(index < 2);
        for _ in 0..expected {
            let (artifact, from) = delivered(member);
            if artifact.id == small {
                assert_eq!((&artifact.bytes[..], from), (&b"a share"[..], subnet[0].node.id()));
            } else {
                assert_eq!((artifact.id, from), (large, subnet[1].node.id()));
                assert_eq!(artifact.attribute.as_bytes(), b"height 9");
                assert!(artifact.bytes == body);
            }
        }
        assert_eq!(member.deliveries.try_recv(), Err(RecvError::Empty));
    }
}

#[test]
fn every_lane_carries_its_share() {
    let subnet = subnet::start(3, 4, &topic().class(Class::High));
    let ids: Vec<_> =
        (0..64u32).map(|n| subnet[0].topic.broadcast(n.to_le_bytes().to_vec()).unwrap()).collect();
    let lanes: std::collections::BTreeSet<u16> = ids.iter().map(|id| id.lane(4)).collect();
    assert_eq!(lanes.len(), 4);
    for member in &subnet[1..] {
        let mut got: Vec<_> = ids.iter().map(|_| delivered(member).0.id).collect();
        got.sort();
        let mut expected = ids.clone();
        expected.sort();
        assert_eq!(got, expected);
    }
}

#[test]
fn a_critical_body_of_eight_mebibytes_is_pushed() {
    let subnet = subnet::start(3, 1, &topic().class(Class::Critical));
    let body = vec![1; 8 << 20];
    let id = subnet[2].topic.broadcast(body.clone()).unwrap();
    for member in &subnet[..2] {
        let (artifact, _) = delivered(member);
        assert_eq!(artifact.id, id);
        assert!(artifact.bytes == body);
    }
    wait_until("figures are published", || subnet[2].node.stats().engine.pushes_sent == 2);
    assert_eq!(subnet.iter().map(|member| member.node.stats().engine.requests_sent).sum::<u64>(), 0);
}

#[test]
fn an_aborted_artifact_is_withdrawn_and_its_slot_is_free_again() {
    let mut config = topic();
    config.slots = 1;
    let subnet = subnet::start(2, 1, &config);
    let id = subnet[0].topic.broadcast("first").unwrap();
    assert_eq!(subnet[0].topic.broadcast("second"), Err(BroadcastError::Full));
    assert_eq!(delivered(&subnet[1]).0.id, id);
    subnet[0].topic.abort(&id).unwrap();
    assert_eq!(subnet[1].deliveries.recv_timeout(Duration::from_secs(10)), Ok(Event::Withdrawn { id }));
    wait_until("the slot is free", || subnet[0].topic.broadcast("second").is_ok());
    delivered(&subnet[1]);
}

#[test]
fn an_artifact_above_the_limit_is_refused_with_the_limit() {
    let subnet = subnet::start(1, 1, &topic());
    let limit = subnet[0].topic.artifact_bytes();
    let size = limit as usize + 1;
    assert_eq!(subnet[0].topic.broadcast(vec![0; size]), Err(BroadcastError::TooLarge { size, limit }));
}

#[test]
fn a_topic_may_name_its_artifacts_by_sha_256() {
    let mut config = topic();
    config.hash = HashKind::Sha256;
    let subnet = subnet::start(2, 1, &config);
    let id = subnet[0].topic.broadcast(vec![5; 200_000]).unwrap();
    assert_eq!(id, HashKind::Sha256.id(&[5; 200_000]));
    assert_eq!(delivered(&subnet[1]).0.id, id);
}

#[test]
fn a_member_that_starts_late_receives_what_is_active() {
    let plan = subnet::plan(3, 1);
    let executors = subnet::executors();
    let first: Vec<Running> = (0..2).map(|index| plan.start(&executors, index, &topic())).collect();
    let kept = first[0].topic.broadcast(vec![1; 5000]).unwrap();
    let gone = first[0].topic.broadcast(vec![2; 5000]).unwrap();
    delivered(&first[1]);
    delivered(&first[1]);
    first[0].topic.abort(&gone).unwrap();
    let late = plan.start(&executors, 2, &topic());
    assert_eq!(delivered(&late).0.id, kept);
    assert_eq!(late.deliveries.recv_timeout(Duration::from_millis(200)), Err(RecvError::Empty));
}

#[test]
fn a_restarted_member_receives_what_is_active_and_others_go_on() {
    let plan = subnet::plan(3, 1);
    let executors = subnet::executors();
    let mut members: Vec<Running> = (0..3).map(|index| plan.start(&executors, index, &topic())).collect();
    let ids: Vec<_> = (0..20u8).map(|n| members[0].topic.broadcast(vec![n; 2000]).unwrap()).collect();
    ids.iter().for_each(|_| drop(delivered(&members[2])));
    let gone = members.pop().unwrap();
    assert!(gone.node.shutdown(Duration::from_secs(2)));
    members[1].topic.broadcast("meanwhile").unwrap();
    let back = plan.start(&executors, 2, &topic());
    let got: std::collections::BTreeSet<_> = (0..21).map(|_| delivered(&back).0.id).collect();
    assert!(ids.iter().all(|id| got.contains(id)));
}

#[test]
fn a_slow_consumer_loses_nothing_and_a_full_queue_wakes_the_lane_again() {
    let mut config = topic();
    config.queue = 4;
    let subnet = subnet::start(2, 2, &config);
    for n in 0..500u32 {
        subnet[0].topic.broadcast(n.to_le_bytes().to_vec()).unwrap();
    }
    std::thread::sleep(Duration::from_millis(100));
    for _ in 0..500 {
        let (artifact, _) = delivered(&subnet[1]);
        while subnet[1].topic.release(&artifact.id).is_err() {}
    }
    assert_eq!(subnet[1].deliveries.recv_timeout(Duration::from_millis(100)), Err(RecvError::Empty));
}

#[test]
fn events_can_be_awaited_without_any_runtime() {
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Wake, Waker};

    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let mut subnet = subnet::start(2, 1, &topic());
    let mut receiver = subnet.pop().unwrap();
    let id = subnet[0].topic.broadcast("awaited").unwrap();
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut next = pin!(receiver.deliveries.recv_async());
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let event = loop {
        match next.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(event) => break event,
            Poll::Pending => std::thread::park_timeout(Duration::from_secs(1)),
        }
        assert!(std::time::Instant::now() < deadline, "no event came");
    };
    assert!(matches!(event, Some(Event::Delivered { artifact, .. }) if artifact.id == id));
}

#[test]
fn after_shutdown_calls_answer_stopped_and_deliveries_end() {
    let mut subnet = subnet::start(2, 1, &topic());
    let Running { node, topic, deliveries } = subnet.pop().unwrap();
    assert!(node.shutdown(Duration::from_secs(2)));
    assert_eq!(deliveries.recv(), None);
    assert_eq!(topic.broadcast("late"), Err(BroadcastError::Stopped));
}

#[test]
fn a_relay_survives_its_maker() {
    let plan = subnet::plan(3, 1);
    let executors = subnet::executors();
    let mut members: Vec<Running> = (0..2).map(|index| plan.start(&executors, index, &topic())).collect();
    let id = members[0].topic.broadcast(vec![8; 9000]).unwrap();
    delivered(&members[1]);
    members[1].topic.validate(&id).unwrap();
    wait_until("it is relayed", || members[1].node.stats().engine.relays == 1);
    members.remove(0).node.shutdown(Duration::from_secs(2));
    let late = plan.start(&executors, 2, &topic());
    let (artifact, from) = delivered(&late);
    assert_eq!((artifact.id, from), (id, members[0].node.id()));
}

#[test]
fn an_inline_consumer_decides_on_the_lanes_own_thread() {
    use corecast::{Config, Disposition, Node};
    use std::sync::Mutex;
    use std::sync::mpsc;

    let (plan, executors) = (subnet::plan(2, 2), subnet::executors());
    let maker = plan.start(&executors, 0, &topic());
    let node = Node::start_on(&executors, Config::new(plan.identity(1), plan.membership)).unwrap();
    let (seen, events) = mpsc::channel();
    let seen = Mutex::new(seen);
    let inline = node
        .topic_inline(topic(), move |event: Event| {
            let thread = std::thread::current().name().unwrap_or_default().to_owned();
            let disposition = match &event {
                Event::Delivered { artifact, .. } if artifact.bytes == "relay" => Disposition::Validate,
                Event::Delivered { artifact, .. } if artifact.bytes == "keep" => Disposition::Keep,
                Event::Delivered { artifact, .. } if artifact.bytes == "panic" => panic!("as the test wants"),
                _ => Disposition::Release,
            };
            seen.lock().unwrap().send((thread, event)).unwrap();
            disposition
        })
        .unwrap();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let ids: Vec<_> =
        ["panic", "relay", "keep", "drop"].map(|text| maker.topic.broadcast(text).unwrap()).into();
    let mut delivered = Vec::new();
    for _ in 0..3 {
        let (thread, event) = events.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(thread.starts_with("corecast-"), "{thread}");
        let Event::Delivered { artifact, .. } = event else { panic!("{event:?}") };
        delivered.push(artifact.id);
    }
    wait_until("the panic was caught", || node.stats().engine.delivered == 4);
    std::panic::set_hook(hook);
    delivered.sort();
    let mut expected = ids[1..].to_vec();
    expected.sort();
    assert_eq!(delivered, expected);
    assert!(node.is_healthy());
    wait_until("one is relayed", || node.stats().engine.relays == 1);
    // What was kept is told of when it is withdrawn, and what was released is not.
    inline.abort(&ids[1]).unwrap();
    ids.iter().for_each(|id| maker.topic.abort(id).unwrap());
    let (_, event) = events.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(event, Event::Withdrawn { id: ids[2] });
}

#[test]
fn many_are_broadcast_together_and_each_is_taken_or_refused_by_itself() {
    use corecast::Settings;

    let (plan, executors) = (subnet::plan(2, 2), subnet::executors());
    let limit = Settings::default().artifact_bytes as usize;
    let mut narrow = topic();
    narrow.slots = 16;
    let maker = plan.start(&executors, 0, &narrow);
    let receiver = plan.start(&executors, 1, &topic());
    let text = |n: usize| bytes::Bytes::from(format!("message {n} {}", "x".repeat(n)));
    let mut artifacts: Vec<_> =
        (0..40).map(|n| (text(n), Attribute::new(n.to_string().as_bytes()).unwrap())).collect();
    artifacts[3].0 = bytes::Bytes::from(vec![0; limit + 1]);
    let outcomes = maker.topic.broadcast_all(artifacts.clone());
    assert_eq!(outcomes.len(), artifacts.len());
    assert_eq!(outcomes[3], Err(BroadcastError::TooLarge { size: limit + 1, limit: limit as u32 }));
    // Sixteen places in each of two lanes.
    let taken: Vec<_> = (0..40).filter_map(|n| Some((n, outcomes[n].ok()?))).collect();
    assert!((16..=32).contains(&taken.len()), "{}", taken.len());
    assert!(outcomes[4..].contains(&Err(BroadcastError::Full)));
    let mut missing = std::collections::BTreeMap::new();
    for (n, id) in taken {
        assert_eq!(id, HashKind::Blake3.id(&artifacts[n].0));
        missing.insert(id, n);
    }
    while !missing.is_empty() {
        let (artifact, _) = delivered(&receiver);
        let n = missing.remove(&artifact.id).unwrap();
        assert_eq!((artifact.bytes, artifact.attribute), artifacts[n]);
    }
}

#[test]
fn an_inline_consumer_hears_of_every_pause_after_events() {
    use corecast::{Config, Consumer, Disposition, Node};
    use std::sync::Mutex;
    use std::sync::mpsc::{Sender, channel};

    /// Passes on what came before each pause.
    struct Gatherer(Mutex<(Vec<Event>, Sender<Vec<Event>>)>);

    impl Consumer for Gatherer {
        fn handle_event(&self, event: Event) -> Disposition {
            self.0.lock().unwrap().0.push(event);
            Disposition::Release
        }

        fn handle_pause(&self) {
            let (gathered, sender) = &mut *self.0.lock().unwrap();
            sender.send(std::mem::take(gathered)).unwrap();
        }
    }

    let (plan, executors) = (subnet::plan(2, 1), subnet::executors());
    let maker = plan.start(&executors, 0, &topic());
    let node = Node::start_on(&executors, Config::new(plan.identity(1), plan.membership)).unwrap();
    let (sender, gathered) = channel();
    let _topic = node.topic_inline(topic(), Gatherer(Mutex::new((Vec::new(), sender)))).unwrap();
    let artifacts = (0..100u32).map(|n| (bytes::Bytes::copy_from_slice(&n.to_le_bytes()), Attribute::EMPTY));
    let sent = maker.topic.broadcast_all(artifacts).len();
    let mut seen = 0;
    while seen < sent {
        let run = gathered.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(!run.is_empty(), "a pause without events before it");
        seen += run.len();
    }
}

#[test]
fn handles_see_how_far_a_peer_is_behind_that_is_away_and_back_again() {
    let (plan, executors) = (subnet::plan(3, 2), subnet::executors());
    let mut members: Vec<Running> = (0..3).map(|index| plan.start(&executors, index, &topic())).collect();
    let make = |members: &[Running], from: u32| {
        for n in from..from + 40 {
            members[0].topic.broadcast(n.to_le_bytes().to_vec()).unwrap();
        }
    };
    let lag_of = |members: &[Running], peer| {
        let lags = members[0].topic.lag();
        assert_eq!(lags.len(), 2);
        lags.into_iter().find(|lag| lag.peer == peer).map(|lag| (lag.connected, lag.updates))
    };
    let (stays, leaves) = (members[1].node.id(), members[2].node.id());
    make(&members, 0);
    (0..40).for_each(|_| drop(delivered(&members[2])));
    wait_until("nobody is behind", || {
        [stays, leaves].map(|peer| lag_of(&members, peer)) == [Some((true, 0)); 2]
    });
    assert!(members.remove(2).node.shutdown(Duration::from_secs(5)));
    make(&members, 40);
    wait_until("one is behind with all that is active", || lag_of(&members, leaves) == Some((false, 80)));
    wait_until("the other is not", || lag_of(&members, stays) == Some((true, 0)));
    members.push(plan.start(&executors, 2, &topic()));
    (0..80).for_each(|_| drop(delivered(&members[2])));
    wait_until("it has caught up", || lag_of(&members, leaves) == Some((true, 0)));
}
