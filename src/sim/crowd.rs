//! More hostile members than one, and replicas that take their time even when all faults are over.

use std::time::Duration;

use super::options::Options;
use crate::types::Rng;

impl Options {
    /// Draws as many hostile members as a subnet of this size may have, and how long replicas think about what they have.
    pub(super) fn crowd(&mut self) {
        let rng = &mut Rng::new(self.seed ^ 0x6372_6f77_6400);
        let most = self.members.saturating_sub(1) / 3;
        if most >= 2 && rng.one_in(2) {
            self.hostile = 2 + rng.below(most as u64 - 1) as usize;
        }
        for topic in &mut self.topics {
            if rng.one_in(6) {
                topic.muse = Duration::from_millis(500 + rng.below(3_000));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::Level;
    use super::*;

    #[test]
    fn mixed_runs_have_several_hostile_members_and_slow_replicas() {
        let all: Vec<Options> = (0..1_000).map(|seed| Options::mixed(seed, Level::Messages)).collect();
        assert!(all.iter().filter(|options| options.hostile >= 2).count() > 50);
        let slow = |options: &&Options| options.topics.iter().any(|topic| !topic.muse.is_zero());
        assert!(all.iter().filter(slow).count() > 100);
        assert!(all.iter().all(|options| 3 * options.hostile < options.members));
    }
}
