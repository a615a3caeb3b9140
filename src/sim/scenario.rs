//! Directed runs: one situation each, varied by the seed. All end as every run does: peace, then the end.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::hardship::Budget;
use super::member::{Member, topic_id};
use super::options::{Datagrams, Faults, Habits, Level, Lies, Links, Options, TopicOptions};
use super::world::{Actor, Happening, World};
use crate::metrics::EngineCounters;
use crate::types::{ArtifactId, Class, Rng};
use crate::wire::CloseCode;

/// A situation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// A member that starts late gets what is active, and nothing that was aborted.
    LateJoiner,
    /// A link that comes and goes brings no body twice.
    FlappingLink,
    /// A member that lost its memory gets everything again.
    ReceiverRestart,
    /// A maker comes back with fewer artifacts: nobody believes that it has the others.
    SenderRestart,
    /// All artifacts but one are aborted: receivers let the rest go.
    ShrinkToOne,
    /// Slots change faster than streams arrive, in any order.
    StaleUpdates,
    /// Tables of one or two slots, overwritten all the time.
    SlotLimit,
    /// Several members make the same artifacts, and leave together.
    SharedIds,
    /// The only member that has a body is gone while it is being fetched.
    AdvertiserLeaves,
    /// The filter changes its mind during transfers.
    FilterFlips,
    /// Whoever is asked first lies, is silent, or trickles.
    Liars,
    /// Relays advert while the maker pushes.
    PushDuringFetch,
    /// Broadcasts and aborts at a high rate.
    AbortStorm,
    /// The maker dies when one member has the body, and relays it.
    MakerDies,
    /// Two halves work apart, and meet again.
    PartitionHeals,
    /// One member stands still: the others do not wait.
    StalledPeer,
    /// A connection with ten thousand active artifacts is lost and made again: nothing is told twice.
    ReconnectWithMany,
    /// Every slot of every topic is taken.
    EveryTopicFull,
    /// Nothing goes wrong and there is room for all: no body crosses a link twice, or in vain.
    Thrift,
}

/// Bodies of this size are pushed, larger ones adverted.
const PUSHED: u64 = 100;

impl Scenario {
    /// Every one.
    pub const ALL: [Scenario; 19] = [
        Scenario::LateJoiner,
        Scenario::FlappingLink,
        Scenario::ReceiverRestart,
        Scenario::SenderRestart,
        Scenario::ShrinkToOne,
        Scenario::StaleUpdates,
        Scenario::SlotLimit,
        Scenario::SharedIds,
        Scenario::AdvertiserLeaves,
        Scenario::FilterFlips,
        Scenario::Liars,
        Scenario::PushDuringFetch,
        Scenario::AbortStorm,
        Scenario::MakerDies,
        Scenario::PartitionHeals,
        Scenario::StalledPeer,
        Scenario::ReconnectWithMany,
        Scenario::EveryTopicFull,
        Scenario::Thrift,
    ];

