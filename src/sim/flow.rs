//! Streams that carry a body or a request, from their first byte until both ends have done with them.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::types::{ArtifactId, StreamKey, TopicId};
use crate::wire::{FetchRequest, PushHead, Reply};

/// Names a stream of the whole run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FlowId(pub(super) u64);

/// One end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    pub(super) node: usize,
    pub(super) key: StreamKey,
    /// No event of it reaches this end any more.
    pub(super) done: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Flow {
    /// Of which connection.
    pub(super) connection: u64,
    /// Who began it: the pusher, or who asks.
    pub(super) opener: End,
    pub(super) other: End,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Push { head: PushHead, body: Bytes, started: bool },
    Fetch { request: FetchRequest, limit: u32, arrived: bool, answer: Option<Reply<Bytes>> },
}

/// All streams that are not over.
#[derive(Debug, Default)]
pub(super) struct Flows {
    flows: BTreeMap<FlowId, Flow>,
    by_key: BTreeMap<(usize, usize, StreamKey), FlowId>,
    count: u64,
}

/// Keys that the transport chooses have the highest bit.
const TRANSPORT_KEY: u64 = 1 << 63;

impl Flows {
    /// A stream that `from` opens under its own `key`; the far end's key is the transport's.
    pub(super) fn open(
        &mut self,
        connection: u64,
        from: usize,
        to: usize,
        key: StreamKey,
        what: What,
    ) -> FlowId {
        self.count += 1;
        let id = FlowId(self.count);
        let there = StreamKey(TRANSPORT_KEY | self.count);
        let opener = End { node: from, key, done: false };
        let other = End { node: to, key: there, done: false };
        self.by_key.insert((from, to, key), id);
        self.by_key.insert((to, from, there), id);
        self.flows.insert(id, Flow { connection, opener, other, what });
        id
    }

    pub(super) fn get(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.flows.get_mut(&id)
    }

    /// The stream that `node` knows by `key` on its link to `peer`.
    pub(super) fn find(&self, node: usize, peer: usize, key: StreamKey) -> Option<FlowId> {
        self.by_key.get(&(node, peer, key)).copied()
    }

    /// What a request asks for.
    pub(super) fn requested(&self, id: FlowId) -> Option<(TopicId, ArtifactId)> {
        match &self.flows.get(&id)?.what {
            What::Fetch { request, .. } => Some((request.topic, request.id)),
            What::Push { .. } => None,
        }
    }

    /// Whether `node` sends the body of an artifact to anybody, pushed or as an answer.
    pub(super) fn carries(&self, node: usize, topic: TopicId, id: &ArtifactId) -> bool {
        self.flows.values().any(|flow| {
            let (end, of) = match &flow.what {
                What::Push { head, .. } => (flow.opener, (head.topic, head.id)),
                What::Fetch { request, answer: Some(Reply::Found(_)), .. } => {
                    (flow.other, (request.topic, request.id))
                }
                What::Fetch { .. } => return false,
            };
            end.node == node && !end.done && of == (topic, *id)
        })
    }

    /// Both ends have done with it.
    pub(super) fn end(&mut self, id: FlowId) -> Option<Flow> {
        let flow = self.flows.remove(&id)?;
        let (a, b) = (flow.opener, flow.other);
        self.by_key.remove(&(a.node, b.node, a.key));
        self.by_key.remove(&(b.node, a.node, b.key));
        Some(flow)
    }

    /// Everything of a connection is over.
    pub(super) fn end_all(&mut self, connection: u64) {
        let over: Vec<FlowId> =
            self.flows.iter().filter(|(_, flow)| flow.connection == connection).map(|(id, _)| *id).collect();
        over.into_iter().for_each(|id| drop(self.end(id)));
    }

    /// Pushes of `from` to `to` that go on.
    pub(super) fn pushes(&self, from: usize, to: usize) -> usize {
        let pushes = |flow: &&Flow| {
            flow.opener.node == from
                && flow.other.node == to
                && !flow.other.done
                && matches!(flow.what, What::Push { .. })
        };
        self.flows.values().filter(pushes).count()
    }

    /// Whether a push is taken up: each topic of a link has a place of its own, and so many are `shared`.
    pub(super) fn has_place(&self, push: FlowId, shared: usize) -> bool {
        let Some(Flow { opener, other, what: What::Push { head, .. }, .. }) = self.flows.get(&push) else {
            return true;
        };
        let mut taken = BTreeMap::new();
        for flow in self.flows.values() {
            if let What::Push { head, started: true, .. } = &flow.what
                && (flow.opener.node, flow.other.node, flow.other.done) == (opener.node, other.node, false)
            {
                *taken.entry(head.topic).or_insert(0) += 1;
            }
        }
        !taken.contains_key(&head.topic) || taken.values().map(|places| places - 1).sum::<usize>() < shared
    }

    /// Requests of `from` to `to` that have no answer.
    pub(super) fn requests(&self, from: usize, to: usize) -> usize {
        let asks = |flow: &&Flow| {
            flow.opener.node == from
                && flow.other.node == to
                && matches!(flow.what, What::Fetch { answer: None, .. })
        };
        self.flows.values().filter(asks).count()
    }
}
