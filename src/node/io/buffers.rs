//! The ring of provided buffers: memory into which the kernel writes whatever arrives, without being asked
//! each time.
//!
//! Each buffer is an allocation of its own, so a large batch is handed over as it lies, and its place taken by one that was
//! handed over before and that nobody holds any more: as long as batches are read at once, the same few buffers go round, and
//! stay in the cache. A small batch is copied out and its buffer is provided again. Between [`Buffers::provide`] and the
//! completion that names it, a buffer belongs to the kernel.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::mem;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use bytes::BytesMut;
use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use super::message::{RECEIVE_CONTROL_BYTES, decode_address, decode_control};
use super::{BUFFER_BYTES, HAND_OVER_BYTES};
use crate::types::Received;

/// What a multishot receive puts before the payload: `io_uring_recvmsg_out`, the address, the control
/// messages.
pub(super) const HEADER_BYTES: usize = OUT_BYTES + NAME_ROOM + RECEIVE_CONTROL_BYTES;

/// Four words: name length, control length, payload length, flags.
const OUT_BYTES: usize = 16;

/// Room for `sockaddr_in6`, rounded so that the control messages are aligned.
pub(super) const NAME_ROOM: usize = 32;

/// The one buffer group of a ring.
pub(super) const GROUP: u16 = 0;

/// Buffers handed over that are waited for; one that is held for longer (data arrived out of order) is let go.
pub(super) const LENT: usize = 32;

const PAGE_BYTES: usize = 4096;

/// Provided buffers by number, and the ring in which the kernel finds them.
pub(super) struct Buffers {
    entries: NonNull<BufRingEntry>,
    layout: Layout,
    capacity: u16,
    /// Our copy of the tail; the kernel sees it at [`Self::publish`].
    tail: u16,
    /// Which of the provided ones the kernel has not used up.
    with_kernel: usize,
    memory: Vec<BytesMut>,
    /// What is left of those that were handed over, the latest last: a handle by which the whole comes back.
    lent: Vec<BytesMut>,
}

impl Buffers {
    /// An empty ring with room for `capacity` buffers, a power of two up to 2^15.
    pub(super) fn new(capacity: u16) -> Buffers {
        debug_assert!(capacity.is_power_of_two());
        let bytes = usize::from(capacity) * mem::size_of::<BufRingEntry>();
        // A layout of at most 512 KiB at page alignment is always valid.
        let layout =
            Layout::from_size_align(bytes.next_multiple_of(PAGE_BYTES), PAGE_BYTES).unwrap_or(PAGE_LAYOUT);
        // SAFETY: the layout's size is at least a page.
        let Some(entries) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        Buffers {
            entries: entries.cast(),
            layout,
            capacity,
            tail: 0,
            with_kernel: 0,
            memory: Vec::new(),
            lent: Vec::new(),
        }
    }

