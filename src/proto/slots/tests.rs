//! What the table tells, change by change.

use super::*;

const PEER: PeerIndex = PeerIndex(0);
const OTHER: PeerIndex = PeerIndex(1);

fn id(byte: u8) -> ArtifactId {
    ArtifactId([byte; 32])
}

fn own(byte: u8, size: u32) -> Active {
    let (attribute, origin, since) = (Attribute::EMPTY, Origin::Own, Instant::ZERO);
    Active { id: id(byte), size, attribute, origin, since }
}

fn relay(byte: u8) -> Active {
    Active { origin: Origin::Relay, ..own(byte, 1) }
}

fn slots(capacity: u32, class: Class) -> Slots {
    let limits = SlotLimits { capacity, peers: 2, push_threshold: 1000, class };
    Slots::new(limits, &mut Rng::new(1))
}

/// A table of four slots with one connected peer.
fn one_peer() -> Slots {
    let mut slots = slots(4, Class::High);
    slots.handle_connected(PEER);
    slots
}

fn next(slots: &mut Slots) -> Option<(u32, u64, Told<'_>)> {
    let next = slots.next_update(PEER, &mut |_| false)?;
    Some((next.slot.0, next.version.0, next.told))
}

fn drain(slots: &mut Slots) {
    while slots.next_update(PEER, &mut |_| false).is_some() {}
}

#[test]
fn a_broadcast_is_told_once_to_each_connected_peer() {
    let mut slots = one_peer();
    assert_eq!(slots.handle_broadcast(own(1, 5)), Ok(Slot(0)));
    assert!(slots.has_updates(PEER) && !slots.has_updates(OTHER));
    assert_eq!(next(&mut slots), Some((0, 1, Told::Push(&own(1, 5)))));
    assert_eq!(next(&mut slots), None);
    assert!(!slots.has_updates(PEER));
}

#[test]
fn aborting_before_the_peer_was_told_sends_nothing() {
    let mut slots = one_peer();
    slots.handle_broadcast(own(1, 5)).unwrap();
    assert_eq!(slots.handle_abort(&id(1)), Some(own(1, 5)));
    assert!(!slots.has_updates(PEER));
    assert_eq!(next(&mut slots), None);
}

#[test]
fn aborting_after_the_peer_was_told_sends_one_clear() {
    let mut slots = one_peer();
    slots.handle_broadcast(own(1, 5)).unwrap();
    drain(&mut slots);
    slots.handle_abort(&id(1));
    assert_eq!(next(&mut slots), Some((0, 2, Told::Clear)));
    assert_eq!(next(&mut slots), None);
    assert_eq!(slots.handle_abort(&id(1)), None);
}

#[test]
fn a_slot_reused_before_its_clear_went_out_tells_only_the_new_artifact() {
    let mut slots = one_peer();
    slots.handle_broadcast(own(1, 5)).unwrap();
    drain(&mut slots);
    slots.handle_abort(&id(1));
    assert_eq!(slots.handle_broadcast(own(2, 5)), Ok(Slot(0)));
    assert_eq!(next(&mut slots), Some((0, 3, Told::Push(&own(2, 5)))));
    assert_eq!(next(&mut slots), None);
}

#[test]
fn the_lowest_free_slot_is_taken_first() {
    let mut slots = slots(3, Class::High);
    for byte in 1..=3 {
        assert_eq!(slots.handle_broadcast(own(byte, 5)), Ok(Slot(u32::from(byte) - 1)));
    }
    assert_eq!(slots.handle_broadcast(own(4, 5)), Err(SlotsError::Full));
    assert_eq!(slots.handle_broadcast(own(2, 5)), Err(SlotsError::Duplicate));
    slots.handle_abort(&id(3));
    slots.handle_abort(&id(1));
    assert_eq!(slots.handle_broadcast(own(4, 5)), Ok(Slot(0)));
    assert_eq!(slots.handle_broadcast(own(5, 5)), Ok(Slot(2)));
    assert!(slots.is_full());
}

