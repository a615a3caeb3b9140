//! Engines joined by an ideal link: every promise of the broadcast that needs no transport, over a link that is perfect,
//! lossy by connection (cut and joined again), or slow.

mod carrier;

use carrier::{Subnet, bytes, topic};
use corecast::config::{TopicConfig, Verdict};
use corecast::engine::Event;
use corecast::types::{Attribute, Class, HashKind, Slot, TopicId, Version};
use corecast::wire::{Change, Frame, Incoming, Update};

const TOPIC: TopicId = TopicId(1);

#[test]
fn a_small_artifact_is_pushed_to_every_member_once() {
    let mut subnet = Subnet::new(4, &topic());
    let id = subnet.broadcast(0, b"share");
    subnet.settle();
    for node in 1..4 {
        assert_eq!(subnet.delivered(node), [(id, bytes(b"share"))]);
    }
    assert_eq!(subnet.count(|counters| counters.pushes_sent), 3);
    assert_eq!(subnet.count(|counters| counters.requests_sent), 0);
}

#[test]
fn a_large_artifact_is_adverted_and_fetched_once() {
    let mut subnet = Subnet::new(4, &topic());
    let body = vec![7; 100_000];
    let id = subnet.broadcast(0, &body);
    subnet.settle();
    for node in 1..4 {
        assert_eq!(subnet.delivered(node), [(id, bytes(&body))]);
    }
    assert_eq!(subnet.count(|counters| counters.requests_sent), 3);
    assert_eq!(subnet.count(|counters| counters.bodies_received), 3);
}

#[test]
fn a_critical_artifact_is_pushed_whatever_its_size() {
    let mut subnet = Subnet::new(3, &topic().class(Class::Critical));
    let body = vec![7; 1_000_000];
    let id = subnet.broadcast(0, &body);
    subnet.settle();
    assert_eq!(subnet.delivered(1), [(id, bytes(&body))]);
    assert_eq!(subnet.delivered(2), [(id, bytes(&body))]);
    assert_eq!(subnet.count(|counters| counters.requests_sent), 0);
}

#[test]
fn aborting_before_a_peer_was_told_sends_it_nothing() {
    let mut subnet = Subnet::new(2, &topic());
    subnet.settle();
    let id = subnet.broadcast(0, b"share");
    subnet.abort(0, &id);
    subnet.settle();
    assert_eq!(subnet.delivered(1), []);
    assert_eq!(subnet.count(|counters| counters.pushes_sent + counters.clears_sent), 0);
}

#[test]
fn a_peer_that_was_told_hears_of_the_abort_and_its_replica_too() {
    let mut subnet = Subnet::new(2, &topic());
    let id = subnet.broadcast(0, b"share");
    subnet.settle();
    assert_eq!(subnet.delivered(1).len(), 1);
    subnet.abort(0, &id);
    subnet.settle();
    assert_eq!(subnet.events(1), [Event::Withdrawn { id }]);
    assert_eq!(subnet.pool_bytes(), 0);
}

#[test]
fn a_late_joiner_gets_the_active_set_and_nothing_aborted() {
    let mut subnet = Subnet::new(3, &topic());
    subnet.cut(0, 2);
    subnet.cut(1, 2);
    let kept = subnet.broadcast(0, b"kept");
    let gone = subnet.broadcast(0, b"gone");
    subnet.settle();
    subnet.abort(0, &gone);
    subnet.settle();
    subnet.join(0, 2);
    subnet.join(1, 2);
    subnet.settle();
    assert_eq!(subnet.delivered(2), [(kept, bytes(b"kept"))]);
}

#[test]
fn a_flapping_link_causes_no_second_body() {
    let mut subnet = Subnet::new(2, &topic());
    subnet.broadcast(0, &[7; 50_000]);
    subnet.settle();
    for _ in 0..5 {
        subnet.cut(0, 1);
        subnet.join(0, 1);
        subnet.settle();
    }
    assert_eq!(subnet.delivered(1).len(), 1);
    assert_eq!(subnet.count(|counters| counters.bodies_received), 1);
}

