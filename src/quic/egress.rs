//! One peer's outgoing streams: what is queued, by class, and how it enters quinn's send buffer.
//!
//! Promises: of two streams that have unsent bytes, the one of the more urgent class goes first, in here and
//! inside quinn; bulk never fills the buffer so far that urgent data cannot enter. A class takes new work
//! only while little of its old work is unwritten, so what is committed and not sent stays small.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};
use quinn_proto::{Connection, Dir, StreamId, WriteError};

use super::link::{ABANDONED, Io};
use crate::types::{Class, PerClass, StreamKey};
use crate::wire::Incoming;

/// Unwritten bytes of a class from which on it takes nothing new.
const LOW_WATER: usize = 32 << 10;
/// Bytes handed to quinn at a time: its send buffer frees acknowledged pieces whole, and scans them for every
/// packet.
const SLICE: usize = 64 << 10;
/// The least that may wait for acknowledgement, however narrow the path.
const MIN_BUFFER: u64 = 256 << 10;
/// Streams at the head of a rank that may be blocked by their own window before the rest of the rank waits.
const BLOCKED_STREAMS: usize = 2;
/// Streams of a rank between two uses of one priority.
const SEQUENCE: u32 = 1 << 27;

/// What a class's bytes may fill.
#[derive(Debug, Clone, Copy)]
pub(super) struct SendWindows {
    pub(super) bulk: u64,
    pub(super) urgent_reserve: u64,
}

impl SendWindows {
    /// Three congestion windows suffice to keep the path full through a loss; more would only be committed
    /// earlier.
    fn of(self, class: Class, congestion_window: u64) -> u64 {
        let bulk = self.bulk.min(congestion_window.saturating_mul(3).max(MIN_BUFFER));
        match class {
            Class::Critical | Class::High => bulk.saturating_add(self.urgent_reserve),
            Class::Normal | Class::Bulk => bulk,
        }
    }
}

/// One stream that is not written to its end.
#[derive(Debug)]
pub(super) struct Unwritten {
    /// `None`: a unidirectional stream, opened when credit allows.
    pub(super) stream: Option<StreamId>,
    pub(super) key: Option<StreamKey>,
    pub(super) head: Bytes,
    pub(super) body: Bytes,
}

impl Unwritten {
    fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Written,
    Blocked,
    NoCredit,
    Unwanted,
}

/// Within a class, frames and requests (small) go before bodies.
const RANKS: usize = 2 * Class::ALL.len();

#[derive(Debug, Default)]
pub(super) struct Egress {
    queues: [VecDeque<Unwritten>; RANKS],
    unwritten: PerClass<usize>,
    /// A unidirectional stream opened ahead, so that credit is known before it is needed.
    spare: Option<StreamId>,
    sequence: u32,
}

impl Egress {
    /// The least urgent class that takes something now.
    pub(super) fn room(&self) -> Option<Class> {
        self.spare?;
        Class::ALL.into_iter().take_while(|&class| self.unwritten[class] < LOW_WATER).last()
    }

    /// Bytes that are queued.
    pub(super) fn unwritten(&self) -> usize {
        self.unwritten.0.iter().sum()
    }

    /// Whether anything is queued.
    pub(super) fn is_empty(&self) -> bool {
        self.unwritten.0.iter().all(|&bytes| bytes == 0)
    }

    /// Queues a stream. Bodies wait behind the small streams of their class.
    pub(super) fn queue(&mut self, connection: &mut Connection, class: Class, unwritten: Unwritten) {
        let rank = 2 * class.index() + usize::from(!unwritten.body.is_empty());
        self.unwritten[class] += unwritten.len();
        if let Some(stream) = unwritten.stream {
            self.prioritise(connection, stream, rank);
        }
        if let Some(queue) = self.queues.get_mut(rank) {
            queue.push_back(unwritten);
        }
    }

    /// Drops the stream's unwritten bytes.
    pub(super) fn remove(&mut self, is_it: impl Fn(&Unwritten) -> bool) {
        for (rank, queue) in self.queues.iter_mut().enumerate() {
            let Some(&class) = Class::ALL.get(rank / 2) else { continue };
            if let Some(at) = queue.iter().position(&is_it) {
                self.unwritten[class] -= queue.remove(at).map_or(0, |unwritten| unwritten.len());
            }
        }
    }

