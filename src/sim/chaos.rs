//! What members do, and what goes wrong.

use std::time::Duration;

use bytes::Bytes;

use super::member::{Known, topic_id};
use super::net::Cargo;
use super::world::{Actor, Fault, Happening, World};
use crate::engine::Effects;
use crate::types::{ArtifactId, HashKind, Instant, PeerIndex, TopicId, Verified};
use crate::wire::{CloseCode, Outgoing};

/// Requests that one member may have open to another, as streams.
pub(super) const OPEN_REQUESTS: usize = 256;

impl World {
    /// Draws when each kind of fault happens first.
    pub(super) fn plan_faults(&mut self) {
        for kind in [Fault::Cut, Fault::Crash, Fault::Pause, Fault::Close, Fault::Leap, Fault::Narrow] {
            self.plan(kind);
        }
    }

    fn plan(&mut self, kind: Fault) {
        let faults = &self.options.faults;
        let every = match kind {
            Fault::Cut => faults.cut_every,
            Fault::Crash => faults.crash_every,
            Fault::Pause => faults.pause_every,
            Fault::Close => faults.close_every,
            Fault::Leap => faults.leap_every,
            Fault::Narrow if self.wire.is_some() => self.options.datagrams.narrow_every,
            Fault::Narrow => Duration::ZERO,
        };
        if !every.is_zero() {
            let delay = self.around(every);
            self.after(delay, Happening::Fault { kind });
        }
    }

    /// A fault happens to somebody, for a while.
    pub(super) fn fault(&mut self, kind: Fault) -> Result<(), String> {
        if !self.chaos {
            return Ok(());
        }
        self.plan(kind);
        let honest = (self.options.members - self.options.hostile) as u64;
        let node = self.rng.below(honest) as usize;
        let others = self.options.members as u64 - 1;
        let peer = (node + 1 + self.rng.below(others) as usize) % self.options.members;
        let length = self.around(self.options.faults.longest / 2);
        match kind {
            Fault::Cut => {
                let both = self.rng.one_in(2);
                self.cut(node, peer, both);
                self.after(length, Happening::Heal { pair: (node.min(peer), node.max(peer)) });
                Ok(())
            }
            Fault::Crash => {
                self.crash(node);
                self.after(length, Happening::Start { node });
                Ok(())
            }
            Fault::Pause => {
                self.pause(node, length);
                Ok(())
            }
            Fault::Close => self.close(node, peer, CloseCode::Shutdown),
            Fault::Narrow => {
                if let Some(wire) = &mut self.wire {
                    wire.paths.narrow(node, peer);
                }
                self.after(length, Happening::Heal { pair: (node.min(peer), node.max(peer)) });
                Ok(())
            }
            Fault::Leap => self.leap(node, length),
        }
    }

    /// Nothing passes from `a` to `b`, nor back if `both`, until the pair is healed.
    pub(super) fn cut(&mut self, a: usize, b: usize, both: bool) {
        if let Some(wire) = &mut self.wire {
            wire.paths.cut(a, b);
            if both {
                wire.paths.cut(b, a);
            }
            return;
        }
        self.net.cut(a, b);
        if both {
            self.net.cut(b, a);
        }
        for (node, peer) in [(a, b), (b, a)] {
            self.expect_silence(node, peer);
        }
    }

    fn expect_silence(&mut self, node: usize, peer: usize) {
        if let Some(connection) = self.net.side(node, peer) {
            let wait = self.options.links.idle_timeout + Duration::from_micros(self.rng.below(50_000));
            self.after(wait, Happening::Silence { node, peer, connection });
        }
    }

    /// A member's memory is gone; its peers learn of it by silence, or when it is back.
    pub(super) fn crash(&mut self, node: usize) {
        if matches!(self.actors[node], Actor::Off) {
            return;
        }
        self.actors[node] = Actor::Off;
        if let Some(wire) = &mut self.wire {
            return wire.stop(node);
        }
        for peer in (0..self.options.members).filter(|peer| *peer != node) {
            if let Some(connection) = self.net.side(node, peer) {
                self.flows.end_all(connection);
            }
            self.net.detach(node, peer);
            self.expect_silence(peer, node);
        }
    }

