//! After a reconnect a sender tells what differs from what the peer still holds, and nothing else; and what a peer refuses to
//! hold comes back to the publisher.

mod carrier;

use std::collections::BTreeSet;

use carrier::{Subnet, bytes, topic};
use corecast::Refusal;
use corecast::config::{TopicConfig, Verdict};
use corecast::engine::Event;
use corecast::types::{
    ArtifactId, Attribute, Class, HashKind, NodeId, RegistryVersion, Slot, StreamKey, TopicId, Verified,
    Version,
};
use corecast::wire::{Change, Frame, Held, Hello, Incoming, Open, PushHead, Refused, Update};

const TOPIC: TopicId = TopicId(1);
/// Nodes of a [`Subnet`] start in order, and number their starts.
const BOOT_OF_0: u64 = 1;

/// Pushes, adverts and clears of all nodes.
fn told(subnet: &Subnet) -> [u64; 3] {
    [
        subnet.count(|counters| counters.pushes_sent),
        subnet.count(|counters| counters.adverts_sent),
        subnet.count(|counters| counters.clears_sent),
    ]
}

fn told_since(subnet: &Subnet, before: [u64; 3]) -> [u64; 3] {
    let now = told(subnet);
    std::array::from_fn(|kind| now[kind] - before[kind])
}

fn resumed(subnet: &Subnet) -> u64 {
    subnet.count(|counters| counters.slots_resumed)
}

fn rejoin(subnet: &mut Subnet) {
    subnet.cut(0, 1);
    subnet.join(0, 1);
    subnet.settle();
}

fn ids(delivered: &[(ArtifactId, bytes::Bytes)]) -> BTreeSet<ArtifactId> {
    delivered.iter().map(|(id, _)| *id).collect()
}

/// What node 0 says when it claims to hold slots of its peer's table.
fn held(boot: u64, slots: &[(u32, u64)]) -> Vec<Incoming> {
    let slots = slots.iter().map(|(slot, version)| (Slot(*slot), Version(*version)));
    let frames = Held::pack(TOPIC, boot, slots);
    frames.into_iter().map(|frame| Incoming::Frame(Frame::Held(frame))).collect()
}

/// Node 1 says to node 0 what it holds.
fn bring_held(subnet: &mut Subnet, boot: u64, slots: &[(u32, u64)]) {
    held(boot, slots).into_iter().for_each(|frame| subnet.bring(1, 0, frame));
}

#[test]
fn a_reconnect_with_ten_thousand_active_artifacts_retells_nothing_and_loses_nothing() {
    let mut config = topic();
    config.slots = 16_384;
    let mut subnet = Subnet::new(2, &config);
    let made: Vec<_> = (0..10_000u32).map(|n| subnet.broadcast(0, &n.to_le_bytes())).collect();
    subnet.settle();
    assert_eq!(subnet.delivered(1).len(), made.len());
    let before = told(&subnet);
    for round in 1..4 {
        rejoin(&mut subnet);
        assert_eq!(told_since(&subnet, before), [0, 0, 0]);
        assert_eq!(resumed(&subnet), round * 10_000);
    }
    assert_eq!(subnet.events(1), []);
    made.iter().for_each(|id| subnet.abort(0, id));
    subnet.settle();
    assert_eq!(subnet.events(1).len(), made.len(), "each is withdrawn: its slot was known to be held");
    assert_eq!(subnet.pool_bytes(), 0);
}

