//! What datagrams show: what goes over the wire, what overtakes what, and who gets how much of a busy link.

use std::time::Duration;

use bytes::Bytes;

use super::script::{ensure, millis};
use crate::sim::member::topic_id;
use crate::sim::world::World;
use crate::types::{ArtifactId, Class, PerClass, Weights};

/// Of a hundred bytes of bodies, at most so many more are packets' heads, seals and acknowledgements.
const PERCENT: u64 = 8;
/// Bytes for an artifact and a link besides: it is named, asked for, and perhaps alone in its packets.
const EACH: u64 = 400;

/// M4: bytes sent against bytes of bodies, pushed and fetched, small and large.
pub(super) fn wire_cost(world: &mut World) -> Result<(), String> {
    world.pass(millis(500))?;
    let before = world.sent_bytes();
    let (mut ids, mut bodies) = (Vec::new(), 0);
    for number in 0..120 {
        let size = 1 + world.rng.below(if number % 4 == 0 { 60_000 } else { 2_000 }) as usize;
        ids.push(world.make_sized(number % 4, size)?);
        bodies += size as u64;
    }
    let all = |world: &World| (0..4).all(|node| ids.iter().all(|id| world.knows(node, id)));
    let took = world.until(Duration::from_secs(10), "everything everywhere", all)?;
    world.pass(millis(500))?;
    let (sent, links) = (world.sent_bytes() - before, 3);
    let useful = bodies * links;
    let alive = 12 * 100 * (1 + (took + millis(500)).as_millis() as u64 / 100);
    let allowed = useful + useful * PERCENT / 100 + EACH * ids.len() as u64 * links + alive;
    ensure(sent <= allowed, || {
        format!("M4: {sent} bytes sent for {useful} of bodies, allowed are {allowed}")
    })?;
    let (unneeded, dropped) = (world.counter(|c| c.bodies_unneeded), world.counter(|c| c.bodies_dropped));
    ensure(unneeded + dropped == 0, || format!("P6: {unneeded} bodies came twice, {dropped} in vain"))?;
    world.make_peace()?;
    world.finish()
}

/// P7: seconds of bulk wait at a member for each of its links when it makes something critical.
pub(super) fn overtaking(world: &mut World) -> Result<(), String> {
    world.pass(millis(500))?;
    let bulk: Vec<ArtifactId> = (0..150).map(|_| world.make_sized(0, BULK)).collect::<Result<_, String>>()?;
    for _ in 0..8 {
        let wait = 200 + world.rng.below(200);
        world.pass(millis(wait))?;
        let mut body = vec![0; 1_000];
        world.rng.fill(&mut body);
        let urgent = world.broadcast(0, 1, Bytes::from(body))?.ok_or("no room for what is urgent")?;
        let has = |node: usize, world: &World| {
            world.member(node).is_some_and(|m| m.had.contains(&(topic_id(1), urgent)))
        };
        let arrived = |world: &World| (1..4).all(|node| has(node, world));
        // What is on its way waits in the link's buffers at both ends; a packet may be lost there, and again.
        let (links, buffer) = (world.options.links, world.options.datagrams.buffer);
        let queue = Duration::from_secs_f64(2.0 * buffer as f64 / (3 * links.rate) as f64);
        let round = 2 * links.latency + queue;
        world.until(links.latency + queue + 3 * round, "P7: what is critical, past the bulk", arrived)?;
        let left = bulk.iter().filter(|id| !world.knows(1, id)).count();
        ensure(left > 15, || format!("only {left} of the bulk were left to overtake"))?;
    }
    bulk.iter().try_for_each(|id| world.drop_one(0, *id))?;
    world.make_peace()?;
    world.finish()
}

/// Bytes of what waits.
const BULK: usize = 60_000;

