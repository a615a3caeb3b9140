//! Addresses and control messages as the kernel lays them out, and the headers of one `sendmsg`.
//!
//! Layouts: `sockaddr_in` (ip(7)), `sockaddr_in6` (ipv6(7)), `cmsghdr` (cmsg(3)) of 64-bit Linux. They are
//! written and read as bytes, so that what the kernel left behind is parsed by safe code alone.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::counters::IoCounters;
use crate::types::{Ecn, Transmit};

/// Length of `sockaddr_in6`, the longer of the two.
pub(super) const NAME_BYTES: usize = mem::size_of::<libc::sockaddr_in6>();

/// A control message's header, and the alignment of the next one.
const CONTROL_HEADER_BYTES: usize = 16;
const CONTROL_ALIGN: usize = 8;
const _: () = assert!(mem::size_of::<libc::cmsghdr>() == CONTROL_HEADER_BYTES, "64-bit Linux only");

/// Room for one control message of up to eight bytes.
const CONTROL_SPACE: usize = CONTROL_HEADER_BYTES + CONTROL_ALIGN;

/// UDP_SEGMENT, and the traffic class.
const SEND_CONTROL_BYTES: usize = 2 * CONTROL_SPACE;

/// UDP_GRO, the traffic class of either family, and one that nobody asked for.
pub(super) const RECEIVE_CONTROL_BYTES: usize = 3 * CONTROL_SPACE;

/// Writes `address` as a `sockaddr` and returns its length.
fn encode_address(address: SocketAddr, out: &mut [u8; NAME_BYTES]) -> usize {
    *out = [0; NAME_BYTES];
    out[2..4].copy_from_slice(&address.port().to_be_bytes());
    match address {
        SocketAddr::V4(v4) => {
            out[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            out[4..8].copy_from_slice(&v4.ip().octets());
            mem::size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            out[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            out[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
            out[8..24].copy_from_slice(&v6.ip().octets());
            out[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
            NAME_BYTES
        }
    }
}

/// `address` as a `sockaddr`, and its length.
pub(super) fn sockaddr(address: SocketAddr) -> ([u8; NAME_BYTES], usize) {
    let mut name = [0; NAME_BYTES];
    let len = encode_address(address, &mut name);
    (name, len)
}

/// Reads a `sockaddr`; None for a family other than IPv4 and IPv6, or one that is cut short. The flow label
/// is dropped: it is not part of who sent.
pub(super) fn decode_address(name: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(*name.first_chunk()?));
    let port = u16::from_be_bytes(array(name, 2)?);
    match family {
        libc::AF_INET => {
            let ip = Ipv4Addr::from(array::<4>(name, 4)?);
            Some(SocketAddr::V4(SocketAddrV4::new(ip, port)))
        }
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(array::<16>(name, 8)?);
            let scope = u32::from_ne_bytes(array(name, 24)?);
            Some(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope)))
        }
        _ => None,
    }
}

/// What the control messages of a receive say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Marks {
    /// Bytes per datagram, if the kernel joined several.
    pub(super) stride: Option<usize>,
    pub(super) ecn: Option<Ecn>,
}

/// Reads the control messages of a receive; what is unknown or malformed is skipped.
pub(super) fn decode_control(mut control: &[u8]) -> Marks {
    let mut marks = Marks::default();
    while let Some((message, rest)) = next_control(control) {
        match (message.level, message.kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let stride = array(message.data, 0).map(i32::from_ne_bytes).unwrap_or(0);
                marks.stride = usize::try_from(stride).ok().filter(|stride| *stride > 0);
            }
            // One byte for IPv4, an int for IPv6.
            (libc::IPPROTO_IP, libc::IP_TOS) => {
                marks.ecn = message.data.first().and_then(|bits| Ecn::from_bits(*bits));
            }
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                let class = array(message.data, 0).map(i32::from_ne_bytes).unwrap_or(0);
                marks.ecn = Ecn::from_bits((class & 0xff) as u8);
            }
            _ => {}
        }
        control = rest;
    }
    marks
}

struct Control<'a> {
    level: i32,
    kind: i32,
    data: &'a [u8],
}

