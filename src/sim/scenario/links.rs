//! Links come and go, and members stand still.

use std::time::Duration;

use bytes::Bytes;

use super::PUSHED;
use super::script::{ensure, millis};
use crate::sim::world::World;
use crate::types::{ArtifactId, Rng};

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

/// Each half makes and aborts a lot while the two are apart.
pub(super) fn partition_heals(world: &mut World) -> Result<(), String> {
    world.pass(millis(200))?;
    let mut before = Vec::new();
    for node in 0..4 {
        before.push((node, world.make_many(node, 150)?));
    }
    let some = world.rng.below(1_000);
    world.pass(millis(some))?;
    for (a, b) in [(0, 2), (0, 3), (1, 2), (1, 3)] {
        world.separate(a, b);
    }
    let (mut kept, mut gone) = (Vec::new(), Vec::new());
    for (node, ids) in before {
        let (aborted, left) = ids.split_at(75);
        aborted.iter().try_for_each(|id| world.drop_one(node, *id))?;
        gone.extend(aborted.iter().map(|id| (node, *id)));
        kept.extend_from_slice(left);
        // Some of the slots stay free: nothing but the table as a whole says so.
        kept.extend(world.make_many(node, 50)?);
    }
    world.pass(millis(3_000))?;
    world.make_peace()?;
    for node in 0..4 {
        let had = world.had(node, &kept);
        ensure(had == kept.len(), || format!("member {node} has {had} of {}", kept.len()))?;
        let ghost =
            |(maker, id): &&(usize, ArtifactId)| *maker != node && world.view(node, *maker).contains(id);
        let ghosts = gone.iter().filter(ghost).count();
        ensure(ghosts == 0, || format!("P3: member {node} believes in {ghosts} ghosts"))?;
    }
    world.finish()
}

/// How long the other members of eight take to have everything, while one stands still from the moment on at which it has made
/// something that they ask for; against the same without it, by the same seed.
pub(super) fn stalled_peer(world: &mut World) -> Result<(), String> {
    let alone = time_to_have_all(&mut World::new(world.options.clone()), None)?;
    let beside = time_to_have_all(world, Some(7))?;
    ensure(beside.as_nanos() * 10 <= alone.as_nanos() * 11, || {
        format!(
            "P5: {beside:?} until the others have everything, {alone:?} without the one that stands still"
        )
    })?;
    world.pass(STALL)?;
    world.make_peace()?;
    world.finish()
}

/// How long it stands still.
const STALL: Duration = Duration::from_secs(30);

fn time_to_have_all(world: &mut World, stalled: Option<usize>) -> Result<Duration, String> {
    // Not the world's dice: a pause draws from them.
    let rng = &mut Rng::new(world.options.seed);
    world.pass(millis(300))?;
    let make = |world: &mut World, rng: &mut Rng, node: usize, size: u64| {
        let mut body = vec![0; size as usize];
        rng.fill(&mut body);
        world.broadcast(node, 0, Bytes::from(body))
    };
    for _ in 0..10 {
        make(world, rng, 7, 500)?;
    }
    let asks = |world: &World| (0..7).all(|node| world.asks(node, 7) > 0);
    world.until(Duration::from_secs(2), "requests to the one that will stand still", asks)?;
    if let Some(node) = stalled {
        world.pause(node, STALL);
    }
    let mut ids = Vec::new();
    for number in 0..450 {
        let size = if number % 2 == 0 { PUSHED } else { 1_000 + rng.below(1_000) };
        ids.extend(make(world, rng, number % 3, size)?);
    }
    // The last one first: it is missing for longest.
    let everywhere = |world: &World, id: &ArtifactId| (0..7).all(|node| world.had(node, &[*id]) == 1);
    let all = |world: &World| ids.iter().rev().all(|id| everywhere(world, id));
    world.until(STALL, "everything at the others", all)
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
