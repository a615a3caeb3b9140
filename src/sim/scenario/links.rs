//! Links come and go, and members stand still.

use std::time::Duration;

use bytes::Bytes;

use super::script::{ensure, millis};
use crate::sim::world::World;

pub(super) fn flapping_link(world: &mut World) -> Result<(), String> {
    world.pass(millis(200))?;
    let ids = world.make_many(0, 30)?;
    for _ in 0..10 {
        let (down, up) = (world.rng.below(1_200), world.rng.below(400));
        world.separate(0, 1);
        world.pass(millis(down))?;
        world.reunite(0, 1);
        world.pass(millis(up))?;
    }
    world.make_peace()?;
    ensure(world.had(1, &ids) == ids.len(), || "something is missing behind the link".to_owned())?;
    let (unneeded, dropped) = (world.counter(|c| c.bodies_unneeded), world.counter(|c| c.bodies_dropped));
    ensure(unneeded + dropped == 0, || format!("P6: {unneeded} bodies came twice, {dropped} in vain"))?;
    world.finish()
}

pub(super) fn partition_heals(world: &mut World) -> Result<(), String> {
    world.pass(millis(200))?;
    for (a, b) in [(0, 2), (0, 3), (1, 2), (1, 3)] {
        world.separate(a, b);
    }
    let mut ids = Vec::new();
    for node in 0..4 {
        ids.extend(world.make_many(node, 30)?);
    }
    world.pass(millis(2_000))?;
    world.make_peace()?;
    for node in 0..4 {
        ensure(world.had(node, &ids) == ids.len(), || format!("member {node} lacks something"))?;
    }
    world.finish()
}

pub(super) fn stalled_peer(world: &mut World) -> Result<(), String> {
    world.pass(millis(200))?;
    world.pause(3, Duration::from_secs(30));
    let mut ids = world.make_many(0, 30)?;
    ids.extend(world.make_many(1, 30)?);
    world.pass(Duration::from_secs(5))?;
    for node in 0..3 {
        let had = world.had(node, &ids);
        ensure(had == ids.len(), || format!("P5: member {node} has {had} while another stands still"))?;
    }
    world.make_peace()?;
    world.finish()
}

pub(super) fn reconnect_with_many(world: &mut World) -> Result<(), String> {
    world.pass(millis(300))?;
    for number in 0..10_000_u64 {
        world.broadcast(0, 0, Bytes::copy_from_slice(&number.to_le_bytes()))?;
    }
    world.pass(Duration::from_secs(20))?;
    let told = |world: &World| world.counter(|c| c.pushes_sent + c.adverts_sent + c.clears_sent);
    let before = told(world);
    ensure(before == 10_000, || format!("{before} updates for 10,000 artifacts"))?;
    world.separate(0, 1);
    world.pass(Duration::from_secs(2))?;
    world.reunite(0, 1);
    world.make_peace()?;
    let again = told(world) - before;
    ensure(again == 0, || format!("{again} of 10,000 artifacts were told again"))?;
    world.finish()
}
