//! What stands in the slots.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::script::{adverted, ensure, millis, orders, pushed, update};
use crate::engine::ArtifactState;
use crate::sim::member::topic_id;
use crate::sim::net::Cargo;
use crate::sim::world::{Actor, World};
use crate::types::{ArtifactId, HashKind, Instant, Slot, Version};
use crate::wire::CloseCode;
use crate::wire::{BatchReader, Change, Frame, Held, Resync};

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

/// Four statements about one slot, in all orders: after each, the newest of those that have come stands.
pub(super) fn stale_updates(world: &mut World) -> Result<(), String> {
    world.pass(Duration::from_secs(3))?;
    for (round, order) in orders(4).into_iter().chain(orders(4)).enumerate() {
        // Something stands there already, every other time: then the last of the four sets the slot, else it clears it.
        let before = match round < 24 {
            true => Some(world.make(0, 0)?),
            false => None,
        };
        world.until(Duration::from_secs(2), "the first content", |world| {
            before.is_none_or(|id| world.had(1, &[id]) == 1)
        })?;
        world.hold(0, 1);
        let mut said = Vec::new();
        for _ in 0..2 {
            if let Some(id) = before.filter(|_| said.is_empty()) {
                world.drop_one(0, id)?;
                said.push(None);
            }
            let id = world.make(0, 0)?;
            said.push(Some(id));
            if said.len() < 4 {
                world.drop_one(0, id)?;
                said.push(None);
            }
        }
        world.until(Duration::from_secs(10), "all four on the way", |world| world.held(0, 1).len() == 4)?;
        stale_updates_arrive(world, before, &said, &order)?;
        world.pass(millis(2_000))?;
        let kept: Vec<ArtifactId> = said[3].into_iter().collect();
        ensure(world.had(1, &kept) == kept.len(), || "P1: what came last is not there".to_owned())?;
        kept.iter().try_for_each(|id| world.drop_one(0, *id))?;
        world.until(Duration::from_secs(10), "the last one is gone", |world| world.view(1, 0).is_empty())?;
    }
    world.go_wild(45, 0)
}

fn stale_updates_arrive(
    world: &mut World,
    before: Option<ArtifactId>,
    said: &[Option<ArtifactId>],
    order: &[usize],
) -> Result<(), String> {
    // In what order they got there is the link's affair; their versions say in what order they were said.
    let versions = world.held(0, 1).into_iter().map(version_of);
    let versions: Vec<u64> = versions.collect::<Option<_>>().ok_or("more than statements is on the way")?;
    let first = versions.iter().copied().min().unwrap_or(0);
    let place = |at: usize| (versions[at] - first) as usize;
    let mut newest = None;
    world.bring_held(0, 1, order.iter().copied(), |world, at| {
        newest = newest.max(Some(place(at)));
        let stands = newest.map_or(before, |newest| said[newest]);
        let (seen, right) = (world.view(1, 0), stands.into_iter().collect());
        ensure(seen == right, || format!("P3: in the order {order:?} {seen:?} stands, not {right:?}"))?;
        // A pushed body that was overtaken is not handed over.
        let stale = said[place(at)].filter(|id| stands != Some(*id));
        let had = stale.is_some_and(|id| world.had(1, &[id]) > 0);
        ensure(!had, || format!("P3: in the order {order:?} {stale:?} is handed over, though it is stale"))
    })
}

/// The version that a batch of one statement carries.
fn version_of(cargo: &Cargo) -> Option<u64> {
    let Cargo::Batch(bytes) = cargo else { return None };
    let (mut reader, mut frames) = (BatchReader::default(), Vec::new());
    reader.read(bytes.get(1..)?, &mut frames).ok()?;
    match &frames[..] {
        [Frame::Update(update)] => Some(update.version.0),
        _ => None,
    }
}

