//! Deadlines of connections and dials, in order.

use std::collections::BTreeSet;

use crate::types::{Instant, PeerIndex};

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A connection, by its place in the table.
    Connection(usize),
    /// A dial.
    Dial(PeerIndex),
}

/// At most one deadline per connection and per peer.
#[derive(Debug, Default)]
pub(super) struct Timers {
    order: BTreeSet<(Instant, Timer)>,
}

impl Timers {
    /// Moves `timer` from the deadline in `at` to `to`.
    pub(super) fn set(&mut self, timer: Timer, at: &mut Option<Instant>, to: Option<Instant>) {
        if *at == to {
            return;
        }
        if let Some(old) = std::mem::replace(at, to) {
            self.order.remove(&(old, timer));
        }
        if let Some(new) = to {
            self.order.insert((new, timer));
        }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.order.first().map(|&(at, _)| at)
    }

    /// Takes the earliest of what is due; its holder forgets the deadline.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        let &(at, timer) = self.order.first()?;
        (at <= now).then(|| {
            self.order.pop_first();
            timer
        })
    }
}
