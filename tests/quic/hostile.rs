//! Peers and strangers that do as they please: each is turned away for its own reason, and costs nobody else
//! anything.

use std::time::Duration;

use bytes::Bytes;
use corecast::quic::{Disconnect, Event, Identity, Quic, Rejection};
use corecast::types::{ArtifactId, Attribute, HashKind, Slot, TopicId, Version};
use corecast::wire::{
    BatchBuilder, CloseCode, FetchRequest, Frame, Incoming, Open, PushHead, STREAM_BATCH, STREAM_PUSH,
    WireError,
};
use quinn_proto::{ConnectionError, Dir, VarInt};

use super::net::*;
use super::rogue::{Guise, Rogue, Shows};

const SECOND: Duration = Duration::from_secs(1);
const ALPN: &[u8] = b"corecast/1";

/// Members 1 and 2 connected; the lowest member's place (node 0) taken by a rogue in `guise`, which dials
/// node 1.
fn with_rogue(guise: impl FnOnce(&[Identity]) -> Guise<'_>) -> (Net, Vec<Identity>) {
    let (mut net, keys) = mesh(PERFECT, 3);
    let rogue = Rogue::dial(net.epoch, net.now, address(1), &guise(&keys));
    net.nodes[0].machine = Machine::Rogue(Box::new(rogue));
    net.run_for(SECOND);
    (net, keys)
}

/// The same for a rogue that signs with one key and shows another, or none.
fn with_disguised(guise: impl FnOnce(&[Identity]) -> (Identity, Shows)) -> (Net, Vec<Identity>) {
    let (mut net, keys) = mesh(PERFECT, 3);
    let (key, shows) = guise(&keys);
    let rogue = Rogue::dial(net.epoch, net.now, address(1), &Guise { key: Some(&key), shows, alpn: ALPN });
    net.nodes[0].machine = Machine::Rogue(Box::new(rogue));
    net.run_for(SECOND);
    (net, keys)
}

/// The rogue as an authenticated member.
fn with_member() -> Net {
    let (mut net, _) = with_rogue(|keys| Guise { key: Some(&keys[0]), shows: Shows::Own, alpn: ALPN });
    assert!(net.rogue(0).connected && net.connected(1) == 2);
    net
}

/// The rogue was rejected by node 1 for `reason`, once, and nobody noticed.
fn assert_rejected(net: &mut Net, reason: Rejection) {
    assert_eq!(net.quic(1).counters().rejected(reason), 1, "{}", reason.name());
    let others = Rejection::ALL.into_iter().filter(|other| *other != reason);
    // Node 2 dials nobody; node 1 dials 2; neither reaches node 0, which accepts nobody.
    for other in others.filter(|other| !matches!(other, Rejection::TimedOut)) {
        assert_eq!(net.quic(1).counters().rejected(other), 0, "{}", other.name());
    }
    assert!(net.rogue(0).lost.is_some());
    assert_eq!(net.connected(1), 1, "with node 2");
}

/// The rogue broke the protocol: it is closed for that, and node 2 lives.
fn assert_closed_for_protocol(net: &mut Net) {
    net.run_for(SECOND);
    match &net.rogue(0).lost {
        Some(ConnectionError::ApplicationClosed(close)) => {
            assert_eq!(close.error_code.into_inner(), u64::from(CloseCode::Protocol.code()));
        }
        other => panic!("{other:?}"),
    }
    let last = net.nodes[1].events.iter().rfind(|(from, _)| *from == peer(0));
    let expected = Disconnect::Closed(CloseCode::Protocol);
    assert!(matches!(last, Some((_, Event::Disconnected { reason, .. })) if *reason == expected), "{last:?}");
    assert!(!net.quic(1).room(peer(2)).is_empty());
    assert_eq!(net.connected(2), 1);
}

fn fault(net: &Net) -> Option<WireError> {
    net.incoming(1, peer(0)).find_map(|incoming| match incoming {
        Incoming::Fault(error) => Some(*error),
        _ => None,
    })
}

#[test]
fn a_key_that_is_in_no_record_is_turned_away() {
    let stranger = Identity::from_seed([200; 32]).unwrap();
    let (mut net, _) =
        with_rogue(|_| Guise { key: Some(Box::leak(Box::new(stranger))), shows: Shows::Own, alpn: ALPN });
    assert_rejected(&mut net, Rejection::NotMember);
}

