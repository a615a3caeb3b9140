//! What mixed runs got later than the rest. It is drawn apart, so that it shifts nothing of what a seed drew before.

use std::time::Duration;

use super::options::Options;
use crate::types::Rng;

/// What a member may ask of one peer at a time, of each class.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Requests.
    pub requests: u32,
    /// Bytes of the bodies that are asked for. A larger one is asked for alone.
    pub bytes: u64,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { requests: 64, bytes: 1 << 20 }
    }
}

impl Budget {
    /// Bodies of `size` bytes that may be asked for at a time.
    fn bodies(self, size: u64) -> u64 {
        (self.bytes / size.max(1)).clamp(1, self.requests.into())
    }
}

impl Options {
    /// Draws clocks that leap, filters that panic, and small budgets.
    pub(super) fn harden(&mut self) {
        let rng = &mut Rng::new(self.seed ^ 0x6861_7264_7368);
        let faulty = !self.faults.longest.is_zero();
        if faulty && rng.one_in(3) {
            self.faults.leap_every = Duration::from_millis(200 + rng.below(2_000));
        }
        for topic in &mut self.topics {
            topic.panic_percent = if rng.one_in(4) { 1 + rng.below(40) } else { 0 };
        }
        if rng.one_in(3) {
            let largest = self.topics.iter().map(|topic| topic.largest).max().unwrap_or(1);
            self.budget = Budget { requests: 1 + rng.below(4) as u32, bytes: 1 + rng.below(3 * largest) };
        }
    }

    /// How long the bodies of one peer take at least if each turn takes so long, and the budget allows but few at a time.
    pub(super) fn queueing(&self, turn: Duration) -> Duration {
        let turns =
            self.topics.iter().map(|topic| u64::from(topic.slots) / self.budget.bodies(topic.largest));
        turn * turns.sum::<u64>() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::Level;
    use super::*;

    #[test]
    fn mixed_runs_draw_every_hardship() {
        let all: Vec<Options> = (0..1_000).map(|seed| Options::mixed(seed, Level::Messages)).collect();
        let count = |has: fn(&Options) -> bool| all.iter().filter(|options| has(options)).count();
        assert!(count(|options| !options.faults.leap_every.is_zero()) > 100);
        assert!(count(|options| options.topics.iter().any(|topic| topic.panic_percent > 0)) > 100);
        assert!(count(|options| options.budget.requests < Budget::default().requests) > 100);
    }
}
