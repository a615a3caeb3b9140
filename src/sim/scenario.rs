//! Directed runs: one situation each, varied by the seed. All end as every run does: peace, then the end.

mod comings;
mod links;
mod script;
mod tables;

use std::fmt;
use std::time::Duration;

use super::options::{Faults, Habits, Lies, Links, Options, TopicOptions};
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
}

/// Bodies of this size are pushed, larger ones adverted.
const PUSHED: u64 = 100;

impl Scenario {
    /// Every one.
    pub const ALL: [Scenario; 18] = [
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
            Scenario::LateJoiner => comings::late_joiner(world),
            Scenario::FlappingLink => links::flapping_link(world),
            Scenario::ReceiverRestart => comings::receiver_restart(world),
            Scenario::SenderRestart => comings::sender_restart(world),
            Scenario::ShrinkToOne => tables::shrink_to_one(world),
            Scenario::SharedIds => comings::shared_ids(world),
            Scenario::AdvertiserLeaves => comings::advertiser_leaves(world),
            Scenario::MakerDies => comings::maker_dies(world),
            Scenario::PartitionHeals => links::partition_heals(world),
            Scenario::StalledPeer => links::stalled_peer(world),
            Scenario::ReconnectWithMany => links::reconnect_with_many(world),
            Scenario::EveryTopicFull => tables::every_topic_full(world),
            Scenario::StaleUpdates
            | Scenario::SlotLimit
            | Scenario::FilterFlips
            | Scenario::Liars
            | Scenario::PushDuringFetch
            | Scenario::AbortStorm => world.run(),
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
        }],
        habits: Habits {
            act_every: Duration::ZERO,
            abort_percent: 0,
            relay_percent: 0,
            keep_percent: 0,
            think: Duration::from_millis(5),
            stall_one_in: 0,
        },
        lies: Lies::default(),
    }
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
