//! What plays are written in: one step each.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use super::PUSHED;
use crate::engine::{ArtifactState, Census};
use crate::metrics::EngineCounters;
use crate::sim::hostile::Hostile;
use crate::sim::member::{Member, topic_id};
use crate::sim::net::Cargo;
use crate::sim::world::{Actor, Happening, World};
use crate::types::{ArtifactId, Attribute, Class, HashKind, PeerIndex, Slot, Version};
use crate::wire::{BatchBuilder, Change, Frame, Outgoing, Update};

pub(super) fn millis(number: u64) -> Duration {
    Duration::from_millis(number)
}

pub(super) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// All orders of so many things.
pub(super) fn orders(things: usize) -> Vec<Vec<usize>> {
    (0..things).fold(vec![Vec::new()], |orders, thing| {
        let insert = |order: Vec<usize>| {
            (0..=order.len()).map(move |at| [&order[..at], &[thing], &order[at..]].concat())
        };
        orders.into_iter().flat_map(insert).collect()
    })
}

/// A statement about a slot of the first topic.
pub(super) fn update(slot: u32, version: u64, change: Change) -> Frame {
    Frame::Update(Update { topic: topic_id(0), slot: Slot(slot), version: Version(version), change })
}

/// The artifact with its body.
pub(super) fn pushed(body: &Bytes) -> Change {
    Change::Push { attribute: Attribute::EMPTY, body: body.clone() }
}

/// The artifact by name.
pub(super) fn adverted(body: &Bytes) -> Change {
    let (id, size) = (HashKind::Blake3.id(body), body.len() as u32);
    Change::Advert { id, size, relayed: false, attribute: Attribute::EMPTY }
}

impl World {
    pub(super) fn pass(&mut self, span: Duration) -> Result<(), String> {
        self.run_until(self.now + span)
    }

    /// A member makes something new, pushed or adverted.
    pub(super) fn make(&mut self, node: usize, topic: usize) -> Result<ArtifactId, String> {
        let size = if self.rng.one_in(2) { PUSHED } else { PUSHED + 1 + self.rng.below(500) };
        let mut body = vec![0; size as usize];
        self.rng.fill(&mut body);
        let made = self.broadcast(node, topic, Bytes::from(body))?;
        made.ok_or_else(|| format!("member {node} has no room to make something"))
    }

    /// A member makes something of so many bytes.
    pub(super) fn make_sized(&mut self, node: usize, size: usize) -> Result<ArtifactId, String> {
        let mut body = vec![0; size];
        self.rng.fill(&mut body);
        let made = self.broadcast(node, 0, Bytes::from(body))?;
        made.ok_or_else(|| format!("member {node} has no room to make something"))
    }

    pub(super) fn make_many(&mut self, node: usize, count: usize) -> Result<Vec<ArtifactId>, String> {
        (0..count).map(|_| self.make(node, 0)).collect()
    }

    pub(super) fn drop_one(&mut self, node: usize, id: ArtifactId) -> Result<(), String> {
        self.with_member(node, |member, now, fx| member.abort(topic_id(0), id, now, fx))
    }

    /// Runs until something is so, which must be within `most`; how long it took.
    pub(super) fn until(
        &mut self,
        most: Duration,
        what: &str,
        holds: impl Fn(&World) -> bool,
    ) -> Result<Duration, String> {
        let start = self.now;
        while !holds(self) {
            let next = self.next_time().filter(|next| *next <= start + most);
            let next = next.ok_or_else(|| format!("P1: not within {most:?}: {what}"))?;
            self.run_until(next)?;
        }
        Ok(self.now.saturating_since(start))
    }

    /// From now on everybody acts by itself; then peace, and the end.
    pub(super) fn go_wild(&mut self, abort_percent: u64, relay_percent: u64) -> Result<(), String> {
        super::busy(&mut self.options, abort_percent, relay_percent);
        for node in 0..self.options.members - self.options.hostile {
            self.at(self.now, Happening::Act { node });
        }
        self.pass(self.options.chaos)?;
        self.make_peace()?;
        self.finish()
    }

    /// What goes from one to another is held from now on, and neither notices.
    pub(super) fn hold(&mut self, from: usize, to: usize) {
        self.net.cut(from, to);
    }

