//! Members come and go.

use std::time::Duration;

use bytes::Bytes;

use super::script::{adverted, ensure, millis, update};
use crate::sim::member::{Known, topic_id};
use crate::sim::world::World;
use crate::types::{ArtifactId, HashKind, Version};
use crate::wire::{Change, Frame, Resync};

pub(super) fn late_joiner(world: &mut World) -> Result<(), String> {
    world.crash(3);
    let ids = world.make_many(0, 20)?;
    world.pass(millis(500))?;
    let (gone, kept) = ids.split_at(10);
    gone.iter().try_for_each(|id| world.drop_one(0, *id))?;
    world.pass(millis(500))?;
    world.start(3);
    world.make_peace()?;
    ensure(world.had(3, kept) == 10, || "the late one does not have what is active".to_owned())?;
    ensure(world.had(3, gone) == 0, || "P3: the late one got what was aborted before".to_owned())?;
    world.finish()
}

/// The maker alone can tell it again, though it heard before that the restarted one has everything.
pub(super) fn receiver_restart(world: &mut World) -> Result<(), String> {
    world.pass(millis(200))?;
    for peer in [1, 3] {
        world.separate(2, peer);
    }
    let ids = world.make_many(0, 30)?;
    let wait = millis(world.rng.below(600));
    world.pass(wait)?;
    world.crash(2);
    let wait = millis(world.rng.below(1_000));
    world.pass(wait)?;
    world.start(2);
    let bound = world.options.bound();
    world.until(bound, "everything, at the restarted one", |world| world.had(2, &ids) == ids.len())?;
    world.make_peace()?;
    world.finish()
}

pub(super) fn sender_restart(world: &mut World) -> Result<(), String> {
    let before = world.make_many(0, 30)?;
    let wait = millis(world.rng.below(600));
    world.pass(wait)?;
    world.crash(0);
    let wait = millis(world.rng.below(1_000));
    world.pass(wait)?;
    world.start(0);
    let after = world.make_many(0, 3)?;
    world.make_peace()?;
    for node in 1..4 {
        ensure(world.had(node, &after) == 3, || format!("member {node} lacks what is new"))?;
        let ghost = |id: &&ArtifactId| world.member(node).is_some_and(|m| m.engine.is_named(topic_id(0), id));
        let ghosts = before.iter().filter(ghost).count();
        ensure(ghosts == 0, || format!("P3: member {node} believes in {ghosts} ghosts"))?;
    }
    world.finish()
}

/// One artifact in many tables, and in two slots of one: whoever still names it last keeps it alive, and no longer.
pub(super) fn shared_ids(world: &mut World) -> Result<(), String> {
    const PUPPET: usize = 4;
    world.pass(millis(200))?;
    for round in 0..6_u64 {
        let body = Bytes::from(vec![round as u8; if world.rng.one_in(2) { 50 } else { 400 }]);
        for node in 0..3 {
            world.broadcast(node, 0, body.clone())?;
            let wait = millis(world.rng.below(60));
            world.pass(wait)?;
        }
    }
    world.options.habits.keep_percent = 100;
    for (leave, byte) in [(false, 100_u8), (true, 101)] {
        let body = Bytes::from(vec![byte; 400]);
        let id = HashKind::Blake3.id(&body);
        let held = |world: &World| world.member(3).and_then(|m| m.known.get(&(topic_id(0), id)).copied());
        world.broadcast(0, 0, body.clone())?;
        let here = |world: &World| world.had(3, &[id]) == 1;
        world.until(Duration::from_secs(5), "the body", here)?;
        let slots = [u32::from(byte) - 100, u32::from(byte) - 90];
        for slot in slots {
            world.say(PUPPET, 3, &[update(slot, 1, adverted(&body))])?;
        }
        match leave {
            true => {
                // Both are gone at once, and come back with nothing.
                [0, PUPPET].into_iter().for_each(|node| world.crash(node));
                world.pass(millis(900))?;
                ensure(held(world) == Some(Known::Held), || {
                    "P3: a lost connection is not a withdrawal".to_owned()
                })?;
                [0, PUPPET].into_iter().for_each(|node| world.start(node));
                let back = |world: &World| {
                    world.connection(PUPPET, 3).is_some() && world.connection(3, PUPPET).is_some()
                };
                world.until(Duration::from_secs(5), "a connection", back)?;
                let nothing = Resync { topic: topic_id(0), version: Version(0), occupied: Bytes::new() };
                world.say(PUPPET, 3, &[Frame::Resync(nothing)])?;
            }
            false => {
                world.drop_one(0, id)?;
                world.until(Duration::from_secs(5), "the maker's clear", |world| {
                    !world.view(3, 0).contains(&id)
                })?;
                // To say the same again is no third slot.
                world.say(PUPPET, 3, &[update(slots[0], 2, adverted(&body))])?;
                world.say(PUPPET, 3, &[update(slots[0], 3, Change::Clear)])?;
                ensure(held(world) == Some(Known::Held), || {
                    "P1: it is still named, in another slot".to_owned()
                })?;
                world.say(PUPPET, 3, &[update(slots[1], 2, Change::Clear)])?;
            }
        }
        let gone = |world: &World| held(world).is_none() && world.state(3, &id).is_none();
        world.until(Duration::from_secs(5), "the withdrawal of what nobody names", gone)?;
    }
    let gone = world.rng.below(3) as usize;
    world.crash((gone + 1) % 3);
    world.crash((gone + 2) % 3);
    world.pass(millis(900))?;
    world.make_peace()?;
    world.finish()
}

pub(super) fn maker_dies(world: &mut World) -> Result<(), String> {
    world.pass(millis(200))?;
    for peer in [2, 3] {
        world.separate(0, peer);
    }
    let ids = world.make_many(0, 10)?;
    world.pass(millis(600))?;
    world.crash(0);
    let end = world.options.bound();
    world.pass(end)?;
    for node in 1..4 {
        let had = world.had(node, &ids);
        ensure(had == ids.len(), || format!("P1: member {node} has {had} of what the dead one made"))?;
    }
    world.make_peace()?;
    world.finish()
}
