//! What hostile members do with words, requests and answers that are all allowed.

use std::time::Duration;

use bytes::Bytes;

use super::bodies::{ADVERTED, LARGEST, STREAMED};
use super::script::{ensure, millis, update};
use crate::config::Verdict;
use crate::engine::ArtifactState;
use crate::sim::hostile::Manner;
use crate::sim::member::{judge, sequence, topic_id};
use crate::sim::net::REQUEST_BYTES;
use crate::sim::opinion::Word;
use crate::sim::world::{Actor, World};
use crate::types::{ArtifactId, Attribute, HashKind, NodeId, Slot, Version};
use crate::wire::{Change, Frame, PushHead, Update};

/// Who listens to both the honest first one and the hostile last one.
const LISTENER: usize = 1;

/// An artifact waits for the filter on an honest member's word. The filter's state changes; then, before and after the engine
/// hears of that, a hostile member's word on it counts for more, or for less: what the honest one has comes all the same.
pub(super) fn late_notice(world: &mut World) -> Result<(), String> {
    world.pass(millis(300))?;
    for round in 0..6 {
        set_filter(world, 0)?;
        let (body, id) = waiting(world);
        world.broadcast(0, 0, body)?;
        let state = |state| move |world: &World| world.state(LISTENER, &id) == Some(state);
        world.until(Duration::from_secs(2), "what waits", state(ArtifactState::Later))?;
        set_filter(world, 1)?;
        let version = Version(2 * round + 1);
        let head = PushHead {
            topic: topic_id(0),
            slot: Slot(0),
            version,
            id,
            size: STREAMED as u32,
            attribute: Attribute::EMPTY,
        };
        world.begin_push(PUPPET, LISTENER, head)?;
        world.until(Duration::from_secs(1), "a push that is wanted", state(ArtifactState::Wanted))?;
        world.tell_filter(LISTENER)?;
        let had = |world: &World| world.had(LISTENER, &[id]) == 1;
        world.until(Duration::from_secs(3), "the body, of who named it first", had)?;
        world.drop_one(0, id)?;
        world.say(PUPPET, LISTENER, &[update(0, version.0 + 1, Change::Clear)])?;
        world.until(Duration::from_secs(5), "nothing named", |world| world.census(LISTENER).named == 0)?;
    }
    for round in 0..6 {
        friendliest(world, round, round % 2 == 0)?;
    }
    world.make_peace()?;
    world.finish()
}

/// Who says what scenarios have it say.
const PUPPET: usize = 3;

/// After the change one member's word makes the artifact wanted, and the other's makes it nothing: it is wanted.
fn friendliest(world: &mut World, round: u64, honest_first: bool) -> Result<(), String> {
    let (topic, ids) = (world.options.topics[1].clone(), world.member_ids());
    set_filter(world, 0)?;
    let (body, id, lie) = disputed(world, ids[0], ids[PUPPET]);
    ensure(judge(&topic, &Word::honest(id, ids[0]), 1) == Verdict::Want, || "no honest word".to_owned())?;
    let say = |world: &mut World| {
        let change = Change::Advert { id, size: lie, relayed: false, attribute: Attribute::EMPTY };
        let update = Update { topic: topic_id(1), slot: Slot(0), version: Version(round + 1), change };
        world.say(PUPPET, LISTENER, &[Frame::Update(update)])
    };
    let waits = |world: &World, words: usize| {
        let later = world.census(LISTENER).later;
        world.state_in(LISTENER, 1, &id) == Some(ArtifactState::Later) && later == words
    };
    if !honest_first {
        say(world)?;
    }
    world.broadcast(0, 1, body)?;
    let words = if honest_first { 1 } else { 2 };
    world.until(Duration::from_secs(2), "the honest word", |world| waits(world, words))?;
    if honest_first {
        say(world)?;
    }
    ensure(waits(world, 2), || format!("not two words wait: {:?}", world.census(LISTENER)))?;
    set_filter(world, 1)?;
    world.tell_filter(LISTENER)?;
    let had = |world: &World| world.member(LISTENER).is_some_and(|m| m.had.contains(&(topic_id(1), id)));
    world.until(Duration::from_secs(3), "the body, on the friendlier of two words", had)?;
    world.with_member(0, |member, now, fx| member.abort(topic_id(1), id, now, fx))?;
    Ok(())
}

