//! The io_uring back end: one private ring per executor.
//!
//! Receives are multishot: armed once per port, they post a completion per batch until the kernel ends them
//! (no buffer left, an error), and are then armed again; what arrives meanwhile waits in the socket. With
//! DEFER_TASKRUN the kernel does this work only inside our own `io_uring_enter`, so a full turn costs one
//! such call: it submits the sends and reaps the receives.
//!
//! Waiting: a `read` of the wake word's eventfd stays armed in the ring, and the time limit is an argument of
//! the call. No eventfd is ever registered *on* the ring: the kernel drops a signal that is nested in
//! another, and a wake would be lost.
//!
//! Bounds: the completion queue holds everything that can complete before we look, so it cannot overflow (see
//! [`completions`]).
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::mem::{self, ManuallyDrop};
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use slab::Slab;

use super::buffers::{Buffers, GROUP, NAME_ROOM};
use super::message::{Envelope, RECEIVE_CONTROL_BYTES, joined_segment, send_singly};
use super::segmentation::{Joining, Segmentation};
use super::sends::{Send, Sends, settle};
use super::{Io, IoCounters, IoLimits, Port, sendable};
use crate::sync::WakeWord;
use crate::types::{Received, Transmit};

/// Submissions between two enters; a full queue is submitted on the spot.
const SUBMISSIONS: u32 = 256;

/// How long `drop` waits for cancelled operations before it leaks their memory instead of freeing it under
/// the kernel.
const DRAIN: Duration = Duration::from_secs(2);

/// Receives and sends through a private io_uring. See [`Io`] for how to call it.
pub struct RingIo {
    ring: IoUring,
    limits: IoLimits,
    ports: Slab<PortState>,
    /// Ports whose receive must be armed (again).
    unarmed: Vec<u32>,
    buffers: ManuallyDrop<Buffers>,
    sends: ManuallyDrop<Sends>,
    /// Batches that completed and were not handed over yet; at most one per receive buffer.
    ready: VecDeque<Arrival>,
    /// Batches that have completed.
    completed: u64,
    waker: ManuallyDrop<Box<Waker>>,
    /// Operations that the kernel has not ended. While any is left, no memory they point to is freed.
    in_flight: usize,
    counters: IoCounters,
    /// For sends repeated by plain calls.
    scratch: Box<Envelope>,
    /// SINGLE_ISSUER: the ring belongs to the thread that made it.
    _this_thread: PhantomData<*const ()>,
}

struct PortState {
    socket: UdpSocket,
    phase: Phase,
    /// Operations of this port in the kernel, its cancellation included. The socket stays open until they
    /// have ended.
    in_flight: usize,
    /// Batches that had completed on all ports when this one's last did.
    served: u64,
    segmentation: Segmentation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Nothing is delivered or sent any more; gone when its last operation ended.
    Closing,
}

struct Arrival {
    port: u32,
    buffer: u16,
    len: usize,
}

/// What the kernel reads and writes for as long as the ring runs, at fixed addresses.
struct Waker {
    word: Arc<WakeWord>,
    armed: bool,
    /// A wake was reaped and no park has ended for it yet: the next park must not wait. Any call that enters
    /// the kernel may reap one between the driver's last look at its mailboxes and the wait, and without
    /// DEFER_TASKRUN it may be posted at any time.
    woken: bool,
    /// Where the `read` of the eventfd puts its count.
    count: u64,
    /// The shape of every multishot receive: how much room the address and the control messages get.
    shape: libc::msghdr,
}

/// What a completion belongs to, in its user data: the kind in the upper half, an index in the lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Receive(u32),
    Send(u32),
    Cancel(u32),
    Wake,
    CancelAll,
}

impl Operation {
    fn encode(self) -> u64 {
        let (kind, index) = match self {
            Operation::Receive(port) => (1, port),
            Operation::Send(slot) => (2, slot),
            Operation::Cancel(port) => (3, port),
            Operation::Wake => (4, 0),
            Operation::CancelAll => (5, 0),
        };
        kind << 32 | u64::from(index)
    }

    fn decode(data: u64) -> Option<Operation> {
        let index = data as u32;
        match data >> 32 {
            1 => Some(Operation::Receive(index)),
            2 => Some(Operation::Send(index)),
            3 => Some(Operation::Cancel(index)),
            4 => Some(Operation::Wake),
            5 => Some(Operation::CancelAll),
            _ => None,
        }
    }
}

