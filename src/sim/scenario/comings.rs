//! Members come and go.

use bytes::Bytes;

use super::script::{ensure, millis};
use crate::sim::member::topic_id;
use crate::sim::world::{Actor, World};
use crate::types::ArtifactId;

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

pub(super) fn receiver_restart(world: &mut World) -> Result<(), String> {
    let ids = world.make_many(0, 30)?;
    let wait = millis(world.rng.below(400));
    world.pass(wait)?;
    world.crash(2);
    let wait = millis(world.rng.below(1_000));
    world.pass(wait)?;
    world.start(2);
    world.make_peace()?;
    ensure(world.had(2, &ids) == ids.len(), || "the restarted one lacks something".to_owned())?;
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

pub(super) fn shared_ids(world: &mut World) -> Result<(), String> {
    world.pass(millis(200))?;
    for round in 0..6_u64 {
        let body = Bytes::from(vec![round as u8; if world.rng.one_in(2) { 50 } else { 400 }]);
        for node in 0..3 {
            world.broadcast(node, 0, body.clone())?;
            let wait = millis(world.rng.below(60));
            world.pass(wait)?;
        }
    }
    let gone = world.rng.below(3) as usize;
    world.crash((gone + 1) % 3);
    world.crash((gone + 2) % 3);
    world.pass(millis(900))?;
    world.make_peace()?;
    world.finish()
}

pub(super) fn advertiser_leaves(world: &mut World) -> Result<(), String> {
    world.pass(millis(200))?;
    for _ in 0..5 {
        let ids = world.make_many(0, 5)?;
        let wait = millis(world.rng.below(120));
        world.pass(wait)?;
        match world.rng.below(3) {
            0 => world.crash(0),
            1 => (1..4).try_for_each(|peer| world.close(0, peer))?,
            _ => ids.iter().try_for_each(|id| world.drop_one(0, *id))?,
        }
        let wait = millis(world.rng.below(300));
        world.pass(wait)?;
        if matches!(world.actors[0], Actor::Off) {
            world.start(0);
        }
    }
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
