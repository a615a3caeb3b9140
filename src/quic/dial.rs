//! When to dial a peer, and where: the first redial at once, then with doubling, jittered waits, its
//! addresses in turn.

use std::net::SocketAddr;
use std::time::Duration;

use crate::types::{Instant, Rng};

/// How long to wait between dials.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backoff {
    pub(super) min: Duration,
    pub(super) max: Duration,
}

impl Backoff {
    /// The wait before the dial that follows `failures` fruitless ones: none at first, then uniform in the
    /// upper half of
    /// `min × 2^(failures − 1)`, which is capped at `max`.
    fn wait(self, failures: u32, rng: &mut Rng) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
        let full = self.min.saturating_mul(1 << doublings.min(20)).min(self.max);
        let nanos = u64::try_from(full.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(nanos - rng.below(nanos / 2))
    }
}

/// Dialling one peer.
#[derive(Debug, Default)]
pub(super) struct Dialer {
    addresses: Vec<SocketAddr>,
    next: usize,
    failures: u32,
    connected_at: Option<Instant>,
}

impl Dialer {
    /// `addresses` are those of our lane.
    pub(super) fn new(addresses: Vec<SocketAddr>) -> Dialer {
        Dialer { addresses, ..Dialer::default() }
    }

    pub(super) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Replaces the addresses; dials begin at the first one, without a wait.
    pub(super) fn set_addresses(&mut self, addresses: Vec<SocketAddr>) {
        *self = Dialer::new(addresses);
    }

    /// The address to dial now.
    pub(super) fn target(&mut self) -> Option<SocketAddr> {
        let target = self.addresses.get(self.next % self.addresses.len().max(1)).copied();
        self.next = self.next.wrapping_add(1);
        target
    }

    /// A connection stands.
    pub(super) fn connected(&mut self, now: Instant) {
        self.connected_at = Some(now);
        // Its address works: begin there next time.
        self.next = self.next.wrapping_sub(1);
    }

    /// A connection or an attempt ended: when to dial again. A connection that lasted longer than the longest
    /// wait counts as a success.
    pub(super) fn ended(&mut self, now: Instant, backoff: Backoff, rng: &mut Rng) -> Instant {
        match self.connected_at.take() {
            Some(since) if now.saturating_since(since) >= backoff.max => self.failures = 0,
            _ => self.failures = self.failures.saturating_add(1),
        }
        now + backoff.wait(self.failures, rng)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { min: Duration::from_millis(50), max: Duration::from_secs(1) };

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn a_lasting_connection_is_redialled_at_once() {
        let (mut dialer, mut rng) = (Dialer::default(), Rng::new(1));
        dialer.connected(at(0));
        assert_eq!(dialer.ended(at(1500), BACKOFF, &mut rng), at(1500));
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let (mut dialer, mut rng) = (Dialer::default(), Rng::new(1));
        for full in [50, 100, 200, 400, 800, 1000, 1000] {
            let wait = dialer.ended(at(0), BACKOFF, &mut rng);
            assert!(wait > at(full / 2) && wait <= at(full), "{wait:?} of {full} ms");
        }
    }

    #[test]
    fn a_connection_that_breaks_at_once_is_not_redialled_at_once() {
        let (mut dialer, mut rng) = (Dialer::default(), Rng::new(1));
        dialer.connected(at(0));
        assert!(dialer.ended(at(10), BACKOFF, &mut rng) > at(10));
    }

    #[test]
    fn addresses_take_turns_until_one_works() {
        let [a, b] = ["10.0.0.1:1", "10.0.0.2:1"].map(|address| address.parse().unwrap());
        let mut dialer = Dialer::new(vec![a, b]);
        assert_eq!([dialer.target(), dialer.target(), dialer.target()], [Some(a), Some(b), Some(a)]);
        dialer.connected(at(0));
        assert_eq!(dialer.target(), Some(a));
        assert_eq!(Dialer::default().target(), None);
    }
}
