//! One peer's outgoing streams: what is queued, by class, and how it enters quinn's send buffer.
//!
//! Promises: of two streams that have unsent bytes, the one of the more urgent class goes first inside quinn, and in here
//! as long as its class keeps to its share ([`Shares`]); bulk never fills the buffer so far that urgent data cannot enter.
//! A class takes new work only while little of its old work is unwritten, so what is committed and not sent stays small.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use quinn_proto::{Connection, Dir, StreamId, WriteError};

use super::congestion::Flight;
use super::link::{ABANDONED, Io};
use super::shares::Shares;
use crate::metrics::Stage;
use crate::types::{Class, Classes, Instant, PerClass, StreamKey, Weights};
use crate::wire::Incoming;

/// Unwritten bytes of a class from which on it takes nothing new.
const LOW_WATER: usize = 32 << 10;
/// Bytes handed to quinn at a time: its send buffer frees acknowledged pieces whole, and scans them for every
/// packet.
const SLICE: usize = 64 << 10;
/// Bytes that may wait in quinn's buffer to be sent for the first time: what keeps the path busy until more are written, and what
/// an urgent class may have to wait for that is held to its share.
const UNSENT: u64 = 256 << 10;
/// Bytes of a datagram that carry no stream, at most as a rule: heads, a seal, an acknowledgement.
const OVERHEAD: usize = 56;
/// Round trips after a loss in which more may: what was received behind a gap counts as not acknowledged until the gap is closed.
const RECOVERY: u32 = 2;
/// Streams at the head of a rank that may be blocked by their own window before the rest of the rank waits.
const BLOCKED_STREAMS: usize = 2;
/// Unidirectional streams opened ahead, so that credit is known before it is needed.
const SPARES: usize = 4;
/// Of these, the last ones are for urgent classes.
const URGENT_SPARES: usize = 2;
/// Streams of a rank between two uses of one priority.
const SEQUENCE: u32 = 1 << 27;

/// What a class's bytes may fill.
#[derive(Debug, Clone, Copy)]
pub(super) struct SendWindows {
    pub(super) bulk: u64,
    pub(super) urgent_reserve: u64,
}

impl SendWindows {
    /// How much of what is written may be without acknowledgement, when as much as `ahead` is sent or to be sent.
    fn of(self, class: Class, ahead: u64) -> u64 {
        let bulk = self.bulk.min(ahead);
        if class.is_urgent() { bulk.saturating_add(self.urgent_reserve.min(UNSENT)) } else { bulk }
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
    /// When it was queued.
    pub(super) since: Instant,
}

impl Unwritten {
    fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

/// What came of writing a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It is written to its end.
    Written,
    /// Its class has had its turn.
    Paused,
    /// The connection takes no more bytes of its class.
    Held,
    /// The peer takes no more of this stream now.
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
    shares: Shares,
    /// Opened and not used, the oldest first.
    spares: VecDeque<StreamId>,
    sequence: u32,
    /// Bytes that are written and not transmitted, as far as can be told from datagrams: too many rather than too few, but for
    /// retransmissions.
    unsent: PerClass<usize>,
    /// What is left waits for another class to catch up.
    waits_for_share: bool,
    /// The batch whose acknowledgement is waited for, and since when it is wholly written: one at a time.
    timed: PerClass<Option<(StreamId, Instant)>>,
    /// Datagrams were asked for since the last write.
    polled: bool,
    flight: Arc<Flight>,
    /// Losses seen so far, and until when the last one counts.
    losses: u64,
    recovers_at: Instant,
}

impl Egress {
    pub(super) fn new(weights: Weights, flight: Arc<Flight>) -> Egress {
        Egress { shares: Shares::new(weights), flight, ..Egress::default() }
    }

    /// The classes that take something now.
    pub(super) fn room(&self) -> Classes {
        let takes = |class| self.unwritten[class] < LOW_WATER && self.spares.len() > self.kept_from(class);
        Classes::that(takes)
    }

    /// Spare streams that are not for this class.
    fn kept_from(&self, class: Class) -> usize {
        if class.is_urgent() { 0 } else { URGENT_SPARES }
    }

