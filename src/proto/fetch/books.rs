//! What is asked of whom, counted from the fetches themselves and not from the books by which budgets go: for whoever watches
//! over the budgets.

use super::Fetch;
use crate::types::{PeerIndex, PerClass};

/// Requests in flight, and the bytes that they announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Asked {
    /// Requests.
    pub requests: u32,
    /// Bytes of the bodies that were asked for.
    pub bytes: u64,
}

impl Fetch {
    /// What is asked of `peer`, by class.
    pub fn asked_of(&self, peer: PeerIndex) -> PerClass<Asked> {
        let mut asked = PerClass::<Asked>::default();
        for (_, task) in &self.tasks {
            for flight in task.flights.iter().filter(|flight| flight.peer == peer) {
                asked[task.class].requests += 1;
                asked[task.class].bytes += u64::from(flight.size);
            }
        }
        asked
    }

    /// Bytes that are asked of all peers.
    pub fn asked_bytes(&self) -> u64 {
        let flights = self.tasks.iter().flat_map(|(_, task)| &task.flights);
        flights.map(|flight| u64::from(flight.size)).sum()
    }
}
