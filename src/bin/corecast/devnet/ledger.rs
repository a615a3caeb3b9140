//! Who has which artifact: when all have it, it is aborted and its maker may go on.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use corecast::types::ArtifactId;

use crate::subnet::fault::{Exit, Fault};
use crate::subnet::latency::Latency;
use crate::subnet::port::Port;

/// Bytes of one maker that may be on their way at a time.
pub(crate) const WINDOW_BYTES: usize = 32 << 20;
/// Artifacts of one maker that may be on their way at a time.
pub(crate) const WINDOW_ARTIFACTS: usize = 512;

/// All artifacts under way.
pub(crate) struct Ledger {
    /// The nodes' sending ends.
    ports: Vec<Arc<dyn Port>>,
    /// Receivers have what they received active too, until it is complete.
    relay: bool,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    underway: HashMap<ArtifactId, Entry>,
    /// What every node has written. No artifact is made twice: each carries its path.
    done: HashSet<ArtifactId>,
    makers: Vec<Window>,
    totals: Totals,
    fault: Option<Fault>,
}

/// What one maker has under way.
#[derive(Debug, Default, Clone, Copy)]
struct Window {
    bytes: usize,
    artifacts: usize,
}

struct Entry {
    /// `None` until the maker says that it broadcast it, which may be after the first delivery.
    made: Option<Made>,
    /// When it came to nodes before the maker said so.
    early: Vec<Instant>,
    /// One bit for each node that has been handed it.
    arrived: u128,
    /// Nodes that have written it, the maker among them.
    stored: u32,
}

struct Made {
    maker: usize,
    start: Instant,
    bytes: usize,
}

/// What has happened.
#[derive(Debug, Clone)]
pub(crate) struct Totals {
    /// Artifacts that were broadcast.
    pub(crate) artifacts: u64,
    /// Deliveries to other nodes.
    pub(crate) deliveries: u64,
    /// Bytes of these.
    pub(crate) delivered_bytes: u64,
    /// Bytes that were written, at all nodes.
    pub(crate) stored_bytes: u64,
    /// Files that are in their place, at all nodes.
    pub(crate) files: u64,
    /// From broadcast to each delivery.
    pub(crate) latency: Latency,
}

