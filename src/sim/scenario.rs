//! Directed runs: one situation each, varied by the seed. All end as every run does: peace, then the end.

mod bodies;
mod comings;
mod lies;
mod links;
mod script;
mod shares;
mod storm;
mod tables;

use std::fmt;
use std::time::Duration;

use super::hardship::Budget;
use super::options::{Datagrams, Faults, Habits, Level, Lies, Links, Options, TopicOptions};
use super::world::World;
use crate::types::{Class, Rng};

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
    /// Four statements about one slot come in each of their orders; then slots change faster than streams arrive.
    StaleUpdates,
    /// Tables of one or two slots, overwritten all the time, by one that names more slots than there may be, too.
    SlotLimit,
    /// The versions of a peer's table come to the end of the numbers.
    VersionLimit,
    /// The same artifacts in several tables, and in two slots of one; who names them leaves together.
    SharedIds,
    /// The only member that has some bodies is gone while they are being fetched: by crash, close and abort.
    AdvertiserLeaves,
    /// The filter goes through each sequence of three verdicts during a transfer, pushed and fetched.
    VerdictOrders,
    /// The filter changes its mind about many artifacts at any time.
    FilterFlips,
    /// Whoever names a body first answers with wrong bytes, "not found", silence, and a slow drip.
    FirstAdvertiser,
    /// One of five lies all the time.
    Liars,
    /// A push arrives while a relay is being asked for the body.
    PushDuringFetch,
    /// What is being asked for is aborted and broadcast again; the words of it arrive in each of their orders.
    BroadcastAgain,
    /// Broadcasts and aborts at a high rate.
    AbortStorm,
    /// Bodies of 1 MiB that live for ten milliseconds, for ten minutes.
    ShortLives,
    /// A consumer takes nothing while artifacts come and go.
    StalledConsumer,
    /// The maker dies when one member has the body, and relays it.
    MakerDies,
    /// Two halves work apart, and meet again.
    PartitionHeals,
    /// One member of eight stands still: the others take at most a tenth longer than without it.
    StalledPeer,
    /// A connection with ten thousand active artifacts is lost and made again: nothing is told twice.
    ReconnectWithMany,
    /// Every slot of every topic is taken.
    EveryTopicFull,
    /// Nothing goes wrong and there is room for all: no body crosses a link twice, or in vain.
    Thrift,
    /// A hostile member begins to push what an honest one pushes, and things that do not exist, and does not end.
    HangingPush,
    /// What goes over the wire beside bodies, where nothing is lost.
    WireCost,
    /// An urgent artifact overtakes the bulk that waits for the same link.
    Overtaking,
    /// All four classes flood the same links: each has its share.
    Floods,
    /// Three makers send to one receiver, whose link is too narrow for all, and none is left out.
    SharedLink,
    /// What one member says of an artifact between the change of a filter and the notice of it, and against another's word.
    LateNotice,
    /// Requests that are given up before they are answered, again and again, while the link is full.
    GivenUp,
    /// Two of seven name what an honest one names, too, and answer as slowly as they may.
    Tricklers,
    /// A hostile member pushes one small body after another into a room that a large one needs.
    Flooding,
}

/// Bodies of this size are pushed, larger ones adverted.
const PUSHED: u64 = 100;

