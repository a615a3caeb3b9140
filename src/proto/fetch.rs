//! Which wanted bodies to ask for, and whom: one fetch per artifact, whatever the number of its advertisers,
//! within budgets of requests and bytes per peer, per class and for the lane.
//!
//! A fetch waits at each of its advertisers at once, and a link with room pulls the next request for its
//! peer; so a stalled link holds nothing up. A peer that is slower than another with room leaves the request
//! to that one for a moment, one time in ten (by default) to a random one, to keep learning. "Not found", a
//! broken stream or wrong bytes moves on at once; silence is hedged at another advertiser, two requests at a
//! time; when both are silent, or take too long, and a third peer could be asked, the older request is given
//! up, so each hostile member delays a body that an honest one has by at most two seconds and what the body
//! takes at 1 MiB a second.

mod books;
mod latency;
mod peer;
mod task;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use slab::Slab;

use crate::types::{ArtifactId, Class, Instant, KeyedState, PeerIndex, PerClass, Rng, StreamKey, TopicId};
pub use books::Asked;
use peer::{Load, Peer, Ticket};
use task::{Advertiser, Flight, State, Task};

/// Budgets of one lane's fetches.
#[derive(Debug, Clone)]
pub struct FetchLimits {
    /// Peers; indices at or above it are ignored.
    pub peers: usize,
    /// Requests in flight to one peer.
    pub per_peer: PerClass<u32>,
    /// Announced bytes in flight from one peer. A larger body is fetched when nothing else of its class is in
    /// flight there.
    pub per_peer_bytes: PerClass<u64>,
    /// Announced bytes in flight in the lane, but for those of peers that have been silent for too long. A peer of which
    /// nothing else of its class is in flight is asked for a body of any size: the sum stays below this and one body a peer.
    pub lane_bytes: PerClass<u64>,
    /// The shortest silence that is hedged. So long, too, is a request left to a faster peer.
    pub hedge_min: Duration,
    /// The longest silence that is not hedged.
    pub hedge_max: Duration,
    /// One fetch in so many goes to a random advertiser, to measure it; 0 for none. Default 10.
    pub explore_one_in: u64,
}

/// A request for the link to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Names it in [`Fetch::handle_progress`] and [`Fetch::handle_reply`]. It is [`FETCH_KEYS`] or above.
    pub key: StreamKey,
    /// The topic.
    pub topic: TopicId,
    /// The artifact.
    pub id: ArtifactId,
    /// Its class.
    pub class: Class,
    /// Bytes of its body as this peer announced it: take no more from it.
    pub size: u32,
}

/// Keys of requests begin here; lower ones are free for pushes, and those with the highest bit set are the transport's.
pub const FETCH_KEYS: u64 = 1 << 62;

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The body, and it hashes to the id.
    Found,
    /// The peer does not have it.
    NotFound,
    /// The peer serves too much already.
    Busy,
    /// The stream broke before the body was whole, or the body was larger than announced.
    Broken,
    /// A body that does not hash to the id.
    WrongBytes,
}

/// What the caller has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchEffect {
    /// Abandon the request: its answer is not wanted any more.
    Cancel {
        /// Whom it went to.
        peer: PeerIndex,
        /// Its key.
        key: StreamKey,
    },
    /// The peer sent bytes that are not the artifact. It is not asked for this one again.
    Fault {
        /// Who.
        peer: PeerIndex,
        /// The topic.
        topic: TopicId,
        /// The artifact.
        id: ArtifactId,
    },
    /// The peer let a request wait for too long.
    Silent {
        /// Who.
        peer: PeerIndex,
    },
}

