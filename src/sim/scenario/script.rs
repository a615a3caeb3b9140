//! What plays are written in: one step each.

use std::time::Duration;

use bytes::Bytes;

use super::PUSHED;
use crate::metrics::EngineCounters;
use crate::sim::member::{Member, topic_id};
use crate::sim::world::{Actor, Happening, World};
use crate::types::ArtifactId;

pub(super) fn millis(number: u64) -> Duration {
    Duration::from_millis(number)
}

pub(super) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
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

    pub(super) fn make_many(&mut self, node: usize, count: usize) -> Result<Vec<ArtifactId>, String> {
        (0..count).map(|_| self.make(node, 0)).collect()
    }

    pub(super) fn drop_one(&mut self, node: usize, id: ArtifactId) -> Result<(), String> {
        self.with_member(node, |member, now, fx| member.abort(topic_id(0), id, now, fx))
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
