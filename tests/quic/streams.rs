//! Frames, pushes and fetches between honest nodes.

use std::time::Duration;

use bytes::Bytes;
use corecast::quic::{Quic, QuicConfig};
use corecast::types::{
    ArtifactId, Attribute, Class, Classes, HashKind, Slot, StreamKey, TopicId, Verified, Version,
};
use corecast::wire::{
    BatchBuilder, Change, CloseCode, FetchRequest, Frame, Incoming, Outgoing, PushHead, Reply, Update,
};

use super::net::*;

const SECOND: Duration = Duration::from_secs(1);

fn update(slot: u32, change: Change) -> Frame {
    Frame::Update(Update { topic: TOPIC, slot: Slot(slot), version: Version(u64::from(slot)), change })
}

pub(crate) fn small(slot: u32) -> Frame {
    update(slot, Change::Push { attribute: Attribute::EMPTY, body: body(slot.into(), 900) })
}

pub(crate) fn batch(class: Class, frames: &[Frame]) -> Outgoing {
    let mut builder = BatchBuilder::new(64 << 10);
    frames.iter().for_each(|frame| builder.push(frame));
    Outgoing::Batch { class, bytes: builder.finish() }
}

fn head(topic: TopicId, body: &Bytes) -> PushHead {
    PushHead {
        topic,
        slot: Slot(1),
        version: Version(1),
        id: HashKind::Blake3.id(body),
        size: body.len() as u32,
        attribute: Attribute::EMPTY,
    }
}

pub(crate) fn push(class: Class, key: u64, body: Bytes) -> Outgoing {
    Outgoing::Push { class, key: StreamKey(key), head: head(TOPIC, &body).encode(), body }
}

pub(crate) fn fetch(key: u64, id: ArtifactId, limit: u32) -> Outgoing {
    let request = FetchRequest { topic: TOPIC, id };
    Outgoing::Fetch { class: Class::Normal, key: StreamKey(key), request, limit }
}

pub(crate) fn answer(key: StreamKey, reply: Reply<Bytes>) -> Outgoing {
    Outgoing::Reply { class: Class::Normal, key, reply }
}

fn all_but(classes: &[Class]) -> Classes {
    Classes::that(|class| !classes.contains(&class))
}

fn frames(net: &Net, node: usize, from: usize) -> usize {
    net.incoming(node, peer(from)).filter(|incoming| matches!(incoming, Incoming::Frame(_))).count()
}

fn pushed(net: &Net, node: usize, from: usize) -> Vec<ArtifactId> {
    let of = |incoming: &Incoming| match incoming {
        Incoming::Pushed { body, .. } => Some(body.id()),
        _ => None,
    };
    net.incoming(node, peer(from)).filter_map(of).collect()
}

fn sent(net: &Net, node: usize, to: usize) -> Vec<(u64, bool)> {
    let of = |incoming: &Incoming| match incoming {
        Incoming::Sent { key, whole } => Some((key.0, *whole)),
        _ => None,
    };
    net.incoming(node, peer(to)).filter_map(of).collect()
}

fn started(net: &Net, node: usize, from: usize) -> Option<StreamKey> {
    net.incoming(node, peer(from)).find_map(|incoming| match incoming {
        Incoming::PushStarted { key, .. } => Some(*key),
        _ => None,
    })
}

fn request(net: &Net, node: usize, from: usize) -> Option<StreamKey> {
    net.incoming(node, peer(from)).find_map(|incoming| match incoming {
        Incoming::Request { key, .. } => Some(*key),
        _ => None,
    })
}

fn replies(net: &Net, node: usize, from: usize) -> Vec<Reply<ArtifactId>> {
    let of = |incoming: &Incoming| match incoming {
        Incoming::Reply { reply: Reply::Found(body), .. } => Some(Reply::Found(body.id())),
        Incoming::Reply { reply: Reply::NotFound, .. } => Some(Reply::NotFound),
        Incoming::Reply { reply: Reply::Busy, .. } => Some(Reply::Busy),
        Incoming::Reply { reply: Reply::Broken, .. } => Some(Reply::Broken),
        _ => None,
    };
    net.incoming(node, peer(from)).filter_map(of).collect()
}

