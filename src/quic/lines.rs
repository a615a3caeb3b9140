//! Who transmits next: connections with urgent bytes first, then all in turn.

use std::collections::VecDeque;

use super::link::Link;

/// Two lines of connections, by handle. One with urgent bytes stands in both: in the first it transmits those alone, so that no
/// other waits for what may come behind them.
#[derive(Debug, Default)]
pub(super) struct Lines {
    urgent: VecDeque<usize>,
    ready: VecDeque<usize>,
    /// Connections that had their share of this turn.
    capped: Vec<usize>,
}

impl Lines {
    /// A connection may have something to transmit.
    pub(super) fn join(&mut self, handle: usize, link: &mut Link) {
        if link.urgent() > 0 && !std::mem::replace(&mut link.urged, true) {
            self.urgent.push_back(handle);
        }
        if !std::mem::replace(&mut link.ready, true) {
            self.ready.push_back(handle);
        }
    }

    /// A new turn: every connection has its share again.
    pub(super) fn begin_turn(&mut self, links: &mut [Option<Box<Link>>]) {
        let mut capped = std::mem::take(&mut self.capped);
        for handle in capped.drain(..) {
            if let Some(Some(link)) = links.get_mut(handle) {
                link.ready = false;
                self.join(handle, link);
            }
        }
        // Kept for its capacity.
        self.capped = capped;
    }

    pub(super) fn next_urgent(&mut self) -> Option<usize> {
        self.urgent.pop_front()
    }

    pub(super) fn next(&mut self) -> Option<usize> {
        self.ready.pop_front()
    }

    /// A connection that was next waits for the next turn. It still counts as ready.
    pub(super) fn cap(&mut self, handle: usize) {
        self.capped.push(handle);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.urgent.is_empty() && self.ready.is_empty() && self.capped.is_empty()
    }
}
