//! The life of connections: dialled or accepted, identified, replaced, lost.

use bytes::Bytes;
use quinn_proto::{Connection, ConnectionError, ConnectionHandle, VarInt};

use super::counters::Rejection;
use super::egress::Egress;
use super::ingress::Offence;
use super::link::{Link, Milestone, Phase};
use super::timers::Timer;
use super::{Disconnect, Event, Quic, count_losses, handshake};
use crate::types::{ConnectionNumber, Instant, PeerIndex};
use crate::wire::{CloseCode, Incoming};

/// Every reason that this version gives for closing.
const CLOSE_CODES: [CloseCode; 5] = [
    CloseCode::Shutdown,
    CloseCode::Replaced,
    CloseCode::Protocol,
    CloseCode::Mismatch,
    CloseCode::NotMember,
];

impl Quic {
    /// Dials `peer` unless it is connected or being dialled.
    pub(super) fn dial(&mut self, peer: PeerIndex, now: Instant) {
        let Some(entry) = self.peers.get_mut(peer.index()) else { return };
        if !entry.dials || entry.live.is_some() || entry.dialling.is_some() || self.closing || !self.member {
            return;
        }
        let Some(target) = entry.dialer.target() else { return };
        let id = entry.id;
        let started =
            self.config.client(&*self.handshakes, id, &self.transport, &self.first_ids).ok().and_then(
                |client| {
                    self.endpoint.connect(self.clock.to_std(now), client, target, handshake::SERVER_NAME).ok()
                },
            );
        let Some((ConnectionHandle(handle), connection)) = started else {
            self.shared.counters.reject(Rejection::Other);
            return self.schedule_dial(peer, now);
        };
        self.shared.counters.traffic.dials += 1;
        if let Some(entry) = self.peers.get_mut(peer.index()) {
            entry.dialling = Some(handle);
        }
        let deadline = now + self.config.dial_timeout;
        self.insert(handle, connection, Phase::Handshake { deadline, client: true, dialled: Some(peer) });
        self.drive(handle, now);
    }

    /// Dials again when the time has come, if we are the ones who dial.
    fn schedule_dial(&mut self, peer: PeerIndex, now: Instant) {
        let backoff = self.backoff();
        let Some(entry) = self.peers.get_mut(peer.index()) else { return };
        if entry.dials && !self.closing {
            let at = entry.dialer.ended(now, backoff, &mut self.rng);
            self.timers.set(Timer::Dial(peer), &mut entry.dial_at, Some(at));
        }
    }

    pub(super) fn insert(&mut self, handle: usize, connection: Connection, phase: Phase) {
        if self.links.len() <= handle {
            self.links.resize_with(handle + 1, || None);
        }
        if let Some(place) = self.links.get_mut(handle) {
            let egress = Egress::new(self.config.weights, self.congestion.last_flight());
            *place = Some(Box::new(Link::new(connection, phase, egress)));
        }
    }

    /// Brings everything that follows from a connection's news up to date.
    pub(super) fn drive(&mut self, handle: usize, now: Instant) {
        let Some(mut link) = self.links.get_mut(handle).and_then(Option::take) else { return };
        let mut drained = false;
        while let Some(event) = link.connection.poll_endpoint_events() {
            drained |= event.is_drained();
            if let Some(event) = self.endpoint.handle_event(ConnectionHandle(handle), event) {
                link.connection.handle_event(event);
            }
        }
        while let Some(milestone) = link.next_milestone(&mut self.shared) {
            self.handle_milestone(handle, &mut link, milestone, now);
        }
        if drained {
            count_losses(&mut link, &mut self.shared);
            self.timers.set(Timer::Connection(handle), &mut link.deadline, None);
            return;
        }
        link.write(&mut self.shared);
        self.lines.join(handle, &mut link);
        if let Some(place) = self.links.get_mut(handle) {
            *place = Some(link);
        }
        self.reschedule(handle);
    }

    /// Sets the connection's timer to what it waits for now.
    pub(super) fn reschedule(&mut self, handle: usize) {
        let Some(Some(link)) = self.links.get_mut(handle) else { return };
        let mut next = link.connection.poll_timeout().map(|at| self.clock.of_std(at));
        if let Phase::Handshake { deadline, .. } = link.phase {
            next = Some(next.map_or(deadline, |at| at.min(deadline)));
        }
        self.timers.set(Timer::Connection(handle), &mut link.deadline, next);
    }

    fn handle_milestone(&mut self, handle: usize, link: &mut Link, milestone: Milestone, now: Instant) {
        match milestone {
            Milestone::Connected => self.handle_connected(handle, link, now),
            Milestone::Lost(error) => self.handle_lost(link, &error, now),
            Milestone::Offence(offence) => self.handle_offence(link, offence, now),
        }
    }

    fn handle_offence(&mut self, link: &mut Link, offence: Offence, now: Instant) {
        let Phase::Live { peer, .. } = link.phase else { return };
        match offence {
            Offence::Fault(error) => {
                self.shared.counters.faults.count(&error);
                self.shared.emit(peer, Incoming::Fault(error));
            }
            Offence::Flood => self.shared.counters.traffic.reset_floods += 1,
        }
        self.end(link, CloseCode::Protocol, now);
    }