#[test]
fn exactly_what_changed_during_a_cut_is_told() {
    let mut subnet = Subnet::new(2, &topic());
    let made: Vec<_> = (0..100u8).map(|n| subnet.broadcast(0, &[n; 10])).collect();
    subnet.settle();
    assert_eq!(subnet.delivered(1).len(), 100);
    let before = told(&subnet);
    subnet.cut(0, 1);
    made[40..44].iter().for_each(|id| subnet.abort(0, id));
    let new = [subnet.broadcast(0, b"replaces 40"), subnet.broadcast(0, &[7; 10_000])];
    subnet.abort(0, &made[99]);
    subnet.join(0, 1);
    subnet.settle();
    assert_eq!(told_since(&subnet, before), [1, 1, 0]);
    assert_eq!(resumed(&subnet), 95);
    let events = subnet.events(1);
    let gone = |id: &ArtifactId| events.contains(&Event::Withdrawn { id: *id });
    assert!(made[40..44].iter().chain(&made[99..]).all(gone));
    let came = |id: &ArtifactId| {
        events.iter().any(|event| matches!(event, Event::Delivered { artifact, .. } if artifact.id == *id))
    };
    assert!(new.iter().all(came));
    assert_eq!(events.len(), 5 + 2);
}

#[test]
fn relays_are_not_retold_either_and_those_that_the_peer_made_are_not_told() {
    let mut subnet = Subnet::new(3, &topic());
    let made: Vec<_> = (0..3).flat_map(|node| [(node, subnet.broadcast(node, &[node as u8; 50]))]).collect();
    subnet.settle();
    for node in 0..3 {
        for (id, _) in subnet.delivered(node) {
            subnet.validate(node, &id);
        }
    }
    subnet.settle();
    let before = told(&subnet);
    rejoin(&mut subnet);
    let [pushes, adverts, _] = told_since(&subnet, before);
    assert_eq!([pushes, adverts], [0, 0]);
    for (maker, id) in &made {
        subnet.abort(*maker, id);
    }
    subnet.settle();
    assert_eq!(subnet.count(|counters| counters.bodies_received), 6);
}

#[test]
fn a_restarted_sender_tells_its_smaller_set_whole_and_leaves_no_ghosts() {
    let mut subnet = Subnet::new(2, &topic());
    let old: Vec<_> = (0..50u8).map(|n| subnet.broadcast(0, &[n; 10])).collect();
    subnet.settle();
    subnet.events(1);
    rejoin(&mut subnet);
    let before = (told(&subnet), resumed(&subnet));
    subnet.restart(0);
    // The same bodies in the same slots at the same versions as before, but of another start.
    assert_eq!(subnet.broadcast(0, &[0; 10]), old[0]);
    assert_eq!(subnet.broadcast(0, &[1; 10]), old[1]);
    subnet.settle();
    assert_eq!(told_since(&subnet, before.0), [2, 0, 0]);
    assert_eq!(resumed(&subnet), before.1);
    assert_eq!(subnet.count(|counters| counters.resumes_stale), 1);
    let withdrawn: Vec<_> = old.iter().map(|id| Event::Withdrawn { id: *id }).collect();
    let events = subnet.events(1);
    assert!(withdrawn[2..].iter().all(|event| events.contains(event)), "{events:?}");
    // From here on the new start is the one that is resumed, and nothing of the old one is named.
    rejoin(&mut subnet);
    assert_eq!(told_since(&subnet, before.0), [2, 0, 0]);
    assert_eq!(resumed(&subnet), before.1 + 2);
}

#[test]
fn a_restart_behind_a_cut_that_hides_the_greeting_resumes_nothing() {
    let mut subnet = Subnet::new(2, &topic());
    subnet.broadcast(0, b"old");
    subnet.settle();
    subnet.events(1);
    subnet.restart(0);
    let new = subnet.broadcast(0, b"new");
    // Its first update arrives, its greeting does not.
    let body = Verified::hash(HashKind::Blake3, bytes(b"new"));
    let change = Change::Push { attribute: Attribute::EMPTY, body };
    let update = Update { topic: TOPIC, slot: Slot(0), version: Version(1), change };
    subnet.bring(0, 1, Incoming::Frame(Frame::Update(update)));
    let before = told(&subnet);
    rejoin(&mut subnet);
    assert_eq!(told_since(&subnet, before), [1, 0, 0]);
    assert_eq!(ids(&subnet.delivered(1)), BTreeSet::from([new]));
}