    /// Writes what fits, the most urgent first.
    pub(super) fn write(&mut self, io: &mut Io<'_>) {
        if !self.is_empty() {
            let windows = io.shared.limits.send_windows;
            let congestion_window = io.connection.congestion_state().window();
            for class in Class::ALL {
                if self.unwritten[class] > 0 {
                    io.connection.set_send_window(windows.of(class, congestion_window));
                    self.write_rank(io, class, 2 * class.index());
                    self.write_rank(io, class, 2 * class.index() + 1);
                }
            }
            io.connection.set_send_window(windows.of(Class::Bulk, congestion_window));
        }
        if self.spare.is_none() {
            self.spare = io.connection.streams().open(Dir::Uni);
        }
    }

    fn write_rank(&mut self, io: &mut Io<'_>, class: Class, rank: usize) {
        let (mut at, mut blocked) = (0, 0);
        while let Some(mut unwritten) = self.queues.get_mut(rank).and_then(|queue| queue.remove(at)) {
            let before = unwritten.len();
            let outcome = self.write_one(io, rank, &mut unwritten);
            self.unwritten[class] -= before - unwritten.len();
            match outcome {
                Outcome::Written => continue,
                Outcome::Unwanted => {
                    self.unwritten[class] -= unwritten.len();
                    if let Some(key) = unwritten.key {
                        io.keys.end(key, Incoming::Sent { key, whole: false }, io.peer, io.shared);
                    }
                    continue;
                }
                Outcome::Blocked | Outcome::NoCredit => (),
            }
            if let Some(queue) = self.queues.get_mut(rank) {
                queue.insert(at, unwritten);
            }
            (at, blocked) = (at + 1, blocked + 1);
            if outcome == Outcome::NoCredit || blocked == BLOCKED_STREAMS {
                return;
            }
        }
    }

    fn write_one(&mut self, io: &mut Io<'_>, rank: usize, unwritten: &mut Unwritten) -> Outcome {
        let connection = &mut *io.connection;
        let stream = match unwritten.stream {
            Some(stream) => stream,
            None => {
                let opened = self.spare.take().or_else(|| connection.streams().open(Dir::Uni));
                let Some(stream) = opened else { return Outcome::NoCredit };
                self.prioritise(connection, stream, rank);
                unwritten.stream = Some(stream);
                if let Some(key) = unwritten.key {
                    io.keys.opened(key, stream);
                }
                stream
            }
        };
        for part in [&mut unwritten.head, &mut unwritten.body] {
            while !part.is_empty() {
                let mut slice = [part.slice(..part.len().min(SLICE))];
                match connection.send_stream(stream).write_chunks(&mut slice) {
                    Ok(written) => part.advance(written.bytes.min(part.len())),
                    Err(WriteError::Blocked) => return Outcome::Blocked,
                    Err(WriteError::Stopped(_) | WriteError::ClosedStream) => {
                        let _ = connection.send_stream(stream).reset(ABANDONED);
                        return Outcome::Unwanted;
                    }
                }
            }
        }
        match connection.send_stream(stream).finish() {
            Ok(()) => Outcome::Written,
            Err(_) => {
                let _ = connection.send_stream(stream).reset(ABANDONED);
                Outcome::Unwanted
            }
        }
    }

    /// A priority of its own for every stream: by rank, and within a rank the older stream first. When the
    /// sequence starts over, streams of one rank may overtake one another for a moment.
    fn prioritise(&mut self, connection: &mut Connection, stream: StreamId, rank: usize) {
        let urgency = (RANKS - 1).saturating_sub(rank) as u32 * SEQUENCE;
        let age = SEQUENCE - 1 - self.sequence % SEQUENCE;
        self.sequence = self.sequence.wrapping_add(1);
        let priority = i32::try_from(urgency + age).unwrap_or(i32::MAX);
        let _ = connection.send_stream(stream).set_priority(priority);
    }
}
