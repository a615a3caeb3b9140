//! Who may begin a handshake: nothing costs a signature before its source has shown that it receives what we
//! send, once handshakes come faster than members need them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::counters::Rejection;
use super::pace::Pace;
use crate::types::{Instant, Membership};

/// What to do with a first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Begin the handshake.
    Accept,
    /// Ask the source to show that it receives at its address.
    Retry,
    /// Say nothing.
    Ignore(Rejection),
}

/// One source address, shared by the members that have it.
#[derive(Debug, Default, Clone, Copy)]
struct Source {
    members: u32,
    initials: Pace,
    handshakes: Pace,
    validated: Pace,
}

/// The gate before the handshake. State: one entry per member address, whatever strangers send.
pub(super) struct Door {
    known: BTreeMap<IpAddr, Source>,
    /// Every other address together, unless they are dropped.
    strangers: Option<Source>,
    /// Retries of all sources.
    retries: Pace,
    /// Handshakes pending beyond which every source must show its address.
    retry_above: usize,
    /// Handshakes pending beyond which more are ignored.
    ignore_above: usize,
}

impl Door {
    /// Handshakes that one member may begin at once, and the time between further ones. An honest dialler
    /// needs six in its first 1.5 s and one per second after that.
    const BURST: u32 = 8;
    const INTERVAL: Duration = Duration::from_millis(500);
    /// Initial packets per member: a handshake takes two to four.
    const INITIAL_BURST: u32 = 64;
    const INITIAL_INTERVAL: Duration = Duration::from_millis(10);
    /// Retries of the whole lane: ten microseconds of work each.
    const RETRY_BURST: u32 = 64;
    const RETRY_INTERVAL: Duration = Duration::from_millis(1);

    pub(super) fn new(membership: &Membership, prefilter: bool) -> Door {
        let members = membership.members().len();
        let all = Source { members: members as u32, ..Source::default() };
        let mut door = Door {
            known: BTreeMap::new(),
            strangers: (!prefilter).then_some(all),
            retries: Pace::default(),
            retry_above: members.max(8),
            ignore_above: 4 * members.max(8),
        };
        door.set_membership(membership);
        door
    }

    /// Keeps the budgets of addresses that stay.
    pub(super) fn set_membership(&mut self, membership: &Membership) {
        let before = std::mem::take(&mut self.known);
        for member in membership.members() {
            let mut ips: Vec<IpAddr> = member.addresses.iter().map(|address| address.ip()).collect();
            ips.sort();
            ips.dedup();
            for ip in ips {
                let source = || Source { members: 0, ..before.get(&ip).copied().unwrap_or_default() };
                self.known.entry(ip).or_insert_with(source).members += 1;
            }
        }
        let members = membership.members().len();
        self.retry_above = members.max(8);
        self.ignore_above = 4 * members.max(8);
    }

    /// Whether datagrams from `ip` are looked at.
    pub(super) fn admits(&self, ip: IpAddr) -> bool {
        self.strangers.is_some() || self.known.contains_key(&ip)
    }

    fn source(&mut self, ip: IpAddr) -> Option<&mut Source> {
        self.known.get_mut(&ip).or(self.strangers.as_mut())
    }

    /// Whether an Initial packet from `ip` is worth deriving its keys.
    pub(super) fn admits_initial(&mut self, now: Instant, ip: IpAddr) -> bool {
        self.source(ip).is_some_and(|source| {
            let members = source.members.max(1);
            source.initials.take(now, Self::INITIAL_INTERVAL / members, Self::INITIAL_BURST * members)
        })
    }

    /// What to do with a first packet from `ip`, which has shown its address or not, with `pending`
    /// handshakes going on.
    pub(super) fn verdict(&mut self, now: Instant, ip: IpAddr, validated: bool, pending: usize) -> Verdict {
        if pending >= self.ignore_above {
            return Verdict::Ignore(Rejection::TooMany);
        }
        let crowded = pending >= self.retry_above;
        let Some(source) = self.source(ip) else { return Verdict::Ignore(Rejection::UnknownSource) };
        let members = source.members.max(1);
        // Sources that have shown their address have a budget of their own: a spoofer cannot spend it.
        let pace = if validated { &mut source.validated } else { &mut source.handshakes };
        if (validated || !crowded) && pace.take(now, Self::INTERVAL / members, Self::BURST * members) {
            return Verdict::Accept;
        }
        if !validated && self.retries.take(now, Self::RETRY_INTERVAL, Self::RETRY_BURST) {
            return Verdict::Retry;
        }
        Verdict::Ignore(Rejection::RateLimited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Member, NodeId, RegistryVersion};

    const MEMBER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const STRANGER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 9, 9));

    fn door(prefilter: bool) -> Door {
        let member = Member { id: NodeId([1; 32]), addresses: vec!["10.0.0.1:4100".parse().unwrap()] };
        let membership = Membership::new("test".into(), RegistryVersion(1), 1, vec![member]).unwrap();
        Door::new(&membership, prefilter)
    }

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn strangers_are_dropped_unless_the_prefilter_is_off() {
        assert!(door(true).admits(MEMBER) && !door(true).admits(STRANGER));
        assert!(door(false).admits(STRANGER));
    }

    #[test]
    fn a_burst_beyond_a_members_share_must_show_its_address_and_ends_there() {
        let mut door = door(true);
        for _ in 0..Door::BURST {
            assert_eq!(door.verdict(at(0), MEMBER, false, 0), Verdict::Accept);
        }
        assert_eq!(door.verdict(at(0), MEMBER, false, 0), Verdict::Retry);
        for _ in 0..Door::BURST {
            assert_eq!(door.verdict(at(0), MEMBER, true, 0), Verdict::Accept);
        }
        assert_eq!(door.verdict(at(0), MEMBER, true, 0), Verdict::Ignore(Rejection::RateLimited));
        assert_eq!(door.verdict(at(500), MEMBER, true, 0), Verdict::Accept);
    }

    #[test]
    fn pending_handshakes_ask_for_addresses_first_and_close_the_door_later() {
        let mut door = door(true);
        assert_eq!(door.verdict(at(0), MEMBER, false, 8), Verdict::Retry);
        assert_eq!(door.verdict(at(0), MEMBER, true, 8), Verdict::Accept);
        assert_eq!(door.verdict(at(0), MEMBER, true, 32), Verdict::Ignore(Rejection::TooMany));
    }

    #[test]
    fn initial_packets_run_out_and_come_back() {
        let mut door = door(true);
        let admitted = (0..10_000).filter(|_| door.admits_initial(at(0), MEMBER)).count();
        assert_eq!(admitted, Door::INITIAL_BURST as usize);
        assert!(door.admits_initial(at(10), MEMBER));
    }
}
