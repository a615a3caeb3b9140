//! The pool of send buffers, and the sends that the kernel is reading.
//!
//! A slot owns everything that one `sendmsg` points to, at an address that does not change: the header in its
//! own box, the payload in the heap part of the `Vec` that the caller filled. It keeps both from
//! [`Sends::begin`] to [`Sends::finish`].

use std::os::fd::BorrowedFd;

use super::BUFFER_BYTES;
use super::counters::IoCounters;
use super::message::{Envelope, send_message, send_singly};
use super::segmentation::{Segmentation, Suspension, blames_segmentation};
use crate::types::Transmit;

/// Buffers that are free, and slots with buffers that are not.
pub(super) struct Sends {
    idle: Vec<Vec<u8>>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Somebody asked for a buffer in vain since the last one came back.
    starved: bool,
}

struct Slot {
    envelope: Box<Envelope>,
    send: Option<Send>,
}

/// One send on its way.
pub(super) struct Send {
    pub(super) port: u32,
    pub(super) transmit: Transmit,
    pub(super) bytes: usize,
    pub(super) segment: Option<u16>,
    buffer: Vec<u8>,
}

impl Send {
    /// A send of the first `bytes` of `buffer`, which is at least that long.
    pub(super) fn new(
        port: u32,
        transmit: Transmit,
        bytes: usize,
        segment: Option<u16>,
        buffer: Vec<u8>,
    ) -> Send {
        Send { port, transmit, bytes, segment, buffer }
    }

    pub(super) fn payload(&self) -> &[u8] {
        &self.buffer[..self.bytes.min(self.buffer.len())]
    }
}

impl Sends {
    pub(super) fn new() -> Sends {
        Sends { idle: Vec::new(), slots: Vec::new(), free: Vec::new(), starved: false }
    }

    /// Adds slots and buffers, which take no memory until they are used, until there are `total` of each.
    pub(super) fn grow(&mut self, total: usize) {
        while self.slots.len() < total {
            self.free.push(self.slots.len() as u32);
            self.slots.push(Slot { envelope: Envelope::new(), send: None });
            self.idle.push(Vec::new());
        }
    }

    pub(super) fn has_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    /// The buffer used last, whose memory is most likely in the cache.
    pub(super) fn take_buffer(&mut self, counters: &mut IoCounters) -> Option<Vec<u8>> {
        let Some(mut buffer) = self.idle.pop() else {
            self.starved = true;
            counters.send_buffers_exhausted += 1;
            return None;
        };
        buffer.reserve(BUFFER_BYTES);
        Some(buffer)
    }

    pub(super) fn return_buffer(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        // A caller that brings buffers of its own does not make the pool grow.
        if self.idle.len() < self.slots.len() {
            self.idle.push(buffer);
        }
    }

    /// True once after somebody found no buffer and one is free again.
    pub(super) fn relieved(&mut self) -> bool {
        let relieved = self.starved && !self.idle.is_empty();
        if relieved {
            self.starved = false;
        }
        relieved
    }

    /// Puts a send into a slot; None, and the buffer goes back, if the caller brought more buffers than there
    /// are.
    pub(super) fn begin(&mut self, send: Send) -> Option<(u32, *const libc::msghdr)> {
        let Some(slot) = self.free.pop() else {
            self.return_buffer(send.buffer);
            return None;
        };
        let Slot { envelope, send: place } = &mut self.slots[slot as usize];
        let send = place.insert(send);
        let header = envelope.address(&send.transmit, send.payload(), send.segment);
        Some((slot, header))
    }

    /// The kernel is done with a slot.
    pub(super) fn finish(&mut self, slot: u32) -> Option<Send> {
        let send = self.slots.get_mut(slot as usize)?.send.take()?;
        self.free.push(slot);
        Some(send)
    }

    /// Gives a finished send's buffer back to the pool.
    pub(super) fn recycle(&mut self, send: Send) {
        self.return_buffer(send.buffer);
    }
}

/// Counts how a send ended that the kernel saw as a whole; a joined one that failed because it was joined is
/// repeated datagram by datagram. `envelope` is scratch.
pub(super) fn settle(
    send: &Send,
    result: Result<(), std::io::Error>,
    socket: BorrowedFd<'_>,
    segmentation: &mut Segmentation,
    envelope: &mut Box<Envelope>,
    counters: &mut IoCounters,
) {
    match result {
        Ok(()) => {
            counters.count_sent(send.bytes, send.transmit.segment);
            if send.segment.is_some() {
                segmentation.joined_passed();
            }
        }
        Err(error) if send.segment.is_some() && error.raw_os_error().is_some_and(blames_segmentation) => {
            counters.gso_fallbacks += 1;
            let passed = send_singly(socket, envelope, &send.transmit, send.payload(), counters);
            if passed > 0 && segmentation.only_singles_passed() == Suspension::Begun {
                counters.gso_suspensions += 1;
            }
        }
        Err(error) => counters.send_errors.count(&error),
    }
}

/// One send by a plain call, joined or not; `Err` gives it back when the socket has no room.
pub(super) fn send_plainly(
    send: &Send,
    socket: BorrowedFd<'_>,
    segmentation: &mut Segmentation,
    envelope: &mut Box<Envelope>,
    counters: &mut IoCounters,
) -> Sent {
    let result = send_message(socket, envelope, &send.transmit, send.payload(), send.segment);
    if result.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
        return Sent::NoRoom;
    }
    settle(send, result, socket, segmentation, envelope, counters);
    Sent::Settled
}

/// How a plain send ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// It passed, or failed and was counted.
    Settled,
    /// The socket's send buffer is full; try again when it is writable.
    NoRoom,
}