/// The fetches of one lane, over all topics.
///
/// - What the tables say: [`handle_wanted`](Fetch::handle_wanted), then
///   [`handle_advertiser`](Fetch::handle_advertiser) for each peer that names the artifact;
///   [`handle_unadvertised`](Fetch::handle_unadvertised); [`handle_cancel`](Fetch::handle_cancel) when the
///   body came otherwise, or is not wanted or not advertised any more.
/// - What links say: [`handle_connected`](Fetch::handle_connected),
///   [`handle_disconnected`](Fetch::handle_disconnected), [`handle_progress`](Fetch::handle_progress),
///   [`handle_reply`](Fetch::handle_reply).
/// - What links ask: [`next_request`](Fetch::next_request) for each class when there is room, and
///   [`handle_full`](Fetch::handle_full) when there is none. `None` stands until the next reply, progress,
///   connection, want, timeout or full link, after which every link with
///   [`has_requests`](Fetch::has_requests) should ask again.
/// - Time: [`handle_timeout`](Fetch::handle_timeout) when [`poll_timeout`](Fetch::poll_timeout) says so.
///
/// Memory is bounded by what is wanted and advertised: about 250 bytes a fetch and 40 for each of its
/// advertisers. A fetch is named by topic **and** id: a hostile advert of the same id under another topic is
/// another fetch, and fails alone.
#[derive(Debug)]
pub struct Fetch {
    limits: FetchLimits,
    rng: Rng,
    tasks: Slab<Task>,
    by_id: HashMap<(TopicId, ArtifactId), usize, KeyedState>,
    peers: Vec<Peer>,
    lane: PerClass<Load>,
    timers: BTreeSet<(Instant, Timer)>,
    /// Numbers requests and tickets.
    count: u64,
    /// The latest time that was told.
    now: Instant,
}

/// At most one timer per task, and one per peer and class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Task(usize),
    /// Handling it does nothing: it lets the caller ask again.
    Busy(PeerIndex, Class),
}

/// What to do with the first ticket of a queue.
enum Considered {
    /// Drop it.
    Gone,
    /// Budgets have no room for it: nothing behind it may overtake.
    Blocked,
    /// A faster peer has room: let it.
    Declined,
    Take,
}

/// Tickets that are left to faster peers in one call, at most.
const SCAN: usize = 64;
/// Timers that are handled in one call, at most.
const TIMERS_PER_STEP: usize = 256;

impl Fetch {
    /// Without fetches. All randomness (the key of the look-up by id, exploration) comes from `seed`.
    pub fn new(limits: FetchLimits, mut seed: Rng) -> Fetch {
        Fetch {
            by_id: HashMap::with_hasher(KeyedState::new(&mut seed)),
            peers: (0..limits.peers).map(|_| Peer::default()).collect(),
            limits,
            rng: seed,
            tasks: Slab::new(),
            lane: PerClass::default(),
            timers: BTreeSet::new(),
            count: 0,
            now: Instant::ZERO,
        }
    }

    /// `id` is wanted; nobody is asked before `not_before` (a relayed advert of a body that its maker would
    /// push waits a grace). When it is wanted already, the earlier time counts.
    pub fn handle_wanted(
        &mut self,
        topic: TopicId,
        id: ArtifactId,
        class: Class,
        not_before: Option<Instant>,
        now: Instant,
    ) {
        self.tick(now);
        let slot = match self.by_id.get(&(topic, id)) {
            Some(&slot) => {
                let task = &mut self.tasks[slot];
                task.not_before = task.not_before.zip(not_before).map(|(a, b)| a.min(b));
                slot
            }
            None => {
                let explore = self.rng.one_in(self.limits.explore_one_in).then(|| self.rng.next_u64());
                let slot = self.tasks.insert(Task::new(topic, id, class, not_before, explore));
                self.by_id.insert((topic, id), slot);
                slot
            }
        };
        self.settle(slot);
    }

    /// `peer` advertises `id` with a body of `size` bytes. Nothing happens when `id` is not wanted.
    pub fn handle_advertiser(&mut self, topic: TopicId, id: ArtifactId, peer: PeerIndex, size: u32) {
        let Some(&slot) = self.by_id.get(&(topic, id)) else { return };
        if peer.index() < self.peers.len() && self.tasks[slot].add(peer, size) {
            self.settle(slot);
        }
    }

