//! Virtual time: what happens next, and what follows from it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::Report;
use super::flow::Flows;
use super::hostile::Hostile;
use super::member::{Member, SETTLED};
use super::net::{Cargo, Net};
use super::options::Options;
use super::oracle::Oracle;
use crate::engine::{Effect, Effects};
use crate::types::{ArtifactId, Instant, PeerIndex, Rng, TopicId};

/// Something that happens at a time.
#[derive(Debug, Clone)]
pub(super) enum Happening {
    Arrive {
        from: usize,
        to: usize,
        connection: u64,
        cargo: Cargo,
    },
    /// Bytes were acknowledged.
    Acknowledged {
        from: usize,
        to: usize,
        connection: u64,
        bytes: u64,
    },
    /// The pair's dialler tries.
    Dial {
        pair: (usize, usize),
    },
    Established {
        node: usize,
        peer: usize,
        connection: u64,
    },
    /// `node` has heard nothing for too long, if the connection is still that.
    Silence {
        node: usize,
        peer: usize,
        connection: u64,
    },
    Timer {
        node: usize,
    },
    /// A stalled or paused member goes on.
    Wake {
        node: usize,
    },
    Act {
        node: usize,
    },
    Decide {
        node: usize,
        topic: TopicId,
        id: ArtifactId,
    },
    Lie {
        node: usize,
    },
    Fault {
        kind: Fault,
    },
    Heal {
        pair: (usize, usize),
    },
    Start {
        node: usize,
    },
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Cut,
    Crash,
    Pause,
    Close,
}

pub(super) enum Actor {
    Honest(Box<Member>),
    Hostile(Box<Hostile>),
    /// Crashed, or gone for good.
    Off,
}

/// See the module.
pub(crate) struct World {
    pub(super) options: Options,
    pub(super) now: Instant,
    queue: BTreeMap<(Instant, u64), Happening>,
    sequence: u64,
    pub(super) rng: Rng,
    pub(super) actors: Vec<Actor>,
    pub(super) net: Net,
    pub(super) flows: Flows,
    pub(super) oracle: Oracle,
    /// Bodies by id: everything that anybody ever made.
    pub(super) bodies: BTreeMap<ArtifactId, Bytes>,
    /// Whether load and faults go on.
    pub(super) chaos: bool,
    /// Whether hostile members still speak.
    pub(super) lies: bool,
    pub(super) generation: u64,
    boots: u64,
    /// Until when a pair's handshake lasts.
    pub(super) dialling: BTreeMap<(usize, usize), Instant>,
    /// Effects of what links brought, in order.
    pub(super) pending: VecDeque<(usize, Effects)>,
    digest: blake3::Hasher,
    converged: Duration,
}

impl World {
    pub(super) fn new(options: Options) -> World {
        let mut rng = Rng::new(options.seed);
        let net = Net::new(options.links.clone(), options.members, Rng::new(rng.next_u64()));
        let mut world = World {
            now: Instant::ZERO,
            queue: BTreeMap::new(),
            sequence: 0,
            rng,
            actors: (0..options.members).map(|_| Actor::Off).collect(),
            net,
            flows: Flows::default(),
            oracle: Oracle::new(&options),
            bodies: BTreeMap::new(),
            chaos: true,
            lies: true,
            generation: 0,
            boots: 0,
            dialling: BTreeMap::new(),
            pending: VecDeque::new(),
            digest: blake3::Hasher::new(),
            converged: Duration::ZERO,
            options,
        };
        for node in 0..world.options.members {
            world.start(node);
        }
        world.plan_faults();
        world
    }

    pub(super) fn now(&self) -> Instant {
        self.now
    }

    pub(super) fn report(&self) -> Report {
        let digest = *self.digest.finalize().as_bytes();
        Report {
            events: self.sequence,
            delivered: self.oracle.delivered(),
            digest,
            converged: self.converged,
        }
    }

    /// Chaos, peace, end: see the module above.
    pub(super) fn run(&mut self) -> Result<(), String> {
        self.run_until(Instant::ZERO + self.options.chaos)?;
        self.make_peace()?;
        self.finish()
    }

    /// Ends all faults; every active artifact must be everywhere within the bound, and then nothing may be left to do.
    pub(super) fn make_peace(&mut self) -> Result<(), String> {
        self.chaos = false;
        self.generation = SETTLED;
        let peace = self.now;
        for a in 0..self.options.members {
            for b in 0..self.options.members {
                if a < b {
                    self.happen_now(Happening::Heal { pair: (a, b) })?;
                }
            }
        }
        for node in 0..self.options.members {
            if matches!(self.actors[node], Actor::Off) {
                self.start(node);
            }
            self.with_member(node, |member, now, fx| {
                member.paused_until = now;
                member.stalled_until = now;
                let (topics, generation) = (member.topics(), SETTLED);
                member.change_filter(topics, generation, now, fx);
            })?;
        }
        let end = peace + self.options.bound();
        while !self.oracle.has_converged(&self.actors, &self.options) {
            let Some(next) = self.next_time().filter(|next| *next <= end) else {
                let missing = self.oracle.missing(&self.actors, &self.options);
                return Err(format!(
                    "P1: not delivered {:?} after the faults: {missing}",
                    self.options.bound()
                ));
            };
            self.run_until(next)?;
        }
        self.converged = self.now.saturating_since(peace);
        self.silence_hostile()?;
        self.run_out("quiescence")?;
        self.oracle.check_settled(&self.actors, &self.options)
    }

