//! What an `Io` counts: plain numbers of one thread, published in housekeeping.

use std::io;

/// Totals since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IoCounters {
    /// Batches that were handed over.
    pub batches_in: u64,
    /// Datagrams in them.
    pub datagrams_in: u64,
    /// Bytes in them.
    pub bytes_in: u64,
    /// Batches that were thrown away: empty, truncated, or without a usable sender's address.
    pub discarded_in: u64,
    /// Receives that failed other than for want of a buffer.
    pub receive_errors: u64,
    /// Times the kernel found no receive buffer and a port had to be armed again: the pool is too small for
    /// the bursts.
    pub receive_buffers_exhausted: u64,
    /// Sends that the kernel took.
    pub sends: u64,
    /// Datagrams in them; divided by `sends`, how well sends are joined.
    pub datagrams_out: u64,
    /// Bytes in them.
    pub bytes_out: u64,
    /// Sends that the kernel refused, or the rest of one that went datagram by datagram. A loss to the
    /// transport.
    pub send_errors: SendErrors,
    /// Times no send buffer was free: back-pressure on the transport.
    pub send_buffers_exhausted: u64,
    /// Joined sends that failed and were repeated datagram by datagram.
    pub gso_fallbacks: u64,
    /// Times a port gave up joining for a while, because joined sends failed where single ones passed.
    pub gso_suspensions: u64,
    /// Entries into the kernel that submit, reap or wait.
    pub enters: u64,
    /// Waits.
    pub parks: u64,
    /// Waits that another thread ended through the wake word.
    pub wakes: u64,
}

/// Refused sends by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SendErrors {
    /// No route, host or network down, or an address this socket cannot reach (ENETUNREACH, EHOSTUNREACH,
    /// EINVAL of a blackhole route, and their kin).
    pub unreachable: u64,
    /// A firewall or a `prohibit` route (EPERM, EACCES).
    pub denied: u64,
    /// A datagram above the path's MTU (EMSGSIZE); expected while the transport probes for it.
    pub too_large: u64,
    /// The kernel or the device had no room (ENOBUFS, ENOMEM, EAGAIN).
    pub no_room: u64,
    /// The far port is closed (ECONNREFUSED).
    pub refused: u64,
    /// Anything else.
    pub other: u64,
}

impl SendErrors {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.unreachable + self.denied + self.too_large + self.no_room + self.refused + self.other
    }

    pub(super) fn count(&mut self, error: &io::Error) {
        let counter = match error.raw_os_error().unwrap_or(0) {
            libc::ENETUNREACH
            | libc::EHOSTUNREACH
            | libc::ENETDOWN
            | libc::EHOSTDOWN
            | libc::EADDRNOTAVAIL
            | libc::EAFNOSUPPORT
            | libc::EINVAL => &mut self.unreachable,
            libc::EPERM | libc::EACCES => &mut self.denied,
            libc::EMSGSIZE => &mut self.too_large,
            libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN => &mut self.no_room,
            libc::ECONNREFUSED => &mut self.refused,
            _ => &mut self.other,
        };
        *counter += 1;
    }
}

impl IoCounters {
    pub(super) fn count_sent(&mut self, bytes: usize, segment: usize) {
        self.sends += 1;
        self.bytes_out += bytes as u64;
        self.datagrams_out += bytes.div_ceil(segment.max(1)) as u64;
    }

    pub(super) fn count_received(&mut self, bytes: usize, stride: usize) {
        self.batches_in += 1;
        self.bytes_in += bytes as u64;
        self.datagrams_in += bytes.div_ceil(stride.max(1)) as u64;
    }
}