    /// `peer` no longer advertises `id`: a request to it is abandoned. The fetch goes on, and waits when
    /// nobody is left.
    pub fn handle_unadvertised(
        &mut self,
        topic: TopicId,
        id: ArtifactId,
        peer: PeerIndex,
        fx: &mut Vec<FetchEffect>,
    ) {
        let Some(&slot) = self.by_id.get(&(topic, id)) else { return };
        let task = &mut self.tasks[slot];
        let flying = task.flights.iter().find(|flight| flight.peer == peer).map(|flight| flight.key);
        if let Some(key) = flying {
            self.end_flight(slot, key, State::Fresh);
            fx.push(FetchEffect::Cancel { peer, key });
        }
        let task = &mut self.tasks[slot];
        let class = task.class;
        if let Some(Advertiser { ticket: Some(_), .. }) = task.remove(peer) {
            self.count_stale(peer, class);
        }
        self.settle(slot);
    }

    /// `id` is not to be fetched any more; requests for it are abandoned.
    pub fn handle_cancel(&mut self, topic: TopicId, id: ArtifactId, fx: &mut Vec<FetchEffect>) {
        if let Some(&slot) = self.by_id.get(&(topic, id)) {
            self.end_task(slot, fx);
        }
    }

    /// `peer` can be asked.
    pub fn handle_connected(&mut self, peer: PeerIndex) {
        if let Some(peer) = self.peers.get_mut(peer.index()) {
            peer.connected = true;
        }
    }

    /// `peer` cannot be asked: requests in flight to it are lost, and go on elsewhere.
    pub fn handle_disconnected(&mut self, peer: PeerIndex, now: Instant) {
        self.tick(now);
        let Some(state) = self.peers.get_mut(peer.index()) else { return };
        state.connected = false;
        for class in Class::ALL {
            let busy = std::mem::take(&mut state.busy[class]);
            self.timers.remove(&(busy.until, Timer::Busy(peer, class)));
        }
        let lost: Vec<_> = state.flights.iter().map(|(key, slot)| (*key, *slot)).collect();
        for (key, slot) in lost {
            self.end_flight(slot, key, State::Fresh);
            self.settle(slot);
        }
    }

    /// Whether `peer` is to be asked only when no other could be.
    pub fn handle_standing(&mut self, peer: PeerIndex, poor: bool) {
        if let Some(peer) = self.peers.get_mut(peer.index()) {
            peer.poor = poor;
        }
    }

    /// Bytes of the answer arrived: the peer is not silent.
    pub fn handle_progress(&mut self, peer: PeerIndex, key: StreamKey, now: Instant) {
        self.tick(now);
        let Some(state) = self.peers.get_mut(peer.index()) else { return };
        let Some(&slot) = state.flights.get(&key) else { return };
        let task = &mut self.tasks[slot];
        let Some(at) = task.flights.iter().position(|flight| flight.key == key) else { return };
        let flight = &mut task.flights[at];
        let first = flight.heard_at.replace(now).is_none();
        if first {
            state.latency.observe(now.saturating_since(flight.asked_at));
        }
        // It is waited for again, unless it has lasted too long in all.
        let resumed = flight.blamed && now < flight.ends_at;
        if resumed {
            flight.blamed = false;
            self.lane[task.class].add(flight.size);
            task.open = None;
        }
        // Patience follows what was just measured; later progress only moves the deadline on, which the timer
        // finds out when it fires.
        if first || resumed {
            self.settle(slot);
        }
    }

    /// A request was answered. Tells which fetch it was; `None` when the request is not (or no more) in
    /// flight.
    ///
    /// With `Found` the fetch is over and other requests for it are abandoned; else it goes on elsewhere.
    pub fn handle_reply(
        &mut self,
        peer: PeerIndex,
        key: StreamKey,
        outcome: Outcome,
        now: Instant,
        fx: &mut Vec<FetchEffect>,
    ) -> Option<(TopicId, ArtifactId)> {
        self.tick(now);
        let state = self.peers.get_mut(peer.index())?;
        let slot = *state.flights.get(&key)?;
        let task = &mut self.tasks[slot];
        let (topic, id, class) = (task.topic, task.id, task.class);
        let flight = task.flight_mut(key)?;
        if flight.heard_at.is_none() && outcome != Outcome::Broken {
            state.latency.observe(now.saturating_since(flight.asked_at));
        }
        state.latency.judge(outcome);
        match outcome {
            Outcome::Found => {
                state.busy[class].relax();
                self.end_flight(slot, key, State::Fresh);
                self.end_task(slot, fx);
                return Some((topic, id));
            }
            Outcome::NotFound | Outcome::Broken => self.end_flight(slot, key, State::Failed),
            Outcome::WrongBytes => {
                self.end_flight(slot, key, State::Banned);
                fx.push(FetchEffect::Fault { peer, topic, id });
            }
            Outcome::Busy => {
                let (was, until) = state.busy[class].extend(now);
                self.timers.remove(&(was, Timer::Busy(peer, class)));
                self.timers.insert((until, Timer::Busy(peer, class)));
                self.end_flight(slot, key, State::Fresh);
            }
        }
        self.settle(slot);
        Some((topic, id))
    }

