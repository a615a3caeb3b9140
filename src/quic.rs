//! QUIC, sans-IO: one [`Quic`] per lane turns datagrams into the engine's words and back.
//!
//! It wraps quinn-proto: endpoint, connections, the dial policy, and streams. The engine never sees a stream
//! or a connection, this layer never sees a table; between them lie [`wire::Outgoing`](crate::wire::Outgoing)
//! and [`wire::Incoming`](crate::wire::Incoming). It reads no clock, opens no socket and starts no thread.
//!
//! Identity is an Ed25519 key, shown as a raw public key (RFC 7250): TLS 1.3 only, both sides authenticated, no
//! certificate to parse (a key is 44 fixed bytes). Of two members the one with the lower id dials. There is no
//! 0-RTT, no ticket, no address token beyond Retry, no migration.
//!
//! What a peer can make us hold is bounded by [`QuicConfig`]; what a stranger can make us hold, by the member
//! count.

mod census;
mod config;
mod congestion;
mod counters;
mod dial;
mod door;
mod driver;
mod egress;
mod events;
mod handshake;
mod identity;
mod ingress;
mod keys;
mod lines;
mod link;
mod members;
mod pace;
mod places;
mod shares;
mod timers;
mod tls;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use quinn_proto::{ConnectionHandle, DatagramEvent, EcnCodepoint, Endpoint, TransportConfig};

pub use census::StreamCensus;
pub use config::{HashOf, QuicConfig, QuicError};
pub use counters::{Faults, QuicCounters, Rejection, Traffic};
pub use identity::{Identity, IdentityError};

use config::{Clock, FirstIds};
use congestion::Congestion;
use dial::{Backoff, Dialer};
use door::{Door, Verdict};
use egress::SendWindows;
use lines::Lines;
use link::{Abandoned, Link, Phase, Shared, StreamLimits};
use timers::{Timer, Timers};
use tls::Tls;

pub(crate) use handshake::{Handshakes, alert_of, identity_of};

use crate::metrics::Stages;
use crate::types::{
    Classes, ConnectionNumber, Ecn, Instant, Membership, NodeId, PeerIndex, PerClass, Received, Rng,
    StreamKey, Transmit,
};
use crate::wire::{CloseCode, Incoming, Outgoing};

/// Transmits (GSO batches) that one connection gets per turn, so that none starves the others. What the peer has
/// acknowledged since the turn before is rarely worth more than two whole batches: a third is a partial one, which costs
/// as much as a whole one (two instead of sixteen: segments per batch 45 instead of 35, CPU per byte less by 4 to 9 %).
const TRANSMITS_PER_TURN: u32 = 2;
/// Answers of the endpoint itself that may wait to be sent.
const MAX_RESPONSES: usize = 64;
/// The most segments that the kernel splits (`UDP_MAX_SEGMENTS`), and the most bytes of one UDP send over
/// IPv4.
const MAX_SEGMENTS: usize = 64;
const MAX_TRANSMIT: usize = 65_507;