#[test]
fn what_an_earlier_start_said_is_not_named_to_the_next_one() {
    let mut subnet = Subnet::new(2, &topic());
    subnet.broadcast(0, b"old");
    subnet.settle();
    subnet.events(1);
    subnet.restart(0);
    let new = subnet.broadcast(0, b"new");
    // Its greeting arrives, its update does not.
    let hello = Hello { subnet: [0; 32], lanes: 1, lane: 0, registry: RegistryVersion(1), boot: 3 };
    subnet.bring(0, 1, Incoming::Frame(Frame::Hello(hello)));
    rejoin(&mut subnet);
    assert_eq!((resumed(&subnet), subnet.count(|counters| counters.resumes_stale)), (0, 0));
    assert_eq!(ids(&subnet.delivered(1)), BTreeSet::from([new]));
}

#[test]
fn a_peer_is_told_of_what_it_made_before_a_restart_though_it_is_not_known_yet_that_it_restarted() {
    let mut subnet = Subnet::new(2, &topic());
    let id = subnet.broadcast(1, b"share");
    subnet.settle();
    assert_eq!(subnet.delivered(0).len(), 1);
    subnet.validate(0, &id);
    subnet.settle();
    subnet.restart(1);
    // What it listens to overtakes its greeting.
    let open = Open { topic: TOPIC, slots: 4096, artifact_bytes: 8 << 20 };
    subnet.bring(1, 0, Incoming::Frame(Frame::Open(open)));
    subnet.settle();
    assert_eq!(subnet.delivered(1), [(id, bytes(b"share"))]);
}

#[test]
fn a_restarted_receiver_holds_nothing_and_gets_everything() {
    let mut subnet = Subnet::new(2, &topic());
    let made: BTreeSet<_> = (0..50u8).map(|n| subnet.broadcast(0, &[n; 10])).collect();
    subnet.settle();
    subnet.events(1);
    subnet.restart(1);
    subnet.settle();
    assert_eq!(ids(&subnet.delivered(1)), made);
    assert_eq!(resumed(&subnet), 0);
}

#[test]
fn what_is_held_may_be_said_late_and_often_and_of_another_start() {
    let mut subnet = Subnet::new(2, &topic());
    let made: Vec<_> = (0..3u8).map(|n| subnet.broadcast(0, &[n; 10])).collect();
    subnet.settle();
    assert_eq!(subnet.delivered(1).len(), 3);
    subnet.abort(0, &made[0]);
    let new = subnet.broadcast(0, b"new");
    let all = [(0, 1), (1, 2), (2, 3), (70, 1)];
    bring_held(&mut subnet, BOOT_OF_0, &all);
    bring_held(&mut subnet, BOOT_OF_0, &all);
    bring_held(&mut subnet, BOOT_OF_0 + 100, &[(0, 5)]);
    bring_held(&mut subnet, BOOT_OF_0, &[(0, u64::MAX), (1, 0), (2, u64::MAX - 1), (65_535, 5)]);
    subnet.settle();
    assert_eq!((resumed(&subnet), subnet.count(|counters| counters.resumes_stale)), (0, 1));
    let events = subnet.events(1);
    assert!(events.contains(&Event::Withdrawn { id: made[0] }));
    assert!(
        matches!(&events[..], [_, Event::Delivered { artifact, .. }] if artifact.id == new),
        "{events:?}"
    );
    subnet.abort(0, &made[1]);
    subnet.settle();
    assert_eq!(subnet.events(1), [Event::Withdrawn { id: made[1] }]);
}

