//! What engines are made to do, against what they are given to do: nothing that arrives, and no silence, makes work without end.
//!
//! Work is counted in calls: a round of a turn, something to send, an event, a timeout. Whether one call is cheap, this does not
//! see.

use std::time::Duration;

use super::options::Options;
use crate::types::Instant;

/// See the module.
pub(super) struct Effort {
    ledgers: Vec<Ledger>,
    /// Links of a member.
    links: u64,
    /// Slots of one member.
    slots: u64,
}

/// Of one member, since its start.
#[derive(Debug, Default, Clone)]
struct Ledger {
    /// Calls that what came may lead to.
    granted: u64,
    spent: u64,
    timeouts: u64,
    /// Waiting, summed over all fetches and once for the member itself, in nanoseconds.
    waited: u64,
    /// Fetches at the end of the last turn, and when that was.
    fetches: u64,
    seen: Instant,
}

impl Effort {
    /// Calls that are free.
    const FREE: u64 = 64;
    /// Calls for each thing that came: every link of up to six is asked after it. Up to 6.01 were seen, where most of what
    /// comes are requests and their being given up.
    const EACH: u64 = 8;
    /// How often each fetch may wake the engine. An eighth of that was seen.
    const PACE: Duration = Duration::from_millis(20);

    pub(super) fn new(options: &Options) -> Effort {
        Effort {
            ledgers: vec![Ledger::default(); options.members],
            links: options.members as u64 - 1,
            slots: options.topics.iter().map(|topic| u64::from(topic.slots)).sum(),
        }
    }

    /// A member starts without memory.
    pub(super) fn forget(&mut self, node: usize) {
        self.grant(node, 0, |ledger| *ledger = Ledger::default());
    }

    /// A link brings one thing, or has room again.
    pub(super) fn arrived(&mut self, node: usize) {
        self.grant(node, 1, |_| ());
    }

    /// The replica or the transport calls: every link may hear of it.
    pub(super) fn commanded(&mut self, node: usize) {
        self.grant(node, 1 + self.links, |_| ());
    }

    /// A link hears of the whole table.
    pub(super) fn connected(&mut self, node: usize) {
        self.grant(node, 1 + self.slots, |_| ());
    }

    /// Time is handed in.
    pub(super) fn timed(&mut self, node: usize) {
        self.grant(node, 1, |ledger| ledger.timeouts += 1);
    }

    /// A call.
    pub(super) fn spend(&mut self, node: usize) {
        self.grant(node, 0, |ledger| ledger.spent += 1);
    }

    fn grant(&mut self, node: usize, calls: u64, change: impl FnOnce(&mut Ledger)) {
        if let Some(ledger) = self.ledgers.get_mut(node) {
            ledger.granted += calls;
            change(ledger);
        }
    }

    /// After turns of a member, which has so many fetches now.
    pub(super) fn check(&mut self, node: usize, fetches: usize, now: Instant) -> Result<(), String> {
        let Some(ledger) = self.ledgers.get_mut(node) else { return Ok(()) };
        let span = now.saturating_since(ledger.seen).as_nanos() as u64;
        ledger.waited = ledger.waited.saturating_add(span.saturating_mul(1 + ledger.fetches));
        (ledger.fetches, ledger.seen) = (fetches as u64, now);
        let pace = ledger.waited / Self::PACE.as_nanos() as u64;
        let idle = ledger.timeouts <= Self::FREE + pace;
        let busy = ledger.spent <= Self::FREE + Self::EACH * ledger.granted;
        if idle && busy { Ok(()) } else { Err(format!("M3: member {node} does too much: {ledger:?}")) }
    }
}
