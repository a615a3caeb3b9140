//! What the tools need of a node: one end of a topic that sends, and one that receives.
//!
//! Everything the tools do stands on these two traits, so that it is tested over a perfect in-memory subnet
//! (`hub`) as well as over real nodes (`loopback`).

use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use corecast::types::{ArtifactId, NodeId};

use super::counters::Counters;
use super::fault::Fault;

/// Why an artifact was not taken. Nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The table or a queue is full: once something was aborted, or a moment later, there is room.
    Wait,
    /// The artifact is larger than the topic allows.
    TooLarge,
    /// The node has stopped.
    Stopped,
}

/// The sending end. Calls never block.
pub(crate) trait Port: Send + Sync {
    /// Makes `bytes` active.
    fn broadcast(&self, bytes: Bytes) -> Result<ArtifactId, Refusal>;
    /// The same for many, in their order: see [`corecast::Topic::broadcast_all`].
    fn broadcast_all(&self, bodies: Vec<Bytes>) -> Vec<Result<ArtifactId, Refusal>> {
        bodies.into_iter().map(|bytes| self.broadcast(bytes)).collect()
    }
    /// Ends an artifact that was broadcast or validated here.
    fn abort(&self, id: &ArtifactId);
    /// Takes a received artifact into this node's own active set.
    fn validate(&self, id: &ArtifactId);
    /// Done with a received artifact that will not be relayed.
    fn release(&self, id: &ArtifactId);
}

/// Bytes that are kept of a body that was let go of.
pub(crate) const HEAD: usize = 16;

/// What a receiving end reports.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A verified body.
    Delivered { id: ArtifactId, bytes: Bytes },
    /// The same, let go of at the time when it came: its first bytes, if it has so many, and how many it had.
    Consumed { id: ArtifactId, head: Option<[u8; HEAD]>, bytes: usize, at: Instant },
    /// Nobody broadcasts it any longer.
    Withdrawn { id: ArtifactId },
    /// A member does not hold it, for a limit of its own.
    Refused { id: ArtifactId, by: NodeId, reason: corecast::Refusal },
}

/// The receiving end of one topic at one node.
pub(crate) trait Feed: Send {
    /// What has arrived already.
    fn try_next(&mut self) -> Option<Arrival>;
    /// Waits for the next arrival, `wait` at most.
    fn next(&mut self, wait: Duration) -> Option<Arrival>;
    /// Gives the next arrival, or has the waker called when there is one.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Arrival>;
}

/// The nodes of one process: an end of every topic at every node.
pub(crate) struct Subnet {
    /// Sending ends, by node and topic.
    pub(crate) ports: Vec<Vec<std::sync::Arc<dyn Port>>>,
    /// Receiving ends, by node and topic; who consumes them takes them.
    pub(crate) feeds: Vec<Vec<Box<dyn Feed>>>,
    /// Everything else.
    pub(crate) host: Box<dyn Host>,
    /// Arrivals are consumed on the nodes' own threads, and carry their time.
    pub(crate) inline: bool,
    /// Number of the next artifact that is made as load: no two have the same content.
    pub(crate) made: u64,
}

/// What runs the nodes.
pub(crate) trait Host: Send {
    /// The counters as of now.
    fn counters(&self) -> Counters;
    /// Ends all nodes, within `deadline`.
    fn shutdown(self: Box<Self>, deadline: Duration) -> Result<(), Fault>;
}
