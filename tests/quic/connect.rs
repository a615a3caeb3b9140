//! Who dials, who is let in, and how a loss is noticed.

use std::time::Duration;

use corecast::quic::{Disconnect, Event, Quic, Rejection};
use corecast::types::{Classes, ConnectionNumber};
use corecast::wire::CloseCode;

use super::net::*;

const SECOND: Duration = Duration::from_secs(1);

/// Numbers of the connections that `node` has had with `from`, in order.
fn numbers(net: &Net, node: usize, from: usize) -> Vec<u64> {
    let of = |event: &Event| match event {
        Event::Connected { connection: ConnectionNumber(number) } => Some(*number),
        _ => None,
    };
    net.nodes[node].events.iter().filter(|(p, _)| *p == peer(from)).filter_map(|(_, e)| of(e)).collect()
}

fn reasons(net: &Net, node: usize) -> Vec<Disconnect> {
    let of = |event: &Event| match event {
        Event::Disconnected { reason, .. } => Some(*reason),
        _ => None,
    };
    net.nodes[node].events.iter().filter_map(|(_, event)| of(event)).collect()
}

#[test]
fn the_lower_id_dials_and_both_sides_learn_of_it() {
    let (mut net, _) = connected(PERFECT, 3);
    assert_eq!([0, 1, 2].map(|node| net.quic(node).counters().traffic.dials), [2, 1, 0]);
    assert_eq!(net.quic(0).room(peer(1)), Classes::ALL);
    assert_eq!(net.quic(1).room(peer(0)), Classes::ALL);
    assert_eq!(net.quic(0).room(peer(0)), Classes::NONE, "nobody is his own peer");
    assert!(net.quic(0).srtt(peer(2)).is_some_and(|rtt| rtt >= Duration::from_millis(2)));
}

#[test]
fn everybody_connects_over_a_lossy_path() {
    let (net, _) = connected(Path { lose_one_in: 5, ..LOSSY }, 4);
    assert!((0..4).all(|node| net.connected(node) == 3));
}

#[test]
fn an_idle_connection_lasts() {
    let (mut net, _) = connected(PERFECT, 2);
    net.run_for(30 * SECOND);
    assert_eq!(reasons(&net, 0), []);
    assert_eq!(net.quic(1).counters().traffic.connections, 1);
}

#[test]
fn a_partition_is_noticed_by_both_sides_and_healed() {
    let (mut net, _) = connected(PERFECT, 2);
    net.cut = [(0, 1), (1, 0)].into();
    net.run_for(8 * SECOND);
    assert_eq!([reasons(&net, 0), reasons(&net, 1)], [[Disconnect::Silent], [Disconnect::Silent]]);
    net.cut.clear();
    net.run(8 * SECOND, |net| net.connected(0) == 2 && net.connected(1) == 2);
}

/// Puts a fresh start of `node` in its place.
fn restart(net: &mut Net, keys: &[corecast::quic::Identity], node: usize, seed: u64) {
    let config = config(net, &keys[node], &record(1, &ids(keys)), seed);
    net.nodes[node].machine = Machine::Quic(Box::new(Quic::new(config).unwrap()));
}

#[test]
fn a_restarted_acceptor_is_noticed_at_the_next_packet_and_redialled_at_once() {
    let (mut net, keys) = connected(PERFECT, 2);
    net.run_for(10 * SECOND);
    restart(&mut net, &keys, 1, 99);
    // One keep-alive interval until a packet goes out; then one round trip to the reset and one or two to the
    // handshake.
    net.run(Duration::from_millis(1020), |net| net.connected(0) == 2 && net.connected(1) == 2);
    assert_eq!(reasons(&net, 0), [Disconnect::Restarted]);
    assert!(numbers(&net, 0, 1).is_sorted_by(|a, b| a < b));
    assert_eq!(net.quic(0).counters().traffic.restarts, 1);
}

#[test]
fn a_restarted_dialler_replaces_its_old_connection() {
    let (mut net, keys) = connected(PERFECT, 2);
    net.run_for(10 * SECOND);
    restart(&mut net, &keys, 0, 99);
    net.run(Duration::from_millis(20), |net| net.connected(1) == 2);
    assert_eq!(reasons(&net, 1), [Disconnect::Closed(CloseCode::Replaced)]);
    assert_eq!(numbers(&net, 1, 0), [1, 2]);
    net.run_for(10 * SECOND);
    assert_eq!(net.connected(1), 2, "the old one does not come back");
    assert_eq!(net.quic(1).counters().traffic.replaced, 1);
}