fn send(net: &mut Net, from: usize, to: usize, outgoing: Outgoing) {
    net.nodes[from].queue.push((peer(to), outgoing));
}

/// A pair whose configuration is `change`d, connected.
fn pair(path: Path, change: impl Fn(&mut QuicConfig)) -> Net {
    let mut net = Net::new(path);
    let keys = keys(2);
    for (i, key) in keys.iter().enumerate() {
        let mut config = config(&net, key, &record(1, &ids(&keys)), i as u64);
        change(&mut config);
        net.add(address(i), Machine::Quic(Box::new(Quic::new(config).unwrap())));
    }
    net.run(SECOND, |net| net.connected(0) == 1 && net.connected(1) == 1);
    net
}

/// How long two members 100 ms apart take for eight bodies of 1 MiB, when the dialled one starts so much later.
fn time_after_start_of_the_other(late: Duration) -> Duration {
    let (mut net, _) = mesh(Path { delay: 50 * SECOND / 1000, ..PERFECT }, 2);
    let dialled = std::mem::replace(&mut net.nodes[1].machine, Machine::Off);
    net.run_for(late);
    net.nodes[1].machine = dialled;
    net.run(3 * SECOND, |net| net.connected(0) == 1 && net.connected(1) == 1);
    let begin = net.now;
    for key in 0..8 {
        send(&mut net, 0, 1, push(Class::Bulk, key, body(key, 1 << 20)));
    }
    net.run(60 * SECOND, |net| pushed(net, 1, 0).len() == 8);
    net.now.saturating_since(begin)
}

#[test]
fn a_member_that_started_late_is_sent_to_no_slower_for_it() {
    let (at_once, late) = (Duration::ZERO, 100 * SECOND / 1000);
    let (usual, after_loss) = (time_after_start_of_the_other(at_once), time_after_start_of_the_other(late));
    assert!(after_loss <= usual * 5 / 4, "{usual:?} and {after_loss:?}");
}

#[test]
fn a_batch_arrives_as_its_frames_in_order() {
    let (mut net, _) = connected(PERFECT, 2);
    let frames: Vec<Frame> = (0..60).map(small).collect();
    send(&mut net, 0, 1, batch(Class::High, &frames));
    send(&mut net, 1, 0, batch(Class::High, &frames));
    for (node, from) in [(1, 0), (0, 1)] {
        net.run(SECOND, |net| super::streams::frames(net, node, from) == 60);
        let arrived = net.incoming(node, peer(from)).map(|incoming| match incoming {
            Incoming::Frame(frame) => frame.clone().map_body(Verified::into_bytes),
            other => panic!("{other:?}"),
        });
        assert_eq!(arrived.collect::<Vec<_>>(), frames);
    }
}

#[test]
fn a_thousand_batches_survive_loss_and_reordering() {
    let (mut net, _) = connected(LOSSY, 3);
    for slot in 0..1000 {
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            send(&mut net, from, to, batch(Class::Normal, &[small(slot)]));
        }
    }
    net.run(60 * SECOND, |net| [(1, 0), (2, 1), (0, 2)].iter().all(|&(n, f)| frames(net, n, f) == 1000));
    assert!(net.quic(0).counters().traffic.lost_packets > 0);
}