    /// The handshake is over: now the peer has proved its key.
    fn handle_connected(&mut self, handle: usize, link: &mut Link, now: Instant) {
        let Phase::Handshake { client, .. } = link.phase else { return };
        let id = handshake::peer_of(&link.connection);
        let peer = id.and_then(|id| self.membership.index_of(&id));
        // The membership may have changed since the handshake began.
        let Some((peer, entry)) = peer.and_then(|peer| Some((peer, self.peers.get_mut(peer.index())?)))
        else {
            self.shared.counters.reject(Rejection::NotMember);
            return self.end(link, CloseCode::NotMember, now);
        };
        if entry.dials != client || self.closing || !self.member {
            self.shared.counters.reject(Rejection::WrongDirection);
            return self.end(link, CloseCode::NotMember, now);
        }
        entry.dialler_connected(now);
        let old = entry.live.replace(handle);
        self.leave_handshake(link);
        if let Some(old) = old {
            self.shared.counters.traffic.replaced += 1;
            self.close_link(old, CloseCode::Replaced, now);
        }
        self.last_connection += 1;
        let number = ConnectionNumber(self.last_connection);
        link.phase = Phase::Live { peer, number };
        self.shared.counters.traffic.connections += 1;
        self.shared.events.push(peer, Event::Connected { connection: number });
        if let Some(offence) = link.accept_all(&mut self.shared) {
            self.handle_offence(link, offence, now);
        }
    }

    /// Clears what the table keeps of a handshake that is over, one way or the other; tells whom it dialled.
    fn leave_handshake(&mut self, link: &Link) -> Option<PeerIndex> {
        let Phase::Handshake { client, dialled, .. } = link.phase else { return None };
        if !client {
            self.pending -= 1;
        }
        if let Some(entry) = dialled.and_then(|peer| self.peers.get_mut(peer.index())) {
            entry.dialling = None;
        }
        dialled
    }

    /// quinn gave the connection up.
    fn handle_lost(&mut self, link: &mut Link, error: &ConnectionError, now: Instant) {
        match link.phase {
            Phase::Closing => (),
            Phase::Handshake { .. } => {
                self.shared.counters.reject(rejection(error));
                self.leave_and_redial(link, now);
            }
            Phase::Live { peer, number } => {
                let reason = disconnect(error);
                match reason {
                    Disconnect::Restarted => self.shared.counters.traffic.restarts += 1,
                    Disconnect::Silent => self.shared.counters.traffic.idle_timeouts += 1,
                    Disconnect::Closed(_) | Disconnect::ClosedByPeer(_) | Disconnect::Transport { .. } => (),
                }
                self.leave_live(peer, number, reason, now);
                link.close_streams();
            }
        }
    }

    fn leave_and_redial(&mut self, link: &mut Link, now: Instant) {
        let dialled = self.leave_handshake(link);
        link.close_streams();
        if let Some(peer) = dialled {
            self.schedule_dial(peer, now);
        }
    }

    fn leave_live(&mut self, peer: PeerIndex, number: ConnectionNumber, reason: Disconnect, now: Instant) {
        self.shared.counters.traffic.disconnections += 1;
        self.shared.events.push(peer, Event::Disconnected { connection: number, reason });
        // A connection that was replaced is not its peer's any more.
        if reason != Disconnect::Closed(CloseCode::Replaced)
            && let Some(entry) = self.peers.get_mut(peer.index())
        {
            entry.live = None;
            self.schedule_dial(peer, now);
        }
    }

    /// Closes `link`, whatever its phase, and tells the engine if it knew of it.
    fn end(&mut self, link: &mut Link, code: CloseCode, now: Instant) {
        match link.phase {
            Phase::Closing => return,
            Phase::Handshake { .. } => self.leave_and_redial(link, now),
            Phase::Live { peer, number } => self.leave_live(peer, number, Disconnect::Closed(code), now),
        }
        link.close_streams();
        link.connection.close(self.clock.to_std(now), VarInt::from_u32(code.code()), Bytes::new());
    }

    /// As above, by handle; ignored when there is no such connection.
    pub(super) fn close_link(&mut self, handle: usize, code: CloseCode, now: Instant) {
        let Some(mut link) = self.links.get_mut(handle).and_then(Option::take) else { return };
        self.end(&mut link, code, now);
        if let Some(place) = self.links.get_mut(handle) {
            *place = Some(link);
        }
        self.drive(handle, now);
    }

    /// The handshake's deadline has passed.
    pub(super) fn abort_handshake(&mut self, handle: usize, now: Instant) {
        self.close_link(handle, CloseCode::Shutdown, now);
    }
}

impl super::Peer {
    fn dialler_connected(&mut self, now: Instant) {
        if self.dials {
            self.dialer.connected(now);
        }
    }
}

/// Why a handshake failed.
pub(super) fn rejection(error: &ConnectionError) -> Rejection {
    match error {
        ConnectionError::TransportError(error) => handshake::rejection_of(error.code.into()),
        ConnectionError::ConnectionClosed(_) | ConnectionError::ApplicationClosed(_) => Rejection::ByPeer,
        ConnectionError::TimedOut => Rejection::TimedOut,
        ConnectionError::VersionMismatch
        | ConnectionError::Reset
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => Rejection::Other,
    }
}

/// Why a connection was lost.
fn disconnect(error: &ConnectionError) -> Disconnect {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let code = close.error_code.into_inner();
            match CLOSE_CODES.into_iter().find(|known| u64::from(known.code()) == code) {
                Some(known) => Disconnect::ClosedByPeer(known),
                None => Disconnect::Transport { code },
            }
        }
        ConnectionError::Reset => Disconnect::Restarted,
        ConnectionError::TimedOut => Disconnect::Silent,
        ConnectionError::TransportError(error) => Disconnect::Transport { code: error.code.into() },
        ConnectionError::ConnectionClosed(close) => Disconnect::Transport { code: close.error_code.into() },
        ConnectionError::VersionMismatch
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => Disconnect::Transport { code: 1 },
    }
}