    /// A member's clock is ahead of the others' from now on: what waited for the time in between is due.
    fn leap(&mut self, node: usize, length: Duration) -> Result<(), String> {
        if let Some(Actor::Honest(member)) = self.actors.get_mut(node) {
            member.skew += length;
        }
        self.turn(node)
    }

    /// A member stands still.
    pub(super) fn pause(&mut self, node: usize, length: Duration) {
        let Some(Actor::Honest(member)) = self.actors.get_mut(node) else { return };
        member.paused_until = self.now + length;
        self.after(length, Happening::Wake { node });
        if length > self.options.links.idle_timeout && self.wire.is_none() {
            for peer in (0..self.options.members).filter(|peer| *peer != node) {
                self.expect_silence(peer, node);
            }
        }
    }

    /// Nothing came for too long, if that is still so.
    pub(super) fn silence(&mut self, node: usize, peer: usize, connection: u64) -> Result<(), String> {
        if self.net.side(node, peer) != Some(connection) {
            return Ok(());
        }
        let gone = self.net.side(peer, node) != Some(connection);
        let paused = |actor: &Actor| matches!(actor, Actor::Honest(member) if member.paused_until > self.now);
        let silent =
            self.net.is_cut(peer, node) || self.net.is_cut(node, peer) || gone || paused(&self.actors[peer]);
        if silent { self.close(node, peer, CloseCode::Shutdown) } else { Ok(()) }
    }

    /// `node` closes its connection with `peer` and says so.
    pub(super) fn close(&mut self, node: usize, peer: usize, code: CloseCode) -> Result<(), String> {
        let now = self.clock(node);
        if let Some(wire) = &mut self.wire {
            wire.disconnect(node, peer, code, now);
            return self.turn(node);
        }
        let Some(connection) = self.net.side(node, peer) else { return Ok(()) };
        let at = self.net.word(self.now);
        self.at(at, Happening::Arrive { from: node, to: peer, connection, cargo: Cargo::Close });
        self.expect_silence(peer, node);
        self.lose(node, peer)
    }

    /// `node` has no connection with `peer` any more.
    pub(super) fn lose(&mut self, node: usize, peer: usize) -> Result<(), String> {
        let Some(connection) = self.net.side(node, peer) else { return Ok(()) };
        self.net.detach(node, peer);
        self.flows.end_all(connection);
        let delay = Duration::from_millis(1 + self.rng.below(100));
        self.after(delay, Happening::Dial { pair: (node.min(peer), node.max(peer)) });
        self.with_member(node, |member, now, fx| {
            member.engine.handle_disconnected(PeerIndex(peer as u16), now, fx);
        })
    }

    /// The pair's dialler tries to connect; it tries again while it must.
    pub(super) fn dial(&mut self, pair: (usize, usize)) -> Result<(), String> {
        let (a, b) = pair;
        if let (Actor::Off, _) | (_, Actor::Off) = (&self.actors[a], &self.actors[b]) {
            // Whoever starts dials.
            return Ok(());
        }
        let sides = (self.net.side(a, b), self.net.side(b, a));
        if sides.0.is_some() && sides.0 == sides.1
            || self.dialling.get(&pair).is_some_and(|until| *until > self.now)
        {
            return Ok(());
        }
        let paused = |actor: &Actor| matches!(actor, Actor::Honest(member) if member.paused_until > self.now);
        if self.net.is_cut(a, b)
            || self.net.is_cut(b, a)
            || paused(&self.actors[a])
            || paused(&self.actors[b])
        {
            let delay = Duration::from_millis(20 + self.rng.below(200));
            self.after(delay, Happening::Dial { pair });
            return Ok(());
        }
        let connection = self.net.new_connection();
        let (there, back) = (self.net.word(self.now), self.net.word(self.now));
        let first = there.max(back);
        let second = self.net.word(first);
        self.dialling.insert(pair, second);
        self.at(first, Happening::Established { node: a, peer: b, connection });
        self.at(second, Happening::Established { node: b, peer: a, connection });
        // Should one end be lost meanwhile.
        let delay = self.options.links.idle_timeout;
        self.after(delay, Happening::Dial { pair });
        Ok(())
    }

