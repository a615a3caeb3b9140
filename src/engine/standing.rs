//! What peers' faults lead to: those in poor standing are asked last, and what they alone name waits for the rest. Nothing
//! else: no connection ends for it, for then a hostile member could provoke faults to part two honest ones.

use crate::proto::Fault;
use crate::types::{ArtifactId, Instant, PeerIndex};

use super::Engine;

impl Engine {
    /// A peer did wrong.
    pub(super) fn blame(&mut self, peer: PeerIndex, fault: Fault, now: Instant) {
        self.score.handle_fault(peer, fault, now);
        if let Some(heals_at) = self.score.heals_at(peer, now) {
            self.poor.insert(peer, heals_at);
            self.fetch.handle_standing(peer, true);
        }
    }

    /// Peers that did no wrong for long enough are in good standing again.
    pub(super) fn heal(&mut self, now: Instant) {
        let due: Vec<PeerIndex> =
            self.poor.iter().filter(|(_, heals_at)| **heals_at <= now).map(|(peer, _)| *peer).collect();
        for peer in due {
            match self.score.heals_at(peer, now) {
                Some(later) => drop(self.poor.insert(peer, later)),
                None => {
                    self.poor.remove(&peer);
                    self.fetch.handle_standing(peer, false);
                }
            }
        }
    }

    /// When the next of them is due.
    pub(super) fn next_healing(&self) -> Option<Instant> {
        self.poor.values().min().copied()
    }

    /// The next starved artifact to fetch: of the first in turn, one that a peer in good standing names, if there is any. What is
    /// smaller may overtake for a while.
    pub(super) fn next_fed(&mut self, index: usize, now: Instant) -> Option<ArtifactId> {
        let topic = self.topics.get_mut(index)?;
        topic.step_back(now);
        let good = |id: &ArtifactId| topic.view.advertisers(id).any(|peer| !self.poor.contains_key(&peer));
        let (mut ids, poor): (Vec<_>, Vec<_>) = topic.first_starved().partition(good);
        ids.extend(poor);
        let first = *ids.first()?;
        if topic.fits(&first) {
            return Some(first);
        }
        let other = ids.into_iter().find(|id| topic.fits(id));
        topic.overtaker(first, other, now)
    }
}