    /// Its name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::LateJoiner => "late-joiner",
            Scenario::FlappingLink => "flapping-link",
            Scenario::ReceiverRestart => "receiver-restart",
            Scenario::SenderRestart => "sender-restart",
            Scenario::ShrinkToOne => "shrink-to-one",
            Scenario::StaleUpdates => "stale-updates",
            Scenario::SlotLimit => "slot-limit",
            Scenario::SharedIds => "shared-ids",
            Scenario::AdvertiserLeaves => "advertiser-leaves",
            Scenario::FilterFlips => "filter-flips",
            Scenario::Liars => "liars",
            Scenario::PushDuringFetch => "push-during-fetch",
            Scenario::AbortStorm => "abort-storm",
            Scenario::MakerDies => "maker-dies",
            Scenario::PartitionHeals => "partition-heals",
            Scenario::StalledPeer => "stalled-peer",
            Scenario::ReconnectWithMany => "reconnect-with-many",
            Scenario::EveryTopicFull => "every-topic-full",
            Scenario::Thrift => "thrift",
        }
    }

    pub(super) fn options(self, seed: u64) -> Options {
        let mut options = quiet(seed);
        let rng = &mut Rng::new(seed ^ 0x7363_656e);
        match self {
            Scenario::StaleUpdates => {
                options.links.jitter = 20 * options.links.latency;
                busy(&mut options, 45, 0);
            }
            Scenario::SlotLimit => {
                options.topics[0].slots = 1 + rng.below(2) as u32;
                busy(&mut options, 45, 20);
            }
            Scenario::SharedIds => options.links.jitter = 3 * options.links.latency,
            Scenario::FilterFlips => {
                (options.topics[0].later_percent, options.topics[0].discard_percent) = (60, 20);
                options.links.rate = 20_000;
                busy(&mut options, 10, 20);
            }
            Scenario::Liars => {
                options.members = 5;
                options.hostile = 1;
                options.topics[0].largest = 5_000;
                let silent_percent = rng.below(100);
                let wrong_percent = rng.below(100 - silent_percent);
                options.lies = Lies { every: Duration::from_millis(10), silent_percent, wrong_percent };
                busy(&mut options, 10, 20);
            }
            Scenario::PushDuringFetch => {
                options.links.jitter = 5 * options.links.latency;
                busy(&mut options, 5, 100);
            }
            Scenario::AbortStorm => {
                busy(&mut options, 50, 30);
                options.habits.act_every = Duration::from_millis(2);
            }
            Scenario::MakerDies => options.habits.relay_percent = 100,
            Scenario::ReconnectWithMany => {
                options.members = 2;
                options.topics[0].slots = 10_000;
                (options.links.rate, options.links.window) = (100_000_000, 1 << 20);
            }
            Scenario::EveryTopicFull => {
                let topic = options.topics[0].clone();
                let classes = [Class::Critical, Class::High, Class::Bulk];
                options.topics =
                    classes.map(|class| TopicOptions { class, slots: 20, ..topic.clone() }).into();
            }
            Scenario::Thrift => return calm(seed),
            Scenario::LateJoiner
            | Scenario::FlappingLink
            | Scenario::ReceiverRestart
            | Scenario::SenderRestart
            | Scenario::ShrinkToOne
            | Scenario::AdvertiserLeaves
            | Scenario::PartitionHeals
            | Scenario::StalledPeer => (),
        }
        options
    }

    pub(super) fn play(self, world: &mut World) -> Result<(), String> {
        match self {
            Scenario::LateJoiner => late_joiner(world),
            Scenario::FlappingLink => flapping_link(world),
            Scenario::ReceiverRestart => receiver_restart(world),
            Scenario::SenderRestart => sender_restart(world),
            Scenario::ShrinkToOne => shrink_to_one(world),
            Scenario::SharedIds => shared_ids(world),
            Scenario::AdvertiserLeaves => advertiser_leaves(world),
            Scenario::MakerDies => maker_dies(world),
            Scenario::PartitionHeals => partition_heals(world),
            Scenario::StalledPeer => stalled_peer(world),
            Scenario::ReconnectWithMany => reconnect_with_many(world),
            Scenario::EveryTopicFull => every_topic_full(world),
            Scenario::Thrift => thrift(world),
            Scenario::StaleUpdates
            | Scenario::SlotLimit
            | Scenario::FilterFlips
            | Scenario::PushDuringFetch
            | Scenario::AbortStorm => world.run(),
            Scenario::Liars => liars(world),
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Four members who do nothing by themselves, on good links.
fn quiet(seed: u64) -> Options {
    let rng = &mut Rng::new(seed ^ 0x7175_6965_7400);
    let latency = Duration::from_millis(1 + rng.below(30));
    Options {
        seed,
        level: Level::Messages,
        datagrams: Datagrams::calm(),
        members: 4,
        hostile: 0,
        chaos: Duration::from_secs(2),
        links: Links {
            latency,
            jitter: latency / 2,
            lose_one_in: if rng.one_in(2) { 0 } else { 10 },
            rate: 200_000,
            window: 8_000,
            idle_timeout: Duration::from_millis(500),
        },
        faults: Faults::default(),
        topics: vec![TopicOptions {
            class: Class::Normal,
            slots: 40,
            push_threshold: PUSHED as u32 + 1,
            pending_bytes: 1 << 20,
            largest: 1_000,
            later_percent: 0,
            discard_percent: 0,
            panic_percent: 0,
        }],
        habits: Habits {
            act_every: Duration::ZERO,
            abort_percent: 0,
            relay_percent: 0,
            keep_percent: 0,
            think: Duration::from_millis(5),
            stall_one_in: 0,
            same_one_in: 20,
        },
        lies: Lies::default(),
        budget: Budget::default(),
    }
}

/// A mixed run in which nothing goes wrong, everybody makes something else, links carry a whole table in a moment, and nothing
/// waits for room or for a filter.
fn calm(seed: u64) -> Options {
    let mut options = Options::mixed(seed, Level::Messages);
    (options.hostile, options.faults, options.links.lose_one_in) = (0, Faults::default(), 0);
    (options.habits.stall_one_in, options.habits.same_one_in) = (0, 0);
    let tables: u64 = options.topics.iter().map(|topic| u64::from(topic.slots) * topic.largest).sum();
    options.links.rate = options.links.rate.max(20 * tables);
    options.links.window = options.links.window.max(tables);
    for topic in &mut options.topics {
        (topic.later_percent, topic.discard_percent, topic.panic_percent) = (0, 0, 0);
        topic.pending_bytes = u64::from(topic.slots) * options.members as u64 * topic.largest;
    }
    options
}

/// Replicas act by themselves.
fn busy(options: &mut Options, abort_percent: u64, relay_percent: u64) {
    options.habits = Habits {
        act_every: Duration::from_millis(10),
        abort_percent,
        relay_percent,
        think: Duration::from_millis(30),
        ..options.habits.clone()
    };
}

fn millis(number: u64) -> Duration {
    Duration::from_millis(number)
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

impl World {
    fn pass(&mut self, span: Duration) -> Result<(), String> {
        self.run_until(self.now + span)
    }

    /// A member makes something new, pushed or adverted.
    fn make(&mut self, node: usize, topic: usize) -> Result<ArtifactId, String> {
        let size = if self.rng.one_in(2) { PUSHED } else { PUSHED + 1 + self.rng.below(500) };
        let mut body = vec![0; size as usize];
        self.rng.fill(&mut body);
        let made = self.broadcast(node, topic, Bytes::from(body))?;
        made.ok_or_else(|| format!("member {node} has no room to make something"))
    }

    fn make_many(&mut self, node: usize, count: usize) -> Result<Vec<ArtifactId>, String> {
        (0..count).map(|_| self.make(node, 0)).collect()
    }

    fn drop_one(&mut self, node: usize, id: ArtifactId) -> Result<(), String> {
        self.with_member(node, |member, now, fx| member.abort(topic_id(0), id, now, fx))
    }

    fn member(&self, node: usize) -> Option<&Member> {
        match self.actors.get(node) {
            Some(Actor::Honest(member)) => Some(member),
            _ => None,
        }
    }

    fn had(&self, node: usize, ids: &[ArtifactId]) -> usize {
        let had = |id: &&ArtifactId| self.member(node).is_some_and(|m| m.had.contains(&(topic_id(0), **id)));
        ids.iter().filter(had).count()
    }

    fn counter(&self, pick: fn(&EngineCounters) -> u64) -> u64 {
        (0..self.options.members)
            .filter_map(|node| self.member(node))
            .map(|m| pick(m.engine.counters()))
            .sum()
    }

    fn separate(&mut self, a: usize, b: usize) {
        self.cut(a, b, true);
    }

    fn reunite(&mut self, a: usize, b: usize) {
        let pair = (a.min(b), a.max(b));
        self.at(self.now, Happening::Heal { pair });
    }
}

fn late_joiner(world: &mut World) -> Result<(), String> {
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

fn flapping_link(world: &mut World) -> Result<(), String> {
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

fn receiver_restart(world: &mut World) -> Result<(), String> {
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

fn sender_restart(world: &mut World) -> Result<(), String> {
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

fn shrink_to_one(world: &mut World) -> Result<(), String> {
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

fn shared_ids(world: &mut World) -> Result<(), String> {
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

fn advertiser_leaves(world: &mut World) -> Result<(), String> {
    world.pass(millis(200))?;
    for _ in 0..5 {
        let ids = world.make_many(0, 5)?;
        let wait = millis(world.rng.below(120));
        world.pass(wait)?;
        match world.rng.below(3) {
            0 => world.crash(0),
            1 => (1..4).try_for_each(|peer| world.close(0, peer, CloseCode::Shutdown))?,
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

fn maker_dies(world: &mut World) -> Result<(), String> {
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

fn partition_heals(world: &mut World) -> Result<(), String> {
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

fn stalled_peer(world: &mut World) -> Result<(), String> {
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

fn reconnect_with_many(world: &mut World) -> Result<(), String> {
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

fn every_topic_full(world: &mut World) -> Result<(), String> {
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

fn thrift(world: &mut World) -> Result<(), String> {
    world.run()?;
    let (unneeded, dropped) = (world.counter(|c| c.bodies_unneeded), world.counter(|c| c.bodies_dropped));
    ensure(unneeded + dropped == 0, || format!("P6: {unneeded} bodies came twice, {dropped} in vain"))
}

fn liars(world: &mut World) -> Result<(), String> {
    world.patience.watch(&world.options);
    world.run()?;
    let (bodies, longest) = world.patience.longest();
    tracing::debug!(bodies, ?longest, "waited for what an honest member named");
    ensure(bodies > 100, || format!("only {bodies} bodies were waited for"))
}