    /// What is held, but for single bytes of answers.
    pub(super) fn held(&self, from: usize, to: usize) -> Vec<&Cargo> {
        let held = self.net.held(from, to).iter().map(|(_, cargo)| cargo);
        held.filter(|cargo| !matches!(cargo, Cargo::Drip(_))).collect()
    }

    /// What was held arrives now, in this order.
    pub(super) fn bring_held(
        &mut self,
        from: usize,
        to: usize,
        order: impl IntoIterator<Item = usize>,
        mut after: impl FnMut(&World, usize) -> Result<(), String>,
    ) -> Result<(), String> {
        let held = self.net.release(from, to);
        let held: Vec<_> = held.into_iter().filter(|(_, cargo)| !matches!(cargo, Cargo::Drip(_))).collect();
        for place in order {
            let (connection, cargo) = held.get(place).cloned().ok_or("less is held than was said")?;
            self.arrive(from, to, connection, cargo)?;
            after(self, place)?;
        }
        Ok(())
    }

    /// The hostile member says something that arrives now, or as soon as datagrams travel.
    pub(super) fn say(&mut self, from: usize, to: usize, frames: &[Frame]) -> Result<(), String> {
        let connection = self.connection(from, to).ok_or("not connected")?;
        let mut batch = BatchBuilder::new(256);
        frames.iter().for_each(|frame| batch.push(frame));
        let bytes = batch.finish();
        if let Some(wire) = &mut self.wire {
            wire.say(from, to, Outgoing::Batch { class: Class::Critical, bytes });
            self.turn(from)?;
            return self.pass(self.options.links.latency + millis(10));
        }
        self.arrive(from, to, connection, Cargo::Batch(bytes))
    }

    /// Requests of an honest member to another that are not answered.
    pub(super) fn asks(&self, node: usize, peer: usize) -> u32 {
        let peer = PeerIndex(peer as u16);
        self.member(node).map_or(0, |m| m.engine.asked_of(peer).0.iter().map(|asked| asked.requests).sum())
    }

    pub(super) fn puppet(&mut self, node: usize) -> Result<&mut Hostile, String> {
        match self.actors.get_mut(node) {
            Some(Actor::Hostile(hostile)) => Ok(hostile),
            _ => Err(format!("member {node} has no strings")),
        }
    }

    /// What `node` believes that `peer` names.
    pub(super) fn view(&self, node: usize, peer: usize) -> BTreeSet<ArtifactId> {
        let peer = PeerIndex(peer as u16);
        self.member(node).map(|m| m.engine.named_by(topic_id(0), peer)).unwrap_or_default()
    }

    pub(super) fn state(&self, node: usize, id: &ArtifactId) -> Option<ArtifactState> {
        self.member(node)?.engine.state_of(topic_id(0), id)
    }

    pub(super) fn state_in(&self, node: usize, topic: usize, id: &ArtifactId) -> Option<ArtifactState> {
        self.member(node)?.engine.state_of(topic_id(topic), id)
    }

    pub(super) fn census(&self, node: usize) -> Census {
        self.member(node).map(|m| m.engine.census()).unwrap_or_default()
    }

    /// Of one member.
    pub(super) fn count(&self, node: usize, pick: fn(&EngineCounters) -> u64) -> u64 {
        self.member(node).map_or(0, |m| pick(m.engine.counters()))
    }

    pub(super) fn member(&self, node: usize) -> Option<&Member> {
        match self.actors.get(node) {
            Some(Actor::Honest(member)) => Some(member),
            _ => None,
        }
    }

    pub(super) fn had(&self, node: usize, ids: &[ArtifactId]) -> usize {
        let had = |id: &&ArtifactId| self.member(node).is_some_and(|m| m.had.contains(&(topic_id(0), **id)));
        ids.iter().filter(had).count()
    }

    pub(super) fn counter(&self, pick: fn(&EngineCounters) -> u64) -> u64 {
        (0..self.options.members)
            .filter_map(|node| self.member(node))
            .map(|m| pick(m.engine.counters()))
            .sum()
    }

    pub(super) fn separate(&mut self, a: usize, b: usize) {
        self.cut(a, b, true);
    }

    pub(super) fn reunite(&mut self, a: usize, b: usize) {
        let pair = (a.min(b), a.max(b));
        self.at(self.now, Happening::Heal { pair });
    }
}