#[test]
fn a_member_with_a_higher_id_may_not_dial() {
    let (mut net, _) = with_rogue(|keys| Guise { key: Some(&keys[2]), shows: Shows::Own, alpn: ALPN });
    assert_rejected(&mut net, Rejection::WrongDirection);
}

#[test]
fn our_own_key_may_not_dial_us() {
    let (mut net, _) = with_rogue(|keys| Guise { key: Some(&keys[1]), shows: Shows::Own, alpn: ALPN });
    assert_rejected(&mut net, Rejection::WrongDirection);
}

#[test]
fn another_application_protocol_is_turned_away() {
    let (mut net, _) =
        with_rogue(|keys| Guise { key: Some(&keys[0]), shows: Shows::Own, alpn: b"corecast/2" });
    assert_rejected(&mut net, Rejection::Alpn);
}

#[test]
fn a_client_without_a_key_is_turned_away() {
    let (mut net, _) = with_rogue(|_| Guise { key: None, shows: Shows::Own, alpn: ALPN });
    assert_rejected(&mut net, Rejection::KeyType);
}

#[test]
fn a_client_that_shows_nothing_is_turned_away() {
    let guise = |keys: &[Identity]| (keys[0].clone(), Shows::Nothing);
    let (mut net, _) = with_disguised(guise);
    assert_rejected(&mut net, Rejection::NoClientKey);
}

#[test]
fn showing_a_members_key_is_not_having_it() {
    let guise = |keys: &[Identity]| (Identity::from_seed([200; 32]).unwrap(), Shows::Other(keys[0].id()));
    let (mut net, _) = with_disguised(guise);
    assert_rejected(&mut net, Rejection::BadSignature);
}

#[test]
fn random_bytes_on_streams_close_that_connection_at_worst() {
    for seed in 0..40 {
        let mut net = with_member();
        for stream in 0..8u64 {
            let mut bytes = body(seed * 100 + stream, 1 + 97 * stream as usize).to_vec();
            bytes[0] %= 4;
            if let Some(kind) = bytes.get_mut(1) {
                *kind %= 9;
            }
            let dir = if stream % 3 == 0 { Dir::Bi } else { Dir::Uni };
            net.rogue(0).write(dir, &bytes, stream % 2 == 0);
        }
        net.run_for(SECOND);
        assert!(!net.quic(1).room(peer(2)).is_empty());
    }
}

#[test]
fn an_address_that_answers_with_another_key_is_not_the_peer() {
    let (mut net, keys) = mesh(PERFECT, 3);
    // Node 0 has a record in which 1 and 2 are each at the other's address.
    let swapped = record_at(1, &[(&keys[0], 0), (&keys[1], 2), (&keys[2], 1)]);
    let quic = Quic::new(config(&net, &keys[0], &swapped, 5)).unwrap();
    net.nodes[0].machine = Machine::Quic(Box::new(quic));
    net.run_for(Duration::from_millis(20));
    assert_eq!(net.quic(0).counters().rejected(Rejection::WrongKey), 2);
    assert_eq!(net.quic(1).counters().rejected(Rejection::ByPeer), 1);
    assert_eq!(net.connected(0), 0);
}

#[test]
fn a_source_of_no_member_is_not_even_looked_at() {
    let (mut net, _) = mesh(PERFECT, 2);
    let stranger = Identity::from_seed([200; 32]).unwrap();
    let rogue = Rogue::dial(
        net.epoch,
        net.now,
        address(1),
        &Guise { key: Some(&stranger), shows: Shows::Own, alpn: ALPN },
    );
    net.add("10.9.9.9:4100".parse().unwrap(), Machine::Rogue(Box::new(rogue)));
    net.run_for(3 * SECOND);
    assert!(net.quic(1).counters().rejected(Rejection::UnknownSource) > 0);
    assert_eq!(net.nodes[2].bytes_in, 0);
    assert_eq!(net.connected(1), 1);
}

#[test]
fn there_is_no_early_data_and_no_ticket() {
    let mut net = with_member();
    net.run_for(3 * SECOND);
    let connection = net.rogue(0).connection();
    assert!(!connection.has_0rtt() && !connection.accepted_0rtt());
    let received = connection.stats().frame_rx;
    assert_eq!(received.new_token, 0);
    // A ticket would come in a CRYPTO frame of its own after the handshake's: the server's first flight is
    // all there is.
    assert!(received.crypto <= 3, "{} CRYPTO frames", received.crypto);
}

