//! The loop of one executor: turns its lanes one after another over one ring, and parks inside that ring.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, TryRecvError};
use std::net::UdpSocket;

use crate::sync::WakeWord;
use crate::types::Instant;

use super::io::{Io, Port};
use super::lane::{Lane, Turned};
use super::stats::LaneState;

/// Nanoseconds since `epoch`, the one clock of an executor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    pub(super) epoch: std::time::Instant,
}

impl Clock {
    pub(super) fn now(self) -> Instant {
        Instant::ZERO + self.epoch.elapsed()
    }
}

/// What other threads tell a driver.
pub(super) enum Control {
    /// Run this lane on this socket.
    Add(Box<Lane>, UdpSocket),
    /// End.
    Stop,
}

struct Running {
    lane: Lane,
    port: Port,
}

/// See the module.
pub(super) struct Driver<I> {
    io: I,
    clock: Clock,
    control: Receiver<Control>,
    wake: Arc<WakeWord>,
    /// How long to look for work before parking.
    spin: Duration,
    /// By port number.
    lanes: Vec<Option<Running>>,
}

impl<I: Io> Driver<I> {
    /// Batches of datagrams taken in before the lanes turn.
    const RECEIVE: usize = 16;

    pub(super) fn new(
        io: I,
        clock: Clock,
        control: Receiver<Control>,
        wake: Arc<WakeWord>,
        spin: Duration,
    ) -> Driver<I> {
        Driver { io, clock, control, wake, spin, lanes: Vec::new() }
    }

    /// Runs until told to stop, or until every other end of the control queue is gone.
    pub(super) fn run(&mut self) -> std::io::Result<()> {
        let mut idle_since = None;
        while self.take_control() {
            let now = self.clock.now();
            self.receive(now);
            let busy = self.turn(now);
            self.io.flush()?;
            if busy {
                idle_since = None;
                continue;
            }
            let since = *idle_since.get_or_insert(now);
            if now.saturating_since(since) < self.spin {
                std::hint::spin_loop();
                continue;
            }
            self.park()?;
            idle_since = None;
        }
        Ok(())
    }

    fn take_control(&mut self) -> bool {
        loop {
            match self.control.try_recv() {
                Ok(Control::Add(lane, socket)) => self.add(*lane, socket),
                Err(TryRecvError::Empty) => return true,
                Ok(Control::Stop) | Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn add(&mut self, lane: Lane, socket: UdpSocket) {
        match self.io.open(socket) {
            Ok(port) => {
                let index = port.0 as usize;
                if self.lanes.len() <= index {
                    self.lanes.resize_with(index + 1, || None);
                }
                if let Some(place) = self.lanes.get_mut(index) {
                    *place = Some(Running { lane, port });
                }
            }
            Err(error) => {
                tracing::error!(%error, "a lane's socket cannot be opened");
                lane.end(LaneState::Failed);
            }
        }
    }

    fn receive(&mut self, now: Instant) {
        let lanes = &mut self.lanes;
        self.io.receive(Self::RECEIVE, &mut |port, received| {
            if let Some(Some(running)) = lanes.get_mut(port.0 as usize) {
                running.lane.handle_received(now, received);
            }
        });
    }

    /// Turns every lane once. A lane that panics is taken out; the others go on.
    fn turn(&mut self, now: Instant) -> bool {
        let mut busy = false;
        for place in &mut self.lanes {
            let Some(running) = place else { continue };
            let io = &mut self.io;
            let turned = catch_unwind(AssertUnwindSafe(|| running.lane.turn(now, io, running.port)));
            let ended = match turned {
                Ok(Turned::Idle) => continue,
                Ok(Turned::Busy) => {
                    busy = true;
                    continue;
                }
                Ok(Turned::Ended) => LaneState::Stopped,
                Err(_) => {
                    tracing::error!("a lane panicked and is stopped");
                    LaneState::Failed
                }
            };
            busy = true;
            if let Some(Running { lane, port }) = place.take() {
                self.io.close(port);
                lane.end(ended);
            }
        }
        busy
    }

    /// Announces the park, looks once more, and waits. Whoever pushes after the announcement wakes the ring.
    fn park(&mut self) -> std::io::Result<()> {
        self.lanes.iter_mut().flatten().for_each(|running| running.lane.publish());
        self.wake.prepare_park();
        let work = !self.control.is_empty()
            || self.lanes.iter().flatten().any(|running| running.lane.has_commands());
        if !work {
            let deadline = self.lanes.iter().flatten().filter_map(|running| running.lane.deadline()).min();
            let now = self.clock.now();
            let timeout = deadline.map(|at| at.saturating_since(now));
            if timeout != Some(Duration::ZERO) {
                self.io.park(timeout)?;
            }
        }
        self.wake.unpark();
        Ok(())
    }
}

impl<I> Drop for Driver<I> {
    fn drop(&mut self) {
        for running in self.lanes.drain(..).flatten() {
            running.lane.end(LaneState::Stopped);
        }
    }
}
