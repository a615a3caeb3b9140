//! How long a wanted body takes from the first honest member that names it until it is delivered, whatever the hostile ones do.

use std::collections::BTreeMap;
use std::time::Duration;

use super::options::Options;
use super::world::{Actor, World};
use crate::engine::ArtifactState;
use crate::types::{ArtifactId, Instant, PeerIndex, TopicId};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// The longest that it may take; none where nobody watches.
    bound: Option<Duration>,
    /// Since when an honest member names what is wanted.
    waits: BTreeMap<(usize, TopicId, ArtifactId), Instant>,
    longest: Duration,
    ended: u64,
}

impl Patience {
    /// The longest silence before another is asked.
    const HEDGE: Duration = Duration::from_secs(2);

    /// Fetches must end in time from now on.
    pub(super) fn watch(&mut self, options: &Options) {
        self.bound = Some(Self::bound(options));
    }

    /// Each hostile member may be silent for the longest hedge, and so may who is honest and slow; besides, a whole table must
    /// pass the link, and a few words with it.
    fn bound(options: &Options) -> Duration {
        let table: u64 = options.topics.iter().map(|topic| u64::from(topic.slots) * topic.largest).sum();
        let transfer = Duration::from_secs_f64(table as f64 / options.links.rate as f64);
        let trip = 2 * (options.links.latency + options.links.jitter);
        Self::HEDGE * (options.hostile as u32 + 1) + 2 * transfer + 20 * trip
    }

    /// Something is delivered.
    pub(super) fn delivered(&mut self, node: usize, topic: TopicId, id: ArtifactId, now: Instant) {
        if let Some(since) = self.waits.remove(&(node, topic, id)) {
            self.longest = self.longest.max(now.saturating_since(since));
            self.ended += 1;
        }
    }

    /// How many bodies were waited for, and the longest.
    pub(super) fn longest(&self) -> (u64, Duration) {
        (self.ended, self.longest)
    }
}

impl World {
    fn is_wanted(&self, node: usize, topic: TopicId, id: &ArtifactId) -> bool {
        let Some(Actor::Honest(member)) = self.actors.get(node) else { return false };
        let honest = self.options.members - self.options.hostile;
        let named = |peer: usize| member.engine.is_named_by(topic, id, PeerIndex(peer as u16));
        member.engine.state_of(topic, id) == Some(ArtifactState::Wanted) && (0..honest).any(named)
    }

    /// `from` is about to name something to `to`.
    pub(super) fn named(&mut self, from: usize, to: usize, topic: TopicId, id: ArtifactId) {
        if self.patience.bound.is_none() || !matches!(self.actors.get(from), Some(Actor::Honest(_))) {
            return;
        }
        match self.is_wanted(to, topic, &id) {
            true => drop(self.patience.waits.entry((to, topic, id)).or_insert(self.now)),
            false => drop(self.patience.waits.insert((to, topic, id), self.now)),
        }
    }

    /// After turns of a member: nothing that it wants waits for too long.
    pub(super) fn check_patience(&mut self, node: usize) -> Result<(), String> {
        let Some(bound) = self.patience.bound else { return Ok(()) };
        let first = (node, TopicId(0), ArtifactId([0; 32]));
        let late = self.patience.waits.range(first..).take_while(|((of, ..), _)| *of == node);
        let late = late.filter(|(_, since)| self.now.saturating_since(**since) > bound);
        for (_, topic, id) in late.map(|(key, _)| *key).collect::<Vec<_>>() {
            if self.is_wanted(node, topic, &id) {
                return Err(format!("L5: member {node} waits for {id} for more than {bound:?}"));
            }
            self.patience.waits.remove(&(node, topic, id));
        }
        Ok(())
    }
}