    /// Hostile members are gone from now on.
    fn silence_hostile(&mut self) -> Result<(), String> {
        self.lies = false;
        let honest = self.options.members - self.options.hostile;
        for node in honest..self.options.members {
            self.crash(node);
        }
        Ok(())
    }

    /// Everything is aborted and released: nothing may be left.
    pub(super) fn finish(&mut self) -> Result<(), String> {
        for node in 0..self.options.members {
            self.with_member(node, Member::let_go)?;
        }
        self.run_out("the end")?;
        self.oracle.check_empty(&self.actors, &self.options)
    }

    /// Runs until nothing is left to happen.
    fn run_out(&mut self, what: &str) -> Result<(), String> {
        // The worst standing heals in five minutes.
        let end = self.now + self.options.bound() + Duration::from_secs(360);
        while let Some(next) = self.next_time() {
            if next > end {
                let left: Vec<&Happening> = self.queue.values().take(5).collect();
                return Err(format!("L2: {what} is not reached: {left:?} …"));
            }
            self.run_until(next)?;
        }
        Ok(())
    }

    pub(super) fn next_time(&self) -> Option<Instant> {
        self.queue.keys().next().map(|(at, _)| *at)
    }

    /// Runs everything that happens up to and including `end`.
    pub(super) fn run_until(&mut self, end: Instant) -> Result<(), String> {
        while let Some(entry) = self.queue.first_entry() {
            let at = entry.key().0;
            if at > end {
                break;
            }
            let happening = entry.remove();
            self.now = self.now.max(at);
            self.happen_now(happening)?;
        }
        self.now = self.now.max(end);
        Ok(())
    }

