//! One fetch: who advertises the artifact, who has been asked, and when something is to be done about it.

use std::time::Duration;

use super::FetchLimits;
use super::peer::Peer;
use crate::types::{ArtifactId, Class, Instant, PeerIndex, StreamKey, TopicId};

/// Requests for one artifact at a time.
pub(super) const MAX_FLIGHTS: usize = 2;

/// A body that comes slower than this many bytes a second is asked for elsewhere, too.
const SLOWEST: u64 = 1 << 20;

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LAST_BACKOFF: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Task {
    pub(super) topic: TopicId,
    pub(super) id: ArtifactId,
    pub(super) class: Class,
    /// Nobody is asked before.
    pub(super) not_before: Option<Instant>,
    /// By peer.
    pub(super) advertisers: Vec<Advertiser>,
    /// Requests in flight, the oldest first; at most [`MAX_FLIGHTS`].
    pub(super) flights: Vec<Flight>,
    /// Since when another request may start.
    pub(super) open: Option<Instant>,
    /// When peers that failed may be asked again.
    pub(super) retry_at: Option<Instant>,
    /// Dice that choose the peer, when this fetch explores.
    pub(super) explore: Option<u64>,
    /// Its timer, and what for.
    pub(super) wake: Option<(Instant, &'static str)>,
    retries: u32,
    requests: u32,
}

/// A peer that advertises the artifact.
#[derive(Debug)]
pub(super) struct Advertiser {
    pub(super) peer: PeerIndex,
    /// Bytes of the body, as it says.
    pub(super) size: u32,
    pub(super) state: State,
    /// The number of the ticket that waits in its queue.
    pub(super) ticket: Option<u64>,
    /// How often it was asked for this one.
    pub(super) asked: u32,
}

/// ```text
/// Fresh --request--> Asked --not found, broken, given up--> Failed --retry--> Fresh
///                    Asked --busy, lost connection--> Fresh
///                    Asked --wrong bytes--> Banned
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// May be asked.
    Fresh,
    /// A request is in flight.
    Asked,
    /// It could not serve; to be asked again later.
    Failed,
    /// It sent wrong bytes; never asked for this one again.
    Banned,
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) peer: PeerIndex,
    pub(super) key: StreamKey,
    pub(super) size: u32,
    pub(super) asked_at: Instant,
    /// When it has lasted too long in all.
    pub(super) ends_at: Instant,
    /// When bytes came last.
    pub(super) heard_at: Option<Instant>,
    /// Patience has ended, and that was counted against the peer; until bytes come again.
    pub(super) blamed: bool,
}

impl Task {
    pub(super) fn new(
        topic: TopicId,
        id: ArtifactId,
        class: Class,
        not_before: Option<Instant>,
        explore: Option<u64>,
    ) -> Task {
        Task {
            topic,
            id,
            class,
            not_before,
            advertisers: Vec::new(),
            flights: Vec::new(),
            open: None,
            retry_at: None,
            explore,
            wake: None,
            retries: 0,
            requests: 0,
        }
    }

    /// Where `peer` stands among the advertisers.
    pub(super) fn at(&self, peer: PeerIndex) -> Option<usize> {
        self.advertisers.binary_search_by_key(&peer, |advertiser| advertiser.peer).ok()
    }

    /// Adds an advertiser; whether it is new.
    pub(super) fn add(&mut self, peer: PeerIndex, size: u32) -> bool {
        match self.advertisers.binary_search_by_key(&peer, |advertiser| advertiser.peer) {
            Ok(_) => false,
            Err(at) => {
                self.advertisers
                    .insert(at, Advertiser { peer, size, state: State::Fresh, ticket: None, asked: 0 });
                true
            }
        }
    }

    /// Takes an advertiser out; a banned one stays, so that it does not come back as another.
    pub(super) fn remove(&mut self, peer: PeerIndex) -> Option<Advertiser> {
        let at = self.at(peer).filter(|at| self.advertisers[*at].state != State::Banned)?;
        Some(self.advertisers.remove(at))
    }