/// Completions that can be outstanding at once.
fn completions(limits: &IoLimits) -> usize {
    limits.receives() // a batch in each receive buffer
        + limits.sends(limits.max_ports) // every send
        + 2 * limits.max_ports // the end of each port's receive, and its cancellation
        + 2 // the wake word, and the cancellation of everything
}

/// Entries of the table of provided buffers.
fn table_capacity(limits: &IoLimits) -> usize {
    limits.receives().next_power_of_two()
}

/// Entries of the completion queue.
fn completion_entries(limits: &IoLimits) -> u32 {
    // The kernel refuses fewer completions than submissions.
    (completions(limits) as u32).max(SUBMISSIONS).next_power_of_two()
}

impl RingIo {
    /// Memory that the kernel charges against RLIMIT_MEMLOCK for one ring (since Linux 6.13; before, only the
    /// last line).
    pub fn locked_bytes(limits: &IoLimits) -> u64 {
        let pages = |bytes: u64| bytes.next_multiple_of(4096);
        let submissions = u64::from(SUBMISSIONS);
        pages(submissions * 64) // submission entries
            + pages(1024 + submissions * 4 + u64::from(completion_entries(limits)) * 16) // heads, index, completions
            + pages(table_capacity(limits) as u64 * 16) // the table of provided buffers
    }

    /// A ring for the calling thread, without ports.
    ///
    /// # Errors
    /// io_uring is missing or forbidden, or the kernel lacks provided-buffer rings or waits with a time
    /// limit.
    pub fn new(wake: Arc<WakeWord>, limits: IoLimits) -> io::Result<RingIo> {
        RingIo::on(build(&limits)?, wake, limits)
    }

    /// With none of the optional flags, as on the oldest kernels.
    #[cfg(test)]
    pub(super) fn without_flags(wake: Arc<WakeWord>, limits: IoLimits) -> io::Result<RingIo> {
        let ring = IoUring::builder().setup_cqsize(completion_entries(&limits)).build(SUBMISSIONS)?;
        RingIo::on(ring, wake, limits)
    }