/// A peer overwrites its slots all the time, and names some beyond the limit; then all members do so in tiny tables.
pub(super) fn slot_limit(world: &mut World) -> Result<(), String> {
    world.pass(millis(300))?;
    let (puppet, limit) = (3, u64::from(world.options.topics[0].slots));
    let mut table = BTreeMap::new();
    for version in 1..=200 {
        let slot = world.rng.below(limit + 3);
        let body = Bytes::from(vec![world.rng.below(5) as u8; 300]);
        let clears = world.rng.one_in(3);
        let change = if clears { Change::Clear } else { adverted(&body) };
        let refused = world.count(1, |c| c.updates_refused);
        world.say(puppet, 1, &[update(slot as u32, version, change)])?;
        let over = slot >= limit;
        match clears {
            _ if over => (),
            true => drop(table.remove(&slot)),
            false => drop(table.insert(slot, HashKind::Blake3.id(&body))),
        }
        let refused = world.count(1, |c| c.updates_refused) - refused;
        ensure(refused == u64::from(over && !clears), || {
            format!("slot {slot} of {limit}: {refused} refused")
        })?;
        let (seen, right) = (world.view(1, puppet), table.values().copied().collect());
        ensure(seen == right, || format!("P4: the slots hold {seen:?}, not {right:?}"))?;
        let wait = millis(world.rng.below(20));
        world.pass(wait)?;
    }
    for slot in 0..limit as u32 {
        world.say(puppet, 1, &[update(slot, 201, Change::Clear)])?;
    }
    ensure(world.census(1).named == 0, || format!("M5: {:?} is left", world.census(1)))?;
    world.go_wild(45, 20)
}

/// A peer's versions come to the end of the numbers: nothing begins anew, and nothing else waits for it.
pub(super) fn version_limit(world: &mut World) -> Result<(), String> {
    const END: u64 = u64::MAX;
    world.pass(millis(300))?;
    let bodies: Vec<Bytes> = (0..6_u8).map(|byte| Bytes::from(vec![byte; 90])).collect();
    let ids: Vec<ArtifactId> = bodies.iter().map(|body| HashKind::Blake3.id(body)).collect();
    world.puppet(3)?.learn(topic_id(0), ids[4], bodies[4].clone());
    for node in 0..3 {
        let resync = Resync { topic: topic_id(0), version: Version(END - 4), occupied: Bytes::new() };
        world.say(3, node, &[Frame::Resync(resync)])?;
        let steps = [
            (update(0, END - 3, pushed(&bodies[0])), vec![0]),
            (update(1, END - 2, pushed(&bodies[1])), vec![0, 1]),
            (update(0, END - 1, Change::Clear), vec![1]),
            (update(0, END, pushed(&bodies[2])), vec![1, 2]),
            // Beyond the end there is nothing, and nothing is newer than it.
            (update(0, 0, pushed(&bodies[3])), vec![1, 2]),
            (update(0, 1, Change::Clear), vec![1, 2]),
            (update(0, END, Change::Clear), vec![1, 2]),
            (update(0, END - 1, Change::Clear), vec![1, 2]),
            // Each slot has its own.
            (update(1, END - 1, Change::Clear), vec![2]),
            (update(2, 7, adverted(&bodies[4])), vec![2, 4]),
        ];
        for (number, (frame, right)) in steps.into_iter().enumerate() {
            world.say(3, node, &[frame])?;
            let (seen, right) = (world.view(node, 3), right.into_iter().map(|at| ids[at]).collect());
            ensure(seen == right, || format!("P3: step {number}: {seen:?} stands, not {right:?}"))?;
        }
        let stale = world.count(node, |c| c.updates_stale);
        ensure(stale == 4, || format!("{stale} statements of four were stale"))?;
    }
    let made = world.make_many(0, 10)?;
    world.until(Duration::from_secs(10), "what others made, beside such a peer", |world| {
        (1..3).all(|node| world.had(node, &made) == made.len() && world.had(node, &[ids[4]]) == 1)
    })?;
    ensure((0..3).all(|node| world.had(node, &[ids[3]]) == 0), || "P3: what was stale is here".to_owned())?;
    version_limit_resumes(world, &bodies, &ids)?;
    world.make_peace()?;
    world.finish()
}