impl Scenario {
    /// Every one.
    pub const ALL: [Scenario; 34] = [
        Scenario::LateJoiner,
        Scenario::FlappingLink,
        Scenario::ReceiverRestart,
        Scenario::SenderRestart,
        Scenario::ShrinkToOne,
        Scenario::StaleUpdates,
        Scenario::SlotLimit,
        Scenario::VersionLimit,
        Scenario::SharedIds,
        Scenario::AdvertiserLeaves,
        Scenario::VerdictOrders,
        Scenario::FilterFlips,
        Scenario::FirstAdvertiser,
        Scenario::Liars,
        Scenario::PushDuringFetch,
        Scenario::BroadcastAgain,
        Scenario::AbortStorm,
        Scenario::ShortLives,
        Scenario::StalledConsumer,
        Scenario::MakerDies,
        Scenario::PartitionHeals,
        Scenario::StalledPeer,
        Scenario::ReconnectWithMany,
        Scenario::EveryTopicFull,
        Scenario::Thrift,
        Scenario::HangingPush,
        Scenario::WireCost,
        Scenario::Overtaking,
        Scenario::Floods,
        Scenario::SharedLink,
        Scenario::LateNotice,
        Scenario::GivenUp,
        Scenario::Tricklers,
        Scenario::Flooding,
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
            Scenario::VersionLimit => "version-limit",
            Scenario::SharedIds => "shared-ids",
            Scenario::AdvertiserLeaves => "advertiser-leaves",
            Scenario::VerdictOrders => "verdict-orders",
            Scenario::FilterFlips => "filter-flips",
            Scenario::FirstAdvertiser => "first-advertiser",
            Scenario::Liars => "liars",
            Scenario::PushDuringFetch => "push-during-fetch",
            Scenario::BroadcastAgain => "broadcast-again",
            Scenario::AbortStorm => "abort-storm",
            Scenario::ShortLives => "short-lives",
            Scenario::StalledConsumer => "stalled-consumer",
            Scenario::MakerDies => "maker-dies",
            Scenario::PartitionHeals => "partition-heals",
            Scenario::StalledPeer => "stalled-peer",
            Scenario::ReconnectWithMany => "reconnect-with-many",
            Scenario::EveryTopicFull => "every-topic-full",
            Scenario::Thrift => "thrift",
            Scenario::HangingPush => "hanging-push",
            Scenario::WireCost => "wire-cost",
            Scenario::Overtaking => "overtaking",
            Scenario::Floods => "floods",
            Scenario::SharedLink => "shared-link",
            Scenario::LateNotice => "late-notice",
            Scenario::GivenUp => "given-up",
            Scenario::Tricklers => "tricklers",
            Scenario::Flooding => "flooding",
        }
    }

    /// Whether it plays over `level`: some hold single messages back and let them go in another order, some measure datagrams.
    pub fn plays_over(self, level: Level) -> bool {
        match self {
            Scenario::StaleUpdates
            | Scenario::FirstAdvertiser
            | Scenario::PushDuringFetch
            | Scenario::BroadcastAgain
            | Scenario::HangingPush
            | Scenario::LateNotice
            | Scenario::Tricklers
            | Scenario::Flooding => level == Level::Messages,
            Scenario::WireCost | Scenario::Overtaking | Scenario::Floods | Scenario::SharedLink => {
                level != Level::Messages
            }
            _ => true,
        }
    }

    pub(super) fn options(self, seed: u64) -> Options {
        if self == Scenario::Thrift {
            return calm(seed);
        }
        let mut options = quiet(seed);
        let rng = &mut Rng::new(seed ^ 0x7363_656e);
        (options.members, options.hostile) = match self {
            Scenario::SlotLimit
            | Scenario::VersionLimit
            | Scenario::FirstAdvertiser
            | Scenario::HangingPush
            | Scenario::LateNotice
            | Scenario::GivenUp
            | Scenario::Flooding => (4, 1),
            Scenario::Tricklers => (7, 2),
            Scenario::SharedIds | Scenario::Liars => (5, 1),
            Scenario::VerdictOrders => (3, 0),
            Scenario::ReconnectWithMany | Scenario::Floods => (2, 0),
            Scenario::StalledPeer => (8, 0),
            _ => (4, 0),
        };
        self.set_topics(&mut options.topics, rng);
        self.set_links(&mut options.links);
        self.set_habits(&mut options, rng);
        options
    }

    fn set_topics(self, topics: &mut Vec<TopicOptions>, rng: &mut Rng) {
        let topic = &mut topics[0];
        match self {
            Scenario::SlotLimit => topic.slots = 1 + rng.below(2) as u32,
            Scenario::StalledConsumer => topic.slots = 1,
            Scenario::PartitionHeals => topic.slots = 200,
            Scenario::ReconnectWithMany => topic.slots = 10_000,
            Scenario::StalledPeer => (topic.slots, topic.largest) = (200, 2_000),
            Scenario::Liars => topic.largest = 5_000,
            Scenario::WireCost => {
                (topic.largest, topic.push_threshold, topic.pending_bytes) = (60_000, 4_096, 64 << 20)
            }
            Scenario::SharedLink => {
                (topic.slots, topic.largest, topic.class, topic.pending_bytes) =
                    (400, 20_000, Class::Bulk, 64 << 20);
            }
            Scenario::Overtaking => {
                (topic.slots, topic.largest, topic.class, topic.pending_bytes) =
                    (400, 60_000, Class::Bulk, 64 << 20);
                let urgent = TopicOptions { class: Class::Critical, largest: 1_000, ..topic.clone() };
                topics.push(urgent);
            }
            Scenario::Floods => {
                (topic.slots, topic.largest, topic.pending_bytes) = (900, 40_000, 64 << 20);
                let topic = topic.clone();
                *topics = Class::ALL.map(|class| TopicOptions { class, ..topic.clone() }).into();
            }
            // One is pushed whatever its size, the other fetched.
            Scenario::ShortLives => {
                (topic.slots, topic.largest, topic.pending_bytes) = (80, 1 << 20, 64 << 20);
                let urgent =
                    TopicOptions { class: Class::Critical, push_threshold: 2 << 20, ..topic.clone() };
                topics.push(urgent);
            }
            Scenario::FilterFlips => {
                (topic.later_percent, topic.discard_percent, topic.sway_percent) = (60, 20, 50);
            }
            // Bodies are pushed, on streams of their own when they are larger than a frame, and adverted when larger still.
            Scenario::VerdictOrders | Scenario::PushDuringFetch | Scenario::HangingPush => {
                (topic.largest, topic.push_threshold) = (80_000, 75_000);
                topic.sequences = self == Scenario::VerdictOrders;
                if self == Scenario::HangingPush {
                    topic.pending_bytes = 160_000;
                }
            }
            Scenario::LateNotice => {
                (topic.largest, topic.push_threshold, topic.sequences) = (80_000, 75_000, true);
                let swayed = TopicOptions { sway_percent: 100, sequences: false, ..topic.clone() };
                topics.push(TopicOptions { push_threshold: PUSHED as u32, ..swayed });
            }
            Scenario::GivenUp => (topic.largest, topic.push_threshold) = (80_000, 75_000),
            Scenario::Flooding => (topic.largest, topic.pending_bytes) = (80_000, 90_000),
            Scenario::Tricklers => (topic.largest, topic.pending_bytes) = (120_000, 300_000),
            Scenario::EveryTopicFull => {
                let topic = topic.clone();
                let classes = [Class::Critical, Class::High, Class::Bulk];
                *topics = classes.map(|class| TopicOptions { class, slots: 20, ..topic.clone() }).into();
            }
            _ => (),
        }
    }

    fn set_links(self, links: &mut Links) {
        match self {
            Scenario::StaleUpdates => links.jitter = 20 * links.latency,
            Scenario::SharedIds | Scenario::BroadcastAgain => links.jitter = 3 * links.latency,
            Scenario::FirstAdvertiser | Scenario::PushDuringFetch | Scenario::HangingPush => {
                links.lose_one_in = 0;
            }
            Scenario::VerdictOrders => {
                (links.lose_one_in, links.rate, links.window) = (0, 400_000, 200_000);
            }
            Scenario::LateNotice => links.lose_one_in = 0,
            Scenario::FilterFlips => links.rate = 20_000,
            Scenario::PartitionHeals => links.window = 32_000,
            Scenario::ReconnectWithMany => (links.rate, links.window) = (100_000_000, 1 << 20),
            Scenario::ShortLives => (links.window, links.idle_timeout) = (4 << 20, Duration::from_secs(5)),
            Scenario::WireCost => links.rate = 10_000_000,
            Scenario::Overtaking | Scenario::Floods | Scenario::SharedLink => links.rate = 500_000,
            // Two runs differ by what is to be seen, not by luck.
            Scenario::StalledPeer => {
                (links.jitter, links.lose_one_in, links.rate) = (Duration::ZERO, 0, 50_000);
            }
            _ => (),
        }
    }

    fn set_habits(self, options: &mut Options, rng: &mut Rng) {
        match self {
            Scenario::FilterFlips => {
                busy(options, 10, 20);
                options.habits.notice = Duration::from_millis(rng.below(200));
                let longest = if rng.one_in(2) { 200 } else { 1 };
                options.habits.deliberation = Duration::from_millis(rng.below(longest));
            }
            Scenario::Liars => {
                let silent_percent = rng.below(100);
                let wrong_percent = rng.below(100 - silent_percent);
                let every = Duration::from_millis(10);
                options.lies = Lies { every, silent_percent, wrong_percent, ..Lies::default() };
                busy(options, 10, 20);
            }
            Scenario::AbortStorm => {
                busy(options, 50, 30);
                options.habits.act_every = Duration::from_millis(2);
            }
            // A few packets or half a body in its time.
            Scenario::ShortLives => {
                options.links.rate = 2_000_000 << rng.below(6);
                options.links.latency = Duration::from_micros(200 + rng.below(4_000));
                options.habits.relay_percent = rng.below(2) * 50;
            }
            Scenario::Flooding => options.habits.think = Duration::from_millis(30),
            // A member that lost its memory must be told again what it had named.
            Scenario::ReceiverRestart | Scenario::PushDuringFetch | Scenario::MakerDies => {
                options.habits.relay_percent = 100;
            }
            // What one has had stays counted, and nobody else sends it.
            Scenario::SharedLink | Scenario::Overtaking => options.datagrams.buffer = 64_000,
            Scenario::Floods => (options.datagrams.buffer, options.datagrams.bidi_streams) = (64_000, 256),
            Scenario::WireCost => options.datagrams.buffer = 64 << 20,
            Scenario::GivenUp => (options.datagrams.buffer, options.datagrams.bidi_streams) = (16_000, 8),
            _ => (),
        }
    }

    pub(super) fn play(self, world: &mut World) -> Result<(), String> {
        match self {
            Scenario::LateJoiner => comings::late_joiner(world),
            Scenario::FlappingLink => links::flapping_link(world),
            Scenario::ReceiverRestart => comings::receiver_restart(world),
            Scenario::SenderRestart => comings::sender_restart(world),
            Scenario::ShrinkToOne => tables::shrink_to_one(world),
            Scenario::StaleUpdates => tables::stale_updates(world),
            Scenario::SlotLimit => tables::slot_limit(world),
            Scenario::VersionLimit => tables::version_limit(world),
            Scenario::SharedIds => comings::shared_ids(world),
            Scenario::AdvertiserLeaves => bodies::advertiser_leaves(world),
            Scenario::VerdictOrders => bodies::verdict_orders(world),
            Scenario::FirstAdvertiser => bodies::first_advertiser(world),
            Scenario::PushDuringFetch => bodies::push_during_fetch(world),
            Scenario::BroadcastAgain => bodies::broadcast_again(world),
            Scenario::StalledConsumer => tables::stalled_consumer(world),
            Scenario::MakerDies => comings::maker_dies(world),
            Scenario::PartitionHeals => links::partition_heals(world),
            Scenario::StalledPeer => links::stalled_peer(world),
            Scenario::ReconnectWithMany => links::reconnect_with_many(world),
            Scenario::EveryTopicFull => tables::every_topic_full(world),
            Scenario::AbortStorm => tables::abort_storm(world),
            Scenario::ShortLives => storm::short_lives(world),
            Scenario::FilterFlips => world.run(),
            Scenario::Liars => bodies::liars(world),
            Scenario::Thrift => bodies::thrift(world),
            Scenario::HangingPush => bodies::hanging_push(world),
            Scenario::WireCost => shares::wire_cost(world),
            Scenario::Overtaking => shares::overtaking(world),
            Scenario::Floods => shares::floods(world),
            Scenario::SharedLink => shares::shared_link(world),
            Scenario::LateNotice => lies::late_notice(world),
            Scenario::GivenUp => lies::given_up(world),
            Scenario::Tricklers => lies::tricklers(world),
            Scenario::Flooding => lies::flooding(world),
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
            still_windows: true,
        },
        faults: Faults::default(),
        topics: vec![TopicOptions {
            class: Class::Normal,
            slots: 40,
            push_threshold: PUSHED as u32 + 1,
            pending_bytes: 1 << 20,
            largest: 1_000,
            active_bytes: None,
            later_percent: 0,
            discard_percent: 0,
            panic_percent: 0,
            sway_percent: 0,
            sequences: false,
            muse: Duration::ZERO,
        }],
        habits: Habits {
            act_every: Duration::ZERO,
            abort_percent: 0,
            relay_percent: 0,
            keep_percent: 0,
            think: Duration::from_millis(5),
            stall_one_in: 0,
            same_one_in: 20,
            again_percent: 0,
            notice: Duration::ZERO,
            deliberation: Duration::ZERO,
        },
        lies: Lies::default(),
        budget: Budget::default(),
        scarcity: None,
    }
}

/// A mixed run in which nothing goes wrong, everybody makes something else, links carry a whole table in a moment, and nothing
/// waits for room or for a filter.
fn calm(seed: u64) -> Options {
    let mut options = Options::mixed(seed, Level::Messages);
    (options.hostile, options.faults, options.links.lose_one_in) = (0, Faults::default(), 0);
    options.datagrams = Datagrams::calm();
    let habits = &mut options.habits;
    (habits.stall_one_in, habits.same_one_in, habits.again_percent) = (0, 0, 0);
    habits.deliberation = Duration::ZERO;
    options.scarcity = None;
    let tables: u64 = options.topics.iter().map(|topic| u64::from(topic.slots) * topic.largest).sum();
    options.links.rate = options.links.rate.max(20 * tables);
    options.links.window = options.links.window.max(tables);
    for topic in &mut options.topics {
        (topic.later_percent, topic.discard_percent, topic.panic_percent) = (0, 0, 0);
        (topic.sway_percent, topic.muse) = (0, Duration::ZERO);
        topic.pending_bytes = u64::from(topic.slots) * options.members as u64 * topic.largest;
        topic.active_bytes = None;
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
