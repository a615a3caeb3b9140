//! One topic as a replica holds it: broadcast, abort, relay, let go.

mod board;
mod lag;
mod room;
mod wait;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::config::{Advert, TopicConfig, Verdict};
use crate::engine::Command;
use crate::metrics::StageTimes;
use crate::sync::{Line, WakeWord};
use crate::types::{ArtifactId, Attribute, Instant, TopicId, Verified};

use super::filter::{FilterStats, Gate};
use super::handle::Inner;
use super::lane::LaneCommand;
use super::trace::{Trace, TraceError};

pub(super) use board::TopicBoard;
pub use board::{TopicReport, TopicStats};
pub(super) use lag::LagBoard;
pub use lag::PeerLag;
pub(super) use room::{Full, Room};
pub use wait::Broadcasting;

/// Why an artifact was not broadcast. Nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BroadcastError {
    /// The topic's table in the artifact's lane is full, in slots or in bytes: abort something first.
    #[error("the topic's table is full")]
    Full,
    /// It is larger than the node's limit.
    #[error("an artifact has {size} bytes; at most {limit} are allowed")]
    TooLarge {
        /// Its bytes.
        size: usize,
        /// The limit.
        limit: u32,
    },
    /// Too many commands of this class wait for the lane: try again.
    #[error("too many commands wait for the lane")]
    Busy,
    /// Neither came to an end in time (only [`Topic::broadcast_wait`]).
    #[error("no room came free in time")]
    Timeout,
    /// The node has stopped.
    #[error("the node has stopped")]
    Stopped,
}

/// Why a command was not taken. Nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The topic's table in the artifact's lane is full (only [`Topic::validate`]).
    #[error("the topic's table is full")]
    Full,
    /// Too many commands of this class wait for the lane: try again.
    #[error("too many commands wait for the lane")]
    Busy,
    /// The node has stopped.
    #[error("the node has stopped")]
    Stopped,
}

/// What the handles of one topic share.
struct OpenTopic {
    config: TopicConfig,
    artifact_bytes: u32,
    room: Arc<Room>,
    gate: Arc<Gate>,
    lags: Arc<LagBoard>,
    board: Arc<TopicBoard>,
    node: Arc<Inner>,
}

/// What a topic's handles share with its lanes.
#[derive(Debug, Clone)]
pub(super) struct TopicParts {
    pub(super) room: Arc<Room>,
    pub(super) gate: Arc<Gate>,
    pub(super) lags: Arc<LagBoard>,
    pub(super) board: Arc<TopicBoard>,
}

impl TopicParts {
    /// Of a topic with one lane for each of `wakes`, in a subnet of `members`.
    pub(super) fn new(
        config: &TopicConfig,
        wakes: Vec<Arc<WakeWord>>,
        members: usize,
        board: Arc<TopicBoard>,
    ) -> TopicParts {
        let lanes = wakes.len() as u16;
        TopicParts {
            room: Arc::new(Room::new(config, lanes)),
            gate: Arc::new(Gate::new(config, wakes)),
            lags: Arc::new(LagBoard::new(lanes, members)),
            board,
        }
    }
}

/// A handle to one topic, to be cloned and shared among threads at will. No call waits but [`Topic::broadcast_wait`] and
/// [`Topic::trace`].
#[derive(Clone)]
pub struct Topic {
    inner: Arc<OpenTopic>,
}

impl Topic {
    pub(super) fn new(
        config: TopicConfig,
        artifact_bytes: u32,
        parts: TopicParts,
        node: Arc<Inner>,
    ) -> Topic {
        let TopicParts { room, gate, lags, board } = parts;
        Topic { inner: Arc::new(OpenTopic { config, artifact_bytes, room, gate, lags, board, node }) }
    }

    /// Makes an artifact active: from now on every member is told of it until it is aborted. Hashes the bytes on the calling
    /// thread.
    ///
    /// # Errors
    /// See [`BroadcastError`]. An artifact that is active already is left as it is.
    pub fn broadcast(&self, bytes: impl Into<Bytes>) -> Result<ArtifactId, BroadcastError> {
        self.broadcast_with(bytes, Attribute::EMPTY)
    }