    /// Bytes that are queued.
    pub(super) fn unwritten(&self) -> usize {
        self.unwritten.0.iter().sum()
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

    /// Bytes of urgent classes that wait for a datagram.
    pub(super) fn urgent(&self) -> usize {
        self.unsent[Class::Critical] + self.unsent[Class::High]
    }

    /// So many datagrams were transmitted, with so many bytes in all. What is more urgent was in them first.
    pub(super) fn transmitted(&mut self, datagrams: usize, bytes: usize) {
        let mut left = bytes.saturating_sub(datagrams * OVERHEAD);
        self.polled = true;
        for unsent in &mut self.unsent.0 {
            let sent = left.min(*unsent);
            (*unsent, left) = (*unsent - sent, left - sent);
        }
    }

    /// There was nothing to transmit, or the path takes no more now. Whether there may be something after the next write.
    pub(super) fn nothing_transmitted(&mut self) -> bool {
        self.polled = true;
        let all_through = self.flight.bytes() == 0;
        if all_through {
            self.unsent = PerClass::default();
        }
        all_through && self.waits_for_share
    }

    /// Whether something may be written as soon as something else is transmitted.
    pub(super) fn waits_for_share(&self) -> bool {
        self.waits_for_share
    }

    /// Writes what fits, the most urgent first that is not ahead of its share. Whether anything was written.
    pub(super) fn write(&mut self, io: &mut Io<'_>) -> bool {
        let before = self.unwritten();
        self.waits_for_share = false;
        if before > 0 {
            self.write_all(io);
        }
        self.open_spares(io.connection);
        self.unwritten() < before
    }

    fn open_spares(&mut self, connection: &mut Connection) {
        while self.spares.len() < SPARES
            && let Some(stream) = connection.streams().open(Dir::Uni)
        {
            self.spares.push_back(stream);
        }
    }

    fn write_all(&mut self, io: &mut Io<'_>) {
        let windows = io.shared.limits.send_windows;
        let ahead = self.ahead(io.connection, io.shared.now);
        let idle = self.flight.take_idle();
        if std::mem::take(&mut self.polled) && idle {
            self.unsent = PerClass::default();
        }
        self.shares.begin(Classes::that(|class| self.unwritten[class] + self.unsent[class] > 0));
        let (mut held, mut through) = (Classes::NONE, Classes::that(|class| self.unwritten[class] == 0));
        while let Some(class) = self.shares.next(held, through) {
            io.connection.set_send_window(windows.of(class, ahead));
            let most = if self.shares.is_alone(class) { usize::MAX } else { SLICE };
            let before = self.unwritten[class];
            let outcome = self.write_class(io, class, most);
            let written = before - self.unwritten[class];
            self.shares.serve(class, written as u64);
            self.unsent[class] = (self.unsent[class] + written).min(2 * UNSENT as usize);
            match outcome {
                Outcome::Paused => (),
                Outcome::Held => held = held.with(class),
                // It is not sent yet, and more may come: until then others do not run away from it.
                Outcome::Written => through = through.with(class),
                Outcome::Blocked | Outcome::NoCredit | Outcome::Unwanted => self.shares.end(class),
            }
        }
        let mut able = Class::ALL.into_iter().take_while(|class| !held.has(*class));
        self.waits_for_share =
            able.any(|class| self.unwritten[class] > 0 && self.shares.is_backlogged(class));
        io.connection.set_send_window(windows.of(Class::Bulk, ahead));
    }

    /// Bytes that may be sent or to be sent: those in flight and [`UNSENT`] more. After a loss three congestion windows, so that
    /// the path stays full.
    fn ahead(&mut self, connection: &Connection, now: Instant) -> u64 {
        let losses = self.flight.losses();
        if std::mem::replace(&mut self.losses, losses) != losses {
            self.recovers_at = now + connection.rtt() * RECOVERY;
        }
        let in_flight = self.flight.bytes();
        // Of packets, which are longer than what they carry of streams.
        let ahead = in_flight - in_flight / 40 + UNSENT;
        if now < self.recovers_at {
            ahead.max(connection.congestion_state().window().saturating_mul(3))
        } else {
            ahead
        }
    }

    /// Writes at most `most` bytes of a class, or one stream's slice more.
    fn write_class(&mut self, io: &mut Io<'_>, class: Class, most: usize) -> Outcome {
        let goal = self.unwritten[class].saturating_sub(most);
        let small = self.write_rank(io, class, 2 * class.index(), goal);
        match small {
            Outcome::Written | Outcome::Blocked => self.write_rank(io, class, 2 * class.index() + 1, goal),
            _ => small,
        }
    }

    /// Writes the streams of a rank until no more than `goal` bytes of its class are left.
    fn write_rank(&mut self, io: &mut Io<'_>, class: Class, rank: usize, goal: usize) -> Outcome {
        let (mut at, mut blocked) = (0, 0);
        while let Some(mut unwritten) = self.queues.get_mut(rank).and_then(|queue| queue.remove(at)) {
            let before = unwritten.len();
            let most = self.unwritten[class].saturating_sub(goal);
            let outcome = match most {
                0 => Outcome::Paused,
                most => self.write_one(io, class, rank, &mut unwritten, most),
            };
            self.unwritten[class] -= before - unwritten.len();
            match outcome {
                Outcome::Written => {
                    self.written(io, class, &unwritten);
                    continue;
                }
                Outcome::Unwanted => {
                    self.unwritten[class] -= unwritten.len();
                    if let Some(key) = unwritten.key {
                        io.keys.end(key, Incoming::Sent { key, whole: false }, io.peer, io.shared);
                    }
                    continue;
                }
                Outcome::Paused | Outcome::Held | Outcome::Blocked | Outcome::NoCredit => (),
            }
            if let Some(queue) = self.queues.get_mut(rank) {
                queue.insert(at, unwritten);
            }
            if outcome != Outcome::Blocked {
                return outcome;
            }
            (at, blocked) = (at + 1, blocked + 1);
            if blocked == BLOCKED_STREAMS {
                return Outcome::Blocked;
            }
        }
        if blocked > 0 { Outcome::Blocked } else { Outcome::Written }
    }

    /// All of a stream is in QUIC's buffer.
    fn written(&mut self, io: &mut Io<'_>, class: Class, unwritten: &Unwritten) {
        let now = io.shared.now;
        io.shared.record(class, Stage::Egress, unwritten.since);
        match (unwritten.key, unwritten.stream) {
            (Some(key), _) => io.keys.written(key, class, now),
            (None, Some(stream)) if stream.dir() == Dir::Uni => {
                self.timed[class].get_or_insert((stream, now));
            }
            (None, _) => (),
        }
    }

    /// A stream is over: its class and since when it was wholly written, if it was a batch that is timed.
    pub(super) fn take_timed(&mut self, stream: StreamId) -> Option<(Class, Instant)> {
        let is_it = |timed: &Option<(StreamId, Instant)>| timed.is_some_and(|(timed, _)| timed == stream);
        let class = Class::ALL.into_iter().find(|class| is_it(&self.timed[*class]))?;
        self.timed[class].take().map(|(_, since)| (class, since))
    }

    fn write_one(
        &mut self,
        io: &mut Io<'_>,
        class: Class,
        rank: usize,
        unwritten: &mut Unwritten,
        most: usize,
    ) -> Outcome {
        let Some(stream) = self.stream_of(io, class, rank, unwritten) else { return Outcome::NoCredit };
        let connection = &mut *io.connection;
        let mut left = most;
        for part in [&mut unwritten.head, &mut unwritten.body] {
            while !part.is_empty() {
                if left == 0 {
                    return Outcome::Paused;
                }
                let mut slice = [part.slice(..part.len().min(SLICE))];
                match connection.send_stream(stream).write_chunks(&mut slice) {
                    Ok(written) => {
                        let bytes = written.bytes.min(part.len());
                        part.advance(bytes);
                        left = left.saturating_sub(bytes);
                    }
                    Err(WriteError::Blocked) => return self.why_blocked(connection),
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

    /// The stream on which something goes; a new one if it has none.
    fn stream_of(
        &mut self,
        io: &mut Io<'_>,
        class: Class,
        rank: usize,
        unwritten: &mut Unwritten,
    ) -> Option<StreamId> {
        if unwritten.stream.is_some() {
            return unwritten.stream;
        }
        self.open_spares(io.connection);
        if self.spares.len() <= self.kept_from(class) {
            return None;
        }
        let stream = self.spares.pop_front()?;
        self.prioritise(io.connection, stream, rank);
        unwritten.stream = Some(stream);
        if let Some(key) = unwritten.key {
            io.keys.opened(key, stream);
        }
        Some(stream)
    }

    /// A stream takes no more: because the connection takes nothing, or because of its own window. A stream that was never
    /// written to tells which.
    fn why_blocked(&self, connection: &mut Connection) -> Outcome {
        let fresh = self.spares.front().map(|spare| connection.send_stream(*spare).write(&[]));
        match fresh {
            Some(Err(WriteError::Blocked)) => Outcome::Held,
            Some(_) | None => Outcome::Blocked,
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