#[test]
fn a_peer_that_lies_about_what_it_holds_harms_only_itself() {
    let mut subnet = Subnet::new(3, &topic());
    subnet.settle();
    let id = subnet.broadcast(0, b"share");
    bring_held(&mut subnet, BOOT_OF_0, &[(0, 1)]);
    subnet.settle();
    assert_eq!((subnet.delivered(1), subnet.delivered(2).len()), (vec![], 1));
    subnet.abort(0, &id);
    subnet.settle();
    assert_eq!(subnet.count(|counters| counters.clears_sent), 2);
    let next = subnet.broadcast(0, b"another");
    subnet.settle();
    assert_eq!(ids(&subnet.delivered(1)), BTreeSet::from([next]));
}

#[test]
fn what_is_held_of_a_topic_that_is_not_open_is_ignored() {
    let mut subnet = Subnet::new(2, &topic());
    let frame = Held::pack(TopicId(9), BOOT_OF_0, [(Slot(0), Version(1))]).swap_remove(0);
    subnet.bring(1, 0, Incoming::Frame(Frame::Held(frame)));
    assert_eq!(subnet.count(|counters| counters.resumes_stale), 1);
}

// --- held by name, while the body is missing ---

#[test]
fn a_push_that_a_cut_broke_is_fetched_after_the_reconnect() {
    let mut subnet = Subnet::new(2, &topic().class(Class::Critical));
    let body = vec![7; 200_000];
    let id = subnet.broadcast(0, &body);
    // The head has arrived when the link breaks.
    let (slot, version, attribute) = (Slot(0), Version(1), Attribute::EMPTY);
    let head = PushHead { topic: TOPIC, slot, version, id, size: body.len() as u32, attribute };
    subnet.bring(0, 1, Incoming::PushStarted { key: StreamKey(1 << 40), head });
    rejoin(&mut subnet);
    assert_eq!(subnet.delivered(1), [(id, bytes(&body))]);
    assert_eq!((told(&subnet), resumed(&subnet)), ([0, 0, 0], 1));
    assert_eq!(subnet.count(|counters| counters.requests_sent), 1);
}

#[test]
fn a_fetch_that_a_cut_interrupted_goes_on_after_the_reconnect() {
    let mut subnet = Subnet::new(2, &topic());
    let body = vec![7; 200_000];
    let id = subnet.broadcast(0, &body);
    let change = Change::Advert { id, size: body.len() as u32, relayed: false, attribute: Attribute::EMPTY };
    let update = Update { topic: TOPIC, slot: Slot(0), version: Version(1), change };
    subnet.bring(0, 1, Incoming::Frame(Frame::Update(update)));
    subnet.say_in_vain(1, 0);
    rejoin(&mut subnet);
    assert_eq!(subnet.delivered(1), [(id, bytes(&body))]);
    assert_eq!((told(&subnet), resumed(&subnet)), ([0, 0, 0], 1));
}

#[test]
fn small_bodies_that_had_no_room_are_fetched_when_there_is_some_after_a_reconnect() {
    let mut config = topic();
    config.push_threshold = 2 << 20;
    config.pending_bytes = 8 << 20;
    let mut subnet = Subnet::new(2, &config);
    let made: BTreeSet<_> = (0..12u8).map(|n| subnet.broadcast(0, &vec![n; 1 << 20])).collect();
    subnet.settle();
    let first = subnet.delivered(1);
    assert!(first.len() <= 8 && !first.is_empty());
    let before = told(&subnet);
    rejoin(&mut subnet);
    assert_eq!((told_since(&subnet, before), resumed(&subnet)), ([0, 0, 0], 12));
    first.iter().for_each(|(id, _)| subnet.release(1, id));
    subnet.settle();
    let mut all = ids(&first);
    all.extend(ids(&subnet.delivered(1)));
    assert_eq!(all, made);
}

#[test]
fn what_a_filter_wants_later_is_fetched_after_a_reconnect() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    let open = Arc::new(AtomicBool::new(false));
    let gate = open.clone();
    let config =
        topic().filter(move |_| if gate.load(Ordering::Relaxed) { Verdict::Want } else { Verdict::Later });
    let mut subnet = Subnet::new(2, &config);
    let id = subnet.broadcast(0, b"share");
    subnet.settle();
    rejoin(&mut subnet);
    assert_eq!((subnet.delivered(1), resumed(&subnet)), (vec![], 1));
    open.store(true, Ordering::Relaxed);
    subnet.filter_changed(1);
    subnet.settle();
    assert_eq!(subnet.delivered(1), [(id, bytes(b"share"))]);
}

