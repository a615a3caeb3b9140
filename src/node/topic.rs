//! One topic as a replica holds it: broadcast, abort, relay, let go.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;

use crate::config::TopicConfig;
use crate::engine::Command;
use crate::types::{ArtifactId, Attribute, TopicId, Verified};

use super::handle::Inner;

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

/// Slots and bytes of one topic that handles have taken and lanes have not freed, per lane: how `broadcast` knows at once
/// that a table is full.
#[derive(Debug)]
pub(super) struct Reservations {
    lanes: Vec<(AtomicU32, AtomicU64)>,
    slots: u32,
    bytes: u64,
}

impl Reservations {
    pub(super) fn new(config: &TopicConfig, lanes: u16) -> Reservations {
        let lanes = (0..lanes).map(|_| Default::default()).collect();
        Reservations { lanes, slots: config.slots, bytes: config.active_bytes }
    }

    pub(super) fn take(&self, lane: u16, bytes: u64) -> Result<(), BroadcastError> {
        let (slots, used) = self.lanes.get(usize::from(lane)).ok_or(BroadcastError::Stopped)?;
        let take = |now: u32| (now < self.slots).then_some(now + 1);
        slots.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).map_err(|_| BroadcastError::Full)?;
        let take = |now: u64| now.checked_add(bytes).filter(|sum| *sum <= self.bytes);
        if used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            slots.fetch_sub(1, Ordering::Relaxed);
            return Err(BroadcastError::Full);
        }
        Ok(())
    }

    /// Gives one slot and `bytes` back.
    pub(super) fn free(&self, lane: u16, bytes: u64) {
        if let Some((slots, used)) = self.lanes.get(usize::from(lane)) {
            slots.fetch_sub(1, Ordering::Relaxed);
            used.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

/// What the handles of one topic share.
struct OpenTopic {
    config: TopicConfig,
    artifact_bytes: u32,
    reservations: Arc<Reservations>,
    node: Arc<Inner>,
}

/// A handle to one topic, to be cloned and shared among threads at will. No call waits.
#[derive(Clone)]
pub struct Topic {
    inner: Arc<OpenTopic>,
}

impl Topic {
    pub(super) fn new(
        config: TopicConfig,
        artifact_bytes: u32,
        reservations: Arc<Reservations>,
        node: Arc<Inner>,
    ) -> Topic {
        Topic { inner: Arc::new(OpenTopic { config, artifact_bytes, reservations, node }) }
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
        self.start(Verified::hash(self.inner.config.hash, bytes), attribute)
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
        let started = bodies.zip(attributes).map(|(body, attribute)| {
            self.check_size(body.bytes().len())?;
            self.start(body, attribute)
        });
        started.collect()
    }

    fn check_size(&self, size: usize) -> Result<(), BroadcastError> {
        let limit = self.inner.artifact_bytes;
        if size > limit as usize { Err(BroadcastError::TooLarge { size, limit }) } else { Ok(()) }
    }

    fn start(&self, body: Verified, attribute: Attribute) -> Result<ArtifactId, BroadcastError> {
        let OpenTopic { config, reservations, node, .. } = &*self.inner;
        let (id, size) = (body.id(), body.bytes().len() as u64);
        let lane = node.lane_of(&id);
        reservations.take(lane, size)?;
        let command = Command::Broadcast { topic: config.id, body, attribute };
        node.tell(lane, config.class, command).map_err(|error| {
            reservations.free(lane, size);
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
        let OpenTopic { reservations, node, .. } = &*self.inner;
        let lane = node.lane_of(id);
        reservations.take(lane, 0).map_err(|_| CommandError::Full)?;
        self.tell(id, Command::Validate { topic: self.id(), id: *id })
            .inspect_err(|_| reservations.free(lane, 0))
    }

    /// Lets a delivered artifact go that will not be relayed: its memory no longer counts against `pending_bytes`.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn release(&self, id: &ArtifactId) -> Result<(), CommandError> {
        self.tell(id, Command::Release { topic: self.id(), id: *id })
    }

    /// The filter decides differently now: asks it again about everything that it wanted later.
    ///
    /// # Errors
    /// See [`CommandError`]; some lanes may have been asked.
    pub fn filter_changed(&self) -> Result<(), CommandError> {
        let OpenTopic { config, node, .. } = &*self.inner;
        (0..node.lanes())
            .try_for_each(|lane| node.tell(lane, config.class, Command::FilterChanged { topic: config.id }))
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
        node.tell(node.lane_of(id), config.class, command)
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.config.fmt(f)
    }
}