#[test]
fn a_large_push_arrives_whole_and_is_acknowledged() {
    for (path, len) in [(PERFECT, 8 << 20), (LOSSY, 1 << 20)] {
        let (mut net, _) = connected(path, 2);
        let body = body(1, len);
        let id = HashKind::Blake3.id(&body);
        send(&mut net, 1, 0, push(Class::Critical, 5, body));
        net.run(60 * SECOND, |net| !sent(net, 1, 0).is_empty());
        assert_eq!(pushed(&net, 0, 1), [id]);
        assert_eq!(sent(&net, 1, 0), [(5, true)]);
        assert!(started(&net, 0, 1).is_some());
    }
}

#[test]
fn a_fetch_is_answered_with_the_body() {
    let (mut net, _) = connected(LOSSY, 2);
    let body = body(1, 3 << 20);
    let id = HashKind::Blake3.id(&body);
    send(&mut net, 0, 1, fetch(9, id, 4 << 20));
    net.run(SECOND, |net| request(net, 1, 0).is_some());
    let key = request(&net, 1, 0).unwrap();
    send(&mut net, 1, 0, answer(key, Reply::Found(body)));
    net.run(60 * SECOND, |net| !sent(net, 1, 0).is_empty() && !replies(net, 0, 1).is_empty());
    assert_eq!(replies(&net, 0, 1), [Reply::Found(id)]);
    assert_eq!(sent(&net, 1, 0), [(key.0, true)]);
    assert!(net.incoming(0, peer(1)).any(|incoming| matches!(incoming, Incoming::Progress { .. })));
}

#[test]
fn a_fetch_without_a_body_says_why() {
    for (reply, heard) in [(Reply::NotFound, Reply::NotFound), (Reply::Busy, Reply::Busy)] {
        let (mut net, _) = connected(PERFECT, 2);
        send(&mut net, 1, 0, fetch(9, ArtifactId([1; 32]), 1000));
        net.run(SECOND, |net| request(net, 0, 1).is_some());
        let key = request(&net, 0, 1).unwrap();
        send(&mut net, 0, 1, answer(key, reply));
        net.run(SECOND, |net| !replies(net, 1, 0).is_empty());
        assert_eq!(replies(&net, 1, 0), [heard]);
    }
}

#[test]
fn a_reply_above_the_limit_that_was_asked_for_is_broken_and_nothing_else() {
    let (mut net, _) = connected(PERFECT, 2);
    send(&mut net, 0, 1, fetch(9, ArtifactId([1; 32]), 1000));
    net.run(SECOND, |net| request(net, 1, 0).is_some());
    let key = request(&net, 1, 0).unwrap();
    send(&mut net, 1, 0, answer(key, Reply::Found(body(1, 1001))));
    net.run(SECOND, |net| !replies(net, 0, 1).is_empty());
    assert_eq!(replies(&net, 0, 1), [Reply::Broken]);
    net.run_for(SECOND);
    assert_eq!(net.connected(0), 1);
    assert!(!net.quic(0).room(peer(1)).is_empty());
}

#[test]
fn many_fetches_wait_for_stream_credit() {
    let mut net = pair(PERFECT, |config| config.bidi_streams = 2);
    for key in 1..=20 {
        send(&mut net, 0, 1, fetch(key, ArtifactId([key as u8; 32]), 1000));
    }
    let mut answered = 0;
    net.run(10 * SECOND, |net| {
        let of = |incoming: &Incoming| match incoming {
            Incoming::Request { key, .. } => Some(*key),
            _ => None,
        };
        let requests: Vec<StreamKey> = net.incoming(1, peer(0)).filter_map(of).collect();
        for &key in &requests[answered..] {
            send(net, 1, 0, answer(key, Reply::Found(body(1, 100))));
        }
        answered = requests.len();
        replies(net, 0, 1).len() == 20
    });
}

