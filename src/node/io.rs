//! Datagrams between sockets and memory, many per system call, and the one place where an executor waits.
//!
//! One instance per executor thread serves every lane on it. Two back ends behind one trait: [`RingIo`], a
//! private io_uring (multishot receives into provided buffers, joined sends), and [`SyscallIo`], plain calls,
//! for kernels without what the ring needs. Joined means UDP_SEGMENT out and UDP_GRO in: about 64 KiB per
//! operation, which is worth nine times the throughput of single datagrams.
//!
//! Unsafe code lives in `buffers` (memory that the kernel fills), `sends` (memory that it reads), `message`
//! (the headers of both), `ring`, `syscall` and `socket` (the calls themselves). Whoever owns the memory is
//! named at each block.

mod buffers;
mod counters;
mod message;
mod ring;
mod segmentation;
mod sends;
mod socket;
mod syscall;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use crate::sync::WakeWord;
use crate::types::{Received, Transmit};

pub use counters::{IoCounters, SendErrors};
pub use ring::RingIo;
pub use socket::{BindError, SocketBuffers, bind};
pub use syscall::SyscallIo;

/// Bytes that one [`Io::send`] may carry: the largest UDP payload over IPv4. More fails with EMSGSIZE.
pub const MAX_SEND_BYTES: usize = 65_507;

/// Datagrams that one [`Io::send`] may carry: UDP_MAX_SEGMENTS of every kernel that has it (newer ones allow
/// 128).
pub const MAX_SEGMENTS: usize = 64;

/// Capacity of every send buffer and payload room of every receive buffer.
pub const BUFFER_BYTES: usize = 64 << 10;

/// From this many bytes on, a batch is handed over in the buffer it arrived in; a smaller one is copied out,
/// so that a single datagram never pins 64 KiB.
const HAND_OVER_BYTES: usize = 16 << 10;

/// An open socket of one [`Io`]: a small dense number, reused after [`Io::close`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub u32);

/// How many buffers an [`Io`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoLimits {
    /// Receive buffers, at most 4,096, whatever the number of ports: what arrives beyond them waits in the sockets' own. They
    /// are used one after another, so they should fit the core's second-level cache together. Default 16.
    pub receive_buffers: usize,
    /// Send buffers before any port is open. Memory goes only to those that are used at once. Default 32.
    pub send_buffers: usize,
    /// More of them for every open port. Default 4.
    pub send_buffers_per_port: usize,
    /// No more of them than this, whatever the number of ports. Default 512.
    pub max_send_buffers: usize,
    /// Ports open at once. Default 256.
    pub max_ports: usize,
}

impl Default for IoLimits {
    fn default() -> IoLimits {
        IoLimits {
            receive_buffers: 16,
            send_buffers: 32,
            send_buffers_per_port: 4,
            max_send_buffers: 512,
            max_ports: 256,
        }
    }
}

impl IoLimits {
    /// Receive buffers, of which there is at least one.
    fn receives(&self) -> usize {
        self.receive_buffers.clamp(1, 4096)
    }

    /// Send buffers while `ports` are open.
    fn sends(&self, ports: usize) -> usize {
        let wanted = self.send_buffers.saturating_add(self.send_buffers_per_port.saturating_mul(ports));
        wanted.min(self.max_send_buffers).max(1)
    }

    /// The most memory that one instance holds for buffers with `ports` open, those that it handed over and waits for among them.
    pub fn memory_bytes(&self, ports: usize) -> usize {
        let received = self.receives() + buffers::LENT;
        received * (BUFFER_BYTES + buffers::HEADER_BYTES) + self.sends(ports) * BUFFER_BYTES
    }
}

/// Moves datagrams for the lanes of one executor. All calls come from the thread that made the instance.
///
/// One turn of the driver: [`receive`](Self::receive) · [`take_buffer`](Self::take_buffer), fill,
/// [`send`](Self::send), as often as wanted · [`flush`](Self::flush) · when no lane has work, the steps of
/// [`WakeWord`] around [`park`](Self::park).
///
/// Does not promise that a datagram which was sent leaves the machine: errors of the kernel are counted and
/// treated as loss.
pub trait Io {
    /// Starts to receive on a bound, non-blocking socket.
    ///
    /// # Errors
    /// [`IoLimits::max_ports`] are open already (`QuotaExceeded`). The socket is closed.
    fn open(&mut self, socket: UdpSocket) -> io::Result<Port>;

    /// Stops. Nothing of the port is delivered afterwards; sends that wait for the kernel are given up.
    /// Unknown ports are ignored.
    fn close(&mut self, port: Port);

    /// Hands over what has arrived, at most `limit` batches, and returns how many. Never blocks.
    fn receive(&mut self, limit: usize, sink: &mut dyn FnMut(Port, Received)) -> usize;

    /// An empty buffer with room for [`BUFFER_BYTES`], if one is free. None is back-pressure:
    /// [`park`](Self::park) then returns as soon as a send was completed.
    fn take_buffer(&mut self) -> Option<Vec<u8>>;

    /// Takes back a buffer that was not sent.
    fn return_buffer(&mut self, buffer: Vec<u8>);

    /// Queues the first `transmit.len` bytes of `buffer`; the buffer returns to the pool when the kernel is
    /// done. The caller keeps to [`MAX_SEND_BYTES`] and [`MAX_SEGMENTS`].
    fn send(&mut self, port: Port, transmit: &Transmit, buffer: Vec<u8>);

    /// Submits what is queued, without waiting.
    ///
    /// # Errors
    /// The ring or the poll itself failed: nothing of this executor can go on.
    fn flush(&mut self) -> io::Result<()>;

    /// Submits what is queued and waits until something arrived, the wake word was written, a buffer became
    /// free for a caller that found none, or `timeout` passed (None: for ever). May return early for no
    /// reason.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    fn park(&mut self, timeout: Option<Duration>) -> io::Result<()>;

    /// What happened since the start.
    fn counters(&self) -> IoCounters;
}

/// Which implementation moves the datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// [`RingIo`].
    Ring,
    /// [`SyscallIo`].
    Syscalls,
}

impl Backend {
    /// Makes an instance for the calling thread, which alone may use it.
    ///
    /// # Errors
    /// The kernel refused the ring or its memory.
    pub fn start(self, wake: Arc<WakeWord>, limits: IoLimits) -> io::Result<Box<dyn Io>> {
        Ok(match self {
            Backend::Ring => Box::new(RingIo::new(wake, limits)?),
            Backend::Syscalls => Box::new(SyscallIo::new(wake, limits)),
        })
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Ring => "io_uring",
            Backend::Syscalls => "system calls",
        })
    }
}

/// Checks the caller's duties of [`Io::send`] in debug builds and returns the bytes to send.
fn sendable(transmit: &Transmit, buffer: &[u8]) -> usize {
    debug_assert!(transmit.len <= buffer.len(), "a transmit of {} bytes in {}", transmit.len, buffer.len());
    debug_assert!(transmit.len <= MAX_SEND_BYTES, "{} bytes in one send", transmit.len);
    debug_assert!(transmit.len.div_ceil(transmit.segment.max(1)) <= MAX_SEGMENTS, "{transmit:?}");
    transmit.len.min(buffer.len())
}
