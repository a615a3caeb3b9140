//! What a run follows from.

use std::fmt;
use std::time::Duration;

use super::hardship::Budget;
use super::scarcity::Scarcity;
use crate::types::{Class, Rng};

/// What joins the members of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// Ideal links, which carry what the engine gives them as QUIC streams would.
    #[default]
    Messages,
    /// Real quinn-proto over datagrams, with a handshake that has no randomness: bit-exact.
    Quic,
    /// The same with real TLS, which draws its keys from the system: outcomes can be compared, not bytes.
    Tls,
}

impl Level {
    /// Every level.
    pub const ALL: [Level; 3] = [Level::Messages, Level::Quic, Level::Tls];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Level::Messages => "messages",
            Level::Quic => "quic",
            Level::Tls => "tls",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Everything, expanded from the seed. Printed when a run fails.
#[derive(Debug, Clone)]
pub struct Options {
    /// Also draws whatever happens within the ranges below.
    pub seed: u64,
    /// What joins the members.
    pub level: Level,
    /// Members, hostile ones included.
    pub members: usize,
    /// The last so many members are hostile.
    pub hostile: usize,
    /// How long load and faults last.
    pub chaos: Duration,
    /// The links.
    pub links: Links,
    /// What happens to datagrams, where there are any.
    pub datagrams: Datagrams,
    /// What goes wrong.
    pub faults: Faults,
    /// What is broadcast where.
    pub topics: Vec<TopicOptions>,
    /// What replicas do.
    pub habits: Habits,
    /// What hostile members do.
    pub lies: Lies,
    /// What members may ask of one peer.
    pub budget: Budget,
    /// What else they have hardly any of; `None`: there is plenty.
    pub scarcity: Option<Scarcity>,
}

/// Links, alike in both directions.
#[derive(Debug, Clone, Copy)]
pub struct Links {
    /// One way, at least.
    pub latency: Duration,
    /// One way, up to so much more: streams overtake one another.
    pub jitter: Duration,
    /// One stream in so many waits for a retransmission; 0 for none.
    pub lose_one_in: u64,
    /// Bytes per second of each direction.
    pub rate: u64,
    /// Bytes that may be on their way before bodies wait; half as many again for urgent ones.
    pub window: u64,
    /// Silence after which a connection is lost.
    pub idle_timeout: Duration,
    /// A member that stands still acknowledges nothing: what is on its way to it fills the window.
    pub still_windows: bool,
}

/// Datagrams, alike in both directions.
#[derive(Debug, Clone, Copy)]
pub struct Datagrams {
    /// One in so many is lost; 0 for none.
    pub lose_one_in: u64,
    /// One in so many arrives twice; 0 for none.
    pub repeat_one_in: u64,
    /// One in so many arrives with a wrong bit; 0 for none.
    pub damage_one_in: u64,
    /// One in so many takes up to the link's jitter longer, and is overtaken; 0 for none.
    pub reorder_one_in: u64,
    /// Bytes of the largest.
    pub mtu: u16,
    /// Bytes that may wait before a member's link, in either direction; more are lost.
    pub buffer: u64,
    /// Unidirectional streams that a peer may have open.
    pub uni_streams: u32,
    /// Bidirectional streams that a peer may have open.
    pub bidi_streams: u32,
    /// The mean time between two times when a path carries no datagram above 1,200 bytes; zero for none.
    pub narrow_every: Duration,
}

impl Datagrams {
    /// Nothing goes wrong.
    pub fn calm() -> Datagrams {
        Datagrams {
            lose_one_in: 0,
            repeat_one_in: 0,
            damage_one_in: 0,
            reorder_one_in: 0,
            mtu: 1_452,
            buffer: 256 << 10,
            uni_streams: 256,
            bidi_streams: 64,
            narrow_every: Duration::ZERO,
        }
    }

    fn mixed(rng: &mut Rng) -> Datagrams {
        let rarely = |rng: &mut Rng, least: u64, most: u64| match rng.one_in(2) {
            true => 0,
            false => least + rng.below(most - least),
        };
        Datagrams {
            lose_one_in: rarely(rng, 3, 200),
            repeat_one_in: rarely(rng, 2, 100),
            damage_one_in: rarely(rng, 10, 200),
            reorder_one_in: rarely(rng, 2, 50),
            mtu: [1_200, 1_452, 4_000, 8_900][rng.below(4) as usize],
            buffer: 16_000 << rng.below(5),
            uni_streams: 8 << rng.below(6),
            bidi_streams: 1 << rng.below(7),
            narrow_every: sometimes(rng, 3, 300, 3_000),
        }
    }
}

/// The mean time between faults of each kind, in the whole subnet; zero for none.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// One direction or both of a link are cut.
    pub cut_every: Duration,
    /// A member loses its memory and comes back.
    pub crash_every: Duration,
    /// A member stands still.
    pub pause_every: Duration,
    /// A connection is closed.
    pub close_every: Duration,
    /// A member's clock leaps forward, as after its machine was stopped.
    pub leap_every: Duration,
    /// The longest of these.
    pub longest: Duration,
}

