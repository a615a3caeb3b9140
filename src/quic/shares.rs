//! Whose bytes enter a connection's send buffer next: the most urgent first, unless it is ahead of its share.
//!
//! Start-time fair queuing (Goyal, Vin and Cheng, SIGCOMM 1996) with a head start: a class's virtual time is its bytes divided by
//! its weight, and of the classes with something to write the most urgent one goes that is not more than [`Shares::AHEAD`]
//! bytes ahead of whichever is furthest behind. What comes now and then finds its class at the common time and goes at once; what
//! never ends is held to its weight.

use crate::types::{Class, Classes, PerClass, Weights};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Shares {
    weights: Weights,
    /// Virtual time of each class.
    times: PerClass<u64>,
    /// The common time, below which no class begins.
    clock: u64,
    backlogged: Classes,
}

impl Shares {
    /// Bytes of its own by which a class may be ahead of the others.
    pub(super) const AHEAD: u64 = 256 << 10;
    /// Virtual time of one byte at a weight of one: weights divide it with little loss.
    const UNIT: u64 = 1 << 12;
    /// Times are moved back to zero once they are above this: long before they could overflow.
    const FAR: u64 = 1 << 60;

    pub(super) fn new(weights: Weights) -> Shares {
        Shares { weights, ..Shares::default() }
    }

    /// These classes have something to write, and no others.
    pub(super) fn begin(&mut self, waiting: Classes) {
        for class in Class::ALL {
            match (self.backlogged.has(class), waiting.has(class)) {
                (false, true) => {
                    self.backlogged = self.backlogged.with(class);
                    self.times[class] = self.times[class].max(self.clock);
                }
                (true, false) => self.end(class),
                (true, true) | (false, false) => (),
            }
        }
    }

    /// It has nothing any more, or nothing that the connection could help.
    pub(super) fn end(&mut self, class: Class) {
        self.backlogged = self.backlogged.without(class);
        if self.backlogged.is_empty() {
            self.clock = self.clock.max(self.times[class]);
        }
    }

    /// The class that goes next. One that is `held` cannot write now, and one that is `through` has nothing for the moment; yet
    /// they keep their claim: others do not run away from them.
    pub(super) fn next(&self, held: Classes, through: Classes) -> Option<Class> {
        let behind = self.furthest_behind()?;
        let may_go = |class: Class| {
            let ahead = self.times[class].saturating_sub(behind);
            ahead <= self.virtual_time(class, Self::AHEAD)
        };
        // Whoever is held holds back what is less urgent, too: its windows are no wider.
        let ready = Class::ALL.into_iter().take_while(|class| !held.has(*class));
        let waits = |class: Class| self.backlogged.has(class) && !through.has(class);
        ready.into_iter().find(|class| waits(*class) && may_go(*class))
    }

    /// Whether a class has something to write that the connection could take.
    pub(super) fn is_backlogged(&self, class: Class) -> bool {
        self.backlogged.has(class)
    }

    /// Whether `class` alone has something to write.
    pub(super) fn is_alone(&self, class: Class) -> bool {
        self.backlogged == Classes::NONE.with(class)
    }

    /// A class has written so many bytes.
    pub(super) fn serve(&mut self, class: Class, bytes: u64) {
        self.times[class] += self.virtual_time(class, bytes);
        if let Some(behind) = self.furthest_behind() {
            self.clock = self.clock.max(behind);
        }
        if self.clock > Self::FAR {
            let clock = std::mem::take(&mut self.clock);
            self.times.0.iter_mut().for_each(|time| *time = time.saturating_sub(clock));
        }
    }

    fn furthest_behind(&self) -> Option<u64> {
        Class::ALL
            .into_iter()
            .filter(|class| self.backlogged.has(*class))
            .map(|class| self.times[class])
            .min()
    }

    fn virtual_time(&self, class: Class, bytes: u64) -> u64 {
        bytes * Self::UNIT / u64::from(self.weights.of(class))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const BULK: Classes = Classes::NONE.with(Class::Bulk);

    fn shares() -> Shares {
        Shares::new(Weights::DEFAULT)
    }

    /// Lets whoever goes next write 10,000 bytes, so often; the bytes of each.
    fn contend(shares: &mut Shares, times: usize) -> PerClass<u64> {
        let mut bytes = PerClass::default();
        for _ in 0..times {
            let class = shares.next(Classes::NONE, Classes::NONE).unwrap();
            shares.serve(class, 10_000);
            bytes[class] += 10_000;
        }
        bytes
    }

    #[test]
    fn floods_share_by_weight() {
        let mut shares = shares();
        shares.begin(Classes::ALL);
        contend(&mut shares, 1_000);
        let bytes = contend(&mut shares, 100_000);
        let sum: u64 = bytes.0.iter().sum();
        let percent = Class::ALL.map(|class| (bytes[class] * 1000 / sum + 5) / 10);
        assert_eq!(percent, [40, 28, 20, 12]);
    }

    #[test]
    fn what_comes_now_and_then_goes_at_once_beside_a_flood() {
        let mut shares = shares();
        for _ in 0..100 {
            shares.begin(BULK);
            shares.serve(Class::Bulk, 10 * MIB);
            shares.begin(BULK.with(Class::Critical));
            assert_eq!(shares.next(Classes::NONE, Classes::NONE), Some(Class::Critical));
            shares.serve(Class::Critical, Shares::AHEAD);
        }
    }

    #[test]
    fn two_floods_share_what_others_leave() {
        let mut shares = shares();
        shares.begin(BULK.with(Class::Critical));
        contend(&mut shares, 1_000);
        let bytes = contend(&mut shares, 10_000);
        assert_eq!(bytes[Class::Bulk] * 52 / 12 / 1_000_000, 100, "12 of 52 parts");
    }

    #[test]
    fn nobody_runs_away_from_one_that_is_held() {
        let mut shares = shares();
        shares.begin(BULK.with(Class::High));
        let held = BULK;
        let mut bytes = 0;
        while let Some(class) = shares.next(held, Classes::NONE) {
            shares.serve(class, 10_000);
            bytes += 10_000;
        }
        assert!((Shares::AHEAD..Shares::AHEAD + 20_000).contains(&bytes), "{bytes}");
        let held = Classes::NONE.with(Class::High);
        assert_eq!(shares.next(held, Classes::NONE), None, "less urgent bytes have no wider window");
    }

    #[test]
    fn one_that_was_away_has_no_claim_from_then() {
        let mut shares = shares();
        shares.begin(BULK.with(Class::High));
        shares.serve(Class::Bulk, 100 * MIB);
        shares.begin(BULK);
        shares.serve(Class::Bulk, 100 * MIB);
        shares.begin(BULK.with(Class::High));
        let bytes = contend(&mut shares, 10_000);
        assert!((29..=31).contains(&(bytes[Class::Bulk] * 100 / 100_000_000)), "12 of 40 parts: {bytes:?}");
    }
}