    /// [`Topic::broadcast`] with an attribute for the receivers' filters.
    ///
    /// # Errors
    /// See [`BroadcastError`].
    pub fn broadcast_with(
        &self,
        bytes: impl Into<Bytes>,
        attribute: Attribute,
    ) -> Result<ArtifactId, BroadcastError> {
        let bytes = bytes.into();
        self.check_size(bytes.len())?;
        let body = Verified::hash(self.inner.config.hash, bytes);
        self.start_now(body, attribute, self.inner.board.now())
    }

    /// [`Topic::broadcast_with`] that waits for room in the topic's table and in the lane's queue, at most for `timeout`: it
    /// answers neither `Full` nor `Busy`. Who waits is served in the order in which they came, each lane's by itself, and
    /// before whoever broadcasts or validates without waiting, to whom the table is full meanwhile.
    ///
    /// Not to be called where lanes call the replica (filters, inline consumers): the lane that is to make room stands still.
    ///
    /// # Errors
    /// [`BroadcastError::Timeout`], `TooLarge`, or `Stopped`, that also when the node stops meanwhile.
    pub fn broadcast_wait(
        &self,
        bytes: impl Into<Bytes>,
        attribute: Attribute,
        timeout: Duration,
    ) -> Result<ArtifactId, BroadcastError> {
        self.broadcast_async(bytes, attribute).wait(timeout)
    }

    /// [`Topic::broadcast_wait`] without a thread that waits, for tasks of any runtime. Bound it by racing it with the runtime's
    /// timer; dropping it changes nothing. Hashes the bytes here, on the calling thread.
    ///
    /// # Errors
    /// [`BroadcastError::TooLarge`], or `Stopped`, that also when the node stops meanwhile.
    pub fn broadcast_async(&self, bytes: impl Into<Bytes>, attribute: Attribute) -> Broadcasting {
        let bytes = bytes.into();
        let body = self.check_size(bytes.len()).map(|()| Verified::hash(self.inner.config.hash, bytes));
        Broadcasting::new(self.clone(), body, attribute)
    }

    /// [`Topic::broadcast_with`] for many artifacts, which are hashed side by side: of up to 1,024 bytes each, sixteen take about
    /// as long as three do one by one, with AVX-512 ([`HashKind::ids`](crate::types::HashKind::ids)). Each is taken or refused by
    /// itself; what became of it stands at its place.
    pub fn broadcast_all(
        &self,
        artifacts: impl IntoIterator<Item = (Bytes, Attribute)>,
    ) -> Vec<Result<ArtifactId, BroadcastError>> {
        let (bodies, attributes): (Vec<Bytes>, Vec<Attribute>) = artifacts.into_iter().unzip();
        let bodies = Verified::hash_all(self.inner.config.hash, bodies);
        let since = self.inner.board.now();
        let started = bodies.zip(attributes).map(|(body, attribute)| {
            self.check_size(body.bytes().len())?;
            self.start_now(body, attribute, since)
        });
        started.collect()
    }

    fn check_size(&self, size: usize) -> Result<(), BroadcastError> {
        let limit = self.inner.artifact_bytes;
        if size > limit as usize { Err(BroadcastError::TooLarge { size, limit }) } else { Ok(()) }
    }

    /// Of one who does not wait.
    fn start_now(
        &self,
        body: Verified,
        attribute: Attribute,
        since: Instant,
    ) -> Result<ArtifactId, BroadcastError> {
        let started = self.start(body, attribute, since, false);
        if let Err(BroadcastError::Full | BroadcastError::Busy) = started {
            self.inner.board.refused();
        }
        started
    }

    /// `since`: when it is to go to its lane. `first`: nobody who waits came before.
    fn start(
        &self,
        body: Verified,
        attribute: Attribute,
        since: Instant,
        first: bool,
    ) -> Result<ArtifactId, BroadcastError> {
        let OpenTopic { config, room, node, .. } = &*self.inner;
        let (id, size) = (body.id(), body.bytes().len() as u64);
        let lane = node.lane_of(&id);
        let taken = if first { room.take_first(lane, size) } else { room.take(lane, size) };
        let closed = || room.line(lane).is_some_and(Line::is_closed);
        taken.map_err(|Full| if closed() { BroadcastError::Stopped } else { BroadcastError::Full })?;
        let command = Command::Broadcast { topic: config.id, body, attribute, since };
        let command = LaneCommand::Engine(command);
        node.tell(lane, config.class, command).map_err(|error| {
            room.give_back(lane, size);
            match error {
                CommandError::Full => BroadcastError::Full,
                CommandError::Busy => BroadcastError::Busy,
                CommandError::Stopped => BroadcastError::Stopped,
            }
        })?;
        Ok(id)
    }

