//! The back end of plain system calls: `recvmsg` with UDP_GRO, `sendmsg` with UDP_SEGMENT, and `poll` to
//! wait.
//!
//! For kernels whose io_uring lacks multishot receives or provided buffers, and to compare with. One call per
//! batch instead of one per turn; on loopback the throughput is the same.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use slab::Slab;

use super::message::{
    Envelope, NAME_BYTES, RECEIVE_CONTROL_BYTES, decode_address, decode_control, joined_segment, send_singly,
};
use super::segmentation::{Joining, Segmentation};
use super::sends::{Send, Sends, Sent, send_plainly};
use super::{BUFFER_BYTES, HAND_OVER_BYTES, Io, IoCounters, IoLimits, Port, sendable};
use crate::sync::WakeWord;
use crate::types::{Received, Transmit};

/// Receives in a row from one port before the next has its turn.
const BURST: usize = 32;

/// Receives and sends by plain system calls. See [`Io`] for how to call it.
pub struct SyscallIo {
    wake: Arc<WakeWord>,
    /// The eventfd was read and no park has ended for it yet: the next one must not wait.
    woken: bool,
    limits: IoLimits,
    ports: Slab<PortState>,
    /// The open ports; who is first rotates.
    order: VecDeque<usize>,
    sends: Sends,
    /// Sends in order; at most one per buffer of the pool.
    queue: VecDeque<Send>,
    /// Where the next batch goes.
    landing: BytesMut,
    /// Rebuilt for every poll; kept for its allocation.
    polled: Vec<libc::pollfd>,
    counters: IoCounters,
    scratch: Box<Envelope>,
}

struct PortState {
    socket: UdpSocket,
    segmentation: Segmentation,
    /// The last poll said so, and no receive has answered EAGAIN since.
    readable: bool,
    /// The last attempt to send found the socket full.
    full: bool,
}

impl SyscallIo {
    /// An instance without ports.
    pub fn new(wake: Arc<WakeWord>, limits: IoLimits) -> SyscallIo {
        let mut io = SyscallIo {
            wake,
            woken: false,
            limits,
            ports: Slab::new(),
            order: VecDeque::new(),
            sends: Sends::new(),
            queue: VecDeque::new(),
            landing: BytesMut::with_capacity(BUFFER_BYTES),
            polled: Vec::new(),
            counters: IoCounters::default(),
            scratch: Envelope::new(),
        };
        io.sends.grow(limits.sends(0));
        io
    }

    /// Asks the kernel what became readable or writable, waiting at most `timeout`.
    fn poll(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.polled.clear();
        let wake = self.wake.as_fd().as_raw_fd();
        self.polled.push(libc::pollfd { fd: wake, events: libc::POLLIN, revents: 0 });
        for (_, port) in &self.ports {
            let events = if port.full { libc::POLLIN | libc::POLLOUT } else { libc::POLLIN };
            self.polled.push(libc::pollfd { fd: port.socket.as_raw_fd(), events, revents: 0 });
        }
        self.counters.enters += 1;
        poll_all(&mut self.polled, timeout)?;
        if self.polled.first().is_some_and(|wake| wake.revents != 0) {
            clear(self.wake.as_fd());
            self.woken = true;
            self.counters.wakes += 1;
        }
        for ((_, port), polled) in self.ports.iter_mut().zip(&self.polled[1..]) {
            // An error on the socket counts as readable, so that a receive fetches and clears it.
            port.readable |= polled.revents & !libc::POLLOUT != 0;
        }
        Ok(())
    }