#[test]
fn large_bodies_and_relays_are_adverted_and_critical_ones_pushed() {
    let mut slots = one_peer();
    for active in [own(1, 999), own(2, 1000), relay(3)] {
        slots.handle_broadcast(active).unwrap();
    }
    assert_eq!(next(&mut slots), Some((0, 1, Told::Push(&own(1, 999)))));
    assert_eq!(next(&mut slots), Some((1, 2, Told::Advert(&own(2, 1000)))));
    assert_eq!(next(&mut slots), Some((2, 3, Told::Advert(&relay(3)))));

    let mut critical = self::slots(4, Class::Critical);
    critical.handle_connected(PEER);
    critical.handle_broadcast(own(1, u32::MAX)).unwrap();
    critical.handle_broadcast(relay(2)).unwrap();
    assert_eq!(next(&mut critical), Some((0, 1, Told::Push(&own(1, u32::MAX)))));
    assert_eq!(next(&mut critical), Some((1, 2, Told::Advert(&relay(2)))));
}

#[test]
fn a_new_connection_states_the_whole_table_and_hears_all_of_it() {
    let mut slots = slots(12, Class::High);
    for byte in 1..=11 {
        slots.handle_broadcast(own(byte, 5)).unwrap();
    }
    for byte in [1, 2, 11] {
        slots.handle_abort(&id(byte));
    }
    let (version, occupied) = slots.handle_connected(PEER);
    assert_eq!((version, &occupied[..]), (Version(14), &[0b1111_1100, 0b0000_0011][..]));
    let heard: Vec<u32> = std::iter::from_fn(|| next(&mut slots).map(|(slot, ..)| slot)).collect();
    assert_eq!(heard, (2..10).collect::<Vec<_>>());
}

#[test]
fn an_empty_table_is_stated_by_an_empty_bitmap() {
    let mut slots = slots(4, Class::High);
    slots.handle_broadcast(own(1, 5)).unwrap();
    slots.handle_abort(&id(1));
    assert_eq!(slots.handle_connected(PEER), (Version(2), Bytes::new()));
    assert!(!slots.has_updates(PEER));
}

#[test]
fn aborting_what_a_resync_stated_sends_a_clear_though_no_update_went_out() {
    let mut slots = slots(4, Class::High);
    slots.handle_broadcast(own(1, 5)).unwrap();
    slots.handle_connected(PEER);
    slots.handle_abort(&id(1));
    assert_eq!(next(&mut slots), Some((0, 2, Told::Clear)));
    assert_eq!(next(&mut slots), None);
}

#[test]
fn low_slots_that_change_all_the_time_do_not_starve_high_ones() {
    let mut slots = one_peer();
    for byte in 1..=3 {
        slots.handle_broadcast(own(byte, 5)).unwrap();
    }
    let mut heard = Vec::new();
    for _ in 0..3 {
        heard.push(next(&mut slots).unwrap().0);
        slots.handle_abort(&id(1));
        slots.handle_broadcast(own(1, 5)).unwrap();
    }
    assert_eq!(heard, [0, 1, 2]);
}

#[test]
fn what_the_peer_advertises_itself_is_passed_over() {
    let mut slots = one_peer();
    slots.handle_broadcast(relay(1)).unwrap();
    slots.handle_broadcast(relay(2)).unwrap();
    let next = slots.next_update(PEER, &mut |known| *known == id(1)).unwrap();
    assert_eq!((next.slot, next.told), (Slot(1), Told::Advert(&relay(2))));
    slots.handle_abort(&id(1));
    assert!(!slots.has_updates(PEER), "the peer was not told, so nothing is to be cleared");
}

#[test]
fn passing_over_an_artifact_clears_what_the_peer_may_hold_in_that_slot() {
    let mut slots = one_peer();
    slots.handle_broadcast(own(1, 5)).unwrap();
    drain(&mut slots);
    slots.handle_abort(&id(1));
    slots.handle_broadcast(relay(2)).unwrap();
    let next = slots.next_update(PEER, &mut |_| true).unwrap();
    assert_eq!((next.slot, next.version, next.told), (Slot(0), Version(3), Told::Clear));
    assert!(!slots.has_updates(PEER));
}

#[test]
fn an_update_that_was_put_back_is_told_again() {
    let mut slots = one_peer();
    slots.handle_broadcast(own(1, 5)).unwrap();
    drain(&mut slots);
    slots.put_back(PEER, Slot(0));
    assert_eq!(next(&mut slots), Some((0, 1, Told::Push(&own(1, 5)))));
}

