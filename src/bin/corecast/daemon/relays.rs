//! What this node relays of others: for a while, and not more than its share of the table.
//!
//! A relayed artifact is in this node's active set, so that its delivery survives the death of its maker. Nothing
//! would end it otherwise: relays see one another's adverts long after the maker has aborted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use corecast::types::ArtifactId;

use crate::subnet::port::Port;

/// Received artifacts in this node's active set.
pub(crate) struct Relays {
    port: Arc<dyn Port>,
    keep: Duration,
    most: usize,
    most_bytes: usize,
    bytes: usize,
    by_age: VecDeque<(Instant, ArtifactId)>,
    sizes: BTreeMap<ArtifactId, usize>,
}

impl Relays {
    /// Keeps each for `keep`, `most` of `most_bytes` at a time; the oldest goes first.
    pub(crate) fn new(port: Arc<dyn Port>, keep: Duration, most: usize, most_bytes: usize) -> Relays {
        Relays { port, keep, most, most_bytes, bytes: 0, by_age: VecDeque::new(), sizes: BTreeMap::new() }
    }

    /// A received artifact is on disk: relay it, or let go of it.
    pub(crate) fn take(&mut self, id: ArtifactId, bytes: usize, now: Instant) {
        if self.keep.is_zero() || bytes > self.most_bytes || self.most == 0 {
            return self.port.release(&id);
        }
        if self.sizes.insert(id, bytes).is_some() {
            return;
        }
        self.by_age.push_back((now, id));
        self.bytes += bytes;
        while self.sizes.len() > self.most || self.bytes > self.most_bytes {
            self.drop_oldest();
        }
        self.port.validate(&id);
    }

    /// Nobody broadcasts it any longer.
    pub(crate) fn withdrawn(&mut self, id: &ArtifactId) {
        if let Some(bytes) = self.sizes.remove(id) {
            self.bytes -= bytes;
            self.by_age.retain(|(_, other)| other != id);
            self.port.abort(id);
        }
    }

    /// Ends what has been relayed for long enough.
    pub(crate) fn expire(&mut self, now: Instant) {
        while self.by_age.front().is_some_and(|(since, _)| now.duration_since(*since) >= self.keep) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((_, id)) = self.by_age.pop_front() {
            self.bytes -= self.sizes.remove(&id).unwrap_or(0);
            self.port.abort(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subnet::port::Refusal;
    use bytes::Bytes;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Log(Mutex<Vec<String>>);

    impl Log {
        fn push(&self, what: &str, id: &ArtifactId) {
            self.0.lock().unwrap().push(format!("{what} {}", id.0[0]));
        }

        fn take(&self) -> Vec<String> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl Port for Log {
        fn broadcast(&self, _: Bytes) -> Result<ArtifactId, Refusal> {
            Err(Refusal::Wait)
        }
        fn abort(&self, id: &ArtifactId) {
            self.push("abort", id);
        }
        fn validate(&self, id: &ArtifactId) {
            self.push("validate", id);
        }
        fn release(&self, id: &ArtifactId) {
            self.push("release", id);
        }
    }

    fn id(byte: u8) -> ArtifactId {
        ArtifactId([byte; 32])
    }

    #[test]
    fn relays_end_by_age_by_number_by_bytes_and_with_their_maker() {
        let log = Arc::new(Log::default());
        let mut relays = Relays::new(log.clone(), Duration::from_secs(10), 3, 100);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        (1..=4).for_each(|n| relays.take(id(n), 10, at(u64::from(n))));
        assert_eq!(log.take(), ["validate 1", "validate 2", "validate 3", "abort 1", "validate 4"]);
        relays.take(id(5), 85, at(5));
        assert_eq!(log.take(), ["abort 2", "abort 3", "validate 5"]);
        relays.expire(at(14));
        assert_eq!(log.take(), ["abort 4"]);
        relays.withdrawn(&id(5));
        relays.withdrawn(&id(5));
        assert_eq!(log.take(), ["abort 5"]);
        relays.take(id(6), 101, at(15));
        assert_eq!(log.take(), ["release 6"]);
    }
}