#[test]
fn frames_that_do_not_decode_close_their_connection_alone() {
    let open = Frame::Open(Open { topic: TOPIC, slots: 1, artifact_bytes: 1 });
    let mut good = BatchBuilder::new(100);
    good.push(&open);
    let good = good.finish();
    let truncated = good.slice(..good.len() - 1);
    let cases: Vec<(Bytes, WireError)> = vec![
        (truncated, WireError::Truncated),
        (Bytes::from_static(&[STREAM_BATCH, 99, 0, 0, 0]), WireError::UnknownFrame(99)),
        (Bytes::from_static(&[77, 1, 2]), WireError::UnknownStream(77)),
        (Bytes::from_static(&[STREAM_PUSH, 1, 2, 3]), WireError::Truncated),
        (
            Bytes::from_static(&[STREAM_BATCH, 4, 0xff, 0xff, 0xff]),
            WireError::TooLarge { found: 0xff_ffff, limit: 64 << 10 },
        ),
        ([good.as_ref(), &[2, 11, 0, 0], &[0; 11]].concat().into(), WireError::Trailing { extra: 1 }),
    ];
    for (bytes, error) in cases {
        let mut net = with_member();
        net.rogue(0).write(Dir::Uni, &bytes, true);
        assert_closed_for_protocol(&mut net);
        assert_eq!(fault(&net), Some(error));
    }
}

#[test]
fn an_empty_stream_is_a_fault() {
    let mut net = with_member();
    net.rogue(0).write(Dir::Uni, &[], true);
    assert_closed_for_protocol(&mut net);
    assert_eq!(fault(&net), Some(WireError::Truncated));
}

#[test]
fn a_batch_that_never_ends_is_cut() {
    let mut net = with_member();
    let mut batch = vec![STREAM_BATCH];
    // Clears, again and again, a little beyond the largest batch.
    for _ in 0..3700 {
        batch.extend_from_slice(&[6, 14, 0, 0]);
        batch.extend_from_slice(&[0; 14]);
    }
    let bytes = Bytes::from(batch);
    net.rogue(0).write(Dir::Uni, &bytes[..60_000], false);
    net.run_for(SECOND);
    let stream = quinn_proto::StreamId::new(quinn_proto::Side::Client, Dir::Uni, 0);
    let _ = net.rogue(0).connection().send_stream(stream).write(&bytes[60_000..]);
    assert_closed_for_protocol(&mut net);
    assert!(matches!(fault(&net), Some(WireError::TooLarge { .. })));
}

fn push_head(size: u32) -> PushHead {
    let id = HashKind::Blake3.id(b"");
    let (slot, version) = (Slot(1), Version(1));
    PushHead { topic: TOPIC, slot, version, id, size, attribute: Attribute::EMPTY }
}

/// Topics of the bodies that node 1 has been pushed by the rogue.
fn pushed(net: &Net) -> Vec<TopicId> {
    let of = |incoming: &Incoming| match incoming {
        Incoming::Pushed { head, .. } => Some(head.topic),
        _ => None,
    };
    net.incoming(1, peer(0)).filter_map(of).collect()
}

#[test]
fn a_push_that_announces_too_much_is_a_fault_at_its_head() {
    let mut net = with_member();
    net.rogue(0).write(Dir::Uni, &push_head(u32::MAX).encode(), false);
    assert_closed_for_protocol(&mut net);
    assert_eq!(fault(&net), Some(WireError::TooLarge { found: u32::MAX.into(), limit: 16 << 20 }));
    assert!(!net.incoming(1, peer(0)).any(|incoming| matches!(incoming, Incoming::PushStarted { .. })));
}

#[test]
fn a_push_that_is_longer_than_announced_is_a_fault() {
    let mut net = with_member();
    let bytes = [push_head(3).encode().as_ref(), b"abcd"].concat();
    net.rogue(0).write(Dir::Uni, &bytes, true);
    assert_closed_for_protocol(&mut net);
    assert_eq!(fault(&net), Some(WireError::TooLarge { found: 4, limit: 3 }));
}

#[test]
fn a_push_that_ends_early_is_broken_and_no_fault() {
    let mut net = with_member();
    let bytes = [push_head(3).encode().as_ref(), b"ab"].concat();
    net.rogue(0).write(Dir::Uni, &bytes, true);
    net.run_for(SECOND);
    assert!(matches!(net.incoming(1, peer(0)).last(), Some(Incoming::PushBroken { .. })));
    assert!(net.rogue(0).lost.is_none());
}