    fn on(ring: IoUring, wake: Arc<WakeWord>, limits: IoLimits) -> io::Result<RingIo> {
        if !ring.params().is_feature_ext_arg() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "io_uring waits have no time limit on this kernel",
            ));
        }
        let buffers = Buffers::new(u16::try_from(table_capacity(&limits)).unwrap_or(4096));
        buffers.register(&ring.submitter())?;
        // SAFETY: a C struct of integers and pointers, for which all zeroes is a value.
        let mut shape: libc::msghdr = unsafe { mem::zeroed() };
        shape.msg_namelen = NAME_ROOM as _;
        shape.msg_controllen = RECEIVE_CONTROL_BYTES as _;
        let waker = Waker { word: wake, armed: false, woken: false, count: 0, shape };
        let mut io = RingIo {
            ring,
            limits,
            ports: Slab::new(),
            unarmed: Vec::new(),
            buffers: ManuallyDrop::new(buffers),
            sends: ManuallyDrop::new(Sends::new()),
            ready: VecDeque::new(),
            completed: 0,
            waker: ManuallyDrop::new(Box::new(waker)),
            in_flight: 0,
            counters: IoCounters::default(),
            scratch: Envelope::new(),
            _this_thread: PhantomData,
        };
        io.buffers.fill(io.limits.receives());
        io.ready.reserve(io.limits.receives());
        io.grow();
        Ok(io)
    }

    /// Whether this kernel's multishot receive works as this back end needs it, tried on a pair of sockets.
    pub(crate) fn probe() -> io::Result<()> {
        let limits = IoLimits { receive_buffers: 2, send_buffers: 1, max_ports: 1, ..IoLimits::default() };
        let mut io = RingIo::new(Arc::new(WakeWord::new()?), limits)?;
        // A pair of local sockets needs no network, which a fresh namespace may lack. Its datagrams carry no
        // address, so they count as discarded: they came through.
        let (near, far) = std::os::unix::net::UnixDatagram::pair()?;
        near.set_nonblocking(true)?;
        io.open(UdpSocket::from(std::os::fd::OwnedFd::from(near)))?;
        for round in 1..=2 {
            io.flush()?;
            far.send(b"probe")?;
            io.park(Some(Duration::from_millis(100)))?;
            io.receive(usize::MAX, &mut |_, _| {});
            if io.counters.discarded_in != round || io.counters.receive_errors > 0 {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "multishot receives do not work"));
            }
        }
        Ok(())
    }

    fn grow(&mut self) {
        self.sends.grow(self.limits.sends(self.ports.len()));
    }

    /// Puts an operation into the submission queue, emptying it into the kernel when it is full.
    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        for _ in 0..2 {
            // SAFETY: whatever the entry points to is owned by `self` (`sends`, `waker`, `buffers`), at an
            // address that does not change, and is not freed before the operation's completion: `drop` waits
            // for `in_flight` to be zero.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                self.in_flight += 1;
                return Ok(());
            }
            self.enter(0, None)?;
        }
        Err(io::Error::new(io::ErrorKind::WouldBlock, "the submission queue stays full"))
    }

    /// Submits everything queued, lets the kernel run deferred work, and waits for `want` completions, at
    /// most `timeout`.
    fn enter(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<()> {
        self.counters.enters += 1;
        let queued = self.ring.submission().len() as u32;
        let submitter = self.ring.submitter();
        let result = match timeout {
            None => {
                let flags = EnterFlags::GETEVENTS.bits();
                // SAFETY: no argument is passed.
                unsafe { submitter.enter::<libc::sigset_t>(queued, want, flags, None) }
            }
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&timespec);
                let flags = (EnterFlags::GETEVENTS | EnterFlags::EXT_ARG).bits();
                // SAFETY: the arguments and what they point to live until the call returns.
                unsafe { submitter.enter(queued, want, flags, Some(&args)) }
            }
        };
        match result {
            Ok(_) => Ok(()),
            // Time is up; a signal; the kernel wants its completions reaped, or is short of memory, and keeps
            // what is queued.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Takes everything out of the completion queue: sends and wakes are settled, batches wait in `ready`.
    fn reap(&mut self) {
        // The queue cannot be borrowed while completions are settled; one at a time costs two uncontended
        // accesses each.
        loop {
            let next = self.ring.completion().next();
            let Some(entry) = next else { return };
            self.complete(&entry);
        }
    }

    fn complete(&mut self, entry: &cqueue::Entry) {
        let Some(operation) = Operation::decode(entry.user_data()) else { return };
        let ended = !cqueue::more(entry.flags());
        if ended {
            self.in_flight -= 1;
        }
        match operation {
            Operation::Receive(port) => self.complete_receive(port, entry, ended),
            Operation::Send(slot) => self.complete_send(slot, entry.result()),
            Operation::Cancel(port) => self.release(port),
            Operation::Wake => {
                self.waker.armed = false;
                if entry.result() > 0 {
                    self.waker.woken = true;
                    self.counters.wakes += 1;
                }
            }
            Operation::CancelAll => {}
        }
    }

    fn complete_receive(&mut self, port: u32, entry: &cqueue::Entry, ended: bool) {
        let result = entry.result();
        if let Some(buffer) = cqueue::buffer_select(entry.flags()) {
            self.buffers.completed();
            let len = usize::try_from(result).unwrap_or(0);
            self.ready.push_back(Arrival { port, buffer, len });
            self.completed += 1;
            if let Some(state) = self.ports.get_mut(port as usize) {
                state.served = self.completed;
            }
        } else {
            match -result {
                libc::ENOBUFS => self.counters.receive_buffers_exhausted += 1,
                libc::ECANCELED | 0 => {}
                _ => self.counters.receive_errors += 1,
            }
        }
        if ended {
            self.unarmed.push(port);
            self.release(port);
        }
    }

    fn complete_send(&mut self, slot: u32, result: i32) {
        let Some(send) = self.sends.finish(slot) else { return };
        let port = send.port;
        if let Some(state) = self.ports.get_mut(port as usize)
            && state.phase == Phase::Open
        {
            let result = if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) };
            let PortState { socket, segmentation, .. } = state;
            settle(&send, result, socket.as_fd(), segmentation, &mut self.scratch, &mut self.counters);
        }
        self.sends.recycle(send);
        self.release(port);
    }

    /// An operation of a port ended; a closing port without any is gone.
    fn release(&mut self, port: u32) {
        let Some(state) = self.ports.get_mut(port as usize) else { return };
        state.in_flight = state.in_flight.saturating_sub(1);
        if state.phase == Phase::Closing && state.in_flight == 0 {
            self.unarmed.retain(|unarmed| *unarmed != port);
            self.ready
                .iter()
                .filter(|arrival| arrival.port == port)
                .for_each(|a| self.buffers.discard(a.buffer));
            self.ready.retain(|arrival| arrival.port != port);
            self.ports.remove(port as usize);
        }
    }

    /// Arms what must be armed and can be: a receive needs at least one buffer. Who was served last comes last, for the first
    /// may use up all buffers.
    fn arm(&mut self) -> io::Result<()> {
        self.buffers.publish();
        if self.unarmed.len() > 1 {
            let ports = &self.ports;
            let served = |port: &u32| ports.get(*port as usize).map(|state| state.served);
            self.unarmed.sort_unstable_by_key(|port| std::cmp::Reverse(served(port)));
        }
        while self.buffers.with_kernel() > 0
            && let Some(port) = self.unarmed.pop()
        {
            let Some(state) = self.ports.get_mut(port as usize) else { continue };
            if state.phase == Phase::Closing {
                continue;
            }
            let shape = &raw const self.waker.shape;
            let entry = opcode::RecvMsgMulti::new(Fd(state.socket.as_raw_fd()), shape, GROUP)
                .build()
                .user_data(Operation::Receive(port).encode());
            if let Err(error) = self.push(&entry) {
                self.unarmed.push(port);
                return Err(error);
            }
            self.ports[port as usize].in_flight += 1;
        }
        Ok(())
    }

    fn arm_wake(&mut self) -> io::Result<()> {
        if self.waker.armed {
            return Ok(());
        }
        let eventfd = Fd(self.waker.word.as_fd().as_raw_fd());
        let count = (&raw mut self.waker.count).cast();
        let entry = opcode::Read::new(eventfd, count, 8).build().user_data(Operation::Wake.encode());
        self.push(&entry)?;
        self.waker.armed = true;
        Ok(())
    }

    /// Whether an enter would bring anything: something to submit, or work that the kernel deferred until our
    /// next call.
    fn has_deferred(&mut self) -> bool {
        let submissions = self.ring.submission();
        !submissions.is_empty() || submissions.taskrun() || submissions.cq_overflow()
    }

    fn hand_over(&mut self, arrival: &Arrival) -> Option<Received> {
        if !self.ports.get(arrival.port as usize).is_some_and(|state| state.phase == Phase::Open) {
            self.buffers.discard(arrival.buffer);
            return None;
        }
        let received = self.buffers.take(arrival.buffer, arrival.len);
        match &received {
            Some(batch) => self.counters.count_received(batch.data.len(), batch.stride),
            None => self.counters.discarded_in += 1,
        }
        received
    }

    /// Cancels everything and waits until the kernel has let go of all memory. False if it did not in time.
    fn drain(&mut self) -> bool {
        let deadline = Instant::now() + DRAIN;
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
        while self.in_flight > 0 {
            self.unarmed.clear();
            // Again and again, because an operation may have been on its way when the first one passed.
            let pushed = self.push(&cancel.clone().user_data(Operation::CancelAll.encode()));
            let entered = self.enter(1, Some(Duration::from_millis(10)));
            self.reap();
            if pushed.is_err() || entered.is_err() || Instant::now() >= deadline {
                return self.in_flight == 0;
            }
        }
        true
    }
}

