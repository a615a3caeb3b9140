//! What a transport holds for streams at this moment, for whoever watches over its promises: tests, the simulator, an operator.

use super::Quic;
use super::link::Link;
use crate::types::PeerIndex;

/// All are 0 when nothing is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamCensus {
    /// Streams that the engine knows by a key.
    pub named: usize,
    /// Incoming streams that have begun and not ended.
    pub reading: usize,
    /// Of those, pushed bodies: each holds one of the places for bodies that are gathered.
    pub assembling: usize,
    /// Bytes that wait to enter QUIC's send buffer.
    pub unwritten: usize,
    /// Requests that wait for a stream.
    pub unasked: usize,
    /// Streams that were abandoned after their last event was queued.
    pub revoked: usize,
}

impl Quic {
    /// What the link of one peer holds.
    pub fn census_of(&self, peer: PeerIndex) -> StreamCensus {
        let mut census = StreamCensus::default();
        self.live(peer).into_iter().for_each(|link| link.count(&mut census));
        census
    }

    /// What all links hold.
    pub fn census(&self) -> StreamCensus {
        let mut census = StreamCensus { revoked: self.revoked.len(), ..StreamCensus::default() };
        self.links.iter().flatten().for_each(|link| link.count(&mut census));
        census
    }
}

impl Link {
    fn count(&self, census: &mut StreamCensus) {
        let streams = self.streams();
        census.named += streams.keys.len();
        census.reading += streams.ingress.reading();
        census.assembling += streams.ingress.assembling();
        census.unwritten += streams.egress.unwritten();
        census.unasked += streams.fetches.0.iter().map(|queue| queue.len()).sum::<usize>();
    }
}