    /// The next request of `class` that `peer` should serve now. It counts as in flight from now on.
    pub fn next_request(&mut self, peer: PeerIndex, class: Class, now: Instant) -> Option<Request> {
        self.tick(now);
        if let Some(peer) = self.peers.get_mut(peer.index()) {
            peer.full = false;
        }
        self.next_of_class(peer, class)
    }

    /// The link to `peer` takes nothing now: until it asks for a request, nothing is left to it.
    pub fn handle_full(&mut self, peer: PeerIndex) {
        if let Some(peer) = self.peers.get_mut(peer.index()) {
            peer.full = true;
        }
    }

    /// Whether a request may be waiting for `peer`. True, too, while budgets or faster peers hold it back.
    pub fn has_requests(&self, peer: PeerIndex) -> bool {
        let waiting = |peer: &Peer| Class::ALL.iter().any(|class| !peer.queues[*class].tickets.is_empty());
        self.peers.get(peer.index()).is_some_and(|peer| peer.connected && waiting(peer))
    }

    /// Handles what is due: graces that end, silences, retries. A call handles a bounded number; the rest
    /// stays due.
    pub fn handle_timeout(&mut self, now: Instant, fx: &mut Vec<FetchEffect>) {
        self.tick(now);
        let due: Vec<_> = self.timers.range(..=(now, Timer::LAST)).take(TIMERS_PER_STEP).copied().collect();
        for (at, timer) in due {
            if !self.timers.remove(&(at, timer)) {
                continue;
            }
            if let Timer::Task(slot) = timer
                && let Some(task) = self.tasks.get_mut(slot)
            {
                task.wake = None;
                self.wake(slot, fx);
            }
        }
    }