    pub(super) fn established(&mut self, node: usize, peer: usize, connection: u64) -> Result<(), String> {
        let newer = self.net.side(node, peer).is_some_and(|other| other >= connection);
        if newer || matches!(self.actors[node], Actor::Off) {
            return Ok(());
        }
        if let Some(old) = self.net.side(node, peer) {
            self.flows.end_all(old);
        }
        for cargo in self.net.attach(node, peer, connection) {
            self.at(self.now, Happening::Arrive { from: peer, to: node, connection, cargo });
        }
        if let Some(Actor::Hostile(hostile)) = self.actors.get_mut(node) {
            let greeting = hostile.greet();
            self.send(node, peer, connection, greeting);
            return Ok(());
        }
        if matches!(self.actors[peer], Actor::Off) {
            self.expect_silence(node, peer);
        }
        self.effort.connected(node);
        self.with_member(node, |member, now, fx| member.connect(peer, now, fx))
    }

    /// A hostile member says something to somebody.
    pub(super) fn lie(&mut self, node: usize) -> Result<(), String> {
        if !self.lies {
            return Ok(());
        }
        let delay = self.around(self.options.lies.every);
        self.after(delay, Happening::Lie { node });
        let peer = self.rng.below(self.options.members as u64) as usize;
        let give_up = self.options.lies.give_up_percent;
        if give_up > 0 && peer != node && self.asides.below(100) < give_up {
            return self.pester(node, peer);
        }
        if let (Some(wire), Actor::Hostile(hostile)) = (&mut self.wire, &mut self.actors[node]) {
            wire.say(node, peer, hostile.lie());
            return self.turn(node);
        }
        let hang = self.options.lies.hang_percent;
        if hang > 0 && self.rng.below(100) < hang {
            self.hang(node, peer);
            return Ok(());
        }
        let open = self.flows.requests(node, peer);
        let (Some(connection), Actor::Hostile(hostile)) = (self.net.side(node, peer), &mut self.actors[node])
        else {
            return Ok(());
        };
        match hostile.lie() {
            Outgoing::Fetch { .. } if open >= OPEN_REQUESTS => (),
            lie => self.send(node, peer, connection, lie),
        }
        Ok(())
    }

    /// A replica does something.
    pub(super) fn act(&mut self, node: usize) -> Result<(), String> {
        if !self.chaos {
            return Ok(());
        }
        let delay = self.around(self.options.habits.act_every);
        self.after(delay, Happening::Act { node });
        let habits = self.options.habits.clone();
        if self.rng.one_in(habits.stall_one_in) {
            // Now and then it is away for as long as the chaos lasts.
            let most = if self.rng.one_in(8) { 10_000 } else { 1_000 };
            let length = Duration::from_millis(self.rng.below(most));
            if let Some(Actor::Honest(member)) = self.actors.get_mut(node) {
                member.stalled_until = self.now + length;
                self.after(length, Happening::Wake { node });
            }
        }
        match self.rng.below(100) {
            draw if draw < habits.abort_percent => self.abort_one(node),
            draw if draw < habits.abort_percent + 5 => {
                self.generation = (self.generation + 1).min(3);
                self.change_filter(node, self.generation)
            }
            _ => self.broadcast_one(node),
        }
    }

    fn abort_one(&mut self, node: usize) -> Result<(), String> {
        let Some(Actor::Honest(member)) = self.actors.get(node) else { return Ok(()) };
        let at = self.rng.below(member.own.len().max(1) as u64) as usize;
        let Some((topic, id)) = member.own.iter().nth(at).copied() else { return Ok(()) };
        self.abort(node, topic, id)
    }

