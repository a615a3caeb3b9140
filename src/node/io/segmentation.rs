//! Whether a port may join datagrams into one send (UDP_SEGMENT), and for how long not after failures.
//!
//! EINVAL and EIO have two meanings: this device cannot segment, or the route is bad (a blackhole route
//! answers EINVAL). Only when a joined send fails *and the same datagrams pass one by one* is segmentation to
//! blame. And even then it is never given up for ever: routes and devices change under a running node.

/// Consecutive joined sends that must fail, where single ones pass, before joining is suspended.
const FAILURES_TO_SUSPEND: u32 = 3;

/// Sends that go out datagram by datagram before joining is tried again: under load a matter of a minute or
/// less, and one wasted call in 16 thousand.
const SUSPENDED_SENDS: u32 = 1 << 14;

/// One per port.
#[derive(Debug, Default)]
pub(super) struct Segmentation {
    failures: u32,
    suspended: u32,
}

/// How to send next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Joining {
    Joined,
    Singly,
}

/// What a failure changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suspension {
    Unchanged,
    Begun,
}

impl Segmentation {
    /// How to send the next transmit of several datagrams.
    pub(super) fn next(&mut self) -> Joining {
        if self.suspended == 0 {
            return Joining::Joined;
        }
        self.suspended -= 1;
        Joining::Singly
    }

    /// A joined send passed.
    pub(super) fn joined_passed(&mut self) {
        self.failures = 0;
    }

    /// A joined send failed, and of its datagrams some passed one by one.
    pub(super) fn only_singles_passed(&mut self) -> Suspension {
        self.failures += 1;
        // Sends that were under way when the suspension began fail too; they must not prolong it.
        if self.failures < FAILURES_TO_SUSPEND || self.suspended > 0 {
            return Suspension::Unchanged;
        }
        // The first failure after the pause suspends again.
        self.failures = FAILURES_TO_SUSPEND - 1;
        self.suspended = SUSPENDED_SENDS;
        Suspension::Begun
    }
}

/// True for the errors that a device without segmentation answers.
pub(super) fn blames_segmentation(errno: i32) -> bool {
    matches!(errno, libc::EINVAL | libc::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_failures_change_nothing() {
        let mut segmentation = Segmentation::default();
        segmentation.only_singles_passed();
        segmentation.only_singles_passed();
        segmentation.joined_passed();
        assert_eq!(segmentation.only_singles_passed(), Suspension::Unchanged);
        assert_eq!(segmentation.next(), Joining::Joined);
    }

    #[test]
    fn three_failures_suspend_joining_for_a_while_and_not_for_ever() {
        let mut segmentation = Segmentation::default();
        segmentation.only_singles_passed();
        segmentation.only_singles_passed();
        assert_eq!(segmentation.only_singles_passed(), Suspension::Begun);
        assert!((0..SUSPENDED_SENDS).all(|_| segmentation.next() == Joining::Singly));
        assert_eq!(segmentation.next(), Joining::Joined);
    }

    #[test]
    fn a_device_that_still_fails_after_the_pause_is_suspended_at_once() {
        let mut segmentation = Segmentation::default();
        let begun = (0..3).map(|_| segmentation.only_singles_passed()).last();
        assert_eq!(begun, Some(Suspension::Begun));
        assert!((0..SUSPENDED_SENDS).all(|_| segmentation.next() == Joining::Singly));
        assert_eq!(segmentation.only_singles_passed(), Suspension::Begun);
    }
}