    /// When to call [`handle_timeout`](Fetch::handle_timeout), and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let (at, timer) = *self.timers.first()?;
        let why = match timer {
            Timer::Busy(..) => "busy peer",
            Timer::Task(slot) => {
                self.tasks.get(slot).and_then(|task| task.wake).map_or("fetch", |wake| wake.1)
            }
        };
        Some((at, why))
    }

    /// Whether `id` is being fetched, or waits to be.
    pub fn is_wanted(&self, topic: TopicId, id: &ArtifactId) -> bool {
        self.by_id.contains_key(&(topic, *id))
    }

    /// Fetches.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Requests in flight, and the bytes they announce.
    pub fn in_flight(&self, class: Class) -> (u32, u64) {
        (self.lane[class].requests, self.lane[class].bytes)
    }

    /// How long `peer` may be silent: its smoothed latency and four deviations, once measured.
    pub fn latency(&self, peer: PeerIndex) -> Option<Duration> {
        self.peers.get(peer.index())?.latency.estimate()
    }

    fn tick(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    fn next_of_class(&mut self, peer: PeerIndex, class: Class) -> Option<Request> {
        let (mut left, mut declined) = (self.peers.get(peer.index())?.queues[class].tickets.len(), 0);
        while left > 0 && declined < SCAN && self.has_room(peer, class) {
            left -= 1;
            let ticket = *self.peers[peer.index()].queues[class].tickets.front()?;
            let considered = self.consider(peer, class, ticket);
            let queue = &mut self.peers[peer.index()].queues[class];
            match considered {
                Considered::Blocked => return None,
                Considered::Gone => drop(queue.tickets.pop_front()),
                Considered::Declined => {
                    declined += 1;
                    queue.tickets.rotate_left(1);
                }
                Considered::Take => {
                    queue.tickets.pop_front();
                    return Some(self.start(peer, ticket.slot));
                }
            }
        }
        None
    }

    /// Whether `peer` may be sent one more request of `class`, bytes apart.
    fn has_room(&self, peer: PeerIndex, class: Class) -> bool {
        let state = &self.peers[peer.index()];
        state.connected
            && state.busy[class].until <= self.now
            && state.load[class].requests < self.limits.per_peer[class]
    }

    fn consider(&mut self, peer: PeerIndex, class: Class, ticket: Ticket) -> Considered {
        let found = self.tasks.get_mut(ticket.slot);
        let found = found.and_then(|task| task.at(peer).map(|at| (task, at)));
        let Some((task, at)) = found.filter(|(task, at)| task.advertisers[*at].ticket == Some(ticket.number))
        else {
            self.peers[peer.index()].queues[class].stale -= 1;
            return Considered::Gone;
        };
        let resumed = task.open.is_some() && !task.is_overdue(self.now, &self.peers, &self.limits);
        if resumed {
            task.open = None;
        }
        if task.open.is_none() || task.advertisers[at].state != State::Fresh {
            task.advertisers[at].ticket = None;
            if resumed {
                self.settle(ticket.slot);
            }
            return Considered::Gone;
        }
        let size = u64::from(task.advertisers[at].size);
        let load = &self.peers[peer.index()].load[class];
        if !load.fits(size, self.limits.per_peer_bytes[class]) {
            return Considered::Blocked;
        }
        // Others' answers, slow on purpose, do not keep a peer from being asked for one body at a time.
        if load.requests > 0 && !self.lane[class].fits(size, self.limits.lane_bytes[class]) {
            return Considered::Blocked;
        }
        if self.is_better_elsewhere(peer, ticket.slot) { Considered::Declined } else { Considered::Take }
    }

    /// Whether another advertiser with room should have this fetch: one that was asked for it less often, for as long as a
    /// silence may last, or a faster one for a moment. No longer: its link may have no room though its budget has.
    fn is_better_elsewhere(&self, peer: PeerIndex, slot: usize) -> bool {
        let task = &self.tasks[slot];
        let Some(open) = task.open.map(|since| self.now.saturating_since(since)) else { return false };
        let rank = |of: PeerIndex| self.peers[of.index()].rank(of, task.explore);
        let (own, asked) = (rank(peer), task.at(peer).map_or(0, |at| task.advertisers[at].asked));
        task.advertisers.iter().any(|other| {
            let load = &self.peers[other.peer.index()].load[task.class];
            let better = match other.asked.cmp(&asked) {
                Ordering::Less => open < self.limits.hedge_max,
                Ordering::Equal => open < self.limits.hedge_min && rank(other.peer) < own,
                Ordering::Greater => false,
            };
            better
                && other.peer != peer
                && other.state == State::Fresh
                && !self.peers[other.peer.index()].full
                && self.has_room(other.peer, task.class)
                && load.fits(other.size.into(), self.limits.per_peer_bytes[task.class])
        })
    }

    fn start(&mut self, peer: PeerIndex, slot: usize) -> Request {
        self.count += 1;
        let key = StreamKey(FETCH_KEYS | self.count);
        let task = &mut self.tasks[slot];
        let size = task.asked(peer, key, &self.limits, self.now);
        let request = Request { key, topic: task.topic, id: task.id, class: task.class, size };
        let state = &mut self.peers[peer.index()];
        state.flights.insert(key, slot);
        state.load[request.class].add(size);
        self.lane[request.class].add(size);
        self.settle(slot);
        request
    }

    /// Takes a request out of all books; its peer's standing with the task becomes `state`.
    fn end_flight(&mut self, slot: usize, key: StreamKey, state: State) {
        let task = &mut self.tasks[slot];
        let Some(at) = task.flights.iter().position(|flight| flight.key == key) else { return };
        let Flight { peer, size, blamed, .. } = task.flights.remove(at);
        if let Some(at) = task.at(peer) {
            task.advertisers[at].state = state;
        }
        if state == State::Failed && task.retry_at.is_none() {
            task.retry_at = Some(self.now + task.next_backoff());
        }
        let peer = &mut self.peers[peer.index()];
        peer.flights.remove(&key);
        peer.load[task.class].subtract(size);
        if !blamed {
            self.lane[task.class].subtract(size);
        }
    }

    fn end_task(&mut self, slot: usize, fx: &mut Vec<FetchEffect>) {
        while let Some(&Flight { peer, key, .. }) = self.tasks[slot].flights.first() {
            self.end_flight(slot, key, State::Fresh);
            fx.push(FetchEffect::Cancel { peer, key });
        }
        let task = self.tasks.remove(slot);
        self.by_id.remove(&(task.topic, task.id));
        if let Some((at, _)) = task.wake {
            self.timers.remove(&(at, Timer::Task(slot)));
        }
        for advertiser in task.advertisers.iter().filter(|advertiser| advertiser.ticket.is_some()) {
            self.count_stale(advertiser.peer, task.class);
        }
    }

    /// A ticket of `peer` has lost its meaning. When most have, they are swept out.
    fn count_stale(&mut self, peer: PeerIndex, class: Class) {
        let queue = &mut self.peers[peer.index()].queues[class];
        queue.stale += 1;
        if queue.stale > 32 + queue.tickets.len() / 2 {
            queue.stale = 0;
            queue.tickets.retain(|ticket| {
                let task = self.tasks.get(ticket.slot);
                let number = task.and_then(|task| task.advertisers[task.at(peer)?].ticket);
                number == Some(ticket.number)
            });
        }
    }

    /// Brings a task's tickets and timer in line with its state. Called after every change.
    fn settle(&mut self, slot: usize) {
        let task = &mut self.tasks[slot];
        if task.not_before.is_some_and(|at| at <= self.now) {
            task.not_before = None;
        }
        if task.flights.is_empty() && task.not_before.is_none() {
            task.open.get_or_insert(self.now);
        }
        if task.open.is_some() {
            for advertiser in &mut task.advertisers {
                if advertiser.state == State::Fresh && advertiser.ticket.is_none() {
                    self.count += 1;
                    advertiser.ticket = Some(self.count);
                    let queue = &mut self.peers[advertiser.peer.index()].queues[task.class];
                    queue.tickets.push_back(Ticket { slot, number: self.count });
                }
            }
        }
        let wake = task.next_wake(self.now, &self.peers, &self.limits);
        if wake != task.wake {
            if let Some((at, _)) = task.wake {
                self.timers.remove(&(at, Timer::Task(slot)));
            }
            if let Some((at, _)) = wake {
                self.timers.insert((at, Timer::Task(slot)));
            }
            task.wake = wake;
        }
    }

    /// A task's timer has fired.
    fn wake(&mut self, slot: usize, fx: &mut Vec<FetchEffect>) {
        let task = &mut self.tasks[slot];
        if task.retry_at.is_some_and(|at| at <= self.now) {
            task.retry();
        }
        let waits = task.open.is_none() && !task.flights.is_empty();
        if waits && task.is_overdue(self.now, &self.peers, &self.limits) {
            for flight in task.flights.iter_mut().filter(|flight| !flight.blamed) {
                // The lane's bytes are for those who answer.
                flight.blamed = true;
                self.lane[task.class].subtract(flight.size);
                fx.push(FetchEffect::Silent { peer: flight.peer });
                let waited = self.now.saturating_since(flight.heard_at.unwrap_or(flight.asked_at));
                self.peers[flight.peer.index()].latency.observe_silence(waited);
            }
            let askable = task.is_askable(&self.peers);
            if let [Flight { peer, key, .. }, _] = task.flights[..]
                && askable
            {
                self.end_flight(slot, key, State::Failed);
                fx.push(FetchEffect::Cancel { peer, key });
            }
            let task = &mut self.tasks[slot];
            if task.flights.len() < task::MAX_FLIGHTS {
                task.open = Some(self.now);
            }
        }
        self.settle(slot);
    }
}

impl Timer {
    const LAST: Timer = Timer::Busy(PeerIndex(u16::MAX), Class::Bulk);
}