#[test]
fn a_push_in_single_bytes_is_a_push() {
    let mut net = with_member();
    let body = body(1, 40);
    let head = PushHead { id: HashKind::Blake3.id(&body), ..push_head(40) };
    let bytes = [head.encode().as_ref(), &body].concat();
    let stream = net.rogue(0).write(Dir::Uni, &bytes[..1], false);
    for byte in &bytes[1..] {
        net.run_for(Duration::from_millis(1));
        net.rogue(0).connection().send_stream(stream).write(&[*byte]).unwrap();
    }
    net.rogue(0).connection().send_stream(stream).finish().unwrap();
    net.run_for(SECOND);
    let last = net.incoming(1, peer(0)).last();
    assert!(matches!(last, Some(Incoming::Pushed { body, head, .. }) if body.id() == head.id), "{last:?}");
}

#[test]
fn a_request_must_be_exactly_one() {
    let good = FetchRequest { topic: TOPIC, id: HashKind::Blake3.id(b"") }.encode();
    let long = [good.as_ref(), &[0]].concat();
    let mut other = good.to_vec();
    other[0] = 9;
    let cases = [
        (Bytes::from(long), WireError::Trailing { extra: 1 }),
        (good.slice(..20), WireError::Truncated),
        (other.into(), WireError::UnknownStream(9)),
    ];
    for (bytes, error) in cases {
        let mut net = with_member();
        net.rogue(0).write(Dir::Bi, &bytes, true);
        assert_closed_for_protocol(&mut net);
        assert_eq!(fault(&net), Some(error));
    }
}

#[test]
fn waiting_pushes_are_taken_up_when_others_are_given_up() {
    let mut net = with_member();
    let body = body(1, 40);
    let head = PushHead { id: HashKind::Blake3.id(&body), ..push_head(40) };
    let whole = [head.encode().as_ref(), &body].concat();
    // As many half pushes as are gathered at once (16 and the topic's own), two that wait half-sent, and one that waits whole.
    let half: Vec<_> = (0..19).map(|_| net.rogue(0).write(Dir::Uni, &whole[..60], false)).collect();
    net.rogue(0).write(Dir::Uni, &whole, true);
    net.run_for(SECOND);
    let started = |net: &Net| {
        net.incoming(1, peer(0)).filter(|incoming| matches!(incoming, Incoming::PushStarted { .. })).count()
    };
    assert_eq!(started(&net), 17);
    assert_eq!(net.quic(1).counters().traffic.pushes_deferred, 3);
    // One that waits is given up, then one that was being gathered, then all.
    let give_up = |net: &mut Net, stream| {
        let code = quinn_proto::VarInt::from_u32(0);
        net.rogue(0).connection().send_stream(stream).reset(code).unwrap();
        net.run_for(SECOND);
    };
    give_up(&mut net, half[17]);
    assert_eq!(started(&net), 17);
    give_up(&mut net, half[0]);
    assert_eq!(started(&net), 18);
    give_up(&mut net, half[1]);
    assert_eq!(started(&net), 19);
    assert_eq!(pushed(&net), [TOPIC]);
    for stream in &half[2..17] {
        give_up(&mut net, *stream);
    }
    assert!(net.rogue(0).lost.is_none());
}

#[test]
fn a_topic_whose_pushes_do_not_end_leaves_another_its_place() {
    let mut net = with_member();
    let body = body(1, 40);
    let whole = |topic| {
        let head = PushHead { topic, id: HashKind::Blake3.id(&body), ..push_head(40) };
        [head.encode().as_ref(), &body].concat()
    };
    for _ in 0..30 {
        net.rogue(0).write(Dir::Uni, &whole(TOPIC)[..60], false);
    }
    for _ in 0..30 {
        net.rogue(0).write(Dir::Uni, &whole(OTHER), true);
    }
    net.run_for(SECOND);
    assert_eq!(pushed(&net), [OTHER; 30]);
    assert!(net.quic(1).counters().traffic.pushes_deferred >= 13);
}

#[test]
fn a_storm_of_resets_ends_the_connection() {
    let mut net = with_member();
    for _ in 0..200 {
        for _ in 0..64 {
            let Some(stream) = net.rogue(0).connection().streams().open(Dir::Uni) else { break };
            let code = quinn_proto::VarInt::from_u32(0);
            net.rogue(0).connection().send_stream(stream).reset(code).unwrap();
        }
        net.run_for(Duration::from_micros(500));
    }
    assert_closed_for_protocol(&mut net);
    assert_eq!(net.quic(1).counters().traffic.reset_floods, 1);
}

