//! Bodies on their way, and what happens meanwhile.

use std::time::Duration;

use bytes::Bytes;

use super::script::{adverted, ensure, millis, orders, update};
use crate::config::Verdict;
use crate::engine::ArtifactState;
use crate::sim::hostile::Manner;
use crate::sim::member::{SEQUENCES, limits, sequence, topic_id};
use crate::sim::net::Cargo;
use crate::sim::world::{Actor, World};
use crate::types::{ArtifactId, Attribute, HashKind, Slot, Version};
use crate::wire::{Change, CloseCode, Frame, PushHead, Resync, Update};

/// Bytes of a body that is adverted.
pub(super) const ADVERTED: usize = 400;
/// Bytes of a body that is pushed on a stream of its own.
pub(super) const STREAMED: usize = 70_000;
/// Bytes of one that is adverted even in a topic that pushes those.
pub(super) const LARGEST: usize = 80_000;

/// A maker aborts what somebody asks for, and broadcasts it again in the same slot: whatever comes first of "not found", the
/// clear and the new advert, the body comes in the end.
pub(super) fn broadcast_again(world: &mut World) -> Result<(), String> {
    world.pass(Duration::from_secs(1))?;
    for order in orders(3) {
        let id = world.make_sized(0, ADVERTED)?;
        world.until(Duration::from_secs(2), "a request", |world| world.census(1).requests > 0)?;
        world.hold(0, 1);
        world.drop_one(0, id)?;
        let said = |number: usize| move |world: &World| world.held(0, 1).len() == number;
        world.until(Duration::from_secs(2), "the clear, and \"not found\"", said(2))?;
        let body = world.bodies.get(&id).cloned().unwrap_or_default();
        world.broadcast(0, 0, body)?;
        world.until(Duration::from_secs(2), "the new advert", said(3))?;
        let answers = world.held(0, 1).into_iter().filter(|cargo| matches!(cargo, Cargo::Answer(_)));
        ensure(answers.count() == 1, || "the request was not answered meanwhile".to_owned())?;
        world.bring_held(0, 1, order, |_, _| Ok(()))?;
        world.until(Duration::from_secs(5), "what is active again", |world| {
            (1..4).all(|node| world.had(node, &[id]) == 1)
        })?;
        world.drop_one(0, id)?;
        world.until(Duration::from_secs(5), "nothing named", |world| world.census(1).named == 0)?;
    }
    world.options.habits.again_percent = 70;
    world.go_wild(40, 0)
}

/// The filter goes through every sequence of three verdicts during a transfer, pushed and fetched: what it ever wanted when it
/// was asked comes, nothing else does, and the last word counts when somebody else tells of the artifact again.
pub(super) fn verdict_orders(world: &mut World) -> Result<(), String> {
    world.pass(millis(300))?;
    for size in [STREAMED, LARGEST] {
        for number in 0..SEQUENCES {
            verdict_order(world, size, number)?;
        }
    }
    world.make_peace()?;
    world.finish()
}

fn verdict_order(world: &mut World, size: usize, number: usize) -> Result<(), String> {
    // Its place in the sequences follows from its id.
    let mut body = vec![0; size];
    let (body, id) = loop {
        world.rng.fill(&mut body);
        let id = HashKind::Blake3.id(&body);
        if usize::from(id.0[9]) % SEQUENCES == number {
            break (Bytes::from(body), id);
        }
    };
    let order = sequence(&id);
    let wrong = |at: &str, state| format!("{order:?}, {size} bytes: {state:?} {at}");
    change_filters(world, 0)?;
    world.broadcast(0, 0, body.clone())?;
    world.until(Duration::from_secs(5), "the first word of it", |world| world.state(1, &id).is_some())?;
    let mut asked = state_after(None, order[0]);
    ensure(world.state(1, &id) == Some(asked), || wrong("at first", world.state(1, &id)))?;
    for (generation, verdict) in (1..).zip(&order[1..]) {
        // Somewhere on its way, if it is.
        let trip = world.options.links.latency.as_nanos() as u64;
        let wait = Duration::from_nanos(world.rng.below(trip / 2));
        world.pass(wait)?;
        ensure(world.state(1, &id) == Some(asked), || wrong("before the change", world.state(1, &id)))?;
        change_filters(world, generation)?;
        if asked == ArtifactState::Later {
            asked = state_after(Some(asked), *verdict);
        }
        ensure(world.state(1, &id) == Some(asked), || wrong("after the change", world.state(1, &id)))?;
    }
    world.pass(Duration::from_secs(4))?;
    let had = usize::from(asked == ArtifactState::Wanted);
    ensure(world.had(1, &[id]) == had, || wrong("before another tells of it", world.state(1, &id)))?;
    if asked != ArtifactState::Wanted {
        asked = state_after(Some(asked), order[2]);
    }
    world.broadcast(2, 0, body)?;
    world.pass(Duration::from_secs(4))?;
    let had = usize::from(asked == ArtifactState::Wanted);
    ensure(world.had(1, &[id]) == had, || wrong("in the end", world.state(1, &id)))?;
    let left = (had == 0).then_some(asked);
    ensure(had == 1 || world.state(1, &id) == left, || wrong("in the end", world.state(1, &id)))?;
    [0, 2].into_iter().try_for_each(|maker| world.drop_one(maker, id))?;
    world.until(Duration::from_secs(5), "nothing named", |world| world.census(1).artifacts == 0)?;
    Ok(())
}