/// One topic.
#[derive(Debug, Clone)]
pub struct TopicOptions {
    /// Its class.
    pub class: Class,
    /// Slots of each member.
    pub slots: u32,
    /// Bytes from which a body is adverted.
    pub push_threshold: u32,
    /// Bytes of received bodies that a member holds.
    pub pending_bytes: u64,
    /// The largest body.
    pub largest: u64,
    /// Bytes of a member's own artifacts, and of those that it relays; `None`: room for 128 KiB and half the slots.
    pub active_bytes: Option<u64>,
    /// Of a hundred artifacts, how many the filter wants later, until it changes.
    pub later_percent: u64,
    /// Of a hundred artifacts, how many the filter never wants.
    pub discard_percent: u64,
    /// Of a hundred artifacts, at how many the filter panics, at most until it changes for the last time.
    pub panic_percent: u64,
    /// Of a hundred artifacts, how many the filter judges by who names them, too, and by the size that a hostile member states.
    pub sway_percent: u64,
    /// Instead of these: what the filter says follows from the artifact's place among the 27 sequences of three verdicts.
    pub sequences: bool,
    /// The longest that a replica keeps one delivery in four before it decides, even when all faults are over; zero for none.
    pub muse: Duration,
}

/// What replicas do.
#[derive(Debug, Clone)]
pub struct Habits {
    /// The mean time between two acts of one member; zero for none.
    pub act_every: Duration,
    /// Of a hundred acts, how many are aborts; most others are broadcasts.
    pub abort_percent: u64,
    /// Of a hundred deliveries, how many are relayed.
    pub relay_percent: u64,
    /// Of a hundred deliveries, how many are kept without a word.
    pub keep_percent: u64,
    /// The longest that a replica thinks about a delivery.
    pub think: Duration,
    /// One act in so many leaves the consumer stalled for a while; 0 for none.
    pub stall_one_in: u64,
    /// One broadcast in so many is of something that others make, too; 0 for none.
    pub same_one_in: u64,
    /// Of a hundred broadcasts, how many are of what the member aborted last, if it has aborted anything.
    pub again_percent: u64,
    /// The longest from a change of what filters go by until the engine hears of it; zero for at once.
    pub notice: Duration,
    /// The longest that filters on a thread of their own take for a verdict; zero: they are asked where adverts are heard. Others
    /// are so now and then, as the replica swaps them.
    pub deliberation: Duration,
}

/// What hostile members do.
#[derive(Debug, Clone, Default)]
pub struct Lies {
    /// The mean time between two lies of one hostile member; zero for none: then it says what a scenario has it say.
    pub every: Duration,
    /// Of a hundred requests, how many it answers with silence.
    pub silent_percent: u64,
    /// Of a hundred requests, how many it answers with other bytes.
    pub wrong_percent: u64,
    /// Of a hundred lies and answers, how many begin and do not end, or late; not over QUIC.
    pub hang_percent: u64,
    /// Of a hundred lies, how many are to give up requests that have no answer yet, and to ask again.
    pub give_up_percent: u64,
}

impl Options {
    /// A mix: each kind of fault is there or not, tiny limits are frequent.
    pub fn mixed(seed: u64, level: Level) -> Options {
        let rng = &mut Rng::new(seed ^ 0x6d69_7865_6400);
        let members = 3 + rng.below(5) as usize;
        let hostile = if rng.one_in(2) { rng.below(1 + (members as u64 - 1) / 3) as usize } else { 0 };
        let latency = millis(1 + rng.below(60));
        let faults = match rng.below(4) {
            0 => Faults::default(),
            _ => Faults {
                cut_every: sometimes(rng, 2, 300, 2_000),
                crash_every: sometimes(rng, 2, 500, 3_000),
                pause_every: sometimes(rng, 3, 500, 3_000),
                close_every: sometimes(rng, 3, 200, 2_000),
                leap_every: Duration::ZERO,
                longest: millis(50 + rng.below(3_000)),
            },
        };
        let mut options = Options {
            seed,
            level,
            datagrams: Datagrams::mixed(&mut Rng::new(seed ^ 0x6461_7461_6772)),
            members,
            hostile,
            chaos: millis(1_000 + rng.below(4_000)),
            links: Links {
                latency,
                jitter: latency.mul_f64(rng.below(100) as f64 / 50.0),
                lose_one_in: if rng.one_in(2) { 0 } else { 3 + rng.below(30) },
                rate: 50_000 << rng.below(8),
                window: 2_000 << rng.below(7),
                idle_timeout: millis(300 + rng.below(1_500)),
                still_windows: false,
            },
            faults,
            topics: (0..1 + rng.below(3)).map(|_| TopicOptions::mixed(rng)).collect(),
            habits: Habits {
                act_every: millis(5 + rng.below(200)),
                abort_percent: rng.below(50),
                relay_percent: rng.below(80),
                keep_percent: rng.below(20),
                think: millis(rng.below(200)),
                stall_one_in: if rng.one_in(3) { 10 } else { 0 },
                same_one_in: 20,
                again_percent: 0,
                notice: Duration::ZERO,
                deliberation: Duration::ZERO,
            },
            lies: Lies {
                every: millis(5 + rng.below(100)),
                silent_percent: rng.below(60),
                wrong_percent: rng.below(40),
                hang_percent: 0,
                give_up_percent: 0,
            },
            budget: Budget::default(),
            scarcity: None,
        };
        // New draws come last: then a seed means what it meant, but for what is new.
        options.habits.again_percent = if rng.one_in(3) { 10 + rng.below(60) } else { 0 };
        options.links.still_windows = rng.one_in(2);
        options.harden();
        options.crowd();
        options.hang();
        options.sway();
        options.pester();
        options.deliberate();
        options.make_scarce();
        options
    }