/// A ring with as many of the flags as the kernel takes: first all that measured best, then those of Linux
/// 5.19, then none.
fn build(limits: &IoLimits) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(completion_entries(limits)).setup_clamp();
    let mut best = builder.clone();
    best.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
    let mut cooperative = builder.clone();
    cooperative.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
    let refused = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    match best.build(SUBMISSIONS) {
        Err(error) if refused(&error) => match cooperative.build(SUBMISSIONS) {
            Err(error) if refused(&error) => builder.build(SUBMISSIONS),
            result => result,
        },
        result => result,
    }
}

impl Io for RingIo {
    fn open(&mut self, socket: UdpSocket) -> io::Result<Port> {
        if self.ports.len() >= self.limits.max_ports {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many sockets on one executor"));
        }
        let segmentation = Segmentation::default();
        let port = self.ports.insert(PortState {
            socket,
            phase: Phase::Open,
            in_flight: 0,
            served: 0,
            segmentation,
        }) as u32;
        self.unarmed.push(port);
        self.grow();
        self.arm()?;
        Ok(Port(port))
    }

    fn close(&mut self, port: Port) {
        let Some(state) = self.ports.get_mut(port.0 as usize) else { return };
        if state.phase == Phase::Closing {
            return;
        }
        state.phase = Phase::Closing;
        // One more, so that the port outlives this call and the descriptor that the cancellation names is
        // still its own.
        state.in_flight += 1;
        let by_socket = CancelBuilder::fd(Fd(state.socket.as_raw_fd())).all();
        let cancel =
            opcode::AsyncCancel2::new(by_socket).build().user_data(Operation::Cancel(port.0).encode());
        if self.push(&cancel).is_err() {
            // It ends with the ring.
            return;
        }
        // A failure shows at the next flush.
        let _ = self.enter(0, None);
        self.reap();
    }