#[test]
fn what_was_aborted_while_a_peer_was_away_is_withdrawn_when_it_comes_back() {
    let mut subnet = Subnet::new(2, &topic());
    let id = subnet.broadcast(0, b"share");
    subnet.settle();
    assert_eq!(subnet.delivered(1).len(), 1);
    subnet.cut(0, 1);
    subnet.abort(0, &id);
    subnet.join(0, 1);
    subnet.settle();
    assert_eq!(subnet.events(1), [Event::Withdrawn { id }]);
}

#[test]
fn a_restarted_sender_with_a_smaller_set_leaves_no_ghosts() {
    let mut subnet = Subnet::new(2, &topic());
    let old: Vec<_> = (0..3u8).map(|n| subnet.broadcast(0, &[n; 10])).collect();
    subnet.settle();
    assert_eq!(subnet.delivered(1).len(), 3);
    subnet.restart(0);
    let new = subnet.broadcast(0, b"new");
    subnet.settle();
    let events = subnet.events(1);
    let withdrawn: Vec<_> = old.iter().map(|id| Event::Withdrawn { id: *id }).collect();
    assert!(withdrawn.iter().all(|event| events.contains(event)), "{events:?}");
    assert!(
        events.iter().any(|event| matches!(event, Event::Delivered { artifact, .. } if artifact.id == new))
    );
    assert_eq!(events.len(), 4);
}

#[test]
fn a_validated_artifact_survives_its_maker() {
    let mut subnet = Subnet::new(3, &topic());
    subnet.cut(0, 2);
    let id = subnet.broadcast(0, &[9; 5000]);
    subnet.settle();
    assert_eq!(subnet.delivered(1).len(), 1);
    subnet.cut(0, 1);
    subnet.validate(1, &id);
    subnet.settle();
    assert_eq!(subnet.delivered(2), [(id, bytes(&[9; 5000]))]);
}

#[test]
fn relaying_sends_no_body_twice() {
    let mut subnet = Subnet::new(4, &topic());
    let ids = [subnet.broadcast(0, b"small"), subnet.broadcast(1, &[3; 40_000])];
    subnet.settle();
    for node in 0..4 {
        for (id, _) in subnet.delivered(node) {
            subnet.validate(node, &id);
        }
    }
    subnet.settle();
    assert_eq!(subnet.count(|counters| counters.bodies_received), ids.len() as u64 * 3);
    assert_eq!(subnet.count(|counters| counters.relays), ids.len() as u64 * 3);
}

#[test]
fn a_filter_decides_what_is_fetched_and_is_asked_again_when_it_changed() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    let open = Arc::new(AtomicBool::new(false));
    let gate = open.clone();
    let config = topic().filter(move |advert| match advert.size {
        size if size > 10_000 => Verdict::Discard,
        _ if gate.load(Ordering::Relaxed) => Verdict::Want,
        _ => Verdict::Later,
    });
    let mut subnet = Subnet::new(2, &config);
    let wanted = subnet.broadcast(0, &[1; 5000]);
    subnet.broadcast(0, &[2; 50_000]);
    subnet.settle();
    assert_eq!(subnet.delivered(1), []);
    assert_eq!(subnet.count(|counters| counters.requests_sent), 0);
    open.store(true, Ordering::Relaxed);
    subnet.filter_changed(1);
    subnet.settle();
    assert_eq!(subnet.delivered(1), [(wanted, bytes(&[1; 5000]))]);
}

#[test]
fn a_consumer_that_keeps_everything_stops_only_its_own_topic_until_it_releases() {
    let mut config = topic();
    config.pending_bytes = 8 << 20;
    let mut subnet = Subnet::new(2, &config);
    subnet.open(&TopicConfig::new(TopicId(2), "other"));
    let ids: Vec<_> = (0..12u8).map(|n| subnet.broadcast(0, &vec![n; 1 << 20])).collect();
    subnet.settle();
    let first = subnet.delivered(1);
    assert_eq!(first.len(), 8);
    subnet.broadcast_on(TopicId(2), 0, b"other");
    subnet.settle();
    assert_eq!(subnet.events_on(TopicId(2), 1).len(), 1);
    for (id, _) in &first {
        subnet.release(1, id);
    }
    subnet.settle();
    assert_eq!(subnet.delivered(1).len(), ids.len() - first.len());
    assert_eq!(subnet.count(|counters| counters.bodies_received), 13);
}