/// Everything that there is room for waits at a member in all four classes.
pub(super) fn floods(world: &mut World) -> Result<(), String> {
    const SIZE: usize = 20_000;
    world.pass(millis(500))?;
    let mut made = PerClass::<Vec<ArtifactId>>::from_fn(|_| Vec::new());
    for _ in 0..900 {
        for class in Class::ALL {
            let mut body = vec![0; SIZE];
            world.rng.fill(&mut body);
            let id = world.broadcast(0, class.index(), Bytes::from(body))?;
            made[class].push(id.ok_or("no room for a flood")?);
        }
    }
    let has = |world: &World, class: Class, id: &ArtifactId| {
        world.member(1).is_some_and(|m| m.had.contains(&(topic_id(class.index()), *id)))
    };
    let delivered = |world: &World| {
        PerClass::from_fn(|class| made[class].iter().filter(|id| has(world, class, id)).count())
    };
    // Each may be ahead of the others for a while first.
    while delivered(world)[Class::Bulk] < 20 {
        world.pass(millis(50))?;
    }
    let before = delivered(world);
    while delivered(world)[Class::Critical] < 850 {
        world.pass(millis(50))?;
    }
    let after = delivered(world);
    let got = Class::ALL.map(|class| after[class] - before[class]);
    let sum: usize = got.iter().sum();
    for class in Class::ALL {
        let (share, weight) = (got[class.index()] * 1_000 / sum, Weights::DEFAULT.of(class) as usize * 10);
        let fair = share * 10 >= weight * 9 && share * 10 <= weight * 11;
        ensure(fair, || format!("P7: {class} got {share} thousandths, of {got:?}; its weight is {weight}"))?;
    }
    for class in Class::ALL {
        let drop = |world: &mut World, id: &ArtifactId| {
            world.with_member(0, |member, now, fx| member.abort(topic_id(class.index()), *id, now, fx))
        };
        made[class].iter().try_for_each(|id| drop(world, id))?;
    }
    world.make_peace()?;
    world.finish()
}

/// Of a receiver's busy link no maker gets less than so many percent of an equal share in the first four seconds. The bar of L6
/// is 80: CUBIC, with queues that drop at their tail, comes near it only after tens of seconds.
const SHARE: usize = 30;

pub(super) fn shared_link(world: &mut World) -> Result<(), String> {
    world.pass(millis(500))?;
    let mut made = Vec::new();
    for node in 0..4 {
        let ids = (0..150).map(|_| world.make_sized(node, 20_000)).collect::<Result<Vec<_>, String>>()?;
        made.push(ids);
    }
    let had = |world: &World, node: usize, maker: usize| {
        made[maker].iter().filter(|id| world.knows(node, id)).count()
    };
    let total = |world: &World| -> usize {
        (0..4)
            .flat_map(|node| (0..4).map(move |maker| (node, maker)))
            .filter(|(a, b)| a != b)
            .map(|(node, maker)| had(world, node, maker))
            .sum()
    };
    let end = world.now + Duration::from_secs(60);
    while total(world) < 900 {
        ensure(world.now < end, || "P1: not half of it is everywhere after a minute".to_owned())?;
        world.pass(millis(50))?;
    }
    for node in 0..4 {
        let shares: Vec<usize> =
            (0..4).filter(|maker| *maker != node).map(|maker| had(world, node, maker)).collect();
        let fair = shares.iter().sum::<usize>() / shares.len();
        let least = shares.iter().min().copied().unwrap_or_default();
        ensure(least * 100 >= fair * SHARE, || format!("L6: member {node} got {shares:?} of three makers"))?;
    }
    for (node, ids) in made.iter().enumerate() {
        ids.iter().try_for_each(|id| world.drop_one(node, *id))?;
    }
    world.make_peace()?;
    world.finish()
}

impl World {
    /// Bytes of all datagrams so far.
    fn sent_bytes(&self) -> u64 {
        self.wire.as_ref().map_or(0, |wire| wire.paths.carried().1)
    }

    /// Whether a member has something of the first topic, of its own or others'.
    fn knows(&self, node: usize, id: &ArtifactId) -> bool {
        self.member(node).is_some_and(|m| m.had.contains(&(topic_id(0), *id)))
    }
}