    /// Something will happen.
    pub(super) fn at(&mut self, at: Instant, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), happening);
    }

    pub(super) fn after(&mut self, delay: Duration, happening: Happening) {
        self.at(self.now + delay, happening);
    }

    fn happen_now(&mut self, happening: Happening) -> Result<(), String> {
        self.record(&happening);
        match happening {
            Happening::Arrive { from, to, connection, cargo } => self.arrive(from, to, connection, cargo),
            Happening::Acknowledged { from, to, connection, bytes } => {
                if let Some(Actor::Honest(member)) = self.actors.get(to)
                    && self.options.links.still_windows
                    && member.paused_until > self.now
                {
                    let wake = member.paused_until;
                    self.at(wake, Happening::Acknowledged { from, to, connection, bytes });
                    return Ok(());
                }
                self.net.acknowledge(from, to, connection, bytes);
                self.turn(from)
            }
            Happening::Dial { pair } => self.dial(pair),
            Happening::Established { node, peer, connection } => self.established(node, peer, connection),
            Happening::Silence { node, peer, connection } => self.silence(node, peer, connection),
            Happening::Timer { node } => self.timer(node),
            Happening::Wake { node } => self.turn(node),
            Happening::Act { node } => self.act(node),
            Happening::Decide { node, topic, id } => self.decide(node, topic, id),
            Happening::Lie { node } => self.lie(node),
            Happening::Fault { kind } => self.fault(kind),
            Happening::Heal { pair: (a, b) } => {
                for (from, to) in [(a, b), (b, a)] {
                    for (at, happening) in self.net.heal(from, to, self.now) {
                        self.at(at, happening);
                    }
                }
                Ok(())
            }
            Happening::Start { node } => {
                if matches!(self.actors[node], Actor::Off) {
                    self.start(node);
                }
                Ok(())
            }
        }
    }

    fn record(&mut self, happening: &Happening) {
        tracing::trace!(at = ?self.now, ?happening);
        self.digest.update(&self.now.as_nanos().to_le_bytes());
        self.digest.update(format!("{happening:?}").as_bytes());
    }

    /// A fresh start of a member.
    pub(super) fn start(&mut self, node: usize) {
        self.boots += 1;
        let honest = self.options.members - self.options.hostile;
        self.actors[node] = if node < honest {
            self.oracle.forget(node);
            Actor::Honest(Box::new(Member::new(&self.options, node, self.boots, self.generation)))
        } else {
            Actor::Hostile(Box::new(Hostile::new(&self.options, self.boots)))
        };
        for peer in 0..self.options.members {
            if peer != node {
                let pair = (node.min(peer), node.max(peer));
                let delay = Duration::from_micros(self.rng.below(20_000));
                self.after(delay, Happening::Dial { pair });
            }
        }
        let (act, lie) = (self.options.habits.act_every, self.options.lies.every);
        if node < honest && self.chaos && !act.is_zero() {
            let delay = self.around(act);
            self.after(delay, Happening::Act { node });
        } else if node >= honest && self.lies && !lie.is_zero() {
            let delay = self.around(lie);
            self.after(delay, Happening::Lie { node });
        }
    }

    /// A time around `mean`, never 0.
    pub(super) fn around(&mut self, mean: Duration) -> Duration {
        Duration::from_nanos(1 + self.rng.below(2 * mean.as_nanos() as u64))
    }

    /// Calls an honest member, if it runs, carries out what follows, and gives it a turn.
    pub(super) fn with_member(
        &mut self,
        node: usize,
        call: impl FnOnce(&mut Member, Instant, &mut Effects),
    ) -> Result<(), String> {
        let Some(Actor::Honest(member)) = self.actors.get_mut(node) else { return Ok(()) };
        let mut fx = Effects::new();
        call(member, self.now, &mut fx);
        member.forget_unnamed();
        self.carry_out(node, fx)?;
        self.turn(node)
    }

    /// Carries out what followed from what links brought.
    fn carry_out_pending(&mut self) -> Result<(), String> {
        while let Some((node, fx)) = self.pending.pop_front() {
            self.carry_out(node, fx)?;
        }
        Ok(())
    }

    pub(super) fn carry_out(&mut self, node: usize, fx: Effects) -> Result<(), String> {
        for effect in fx {
            match effect {
                Effect::Freed { .. } => {
                    if let Some(Actor::Honest(member)) = self.actors.get_mut(node) {
                        member.freed(effect)?;
                    }
                }
                Effect::Reset { peer, key } => self.reset(node, peer.index(), key),
                Effect::Disconnect { peer, .. } => self.close(node, peer.index())?,
            }
        }
        Ok(())
    }

    /// Steps that one turn may take before it counts as a busy loop.
    const STEPS: usize = 20_000;

    /// A member's turn: timers, then whatever links and consumer have room for.
    pub(super) fn turn(&mut self, node: usize) -> Result<(), String> {
        for _ in 0..Self::STEPS {
            self.carry_out_pending()?;
            let Some(Actor::Honest(member)) = self.actors.get_mut(node) else { return Ok(()) };
            if member.paused_until > self.now {
                return Ok(());
            }
            let mut fx = Effects::new();
            let due = member.engine.poll_timeout().is_some_and(|(at, _)| at <= self.now);
            if due {
                member.engine.handle_timeout(self.now, &mut fx);
            }
            let moved = due | !fx.is_empty();
            self.carry_out(node, fx)?;
            if !(self.send_all(node)? | self.consume(node)? | moved) {
                self.arm(node);
                return self.oracle.check_member(node, &self.actors, &self.options);
            }
        }
        Err(format!("S16: member {node} finds no end of its turn"))
    }

    /// Sends what the engine has for every peer with room; whether it had something.
    fn send_all(&mut self, node: usize) -> Result<bool, String> {
        let mut sent = false;
        for peer in (0..self.options.members).filter(|peer| *peer != node) {
            while let Some(connection) = self.net.side(node, peer) {
                let Some(room) = self.net.room(node, peer) else { break };
                let Some(Actor::Honest(member)) = self.actors.get_mut(node) else { break };
                let index = PeerIndex(peer as u16);
                let Some(outgoing) = member.engine.poll_outgoing(index, room, self.now) else { break };
                self.check_sent(node, peer, &outgoing)?;
                self.send(node, peer, connection, outgoing);
                sent = true;
            }
        }
        Ok(sent)
    }

    fn consume(&mut self, node: usize) -> Result<bool, String> {
        let (topics, now) = (self.options.topics.len(), self.now);
        let mut consumed = false;
        while let Some(Actor::Honest(member)) = self.actors.get_mut(node)
            && member.stalled_until <= now
        {
            let Some((topic, event)) = member.poll_event(topics) else { break };
            consumed = true;
            self.digest.update(format!("{node} {topic:?} {event:?}").as_bytes());
            tracing::trace!(node, ?topic, ?event);
            if let Some(id) = self.oracle.hear(member, node, topic, &event, &self.bodies)? {
                let delay =
                    Duration::from_nanos(self.rng.below(self.options.habits.think.as_nanos() as u64 + 1));
                self.after(delay, Happening::Decide { node, topic, id });
            }
        }
        Ok(consumed)
    }

    /// Sees to it that the next timer happens.
    fn arm(&mut self, node: usize) {
        let Some(Actor::Honest(member)) = self.actors.get_mut(node) else { return };
        let Some((at, _)) = member.engine.poll_timeout() else { return };
        if member.timer_at.is_none_or(|armed| armed > at) {
            member.timer_at = Some(at);
            self.at(at, Happening::Timer { node });
        }
    }

    fn timer(&mut self, node: usize) -> Result<(), String> {
        if let Some(Actor::Honest(member)) = self.actors.get_mut(node)
            && member.timer_at.is_some_and(|at| at <= self.now)
        {
            member.timer_at = None;
            if member.paused_until > self.now {
                let wake = member.paused_until;
                self.at(wake, Happening::Wake { node });
            }
        }
        self.turn(node)
    }
}