    fn abort(&mut self, node: usize, topic: TopicId, id: ArtifactId) -> Result<(), String> {
        self.with_member(node, |member, now, fx| member.abort(topic, id, now, fx))?;
        self.check_aborted(node, topic, &id)
    }

    fn broadcast_one(&mut self, node: usize) -> Result<(), String> {
        let again = self.options.habits.again_percent;
        if again > 0
            && self.rng.below(100) < again
            && let Some(Actor::Honest(member)) = self.actors.get_mut(node)
            && let Some((topic, id)) = member.aborted.take()
            && let Some(body) = self.bodies.get(&id).cloned()
        {
            return self.broadcast(node, usize::from(topic.0) - 1, body).map(drop);
        }
        let number = self.rng.below(self.options.topics.len() as u64) as usize;
        let body = if self.rng.one_in(self.options.habits.same_one_in) {
            Bytes::copy_from_slice(&self.rng.below(4).to_le_bytes())
        } else {
            let mut body = vec![0; 8 + self.rng.below(self.options.topics[number].largest - 7) as usize];
            self.rng.fill(&mut body);
            Bytes::from(body)
        };
        self.broadcast(node, number, body).map(drop)
    }

    /// A replica broadcasts; the id, unless its table is full.
    pub(super) fn broadcast(
        &mut self,
        node: usize,
        topic: usize,
        body: Bytes,
    ) -> Result<Option<ArtifactId>, String> {
        let body = Verified::hash(HashKind::Blake3, body);
        let (id, limits) = (body.id(), self.options.topics[topic].clone());
        self.bodies.insert(id, body.bytes().clone());
        let mut taken = false;
        self.with_member(node, |member, now, fx| {
            taken = member.broadcast(topic_id(topic), body, &limits, now, fx);
        })?;
        Ok(taken.then_some(id))
    }

    /// A replica has thought about what it was told.
    pub(super) fn decide(&mut self, node: usize, topic: TopicId, id: ArtifactId) -> Result<(), String> {
        let Some(Actor::Honest(member)) = self.actors.get(node) else { return Ok(()) };
        let draw = self.rng.below(100);
        let habits = self.options.habits.clone();
        let limits = self.options.topics[usize::from(topic.0) - 1].clone();
        match member.known.get(&(topic, id)) {
            Some(Known::Held) if draw < habits.relay_percent => {
                self.with_member(node, |member, now, fx| member.validate(topic, id, &limits, now, fx))
            }
            Some(Known::Held) if self.chaos && draw < habits.relay_percent + habits.keep_percent => {
                // It comes back to it.
                self.after(Duration::from_millis(500), Happening::Decide { node, topic, id });
                Ok(())
            }
            Some(Known::Held) => self.with_member(node, |member, now, fx| member.release(topic, id, now, fx)),
            // Told that it is withdrawn.
            Some(Known::Relayed) => self.abort(node, topic, id),
            Some(Known::Released | Known::Leaving) | None => Ok(()),
        }
    }
}

impl super::member::Member {
    /// Aborts and releases everything.
    pub(super) fn let_go(&mut self, now: Instant, fx: &mut Effects) {
        // Nothing is judged by it any more.
        self.current.clear();
        for (topic, id) in self.own.clone() {
            self.abort(topic, id, now, fx);
        }
        for ((topic, id), known) in self.known.clone() {
            match known {
                Known::Held => self.release(topic, id, now, fx),
                Known::Relayed => self.abort(topic, id, now, fx),
                Known::Released | Known::Leaving => (),
            }
        }
    }

    /// What was released and is not named any more may come back as something new.
    pub(super) fn forget_unnamed(&mut self) {
        let engine = &self.engine;
        if std::mem::replace(&mut self.forgotten, engine.forgotten()) == engine.forgotten() {
            return;
        }
        self.known
            .retain(|(topic, id), known| *known != Known::Released || engine.state_of(*topic, id).is_some());
        let ended = &self.ended;
        self.current.retain(|one| ended.contains(one) || engine.state_of(one.0, &one.1).is_some());
    }
}
