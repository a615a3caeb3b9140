//! Datagrams on their way between socket and transport, many at once.

use std::net::SocketAddr;

use bytes::BytesMut;

/// The two ECN bits of the IP header (RFC 3168).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ecn {
    /// ECT(0): the sender takes part.
    Ect0,
    /// ECT(1).
    Ect1,
    /// A router on the path was congested.
    Ce,
}

impl Ecn {
    /// From the low two bits of the traffic class.
    pub fn from_bits(bits: u8) -> Option<Ecn> {
        match bits & 0b11 {
            0b10 => Some(Ecn::Ect0),
            0b01 => Some(Ecn::Ect1),
            0b11 => Some(Ecn::Ce),
            _ => None,
        }
    }

    /// The low two bits of the traffic class.
    pub fn bits(self) -> u8 {
        match self {
            Ecn::Ect0 => 0b10,
            Ecn::Ect1 => 0b01,
            Ecn::Ce => 0b11,
        }
    }
}

/// The largest window of one stream, in bytes, over datagrams of `mtu` bytes: quinn-proto 0.11.19 closes a connection of which
/// one stream has more than 1,024 gaps, and at worst every second datagram of a window is lost.
pub const fn largest_stream_window(mtu: u16) -> u64 {
    /// What a full datagram may spend on other things: 41 bytes of packet header and tag (RFC 9000 §17.3.1), 19 of the
    /// frame's (§19.8), 15 that are left out to end with a whole AES block.
    const OVERHEAD: u16 = 75;
    2 * 1024 * mtu.saturating_sub(OVERHEAD) as u64
}

/// Datagrams that arrived from one address in one receive: the kernel joined them (UDP_GRO), `stride` bytes each but
/// for the last, which may be shorter.
#[derive(Debug)]
pub struct Received {
    /// Sender's address.
    pub from: SocketAddr,
    /// Congestion mark of the whole batch.
    pub ecn: Option<Ecn>,
    /// Bytes per datagram, at least 1.
    pub stride: usize,
    /// The datagrams, end to end.
    pub data: BytesMut,
}

/// What the transport wants sent, with the bytes in the caller's buffer: datagrams of `segment` bytes each but for the
/// last, which may be shorter, to be split by the kernel (UDP_SEGMENT).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// Receiver's address.
    pub to: SocketAddr,
    /// Congestion mark.
    pub ecn: Option<Ecn>,
    /// Bytes per datagram, at least 1.
    pub segment: usize,
    /// Bytes in all.
    pub len: usize,
}