/// What a verdict makes of an artifact that was not wanted before.
fn state_after(before: Option<ArtifactState>, verdict: Verdict) -> ArtifactState {
    match (verdict, before) {
        (Verdict::Want, _) => ArtifactState::Wanted,
        (Verdict::Later, _) => ArtifactState::Later,
        (Verdict::Discard, _) => ArtifactState::Discarded,
    }
}

fn change_filters(world: &mut World, generation: u64) -> Result<(), String> {
    world.generation = generation;
    (0..world.options.members).try_for_each(|node| world.change_filter(node, generation))
}

/// Who names the artifact first answers in each bad way; then an honest one names it, too: its body comes, without delay where
/// the bad answer is one, and after a silence where it is none.
pub(super) fn first_advertiser(world: &mut World) -> Result<(), String> {
    const PUPPET: usize = 3;
    world.pass(millis(300))?;
    let trip = 2 * (world.options.links.latency + world.options.links.jitter);
    // The transfer, and the precedence of a faster peer.
    let slack = millis(60);
    // The longest silence, and as long again for what a peer may take in all.
    let patience = Duration::from_secs(2) + millis(10);
    let mut manners = [Manner::Wrong, Manner::NotFound, Manner::Silent, Manner::Trickled];
    let turns = world.rng.below(4) as usize;
    manners.rotate_left(turns);
    for (number, manner) in manners.into_iter().enumerate() {
        let body = Bytes::from(vec![number as u8; ADVERTED]);
        let id = HashKind::Blake3.id(&body);
        let puppet = world.puppet(PUPPET)?;
        puppet.manner = Some(manner);
        puppet.learn(topic_id(0), id, body.clone());
        world.hold(0, 1);
        world.broadcast(0, 0, body.clone())?;
        world.until(Duration::from_secs(2), "the honest advert on its way", |world| {
            world.held(0, 1).len() == 1
        })?;
        world.say(PUPPET, 1, &[update(0, 1 + 2 * number as u64, adverted(&body))])?;
        let asked = |world: &World| world.asks(1, PUPPET) == 1;
        world.until(Duration::from_secs(2), "a request to the first advertiser", asked)?;
        world.bring_held(0, 1, [0], |_, _| Ok(()))?;
        let longest = match manner {
            Manner::Wrong | Manner::NotFound | Manner::Served => 2 * trip + slack,
            Manner::Silent | Manner::Trickled | Manner::Late => patience + trip + slack,
        };
        let what = format!("the body, though the first advertiser's answer is {manner:?}");
        world.until(longest, &what, |world| world.had(1, &[id]) == 1)?;
        world.drop_one(0, id)?;
        world.say(PUPPET, 1, &[update(0, 2 + 2 * number as u64, crate::wire::Change::Clear)])?;
        world.until(Duration::from_secs(5), "nothing named", |world| world.census(1).named == 0)?;
        world.pass(millis(200))?;
    }
    let unneeded = world.count(1, |c| c.bodies_unneeded);
    ensure(unneeded == 0, || format!("P6: {unneeded} bodies came twice"))?;
    world.make_peace()?;
    world.finish()
}