    pub(super) fn flight_mut(&mut self, key: StreamKey) -> Option<&mut Flight> {
        self.flights.iter_mut().find(|flight| flight.key == key)
    }

    /// Notes a request to `peer`; returns the bytes that it announced. A request may last twice as long in each round of all
    /// advertisers, for when it is this node's own link that is slow.
    pub(super) fn asked(
        &mut self,
        peer: PeerIndex,
        key: StreamKey,
        limits: &FetchLimits,
        now: Instant,
    ) -> u32 {
        let mut size = 0;
        if let Some(at) = self.at(peer) {
            let advertiser = &mut self.advertisers[at];
            advertiser.state = State::Asked;
            advertiser.ticket = None;
            advertiser.asked += 1;
            size = advertiser.size;
        }
        let whole = limits.hedge_max + Duration::from_nanos(u64::from(size) * 1_000_000_000 / SLOWEST);
        let round = self.requests / self.advertisers.len().max(1) as u32;
        let ends_at = now + whole * (1 << round.min(6));
        self.flights.push(Flight { peer, key, size, asked_at: now, ends_at, heard_at: None, blamed: false });
        self.open = None;
        self.requests += 1;
        size
    }

    /// Peers that failed may be asked again.
    pub(super) fn retry(&mut self) {
        self.retry_at = None;
        for advertiser in &mut self.advertisers {
            if advertiser.state == State::Failed {
                advertiser.state = State::Fresh;
            }
        }
    }

    pub(super) fn next_backoff(&mut self) -> Duration {
        let backoff = FIRST_BACKOFF * (1 << self.retries.min(6));
        self.retries += 1;
        backoff.min(LAST_BACKOFF)
    }

    /// Whether somebody could be asked now, budgets apart.
    pub(super) fn is_askable(&self, peers: &[Peer]) -> bool {
        let connected = |peer: PeerIndex| peers.get(peer.index()).is_some_and(|peer| peer.connected);
        self.advertisers.iter().any(|one| one.state == State::Fresh && connected(one.peer))
    }

    /// Whether every request in flight has been silent, or slow, for too long. True without any.
    pub(super) fn is_overdue(&self, now: Instant, peers: &[Peer], limits: &FetchLimits) -> bool {
        self.flights.iter().all(|flight| self.deadline(flight, peers, limits) <= now)
    }

    /// When patience with a request ends: after a silence that is long for its peer, or when it has lasted
    /// too long in all: a peer that trickles bytes must not hold up what others have.
    fn deadline(&self, flight: &Flight, peers: &[Peer], limits: &FetchLimits) -> Instant {
        if flight.blamed {
            return flight.asked_at;
        }
        let latency = peers.get(flight.peer.index()).and_then(|peer| peer.latency.estimate());
        let silence = latency.unwrap_or(limits.hedge_max / 4).max(limits.hedge_min).min(limits.hedge_max);
        (flight.heard_at.unwrap_or(flight.asked_at) + silence).min(flight.ends_at)
    }

    /// When something is to be done though nothing arrives, and what.
    pub(super) fn next_wake(
        &self,
        now: Instant,
        peers: &[Peer],
        limits: &FetchLimits,
    ) -> Option<(Instant, &'static str)> {
        let mut wakes = [self.not_before.map(|at| (at, "fetch grace")), None, None];
        wakes[1] = self.retry_at.map(|at| (at, "fetch retry"));
        wakes[2] = match self.open {
            Some(since) if self.advertisers.len() > 1 => {
                let ends = [limits.hedge_min, limits.hedge_max].map(|span| since + span);
                ends.into_iter().find(|at| *at > now).map(|at| (at, "fetch preference"))
            }
            Some(_) => None,
            None => {
                let last = self.flights.iter().map(|flight| self.deadline(flight, peers, limits)).max();
                let hopeless = self.flights.len() == MAX_FLIGHTS && !self.is_askable(peers);
                last.map(|at| if hopeless { at.max(now + limits.hedge_max) } else { at })
                    .map(|at| (at, "fetch silence"))
            }
        };
        wakes.into_iter().flatten().min()
    }
}