/// A first packet as any client sends it.
fn initial(net: &Net, key: &Identity) -> Vec<u8> {
    let mut rogue =
        Rogue::dial(net.epoch, net.now, address(1), &Guise { key: Some(key), shows: Shows::Own, alpn: ALPN });
    let mut buf = Vec::new();
    rogue.poll_transmit(net.now, &mut buf).unwrap();
    buf
}

#[test]
fn a_flood_of_first_packets_meets_retry_then_silence_and_members_still_connect() {
    let (mut net, keys) = mesh(PERFECT, 3);
    net.cut = [(0, 1), (1, 0)].into();
    net.run_for(SECOND);
    // From node 0's address, but nobody there will ever answer.
    let from = "10.0.0.1:9999".parse().unwrap();
    for _ in 0..500 {
        let bytes = initial(&net, &keys[0]);
        net.inject(1, from, &bytes);
    }
    net.run_for(Duration::from_millis(100));
    let counters = *net.quic(1).counters();
    assert!(counters.traffic.retries > 0, "{counters:?}");
    assert!(counters.rejected(Rejection::RateLimited) > 300, "{counters:?}");
    assert!(!net.quic(1).room(peer(2)).is_empty());
    // The member whose address it was still gets in, by showing that it is there.
    net.cut.clear();
    net.run(3 * SECOND, |net| net.connected(1) == 2);
    net.run_for(10 * SECOND);
    assert_eq!(net.connected(1), 2);
    let timed_out = net.quic(1).counters().rejected(Rejection::TimedOut);
    assert!(timed_out > 0, "half-open handshakes are gone");
}

#[test]
fn answers_to_a_flood_are_no_larger_than_the_flood() {
    let (mut net, keys) = mesh(PERFECT, 2);
    net.nodes[0].machine = Machine::Off;
    for _ in 0..200 {
        let bytes = initial(&net, &keys[0]);
        net.inject(1, "10.0.0.1:9999".parse().unwrap(), &bytes);
    }
    net.run_for(10 * SECOND);
    let (sent, received) = (net.nodes[1].bytes_out, net.nodes[1].bytes_in);
    assert!(sent <= 3 * received, "{sent} for {received}");
}

#[test]
fn garbage_is_not_answered() {
    let (mut net, _) = connected(PERFECT, 2);
    let before = net.nodes[1].datagrams_out;
    for len in 0..1500 {
        let bytes = body(len, len as usize);
        if !bytes.is_empty() {
            net.inject(1, address(0), &bytes);
        }
    }
    net.run_for(Duration::from_millis(10));
    let answers = net.nodes[1].datagrams_out - before;
    // Version negotiation alone, for what happens to look like another version of QUIC.
    assert!(answers < 200, "{answers}");
    assert!(!net.quic(1).room(peer(0)).is_empty());
}

#[test]
fn requests_that_are_given_up_come_to_their_end_though_nothing_can_be_answered() {
    let (mut net, keys): (Net, Vec<Identity>) = mesh(PERFECT, 3);
    let guise = Guise { key: Some(&keys[0]), shows: Shows::Own, alpn: b"corecast/1" };
    let rogue = Rogue::dial(net.epoch, net.now, address(1), &guise);
    net.nodes[0].machine = Machine::Rogue(Box::new(rogue));
    net.run_for(Duration::from_secs(1));
    let request = FetchRequest { topic: TOPIC, id: ArtifactId([1; 32]) }.encode();
    for _ in 0..20 {
        let mut streams = Vec::new();
        for _ in 0..100 {
            let Some(stream) = net.rogue(0).connection().streams().open(Dir::Bi) else { break };
            let mut sender = net.rogue(0).connection().send_stream(stream);
            assert_eq!(sender.write(&request).unwrap_or(0), request.len());
            sender.finish().unwrap();
            streams.push(stream);
        }
        net.run_for(Duration::from_millis(10));
        for stream in streams {
            let _ = net.rogue(0).connection().recv_stream(stream).stop(VarInt::from_u32(0));
        }
        net.run_for(Duration::from_millis(10));
    }
    let count = |is_it: fn(&Incoming) -> bool| net.incoming(1, peer(0)).filter(|one| is_it(one)).count();
    let requests = count(|incoming| matches!(incoming, Incoming::Request { .. }));
    assert!(requests > 500, "{requests}");
    assert_eq!(count(|incoming| matches!(incoming, Incoming::Sent { whole: false, .. })), requests);
}