    fn receive(&mut self, limit: usize, sink: &mut dyn FnMut(Port, Received)) -> usize {
        self.reap();
        // A failure shows at the next flush.
        if self.ready.is_empty() && self.has_deferred() && self.enter(0, None).is_ok() {
            self.reap();
        }
        let mut handed = 0;
        while handed < limit
            && let Some(arrival) = self.ready.pop_front()
        {
            if let Some(received) = self.hand_over(&arrival) {
                handed += 1;
                sink(Port(arrival.port), received);
            }
        }
        // A failure leaves the port in `unarmed` and shows at the next flush.
        let _ = self.arm();
        handed
    }

    fn take_buffer(&mut self) -> Option<Vec<u8>> {
        if !self.sends.has_idle() {
            self.reap();
        }
        self.sends.take_buffer(&mut self.counters)
    }

    fn return_buffer(&mut self, buffer: Vec<u8>) {
        self.sends.return_buffer(buffer);
    }

    fn send(&mut self, port: Port, transmit: &Transmit, buffer: Vec<u8>) {
        let bytes = sendable(transmit, &buffer);
        let Some(state) = self.ports.get_mut(port.0 as usize).filter(|state| state.phase == Phase::Open)
        else {
            return self.sends.return_buffer(buffer);
        };
        let socket = Fd(state.socket.as_raw_fd());
        let segment = joined_segment(transmit, bytes);
        if segment.is_some() && state.segmentation.next() == Joining::Singly {
            let payload = &buffer[..bytes];
            send_singly(state.socket.as_fd(), &mut self.scratch, transmit, payload, &mut self.counters);
            return self.sends.return_buffer(buffer);
        }
        let Some((slot, header)) = self.sends.begin(Send::new(port.0, *transmit, bytes, segment, buffer))
        else {
            self.counters.send_errors.no_room += 1;
            return;
        };
        state.in_flight += 1;
        let entry = opcode::SendMsg::new(socket, header).build().user_data(Operation::Send(slot).encode());
        if self.push(&entry).is_err() {
            self.complete_send(slot, -libc::ENOBUFS);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.arm()?;
        if self.has_deferred() { self.enter(0, None) } else { Ok(()) }
    }

    fn park(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.reap();
        self.arm()?;
        let woken = mem::take(&mut self.waker.woken);
        if woken || !self.ready.is_empty() || self.sends.relieved() {
            return self.flush();
        }
        self.arm_wake()?;
        self.counters.parks += 1;
        // What completes from here on stays in the queue, and the kernel does not wait over it.
        self.enter(1, timeout)?;
        self.reap();
        self.waker.woken = false;
        Ok(())
    }

    fn counters(&self) -> IoCounters {
        self.counters
    }
}

impl Drop for RingIo {
    fn drop(&mut self) {
        if !self.drain() {
            // The kernel may still write into this memory. A leak at the end of an executor is the lesser
            // harm.
            tracing::warn!(
                operations = self.in_flight,
                "io_uring did not cancel in time; its buffers are leaked"
            );
            return;
        }
        // Without operations nothing uses the buffers, and closing the ring ends the registration too.
        let _ = self.buffers.unregister(&self.ring.submitter());
        // SAFETY: the kernel has let go, and none of them is used after this.
        unsafe {
            ManuallyDrop::drop(&mut self.buffers);
            ManuallyDrop::drop(&mut self.sends);
            ManuallyDrop::drop(&mut self.waker);
        }
    }
}