    fn receive_from(&mut self, key: usize) -> Option<Landed> {
        let port = self.ports.get_mut(key)?;
        match receive_message(port.socket.as_fd(), &mut self.landing) {
            Ok(batch) => Some(Landed::Batch(batch)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                port.readable = false;
                None
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Some(Landed::Nothing),
            Err(_) => {
                self.counters.receive_errors += 1;
                Some(Landed::Nothing)
            }
        }
    }

    /// Sends what it can; what finds its socket full stays queued, in order.
    fn drain_queue(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        self.ports.iter_mut().for_each(|(_, port)| port.full = false);
        for _ in 0..self.queue.len() {
            let Some(send) = self.queue.pop_front() else { return };
            let Some(port) = self.ports.get_mut(send.port as usize) else {
                self.sends.recycle(send);
                continue;
            };
            let PortState { socket, segmentation, full, .. } = port;
            let sent = if *full {
                Sent::NoRoom
            } else {
                send_plainly(&send, socket.as_fd(), segmentation, &mut self.scratch, &mut self.counters)
            };
            match sent {
                Sent::NoRoom => {
                    *full = true;
                    self.queue.push_back(send);
                }
                Sent::Settled => self.sends.recycle(send),
            }
        }
    }
}

enum Landed {
    Batch(Option<Received>),
    Nothing,
}

/// One receive that never waits; `Ok(None)` is a batch to discard.
fn receive_message(socket: BorrowedFd<'_>, landing: &mut BytesMut) -> io::Result<Option<Received>> {
    let mut name = [0u8; NAME_BYTES];
    let mut control = [0u8; RECEIVE_CONTROL_BYTES];
    landing.clear();
    let room = landing.spare_capacity_mut();
    let mut payload = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    // SAFETY: a C struct of integers and pointers, for which all zeroes is a value.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_namelen = name.len() as _;
    header.msg_iov = &raw mut payload;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = control.len() as _;
    // SAFETY: the header points to locals and to `landing`, all of which outlive the call.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) };
    let Ok(len) = usize::try_from(got) else { return Err(io::Error::last_os_error()) };
    if len == 0 || header.msg_flags & libc::MSG_TRUNC != 0 {
        return Ok(None);
    }
    let name = name.get(..header.msg_namelen as usize).unwrap_or(&[]);
    let Some(from) = decode_address(name) else { return Ok(None) };
    let marks = decode_control(control.get(..header.msg_controllen as usize).unwrap_or(&[]));
    // SAFETY: the kernel wrote `len` bytes, no more than the spare capacity it was given.
    unsafe { landing.set_len(len) };
    let data = if len >= HAND_OVER_BYTES {
        mem::replace(landing, BytesMut::with_capacity(BUFFER_BYTES))
    } else {
        BytesMut::from(&landing[..])
    };
    Ok(Some(Received { from, ecn: marks.ecn, stride: marks.stride.unwrap_or(len), data }))
}

fn poll_all(polled: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    let limit = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let limit = limit.as_ref().map_or(std::ptr::null(), |limit| &raw const *limit);
    // SAFETY: the slice and the time limit are borrowed for the call; no signal mask is passed.
    let ready = unsafe { libc::ppoll(polled.as_mut_ptr(), polled.len() as _, limit, std::ptr::null()) };
    if ready >= 0 {
        return Ok(());
    }
    // After a failure the answers are undefined.
    polled.iter_mut().for_each(|polled| polled.revents = 0);
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

/// Reads an eventfd that poll called readable.
fn clear(eventfd: BorrowedFd<'_>) {
    let mut count = 0u64;
    // SAFETY: eight bytes of a local, written during the call.
    unsafe { libc::read(eventfd.as_raw_fd(), (&raw mut count).cast(), mem::size_of::<u64>()) };
}

impl Io for SyscallIo {
    fn open(&mut self, socket: UdpSocket) -> io::Result<Port> {
        if self.ports.len() >= self.limits.max_ports {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many sockets on one executor"));
        }
        let state = PortState { socket, segmentation: Segmentation::default(), readable: true, full: false };
        let port = self.ports.insert(state) as u32;
        self.order.push_back(port as usize);
        self.sends.grow(self.limits.sends(self.ports.len()));
        Ok(Port(port))
    }

    fn close(&mut self, port: Port) {
        if self.ports.try_remove(port.0 as usize).is_none() {
            return;
        }
        self.order.retain(|open| *open != port.0 as usize);
        // At once, because the number may be reused.
        for _ in 0..self.queue.len() {
            match self.queue.pop_front() {
                Some(send) if send.port == port.0 => self.sends.recycle(send),
                Some(send) => self.queue.push_back(send),
                None => return,
            }
        }
    }

    fn receive(&mut self, limit: usize, sink: &mut dyn FnMut(Port, Received)) -> usize {
        if !self.ports.iter().any(|(_, port)| port.readable) {
            // A failure shows at the next park.
            let _ = self.poll(Some(Duration::ZERO));
        }
        let mut handed = 0;
        for _ in 0..self.order.len() {
            self.order.rotate_left(1);
            let Some(&key) = self.order.front() else { break };
            for _ in 0..BURST {
                if handed >= limit {
                    return handed;
                }
                if !self.ports.get(key).is_some_and(|port| port.readable) {
                    break;
                }
                match self.receive_from(key) {
                    None => break,
                    Some(Landed::Nothing) => {}
                    Some(Landed::Batch(None)) => self.counters.discarded_in += 1,
                    Some(Landed::Batch(Some(batch))) => {
                        self.counters.count_received(batch.data.len(), batch.stride);
                        handed += 1;
                        sink(Port(key as u32), batch);
                    }
                }
            }
        }
        handed
    }

    fn take_buffer(&mut self) -> Option<Vec<u8>> {
        self.sends.take_buffer(&mut self.counters)
    }

    fn return_buffer(&mut self, buffer: Vec<u8>) {
        self.sends.return_buffer(buffer);
    }

    fn send(&mut self, port: Port, transmit: &Transmit, buffer: Vec<u8>) {
        let bytes = sendable(transmit, &buffer);
        let Some(state) = self.ports.get_mut(port.0 as usize) else {
            return self.sends.return_buffer(buffer);
        };
        let segment = joined_segment(transmit, bytes);
        if segment.is_some() && state.segmentation.next() == Joining::Singly {
            let payload = &buffer[..bytes];
            send_singly(state.socket.as_fd(), &mut self.scratch, transmit, payload, &mut self.counters);
            return self.sends.return_buffer(buffer);
        }
        if self.queue.len() >= self.limits.sends(self.ports.len()) {
            self.counters.send_errors.no_room += 1;
            return self.sends.return_buffer(buffer);
        }
        self.queue.push_back(Send::new(port.0, *transmit, bytes, segment, buffer));
    }

    fn flush(&mut self) -> io::Result<()> {
        self.drain_queue();
        Ok(())
    }

    fn park(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.drain_queue();
        if mem::take(&mut self.woken)
            || self.sends.relieved()
            || self.ports.iter().any(|(_, port)| port.readable)
        {
            return Ok(());
        }
        self.counters.parks += 1;
        self.poll(timeout)?;
        self.woken = false;
        self.drain_queue();
        Ok(())
    }

    fn counters(&self) -> IoCounters {
        self.counters
    }
}