/// The listener's filters judge by this from now on, and its engine has not heard of it.
fn set_filter(world: &mut World, generation: u64) -> Result<(), String> {
    world.generation = generation;
    match world.actors.get_mut(LISTENER) {
        Some(Actor::Honest(member)) => member.set_filter(generation),
        _ => return Err("the listener is away".to_owned()),
    }
    Ok(())
}

/// Something that is adverted, and wanted from the first change on.
fn waiting(world: &mut World) -> (Bytes, ArtifactId) {
    let mut body = vec![0; LARGEST];
    loop {
        world.rng.fill(&mut body);
        let id = HashKind::Blake3.id(&body);
        if matches!(sequence(&id), [Verdict::Later, Verdict::Want, _]) {
            return (Bytes::from(body), id);
        }
    }
}

/// Something that waits on both members' words, until one's is `Want` and the other's `Discard`; and what the other says of its
/// size.
fn disputed(world: &mut World, honest: NodeId, hostile: NodeId) -> (Bytes, ArtifactId, u32) {
    let topic = world.options.topics[1].clone();
    let mut body = vec![0; ADVERTED];
    loop {
        world.rng.fill(&mut body);
        let id = HashKind::Blake3.id(&body);
        let verdicts = |word: Word| [judge(&topic, &word, 0), judge(&topic, &word, 1)];
        if verdicts(Word::honest(id, honest)) != [Verdict::Later, Verdict::Want] {
            continue;
        }
        let disputes = |size: &u32| {
            let word = Word { id, from: hostile, lie: Some(*size) };
            verdicts(word) == [Verdict::Later, Verdict::Discard]
        };
        if let Some(size) = (1..200).find(disputes) {
            return (Bytes::from(body), id, size);
        }
    }
}

/// A hostile member asks for as much as it may, gives all of it up, and asks again, while the link to it is full: what is kept
/// of its requests is bounded, which is checked as in every run.
pub(super) fn given_up(world: &mut World) -> Result<(), String> {
    world.pass(millis(500))?;
    let ids = (0..24).map(|_| world.make_sized(0, STREAMED)).collect::<Result<Vec<_>, _>>()?;
    let (links, open) = (world.options.links, world.options.open_requests() as u64);
    // Until the last of them is there, on a link that carries so much, and a few lost ones again.
    let trip = 6 * (links.latency + links.jitter)
        + millis(30)
        + Duration::from_secs_f64((open * 2 * REQUEST_BYTES) as f64 / links.rate as f64);
    let (mut blocked, mut asked) = (0, 0);
    for _ in 0..30 {
        world.ask_many(PUPPET, 0, open)?;
        asked += open;
        world.turn(PUPPET)?;
        world.pass(trip)?;
        blocked += usize::from(world.census(0).replies > 0);
        let keys = world.puppet(PUPPET)?.asked.remove(&0).unwrap_or_default();
        keys.into_iter().for_each(|key| world.reset(PUPPET, 0, key));
        world.turn(PUPPET)?;
        world.pass(trip)?;
    }
    ensure(blocked >= 10, || format!("requests waited at the end of {blocked} rounds of 30"))?;
    let answered = world.count(0, |c| c.replies_sent + c.not_found_sent);
    ensure(answered + 5 * open <= asked, || format!("{answered} of {asked} requests were answered"))?;
    let all = |world: &World| (1..3).all(|node| world.had(node, &ids) == ids.len());
    world.until(Duration::from_secs(120), "what was made, at who is honest", all)?;
    ids.iter().try_for_each(|id| world.drop_one(0, *id))?;
    world.make_peace()?;
    world.finish()
}