#[test]
fn a_clear_that_was_put_back_is_told_again() {
    let mut slots = one_peer();
    slots.handle_broadcast(own(1, 5)).unwrap();
    drain(&mut slots);
    slots.handle_abort(&id(1));
    drain(&mut slots);
    slots.put_back(PEER, Slot(0));
    assert_eq!(next(&mut slots), Some((0, 2, Told::Clear)));
    assert_eq!(next(&mut slots), None);
}

#[test]
fn aborting_what_was_put_back_sends_nothing() {
    let mut slots = one_peer();
    slots.handle_broadcast(own(1, 5)).unwrap();
    assert!(next(&mut slots).is_some());
    slots.put_back(PEER, Slot(0));
    slots.handle_abort(&id(1));
    assert_eq!(next(&mut slots), None);
}

#[test]
fn what_the_peer_was_told_before_is_not_forgotten_by_putting_back() {
    let mut slots = one_peer();
    slots.handle_broadcast(own(1, 5)).unwrap();
    drain(&mut slots);
    slots.handle_abort(&id(1));
    slots.handle_broadcast(own(2, 5)).unwrap();
    assert!(next(&mut slots).is_some());
    slots.put_back(PEER, Slot(0));
    slots.handle_abort(&id(2));
    assert_eq!(next(&mut slots), Some((0, 4, Told::Clear)));
}

#[test]
fn aborting_a_push_that_broke_halfway_sends_a_clear() {
    let mut slots = one_peer();
    slots.handle_broadcast(own(1, 5)).unwrap();
    drain(&mut slots);
    slots.handle_broken(PEER, Slot(0));
    slots.handle_abort(&id(1));
    assert_eq!(next(&mut slots), Some((0, 2, Told::Clear)));
}

#[test]
fn words_do_not_wait_for_pushes_on_a_link_without_room_for_bodies() {
    let mut slots = one_peer();
    for active in [own(1, 5), relay(2), own(3, 5)] {
        slots.handle_broadcast(active).unwrap();
    }
    let word = slots.next_word(PEER, &mut |_| false).unwrap();
    assert_eq!((word.slot, word.told), (Slot(1), Told::Advert(&relay(2))));
    assert_eq!(slots.next_word(PEER, &mut |_| false), None);
    assert!(!slots.has_words(PEER) && slots.backlog(PEER) == 2);
    assert_eq!(next(&mut slots).map(|(slot, ..)| slot), Some(2), "the search goes round");
    slots.handle_abort(&id(3));
    let word = slots.next_word(PEER, &mut |_| false).unwrap();
    assert_eq!((word.slot, word.told), (Slot(2), Told::Clear));
}

#[test]
fn a_disconnected_peer_has_no_updates() {
    let mut slots = one_peer();
    slots.handle_broadcast(own(1, 5)).unwrap();
    slots.handle_disconnected(PEER);
    assert!(!slots.has_updates(PEER));
    slots.put_back(PEER, Slot(0));
    assert_eq!(next(&mut slots), None);
}

#[test]
fn slots_and_peers_out_of_range_are_ignored() {
    let mut slots = one_peer();
    let nobody = PeerIndex(9);
    slots.handle_connected(nobody);
    slots.handle_disconnected(nobody);
    slots.put_back(PEER, Slot(3));
    slots.put_back(nobody, Slot(0));
    assert!(!slots.has_updates(nobody) && !slots.has_updates(PEER));
}

/// A table of four slots that hold 1 to 3, and no peer.
fn three_active() -> Slots {
    let mut slots = slots(4, Class::High);
    for byte in 1..=3 {
        slots.handle_broadcast(own(byte, 5)).unwrap();
    }
    slots
}

fn heard(slots: &mut Slots) -> Vec<(u32, u64)> {
    std::iter::from_fn(|| next(slots).map(|(slot, version, _)| (slot, version))).collect()
}

#[test]
fn what_a_peer_holds_as_it_is_now_is_not_told_again() {
    let mut slots = three_active();
    assert!(slots.handle_held(PEER, Slot(0), Version(1)));
    assert!(slots.handle_held(PEER, Slot(2), Version(3)));
    assert!(!slots.handle_held(PEER, Slot(2), Version(3)), "said before");
    let (_, occupied) = slots.handle_connected(PEER);
    assert_eq!(&occupied[..], [0b111]);
    assert_eq!(heard(&mut slots), [(1, 2)]);
    assert!(!slots.handle_held(PEER, Slot(1), Version(2)), "told already");
}

