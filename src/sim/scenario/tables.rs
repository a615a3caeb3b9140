//! What stands in the slots.

use super::script::{ensure, millis};
use crate::sim::world::World;

pub(super) fn shrink_to_one(world: &mut World) -> Result<(), String> {
    world.options.habits.keep_percent = 100;
    let ids = world.make_many(1, 30)?;
    world.pass(millis(800))?;
    ids[1..].iter().try_for_each(|id| world.drop_one(1, *id))?;
    world.pass(millis(800))?;
    for node in [0, 2, 3] {
        let Some(member) = world.member(node) else { continue };
        let census = member.engine.census();
        let one = census.artifacts == 1 && census.named == 1 && census.body_bytes <= 700;
        ensure(one, || format!("member {node} holds more than the one: {census:?}"))?;
    }
    world.make_peace()?;
    world.finish()
}

pub(super) fn every_topic_full(world: &mut World) -> Result<(), String> {
    for node in 0..4 {
        for topic in 0..3 {
            for _ in 0..20 {
                world.make(node, topic)?;
            }
            ensure(world.make(node, topic).is_err(), || "a full table takes more".to_owned())?;
        }
    }
    world.make_peace()?;
    world.finish()
}