fn next_control(bytes: &[u8]) -> Option<(Control<'_>, &[u8])> {
    let len = usize::from_ne_bytes(array(bytes, 0)?);
    let level = i32::from_ne_bytes(array(bytes, 8)?);
    let kind = i32::from_ne_bytes(array(bytes, 12)?);
    let data = bytes.get(CONTROL_HEADER_BYTES..len)?;
    let rest = bytes.get(len.next_multiple_of(CONTROL_ALIGN)..).unwrap_or(&[]);
    Some((Control { level, kind, data }, rest))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Everything of one `sendmsg` but the payload. The header points into its own box, so it may not move while
/// the kernel reads it.
pub(super) struct Envelope {
    header: libc::msghdr,
    payload: libc::iovec,
    name: [u8; NAME_BYTES],
    control: [u8; SEND_CONTROL_BYTES],
}

impl Envelope {
    pub(super) fn new() -> Box<Envelope> {
        Box::new(Envelope {
            // SAFETY: a C struct of integers and pointers, for which all zeroes is a value.
            header: unsafe { mem::zeroed() },
            payload: libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 },
            name: [0; NAME_BYTES],
            control: [0; SEND_CONTROL_BYTES],
        })
    }

    /// Describes a send of `payload`, joined from datagrams of `segment` bytes if one is given. The returned
    /// header, this envelope and the payload must stay where they are until the kernel is done.
    pub(super) fn address(
        self: &mut Box<Envelope>,
        transmit: &Transmit,
        payload: &[u8],
        segment: Option<u16>,
    ) -> *const libc::msghdr {
        let name_bytes = encode_address(transmit.to, &mut self.name);
        let mut control_bytes = 0;
        if let Some(segment) = segment {
            self.push_control(&mut control_bytes, libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        if let Some(ecn) = transmit.ecn {
            let (level, kind) = match transmit.to {
                SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
                SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            };
            self.push_control(&mut control_bytes, level, kind, &i32::from(ecn.bits()).to_ne_bytes());
        }
        self.payload.iov_base = payload.as_ptr().cast_mut().cast();
        self.payload.iov_len = payload.len();
        let this: &mut Envelope = self;
        this.header.msg_name = this.name.as_mut_ptr().cast();
        this.header.msg_namelen = name_bytes as _;
        this.header.msg_iov = &raw mut this.payload;
        this.header.msg_iovlen = 1;
        this.header.msg_control = this.control.as_mut_ptr().cast();
        this.header.msg_controllen = control_bytes as _;
        this.header.msg_flags = 0;
        &raw const this.header
    }

    fn push_control(&mut self, at: &mut usize, level: i32, kind: i32, data: &[u8]) {
        let space = &mut self.control[*at..*at + CONTROL_SPACE];
        space[..8].copy_from_slice(&(CONTROL_HEADER_BYTES + data.len()).to_ne_bytes());
        space[8..12].copy_from_slice(&level.to_ne_bytes());
        space[12..16].copy_from_slice(&kind.to_ne_bytes());
        space[16..16 + data.len()].copy_from_slice(data);
        *at += CONTROL_SPACE;
    }
}

/// The segment size to ask for: none when `bytes` is a single datagram.
pub(super) fn joined_segment(transmit: &Transmit, bytes: usize) -> Option<u16> {
    u16::try_from(transmit.segment).ok().filter(|_| bytes > transmit.segment)
}

/// One `sendmsg` that never waits.
pub(super) fn send_message(
    socket: BorrowedFd<'_>,
    envelope: &mut Box<Envelope>,
    transmit: &Transmit,
    payload: &[u8],
    segment: Option<u16>,
) -> io::Result<()> {
    let header = envelope.address(transmit, payload, segment);
    loop {
        // SAFETY: the header points to the envelope and the payload, both borrowed until this function
        // returns.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), header, libc::MSG_DONTWAIT) };
        if sent >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Sends datagram by datagram and returns how many passed. The first failure is counted and ends it: what
/// stops one datagram (no route, no room, too large) stops the next of the same size to the same place.
pub(super) fn send_singly(
    socket: BorrowedFd<'_>,
    envelope: &mut Box<Envelope>,
    transmit: &Transmit,
    payload: &[u8],
    counters: &mut IoCounters,
) -> usize {
    let mut passed = 0;
    for datagram in payload.chunks(transmit.segment.max(1)) {
        match send_message(socket, envelope, transmit, datagram, None) {
            Ok(()) => {
                passed += 1;
                counters.count_sent(datagram.len(), datagram.len());
            }
            Err(error) => {
                counters.send_errors.count(&error);
                break;
            }
        }
    }
    passed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(text: &str) {
        let address: SocketAddr = text.parse().unwrap();
        let mut name = [0; NAME_BYTES];
        let len = encode_address(address, &mut name);
        assert_eq!(decode_address(&name[..len]), Some(address));
        assert_eq!(decode_address(&name[..len.min(7)]), None);
    }

    #[test]
    fn addresses_of_both_families_survive() {
        round_trip("192.0.2.7:4433");
        round_trip("[2001:db8::1]:65535");
        round_trip("[fe80::1%3]:1");
    }

    #[test]
    fn other_families_and_nothing_are_no_address() {
        assert_eq!(decode_address(&[]), None);
        assert_eq!(decode_address(&[1, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    fn control_of(ecn: Option<Ecn>, to: &str, segment: Option<u16>) -> Vec<u8> {
        let transmit = Transmit { to: to.parse().unwrap(), ecn, segment: 1200, len: 0 };
        let mut envelope = Envelope::new();
        envelope.address(&transmit, &[], segment);
        let len = envelope.header.msg_controllen;
        envelope.control[..len].to_vec()
    }

    #[test]
    fn the_traffic_class_of_both_families_is_read_back() {
        let v4 = control_of(Some(Ecn::Ce), "192.0.2.7:1", None);
        assert_eq!(decode_control(&v4), Marks { stride: None, ecn: Some(Ecn::Ce) });
        let v6 = control_of(Some(Ecn::Ect0), "[::1]:1", Some(1200));
        assert_eq!(decode_control(&v6), Marks { stride: None, ecn: Some(Ecn::Ect0) });
        assert_eq!(control_of(None, "[::1]:1", None), []);
    }

    #[test]
    fn truncated_or_lying_control_messages_are_skipped() {
        let control = control_of(Some(Ecn::Ce), "192.0.2.7:1", Some(1200));
        for len in 0..control.len() {
            decode_control(&control[..len]);
        }
        let mut lying = control;
        lying[..8].copy_from_slice(&usize::MAX.to_ne_bytes());
        assert_eq!(decode_control(&lying), Marks::default());
        lying[..8].copy_from_slice(&0usize.to_ne_bytes());
        assert_eq!(decode_control(&lying), Marks::default());
    }
}