/// What happened to a peer's link.
#[derive(Debug)]
pub enum Event {
    /// A connection stands, and the peer is who it should be.
    Connected {
        /// Grows with every connection of this lane, over all peers.
        connection: ConnectionNumber,
    },
    /// It is gone, and every stream with it: no event of one follows.
    Disconnected {
        /// Which.
        connection: ConnectionNumber,
        /// Why.
        reason: Disconnect,
    },
    /// The link brought something.
    Link(Incoming),
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disconnect {
    /// This side closed it.
    Closed(CloseCode),
    /// The peer closed it.
    ClosedByPeer(CloseCode),
    /// The peer no longer knew it: it restarted.
    Restarted,
    /// Nothing came for the idle timeout.
    Silent,
    /// A side found the other in breach of QUIC, or closed for a reason that is not ours (RFC 9000 §20).
    Transport {
        /// The error code.
        code: u64,
    },
}

/// A member of the subnet, as the transport sees it.
struct Peer {
    id: NodeId,
    dialer: Dialer,
    /// We dial it: our id is the lower one.
    dials: bool,
    /// Its live connection.
    live: Option<usize>,
    /// Our attempt to reach it.
    dialling: Option<usize>,
    /// When it stands in the timers.
    dial_at: Option<Instant>,
}

/// One lane's transport.
///
/// - **in**: [`handle_received`](Self::handle_received), [`handle_timeout`](Self::handle_timeout),
///   [`set_membership`](Self::set_membership), [`send`](Self::send), [`reset`](Self::reset),
///   [`disconnect`](Self::disconnect), [`close`](Self::close)
/// - **out**: [`poll_event`](Self::poll_event) after each of them until it is empty,
///   [`poll_transmit`](Self::poll_transmit), [`poll_timeout`](Self::poll_timeout)
///
/// The caller begins every turn with [`begin_turn`](Self::begin_turn), never passes a `now` that is earlier
/// than the one before, and asks [`room`](Self::room) before it sends.
pub struct Quic {
    config: QuicConfig,
    clock: Clock,
    handshakes: Box<dyn Handshakes>,
    congestion: Arc<Congestion>,
    transport: Arc<TransportConfig>,
    endpoint: Endpoint,
    first_ids: Arc<FirstIds>,
    rng: Rng,
    membership: Arc<Membership>,
    /// Whether we are a member: others are neither dialled nor accepted.
    member: bool,
    peers: Vec<Peer>,
    /// By connection handle.
    links: Vec<Option<Box<Link>>>,
    door: Door,
    /// Handshakes that others began.
    pending: usize,
    timers: Timers,
    /// Connections that may have something to transmit.
    lines: Lines,
    /// Packets of the endpoint itself.
    responses: VecDeque<(Transmit, Vec<u8>)>,
    shared: Shared,
    /// Keys that were reset when their last event was queued already.
    revoked: BTreeSet<(PeerIndex, StreamKey)>,
    last_connection: u64,
    closing: bool,
}

impl Quic {
    /// A transport without connections; its dials are due at once.
    pub fn new(config: QuicConfig) -> Result<Quic, QuicError> {
        let tls = Tls::new(&config.identity)?;
        Quic::with_handshakes(config, Box::new(tls))
    }

    /// The same with another handshake than TLS: for the simulator.
    pub(crate) fn with_handshakes(
        config: QuicConfig,
        handshakes: Box<dyn Handshakes>,
    ) -> Result<Quic, QuicError> {
        config.check()?;
        let clock = Clock::new(config.epoch);
        let mut rng = Rng::new(config.seed);
        let congestion = config.congestion();
        let transport = config.transport(&congestion)?;
        let server = config.server(&*handshakes, &config.membership, &transport, clock.clone())?;
        let endpoint = Endpoint::new(config.endpoint()?, Some(server), true, None);
        let send_windows = SendWindows { bulk: config.send_window, urgent_reserve: config.urgent_reserve };
        let limits = StreamLimits {
            artifact_limit: config.artifact_limit,
            pushes_in_assembly: config.pushes_in_assembly,
            send_windows,
            hash_of: config.hash_of.clone(),
        };
        let membership = config.membership.clone();
        let mut quic = Quic {
            clock,
            handshakes,
            congestion,
            transport,
            endpoint,
            first_ids: Arc::new(FirstIds::new(&mut rng)),
            rng,
            door: Door::new(&membership, config.prefilter),
            member: false,
            peers: Vec::new(),
            links: Vec::new(),
            pending: 0,
            timers: Timers::default(),
            lines: Lines::default(),
            responses: VecDeque::new(),
            shared: Shared::new(limits),
            revoked: BTreeSet::new(),
            last_connection: 0,
            closing: false,
            membership: membership.clone(),
            config,
        };
        quic.adopt(Instant::ZERO, &membership);
        Ok(quic)
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.config.identity.id()
    }

    /// How long streams wait, by class.
    pub fn stages(&self) -> &Arc<PerClass<Stages>> {
        &self.shared.stages
    }

    /// Begins a turn of the lane: every connection may transmit its share again.
    pub fn begin_turn(&mut self) {
        self.shared.turn += 1;
        self.lines.begin_turn(&mut self.links);
    }

