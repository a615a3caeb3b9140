//! One topic's filter as its lanes ask it: swapped at any time, timed, and taken off the lanes' threads when it is slow.

mod counts;
mod desk;
mod worker;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::config::{Advert, Filter, FilterThread, TopicConfig, Verdict};
use crate::sync::WakeWord;
use crate::types::TopicId;

use super::preflight::Affinity;
use counts::Counts;
use worker::Worker;

pub use counts::FilterStats;
pub(super) use desk::Desk;

/// What a topic's handles and lanes share of its filter.
///
/// A change is put in place first, then [`Gate::changes`] grows, then the lanes are woken: one that parks meanwhile sees the
/// change when it looks once more.
pub(super) struct Gate {
    topic: TopicId,
    thread: FilterThread,
    current: ArcSwap<Installed>,
    /// The number of the current filter, from 1.
    number: AtomicU64,
    changes: AtomicU64,
    wakes: Vec<Arc<WakeWord>>,
    /// By lane, then that of its own thread.
    counts: Vec<Counts>,
    /// Held by who installs a filter.
    installing: Mutex<()>,
    /// Lanes that need it keep it alive; it ends with the last of them.
    worker: Mutex<Weak<Worker>>,
    /// Of the thread that opened the topic: a lane's is one core.
    affinity: Affinity,
}

/// A filter, or that there is none.
struct Installed {
    filter: Option<Filter>,
    number: u64,
    /// Whether it is asked on a thread of its own.
    elsewhere: AtomicBool,
}

impl Gate {
    /// For a topic of as many lanes as there are `wakes`.
    pub(super) fn new(config: &TopicConfig, wakes: Vec<Arc<WakeWord>>) -> Gate {
        let (filter, thread) = (config.filter.clone(), config.filter_thread);
        Gate {
            topic: config.id,
            thread,
            current: ArcSwap::from_pointee(Installed::new(filter, 1, thread)),
            number: AtomicU64::new(1),
            changes: AtomicU64::new(0),
            counts: (0..=wakes.len()).map(|_| Counts::default()).collect(),
            wakes,
            installing: Mutex::new(()),
            worker: Mutex::new(Weak::new()),
            affinity: Affinity::of_this_thread(),
        }
    }

    /// What a lane's engine is given: the topic's settings with a filter that asks the current one.
    pub(super) fn config_for(self: &Arc<Gate>, lane: usize, config: &TopicConfig) -> TopicConfig {
        let gate = self.clone();
        let filter: Filter = Arc::new(move |advert: &Advert| gate.ask(lane, advert));
        let elsewhere = self.current.load().elsewhere.load(Ordering::SeqCst);
        let filter_thread = if elsewhere { FilterThread::Own } else { FilterThread::Lane };
        TopicConfig { filter: Some(filter), filter_thread, ..config.clone() }
    }

    /// Another filter judges from now on.
    pub(super) fn install(&self, filter: Option<Filter>) {
        let installing = self.installing.lock().unwrap_or_else(PoisonError::into_inner);
        let number = self.number.load(Ordering::SeqCst) + 1;
        self.counts.iter().for_each(Counts::forgive);
        let old = self.current.swap(Arc::new(Installed::new(filter, number, self.thread)));
        self.number.store(number, Ordering::SeqCst);
        drop(installing);
        self.announce();
        // What the replica's filter does when it goes must not keep others from installing one.
        drop(old);
    }

    /// The filter judges differently now.
    pub(super) fn announce(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.wakes.iter().for_each(|wake| wake.wake());
    }

    pub(super) fn stats(&self) -> FilterStats {
        let mut stats = FilterStats {
            on_own_thread: self.current.load().elsewhere.load(Ordering::SeqCst),
            ..FilterStats::default()
        };
        self.counts.iter().for_each(|counts| counts.add_to(&mut stats));
        stats
    }

    /// On a lane's thread.
    fn ask(&self, lane: usize, advert: &Advert) -> Verdict {
        let installed = self.current.load();
        let (Some(filter), Some(counts)) = (&installed.filter, self.counts.get(lane)) else {
            return Verdict::Want;
        };
        // Until the lane has noticed; then it is asked there.
        if installed.elsewhere.load(Ordering::Relaxed) {
            return Verdict::Later;
        }
        let start = Instant::now();
        let verdict = catch_unwind(AssertUnwindSafe(|| filter(advert)));
        let slow = counts.count(start.elapsed(), verdict.is_err());
        if slow && !installed.elsewhere.swap(true, Ordering::SeqCst) {
            tracing::warn!(topic = %self.topic, "the filter is slow: from now on it has a thread of its own");
            self.announce();
        }
        verdict.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// On the filter's own thread; `None`: it panicked.
    fn ask_elsewhere(&self, installed: &Installed, advert: &Advert) -> Option<Verdict> {
        let (Some(filter), Some(counts)) = (&installed.filter, self.counts.last()) else {
            return Some(Verdict::Want);
        };
        let start = Instant::now();
        let verdict = counts.while_in_call(start, || catch_unwind(AssertUnwindSafe(|| filter(advert))));
        counts.count(start.elapsed(), verdict.is_err());
        verdict.ok()
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gate({}, {:?})", self.topic, self.stats())
    }
}

impl Installed {
    fn new(filter: Option<Filter>, number: u64, thread: FilterThread) -> Installed {
        let elsewhere = filter.is_some() && thread == FilterThread::Own;
        Installed { filter, number, elsewhere: AtomicBool::new(elsewhere) }
    }
}