#[test]
fn a_push_that_its_sender_abandons_is_reported_broken_and_not_as_sent() {
    let (mut net, _) = connected(PERFECT, 2);
    send(&mut net, 0, 1, push(Class::Bulk, 5, body(1, 8 << 20)));
    net.run(SECOND, |net| started(net, 1, 0).is_some());
    let before = net.nodes[1].bytes_in;
    net.quic(0).reset(peer(1), StreamKey(5));
    net.run_for(SECOND);
    assert!(net.nodes[1].bytes_in - before < 300_000, "what was in flight may arrive, no more");
    assert!(matches!(net.incoming(1, peer(0)).last(), Some(Incoming::PushBroken { .. })));
    assert_eq!(sent(&net, 0, 1), []);
    assert_eq!(pushed(&net, 1, 0), []);
}

#[test]
fn a_push_that_is_refused_stops_and_its_sender_learns_it() {
    let (mut net, _) = connected(PERFECT, 2);
    send(&mut net, 0, 1, push(Class::Bulk, 5, body(1, 8 << 20)));
    net.run(SECOND, |net| started(net, 1, 0).is_some());
    let key = started(&net, 1, 0).unwrap();
    net.quic(1).reset(peer(0), key);
    net.run_for(SECOND);
    assert_eq!(sent(&net, 0, 1), [(5, false)]);
    assert!(net.nodes[1].bytes_in < 2 << 20);
    assert_eq!(net.incoming(1, peer(0)).count(), 1, "PushStarted alone");
}

#[test]
fn a_fetch_that_is_abandoned_stops_the_reply() {
    let (mut net, _) = connected(PERFECT, 2);
    send(&mut net, 0, 1, fetch(9, ArtifactId([1; 32]), 8 << 20));
    net.run(SECOND, |net| request(net, 1, 0).is_some());
    let key = request(&net, 1, 0).unwrap();
    send(&mut net, 1, 0, answer(key, Reply::Found(body(1, 8 << 20))));
    net.run(SECOND, |net| net.incoming(0, peer(1)).count() > 0);
    net.quic(0).reset(peer(1), StreamKey(9));
    net.run_for(SECOND);
    assert_eq!(sent(&net, 1, 0), [(key.0, false)]);
    assert_eq!(replies(&net, 0, 1), []);
    assert!(net.nodes[0].bytes_in < 2 << 20);
}

#[test]
fn a_fetch_that_is_abandoned_before_it_is_answered_needs_no_answer() {
    let (mut net, _) = connected(PERFECT, 2);
    send(&mut net, 0, 1, fetch(9, ArtifactId([1; 32]), 1000));
    net.run(SECOND, |net| request(net, 1, 0).is_some());
    net.quic(0).reset(peer(1), StreamKey(9));
    net.run_for(SECOND);
    let key = request(&net, 1, 0).unwrap();
    send(&mut net, 1, 0, answer(key, Reply::Found(body(1, 500))));
    net.run_for(SECOND);
    assert_eq!(sent(&net, 1, 0), [(key.0, false)]);
    assert_eq!(replies(&net, 0, 1), []);
}

#[test]
fn a_reply_that_its_sender_abandons_is_broken() {
    let (mut net, _) = connected(PERFECT, 2);
    send(&mut net, 0, 1, fetch(9, ArtifactId([1; 32]), 8 << 20));
    net.run(SECOND, |net| request(net, 1, 0).is_some());
    let key = request(&net, 1, 0).unwrap();
    send(&mut net, 1, 0, answer(key, Reply::Found(body(1, 8 << 20))));
    net.run(SECOND, |net| net.incoming(0, peer(1)).count() > 0);
    net.quic(1).reset(peer(0), key);
    net.run(SECOND, |net| !replies(net, 0, 1).is_empty());
    assert_eq!(replies(&net, 0, 1), [Reply::Broken]);
    assert_eq!(sent(&net, 1, 0), []);
}