#[test]
fn what_a_peer_says_late_counts_as_far_as_it_was_not_told() {
    let mut slots = three_active();
    slots.handle_connected(PEER);
    assert_eq!(next(&mut slots).map(|(slot, ..)| slot), Some(0));
    for (slot, counts) in [(0, false), (1, true), (1, false)] {
        assert_eq!(slots.handle_held(PEER, Slot(slot), Version(u64::from(slot) + 1)), counts);
    }
    assert_eq!(heard(&mut slots), [(2, 3)]);
}

#[test]
fn what_a_peer_holds_at_another_version_or_nowhere_is_told() {
    let mut slots = three_active();
    for (slot, version) in [(0, 0), (0, 2), (1, u64::MAX), (3, 4), (u32::MAX, 1)] {
        assert!(!slots.handle_held(PEER, Slot(slot), Version(version)));
    }
    assert!(!slots.handle_held(PeerIndex(9), Slot(0), Version(1)));
    slots.handle_connected(PEER);
    assert_eq!(heard(&mut slots), [(0, 1), (1, 2), (2, 3)]);
}

#[test]
fn what_changes_after_a_peer_said_it_holds_it_is_told() {
    let mut slots = three_active();
    (0..3).for_each(|slot| assert!(slots.handle_held(PEER, Slot(slot), Version(u64::from(slot) + 1))));
    slots.handle_abort(&id(1));
    slots.handle_broadcast(own(4, 5)).unwrap();
    slots.handle_connected(PEER);
    assert_eq!(heard(&mut slots), [(0, 5)]);
    slots.handle_abort(&id(2));
    assert_eq!(next(&mut slots), Some((1, 6, Told::Clear)), "it holds what it was not told again");
}

#[test]
fn what_a_peer_said_it_holds_ends_with_its_connection() {
    let mut slots = three_active();
    assert!(slots.handle_held(PEER, Slot(0), Version(1)));
    slots.handle_disconnected(PEER);
    slots.handle_connected(PEER);
    assert_eq!(heard(&mut slots).len(), 3);
}

#[test]
fn a_refusal_of_what_was_told_is_reported_once() {
    let mut slots = three_active();
    slots.handle_connected(PEER);
    let refuse = |slots: &mut Slots, slot, version, reason| {
        slots.handle_refused(PEER, Slot(slot), Version(version), reason)
    };
    assert!(!refuse(&mut slots, 0, 1, Refusal::SlotLimit), "it was not told of it yet");
    drain(&mut slots);
    assert!(refuse(&mut slots, 0, 1, Refusal::SlotLimit) && refuse(&mut slots, 2, 3, Refusal::ArtifactSize));
    assert!(!refuse(&mut slots, 0, 1, Refusal::ArtifactSize), "it said so before");
    for (slot, version) in [(1, 1), (1, u64::MAX), (3, 4), (u32::MAX, 1)] {
        assert!(!refuse(&mut slots, slot, version, Refusal::SlotLimit));
    }
    assert!(!slots.handle_refused(OTHER, Slot(0), Version(1), Refusal::SlotLimit), "it is not connected");
    assert!(slots.has_refusals());
    assert_eq!(slots.next_refusal(), Some((id(1), PEER, Refusal::SlotLimit)));
    assert_eq!(slots.next_refusal(), Some((id(3), PEER, Refusal::ArtifactSize)));
    assert_eq!((slots.next_refusal(), slots.has_refusals()), (None, false));
    slots.handle_disconnected(PEER);
    slots.handle_connected(PEER);
    drain(&mut slots);
    assert!(!refuse(&mut slots, 0, 1, Refusal::SlotLimit), "a new connection does not make it new");
}

#[test]
fn a_refusal_of_what_was_aborted_is_not_reported() {
    let mut slots = three_active();
    slots.handle_connected(PEER);
    drain(&mut slots);
    assert!(slots.handle_refused(PEER, Slot(0), Version(1), Refusal::SlotLimit));
    slots.handle_abort(&id(1));
    assert!(!slots.has_refusals() && slots.next_refusal().is_none());
    slots.handle_broadcast(own(4, 5)).unwrap();
    drain(&mut slots);
    assert!(!slots.handle_refused(PEER, Slot(0), Version(1), Refusal::SlotLimit));
    assert!(slots.handle_refused(PEER, Slot(0), Version(5), Refusal::SlotLimit));
    assert_eq!(slots.next_refusal(), Some((id(4), PEER, Refusal::SlotLimit)));
}