    /// Tells the kernel where the ring is. Until [`unregister`](Self::unregister) it reads the ring and
    /// writes into the buffers.
    pub(super) fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        let address = self.entries.as_ptr() as u64;
        // SAFETY: the entries are page-aligned, zeroed, `capacity` long, and live until `drop`, which the
        // owner defers until the ring is unregistered and drained.
        unsafe { submitter.register_buf_ring_with_flags(address, self.capacity, GROUP, 0) }
    }

    /// The kernel forgets the ring.
    pub(super) fn unregister(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        submitter.unregister_buf_ring(GROUP)
    }

    /// Adds fresh buffers until there are `total`, as far as the ring's capacity goes.
    pub(super) fn fill(&mut self, total: usize) {
        while self.memory.len() < total.min(usize::from(self.capacity)) {
            self.memory.push(fresh());
            self.provide(self.memory.len() as u16 - 1);
        }
    }

    /// Buffers that the kernel can still fill.
    pub(super) fn with_kernel(&self) -> usize {
        self.with_kernel
    }

    /// A completion named buffer `id`: it is ours again, until [`take`](Self::take) or
    /// [`discard`](Self::discard).
    pub(super) fn completed(&mut self) {
        debug_assert!(self.with_kernel > 0);
        self.with_kernel = self.with_kernel.saturating_sub(1);
    }

    /// What the kernel wrote into buffer `id`, `len` bytes in all, or None if it is no usable batch. The
    /// buffer, or one in its place, is provided again.
    pub(super) fn take(&mut self, id: u16, len: usize) -> Option<Received> {
        let memory = self.memory.get_mut(usize::from(id))?;
        if len > memory.capacity() {
            // It never is.
            self.provide(id);
            return None;
        }
        // SAFETY: the kernel wrote a header and payload that end at `len`; what it leaves out, the padding
        // behind the address and the control messages, was initialised when the buffer was made.
        unsafe { memory.set_len(len) };
        let received = Batch::parse(memory).map(|batch| {
            let Batch { from, ecn, stride } = batch;
            let data = if len - HEADER_BYTES >= HAND_OVER_BYTES {
                let data = memory.split_off(HEADER_BYTES);
                let next = reclaim(&mut self.lent).unwrap_or_else(fresh);
                self.lent.push(mem::replace(memory, next));
                data
            } else {
                BytesMut::from(&memory[HEADER_BYTES..])
            };
            Received { from, ecn, stride, data }
        });
        self.provide(id);
        received
    }

    /// Provides buffer `id` again, whatever is in it.
    pub(super) fn discard(&mut self, id: u16) {
        if usize::from(id) < self.memory.len() {
            self.provide(id);
        }
    }

    fn provide(&mut self, id: u16) {
        let memory = &mut self.memory[usize::from(id)];
        let slot = usize::from(self.tail & (self.capacity - 1));
        // SAFETY: `slot` is below the capacity. The kernel reads entries only up to the published tail, which
        // is behind this one.
        let entry = unsafe { &mut *self.entries.as_ptr().add(slot) };
        entry.set_addr(memory.as_mut_ptr() as u64);
        entry.set_len((HEADER_BYTES + BUFFER_BYTES) as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        self.with_kernel += 1;
    }

    /// Shows the kernel what was provided since the last call.
    pub(super) fn publish(&mut self) {
        // SAFETY: the entries are alive; the tail is a field of the first one, aligned, and only accessed
        // atomically.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries.as_ptr()).cast_mut()) };
        // Release: the entries are written before the kernel sees them.
        tail.store(self.tail, Ordering::Release);
    }
}

const PAGE_LAYOUT: Layout = Layout::new::<[u8; PAGE_BYTES]>();

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`; the owner drops us only when the kernel has let go.
        unsafe { dealloc(self.entries.as_ptr().cast(), self.layout) };
    }
}

/// A buffer that was lent and is whole again, the latest first, for the cache has it.
fn reclaim(lent: &mut Vec<BytesMut>) -> Option<BytesMut> {
    let at = lent.iter_mut().rposition(|memory| memory.try_reclaim(BUFFER_BYTES));
    if at.is_none() && lent.len() == LENT {
        // Whoever holds the rest of it frees it.
        lent.remove(0);
    }
    at.map(|at| lent.remove(at))
}

/// Memory for one batch with its header. The header's bytes are initialised, because the kernel leaves gaps
/// there.
fn fresh() -> BytesMut {
    let mut memory = BytesMut::with_capacity(HEADER_BYTES + BUFFER_BYTES);
    memory.resize(HEADER_BYTES, 0);
    memory
}

/// What a header says.
struct Batch {
    from: std::net::SocketAddr,
    ecn: Option<crate::types::Ecn>,
    stride: usize,
}

impl Batch {
    fn parse(bytes: &[u8]) -> Option<Batch> {
        let (header, payload) = bytes.split_at_checked(HEADER_BYTES)?;
        let word = |at: usize| -> usize {
            let word = header.get(at..).and_then(|rest| rest.first_chunk().copied());
            u32::from_ne_bytes(word.unwrap_or_default()) as usize
        };
        let (name_bytes, control_bytes, flags) = (word(0), word(4), word(12));
        if payload.is_empty() || flags & libc::MSG_TRUNC as usize != 0 {
            return None;
        }
        let name = header.get(OUT_BYTES..OUT_BYTES + name_bytes.min(NAME_ROOM))?;
        let control_at = OUT_BYTES + NAME_ROOM;
        let control = header.get(control_at..control_at + control_bytes.min(RECEIVE_CONTROL_BYTES))?;
        let marks = decode_control(control);
        Some(Batch {
            from: decode_address(name)?,
            ecn: marks.ecn,
            stride: marks.stride.unwrap_or(payload.len()),
        })
    }
}