#[test]
fn an_event_that_is_queued_when_its_stream_is_abandoned_does_not_come() {
    let (mut net, _) = connected(PERFECT, 2);
    let now = net.now;
    let body = body(1, 1000);
    net.quic(0).send(peer(1), push(Class::Bulk, 5, body));
    // By hand, to stand between the event and its poll.
    let mut buf = Vec::new();
    let transmit = net.quic(0).poll_transmit(now, &mut buf).unwrap();
    let data = bytes::BytesMut::from(buf.as_slice());
    let received = corecast::types::Received { from: address(0), ecn: None, stride: transmit.segment, data };
    net.quic(1).handle_received(now, received);
    let (_, event) = net.quic(1).poll_event().unwrap();
    let corecast::quic::Event::Link(Incoming::PushStarted { key, .. }) = event else { panic!("{event:?}") };
    net.quic(1).reset(peer(0), key);
    assert!(net.quic(1).poll_event().is_none());
}

#[test]
fn urgent_frames_overtake_bulk_that_is_already_queued() {
    // 50 ms of delay keep the congestion window busy with bulk for seconds.
    let (mut net, _) = connected(Path { delay: Duration::from_millis(50), ..PERFECT }, 2);
    for key in 1..=4 {
        send(&mut net, 0, 1, push(Class::Bulk, key, body(key, 4 << 20)));
    }
    net.run_for(SECOND / 2);
    assert_eq!(net.quic(0).room(peer(1)), all_but(&[Class::Bulk]), "bulk is full, others are not");
    let asked = net.now;
    send(&mut net, 0, 1, batch(Class::Critical, &[small(1)]));
    send(&mut net, 0, 1, push(Class::High, 9, body(9, 256 << 10)));
    net.run(SECOND, |net| frames(net, 1, 0) == 1);
    // Half a round trip, and up to one more for the congestion window to open.
    assert!(
        net.now.saturating_since(asked) <= Duration::from_millis(160),
        "{:?}",
        net.now.saturating_since(asked)
    );
    net.run(60 * SECOND, |net| sent(net, 0, 1).len() == 5);
    assert_eq!(sent(&net, 0, 1).iter().position(|&(key, _)| key == 9), Some(0), "{:?}", sent(&net, 0, 1));
}

#[test]
fn bodies_of_a_class_go_one_after_another() {
    let (mut net, _) = connected(PERFECT, 2);
    let bodies: Vec<Bytes> = (0..8).map(|seed| body(seed, 512 << 10)).collect();
    for (key, body) in bodies.iter().enumerate() {
        send(&mut net, 0, 1, push(Class::Normal, key as u64, body.clone()));
    }
    net.run(10 * SECOND, |net| pushed(net, 1, 0).len() == 8);
    let order: Vec<ArtifactId> = bodies.iter().map(|body| HashKind::Blake3.id(body)).collect();
    assert_eq!(pushed(&net, 1, 0), order);
}

#[test]
fn a_class_takes_no_more_while_its_own_bytes_wait() {
    let (mut net, _) = connected(PERFECT, 2);
    let quic = net.quic(0);
    quic.send(peer(1), push(Class::Normal, 1, body(1, 8 << 20)));
    assert_eq!(quic.room(peer(1)), all_but(&[Class::Normal]));
    quic.send(peer(1), push(Class::Critical, 2, body(2, 8 << 20)));
    assert_eq!(quic.room(peer(1)), all_but(&[Class::Critical, Class::Normal]));
    quic.reset(peer(1), StreamKey(2));
    assert_eq!(quic.room(peer(1)), all_but(&[Class::Normal]));
    quic.reset(peer(1), StreamKey(1));
    assert_eq!(quic.room(peer(1)), Classes::ALL);
}

#[test]
fn a_link_comes_to_rest_when_what_waited_for_its_share_is_abandoned() {
    // Bulk is written whole and critical is as far ahead of it as it may be, from some time on until bulk's bytes are through.
    for turns in 1..40 {
        let (mut net, _) = connected(Path { delay: Duration::from_millis(2), ..PERFECT }, 2);
        net.quic(0).send(peer(1), push(Class::Bulk, 1, body(1, 300 << 10)));
        net.quic(0).send(peer(1), push(Class::Critical, 2, body(2, 8 << 20)));
        net.run_for(turns * Duration::from_millis(1));
        net.quic(0).reset(peer(1), StreamKey(2));
        net.run_for(SECOND);
        assert_eq!(sent(&net, 0, 1), [(1, true)], "after {turns} ms");
    }
}

