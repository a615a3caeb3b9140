//! What a topic's filter costs, and whether it is too slow for a lane's thread.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::config::TopicConfig;

/// What has been counted of the filters of one topic, since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct FilterStats {
    /// Calls that have returned or panicked.
    pub calls: u64,
    /// How long they took in all.
    pub total: Duration,
    /// How long the longest took; one on a thread of its own counts before it returns.
    pub longest: Duration,
    /// Calls that took longer than [`TopicConfig::FILTER_BUDGET`].
    pub overruns: u64,
    /// Calls that panicked, each a `Later`.
    pub panics: u64,
    /// Whether the filter is asked on a thread of its own now: because the topic is set so, or because it was slow.
    pub on_own_thread: bool,
}

/// One thread counts here, others read.
#[derive(Debug, Default)]
pub(super) struct Counts {
    calls: AtomicU64,
    nanos: AtomicU64,
    longest: AtomicU64,
    overruns: AtomicU64,
    panics: AtomicU64,
    /// Grows with each overrun, and falls with each call that is none.
    slowness: AtomicU64,
    /// When the call that goes on now began, in nanoseconds from [`epoch`]; 0 when there is none.
    since: AtomicU64,
}

impl Counts {
    /// What an overrun adds to the slowness: as much as so many calls in time take away.
    const OVERRUN: u64 = 1000;
    /// An overrun by this factor counts as this many others.
    const BLOCKED: (u32, u64) = (100, 3);

    /// A call is over. Whether there were three overruns within a thousand calls.
    pub(super) fn count(&self, took: Duration, panicked: bool) -> bool {
        let nanos = took.as_nanos() as u64;
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
        if nanos > self.longest.load(Ordering::Relaxed) {
            self.longest.fetch_max(nanos, Ordering::Relaxed);
        }
        if panicked {
            self.panics.fetch_add(1, Ordering::Relaxed);
        }
        let slowness = self.slowness.load(Ordering::Relaxed);
        if took <= TopicConfig::FILTER_BUDGET {
            if slowness > 0 {
                self.slowness.store(slowness - 1, Ordering::Relaxed);
            }
            return false;
        }
        self.overruns.fetch_add(1, Ordering::Relaxed);
        let (factor, weight) = Self::BLOCKED;
        let weight = if took >= TopicConfig::FILTER_BUDGET * factor { weight } else { 1 };
        let slowness = slowness + weight * Self::OVERRUN;
        self.slowness.store(slowness, Ordering::Relaxed);
        slowness > 2 * Self::OVERRUN
    }

    /// Another filter begins without the slowness of the one before.
    pub(super) fn forgive(&self) {
        self.slowness.store(0, Ordering::Relaxed);
    }

    /// Lets readers see a call that does not end.
    pub(super) fn while_in_call<T>(&self, start: Instant, call: impl FnOnce() -> T) -> T {
        let since = (start.saturating_duration_since(epoch()).as_nanos() as u64).max(1);
        self.since.store(since, Ordering::Relaxed);
        let done = call();
        // Unless the thread of a later filter has begun a call meanwhile.
        let _ = self.since.compare_exchange(since, 0, Ordering::Relaxed, Ordering::Relaxed);
        done
    }

    pub(super) fn add_to(&self, stats: &mut FilterStats) {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let since = read(&self.since);
        let in_call = match since {
            0 => Duration::ZERO,
            _ => epoch().elapsed().saturating_sub(Duration::from_nanos(since)),
        };
        stats.calls += read(&self.calls);
        stats.total += Duration::from_nanos(read(&self.nanos));
        stats.longest = stats.longest.max(Duration::from_nanos(read(&self.longest))).max(in_call);
        stats.overruns += read(&self.overruns);
        stats.panics += read(&self.panics);
    }
}

fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(|| Instant::now() - Duration::from_nanos(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Duration = Duration::from_micros(1);
    const SLOW: Duration = Duration::from_millis(2);

    #[test]
    fn three_overruns_within_a_thousand_calls_are_too_many() {
        let counts = Counts::default();
        assert!(!counts.count(SLOW, false));
        (0..400).for_each(|_| assert!(!counts.count(FAST, false)));
        assert!(!counts.count(SLOW, false));
        (0..400).for_each(|_| assert!(!counts.count(FAST, false)));
        assert!(counts.count(SLOW, false));
    }

    #[test]
    fn an_overrun_now_and_then_is_forgiven() {
        let counts = Counts::default();
        for _ in 0..20 {
            assert!(!counts.count(SLOW, false));
            (0..1000).for_each(|_| assert!(!counts.count(FAST, false)));
        }
        let mut stats = FilterStats::default();
        counts.add_to(&mut stats);
        assert_eq!((stats.overruns, stats.calls, stats.longest), (20, 20 * 1001, SLOW));
    }

    #[test]
    fn one_call_that_blocks_for_long_is_too_many() {
        assert!(Counts::default().count(TopicConfig::FILTER_BUDGET * 100, false));
    }

    #[test]
    fn a_call_that_goes_on_is_seen() {
        let (counts, mut stats) = (Counts::default(), FilterStats::default());
        counts.while_in_call(Instant::now(), || {
            std::thread::sleep(SLOW);
            counts.add_to(&mut stats);
        });
        assert!(stats.longest >= SLOW && stats.calls == 0);
    }
}