/// After a reconnect the versions are named as they are; a table that begins anew is believed from its first number on.
fn version_limit_resumes(world: &mut World, bodies: &[Bytes], ids: &[ArtifactId]) -> Result<(), String> {
    for node in 0..3 {
        world.puppet(3)?.held.clear();
        world.close(node, 3, CloseCode::Shutdown)?;
        let connected =
            |world: &World| world.connection(3, node).is_some() && world.connection(node, 3).is_some();
        world.until(Duration::from_secs(5), "a connection", connected)?;
        world.pass(millis(500))?;
        let puppet = world.puppet(3)?;
        let (boot, held) = (puppet.boot(), puppet.held.clone());
        let held: Vec<_> = held.iter().filter(|held| held.boot == boot).flat_map(Held::slots).collect();
        let right = [(Slot(0), Version(u64::MAX)), (Slot(2), Version(7))];
        ensure(held == right, || format!("member {node} says that it holds {held:?}"))?;
        let resync = Resync { topic: topic_id(0), version: Version(1), occupied: Bytes::new() };
        world.say(3, node, &[Frame::Resync(resync)])?;
        let ghosts = world.view(node, 3);
        ensure(ghosts.is_empty(), || format!("P3: {ghosts:?} are ghosts"))?;
        world.say(3, node, &[update(0, 1, pushed(&bodies[5]))])?;
        let seen = world.view(node, 3);
        ensure(seen == [ids[5]].into(), || format!("the old number blocks its slot: {seen:?}"))?;
        ensure(world.had(node, &[ids[5]]) == 1, || {
            "P1: what came on the new connection is not here".to_owned()
        })?;
    }
    Ok(())
}

/// A consumer takes nothing while artifacts come and go in one slot: what it would have been told of them does not pile up.
pub(super) fn stalled_consumer(world: &mut World) -> Result<(), String> {
    world.options.habits.keep_percent = 100;
    world.pass(millis(300))?;
    let first = world.make(0, 0)?;
    let everywhere = |id: ArtifactId| move |world: &World| (1..4).all(|node| world.had(node, &[id]) == 1);
    world.until(Duration::from_secs(5), "the first one, everywhere", everywhere(first))?;
    if let Some(Actor::Honest(member)) = world.actors.get_mut(1) {
        member.stalled_until = Instant::ZERO + Duration::from_secs(86_400);
    }
    world.drop_one(0, first)?;
    let mut ids = Vec::new();
    let (mut most, mut peak) = (0, 1);
    for round in 0..400 {
        let id = world.make(0, 0)?;
        world.until(Duration::from_secs(5), "a body that nobody takes", |world| {
            world.state(1, &id) == Some(ArtifactState::Ready)
                && (2..4).all(|node| world.had(node, &[id]) == 1)
        })?;
        peak = peak.max(world.census(1).artifacts);
        ids.push(id);
        if round < 399 {
            world.drop_one(0, id)?;
            let gone = |world: &World| world.view(1, 0).is_empty();
            world.until(Duration::from_secs(5), "nothing named any more", gone)?;
        }
        most = most.max(world.census(1).tellings);
        ensure(most <= 65 + 4 * peak, || format!("P4: {most} events wait, of {peak} artifacts at a time"))?;
        ensure(world.census(1).body_bytes <= 2_000, || format!("P4: {:?}", world.census(1)))?;
    }
    ensure(most > 60, || format!("only {most} events ever waited"))?;
    world.make_peace()?;
    let had = world.had(1, &ids);
    ensure(had == 1 && world.had(1, &ids[399..]) == 1, || {
        format!("P3: {had} of 400 are told of, one is active")
    })?;
    world.finish()
}

pub(super) fn abort_storm(world: &mut World) -> Result<(), String> {
    world.run_until(Instant::ZERO + world.options.chaos)?;
    let (broadcasts, aborts) = (world.counter(|c| c.broadcasts), world.counter(|c| c.aborts));
    ensure(broadcasts > 1_000 && aborts > 500, || {
        format!("{broadcasts} broadcasts, {aborts} aborts are no storm")
    })?;
    world.make_peace()?;
    world.finish()
}