#[test]
fn the_last_streams_are_for_urgent_classes() {
    let mut net = pair(PERFECT, |config| config.uni_streams = 8);
    net.nodes[1].machine = Machine::Off;
    for slot in 0..20 {
        send(&mut net, 0, 1, batch(Class::Normal, &[small(slot)]));
    }
    net.run_for(SECOND / 10);
    assert_eq!(net.quic(0).room(peer(1)), Classes::down_to(Class::High));
    for slot in 0..20 {
        send(&mut net, 0, 1, batch(Class::High, &[small(slot)]));
    }
    net.run_for(SECOND / 10);
    assert!(net.quic(0).room(peer(1)).is_empty());
}

#[test]
fn a_peer_that_reads_nothing_costs_no_more_than_the_windows() {
    let (mut net, _) = connected(PERFECT, 2);
    net.nodes[1].machine = Machine::Off;
    for slot in 0..2000 {
        send(&mut net, 0, 1, batch(Class::Normal, &[small(slot)]));
    }
    net.run_for(3 * SECOND);
    assert!(net.nodes[0].queue.len() > 1000, "{} are left", net.nodes[0].queue.len());
}

#[test]
fn a_push_of_an_unknown_topic_is_stopped_and_nothing_else() {
    let (mut net, _) = connected(PERFECT, 2);
    let body = body(1, 4 << 20);
    let head = head(TopicId(99), &body).encode();
    send(&mut net, 0, 1, Outgoing::Push { class: Class::Normal, key: StreamKey(5), head, body });
    net.run(SECOND, |net| !sent(net, 0, 1).is_empty());
    assert_eq!(sent(&net, 0, 1), [(5, false)]);
    assert_eq!(net.quic(1).counters().traffic.unknown_topics, 1);
    assert_eq!(net.incoming(1, peer(0)).count(), 0);
    assert!(!net.quic(0).room(peer(1)).is_empty());
}

#[test]
fn pushes_beyond_those_in_assembly_wait_their_turn() {
    let mut net = pair(PERFECT, |config| config.pushes_in_assembly = 4);
    net.path = Path { lose_one_in: 3, ..LOSSY };
    for key in 0..300 {
        send(&mut net, 0, 1, push(Class::Normal, key, body(key, 2 << 10)));
    }
    net.run(60 * SECOND, |net| pushed(net, 1, 0).len() == 300);
    assert!(net.quic(1).counters().traffic.pushes_deferred > 0);
}

#[test]
fn jumbo_datagrams_and_small_ones_carry_the_same() {
    for mtu in [1200, 8900, 16_383] {
        let mut net = pair(PERFECT, |config| config.mtu = mtu);
        let body = body(1, 2 << 20);
        send(&mut net, 0, 1, push(Class::Normal, 1, body.clone()));
        net.run(10 * SECOND, |net| !sent(net, 0, 1).is_empty());
        assert_eq!(pushed(&net, 1, 0), [HashKind::Blake3.id(&body)]);
    }
}

#[test]
fn nothing_is_sent_on_a_link_that_is_gone() {
    let (mut net, _) = connected(PERFECT, 2);
    let now = net.now;
    net.quic(0).disconnect(now, peer(1), CloseCode::Shutdown);
    assert!(net.quic(0).room(peer(1)).is_empty());
    net.quic(0).send(peer(1), batch(Class::Normal, &[small(1)]));
    net.quic(0).reset(peer(1), StreamKey(1));
    net.run_for(SECOND);
    assert_eq!(frames(&net, 1, 0), 0);
}