    /// Ends an active artifact: what was not sent is not sent, what was begun is reset, peers let it go. Unknown ids are
    /// ignored.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn abort(&self, id: &ArtifactId) -> Result<(), CommandError> {
        self.tell(id, Command::Abort { topic: self.id(), id: *id })
    }

    /// Relays a delivered artifact: it joins this node's active set, so that it reaches everyone even if its maker is gone.
    /// To be aborted like one's own, for a relay advertises: as long as any member relays an artifact, it is withdrawn
    /// nowhere, even if its maker has aborted it. Replicas abort what they relay by a rule of their own (a height, an age).
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn validate(&self, id: &ArtifactId) -> Result<(), CommandError> {
        let OpenTopic { room, node, .. } = &*self.inner;
        let lane = node.lane_of(id);
        room.take(lane, 0).map_err(|Full| CommandError::Full)?;
        self.tell(id, Command::Validate { topic: self.id(), id: *id })
            .inspect_err(|_| room.give_back(lane, 0))
    }

    /// Lets a delivered artifact go that will not be relayed: its memory no longer counts against `pending_bytes`.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn release(&self, id: &ArtifactId) -> Result<(), CommandError> {
        self.tell(id, Command::Release { topic: self.id(), id: *id })
    }

    /// Another filter decides from now on: every lane asks it from its next question on, and at once about everything that was
    /// `Later` so far. Verdicts that the one before has not given yet do not count any more. What it discarded stays so until a
    /// member names it anew.
    ///
    /// It is asked on the thread that the topic's settings say, whatever became of the one before. One that blocks on a thread
    /// of its own keeps that thread until it returns; this one has another.
    pub fn set_filter(&self, filter: impl Fn(&Advert) -> Verdict + Send + Sync + 'static) {
        self.inner.gate.install(Some(Arc::new(filter)));
    }

    /// [`Topic::set_filter`] with one that wants everything, and costs nothing.
    pub fn remove_filter(&self) {
        self.inner.gate.install(None);
    }

    /// The filter decides differently now: asks it again, at once, about everything that was `Later`. However often it is called
    /// before a lane's next turn, the lane asks once.
    pub fn filter_changed(&self) {
        self.inner.gate.announce();
    }

    /// What the topic's filters have cost so far.
    pub fn filter_stats(&self) -> FilterStats {
        self.inner.gate.stats()
    }

    /// Where an artifact is at this node and what happened to it. Asks its lane, which goes on with its work, and waits for the
    /// answer: a turn of the lane as a rule, at most [`Trace::PATIENCE`]. Not to be called where lanes call the replica.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub fn trace(&self, id: &ArtifactId) -> Result<Trace, TraceError> {
        self.inner.node.trace(self.id(), id)
    }

    /// What happened to the topic's artifacts here, and what it holds, up to one housekeeping old (5 ms under load).
    pub fn stats(&self) -> TopicStats {
        self.inner.board.sum()
    }

    /// How long the topic's artifacts wait at each stage, but for [`Stage::Egress`](crate::Stage::Egress) and
    /// [`Stage::Flight`](crate::Stage::Flight), which are known by class ([`Node::stages`](crate::Node::stages)).
    pub fn stages(&self) -> StageTimes {
        let OpenTopic { board, config, .. } = &*self.inner;
        board.times(config.class)
    }

    /// How far each other member is behind what is active here, up to one housekeeping old (5 ms under load).
    pub fn lag(&self) -> Vec<PeerLag> {
        let OpenTopic { lags, node, .. } = &*self.inner;
        let members = node.members().enumerate().filter(|(_, id)| *id != node.id());
        members.map(|(index, id)| lags.of(id, index)).collect()
    }

    /// The topic's id.
    pub fn id(&self) -> TopicId {
        self.inner.config.id
    }

    /// Bytes of the largest artifact that [`Topic::broadcast`] takes.
    pub fn artifact_bytes(&self) -> u32 {
        self.inner.artifact_bytes
    }

    /// Puts a command into the artifact's lane.
    fn tell(&self, id: &ArtifactId, command: Command) -> Result<(), CommandError> {
        let OpenTopic { config, node, .. } = &*self.inner;
        node.tell(node.lane_of(id), config.class, LaneCommand::Engine(command))
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.config.fmt(f)
    }
}
