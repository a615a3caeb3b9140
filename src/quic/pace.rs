//! Budgets that refill with time.

use std::time::Duration;

use crate::types::Instant;

/// At most `burst` at once, and one more every `interval` (the generic cell rate algorithm): one instant of
/// state.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    spent_until: Instant,
}

impl Pace {
    /// Takes one, if there is one.
    pub(super) fn take(&mut self, now: Instant, interval: Duration, burst: u32) -> bool {
        let spent_until = self.spent_until.max(now) + interval;
        if spent_until.saturating_since(now) > interval * burst {
            return false;
        }
        self.spent_until = spent_until;
        true
    }
}