/// A relay's advert makes a member ask for what its maker's push is about to bring, small and on a stream of its own: the push
/// ends the fetch, and the body comes once.
pub(super) fn push_during_fetch(world: &mut World) -> Result<(), String> {
    world.pass(millis(300))?;
    for round in 0..6 {
        let (size, cargoes) = if round % 2 == 0 { (80, 1) } else { (STREAMED, 2) };
        world.hold(0, 1);
        let id = world.make_sized(0, size)?;
        world.until(Duration::from_secs(5), "a fetch while the push is on its way", |world| {
            world.census(1).requests > 0 && world.held(0, 1).len() == cargoes
        })?;
        let latency = world.options.links.latency.as_nanos() as u64;
        let wait = Duration::from_nanos(world.rng.below(latency));
        world.pass(wait)?;
        ensure(world.had(1, &[id]) == 0, || "the fetch was over before the push came".to_owned())?;
        world.bring_held(0, 1, 0..cargoes, |_, _| Ok(()))?;
        ensure(world.had(1, &[id]) == 1, || "P1: the push brought nothing".to_owned())?;
        let census = world.census(1);
        let over = census.requests == 0 && census.fetches == 0;
        ensure(over, || format!("P6: the fetch goes on though the body is here: {census:?}"))?;
        world.pass(Duration::from_secs(2))?;
        let (unneeded, dropped) = (world.counter(|c| c.bodies_unneeded), world.counter(|c| c.bodies_dropped));
        ensure(unneeded + dropped == 0, || format!("P6: {unneeded} bodies came twice, {dropped} in vain"))?;
    }
    world.make_peace()?;
    world.finish()
}

/// Pushes that begin and do not end, of what an honest member pushes and of what does not exist, enough to fill the room; and
/// more claims than fit in ten times that: what the honest member pushes comes, and so do those after it.
pub(super) fn hanging_push(world: &mut World) -> Result<(), String> {
    const PUPPET: usize = 3;
    world.pass(millis(300))?;
    // So that it states no table of its own.
    world.puppet(PUPPET)?.manner = Some(Manner::Silent);
    let room = (world.options.topics[0].pending_bytes / STREAMED as u64) as u32;
    let most = limits(&world.options).pushes_in_assembly as u32;
    ensure(room < most, || format!("no link takes {} pushes at a time", room + 1))?;
    for round in 0..5 {
        world.hold(0, 1);
        let id = world.make_sized(0, STREAMED)?;
        world.until(Duration::from_secs(5), "the push on its way", |world| world.held(0, 1).len() == 2)?;
        world.begin_push(PUPPET, 1, head(0, round, id))?;
        world.until(Duration::from_secs(1), "the hostile push", |world| world.state(1, &id).is_some())?;
        let asked = world.count(1, |c| c.requests_sent);
        world.bring_held(0, 1, 0..2, |world, place| {
            let (here, coming) = (world.had(1, &[id]), world.census(1).arriving);
            // First both are on their way; then one is here, and nothing is left of the other.
            ensure((here, coming) == [(0, 2), (1, 0)][place], || {
                format!("P1: {here} is here and {coming} arrive after step {place} of the honest push")
            })
        })?;
        world.pass(millis(200))?;
        let asked = world.count(1, |c| c.requests_sent) - asked;
        ensure(asked == 0, || format!("P6: {asked} requests for what an honest member pushes"))?;
        let mut named = Vec::new();
        for slot in 1..40 {
            let mut made_up = [0; 32];
            world.rng.fill(&mut made_up);
            let head = head(slot, round, ArtifactId(made_up));
            let PushHead { topic, slot, version, id, size, attribute } = head.clone();
            if slot.0 <= room {
                world.begin_push(PUPPET, 1, head)?;
            }
            let change = Change::Advert { id, size, relayed: false, attribute };
            named.push(Frame::Update(Update { topic, slot, version, change }));
        }
        world.until(Duration::from_secs(1), "no room left", |world| {
            world.census(1).reserved_bytes == u64::from(room) * STREAMED as u64
        })?;
        world.say(PUPPET, 1, &named[room as usize..])?;
        let ids =
            [(); 3].map(|()| world.make_sized(0, STREAMED)).into_iter().collect::<Result<Vec<_>, _>>()?;
        world.until(Duration::from_secs(5), "bodies, past those that do not come", |world| {
            world.had(1, &ids) == 3
        })?;
        ids.iter().chain([&id]).try_for_each(|id| world.drop_one(0, *id))?;
        let before = world.connection(PUPPET, 1);
        world.close(1, PUPPET, CloseCode::Shutdown)?;
        world.until(Duration::from_secs(5), "the end at the hostile one", |world| {
            world.connection(PUPPET, 1) != before
        })?;
        world.until(Duration::from_secs(5), "the hostile one again", |world| {
            world.connection(PUPPET, 1).is_some() && world.connection(1, PUPPET).is_some()
        })?;
        let nothing = Resync { topic: topic_id(0), version: Version(0), occupied: Bytes::new() };
        world.say(PUPPET, 1, &[Frame::Resync(nothing)])?;
        world.until(Duration::from_secs(5), "nothing named", |world| world.census(1).named == 0)?;
        world.pass(millis(500))?;
    }
    world.make_peace()?;
    world.finish()
}

