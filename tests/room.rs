//! Room for received bodies, when a member names much and serves nothing.
#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod lane;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use corecast::engine::{Command, Effects, Event};
use corecast::types::{ArtifactId, Attribute, HashKind, Verified};
use corecast::wire::{Change, Incoming};
use lane::{HONEST, Lane, SILENT, SIZE, TOPIC};

#[test]
fn what_nobody_can_be_asked_for_does_not_keep_its_room_for_ever() {
    let mut lane = Lane::new();
    // Half of it is asked for in vain and gives up its room, to the other half, which cannot be asked for.
    for number in 0..128 {
        lane.name(SILENT, number);
    }
    assert_eq!(lane.asked(SILENT, Duration::from_secs(10)).len(), 64);
    let wanted = lane.name(HONEST, 0);
    assert_eq!(lane.asked(HONEST, Duration::from_secs(10)), [wanted]);
}

#[test]
fn pushes_that_do_not_end_do_not_keep_their_room_for_ever() {
    let mut lane = Lane::new();
    for number in 0..64 {
        lane.push(SILENT, number, ArtifactId([number as u8; 32]), SIZE);
    }
    let wanted = lane.name(HONEST, 0);
    assert_eq!(lane.asked(HONEST, Duration::from_millis(900)), []);
    assert_eq!(lane.asked(HONEST, Duration::from_secs(1)), [wanted]);
}

#[test]
fn who_names_a_thousand_large_ones_does_not_hold_up_who_names_one() {
    let mut lane = Lane::new();
    for number in 0..1000 {
        lane.name_sized(SILENT, number, 64 * SIZE);
    }
    // It is known to be silent by then.
    lane.asked(SILENT, Duration::from_secs(5));
    let wanted = lane.name(HONEST, 0);
    assert_eq!(lane.asked(HONEST, Duration::from_secs(20)), [wanted]);
}

#[test]
fn a_body_that_lost_its_room_takes_it_back_when_it_comes() {
    let mut lane = Lane::new();
    let body = Verified::hash(HashKind::Blake3, Bytes::from(vec![7; 64 * SIZE as usize]));
    let (key, head) = lane.push(HONEST, 0, body.id(), 64 * SIZE);
    // Others wait for so long that they get the room.
    for number in 1..65 {
        lane.name(SILENT, number);
    }
    assert_eq!(lane.asked(SILENT, Duration::from_secs(3)).len(), 64);
    lane.engine.handle_link(HONEST, Incoming::Pushed { key, head, body }, lane.now, &mut Effects::new());
    assert!(matches!(lane.engine.poll_event(TOPIC, lane.now), Some(Event::Delivered { .. })));
}

#[test]
fn what_needs_the_whole_room_is_not_overtaken_for_ever() {
    let mut lane = Lane::new();
    for number in 0..900 {
        lane.name(SILENT, number);
    }
    lane.asked(SILENT, Duration::from_millis(100));
    let wanted = lane.name_sized(HONEST, 0, 64 * SIZE);
    assert_eq!(lane.asked(HONEST, Duration::from_secs(4)), [wanted]);
}

/// A body of `size` bytes.
fn small_push(number: u32, size: usize) -> Change {
    let mut body = vec![0; size];
    body[..4].copy_from_slice(&number.to_le_bytes());
    Change::Push { attribute: Attribute::EMPTY, body: body.into() }
}

#[test]
fn small_pushes_do_not_take_all_room_from_what_is_larger() {
    let mut lane = Lane::new();
    for number in 0..64 {
        lane.say(SILENT, number, u64::from(number) + 1, small_push(number, SIZE as usize));
    }
    let (mut held, wanted) = (VecDeque::new(), lane.name_sized(HONEST, 0, 2 * SIZE));
    for number in 64..1000 {
        while let Some(Event::Delivered { artifact, .. }) = lane.engine.poll_event(TOPIC, lane.now) {
            held.push_back(artifact.id);
        }
        // The replica lets one go, and another is pushed.
        let id = held.pop_front().unwrap();
        lane.engine.handle_command(Command::Release { topic: TOPIC, id }, lane.now, &mut Effects::new());
        if lane.asked(HONEST, Duration::from_millis(100)).contains(&wanted) {
            return;
        }
        lane.say(SILENT, number % 900, u64::from(number) + 1, small_push(number, SIZE as usize));
    }
    panic!("it was never asked for");
}

#[test]
fn what_the_replica_holds_in_the_way_of_a_large_one_does_not_keep_others_out_for_long() {
    let mut lane = Lane::new();
    lane.say(SILENT, 0, 1, small_push(0, 8));
    assert!(matches!(lane.engine.poll_event(TOPIC, lane.now), Some(Event::Delivered { .. })));
    lane.name_sized(SILENT, 1, 64 * SIZE);
    let first = lane.name(HONEST, 0);
    assert_eq!(lane.asked(HONEST, Duration::from_secs(2)), [first]);
    let second = lane.name(HONEST, 1);
    assert_eq!(lane.asked(HONEST, Duration::from_secs(1)), []);
    assert_eq!(lane.asked(HONEST, Duration::from_secs(3)), [second]);
}

#[test]
fn something_tiny_does_not_take_the_turns_of_its_member_along() {
    let mut lane = Lane::new();
    for number in 0..62 {
        lane.name_sized(SILENT, number, 64 * SIZE);
    }
    lane.name_sized(SILENT, 63, 0);
    let wanted = lane.name(HONEST, 0);
    assert_eq!(lane.asked(HONEST, Duration::from_secs(3)), [wanted]);
}