    /// Handles datagrams of one address.
    pub fn handle_received(&mut self, now: Instant, received: Received) {
        self.set_now(now);
        let Received { from, ecn, stride, mut data } = received;
        let stride = if stride == 0 { data.len() } else { stride };
        let datagrams = if stride == 0 { 0 } else { data.len().div_ceil(stride) as u64 };
        self.shared.counters.traffic.datagrams_in += datagrams;
        self.shared.counters.traffic.bytes_in += data.len() as u64;
        if !self.door.admits(from.ip()) {
            self.shared.counters.reject_many(Rejection::UnknownSource, datagrams);
            return;
        }
        let ecn = ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn.bits()));
        let mut touched = None;
        while !data.is_empty() {
            // The last one is the whole rest: a datagram that came alone is not shared, which takes memory.
            let datagram =
                if data.len() <= stride { std::mem::take(&mut data) } else { data.split_to(stride) };
            if let Some(handle) = self.handle_datagram(now, from, ecn, datagram) {
                // One address is one peer, and that has one connection: other cases are rare.
                if touched.is_some_and(|other| other != handle) {
                    touched.into_iter().for_each(|other| self.drive(other, now));
                }
                touched = Some(handle);
            }
        }
        touched.into_iter().for_each(|handle| self.drive(handle, now));
    }

    /// Handles one datagram, and tells which connection it was for.
    fn handle_datagram(
        &mut self,
        now: Instant,
        from: std::net::SocketAddr,
        ecn: Option<EcnCodepoint>,
        datagram: BytesMut,
    ) -> Option<usize> {
        if is_initial(&datagram) && !self.door.admits_initial(now, from.ip()) {
            self.shared.counters.reject(Rejection::RateLimited);
            return None;
        }
        let mut answer = Vec::new();
        let at = self.clock.to_std(now);
        match self.endpoint.handle(at, from, None, ecn, datagram, &mut answer)? {
            DatagramEvent::ConnectionEvent(ConnectionHandle(handle), event) => {
                let link = self.links.get_mut(handle)?.as_mut()?;
                link.connection.handle_event(event);
                Some(handle)
            }
            DatagramEvent::NewConnection(incoming) => self.handle_incoming(now, incoming),
            DatagramEvent::Response(transmit) => {
                self.respond(&transmit, answer);
                None
            }
        }
    }

    /// Handles whatever is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.set_now(now);
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Dial(peer) => {
                    if let Some(entry) = self.peers.get_mut(peer.index()) {
                        entry.dial_at = None;
                        self.dial(peer, now);
                    }
                }
                Timer::Connection(handle) => {
                    let Some(Some(link)) = self.links.get_mut(handle) else { continue };
                    link.deadline = None;
                    link.connection.handle_timeout(self.clock.to_std(now));
                    if let Phase::Handshake { deadline, .. } = link.phase
                        && deadline <= now
                    {
                        self.shared.counters.reject(Rejection::TimedOut);
                        self.abort_handshake(handle, now);
                    }
                    self.drive(handle, now);
                }
            }
        }
    }

    /// The earliest time at which [`handle_timeout`](Self::handle_timeout) or, if it has passed already,
    /// [`poll_transmit`](Self::poll_transmit) has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let transmits = !self.lines.is_empty() || !self.responses.is_empty();
        if transmits { Some(Instant::ZERO) } else { self.timers.next() }
    }

    /// The classes for which [`send`](Self::send) is taken now: none when the peer is not connected.
    pub fn room(&self, peer: PeerIndex) -> Classes {
        self.live(peer).map_or(Classes::NONE, Link::room)
    }

    /// Queues something for which [`room`](Self::room) was found. Without a connection it is dropped: the engine has been told
    /// so. Keys that the engine chooses have bit 63 clear. It enters QUIC's buffer with the next [`write`](Self::write) or
    /// [`poll_transmit`](Self::poll_transmit), in an order that follows from all that is queued by then.
    pub fn send(&mut self, peer: PeerIndex, outgoing: Outgoing) {
        let Some(handle) = self.peers.get(peer.index()).and_then(|peer| peer.live) else { return };
        let Some(Some(link)) = self.links.get_mut(handle) else { return };
        link.send(outgoing, &mut self.shared);
        self.lines.join(handle, link);
    }

    /// Moves what is queued for a peer into QUIC's buffer, as far as windows and shares allow. Whether any went: there may be
    /// [`room`](Self::room) again.
    pub fn write(&mut self, peer: PeerIndex) -> bool {
        let Some(handle) = self.peers.get(peer.index()).and_then(|peer| peer.live) else { return false };
        let Some(Some(link)) = self.links.get_mut(handle) else { return false };
        let written = link.write(&mut self.shared);
        self.lines.join(handle, link);
        written
    }

    /// Abandons a stream: what we send is reset, what we receive is stopped. No further event of it comes but
    /// for [`Incoming::Progress`] that is queued already. Unknown keys are ignored.
    pub fn reset(&mut self, peer: PeerIndex, key: StreamKey) {
        let Some(handle) = self.peers.get(peer.index()).and_then(|peer| peer.live) else { return };
        let Some(Some(link)) = self.links.get_mut(handle) else { return };
        match link.reset(key, &mut self.shared) {
            Abandoned::Unknown => return,
            Abandoned::EventQueued => drop(self.revoked.insert((peer, key))),
            Abandoned::Silently => (),
        }
        self.drive(handle, self.shared.now);
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<(PeerIndex, Event)> {
        loop {
            let (peer, event) = self.shared.events.pop()?;
            if let Event::Link(incoming) = &event
                && let Some(key) = keys::ended_by(incoming)
            {
                let live = self.peers.get(peer.index()).and_then(|peer| peer.live);
                if let Some(Some(link)) = live.and_then(|handle| self.links.get_mut(handle)) {
                    link.polled(incoming);
                }
                if !self.revoked.is_empty() && self.revoked.remove(&(peer, key)) {
                    continue;
                }
            }
            return Some((peer, event));
        }
    }

    /// The next datagrams to send: `buf` is emptied and filled with one GSO batch. Connections take turns;
    /// one that had its share of this turn waits for [`begin_turn`](Self::begin_turn).
    pub fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmit> {
        self.set_now(now);
        buf.clear();
        let transmit = self.poll_response(buf).or_else(|| self.poll_connections(now, buf))?;
        let counters = &mut self.shared.counters;
        counters.traffic.transmits += 1;
        counters.traffic.datagrams_out += transmit.len.div_ceil(transmit.segment.max(1)) as u64;
        counters.traffic.bytes_out += transmit.len as u64;
        Some(transmit)
    }

    fn poll_response(&mut self, buf: &mut Vec<u8>) -> Option<Transmit> {
        let (transmit, bytes) = self.responses.pop_front()?;
        buf.extend_from_slice(&bytes);
        Some(transmit)
    }

    fn poll_connections(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmit> {
        while let Some(handle) = self.lines.next_urgent() {
            let Some(Some(link)) = self.links.get_mut(handle) else { continue };
            link.urged = false;
            // It takes its turn as others do, with no more than what is urgent.
            if self.has_share(handle)
                && let Some(transmit) = self.poll_connection(handle, now, buf, true)
            {
                return Some(transmit);
            }
        }
        while let Some(handle) = self.lines.next() {
            if !self.has_share(handle) {
                self.lines.cap(handle);
                continue;
            }
            if let Some(Some(link)) = self.links.get_mut(handle) {
                link.ready = false;
            }
            if let Some(transmit) = self.poll_connection(handle, now, buf, false) {
                return Some(transmit);
            }
        }
        None
    }

    /// Whether a connection may transmit in this turn.
    fn has_share(&mut self, handle: usize) -> bool {
        let Some(Some(link)) = self.links.get_mut(handle) else { return true };
        if std::mem::replace(&mut link.turn, self.shared.turn) != self.shared.turn {
            link.transmits = 0;
        }
        link.transmits < TRANSMITS_PER_TURN
    }

    /// One batch of a connection's datagrams; `urgent`: as many as its urgent bytes fill.
    fn poll_connection(
        &mut self,
        handle: usize,
        now: Instant,
        buf: &mut Vec<u8>,
        urgent: bool,
    ) -> Option<Transmit> {
        let link = self.links.get_mut(handle)?.as_mut()?;
        if link.unflushed {
            link.write(&mut self.shared);
        }
        let mtu = usize::from(link.connection.current_mtu()).max(1);
        let fitting = MAX_SEGMENTS.min(MAX_TRANSMIT / mtu).max(1);
        let segments = if urgent { fitting.min(link.urgent() / mtu + 1) } else { fitting };
        let transmit = link.connection.poll_transmit(self.clock.to_std(now), segments, buf);
        if link.transmitted(transmit.as_ref()) {
            link.transmits += 1;
            self.lines.join(handle, link);
        }
        self.reschedule(handle);
        transmit.map(|transmit| of_quinn(&transmit))
    }

    /// Closes the peer's connection; if we are the ones who dial, a new one will be tried after a wait.
    pub fn disconnect(&mut self, now: Instant, peer: PeerIndex, code: CloseCode) {
        self.set_now(now);
        if let Some(handle) = self.peers.get(peer.index()).and_then(|peer| peer.live) {
            self.close_link(handle, code, now);
        }
    }

    /// Closes every connection and opens none from now on. Done when [`is_drained`](Self::is_drained); peers
    /// learn of it from the first packets that [`poll_transmit`](Self::poll_transmit) then yields.
    pub fn close(&mut self, now: Instant, code: CloseCode) {
        self.set_now(now);
        self.closing = true;
        for handle in 0..self.links.len() {
            self.close_link(handle, code, now);
        }
    }

    /// Whether no connection is left, not even one that waits for late packets.
    pub fn is_drained(&self) -> bool {
        self.links.iter().all(Option::is_none)
    }

    /// Smoothed round-trip time to a connected peer.
    pub fn srtt(&self, peer: PeerIndex) -> Option<Duration> {
        Some(self.live(peer)?.connection.rtt())
    }

    /// The connection of a peer that is connected.
    pub fn connection(&self, peer: PeerIndex) -> Option<ConnectionNumber> {
        match self.live(peer)?.phase {
            Phase::Live { number, .. } => Some(number),
            Phase::Handshake { .. } | Phase::Closing => None,
        }
    }

    /// Peers that are connected.
    pub fn connected(&self) -> usize {
        self.peers.iter().filter(|peer| peer.live.is_some()).count()
    }

    /// Counts since the start, brought up to date (a look at every connection: for housekeeping).
    pub fn counters(&mut self) -> &QuicCounters {
        for link in self.links.iter_mut().flatten() {
            count_losses(link, &mut self.shared);
        }
        &self.shared.counters
    }

    fn live(&self, peer: PeerIndex) -> Option<&Link> {
        self.links.get(self.peers.get(peer.index())?.live?)?.as_deref()
    }

    /// Hands in the time, which every call that takes `now` does, too.
    pub fn set_now(&mut self, now: Instant) {
        self.shared.now = now;
        self.clock.set(now);
    }

    fn backoff(&self) -> Backoff {
        Backoff { min: self.config.dial_backoff_min, max: self.config.dial_backoff_max }
    }

    /// Queues a packet of the endpoint itself.
    fn respond(&mut self, transmit: &quinn_proto::Transmit, mut bytes: Vec<u8>) {
        if self.responses.len() >= MAX_RESPONSES {
            self.shared.counters.traffic.responses_dropped += 1;
            return;
        }
        bytes.truncate(transmit.size);
        self.responses.push_back((of_quinn(transmit), bytes));
    }

    /// Lets a stranger's first packet in, or not.
    fn handle_incoming(&mut self, now: Instant, incoming: quinn_proto::Incoming) -> Option<usize> {
        let ip = incoming.remote_address().ip();
        let validated = incoming.remote_address_validated() || !incoming.may_retry();
        let verdict = match self.closing || !self.member {
            true => Verdict::Ignore(Rejection::NotMember),
            false => self.door.verdict(now, ip, validated, self.pending),
        };
        let mut answer = Vec::new();
        match verdict {
            Verdict::Ignore(reason) => {
                self.shared.counters.reject(reason);
                self.endpoint.ignore(incoming);
                None
            }
            Verdict::Retry => {
                match self.endpoint.retry(incoming, &mut answer) {
                    Ok(transmit) => {
                        self.shared.counters.traffic.retries += 1;
                        self.respond(&transmit, answer);
                    }
                    Err(refused) => self.endpoint.ignore(refused.into_incoming()),
                }
                None
            }
            Verdict::Accept => self.accept(now, incoming, answer),
        }
    }

    fn accept(
        &mut self,
        now: Instant,
        incoming: quinn_proto::Incoming,
        mut answer: Vec<u8>,
    ) -> Option<usize> {
        match self.endpoint.accept(incoming, self.clock.to_std(now), &mut answer, None) {
            Ok((ConnectionHandle(handle), connection)) => {
                let deadline = now + self.config.handshake_timeout;
                self.pending += 1;
                self.insert(handle, connection, Phase::Handshake { deadline, client: false, dialled: None });
                Some(handle)
            }
            Err(refused) => {
                let reason = driver::rejection(&refused.cause);
                self.shared.counters.reject(reason);
                if let Some(transmit) = refused.response {
                    self.respond(&transmit, answer);
                }
                None
            }
        }
    }
}

/// Whether a datagram begins with an Initial packet of QUIC version 1 (the fixed bit may be greased).
fn is_initial(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0b1011_0000 == 0b1000_0000)
}

fn of_quinn(transmit: &quinn_proto::Transmit) -> Transmit {
    Transmit {
        to: transmit.destination,
        ecn: transmit.ecn.and_then(|ecn| Ecn::from_bits(ecn as u8)),
        segment: transmit.segment_size.unwrap_or(transmit.size),
        len: transmit.size,
    }
}

fn count_losses(link: &mut Link, shared: &mut Shared) {
    let lost = link.connection.stats().path.lost_packets;
    shared.counters.traffic.lost_packets += lost.saturating_sub(link.lost_counted);
    link.lost_counted = lost;
}
