//! Members that have hardly anything: the smallest limits that are allowed, or a few times as much.

use std::time::Duration;

use super::options::Options;
use crate::types::Rng;

/// What such a member holds at most, besides what its topics say.
#[derive(Debug, Clone, Copy)]
pub struct Scarcity {
    /// Bytes of the largest artifact.
    pub artifact_bytes: u32,
    /// Bytes that a peer may have in flight to it, on one stream and on its connection.
    pub windows: (u64, u64),
    /// Bytes to one peer that may wait for acknowledgement, and those beyond it for urgent classes.
    pub send_windows: (u64, u64),
    /// Large pushed bodies of one peer that are gathered at a time.
    pub pushes_in_assembly: usize,
    /// Bytes that its lane asks for at a time, of each class.
    pub lane_bytes: u64,
    /// Events that its replica takes at a time.
    pub events: u32,
    /// How long the replica does something else after those.
    pub rest: Duration,
}

impl Options {
    /// The least that QUIC's settings allow of a window for streams.
    const WINDOW: u64 = 64 << 10;
    /// The least that the node's settings allow of the largest artifact.
    const ARTIFACT: u64 = 1 << 10;

    /// Draws whether everything is scarce, and how much there is.
    pub(super) fn make_scarce(&mut self) {
        let rng = &mut Rng::new(self.seed ^ 0x7363_6172_6369_7479);
        if !rng.one_in(4) {
            return;
        }
        let largest = self.topics.iter().map(|topic| topic.largest).max().unwrap_or_default();
        // A topic must have room for one artifact of the largest size.
        let body = largest.max(Self::ARTIFACT);
        for topic in &mut self.topics {
            topic.slots = topic.slots.min(1 + rng.below(4) as u32);
            topic.pending_bytes = body * (1 + rng.below(2));
            topic.active_bytes = Some(body * (1 + rng.below(2)));
        }
        (self.datagrams.uni_streams, self.datagrams.bidi_streams) =
            (8 + rng.below(4) as u32, 1 + rng.below(3) as u32);
        self.budget.requests = self.budget.requests.min(1 + rng.below(2) as u32);
        self.budget.bytes = self.budget.bytes.min(1 + rng.below(2 * body));
        let connection = Self::WINDOW << rng.below(3);
        self.scarcity = Some(Scarcity {
            artifact_bytes: body as u32,
            windows: (Self::WINDOW, connection),
            send_windows: (2_400 + rng.below(connection / 4), 1_200 + rng.below(connection / 8)),
            pushes_in_assembly: 4,
            lane_bytes: 1 + rng.below(2 * body),
            events: 1 + rng.below(3) as u32,
            rest: Duration::from_millis(rng.below(20)),
        });
    }

    /// How long replicas rest while they take so many events.
    pub(super) fn rests(&self, events: usize) -> Duration {
        self.scarcity.map_or(Duration::ZERO, |scarcity| scarcity.rest * (events as u32 / scarcity.events + 1))
    }

    /// Bytes a second that a link carries: no more than a window in each round trip.
    pub(super) fn pace(&self) -> f64 {
        let rate = self.links.rate as f64;
        let trip = 2.0 * (self.links.latency + self.links.jitter).as_secs_f64();
        self.scarcity.map_or(rate, |scarcity| rate.min(scarcity.send_windows.0 as f64 / trip))
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::Level;
    use super::*;

    #[test]
    fn a_quarter_of_mixed_runs_has_hardly_anything() {
        let all: Vec<Options> = (0..1_000).map(|seed| Options::mixed(seed, Level::Quic)).collect();
        let scarce: Vec<&Options> = all.iter().filter(|options| options.scarcity.is_some()).collect();
        assert!((200..300).contains(&scarce.len()), "{}", scarce.len());
        assert!(scarce.iter().any(|options| options.topics.iter().all(|topic| topic.slots == 1)));
        assert!(scarce.iter().all(|options| options.datagrams.uni_streams < 12));
    }
}