impl Ledger {
    /// Nothing under way at the nodes of these ports.
    pub(crate) fn new(ports: Vec<Arc<dyn Port>>, relay: bool) -> Result<Ledger, Fault> {
        let totals = Totals {
            artifacts: 0,
            deliveries: 0,
            delivered_bytes: 0,
            stored_bytes: 0,
            files: 0,
            latency: Latency::new()?,
        };
        let makers = vec![Window::default(); ports.len()];
        let state = State { underway: HashMap::new(), done: HashSet::new(), makers, totals, fault: None };
        Ok(Ledger { ports, relay, state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Waits until `maker` may have `bytes` more under way. `false` when the run is over.
    pub(crate) fn wait_for_room(&self, maker: usize, bytes: usize) -> bool {
        let full = |state: &mut State| {
            let window = state.makers[maker];
            // One artifact always fits, whatever its size.
            let over = window.bytes + bytes > WINDOW_BYTES || window.artifacts >= WINDOW_ARTIFACTS;
            state.fault.is_none() && window.artifacts > 0 && over
        };
        let waited = self.changed.wait_while(self.lock(), full);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.makers[maker].bytes += bytes;
        state.makers[maker].artifacts += 1;
        state.fault.is_none()
    }

    /// `maker` has broadcast `bytes` under `id`, at `start`.
    pub(crate) fn made(&self, id: ArtifactId, maker: usize, start: Instant, bytes: usize) {
        let mut state = self.lock();
        let State { underway, totals, .. } = &mut *state;
        let entry = underway.entry(id).or_insert_with(Entry::new);
        totals.artifacts += 1;
        for arrival in entry.early.drain(..) {
            totals.latency.record(arrival.saturating_duration_since(start));
        }
        entry.made = Some(Made { maker, start, bytes });
        self.finish_if_complete(&mut state, &id);
    }

    /// `node` was handed `id`, of `bytes` bytes.
    pub(crate) fn arrived(&self, id: ArtifactId, node: usize, bytes: usize) {
        let now = Instant::now();
        let mut state = self.lock();
        let State { underway, totals, done, .. } = &mut *state;
        let entry = underway.entry(id).or_insert_with(Entry::new);
        if entry.arrived & (1 << node) != 0 || done.contains(&id) {
            drop(state);
            return self.fail(Fault::new(Exit::Software, format!("artifact {id} came to node {node} twice")));
        }
        entry.arrived |= 1 << node;
        totals.deliveries += 1;
        totals.delivered_bytes += bytes as u64;
        match &entry.made {
            Some(made) => totals.latency.record(now.saturating_duration_since(made.start)),
            None => entry.early.push(now),
        }
    }

    /// A node has written `id`, of `bytes` bytes; with it `files` files came to their place.
    pub(crate) fn stored(&self, id: ArtifactId, bytes: usize, files: u64) {
        let mut state = self.lock();
        state.totals.stored_bytes += bytes as u64;
        state.totals.files += files;
        state.underway.entry(id).or_insert_with(Entry::new).stored += 1;
        self.finish_if_complete(&mut state, &id);
    }

    fn finish_if_complete(&self, state: &mut State, id: &ArtifactId) {
        let complete = |entry: &Entry| entry.stored as usize == self.ports.len() && entry.made.is_some();
        if !state.underway.get(id).is_some_and(complete) {
            return;
        }
        state.done.insert(*id);
        if let Some(made) = state.underway.remove(id).and_then(|entry| entry.made) {
            match self.relay {
                true => self.ports.iter().for_each(|port| port.abort(id)),
                false => self.ports[made.maker].abort(id),
            }
            let window = &mut state.makers[made.maker];
            window.bytes -= made.bytes;
            window.artifacts -= 1;
            self.changed.notify_all();
        }
    }

    /// Ends the run early; the first fault counts.
    pub(crate) fn fail(&self, fault: Fault) {
        self.lock().fault.get_or_insert(fault);
        self.changed.notify_all();
    }

    /// Whether the run has failed.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.lock().fault.clone()
    }

    /// What has happened so far, and how many artifacts are under way.
    pub(crate) fn totals(&self) -> (Totals, usize) {
        let state = self.lock();
        (state.totals.clone(), state.underway.len())
    }

    /// Waits for something to happen, `wait` at most, and says how many files and bytes are in their place.
    pub(crate) fn watch(&self, wait: Duration) -> (u64, u64) {
        let waited = self.changed.wait_timeout(self.lock(), wait).unwrap_or_else(PoisonError::into_inner);
        (waited.0.totals.files, waited.0.totals.stored_bytes)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn new() -> Entry {
        Entry { made: None, early: Vec::new(), arrived: 0, stored: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subnet::hub::{self, Mishaps};
    use corecast::config::TopicConfig;
    use corecast::types::TopicId;

    const ID: ArtifactId = ArtifactId([1; 32]);

    fn ledger(nodes: usize) -> Ledger {
        let subnet = hub::start(nodes, &[TopicConfig::new(TopicId(1), "t")], Mishaps::default());
        Ledger::new(subnet.ports.into_iter().flatten().collect(), false).unwrap()
    }

    #[test]
    fn an_artifact_is_complete_when_all_have_written_it_whoever_speaks_first() {
        let ledger = ledger(2);
        assert!(ledger.wait_for_room(0, 10));
        ledger.arrived(ID, 1, 10);
        ledger.stored(ID, 10, 1);
        ledger.stored(ID, 10, 1);
        assert_eq!(ledger.totals().1, 1, "its maker has not spoken yet");
        ledger.made(ID, 0, Instant::now(), 10);
        let (totals, underway) = ledger.totals();
        assert_eq!((totals.artifacts, totals.deliveries, totals.delivered_bytes), (1, 1, 10));
        assert_eq!((totals.files, totals.stored_bytes, underway), (2, 20, 0));
    }

    #[test]
    fn a_maker_waits_for_room_and_one_artifact_always_fits() {
        let ledger = ledger(1);
        assert!(ledger.wait_for_room(0, 2 * WINDOW_BYTES));
        ledger.made(ID, 0, Instant::now(), 2 * WINDOW_BYTES);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| ledger.wait_for_room(0, 1));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waiting.is_finished());
            ledger.stored(ID, 1, 1);
            assert!(waiting.join().unwrap());
        });
    }

    #[test]
    fn a_delivery_that_comes_twice_fails_the_run() {
        let ledger = ledger(3);
        ledger.arrived(ID, 1, 10);
        ledger.arrived(ID, 2, 10);
        assert!(ledger.fault().is_none());
        ledger.arrived(ID, 1, 10);
        assert!(ledger.fault().unwrap().to_string().contains("twice"));
        assert!(!ledger.wait_for_room(0, 1));
    }
}