    /// Whether nothing goes wrong: no fault, no loss, no lie, and nobody makes what was made before.
    pub(super) fn is_calm(&self) -> bool {
        let Faults { cut_every, crash_every, pause_every, close_every, leap_every, .. } = &self.faults;
        let faults = [cut_every, crash_every, pause_every, close_every, leap_every];
        let Habits { same_one_in, again_percent, deliberation, .. } = self.habits;
        // A pushed body whose verdict is awaited comes twice.
        let fetched_again = deliberation.as_nanos() as u64;
        let mishaps =
            [self.links.lose_one_in, self.hostile as u64, same_one_in, again_percent, fetched_again];
        let datagrams = [self.datagrams.lose_one_in, self.datagrams.damage_one_in];
        faults.iter().all(|every| every.is_zero()) && mishaps == [0; 5] && datagrams == [0; 2]
    }

    /// What may wait for a member's replica to be told: void ones are swept out above this, and each artifact may have been
    /// withdrawn once, too.
    fn events(&self) -> usize {
        self.topics.iter().map(|topic| 65 + 4 * topic.artifacts(self.members)).sum()
    }

    /// After the end of all faults, the longest until every active artifact is everywhere: connections are lost and made
    /// again; each hostile member may keep a fetch waiting for the longest hedge, twice; what waits must pass the links; and
    /// where few bodies have room at a time, or may be asked for, each takes its turn of a request and a thought, and each lie a
    /// turn of patience.
    pub fn bound(&self) -> Duration {
        let trip = 2 * (self.links.latency + self.links.jitter);
        let members = self.members as u64;
        let bytes: u64 =
            self.topics.iter().map(|topic| u64::from(topic.slots) * members * topic.largest).sum();
        let transfer = Duration::from_secs_f64(bytes as f64 / self.pace());
        let hedges = Duration::from_secs(4) * (self.hostile as u32 + 1);
        let turn = 4 * trip + self.habits.think + Duration::from_millis(50);
        let lie = Duration::from_millis(500) * self.hostile as u32;
        let turns: Duration = self
            .topics
            .iter()
            .map(|topic| (turn + lie + topic.muse).mul_f64(topic.turns(members) + 1.0))
            .sum();
        2 * self.links.idle_timeout
            + Duration::from_secs(2)
            + self.habits.notice
            + 2 * self.habits.deliberation
            + hedges
            + 20 * trip
            + 2 * transfer
            + turns
            + self.queueing(turn)
            + self.rests(self.events())
    }
}

impl TopicOptions {
    /// Artifacts of which a member knows at a time.
    pub(super) fn artifacts(&self, members: usize) -> usize {
        self.slots as usize * members
    }

    /// How often the room for received bodies must be filled and emptied, until all that `members` may name was there.
    fn turns(&self, members: u64) -> f64 {
        (u64::from(self.slots) * members) as f64 / (self.pending_bytes / self.largest).max(1) as f64
    }

    /// Whether nothing that `members` may name ever waits, for the filter or for room.
    pub(super) fn has_room_for_all(&self, members: usize) -> bool {
        let all = u64::from(self.slots) * members as u64 * self.largest;
        self.later_percent + self.panic_percent + self.sway_percent == 0 && all <= self.pending_bytes
    }

    fn mixed(rng: &mut Rng) -> TopicOptions {
        let largest = if rng.one_in(8) { 70_000 } else { 8 << rng.below(9) };
        let filtered = rng.one_in(2);
        TopicOptions {
            class: Class::ALL[rng.below(4) as usize],
            slots: if rng.one_in(2) { 1 + rng.below(4) as u32 } else { 1 + rng.below(100) as u32 },
            push_threshold: rng.below(2 * largest) as u32,
            pending_bytes: largest * (1 + rng.below(20)),
            largest,
            active_bytes: None,
            later_percent: if filtered { rng.below(50) } else { 0 },
            discard_percent: if filtered { rng.below(30) } else { 0 },
            panic_percent: 0,
            sway_percent: 0,
            sequences: false,
            muse: Duration::ZERO,
        }
    }
}

/// A mean time within the range, one time in `n`; otherwise none.
fn sometimes(rng: &mut Rng, n: u64, least: u64, most: u64) -> Duration {
    if rng.one_in(n) { millis(least + rng.below(most - least)) } else { Duration::ZERO }
}

fn millis(number: u64) -> Duration {
    Duration::from_millis(number)
}
