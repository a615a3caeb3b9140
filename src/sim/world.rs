//! Virtual time: what happens next, and what follows from it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::Report;
use super::effort::Effort;
use super::flow::Flows;
use super::hostile::Hostile;
use super::inversion::Inversions;
use super::lane::{self, Wire};
use super::member::{Member, SETTLED};
use super::net::{Cargo, Net};
use super::options::{Level, Options};
use super::oracle::Oracle;
use super::patience::Patience;
use super::witness::Witness;
use crate::engine::{Effect, Effects, Event, Judged};
use crate::quic::Identity;
use crate::types::{ArtifactId, Classes, Instant, NodeId, PeerIndex, Rng, TopicId};
use crate::wire::Outgoing;

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
    /// The engine hears that its filters judge by something else.
    FilterChanged {
        node: usize,
    },
    /// A filter that was asked by this start of a member has come to its verdict.
    Judged {
        node: usize,
        boot: u64,
        topic: TopicId,
        judged: Judged,
    },
    Heal {
        pair: (usize, usize),
    },
    Start {
        node: usize,
    },
    /// A datagram reaches the link of `to`.
    Datagram {
        from: usize,
        to: usize,
        data: Bytes,
    },
    /// It is through.
    Received {
        from: usize,
        to: usize,
        data: Bytes,
    },
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Cut,
    Crash,
    Pause,
    Close,
    /// A clock leaps forward.
    Leap,
    /// A path carries no long datagrams.
    Narrow,
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
    /// Of what came later than the rest, so that it shifts none of its draws.
    pub(super) asides: Rng,
    pub(super) actors: Vec<Actor>,
    pub(super) net: Net,
    pub(super) flows: Flows,
    /// QUIC, where that joins the members.
    pub(super) wire: Option<Wire>,
    ids: Vec<NodeId>,
    pub(super) oracle: Oracle,
    pub(super) witness: Witness,
    pub(super) effort: Effort,
    pub(super) patience: Patience,
    pub(super) inversions: Inversions,
    /// Bodies by id: everything that anybody ever made.
    pub(super) bodies: BTreeMap<ArtifactId, Bytes>,
    /// Whether load and faults go on.
    pub(super) chaos: bool,
    /// Whether hostile members still speak.
    pub(super) lies: bool,
    pub(super) generation: u64,
    boots: u64,
    /// When a timer of each member is due.
    timers: Vec<Option<Instant>>,
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
        let paths = Rng::new(rng.next_u64());
        let net = Net::new(options.links, options.members, paths.clone());
        let wire = match options.level {
            Level::Messages => None,
            Level::Quic | Level::Tls => Some(Wire::new(&options, options.datagrams, paths)),
        };
        let ids: Vec<NodeId> = lane::identities(options.members).iter().map(Identity::id).collect();
        let mut world = World {
            now: Instant::ZERO,
            queue: BTreeMap::new(),
            sequence: 0,
            rng,
            asides: Rng::new(options.seed ^ 0x6173_6964_6573),
            actors: (0..options.members).map(|_| Actor::Off).collect(),
            net,
            flows: Flows::default(),
            wire,
            oracle: Oracle::new(&options, ids.clone()),
            ids,
            witness: Witness::new(&options),
            effort: Effort::new(&options),
            patience: Patience::default(),
            inversions: Inversions::new(&options),
            bodies: BTreeMap::new(),
            chaos: true,
            lies: true,
            generation: 0,
            boots: 0,
            timers: vec![None; options.members],
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

    pub(super) fn member_ids(&self) -> Vec<NodeId> {
        self.ids.clone()
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
        if let Some(wire) = &mut self.wire {
            wire.paths.calm();
        }
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
            self.with_member(node, |member, _, _| {
                member.paused_until = peace;
                member.stalled_until = peace;
            })?;
            self.change_filter(node, SETTLED)?;
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
        self.run_out("quiescence", |world| world.oracle.check_settled(&world.actors, &world.options))
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
        self.run_out("the end", |world| world.oracle.check_empty(&world.actors, &world.options))
    }

    /// Runs until nothing is left to happen but what keeps connections alive, and checks what is left.
    fn run_out(&mut self, what: &str, check: fn(&World) -> Result<(), String>) -> Result<(), String> {
        // The worst standing heals in five minutes.
        let end = self.now + self.options.bound() + Duration::from_secs(360);
        if self.wire.is_some() {
            let honest = self.options.members - self.options.hostile;
            let check = |world: &World| {
                check(world)?;
                world.wire.as_ref().map_or(Ok(()), |wire| wire.check_streams(honest))
            };
            while check(self).is_err() && self.now < end {
                self.run_until(self.now + Duration::from_secs(1))?;
            }
            check(self)?;
            return self.rest();
        }
        while let Some(next) = self.next_time() {
            if next > end {
                let left: Vec<&Happening> = self.queue.values().take(5).collect();
                return Err(format!("L2: {what} is not reached: {left:?} …"));
            }
            self.run_until(next)?;
        }
        check(self)
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
                self.effort.arrived(from);
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
            Happening::FilterChanged { node } => self.tell_filter(node),
            Happening::Judged { node, boot, topic, judged } => self.judged(node, boot, topic, judged),
            Happening::Heal { pair: (a, b) } => {
                for (from, to) in [(a, b), (b, a)] {
                    if let Some(wire) = &mut self.wire {
                        wire.paths.heal(from, to);
                    }
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
            Happening::Datagram { from, to, data } => self.datagram(from, to, data),
            Happening::Received { from, to, data } => self.received(from, to, data),
        }
    }

    fn record(&mut self, happening: &Happening) {
        tracing::trace!(at = ?self.now, ?happening);
        self.digest.update(&self.now.as_nanos().to_le_bytes());
        match happening {
            // Datagrams are in the digest since they were sent.
            Happening::Datagram { .. } | Happening::Received { .. } => (),
            Happening::Arrive { from, to, connection, cargo: Cargo::Batch(bytes) } => {
                self.digest.update(format!("{from} {to} {connection}").as_bytes()).update(bytes);
            }
            _ => drop(self.digest.update(format!("{happening:?}").as_bytes())),
        }
    }

    pub(super) fn record_bytes(&mut self, bytes: &[u8]) {
        self.digest.update(&self.now.as_nanos().to_le_bytes()).update(bytes);
    }

    /// A fresh start of a member.
    pub(super) fn start(&mut self, node: usize) {
        self.boots += 1;
        self.timers[node] = None;
        let honest = self.options.members - self.options.hostile;
        self.actors[node] = if node < honest {
            self.oracle.forget(node);
            self.inversions.forget(node);
            self.effort.forget(node);
            Actor::Honest(Box::new(Member::new(&self.options, &self.ids, node, self.boots, self.generation)))
        } else {
            Actor::Hostile(Box::new(Hostile::new(&self.options, self.boots)))
        };
        if let Some(wire) = &mut self.wire {
            wire.start(&self.options, node, self.boots);
            self.at(self.now, Happening::Wake { node });
        }
        for peer in 0..self.options.members {
            if peer != node && self.wire.is_none() {
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
        self.effort.commanded(node);
        call(member, member.clock(self.now), &mut fx);
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
                Effect::Disconnect { peer, code } => self.close(node, peer.index(), code)?,
            }
        }
        Ok(())
    }

    /// Steps that one turn may take before it counts as a busy loop.
    const STEPS: usize = 20_000;

    /// A member's turn: timers, then whatever links and consumer have room for.
    pub(super) fn turn(&mut self, node: usize) -> Result<(), String> {
        if let Some(Actor::Hostile(_)) = self.actors.get(node) {
            return self.hostile_turn(node);
        }
        for _ in 0..Self::STEPS {
            self.carry_out_pending()?;
            let Some(Actor::Honest(member)) = self.actors.get_mut(node) else { return Ok(()) };
            if member.paused_until > self.now {
                return Ok(());
            }
            let mut fx = Effects::new();
            let now = member.clock(self.now);
            let due = member.engine.poll_timeout().is_some_and(|(at, _)| at <= now);
            self.effort.spend(node);
            if due {
                self.effort.timed(node);
                member.engine.handle_timeout(now, &mut fx);
            }
            let moved = due | !fx.is_empty();
            self.carry_out(node, fx)?;
            let heard = self.hear_links(node)? | self.ask_filters(node);
            self.carry_out_pending()?;
            if !(self.send_all(node)? | self.consume(node)? | self.transmit(node) | moved | heard) {
                self.arm(node);
                return self.check(node);
            }
        }
        Err(format!("S16: member {node} finds no end of its turn"))
    }

    /// After turns of a member.
    fn check(&mut self, node: usize) -> Result<(), String> {
        if let Some(Actor::Honest(member)) = self.actors.get(node) {
            self.effort.check(node, member.engine.fetches(), member.clock(self.now))?;
        }
        self.check_patience(node)?;
        self.check_inversions()?;
        self.oracle.check_member(node, &self.actors, self.wire.as_ref(), &self.options)
    }

    /// Sends what the engine has for every peer with room; whether it had something.
    fn send_all(&mut self, node: usize) -> Result<bool, String> {
        let mut sent = false;
        for peer in (0..self.options.members).filter(|peer| *peer != node) {
            while self.send_some(node, peer)? {
                sent = true;
            }
        }
        Ok(sent)
    }

    fn send_some(&mut self, node: usize, peer: usize) -> Result<bool, String> {
        let (room, connection) = (self.room(node, peer), self.connection(node, peer));
        let Some(Actor::Honest(member)) = self.actors.get_mut(node) else { return Ok(false) };
        if room.is_empty() {
            member.engine.handle_full(PeerIndex(peer as u16));
        }
        let Some(connection) = connection else { return Ok(false) };
        if !member.engine.has_outgoing(PeerIndex(peer as u16)) {
            return Ok(false);
        }
        let given = self.witness.poll(member, peer, room, self.now)?;
        let mut written = || self.wire.as_mut().is_some_and(|wire| wire.write(node, peer));
        let some = given[0].is_some() || written();
        for outgoing in given.into_iter().flatten() {
            self.check_sent(node, peer, connection, &outgoing)?;
            self.give(node, peer, outgoing);
        }
        self.effort.spend(node);
        Ok(some)
    }

    /// What a member's clock shows.
    pub(super) fn clock(&self, node: usize) -> Instant {
        match self.actors.get(node) {
            Some(Actor::Honest(member)) => member.clock(self.now),
            Some(Actor::Hostile(_) | Actor::Off) | None => self.now,
        }
    }

    /// The connection of `node` with `peer`, as it believes.
    pub(super) fn connection(&self, node: usize, peer: usize) -> Option<u64> {
        match &self.wire {
            Some(wire) => wire.connection(node, peer),
            None => self.net.side(node, peer),
        }
    }

    /// The classes that the link takes now.
    fn room(&self, node: usize, peer: usize) -> Classes {
        match (&self.wire, self.connection(node, peer)) {
            (Some(wire), _) => wire.room(node, peer),
            (None, Some(_)) => self.net.room(node, peer),
            (None, None) => Classes::NONE,
        }
    }

    fn give(&mut self, node: usize, peer: usize, outgoing: Outgoing) {
        match (&mut self.wire, self.net.side(node, peer)) {
            (Some(wire), _) => wire.send(node, peer, outgoing),
            (None, Some(connection)) => self.send(node, peer, connection, outgoing),
            (None, None) => (),
        }
    }

    fn consume(&mut self, node: usize) -> Result<bool, String> {
        let (topics, now) = (self.options.topics.len(), self.now);
        let mut consumed = false;
        while let Some(Actor::Honest(member)) = self.actors.get_mut(node)
            && member.stalled_until <= now
        {
            let Some((topic, event)) = member.poll_event(topics, now) else { break };
            consumed = true;
            self.effort.spend(node);
            let digest = self.digest.update(format!("{node} {topic:?}").as_bytes());
            match &event {
                Event::Delivered { artifact, .. } => digest.update(&artifact.id.0),
                _ => digest.update(format!("{event:?}").as_bytes()),
            };
            tracing::trace!(node, ?topic, ?event);
            if let Event::Delivered { artifact, .. } = &event {
                self.patience.delivered(node, topic, artifact.id, now);
            }
            if let Some(id) = self.oracle.hear(member, node, topic, &event, &self.bodies)? {
                let delay =
                    Duration::from_nanos(self.rng.below(self.options.habits.think.as_nanos() as u64 + 1));
                let delay = delay + self.muse(topic);
                self.after(delay, Happening::Decide { node, topic, id });
            }
            self.tire(node);
        }
        Ok(consumed)
    }

    /// A replica takes an event: after so many it does something else for a while.
    fn tire(&mut self, node: usize) {
        let (Some(scarcity), Some(Actor::Honest(member))) =
            (self.options.scarcity, self.actors.get_mut(node))
        else {
            return;
        };
        member.taken += 1;
        if member.taken >= scarcity.events {
            member.taken = 0;
            member.stalled_until = self.now + scarcity.rest;
            self.effort.arrived(node);
            self.after(scarcity.rest, Happening::Wake { node });
        }
    }

    /// How much longer a replica thinks about this one.
    fn muse(&mut self, topic: TopicId) -> Duration {
        let longest = self.options.topics[usize::from(topic.0) - 1].muse;
        match self.asides.one_in(if longest.is_zero() { 0 } else { 4 }) {
            true => Duration::from_nanos(self.asides.below(longest.as_nanos() as u64)),
            false => Duration::ZERO,
        }
    }

    /// Sees to it that the next timer happens.
    pub(super) fn arm(&mut self, node: usize) {
        let transport = self.wire.as_ref().and_then(|wire| wire.poll_timeout(node));
        let next = match self.actors.get(node) {
            Some(Actor::Honest(member)) => {
                let engine = member.engine.poll_timeout().map(|(at, _)| at);
                engine.into_iter().chain(transport).min().map(|at| member.unskewed(at))
            }
            Some(Actor::Hostile(_)) => transport,
            Some(Actor::Off) | None => None,
        };
        let Some(at) = next else { return };
        let armed = &mut self.timers[node];
        if armed.is_none_or(|armed| armed > at) {
            *armed = Some(at);
            self.at(at, Happening::Timer { node });
        }
    }

    fn timer(&mut self, node: usize) -> Result<(), String> {
        if self.timers[node].is_some_and(|at| at <= self.now) {
            self.timers[node] = None;
            if let Some(Actor::Honest(member)) = self.actors.get(node)
                && member.paused_until > self.now
            {
                let wake = member.paused_until;
                self.at(wake, Happening::Wake { node });
            }
        }
        self.turn(node)
    }
}