#[test]
fn a_shutdown_is_told_and_drains() {
    let (mut net, _) = connected(PERFECT, 2);
    let now = net.now;
    net.quic(1).close(now, CloseCode::Shutdown);
    net.run_for(Duration::from_millis(100));
    assert_eq!(reasons(&net, 0), [Disconnect::ClosedByPeer(CloseCode::Shutdown)]);
    net.run(5 * SECOND, |net| net.quic(1).is_drained());
    assert_eq!(net.connected(1), 1, "a node that stops accepts nobody");
}

#[test]
fn a_disconnected_peer_is_redialled_after_a_wait() {
    let (mut net, _) = connected(PERFECT, 2);
    let now = net.now;
    net.quic(0).disconnect(now, peer(1), CloseCode::Mismatch);
    net.run_for(Duration::from_millis(10));
    assert_eq!(reasons(&net, 0), [Disconnect::Closed(CloseCode::Mismatch)]);
    assert_eq!(reasons(&net, 1), [Disconnect::ClosedByPeer(CloseCode::Mismatch)]);
    assert_eq!(net.connected(0), 1);
    net.run(SECOND, |net| net.connected(0) == 2);
}

#[test]
fn a_removed_member_is_gone_and_a_new_one_dialled() {
    let (mut net, keys) = connected(PERFECT, 3);
    // Member 0 leaves: 1 and 2 become 0 and 1.
    let shorter = record_at(2, &[(&keys[1], 1), (&keys[2], 2)]);
    let now = net.now;
    for node in [1, 2] {
        net.quic(node).set_membership(now, &shorter);
    }
    assert_eq!(
        net.quic(1).room(peer(1)),
        Classes::ALL,
        "the connection that stays is known by its new index"
    );
    net.run_for(3 * SECOND);
    assert!(reasons(&net, 0).iter().all(|reason| *reason == Disconnect::ClosedByPeer(CloseCode::NotMember)));
    assert_eq!(net.connected(0), 2, "what left is not let in again");
    assert!(net.quic(1).counters().rejected(Rejection::UnknownSource) > 0);
    let now = net.now;
    let whole = record(3, &ids(&keys));
    for node in [1, 2] {
        net.quic(node).set_membership(now, &whole);
    }
    net.run(5 * SECOND, |net| net.connected(0) == 4 && net.connected(1) == 3);
    assert_eq!(
        net.quic(1).counters().traffic.connections,
        3,
        "one with 2, and with 0 one before and one after"
    );
}

#[test]
fn a_member_that_moved_is_dialled_at_its_new_address() {
    let (mut net, keys) = connected(PERFECT, 2);
    let moved = record_at(2, &[(&keys[0], 0), (&keys[1], 5)]);
    net.nodes[1].address = address(5);
    let now = net.now;
    for node in [0, 1] {
        net.quic(node).set_membership(now, &moved);
    }
    net.run(SECOND, |net| net.connected(0) == 2 && net.connected(1) == 2);
}

#[test]
fn addresses_of_a_member_are_tried_in_turn() {
    let mut net = Net::new(PERFECT);
    let keys = keys(2);
    let mut members = record(1, &ids(&keys)).members().to_vec();
    members[1].addresses.insert(0, "10.9.9.9:4100".parse().unwrap());
    let version = corecast::types::RegistryVersion(1);
    let membership = corecast::types::Membership::new("test".into(), version, 1, members).unwrap();
    let membership = std::sync::Arc::new(membership);
    for (i, key) in keys.iter().enumerate() {
        let quic = Quic::new(config(&net, key, &membership, i as u64)).unwrap();
        net.add(address(i), Machine::Quic(Box::new(quic)));
    }
    net.run(7 * SECOND, |net| net.connected(0) == 1);
    assert_eq!(net.quic(0).counters().rejected(Rejection::TimedOut), 1);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let (mut net, _) = connected(LOSSY, 3);
        net.run_for(3 * SECOND);
        [0, 1, 2].map(|node| (net.nodes[node].datagrams_out, net.quic(node).counters().traffic.lost_packets))
    };
    assert_eq!(run(), run());
}
