//! What the nodes of a subnet have counted, and ratios of it.

use serde::{Deserialize, Serialize};

/// Counters, summed over the nodes of a subnet.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Counters {
    /// Bodies that came in whole.
    pub(crate) bodies_received: u64,
    /// Bodies handed to the consumers.
    pub(crate) bodies_delivered: u64,
    /// Artifacts that a node relayed, once for each node.
    pub(crate) relays: u64,
    /// Adverts of relayed artifacts.
    pub(crate) relay_adverts: u64,
    /// Their bytes, as frames.
    pub(crate) relay_advert_bytes: u64,
    /// Bytes of UDP payload sent.
    pub(crate) udp_bytes_sent: u64,
    /// Datagrams sent.
    pub(crate) datagrams_sent: u64,
    /// Send operations, each of one or more datagrams.
    pub(crate) sends: u64,
    /// Packets that loss detection gave up on.
    pub(crate) packets_lost: u64,
    /// Handshakes that were turned away.
    pub(crate) handshakes_refused: u64,
}

impl Counters {
    /// What was counted after `earlier`.
    pub(crate) fn since(&self, earlier: &Counters) -> Counters {
        Counters {
            bodies_received: self.bodies_received.saturating_sub(earlier.bodies_received),
            bodies_delivered: self.bodies_delivered.saturating_sub(earlier.bodies_delivered),
            relays: self.relays.saturating_sub(earlier.relays),
            relay_adverts: self.relay_adverts.saturating_sub(earlier.relay_adverts),
            relay_advert_bytes: self.relay_advert_bytes.saturating_sub(earlier.relay_advert_bytes),
            udp_bytes_sent: self.udp_bytes_sent.saturating_sub(earlier.udp_bytes_sent),
            datagrams_sent: self.datagrams_sent.saturating_sub(earlier.datagrams_sent),
            sends: self.sends.saturating_sub(earlier.sends),
            packets_lost: self.packets_lost.saturating_sub(earlier.packets_lost),
            handshakes_refused: self.handshakes_refused.saturating_sub(earlier.handshakes_refused),
        }
    }

    /// Adds what was counted elsewhere.
    pub(crate) fn add(&mut self, other: &Counters) {
        self.bodies_received += other.bodies_received;
        self.bodies_delivered += other.bodies_delivered;
        self.relays += other.relays;
        self.relay_adverts += other.relay_adverts;
        self.relay_advert_bytes += other.relay_advert_bytes;
        self.udp_bytes_sent += other.udp_bytes_sent;
        self.datagrams_sent += other.datagrams_sent;
        self.sends += other.sends;
        self.packets_lost += other.packets_lost;
        self.handshakes_refused += other.handshakes_refused;
    }

    /// Copies of a body received for each that was delivered; 1 is perfect.
    pub(crate) fn copies_per_delivery(&self) -> f64 {
        ratio(self.bodies_received as f64, self.bodies_delivered as f64)
    }
}

/// What it took to tell others of what was relayed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RelayCost {
    /// Artifacts, once for each node that relayed them.
    pub(crate) relayed: u64,
    /// Adverts for each.
    pub(crate) adverts: f64,
    /// Bytes of frames for each.
    pub(crate) bytes: f64,
}

impl Counters {
    pub(crate) fn relay_cost(&self) -> RelayCost {
        RelayCost {
            relayed: self.relays,
            adverts: ratio(self.relay_adverts as f64, self.relays as f64),
            bytes: ratio(self.relay_advert_bytes as f64, self.relays as f64),
        }
    }
}

impl std::fmt::Display for RelayCost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let RelayCost { relayed, adverts, bytes } = self;
        write!(f, "{relayed} artifacts; {adverts:.2} adverts and {bytes:.1} bytes of frames for each")
    }
}

/// `part / whole`; 0 when there is no whole.
pub(crate) fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Payload of `bytes` in `seconds`.
pub(crate) fn gbit_s(bytes: u64, seconds: f64) -> f64 {
    ratio(bytes as f64 * 8e-9, seconds)
}