// --- refusals ---

const NARROW: TopicId = TopicId(2);
const NODE_1: NodeId = NodeId([1; 32]);

/// Two nodes, of which node 1 keeps four slots of each sender.
fn narrow() -> Subnet {
    let mut subnet = Subnet::new(2, &topic());
    let mut config = TopicConfig::new(NARROW, "narrow");
    subnet.open_at(0, &config);
    config.slots = 4;
    subnet.open_at(1, &config);
    subnet
}

#[test]
fn what_a_member_refuses_comes_back_to_its_publisher_once() {
    let mut subnet = narrow();
    let made: Vec<_> = (0..6u8).map(|n| subnet.broadcast_on(NARROW, 0, &[n; 10])).collect();
    subnet.settle();
    let refused = |id: ArtifactId| Event::Refused { id, by: NODE_1, reason: Refusal::SlotLimit };
    assert_eq!(subnet.events_on(NARROW, 0), [refused(made[4]), refused(made[5])]);
    assert_eq!(subnet.events_on(NARROW, 1).len(), 4);
    rejoin(&mut subnet);
    assert_eq!(subnet.count(|counters| counters.refused_by_peers), 4, "it is told again, and refuses again");
    assert_eq!(subnet.events_on(NARROW, 0), [], "but the publisher knows");
    let next = subnet.broadcast_on(NARROW, 0, b"next");
    subnet.settle();
    assert_eq!(subnet.events_on(NARROW, 0), [refused(next)]);
}

#[test]
fn a_refusal_of_what_is_aborted_by_then_is_not_told() {
    let mut subnet = narrow();
    let made: Vec<_> = (0..6u8).map(|n| subnet.broadcast_on(NARROW, 0, &[n; 10])).collect();
    subnet.settle();
    subnet.abort_on(NARROW, 0, &made[4]);
    let refused = Event::Refused { id: made[5], by: NODE_1, reason: Refusal::SlotLimit };
    assert_eq!(subnet.events_on(NARROW, 0), [refused]);
}

#[test]
fn a_flood_of_false_refusals_tells_the_publisher_nothing() {
    let mut subnet = Subnet::new(2, &topic());
    let kept = subnet.broadcast(0, b"kept");
    subnet.settle();
    let gone = subnet.broadcast(0, b"gone");
    subnet.abort(0, &gone);
    subnet.broadcast(0, b"not told yet");
    for n in 0..10_000u64 {
        let round = n / 4;
        let (slot, version) =
            [(0, round + 2), (1, round), (round as u32 + 2, 3), (u32::MAX, round)][n as usize % 4];
        let (topic, reason) = (TopicId(1 + u16::from(n % 100 == 99)), Refusal::ArtifactSize);
        let refused = Refused { topic, slot: Slot(slot), version: Version(version), reason };
        subnet.bring(1, 0, Incoming::Frame(Frame::Refused(refused)));
    }
    assert_eq!(subnet.events(0), []);
    assert_eq!(subnet.count(|counters| counters.refused_by_peers), 10_000);
    // What it may refuse it may refuse once.
    for _ in 0..100 {
        let refused =
            Refused { topic: TOPIC, slot: Slot(0), version: Version(1), reason: Refusal::ArtifactSize };
        subnet.bring(1, 0, Incoming::Frame(Frame::Refused(refused)));
    }
    let event = Event::Refused { id: kept, by: NODE_1, reason: Refusal::ArtifactSize };
    assert_eq!(subnet.events(0), [event]);
    assert_eq!(HashKind::Blake3.id(b"kept"), kept);
}