fn head(slot: u32, round: u64, id: ArtifactId) -> PushHead {
    let version = Version(100 * round + u64::from(slot) + 1);
    PushHead {
        topic: topic_id(0),
        slot: Slot(slot),
        version,
        id,
        size: STREAMED as u32,
        attribute: Attribute::EMPTY,
    }
}

/// How the last advertiser leaves.
#[derive(Debug, Clone, Copy)]
enum Leaving {
    Crashes,
    Closes,
    Aborts,
}

/// The only member that has some bodies leaves while they are being fetched, in every way: no request to it is left, and what
/// it does not have any more is forgotten.
pub(super) fn advertiser_leaves(world: &mut World) -> Result<(), String> {
    world.pass(millis(300))?;
    let mut ways = [Leaving::Crashes, Leaving::Closes, Leaving::Aborts];
    let turns = world.rng.below(3) as usize;
    ways.rotate_left(turns);
    for way in ways {
        let ids: Vec<ArtifactId> =
            (0..5).map(|_| world.make_sized(0, ADVERTED)).collect::<Result<_, String>>()?;
        let asks =
            |world: &World| (1..4).all(|node| world.census(node).requests > 0 || world.had(node, &ids) > 0);
        world.until(Duration::from_secs(2), "requests", asks)?;
        let before: Vec<usize> = (1..4).map(|node| world.had(node, &ids)).collect();
        ensure(before.iter().any(|had| *had < 5), || "all was there before".to_owned())?;
        match way {
            Leaving::Crashes => world.crash(0),
            Leaving::Closes => (1..4).try_for_each(|peer| world.close(0, peer, CloseCode::Shutdown))?,
            Leaving::Aborts => ids.iter().try_for_each(|id| world.drop_one(0, *id))?,
        }
        if matches!(way, Leaving::Crashes) {
            let silent = |world: &World| (1..4).all(|node| world.connection(node, 0).is_none());
            world.until(Duration::from_secs(2), "the crash noticed", silent)?;
            let left = (1..4).map(|node| world.census(node).requests).sum::<usize>();
            ensure(left == 0, || format!("P4: {left} requests to a member that is gone"))?;
            ensure(matches!(world.actors[0], Actor::Off), || "it is back".to_owned())?;
            world.start(0);
        }
        let over = |world: &World| {
            (1..4).all(|node| {
                let census = world.census(node);
                let stays = matches!(way, Leaving::Closes);
                census.requests + census.fetches == 0
                    && world.had(node, &ids) >= if stays { 5 } else { 0 }
                    && (stays || census.named == 0)
            })
        };
        world.until(Duration::from_secs(10), "an end of it", over)?;
        ids.iter().try_for_each(|id| world.drop_one(0, *id))?;
        world.pass(Duration::from_secs(1))?;
    }
    world.make_peace()?;
    world.finish()
}

/// Without faults and with room for all, no body crosses a link twice, or in vain.
pub(super) fn thrift(world: &mut World) -> Result<(), String> {
    world.run()?;
    let (unneeded, dropped) = (world.counter(|c| c.bodies_unneeded), world.counter(|c| c.bodies_dropped));
    ensure(unneeded + dropped == 0, || format!("P6: {unneeded} bodies came twice, {dropped} in vain"))
}

/// What an honest member names comes in time, however the hostile one answers.
pub(super) fn liars(world: &mut World) -> Result<(), String> {
    world.patience.watch(&world.options);
    world.run()?;
    let (bodies, longest) = world.patience.longest();
    tracing::debug!(bodies, ?longest, "waited for what an honest member named");
    ensure(bodies > 100, || format!("only {bodies} bodies were waited for"))
}