/// Two hostile members of seven name what an honest one is about to name, say that it is large, and answer a byte at a time,
/// after almost the longest patience, or not at all: it is there in the time that each of them may waste, and not later.
pub(super) fn tricklers(world: &mut World) -> Result<(), String> {
    const HOSTILE: [usize; 2] = [5, 6];
    const EACH: usize = 6;
    world.pass(millis(500))?;
    let manners = [Manner::Trickled, Manner::Late, Manner::Silent];
    for round in 0..4_u64 {
        let bodies: Vec<Bytes> = (0..EACH).map(|_| noise(world)).collect();
        let ids: Vec<ArtifactId> = bodies.iter().map(|body| HashKind::Blake3.id(body)).collect();
        world.hold(0, LISTENER);
        for body in &bodies {
            world.broadcast(0, 0, body.clone())?;
        }
        for hostile in HOSTILE {
            let manner = manners[world.rng.below(3) as usize];
            let puppet = world.puppet(hostile)?;
            puppet.manner = Some(manner);
            bodies.iter().zip(&ids).for_each(|(body, id)| puppet.learn(topic_id(0), *id, body.clone()));
            let named = ids.iter().zip(0..).map(|(id, slot)| {
                let change =
                    Change::Advert { id: *id, size: CLAIM, relayed: false, attribute: Attribute::EMPTY };
                update(slot, 2 * round + 1, change)
            });
            world.say(hostile, LISTENER, &named.collect::<Vec<_>>())?;
        }
        let asks = |world: &World| HOSTILE.iter().any(|hostile| world.asks(LISTENER, *hostile) > 0);
        world.until(Duration::from_secs(1), "a request to a hostile one", asks)?;
        world.reunite(0, LISTENER);
        let largest = bodies.iter().map(Bytes::len).max().unwrap_or_default() as f64;
        let patience = Duration::from_secs(2) + Duration::from_secs_f64(largest / f64::from(1 << 20));
        let links = world.options.links;
        let all: usize = bodies.iter().map(Bytes::len).sum();
        let trips = 10 * (links.latency + links.jitter);
        let transfer = trips + Duration::from_secs_f64(all as f64 / links.rate as f64);
        let here = |world: &World| world.had(LISTENER, &ids) == EACH;
        let longest = patience * (HOSTILE.len() as u32 + 1) + transfer;
        let took = world.until(longest, "what an honest member named", here)?;
        tracing::debug!(?took, ?longest, "beside tricklers");
        for hostile in HOSTILE {
            let clears = (0..EACH as u32).map(|slot| update(slot, 2 * round + 2, Change::Clear));
            world.say(hostile, LISTENER, &clears.collect::<Vec<_>>())?;
        }
        ids.iter().try_for_each(|id| world.drop_one(0, *id))?;
        world.until(Duration::from_secs(5), "nothing named", |world| world.census(LISTENER).named == 0)?;
        world.pass(millis(500))?;
    }
    world.make_peace()?;
    world.finish()
}

/// What hostile members say of the size of anything.
const CLAIM: u32 = 120_000;

fn noise(world: &mut World) -> Bytes {
    let mut body = vec![0; ADVERTED + world.rng.below(20_000) as usize];
    world.rng.fill(&mut body);
    Bytes::from(body)
}

/// A hostile member pushes one small body after another, each of which is wanted and kept for a while, into a room that an
/// honest member's body needs almost alone: that one comes in the end.
pub(super) fn flooding(world: &mut World) -> Result<(), String> {
    world.pass(millis(500))?;
    let mut version = 0;
    for _ in 0..3 {
        let mut id = None;
        let end = world.now + Duration::from_secs(8);
        for step in 0.. {
            if step == 50 {
                id = Some(world.make_sized(0, LARGEST)?);
            }
            if id.is_some_and(|id| world.had(LISTENER, &[id]) == 1) {
                break;
            }
            ensure(world.now < end, || {
                format!("P5: small bodies keep a large one out: {:?}", world.census(LISTENER))
            })?;
            let mut body = vec![0; 2_000];
            world.rng.fill(&mut body);
            version += 1;
            let change = Change::Push { attribute: Attribute::EMPTY, body: Bytes::from(body) };
            world.say(PUPPET, LISTENER, &[update(version as u32 % 40, version, change)])?;
            world.pass(millis(1))?;
            let held = world.census(LISTENER).body_bytes;
            let busy = step < 40 || held > (90_000 - LARGEST) as u64 || id.is_some();
            ensure(busy, || format!("{held} bytes keep nothing out"))?;
        }
        id.into_iter().try_for_each(|id| world.drop_one(0, id))?;
    }
    let clears = (0..40).map(|slot| update(slot, version + 1, Change::Clear));
    world.say(PUPPET, LISTENER, &clears.collect::<Vec<_>>())?;
    world.make_peace()?;
    world.finish()
}
