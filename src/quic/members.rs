//! What a new membership changes: peers come, go, move, and change their index.

use std::net::SocketAddr;
use std::sync::Arc;

use super::dial::Dialer;
use super::link::Phase;
use super::timers::Timer;
use super::{Peer, Quic};
use crate::types::{Instant, Member, Membership, PeerIndex};
use crate::wire::CloseCode;

impl Quic {
    /// Adopts a membership. Connections of members that left are closed (without an event: the caller knows
    /// who left), new members are dialled, and so are members whose address changed. From now on a
    /// [`PeerIndex`] means a place in
    /// `membership`; events that are queued are renumbered.
    pub fn set_membership(&mut self, now: Instant, membership: &Arc<Membership>) {
        self.set_now(now);
        // Fails only where `new` would have failed. Then nobody is accepted.
        let server =
            self.config.server(&*self.handshakes, membership, &self.transport, self.clock.clone()).ok();
        self.endpoint.set_server_config(server);
        self.door.set_membership(membership);
        self.adopt(now, membership);
    }

    pub(super) fn adopt(&mut self, now: Instant, membership: &Arc<Membership>) {
        let own = self.id();
        let before = std::mem::take(&mut self.peers);
        let renumbered: Vec<Option<PeerIndex>> =
            before.iter().map(|peer| membership.index_of(&peer.id)).collect();
        let renumber = |peer: PeerIndex| renumbered.get(peer.index()).copied().flatten();

        let mut kept: Vec<Option<Peer>> = membership.members().iter().map(|_| None).collect();
        let mut gone = Vec::new();
        for (index, mut peer) in before.into_iter().enumerate() {
            self.timers.set(Timer::Dial(PeerIndex(index as u16)), &mut peer.dial_at, None);
            match renumber(PeerIndex(index as u16)).and_then(|place| kept.get_mut(place.index())) {
                Some(place) => *place = Some(peer),
                None => gone.extend([peer.live, peer.dialling].into_iter().flatten()),
            }
        }
        self.peers = kept
            .into_iter()
            .zip(membership.members())
            .map(|(peer, member)| {
                peer.unwrap_or_else(|| Peer {
                    id: member.id,
                    dialer: Dialer::default(),
                    dials: own < member.id,
                    live: None,
                    dialling: None,
                    dial_at: None,
                })
            })
            .collect();
        self.membership = membership.clone();
        self.member = membership.index_of(&own).is_some();
        self.renumber(renumber);

        for handle in gone {
            self.dismiss(handle, now);
        }
        if !self.member {
            (0..self.links.len()).for_each(|handle| self.close_link(handle, CloseCode::NotMember, now));
        }
        for (index, member) in membership.members().iter().enumerate() {
            self.move_peer(PeerIndex(index as u16), member, now);
        }
    }

    /// Gives everything that names a peer its new number; what names one that left is dropped.
    fn renumber(&mut self, renumber: impl Fn(PeerIndex) -> Option<PeerIndex>) {
        self.shared.events.renumber(&renumber);
        let revoked = std::mem::take(&mut self.revoked);
        self.revoked = revoked.into_iter().filter_map(|(peer, key)| Some((renumber(peer)?, key))).collect();
        for link in self.links.iter_mut().flatten() {
            match &mut link.phase {
                Phase::Handshake { dialled, .. } => *dialled = dialled.and_then(&renumber),
                Phase::Live { peer, .. } => {
                    // One that left keeps its old number until it is dismissed, just below.
                    *peer = renumber(*peer).unwrap_or(*peer);
                }
                Phase::Closing => (),
            }
        }
    }

    /// Closes the connection of a peer that left, without a word to the engine.
    fn dismiss(&mut self, handle: usize, now: Instant) {
        if let Some(Some(link)) = self.links.get_mut(handle)
            && let Phase::Live { .. } = link.phase
        {
            // As a handshake without a target: closing it concerns nobody.
            link.close_streams();
            link.phase = Phase::Handshake { deadline: now, client: true, dialled: None };
            self.shared.counters.traffic.disconnections += 1;
        }
        self.close_link(handle, CloseCode::NotMember, now);
    }

    /// Dials a peer that is new, or no longer where we reached it.
    fn move_peer(&mut self, peer: PeerIndex, member: &Member, now: Instant) {
        let lane = self.config.lane;
        let port = |address: &SocketAddr| address.port().saturating_add(lane);
        let addresses: Vec<SocketAddr> =
            member.addresses.iter().map(|address| SocketAddr::new(address.ip(), port(address))).collect();
        let Some(entry) = self.peers.get_mut(peer.index()) else { return };
        if !entry.dials {
            return;
        }
        let moved = entry.dialer.addresses() != addresses;
        let handle = entry.live.or(entry.dialling);
        if moved {
            entry.dialer.set_addresses(addresses);
        }
        if let Some(handle) = handle {
            let Some(Some(link)) = self.links.get(handle) else { return };
            let Some(entry) = self.peers.get(peer.index()) else { return };
            if entry.dialer.addresses().contains(&link.connection.remote_address()) {
                return;
            }
            self.close_link(handle, CloseCode::Replaced, now);
            if let Some(entry) = self.peers.get_mut(peer.index()) {
                entry.live = None;
            }
        }
        if let Some(entry) = self.peers.get_mut(peer.index()) {
            self.timers.set(Timer::Dial(peer), &mut entry.dial_at, Some(now));
        }
    }
}
