//! How fast a peer answers, and how often in vain.

use std::time::Duration;

use super::Outcome;

/// Smoothed time from request to first byte and its deviation, as RFC 6298 §2 smooths round trips; and recent
/// failures.
#[derive(Debug, Default)]
pub(super) struct Latency {
    smoothed: Option<(Duration, Duration)>,
    /// Doubles the rank; each success halves it.
    failures: u32,
}

impl Latency {
    /// The rank of a peer that has failed and never answered.
    const UNKNOWN: Duration = Duration::from_millis(1);
    const MAX_FAILURES: u32 = 16;

    pub(super) fn observe(&mut self, sample: Duration) {
        self.smoothed = Some(match self.smoothed {
            None => (sample, sample / 2),
            Some((mean, deviation)) => ((mean * 7 + sample) / 8, (deviation * 3 + mean.abs_diff(sample)) / 4),
        });
    }

    /// An answer did not come for `waited`: it takes at least that long.
    pub(super) fn observe_silence(&mut self, waited: Duration) {
        self.observe(waited);
        self.fail(1);
    }

    pub(super) fn judge(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Found => self.failures /= 2,
            Outcome::Busy => (),
            Outcome::NotFound | Outcome::Broken => self.fail(1),
            Outcome::WrongBytes => self.fail(Self::MAX_FAILURES),
        }
    }

    /// Smoothed latency and four deviations, once measured.
    pub(super) fn estimate(&self) -> Option<Duration> {
        self.smoothed.map(|(mean, deviation)| mean + deviation * 4)
    }

    /// Lower is better; a peer that was never measured comes first, to be measured.
    pub(super) fn rank(&self) -> u64 {
        let estimate = match (self.estimate(), self.failures) {
            (None, 0) => return 0,
            (estimate, _) => estimate.unwrap_or(Self::UNKNOWN),
        };
        let nanos = u64::try_from(estimate.as_nanos()).unwrap_or(u64::MAX);
        nanos.saturating_mul(1 << self.failures)
    }

    fn fail(&mut self, weight: u32) {
        self.failures = (self.failures + weight).min(Self::MAX_FAILURES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_steady_peer_is_trusted_to_stay_steady() {
        let mut latency = Latency::default();
        (0..50).for_each(|_| latency.observe(MS * 10));
        assert!(latency.estimate().unwrap() < MS * 11);
        latency.observe(MS * 50);
        assert!(latency.estimate().unwrap() > MS * 50);
    }

    #[test]
    fn failures_cost_rank_and_successes_win_it_back() {
        let mut latency = Latency::default();
        latency.observe(MS);
        let good = latency.rank();
        (0..3).for_each(|_| latency.judge(Outcome::NotFound));
        assert_eq!(latency.rank(), good * 8);
        (0..2).for_each(|_| latency.judge(Outcome::Found));
        assert_eq!(latency.rank(), good);
    }

    #[test]
    fn an_unmeasured_peer_comes_first_until_it_fails() {
        let mut latency = Latency::default();
        assert_eq!(latency.rank(), 0);
        latency.judge(Outcome::Broken);
        assert!(latency.rank() > 0);
    }
}