#[test]
fn a_push_without_room_is_fetched_later() {
    let mut config = topic().class(Class::Critical);
    config.pending_bytes = 8 << 20;
    let mut subnet = Subnet::new(2, &config);
    let ids: Vec<_> = (0..10u8).map(|n| subnet.broadcast(0, &vec![n; 1 << 20])).collect();
    subnet.settle();
    let first = subnet.delivered(1);
    assert!(first.len() <= 8 && !first.is_empty());
    for (id, _) in &first {
        subnet.release(1, id);
    }
    subnet.settle();
    assert_eq!(first.len() + subnet.delivered(1).len(), ids.len());
}

#[test]
fn what_a_batch_has_no_room_for_goes_with_the_next() {
    // Adverts of 40 bytes or more each, and pushes of 1 KiB: three times what a batch holds.
    for (count, size, threshold) in [(5000u32, 8, 0), (200, 1 << 10, 4 << 10)] {
        let mut topic = topic();
        (topic.push_threshold, topic.slots) = (threshold, count);
        let mut subnet = Subnet::new(2, &topic);
        for number in 0..count {
            let mut body = vec![0; size];
            body[..4].copy_from_slice(&number.to_le_bytes());
            subnet.broadcast(0, &body);
        }
        let mut delivered = 0;
        while delivered < count as usize {
            subnet.settle();
            let arrived = subnet.delivered(1);
            assert!(!arrived.is_empty(), "{delivered} of {count} arrived");
            delivered += arrived.len();
            arrived.iter().for_each(|(id, _)| subnet.release(1, id));
        }
    }
}

#[test]
fn thousands_of_artifacts_come_and_go_and_leave_nothing() {
    let mut subnet = Subnet::new(4, &topic());
    for round in 0..50u32 {
        let ids: Vec<_> = (0..40u32)
            .map(|n| {
                let node = (n % 4) as usize;
                let size = if n % 5 == 0 { 3000 } else { 100 };
                let mut body = vec![n as u8; size];
                body[..4].copy_from_slice(&(round * 40 + n).to_le_bytes());
                (node, subnet.broadcast(node, &body))
            })
            .collect();
        if round % 2 == 0 {
            subnet.settle();
        }
        for (node, id) in ids {
            subnet.abort(node, &id);
        }
    }
    subnet.settle();
    (0..4).for_each(|node| drop(subnet.events(node)));
    subnet.settle();
    assert_eq!(subnet.pool_bytes(), 0);
    assert_eq!(subnet.count(|counters| counters.faults), 0);
    assert_eq!(TOPIC, topic().id);
}

#[test]
fn a_body_that_a_liar_called_small_is_not_fetched_over_and_over_without_room() {
    let mut config = topic();
    config.pending_bytes = 8 << 20;
    let mut subnet = Subnet::new(3, &config);
    let held: Vec<_> = (0..7u8).map(|n| subnet.broadcast(0, &vec![n; (1 << 20) + 100_000])).collect();
    subnet.settle();
    assert_eq!(subnet.delivered(1).len(), held.len());
    let before = subnet.count(|counters| counters.bodies_received);
    let body = vec![9; 1 << 20];
    let id = HashKind::Blake3.id(&body);
    let change = Change::Advert { id, size: 1, relayed: false, attribute: Attribute::EMPTY };
    let update = Update { topic: TOPIC, slot: Slot(0), version: Version(1), change };
    subnet.broadcast(0, &body);
    subnet.bring(2, 1, Incoming::Frame(Frame::Update(update)));
    subnet.settle();
    assert_eq!(subnet.delivered(1), []);
    // Node 2 takes it once; node 1 at most once, and then knows better.
    assert!(subnet.count(|counters| counters.bodies_received) - before <= 2);
    held.iter().for_each(|id| subnet.release(1, id));
    subnet.settle();
    assert_eq!(subnet.delivered(1), [(id, bytes(&body))]);
}
